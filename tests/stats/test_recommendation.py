"""The recommendation: the set of the best contains the best arm, and no worse arm is picked."""

import made_arms
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medlib.stats import recommendation, runs

PATIENTS = pd.DataFrame({"patient_id": [f"p{i}" for i in range(200)]})


def costs(arms, seconds=None):
    table = pd.DataFrame([arm.cell for arm in arms])[runs.CELL]
    seconds = seconds or [10.0 * (k + 1) for k in range(len(arms))]
    return table.assign(seconds=seconds, parameters=1000, memory=2.0)


def recommend(arms, spent):
    return recommendation.recommend(arms, spent)


def drawn_arms(truths, rng, error=0.01, share=0.5, resamples=1000):
    """Arms whose estimates, draws and redraws scatter around known truths.

    ``error`` is the standard error of each of the two sources. The ``share`` of its variance is
    common to all arms, so they are paired.
    """
    k, arms = len(truths), []
    common, own = np.sqrt(share) * error, np.sqrt(1 - share) * error

    def noise(n):
        return common * rng.normal(size=n) + own * rng.normal(size=(k, n))

    estimates = np.array(truths) + noise(1)[:, 0] + noise(1)[:, 0]
    draws, redraws = noise(resamples), noise(100)
    for i, value in enumerate(estimates):
        arms.append(
            made_arms.arm(
                f"net{i}", value, {0: value + draws[i]}, {0: value + redraws[i]}, frames=[PATIENTS]
            )
        )
    return arms


def test_two_arms_are_told_apart_as_a_one_sided_test_does():
    """With two arms, the interval is that of their difference, with the quantile 1.645."""
    rng = np.random.default_rng(0)
    one, other = drawn_arms([0.9, 0.86], rng, resamples=20000)
    found = recommend([one, other], costs([one, other]))
    found = found.set_index("backbone")
    gap = one.value - other.value
    draws = one.draws[0] - other.draws[0]
    redraws = one.redraws[0] - other.redraws[0]
    error = np.hypot(np.std(draws, ddof=1), np.std(redraws, ddof=1))
    df = error**4 / (np.var(redraws, ddof=1) ** 2 / 99)
    reach = stats.t.ppf(0.95, df)
    assert found["difference"].to_dict() == pytest.approx({"net0": gap, "net1": -gap})
    assert found.loc["net1", "best_low"] == pytest.approx(-gap - reach * error, abs=0.002)
    assert found.loc["net1", "best_high"] == pytest.approx(max(0, -gap + reach * error), abs=0.002)
    assert found.loc["net0", "best_low"] == 0  # net0 is the only arm among the best
    assert found["among_best"].to_dict() == {"net0": True, "net1": False}
    assert found["recommended"].to_dict() == {"net0": True, "net1": False}


def test_the_cheapest_of_those_that_are_shown_to_be_no_worse_is_recommended():
    rng = np.random.default_rng(1)
    arms = drawn_arms([0.900, 0.901, 0.80, 0.899], rng, error=0.001)
    found = recommend(arms, costs(arms, [50, 40, 1, 30])).set_index("backbone")
    assert found["no_worse"].to_dict() == {"net0": True, "net1": True, "net2": False, "net3": True}
    assert found.index[found["recommended"]].tolist() == ["net3"]
    assert found["patients_needed"].isna().all() and (found["why"] == "").all()


def test_where_the_data_cannot_tell_nothing_is_recommended_and_the_patients_are_counted():
    rng = np.random.default_rng(2)
    arms = drawn_arms([0.80, 0.80, 0.80], rng, error=0.03)
    found = recommend(arms, costs(arms))
    assert not found["recommended"].any() and found["among_best"].all()
    (needed,) = set(found["patients_needed"])
    shrunk = np.sqrt(200 / needed)  # all errors of so many patients
    few = [arm._replace(draws={0: arm.value + (arm.draws[0] - arm.value) * shrunk}) for arm in arms]
    few = [
        arm._replace(redraws={0: arm.value + (arm.redraws[0] - arm.value) * shrunk}) for arm in few
    ]
    assert recommend(few, costs(arms))["no_worse"].iloc[0]
    more = [arm._replace(draws={0: arm.value + (arm.draws[0] - arm.value) * 1.1}) for arm in few]
    more = [
        arm._replace(redraws={0: arm.value + (arm.redraws[0] - arm.value) * 1.1}) for arm in more
    ]
    assert not recommend(more, costs(arms))["no_worse"].any()


