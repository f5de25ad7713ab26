"""Figures of embeddings, and of what a backbone sees in an image."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style
from medlib.show.figures import parts

Maps = Mapping[str, np.ndarray]  # a backbone's printed name -> a map for each image
FEW, ACROSS = 4, 5  # classes that share a panel; panels in a row
PLACES = 4  # positions along a side of a map; fewer show nothing about places in an image


@style.styled
def projection(
    embeddings: np.ndarray, labels: Sequence[str], classes: Sequence[str], title: str = ""
) -> plt.Figure:
    """Embeddings on their first two principal components, a colour and a marker per class.

    `embeddings` is float of shape (n, d), each column standardised first; the axes state the
    share of the variance that they show. A small share means that the picture shows little.
    """
    labels = np.asarray(labels)
    points, shares = components(embeddings)
    fig, ax = plt.subplots(figsize=(style.COLUMN, 2.9))
    look = {"s": np.clip(2500 / len(points), 3, 18), "alpha": 0.7, "linewidths": 0}
    look["rasterized"] = len(points) > 3000  # else a PDF of ten thousand marks
    entries = {}
    for name, marker, colour in zip(classes, style.MARKERS, style.COLOURS, strict=False):
        members = points[labels == name]
        ax.scatter(*members.T, color=colour, marker=marker, **look)
        mark = {"linestyle": "none", "color": colour, "marker": marker}
        entries[f"{names.spoken(name)} ({len(members):,})"] = plt.Line2D([], [], **mark)
    first, second = 100 * shares
    ax.set(xticks=[], yticks=[], title=title)
    ax.set_xlabel(f"component 1 ({first:.1f} % of variance)")
    ax.set_ylabel(f"component 2 ({second:.1f} % of variance)")
    style.legend_above(fig, entries)
    return fig


def components(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised embeddings (n, d) on their first two principal components (n, 2).

    The second array is the share of the variance of each component (2,).
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(StandardScaler().fit_transform(embeddings))
    # Three decimals are below what can be seen, and hide the last bits of parallel sums.
    return points.round(3), pca.explained_variance_ratio_


def numbered(patients: pd.Series) -> pd.Series:
    """Replace patients' names by numbers: "patient 1" has the most rows, "patient 2" follows."""
    order = {name: f"patient {i}" for i, name in enumerate(patients.value_counts().index, start=1)}
    return patients.map(order)


