"""medlib.stats.differences: paired differences, corrections, equivalence, and ranks over tasks."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from made_arms import arm, varying
from made_runs import BACKBONES, CLASSES, predictions, runs_below, save
from scored import frame_by_sklearn
from sklearn import metrics as sk

from medlib.core import heads, splits
from medlib.stats import bootstrap, differences, prediction, redraws, runs
from medlib.stats.effects import Effect, effect


def binormal(shift, n_patients=200, seed=0, noise=1.0, own=None):
    """Predictions with one image per patient.

    Scores of the second class lie ``shift`` above those of the first class.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(n_patients) % 2
    score = shift * label + (rng.normal(size=n_patients) if own is None else own)
    score = 1 / (1 + np.exp(-(score + noise * rng.normal(size=n_patients))))
    frame = pd.DataFrame({"sample_id": [f"{i:04d}" for i in range(n_patients)]})
    frame["patient_id"], frame["split"] = frame["sample_id"], "test"
    frame["y_true"] = np.array(["low", "high"])[label]
    return frame.assign(prob_low=1 - score, prob_high=score)


def of_frame(backbone, frame, redraws, resamples=2000):
    """A frozen arm as `differences.arms` makes it, without files."""
    value = prediction.point(frame, CLASSES["mri"], ["auroc"])["auroc"]
    drawn = bootstrap.bootstrap(frame, CLASSES["mri"], resamples, names=["auroc"], threads=1)
    return arm(backbone, value, {0: drawn["auroc"]}, {0: redraws}, frames=[frame])


def tuned(backbone, *values, draws=None, **cell):
    """A fine-tuned arm; ``values`` are those of its seeds."""
    values = dict(enumerate(values))
    return arm(backbone, values, draws, regime="finetuned", **cell)


def of_patients(n):
    """Predictions in which only the number of patients matters."""
    return [pd.DataFrame({"patient_id": [f"{i}" for i in range(n)]})]


def holm_step_by_step(p):
    corrected, largest, left = {}, 0, len(p)
    for i in sorted(range(len(p)), key=lambda i: p[i]):
        largest = max(largest, min(1, left * p[i]))
        corrected[i], left = largest, left - 1
    return [corrected[i] for i in range(len(p))]


# --------------------------------------------------------------------------------------------- arms


def test_arms_are_the_main_cells_with_draws_that_go_together(saved):
    results, predicted = saved
    arms = differences.arms(runs_below(results), ["auroc"], resamples=40)
    assert [(a.cell["task"], a.cell["backbone"]) for a in arms] == [
        (task, backbone) for task in CLASSES for backbone in BACKBONES
    ]
    frames = [predicted["mri", "dinov2_small", seed] for seed in (0, 1)]
    expected = [frame_by_sklearn(f, CLASSES["mri"])["auroc"] for f in frames]
    assert list(arms[0].values.values()) == pytest.approx(expected, abs=1e-12)
    assert arms[0].value == pytest.approx(np.mean(expected), abs=1e-12)
    for seed, frame in enumerate(frames):
        drawn = bootstrap.bootstrap(frame, CLASSES["mri"], 40)["auroc"]
        np.testing.assert_allclose(arms[0].draws[seed], drawn, rtol=0, atol=1e-12)
    bare = differences.arms(runs_below(results), ["auroc"], resamples=0)
    assert [(a.cell, a.values) for a in bare] == [(a.cell, a.values) for a in arms]
    assert not any(len(drawn) for one in bare for drawn in one.draws.values())


def test_the_same_people_are_drawn_together_and_others_independently():
    one = predictions("mri", 0)
    shuffled = one.sample(frac=1, random_state=0)
    other = one.assign(patient_id="x" + one["patient_id"])
    same, again, apart = (
        bootstrap.bootstrap(f, CLASSES["mri"], 3000, names=["accuracy"], threads=1)["accuracy"]
        for f in (one, shuffled, other)
    )
    np.testing.assert_allclose(same, again, rtol=0, atol=1e-12)
    # If both had the draws of the same people, they would be identical.
    assert abs(np.corrcoef(same, apart)[0, 1]) < 0.1


def test_main_cells_are_on_all_labels_or_on_those_of_a_trained_regime(tmp_path):
    frozen = [("a", "frozen", 1.0), ("a", "frozen", 0.1), ("a", "frozen", 0.5)]
    others = [("a", "lora", 0.1), ("b", "frozen", 0.1), ("b", "finetuned", 0.5)]
    cells = pd.DataFrame(frozen + others, columns=["task", "regime", "label_fraction"])
    assert runs.is_main(cells).tolist() == [True, True, False, True, False, True]
    elsewhere = runs.is_main(cells, [("a", 0.5)])  # another part of the grid trains on these
    assert elsewhere.tolist() == [True, True, True, True, False, True]
    for fraction, head in ((1.0, "linear"), (0.1, "linear"), (1.0, "knn")):
        save(tmp_path, predictions("mri", 0), label_fraction=fraction, head=head)
    (one,) = differences.arms(runs_below(tmp_path), resamples=5)
    assert one.cell["head"] == "linear" and one.cell["label_fraction"] == 1
    (knn,) = differences.arms(runs_below(tmp_path), resamples=5, head="knn")
    assert knn.cell["head"] == "knn"


