"""Compute the rows of the summary for one backbone on one task.

python -m medlib.grid.summarise GRID_FILE RESULTS TASK BACKBONE
"""

import argparse
import functools
import sys
from pathlib import Path

from medlib.data import cards
from medlib.grid import address, gridfile, jobs, states
from medlib.stats.summaries import summarise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, kind in {"grid_file": Path, "results": Path, "task": str, "backbone": str}.items():
        parser.add_argument(name, type=kind)
    jobs.add_arguments(parser)
    options = parser.parse_args()
    results, task, backbone = options.results, options.task, options.backbone
    output = address.intervals(results, task, backbone)

    def work() -> None:
        grid = gridfile.read(options.grid_file)
        done = states.done(grid | {"tasks": [task]}, results)
        card = cards.used(address.manifest(results, task))
        summarise(
            [run.folder(results) for run in done if run.backbone == backbone],
            **grid["collect"],
            threads=1,
            ordered=[task] if card.ordered else [],
            kept=functools.partial(address.intervals, results),
        )

    return jobs.run_job(work, output, Path(__file__), options)


if __name__ == "__main__":
    sys.exit(main())
