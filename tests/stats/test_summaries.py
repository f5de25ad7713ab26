"""medlib.stats.summaries: tables that agree with scikit-learn, of runs on the same samples."""

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_runs import BACKBONES, CANDIDATES, CLASSES, kept_below, predictions, runs_below, save
from scored import frame_by_sklearn

from medlib import files
from medlib.grid.notebooks import imports
from medlib.stats import bootstrap, draws, metrics, prediction, summaries

SUMMARY = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "seed", "metric"]
SUMMARY += ["value", "ci_low", "ci_high", "n_patients", "n_images", "rarest", "candidates"]
SUMMARY += ["delong_low", "delong_high", "undefined"]
# Only the table over seeds has these columns.
PROCEDURE = ["procedure_low", "procedure_high", "training", "training_share"]
Z = 1.959963984540054


def test_every_value_of_the_summary_is_that_of_scikit_learn(saved):
    results, predicted = saved
    by_seed, over_seeds = summaries.summarise(runs_below(results), resamples=50)
    assert list(by_seed.columns) == SUMMARY
    of_seeds = ["n_seeds" if name == "seed" else name for name in SUMMARY]
    assert list(over_seeds.columns) == [*of_seeds, "sd", *PROCEDURE]
    assert len(by_seed) == 2 * 2 * sum(len(metrics.applicable(len(c))) for c in CLASSES.values())
    assert not by_seed.duplicated(["task", "backbone", "seed", "metric"]).any()
    of_run = by_seed.set_index(["task", "backbone", "seed"]).sort_index()
    for (task, backbone, seed), frame in predicted.items():
        expected = frame_by_sklearn(frame, CLASSES[task])
        mine = of_run.loc[task, backbone, seed]
        values = dict(zip(mine["metric"], mine["value"], strict=True))
        assert set(values) == set(metrics.applicable(len(CLASSES[task])))
        assert values == pytest.approx(expected, rel=0, abs=1e-12)
        assert set(mine["pretraining"]) == {BACKBONES[backbone]}
        assert set(mine["regime"]) == {"frozen"}


def test_the_summary_counts_patients_samples_and_candidates(saved):
    for table in summaries.summarise(runs_below(saved[0]), resamples=20):
        assert set(table["n_patients"]) == {15}
        assert set(table["n_images"]) == {30}
        # The classes of one task have 8 and 7 of 15 patients, those of the other task 5 each.
        assert table.groupby("task")["rarest"].unique().map(list).to_dict() == {
            "mri": [7],
            "skin": [5],
        }
        assert set(table["candidates"]) == {CANDIDATES}


def test_the_rarest_class_is_counted_in_patients_and_candidates_are_those_of_the_cells_runs(
    tmp_path,
):
    frame = predictions("skin", 0, n_patients=8)  # nv and mel have three patients each, bcc has two
    few = frame[~frame["patient_id"].isin(["001", "004"])]  # mel has one patient, with two samples
    save(tmp_path, few, "skin", how={"candidates": 21}, regime="finetuned")
    save(tmp_path, few, "skin")
    for table in summaries.summarise(runs_below(tmp_path), resamples=20):
        assert set(table["rarest"]) == {1} and set(table["n_patients"]) == {6}
        assert table.groupby("regime")["candidates"].unique().map(list).to_dict() == {
            "finetuned": [21],
            "frozen": [CANDIDATES],
        }


def test_over_seeds_the_value_is_the_mean_and_the_spread_the_sample_standard_deviation(saved):
    results, predicted = saved
    _, over_seeds = summaries.summarise(runs_below(results), resamples=50)
    assert set(over_seeds["n_seeds"]) == {2}
    rows = over_seeds[over_seeds["metric"].isin(["accuracy", "f1_weighted", "auroc", "auprc"])]
    assert len(rows) == 2 * 2 * 4
    for row in rows.itertuples():
        a, b = (
            frame_by_sklearn(predicted[row.task, row.backbone, seed], CLASSES[row.task])[row.metric]
            for seed in (0, 1)
        )
        assert row.value == pytest.approx((a + b) / 2, rel=0, abs=1e-12)
        assert row.sd == pytest.approx(abs(a - b) / np.sqrt(2), rel=0, abs=1e-12)


