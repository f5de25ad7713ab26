"""The split passport of a task: the numbers that all later ones rest on, and a figure of them.

Who stands on which side of the split, how many images a patient has, how the classes differ in age,
sex and site, which images are there twice, and what was left out and why.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from medlib.manifest import SPLITS, split_column
from medlib.plots import COLOURS, PAGE, spoken, styled, text_width, wrapped

ALL, UNKNOWN, REST = "all classes", "unknown", "all others"  # rows and columns
CONFOUNDERS = {"age": "age in years", "sex": "sex", "site": "site"}  # manifest's columns → panels


@styled
def draw(
    manifest: pd.DataFrame, classes: Sequence[str], duplicates: pd.DataFrame,
    excluded: pd.DataFrame, title: str | None = None,
) -> Figure:  # fmt: skip
    """What the later numbers rest on: who stands on which side, and how classes differ besides.

    Takes the frames of `table`, and draws its numbers. A row per class and one for all;
    a panel each for patients and images by side, images per patient, and the patients' age, sex
    and site where the manifest knows them. Below stand the duplicates that were found, and what
    was left out and why. Bars show shares, so that classes of unlike size can be compared.
    """
    numbers = table(manifest, classes, duplicates, excluded)
    names = _class_labels(numbers)
    room = PAGE - max(map(text_width, names)) - 0.2  # inches beside the names
    bands = _in_bands(_panels_of_passport(numbers, room), room)
    words = [
        _wrapped_lines(lines) for lines in (_duplicate_lines(numbers), _excluded_lines(numbers))
    ]
    title = wrapped(title or "", PAGE - 0.2, 8, weight="bold")

    rows_height = len(names) * max(0.3, 0.1 * max(name.count("\n") + 1 for name in names) + 0.1)
    ticks = [max(tick.count("\n") for panel in band for tick in panel.ticks) for band in bands]
    heights = [rows_height + 0.45 + 0.1 * lines for lines in ticks]  # with titles and ticks
    heights.append(0.3 + 0.115 * max(len(text.splitlines()) for _, text in words))
    fig = plt.figure(figsize=(PAGE, sum(heights) + 0.4 + 0.15 * title.count("\n")))
    fig.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0, hspace=0)
    *parts, bottom = fig.subfigures(len(heights), 1, height_ratios=heights)
    for part, band in zip(parts, bands, strict=True):
        _draw_band(part, band, names, room)
    for x, (heading, text) in zip((0.01, 0.51), words, strict=True):
        top, below = 1 - np.array([0.05, 0.23]) / heights[-1]
        bottom.text(x, top, heading, va="top", fontsize=8, fontweight="bold")
        bottom.text(x, below, text, va="top", fontsize=6.5, parse_math=False)
    fig.suptitle(title, x=0.01, ha="left", fontsize=8, fontweight="bold")
    note = (
        "Beside a class: its patients, and their share of all. Numbers: patients, or what the "
        "panel names.\nBars: their share of the class, among known values; one scale per panel."
    )
    fig.supxlabel(note, x=0.01, ha="left", fontsize=6.5, color="0.25")
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # laid out again at each save, its last digits would wander
    return fig


def table(
    manifest: pd.DataFrame, classes: Sequence[str], duplicates: pd.DataFrame, excluded: pd.DataFrame
) -> pd.DataFrame:
    """The numbers of the split passport in long form; aggregates, never one patient's age.

    `manifest` has sample_id, patient_id, path, label, and `split` or `fold`; it may have age
    (years), sex and site, "" where unknown. `duplicates` has first, second (sample ids), kind
    (exact, near), correlation, first_side, second_side, same_patient and action; `excluded` has
    name and reason. Raises ValueError for a manifest that is not split.

    Columns: part, class (or "all classes"; "" in the last three parts), name, count, unit (what is
    counted), share, correlation, detail. The parts are classes (share: of all), patients and images
    by side, images per patient, age, sex and site (share: of the class, where the value is known),
    duplicates, pairs (up to six, the gravest first; detail: what was done) and left out (by reason;
    detail: some names). A patient with images of two classes counts in both, once in "all classes";
    a patient's age, sex and site are the first ones known.
    """
    side = split_column(manifest)
    if side is None:
        raise ValueError(
            "the manifest needs a `split` or a `fold` column, not both: split it first"
        )
    present = set(manifest[side])
    sides = [part for part in SPLITS if part in present] if side == "split" else sorted(present)
    rows = pd.concat([manifest, manifest.assign(label=ALL)]).set_index("label")
    rows[side] = pd.Categorical(rows[side], sides)
    patients = rows.groupby(["label", "patient_id"], sort=False)
    unit = "volumes" if rows["path"].str.contains(r"\.nii(?:\.gz)?$").all() else "images"
    once = ~rows.reset_index().duplicated(["label", "patient_id", side]).to_numpy()
    parts = {
        f"patients by {side}": rows.loc[once, side],
        f"{unit} by {side}": rows[side],
        f"{unit} per patient": _count_bands(patients.size()),
    }
    for column in rows.columns.intersection(list(CONFOUNDERS)):
        values = _years(rows[column]) if column == "age" else _known(rows[column])
        firsts = values.groupby([rows.index, rows["patient_id"]], sort=False).first()
        if firsts.notna().any():
            banded = {"age": _age_bands, "sex": _categories, "site": _largest}[column](firsts)
            parts[CONFOUNDERS[column]] = banded
    units = {f"{unit} by {side}": unit}
    tables = [_class_rows(patients.size(), unit, classes)]
    for part, values in parts.items():
        counted = _by_class(values, classes)
        tables.append(counted.assign(part=part, unit=units.get(part, "patients")))
    ids = {*manifest["sample_id"], *manifest["patient_id"], *excluded["name"]}
    ids |= {*duplicates["first"], *duplicates["second"]}
    # a word or a bare number may be meant as such: "fewer than 5 slices"
    ids = {name for name in ids if re.search(r"\d", name) and not name.isdigit()}
    tables += [_duplicate_rows(duplicates, ids), _excluded_rows(excluded, ids)]
    columns = ["part", "class", "name", "count", "unit", "share", "correlation", "detail"]
    table = pd.concat(tables, ignore_index=True).reindex(columns=columns)
    return table.fillna({"class": "", "detail": ""})


# ---------------------------------------------------------------- numbers


def _known(values: pd.Series) -> pd.Series:
    """Texts, with nothing where a value is unknown."""
    texts = values.astype("string").str.strip()
    return texts.mask(texts.str.lower().isin(["", "nan", "none", "na", UNKNOWN]))


def _years(ages: pd.Series) -> pd.Series:
    """Ages as numbers, with nothing where one is unknown or none that a patient can have."""
    years = pd.to_numeric(ages, errors="coerce").astype(float)
    return years.where(years.between(0, 120))


def _with_unknown(values: pd.Series) -> pd.Series:
    """The categories with one more for values that are missing, where any are."""
    return values.cat.add_categories(UNKNOWN).fillna(UNKNOWN) if values.isna().any() else values


def _count_bands(counts: pd.Series) -> pd.Series:
    """Numbers of images in bands, from that of the smallest to that of the largest."""
    bands = ["1", "2", "3", "4–5", "6–10", "11–20", "21+"]
    cut = pd.cut(counts, [0, 1, 2, 3, 5, 10, 20, np.inf], labels=bands)
    return cut.cat.set_categories(bands[cut.cat.codes.min() : cut.cat.codes.max() + 1])


def _age_bands(ages: pd.Series) -> pd.Series:
    """Ages in bands of ten years, of five where they lie close; from 90 on, one band for all."""
    years = ages.clip(upper=90)
    width = 10 if years.max() - years.min() > 40 else 5
    lows = np.arange(years.min() // width * width, years.max() + 1, width).astype(int)
    bands = {low: f"{low}–{low + width - 1}" if low < 90 else "90+" for low in lows}
    named = (years // width * width).map(bands)
    return _with_unknown(named.astype(pd.CategoricalDtype(list(bands.values()))))


def _categories(values: pd.Series) -> pd.Series:
    """The values as categories, in the order of their names: the same in every task."""
    return _with_unknown(values.astype(pd.CategoricalDtype(sorted(values.dropna().unique()))))


def _largest(values: pd.Series, most: int = 10) -> pd.Series:
    """The most frequent values as categories, and the rest as one: "12 other"."""
    counts = values.xs(ALL).value_counts()
    ranked = sorted(counts.index, key=lambda value: (-counts[value], value))
    if len(ranked) > most:
        rest = ranked[most - 1 :]
        ranked = [*ranked[: most - 1], f"{len(rest)} other"]
        values = values.mask(values.isin(rest), ranked[-1])
    return _with_unknown(values.astype(pd.CategoricalDtype(ranked)))


def _by_class(values: pd.Series, classes: Sequence[str]) -> pd.DataFrame:
    """Long form of how often each category stands in each class; the index starts with labels."""
    counts = values.groupby(level="label").value_counts().unstack(fill_value=0)
    counts = counts.reindex([*classes, ALL], columns=values.cat.categories, fill_value=0)
    known = counts.drop(columns=UNKNOWN, errors="ignore")
    shares = known.div(known.sum(axis=1), axis=0).round(4).reindex_like(counts)
    long = pd.DataFrame({"count": counts.stack(), "share": shares.stack()})
    long = long.rename_axis(["class", "name"]).reset_index()
    return long.assign(name=long["name"].astype(str))


def _class_rows(sizes: pd.Series, unit: str, classes: Sequence[str]) -> pd.DataFrame:
    """How many patients and images a class has; `sizes` are the images of each patient."""
    of_class = sizes.groupby(level="label").agg(patients="size", images="sum")
    of_class = of_class.reindex([*classes, ALL], fill_value=0).set_axis(["patients", unit], axis=1)
    counts, shares = of_class.stack(), (of_class / of_class.loc[ALL]).round(4).stack()
    long = pd.DataFrame({"count": counts, "share": shares}).rename_axis(["class", "unit"])
    return long.reset_index().assign(part="classes", name="all")


def _without_ids(texts: pd.Series, ids: set[str]) -> pd.Series:
    """Texts that differ in nothing but the ids in them become one."""

    def without(text: str) -> str:
        pairs = [(word, word.strip(".,:;()[]'\"")) for word in text.split()]
        return " ".join(word.replace(bare, "…") if bare in ids else word for word, bare in pairs)

    return texts.map(without)


def _duplicate_rows(duplicates: pd.DataFrame, ids: set[str], most: int = 6) -> pd.DataFrame:
    """Pairs by kind, patient and side; then up to `most` of them by name, the gravest first."""
    total = pd.DataFrame({"name": ["all"], "count": len(duplicates), "unit": "pairs"})
    if duplicates.empty:
        return total.assign(part="duplicates")
    pairs = duplicates.astype(str)
    pairs["correlation"] = pd.to_numeric(pairs["correlation"], errors="coerce").round(4)
    first, second, same = pairs["first_side"], pairs["second_side"], pairs["same_patient"] == "True"
    # a sample that was dropped before the split has no side
    where = np.select([(first == "") | (second == ""), first == second], [2, 1], 0)
    wheres = np.array([", on two sides", ", on one side", ", not both split"])
    pairs["group"] = pairs["kind"] + np.where(same, ", of one patient", ", of two patients")
    pairs["group"] += wheres[where]
    pairs["name"] = pairs["first"] + (" (" + first + ")").where(first != "", "") + " and "
    pairs["name"] += pairs["second"] + (" (" + second + ")").where(second != "", "")
    pairs = pairs.assign(where=where, same=same).sort_values(
        ["where", "same", "kind", "correlation", "name"], ascending=[True, True, True, False, True]
    )
    groups = pairs.assign(name=pairs["group"], detail=_without_ids(pairs["action"], ids))
    groups = groups.groupby(["name", "detail"], sort=False).size().rename("count").reset_index()
    named = pairs.head(most).assign(count=1, detail=pairs["kind"] + ", " + pairs["action"])
    named = named[["name", "count", "correlation", "detail"]].assign(part="pairs")
    if len(pairs) > most:
        others = pd.DataFrame({"name": [REST], "count": len(pairs) - most, "part": "pairs"})
        named = pd.concat([named, others])
    counted = pd.concat([total, groups]).assign(part="duplicates")
    return pd.concat([counted, named]).assign(unit="pairs")


def _excluded_rows(excluded: pd.DataFrame, ids: set[str], most: int = 6) -> pd.DataFrame:
    """What was left out, by reason, with the first three names of each."""
    total = pd.DataFrame({"name": ["all"], "count": len(excluded)})
    reasons = excluded.assign(reason=_without_ids(excluded["reason"], ids)).groupby("reason")
    by_reason = reasons["name"].agg(
        count="size", detail=lambda names: ", ".join([*names[:3], *["…"][: len(names) - 3]])
    )
    by_reason = by_reason.rename_axis("name").reset_index()
    by_reason = by_reason.sort_values(["count", "name"], ascending=[False, True])
    named = [total, by_reason.head(most)]
    if len(by_reason) > most:
        others = by_reason["count"].iloc[most:].sum()
        named.append(pd.DataFrame({"name": [REST], "count": others}))
    return pd.concat(named).assign(part="left out", unit="names")


# ---------------------------------------------------------------- parts of the figure


class _Panel(NamedTuple):
    """A table of the passport as it is drawn: a row per class, a column per bar."""

    title: str
    counts: pd.DataFrame
    shares: pd.DataFrame
    ticks: list[str]
    column: float  # inches, for a bar
    width: float  # inches, for all bars and the title


def _class_labels(table: pd.DataFrame) -> list[str]:
    """The rows' names with their patients, and the class's share of all patients."""
    rows = table[(table["part"] == "classes") & (table["unit"] == "patients")]
    return [
        f"{wrapped(spoken(name), 1.1, 7)}\n{count:,}"
        + (f" ({100 * share:.1f} %)" if name != ALL else "")
        for name, count, share in rows[["class", "count", "share"]].itertuples(index=False)
    ]


def _panels_of_passport(table: pd.DataFrame, room: float) -> list[_Panel]:
    """The tables that a passport has; images are not told apart from patients if one each."""
    tables = table[(table["class"] != "") & (table["part"] != "classes")]
    patients, images, each = tables["part"].unique()[:3]
    if set(tables["name"][tables["part"] == each]) == {"1"}:
        one_each = f"{patients}, one {images.split()[0].removesuffix('s')} each"
        tables = tables[~tables["part"].isin([images, each])].replace(patients, one_each)
    panels = []
    for part, rows in tables.groupby("part", sort=False):
        order = {"index": rows["class"].unique(), "columns": rows["name"].unique()}
        wide = rows.pivot(index="class", columns="name")
        counts, shares = wide["count"].reindex(**order), wide["share"].reindex(**order)
        most = min(0.62, room / len(order["columns"]) - 0.07)  # long names get narrow lines
        ticks = [
            "not\nknown" if name == UNKNOWN else wrapped(name, most, 6.5)
            for name in order["columns"]
        ]
        widest = max(map(text_width, [*ticks, f"{counts.max(axis=None):,}"]))
        column = max(widest + 0.05, 0.3)
        width = max(len(ticks) * column, text_width(part, 8, "bold") + 0.1)
        panels.append(_Panel(part, counts, shares, ticks, column, width))
    return panels


def _in_bands(panels: list[_Panel], room: float) -> list[list[_Panel]]:
    """The panels in lines of at most `room` inches, as words are set on a page."""
    bands, used = [[]], 0.0
    for panel in panels:
        if bands[-1] and used + panel.width > room:
            bands.append([])
            used = 0.0
        bands[-1].append(panel)
        used += panel.width + 0.1  # between two panels
    return bands


def _draw_band(part: SubFigure, band: list[_Panel], names: list[str], room: float) -> None:
    """Panels side by side, the classes' names at their left; few panels do not fill the page."""
    widths = [panel.width for panel in band]
    spare = max(0.01, 0.7 * room - sum(widths))
    grid = part.add_gridspec(1, len(band) + 1, width_ratios=[*widths, spare])
    for ax, panel in zip([part.add_subplot(grid[i]) for i in range(len(band))], band, strict=True):
        _draw_panel(ax, panel)
    part.axes[0].set_yticks(np.arange(len(names))[::-1] + 0.35, names, parse_math=False)


