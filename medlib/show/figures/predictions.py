"""Figures of predictions: curves, confusion matrices, calibration."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style
from medlib.show.figures import parts
from medlib.stats import prediction

BARS = "0.88"
RAW_MARK = {"color": "0.7", "marker": "s", "markersize": 2.5, "linestyle": "--", "linewidth": 0.8}


@style.styled
def roc_curves(predictions: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """ROC curves with their AUROC: of the second class of two, else of each class against the rest.

    `predictions` has the columns y_true (class name) and `prob_<class>` (0 to 1) per class, one row
    per judged unit (a patient, where a task is judged by patient). In cross-validation (columns
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
    """ROC and precision-recall curves with 95 % bands, a line per backbone.

    `table` has the columns backbone, pretraining, curve ("roc" or "pr"), x, y, low, high and area
    (a text: the area under this curve with its interval). Bands are pointwise, over patients.
    """
    lines = parts.by_backbone(table)
    fig, axes = plt.subplots(1, 2, figsize=(style.PAGE, 3.2 + 0.13 * len(lines)))
    axes[0].plot([0, 1], [0, 1], **parts.CHANCE)
    words = {"roc": ("1 − specificity", "sensitivity", "AUROC")}
    words["pr"] = ("recall", "precision", "AUPRC")
    for ax, (kind, (x, y, of)) in zip(axes, words.items(), strict=True):
        for (name, line), dash in zip(lines.items(), itertools.cycle(style.DASHES), strict=False):
            line = line[line["curve"] == kind]
            family, area = line[["family", "area"]].iloc[0]
            colour = parts.look(family)["color"]
            look = {"color": colour, "linestyle": dash, "linewidth": 1}
            ax.plot(line["x"], line["y"], label=f"{parts.short(name)}: {area}", **look)
            band = {"color": colour, "alpha": 0.15, "linewidth": 0}
            ax.fill_between(line["x"], line["low"], line["high"], **band)
        ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=x, ylabel=y)
        look = {"title": f"{of} [95 % interval]", "title_fontsize": 6.5, "alignment": "left"}
        ax.legend(loc="upper left", bbox_to_anchor=(-0.03, -0.14), fontsize=6, **look)
    style.title_above(fig, title)
    style.caption_below(fig, "Bands: pointwise 95 % intervals over test patients. Dotted: chance.")
    return fig