# ----------------------------------------------------------------------------------- one difference


def test_a_paired_difference_is_that_of_scipy_on_the_same_patients():
    own = np.random.default_rng(9).normal(size=200)
    one, other = (binormal(1.5, seed=1, noise=0.6, own=own), binormal(1.5, seed=2, own=own))
    redraws = [0.75, 0.76], [0.74, 0.76]
    arms = [of_frame(name, f, r) for name, f, r in zip("ab", (one, other), redraws, strict=True)]
    tests = differences.difference(*arms)
    y = (one["y_true"] == "high").to_numpy()
    scores = np.array([frame["prob_high"] for frame in (one, other)])

    def statistic(rows):
        rows = rows.astype(int)
        high = y[rows]
        n, ranks = high.sum(), scipy.stats.rankdata(scores[:, rows], axis=1)
        areas = (ranks[:, high].sum(1) - n * (n + 1) / 2) / (n * (len(rows) - n))
        return areas[0] - areas[1]

    how = {"n_resamples": 4000, "method": "percentile", "vectorized": False}
    rng = np.random.default_rng(0)
    expected = scipy.stats.bootstrap((np.arange(200),), statistic, **how, rng=rng)
    areas = [sk.roc_auc_score(y, score) for score in scores]
    difference, patients = areas[0] - areas[1], expected.standard_error
    assert tests["difference"] == pytest.approx(difference, abs=1e-12)
    # The tolerance is the Monte-Carlo error, about 4 x 1.96 x sqrt(1 / 4000 + 1 / 8000).
    assert tests["ci_low"] == pytest.approx(difference - 1.96 * patients, abs=0.16 * patients)
    assert tests["ci_high"] == pytest.approx(difference + 1.96 * patients, abs=0.16 * patients)
    training = 0.01 / np.sqrt(2)  # of the differences 0.01 and 0
    assert tests["error"] == pytest.approx(np.hypot(patients, training), rel=0.08)
    share = training**2 / (training**2 + patients**2)
    assert tests["training_share"] == pytest.approx(share, rel=0.16)
    # Without pairing, the interval would be wider.
    apart = np.hypot(*(one.draws[0].std() for one in arms))
    assert tests["ci_high"] - tests["ci_low"] < 0.8 * 2 * 1.96 * apart


ONE, OTHER = (0.812, 0.834, 0.823, 0.841), (0.806, 0.815, 0.813, 0.819)


def test_where_seeds_alone_make_a_difference_it_is_the_paired_t_test():
    tests = differences.difference(tuned("a", *ONE), tuned("b", *OTHER))
    expected = scipy.stats.ttest_rel(ONE, OTHER)
    assert tests["p_value"] == pytest.approx(expected.pvalue) and 0.01 < expected.pvalue < 0.1
    interval = expected.confidence_interval(0.95)
    assert (tests["procedure_low"], tests["procedure_high"]) == pytest.approx(tuple(interval))
    assert tests["error"] == pytest.approx(scipy.stats.sem(np.subtract(ONE, OTHER)))
    # The draws are all equal, so the interval over patients has no width.
    assert tests["ci_low"] == tests["ci_high"] == tests["difference"]
    assert tests["training_share"] == 1 and tests["training"] == "seeds" and tests["n_seeds"] == 4
    turned = differences.difference(tuned("b", *OTHER), tuned("a", *ONE))
    assert turned["p_value"] == tests["p_value"]
    assert turned["difference"] == pytest.approx(-tests["difference"])


