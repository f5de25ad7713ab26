"""The rows of one backbone on one task.

python -m medlib.grid.summarise GRID_FILE RESULTS TASK BACKBONE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medlib.core import settings
from medlib.data import cards
from medlib.grid import address, gridfile, jobs, records
from medlib.stats.summaries import KEPT, summarise


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
            grid = gridfile.read(options.grid_file)
            done = records.done(grid | {"tasks": [task]}, options.results)
            shares = [gridfile.label_fraction(grid, task, r) for r in settings.TRAINED if grid[r]]
            card = cards.used(address.manifest_path(options.results, task))
            summarise(
                [folder for folder in done if folder.is_relative_to(kept.parent)],
                **grid["collect"], threads=1, trained=[(task, share) for share in shares],
                ordered=[task] if card.ordered else [],
            )  # fmt: skip
        except (ValueError, OSError, MemoryError) as error:
            raise jobs.ExecutionError(str(error), kind=type(error).__name__) from error
        kept.touch()  # newer than the runs, also where nothing was made

    return jobs.run_job(work, kept, Path(__file__), [str(kept)], options.attempt)


if __name__ == "__main__":
    sys.exit(main())
