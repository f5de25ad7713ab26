"""Complete runs -> the tables that every figure is drawn from, and what differs between runs.

``summary.csv`` has a row per run and metric, ``summary_over_seeds.csv`` a row per cell of the grid
and metric: the mean over seeds, its interval, and the seeds' standard deviation.

    python -m medlib.compare GRID_FILE RESULTS TASK BACKBONE

makes the rows of one backbone on one task when its runs are complete, and keeps them beside these;
:func:`summarise` then only reads them.

Differences are taken between cells judged on the same patients, in the same resamples. The patients
of a task are drawn by a random stream of their own (:func:`stream`): tasks about the same people,
as three modalities of one scan, are drawn together, and other tasks independently of each other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

from medlib import artifacts, cards, execute, metrics
from medlib import grid as grids
from medlib.errors import MAX_LISTED, listed

KEPT = "intervals.json"  # in runs/<task>/<backbone>/: the rows that have been made
IDENTITY = ["sample_id", "patient_id", "y_true"]
CELL = ["task", "backbone", "pretraining", "regime", "head", "label_fraction"]
MARGIN = 0.02  # AUROC: a smaller difference is taken as none
POWER = 0.8  # of the minimum detectable difference
OF_A_SIDE = ("backbone", "pretraining", "regime")
SIDES = [f"{side}_{name}" for side in ("one", "other") for name in OF_A_SIDE]
EVIDENCE = ["difference", "ci_low", "ci_high", "p_value", "p_equivalence", "detectable"]
DIFFERENCES = ["task", "head", "label_fraction", "contrast", "family", *SIDES, *EVIDENCE]


class Run(NamedTuple):
    """A complete run, as the tables need it."""

    cell: tuple  # the values of CELL
    seed: int
    folder: Path
    predictions_sha256: str
    main: bool  # see is_main

    def named(self) -> dict:
        return dict(zip(CELL, self.cell, strict=True))


class _Refused(ValueError):
    """Runs that cannot be used, a line each."""

    def __init__(self, lines: list[str]):
        super().__init__(listed(lines))
        self.lines = lines


def read_predictions(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A run's predictions and its classes, in the order of their columns."""
    return _predictions(folder / "predictions.csv")


def _predictions(source: Path | io.BytesIO) -> tuple[pd.DataFrame, list[str]]:
    frame = artifacts.read_samples(source)
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
    record = artifacts.read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("coordinates"), dict):
        raise ValueError("it has no coordinates")
    lacking = [name for name in (*CELL, "seed") if name not in record["coordinates"]]
    lacking += ["predictions_sha256"] * ("predictions_sha256" not in record)
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return record


def stream(predictions: pd.DataFrame) -> int:
    """The seed of the draws of these patients: the same people, the same draws."""
    return int(artifacts.content_hash(sorted(set(predictions["patient_id"]))), 16)