def logit_ends(value, reach):
    """The interval that reaches ``reach`` to each side of ``value``, on the logit scale."""
    odds, factor = value / (1 - value), np.exp(reach / (value * (1 - value)))
    return odds / factor / (1 + odds / factor), odds * factor / (1 + odds * factor)


def accuracy_draws(frame, resamples):
    """The accuracy on draws of patients who have two samples each."""
    hit = (frame["prob_high"] > 0.5) == (frame["y_true"] == "high")
    by_patient = hit.groupby(frame["patient_id"]).mean()
    counts = draws.counts(list(by_patient.index), 0, resamples).astype(float)
    return counts @ by_patient.to_numpy() / counts.sum(1)


def test_intervals_are_those_of_drawing_patients_the_same_for_every_seed(saved):
    results, predicted = saved
    by_seed, over_seeds = summaries.summarise(runs_below(results), resamples=60)
    values = [accuracy_draws(predicted["mri", "dinov2_small", seed], 60) for seed in (0, 1)]
    cell = "task == 'mri' and backbone == 'dinov2_small' and metric == 'accuracy'"
    for seed in (0, 1):
        row = by_seed.query(cell + " and seed == @seed").iloc[0]
        expected = logit_ends(row.value, Z * np.std(values[seed], ddof=1))
        assert (row.ci_low, row.ci_high) == pytest.approx(expected, rel=0, abs=1e-12)
    row = over_seeds.query(cell).iloc[0]
    expected = logit_ends(row.value, Z * np.std((values[0] + values[1]) / 2, ddof=1))
    assert (row.ci_low, row.ci_high) == pytest.approx(expected, rel=0, abs=1e-12)


# ----------------------------------------------------- intervals of the procedure, trained again


def redrawn(names, seed=0, n=30):
    """The table of a run's redraws. One redraw lacks a class, so its metrics are undefined."""
    table = pd.DataFrame(
        np.random.default_rng(seed).normal(0.8, 0.03, (n, len(names))), columns=names
    )
    table.iloc[4] = np.nan
    return table


def expected_procedure(patients, parts):
    """The reach of the interval (Satterthwaite), and the share of training in the variance.

    ``patients`` is the standard error over patients. ``parts`` are the variances due to training,
    with their degrees of freedom.
    """
    training = sum(variance for variance, _ in parts)
    both = patients**2 + training
    df = both**2 / sum(variance**2 / df for variance, df in parts)
    reach = scipy.stats.t.ppf(0.975, df) * np.sqrt(both)
    return reach, training / both


def of_seeds(frames):
    """The accuracy of each seed, and the standard error of their mean over patients."""
    accuracies = [frame_by_sklearn(frame, CLASSES["mri"])["accuracy"] for frame in frames]
    drawn = np.mean([accuracy_draws(frame, 60) for frame in frames], axis=0)
    return accuracies, np.std(drawn, ddof=1)


def of_procedure(tmp_path, metric="accuracy"):
    _, over_seeds = summaries.summarise(runs_below(tmp_path), resamples=60)
    return over_seeds.set_index("metric").loc[metric]


