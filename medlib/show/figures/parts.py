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

from medlib.show import style
from medlib.show.names import full_name
from medlib.show.style import COLUMN, PAGE

FAMILIES = {  # a colour and a marker: filled where pretrained
    "CNN, ImageNet": (style.BLUE, "o"),
    "ViT, ImageNet": (style.GREEN, "^"),
    "DINOv2": (style.VERMILION, "D"),
    "random weights": (style.GREY, "o"),
}
BAND = "0.92"  # of an equivalence margin


def family(backbone: str, pretraining: str) -> str:
    """The kind of a backbone: its pretraining, and, of ImageNet's, its architecture."""
    if pretraining == "random":
        return "random weights"
    if pretraining == "dinov2":
        return "DINOv2"
    return "ViT, ImageNet" if backbone.startswith("vit") else "CNN, ImageNet"


def look(kind: str) -> dict:
    """Line2D settings of a family's marks."""
    colour, marker = FAMILIES[kind]
    inside = "white" if kind == "random weights" else colour
    return {"color": colour, "marker": marker, "markerfacecolor": inside, "markersize": 4,
            "markeredgewidth": 0.8}  # fmt: skip


def named(table: pd.DataFrame) -> pd.DataFrame:
    """With the columns `name`, as printed, and `family`."""
    weights = list(zip(table["backbone"], table["pretraining"], strict=True))
    return table.assign(
        name=[full_name(*pair) for pair in weights],
        family=[family(*pair) for pair in weights],
    )


def linear(table: pd.DataFrame, tasks: Mapping[str, Mapping], metric: str) -> pd.DataFrame:
    rows = table[(table["metric"] == metric) & table["task"].isin(list(tasks))]
    return named(rows[rows["head"] == "linear"])


def colours(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    kinds = rows.drop_duplicates("name").set_index("name")["family"]
    return [FAMILIES[kinds[name]][0] for name in names]


def by_task(rows: pd.DataFrame, tasks: Mapping[str, Mapping]) -> list[tuple[str, pd.DataFrame]]:
    return [(task, rows[rows["task"] == task]) for task in tasks]


def panels(tasks: Mapping, height: float) -> tuple[Figure, list[Axes]]:
    """A panel a task, `height` inches each, with axes of their own."""
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(PAGE if columns > 1 else COLUMN, lines * (height + 0.45)),
        squeeze=False,
    )  # fmt: skip
    empty(axes, len(tasks))
    return fig, list(axes.flat[: len(tasks)])


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
    ax.annotate(note, (0, 1), (0, 3), "axes fraction", "offset points", va="bottom", fontsize=6.5,
                color="0.25")  # fmt: skip


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


def shares_of_labels(rows: pd.DataFrame) -> str:
    shares = sorted(set(rows["label_fraction"]), reverse=True)
    return " and ".join("all labels" if f == 1 else f"{100 * f:g} % of labels" for f in shares)


def people(rows: pd.DataFrame) -> str:
    return f"{rows['n_patients'].max():,} test patients"


def name_ends(ax: Axes, x: float, ends: Sequence[float], names: Sequence[tuple[str, str]]) -> None:
    """Names beside the ends of lines, moved apart until none covers another."""
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
        name, colour = names[i]
        words = short(name).replace(" (ImageNet)", "")
        ax.annotate(words, (x, ends[i]), (x, place), fontsize=5.8, va="center", color=colour,
                    annotation_clip=False)  # fmt: skip
    ax.set_ylim(min(low, places[0] - gap / 2), max(high, places[-1] + gap / 2))


def short(name: str) -> str:
    return name.replace("architecture", "arch.").replace(" (random weights)", " (random)")


def family_handles(rows: pd.DataFrame) -> tuple[list, list[str]]:
    names = [name for name in FAMILIES if name in set(rows["family"])]
    return [Line2D([], [], linestyle="none", **look(name)) for name in names], names


def family_legend(fig: Figure, rows: pd.DataFrame) -> None:
    handles, names = family_handles(rows)
    if handles:
        style.legend_above(fig, handles, names)
