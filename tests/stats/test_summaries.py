"""medlib.stats.summaries: tables that scikit-learn confirms, of runs judged on the same samples."""

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import BACKBONES, CLASSES, kept_below, predictions, runs_below, save
from scored import frame_by_sklearn

from medlib import files
from medlib.grid.notebooks import imports
from medlib.stats import bootstrap, metrics, prediction, summaries

SUMMARY = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "seed", "metric"]
SUMMARY += ["value", "ci_low", "ci_high", "n_patients", "n_images", "bca_low", "bca_high"]
SUMMARY += ["delong_low", "delong_high", "undefined"]


def test_every_value_of_the_summary_is_that_of_scikit_learn(saved):
    results, predicted = saved
    by_seed, _ = summaries.summarise(runs_below(results), resamples=50)
    assert list(by_seed.columns) == SUMMARY
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


def test_the_summary_counts_patients_and_samples(saved):
    for table in summaries.summarise(runs_below(saved[0]), resamples=20):
        assert set(table["n_patients"]) == {15}
        assert set(table["n_images"]) == {30}


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


def test_intervals_are_those_of_drawing_patients_the_same_for_every_seed(saved):
    results, predicted = saved
    by_seed, over_seeds = summaries.summarise(runs_below(results), resamples=60)
    seed = bootstrap.stream(predicted["mri", "dinov2_small", 0])
    draws = np.random.default_rng(seed).integers(15, size=(60, 15))
    values = {0: [], 1: []}
    for seed, frame in ((s, predicted["mri", "dinov2_small", s]) for s in (0, 1)):
        hit = (frame["prob_high"] > 0.5) == (frame["y_true"] == "high")
        values[seed] = hit.groupby(frame["patient_id"]).mean().to_numpy()[draws].mean(1)
    cell = "task == 'mri' and backbone == 'dinov2_small' and metric == 'accuracy'"
    for seed in (0, 1):
        row = by_seed.query(cell + " and seed == @seed").iloc[0]
        expected = np.quantile(values[seed], (0.025, 0.975))
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(expected), rel=0, abs=1e-12)
    row = over_seeds.query(cell).iloc[0]
    expected = np.quantile((values[0] + values[1]) / 2, (0.025, 0.975))
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(expected), rel=0, abs=1e-12)


def test_a_single_seed_has_the_same_interval_in_both_tables_and_no_spread(tmp_path):
    save(tmp_path, predictions("skin", 3), "skin", seed=4)
    by_seed, over_seeds = summaries.summarise(runs_below(tmp_path), resamples=80)
    assert set(by_seed["seed"]) == {4} and set(over_seeds["n_seeds"]) == {1}
    assert over_seeds["sd"].isna().all()
    for column in ("metric", "value", "ci_low", "ci_high"):
        assert by_seed[column].tolist() == over_seeds[column].tolist()
    middle = by_seed[
        by_seed["metric"] != "ece"
    ]  # resampling adds noise, which increases the calibration error
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


def test_beside_percentiles_stand_the_corrected_interval_and_delongs(saved):
    results, predicted = saved
    by_seed, over_seeds = summaries.summarise(runs_below(results), resamples=300)
    mine = over_seeds.query("task == 'mri' and backbone == 'dinov2_small'").set_index("metric")
    frames = [predicted["mri", "dinov2_small", seed] for seed in (0, 1)]
    classes, patients = CLASSES["mri"], sorted(set(frames[0]["patient_id"]))
    for name in ("auroc", "accuracy"):
        draws = [bootstrap.bootstrap(f, classes, 300, bootstrap.stream(f))[name] for f in frames]
        left_out = [
            np.mean([prediction.point(f[f["patient_id"] != p], classes)[name] for f in frames])
            for p in patients
        ]
        expected = bootstrap.bca_interval(
            np.mean(draws, axis=0), mine.loc[name, "value"], np.array(left_out)
        )
        corrected = mine.loc[name, ["bca_low", "bca_high"]].tolist()
        assert corrected == pytest.approx(expected, abs=1e-12)
    y = (frames[0]["y_true"] == "high").astype(int)
    scores = np.stack([frame["prob_high"] for frame in frames])
    _, covariance = bootstrap.delong(y, scores, frames[0]["patient_id"])
    half = 1.959963984540054 * np.sqrt(covariance.mean())
    row = mine.loc["auroc"]
    assert row["delong_low"] == pytest.approx(row["value"] - half, abs=1e-12)
    assert row["delong_high"] == pytest.approx(min(1, row["value"] + half), abs=1e-12)
    assert over_seeds.query("task == 'skin' or metric != 'auroc'")["delong_low"].isna().all()
    one = by_seed.query("task == 'mri' and backbone == 'dinov2_small' and metric == 'auroc'")
    half = (one["delong_high"] - one["delong_low"]).to_numpy() / 2
    uncut = (one["delong_high"] < 1).to_numpy()
    expected = 1.959963984540054 * np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(half[uncut], expected[uncut], rtol=0, atol=1e-12)


def test_the_share_of_resamples_that_lack_a_class_is_stated(tmp_path):
    frame = predictions("skin", 0, n_patients=5)  # two patients of nv and of mel, one of bcc
    save(tmp_path, frame, "skin")
    by_seed, _ = summaries.summarise(runs_below(tmp_path), resamples=500)
    undefined = by_seed.set_index("metric")["undefined"]
    # One class missing: (4/5)^5 + 2 (3/5)^5, minus the draws in which two are missing.
    p = (4**5 + 2 * 3**5 - (2 * 2**5 + 1)) / 5**5
    assert undefined["auroc"] == pytest.approx(p, abs=0.09) and undefined["accuracy"] == 0


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
    # Some of the runs, in another order, by a single thread.
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
    # One seed is run again: only its cell is made again, with the new numbers.
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


def test_a_cell_that_becomes_a_main_one_gets_its_corrected_interval(tmp_path, made):
    folder = save(tmp_path, predictions("mri", 0), label_fraction=0.5)
    summarise = functools.partial(summaries.summarise, [folder], 50, kept=kept_below(tmp_path))
    plain, main = (summarise(trained=trained)[0] for trained in ([], [("mri", 0.5)]))
    assert plain["bca_low"].isna().all() and main["bca_low"].notna().any() and len(made) == 2


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