def test_a_frozen_procedure_varies_with_its_patients_and_their_redraws(tmp_path):
    frame, again = predictions("mri", 0), redrawn(metrics.applicable(2))
    save(tmp_path, frame, redraws=again)
    row = of_procedure(tmp_path)
    parts = [(np.var(again["accuracy"].dropna(), ddof=1), 28)]  # 29 redraws are defined
    patients = np.std(accuracy_draws(frame, 60), ddof=1)
    reach, share = expected_procedure(patients, parts)
    assert row["training"] == "redraws"
    assert row["training_share"] == pytest.approx(share, abs=1e-12) and 0.01 < share < 0.9
    ends = row["procedure_low"], row["procedure_high"]
    assert ends == pytest.approx(logit_ends(row["value"], reach), rel=0, abs=1e-12)
    assert ends[0] < row["ci_low"] < row["ci_high"] < ends[1]
    # A loss has no bounds, so its interval is symmetric.
    row = of_procedure(tmp_path, "log_loss")
    drawn = bootstrap.bootstrap(frame, CLASSES["mri"], 60, names=["log_loss"])["log_loss"]
    parts = [(np.var(again["log_loss"].dropna(), ddof=1), 28)]
    reach, _ = expected_procedure(np.std(drawn, ddof=1), parts)
    ends, value = (row["procedure_low"], row["procedure_high"]), row["value"]
    assert ends == pytest.approx((value - reach, value + reach), rel=0, abs=1e-12)
    # The calibration error has no interval, because none covers the truth.
    row = of_procedure(tmp_path, "ece")
    assert row[["ci_low", "ci_high", "procedure_low", "procedure_high"]].isna().all()


def test_a_fine_tuned_procedure_varies_with_its_patients_and_its_seeds(tmp_path):
    frames = [predictions("mri", seed) for seed in (0, 1, 2)]
    for seed, frame in enumerate(frames):
        save(tmp_path, frame, seed=seed, regime="finetuned")
    row = of_procedure(tmp_path)
    accuracies, patients = of_seeds(frames)
    parts = [(np.var(accuracies, ddof=1) / 3, 2)]
    reach, share = expected_procedure(patients, parts)
    assert row["training"] == "seeds" and row["n_seeds"] == 3
    assert row["training_share"] == pytest.approx(share, abs=1e-12) and share > 0.01
    ends = row["procedure_low"], row["procedure_high"]
    assert ends == pytest.approx(logit_ends(np.mean(accuracies), reach), rel=0, abs=1e-12)


def test_a_random_control_varies_with_redraws_and_with_the_seeds_of_its_weights(tmp_path):
    frames = [predictions("mri", seed) for seed in (0, 1)]
    again = [redrawn(metrics.applicable(2), seed) for seed in (0, 1)]
    for seed in (0, 1):
        save(tmp_path, frames[seed], seed=seed, pretraining="random", redraws=again[seed])
    row = of_procedure(tmp_path)
    accuracies, patients = of_seeds(frames)
    mean = (again[0]["accuracy"] + again[1]["accuracy"]).dropna() / 2
    parts = [(np.var(mean, ddof=1), 28), (np.var(accuracies, ddof=1) / 2, 1)]
    reach, share = expected_procedure(patients, parts)
    assert row["training"] == "redraws and seeds"
    assert row["training_share"] == pytest.approx(share, abs=1e-12)
    ends = row["procedure_low"], row["procedure_high"]
    assert ends == pytest.approx(logit_ends(np.mean(accuracies), reach), rel=0, abs=1e-12)


@pytest.mark.parametrize("given", [{"head": "knn"}, {"regime": "finetuned"}])
def test_one_training_does_not_say_how_a_procedure_varies(tmp_path, given):
    save(tmp_path, predictions("mri", 0), **given)
    row = of_procedure(tmp_path)
    assert row["training"] == ""
    assert row[["procedure_low", "procedure_high", "training_share"]].isna().all()
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_a_single_seed_has_the_same_interval_in_both_tables_and_no_spread(tmp_path):
    save(tmp_path, predictions("skin", 3), "skin", seed=4)
    by_seed, over_seeds = summaries.summarise(runs_below(tmp_path), resamples=80)
    assert set(by_seed["seed"]) == {4} and set(over_seeds["n_seeds"]) == {1}
    assert over_seeds["sd"].isna().all()
    same = ["metric", "value", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(by_seed[same], over_seeds[same], check_exact=True)
    calibration = by_seed["metric"] == "ece"  # it has no interval
    assert by_seed.loc[calibration, ["ci_low", "ci_high"]].isna().all(axis=None)
    middle = by_seed[~calibration]
    assert (middle["ci_low"] < middle["value"]).all()
    assert (middle["value"] < middle["ci_high"]).all()


def test_the_order_in_which_predictions_were_written_does_not_matter(tmp_path):
    frame = predictions("mri", 0)
    save(tmp_path / "a", frame)
    save(tmp_path / "b", frame.sample(frac=1, random_state=1))
    for first, second in zip(
        summaries.summarise(runs_below(tmp_path / "a"), 40),
        summaries.summarise(runs_below(tmp_path / "b"), 40),
        strict=True,
    ):
        pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=0, atol=1e-12)


