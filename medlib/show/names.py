"""Names as they are printed: backbones, metrics, heads, regimes, classes; and their order."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from medlib.core import backbones

METRICS = {"auroc": "AUROC", "accuracy": "accuracy"}  # as printed, in the order of all tables
METRICS |= {"balanced_accuracy": "balanced accuracy"}
METRICS |= {"precision_weighted": "precision (weighted)", "recall_weighted": "recall (weighted)"}
METRICS |= {"f1_weighted": "F1 (weighted)"}
PAPER_METRICS = list(METRICS)  # so far: the paper's, and two that are robust to class imbalance
METRICS |= {"auprc": "AUPRC", "precision_macro": "precision (macro)"}
METRICS |= {"recall_macro": "recall (macro)", "f1_macro": "F1 (macro)"}
METRICS |= {"kappa": "kappa", "kappa_quadratic": "kappa (quadratic)"}
METRICS |= {"sensitivity_at_95_specificity": "sensitivity at 95 % specificity"}
METRICS |= {"log_loss": "log-loss", "brier": "Brier score", "ece": "calibration error"}

HEADS = {"linear": "linear head", "knn": "nearest neighbours", "mlp": "MLP head"}
REGIMES = {"frozen": "frozen", "finetuned": "fine-tuned", "lora": "LoRA"}
METHODS = {"dinov2": "DINOv2", "dinov3": "DINOv3", "mae": "MAE", "eva02": "EVA-02"}
METHODS |= {"clip": "CLIP", "siglip2": "SigLIP 2", "biomedclip": "BiomedCLIP"}
METHODS |= {"raddino": "RAD-DINO", "retfound": "RETFound"}  # these already name pretrained ViTs
PRETRAININGS = METHODS | {"imagenet": "ImageNet", "phantoms": "phantom pretraining"}  # else: key
Tasks = Mapping[str, Mapping]  # a task's key -> its card: {"title": as printed, …}
RANDOM, UNKNOWN = "random weights", "family unknown"


def _row(backbone: str) -> backbones.Backbone | None:
    """The row of a key; None for a key that only old results have."""
    known = backbone.partition("@")[0] in backbones.names()
    return backbones.get(backbone) if known else None


def stem(backbone: str) -> str:
    """A key without its pretraining: `vit_tiny-random@448` gives `vit_tiny@448`.

    It is the same for a backbone and its control if their image sizes are the same.
    """
    row = _row(backbone)
    if row is None:
        return backbone.partition("-")[0]
    key, at, size = backbones.control(row).partition("@")
    return key.removesuffix("-random") + at + size


def display_names(backbone: str) -> str:
    """The printed name of a backbone's key: `vit_tiny-imagenet@448` → `ViT-Ti (ImageNet), 448 px`.

    An unknown key is returned as it is, except that a key with "random" in it always ends in
    "(random weights)": an untrained network must never look like a pretrained one.
    """
    row, (key, _, size) = _row(backbone), backbone.partition("@")
    bare = stem(key)
    if row is None:
        return f"{bare} ({RANDOM})" if "random" in backbone else backbone
    name = row.printed
    if row.pretraining == "random":
        # `DINOv2 S` names a training method; without its weights only the architecture is left.
        name += f"{' architecture' * (bare in backbones.TABLE)} ({RANDOM})"
    elif key != bare:
        name += f" ({PRETRAININGS.get(row.pretraining, row.pretraining)})"
    return name + (f", {size} px" if size else "")


def family(backbone: str, pretraining: str) -> str:
    """The group of a backbone in a legend: its kind of architecture and its pretraining.

    Random weights are one group. A key or a pretraining that the table of backbones does not have
    is :data:`UNKNOWN`, and never drawn as another family.
    """
    row = _row(backbone)
    if pretraining == "random":
        return RANDOM
    if row is None or pretraining != row.pretraining:
        return UNKNOWN
    if row.family == "ViT" and pretraining in METHODS:
        return METHODS[pretraining]
    return f"{row.family}, {PRETRAININGS.get(pretraining, pretraining)}"


def families() -> list[str]:
    """The families of the table of backbones, in the order of their first rows."""
    return list(dict.fromkeys(family(key, row.pretraining) for key, row in backbones.TABLE.items()))


def is_vit(backbone: str) -> bool:
    row = _row(backbone)
    return row is not None and row.family == "ViT"


def licences(printed: Iterable[str]) -> str:
    """A sentence with the licences of the weights of these backbones, as printed; "" for none."""
    shown, by_licence = {re.sub(r", \d+ px$", "", name) for name in printed}, {}
    for key, row in backbones.TABLE.items():
        if (name := display_names(key)) in shown:
            by_licence.setdefault(row.licence + ", gated" * row.gated, []).append(name)
    words = "; ".join(f"{licence} ({', '.join(of)})" for licence, of in by_licence.items())
    return f"Licences of the weights: {words}." if words else ""


def spoken(label: str) -> str:
    """A class's name as it is printed: "grade_II" as "grade II"."""
    return label.replace("_", " ")


