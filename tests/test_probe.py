"""medlib.probe: heads that reach their optimum, chosen without a look at the test part."""

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from medlib import grid, manifest, metrics, probe

CLASSES = ["a", "b", "c"]
SIDES = ("train", "val", "test")


def cloud(n, d, k, seed=0, spread=1.5):
    """Standardised Gaussian clouds, overlapping, one a class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(0, spread, (n, d)) + rng.normal(0, 1, (k, d))[y]
    return (x - x.mean(0)) / x.std(0), y


def problem(k=3, per_side=30, d=4, seed=0, spread=1.0):
    """Embeddings, index and the one rotation of an official split; a row a patient."""
    x, y = cloud(3 * per_side, d, k, seed, spread)
    index = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(y))]})
    index["patient_id"] = index["sample_id"]
    index["label"] = [CLASSES[label] for label in y]
    index["split"] = np.repeat(SIDES, per_side)
    return x.astype(np.float32), index, manifest.rotations(index)


def probabilities(frame, classes=CLASSES):
    return frame[[f"prob_{name}" for name in classes]].to_numpy()


def optimum(x, y, c, k):
    """Weights, bias and value of the linear head's objective at its minimum, in float64.

    Mean cross-entropy + |W|²/(2C), the bias free. For two classes W is one vector, of the second
    class; for more it has a row a class.
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
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    return *unpack(found.x), found.fun


# -------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_linear_head_reaches_the_optimum_of_its_objective(k, c, dtype):
    x, y = cloud(140, 6, k, seed=k)
    fresh, _ = cloud(50, 6, k, seed=99)
    w, b, lowest = optimum(x, y, c, k)
    predict = probe.fit_linear(x.astype(dtype), y, c, k, seed=0)
    found = predict(fresh.astype(dtype))
    assert found.shape == (50, k)
    np.testing.assert_allclose(found, np.exp(log_softmax(fresh @ w.T + b, axis=1)), atol=1e-3)
    # The objective at the head's own weights, which its log-odds betray: d + 1 points suffice.
    basis = np.vstack([np.zeros(6), np.eye(6)]).astype(dtype)
    logits = np.log(predict(basis).astype(np.float64))
    logits -= logits[:, :1] if k == 2 else logits.mean(1, keepdims=True)
    own_b, own_w = logits[0], (logits[1:] - logits[0]).T
    losses = -log_softmax(x @ own_w.T + own_b, axis=1)[np.arange(len(y)), y]
    value = losses.mean() + (own_w**2).sum() / (2 * c)
    assert value == pytest.approx(lowest, rel=1e-4)
    assert value > lowest - 1e-6 * lowest


@pytest.mark.parametrize("k", [2, 3])
def test_a_value_of_c_means_the_same_at_every_number_of_training_images(k):
    x, y = cloud(60, 5, k, seed=1)
    once = probe.fit_linear(x, y, 0.3, k, 0)(x)
    thrice = probe.fit_linear(np.tile(x, (3, 1)), np.tile(y, 3), 0.3, k, 0)(x)
    np.testing.assert_allclose(once, thrice, atol=1e-3)
    weaker = probe.fit_linear(x, y, 0.9, k, 0)(x)  # what C would mean for a sum of losses
    assert np.abs(once - weaker).max() > 0.02


# ----------------------------------------------------------------------------------------- knn


def test_nearest_neighbours_vote_by_the_angle_between_embeddings():
    # By direction the query's neighbours are 0°, 10°, 60°, 90°; by distance the last is nearest.
    angle = np.deg2rad([0, 10, 60, 90])
    length = np.array([50.0, 30.0, 20.0, 0.1])
    x = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    y = np.array([0, 0, 2, 1])
    query = np.array([[0.1, 0.001]])
    for k, expected in {
        1: [1, 0, 0],
        2: [1, 0, 0],
        3: [2 / 3, 0, 1 / 3],
        4: [0.5, 0.25, 0.25],
    }.items():
        np.testing.assert_allclose(probe.fit_knn(x, y, k, 3, 0)(query), [expected], atol=1e-12)


def test_more_neighbours_than_training_images_are_all_of_them():
    x, y = cloud(9, 3, 3)
    found = probe.fit_knn(x[:8], y[:8], 100, 3, 0)(x)
    np.testing.assert_allclose(found, np.tile([3 / 8, 3 / 8, 2 / 8], (9, 1)))


