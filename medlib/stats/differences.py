"""Paired differences between arms, equivalence, ranks over tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medlib.core import settings
from medlib.errors import listed
from medlib.stats import bootstrap, metrics
from medlib.stats.runs import Run, by_cell, delong, points_and_draws, read, runs_by_cell
from medlib.stats.summaries import ends

MARGIN = 0.02  # AUROC: a smaller difference is taken as none
POWER = 0.8  # of the minimum detectable difference
OF_A_SIDE = ("backbone", "pretraining", "regime")
SIDES = [f"{side}_{name}" for side in ("one", "other") for name in OF_A_SIDE]
EVIDENCE = ["difference", "ci_low", "ci_high", "p_value", "p_equivalence", "detectable"]
DIFFERENCES = ["task", "head", "label_fraction", "contrast", "family", *SIDES, *EVIDENCE]


class Arm(NamedTuple):
    """One cell of the grid, resampled: the mean over its seeds of one metric."""

    cell: dict  # the columns of CELL
    metric: str
    value: float
    draws: np.ndarray  # (resamples,)
    frames: list[pd.DataFrame]  # predictions of each seed, in the order of sample ids
    classes: list[str]


def arms(
    folders: list[Path],
    names: Sequence[str] = ("auroc",),
    resamples: int = 5000,
    head: str = "linear",
) -> list[Arm]:
    """The main cells of the grid (:func:`is_main`) with this head, resampled together.

    An arm for each cell and metric of ``names``; with ``resamples`` 0 it has no draws. Raises what
    :func:`summarise` does.
    """
    cells = [
        runs for runs in runs_by_cell(folders)
        if runs[0].main and runs[0].named()["head"] == head
    ]  # fmt: skip

    def of_cell(runs: list[Run]) -> tuple[list[Arm], str]:
        frames, classes, samples = read(runs)
        points, draws = points_and_draws(frames, classes, names, resamples)
        cell = runs[0].named()
        return [
            Arm(
                cell, name, float(np.mean([point[name] for point in points])),
                np.mean([draw[name] for draw in draws], axis=0), frames, classes,
            )
            for name in names
        ], samples  # fmt: skip

    return [arm for _, made in by_cell(cells, of_cell, "resamples") for arm in made]


def share(values: np.ndarray) -> float:
    """A one-sided p-value: the share of resamples in which something holds; never 0."""
    return (1 + np.count_nonzero(values)) / (1 + len(values))


def evidence(value: float, draws: np.ndarray, margin: float = MARGIN) -> dict[str, float]:
    """What the resampled differences ``draws`` of a difference ``value`` show.

    The 95 % interval (percentiles) and the two-sided ``p_value`` that goes with it;
    ``p_equivalence``, of two one-sided tests against -margin and margin (below 0.05 where the 90 %
    interval lies within them); and ``detectable``, the smallest true difference that would be
    found at the 5 % level with a power of 80 % on so many patients (2.8 standard errors). Undefined
    resamples are left out.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not np.isfinite(value):
        return dict.fromkeys(EVIDENCE, float("nan")) | {"difference": value}
    return {
        "difference": value,
        **ends("ci", bootstrap.interval(draws)),
        "p_value": min(1.0, 2 * min(share(draws <= 0), share(draws >= 0))),
        "p_equivalence": max(share(draws <= -margin), share(draws >= margin)),
        "detectable": float(stats.norm.ppf([0.975, POWER]).sum() * draws.std(ddof=1)),
    }


def difference(one: Arm, other: Arm, margin: float = MARGIN) -> dict[str, float]:
    """``one`` minus ``other``, paired by patient: :func:`evidence`, and ``p_delong`` beside it.

    ``p_delong`` is that of the paired DeLong test for clustered data, of the means over seeds; for
    the AUROC of two classes only. Raises ValueError for arms that cannot be paired.
    """
    for what, a, b in (("tasks", one.cell["task"], other.cell["task"]),
                       ("metrics", one.metric, other.metric)):  # fmt: skip
        if a != b:
            raise ValueError(f"Arms of different {what} cannot be paired: {a} and {b}.")
    found = evidence(one.value - other.value, one.draws - other.draws, margin)
    if one.metric != "auroc":
        return found | {"p_delong": float("nan")}
    areas, covariance = delong(one.frames + other.frames, one.classes)
    m, n = len(one.frames), len(other.frames)
    signs = np.repeat([1 / m, -1 / n], [m, n])
    variance = signs @ covariance @ signs
    # What is left of it by rounding, where two arms rank all samples alike, is none.
    z = signs @ areas / np.sqrt(variance) if variance > 1e-15 else 0 * variance
    return found | {"p_delong": float(2 * stats.norm.sf(abs(z)))}


