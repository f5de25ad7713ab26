"""medlib.stats.subgroups: metrics of groups, largest gaps, heterogeneity over sites."""

import numpy as np
import pandas as pd
import pytest
from made_arms import arm, frame_of, row
from scipy import stats
from scored import by_sklearn
from sklearn.metrics import roc_auc_score
from statsmodels.stats.meta_analysis import combine_effects

from medlib.data import known
from medlib.stats import metrics, subgroups

CLASSES = ["low", "high"]


def scored(n, rng, shift=1.2, classes=CLASSES):
    """Predictions with one image per patient, in which the right class tends to score higher."""
    label = np.arange(n) % len(classes)
    score = rng.normal(size=(n, len(classes))) + shift * np.eye(len(classes))[label]
    proba = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    return frame_of(label, proba, classes)


def grouped(frame, **columns):
    rows = pd.DataFrame(columns).set_axis(frame["sample_id"])
    return known.groups(rows, {})


def of(frames, classes=CLASSES, **cell):
    frames = frames if isinstance(frames, list) else [frames]
    values = dict.fromkeys(range(len(frames)), 0.5)
    return arm(values=values, frames=frames, **cell)._replace(classes=classes)


# --------------------------------------------------------------------------------------- values


def test_a_group_has_the_metrics_that_scikit_learn_computes_on_its_rows():
    frame = scored(160, np.random.default_rng(0))
    sex = np.where(np.arange(160) % 5 < 2, "male", "female")
    found = subgroups.compare([of(frame)], grouped(frame, sex=sex), few=5, resamples=50)
    for name in ("male", "female"):
        own = frame[sex == name]
        y = (own["y_true"] == "high").to_numpy().astype(int)
        expected = by_sklearn(y, own[["prob_low", "prob_high"]].to_numpy())
        for metric in metrics.applicable(2):
            value = row(found.table, metric=metric, group=name)["value"]
            assert value == pytest.approx(expected[metric], abs=1e-12), metric
    assert set(found.table["metric"]) == set(metrics.applicable(2))
    assert row(found.table, metric="auroc", group="male")["by_class"] == "low 32, high 32"


def test_in_cross_validation_it_is_the_mean_over_folds_that_have_every_class():
    frame = scored(120, np.random.default_rng(1)).drop(columns="split")
    frame["fold"] = np.arange(120) // 40
    site = np.where(np.arange(120) % 3 == 0, "A", "B")
    frame = frame[~((site == "A") & (frame["fold"] == 2) & (frame["y_true"] == "high"))]
    site = site[frame.index]
    frame = frame.reset_index(drop=True)
    found = subgroups.compare([of(frame)], grouped(frame, site=site), few=3, resamples=50)
    parts = [frame[(site == "A") & (frame["fold"] == fold)] for fold in (0, 1)]
    areas = [roc_auc_score(part["y_true"] == "high", part["prob_high"]) for part in parts]
    one = row(found.table, group="A", metric="auroc")
    expected = np.average(areas, weights=[len(part) for part in parts])
    assert one["value"] == pytest.approx(expected, abs=1e-12)
    assert (one["folds"], one["n_folds"]) == (2, 3)
    parts.append(frame[(site == "A") & (frame["fold"] == 2)])
    right = [
        ((part["prob_high"] > part["prob_low"]) == (part["y_true"] == "high")).mean()
        for part in parts
    ]
    one = row(found.table, group="A", metric="accuracy")  # needs no class
    expected = np.average(right, weights=[len(part) for part in parts])
    assert one["value"] == pytest.approx(expected, abs=1e-12)
    assert (one["folds"], one["n_folds"]) == (3, 3)


def test_of_several_classes_each_is_judged_against_the_rest_as_well():
    names = ["a", "b", "c"]
    frames = [scored(150, np.random.default_rng(seed), classes=names) for seed in (2, 3)]
    sex = np.where(np.arange(150) % 2, "male", "female")
    groups = grouped(frames[0], sex=sex)
    found = subgroups.compare([of(frames, names)], groups, few=5, resamples=50)
    for one in names:
        own = [frame[sex == "male"] for frame in frames]
        expected = np.mean([roc_auc_score(f["y_true"] == one, f[f"prob_{one}"]) for f in own])
        value = row(found.table, of_class=one, group="male")["value"]
        assert value == pytest.approx(expected, abs=1e-12)
    by_class = found.table[(found.table["metric"] == "auroc") & (found.table["group"] == "male")]
    values = by_class.set_index("of_class")["value"]
    assert values[""] == pytest.approx(values[names].mean(), abs=1e-12)  # the macro mean
    assert set(found.table.loc[found.table["of_class"] != "", "metric"]) == {"auroc"}


