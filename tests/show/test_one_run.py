"""Figures of one data set or one run: images, embeddings, choices, training, ROC curves."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from shown import all_words, legend_words

from medlib.show.figures import predictions, training
from medlib.show.figures.embeddings import projection
from medlib.show.figures.images import copies, predicted, sample_grid, slice_strip
from medlib.show.names import HEADS

CLASSES = ["low grade", "high grade"]


def test_sample_grid_has_a_row_per_class_with_counts():
    images = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    labels = ["low grade"] * 7 + ["high grade"] * 2
    fig = sample_grid(images, labels, CLASSES, per_class=3, title="MRI")
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [
        "low grade\n7 images",
        "high grade\n2 images",
    ]
    shown = [[int(ax.images[0].get_array().max()) for ax in row if ax.images] for row in axes]
    assert shown == [[0, 3, 6], [7, 8]]  # spread over the class, none shown twice
    with pytest.raises(ValueError, match="uint8"):
        sample_grid(images / 9, labels, CLASSES)


def test_slice_strip_shows_one_volume_per_class_in_slice_order_with_its_orientation():
    index = pd.DataFrame(
        {
            "sample_id": ["b"] * 3 + ["a"] * 20 + ["c"] * 2,
            "label": ["low grade"] * 3 + ["high grade"] * 20 + ["low grade"] * 2,
            "slice": [71, 69, 70, *range(20), 5, 6],
        }
    )
    images = np.arange(25, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    fig = slice_strip(images, index, CLASSES, title="MRI")
    axes = np.array(fig.axes).reshape(2, 8)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["low grade\nb", "high grade\na"]
    shown = [[int(ax.images[0].get_array().max()) for ax in row if ax.images] for row in axes]
    assert shown == [[1, 2, 0], [3, 6, 8, 11, 14, 17, 19, 22]]  # eight of twenty slices
    numbers = [[ax.texts[0].get_text() for ax in row if ax.images] for row in axes]
    assert numbers == [["69", "70", "71"], ["0", "3", "5", "8", "11", "14", "16", "19"]]
    letters = {text.get_text(): text.get_position() for text in axes[0, 0].texts[1:]}
    assert letters["R"][0] < letters["A"][0] == letters["P"][0] < letters["L"][0]
    assert letters["P"][1] < letters["R"][1] == letters["L"][1] < letters["A"][1]
    assert not any(ax.texts[1:] for ax in axes.flat[1:])
    both = slice_strip(images, index)
    assert [ax.get_ylabel()[:3] for ax in both.axes[::8]] == ["low", "hig"]


def test_projection_separates_what_is_separate_and_states_the_variance():
    rng = np.random.default_rng(0)
    labels = np.array(CLASSES)[np.arange(80) % 2]
    embeddings = rng.normal(size=(80, 5)) * [1, 10, 100, 1, 1]
    embeddings[labels == "high grade"] += np.array([8, 80, 800, 8, 8])
    fig = projection(embeddings, labels, CLASSES, title="ResNet50")
    ax = fig.axes[0]
    low, high = (points.get_offsets()[:, 0] for points in ax.collections)
    assert max(low) < min(high) or max(high) < min(low)
    share = float(re.search(r"\((\d+\.\d) % of variance\)", ax.get_xlabel())[1])
    assert 85 < share < 100  # columns are standardised: otherwise the third one alone would give 99
    assert legend_words(fig) == ["low grade (40)", "high grade (40)"]


def choices() -> pd.DataFrame:
    rows = []
    for head, name, values in (
        ("mlp", "learning_rate", [1e-4, 1e-3]),
        ("linear", "C", [1e-4, 1e-2, 1.0, 100.0]),
        ("knn", "k", [3, 5, 9]),
    ):
        for fold in range(3):
            for i, value in enumerate(values):
                score = {"val_auroc": 0.7 + 0.01 * i + 0.02 * fold, "chosen": i == 1}
                rows.append({"head": head, "fold": fold, "value": value} | score)
                rows[-1]["hyperparameter"] = name
    return pd.DataFrame(rows)


def test_validation_curve_has_a_panel_per_head_with_its_choices():
    fig = training.validation_curve(choices())
    assert [ax.get_title("left") for ax in fig.axes] == list(HEADS.values())
    assert [ax.get_xlabel() for ax in fig.axes] == ["C", "k", "learning rate"]
    *folds, mean, chosen = fig.axes[0].lines
    assert len(folds) == 3
    np.testing.assert_allclose(mean.get_ydata(), [0.72, 0.73, 0.74, 0.75])
    assert set(chosen.get_xdata()) == {1e-2} and len(chosen.get_xdata()) == 3


def test_learning_curves_show_losses_and_mark_what_was_kept():
    steps = list(itertools.product(range(2), (1e-5, 1e-4), (1, 2, 3)))
    history = pd.DataFrame(steps, columns=["fold", "learning_rate", "epoch"])
    rate, epoch = history["learning_rate"], history["epoch"]
    history = history.assign(train_loss=1 / epoch, val_loss=1.1 / epoch)
    history = history.assign(val_auroc=0.6 + 0.05 * epoch, chosen=(rate == 1e-4) & (epoch == 2))
    fig = training.learning_curves(history)
    loss, auroc = fig.axes
    curves = [line for line in loss.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 2 * 2 * 2 and len({line.get_color() for line in curves}) == 2
    dashed = [line for line in curves if line.is_dashed()]
    assert len(dashed) == 4
    for line in curves:
        first = 1 if line in dashed else 1.1  # training losses are dashed
        np.testing.assert_allclose(line.get_ydata(), [first, first / 2, first / 3])
    assert len([line for line in auroc.lines if len(line.get_xdata()) == 3]) == 4
    stars = auroc.lines[-1]
    assert list(stars.get_xdata()) == [2, 2]
    np.testing.assert_allclose(stars.get_ydata(), 0.7)
    assert legend_words(fig) == [
        "learning rate:",
        "1e-5",
        "0.0001",
        "loss in:",
        "training",
        "validation",
        "kept",
    ]


def test_new_images_are_shown_from_the_most_usual_to_the_farthest_and_the_unusual_are_framed():
    samples = [f"folder/of/a/hospital/number_{i}.png" for i in range(5)]
    table = pd.DataFrame({"sample_id": samples, "prob_low grade": [0.9, 0.2, 0.6, 0.5, 0.4]})
    table["prob_high grade"] = 1 - table["prob_low grade"]
    table["class"] = ["low grade", "high grade", "low grade", "low grade", "high grade"]
    table["distance"] = [0.9, 3.25, 0.3, 0.5, 1.5]
    table["unusual"] = table["distance"] > 1
    pictures = {s: np.full((4, 4, 3), i, np.uint8) for i, s in enumerate(samples)}
    fig = predicted(pictures, table, CLASSES, title="New")
    axes = [ax for ax in fig.axes if ax.images]
    assert [int(ax.images[0].get_array().max()) for ax in axes] == [2, 3, 0, 4, 1]
    words = [[text.get_text() for text in ax.texts] for ax in axes]
    assert words[0] == ["low grade\n0.60", "…al/number_2.png\ndistance 0.30"]
    assert words[-1] == ["high grade\n0.80", "…al/number_1.png\nunusual: 3.25"]
    assert [ax.spines["top"].get_visible() for ax in axes] == [False] * 3 + [True] * 2
    assert len(predicted({samples[0]: pictures[samples[0]]}, table, CLASSES).axes) == 1


def test_copies_are_side_by_side_with_names_sides_and_kind_and_the_rest_is_counted():
    one = {"kind": "cropped", "correlation": 0.914, "first_side": "train", "second_side": "test"}
    pairs = pd.DataFrame([one | {"first": f"a{k}", "second": f"b{k}"} for k in range(7)])
    numbers = np.arange(8, dtype=np.uint8).reshape(4, 2, 1, 1, 1)
    pictures = np.broadcast_to(numbers, (4, 2, 8, 6, 3))
    fig = copies(pairs, pictures, title="Pairs")
    assert len(fig.axes) == 8  # four pairs, in their order
    values = [ax.images[0].get_array()[0, 0, 0] for ax in fig.axes]
    assert values == list(range(8))
    words = all_words(fig)
    assert "a3 (train)\nb3 (test)\ncropped, correlation 0.91" in words
    assert "Pairs (4 of 7 pairs)" in words and "a4" not in words
    left, right = (ax.get_position() for ax in fig.axes[:2])
    assert left.x1 < right.x0 and left.y0 == pytest.approx(right.y0)


def test_names_of_classes_are_printed_as_words():
    classes = ["grade_II", "grade_III"]
    labels, images = np.repeat(classes, 2), np.zeros((4, 4, 4, 3), np.uint8)
    rows = {"sample_id": ["a", "a", "b", "b"], "label": labels, "slice": range(4)}
    judged = {"y_true": labels, "prob_grade_II": 0.5, "prob_grade_III": 0.5}
    for fig in (
        sample_grid(images, labels, classes),
        slice_strip(images, pd.DataFrame(rows)),
        projection(np.random.default_rng(0).normal(size=(4, 3)), labels, classes),
        predictions.roc_curves(pd.DataFrame(judged), classes),
    ):
        words = all_words(fig)
        assert "grade III" in words and "_" not in words


def test_roc_curves_state_the_auroc():
    truth = np.array(["low grade", "low grade", "high grade", "high grade"])
    risk = np.array([0.1, 0.6, 0.4, 0.9])  # three of the four pairs are in order
    frame = pd.DataFrame({"y_true": truth, "prob_low grade": 1 - risk, "prob_high grade": risk})
    fig = predictions.roc_curves(frame, CLASSES)
    assert legend_words(fig) == ["high grade: AUROC 0.750"]
    frame["prob_other"] = 0.0
    fig = predictions.roc_curves(frame, [*CLASSES, "other"])
    assert legend_words(fig) == [
        "low grade: AUROC 0.750",
        "high grade: AUROC 0.750",
        "other: AUROC undefined",
    ]


def test_the_auroc_of_a_cross_validation_is_the_mean_over_folds_by_their_patients():
    risk = [0.1, 0.4, 0.05, 0.6, 0.9, 0.95, 0.2]
    truth = ["low grade", "high grade", "high grade", "low grade", "high grade"]
    frame = pd.DataFrame({"y_true": [*truth, "high grade", "high grade"], "prob_high grade": risk})
    frame["prob_low grade"] = 1 - frame["prob_high grade"]
    frame["fold"] = [0, 0, 0, 1, 1, 2, 2]  # the last fold lacks a class, so it has no AUROC
    frame["patient_id"] = ["a", "b", "c", "d", "d", "e", "f"]
    # Fold 0: three patients, and one of two pairs is in order. Fold 1: one patient, one of one.
    fig = predictions.roc_curves(frame, CLASSES)
    assert legend_words(fig) == ["high grade: AUROC 0.625"]
    # Without folds all ten pairs count: 0.1 is below four of the scores, 0.6 below two.
    fig = predictions.roc_curves(frame.drop(columns="fold"), CLASSES)
    assert legend_words(fig) == ["high grade: AUROC 0.600"]
