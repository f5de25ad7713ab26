"""medlib.core.heads: heads reach their optimum, and are chosen without the test part."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from scipy.special import log_softmax
from scored import area
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from medlib.core import heads, metrics, settings, splits
from medlib.core.fast import logistic
from medlib.stats import prediction

CLASSES = ["a", "b", "c"]
SIDES = ("train", "val", "test")


def cloud(n, d, k, seed=0, spread=1.5):
    """Standardised Gaussian clouds, overlapping, one a class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(0, spread, (n, d)) + rng.normal(0, 1, (k, d))[y]
    return (x - x.mean(0)) / x.std(0), y


def problem(k=3, per_side=30, d=4, seed=0, spread=1.0):
    """Embeddings, index and the one rotation of an official split; one row per patient."""
    x, y = cloud(3 * per_side, d, k, seed, spread)
    index = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(y))]})
    index["patient_id"] = index["sample_id"]
    index["label"] = [CLASSES[label] for label in y]
    index["split"] = np.repeat(SIDES, per_side)
    return x.astype(np.float32), index, rotated(index)


def rotated(index, label_fraction=1.0, seed=0):
    side = index["split"] if "split" in index else index["fold"]
    return splits.rotations(side, index["patient_id"], index["label"], label_fraction, seed)


def sweep(x, index, classes, runs, device="cpu"):
    """Position, predictions and history as tables, and seconds of (head, label fraction, seed)."""
    parts = [rotated(index, fraction, seed) for _, fraction, seed in runs]
    asked = [(head, seed, part) for (head, _, seed), part in zip(runs, parts, strict=True)]
    labelled = x, metrics.codes(index["label"], classes), index["sample_id"]
    found = heads.sweep(*labelled, asked, n_classes=len(classes), device=device)
    for position, predicted, history, seconds in found:
        tested = [of_rotation.test for of_rotation in predicted]
        frame = prediction.out_of_fold(index, parts[position], tested, classes)
        yield position, frame, pd.DataFrame(history), seconds


def swept(head, x, index, classes=CLASSES, label_fraction=1.0, seed=0):
    """Predictions and history of one run."""
    [(_, predictions, history, _)] = sweep(x, index, classes, [(head, label_fraction, seed)])
    return predictions, history


def fitted(fit, x, y, k, problems):
    """Embeddings (m, d) -> probabilities (problems, m, K) of a head's models."""
    predict = fit(torch.tensor(x, dtype=torch.float32), torch.tensor(y), k, problems)
    return lambda z: predict(torch.tensor(z, dtype=torch.float32), range(len(problems)))


def probabilities(frame, classes=CLASSES):
    return frame[[f"prob_{name}" for name in classes]].to_numpy()


def by_volume(samples, proba):
    """Mean probabilities (s, K) of the slices (n, K) of each volume, in order of appearance."""
    return pd.DataFrame(proba).groupby(np.asarray(samples), sort=False).mean().to_numpy()


def loss(y, proba, counts=None):
    """Log-loss by scikit-learn, each sample weighted by its count."""
    proba = proba / proba.sum(1, keepdims=True)
    return log_loss(y, proba, sample_weight=counts, labels=range(proba.shape[1]))


def choice(aurocs, losses, labels):
    """The candidate that the rule chooses, by a plain loop; scores (rotations, candidates)."""
    steps = []
    for y in labels:
        sizes = [int((y == c).sum()) for c in range(max(y) + 1)]
        pairs = [n * (len(y) - n) for n in (sizes[1:] if len(sizes) == 2 else sizes)]
        steps.append(sum(1 / number for number in pairs) / len(pairs))
    auroc, lost = np.mean(aurocs, axis=0), np.mean(losses, axis=0)
    best = None
    for place in range(len(auroc)):
        tied = auroc.max() - auroc[place] < np.mean(steps) * (1 - 1e-9)
        if tied and (best is None or lost[place] < lost[best]):
            best = place
    return best


def optimum(x, y, c, k):
    """Weights, bias and value of the linear head's objective at its minimum, in float64.

    Mean cross-entropy + |W|²/(2C), without a penalty on the bias. With two classes W is one vector,
    that of the second class. With more it has a row for each class.
    """
    n, d = x.shape
    outputs = 1 if k == 2 else k
    hot = np.eye(k)[y]

    def unpack(flat):
        w, b = flat[: outputs * d].reshape(outputs, d), flat[outputs * d :]
        return (np.vstack([np.zeros(d), w]), np.append(0.0, b)) if k == 2 else (w, b)

    def objective(flat):
        w, b = unpack(flat)
        log_p = log_softmax(x @ w.T + b, axis=1)
        slope = (np.exp(log_p) - hot) / n
        gradient = slope.T @ x + w / c
        if k == 2:
            gradient, slope = gradient[1:], slope[:, 1:]
        value = -(log_p * hot).sum(1).mean() + (w**2).sum() / (2 * c)
        return value, np.append(gradient.ravel(), slope.sum(0))

    start = np.zeros(outputs * (d + 1))
    found = scipy.optimize.minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9},
    )
    return *unpack(found.x), found.fun


# -------------------------------------------------------------------------------------- linear

EVERY_C = np.logspace(-4, 6, 11)


def embedded(n, d, k, seed=0, scale=3.0):
    """Standardised, correlated features of eigenvalues 1/rank, and labels that overlap."""
    rng = np.random.default_rng(seed)
    root = 1 / np.sqrt(np.arange(1, d + 1))
    u = rng.normal(size=(n, d))
    x = (u * root) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    logits = u @ (rng.normal(size=(d, k)) * np.sqrt(root)[:, None])
    y = (scale * logits / logits.std() + rng.gumbel(size=(n, k))).argmax(1)
    y[:k] = np.arange(k)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y


def separable(n, d, k):
    x, y = cloud(n, d, k, seed=3, spread=0.2)
    return x.astype(np.float32), y


def constant_feature(n, d, k):
    x, y = embedded(n, d, k)
    x[:, 2], x[:, 4] = 0, x[:, 3]  # and one twice
    return x, y


