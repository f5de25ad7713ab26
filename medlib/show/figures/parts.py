"""What figures of backbones share: families, panels, legends, labels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

from medlib.show import names, style

FAMILY_COLOURS = (style.BLUE, style.GREEN, style.VERMILION, style.PURPLE, style.ORANGE, style.SKY)
FAMILY_MARKERS = ("o", "^", "D", "s", "v", "P")
BAND = "0.92"  # the grey of an equivalence margin
BARS = {"ci": {"linewidth": 3.2, "alpha": 0.4}, "procedure": {"linewidth": 0.8}}
SHARED = {"sharex": True, "sharey": True}
CHANCE = {"color": "0.3", "linewidth": 0.8, "linestyle": ":"}
LEAST_SPAN = 0.2  # of an axis of a metric: on a shorter one, noise looks like a difference


def look(family: str) -> dict:
    """Line2D settings of a family's marks: a colour and a marker, hollow for random weights.

    Families take them in turn, in the order of their first rows in the table of backbones.
    """
    colour, marker = {names.RANDOM: (style.GREY, "o")}.get(family, (style.BLACK, "*"))
    if family in (families := names.families()):
        at, n = families.index(family), len(FAMILY_COLOURS)
        colour, marker = FAMILY_COLOURS[at % n], FAMILY_MARKERS[(at + at // n) % n]
    inside = "white" if family == names.RANDOM else colour
    size = {"markersize": 4, "markeredgewidth": 0.8}
    return {"color": colour, "marker": marker, "markerfacecolor": inside} | size


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns `name` (as printed) and `family`."""
    pairs = list(zip(table["backbone"], table["pretraining"], strict=True))
    families = [names.family(*pair) for pair in pairs]
    return table.assign(name=[names.full_name(*pair) for pair in pairs], family=families)


