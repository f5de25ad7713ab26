"""Tables of predictions: one row per sample, one column of probabilities per class."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from medlib.core.metrics import codes, ratio_or_nan
from medlib.core.splits import Predicted
from medlib.stats import metrics


def probability_columns(classes: list[str]) -> list[str]:
    """The columns of predictions.csv that hold the classes' probabilities."""
    return [f"prob_{name}" for name in classes]


def prediction_frame(index: pd.DataFrame, proba: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Average the probabilities over the rows of each sample (the slices of a volume).

    ``index`` has a row for each row of ``proba`` (n, K): sample_id, patient_id, label, and split or
    fold. The result has one row per sample: these columns (``label`` becomes ``y_true``) and one
    column of probabilities per class.
    """
    columns = probability_columns(classes)
    keys = ["sample_id", "patient_id", "split" if "split" in index else "fold", "y_true"]
    frame = index.assign(y_true=index["label"])[keys].copy()
    frame[columns] = proba
    return frame.groupby(keys, sort=False, as_index=False)[columns].mean()


def out_of_fold(
    index: pd.DataFrame, rotations: list, probabilities: list[np.ndarray], classes: list[str]
) -> pd.DataFrame:
    """One table of the test predictions of all rotations.

    ``probabilities`` has an array (m, K) for the test rows of each rotation.
    """
    parts = zip(rotations, probabilities, strict=True)
    frames = [prediction_frame(index[part.test], proba, classes) for part, proba in parts]
    return pd.concat(frames, ignore_index=True)


def tables(
    index: pd.DataFrame, rotations: list, predicted: list[Predicted], classes: list[str]
) -> dict[str, pd.DataFrame]:
    """The tables of a run's predictions, by file name.

    predictions.csv has the test samples, validation.csv the validation samples. In validation.csv,
    ``rotation`` is the fold on which the model of the row is tested.
    """
    validated = [
        prediction_frame(index[part.val], own.val, classes).assign(rotation=part.fold)
        for part, own in zip(rotations, predicted, strict=True)
    ]
    tested = out_of_fold(index, rotations, [own.test for own in predicted], classes)
    return {"predictions.csv": tested, "validation.csv": pd.concat(validated, ignore_index=True)}


def arrays(predictions: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The labels (n,), as numbers from 0 to K-1, and the probabilities (n, K) in a table."""
    proba = predictions[probability_columns(classes)].to_numpy()
    return codes(predictions["y_true"], classes), proba


def against_rest(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Predictions with two classes: "not <name>" first, then ``name``."""
    own = frame[probability_columns([name])[0]]
    rest = f"not {name}"
    columns = [c for c in frame if not c.startswith("prob_")]
    two = frame[columns].assign(y_true=frame["y_true"].where(frame["y_true"] == name, rest))
    return two.assign(**{f"prob_{rest}": 1 - own, f"prob_{name}": own})


def folds(predictions: pd.DataFrame) -> Iterator[tuple[np.ndarray, float]]:
    """Yield for each fold the mask (n,) of its rows, and its share of the test patients.

    With an official test set there is a single fold, with all rows.
    """
    if "fold" not in predictions:
        yield np.ones(len(predictions), dtype=bool), 1.0
        return
    fold = predictions["fold"]
    patients = predictions["patient_id"].groupby(fold).nunique()
    for name, n in patients.items():
        yield (fold == name).to_numpy(), n / patients.sum()


def by_rotation(
    predictions: pd.DataFrame, validation: pd.DataFrame
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """For each rotation: the mask (n,) of its test rows, and the rows of its validation patients.

    Both tables are those of :func:`tables`. With an official test set there is one rotation, which
    tests all rows of ``predictions``. Raises ValueError if there are no predictions of validation
    patients.
    """
    if validation.empty:
        raise ValueError("This run has no predictions of validation patients: run it again.")
    for rotation, own in validation.groupby(validation["rotation"].astype(str)):
        rows = np.ones(len(predictions), dtype=bool)
        if "fold" in predictions:
            rows = (predictions["fold"].astype(str) == rotation).to_numpy()
        yield rows, own


def evaluator(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], list]:
    """A function from weights (B, patients) to metrics (B,), and the sorted patients.

    The function returns an array (B,) for each name. In cross-validation a metric is the mean over
    folds, weighted by their numbers of test patients. Scores are not pooled, because each fold has
    its own model and the models' scores are on different scales. If a draw lacks a class in a fold,
    so that a metric is undefined there, this fold is left out of the draw's mean. Raises ValueError
    as :func:`metrics.compute` does.
    """
    names = metrics.checked(names, len(classes))
    (y, proba), parts = arrays(predictions, classes), []
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    for rows, share in folds(predictions):
        own, number = np.unique(owner[rows], return_inverse=True)
        parts.append((own, share, metrics.evaluator(y[rows], proba[rows], number, names)))

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = [part(weights.take(own, axis=1)) for own, _, part in parts]
        shares = [share for _, share, _ in parts]
        return {name: over_folds([of[name] for of in values], shares) for name in names}

    return evaluate, list(patients)


def over_folds(values: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """The mean of ``values`` over folds, weighted by ``shares``, without undefined values (NaN)."""
    values = np.array(values)
    weights = np.reshape(shares, (-1, *[1] * (values.ndim - 1))) * np.isfinite(values)
    return ratio_or_nan((weights * np.nan_to_num(values)).sum(0), weights.sum(0))


def rarest(predictions: pd.DataFrame) -> int:
    """How many patients the rarest class has."""
    return int(predictions.groupby("y_true")["patient_id"].nunique().min())


def point(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, float]:
    """The metrics of a table of predictions with one row for each sample: see :func:`evaluator`."""
    evaluate, patients = evaluator(predictions, classes, names)
    return {name: float(v[0]) for name, v in evaluate(np.ones((1, len(patients)), int)).items()}
