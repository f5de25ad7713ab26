"""medlib.core.finetune: it learns, chooses on validation data alone, and repeats bit by bit."""

import contextlib
import copy
import dataclasses
import gc
import math
import re
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import made_rows
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional

from medlib import files
from medlib.core import (
    backbones,
    classifier,
    features,
    finetune,
    heads,
    linear,
    loading,
    metrics,
    networks,
    splits,
)
from medlib.core.fast import fusing, graph, memory, preparing, resume, transfer
from medlib.core.fast.graph import replayed
from medlib.core.settings import Extraction, FineTuning
from medlib.stats import prediction

CNN = "micro_resnet-random"
CLASSES = ["across", "down"]
CPU = torch.device("cpu")
SHORT = dict(learning_rates=[3e-3], epochs=2, batch_size=8, device="cpu")
LEARNT = dict(learning_rates=[3e-3], epochs=6, batch_size=8, device="cpu")


def stripes(n, size=32, seed=0):
    """Noisy stripes across (0) and down (1), with a random phase and contrast."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    wave = np.sin(2 * np.pi * (np.arange(size) / 8 + rng.random((n, 1))))
    drawn = np.where(y[:, None, None] == 0, wave[:, :, None], wave[:, None, :])
    grey = 128 + rng.uniform(20, 60, (n, 1, 1)) * drawn + rng.normal(0, 25, (n, size, size))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=3), y


def problem(train=24, val=12, test=24, size=32, seed=0):
    """Images, index (a row a patient) and the one rotation of an official split."""
    pixels, y = stripes(train + val + test, size, seed)
    index = pd.DataFrame({"sample_id": [f"s{i:02d}" for i in range(len(y))]})
    index["patient_id"] = index["sample_id"]
    index["label"] = [CLASSES[label] for label in y]
    index["split"] = ["train"] * train + ["val"] * val + ["test"] * test
    return pixels, index, rotated(index)


def rotated(index):
    side = index["split"] if "split" in index else index["fold"]
    return splits.rotations(side, index["patient_id"], index["label"])


def labelled(pixels, index, images_hash=""):
    y = metrics.codes(index["label"], CLASSES)
    return finetune.Data(pixels, y, index["sample_id"], len(CLASSES), images_hash)


def tuned(data, backbone=CNN, images_hash="", **settings):
    """What a run returns: the predictions of each rotation, the history as a table, and how."""
    pixels, index, rotations = data
    settings = SHORT | settings
    names = [name for name in ("regime", "seed", "device", "kept") if name in settings]
    own = {name: settings.pop(name) for name in names}
    if "resume" in settings:
        own["kept"] = resume.Kept(settings.pop("resume"))
    asked = labelled(pixels, index, images_hash), rotations, FineTuning(**settings)
    predicted, history, how = finetune.run(backbone, *asked, **own)
    assert [set(row) for row in history] == [set(finetune.HISTORY)] * len(history)
    return predicted, pd.DataFrame(history, columns=finetune.HISTORY), how


def run(data, *args, **settings):
    """Predictions and history as tables, and how: what notebook 04 makes of a run."""
    predicted, history, how = tuned(data, *args, **settings)
    _, index, rotations = data
    tested = [part.test for part in predicted]
    return prediction.out_of_fold(index, rotations, tested, CLASSES), history, how


def train(model, pixels, y, rows, learning_rate=1e-3, **settings):
    """The training of a model on images with labels. It is short unless a test asks for more."""
    own = {name: settings.pop(name) for name in ("seed", "course", "progress") if name in settings}
    settings = FineTuning(**({"epochs": 1, "batch_size": 8, "weight_decay": 0} | settings))
    data = finetune.Data(pixels, np.asarray(y), np.arange(len(y)), 2)
    return finetune.train(
        model, data, np.asarray(rows), learning_rate=learning_rate, settings=settings, **own
    )


def probabilities(frame):
    return frame[prediction.probability_columns(CLASSES)].to_numpy()


@pytest.fixture(scope="module")
def learnt():
    """A problem, and the result of fine-tuning on it."""
    data = problem()
    return data, run(data, **LEARNT)


# ------------------------------------------------------------------------------------ learning


def test_a_network_from_scratch_learns_stripes(learnt):
    data, (found, history, _) = learnt
    assert roc_auc_score(found["y_true"] == "down", found["prob_down"]) > 0.9
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    assert found["sample_id"].tolist() == data[1]["sample_id"][36:].tolist()
    np.testing.assert_allclose(probabilities(found).sum(1), 1, atol=1e-12)


def test_training_moves_every_parameter_and_the_batch_norm_statistics():
    pixels, index, rotations = problem()
    model = classifier.Classifier(CNN, 32, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    y = metrics.codes(index["label"], CLASSES)
    rows = np.flatnonzero(rotations[0].train)
    losses = dict(train(model, pixels, y, rows, learning_rate=3e-3, epochs=4, weight_decay=0.05))
    assert list(losses) == [1, 2, 3, 4] and losses[4] < losses[1]
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert same == []


def test_batch_norm_that_must_keep_its_statistics_keeps_them_while_all_else_learns(monkeypatch):
    row = dataclasses.replace(backbones.get(CNN), fixed_norm=True)
    monkeypatch.setattr(backbones, "get", lambda name: row)
    pixels, index, rotations = problem()
    model = classifier.Classifier(CNN, 32, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    y = metrics.codes(index["label"], CLASSES)
    rows = np.flatnonzero(rotations[0].train)
    for _ in train(model, pixels, y, rows, learning_rate=3e-3, weight_decay=0.05):
        finetune.predict(model, pixels, rows)  # evaluation in between changes no statistics
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    statistics = {name for name, _ in model.named_buffers()}
    assert statistics and same == statistics


def test_the_history_has_a_row_an_epoch_and_the_columns_that_a_run_saves(learnt):
    _, (found, history, how) = learnt
    assert list(history.columns) == finetune.HISTORY
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(history["learning_rate"]) == {3e-3} and set(history["fold"]) == {0}
    assert history["chosen"].sum() == 1
    assert how["weights_digest"] == networks.build(CNN, 32, 0)[1]
    assert how["candidates"] == 1 * 6  # learning rates × epochs
    names = "sample_id patient_id split y_true prob_across prob_down"
    assert " ".join(found.columns) == names


def test_the_seed_decides_every_bit():
    data = problem()
    torch.manual_seed(1)
    first, history, how = run(data, seed=3)
    torch.manual_seed(2)  # the state of the global generator is not the seed
    again, same_history, same_how = run(data, seed=3)
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    pd.testing.assert_frame_equal(same_history, history, check_exact=True)
    assert same_how == how
    other, _, other_how = run(data, seed=4)
    assert np.abs(probabilities(other) - probabilities(first)).max() > 1e-3
    assert other_how["weights_digest"] != how["weights_digest"]


def test_test_labels_change_no_prediction_and_no_choice():
    pixels, index, rotations = problem()
    first, history, _ = run((pixels, index, rotations))
    mixed = index.copy()
    test = rotations[0].test
    mixed.loc[test, "label"] = np.random.default_rng(0).permutation(index.loc[test, "label"])
    assert (mixed["label"] != index["label"]).sum() > 5
    second, other_history, _ = run((pixels, mixed, rotations))
    np.testing.assert_array_equal(probabilities(second), probabilities(first))
    assert second["y_true"].tolist() == mixed.loc[test, "label"].tolist()
    pd.testing.assert_frame_equal(other_history, history, check_exact=True)


def test_test_images_change_their_own_predictions_alone():
    pixels, index, rotations = problem()
    first, history, _ = run((pixels, index, rotations))
    test = np.flatnonzero(rotations[0].test)
    order = np.random.default_rng(1).permutation(len(test))
    moved = pixels.copy()
    moved[test] = pixels[test[order]]
    second, other_history, _ = run((moved, index, rotations))
    np.testing.assert_allclose(probabilities(second), probabilities(first)[order], atol=1e-6)
    pd.testing.assert_frame_equal(other_history, history, check_exact=True)


# ------------------------------------------------------------------------------------ choosing


def scripted(monkeypatch, pixels, index, table):
    """Training that goes through known states: (rate, epoch) -> probabilities of class 1.

    The state is a number in the head's bias; prediction looks it up. Returns the biases with
    which training began.
    """
    codes, begun = list(table), []

    def train(model, data, rows, *, learning_rate, settings, **_):
        begun.append(model.head.bias.detach().clone())
        for epoch in range(1, settings.epochs + 1):
            with torch.no_grad():
                model.head.bias.fill_(codes.index((learning_rate, epoch)))
            yield epoch, 0.5

    def predict(model, images, rows, batch_size=32):
        assert images is pixels
        positive = np.asarray(table[codes[int(model.head.bias[0])]])[rows]
        return np.stack([1 - positive, positive], axis=1)

    monkeypatch.setattr(finetune, "train", train)
    monkeypatch.setattr(finetune, "predict", predict)
    return begun


def test_the_epoch_with_the_best_validation_auroc_predicts_and_the_loss_breaks_ties(monkeypatch):
    pixels, index, rotations = problem(train=4, val=4, test=4)
    # Validation labels are 0, 1, 0, 1; the test part tells which state predicted it.
    parts = {
        (0.1, 1): [0.4, 0.3, 0.2, 0.8],  # AUROC 0.75
        (0.1, 2): [0.4, 0.6, 0.4, 0.6],  # 1, loss -log 0.6
        (0.2, 1): [0.2, 0.8, 0.2, 0.8],  # 1, loss -log 0.8: the best
        (0.2, 2): [0.3, 0.7, 0.3, 0.7],  # 1, loss -log 0.7
        (0.3, 1): [0.2, 0.8, 0.2, 0.8],  # as good as the best, but later
        (0.3, 2): [0.01, 0.99, 0.5, 0.4],  # a good loss for three, AUROC 0.75
    }
    table = {
        key: [0.5] * 4 + val + [0.1 * (i + 1)] * 4 for i, (key, val) in enumerate(parts.items())
    }
    begun = scripted(monkeypatch, pixels, index, table)
    found, history, _ = run((pixels, index, rotations), learning_rates=[0.1, 0.2, 0.3], epochs=2)
    y = [0, 1, 0, 1]
    assert history["val_auroc"].tolist() == [roc_auc_score(y, p) for p in parts.values()]
    assert history["val_loss"].tolist() == pytest.approx([log_loss(y, p) for p in parts.values()])
    assert history["chosen"].tolist() == [False, False, True, False, False, False]
    assert found["prob_down"].tolist() == pytest.approx([0.3] * 4)
    assert len(begun) == 3
    assert torch.equal(begun[0], begun[1]) and torch.equal(begun[0], begun[2])


@pytest.fixture
def two_rotations(monkeypatch):
    """A run of two rotations by a script: (rate, epoch) -> the validation probabilities of both.

    Each part has four images, of classes 0, 1, 0, 1. The i-th entry of the script predicts i / 100
    for every test image. The run returns what the rotations predict of class 1, the history and
    how; ``begun`` says how often training began.
    """

    def scripted_run(states, learning_rates, epochs=1):
        pixels, index, _ = problem(train=4, val=8, test=8)
        side = np.repeat(range(5), 4)
        parts = [splits.Rotation(i, side == 0, side == 1 + i, side == 3 + i) for i in (0, 1)]
        table = {
            key: [0.5] * 4 + first + second + [i / 100] * 8
            for i, (key, (first, second)) in enumerate(states.items())
        }
        begun.append(scripted(monkeypatch, pixels, index, table))
        asked = dict(learning_rates=learning_rates, epochs=epochs)
        predicted, history, how = tuned((pixels, index, parts), **asked)
        classes = [[values[:, 1].tolist() for values in part[:2]] for part in predicted]
        return classes, history, how

    begun = []
    scripted_run.begun = lambda: len(begun[-1])
    return scripted_run


# AUROC -> validation probabilities that have it on the classes 0, 1, 0, 1.
AUROC = {
    1.0: [0.2, 0.8, 0.2, 0.8],
    0.75: [0.4, 0.3, 0.2, 0.8],
    0.25: [0.6, 0.2, 0.3, 0.4],
    0.0: [0.8, 0.2, 0.8, 0.2],
    None: [np.nan] * 4,
}


def test_the_mean_over_rotations_chooses_one_learning_rate_and_each_rotation_its_epoch(
    two_rotations,
):
    states = {
        (0.1, 1): (AUROC[1.0], AUROC[0.25]),  # the best of rotation 0; mean 0.625
        (0.1, 2): (AUROC[0.0], AUROC[0.0]),
        (0.2, 1): (AUROC[0.25], AUROC[0.75]),
        (0.2, 2): (AUROC[0.75], AUROC[0.0]),  # best epochs 0.75 and 0.75: the best mean
        (0.3, 1): (AUROC[0.25], AUROC[1.0]),  # the best of rotation 1; mean 0.625
        (0.3, 2): (AUROC[0.25], AUROC[0.25]),
    }
    predicted, history, how = two_rotations(states, [0.1, 0.2, 0.3], epochs=2)
    assert history["val_auroc"].tolist() == [1, 0, 0.25, 0.75, 0.25, 0.25] + [
        *(0.25, 0, 0.75, 0, 1, 0.25)
    ]
    kept = history[history["chosen"]]
    columns = ["fold", "learning_rate", "epoch"]
    assert kept[columns].to_numpy().tolist() == [[0, 0.2, 2], [1, 0.2, 1]]
    assert [test for _, test in predicted] == [[0.03] * 4, [0.02] * 4]
    assert [val for val, _ in predicted] == [AUROC[0.75], AUROC[0.75]]
    assert how["candidates"] == 3 * 2


def test_equal_means_are_decided_by_the_mean_loss(two_rotations):
    # All means are 0.875. The second rate has the lowest loss: it is surer where its AUROC is 1.
    surer = [0.1, 0.9, 0.1, 0.9]
    states = {
        (0.1, 1): (AUROC[1.0], AUROC[0.75]),
        (0.2, 1): (AUROC[0.75], surer),
        (0.3, 1): (AUROC[0.75], AUROC[1.0]),
    }
    predicted, history, _ = two_rotations(states, [0.1, 0.2, 0.3])
    assert history.groupby("learning_rate")["val_auroc"].mean().tolist() == [0.875] * 3
    assert history["chosen"].tolist() == [False, True, False] * 2
    assert predicted == [[AUROC[0.75], [0.01] * 4], [surer, [0.01] * 4]]


def test_equal_means_and_losses_are_decided_by_the_smaller_rate(two_rotations):
    states = {(rate, 1): (AUROC[1.0], AUROC[0.75]) for rate in (0.3, 0.1, 0.2)}
    predicted, history, _ = two_rotations(states, [0.3, 0.1, 0.2])
    assert history["chosen"].tolist() == [False, True, False] * 2
    assert [test for _, test in predicted] == [[0.01] * 4] * 2


def test_means_that_differ_by_rounding_alone_are_equal():
    aurocs, losses = [0.1, 0.3, 0.2, 0.0], [0.6, 0.5, 0.6, 0.5]  # two rates, in two folds
    assert np.mean([0.1, 0.2]) > np.mean([0.3, 0.0])
    rows = zip([0, 0, 1, 1], [0.1, 0.2] * 2, [1] * 4, losses, losses, aurocs, strict=True)
    history = [dict(zip(finetune.HISTORY, (*row, False), strict=True)) for row in rows]
    settings = FineTuning(learning_rates=(0.1, 0.2), epochs=1)
    assert finetune._choose(history, settings) == 1  # the lower loss
    assert [row["chosen"] for row in history] == [False, True] * 2


@pytest.mark.parametrize("rates", [[0.1, 0.2], [0.2, 0.1]])
def test_a_learning_rate_that_diverges_in_one_rotation_is_worse_than_any_other(
    two_rotations, rates
):
    states = {(0.1, 1): (AUROC[0.0], AUROC[0.0]), (0.2, 1): (AUROC[1.0], AUROC[None])}
    predicted, history, _ = two_rotations(states, rates)
    assert history.loc[history["chosen"], "learning_rate"].tolist() == [0.1, 0.1]
    assert predicted == [[AUROC[0.0], [0.0] * 4]] * 2


def test_where_every_learning_rate_diverges_in_a_rotation_the_run_is_refused(two_rotations):
    states = {(0.1, 1): (AUROC[None], AUROC[1.0]), (0.2, 1): (AUROC[None], AUROC[1.0])}
    with pytest.raises(ValueError, match=r"^Fold 0: no epoch has a validation AUROC\. .* highest"):
        two_rotations(states, [0.1, 0.2])
    assert two_rotations.begun() == 2  # rotation 1 is not trained for nothing
    states = {(0.1, 1): (AUROC[1.0], AUROC[None]), (0.2, 1): (AUROC[None], AUROC[1.0])}
    words = "^Fold 1: no epoch .* at a learning rate that has one in every earlier fold"
    with pytest.raises(ValueError, match=words):
        two_rotations(states, [0.1, 0.2])


def test_with_one_rotation_the_best_epoch_of_all_learning_rates_predicts():
    data, rates = problem(), [1e-3, 1e-2, 3e-3]
    predicted, history, _ = tuned(data, learning_rates=rates)
    best = history.sort_values(["val_auroc", "val_loss"], ascending=[False, True]).iloc[0]
    assert history.index[history["chosen"]].tolist() == [best.name]
    (alone,), own, _ = tuned(data, learning_rates=[best["learning_rate"]])
    for one, other in zip(predicted[0], alone, strict=True):
        np.testing.assert_array_equal(one, other)
    rows = np.flatnonzero(data[2][0].val)
    auroc = roc_auc_score(metrics.codes(data[1]["label"], CLASSES)[rows], predicted[0].val[:, 1])
    assert auroc == pytest.approx(best["val_auroc"])
    assert own.loc[own["chosen"], "epoch"].item() == best["epoch"]


def test_the_kept_weights_are_those_of_the_chosen_epoch_and_not_of_the_last(learnt):
    data, (found, history, _) = learnt
    pixels, index, rotations = data
    best = history.sort_values(["val_auroc", "val_loss"], ascending=[False, True]).iloc[0]
    assert history.loc[history["chosen"], "epoch"].item() == best["epoch"]
    # Train once more with the same seed, and stop at that epoch.
    model = fusing.place(classifier.Classifier(CNN, 32, 2, seed=0), "cpu")
    y = metrics.codes(index["label"], CLASSES)
    for epoch, loss in train(
        model,
        pixels,
        y,
        np.flatnonzero(rotations[0].train),
        learning_rate=3e-3,
        epochs=LEARNT["epochs"],
        weight_decay=0.05,
    ):
        assert loss == history["train_loss"][epoch - 1]
        if epoch == best["epoch"]:
            break
    model.eval()
    with torch.no_grad():
        inputs = networks.normalise(model.row, torch.from_numpy(pixels[rotations[0].test]))
        expected = model(inputs).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities(found), expected, rtol=0, atol=1e-6)


def test_validation_is_judged_by_the_model_as_it_will_be_used(learnt):
    # Batch statistics of validation images must not be used: one image at a time gives the same.
    pixels, index, _ = learnt[0]
    model = classifier.Classifier(CNN, 32, 2).train()
    together = finetune.predict(model, pixels, np.arange(10))
    alone = [finetune.predict(model, pixels, np.array([i]))[0] for i in range(10)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.dtype == np.float64


def test_every_learning_rate_starts_from_the_same_weights():
    data = problem()
    alone = run(data, learning_rates=[1e-3])[1]
    after = run(data, learning_rates=[3e-2, 1e-3])[1]
    columns = ["epoch", "train_loss", "val_loss", "val_auroc"]
    second = after[after["learning_rate"] == 1e-3].reset_index(drop=True)
    pd.testing.assert_frame_equal(second[columns], alone[columns], check_exact=True)
    first = after[after["learning_rate"] == 3e-2].reset_index(drop=True)
    assert (first["train_loss"] != second["train_loss"]).all()


def test_every_fold_starts_from_the_same_weights_and_every_sample_is_predicted_once():
    pixels, index, _ = problem(train=12, val=12, test=12)
    index = index.drop(columns="split").assign(fold=np.arange(36) // 2 % 3)
    rotations = rotated(index)
    found, history, _ = run((pixels, index, rotations), epochs=1)
    assert sorted(found["sample_id"]) == sorted(index["sample_id"])
    truth = index.set_index("sample_id")
    assert found["fold"].tolist() == truth.loc[found["sample_id"], "fold"].tolist()
    assert found["y_true"].tolist() == truth.loc[found["sample_id"], "label"].tolist()
    assert history.groupby("fold")["chosen"].sum().tolist() == [1, 1, 1]
    alone, last, _ = run((pixels, index, rotations[2:]), epochs=1)
    pd.testing.assert_frame_equal(
        found[found["fold"] == 2].reset_index(drop=True), alone, check_exact=True
    )
    assert last["train_loss"].item() == history["train_loss"].iloc[2]


def test_slices_of_a_volume_are_averaged_in_choosing_and_in_testing(monkeypatch):
    pixels, index, _ = problem(train=4, val=4, test=4)
    index["label"] = np.repeat(["across", "down"] * 3, 2)
    index["sample_id"] = index["patient_id"] = np.repeat([f"v{i}" for i in range(6)], 2)
    val, test = [0.2, 0.7, 0.5, 0.9], [0.1, 0.4, 0.6, 1.0]
    scripted(monkeypatch, pixels, index, {(0.1, 1): [0.5] * 4 + val + test})
    found, history, _ = run((pixels, index, rotated(index)), learning_rates=[0.1], epochs=1)
    assert found["sample_id"].tolist() == ["v4", "v5"]
    assert found["prob_down"].tolist() == pytest.approx([0.25, 0.8])
    # By volume .45 and .7, in order; by slice one of the four pairs would not be.
    assert history["val_auroc"].item() == 1
    assert history["val_loss"].item() == pytest.approx(-(math.log(0.55) + math.log(0.7)) / 2)


def test_the_rows_of_an_index_may_have_any_labels():
    pixels, index, rotations = problem()
    first, history, _ = run((pixels, index, rotations), epochs=1)
    relabelled = index.set_index(index.index[::-1])
    second, other_history, _ = run((pixels, relabelled, rotations), epochs=1)
    pd.testing.assert_frame_equal(second, first, check_exact=True)
    pd.testing.assert_frame_equal(other_history, history, check_exact=True)


def test_weights_that_are_not_numbers_are_never_chosen(monkeypatch):
    # The last step of an epoch may break the weights after a loss that was still finite.
    pixels, index, rotations = problem(train=4, val=4, test=4)
    index["label"] = ["down", "down", "across", "across"] * 3
    parts = {(0.1, 1): [0.7, 0.3, 0.4, 0.2], (0.1, 2): [np.nan] * 4}
    table = {key: [0.5] * 4 + val + val for key, val in parts.items()}
    scripted(monkeypatch, pixels, index, table)
    found, history, _ = run((pixels, index, rotations), learning_rates=[0.1], epochs=2)
    assert history["chosen"].tolist() == [True, False]
    assert found["prob_down"].tolist() == parts[0.1, 1]


def test_a_validation_part_that_cannot_choose_is_refused(monkeypatch):
    # Without one of the classes there is no AUROC: the untrained network must not be kept.
    pixels, index, _ = problem(train=4, val=4, test=4)
    train, val, test = (np.array(index["split"] == side) for side in splits.SPLITS)
    part = splits.Rotation(0, train, val & (index["label"] == "across").to_numpy(), test)
    table = {(0.1, 1): [0.5] * 4 + [0.3] * 4 + [0.9] * 4}
    scripted(monkeypatch, pixels, index, table)
    with pytest.raises(ValueError, match="no epoch has a validation AUROC"):
        run((pixels, index, [part]), learning_rates=[0.1], epochs=1)


# -------------------------------------------------------------------------------- augmentation


def coordinates(n, size=32):
    """Images of four channels: 0, 1, and the coordinates x and y in half image widths."""
    axis = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([torch.zeros_like(x), torch.ones_like(x), x, y]).expand(n, 4, size, size)


def drawn(n, seed=0):
    """What augmentation did to each of ``n`` images: contrast, brightness, matrix and shift."""
    moved = classifier.augment(coordinates(n), torch.Generator().manual_seed(seed)).double()
    brightness = moved[:, 0]
    assert (brightness == brightness[:, :1, :1]).all()
    contrast = moved[:, 1] - brightness
    source = ((moved[:, 2:] - brightness[:, None]) / contrast[:, None])[:, :, 12:20, 12:20]
    here = coordinates(1)[0, 1:, 12:20, 12:20].double().flatten(1).numpy().T  # 1, x, y
    there = source.flatten(2).flatten(0, 1).numpy().T  # a column for x and y of each image
    fit = np.linalg.lstsq(here, there, rcond=None)[0]
    assert np.abs(here @ fit - there).max() < 1e-4, "not a linear map"
    solved = fit.T.reshape(n, 2, 3)
    return contrast[:, 0, 0].numpy(), brightness[:, 0, 0].numpy(), solved[:, :, 1:], solved[:, :, 0]


def test_augmentation_is_a_light_rotation_scale_shift_and_mirror_image():
    contrast, brightness, matrix, shift = drawn(600)
    scale = np.linalg.norm(matrix, axis=1)
    np.testing.assert_allclose(scale[:, 0], scale[:, 1], atol=1e-4)  # no stretching
    np.testing.assert_allclose((matrix[:, :, 0] * matrix[:, :, 1]).sum(1), 0, atol=1e-4)
    mirrored = np.linalg.det(matrix) < 0
    angle = np.degrees(np.arctan2(-matrix[:, 0, 1], matrix[:, 1, 1]))
    # Each is uniform: within its bounds, and near them in 600 draws. A shift of 0.1 half widths
    # is 5 % of the width.
    for values, low, high in (
        (angle, -10, 10),
        (scale[:, 0], 0.9, 1.1),
        (shift[:, 0], -0.1, 0.1),
        (shift[:, 1], -0.1, 0.1),
        (contrast, 0.8, 1.2),
        (brightness, -0.2, 0.2),
    ):
        width = high - low
        assert low - 1e-4 <= values.min() < low + 0.05 * width
        assert high - 0.05 * width < values.max() <= high + 1e-4
        # Mean and spread of a uniform distribution, within four standard errors.
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * width / math.sqrt(12 * 600))
        assert values.std() == pytest.approx(width / math.sqrt(12), rel=0.1)
    # 300 of 600 expected, with a standard deviation of 12.
    assert 250 < mirrored.sum() < 350
    upside_down = matrix[:, 1, 1] < 0
    assert not upside_down.any()


def test_augmentation_keeps_shape_and_the_mean_of_images():
    pixels, _ = stripes(200)
    inputs = networks.normalise(backbones.get(CNN), torch.from_numpy(pixels))
    moved = classifier.augment(inputs, torch.Generator().manual_seed(0))
    assert moved.shape == inputs.shape and moved.dtype == torch.float32
    assert torch.isfinite(moved).all()
    # Brightness moves each mean by up to 0.2; its mean over 200 images by 0.008, one sd.
    assert moved.mean().item() == pytest.approx(inputs.mean().item(), abs=0.03)
    ratio = moved.std() / inputs.std()  # smoothing takes some, brightness adds some
    assert 0.7 < ratio < 1.1
    assert (moved.mean((1, 2, 3)) - inputs.mean((1, 2, 3))).abs().max() < 0.2 + 0.15


def test_augmentation_differs_between_images_and_draws_and_repeats_with_its_generator():
    same = torch.from_numpy(np.repeat(stripes(1)[0], 6, axis=0)).permute(0, 3, 1, 2).float()
    before = same.clone()
    generator = torch.Generator().manual_seed(5)
    first, second = (classifier.augment(same, generator) for _ in range(2))
    assert torch.equal(same, before), "the images were changed in place"
    flat = torch.cat([first, second]).flatten(1)
    assert all((flat[i] - flat[j]).abs().max() > 1e-3 for i in range(12) for j in range(i))
    torch.manual_seed(99)
    assert torch.equal(classifier.augment(same, torch.Generator().manual_seed(5)), first)


@pytest.mark.gpu
def test_augmentation_draws_the_same_on_a_cuda_device(cuda):
    inputs = torch.from_numpy(stripes(8)[0]).permute(0, 3, 1, 2).float() / 255
    here = classifier.augment(inputs, torch.Generator().manual_seed(1))
    there = classifier.augment(inputs.to(cuda), torch.Generator().manual_seed(1))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_network_from_scratch_learns_stripes_on_a_cuda_device(cuda):
    found, history, _ = run(problem(), **(LEARNT | {"device": cuda}))
    assert roc_auc_score(found["y_true"] == "down", found["prob_down"]) > 0.9
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", [CNN, "vit_tiny-random"])
@pytest.mark.parametrize("on_device", [False, True])
def test_within_an_epoch_no_result_of_a_cuda_device_is_waited_for(cuda, backbone, on_device):
    pixels, y = stripes(32)
    model = classifier.Classifier(backbone, 32, 2).to(cuda)
    where = torch.from_numpy(pixels).to(cuda) if on_device else pixels
    steps = []

    def watch(n):  # from the end of the first step to that of the last
        steps.append(n)
        torch.cuda.set_sync_debug_mode("error" if len(steps) % 4 else "default")

    try:
        losses = list(
            train(
                model,
                where,
                y,
                np.arange(32),
                epochs=2,
                weight_decay=0.05,
                balanced=True,
                progress=watch,
            )
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 8 and np.isfinite(losses).all()


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", [CNN, "vit_tiny-random"])
def test_a_step_that_is_replayed_trains_as_one_that_is_launched(cuda, monkeypatch, backbone):
    data = problem(train=64)
    settings = {"learning_rates": [1e-3], "backbone": backbone, "epochs": 4, "device": cuda}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No CUDA graph")
        replayed = run(data, **settings)
    monkeypatch.setattr(graph, "RECORD_AFTER", 10**9)
    launched = run(data, **settings)
    losses = [found[1]["train_loss"] for found in (replayed, launched)]
    assert losses[1].iloc[-1] < losses[1].iloc[0] - 0.01
    np.testing.assert_allclose(*losses, rtol=0.02)
    np.testing.assert_allclose(*(probabilities(f[0]) for f in (replayed, launched)), atol=0.05)


@pytest.mark.parametrize("recordable", [True, False])
def test_every_batch_is_trained_on_once_whether_its_step_is_launched_or_replayed(
    monkeypatch, recordable
):
    """Stand-ins for CUDA: a recorded step reads its inputs when it is replayed, not before."""
    seen, tape, recording, restored = [], [], [False], []

    class Stream:
        def __init__(self, device=None):
            self.device = torch.device("cuda")

        def wait_stream(self, other):
            pass

    class Graph:
        def replay(self):
            seen.extend(held.item() for held in tape)

    class Generator:
        def clone_state(self):
            return "usual"

        def graphsafe_set_state(self, state):
            restored.append(state)

    @contextlib.contextmanager
    def graph(*_, **__):
        recording[0] = True
        try:
            yield
        finally:
            recording[0] = False

    def step(value):
        if not recording[0]:
            seen.append(value.item())
        elif recordable:
            tape.append(value)
        else:
            raise RuntimeError("not while recording\nand more")

    for name, fake in {
        "Stream": Stream,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": lambda _: contextlib.nullcontext(),
        "default_generators": [Generator()],
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    run_step = replayed(step, Stream())
    expected = contextlib.nullcontext()
    if not recordable:
        expected = pytest.warns(UserWarning, match="going on without: not while recording$")
    with expected:
        for number in range(7):
            run_step(torch.tensor(number))
    assert seen == list(range(7))
    assert len(tape) == recordable and restored == ([] if recordable else ["usual"])


@pytest.mark.gpu
def test_a_network_that_cannot_be_recorded_is_trained_all_the_same(cuda):
    # This runs in a new process. After a failed recording, torch never frees its GPU memory.
    code = """
