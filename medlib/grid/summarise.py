"""Makes the rows of one backbone on one task when its runs are complete, and keeps them.

python -m medlib.grid.summarise GRID_FILE RESULTS TASK BACKBONE
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from medlib.core import settings
from medlib.data import cards
from medlib.grid import address, gridfile, jobs, records
from medlib.stats.summaries import summarise


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the rows of one backbone on one task.")
    for name in ("grid_file", "results"):
        parser.add_argument(name, type=Path)
    for name in ("task", "backbone"):
        parser.add_argument(name)
    parser.add_argument("--attempt", type=int, default=1, help="from 2 on: only what is transient")
    options = parser.parse_args()
    task, results = options.task, options.results
    kept = address.intervals(results, task, options.backbone)

    def work() -> None:
        try:
            grid = gridfile.read(options.grid_file)
            done = records.done(grid | {"tasks": [task]}, results)
            folders = [folder for folder in done if folder.is_relative_to(kept.parent)]
            regimes = [regime for regime in settings.TRAINED if grid[regime]]
            shown = {"trained": [(task, gridfile.label_fraction(grid, task, r)) for r in regimes]}
            shown["ordered"] = (
                [task] if cards.used(address.manifest_path(results, task)).ordered else []
            )
            places = functools.partial(address.intervals, results)
            summarise(folders, **grid["collect"], **shown, threads=1, kept=places)
        except (ValueError, OSError, MemoryError) as error:
            raise jobs.ExecutionError(str(error), kind=type(error).__name__) from error
        kept.touch()  # newer than the runs, also where nothing was made

    return jobs.run_job(work, kept, Path(__file__), [str(kept)], options.attempt)


if __name__ == "__main__":
    sys.exit(main())
