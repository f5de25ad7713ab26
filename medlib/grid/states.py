"""Which runs of a grid are done, failed, stale and missing."""

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from medlib.grid import address, gridfile, jobs

STATES = ("done", "failed", "stale", "missing")


def done(grid: dict, results: Path | str) -> list[address.Address]:
    """The complete runs of a grid. One job makes all probes of a backbone: all count, or none."""
    runs = gridfile.runs(grid)
    return [r for r in runs if r.record(results).is_file() and r.promised(results).is_file()]


def done_folders(grid_file: Path | str, results: Path | str) -> list[Path]:
    """The folders of the complete runs of a grid, or ("") of all complete runs that are there."""
    if not grid_file:
        return address.find_runs(results)
    return [run.folder(results) for run in done(gridfile.read(grid_file), results)]


def caption(grid: dict, results: Path | str) -> str:
    """What stands beneath figures of the runs that are there; it says how many are missing."""
    words, n, of = grid.get("caption", ""), len(done(grid, results)), len(gridfile.runs(grid))
    return words if n == of else f"{words} Not the whole grid: {n} of {of} runs.".strip()


def table(grid: dict, results: Path | str, planned: Collection[str] = ()) -> pd.DataFrame:
    """How many runs of each task, backbone and regime are done, failed, stale and missing.

    A run has failed if its own notebook did, or one that it needs. It is stale if it is done, but
    with other code, data or settings than today's: if its output is in ``planned``, the files that
    would be made now.
    """
    planned, complete = {str(Path(path)) for path in planned}, set(done(grid, results))
    broken = {output.parent for output in jobs.failures(Path(results))}
    counts = defaultdict(Counter)
    for run in gridfile.runs(grid):
        output = run.promised(results)
        needed = {output.parent, address.images(results, run.task)}
        if run.regime == "frozen":
            drawn = gridfile.weight_seeds(grid, run.backbone)
            needed |= {address.features(results, run.task, run.backbone, seed) for seed in drawn}
        state = ("stale" if str(output) in planned else "done") if run in complete else "missing"
        state = "failed" if needed & broken else state
        counts[run.task, run.backbone, run.regime][state] += 1
    rows = [[*cell, *(of_cell[state] for state in STATES)] for cell, of_cell in counts.items()]
    return pd.DataFrame(rows, columns=["task", "backbone", "regime", *STATES])