def _draw_panel(ax: Axes, panel: _Panel) -> None:
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
    ax.set(
        xlim=(-0.5, panel.width / panel.column - 0.5), ylim=(-0.04, len(panel.counts)), yticks=[]
    )
    ax.set_title(panel.title, pad=0)  # above the first row there is room for its numbers
    ax.set_xticks(x, panel.ticks, fontsize=6.5, linespacing=1, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _duplicate_lines(table: pd.DataFrame) -> list[str]:
    """A heading, and what the passport says on duplicates."""
    rows = table[table["part"].isin(["duplicates", "pairs"])]
    rows = rows[["part", "name", "count", "correlation", "detail"]]
    (_, _, total, _, _), *rows = rows.itertuples(index=False)
    lines = [f"duplicates found: {total:,} pairs" if total else "duplicates found: none"]
    for part, name, count, correlation, detail in rows:
        r = "" if pd.isna(correlation) else f", r\u00a0=\u00a0{correlation:.3f}"  # no break
        words = f"{name}{r}: {detail}"
        lines.append(f"{count:,} × {words}" if part == "duplicates" else words)
        if name == REST:
            lines[-1] = f"and {count:,} more"
    return lines


def _excluded_lines(table: pd.DataFrame) -> list[str]:
    """A heading, and what the passport says on what was left out."""
    rows = table.loc[table["part"] == "left out", ["name", "count", "detail"]]
    (_, total, _), *rows = rows.itertuples(index=False)
    lines = [f"left out: {total:,}" if total else "left out: nothing"]
    for name, count, detail in rows:
        rest = name == REST
        lines.append(
            f"and {count:,} for other reasons" if rest else f"{count:,} × {name} ({detail})"
        )
    return lines


def _wrapped_lines(lines: list[str]) -> tuple[str, str]:
    """The heading, and the other lines as one text as wide as half a page."""
    heading, *rest = lines
    return heading, "\n".join(wrapped(line, PAGE / 2 - 0.2, 6.5, indent="    ") for line in rest)
