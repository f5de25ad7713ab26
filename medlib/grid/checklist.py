"""The checklist of a grid: what a paper must report, and which of these items the study knows.

    python -m medlib.grid.checklist GRID_FILE RESULTS FIGURES

Writes ``checklist.{csv,md,tex,html}`` into the folder FIGURES, from the results that exist so far.
"""

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
    return jobs.run_on_grid(write, Path(__file__), f"{STEM}.log")


if __name__ == "__main__":
    sys.exit(main())
