"""Where every file of a study lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medlib.core.settings import REGIMES


def manifest_path(results: Path | str, task: str) -> Path:
    return Path(results) / "manifests" / f"{task}.csv"


def images_folder(results: Path | str, task: str, size: int, interpolation: str) -> Path:
    return Path(results) / "images" / task / f"{size}-{interpolation}"


def features_folder(results: Path | str, task: str, backbone: str) -> Path:
    return Path(results) / "features" / task / backbone


def run_folder(
    results: Path | str,
    task: str,
    backbone: str,
    regime: str,
    head: str = "linear",
    label_fraction: float = 1.0,
    seed: int = 0,
) -> Path:
    """The folder of one run; its name holds grid coordinates only."""
    if regime not in REGIMES:
        raise ValueError(f"Unknown regime {regime!r}; choose one of {', '.join(REGIMES)}.")
    name = f"frozen-{head}" if regime == "frozen" else regime
    if label_fraction != 1:
        name += f"-fraction{label_fraction:g}"
    return Path(results) / "runs" / task / backbone / name / f"seed{seed}"


def frozen_runs(
    heads: Iterable[str], label_fractions: Iterable[float], seeds: Iterable[int]
) -> list[dict]:
    """The (head, label_fraction, seed) of every probe that a grid asks for.

    Logistic regression and kNN on all labels have nothing random in them: only the first seed is
    run, rather than showing copies of one result as a spread of zero.
    """
    seeds, runs = list(seeds), []
    for head in heads:
        for fraction in label_fractions:
            once = head != "mlp" and fraction == 1
            runs += [
                {"head": head, "label_fraction": fraction, "seed": seed}
                for seed in (seeds[:1] if once else seeds)
            ]
    return runs


def find_runs(results: Path | str) -> list[Path]:
    """Folders of all complete runs below ``results``, sorted."""
    return sorted(path.parent for path in (Path(results) / "runs").glob("*/*/*/*/run.json"))


def intervals(results: Path | str, task: str, backbone: str) -> Path:
    """The file that keeps the metrics and intervals of a backbone's runs on a task."""
    return Path(results) / "runs" / task / backbone / "intervals.json"