import sys, warnings
import numpy as np, torch
from medlib.core import classifier, finetune, settings
pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
pixels[1::2] //= 2  # what can be learnt
model = classifier.Classifier(sys.argv[1], 32, 2).to("cuda")
model.register_forward_hook(lambda module, inputs, output: output * output.sum().item() ** 0)
data = finetune.Data(pixels, np.arange(32) % 2, np.arange(32), 2)
settings = settings.FineTuning(epochs=3, batch_size=4)
training = finetune.train(model, data, np.arange(32), learning_rate=1e-3, settings=settings)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    losses = [loss for _, loss in training]
assert any("No CUDA graph of this network, going on without" in str(w.message) for w in caught)
assert len(losses) == 3 and losses[-1] < losses[0], losses
assert torch.randn(9, device="cuda").std() > 0  # the generator does not go on recording
print("trained")
"""
    command = [sys.executable, "-c", code, CNN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("trained\n"), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.3, 0.6])  # too little for a step; for one and its recording
def test_a_step_that_a_cuda_device_does_not_hold_is_taken_in_parts(cuda, share):
    pixels, y = stripes(128, 224)

    def trained():
        model = classifier.Classifier("vit_tiny-random", 224, 2).to(cuda)
        course = resume.Course()
        training = train(
            model,
            pixels,
            y,
            np.arange(128),
            learning_rate=1e-4,
            epochs=4,
            batch_size=64,
            weight_decay=0.05,
            course=course,
        )
        return [loss for _, loss in training], course.micro_batches

    def emptied():
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # those of other tests' streams
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(cuda)

    emptied()
    losses, parts = trained()
    assert parts == 1
    most = torch.cuda.max_memory_reserved(cuda)
    emptied()
    whole = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(share * most / whole)
    try:
        again, parts = trained()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert parts > 1
    assert torch.cuda.max_memory_reserved(cuda) <= share * most
    np.testing.assert_allclose(again, losses, rtol=0.02)
    assert torch.randn(9, device=cuda).std() > 0  # the generator does not go on recording


@pytest.mark.gpu
def test_images_lie_on_a_cuda_device_where_they_fit_and_train_the_same(cuda, monkeypatch):
    device = torch.device(cuda)
    pixels, y = stripes(32)
    there = transfer.resident(pixels, device)
    assert there.is_cuda and torch.equal(there.cpu(), torch.from_numpy(pixels))
    inputs = []
    for values in (pixels, there):
        parts = np.split(np.random.default_rng(0).permutation(32), 4)
        inputs.append(torch.cat(list(loading.batches(values, parts, device))))
    assert torch.equal(*inputs)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2 * pixels.nbytes, 2**40))
    assert transfer.resident(pixels, device) is pixels


@pytest.mark.gpu
def test_checkpointing_follows_from_the_free_memory_of_a_cuda_device(cuda, monkeypatch):
    for free, expected in ((2**40, False), (2**20, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 2**40))
        model = classifier.Classifier("vit_tiny-random", 32, 2).to(cuda)
        assert memory.checkpoint(model, "auto", 32, 8) is expected


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", [CNN, "vit_tiny-random"])
def test_bfloat16_and_compilation_stay_near_float32_on_a_cpu(cuda, monkeypatch, backbone):
    data = problem(train=32)
    settings = {"learning_rates": [1e-4], "backbone": backbone, "seed": 1}
    expected = run(data, **settings)
    for least, compiled in ((10**9, False), (0, True)):
        monkeypatch.setattr(preparing, "COMPILE_FROM", dict.fromkeys(preparing.COMPILE_FROM, least))
        found = run(data, device=cuda, **settings)
        assert found[2]["precision"] == "bfloat16" and found[2]["compiled"] is compiled
        np.testing.assert_allclose(found[1]["train_loss"], expected[1]["train_loss"], rtol=0.02)
        np.testing.assert_allclose(probabilities(found[0]), probabilities(expected[0]), atol=0.05)


# ------------------------------------------------------------------------------- the optimiser


def bare(width=12, outputs=2):
    """The smallest model that can be trained: a row, a head and, on 2 × 2 images, logits."""
    head = nn.Linear(width, outputs)
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(width), head)
    model.row = backbones.get(CNN)
    model.__dict__["head"] = head  # not as one more layer
    return model


def train_bare(model, y, rows=None, **settings):
    pixels = np.random.default_rng(0).integers(0, 256, (len(y), 2, 2, 3), dtype=np.uint8)
    rows = np.arange(len(y)) if rows is None else rows
    settings = {"learning_rate": 0.01, "batch_size": 4} | settings
    return [loss for _, loss in train(model, pixels, np.asarray(y), rows, **settings)]


def test_the_learning_rate_warms_up_linearly_and_decays_as_half_a_cosine_to_zero():
    schedule = finetune._schedule(10, 0.4)
    expected = [
        0.25,
        0.5,
        0.75,
        1,  # four of ten steps
        1,
        (1 + math.cos(math.pi / 6)) / 2,
        0.75,
        0.5,
        0.25,
        (1 - math.cos(math.pi / 6)) / 2,
    ]
    assert [schedule(step) for step in range(10)] == pytest.approx(expected)
    assert schedule(10) == pytest.approx(0)
    long = [finetune._schedule(1000, 0.1)(step) for step in range(1000)]
    assert max(long) == 1 and long[99] == 1 and long[-1] < 1e-5
    assert sum(long) / 1000 == pytest.approx(0.05 + 0.45, abs=2e-3)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (1, 0), (1, 1), (2, 1), (5, 0)])
def test_the_schedule_of_a_short_training_is_positive_and_at_most_one(steps, warmup):
    factors = [finetune._schedule(steps, warmup)(step) for step in range(steps)]
    assert factors[0] > 0 and max(factors) <= 1


def test_weight_decay_shrinks_projections_by_the_schedule_and_spares_norms_and_biases():
    model = bare()
    # With logits of zero gradient, AdamW does nothing but decay.
    model.register_forward_hook(lambda module, inputs, output: output * 0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train_bare(model, [0, 1] * 10, learning_rate=0.1, weight_decay=0.3, epochs=2, warmup=0.4)
    # Ten steps: the factors worked out above.
    cosine = math.cos(math.pi / 6)
    factors = [0.25, 0.5, 0.75, 1, 1, (1 + cosine) / 2, 0.75, 0.5, 0.25, (1 - cosine) / 2]
    shrunk = math.prod(1 - 0.1 * 0.3 * factor for factor in factors)
    assert {value.ndim for value in before.values()} == {1, 2}
    for name, value in model.named_parameters():
        expected = before[name] * (shrunk if value.ndim == 2 else 1)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("labels", [[0] * 9 + [1] * 3, [0] * 6 + [2] * 4, [0, 1, 1, 2, 2, 2]])
def test_balanced_classes_weigh_as_in_scikit_learn(balanced, labels):
    y, outputs = np.array(labels + [1] * 20), 3
    rows = np.arange(len(labels))  # other images of class 1 are not in the training part
    model = bare(outputs=outputs)
    logits = torch.tensor([1.0, -0.5, 0.2])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(logits)
    (found,) = train_bare(
        model, y, rows, learning_rate=0.0, batch_size=len(rows), balanced=balanced
    )
    losses = -logits.double().log_softmax(0).numpy()[labels]
    weights = None
    if balanced:
        present = np.unique(labels)
        by_class = compute_class_weight("balanced", classes=present, y=labels)
        weights = dict(zip(present, by_class, strict=True))
        weights = [weights[label] for label in labels]
    assert found == pytest.approx(np.average(losses, weights=weights), rel=1e-6)


def test_the_images_that_an_epoch_is_shown_differ_from_epoch_to_epoch(monkeypatch):
    batches = []
    normalise = networks.normalise

    def spy(row, batch):
        batches.append(batch[:, 0, 0, 0].tolist())
        return normalise(row, batch)

    monkeypatch.setattr(networks, "normalise", spy)
    pixels = np.repeat(np.arange(11, dtype=np.uint8), 12).reshape(11, 2, 2, 3)
    y, rows = np.arange(11) % 2, np.array([1, 2, 3, 5, 6, 7, 8, 9, 10])
    list(train(bare(), pixels, y, rows, epochs=12, batch_size=4))
    # Nine images are two batches of four; the one left out is drawn anew.
    assert [len(batch) for batch in batches] == [4] * 24
    epochs = [batches[i] + batches[i + 1] for i in range(0, 24, 2)]
    assert all(len(set(epoch)) == 8 and set(epoch) <= set(rows.tolist()) for epoch in epochs)
    assert set().union(*epochs) == set(rows.tolist())
    assert len({frozenset(epoch[:4]) for epoch in epochs}) > 6


def test_the_seed_decides_the_order_of_the_images():
    start, y = bare(), [0, 1] * 10
    first, again, other = (train_bare(copy.deepcopy(start), y, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_labels_go_with_their_images(monkeypatch):
    seen = []
    loss = functional.cross_entropy

    def spy(logits, target, **kwargs):
        seen.append(target.tolist())
        return loss(logits, target, **kwargs)

    shown = []
    normalise = networks.normalise

    def look(row, batch):
        shown.append(batch[:, 0, 0, 0].tolist())
        return normalise(row, batch)

    monkeypatch.setattr(functional, "cross_entropy", spy)
    monkeypatch.setattr(networks, "normalise", look)
    pixels = np.repeat(np.arange(10, dtype=np.uint8), 12).reshape(10, 2, 2, 3)
    y = np.array([0, 1, 1, 0, 1, 0, 0, 1, 0, 1])
    list(train(bare(), pixels, y, np.arange(2, 10), epochs=2, batch_size=3, seed=1))
    assert len(seen) == 4
    assert seen == [[y[i] for i in batch] for batch in shown]


def test_a_batch_larger_than_the_training_part_is_the_whole_of_it():
    data = problem(train=6)
    large = run(data, batch_size=1000)
    whole = run(data, batch_size=6)
    pd.testing.assert_frame_equal(large[0], whole[0], check_exact=True)
    assert np.isfinite(large[1]["train_loss"]).all()


@pytest.mark.parametrize("train", [9, 17])
def test_a_network_with_batch_norm_never_sees_a_batch_of_one_image(monkeypatch, train):
    sizes = []
    embed = networks.embed

    def spy(row, model, normalised):
        if model.training:
            sizes.append(len(normalised))
        return embed(row, model, normalised)

    monkeypatch.setattr(networks, "embed", spy)
    run(problem(train=train), batch_size=8)
    assert sizes == [8] * (train // 8) * SHORT["epochs"]


@pytest.mark.parametrize("decay", [0.75, 1.0])
def test_layer_decay_is_that_of_timm(decay):
    model = classifier.Classifier("vit_tiny-random", 32, 2)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    settings = FineTuning(weight_decay=0.3, layer_decay=decay)
    for group in classifier.parameter_groups(model, 0.01, settings):
        for p in group["params"]:
            found[names[id(p)].removeprefix("backbone.")] = (group["lr"], group["weight_decay"])
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32)
    names = {id(p): name for name, p in whole.named_parameters()}
    expected = {}
    for group in param_groups_layer_decay(whole, 0.3, layer_decay=decay):
        for p in group["params"]:
            expected[names[id(p)]] = (0.01 * group["lr_scale"], group["weight_decay"])
    assert found.keys() == expected.keys() and len(found) == len(list(model.parameters()))
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
    assert found["head.weight"] == pytest.approx((0.01, 0.3))
    assert found["blocks.11.norm1.weight"] == pytest.approx((0.01 * decay, 0))
    assert found["pos_embed"] == pytest.approx((0.01 * decay**13, 0.3))


def awaken(model):
    """Set batch norm as after pretraining. (timm starts the last one of each block at zero.)"""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)


def test_layer_decay_shortens_the_steps_of_the_lower_stages_of_a_cnn():
    pixels, y = stripes(8)
    model = classifier.Classifier(CNN, 32, 2)
    awaken(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    list(train(model, pixels, y, np.arange(8), layer_decay=0.5))
    # Adam's first step is as long as the learning rate, whatever the gradient.
    after = dict(model.named_parameters())
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["head.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved["backbone.layer4.0.conv1.weight"] == pytest.approx(1e-3 / 2, rel=0.01)
    assert moved["backbone.layer1.0.conv1.weight"] == pytest.approx(1e-3 / 2**4, rel=0.01)
    assert moved["backbone.conv1.0.weight"] == pytest.approx(1e-3 / 2**5, rel=0.01)


def test_the_backbone_may_learn_more_slowly_than_the_head():
    model = classifier.Classifier("vit_tiny-random", 32, 2)
    names = {id(p): name for name, p in model.named_parameters()}
    settings = FineTuning(backbone_rate=0.1, layer_decay=0.5)
    rates = {}
    for group in classifier.parameter_groups(model, 1.0, settings):
        rates |= dict.fromkeys((names[id(p)] for p in group["params"]), group["lr"])
    assert rates["head.weight"] == rates["head.bias"] == 1
    assert rates["backbone.blocks.11.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5)
    assert rates["backbone.blocks.10.mlp.fc1.weight"] == pytest.approx(0.1 * 0.25)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e9])
def test_the_gradient_is_clipped_to_the_norm_that_is_asked_for(monkeypatch, clip):
    norms, adam = [], finetune.AdamW.step

    def step(optimiser, *args, **kwargs):
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients if g is not None]).norm().item())
        return adam(optimiser, *args, **kwargs)

    monkeypatch.setattr(finetune.AdamW, "step", step)
    pixels, y = stripes(8)
    list(train(classifier.Classifier(CNN, 32, 2), pixels, y, np.arange(8), clip=clip))
    assert norms[0] == pytest.approx(1e-3, rel=1e-3) if clip == 1e-3 else norms[0] > 0.1


def test_drop_path_leaves_out_more_of_the_higher_branches_and_nothing_in_evaluation():
    still = classifier.Classifier("vit_tiny-random", 32, 2)
    model = classifier.Classifier("vit_tiny-random", 32, 2, drop_path=0.3)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert len(rates) == 24 and rates[0] == 0 and rates[-1] == 0.3 and rates == sorted(rates)
    assert not [m for m in still.modules() if isinstance(m, DropPath)]
    images = torch.from_numpy(stripes(4)[0]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), still.eval()(images))
        assert not torch.equal(model.train()(images), model(images))
    # A network without branches stays as it is.
    assert not [
        m
        for m in classifier.Classifier("vgg16-random", 32, 2, drop_path=0.3).modules()
        if isinstance(m, DropPath)
    ]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_that_is_probed_first_is_the_linear_probe(classes):
    """The layer on raw embeddings predicts as scikit-learn's regression on standardised ones."""
    pixels, y = stripes(40)
    y = y if classes == 2 else np.arange(40) % 3
    sides = [np.arange(40) < 24, (np.arange(40) >= 24) & (np.arange(40) < 36), np.arange(40) >= 36]
    rotation = splits.Rotation(0, *sides)
    data = finetune.Data(pixels, y, np.arange(40), classes)
    model = classifier.Classifier(CNN, 32, classes)
    finetune._begin(model, classifier.copied(model), data, rotation)
    with torch.inference_mode():
        model.eval()
        normalised = networks.normalise(model.row, torch.from_numpy(pixels))
        x = networks.embed(model.row, model.backbone, normalised).double().numpy()
    ((*_, history, _),) = heads.sweep(
        x, y, np.arange(40), [("linear", 0, [rotation])], n_classes=classes, device="cpu"
    )
    (c,) = [row["value"] for row in history if row["chosen"]]
    scaler = StandardScaler().fit(x[:24])
    theirs = LogisticRegression(C=c / 24, tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(x[:24]), y[:24])
    with torch.inference_mode():
        logits = model.head(torch.from_numpy(x).float())
    expected = theirs.predict_proba(scaler.transform(x))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-4)


