"""One HTML page with all figures and tables of a grid: opens from disk, needs no network."""

import base64
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from medlib import files
from medlib.show import registry, tables

TEMPLATE = Path(__file__).with_name("page.html")
CELL = ["task", "backbone", "regime"]


def write(
    path: Path,
    title: str,
    caption: str,
    states: pd.DataFrame,
    environment: pd.DataFrame,
    citations: Sequence[str],
) -> None:
    """Write the page, whole or not at all, with the figures and tables that lie beside it.

    ``states`` has a row for each task, backbone and regime, and the counts of its runs: ``done``,
    then a column for each state of runs that are not done. ``environment`` is any table.
    ``citations`` are those of the data sets.
    """
    counts = states.drop(columns=CELL).sum()
    lacking = states.ne(0) & ~states.columns.isin([*CELL, "done"])
    gaps = lacking.any(axis=1)
    stems = {file.stem for file in path.parent.glob("*") if file.suffix in (".png", ".html")}
    sections = [
        (key, heading, words, Markup().join(_shown(path.with_name(stem)) for stem in own))
        for key, heading, words, own in registry.sections(stems)
    ]
    words = {"title": title, "caption": caption, "citations": citations}
    words["version"] = version("medlib")
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        words,
        whole=not gaps.any(),
        counts=", ".join(f"{n} runs {state}" for state, n in counts.items() if n),
        gaps=tables.html(states[gaps], lacking[gaps], tag="mark"),
        sections=sections,
        states=tables.html(states, lacking, tag="mark"),
        environment=tables.html(environment, environment.isna()),
    )
    files.save_text(path, page)


def _shown(stem: Path) -> Markup:
    """The figure and the table of that name, if they exist."""
    shown, picture, table = Markup(), stem.with_suffix(".png"), stem.with_suffix(".html")
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        image = Markup('<figure><img src="data:image/png;base64,{}" alt="{}"></figure>')
        shown += image.format(data, stem.name.replace("_", " "))
    if table.is_file():
        text = Markup(table.read_text(encoding="utf-8"))
        shown += _folded(text) if registry.is_folded(stem.name) else text
    return shown


def _folded(table: Markup) -> Markup:
    """A table that a click opens; its caption is always seen."""
    caption = re.search("<caption>(.*?)</caption>", table, re.DOTALL)
    words = Markup(caption[1]) if caption else Markup("The table")
    rest = Markup(table.replace(caption[0], "")) if caption else table
    return Markup("<details><summary>{}</summary>{}</details>").format(words, rest)
