"""Operating points and decision curves: thresholds are chosen on validation, judged on test data.

A threshold is for one class against the rest: a sample is called positive if the probability of the
class is at least the threshold. Each model's threshold is chosen on its own validation patients, by
a rule that is stated beforehand. It is then applied to the model's test patients unchanged. In
cross-validation each rotation has its own threshold, and calls are counted over all rotations.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.core.metrics import ranked_classes, ratio_or_nan
from medlib.stats import bootstrap, draws, prediction
from medlib.stats.effects import Arm

LIKELIEST, YOUDEN = "likeliest class", "Youden"
RATES = ("sensitivity", "specificity", "ppv", "npv")
# The counts of which a rate is a share: see _counts.
OF = {"sensitivity": (0, 1), "specificity": (2, 3), "ppv": (0, 2), "npv": (1, 3)}
RISKS = np.arange(1, 100) / 100  # threshold probabilities of decision curves
AT_ONCE = 500  # resamples


class Rule(NamedTuple):
    """How a threshold is chosen: ``kind`` LIKELIEST, YOUDEN, "sensitivity" or "specificity".

    LIKELIEST has no threshold: the class with the highest probability is called (for two classes
    that is a threshold of 0.5). "sensitivity" and "specificity" reach at least ``aim``.
    """

    kind: str
    aim: float = float("nan")

    @property
    def printed(self) -> str:
        return self.kind if np.isnan(self.aim) else f"{self.kind} ≥ {self.aim:g}"


def threshold(positive: np.ndarray, score: np.ndarray, rule: Rule) -> float:
    """The threshold that a rule chooses on these samples.

    ``positive`` (n,) is boolean, ``score`` (n,) from 0 to 1. The threshold is one of the scores, or
    above 1 if no sample is to be called. YOUDEN takes the highest sensitivity + specificity
    (Youden, Cancer 3, 1950). "sensitivity" takes the highest threshold that reaches the aim,
    "specificity" the lowest one. Raises ValueError if a class is missing.
    """
    from sklearn.metrics import roc_curve

    if not 0 < positive.sum() < len(positive):
        raise ValueError("A threshold needs validation samples of the class and of the others.")
    wrong, right, at = roc_curve(positive, score, drop_intermediate=False)
    places = {
        YOUDEN: np.argmax(np.round(right - wrong, 12)),  # rounded to find ties; the highest of them
        "sensitivity": np.argmax(right >= rule.aim),
        "specificity": len(at) - 1 - np.argmax((1 - wrong >= rule.aim)[::-1]),
    }
    return float(min(at[places[rule.kind]], np.nextafter(1, 2)))


def called(
    predictions: pd.DataFrame, validation: pd.DataFrame, classes: list[str], c: int, rule: Rule
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Whether each test sample (n,) and each validation sample (m,) is called class ``c``.

    The third value holds the threshold of each rotation. Both tables are those of
    :func:`prediction.tables`. Raises ValueError as :func:`threshold` does.
    """
    tested, validated = (prediction.arrays(f, classes)[1] for f in (predictions, validation))
    if rule.kind == LIKELIEST:
        at = [0.5 if len(classes) == 2 else float("nan")]
        return tested.argmax(1) == c, validated.argmax(1) == c, at
    calls = np.zeros(len(tested), dtype=bool), np.zeros(len(validated), dtype=bool)
    thresholds = []
    for rows, own in prediction.by_rotation(predictions, validation):
        y, proba = prediction.arrays(own, classes)
        at = threshold(y == c, proba[:, c], rule)
        calls[0][rows] = tested[rows, c] >= at
        calls[1][validation.index.get_indexer(own.index)] = proba[:, c] >= at
        thresholds.append(at)
    return *calls, thresholds