def test_a_class_without_training_images_leaves_a_probed_head_finite():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    y = np.array([0, 2] * 6)
    half = np.arange(12) < 6
    weights, bias = linear.layer(torch.from_numpy(x), y, np.arange(12), half, ~half, 4)
    assert weights.shape == (4, 3) and bias.shape == (4,)
    assert not weights[[0, 1, 3]].any() and weights[2].any() and bias.isfinite().all()


def test_probing_first_trains_on_from_the_probe(monkeypatch):
    data, begun = problem(), []
    original = finetune.train

    def spy(model, *args, **kwargs):
        begun.append(model.head.weight.detach().clone())
        return original(model, *args, **kwargs)

    monkeypatch.setattr(finetune, "train", spy)
    tuned(data, probe_first=True, learning_rates=[1e-3, 1e-4], epochs=1)
    assert torch.equal(begun[0], begun[1]) and begun[0].abs().max() > 0
    model = classifier.Classifier(CNN, 32, 2)
    finetune._begin(model, classifier.copied(model), labelled(*data[:2]), data[2][0])
    torch.testing.assert_close(begun[0], model.head.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backbone", ["vgg16-random", "densenet121-random", "mobilenetv2-random"])
def test_layer_decay_is_defined_for_cnns_of_every_kind(backbone):
    model = classifier.Classifier(backbone, 32, 2)
    groups = classifier.parameter_groups(model, 1.0, FineTuning(layer_decay=0.5))
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters())
    rates = {group["lr"] for group in groups}
    assert max(rates) == 1 and 0 < min(rates) < 0.1


