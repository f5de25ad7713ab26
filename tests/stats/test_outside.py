"""medlib.stats.outside: images from elsewhere are flagged, and 5 % of those like validation."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from medlib.stats import outside


def drawn(n, d=40, seed=0, rank=6):
    """Features that vary much in only a few directions."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(d, d)))[0]
    spread = np.r_[np.linspace(8, 3, rank), np.ones(d - rank)]
    return (rng.normal(size=(n, d)) * spread @ basis + 5).astype(np.float32)


def known_of(x):
    return outside.fitted(x, x.mean(0), x.std(0))


def test_the_distance_is_that_of_probabilistic_pca_by_scikit_learn():
    x, fresh = drawn(400), drawn(50, seed=1)
    found = outside.distances(known_of(x), fresh)
    z, new = ((part - x.mean(0)) / x.std(0) for part in (x.astype(float), fresh.astype(float)))
    model = PCA(outside.COMPONENTS, svd_solver="full").fit(z)
    covariance = model.get_covariance()  # divided by n - 1; ours is divided by n
    theirs = np.sqrt(np.einsum("ij,jk,ik->i", new, np.linalg.inv(covariance), new) / 40)
    np.testing.assert_allclose(found, theirs, rtol=0.01)
    density = multivariate_normal(np.zeros(40), covariance).logpdf(new)
    assert (np.argsort(density)[::-1] == np.argsort(theirs)).all()


@pytest.mark.parametrize(("n", "d"), [(300, 40), (12, 40), (300, 5), (2, 3), (1, 4), (9, 1)])
def test_any_number_of_images_and_features_will_do(n, d):
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    known = outside.fitted(x, x.mean(0), scale)
    assert known["components"].shape[1] == d and known["components"].dtype == np.float16
    assert np.isfinite(outside.distances(known, x)).all()
    far = outside.distances(known, x + 100)
    assert (far > 10 * outside.distances(known, x).max()).all()
    again = outside.fitted(x, x.mean(0), scale)
    assert all((known[name] == again[name]).all() for name in known), "it depends on chance"


def test_what_is_stored_is_small():
    known = known_of(drawn(300, d=2048))
    kept = {name: known[name] for name in ("components", "variances", "rest")}
    assert sum(value.nbytes for value in kept.values()) < 2.1 * 8 * 2048


def test_of_samples_like_those_of_validation_one_in_twenty_is_unusual():
    rates, strangers = [], []
    for seed in range(200):
        train, val, test = (drawn(n, seed=10 * seed + i) for i, n in enumerate((60, 59, 100)))
        known = known_of(train)
        most = outside.usual(outside.distances(known, val))
        rates.append((outside.distances(known, test) > most).mean())
        moved = test + 3 * np.random.default_rng(seed).normal(size=40)  # another scanner
        strangers.append((outside.distances(known, moved) > most).mean())
    # By the theory of conformal prediction the mean is exactly 1 - 57 / 60.
    assert np.mean(rates) == pytest.approx(0.05, abs=4 * np.std(rates) / np.sqrt(200))
    assert np.mean(strangers) > 0.9


def test_the_threshold_is_an_order_statistic():
    values = np.arange(1, 100) / 1.0
    assert outside.usual(values) == 95
    assert outside.usual(values[:19]) == 19 and outside.usual(values[:20]) == 20
    assert outside.usual(values[:5]) == 5  # with so few, the largest distance


def test_a_volumes_distance_is_the_mean_over_its_slices():
    found = outside.by_sample(np.array([1.0, 3, 10, 2]), ["b", "b", "a", "b"])
    np.testing.assert_allclose(found, [2, 10])
