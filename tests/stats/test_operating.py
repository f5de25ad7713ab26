"""Thresholds and decision curves, checked by hand, by scikit-learn and by simulation."""

import made_arms
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from medlib.stats import draws, operating, prediction
from medlib.stats.operating import LIKELIEST, YOUDEN, Rule

RULES = [Rule(LIKELIEST), Rule(YOUDEN), Rule("sensitivity", 0.9), Rule("specificity", 0.9)]


def frame(y, proba, patients=None, **columns):
    """A table of predictions; ``proba`` (n,) is that of the second class, or (n, K)."""
    proba = np.asarray(proba)
    proba = np.stack([1 - proba, proba], axis=1) if proba.ndim == 1 else proba
    classes = [f"c{c}" for c in range(proba.shape[1])]
    ids = [f"s{i:05d}" for i in range(len(y))]
    rows = pd.DataFrame({"sample_id": ids, "patient_id": ids if patients is None else patients})
    rows["y_true"] = [classes[c] for c in y]
    rows[prediction.probability_columns(classes)] = proba
    return rows.assign(**columns)


def arm(tested, validated):
    tested, validated = ([x] if isinstance(x, pd.DataFrame) else x for x in (tested, validated))
    validated = [v if "rotation" in v else v.assign(rotation="test") for v in validated]
    values = dict.fromkeys(range(len(tested)), 0.5)
    classes = [c.removeprefix("prob_") for c in tested[0] if c.startswith("prob_")]
    return made_arms.arm(values=values, frames=tested)._replace(
        classes=classes, validated=validated
    )


def risks(n, seed, apart=1.5):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return y, 1 / (1 + np.exp(-rng.normal(apart * (y - 0.5))))


POSITIVE = np.array([False, False, True, False, True, True])
SCORE = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("sensitivity", 1.0), 0.3),
        (Rule("sensitivity", 0.6), 0.7),
        (Rule("specificity", 1.0), 0.7),
        (Rule("specificity", 0.6), 0.3),
        (Rule(YOUDEN), 0.7),  # 2/3 + 1; 0.3 has the same sum, and the higher one is taken
    ],
)
def test_thresholds_of_six_samples_are_those_worked_out_by_hand(rule, expected):
    assert operating.threshold(POSITIVE, SCORE, rule) == expected


def test_where_the_highest_score_is_negative_nobody_is_called_at_full_specificity():
    at = operating.threshold(np.array([True, False]), np.array([0.4, 1.0]), Rule("specificity", 1))
    assert 1 < at < 1.001
    with pytest.raises(ValueError, match="of the class and of the others"):
        operating.threshold(np.array([True, True]), np.array([0.4, 1.0]), Rule(YOUDEN))


def test_rates_are_those_of_scikit_learn_at_the_threshold_of_validation():
    y, score = risks(300, 0)
    own, chosen_on = risks(200, 1)
    found = operating.operating_points(arm(frame(y, score), frame(own, chosen_on)), RULES, {}, 50)
    assert found["rule"].unique().tolist() == [rule.printed for rule in RULES]
    for rule, rows in found.groupby("rule"):
        rows = rows.set_index("metric")
        at = rows["threshold"].iloc[0]
        called = score >= at
        values = {
            "sensitivity": sk.recall_score(y, called),
            "specificity": sk.recall_score(y, called, pos_label=0),
            "ppv": sk.precision_score(y, called),
            "npv": sk.precision_score(y, called, pos_label=0),
        }
        assert rows["value"].to_dict() == pytest.approx(values)
        before = sk.recall_score(own, chosen_on >= at)
        assert rows.loc["sensitivity", "validation"] == pytest.approx(before)
        if rule == "sensitivity ≥ 0.9":
            assert before >= 0.9 and sk.recall_score(own, chosen_on > at) < 0.9
    assert found.query("rule == @LIKELIEST")["threshold"].eq(0.5).all()
    assert found["prevalence"].to_numpy() == pytest.approx(y.mean())
    counted = found.query("rule == @LIKELIEST").set_index("metric")["n_patients"].to_dict()
    called = int((score > 0.5).sum())
    sizes = {"sensitivity": y.sum(), "specificity": 300 - y.sum()}
    assert counted == sizes | {"ppv": called, "npv": 300 - called}


def test_each_rotation_has_its_own_threshold_and_calls_are_counted_together():
    """Fold 1's scores and threshold are half of fold 0's, so the calls are the same."""
    y, score = risks(100, 2)
    halves = frame(np.tile(y, 2), np.concatenate([score, score / 2]), fold=np.repeat([0, 1], 100))
    own, chosen_on = risks(100, 3)
    validated = frame(np.tile(own, 2), np.concatenate([chosen_on, chosen_on / 2]))
    validated["rotation"] = np.repeat(["0", "1"], 100)
    rule = [Rule("sensitivity", 0.8)]
    both = operating.operating_points(arm(halves, validated), rule, {}, 20).set_index("metric")
    one = arm(frame(y, score), frame(own, chosen_on))
    one = operating.operating_points(one, rule, {}, 20).set_index("metric")
    assert both["value"].to_dict() == pytest.approx(one["value"].to_dict())
    at = one["threshold"].iloc[0]
    assert both["threshold_low"].iloc[0] == pytest.approx(at / 2)
    assert both["threshold_high"].iloc[0] == pytest.approx(at)
    assert both["threshold"].iloc[0] == pytest.approx(0.75 * at)


