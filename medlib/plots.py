"""Data frame in, figure out: the house style, its export, and the figures of a single run.

A figure is drawn from a tidy frame and nothing else: no training, no metric is computed here
beyond what drawing needs (an ROC curve, a projection to two dimensions). Each function returns a
`matplotlib.figure.Figure` that pyplot has already let go of, so a notebook shows it once, as the
last expression of a cell, and a long batch run holds no open figures.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which stay apart for
colour-blind readers; a marker, a dash or a name says the same again for readers in grey.
Anything from random weights is drawn grey and hollow and is named "(random weights)".
"""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

from medlib.artifacts import replacing, save_csv

COLUMN, PAGE = 3.35, 7.0  # widths in inches: one column of a two-column journal, and both

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F5B3A",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
GREY = "0.42"  # random weights, and only they
CHOSEN = {"marker": "*", "linestyle": "none", "color": VERMILION, "markersize": 8,
          "markeredgecolor": "black", "markeredgewidth": 0.5, "zorder": 5}  # fmt: skip

STYLE = {
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
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
    "legend.fontsize": 7,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, embedded: editable, and accepted by journals
    "svg.hashsalt": "medlib",  # else the ids in an SVG are random
}

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


# ---------------------------------------------------------------- style, names and export


def use_style() -> None:
    """Set matplotlib's rcParams to the house style; call once at the top of a notebook."""
    mpl.rcParams.update(STYLE)


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


def save(
    fig: Figure, path_stem: Path, data: pd.DataFrame | None = None, caption: str = ""
) -> list[Path]:
    """Write a figure as `<stem>.png` (200 dpi), `.pdf` and `.svg`, and its data as `<stem>.csv`.

    `caption` is put beneath it first (:func:`caption_below`). The folder is made where needed, each
    file appears whole (written beside, then renamed), and the same data drawn again give the same
    bytes: no dates, no random ids. Returns the paths.
    """
    if caption:
        caption_below(fig, caption)
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = [Path(f"{path_stem}.{kind}") for kind in undated]
    with mpl.rc_context(STYLE):
        for path, (kind, metadata) in zip(paths, undated.items(), strict=True):
            with replacing(path) as temporary:
                fig.savefig(temporary, format=kind, metadata=metadata)
    if data is not None:
        paths.append(Path(f"{path_stem}.csv"))
        save_csv(paths[-1], data)
    return paths


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style whatever the caller's rcParams, then let pyplot forget the figure."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig = draw(*args, **kwargs)
        plt.close(fig)
        return fig

    return styled


def legend_above(fig: Figure, handles: list, names: list[str]) -> None:
    """A legend over the panels, in as many columns as fit, for which the figure grows taller."""
    for columns in range(len(names), 0, -1):
        legend = fig.legend(
            handles, names, loc="outside upper center", ncols=columns, columnspacing=1.4,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.3)},
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            break
        legend.remove()
    fig.set_figheight(fig.get_figheight() + legend.get_window_extent().height / fig.dpi)


def caption_below(fig: Figure, caption: str) -> None:
    """Words under the panels, in lines as long as the figure is wide; it grows taller by them.

    They follow those that are there already, unless these end in them.
    """
    before = fig.get_supxlabel()
    words = " ".join(before.split())
    if words.endswith(" ".join(caption.split())):
        return
    text = textwrap.fill(f"{words} {caption}".strip(), int(20 * fig.get_figwidth()))  # an inch: 20
    more = len(text.splitlines()) - len(before.splitlines())
    fig.set_figheight(fig.get_figheight() + 0.14 * more)
    fig.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="0.25")


# ---------------------------------------------------------------- looking at the data


