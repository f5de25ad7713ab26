"""medlib.stats.effects: weighted sums of arms, with errors worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_arms import arm
from made_runs import CLASSES, predictions, runs_below, save
from scored import frame_by_sklearn

from medlib.stats import bootstrap, effects, runs


def of_one(**given):
    return effects.effect([(1, arm(**given))])


def minus(one, other):
    return effects.effect([(1, one), (-1, other)])


# ------------------------------------------------------------------------------------------ sources


def test_a_frozen_arm_varies_with_its_test_patients_and_with_redraws_of_the_others():
    found = of_one(draws={0: [0.7, 0.8, 0.9]}, redraws={0: [0.76, 0.80, 0.84]})
    assert found.value == 0.8 and found.n_seeds == 1 and found.source == "redraws"
    assert found.patients == pytest.approx(0.1)  # the variance is (0.1² + 0.1²) / 2
    assert found.training == pytest.approx(0.04)  # the variance is (0.04² + 0.04²) / 2
    assert found.error == pytest.approx(np.sqrt(0.0116))
    assert found.df == pytest.approx(0.0116**2 / (0.0016**2 / 2))
    np.testing.assert_allclose(found.redraws, [0.76, 0.80, 0.84])
    reach = scipy.stats.t(found.df).interval(0.95)[1]
    assert found.reach() == pytest.approx(reach) and reach > 1.96
    assert found.reach(0.9) == pytest.approx(scipy.stats.t(found.df).interval(0.9)[1])


def test_a_trained_arm_varies_with_its_test_patients_and_with_its_seeds():
    values, draws = {3: 0.80, 7: 0.86}, {3: [0.79, 0.81], 7: [0.85, 0.87]}
    found = of_one(values=values, draws=draws, regime="finetuned")
    assert found.value == pytest.approx(0.83) and found.n_seeds == 2 and found.source == "seeds"
    np.testing.assert_allclose(found.draws, [0.82, 0.84])  # the mean over seeds, draw by draw
    assert found.patients == pytest.approx(np.sqrt(0.0002))
    # The two seeds have a variance of 0.06² / 2. The variance of their mean is half of that.
    assert found.training == pytest.approx(np.sqrt(0.0009)) and len(found.redraws) == 0
    assert found.df == pytest.approx(0.0011**2 / 0.0009**2)


def test_the_variances_of_redraws_and_of_seeds_add_up():
    tuned = {0: 0.80, 1: 0.86, 4: 0.83}
    draws = {0: [0.80, 0.84], 1: [0.86, 0.90], 4: [0.83, 0.84]}
    one = arm(values=tuned, draws=draws, regime="finetuned")
    other = arm(values=0.78, draws={0: [0.76, 0.80]}, redraws={0: [0.76, 0.80]})
    found = minus(one, other)
    assert found.value == pytest.approx(0.05) and found.source == "redraws and seeds"
    np.testing.assert_allclose(found.draws, [0.83 - 0.76, 0.86 - 0.80])  # paired by draw
    assert found.patients == pytest.approx(np.sqrt(0.01**2 / 2))
    redraws, seeds = 0.04**2 / 2, 0.0009 / 3
    assert found.training == pytest.approx(np.sqrt(redraws + seeds)) and found.n_seeds == 3
    everything = 0.00005 + redraws + seeds
    assert found.df == pytest.approx(everything**2 / (redraws**2 / 1 + seeds**2 / 2))


def test_two_frozen_arms_are_paired_by_redraw():
    one = arm(values=0.8, redraws={0: [0.7, 0.8, 0.9]})
    found = minus(one, arm(values=0.75, redraws={0: [0.65, 0.75, 0.85]}))
    assert found.value == pytest.approx(0.05) and found.training == pytest.approx(0, abs=1e-12)
    found = minus(one, arm(values=0.75, redraws={0: [0.85, 0.75, 0.65]}))
    assert found.training == pytest.approx(0.2)  # the differences are -0.15, 0.05 and 0.25


def test_two_trained_arms_are_paired_by_seed():
    one = arm(values={0: 0.70, 1: 0.80, 2: 0.90}, regime="finetuned")
    other = arm(values={2: 0.87, 1: 0.78, 0: 0.66}, regime="finetuned")
    found = minus(one, other)  # the differences are 0.04, 0.02 and 0.03
    assert found.value == pytest.approx(0.03) and found.training == pytest.approx(0.01 / np.sqrt(3))
    assert found.df == pytest.approx(2)


def test_a_random_control_varies_with_redraws_and_with_the_seeds_that_draw_its_weights():
    given = {"values": {0: 0.60, 1: 0.64}, "redraws": {0: [0.5, 0.6], 1: [0.6, 0.6]}}
    found = of_one(pretraining="random", **given)
    assert found.training == pytest.approx(np.sqrt(0.05**2 / 2 + 0.04**2 / 2 / 2))
    assert found.source == "redraws and seeds" and found.n_seeds == 2


def test_frozen_arms_on_few_labels_are_redrawn_seed_by_seed():
    redraws = {0: [0.6, 0.7], 1: [0.8, 0.8]}
    found = of_one(values={0: 0.65, 1: 0.75}, redraws=redraws, label_fraction=0.1)
    assert found.value == pytest.approx(0.7) and found.source == "redraws"
    np.testing.assert_allclose(found.redraws, [0.7, 0.75])
    assert found.training == pytest.approx(np.sqrt(0.05**2 / 2)) and found.n_seeds == 2


def test_of_arms_with_more_redraws_and_less_the_first_that_both_have_are_paired():
    one = arm(values=0.8, redraws={0: [0.7, 0.8, 0.9, 0.1, 0.2]})
    found = minus(one, arm(values=0.75, redraws={0: [0.85, 0.75, 0.65]}))
    np.testing.assert_allclose(found.redraws, [-0.15, 0.05, 0.25])
    assert found.training == pytest.approx(0.2) and found.df == pytest.approx(2)


def test_undefined_draws_and_redraws_are_left_out():
    nan = float("nan")
    found = of_one(draws={0: [0.7, nan, 0.9]}, redraws={0: [0.76, nan, 0.80, 0.84]})
    assert found.patients == pytest.approx(np.sqrt(0.02)) and found.training == pytest.approx(0.04)
    assert found.df == pytest.approx(0.0216**2 / (0.0016**2 / 2))  # three redraws are defined


def test_a_seed_also_draws_the_mlp_on_frozen_embeddings():
    found = of_one(values={0: 0.8, 1: 0.9}, draws={0: [0.7, 0.9], 1: [0.9, 0.9]}, head="mlp")
    assert found.value == pytest.approx(0.85) and found.n_seeds == 2
    np.testing.assert_allclose(found.draws, [0.8, 0.9])


# -------------------------------------------------------------------------------------------- seeds

TUNED = {"values": {0: 0.7, 1: 0.8, 2: 0.9}, "draws": {0: [0, 1], 1: [0.7, 0.8], 2: [0.8, 1.0]}}


def test_only_the_seeds_that_all_arms_have_are_compared():
    draws = {1: [0.6, 0.6], 2: [0.66, 0.68], 3: [0, 1]}
    few = {"label_fraction": 0.1}
    frozen = arm(values={1: 0.6, 2: 0.66, 3: 0.9}, draws=draws, redraws={1: [0, 1]}, **few)
    found = minus(arm(regime="finetuned", **TUNED, **few), frozen)
    assert found.n_seeds == 2 and found.value == pytest.approx(0.22)  # 0.20 and 0.24
    np.testing.assert_allclose(found.draws, [(0.1 + 0.14) / 2, (0.2 + 0.32) / 2])


def test_without_a_common_seed_there_is_no_effect():
    few = {"label_fraction": 0.1}
    assert minus(arm(values={0: 0.7, 1: 0.7}, **few), arm(values={2: 0.7}, **few)) is None
    tuned = arm(values={0: 0.7, 1: 0.7}, regime="finetuned", task="skin")
    assert minus(tuned, arm(values={2: 0.7, 3: 0.7}, regime="finetuned")) is None
    assert minus(tuned, arm(values={5: 0.7}, pretraining="random")) is None


def test_the_one_run_of_a_frozen_backbone_on_all_labels_counts_for_every_seed():
    frozen = arm(values={5: 0.6}, draws={5: [0.6, 0.7]}, redraws={5: [0.58, 0.62]})
    found = minus(arm(regime="finetuned", **TUNED), frozen)
    assert found.n_seeds == 3 and found.value == pytest.approx(0.8 - 0.6)
    np.testing.assert_allclose(found.draws, [0.5 - 0.6, 2.8 / 3 - 0.7])
    assert found.training == pytest.approx(np.sqrt(0.0008 + 0.01 / 3))
    random = {"pretraining": "random", "redraws": {2: [0.5, 0.6], 5: [0.5, 0.6]}}
    found = minus(arm(regime="finetuned", **TUNED), arm(values={2: 0.5, 5: 0.6}, **random))
    assert found.n_seeds == 1 and found.value == pytest.approx(0.9 - 0.5)


def test_on_few_labels_seeds_draw_the_patients_so_their_variance_alone_is_taken():
    few = {"label_fraction": 0.1}
    frozen = {0: 0.6, 1: 0.7, 2: 0.62}
    again = {seed: [0.0, 0.5, 1.0] for seed in range(3)}
    for redraws in ({}, again):  # redraws make no difference here
        found = minus(
            arm(regime="finetuned", **TUNED, **few), arm(values=frozen, redraws=redraws, **few)
        )
        of_seeds = np.var([0.1, 0.1, 0.28], ddof=1) / 3  # in a seed both have the same patients
        assert found.training == pytest.approx(np.sqrt(of_seeds))
        assert found.source == "seeds" and len(found.redraws) == 0
        total = found.patients**2 + of_seeds
        assert found.df == pytest.approx(total**2 / (of_seeds**2 / 2))


UNKNOWN = {
    "a trained arm with one seed": {"regime": "finetuned"},
    "a frozen arm without redraws": {},
    "one redraw": {"redraws": {0: [0.8]}},
    "a random control with one seed": {"pretraining": "random", "redraws": {0: [0.7, 0.8]}},
    "redraws of some seeds only": {
        "values": {0: 0.8, 1: 0.8},
        "redraws": {0: [0.7, 0.8]},
        "label_fraction": 0.1,
    },
}


@pytest.mark.parametrize("given", UNKNOWN.values(), ids=UNKNOWN)
def test_how_training_varies_is_unknown_after_a_single_training(given):
    draws = {seed: [0.7, 0.9] for seed in given.get("values", {0: 0.8})}
    found = of_one(draws=draws, **given)
    assert found.value == pytest.approx(0.8) and found.patients == pytest.approx(np.sqrt(0.02))
    assert np.isnan([found.training, found.error]).all() and found.source == ""


def test_one_arm_of_unknown_error_makes_that_of_the_sum_unknown():
    known = arm(redraws={0: [0.7, 0.8]})
    assert np.isfinite(minus(known, known).error)
    assert np.isnan(minus(known, arm()).error)
    assert np.isnan(minus(known, arm(regime="finetuned")).error)


# ------------------------------------------------------------------------------------ several tasks


def test_tasks_are_paired_by_draw_redraw_and_seed():
    rising, falling = {0: [0.7, 0.9]}, {0: [0.9, 0.7]}
    same, opposite = (
        effects.effect([(0.5, arm(draws=rising, redraws=rising)), (0.5, other)])
        for other in (
            arm(task="skin", draws=rising, redraws=rising),
            arm(task="skin", draws=falling, redraws=falling),
        )
    )
    # The same people have the same errors in both tasks, so the mean has the same error.
    assert same.patients == same.training == pytest.approx(np.sqrt(0.02))
    assert opposite.patients == opposite.training == pytest.approx(0, abs=1e-12)
    one = arm(values={0: 0.7, 1: 0.8, 2: 0.9}, regime="finetuned")
    two = arm(values={1: 0.6, 2: 0.4, 3: 0.1}, regime="finetuned", task="skin")
    found = effects.effect([(0.5, one), (0.5, two)])  # seed 1: 0.70, seed 2: 0.65
    assert found.n_seeds == 2 and found.value == pytest.approx(0.675)
    assert found.training == pytest.approx(np.sqrt(0.05**2 / 2 / 2))


def test_a_task_on_few_labels_beside_one_on_all_keeps_redraws_and_seeds():
    tuned, frozen = {0: 0.80, 1: 0.90}, {0: [0.6, 0.7]}
    few = {"task": "skin", "label_fraction": 0.1}
    terms = [
        (0.5, arm(values=tuned, regime="finetuned")),
        (-0.5, arm(values=0.65, redraws=frozen)),
        (0.5, arm(values={0: 0.70, 1: 0.66}, regime="finetuned", **few)),
        (-0.5, arm(values={0: 0.6, 1: 0.7}, redraws={0: [0.4, 0.6], 1: [0.6, 0.8]}, **few)),
    ]
    found = effects.effect(terms)
    assert found.value == pytest.approx((0.85 - 0.65 + 0.68 - 0.65) / 2)
    np.testing.assert_allclose(found.redraws, [-0.5 * (0.6 + 0.5), -0.5 * (0.7 + 0.7)])
    seeds = np.var([0.5 * (0.8 + 0.7), 0.5 * (0.9 + 0.66)], ddof=1) / 2
    assert found.training == pytest.approx(np.sqrt(0.15**2 / 2 + seeds))
    assert found.source == "redraws and seeds"


# ------------------------------------------------------------------------------------ known truth


def test_intervals_of_few_seeds_and_redraws_hold_the_truth_as_often_as_they_say():
    rng, truth, held = np.random.default_rng(0), 0.05, []
    sources = {"patients": 0.01, "redraws": 0.01, "seeds": 0.02}  # standard deviations
    quantiles = scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400)
    for _ in range(2000):
        shift = truth + sources["patients"] * rng.normal()
        values = dict(enumerate(shift + sources["seeds"] * rng.normal(size=3)))
        draws = {s: v + sources["patients"] * quantiles for s, v in values.items()}
        redraws = {0: sources["redraws"] * rng.normal(size=20)}
        value = sources["redraws"] * rng.normal()
        frozen = arm(values=value, draws={0: np.zeros(400)}, redraws=redraws)
        found = minus(arm(values=values, draws=draws, regime="finetuned"), frozen)
        held.append(abs(found.value - truth) <= found.reach() * found.error)
    share = scipy.stats.binomtest(sum(held), 2000).proportion_ci(0.99)
    assert share.low < 0.96 and share.high > 0.94, np.mean(held)


# ---------------------------------------------------------------------------------------- from runs


@pytest.mark.parametrize(
    ("cell", "seeded", "fixed"),
    [
        ({}, False, True),
        ({"label_fraction": 0.5}, False, False),
        ({"pretraining": "random"}, True, False),
        ({"regime": "finetuned"}, True, False),
        ({"regime": "lora", "label_fraction": 0.5}, True, False),
    ],
)
def test_only_a_frozen_pretrained_backbone_on_all_labels_is_the_same_for_every_seed(
    cell, seeded, fixed
):
    one = arm(**cell)
    assert (one.seeded, one.fixed) == (seeded, fixed)


@pytest.mark.parametrize("task", CLASSES)
def test_the_arms_of_a_cell_hold_values_draws_and_redraws_of_each_seed(tmp_path, task):
    again = {s: pd.DataFrame({"auroc": [0.7 + s / 10, 0.8], "brier": [0.2, 0.1]}) for s in (2, 5)}
    frames = {seed: predictions(task, seed) for seed in again}
    for seed, frame in frames.items():
        save(tmp_path, frame, task, seed=seed, label_fraction=0.5, redraws=again[seed])
    (cell,) = runs.runs_by_cell(runs_below(tmp_path))
    arms, samples = effects.of_runs(cell, ["auroc", "accuracy"], resamples=40)
    auroc, accuracy = arms
    assert (auroc.metric, accuracy.metric) == ("auroc", "accuracy") and samples
    assert auroc.cell["task"] == task and auroc.cell["label_fraction"] == 0.5
    for seed, frame in frames.items():
        expected = frame_by_sklearn(frame, CLASSES[task])
        drawn = bootstrap.bootstrap(frame, CLASSES[task], 40)
        for one in arms:
            assert one.values[seed] == pytest.approx(expected[one.metric], abs=1e-12)
            np.testing.assert_allclose(one.draws[seed], drawn[one.metric], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(auroc.redraws[seed], again[seed]["auroc"])
    assert auroc.value == pytest.approx(np.mean([auroc.values[2], auroc.values[5]]))
    assert accuracy.redraws == {}  # the tables of redraws lack it
    assert [part.empty for part in auroc.validated] == [True, True]  # these runs have none
    every = [one.metric for one in effects.of_runs(cell, None, 0)[0]]
    assert {"auroc", "brier", "kappa"} <= set(every) and "kappa_quadratic" not in every
    ordered = [one.metric for one in effects.of_runs(cell, None, 0, ordered=True)[0]]
    assert ("kappa_quadratic" in ordered) == (len(CLASSES[task]) > 2)