def test_few_and_unknown_patients_have_a_row_and_no_group_is_dropped():
    frame = scored(100, np.random.default_rng(4))
    age = ["70"] * 9 + ["50"] * 60 + [""] * 31
    found = subgroups.compare([of(frame)], grouped(frame, age=age), few=5, resamples=50)
    own = found.table[found.table["metric"] == "auroc"].set_index("group")
    assert list(own.index) == ["40 to under 65", "65 and over", "not known"]
    assert own["n_patients"].tolist() == [60, 9, 31] and own["n_images"].sum() == len(frame)
    assert own["why"].tolist() == ["", "too few: high 4", ""]
    assert own["value"].isna().tolist() == [False, True, False]
    assert own.loc["65 and over", ["ci_low", "ci_high"]].isna().all()
    # Before, a group needed five patients of each class. By default it needs twenty.
    strict = subgroups.compare([of(frame)], grouped(frame, age=age), resamples=50).table
    whys = strict[strict["metric"] == "auroc"]["why"].tolist()
    assert whys == ["", "too few: low 5, high 4", "too few: low 15, high 16"]
    # Patients of unknown age are not a group in gaps.
    gap = row(found.gaps, metric="auroc")
    assert gap["n_groups"] == 1 and gap["why"] == subgroups.ONE_GROUP and np.isnan(gap["gap"])


def test_patients_are_counted_and_not_their_images():
    frame = scored(60, np.random.default_rng(5))
    frame["patient_id"] = [f"{k // 2 // 3}-{k % 2}" for k in range(60)]  # three images each
    found = subgroups.compare([of(frame)], grouped(frame, sex=["male"] * 60), few=11, resamples=20)
    one = row(found.table, metric="auroc")
    assert (one["n_patients"], one["n_images"], one["rarest"]) == (20, 60, 10)
    assert one["why"] == "too few: low 10, high 10"


def test_a_task_without_attributes_has_empty_tables_and_unknown_samples_are_named():
    frame = scored(40, np.random.default_rng(6))
    nothing = subgroups.compare([of(frame)], grouped(frame, age=[""] * 40))
    assert [len(part) for part in nothing] == [0, 0, 0]
    assert list(nothing.table) == subgroups.ROWS
    with pytest.raises(ValueError, match="1 predicted samples .* manifest(.|\n)*- 0039"):
        subgroups.compare([of(frame)], grouped(frame, sex=["male"] * 40).iloc[:-1])


def test_the_interval_of_a_group_is_close_to_delongs():
    frame = scored(400, np.random.default_rng(7), shift=1.0)
    sex = np.where(np.arange(400) % 4 < 2, "male", "female")
    found = subgroups.compare([of(frame)], grouped(frame, sex=sex), resamples=3000)
    one = row(found.table, metric="auroc", group="male")
    own = frame[sex == "male"]
    high, low = (own.loc[own["y_true"] == c, "prob_high"].to_numpy() for c in ("high", "low"))
    wins = (high[:, None] > low).astype(float)  # the two components of DeLong's variance, by hand
    error = np.sqrt(wins.mean(1).var(ddof=1) / len(high) + wins.mean(0).var(ddof=1) / len(low))
    logit = np.log(wins.mean() / (1 - wins.mean()))
    half = 1.96 * error / (wins.mean() * (1 - wins.mean()))
    ends = 1 / (1 + np.exp(-(logit + np.array([-half, half]))))
    assert [one["ci_low"], one["ci_high"]] == pytest.approx(ends, abs=0.01)


# ----------------------------------------------------------------------------------------- gaps


def test_the_largest_gap_is_that_of_the_outermost_groups():
    rng = np.random.default_rng(8)
    values = {"A": 0.7, "B": 0.9, "C": 0.75}
    drawn = {name: value + 0.02 * rng.normal(size=4000) for name, value in values.items()}
    pairs = subgroups.pairwise(values, drawn).set_index(["higher", "lower"])
    assert pairs["gap"].to_dict() == pytest.approx(
        {("C", "A"): 0.05, ("B", "A"): 0.2, ("B", "C"): 0.15}
    )
    # For three independent means with the same error, this is Tukey's interval.
    half = stats.studentized_range.ppf(0.95, 3, np.inf) / np.sqrt(2) * np.sqrt(2) * 0.02
    assert (pairs["gap_high"] - pairs["gap"]).to_numpy() == pytest.approx(half, rel=0.04)
    two = subgroups.pairwise({k: values[k] for k in "AB"}, drawn)
    assert two["gap_high"][0] - 0.2 == pytest.approx(1.96 * np.sqrt(2) * 0.02, rel=0.04)