@pytest.mark.parametrize("margin", [0.012, 0.02, 0.05])
def test_of_seeds_alone_equivalence_is_the_larger_of_two_one_sided_t_tests(margin):
    tests = differences.difference(tuned("a", *ONE), tuned("b", *OTHER), margin)
    apart = np.subtract(ONE, OTHER)
    above = scipy.stats.ttest_1samp(apart, -margin, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(apart, margin, alternative="less").pvalue
    assert tests["p_equivalence"] == pytest.approx(max(above, below))


def test_tests_use_the_error_of_patients_and_of_training_together():
    # The differences are 0.03 and 0.05 in draws, and 0.01, 0.04 and 0.07 in redraws.
    one = arm("a", 0.84, {0: [0.83, 0.85]}, {0: [0.81, 0.84, 0.87]})
    tests = differences.difference(one, arm("b", 0.80, {0: [0.8, 0.8]}, {0: [0.8, 0.8, 0.8]}))
    patients, training = 0.02**2 / 2, 0.03**2
    error, df = np.sqrt(patients + training), (patients + training) ** 2 / (training**2 / 2)
    assert tests["error"] == pytest.approx(error)
    assert tests["training_share"] == pytest.approx(training / (patients + training))
    assert tests["p_value"] == pytest.approx(2 * scipy.stats.t.sf(0.04 / error, df))
    above, below = scipy.stats.t.sf(0.06 / error, df), scipy.stats.t.cdf(0.02 / error, df)
    assert tests["p_equivalence"] == pytest.approx(max(above, below)) and below > 0.5
    half = scipy.stats.t.ppf(0.975, df) * error
    assert tests["procedure_low"] == pytest.approx(0.04 - half)
    assert tests["procedure_high"] == pytest.approx(0.04 + half)
    assert tests["ci_low"] == pytest.approx(0.04 - 1.959964 * np.sqrt(patients))
    assert tests["ci_high"] == pytest.approx(0.04 + 1.959964 * np.sqrt(patients))


def test_p_values_go_with_their_intervals():
    for value in (0.0, 0.004, 0.012, 0.0125, 0.03, -0.0125):
        found = Effect(value, np.array([]), np.array([]), 0.004, 0.0045, 30, 2, "seeds")
        tests = differences.evidence(found, margin=0.02)
        outside = tests["procedure_low"] > 0 or tests["procedure_high"] < 0
        assert (tests["p_value"] < 0.05) == outside, value
        half = scipy.stats.t.ppf(0.95, 30) * np.hypot(0.004, 0.0045)  # a 90 % interval
        assert (tests["p_equivalence"] < 0.05) == (abs(value) + half < 0.02), value


def test_the_bootstraps_p_value_is_over_patients_alone_and_decides_nothing():
    draws = np.array([0.01, 0.02, 0.03, 0.02, 0.02, 0.01, 0.03, 0.02, np.nan, 0.02])
    found = Effect(0.02, draws, np.array([]), 0.007, 0.05, 50, 3, "seeds")
    tests = differences.evidence(found)
    assert tests["p_bootstrap"] == pytest.approx(2 * 1 / 10)  # none of 9 draws is beyond zero
    assert tests["p_value"] == pytest.approx(2 * scipy.stats.t.sf(0.02 / np.hypot(0.007, 0.05), 50))
    assert tests["p_value"] > 0.6
    some = differences.evidence(found._replace(draws=np.array([-0.01, 0.0, 0.01, 0.02, 0.02])))
    assert some["p_bootstrap"] == pytest.approx(2 * 3 / 6) and some["p_value"] == tests["p_value"]
    even = differences.evidence(found._replace(draws=np.zeros(5)))
    assert even["p_bootstrap"] == 1
    assert np.isnan(differences.evidence(found._replace(draws=np.array([])))["p_bootstrap"])


def test_one_training_says_nothing_about_backbones():
    tests = differences.difference(
        tuned("a", 0.8, draws={0: [0.79, 0.81]}), tuned("b", 0.7, draws={0: [0.70, 0.70]})
    )
    assert tests["difference"] == pytest.approx(0.1) and tests["training"] == ""
    assert tests["ci_high"] - tests["ci_low"] == pytest.approx(2 * 1.959964 * 0.02 / np.sqrt(2))
    unknown = ["procedure_low", "procedure_high", "error", "training_share"]
    unknown += ["p_value", "p_equivalence"]
    assert np.isnan([tests[name] for name in unknown]).all()


def test_without_a_common_seed_there_is_no_evidence():
    other = arm("b", {7: 0.7, 8: 0.8}, regime="finetuned")
    tests = differences.difference(tuned("a", 0.8, 0.9), other)
    assert list(tests) == differences.EVIDENCE == list(differences.evidence(None))
    assert tests.pop("n_seeds") == 0 and tests.pop("training") == ""
    assert np.isnan(list(tests.values())).all()


def test_two_perfect_arms_are_neither_different_nor_equivalent():
    perfect = {"draws": {0: [1.0] * 50}, "redraws": {0: [1.0] * 20}, "frames": of_patients(500)}
    tests = differences.difference(arm("a", 1.0, **perfect), arm("b", 1.0, **perfect))
    assert tests["difference"] == 0 and tests["error"] == 0 and tests["p_bootstrap"] == 1
    assert np.isnan([tests["p_value"], tests["p_equivalence"]]).all()
    table = differences.differences([arm("a", 1.0, **perfect), arm("b", 1.0, **perfect)])
    assert not table[["different", "equivalent"]].any(axis=None)
    trained = [tuned(name, 1.0, 1.0, 1.0, frames=of_patients(500)) for name in "ab"]
    assert not differences.differences(trained)["equivalent"].any()


@pytest.mark.parametrize(
    ("value", "n_patients", "metric", "tested"),
    [
        (0.971, 99, "auroc", False),
        (0.971, 100, "auroc", True),
        (0.969, 99, "auroc", True),
        (0.971, 99, "accuracy", True),
    ],
)
def test_near_the_ceiling_equivalence_takes_a_hundred_patients(value, n_patients, metric, tested):
    redraws = {0: value + 0.0005 * np.array([-1, 0, 1])}
    one = arm("a", value, redraws=redraws, frames=of_patients(n_patients), metric=metric)
    still = {"redraws": {0: [0.965] * 3}, "frames": of_patients(n_patients), "metric": metric}
    other = arm("b", 0.965, **still)
    for tests in (differences.difference(one, other), differences.difference(other, one)):
        assert np.isfinite(tests["p_equivalence"]) == tested
        # The test of a difference is made in both cases.
        t = 2 * (value - 0.965) / 0.001
        assert tests["p_value"] == pytest.approx(2 * scipy.stats.t.sf(t, 2))


def test_arms_that_cannot_be_paired_are_refused():
    one = arm("a")
    with pytest.raises(ValueError, match="different tasks.*mri and skin"):
        differences.difference(one, arm("a", task="skin"))
    with pytest.raises(ValueError, match="different metrics.*auroc and brier"):
        differences.difference(one, arm("a", metric="brier"))


def test_two_extractors_of_equal_worth_are_rarely_called_different(monkeypatch):
    """Each trial draws new training, validation and test patients, and features of both extractors.

    The true difference is 0, so every significant difference is a false positive.
    """
    torch.set_num_threads(1)
    linear = heads.HEADS["linear"]._replace(candidates=(0.01, 100.0))  # fewer, to be fast
    monkeypatch.setitem(heads.HEADS, "linear", linear)
    trials, rng, rows, features = 60, np.random.default_rng(0), [], 40
    sizes = {"train": 80, "val": 20, "test": 500}
    side = np.repeat(list(sizes), list(sizes.values()))
    for trial in range(trials):
        y = np.concatenate([rng.permutation(np.arange(n) % 2) for n in sizes.values()])
        ids = [f"{trial}-{i:03d}" for i in range(len(y))]
        index = pd.DataFrame({"sample_id": ids, "patient_id": ids, "split": side})
        index["label"] = np.array(CLASSES["mri"])[y]
        rotations = splits.rotations(side, ids, index["label"])
        arms = []
        for name in "ab":
            x = rng.normal(2 / np.sqrt(features) * y[:, None], 1, (len(y), features))
            asked = [("linear", 0, rotations)]
            ((_, predicted, _, _),) = heads.sweep(x, y, ids, asked, n_classes=2, device="cpu")
            tables = prediction.tables(index, rotations, predicted, CLASSES["mri"])
            again = redraws.redrawn_metrics(x, index, rotations, CLASSES["mri"], 20, device="cpu")
            arms.append(of_frame(name, tables["predictions.csv"], again["auroc"], resamples=300))
        rows.append(differences.difference(*arms))
    found = pd.DataFrame(rows)
    binomial = scipy.stats.binom(trials, [0.05, 0.06])
    old = (found["p_bootstrap"] < 0.05).sum()  # over patients alone
    assert old > binomial.ppf(0.99)[0]
    assert (found["p_value"] < 0.05).sum() <= binomial.ppf(0.95)[1]
    # The sum of the squared differences over their variance is chi-squared.
    apart, variance = (found["difference"] ** 2).sum(), found["error"] ** 2
    assert apart < scipy.stats.chi2(trials).ppf(0.95) * variance.mean()
    of_patients = variance * (1 - found["training_share"])
    assert apart > scipy.stats.chi2(trials).ppf(0.999) * of_patients.mean()


# --------------------------------------------------------------------------------- all differences


def test_holm_is_worked_out_by_hand():
    # Sorted values .01 .02 .03 .04 are multiplied by 4 3 2 1, and may never fall.
    np.testing.assert_allclose(differences.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    corrected = differences.holm([0.5, np.nan, 0.004])
    np.testing.assert_allclose(corrected, [0.5, np.nan, 0.008])
    assert differences.holm([0.9, 0.8]).tolist() == [1, 1] and len(differences.holm([])) == 0


VALUES = {"a": 0.80, "b": 0.80, "c": 0.85, "random": 0.60}
FEW = {"mri": 0.1, "skin": 1.0}  # the label fraction of fine-tuning on each task


@pytest.fixture(scope="module")
def grid():
    """The arms of three pretrained backbones and a random one on two tasks."""
    rng, arms = np.random.default_rng(0), []
    for task, few in FEW.items():
        for backbone, value in VALUES.items():
            pretraining = "random" if backbone == "random" else "imagenet"
            common = {"task": task, "pretraining": pretraining, "rng": rng}
            for share in sorted({1.0, few}):
                seeds = (0,) if pretraining != "random" and share == 1 else (0, 1, 2)
                cell = {"label_fraction": share, "seeds": seeds}
                arms.append(varying(backbone, value, 0.003, 0.003, **cell, **common))
            cell = {"regime": "finetuned", "label_fraction": few}
            arms.append(varying(backbone, value + 0.05, 0.003, 0.003, **cell, **common))
    return arms


def sides(rows):
    return sorted(zip(rows["task"], rows["one_backbone"], rows["other_backbone"], strict=True))


def test_the_primary_family_is_of_pretrained_backbones_over_all_tasks_at_the_most_labels(grid):
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    expected = [(task, *pair) for task in FEW for pair in pairs]
    for regime, shares in (("frozen", {1.0}), ("finetuned", {0.1, 1.0})):
        table = differences.differences(grid, primary=regime)
        first = table[table["primary"]]
        assert sides(first) == expected and set(first["label_fraction"]) == shares
        assert set(first["one_regime"]) == set(first["other_regime"]) == {regime}
        assert set(first["contrast"]) == {"backbones"}
        assert ((table["family"] == "primary") == table["primary"]).all()
    pd.testing.assert_frame_equal(
        differences.differences(grid), differences.differences(grid, primary="frozen")
    )
    assert not differences.differences(grid, primary="lora")["primary"].any()


def test_the_other_families_are_of_a_task_and_regime_and_of_the_regimes_of_a_task(grid):
    table = differences.differences(grid)
    sizes = table.groupby(["contrast", "family"]).size()
    backbones = "backbones, {}, {}, linear, {} of labels"
    assert sizes["backbones"].to_dict() == {
        "primary": 6,
        backbones.format("frozen", "mri", 1): 3,  # each pretrained one against the random one
        backbones.format("frozen", "mri", 0.1): 6,
        backbones.format("frozen", "skin", 1): 3,
        backbones.format("finetuned", "mri", 0.1): 6,
        backbones.format("finetuned", "skin", 1): 6,
    }
    regimes = "regimes, {}, linear, {} of labels"
    expected = {regimes.format("mri", 0.1): 4, regimes.format("skin", 1): 4}
    assert sizes["regimes"].to_dict() == expected
    of_regimes = table[table["contrast"] == "regimes"]
    assert (of_regimes["one_backbone"] == of_regimes["other_backbone"]).all()
    assert set(of_regimes["one_regime"]) == {"finetuned"}
    assert set(of_regimes["other_regime"]) == {"frozen"}
    assert of_regimes["difference"].tolist() == pytest.approx([0.05] * 8)
    between = table[table["contrast"] == "backbones"]
    assert (between["one_backbone"] < between["other_backbone"]).all()
    assert (between["one_regime"] == between["other_regime"]).all()
    assert not table.duplicated(["task", "label_fraction", *differences.SIDES]).any()
    lonely = differences.differences(grid[:1])
    assert lonely.empty and list(lonely) == list(table)


def test_a_family_is_corrected_together_and_judged_after_that(grid):
    table = differences.differences(grid, margin=0.02)
    for _, family in table.groupby("family"):
        for name in ("p_value", "p_equivalence"):
            expected = holm_step_by_step(family[name].tolist())
            np.testing.assert_allclose(family[f"{name}_holm"], expected, rtol=1e-12)
    first = table[table["primary"]].set_index(["task", "one_backbone", "other_backbone"])
    for task in FEW:
        assert first.loc[(task, "a", "c"), "different"]
        assert not first.loc[(task, "a", "c"), "equivalent"]
        assert first.loc[(task, "a", "b"), "equivalent"]
        assert not first.loc[(task, "a", "b"), "different"]


def test_what_differs_alone_need_not_differ_after_the_correction():
    rng = np.random.default_rng(0)
    equal = [varying(name, 0.8, 0.003, 0.003, rng, seeds=(0,)) for name in "abcd"]
    error = max(differences.difference(equal[0], other)["error"] for other in equal[1:])
    one = equal[0]._replace(values={0: 0.8 + 2.45 * error})
    table = differences.differences([one, *equal[1:]])
    some = table[table["one_backbone"] == "a"]
    assert len(some) == 3 and some["p_value"].between(0.05 / 6, 0.05 / 3).all()
    assert some["p_value_holm"].min() > 0.05 and not table["different"].any()
    (alone,) = differences.differences([one, equal[1]])["different"]
    assert alone


# For n tests: the quantile of the normal distribution at 1 - 0.05 / 2n.
FIRST_STEP = {1: 1.959964, 3: 2.393980, 4: 2.497705, 6: 2.638257}


def test_what_is_detectable_grows_with_the_number_of_tests(grid):
    table = differences.differences(grid)
    frozen = table[(table["one_regime"] == "frozen") & (table["other_regime"] == "frozen")]
    sizes = table["family"].map(table["family"].value_counts())
    assert set(sizes[frozen.index]) == {3, 6}
    expected = (sizes.map(FIRST_STEP) + 0.841621) * table["error"]  # 0.841621: a power of 80 %
    # Normal quantiles are for a known error; with 200 redraws the t quantiles are nearly the same.
    np.testing.assert_allclose(frozen["detectable"], expected[frozen.index], rtol=0.02)


def test_what_is_not_tested_is_not_corrected_for():
    rng = np.random.default_rng(0)
    arms = [varying(name, 0.8, 0.003, 0.003, rng) for name in "ab"]
    once = differences.differences([*arms, arm("c", 0.8)]).set_index("other_backbone")
    assert once["p_value_holm"].notna().tolist() == [True, False, False]
    assert once["detectable"].notna().tolist() == [True, False, False]
    assert once["simultaneous_low"].notna().tolist() == [True, False, False]
    tested = once.loc["b"]
    assert tested["p_value_holm"] == tested["p_value"]
    reach = FIRST_STEP[1] + 0.841621
    assert tested["detectable"] == pytest.approx(reach * tested["error"], rel=0.02)


def test_with_three_seeds_too_a_detectable_difference_is_found_four_times_in_five():
    arms = tuned("a", 0.81, 0.80, 0.83), tuned("b", 0.80, 0.81, 0.80)
    (row,) = differences.differences(arms).to_dict("records")
    rng = np.random.default_rng(0)
    seeds = rng.normal(row["detectable"] / row["error"] / np.sqrt(3), 1, (3, 4000))
    found = scipy.stats.ttest_1samp(seeds, 0).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.05)


# --------------------------------------------------------------------------- simultaneous intervals


def independent(n, source="redraws", **given):
    """Effects whose standard errors are 0.6 and 0.8, both with normal draws."""
    rng, made = np.random.default_rng(5), []
    for _ in range(n):
        redraws = 0.8 * rng.normal(size=20000) if source == "redraws" else np.array([])
        draws = 5 + 0.6 * rng.normal(size=20000)
        made.append(Effect(5.0, draws, redraws, 0.6, 0.8, np.inf, 3, source)._replace(**given))
    return made


@pytest.mark.parametrize("source", ["redraws", "seeds", "redraws and seeds"])
@pytest.mark.parametrize("n", [1, 2, 6, 20])
def test_the_reach_over_independent_effects_is_the_normal_quantile_of_their_maximum(n, source):
    exact = scipy.stats.norm.ppf((1 + 0.95 ** (1 / n)) / 2)
    assert differences.simultaneous_reach(independent(n, source)) == pytest.approx(exact, abs=0.04)
    at_90 = scipy.stats.norm.ppf((1 + 0.9 ** (1 / n)) / 2)
    reach = differences.simultaneous_reach(independent(n, source), 0.9)
    assert reach == pytest.approx(at_90, abs=0.04)


def test_with_few_degrees_of_freedom_a_simultaneous_interval_reaches_further():
    rng = np.random.default_rng(3)
    arms = [
        tuned(name, *(0.8 + 0.01 * rng.normal(size=3)), draws={s: [0.8] * 20_000 for s in range(3)})
        for name in "abc"
    ]
    table = differences.differences(arms)
    effects = [effect([(1, arms[i]), (-1, arms[j])]) for i, j in ((0, 1), (0, 2), (1, 2))]
    level = scipy.stats.norm.cdf(differences.simultaneous_reach(effects))
    reach = (table["simultaneous_high"] - table["difference"]) / table["error"]
    assert reach.tolist() == pytest.approx([scipy.stats.t(2).ppf(level)] * 3, rel=1e-9)
    assert reach.min() > 4.303  # the reach of a single interval


def test_the_reach_over_one_effect_many_times_is_that_of_one():
    (e,) = independent(1)
    assert differences.simultaneous_reach([e] * 6) == pytest.approx(1.96, abs=0.04)
    scaled = [
        e._replace(draws=f * e.draws, redraws=f * e.redraws, patients=f * 0.6, training=f * 0.8)
        for f in (1, 2, 0.1, 7, 1)
    ]
    assert differences.simultaneous_reach(scaled) == pytest.approx(1.96, abs=0.04)
    assert 2.6 < differences.simultaneous_reach(independent(6)) < 2.7


def test_few_redraws_are_used_again_and_undefined_ones_left_out():
    rng, effects = np.random.default_rng(6), independent(6)
    quantiles = scipy.stats.norm.ppf((np.arange(500) + 0.5) / 500)
    few = [
        e._replace(redraws=np.append(3 + 0.8 * rng.permutation(quantiles), np.nan)) for e in effects
    ]
    exact = scipy.stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2)
    assert differences.simultaneous_reach(few) == pytest.approx(exact, abs=0.06)