@styled
def sample_grid(
    images: np.ndarray, labels: Sequence[str], classes: Sequence[str], per_class: int = 6,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """Example images, one row per class, with the class's name and its number of images at left.

    `images` is uint8 of shape (N, H, W, 3), `labels` the N class names. The examples are spread
    evenly over the class's images in their order, so that neighbouring slices of one patient do
    not fill the row. A class without images keeps its (empty) row.
    """
    rows = {}
    for name in classes:
        members = np.flatnonzero(np.asarray(labels) == name)
        words = f"{textwrap.fill(spoken(name), 18)}\n{len(members):,} images"
        rows[words] = members[_spread(len(members), per_class)]
    return _picture_rows(images, rows, per_class, title)[0]


@styled
def slice_strip(
    images: np.ndarray, index: pd.DataFrame, classes: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """The packed slices of one volume of each class, in order, each with its slice's number.

    `images` is uint8 of shape (N, H, W, 3); `index` has N rows in the same order, with sample_id,
    label and slice. A class (given, or all in order of appearance) is shown by its first sample,
    of which eight slices are taken, spread evenly, where there are more. The letters at the first
    picture's edges say how it must lie: anterior above, the patient's right at the left.
    """
    rows = {}
    for name in index["label"].unique() if classes is None else classes:
        sample = index["sample_id"][index["label"] == name].head(1)
        members = np.flatnonzero(index["sample_id"].isin(sample))
        members = members[np.argsort(index["slice"].iloc[members].astype(int), kind="stable")]
        words = [*textwrap.wrap(spoken(name), 18), *textwrap.wrap("".join(sample), 18)]
        rows["\n".join(words)] = members[_spread(len(members), 8)]
    fig, axes = _picture_rows(images, rows, max(1, *map(len, rows.values())), title)
    for row, members in zip(axes, rows.values(), strict=True):
        for ax, number in zip(row, index["slice"].iloc[members], strict=False):
            _on_picture(ax, 0.97, 0.03, f"{int(number)}")
    for letter, place in {"A": (0.5, 0.98), "P": (0.5, 0.02), "R": (0, 0.5), "L": (1, 0.5)}.items():
        _on_picture(axes[0, 0], *place, letter, fontweight="bold")
    return fig


@styled
def projection(
    embeddings: np.ndarray, labels: Sequence[str], classes: Sequence[str], title: str | None = None
) -> Figure:
    """Embeddings on their first two principal components, a colour and a marker per class.

    `embeddings` is float of shape (n, d), each column standardised first; the axes state the
    share of the variance that they show. A small share means that the picture shows little.
    """
    labels = np.asarray(labels)
    points, shares = components(embeddings)
    fig, ax = plt.subplots(figsize=(COLUMN, 2.9))
    size = np.clip(2500 / len(points), 3, 18)
    handles, words = [], []
    for name, marker, colour in zip(classes, MARKERS, COLOURS, strict=False):
        members = points[labels == name]
        ax.scatter(
            *members.T, s=size, color=colour, marker=marker, alpha=0.7, linewidths=0,
            rasterized=len(points) > 3000,  # else a PDF of ten thousand marks
        )  # fmt: skip
        handles.append(Line2D([], [], linestyle="none", color=colour, marker=marker))
        words.append(f"{spoken(name)} ({len(members):,})")
    first, second = 100 * shares
    ax.set(
        xlabel=f"component 1 ({first:.1f} % of variance)", xticks=[],
        ylabel=f"component 2 ({second:.1f} % of variance)", yticks=[], title=title or "",
    )  # fmt: skip
    legend_above(fig, handles, words)
    return fig


def components(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised embeddings (n, d) on their first two principal components (n, 2).

    Beside them the share of the variance that each component has (2,).
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(StandardScaler().fit_transform(embeddings))
    # Three decimals are below what can be seen, and hide the last bits of parallel sums.
    return points.round(3), pca.explained_variance_ratio_


# ---------------------------------------------------------------- choosing and training


@styled
def validation_curve(history: pd.DataFrame) -> Figure:
    """Validation AUROC against each head's hyper-parameter: how the value used was chosen.

    `history` has the columns head, hyperparameter (its name), value, fold, val_auroc and chosen
    (bool), one row per head, value and fold. One panel per head; a thin line per fold, the mean
    thick, a star where the fold's choice fell.
    """
    heads = [head for head in HEADS if head in set(history["head"])]
    width = COLUMN if len(heads) == 1 else PAGE
    fig, axes = plt.subplots(1, len(heads), figsize=(width, 2.2), sharey=True, squeeze=False)
    thin, thick = {"color": SKY, "linewidth": 0.7}, {"color": BLUE, "linewidth": 1.8}
    for ax, head in zip(axes[0], heads, strict=True):
        rows = history[history["head"] == head]
        folds = rows.pivot(index="value", columns="fold", values="val_auroc")
        ax.plot(folds, **thin)
        ax.plot(folds.mean(axis=1), **thick)
        chosen = rows[rows["chosen"]]
        ax.plot(chosen["value"], chosen["val_auroc"], **CHOSEN)
        ax.set(title=HEADS[head], xlabel=rows["hyperparameter"].iloc[0].replace("_", " "))
        ax.set_xscale("log")
        short = [f"{v:g}" if v < 1000 else f"{v / 1000:g}k" for v in folds.index]
        ax.set_xticks(folds.index, short)
        ax.minorticks_off()
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("validation AUROC")
    handles = [Line2D([], [], **look) for look in (thin, thick, CHOSEN)]
    legend_above(fig, handles, ["one fold", "mean over folds", "chosen"])
    return fig


@styled
def learning_curves(history: pd.DataFrame) -> Figure:
    """Fine-tuning: loss (left) and validation AUROC (right) over epochs, by learning rate.

    `history` has the columns fold, learning_rate, epoch (from 1), train_loss, val_loss,
    val_auroc and chosen (bool: the learning rate and epoch that were kept for the fold). A thin
    line per fold, darker for smaller rates; training loss is dashed; a star marks the choice.
    """
    import seaborn as sns  # here: it is slow to import, and the other figures do without

    fig, (loss, auroc) = plt.subplots(1, 2, figsize=(PAGE, 2.3))
    names = history["learning_rate"].map("{:g}".format).str.replace("e-0", "e-")
    history = history.assign(rate=names).sort_values("learning_rate")
    keys = {"train_loss": "training", "val_loss": "validation"}
    losses = history.melt(["rate", "fold", "epoch"], list(keys), "part", "loss").replace(keys)
    look = {"x": "epoch", "hue": "rate", "palette": "viridis", "units": "fold", "estimator": None,
            "linewidth": 0.9}  # fmt: skip
    dashes = {"training": (3, 1.5), "validation": ""}
    sns.lineplot(losses, y="loss", style="part", dashes=dashes, ax=loss, **look)
    sns.lineplot(history, y="val_auroc", legend=False, ax=auroc, **look)
    kept = history[history["chosen"]]
    loss.plot(kept["epoch"], kept["val_loss"], label="kept", **CHOSEN)
    auroc.plot(kept["epoch"], kept["val_auroc"], **CHOSEN)
    loss.set(title="loss", ylabel="cross-entropy")
    auroc.set(title="validation AUROC", ylabel="AUROC")
    for ax in (loss, auroc):
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        ax.grid(axis="y")
    handles, words = loss.get_legend_handles_labels()
    loss.get_legend().remove()
    headings = {"rate": "learning rate:", "part": "loss in:"}
    legend_above(fig, handles, [headings.get(word, word) for word in words])
    return fig


@styled
def roc_curves(
    predictions: pd.DataFrame, classes: Sequence[str], title: str | None = None
) -> Figure:
    """ROC curves with their AUROC: of the second class if there are two, else one against rest.

    `predictions` has the columns y_true (class name) and `prob_<class>` (0 to 1) per class, one
    row per judged unit (aggregate slices to patients first where the task is judged by patient).
    """
    from sklearn.metrics import auc, roc_curve

    fig, ax = plt.subplots(figsize=(COLUMN, COLUMN))
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    shown = classes[1:] if len(classes) == 2 else classes
    for name, colour, dash in zip(shown, COLOURS, itertools.cycle(DASHES), strict=False):
        positive = predictions["y_true"] == name
        label, false_rate, true_rate = f"{spoken(name)}: AUROC undefined", [], []
        if 0 < positive.sum() < len(positive):
            false_rate, true_rate, _ = roc_curve(positive, predictions[f"prob_{name}"])
            label = f"{spoken(name)}: AUROC {auc(false_rate, true_rate):.3f}"
        ax.plot(false_rate, true_rate, color=colour, linestyle=dash, label=label, clip_on=False)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title or "",
        xlabel="false positive rate (1 − specificity)", ylabel="true positive rate (sensitivity)",
    )  # fmt: skip
    ax.legend(loc="lower right", borderaxespad=0.3)
    return fig


# ---------------------------------------------------------------- the comparison


@styled
def main_comparison(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc"
) -> Figure:
    """The study in one figure: a panel per task, a row per backbone, the regimes side by side.

    `table` is long form: task, backbone, pretraining, regime, head, label_fraction (1.0: all
    training patients), metric, value, ci_low, ci_high, sd (over seeds), n_patients, n_images.
    `tasks` maps a task to {"title": str, "chance": float or None}, in the order of the panels.
    Points are values, thin lines 95 % intervals, thick bars one SD over seeds; of the frozen
    heads the linear one is drawn. A random control stands below its pretrained twin, grey and
    hollow. The share of labels used in fine-tuning stands in the panel's title. Combinations
    that are missing stay empty.
    """
    rows = shown_rows(table, tasks, [metric])
    rows = rows[(rows["regime"] != "frozen") | (rows["head"] == "linear")]
    rows = rows.assign(series=_series_names(rows))
    networks = in_order(rows)
    # in the order of REGIMES, and the larger share of labels first
    by = rows.assign(regime=rows["regime"].map(list(REGIMES).index))
    series = by.sort_values(["regime", "label_fraction"], ascending=[True, False])["series"]
    series = series.unique()
    looks = _looks(series)
    fig, axes = _panels(len(tasks), len(networks) * (0.07 + 0.08 * max(len(series), 2)))
    titles = {task: textwrap.fill(card["title"], 28) for task, card in tasks.items()}
    notes = {task: _note(rows[rows["task"] == task]) for task in tasks}
    deepest = max(note.count("\n") + 1 for note in notes.values())
    for ax, (task, card) in zip(axes.flat, tasks.items(), strict=False):
        _draw_task(ax, rows[rows["task"] == task], networks, looks)
        if card["chance"] is not None:
            ax.axvline(card["chance"], color="0.3", linewidth=0.8, linestyle=":", zorder=1)
        ax.set_title(titles[task], pad=5 + 8 * deepest)  # points; room for the note under it
        ax.annotate(
            notes[task], (0, 1), (0, 3), "axes fraction", "offset points", va="bottom",
            fontsize=6.5, color="0.25", linespacing=1.1,
        )  # fmt: skip
    names = [name.replace(" (", "\n(") if len(name) > 24 else name for name in networks["name"]]
    axes[0, 0].set(ylim=(len(names) - 0.5, -0.5))  # the first row on top
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(names)), names, linespacing=0.95)
        for text, random in zip(ax.get_yticklabels(), networks["random"], strict=True):
            text.set_color(GREY if random else "black")
    for ax in axes.flat[max(0, len(tasks) - axes.shape[1]) : len(tasks)]:
        ax.set_xlabel(f"{METRICS[metric]} (95 % interval)")
    chance = any(card["chance"] is not None for card in tasks.values())
    legend_above(fig, *_comparison_legend(rows, looks, chance))
    return fig


