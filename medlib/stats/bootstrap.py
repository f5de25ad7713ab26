"""Intervals of metrics: bootstrap over patients, jackknife, BCa, DeLong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import joblib
import numpy as np
import pandas as pd
from scipy import special

from medlib.stats.metrics import CONFUSION, checked, confusion_metrics, evaluator
from medlib.stats.prediction import arrays

CHUNK = 1 << 17  # weights that a thread holds at once, in elements: its arrays fit the cache
MAX_THREADS = 8  # more would wait for the draws, which are made one after another


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

    A patient's samples are drawn together. Two frames with the same patients and the same
    ``seed`` get the same draws, whatever their order, so their differences are paired; so are the
    metrics of a frame. ``paired=False`` gives that up for speed: the metrics of :data:`CONFUSION`
    then follow from one multinomial draw over the patients' distinct confusion matrices (few,
    unless patients have many samples), which has the same distribution. Take it for the interval
    of one metric of one frame, never for a difference or a mean of several.

    The values are the same, to the bit, for any number of ``threads`` (by default one a core, at
    most :data:`MAX_THREADS`). Each holds at most 100 bytes × the larger of :data:`CHUNK` and the
    number of samples, beside the sorted samples and, unless paired, K × K counts a patient. Raises
    what :func:`compute` does.
    """
    names = checked(names, len(classes))
    y, proba = arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    rng, found = np.random.default_rng(seed), {}
    by_matrix = [] if paired else [name for name in names if name in CONFUSION]
    by_patient = [name for name in names if name not in by_matrix]
    threads = threads or min(MAX_THREADS, joblib.cpu_count())
    if by_matrix:
        drawn = _draw_confusion(y, proba, owner, resamples, rng, threads)
        found |= confusion_metrics(drawn, by_matrix)
    if by_patient:
        evaluate = evaluator(y, proba, owner, by_patient)
        rows = max(1, CHUNK // len(y))
        found |= _draw_patients(evaluate, len(patients), resamples, rows, rng, threads)
    return {name: found[name] for name in names}


def _draw_confusion(
    y: np.ndarray,
    proba: np.ndarray,
    owner: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    threads: int,
) -> np.ndarray:
    """Confusion matrices (resamples, K, K), each that of as many patients as there are.

    Patients with the same confusion matrix are interchangeable, so how often each matrix is drawn
    is multinomial.
    """
    k, n_patients = proba.shape[1], owner.max() + 1
    cells = owner * k * k + y * k + proba.argmax(1)
    own = np.bincount(cells, minlength=n_patients * k * k).reshape(n_patients, k * k)
    kinds = sorted(Counter(row.tobytes() for row in own).items())
    matrices = np.array([np.frombuffer(row, own.dtype) for row, _ in kinds], dtype=np.float64)
    share = np.array([count for _, count in kinds]) / n_patients
    # An eighth of a chunk: a multinomial count takes many times as long as a weight. The blocks
    # are the same for any number of threads, and each has a stream of random numbers to itself.
    rows = max(1, CHUNK // 8 // len(kinds))

    def draw(stream: np.random.Generator) -> np.ndarray:
        return stream.multinomial(n_patients, share, size=rows)

    with ThreadPoolExecutor(threads) as pool:
        counts = np.concatenate(list(pool.map(draw, rng.spawn(-(-max(resamples, 1) // rows)))))
    # One product for all: in each thread it would have threads of its own.
    return (counts[:resamples] @ matrices).reshape(-1, k, k)


def counts(draws: np.ndarray) -> np.ndarray:
    """How often each patient is in each row of ``draws`` (B, n), which is overwritten."""
    draws += draws.shape[1] * np.arange(len(draws))[:, None]
    return np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)


def _draw_patients(
    evaluate: Callable[[np.ndarray], dict[str, np.ndarray]],
    n_patients: int,
    resamples: int,
    rows: int,
    rng: np.random.Generator,
    threads: int,
) -> dict[str, np.ndarray]:
    """``evaluate`` on how often each patient is drawn, ``rows`` resamples at once."""
    starts, lock, parts = iter(range(0, max(resamples, 1), rows)), Lock(), {}

    def work(_: int) -> None:
        while True:
            with lock:  # draws are made in order, whichever thread makes them
                start = next(starts, None)
                if start is None:
                    return
                size = (min(rows, resamples - start), n_patients)
                draws = rng.integers(n_patients, size=size)
            parts[start] = evaluate(counts(draws))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    ordered = [parts[start] for start in sorted(parts)]
    return {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}


def jackknife(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Metrics with one patient left out, for each patient in turn: arrays (patients,) by name.

    In the order of the sorted patient ids, so that the seeds of a cell can be averaged.
    """
    names = checked(names, len(classes))
    y, proba = arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    evaluate, n, parts = evaluator(y, proba, owner, names), len(patients), []
    rows = max(1, CHUNK // len(y))
    for start in range(0, n, rows):
        left_out = np.arange(start, min(start + rows, n))
        weights = np.ones((len(left_out), n), dtype=np.int64)
        weights[np.arange(len(left_out)), left_out] = 0
        parts.append(evaluate(weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values; those that are undefined (NaN) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def bca_interval(
    values: np.ndarray, point: float, left_out: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (Efron, JASA 1987) of bootstrap ``values``.

    ``point`` is the metric on the sample itself, ``left_out`` its values with one patient left
    out (:func:`jackknife`). Undefined values are left out. NaN where there is no such interval:
    all values on one side of the point, as at a perfect score.
    """
    values, left_out = values[np.isfinite(values)], left_out[np.isfinite(left_out)]
    if not len(values) or not len(left_out):
        return float("nan"), float("nan")
    below = ((values < point).mean() + (values <= point).mean()) / 2
    if not 0 < below < 1:
        return float("nan"), float("nan")
    apart = left_out.mean() - left_out
    spread = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    bias = special.ndtri(below)
    wanted = bias + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(values, special.ndtr(bias + wanted / (1 - acceleration * wanted)))
    return float(low), float(high)


def delong(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (m,) of ``scores`` (m, n) on the same samples, and their covariance (m, m).

    ``y`` (n,) is 1 for positive samples, else 0. DeLong et al. (Biometrics 44, 1988), in the form
    for clustered data of Obuchowski (Biometrics 53, 1997): the samples of one of ``patients`` (n,)
    may depend on each other. With one sample a patient it is DeLong's. NaN where a class is
    missing, or is that of a single patient.
    """
    y, scores = np.asarray(y, dtype=bool), np.asarray(scores, dtype=np.float64)
    owner, names = pd.factorize(np.asarray(patients))
    m, positive, negative = len(scores), int(y.sum()), int((~y).sum())
    n_positive, n_negative = len(set(owner[y])), len(set(owner[~y]))
    if min(n_positive, n_negative) < 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    # A sample's placement: the share of the other class that it is in order with.
    placement = np.empty_like(scores)
    for row, score in zip(placement, scores, strict=True):
        up, down = np.sort(score[~y]), np.sort(score[y])
        sides = [np.searchsorted(up, score[y], side) for side in ("left", "right")]
        row[y] = sum(sides) / (2 * negative)
        sides = [np.searchsorted(down, score[~y], side) for side in ("left", "right")]
        row[~y] = 1 - sum(sides) / (2 * positive)
    areas = placement[:, y].mean(1)
    apart = placement - areas[:, None]
    # By patient, sums over their positive and over their negative samples.
    by_patient = np.zeros((2, m, len(names)))
    for side, chosen in enumerate((y, ~y)):
        for row, values in zip(by_patient[side], apart, strict=True):
            np.add.at(row, owner[chosen], values[chosen])
    up, down = by_patient[0] / positive, by_patient[1] / negative
    across = up @ down.T
    covariance = (
        n_positive / (n_positive - 1) * up @ up.T
        + n_negative / (n_negative - 1) * down @ down.T
        + len(names) / (len(names) - 1) * (across + across.T)
    )
    return areas, covariance
