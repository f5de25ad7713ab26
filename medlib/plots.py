"""Data frame in, figure out: the house style, every figure of the study, and their export.

A figure is drawn from a tidy frame and nothing else: no training, no metric is computed here
beyond what drawing needs (an ROC curve, a projection to two dimensions). Each function returns a
`matplotlib.figure.Figure` that pyplot has already let go of, so a notebook shows it once, as the
last expression of a cell, and a long batch run holds no open figures.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which stay apart for
colour-blind readers; a marker, a dash or a hatch says the same again for readers in grey.
Anything from random weights is drawn grey and hollow and is named "(random weights)".
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from medlib.artifacts import replacing, save_csv

COLUMN, PAGE = 3.35, 7.0  # widths in inches: one column of a two-column journal, and both

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F5B3A",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo", "++")
GREY = "0.42"  # random weights, and only they

STYLE = {
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "savefig.bbox": None,  # a cropped figure would lose its width
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same text everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.unicode_minus": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "pdf.fonttype": 42,  # TrueType, embedded: editable, and accepted by journals
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "medlib",  # else the ids in an SVG are random
}

METRICS = {  # metrics where more is better: axis titles, and the columns that save_table bolds
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
    "f1_weighted": "F1 (weighted)",
}

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
REGIMES = {"frozen": "frozen", "finetuned": "fine-tuned"}


# ---------------------------------------------------------------- style, names and export


def use_style() -> None:
    """Set matplotlib's rcParams to the house style; call once at the top of a notebook."""
    mpl.rcParams.update(STYLE)


def display_names(backbone: str) -> str:
    """The printed name of a backbone's key: `vit_tiny-random` → `ViT-Ti (random weights)`.

    An unknown key is returned as it is, except that a key with "random" in it always ends in
    "(random weights)": an untrained network must not be able to pass for a pretrained one.
    """
    architecture, weights = _split_key(backbone)
    known = ARCHITECTURES.get(architecture)
    if weights == "random":
        if known and architecture.startswith("dinov2"):
            known += " architecture"  # DINOv2 names a training method; the architecture is a ViT
        return f"{known or architecture} (random weights)"
    if known and weights == "imagenet" and not architecture.startswith("dinov2"):
        return f"{known} (ImageNet)"
    if known and not weights and architecture.startswith("dinov2"):
        return known
    return f"{backbone} (random weights)" if "random" in backbone.lower() else backbone


def save(fig: Figure, path_stem: Path, data: pd.DataFrame | None = None) -> list[Path]:
    """Write a figure as `<stem>.png` (200 dpi), `.pdf` and `.svg`, and its data as `<stem>.csv`.

    The folder is made where needed, each file appears whole (written beside, then renamed), and
    the same data drawn again give the same bytes: no dates, no random ids. Returns the paths.
    """
    no_dates = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
    }
    paths = []
    with mpl.rc_context(STYLE):
        for kind, metadata in no_dates.items():
            path = _with_ending(path_stem, kind)
            with replacing(path) as temporary:
                fig.savefig(temporary, format=kind, dpi=200, metadata=metadata)
            paths.append(path)
    if data is not None:
        paths.append(_with_ending(path_stem, "csv"))
        save_csv(paths[-1], data)
    return paths


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style whatever the caller's rcParams, then let pyplot forget the figure."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        with mpl.rc_context(STYLE):
            try:
                return draw(*args, **kwargs)
            finally:
                for number in set(plt.get_fignums()) - before:
                    plt.close(number)

    return styled


# ---------------------------------------------------------------- looking at the data


@_styled
def sample_grid(
    images: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str],
    per_class: int = 6,
    title: str | None = None,
) -> Figure:
    """Example images, one row per class, with the class's name and its number of images at left.

    `images` is uint8 of shape (N, H, W, 3), `labels` the N class names. The examples are spread
    evenly over the class's images in their order, so that neighbouring slices of one patient do
    not fill the row. A class without images keeps its (empty) row.
    """
    images, labels = np.asarray(images), _labels(labels, classes)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"images must be uint8 of shape (N, H, W, 3), one for each of the {len(labels)} "
            f"labels; got {images.dtype} {images.shape}"
        )
    names = {name: textwrap.fill(name, 18) for name in classes}
    longest = max(len(line) for name in names.values() for line in [*name.split("\n"), "9 images"])
    side = (PAGE - 0.2 - 0.058 * longest) / per_class  # inches; a letter is about 0.058 wide
    height = len(classes) * (side * images.shape[1] / images.shape[2] + 0.04)
    fig, axes = plt.subplots(
        len(classes), per_class, figsize=(PAGE, height + (0.3 if title else 0.05)), squeeze=False
    )
    fig.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for row, name in zip(axes, classes, strict=True):
        members = np.flatnonzero(labels == name)
        spread = np.linspace(0, len(members) - 1, min(per_class, len(members))).round().astype(int)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, index in zip(row, members[spread], strict=False):
            ax.imshow(images[index])
        noun = "image" if len(members) == 1 else "images"
        row[0].set_ylabel(
            f"{names[name]}\n{len(members):,} {noun}",
            rotation=0, ha="right", va="center", labelpad=4,
        )  # fmt: skip
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=8, fontweight="bold")
    return fig


