"""Figures of a test on another data set: the drop of every arm, and the images that differ."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import external as words
from medlib.show import style
from medlib.show.answers import arm_name
from medlib.show.figures import parts

MOST = 24  # arms of a data set that are drawn


@style.styled
def external(compared: pd.DataFrame, task: str, titles: Mapping[str, str]) -> plt.Figure:
    """AUROC inside (hollow) and outside (filled): a panel a data set outside, a row an arm.

    `compared` is `external.compared`, for one or more data sets; `titles` maps them to their
    titles, and `task` is the one on which the models were trained. Lines are 95 % intervals over
    test patients. Beside a row stand the drop and the ranks. Of many arms those that are best
    inside are drawn.
    """
    rows = compared[compared["metric"] == "auroc"]
    others = [name for name in titles if name != task and (rows["tested_on"] == name).any()]
    counts = [min(MOST, (rows["tested_on"] == name).sum()) for name in others]
    heights = [0.7 + 0.24 * n for n in counts]
    fig, axes = plt.subplots(
        len(others),
        1,
        squeeze=False,
        sharex=True,
        figsize=(style.PAGE, sum(heights) + 0.4),
        height_ratios=heights,
    )
    keys = ["backbone", "regime", "head"]
    inside = rows[rows["tested_on"] == task].drop_duplicates(keys).sort_values("rank")
    for ax, name in zip(axes.flat, others, strict=True):
        outside = rows[rows["tested_on"] == name].set_index(keys)
        here = inside[[tuple(key) in outside.index for key in inside[keys].to_numpy()]].head(MOST)
        _draw(ax, here, outside, keys)
        n = outside[["n_patients", "n_images"]].iloc[0]
        note = f"{n['n_patients']:,} patients, {n['n_images']:,} images"
        if more := len(outside) - len(here):
            note += f"; {more} more arms, with lower values inside, are not drawn"
        parts.titles(ax, {"title": titles[name]}, note, width=4)
    axes[-1, 0].set_xlabel("AUROC (95 % intervals over test patients)")
    dot = {"marker": "o", "linestyle": "-", "linewidth": 1, "markersize": 4}
    hollow = dot | {"markerfacecolor": "white"}
    entries = {f"inside: {titles[task]}": plt.Line2D([], [], color="0.4", **hollow)}
    entries["outside: another data set"] = plt.Line2D([], [], color=style.VERMILION, **dot)
    entries["chance"] = plt.Line2D([], [], **parts.CHANCE)
    style.legend_above(fig, entries)
    style.caption_below(fig, "A drop above 0: worse outside. Ranks are by AUROC, inside → outside.")
    return fig


def _draw(ax: plt.Axes, inside: pd.DataFrame, outside: pd.DataFrame, keys: list[str]) -> None:
    labels = []
    for y, (_, here) in enumerate(inside.iterrows()):
        there = outside.loc[tuple(here[keys])]
        marks = (here, y - 0.14, "0.4", "white"), (there, y + 0.14, style.VERMILION, None)
        for row, at, colour, face in marks:
            ax.hlines(at, row["ci_low"], row["ci_high"], color=colour, linewidth=1)
            ax.plot(row["value"], at, "o", color=colour, markerfacecolor=face or colour)
        note = f"drop {words.drop_words(there)}, rank {here['rank']} → {there['rank']}"
        ax.annotate(note, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)
        labels.append(parts.short(arm_name(here)))
    ax.axvline(0.5, zorder=0, **parts.CHANCE)
    ax.set_yticks(range(len(inside)), labels)
    ax.set_ylim(len(inside) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


@style.styled
def shift(pictures: Sequence[tuple[str, Sequence[np.ndarray]]], caption: str) -> plt.Figure:
    """Rows of pictures, each with words before it: the images that a classifier is surest of.

    `pictures` has the words of a row and its images, uint8 (H, W, 3). Without any, the figure holds
    the caption alone.
    """
    if not pictures:
        return parts.saying(caption)
    n = max(len(images) for _, images in pictures)
    height = 1.25 * len(pictures) + 0.2
    fig, axes = plt.subplots(len(pictures), n, figsize=(style.PAGE, height), squeeze=False)
    for line, (title, images) in zip(axes, pictures, strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image)
        for ax in line:
            ax.axis("off")
        # This is no title: for a title, the layout would leave room beside the first picture.
        look = {"fontsize": 7, "fontweight": "bold", "in_layout": False}
        line[0].annotate(title, (0, 1), (0, 3), "axes fraction", "offset points", **look)
    fig.get_layout_engine().set(hspace=0.18, rect=(0, 0, 1, 1 - 0.2 / height))
    style.caption_below(fig, caption)
    return fig
