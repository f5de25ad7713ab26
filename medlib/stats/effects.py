"""Arms, and weighted sums of arms, with two standard errors.

The first error is over test patients. It says how far the result varies if these trained models are
tested on other patients. The second error is over training patients and seeds. It says how far the
result varies if the same procedure is trained again. Their variances are added. Conclusions about
backbones need both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medlib.stats import bootstrap, metrics, prediction, runs


class Arm(NamedTuple):
    """One arm on one task, with one metric.

    ``values``, ``draws`` and ``redraws`` have an entry for each seed. The i-th draw has the same
    test patients in all arms and seeds, and the i-th redraw the same training patients.
    """

    cell: dict  # the columns of runs.CELL
    metric: str
    values: dict[int, float]
    draws: dict[int, np.ndarray]  # (resamples,) on draws of the test patients
    redraws: dict[int, np.ndarray]  # (redraws,) after redraws of the training patients, if any
    frames: list[pd.DataFrame]  # predictions of each seed, sorted by sample id
    classes: list[str]
    validated: Sequence[pd.DataFrame] = ()  # predictions of the validation patients, of each seed

    @property
    def value(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def seeded(self) -> bool:
        """Whether the seed draws weights or the order of training.

        It does so in trained regimes, in random controls and in the MLP head.
        """
        drawn = self.cell["pretraining"] == "random" or self.cell["head"] == "mlp"
        return drawn or self.cell["regime"] != "frozen"

    @property
    def fixed(self) -> bool:
        """Whether no seed changes the arm. Its single run then counts for every seed."""
        return not self.seeded and self.cell["label_fraction"] == 1

    def at(self, seed: int, field: str) -> np.ndarray:
        """The ``values`` (1,), ``draws`` or ``redraws`` of a seed."""
        of_seeds = getattr(self, field)
        return np.atleast_1d(of_seeds[next(iter(of_seeds)) if self.fixed else seed])


class Effect(NamedTuple):
    """A weighted sum of arms, with the standard errors of its two sources."""

    value: float
    draws: np.ndarray  # (resamples,)
    redraws: np.ndarray  # (redraws,); empty if only seeds show how training varies
    patients: float  # the standard error over test patients
    training: float  # over training patients and seeds; NaN if there was one training
    df: float  # degrees of freedom of the total error (Satterthwaite)
    n_seeds: int
    source: str  # of ``training``: "redraws", "seeds", "redraws and seeds" or ""

    @property
    def error(self) -> float:
        return float(np.hypot(self.patients, self.training))

    @property
    def training_share(self) -> float:
        """The share of training in the variance; NaN if the variance is 0 or unknown."""
        return self.training**2 / self.error**2 if self.error > 0 else float("nan")

    def reach(self, level: float = bootstrap.LEVEL) -> float:
        """How many standard errors an interval of this level reaches to each side."""
        return float(stats.t.ppf((1 + level) / 2, self.df))


def of_patients(value: float, draws: np.ndarray) -> Effect:
    """An effect whose only error is the one over test patients: the trained models are fixed.

    ``draws`` (resamples,) are its values on draws of the test patients.
    """
    return Effect(value, draws, np.array([]), bootstrap.error(draws), 0.0, np.inf, 1, "")


def of_runs(
    of_cell: list[runs.Run], names: Sequence[str] | None, resamples: int, ordered: bool = False
) -> tuple[list[Arm], str]:
    """The arms of a cell, one for each metric, and the hash of its samples.

    If ``names`` is None, these are all metrics of the task.
    """
    frames, classes, samples = runs.read(of_cell)
    names = names or metrics.applicable(len(classes), ordered)
    seeds = [run.seed for run in of_cell]
    points = [prediction.point(frame, classes, names) for frame in frames]
    draws = [bootstrap.bootstrap(f, classes, resamples, names=names, threads=1) for f in frames]
    redraws, validated = (runs.each(of_cell, read) for read in (runs.redraws, runs.validation))
    arms = []
    for name in names:
        values, drawn = (
            {s: of[name] for s, of in zip(seeds, x, strict=True)} for x in (points, draws)
        )
        again = {s: r[name].to_numpy() for s, r in zip(seeds, redraws, strict=True) if name in r}
        arms.append(Arm(of_cell[0].named(), name, values, drawn, again, frames, classes, validated))
    return arms, samples


def effect(terms: Sequence[tuple[float, Arm]]) -> Effect | None:
    """The weighted sum of arms, on the seeds that all arms have. None if they share no seed.

    ``terms`` are pairs (weight, arm). A seed draws the labelled patients, so arms on few labels are
    compared on the same patients. The variance due to training has two parts: the variance over
    redraws of the training patients (frozen arms), and the variance of the mean over seeds (arms
    with drawn weights or order). If a trained arm is among the terms and no arm has all labels,
    seeds draw the patients of all arms. Then only the variance over seeds is used. The variance is
    unknown (NaN) if there is a single seed where seeds are needed, or if a frozen arm has no
    redraws.
    """
    of_seeds = [set(arm.values) for _, arm in terms if not arm.fixed]
    seeds = sorted(set.intersection(*of_seeds)) if of_seeds else [0]
    if not seeds:
        return None

    def total(chosen: Sequence[tuple[float, Arm]], field: str) -> list[np.ndarray]:
        """The weighted sum for each seed; redraws are cut to the number that all arms have."""
        sums = []
        for seed in seeds:
            parts = [(weight, arm.at(seed, field)) for weight, arm in chosen]
            n = min(len(values) for _, values in parts)
            sums.append(sum(weight * values[:n] for weight, values in parts))
        return sums

    values, draws = total(terms, "values"), np.mean(total(terms, "draws"), axis=0)
    shares = [arm.cell["label_fraction"] for _, arm in terms]
    by_seed = any(a.cell["regime"] != "frozen" for _, a in terms) and max(shares) < 1
    frozen = [(w, a) for w, a in terms if a.cell["regime"] == "frozen" and not by_seed]
    seeded = [(w, a) for w, a in terms if a.seeded or by_seed]
    parts, redraws, sources = [], np.array([]), []
    if frozen:
        if all(len(a.redraws) == len(a.values) for _, a in frozen):
            redraws = np.mean(total(frozen, "redraws"), axis=0)
        defined = redraws[np.isfinite(redraws)]
        parts.append((_variance(defined), len(defined) - 1))
        sources.append("redraws")
    if seeded:
        parts.append((_variance(np.array(total(seeded, "values"))) / len(seeds), len(seeds) - 1))
        sources.append("seeds")
    patients = np.sqrt(_variance(draws[np.isfinite(draws)]))
    training = sum(variance for variance, _ in parts)
    spread = sum(v**2 / df for v, df in parts if df > 0 and v > 0)
    df = (patients**2 + training) ** 2 / spread if spread > 0 else np.inf + 0 * training
    known = " and ".join(sources) if np.isfinite(training) else ""
    errors = float(patients), float(np.sqrt(training)), float(df)
    return Effect(float(np.mean(values)), draws, redraws, *errors, len(seeds), known)


def _variance(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else float("nan")