def test_effects_without_a_known_error_do_not_count():
    known, unknown = independent(6), independent(1, training=np.nan, source="")[0]
    nothing = independent(1, patients=0.0, training=0.0)[0]
    expected = differences.simultaneous_reach(known)
    mixed = [None, unknown, *known, nothing]
    assert differences.simultaneous_reach(mixed) == expected
    assert np.isnan(differences.simultaneous_reach([None, unknown, nothing]))
    assert np.isnan(differences.simultaneous_reach([]))


def test_simultaneous_intervals_of_all_pairs_are_tukeys():
    rng = np.random.default_rng(0)
    arms = [varying(n, 0.8, 0.004, 0.0001, rng, (0,), resamples=20000) for n in "abcd"]
    table = differences.differences(arms)
    middle = (table["simultaneous_low"] + table["simultaneous_high"]) / 2
    np.testing.assert_allclose(middle, table["difference"], rtol=0, atol=1e-12)
    reach = (table["simultaneous_high"] - table["difference"]) / table["error"]
    tukey = scipy.stats.studentized_range.ppf(0.95, 4, np.inf) / np.sqrt(2)
    assert reach.tolist() == pytest.approx([tukey] * 6, abs=0.04)


def test_a_simultaneous_interval_is_never_narrower_than_that_of_one_difference():
    values = {"a": (0.81, 0.80, 0.83), "b": (0.80, 0.81, 0.80)}
    arms = [
        tuned(name, *of, draws={seed: [value] * 100_000 for seed, value in enumerate(of)})
        for name, of in values.items()
    ]
    (row,) = differences.differences(arms).to_dict("records")
    widths = (row[f"{name}_high"] - row[f"{name}_low"] for name in ("simultaneous", "procedure"))
    assert next(widths) == pytest.approx(next(widths), rel=0.03)  # the same for one difference