def test_batch_norm_keeps_its_statistics_where_that_is_asked_for():
    data = problem()
    model = classifier.Classifier(CNN, 32, 2, frozen_norm=True)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    weight = model.backbone.conv1[1].weight.detach().clone()
    y = np.array([CLASSES.index(label) for label in data[1]["label"]])
    rows = np.flatnonzero(data[2][0].train)
    list(train(model, data[0], y, rows, learning_rate=3e-3))
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    assert not torch.equal(model.backbone.conv1[1].weight, weight)
    kept, usual = (run(data, frozen_norm=frozen)[1] for frozen in (True, False))
    assert (kept["train_loss"] != usual["train_loss"]).all()


# ----------------------------------------------------------------------------------------- LoRA


def lora(backbone, size=32, rank=4):
    return classifier.Classifier(backbone, size, 2, lora_rank=rank)


@pytest.mark.parametrize("backbone", ["vit_tiny-random", CNN, "micro_efficientnet-random"])
def test_lora_starts_from_the_plain_network_and_trains_only_itself_and_the_head(backbone):
    pixels, y = stripes(8)
    plain, model = classifier.Classifier(backbone, 32, 2), lora(backbone)
    awaken(plain)
    awaken(model)
    rows = np.arange(8)
    np.testing.assert_array_equal(
        finetune.predict(model, pixels, rows), finetune.predict(plain, pixels, rows)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(train(model, pixels, y, rows, learning_rate=1e-2, epochs=3, batch_size=4))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    learns = {n for n in before if ".lora_" in n or n.startswith("head.")}
    assert changed == learns == {n for n, p in model.named_parameters() if p.requires_grad}
    unchanged = dict(plain.named_parameters())
    for name, value in model.named_parameters():
        if name not in learns:
            assert torch.equal(value, unchanged[name.replace(".base_layer", "")])
    moved = finetune.predict(model, pixels, rows) - finetune.predict(plain, pixels, rows)
    assert np.abs(moved).max() > 1e-4


def test_lora_that_has_no_effect_on_a_layer_is_refused(monkeypatch):
    # EVA02 and BEiT read the weights of their layer qkv, and do not call it.
    row = made_rows.row("eva02_tiny_patch14_224", patch=14)
    monkeypatch.setitem(backbones.TABLE, row.name, row)
    classifier.Classifier("new-random", 28, 2)
    with pytest.raises(ValueError, match="LoRA has no effect on 12 of 48 layers of new-random"):
        lora("new-random", size=28)


def test_lora_has_the_parameters_that_its_rank_gives_on_every_linear_layer():
    model = lora("vit_tiny-random", rank=4)
    # A block has qkv 192 → 576, proj 192 → 192, fc1 192 → 768 and fc2 768 → 192.
    block = 4 * ((192 + 576) + (192 + 192) + (192 + 768) + (768 + 192))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 12 * block + 2 * 192 + 2
    adapted = model.backbone.blocks[3].mlp.fc1
    assert adapted.scaling["default"] == 16 / 4
    assert not hasattr(model.backbone.patch_embed.proj, "lora_A")


def test_lora_adapts_the_convolutions_of_a_cnn_but_for_grouped_ones():
    layers = dict(lora("mobilenetv2-random").backbone.named_modules())
    adapted = [layer.base_layer for layer in layers.values() if hasattr(layer, "lora_A")]
    plain = classifier.Classifier("mobilenetv2-random", 32, 2).backbone.modules()
    convolutions = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    assert len(adapted) == sum(layer.groups == 1 for layer in convolutions) < len(convolutions)
    assert all(layer.groups == 1 for layer in adapted)


def test_lora_runs_through_the_same_interface_and_repeats_bit_by_bit():
    data = problem()
    found, history, how = run(data, regime="lora", lora_rank=2, learning_rates=[1e-2, 1e-3])
    again, _, _ = run(data, regime="lora", lora_rank=2, learning_rates=[1e-2, 1e-3])
    pd.testing.assert_frame_equal(again, found, check_exact=True)
    assert list(history.columns) == finetune.HISTORY and history["chosen"].sum() == 1
    assert how["weights_digest"] == networks.build(CNN, 32, 0)[1]
    model = lora(CNN, rank=2)
    assert how["trained_parameters"] == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert how["trained_parameters"] < 0.1 * how["parameters"]
    # The second learning rate starts where the first did.
    alone = run(data, regime="lora", lora_rank=2, learning_rates=[1e-3])[1]
    assert history["train_loss"].tolist()[2:] == alone["train_loss"].tolist()


def test_what_is_kept_of_an_epoch_is_what_training_changes():
    model = lora("vit_tiny-random", rank=1)
    kept = classifier.copied(model)
    assert sum(v.numel() for v in kept.values()) < 0.02 * sum(p.numel() for p in model.parameters())
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1)
    classifier.assign(classifier.learnt(model), kept)
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
    whole = classifier.Classifier(CNN, 32, 2)
    assert classifier.copied(whole).keys() == whole.state_dict().keys()


