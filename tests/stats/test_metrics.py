"""medlib.stats.metrics: scikit-learn's numbers, and a bootstrap that draws patients."""

import itertools
import sys
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from medlib.core.metrics import auroc
from medlib.stats import bootstrap, metrics, prediction


def names(k):
    return [f"class {c}" for c in range(k)]


def case(k, n, seed, never_predicted=None):
    """Labels of every class, and probabilities with many ties among them."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    proba = rng.dirichlet(np.ones(k), size=n) * 0.7 + 0.3 * np.eye(k)[y]
    proba = np.round(proba, 1)
    if never_predicted is not None:
        proba[:, never_predicted] *= 0.01
        proba[:, never_predicted - 1] += 0.02
    return y, proba / proba.sum(1, keepdims=True)


def by_sklearn(y, proba, weights=None):
    """Every metric by scikit-learn's own function, areas class by class; one it does not have."""
    k = proba.shape[1]
    predicted = proba.argmax(1)
    weighted = dict(sample_weight=weights)
    average = dict(average="weighted", zero_division=0) | weighted
    macro = average | {"average": "macro"}
    ranked = [1] if k == 2 else range(k)
    found = {
        "accuracy": sk.accuracy_score(y, predicted, **weighted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted, **weighted),
        "precision_weighted": sk.precision_score(y, predicted, **average),
        "recall_weighted": sk.recall_score(y, predicted, **average),
        "f1_weighted": sk.f1_score(y, predicted, **average),
        "precision_macro": sk.precision_score(y, predicted, **macro),
        "recall_macro": sk.recall_score(y, predicted, **macro),
        "f1_macro": sk.f1_score(y, predicted, **macro),
        "kappa": sk.cohen_kappa_score(y, predicted, labels=range(k), **weighted),
        "auroc": np.mean([sk.roc_auc_score(y == c, proba[:, c], **weighted) for c in ranked]),
        "auprc": np.mean(
            [sk.average_precision_score(y == c, proba[:, c], **weighted) for c in ranked]
        ),
        "log_loss": sk.log_loss(y, proba, labels=range(k), **weighted),
        "ece": calibration_error(y, proba, np.ones(len(y)) if weights is None else weights),
    }
    if k == 2:
        curve = sk.roc_curve(y, proba[:, 1], drop_intermediate=False, **weighted)
        found["sensitivity_at_95_specificity"] = curve[1][curve[0] <= 0.05].max()
        found["brier"] = sk.brier_score_loss(y, proba[:, 1], pos_label=1, **weighted)
    else:
        found["brier"] = sk.brier_score_loss(y, proba, labels=range(k), **weighted)
    return found


def calibration_error(y, proba, weights):
    """Bin by bin, as Guo et al. write it: bin m holds the confidences in ((m - 1)/15, m/15]."""
    total, confidence, right = 0.0, proba.max(1), proba.argmax(1) == y
    for m in range(1, 16):
        low = -1 if m == 1 else (m - 1) / 15
        members = (confidence > low) & (confidence <= m / 15)
        if weights[members].sum():
            gap = np.average(right[members], weights=weights[members]) - np.average(
                confidence[members], weights=weights[members]
            )
            total += abs(gap) * weights[members].sum() / weights.sum()
    return total


def frame(y, proba, patients=None):
    """A predictions frame as a run writes it: one row a sample."""
    ids = [f"s{i:03d}" for i in range(len(y))]
    classes = names(proba.shape[1])
    rows = pd.DataFrame({"sample_id": ids, "patient_id": ids if patients is None else patients})
    rows["split"], rows["y_true"] = "test", [classes[label] for label in y]
    rows[[f"prob_{name}" for name in classes]] = proba
    return rows


def clustered(n_patients, per_patient, seed=0):
    """A frame in which all images of a patient are copies of one image."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n_patients) % 2)
    positive = np.clip(0.5 + 0.15 * (2 * label - 1) + rng.normal(0, 0.2, n_patients), 0.01, 0.99)
    owner = np.repeat(np.arange(n_patients), per_patient)
    proba = np.stack([1 - positive, positive], axis=1)[owner]
    return frame(label[owner], proba, [f"p{i:03d}" for i in owner])


def mixed(n_patients, k, seed=0):
    """Patients with one to four images, right in some of them and wrong in others; with ties."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    # A patient's images are alike, so that drawing images one by one would be another thing.
    y = (rng.permutation(np.arange(n_patients) % k))[owner]
    own = rng.dirichlet(np.ones(k), n_patients)[owner]
    proba = 0.4 * own + 0.3 * rng.dirichlet(np.ones(k), len(owner)) + 0.3 * np.eye(k)[y]
    proba = np.round(proba, 2)
    order = rng.permutation(len(owner))
    patients = np.array([f"p{i:03d}" for i in owner])
    return y[order], (proba / proba.sum(1, keepdims=True))[order], patients[order]


