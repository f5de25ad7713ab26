"""Figures of packed images: examples of each class, slices of a volume, pairs of copies."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke

from medlib.show import names, style

MOST = 40  # rows of pictures: thousands would take minutes to draw, and nobody could read them


@style.styled
def sample_grid(
    images: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str],
    per_class: int = 6,
    title: str = "",
) -> plt.Figure:
    """Example images, one row per class, with the class's name and its number of images at left.

    `images` is uint8 of shape (N, H, W, 3), `labels` the N class names. The examples are spread
    evenly over the class's images in their order, so that neighbouring slices of one patient do not
    fill the row. A class without images keeps its (empty) row. If there are more than :data:`MOST`
    classes, the first are shown, and the title says so.
    """
    rows = {}
    for name in classes[:MOST]:
        members = np.flatnonzero(np.asarray(labels) == name)
        words = f"{textwrap.fill(names.spoken(name), 18)}\n{len(members):,} images"
        rows[words] = members[_spread(len(members), per_class)]
    return _picture_rows(images, rows, per_class, title + left_out(classes))[0]


@style.styled
def slice_strip(
    images: np.ndarray, index: pd.DataFrame, classes: Sequence[str] | None = None, title: str = ""
) -> plt.Figure:
    """The packed slices of one volume of each class, in order, each with its slice number.

    `images` is uint8 of shape (N, H, W, 3); `index` has N rows in the same order, with sample_id,
    label and slice. A class (given, or all in order of appearance) is shown by its first sample:
    eight of its slices, spread evenly, or all if there are fewer. If there are more than
    :data:`MOST` classes, the first are shown, and the title says so. Letters at the edges of the
    first picture say how it must be oriented: anterior at the top, the patient's right at the left.
    """
    rows = {}
    classes = list(index["label"].unique() if classes is None else classes)
    for name in classes[:MOST]:
        sample = index["sample_id"][index["label"] == name].head(1)
        members = np.flatnonzero(index["sample_id"].isin(sample))
        members = members[np.argsort(index["slice"].iloc[members].astype(int), kind="stable")]
        words = [*textwrap.wrap(names.spoken(name), 18), *textwrap.wrap("".join(sample), 18)]
        rows["\n".join(words)] = members[_spread(len(members), 8)]
    title += left_out(classes)
    fig, axes = _picture_rows(images, rows, max(1, *map(len, rows.values())), title)
    for row, members in zip(axes, rows.values(), strict=True):
        for ax, number in zip(row, index["slice"].iloc[members], strict=False):
            _on_picture(ax, 0.97, 0.03, f"{int(number)}")
    for letter, place in {"A": (0.5, 0.98), "P": (0.5, 0.02), "R": (0, 0.5), "L": (1, 0.5)}.items():
        _on_picture(axes[0, 0], *place, letter, fontweight="bold")
    return fig


@style.styled
def copies(pairs: pd.DataFrame, pictures: np.ndarray, title: str = "") -> plt.Figure:
    """Pairs of images side by side, three in a row. Below each: names, sides and kind.

    `pairs` has first, second, kind, correlation, first_side and second_side; `pictures` are the
    images of the first K of them, uint8 of shape (K, 2, H, W, 3). The title counts the others.
    """
    shown, across, below, gap = len(pictures), 3, 0.42, 0.03  # inches: words, between pictures
    more = len(pairs) - shown
    title += f" ({shown} of {len(pairs):,} pairs)" if more else ""
    side, top = style.PAGE / (2 * across) - 2 * gap, 0.25
    height, lines = side * pictures.shape[2] / pictures.shape[3], -(-shown // across)
    size = style.PAGE, top + lines * (height + below)
    fig = plt.figure(figsize=size, layout="none")
    for number, (row, both) in enumerate(zip(pairs.itertuples(), pictures, strict=False)):
        line, place = divmod(number, across)
        left, low = place * style.PAGE / across + gap, size[1] - top - line * (height + below)
        for k, picture in enumerate(both):
            at = (left + k * (side + gap)) / size[0], (low - height) / size[1]
            ax = fig.add_axes((*at, side / size[0], height / size[1]))
            ax.imshow(picture)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        ends = ((row.first, row.first_side), (row.second, row.second_side))
        words = [f"{_shortened(name, 34)} {f'({at})' if at else ''}" for name, at in ends]
        words.append(f"{row.kind}, correlation {row.correlation:.2f}")
        at = left / size[0], (low - height - 0.03) / size[1]
        fig.text(*at, "\n".join(words), va="top", fontsize=6, parse_math=False)
    fig.text(0.005, 1 - 0.05 / size[1], title, va="top", fontsize=8, fontweight="bold")
    return fig


@style.styled
def predicted(
    pictures: Mapping[str, np.ndarray], table: pd.DataFrame, classes: Sequence[str], title: str = ""
) -> plt.Figure:
    """New images with a model's predictions, by distance: the most usual one first.

    `pictures` are uint8 (H, W, 3) by sample id. `table` has sample_id, class, prob_<class>,
    distance and unusual. Each picture shows the predicted class with its probability, and the
    sample with its distance. A frame marks an unusual image.
    """
    told = table.set_index("sample_id").loc[list(pictures)].sort_values("distance", kind="stable")
    shown, half = np.stack([pictures[sample] for sample in told.index]), -(-len(told) // 2)
    places = np.arange(len(told))
    halves = {"nearer to the\ntraining images": places[:half]}
    halves |= {"farther away": places[half:]} if len(told) > 1 else {}
    fig, axes = _picture_rows(shown, halves, half, title)
    for ax, (sample, row) in zip(axes.flat, told.iterrows(), strict=False):
        name = textwrap.fill(names.spoken(row["class"]), 14)
        _on_picture(ax, 0.03, 0.97, f"{name}\n{row['prob_' + row['class']]:.2f}")
        how = "unusual:" if row["unusual"] else "distance"
        _on_picture(ax, 0.03, 0.03, f"{_shortened(sample, 16)}\n{how} {row['distance']:.2f}")
        if row["unusual"]:
            ax.spines[:].set(visible=True, color=style.VERMILION, linewidth=2.5)
    return fig


def _shortened(name: str, most: int) -> str:
    """A long name without its beginning: the files of one folder differ at the end."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def left_out(classes: Sequence[str]) -> str:
    """The words for a title if there are more classes than a figure shows; "" otherwise."""
    return f" (the first {MOST} of {len(classes):,} classes)" if len(classes) > MOST else ""