@_styled
def split_counts(manifest: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Images (above) and patients (below) of each class within each split or fold, as bars.

    `manifest` has the columns sample_id, patient_id, label, and `split` (train, val, test) or
    `fold` (0 to k-1). A patient with images of two classes counts once in each of them; the
    totals under the bars count patients once.
    """
    _need(manifest, ("sample_id", "patient_id", "label"), "the manifest")
    by_split = "split" in manifest and manifest["split"].notna().any()
    if not by_split and "fold" not in manifest:
        raise ValueError("the manifest has neither a `split` nor a `fold` column: split it first")
    by = "split" if by_split else "fold"
    _labels(manifest["label"], classes)
    parts = list(manifest[by].dropna().unique())
    order = {"train": 0, "val": 1, "test": 2}
    parts = sorted(parts, key=lambda part: (order.get(part, 3), part))
    cells = manifest.groupby([by, "label"])
    counts = {"images": cells["sample_id"].nunique(), "patients": cells["patient_id"].nunique()}
    fig, axes = plt.subplots(2, 1, figsize=(PAGE, 3.4), sharex=True)
    width = 0.84 / len(classes)
    for ax, (unit, count) in zip(axes, counts.items(), strict=True):
        for i, name in enumerate(classes):
            heights = [int(count.get((part, name), 0)) for part in parts]
            centres = np.arange(len(parts)) + (i - (len(classes) - 1) / 2) * width
            bars = ax.bar(centres, heights, width * 0.92, label=name, **_bar_style(i))
            if len(parts) * len(classes) <= 36:
                ax.bar_label(bars, [f"{h:,}" for h in heights], fontsize=6, padding=1)
        ax.set_ylabel(unit)
        ax.margins(y=0.12)
        ax.tick_params(axis="x", length=0)
    totals = manifest.groupby(by).agg(
        images=("sample_id", "nunique"), patients=("patient_id", "nunique")
    )
    axes[1].set_xticks(
        range(len(parts)),
        [
            f"{'' if by_split else 'fold '}{part}\n{totals.images[part]:,} images\n"
            f"{totals.patients[part]:,} patients"
            for part in parts
        ],
    )
    handles, names = axes[0].get_legend_handles_labels()
    _legend_above(fig, handles, names)
    return fig


@_styled
def projection(
    embeddings: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str],
    title: str | None = None,
) -> Figure:
    """Embeddings on their first two principal components, a colour and a marker per class.

    `embeddings` is float of shape (n, d), each column standardised first; the axes state the
    share of the variance that they show. A small share means that the picture shows little.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    embeddings, labels = np.asarray(embeddings, float), _labels(labels, classes)
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or min(embeddings.shape) < 2:
        raise ValueError(
            f"embeddings must be (n, d), n the {len(labels)} labels, both at least 2; "
            f"got {embeddings.shape}"
        )
    pca = PCA(2, svd_solver="full" if embeddings.size < 4e6 else "randomized", random_state=0)
    points = pca.fit_transform(StandardScaler().fit_transform(embeddings))
    points = points.round(3)  # below what can be seen; hides the last bits of parallel sums
    words = [f"{name} ({(labels == name).sum():,})" for name in classes]
    legend_rows = -(-len(words) // _legend_columns(COLUMN, words))
    fig, ax = plt.subplots(figsize=(COLUMN, 2.9 + 0.15 * legend_rows))
    size = float(np.clip(2500 / len(points), 3, 18))
    handles = []
    for i, name in enumerate(classes):
        look = {"marker": _pick(MARKERS, i), "color": _pick(COLOURS, i)}
        ax.scatter(
            *points[labels == name].T, s=size, alpha=0.7, linewidths=0, label=name,
            rasterized=len(points) > 3000, **look,
        )  # fmt: skip
        handles.append(Line2D([], [], linestyle="none", **look))
    for axis, share, number in zip("xy", pca.explained_variance_ratio_, (1, 2), strict=True):
        ax.set(**{f"{axis}label": f"component {number} ({100 * share:.1f} % of variance)"})
    ax.set(xticks=[], yticks=[], title=title or "")
    _legend_above(fig, handles, words)
    return fig


# ---------------------------------------------------------------- choosing and training


@_styled
def validation_curve(history: pd.DataFrame) -> Figure:
    """Validation AUROC against each head's hyper-parameter: how the value used was chosen.

    `history` has the columns head, hyperparameter (its name), value, fold, val_auroc and chosen
    (bool), one row per head, value and fold. One panel per head; a thin line per fold, the mean
    thick, a diamond where the fold's choice fell. Log scale where values span decades.
    """
    keys = ["head", "hyperparameter", "fold", "value"]
    _need(history, (*keys, "val_auroc", "chosen"), "the history")
    _unique(history, keys, "the history")
    order = {head: i for i, head in enumerate(HEADS)}
    panels = sorted(
        history.groupby(["head", "hyperparameter"], sort=False),
        key=lambda panel: (order.get(panel[0][0], len(order)), panel[0][0]),
    )
    width = COLUMN if len(panels) == 1 else PAGE
    fig, axes = plt.subplots(1, len(panels), figsize=(width, 2.4), sharey=True, squeeze=False)
    thin, thick = {"color": SKY, "linewidth": 0.7}, {"color": BLUE, "linewidth": 1.8}
    diamond = {
        "color": VERMILION, "marker": "D", "linestyle": "none", "markersize": 4.5,
        "markeredgecolor": "white", "markeredgewidth": 0.5,
    }  # fmt: skip
    several = history["fold"].nunique() > 1
    for ax, ((head, name), rows) in zip(axes[0], panels, strict=True):
        for _, fold in rows.groupby("fold") if several else ():
            fold = fold.sort_values("value")
            ax.plot(fold["value"], fold["val_auroc"], **thin)
        mean = rows.groupby("value")["val_auroc"].mean()
        ax.plot(mean.index, mean, **thick)
        chosen = rows[rows["chosen"].astype(bool)]
        ax.plot(chosen["value"], chosen["val_auroc"], **diamond)
        values = np.sort(rows["value"].unique())
        if values[0] > 0 and values[-1] / values[0] >= 10:
            ax.set_xscale("log")
        if len(values) <= 7:
            ax.set_xticks(values, [_number(value) for value in values])
            ax.minorticks_off()
        ax.set(xlabel=name.replace("_", " "), title=HEADS.get(head, head))
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("validation AUROC")
    handles = [Line2D([], [], **look) for look in (thin, thick, diamond)]
    names = ["one fold", "mean over folds" if several else "validation", "chosen"]
    _legend_above(fig, handles[not several :], names[not several :])
    return fig


@_styled
def learning_curves(history: pd.DataFrame) -> Figure:
    """Fine-tuning: loss (left) and validation AUROC (right) over epochs, by learning rate.

    `history` has the columns fold, learning_rate, epoch (from 1), train_loss, val_loss,
    val_auroc and chosen (bool: the learning rate and epoch that were kept for the fold). A thin
    line per fold, darker for smaller rates; training loss is dashed; a star marks the choice.
    """
    keys = ["learning_rate", "fold", "epoch"]
    _need(history, (*keys, "train_loss", "val_loss", "val_auroc", "chosen"), "the history")
    _unique(history, keys, "the history")
    fig, (loss, auroc) = plt.subplots(1, 2, figsize=(PAGE, 2.5))
    rates = np.sort(history["learning_rate"].unique())
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.82, max(len(rates), 2)))
    handles, names = [], []
    for i, rate in enumerate(rates):
        look = {"color": shades[i], "linewidth": 0.9, "markersize": 3, "marker": _pick(MARKERS, i)}
        of_rate = history[history["learning_rate"] == rate]
        for _, fold in of_rate.groupby("fold"):
            fold = fold.sort_values("epoch")
            last = {"markevery": [len(fold) - 1]}
            loss.plot(fold["epoch"], fold["train_loss"], linestyle=(0, (3, 1.5)), **look, **last)
            loss.plot(fold["epoch"], fold["val_loss"], **look, **last)
            auroc.plot(fold["epoch"], fold["val_auroc"], **look, **last)
        handles.append(Line2D([], [], **look))
        names.append(f"learning rate {_number(rate)}")
    kept = history[history["chosen"].astype(bool)]
    star = {
        "marker": "*", "linestyle": "none", "color": VERMILION, "markersize": 9,
        "markeredgecolor": "black", "markeredgewidth": 0.5, "zorder": 5,
    }  # fmt: skip
    loss.plot(kept["epoch"], kept["val_loss"], **star)
    auroc.plot(kept["epoch"], kept["val_auroc"], **star)
    loss.set(title="loss", ylabel="cross-entropy")
    auroc.set(title="validation AUROC", ylabel="AUROC")
    for ax in (loss, auroc):
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        ax.grid(axis="y")
    black = {"color": "black", "linewidth": 0.9}
    handles += [
        Line2D([], [], linestyle=(0, (3, 1.5)), **black),
        Line2D([], [], **black),
        Line2D([], [], **star),
    ]
    _legend_above(fig, handles, [*names, "training", "validation", "kept"])
    return fig


