"""Helpers for tests of figures and tables: made-up results, and the texts and bars of a figure."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

BACKBONES = {
    "vit_tiny-random": "random",
    "dinov2_small": "dinov2",
    "resnet50-imagenet": "imagenet",
    "vit_tiny-imagenet": "imagenet",
}
FROZEN_ALL, FROZEN_10, TUNED_10 = (
    ("frozen", "linear", 1.0),
    ("frozen", "linear", 0.1),
    ("finetuned", "linear", 0.1),
)

TASKS = {
    "mri": {"title": "Glioma grade", "chance": 0.5},
    "skin": {"title": "Dermoscopy", "chance": None},
}


def long_table(arms, backbones=BACKBONES, metrics=("auroc", "accuracy")):
    """A table of results with a row for each task, backbone, arm and metric.

    ``arms`` maps a task to triples (regime, head, label_fraction). All values are different. The
    interval of the procedure is wider than the one over patients. The rarest class has 20 patients.
    """
    names = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "metric"]
    cells, values = [], []
    for task, triples in arms.items():
        for pair, triple, metric in itertools.product(backbones.items(), triples, metrics):
            cells.append((task, *pair, *triple, metric))
            values.append((values[-1] if values else 0.6) + 0.0037)
    table = pd.DataFrame(cells, columns=names).assign(value=values)
    for ends, below, above in (("ci", 0.05, 0.04), ("procedure", 0.07, 0.05)):
        table[f"{ends}_low"], table[f"{ends}_high"] = table["value"] - below, table["value"] + above
    counts = {"n_seeds": 1, "n_patients": 40, "n_images": 80, "rarest": 20, "candidates": 7}
    return table.assign(**counts, training_share=0.25)


ARMS = {task: [FROZEN_ALL, ("frozen", "knn", 1.0), FROZEN_10, TUNED_10] for task in TASKS}


def legend_words(fig: Figure) -> list[str]:
    legends = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def all_words(fig: Figure) -> str:
    fig.draw_without_rendering()
    return "\n".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


def bars(ax: plt.Axes) -> dict[str, set[tuple]]:
    """The ends (x, y, x, y) of the intervals in a panel: {"thick": …, "thin": …}."""
    lines = [lines for lines in ax.collections if isinstance(lines, LineCollection)]
    widths = sorted({float(one.get_linewidth()[0]) for one in lines})
    found = {name: set() for name, _ in zip(("thin", "thick"), widths, strict=True)}
    for one in lines:
        name = "thick" if one.get_linewidth()[0] == widths[1] else "thin"
        ends = [segment.ravel() for segment in one.get_segments()]
        found[name] |= {tuple(np.round(end, 9)) for end in ends if np.isfinite(end).sum() == 4}
    return found


def row_names(fig: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in fig.axes[0].get_yticklabels()]
