"""Long tables of a comparison, and the words in a figure: what tests of what is shown share."""

import itertools

import matplotlib
import pandas as pd
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


def long_table(arms, backbones=BACKBONES, metrics=("auroc", "accuracy"), sd=float("nan")):
    """`arms`: task → (regime, head, label_fraction) triples; values are all different."""
    names = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "metric"]
    cells, values = [], []
    for task, triples in arms.items():
        for pair, triple, metric in itertools.product(backbones.items(), triples, metrics):
            cells.append((task, *pair, *triple, metric))
            values.append((values[-1] if values else 0.6) + 0.0037)
    table = pd.DataFrame(cells, columns=names).assign(value=values)
    table = table.assign(ci_low=table["value"] - 0.05, ci_high=table["value"] + 0.04, sd=sd)
    return table.assign(n_seeds=1, n_patients=40, n_images=80)


ARMS = {task: [FROZEN_ALL, ("frozen", "knn", 1.0), FROZEN_10, TUNED_10] for task in TASKS}


def legend_words(fig: Figure) -> list[str]:
    legends = [*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def all_words(fig: Figure) -> str:
    fig.draw_without_rendering()
    return "\n".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


def row_names(fig: Figure) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in fig.axes[0].get_yticklabels()]
