"""Paired differences between arms, tests of equivalence, and ranks over tasks."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medlib.core import settings
from medlib.errors import listed
from medlib.stats import bootstrap, metrics, runs

MARGIN = 0.02  # AUROC: a smaller difference counts as none
POWER = 0.8  # of the minimum detectable difference
OF_A_SIDE = ("backbone", "pretraining", "regime")
SIDES = [f"{side}_{name}" for side in ("one", "other") for name in OF_A_SIDE]
EVIDENCE = ["difference", "ci_low", "ci_high", "p_value", "p_equivalence", "detectable"]
DIFFERENCES = ["task", "head", "label_fraction", "contrast", "family", *SIDES, *EVIDENCE]


class Arm(NamedTuple):
    """One arm on one task, resampled: one metric, as the mean over seeds."""

    cell: dict  # the columns of runs.CELL
    metric: str
    value: float
    draws: np.ndarray  # (resamples,)
    frames: list[pd.DataFrame]  # predictions of each seed, sorted by sample id
    classes: list[str]


def arms(
    folders: list[Path],
    names: Sequence[str] = ("auroc",),
    resamples: int = 5000,
    head: str = "linear",
) -> list[Arm]:
    """The main cells (:func:`runs.is_main`) with this head, resampled together.

    An arm for each cell and each metric of ``names``; with ``resamples`` 0 it has no draws. Raises
    ValueError as :func:`summaries.summarise` does.
    """

    def of_cell(seeds: list[runs.Run]) -> tuple[list[Arm], str]:
        frames, classes, samples = runs.read(seeds)
        points, draws = bootstrap.points_and_draws(frames, classes, names, resamples)
        made = []
        for name in names:
            value = float(np.mean([point[name] for point in points]))
            drawn = np.mean([draw[name] for draw in draws], axis=0)
            made.append(Arm(seeds[0].named(), name, value, drawn, frames, classes))
        return made, samples

    cells = [c for c in runs.runs_by_cell(folders) if c[0].main and c[0].named()["head"] == head]
    return [arm for _, made in runs.by_cell(cells, of_cell, "resamples") for arm in made]


def share(values: np.ndarray) -> float:
    """A one-sided p-value: the share of resamples in which ``values`` is true; never 0."""
    return (1 + np.count_nonzero(values)) / (1 + len(values))


def evidence(value: float, draws: np.ndarray, margin: float = MARGIN) -> dict[str, float]:
    """Interval and tests of a difference ``value`` from its resamples ``draws``.

    Returns :data:`EVIDENCE`: the 95 % interval (percentiles) and the matching two-sided
    ``p_value``; ``p_equivalence`` of two one-sided tests against -margin and margin (below 0.05
    where the 90 % interval lies between them); and ``detectable``, the smallest true difference
    that this many patients would show at the 5 % level with a power of 80 % (2.8 standard errors).
    Undefined resamples are left out.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return dict.fromkeys(EVIDENCE, float("nan")) | {"difference": value}
    return {
        "difference": value,
        **bootstrap.ends("ci", bootstrap.interval(draws)),
        "p_value": min(1.0, 2 * min(share(draws <= 0), share(draws >= 0))),
        "p_equivalence": max(share(draws <= -margin), share(draws >= margin)),
        "detectable": float(stats.norm.ppf([0.975, POWER]).sum() * draws.std(ddof=1)),
    }


def difference(one: Arm, other: Arm, margin: float = MARGIN) -> dict[str, float]:
    """``one`` minus ``other``, paired by patient: :func:`evidence` and ``p_delong``.

    ``p_delong`` is from the paired DeLong test for clustered data, of the means over seeds; for the
    AUROC of two classes only. Raises ValueError for arms that cannot be paired.
    """
    tasks = ("tasks", one.cell["task"], other.cell["task"])
    for what, a, b in (tasks, ("metrics", one.metric, other.metric)):
        if a != b:
            raise ValueError(f"Arms of different {what} cannot be paired: {a} and {b}.")
    tests = evidence(one.value - other.value, one.draws - other.draws, margin)
    if one.metric != "auroc":
        return tests | {"p_delong": float("nan")}
    areas, covariance = bootstrap.delong_of_frames(one.frames + other.frames, one.classes)
    m, n = len(one.frames), len(other.frames)
    signs = np.repeat([1 / m, -1 / n], [m, n])
    variance = signs @ covariance @ signs
    # Where two arms rank all samples alike, the variance is 0 but for rounding.
    z = signs @ areas / np.sqrt(variance) if variance > 1e-15 else 0 * variance
    return tests | {"p_delong": float(2 * stats.norm.sf(abs(z)))}