def test_random_controls_are_never_candidates_and_arms_trained_once_are_not_judged():
    rng = np.random.default_rng(3)
    arms = drawn_arms([0.9, 0.85], rng)
    control = made_arms.arm("net9", 0.99, pretraining="random")
    once = made_arms.arm("net8", 0.97, regime="finetuned", frames=[PATIENTS])
    found = recommend([*arms, control, once], costs([*arms, once]))
    assert found["backbone"].tolist() == ["net8", "net0", "net1"]
    assert found["why"].tolist() == [recommendation.ONCE, "", ""]
    assert not found.loc[0, "among_best"] and not found.loc[0, "recommended"]
    alone = recommend(arms[:1], costs(arms[:1]))
    assert alone["why"].tolist() == ["there is no other to compare it with"]
    assert not alone["recommended"].any()


def test_a_loss_is_better_when_it_is_lower():
    rng = np.random.default_rng(4)
    arms = [arm._replace(metric="log_loss") for arm in drawn_arms([0.3, 0.5], rng)]
    found = recommend(arms, costs(arms)).set_index("backbone")
    assert found["among_best"].to_dict() == {"net0": True, "net1": False}
    assert found["difference"]["net0"] > 0 and list(found.index) == ["net0", "net1"]


def test_over_all_tasks_the_mean_is_compared_of_the_arms_that_every_task_has():
    rng = np.random.default_rng(6)
    one, two = drawn_arms([0.9, 0.8, 0.7], rng, error=0.001), drawn_arms([0.7, 0.9], rng, 0.001)
    two = [arm._replace(cell=arm.cell | {"task": "chest"}) for arm in two]
    spent = costs([*one, *two], [1, 2, 3, 40, 50])
    found = recommend([*one, *two], spent)
    assert found["task"].unique().tolist() == ["mri", "chest", recommendation.ALL_TASKS]
    over = found[found["task"] == recommendation.ALL_TASKS].set_index("backbone")
    assert over["value"].to_dict() == pytest.approx(
        {"net1": (one[1].value + two[1].value) / 2, "net0": (one[0].value + two[0].value) / 2}
    )
    assert over["seconds"].to_dict() == {"net1": 52, "net0": 41}
    assert over.index[over["recommended"]].tolist() == ["net1"]


def test_arms_are_compared_on_the_most_labels_of_their_task():
    rng = np.random.default_rng(7)
    arms = drawn_arms([0.9, 0.8, 0.95], rng)
    arms[2] = arms[2]._replace(cell=arms[2].cell | {"label_fraction": 0.5})
    found = recommend(arms, costs(arms))
    assert found["why"].to_list() == ["", "", recommendation.FEWER]
    assert found["backbone"].iloc[2] == "net2" and not found["among_best"].iloc[2]


def test_arms_without_a_common_seed_are_not_told_apart():
    rng = np.random.default_rng(8)
    arms = drawn_arms([0.9, 0.5], rng)
    for k, arm in enumerate(arms):
        moved = {name: {k: getattr(arm, name)[0]} for name in ("values", "draws", "redraws")}
        arms[k] = arm._replace(**moved, cell=arm.cell | {"label_fraction": 0.5})
    found = recommend(arms, costs(arms))
    assert not found["recommended"].any() and found["among_best"].all()


def test_several_metrics_are_refused():
    arms = [made_arms.arm("a"), made_arms.arm("b", metric="brier")]
    with pytest.raises(ValueError, match="of one metric"):
        recommend(arms, costs(arms))


@pytest.mark.parametrize(
    "truths", [(0.85,) * 5, (0.86, 0.85, 0.85, 0.84, 0.80), (0.88, 0.86, 0.859, 0.858, 0.857)]
)
def test_the_intervals_hold_at_once_and_the_rule_takes_no_arm_that_is_worse(truths):
    """In 250 studies, coverage is at least 95 % but for chance, and at most 5 % of picks are wrong.

    If all arms are equally good, every arm is a best one, and 95 % of them must be among the best.
    """
    rng, held, among, wrong, n = np.random.default_rng(5), 0, [], 0, 250
    best_other = [max(truths[:i] + truths[i + 1 :]) for i in range(len(truths))]
    gaps = np.array(truths) - best_other
    for _ in range(n):
        arms = drawn_arms(truths, rng, error=0.006, resamples=500)
        found = recommend(arms, costs(arms, [5, 4, 3, 2, 1]))
        found = found.sort_values("backbone")
        low, high = found["best_low"].to_numpy(), found["best_high"].to_numpy()
        held += bool(((low <= gaps + 1e-12) & (gaps <= high + 1e-12)).all())
        among.append(found["among_best"].mean())
        picked = np.flatnonzero(found["recommended"].to_numpy())
        wrong += bool(len(picked) and truths[picked[0]] < max(truths) - 0.02)
    if len(set(truths)) == 1:
        assert 0.93 < np.mean(among) < 0.97
    assert held / n > 0.95 - 2.6 * np.sqrt(0.95 * 0.05 / n) and wrong / n <= 0.05