def operating_points(
    arm: Arm,
    rules: Sequence[Rule],
    prevalence: Mapping[str, float] | None = None,
    resamples: int = 5000,
) -> pd.DataFrame:
    """Sensitivity, specificity, PPV and NPV of an arm on its test samples, by class and rule.

    With two classes, the second class is judged. With more, each class is judged against the
    others. Values are means over seeds. The 95 % intervals are about other test patients, for these
    trained models and these thresholds. ``prevalence`` maps a class to its share where the model is
    to be used. PPV and NPV then have two rows: one for the prevalence of the test set, and one for
    this share. Columns: class, rule, threshold, threshold_low, threshold_high (mean and range over
    rotations and seeds), metric, prevalence, value, ci_low, ci_high, validation (the same rate on
    the validation samples) and n_patients (patients with samples in the denominator of the rate).
    Raises ValueError for a prevalence of an unknown class, or one that is not between 0 and 1.
    """
    prevalence = _checked(prevalence or {}, arm.classes)
    owner, patients = pd.factorize(arm.frames[0]["patient_id"], sort=True)
    asked = [(c, rule) for c in ranked_classes(len(arm.classes)) for rule in rules]
    counts, rows = [], []
    for c, rule in asked:
        label, of_seeds, validated, thresholds = arm.classes[c], [], [], []
        for frame, validation in zip(arm.frames, arm.validated, strict=True):
            tested, own, at = called(frame, validation, arm.classes, c, rule)
            of_seeds.append(_counts(frame["y_true"] == label, tested, owner))
            everyone = np.zeros(len(own), dtype=int)
            validated.append(_counts(validation["y_true"] == label, own, everyone)[0])
            thresholds += at
        same = {"class": label, "rule": rule.printed, "threshold": float(np.mean(thresholds))}
        same |= {"threshold_low": min(thresholds), "threshold_high": max(thresholds)}
        counts.append((same, np.stack(of_seeds, axis=1), np.stack(validated)))
    drawn = _drawn(np.stack([own for _, own, _ in counts], axis=1), list(patients), resamples)
    for (same, own, validated), of_draws in zip(counts, drawn, strict=True):
        label = same["class"]
        for share in [None, *([prevalence[label]] if label in prevalence else [])]:
            rows += [same | row for row in _rows(own, validated, of_draws, share)]
    return pd.DataFrame(rows)


def _checked(prevalence: Mapping[str, float], classes: list[str]) -> Mapping[str, float]:
    wrong = {n: share for n, share in prevalence.items() if n not in classes or not 0 < share < 1}
    if wrong:
        wanted = f"A prevalence is a share between 0 and 1 of a class ({', '.join(classes)})"
        raise ValueError(f"{wanted}, but prevalence holds {wrong}.")
    return prevalence


