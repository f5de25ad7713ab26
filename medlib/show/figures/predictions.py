"""Figures of predictions: curves, confusion matrices, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medlib.show import names, style
from medlib.show.figures.parts import colours, empty, label_below, look, named, short
from medlib.show.names import spoken
from medlib.show.style import COLOURS, COLUMN, DASHES, PAGE, styled


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


@style.styled
def curves(table: pd.DataFrame, title: str = "") -> Figure:
    """ROC and precision-recall curves with 95 % bands, a line a backbone.

    `table` has the columns backbone, pretraining, curve ("roc" or "pr"), x, y, low, high and area
    (that under this curve, in words: its value with its interval). Bands are pointwise, over
    patients, and drawn for pretrained backbones.
    """
    rows = named(table)
    shown = list(names.in_order(rows)["name"])
    dashes = dict(zip(shown, 3 * style.DASHES, strict=False))
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 3.1 + 0.13 * len(shown)))
    words = {
        "roc": ("1 − specificity", "sensitivity"), "pr": ("recall", "precision"),
    }  # fmt: skip
    for ax, (kind, (x, y)) in zip(axes, words.items(), strict=True):
        part = rows[rows["curve"] == kind]
        if kind == "roc":
            ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        for colour, name in zip(colours(rows, shown), shown, strict=True):
            line = part[part["name"] == name]
            if line.empty:
                continue
            ax.plot(line["x"], line["y"], color=colour, linestyle=dashes[name], linewidth=1,
                    label=f"{name}: {line['area'].iloc[0]}")  # fmt: skip
            if line["family"].iloc[0] != "random weights":
                ax.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15,
                                linewidth=0)  # fmt: skip
        ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize=6)
    axes[0].set_title(title)
    return fig


@style.styled
def confusion(table: pd.DataFrame, classes: Sequence[str], title: str = "") -> Figure:
    """Confusion matrices, a panel a backbone: which share of a label's samples was called what.

    `table` has the columns backbone, pretraining, label, called, count. A cell shows the share of
    its row and, in matrices of up to four classes, the count.
    """
    rows = named(table)
    shown = list(names.in_order(rows)["name"])
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    panel = PAGE / columns
    fig, axes = plt.subplots(lines, columns, figsize=(PAGE, lines * (0.8 * panel + 0.4) + 0.7),
                             squeeze=False, sharex=True, sharey=True)  # fmt: skip
    size = 7 if len(classes) < 5 else 5
    for ax, name in zip(axes.flat, shown, strict=False):
        part = rows[rows["name"] == name]
        counts = part.pivot(index="label", columns="called", values="count")
        counts = counts.reindex(index=classes, columns=classes).to_numpy(dtype=float)
        shares = counts / counts.sum(1, keepdims=True)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*counts.shape):
            share = f"{100 * shares[i, j]:.0f}"
            words = "" if share == "0" else share
            if len(classes) < 5:
                words = f"{share} %\n{counts[i, j]:g}"
            colour = "white" if shares[i, j] > 0.55 else "black"
            ax.text(j, i, words, ha="center", va="center", fontsize=size, color=colour)
        ax.set_title(style.wrapped(short(name), 0.7 * panel, 6.5, weight="bold"), fontsize=6.5)
        turned = {"rotation": 90} if len(classes) > 4 else {}
        ax.set_xticks(range(len(classes)), map(names.spoken, classes), fontsize=6, **turned)
        ax.set_yticks(range(len(classes)), map(names.spoken, classes), fontsize=6)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    empty(axes, len(shown))
    fig.supylabel("label", fontsize=7.5)
    label_below(axes, len(shown), "called" + ("; shares in %" if len(classes) > 4 else ""))
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@style.styled
def reliability(table: pd.DataFrame, title: str = "") -> Figure:
    """Reliability diagrams, a panel a backbone: how often it is right, against how sure it is.

    `table` has a row per backbone and bin of confidence: backbone, pretraining, confidence (mean),
    accuracy, low, high (95 % over patients), count, ece (in words). The grey bars are the share of
    samples in each bin; one of fewer than five has no mark.
    """
    rows = named(table)
    shown = list(names.in_order(rows)["name"])
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(PAGE, lines * 1.95 + 0.3), squeeze=False,
                             sharex=True, sharey=True)  # fmt: skip
    for ax, name in zip(axes.flat, shown, strict=False):
        part = rows[rows["name"] == name].sort_values("confidence")
        mark, ece = look(part["family"].iloc[0]), part["ece"].iloc[0]
        ax.bar(part["confidence"], part["count"] / part["count"].sum(), width=0.05, color="0.85")
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        part = part[part["count"] >= 5]
        ax.vlines(part["confidence"], part["low"], part["high"], color=mark["color"], linewidth=0.8)
        ax.plot(part["confidence"], part["accuracy"], linewidth=0.8, clip_on=False, **mark)
        ax.set_title(style.wrapped(short(name), PAGE / columns - 0.3, 7) + f"\nECE {ece}",
                     fontsize=6.5)  # fmt: skip
        ax.set(xlim=(0, 1), ylim=(0, 1))
    empty(axes, len(shown))
    label_below(axes, len(shown), "confidence")
    fig.supylabel("share that is right", fontsize=7.5)
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@style.styled
def interval_widths(table: pd.DataFrame, title: str = "") -> Figure:
    """How wide is an honest interval: one metric of one run, by three ways of drawing.

    `table` has the columns way, value, ci_low, ci_high and ratio (of the first width to this one).
    """
    fig, ax = plt.subplots(figsize=(PAGE * 0.7, 0.5 + 0.3 * len(table)))
    y = np.arange(len(table))
    ax.hlines(y, table["ci_low"], table["ci_high"], color=style.BLUE, linewidth=2.5)
    ax.plot(table["value"], y, "o", color=style.VERMILION, markersize=3.5)
    ax.set_yticks(y, table["way"])
    for at, row in zip(y, table.itertuples(), strict=True):
        ax.annotate(f"{row.ci_high - row.ci_low:.4f} wide", (1.01, at), va="center", fontsize=6.5,
                    xycoords=("axes fraction", "data"), annotation_clip=False)  # fmt: skip
    ax.set(ylim=(len(table) - 0.5, -0.5), title=title, xlabel="the metric (95 % interval)")
    ax.grid(axis="x")
    return fig
