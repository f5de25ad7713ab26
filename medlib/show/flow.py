"""The figure of a participant flow: boxes and arrows from what was found to the sides."""

from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from medlib.data import flow
from medlib.data.passport import ALL
from medlib.show.names import spoken
from medlib.show.style import PAGE, styled, wrapped

MOST_REASONS, MOST_CLASSES, MOST_NOTES = 6, 10, 3  # at most so many are named
SIZE, LINE, EDGE = 6.5, 0.12, 0.07  # font size in points; a line and a margin in inches
GAP, APART = 0.25, 0.12  # inches between boxes, and between sides
LEFT = (PAGE - 2 * EDGE - 2 * APART) / 3  # inches: boxes on the left, as wide as one of three sides
FILLED = 0.92  # of a box is used: on a screen, letters are up to 8 % wider than measured
A_LINE = 5  # sides in a row
HEADINGS = {"train": "training", "val": "validation"}
KEPT, LEAVES = "white", "0.94"  # colours of boxes
ARROW = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}


class _Box(NamedTuple):
    """A box: its upper left corner and width in inches, its text, and its colour."""

    x: float
    y: float
    width: float
    heading: str
    lines: list[str]
    colour: str = KEPT

    @property
    def height(self) -> float:
        return (1 + sum(line.count("\n") + 1 for line in self.lines)) * LINE + 2 * EDGE

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height


@styled
def draw(numbers: pd.DataFrame, title: str = "", more: str = "its .excluded.csv") -> plt.Figure:
    """Draw a participant flow: found, excluded by reason, copies dropped, kept, and each side.

    `numbers` is what `data.flow.table` returns. If there are many reasons, the most frequent ones
    are named. For the others, the box says how many there are and names the file ``more`` that
    lists them. If there are many classes, those with the most patients are named.
    """
    numbers, classes_left = _largest(numbers)
    title = wrapped(title, FILLED * PAGE, 8, weight="bold")
    upper = _upper(numbers, more)
    rows = _sides(numbers, upper[-1].bottom - GAP)
    note = [*_note(numbers), *classes_left]
    note = "\n".join(wrapped(line, FILLED * PAGE, SIZE) for line in note)
    top = 0.15 * len(title.splitlines()) + 0.1
    low = min(box.bottom for row in rows for box in row) - 0.1
    bottom = low - LINE * len(note.splitlines()) - 0.05
    fig = plt.figure(figsize=(PAGE, top - bottom))
    fig.set_layout_engine("none")  # everything is placed here
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, PAGE), ylim=(bottom, top))  # one unit is one inch
    ax.axis("off")
    ax.text(EDGE, top - 0.05, title, va="top", fontsize=8, fontweight="bold", parse_math=False)
    _write(ax, EDGE, low, note.splitlines(), color="0.25")
    for box in [*upper, *(box for row in rows for box in row)]:
        frame = {"facecolor": box.colour, "edgecolor": "0.3", "linewidth": 0.6}
        ax.add_patch(plt.Rectangle((box.x, box.bottom), box.width, box.height, **frame))
        _write(ax, box.x + EDGE, box.y - EDGE, [box.heading], fontweight="bold")
        _write(ax, box.x + EDGE, box.y - EDGE - LINE, "\n".join(box.lines).splitlines())
    _arrows(ax, upper, rows)
    return fig


def _write(ax: plt.Axes, x: float, y: float, lines: list[str], **look) -> None:
    """Lines of text from y downwards, :data:`LINE` inches each, whatever letters they have."""
    for number, line in enumerate(lines):
        place = x, y - (number + 0.78) * LINE
        ax.text(*place, line, va="baseline", fontsize=SIZE, parse_math=False, **look)


