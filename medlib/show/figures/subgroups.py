"""The figure of subgroups: a panel for each attribute, sites as a forest plot."""

import re
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style
from medlib.show import subgroups as words
from medlib.show.figures import parts
from medlib.stats.subgroups import Subgroups

MOST, CROWDED = 12, 8  # groups per attribute; backbones, if controls are drawn, too
STEP, LEAST = 0.085, 0.27  # inches: between two backbones of a group; the least height of a group
# Inches: the widths of group names, of axes and of the words beside them; the words' lines.
NAME, WIDE, BESIDE, LINE = 1.5, 2.7, 2.4, 0.1
SMALL = 6  # points


class Panel(NamedTuple):
    """What a panel shows: the rows of its groups, the words beside it, and its height."""

    title: str
    note: str  # under the title
    groups: dict[str, pd.DataFrame]
    sites: pd.DataFrame  # what all sites have in common; empty for other attributes
    lines: list[tuple[str, str]]  # words beside it, and their colour
    row: float  # inches
    height: float


@style.styled
def subgroups(found: Subgroups, metric: str = "auroc", title: str = "") -> plt.Figure:
    """A panel for each attribute, a row for each group, the backbones side by side in it.

    `found` is `subgroups.shown`. Bars are 95 % intervals over test patients. Under a group's name
    stand its patients and those of its rarest class. A group of too few patients has words in place
    of values. Beside a panel stands the largest gap of each backbone. Below the sites are their
    pooled values: a diamond as wide as the interval of the mean, and a thin line for the prediction
    interval of a new site. If there are many groups, those with the most patients are drawn. If
    there are more than CROWDED backbones, random controls are left out. Without any attribute the
    figure is one sentence.
    """
    own = Subgroups(*(part[part["metric"] == metric] for part in found))
    if own.table.empty:
        return parts.saying(words.NOTHING)
    own, note = _without_controls(own)
    looks = _looks(own.table)
    panels = [_panel(own, name, looks) for name in own.table["attribute"].unique()]
    heights = [panel.height for panel in panels]
    size = (style.PAGE, sum(heights) + 0.3)
    shape = {"height_ratios": heights, "width_ratios": [WIDE, BESIDE], "squeeze": False}
    fig, axes = plt.subplots(len(panels), 2, figsize=size, **shape)
    ends = [own.table[["value", "ci_low", "ci_high"]], own.sites[["pooled_low", "pooled_high"]]]
    ends = np.concatenate([part.to_numpy(dtype=float).ravel() for part in ends])
    ends = ends[np.isfinite(ends)] if np.isfinite(ends).any() else np.array([0.0, 1.0])
    room = 0.04 * max(np.ptp(ends), 0.05)
    for (ax, beside), panel in zip(axes, panels, strict=True):
        _draw(ax, panel, looks)
        ax.set_xlim(ends.min() - room, ends.max() + room)
        _write(beside, panel.lines)
    if title:
        words_above = style.wrapped(title, WIDE + BESIDE, 8, weight="bold")
        axes[0, 0].set_title(f"{words_above}\n\n{panels[0].title}", pad=_pad(panels[0]))
    axes[-1, 0].set_xlabel(f"{names.METRICS[metric]} (95 % intervals: other test patients)")
    line = {"linestyle": "-", "linewidth": 1}
    style.legend_above(fig, {n: plt.Line2D([], [], **look | line) for n, look in looks.items()})
    order = "In a row, backbones are in the order of the legend." if len(looks) > 1 else ""
    style.caption_below(fig, " ".join(filter(None, [words.ABOUT, order, note])))
    return fig


def _without_controls(found: Subgroups) -> tuple[Subgroups, str]:
    """Without random controls if there are many backbones, and words that count what is missing."""
    pretrained = found.table["pretraining"] != "random"
    n = found.table["backbone"].nunique()
    kept = found.table.loc[pretrained, "backbone"].unique()
    if n <= CROWDED or not len(kept):
        return found, ""
    shown = Subgroups(*(part[part["backbone"].isin(kept)] for part in found))
    return shown, f"{n - len(kept)} random controls are only in the table."


def _looks(table: pd.DataFrame) -> dict[str, dict]:
    """Line2D settings of each backbone: those of its family, by printed name and in order."""
    order = names.in_order(table)
    families = map(names.family, order["backbone"], order["pretraining"])
    return {
        name: parts.look(family) | {"markersize": 3}
        for name, family in zip(order["name"], families, strict=True)
    }