def test_gaps_go_from_the_higher_to_the_lower_group_and_keep_to_the_scale():
    frame = scored(120, np.random.default_rng(9), shift=2.5)
    frame.loc[60:, ["prob_low", "prob_high"]] = frame.loc[60:, ["prob_high", "prob_low"]].to_numpy()
    site = ["good"] * 60 + ["bad"] * 60
    found = subgroups.compare([of(frame)], grouped(frame, site=site), resamples=200)
    gap = row(found.gaps, metric="auroc")
    own = (
        row(found.table, metric="auroc", group="good"),
        row(found.table, metric="auroc", group="bad"),
    )
    assert (gap["higher"], gap["lower"]) == ("good", "bad")
    assert gap["gap"] == pytest.approx(own[0]["value"] - own[1]["value"], abs=1e-12)
    assert 0 < gap["gap_low"] < gap["gap"] < gap["gap_high"] <= 1
    assert "ece" not in set(found.gaps["metric"])  # it has no interval


def simulated(truths, sizes, rng, resamples):
    """The result of `pairwise` for one simulated study with known true AUROCs."""
    values, drawn = {}, {}
    for name, (area, n) in enumerate(zip(truths, sizes, strict=True)):
        y = np.arange(n) % 2
        score = rng.normal(size=n) + y * np.sqrt(2) * stats.norm.ppf(area)
        proba = stats.norm.cdf(score / 2)
        judge = metrics.evaluator(y, np.stack([1 - proba, proba], 1), np.arange(n), ["auroc"])
        found = judge(np.vstack([np.ones(n, int), rng.poisson(1, (resamples, n))]))["auroc"]
        values[name], drawn[name] = float(found[0]), found[1:]
    return subgroups.pairwise(values, drawn, {name: n // 2 for name, n in enumerate(sizes)})


@pytest.mark.parametrize("truths", [(0.8, 0.8, 0.8, 0.8), (0.65, 0.75, 0.85, 0.8)])
def test_intervals_of_all_gaps_hold_at_once_in_93_to_97_percent_of_studies(truths):
    """There are four groups of 60 to 160 patients. A study counts if all true gaps are covered."""
    rng, held = np.random.default_rng(10), []
    for _ in range(800):
        pairs = simulated(truths, (60, 160, 80, 100), rng, 250)
        apart = [
            truths[a] - truths[b] for a, b in zip(pairs["higher"], pairs["lower"], strict=True)
        ]
        held.append(((pairs["gap_low"] <= apart) & (apart <= pairs["gap_high"])).all())
    assert 0.93 <= np.mean(held) <= 0.97


def test_groups_without_a_mistake_have_an_interval_as_well():
    values, drawn = {"A": 1.0, "B": 1.0}, {name: np.ones(50) for name in "AB"}
    (one,) = subgroups.pairwise(values, drawn, {"A": 30, "B": 30}).to_dict("records")
    assert one["gap"] == 0 and np.isnan(one["gap_low"])  # all draws are equal, so there is no error
    drawn["B"] = 1 - 0.02 * np.random.default_rng(0).random(50)
    (one,) = subgroups.pairwise({"A": 1.0, "B": 0.99}, drawn, {"A": 30, "B": 30}).to_dict("records")
    # Wilson's interval for 30 of 30 reaches from 30 / (30 + z²) to 1.
    assert -0.2 < one["gap_low"] < -0.05 and 0.01 < one["gap_high"] < 0.1


# ---------------------------------------------------------------------------------------- sites

VALUES, ERRORS = np.array([0.72, 0.81, 0.9, 0.65]), np.array([0.04, 0.05, 0.03, 0.06])


def by_hand(values, errors):
    """The method of DerSimonian and Laird on the logit scale, step by step."""
    logit = np.log(values / (1 - values))
    v = (errors / (values * (1 - values))) ** 2
    w = 1 / v
    mean = (w * logit).sum() / w.sum()
    q = (w * (logit - mean) ** 2).sum()
    k = len(values)
    tau2 = max(0, (q - (k - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    w = 1 / (v + tau2)
    mean = (w * logit).sum() / w.sum()
    hksj = (w * (logit - mean) ** 2).sum() / (k - 1) / w.sum()
    return {"tau2": tau2, "q": q, "i2": max(0, 1 - (k - 1) / q), "mean": mean}, w, hksj


@pytest.mark.parametrize("errors", [ERRORS, 4 * ERRORS], ids=["heterogeneous", "alike"])
def test_heterogeneity_is_der_simonian_and_lairds(errors):
    found = subgroups.heterogeneity(VALUES, errors)
    hand, w, hksj = by_hand(VALUES, errors)
    for name in ("tau2", "q", "i2"):
        assert found[name] == pytest.approx(hand[name], rel=1e-9, abs=1e-12), name
    assert (hand["tau2"] > 0) == (errors is ERRORS)

    def share(logit):
        return 1 / (1 + np.exp(-np.asarray(logit)))

    assert found["pooled"] == pytest.approx(share(hand["mean"]), abs=1e-12)
    half = stats.t.ppf(0.975, 3) * np.sqrt(max(1 / w.sum(), hksj))
    ends = share(hand["mean"] + np.array([-half, half]))
    assert [found["pooled_low"], found["pooled_high"]] == pytest.approx(ends, abs=1e-9)
    half = stats.t.ppf(0.975, 2) * np.sqrt(hand["tau2"] + 1 / w.sum())
    ends = share(hand["mean"] + np.array([-half, half]))
    assert [found["new_site_low"], found["new_site_high"]] == pytest.approx(ends, abs=1e-9)
    assert found["p_value"] == pytest.approx(stats.chi2.sf(hand["q"], 3), abs=1e-12)


def test_heterogeneity_is_that_of_statsmodels():
    logit = np.log(VALUES / (1 - VALUES))
    variance = (ERRORS / (VALUES * (1 - VALUES))) ** 2
    theirs = combine_effects(logit, variance, method_re="dl")
    found = subgroups.heterogeneity(VALUES, ERRORS)
    assert found["tau2"] == pytest.approx(theirs.tau2) and found["i2"] == pytest.approx(theirs.i2)
    centre = np.log(found["pooled"] / (1 - found["pooled"]))
    assert centre == pytest.approx(theirs.mean_effect_re)
    two = subgroups.heterogeneity(VALUES[:2], ERRORS[:2])
    assert np.isnan(two["new_site_low"]) and np.isfinite(two["pooled_low"])


def test_sites_are_pooled_and_those_left_out_are_named():
    frame = scored(240, np.random.default_rng(11))
    site = np.repeat(["A", "B", "C", "D", "E", ""], [60, 60, 60, 30, 10, 20])
    perfect = (site == "D").nonzero()[0]
    frame.loc[perfect, "prob_high"] = (frame.loc[perfect, "y_true"] == "high").astype(float)
    frame["prob_low"] = 1 - frame["prob_high"]
    found = subgroups.compare([of(frame)], grouped(frame, site=site), few=10, resamples=300)
    one = row(found.sites, metric="auroc")
    assert one["n_sites"] == 3 and one["left_out"] == "D, E"
    own = found.table[found.table["metric"] == "auroc"].set_index("group")["value"]
    assert own["D"] == 1 and np.isnan(own["E"]) and np.isfinite(own["not known"])
    assert own[["A", "B", "C"]].min() <= one["pooled"] <= own[["A", "B", "C"]].max()
    assert set(found.sites["metric"]) == {
        *(set(metrics.applicable(2)) - {"kappa", "log_loss", "brier", "ece"})
    }
    lone = subgroups.compare([of(frame)], grouped(frame, site=["A"] * 240), resamples=50).sites
    assert row(lone, metric="auroc")["why"] == subgroups.ONE_GROUP


def test_the_pooled_interval_and_that_of_a_new_site_hold_the_truth():
    """Sites differ on the logit scale by a known variance. Standard errors are known."""
    rng, pooled, new = np.random.default_rng(12), [], []
    mean, tau = 1.2, 0.4
    share = lambda logit: 1 / (1 + np.exp(-logit))  # noqa: E731
    for _ in range(400):
        true = mean + tau * rng.normal(size=9)
        error = rng.uniform(0.15, 0.35, size=8)
        seen = share(true[:8] + error * rng.normal(size=8))
        found = subgroups.heterogeneity(seen, error * seen * (1 - seen))
        pooled.append(found["pooled_low"] <= share(mean) <= found["pooled_high"])
        new.append(found["new_site_low"] <= share(true[8]) <= found["new_site_high"])
    assert 0.93 <= np.mean(pooled) <= 0.98
    assert 0.92 <= np.mean(new) <= 0.97