def test_lora_without_peft_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="lora needs peft .*pip install -r requirements.txt"):
        run(problem(), regime="lora")


# ------------------------------------------------------------------------- batches and memory


def test_batches_are_the_same_whether_read_ahead_or_resident(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    parts = [np.array(part) for part in ([3, 1, 19], [0, 0, 7], [5], [18, 2])]
    for values in (pixels, mapped, torch.from_numpy(pixels)):
        found = list(loading.batches(values, parts, CPU))
        assert len(found) == 4
        for batch, part in zip(found, parts, strict=True):
            assert batch.dtype == torch.uint8
            np.testing.assert_array_equal(batch.numpy(), pixels[part])
    assert transfer.resident(pixels, CPU) is pixels


def test_training_does_not_depend_on_where_the_images_are():
    pixels, y = stripes(16)
    start, losses = classifier.Classifier(CNN, 32, 2), []
    for images_ in (pixels, torch.from_numpy(pixels)):
        model = copy.deepcopy(start)
        training = train(
            model, images_, y, np.arange(2, 14), epochs=2, batch_size=4, weight_decay=0.05
        )
        losses.append([loss for _, loss in training])
    assert losses[0] == losses[1]


def test_a_batch_that_cannot_be_read_stops_the_training():
    with pytest.raises(IndexError):
        list(loading.batches(np.zeros((3, 2)), [np.array([0]), np.array([7])], CPU))


def resident_bytes():
    status = Path("/proc/self/status").read_text()
    return sum(int(kb) for kb in re.findall(r"^Rss\w+:\s+(\d+) kB", status, re.M)) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells it there")
def test_images_that_have_been_read_do_not_stay_in_memory(tmp_path):
    shape = (1600, 224, 224, 3)  # 240 MB
    pixels = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape)
    del pixels
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    before, most = resident_bytes(), 0
    for batch in loading.batches(mapped, np.split(np.arange(1600), 50), CPU):
        assert not batch.any()
        most = max(most, resident_bytes() - before)
    assert most < 60e6


