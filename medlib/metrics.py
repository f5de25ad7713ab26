"""Point metrics of predictions, and their 95 % intervals from a bootstrap over patients.

Everything is computed from class probabilities ``(n, K)``, labels ``(n,)`` in 0 … K-1 and sample
weights. A resample of patients is a vector of weights: how often each patient was drawn. All
resamples are computed at once, without drawing a single copy of the data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "auroc",
    "auprc",
)
CHUNK = 10_000_000  # weights held at once, in elements (80 MB in float64)


def probability_columns(classes: list[str]) -> list[str]:
    """The columns of predictions.csv that hold the classes' probabilities."""
    return [f"prob_{name}" for name in classes]


def prediction_frame(index: pd.DataFrame, proba: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Predictions by sample: the mean probability over its rows (the slices of a volume).

    ``index`` has a row per row of ``proba`` (n, K): sample_id, patient_id, label, split or fold.
    """
    columns = probability_columns(classes)
    side = "split" if "split" in index else "fold"
    frame = index[["sample_id", "patient_id", side]].assign(y_true=index["label"])
    frame[columns] = proba
    keys = ["sample_id", "patient_id", side, "y_true"]
    return frame.groupby(keys, sort=False, as_index=False)[columns].mean()


def compute(
    y: np.ndarray, proba: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every metric of :data:`NAMES`, once per row of ``weights``.

    ``y`` (n,) labels in 0 … K-1; ``proba`` (n, K); ``weights`` (B, n), or None for one row of
    ones. Returns arrays of shape (B,). As scikit-learn defines them: precision is 0 for a class
    that is never predicted; balanced accuracy is the mean over the classes present; AUROC and
    AUPRC (average precision) are one-versus-rest means over classes, for two classes of the
    second class. Where a class with no weight makes a metric undefined it is NaN.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    n, k = proba.shape
    weights = np.ones((1, n)) if weights is None else np.asarray(weights, dtype=np.float64)
    hot = np.eye(k)[y]
    predicted = np.eye(k)[proba.argmax(1)]
    support = weights @ hot  # (B, K)
    hits = weights @ (hot * predicted)
    called = weights @ predicted
    total = support.sum(1)
    present = support > 0
    recall = _ratio(hits, support)
    precision = _ratio(hits, called)
    f1 = _ratio(2 * hits, support + called)
    share = support / total[:, None]
    ranked = [1] if k == 2 else range(k)
    areas = [_areas(hot[:, c], proba[:, c], weights) for c in ranked]
    return {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": (recall * present).sum(1) / present.sum(1),
        "precision_weighted": (precision * share).sum(1),
        "recall_weighted": (recall * share).sum(1),
        "f1_weighted": (f1 * share).sum(1),
        "auroc": np.mean([area[0] for area in areas], axis=0),
        "auprc": np.mean([area[1] for area in areas], axis=0),
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _areas(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision for every row of weights, ties counted as scikit-learn does."""
    if not np.isfinite(score).all():  # sorted last, NaN would be ranked by the order of its rows
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan))  # last of each run of equal scores
    ordered = weights[:, order]
    true = np.cumsum(ordered * positive[order], axis=1)[:, ends]
    false = np.cumsum(ordered * (1 - positive[order]), axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        tpr, fpr = true / true[:, -1:], false / false[:, -1:]
        start = np.zeros((len(weights), 1))
        auroc = np.trapezoid(np.hstack([start, tpr]), np.hstack([start, fpr]), axis=1)
        precision = _ratio(true, true + false)
        auprc = (np.diff(tpr, axis=1, prepend=0) * precision).sum(1)
    return auroc, auprc


def auroc(y: np.ndarray, proba: np.ndarray) -> float:
    """Macro one-versus-rest AUROC, the metric by which hyper-parameters are chosen.

    NaN when a class is missing.
    """
    ranked = [1] if proba.shape[1] == 2 else range(proba.shape[1])
    one = np.ones((1, len(y)))
    return float(np.mean([_areas((y == c).astype(float), proba[:, c], one)[0] for c in ranked]))


def codes(labels: pd.Series, classes: list[str]) -> np.ndarray:
    """Labels (n,) as their positions in ``classes``; ValueError for one that is no class."""
    strangers = sorted(set(labels) - set(classes), key=str)
    if strangers:
        raise ValueError(
            f"The label {strangers[0]!r} is none of the classes ({', '.join(classes)}). Labels are "
            "text: read predictions with compare.read_predictions, manifests with manifest.read."
        )
    return pd.Categorical(labels, categories=classes).codes.astype(np.int64)


def arrays(predictions: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) in 0 … K-1 and probabilities (n, K) of a predictions frame."""
    proba = predictions[probability_columns(classes)].to_numpy()
    return codes(predictions["y_true"], classes), proba


def point(predictions: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Every metric of a predictions frame (one row a sample)."""
    y, proba = arrays(predictions, classes)
    return {name: float(value[0]) for name, value in compute(y, proba).items()}


def bootstrap(
    predictions: pd.DataFrame, classes: list[str], resamples: int = 5000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Every metric on ``resamples`` draws of patients with replacement: arrays (resamples,).

    A patient's samples are drawn together. Two frames with the same patients and the same
    ``seed`` get the same draws, whatever their order, so their differences are paired.
    """
    y, proba = arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    rng, parts = np.random.default_rng(seed), []
    chunk = max(1, CHUNK // len(y))
    for start in range(0, resamples, chunk):
        size = (min(chunk, resamples - start), len(patients))
        draws = rng.integers(len(patients), size=size)
        counts = np.stack([np.bincount(row, minlength=len(patients)) for row in draws])
        parts.append(compute(y, proba, counts[:, owner]))
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values.

    Resamples in which a class is missing leave AUROC and AUPRC undefined (NaN); they are left
    out, and the interval is that of the others.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
