"""The fine-tuning of a grid in GPU hours, with and without halving: nothing is timed.

    python benchmarks/hours.py [--grid paper] [--quick]

The rates and the counts are those of `make plan`: medlib/grid/hours.py, for an H200.
"""

import argparse
from pathlib import Path

import pandas as pd

from medlib.core import backbones
from medlib.grid import gridfile, hours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", default="paper")
    parser.add_argument("--quick", action="store_true", help="the same: nothing is timed")
    root = Path(__file__).resolve().parents[1]
    grid = gridfile.read(root / "grids" / f"{parser.parse_args().grid}.yaml")
    rows = []
    for task in grid["tasks"]:
        size = hours.size(grid, root / "results" / "hours", task)
        fraction = gridfile.label_fraction(grid, task)
        for name in grid["finetuned"]["backbones"]:
            gflop, _ = hours.counted(grid, "finetuned", name)
            rate = hours.on_h200(backbones.get(name).family, gflop, True)
            seconds = []
            for on in (False, True):
                own = grid | {"finetuned": grid["finetuned"] | {"halving": on}}
                n = hours.training_images(own, "finetuned", size, fraction)
                seconds.append(n / rate * len(gridfile.seeds(grid, "finetuned")))
            rows.append([task, *(each / 3600 for each in seconds)])
    table = pd.DataFrame(rows, columns=["task", "all rates", "halving"])
    table = table.groupby("task", sort=False).sum().round(1)
    table.loc["all tasks"] = table.sum()
    print(table.to_string())
    longer = table.loc["all tasks", "all rates"] / table.loc["all tasks", "halving"]
    print(f"without halving {longer:.2f} × as long")


if __name__ == "__main__":
    main()
