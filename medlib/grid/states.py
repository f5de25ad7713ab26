"""Which runs of a grid are done, failed, stale and missing."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from medlib import files
from medlib.grid import address, gridfile, jobs, made

STATES = ("done", "failed", "stale", "missing")


def records(grid: dict, results: Path | str) -> dict[address.Address, dict]:
    """The records of the complete runs of a grid, by address.

    One job makes all probes of a backbone, so all of them are complete or none is. A record that
    cannot be read, or that belongs to another run, counts as missing, with a warning.
    """
    runs = [run for run in gridfile.runs(grid) if run.promised(results).is_file()]
    read = {run: files.read_record(run.record(results)) for run in runs}
    return {run: record for run, record in read.items() if record and _is_of(run, record, results)}


def _is_of(run: address.Address, record: dict, results: Path | str) -> bool:
    said = record.get("coordinates")
    said = said if isinstance(said, dict) else {}
    differs = [name for name, value in vars(run).items() if said.get(name) != value]
    if differs:
        where = f"{run.record(results)} is not the record of that run ({', '.join(differs)} differ)"
        warnings.warn(f"{where}. It counts as missing.", stacklevel=4)
    return not differs


def done(grid: dict, results: Path | str) -> list[address.Address]:
    """The complete runs of a grid: see :func:`records`."""
    return list(records(grid, results))


def lost(grid: dict, results: Path | str, digests: made.Digests) -> frozenset[str]:
    """The promised files (:meth:`Address.promised`) of all runs that are missing or damaged.

    A run is damaged if one of its files does not have the digest in its record.
    """
    complete = {
        run
        for run, record in records(grid, results).items()
        if all(
            digests.of(run.folder(results) / name) == digest
            for name, digest in record.get("sha256", {}).items()
        )
    }
    incomplete = (run for run in gridfile.runs(grid) if run not in complete)
    return frozenset(map(str, {run.promised(results) for run in incomplete}))


def done_folders(grid_file: Path | str, results: Path | str) -> list[Path]:
    """The folders of the complete runs of a grid; without a grid file, of all complete runs."""
    if not grid_file:
        return address.find_runs(results)
    return [run.folder(results) for run in done(gridfile.read(grid_file), results)]


def caption(grid: dict, results: Path | str) -> str:
    """The grid's caption for figures. If runs are missing, it says how many are there."""
    words, n, of = grid.get("caption", ""), len(done(grid, results)), len(gridfile.runs(grid))
    return words if n == of else f"{words} Not the whole grid: {n} of {of} runs.".strip()


def table(grid: dict, results: Path | str, planned: Collection[str] = ()) -> pd.DataFrame:
    """How many runs of each task, backbone and regime are done, failed, stale and missing.

    A run has failed if its own notebook has failed, or a notebook that it needs. It is stale if it
    was done with other code, data or settings than the present ones: its output is then in
    ``planned``, the files that would be made now.
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
