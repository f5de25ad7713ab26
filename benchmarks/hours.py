"""The fine-tuning of a grid in GPU hours: steps that are counted, rates that were measured.

    python benchmarks/hours.py [--grid paper] [--quick]

The rates are those of this folder's README for an H200, compiled. A network that was not timed
gets the rate of the most similar one that was. Validation and test images are left out: they take
a third of the time of a training image, and there are fewer of them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medlib.core import settings
from medlib.core.fast import halving
from medlib.data import cards, manifest
from medlib.grid import gridfile

RATES = {  # images a second in training, at 224 px
    "vgg16": 4590,
    "resnet50": 5352,
    "densenet121": 3546,
    "mobilenetv2": 5352,  # not timed: as ResNet50
    "vit_tiny": 5366,  # not timed: as ViT-S
    "vit_small": 5366,
    "vit_base": 3095,
    "dinov2_small": 5366,
    "dinov2_base": 2396,
    "dinov2_large": 822,
}
# Data sets without a list of samples here: training images, by their publications.
PUBLISHED = {"glioma_ucsf_t1": 1485, "glioma_ucsf_t1ce": 1485, "glioma_ucsf_flair": 1485}
PUBLISHED |= {"fundus_amd": 320}


def training_images(task: str) -> tuple[float, int]:
    """The images of one training part, and the number of folds."""
    card = cards.read(task)
    folds = 1 if card.split == "official" else card.folds
    if task in PUBLISHED:
        return PUBLISHED[task], folds
    rows = manifest.read_rows(cards.FOLDER / f"{task}.csv")
    of_one = card.volumes.slices if card.volumes else 1
    if folds == 1:
        return of_one * (rows["split"] == "train").sum(), 1
    return of_one * len(rows) * (folds - 2) / folds, folds  # one fold tests, another validates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", default="paper")
    parser.add_argument("--quick", action="store_true", help="the same: nothing is timed")
    root = Path(__file__).resolve().parents[1]
    grid = gridfile.read(root / "grids" / f"{parser.parse_args().grid}.yaml")
    asked = settings.FineTuning(
        **{name: grid["finetuned"][name] for name in ("learning_rates", "epochs", "batch_size")}
    )
    rows = []
    for task in grid["tasks"]:
        n, folds = training_images(task)
        for backbone in grid["finetuned"]["backbones"]:
            rate = RATES[backbone.partition("-")[0]]
            seconds = n * asked.epochs / rate * len(gridfile.seeds(grid, "finetuned"))
            every, fewer = (
                sum(halving.stay(replace(asked, halving=on), fold) for fold in range(folds))
                for on in (False, True)
            )
            rows.append([task, seconds * every / 3600, seconds * fewer / 3600])
    table = pd.DataFrame(rows, columns=["task", "all rates", "halving"])
    table = table.groupby("task", sort=False).sum().round(1)
    table.loc["all tasks"] = table.sum()
    print(table.to_string())
    longer = table.loc["all tasks", "all rates"] / table.loc["all tasks", "halving"]
    print(f"without halving {longer:.2f} × as long")


if __name__ == "__main__":
    main()
