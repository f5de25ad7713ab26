"""medlib.stats.draws: draws depend only on a patient's id, and heads are trained again on draws."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scored import by_sklearn, frame, names
from sklearn import metrics as sk

from medlib.core import heads
from medlib.core.splits import rotations
from medlib.stats import bootstrap, draws, metrics, redraws

PATIENTS = [f"{i:04d}" for i in range(500)]  # similar ids


def test_each_patient_is_drawn_as_often_as_a_poisson_variable_of_mean_one():
    drawn = draws.counts(PATIENTS, 0, 2000)
    assert drawn.shape == (2000, 500)
    observed = np.bincount(np.minimum(drawn.ravel(), 6), minlength=7)
    poisson = scipy.stats.poisson(1)
    expected = drawn.size * np.array([*poisson.pmf(range(6)), poisson.sf(5)])
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3
    assert 7 <= drawn.max() <= 8  # 65,536 levels allow no higher count
    # Sums of 2000 and of 500 such variables are Poisson as well. So no patient is drawn more often
    # than others, and no resample is larger than others.
    for sums, n in ((drawn.sum(0, dtype=int), 2000), (drawn.sum(1, dtype=int), 500)):
        dispersion = (((sums - n) / np.sqrt(n)) ** 2).sum()
        low, high = scipy.stats.chi2(len(sums)).ppf([5e-4, 1 - 5e-4])
        assert low < dispersion < high


@pytest.mark.parametrize("between", ["patients", "resamples"])
def test_draws_are_independent_between_patients_and_between_resamples(between):
    if between == "patients":
        drawn = draws.counts(PATIENTS[:200], 3, 4003)
    else:
        drawn = draws.counts([f"p{i}" for i in range(4000)], 5, 205).T
    n, columns = drawn.shape
    of_pairs = np.corrcoef(drawn, rowvar=False)[np.triu_indices(columns, 1)]
    z = of_pairs * np.sqrt(n)
    assert np.abs(z).max() < 5.5, "of 19,900 pairs of independent columns none is so far from 0"
    assert (z**2).mean() == pytest.approx(1, abs=4 * np.sqrt(2 / len(z)))
    # Draws must be independent, not only uncorrelated. One random number gives four resamples, so
    # neighbours are compared, too.
    for apart in (1, 2, 3, 4, 100):
        one, other = (np.minimum(side, 3).ravel() for side in (drawn[:, apart:], drawn[:, :-apart]))
        table = np.bincount(4 * one + other, minlength=16).reshape(4, 4)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-4, apart


def test_the_draws_of_training_patients_are_independent_of_those_of_test_patients():
    assert draws.TEST != draws.TRAINING
    tested = draws.counts(PATIENTS, 0, 400)
    assert np.array_equal(tested, draws.counts(PATIENTS, 0, 400, draws.TEST))
    trained = draws.counts(PATIENTS, 0, 400, draws.TRAINING)
    table = np.bincount((4 * np.minimum(tested, 3) + np.minimum(trained, 3)).ravel(), minlength=16)
    assert scipy.stats.chi2_contingency(table.reshape(4, 4)).pvalue > 1e-3


def test_a_patients_counts_depend_neither_on_other_patients_nor_on_the_chunk_of_resamples():
    whole = draws.counts(PATIENTS[:30], 0, 41, seed=3)
    assert whole.dtype == np.uint8
    order = np.random.default_rng(0).permutation(30)[:17]
    chosen = [PATIENTS[i] for i in order]
    np.testing.assert_array_equal(draws.counts(chosen, 0, 41, seed=3), whole[:, order])
    for first, last in ((0, 1), (1, 2), (3, 4), (2, 11), (4, 8), (7, 41), (40, 41), (5, 5)):
        part = draws.counts(PATIENTS[:30], first, last, seed=3)
        np.testing.assert_array_equal(part, whole[first:last], err_msg=f"{first} to {last}")
    np.testing.assert_array_equal(draws.counts([7, 12], 0, 9), draws.counts(["7", "12"], 0, 9))
    assert not np.array_equal(draws.counts(PATIENTS[:30], 0, 41, seed=4), whole)


def modality(noise, seed, own, label):
    """Predictions of one modality: each patient's ``own`` score, plus noise of this modality."""
    rng = np.random.default_rng(seed)
    score = scipy.stats.norm.cdf(own + label + noise * rng.normal(size=len(label)))
    return frame(label, np.stack([1 - score, score], axis=1), PATIENTS[: len(label)])