# ------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("never_predicted", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [2, 7])
def test_every_metric_is_that_of_scikit_learn(k, weighted, never_predicted):
    for seed in range(5):
        y, proba = case(k, n=90, seed=seed, never_predicted=never_predicted)
        assert len(np.unique(proba[:, 0])) < len(y), "the case has no ties"
        predicted = set(proba.argmax(1))
        assert predicted == set(range(k)) - {never_predicted}
        weights = np.random.default_rng(seed + 100).integers(1, 5, len(y)) if weighted else None
        found = metrics.compute(y, proba, None if weights is None else weights[None])
        assert list(found) == list(metrics.applicable(k))
        assert set(found) == set(by_sklearn(y, proba))
        for name, expected in by_sklearn(y, proba, weights).items():
            assert found[name].shape == (1,)
            assert found[name][0] == pytest.approx(expected, rel=0, abs=1e-12), name


def test_metrics_are_those_worked_out_by_hand():
    # Two classes; scores of class 1: negatives .1 .4 .4, positives .4 .8.
    y = np.array([0, 0, 0, 1, 1])
    score = np.array([0.1, 0.4, 0.4, 0.4, 0.8])
    found = metrics.compute(y, np.stack([1 - score, score], axis=1))
    assert found["accuracy"][0] == pytest.approx(4 / 5)
    assert found["balanced_accuracy"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert found["precision_weighted"][0] == pytest.approx(3 / 5 * 3 / 4 + 2 / 5 * 1)
    assert found["recall_weighted"][0] == pytest.approx(4 / 5)
    assert found["f1_weighted"][0] == pytest.approx(3 / 5 * 6 / 7 + 2 / 5 * 2 / 3)
    # Of 6 pairs, 4 are in order and 2 are tied.
    assert found["auroc"][0] == pytest.approx(5 / 6)
    # Half of the positives at precision 1, the other half at precision 2/4.
    assert found["auprc"][0] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


def test_kappa_of_ordered_grades_counts_how_far_apart_they_are():
    for seed in range(3):
        y, proba = case(4, n=60, seed=seed)
        weights = np.random.default_rng(seed).integers(0, 4, (5, 60))
        found = metrics.compute(y, proba, weights, names=["kappa_quadratic", "kappa"])
        for row, weight in enumerate(weights):
            for name, kind in (("kappa_quadratic", "quadratic"), ("kappa", None)):
                expected = sk.cohen_kappa_score(
                    y, proba.argmax(1), labels=range(4), weights=kind, sample_weight=weight
                )
                assert found[name][row] == pytest.approx(expected, rel=0, abs=1e-12)
    # Both raters say 0 throughout: agreement by chance is complete, and kappa undefined.
    alone = metrics.compute(np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)), names=["kappa"])
    assert np.isnan(alone["kappa"][0])


def test_sensitivity_and_losses_are_those_worked_out_by_hand():
    # 20 negatives with one above .5: 95 % specificity is reached at thresholds above .4.
    score = np.array([0.1] * 19 + [0.6] + [0.9, 0.7, 0.5, 0.05])
    y = np.array([0] * 20 + [1] * 4)
    proba = np.stack([1 - score, score], axis=1)
    asked = ["sensitivity_at_95_specificity", "log_loss", "brier", "ece"]
    found = {name: values[0] for name, values in metrics.compute(y, proba, names=asked).items()}
    assert found["sensitivity_at_95_specificity"] == 3 / 4
    lost = 19 * np.log(0.9) + np.log(0.4) + np.log([0.9, 0.7, 0.5, 0.05]).sum()
    assert found["log_loss"] == pytest.approx(-lost / 24)
    squares = 19 * 0.1**2 + 0.6**2 + 0.1**2 + 0.3**2 + 0.5**2 + 0.95**2
    assert found["brier"] == pytest.approx(squares / 24)
    # Bins by confidence: .5 (wrong: of two equals the first class); .6 (wrong) and .7 (right) are
    # apart at 10/15; .9 twenty times, right; .95 wrong.
    gaps = [0.5, 0.6, 0.3, 20 * 0.1, 0.95]
    assert found["ece"] == pytest.approx(sum(gaps) / 24)


