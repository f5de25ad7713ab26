"""Complete runs, read and checked: their records, cells and predictions."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medlib import files
from medlib.data import manifest
from medlib.errors import MAX_LISTED, listed
from medlib.stats import bootstrap, prediction

IDENTITY = ["sample_id", "patient_id", "y_true"]
CELL = ["task", "backbone", "pretraining", "regime", "head", "label_fraction"]


class Run(NamedTuple):
    """A complete run, as the tables need it."""

    cell: tuple  # the values of CELL
    seed: int
    folder: Path
    predictions_sha256: str
    main: bool  # see is_main

    def named(self) -> dict:
        return dict(zip(CELL, self.cell, strict=True))


class Refused(ValueError):
    """Runs that cannot be used, a line each."""

    def __init__(self, lines: list[str]):
        super().__init__(listed(lines))
        self.lines = lines


def read_predictions(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A run's predictions and its classes, in the order of their columns."""
    return _predictions(folder / "predictions.csv")


def _predictions(source: Path | io.BytesIO) -> tuple[pd.DataFrame, list[str]]:
    frame = manifest.read_samples(source)
    classes = [c.removeprefix("prob_") for c in frame.columns if c.startswith("prob_")]
    return frame, classes


def read_records(folders: list[Path]) -> list[dict]:
    """Each run's ``run.json``.

    Raises ValueError when there is no run, and one that names all runs that are not complete and
    all records that cannot be read.
    """
    if not folders:
        raise ValueError("There is no complete run: run notebooks 03 and 04 first.")
    records, missing, broken = [], [], []
    for folder in folders:
        try:
            records.append(_record(folder / "run.json"))
        except FileNotFoundError:
            missing.append(folder)
        except (OSError, ValueError) as error:
            broken.append(f"{folder / 'run.json'}: {error}")
    parts = [
        f"{len(found)} of {len(folders)} runs {words}:\n{listed(found)}\n"
        for found, words in ((missing, "are not complete"), (broken, "have no readable record"))
        if found
    ]
    if parts:
        way_out = "Run them with notebooks 03 and 04, or take them out of the grid."
        raise ValueError("".join(parts) + way_out)
    return records


def _record(path: Path) -> dict:
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("coordinates"), dict):
        raise ValueError("it has no coordinates")
    lacking = [name for name in (*CELL, "seed") if name not in record["coordinates"]]
    lacking += ["predictions_sha256"] * ("predictions_sha256" not in record)
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return record


def stream(predictions: pd.DataFrame) -> int:
    """The seed of the draws of these patients: the same people, the same draws."""
    return int(files.content_hash(sorted(set(predictions["patient_id"]))), 16)


def runs_by_cell(
    folders: list[Path], trained: Collection[tuple[str, float]] = ()
) -> list[list[Run]]:
    """The runs of each cell of the grid, in the order of cells and seeds."""
    records = read_records(folders)
    main = is_main(pd.DataFrame([record["coordinates"] for record in records]), trained)
    runs = []
    for folder, record, of_main in zip(folders, records, main, strict=True):
        at = record["coordinates"]
        cell = tuple(at[name] for name in CELL)
        sha256 = record["predictions_sha256"]
        runs.append(Run(cell, at["seed"], Path(folder), sha256, bool(of_main)))
    runs.sort(key=lambda run: (run.cell, run.seed))
    return [list(part) for _, part in itertools.groupby(runs, key=lambda run: run.cell)]


def by_cell(
    cells: list[list[Run]], work: Callable, words: str, threads: int | None = None
) -> Iterator[tuple[list[Run], object]]:
    """``work(runs)`` for every cell, in parallel: yields the runs and what was made of them.

    ``work`` returns that and a hash of the samples (:func:`read`). When all cells are through,
    raises ValueError that names every run that was refused, and every one that was judged on other
    samples than most of its task.
    """
    refused: list[str] = []
    judged: dict[str, dict[str, list[Path]]] = {}  # task -> samples -> the first run of each cell

    def guarded(runs: list[Run]) -> object:
        try:
            return work(runs)
        except Refused as error:
            return error

    # Threads, not processes: NumPy lets go of the interpreter while it sums.
    with ThreadPoolExecutor(threads or joblib.cpu_count()) as pool:
        made = pool.map(guarded, cells)
        for runs, found in tqdm(zip(cells, made, strict=True), words, len(cells), unit="cell"):
            if isinstance(found, Refused):
                refused += found.lines
                continue
            of_task = judged.setdefault(runs[0].cell[0], {})
            of_task.setdefault(found[1], []).append(runs[0].folder)
            yield runs, found[0]
    for of_task in judged.values():
        usual, *others = sorted(of_task.values(), key=len, reverse=True)
        folders = sorted(itertools.chain(*others))
        refused += [_differing(folder, usual[0]) for folder in folders[:MAX_LISTED]]
        refused += map(str, folders[MAX_LISTED:])
    if refused:
        n = sum(map(len, cells))
        raise ValueError(f"{len(refused)} of {n} runs cannot be used:\n{listed(refused)}")


