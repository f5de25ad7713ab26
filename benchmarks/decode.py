"""Decoding and resizing JPEGs for packing, against Pillow with torchvision's v1 transforms.

Per core: both sides read the same files in one thread, in turn, and end with 224 × 224 × 3 uint8
pixels. The peer is `Image.open(path).convert("RGB")`, `Resize(antialias=True)` and `PILToTensor`,
as in a plain data set class. "both" is a bilinear and a bicubic pack, as preparation makes them;
the peer, too, then decodes once. The files are made here, with the spectrum of photographs, at the
sizes of the original data sets. The geometric mean over them is compared with the target. A fourth
set has JPEG quality 100: both sides spend most time on its Huffman code, so little can be gained.
Further timings: `packing.pack` with one thread per core against one thread, and the images in
MEDLIB_DATA.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import arguments, interleaved, report
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from medlib.data import decoding, packing, packs

SIZE = 224
SETS = {  # height, width, channels, JPEG quality, whether it counts
    "600×450 colour": (450, 600, 3, 90, True),
    "1300×1000 grey": (1000, 1300, 1, 90, True),
    "2000×2000 colour": (2000, 2000, 3, 90, True),
    "600×450 colour, finest": (450, 600, 3, 100, False),
}
INTERPOLATIONS = {
    **{name: [name] for name in decoding.RESAMPLING},
    "both": list(decoding.RESAMPLING),
}
TRANSFORMS = {
    name: transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), InterpolationMode(name), antialias=True),
            transforms.PILToTensor(),
        ]
    )
    for name in decoding.RESAMPLING
}
PEER = "Pillow + torchvision v1"


def photograph(height: int, width: int, channels: int, seed: int) -> Image.Image:
    """Noise whose power falls with the cube of the frequency, and a sensor's grain."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    fall = np.maximum(frequency, 1 / max(height, width)) ** -1.5
    planes = [
        np.fft.irfft2(fall * np.exp(2j * np.pi * rng.random(fall.shape)), (height, width))
        for _ in range(channels)
    ]
    colours = [plane / plane.std() for plane in planes]
    picture = np.stack([colours[0] + 0.3 * colour for colour in colours], axis=-1)
    pixels = 128 + 40 * picture + rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).squeeze())


def plain(paths: list[Path], names: list[str]) -> np.ndarray:
    """The peer's pixels: (files, interpolations, 3, 224, 224)."""
    done = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        done.append([TRANSFORMS[name](picture).numpy() for name in names])
    return np.array(done)


def ours(paths: list[Path], names: list[str]) -> np.ndarray:
    """Our pixels: (files, interpolations, 224, 224, 3)."""
    done = []
    for path in paths:
        picture = decoding.decode_to_resize(path, SIZE)
        done.append([decoding.resize(picture, SIZE, name) for name in names])
    return np.array(done)


def per_core(
    name: str, paths: list[Path], rounds: int, repeats: int, quick: bool
) -> dict[str, np.ndarray]:
    """Ratios by interpolation; each timing goes ``rounds`` times through the files."""
    found, expected = (f(paths, INTERPOLATIONS["both"]) for f in (ours, plain))
    apart = np.abs(found.astype(np.int16) - expected.transpose(0, 1, 3, 4, 2))
    ratios = {}
    for interpolation, names in INTERPOLATIONS.items():
        times = interleaved(
            {
                "ours": lambda names=names: [ours(paths, names) for _ in range(rounds)] and None,
                "peer": lambda names=names: [plain(paths, names) for _ in range(rounds)] and None,
            },
            repeats,
        )
        ratios[interpolation] = times["peer"] / times["ours"]
        rate = rounds * len(paths) / float(np.median(times["ours"]))
        title = f"decode, {name}, {interpolation}"
        report(
            title,
            PEER,
            ratios[interpolation],
            target=None,
            value=rate,
            unit="images/s",
            quick=quick,
        )
    print(f"    at most {apart.max()} grey level(s) apart, {(apart > 0).mean():.2%} of the values")
    return ratios


def scaling(paths: list[Path], repeats: int, quick: bool) -> None:
    """Packing with one thread a core, against one thread."""
    rows = pd.DataFrame({"path": [path.name for path in paths], "label": "a", "fold": 0})
    rows["sample_id"] = rows["patient_id"] = rows.index.astype(str)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def pack(workers: int) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            folders = {Path(folder) / name: packs.Drawn(SIZE, name) for name in decoding.RESAMPLING}
            packing.pack(rows, paths[0].parent, folders, workers=workers)

    times = interleaved({"one": lambda: pack(1), "all": lambda: pack(cores)}, repeats)
    rate = len(paths) / float(np.median(times["all"]))
    report(
        f"pack both, {cores} threads",
        "one thread",
        times["one"] / times["all"],
        target=0.9 * cores,
        value=rate,
        unit="images/s",
        quick=quick,
    )


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    counted = []
    with tempfile.TemporaryDirectory() as folder:
        written = {}
        for name, (height, width, channels, quality, counts) in SETS.items():
            files = 1 if options.quick else 4
            paths = [Path(folder) / f"{len(written)}-{k}.jpg" for k in range(files)]
            for seed, path in enumerate(paths):
                photograph(height, width, channels, seed).save(path, quality=quality)
            bits = np.mean([path.stat().st_size * 8 for path in paths]) / (height * width)
            print(f"{name}: {bits:.1f} bits a pixel")
            rounds = 1 if options.quick else round(4e7 / (height * width * len(paths)))
            ratios = per_core(name, paths, rounds, options.repeats, options.quick)
            written[name] = paths
            counted += [ratios] if counts else []
        kinds = {
            "bilinear": (["bilinear"], None),
            "bilinear and bicubic": (["bilinear", "bicubic"], 2),
            "both from one decoding": (["both"], 2),
        }
        for kind, (interpolations, target) in kinds.items():
            logs = [np.log(ratios[i]) for ratios in counted for i in interpolations]
            mean = np.exp(np.mean(logs, axis=0))
            report(
                f"decode, mean, {kind}",
                PEER,
                mean,
                target=target,
                value=float(np.median(mean)),
                unit="×",
                quick=options.quick,
            )
        files = [path for paths in written.values() for path in paths]
        scaling(files * (1 if options.quick else 16), options.repeats, options.quick)

    if "MEDLIB_DATA" in os.environ:
        for data in sorted(Path(os.environ["MEDLIB_DATA"]).iterdir()):
            found = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            if found:
                sample = found[:: len(found) // 200 + 1][: 8 if options.quick else 200]
                per_core(data.name, sample, 1, options.repeats, options.quick)


if __name__ == "__main__":
    main()