# ---------------------------------------------------------------------------------- the two regimes


def test_regimes_are_compared_on_the_labels_of_the_seeds_that_both_have():
    frozen, tuned = ("frozen", "linear"), ("finetuned", "linear")
    cells = [
        # On all labels, the single frozen run counts for every seed.
        ("mri", "a", *frozen, 1.0, {0: 0.70}),
        ("mri", "a", *tuned, 1.0, {0: 0.80, 1: 0.90}),
        ("mri", "a", "frozen", "knn", 1.0, {0: 0.10}),
        # On few labels, both regimes have only the seeds 1 and 2.
        ("mri", "a", *frozen, 0.1, {0: 0.10, 1: 0.60, 2: 0.64}),
        ("mri", "a", *tuned, 0.1, {1: 0.72, 2: 0.70, 3: 0.99}),
        ("mri", "a", "lora", "linear", 0.1, {1: 0.99}),
        # A random control has other weights for each seed.
        ("mri", "r", *frozen, 1.0, {0: 0.50, 1: 0.60}),
        ("mri", "r", *tuned, 1.0, {1: 0.64}),
        # These have no counterpart: the label fraction, the seeds or the task differ.
        ("mri", "b", *frozen, 1.0, {0: 0.70}),
        ("mri", "b", *tuned, 0.1, {0: 0.70}),
        ("skin", "b", *frozen, 0.1, {0: 0.70}),
        ("skin", "b", *tuned, 0.1, {1: 0.70}),
        ("skin", "a", *tuned, 1.0, {0: 0.70}),
    ]
    rows = [(*cell, *run) for *cell, values in cells for run in values.items()]
    columns = ["task", "backbone", "regime", "head", "label_fraction", "seed", "value"]
    table = pd.DataFrame(rows, columns=columns).assign(n_patients=15, n_images=30)
    table["pretraining"] = table["backbone"].map({"a": "imagenet", "b": "imagenet", "r": "random"})
    for shuffled in (table, table.sample(frac=1, random_state=0)):
        paired = differences.on_same_labels(shuffled)
        paired = paired.sort_values(["backbone", "label_fraction"], ignore_index=True)
        named = paired[["task", "backbone", "pretraining", "label_fraction"]]
        assert named.to_numpy().tolist() == [
            ["mri", "a", "imagenet", 0.1],
            ["mri", "a", "imagenet", 1.0],
            ["mri", "r", "random", 1.0],
        ]
        assert paired["frozen"].tolist() == pytest.approx([0.62, 0.70, 0.60])
        assert paired["finetuned"].tolist() == pytest.approx([0.71, 0.85, 0.64])
        assert paired["n_seeds"].tolist() == [2, 2, 1]
        assert set(paired["n_patients"]) == {15} and set(paired["n_images"]) == {30}
    nothing = differences.on_same_labels(table[table["regime"] == "lora"])
    assert nothing.empty and list(nothing) == list(paired)


