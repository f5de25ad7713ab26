"""Figures of predictions: curves, confusion matrices, calibration."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style
from medlib.show.figures import parts
from medlib.stats import prediction


@style.styled
def roc_curves(predictions: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """ROC curves with their AUROC: of the second class if there are two, else one against rest.

    `predictions` has the columns y_true (class name) and `prob_<class>` (0 to 1) per class, one
    row per judged unit (a patient, where a task is judged by patient). In cross-validation (columns
    fold and patient_id) the AUROC is the mean over folds, while the curve pools their scores.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    fig, ax = plt.subplots(figsize=(style.COLUMN, style.COLUMN))
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    shown = classes[1:] if len(classes) == 2 else classes
    looks = zip(style.COLOURS, itertools.cycle(style.DASHES), strict=False)
    for name, (colour, dash) in zip(shown, looks, strict=False):
        positive, score = (predictions["y_true"] == name).to_numpy(), predictions[f"prob_{name}"]
        label, false_rate, true_rate = f"{names.spoken(name)}: AUROC undefined", [], []
        if 0 < positive.sum() < len(positive):
            false_rate, true_rate, _ = roc_curve(positive, score)
            folds = prediction.folds(predictions)
            folds = [(rows, n) for rows, n in folds if 0 < positive[rows].sum() < rows.sum()]
            areas = [roc_auc_score(positive[rows], score[rows]) for rows, _ in folds]
            area = np.average(areas, weights=[share for _, share in folds])
            label = f"{names.spoken(name)}: AUROC {area:.3f}"
        ax.plot(false_rate, true_rate, color=colour, linestyle=dash, label=label, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)
    ax.set_xlabel("false positive rate (1 − specificity)")
    ax.set_ylabel("true positive rate (sensitivity)")
    ax.legend(loc="lower right", borderaxespad=0.3)
    return fig


@style.styled
def curves(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """ROC and precision-recall curves with 95 % bands, a line a backbone.

    `table` has the columns backbone, pretraining, curve ("roc" or "pr"), x, y, low, high and area
    (that under this curve, in words: its value with its interval). Bands are pointwise, over
    patients, and drawn for pretrained backbones.
    """
    lines = parts.by_backbone(table)
    fig, axes = plt.subplots(1, 2, figsize=(style.PAGE, 3.1 + 0.13 * len(lines)))
    axes[0].plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    words = {"roc": ("1 − specificity", "sensitivity"), "pr": ("recall", "precision")}
    for ax, (kind, (x, y)) in zip(axes, words.items(), strict=True):
        for (name, line), dash in zip(lines.items(), itertools.cycle(style.DASHES), strict=False):
            line = line[line["curve"] == kind]
            family, area = line[["family", "area"]].iloc[0]
            colour = parts.look(family)["color"]
            look = {"color": colour, "linestyle": dash, "linewidth": 1}
            ax.plot(line["x"], line["y"], label=f"{name}: {area}", **look)
            if family != names.RANDOM:
                band = {"color": colour, "alpha": 0.15, "linewidth": 0}
                ax.fill_between(line["x"], line["low"], line["high"], **band)
        ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=6)
    axes[0].set_title(title)
    return fig


@style.styled
def confusion(table: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """Confusion matrices, one panel for each backbone, as shares of the samples of each label.

    `table` has the columns backbone, pretraining, label, called, count. A cell shows the share of
    its row and, in matrices of up to four classes, the count.
    """
    rows = parts.by_backbone(table)
    columns = min(len(rows), 4)
    panel = style.PAGE / columns
    fig, axes = parts.panels_in_rows(len(rows), columns, 0.8 * panel + 0.4, 0.7, **parts.SHARED)
    for ax, (name, part) in zip(axes.flat, rows.items(), strict=False):
        counts = part.pivot(index="label", columns="called", values="count")
        counts = counts.reindex(index=classes, columns=classes).to_numpy(dtype=float)
        shares, few = counts / counts.sum(1, keepdims=True), len(counts) < 5
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*counts.shape):
            share, dark = f"{100 * shares[i, j]:.0f}", shares[i, j] > 0.55
            words = f"{share} %\n{counts[i, j]:g}" if few else "" if share == "0" else share
            look = {"color": "white" if dark else "black", "fontsize": 7 if few else 5}
            ax.text(j, i, words, ha="center", va="center", **look)
        name = style.wrapped(parts.short(name), 0.7 * panel, 6.5, weight="bold")
        ax.set_title(name, fontsize=6.5)
        turned = {"rotation": 90} if len(classes) > 4 else {}
        ax.set_xticks(range(len(classes)), map(names.spoken, classes), fontsize=6, **turned)
        ax.set_yticks(range(len(classes)), map(names.spoken, classes), fontsize=6)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    fig.supylabel("label", fontsize=7.5)
    words = "called" + ("; shares in %" if len(classes) > 4 else "")
    parts.label_below(axes, len(rows), words)
    style.title_above(fig, title)
    return fig


@style.styled
def reliability(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """Reliability diagrams, one panel for each backbone: accuracy against confidence.

    `table` has a row per backbone and bin of confidence: backbone, pretraining, confidence (mean),
    accuracy, low, high (95 % over patients), count, ece (in words). The grey bars are the share of
    samples in each bin; a bin of fewer than five samples has no mark.
    """
    rows = parts.by_backbone(table)
    columns = min(len(rows), 4)
    fig, axes = parts.panels_in_rows(len(rows), columns, 1.95, 0.3, **parts.SHARED)
    for ax, (name, bins) in zip(axes.flat, rows.items(), strict=False):
        bins = bins.sort_values("confidence")
        mark, ece = parts.look(bins["family"].iloc[0]), bins["ece"].iloc[0]
        ax.bar(bins["confidence"], bins["count"] / bins["count"].sum(), width=0.05, color="0.85")
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        bins = bins[bins["count"] >= 5]
        ax.vlines(bins["confidence"], bins["low"], bins["high"], color=mark["color"], linewidth=0.8)
        ax.plot(bins["confidence"], bins["accuracy"], linewidth=0.8, clip_on=False, **mark)
        name = style.wrapped(parts.short(name), style.PAGE / columns - 0.3, 7)
        ax.set_title(f"{name}\nECE {ece}", fontsize=6.5)
        ax.set(xlim=(0, 1), ylim=(0, 1))
    parts.label_below(axes, len(rows), "confidence")
    fig.supylabel("share that is right", fontsize=7.5)
    style.title_above(fig, title)
    return fig


@style.styled
def interval_widths(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """How wide is an honest interval: one metric of one run, by three ways of drawing.

    `table` has the columns way, value, ci_low, ci_high and ratio (of the first width to this one).
    """
    fig, ax = plt.subplots(figsize=(style.PAGE * 0.7, 0.5 + 0.3 * len(table)))
    y = np.arange(len(table))
    ax.hlines(y, table["ci_low"], table["ci_high"], color=style.BLUE, linewidth=2.5)
    ax.plot(table["value"], y, "o", color=style.VERMILION, markersize=3.5)
    ax.set_yticks(y, table["way"])
    beside = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
    for at, row in zip(y, table.itertuples(), strict=True):
        words = f"{row.ci_high - row.ci_low:.4f} wide"
        ax.annotate(words, (1.01, at), va="center", fontsize=6.5, **beside)
    ax.set(ylim=(len(table) - 0.5, -0.5), title=title, xlabel="the metric (95 % interval)")
    ax.grid(axis="x")
    return fig