@_styled
def roc_curves(
    predictions: pd.DataFrame, classes: Sequence[str], title: str | None = None
) -> Figure:
    """ROC curves with their AUROC: of the second class if there are two, else one against rest.

    `predictions` has the columns y_true (class name) and `prob_<class>` (0 to 1) per class, one
    row per judged unit (aggregate slices to patients first where the task is judged by patient).
    """
    from sklearn.metrics import auc, roc_curve

    _need(predictions, ("y_true", *(f"prob_{name}" for name in classes)), "the predictions")
    truth = _labels(predictions["y_true"], classes)
    fig, ax = plt.subplots(figsize=(COLUMN, COLUMN))
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":", label="_chance")
    for i, name in enumerate(classes[1:] if len(classes) == 2 else classes):
        look = {"color": _pick(COLOURS, i), "linestyle": _pick(DASHES, i)}
        positive = truth == name
        if not positive.any() or positive.all():
            ax.plot([], [], label=f"{name}: AUROC undefined", **look)
            continue
        false_rate, true_rate, _ = roc_curve(positive, predictions[f"prob_{name}"])
        label = f"{name}: AUROC {auc(false_rate, true_rate):.3f}"
        ax.plot(false_rate, true_rate, label=label, **look, clip_on=False)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title or "",
        xlabel="false positive rate (1 − specificity)", ylabel="true positive rate (sensitivity)",
    )  # fmt: skip
    ax.legend(loc="lower right", borderaxespad=0.3)
    return fig


