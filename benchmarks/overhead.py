"""How long a grid's jobs take to start: Snakemake and process, papermill and kernel, imports.

    python benchmarks/overhead.py [--grid demo]

Nothing is run: the times come from the jobs of a finished grid. papermill writes the times of each
cell into the executed notebook; Snakemake writes when each job began and ended. A job's first two
cells are its parameters and the cell that imports. Time between the cells counts as papermill and
kernel. Time outside papermill counts as Snakemake and process.
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd

PARTS = ("Snakemake and process", "papermill and kernel", "imports", "work")


def snakemake_seconds(folder: Path = Path(".snakemake/metadata")) -> dict[str, float]:
    """The seconds of each job by the name of its executed notebook, as Snakemake saw them."""
    seconds = {}
    for path in folder.rglob("*"):
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            for log in record.get("log") or ():
                seconds[str(log)] = record["endtime"] - record["starttime"]
    return seconds


def times_of(path: Path, whole: float) -> dict:
    """The seconds of each part of the job that left this executed notebook."""
    notebook = nbformat.read(path, as_version=4)
    words = notebook.metadata.papermill
    span = datetime.fromisoformat(words.end_time) - datetime.fromisoformat(words.start_time)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    took = [float(c.metadata.get("papermill", {}).get("duration") or 0) for c in cells]
    first = next(i for i, c in enumerate(cells) if "import" in c.source)
    imports = sum(took[: first + 1])
    papermill = span.total_seconds()
    return {
        "notebook": path.stem[:2],
        "Snakemake and process": max(whole - papermill, 0),
        "papermill and kernel": papermill - sum(took),
        "imports": imports,
        "work": sum(took) - imports,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", default="demo", help="whose jobs (default: demo)")
    grid = parser.parse_args().grid
    whole = snakemake_seconds()
    times = [
        times_of(path, whole[str(path)])
        for path in sorted(Path("results", grid).rglob("*.ipynb"))
        if str(path) in whole
    ]
    if not times:
        print(f"Grid '{grid}' has not been run here: make study GRID={grid} first. Left out.")
        return
    table = pd.DataFrame(times)
    shown = table.groupby("notebook")[list(PARTS)].mean().round(1)
    shown.insert(0, "jobs", table["notebook"].value_counts())
    print(f"Seconds of a job, means:\n{shown.to_string()}")
    total = table[list(PARTS)].sum()
    print(f"\nOf all {total.sum():.0f} s of the {len(table)} jobs of grid '{grid}':")
    for part in PARTS:
        print(f"  {part:22s} {total[part]:6.0f} s  {total[part] / total.sum():4.0%}")


if __name__ == "__main__":
    main()
