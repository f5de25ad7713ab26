"""The paper's claims, written down before any result is looked at, and the verdict on each.

A claim is one or more parts. A part is a contrast: a weighted sum of the AUROC of backbones, taken
in each regime and task, averaged over tasks; and what the claim says of it. From the predictions of
a grid it gets an effect with its 95 % interval over patients and two p-values: for the claim, and
against it. A claim is

- **supported** when all its parts are: the effect is on the claimed side of zero, or within the
  margin where the claim is that nothing differs (two one-sided tests);
- **contradicted** when a part is: the effect does not reach the margin on the claimed side (and is
  not, however small, supported), or lies beyond it where the claim is that nothing differs;
- **inconclusive** when the intervals allow neither;
- **not tested** when an arm is missing. Only the weights that a claim speaks of count: random
  initialisation and other sizes never stand in.

Both kinds of p-values are corrected by Holm's method for the number of claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from medlib.data.cards import MRI, PUBLIC
from medlib.stats import differences

CNNS = ("vgg16-imagenet", "resnet50-imagenet", "densenet121-imagenet")
DINOV2 = {"S": "dinov2_small", "B": "dinov2_base", "L": "dinov2_large"}
BOTH = {"frozen": 0.5, "finetuned": 0.5}  # regimes: their mean
SUPERVISED = {"S": "vit_small-imagenet", "B": "vit_base-imagenet"}  # twins of DINOv2 by size

VERDICTS = ("supported", "contradicted", "inconclusive", "not tested")


def mean_of(backbones: Iterable[str], weight: float = 1.0) -> dict[str, float]:
    """Weights that make the mean of backbones, times ``weight``."""
    backbones = list(backbones)
    return dict.fromkeys(backbones, weight / len(backbones))


DINOV2_MINUS_CNNS = mean_of(DINOV2.values()) | mean_of(CNNS, -1)


@dataclass(frozen=True)
class Part:
    """A contrast, and what is claimed of it.

    ``backbones`` and ``regimes`` map names to weights, which are multiplied. ``expected`` is
    "below 0", "above 0", "within the margin" or "above -margin".
    """

    words: str
    backbones: Mapping[str, float]
    expected: str
    regimes: Mapping[str, float] = field(default_factory=lambda: BOTH)


@dataclass(frozen=True)
class Claim:
    """What is claimed, of which tasks, and which difference in AUROC counts as one."""

    name: str
    words: str
    tasks: tuple[str, ...]
    parts: tuple[Part, ...]
    margin: float = differences.MARGIN


CLAIMS = (
    Claim(
        "C1", "On clinical MRI, DINOv2 is weaker than the ImageNet-pretrained networks.", MRI,
        (Part("DINOv2 (S, B, L) minus CNNs", DINOV2_MINUS_CNNS, "below 0"),),
    ),
    Claim(
        "C2", "On public photographs and radiographs, DINOv2 is stronger, most of all when frozen.",
        PUBLIC,
        (
            Part("DINOv2 (S, B, L) minus CNNs", DINOV2_MINUS_CNNS, "above 0"),
            Part("the same, frozen minus fine-tuned", DINOV2_MINUS_CNNS, "above 0",
                 {"frozen": 1, "finetuned": -1}),
        ),
    ),
    Claim(
        "C3", "DINOv2's sizes perform alike.", MRI + PUBLIC,
        tuple(
            Part(f"DINOv2 {a} minus {b}", {DINOV2[a]: 1, DINOV2[b]: -1}, "within the margin")
            for a, b in combinations(DINOV2, 2)
        ),
    ),
    Claim(
        "C4", "The small DINOv2 is adequate: no worse than the larger ones.", MRI + PUBLIC,
        tuple(
            Part(f"DINOv2 S minus {b}", {DINOV2["S"]: 1, DINOV2[b]: -1}, "above -margin")
            for b in ("B", "L")
        ),
    ),
)  # fmt: skip


def by_place(arms: Iterable[differences.Arm]) -> dict[str, dict[float, dict]]:
    """The AUROCs of linear heads: task -> label fraction -> (backbone, regime) -> arm."""
    places: dict = {}
    for arm in arms:
        cell = arm.cell
        if cell["head"] == "linear" and arm.metric == "auroc":
            there = places.setdefault(cell["task"], {}).setdefault(cell["label_fraction"], {})
            there[cell["backbone"], cell["regime"]] = arm
    return places


def contrast(
    places: dict[str, dict[float, dict]],
    backbones: Mapping[str, float],
    regimes: Mapping[str, float],
    tasks: Iterable[str],
) -> tuple[float, np.ndarray, list[str]]:
    """The mean over tasks of weighted sums of arms: its value, its draws, and what is missing.

    ``places`` as :func:`by_place` has them. All arms of a task are taken at one share of the
    labels, the largest at which they are all there, so that frozen and fine-tuned networks have
    learnt from the same patients.
    """
    weights = {(b, r): x * y for b, x in backbones.items() for r, y in regimes.items()}
    missing, values, draws = [], [], []
    for task in tasks:
        shares = sorted(places.get(task, {1.0: {}}).items(), reverse=True)
        found = min((there for _, there in shares), key=lambda there: len(weights.keys() - there))
        absent = [place for place in weights if place not in found]
        missing += [f"{task}: {backbone}, {regime}" for backbone, regime in absent]
        if not absent:
            chosen = [found[place] for place in weights]
            values.append(np.dot(list(weights.values()), [arm.value for arm in chosen]))
            draws.append(np.tensordot(list(weights.values()), [arm.draws for arm in chosen], 1))
    if missing:
        return float("nan"), np.array([]), missing
    return float(np.mean(values)), np.mean(draws, axis=0), []


def verdicts(arms: Iterable[differences.Arm], claims: Iterable[Claim] = CLAIMS) -> pd.DataFrame:
    """The claims table, a row a part of a claim.

    Columns: claim, words, part, expected, tasks, regimes, metric, margin, the columns of
    :func:`medlib.compare.evidence`, p_for and p_against (not yet corrected), the verdict on the
    whole claim, and which arms are missing. ``arms`` are AUROCs; others than linear heads are left
    out.
    """
    places, rows = by_place(arms), []
    for claim in claims:
        for part in claim.parts:
            value, draws, missing = contrast(places, part.backbones, part.regimes, claim.tasks)
            rows.append({
                "claim": claim.name, "words": claim.words, "part": part.words,
                "expected": part.expected, "tasks": " ".join(claim.tasks),
                "regimes": " ".join(part.regimes), "metric": "auroc", "margin": claim.margin,
                **differences.evidence(value, draws, claim.margin),
                **_sides(part.expected, draws, claim.margin), "missing": "; ".join(missing),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    of_claim = table.groupby("claim", sort=False)
    # All parts have to hold, so that the weakest counts; against, one of them is enough.
    p_for = of_claim["p_for"].max().where(of_claim["p_for"].count() == of_claim.size())
    p_against = (of_claim["p_against"].min() * of_claim.size()).clip(upper=1)
    tested = of_claim["missing"].agg(lambda found: not any(found)).astype(bool)
    supported = pd.Series(differences.holm(p_for), p_for.index) < 0.05
    contradicted = pd.Series(differences.holm(p_against.where(tested)), p_for.index) < 0.05
    verdict = pd.Series(
        np.select([~tested, supported, contradicted], [VERDICTS[3], *VERDICTS[:2]], VERDICTS[2]),
        p_for.index,
    )
    table.insert(list(table).index("missing"), "verdict", table["claim"].map(verdict))
    return table


def _sides(expected: str, draws: np.ndarray, margin: float) -> dict[str, float]:
    """P-values for and against what a claim expects of a contrast.

    Those of a direction are two-sided, so that they agree with the 95 % interval; that of
    equivalence is of two one-sided tests at 5 %.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return {"p_for": float("nan"), "p_against": float("nan")}
    upto = {t: differences.share(draws <= t) for t in (-margin, 0, margin)}
    from_on = {t: differences.share(draws >= t) for t in (-margin, 0, margin)}
    p_for, p_against = {
        "above 0": (2 * upto[0], 2 * from_on[margin]),
        "below 0": (2 * from_on[0], 2 * upto[-margin]),
        "above -margin": (2 * upto[-margin], 2 * from_on[-margin]),
        "within the margin": (
            max(upto[-margin], from_on[margin]),
            2 * min(upto[margin], from_on[-margin]),
        ),
    }[expected]
    return {"p_for": min(p_for, 1.0), "p_against": min(p_against, 1.0)}