def test_the_regimes_of_the_table_are_compared_on_these_seeds_as_well():
    few = {"label_fraction": 0.1}
    frozen = arm("a", {0: 0.10, 1: 0.60, 2: 0.64}, **few)
    trained = arm("a", {1: 0.72, 2: 0.70, 3: 0.99}, regime="finetuned", **few)
    (row,) = differences.differences([frozen, trained]).to_dict("records")
    expected = scipy.stats.ttest_rel([0.72, 0.70], [0.60, 0.64])
    assert row["difference"] == pytest.approx(0.09) and row["n_seeds"] == 2
    assert row["p_value"] == pytest.approx(expected.pvalue)
    assert row["contrast"] == "regimes" and row["one_regime"] == "finetuned"


# -------------------------------------------------------------------------------------- ties, ranks


def test_tied_with_the_best_is_what_is_equivalent_to_it():
    rng = np.random.default_rng(1)
    values = {"good": 0.898, "best": 0.9, "bad": 0.7}
    arms = [
        varying(name, value, 0.003, 0.003, rng, seeds=(0,), task=task)
        for task in ("mri", "other")
        for name, value in values.items()
    ]
    table = differences.tied_with_best(arms, margin=0.02)
    tied = table.groupby("backbone")["tied"].agg(list).to_dict()
    assert tied == {"good": [True, True], "best": [True, True], "bad": [False, False]}
    assert set(table["metric"]) == {"auroc"} and len(table) == 6
    assert {"task", "backbone", "regime", "head", "label_fraction"} <= set(table)
    turned = [
        one._replace(
            metric="brier",
            **{f: {0: 1 - getattr(one, f)[0]} for f in ("values", "draws", "redraws")},
        )
        for one in arms[:3]
    ]
    assert differences.tied_with_best(turned)["tied"].tolist() == [True, True, False]
    strict = differences.tied_with_best(arms[:3], margin=1e-6)
    assert strict.set_index("backbone")["tied"].to_dict() == {
        "good": False,
        "best": True,
        "bad": False,
    }


