"""Names as they are printed: backbones, metrics, heads, regimes, classes; and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

METRICS = {  # as printed
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
    "f1_weighted": "F1 (weighted)",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "precision_macro": "precision (macro)",
    "recall_macro": "recall (macro)",
    "f1_macro": "F1 (macro)",
    "kappa": "kappa",
    "kappa_quadratic": "kappa (quadratic)",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "log_loss": "log-loss",
    "brier": "Brier score",
    "ece": "calibration error",
}
PAPER_METRICS = list(METRICS)[:6]  # in the paper's order, and beside them what cannot be flattered

ARCHITECTURES = {  # key without its pretraining → name; the order is the order of rows in figures
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "densenet121": "DenseNet121",
    "mobilenetv2": "MobileNetV2",
    "vit_tiny": "ViT-Ti",
    "vit_small": "ViT-S",
    "vit_base": "ViT-B",
    "dinov2_small": "DINOv2 S",
    "dinov2_base": "DINOv2 B",
    "dinov2_large": "DINOv2 L",
    "micro_resnet": "Micro-ResNet",
    "micro_efficientnet": "Micro-EfficientNet",
}

HEADS = {"linear": "linear head", "knn": "nearest neighbours", "mlp": "MLP head"}
REGIMES = {"frozen": "frozen", "finetuned": "fine-tuned", "lora": "LoRA"}


def display_names(backbone: str) -> str:
    """The printed name of a backbone's key: `vit_tiny-random` → `ViT-Ti (random weights)`.

    An unknown key is returned as it is, except that a key with "random" in it always ends in
    "(random weights)": an untrained network must not be able to pass for a pretrained one.
    """
    architecture, _, weights = backbone.partition("-")
    known = ARCHITECTURES.get(architecture)
    dinov2 = architecture.startswith("dinov2")
    if "random" in backbone:
        # DINOv2 names a training method, so without its weights only the architecture is left
        return f"{known or architecture}{' architecture' if dinov2 else ''} (random weights)"
    if known and weights == "imagenet":
        return f"{known} (ImageNet)"
    return known if known and dinov2 and not weights else backbone


def spoken(label: str) -> str:
    """A class's name as it is printed: "grade_II" as "grade II"."""
    return label.replace("_", " ")


def full_name(backbone: str, pretraining: str) -> str:
    """The printed name where the table's own word on the weights is known as well."""
    name = display_names(backbone)
    if pretraining == "random" and "random" not in name:
        return display_names(f"{backbone.partition('-')[0]}-random")
    if pd.isna(pretraining) or ("random" in name) != (pretraining == "random"):
        raise ValueError(f"backbone {backbone!r} with pretraining {pretraining!r}: one is wrong")
    return name


def shown_rows(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metrics: Sequence[str]
) -> pd.DataFrame:
    """The rows of the tasks and metrics, with the columns `name` and `random`.

    From here on a backbone goes by `name`, as printed, so that random weights always show.
    """
    cell = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "metric"]
    rows = table[[*cell, "value", "ci_low", "ci_high", "sd", "n_patients", "n_images"]]
    rows = rows[rows["task"].isin(list(tasks)) & rows["metric"].isin(list(metrics))].copy()
    if rows.empty:
        have = {column: sorted(set(table[column])) for column in ("task", "metric")}
        raise ValueError(f"no rows of {list(tasks)} with {list(metrics)}; the table has {have}")
    if rows.duplicated(cell).any():
        first = dict(rows.loc[rows.duplicated(cell), cell].iloc[0])
        raise ValueError(f"several rows for {first}: average over seeds (notebook 05) first")
    weights = zip(rows["backbone"], rows["pretraining"], strict=True)
    rows["name"] = [full_name(backbone, pretraining) for backbone, pretraining in weights]
    rows["random"] = rows["pretraining"] == "random"
    return rows


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Each backbone of `rows` (backbone, pretraining) in the order that every figure has.

    By architecture, known ones first; each random control directly after its pretrained twin. With
    the columns `name` (as printed), `architecture` and `random` (whether its weights are).
    """
    networks = rows[["backbone", "pretraining"]].drop_duplicates()
    rank = {architecture: i for i, architecture in enumerate(ARCHITECTURES)}
    architecture = networks["backbone"].str.partition("-")[0]
    networks = networks.assign(
        name=list(map(full_name, networks["backbone"], networks["pretraining"])),
        architecture=architecture,
        random=networks["pretraining"] == "random",
        rank=architecture.map(rank),
    ).drop_duplicates("name")
    by = ["rank", "architecture", "random", "name"]
    return networks.sort_values(by, na_position="last").reset_index(drop=True)


def series_names(rows: pd.DataFrame) -> pd.Series:
    """Each row's regime and share of the labels, as the legend names them.

    A task's own share in fine-tuning, which may differ between tasks, is named in its panel.
    """
    regime, fraction = rows["regime"].map(REGIMES), rows["label_fraction"]
    if (fraction == 1).all():
        return regime
    tuned = rows["regime"] != "frozen"
    shares = fraction[tuned].groupby(rows["task"]).agg(["min", "max"])
    own = fraction == rows["task"].map(shares["min"][shares["min"] == shares["max"]])
    share = (100 * fraction).map(", {:g} % of labels".format)
    words = ["", ", all labels", ", same labels as fine-tuned"]
    return regime + np.select([own & tuned, fraction == 1, own], words, share)