def test_a_task_has_the_metrics_that_its_classes_allow():
    assert "sensitivity_at_95_specificity" in metrics.applicable(2)
    assert "sensitivity_at_95_specificity" not in metrics.applicable(3, ordered=True)
    assert "kappa_quadratic" in metrics.applicable(3, ordered=True)
    for plain in ((2, True), (2, False), (3, False)):
        assert "kappa_quadratic" not in metrics.applicable(*plain)
    y, proba = case(3, n=30, seed=0)
    with pytest.raises(ValueError, match="two classes, not for 3"):
        metrics.compute(y, proba, names=["sensitivity_at_95_specificity"])


@pytest.mark.parametrize("k", [2, 7])
def test_weights_of_zero_leave_samples_out_and_others_repeat_them(k):
    y, proba = case(k, n=70, seed=3)
    draw = np.random.default_rng(1).integers(len(y), size=3 * len(y))
    weights = np.bincount(draw, minlength=len(y))
    assert (weights == 0).any()
    found = metrics.compute(y, proba, weights[None])
    for name, expected in by_sklearn(y[draw], proba[draw]).items():
        assert found[name][0] == pytest.approx(expected, rel=0, abs=1e-12), name


def test_each_row_of_weights_gives_its_own_value():
    y, proba = case(3, n=30, seed=4)
    weights = np.random.default_rng(2).integers(1, 4, size=(6, 30))
    together = metrics.compute(y, proba, weights)
    for row, weight in enumerate(weights):
        for name, expected in by_sklearn(y, proba, weight).items():
            assert together[name][row] == pytest.approx(expected, rel=0, abs=1e-12), name


@pytest.mark.parametrize("k", [2, 7])
def test_the_auroc_by_which_settings_are_chosen_is_that_of_scikit_learn(k):
    for seed in range(5):
        y, proba = case(k, n=60, seed=seed)
        if k == 2:
            expected = sk.roc_auc_score(y, proba[:, 1])
        else:
            expected = sk.roc_auc_score(y, proba, multi_class="ovr", average="macro")
        found = auroc(y, proba)
        assert isinstance(found, float)
        assert found == pytest.approx(expected, rel=0, abs=1e-12)


def test_areas_are_undefined_when_a_class_is_absent_and_the_other_metrics_are_not():
    y, proba = case(4, n=40, seed=0)
    weights = (y != 2).astype(float)
    found = metrics.compute(y, proba, weights[None])
    assert np.isnan(found["auroc"][0]) and np.isnan(found["auprc"][0])
    assert np.isnan(auroc(y[y != 2], proba[y != 2]))
    with warnings.catch_warnings():
        # scikit-learn warns of the missing class, and gives the metrics that do not need it.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.simplefilter("ignore", UserWarning)
        expected = by_sklearn(y[y != 2], proba[y != 2])
    for name in set(metrics.CONFUSION) - {"kappa_quadratic"}:
        assert found[name][0] == pytest.approx(expected[name], rel=0, abs=1e-12), name


def test_scores_that_are_all_equal_order_no_pair_and_have_the_precision_of_the_prevalence():
    y, proba = np.array([0, 1, 0, 0, 1]), np.full((5, 2), 0.5)
    found = metrics.compute(y, proba)
    assert found["auroc"][0] == auroc(y, proba) == 0.5
    assert found["auprc"][0] == 2 / 5


@pytest.mark.parametrize("k", [2, 4])
def test_many_predictions_at_once_have_each_the_auroc_of_scikit_learn(k):
    cases = [case(k, n=40, seed=seed) for seed in range(6)]
    y = cases[0][0]
    proba = np.stack([scores for _, scores in cases])
    proba[1] = np.eye(k)[y]  # perfect
    proba[2] = 1 / k  # nothing but ties
    proba[3, 7, 1] = np.nan
    found = auroc(y, proba.reshape(2, 3, 40, k))
    assert found.shape == (2, 3)
    assert found.ravel()[1] == 1 and found.ravel()[2] == 0.5 and np.isnan(found.ravel()[3])
    for i in (0, 4, 5):
        expected = by_sklearn(y, proba[i])["auroc"]
        assert found.ravel()[i] == pytest.approx(expected, rel=0, abs=1e-12)
    assert np.isnan(auroc(np.where(y == 1, 0, y), proba[[0, 4]])).all()


