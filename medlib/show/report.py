"""One HTML page with all figures and tables of a grid: opens from disk, needs no network.

    python -m medlib.show.report GRID_FILE RESULTS FIGURES

It holds the figures and tables that lie in FIGURES when it is written, how much of the grid is
complete, the environment in which it ran, and how to cite it. The page of a grid of which runs are
missing has another name: a file that stands for the complete grid exists only when it is complete.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from html import escape
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from medlib import files
from medlib.data import cards
from medlib.grid import gridfile
from medlib.grid import states as run_states

PAGE, INCOMPLETE = "report.html", "report_incomplete.html"  # of a complete grid, and of any other
# The order of the page: a file's stem, or its beginning -> its heading and what to look for.
SECTIONS = {
    "main_comparison": (
        "The comparison",
        "Frozen and fine-tuned, with 95 % intervals over patients.",
    ),
    "main_table": ("In numbers", "Linear heads. Bold: the best of a task, and its equivalents."),
    "claims": (
        "The paper's claims",
        "Written down beforehand; judged only where every arm is there.",
    ),
    "critical_difference": ("Ranks over tasks", "What a bar joins cannot be told apart."),
    "differences": ("Paired differences", "On the same patients, over the equivalence margin."),
    "confounds": ("Architecture or pretraining?", "What DINOv2 minus the CNNs is made of."),
    "freezing": ("What freezing costs", "From frozen to fine-tuned, on the same labels."),
    "size": ("Does size pay?", "Within vision transformers of one pretraining."),
    "label_efficiency": ("How many labels does it take?", "Over draws of the labelled patients."),
    "cost": ("What does it cost?", "Time, parameters and memory of a result, means over tasks."),
    "curves": ("Curves", "ROC and precision-recall, with bands over patients."),
    "confusion": ("Confusions", "Which class is taken for which."),
    "reliability": ("Calibration", "How often a backbone is right, against how sure it is."),
    "embeddings": ("Embeddings", "Frozen embeddings on two principal components."),
    "seen": ("What they see", "The same images through several backbones."),
    "passport": ("Split passports", "What the numbers of a task rest on."),
    "full_table": ("All metrics, all heads", ""),
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem }
body { margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto } nav a { margin-right: 1em }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: 12px }
caption { text-align: left; padding-bottom: .4rem }
th, td { padding: .15rem .5rem; text-align: left; white-space: nowrap }
td { border-bottom: 1px solid #eee }
th { border-bottom: 1px solid #222; position: sticky; top: 0; background: #fff }
.note { color: #555; font-size: 13px } .gap { background: #fde8e0 }
"""


def environment(grid: dict, results: Path | str) -> pd.DataFrame:
    """What the complete runs ran with: each value of each field, and in how many runs."""
    rows = []
    for run in run_states.done(grid, results):
        record = files.read_json(run.record(results))
        own = record["versions"] | {"git commit": record["git_commit"]} | record["hardware"]
        rows += [(field, str(value)) for field, value in own.items() if value is not None]
    counts = pd.Series(rows, dtype=object).value_counts(sort=False)
    table = pd.DataFrame(
        [(field, value, n) for (field, value), n in counts.items()],
        columns=["what", "value", "runs"],
    )
    return table.sort_values(["what", "value"], ignore_index=True)


def page_name(grid: dict, results: Path | str) -> str:
    """The file name of a grid's page: :data:`PAGE` if all its runs are complete."""
    whole = len(run_states.done(grid, results)) == len(gridfile.runs(grid))
    return PAGE if whole else INCOMPLETE


