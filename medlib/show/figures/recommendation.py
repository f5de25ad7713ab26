"""The figure of the recommendation: every arm against the best of the others."""

import matplotlib.pyplot as plt
import pandas as pd

from medlib.show import answers, names, style
from medlib.show.figures import parts

MOST = 14  # arms of a task that are drawn


@style.styled
def recommendation(table: pd.DataFrame, tasks: names.Tasks) -> plt.Figure:
    """A panel per task, a row per arm: its difference from the best of the other arms.

    `table` is `recommendation.recommend`. Lines are simultaneous 95 % intervals. Arms among the
    best are blue, others black; a star marks the recommended arm. To the left of the dashed line an
    arm may be worse than the best by more than the margin. Beside each row stand its value, its
    seconds and how often it is the best. Arms that are not judged have no interval. If a task has
    more than :data:`MOST` arms, those with the best values are drawn.
    """
    order = [task for task in [*tasks, answers.ALL_TASKS] if (table["task"] == task).any()]
    if not order:
        return parts.saying(answers.ONLY_RANDOM)
    shown = {task: table[table["task"] == task].head(MOST) for task in order}
    heights = [0.62 + 0.17 * len(rows) for rows in shown.values()]
    fig, axes = plt.subplots(
        len(order),
        1,
        squeeze=False,
        figsize=(style.PAGE, sum(heights) + 0.55),
        height_ratios=heights,
    )
    for ax, (task, rows) in zip(axes.flat, shown.items(), strict=True):
        _draw(ax, rows, len(table[table["task"] == task]) - len(rows))
        ax.set_title(answers.title(task, tasks))
    metric = names.METRICS[table["metric"].iloc[0]]
    words = f"{metric} minus the best of the others (simultaneous 95 % intervals)"
    axes[-1, 0].set_xlabel(f"{words}\n← another arm is better    this arm is better →")
    dot = {"marker": "o", "linestyle": "-", "markersize": 4}
    entries = {
        "cannot be told from the best": plt.Line2D([], [], color=style.BLUE, **dot),
        "worse than the best": plt.Line2D([], [], color=style.BLACK, **dot),
        "recommended": plt.Line2D([], [], **style.CHOSEN),
        "the margin": plt.Line2D([], [], color="0.3", linestyle="--", linewidth=0.8),
    }
    style.legend_above(fig, entries)
    return fig


def _draw(ax: plt.Axes, rows: pd.DataFrame, left_out: int) -> None:
    for y, (_, row) in enumerate(rows.iterrows()):
        words = f"{row['value']:.3f}, {answers.spent(row)}"
        if row["why"]:
            words += f", {row['why']}"
        else:
            colour = style.BLUE if row["among_best"] else style.BLACK
            ax.plot(
                [row["best_low"], row["best_high"]], [y, y], color=colour, solid_capstyle="butt"
            )
            look = style.CHOSEN if row["recommended"] else {"marker": "o", "color": colour}
            ax.plot(row["difference"], y, **look)
            words += f", the best in {row['share_best']:.0%} of draws"
        ax.annotate(words, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.axvline(-rows["margin"].iloc[0], color="0.3", linestyle="--", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), answers.arm_names(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    if left_out:
        parts.note_above(ax, f"and {left_out} with lower values", 3)