def test_only_the_metrics_that_are_asked_for_are_computed_and_others_are_refused():
    y, proba = case(3, n=50, seed=2)
    every, rows = metrics.compute(y, proba), frame(y, proba)
    for asked in (["auprc", "accuracy"], ["auroc"], ["f1_weighted"]):
        found = metrics.compute(y, proba, names=asked)
        assert list(found) == asked
        assert all(found[name] == every[name] for name in asked)
        assert list(bootstrap.bootstrap(rows, names(3), 5, names=asked)) == asked
        assert list(bootstrap.bootstrap(rows, names(3), 5, names=asked, paired=False)) == asked
    for refuse in (
        lambda: metrics.compute(y, proba, names=["aurok"]),
        lambda: bootstrap.bootstrap(rows, names(3), 5, names=["aurok"], paired=False),
    ):
        with pytest.raises(ValueError, match="'aurok'.*auroc"):
            refuse()


@pytest.mark.parametrize("only", [0, 1])
def test_auroc_of_two_classes_is_undefined_when_one_is_absent(only):
    proba = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    y = np.full(3, only)
    assert np.isnan(auroc(y, proba))
    assert np.isnan(metrics.compute(y, proba)["auroc"][0])


@pytest.mark.parametrize("k", [2, 3])
def test_probabilities_that_are_not_finite_never_give_an_auroc(k):
    # A network that has diverged predicts NaN. In the order of the rows these labels would be
    # ranked perfectly: such a network would be chosen.
    y = np.sort(np.arange(12) % k)[::-1].copy()
    proba = np.full((12, k), np.nan)
    try:
        found = [auroc(y, proba), metrics.compute(y, proba)["auroc"][0]]
    except ValueError as error:
        assert "finite" in str(error)  # to refuse is as good
    else:
        assert np.isnan(found).all()


def test_point_reads_labels_by_name_and_classes_in_the_order_of_the_task():
    y, proba = case(3, n=45, seed=6)
    rows = frame(y, proba)
    found = prediction.point(rows[rows.columns[::-1]], names(3))  # column order does not matter
    assert found == pytest.approx(by_sklearn(y, proba), rel=0, abs=1e-12)
    assert all(isinstance(value, float) for value in found.values())


def test_a_label_that_is_no_class_is_refused():
    # Grades read without dtype=str are numbers; they must not all be counted as the last class.
    rows = frame(np.array([0, 1, 0, 1]), np.full((4, 2), 0.5)).assign(y_true=[0, 1, 0, 1])
    rows = rows.rename(columns={"prob_class 0": "prob_0", "prob_class 1": "prob_1"})
    with pytest.raises(ValueError, match="y_true|label|class"):
        prediction.point(rows, ["0", "1"])


# ------------------------------------------------------------------------------------- frames


def test_a_prediction_is_the_mean_over_the_slices_of_a_sample_in_the_order_of_the_index():
    index = pd.DataFrame(
        {
            "sample_id": ["b", "b", "a", "c", "c", "c"],
            "patient_id": ["p2", "p2", "p9", "p1", "p1", "p1"],
            "label": ["yes", "yes", "no", "no", "no", "no"],
            "fold": [4, 4, 0, 2, 2, 2],
            "slice": [7, 8, 0, 5, 6, 7],
        },
        index=[10, 11, 3, 8, 0, 1],  # any row labels
    )
    yes = np.array([0.5, 1.0, 0.25, 0.0, 0.25, 0.5])
    found = prediction.prediction_frame(index, np.stack([1 - yes, yes], axis=1), ["no", "yes"])
    expected = pd.DataFrame(
        {
            "sample_id": ["b", "a", "c"],
            "patient_id": ["p2", "p9", "p1"],
            "fold": [4, 0, 2],
            "y_true": ["yes", "no", "no"],
            "prob_no": [0.25, 0.75, 0.75],
            "prob_yes": [0.75, 0.25, 0.25],
        }
    )
    pd.testing.assert_frame_equal(found, expected)


def test_a_prediction_keeps_the_side_of_its_sample():
    index = pd.DataFrame(
        {
            "sample_id": ["b", "a"],
            "patient_id": ["p", "q"],
            "label": ["no", "yes"],
            "split": ["test", "val"],
        }
    )
    proba = np.array([[0.1, 0.9], [0.6, 0.4]])
    found = prediction.prediction_frame(index, proba, ["no", "yes"])
    assert list(found.columns) == [
        "sample_id", "patient_id", "split", "y_true", "prob_no", "prob_yes",
    ]  # fmt: skip
    assert found["split"].tolist() == ["test", "val"]
    assert found["y_true"].tolist() == ["no", "yes"]
    np.testing.assert_array_equal(found[["prob_no", "prob_yes"]], proba)
    assert list(index.columns) == ["sample_id", "patient_id", "label", "split"], "index changed"


# ---------------------------------------------------------------------------------- bootstrap


