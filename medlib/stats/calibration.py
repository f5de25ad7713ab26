"""Probabilities calibrated on validation patients, and how well calibrated they are.

Raw probabilities depend on how strongly a head was regularised, and so do their accuracy, F1,
log-loss, Brier score and calibration error. The same metrics of calibrated probabilities are shown
beside them.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special

from medlib.core.metrics import ranked_classes
from medlib.stats import bootstrap, prediction
from medlib.stats.effects import Arm

METRICS = ("accuracy", "f1_weighted", "log_loss", "brier", "ece")  # calibration changes these
COEFFICIENTS = ("intercept", "slope")
RAW, TEMPERATURE, OFFSETS = "raw", "temperature", "temperature and offsets"
METHODS = (TEMPERATURE, OFFSETS)
DIVERGED = 100  # no probability that a model states is so far off


class Scaling(NamedTuple):
    """Calibrated probabilities are the softmax of ``slope`` × log probabilities + ``offsets``."""

    slope: float  # 1 / temperature
    offsets: tuple[float, ...]  # one for each class, the first 0

    def __call__(self, proba: np.ndarray) -> np.ndarray:
        return special.softmax(self.slope * _logs(proba) + np.array(self.offsets), axis=-1)


def _logs(proba: np.ndarray) -> np.ndarray:
    return np.log(np.clip(proba, 1e-6, 1))


def fitted(y: np.ndarray, proba: np.ndarray, method: str = TEMPERATURE) -> Scaling:
    """The scaling with the lowest log-loss on labels (n,) in 0 … K-1 and probabilities (n, K).

    ``method`` is TEMPERATURE (Guo et al., ICML 2017), or OFFSETS: a temperature, and an offset for
    each class (Alexandari et al., ICML 2020; with two classes this is Platt scaling). The
    temperature lies between exp(-5) and exp(5). Targets are a little above 0 and a little below 1
    (Platt, in Smola et al., Advances in Large Margin Classifiers, 1999), so that separable classes
    have an optimum.
    """
    logs, k = _logs(proba), proba.shape[1]
    own = (np.bincount(y, minlength=k) + 1) / (np.bincount(y, minlength=k) + 2)
    target = np.repeat(((1 - own) / (k - 1))[y][:, None], k, axis=1)
    target[np.arange(len(y)), y] = own[y]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The log-loss, and its gradient by the log of the slope and by the offsets."""
        slope = np.exp(parameters[0])
        z = slope * logs + np.append(0, parameters[1:])
        apart = special.softmax(z, axis=1) - target
        gradient = np.append(slope * (apart * logs).sum(), apart[:, 1:].sum(0)) / len(y)
        return float(-(target * special.log_softmax(z, axis=1)).sum() / len(y)), gradient

    bounds = [(-5, 5)] + [(None, None) if method == OFFSETS else (0, 0)] * (k - 1)
    found = optimize.minimize(loss, np.zeros(k), jac=True, bounds=bounds, method="L-BFGS-B").x
    return Scaling(float(np.exp(found[0])), (0.0, *map(float, found[1:])))


def calibrated(
    predictions: pd.DataFrame,
    validation: pd.DataFrame,
    classes: list[str],
    method: str = TEMPERATURE,
) -> pd.DataFrame:
    """``predictions`` with calibrated probabilities.

    Calibration is fitted for each rotation, on its own validation patients. Both tables are those
    of :func:`prediction.tables`.
    """
    made, columns = predictions.copy(), prediction.probability_columns(classes)
    for rows, own in prediction.by_rotation(predictions, validation):
        scale = fitted(*prediction.arrays(own, classes), method)
        made.loc[rows, columns] = scale(made.loc[rows, columns].to_numpy())
    return made


def of_arm(arm: Arm, method: str = TEMPERATURE) -> list[pd.DataFrame]:
    """The calibrated predictions of an arm, one frame for each seed (see :attr:`Arm.frames`)."""
    both = zip(arm.frames, arm.validated, strict=True)
    return [calibrated(frame, validation, arm.classes, method) for frame, validation in both]