def _spread(n: int, most: int) -> np.ndarray:
    """Up to `most` of the positions 0 to n-1, spread evenly from the first to the last."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(int)


def _picture_rows(
    images: np.ndarray, rows: Mapping[str, np.ndarray], columns: int, title: str
) -> tuple[plt.Figure, np.ndarray]:
    """A figure of rows of pictures: `rows` maps the words at a row's left to its positions."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8, (N, H, W, 3); got {images.dtype} {images.shape}")
    # All sizes (inches) are set here: a layout engine would leave room around the pictures.
    left, gap = max(style.text_width(words, 7.5) for words in rows) + 0.12, 0.03
    width = min((style.PAGE - left) / columns - gap, 1.5)
    height = width * images.shape[1] / images.shape[2]
    full = left + columns * (width + gap)
    heading = style.wrapped(title, full - 0.1, 8, weight="bold")
    top = 0.05 + 0.15 * len(heading.splitlines())
    size = full, top + len(rows) * (height + gap)
    places = {"left": left / size[0], "right": 1 - gap / size[0], "wspace": gap / width}
    places |= {"top": 1 - top / size[1], "bottom": gap / size[1], "hspace": gap / height}
    fixed = {"figsize": size, "layout": "none", "gridspec_kw": places}
    fig, axes = plt.subplots(len(rows), columns, squeeze=False, **fixed)
    for row, (words, members) in zip(axes, rows.items(), strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, index in zip(row, members, strict=False):
            ax.imshow(images[index])
        row[0].set_ylabel(words, rotation=0, ha="right", va="center", labelpad=4)
    fig.text(0.05 / full, 1 - 0.05 / size[1], heading, va="top", fontsize=8, fontweight="bold")
    return fig, axes


def _on_picture(ax: plt.Axes, x: float, y: float, words: str, **look) -> None:
    """White words with a black rim at a place (0 to 1), inside the picture's edges."""
    sides = {"ha": ("left", "center", "right"), "va": ("bottom", "center", "top")}
    for (name, choices), at in zip(sides.items(), (x, y), strict=True):
        look[name] = choices[int(at >= 0.5) + int(at > 0.5)]
    look |= {"color": "white", "fontsize": 6.5, "transform": ax.transAxes}
    ax.text(x, y, words, path_effects=[withStroke(linewidth=1.5, foreground="black")], **look)