def single_sample_of_a_class(n, d, k):
    x, y = embedded(n, d, k)
    y[y == 1] = 0
    y[7] = 1
    return x, y


def barely_separable(n, d, k):
    """Labels without a signal, in just enough dimensions: the slowest of all to converge."""
    x, _ = cloud(n, d, k)
    y = np.random.default_rng(1).permutation(np.arange(n) % k)
    return x.astype(np.float32), y


def solved(x, y, c):
    return logistic.logistic_regression(torch.tensor(x), torch.tensor(y), c)


def objective(x, y, w, b, c, counts=None):
    """Mean cross-entropy + |W|²/(2C), in float64; one row of weights is the second class's.

    ``counts`` weigh the images in the mean.
    """
    logits = x.astype(np.float64) @ np.asarray(w, np.float64).T + np.asarray(b)
    if len(w) == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = -log_softmax(logits, axis=1)[np.arange(len(y)), y]
    mean = np.average(losses, weights=counts)
    return mean + (np.asarray(w, np.float64) ** 2).sum() / (2 * c)


def peer(x, y, c, counts=None):
    """scikit-learn's optimum, by its most exact solver with a tolerance of 1e-10."""
    n = len(y) if counts is None else counts.sum()
    solver = LogisticRegression(C=c / n, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    with warnings.catch_warnings():
        # Where an objective is 1e-5, a gradient of 1e-10 may be beyond rounding.
        warnings.simplefilter("ignore")
        return solver.fit(x.astype(np.float64), y, sample_weight=counts)


@pytest.mark.parametrize("k", [2, 7])
@pytest.mark.parametrize(
    ("draw", "n", "d"),
    [
        (embedded, 300, 24),
        (embedded, 40, 60),
        (embedded, 30, 30),
        (separable, 210, 10),
        (barely_separable, 90, 44),
        (constant_feature, 250, 12),
        (single_sample_of_a_class, 200, 12),
    ],
)
def test_every_regularisation_reaches_the_optimum_of_scikit_learn(draw, n, d, k):
    x, y = draw(n, d, k)
    fresh, _ = embedded(2000, d, k, seed=9)
    weights, bias = solved(x, y, EVERY_C)
    assert weights.shape == (11, 1 if k == 2 else k, d) and bias.shape == weights.shape[:2]
    differ = 0
    for w, b, c in zip(weights.numpy(), bias.numpy(), EVERY_C, strict=True):
        model = peer(x, y, c)
        theirs = objective(x, y, model.coef_, model.intercept_, c)
        assert objective(x, y, w, b, c) <= theirs * (1 + 1e-6), c
        logits = fresh @ w.T + b
        mine = (logits[:, 0] > 0) if k == 2 else logits.argmax(1)
        differ += (mine != model.predict(fresh)).sum()
    assert differ <= 0.001 * 11 * len(fresh)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "d", "k"), [(300, 40, 2), (300, 40, 5), (50, 80, 3)])
def test_a_cuda_device_finds_the_optimum_of_the_cpu(cuda, n, d, k):
    x, y = embedded(n, d, k)
    here = solved(x, y, EVERY_C)
    there = logistic.logistic_regression(
        torch.tensor(x, device=cuda), torch.tensor(y, device=cuda), EVERY_C
    )
    assert there[0].device.type == "cuda"
    for i, c in enumerate(EVERY_C):
        values = [objective(x, y, w[i].cpu(), b[i].cpu(), c) for w, b in (here, there)]
        assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("head", heads.HEADS)
def test_every_head_predicts_on_a_cuda_device_as_on_a_cpu(cuda, head):
    x, index, _ = problem(spread=2.0)
    run = (head, 1.0, 0)
    here, there = (next(sweep(x, index, CLASSES, [run], device))[1] for device in ("cpu", cuda))
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_linear_head_reaches_the_optimum_of_its_objective(k, c, dtype):
    x, y = cloud(140, 6, k, seed=k)
    fresh, _ = cloud(50, 6, k, seed=99)
    w, b, _ = optimum(x, y, c, k)
    [found] = fitted(heads.fit_linear, x.astype(dtype), y, k, [(c, 0)])(fresh)
    assert found.shape == (50, k) and found.dtype == np.float64
    np.testing.assert_allclose(found, np.exp(log_softmax(fresh @ w.T + b, axis=1)), atol=1e-3)


@pytest.mark.parametrize("k", [2, 3])
def test_a_value_of_c_means_the_same_at_every_number_of_training_images(k):
    x, y = cloud(60, 5, k, seed=1)
    once, weaker = fitted(heads.fit_linear, x, y, k, [(0.3, 0), (0.9, 0)])(x)
    [thrice] = fitted(heads.fit_linear, np.tile(x, (3, 1)), np.tile(y, 3), k, [(0.3, 0)])(x)
    np.testing.assert_allclose(once, thrice, atol=1e-3)
    assert np.abs(once - weaker).max() > 0.02  # what C would mean for a sum of losses


@pytest.mark.parametrize("k", [2, 7])
def test_a_regularisation_does_not_depend_on_the_others_in_its_batch(k):
    x, y = embedded(300, 24, k)
    fresh, _ = embedded(200, 24, k, seed=9)
    together = fitted(heads.fit_linear, x, y, k, [(c, 0) for c in EVERY_C])(fresh)
    for i in (0, 4, 10):
        [alone] = fitted(heads.fit_linear, x, y, k, [(EVERY_C[i], 0)])(fresh)
        # Both stop within 1e-6 of the same objective: probabilities agree to about its root.
        np.testing.assert_allclose(together[i], alone, atol=1e-3)


def test_a_regression_that_does_not_converge_is_named(monkeypatch):
    x, y = embedded(200, 20, 3)
    monkeypatch.setattr(logistic, "ITERATIONS", 4)
    with pytest.warns(RuntimeWarning, match=r"not converged for C = 1000 \(gap [^,]*\);"):
        solved(x, y, [0.001, 1000.0])