# ---------------------------------------------------------------- the comparison


@_styled
def main_comparison(
    table: pd.DataFrame,
    tasks: Mapping[str, Mapping],
    metric: str = "auroc",
    caption: str | None = None,
) -> Figure:
    """The study in one figure: a panel per task, a row per backbone, frozen beside fine-tuned.

    `table` is long form: task, backbone, pretraining, regime, head, label_fraction (1.0: all
    training patients), metric, value, ci_low, ci_high, sd (over seeds), n_seeds, n_patients,
    n_images. `tasks` maps a task to {"title": str, "chance": float or None}, in the order of the
    panels. Points are values, thin lines 95 % intervals, thick bars one SD over seeds; of the
    frozen heads the linear one is drawn. A random control stands below its pretrained twin,
    grey and hollow. Label fractions are written in the legend; where fine-tuning used another
    fraction in each task, in the panel's title. Combinations that are missing stay empty.
    """
    rows = _shown(table, tasks)
    rows = rows[(rows["regime"] != "frozen") | (rows["head"] == "linear")]
    if metric not in set(rows["metric"]):
        raise ValueError(
            f"no row of the tasks {list(tasks)} has the metric {metric!r}; "
            f"there are {sorted(set(rows['metric']))}"
        )
    rows = rows[rows["metric"] == metric]
    _unique(rows, ["task", "backbone", "regime", "head", "label_fraction"], "the table")
    backbones = _ordered_backbones(rows)
    rows, series, notes = _as_series(rows, tasks)
    n, columns = len(tasks), {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    pitch = 0.07 + 0.07 * max(len(series), 2)  # inches per backbone
    lines = -(-n // columns)
    width = COLUMN if n == 1 else PAGE
    wrapped = _wrap(caption, width) if caption else ""
    handles, words = _comparison_legend(rows, series, tasks)
    spare = n < lines * columns  # then the legend stands where a panel is missing
    titles = {
        task: textwrap.fill(tasks[task]["title"], int(width / columns * 12)) for task in tasks
    }
    above = 0.55 + 0.13 * max(len(title.splitlines()) for title in titles.values())
    height = lines * (len(backbones) * pitch + above) + 0.13 * len(wrapped.splitlines())
    height += 0 if spare else 0.15 * -(-len(words) // _legend_columns(width, words)) + 0.1
    fig, axes = plt.subplots(lines, columns, figsize=(width, height), squeeze=False, sharey=True)
    fig.get_layout_engine().set(hspace=0.04)
    small = {task: _subtitle(rows[rows["task"] == task], notes[task]) for task in tasks}
    deepest = max(len(text.splitlines()) for text in small.values())
    low, high, step = _limits(rows, [card.get("chance") for card in tasks.values()])
    for i, (ax, (task, card)) in enumerate(zip(axes.flat, tasks.items(), strict=False)):
        _comparison_panel(ax, rows[rows["task"] == task], backbones, series, card)
        ax.set_title(titles[task], pad=5 + 8 * deepest)
        ax.annotate(
            small[task], (0, 1), (0, 3), "axes fraction", "offset points", va="bottom",
            fontsize=6.5, color="0.25", linespacing=1.1,
        )  # fmt: skip
        ax.set_xlim(low, high)
        ax.xaxis.set_major_locator(mpl.ticker.MultipleLocator(step))
        if i + columns >= n:
            ax.set_xlabel(f"{METRICS.get(metric, metric)} (95 % interval)")
    stated = rows.drop_duplicates("backbone").set_index("backbone")["pretraining"]
    names = [_label(backbone, stated[backbone]) for backbone in backbones]
    folded = [name.replace(" (", "\n(") if len(name) > 24 else name for name in names]
    axes[0, 0].set(ylim=(len(backbones) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(backbones)), folded)
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0)
    for ax in axes[:, 0]:
        for text, backbone in zip(ax.get_yticklabels(), backbones, strict=True):
            text.set(color=GREY if stated[backbone] == "random" else "black", linespacing=0.95)
    for ax in axes.flat[n:]:
        ax.axis("off")
    if spare:
        legend = axes.flat[-1].legend(handles, words, loc="upper right", labelspacing=0.8)
        legend.set_in_layout(False)  # else a wide legend would push the columns apart
    else:
        _legend_above(fig, handles, words)
    if caption:
        fig.supxlabel(wrapped, x=0.01, ha="left", fontsize=6.5, color="0.25")
    return fig


def main_table(
    table: pd.DataFrame,
    tasks: Mapping[str, Mapping],
    metrics: Sequence[str] = (
        "accuracy", "balanced_accuracy", "precision_weighted", "recall_weighted", "f1_weighted",
        "auroc",
    ),
) -> pd.DataFrame:  # fmt: skip
    """The long table made wide: one row per task, backbone, regime, head and label fraction.

    Columns: task (its title), backbone (its printed name), pretraining, regime, head,
    label_fraction, n_patients, then one per metric whose cells read `value [low, high]` with
    three decimals, empty where there is no result. Rows come in the order of `tasks`, then of
    the figure's backbones, then frozen before fine-tuned, heads, and the larger fraction first.
    """
    rows = _shown(table, tasks)
    keys = ["task", "backbone", "regime", "head", "label_fraction"]
    _unique(rows, [*keys, "metric"], "the table")
    rows = rows[rows["metric"].isin(metrics)]
    rank = {
        "task": list(tasks), "backbone": _ordered_backbones(rows),
        "regime": list(REGIMES), "head": list(HEADS),
    }  # fmt: skip
    records = []
    for key, group in rows.groupby(keys, sort=False):
        named = dict(zip(keys, key, strict=True))
        cells = {row.metric: _cell(row.value, row.ci_low, row.ci_high) for row in
                 group.itertuples()}  # fmt: skip
        order = [_rank(rank[column], named[column]) for column in rank]
        first = group.iloc[0]
        records.append(
            (
                (*order, -named["label_fraction"]),
                {
                    "task": tasks[named["task"]]["title"],
                    "backbone": _label(named["backbone"], first["pretraining"]),
                    "pretraining": first["pretraining"],
                    "regime": named["regime"],
                    "head": named["head"],
                    "label_fraction": named["label_fraction"],
                    "n_patients": int(group["n_patients"].max()),
                    **{metric: cells.get(metric, "") for metric in metrics},
                },
            )
        )
    records.sort(key=lambda record: record[0])
    columns = ["task", "backbone", "pretraining", *keys[2:], "n_patients", *metrics]
    return pd.DataFrame([record for _, record in records], columns=columns)


def save_table(df: pd.DataFrame, path_stem: Path, caption: str = "", note: str = "") -> list[Path]:
    """Write a table as `<stem>.csv`, `.md` (pipes) and `.tex` (booktabs), each whole or not at all.

    The .tex needs nothing but `\\usepackage{booktabs}`. Where the frame has a `task` column, a
    rule parts the tasks and the best cell per task of every column named in `METRICS` is bold
    (in .md and .tex), compared by the number that the cell starts with; equals are all bold.
    """
    bold = _best_cells(df)
    csv, md, tex = paths = [_with_ending(path_stem, kind) for kind in ("csv", "md", "tex")]
    save_csv(csv, df)
    _write_text(md, _markdown(df, bold, caption, note))
    _write_text(tex, _latex(df, bold, caption, note, label=Path(path_stem).name))
    return paths


# ---------------------------------------------------------------- parts of the comparison


def _split_key(backbone: str) -> tuple[str, str]:
    """`vit_tiny-random` → (`vit_tiny`, `random`); a key without pretraining → (key, ``)."""
    for weights in ("random", "imagenet", "dinov2"):
        if backbone.endswith(f"-{weights}"):
            return backbone.removesuffix(f"-{weights}"), weights
    return backbone, ""


def _label(backbone: str, pretraining: str) -> str:
    """The printed name where the table's own word on the weights is known as well."""
    named_random = "(random weights)" in display_names(backbone)
    if named_random and pretraining != "random":
        raise ValueError(
            f"backbone {backbone!r} is named random but its pretraining is {pretraining!r}: "
            "one of the two columns is wrong"
        )
    if pretraining == "random" and not named_random:
        return display_names(f"{_split_key(backbone)[0]}-random")
    return display_names(backbone)


def _shown(table: pd.DataFrame, tasks: Mapping[str, Mapping]) -> pd.DataFrame:
    """The rows of the tasks, after checking columns and that every row states its pretraining."""
    needed = ("task", "backbone", "pretraining", "regime", "head", "label_fraction", "metric",
              "value", "ci_low", "ci_high", "n_patients")  # fmt: skip
    _need(table, needed, "the table")
    rows = table[table["task"].isin(list(tasks))]
    if rows.empty:
        raise ValueError(
            f"the table has no row of the tasks {list(tasks)}; it has {sorted(set(table['task']))}"
        )
    unknown = set(rows["regime"]) - set(REGIMES)
    if unknown:
        raise ValueError(f"unknown regime {sorted(unknown)}; valid are {list(REGIMES)}")
    stated = rows[["backbone", "pretraining"]].drop_duplicates()
    if stated["pretraining"].isna().any() or stated["backbone"].duplicated().any():
        raise ValueError("each backbone needs exactly one pretraining: " + str(stated.values))
    return rows.assign(label_fraction=rows["label_fraction"].astype(float).round(6))


def _ordered_backbones(rows: pd.DataFrame) -> list[str]:
    """Backbones by architecture, each random control directly after its pretrained twin."""
    known = list(ARCHITECTURES)
    found = rows[["backbone", "pretraining"]].drop_duplicates().sort_values("backbone")
    keyed = []
    for backbone, pretraining in found.itertuples(index=False):
        architecture = _split_key(backbone)[0]
        keyed.append((_rank(known, architecture), architecture, pretraining == "random", backbone))
    return [key[-1] for key in sorted(keyed)]


def _as_series(
    rows: pd.DataFrame, tasks: Mapping[str, Mapping]
) -> tuple[pd.DataFrame, list[str], dict[str, str]]:
    """Name each row's series (regime and labels), and each panel's note on the fraction used.

    Returns the rows with a `series` column, the series in order of drawing, and task → note.
    """
    tuned = rows[rows["regime"] == "finetuned"].groupby("task")["label_fraction"].unique()
    tuned = {task: sorted(fractions) for task, fractions in tuned.items()}
    differ = len({tuple(fractions) for fractions in tuned.values()}) > 1 and all(
        len(fractions) == 1 for fractions in tuned.values()
    )
    plain = (rows["label_fraction"] == 1).all()
    names, sort_keys = [], {}
    for task, regime, fraction in rows[["task", "regime", "label_fraction"]].itertuples(
        index=False
    ):
        words = "all labels" if fraction == 1 else f"{100 * fraction:g} % of labels"
        own = differ and fraction == tuned.get(task, [None])[0]
        if plain or own and regime == "finetuned":
            name = REGIMES[regime]
        elif own and fraction < 1:
            name = f"{REGIMES[regime]}, same labels as fine-tuned"
        else:
            name = f"{REGIMES[regime]}, {words}"
        names.append(name)
        key = (list(REGIMES).index(regime), 0 if own and fraction < 1 else -fraction)
        sort_keys[name] = max(key, sort_keys.get(name, key))
    series = sorted(sort_keys, key=lambda name: (sort_keys[name], name))
    notes = {
        task: _fraction_note(tuned[task][0]) if differ and task in tuned else "" for task in tasks
    }
    return rows.assign(series=names), series, notes


def _fraction_note(fraction: float) -> str:
    return f"fine-tuned on {'all' if fraction == 1 else f'{100 * fraction:g} % of'} labels"


def _series_looks(series: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each series: frozen round or triangular, fine-tuned angular."""
    looks = {
        "frozen": [("o", BLUE), ("v", SKY), ("^", GREEN), ("<", PURPLE)],
        "fine-tuned": [("s", VERMILION), ("D", ORANGE), ("P", BROWN), ("X", BLACK)],
    }
    chosen = {}
    for regime, styles in looks.items():
        names = [name for name in series if name.split(",")[0] == regime]
        for i, name in enumerate(names):
            marker, colour = _pick(styles, i)
            chosen[name] = {"marker": marker, "color": colour}
    return chosen


def _comparison_panel(ax, rows, backbones, series, card) -> None:
    """Draw one task: bands for architectures, the chance line, then every series with its CI."""
    position = {backbone: i for i, backbone in enumerate(backbones)}
    architectures = [_split_key(backbone)[0] for backbone in backbones]
    distinct = list(dict.fromkeys(architectures))
    for i, architecture in enumerate(architectures):
        if distinct.index(architecture) % 2 == 0:
            ax.axhspan(i - 0.5, i + 0.5, color="0.955", linewidth=0, zorder=0)
    ax.grid(axis="x")
    if card.get("chance") is not None:
        ax.axvline(card["chance"], color="0.3", linewidth=0.8, linestyle=":", zorder=1)
    looks = _series_looks(series)
    for i, name in enumerate(series):
        for random in (False, True):
            part = rows[(rows["series"] == name) & ((rows["pretraining"] == "random") == random)]
            if part.empty:
                continue
            y = part["backbone"].map(position) + (i - (len(series) - 1) / 2) * 0.8 / len(series)
            look = dict(looks[name], color=GREY) if random else looks[name]
            if "sd" in part and part["sd"].notna().any():
                low, high = part["value"] - part["sd"], part["value"] + part["sd"]
                ax.hlines(y, low, high, color=look["color"], linewidth=3.4, alpha=0.4, zorder=2)
            ax.hlines(y, part["ci_low"], part["ci_high"], color=look["color"], linewidth=0.9)
            ax.plot(part["value"], y, label=name, **_point(look, random), zorder=4)


def _point(look: dict, random: bool) -> dict:
    """Line2D settings of a value: filled if pretrained, hollow if the weights are random."""
    face = "white" if random else look["color"]
    size = {"v": 4.2, "^": 4.2, "D": 3.4, "s": 3.6}.get(look["marker"], 4)
    return dict(look, linestyle="none", markersize=size, markerfacecolor=face, markeredgewidth=0.8)


def _comparison_legend(rows, series, tasks) -> tuple[list, list[str]]:
    looks, untrained = _series_looks(series), rows["pretraining"] == "random"
    handles, names = [], []
    for name in series:
        hollow = untrained[rows["series"] == name].all()
        look = dict(looks[name], color=GREY) if hollow else looks[name]
        handles.append(Line2D([], [], **_point(look, hollow)))
        names.append(name)
    if untrained.any():
        handles.append(Patch(facecolor="white", edgecolor=GREY, linewidth=0.8))
        names.append("grey, hollow: random weights")
    if "sd" in rows and rows["sd"].notna().any():
        handles.append(Line2D([], [], color="0.3", linewidth=3.4, alpha=0.4))
        names.append("± 1 SD over seeds")
    if any(card.get("chance") is not None for card in tasks.values()):
        handles.append(Line2D([], [], color="0.3", linewidth=0.8, linestyle=":"))
        names.append("chance")
    return handles, names


def _subtitle(rows: pd.DataFrame, note: str) -> str:
    """Under a panel's title: whom the task was tested on, and on what it was fine-tuned."""
    counts = []
    for unit in ("patients", "images"):
        numbers = rows[f"n_{unit}"].dropna() if f"n_{unit}" in rows else []
        if len(numbers):
            few, many = int(min(numbers)), int(max(numbers))
            counts.append(f"{few:,} {unit}" if few == many else f"{few:,}–{many:,} {unit}")
    words = "no results" if rows.empty else ", ".join(counts)
    return "\n".join(part for part in (words, note) if part)


def _limits(rows: pd.DataFrame, chances: Sequence[float | None]) -> tuple[float, float, float]:
    """One x range for all panels, every interval and chance line inside it, and the tick step."""
    chances = [chance for chance in chances if chance is not None]
    values = np.array([*rows[["value", "ci_low", "ci_high"]].to_numpy(float).ravel(), *chances])
    least, most = np.nanmin(values), np.nanmax(values)
    step = next((step for step in (0.05, 0.1, 0.2) if (most - least) / step <= 6), 0.5)
    margin = 0.03 * max(most - least, step)  # a marker on the edge stays whole
    return least - margin, most + margin, step


# ---------------------------------------------------------------- parts of the tables


def _cell(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return ""
    no_interval = pd.isna(low) or pd.isna(high)
    return f"{value:.3f}" if no_interval else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _best_cells(df: pd.DataFrame) -> set[tuple[int, str]]:
    """(row number, column) of each task's best cells, for the columns where more is better."""
    best = set()
    if "task" not in df:
        return best
    tasks = df["task"].to_numpy()
    for column in (column for column in df if column in METRICS):
        points = np.array([_leading_number(cell) for cell in df[column]], float)
        for task in dict.fromkeys(tasks):
            members = np.flatnonzero((tasks == task) & ~np.isnan(points))
            if len(members) > 1:
                top = points[members].max()
                best |= {(int(i), column) for i in members if points[i] == top}
    return best


def _leading_number(cell) -> float:
    if isinstance(cell, str):
        match = re.match(r"\s*[-−+]?\d*\.?\d+(?:[eE][-+]?\d+)?", cell)
        return float(match.group().replace("−", "-")) if match else float("nan")
    return float(cell) if cell is not None and not pd.isna(cell) else float("nan")


def _as_text(cell) -> str:
    """A cell as printed in .md and .tex: numbers short but to six digits, a dash for no value."""
    if cell is None or (not isinstance(cell, str) and pd.isna(cell)) or cell == "":
        return "–"
    if isinstance(cell, float | np.floating):
        return f"{cell:.0f}" if float(cell).is_integer() and abs(cell) < 1e15 else f"{cell:.6g}"
    return " ".join(str(cell).split())


def _markdown(df: pd.DataFrame, bold: set, caption: str, note: str) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line([str(column) for column in df]), line(["---"] * df.shape[1])]
    for i, row in enumerate(df.itertuples(index=False, name=None)):
        cells = zip(df, row, strict=True)
        lines.append(line([f"**{_as_text(cell)}**" if (i, column) in bold else _as_text(cell)
                           for column, cell in cells]))  # fmt: skip
    return "\n\n".join(part for part in (caption, "\n".join(lines), note) if part) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "—": "---",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\to$",
    "Δ": r"$\Delta$", "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _latex(df: pd.DataFrame, bold: set, caption: str, note: str, label: str) -> str:
    texts = [[_as_text(cell) for cell in row] for row in df.itertuples(index=False, name=None)]
    columns = [str(column) for column in df]
    widest = [max([len(name), *(len(row[i]) for row in texts)]) for i, name in enumerate(columns)]
    # an article's line holds about 85 characters at \small; wider tables are set smaller
    size = next((s for s, n in (("small", 70), ("scriptsize", 105)) if sum(widest) <= n), "tiny")
    numeric = [pd.api.types.is_numeric_dtype(df[column]) for column in df]
    body = []
    for i, row in enumerate(texts):
        if i and "task" in columns and df["task"].iloc[i] != df["task"].iloc[i - 1]:
            body.append(r"\midrule")
        cells = [
            rf"\textbf{{{_escape(cell)}}}" if (i, column) in bold else _escape(cell)
            for column, cell in zip(df, row, strict=True)
        ]
        if cells[0][:1] in ("[", "*"):
            cells[0] = "{}" + cells[0]  # else the row break before it would take it as its option
        body.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_escape(caption)}}}"] if caption else []),
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
            rf"\{size}",
            r"\setlength{\tabcolsep}{3pt}",
            r"\makebox[\textwidth][c]{%",  # a table wider than the text stays centred on the page
            rf"\begin{{tabular}}{{@{{}}{''.join('r' if n else 'l' for n in numeric)}@{{}}}}",
            r"\toprule",
            " & ".join(_escape(name) for name in columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *([rf"\par\smallskip {_escape(note)}"] if note else []),
            r"\end{table}",
            "",
        ]
    )


