"""Which arm to take: multiple comparisons with the best, and a rule for the choice.

The truly best arm of a task is not known. So each arm gets an interval for its difference from the
best of the other arms. All these intervals hold at once (Hsu, Ann. Statist. 9, 1981; constrained as
in Hsu, Multiple Comparisons, 1996, chapter 4). Their width comes from the largest studentised
difference in the paired draws. They are about the procedure: other test patients, other training
patients and other seeds. Arms that were trained once have no such interval and are not judged.

The rule considers the arms that are shown to be no worse than the best by more than the margin. The
cheapest of them, in seconds, is recommended. If there is no such arm, nothing is recommended.
Random controls are never candidates.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medlib.stats import differences, metrics, runs
from medlib.stats.effects import Arm, Effect, effect

ALL_TASKS = "all tasks"
RULE = (
    "Recommended: the cheapest arm (in seconds) among those that are shown to be no worse than the "
    "best by more than the margin."
)
ONCE = "training was not repeated"
FEWER = "run on fewer labels"
COLUMNS = [*runs.CELL, "metric", "value", "n_patients", "seconds", "parameters", "memory"]
COLUMNS += ["difference", "best_low", "best_high", "among_best", "share_best", "no_worse"]
COLUMNS += ["recommended", "patients_needed", "margin", "why"]


class Candidate(NamedTuple):
    """An arm of one task, or the mean of one arm over several tasks."""

    cell: dict  # the columns of runs.CELL
    metric: str
    terms: list[tuple[float, Arm]]  # its effect is their weighted sum

    @property
    def value(self) -> float:
        return sum(weight * arm.value for weight, arm in self.terms)

    @property
    def patients(self) -> int:
        return len({patient for _, arm in self.terms for patient in arm.frames[0]["patient_id"]})


def recommend(
    arms: Iterable[Arm], costs: pd.DataFrame, margin: float = differences.MARGIN
) -> pd.DataFrame:
    """Compare the arms of each task with the best of them, and the arms over all tasks together.

    ``arms`` are of one metric, with any heads. In each task the arms on the largest label fraction
    are compared; the other arms follow in the table, not judged. Over all tasks (``task`` is
    ALL_TASKS), the mean of an arm over tasks is compared if every task has this arm, and its
    seconds are added up. ``costs`` is :func:`summaries.costs`. The columns are COLUMNS: see
    :func:`with_the_best`.
    """
    arms = [arm for arm in arms if arm.cell["pretraining"] != "random"]
    most = {}
    for arm in arms:
        task, share = arm.cell["task"], arm.cell["label_fraction"]
        most[task] = max(share, most.get(task, 0))
    fewer = [arm for arm in arms if arm.cell["label_fraction"] < most[arm.cell["task"]]]
    arms = [arm for arm in arms if arm.cell["label_fraction"] == most[arm.cell["task"]]]
    by_task = {task: [a for a in arms if a.cell["task"] == task] for task in most}
    costs = costs.set_index(runs.CELL)[["seconds", "parameters", "memory"]]
    tables = []
    for task, of_task in by_task.items():
        compared = with_the_best([_alone(arm) for arm in of_task], costs, margin)
        others = [_alone(arm) for arm in fewer if arm.cell["task"] == task]
        left_out = with_the_best(others, costs, margin, FEWER) if others else None
        tables.append(pd.concat([compared, left_out]))
    together = {}
    for arm in arms:
        key = tuple(arm.cell[name] for name in runs.CELL[1:-1])
        together.setdefault(key, []).append((1 / len(by_task), arm))
    complete = [terms for terms in together.values() if len(terms) == len(by_task)]
    if len(by_task) > 1 and complete:
        everywhere = [
            Candidate(terms[0][1].cell | {"task": ALL_TASKS}, terms[0][1].metric, terms)
            for terms in complete
        ]
        tables.append(with_the_best(everywhere, costs, margin))
    tables = tables or [with_the_best([], costs, margin)]  # its columns, and no row
    return pd.concat(tables, ignore_index=True)


def _alone(arm: Arm) -> Candidate:
    return Candidate(arm.cell, arm.metric, [(1.0, arm)])


def with_the_best(
    candidates: Sequence[Candidate], costs: pd.DataFrame, margin: float, why: str = ""
) -> pd.DataFrame:
    """Compare candidates of one metric with the best of them: a row each, the best value first.

    ``costs`` has seconds, parameters and memory, by runs.CELL. ``difference`` is a candidate minus
    the best of the others. For a loss the sign is reversed, so that above 0 is always better.
    ``best_low`` and ``best_high`` are its simultaneous 95 % interval. A candidate is ``among_best``
    if this interval reaches above 0: it cannot be told from the best. ``share_best`` is the share
    of draws in which it is the best. ``no_worse`` means that it is shown to be no worse than the
    best by more than ``margin``. ``patients_needed`` is given if nothing is recommended. It is the
    number of test patients with which the candidate with the best value would be shown to be no
    worse, if the number of training patients grows by the same factor and the values stay as they
    are. The column ``why`` says why a candidate is not judged. With the argument ``why`` no
    candidate is judged, for this reason. Raises ValueError for several metrics.
    """
    if len({one.metric for one in candidates}) > 1:
        raise ValueError("Only candidates of one metric can be compared with the best of them.")
    rows = [one.cell | {"metric": one.metric, "value": one.value} for one in candidates]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["n_patients"] = [one.patients for one in candidates]
    for i, one in enumerate(candidates):
        places = [tuple(arm.cell[name] for name in runs.CELL) for _, arm in one.terms]
        spent = costs.reindex(pd.MultiIndex.from_tuples(places, names=runs.CELL))
        table.loc[i, "seconds"] = spent["seconds"].sum(min_count=len(places))
        table.loc[i, ["parameters", "memory"]] = spent[["parameters", "memory"]].max().to_numpy()
    table["why"], table["margin"] = why or ONCE, margin
    found = [] if why else [effect(one.terms) for one in candidates]
    judged = [i for i, one in enumerate(found) if one is not None and one.error > 0]
    table.loc[judged, "why"] = "" if len(judged) > 1 else "there is no other to compare it with"
    if len(judged) > 1:
        for name, values in _judged([candidates[i] for i in judged], margin).items():
            table[name] = pd.Series(values, judged).reindex(table.index)
    for name in ("among_best", "no_worse"):
        table[name] = table[name].eq(True)
    fit = table[table["no_worse"]].sort_values(["seconds", "value"], ascending=[True, False])
    table["recommended"] = table.index.isin(fit.index[:1])
    if len(fit):
        table["patients_needed"] = np.nan
    kinds = dict.fromkeys(["difference", "best_low", "best_high", "share_best"], float)
    kinds |= dict.fromkeys(["patients_needed", "seconds", "parameters", "memory"], float)
    lower = bool(candidates) and candidates[0].metric in metrics.LOSSES
    return table.astype(kinds).sort_values("value", ascending=lower, ignore_index=True)


def _judged(candidates: Sequence[Candidate], margin: float) -> dict[str, list]:
    """The columns of candidates whose error due to training is known."""
    sign, k = (-1 if candidates[0].metric in metrics.LOSSES else 1), len(candidates)
    terms = [[(sign * weight, arm) for weight, arm in one.terms] for one in candidates]
    pairs = {}
    for i in range(k):
        for j in range(i):
            found = effect([*terms[i], *((-weight, arm) for weight, arm in terms[j])])
            if found is not None and found.error > 0:
                pairs[i, j], pairs[j, i] = found, _negative(found)
    reach = np.array([_reach([f for (_, j), f in pairs.items() if j == i]) for i in range(k)])
    values = sign * np.array([one.value for one in candidates])
    gap, error = values[:, None] - values, np.full((k, k), np.inf)  # of i minus j
    for (i, j), found in pairs.items():  # for all other pairs the error is not known
        gap[i, j], error[i, j] = found.value, found.error
    apart, first = ~np.eye(k, dtype=bool), int(gap.sum(1).argmax())
    upper = [min((gap[i] + reach[i] * error[i])[apart[i]]) for i in range(k)]
    best = [i for i in range(k) if upper[i] > 0] or [first]
    lower = gap - reach * error  # against j, with the reach of j
    low = [min([lower[i, j] for j in best if j != i], default=0.0) for i in range(k)]
    needed = [
        (reach[j] * error[first, j] / (margin + gap[first, j])) ** 2 for j in best if j != first
    ]
    needed = np.ceil(candidates[first].patients * max(needed, default=np.nan))
    return {
        "difference": [min(gap[i, apart[i]]) for i in range(k)],
        "best_low": [min(0.0, value) for value in low],
        "best_high": [max(0.0, value) for value in upper],
        "among_best": [i in best for i in range(k)],
        "share_best": _share_best([effect(own) for own in terms]),
        "no_worse": [value > -margin for value in low],
        "patients_needed": [float(needed)] * k,
    }


def _negative(found: Effect) -> Effect:
    return found._replace(value=-found.value, draws=-found.draws, redraws=-found.redraws)


def _reach(found: Sequence[Effect]) -> float:
    """The reach of one arm's simultaneous one-sided bounds, in standard errors.

    ``found`` are the differences of the other arms from this arm. The t distribution has the fewest
    degrees of freedom among them.
    """
    if not found:
        return 1.0
    reach = differences.simultaneous_reach(found, one_sided=True)
    return float(stats.t.ppf(stats.norm.cdf(reach), min(one.df for one in found)))


def _share_best(found: Sequence[Effect]) -> list[float]:
    """In which share of the draws each has the highest value."""
    rng = np.random.default_rng(0)
    drawn = np.stack([one.value + differences.deviations(one, rng) for one in found])
    return (np.bincount(drawn.argmax(0), minlength=len(found)) / drawn.shape[1]).tolist()