@style.styled
def confusion(table: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """Confusion matrices, one panel for each backbone, as shares of the samples of each label.

    `table` has the columns backbone, pretraining, label, called, count. A cell shows the share of
    its row and, in matrices of up to four classes, the count.
    """
    rows = parts.by_backbone(table)
    columns = min(len(rows), 4)
    panel = style.PAGE / max(columns, 3)  # one or two networks do not fill the page
    size = {"width": max(columns * panel, style.COLUMN)}
    shape = len(rows), columns, 0.8 * panel + 0.4, 0.7
    fig, axes = parts.panels_in_rows(*shape, **size, **parts.SHARED)
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
    fig.supylabel("true class", fontsize=7.5)
    parts.label_below(axes, len(rows), "predicted class")
    style.title_above(fig, title)
    words = "Numbers: shares of the true class in %; below 0.5 % a cell is empty."
    if len(classes) < 5:
        words = "Numbers: the share of the true class, and the samples (the mean over seeds)."
    style.caption_below(fig, words)
    return fig


@style.styled
def reliability(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """Reliability diagrams, one panel for each backbone: accuracy against confidence.

    `table` has a row per backbone, kind of probabilities and bin of confidence: backbone,
    pretraining, probabilities ("raw" or another), confidence (mean), accuracy, low, high (95 % over
    patients), count, ece (in words). Raw probabilities are grey. The grey bars are the share of
    samples in each bin of raw confidence; a bin of fewer than five samples has no mark.
    """
    rows = parts.by_backbone(table)
    columns = min(len(rows), 4)
    fig, axes = parts.panels_in_rows(len(rows), columns, 2.15, 0.45, **parts.SHARED)
    for ax, (name, bins) in zip(axes.flat, rows.items(), strict=False):
        ax.plot([0, 1], [0, 1], **parts.CHANCE)
        words = [style.wrapped(parts.short(name), style.PAGE / columns - 0.3, 7)]
        for kind in dict.fromkeys(bins["probabilities"]):
            own = bins[bins["probabilities"] == kind].sort_values("confidence")
            look = parts.look(own["family"].iloc[0]) | {"linewidth": 0.8}
            if kind == "raw":
                look, shares = RAW_MARK, own["count"] / own["count"].sum()
                ax.bar(own["confidence"], shares, width=0.05, color=BARS)
            words.append(f"{kind}: ECE {own['ece'].iloc[0]}")
            own = own[own["count"] >= 5]
            ends = own["confidence"], own["low"], own["high"]
            ax.vlines(*ends, color=look["color"], linewidth=0.8)
            ax.plot(own["confidence"], own["accuracy"], clip_on=False, **look)
        ax.set_title("\n".join(words), fontsize=6.5)
        ax.set(xlim=(0, 1), ylim=(0, 1))
    parts.label_below(axes, len(rows), "confidence")
    fig.supylabel("accuracy; bars: share of samples", fontsize=7.5)
    entries = {"raw": plt.Line2D([], [], **RAW_MARK)}
    entries["calibrated (coloured by family)"] = plt.Line2D([], [], color="black", marker="o")
    entries["95 % over test patients"] = plt.Line2D([], [], color="0.3", marker="|", linestyle="")
    entries["share of samples in a bin (raw)"] = plt.Rectangle((0, 0), 1, 1, color=BARS)
    entries["accuracy = confidence"] = plt.Line2D([], [], **parts.CHANCE)
    style.legend_above(fig, entries, title)
    note = "Confidence: the probability of the predicted class. ECE: expected calibration error. "
    note += "A bin of fewer than five samples has a bar but no mark."
    style.caption_below(fig, note)
    return fig


@style.styled
def decision_curves(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """Decision curves, a panel for each class, a line for each backbone, with 95 % bands.

    `table` has the columns of `operating.net_benefit`, backbone and pretraining. The net benefit of
    calling every sample (grey) and no sample (0) is drawn, too. Bands are pointwise, over patients.
    """
    classes = list(dict.fromkeys(table["class"]))
    columns = min(len(classes), 4)
    fig, axes = parts.panels_in_rows(len(classes), columns, 2.6 - 0.15 * columns, 0.3, sharex=True)
    entries: dict[str, object] = {"calling all": plt.Line2D([], [], color="0.6", linewidth=1)}
    entries["calling none"] = plt.Line2D([], [], color="black", linewidth=0.8)
    for ax, label in zip(axes.flat, classes, strict=False):
        own = table[table["class"] == label]
        every = own.drop_duplicates("threshold")
        top = max(every["all"].max(), own["high"].max())
        ax.plot(every["threshold"], every["all"], color="0.6", linewidth=1)
        ax.axhline(0, color="black", linewidth=0.8)
        lines = zip(parts.by_backbone(own).items(), itertools.cycle(style.DASHES), strict=False)
        for (name, line), dash in lines:
            family = line["family"].iloc[0]
            look = {"color": parts.look(family)["color"], "linestyle": dash, "linewidth": 1}
            (drawn,) = ax.plot(line["threshold"], line["net_benefit"], **look)
            entries.setdefault(parts.short(name), drawn)
            band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(line["threshold"], line["low"], line["high"], **band)
        ax.set(xlim=(0, 1), ylim=(-0.12 * top, 1.05 * top))
        ax.set_title(names.spoken(label), fontsize=7)
    parts.label_below(axes, len(classes), "threshold probability")
    fig.supylabel("net benefit", fontsize=7.5)
    style.legend_above(fig, entries, title)
    style.caption_below(fig, "Bands: pointwise 95 % intervals over test patients.")
    return fig


@style.styled
def interval_widths(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """The width of the interval of one metric of one run, for three ways of drawing.

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
