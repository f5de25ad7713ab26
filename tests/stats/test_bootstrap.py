"""medlib.stats.bootstrap: the bootstrap over patients, and other kinds of intervals."""

import sys
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from scored import by_sklearn, case, clustered, frame, mixed, names
from sklearn import metrics as sk

from medlib.stats import bootstrap, draws, metrics, prediction


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
        how = {"paired": True, "vectorized": True, "n_resamples": 4000, "batch": 200}
        how |= {"method": "percentile", "rng": np.random.default_rng(2)}
        expected = scipy.stats.bootstrap((y, proba[:, 1]), statistic, **how)
        low, high = bootstrap.percentiles(values[name])
        # The Monte-Carlo error of a 2.5 % quantile of 4000 normal draws is 0.042 sd. For the
        # difference of two such quantiles it is 0.06 sd. Accuracy has steps of 1/120.
        tolerance = 4 * 0.06 * expected.standard_error + (name == "accuracy") / 120
        assert low == pytest.approx(expected.confidence_interval.low, rel=0, abs=tolerance)
        assert high == pytest.approx(expected.confidence_interval.high, rel=0, abs=tolerance)
        assert values[name].std(ddof=1) == pytest.approx(expected.standard_error, rel=0.08)


def test_only_the_metrics_that_are_asked_for_are_resampled_and_others_are_refused():
    rows = frame(*case(3, n=50, seed=2))
    for asked in (["auprc", "accuracy"], ["auroc"], ["f1_weighted"]):
        assert list(bootstrap.bootstrap(rows, names(3), 5, names=asked)) == asked
        assert list(bootstrap.jackknife(rows, names(3), asked)) == asked
    with pytest.raises(ValueError, match="'aurok'.*auroc"):
        bootstrap.bootstrap(rows, names(3), 5, names=["aurok"])


def test_the_patient_bootstrap_is_that_of_drawing_patients_and_joining_their_rows():
    y, proba = case(3, n=23, seed=11)
    # Patients have one to five images, in rows that are not neighbours.
    patients = np.array([f"p{i}" for i in "30441222566666013504213"])
    values = bootstrap.bootstrap(frame(y, proba, patients), names(3), resamples=40, seed=5)
    unique = sorted(set(patients))
    compared = 0
    for b, counts in enumerate(draws.counts(unique, 0, 40, seed=5)):
        times = dict(zip(unique, counts.tolist(), strict=True))
        rows = np.repeat(np.arange(23), [times[patient] for patient in patients])
        if len(set(y[rows])) < 3:
            assert np.isnan(values["auroc"][b])
            continue
        compared += 1
        for name, expected in by_sklearn(y[rows], proba[rows]).items():
            assert values[name][b] == pytest.approx(expected, rel=0, abs=1e-12), name
    assert compared > 30
    assert set(values) == set(metrics.applicable(3))


@pytest.mark.parametrize("k", [2, 5])
def test_areas_of_resamples_are_those_of_scikit_learn_with_the_drawn_counts_as_weights(k):
    y, proba, patients = mixed(18, k, seed=1)
    values = bootstrap.bootstrap(frame(y, proba, patients), names(k), resamples=60, seed=7)
    unique, owner = np.unique(patients, return_inverse=True)
    missing = 0
    for b, counts in enumerate(draws.counts(unique, 0, 60, seed=7)):
        weights = counts[owner].astype(int)
        if len(set(y[weights > 0])) < k:
            missing += 1
            assert np.isnan(values["auroc"][b])
            continue
        expected = by_sklearn(y, proba, weights)
        for name in set(metrics.RANKS) & set(expected):
            assert values[name][b] == pytest.approx(expected[name], rel=0, abs=1e-12), name
    assert missing < 40 and (k == 2 or missing)