def test_the_interval_of_independent_samples_is_that_of_scipy():
    y, proba = case(2, n=120, seed=8)
    proba = 0.5 * proba + 0.5 * case(2, n=120, seed=9)[1]  # less than perfect
    values = bootstrap.bootstrap(frame(y, proba), names(2), resamples=4000, seed=1)

    def accuracy(true, score, axis=-1):
        return np.mean((score > 0.5) == true, axis=axis)

    def area(true, score, axis=-1):
        # The share of pairs in order, ties counting half.
        over = np.sign(score[..., :, None] - score[..., None, :]) / 2 + 0.5
        pairs = true[..., :, None] * (1 - true[..., None, :])
        return (over * pairs).sum((-2, -1)) / pairs.sum((-2, -1))

    for name, statistic in (("accuracy", accuracy), ("auroc", area)):
        expected = scipy.stats.bootstrap(
            (y, proba[:, 1]), statistic, paired=True, vectorized=True, n_resamples=4000,
            batch=200, method="percentile", rng=np.random.default_rng(2),
        )  # fmt: skip
        low, high = bootstrap.interval(values[name])
        # The Monte-Carlo error of a 2.5 % quantile of 4000 normal draws is 0.042 sd, of the
        # difference of two 0.06 sd; values of accuracy are steps of 1/120.
        tolerance = 4 * 0.06 * expected.standard_error + (name == "accuracy") / 120
        assert low == pytest.approx(expected.confidence_interval.low, rel=0, abs=tolerance)
        assert high == pytest.approx(expected.confidence_interval.high, rel=0, abs=tolerance)
        assert values[name].std(ddof=1) == pytest.approx(expected.standard_error, rel=0.08)


def test_the_patient_bootstrap_is_that_of_drawing_patients_and_joining_their_rows():
    y, proba = case(3, n=23, seed=11)
    # Patients have one to five images, and their rows stand apart.
    patients = np.array([f"p{i}" for i in [3, 0, 4, 4, 1, 2, 2, 2, 5, 6, 6, 6, 6, 6, 0, 1, 3, 5,
                                           0, 4, 2, 1, 3]])  # fmt: skip
    found = bootstrap.bootstrap(frame(y, proba, patients), names(3), resamples=40, seed=5)
    unique = sorted(set(patients))
    draws = np.random.default_rng(5).integers(len(unique), size=(40, len(unique)))
    compared = 0
    for b, draw in enumerate(draws):
        rows = np.concatenate([np.flatnonzero(patients == unique[p]) for p in draw])
        if len(set(y[rows])) < 3:
            assert np.isnan(found["auroc"][b])
            continue
        compared += 1
        for name, expected in by_sklearn(y[rows], proba[rows]).items():
            assert found[name][b] == pytest.approx(expected, rel=0, abs=1e-12), name
    assert compared > 30
    assert set(found) == set(metrics.applicable(3))


@pytest.mark.parametrize("k", [2, 5])
def test_areas_of_resamples_are_those_of_scikit_learn_with_the_drawn_counts_as_weights(k):
    y, proba, patients = mixed(18, k, seed=1)
    found = bootstrap.bootstrap(frame(y, proba, patients), names(k), resamples=60, seed=7)
    unique, owner = np.unique(patients, return_inverse=True)
    draws = np.random.default_rng(7).integers(len(unique), size=(60, len(unique)))
    missing = 0
    for b, draw in enumerate(draws):
        weights = np.bincount(draw, minlength=len(unique))[owner]
        if len(set(y[weights > 0])) < k:
            missing += 1
            assert np.isnan(found["auroc"][b])
            continue
        expected = by_sklearn(y, proba, weights)
        for name in set(metrics.RANKS) & set(expected):
            assert found[name][b] == pytest.approx(expected[name], rel=0, abs=1e-12), name
    assert missing < 30 and (k == 2 or missing)


