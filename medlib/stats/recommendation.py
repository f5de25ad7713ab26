"""Which arm to take: multiple comparisons with the best, and a rule that is stated.

The best arm of a task is not known. For each arm, the difference from the best of the others has an
interval, and all these intervals hold at once (Hsu, Ann. Statist. 9, 1981; constrained as in Hsu,
Multiple Comparisons, 1996, chapter 4). Their width comes from the paired draws: it is the largest
studentised difference. They are about the procedure: other test patients, other training patients
and seeds. Arms that were trained once have no such interval and are not judged.

The rule: of the arms that are shown to be no worse than the best by more than the margin, the
cheapest, in seconds. Where no arm is shown to be so, nothing is recommended. Random controls are
never candidates.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medlib.stats import differences, metrics, runs
from medlib.stats.effects import Arm, Effect, effect

COLUMNS = [*runs.CELL, "metric", "value", "difference", "best_low", "best_high", "among_best"]
COLUMNS += ["share_best", "no_worse", "recommended", "patients_needed", "why"]
ONCE = "trained once: nothing is known of other trainings"


def with_the_best(
    arms: Sequence[Arm], costs: pd.DataFrame, margin: float = differences.MARGIN
) -> pd.DataFrame:
    """The arms of one task and metric against the best of them: a row an arm, the columns COLUMNS.

    ``costs`` has the columns of runs.CELL and ``seconds``. ``difference`` is the arm minus the best
    of the others (for a loss, of the opposite sign: above 0 is better), ``best_low`` and
    ``best_high`` its simultaneous 95 % interval. An arm is ``among_best`` if the interval reaches
    above 0: it cannot be told from the best. ``share_best`` is the share of draws in which it is
    the best. ``no_worse``: shown to be no worse than the best by more than ``margin``.
    ``patients_needed`` stands in all rows where nothing is recommended: with how many test
    patients, and as many times more training patients, the arm with the best value would be shown
    to be so, if the values stay as they are. ``why`` says why an arm is not judged. Raises
    ValueError for arms of several tasks or metrics.
    """
    if len({(arm.cell["task"], arm.metric) for arm in arms}) > 1:
        raise ValueError("Arms of one task and one metric can be compared with the best of them.")
    arms = [arm for arm in arms if arm.cell["pretraining"] != "random"]
    rows = [arm.cell | {"metric": arm.metric, "value": arm.value, "why": ONCE} for arm in arms]
    table = pd.DataFrame(rows, columns=COLUMNS)
    judged = [i for i, arm in enumerate(arms) if effect([(1, arm)]).error > 0]
    if len(judged) > 1:
        of_judged = _judged([arms[i] for i in judged], margin)
        for name, values in of_judged.items():
            table[name] = pd.Series(values, judged).reindex(table.index)
        table.loc[judged, "why"] = ""
    elif judged:
        table.loc[judged, "why"] = "no other arm to compare it with"
    for name in ("among_best", "no_worse"):
        table[name] = table[name].eq(True)
    table = table.drop(columns="recommended").merge(costs, on=runs.CELL, how="left")
    fit = table[table["no_worse"]].sort_values(["seconds", "value"], ascending=[True, False])
    table["recommended"] = table.index.isin(fit.index[:1])
    if len(fit):
        table["patients_needed"] = np.nan
    return table.sort_values("value", ascending=arms[0].metric in metrics.LOSSES, ignore_index=True)


def _judged(arms: Sequence[Arm], margin: float) -> dict[str, list]:
    """The columns of arms whose error of training is known."""
    sign, k = (-1 if arms[0].metric in metrics.LOSSES else 1), len(arms)
    pairs = {}
    for i in range(k):
        for j in range(i):
            found = effect([(sign, arms[i]), (-sign, arms[j])])
            pairs[i, j], pairs[j, i] = found, _negative(found)
    reach = np.array([_reach([pairs[j, i] for j in range(k) if j != i]) for i in range(k)])
    gap, error = np.zeros((k, k)), np.zeros((k, k))  # of i minus j
    for (i, j), found in pairs.items():
        gap[i, j], error[i, j] = found.value, found.error
    apart = ~np.eye(k, dtype=bool)
    upper = [min((gap + reach[i] * error)[i, apart[i]]) for i in range(k)]
    best = [i for i in range(k) if upper[i] > 0] or [int(gap.sum(1).argmax())]
    lower = gap - reach * error  # against j, with the reach of j
    low = [min([lower[i, j] for j in best if j != i], default=0.0) for i in range(k)]
    first = int(gap.sum(1).argmax())
    patients = arms[first].frames[0]["patient_id"].nunique()
    needed = [
        patients * (reach[j] * error[first, j] / (margin + gap[first, j])) ** 2
        for j in best
        if j != first
    ]
    return {
        "difference": [min(gap[i, apart[i]]) for i in range(k)],
        "best_low": [min(0.0, value) for value in low],
        "best_high": [max(0.0, value) for value in upper],
        "among_best": [i in best for i in range(k)],
        "share_best": _share_best([effect([(sign, arm)]) for arm in arms]),
        "no_worse": [value > -margin for value in low],
        "patients_needed": [float(np.ceil(max(needed, default=np.nan)))] * k,
    }


def _negative(found: Effect) -> Effect:
    return found._replace(value=-found.value, draws=-found.draws, redraws=-found.redraws)


def _reach(found: Sequence[Effect]) -> float:
    """How many standard errors an arm's lead over all others may be too small at once.

    ``found`` are the differences of the others from it. With the fewest degrees of freedom.
    """
    reach = differences.simultaneous_reach(found, one_sided=True)
    return float(stats.t.ppf(stats.norm.cdf(reach), min(one.df for one in found)))


def _share_best(found: Sequence[Effect]) -> list[float]:
    """In which share of the draws each arm has the highest value."""
    rng = np.random.default_rng(0)
    drawn = np.stack([one.value + differences.deviations(one, rng) for one in found])
    return (np.bincount(drawn.argmax(0), minlength=len(found)) / drawn.shape[1]).tolist()
