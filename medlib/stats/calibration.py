"""Probabilities calibrated on validation patients: Platt scaling, and temperature scaling.

Raw probabilities depend on how strongly a head was regularised, and so do their accuracy, F1,
log-loss, Brier score and calibration error. The same metrics of calibrated probabilities are shown
beside them.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import optimize, special

from medlib.stats import bootstrap, prediction
from medlib.stats.effects import Arm

METRICS = ("accuracy", "f1_weighted", "log_loss", "brier", "ece")  # calibration changes these


def calibrated(
    predictions: pd.DataFrame, validation: pd.DataFrame, classes: list[str]
) -> pd.DataFrame:
    """``predictions`` with calibrated probabilities.

    Calibration is fitted for each rotation, on its own validation patients. Both tables are those
    of :func:`prediction.tables`. Two classes get Platt scaling (in Smola et al., Advances in Large
    Margin Classifiers, 1999): a sigmoid of slope × log-odds + offset. More classes get temperature
    scaling (Guo et al., ICML 2017).
    """
    made, columns = predictions.copy(), prediction.probability_columns(classes)
    for rotation, own in validation.groupby(validation["rotation"].astype(str)):
        official = "fold" not in predictions  # then there is one rotation
        rows = slice(None) if official else predictions["fold"].astype(str) == rotation
        scale = _fitted(*prediction.arrays(own, classes))
        made.loc[rows, columns] = scale(made.loc[rows, columns].to_numpy())
    return made


def _fitted(y: np.ndarray, proba: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from probabilities (n, K) to calibrated ones, by the labels of other samples."""
    logits = _logits(proba)
    if proba.shape[1] == 2:
        score, positive = logits[:, 1] - logits[:, 0], int(y.sum())
        # Platt's targets: a little inside of 0 and 1, so that separable classes have an optimum.
        high, low = (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2)
        target = np.where(y == 1, high, low)

        def loss(parameters: np.ndarray) -> float:
            z = parameters[0] * score + parameters[1]
            return float(np.mean(np.logaddexp(0, z) - target * z))

        slope, offset = optimize.minimize(loss, [1.0, 0.0], method="BFGS").x

        def scale(p: np.ndarray) -> np.ndarray:
            apart = _logits(p)
            risk = special.expit(slope * (apart[:, 1] - apart[:, 0]) + offset)
            return np.stack([1 - risk, risk], axis=1)

        return scale

    def of_temperature(log_t: float) -> float:
        return float(-special.log_softmax(logits / np.exp(log_t), 1)[np.arange(len(y)), y].mean())

    log_t = optimize.minimize_scalar(of_temperature, bounds=(-5, 5), method="bounded").x
    return lambda p: special.softmax(_logits(p) / np.exp(log_t), axis=1)


def _logits(proba: np.ndarray) -> np.ndarray:
    return np.log(np.clip(proba, 1e-6, 1))


def of_arm(arm: Arm) -> list[pd.DataFrame]:
    """The calibrated predictions of each seed of an arm, as :attr:`Arm.frames` are."""
    both = zip(arm.frames, arm.validated, strict=True)
    return [calibrated(frame, validation, arm.classes) for frame, validation in both]


def beside_raw(arm: Arm, resamples: int = 5000) -> pd.DataFrame:
    """:data:`METRICS` of an arm, raw and calibrated: means over seeds, and intervals over patients.

    Columns: metric, probabilities ("raw", "calibrated"), value, ci_low, ci_high. The calibration
    error has no interval: see :func:`bootstrap.interval`.
    """
    rarest, rows, asked = prediction.rarest(arm.frames[0]), [], {"names": METRICS}
    for kind, frames in {"raw": arm.frames, "calibrated": of_arm(arm)}.items():
        points = [prediction.point(frame, arm.classes, METRICS) for frame in frames]
        drawn = [bootstrap.bootstrap(f, arm.classes, resamples, **asked) for f in frames]
        apart = [bootstrap.jackknife(frame, arm.classes, METRICS) for frame in frames]
        for name in METRICS:
            value, draws, left_out = (
                np.mean([part[name] for part in parts], axis=0) for parts in (points, drawn, apart)
            )
            ends = bootstrap.interval(name, float(value), draws, left_out, rarest)
            row = {"metric": name, "probabilities": kind, "value": float(value)}
            rows.append(row | bootstrap.ends("ci", ends))
    return pd.DataFrame(rows)
