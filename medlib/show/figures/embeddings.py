"""Figures of embeddings, and of what a backbone sees in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medlib.show import style
from medlib.show.figures.parts import named
from medlib.show.names import in_order, spoken
from medlib.show.style import COLOURS, COLUMN, MARKERS, PAGE, legend_above, styled


@styled
def projection(
    embeddings: np.ndarray, labels: Sequence[str], classes: Sequence[str], title: str | None = None
) -> Figure:
    """Embeddings on their first two principal components, a colour and a marker per class.

    `embeddings` is float of shape (n, d), each column standardised first; the axes state the
    share of the variance that they show. A small share means that the picture shows little.
    """
    labels = np.asarray(labels)
    points, shares = components(embeddings)
    fig, ax = plt.subplots(figsize=(COLUMN, 2.9))
    size = np.clip(2500 / len(points), 3, 18)
    handles, words = [], []
    for name, marker, colour in zip(classes, MARKERS, COLOURS, strict=False):
        members = points[labels == name]
        ax.scatter(
            *members.T, s=size, color=colour, marker=marker, alpha=0.7, linewidths=0,
            rasterized=len(points) > 3000,  # else a PDF of ten thousand marks
        )  # fmt: skip
        handles.append(Line2D([], [], linestyle="none", color=colour, marker=marker))
        words.append(f"{spoken(name)} ({len(members):,})")
    first, second = 100 * shares
    ax.set(
        xlabel=f"component 1 ({first:.1f} % of variance)", xticks=[],
        ylabel=f"component 2 ({second:.1f} % of variance)", yticks=[], title=title or "",
    )  # fmt: skip
    legend_above(fig, handles, words)
    return fig


def components(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised embeddings (n, d) on their first two principal components (n, 2).

    Beside them the share of the variance that each component has (2,).
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(StandardScaler().fit_transform(embeddings))
    # Three decimals are below what can be seen, and hide the last bits of parallel sums.
    return points.round(3), pca.explained_variance_ratio_


@style.styled
def embeddings(points: pd.DataFrame, classes: Sequence[str], title: str = "") -> Figure:
    """Embeddings in two dimensions, a row a backbone, by label, by patient and by site.

    `points` has the columns backbone, pretraining, x, y, shares (of the variance, in words), label,
    patient and, where it is known, site. Coloured are the eight patients with the most images, and
    the eight sites; a column without any such groups is left out.
    """
    rows = named(points)
    columns = {"label": list(classes)}
    for name in ("patient", "site"):
        if name in rows:
            sizes = rows.loc[rows["backbone"] == rows["backbone"].iloc[0], name].value_counts()
            sizes = sizes[sizes.index.astype(str) != ""]
            if len(sizes) > 1 and sizes.iloc[0] > 1:
                columns[name] = list(sizes.index[:8])
    shown = list(in_order(rows)["name"])
    fig, axes = plt.subplots(len(shown), len(columns), squeeze=False,
                             figsize=(PAGE, 2.1 * len(shown) + 0.5))  # fmt: skip
    for line, name in zip(axes, shown, strict=True):
        part = rows[rows["name"] == name]
        for ax, (column, groups) in zip(line, columns.items(), strict=True):
            rest = part[~part[column].isin(groups)]
            ax.scatter(rest["x"], rest["y"], s=3, color="0.85", linewidths=0, rasterized=True)
            for group, colour, marker in zip(groups, style.COLOURS, style.MARKERS, strict=False):
                some = part[part[column] == group]
                above = 2 - len(some) / len(part)  # small groups are not covered by large ones
                ax.scatter(some["x"], some["y"], s=9 if column != "label" else 5, color=colour,
                           marker=marker, alpha=0.8, linewidths=0, rasterized=len(part) > 3000,
                           zorder=above,
                           label=spoken(group) if column == "label" else group)  # fmt: skip
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(
            style.wrapped(name, 1.9, 7) + "\n" + part["shares"].iloc[0], fontsize=6.5
        )
    for ax, column in zip(axes[0], columns, strict=True):
        more = "" if column == "label" else ", the largest eight"
        ax.set_title(f"by {column}{more if len(columns[column]) == 8 else ''}")
    for ax in axes[-1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=5.5,
                  columnspacing=0.8, handletextpad=0.2)  # fmt: skip
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    return fig


@style.styled
def what_it_sees(
    images: np.ndarray, labels: Sequence[str], colours: Mapping[str, np.ndarray],
    evidence: Mapping[str, np.ndarray], title: str = "",
) -> Figure:  # fmt: skip
    """The same images through several backbones: what lies where in their features.

    `images` is uint8 (n, H, W, 3). `colours` maps a backbone's printed name to its first three
    principal components (n, h, w, 3), 0 to 1, `evidence` to class-activation maps (n, h, w) for the
    image's own label, drawn over it: red speaks for it, blue against.
    """
    n, names = len(images), [*colours, *evidence]
    left = max(
        map(style.text_width, ["ImageNet", *[style.wrapped(name, 1.2, 7) for name in names]])
    )
    side = min((PAGE - left - 0.15) / n, 1.3)
    fig, axes = plt.subplots(
        len(names) + 1, n, figsize=(left + 0.15 + n * side, 0.45 + (len(names) + 1) * side),
        squeeze=False,
    )  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image, label in zip(axes[0], images, labels, strict=True):
        ax.imshow(image)
        words = style.wrapped(spoken(label), side, 6.5)
        ax.set_title(words, fontsize=6.5, fontweight="normal")
    for line, (name, maps) in zip(axes[1:], [*colours.items(), *evidence.items()], strict=True):
        line[0].set_ylabel(
            style.wrapped(name, 1.2, 7), rotation=0, ha="right", va="center", fontsize=7
        )
        for ax, image, values in zip(line, images, maps, strict=True):
            if name in colours:
                ax.imshow(values, interpolation="nearest")
                continue
            ax.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            most = np.abs(maps).max() or 1
            edges = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
            ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.5, extent=edges,
                      interpolation="bilinear")  # fmt: skip
    fig.suptitle(title, fontsize=8, fontweight="bold", x=0.01, ha="left")
    note = "Colours: the first three principal components of local features, over all images."
    if evidence:
        note += " Red and blue: evidence for and against the image's label, by a linear head."
    style.caption_below(fig, note)
    return fig