def test_accuracy_of_single_images_is_the_share_of_one_poisson_count_in_two():
    y, proba = case(7, n=60, seed=5)
    proba = 0.4 * proba + 0.6 * case(7, n=60, seed=9)[1]  # less than perfect
    right = int((proba.argmax(1) == y).sum())
    drawn = bootstrap.bootstrap(frame(y, proba), names(7), 20_000, seed=3, names=["accuracy"])
    # The numbers of right and of wrong images drawn are Poisson(right) and Poisson(60 - right).
    hits, misses = np.arange(1, 200)[:, None], np.arange(1, 200)
    poisson = scipy.stats.poisson
    chance = (poisson(right).pmf(hits) * poisson(60 - right).pmf(misses)).ravel()
    assert chance.sum() > 1 - 1e-6
    exact = (hits / (hits + misses)).ravel()
    edges = np.quantile(drawn["accuracy"], np.arange(1, 16) / 16) + 1e-9  # between two fractions
    expected = np.bincount(np.searchsorted(edges, exact), chance) * 20_000 / chance.sum()
    observed = np.bincount(np.searchsorted(edges, drawn["accuracy"]))
    assert len(observed) == 16 and min(expected) > 500
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


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
    by_patient = bootstrap.percentiles(bootstrap.bootstrap(rows, names(2), 4000)["accuracy"])
    alone = rows.assign(patient_id=rows["sample_id"])
    by_image = bootstrap.percentiles(bootstrap.bootstrap(alone, names(2), 4000)["accuracy"])
    single = rows.drop_duplicates("patient_id")
    by_single = bootstrap.percentiles(bootstrap.bootstrap(single, names(2), 4000)["accuracy"])
    # Eight copies have the information of one image. If images are drawn, the interval is too
    # narrow by a factor of sqrt(8).
    assert np.ptp(by_patient) == pytest.approx(np.ptp(by_single), rel=1e-12)
    assert np.ptp(by_patient) / np.ptp(by_image) == pytest.approx(np.sqrt(8), rel=0.15)


def test_the_size_of_a_chunk_does_not_change_a_draw(monkeypatch):
    rows = clustered(7, 3)
    whole = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
    assert len(whole["auroc"]) == 31
    for rows_at_once in (1, 4, 30):
        monkeypatch.setattr(bootstrap, "CHUNK", rows_at_once * len(rows))
        parts = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
        for name in whole:  # rounding depends on the shape of a matrix product
            tolerance = 1e-14 if name in metrics.LOSSES else 0
            np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=tolerance)
    monkeypatch.setattr(bootstrap, "CHUNK", 1)  # less than one resample: one at a time all the same
    parts = bootstrap.bootstrap(rows, names(2), resamples=31, seed=2)
    np.testing.assert_array_equal(parts["accuracy"], whole["accuracy"])


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 8)  # one resample at a time, so threads mix
    rows = frame(*mixed(50, 4))
    alone = bootstrap.bootstrap(rows, names(4), 600, seed=9, threads=1)
    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        several = bootstrap.bootstrap(rows, names(4), 600, seed=9, threads=5)
    finally:
        sys.setswitchinterval(patience)
    for name in alone:
        np.testing.assert_array_equal(several[name], alone[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_stays_below_the_stated_bound(monkeypatch, threads):
    monkeypatch.setattr(bootstrap, "CHUNK", 1 << 15)
    n, resamples = 5000, 400
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


def test_a_percentile_interval_holds_the_middle_of_the_values():
    values = np.arange(1001) / 1000
    assert bootstrap.percentiles(values) == pytest.approx((0.025, 0.975), abs=1e-12)


def test_a_percentile_interval_leaves_undefined_values_out_and_is_undefined_without_any_other():
    values = np.arange(1001) / 1000
    holes = np.concatenate([[np.nan] * 500, values, [np.nan] * 7])
    assert bootstrap.percentiles(holes) == pytest.approx((0.025, 0.975), abs=1e-12)
    assert np.isnan(bootstrap.percentiles(np.full(9, np.nan))).all()
    assert np.isnan(bootstrap.percentiles(np.array([]))).all()


# --------------------------------------------------------------------- other kinds of interval


def test_leaving_a_patient_out_is_leaving_out_their_rows(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK", 200)  # several parts
    y, proba, patients = mixed(14, 3, seed=3)
    rows = frame(y, proba, patients)
    without = bootstrap.jackknife(rows, names(3))
    for number, patient in enumerate(sorted(set(patients))):
        kept = patients != patient
        for name, expected in by_sklearn(y[kept], proba[kept]).items():
            assert without[name][number] == pytest.approx(expected, rel=0, abs=1e-12), name
    assert without["auroc"].shape == (14,)


def test_the_bca_interval_is_that_of_scipy_from_the_same_resamples():
    sample = np.random.default_rng(0).exponential(size=40) ** 2  # skewed
    expected = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(1)
    )
    values = expected.bootstrap_distribution
    left_out = (sample.sum() - sample) / (len(sample) - 1)
    low, high = bootstrap.bca_interval(values, sample.mean(), left_out)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), rel=0, abs=1e-12)
    plain = bootstrap.percentiles(values)
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
    drawn = bootstrap.bootstrap(frame(y, proba, patients), names(2), 4000, names=["auroc"])
    assert np.sqrt(covariance[0, 0]) == pytest.approx(drawn["auroc"].std(), rel=0.05)
    by_image = bootstrap.delong(y, proba[None, :, 1], np.arange(len(y)))[1]
    assert by_image[0, 0] < 0.6 * covariance[0, 0], "the case shows no clustering"


