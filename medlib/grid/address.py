"""The paths of all files of a study. No other module knows how a folder is named."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medlib.core.settings import HEADS, REGIMES
from medlib.errors import unknown

# Below the results folder. An arm's name: the regime, the head if frozen, the label fraction.
RUN = "runs/{task}/{backbone}/{arm}/seed{seed}"
_ARM = re.compile(r"([^-]+)(?:-((?!fraction)[^-]+))?(?:-fraction(.+))?")


@dataclass(frozen=True)
class Address:
    """One run of a grid. If the regime is not frozen, ``head`` is set to "linear".

    Raises ValueError for unknown values and for values that cannot be part of a folder's name.
    """

    task: str
    backbone: str
    regime: str
    head: str = "linear"
    label_fraction: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for kind, choices in (("regime", REGIMES), ("head", HEADS)):
            if getattr(self, kind) not in choices:
                raise ValueError(unknown(kind, getattr(self, kind), choices))
        for name in (self.task, self.backbone):
            if "/" in name or name in ("", ".", ".."):
                raise ValueError(f"{name!r} cannot be the name of a folder.")
        if not 0 < self.label_fraction <= 1 or self.seed < 0:
            raise ValueError(f"No run has label_fraction {self.label_fraction}, seed {self.seed}.")
        if self.regime != "frozen":
            object.__setattr__(self, "head", "linear")

    @property
    def arm(self) -> str:
        """The name of the arm's folder, such as ``frozen-knn-fraction0.1`` or ``finetuned``."""
        name = f"frozen-{self.head}" if self.regime == "frozen" else self.regime
        share = float(self.label_fraction)
        return name if share == 1 else f"{name}-fraction{share!r}"

    def folder(self, results: Path | str) -> Path:
        return Path(results) / RUN.format(arm=self.arm, **vars(self))

    def record(self, results: Path | str) -> Path:
        """The path of the run's record. It is written last: without it, the run is not complete."""
        return self.folder(results) / "run.json"

    def promised(self, results: Path | str) -> Path:
        """The file that the run's job writes last. All probes of a frozen backbone are one job."""
        if self.regime == "frozen":
            return probes(results, self.task, self.backbone)
        return self.record(results)

    @classmethod
    def parse(cls, path: Path | str) -> Address:
        """The address of a run's folder. Raises ValueError for any other path."""
        with contextlib.suppress(AttributeError, ValueError):  # too few parts, no arm, no number
            *_, task, backbone, arm, seed = Path(path).parts
            regime, head, share = _ARM.fullmatch(arm).groups()
            share, seed = float(share or 1), int(seed.removeprefix("seed"))
            run = cls(task, backbone, regime, head or "linear", share, seed)
            # Another spelling, such as fraction0.10, is not an address.
            if run.folder("").parts == Path(path).parts[-5:]:
                return run
        raise ValueError(
            f"{path} is not the folder of a run. It must end in {RUN}, where the arm is, for "
            "example, frozen-knn or finetuned-fraction0.1."
        )


def manifest(results: Path | str, task: str) -> Path:
    return Path(results) / "manifests" / f"{task}.csv"


def images(results: Path | str, task: str) -> Path:
    """The folder of all packed images of a task."""
    return Path(results) / "images" / task


def pack(results: Path | str, task: str, size: int, interpolation: str) -> Path:
    """The folder of a task's images of one size, in pixels, and one interpolation."""
    return images(results, task) / f"{size}-{interpolation}"


def packed_sizes(results: Path | str, task: str) -> list[int]:
    """The sizes, in pixels, at which a task's images are packed."""
    sizes = {path.name.partition("-")[0] for path in images(results, task).glob("*-bilinear")}
    return sorted(int(size) for size in sizes)


def seeds(results: Path | str, task: str) -> Path:
    """The seeds with which notebook 01 has drawn a task's phantoms and its split."""
    return Path(results) / "manifests" / f"{task}.seeds.json"


def features(results: Path | str, task: str, backbone: str, seed: int | str = 0) -> Path:
    """The folder of a task's embeddings; ``seed`` has drawn the weights of a random control."""
    return Path(results) / "features" / task / backbone / f"seed{seed}"


def cell(results: Path | str, task: str, backbone: str) -> Path:
    """The folder of all runs of one backbone on one task."""
    return Path(results) / "runs" / task / backbone


@functools.cache  # called for each run of a grid
def probes(results: Path | str, task: str, backbone: str) -> Path:
    """The table of scores of all probes of a frozen backbone. It is written after the last one."""
    return cell(results, task, backbone) / "frozen.csv"


def intervals(results: Path | str, task: str, backbone: str) -> Path:
    """The file with the summary's rows for one backbone on one task."""
    return cell(results, task, backbone) / "intervals.json"


def external(results: Path | str, other: str, run: Address) -> Path:
    """The predictions of a run's model for all samples of another data set."""
    folder = run.folder(Path(results) / "external" / other)
    return folder.with_suffix(".csv")


def belongs_to(path: Path | str) -> tuple[str | None, str | None]:
    """The task and the backbone of a file; each is None if the file belongs to all of them.

    ``path`` is relative to the results folder.
    """
    kind, *names = Path(path).parts
    if kind in ("runs", "features"):
        return names[0], names[1]
    return (names[0] if kind == "images" else None), None


def frozen_runs(
    task: str,
    backbone: str,
    heads: Iterable[str],
    label_fractions: Iterable[float],
    seeds: Iterable[int],
    always_drawn: bool = False,
) -> list[Address]:
    """One frozen backbone on one task: the address of each of its probes.

    A seed draws the labelled patients and the MLP. With ``always_drawn`` it draws more: the weights
    of a random control, or the folds of repeated cross-validation. Without ``always_drawn``,
    logistic regression and kNN on all labels do not depend on the seed, so they run for the first
    seed only. Otherwise copies of one result would be shown as a spread of zero.
    """
    seeds, label_fractions = list(seeds), list(label_fractions)
    return [
        Address(task, backbone, "frozen", head, fraction, seed)
        for head in heads
        for fraction in label_fractions
        for seed in (seeds if always_drawn or head == "mlp" or fraction != 1 else seeds[:1])
    ]


def find_runs(results: Path | str) -> list[Path]:
    """The folders of all complete runs below ``results``, sorted."""
    names = dict.fromkeys(("task", "backbone", "arm", "seed"), "*")
    return sorted(path.parent for path in Path(results).glob(RUN.format(**names) + "/run.json"))
