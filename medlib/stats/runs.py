"""Reading complete runs: their records, cells and predictions, checked."""

import hashlib
import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import joblib
import pandas as pd
from tqdm.auto import tqdm

from medlib import files
from medlib.data import manifest
from medlib.errors import MAX_LISTED, listed

IDENTITY = ["sample_id", "patient_id", "y_true"]
# A cell is one arm on one task: its runs differ only in the seed.
CELL = ["task", "backbone", "pretraining", "regime", "head", "label_fraction"]


class Run(NamedTuple):
    """A complete run, as the tables need it."""

    cell: tuple  # the values of CELL
    seed: int
    folder: Path
    sha256: dict[str, str]  # of its tables: predictions.csv, and others by name
    candidates: int  # settings that it chose among
    main: bool  # see is_main

    def named(self) -> dict:
        return dict(zip(CELL, self.cell, strict=True))


class Refused(ValueError):
    """Runs that cannot be used, a line for each."""

    def __init__(self, lines: list[str]):
        super().__init__(listed(lines))
        self.lines = lines


def read_predictions(source: Path | io.BytesIO) -> tuple[pd.DataFrame, list[str]]:
    """Predictions from a run's folder or from their bytes, and classes in the columns' order."""
    path = source / "predictions.csv" if isinstance(source, Path) else source
    frame = manifest.read_samples(path)
    return frame, [c.removeprefix("prob_") for c in frame if c.startswith("prob_")]


def read_records(folders: list[Path]) -> list[dict]:
    """The content of each run's ``run.json``.

    Raises ValueError if ``folders`` is empty, and also if runs are not complete or records cannot
    be read; the message names them all.
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
    message = ""
    for offenders, words in ((missing, "are not complete"), (broken, "have no readable record")):
        if n := len(offenders):
            message += f"{n} of {len(folders)} runs {words}:\n{listed(offenders)}\n"
    if message:
        way_out = "Run them with notebooks 03 and 04, or remove them from the grid file."
        raise ValueError(message + way_out)
    return records


def _record(path: Path) -> dict:
    record = files.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("coordinates"), dict):
        raise ValueError("it has no coordinates")
    lacking = [name for name in (*CELL, "seed") if name not in record["coordinates"]]
    lacking += ["sha256"] * ("predictions.csv" not in record.get("sha256", {}))
    lacking += ["candidates"] * ("candidates" not in record.get("how", {}))
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return record


def runs_by_cell(folders: list[Path]) -> list[list[Run]]:
    """The runs of each cell, in the order of cells and seeds."""
    records = read_records(folders)
    main = is_main(pd.DataFrame([record["coordinates"] for record in records]))
    runs = []
    for folder, record, of_main in zip(folders, records, main, strict=True):
        at = record["coordinates"]
        cell = tuple(at[name] for name in CELL)
        sha256, candidates = record["sha256"], record["how"]["candidates"]
        runs.append(Run(cell, at["seed"], folder, sha256, candidates, bool(of_main)))
    runs.sort(key=lambda run: run[:2])
    return [list(part) for _, part in itertools.groupby(runs, key=lambda run: run.cell)]


def by_cell(
    cells: list[list[Run]], work: Callable, words: str, threads: int | None = None
) -> Iterator[tuple[list[Run], object]]:
    """``work(runs)`` for every cell, in parallel: yields the runs of each, and what it made.

    ``work`` returns what it made and a hash of the samples (:func:`read`). After the last cell,
    raises ValueError that names every refused run and every run that was judged on other samples
    than most runs of its task.
    """
    refused: list[str] = []
    firsts: dict = defaultdict(lambda: defaultdict(list))  # task -> samples -> a run of each cell

    def guarded(runs: list[Run]) -> object:
        try:
            return work(runs)
        except Refused as error:
            return error

    # Threads, not processes: NumPy releases the interpreter lock while it sums.
    with ThreadPoolExecutor(threads or joblib.cpu_count()) as pool:
        results = pool.map(guarded, cells)
        for runs, result in tqdm(zip(cells, results, strict=True), words, len(cells), unit="cell"):
            if isinstance(result, Refused):
                refused += result.lines
                continue
            made, samples = result
            firsts[runs[0].cell[0]][samples].append(runs[0].folder)
            yield runs, made
    for of_task in firsts.values():
        usual, *others = sorted(of_task.values(), key=len, reverse=True)
        folders = sorted(itertools.chain(*others))
        refused += [_differing(folder, usual[0]) for folder in folders[:MAX_LISTED]]
        refused += map(str, folders[MAX_LISTED:])  # these are only counted
    if n := len(refused):
        raise ValueError(f"{n} of {sum(map(len, cells))} runs cannot be used:\n{listed(refused)}")


def each(runs: list[Run], function: Callable[[Run], object]) -> list:
    """``function(run)`` of each run; raises Refused that names all runs where it failed."""
    made, lines = [], []
    for run in runs:
        try:
            made.append(function(run))
        except (OSError, ValueError) as error:
            lines.append(f"{run.folder}: {error}")
    if lines:
        raise Refused(lines)
    return made


def content(run: Run, file: str = "predictions.csv") -> bytes:
    """The bytes of a run's file. Raises ValueError if their hash is not the recorded one."""
    data = (run.folder / file).read_bytes()
    if hashlib.sha256(data).hexdigest() != run.sha256.get(file):
        raise ValueError(f"{file} is not the one that run.json records; run it again")
    return data