def _counts(positive: pd.Series, calls: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """True positives, false negatives, false positives, true negatives by owner: (owners, 4).

    ``owner`` (n,) holds a number for each sample.
    """
    cell = np.where(positive, 1 - calls, 3 - calls)
    n = owner.max() + 1
    return np.bincount(owner * 4 + cell, minlength=4 * n).reshape(n, 4)


def _drawn(counts: np.ndarray, patients: list, resamples: int) -> np.ndarray:
    """The sums of ``counts`` (patients, asked, seeds, 4) in each resample of the patients.

    Returns (asked, resamples, seeds, 4).
    """
    flat, sums = counts.reshape(len(patients), -1), []
    for first in range(0, resamples, AT_ONCE):
        weights = draws.counts(patients, first, min(first + AT_ONCE, resamples)).astype(float)
        sums.append(weights @ flat)
    return np.moveaxis(np.concatenate(sums).reshape(-1, *counts.shape[1:]), 0, 1)


def _rates(counts: np.ndarray, share: float | None) -> dict[str, np.ndarray]:
    """The :data:`RATES` of counts (…, 4); PPV and NPV at the prevalence ``share``, if it is given.

    NaN where there is nothing to count.
    """
    hit, missed, false, right = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    rates = {"sensitivity": ratio_or_nan(hit, hit + missed)}
    rates["specificity"] = ratio_or_nan(right, right + false)
    if share is None:
        return rates | {
            "ppv": ratio_or_nan(hit, hit + false),
            "npv": ratio_or_nan(right, right + missed),
        }
    return rates | _predictive(rates["sensitivity"], rates["specificity"], share)


def _predictive(
    sensitivity: np.ndarray, specificity: np.ndarray, share: float
) -> dict[str, np.ndarray]:
    """PPV and NPV by Bayes' theorem."""
    ill, well = share * np.asarray(sensitivity), (1 - share) * np.asarray(specificity)
    false, missed = (1 - share) * (1 - specificity), share * (1 - sensitivity)
    return {"ppv": ratio_or_nan(ill, ill + false), "npv": ratio_or_nan(well, well + missed)}


def _rows(
    counts: np.ndarray, validated: np.ndarray, drawn: np.ndarray, share: float | None
) -> list[dict]:
    """A row for each rate; at a stated prevalence, only for PPV and NPV.

    ``counts`` (patients, seeds, 4), ``validated`` (seeds, 4), ``drawn`` (resamples, seeds, 4). At a
    stated prevalence, a PPV or NPV of 0 or 1 gets its interval from the intervals of sensitivity
    and specificity.
    """
    of_test, of_validation, of_draws = (
        {name: values.mean(-1) for name, values in _rates(sums, share).items()}
        for sums in (counts.sum(0), validated, drawn)
    )
    n = {name: round((counts[..., OF[name]] > 0).any(-1).sum(0).mean()) for name in RATES}
    ends = {
        name: bootstrap.logit_interval(
            float(of_test[name]), bootstrap.error(of_draws[name]), n[name]
        )
        for name in RATES
    }
    if share is not None:
        pairs = zip(ends["sensitivity"], ends["specificity"], strict=True)
        by_ends = [_predictive(*pair, share) for pair in pairs]
        for name in ("ppv", "npv"):
            if not 0 < of_test[name] < 1:
                ends[name] = tuple(float(of[name]) for of in by_ends)
    positive = counts[..., :2].sum() / counts.sum()
    return [
        {"metric": name, "prevalence": positive if share is None else share}
        | {"value": float(of_test[name])}
        | bootstrap.ends("ci", ends[name])
        | {"validation": float(of_validation[name]), "n_patients": n[name]}
        for name in (RATES if share is None else ("ppv", "npv"))
    ]


def net_benefit(
    frames: Sequence[pd.DataFrame], classes: list[str], resamples: int = 500
) -> pd.DataFrame:
    """Decision curves: the net benefit of calling a class at each threshold probability.

    Net benefit is true positives minus false positives × odds of the threshold, as a share of all
    samples (Vickers & Elkin, Med. Decis. Making 26, 2006). It needs calibrated probabilities. With
    two classes, the second class is judged. With more, each class is judged against the others.
    Columns: class, threshold, net_benefit (mean over seeds), low, high (a pointwise 95 % band over
    test patients), all (the net benefit of calling every sample). Calling none has a net benefit of
    0.
    """
    owner, patients = pd.factorize(frames[0]["patient_id"], sort=True)
    weights = np.vstack([np.ones(len(patients)), draws.counts(list(patients), 0, resamples)])
    sizes, odds, parts = np.bincount(owner), RISKS / (1 - RISKS), []
    for c in ranked_classes(len(classes)):
        drawn = 0.0
        for frame in frames:
            y, proba = prediction.arrays(frame, classes)
            gains = np.where((y == c)[:, None], 1.0, -odds) * (proba[:, c, None] >= RISKS)
            sums = np.zeros((len(patients), len(RISKS)))
            np.add.at(sums, owner, gains)
            drawn = drawn + weights @ sums / (weights @ sizes)[:, None] / len(frames)
        low, high = np.quantile(drawn[1:], bootstrap.TAILS, axis=0)
        share = (y == c).mean()
        table = {"class": classes[c], "threshold": RISKS, "net_benefit": drawn[0]}
        table |= {"low": low, "high": high, "all": share - (1 - share) * odds}
        parts.append(pd.DataFrame(table))
    return pd.concat(parts, ignore_index=True)
