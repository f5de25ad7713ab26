"""Figures of differences: ranks over tasks, and paired differences."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from medlib.show import names, style
from medlib.show.figures import parts

# How a difference is drawn, by what is shown of it.
LOOKS = {"different": {"marker": "o", "color": style.VERMILION}}
LOOKS["equivalent"] = {"marker": "s", "color": style.BLUE}
LOOKS["neither shown"] = {"marker": "o", "color": "0.35", "markerfacecolor": "white"}
NO_PAIRS = (
    "There is no pair of arms to compare here. A pair is two backbones in one regime, or one "
    "backbone in two.\nNotebook 03 runs a frozen backbone, and notebook 04 fine-tunes one."
)
MARK = {"linestyle": "none", "markersize": 3.6}
RANKS = (
    "Mean ranks over tasks; 1 is the best. Orange: the critical difference. A black bar joins "
    "backbones that cannot be told apart. Grey: random weights."
)


@style.styled
def critical_difference(
    ranks: Mapping[str, pd.Series], tests: Mapping[str, Mapping], note: str = ""
) -> plt.Figure:
    """Mean ranks over tasks, and which of them differ: a panel for each regime.

    `ranks` maps a panel's title to mean ranks indexed by printed names, `tests` to the test of
    `differences.ranks_by_regime`. A bar joins backbones that Nemenyi's test cannot tell apart
    (Demšar, JMLR 7, 2006). The orange line above the axis is as long as the critical difference.
    """
    if not ranks:
        return parts.saying("There are no ranks: they need two tasks, and two backbones in all.")
    heights = [0.75 + 0.16 * len(values) for values in ranks.values()]
    size = {"figsize": (style.PAGE * 0.75, sum(heights) + 0.2), "height_ratios": heights}
    fig, axes = plt.subplots(len(ranks), 1, squeeze=False, **size)
    fig.get_layout_engine().set(w_pad=0.15)  # names end where ranks do: the layout is near only
    for ax, (title, values) in zip(axes[:, 0], ranks.items(), strict=True):
        test, values = tests[title], values.sort_values()
        k, reach = len(values), test["critical_difference"]
        _draw_ranks(ax, values, reach)
        if np.isfinite(reach) and reach < k - 1:
            look = {"color": style.ORANGE, "linewidth": 1.6, "clip_on": False}
            ax.plot([1, 1 + reach], [-0.75, -0.75], **look)
        words = f"critical difference {reach:.2f} ranks"
        if reach >= k - 1:
            words += ": too large for any difference to be found"
        if np.isfinite(test["p_friedman"]):
            words += f"; Friedman p = {test['p_friedman']:.2g}"
        words = style.wrapped(words, 2.6, 6.5)
        ax.set_title(f"{title}: {test['n_tasks']} tasks", pad=12 + 9 * len(words.splitlines()))
        parts.note_above(ax, words, 10, va="bottom", in_layout=False)
    style.caption_below(fig, f"{RANKS} {note}".strip())
    return fig


def _draw_ranks(ax: plt.Axes, values: pd.Series, reach: float) -> None:
    """An axis of ranks on top, names at both sides, and bars over what is within `reach`."""
    groups = _cliques(values.to_numpy(), reach)
    for step, (first, last) in enumerate(groups):
        y, x = 0.45 + 0.28 * step, [values.iloc[first] - 0.05, values.iloc[last] + 0.05]
        ax.plot(x, [y, y], color="black", linewidth=2.2, solid_capstyle="butt")
    k, top = len(values), 0.6 + 0.28 * len(groups)
    half = (k + 1) // 2
    for i, (name, rank) in enumerate(values.items()):
        left = i < half
        y, end = top + 0.62 * (i if left else k - 1 - i), 0.9 if left else k + 0.1
        colour = style.GREY if names.RANDOM in name else "black"
        ax.plot([rank, rank, end], [0, y, y], color=colour, linewidth=0.7)
        words = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
        look = {"ha": "right" if left else "left", "fontsize": 6.5, "color": colour}
        ax.text(end - 0.06 if left else end + 0.06, y, words, va="center", **look)
    ax.set(xlim=(1 - 0.02, max(k, 2) + 0.02), ylim=(top + 0.62 * half, -0.9))
    ax.xaxis.tick_top()
    ax.set_xticks(range(1, k + 1))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.spines["top"].set(visible=True, position=("data", 0))
    ax.tick_params(axis="x", pad=1)
    ax.set_yticks([])


def worth_showing(differences: pd.DataFrame) -> pd.DataFrame:
    """The pairs of backbones that a figure has room for, at the largest label fraction of a regime.

    These are the pairs of pretrained backbones of different families. If there are none, all pairs
    are shown.
    """
    pairs = differences[differences["contrast"] == "backbones"]
    most = pairs.groupby(["task", "one_regime"])["label_fraction"].transform("max")
    pairs = pairs[pairs["label_fraction"] == most]
    families = zip(*(_each(names.family, pairs, side) for side in ("one", "other")), strict=True)
    chosen = [one != other and names.RANDOM not in (one, other) for one, other in families]
    return pairs[chosen] if any(chosen) else pairs


def _each(function, table: pd.DataFrame, side: str) -> list[str]:
    """A function of backbone and pretraining, for each row of one side of the differences."""
    return list(map(function, table[f"{side}_backbone"], table[f"{side}_pretraining"]))


@style.styled
def forest(table: pd.DataFrame, tasks: names.Tasks, margin: float = 0.02) -> plt.Figure:
    """Differences with 95 % intervals and the equivalence margin: panels are tasks, rows are pairs.

    `table` has rows of `differences.differences`: one backbone minus another, or one regime minus
    another of one backbone. A thick bar is the interval over test patients. A thin line is the
    interval of the procedure; it is missing if there was only one training. A filled round mark is
    a difference, a square is an equivalence, a hollow mark is neither. All are judged by the
    procedure, after correction. Words below each panel say which side favours whom. If there is no
    pair, the figure is a sentence.
    """
    if table.empty:
        return parts.saying(NO_PAIRS)
    shown = [table["different"].astype(bool), table["equivalent"].astype(bool)]
    sides = zip(*(_each(names.full_name, table, side) for side in ("one", "other")), strict=True)
    labels = [one if one == other else f"{one} − {other}" for one, other in sides]
    if table[["one_regime", "other_regime"]].drop_duplicates().shape[0] > 1:  # LoRA as well
        own = table["one_regime"].map(names.REGIMES)
        labels = [f"{name}, {regime}" for name, regime in zip(labels, own, strict=True)]
    pairs = table.assign(kind=np.select(shown, list(LOOKS)[:2], list(LOOKS)[2]), label=labels)
    order = list(dict.fromkeys(pairs.sort_values(["one_backbone", "other_backbone"])["label"]))
    full = [style.wrapped(parts.short(name), 1.9, 6.5) for name in order]
    columns = min(len(tasks), 3)
    beside = max(map(style.text_width, [*full, ""])) + 0.2
    room = (style.PAGE - beside) / columns - 0.1  # of a panel
    height = 0.3 + sum(0.16 if "\n" not in name else 0.25 for name in full)
    fig, axes = parts.panels_in_rows(len(tasks), columns, height + 0.8, **parts.SHARED)
    sides = "    ".join(_sides(pairs))
    sides = sides if style.text_width(sides, 6.5) < room else "\n".join(_sides(pairs))
    for ax, (task, card) in zip(axes.flat, tasks.items(), strict=False):
        part = pairs[pairs["task"] == task]
        ax.axvspan(-margin, margin, color=parts.BAND, linewidth=0, zorder=0)
        ax.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        for kind, look in LOOKS.items():
            some = part[part["kind"] == kind]
            y = some["label"].map(order.index)
            parts.intervals(ax, some, y, look["color"], "x")
            ax.plot(some["difference"], y, markeredgewidth=0.8, **MARK, **look)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelbottom=True)
        ax.grid(axis="x")
        ax.set_yticks(range(len(order)), full, fontsize=6.5)
        ax.set_ylim(max(len(order), 1) - 0.5, -0.5)
        shares = sorted(set(part["label_fraction"]), reverse=True)
        words = ["all labels" if f == 1 else f"{100 * f:g} % of labels" for f in shares]
        parts.titles(ax, card, " and ".join(words) or "no pair", room)
        ax.set_xlabel(f"difference in AUROC\n{sides}", fontsize=6.5)
    entries = {kind: plt.Line2D([], [], **MARK, **look) for kind, look in LOOKS.items()}
    entries |= parts.interval_entries(pairs)
    entries[f"± {margin:g}: equivalence margin"] = Patch(color=parts.BAND)
    style.legend_above(fig, entries)
    regimes = zip(pairs["one_regime"], pairs["other_regime"], strict=True)
    printed = [[names.REGIMES[regime] for regime in both] for both in dict.fromkeys(regimes)]
    words = [one if one == other else f"{one} minus {other}" for one, other in printed]
    if words:
        note = ", ".join(words) + ", 95 % intervals."
        if pairs["procedure_low"].isna().any():
            note += " Without a thin line: training was not repeated, or its draws lacked a class."
        style.caption_below(fig, note[0].upper() + note[1:])
    return fig


def _sides(pairs: pd.DataFrame) -> tuple[str, str]:
    """Who is better on the left and on the right of zero."""
    regimes = set(zip(pairs["one_regime"], pairs["other_regime"], strict=True))
    one, other = "first", "second"
    if regimes and all(a != b for a, b in regimes):
        one, other = (
            " or ".join(dict.fromkeys(names.REGIMES[r] for r in side))
            for side in zip(*sorted(regimes), strict=True)
        )
    return f"← {other} better", f"{one} better →"


def _cliques(ranks: np.ndarray, reach: float) -> list[tuple[int, int]]:
    """Longest runs (first, last) of sorted ranks that lie within `reach` of each other."""
    runs = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + reach, side="right")) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
