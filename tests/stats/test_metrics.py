"""medlib.stats.metrics: the same numbers as scikit-learn."""

import warnings

import numpy as np
import pytest
from scored import by_sklearn, case
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from medlib.core.metrics import auroc
from medlib.stats import metrics


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
        computed = metrics.compute(y, proba, None if weights is None else weights[None])
        assert list(computed) == list(metrics.applicable(k))
        assert set(computed) == set(by_sklearn(y, proba))
        for name, expected in by_sklearn(y, proba, weights).items():
            assert computed[name].shape == (1,)
            assert computed[name][0] == pytest.approx(expected, rel=0, abs=1e-12), name


def test_metrics_are_those_worked_out_by_hand():
    # Two classes; scores of class 1: negatives .1 .4 .4, positives .4 .8.
    y = np.array([0, 0, 0, 1, 1])
    score = np.array([0.1, 0.4, 0.4, 0.4, 0.8])
    computed = metrics.compute(y, np.stack([1 - score, score], axis=1))
    assert computed["accuracy"][0] == pytest.approx(4 / 5)
    assert computed["balanced_accuracy"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert computed["precision_weighted"][0] == pytest.approx(3 / 5 * 3 / 4 + 2 / 5 * 1)
    assert computed["recall_weighted"][0] == pytest.approx(4 / 5)
    assert computed["f1_weighted"][0] == pytest.approx(3 / 5 * 6 / 7 + 2 / 5 * 2 / 3)
    # Of 6 pairs, 4 are in order and 2 are tied.
    assert computed["auroc"][0] == pytest.approx(5 / 6)
    # One half of the positives has precision 1, the other half 2/4.
    assert computed["auprc"][0] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


def test_kappa_of_ordered_grades_counts_how_far_apart_they_are():
    for seed in range(3):
        y, proba = case(4, n=60, seed=seed)
        weights = np.random.default_rng(seed).integers(0, 4, (5, 60))
        computed = metrics.compute(y, proba, weights, names=["kappa_quadratic", "kappa"])
        for row, weight in enumerate(weights):
            for name, kind in (("kappa_quadratic", "quadratic"), ("kappa", None)):
                expected = sk.cohen_kappa_score(
                    y, proba.argmax(1), labels=range(4), weights=kind, sample_weight=weight
                )
                assert computed[name][row] == pytest.approx(expected, rel=0, abs=1e-12)
    # Both raters always say 0: chance alone gives full agreement, and kappa is undefined.
    alone = metrics.compute(np.zeros(3, int), np.tile([0.9, 0.1], (3, 1)), names=["kappa"])
    assert np.isnan(alone["kappa"][0])


def test_sensitivity_and_losses_are_those_worked_out_by_hand():
    # 20 negatives with one above .5: 95 % specificity is reached at thresholds above .4.
    score = np.array([0.1] * 19 + [0.6] + [0.9, 0.7, 0.5, 0.05])
    y = np.array([0] * 20 + [1] * 4)
    proba = np.stack([1 - score, score], axis=1)
    asked = ["sensitivity_at_95_specificity", "log_loss", "brier", "ece"]
    computed = {name: values[0] for name, values in metrics.compute(y, proba, names=asked).items()}
    assert computed["sensitivity_at_95_specificity"] == 3 / 4
    lost = 19 * np.log(0.9) + np.log(0.4) + np.log([0.9, 0.7, 0.5, 0.05]).sum()
    assert computed["log_loss"] == pytest.approx(-lost / 24)
    squares = 19 * 0.1**2 + 0.6**2 + 0.1**2 + 0.3**2 + 0.5**2 + 0.95**2
    assert computed["brier"] == pytest.approx(squares / 24)
    # Bins by confidence: .5 (wrong: a tie goes to the first class), .6 (wrong), .7 (right; 10/15
    # separates it from .6), .9 (twenty times, right) and .95 (wrong).
    gaps = [0.5, 0.6, 0.3, 20 * 0.1, 0.95]
    assert computed["ece"] == pytest.approx(sum(gaps) / 24)


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
    computed = metrics.compute(y, proba, weights[None])
    for name, expected in by_sklearn(y[draw], proba[draw]).items():
        assert computed[name][0] == pytest.approx(expected, rel=0, abs=1e-12), name


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
        area = auroc(y, proba)
        assert isinstance(area, float)
        assert area == pytest.approx(expected, rel=0, abs=1e-12)


def test_areas_are_undefined_when_a_class_is_absent_and_the_other_metrics_are_not():
    y, proba = case(4, n=40, seed=0)
    weights = (y != 2).astype(float)
    computed = metrics.compute(y, proba, weights[None])
    assert np.isnan(computed["auroc"][0]) and np.isnan(computed["auprc"][0])
    assert np.isnan(auroc(y[y != 2], proba[y != 2]))
    with warnings.catch_warnings():
        # scikit-learn warns about the missing class, and computes the metrics that do not need it.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.simplefilter("ignore", UserWarning)
        expected = by_sklearn(y[y != 2], proba[y != 2])
    for name in set(metrics.CONFUSION) - {"kappa_quadratic"}:
        assert computed[name][0] == pytest.approx(expected[name], rel=0, abs=1e-12), name


def test_scores_that_are_all_equal_order_no_pair_and_have_the_precision_of_the_prevalence():
    y, proba = np.array([0, 1, 0, 0, 1]), np.full((5, 2), 0.5)
    computed = metrics.compute(y, proba)
    assert computed["auroc"][0] == auroc(y, proba) == 0.5
    assert computed["auprc"][0] == 2 / 5


@pytest.mark.parametrize("k", [2, 4])
def test_many_predictions_at_once_have_each_the_auroc_of_scikit_learn(k):
    cases = [case(k, n=40, seed=seed) for seed in range(6)]
    y = cases[0][0]
    proba = np.stack([scores for _, scores in cases])
    proba[1] = np.eye(k)[y]  # perfect
    proba[2] = 1 / k  # nothing but ties
    proba[3, 7, 1] = np.nan
    area = auroc(y, proba.reshape(2, 3, 40, k))
    assert area.shape == (2, 3)
    assert area.ravel()[1] == 1 and area.ravel()[2] == 0.5 and np.isnan(area.ravel()[3])
    for i in (0, 4, 5):
        expected = by_sklearn(y, proba[i])["auroc"]
        assert area.ravel()[i] == pytest.approx(expected, rel=0, abs=1e-12)
    assert np.isnan(auroc(np.where(y == 1, 0, y), proba[[0, 4]])).all()


def test_only_the_metrics_that_are_asked_for_are_computed_and_others_are_refused():
    y, proba = case(3, n=50, seed=2)
    every = metrics.compute(y, proba)
    for asked in (["auprc", "accuracy"], ["auroc"], ["f1_weighted"]):
        computed = metrics.compute(y, proba, names=asked)
        assert list(computed) == asked
        assert all(computed[name] == every[name] for name in asked)
    with pytest.raises(ValueError, match="'aurok'.*auroc"):
        metrics.compute(y, proba, names=["aurok"])


@pytest.mark.parametrize("only", [0, 1])
def test_auroc_of_two_classes_is_undefined_when_one_is_absent(only):
    proba = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    y = np.full(3, only)
    assert np.isnan(auroc(y, proba))
    assert np.isnan(metrics.compute(y, proba)["auroc"][0])


@pytest.mark.parametrize("absent", [0, 1])
def test_metrics_of_ranks_are_undefined_in_a_draw_that_lacks_one_of_two_classes(absent):
    y, proba = case(2, n=20, seed=3)
    weights = np.stack([y != absent, np.ones(20)]).astype(int)
    computed = metrics.compute(y, proba, weights, names=metrics.RANKS)
    for name in metrics.RANKS:
        assert np.isnan(computed[name][0]) and np.isfinite(computed[name][1]), name


def test_a_draw_of_nobody_has_no_metric_and_no_warning():
    y, proba = case(3, n=20, seed=3)
    weights = np.stack([np.zeros(20), np.ones(20)]).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        computed = metrics.compute(y, proba, weights)
    for name, values in computed.items():
        assert np.isnan(values[0]) and np.isfinite(values[1]), name


@pytest.mark.parametrize("k", [2, 3])
def test_probabilities_that_are_not_finite_never_give_an_auroc(k):
    # A network that has diverged predicts NaN. If NaN were ranked by the order of the rows, the
    # ranking here would be perfect, and the network would be chosen.
    y = np.sort(np.arange(12) % k)[::-1].copy()
    proba = np.full((12, k), np.nan)
    computed = [auroc(y, proba), metrics.compute(y, proba)["auroc"][0]]
    assert np.isnan(computed).all()