# ----------------------------------------------------------------------------------------- mlp


def test_the_mlp_separates_what_no_line_can():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.5, 1.5, (600, 2)).astype(np.float32)
    x = x[np.abs(x).min(1) > 0.15]
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    fitted, fresh = slice(0, 300), slice(300, None)
    mlp = probe.fit_mlp(x[fitted], y[fitted], 3e-3, 2, seed=0)(x[fresh])
    line = probe.fit_linear(x[fitted], y[fitted], 1.0, 2, seed=0)(x[fresh])
    assert roc_auc_score(y[fresh], mlp[:, 1]) > 0.97
    assert roc_auc_score(y[fresh], line[:, 1]) < 0.7


def test_the_seed_decides_every_bit_of_the_mlp_and_leaves_the_global_generator_alone():
    x, y = cloud(80, 5, 3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = probe.fit_mlp(x, y, 1e-3, 3, seed=4)(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    np.testing.assert_array_equal(probe.fit_mlp(x, y, 1e-3, 3, seed=4)(x), first)
    other = probe.fit_mlp(x, y, 1e-3, 3, seed=5)(x)
    assert np.abs(other - first).max() > 1e-3
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-12)


# ----------------------------------------------------------------------------------- all heads


@pytest.mark.parametrize("head", probe.HEADS)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_class_that_is_not_in_the_training_part_keeps_its_column(head, missing):
    x, y = cloud(90, 4, 3, spread=0.5)
    seen = y != missing
    proba = probe.HEADS[head].fit(x[seen], y[seen], probe.HEADS[head].grid[1], 3, 0)(x)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    assert roc_auc_score(y[seen] == y[seen].max(), proba[seen, y[seen].max()]) > 0.8
    if head != "mlp":  # it has an output for every class, and no label to push it to zero
        assert (proba[:, missing] == 0).all()


@pytest.mark.parametrize("head", probe.HEADS)
def test_a_feature_that_is_constant_changes_nothing_but_is_no_error(head):
    x, index, rotations = problem()
    constant = np.hstack([x, np.full((len(x), 1), 7.5, np.float32)])
    found, history = probe.run(head, constant, index, CLASSES, rotations)
    assert np.isfinite(probabilities(found)).all()
    assert history["val_auroc"].max() > 0.7
    if head != "mlp":  # one more input draws other initial weights
        expected, _ = probe.run(head, x, index, CLASSES, rotations)
        np.testing.assert_allclose(probabilities(found), probabilities(expected), atol=1e-4)


def test_embeddings_are_standardised_by_the_training_part_alone():
    x, index, rotations = problem()
    x = x * [1, 100, 1e-2, 5] + [0, 30, 1, -8]
    x[rotations[0].test] += 3.0  # what only the test part has, the scaler must not see
    found, history = probe.run("linear", x, index, CLASSES, rotations)
    c = history.loc[history["chosen"], "value"].item()
    y = index["label"].map(CLASSES.index).to_numpy()
    train, test = rotations[0].train, rotations[0].test
    scaler = StandardScaler().fit(x[train])
    model = LogisticRegression(C=c / train.sum(), max_iter=1000).fit(
        scaler.transform(x[train]), y[train]
    )
    expected = model.predict_proba(scaler.transform(x[test]))
    np.testing.assert_allclose(probabilities(found), expected, atol=1e-3)


@pytest.mark.parametrize("head", probe.HEADS)
def test_test_labels_change_no_prediction_and_no_choice(head):
    x, index, rotations = problem()
    first, history = probe.run(head, x, index, CLASSES, rotations)
    test = rotations[0].test
    mixed = index.copy()
    mixed.loc[test, "label"] = np.random.default_rng(0).permutation(index.loc[test, "label"])
    assert (mixed["label"] != index["label"]).sum() > 5
    second, other_history = probe.run(head, x, mixed, CLASSES, rotations)
    np.testing.assert_array_equal(probabilities(first), probabilities(second))
    assert second["y_true"].tolist() == mixed.loc[test, "label"].tolist()
    pd.testing.assert_frame_equal(history, other_history)


@pytest.mark.parametrize("head", probe.HEADS)
def test_test_embeddings_change_their_own_predictions_alone(head):
    x, index, rotations = problem()
    first, history = probe.run(head, x, index, CLASSES, rotations)
    test = np.flatnonzero(rotations[0].test)
    order = np.random.default_rng(1).permutation(len(test))
    moved = x.copy()
    moved[test] = x[test[order]]
    second, other_history = probe.run(head, moved, index, CLASSES, rotations)
    np.testing.assert_allclose(probabilities(second), probabilities(first)[order], atol=1e-6)
    pd.testing.assert_frame_equal(history, other_history)


def fake(fit, values):
    return probe.Head(fit, "strength", values)


def test_the_setting_with_the_best_validation_auroc_predicts_the_test_part(monkeypatch):
    # One feature holds the answer, in the validation part; how well it is seen is the setting.
    y = np.tile([0, 1], 30)
    index = pd.DataFrame({"sample_id": np.arange(60).astype(str), "label": np.array(CLASSES)[y]})
    index["patient_id"], index["split"] = index["sample_id"], np.repeat(SIDES, 20)
    noise = np.random.default_rng(0).normal(size=60)
    seen = {1.0: 0.0, 2.0: 0.5, 3.0: 4.0, 4.0: 1.0}

    def fit(x, y, value, n_classes, seed):
        def predict(z):
            score = 1 / (1 + np.exp(-z[:, 1] - seen[value] * z[:, 0]))
            # What a row lacks of 1 names the setting.
            return np.stack([1 - score, score], axis=1) * (1 - value / 100)

        return predict

    x = np.stack([2.0 * y - 1, noise], axis=1)
    monkeypatch.setitem(probe.HEADS, "fake", fake(fit, tuple(seen)))
    found, history = probe.run("fake", x, index, CLASSES[:2], manifest.rotations(index))
    scaled = StandardScaler().fit(x[:20]).transform(x)
    expected = [
        roc_auc_score(y[20:40], scaled[20:40, 1] + strength * scaled[20:40, 0])
        for strength in seen.values()
    ]
    assert np.argmax(expected) == 2 and len(set(expected)) == 4
    assert history["val_auroc"].tolist() == pytest.approx(expected, abs=1e-12)
    assert history["chosen"].tolist() == [False, False, True, False]
    assert history["value"].tolist() == list(seen)
    assert set(history["hyperparameter"]) == {"strength"} and set(history["head"]) == {"fake"}
    assert found["sample_id"].tolist() == index["sample_id"][40:].tolist()
    np.testing.assert_allclose(probabilities(found, CLASSES[:2]).sum(1), 1 - 3 / 100)


def test_on_a_tie_the_first_setting_is_chosen(monkeypatch):
    x, index, rotations = problem(k=2)
    right = {1.0: -1.0, 2.0: 1.0, 3.0: 1.0, 4.0: 1.0}
    x[:, 0] = np.where(index["label"] == "b", 1, -1)

    def fit(x, y, value, n_classes, seed):
        return lambda z: np.stack([0.5 - 0.1 * right[value] * z[:, 0],
                                   0.5 + 0.1 * right[value] * z[:, 0]], axis=1)  # fmt: skip

    monkeypatch.setitem(probe.HEADS, "fake", fake(fit, tuple(right)))
    _, history = probe.run("fake", x, index, CLASSES[:2], rotations)
    assert history["val_auroc"].tolist() == [0, 1, 1, 1]
    assert history["chosen"].tolist() == [False, True, False, False]


def test_separable_classes_are_given_to_the_strongest_penalty_and_the_smallest_k():
    x, index, rotations = problem(spread=0.01)
    for head in ("linear", "knn"):
        _, history = probe.run(head, x, index, CLASSES, rotations)
        tied = history[history["val_auroc"] == 1]
        assert len(tied) > 1
        assert history.loc[history["chosen"], "value"].item() == probe.HEADS[head].grid[0]


def test_every_setting_is_tried_in_every_fold_and_every_sample_is_predicted_once():
    x, index, _ = problem(per_side=30)
    index = index.drop(columns="split").assign(fold=np.arange(90) // 3 % 3)
    found, history = probe.run("knn", x, index, CLASSES, manifest.rotations(index))
    assert history.groupby("fold")["value"].apply(list).to_dict() == {
        fold: list(probe.HEADS["knn"].grid) for fold in range(3)
    }
    assert history.groupby("fold")["chosen"].sum().tolist() == [1, 1, 1]
    assert sorted(found["sample_id"]) == sorted(index["sample_id"])
    truth = index.set_index("sample_id")
    for column, theirs in (("y_true", "label"), ("fold", "fold"), ("patient_id", "patient_id")):
        assert found[column].tolist() == truth.loc[found["sample_id"], theirs].tolist()


def test_a_volume_is_predicted_by_the_mean_over_its_slices():
    # Slices in two directions; by cosine each has one class as its nearest neighbour.
    x = np.array([[1, 0], [0, 1], [1, 0], [0, 1]]  # train: a, b, a, b
                 + [[1, 0.1], [0.1, 1]]  # val: a, b
                 + [[1, 0.2], [1, 0.3], [0.2, 1]]  # test: v, three slices, two of them like a
                 + [[0.2, 1]])  # fmt: skip  # test: w, one slice, like b
    samples = ["t1", "t2", "t3", "t4", "v1", "v2", "v", "v", "v", "w"]
    index = pd.DataFrame({"sample_id": samples, "patient_id": samples})
    index["label"] = [*"abab", *"ab", *"bbb", "a"]
    index["split"] = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
    found, history = probe.run("knn", x, index, ["a", "b"], manifest.rotations(index))
    assert history.loc[history["chosen"], "value"].item() == 1
    assert found["sample_id"].tolist() == ["v", "w"]
    assert found["y_true"].tolist() == ["b", "a"]
    np.testing.assert_allclose(probabilities(found, ["a", "b"]), [[2 / 3, 1 / 3], [0, 1]])


def test_settings_are_judged_by_volume_and_not_by_slice():
    x, index, rotations = problem(k=2, per_side=24, spread=2.0)
    index = index.assign(sample_id=(np.arange(72) // 4 * 2 + np.arange(72) % 2).astype(str))
    index["patient_id"] = index["sample_id"]
    found, history = probe.run("linear", x, index, CLASSES[:2], rotations)
    assert len(found) == 12  # two slices each
    y = index["label"].map(CLASSES.index).to_numpy()
    train, val = rotations[0].train, rotations[0].val
    scaler = StandardScaler().fit(x[train])
    model = LogisticRegression(C=1.0 / train.sum()).fit(scaler.transform(x[train]), y[train])
    by_slice = pd.Series(model.predict_proba(scaler.transform(x[val]))[:, 1])
    by_volume = by_slice.groupby(index.loc[val, "sample_id"].to_numpy(), sort=False).mean()
    labels = pd.Series(y[val]).groupby(index.loc[val, "sample_id"].to_numpy(), sort=False).first()
    expected = roc_auc_score(labels, by_volume)
    assert expected != pytest.approx(roc_auc_score(y[val], by_slice))
    assert history.loc[history["value"] == 1.0, "val_auroc"].item() == pytest.approx(expected)


def test_predictions_and_history_have_the_columns_that_a_run_saves():
    x, index, rotations = problem()
    found, history = probe.run("linear", x, index, CLASSES, rotations)
    assert list(found.columns) == [
        "sample_id", "patient_id", "split", "y_true", *metrics.probability_columns(CLASSES),
    ]  # fmt: skip
    assert list(history.columns) == [
        "head", "hyperparameter", "value", "fold", "val_auroc", "chosen",
    ]  # fmt: skip


def test_the_rows_of_an_index_may_have_any_labels():
    x, index, rotations = problem()
    expected, _ = probe.run("knn", x, index, CLASSES, rotations)
    found, _ = probe.run("knn", x, index.set_index(index.index[::-1] + 7), CLASSES, rotations)
    pd.testing.assert_frame_equal(found, expected)


def test_an_unknown_head_is_refused_with_the_valid_ones():
    x, index, rotations = problem()
    with pytest.raises(ValueError, match="Unknown head 'lineer'. Did you mean 'linear'") as caught:
        probe.run("lineer", x, index, CLASSES, rotations)
    assert all(head in str(caught.value) for head in ("linear", "knn", "mlp"))


def test_a_grid_may_ask_for_every_head_and_for_no_other():
    assert tuple(probe.HEADS) == grid.HEADS
