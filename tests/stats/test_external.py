"""medlib.stats.external: the drop, ranks and the choice outside, recalibration, the shift."""

import numpy as np
import pandas as pd
import pytest
from made_arms import arm, frame_of, row
from scipy import special, stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from medlib.core.metrics import codes
from medlib.errors import ManifestError
from medlib.stats import bootstrap, calibration, external, prediction

CLASSES = ["low", "high"]
NAMES = ("auroc", "log_loss")


def scored(n, rng, apart=1.2, share=0.5, classes=CLASSES, offset=0.0):
    """One image a patient. Scores are normal; of two classes, the AUROC is Φ(apart)."""
    label = (np.arange(n) < share * n).astype(int) if len(classes) == 2 else np.arange(n) % 3
    score = rng.normal(size=(n, len(classes))) / np.sqrt(2)
    score += apart * np.eye(len(classes))[label] / np.sqrt(2)
    score[:, -1] += offset
    proba = special.softmax(score, axis=1)
    return frame_of(label, proba, classes)


def inside(frames, classes=CLASSES, validated=None, **cell):
    frames = frames if isinstance(frames, list) else [frames]
    validated = validated or [frame.assign(rotation=0) for frame in frames]
    made = arm(values=dict.fromkeys(range(len(frames)), 0.5), frames=frames, **cell)
    return made._replace(classes=classes, validated=validated)


def pair(here, there, **cell):
    """An arm inside and outside, of one model."""
    made = inside(here, **cell)
    return external.outside(made, {0: {0: there}}, made.classes)


def compared(*pairs, resamples=200):
    sides = [external.estimates(side, NAMES, resamples) for side in zip(*pairs, strict=True)]
    return external.compared(pairs, *sides, ("own", "other")), sides


# ------------------------------------------------------------------------------------ the models


def test_each_model_outside_stands_with_its_own_validation_patients():
    rng = np.random.default_rng(0)
    frames = [scored(30, rng) for _ in range(2)]
    validated = [
        pd.concat([scored(20, rng).assign(rotation=fold) for fold in (0, 1, 2)]) for _ in frames
    ]
    made = inside(frames, validated=validated)
    there = {seed: {fold: scored(40, rng) for fold in (0, 1, 2)} for seed in (0, 1)}
    same, outside = external.outside(made, there, CLASSES)
    assert len(outside.frames) == len(outside.validated) == 6
    for at, (seed, fold) in enumerate((s, f) for s in (0, 1) for f in (0, 1, 2)):
        pd.testing.assert_frame_equal(outside.frames[at], there[seed][fold])
        own = validated[seed][validated[seed]["rotation"] == fold]
        pd.testing.assert_frame_equal(outside.validated[at], own)
    assert [frame is own for frame, own in zip(same.frames, frames, strict=True)] == [True, True]


def test_a_class_that_is_not_outside_is_left_out_on_both_sides():
    rng, classes = np.random.default_rng(1), ["a", "b", "c"]
    here, there = scored(60, rng, classes=classes), scored(60, rng, classes=classes)
    there = there[there["y_true"] != "b"].reset_index(drop=True)
    same, outside = external.outside(inside(here, classes), {0: {0: there}}, ["a", "c"])
    assert same.classes == outside.classes == ["a", "c"]
    assert set(same.frames[0]["y_true"]) == {"a", "c"} and len(same.frames[0]) == 40
    own = here[here["y_true"] != "b"].iloc[7]
    expected = own["prob_c"] / (own["prob_a"] + own["prob_c"])
    assert same.frames[0]["prob_c"].iloc[7] == pytest.approx(expected, abs=1e-12)
    assert "prob_b" not in outside.frames[0] and "prob_b" not in outside.validated[0]
    np.testing.assert_allclose(outside.frames[0][["prob_a", "prob_c"]].sum(axis=1), 1)


# -------------------------------------------------------------------------------------- the drop


def test_values_are_those_of_scikit_learn_as_means_over_the_models():
    rng = np.random.default_rng(2)
    here, folds = scored(80, rng), {fold: scored(50, rng, 0.6) for fold in (0, 1, 2)}
    made = inside(here)
    pairs = [external.outside(made, {0: folds}, CLASSES)]
    table, _ = compared(*pairs)
    y = here["y_true"] == "high"
    assert row(table, tested_on="own", metric="auroc")["value"] == pytest.approx(
        roc_auc_score(y, here["prob_high"]), abs=1e-12
    )
    for name, by_hand in (("auroc", roc_auc_score), ("log_loss", log_loss)):
        of = [by_hand(frame["y_true"] == "high", frame["prob_high"]) for frame in folds.values()]
        found = row(table, tested_on="other", metric=name)
        assert found["value"] == pytest.approx(np.mean(of), abs=1e-12)
        sign = 1 if name == "auroc" else -1  # a higher log-loss is worse
        own = row(table, tested_on="own", metric=name)
        assert found["drop"] == pytest.approx(sign * (own["value"] - found["value"]), abs=1e-12)
        assert found["drop_low"] < found["drop"] < found["drop_high"]
        assert np.isnan(own["drop"])
    assert found["n_patients"] == 50 and own["n_patients"] == 80


