"""Figures of what a result costs: size, labels, time and memory."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from medlib.show import names, style
from medlib.show.figures import parts

NO_SIZES = (
    "There are no two sizes of one vision transformer, so nothing can be said about size.\nRun two "
    "rows of one family, such as vit_tiny-imagenet and vit_small-imagenet: notebook 03 or a grid."
)


@style.styled
def size(
    table: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc", margin: float = 0.02
) -> plt.Figure:
    """The metric against the number of parameters, within vision transformers.

    `table` is as `comparison.main_comparison` takes it, with the column `parameters`. A line joins
    the sizes of one family in one regime, on the most labels of that regime. The band is the
    equivalence margin around the smallest frozen network of each family. Within the band, a larger
    network is no better in practice. If no family has two sizes, the figure is a sentence.
    """
    arms = parts.linear(table, tasks, metric)
    arms = arms[arms["backbone"].map(names.is_vit).astype(bool) & (arms["family"] != names.RANDOM)]
    most = arms.groupby(["task", "backbone", "regime"])["label_fraction"].transform("max")
    arms = arms[arms["label_fraction"] == most].sort_values("parameters")
    if not (arms.groupby(["task", "family", "regime"])["backbone"].nunique() > 1).any():
        return parts.saying(NO_SIZES)
    fig, places = parts.panels(arms, tasks, 1.9)
    for ax, card, part in places:
        for (family, regime), line in part.groupby(["family", "regime"]):
            mark, frozen = parts.look(family), regime == "frozen"
            x = line["parameters"] / 1e6
            if frozen:
                first = line["value"].iloc[0]
                band = {"color": mark["color"], "alpha": 0.10, "linewidth": 0}
                ax.axhspan(first - margin, first + margin, **band)
            mark |= {} if frozen else {"markerfacecolor": "white"}
            ax.plot(x, line["value"], linestyle="-" if frozen else ":", **mark)
            parts.intervals(ax, line, x, mark["color"], "y")
        parts.log_axis(ax, part["parameters"] / 1e6)
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no band above the highest possible value
        ax.set(xlabel="parameters (millions)", ylabel=names.METRICS[metric])
        ax.grid(axis="y")
        note = "no pretrained vision transformer" if part.empty else parts.people(part)
        sizes = part.groupby("family")["backbone"].nunique()
        one = ", one size only" if (sizes == 1).all() and len(sizes) else ""
        parts.titles(ax, card, note + one)
    entries = parts.family_handles(arms)
    for regime in [regime for regime in names.REGIMES if regime in set(arms["regime"])]:
        line, inside = ("-", "0.3") if regime == "frozen" else (":", "white")
        look = {"color": "0.3", "marker": "o", "markersize": 4, "markerfacecolor": inside}
        entries[names.REGIMES[regime]] = plt.Line2D([], [], linestyle=line, **look)
    entries |= parts.interval_entries()
    entries[f"± {margin:g} of the smallest, frozen"] = Patch(color="0.85")
    style.legend_above(fig, entries)
    return fig


@style.styled
def label_efficiency(table: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc") -> plt.Figure:
    """The metric against the number of training patients, a panel per task.

    `table` is `summary.csv`'s long form with the column `train_patients`. A line is the mean over
    seeds of one backbone, frozen with a linear head. Its band reaches from the worst seed to the
    best. A seed draws the labelled patients, and also the weights of a random control. Fine-tuned
    networks are single crosses.
    """
    seeds = parts.linear(table, tasks, metric)
    keys = ["task", "backbone", "name", "family", "regime", "label_fraction"]
    columns = {"patients": ("train_patients", "mean"), "value": ("value", "mean")}
    columns |= {"low": ("value", "min"), "high": ("value", "max")}
    columns["n_patients"] = ("n_patients", "max")
    points = seeds.groupby(keys, as_index=False).agg(**columns)
    fig, places = parts.panels(points, tasks, 2.1)
    for ax, card, part in places:
        frozen, ends = part[part["regime"] == "frozen"], []
        for (name, family), line in frozen.groupby(["name", "family"]):
            line, mark = line.sort_values("patients"), parts.line_look(family)
            ax.plot(line["patients"], line["value"], **mark)
            band = {"color": mark["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(line["patients"], line["low"], line["high"], **band)
            ends.append((line["value"].iloc[-1], name, mark["color"]))
        for row in part[part["regime"] == "finetuned"].itertuples():
            ax.plot(row.patients, row.value, **parts.look(row.family) | parts.TUNED)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="training patients", ylabel=names.METRICS[metric])
        ax.grid(axis="y")
        if len(frozen):
            low, high = frozen["patients"].min(), frozen["patients"].max()
            span = max(np.log(high / low), np.log(2))
            ax.set_xlim(low * np.exp(-0.08 * span), high * np.exp(1.1 * span))  # room for names
            shown = frozen["patients"].round().drop_duplicates().sort_values()
            ax.set_xticks([shown.iloc[0], shown.iloc[len(shown) // 2], shown.iloc[-1]])
            ax.set_xticks(shown, minor=True)
            ax.xaxis.set_minor_formatter("")
            parts.name_ends(ax, high * np.exp(0.06 * span), ends)
        parts.titles(ax, card, "no results" if part.empty else parts.people(part))
    entries = parts.family_handles(points, (points["regime"] == "finetuned").any())
    style.legend_above(fig, entries | {"worst to best seed": Patch(color="0.85")})
    return fig


@style.styled
def cost(table: pd.DataFrame, metric: str = "auroc") -> plt.Figure:
    """The metric, as the mean over tasks, against time, parameters and memory.

    `table` has a row per backbone and regime: backbone, pretraining, regime, value, seconds,
    parameters, memory (bytes). The line is the Pareto front: no other arm is better at that cost.
    """
    arms = parts.named(table)
    costs = {"seconds": ("minutes", 60), "parameters": ("parameters (millions)", 1e6)}
    costs["memory"] = ("peak memory (GiB)", 2**30)
    fig, axes = plt.subplots(1, 3, figsize=(style.PAGE, 2.5), sharey=True)
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
    axes[0].set_ylabel(f"{names.METRICS[metric]}, mean over tasks")
    entries = parts.family_handles(arms, (arms["regime"] != "frozen").any())
    entries["Pareto front"] = plt.Line2D([], [], color="0.6", linewidth=1)
    style.legend_above(fig, entries)
    return fig