def by_backbone(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each backbone, by printed name and in order, with the columns of `named`."""
    return {name: named(rows) for name, rows in names.by_backbone(table).items()}


def linear(table: pd.DataFrame, tasks: names.Tasks, metric: str) -> pd.DataFrame:
    """The results of linear heads in one metric, with the columns of :func:`named`."""
    shown = (table["metric"] == metric) & table["task"].isin(list(tasks))
    return named(table[shown & (table["head"] == "linear")])


def intervals(ax: plt.Axes, table: pd.DataFrame, at: Sequence, colour: str, along: str) -> None:
    """Draw both intervals of each row ``along`` the "x" or "y" axis, ``at`` places on the other.

    A thick bar is the interval over test patients. A thin line is the interval of the procedure; it
    is drawn where it is known.
    """
    draw = ax.hlines if along == "x" else ax.vlines
    for name, look in BARS.items():
        ends = table[f"{name}_low"], table[f"{name}_high"]
        draw(at, *ends, color=colour, zorder=2, **look)


def interval_entries(table: pd.DataFrame) -> dict[str, object]:
    """The legend's entries for the lines of :func:`intervals` that are drawn for this table."""
    words = {"ci": "other test patients", "procedure": "other test and training patients"}
    drawn = {name: look for name, look in BARS.items() if table[f"{name}_low"].notna().any()}
    return {words[name]: plt.Line2D([], [], color="0.3", **look) for name, look in drawn.items()}


def backbone_looks(table: pd.DataFrame) -> dict[str, dict]:
    """Line2D settings of each backbone of a table, by printed name and in order.

    The colour is that of the family. Each architecture has a marker of its own, so that two
    backbones of a family can be told apart. A random control has the marker of its pretrained twin,
    hollow, and a dashed line.
    """
    order, looks = names.in_order(table), {}
    architectures = list(dict.fromkeys(order["architecture"]))
    for row in order.itertuples():
        again, marker = divmod(architectures.index(row.architecture), len(style.MARKERS))
        own = look(names.family(row.backbone, row.pretraining))
        dash = style.DASHES[(2 * again + row.random) % len(style.DASHES)]
        marker = style.MARKERS[marker]
        looks[row.name] = own | {"marker": marker, "linestyle": dash, "linewidth": 1}
    return looks


def backbone_handles(looks: Mapping[str, dict]) -> dict[str, plt.Line2D]:
    """Legend entries of :func:`backbone_looks`."""
    return {short(name): plt.Line2D([], [], **look) for name, look in looks.items()}


def panels(
    table: pd.DataFrame, tasks: names.Tasks, height: float, metric: str
) -> tuple[plt.Figure, list]:
    """One panel for each task, `height` inches high; they share the y axis, which is the metric's.

    Chance is a dotted line, where a task's card has one. Returns the figure, and for each task its
    axes, its card and its rows.
    """
    n = len(tasks)
    width = style.PAGE if n > 1 else style.COLUMN
    fig, axes = panels_in_rows(n, min(n, 3), height + 0.45, width=width, sharey=True)
    for ax in axes[:, 0]:
        ax.set_ylabel(names.METRICS[metric])
    rows = [table[table["task"] == task] for task in tasks]
    for ax, card in zip(axes.flat, tasks.values(), strict=False):
        ax.grid(axis="y")
        if card.get("chance") is not None:
            ax.axhline(card["chance"], zorder=1, **CHANCE)
    return fig, list(zip(axes.flat[:n], tasks.values(), rows, strict=True))


def chance_entry(tasks: names.Tasks) -> dict[str, plt.Line2D]:
    """The legend's entry of the chance line, where a task has one."""
    known = any(card.get("chance") is not None for card in tasks.values())
    return {"chance": plt.Line2D([], [], **CHANCE)} if known else {}


def value_axis(ax: plt.Axes, *values: np.ndarray | Sequence[float], tasks: names.Tasks) -> None:
    """Set the y axis of panels that share it: all values and the chance level lie on it.

    It spans at least :data:`LEAST_SPAN`. If all values lie between 0 and 1, it ends there, with a
    little room for marks.
    """
    chances = [card["chance"] for card in tasks.values() if card.get("chance") is not None]
    shown = np.concatenate([np.asarray(part, dtype=float).ravel() for part in (*values, chances)])
    shown = shown[np.isfinite(shown)]
    low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
    more = max(LEAST_SPAN - (high - low), 0) / 2
    low, high, inside = low - more, high + more, low >= 0 and high <= 1
    if inside:
        shift = max(-low, 0) - max(high - 1, 0)
        low, high = low + shift, high + shift
    room = 0.04 * (high - low)
    ax.set_ylim(low - room, high + room)


def saying(words: str) -> plt.Figure:
    """A figure that holds a sentence in place of panels."""
    text = style.wrapped(words, style.PAGE - 0.2, 7.5)
    height = 0.28 + 0.13 * len(text.splitlines())
    fig = plt.figure(figsize=(style.PAGE, height), layout="none")
    fig.text(0.01, 1 - 0.08 / height, text, va="top")
    return fig


def panels_in_rows(
    n: int, columns: int, height: float, more: float = 0.0, width: float = style.PAGE, **shared
) -> tuple[plt.Figure, np.ndarray]:
    """`n` panels in rows of so many columns, `height` inches per row plus `more` for the figure.

    Places after the last panel are empty. The panel above an empty place has tick labels.
    """
    lines = -(-n // columns)
    size = (width, lines * height + more)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, **shared)
    for at in range(n, axes.size):
        axes.flat[at].axis("off")
        if at >= columns:
            axes.flat[at - columns].tick_params(labelbottom=True)
    return fig, axes


def label_below(axes: np.ndarray, n: int, words: str, size: float = 6.5) -> None:
    """Print the label of the x axis below the lowest of the first n panels in each column."""
    for ax in axes.flat[max(0, n - axes.shape[1]) : n]:
        ax.set_xlabel(words, fontsize=size)


def titles(ax: plt.Axes, card: Mapping, note: str, width: float = 1.7) -> None:
    """The task's title in lines of at most so many inches, and a note under it."""
    ax.set_title(style.wrapped(card["title"], width, 7.5, weight="bold"), pad=13, fontsize=7.5)
    note_above(ax, note, 3, va="bottom")


def note_above(ax: plt.Axes, note: str, points: float, **more) -> None:
    """Small grey words so many points above a panel."""
    look = {"fontsize": 6.5, "color": "0.25"} | more
    ax.annotate(note, (0, 1), (0, points), "axes fraction", "offset points", **look)


def log_axis(ax: plt.Axes, values: pd.Series) -> None:
    """A logarithmic x axis over the values, no narrower than a factor of four, with plain ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    if len(values):
        middle = np.sqrt(values.min() * values.max())
        reach = max(np.sqrt(values.max() / values.min()) * 1.25, 2)
        ax.set_xlim(middle / reach, middle * reach)


def people(table: pd.DataFrame) -> str:
    return f"{table['n_patients'].max():,} test patients"


def short(name: str) -> str:
    return name.replace("architecture", "arch.").replace(" (random weights)", " (random)")


def far_apart(values: Sequence[float], inches: float, size: float = 7) -> list[float]:
    """The values whose printed numbers do not collide on a logarithmic axis of so many inches.

    They are sorted. The largest and the smallest come first, if they have room beside each other.
    """
    values = sorted(set(values))
    span = np.log(values[-1] / values[0]) or 1.0
    kept = [values[-1]]
    for value in [values[0], *reversed(values[1:-1])]:
        widths = [style.text_width(f"{v:g}", size) for v in (value, *kept)]
        gaps = [abs(np.log(value / other)) / span * inches for other in kept]
        needed = [(widths[0] + width) / 2 + 0.06 for width in widths[1:]]
        if all(gap >= least for gap, least in zip(gaps, needed, strict=True)):
            kept.append(value)
    return sorted(kept)


def family_handles(table: pd.DataFrame) -> dict[str, plt.Line2D]:
    """Legend entries of the families that a table has."""
    order = [*names.families(), names.RANDOM, names.UNKNOWN]
    shown = [family for family in order if family in set(table["family"])]
    return {family: plt.Line2D([], [], linestyle="none", **look(family)) for family in shown}