def test_the_bytes_that_a_forward_pass_keeps_are_counted_an_image():
    # Of the 12 numbers of an image, layer norm keeps its input, a mean and a standard deviation;
    # the projection keeps its own input.
    assert memory.activation_bytes(bare(), 2) == 4 * (12 + 1 + 1 + 12)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(rank):
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for word in ("never", "always"):
        model = lora("vit_tiny-random", rank=rank)
        assert memory.checkpoint(model, word, 32, 4) == (word == "always")
        kept.append(memory.activation_bytes(model, 32))
        model.train()(inputs).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert kept[1] < 0.2 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_counting_activations_keeps_none_of_them():
    kept = []
    model = classifier.Classifier(CNN, 32, 2)
    for module in model.modules():
        module.register_forward_hook(lambda m, i, output: kept.append(weakref.ref(output)))
    assert memory.activation_bytes(model, 32) > 0
    assert len(kept) > 10 and not any(reference() is not None for reference in kept)


def test_checkpointing_is_left_alone_on_a_cpu_unless_it_is_asked_for():
    data = problem()
    assert run(data, backbone="micro_efficientnet-random", epochs=1)[2]["checkpointing"] is False
    how = run(data, backbone="micro_efficientnet-random", epochs=1, checkpointing="always")[2]
    assert how["checkpointing"] is True


