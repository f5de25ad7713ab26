"""The figures in which the study answers: each from a tidy frame, in the house style of `plots`.

Backbones are told apart by family: a colour and a marker for each kind of pretraining and
architecture, and a name at the end of each line. Random weights are grey and hollow here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from medlib import plots
from medlib.plots import COLUMN, METRICS, PAGE, REGIMES

FAMILIES = {  # a colour and a marker: filled where pretrained
    "CNN, ImageNet": (plots.BLUE, "o"),
    "ViT, ImageNet": (plots.GREEN, "^"),
    "DINOv2": (plots.VERMILION, "D"),
    "random weights": (plots.GREY, "o"),
}
BAND = "0.92"  # of an equivalence margin


def family(backbone: str, pretraining: str) -> str:
    """The kind of a backbone: its pretraining, and, of ImageNet's, its architecture."""
    if pretraining == "random":
        return "random weights"
    if pretraining == "dinov2":
        return "DINOv2"
    return "ViT, ImageNet" if backbone.startswith("vit") else "CNN, ImageNet"


def look(kind: str) -> dict:
    """Line2D settings of a family's marks."""
    colour, marker = FAMILIES[kind]
    inside = "white" if kind == "random weights" else colour
    return {"color": colour, "marker": marker, "markerfacecolor": inside, "markersize": 4,
            "markeredgewidth": 0.8}  # fmt: skip


# ---------------------------------------------------------------- figures of the comparison


