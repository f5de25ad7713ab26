"""Complete runs -> the summary tables that every figure and table is drawn from.

``summary.csv`` has a row per run and metric, ``summary_over_seeds.csv`` a row per cell of the grid
and metric: the mean over seeds, its interval, and the seeds' standard deviation.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medlib import artifacts, metrics
from medlib.errors import listed

CELL = ["task", "backbone", "pretraining", "regime", "head", "label_fraction"]


def read_predictions(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A run's predictions and its classes, in the order of their columns."""
    frame = artifacts.read_samples(folder / "predictions.csv")
    classes = [c.removeprefix("prob_") for c in frame.columns if c.startswith("prob_")]
    return frame, classes


def read_records(folders: list[Path]) -> list[dict]:
    """Each run's ``run.json``; ValueError when there is no run, or naming those not complete."""
    if not folders:
        raise ValueError("There is no complete run: run notebooks 03 and 04 first.")
    missing = [str(folder) for folder in folders if not (folder / "run.json").is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(folders)} runs are not complete:\n{listed(missing)}\n"
            "Run them with notebooks 03 and 04, or take them out of the grid."
        )
    return [artifacts.read_json(folder / "run.json") for folder in folders]


def summarise(folders: list[Path], resamples: int = 5000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The metrics of complete runs with 95 % intervals, by seed and over seeds.

    Intervals come from ``resamples`` draws of patients. The runs of a cell get the same draws, so
    that the interval of their mean over seeds is about patients alone; the spread over seeds
    stands beside it as ``sd``. Raises ValueError when a run is not complete, or when the runs of
    a task were not all judged on the same samples, naming them.
    """
    records = [record["coordinates"] for record in read_records(folders)]
    frame = pd.DataFrame(records).assign(folder=folders)
    cells = list(frame.sort_values([*CELL, "seed"]).groupby(CELL, sort=True))
    judged: dict = {}
    # Threads, not processes: NumPy lets go of the interpreter while it sums.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        parts = pool.map(lambda part: _summarise_cell(*part, resamples, judged), cells)
        by_seed, over_seeds = zip(*tqdm(parts, "intervals", len(cells), unit="cell"), strict=True)
    return pd.DataFrame(sum(by_seed, [])), pd.DataFrame(sum(over_seeds, []))


def _summarise_cell(
    cell: tuple, members: pd.DataFrame, resamples: int, judged: dict
) -> tuple[list[dict], list[dict]]:
    """The rows of one cell of the grid: a row per seed and metric, and a row per metric."""
    cell, points, draws = dict(zip(CELL, cell, strict=True)), [], []
    for run in members.itertuples():
        predictions, classes = read_predictions(run.folder)
        _same_samples(judged, run, predictions)
        points.append(metrics.point(predictions, classes))
        draws.append(metrics.bootstrap(predictions, classes, resamples, threads=1))
    size = {"n_patients": predictions["patient_id"].nunique(), "n_images": len(predictions)}
    by_seed, over_seeds = [], []
    for name in metrics.NAMES:
        values = [point[name] for point in points]
        for seed, value, draw in zip(members["seed"], values, draws, strict=True):
            row = {"seed": seed, "metric": name, "value": value}
            by_seed.append(cell | row | _interval(draw[name]) | size)
        row = {
            "n_seeds": len(values),
            "metric": name,
            "value": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        }
        mean = np.mean([draw[name] for draw in draws], axis=0)
        over_seeds.append(cell | row | _interval(mean) | size)
    return by_seed, over_seeds


def _interval(draws: np.ndarray) -> dict[str, float]:
    return dict(zip(("ci_low", "ci_high"), metrics.interval(draws), strict=True))


def _same_samples(judged: dict, run: tuple, predictions: pd.DataFrame) -> None:
    """Remember the first run of a task, and raise if another was judged on other samples."""
    if predictions["sample_id"].duplicated().any():
        raise ValueError(f"{run.folder}: a sample is predicted more than once.")
    identity = ["sample_id", "patient_id", "y_true"]
    samples = frozenset(predictions[identity].itertuples(index=False, name=None))
    first, expected = judged.setdefault(run.task, (run.folder, samples))
    if samples != expected:
        differing = sorted({sample for sample, *_ in samples ^ expected})
        raise ValueError(
            f"{run.folder} and {first} were judged on different samples ({len(differing)}, such "
            f"as {differing[0]!r}): run the older of the two again."
        )
