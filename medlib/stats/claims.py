"""The paper's claims, written down before any result was seen, and the verdict on each.

A part of a claim is a contrast, and what the claim expects of it: a weighted sum of the AUROC of
backbones, taken in each regime and task, averaged over tasks. From predictions it gets an effect
with its 95 % interval over patients and two p-values, for and against the claim. A claim is

- **supported** when all its parts are: the effect lies on the claimed side of zero, or within the
  margin where the claim is that nothing differs (two one-sided tests);
- **contradicted** when one part is: the effect is shown to be smaller than the margin on the
  claimed side, and the claim is not supported; or, where the claim is that nothing differs, the
  effect is shown to be larger than the margin;
- **inconclusive** when the intervals show neither;
- **not tested** when an arm is missing. Only the weights that a claim names count: random
  initialisation and other sizes never replace them.

Both kinds of p-values are corrected by Holm's method for the number of claims.

A claim is judged on the paper's tasks. A task that was not run gives its place to its stand-in, and
the row's note names the stand-in.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.data.cards import MRI, PUBLIC, STAND_INS, of_paper
from medlib.stats import differences

CNNS = ("vgg16-imagenet", "resnet50-imagenet", "densenet121-imagenet")
DINOV2 = {"S": "dinov2_small", "B": "dinov2_base", "L": "dinov2_large"}
BOTH = {"frozen": 0.5, "finetuned": 0.5}  # the mean of the two regimes
APART = {"frozen": 1, "finetuned": -1}
SUPERVISED = {"S": "vit_small-imagenet", "B": "vit_base-imagenet"}  # as large as DINOv2's


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
    """What is claimed, of which tasks; a difference in AUROC below ``margin`` counts as none."""

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


def by_place(arms: Iterable[differences.Arm]) -> dict[str, dict[float, dict]]:
    """The AUROC arms of linear heads: task -> label fraction -> (backbone, regime) -> arm."""
    places: dict = {}
    for arm in arms:
        cell = arm.cell
        if cell["head"] == "linear" and arm.metric == "auroc":
            here = places.setdefault(cell["task"], {}).setdefault(cell["label_fraction"], {})
            here[cell["backbone"], cell["regime"]] = arm
    return places


def contrast(
    places: dict[str, dict[float, dict]],
    backbones: Mapping[str, float],
    regimes: Mapping[str, float],
    tasks: Iterable[str],
) -> tuple[float, np.ndarray, list[str]]:
    """The mean over tasks of weighted sums of arms: its value, its draws, and what is missing.

    ``places`` comes from :func:`by_place`. All arms of a task are taken at one label fraction, the
    largest at which none is missing: frozen and fine-tuned backbones have seen the same labels.
    """
    weights = {(b, r): x * y for b, x in backbones.items() for r, y in regimes.items()}
    factors, missing, values, draws = list(weights.values()), [], [], []
    for task in tasks:
        fractions = sorted(places.get(task, {1.0: {}}).items(), reverse=True)
        here = min((arms for _, arms in fractions), key=lambda arms: len(weights.keys() - arms))
        if absent := [place for place in weights if place not in here]:
            missing += [f"{task}: {backbone}, {regime}" for backbone, regime in absent]
        else:
            chosen = [here[place] for place in weights]
            values.append(np.dot(factors, [arm.value for arm in chosen]))
            draws.append(np.tensordot(factors, [arm.draws for arm in chosen], 1))
    if missing:
        return float("nan"), np.array([]), missing
    return float(np.mean(values)), np.mean(draws, axis=0), []


def verdicts(arms: Iterable[differences.Arm], claims: Iterable[Claim] = CLAIMS) -> pd.DataFrame:
    """The claims table: a row for each part of a claim.

    Columns: claim, words, part, expected, tasks, regimes, metric, margin, the columns of
    :func:`differences.evidence`, p_for and p_against (not yet corrected), the verdict on the whole
    claim, the missing arms, and a note that names the stand-ins among the tasks. Of ``arms`` only
    the AUROC of linear heads is used.
    """
    places, judged = by_place(arms), []
    for claim in claims:
        tasks = of_paper(places, claim.tasks)
        stand_ins = ", ".join(task for task in tasks if task in STAND_INS.values())
        for part in claim.parts:
            value, draws, missing = contrast(places, part.backbones, part.regimes, tasks)
            row = {"claim": claim.name, "words": claim.words, "part": part.words}
            row |= {"expected": part.expected, "tasks": " ".join(tasks)}
            row |= {"regimes": " ".join(part.regimes), "metric": "auroc", "margin": claim.margin}
            row |= differences.evidence(value, draws, claim.margin)
            row |= _sides(part.expected, draws, claim.margin) | {"missing": "; ".join(missing)}
            row |= {"note": f"on stand-ins: {stand_ins}" if stand_ins else ""}
            judged.append(row)
    table = pd.DataFrame(judged)
    of_claim = table.groupby("claim", sort=False)
    # A claim needs all its parts: the largest p-value counts. One part can contradict it.
    p_for = of_claim["p_for"].max().where(of_claim["p_for"].count() == of_claim.size())
    p_against = (of_claim["p_against"].min() * of_claim.size()).clip(upper=1)
    tested = of_claim["missing"].agg(lambda missing: not any(missing)).astype(bool)
    supported = pd.Series(differences.holm(p_for), p_for.index) < 0.05
    contradicted = pd.Series(differences.holm(p_against.where(tested)), p_for.index) < 0.05
    cases = {"not tested": ~tested, "supported": supported, "contradicted": contradicted}
    verdict = np.select(list(cases.values()), list(cases), "inconclusive")
    verdict = table["claim"].map(pd.Series(verdict, p_for.index))
    table.insert(list(table).index("missing"), "verdict", verdict)
    return table


def with_stand_ins(arms: Iterable[differences.Arm]) -> pd.DataFrame:
    """The claims table, and under it the claims judged again on stand-ins.

    In the second part a stand-in that was run takes the place of the paper's task, even if that was
    run too. P-values are corrected within each part. Claims that change no task are left out.
    """
    arms = list(arms)
    table, present = verdicts(arms), by_place(arms)
    replaced = [task for task, other in STAND_INS.items() if other in present]
    again = verdicts([arm for arm in arms if arm.cell["task"] not in replaced])
    return pd.concat([table, again[again["note"] != table["note"]]], ignore_index=True)


def _sides(expected: str, draws: np.ndarray, margin: float) -> dict[str, float]:
    """P-values for and against what a claim expects of a contrast.

    For a direction they are two-sided, so that they agree with the 95 % interval; for equivalence
    ``p_for`` is from two one-sided tests at 5 %.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return {"p_for": float("nan"), "p_against": float("nan")}
    below = {t: differences.share(draws <= t) for t in (-margin, 0, margin)}
    above = {t: differences.share(draws >= t) for t in (-margin, 0, margin)}
    alike = max(below[-margin], above[margin]), 2 * min(below[margin], above[-margin])
    p_for, p_against = {
        "above 0": (2 * below[0], 2 * above[margin]),
        "below 0": (2 * above[0], 2 * below[-margin]),
        "above -margin": (2 * below[-margin], 2 * above[-margin]),
        "within the margin": alike,
    }[expected]
    return {"p_for": min(p_for, 1.0), "p_against": min(p_against, 1.0)}


def confounds(arms: Iterable[differences.Arm]) -> pd.DataFrame:
    """What the difference between DINOv2 and CNNs consists of, by task, regime and size.

    ``part`` is "total", DINOv2 minus the mean of the CNNs. It is the sum of "pretraining", DINOv2
    minus the supervised ViT of its size, and "architecture", this ViT minus the CNNs, both
    pretrained on ImageNet with labels. "architecture, random weights" is the same for untrained
    networks, with one CNN. The last rows are means over the tasks. DINOv2 L has no supervised ViT
    of its size. ``missing`` names the arms without which a part is not tested. The tasks are those
    of :func:`verdicts`.
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
                    value, draws, missing = contrast(places, weights, {regime: 1}, of)
                    effect = differences.evidence(value, draws)
                    row = {"task": task, "regime": regime, "size": size, "part": part}
                    row |= {name: effect[name] for name in ("difference", "ci_low", "ci_high")}
                    effects.append(row | {"missing": "; ".join(missing)})
    return pd.DataFrame(effects)