def test_label_fractions_and_heads_are_cells_of_their_own(tmp_path):
    arms = {("linear", 1.0): 0, ("linear", 0.1): 1, ("knn", 1.0): 2}
    frames = {arm: predictions("mri", seed) for arm, seed in arms.items()}
    for (head, fraction), frame in frames.items():
        save(tmp_path, frame, head=head, label_fraction=fraction)
    _, over_seeds = summaries.summarise(runs_below(tmp_path), resamples=20)
    areas = over_seeds.query("metric == 'auroc'").set_index(["head", "label_fraction"])["value"]
    expected = {arm: frame_by_sklearn(f, CLASSES["mri"])["auroc"] for arm, f in frames.items()}
    assert areas.to_dict() == pytest.approx(expected, rel=0, abs=1e-12)


def test_losses_and_kappas_have_the_corrected_interval_and_beside_auroc_stands_delongs(saved):
    results, predicted = saved
    by_seed, over_seeds = summaries.summarise(runs_below(results), resamples=300)
    mine = over_seeds.query("task == 'mri' and backbone == 'dinov2_small'").set_index("metric")
    frames = [predicted["mri", "dinov2_small", seed] for seed in (0, 1)]
    classes, patients = CLASSES["mri"], sorted(set(frames[0]["patient_id"]))
    for name in ("log_loss", "brier", "kappa"):
        drawn = [bootstrap.bootstrap(frame, classes, 300)[name] for frame in frames]
        left_out = [
            np.mean([prediction.point(f[f["patient_id"] != p], classes)[name] for f in frames])
            for p in patients
        ]
        expected = bootstrap.bca_interval(
            np.mean(drawn, axis=0), mine.loc[name, "value"], np.array(left_out)
        )
        corrected = mine.loc[name, ["ci_low", "ci_high"]].tolist()
        assert corrected == pytest.approx(expected, abs=1e-12)
    y = (frames[0]["y_true"] == "high").astype(int)
    scores = np.stack([frame["prob_high"] for frame in frames])
    _, covariance = bootstrap.delong(y, scores, frames[0]["patient_id"])
    half = Z * np.sqrt(covariance.mean())
    row = mine.loc["auroc"]
    assert row["delong_low"] == pytest.approx(row["value"] - half, abs=1e-12)
    assert row["delong_high"] == pytest.approx(min(1, row["value"] + half), abs=1e-12)
    assert over_seeds.query("task == 'skin' or metric != 'auroc'")["delong_low"].isna().all()
    one = by_seed.query("task == 'mri' and backbone == 'dinov2_small' and metric == 'auroc'")
    half = (one["delong_high"] - one["delong_low"]).to_numpy() / 2
    uncut = (one["delong_high"] < 1).to_numpy()
    expected = Z * np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(half[uncut], expected[uncut], rtol=0, atol=1e-12)


def test_the_share_of_resamples_that_lack_a_class_is_stated(tmp_path):
    frame = predictions("skin", 0, n_patients=5)  # nv and mel have two patients each, bcc has one
    save(tmp_path, frame, "skin")
    by_seed, _ = summaries.summarise(runs_below(tmp_path), resamples=2000)
    undefined = by_seed.set_index("metric")["undefined"]
    # AUROC needs a drawn patient of every class; accuracy needs any drawn patient.
    p = 1 - (1 - np.exp(-2)) ** 2 * (1 - np.exp(-1))
    for name, share in (("auroc", p), ("accuracy", np.exp(-5))):
        error = np.sqrt(share * (1 - share) / 2000)
        assert undefined[name] == pytest.approx(share, abs=4 * error), name


