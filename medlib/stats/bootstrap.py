"""Confidence intervals: bootstrap over patients, jackknife, BCa, DeLong.

Draws of patients are those of :mod:`medlib.stats.draws`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from scipy import special, stats

from medlib.stats import draws, metrics, prediction

CHUNK = 1 << 17  # elements of weights that a thread holds at once, so that they fit the cache
LEVEL = 0.95  # of all intervals
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
Z = float(stats.norm.ppf(TAILS[1]))


def bootstrap(
    predictions: pd.DataFrame,
    classes: list[str],
    resamples: int = 5000,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Metrics on ``resamples`` draws of patients: arrays (resamples,) by name.

    All samples of a patient are drawn together. Each patient gets the same counts in every frame,
    so that frames and metrics are paired by draw. The values are the same, to the bit, for any
    number of ``threads`` (default: one per core). In addition to the sorted samples, each thread
    holds at most 100 bytes times :data:`CHUNK`, or times the number of samples if that is larger.
    Raises ValueError as :func:`metrics.compute` does.
    """
    evaluate, patients = prediction.evaluator(predictions, classes, names)
    at_once = max(1, CHUNK // len(predictions))
    starts = range(0, max(resamples, 1), at_once)

    def work(start: int) -> dict[str, np.ndarray]:
        drawn = draws.counts(patients, start, min(start + at_once, resamples), seed)
        return evaluate(drawn.astype(np.int64))

    parts = joblib.Parallel(threads or joblib.cpu_count(), backend="threading")
    return _joined(parts(map(joblib.delayed(work), starts)))


def error(values: np.ndarray) -> float:
    """The standard error that draws show: their standard deviation without undefined ones (NaN).

    NaN for fewer than two defined values.
    """
    values = values[np.isfinite(values)]
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


class Estimate(NamedTuple):
    """A metric of several frames of the same samples: the mean over them, and its 95 % interval.

    The interval is about other patients, for these trained models.
    """

    value: float
    low: float
    high: float
    draws: np.ndarray  # (resamples,)


def estimates(
    frames: Sequence[pd.DataFrame], classes: list[str], names: Sequence[str], resamples: int = 5000
) -> dict[str, Estimate]:
    """Metrics by name, as means over ``frames``: predictions of the same samples by several models.

    The intervals are those of :func:`interval`. Raises ValueError as :func:`metrics.compute` does.
    """
    points = [prediction.point(frame, classes, names) for frame in frames]
    drawn = [bootstrap(frame, classes, resamples, names=names) for frame in frames]
    left_out = [name for name in names if takes_bca(name) and name != "ece"]
    apart = [jackknife(frame, classes, left_out) for frame in frames] if left_out else []
    rarest, found = prediction.rarest(frames[0]), {}
    for name in names:
        value, draws, without = (
            np.mean([of[name] for of in parts if name in of] or [[]], axis=0)
            for parts in (points, drawn, apart)
        )
        ends = interval(name, float(value), draws, without, rarest)
        found[name] = Estimate(float(value), *ends, draws)
    return found


def difference(one: Estimate, other: Estimate, correlation: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of ``one`` minus ``other``, combined from the interval of each.

    ``correlation``: of the two over draws of patients; 0 if these are other patients. (MOVER: Zou,
    Psychol. Methods 12, 2007.) NaN where one of them has no interval.
    """
    down, up = one.value - one.low, one.high - one.value
    other_down, other_up = other.value - other.low, other.high - other.value
    below = down**2 + other_up**2 - 2 * correlation * down * other_up
    above = up**2 + other_down**2 - 2 * correlation * up * other_down
    gap = one.value - other.value
    return float(gap - np.sqrt(max(below, 0))), float(gap + np.sqrt(max(above, 0)))


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def jackknife(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Leave out each patient in turn and compute the metrics: arrays (patients,) by name.

    Patients are in the order of their sorted ids, so that the seeds of a cell can be averaged.
    """
    evaluate, patients = prediction.evaluator(predictions, classes, names)
    n, parts, at_once = len(patients), [], max(1, CHUNK // len(predictions))
    for start in range(0, n, at_once):
        parts.append(evaluate(1 - np.eye(min(at_once, n - start), n, start, dtype=np.int64)))
    return _joined(parts)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap values; undefined ones (NaN) are left out."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, TAILS) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    """The columns of an interval: ``<name>_low`` and ``<name>_high``."""
    return dict(zip((f"{name}_low", f"{name}_high"), ends, strict=True))


def logit_interval(value: float, error: float, n: int, reach: float = Z) -> tuple[float, float]:
    """The interval of a proportion (0 to 1) with standard error ``error``, on the logit scale.

    It is ``reach`` standard errors wide to each side. A value of 0 or 1 has no logit. It gets
    Wilson's interval (JASA 22, 1927) for ``n`` patients, those of the rarer class.
    """
    if not np.isfinite(value):
        return np.nan, np.nan
    if not 1e-9 < value < 1 - 1e-9:
        other = reach**2 / (n + reach**2)
        return (0.0, other) if value < 0.5 else (1 - other, 1.0)
    half = reach * error / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-half, half]))
    return float(low), float(high)


def takes_bca(name: str) -> bool:
    """Whether a metric gets a BCa interval: losses and kappas, which are not proportions."""
    return name in metrics.LOSSES or name.startswith("kappa")


def interval(
    name: str, value: float, values: np.ndarray, left_out: np.ndarray, rarest: int
) -> tuple[float, float]:
    """The 95 % interval over patients of the metric ``name``, from its resamples ``values``.

    Proportions get the logit interval with the bootstrap's standard deviation. Losses and kappas
    get BCa. The expected calibration error has no interval: it is biased upwards, resampling adds
    to the bias, and so no interval covers the truth. ``rarest`` is the number of patients of the
    rarest class; ``left_out`` is as in :func:`bca_interval`. NaN where there is no interval.
    """
    if name == "ece" or np.isfinite(values).sum() < 2:
        return np.nan, np.nan
    if takes_bca(name):
        return bca_interval(values, value, left_out)
    return logit_interval(value, error(values), rarest)


def bca_interval(values: np.ndarray, point: float, left_out: np.ndarray) -> tuple[float, float]:
    """The 95 % bias-corrected and accelerated interval (Efron, JASA 1987) of bootstrap ``values``.

    ``point`` is the metric of the sample itself, ``left_out`` its values without one patient
    (:func:`jackknife`). Undefined values are left out. NaN where there is no such interval, because
    all values lie on one side of the point.
    """
    values, left_out = values[np.isfinite(values)], left_out[np.isfinite(left_out)]
    below = ((values < point).mean() + (values <= point).mean()) / 2 if len(values) else 0
    if not len(left_out) or not 0 < below < 1:
        return float("nan"), float("nan")
    apart = left_out.mean() - left_out
    spread = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    bias = special.ndtri(below)
    wanted = bias + special.ndtri(TAILS)
    low, high = np.quantile(values, special.ndtr(bias + wanted / (1 - acceleration * wanted)))
    return float(low), float(high)


def delong(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (m,) of ``scores`` (m, n) on the same samples, and their covariance (m, m).

    ``y`` (n,) is 1 for positive samples, else 0. The method is that of DeLong et al. (Biometrics
    44, 1988), extended to clustered data by Obuchowski (Biometrics 53, 1997): samples of the same
    patient, by ``patients`` (n,), may depend on each other. With one sample per patient the two are
    the same. NaN where a class has fewer than two patients.
    """
    y, scores = np.asarray(y, dtype=bool), np.asarray(scores, dtype=np.float64)
    owner, names = pd.factorize(np.asarray(patients))
    m, positive, negative = len(scores), int(y.sum()), int((~y).sum())
    n_positive, n_negative = len(set(owner[y])), len(set(owner[~y]))
    if min(n_positive, n_negative) < 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    # A sample's placement: the share of the other class that it is ranked correctly against.
    placement = np.empty_like(scores)
    for row, score in zip(placement, scores, strict=True):
        ranks = stats.rankdata(score)
        row[y] = (ranks[y] - stats.rankdata(score[y])) / negative
        row[~y] = 1 - (ranks[~y] - stats.rankdata(score[~y])) / positive
    areas = placement[:, y].mean(1)
    apart = placement - areas[:, None]
    # For each patient, the sums over its positive and over its negative samples.
    up, down = (
        np.array([np.bincount(owner, row * side, len(names)) for row in apart]) / side.sum()
        for side in (y, ~y)
    )
    across = up @ down.T
    covariance = (
        n_positive / (n_positive - 1) * up @ up.T
        + n_negative / (n_negative - 1) * down @ down.T
        + len(names) / (len(names) - 1) * (across + across.T)
    )
    return areas, covariance


def delong_of_frames(
    frames: list[pd.DataFrame], classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`delong` for several predictions of the same samples in the same order.

    In cross-validation, the AUROC is the mean over folds, weighted as in
    :func:`prediction.evaluator`. NaN for more than two classes.
    """
    m = len(frames)
    if len(classes) != 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    y = (frames[0]["y_true"] == classes[1]).to_numpy()
    column, patients = prediction.probability_columns(classes)[1], frames[0]["patient_id"]
    scores = np.stack([frame[column] for frame in frames])
    areas, covariance = np.zeros(m), np.zeros((m, m))
    for rows, share in prediction.folds(frames[0]):
        of_fold = delong(y[rows], scores[:, rows], patients.to_numpy()[rows])
        areas, covariance = areas + share * of_fold[0], covariance + share**2 * of_fold[1]
    return areas, covariance