def holding(model, n_images):
    """The model, on a device with memory for a training step of ``n_images`` images."""

    def hook(module, inputs):
        if module.training and len(inputs[0]) > n_images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(hook)
    return model


def test_a_step_of_which_not_one_image_fits_the_gpu_names_the_ways_out():
    with pytest.raises(MemoryError, match="one image of a step of 4: .*always.*smaller backbone"):
        train_bare(holding(bare(), 0), [0, 1] * 4)


@pytest.mark.parametrize(("held", "parts"), [(7, 2), (3, 4), (1, 8)])
@pytest.mark.parametrize("balanced", [False, True])
def test_micro_batches_add_up_to_the_step_that_the_gpu_does_not_hold(held, parts, balanced):
    pixels, y = stripes(40)
    y = np.where(np.arange(40) % 5 == 0, 1, y)  # classes of different sizes
    models, losses, courses = [], [], []
    for limit in (held, 99):
        model = holding(fusing.place(classifier.Classifier("vit_tiny-random", 32, 2), CPU), limit)
        courses.append(resume.Course())
        training = train(
            model,
            pixels,
            y,
            np.arange(40),
            epochs=2,
            weight_decay=0.05,
            balanced=balanced,
            course=courses[-1],
        )
        losses.append([loss for _, loss in training])
        models.append(model)
    assert [course.micro_batches for course in courses] == [parts, 1]
    # A sum of some 500 float32 terms (8 images × 5 tokens × 12 blocks) in another order differs by
    # about √500 × 6e-8 = 1.3e-6. AdamW carries this through ten steps: 1.3e-5. Eight times that is
    # allowed, since processors add in different orders. Wrong weights would give 1e-2 or more.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    one, other = (finetune.predict(model, pixels, np.arange(40)) for model in models)
    np.testing.assert_allclose(one, other, atol=2e-3)


def test_a_run_says_into_how_many_micro_batches_its_steps_were_cut(monkeypatch):
    place = fusing.place
    monkeypatch.setattr(fusing, "place", lambda model, *where: holding(place(model, *where), 5))
    found, _, how = run(problem(), epochs=1)
    assert how["micro_batches"] == 2
    monkeypatch.setattr(fusing, "place", place)
    whole, _, how = run(problem(), epochs=1)
    assert how["micro_batches"] == 1
    # Batch norm has seen four images at once, rather than eight.
    assert not np.array_equal(probabilities(found), probabilities(whole))


# ------------------------------------------------------------------------------------ going on


class Killed(BaseException):
    """Ends a run as a kill would: no code of the run catches it."""


def killed_after(monkeypatch, epochs):
    """The run dies after the checkpoint of ``epochs`` epochs, in the middle of the next epoch."""
    keep, kept = resume.keep, []

    def counted(*arguments):
        keep(*arguments)
        kept.append(None)

    def dying(self, *arguments):
        if len(kept) == epochs:
            raise Killed
        return forward(self, *arguments)

    forward = classifier.Classifier.forward
    monkeypatch.setattr(resume, "keep", counted)
    monkeypatch.setattr(classifier.Classifier, "forward", dying)


def folds(n=24, k=3, seed=0):
    pixels, y = stripes(n, 32, seed)
    index = pd.DataFrame({"sample_id": [f"s{i:02d}" for i in range(n)]})
    index["patient_id"], index["label"] = index["sample_id"], [CLASSES[label] for label in y]
    index["fold"] = np.arange(n) // 2 % k
    return pixels, index, rotated(index)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({}, n) for n in (1, 2, 3, 4, 7)]
    + [({"backbone": "vit_tiny-random"}, 3), ({"regime": "lora", "lora_rank": 2}, 5)]
    + [({"balanced": True, "layer_decay": 0.7, "frozen_norm": True}, 6)]
    + [({"backbone": "vit_tiny-random", "drop_path": 0.3, "probe_first": True}, 4)],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, settings, epochs):
    data, settings = folds(), {"learning_rates": [1e-3, 3e-3]} | settings
    file = tmp_path / "run" / "checkpoint.safetensors"
    monkeypatch.setattr(resume, "LONG", math.inf)  # however busy the machine
    expected = run(data, **settings)
    with monkeypatch.context() as patched:
        killed_after(patched, epochs)
        with pytest.raises(Killed):
            run(data, resume=file, **settings)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    shown = []
    step = classifier.augmented
    monkeypatch.setattr(classifier, "augmented", lambda x, d: shown.append(len(x)) or step(x, d))
    found = run(data, resume=file, **settings)
    pd.testing.assert_frame_equal(found[0], expected[0], check_exact=True)
    pd.testing.assert_frame_equal(found[1], expected[1], check_exact=True)
    assert found[2]["resumed"] == 1 and found[2]["seconds_before"] > 0
    assert len(shown) == 3 * 2 * 2 - epochs  # an epoch is one step here: none is run twice


RATES = [3e-3, 1e-4, 1e-3, 1e-5]


def trained_rates(monkeypatch, data, **settings):
    """What a run returns, and the learning rates of the trainings that it began."""
    begun, original = [], finetune.train

    def spy(*args, learning_rate, **kwargs):
        begun.append(learning_rate)
        return original(*args, learning_rate=learning_rate, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "train", spy)
        return tuned(data, learning_rates=RATES, **settings), begun


def test_halving_leaves_out_the_worse_half_of_the_rates_after_each_fold(monkeypatch):
    data = folds()
    (predicted, history, _), every = trained_rates(monkeypatch, data)
    assert every == RATES * 3
    first = history[history["fold"] == history["fold"].iloc[0]]
    best = first.sort_values(["val_auroc", "val_loss"], ascending=[False, True], kind="stable")
    best = best.drop_duplicates("learning_rate")["learning_rate"].tolist()
    (halved, left, how), begun = trained_rates(monkeypatch, data, halving=True)
    assert begun[:4] == RATES and set(begun[4:6]) == set(best[:2])
    assert len(begun) == 4 + 2 + 1 and begun[6] in begun[4:6]
    assert len(left) == 7 * SHORT["epochs"] and left.notna().all().all()
    assert set(left.loc[left["chosen"], "learning_rate"]) == {begun[6]}
    assert left["chosen"].sum() == 3 and how["candidates"] == 4 * SHORT["epochs"]
    # A training that is not left out is the same as without halving.
    both = left.merge(history, on=["fold", "learning_rate", "epoch"], suffixes=("", "_every"))
    assert len(both) == len(left) and (both["train_loss"] == both["train_loss_every"]).all()
    alone, *_ = tuned(data, learning_rates=[begun[6]])
    for one, other in zip(halved, alone, strict=True):
        assert np.array_equal(one.test, other.test) and np.array_equal(one.val, other.val)


@pytest.mark.parametrize("epochs", [1, 3, 5, 8, 10, 12, 13])
def test_a_halved_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, epochs):
    data, file = folds(), tmp_path / "checkpoint.safetensors"
    settings = {"learning_rates": RATES, "halving": True}
    monkeypatch.setattr(resume, "LONG", math.inf)
    expected = tuned(data, **settings)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_after(patched, epochs)
        tuned(data, resume=file, **settings)
    found = tuned(data, resume=file, **settings)
    assert found[2]["resumed"] == 1
    pd.testing.assert_frame_equal(found[1], expected[1], check_exact=True)
    for one, other in zip(found[0], expected[0], strict=True):
        assert np.array_equal(one.test, other.test)


