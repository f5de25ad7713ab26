"""medlib.stats.claims: verdicts on arms of known truth, in all five outcomes."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_arms import arm, varying

from medlib.core import backbones
from medlib.data import cards
from medlib.stats import claims

CONTROLS = ("vit_small-imagenet", "vit_base-imagenet", "vit_small-random", "resnet50-random")
EVERY = (*claims.DINOV2.values(), *claims.CNNS, *CONTROLS)
TASKS = claims.MRI + claims.PUBLIC
NAMES = ["C1", "C2", "C3", "C4"]
ALL = {"frozen": 1.0, "finetuned": 1.0}


def arms(
    value, sd=0.004, training=0.002, backbones=EVERY, fractions=ALL, seed=0, tasks=TASKS, **given
):
    """Arms with AUROC `value(task, backbone, regime)`, and errors of patients and training."""
    rng, made = np.random.default_rng(seed), []
    for task in tasks:
        for name in backbones:
            for regime, fraction in fractions.items():
                cell = {"task": task, "regime": regime, "label_fraction": fraction}
                cell |= {"pretraining": name.partition("-")[2] or "dinov2"} | given
                if regime == "frozen" and fraction == 1 and cell["pretraining"] != "random":
                    cell |= {"seeds": (0,)}
                made.append(varying(name, value(task, name, regime), sd, training, rng, **cell))
    return made


def as_claimed(task, backbone, regime):
    """The AUROC that agrees with the claims of the paper."""
    if backbone not in claims.DINOV2.values():
        return 0.85
    if task in claims.MRI:
        return 0.80
    return 0.93 if regime == "frozen" else 0.88


def reversed_(task, backbone, regime):
    """DINOv2 is better on MRI and worse elsewhere, and larger sizes are much better."""
    if backbone not in claims.DINOV2.values():
        return 0.80
    size = {"dinov2_small": -0.06, "dinov2_base": 0.0, "dinov2_large": 0.06}[backbone]
    return size + (0.88 if task in claims.MRI else 0.70 if regime == "frozen" else 0.75)


def differing(on_mri, frozen, tuned):
    """AUROC if DINOv2 is better by these values: on MRI, else when frozen, when fine-tuned."""

    def value(task, backbone, regime):
        if backbone not in claims.DINOV2.values():
            return 0.85
        more = frozen if regime == "frozen" else tuned
        return 0.85 + (on_mri if task in claims.MRI else more)

    return value


def verdict(table):
    return table.groupby("claim")["verdict"].agg(lambda verdicts: " ".join(set(verdicts))).to_dict()


# ----------------------------------------------------------------------------------------- verdicts


def test_what_the_paper_claims_is_supported_where_it_is_so():
    table = claims.verdicts(arms(as_claimed))
    assert verdict(table) == dict.fromkeys(NAMES, "supported")
    effects = table.set_index(["claim", "part"])["difference"]
    assert effects["C1", "DINOv2 (S, B, L) minus CNNs"] == pytest.approx(-0.05)
    assert effects["C2", "DINOv2 (S, B, L) minus CNNs"] == pytest.approx((0.08 + 0.03) / 2)
    assert effects["C2", "the same, frozen minus fine-tuned"] == pytest.approx(0.05)
    assert effects["C3", "DINOv2 S minus B"] == pytest.approx(0)
    assert (table["missing"] == "").all() and table["ci_low"].lt(table["ci_high"]).all()
    assert (table["procedure_low"] < table["ci_low"]).all()  # the error of training adds to it
    assert (table["procedure_high"] > table["ci_high"]).all()
    assert set(table["training"]) == {"redraws and seeds"} and set(table["n_seeds"]) == {3}


def test_the_error_of_a_part_is_that_of_its_weighted_arms():
    # C1 has 3 + 3 backbones, 2 regimes and 3 tasks: 36 independent arms with a weight of 1 / 18.
    made = arms(as_claimed, sd=0.012, training=0.009, seeds=range(100))
    row = claims.verdicts(made).iloc[0]
    assert row["error"] == pytest.approx(0.015 * 6 / 18, rel=0.1)
    assert row["training_share"] == pytest.approx(0.36, abs=0.1)


def test_it_is_contradicted_where_the_opposite_is_so():
    table = claims.verdicts(arms(reversed_))
    assert verdict(table) == dict.fromkeys(NAMES, "contradicted")


def test_where_nothing_differs_a_direction_is_not_shown_and_equivalence_is():
    verdicts = verdict(claims.verdicts(arms(lambda *_: 0.85, sd=0.002, training=0.001)))
    assert verdicts["C1"] == verdicts["C2"] == "inconclusive"
    assert verdicts["C3"] == verdicts["C4"] == "supported"


def test_it_is_inconclusive_where_the_intervals_are_wide():
    for errors in ({"sd": 0.2}, {"training": 0.2}):  # whichever of the two errors is the large one
        table = claims.verdicts(arms(lambda *_: 0.85, **errors))
        assert verdict(table) == dict.fromkeys(NAMES, "inconclusive")


def test_the_error_of_training_alone_can_leave_a_claim_open():
    wide = claims.verdicts(arms(as_claimed, training=0.15)).set_index("claim")
    assert wide.loc["C1", "verdict"] == "inconclusive"
    assert wide.loc["C1", "ci_high"] < 0 < wide.loc["C1", "procedure_high"]


SMALL = "right direction, smaller than the margin"


def test_a_true_direction_of_half_a_hundredth_is_right_and_small_and_not_contradicted():
    value = differing(on_mri=-0.005, frozen=0.0075, tuned=0.0025)
    verdicts = verdict(claims.verdicts(arms(value, sd=0.001, training=0.0005)))
    assert verdicts["C1"] == verdicts["C2"] == SMALL == claims.SMALL
    assert verdicts["C3"] == verdicts["C4"] == "supported"
    # The wrong direction is contradicted, however small it is.
    value = differing(on_mri=0.005, frozen=-0.0075, tuned=-0.0025)
    verdicts = verdict(claims.verdicts(arms(value, sd=0.001, training=0.0005)))
    assert verdicts["C1"] == verdicts["C2"] == "contradicted"
    # A difference of exactly the margin is not shown to be smaller, however small the error is.
    value = differing(on_mri=-0.02, frozen=0.03, tuned=0.01)
    verdicts = verdict(claims.verdicts(arms(value, sd=0.001, training=0.0005)))
    assert verdicts["C1"] == verdicts["C2"] == "supported"


def test_one_small_part_makes_a_claim_small():
    value = differing(on_mri=-0.05, frozen=0.0525, tuned=0.0475)  # the gap's difference is 0.005
    table = claims.verdicts(arms(value, sd=0.001, training=0.0005))
    assert verdict(table) == {"C1": "supported", "C2": SMALL} | dict.fromkeys(
        NAMES[2:], "supported"
    )


def test_one_part_of_a_claim_is_not_the_claim():
    equal_in_both, less_when_frozen = (
        claims.verdicts(arms(differing(-0.05, frozen, 0.08), sd=0.002, training=0.001))
        for frozen in (0.08, 0.05)
    )
    assert verdict(equal_in_both)["C2"] == "inconclusive"
    assert verdict(less_when_frozen)["C2"] == "contradicted"
    stronger, most_when_frozen = equal_in_both.set_index("claim").loc["C2", "p_value"]
    assert stronger < 0.001 and most_when_frozen > 0.5


def a_minus_b(expected, regime="frozen"):
    """A claim about the difference of two arms."""
    part = claims.Part("a minus b", {"a": 1, "b": -1}, expected, {regime: 1})
    return claims.Claim("C", "words", ("t",), (part,))


def two(value, error, expected):
    """The row of a claim about two arms: their difference is ``value``, with this ``error``."""
    quantiles = scipy.stats.norm.ppf((np.arange(1, 100)) / 100)
    quantiles *= error / np.std(quantiles, ddof=1)
    still, redraws = {0: np.zeros(99)}, {0: np.tile([-1e-9, 1e-9], 500)}
    pair = [
        arm("a", value, {0: value + quantiles}, redraws, task="t"),
        arm("b", 0.0, still, redraws, task="t"),
    ]
    return claims.verdicts(pair, [a_minus_b(expected)]).iloc[0]


# Estimates and their verdicts, for an error of 0.005 and a margin of 0.02. A direction is shown if
# the estimate is 1.959964 errors away from zero, a bound if it is 1.644854 errors away from it.
CASES = {
    "above 0": [
        (-0.01, "contradicted"),
        (-0.0099, "contradicted"),
        (-0.0097, "inconclusive"),
        (0.0097, "inconclusive"),
        (0.0099, SMALL),
        (0.0101, SMALL),
        (0.0103, "supported"),
    ],
    "within the margin": [
        (-0.0299, "contradicted"),
        (-0.0297, "inconclusive"),
        (-0.0119, "inconclusive"),
        (-0.0117, "supported"),
        (0.0117, "supported"),
        (0.0119, "inconclusive"),
        (0.0299, "contradicted"),
    ],
    "above -margin": [
        (-0.0299, "contradicted"),
        (-0.0297, "inconclusive"),
        (-0.0119, "inconclusive"),
        (-0.0117, "supported"),
        (0.5, "supported"),
    ],
}


@pytest.mark.parametrize(
    ("expected", "value", "of_claim"),
    [(expected, *case) for expected, cases in CASES.items() for case in cases],
)
def test_a_part_is_judged_where_the_estimate_is_worked_out_by_hand(expected, value, of_claim):
    assert two(value, 0.005, expected)["verdict"] == of_claim
    if expected == "above 0":
        assert two(-value, 0.005, "below 0")["verdict"] == of_claim


def test_a_direction_that_is_observed_is_never_contradicted():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
        value, error = 10 ** rng.uniform(-4, -0.5), 10 ** rng.uniform(-4, -0.5)
        seen.add(two(value, error, "above 0")["verdict"])
        seen.add(two(-value, error, "below 0")["verdict"])
    assert seen == {"supported", SMALL, "inconclusive"}


@pytest.mark.parametrize("among", ["all four claims", "the two"])
def test_where_the_sizes_are_alike_the_small_one_is_adequate(among):
    rng, together = np.random.default_rng(0), []
    some = [claim._replace(tasks=("t",)) for claim in claims.CLAIMS]
    some = some if among == "all four claims" else some[2:]
    for _ in range(120):
        centre, spread = 10 ** rng.uniform(-3, -1.5, 2)
        values = dict(zip(claims.DINOV2.values(), spread * rng.normal(size=3), strict=True))
        values |= dict.fromkeys(claims.CNNS, centre * rng.normal())
        made = []
        for name, value in values.items():
            error = 10 ** rng.uniform(-3.5, -2)
            seeds = value + error * rng.normal(size=rng.integers(3, 6))
            redraws = {0: value + error * rng.normal(size=20)}
            drawn = {0: value + error * rng.normal(size=30)}
            made.append(arm(name, value, drawn, redraws, task="t"))
            draws = {s: drawn[0] for s in range(len(seeds))}
            tuned = dict(enumerate(seeds))
            made.append(arm(name, tuned, draws, task="t", regime="finetuned"))
        verdicts = verdict(claims.verdicts(made, some))
        together.append((verdicts["C3"], verdicts["C4"]))
    alike = [c4 for c3, c4 in together if c3 == "supported"]
    assert set(alike) == {"supported"} and len(alike) > 25
    assert len(set(together)) >= 4, "the other outcomes occur as well"


# ------------------------------------------------------------------------------------- not tested


@pytest.mark.parametrize("lacking", ["dinov2_small", "dinov2_large", "vgg16-imagenet"])
def test_it_is_not_tested_without_every_weight_that_it_speaks_of(lacking):
    table = claims.verdicts(arms(as_claimed, backbones=[b for b in EVERY if b != lacking]))
    verdicts = verdict(table)
    assert verdicts["C1"] == verdicts["C2"] == "not tested"
    others = "not tested" if lacking in claims.DINOV2.values() else "supported"
    assert verdicts["C3"] == others
    missing = table[table["claim"] == "C1"]["missing"].iloc[0].split("; ")
    assert missing == [
        f"{task}: {lacking}, {regime}" for task in claims.MRI for regime in claims.BOTH
    ]
    untested = table[table["missing"] != ""]
    empty = ["difference", "ci_low", "procedure_low", "p_value", "p_equivalence", "power"]
    assert untested[empty].isna().all(axis=None)


@pytest.mark.parametrize("regime", claims.BOTH)
def test_arms_that_were_trained_once_are_not_tested(regime):
    once = [
        one._replace(redraws={})
        if regime == "frozen"
        else one._replace(values={0: one.value}, draws={0: one.draws[0]})
        for one in arms(as_claimed)
        if one.cell["regime"] == regime
    ]
    others = [one for one in arms(as_claimed) if one.cell["regime"] != regime]
    table = claims.verdicts(once + others)
    assert set(table["verdict"]) == {"not tested"}
    assert set(table["missing"]) == {"more than one training of each arm"}
    tests = ["p_value", "p_equivalence", "error", "power", "procedure_low"]
    assert table[tests].isna().all(axis=None)
    # The observed difference is stated all the same, with its interval over patients.
    assert table["difference"].iloc[0] == pytest.approx(-0.05)
    assert table[["ci_low", "ci_high"]].notna().all(axis=None)


def test_one_arm_that_was_trained_once_leaves_its_claims_untested():
    made = arms(as_claimed)
    place = [one.cell["backbone"] == "vgg16-imagenet" for one in made].index(True)
    made[place] = made[place]._replace(redraws={})  # the frozen arm on the first MRI task
    expected = {"C1": "not tested"} | dict.fromkeys(NAMES[1:], "supported")
    assert verdict(claims.verdicts(made)) == expected


def test_random_weights_never_stand_in_for_pretrained_ones():
    names = [f"{b.partition('-')[0]}-random" for b in EVERY if "random" not in b]
    table = claims.verdicts(arms(lambda *_: 0.9, backbones=names))
    assert set(table["verdict"]) == {"not tested"}
    assert f"{claims.MRI[0]}: dinov2_small, frozen" in table["missing"].iloc[0]
    assert set(claims.verdicts([])["verdict"]) == {"not tested"}


def test_a_regime_that_was_not_run_is_named():
    table = claims.verdicts(arms(as_claimed, fractions={"frozen": 1.0}))
    assert set(table["verdict"]) == {"not tested"}
    assert "finetuned" in table["missing"].iloc[0] and "frozen" not in table["missing"].iloc[0]


def later(one):
    """The same arm with other seeds."""
    values, draws = ({s + 5: v for s, v in part.items()} for part in (one.values, one.draws))
    return one._replace(values=values, draws=draws)


@pytest.mark.parametrize("weighting", ["equal", "precision"])
def test_seeds_that_arms_do_not_share_are_named(weighting):
    made = [
        later(one)
        if (one.cell["backbone"], one.cell["regime"]) == ("dinov2_small", "finetuned")
        else one
        for one in arms(as_claimed)
    ]
    table = claims.verdicts(made, weighting=weighting)
    assert set(table["verdict"]) == {"not tested"}
    assert "seed" in table["missing"].iloc[0]


def test_frozen_and_fine_tuned_networks_are_compared_on_the_same_labels():
    few = arms(as_claimed, fractions={"frozen": 0.1, "finetuned": 0.1})
    many = arms(lambda *_: 0.99, fractions={"frozen": 1.0}, seed=1)
    table = claims.verdicts(few + many)
    assert set(table["verdict"]) == {"supported"}
    assert table["difference"].iloc[0] == pytest.approx(-0.05)
    assert set(table["training"]) == {"seeds"}  # each seed draws the labelled patients of all arms


def test_other_heads_and_other_metrics_are_left_out():
    real = arms(as_claimed)
    knn = [a._replace(cell=a.cell | {"head": "knn"}, values={0: 0.5}) for a in real]
    brier = [a._replace(metric="brier", values={0: 0.1}) for a in real]
    expected = claims.verdicts(real)
    pd.testing.assert_frame_equal(claims.verdicts(real + knn + brier), expected)


def test_four_claims_are_corrected_for_their_number():
    # An effect of 2.2 errors has a two-sided p of about 0.03. It is significant alone, but not as
    # the smallest of four.
    value = differing(on_mri=-0.03, frozen=0, tuned=0)
    sd = 0.03 / 2.2 * 3  # of an arm; a third for the contrast (6 backbones, 2 regimes, 3 tasks)
    made = arms(value, sd=sd, training=0.001, seed=4)
    table = claims.verdicts(made).set_index("claim")
    p = table.loc["C1", "p_value"]
    assert 0.0125 < p < 0.05 and table.loc["C1", "procedure_high"] < 0
    assert (table["p_value"].drop("C1") > 0.05).all()
    assert table.loc["C1", "verdict"] == "inconclusive"
    alone = claims.verdicts(made, claims.CLAIMS[:1])
    assert alone["verdict"].tolist() == ["supported"]


# ------------------------------------------------------------------------------- power and weights


@pytest.mark.parametrize("expected", ["above 0", "below 0", "above -margin", "within the margin"])
@pytest.mark.parametrize("error", [0.004, 0.006, 0.01, 0.03])
def test_power_is_how_often_a_part_is_shown_in_simulations(expected, error):
    truth = {"above 0": 0.02, "below 0": -0.02}.get(expected, 0.0)
    estimates = np.random.default_rng(0).normal(truth, error, 200_000)
    # In the simulation a part is shown if its interval, at the level 0.05 / 4, shows it.
    one, both = (error * scipy.stats.norm.isf(level) for level in (0.0125, 0.00625))
    shown = {
        "above 0": estimates > both,
        "below 0": estimates < -both,
        "above -margin": estimates > -0.02 + one,
        "within the margin": np.abs(estimates) < 0.02 - one,
    }[expected]
    draws = {0: np.array([-1, 1]) * error / np.sqrt(2)}
    pair = [
        arm("a", 0.0, draws, {0: np.tile([-1e-9, 1e-9], 500)}, task="t"),
        arm("b", 0.0, redraws={0: np.zeros(1000)}, task="t"),
    ]
    four = [a_minus_b(expected)._replace(name=name) for name in NAMES]
    table = claims.verdicts(pair, four)
    assert table["error"].tolist() == pytest.approx([error] * 4, rel=1e-6)
    assert table["power"].tolist() == pytest.approx([shown.mean()] * 4, abs=0.005)
    wider = claims.verdicts(pair, [one._replace(margin=0.05) for one in four])["power"]
    assert (wider > table["power"]).all() or wider[0] < 1e-9 or table["power"][0] > 1 - 1e-9


def test_verdicts_have_the_power_that_they_say():
    rng = np.random.default_rng(0)
    for expected, truth in (("above 0", 0.02), ("within the margin", 0.0)):
        rows = [two(truth + 0.007 * rng.normal(), 0.007, expected) for _ in range(250)]
        shown = [row["verdict"] in ("supported", SMALL) for row in rows]
        share = scipy.stats.binomtest(sum(shown), 250).proportion_ci(0.999)
        assert share.low < rows[0]["power"] < share.high and 0.5 < rows[0]["power"] < 0.9


def test_power_is_right_with_three_seeds_too():
    pair = [
        arm("a", {0: 0.80, 1: 0.81, 2: 0.83}, task="t", regime="finetuned"),
        arm("b", {0: 0.80, 1: 0.80, 2: 0.80}, task="t", regime="finetuned"),
    ]
    claim = a_minus_b("above 0", "finetuned")._replace(margin=0.03)
    (row,) = claims.verdicts(pair, [claim]).to_dict("records")
    spread = np.std([0.80, 0.81, 0.83], ddof=1)
    seeds = np.random.default_rng(0).normal(0.03, spread, (3, 4000))
    tests = scipy.stats.ttest_1samp(seeds, 0)
    shown = (tests.pvalue < 0.05) & (tests.statistic > 0)
    assert row["power"] == pytest.approx(shown.mean(), abs=0.03)


def of_tasks(values_and_errors, metric="auroc"):
    """A frozen arm on each task; its draws have exactly the given standard error."""
    return [
        arm(
            "a",
            value,
            {0: value + np.array([-1, 1]) * error / np.sqrt(2)},
            {0: np.full(50, value)},
            metric,
            task=task,
        )
        for task, (value, error) in values_and_errors.items()
    ]


def test_tasks_are_weighted_equally_or_by_their_precision():
    # Errors of 0.01 and 0.03: the first task counts nine times as much.
    made = of_tasks({"one": (0.10, 0.01), "two": (0.20, 0.03)})
    part = claims.Part("a", {"a": 1}, "above 0", {"frozen": 1})
    claim = claims.Claim("C", "words", ("one", "two"), (part,))
    equal, precise = (
        claims.verdicts(made, [claim], weighting=weighting).iloc[0]
        for weighting in ("equal", "precision")
    )
    assert equal["weighting"] == "equal" and precise["weighting"] == "precision"
    assert equal["difference"] == pytest.approx(0.15)
    assert precise["difference"] == pytest.approx(0.9 * 0.10 + 0.1 * 0.20)
    # The two tasks share their draws here, so their errors add up.
    assert equal["error"] == pytest.approx((0.01 + 0.03) / 2)
    assert precise["error"] == pytest.approx(0.9 * 0.01 + 0.1 * 0.03)
    places = claims.by_place(made)
    found, missing = claims.contrast(places, {"a": 1}, {"frozen": 1}, ("one", "two"), "precision")
    assert found.value == pytest.approx(0.11) and missing == []
    found, missing = claims.contrast(places, {"a": 1}, {"frozen": 1}, ("one", "x"), "precision")
    assert found is None and missing == ["x: a, frozen"]


def test_equal_errors_give_equal_weights():
    made = arms(as_claimed, seed=3)
    for weighting, tolerance in (("precision", 1e-3), ("equal", 1e-12)):
        table = claims.verdicts(made, weighting=weighting)
        assert table["difference"].iloc[0] == pytest.approx(-0.05, abs=tolerance)


def test_the_sensitivity_table_judges_by_each_metric_weighting_and_margin():
    def value(task, backbone, regime):  # S, B and L are 0.015 apart
        size = {"dinov2_small": -0.015, "dinov2_large": 0.015}.get(backbone, 0)
        return as_claimed(task, backbone, regime) + size

    made = arms(value, sd=0.002, training=0.001)
    made += arms(reversed_, sd=0.002, training=0.001, metric="accuracy")
    table = claims.sensitivity(made)
    assert list(table) == ["metric", "weighting", "margin", *NAMES]
    ways = [
        (metric, weighting, margin)
        for metric in ("auroc", "accuracy", "f1_weighted")
        for weighting in ("equal", "precision")
        for margin in (0.01, 0.02, 0.05)
    ]
    assert list(table.iloc[:, :3].itertuples(index=False, name=None)) == ways
    # The effects in C1 and C2 are 0.05 or more. S and L differ by 0.03: the margin decides.
    by_margin = {
        0.01: ["supported", "supported", "contradicted", "contradicted"],
        0.02: ["supported", "supported", "contradicted", "contradicted"],
        0.05: ["supported", "supported", "supported", "supported"],
    }
    for _, row in table.iterrows():
        if row["metric"] == "auroc":
            assert row[NAMES].tolist() == by_margin[row["margin"]], row.tolist()
        elif row["metric"] == "accuracy":
            assert set(row[NAMES]) == {"contradicted"}
        else:
            assert set(row[NAMES]) == {"not tested"}
    few = claims.sensitivity(made, margins=(0.035,))
    assert len(few) == 6 and few[NAMES].iloc[0].tolist() == ["supported"] * 4


def test_a_verdict_can_depend_on_the_weights_of_the_tasks():
    def value(task, backbone, regime):
        worse = {claims.MRI[0]: -0.05, claims.MRI[1]: -0.05}.get(task, 0.2)  # better on flair
        return 0.85 + (worse if backbone in claims.DINOV2.values() else 0)

    flair = claims.MRI[2]
    precise = [a for a in arms(value, sd=0.001, training=0.001) if a.cell["task"] != flair]
    coarse = [a for a in arms(value, sd=0.25, seed=1) if a.cell["task"] == flair]
    table = claims.sensitivity(precise + coarse, margins=(0.02,)).query("metric == 'auroc'")
    assert table.set_index("weighting")["C1"].to_dict() == {
        "equal": "inconclusive",
        "precision": "supported",
    }


# ------------------------------------------------------------------------------------- stand-ins

GLIOMA = ["glioma_t1", "glioma_t1ce", "glioma_flair"]


def weaker_by(**losses):
    """Arms have an AUROC of 0.85. DINOv2 loses the given amount on the given tasks."""
    return lambda task, backbone, _: (
        0.85 - losses.get(task, 0) * (backbone in claims.DINOV2.values())
    )


def effects(table):
    """The tasks and the difference of the first part of each claim, by claim and note."""
    first = table.drop_duplicates(["claim", "note"]).set_index(["claim", "note"])
    return first[["tasks", "difference"]].apply(tuple, axis=1).to_dict()


def test_a_claim_is_judged_on_stand_ins_where_the_papers_tasks_were_not_run():
    tasks = [*GLIOMA, "chest_xray", "fundus_pm", "dermoscopy"]
    made = arms(weaker_by(glioma_t1=0.03, glioma_flair=0.06), tasks=tasks)
    table = claims.verdicts(made)
    assert effects(table)["C1", "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair"] == (
        "glioma_t1 glioma_t1ce glioma_flair",
        pytest.approx(-(0.03 + 0 + 0.06) / 3),
    )
    assert effects(table)["C2", "on stand-ins: fundus_pm"] == (
        "chest_xray fundus_pm dermoscopy",
        pytest.approx(0),
    )
    both = "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair, fundus_pm"
    assert set(table["note"][table["claim"].isin(["C3", "C4"])]) == {both}
    assert verdict(table)["C1"] == "supported" and (table["missing"] == "").all()
    pd.testing.assert_frame_equal(claims.with_stand_ins(made), table)
    parts = claims.confounds(made)
    assert list(parts["task"].unique()) == [*tasks, "all"]


def test_a_stand_in_is_never_mixed_with_the_papers_tasks():
    value = weaker_by(glioma_ucsf_t1=0.03, glioma_t1=0.3, glioma_t1ce=0.3, fundus_pm=0.3)
    own, every = arms(value), arms(value, tasks=[*TASKS, *GLIOMA, "fundus_pm"])
    table = claims.verdicts(every)
    assert set(table["note"]) == {""} and table["tasks"].iloc[0] == " ".join(claims.MRI)
    assert table["difference"].iloc[0] == pytest.approx(-0.03 / 3)
    expected = claims.verdicts(own)
    columns = ["claim", "part", "tasks", "difference", "verdict", "missing", "note"]
    pd.testing.assert_frame_equal(table[columns], expected[columns])
    assert "glioma_t1" not in set(claims.confounds(every)["task"])


def test_where_both_were_run_the_stand_ins_get_rows_of_their_own():
    value = weaker_by(glioma_ucsf_t1=0.03, glioma_t1=0.3)
    table = claims.with_stand_ins(arms(value, tasks=[*TASKS, *GLIOMA, "fundus_pm"]))
    own, added = table[table["note"] == ""], table[table["note"] != ""]
    assert own.index.tolist() == list(range(len(own))) and len(added) == len(own)
    assert own["claim"].tolist() == added["claim"].tolist()
    assert effects(table)["C1", ""][1] == pytest.approx(-0.03 / 3)
    note = "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair"
    assert effects(table)["C1", note] == (" ".join(GLIOMA), pytest.approx(-0.3 / 3))
    assert (table["missing"] == "").all()


def test_a_claim_whose_tasks_no_stand_in_changes_gets_no_second_row():
    table = claims.with_stand_ins(arms(as_claimed, tasks=[*TASKS, "fundus_pm"]))
    added = table[table["note"] != ""]
    assert set(added["note"]) == {"on stand-ins: fundus_pm"}
    assert list(added["claim"].unique()) == ["C2", "C3", "C4"]
    assert added["tasks"].iloc[0] == "chest_xray fundus_pm dermoscopy"


def test_only_the_stand_ins_that_are_used_are_named():
    table = claims.verdicts(arms(as_claimed, tasks=["glioma_ucsf_t1", "glioma_t1", "glioma_t1ce"]))
    first = table.iloc[0]
    assert first["tasks"] == "glioma_ucsf_t1 glioma_t1ce glioma_ucsf_flair"
    assert first["note"] == "on stand-ins: glioma_t1ce" and first["verdict"] == "not tested"
    assert first["missing"].startswith("glioma_ucsf_flair: dinov2_small, frozen; ")


def test_another_task_is_not_judged():
    made = arms(as_claimed, tasks=[*TASKS, "glioma_who2021_t1", "knees"])
    table = claims.with_stand_ins(made)
    assert len(table) == len(claims.verdicts(made)) and set(table["note"]) == {""}


# --------------------------------------------------------------------------------------- the claims


def test_claims_speak_of_tasks_and_backbones_that_there_are():
    for claim in claims.CLAIMS:
        assert set(claim.tasks) <= set(cards.tasks())
        for part in claim.parts:
            for name in part.backbones:
                assert backbones.get(name).pretraining != "random"
            assert sum(part.backbones.values()) == pytest.approx(0)
    assert [claim.name for claim in claims.CLAIMS] == NAMES
    for name in claims.SUPERVISED.values():
        assert backbones.get(name).pretraining == "imagenet"


# ---------------------------------------------------------------------------------------- confounds


def test_the_difference_is_the_sum_of_pretraining_and_architecture():
    values = {"dinov2_small": 0.9, "vit_small-imagenet": 0.84, "vit_small-random": 0.6}
    values |= {"dinov2_base": 0.92, "vit_base-imagenet": 0.85, "resnet50-random": 0.7}
    table = claims.confounds(arms(lambda task, backbone, regime: values.get(backbone, 0.80)))
    effects = table.query("task == 'dermoscopy' and regime == 'frozen' and size == 'S'")
    effects = effects.set_index("part")["difference"]
    assert effects["total"] == pytest.approx(0.10)
    assert effects["pretraining"] == pytest.approx(0.06)
    assert effects["architecture"] == pytest.approx(0.04)
    assert effects["architecture, random weights"] == pytest.approx(-0.10)
    whole = table.pivot_table(index=["task", "regime", "size"], columns="part", values="difference")
    np.testing.assert_allclose(whole["pretraining"] + whole["architecture"], whole["total"])
    mean = table.query("task == 'all' and part == 'total' and size == 'B'")
    assert len(mean) == 2 and mean["difference"].tolist() == pytest.approx([0.12, 0.12])
    wide = table.query("task == 'dermoscopy' and part == 'total'")
    assert (mean["ci_high"] - mean["ci_low"]).max() < (wide["ci_high"] - wide["ci_low"]).min()
    tested = table[table["missing"] == ""]
    assert (tested["procedure_high"] > tested["ci_high"]).all() and tested["p_value"].notna().all()


def test_a_part_without_its_control_is_not_tested_and_the_others_are():
    table = claims.confounds(arms(as_claimed, backbones=[b for b in EVERY if "vit_" not in b]))
    tested = table[table["missing"] == ""]
    assert set(tested["part"]) == {"total"} and tested["difference"].notna().all()
    lacking = table[(table["part"] == "pretraining") & (table["task"] == "chest_xray")]
    assert lacking["missing"].str.contains("chest_xray: vit_").all()
    assert lacking["difference"].isna().all()
