"""The paper's claims, written down before any result was seen, and the verdict on each.

A claim has one or more parts. A part is a contrast and its expected result. The contrast is a
weighted sum of AUROCs over backbones and regimes, averaged over tasks. It gets an effect with its
interval, and p-values for and against the claim. A claim is

- **supported** when all its parts are: the effect is shown to lie on the claimed side of zero, or,
  if the claim is that nothing differs, within the margin;
- **right direction, smaller than the margin** when all its parts are shown to have the claimed
  side, and one of them is shown to be smaller than the margin;
- **contradicted** when one part is: the effect is shown to lie on the other side of zero, or, if
  the claim is that nothing differs, beyond the margin;
- **inconclusive** when none of these is shown;
- **not tested** when an arm is missing, or was trained only once. An arm of random weights or of
  another size never replaces a missing arm.

These verdicts are about the procedure, not only about the trained models: the standard error is
over test patients, training patients and seeds. P-values are corrected by Holm's method for the
number of claims. C3 says that all sizes differ by less than the margin. C4 says that the small one
is not worse by more than the margin. Both are tested one-sided at the same level, so that C4 is
supported whenever C3 is.

A claim is judged on the paper's tasks. If a task was not run, its stand-in takes its place, and the
row's note names the stand-in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medlib.data.cards import MRI, PUBLIC, STAND_INS, of_paper
from medlib.stats import differences
from medlib.stats.effects import Arm, Effect, effect

PAPERS_OWN = ("accuracy", "f1_weighted")  # metrics of the paper's tables, which hold no AUROC
SMALL = "right direction, smaller than the margin"
CNNS = ("vgg16-imagenet", "resnet50-imagenet", "densenet121-imagenet")
DINOV2 = {"S": "dinov2_small", "B": "dinov2_base", "L": "dinov2_large"}
BOTH = {"frozen": 0.5, "finetuned": 0.5}  # the mean of the two regimes
APART = {"frozen": 1, "finetuned": -1}
SUPERVISED = {"S": "vit_small-imagenet", "B": "vit_base-imagenet"}  # of the same sizes as DINOv2's


def mean_of(backbones: Collection[str], weight: float = 1.0) -> dict[str, float]:
    """Weights of the mean of backbones, times ``weight``."""
    return dict.fromkeys(backbones, weight / len(backbones))


DINOV2_MINUS_CNNS = mean_of(DINOV2.values()) | mean_of(CNNS, -1)


class Part(NamedTuple):
    """A contrast, and what a claim expects of it.

    ``backbones`` and ``regimes`` map names to weights; an arm's weight is their product.
    ``expected`` is "below 0", "above 0", "within the margin" or "above -margin".
    """

    words: str
    backbones: Mapping[str, float]
    expected: str
    regimes: Mapping[str, float] = BOTH


class Claim(NamedTuple):
    """A claim about some tasks; differences in AUROC below ``margin`` do not matter."""

    name: str
    words: str
    tasks: tuple[str, ...]
    parts: tuple[Part, ...]
    margin: float = differences.MARGIN


WEAKER = Part("DINOv2 (S, B, L) minus CNNs", DINOV2_MINUS_CNNS, "below 0")
STRONGER = Part("DINOv2 (S, B, L) minus CNNs", DINOV2_MINUS_CNNS, "above 0")
MOST_WHEN_FROZEN = Part("the same, frozen minus fine-tuned", DINOV2_MINUS_CNNS, "above 0", APART)
ALIKE = tuple(
    Part(f"DINOv2 {a} minus {b}", {DINOV2[a]: 1, DINOV2[b]: -1}, "within the margin")
    for a, b in combinations(DINOV2, 2)
)
ADEQUATE = tuple(part._replace(expected="above -margin") for part in ALIKE[:2])  # S minus B and L
C1 = "On clinical MRI, DINOv2 is weaker than the ImageNet-pretrained networks."
C2 = "On public photographs and radiographs, DINOv2 is stronger, most of all when frozen."
C3 = "DINOv2's sizes perform alike."
C4 = "The small DINOv2 is adequate: no worse than the larger ones."
CLAIMS = (
    Claim("C1", C1, MRI, (WEAKER,)),
    Claim("C2", C2, PUBLIC, (STRONGER, MOST_WHEN_FROZEN)),
    Claim("C3", C3, MRI + PUBLIC, ALIKE),
    Claim("C4", C4, MRI + PUBLIC, ADEQUATE),
)


def by_place(arms: Iterable[Arm], metric: str = "auroc") -> dict[str, dict[float, dict]]:
    """The arms of linear heads: task -> label fraction -> (backbone, regime) -> arm."""
    places: dict = {}
    for arm in arms:
        cell = arm.cell
        if cell["head"] == "linear" and arm.metric == metric:
            here = places.setdefault(cell["task"], {}).setdefault(cell["label_fraction"], {})
            here[cell["backbone"], cell["regime"]] = arm
    return places


def contrast(
    places: dict[str, dict[float, dict]],
    backbones: Mapping[str, float],
    regimes: Mapping[str, float],
    tasks: Iterable[str],
    weighting: str = "equal",
) -> tuple[Effect | None, list[str]]:
    """The mean over tasks of weighted sums of arms, and what is missing.

    ``places`` comes from :func:`by_place`. All arms of a task have the same label fraction: the
    largest one at which no arm is missing. So frozen and fine-tuned backbones have seen the same
    labels. Tasks are weighted by ``weighting``: "equal", or "precision" (the inverse of their
    variance). The effect is None if something is missing.
    """
    weights = {(b, r): x * y for b, x in backbones.items() for r, y in regimes.items()}
    missing, of_tasks = [], []
    for task in tasks:
        fractions = sorted(places.get(task, {1.0: {}}).items(), reverse=True)
        here = min((arms for _, arms in fractions), key=lambda arms: len(weights.keys() - arms))
        if absent := [place for place in weights if place not in here]:
            missing += [f"{task}: {backbone}, {regime}" for backbone, regime in absent]
        else:
            of_tasks.append([(factor, here[place]) for place, factor in weights.items()])
    if missing:
        return None, missing
    shares = np.ones(len(of_tasks))
    if weighting == "precision":
        # Where a task has no common seed, the sum over tasks has none either, and is None below.
        errors = [(found and found.error) or np.nan for found in map(effect, of_tasks)]
        shares = 1 / np.array(errors) ** 2
    shares = shares / shares.sum()
    terms = [(s * w, arm) for s, of in zip(shares, of_tasks, strict=True) for w, arm in of]
    over_tasks = effect(terms)
    return over_tasks, ["a seed that all arms have"] * (over_tasks is None)


def verdicts(
    arms: Iterable[Arm],
    claims: Iterable[Claim] = CLAIMS,
    metric: str = "auroc",
    weighting: str = "equal",
) -> pd.DataFrame:
    """The claims table: a row for each part of a claim.

    Columns: claim, words, part, expected, tasks, regimes, metric, margin, weighting, the columns of
    :func:`differences.evidence`, ``power``, the verdict on the whole claim, the missing arms, and a
    note that names the stand-ins among the tasks. ``power`` is the probability that the part is
    shown at the level of Holm's first step. For a direction, the true effect is as large as the
    margin; for equivalence it is zero. Only the arms with linear heads are used.
    """
    arms, claims = list(arms), list(claims)
    places, judged = by_place(arms, metric), []
    for claim in claims:
        tasks = of_paper(places, claim.tasks)
        stand_ins = ", ".join(task for task in tasks if task in STAND_INS.values())
        for part in claim.parts:
            found, missing = contrast(places, part.backbones, part.regimes, tasks, weighting)
            row = {"claim": claim.name, "words": claim.words, "part": part.words}
            row |= {"expected": part.expected, "tasks": " ".join(tasks), "metric": metric}
            row |= {"regimes": " ".join(part.regimes), "margin": claim.margin}
            row |= {"weighting": weighting} | differences.evidence(found, claim.margin)
            row |= _sides(part.expected, found, claim.margin)
            row["power"] = _power(part.expected, found, claim.margin, len(claims))
            if found is not None and not found.error > 0:
                alone = "more than one training of each arm"
                missing = ["an error above zero" if found.error == 0 else alone]
            row |= {"missing": "; ".join(missing)}
            judged.append(row | {"note": f"on stand-ins: {stand_ins}" if stand_ins else ""})
    table = pd.DataFrame(judged)
    of_claim = table.groupby("claim", sort=False)
    # A claim needs all its parts: the largest p-value counts. One part is enough against it.
    p_for = of_claim["p_for"].max().where(of_claim["p_for"].count() == of_claim.size())
    p_against, p_small = (
        (of_claim[name].min() * of_claim.size()).clip(upper=1).where(p_for.notna())
        for name in ("p_against", "p_small")
    )
    supported, contradicted, small = (
        pd.Series(differences.holm(p), p_for.index) < differences.ALPHA
        for p in (p_for, p_against, p_small)
    )
    cases = {"not tested": p_for.isna(), SMALL: supported & small, "supported": supported}
    cases["contradicted"] = contradicted
    verdict = np.select(list(cases.values()), list(cases), "inconclusive")
    verdict = table["claim"].map(pd.Series(verdict, p_for.index))
    table.insert(list(table).index("missing"), "verdict", verdict)
    return table.drop(columns=["p_for", "p_against", "p_small"])


def with_stand_ins(arms: Iterable[Arm]) -> pd.DataFrame:
    """The claims table, and under it the claims judged again on stand-ins.

    In the second part, each stand-in that was run replaces the paper's task, even if that task was
    run too. P-values are corrected within each part. Claims whose tasks stay the same are left out
    of the second part.
    """
    arms = list(arms)
    table, present = verdicts(arms), by_place(arms)
    replaced = [task for task, other in STAND_INS.items() if other in present]
    again = verdicts([arm for arm in arms if arm.cell["task"] not in replaced])
    return pd.concat([table, again[again["note"] != table["note"]]], ignore_index=True)


def _sides(expected: str, found: Effect | None, margin: float) -> dict[str, float]:
    """P-values of a part: for the claim, against it, and for an effect below the margin.

    For a direction they are two-sided, so that they agree with the 95 % interval. For equivalence
    ``p_for`` is one-sided; if the effect is bounded on both sides, it is the larger of two.
    """
    if found is None:
        return dict.fromkeys(["p_for", "p_against", "p_small"], float("nan"))
    above, below = (partial(differences.one_sided, found, side=side) for side in ("above", "below"))
    p_for, p_against, p_small = {
        "above 0": (2 * above(0), 2 * below(0), 2 * below(margin)),
        "below 0": (2 * below(0), 2 * above(0), 2 * above(-margin)),
        "above -margin": (above(-margin), 2 * below(-margin), 1.0),
        "within the margin": (
            max(above(-margin), below(margin)),
            2 * min(below(-margin), above(margin)),
            1.0,
        ),
    }[expected]
    values = {"p_for": p_for, "p_against": p_against, "p_small": p_small}
    return {name: min(value, 1.0) for name, value in values.items()}


def _power(expected: str, found: Effect | None, margin: float, n_claims: int) -> float:
    """The probability that a part is shown if it is true: see :func:`verdicts`."""
    if found is None or not found.error > 0:
        return float("nan")
    level, of = differences.ALPHA / n_claims, stats.t(found.df)
    if expected in ("above 0", "below 0"):
        return float(stats.nct.sf(of.ppf(1 - level / 2), found.df, margin / found.error))
    one_side = stats.nct.sf(of.ppf(1 - level), found.df, margin / found.error)
    return float(max(0, 2 * one_side - 1) if expected == "within the margin" else one_side)


def sensitivity(arms: Iterable[Arm], margins: Sequence[float] = (0.01, 0.02, 0.05)) -> pd.DataFrame:
    """The verdicts under other metrics, weightings and margins: a row for each combination.

    Columns: metric (also the paper's own, accuracy and weighted F1), weighting of the tasks
    ("equal", "precision"), margin, and a column for each claim.
    """
    arms, ways = list(arms), []
    for metric in ("auroc", *PAPERS_OWN):
        for weighting in ("equal", "precision"):
            for margin in margins:
                claims = [claim._replace(margin=margin) for claim in CLAIMS]
                judged = verdicts(arms, claims, metric, weighting).groupby("claim")["verdict"]
                way = {"metric": metric, "weighting": weighting, "margin": margin}
                ways.append(way | judged.first().to_dict())
    return pd.DataFrame(ways)


def confounds(arms: Iterable[Arm]) -> pd.DataFrame:
    """The parts of the difference between DINOv2 and CNNs, by task, regime and size.

    The ``part`` "total" is DINOv2 minus the mean of the CNNs. It is the sum of two parts.
    "pretraining" is DINOv2 minus the supervised ViT of its size. "architecture" is this ViT minus
    the CNNs, both pretrained on ImageNet with labels. "architecture, random weights" is the same
    for untrained networks, with one CNN. The last rows are means over the tasks. DINOv2 L has no
    supervised ViT of its size. ``missing`` names the arms without which a part is not tested. The
    tasks are those of :func:`verdicts`.
    """
    places, effects = by_place(arms), []
    tasks = of_paper(places)
    for regime in BOTH:
        for size, supervised in SUPERVISED.items():
            untrained = supervised.replace("imagenet", "random")
            parts = {
                "total": {DINOV2[size]: 1} | mean_of(CNNS, -1),
                "pretraining": {DINOV2[size]: 1, supervised: -1},
                "architecture": {supervised: 1} | mean_of(CNNS, -1),
                "architecture, random weights": {untrained: 1, "resnet50-random": -1},
            }
            for task in [*tasks, "all"]:
                for part, weights in parts.items():
                    of = tasks if task == "all" else [task]
                    found, missing = contrast(places, weights, {regime: 1}, of)
                    row = {"task": task, "regime": regime, "size": size, "part": part}
                    row |= differences.evidence(found) | {"missing": "; ".join(missing)}
                    effects.append(row)
    return pd.DataFrame(effects)
