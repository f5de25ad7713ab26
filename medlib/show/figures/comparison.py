"""Figures of the comparison: every arm of a task, and frozen against fine-tuned."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medlib.show import style
from medlib.show.figures import parts
from medlib.show.names import METRICS, REGIMES, in_order, series_names, shown_rows
from medlib.show.style import COLUMN, GREY, PAGE, legend_above, styled


@styled
def main_comparison(
    table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc"
) -> Figure:
    """The study in one figure: a panel per task, a row per backbone, the regimes side by side.

    `table` is long form: task, backbone, pretraining, regime, head, label_fraction (1.0: all
    training patients), metric, value, ci_low, ci_high, sd (over seeds), n_patients, n_images.
    `tasks` maps a task to {"title": str, "chance": float or None}, in the order of the panels.
    Points are values, thin lines 95 % intervals, thick bars one SD over seeds. Of the frozen heads
    only the linear one is drawn. A random control stands below its pretrained twin, grey and
    hollow. The panel's title says the share of labels used in fine-tuning. Missing combinations
    stay empty.
    """
    arms = shown_rows(table, tasks, [metric])
    arms = arms[(arms["regime"] != "frozen") | (arms["head"] == "linear")]
    arms = arms.assign(series=series_names(arms))
    networks = in_order(arms)
    # in the order of REGIMES, and the larger share of labels first
    by = arms.assign(regime=arms["regime"].map(list(REGIMES).index))
    series = by.sort_values(["regime", "label_fraction"], ascending=[True, False])["series"]
    series = series.unique()
    looks = _looks(series)
    fig, axes = _panels(len(tasks), len(networks) * (0.07 + 0.08 * max(len(series), 2)))
    titles = {task: textwrap.fill(card["title"], 28) for task, card in tasks.items()}
    notes = {task: _note(part) for task, part in parts.by_task(arms, tasks)}
    deepest = max(note.count("\n") + 1 for note in notes.values())
    for ax, (task, card) in zip(axes.flat, tasks.items(), strict=False):
        _draw_task(ax, arms[arms["task"] == task], networks, looks)
        if card["chance"] is not None:
            ax.axvline(card["chance"], color="0.3", linewidth=0.8, linestyle=":", zorder=1)
        ax.set_title(titles[task], pad=5 + 8 * deepest)  # points; room for the note under it
        parts.note_above(ax, notes[task], 3, va="bottom", linespacing=1.1)
    names = [name.replace(" (", "\n(") if len(name) > 24 else name for name in networks["name"]]
    axes[0, 0].set(ylim=(len(names) - 0.5, -0.5))  # the first row on top
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(names)), names, linespacing=0.95)
        for text, random in zip(ax.get_yticklabels(), networks["random"], strict=True):
            text.set_color(GREY if random else "black")
    for ax in axes.flat[max(0, len(tasks) - axes.shape[1]) : len(tasks)]:
        ax.set_xlabel(f"{METRICS[metric]} (95 % interval)")
    chance = any(card["chance"] is not None for card in tasks.values())
    legend_above(fig, *_comparison_legend(arms, looks, chance))
    return fig


def _looks(series: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each series: frozen round or triangular, fine-tuned angular."""
    frozen = [("o", style.BLUE, 4), ("v", style.SKY, 4.2), ("^", style.GREEN, 4.2)]
    tuned = [("s", style.VERMILION, 3.6), ("D", style.ORANGE, 3.4), ("P", style.BROWN, 4)]
    frozen, tuned = itertools.cycle(frozen), itertools.cycle(tuned)
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
    columns, width = {1: 1, 2: 2, 4: 2}.get(n, 3), COLUMN if n == 1 else PAGE
    shared = {"width": width, "sharex": True, "sharey": True}
    fig, axes = parts.panels_in_rows(n, columns, height + 0.85, **shared)  # with titles and labels
    fig.get_layout_engine().set(hspace=0.04)
    for ax in axes.flat:
        ax.tick_params(axis="x", labelbottom=True)
        ax.tick_params(axis="y", length=0)
    return fig, axes


