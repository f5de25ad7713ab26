"""medlib.stats.prediction: tables of predictions, and their metrics."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scored import by_sklearn, case, frame, mixed, names
from sklearn import metrics as sk

from medlib.core.splits import Predicted, rotations
from medlib.stats import metrics, prediction


def test_point_reads_labels_by_name_and_classes_in_the_order_of_the_task():
    y, proba = case(3, n=45, seed=6)
    rows = frame(y, proba)
    point = prediction.point(rows[rows.columns[::-1]], names(3))  # column order does not matter
    assert point == pytest.approx(by_sklearn(y, proba), rel=0, abs=1e-12)
    assert all(isinstance(value, float) for value in point.values())


def test_a_label_that_is_no_class_is_refused():
    # Grades that are read without dtype=str are numbers. They must not all count as the last class.
    rows = frame(np.array([0, 1, 0, 1]), np.full((4, 2), 0.5)).assign(y_true=[0, 1, 0, 1])
    rows = rows.rename(columns={"prob_class 0": "prob_0", "prob_class 1": "prob_1"})
    with pytest.raises(ValueError, match="none of the classes"):
        prediction.point(rows, ["0", "1"])


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
    predicted = prediction.prediction_frame(index, np.stack([1 - yes, yes], axis=1), ["no", "yes"])
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
    pd.testing.assert_frame_equal(predicted, expected)


def test_a_prediction_keeps_the_side_of_its_sample():
    index = pd.DataFrame({"sample_id": ["b", "a"], "patient_id": ["p", "q"]})
    index = index.assign(label=["no", "yes"], split=["test", "val"])
    proba = np.array([[0.1, 0.9], [0.6, 0.4]])
    frame = prediction.prediction_frame(index, proba, ["no", "yes"])
    columns = ["sample_id", "patient_id", "split", "y_true", "prob_no", "prob_yes"]
    assert list(frame.columns) == columns
    assert frame["split"].tolist() == ["test", "val"]
    assert frame["y_true"].tolist() == ["no", "yes"]
    np.testing.assert_array_equal(frame[["prob_no", "prob_yes"]], proba)
    assert list(index.columns) == ["sample_id", "patient_id", "label", "split"], "index changed"


# ---------------------------------------------------------------------- files of a run


def test_the_tables_of_a_run_hold_what_each_rotation_predicts_for_test_and_validation_patients():
    fold = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    index = pd.DataFrame({"sample_id": list("abcdefag"), "patient_id": list("ABCDEFAG")})
    index = index.assign(label=["no", "yes"] * 3 + ["no", "yes"], fold=fold)  # a has two slices
    parts = rotations(fold, index["patient_id"], index["label"])
    rng = np.random.default_rng(0)
    of_test = [rng.dirichlet([1, 1], part.test.sum()) for part in parts]
    of_val = [rng.dirichlet([1, 1], part.val.sum()) for part in parts]
    predicted = [Predicted(val, test) for val, test in zip(of_val, of_test, strict=True)]
    tables = prediction.tables(index, parts, predicted, ["no", "yes"])
    assert list(tables) == ["predictions.csv", "validation.csv"]
    tested, validated = tables.values()
    # Fold i + 1 validates the model that is tested on fold i.
    assert tested["sample_id"].tolist() == ["a", "b", "c", "d", "g", "e", "f"]
    assert tested["fold"].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert validated["sample_id"].tolist() == ["c", "d", "g", "e", "f", "a", "b"]
    assert validated["patient_id"].tolist() == list("CDGEFAB")
    assert validated["rotation"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert validated["fold"].tolist() == [1, 1, 1, 2, 2, 0, 0]
    assert validated["y_true"].tolist() == ["no", "yes", "yes", "no", "yes", "no", "yes"]
    # The probabilities of the rows of each fold, first as test rows, then as validation rows.
    for table, (of_ab, of_cdg, of_ef) in (
        (tested, of_test),
        (validated, of_val[-1:] + of_val[:-1]),
    ):
        own = {"a": of_ab[[0, 2]].mean(0), "b": of_ab[1]}  # a has two slices
        own |= dict(zip("cdg", of_cdg, strict=True)) | dict(zip("ef", of_ef, strict=True))
        expected = np.array([own[sample] for sample in table["sample_id"]])
        np.testing.assert_allclose(table[["prob_no", "prob_yes"]], expected, rtol=0, atol=1e-15)


# ------------------------------------------------------------------- the mean over folds


def folds_of(patients):
    """Three folds with 4/7, 2/7 and 1/7 of the patients."""
    place = np.unique(patients, return_inverse=True)[1]
    return np.array([0, 1, 0, 2, 0, 1, 0])[place % 7]


def fold_by_sklearn(y, proba, weights):
    """The metrics of one fold in one draw. Metrics of ranks are NaN if a class is not drawn."""
    drawn = weights > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        values = by_sklearn(y[drawn], proba[drawn], weights[drawn])
    if len(set(y[drawn])) < proba.shape[1]:
        values |= dict.fromkeys(set(metrics.RANKS) & set(values), np.nan)
    return values


@pytest.mark.parametrize("k", [2, 3])
def test_in_cross_validation_a_metric_is_the_mean_of_scikit_learns_over_the_folds(k):
    y, proba, patients = mixed(42, k, seed=5)
    folds = folds_of(patients)
    evaluate, order = prediction.evaluator(frame(y, proba, patients, folds), names(k))
    assert order == sorted(set(patients))
    # A fold is weighted by its patients, not by its images. Here the two weights differ.
    sizes = np.array([len(set(patients[folds == f])) for f in range(3)])
    assert sizes.tolist() == [24, 12, 6]
    assert np.abs(sizes / 42 - np.bincount(folds) / len(y)).max() > 0.01
    owner = np.searchsorted(order, patients)
    weights = np.random.default_rng(1).poisson(1, size=(25, 42))
    weights = weights[[all(row[owner[folds == f]].any() for f in range(3)) for row in weights]]
    drawn, left_out = evaluate(weights), 0
    for b, row in enumerate(weights[:, owner]):
        of_folds = [
            fold_by_sklearn(y[folds == f], proba[folds == f], row[folds == f]) for f in range(3)
        ]
        for name, values in drawn.items():
            own = np.array([fold[name] for fold in of_folds])
            there = np.isfinite(own)
            left_out += name == "auroc" and not there.all()
            expected = np.average(own[there], weights=sizes[there])
            assert values[b] == pytest.approx(expected, rel=0, abs=1e-12), name
    assert 3 < left_out < len(weights) - 3
    point = prediction.point(frame(y, proba, patients, folds), names(k))
    whole = [
        fold_by_sklearn(y[folds == f], proba[folds == f], np.ones(sum(folds == f)))
        for f in range(3)
    ]
    for name, value in point.items():
        expected = np.average([fold[name] for fold in whole], weights=sizes)
        assert value == pytest.approx(expected, rel=0, abs=1e-12), name


def test_the_mean_over_folds_is_that_worked_out_by_hand():
    # Fold 0 has four patients with five images, ranked correctly. Fold 1 has two patients, ranked
    # wrongly.
    y, score = np.array([0, 0, 1, 1, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.3, 0.4, 0.9, 0.8])
    rows = frame(y, np.stack([1 - score, score], 1), list("abcddef"), [0, 0, 0, 0, 0, 1, 1])
    assert prediction.point(rows, names(2), ["auroc"])["auroc"] == pytest.approx(4 / 6)
    masks, shares = zip(*prediction.folds(rows), strict=True)
    assert [mask.tolist() for mask in masks] == [[True] * 5 + [False] * 2, [False] * 5 + [True] * 2]
    assert shares == pytest.approx((4 / 6, 2 / 6))
    # Without patient f, fold 1 has no positive. Without c, d and f, no fold has both classes.
    evaluate, patients = prediction.evaluator(rows, names(2), ["auroc", "accuracy"])
    assert patients == list("abcdef")
    drawn = evaluate(np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 0]]))
    np.testing.assert_array_equal(drawn["auroc"], [1, np.nan])
    # At a threshold of 1/2, two of five images of fold 0 are right in the first draw, and two of
    # two in the second draw. In fold 1 no image is right.
    np.testing.assert_allclose(drawn["accuracy"], [4 / 6 * 2 / 5, 4 / 6])
    (mask, share), *others = prediction.folds(rows.drop(columns="fold"))
    assert mask.all() and share == 1 and not others


def test_a_fold_of_which_nobody_is_drawn_is_left_out_without_a_warning():
    y, proba, patients = mixed(42, 2, seed=5)
    folds = folds_of(patients)
    rows = frame(y, proba, patients, folds)
    evaluate, order = prediction.evaluator(rows, names(2))
    weights = np.ones((1, 42), dtype=int)
    weights[0, np.searchsorted(order, patients[folds == 2])] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = evaluate(weights)
    of_folds = [by_sklearn(y[folds == f], proba[folds == f]) for f in (0, 1)]
    for name, values in drawn.items():
        expected = np.average([fold[name] for fold in of_folds], weights=[24, 12])
        assert values[0] == pytest.approx(expected, rel=0, abs=1e-12), name


def test_pooling_folds_whose_scores_differ_in_scale_is_biased_downwards_and_the_mean_is_not():
    """Each fold has a separate model. All models have the same AUROC, which is known."""
    n_folds, n, shift, repeats = 5, 16, 1.5, 150
    truth = scipy.stats.norm.cdf(shift / np.sqrt(2))
    rng, pooled, means = np.random.default_rng(0), [], []
    y, folds = np.tile([0, 1], n_folds * n // 2), np.repeat(np.arange(n_folds), n)
    for _ in range(repeats):
        signal = shift * y + rng.normal(size=len(y))
        own_scale = rng.lognormal(0, 0.7, n_folds)[folds]
        own_offset = rng.normal(0, 1.5, n_folds)[folds]
        score = scipy.stats.norm.cdf((own_scale * signal + own_offset) / 3)
        rows = frame(y, np.stack([1 - score, score], axis=1), folds=folds)
        means.append(prediction.point(rows, names(2), ["auroc"])["auroc"])
        pooled.append(sk.roc_auc_score(y, score))
    error = np.std(means) / np.sqrt(repeats)
    assert error < 0.007
    assert np.mean(means) == pytest.approx(truth, abs=4 * error)
    assert np.mean(pooled) < truth - 0.05
