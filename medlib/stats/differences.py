"""Paired differences between arms, tests of equivalence, and ranks over tasks."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from medlib.core import settings
from medlib.errors import listed, unknown
from medlib.stats import bootstrap, metrics, runs
from medlib.stats.effects import Arm, Effect, effect, of_runs

MARGIN = 0.02  # of the AUROC: smaller differences do not matter
ALPHA, POWER = 0.05, 0.8  # level of tests, and power of the detectable difference
CEILING, FEW = 0.97, 100  # above this AUROC, equivalence is only tested with so many test patients
OF_A_SIDE = ("backbone", "pretraining", "regime")
SIDES = [f"{side}_{name}" for side in ("one", "other") for name in OF_A_SIDE]
EVIDENCE = ["difference", "ci_low", "ci_high", "procedure_low", "procedure_high", "error", "df"]
EVIDENCE += ["training_share", "training", "n_seeds", "p_value", "p_equivalence", "p_bootstrap"]
DIFFERENCES = ["task", "head", "label_fraction", "contrast", "family", "primary", *SIDES, *EVIDENCE]


def arms(
    folders: list[Path],
    names: Sequence[str] = ("auroc",),
    resamples: int = 5000,
    head: str = "linear",
) -> list[Arm]:
    """The arms of the main cells (:func:`runs.is_main`), all on the same draws of patients.

    There is an arm for each cell and each metric of ``names``. Cells have this ``head``; with ""
    they have any. With ``resamples`` 0 an arm has no draws. Raises ValueError as
    :func:`summaries.summarise` does.
    """
    cells = [c for c in runs.runs_by_cell(folders) if c[0].main]
    cells = [c for c in cells if c[0].named()["head"] == (head or c[0].named()["head"])]
    made = runs.by_cell(cells, lambda cell: of_runs(cell, names, resamples), "resamples")
    return [arm for _, of_cell in made for arm in of_cell]


def on_most_labels(arms: Iterable[Arm], regime: str) -> list[Arm]:
    """The arms of a regime on the largest label fraction that any of its arms has.

    Raises ValueError, with the regimes that there are, if no arm has this regime.
    """
    arms = list(arms)
    own = [arm for arm in arms if arm.cell["regime"] == regime]
    if not own:
        there = sorted({arm.cell["regime"] for arm in arms})
        way_out = "Notebook 04 trains a backbone: run it with this task and this results folder."
        raise ValueError(unknown("regime of these runs", regime, there, way_out))
    most = max(arm.cell["label_fraction"] for arm in own)
    return [arm for arm in own if arm.cell["label_fraction"] == most]


def evidence(found: Effect | None, margin: float = MARGIN) -> dict[str, float | str]:
    """Intervals and tests of a difference: the columns :data:`EVIDENCE`.

    ``ci_low`` and ``ci_high`` are the 95 % interval over test patients: it is about these trained
    models on other patients. ``procedure_low`` and ``procedure_high`` are the interval over test
    patients, training patients and seeds. ``error`` is the standard error of the second interval.
    ``training`` names the source of its part that is due to training, and ``training_share`` is the
    share of this part in the variance. ``p_value`` (two-sided) and ``p_equivalence`` (two one-sided
    tests, against -margin and margin) come from ``error``, and need it above zero. If the error due
    to training is unknown, ``error`` and everything that comes from it are NaN: a single training
    says nothing about backbones. ``p_bootstrap`` is a check. It is the two-sided p-value over test
    patients alone, from the share of resamples beyond zero.
    """
    if found is None or not np.isfinite(found.value):
        return dict.fromkeys(EVIDENCE, float("nan")) | {"training": "", "n_seeds": 0}
    value, reach = found.value, np.array([-1, 1]) * found.reach() * found.error
    draws = found.draws[np.isfinite(found.draws)]
    beyond = min((draws <= 0).sum(), (draws >= 0).sum()) + 1
    row = {"difference": value, "error": found.error, "df": found.df, "training": found.source}
    row |= bootstrap.ends("ci", value + np.array([-1, 1]) * bootstrap.Z * found.patients)
    row |= bootstrap.ends("procedure", value + reach) | {"n_seeds": found.n_seeds}
    row["training_share"] = found.training_share
    row["p_value"] = 2 * min(one_sided(found, 0, side) for side in ("above", "below"))
    sides = one_sided(found, -margin, "above"), one_sided(found, margin, "below")
    row["p_equivalence"] = max(sides) if np.isfinite(sides).all() else np.nan
    row["p_bootstrap"] = min(1.0, 2 * beyond / (1 + len(draws))) if len(draws) else np.nan
    return row


def one_sided(found: Effect, bound: float, side: str) -> float:
    """The p-value of the claim that an effect is "above" or "below" (``side``) a bound."""
    if not found.error > 0:
        return float("nan")
    t = (found.value - bound) / found.error
    return float(stats.t.sf(t if side == "above" else -t, found.df))


def difference(one: Arm, other: Arm, margin: float = MARGIN) -> dict[str, float | str]:
    """The :func:`evidence` on ``one`` minus ``other``, paired by patient, redraw and seed.

    If one of the two AUROCs is above :data:`CEILING`, equivalence is only tested with at least
    :data:`FEW` test patients, because the test is wrong too often with fewer. Raises ValueError for
    arms that cannot be paired.
    """
    return _compared(one, other, margin)[0]


def _compared(one: Arm, other: Arm, margin: float) -> tuple[dict[str, float | str], Effect | None]:
    """The row of :func:`difference`, and the effect that it describes."""
    tasks = ("tasks", one.cell["task"], other.cell["task"])
    for what, a, b in (tasks, ("metrics", one.metric, other.metric)):
        if a != b:
            raise ValueError(f"Arms of different {what} cannot be paired: {a} and {b}.")
    found = effect([(1, one), (-1, other)])
    row = evidence(found, margin)
    if one.metric == "auroc" and max(one.value, other.value) > CEILING:
        few = one.frames[0]["patient_id"].nunique() < FEW
        row["p_equivalence"] = np.nan if few else row["p_equivalence"]
    return row, found


def differences(
    arms: Iterable[Arm], margin: float = MARGIN, primary: str = "frozen"
) -> pd.DataFrame:
    """All paired differences, ``one`` minus ``other``: between backbones and between regimes.

    ``contrast`` is "backbones" or "regimes". "backbones" are two backbones with the same regime,
    head and label fraction. "regimes" is one backbone, trained minus frozen, with the same head and
    label fraction. Both arms have the same labelled patients, because only their common seeds
    count. P-values are corrected by Holm's method within a ``family``. The ``primary`` family is
    declared before the grid runs: all pairs of pretrained backbones in the regime ``primary``, over
    all tasks, at the largest label fraction of each. All other families are secondary: the other
    pairs of a task and regime, and the regimes of a task. ``different`` and ``equivalent`` say what
    is shown at the 5 % level after the correction. ``detectable`` is the smallest true difference
    that would be found with a power of 80 %, at the level of the correction's first step.
    ``simultaneous_low`` and ``simultaneous_high`` are an interval that is simultaneous over the
    family (:func:`simultaneous_reach`).
    """
    arms = list(arms)
    most: dict = {}
    for arm in arms:
        key, share = (arm.cell["task"], arm.cell["regime"]), arm.cell["label_fraction"]
        most[key] = max(share, most.get(key, 0))
    pairs, effects = [], []
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
        pretrained = "random" not in (a["pretraining"], b["pretraining"])
        first = contrast == "backbones" and a["regime"] == primary and pretrained
        first = first and a["label_fraction"] == most[a["task"], a["regime"]]
        pair = shared | {"contrast": contrast, "family": "primary" if first else family}
        row, found = _compared(one, other, margin)
        pair |= {"primary": first} | row
        pair |= zip(SIDES, [cell[name] for cell in (a, b) for name in OF_A_SIDE], strict=True)
        pairs.append(pair)
        effects.append(found)
    table = pd.DataFrame(pairs, columns=DIFFERENCES)
    for name in ("p_value", "p_equivalence"):
        table[f"{name}_holm"] = table.groupby("family")[name].transform(holm) if pairs else []
    table["different"] = table["p_value_holm"] < ALPHA
    table["equivalent"] = table["p_equivalence_holm"] < ALPHA
    n_tests = table.groupby("family")["p_value"].transform("count").clip(lower=1)
    of = stats.t(table["df"].astype(float))
    table["detectable"] = (of.ppf(1 - ALPHA / 2 / n_tests) + of.ppf(POWER)) * table["error"]
    reach = pd.Series(np.nan, table.index)
    for _, rows in table.groupby("family").groups.items():
        level = stats.norm.cdf(simultaneous_reach([effects[i] for i in rows]))
        reach[rows] = stats.t.ppf(level, table["df"][rows].astype(float))
    table["simultaneous_low"] = table["difference"] - reach * table["error"]
    table["simultaneous_high"] = table["difference"] + reach * table["error"]
    order = ["contrast", "family", "task", "one_backbone", "other_backbone"]
    return table.sort_values(order, ignore_index=True)


def simultaneous_reach(
    effects: Sequence[Effect | None], level: float = bootstrap.LEVEL, one_sided: bool = False
) -> float:
    """How many standard errors the simultaneous intervals of a family reach to each side.

    For each draw, the deviation of every effect is divided by the effect's standard error
    (:func:`deviations`), and the largest one is taken: by absolute value, or with ``one_sided`` by
    value. The reach is the quantile of these maxima at ``level``. It treats the standard errors as
    known. For an effect with few degrees of freedom, callers take the same quantile of its t
    distribution. NaN if no effect of the family has an error above zero.
    """
    rng, largest = np.random.default_rng(0), -np.inf
    for found in effects:
        if found is not None and found.error > 0:
            apart = deviations(found, rng) / found.error
            largest = np.fmax(largest, apart if one_sided else np.abs(apart))
    return float(np.quantile(largest, level)) if np.ndim(largest) else float("nan")


def deviations(found: Effect, rng: np.random.Generator) -> np.ndarray:
    """Deviations of an effect from its mean, (resamples,), from both sources of its error.

    Each one is a sum: the deviation in a resample of test patients, plus the deviation in a redraw
    of training patients. If the error due to training comes from seeds, alone or in part, the
    second term is a normal random number with this error.
    """
    at = np.arange(len(found.draws))
    apart = found.draws - np.nanmean(found.draws)
    if found.source == "redraws":
        again = found.redraws[at % len(found.redraws)]
        return apart + again - np.nanmean(found.redraws)
    return apart + found.training * rng.normal(size=len(at))


def on_same_labels(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Each backbone frozen and fine-tuned on the same labelled patients, with a linear head.

    `by_seed` has the rows of one metric of `summary.csv`. Columns: task, backbone, pretraining,
    label_fraction, n_patients, n_images, frozen and finetuned (means over the seeds that both have)
    and n_seeds. A frozen arm that does not depend on the seed counts for every seed.
    """
    rows = by_seed[by_seed["head"] == "linear"]
    keys = ["task", "backbone", "pretraining", "label_fraction", "n_patients", "n_images"]
    frozen, tuned = (rows[rows["regime"] == r] for r in ("frozen", "finetuned"))
    fixed = (frozen["pretraining"] != "random") & (frozen["label_fraction"] == 1)
    value = {"value_x": "frozen", "value_y": "finetuned"}
    pairs = [
        frozen[fixed].merge(tuned, on=keys).rename(columns={"seed_y": "seed"}),
        frozen[~fixed].merge(tuned, on=[*keys, "seed"]),
    ]
    pairs = pd.concat(pairs).rename(columns=value)[[*keys, "seed", *value.values()]]
    means = {"frozen": ("frozen", "mean"), "finetuned": ("finetuned", "mean")}
    return pairs.groupby(keys, as_index=False).agg(**means, n_seeds=("seed", "nunique"))


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
    """Mean ranks of the backbones (columns) over tasks (rows); rank 1 is the highest value.

    Ties share their rank. The second result is a dict. ``n_tasks`` is the number of tasks.
    ``p_friedman`` is the p-value of Friedman's test that all backbones are alike.
    ``critical_difference`` is from Nemenyi's test (Demšar, JMLR 7, 2006): two mean ranks that are
    at least this far apart differ at the 5 % level. Raises ValueError when a value is missing,
    because ranks among fewer backbones cannot be compared.
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

    Backbones that lack a task are left out, and so are regimes with fewer than two backbones left
    or with one task only.
    """
    table = pd.DataFrame([arm.cell | {"value": arm.value} for arm in arms])
    most = table.groupby(["task", "regime"])["label_fraction"].transform("max")
    ranks = {}
    for regime, part in table[table["label_fraction"] == most].groupby("regime"):
        values = part.pivot(index="task", columns="backbone", values="value").dropna(axis=1)
        if min(values.shape) > 1:
            ranks[regime] = mean_ranks(values)
    return dict(sorted(ranks.items(), key=lambda item: settings.REGIMES.index(item[0])))


def tied_with_best(arms: Iterable[Arm], margin: float = MARGIN) -> pd.DataFrame:
    """Whether each arm is the best of its task or equivalent to it: runs.CELL, metric and ``tied``.

    For each metric, equivalence to the best arm is tested by two one-sided tests, corrected by
    Holm's method within the task. An arm is not tied with the best if an error due to training is
    unknown.
    """
    together, ties = defaultdict(list), []
    for arm in arms:
        together[arm.cell["task"], arm.metric].append(arm)
    for (_, metric), rivals in together.items():
        sign = -1 if metric in metrics.LOSSES else 1
        best = max(rivals, key=lambda arm: sign * arm.value)
        others = [arm for arm in rivals if arm is not best]
        tests = [difference(arm, best, margin)["p_equivalence"] for arm in others]
        tied = [True, *(holm(np.array(tests)) < ALPHA)]
        for arm, is_tied in zip([best, *others], tied, strict=True):
            ties.append(arm.cell | {"metric": arm.metric, "tied": bool(is_tied)})
    return pd.DataFrame(ties)