# ---------------------------------------------------------------- text


def text_width(text: str, size: float = 7, weight: str = "normal") -> float:
    """Inches that the longest line takes."""
    font = FontProperties(size=size, weight=weight)
    lines = (text_to_path.get_text_width_height_descent(t, font, False) for t in text.split("\n"))
    return max(points for points, _, _ in lines) / 72


def wrapped(text: str, inches: float, size: float, indent: str = "", weight: str = "normal") -> str:
    """The text in lines of at most that many inches; words that are longer are broken."""
    for letters in range(max(int(40 * inches), 2), len(indent) + 1, -1):
        lines = "\n".join(textwrap.wrap(text, letters, subsequent_indent=indent))
        if text_width(lines, size, weight) <= inches:
            break
    return lines


# ---------------------------------------------------------------- parts of the pictures


def _spread(n: int, most: int) -> np.ndarray:
    """Up to `most` of the positions 0 to n-1, spread evenly from the first to the last."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(int)


def _picture_rows(
    images: np.ndarray, rows: Mapping[str, np.ndarray], columns: int, title: str | None
) -> tuple[Figure, np.ndarray]:
    """A figure of rows of pictures: `rows` maps the words at a row's left to its positions."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8, (N, H, W, 3); got {images.dtype} {images.shape}")
    # all sizes are known, in inches: so the pictures fill their places, as no layout engine does
    left, gap = max(text_width(words, 7.5) for words in rows) + 0.12, 0.03
    width = min((PAGE - left) / columns - gap, 1.5)
    height = width * images.shape[1] / images.shape[2]
    full = left + columns * (width + gap)
    heading = wrapped(title or "", full - 0.1, 8, weight="bold")
    top = 0.05 + 0.15 * len(heading.splitlines())
    size = full, top + len(rows) * (height + gap)
    places = {
        "left": left / size[0], "right": 1 - gap / size[0], "wspace": gap / width,
        "top": 1 - top / size[1], "bottom": gap / size[1], "hspace": gap / height,
    }  # fmt: skip
    fig, axes = plt.subplots(
        len(rows), columns, figsize=size, squeeze=False, layout="none", gridspec_kw=places
    )
    for row, (words, members) in zip(axes, rows.items(), strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, index in zip(row, members, strict=False):
            ax.imshow(images[index])
        row[0].set_ylabel(words, rotation=0, ha="right", va="center", labelpad=4)
    fig.text(0.05 / full, 1 - 0.05 / size[1], heading, va="top", fontsize=8, fontweight="bold")
    return fig, axes


def _on_picture(ax: Axes, x: float, y: float, words: str, **look) -> None:
    """White words with a black rim, readable on any picture, on the inside of its edge."""
    ha, va = (
        "center" if at == 0.5 else low if at < 0.5 else high
        for at, low, high in ((x, "left", "right"), (y, "bottom", "top"))
    )  # fmt: skip
    rim = withStroke(linewidth=1.5, foreground="black")
    ax.text(
        x, y, words, transform=ax.transAxes, ha=ha, va=va, color="white", fontsize=6.5,
        path_effects=[rim], **look,
    )  # fmt: skip


# ---------------------------------------------------------------- parts of the comparison


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


def _series_names(rows: pd.DataFrame) -> pd.Series:
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


def _looks(series: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each series: frozen round or triangular, fine-tuned angular."""
    frozen = itertools.cycle([("o", BLUE, 4), ("v", SKY, 4.2), ("^", GREEN, 4.2)])
    tuned = itertools.cycle([("s", VERMILION, 3.6), ("D", ORANGE, 3.4), ("P", BROWN, 4)])
    looks = {}
    for name in series:
        marker, colour, size = next(frozen if name.startswith("frozen") else tuned)
        looks[name] = {"marker": marker, "color": colour, "markersize": size}
    return looks


def _mark(look: dict, random: bool) -> dict:
    """Line2D settings of a value: filled if pretrained, grey and hollow if random."""
    grey = {"color": GREY, "markerfacecolor": "white"} if random else {}
    return look | grey | {"linestyle": "none", "markeredgewidth": 0.8}


def _panels(n: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `n` panels with an area of `height` inches each, sharing both of their axes."""
    columns = {1: 1, 2: 2, 4: 2}.get(n, 3)
    lines = -(-n // columns)
    size = (COLUMN if n == 1 else PAGE, lines * (height + 0.85))  # titles, ticks and axis labels
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    fig.get_layout_engine().set(hspace=0.04)
    for ax in axes.flat:
        ax.tick_params(axis="x", labelbottom=True)
        ax.tick_params(axis="y", length=0)
    for ax in axes.flat[n:]:
        ax.axis("off")
    return fig, axes


def _draw_task(ax: Axes, rows: pd.DataFrame, networks: pd.DataFrame, looks: dict) -> None:
    """Draw one task: rows of backbones, a band behind every other architecture, the series."""
    ax.grid(axis="x")
    for band, (_, twins) in enumerate(networks.groupby("architecture", sort=False)):
        if band % 2 == 0:
            edges = twins.index.min() - 0.5, twins.index.max() + 0.5
            ax.axhspan(*edges, color="0.955", linewidth=0, zorder=0)
    position = {name: i for i, name in enumerate(networks["name"])}
    for (name, random), part in rows.groupby(["series", "random"]):
        mark = _mark(looks[name], random)
        shift = (list(looks).index(name) - (len(looks) - 1) / 2) * 0.8 / len(looks)
        y = part["name"].map(position) + shift
        if part["sd"].notna().any():
            ends = part["value"] - part["sd"], part["value"] + part["sd"]
            ax.hlines(y, *ends, color=mark["color"], linewidth=3.4, alpha=0.4, zorder=2)
        ax.hlines(y, part["ci_low"], part["ci_high"], color=mark["color"], linewidth=0.9)
        ax.plot(part["value"], y, **mark, zorder=4)


def _note(rows: pd.DataFrame) -> str:
    """Under a panel's title: whom the task was tested on, and on what it was fine-tuned."""
    if rows.empty:
        return "no results"
    patients, images = rows["n_patients"].max(), rows["n_images"].max()
    words = f"{patients:,} patients" + (f", {images:,} images" if images != patients else "")
    tuned = rows.loc[rows["series"].isin(["fine-tuned", "LoRA"]), "label_fraction"]
    # where the legend names no shares, all labels were used throughout
    share = f"\nfine-tuned on {100 * tuned.iloc[0]:g} % of labels" if len(tuned) else ""
    return words + (share if (rows["label_fraction"] < 1).any() else "")


def _comparison_legend(rows: pd.DataFrame, looks: dict, chance: bool) -> tuple[list, list[str]]:
    """Handles and words; a series of random weights alone is shown as it is drawn, in grey."""
    only_random = rows.groupby("series")["random"].all()
    entries = {name: Line2D([], [], **_mark(looks[name], only_random[name])) for name in looks}
    if rows["random"].any():
        hollow = [Line2D([], [], **_mark(look, True)) for look in looks.values()]
        entries["random weights"] = tuple(hollow)
    if rows["sd"].notna().any():
        entries["± 1 SD over seeds"] = Line2D([], [], color="0.3", linewidth=3.4, alpha=0.4)
    if chance:
        entries["chance"] = Line2D([], [], color="0.3", linewidth=0.8, linestyle=":")
    return list(entries.values()), list(entries)
