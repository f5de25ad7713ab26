"""Figures of the comparison: every arm of a task, and frozen against fine-tuned."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

from medlib.show import names, style
from medlib.show.figures import parts

NO_PAIR = (
    "No backbone was run both frozen and fine-tuned on the same labels.\nNotebook 04 fine-tunes "
    "one; in a grid file, name it under frozen and under finetuned."
)


@style.styled
def main_comparison(table: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc") -> plt.Figure:
    """The study in one figure: a panel per task, a row per backbone, the regimes side by side.

    `table` is long form: task, backbone, pretraining, regime, head, label_fraction (1.0: all
    training patients), metric, value, n_patients, n_images and both intervals (ci_low, ci_high,
    procedure_low, procedure_high). `tasks` maps a task to {"title": str, "chance": float or None},
    in the order of the panels. Points are values. Thick bars are 95 % intervals over test patients;
    thin lines are intervals of the procedure, which also cover training patients and seeds. Of the
    frozen heads only the linear one is drawn. A random control stands below its pretrained twin,
    grey and hollow. The panel's title says the share of labels used in fine-tuning. Missing
    combinations stay empty.
    """
    arms = names.shown_rows(table, tasks, [metric])
    arms = arms[(arms["regime"] != "frozen") | (arms["head"] == "linear")]
    arms = arms.assign(series=names.series_names(arms))
    networks = names.in_order(arms)
    # in the order of REGIMES, and the larger share of labels first
    by = arms.assign(regime=arms["regime"].map(list(names.REGIMES).index))
    series = by.sort_values(["regime", "label_fraction"], ascending=[True, False])["series"]
    looks = _looks(series.unique())
    rows = [name.replace(" (", "\n(") if len(name) > 24 else name for name in networks["name"]]
    titles = {t: style.wrapped(card["title"], 1.7, 8, weight="bold") for t, card in tasks.items()}
    notes = {task: _note(arms[arms["task"] == task]) for task in tasks}
    above = max(titles[task].count("\n") + notes[task].count("\n") for task in tasks)  # lines
    row = max(0.07 + 0.08 * max(len(looks), 2), 0.28 if any("\n" in name for name in rows) else 0)
    n, height = len(tasks), 0.75 + 0.14 * above + len(rows) * row
    columns, width = {1: 1, 2: 2, 4: 2}.get(n, 3), style.COLUMN if n == 1 else style.PAGE
    fig, axes = parts.panels_in_rows(n, columns, height, width=width, **parts.SHARED)
    fig.get_layout_engine().set(hspace=0.04)
    for ax in axes.flat:
        ax.tick_params(axis="x", labelbottom=True)
        ax.tick_params(axis="y", length=0)
    room = 5 + 8 * max(note.count("\n") + 1 for note in notes.values())  # points, for the notes
    for ax, (task, card) in zip(axes.flat, tasks.items(), strict=False):
        _draw_task(ax, arms[arms["task"] == task], networks, looks)
        if card["chance"] is not None:
            ax.axvline(card["chance"], zorder=1, **parts.CHANCE)
        ax.set_title(titles[task], pad=room)
        parts.note_above(ax, notes[task], 3, va="bottom", linespacing=1.1)
    axes[0, 0].set(ylim=(len(rows) - 0.5, -0.5))  # the first row on top
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(rows)), rows, linespacing=0.95)
        for text, random in zip(ax.get_yticklabels(), networks["random"], strict=True):
            text.set_color(style.GREY if random else "black")
    parts.label_below(axes, n, f"{names.METRICS[metric]} (95 % intervals)", size=7.5)
    style.legend_above(fig, _comparison_legend(arms, looks) | parts.chance_entry(tasks))
    return fig


def _looks(series: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each series: frozen round or triangular, fine-tuned angular."""
    frozen = [("o", style.BLUE, 4), ("v", style.SKY, 4.2), ("^", style.GREEN, 4.2)]
    tuned = [("s", style.VERMILION, 3.6), ("D", style.ORANGE, 3.4), ("P", style.BROWN, 4)]
    frozen, tuned = itertools.cycle(frozen), itertools.cycle(tuned)
    looks = {name: next(frozen if name.startswith("frozen") else tuned) for name in series}
    keys = ("marker", "color", "markersize")
    return {name: dict(zip(keys, look, strict=True)) for name, look in looks.items()}