def test_confusion_matrices_of_single_images_are_multinomial():
    # Four images, one in each cell but the last: every matrix that can be drawn, and how often.
    y, proba = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    rng = np.random.default_rng(0)
    drawn = bootstrap._draw_confusion(y, proba, np.arange(4), 20_000, rng, 2)
    outcomes = [c for c in itertools.product(range(5), repeat=3) if sum(c) == 4]
    observed = [(drawn.reshape(-1, 4)[:, :3] == outcome).all(1).sum() for outcome in outcomes]
    expected = scipy.stats.multinomial(4, [1 / 4, 1 / 4, 1 / 2]).pmf(outcomes) * 20_000
    assert sum(observed) == 20_000
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_accuracy_of_single_images_is_binomial_when_draws_need_not_be_paired():
    y, proba = case(7, n=60, seed=5)
    proba = 0.4 * proba + 0.6 * case(7, n=60, seed=9)[1]  # less than perfect
    right = int((proba.argmax(1) == y).sum())
    found = bootstrap.bootstrap(frame(y, proba), names(7), 20_000, seed=3, paired=False)["accuracy"]
    hits = np.round(found * 60).astype(int)
    np.testing.assert_allclose(found, hits / 60, rtol=0, atol=1e-12)
    exact = scipy.stats.binom(60, right / 60)
    low, high = exact.ppf([0.005, 0.995]).astype(int)
    middle = np.arange(low, high + 1)  # each expected dozens of times, and so are both tails
    observed = np.bincount(np.clip(hits, low - 1, high + 1), minlength=high + 2)[low - 1 :]
    expected = 20_000 * np.array([exact.cdf(low - 1), *exact.pmf(middle), exact.sf(high)])
    assert min(expected) > 10
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("k", [2, 4])
def test_draws_that_need_not_be_paired_have_the_distribution_of_those_that_are(k):
    y, proba, patients = mixed(40, k, seed=2)
    right = pd.Series(proba.argmax(1) == y).groupby(patients)
    assert right.nunique().max() == 2, "no patient is right in one image and wrong in another"
    rows, n = frame(y, proba, patients), 20_000
    apart = bootstrap.bootstrap(rows, names(k), n, seed=1, paired=False)
    together = bootstrap.bootstrap(rows, names(k), n, seed=2)
    by_image = bootstrap.bootstrap(rows.assign(patient_id=rows["sample_id"]), names(k), n)
    assert by_image["accuracy"].std() < 0.9 * together["accuracy"].std(), "the case shows nothing"
    for name in metrics.applicable(k):
        a, b = apart[name][np.isfinite(apart[name])], together[name][np.isfinite(together[name])]
        assert abs(a.mean() - b.mean()) < 4 * b.std() * np.sqrt(2 / n), name
        assert a.std() == pytest.approx(b.std(), rel=4 / np.sqrt(n)), name
        # The error of a quantile's rank is that of a share: sqrt(q (1 - q) / n), for both.
        for q in (0.025, 0.5, 0.975):
            error = 4 * np.sqrt(2 * q * (1 - q) / n)
            assert np.quantile(b, max(0, q - error)) <= np.quantile(a, q), name
            assert np.quantile(a, q) <= np.quantile(b, min(1, q + error)), name


def test_draws_that_need_not_be_paired_are_the_same_for_the_same_seed_in_any_order():
    y, proba, patients = mixed(30, 3)
    rows = frame(y, proba, patients)
    first = bootstrap.bootstrap(rows, names(3), 50, seed=4, paired=False)
    again = bootstrap.bootstrap(rows.sample(frac=1, random_state=0), names(3), 50, 4, paired=False)
    other = bootstrap.bootstrap(rows, names(3), 50, seed=5, paired=False)
    for name in first:
        np.testing.assert_allclose(first[name], again[name], rtol=0, atol=1e-12)
        assert not np.allclose(first[name], other[name], equal_nan=True), name


def test_frames_with_the_same_patients_in_another_order_get_the_same_draws():
    rows = clustered(12, 3)
    mixed = rows.sample(frac=1, random_state=0)
    assert mixed["patient_id"].tolist() != rows["patient_id"].tolist()
    first = bootstrap.bootstrap(rows, names(2), resamples=50, seed=3)
    second = bootstrap.bootstrap(mixed, names(2), resamples=50, seed=3)
    other = bootstrap.bootstrap(rows, names(2), resamples=50, seed=4)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=1e-12)
    assert not np.allclose(first["accuracy"], other["accuracy"])


def test_copies_of_an_image_do_not_narrow_the_interval_of_their_patients():
    rows = clustered(60, 8)
    by_patient = bootstrap.interval(bootstrap.bootstrap(rows, names(2), 4000)["accuracy"])
    alone = rows.assign(patient_id=rows["sample_id"])
    by_image = bootstrap.interval(bootstrap.bootstrap(alone, names(2), 4000)["accuracy"])
    single = rows.drop_duplicates("patient_id")
    by_single = bootstrap.interval(bootstrap.bootstrap(single, names(2), 4000)["accuracy"])
    # Eight copies say no more than one image; taken for eight images, they say sqrt(8) more.
    assert np.ptp(by_patient) == pytest.approx(np.ptp(by_single), rel=1e-12)
    assert np.ptp(by_patient) / np.ptp(by_image) == pytest.approx(np.sqrt(8), rel=0.15)


