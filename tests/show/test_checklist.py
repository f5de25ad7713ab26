"""The checklist: its items are complete, and their states are worked out by hand."""

import re

import pandas as pd
import pytest
from made_folders import card

from medlib.data.cards import FOR_A_PAPER
from medlib.show import checklist, registry
from medlib.show.checklist import FILLED, NOT_DONE, OPEN, WRITE, Checklist, Fact, Item, Study

# The items of TRIPOD+AI that have letters. It has 27 items, and 52 if letters are counted.
LETTERS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef"}
LETTERS |= {20: "abc", 23: "ab", 27: "abc"}
# Stems that no entry of the registry has yet, and what they will show.
PENDING = {
    "external_{task}": "tests on other data sets",
}


def numbers(name):
    return [item.number for item in checklist.read().items if item.list == name]


def test_the_items_of_both_lists_are_complete_and_none_stands_twice():
    assert numbers("CLAIM") == [str(n) for n in range(1, 45)]
    tripod = [f"{n}{letter}" for n in range(1, 28) for letter in LETTERS.get(n, " ")]
    assert numbers("TRIPOD+AI") == [number.strip() for number in tripod] and len(tripod) == 52
    assert {item.list for item in checklist.read().items} == set(checklist.read().lists)


def test_each_item_asks_something_short_and_something_fills_it():
    for item in checklist.read().items:
        assert 0 < len(item.asks) <= 80 and not item.asks.endswith("."), item
        assert item.facts or item.shows or item.card or item.says or item.write, item
        assert set(item.card) <= set(FOR_A_PAPER), item


def test_each_stem_is_in_the_registry_and_each_fact_has_its_place():
    read = checklist.read()
    stems = {stem for item in read.items for stem in item.shows} | set(read.undone)
    known = {re.sub(r"\{\w+\}", "{task}", entry.stem) for entry in registry.ENTRIES}
    known |= {entry.stem.format(task="{task}", regime="regimes") for entry in registry.ENTRIES}
    assert stems - known <= set(PENDING)
    assert set(read.undone) <= {stem for item in read.items for stem in item.shows}
    assert {name for item in read.items for name in item.facts} == set(read.places)


PLACES = {"sizes": "here; there", "seeds": "grids/{grid}.yaml"}
UNDONE = {"b_{task}": "No b was drawn."}
FACTS = {"sizes": Fact("12 patients"), "seeds": Fact("1 seed", "a second training")}
FACTS |= {"age": Fact("age 40", "x tells no age", OPEN)}
CARDS = {"x": card(task="x", ethics="Approved"), "y": card(task="y", ethics="Approved")}
CARDS |= {"z": card(task="z")}
MADE = Study("small", FACTS, CARDS, {"a", "b_x", "b_y", "c_x", "c_y", "c_z"})
# An item, then its state, its answer and its places.
CASES = {
    "a fact": (
        {"facts": ["sizes"]},
        (FILLED, "12 patients.", "here; there"),
    ),
    "a fact that lacks something": (
        {"facts": ["sizes", "seeds"]},
        (
            NOT_DONE,
            "12 patients. 1 seed. NOT DONE: a second training.",
            "here; there; grids/small.yaml",
        ),
    ),
    "what holds of every study": (
        {"says": "Patients are apart.", "where": "notebook 01"},
        (FILLED, "Patients are apart.", "notebook 01"),
    ),
    "what the author must write": (
        {"facts": ["sizes"], "write": "The title"},
        (WRITE, "12 patients. YOU MUST WRITE: The title.", "here; there"),
    ),
    "a figure that is there": ({"shows": ["a"]}, (FILLED, "", "figures/small/a")),
    "a figure of each task": ({"shows": ["c_{task}"]}, (FILLED, "", "figures/small/c_<task>")),
    "a figure that is not there": ({"shows": ["d"]}, (NOT_DONE, "NOT DONE: There is no d.", "")),
    "a figure of no task": (
        {"shows": ["e_{task}"]},
        (NOT_DONE, "NOT DONE: There is no e_<task>.", ""),
    ),
    "a figure of some tasks": (
        {"shows": ["b_{task}"]},
        (
            NOT_DONE,
            "NOT DONE: No b was drawn. There is no b_<task> of z.",
            "figures/small/b_<task>",
        ),
    ),
    "a field that one card lacks": (
        {"card": ["ethics"]},
        (
            OPEN,
            "x, y: Approved. OPEN: ethics is missing in the card(s) z.",
            "data_manifests/<task>.yaml",
        ),
    ),
    "a field that all cards lack": (
        {"card": ["annotators"], "write": "More"},
        (
            OPEN,
            "YOU MUST WRITE: More. OPEN: annotators is missing in the card(s) x, y, z.",
            "",
        ),
    ),
    "what is not done counts before what is open": (
        {"facts": ["age"], "shows": ["d"]},
        (NOT_DONE, "age 40. OPEN: x tells no age. NOT DONE: There is no d.", "nowhere"),
    ),
}


def rows(items, study=MADE):
    made = [Item("L", str(n), "S", "asks", **item) for n, item in enumerate(items, start=1)]
    places = PLACES | {"age": "nowhere"}
    return checklist.table(study, Checklist({"L": "A list"}, places, UNDONE, made))


@pytest.mark.parametrize(("item", "expected"), CASES.values(), ids=CASES)
def test_the_state_of_an_item_is_that_worked_out_by_hand(item, expected):
    (row,) = rows([item]).itertuples()
    assert (row.state, row.answer, row.where) == expected
    assert (row.section, row.item, row.asks) == ("S", "L 1", "asks")


def test_of_phantoms_the_fields_of_a_card_tell_nothing():
    (row,) = rows([{"card": ["ethics"]}], MADE._replace(phantoms=True)).itertuples()
    assert row.state == NOT_DONE and "phantoms" in row.answer and "Approved" not in row.answer


def test_an_unknown_fact_and_an_unknown_field_of_an_item_are_errors():
    with pytest.raises(KeyError, match="weight"):
        rows([{"facts": ["weight"]}])
    with pytest.raises(TypeError, match="fact"):
        Item("L", "1", "S", "asks", fact="sizes")


def test_tasks_with_the_same_words_stand_together():
    words = {"x": "two classes", "y": "three classes", "z": "two classes"}
    assert checklist.by_task(words) == "x, z: two classes. y: three classes."
    assert checklist.by_task({}) == ""


def test_the_caption_counts_states_and_the_note_cites_the_lists():
    items = pd.DataFrame({"state": [FILLED, FILLED, NOT_DONE, WRITE]})
    counted = "of 4 items 2 filled, 1 you must write, 0 open, 1 not done. Small."
    assert checklist.caption(items, "Small.") == f"What a paper must report: {counted}"
    assert "10.1148/ryai.240300" in checklist.note() and "bmj-2023-078378" in checklist.note()
