"""medlib.stats.differences: paired, corrected, tested for equivalence; and ranks over tasks."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_runs import BACKBONES, CLASSES, predictions, runs_below, save
from scored import frame_by_sklearn
from sklearn import metrics as sk

from medlib.stats import bootstrap, differences, prediction, runs, summaries


def binormal(shift, n_patients=200, seed=0, noise=1.0, own=None):
    """One image a patient; scores of the second class lie ``shift`` above those of the first."""
    rng = np.random.default_rng(seed)
    label = np.arange(n_patients) % 2
    score = shift * label + (rng.normal(size=n_patients) if own is None else own)
    score = 1 / (1 + np.exp(-(score + noise * rng.normal(size=n_patients))))
    frame = pd.DataFrame({"sample_id": [f"{i:04d}" for i in range(n_patients)]})
    frame["patient_id"], frame["split"] = frame["sample_id"], "test"
    frame["y_true"] = np.array(["low", "high"])[label]
    return frame.assign(prob_low=1 - score, prob_high=score)


def arm(backbone, frames, task="mri", regime="frozen", fraction=1.0, resamples=2000):
    """An arm as `differences.arms` makes it, without files."""
    values = [prediction.point(frame, CLASSES["mri"])["auroc"] for frame in frames]
    draws = [
        bootstrap.bootstrap(f, CLASSES["mri"], resamples, bootstrap.stream(f), names=["auroc"])[
            "auroc"
        ]
        for f in frames
    ]
    cell = {"task": task, "backbone": backbone, "pretraining": "imagenet", "regime": regime}
    cell |= {"head": "linear", "label_fraction": fraction}
    return differences.Arm(
        cell, "auroc", float(np.mean(values)), np.mean(draws, axis=0), frames, CLASSES["mri"]
    )


def test_arms_are_the_main_cells_with_draws_that_go_together(saved):
    results, predicted = saved
    arms = differences.arms(runs_below(results), ["auroc"], resamples=40)
    assert [(a.cell["task"], a.cell["backbone"]) for a in arms] == [
        (task, backbone) for task in CLASSES for backbone in BACKBONES
    ]
    first = arms[0]
    frames = [predicted["mri", "dinov2_small", seed] for seed in (0, 1)]
    expected = np.mean([frame_by_sklearn(f, CLASSES["mri"])["auroc"] for f in frames])
    assert first.value == pytest.approx(expected, abs=1e-12)
    seed = bootstrap.stream(frames[0])
    draws = [bootstrap.bootstrap(f, CLASSES["mri"], 40, seed)["auroc"] for f in frames]
    np.testing.assert_allclose(first.draws, np.mean(draws, axis=0), rtol=0, atol=1e-12)
    bare = differences.arms(runs_below(results), ["auroc"], resamples=0)
    assert [(a.cell, a.value) for a in bare] == [(a.cell, a.value) for a in arms]
    assert not any(len(arm.draws) for arm in bare)


def test_the_same_people_are_drawn_together_and_others_independently():
    a, b = predictions("mri", 0), predictions("mri", 1).sample(frac=1, random_state=0)
    assert bootstrap.stream(a) == bootstrap.stream(b)  # two modalities
    other = predictions("mri", 0).assign(patient_id=lambda f: "x" + f["patient_id"])
    assert bootstrap.stream(a) != bootstrap.stream(other)
    draws = [
        bootstrap.bootstrap(f, CLASSES["mri"], 3000, bootstrap.stream(f))["accuracy"]
        for f in (a, other)
    ]
    # With the same stream, the draws would be identical.
    assert abs(np.corrcoef(draws)[0, 1]) < 0.1


def test_a_paired_difference_is_that_of_scipy_on_the_same_patients():
    own = np.random.default_rng(9).normal(size=200)
    one, other = (binormal(1.5, seed=1, noise=0.6, own=own), binormal(1.5, seed=2, own=own))
    tests = differences.difference(arm("a", [one]), arm("b", [other]))
    y = (one["y_true"] == "high").to_numpy()

    def statistic(rows):
        rows = rows.astype(int)
        scores = (f["prob_high"].to_numpy()[rows] for f in (one, other))
        areas = [sk.roc_auc_score(y[rows], score) for score in scores]
        return areas[0] - areas[1]

    how = {"n_resamples": 1000, "method": "percentile", "vectorized": False}
    rng = np.random.default_rng(0)
    expected = scipy.stats.bootstrap((np.arange(200),), statistic, **how, rng=rng)
    assert tests["difference"] == pytest.approx(statistic(np.arange(200)), abs=1e-12)
    error = 0.3 * expected.standard_error  # Monte-Carlo error, about 4 x sqrt(0.06^2 + 0.04^2)
    assert tests["ci_low"] == pytest.approx(expected.confidence_interval.low, abs=error)
    assert tests["ci_high"] == pytest.approx(expected.confidence_interval.high, abs=error)
    se = expected.standard_error
    assert tests["detectable"] == pytest.approx((1.959964 + 0.841621) * se, rel=0.08)
    # Unpaired, the interval would be wider.
    apart = np.hypot(*(arm(n, [f]).draws.std() for n, f in (("a", one), ("b", other))))
    assert tests["ci_high"] - tests["ci_low"] < 0.8 * 2 * 1.96 * apart


def test_the_paired_delong_test_agrees_with_the_bootstrap_and_knows_the_mean_over_seeds():
    own = np.random.default_rng(3).normal(size=300)
    ours = [binormal(1.6, 300, seed=s, noise=0.5, own=own) for s in (1, 2)]
    theirs = [binormal(1.2, 300, seed=s, noise=0.9, own=own) for s in (3, 4, 5)]
    one, other = arm("a", ours), arm("b", theirs)
    tests = differences.difference(one, other)
    z = scipy.stats.norm.isf(tests["p_delong"] / 2)
    se = (one.draws - other.draws).std()
    assert z == pytest.approx(abs(tests["difference"]) / se, rel=0.1)
    same = differences.difference(one, one)
    assert same["difference"] == 0 and same["p_delong"] == 1 and same["p_value"] == 1
    assert same["p_equivalence"] == pytest.approx(1 / 2001)


def test_p_values_and_equivalence_go_with_their_intervals():
    rng = np.random.default_rng(0)
    for centre in (0.0, 0.004, 0.012, 0.019, 0.03, -0.012):
        draws = rng.normal(centre, 0.006, 4999)
        tests = differences.evidence(centre, draws, margin=0.02)
        low, high = np.quantile(draws, [0.05, 0.95])
        assert (tests["p_equivalence"] < 0.05) == (low > -0.02 and high < 0.02), centre
        assert (tests["p_value"] < 0.05) == (tests["ci_low"] > 0 or tests["ci_high"] < 0), centre
    # z = 2: a two-sided p of 0.0455
    two_errors = differences.evidence(0.012, rng.normal(0.012, 0.006, 4999))
    assert two_errors["p_value"] == pytest.approx(0.0455, abs=0.02)
    nothing = differences.evidence(float("nan"), np.array([]))
    assert np.isnan(list(nothing.values())).all()


def test_holm_is_worked_out_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1, never falling.
    np.testing.assert_allclose(differences.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    corrected = differences.holm([0.5, np.nan, 0.004])
    np.testing.assert_allclose(corrected, [0.5, np.nan, 0.008])
    assert differences.holm([0.9, 0.8]).tolist() == [1, 1] and len(differences.holm([])) == 0


def test_differences_are_between_backbones_of_a_regime_and_regimes_of_a_backbone():
    own = np.random.default_rng(1).normal(size=200)
    shifts = {"good": 3.0, "better": 3.1, "bad": 0.4}
    arms = [
        arm(name, [binormal(shift, seed=i, noise=0.05, own=0.8 * own)], regime=regime, fraction=f)
        for i, (name, shift) in enumerate(shifts.items())
        for regime, f in (("frozen", 1.0), ("frozen", 0.1), ("finetuned", 0.1))
    ]
    arms.append(arm("good", [binormal(3.0)], task="another"))  # without any other arm on its task
    table = differences.differences(arms)
    between = table[table["contrast"] == "backbones"]
    assert len(between) == 3 * 3 and between.groupby("family").size().tolist() == [3, 3, 3]
    assert (between["one_regime"] == between["other_regime"]).all()
    regimes = table[table["contrast"] == "regimes"]
    assert set(zip(regimes["one_regime"], regimes["other_regime"], strict=True)) == {
        ("finetuned", "frozen")
    }
    assert set(regimes["label_fraction"]) == {0.1} and len(regimes) == 3
    pairs = between[between["label_fraction"] == 1].set_index(["one_backbone", "other_backbone"])
    assert pairs.loc[("bad", "better"), "different"] and pairs.loc[("bad", "good"), "different"]
    assert pairs.loc[("better", "good"), "equivalent"]
    assert not pairs.loc[("bad", "good"), "equivalent"]
    for _, family in table.groupby("family"):
        np.testing.assert_array_equal(family["p_value_holm"], differences.holm(family["p_value"]))
    nothing = differences.differences([arms[-1]])
    assert nothing.empty and list(nothing) == list(table)


def test_arms_that_cannot_be_paired_are_refused():
    one = arm("a", [binormal(1.0)])
    with pytest.raises(ValueError, match="different tasks.*mri and skin"):
        differences.difference(one, one._replace(cell=one.cell | {"task": "skin"}))
    with pytest.raises(ValueError, match="different metrics.*auroc and brier"):
        differences.difference(one, one._replace(metric="brier"))


def test_main_cells_are_on_all_labels_or_on_those_of_a_trained_regime(tmp_path):
    frozen = [("a", "frozen", 1.0), ("a", "frozen", 0.1), ("a", "frozen", 0.5)]
    others = [("a", "lora", 0.1), ("b", "frozen", 0.1), ("b", "finetuned", 0.5)]
    cells = pd.DataFrame(frozen + others, columns=["task", "regime", "label_fraction"])
    assert runs.is_main(cells).tolist() == [True, True, False, True, False, True]
    for fraction, head in ((1.0, "linear"), (0.1, "linear"), (1.0, "knn")):
        save(tmp_path, predictions("mri", 0), label_fraction=fraction, head=head)
    (one,) = differences.arms(runs_below(tmp_path), resamples=5)
    assert one.cell["head"] == "linear" and one.cell["label_fraction"] == 1
    (knn,) = differences.arms(runs_below(tmp_path), resamples=5, head="knn")
    assert knn.cell["head"] == "knn"
    table, _ = summaries.summarise(runs_below(tmp_path), resamples=20)
    few = table.query("label_fraction == 0.1 and metric == 'auroc'")
    assert few[["bca_low", "bca_high"]].isna().all(axis=None) and few["ci_low"].notna().all()


def test_tied_with_the_best_is_what_is_equivalent_to_it():
    own = np.random.default_rng(1).normal(size=200)
    arms = [
        arm(name, [binormal(shift, seed=i, noise=0.05, own=0.8 * own)], task=task)
        for task in ("mri", "other")
        for i, (name, shift) in enumerate({"good": 3.0, "best": 3.1, "bad": 0.4}.items())
    ]
    table = differences.tied_with_best(arms, margin=0.02)
    tied = table.groupby("backbone")["tied"].agg(list).to_dict()
    assert tied == {"good": [True, True], "best": [True, True], "bad": [False, False]}
    assert set(table["metric"]) == {"auroc"} and len(table) == 6
    brier = [a._replace(metric="brier", value=1 - a.value, draws=1 - a.draws) for a in arms[:3]]
    assert differences.tied_with_best(brier)["tied"].tolist() == [True, True, False]
    strict = differences.tied_with_best(arms[:3], margin=1e-6)
    assert strict["tied"].sum() == 1


def test_ranks_are_of_each_regime_at_its_most_labels_and_of_whoever_has_every_task():
    values = {("a", "mri"): 0.9, ("a", "skin"): 0.7, ("b", "mri"): 0.8, ("b", "skin"): 0.8}
    values["c", "mri"] = 0.99
    arms = []
    for (backbone, task), value in values.items():
        all_labels, few, trained = ("frozen", 1.0, 0), ("frozen", 0.1, -0.5), ("lora", 0.1, 0)
        for regime, fraction, shift in (all_labels, few, trained):
            if regime == "lora" and backbone == "b":
                continue
            cell = {"task": task, "backbone": backbone, "regime": regime}
            cell |= {"head": "linear", "label_fraction": fraction}
            arms.append(differences.Arm(cell, "auroc", value + shift, np.zeros(3), [], []))
    ranked = differences.ranks_by_regime(arms)
    assert list(ranked) == ["frozen"]  # a single backbone has no rank
    ranks, tests = ranked["frozen"]
    assert ranks.to_dict() == {"a": 1.5, "b": 1.5} and tests["n_tasks"] == 2


def test_ranks_are_worked_out_by_hand_and_friedman_is_scipys():
    values = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, 0.6], "b": [0.8, 0.8, 0.6, 0.7], "c": [0.1, 0.2, 0.3, 0.4]},
        index=list("wxyz"),
    )
    ranks, tests = differences.mean_ranks(values)
    assert ranks.to_dict() == {"a": (1 + 1.5 + 1 + 2) / 4, "b": (2 + 1.5 + 2 + 1) / 4, "c": 3}
    assert list(ranks.index) == ["a", "b", "c"]
    expected = scipy.stats.friedmanchisquare(values["a"], values["b"], values["c"]).pvalue
    assert tests["p_friedman"] == pytest.approx(expected) and tests["n_tasks"] == 4


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (6, 2.850), (10, 3.164)])
def test_the_critical_difference_has_the_constants_of_demsars_table(k, q):
    values = pd.DataFrame(np.random.default_rng(0).random((14, k)))
    _, tests = differences.mean_ranks(values)
    assert tests["critical_difference"] == pytest.approx(q * np.sqrt(k * (k + 1) / 84), abs=5e-4)


def test_a_missing_value_is_named_rather_than_ranked():
    values = pd.DataFrame({"a": [1.0, np.nan], "b": [1.0, 2.0]}, index=["mri", "skin"])
    with pytest.raises(ValueError, match="1 values are missing:\n.*skin × a"):
        differences.mean_ranks(values)
