"""What figures of backbones share: families, panels, legends, labels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator
from scipy.optimize import isotonic_regression

from medlib.show import names, style

FAMILY_COLOURS = (style.BLUE, style.GREEN, style.VERMILION, style.PURPLE, style.ORANGE, style.SKY)
FAMILY_MARKERS = ("o", "^", "D", "s", "v", "P")  # X marks a fine-tuned backbone
BAND = "0.92"  # the grey of an equivalence margin
BARS = {"ci": {"linewidth": 3.2, "alpha": 0.4}, "procedure": {"linewidth": 0.8}}
SHARED = {"sharex": True, "sharey": True}
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


def interval_entries() -> dict[str, object]:
    """The legend's entries for the lines of :func:`intervals`."""
    words = {"ci": "other test patients", "procedure": "other test and training patients"}
    return {words[name]: plt.Line2D([], [], color="0.3", **look) for name, look in BARS.items()}


def line_look(family: str) -> dict:
    """Line2D settings of a thin line with a family's marks, dashed for random weights."""
    return look(family) | {"linestyle": "--" if family == names.RANDOM else "-", "linewidth": 1}


def panels(table: pd.DataFrame, tasks: names.Tasks, height: float) -> tuple[plt.Figure, list]:
    """One panel for each task, `height` inches high.

    Returns the figure, and for each task its axes, its card and its rows.
    """
    n = len(tasks)
    width = style.PAGE if n > 1 else style.COLUMN
    fig, axes = panels_in_rows(n, min(n, 3), height + 0.45, width=width)
    rows = [table[table["task"] == task] for task in tasks]
    return fig, list(zip(axes.flat[:n], tasks.values(), rows, strict=True))


def saying(words: str) -> plt.Figure:
    """A figure that holds a sentence or two, a line each, in place of panels."""
    fig = plt.figure(figsize=(style.PAGE, 0.25 + 0.15 * len(words.splitlines())), layout="none")
    fig.text(0.01, 0.5, words, va="center")
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


def name_ends(ax: plt.Axes, x: float, lines: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the ends of lines (end, name, colour), moved apart until none overlap."""
    if not lines:
        return
    low, high = ax.get_ylim()
    box = ax.figure.get_size_inches()[1] / max(len(ax.figure.axes) // 3, 1) * 0.6  # inches, or so
    gap = (high - low) * 0.088 / box
    lines, steps = sorted(lines), gap * np.arange(len(lines))
    # The places that are nearest to the ends, by least squares, and at least a gap apart.
    places = isotonic_regression([end for end, _, _ in lines] - steps).x + steps
    for place, (end, name, colour) in zip(places, lines, strict=True):
        words, look = short(name).replace(" (ImageNet)", ""), {"fontsize": 5.8, "color": colour}
        ax.annotate(words, (x, end), (x, place), va="center", annotation_clip=False, **look)
    ax.set_ylim(min(low, places[0] - gap / 2), max(high, places[-1] + gap / 2))


def short(name: str) -> str:
    return name.replace("architecture", "arch.").replace(" (random weights)", " (random)")


def family_handles(table: pd.DataFrame, crosses: bool = False) -> dict[str, plt.Line2D]:
    """Legend entries of the families that a table has, and of what a cross means."""
    order = [*names.families(), names.RANDOM, names.UNKNOWN]
    shown = [family for family in order if family in set(table["family"])]
    entries = {family: plt.Line2D([], [], linestyle="none", **look(family)) for family in shown}
    return entries | ({"fine-tuned": plt.Line2D([], [], color="0.3", **TUNED)} if crosses else {})
