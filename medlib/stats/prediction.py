"""Predictions as a table: a row for each sample, a column of probabilities for each class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medlib.core.metrics import codes
from medlib.stats import metrics


def probability_columns(classes: list[str]) -> list[str]:
    """The columns of predictions.csv that hold the classes' probabilities."""
    return [f"prob_{name}" for name in classes]


def prediction_frame(index: pd.DataFrame, proba: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Predictions by sample: the mean probability over its rows (the slices of a volume).

    ``index`` has a row for each row of ``proba`` (n, K): sample_id, patient_id, label, and split or
    fold.
    """
    columns = probability_columns(classes)
    keys = ["sample_id", "patient_id", "split" if "split" in index else "fold", "y_true"]
    frame = index.assign(y_true=index["label"])[keys].copy()
    frame[columns] = proba
    return frame.groupby(keys, sort=False, as_index=False)[columns].mean()


def out_of_fold(
    index: pd.DataFrame, rotations: list, probabilities: list[np.ndarray], classes: list[str]
) -> pd.DataFrame:
    """Predictions of all rotations, from the probabilities (m, K) of each one's test rows."""
    parts = zip(rotations, probabilities, strict=True)
    frames = [prediction_frame(index[part.test], proba, classes) for part, proba in parts]
    return pd.concat(frames, ignore_index=True)


def arrays(predictions: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The labels (n,), as numbers from 0 to K-1, and the probabilities (n, K) in a table."""
    proba = predictions[probability_columns(classes)].to_numpy()
    return codes(predictions["y_true"], classes), proba


def point(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, float]:
    """The metrics of a table of predictions with one row for each sample.

    See :func:`metrics.compute`.
    """
    values = metrics.compute(*arrays(predictions, classes), names=names)
    return {name: float(value[0]) for name, value in values.items()}