def test_the_size_of_a_chunk_does_not_change_a_draw(monkeypatch):
    rows = clustered(7, 3)  # an odd number: random numbers are made in pairs
    whole = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
    assert len(whole["auroc"]) == 31
    for rows_at_once in (1, 4, 30):
        monkeypatch.setattr(bootstrap, "CHUNK", rows_at_once * len(rows))
        parts = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
        for name in whole:  # matrix products of other shapes round otherwise
            tolerance = 1e-14 if name in metrics.LOSSES else 0
            np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=tolerance)
    monkeypatch.setattr(bootstrap, "CHUNK", 1)  # less than one row: still one at a time
    parts = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
    np.testing.assert_array_equal(parts["accuracy"], whole["accuracy"])


@pytest.mark.parametrize(("paired", "chunk"), [(True, 8), (False, 4000)])
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch, paired, chunk):
    monkeypatch.setattr(bootstrap, "CHUNK", chunk)  # few resamples at a time: threads overtake
    rows = frame(*mixed(50, 4))
    alone = bootstrap.bootstrap(rows, names(4), 600, seed=9, paired=paired, threads=1)
    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        several = bootstrap.bootstrap(rows, names(4), 600, seed=9, paired=paired, threads=5)
    finally:
        sys.setswitchinterval(patience)
    for name in alone:
        np.testing.assert_array_equal(several[name], alone[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_stays_below_the_stated_bound(threads):
    n, resamples = 20_000, 400
    rng = np.random.default_rng(0)
    y, score = (rng.random(n) < 0.99).astype(int), rng.random(n)  # most arrays are of positives
    rows = frame(y, np.stack([1 - score, score], axis=1))
    tracemalloc.start()
    bootstrap.bootstrap(rows, names(2), resamples=resamples, threads=threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sorted_samples = 20 * 8 * n  # scores, labels and orders: some twenty arrays (n,)
    bound = 100 * bootstrap.CHUNK * threads + sorted_samples
    assert peak < bound
    assert bound < 8 * resamples * n / 2, "all weights at once would almost fit as well"


def test_an_interval_holds_the_middle_of_the_values():
    values = np.arange(1001) / 1000
    assert bootstrap.interval(values) == pytest.approx((0.025, 0.975), abs=1e-12)
    assert bootstrap.interval(values, level=0.5) == pytest.approx((0.25, 0.75), abs=1e-12)


def test_an_interval_leaves_undefined_values_out_and_is_undefined_without_any_other():
    values = np.arange(1001) / 1000
    holes = np.concatenate([[np.nan] * 500, values, [np.nan] * 7])
    assert bootstrap.interval(holes) == pytest.approx((0.025, 0.975), abs=1e-12)
    assert np.isnan(bootstrap.interval(np.full(9, np.nan))).all()
    assert np.isnan(bootstrap.interval(np.array([]))).all()


# --------------------------------------------------------------------- other kinds of interval


def test_leaving_a_patient_out_is_leaving_out_their_rows(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 200)  # several parts
    y, proba, patients = mixed(14, 3, seed=3)
    rows = frame(y, proba, patients)
    found = bootstrap.jackknife(rows, names(3))
    for number, patient in enumerate(sorted(set(patients))):
        kept = patients != patient
        for name, expected in by_sklearn(y[kept], proba[kept]).items():
            assert found[name][number] == pytest.approx(expected, rel=0, abs=1e-12), name
    assert found["auroc"].shape == (14,)


def test_the_bca_interval_is_that_of_scipy_from_the_same_resamples():
    sample = np.random.default_rng(0).exponential(size=40) ** 2  # skewed
    expected = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(1)
    )
    values = expected.bootstrap_distribution
    left_out = (sample.sum() - sample) / (len(sample) - 1)
    low, high = bootstrap.bca_interval(values, sample.mean(), left_out)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), rel=0, abs=1e-12)
    plain = bootstrap.interval(values)
    assert low > plain[0] + 0.05 and high > plain[1] + 0.05, "the case shows no correction"
    holes = np.append(values, [np.nan] * 5), sample.mean(), np.append(left_out, np.nan)
    assert bootstrap.bca_interval(*holes) == (low, high)


def test_there_is_no_bca_interval_where_all_values_lie_on_one_side():
    assert np.isnan(bootstrap.bca_interval(np.array([0.8, 0.9]), 1.0, np.array([1.0, 1.0]))).all()
    assert np.isnan(bootstrap.bca_interval(np.array([]), 1.0, np.array([1.0]))).all()
    assert bootstrap.bca_interval(np.ones(9), 1.0, np.ones(4)) == (1.0, 1.0)  # a perfect score


