"""Complete runs -> the tables that every figure is drawn from.

Metrics of a task are computed on the same draws of its patients (:func:`draws.counts`), so that
they can be compared. Tasks about the same people, such as three modalities of one scan, share their
draws; other tasks do not.
"""

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd

from medlib import files
from medlib.core import metrics as core_metrics
from medlib.errors import listed
from medlib.stats import bootstrap, draws, effects, metrics, prediction, runs


def summarise(
    folders: list[Path],
    resamples: int = 5000,
    ordered: Collection[str] = (),
    *,
    threads: int | None = None,
    kept: Callable[[str, str], Path] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The metrics of complete runs with 95 % intervals, by seed and over seeds.

    ``ci_low`` and ``ci_high`` are about these trained models on other test patients: they come from
    ``resamples`` draws of patients (:func:`bootstrap.interval`). ``delong_low`` and ``delong_high``
    are a check: DeLong's interval for clustered data, of the AUROC of two classes. ``undefined`` is
    the share of resamples that lacked a class and were left out. ``rarest`` is the number of
    patients of the rarest class, ``candidates`` the number of settings that a run chose among.

    The table over seeds has more columns. ``sd`` is the spread over seeds. ``procedure_low`` and
    ``procedure_high`` are about the procedure: it is also trained on other patients and from other
    seeds (:func:`effects.effect`). ``training`` names the source of the error due to training;
    ``training_share`` is its share of the variance.

    ``ordered`` names the tasks whose classes are ordered grades. ``threads`` cells are read or made
    at once (None: one per core).

    ``kept(task, backbone)`` is the file that keeps the rows of a backbone on a task. Rows are kept
    under a hash of the predictions and of everything else that they depend on. If the hash is the
    same, they are read from the file; otherwise they are made again. With None nothing is kept.

    Raises ValueError that names all runs that cannot be used. These runs are incomplete or
    unreadable, or their predictions differ from their record, or they were judged on other samples
    than most runs of their task.
    """

    @functools.lru_cache(16)  # a few are enough: the cells of one backbone follow each other
    def read_kept(task: str, backbone: str) -> dict:
        with contextlib.suppress(FileNotFoundError, ValueError):  # missing or damaged
            rows = files.read_json(kept(task, backbone)) if kept else {}
            return rows if isinstance(rows, dict) else {}
        return {}

    def work(of_cell: list[runs.Run]) -> tuple:
        task, backbone, *_ = of_cell[0].cell
        return _read_or_make(of_cell, task in ordered, resamples, read_kept(task, backbone))

    tables: dict[str, dict[str, list]] = {"by_seed": {}, "over_seeds": {}}
    cells = runs.by_cell(runs.runs_by_cell(folders), work, "intervals", threads)
    for place, here in itertools.groupby(cells, key=lambda cell: cell[0][0].cell[:2]):
        by_key, anew = {}, False
        try:
            for of_cell, (key, made, is_new) in here:
                by_key[key], anew = made, anew or is_new
                for name, table in tables.items():
                    n = len(made[name]["metric"])
                    cell = {part: [value] * n for part, value in of_cell[0].named().items()}
                    for column, values in (cell | made[name]).items():
                        table.setdefault(column, []).extend(values)
        finally:  # also when other cells are refused, or when it is interrupted
            if kept and anew:
                files.save_text(kept(*place), json.dumps(by_key))
    return pd.DataFrame(tables["by_seed"]), pd.DataFrame(tables["over_seeds"])


@functools.cache
def _code() -> list[str]:
    """Hashes of the modules that make rows: rows are made again after an edit of a module."""
    modules = (runs, effects, bootstrap, draws, prediction, metrics, core_metrics)
    return [files.file_sha256(path) for path in (__file__, *(m.__file__ for m in modules))]


def _read_or_make(
    of_cell: list[runs.Run], in_order: bool, resamples: int, kept: dict
) -> tuple[tuple[str, dict, bool], str]:
    """A cell's rows with their hash, and whether they are new; and the hash of its samples."""
    made_of = [[run.seed, run.candidates, run.sha256] for run in of_cell]
    key = files.content_hash([_code(), resamples, in_order, made_of])
    if made := kept.get(key):
        runs.each(of_cell, lambda run: [runs.content(run, file) for file in run.sha256])
        return (key, made, False), made["samples"]
    made = _summarise_cell(of_cell, in_order, resamples)
    return (key, made, True), made["samples"]


def _summarise_cell(of_cell: list[runs.Run], in_order: bool, resamples: int) -> dict:
    """The columns of a cell's rows by seed and over seeds, and the hash of its ``samples``."""
    arms, samples = effects.of_runs(of_cell, None, resamples, in_order)
    frames, classes = arms[0].frames, arms[0].classes
    names = [arm.metric for arm in arms if bootstrap.takes_bca(arm.metric)]
    left_out = [bootstrap.jackknife(frame, classes, names) for frame in frames]
    covariance = bootstrap.delong_of_frames(frames, classes)[1]
    same = {"n_patients": frames[0]["patient_id"].nunique(), "n_images": len(frames[0])}
    same |= {"rarest": prediction.rarest(frames[0]), "candidates": of_cell[0].candidates}

    def row(arm: effects.Arm, chosen: list[int], first: dict) -> dict:
        """The columns about the mean over the chosen seeds."""
        name, values = arm.metric, list(arm.values.values())
        value = float(np.mean([values[i] for i in chosen]))
        drawn = np.mean([list(arm.draws.values())[i] for i in chosen], axis=0)
        apart = np.mean([left_out[i].get(name, []) for i in chosen], axis=0)
        variance = covariance[np.ix_(chosen, chosen)].mean() if name == "auroc" else np.nan
        half = bootstrap.Z * np.sqrt(variance)
        over_patients = bootstrap.interval(name, value, drawn, apart, same["rarest"])
        columns = first | {"metric": name, "value": value}
        columns |= bootstrap.ends("ci", over_patients) | same
        columns |= bootstrap.ends("delong", np.clip([value - half, value + half], 0, 1))
        return columns | {"undefined": float(np.mean(~np.isfinite(drawn)))}

    every, by_seed, over_seeds = list(range(len(frames))), [], []
    for arm in arms:
        by_seed += [row(arm, [i], {"seed": run.seed}) for i, run in enumerate(of_cell)]
        values = list(arm.values.values())
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        of_arm = row(arm, every, {"n_seeds": len(every)}) | {"sd": sd}
        over_seeds.append(of_arm | procedure(arm, same["rarest"]))
    tables = {"by_seed": by_seed, "over_seeds": over_seeds}
    columns = {name: pd.DataFrame(rows).to_dict("list") for name, rows in tables.items()}
    return columns | {"samples": samples}


def procedure(arm: effects.Arm, rarest: int) -> dict[str, float | str]:
    """The interval of a procedure over test patients, training patients and seeds.

    Proportions get the logit interval, as in :func:`bootstrap.interval`. The interval of a loss or
    a kappa is symmetric. NaN if the error due to training is unknown.
    """
    found = effects.effect([(1, arm)])
    error, reach = found.error, found.reach()
    ends = (np.nan, np.nan)
    if arm.metric != "ece" and np.isfinite(error):
        ends = found.value - reach * error, found.value + reach * error
        if not bootstrap.takes_bca(arm.metric):
            ends = bootstrap.logit_interval(found.value, error, rarest, reach)
    columns = {"training": found.source, "training_share": found.training_share}
    return bootstrap.ends("procedure", ends) | columns


def costs(folders: list[Path]) -> pd.DataFrame:
    """Time, number of parameters and memory of each cell.

    Columns beside :data:`runs.CELL`: ``seconds``, the mean over seeds; ``parameters`` of the
    backbone; ``memory``, the highest peak in bytes (of the GPU if there was one, else resident);
    and ``device``. The seconds of a frozen backbone are those of embedding all images once and of
    fitting the head. Raises ValueError if a run is not complete, or if a frozen one does not record
    what its embedding took.
    """
    costs, lacking = [], []
    for folder, record in zip(folders, runs.read_records(folders), strict=True):
        cell, how, gpu = record["coordinates"], record["how"], record["hardware"]["gpu"]
        seconds, peaks = record["seconds"], [record["peak_memory_bytes"]]
        if cell["regime"] == "frozen":
            if not (embedding := how.get("embedding")):
                lacking.append(folder)
                continue
            seconds, gpu = seconds + embedding["seconds"], embedding["gpu"]
            peaks.append(embedding["peak_memory_bytes"])
        took = {"seconds": seconds, "parameters": how["parameters"], "device": gpu or "CPU"}
        took["memory"] = max(peak["gpu"] or peak["resident"] or math.nan for peak in peaks)
        costs.append({name: cell[name] for name in runs.CELL} | took)
    if n := len(lacking):
        words = f"{n} records do not say how long embedding took. Run again:\n{listed(lacking)}"
        raise ValueError(words)
    of_cell = {"seconds": "mean", "parameters": "first", "memory": "max", "device": "first"}
    return pd.DataFrame(costs).groupby(runs.CELL, as_index=False).agg(of_cell)
