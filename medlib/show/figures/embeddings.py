"""Figures of embeddings, and of what a backbone sees in an image."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style
from medlib.show.figures import parts

Maps = Mapping[str, np.ndarray]  # a backbone's printed name -> a map for each image


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
    """Embeddings in two dimensions, a row per backbone, by label, by patient and by site.

    `points` has the columns backbone, pretraining, x, y, shares (of the variance, in words), label,
    patient and, where it is known, site. The eight patients with the most images are coloured, and
    the eight largest sites. A column without such groups is left out.
    """
    rows = parts.by_backbone(points)
    columns = {"label": list(classes)} | _groups(points)
    size = (style.PAGE, 2.1 * len(rows) + 0.5)
    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False, figsize=size)
    for line, (name, part) in zip(axes, rows.items(), strict=True):
        for ax, (column, groups) in zip(line, columns.items(), strict=True):
            rest, by_label = part[~part[column].isin(groups)], column == "label"
            ax.scatter(rest["x"], rest["y"], s=3, color="0.85", linewidths=0, rasterized=True)
            look = {"s": 5 if by_label else 9, "alpha": 0.8, "linewidths": 0}
            look["rasterized"] = len(part) > 3000
            for group, colour, mark in zip(groups, style.COLOURS, style.MARKERS, strict=False):
                some = part[part[column] == group]
                words = names.spoken(group) if by_label else group
                look |= {"color": colour, "marker": mark, "label": words}
                above = 2 - len(some) / len(part)  # small groups over large ones
                ax.scatter(some["x"], some["y"], zorder=above, **look)
            ax.set(xticks=[], yticks=[])
        words = style.wrapped(name, 1.9, 7) + "\n" + part["shares"].iloc[0]
        line[0].set_ylabel(words, fontsize=6.5)
    for ax, column in zip(axes[0], columns, strict=True):
        more = "" if column == "label" else ", the largest eight"
        ax.set_title(f"by {column}{more if len(columns[column]) == 8 else ''}")
    look = {"fontsize": 5.5, "columnspacing": 0.8, "handletextpad": 0.2}
    for ax in axes[-1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, **look)
    style.title_above(fig, title)
    return fig


def _groups(points: pd.DataFrame) -> dict[str, list]:
    """The largest patients and sites, where there are several and at least one has two images."""
    groups = {}
    for column in [name for name in ("patient", "site") if name in points]:
        sizes = points.loc[points["backbone"] == points["backbone"].iloc[0], column].value_counts()
        sizes = sizes[sizes.index.astype(str) != ""]
        if len(sizes) > 1 and sizes.iloc[0] > 1:
            groups[column] = list(sizes.index[:8])
    return groups


@style.styled
def what_it_sees(
    images: np.ndarray, labels: Sequence[str], colours: Maps, evidence: Maps, title: str = ""
) -> plt.Figure:
    """The same images for several backbones, coloured by the features at each position.

    `images` is uint8 (n, H, W, 3). `colours` maps a backbone's printed name to the first three
    principal components of its features (n, h, w, 3), 0 to 1. `evidence` maps it to
    class-activation maps (n, h, w) for the image's own label. They are drawn over the image: red is
    evidence for the label, blue against it.
    """
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
    style.caption_below(fig, note)
    return fig