def full_name(backbone: str, pretraining: str) -> str:
    """The printed name, checked against a table's column `pretraining`.

    A pretrained key with pretraining "random" gets the name of its random control. Raises
    ValueError if the key says "random" and the column does not, or if the column is empty.
    """
    name = display_names(backbone)
    if pretraining == "random" and "random" not in name:
        row = _row(backbone)
        return display_names(backbones.control(row) if row else f"{stem(backbone)}-random")
    if pd.isna(pretraining) or ("random" in name) != (pretraining == "random"):
        raise ValueError(f"backbone {backbone!r} with pretraining {pretraining!r}: one is wrong")
    return name


def shown_rows(table: pd.DataFrame, tasks: Tasks, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows of the tasks and metrics, with the columns `name` and `random`.

    From here on a backbone is identified by its printed `name`, so that random weights always show.
    Raises ValueError if there are no such rows, or several for one cell.
    """
    cell = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "metric"]
    ends = ["ci_low", "ci_high", "procedure_low", "procedure_high"]
    rows = table[
        [*cell, "value", *ends, "n_patients", "n_images", "rarest", "candidates", "training_share"]
    ]
    rows = rows[rows["task"].isin(list(tasks)) & rows["metric"].isin(list(metrics))].copy()
    if rows.empty:
        have = {column: sorted(set(table[column])) for column in ("task", "metric")}
        raise ValueError(f"no rows of {list(tasks)} with {list(metrics)}; the table has {have}")
    if rows.duplicated(cell).any():
        first = dict(rows.loc[rows.duplicated(cell), cell].iloc[0])
        raise ValueError(f"several rows for {first}: average over seeds (notebook 05) first")
    rows["name"] = list(map(full_name, rows["backbone"], rows["pretraining"]))
    rows["random"] = rows["pretraining"] == "random"
    return rows


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Each backbone of a table (backbone, pretraining) once, in the order that every figure has.

    The order is that of the rows of `backbones.yaml`, unknown keys last; a random control follows
    its pretrained twins, and a larger image size follows a smaller one. Columns: backbone,
    pretraining, `name` (as printed), `architecture` (the key's stem) and `random` (whether its
    weights are).
    """
    networks = table[["backbone", "pretraining"]].drop_duplicates()
    position = {key: at for at, key in enumerate(backbones.TABLE)}
    first = {stem(key): at for key, at in reversed(position.items())}
    architecture = networks["backbone"].map(stem)
    keys = networks["backbone"].str.partition("@")
    networks = networks.assign(
        name=list(map(full_name, networks["backbone"], networks["pretraining"])),
        architecture=architecture,
        random=networks["pretraining"] == "random",
        rank=keys[0].map(stem).map(first),
        size=pd.to_numeric(keys[2]).fillna(0),
        row=keys[0].map(position),
    ).drop_duplicates("name")
    by = ["rank", "size", "architecture", "random", "row", "name"]
    return networks.sort_values(by, ignore_index=True).drop(columns=["rank", "size", "row"])


def series_names(rows: pd.DataFrame) -> pd.Series:
    """Each row's regime and share of the labels, as the legend names them.

    The share of labels in fine-tuning may differ between tasks. It is named in the task's panel.
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


def by_backbone(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each backbone, by printed name and in order."""
    if table.empty:
        return {}
    return {
        one.name: table[
            (table["backbone"] == one.backbone) & (table["pretraining"] == one.pretraining)
        ]
        for one in in_order(table).itertuples(index=False)
    }