def test_a_patient_who_lacks_a_modality_leaves_the_draws_of_two_modalities_correlated():
    rng, label = np.random.default_rng(0), np.arange(60) % 2
    own = rng.normal(size=60)
    one, other = (modality(0.2, seed, own, label) for seed in (1, 2))

    def drawn(rows, seed=0):
        return bootstrap.bootstrap(rows, names(2), 2000, seed, names=["auroc"])["auroc"]

    def correlation(a, b):
        return np.corrcoef(a, b)[0, 1]

    complete = correlation(drawn(one), drawn(other))
    assert complete > 0.85
    for lacking in (0, 31):
        rows = other.drop(index=lacking)
        assert correlation(drawn(one), drawn(rows)) == pytest.approx(complete, abs=0.03)
    # If the draws are independent, so are the metrics, although the scores are similar.
    assert abs(correlation(drawn(one), drawn(other, seed=1))) < 0.1


# ------------------------------------------------------------------- draws of training patients


def embedded(k, split, seed=0):
    """Embeddings and their index: patients with one or two volumes of one to three slices."""
    rng, rows = np.random.default_rng(seed), []
    sides = ["train", "val", "test", "train"] if split == "official" else [0, 1, 2, 0]
    for patient in range(13 * k):
        label, side = patient % k, sides[patient // k % 4]  # few patients: some draws lack a class
        for volume in range(rng.integers(1, 3)):
            row = f"v{patient:02d}-{volume}", f"p{patient:02d}", f"class {label}", side
            rows += [row] * rng.integers(1, 4)
    columns = ["sample_id", "patient_id", "label", "split" if split == "official" else "fold"]
    index = pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=seed)
    y = index["label"].str.removeprefix("class ").astype(int).to_numpy()
    x = rng.normal(size=(len(y), 5)) + 0.8 * np.eye(5)[y]
    return x.astype(np.float32), index.reset_index(drop=True)


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one")
@pytest.mark.parametrize(("k", "split"), [(2, "official"), (2, "folds"), (3, "folds")])
def test_redraws_are_the_metrics_of_scikit_learn_on_what_the_redrawn_heads_predict(k, split):
    x, index = embedded(k, split)
    side = index["split" if split == "official" else "fold"].to_numpy()
    parts = rotations(side, index["patient_id"], index["label"])
    made = redraws.redrawn_metrics(x, index, parts, names(k), 25, device="cpu")
    assert list(made.columns) == list(metrics.applicable(k, ordered=True))
    assert len(made) == 25

    patients, owner = np.unique(index["patient_id"], return_inverse=True)
    counts = draws.counts(patients, 0, 25, draws.TRAINING)[:, owner].astype(int)
    y = index["label"].map(names(k).index).to_numpy()
    samples = index["sample_id"].to_numpy()
    predicted = heads.redrawn(x, y, samples, parts, counts, n_classes=k, device="cpu")
    lacking = 0
    for i, weights in enumerate(counts):
        drawn_sides = [part & (weights > 0) for r in parts for part in (r.train, r.val)]
        if any(len(set(y[drawn])) < k for drawn in drawn_sides):
            lacking += 1
            assert made.iloc[i].isna().all()
            continue
        of_folds, sizes = [], []
        for part, proba in zip(parts, predicted, strict=True):
            rows = pd.DataFrame(proba[i]).assign(sample=samples[part.test], y=y[part.test])
            volumes = rows.groupby("sample").mean()
            truth, scores = volumes["y"].astype(int).to_numpy(), volumes[range(k)].to_numpy()
            values = by_sklearn(truth, scores)
            if k > 2:
                called = scores.argmax(1)
                quadratic = {"labels": range(k), "weights": "quadratic"}
                values["kappa_quadratic"] = sk.cohen_kappa_score(truth, called, **quadratic)
            of_folds.append(values)
            sizes.append(index["patient_id"][part.test].nunique())
        assert split == "official" or len(set(sizes)) > 1, "all folds weigh the same"
        for name in made:
            expected = np.average([values[name] for values in of_folds], weights=sizes)
            # Redrawn heads predict in float32, so their probabilities do not sum to exactly 1.
            tolerance = 1e-7 if name in metrics.LOSSES else 1e-12
            assert made[name][i] == pytest.approx(expected, rel=0, abs=tolerance), name
    assert 0 < lacking < 15
