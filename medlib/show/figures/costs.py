"""Figures of what a result costs: size, labels, time and memory."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from medlib.show import names, style
from medlib.show.figures import parts

RIMS = {"finetuned": style.BLACK, "lora": style.VERMILION}  # around marks of trained regimes
RIM = {"markersize": 6, "markeredgewidth": 1.4}
ONE_SIZE = (
    "No family of pretrained vision transformers was run in two sizes, so this grid says "
    "nothing about size. A grid with vit_tiny-imagenet and vit_small-imagenet would show it."
)


@style.styled
def size(
    table: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc", margin: float = 0.02
) -> plt.Figure:
    """The metric against the number of parameters, within vision transformers.

    `table` is as `comparison.main_comparison` takes it, with the column `parameters`. A line joins
    the sizes of one family in one regime, on the most labels of that regime. The band is the
    equivalence margin around the smallest frozen network of each family. Within the band, a larger
    network is no better in practice. A family of one size is not drawn, nor is a task without two
    sizes of a family; without any the figure is one sentence.
    """
    arms = parts.linear(table, tasks, metric)
    arms = arms[arms["backbone"].map(names.is_vit).astype(bool) & (arms["family"] != names.RANDOM)]
    most = arms.groupby(["task", "backbone", "regime"])["label_fraction"].transform("max")
    arms = arms[arms["label_fraction"] == most].sort_values("parameters")
    line = ["task", "family", "regime"]
    arms = arms[arms.groupby(line)["parameters"].transform("nunique") > 1]
    if arms.empty:
        return parts.saying(ONE_SIZE)
    left_out = [card["title"] for task, card in tasks.items() if task not in set(arms["task"])]
    tasks = {task: card for task, card in tasks.items() if task in set(arms["task"])}
    fig, places = parts.panels(arms, tasks, 1.9, metric)
    for ax, card, part in places:
        for (family, regime), line in part.groupby(["family", "regime"]):
            mark, frozen = parts.look(family), regime == "frozen"
            x = line["parameters"] / 1e6
            if frozen:
                first = line["value"].iloc[0]
                band = {"color": mark["color"], "alpha": 0.10, "linewidth": 0}
                ax.axhspan(max(first - margin, 0), min(first + margin, 1), **band)
            mark |= {} if frozen else {"markerfacecolor": "white"}
            ax.plot(x, line["value"], linestyle="-" if frozen else ":", **mark)
            parts.intervals(ax, line, x, mark["color"], "y")
        parts.log_axis(ax, part["parameters"] / 1e6)
        ax.set_xlabel("parameters (millions)")
        parts.titles(ax, card, parts.people(part))
    ends = arms[["value", "ci_low", "ci_high", "procedure_low", "procedure_high"]]
    parts.value_axis(places[0][0], ends, tasks=tasks)
    entries = parts.family_handles(arms)
    for regime in [regime for regime in names.REGIMES if regime in set(arms["regime"])]:
        line, inside = ("-", "0.3") if regime == "frozen" else (":", "white")
        look = {"color": "0.3", "marker": "o", "markersize": 4, "markerfacecolor": inside}
        entries[names.REGIMES[regime]] = plt.Line2D([], [], linestyle=line, **look)
    entries |= parts.interval_entries(arms) | parts.chance_entry(tasks)
    entries[f"± {margin:g} of the smallest, frozen"] = Patch(color="0.85")
    style.legend_above(fig, entries)
    if left_out:
        style.caption_below(fig, f"Without two sizes of one family: {'; '.join(left_out)}.")
    return fig


@style.styled
def label_efficiency(table: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc") -> plt.Figure:
    """The metric against the number of training patients, a panel per task.

    `table` is `summary.csv`'s long form with the column `train_patients`. A line is the mean over
    seeds of one backbone, frozen with a linear head. Its band reaches from the worst seed to the
    best. A seed draws the labelled patients, and also the weights of a random control. A trained
    backbone is a single mark: that of its line, larger and with a rim. All panels have the same
    axis for the metric; each has its own for patients.
    """
    seeds = parts.linear(table, tasks, metric)
    keys = ["task", "backbone", "pretraining", "name", "regime", "label_fraction"]
    columns = {"patients": ("train_patients", "mean"), "value": ("value", "mean")}
    columns |= {"low": ("value", "min"), "high": ("value", "max")}
    columns |= {"n_patients": ("n_patients", "max"), "seeds": ("seed", "nunique")}
    points = seeds.groupby(keys, as_index=False).agg(**columns)
    fig, places = parts.panels(points, tasks, 1.9, metric)
    looks = parts.backbone_looks(points)
    for ax, card, part in places:
        frozen = part[part["regime"] == "frozen"].sort_values("patients")
        for name, line in frozen.groupby("name"):
            ax.plot(line["patients"], line["value"], **looks[name])
            band = {"color": looks[name]["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(line["patients"], line["low"], line["high"], **band)
        span = np.log(max(part["patients"].max() / part["patients"].min(), 2)) if len(part) else 1
        for row in part[part["regime"] != "frozen"].itertuples():
            mark = looks[row.name] | {"linestyle": "none", "markeredgecolor": RIMS[row.regime]}
            aside = list(looks).index(row.name) - (len(looks) - 1) / 2
            x = row.patients * np.exp(span * aside * min(0.05, 0.25 / len(looks)))
            ax.plot(x, row.value, zorder=4, **mark | RIM)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("training patients")
        if len(part):
            low, high = part["patients"].min(), part["patients"].max()
            ax.set_xlim(low * np.exp(-0.08 * span), high * np.exp(0.08 * span))
            shown = part["patients"].dropna().round().unique()
            ax.set_xticks(parts.far_apart(shown, 1.6 * np.log(high / low) / span))
            ax.set_xticks(shown, minor=True)
            ax.xaxis.set_minor_formatter("")
        parts.titles(ax, card, "no results" if part.empty else parts.people(part))
    parts.value_axis(places[0][0], points["low"], points["high"], tasks=tasks)
    entries = parts.backbone_handles(looks)
    for regime in [regime for regime in RIMS if regime in set(points["regime"])]:
        entries[names.REGIMES[regime]] = _rimmed(regime)
    if (points["seeds"] > 1).any():
        entries["worst to best seed"] = Patch(color="0.85")
    style.legend_above(fig, entries | parts.chance_entry(tasks))
    note = "Each panel has its own axis for patients, because data sets differ in size."
    if (points["regime"] != "frozen").any():
        note += " Marks with a rim are moved sideways, so that they do not hide each other."
    style.caption_below(fig, note)
    return fig


def cost_words(arms: pd.DataFrame, left_out: dict[str, str]) -> str:
    """What `costs.comparable` compares, and which regimes it has left out, as sentences."""
    shares = [f"{100 * share:g} %" for share in sorted(arms["label_fraction"].unique())]
    sizes = [f"{size:g}" for size in sorted(arms["image_size"].unique())]
    text = f"All arms of a task have the same labels ({' or '.join(shares)} of them). A backbone "
    text += f"has the same image size in every regime ({' or '.join(sizes)} px)."
    for regime, why in left_out.items():
        text += f" Not comparable, so not drawn: {names.REGIMES[regime]} ({why})."
    return text


@style.styled
def cost(table: pd.DataFrame, metric: str = "auroc", words: str = "") -> plt.Figure:
    """The metric, as the mean over tasks, against time, parameters and memory.

    `table` has a row per backbone and regime: backbone, pretraining, regime, value, seconds,
    parameters, memory (bytes). The line is the Pareto front: no other arm is better at that cost.
    `words` say what the arms have in common (:func:`cost_words`); they stand below.
    """
    arms = parts.named(table)
    if arms.empty:
        return parts.saying(f"No arm was run on every task. {words}".strip())
    costs = {"seconds": ("minutes", 60), "parameters": ("parameters (millions)", 1e6)}
    costs["memory"] = ("peak memory (GiB)", 2**30)
    fig, axes = plt.subplots(1, 3, figsize=(style.PAGE, 2.5), sharey=True)
    looks = {n: k | {"linestyle": "none"} for n, k in parts.backbone_looks(arms).items()}
    for ax, (column, (label, unit)) in zip(axes, costs.items(), strict=True):
        x = arms[column] / unit
        order = arms.assign(x=x).sort_values(["x", "value"], ascending=[True, False])
        best = order[order["value"] > order["value"].cummax().shift(fill_value=-np.inf)]
        ax.step(best["x"], best["value"], where="post", color="0.6", linewidth=1, zorder=1)
        for at, row in zip(x, arms.itertuples(), strict=True):
            mark = looks[row.name]
            if row.regime != "frozen":
                mark = mark | RIM | {"markeredgecolor": RIMS[row.regime]}
            ax.plot(at, row.value, **mark)
        parts.log_axis(ax, x)
        ax.set_xlabel(label)
        ax.grid(axis="y")
    parts.value_axis(axes[0], arms["value"], tasks={})
    axes[0].set_ylabel(f"{names.METRICS[metric]}, mean over tasks")
    entries = parts.backbone_handles(looks)
    for regime in [regime for regime in RIMS if regime in set(arms["regime"])]:
        entries[names.REGIMES[regime]] = _rimmed(regime)
    entries["Pareto front: no arm is better at this cost"] = plt.Line2D(
        [], [], color="0.6", linewidth=1
    )
    style.legend_above(fig, entries)
    if words:
        style.caption_below(fig, words)
    return fig


def _rimmed(regime: str) -> plt.Line2D:
    """The legend's mark of a trained regime."""
    mark = {"color": "0.75", "marker": "o", "linestyle": "none"}
    return plt.Line2D([], [], **mark, **RIM | {"markeredgecolor": RIMS[regime]})