def summarise(
    folders: list[Path],
    resamples: int = 5000,
    ordered: Collection[str] = (),
    *,
    trained: Collection[tuple[str, float]] = (),
    threads: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The metrics of complete runs with 95 % intervals, by seed and over seeds.

    Intervals come from ``resamples`` draws of patients: ``ci_low`` and ``ci_high`` are percentiles,
    ``bca_low`` and ``bca_high`` bias-corrected and accelerated (of main cells alone:
    :func:`is_main`, which takes ``trained``), and for the AUROC of two classes ``delong_low`` and
    ``delong_high`` are DeLong's, for clustered data. ``undefined`` is the share of resamples that
    lacked a class and were left out. The runs of a cell get the same draws, so that the interval of
    their mean over seeds is about patients alone; the spread over seeds stands beside it as ``sd``.
    ``ordered`` names the tasks whose classes are ordered grades.

    The rows of a cell are made once and kept in :data:`KEPT` beside its runs, under a hash of the
    predictions and of all else that they follow from: where that is another, they are made again.
    ``threads`` cells are read or made at once (None: one a core).

    Raises ValueError that names all runs that are not complete, that cannot be read, whose
    predictions are not those of their record, or that were judged on other samples than most runs
    of their task.
    """
    read_kept = functools.lru_cache(16)(_read_kept)  # of the cells at hand, not of the whole grid

    def work(runs: list[Run]) -> tuple:
        in_order, main = runs[0].cell[0] in ordered, all(run.main for run in runs)
        made_of = [[run.seed, run.predictions_sha256] for run in runs]
        key = artifacts.content_hash([_code(), resamples, in_order, main, made_of])
        kept = read_kept(_place(runs)).get(key)
        if kept:
            _each(runs, _content)
            return (key, kept, False), kept["samples"]
        frames, classes, samples = _read(runs)
        names = metrics.applicable(len(classes), in_order)
        seeds = [run.seed for run in runs]
        tables = _summarise_cell(seeds, frames, classes, names, resamples, main)
        by_seed, over_seeds = ({n: [row[n] for row in rows] for n in rows[0]} for rows in tables)
        made = {"samples": samples, "by_seed": by_seed, "over_seeds": over_seeds}
        return (key, made, True), samples

    tables: dict[str, dict[str, list]] = {"by_seed": {}, "over_seeds": {}}
    cells = _by_cell(_cells(folders, trained), work, "intervals", threads)
    for place, here in itertools.groupby(cells, key=lambda found: _place(found[0])):
        kept, anew = {}, False
        try:
            for runs, (key, made, is_new) in here:
                kept[key], anew = made, anew or is_new
                for name, columns in tables.items():
                    n = len(made[name]["metric"])
                    cell = {part: [value] * n for part, value in runs[0].named().items()}
                    for column, values in (cell | made[name]).items():
                        columns.setdefault(column, []).extend(values)
        finally:  # also when others are refused, or it is interrupted
            if anew:
                artifacts.save_text(place / KEPT, json.dumps(kept))
    return pd.DataFrame(tables["by_seed"]), pd.DataFrame(tables["over_seeds"])


@functools.cache
def _code() -> list[str]:
    """What makes rows of predictions: edited, it makes them again."""
    return [artifacts.file_sha256(path) for path in (__file__, metrics.__file__)]


def _place(runs: list[Run]) -> Path:
    """The folder of all runs of a backbone on a task."""
    return runs[0].folder.parents[1]


def _read_kept(place: Path) -> dict:
    """The rows that were made, by their hash; none where there is no such file, or half of one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = artifacts.read_json(place / KEPT)
        return kept if isinstance(kept, dict) else {}
    return {}


def _cells(folders: list[Path], trained: Collection[tuple[str, float]] = ()) -> list[list[Run]]:
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


def _by_cell(
    cells: list[list[Run]], work: Callable, words: str, threads: int | None = None
) -> Iterator[tuple[list[Run], object]]:
    """``work(runs)`` for every cell, in parallel: yields the runs and what was made of them.

    ``work`` returns that and a hash of the samples (:func:`_read`). When all cells are through,
    raises ValueError that names every run that was refused, and every one that was judged on other
    samples than most of its task.
    """
    refused: list[str] = []
    judged: dict[str, dict[str, list[Path]]] = {}  # task -> samples -> the first run of each cell

    def guarded(runs: list[Run]) -> object:
        try:
            return work(runs)
        except _Refused as error:
            return error

    # Threads, not processes: NumPy lets go of the interpreter while it sums.
    with ThreadPoolExecutor(threads or joblib.cpu_count()) as pool:
        made = pool.map(guarded, cells)
        for runs, found in tqdm(zip(cells, made, strict=True), words, len(cells), unit="cell"):
            if isinstance(found, _Refused):
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


def _each(runs: list[Run], function: Callable[[Run], object]) -> list:
    """``function(run)`` of each run; _Refused that names all those where it cannot be."""
    made, lines = [], []
    for run in runs:
        try:
            made.append(function(run))
        except (OSError, ValueError) as error:
            lines.append(f"{run.folder}: {error}")
    if lines:
        raise _Refused(lines)
    return made


def _content(run: Run) -> bytes:
    """A run's predictions as they lie there; ValueError when these are not those it recorded."""
    content = (run.folder / "predictions.csv").read_bytes()
    if hashlib.sha256(content).hexdigest() != run.predictions_sha256:
        raise ValueError("predictions.csv is not the one that run.json records; run it again")
    return content


def _read(runs: list[Run]) -> tuple[list[pd.DataFrame], list[str], str]:
    """The predictions of a cell, in the order of sample ids; its classes; a hash of its samples."""

    def read(run: Run) -> tuple[pd.DataFrame, list[str]]:
        frame, classes = _predictions(io.BytesIO(_content(run)))
        if lacking := [name for name in IDENTITY if name not in frame]:
            raise ValueError(f"predictions.csv lacks {', '.join(lacking)}")
        if frame["sample_id"].duplicated().any():
            raise ValueError("a sample is predicted more than once")
        return frame.sort_values("sample_id", ignore_index=True), classes

    found = _each(runs, read)
    frames = [frame for frame, _ in found]
    samples = [frame[IDENTITY].to_numpy().tolist() for frame in frames]
    others = [run.folder for run, s in zip(runs, samples, strict=True) if s != samples[0]]
    if others:
        raise _Refused([_differing(folder, runs[0].folder) for folder in others])
    return frames, found[0][1], artifacts.content_hash(samples[0])


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


def _summarise_cell(
    seeds: list[int],
    frames: list[pd.DataFrame],
    classes: list[str],
    names: tuple[str, ...],
    resamples: int,
    main: bool,
) -> tuple[list[dict], list[dict]]:
    """The rows of one cell of the grid: a row per seed and metric, and a row per metric."""
    points, draws = _points_and_draws(frames, classes, names, resamples)
    none = dict.fromkeys(names, np.array([]))
    left_out = [metrics.jackknife(frame, classes, names) if main else none for frame in frames]
    areas = delong(frames, classes)
    size = {"n_patients": frames[0]["patient_id"].nunique(), "n_images": len(frames[0])}

    def row(name: str, chosen: list[int], words: dict, spread: dict) -> dict:
        value = float(np.mean([points[i][name] for i in chosen]))
        drawn = np.mean([draws[i][name] for i in chosen], axis=0)
        apart = np.mean([left_out[i][name] for i in chosen], axis=0)
        found = words | {"metric": name, "value": value} | spread
        found |= _ends("ci", metrics.interval(drawn)) | size
        found |= _ends("bca", metrics.bca_interval(drawn, value, apart))
        variance = areas[1][np.ix_(chosen, chosen)].mean() if name == "auroc" else np.nan
        half = stats.norm.ppf(0.975) * np.sqrt(variance)
        found |= _ends("delong", (np.clip(value - half, 0, 1), np.clip(value + half, 0, 1)))
        return found | {"undefined": float(np.mean(~np.isfinite(drawn)))}

    every, by_seed, over_seeds = list(range(len(frames))), [], []
    for name in names:
        by_seed += [row(name, [i], {"seed": seed}, {}) for i, seed in enumerate(seeds)]
        values = [points[i][name] for i in every]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        over_seeds.append(row(name, every, {"n_seeds": len(every)}, {"sd": sd}))
    return by_seed, over_seeds


def _points_and_draws(
    frames: list[pd.DataFrame], classes: list[str], names: Sequence[str], resamples: int
) -> tuple[list[dict], list[dict]]:
    """Of each seed's predictions the metrics, and their values on the same draws of patients."""
    points = [metrics.point(frame, classes, names) for frame in frames]
    draws = [
        metrics.bootstrap(frame, classes, resamples, stream(frame), names=names, threads=1)
        for frame in frames
    ]
    return points, draws


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))


