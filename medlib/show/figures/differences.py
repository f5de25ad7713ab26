"""Figures of differences: ranks over tasks, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from medlib.show import names, style
from medlib.show.figures.parts import BAND, by_task, empty, family, shares_of_labels, short, titles
from medlib.show.names import REGIMES
from medlib.show.style import COLUMN, PAGE


@style.styled
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
            colour = style.GREY if "random weights" in name else "black"
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
            ax.plot([1, 1 + reach], [-0.75, -0.75], color=style.VERMILION, linewidth=1.6,
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
        style.caption_below(fig, note)
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


@style.styled
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
        [names.full_name(*pair) for pair in
         zip(table[f"{side}_backbone"], table[f"{side}_pretraining"], strict=True)]
        for side in ("one", "other")
    ]  # fmt: skip
    labels = [a if a == b else f"{a} − {b}" for a, b in zip(*sides, strict=True)]
    rows = table.assign(kind=kind, label=labels)
    order = list(dict.fromkeys(rows.sort_values(["one_backbone", "other_backbone"])["label"]))
    full = [style.wrapped(short(name), 1.9, 6.5) for name in order]
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    room = (PAGE - max(map(style.text_width, [*full, ""])) - 0.2) / columns - 0.1  # of a panel
    height = 0.3 + sum(0.16 if "\n" not in name else 0.25 for name in full)
    fig, axes = plt.subplots(
        lines, columns, figsize=(PAGE, lines * (height + 0.8)), squeeze=False, sharey=True,
        sharex=True,
    )  # fmt: skip
    looks = {
        "different": ("o", style.VERMILION, style.VERMILION),
        "equivalent": ("s", style.BLUE, style.BLUE), "neither shown": ("o", "0.35", "white"),
    }  # fmt: skip
    for ax, (task, part) in zip(axes.flat, by_task(rows, tasks), strict=False):
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
        titles(ax, tasks[task], "no pair" if part.empty else shares_of_labels(part), room)
        ax.set_xlabel(f"difference in {unit}")
    empty(axes, len(tasks))
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markerfacecolor=inside,
               markersize=3.6) for marker, colour, inside in looks.values()
    ]  # fmt: skip
    handles.append(Patch(color=BAND))
    style.legend_above(fig, handles, [*looks, f"± {margin:g}: equivalence margin"])
    regimes = list(dict.fromkeys(zip(rows["one_regime"], rows["other_regime"], strict=True)))
    words = [REGIMES[a] if a == b else f"{REGIMES[a]} minus {REGIMES[b]}" for a, b in regimes]
    if words:
        note = ", ".join(words).capitalize() + ", 95 % intervals over patients."
        style.caption_below(fig, note)
    return fig


def _cliques(ranks: np.ndarray, reach: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of sorted ranks that lie within `reach` of each other."""
    runs = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + reach, side="right")) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