def differences(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """All paired differences, ``one`` minus ``other``: between backbones and between regimes.

    ``contrast`` is "backbones" (any two in one regime, head and label fraction) or "regimes" (one
    backbone, trained minus frozen, on the same labels and with the same head). P-values are
    corrected by Holm's method within a ``family``: the backbones of a task and regime, and the
    regimes of a task. ``different`` and ``equivalent`` say what holds at the 5 % level after it.
    """
    pairs = []
    for one, other in itertools.permutations(arms, 2):
        a, b = one.cell, other.cell
        shared = {name: a[name] for name in ("task", "head", "label_fraction")}
        if any(b[name] != value for name, value in shared.items()):
            continue
        if a["regime"] == b["regime"] and a["backbone"] < b["backbone"]:
            contrast, family = "backbones", f"backbones, {a['regime']}"
        elif a["backbone"] == b["backbone"] and a["regime"] != "frozen" == b["regime"]:
            contrast = family = "regimes"
        else:
            continue
        family += f", {a['task']}, {a['head']}, {a['label_fraction']:g} of labels"
        pair = shared | {"contrast": contrast, "family": family} | difference(one, other, margin)
        pair |= zip(SIDES, [cell[name] for cell in (a, b) for name in OF_A_SIDE], strict=True)
        pairs.append(pair)
    table = pd.DataFrame(pairs, columns=[*DIFFERENCES, "p_delong"])
    for name in ("p_value", "p_equivalence"):
        table[f"{name}_holm"] = table.groupby("family")[name].transform(holm) if pairs else []
    table["different"] = table["p_value_holm"] < 0.05
    table["equivalent"] = table["p_equivalence_holm"] < 0.05
    order = ["contrast", "family", "one_backbone", "other_backbone"]
    return table.sort_values(order, ignore_index=True)


def holm(p: pd.Series | np.ndarray) -> np.ndarray:
    """P-values corrected by Holm's method (Scand. J. Statist. 6, 1979). NaN counts as no test."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def mean_ranks(values: pd.DataFrame) -> tuple[pd.Series, dict]:
    """Backbones (columns) ranked in every task (rows), as the mean over tasks; 1 is the highest.

    Ties share their rank. The second value holds ``n_tasks``; ``p_friedman``, the p-value of
    Friedman's test that all are alike; and ``critical_difference``: two mean ranks at least this
    far apart differ at the 5 % level by Nemenyi's test (Demšar, JMLR 7, 2006). Raises ValueError
    when a value is missing, because ranks among fewer backbones mean something else.
    """
    holes = values.isna().stack()
    if missing := [f"{task} × {name}" for (task, name), hole in holes.items() if hole]:
        raise ValueError(f"{len(missing)} values are missing:\n{listed(missing)}")
    n, k = values.shape
    ranks = values.rank(axis=1, ascending=False)
    p = stats.friedmanchisquare(*values.to_numpy().T).pvalue if k > 2 and n > 1 else np.nan
    reach = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) if k > 1 else np.nan
    critical = reach * np.sqrt(k * (k + 1) / (6 * n))
    tests = {"n_tasks": n, "p_friedman": float(p), "critical_difference": float(critical)}
    return ranks.mean().sort_values(), tests


def ranks_by_regime(arms: Iterable[Arm]) -> dict[str, tuple[pd.Series, dict]]:
    """Regime -> :func:`mean_ranks` of its backbones, at the largest label fraction of each task.

    Backbones that lack a task are left out, and so are regimes with fewer than two backbones left.
    """
    table = pd.DataFrame([arm.cell | {"value": arm.value} for arm in arms])
    most = table.groupby(["task", "regime"])["label_fraction"].transform("max")
    ranks = {}
    for regime, part in table[table["label_fraction"] == most].groupby("regime"):
        values = part.pivot(index="task", columns="backbone", values="value").dropna(axis=1)
        if values.shape[1] > 1:
            ranks[regime] = mean_ranks(values)
    return dict(sorted(ranks.items(), key=lambda item: settings.REGIMES.index(item[0])))


def tied_with_best(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """Which arms are the best of their task or equivalent to it: runs.CELL, metric and ``tied``.

    For each metric, two one-sided tests of the difference to the best arm, corrected by Holm's
    method within the task.
    """
    together, ties = defaultdict(list), []
    for arm in arms:
        together[arm.cell["task"], arm.metric].append(arm)
    for (_, metric), rivals in together.items():
        sign = -1 if metric in metrics.LOSSES else 1
        best = max(rivals, key=lambda arm: sign * arm.value)
        others = [arm for arm in rivals if arm is not best]
        tests = [evidence(a.value - best.value, a.draws - best.draws, margin) for a in others]
        tied = [True, *(holm([test["p_equivalence"] for test in tests]) < 0.05)]
        for arm, is_tied in zip([best, *others], tied, strict=True):
            ties.append(arm.cell | {"metric": arm.metric, "tied": bool(is_tied)})
    return pd.DataFrame(ties)
