"""medlib.stats.failures: shared errors, surest errors and least sure cases, worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from medlib.stats import failures

CLASSES = ["no", "yes"]


def frame(risks, labels, patients=None, classes=CLASSES):
    """Predictions of samples a, b, c …: ``risks`` has P("yes"), or rows of all probabilities."""
    ids = list("abcdefghijklmnop")[: len(labels)]
    rows = pd.DataFrame({"sample_id": ids, "patient_id": patients or ids, "split": "test"})
    proba = np.array(risks, float)
    proba = np.stack([1 - proba, proba], axis=1) if proba.ndim == 1 else proba
    return rows.assign(
        y_true=labels, **dict(zip([f"prob_{c}" for c in classes], proba.T, strict=True))
    )


def judge(*args, **more):
    return failures.answers([frame(*args, **more)], more.get("classes", CLASSES))


def test_answers_are_of_the_mean_over_seeds_and_the_first_class_wins_a_tie():
    one = frame([0.9, 0.2, 0.5], ["no", "no", "yes"])
    other = frame([0.3, 0.4, 0.5], ["no", "no", "yes"]).iloc[::-1]
    made = failures.answers([one, other], CLASSES)
    assert made["called"].tolist() == ["yes", "no", "no"]
    np.testing.assert_allclose(made["prob_yes"], [0.6, 0.3, 0.5])
    np.testing.assert_allclose(made["probability"], [0.6, 0.7, 0.5])
    np.testing.assert_allclose(made["against"], [0.6, 0.3, 0.5])
    with pytest.raises(ValueError, match="not of the same samples"):
        failures.answers([one, other.iloc[1:]], CLASSES)


def test_what_speaks_against_a_label_is_the_most_probable_other_class():
    proba = [[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]]
    made = judge(proba, ["x", "z"], classes=["x", "y", "z"])
    np.testing.assert_allclose(made["against"], [0.3, 0.5])


def test_shared_errors_and_the_number_expected_of_independent_ones():
    labels = ["no"] * 4 + ["yes"] * 2
    one = judge([0.9, 0.9, 0.1, 0.1, 0.1, 0.9], labels)  # wrong: a, b and e
    other = judge([0.9, 0.1, 0.9, 0.9, 0.1, 0.1], labels)  # wrong: a, c, d, e and f
    assert failures.wrong_by_all([one, other]).tolist() == [True, *[False] * 3, True, False]
    table = failures.shared_errors([one, other], [*CLASSES, "absent"])
    assert table["label"].tolist() == ["no", "yes", "absent"]
    assert table["n"].tolist() == [4, 2, 0] and table["wrong"].tolist() == [1, 1, 0]
    # "no": 4 × 2/4 × 3/4; "yes": 2 × 1/2 × 2/2.
    np.testing.assert_allclose(table["expected"], [1.5, 1, 0])


def test_errors_drawn_independently_are_shared_as_often_as_expected():
    rng, labels = np.random.default_rng(0), ["no"] * 8 + ["yes"] * 8
    sums = np.zeros(2)
    for _ in range(300):
        judges = [judge(rng.random(16) * 0.9, labels) for _ in range(2)]
        sums += failures.shared_errors(judges, CLASSES)[["wrong", "expected"]].sum().to_numpy()
    assert sums[0] == pytest.approx(sums[1], rel=0.05)


def picked(cases, why):
    return cases.loc[cases["why"] == why, "sample_id"].tolist()


def test_cases_are_those_of_the_mean_over_backbones():
    labels = ["no"] * 5 + ["yes"] * 4
    #           a    b    c    d     e    f    g    h    i
    one = judge([0.9, 0.8, 0.7, 0.6, 0.1, 0.1, 0.9, 0.6, 0.9], labels)
    two = judge([0.8, 0.9, 0.6, 0.2, 0.2, 0.4, 0.3, 0.5, 0.7], labels)
    cases = failures.cases([one, two], CLASSES, shared=2, per_class=1)
    # Both get a, b, c and f wrong. (The second has a tie at h and calls "no"; the first is right.)
    # a and b tie with 0.85 against "no"; f has 0.75 against "yes". The classes take turns: a, f.
    assert picked(cases, failures.ALL_WRONG) == ["a", "f"]
    assert cases["why"].tolist()[:2] == [failures.ALL_WRONG] * 2
    # Of the other samples the mean gets b (0.85) and c (0.65) wrong. No "yes" is wrong: g has 0.6
    # and h has 0.55.
    assert picked(cases, failures.SUREST) == ["b"]
    # The least sure "no" is d (0.6; c has 0.65, e has 0.85), and the least sure "yes" is h (0.55).
    assert picked(cases, failures.LEAST_SURE) == ["d", "h"]
    np.testing.assert_allclose(cases["against"], [0.85, 0.75, 0.85, 0.4, 0.45])
    assert cases["called"].tolist() == ["yes", "no", "yes", "no", "yes"]
    assert cases["y_true"].tolist() == ["no", "yes", "no", "no", "yes"]


def test_of_equal_ones_the_first_sample_id_is_taken_whatever_the_order_of_rows():
    rows = frame([0.9] * 4, ["no"] * 4)
    made = [failures.answers([rows.iloc[order]], CLASSES) for order in ([0, 1, 2, 3], [2, 0, 3, 1])]
    for one in made:
        cases = failures.cases([one], CLASSES, shared=2, per_class=1)
        assert picked(cases, failures.ALL_WRONG) == ["a", "b"]
        assert picked(cases, failures.SUREST) == ["c"]
        assert picked(cases, failures.LEAST_SURE) == ["d"]


def test_a_patient_is_shown_once():
    labels, patients = ["no"] * 5, ["p", "p", "q", "q", "r"]
    cases = failures.cases([judge([0.9, 0.8, 0.7, 0.6, 0.4], labels, patients)], CLASSES, shared=1)
    assert picked(cases, failures.ALL_WRONG) == ["a"]
    assert picked(cases, failures.SUREST) == ["c"]
    assert picked(cases, failures.LEAST_SURE) == ["e"]


def test_without_errors_only_the_least_sure_are_left():
    cases = failures.cases([judge([0.1, 0.4, 0.2, 0.3], ["no"] * 4)], CLASSES, per_class=2)
    assert set(cases["why"]) == {failures.LEAST_SURE} and cases["sample_id"].tolist() == ["b", "d"]