def test_an_arm_that_was_trained_once_ties_with_none():
    rng = np.random.default_rng(1)
    best, good = (varying(n, v, 0.001, 0.001, rng) for n, v in (("best", 0.9), ("good", 0.899)))
    table = differences.tied_with_best([best, good._replace(redraws={})])
    assert table["tied"].tolist() == [True, False]
    table = differences.tied_with_best([best._replace(redraws={}), good])
    assert table["tied"].tolist() == [True, False]
    assert differences.tied_with_best([best, good])["tied"].all()


def test_ties_are_corrected_within_the_task():
    rng = np.random.default_rng(1)
    best = varying("best", 0.9, 0.003, 0.003, rng, seeds=(0,))
    others = [varying(f"other{i}", 0.9, 0.003, 0.003, rng, seeds=(0,)) for i in range(4)]
    error = max(differences.difference(one, best)["error"] for one in others)
    margin = 2 * error  # p is 0.023 alone, and 0.09 as the smallest of four
    best = best._replace(values={0: 0.9 + 1e-9})
    assert differences.tied_with_best([best, others[0]], margin)["tied"].all()
    assert differences.tied_with_best([best, *others], margin)["tied"].sum() == 1


def test_ranks_are_of_each_regime_at_its_most_labels_and_of_whoever_has_every_task():
    values = {("a", "mri"): 0.9, ("a", "skin"): 0.7, ("b", "mri"): 0.8, ("b", "skin"): 0.8}
    values["c", "mri"] = 0.99
    arms = []
    for (backbone, task), value in values.items():
        all_labels, few, trained = ("frozen", 1.0, 0), ("frozen", 0.1, -0.5), ("lora", 0.1, 0)
        for regime, fraction, shift in (all_labels, few, trained):
            if regime == "lora" and backbone == "b":
                continue
            cell = {"task": task, "regime": regime, "label_fraction": fraction}
            seeds = {0: value + shift - 0.01, 1: value + shift + 0.01}
            arms.append(arm(backbone, seeds, **cell))
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
