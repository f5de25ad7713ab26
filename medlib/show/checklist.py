"""What a paper must report: the items of CLAIM 2024 and TRIPOD+AI, and what fills them.

The items are rows of ``checklist.yaml``; a new item or fact needs a line there, and no code.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from medlib.data.cards import FOR_A_PAPER, Card

FILE = Path(__file__).with_suffix(".yaml")
FILLED, WRITE, OPEN, NOT_DONE = "filled", "you must write", "open", "not done"
STATES = (FILLED, WRITE, OPEN, NOT_DONE)  # if several hold, the last one counts
PHANTOMS = "These are phantoms: a card describes the real data set, which was not used"


class Fact(NamedTuple):
    """A fact about the study, in short words ("" if nothing is known), and what is missing.

    If something is missing (``lacks``), an item that needs the fact gets the ``state``.
    """

    words: str
    lacks: str = ""
    state: str = NOT_DONE


@dataclass(frozen=True)
class Item:
    """One item of a list, by its ``number``; ``asks`` is a paraphrase.

    ``facts`` are names of facts. ``shows`` are names of figures and tables of the registry; with
    ``{task}`` there must be one for each task. ``card`` are fields that every task's card must
    have. ``says`` is true of every study, and ``where`` is where to find it. ``write`` is what only
    the author can write. The state of an item depends on which of these are missing.
    """

    list: str
    number: str
    section: str
    asks: str
    facts: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    card: tuple[str, ...] = ()
    says: str = ""
    where: str = ""
    write: str = ""


class Checklist(NamedTuple):
    """What ``checklist.yaml`` holds.

    ``lists``: the citation of each list. ``places``: where to find each fact. ``undone``: what was
    not done if a figure or table is missing.
    """

    lists: dict[str, str]
    places: dict[str, str]
    undone: dict[str, str]
    items: list[Item]


def read(path: Path = FILE) -> Checklist:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Checklist(**content | {"items": [Item(**item) for item in content["items"]]})


class Study(NamedTuple):
    """What is known of a grid: its name, facts, cards by task, and the figures that are there.

    ``stems`` are names of figures and tables without their endings. ``phantoms``: the data are
    phantoms, so the fields of the cards do not apply.
    """

    grid: str
    facts: Mapping[str, Fact]
    cards: Mapping[str, Card]
    stems: Collection[str]
    phantoms: bool = False


def table(study: Study, checklist: Checklist | None = None) -> pd.DataFrame:
    """The items with their states: section, item, asks, state, answer, where.

    ``answer`` says what the study knows, then what was not done, which field of which card is
    missing, or what is to be written. Raises KeyError for an item that names an unknown fact.
    """
    checklist = checklist or read()
    return pd.DataFrame([_row(item, study, checklist) for item in checklist.items])


def _row(item: Item, study: Study, checklist: Checklist) -> dict[str, str]:
    facts = [study.facts[name] for name in item.facts]
    known = [item.says, *(fact.words for fact in facts)]
    lacking = [(fact.state, fact.lacks) for fact in facts if fact.lacks]
    where = [item.where, *(checklist.places[name] for name in item.facts)]
    for stem in item.shows:
        there, missing = _files(stem, study)
        where += [f"figures/{{grid}}/{there}"] if there else []
        if missing:
            lacking.append((NOT_DONE, f"{checklist.undone.get(stem, '')} {missing}".strip()))
    for field in item.card:
        words, missing = _of_cards(field, study)
        known.append(words)
        where += ["data_manifests/<task>.yaml"] if words else []
        if missing:
            lacking.append((NOT_DONE if study.phantoms else OPEN, missing))
    if item.write:
        lacking.append((WRITE, item.write))
    states = [state for state in STATES if any(state == s for s, _ in lacking)] or [FILLED]
    todo = [f"{state.upper()}: {words}" for state in STATES for s, words in lacking if s == state]
    return {
        "section": item.section,
        "item": f"{item.list} {item.number}",
        "asks": item.asks,
        "state": states[-1],
        "answer": " ".join(_sentence(words) for words in [*known, *todo] if words),
        "where": "; ".join(dict.fromkeys(_places(where))).format(grid=study.grid),
    }


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _places(where: Iterable[str]) -> Iterable[str]:
    return (place for words in where for place in words.split("; ") if place)


def _files(stem: str, study: Study) -> tuple[str, str]:
    """A figure's or table's name as printed, "" for none; and which files are missing, in words."""
    if "{task}" not in stem:
        return (stem, "") if stem in study.stems else ("", f"There is no {stem}.")
    missing = [task for task in study.cards if stem.format(task=task) not in study.stems]
    shown = stem.format(task="<task>")
    if not missing:
        return shown, ""
    if len(missing) == len(study.cards):
        return "", f"There is no {shown}."
    return shown, f"There is no {shown} of {', '.join(missing)}."


def _of_cards(field: str, study: Study) -> tuple[str, str]:
    """What the cards say in a field, and which of them lack it."""
    if study.phantoms:
        return "", PHANTOMS
    said = {task: getattr(card, field) for task, card in study.cards.items()}
    missing = ", ".join(task for task, words in said.items() if not words)
    lacking = f"{field} is missing in the card(s) {missing}" if missing else ""
    return by_task({task: words for task, words in said.items() if words}), lacking


def by_task(words: Mapping[str, str]) -> str:
    """The words of each task in one text; tasks with the same words are named together."""
    groups: dict[str, list[str]] = {}
    for task, of_task in words.items():
        groups.setdefault(of_task, []).append(task)
    return " ".join(_sentence(f"{', '.join(tasks)}: {same}") for same, tasks in groups.items())


def caption(items: pd.DataFrame, words: str = "") -> str:
    """The caption of the table: how many items have each state."""
    counts = items["state"].value_counts()
    numbers = ", ".join(f"{counts.get(state, 0)} {state}" for state in STATES)
    return f"What a paper must report: of {len(items)} items {numbers}. {words}".strip()


def note(checklist: Checklist | None = None) -> str:
    """The note of the table: which lists these are, and what the states mean."""
    checklist = checklist or read()
    return (
        "The items are paraphrased here; submit the guidelines' own forms. filled: the study knows "
        "it; check it. you must write: the study cannot know it. open: a field of a card is "
        f"missing ({', '.join(FOR_A_PAPER)}), or the data do not say it. not done: the study could "
        f"have done it. {'. '.join(checklist.lists.values())}."
    )
