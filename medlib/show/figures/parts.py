"""What figures of backbones share: families, panels, legends, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from medlib.show import names, style
from medlib.show.style import COLUMN, PAGE

FAMILY_COLOURS = (style.BLUE, style.GREEN, style.VERMILION, style.PURPLE, style.ORANGE, style.SKY)
FAMILY_MARKERS = ("o", "^", "D", "s", "v", "P")  # X marks a fine-tuned backbone
BAND = "0.92"  # of an equivalence margin
TUNED = {"marker": "X", "markersize": 5, "linestyle": "none"}


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
    """With the columns `name`, as printed, and `family`."""
    pairs = list(zip(table["backbone"], table["pretraining"], strict=True))
    families = [names.family(*pair) for pair in pairs]
    return table.assign(name=[names.full_name(*pair) for pair in pairs], family=families)


def linear(table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str) -> pd.DataFrame:
    """The results of linear heads in one metric, with the columns of :func:`named`."""
    shown = (table["metric"] == metric) & table["task"].isin(list(tasks))
    return named(table[shown & (table["head"] == "linear")])


def colours(table: pd.DataFrame, shown: Sequence[str]) -> list[str]:
    """The colours of printed names, by their families."""
    family = table.drop_duplicates("name").set_index("name")["family"]
    return [look(family[name])["color"] for name in shown]


def dashes(family: str) -> str:
    return "--" if family == names.RANDOM else "-"


def by_task(table: pd.DataFrame, tasks: Mapping[str, Mapping]) -> list[tuple[str, pd.DataFrame]]:
    return [(task, table[table["task"] == task]) for task in tasks]


def panels(tasks: Mapping, height: float) -> tuple[Figure, list[Axes]]:
    """A panel a task, `height` inches each, with axes of their own."""
    n = len(tasks)
    width = PAGE if n > 1 else COLUMN
    fig, axes = panels_in_rows(n, min(n, 3), height + 0.45, width=width)
    return fig, list(axes.flat[:n])


def panels_in_rows(
    n: int, columns: int, height: float, more: float = 0.0, width: float = PAGE, **shared
) -> tuple[Figure, np.ndarray]:
    """`n` panels in rows of so many columns, `height` inches a row, and `more` for the figure."""
    lines = -(-n // columns)
    size = (width, lines * height + more)
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, **shared)
    empty(axes, n)
    return fig, axes


def empty(axes: np.ndarray, n: int) -> None:
    """Leave out all panels but the first n; the one above an empty place has the ticks' names."""
    columns = axes.shape[1]
    for at in range(n, axes.size):
        axes.flat[at].axis("off")
        if at >= columns:
            axes.flat[at - columns].tick_params(labelbottom=True)


def label_below(axes: np.ndarray, n: int, words: str) -> None:
    """What the horizontal axis says, under the last of the first n panels in each column."""
    for ax in axes.flat[max(0, n - axes.shape[1]) : n]:
        ax.set_xlabel(words, fontsize=6.5)


def titles(ax: Axes, card: Mapping, note: str, width: float = 1.7) -> None:
    """The task's title in lines of at most so many inches, and a note under it."""
    ax.set_title(style.wrapped(card["title"], width, 7.5, weight="bold"), pad=13, fontsize=7.5)
    note_above(ax, note, 3, va="bottom")


def note_above(ax: Axes, note: str, points: float, **more) -> None:
    """Small grey words so many points above a panel."""
    look = {"fontsize": 6.5, "color": "0.25"} | more
    ax.annotate(note, (0, 1), (0, points), "axes fraction", "offset points", **look)


def log_axis(ax: Axes, values: pd.Series) -> None:
    """A logarithmic x axis over the values, no narrower than a factor of four, with plain ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter("{0:g}".format))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if len(values):
        middle = np.sqrt(values.min() * values.max())
        reach = max(np.sqrt(values.max() / values.min()) * 1.25, 2)
        ax.set_xlim(middle / reach, middle * reach)


def shares_of_labels(table: pd.DataFrame) -> str:
    shares = sorted(set(table["label_fraction"]), reverse=True)
    return " and ".join("all labels" if f == 1 else f"{100 * f:g} % of labels" for f in shares)


def people(table: pd.DataFrame) -> str:
    return f"{table['n_patients'].max():,} test patients"


def name_ends(ax: Axes, x: float, ends: Sequence[float], labels: Sequence[tuple]) -> None:
    """Names (with their colours) beside the ends of lines, moved apart until none overlap."""
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
        name, colour = labels[i]
        words, look = short(name).replace(" (ImageNet)", ""), {"fontsize": 5.8, "color": colour}
        ax.annotate(words, (x, ends[i]), (x, place), va="center", annotation_clip=False, **look)
    ax.set_ylim(min(low, places[0] - gap / 2), max(high, places[-1] + gap / 2))


def short(name: str) -> str:
    return name.replace("architecture", "arch.").replace(" (random weights)", " (random)")


def family_handles(table: pd.DataFrame) -> tuple[list, list[str]]:
    """Legend entries of the families that a table has."""
    order = [*names.families(), names.RANDOM, names.UNKNOWN]
    shown = [family for family in order if family in set(table["family"])]
    return [Line2D([], [], linestyle="none", **look(family)) for family in shown], shown


def add_fine_tuned(handles: list, words: list[str]) -> None:
    """Add to a legend what a cross means."""
    handles.append(Line2D([], [], color="0.3", **TUNED))
    words.append("fine-tuned")
