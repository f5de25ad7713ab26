"""Figures of what a result costs: size, labels, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from medlib.show.figures import parts
from medlib.show.names import METRICS, RANDOM, REGIMES, is_vit
from medlib.show.style import PAGE, legend_above, styled


@styled
def size(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc", margin: float = 0.02
) -> Figure:
    """Does size pay: the metric against the number of parameters, within vision transformers.

    `table` is as `comparison.freezing` takes it, with the column `parameters`. A line joins the
    sizes of one family in one regime, on the most labels of that regime. The band is the
    equivalence margin around the smallest of each frozen family: within it, a larger network is no
    better in practice.
    """
    arms = parts.linear(table, tasks, metric)
    arms = arms[arms["backbone"].map(is_vit).astype(bool) & (arms["family"] != RANDOM)]
    most = arms.groupby(["task", "backbone", "regime"])["label_fraction"].transform("max")
    arms = arms[arms["label_fraction"] == most].sort_values("parameters")
    fig, axes = parts.panels(tasks, 1.9)
    for ax, (task, part) in zip(axes, parts.by_task(arms, tasks), strict=True):
        _draw_sizes(ax, part, margin)
        ax.set(xlabel="parameters (millions)", ylabel=METRICS[metric])
        ax.grid(axis="y")
        note = "no vision transformer" if part.empty else parts.people(part)
        sizes = part.groupby("family")["backbone"].nunique()
        one = ", one size only" if (sizes == 1).all() and len(sizes) else ""
        parts.titles(ax, tasks[task], note + one)
    handles, words = parts.family_handles(arms)
    regimes = [regime for regime in REGIMES if regime in set(arms["regime"])]
    for regime in regimes:
        line, inside = ("-", "0.3") if regime == "frozen" else (":", "white")
        look = {"color": "0.3", "marker": "o", "markersize": 4, "markerfacecolor": inside}
        handles.append(Line2D([], [], linestyle=line, **look))
        words.append(REGIMES[regime])
    handles.append(Patch(color="0.85"))
    legend_above(fig, handles, [*words, f"± {margin:g} of the smallest, frozen"])
    return fig


def _draw_sizes(ax: Axes, arms: pd.DataFrame, margin: float) -> None:
    """A line for each family and regime, with a band for each frozen one."""
    for (family, regime), line in arms.groupby(["family", "regime"]):
        mark, frozen = parts.look(family), regime == "frozen"
        x = line["parameters"] / 1e6
        if frozen:
            first = line["value"].iloc[0]
            band = {"color": mark["color"], "alpha": 0.10, "linewidth": 0}
            ax.axhspan(first - margin, first + margin, **band)
        mark |= {} if frozen else {"markerfacecolor": "white"}
        ax.plot(x, line["value"], linestyle="-" if frozen else ":", **mark)
        ax.vlines(x, line["ci_low"], line["ci_high"], color=mark["color"], linewidth=0.7)
    parts.log_axis(ax, arms["parameters"] / 1e6)
    ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no band above what can be


@styled
def label_efficiency(
    by_seed: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc"
) -> Figure:
    """How many labels does it take: the metric against training patients, a panel a task.

    `by_seed` is `summary.csv`'s long form with the column `train_patients`. A line is the mean over
    draws of patients (seeds) of one backbone, frozen with a linear head; its band reaches from
    the worst draw to the best. Fine-tuned networks are single crosses.
    """
    draws = parts.linear(by_seed, tasks, metric)
    keys = ["task", "backbone", "name", "family", "regime", "label_fraction"]
    columns = {"patients": ("train_patients", "mean"), "value": ("value", "mean")}
    columns |= {"low": ("value", "min"), "high": ("value", "max")}
    columns |= {name: (name, "max") for name in ("n_patients", "n_images")}
    points = draws.groupby(keys, as_index=False).agg(**columns)
    fig, axes = parts.panels(tasks, 2.1)
    for ax, (task, part) in zip(axes, parts.by_task(points, tasks), strict=True):
        frozen = part[part["regime"] == "frozen"]
        ends, labels = _draw_draws(ax, frozen)
        for row in part[part["regime"] == "finetuned"].itertuples():
            ax.plot(row.patients, row.value, **parts.look(row.family) | parts.TUNED)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter("{0:g}".format))
        ax.set(xlabel="training patients", ylabel=METRICS[metric])
        ax.grid(axis="y")
        if len(frozen):
            right = _patients_axis(ax, frozen["patients"])
            parts.name_ends(ax, right, ends, labels)
        parts.titles(ax, tasks[task], "no results" if part.empty else parts.people(part))
    handles, words = parts.family_handles(points)
    if (points["regime"] == "finetuned").any():
        parts.add_fine_tuned(handles, words)
    handles.append(Patch(color="0.85"))
    legend_above(fig, handles, [*words, "worst to best draw of patients"])
    return fig


def _draw_draws(ax: Axes, frozen: pd.DataFrame) -> tuple[Sequence[float], Sequence[tuple]]:
    """A line and a band for each backbone; where the lines end, and their names with colours."""
    ends, labels = [], []
    for (name, family), line in frozen.groupby(["name", "family"]):
        line, mark = line.sort_values("patients"), parts.look(family)
        dashes = parts.dashes(family)
        ax.plot(line["patients"], line["value"], linestyle=dashes, linewidth=1, **mark)
        band = {"color": mark["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(line["patients"], line["low"], line["high"], **band)
        ends.append(line["value"].iloc[-1])
        labels.append((name, mark["color"]))
    return ends, labels


def _patients_axis(ax: Axes, patients: pd.Series) -> float:
    """Limits and ticks of a logarithmic axis, with room for names; returns where names begin."""
    low, high = patients.min(), patients.max()
    span = max(np.log(high / low), np.log(2))
    ax.set_xlim(low * np.exp(-0.08 * span), high * np.exp(1.1 * span))
    shown = patients.round().drop_duplicates().sort_values()
    ax.set_xticks([shown.iloc[0], shown.iloc[len(shown) // 2], shown.iloc[-1]])
    ax.set_xticks(shown, minor=True)
    ax.xaxis.set_minor_formatter(NullFormatter())
    return high * np.exp(0.06 * span)


@styled
def cost(table: pd.DataFrame, metric: str = "auroc") -> Figure:
    """What it costs: the metric, as the mean over tasks, against time, parameters and memory.

    `table` has a row per backbone and regime: backbone, pretraining, regime, value, seconds,
    parameters, memory (bytes). The line is the Pareto front: no other arm is better at that cost.
    """
    arms = parts.named(table)
    costs = {
        "seconds": ("minutes", 60),
        "parameters": ("parameters (millions)", 1e6),
        "memory": ("peak memory (GiB)", 2**30),
    }
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 2.5), sharey=True)
    for ax, (column, (words, unit)) in zip(axes, costs.items(), strict=True):
        x = arms[column] / unit
        order = arms.assign(x=x).sort_values(["x", "value"], ascending=[True, False])
        best = order[order["value"] > order["value"].cummax().shift(fill_value=-np.inf)]
        ax.step(best["x"], best["value"], where="post", color="0.6", linewidth=1, zorder=1)
        for at, row in zip(x, arms.itertuples(), strict=True):
            tuned = {"linestyle": "none"} if row.regime == "frozen" else parts.TUNED
            ax.plot(at, row.value, **parts.look(row.family) | tuned)
        for row in best.itertuples():
            name = parts.short(row.name).removesuffix(" (ImageNet)")
            look = {"textcoords": "offset points", "fontsize": 6, "color": "0.25"}
            ax.annotate(name, (row.x, row.value), (4, -8), **look)
        parts.log_axis(ax, x)
        ax.margins(y=0.12)
        ax.set_xlabel(words)
        ax.grid(axis="y")
    axes[0].set_ylabel(f"{METRICS[metric]}, mean over tasks")
    handles, words = parts.family_handles(arms)
    if (arms["regime"] != "frozen").any():
        parts.add_fine_tuned(handles, words)
    handles.append(Line2D([], [], color="0.6", linewidth=1))
    legend_above(fig, handles, [*words, "Pareto front"])
    return fig