def test_a_stated_prevalence_gives_ppv_and_npv_by_bayes_theorem():
    """PPV and NPV are worked out for sensitivity 0.8, specificity 0.9 and prevalence 1 %."""
    y = np.repeat([1, 0], [100, 200])
    score = np.concatenate([np.repeat([0.9, 0.1], [80, 20]), np.repeat([0.9, 0.1], [20, 180])])
    tested = arm(frame(y, score), frame(y, score))
    found = operating.operating_points(tested, [Rule(LIKELIEST)], {"c1": 0.01}, 100)
    assert found["metric"].tolist() == ["sensitivity", "specificity", "ppv", "npv", "ppv", "npv"]
    own, stated = (found.query("prevalence == @p").set_index("metric") for p in (1 / 3, 0.01))
    assert own.loc["ppv", "value"] == pytest.approx(0.8)
    assert stated.loc["ppv", "value"] == pytest.approx(0.008 / (0.008 + 0.099))
    assert stated.loc["npv", "value"] == pytest.approx(0.891 / (0.891 + 0.002))
    with pytest.raises(ValueError, match="prevalence holds {'c2': 0.1, 'c0': 1.0}"):
        operating.operating_points(tested, RULES, {"c2": 0.1, "c0": 1.0}, 10)


def test_without_a_false_positive_the_ppv_at_a_low_prevalence_is_still_uncertain():
    """All 100 negatives are right; Wilson's interval says that the specificity is above 0.963."""
    y, score = np.repeat([1, 0], [50, 100]), np.repeat([0.9, 0.1], [50, 100])
    tested = arm(frame(y, score), frame(y, score))
    found = operating.operating_points(tested, [Rule(LIKELIEST)], {"c1": 0.01}, 100)
    row = found.query("metric == 'ppv' and prevalence == 0.01").iloc[0]
    low = proportion_confint(100, 100, method="wilson")[0]
    hits = 0.01 * proportion_confint(50, 50, method="wilson")[0]
    assert row["value"] == row["ci_high"] == 1
    assert row["ci_low"] == pytest.approx(hits / (hits + 0.99 * (1 - low)), rel=1e-6)


def test_more_than_two_classes_are_called_one_against_the_rest():
    rng = np.random.default_rng(4)
    y = np.arange(300) % 3
    proba = 0.5 * rng.dirichlet(np.ones(3), 300) + 0.5 * np.eye(3)[y] * rng.random((300, 1))
    proba /= proba.sum(1, keepdims=True)
    tested = arm(frame(y, proba), frame(y, proba))
    found = operating.operating_points(tested, RULES[:3], {}, 20).set_index(["class", "rule"])
    assert len(found) == 3 * 3 * 4
    for c in range(3):
        rows = found.loc[(f"c{c}", LIKELIEST)].set_index("metric")["value"]
        right = sk.recall_score(y, proba.argmax(1), labels=[c], average="macro")
        assert rows["sensitivity"] == pytest.approx(right)
        reached = found.loc[(f"c{c}", "sensitivity ≥ 0.9")].set_index("metric")["value"]
        assert reached["sensitivity"] >= 0.9


def test_seeds_are_averaged_and_patients_are_drawn_with_all_their_samples():
    y, score = risks(120, 5)
    patients = [f"p{i // 2}" for i in range(120)]
    other = risks(120, 6)[1]
    tested = [frame(y, s, patients) for s in (score, other)]
    found = operating.operating_points(arm(tested, tested), [Rule(LIKELIEST)], {}, 300)
    row = found.set_index("metric").loc["specificity"]
    right = np.array([score < 0.5, other < 0.5])[:, y == 0]
    assert row["value"] == pytest.approx(right.mean())
    names = sorted(set(patients))
    weights = draws.counts(names, 0, 300).astype(float)
    owner = pd.Index(names).get_indexer(patients)[y == 0]
    drawn = [(weights[:, owner] @ of) / weights[:, owner].sum(1) for of in right]
    error = np.std(np.mean(drawn, axis=0), ddof=1)
    p = row["value"]
    ends = 1 / (
        1 + np.exp(-(np.log(p / (1 - p)) + np.array([-1, 1]) * 1.959964 * error / p / (1 - p)))
    )
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(ends), rel=1e-6)


def test_intervals_cover_what_the_threshold_gives_on_all_patients():
    """500 test sets are simulated. The truth is that of 200,000 patients at a threshold of 0.5."""
    y, score = risks(200_000, 7)
    truth = (score[y == 1] >= 0.5).mean()
    held = []
    for seed in range(500):
        tested = frame(*risks(150, 100 + seed))
        found = operating.operating_points(arm(tested, tested), [Rule(LIKELIEST)], {}, 400)
        row = found.set_index("metric").loc["sensitivity"]
        held.append(row["ci_low"] <= truth <= row["ci_high"])
    assert 0.93 <= np.mean(held) <= 0.97


def test_net_benefit_is_that_of_its_definition_and_none_is_zero():
    y, score = risks(200, 8)
    table = operating.net_benefit([frame(y, score)], ["c0", "c1"], 100).set_index("threshold")
    assert set(table["class"]) == {"c1"} and len(table) == 99
    for at in (0.1, 0.5, 0.8):
        true, false = ((score >= at) & (y == c) for c in (1, 0))
        expected = (true.sum() - false.sum() * at / (1 - at)) / 200
        assert table.loc[at, "net_benefit"] == pytest.approx(expected)
        assert table.loc[at, "all"] == pytest.approx(y.mean() - (1 - y.mean()) * at / (1 - at))
    assert (table["low"] <= table["net_benefit"]).all()
    assert (table["net_benefit"] <= table["high"]).all()
    perfect = operating.net_benefit([frame(y, y.astype(float))], ["c0", "c1"], 100)
    assert perfect["net_benefit"].to_numpy() == pytest.approx(y.mean())