def test_grades_in_order_have_a_quadratic_kappa(tmp_path):
    frame = predictions("skin", 0)
    save(tmp_path, frame, "skin")
    plain, _ = summaries.summarise(runs_below(tmp_path), 20)
    ordered, _ = summaries.summarise(runs_below(tmp_path), 20, ordered=["skin"])
    assert set(ordered["metric"]) - set(plain["metric"]) == {"kappa_quadratic"}


# ----------------------------------------------------------------------------------- kept rows


def as_text(tables):
    return [table.to_csv(index=False) for table in tables]


def test_rows_that_were_kept_are_those_made_anew_to_the_last_byte(saved, made):
    folders, kept = runs_below(saved[0]), kept_below(saved[0])

    def again():
        return as_text(summaries.summarise(folders, 50, ["skin"], kept=kept))

    first = again()
    assert len(made) == 4
    assert again() == first and len(made) == 4
    # Some of the runs are read in another order, by a single thread.
    few, _ = summaries.summarise(folders[::-1][:4], 50, ["skin"], threads=1, kept=kept)
    assert set(few["task"]) == {"skin"} and len(made) == 4
    assert few.to_csv(index=False).splitlines()[1:] == [
        line for line in first[0].splitlines() if line.startswith("skin")
    ]
    for task in CLASSES:
        for backbone in BACKBONES:
            kept(task, backbone).unlink()
    assert again() == first and len(made) == 8


def test_rows_are_made_again_when_anything_they_follow_from_is_another(saved, made, monkeypatch):
    results, predicted = saved
    folders = runs_below(results)
    summarise = functools.partial(summaries.summarise, kept=kept_below(results))
    summarise(folders, 50)
    made.clear()
    summarise(folders, 51)
    assert len(made) == 4
    summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2
    # If one seed is run again, only its cell is made again, with the new numbers.
    frame = predicted["mri", "dinov2_small", 0].iloc[::-1].copy()
    frame[["prob_low", "prob_high"]] = frame[["prob_high", "prob_low"]].to_numpy()
    save(results, frame, "mri", "dinov2_small", 0)
    by_seed, _ = summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2 + 1
    cell = "task == 'mri' and backbone == 'dinov2_small' and seed == 0 and metric == 'auroc'"
    expected = frame_by_sklearn(frame, CLASSES["mri"])["auroc"]
    assert by_seed.query(cell)["value"].tolist() == pytest.approx([expected], abs=1e-12)
    monkeypatch.setattr(summaries, "_code", lambda: "edited")
    summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2 + 1 + 4


def test_rows_depend_on_every_module_that_makes_them():
    below, todo = set(), {Path(summaries.__file__)}
    while todo:
        below |= todo
        todo = set().union(*(imports(file.read_text("utf-8")) for file in todo)) - below
    makers = {f for f in below if f.parent.name == "stats" or f.match("core/metrics.py")}
    assert set(summaries._code()) == {files.file_sha256(file) for file in makers}


def test_rows_are_made_again_when_the_redraws_of_a_run_are_others(tmp_path, made):
    frame, kept = predictions("mri", 0), kept_below(tmp_path)
    tables = []
    for seed in (None, 1, 1, 2):
        again = None if seed is None else redrawn(metrics.applicable(2), seed)
        save(tmp_path, frame, redraws=again)
        tables.append(summaries.summarise(runs_below(tmp_path), 20, kept=kept)[1])
    assert len(made) == 3  # no redraws, then some, then other ones
    none, some, same, others = (table.set_index("metric") for table in tables)
    pd.testing.assert_frame_equal(some, same, check_exact=True)
    columns = ["procedure_low", "procedure_high"]
    assert none.loc["auroc", columns].isna().all()
    assert (some.loc["auroc", columns] != others.loc["auroc", columns]).all()
    assert some.loc["auroc", "ci_low"] == others.loc["auroc", "ci_low"]