def write(
    grid_file: Path | str, results: Path | str, figures: Path | str, stopped: bool = False
) -> Path:
    """Write the page into the folder of figures, whole or not at all; returns its path.

    ``stopped``: the grid's command ended early, so that summaries or figures may be missing even
    where all runs are complete; the page is then :data:`INCOMPLETE`. A page of the other name that
    says of the runs what no longer holds is removed.
    """
    figures, grid = Path(figures), gridfile.read(grid_file)
    states = run_states.table(grid, results)
    counts = states[list(run_states.STATES)].sum()
    whole = counts["done"] == counts.sum()
    path = figures / (INCOMPLETE if stopped else page_name(grid, results))
    word = "All runs of the grid are complete." if whole else "<b>The grid is not complete:</b> "
    if not whole:
        word += ", ".join(f"{n} runs {state}" for state, n in counts.items() if n) + "."
    parts = [f"<h1>{escape(grid['title'])}</h1>", f"<p>{escape(grid.get('caption', ''))}</p>"]
    parts.append(f'<p>{word} <a href="#grid">Which runs there are.</a></p>')
    if not whole:
        gaps = states[states["done"] < states[list(run_states.STATES)].sum(axis=1)]
        parts.append(_html_table(gaps, gaps[["failed", "stale", "missing"]] > 0))
    sections = list(_sections(figures))
    links = [f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in sections]
    links += ['<a href="#grid">The grid</a>', '<a href="#cite">How to cite</a>']
    parts.append(f"<nav>{' '.join(links)}</nav>")
    parts += [f'<h2 id="{key}">{escape(heading)}</h2>{body}' for key, heading, body in sections]
    parts.append('<h2 id="grid">The grid</h2><p>How many runs there are of each cell.</p>')
    parts.append(_html_table(states, states[["failed", "stale", "missing"]] > 0))
    parts.append("<p>What they ran with.</p>")
    parts.append(_html_table(environment(grid, results)))
    parts.append(f'<h2 id="cite">How to cite</h2>{_citation(grid)}')
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(grid["title"])}'
        f'</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
    )
    page = f"{head}<body>{''.join(parts)}</body></html>\n"
    files.save_text(path, page)
    if path.name == PAGE or not whole:
        (figures / (INCOMPLETE if path.name == PAGE else PAGE)).unlink(missing_ok=True)
    return path


def _sections(figures: Path):
    """Key, heading and body of each section of which there is a figure or a table."""
    stems = {path.stem for path in figures.glob("*") if path.suffix in (".png", ".md")}
    for key, (heading, words) in SECTIONS.items():
        ours = sorted(stem for stem in stems if stem == key or stem.startswith(f"{key}_"))
        body = "".join(_figure(figures / stem) + _table(figures / f"{stem}.md") for stem in ours)
        if body:
            yield key, heading, (f"<p>{escape(words)}</p>" if words else "") + body


def _figure(stem: Path) -> str:
    picture = stem.with_name(f"{stem.name}.png")
    if not picture.is_file():
        return ""
    data = base64.b64encode(picture.read_bytes()).decode()
    words = escape(stem.name.replace("_", " "))
    return f'<figure><img src="data:image/png;base64,{data}" alt="{words}"></figure>'


def _table(path: Path) -> str:
    """A table that `tables.save_table` wrote as Markdown: its caption, its rows, its note."""
    if not path.is_file():
        return ""
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    at = next(i for i, block in enumerate(blocks) if block.startswith("|"))
    lines = [line.strip().strip("|").split("|") for line in blocks[at].splitlines()]
    cells = [
        [re.sub(r"^\*\*(.*)\*\*$", r"<b>\1</b>", escape(cell.strip())) for cell in line]
        for line in [lines[0], *lines[2:]]
    ]
    rows = [
        "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in line) + "</tr>"
        for tag, line in zip(["th"] + ["td"] * len(cells), cells, strict=False)
    ]
    caption = escape(" ".join(blocks[:at]))
    note = escape(" ".join(blocks[at + 1 :]))
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>{"".join(rows)}</table></div>'
        f'<p class="note">{note}</p>'
    )


def _html_table(frame: pd.DataFrame, marked: pd.DataFrame | None = None) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame)
    lines = []
    for i, row in enumerate(frame.itertuples(index=False)):
        gaps = [marked is not None and name in marked and marked[name].iloc[i] for name in frame]
        kinds = ["<td class='gap'>" if gap else "<td>" for gap in gaps]
        cells = (f"{kind}{escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append("".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _citation(grid: dict) -> str:
    """This study, the paper that it redoes, and the data sets."""
    own = (
        "This study: <i>Which pretrained backbone should a medical image classifier start from, "
        f"and frozen or fine-tuned?</i>, version {version('medlib')}; the file CITATION.cff of its "
        "repository. It redoes Huang et al., <i>Comparative Analysis of "
        "ImageNet Pre-Trained Deep Learning Models and DINOv2 in Medical Imaging "
        "Classification</i>, COMPSAC 2024, arXiv 2402.07595."
    )
    data = dict.fromkeys(cards.read(task).citation for task in grid["tasks"])
    items = "".join(f"<li>{escape(words)}</li>" for words in data)
    return f"<p>{own}</p><p>The data:</p><ul>{items}</ul>"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("grid_file", "results", "figures"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    try:
        write(options.grid_file, options.results, options.figures)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