def _mark(look: dict, random: bool) -> dict:
    """Line2D settings of a value: filled if pretrained, grey and hollow if random."""
    grey = {"color": style.GREY, "markerfacecolor": "white"} if random else {}
    return look | grey | {"linestyle": "none", "markeredgewidth": 0.8}


def _draw_task(ax: plt.Axes, arms: pd.DataFrame, networks: pd.DataFrame, looks: dict) -> None:
    """Draw one task: rows of backbones, a band behind every other architecture, the series."""
    ax.grid(axis="x")
    for band, (_, twins) in enumerate(networks.groupby("architecture", sort=False)):
        if band % 2 == 0:
            edges = twins.index.min() - 0.5, twins.index.max() + 0.5
            ax.axhspan(*edges, color="0.955", linewidth=0, zorder=0)
    position = {name: i for i, name in enumerate(networks["name"])}
    for (name, random), part in arms.groupby(["series", "random"]):
        mark = _mark(looks[name], random)
        shift = (list(looks).index(name) - (len(looks) - 1) / 2) * 0.8 / len(looks)
        y = part["name"].map(position) + shift
        parts.intervals(ax, part, y, mark["color"], "x")
        ax.plot(part["value"], y, **mark, zorder=4)


def _note(arms: pd.DataFrame) -> str:
    """Under a panel's title: whom the task was tested on, and on what it was fine-tuned."""
    if arms.empty:
        return "no results"
    patients, images = arms["n_patients"].max(), arms["n_images"].max()
    words = f"{patients:,} patients" + (f", {images:,} images" if images != patients else "")
    words += f"\nonly {few} of a class" if (few := arms["rarest"].min()) < 20 else ""
    tuned = arms.loc[arms["series"].isin(["fine-tuned", "LoRA"]), "label_fraction"]
    # where the legend names no shares, all labels were used throughout
    share = f"\nfine-tuned on {100 * tuned.iloc[0]:g} % of labels" if len(tuned) else ""
    return words + (share if (arms["label_fraction"] < 1).any() else "")


def _comparison_legend(arms: pd.DataFrame, looks: dict) -> dict[str, object]:
    """The entries; a series of random weights alone is shown as it is drawn, in grey."""
    only_random = arms.groupby("series")["random"].all()
    entries = {name: plt.Line2D([], [], **_mark(looks[name], only_random[name])) for name in looks}
    if arms["random"].any():
        hollow = [plt.Line2D([], [], **_mark(look, True)) for look in looks.values()]
        entries["random weights"] = tuple(hollow)
    return entries | parts.interval_entries(arms)


@style.styled
def freezing(pairs: pd.DataFrame, tasks: names.Tasks, metric: str = "auroc") -> plt.Figure:
    """What freezing costs: each backbone frozen and fine-tuned on the same labels, by task.

    `pairs` is the table that `differences.on_same_labels` returns. A slope leads from the frozen
    network to the fine-tuned one. All panels have one axis, so that a slope means the same in each.
    `forest` draws the interval of the difference. Without any pair the figure is one sentence.
    """
    if pairs.empty:
        return parts.saying(NO_PAIR)
    pairs = parts.named(pairs)
    fig, places = parts.panels(pairs, tasks, 1.7, metric)
    looks = parts.backbone_looks(pairs)
    for ax, card, part in places:
        for row in part.itertuples():
            ax.plot([0, 1], [row.frozen, row.finetuned], **looks[row.name])
        ax.set(xlim=(-0.25, 1.25))
        ax.set_xticks([0, 1], ["frozen", "fine-tuned"])
        shares = [share for share in part["label_fraction"].unique() if share < 1]
        note = parts.people(part) + "".join(f", {100 * share:g} % of labels" for share in shares)
        parts.titles(ax, card, "no backbone in both regimes" if part.empty else note)
    parts.value_axis(places[0][0], pairs["frozen"], pairs["finetuned"], tasks=tasks)
    style.legend_above(fig, parts.backbone_handles(looks) | parts.chance_entry(tasks))
    style.caption_below(fig, "The interval of each difference is in differences_regimes.")
    return fig
