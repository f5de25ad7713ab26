"""Calibration, checked by scikit-learn, by statsmodels and on probabilities of known truth."""

import made_arms
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import special
from sklearn import metrics as sk
from sklearn.calibration import _SigmoidCalibration

from medlib.stats import calibration, prediction


def drawn(n, k, seed, slope=1.0, offset=0.0):
    """Labels and probabilities with known calibration.

    Probabilities are right after their logs are multiplied by ``slope`` and ``offset`` is added for
    class 1.
    """
    rng = np.random.default_rng(seed)
    logs = special.log_softmax(1.5 * rng.normal(size=(n, k)), axis=1)
    truth = special.softmax(slope * logs + offset * (np.arange(k) == 1), axis=1)
    y = (truth.cumsum(1) < rng.random((n, 1))).sum(1)
    return y, np.exp(logs)


def table(y, proba, patients=None, **columns):
    classes = [f"c{c}" for c in range(proba.shape[1])]
    ids = [f"s{i:05d}" for i in range(len(y))]
    frame = pd.DataFrame({"sample_id": ids, "patient_id": ids if patients is None else patients})
    frame["y_true"] = [classes[c] for c in y]
    frame[prediction.probability_columns(classes)] = proba
    return frame.assign(**columns), classes


def test_of_two_classes_temperature_and_offsets_are_platts_sigmoid():
    y, proba = drawn(300, 2, 0, slope=0.5, offset=-1)
    odds = np.log(proba[:, 1]) - np.log(proba[:, 0])
    sigmoid = _SigmoidCalibration().fit(odds, y)
    scale = calibration.fitted(y, proba, calibration.OFFSETS)
    np.testing.assert_allclose(scale(proba)[:, 1], sigmoid.predict(odds), atol=2e-4)
    assert scale.slope == pytest.approx(-sigmoid.a_, abs=2e-3)


@pytest.mark.parametrize("k", [2, 4])
def test_the_true_temperature_and_offset_are_found(k):
    y, proba = drawn(40_000, k, 1, slope=0.6)
    scale = calibration.fitted(y, proba)
    assert scale.slope == pytest.approx(0.6, abs=0.02) and scale.offsets == (0.0,) * k
    y, proba = drawn(40_000, k, 2, slope=1.4, offset=0.8)
    scale = calibration.fitted(y, proba, calibration.OFFSETS)
    assert scale.slope == pytest.approx(1.4, abs=0.05)
    assert scale.offsets == pytest.approx((0.0, 0.8, *(0.0,) * (k - 2)), abs=0.06)


def test_separable_classes_have_a_finite_temperature():
    y = np.arange(20) % 2
    scale = calibration.fitted(y, np.where(np.eye(2)[y] == 1, 0.8, 0.2))
    # By hand: the targets are 11/12, so the odds of 4 become odds of 11.
    assert scale.slope == pytest.approx(np.log(11) / np.log(4), rel=1e-3)


def test_each_rotation_is_calibrated_on_its_own_validation_patients():
    y, proba = drawn(400, 2, 3)
    frame, classes = table(y, proba, fold=np.repeat([0, 1], 200))
    slopes = {"0": 0.5, "1": 2.0}
    parts = []
    for rotation, slope in slopes.items():
        own, chosen_on = drawn(3000, 2, int(rotation), slope=slope)
        parts.append(table(own, chosen_on, rotation=rotation)[0])
    made = calibration.calibrated(frame, pd.concat(parts, ignore_index=True), classes)
    odds = special.logit(made["prob_c1"]) / special.logit(frame["prob_c1"])
    assert odds[:200].to_numpy() == pytest.approx(0.5, abs=0.05)
    assert odds[200:].to_numpy() == pytest.approx(2.0, abs=0.15)
    with pytest.raises(ValueError, match="no predictions of validation patients: run it again"):
        calibration.calibrated(frame, pd.DataFrame(), classes)