def test_the_interval_of_a_drop_is_combined_from_two_independent_ones():
    """By hand: 0.9 [0.8, 0.95] minus 0.7 [0.6, 0.78]."""
    one = bootstrap.Estimate(0.9, 0.8, 0.95, np.array([]))
    other = bootstrap.Estimate(0.7, 0.6, 0.78, np.array([]))
    low, high = bootstrap.difference(one, other)
    assert low == pytest.approx(0.2 - np.hypot(0.1, 0.08), abs=1e-12)
    assert high == pytest.approx(0.2 + np.hypot(0.05, 0.1), abs=1e-12)
    same = bootstrap.difference(one, one, correlation=1.0)
    assert same == pytest.approx((-0.05, 0.05), abs=1e-12)  # down and up differ by so much


@pytest.mark.parametrize(
    ("apart_inside", "apart_outside", "share", "least", "most"),
    [
        (1.1, 0.65, 0.5, 0.93, 0.97),  # AUROC 0.86 and 0.74
        (1.0, 1.0, 0.3, 0.93, 0.97),  # no drop, fewer ill patients outside
        (1.9, 0.9, 0.5, 0.93, 0.985),  # 0.97: close to 1, where intervals are too wide
    ],
)
def test_the_interval_of_a_drop_covers_the_true_drop(
    apart_inside, apart_outside, share, least, most
):
    rng, studies, hits = np.random.default_rng(3), 400, 0
    true = stats.norm.cdf(apart_inside) - stats.norm.cdf(apart_outside)
    for _ in range(studies):
        here = scored(120, rng, apart_inside)
        there = scored(140, rng, apart_outside, share)
        one, other = (
            bootstrap.estimates([frame], CLASSES, ["auroc"], 200)["auroc"]
            for frame in (here, there)
        )
        low, high = bootstrap.difference(one, other)
        hits += low <= true <= high
    assert least <= hits / studies <= most, hits / studies


# ------------------------------------------------------------------------------------- the choice


def test_ranks_are_among_the_arms_of_a_place():
    rng = np.random.default_rng(4)
    good = pair(scored(200, rng, 2.0), scored(200, rng, 0.3), backbone="good")
    poor = pair(scored(200, rng, 0.5), scored(200, rng, 1.5), backbone="poor")
    table, _ = compared(good, poor)
    for metric in NAMES:
        ranks = [
            row(table, backbone=name, tested_on=place, metric=metric)["rank"]
            for name in ("good", "poor")
            for place in ("own", "other")
        ]
        assert ranks == [1, 2, 2, 1], metric


def test_an_arm_that_is_better_outside_is_found_and_controls_are_left_out():
    rng = np.random.default_rng(5)
    first = pair(scored(300, rng, 2.0), scored(300, rng, 0.4), backbone="first")
    other = pair(scored(300, rng, 1.5), scored(300, rng, 1.5), backbone="other")
    control = pair(scored(300, rng, 3), scored(300, rng, 3), backbone="c", pretraining="random")
    _, sides = compared(first, other, control)
    found = external.choice([first, other, control], *sides).set_index("backbone")
    assert list(found.index) == ["first", "other"]
    assert found["best"].tolist() == [True, False]
    areas = [
        roc_auc_score(p[1].frames[0]["y_true"] == "high", p[1].frames[0]["prob_high"])
        for p in (first, other)
    ]
    assert found.loc["other", "difference"] == pytest.approx(areas[1] - areas[0], abs=1e-12)
    assert found.loc["other", "low"] > 0 and found.loc["first", "share_best"] < 0.01
    alone = external.choice([control], *([side[2]] for side in sides))
    assert alone["best"].tolist() == [True]  # if there are only controls, they are compared


def test_of_equal_arms_one_is_rarely_called_better_outside():
    """Five arms that are equal outside. All true differences, 0, are covered at once in 95 %."""
    rng, studies, wrong, covered = np.random.default_rng(6), 150, 0, 0
    for _ in range(studies):
        pairs = [pair(scored(100, rng), scored(100, rng), backbone=f"b{k}") for k in range(5)]
        sides = [external.estimates(side, ["auroc"], 200) for side in zip(*pairs, strict=True)]
        others = external.choice(pairs, *sides).query("not best")
        wrong += (others["low"] > 0).any()
        covered += ((others["low"] <= 0) & (others["high"] >= 0)).all()
    assert wrong / studies <= 0.06
    assert 0.91 <= covered / studies <= 0.985, covered / studies


# ---------------------------------------------------------------------------------- recalibration