def drawn(y, n, seed=0):
    """Poisson counts (n, images) in which every class of ``y`` is drawn."""
    counts = np.random.default_rng(seed).poisson(1, (n, len(y)))
    for label in np.unique(y):
        lacking = counts[:, y == label].sum(1) == 0
        counts[lacking, np.flatnonzero(y == label)[0]] = 1
    return counts


def redone(x, y, c, counts):
    weights, bias = logistic.resampled(*map(torch.tensor, (x, y)), c, torch.tensor(counts))
    return weights.numpy(), bias.numpy()


@pytest.mark.parametrize(
    ("draw", "n", "d", "k"),
    [
        *[(embedded, *size, k) for size in ((300, 24), (40, 60), (30, 30)) for k in (2, 7)],
        *[(separable, 210, 10, k) for k in (2, 7)],
        *[(constant_feature, 250, 12, k) for k in (2, 7)],
        *[(single_sample_of_a_class, 200, 12, k) for k in (2, 7)],
        *[(barely_separable, 90, 44, k) for k in (2, 7)],
    ],
)
def test_every_resample_reaches_its_own_optimum_by_scikit_learn(draw, n, d, k):
    x, y = draw(n, d, k)
    counts, candidates = drawn(y, 3), heads.HEADS["linear"].candidates
    assert (counts == 0).mean() > 0.2 and counts.max() > 3
    weights, bias = redone(x, y, candidates, counts)
    assert weights.shape == (3, 7, 1 if k == 2 else k, d) and bias.shape == weights.shape[:3]
    for i, own in enumerate(counts):
        for j, c in enumerate(candidates):
            model = peer(x, y, c, own)
            theirs = objective(x, y, model.coef_, model.intercept_, c, own)
            mine = objective(x, y, weights[i, j], bias[i, j], c, own)
            # The iteration stops by an estimate of the gap. The true gap is up to 6 times as large.
            assert mine <= theirs * (1 + 10 * logistic.ROUGH), (i, c)


@pytest.mark.parametrize("k", [2, 3])
def test_an_image_that_is_not_drawn_is_one_that_is_not_there(k):
    x, y = embedded(120, 8, k)
    [counts] = drawn(y, 1)
    counts[x[:, 0] > 1] = 0
    kept = np.repeat(np.arange(120), counts)
    fresh, _ = embedded(50, 8, k, seed=9)
    without = fitted(heads.fit_linear, x[kept], y[kept], k, [(0.1, 0), (10.0, 0)])(fresh)
    x[counts == 0] *= 5  # what is not drawn may be anything
    of_counts = torch.tensor(np.stack([np.ones_like(counts), counts]))
    predict = heads.fit_linear(
        torch.tensor(x), torch.tensor(y), k, [(0.1, 0), (10.0, 0)], counts=of_counts
    )
    found = predict(torch.tensor(fresh), [2, 3])  # of the second resample
    np.testing.assert_allclose(found, without, atol=0.005)
    assert np.abs(predict(torch.tensor(fresh), [0, 1]) - without).max() > 0.05


def test_resamples_may_be_solved_a_few_at_a_time(monkeypatch):
    x, y = embedded(100, 6, 3)
    counts, found = drawn(y, 5), []
    # All resamples at once, one, and two: each has 2 problems, 3 classes and 100 images.
    for at_once in (logistic.AT_ONCE, 1, 2 * 2 * 3 * 100):
        monkeypatch.setattr(logistic, "AT_ONCE", at_once)
        weights, bias = redone(x, y, (0.1, 10.0), counts)
        found.append(log_softmax(x @ weights.swapaxes(2, 3) + bias[:, :, None], axis=3))
    assert found[0].shape == (5, 2, 100, 3)
    for parts in found[1:]:
        np.testing.assert_allclose(np.exp(parts), np.exp(found[0]), atol=0.005)


def test_a_single_class_is_refused():
    x, _ = embedded(20, 4, 2)
    with pytest.raises(ValueError, match="at least two classes"):
        fitted(heads.fit_linear, x, np.ones(20, int), 2, [(1.0, 0)])


# ----------------------------------------------------------------------------------------- knn


def test_nearest_neighbours_vote_by_the_angle_between_embeddings():
    # By direction the query's neighbours are 0°, 10°, 60°, 90°; by distance the last is nearest.
    angle = np.deg2rad([0, 10, 60, 90])
    length = np.array([50.0, 30.0, 20.0, 0.1])
    x = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    y = np.array([0, 0, 2, 1])
    query = np.array([[0.1, 0.001]])
    found = fitted(heads.fit_knn, x, y, 3, [(k, 0) for k in (1, 2, 3, 4)])(query)
    expected = [[1, 0, 0], [1, 0, 0], [2 / 3, 0, 1 / 3], [0.5, 0.25, 0.25]]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize("block", [1, 5_000, 16_000_000])
def test_one_blocked_search_votes_as_scikit_learn_does_for_every_k(monkeypatch, block):
    monkeypatch.setattr(heads, "BLOCK", block)
    x, y = embedded(150, 12, 4)
    fresh, _ = embedded(40, 12, 4, seed=5)
    found = fitted(heads.fit_knn, x, y, 4, [(k, 0) for k in heads.HEADS["knn"].candidates])(fresh)
    for shares, k in zip(found, heads.HEADS["knn"].candidates, strict=True):
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, y)
        np.testing.assert_allclose(shares, model.predict_proba(fresh), atol=1e-12)


def test_more_neighbours_than_training_images_are_all_of_them():
    x, y = cloud(9, 3, 3)
    [found] = fitted(heads.fit_knn, x[:8], y[:8], 3, [(100, 0)])(x)
    np.testing.assert_allclose(found, np.tile([3 / 8, 3 / 8, 2 / 8], (9, 1)))


# ----------------------------------------------------------------------------------------- mlp


def test_the_mlp_separates_what_no_line_can():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.5, 1.5, (600, 2)).astype(np.float32)
    x = x[np.abs(x).min(1) > 0.15]
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    train, fresh = slice(0, 300), slice(300, None)
    [mlp] = fitted(heads.fit_mlp, x[train], y[train], 2, [(3e-3, 0)])(x[fresh])
    [line] = fitted(heads.fit_linear, x[train], y[train], 2, [(1.0, 0)])(x[fresh])
    assert roc_auc_score(y[fresh], mlp[:, 1]) > 0.97
    assert roc_auc_score(y[fresh], line[:, 1]) < 0.7