@plots.styled
def freezing(table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc") -> Figure:
    """What freezing costs: each backbone frozen and fine-tuned on the same labels, a panel a task.

    `table` and `tasks` are as `plots.main_comparison` takes them. A slope leads from the frozen
    network to the fine-tuned one, with both 95 % intervals; a backbone that lacks one of the two
    is left out.
    """
    rows = _linear(table, tasks, metric)
    tuned = rows[rows["regime"] == "finetuned"]
    keys = ["task", "backbone", "label_fraction"]
    pairs = rows[rows["regime"] == "frozen"].merge(tuned, on=keys, suffixes=("", "_tuned"))
    fig, axes = _panels(tasks, 2.1)
    for ax, (task, part) in zip(axes, _by_task(pairs, tasks), strict=True):
        ends, names = [], []
        for step, row in enumerate(part.itertuples()):
            shift = 0.03 * (step - (len(part) - 1) / 2)  # else intervals cover each other
            mark, x = look(row.family), np.array([shift, 1 + shift])
            dashes = "--" if row.family == "random weights" else "-"
            ax.plot(x, [row.value, row.value_tuned], linestyle=dashes, linewidth=1, **mark)
            for at, low, high in ((x[0], row.ci_low, row.ci_high),
                                  (x[1], row.ci_low_tuned, row.ci_high_tuned)):  # fmt: skip
                ax.vlines(at, low, high, color=mark["color"], linewidth=0.7)
            ends.append(row.value_tuned)
            names.append((row.name, mark["color"]))
        ax.set(xlim=(-0.25, 2.15), ylabel=METRICS[metric])
        ax.set_xticks([0, 1], ["frozen", "fine-tuned"])
        ax.grid(axis="y")
        _name_ends(ax, 1.2, ends, names)
        share = "".join(f", {100 * f:g} % of labels" for f in part["label_fraction"].unique()
                        if f < 1)  # fmt: skip
        _titles(
            ax, tasks[task], "no backbone in both regimes" if part.empty else _people(part) + share
        )
    _family_legend(fig, pairs)
    return fig


@plots.styled
def size(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc", margin: float = 0.02
) -> Figure:
    """Does size pay: the metric against the number of parameters, within vision transformers.

    `table` as in `freezing`, with the column `parameters` beside it. A line joins the sizes of one
    family in one regime, on all labels that the regime had. The band is the equivalence margin
    around the smallest of each frozen family: a larger member within it is no better in practice.
    """
    rows = _linear(table, tasks, metric)
    rows = rows[rows["family"].isin(["ViT, ImageNet", "DINOv2"])]
    most = rows.groupby(["task", "backbone", "regime"])["label_fraction"].transform("max")
    rows = rows[rows["label_fraction"] == most].sort_values("parameters")
    fig, axes = _panels(tasks, 1.9)
    for ax, (task, part) in zip(axes, _by_task(rows, tasks), strict=True):
        for (kind, regime), line in part.groupby(["family", "regime"]):
            mark, frozen = look(kind), regime == "frozen"
            x = line["parameters"] / 1e6
            if frozen:
                first = line["value"].iloc[0]
                ax.axhspan(first - margin, first + margin, color=mark["color"], alpha=0.10,
                           linewidth=0)  # fmt: skip
            mark |= {} if frozen else {"markerfacecolor": "white"}
            ax.plot(x, line["value"], linestyle="-" if frozen else ":", **mark)
            ax.vlines(x, line["ci_low"], line["ci_high"], color=mark["color"], linewidth=0.7)
        _log_axis(ax, part["parameters"] / 1e6)
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no band above what can be
        ax.set(xlabel="parameters (millions)", ylabel=METRICS[metric])
        ax.grid(axis="y")
        note = "no vision transformer" if part.empty else _people(part)
        sizes = part.groupby("family")["backbone"].nunique()
        _titles(
            ax, tasks[task], note + (", one size only" if (sizes == 1).all() and len(sizes) else "")
        )
    regimes = [r for r in REGIMES if r in set(rows["regime"])]
    handles, names = _family_handles(rows)
    for regime in regimes:
        frozen = regime == "frozen"
        handles.append(Line2D([], [], color="0.3", marker="o", markersize=4,
                              linestyle="-" if frozen else ":",
                              markerfacecolor="0.3" if frozen else "white"))  # fmt: skip
        names.append(REGIMES[regime])
    handles.append(Patch(color="0.85"))
    names.append(f"± {margin:g} of the smallest, frozen")
    plots.legend_above(fig, handles, names)
    return fig


@plots.styled
def label_efficiency(
    by_seed: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc"
) -> Figure:
    """How many labels does it take: the metric against training patients, a panel a task.

    `by_seed` is `summary.csv`'s long form with the column `train_patients`. A line is the mean over
    draws of patients (seeds) of one backbone, frozen with a linear head; its band reaches from
    the worst draw to the best. Fine-tuned networks are single marks, named in the legend.
    """
    rows = by_seed[(by_seed["metric"] == metric) & by_seed["task"].isin(list(tasks))]
    rows = _named(rows[rows["head"] == "linear"])
    keys = ["task", "backbone", "name", "family", "regime", "label_fraction"]
    points = rows.groupby(keys, as_index=False).agg(
        patients=("train_patients", "mean"), value=("value", "mean"), low=("value", "min"),
        high=("value", "max"), n_patients=("n_patients", "max"), n_images=("n_images", "max"),
    )  # fmt: skip
    fig, axes = _panels(tasks, 2.1)
    for ax, (task, part) in zip(axes, _by_task(points, tasks), strict=True):
        ends, names = [], []
        frozen = part[part["regime"] == "frozen"]
        for (name, kind), line in frozen.groupby(["name", "family"]):
            line, mark = line.sort_values("patients"), look(kind)
            dashes = "--" if kind == "random weights" else "-"
            ax.plot(line["patients"], line["value"], linestyle=dashes, linewidth=1, **mark)
            ax.fill_between(line["patients"], line["low"], line["high"], color=mark["color"],
                            alpha=0.15, linewidth=0)  # fmt: skip
            ends.append(line["value"].iloc[-1])
            names.append((name, mark["color"]))
        for row in part[part["regime"] == "finetuned"].itertuples():
            mark = look(row.family) | {"marker": "X", "markersize": 5, "linestyle": "none"}
            ax.plot(row.patients, row.value, **mark)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter("{0:g}".format))
        ax.set(xlabel="training patients", ylabel=METRICS[metric])
        ax.grid(axis="y")
        if len(frozen):
            low, high = frozen["patients"].min(), frozen["patients"].max()
            span = max(np.log(high / low), np.log(2))
            ax.set_xlim(low * np.exp(-0.08 * span), high * np.exp(1.1 * span))
            shown = frozen["patients"].round().drop_duplicates().sort_values()
            ax.set_xticks([shown.iloc[0], shown.iloc[len(shown) // 2], shown.iloc[-1]])
            ax.set_xticks(shown, minor=True)
            ax.xaxis.set_minor_formatter(NullFormatter())
            _name_ends(ax, high * np.exp(0.06 * span), ends, names)
        _titles(ax, tasks[task], "no results" if part.empty else _people(part))
    handles, names = _family_handles(points)
    if (points["regime"] == "finetuned").any():
        handles.append(Line2D([], [], color="0.3", marker="X", markersize=5, linestyle="none"))
        names.append("fine-tuned")
    handles.append(Patch(color="0.85"))
    names.append("worst to best draw of patients")
    plots.legend_above(fig, handles, names)
    return fig


@plots.styled
def cost(table: pd.DataFrame, metric: str = "auroc") -> Figure:
    """What it costs: the metric, as the mean over tasks, against time, parameters and memory.

    `table` has a row per backbone and regime: backbone, pretraining, regime, value, seconds,
    parameters, memory (bytes). The line is the Pareto front: no other arm is better at that cost.
    """
    rows = _named(table)
    axes_of = {
        "seconds": ("minutes", 60), "parameters": ("parameters (millions)", 1e6),
        "memory": ("peak memory (GiB)", 2**30),
    }  # fmt: skip
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 2.5), sharey=True)
    for ax, (column, (words, unit)) in zip(axes, axes_of.items(), strict=True):
        x = rows[column] / unit
        order = rows.assign(x=x).sort_values(["x", "value"], ascending=[True, False])
        best = order[order["value"] > order["value"].cummax().shift(fill_value=-np.inf)]
        ax.step(best["x"], best["value"], where="post", color="0.6", linewidth=1, zorder=1)
        for at, row in zip(x, rows.itertuples(), strict=True):
            mark = look(row.family)
            if row.regime != "frozen":
                mark |= {"marker": "X", "markersize": 5}
            ax.plot(at, row.value, linestyle="none", **mark)
        for row in best.itertuples():
            ax.annotate(_short(row.name).removesuffix(" (ImageNet)"), (row.x, row.value), (4, -8),
                        fontsize=6, textcoords="offset points", color="0.25")  # fmt: skip
        _log_axis(ax, x)
        ax.margins(y=0.12)
        ax.set_xlabel(words)
        ax.grid(axis="y")
    axes[0].set_ylabel(f"{METRICS[metric]}, mean over tasks")
    handles, names = _family_handles(rows)
    if (rows["regime"] != "frozen").any():
        handles.append(Line2D([], [], color="0.3", marker="X", markersize=5, linestyle="none"))
        names.append("fine-tuned")
    handles.append(Line2D([], [], color="0.6", linewidth=1))
    names.append("Pareto front")
    plots.legend_above(fig, handles, names)
    return fig


@plots.styled
def critical_difference(
    ranks: Mapping[str, pd.Series], tests: Mapping[str, Mapping], note: str = ""
) -> Figure:
    """Mean ranks over tasks, and which of them differ: a panel for each regime.

    `ranks` maps a panel's title to mean ranks indexed by printed names, `tests` to what
    `compare.mean_ranks` says beside them. A bar joins backbones that Nemenyi's test cannot tell
    apart (Demšar, JMLR 7, 2006).
    """
    if not ranks:
        fig, ax = plt.subplots(figsize=(COLUMN, 0.6))
        ax.axis("off")
        ax.text(0, 0.5, "Fewer than two backbones in every task: no ranks.", va="center")
        return fig
    heights = [0.75 + 0.16 * len(values) for values in ranks.values()]
    fig, axes = plt.subplots(
        len(ranks), 1, figsize=(PAGE * 0.75, sum(heights) + 0.2), height_ratios=heights,
        squeeze=False,
    )  # fmt: skip
    for ax, (title, values) in zip(axes[:, 0], ranks.items(), strict=True):
        found, values = tests[title], values.sort_values()
        k, reach = len(values), found["critical_difference"]
        groups = _cliques(values.to_numpy(), reach)
        for step, (first, last) in enumerate(groups):
            y = 0.45 + 0.28 * step
            ax.plot([values.iloc[first] - 0.05, values.iloc[last] + 0.05], [y, y], color="black",
                    linewidth=2.2, solid_capstyle="butt")  # fmt: skip
        top = 0.6 + 0.28 * len(groups)
        half = (k + 1) // 2
        for i, (name, rank) in enumerate(values.items()):
            left = i < half
            y = top + 0.62 * (i if left else k - 1 - i)
            end = 0.9 if left else k + 0.1
            colour = plots.GREY if "random weights" in name else "black"
            ax.plot([rank, rank, end], [0, y, y], color=colour, linewidth=0.7)
            ax.text(end - 0.06 if left else end + 0.06, y, f"{name}  {rank:.2f}" if left else
                    f"{rank:.2f}  {name}", ha="right" if left else "left", va="center",
                    fontsize=6.5, color=colour)  # fmt: skip
        ax.set(xlim=(1 - 0.02, max(k, 2) + 0.02), ylim=(top + 0.62 * half, -0.9))
        ax.xaxis.tick_top()
        ax.set_xticks(range(1, k + 1))
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.spines["top"].set(visible=True, position=("data", 0))
        ax.tick_params(axis="x", pad=1)
        ax.set_yticks([])
        if np.isfinite(reach) and reach < k - 1:
            ax.plot([1, 1 + reach], [-0.75, -0.75], color=plots.VERMILION, linewidth=1.6,
                    clip_on=False)  # fmt: skip
        words = f"critical difference {reach:.2f} ranks"
        if reach >= k - 1:
            words += ": too large for any to be found"
        if np.isfinite(found["p_friedman"]):
            words += f"; Friedman p = {found['p_friedman']:.2g}"
        ax.set_title(f"{title}: {found['n_tasks']} tasks", pad=20)
        ax.annotate(words, (0, 1), (0, 10), "axes fraction", "offset points", fontsize=6.5,
                    color="0.25")  # fmt: skip
    if note:
        plots.caption_below(fig, note)
    return fig


def worth_showing(differences: pd.DataFrame) -> pd.DataFrame:
    """Of all pairs of backbones those that a figure has room for, at the most labels of a regime.

    Pairs of pretrained backbones of different families; where there is none, all pairs.
    """
    rows = differences[differences["contrast"] == "backbones"]
    most = rows.groupby(["task", "one_regime"])["label_fraction"].transform("max")
    rows = rows[rows["label_fraction"] == most]
    kinds = [[family(*pair) for pair in zip(rows[f"{side}_backbone"], rows[f"{side}_pretraining"],
                                            strict=True)] for side in ("one", "other")]  # fmt: skip
    trained = np.array(["random weights" not in pair for pair in zip(*kinds, strict=True)], bool)
    apart = np.array([a != b for a, b in zip(*kinds, strict=True)], bool)
    chosen = trained & apart
    return rows[chosen] if chosen.any() else rows


@plots.styled
def forest(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], margin: float = 0.02,
    unit: str = "AUROC",
) -> Figure:  # fmt: skip
    """Differences with 95 % intervals over the equivalence margin: a panel a task, a row a pair.

    `table` is `compare.differences`', or rows of it: one backbone minus another, or one regime
    minus another of one backbone. Filled round marks differ and squares are equivalent, both after
    correction; hollow ones are neither.
    """
    kind = np.select(
        [table["different"].astype(bool), table["equivalent"].astype(bool)],
        ["different", "equivalent"],
        "neither shown",
    )
    sides = [
        [plots.full_name(*pair) for pair in
         zip(table[f"{side}_backbone"], table[f"{side}_pretraining"], strict=True)]
        for side in ("one", "other")
    ]  # fmt: skip
    labels = [a if a == b else f"{a} − {b}" for a, b in zip(*sides, strict=True)]
    rows = table.assign(kind=kind, label=labels)
    order = list(dict.fromkeys(rows.sort_values(["one_backbone", "other_backbone"])["label"]))
    full = [plots.wrapped(_short(name), 1.9, 6.5) for name in order]
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    room = (PAGE - max(map(plots.text_width, [*full, ""])) - 0.2) / columns - 0.1  # of a panel
    height = 0.3 + sum(0.16 if "\n" not in name else 0.25 for name in full)
    fig, axes = plt.subplots(
        lines, columns, figsize=(PAGE, lines * (height + 0.8)), squeeze=False, sharey=True,
        sharex=True,
    )  # fmt: skip
    looks = {
        "different": ("o", plots.VERMILION, plots.VERMILION),
        "equivalent": ("s", plots.BLUE, plots.BLUE), "neither shown": ("o", "0.35", "white"),
    }  # fmt: skip
    for ax, (task, part) in zip(axes.flat, _by_task(rows, tasks), strict=False):
        ax.axvspan(-margin, margin, color=BAND, linewidth=0, zorder=0)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        for name, (marker, colour, inside) in looks.items():
            some = part[part["kind"] == name]
            y = some["label"].map(order.index)
            ax.hlines(y, some["ci_low"], some["ci_high"], color=colour, linewidth=0.9)
            ax.plot(some["difference"], y, marker, color=colour, markerfacecolor=inside,
                    markersize=3.6, markeredgewidth=0.8)  # fmt: skip
        ax.set_yticks(range(len(order)), full, fontsize=6.5)
        ax.set_ylim(max(len(order), 1) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelbottom=True)
        ax.grid(axis="x")
        _titles(ax, tasks[task], "no pair" if part.empty else _labels(part), room)
        ax.set_xlabel(f"difference in {unit}")
    _empty(axes, len(tasks))
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markerfacecolor=inside,
               markersize=3.6) for marker, colour, inside in looks.values()
    ]  # fmt: skip
    handles.append(Patch(color=BAND))
    plots.legend_above(fig, handles, [*looks, f"± {margin:g}: equivalence margin"])
    regimes = list(dict.fromkeys(zip(rows["one_regime"], rows["other_regime"], strict=True)))
    words = [REGIMES[a] if a == b else f"{REGIMES[a]} minus {REGIMES[b]}" for a, b in regimes]
    if words:
        note = ", ".join(words).capitalize() + ", 95 % intervals over patients."
        plots.caption_below(fig, note)
    return fig