def differences(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """All paired differences, ``one`` minus ``other``: between backbones and between regimes.

    ``contrast`` is "backbones" (any two in one regime, head and label fraction) or "regimes" (one
    backbone trained, minus frozen, on the same labels and with the same head). P-values are
    corrected by Holm's method within a ``family``: the backbones of a task and regime, and the
    regimes of a task. ``different`` and ``equivalent`` are what is left at the 5 % level.
    """
    arms, rows = list(arms), []
    for one, other in itertools.permutations(arms, 2):
        a, b = one.cell, other.cell
        if any(a[name] != b[name] for name in ("task", "head", "label_fraction")):
            continue
        words = {name: a[name] for name in ("task", "head", "label_fraction")}
        if a["regime"] == b["regime"] and a["backbone"] < b["backbone"]:
            words |= {"contrast": "backbones", "family": f"backbones, {a['regime']}"}
        elif a["backbone"] == b["backbone"] and a["regime"] != "frozen" == b["regime"]:
            words |= {"contrast": "regimes", "family": "regimes"}
        else:
            continue
        words["family"] += f", {a['task']}, {a['head']}, {a['label_fraction']:g} of labels"
        for side, cell in (("one", a), ("other", b)):
            words |= {f"{side}_{name}": cell[name] for name in OF_A_SIDE}
        rows.append(words | difference(one, other, margin))
    table = pd.DataFrame(rows, columns=[*DIFFERENCES, "p_delong"])
    for name in ("p_value", "p_equivalence"):
        table[f"{name}_holm"] = table.groupby("family")[name].transform(holm) if rows else []
    table["different"] = table["p_value_holm"] < 0.05
    table["equivalent"] = table["p_equivalence_holm"] < 0.05
    return table.sort_values(["contrast", "family", "one_backbone", "other_backbone"],
                             ignore_index=True)  # fmt: skip


def holm(p: pd.Series | np.ndarray) -> np.ndarray:
    """P-values corrected for their number (Holm, Scand. J. Statist. 6, 1979); NaN is no test."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested])]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def mean_ranks(values: pd.DataFrame, higher_is_better: bool = True) -> tuple[pd.Series, dict]:
    """Backbones (columns) ranked in every task (rows), and the mean over tasks; 1 is best.

    Ties share their rank. Beside the ranks: ``p_friedman``, whether they differ at all, and
    ``critical_difference``, the distance from which two differ at the 5 % level by Nemenyi's test
    (Demšar, JMLR 7, 2006). Raises ValueError when a value is missing: a rank would mean another
    thing in that task.
    """
    if values.isna().any(axis=None):
        holes = [f"{row} × {column}" for (row, column), hole in values.isna().stack().items()
                 if hole]  # fmt: skip
        raise ValueError(f"{len(holes)} values are missing:\n{listed(holes)}")
    n, k = values.shape
    ranks = values.rank(axis=1, ascending=not higher_is_better)
    p = stats.friedmanchisquare(*values.to_numpy().T).pvalue if k > 2 and n > 1 else np.nan
    reach = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2) if k > 1 else np.nan
    critical = reach * np.sqrt(k * (k + 1) / (6 * n))
    found = {"n_tasks": n, "p_friedman": float(p), "critical_difference": float(critical)}
    return ranks.mean().sort_values(), found


def ranks_by_regime(arms: Iterable[Arm]) -> dict[str, tuple[pd.Series, dict]]:
    """Regime -> :func:`mean_ranks` of its backbones, at the most labels that each task has there.

    Backbones that lack a task are left out, and so are regimes with fewer than two backbones left.
    """
    rows = pd.DataFrame([arm.cell | {"value": arm.value} for arm in arms])
    most = rows.groupby(["task", "regime"])["label_fraction"].transform("max")
    found = {}
    for regime, part in rows[rows["label_fraction"] == most].groupby("regime"):
        values = part.pivot(index="task", columns="backbone", values="value").dropna(axis=1)
        if values.shape[1] > 1:
            found[regime] = mean_ranks(values)
    return dict(sorted(found.items(), key=lambda item: settings.REGIMES.index(item[0])))


def tied_with_best(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """Which arms are the best of their task, or equivalent to it: CELL, metric and ``tied``.

    For each metric, two one-sided tests of the difference to the best, corrected by Holm's method
    within the task.
    """
    together: dict = {}
    for arm in arms:
        together.setdefault((arm.cell["task"], arm.metric), []).append(arm)
    rows = []
    for (_, metric), here in together.items():
        sign = -1 if metric in metrics.LOSSES else 1
        best = max(here, key=lambda arm: sign * arm.value)
        others = [arm for arm in here if arm is not best]
        apart = [evidence(a.value - best.value, a.draws - best.draws, margin) for a in others]
        p = holm([found["p_equivalence"] for found in apart])
        tied = [True, *(p < 0.05)]
        for arm, is_tied in zip([best, *others], tied, strict=True):
            rows.append(arm.cell | {"metric": arm.metric, "tied": bool(is_tied)})
    return pd.DataFrame(rows)
