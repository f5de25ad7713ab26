"""The checklist of a grid: what a paper must report, and what of it the study knows.

    python -m medlib.grid.checklist GRID_FILE RESULTS FIGURES

It writes ``checklist.{csv,md,tex,html}`` into the folder of figures, from the files that are there.
"""

import argparse
import sys
from pathlib import Path

from medlib.data import cards
from medlib.grid import facts, gridfile, jobs, kinds, states
from medlib.show import checklist, tables

STEM = "checklist"


def write(grid_file: Path | str, results: Path | str, figures: Path | str) -> list[Path]:
    """Write the checklist of a grid; returns its paths."""
    grid, figures = gridfile.read(grid_file), Path(figures)
    phantoms = kinds.PHANTOMS in (grid["data"], kinds.held(results))
    study = checklist.Study(
        grid=Path(grid_file).stem,
        facts=facts.gather(grid, results, phantoms),
        cards={task: cards.read(task) for task in grid["tasks"]},
        stems={file.stem for file in figures.glob("*") if file.suffix in (".png", ".html")},
        phantoms=phantoms,
    )
    items = checklist.table(study)
    words = checklist.caption(items, states.caption(grid, results))
    return tables.save_table(items, figures / STEM, words, checklist.note())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("grid_file", "results", "figures"):
        parser.add_argument(name, type=Path)
    jobs.add_arguments(parser)
    options = parser.parse_args()

    def work() -> None:
        write(options.grid_file, options.results, options.figures)

    return jobs.run_job(work, options.results / f"{STEM}.log", Path(__file__), options)


if __name__ == "__main__":
    sys.exit(main())
