"""Figures of what a result costs: size, labels, time and memory."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from medlib.show import style
from medlib.show.figures.parts import (
    by_task,
    family_handles,
    linear,
    log_axis,
    look,
    name_ends,
    named,
    panels,
    people,
    short,
    titles,
)
from medlib.show.names import METRICS, REGIMES
from medlib.show.style import PAGE


@style.styled
def size(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc", margin: float = 0.02
) -> Figure:
    """Does size pay: the metric against the number of parameters, within vision transformers.

    `table` as in `freezing`, with the column `parameters` beside it. A line joins the sizes of one
    family in one regime, on all labels that the regime had. The band is the equivalence margin
    around the smallest of each frozen family: a larger member within it is no better in practice.
    """
    rows = linear(table, tasks, metric)
    rows = rows[rows["family"].isin(["ViT, ImageNet", "DINOv2"])]
    most = rows.groupby(["task", "backbone", "regime"])["label_fraction"].transform("max")
    rows = rows[rows["label_fraction"] == most].sort_values("parameters")
    fig, axes = panels(tasks, 1.9)
    for ax, (task, part) in zip(axes, by_task(rows, tasks), strict=True):
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
        log_axis(ax, part["parameters"] / 1e6)
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no band above what can be
        ax.set(xlabel="parameters (millions)", ylabel=METRICS[metric])
        ax.grid(axis="y")
        note = "no vision transformer" if part.empty else people(part)
        sizes = part.groupby("family")["backbone"].nunique()
        titles(
            ax, tasks[task], note + (", one size only" if (sizes == 1).all() and len(sizes) else "")
        )
    regimes = [r for r in REGIMES if r in set(rows["regime"])]
    handles, names = family_handles(rows)
    for regime in regimes:
        frozen = regime == "frozen"
        handles.append(Line2D([], [], color="0.3", marker="o", markersize=4,
                              linestyle="-" if frozen else ":",
                              markerfacecolor="0.3" if frozen else "white"))  # fmt: skip
        names.append(REGIMES[regime])
    handles.append(Patch(color="0.85"))
    names.append(f"± {margin:g} of the smallest, frozen")
    style.legend_above(fig, handles, names)
    return fig


@style.styled
def label_efficiency(
    by_seed: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc"
) -> Figure:
    """How many labels does it take: the metric against training patients, a panel a task.

    `by_seed` is `summary.csv`'s long form with the column `train_patients`. A line is the mean over
    draws of patients (seeds) of one backbone, frozen with a linear head; its band reaches from
    the worst draw to the best. Fine-tuned networks are single marks, named in the legend.
    """
    rows = by_seed[(by_seed["metric"] == metric) & by_seed["task"].isin(list(tasks))]
    rows = named(rows[rows["head"] == "linear"])
    keys = ["task", "backbone", "name", "family", "regime", "label_fraction"]
    points = rows.groupby(keys, as_index=False).agg(
        patients=("train_patients", "mean"), value=("value", "mean"), low=("value", "min"),
        high=("value", "max"), n_patients=("n_patients", "max"), n_images=("n_images", "max"),
    )  # fmt: skip
    fig, axes = panels(tasks, 2.1)
    for ax, (task, part) in zip(axes, by_task(points, tasks), strict=True):
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
            name_ends(ax, high * np.exp(0.06 * span), ends, names)
        titles(ax, tasks[task], "no results" if part.empty else people(part))
    handles, names = family_handles(points)
    if (points["regime"] == "finetuned").any():
        handles.append(Line2D([], [], color="0.3", marker="X", markersize=5, linestyle="none"))
        names.append("fine-tuned")
    handles.append(Patch(color="0.85"))
    names.append("worst to best draw of patients")
    style.legend_above(fig, handles, names)
    return fig


@style.styled
def cost(table: pd.DataFrame, metric: str = "auroc") -> Figure:
    """What it costs: the metric, as the mean over tasks, against time, parameters and memory.

    `table` has a row per backbone and regime: backbone, pretraining, regime, value, seconds,
    parameters, memory (bytes). The line is the Pareto front: no other arm is better at that cost.
    """
    rows = named(table)
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
            ax.annotate(short(row.name).removesuffix(" (ImageNet)"), (row.x, row.value), (4, -8),
                        fontsize=6, textcoords="offset points", color="0.25")  # fmt: skip
        log_axis(ax, x)
        ax.margins(y=0.12)
        ax.set_xlabel(words)
        ax.grid(axis="y")
    axes[0].set_ylabel(f"{METRICS[metric]}, mean over tasks")
    handles, names = family_handles(rows)
    if (rows["regime"] != "frozen").any():
        handles.append(Line2D([], [], color="0.3", marker="X", markersize=5, linestyle="none"))
        names.append("fine-tuned")
    handles.append(Line2D([], [], color="0.6", linewidth=1))
    names.append("Pareto front")
    style.legend_above(fig, handles, names)
    return fig
