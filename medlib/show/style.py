"""The house style: sizes, colours, legends, captions, and how a figure is saved."""

import functools
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.textpath import text_to_path

from medlib.files import replacing, save_csv

COLUMN, PAGE = 3.35, 7.0  # widths in inches: one column of a two-column journal, and both

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, BROWN = "#E69F00", "#56B4E9", "#000000", "#7F5B3A"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
GREY = "0.42"  # random weights, and only they
CHOSEN = {"marker": "*", "linestyle": "none", "color": VERMILION, "markersize": 8, "zorder": 5}
CHOSEN |= {"markeredgecolor": "black", "markeredgewidth": 0.5}

STYLE = {"figure.dpi": 120, "savefig.dpi": 200, "figure.constrained_layout.use": True}
STYLE |= {"font.size": 7.5, "font.family": "DejaVu Sans"}  # ships with matplotlib: same everywhere
STYLE |= {"axes.titlesize": 8, "axes.titleweight": "bold", "axes.titlelocation": "left"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
STYLE |= {"axes.labelsize": 7.5, "axes.linewidth": 0.6}
STYLE |= {"axes.prop_cycle": mpl.cycler(color=COLOURS)}
STYLE |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7)
STYLE |= dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.6)
STYLE |= dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5)
STYLE |= {"grid.color": "0.9", "grid.linewidth": 0.5, "lines.linewidth": 1.3, "lines.markersize": 4}
STYLE |= {"legend.fontsize": 7, "legend.frameon": False}
STYLE |= {"pdf.fonttype": 42}  # TrueType, embedded: editable, and accepted by journals
STYLE |= {"svg.hashsalt": "medlib"}  # else the ids in an SVG are random


def use_style() -> None:
    """Set matplotlib's rcParams to the house style; call once at the top of a notebook."""
    mpl.rcParams.update(STYLE)


def save(
    fig: plt.Figure, path_stem: Path, data: pd.DataFrame | None = None, caption: str = ""
) -> list[Path]:
    """Write a figure as `<stem>.png` (200 dpi), `.pdf` and `.svg`, and its data as `<stem>.csv`.

    `caption` is printed beneath it first (:func:`caption_below`). Missing folders are made, each
    file is written whole or not at all, and the same data give the same bytes: no dates, no random
    ids. Returns the paths.
    """
    if caption:
        caption_below(fig, caption)
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    paths = [Path(f"{path_stem}.{kind}") for kind in undated]
    with mpl.rc_context(STYLE):
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # laid out once: every file shows the same
        for path, (kind, metadata) in zip(paths, undated.items(), strict=True):
            with replacing(path) as temporary:
                fig.savefig(temporary, format=kind, metadata=metadata)
    if data is not None:
        paths.append(Path(f"{path_stem}.csv"))
        save_csv(paths[-1], data)
    return paths


def styled(draw: Callable[..., plt.Figure]) -> Callable[..., plt.Figure]:
    """A decorator: draw in the house style, whatever the rcParams, and close pyplot's figure."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> plt.Figure:
        with mpl.rc_context(STYLE):
            fig = draw(*args, **kwargs)
        plt.close(fig)
        return fig

    return styled


def legend_above(fig: plt.Figure, entries: Mapping[str, object], title: str = "") -> None:
    """A legend above the panels, in as many columns as fit; the figure grows by its height.

    A title stands above the entries and looks like that of :func:`title_above`.
    """
    look = {"loc": "outside upper center", "columnspacing": 1.4}
    if title:
        look |= {"loc": "outside upper left", "title": title, "alignment": "left"}
        look["title_fontproperties"] = FontProperties(size=8, weight="bold")
    look["handler_map"] = {tuple: HandlerTuple(ndivide=None, pad=0.3)}
    for columns in range(len(entries), 0, -1):
        legend = fig.legend(list(entries.values()), list(entries), ncols=columns, **look)
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            break
        legend.remove()
    fig.set_figheight(fig.get_figheight() + legend.get_window_extent().height / fig.dpi)


def title_above(fig: plt.Figure, title: str) -> None:
    """A title above the panels, in lines as wide as the figure, which grows by the further ones."""
    width = fig.get_figwidth() - 0.2
    text = "\n".join(wrapped(line, width, 8, weight="bold") for line in title.splitlines())
    more = text.count("\n") - title.count("\n")
    fig.set_figheight(fig.get_figheight() + 0.15 * more)
    fig.suptitle(text, x=0.01, ha="left", fontsize=8, fontweight="bold")


def caption_below(fig: plt.Figure, caption: str) -> None:
    """Print words under the panels in full lines; the figure grows by their height.

    They are appended to the existing caption, unless it already ends with this text.
    """
    before = fig.get_supxlabel()
    words = " ".join(before.split())
    if words.endswith(" ".join(caption.split())):
        return
    letters = int(20 * fig.get_figwidth())  # of a line: 20 an inch
    text = textwrap.fill(f"{words} {caption}".strip(), letters)
    more = len(text.splitlines()) - len(before.splitlines())
    fig.set_figheight(fig.get_figheight() + 0.14 * more)
    fig.supxlabel(text, x=0.01, ha="left", fontsize=6.5, color="0.25")


def text_width(text: str, size: float = 7, weight: str = "normal") -> float:
    """The width of the longest line, in inches."""
    font = FontProperties(size=size, weight=weight)
    lines = (text_to_path.get_text_width_height_descent(t, font, False) for t in text.split("\n"))
    return max(points for points, _, _ in lines) / 72


def wrapped(text: str, inches: float, size: float, indent: str = "", weight: str = "normal") -> str:
    """The text in lines of at most so many inches; longer words are broken."""
    for letters in range(max(int(40 * inches), 2), len(indent) + 1, -1):
        lines = "\n".join(textwrap.wrap(text, letters, subsequent_indent=indent))
        if text_width(lines, size, weight) <= inches:
            break
    return lines