def _largest(numbers: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The numbers without the classes that are not named, and a line that says so."""
    kept = numbers[(numbers["stage"] == flow.KEPT) & (numbers["name"] != ALL)]
    if len(kept) <= MOST_CLASSES:
        return numbers, []
    order = kept.sort_values("patients", ascending=False, kind="stable")
    left_out = numbers["name"].isin(order["name"].iloc[MOST_CLASSES:]) & numbers["patients"].notna()
    words = f"Only the {MOST_CLASSES} classes with the most patients are named, of {len(kept):,}."
    return numbers[~left_out], [words]


def _upper(numbers: pd.DataFrame, more: str) -> list[_Box]:
    """The boxes above the sides: found, what leaves (to the right), and kept."""
    part = numbers.set_index("stage")
    found, kept = part.loc[[flow.FOUND]], part.loc[[flow.KEPT]]
    boxes = [_Box(EDGE, 0, LEFT, f"found: {found['count'].iloc[0]:,} entries", [])]
    x, y = LEFT + 2 * GAP, boxes[0].bottom - GAP
    for stage, words in ((flow.EXCLUDED, "excluded"), (flow.COPIES, "copies dropped")):
        rows = part.loc[[stage]]
        n, width = rows["count"].iloc[0], PAGE - x - EDGE
        heading = f"{words}: {n:,} {rows['unit'].iloc[0]}" if n else f"{words}: none"
        look = {"inches": FILLED * (width - 2 * EDGE), "size": SIZE, "indent": "    "}
        lines = [wrapped(line, **look) for line in _reasons(rows.iloc[1:], more)]
        boxes.append(_Box(x, y, width, heading, lines, LEAVES))
        y = boxes[-1].bottom - GAP / 2
    y -= GAP / 2
    return [*boxes, _Box(EDGE, y, LEFT, "used", _counts(kept, _one_each(numbers), LEFT))]


def _reasons(rows: pd.DataFrame, more: str) -> list[str]:
    named, others = rows.head(MOST_REASONS), rows.iloc[MOST_REASONS:]
    pairs = zip(named["count"], named["name"], strict=True)
    lines = [f"{count:,} × {reason}" for count, reason in pairs]
    if len(others):
        lines.append(f"{others['count'].sum():,} for {len(others):,} more reasons: {more}")
    return lines


def _sides(numbers: pd.DataFrame, y: float) -> list[list[_Box]]:
    """A box for each side, in rows of at most :data:`A_LINE`."""
    upper = [flow.FOUND, flow.EXCLUDED, flow.COPIES, flow.KEPT, flow.OTHER, flow.NOTES]
    stages = [stage for stage in numbers["stage"].unique() if stage not in upper]
    one_each, columns = _one_each(numbers), min(len(stages), A_LINE)
    width = (PAGE - 2 * EDGE - (columns - 1) * APART) / columns
    rows = []
    for start in range(0, len(stages), columns):
        row = []
        for place, stage in enumerate(stages[start : start + columns]):
            lines = _counts(numbers[numbers["stage"] == stage], one_each, width)
            x = EDGE + place * (width + APART)
            row.append(_Box(x, y, width, HEADINGS.get(stage, stage), lines))
        rows.append(row)
        y = min(box.bottom for box in row) - GAP
    return rows


def _one_each(numbers: pd.DataFrame) -> bool:
    """Whether each patient has one image."""
    return bool((numbers["patients"] == numbers["count"])[numbers["patients"].notna()].all())


def _counts(rows: pd.DataFrame, one_each: bool, width: float) -> list[str]:
    """Patients and images of a side, then of each class."""
    both = rows.set_index("name")[["patients", "count"]]
    total, classes = both.loc[ALL], both.drop(ALL)
    images = f"{total['count']:,} {rows['unit'].iloc[0]}"
    lines = [f"{total['patients']:,} patients", *([] if one_each else [images])]
    for name, patients, count in classes.itertuples():
        lines.append(f"{spoken(name)}: {patients:,}" + ("" if one_each else f" / {count:,}"))
    return [wrapped(line, FILLED * (width - 2 * EDGE), SIZE, indent="    ") for line in lines]


def _note(numbers: pd.DataFrame) -> list[str]:
    """The text beneath the boxes."""
    unit = numbers["unit"][numbers["stage"] == flow.KEPT].iloc[0]
    one, each = unit.removesuffix("s"), f"Beside a class: patients / {unit}."
    lines = [
        f"An entry is {'an' if one == 'image' else 'a'} {one}, or a file, a patient or a row of a "
        "table that cannot be used. "
        + (f"Each patient has one {one}." if _one_each(numbers) else each)
    ]
    if numbers["stage"].str.startswith("fold ").any():
        words = "fold i is tested, fold i + 1 validates, and the others train."
        lines.append(f"Cross-validation: {words}")
    others = numbers[numbers["stage"] == flow.OTHER]
    if len(others):
        words = "; ".join(others["name"].head(MOST_NOTES))
        more = f"; and {len(others) - MOST_NOTES} more lines" if len(others) > MOST_NOTES else ""
        lines.append(f"Other files, not counted above: {words}{more}.")
    return lines + numbers["name"][numbers["stage"] == flow.NOTES].head(MOST_NOTES).tolist()


def _arrows(ax: plt.Axes, upper: list[_Box], rows: list[list[_Box]]) -> None:
    """Draw arrows from "found" to "used", to the boxes of excluded images, and to each side."""

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops=ARROW)

    found, *leaving, used = upper
    arrow((used.middle, found.bottom), (used.middle, used.y))
    for box in leaving:
        y = box.y - box.height / 2
        arrow((used.middle, y), (box.x, y))
    line = {"color": ARROW["color"], "linewidth": ARROW["linewidth"]}
    for number, row in enumerate(rows):
        bus = row[0].y + GAP / 2
        begin = used.bottom if number == 0 else rows[0][0].y + GAP / 2
        x = used.middle if number == 0 else EDGE / 2
        ax.plot([x, x], [begin, bus], **line)
        ends = [x, *(box.middle for box in row)] + ([EDGE / 2] if len(rows) > 1 else [])
        ax.plot([min(ends), max(ends)], [bus, bus], **line)
        for box in row:
            arrow((box.middle, bus), (box.middle, box.y))