def test_slope_and_intercept_are_those_of_statsmodels_with_errors_by_patient():
    y, proba = drawn(300, 2, 4, slope=0.7, offset=0.5)
    patients = [f"p{i // 3}" for i in range(300)]
    frame, classes = table(y, proba, patients)
    found = calibration.coefficients([frame, frame], classes).set_index("metric")
    odds = special.logit(proba[:, 1])
    by = {"cov_type": "cluster", "cov_kwds": {"groups": np.arange(300) // 3}}
    by["cov_kwds"]["use_correction"] = False
    slope = sm.Logit(y, sm.add_constant(odds)).fit(disp=0, **by)
    large = sm.GLM(y, np.ones((300, 1)), family=sm.families.Binomial(), offset=odds).fit(**by)
    for name, value, error in (
        ("slope", slope.params[1], slope.bse[1]),
        ("intercept", large.params[0], large.bse[0]),
    ):
        half = 1.959964 * error * np.sqrt(100 / 99)
        row = found.loc[name]
        assert row["value"] == pytest.approx(value, abs=1e-6)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((value - half, value + half), 1e-5)
    assert (found["class"] == "c1").all()


def test_of_more_classes_each_has_its_slope_and_the_mean_stands_last():
    y, proba = drawn(500, 3, 5)
    frame, classes = table(y, proba)
    found = calibration.coefficients([frame], classes)
    slopes = found[found["metric"] == "slope"].set_index("class")["value"]
    for c, name in enumerate(classes):
        model = sm.Logit((y == c).astype(int), sm.add_constant(special.logit(proba[:, c])))
        assert slopes[name] == pytest.approx(model.fit(disp=0).params[1], abs=1e-6)
    assert slopes[""] == pytest.approx(slopes[classes].mean()) and slopes.index[-1] == ""


@pytest.mark.parametrize(
    "proba", [[0.1, 0.2, 0.8, 0.9], [0.8, 0.9, 0.1, 0.2], [0.3, 0.5, 0.5, 0.6]]
)
def test_classes_that_probabilities_separate_have_no_slope(proba):
    high = np.array(proba)
    frame, classes = table(np.array([0, 0, 1, 1]), np.stack([1 - high, high], axis=1))
    assert calibration.coefficients([frame], classes)["value"].isna().all()


def test_intervals_of_the_slope_cover_the_truth():
    held = []
    for seed in range(300):
        y, proba = drawn(400, 2, 1000 + seed, slope=0.8)
        row = calibration.coefficients([table(y, proba)[0]], ["c0", "c1"]).set_index("metric")
        held.append(row.loc["slope", "ci_low"] <= 0.8 <= row.loc["slope", "ci_high"])
    assert 0.925 < np.mean(held) < 0.975


def test_metrics_stand_raw_and_calibrated_beside_each_other():
    y, proba = drawn(600, 2, 6, slope=0.4)
    own, chosen_on = drawn(600, 2, 7, slope=0.4)
    frame, classes = table(y, proba)
    validation, _ = table(own, chosen_on, rotation="0")
    arm = made_arms.arm(frames=[frame])._replace(classes=classes, validated=[validation])
    beside = calibration.beside_raw(arm, 200)
    assert beside["probabilities"].unique().tolist() == ["raw", *calibration.METHODS]
    values = beside.set_index(["probabilities", "metric"])["value"]
    after = calibration.fitted(own, chosen_on)(proba)
    for kind, p in (("raw", proba), ("temperature", after)):
        assert values[kind, "log_loss"] == pytest.approx(sk.log_loss(y, p[:, 1]))
        assert values[kind, "accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)))
    assert values["raw", "slope"] < 0.5 and values["temperature", "slope"] == pytest.approx(
        1, abs=0.2
    )
    assert values["temperature", "ece"] < values["raw", "ece"]
    own = beside["metric"] != "ece"
    assert (beside[own]["ci_low"] < beside[own]["value"]).all() and beside[~own][
        "ci_low"
    ].isna().all()
