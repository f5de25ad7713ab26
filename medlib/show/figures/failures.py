"""Where backbones go wrong: images with every backbone's answer, and the metrics of each class."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from medlib.show import names, style, tables
from medlib.show.figures import images as pictures
from medlib.show.figures import parts
from medlib.stats import failures

ACROSS = 6  # pictures in a row
SIZE, LINE = 5.5, 0.102  # of the answers below a picture: points, and inches a line
AREAS = {"auroc": "AUROC, one against the rest"}
AREAS |= {"sensitivity": "sensitivity", "specificity": "specificity"}


def shared_words(
    counts: pd.DataFrame, judges: int, pretrained: bool = True, unit: str = "images"
) -> str:
    """A text about `failures.shared_errors`: ``judges`` backbones, with samples called ``unit``."""
    n, wrong, expected = counts[["n", "wrong", "expected"]].sum()
    kind = "pretrained" if pretrained else "random"
    if judges < 2:
        return f"The one {kind} backbone gets {wrong:,.0f} of {n:,.0f} {unit} wrong."
    words = f"All {judges} {kind} backbones get the same {wrong:,.0f} of {n:,.0f} {unit} wrong. "
    words += "If their errors were independent within each class, "
    words += f"{expected:,.1f} would be expected."
    if wrong:
        words += f" These {unit} may be mislabelled or hard, or the backbones may share a bias."
    return words


@style.styled
def wrong_by_all(
    images: np.ndarray, cases: pd.DataFrame, answers: pd.DataFrame, words: str, title: str = ""
) -> plt.Figure:
    """Samples that every backbone gets wrong: picture, label, and the answer of each backbone.

    `images` is uint8 (n, H, W, 3), with a row of `cases` for each (sample_id, y_true). `answers`
    has a row for each backbone and sample: backbone, pretraining, sample_id, y_true, called and
    probability. Wrong answers are vermilion. `words` stand below.
    """
    if not len(cases):
        return parts.saying(words)
    lines = _by_sample(answers)
    fig, axes = _grid(-(-len(cases) // ACROSS), len(lines), images)
    for ax, image, case in zip(axes.flat, images, cases.itertuples(), strict=False):
        _tile(ax, image, f"label: {names.spoken(case.y_true)}", case.sample_id, lines)
    for line in axes:
        _names_beside(line[0], lines)
    style.title_above(fig, f"{title}\nEvery backbone that counts gets these wrong")
    style.caption_below(fig, f"{words} Vermilion: a wrong answer, with its probability.")
    return fig


@style.styled
def by_label(
    images: np.ndarray,
    cases: pd.DataFrame,
    answers: pd.DataFrame,
    classes: Sequence[str],
    title: str = "",
) -> plt.Figure:
    """The surest errors and the least sure samples of each class, a row per class.

    The arguments are those of :func:`wrong_by_all`; `cases` has the column why, too. A class
    without further errors says so. If there are more than :data:`images.MOST` classes, the first
    are shown.
    """
    lines, shown = _by_sample(answers), classes[: pictures.MOST]
    kinds = [failures.SUREST, failures.LEAST_SURE]
    each = max(1, *cases.groupby(["y_true", "why"]).size()) if len(cases) else 1
    fig, axes = _grid(len(shown), len(lines), images, each * len(kinds))
    for row, label in zip(axes, shown, strict=True):
        row[0].set_ylabel(
            style.wrapped(names.spoken(label), 1, 7, weight="bold"),
            rotation=0, ha="right", va="center", fontsize=7, fontweight="bold",
        )  # fmt: skip
        for at, why in enumerate(kinds):
            chosen = np.flatnonzero((cases["y_true"] == label) & (cases["why"] == why))
            for ax, number in zip(row[each * at :], chosen, strict=False):
                _tile(ax, images[number], why, cases["sample_id"].iloc[number], lines)
            if not len(chosen):
                words = "no other\nerror" if why == failures.SUREST else "no other\nsample"
                row[each * at].text(0.5, 0.5, words, ha="center", va="center", fontsize=6.5)
        _names_beside(row[0], lines)
    more = f"Surest errors and least sure, by label{pictures.left_out(classes)}"
    style.title_above(fig, f"{title}\n{more}")
    words = "Chosen by the mean over the backbones that count; a patient is shown once. "
    style.caption_below(fig, f"{words}Vermilion: a wrong answer, with its probability.")
    return fig


def _by_sample(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each backbone's answers by sample id, by its printed name."""
    return {name: rows.set_index("sample_id") for name, rows in parts.by_backbone(answers).items()}


