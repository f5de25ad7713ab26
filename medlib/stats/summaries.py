"""Complete runs -> the tables that every figure is drawn from, and what differs between runs.

``summary.csv`` has a row per run and metric, ``summary_over_seeds.csv`` a row per cell of the grid
and metric: the mean over seeds, its interval, and the seeds' standard deviation.

    python -m medlib.grid.summarise GRID_FILE RESULTS TASK BACKBONE

makes the rows of one backbone on one task when its runs are complete, and keeps them beside these;
:func:`summarise` then only reads them.

Differences are taken between cells judged on the same patients, in the same resamples. The patients
of a task are drawn by a random stream of their own (:func:`stream`): tasks about the same people,
as three modalities of one scan, are drawn together, and other tasks independently of each other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from medlib import files
from medlib.grid import address
from medlib.stats import bootstrap, metrics
from medlib.stats.runs import (
    CELL,
    Run,
    by_cell,
    content,
    delong,
    each,
    points_and_draws,
    read,
    read_records,
    runs_by_cell,
)

KEPT = "intervals.json"  # in runs/<task>/<backbone>/: the rows that have been made


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
        key = files.content_hash([_code(), resamples, in_order, main, made_of])
        kept = read_kept(_place(runs)).get(key)
        if kept:
            each(runs, content)
            return (key, kept, False), kept["samples"]
        frames, classes, samples = read(runs)
        names = metrics.applicable(len(classes), in_order)
        seeds = [run.seed for run in runs]
        tables = _summarise_cell(seeds, frames, classes, names, resamples, main)
        by_seed, over_seeds = ({n: [row[n] for row in rows] for n in rows[0]} for rows in tables)
        made = {"samples": samples, "by_seed": by_seed, "over_seeds": over_seeds}
        return (key, made, True), samples

    tables: dict[str, dict[str, list]] = {"by_seed": {}, "over_seeds": {}}
    of_cells = by_cell(runs_by_cell(folders, trained), work, "intervals", threads)
    for place, here in itertools.groupby(of_cells, key=lambda found: _place(found[0])):
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
                files.save_text(place / KEPT, json.dumps(kept))
    return pd.DataFrame(tables["by_seed"]), pd.DataFrame(tables["over_seeds"])


@functools.cache
def _code() -> list[str]:
    """What makes rows of predictions: edited, it makes them again."""
    return [files.file_sha256(path) for path in (__file__, metrics.__file__)]


def _place(runs: list[Run]) -> Path:
    """The folder of all runs of a backbone on a task."""
    return runs[0].folder.parents[1]


def _read_kept(place: Path) -> dict:
    """The rows that were made, by their hash; none where there is no such file, or half of one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = files.read_json(place / KEPT)
        return kept if isinstance(kept, dict) else {}
    return {}


def _summarise_cell(
    seeds: list[int],
    frames: list[pd.DataFrame],
    classes: list[str],
    names: tuple[str, ...],
    resamples: int,
    main: bool,
) -> tuple[list[dict], list[dict]]:
    """The rows of one cell of the grid: a row per seed and metric, and a row per metric."""
    points, draws = points_and_draws(frames, classes, names, resamples)
    none = dict.fromkeys(names, np.array([]))
    left_out = [bootstrap.jackknife(frame, classes, names) if main else none for frame in frames]
    areas = delong(frames, classes)
    size = {"n_patients": frames[0]["patient_id"].nunique(), "n_images": len(frames[0])}

    def row(name: str, chosen: list[int], words: dict, spread: dict) -> dict:
        value = float(np.mean([points[i][name] for i in chosen]))
        drawn = np.mean([draws[i][name] for i in chosen], axis=0)
        apart = np.mean([left_out[i][name] for i in chosen], axis=0)
        found = words | {"metric": name, "value": value} | spread
        found |= ends("ci", bootstrap.interval(drawn)) | size
        found |= ends("bca", bootstrap.bca_interval(drawn, value, apart))
        variance = areas[1][np.ix_(chosen, chosen)].mean() if name == "auroc" else np.nan
        half = stats.norm.ppf(0.975) * np.sqrt(variance)
        found |= ends("delong", (np.clip(value - half, 0, 1), np.clip(value + half, 0, 1)))
        return found | {"undefined": float(np.mean(~np.isfinite(drawn)))}

    every, by_seed, over_seeds = list(range(len(frames))), [], []
    for name in names:
        by_seed += [row(name, [i], {"seed": seed}, {}) for i, seed in enumerate(seeds)]
        values = [points[i][name] for i in every]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        over_seeds.append(row(name, every, {"n_seeds": len(every)}, {"sd": sd}))
    return by_seed, over_seeds


def ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))


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
            place = address.features_folder(results, cell["task"], cell["backbone"])
            how = made.setdefault(place, files.read_json(place / "meta.json"))
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
