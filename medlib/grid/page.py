"""The page of a grid, made from its file, its runs and the folder of its figures.

    python -m medlib.grid.page GRID_FILE RESULTS FIGURES

The page of an incomplete grid has another name, so that ``report.html`` exists only when the grid
is complete.
"""

import sys
from pathlib import Path

import pandas as pd

from medlib.data import cards
from medlib.grid import address, gridfile, jobs, states
from medlib.show import report

PAGE, INCOMPLETE = "report.html", "report_incomplete.html"  # complete grid, incomplete grid


def environment(grid: dict, results: Path | str) -> pd.DataFrame:
    """Software and hardware of the complete runs: a row for each value, with the number of runs."""
    pairs = []
    for record in states.records(grid, results).values():
        own = record["versions"] | {"git commit": record["git_commit"]} | record["hardware"]
        pairs += [(field, str(value)) for field, value in own.items() if value is not None]
    table = pd.DataFrame(pairs, columns=["what", "value"])
    return table.groupby(["what", "value"], as_index=False).size().rename(columns={"size": "runs"})


def page_name(grid: dict, results: Path | str) -> str:
    """The file name of a grid's page: :data:`PAGE` if all its runs are complete."""
    whole = len(states.done(grid, results)) == len(gridfile.runs(grid))
    return PAGE if whole else INCOMPLETE


def write(
    grid_file: Path | str, results: Path | str, figures: Path | str, stopped: bool = False
) -> Path:
    """Write the page into the folder of figures, whole or not at all; returns its path.

    ``stopped``: the grid's command ended early, so summaries or figures may be missing even if all
    runs are complete. The page is then :data:`INCOMPLETE`. The page with the other name is removed
    if it is no longer true.
    """
    grid, figures = gridfile.read(grid_file), Path(figures)
    name = page_name(grid, results)
    path = figures / (INCOMPLETE if stopped else name)
    words = {"title": grid["title"], "caption": grid.get("caption", "")}
    prepared = gridfile.prepared(grid)
    words["citations"] = list(dict.fromkeys(cards.read(task).citation for task in prepared))
    words["tasks"] = {task: _title(results, task) for task in prepared}
    tables = {"states": states.table(grid, results), "environment": environment(grid, results)}
    report.write(path, **words, **tables)
    if path.name == name:
        (figures / (INCOMPLETE if name == PAGE else PAGE)).unlink(missing_ok=True)
    return path


def _title(results: Path | str, task: str) -> str:
    """The title of a task: of its preparation, or of its card if it was not prepared."""
    manifest = address.manifest(results, task)
    prepared = manifest.with_suffix(".yaml").is_file()
    return (cards.used(manifest) if prepared else cards.read(task)).title


def main() -> int:
    return jobs.run_on_grid(write, Path(__file__), "report.log")


if __name__ == "__main__":
    sys.exit(main())
