"""medlib.data.known: groups of patients by what is known of them."""

import pandas as pd
import pytest

from medlib.data import cards, known
from medlib.errors import ManifestError

CARD = {"title": "T", "modality": "M", "classes": ["a", "b"], "licence": "L", "citation": "C"}
CARD |= {"source": "S", "task": "t"}


def of(groups, column):
    return groups[column].astype(str).tolist()


def test_ages_are_cut_and_what_is_no_age_is_not_known():
    rows = pd.DataFrame({"age": ["39.9", "40", "64.9", "65", "", "old", "130", "NA", "-3"]})
    groups = known.groups(rows, {})
    assert of(groups, "age") == [
        "under 40",
        *["40 to under 65"] * 2,
        "65 and over",
        *["not known"] * 5,
    ]
    names = ["under 40", "40 to under 65", "65 and over", "not known"]
    assert list(groups["age"].cat.categories) == names


def test_the_card_has_other_cut_points_and_columns():
    rows = pd.DataFrame({"age": ["8", "30"], "bmi": ["17", "unknown"], "room": ["2", "10"]})
    groups = known.groups(rows, {"age": (18.5,), "bmi": (18.5, 25.0), "room": (), "none": ()})
    assert of(groups, "age") == ["under 18.5", "18.5 and over"]
    assert of(groups, "bmi") == ["under 18.5", "not known"]  # without groups that nobody is in
    assert list(groups["room"].cat.categories) == ["10", "2"]
    assert "none" not in groups


def test_values_are_groups_and_a_column_without_any_is_left_out():
    rows = pd.DataFrame({"sex": ["male", "", "female"], "site": ["", "unknown", "nan"]})
    rows["burnt_in"] = "yes"  # about an image, and not about a patient
    groups = known.groups(rows, {})
    assert list(groups) == ["sex"]
    assert list(groups["sex"].cat.categories) == ["female", "male", "not known"]


def test_a_card_refuses_columns_that_mean_something_else_and_cuts_that_do_not_ascend(tmp_path):
    text = "\n".join(f"{k}: {v}" for k, v in CARD.items() if k != "task")
    more = "subgroups: {label: [], bmi: [30, 25]}\njoined_sites: {x: [A, B], y: [B]}"
    (tmp_path / "t.yaml").write_text(f"{text}\n{more}\nsplit: leave-one-out\n")
    with pytest.raises(ManifestError) as error:
        cards.read("t", tmp_path)
    words = str(error.value)
    assert "label has another meaning; the cut points of bmi do not ascend: [30.0, 25.0]" in words
    assert "it has B twice" in words
    assert "Did you mean 'leave-one-site-out'?" in words


def test_a_card_with_subgroups_is_written_and_read_back(tmp_path):
    card = cards.Card(
        **CARD, subgroups={"age": [40.0, 65.0], "room": []}, joined_sites={"x": ["A"]}
    )
    (tmp_path / "t.yaml").write_text(cards.text(card))
    assert cards.read("t", tmp_path) == card and card.further_columns == ("room",)