def confounds(arms: Iterable[differences.Arm], tasks: Iterable[str] = MRI + PUBLIC) -> pd.DataFrame:
    """What a difference between DINOv2 and CNNs is made of, by task, regime and size.

    ``part`` is "total", DINOv2 minus the CNNs' mean, which is the sum of "pretraining", DINOv2
    minus the supervised ViT of its size, and "architecture", that ViT minus the CNNs, both
    pretrained on ImageNet with labels; and "architecture, random weights": the same of networks
    that have learnt nothing, of which there is one CNN. The last rows are means over the tasks.
    DINOv2 L has no supervised twin. ``missing`` names the arms without which a part is not tested.
    """
    places, rows, tasks = by_place(arms), [], list(tasks)
    for regime in BOTH:
        for size, supervised in SUPERVISED.items():
            parts = {
                "total": {DINOV2[size]: 1} | mean_of(CNNS, -1),
                "pretraining": {DINOV2[size]: 1, supervised: -1},
                "architecture": {supervised: 1} | mean_of(CNNS, -1),
                "architecture, random weights": {
                    supervised.replace("imagenet", "random"): 1, "resnet50-random": -1,
                },
            }  # fmt: skip
            for task in [*tasks, "all"]:
                for part, weights in parts.items():
                    of = tasks if task == "all" else [task]
                    value, draws, missing = contrast(places, weights, {regime: 1}, of)
                    found = differences.evidence(value, draws)
                    rows.append({
                        "task": task, "regime": regime, "size": size, "part": part,
                        **{n: found[n] for n in ("difference", "ci_low", "ci_high")},
                        "missing": "; ".join(missing),
                    })  # fmt: skip
    return pd.DataFrame(rows)