def plain_mlp(x, y, k, rate, seed):
    """Train one MLP after the other with PyTorch's own layers and optimiser."""
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], 256), torch.nn.ReLU(), torch.nn.Linear(256, k)
        )
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        for _ in range(30):
            for rows in torch.randperm(len(y)).split(64):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimiser.step()
        return model(inputs).softmax(1).detach().numpy()


def test_every_mlp_of_a_batch_is_the_one_that_a_plain_loop_trains():
    x, y = cloud(150, 5, 3)
    problems = [(rate, seed) for seed in (0, 3) for rate in (1e-4, 3e-3)]
    found = fitted(heads.fit_mlp, x, y, 3, problems)(x)
    for proba, (rate, seed) in zip(found, problems, strict=True):
        np.testing.assert_allclose(proba, plain_mlp(x, y, 3, rate, seed), atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 0.05 and np.abs(found[1] - found[3]).max() > 0.02


def test_the_seed_decides_every_bit_of_the_mlp_and_leaves_the_global_generator_alone():
    x, y = cloud(80, 5, 3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, other = fitted(heads.fit_mlp, x, y, 3, [(1e-3, 4), (1e-3, 5)])(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, _ = fitted(heads.fit_mlp, x, y, 3, [(1e-3, 4), (1e-3, 5)])(x)
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 1e-3
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-12)


# ----------------------------------------------------------------------------------- all heads


@pytest.mark.parametrize("head", heads.HEADS)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_class_that_is_not_in_the_training_part_keeps_its_column(head, missing):
    x, y = cloud(90, 4, 3, spread=0.5)
    seen = y != missing
    problems = [(heads.HEADS[head].candidates[1], 0)]
    [proba] = fitted(heads.HEADS[head].fit, x[seen], y[seen], 3, problems)(x)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    assert roc_auc_score(y[seen] == y[seen].max(), proba[seen, y[seen].max()]) > 0.8
    if head != "mlp":  # its output for a class without labels is not exactly zero
        assert (proba[:, missing] == 0).all()


@pytest.mark.parametrize("head", heads.HEADS)
def test_a_feature_that_is_constant_changes_nothing_but_is_no_error(head):
    x, index, _ = problem()
    constant = np.hstack([x, np.full((len(x), 1), 7.5, np.float32)])
    found, history = swept(head, constant, index, CLASSES)
    assert np.isfinite(probabilities(found)).all()
    assert history["val_auroc"].max() > 0.7
    if head != "mlp":  # one more input draws other initial weights
        expected, _ = swept(head, x, index, CLASSES)
        np.testing.assert_allclose(probabilities(found), probabilities(expected), atol=1e-4)


def test_embeddings_are_standardised_by_the_training_part_alone():
    x, index, rotations = problem()
    x = x * [1, 100, 1e-2, 5] + [0, 30, 1, -8]
    x[rotations[0].test] += 3.0  # only in the test part: the scaler must not see it
    found, history = swept("linear", x, index, CLASSES)
    c = history.loc[history["chosen"], "value"].item()
    y = index["label"].map(CLASSES.index).to_numpy()
    train, test = rotations[0].train, rotations[0].test
    scaler = StandardScaler().fit(x[train])
    model = LogisticRegression(C=c / train.sum(), max_iter=1000).fit(
        scaler.transform(x[train]), y[train]
    )
    expected = model.predict_proba(scaler.transform(x[test]))
    np.testing.assert_allclose(probabilities(found), expected, atol=1e-3)


@pytest.mark.parametrize("head", heads.HEADS)
def test_test_labels_change_no_prediction_and_no_choice(head):
    x, index, rotations = problem()
    first, history = swept(head, x, index, CLASSES)
    test = rotations[0].test
    mixed = index.copy()
    mixed.loc[test, "label"] = np.random.default_rng(0).permutation(index.loc[test, "label"])
    assert (mixed["label"] != index["label"]).sum() > 5
    second, other_history = swept(head, x, mixed, CLASSES)
    np.testing.assert_array_equal(probabilities(first), probabilities(second))
    assert second["y_true"].tolist() == mixed.loc[test, "label"].tolist()
    pd.testing.assert_frame_equal(history, other_history)


@pytest.mark.parametrize("head", heads.HEADS)
def test_test_embeddings_change_their_own_predictions_alone(head):
    x, index, rotations = problem()
    first, history = swept(head, x, index, CLASSES)
    test = np.flatnonzero(rotations[0].test)
    order = np.random.default_rng(1).permutation(len(test))
    moved = x.copy()
    moved[test] = x[test[order]]
    second, other_history = swept(head, moved, index, CLASSES)
    np.testing.assert_allclose(probabilities(second), probabilities(first)[order], atol=1e-6)
    pd.testing.assert_frame_equal(history, other_history)


def fake(fit, values):
    return heads.Head(lambda *given: partial(fit(*given)), None, "strength", values)


def test_the_setting_with_the_best_validation_auroc_predicts_the_test_part(monkeypatch):
    # In the validation part, one feature is the label. The candidate sets how well it is predicted.
    y = np.tile([0, 1], 30)
    index = pd.DataFrame({"sample_id": np.arange(60).astype(str), "label": np.array(CLASSES)[y]})
    index["patient_id"], index["split"] = index["sample_id"], np.repeat(SIDES, 20)
    noise = np.random.default_rng(0).normal(size=60)
    seen = {1.0: 0.0, 2.0: 0.5, 3.0: 4.0, 4.0: 1.0}

    def fit(x, y, n_classes, problems):
        def predict(z, chosen):
            z, found = z.double().numpy(), []
            for value, _ in (problems[i] for i in chosen):
                score = 1 / (1 + np.exp(-z[:, 1] - seen[value] * z[:, 0]))
                # What a row lacks of 1 names the setting.
                found.append(np.stack([1 - score, score], axis=1) * (1 - value / 100))
            return np.stack(found)

        return predict

    x = np.stack([2.0 * y - 1, noise], axis=1)
    monkeypatch.setitem(heads.HEADS, "fake", fake(fit, tuple(seen)))
    found, history = swept("fake", x, index, CLASSES[:2])
    scaled = StandardScaler().fit(x[:20]).transform(x)
    expected = [
        roc_auc_score(y[20:40], scaled[20:40, 1] + strength * scaled[20:40, 0])
        for strength in seen.values()
    ]
    assert np.argmax(expected) == 2 and len(set(expected)) == 4
    assert np.sort(expected)[-2] < expected[2] - 1 / 100  # 10 × 10 pairs: no tie
    assert history["val_auroc"].tolist() == pytest.approx(expected, abs=1e-12)
    assert history["chosen"].tolist() == [False, False, True, False]
    assert history["value"].tolist() == list(seen)
    assert set(history["hyperparameter"]) == {"strength"} and set(history["head"]) == {"fake"}
    assert found["sample_id"].tolist() == index["sample_id"][40:].tolist()
    np.testing.assert_allclose(probabilities(found, CLASSES[:2]).sum(1), 1 - 3 / 100)


def test_on_a_tie_the_lower_loss_is_chosen_and_of_equal_ones_the_first(monkeypatch):
    x, index, _ = problem(k=2)
    sure = {1.0: -0.4, 2.0: 0.1, 3.0: 0.3, 4.0: 0.3, 5.0: 0.2}
    x[:, 0] = np.where(index["label"] == "b", 1, -1)  # 15 of each in training: mean 0, deviation 1

    def fit(x, y, n_classes, problems):
        strength = np.array([sure[value] for value, _ in problems])

        def predict(z, chosen):
            score = strength[list(chosen), None] * z[:, 0].numpy()
            return np.stack([0.5 - score, 0.5 + score], axis=2)

        return predict

    monkeypatch.setitem(heads.HEADS, "fake", fake(fit, tuple(sure)))
    _, history = swept("fake", x, index, CLASSES[:2])
    assert history["val_auroc"].tolist() == [0, 1, 1, 1, 1]
    expected = -np.log([0.1, 0.6, 0.8, 0.8, 0.7])
    assert history["val_loss"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert history["chosen"].tolist() == [False, False, True, False, False]


def test_of_k_that_predict_alike_the_largest_is_chosen():
    x, index, _ = problem(spread=0.01)
    _, history = swept("knn", x, index, CLASSES)
    # With 10 training images per class, k = 20 takes 10 right neighbours and 10 of another class.
    assert (history["val_auroc"] == 1).tolist() == [*[False] * 3, *[True] * 4]
    expected = [np.log(3), np.log(3), np.log(2), 0, 0, 0, 0]
    assert history["val_loss"].tolist() == pytest.approx(expected, abs=1e-12)
    assert history.loc[history["chosen"], "value"].item() == 10


def test_of_penalties_within_one_pair_of_the_best_the_loss_chooses():
    x, index, rotations = problem(spread=1.0, seed=17)
    _, history = swept("linear", x, index, CLASSES)
    y = index["label"].map(CLASSES.index).to_numpy()
    train, val = rotations[0].train, rotations[0].val
    scaled = StandardScaler().fit(x[train]).transform(x)
    models = [peer(scaled[train], y[train], c) for c in heads.HEADS["linear"].candidates]
    vals = [model.predict_proba(scaled[val]) for model in models]
    aurocs, losses = ([score(y[val], proba) for proba in vals] for score in (area, loss))
    assert history["val_auroc"].tolist() == pytest.approx(aurocs, abs=1e-9)
    assert history["val_loss"].tolist() == pytest.approx(losses, abs=1e-3)
    # Two penalties tie, and the weaker one has the lower loss. Even lower losses do not tie.
    assert (np.max(aurocs) - aurocs < 1 / (10 * 20)).tolist() == [i in (3, 4) for i in range(7)]
    assert losses[3] > losses[4] > losses[5] > losses[6]
    assert history["chosen"].tolist() == [i == 4 for i in range(7)]


def test_every_setting_is_tried_in_every_fold_and_every_sample_is_predicted_once():
    x, index, _ = problem(per_side=30)
    index = index.drop(columns="split").assign(fold=np.arange(90) // 3 % 3)
    found, history = swept("knn", x, index, CLASSES)
    assert history.groupby("fold")["value"].apply(list).to_dict() == {
        fold: list(heads.HEADS["knn"].candidates) for fold in range(3)
    }
    assert history.groupby("fold")["chosen"].sum().tolist() == [1, 1, 1]
    assert history.loc[history["chosen"], "value"].nunique() == 1
    assert sorted(found["sample_id"]) == sorted(index["sample_id"])
    truth = index.set_index("sample_id")
    for column, theirs in (("y_true", "label"), ("fold", "fold"), ("patient_id", "patient_id")):
        assert found[column].tolist() == truth.loc[found["sample_id"], theirs].tolist()


def test_one_setting_is_chosen_for_all_folds_by_their_mean():
    x, index, _ = problem(per_side=30, spread=2.5)
    index = index.drop(columns="split").assign(fold=np.arange(90) // 3 % 3)
    y, candidates = index["label"].map(CLASSES.index).to_numpy(), heads.HEADS["knn"].candidates
    parts, models = rotated(index), []
    for part in parts:
        scaled = StandardScaler().fit(x[part.train]).transform(x)
        for k in candidates:
            model = KNeighborsClassifier(min(k, 30), metric="cosine", algorithm="brute")
            model.fit(scaled[part.train], y[part.train])
            models.append([model.predict_proba(scaled[side]) for side in (part.val, part.test)])
    models = [models[start : start + 7] for start in (0, 7, 14)]
    labels = [y[part.val] for part in parts]
    aurocs, losses = (
        [[score(own, val) for val, _ in of] for own, of in zip(labels, models, strict=True)]
        for score in (area, loss)
    )
    best = choice(aurocs, losses, labels)
    alone = [choice([a], [b], [own]) for a, b, own in zip(aurocs, losses, labels, strict=True)]
    assert set(alone) != {best}  # a fold by itself would choose another
    found, history = swept("knn", x, index, CLASSES)
    assert history.loc[history["chosen"], "value"].tolist() == [candidates[best]] * 3
    for column, expected in (("val_auroc", aurocs), ("val_loss", losses)):
        np.testing.assert_allclose(history[column], np.ravel(expected), rtol=0, atol=1e-12)
    expected = np.concatenate([of[best][1] for of in models])
    np.testing.assert_allclose(probabilities(found), expected, atol=1e-12)


def test_the_chosen_model_predicts_the_validation_rows_slice_by_slice():
    x, index, _ = problem(per_side=30, spread=2.0)
    index = index.drop(columns="split").assign(fold=np.arange(90) // 6 % 3)
    index["sample_id"] = index["patient_id"] = (np.arange(90) // 6 * 3 + np.arange(90) % 3) % 45
    y, parts = index["label"].map(CLASSES.index).to_numpy(), rotated(index)
    asked = [("linear", 0, parts)]
    [(_, predicted, history, _)] = heads.sweep(
        x, y, index["sample_id"], asked, n_classes=3, device="cpu"
    )
    c = next(row["value"] for row in history if row["chosen"])
    assert len(predicted) == 3
    for part, own in zip(parts, predicted, strict=True):
        assert own.val.shape == (30, 3) and own.test.shape == (30, 3)
        scaled = StandardScaler().fit(x[part.train]).transform(x)
        model = peer(scaled[part.train], y[part.train], c)
        for side, proba in ((part.val, own.val), (part.test, own.test)):
            np.testing.assert_allclose(proba, model.predict_proba(scaled[side]), atol=1e-3)


def test_a_volume_is_predicted_by_the_mean_over_its_slices():
    # Slices in two directions; by cosine each has one class as its nearest neighbour.
    x = np.array(
        [[1, 0], [0, 1], [1, 0], [0, 1]]  # train: a, b, a, b
        + [[1, 0.1], [0.1, 1]]  # val: a, b
        + [[1, 0.2], [1, 0.3], [0.2, 1]]  # test: v, three slices, two of them like a
        + [[0.2, 1]]
    )  # test: w, one slice, like b
    samples = ["t1", "t2", "t3", "t4", "v1", "v2", "v", "v", "v", "w"]
    index = pd.DataFrame({"sample_id": samples, "patient_id": samples})
    index["label"] = [*"abab", *"ab", *"bbb", "a"]
    index["split"] = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
    found, history = swept("knn", x, index, ["a", "b"])
    assert history.loc[history["chosen"], "value"].item() == 1
    assert found["sample_id"].tolist() == ["v", "w"]
    assert found["y_true"].tolist() == ["b", "a"]
    np.testing.assert_allclose(probabilities(found, ["a", "b"]), [[2 / 3, 1 / 3], [0, 1]])


def test_settings_are_judged_by_volume_and_not_by_slice():
    x, index, rotations = problem(k=2, per_side=24, spread=2.0)
    index = index.assign(sample_id=(np.arange(72) // 4 * 2 + np.arange(72) % 2).astype(str))
    index["patient_id"] = index["sample_id"]
    found, history = swept("linear", x, index, CLASSES[:2])
    assert len(found) == 12  # two slices each
    y = index["label"].map(CLASSES.index).to_numpy()
    train, val = rotations[0].train, rotations[0].val
    scaler = StandardScaler().fit(x[train])
    model = peer(scaler.transform(x[train]), y[train], 1.0)
    by_slice, samples = model.predict_proba(scaler.transform(x[val])), index.loc[val, "sample_id"]
    labels = pd.Series(y[val]).groupby(samples.to_numpy(), sort=False).first().to_numpy()
    row = history[history["value"] == 1.0]
    for score, column in ((area, "val_auroc"), (loss, "val_loss")):
        expected = score(labels, by_volume(samples, by_slice))
        assert expected != pytest.approx(score(y[val], by_slice), abs=0.001)
        assert row[column].item() == pytest.approx(expected, abs=1e-4)


def test_runs_that_share_their_rows_are_what_each_is_alone():
    x, index, _ = problem(per_side=30, d=6)
    runs = [
        (head, fraction, seed)
        for head in heads.HEADS
        for fraction in (1.0, 0.5)
        for seed in ((0, 1) if head == "mlp" or fraction < 1 else (0,))
    ]
    results = list(sweep(x, index, CLASSES, runs))
    assert [position for position, *_ in results] == list(range(10)) and len(runs) == 10
    assert all(seconds > 0 for *_, seconds in results)
    for position, predictions, history, _ in results:
        head, *drawn = runs[position]
        alone, own_history = swept(head, x, index, CLASSES, *drawn)
        # Sums in another order may differ in the last digits, and by more after 30 epochs.
        np.testing.assert_allclose(probabilities(predictions), probabilities(alone), atol=1e-3)
        pd.testing.assert_frame_equal(history, own_history, atol=0.01)
    by_run = {runs[position]: probabilities(found) for position, found, *_ in results}
    assert np.abs(by_run["knn", 0.5, 0] - by_run["knn", 0.5, 1]).max() > 0.1


def test_few_labels_are_those_of_the_manifest_in_training_and_in_validation():
    x, index, _ = problem(per_side=30)
    found, history = swept("knn", x, index, CLASSES, label_fraction=0.5, seed=3)
    [part] = rotated(index, 0.5, seed=3)
    assert part.train.sum() == 15 and len(found) == 30
    scaler = StandardScaler().fit(x[part.train])
    y = index["label"].map(CLASSES.index).to_numpy()
    for row in history.itertuples():
        k = min(int(row.value), 15)
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        model.fit(scaler.transform(x[part.train]), y[part.train])
        proba = model.predict_proba(scaler.transform(x[part.val]))
        assert row.val_auroc == pytest.approx(area(y[part.val], proba), abs=1e-12), row.value
        assert row.val_loss == pytest.approx(loss(y[part.val], proba), abs=1e-12), row.value


def test_runs_come_one_after_the_other():
    x, index, _ = problem()
    runs = [("knn", 1.0, 0), ("linear", 1.0, 0)]
    sweeping = sweep(x, index, CLASSES, runs)
    assert set(next(sweeping)[2]["head"]) == {"knn"}  # to be saved before the next is begun
    assert [set(history["head"]) for _, _, history, _ in sweeping] == [{"linear"}]


def test_predictions_and_history_have_the_columns_that_a_run_saves():
    x, index, _ = problem()
    found, history = swept("linear", x, index, CLASSES)
    assert list(found.columns) == [
        "sample_id",
        "patient_id",
        "split",
        "y_true",
        *prediction.probability_columns(CLASSES),
    ]
    assert list(history.columns) == [
        "head",
        "hyperparameter",
        "value",
        "fold",
        "val_auroc",
        "val_loss",
        "chosen",
    ]


def test_the_rows_of_an_index_may_have_any_labels():
    x, index, _ = problem()
    expected, _ = swept("knn", x, index, CLASSES)
    found, _ = swept("knn", x, index.set_index(index.index[::-1] + 7), CLASSES)
    pd.testing.assert_frame_equal(found, expected)


def test_an_unknown_head_is_refused_with_the_valid_ones():
    x, index, _ = problem()
    with pytest.raises(ValueError, match="Unknown head 'lineer'. Did you mean 'linear'") as caught:
        swept("lineer", x, index, CLASSES)
    assert all(head in str(caught.value) for head in ("linear", "knn", "mlp"))


def test_a_grid_may_ask_for_every_head_and_for_no_other():
    assert tuple(heads.HEADS) == settings.HEADS


# ------------------------------------------------------------------------------------ redrawn


def volumes(k, folds, seed=0):
    """Embeddings (n, 4), labels, volume ids and rotations: 72 volumes of one to three slices."""
    rng = np.random.default_rng(seed)
    x, y = cloud(72, 4, k, seed, spread=1.5)
    numbers = np.repeat(np.arange(72), rng.integers(1, 4, 72))
    x = x[numbers] + rng.normal(0, 0.5, (len(numbers), 4))
    side = numbers // k % 3 if folds else np.array(SIDES)[numbers // k % 3]
    samples = np.array([f"v{number}" for number in numbers])
    parts = splits.rotations(side, samples, y[numbers])
    return x.astype(np.float32), y[numbers], samples, numbers, parts


def redrawn_by_hand(x, y, samples, rotations, counts, k):
    """Fit each model with scikit-learn. Returns predictions, and the candidate of each resample."""
    candidates, tested, choices = heads.HEADS["linear"].candidates, [], []
    for own in counts:
        aurocs, losses, labels, tests = [], [], [], []
        for part in rotations:
            scaled = StandardScaler().fit(x[part.train]).transform(x)
            models = [
                peer(scaled[part.train], y[part.train], c, own[part.train]) for c in candidates
            ]
            _, first = np.unique(samples[part.val], return_index=True)
            first.sort()  # a row of each volume
            truth, weights = y[part.val][first], own[part.val][first]
            vals = [by_volume(samples[part.val], m.predict_proba(scaled[part.val])) for m in models]
            aurocs.append([area(truth, val, weights) for val in vals])
            losses.append([loss(truth, val, weights) for val in vals])
            labels.append(truth)
            tests.append([m.predict_proba(scaled[part.test]) for m in models])
        choices.append(choice(aurocs, losses, labels))
        tested.append([of_models[choices[-1]] for of_models in tests])
    return [np.stack(of_rotation) for of_rotation in zip(*tested, strict=True)], choices


@pytest.mark.parametrize(("k", "folds"), [(2, False), (3, False), (3, True)])
def test_redrawing_patients_is_a_plain_loop_of_fit_choose_and_predict(monkeypatch, k, folds):
    x, y, samples, numbers, rotations = volumes(k, folds)
    counts = np.random.default_rng(4).poisson(1, (6, 72))
    counts[0] = 1  # the run itself
    counts = counts[:, numbers]
    expected, choices = redrawn_by_hand(x, y, samples, rotations, counts, k)
    assert len(set(choices)) > 2
    # A choice may depend on how two samples rank. A smaller gap gives scikit-learn's ranks.
    monkeypatch.setattr(logistic, "ROUGH", 1e-7)
    found = heads.redrawn(x, y, samples, rotations, counts, n_classes=k, device="cpu")
    assert len(found) == len(rotations) == (3 if folds else 1)
    for part, mine, theirs in zip(rotations, found, expected, strict=True):
        assert mine.shape == (6, part.test.sum(), k)
        np.testing.assert_allclose(mine, theirs, atol=0.005)


@pytest.mark.parametrize("k", [2, 3])
def test_rough_solutions_leave_the_spread_over_redraws_as_it_is(monkeypatch, k):
    x, y, samples, numbers, rotations = volumes(k, False)
    counts = drawn(np.arange(72) % k, 300)[:, numbers]
    areas = []
    for gap in (logistic.ROUGH, 1e-7):
        monkeypatch.setattr(logistic, "ROUGH", gap)
        [proba] = heads.redrawn(x, y, samples, rotations, counts, n_classes=k, device="cpu")
        whole = np.isfinite(proba).all((1, 2))
        areas.append(metrics.auroc(y[rotations[0].test], proba[whole]))
    assert len(areas[0]) == len(areas[1]) > 290
    assert np.std(areas[0]) == pytest.approx(np.std(areas[1]), rel=0.05)
    assert np.mean(areas[0]) == pytest.approx(np.mean(areas[1]), abs=0.05 * np.std(areas[1]))


@pytest.mark.parametrize("folds", [False, True])
def test_a_redraw_that_lacks_a_class_in_training_or_validation_predicts_nothing(folds):
    x, y, samples, numbers, rotations = volumes(3, folds)
    sides = (rotations[0].train, rotations[0].val, rotations[0].test)
    counts = np.ones((5, len(y)), dtype=np.uint8)
    for row, side in zip(counts[1:4], sides, strict=True):
        row[side & (y == 1)] = 0
    counts[4, sides[1] & (numbers > numbers[sides[1]].min() + 3)] = 0  # one volume of each class
    found = heads.redrawn(x, y, samples, rotations, counts, n_classes=3, device="cpu")
    # With folds, another rotation trains on the patients that the first one tests.
    valid = np.array([True, False, False, not folds, True])
    for part, proba in zip(rotations, found, strict=True):
        assert proba.shape == (5, part.test.sum(), 3)
        assert np.isnan(proba[~valid]).all()
        np.testing.assert_allclose(proba[valid].sum(2), 1, atol=1e-5)


def test_a_volume_that_is_drawn_twice_is_two_volumes():
    x, y, samples, numbers, rotations = volumes(2, False)
    counts = drawn(np.arange(72) % 2, 3)
    found = heads.redrawn(x, y, samples, rotations, counts[:, numbers], n_classes=2, device="cpu")
    [part], seen = rotations, []
    scaled = StandardScaler().fit(x[part.train]).transform(x)
    for own in counts:
        rows, names = [], []
        for copy in range(own.max()):
            again = np.flatnonzero(own[numbers] > copy)
            rows += again.tolist()
            names += [f"{name}-{copy}" for name in samples[again]]
        train, val = part.train[rows], part.val[rows]
        val_names = np.array(names)[val]
        _, first = np.unique(val_names, return_index=True)
        truth, scores = y[rows][val][np.sort(first)], []
        for c in heads.HEADS["linear"].candidates:
            model = peer(scaled[rows][train], y[rows][train], c)
            proba = by_volume(val_names, model.predict_proba(scaled[rows][val]))
            scores.append((area(truth, proba), loss(truth, proba), model))
        seen.append(scores)
    assert len(found) == 1 and found[0].shape == (3, part.test.sum(), 2)
    labels = [y[part.val][np.sort(np.unique(samples[part.val], return_index=True)[1])]]
    for proba, scores in zip(found[0], seen, strict=True):
        aurocs, losses, models = zip(*scores, strict=True)
        model = models[choice([aurocs], [losses], labels)]
        np.testing.assert_allclose(proba, model.predict_proba(scaled[part.test]), atol=0.01)


def test_resamples_may_be_judged_a_few_at_a_time(monkeypatch):
    x, y, samples, numbers, rotations = volumes(3, True)
    counts = drawn(np.arange(72) % 3, 7)[:, numbers]
    asked = x, y, samples, rotations, counts
    together = heads.redrawn(*asked, n_classes=3, device="cpu")
    monkeypatch.setattr(heads, "BLOCK", 1)
    for mine, theirs in zip(
        heads.redrawn(*asked, n_classes=3, device="cpu"), together, strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_without_a_draw_that_has_every_class_nothing_is_predicted():
    x, y, samples, _, rotations = volumes(2, False)
    counts = np.repeat((y == 0)[None], 3, axis=0).astype(int)
    [found] = heads.redrawn(x, y, samples, rotations, counts, n_classes=2, device="cpu")
    assert found.shape == (3, rotations[0].test.sum(), 2) and np.isnan(found).all()


@pytest.mark.gpu
def test_redraws_on_a_cuda_device_are_those_on_a_cpu(cuda, monkeypatch):
    monkeypatch.setattr(logistic, "ROUGH", 1e-7)
    x, y, samples, numbers, rotations = volumes(3, True)
    counts = drawn(np.arange(72) % 3, 6)[:, numbers]
    asked = x, y, samples, rotations, counts
    here, there = (heads.redrawn(*asked, n_classes=3, device=device) for device in ("cpu", cuda))
    for mine, theirs in zip(there, here, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.005)


@pytest.mark.parametrize("head", settings.HEADS)
@pytest.mark.parametrize("classes", [CLASSES[:2], CLASSES])
def test_the_model_of_a_rotation_predicts_as_the_run_did(head, classes):
    x, index, _ = problem(k=len(classes))
    index = index.drop(columns="split").assign(fold=np.arange(len(index)) // 3 % 3)
    rotations = rotated(index)
    labelled = x, metrics.codes(index["label"], classes), index["sample_id"]
    asked = [(head, seed, rotations) for seed in (0, 1)]
    for *_, predicted, _, _ in heads.sweep(*labelled, asked, n_classes=len(classes), device="cpu"):
        for rotation, own in zip(rotations, predicted, strict=True):
            for side, proba in ((rotation.val, own.val), (rotation.test, own.test)):
                again = heads.predict(head, own.model, torch.from_numpy(x[side]))
                np.testing.assert_allclose(again, proba, atol=1e-12)
        assert not any(tensor.requires_grad for tensor in own.model.values())


def test_the_model_of_a_linear_head_is_the_one_of_scikit_learn():
    x, index, [rotation] = problem()
    y = metrics.codes(index["label"], CLASSES)
    asked = x, y, index["sample_id"], [("linear", 0, [rotation])]
    ((_, [own], history, _),) = heads.sweep(*asked, n_classes=3, device="cpu")
    scaler = StandardScaler().fit(x[rotation.train])
    np.testing.assert_allclose(own.model["shift"], scaler.mean_, atol=1e-6)
    np.testing.assert_allclose(own.model["scale"], scaler.scale_, atol=1e-6)
    (c,) = [row["value"] for row in history if row["chosen"]]
    theirs = peer(scaler.transform(x[rotation.train]), y[rotation.train], c)
    expected = theirs.predict_proba(scaler.transform(x))
    found = heads.predict("linear", own.model, torch.from_numpy(x))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert own.model["weight"].dtype == torch.float64 and own.model["weight"].shape == (3, 4)


def test_a_class_that_is_not_trained_on_has_probability_0():
    x, _ = embedded(30, 4, 2)
    [found] = fitted(heads.fit_linear, x, np.array([0, 2] * 15), 4, [(1.0, 0)])(x)
    assert (found[:, [1, 3]] == 0).all() and (found[:, [0, 2]] > 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