def test_rows_are_made_again_when_a_run_chose_among_more_candidates(tmp_path, made):
    for candidates in (7, 14):
        save(tmp_path, predictions("mri", 0), how={"candidates": candidates})
        table, _ = summaries.summarise(runs_below(tmp_path), 20, kept=kept_below(tmp_path))
        assert set(table["candidates"]) == {candidates}
    assert len(made) == 2


@pytest.mark.parametrize("harm", ["{", "[]", "{}", "", "\x80"])
def test_a_damaged_file_of_kept_rows_is_made_again(saved, made, harm):
    folders, kept = runs_below(saved[0]), kept_below(saved[0])
    first = as_text(summaries.summarise(folders, 20, kept=kept))
    path = kept("mri", "dinov2_small")
    path.write_text(harm, encoding="latin-1")
    assert as_text(summaries.summarise(folders, 20, kept=kept)) == first and len(made) == 4 + 1
    assert json.loads(path.read_text())


def test_without_a_place_no_rows_are_kept(saved, made):
    before = sorted(saved[0].rglob("*"))
    first, again = (as_text(summaries.summarise(runs_below(saved[0]), 20)) for _ in range(2))
    assert first == again and len(made) == 8 and sorted(saved[0].rglob("*")) == before


def test_a_grid_that_states_no_resamples_gets_as_many_as_its_notebooks_draw(repository):
    default = inspect.signature(summaries.summarise).parameters["resamples"].default
    notebook = json.loads((repository / "notebooks" / "05_collect_results.ipynb").read_text())
    code = "".join(line for cell in notebook["cells"] for line in cell["source"])
    assert f"resamples: int = {default} " in code


def test_costs_of_a_frozen_arm_include_those_of_its_embedding(tmp_path):
    embedding = {"seconds": 10.0, "peak_memory_bytes": {"resident": 90, "gpu": 70}, "gpu": "a GPU"}
    frozen = {"parameters": 22, "embedding": embedding, "train_patients": 5.0}
    memory = {"resident": 50, "gpu": None}
    for seed, seconds in ((0, 1.0), (1, 3.0)):
        record = {"seconds": seconds, "how": frozen, "peak_memory_bytes": memory}
        save(tmp_path, predictions("mri", 0), seed=seed, **record)
    (row,) = summaries.costs(runs_below(tmp_path)).to_dict("records")
    assert row["seconds"] == 12 and row["parameters"] == 22
    assert row["memory"] == 70 and row["device"] == "a GPU"
    record = {"seconds": 7.0, "how": {"parameters": 23}, "regime": "finetuned"}
    record["peak_memory_bytes"] = {"resident": 40, "gpu": None}
    save(tmp_path, predictions("mri", 0), seed=2, **record)
    costs = summaries.costs(runs_below(tmp_path)).set_index("regime")
    assert costs.loc["finetuned", ["seconds", "parameters", "memory"]].tolist() == [7, 23, 40]
    assert costs["device"].to_dict() == {"finetuned": "CPU", "frozen": "a GPU"}


def test_frozen_runs_that_do_not_record_their_embedding_are_named(tmp_path):
    record = {"seconds": 1.0, "how": {}, "peak_memory_bytes": {"resident": 1, "gpu": None}}
    folder = save(tmp_path, predictions("mri", 0), **record)
    with pytest.raises(ValueError, match="1 records.*embedding") as caught:
        summaries.costs([folder])
    assert str(folder) in str(caught.value)


def test_tasks_may_have_samples_of_their_own(tmp_path):
    save(tmp_path, predictions("mri", 0))
    save(tmp_path, predictions("skin", 0, n_patients=9), "skin")
    by_seed, _ = summaries.summarise(runs_below(tmp_path), resamples=5)
    sizes = by_seed.groupby("task")["n_patients"].unique().map(list).to_dict()
    assert sizes == {"mri": [15], "skin": [9]}
