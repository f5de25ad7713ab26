"""The record of a run, and which runs of a grid are done, failed, stale and missing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from medlib.files import environment, file_sha256, peak_memory_bytes, save_csv, save_json
from medlib.grid import address, jobs
from medlib.grid.gridfile import read, regime_of, runs

CHECKPOINT = "checkpoint.safetensors"  # of a run that is not complete


def save_run(
    folder: Path,
    *,
    coordinates: dict,
    parameters: dict,
    inputs: dict,
    predictions: pd.DataFrame,
    history: pd.DataFrame,
    metrics: dict,
    seconds: float,
    how: dict | None = None,
) -> None:
    """Write a run's files into ``folder``, ``run.json`` last; its checkpoint is done with then.

    ``coordinates``: task, backbone, pretraining, regime, head, label_fraction, seed.
    ``parameters``: everything that the run was asked for. ``inputs``: hashes of what it read
    and the digest of its weights. ``how``: what it decided by itself, such as its precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)  # until the new one is there, not complete
    save_csv(folder / "predictions.csv", predictions)
    save_csv(folder / "history.csv", history)
    save_json(folder / "metrics.json", metrics)
    record = {
        "coordinates": coordinates,
        "parameters": parameters,
        "inputs": inputs,
        "how": how or {},
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "predictions_sha256": file_sha256(folder / "predictions.csv"),
    }
    save_json(folder / "run.json", record | environment())
    (folder / CHECKPOINT).unlink(missing_ok=True)


STATES = ("done", "failed", "stale", "missing")


def done(grid: dict, results: Path | str) -> list[Path]:
    """The folders of the runs that are complete; frozen ones, which one job makes, all or none."""
    files = ((folder / "run.json", last_output(folder)) for folder in runs(grid, results))
    return [run.parent for run, last in files if run.is_file() and last.is_file()]


def there(grid_file: Path | str, results: Path | str) -> list[Path]:
    """The folders of the complete runs of a grid; of no grid (""), of all that are there."""
    return done(read(grid_file), results) if grid_file else address.find_runs(results)


def last_output(folder: Path) -> Path:
    """What the job that makes a run writes last: a frozen run is one of many that a job makes."""
    if regime_of(folder) == "frozen":
        return folder.parents[1] / "frozen.csv"
    return folder / "run.json"


def caption(grid: dict, results: Path | str) -> str:
    """What stands beneath figures of the runs that are there: also how many lack."""
    words, n, of = grid.get("caption", ""), len(done(grid, results)), len(runs(grid, results))
    return words if n == of else f"{words} Not the whole grid: {n} of {of} runs.".strip()


def states(grid: dict, results: Path | str, planned: Collection[str] = ()) -> pd.DataFrame:
    """How many runs of each task, backbone and regime are done, failed, stale and missing.

    A run has failed where its own notebook did, or one that it needs. It is stale where it is done,
    but of another code, data or settings than today's: where its output is in ``planned``, the
    files that would be made now.
    """
    results, planned, known = Path(results), {str(Path(path)) for path in planned}, {}
    complete = set(done(grid, results))
    counts: dict = {}
    for folder in runs(grid, results):
        task, backbone, regime = folder.parents[2].name, folder.parents[1].name, regime_of(folder)
        output = last_output(folder)
        job = output.parent
        if job not in known:
            needed = [job, results / "images" / task]
            if regime == "frozen":
                needed.append(address.features_folder(results, task, backbone))
            known[job] = any(map(jobs.failures, needed)), str(output) in planned
        failed, stale = known[job]
        there = folder in complete
        state = "failed" if failed else "missing" if not there else "stale" if stale else "done"
        cell = counts.setdefault((task, backbone, regime), dict.fromkeys(STATES, 0))
        cell[state] += 1
    rows = [dict(zip(("task", "backbone", "regime"), key, strict=True)) | n
            for key, n in counts.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["task", "backbone", "regime", *STATES])
