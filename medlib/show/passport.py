"""The figure of a split passport."""

import itertools
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.data.passport import ALL, FILE_TYPE, IMAGE_SIZE, REST, UNKNOWN
from medlib.show.names import spoken
from medlib.show.style import COLOURS, PAGE, styled, text_width, title_above, wrapped

MOST = 40  # classes that are drawn: thousands would take minutes, and nobody could read them


@styled
def draw(numbers: pd.DataFrame, title: str = "") -> plt.Figure:
    """Draw the split passport: who is in which part of the split, and how the classes differ.

    `numbers` is what `data.passport.table` returns. There is a row for each class and one for all
    classes. There are panels for patients and images by side, for images per patient, and for age,
    sex and site if the manifest knows them. Below are the duplicates that were found, and what was
    left out and why. Bars show shares, so that classes of different size can be compared. If there
    are more than :data:`MOST` classes, those with the most patients are drawn, and a note says so.
    """
    numbers, left_out = _largest(numbers)
    numbers, same = _without_what_is_same(numbers)
    names = _class_labels(numbers)
    room = PAGE - max(map(text_width, names)) - 0.2  # inches beside the names
    bands = _in_bands(_panels_of_passport(numbers, room), room)
    words = _texts_below(numbers)
    title = wrapped(title, PAGE - 0.2, 8, weight="bold")

    rows_height = len(names) * max(0.3, 0.1 * max(name.count("\n") + 1 for name in names) + 0.1)
    ticks = [max(tick.count("\n") for panel in band for tick in panel.ticks) for band in bands]
    heights = [rows_height + 0.45 + 0.1 * lines for lines in ticks]  # with titles and ticks
    heights.append(0.3 + 0.115 * max(len(text.splitlines()) for _, text in words))
    fig = plt.figure(figsize=(PAGE, sum(heights) + 0.4 + 0.15 * title.count("\n")))
    fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0, hspace=0)
    *parts, bottom = fig.subfigures(len(heights), 1, height_ratios=heights)
    for part, band in zip(parts, bands, strict=True):
        widths = [panel.width for panel in band]
        spare = max(0.01, 0.7 * room - sum(widths))  # a few panels do not fill the page
        places = part.add_gridspec(1, len(band) + 1, width_ratios=[*widths, spare])
        for at, panel in enumerate(band):
            _draw_panel(part.add_subplot(places[at]), panel)
        part.axes[0].set_yticks(np.arange(len(names))[::-1] + 0.35, names, parse_math=False)
    for x, (heading, text) in zip((0.01, 0.51), words, strict=True):
        top, below = 1 - np.array([0.05, 0.23]) / heights[-1]
        bottom.text(x, top, heading, va="top", fontsize=8, fontweight="bold")
        bottom.text(x, below, text, va="top", fontsize=6.5, parse_math=False)
    title_above(fig, title)
    note = (
        "Beside a class: its patients, and their share of all patients. Numbers: patients, or what "
        "the panel's title says.\nBars: shares of a class among known values; one scale per panel."
        + same
        + left_out
        + "".join(f"\n{wrapped(text, PAGE - 0.2, 6.5)}" for text in _notes(numbers))
    )
    fig.supxlabel(note, x=0.01, ha="left", fontsize=6.5, color="0.25")
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # each save would lay it out anew, with other last digits
    return fig