@pytest.mark.parametrize("y", [[1, 1, 1, 1], [0, 1, 1, 1]])
def test_delong_is_undefined_without_two_patients_of_each_class(y):
    result = bootstrap.delong(np.array(y), np.random.default_rng(0).random((2, 4)), np.arange(4))
    assert np.isnan(result[0]).all() and np.isnan(result[1]).all()


def test_in_cross_validation_delong_is_that_of_the_mean_over_folds():
    y, proba, patients = mixed(30, 2, seed=6)
    second = 0.6 * proba + 0.4 * mixed(30, 2, seed=6)[1][::-1]
    place = np.unique(patients, return_inverse=True)[1]
    folds = np.array([0, 1, 0])[place % 3]  # 20 patients and 10
    frames = [frame(y, p, patients, folds) for p in (proba, second)]
    areas, covariance = bootstrap.delong_of_frames(frames, names(2))
    assert areas == pytest.approx(
        [prediction.point(rows, names(2), ["auroc"])["auroc"] for rows in frames], abs=1e-12
    )
    # Folds have no patient in common, so their variances add up.
    expected = np.zeros((2, 2))
    for fold, share in ((0, 2 / 3), (1, 1 / 3)):
        inside = folds == fold
        scores = np.stack([p[inside, 1] for p in (proba, second)])
        expected += share**2 * bootstrap.delong(y[inside], scores, patients[inside])[1]
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-15)
    drawn = bootstrap.bootstrap(frames[0], names(2), 4000, names=["auroc"])["auroc"]
    assert np.sqrt(covariance[0, 0]) == pytest.approx(drawn.std(), rel=0.1)


# ------------------------------------------------------------------------- by metric


def test_a_logit_interval_is_that_worked_out_by_hand():
    # At 1/2 the logit is 0 and its slope 4: two errors of 0.1 reach to -0.8 and 0.8.
    low, high = bootstrap.logit_interval(0.5, 0.1, 99, reach=2)
    assert (low, high) == pytest.approx((1 / (1 + np.e**0.8), 1 / (1 + np.e**-0.8)), abs=1e-12)
    # At 9/10 the odds are 9 and the slope is 1 / 0.09: 1.96 errors of 0.045 multiply the odds by
    # e to the 0.98.
    low, high = bootstrap.logit_interval(0.9, 0.045, 99)
    factor = np.exp(1.959963984540054 * 0.045 / 0.09)
    assert (low, high) == pytest.approx(
        (9 / (9 + factor), 9 * factor / (9 * factor + 1)), abs=1e-12
    )
    # For a small error it is the usual interval.
    low, high = bootstrap.logit_interval(0.7, 1e-5, 99)
    assert (low, high) == pytest.approx((0.7 - 1.96e-5, 0.7 + 1.96e-5), abs=1e-8)
    wide = bootstrap.logit_interval(0.98, 0.1, 99)
    assert 0 < wide[0] < 0.98 < wide[1] < 1
    assert np.isnan(bootstrap.logit_interval(float("nan"), 0.1, 99)).all()
    assert np.isnan(bootstrap.logit_interval(0.7, float("nan"), 99)).all()


@pytest.mark.parametrize("n", [1, 7, 20, 300])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_at_0_and_1_the_logit_interval_is_wilsons(n, level):
    reach = scipy.stats.norm.ppf((1 + level) / 2)
    for value in (0, 1):
        of_scipy = scipy.stats.binomtest(value * n, n).proportion_ci(level, "wilson")
        for near in (value, abs(value - 1e-12)):
            interval = bootstrap.logit_interval(near, 0.0, n, reach)
            assert interval == pytest.approx((of_scipy.low, of_scipy.high), rel=0, abs=1e-12)