def beside_raw(arm: Arm, resamples: int = 5000) -> pd.DataFrame:
    """How good an arm's probabilities are, raw and calibrated: means over seeds, and intervals.

    Columns: metric, class, probabilities (RAW or one of METHODS), value, ci_low, ci_high. The rows
    are :data:`METRICS` (class ""), then :func:`coefficients`. The intervals are about other test
    patients. The calibration error has none: see :func:`bootstrap.interval`.
    """
    tables = []
    kinds = {RAW: arm.frames} | {method: of_arm(arm, method) for method in METHODS}
    for kind, frames in kinds.items():
        found = bootstrap.estimates(frames, arm.classes, METRICS, resamples)
        rows = [
            {"metric": name, "class": "", "value": one.value}
            | bootstrap.ends("ci", (one.low, one.high))
            for name, one in found.items()
        ]
        table = pd.concat([pd.DataFrame(rows), coefficients(frames, arm.classes)])
        tables.append(table.assign(probabilities=kind))
    return pd.concat(tables, ignore_index=True)


def coefficients(frames: Sequence[pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """Calibration intercept and slope with 95 % intervals: means over the seeds' predictions.

    The slope is that of a logistic regression of the class on the log odds of its probability. It
    is below 1 if probabilities are too extreme. The intercept is that of the same regression with a
    slope of 1. It is below 0 if the class is predicted too often (Van Calster et al., J. Clin.
    Epidemiol. 74, 2016). With two classes, the second class is judged. With more, each class is
    judged against the others, and class "" has the mean over classes. The intervals allow for
    dependence between the samples of a patient. Columns: metric ("slope", "intercept"), class,
    value, ci_low, ci_high. NaN if a class is missing, or if the regression has no solution:
    probabilities separate the classes, or it diverges.
    """
    ranked, rows = ranked_classes(len(classes)), []
    owner = pd.factorize(frames[0]["patient_id"])[0]
    for name in COEFFICIENTS:
        found = []
        for c in ranked:
            parts = [_coefficient(*prediction.arrays(f, classes), c, owner, name) for f in frames]
            found.append([np.mean(part, axis=0) for part in zip(*parts, strict=True)])
        if len(ranked) > 1:
            found.append([np.mean(part, axis=0) for part in zip(*found, strict=True)])
        own = [classes[c] for c in ranked] + [""] * (len(ranked) > 1)
        for label, (value, influence) in zip(own, found, strict=True):
            n = len(influence)
            half = bootstrap.Z * np.sqrt(n / (n - 1) * (influence**2).sum())
            row = {"metric": name, "class": label, "value": float(value)}
            rows.append(row | bootstrap.ends("ci", (float(value - half), float(value + half))))
    return pd.DataFrame(rows)


def _coefficient(
    y: np.ndarray, proba: np.ndarray, c: int, owner: np.ndarray, name: str
) -> tuple[float, np.ndarray]:
    """The intercept or the slope of class ``c``, and each patient's influence on it (patients,).

    The variance of the coefficient is the sum of the squared influences (the sandwich estimator by
    patient).
    """
    import statsmodels.api as sm

    hit, none = y == c, np.full(owner.max() + 1, np.nan)
    own = np.clip(proba[:, c], 1e-6, 1 - 1e-6)
    odds = special.logit(own)
    if not 0 < hit.sum() < len(y):
        return float("nan"), none
    high, low = odds[hit], odds[~hit]
    if high.min() >= low.max() or high.max() <= low.min():
        return float("nan"), none
    ones = np.ones((len(y), 1))
    design, given = (ones, odds) if name == "intercept" else (np.column_stack([ones, odds]), None)
    model = sm.GLM(hit.astype(float), design, family=sm.families.Binomial(), offset=given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about probabilities that round to 0 or 1
        found = model.fit(maxiter=100)
    if not found.converged or np.abs(found.params).max() > DIVERGED:
        return float("nan"), none
    of_samples = -model.score_obs(found.params) @ np.linalg.inv(model.hessian(found.params))
    return float(found.params[-1]), np.bincount(owner, of_samples[:, -1], len(none))