def _draw_task(ax: Axes, arms: pd.DataFrame, networks: pd.DataFrame, looks: dict) -> None:
    """Draw one task: rows of backbones, a band behind every other architecture, the series."""
    ax.grid(axis="x")
    for band, (_, twins) in enumerate(networks.groupby("architecture", sort=False)):
        if band % 2 == 0:
            edges = twins.index.min() - 0.5, twins.index.max() + 0.5
            ax.axhspan(*edges, color="0.955", linewidth=0, zorder=0)
    position = {name: i for i, name in enumerate(networks["name"])}
    for (name, random), part in arms.groupby(["series", "random"]):
        mark = _mark(looks[name], random)
        shift = (list(looks).index(name) - (len(looks) - 1) / 2) * 0.8 / len(looks)
        y = part["name"].map(position) + shift
        if part["sd"].notna().any():
            ends = part["value"] - part["sd"], part["value"] + part["sd"]
            ax.hlines(y, *ends, color=mark["color"], linewidth=3.4, alpha=0.4, zorder=2)
        ax.hlines(y, part["ci_low"], part["ci_high"], color=mark["color"], linewidth=0.9)
        ax.plot(part["value"], y, **mark, zorder=4)


def _note(arms: pd.DataFrame) -> str:
    """Under a panel's title: whom the task was tested on, and on what it was fine-tuned."""
    if arms.empty:
        return "no results"
    patients, images = arms["n_patients"].max(), arms["n_images"].max()
    words = f"{patients:,} patients" + (f", {images:,} images" if images != patients else "")
    tuned = arms.loc[arms["series"].isin(["fine-tuned", "LoRA"]), "label_fraction"]
    # where the legend names no shares, all labels were used throughout
    share = f"\nfine-tuned on {100 * tuned.iloc[0]:g} % of labels" if len(tuned) else ""
    return words + (share if (arms["label_fraction"] < 1).any() else "")


def _comparison_legend(arms: pd.DataFrame, looks: dict, chance: bool) -> tuple[list, list[str]]:
    """Handles and words; a series of random weights alone is shown as it is drawn, in grey."""
    only_random = arms.groupby("series")["random"].all()
    entries = {name: Line2D([], [], **_mark(looks[name], only_random[name])) for name in looks}
    if arms["random"].any():
        hollow = [Line2D([], [], **_mark(look, True)) for look in looks.values()]
        entries["random weights"] = tuple(hollow)
    if arms["sd"].notna().any():
        entries["± 1 SD over seeds"] = Line2D([], [], color="0.3", linewidth=3.4, alpha=0.4)
    if chance:
        entries["chance"] = Line2D([], [], color="0.3", linewidth=0.8, linestyle=":")
    return list(entries.values()), list(entries)


@styled
def freezing(table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str = "auroc") -> Figure:
    """What freezing costs: each backbone frozen and fine-tuned on the same labels, a panel a task.

    `table` and `tasks` are as `main_comparison` takes them. A slope leads from the frozen
    network to the fine-tuned one, with both 95 % intervals; a backbone without one of the two is
    left out.
    """
    arms = parts.linear(table, tasks, metric)
    tuned = arms[arms["regime"] == "finetuned"]
    keys = ["task", "backbone", "label_fraction"]
    pairs = arms[arms["regime"] == "frozen"].merge(tuned, on=keys, suffixes=("", "_tuned"))
    fig, axes = parts.panels(tasks, 2.1)
    for ax, (task, part) in zip(axes, parts.by_task(pairs, tasks), strict=True):
        ends, labels = [], []
        for step, row in enumerate(part.itertuples()):
            shift = 0.03 * (step - (len(part) - 1) / 2)  # else intervals cover each other
            mark, x = parts.look(row.family), np.array([shift, 1 + shift])
            dashes = parts.dashes(row.family)
            ax.plot(x, [row.value, row.value_tuned], linestyle=dashes, linewidth=1, **mark)
            lows, highs = (row.ci_low, row.ci_low_tuned), (row.ci_high, row.ci_high_tuned)
            for interval in zip(x, lows, highs, strict=True):
                ax.vlines(*interval, color=mark["color"], linewidth=0.7)
            ends.append(row.value_tuned)
            labels.append((row.name, mark["color"]))
        ax.set(xlim=(-0.25, 2.15), ylabel=METRICS[metric])
        ax.set_xticks([0, 1], ["frozen", "fine-tuned"])
        ax.grid(axis="y")
        parts.name_ends(ax, 1.2, ends, labels)
        shares = [share for share in part["label_fraction"].unique() if share < 1]
        note = parts.people(part) + "".join(f", {100 * share:g} % of labels" for share in shares)
        parts.titles(ax, tasks[task], "no backbone in both regimes" if part.empty else note)
    handles, families = parts.family_handles(pairs)
    if handles:
        legend_above(fig, handles, families)
    return fig
