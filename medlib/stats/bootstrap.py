"""Confidence intervals: bootstrap over patients, jackknife, BCa, DeLong."""

from collections import Counter
from collections.abc import Callable, Sequence

import joblib
import numpy as np
import pandas as pd
from scipy import special, stats

from medlib import files
from medlib.stats import metrics, prediction

CHUNK = 1 << 17  # elements of weights that a thread holds at once: its arrays fit the cache
TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # of 95 % intervals
MAX_THREADS = 8  # more would only wait for the draws, which are made one after another


def stream(predictions: pd.DataFrame) -> int:
    """The random seed for draws of these patients: the same people get the same draws."""
    return int(files.content_hash(sorted(set(predictions["patient_id"]))), 16)


def bootstrap(
    predictions: pd.DataFrame,
    classes: list[str],
    resamples: int = 5000,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    paired: bool = True,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Metrics on ``resamples`` draws of patients with replacement: arrays (resamples,) by name.

    All samples of a patient are drawn together. Frames with the same patients and the same
    ``seed`` get the same draws in any order of their rows, so their differences are paired. The
    metrics of one frame are paired too. ``paired=False`` gives this up for speed: the metrics of
    :data:`metrics.CONFUSION` then come from one multinomial draw over the patients' distinct
    confusion matrices. The distribution is the same. Use it for the interval of one metric of one
    frame, never for a difference or a mean.

    The values are the same, to the bit, for any number of ``threads`` (default: one a core, at
    most :data:`MAX_THREADS`). Beside the sorted samples (and, if not paired, K × K counts a
    patient) each thread holds at most 100 bytes times :data:`CHUNK`, or times the number of samples
    if that is larger.
    Raises ValueError as :func:`metrics.compute` does.
    """
    names = metrics.checked(names, len(classes))
    y, proba = prediction.arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    rng, values = np.random.default_rng(seed), {}
    by_matrix = [] if paired else [name for name in names if name in metrics.CONFUSION]
    by_patient = [name for name in names if name not in by_matrix]
    threads = threads or min(MAX_THREADS, joblib.cpu_count())
    if by_matrix:
        drawn = _draw_confusion(y, proba, owner, resamples, rng, threads)
        values |= metrics.confusion_metrics(drawn, by_matrix)
    if by_patient:
        evaluate, at_once = metrics.evaluator(y, proba, owner, by_patient), max(1, CHUNK // len(y))
        values |= _draw_patients(evaluate, resamples, len(patients), at_once, rng, threads)
    return {name: values[name] for name in names}


def _draw_confusion(
    y: np.ndarray, proba: np.ndarray, owner: np.ndarray, resamples: int, rng, threads: int
) -> np.ndarray:
    """Confusion matrices (resamples, K, K), each of as many patients as there are.

    Patients with the same confusion matrix are interchangeable, so the number of times that each
    matrix is drawn is multinomial.
    """
    k, n_patients = proba.shape[1], owner.max() + 1
    cells = owner * k * k + y * k + proba.argmax(1)
    own = np.bincount(cells, minlength=n_patients * k * k).reshape(n_patients, k * k)
    kinds = sorted(Counter(row.tobytes() for row in own).items())
    matrices = np.array([np.frombuffer(row, own.dtype) for row, _ in kinds], dtype=np.float64)
    share = np.array([count for _, count in kinds]) / n_patients
    # An eighth of a chunk, because a multinomial count takes many times as long as a weight. The
    # blocks are the same for any number of threads, and each has its own random stream.
    at_once = max(1, CHUNK // 8 // len(kinds))

    streams = rng.spawn(-(-max(resamples, 1) // at_once))
    draw = joblib.delayed(lambda stream: stream.multinomial(n_patients, share, size=at_once))
    counts = np.concatenate(joblib.Parallel(threads, backend="threading")(map(draw, streams)))
    # One product for all: within each thread NumPy would start further threads.
    return (counts[:resamples] @ matrices).reshape(-1, k, k)


def counts(draws: np.ndarray) -> np.ndarray:
    """How often each patient is in each row of ``draws`` (B, n); overwrites ``draws``."""
    draws += draws.shape[1] * np.arange(len(draws))[:, None]
    return np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)


def _draw_patients(
    evaluate: Callable, resamples: int, n_patients: int, at_once: int, rng, threads: int
) -> dict[str, np.ndarray]:
    """``evaluate`` on how often each patient is drawn, ``at_once`` resamples at a time."""
    starts = range(0, max(resamples, 1), at_once)
    sizes = ((min(at_once, resamples - start), n_patients) for start in starts)
    # Drawn one after another, when a thread is free for the next.
    drawn = (rng.integers(n_patients, size=size) for size in sizes)
    work = joblib.delayed(lambda draws: evaluate(counts(draws)))
    parallel = joblib.Parallel(threads, backend="threading", pre_dispatch=threads, batch_size=1)
    return _joined(parallel(map(work, drawn)))


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def jackknife(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Leave out each patient in turn and compute the metrics: arrays (patients,) by name.

    Patients are in the order of their sorted ids, so that the seeds of a cell can be averaged.
    """
    names = metrics.checked(names, len(classes))
    y, proba = prediction.arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    evaluate, n, parts = metrics.evaluator(y, proba, owner, names), len(patients), []
    at_once = max(1, CHUNK // len(y))
    for start in range(0, n, at_once):
        parts.append(evaluate(1 - np.eye(min(at_once, n - start), n, start, dtype=np.int64)))
    return _joined(parts)


def points_and_draws(
    frames: list[pd.DataFrame], classes: list[str], names: Sequence[str], resamples: int
) -> tuple[list[dict], list[dict]]:
    """The metrics of each seed's predictions, and their values on the same draws of patients."""
    points = [prediction.point(frame, classes, names) for frame in frames]
    how = {"names": names, "threads": 1}
    return points, [bootstrap(f, classes, resamples, stream(f), **how) for f in frames]


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap values; undefined ones (NaN) are left out."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, TAILS) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def ends(name: str, limits: tuple[float, float]) -> dict[str, float]:
    """The columns of an interval: ``<name>_low`` and ``<name>_high``."""
    return dict(zip((f"{name}_low", f"{name}_high"), limits, strict=True))


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

    ``y`` (n,) is 1 for positive samples, else 0. DeLong et al. (Biometrics 44, 1988), in the form
    for clustered data of Obuchowski (Biometrics 53, 1997): samples of the same patient, by
    ``patients`` (n,), may depend on each other. With one sample a patient it is DeLong's. NaN where
    a class has fewer than two patients.
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
    """:func:`delong` of predictions of the same samples in the same order.

    NaN for more than two classes.
    """
    m = len(frames)
    if len(classes) != 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    y = frames[0]["y_true"] == classes[1]
    column = prediction.probability_columns(classes)[1]
    scores = np.stack([frame[column] for frame in frames])
    return delong(y, scores, frames[0]["patient_id"])
