"""Figures of choosing and training: validation and learning curves."""

from collections.abc import Iterable, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from medlib.show import names, style


def at_an_end(name: str, tried: Sequence[float], chosen: Iterable[float]) -> str:
    """A sentence if the chosen value is the smallest or the largest one tried, else ""."""
    tried, chosen = sorted(set(tried)), set(chosen)
    ends = {tried[0]: "smallest", tried[-1]: "largest"} if len(tried) > 1 else {}
    words = [f"the {word} ({value:g})" for value, word in ends.items() if value in chosen]
    if not words:
        return ""
    of = f"{name}: of the {len(tried)} values that were tried, {' and '.join(words)} was chosen."
    return f"{of} A value outside this range could be better."


@style.styled
def validation_curve(history: pd.DataFrame) -> plt.Figure:
    """Validation AUROC against each head's hyper-parameter, and which value was chosen.

    `history` has the columns head, hyperparameter (its name), value, fold, val_auroc and chosen
    (bool), one row per head, value and fold. There is a panel for each head. Thin lines are folds,
    the thick line is their mean, and stars are the choices of the folds.
    """
    heads = [head for head in names.HEADS if head in set(history["head"])]
    width = style.COLUMN if len(heads) == 1 else style.PAGE
    fig, axes = plt.subplots(1, len(heads), figsize=(width, 2.2), sharey=True, squeeze=False)
    thin, thick = {"color": style.SKY, "linewidth": 0.7}, {"color": style.BLUE, "linewidth": 1.8}
    for ax, head in zip(axes[0], heads, strict=True):
        tried = history[history["head"] == head]
        folds = tried.pivot(index="value", columns="fold", values="val_auroc")
        ax.plot(folds, **thin)
        ax.plot(folds.mean(axis=1), **thick)
        chosen = tried[tried["chosen"]]
        ax.plot(chosen["value"], chosen["val_auroc"], **style.CHOSEN)
        ax.set(title=names.HEADS[head], xlabel=tried["hyperparameter"].iloc[0].replace("_", " "))
        ax.set_xscale("log")
        short = [f"{v:g}" if v < 1000 else f"{v / 1000:g}k" for v in folds.index]
        ax.set_xticks(folds.index, short)
        ax.minorticks_off()
        ax.grid(axis="y")
    axes[0, 0].set_ylabel("validation AUROC")
    looks = {"one fold": thin, "mean over folds": thick, "chosen": style.CHOSEN}
    style.legend_above(fig, {words: plt.Line2D([], [], **look) for words, look in looks.items()})
    return fig


@style.styled
def learning_curves(history: pd.DataFrame) -> plt.Figure:
    """Fine-tuning: loss (left) and validation AUROC (right) over epochs, by learning rate.

    `history` has the columns fold, learning_rate, epoch (from 1), train_loss, val_loss,
    val_auroc and chosen (bool: the learning rate and epoch that were kept for the fold). A thin
    line per fold, darker for smaller rates; training loss is dashed; a star marks the choice.
    """
    import seaborn as sns  # here, because it is slow to import and no other figure needs it

    fig, (loss, auroc) = plt.subplots(1, 2, figsize=(style.PAGE, 2.3))
    rates = history["learning_rate"].map("{:g}".format).str.replace("e-0", "e-")
    history = history.assign(rate=rates).sort_values("learning_rate")
    keys = {"train_loss": "training", "val_loss": "validation"}
    losses = history.melt(["rate", "fold", "epoch"], list(keys), "part", "loss").replace(keys)
    look = {"x": "epoch", "hue": "rate", "palette": "viridis", "linewidth": 0.9}
    look |= {"units": "fold", "estimator": None}  # one line per fold, no mean
    dashes = {"training": (3, 1.5), "validation": ""}
    sns.lineplot(losses, y="loss", style="part", dashes=dashes, ax=loss, **look)
    sns.lineplot(history, y="val_auroc", legend=False, ax=auroc, **look)
    kept = history[history["chosen"]]
    loss.plot(kept["epoch"], kept["val_loss"], label="kept", **style.CHOSEN)
    auroc.plot(kept["epoch"], kept["val_auroc"], **style.CHOSEN)
    loss.set(title="loss", ylabel="cross-entropy")
    auroc.set(title="validation AUROC", ylabel="AUROC")
    for ax in (loss, auroc):
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        ax.grid(axis="y")
    handles, words = loss.get_legend_handles_labels()
    loss.get_legend().remove()
    headings = {"rate": "learning rate:", "part": "loss in:"}
    words = [headings.get(word, word) for word in words]
    style.legend_above(fig, dict(zip(words, handles, strict=True)))
    return fig