def test_the_kind_of_interval_follows_from_the_metric():
    rng = np.random.default_rng(0)
    values, left_out = rng.beta(20, 4, 3000), rng.beta(200, 40, 50) ** 2
    values[:7] = np.nan
    whole, error = values[7:], np.std(values[7:], ddof=1)
    logit = bootstrap.logit_interval(0.85, error, 12)
    corrected = bootstrap.bca_interval(whole, 0.85, left_out)
    assert np.abs(np.subtract(logit, corrected)).min() > 0.005, "the case shows no difference"
    kinds = dict.fromkeys(metrics.NAMES, logit)
    kinds |= dict.fromkeys(("log_loss", "brier", "kappa", "kappa_quadratic"), corrected)
    kinds["ece"] = (np.nan, np.nan)
    for name, expected in kinds.items():
        found = bootstrap.interval(name, 0.85, values, left_out, 12)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=name)
    # The more patients the rarest class has, the shorter is the interval of a perfect score.
    perfect = bootstrap.interval("auroc", 1.0, np.ones(9), np.ones(4), 12)
    of_scipy = scipy.stats.binomtest(12, 12).proportion_ci(method="wilson")
    assert perfect == pytest.approx((of_scipy.low, 1), abs=1e-12)
    for name in ("auroc", "brier", "ece"):  # without two defined resamples nothing is known
        for few in ([], [0.8], [np.nan, 0.8, np.nan]):
            found = bootstrap.interval(name, 0.85, np.array(few), left_out, 12)
            assert np.isnan(found).all()


def test_intervals_over_patients_cover_the_truth_and_those_over_images_do_not():
    """Patients with one to six images that share an effect; the true AUROC is known."""
    n, effect, noise, shift, repeats = 160, 1.0, 0.5, 1.2, 300
    truth = scipy.stats.norm.cdf(shift / np.sqrt(2 * (effect**2 + noise**2)))
    rng, covered = np.random.default_rng(5), {"patient": 0, "image": 0}
    for _ in range(repeats):
        label = np.arange(n) % 2
        owner = np.repeat(np.arange(n), rng.integers(1, 7, n))
        own = shift * label + effect * rng.normal(size=n)
        score = scipy.special.expit(own[owner] + noise * rng.normal(size=len(owner)))
        proba = np.stack([1 - score, score], axis=1)
        area = sk.roc_auc_score(label[owner], score)
        for kind, patients in (("patient", owner), ("image", np.arange(len(owner)))):
            rows = frame(label[owner], proba, patients)
            drawn = bootstrap.bootstrap(rows, names(2), 300, names=["auroc"], threads=1)["auroc"]
            low, high = bootstrap.interval("auroc", area, drawn, np.array([]), n // 2)
            covered[kind] += low <= truth <= high
    assert 0.93 <= covered["patient"] / repeats <= 0.97, covered
    assert covered["image"] / repeats < 0.85, covered


def test_near_the_ceiling_the_logit_interval_covers_and_the_percentile_interval_does_not():
    """There are forty patients, and the AUROC is 0.95. In some samples it is 1."""
    n, truth, repeats = 40, 0.95, 400
    shift = np.sqrt(2) * scipy.stats.norm.ppf(truth)
    label, rng = np.arange(n) % 2, np.random.default_rng(3)
    covered, perfect = {"logit": 0, "percentile": 0}, 0
    for _ in range(repeats):
        score = scipy.stats.norm.cdf((shift * label + rng.normal(size=n)) / 3)
        rows = frame(label, np.stack([1 - score, score], axis=1))
        drawn = bootstrap.bootstrap(rows, names(2), 300, names=["auroc"], threads=1)["auroc"]
        area = sk.roc_auc_score(label, score)
        perfect += area == 1
        low, high = bootstrap.percentiles(drawn)
        covered["percentile"] += low <= truth <= high
        low, high = bootstrap.interval("auroc", area, drawn, np.array([]), n // 2)
        covered["logit"] += low <= truth <= high
    assert perfect > 0
    assert covered["percentile"] / repeats < 0.9, covered
    assert 0.93 <= covered["logit"] / repeats <= 0.99, covered
