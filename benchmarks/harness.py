"""What the benchmarks share: contestants timed in turn, the machine's own limit, the summary.

A script times its contestants in one process, in turn, in several repeats. In each repeat the
peer's time is divided by ours; the ratio is the median of these over the repeats. Every script
takes ``--quick``: tiny sizes, to see that it runs. The numbers then mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from medlib import files
from medlib.core import backbones
from medlib.grid import hours

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SUMMARY = Path(f"results/bench/summary{'_cuda' if DEVICE == 'cuda' else ''}.json")


def arguments(
    description: str, backbones: bool = False, peers: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Parse the options of a script: ``--quick``, ``--repeats``; with ``backbones``, ``--only``.

    ``peers`` are options that name a file of another environment, each with its explanation.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes; nothing is kept")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
    if backbones:
        parser.add_argument("--only", nargs="*", metavar="BACKBONE", help="not all of them")
    for name, explanation in (peers or {}).items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=explanation)
    options = parser.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    return options


def chosen(table: dict, options: argparse.Namespace) -> dict:
    """The backbones of a table that are to be timed."""
    return {name: row for name, row in table.items() if not options.only or name in options.only}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """The seconds of one call, the device's work included."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of every contestant (repeats,), timed in turn so that all meet the same machine.

    A contestant that returns a float has timed itself: a peer that would take hours is measured
    on a part, and scaled.
    """
    times = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            own = None

            def call(function=function):
                nonlocal own
                own = function()

            taken = seconds(call)
            times[name].append(own if isinstance(own, float) else taken)
    return {name: np.array(values) for name, values in times.items()}


def at_work(function: Callable[[], object]) -> float:
    """The share of one call's time in which a CUDA device computes. Copies to it do not count."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        taken = seconds(function)
    spent = {event.key: event.self_device_time_total for event in profiler.key_averages()}
    computing = sum(time for key, time in spent.items() if not key.startswith("Memcpy HtoD"))
    return computing / 1e6 / taken


def flops(function: Callable[[], object]) -> int:
    """The floating-point operations of one call: of its matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def photographs(folder: Path, n: int, size: tuple[int, int], quality: int = 90) -> list[Path]:
    """``n`` JPEG files of ``size`` (width, height): noise with a photograph's 1/f spectrum."""
    rng = np.random.default_rng(0)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(n)]
    for path in paths:
        noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
        pixels = np.fft.irfft2(noise / frequency**1.2, (height, width)).transpose(1, 2, 0)
        pixels = 128 + 45 * pixels / pixels.std()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=quality)
    return paths


class Files(torch.utils.data.Dataset):
    """The peers' data set: an image is opened, decoded and transformed whenever it is asked for."""

    def __init__(self, paths: list[Path], labels: list[int], transform: Callable):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self.paths[number]).convert("RGB")
        return self.transform(image), self.labels[number]


def resized(row: backbones.Backbone, size: int) -> Callable:
    """The peers' transform of an image: as the backbone wants it, by torchvision."""
    return transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize(row.preprocessing["mean"], row.preprocessing["std"]),
        ]
    )


def timm_model(row: backbones.Backbone, size: int) -> torch.nn.Module:
    """The peers' network, as timm makes it, in evaluation mode."""
    arguments = {"img_size": size} if row.patch > 1 else {}
    return timm.create_model(row.architecture, num_classes=0, **arguments).eval().to(DEVICE)


LIMITS = ("torch.mm",) if DEVICE == "cuda" else ("torch.mm", "oneDNN")


def matrix_rate(way: str = "torch.mm", dtype: torch.dtype = torch.float32) -> float:
    """:func:`hours.matrix_rate` on the device of the benchmarks; :data:`LIMITS` names its ways."""
    return hours.matrix_rate(way, dtype, DEVICE)


def report(
    name: str,
    peer: str,
    ratios: np.ndarray | float,
    *,
    target: float | None,
    value: float,
    unit: str,
    quick: bool = False,
) -> None:
    """Print one line of the table and put it into the summary, in place of an older one.

    ``ratios`` holds one ratio a repeat; their median counts, their range is the noise. ``value`` is
    our own figure in ``unit`` (seconds, images/s, bytes).
    """
    ratios = np.atleast_1d(np.asarray(ratios, dtype=float))
    ratio, low, high = float(np.median(ratios)), float(ratios.min()), float(ratios.max())
    goal = "" if target is None else f"target {target:g}"
    verdict = "" if target is None else ("reached" if ratio >= target else "MISSED")
    print(
        f"{name:<44} {value:>10.4g} {unit:<9} {ratio:>8.3g} × {peer:<28} "
        f"[{low:.3g}, {high:.3g}]  {goal:<11} {verdict}",
        flush=True,
    )
    if quick:
        return
    records = json.loads(SUMMARY.read_text("utf-8")) if SUMMARY.is_file() else []
    records = [r for r in records if (r["name"], r["peer"]) != (name, peer)]
    records.append(
        {
            "name": name,
            "peer": peer,
            "ratio": _digits(ratio),
            "target": target,
            "value": _digits(value),
            "unit": unit,
            "low": _digits(low),
            "high": _digits(high),
        }
    )
    files.save_json(SUMMARY, records)


def contest(
    name: str,
    peer: str,
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    target: float | None,
    quick: bool,
) -> None:
    """Time the contestants "ours" and "peer" in turn, and report how much faster ours is."""
    times = interleaved(contestants, repeats)
    ratios, own = times["peer"] / times["ours"], float(np.median(times["ours"]))
    report(name, peer, ratios, target=target, value=own, unit="s", quick=quick)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