def validation(run: Run) -> pd.DataFrame:
    """A run's predictions of its validation patients; empty where it has none."""
    if "validation.csv" not in run.sha256:
        return pd.DataFrame()
    return manifest.read_samples(io.BytesIO(content(run, "validation.csv")))


def redraws(run: Run) -> pd.DataFrame:
    """The test metrics of a run's models after other draws of its training patients.

    A row for each redraw, a column for each metric; empty where a run has none.
    """
    if "redraws.csv" not in run.sha256:
        return pd.DataFrame()
    return pd.read_csv(io.BytesIO(content(run, "redraws.csv")))


def read(runs: list[Run]) -> tuple[list[pd.DataFrame], list[str], str]:
    """The predictions of a cell, sorted by sample id; its classes; a hash of its samples."""

    def read_one(run: Run) -> tuple[pd.DataFrame, list[str]]:
        frame, classes = read_predictions(io.BytesIO(content(run)))
        if lacking := [name for name in IDENTITY if name not in frame]:
            raise ValueError(f"predictions.csv lacks {', '.join(lacking)}")
        if frame["sample_id"].duplicated().any():
            raise ValueError("a sample is predicted more than once")
        return frame.sort_values("sample_id", ignore_index=True), classes

    frames, classes = zip(*each(runs, read_one), strict=True)
    samples = [frame[IDENTITY].to_numpy().tolist() for frame in frames]
    if others := [run for run, s in zip(runs, samples, strict=True) if s != samples[0]]:
        raise Refused([_differing(run.folder, runs[0].folder) for run in others])
    return list(frames), classes[0], files.content_hash(samples[0])


def _differing(folder: Path, other: Path) -> str:
    """The message about two runs of a task that were judged on different samples."""
    frames = [read_predictions(run)[0][IDENTITY] for run in (folder, other)]
    one, two = (set(frame.itertuples(index=False, name=None)) for frame in frames)
    differing = sorted({sample for sample, *_ in one ^ two})
    return (
        f"{folder} and {other} were judged on different samples ({len(differing)}, such as "
        f"{differing[0]!r}): run the older of the two again."
    )


def is_main(cells: pd.DataFrame, trained: Collection[tuple[str, float]] = ()) -> pd.Series:
    """Which rows are of the main comparison.

    These are the rows on all labels, and those on a label fraction at which a trained regime was
    run on the task. Other label fractions only show how a backbone's result grows with the labels.
    ``cells`` has the columns task, regime and label_fraction. If ``cells`` are only a part of a
    grid file's runs, ``trained`` has the (task, label_fraction) of the trained regimes in the rest.
    """
    keys = ["task", "label_fraction"]
    here = cells.loc[cells["regime"] != "frozen", keys].itertuples(index=False, name=None)
    at_trained = pd.MultiIndex.from_frame(cells[keys]).isin({*here, *trained})
    return (cells["label_fraction"] == 1) | at_trained
