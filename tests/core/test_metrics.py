"""medlib.core.metrics: the choice of a candidate, labels as numbers, the mean over slices."""

import numpy as np
import pandas as pd
import pytest
from scored import area
from sklearn import metrics as sk

from medlib.core import heads, metrics


@pytest.mark.parametrize("k", [2, 3])
def test_slices_are_averaged_by_sample_as_pandas_does_it_to_the_last_digit(k):
    rng = np.random.default_rng(k)
    samples = np.repeat([f"v{i}" for i in rng.permutation(50)], rng.integers(1, 7, 50))
    proba = rng.random((len(samples), k))
    y = np.array([int(name[1:]) % k for name in samples])
    labels, means = metrics.by_sample(y, proba, samples)
    expected = pd.DataFrame(proba).groupby(samples, sort=False).mean()
    np.testing.assert_array_equal(means, expected.to_numpy())
    assert labels.tolist() == [int(name[1:]) % k for name in expected.index]
    several = metrics.by_sample(y, np.stack([proba, 1 - proba]), samples)[1]
    np.testing.assert_array_equal(several[0], means)


def test_slices_of_a_volume_need_not_stand_together():
    proba = np.array([[0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    labels, means = metrics.by_sample(np.array([1, 0, 1]), proba, ["b", "a", "b"])
    assert labels.tolist() == [1, 0]
    np.testing.assert_allclose(means, [[0.3, 0.7], [0.6, 0.4]])


def test_labels_become_the_positions_of_their_classes():
    assert metrics.codes(["no", "yes", "no"], ["yes", "no"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="label 7 is none of the classes .yes, no.. Labels are"):
        metrics.codes([7, "yes"], ["yes", "no"])


def tied(k, n, seed=0):
    """Labels, probabilities with many ties, and counts in which every class is drawn."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    proba = np.round(rng.dirichlet(np.ones(k), n) * 0.7 + 0.3 * np.eye(k)[y], 1)
    counts = rng.poisson(1, n)
    counts[np.unique(y, return_index=True)[1]] = 2
    return y, proba, counts


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_an_auroc_with_counts_is_scikit_learns_with_sample_weights(k, dtype):
    y, proba, counts = tied(k, 400)
    assert len(np.unique(proba[:, 1])) < 20 and (counts == 0).sum() > 80
    found = metrics.auroc(y, proba, counts.astype(dtype))
    assert found == pytest.approx(area(y, proba, counts), abs=1e-12)
    assert found != pytest.approx(area(y, proba, None), abs=1e-4)
    rows = np.repeat(np.arange(400), counts)
    assert found == pytest.approx(metrics.auroc(y[rows], proba[rows]), abs=1e-12)
    assert metrics.auroc(y, proba, np.ones(400, int)) == metrics.auroc(y, proba)


def test_an_auroc_with_counts_by_hand():
    y, proba = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.6, 0.9])
    # There are 6 pairs. The positive at 0.9 wins its 3; that at 0.6 wins 2, and ties in 1.
    found = metrics.auroc(y, np.stack([1 - proba, proba], 1), np.array([2, 1, 1, 1]))
    assert found == pytest.approx((3 + 2.5) / 6, abs=1e-15)


@pytest.mark.parametrize("k", [2, 3])
def test_counts_and_predictions_of_many_resamples_are_judged_at_once(k):
    y, proba, _ = tied(k, 60)
    rng = np.random.default_rng(1)
    probas = proba[None, None] * rng.choice([0.5, 1.0], (4, 3, 60, 1))  # ranks of their own
    counts = 1 + rng.poisson(1, (4, 1, 60))
    areas, losses = metrics.auroc(y, probas, counts), metrics.log_loss(y, probas, counts)
    assert areas.shape == losses.shape == (4, 3)
    for i in range(4):
        of_one = metrics.auroc(y, probas[i], counts[i, 0])  # one row of counts, 3 predictions
        np.testing.assert_array_equal(of_one, areas[i])
        for j in range(3):
            expected = area(y, probas[i, j], counts[i, 0])
            assert areas[i, j] == pytest.approx(expected, abs=1e-12)
            own = np.maximum(probas[i, j][np.arange(60), y], np.finfo(float).eps)
            expected = np.average(-np.log(own), weights=counts[i, 0])
            assert losses[i, j] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [2, 3])
def test_an_auroc_is_undefined_where_no_sample_of_a_class_counts(k):
    y, proba, counts = tied(k, 30)
    assert np.isfinite(metrics.auroc(y, proba, counts))
    for c in range(k):
        assert np.isnan(metrics.auroc(y, proba, counts * (y != c)))


@pytest.mark.parametrize("k", [2, 4])
def test_the_log_loss_is_that_of_scikit_learn_with_and_without_counts(k):
    rng = np.random.default_rng(k)
    y, proba = np.arange(50) % k, rng.dirichlet(np.ones(k), 50)
    proba[3] = np.eye(k)[(y[3] + 1) % k]  # wrong, and sure of it
    for counts in (None, rng.poisson(1, 50)):
        expected = sk.log_loss(y, proba, sample_weight=counts, labels=range(k))
        assert metrics.log_loss(y, proba, counts) == pytest.approx(expected, rel=1e-12)


def test_a_log_loss_by_hand():
    y, proba = np.array([0, 1, 1]), np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    counts = np.array([3, 1, 0])
    assert metrics.log_loss(y[:2], proba[:2]) == pytest.approx(1.5 * np.log(2))
    assert metrics.log_loss(y, proba, counts) == pytest.approx((3 + 2) / 4 * np.log(2))
    assert np.isnan(metrics.log_loss(y, proba, 0 * counts))


# ------------------------------------------------------------------------------------- choosing

EIGHT = np.array([0, 0, 1, 1, 1, 1])  # 2 × 4 pairs: one pair is an AUROC of 0.125


def chosen(aurocs, losses, labels):
    return metrics.choose(np.array(aurocs), np.array(losses), labels).tolist()


def test_the_highest_auroc_is_chosen_whatever_the_loss():
    assert chosen([[0.5, 0.875, 0.75]], [[0.1, 0.9, 0.2]], [EIGHT]) == 1


def test_one_candidate_serves_all_rotations():
    # Each rotation by itself would take another candidate. By the mean, (1 + 0.25) / 2, these are
    # more than a pair below the third, 0.875.
    aurocs = [[1.0, 0.25, 0.875], [0.25, 1.0, 0.875]]
    losses = [[0.1, 0.1, 0.9], [0.1, 0.1, 0.9]]
    assert [chosen([a], [b], [EIGHT]) for a, b in zip(aurocs, losses, strict=True)] == [0, 1]
    assert chosen(aurocs, losses, [EIGHT, EIGHT]) == 2


def test_the_loss_of_all_rotations_chooses_among_ties():
    aurocs = [[0.75, 0.75, 0.75], [0.5, 0.5, 0.5]]
    losses = [[0.1, 0.4, 0.3], [0.9, 0.5, 0.5]]  # means 0.5, 0.45 and 0.4
    assert chosen(aurocs, losses, [EIGHT, EIGHT]) == 2


@pytest.mark.parametrize(("below", "expected"), [(0.0625, 1), (0.1249, 1), (0.125, 0), (0.25, 0)])
def test_less_than_one_pair_below_the_best_is_a_tie(below, expected):
    assert chosen([[0.875, 0.875 - below]], [[0.9, 0.1]], [EIGHT]) == expected
    assert chosen([[0.875 - below, 0.875]], [[0.1, 0.9]], [EIGHT]) == 1 - expected


def test_a_tie_is_with_the_best_and_not_with_its_neighbour():
    # Each is half a pair below the one before: the last is a whole pair below the first.
    assert chosen([[0.875, 0.8125, 0.75]], [[0.9, 0.5, 0.1]], [EIGHT]) == 1


@pytest.mark.parametrize(("below", "expected"), [(0.305, 1), (0.306, 0)])
def test_with_three_classes_a_pair_is_the_mean_of_one_of_each_class(below, expected):
    # 1 × 3, 1 × 3 and 2 × 2 pairs: (1/3 + 1/3 + 1/4) / 3 = 0.3056.
    labels = np.array([0, 1, 2, 2])
    assert chosen([[0.9, 0.9 - below]], [[0.9, 0.1]], [labels]) == expected


@pytest.mark.parametrize(("below", "expected"), [(0.31, 1), (0.3125, 0)])
def test_with_several_rotations_a_pair_is_the_mean_of_one_in_each(below, expected):
    # 2 × 4 and 1 × 2 pairs: (1/8 + 1/2) / 2 = 0.3125.
    labels = [EIGHT, np.array([0, 1, 1])]
    aurocs = [[1.0, 1.0 - below], [1.0, 1.0 - below]]
    assert chosen(aurocs, [[0.9, 0.1], [0.9, 0.1]], labels) == expected


def test_one_whole_pair_below_the_best_is_no_tie_at_any_size():
    for positive, negative in [(1, 10), (3, 7), (5, 6), (13, 17)]:
        pairs = positive * negative
        best = np.arange(1, pairs + 1)
        aurocs = np.stack([best / pairs, (best - 1) / pairs], axis=1)[None]
        losses = np.broadcast_to([0.9, 0.1], aurocs.shape)
        labels = np.repeat([0, 1], [negative, positive])
        assert chosen(aurocs, losses, [labels]) == [0] * pairs


def test_of_ties_with_one_loss_the_first_is_taken():
    # The lists of candidates begin with the stronger penalty and the larger k.
    for head in ("linear", "knn"):
        values = heads.HEADS[head].candidates
        assert list(values) == sorted(values, reverse=head == "knn")
    assert chosen([[0.75, 0.875, 0.875, 0.8125]], [[0.4, 0.4, 0.3, 0.3]], [EIGHT]) == 2


def test_an_undefined_auroc_is_never_chosen():
    nan = np.nan
    assert chosen([[nan, 0.5, 0.75]], [[0.0, 0.5, 0.9]], [EIGHT]) == 2
    # It is enough that it is undefined in one of two rotations.
    assert chosen([[0.5, 1.0], [0.5, nan]], [[0.9, 0.1], [0.9, 0.1]], [EIGHT, EIGHT]) == 0
    # A single pair: here every other candidate is a tie.
    one = np.array([0, 1])
    assert chosen([[nan, 0.0]], [[0.0, 9.0]], [one]) == 1
    assert chosen([[nan, 0.5, 1.0]], [[0.0, 0.1, 0.2]], [one]) == 1


def test_the_runs_of_a_batch_are_chosen_each_by_itself():
    rng = np.random.default_rng(0)
    aurocs, losses = rng.integers(4, 9, (2, 30, 5)) / 8, rng.integers(1, 5, (2, 30, 5)) / 4
    together = chosen(aurocs, losses, [EIGHT, EIGHT])
    assert len(set(together)) == 5
    for run, choice in enumerate(together):
        mean, lost = aurocs[:, run].mean(0), losses[:, run].mean(0)
        close = [i for i in range(5) if mean[i] > mean.max() - 0.125]
        assert choice == min(close, key=lambda i: (lost[i], i))