def each(runs: list[Run], function: Callable[[Run], object]) -> list:
    """``function(run)`` of each run; Refused that names all those where it cannot be."""
    made, lines = [], []
    for run in runs:
        try:
            made.append(function(run))
        except (OSError, ValueError) as error:
            lines.append(f"{run.folder}: {error}")
    if lines:
        raise Refused(lines)
    return made


def content(run: Run) -> bytes:
    """A run's predictions as they lie there; ValueError when these are not those it recorded."""
    content = (run.folder / "predictions.csv").read_bytes()
    if hashlib.sha256(content).hexdigest() != run.predictions_sha256:
        raise ValueError("predictions.csv is not the one that run.json records; run it again")
    return content


def read(runs: list[Run]) -> tuple[list[pd.DataFrame], list[str], str]:
    """The predictions of a cell, in the order of sample ids; its classes; a hash of its samples."""

    def read(run: Run) -> tuple[pd.DataFrame, list[str]]:
        frame, classes = _predictions(io.BytesIO(content(run)))
        if lacking := [name for name in IDENTITY if name not in frame]:
            raise ValueError(f"predictions.csv lacks {', '.join(lacking)}")
        if frame["sample_id"].duplicated().any():
            raise ValueError("a sample is predicted more than once")
        return frame.sort_values("sample_id", ignore_index=True), classes

    found = each(runs, read)
    frames = [frame for frame, _ in found]
    samples = [frame[IDENTITY].to_numpy().tolist() for frame in frames]
    others = [run.folder for run, s in zip(runs, samples, strict=True) if s != samples[0]]
    if others:
        raise Refused([_differing(folder, runs[0].folder) for folder in others])
    return frames, found[0][1], files.content_hash(samples[0])


def _differing(folder: Path, other: Path) -> str:
    """What to say of two runs of a task that were judged on different samples."""
    one, two = (
        set(read_predictions(f)[0][IDENTITY].itertuples(index=False, name=None))
        for f in (folder, other)
    )
    differing = sorted({sample for sample, *_ in one ^ two})
    return (
        f"{folder} and {other} were judged on different samples ({len(differing)}, such as "
        f"{differing[0]!r}): run the older of the two again."
    )


def points_and_draws(
    frames: list[pd.DataFrame], classes: list[str], names: Sequence[str], resamples: int
) -> tuple[list[dict], list[dict]]:
    """Of each seed's predictions the metrics, and their values on the same draws of patients."""
    points = [prediction.point(frame, classes, names) for frame in frames]
    draws = [
        bootstrap.bootstrap(frame, classes, resamples, stream(frame), names=names, threads=1)
        for frame in frames
    ]
    return points, draws


def delong(frames: list[pd.DataFrame], classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (m,) and their covariance (m, m) of predictions of the same samples in one order.

    See :func:`medlib.metrics.delong`; NaN for more than two classes.
    """
    m = len(frames)
    if len(classes) != 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    y = frames[0]["y_true"] == classes[1]
    column = prediction.probability_columns(classes)[1]
    scores = np.stack([frame[column] for frame in frames])
    return bootstrap.delong(y, scores, frames[0]["patient_id"])


def is_main(cells: pd.DataFrame, trained: Collection[tuple[str, float]] = ()) -> pd.Series:
    """Which rows are of the main comparison: on all labels, or on those of a trained regime.

    ``cells`` has the columns task, regime and label_fraction; where they are a part of a grid,
    ``trained`` holds the (task, label_fraction) of regimes that train in the rest of it. Other
    shares of the labels are there to show how a backbone's number grows with them.
    """
    keys = ["task", "label_fraction"]
    here = cells.loc[cells["regime"] != "frozen", keys].itertuples(index=False, name=None)
    at_trained = pd.MultiIndex.from_frame(cells[keys]).isin({*here, *trained})
    return (cells["label_fraction"] == 1) | at_trained
