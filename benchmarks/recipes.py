"""Which settings of fine-tuning matter? One at a time, and all of recipe "gentle", over seeds.

    python benchmarks/recipes.py PACK [--labels 0.1] [--seeds 5] [--epochs 5]

PACK is a folder of packed images, such as results/pocket/images/chest_xray/112-bicubic. Each seed
draws the labelled patients, the first weights of the head and the order of training. A variant is
compared with the plain one of the same seed. Each learning rate is run by itself. "chosen" is the
rate with the higher validation AUROC, or the smaller rate if these are equal. The intervals are
over seeds (paired t) and not corrected for the number of variants.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from medlib.core import finetune, metrics
from medlib.core.settings import RECIPES, FineTuning
from medlib.data import manifest, packs
from medlib.files import save_csv

VARIANTS = {
    "plain": {},
    "layer decay 0.75": {"layer_decay": 0.75},
    "warm-up 0.2": {"warmup": 0.2},
    "backbone at a tenth of the rate": {"backbone_rate": 0.1},
    "no clipping": {"clip": 0.0},
    "drop path 0.1": {"drop_path": 0.1},
    "linear probe first": {"probe_first": True},
    "gentle (recipe)": RECIPES["gentle"],
}
RATES = (1e-4, 1e-3)


def noise() -> packs.Pack:
    """Images of noise of 48 patients, to see that the script runs."""
    rng, n = np.random.default_rng(0), 48
    index = pd.DataFrame({"sample_id": [f"s{i:02d}" for i in range(n)]})
    index["patient_id"] = index["sample_id"]
    index["label"] = [f"class{i % 2}" for i in range(n)]
    index["split"] = np.repeat(["train", "val", "test"], n // 3)
    return packs.Pack(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), index, {"hash": "noise"})


def area(pack: packs.Pack, rotations: list, predicted: list, classes: list[str]) -> float:
    """The test AUROC, a mean over folds."""
    y, samples = metrics.codes(pack.index["label"], classes), pack.index["sample_id"].to_numpy()
    areas = []
    for rotation, part in zip(rotations, predicted, strict=True):
        truth, proba = metrics.by_sample(y[rotation.test], part.test, samples[rotation.test])
        areas.append(metrics.auroc(truth, proba))
    return float(np.mean(areas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true", help="noise; nothing is kept")
    parser.add_argument("--backbone", default="vit_tiny-imagenet")
    parser.add_argument("--labels", type=float, default=0.1, help="share of labelled patients")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--to", type=Path, default=Path("results/bench/recipes.csv"))
    asked = parser.parse_args()
    if asked.quick:
        asked.backbone, asked.labels, asked.seeds, asked.epochs = "micro_resnet-random", 1.0, 2, 1
    elif asked.pack is None:
        parser.error("which pack?")
    pack = noise() if asked.quick else packs.load(asked.pack)
    classes = sorted(pack.index["label"].unique())
    y = metrics.codes(pack.index["label"], classes)
    samples = pack.index["sample_id"].to_numpy()
    data = finetune.Data(pack.images, y, samples, len(classes), pack.meta["hash"])
    rows = []
    for seed in range(asked.seeds):
        rotations = manifest.rotations(pack.index, asked.labels, seed)
        for name, own in VARIANTS.items():
            settings = FineTuning(epochs=asked.epochs, **own)
            for rate in RATES:
                one = replace(settings, learning_rates=(rate,))
                predicted, history, _ = finetune.run(
                    asked.backbone, data, rotations, one, seed=seed
                )
                val = np.mean([row["val_auroc"] for row in history if row["chosen"]])
                test = area(pack, rotations, predicted, classes)
                rows.append([name, seed, rate, val, test])
        table = pd.DataFrame(rows, columns=["variant", "seed", "learning_rate", "val", "test"])
        if not asked.quick:
            save_csv(asked.to, table)
    print(f"{len(VARIANTS)} variants × {len(RATES)} learning rates × {asked.seeds} seeds")
    print(summary(table).to_string(index=False))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each variant and rate the mean test AUROC, and the difference from plain."""
    best = table.loc[table.groupby(["variant", "seed"])["val"].idxmax()].assign(
        learning_rate="chosen"
    )
    rows = []
    every = pd.concat([table.astype({"learning_rate": str}), best])
    for (rate, variant), own in every.groupby(["learning_rate", "variant"], sort=False):
        plain = every[(every["learning_rate"] == rate) & (every["variant"] == "plain")]
        values = own.set_index("seed")["test"]
        apart = (values - plain.set_index("seed")["test"]).to_numpy()
        n, error = len(apart), apart.std(ddof=1) / np.sqrt(len(apart))
        half = stats.t.ppf(0.975, n - 1) * error
        words = f"{apart.mean():+.3f} [{apart.mean() - half:+.3f}, {apart.mean() + half:+.3f}]"
        words = "" if variant == "plain" else words
        rows.append([rate, variant, n, f"{values.mean():.3f}", f"{values.min():.3f}", words])
    return pd.DataFrame(rows, columns=["rate", "variant", "seeds", "mean", "lowest", "minus plain"])


if __name__ == "__main__":
    main()
