"""medlib.stats.prediction: predictions as frames, and their metrics."""

import numpy as np
import pandas as pd
import pytest
from scored import by_sklearn, case, frame, names

from medlib.stats import prediction


def test_point_reads_labels_by_name_and_classes_in_the_order_of_the_task():
    y, proba = case(3, n=45, seed=6)
    rows = frame(y, proba)
    point = prediction.point(rows[rows.columns[::-1]], names(3))  # column order does not matter
    assert point == pytest.approx(by_sklearn(y, proba), rel=0, abs=1e-12)
    assert all(isinstance(value, float) for value in point.values())


def test_a_label_that_is_no_class_is_refused():
    # Grades read without dtype=str are numbers; they must not all be counted as the last class.
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