def kernel(score, y):
    """ψ of DeLong et al. for every pair (positive, negative): 1, 1/2 or 0."""
    apart = score[y == 1][:, None] - score[y == 0]
    return (apart > 0) + 0.5 * (apart == 0)


def test_delong_is_the_covariance_of_structural_components():
    y, first = case(2, n=50, seed=1)
    second = 0.5 * first + 0.5 * case(2, n=50, seed=2)[1]
    scores = np.stack([first[:, 1], second[:, 1]])
    areas, covariance = bootstrap.delong(y, scores, np.arange(50))
    pairs = np.stack([kernel(score, y) for score in scores])
    ups, downs = pairs.mean(2), pairs.mean(1)
    expected = np.cov(ups) / y.sum() + np.cov(downs) / (1 - y).sum()
    assert areas == pytest.approx([sk.roc_auc_score(y, score) for score in scores], abs=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-15)
    assert covariance[0, 1] > 0


def test_delong_of_patients_with_several_images_is_obuchowskis():
    y, proba, patients = mixed(25, 2, seed=4)
    y[::5] = 1 - y[::5]  # patients with images of both classes
    score = proba[:, 1]
    (area,), ((variance,),) = bootstrap.delong(y, score[None], patients)
    pairs = kernel(score, y)
    up, down = pairs.mean(1), pairs.mean(0)
    m, n, ids = y.sum(), (1 - y).sum(), sorted(set(patients))
    ups = np.array([(up[patients[y == 1] == p] - area).sum() for p in ids])
    downs = np.array([(down[patients[y == 0] == p] - area).sum() for p in ids])
    i10, i01, i = len(set(patients[y == 1])), len(set(patients[y == 0])), len(ids)
    assert i10 + i01 > i
    s10 = i10 / ((i10 - 1) * m) * (ups**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (downs**2).sum()
    s11 = i / (i - 1) * (ups * downs).sum()
    assert variance == pytest.approx(s10 / m + s01 / n + 2 * s11 / (m * n), rel=1e-12)


def test_delong_agrees_with_the_bootstrap_over_patients():
    rng = np.random.default_rng(0)
    label, patients = np.arange(300) % 2, np.repeat(np.arange(300), rng.integers(1, 5, 300))
    y = label[patients]
    score = (0.8 * label + rng.normal(size=300))[patients] + 0.3 * rng.normal(size=len(y))
    score = scipy.special.expit(score)
    proba = np.stack([1 - score, score], axis=1)
    areas, covariance = bootstrap.delong(y, proba[None, :, 1], patients)
    draws = bootstrap.bootstrap(frame(y, proba, patients), names(2), 4000, names=["auroc"])
    assert np.sqrt(covariance[0, 0]) == pytest.approx(draws["auroc"].std(), rel=0.05)
    by_image = bootstrap.delong(y, proba[None, :, 1], np.arange(len(y)))[1]
    assert by_image[0, 0] < 0.6 * covariance[0, 0], "the case shows no clustering"


@pytest.mark.parametrize("y", [[1, 1, 1, 1], [0, 1, 1, 1]])
def test_delong_is_undefined_without_two_patients_of_each_class(y):
    found = bootstrap.delong(np.array(y), np.random.default_rng(0).random((2, 4)), np.arange(4))
    assert np.isnan(found[0]).all() and np.isnan(found[1]).all()


def test_intervals_over_patients_cover_the_truth_and_those_over_images_do_not():
    """Patients with one to six images, alike by their own effect; the true AUROC is known."""
    n, effect, noise, shift, repeats = 160, 1.0, 0.5, 1.2, 600
    truth = scipy.stats.norm.cdf(shift / np.sqrt(2 * (effect**2 + noise**2)))
    rng, covered = np.random.default_rng(5), {"patient": 0, "image": 0}
    for _ in range(repeats):
        label = np.arange(n) % 2
        owner = np.repeat(np.arange(n), rng.integers(1, 7, n))
        own = shift * label + effect * rng.normal(size=n)
        score = scipy.special.expit(own[owner] + noise * rng.normal(size=len(owner)))
        proba = np.stack([1 - score, score], axis=1)
        for kind, patients in (("patient", owner), ("image", np.arange(len(owner)))):
            rows = frame(label[owner], proba, patients)
            draws = bootstrap.bootstrap(rows, names(2), 400, names=["auroc"], threads=1)
            low, high = bootstrap.interval(draws["auroc"])
            covered[kind] += low <= truth <= high
    assert 0.93 <= covered["patient"] / repeats <= 0.97, covered
    assert covered["image"] / repeats < 0.85, covered