# ---------------------------------------------------------------- figures of one task


@plots.styled
def curves(table: pd.DataFrame, title: str = "") -> Figure:
    """ROC and precision-recall curves with 95 % bands, a line a backbone.

    `table` has the columns backbone, pretraining, curve ("roc" or "pr"), x, y, low, high and area
    (that under this curve, in words: its value with its interval). Bands are pointwise, over
    patients, and drawn for pretrained backbones.
    """
    rows = _named(table)
    shown = list(plots.in_order(rows)["name"])
    dashes = dict(zip(shown, 3 * plots.DASHES, strict=False))
    fig, axes = plt.subplots(1, 2, figsize=(PAGE, 3.1 + 0.13 * len(shown)))
    words = {
        "roc": ("1 − specificity", "sensitivity"), "pr": ("recall", "precision"),
    }  # fmt: skip
    for ax, (kind, (x, y)) in zip(axes, words.items(), strict=True):
        part = rows[rows["curve"] == kind]
        if kind == "roc":
            ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        for colour, name in zip(_colours(rows, shown), shown, strict=True):
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


@plots.styled
def confusion(table: pd.DataFrame, classes: Sequence[str], title: str = "") -> Figure:
    """Confusion matrices, a panel a backbone: which share of a label's samples was called what.

    `table` has the columns backbone, pretraining, label, called, count. A cell shows the share of
    its row and, in matrices of up to four classes, the count.
    """
    rows = _named(table)
    shown = list(plots.in_order(rows)["name"])
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
        ax.set_title(plots.wrapped(_short(name), 0.7 * panel, 6.5, weight="bold"), fontsize=6.5)
        turned = {"rotation": 90} if len(classes) > 4 else {}
        ax.set_xticks(range(len(classes)), map(plots.spoken, classes), fontsize=6, **turned)
        ax.set_yticks(range(len(classes)), map(plots.spoken, classes), fontsize=6)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    _empty(axes, len(shown))
    fig.supylabel("label", fontsize=7.5)
    _label_below(axes, len(shown), "called" + ("; shares in %" if len(classes) > 4 else ""))
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@plots.styled
def reliability(table: pd.DataFrame, title: str = "") -> Figure:
    """Reliability diagrams, a panel a backbone: how often it is right, against how sure it is.

    `table` has a row per backbone and bin of confidence: backbone, pretraining, confidence (mean),
    accuracy, low, high (95 % over patients), count, ece (in words). The grey bars are the share of
    samples in each bin; one of fewer than five has no mark.
    """
    rows = _named(table)
    shown = list(plots.in_order(rows)["name"])
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
        ax.set_title(plots.wrapped(_short(name), PAGE / columns - 0.3, 7) + f"\nECE {ece}",
                     fontsize=6.5)  # fmt: skip
        ax.set(xlim=(0, 1), ylim=(0, 1))
    _empty(axes, len(shown))
    _label_below(axes, len(shown), "confidence")
    fig.supylabel("share that is right", fontsize=7.5)
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@plots.styled
def embeddings(points: pd.DataFrame, classes: Sequence[str], title: str = "") -> Figure:
    """Embeddings in two dimensions, a row a backbone, by label, by patient and by site.

    `points` has the columns backbone, pretraining, x, y, shares (of the variance, in words), label,
    patient and, where it is known, site. Coloured are the eight patients with the most images, and
    the eight sites; a column without any such groups is left out.
    """
    rows = _named(points)
    columns = {"label": list(classes)}
    for name in ("patient", "site"):
        if name in rows:
            sizes = rows.loc[rows["backbone"] == rows["backbone"].iloc[0], name].value_counts()
            sizes = sizes[sizes.index.astype(str) != ""]
            if len(sizes) > 1 and sizes.iloc[0] > 1:
                columns[name] = list(sizes.index[:8])
    shown = list(plots.in_order(rows)["name"])
    fig, axes = plt.subplots(len(shown), len(columns), squeeze=False,
                             figsize=(PAGE, 2.1 * len(shown) + 0.5))  # fmt: skip
    for line, name in zip(axes, shown, strict=True):
        part = rows[rows["name"] == name]
        for ax, (column, groups) in zip(line, columns.items(), strict=True):
            rest = part[~part[column].isin(groups)]
            ax.scatter(rest["x"], rest["y"], s=3, color="0.85", linewidths=0, rasterized=True)
            for group, colour, marker in zip(groups, plots.COLOURS, plots.MARKERS, strict=False):
                some = part[part[column] == group]
                above = 2 - len(some) / len(part)  # small groups are not covered by large ones
                ax.scatter(some["x"], some["y"], s=9 if column != "label" else 5, color=colour,
                           marker=marker, alpha=0.8, linewidths=0, rasterized=len(part) > 3000,
                           zorder=above,
                           label=plots.spoken(group) if column == "label" else group)  # fmt: skip
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(
            plots.wrapped(name, 1.9, 7) + "\n" + part["shares"].iloc[0], fontsize=6.5
        )
    for ax, column in zip(axes[0], columns, strict=True):
        more = "" if column == "label" else ", the largest eight"
        ax.set_title(f"by {column}{more if len(columns[column]) == 8 else ''}")
    for ax in axes[-1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=5.5,
                  columnspacing=0.8, handletextpad=0.2)  # fmt: skip
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@plots.styled
def what_it_sees(
    images: np.ndarray, labels: Sequence[str], colours: Mapping[str, np.ndarray],
    evidence: Mapping[str, np.ndarray], title: str = "",
) -> Figure:  # fmt: skip
    """The same images through several backbones: what lies where in their features.

    `images` is uint8 (n, H, W, 3). `colours` maps a backbone's printed name to its first three
    principal components (n, h, w, 3), 0 to 1, `evidence` to class-activation maps (n, h, w) for the
    image's own label, drawn over it: red speaks for it, blue against.
    """
    n, names = len(images), [*colours, *evidence]
    left = max(
        map(plots.text_width, ["ImageNet", *[plots.wrapped(name, 1.2, 7) for name in names]])
    )
    side = min((PAGE - left - 0.15) / n, 1.3)
    fig, axes = plt.subplots(
        len(names) + 1, n, figsize=(left + 0.15 + n * side, 0.45 + (len(names) + 1) * side),
        squeeze=False,
    )  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image, label in zip(axes[0], images, labels, strict=True):
        ax.imshow(image)
        words = plots.wrapped(plots.spoken(label), side, 6.5)
        ax.set_title(words, fontsize=6.5, fontweight="normal")
    for line, (name, maps) in zip(axes[1:], [*colours.items(), *evidence.items()], strict=True):
        line[0].set_ylabel(
            plots.wrapped(name, 1.2, 7), rotation=0, ha="right", va="center", fontsize=7
        )
        for ax, image, values in zip(line, images, maps, strict=True):
            if name in colours:
                ax.imshow(values, interpolation="nearest")
                continue
            ax.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            most = np.abs(maps).max() or 1
            edges = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
            ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.5, extent=edges,
                      interpolation="bilinear")  # fmt: skip
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    note = "Colours: the first three principal components of local features, over all images."
    if evidence:
        note += " Red and blue: evidence for and against the image's label, by a linear head."
    plots.caption_below(fig, note)
    return fig