@style.styled
def embeddings(points: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """Embeddings in two dimensions, for each backbone by label, by patient and by site.

    `points` has the columns backbone, pretraining, x, y, shares (of the variance, in words), label,
    patient and, where it is known, site. Up to :data:`FEW` classes share a panel. If there are
    more, each has a panel of its own, in colour over all others in grey; of very many, the largest
    are drawn. The eight patients with the most images are coloured, and the eight largest sites. A
    column without such groups is left out.
    """
    rows, drawn = parts.by_backbone(points), _panels(points, list(classes))
    lines = -(-len(drawn) // ACROSS)
    across = -(-len(drawn) // lines)
    size = (style.PAGE, len(rows) * lines * (2.2 if lines == 1 else 1.3) + 0.5)
    fig, axes = plt.subplots(len(rows) * lines, across, squeeze=False, figsize=size)
    for at, (name, part) in enumerate(rows.items()):
        block = axes[at * lines : (at + 1) * lines]
        words = style.wrapped(parts.short(name), 1.3 * lines, 7) + "\n" + part["shares"].iloc[0]
        block[0, 0].set_ylabel(words, fontsize=6.5)
        for ax, panel in itertools.zip_longest(block.flat, drawn):
            ax.set(xticks=[], yticks=[])
            if panel is None:
                ax.axis("off")
            else:
                _scatter(ax, part, panel)
                words = style.wrapped(panel.title, style.PAGE / across - 0.25, 7, weight="bold")
                ax.set_title(words, fontsize=7)
    look = {"fontsize": 6, "columnspacing": 0.8, "handletextpad": 0.2, "markerscale": 1.5}
    for ax, panel in zip(axes[-lines:].flat, drawn, strict=False):
        if panel.named:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, **look)
    style.title_above(fig, title)
    words = "Two principal components. Grey: all other points."
    if any(panel.joined for panel in drawn):
        words += " A colour in the panel of patients: one patient, whose images are joined."
    style.caption_below(fig, words)
    return fig


class Panel(NamedTuple):
    """Groups of one column of the points, drawn in colours over all others in grey."""

    title: str
    column: str
    groups: dict[str, str]  # each with its colour
    named: bool = False  # whether a legend names them
    joined: bool = False  # whether lines join the points of a group


def _panels(points: pd.DataFrame, classes: list[str]) -> list[Panel]:
    """The panels of a backbone: classes, then patients and sites if they show something.

    That is so if there are several, and at least one has two images.
    """
    one = points[points["backbone"] == points["backbone"].iloc[0]]
    coloured = dict(zip(classes, style.COLOURS, strict=False))
    panels = [Panel("by label", "label", coloured, named=True)]
    if len(classes) > FEW:
        sizes = one["label"].value_counts().reindex(classes, fill_value=0)
        largest = sizes.sort_values(ascending=False, kind="stable").index[: len(style.COLOURS)]
        shown = [name for name in classes if name in largest]
        panels = [
            Panel(f"{names.spoken(name)} ({sizes[name]:,})", "label", {name: colour})
            for name, colour in zip(shown, style.COLOURS, strict=False)
        ]
    for column in [name for name in ("patient", "site") if name in points]:
        sizes = one[column].value_counts()
        sizes = sizes[sizes.index.astype(str) != ""]
        if len(sizes) > 1 and sizes.iloc[0] > 1:
            groups = dict(zip(sizes.index, style.COLOURS, strict=False))
            more = f": {len(groups)} of {len(sizes):,}" if len(sizes) > len(groups) else ""
            joined = column == "patient"
            panels.append(Panel(f"by {column}{more}", column, groups, not joined, joined))
    return panels


def _scatter(ax: plt.Axes, points: pd.DataFrame, panel: Panel) -> None:
    """All points in grey, the groups of a panel in colours, small groups over large ones."""
    rest = points[~points[panel.column].isin(panel.groups)]
    ax.scatter(rest["x"], rest["y"], s=2, color="0.87", linewidths=0, rasterized=True)
    for (group, colour), mark in zip(panel.groups.items(), style.MARKERS, strict=False):
        some = points[points[panel.column] == group]
        above = 2 - len(some) / len(points)
        area = np.clip(2500 / max(len(some), 1), 3, 12)
        look = {"s": area, "alpha": 0.75, "linewidths": 0, "rasterized": len(points) > 3000}
        label = names.spoken(group) if panel.column == "label" else group
        marker = mark if len(panel.groups) > 1 else "o"
        ax.scatter(
            some["x"], some["y"], zorder=above, color=colour, marker=marker, label=label, **look
        )
        if panel.joined:
            ax.plot(some["x"], some["y"], color=colour, linewidth=0.6, alpha=0.6, zorder=1)


@style.styled
def what_it_sees(
    images: np.ndarray, labels: Sequence[str], colours: Maps, evidence: Maps, title: str = ""
) -> plt.Figure:
    """The same images for several backbones, coloured by the features at each position.

    `images` is uint8 (n, H, W, 3). `colours` maps a backbone's printed name to the first three
    principal components of its features (n, h, w, 3), 0 to 1. `evidence` maps it to
    class-activation maps (n, h, w) for the image's own label. They are drawn over the image: red is
    evidence for the label, blue against it. Maps with fewer than :data:`PLACES` positions along a
    side are not drawn, and the caption says so; without any other map the figure is one sentence.
    """
    coarse = {name: m.shape[1:3] for name, m in colours.items() if min(m.shape[1:3]) < PLACES}
    left_out = [f"{name} ({h} × {w})" for name, (h, w) in coarse.items()]
    colours, evidence = (
        {name: m for name, m in maps.items() if min(m.shape[1:3]) >= PLACES}
        for maps in (colours, evidence)
    )
    too_few = "Not drawn, because so few positions say nothing about places in an image: "
    too_few += f"{', '.join(left_out)}."
    if not colours and not evidence:
        return parts.saying(f"{title}. {too_few}")
    n, rows = len(images), [style.wrapped(name, 1.2, 7) for name in [*colours, *evidence]]
    left = max(map(style.text_width, ["ImageNet", *rows]))
    side = min((style.PAGE - left - 0.15) / n, 1.3)
    size = (left + 0.15 + n * side, 0.45 + (len(rows) + 1) * side)
    fig, axes = plt.subplots(len(rows) + 1, n, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image, label in zip(axes[0], images, labels, strict=True):
        ax.imshow(image)
        words = style.wrapped(names.spoken(label), side, 6.5)
        ax.set_title(words, fontsize=6.5, fontweight="normal")
    for line, name in zip(axes[1:], rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    for line, maps in zip(axes[1:], colours.values(), strict=False):
        for ax, values in zip(line, maps, strict=True):
            ax.imshow(values, interpolation="nearest")
    for line, maps in zip(axes[1 + len(colours) :], evidence.values(), strict=True):
        most = np.abs(maps).max() or 1
        for ax, image, values in zip(line, images, maps, strict=True):
            ax.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            edges = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
            look = {"cmap": "RdBu_r", "alpha": 0.5, "interpolation": "bilinear"}
            ax.imshow(values, vmin=-most, vmax=most, extent=edges, **look)
    style.title_above(fig, title)
    note = "Colours: the first three principal components of local features, over all images."
    if evidence:
        note += " Red and blue: evidence for and against the image's label, by a linear head."
    style.caption_below(fig, f"{note} {too_few}" if left_out else note)
    return fig