def _grid(
    rows: int, lines: int, images: np.ndarray, columns: int = ACROSS
) -> tuple[plt.Figure, np.ndarray]:
    """Rows of places for pictures, with room below each for so many lines."""
    shape = images.shape[1] / images.shape[2]
    size = (style.PAGE, 0.45 + rows * (5.6 / columns * shape + 0.25 + lines * LINE))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_box_aspect(shape)  # places without a picture, too
    return fig, axes


def _tile(ax: plt.Axes, image: np.ndarray, above: str, sample: str, lines: dict) -> None:
    """A picture, words above it, and below it a line with each backbone's answer."""
    ax.imshow(image)
    ax.set_title(style.wrapped(above, 0.85, 6), fontsize=6, fontweight="normal", pad=2)
    answers = [rows.loc[sample] for rows in lines.values()]
    texts = [f"{_cut(names.spoken(a['called']), 0.62)} {a['probability']:.2f}" for a in answers]
    wrong = [answer["called"] != answer["y_true"] for answer in answers]
    for colour, side in (("black", False), (style.VERMILION, True)):
        words = (text if is_so == side else "" for text, is_so in zip(texts, wrong, strict=True))
        _below(ax, "\n".join(words), 0, ha="left", color=colour)


def _names_beside(ax: plt.Axes, lines: dict) -> None:
    """The names of backbones, left of their answers."""
    _below(ax, "\n".join(map(parts.short, lines)), -4, ha="right", color="0.25")


def _below(ax: plt.Axes, words: str, points: float, **look) -> None:
    look |= {"va": "top", "fontsize": SIZE, "linespacing": 1.15}
    ax.annotate(words, (0, 0), (points, -2), "axes fraction", "offset points", **look)


def _cut(words: str, inches: float) -> str:
    """Words without their end, where they are longer than so many inches."""
    if style.text_width(words, SIZE) <= inches:
        return words
    while style.text_width(f"{words}…", SIZE) > inches:
        words = words[:-1]
    return f"{words}…"


@style.styled
def by_class(table: pd.DataFrame, classes: Sequence[str], title: str = "") -> plt.Figure:
    """AUROC, sensitivity and specificity of each class, a row per backbone, with 95 % intervals.

    `table` has the columns of `diagnostics.by_class`, backbone and pretraining. If there are more
    than :data:`images.MOST` classes, the first are shown.
    """
    lines, shown = parts.by_backbone(table), list(classes[: pictures.MOST])
    rows = len(shown) * (len(lines) + 1)
    fig, axes = plt.subplots(1, len(AREAS), figsize=(style.PAGE, 0.7 + 0.125 * rows), sharey=True)
    ticks, patients = {}, table.groupby("label")["n_patients"].max()
    for group, label in enumerate(shown):
        top = group * (len(lines) + 1)
        few = f" {tables.FEW}" if patients[label] < tables.ENOUGH else ""
        words = f"{_cut(names.spoken(label), 2)} ({patients[label]:,} patients{few})"
        look = {"va": "center", "fontsize": 6.5, "fontweight": "bold", "in_layout": False}
        axes[0].text(0, top, f" {words}", **look | {"bbox": {"color": "white", "pad": 1}})
        ticks |= {top + 1 + at: parts.short(name) for at, name in enumerate(lines)}
        for at, rows_of in enumerate(lines.values(), start=top + 1):
            _marks(axes, rows_of[rows_of["label"] == label], at)
    for ax, words in zip(axes, AREAS.values(), strict=True):
        ax.set(xlim=(0, 1), xlabel=words)
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(list(ticks), list(ticks.values()), fontsize=6)
    axes[0].set_ylim(rows - 0.3, -0.7)
    fig.get_layout_engine().set(w_pad=0.08)  # letters are wider at the dots of a file
    axes[0].set_zorder(1)  # long names of classes lie over the next panel
    axes[0].patch.set_visible(False)
    axes[0].axvline(0.5, **parts.CHANCE)
    style.title_above(fig, title + pictures.left_out(classes))
    few = f" {tables.FEW_WORDS}." if (patients[shown] < tables.ENOUGH).any() else ""
    style.caption_below(fig, f"95 % intervals over test patients. Dotted: chance.{few}")
    return fig


def _marks(axes: np.ndarray, rows: pd.DataFrame, at: int) -> None:
    """A backbone's three metrics of one class, at this height."""
    by_metric = rows.set_index("metric")
    mark = parts.look(rows["family"].iloc[0])
    for ax, metric in zip(axes, AREAS, strict=True):
        value, low, high = by_metric.loc[metric, ["value", "ci_low", "ci_high"]]
        ax.hlines(at, low, high, color=mark["color"], linewidth=1)
        ax.plot(value, at, linestyle="none", clip_on=False, **mark | {"markersize": 3})