@pytest.fixture(scope="module")
def two_rates():
    """The data and settings of a run: two rotations, two rates, two epochs; and its result."""
    pixels, index, rotations = folds()
    data, settings = (pixels, index, rotations[:2]), {"learning_rates": [3e-3, 1e-3]}
    return data, settings, tuned(data, **settings)


@pytest.mark.parametrize("epochs", range(1, 9))
def test_what_every_learning_rate_predicts_outlives_a_kill(
    tmp_path, monkeypatch, two_rates, epochs
):
    data, settings, (predicted, history, _) = two_rates
    file = tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(resume, "LONG", math.inf)
    with monkeypatch.context() as patched:
        killed_after(patched, epochs)
        with pytest.raises(Killed):
            tuned(data, resume=file, **settings)
    found, again, how = tuned(data, resume=file, **settings)
    assert how["resumed"] == 1 and len(history) == 8
    pd.testing.assert_frame_equal(again, history, check_exact=True)
    assert len(found) == len(predicted) == 2
    for one, other in zip(sum(found, ()), sum(predicted, ()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_that_is_killed_again_and_again_goes_on_each_time(tmp_path, monkeypatch):
    data, file = folds(), tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(resume, "LONG", math.inf)
    expected = run(data, epochs=3)
    for _ in range(4):
        with monkeypatch.context() as patched:
            killed_after(patched, 2)
            with pytest.raises(Killed):
                run(data, epochs=3, resume=file)
    found = run(data, epochs=3, resume=file)
    pd.testing.assert_frame_equal(found[0], expected[0], check_exact=True)
    assert found[2]["resumed"] == 4


@pytest.mark.parametrize(
    "other",
    [
        {"learning_rates": [1e-3]},
        {"epochs": 3},
        {"seed": 1},
        {"images_hash": "other"},
        {"backbone": "vit_tiny-random"},
        {"regime": "lora"},
    ],
)
def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path, monkeypatch, other):
    file = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patched:
        killed_after(patched, 1)
        with pytest.raises(Killed):
            run(folds(), resume=file, images_hash="one")
    settings = {"images_hash": "one"} | other
    expected = run(folds(), **settings)
    with pytest.warns(UserWarning, match="not a checkpoint of these images, settings and code"):
        found = run(folds(), resume=file, **settings)
    pd.testing.assert_frame_equal(found[0], expected[0], check_exact=True)
    assert found[2]["resumed"] == 0


def test_a_checkpoint_that_cannot_be_read_is_not_gone_on_with(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"half a")
    with pytest.warns(UserWarning, match="starting anew"):
        assert run(folds(), resume=file)[2]["resumed"] == 0


def test_a_checkpoint_is_written_seldom_where_it_takes_longer_than_an_epoch(tmp_path, monkeypatch):
    written, replacing = [], files.replacing

    @contextlib.contextmanager
    def slow(path):
        clock[0] += 100
        written.append(path)
        with replacing(path) as temporary:
            yield temporary

    clock = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(files, "replacing", slow)
    at, model = resume.Progress(), bare()
    for _ in range(30):
        clock[0] += 60
        resume.keep(tmp_path / "kept", "identity", at, model, classifier.copied(model))
    assert len(written) == 2  # at 60, and once more after another 1000 seconds


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(FloatingPointError, match="from step 2 of 3 in epoch 1"):
        run(problem(), learning_rates=[1e-3, 1e30], resume=file)
    from safetensors import safe_open

    with safe_open(file, "pt") as kept:
        values = [kept.get_tensor(name) for name in kept.keys()]  # noqa: SIM118
    assert values and all(torch.isfinite(value.float()).all() for value in values)


def test_progress_counts_the_images_of_every_step():
    done = []
    train_bare(bare(), [0, 1] * 5, epochs=2, progress=done.append)
    assert done == [4] * 4  # of ten images two are left out in each epoch


def test_a_network_compiles_as_one_graph_that_computes_the_same():
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = classifier.Classifier(CNN, 32, 2).train()
    expected = copy.deepcopy(model)(inputs)
    names = list(model.state_dict())
    model.compile(backend="eager", fullgraph=True)
    assert torch.equal(model(inputs), expected)
    assert list(model.state_dict()) == names


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regime": "Lora"}, "Unknown regime 'Lora'. .*finetuned, lora"),
        ({"regime": "lora", "lora_rank": 0}, "lora_rank is 0, but must be 1 or more"),
        ({"checkpointing": "on"}, "Unknown checkpointing 'on'. .*auto, always, never"),
        ({"checkpointing": "always", "backbone": "vgg16-random"}, "vgg16-random cannot checkpoint"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(problem(), **settings)


def test_a_loss_that_is_not_finite_names_its_epoch_and_learning_rate():
    with pytest.raises(FloatingPointError, match=r"epoch 1 on, at learning rate 1e\+30") as caught:
        run(problem(), learning_rates=[1e-3, 1e30])
    assert "learning_rates" in str(caught.value)


def test_a_loss_that_is_not_finite_later_names_the_later_epoch():
    model = bare()
    pixels, y = np.zeros((8, 2, 2, 3), np.uint8), np.array([0, 1] * 4)
    training = train(model, pixels, y, np.arange(8), learning_rate=2e-4, epochs=3, batch_size=4)
    assert next(training)[0] == 1
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match="nan from step 1 of 2 in epoch 2 on, at learning.* 0.0002:"
    ):
        next(training)


def test_an_unknown_backbone_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="Unknown backbone 'micro_resnet'.*vit_tiny-random"):
        run(problem(), backbone="micro_resnet")


# -------------------------------------------------------------------------- the paper's networks


@pytest.mark.parametrize("backbone", ["densenet121-random", "resnet50-random"])
def test_the_papers_middling_networks_run_frozen_and_fine_tuned(tmp_path, monkeypatch, backbone):
    # The largest, VGG16 and ViT-L, go through the notebooks in test_notebooks.
    size = 32
    pixels, index, rotations = problem(train=8, val=4, test=4, size=size)
    built = networks.build(backbone, size)
    monkeypatch.setattr(networks, "build", lambda *_: built)
    cpu = Extraction(device="cpu")
    made, _ = features.extract(pixels, backbone, tmp_path, images_hash="made here", settings=cpu)
    assert len(made) == 16 and np.isfinite(made).all()
    assert np.ptp(made, axis=0).max() > 0
    first = next(built[0].parameters())
    before = first.detach().clone()
    data = pixels, index, rotations
    found, history, how = run(data, backbone, learning_rates=[1e-5], epochs=1)
    assert len(found) == 4 and np.isfinite(probabilities(found)).all()
    assert np.isfinite(history[["train_loss", "val_loss", "val_auroc"]]).all(axis=None)
    assert how["weights_digest"] == built[1]
    assert not torch.equal(first, before)


# ------------------------------------------------------------------------------- models


def kept_models(folder):
    return sorted(path.name for path in folder.glob("trained-*"))


@pytest.mark.parametrize("regime", ["finetuned", "lora"])
def test_the_weights_of_each_training_are_kept_on_request_and_predict_as_it_did(tmp_path, regime):
    data, settings = folds(), {"epochs": 2, "learning_rates": [1e-3, 3e-3], "regime": regime}
    pixels, _, rotations = data
    without, _, _ = tuned(data, kept=resume.Kept(tmp_path / "checkpoint"), **settings)
    assert kept_models(tmp_path) == []
    keeping = resume.Kept(tmp_path / "checkpoint", models=True)
    predicted, history, _ = tuned(data, kept=keeping, **settings)
    for one, other in zip(without, predicted, strict=True):
        np.testing.assert_array_equal(one.test, other.test)
    names = [
        f"trained-fold{r.fold}-{rate}.safetensors" for r in rotations for rate in (0.001, 0.003)
    ]
    assert kept_models(tmp_path) == sorted(names)
    chosen = history[history["chosen"]].set_index("fold")["learning_rate"]
    rank = 8 if regime == "lora" else 0
    model = classifier.Classifier(CNN, 32, len(CLASSES), lora_rank=rank)
    model = fusing.place(model, "cpu")
    for rotation, own in zip(rotations, predicted, strict=True):
        saved = load_file(keeping.model(rotation.fold, chosen[rotation.fold]))
        assert saved.keys() == classifier.learnt(model).keys()
        classifier.assign(classifier.learnt(model), saved)
        again = finetune.predict(model, pixels, np.flatnonzero(rotation.test))
        np.testing.assert_allclose(again, own.test, atol=1e-7)


def test_a_resumed_run_keeps_all_its_models(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "LONG", math.inf)
    data, keeping = folds(), resume.Kept(tmp_path / "checkpoint", models=True)
    original, calls = resume.keep, []

    def stop(*given):
        original(*given)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "keep", stop)
        tuned(data, kept=keeping, epochs=2)
    before = kept_models(tmp_path)
    *_, how = tuned(data, kept=keeping, epochs=2)
    assert how["resumed"] == 1 and len(before) < len(kept_models(tmp_path)) == len(data[2])