def delong(frames: list[pd.DataFrame], classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (m,) and their covariance (m, m) of predictions of the same samples in one order.

    See :func:`medlib.metrics.delong`; NaN for more than two classes.
    """
    m = len(frames)
    if len(classes) != 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    y = frames[0]["y_true"] == classes[1]
    column = metrics.probability_columns(classes)[1]
    scores = np.stack([frame[column] for frame in frames])
    return metrics.delong(y, scores, frames[0]["patient_id"])


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


def costs(folders: list[Path], results: Path | str) -> pd.DataFrame:
    """What each cell of the grid took, as the mean over its seeds.

    Beside the columns of :data:`CELL`: ``seconds`` (a frozen arm's are those of embedding all
    images, once, and of its head), ``parameters`` of the backbone, ``memory``, the peak in bytes
    (of the GPU where there was one, else resident), and ``device``. Raises ValueError when a run is
    not complete.
    """
    rows, made = [], {}
    for record in read_records(folders):
        cell = record["coordinates"]
        seconds, peaks, how = record["seconds"], [record["peak_memory_bytes"]], record["how"]
        gpu = record["hardware"]["gpu"]
        if cell["regime"] == "frozen":
            place = artifacts.features_folder(results, cell["task"], cell["backbone"])
            how = made.setdefault(place, artifacts.read_json(place / "meta.json"))
            seconds, gpu = seconds + how["seconds"], how["hardware"]["gpu"]
            peaks.append(how["peak_memory_bytes"])
        memory = max(peak["gpu"] or peak["resident"] for peak in peaks)
        rows.append({name: cell[name] for name in CELL} | {
            "seconds": seconds, "parameters": how["parameters"], "memory": memory,
            "device": gpu or "CPU",
        })  # fmt: skip
    grouped = pd.DataFrame(rows).groupby(CELL, as_index=False)
    return grouped.agg({"seconds": "mean", "parameters": "first", "memory": "max",
                        "device": "first"})  # fmt: skip


# ------------------------------------------------------------------------------- differences


class Arm(NamedTuple):
    """One cell of the grid, resampled: the mean over its seeds of one metric."""

    cell: dict  # the columns of CELL
    metric: str
    value: float
    draws: np.ndarray  # (resamples,)
    frames: list[pd.DataFrame]  # predictions of each seed, in the order of sample ids
    classes: list[str]


def arms(
    folders: list[Path],
    names: Sequence[str] = ("auroc",),
    resamples: int = 5000,
    head: str = "linear",
) -> list[Arm]:
    """The main cells of the grid (:func:`is_main`) with this head, resampled together.

    An arm for each cell and metric of ``names``; with ``resamples`` 0 it has no draws. Raises what
    :func:`summarise` does.
    """
    cells = [
        runs for runs in _cells(folders)
        if runs[0].main and runs[0].named()["head"] == head
    ]  # fmt: skip

    def of_cell(runs: list[Run]) -> tuple[list[Arm], str]:
        frames, classes, samples = _read(runs)
        points, draws = _points_and_draws(frames, classes, names, resamples)
        cell = runs[0].named()
        return [
            Arm(
                cell, name, float(np.mean([point[name] for point in points])),
                np.mean([draw[name] for draw in draws], axis=0), frames, classes,
            )
            for name in names
        ], samples  # fmt: skip

    return [arm for _, made in _by_cell(cells, of_cell, "resamples") for arm in made]


def share(values: np.ndarray) -> float:
    """A one-sided p-value: the share of resamples in which something holds; never 0."""
    return (1 + np.count_nonzero(values)) / (1 + len(values))


def evidence(value: float, draws: np.ndarray, margin: float = MARGIN) -> dict[str, float]:
    """What the resampled differences ``draws`` of a difference ``value`` show.

    The 95 % interval (percentiles) and the two-sided ``p_value`` that goes with it;
    ``p_equivalence``, of two one-sided tests against -margin and margin (below 0.05 where the 90 %
    interval lies within them); and ``detectable``, the smallest true difference that would be
    found at the 5 % level with a power of 80 % on so many patients (2.8 standard errors). Undefined
    resamples are left out.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return dict.fromkeys(EVIDENCE, float("nan")) | {"difference": value}
    return {
        "difference": value,
        **_ends("ci", metrics.interval(draws)),
        "p_value": min(1.0, 2 * min(share(draws <= 0), share(draws >= 0))),
        "p_equivalence": max(share(draws <= -margin), share(draws >= margin)),
        "detectable": float(stats.norm.ppf([0.975, POWER]).sum() * draws.std(ddof=1)),
    }


def difference(one: Arm, other: Arm, margin: float = MARGIN) -> dict[str, float]:
    """``one`` minus ``other``, paired by patient: :func:`evidence`, and ``p_delong`` beside it.

    ``p_delong`` is that of the paired DeLong test for clustered data, of the means over seeds; for
    the AUROC of two classes only. Raises ValueError for arms that cannot be paired.
    """
    for what, a, b in (("tasks", one.cell["task"], other.cell["task"]),
                       ("metrics", one.metric, other.metric)):  # fmt: skip
        if a != b:
            raise ValueError(f"Arms of different {what} cannot be paired: {a} and {b}.")
    found = evidence(one.value - other.value, one.draws - other.draws, margin)
    if one.metric != "auroc":
        return found | {"p_delong": float("nan")}
    areas, covariance = delong(one.frames + other.frames, one.classes)
    m, n = len(one.frames), len(other.frames)
    signs = np.repeat([1 / m, -1 / n], [m, n])
    variance = signs @ covariance @ signs
    # What is left of it by rounding, where two arms rank all samples alike, is none.
    z = signs @ areas / np.sqrt(variance) if variance > 1e-15 else 0 * variance
    return found | {"p_delong": float(2 * stats.norm.sf(abs(z)))}


def differences(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """All paired differences, ``one`` minus ``other``: between backbones and between regimes.

    ``contrast`` is "backbones" (any two in one regime, head and label fraction) or "regimes" (one
    backbone trained, minus frozen, on the same labels and with the same head). P-values are
    corrected by Holm's method within a ``family``: the backbones of a task and regime, and the
    regimes of a task. ``different`` and ``equivalent`` are what is left at the 5 % level.
    """
    arms, rows = list(arms), []
    for one, other in itertools.permutations(arms, 2):
        a, b = one.cell, other.cell
        if any(a[name] != b[name] for name in ("task", "head", "label_fraction")):
            continue
        words = {name: a[name] for name in ("task", "head", "label_fraction")}
        if a["regime"] == b["regime"] and a["backbone"] < b["backbone"]:
            words |= {"contrast": "backbones", "family": f"backbones, {a['regime']}"}
        elif a["backbone"] == b["backbone"] and a["regime"] != "frozen" == b["regime"]:
            words |= {"contrast": "regimes", "family": "regimes"}
        else:
            continue
        words["family"] += f", {a['task']}, {a['head']}, {a['label_fraction']:g} of labels"
        for side, cell in (("one", a), ("other", b)):
            words |= {f"{side}_{name}": cell[name] for name in OF_A_SIDE}
        rows.append(words | difference(one, other, margin))
    table = pd.DataFrame(rows, columns=[*DIFFERENCES, "p_delong"])
    for name in ("p_value", "p_equivalence"):
        table[f"{name}_holm"] = table.groupby("family")[name].transform(holm) if rows else []
    table["different"] = table["p_value_holm"] < 0.05
    table["equivalent"] = table["p_equivalence_holm"] < 0.05
    return table.sort_values(["contrast", "family", "one_backbone", "other_backbone"],
                             ignore_index=True)  # fmt: skip


def holm(p: pd.Series | np.ndarray) -> np.ndarray:
    """P-values corrected for their number (Holm, Scand. J. Statist. 6, 1979); NaN is no test."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def mean_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> tuple[pd.Series, dict]:
    """Backbones (columns) ranked in every task (rows), and the mean over tasks; 1 is best.

    Ties share their rank. Beside the ranks: ``p_friedman``, whether they differ at all, and
    ``critical_difference``, the distance from which two differ at the 5 % level by Nemenyi's test
    (Demšar, JMLR 7, 2006). Raises ValueError when a value is missing: a rank would mean another
    thing in that task.
    """
    if values.isna().any(axis=None):
        holes = [f"{row} × {column}" for (row, column), hole in values.isna().stack().items()
                 if hole]  # fmt: skip
        raise ValueError(f"{len(holes)} values are missing:\n{listed(holes)}")
    n, k = values.shape
    ranks = values.rank(axis=1, ascending=not higher_is_better)
    p = stats.friedmanchisquare(*values.to_numpy().T).pvalue if k > 2 and n > 1 else np.nan
    reach = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) if k > 1 else np.nan
    critical = reach * np.sqrt(k * (k + 1) / (6 * n))
    found = {"n_tasks": n, "p_friedman": float(p), "critical_difference": float(critical)}
    return ranks.mean().sort_values(), found


def ranks_by_regime(arms: Iterable[Arm]) -> dict[str, tuple[pd.Series, dict]]:
    """Regime -> :func:`mean_ranks` of its backbones, at the most labels that each task has there.

    Backbones that lack a task are left out, and so are regimes with fewer than two backbones left.
    """
    rows = pd.DataFrame([arm.cell | {"value": arm.value} for arm in arms])
    most = rows.groupby(["task", "regime"])["label_fraction"].transform("max")
    found = {}
    for regime, part in rows[rows["label_fraction"] == most].groupby("regime"):
        values = part.pivot(index="task", columns="backbone", values="value").dropna(axis=1)
        if values.shape[1] > 1:
            found[regime] = mean_ranks(values)
    return dict(sorted(found.items(), key=lambda item: artifacts.REGIMES.index(item[0])))


def tied_with_best(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """Which arms are the best of their task, or equivalent to it: CELL, metric and ``tied``.

    For each metric, two one-sided tests of the difference to the best, corrected by Holm's method
    within the task.
    """
    together: dict = {}
    for arm in arms:
        together.setdefault((arm.cell["task"], arm.metric), []).append(arm)
    rows = []
    for (_, metric), here in together.items():
        sign = -1 if metric in metrics.LOSSES else 1
        best = max(here, key=lambda arm: sign * arm.value)
        others = [arm for arm in here if arm is not best]
        apart = [evidence(a.value - best.value, a.draws - best.draws, margin) for a in others]
        p = holm([found["p_equivalence"] for found in apart])
        tied = [True, *(p < 0.05)]
        for arm, is_tied in zip([best, *others], tied, strict=True):
            rows.append(arm.cell | {"metric": arm.metric, "tied": bool(is_tied)})
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the rows of one backbone on one task.")
    for name in ("grid_file", "results"):
        parser.add_argument(name, type=Path)
    for name in ("task", "backbone"):
        parser.add_argument(name)
    parser.add_argument("--attempt", type=int, default=1, help="from 2 on: only what is transient")
    options = parser.parse_args()
    task, kept = options.task, options.results / "runs" / options.task / options.backbone / KEPT

    def work() -> None:
        try:
            grid = grids.read(options.grid_file)
            done = grids.done(grid | {"tasks": [task]}, options.results)
            shares = [grids.label_fraction(grid, task, r) for r in artifacts.TRAINED if grid[r]]
            summarise(
                [folder for folder in done if folder.is_relative_to(kept.parent)],
                **grid["collect"], threads=1, trained=[(task, share) for share in shares],
                ordered=[task] if cards.used(options.results, task).ordered else [],
            )  # fmt: skip
        except (ValueError, OSError, MemoryError) as error:
            raise execute.ExecutionError(str(error), kind=type(error).__name__) from error
        kept.touch()  # newer than the runs, also where nothing was made

    return execute.run_job(work, kept, Path(__file__), [str(kept)], options.attempt)


if __name__ == "__main__":
    sys.exit(main())