@plots.styled
def interval_widths(table: pd.DataFrame, title: str = "") -> Figure:
    """How wide is an honest interval: one metric of one run, by three ways of drawing.

    `table` has the columns way, value, ci_low, ci_high and ratio (of the first width to this one).
    """
    fig, ax = plt.subplots(figsize=(PAGE * 0.7, 0.5 + 0.3 * len(table)))
    y = np.arange(len(table))
    ax.hlines(y, table["ci_low"], table["ci_high"], color=plots.BLUE, linewidth=2.5)
    ax.plot(table["value"], y, "o", color=plots.VERMILION, markersize=3.5)
    ax.set_yticks(y, table["way"])
    for at, row in zip(y, table.itertuples(), strict=True):
        ax.annotate(f"{row.ci_high - row.ci_low:.4f} wide", (1.01, at), va="center", fontsize=6.5,
                    xycoords=("axes fraction", "data"), annotation_clip=False)  # fmt: skip
    ax.set(ylim=(len(table) - 0.5, -0.5), title=title, xlabel="the metric (95 % interval)")
    ax.grid(axis="x")
    return fig


# ---------------------------------------------------------------- parts


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With the columns `name`, as printed, and `family`."""
    weights = list(zip(table["backbone"], table["pretraining"], strict=True))
    return table.assign(
        name=[plots.full_name(*pair) for pair in weights],
        family=[family(*pair) for pair in weights],
    )


def _linear(table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str) -> pd.DataFrame:
    rows = table[(table["metric"] == metric) & table["task"].isin(list(tasks))]
    return _named(rows[rows["head"] == "linear"])


def _colours(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    kinds = rows.drop_duplicates("name").set_index("name")["family"]
    return [FAMILIES[kinds[name]][0] for name in names]


def _by_task(rows: pd.DataFrame, tasks: Mapping[str, Mapping]) -> list[tuple[str, pd.DataFrame]]:
    return [(task, rows[rows["task"] == task]) for task in tasks]


def _panels(tasks: Mapping, height: float) -> tuple[Figure, list[Axes]]:
    """A panel a task, `height` inches each, with axes of their own."""
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(PAGE if columns > 1 else COLUMN, lines * (height + 0.45)),
        squeeze=False,
    )  # fmt: skip
    _empty(axes, len(tasks))
    return fig, list(axes.flat[: len(tasks)])


def _empty(axes: np.ndarray, n: int) -> None:
    """Leave out all panels but the first n; the one above an empty place has the ticks' names."""
    columns = axes.shape[1]
    for at in range(n, axes.size):
        axes.flat[at].axis("off")
        if at >= columns:
            axes.flat[at - columns].tick_params(labelbottom=True)