def _largest(numbers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The numbers without the classes that are not drawn, and the words that say so."""
    patients = _patients(numbers)
    patients = patients[patients["class"] != ALL].set_index("class")["count"]
    if len(patients) <= MOST:
        return numbers, ""
    drawn = {"", ALL, *patients.sort_values(ascending=False, kind="stable").index[:MOST]}
    words = f"\nOnly the {MOST} classes with the most patients are drawn, of {len(patients):,}."
    return numbers[numbers["class"].isin(drawn)], words


def _without_what_is_same(numbers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The numbers without a file type or a size that all images have, and words that name it."""
    words = []
    for part in (FILE_TYPE, IMAGE_SIZE):
        names = numbers["name"][numbers["part"] == part].unique()
        if len(names) == 1:
            numbers = numbers[numbers["part"] != part]
            words.append(f"{names[0]} pixels" if part == IMAGE_SIZE else names[0])
    return numbers, f"\nAll images: {', '.join(words)}." if words else ""


def _patients(numbers: pd.DataFrame) -> pd.DataFrame:
    """The rows that say how many patients each class has."""
    return numbers[(numbers["part"] == "classes") & (numbers["unit"] == "patients")]


class _Panel(NamedTuple):
    """One table of the passport as it is drawn: a row for each class, a column for each bar."""

    title: str
    counts: pd.DataFrame
    shares: pd.DataFrame
    ticks: list[str]
    column: float  # inches, for a bar
    width: float  # inches, for all bars and the title


def _class_labels(table: pd.DataFrame) -> list[str]:
    """The rows' names with their patients, and the class's share of all patients."""
    labels = []
    for name, count, share in _patients(table)[["class", "count", "share"]].itertuples(index=False):
        percent = f" ({100 * share:.1f} %)" if name != ALL else ""
        labels.append(f"{wrapped(spoken(name), 1.1, 7)}\n{count:,}{percent}")
    return labels


def _panels_of_passport(table: pd.DataFrame, room: float) -> list[_Panel]:
    """The tables of a passport. If each patient has one image, tables of images are left out."""
    tables = table[(table["class"] != "") & (table["part"] != "classes")]
    patients, images, each = tables["part"].unique()[:3]
    if set(tables["name"][tables["part"] == each]) == {"1"}:
        one_each = f"{patients}, one {images.split()[0].removesuffix('s')} each"
        tables = tables[~tables["part"].isin([images, each])].replace(patients, one_each)
    panels = []
    for part, cells in tables.groupby("part", sort=False):
        names = cells["name"].unique()
        order = {"index": cells["class"].unique(), "columns": names}
        wide = cells.pivot(index="class", columns="name")
        counts, shares = wide["count"].reindex(**order), wide["share"].reindex(**order)
        most = min(0.62, room / len(names) - 0.07)  # long names get narrow lines
        ticks = ["not\nknown" if n == UNKNOWN else wrapped(n, most, 6.5) for n in names]
        widest = max(map(text_width, [*ticks, f"{counts.max(axis=None):,}"]))
        column = max(widest + 0.05, 0.3)
        width = max(len(ticks) * column, text_width(part, 8, "bold") + 0.1)
        panels.append(_Panel(part, counts, shares, ticks, column, width))
    return panels


def _in_bands(panels: list[_Panel], room: float) -> list[list[_Panel]]:
    """The panels in lines of at most `room` inches, like the words of a text."""
    bands, used = [[]], 0.0
    for panel in panels:
        if bands[-1] and used + panel.width > room:
            bands.append([])
            used = 0.0
        bands[-1].append(panel)
        used += panel.width + 0.1  # between two panels
    return bands


def _draw_panel(ax: plt.Axes, panel: _Panel) -> None:
    """A row of bars per class; the highest bar of the panel fills its row."""
    x = np.arange(len(panel.ticks))
    highest = max(panel.shares.max(axis=None), 0.01)
    colours = itertools.cycle(COLOURS)
    for y, name in zip(reversed(range(len(panel.counts))), panel.counts.index, strict=True):
        colour = "0.8" if name == ALL else next(colours)
        heights = (0.58 * panel.shares.loc[name] / highest).fillna(0)
        bars = ax.bar(x, heights, 0.8, bottom=y, color=colour)
        numbers = [f"{count:,}" for count in panel.counts.loc[name]]
        ax.bar_label(bars, numbers, fontsize=6, padding=1)
    ax.hlines(range(len(panel.counts)), -0.5, len(x) - 0.5, color="0.6", linewidth=0.5)
    ax.set(ylim=(-0.04, len(panel.counts)), yticks=[])
    ax.set_xlim(-0.5, panel.width / panel.column - 0.5)
    ax.set_title(panel.title, pad=0)  # above the first row there is room for its numbers
    ax.set_xticks(x, panel.ticks, fontsize=6.5, linespacing=1, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _notes(table: pd.DataFrame) -> list[str]:
    """The first notes, at most six."""
    return table["name"][table["part"] == "notes"].head(6).tolist()


def _texts_below(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Headings and texts, as wide as half a page: duplicates found, and what was left out."""
    columns = ["part", "name", "count", "correlation", "detail"]
    pairs = table.loc[table["part"].isin(["duplicates", "pairs"]), columns]
    (_, _, total, _, _), *kinds = pairs.itertuples(index=False)
    doubled = [f"duplicates found: {total:,} pairs" if total else "duplicates found: none"]
    for part, name, count, correlation, detail in kinds:
        r = "" if pd.isna(correlation) else f", r\u00a0=\u00a0{correlation:.3f}"  # no break
        words = f"{name}{r}: {detail}"
        words = f"{count:,} × {words}" if part == "duplicates" else words
        doubled.append(f"and {count:,} more" if name == REST else words)
    excluded = table.loc[table["part"] == "left out", ["name", "count"]]
    (_, total), *reasons = excluded.itertuples(index=False)
    left_out = [f"left out: {total:,}" if total else "left out: nothing"]
    for name, count in reasons:
        words = f"{count:,} × {name}"
        left_out.append(f"and {count:,} for other reasons" if name == REST else words)
    look = {"inches": PAGE / 2 - 0.2, "size": 6.5, "indent": "    "}
    texts = [[wrapped(line, **look) for line in lines] for lines in (doubled[1:], left_out[1:])]
    return [(doubled[0], "\n".join(texts[0])), (left_out[0], "\n".join(texts[1]))]