# ---------------------------------------------------------------- small parts


def _pick(options: Sequence, i: int):
    return options[i % len(options)]


def _rank(order: Sequence, item) -> int:
    return list(order).index(item) if item in order else len(order)


def _number(value: float) -> str:
    """1e-5 rather than 1e-05, 0.5 rather than 5e-1."""
    if value and not 0.01 <= abs(value) < 10_000:
        return np.format_float_scientific(value, precision=2, trim="-", exp_digits=1)
    return f"{value:g}"


def _bar_style(i: int) -> dict:
    hatch = _pick(HATCHES, i)
    return {"facecolor": _pick(COLOURS, i), "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def _wrap(text: str, width: float) -> str:
    return textwrap.fill(" ".join(text.split()), int(width * 19))  # about 19 characters an inch


def _legend_above(fig: Figure, handles: list, names: list[str]) -> None:
    """A legend over the panels, in as many columns as fit the figure's width."""
    columns = _legend_columns(fig.get_figwidth(), names)
    fig.legend(handles, names, loc="outside upper center", ncols=columns, columnspacing=1.2)


def _legend_columns(width: float, names: list[str]) -> int:
    """The most columns that fit: about 3.9 points a character, 28 for handle and gaps."""
    for columns in range(len(names), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(names, columns)]
        if sum(longest) * 3.9 + columns * 28 < width * 72:
            return columns
    return 1


def _need(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{what} lacks the columns {missing}; it has {list(frame.columns)}")
    if frame.empty:
        raise ValueError(f"{what} has no rows")


def _unique(frame: pd.DataFrame, keys: list[str], what: str) -> None:
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        raise ValueError(
            f"{what} has several rows for {dict(twice[keys].iloc[0])}: "
            "select one run, or average over seeds, before drawing"
        )


def _labels(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    labels = np.asarray(labels, object)
    unknown = sorted(set(labels) - set(classes), key=str)
    if unknown:
        raise ValueError(f"labels {unknown} are not among the classes {list(classes)}")
    return labels


def _with_ending(stem: Path, ending: str) -> Path:
    """`stem` + ending, keeping dots in the stem (`with_suffix` would cut `vit.v2` to `vit`)."""
    return Path(stem).parent / f"{Path(stem).name}.{ending}"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