def _panel(found: Subgroups, attribute: str, looks: dict) -> Panel:
    table, gaps, sites = (part[part["attribute"] == attribute] for part in found)
    sizes = table.groupby("group", sort=False)["n_patients"].first()
    drawn = sizes.sort_values(ascending=False, kind="stable").index[:MOST]
    groups = {g: table[table["group"] == g] for g in sizes.index if g in drawn}
    more = len(sizes) - len(drawn)
    lines = [("Largest gap between two groups", "black")]
    if (gaps["why"] != "").all():  # all backbones have the same patients: one sentence for all
        lines.append((gaps["why"].iloc[0], "black"))
    for name, of_one in names.by_backbone(gaps[gaps["why"] == ""]).items():
        lines.append((f"{parts.short(name)}: {words.gap_words(of_one.iloc[0])}", name))
    sites = sites[sites["why"] == ""]
    if len(sites):
        lines.append(("Heterogeneity of sites", "black"))
    for name, of_one in names.by_backbone(sites).items():
        lines.append((f"{parts.short(name)}: {words.site_words(of_one.iloc[0])}", name))
    look = {"inches": BESIDE, "size": SMALL, "indent": "   "}
    lines = [(re.sub(r"\[(\S+) ", "[\\1\u00a0", text), of) for text, of in lines]  # in one line
    lines = [
        (style.wrapped(text, **look), looks.get(of, {}).get("color", of)) for text, of in lines
    ]
    beside = LINE * sum(text.count("\n") + 1 for text, _ in lines)
    row = max(LEAST, STEP * len(looks) + 0.08)
    rows = row * (len(groups) + (len(sites) > 0))
    title = words.attribute_name(attribute, table["of_class"].iloc[0])
    note = [f"{more} smaller groups are in the table"] * (more > 0)
    note += [f"not pooled: {names_of}" for names_of in sites["left_out"].unique() if names_of]
    return Panel(title, "; ".join(note), groups, sites, lines, row, max(rows, beside) + 0.4)


def _pad(panel: Panel) -> float:
    """How many points a panel's title lies above it: its note lies between."""
    return 11 if panel.note else 4


def _draw(ax: plt.Axes, panel: Panel, looks: dict) -> None:
    """Draw a panel; its y axis counts rows, the first one on top."""
    labels, middle = [], (len(looks) - 1) / 2
    shifts = {name: (k - middle) * STEP / panel.row for k, name in enumerate(looks)}
    for y, (group, rows) in enumerate(panel.groups.items()):
        first = rows.iloc[0]
        name = style.wrapped(group, NAME, 7)
        people = f"{first['n_patients']:,} patient{'' if first['n_patients'] == 1 else 's'}"
        labels.append(f"{name}\n{people}, rarest class {first['rarest']:,}")
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color="0.955", linewidth=0, zorder=0)
        if first["why"]:
            look = {"xycoords": ("axes fraction", "data"), "fontsize": SMALL, "color": "0.35"}
            why = style.wrapped(names.spoken(first["why"]), WIDE - 0.1, SMALL)
            ax.annotate(why, (0.01, y), va="center", **look)
            continue
        for name, of_one in names.by_backbone(rows).items():
            one, at = of_one.iloc[0], y + shifts[name]
            ax.hlines(at, one["ci_low"], one["ci_high"], color=looks[name]["color"], linewidth=1)
            ax.plot(one["value"], at, **looks[name])
    for name, of_one in names.by_backbone(panel.sites).items():
        _diamond(ax, of_one.iloc[0], len(labels) + shifts[name], looks[name], STEP / panel.row)
    if len(panel.sites):
        labels.append("all sites: mean, and\nprediction for a new site")
    ax.set_yticks(range(len(labels)), labels, fontsize=SMALL + 0.5, linespacing=1)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_title(panel.title, pad=_pad(panel))
    parts.note_above(ax, panel.note, 2, va="bottom")


def _write(ax: plt.Axes, lines: list[tuple[str, str]]) -> None:
    """Words with their colours, one below the other, in place of a panel."""
    ax.axis("off")
    down = 0
    for text, colour in lines:
        look = {"va": "top", "fontsize": SMALL, "color": colour, "annotation_clip": False}
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "linespacing": 1.05}
        ax.annotate(text, (0, 1), (0, -72 * LINE * down), **look, **place).set_in_layout(False)
        down += text.count("\n") + 1


def _diamond(ax: plt.Axes, one: pd.Series, y: float, look: dict, half: float) -> None:
    """The pooled value of all sites, as wide as its interval, and the line of a new site."""
    x = [one["pooled_low"], one["pooled"], one["pooled_high"], one["pooled"]]
    ax.hlines(y, one["new_site_low"], one["new_site_high"], color=look["color"], linewidth=0.6)
    face = {"facecolor": look["markerfacecolor"], "edgecolor": look["color"], "linewidth": 0.6}
    ax.fill(x, y + np.array([0, -half, 0, half]) * 0.6, zorder=3, **face)