def test_a_few_patients_mend_an_offset_and_few_of_them_are_refused():
    """Outside, every log odds is 2 too high: a temperature cannot mend that, an offset can."""
    rng = np.random.default_rng(7)
    here, there = scored(400, rng, 1.5), scored(400, rng, 1.5, offset=2)
    outside = pair(here, there)[1]
    table = external.recalibrated(outside, 60).set_index(["metric", "probabilities"])["value"]
    loss = {kind: table["log_loss", kind] for kind in (calibration.RAW, external.RECALIBRATED)}
    y, raw = codes(there["y_true"], CLASSES), there["prob_high"]
    assert loss[calibration.RAW] == pytest.approx(log_loss(y, raw), abs=0.02)
    expected = brier_score_loss(y, raw)
    assert table["brier", calibration.RAW] == pytest.approx(expected, abs=0.02)
    mended = there.copy()
    odds = special.logit(raw) - 2
    mended[["prob_low", "prob_high"]] = np.column_stack([special.expit(-odds), special.expit(odds)])
    best = log_loss(y, mended["prob_high"])
    assert loss[external.RECALIBRATED] < best + 0.05 < loss[calibration.RAW] - 0.2
    assert table["log_loss", calibration.TEMPERATURE] > best + 0.2
    assert abs(table["intercept", external.RECALIBRATED]) < 0.3
    assert table["intercept", calibration.RAW] < -1.3
    (few,) = external.recalibrated(outside, 300).to_dict("records")
    assert few["why"] == "400 external patients (200 of the rarest class) are too few to take 300."


def test_fewer_patients_leave_more_to_chance():
    rng = np.random.default_rng(8)
    outside = pair(scored(300, rng, 1.5), scored(300, rng, 1.5, offset=1))[1]
    few, many = (
        external.recalibrated(outside, n).query("metric == 'log_loss'").set_index("probabilities")
        for n in (10, 100)
    )
    reach = [table["high"] - table["low"] for table in (few, many)]
    assert reach[0][external.RECALIBRATED] > 2 * reach[1][external.RECALIBRATED]


def test_patients_are_drawn_by_class_and_whole():
    rng = np.random.default_rng(9)
    label_of = pd.Series(["a"] * 90 + ["b"] * 9 + ["c"] * 2, [f"p{i}" for i in range(101)])
    drawn = label_of[external._drawn(rng, label_of, 20)]
    assert drawn.value_counts().to_dict() == {"a": 18, "b": 2, "c": 1}


# -------------------------------------------------------------------------------------- the shift


def embedded(n, rng, mean=0.0, share=0.5, apart=0.0, images=1):
    """Embeddings of n patients; those of the second class lie `apart` from the first."""
    patient = np.repeat(np.arange(n), images)
    label = np.where(np.arange(n) < share * n, "ill", "well")[patient]
    x = rng.normal(size=(len(patient), 6)) + mean + apart * (label == "ill")[:, None]
    index = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(patient))], "label": label})
    index["patient_id"] = [f"p{i}" for i in patient]
    return external.Embedded(x, index)


def test_alike_data_sets_are_not_told_apart_and_shifted_ones_are():
    rng = np.random.default_rng(10)
    same = external.shift(external.told_apart(embedded(200, rng), embedded(150, rng)), 500)
    whole = row(same, label="")
    assert whole["ci_low"] < 0.5 < whole["ci_high"]
    assert (whole["n_inside"], whole["n_outside"]) == (200, 150)
    other = external.shift(external.told_apart(embedded(200, rng), embedded(150, rng, 1.5)), 500)
    assert row(other, label="")["ci_low"] > 0.95


def test_another_prevalence_alone_is_no_shift_within_a_class():
    rng = np.random.default_rng(11)
    few, many = embedded(400, rng, share=0.1, apart=2), embedded(400, rng, share=0.9, apart=2)
    table = external.shift(external.told_apart(few, many), 500)
    assert row(table, label="")["value"] > 0.8
    assert set(table["label"]) == {"", "ill", "well"}
    for label in ("ill", "well"):
        assert row(table, label=label)["ci_low"] < 0.5 + 0.03


def test_its_auroc_is_that_of_patients_whom_the_classifier_has_not_seen():
    """Patients with ten equal images each: a classifier that saw some would know the others."""
    rng = np.random.default_rng(12)
    sides = []
    for _ in range(2):
        x, index = embedded(60, rng, images=10)
        x = np.repeat(x[::10], 10, axis=0)
        sides.append(external.Embedded(x, index))
    apart = external.told_apart(*sides)
    assert len(apart) == 1200 and apart.groupby("patient_id")["fold"].nunique().max() == 1
    whole = row(external.shift(apart, 500), label="")
    folds = [
        roc_auc_score(own["y_true"] == "outside", own["prob_outside"])
        for _, own in apart.groupby("fold")
    ]
    shares = [own["patient_id"].nunique() for _, own in apart.groupby("fold")]
    assert whole["value"] == pytest.approx(np.average(folds, weights=shares), abs=1e-12)
    assert whole["ci_low"] < 0.5 < whole["ci_high"]
    assert prediction.probability_columns(["inside", "outside"]) == list(apart.columns[-2:])


def test_too_few_patients_are_refused():
    rng = np.random.default_rng(13)
    with pytest.raises(ManifestError, match="4 patients outside are too few: 5 or more"):
        external.told_apart(embedded(50, rng), embedded(4, rng))
