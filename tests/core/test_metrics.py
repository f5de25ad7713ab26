"""medlib.core.metrics: labels as numbers, and the mean over the slices of a volume."""

import numpy as np
import pandas as pd
import pytest

from medlib.core import metrics


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