def _label_below(axes: np.ndarray, n: int, words: str) -> None:
    """What the horizontal axis says, under the last of the first n panels in each column."""
    for ax in axes.flat[max(0, n - axes.shape[1]) : n]:
        ax.set_xlabel(words, fontsize=6.5)


def _titles(ax: Axes, card: Mapping, note: str, width: float = 1.7) -> None:
    """The task's title in lines of at most so many inches, and a note under it."""
    ax.set_title(plots.wrapped(card["title"], width, 7.5, weight="bold"), pad=13, fontsize=7.5)
    ax.annotate(note, (0, 1), (0, 3), "axes fraction", "offset points", va="bottom", fontsize=6.5,
                color="0.25")  # fmt: skip


def _log_axis(ax: Axes, values: pd.Series) -> None:
    """A logarithmic x axis over the values, no narrower than a factor of four, with plain ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter("{0:g}".format))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if len(values):
        middle = np.sqrt(values.min() * values.max())
        reach = max(np.sqrt(values.max() / values.min()) * 1.25, 2)
        ax.set_xlim(middle / reach, middle * reach)


def _labels(rows: pd.DataFrame) -> str:
    shares = sorted(set(rows["label_fraction"]), reverse=True)
    return " and ".join("all labels" if f == 1 else f"{100 * f:g} % of labels" for f in shares)


def _people(rows: pd.DataFrame) -> str:
    return f"{rows['n_patients'].max():,} test patients"


def _name_ends(ax: Axes, x: float, ends: Sequence[float], names: Sequence[tuple[str, str]]) -> None:
    """Names beside the ends of lines, moved apart until none covers another."""
    if not ends:
        return
    low, high = ax.get_ylim()
    box = ax.figure.get_size_inches()[1] / max(len(ax.figure.axes) // 3, 1) * 0.6  # inches, or so
    gap = (high - low) * 0.088 / box
    order = np.argsort(ends)
    places = np.array(ends, dtype=float)[order]
    for _ in range(200):
        apart = np.diff(places)
        close = np.flatnonzero(apart < gap * 0.999)
        if not len(close):
            break
        for i in close:
            push = (gap - (places[i + 1] - places[i])) / 2
            places[i] -= max(push, 0)
            places[i + 1] += max(push, 0)
    for place, i in zip(places, order, strict=True):
        name, colour = names[i]
        words = _short(name).replace(" (ImageNet)", "")
        ax.annotate(words, (x, ends[i]), (x, place), fontsize=5.8, va="center", color=colour,
                    annotation_clip=False)  # fmt: skip
    ax.set_ylim(min(low, places[0] - gap / 2), max(high, places[-1] + gap / 2))


def _short(name: str) -> str:
    return name.replace("architecture", "arch.").replace(" (random weights)", " (random)")


def _family_handles(rows: pd.DataFrame) -> tuple[list, list[str]]:
    names = [name for name in FAMILIES if name in set(rows["family"])]
    return [Line2D([], [], linestyle="none", **look(name)) for name in names], names


def _family_legend(fig: Figure, rows: pd.DataFrame) -> None:
    handles, names = _family_handles(rows)
    if handles:
        plots.legend_above(fig, handles, names)


def _cliques(ranks: np.ndarray, reach: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of sorted ranks that lie within `reach` of each other."""
    runs = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + reach, side="right")) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
