"""Draw figures/bench from results/bench: the ratios, and the share of the limit.

Each ``summary*.json`` there gets a figure ``ratios*``: ``summary.json`` is of a CPU,
``summary_cuda.json`` of a CUDA device.
"""

import json
from pathlib import Path

import harness
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter

from medlib.show import style

FIGURES = Path("figures/bench")
PANELS = {  # title -> whether a peer belongs to it, and whether its axis is logarithmic
    "Times as fast as the plain way": (lambda peer: True, True),
    "Share of the matrix rate": (lambda peer: " rate of " in peer, False),
    "Share of the time in which the device works": (lambda peer: peer == "device at work", False),
    "Times as fast as other engines": (lambda peer: peer in ("onnxruntime", "OpenVINO"), False),
}


@style.styled
def draw(summary: pd.DataFrame) -> plt.Figure:
    """A panel per kind of peer; a dot is the median ratio, its line the range over repeats."""
    others = list(PANELS)[1:]
    panel = summary["peer"].map(
        lambda peer: next((t for t in others if PANELS[t][0](peer)), next(iter(PANELS)))
    )
    groups = {title: summary[panel == title] for title in PANELS if (panel == title).any()}
    heights = [len(rows) + 2.5 for rows in groups.values()]
    fig, axes = plt.subplots(
        len(groups),
        1,
        figsize=(style.PAGE, 0.135 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    for ax, (title, rows) in zip(axes.flat, groups.items(), strict=True):
        places = range(len(rows))
        reached = rows["ratio"] >= rows["target"]
        colours = reached.map({True: style.BLUE, False: style.VERMILION})
        ax.hlines(places, rows["low"], rows["high"], color=colours, linewidth=1)
        ax.scatter(rows["ratio"], places, c=colours, s=14, zorder=3)
        ax.scatter(rows["target"], places, marker="|", c="black", s=40, zorder=2)
        names = rows["name"] + ", against " + rows["peer"]
        ax.set_yticks(places, names, fontsize=5.5)
        ax.set(ylim=(len(rows) - 0.4, -0.6), title=title)
        if PANELS[title][1]:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(FuncFormatter("{0:g}×".format))
            ax.xaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_xlim(0, 1.05 * max(1, rows["high"].max()))
        ax.axvline(1, color="0.6", linewidth=0.6, zorder=1)
        ax.grid(axis="x")
    fig.supxlabel(
        "Dots: medians over repeats; lines: their range; bars: targets; red: below its target.",
        x=0.01,
        ha="left",
        fontsize=6.5,
        color="0.25",
    )
    return fig


def main() -> None:
    found = sorted(harness.SUMMARY.parent.glob("summary*.json"))
    if not found:
        raise SystemExit(f"There is no {harness.SUMMARY}: run the other benchmarks first.")
    for path in found:
        summary = pd.DataFrame(json.loads(path.read_text("utf-8")))
        summary["target"] = summary["target"].astype(float)
        # Rows without a target are in the table only.
        figure = draw(summary.dropna(subset="target"))
        stem = FIGURES / path.stem.replace("summary", "ratios")
        print(*style.save(figure, stem, summary), sep="\n")


if __name__ == "__main__":
    main()
