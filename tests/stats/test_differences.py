"""medlib.compare: summary tables that scikit-learn confirms, of runs judged on the same samples;
and differences between them, paired, corrected, and tested for equivalence."""

import inspect
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from sklearn import metrics as sk

from medlib import files
from medlib.grid import address, jobs, records, summarise
from medlib.stats import bootstrap, differences, metrics, prediction, summaries
from medlib.stats.runs import is_main, read_predictions, stream

CLASSES = {"mri": ["low", "high"], "skin": ["nv", "mel", "bcc"]}
BACKBONES = {"dinov2_small": "dinov2", "resnet50-imagenet": "imagenet"}
SUMMARY = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "seed", "metric",
           "value", "ci_low", "ci_high", "n_patients", "n_images", "bca_low", "bca_high",
           "delong_low", "delong_high", "undefined"]  # fmt: skip


def predictions(task, seed, n_patients=15):
    """Two samples a patient, a number for an id, every class there."""
    classes, rng = CLASSES[task], np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 2)
    y = patient % len(classes)
    proba = rng.dirichlet(np.ones(len(classes)), size=len(y)) * 0.7 + 0.3 * np.eye(len(classes))[y]
    frame = pd.DataFrame({"sample_id": [f"{i:03d}" for i in range(len(y))]})
    frame["patient_id"] = [f"{p:03d}" for p in patient]
    frame["split"], frame["y_true"] = "test", [classes[label] for label in y]
    frame[[f"prob_{name}" for name in classes]] = proba
    return frame


def save(results, frame, task="mri", backbone="dinov2_small", seed=0, fraction=1.0, head="linear"):
    folder = address.run_folder(results, task, backbone, "frozen", head, fraction, seed)
    coordinates = {
        "task": task, "backbone": backbone, "pretraining": BACKBONES[backbone],
        "regime": "frozen", "head": head, "label_fraction": fraction, "seed": seed,
    }  # fmt: skip
    records.save_run(
        folder, coordinates=coordinates, parameters={}, inputs={}, predictions=frame,
        history=pd.DataFrame({"value": [1.0]}), metrics={}, seconds=1.0,
    )  # fmt: skip
    return folder


def by_sklearn(frame, classes):
    y = frame["y_true"].map(classes.index).to_numpy()
    proba = frame[[f"prob_{name}" for name in classes]].to_numpy()
    predicted = proba.argmax(1)
    ranked = [1] if len(classes) == 2 else range(len(classes))
    average = dict(average="weighted", zero_division=0)
    return {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision_weighted": sk.precision_score(y, predicted, **average),
        "recall_weighted": sk.recall_score(y, predicted, **average),
        "f1_weighted": sk.f1_score(y, predicted, **average),
        "auroc": np.mean([sk.roc_auc_score(y == c, proba[:, c]) for c in ranked]),
        "auprc": np.mean([sk.average_precision_score(y == c, proba[:, c]) for c in ranked]),
    }


@pytest.fixture
def grid(tmp_path):
    """2 tasks × 2 backbones × 2 seeds, and the predictions of each run."""
    runs = {}
    for task in CLASSES:
        for number, backbone in enumerate(BACKBONES):
            for seed in (0, 1):
                frame = predictions(task, seed=10 * number + seed)
                runs[task, backbone, seed] = frame
                save(tmp_path, frame, task, backbone, seed)
    return tmp_path, runs


def test_every_value_of_the_summary_is_that_of_scikit_learn(grid):
    results, runs = grid
    by_seed, _ = summaries.summarise(address.find_runs(results), resamples=50)
    assert list(by_seed.columns) == SUMMARY
    assert len(by_seed) == 2 * 2 * sum(len(metrics.applicable(len(c))) for c in CLASSES.values())
    assert not by_seed.duplicated(["task", "backbone", "seed", "metric"]).any()
    of_run = by_seed.set_index(["task", "backbone", "seed"]).sort_index()
    for (task, backbone, seed), frame in runs.items():
        expected = by_sklearn(frame, CLASSES[task])
        mine = of_run.loc[task, backbone, seed]
        found = dict(zip(mine["metric"], mine["value"], strict=True))
        assert set(found) == set(metrics.applicable(len(CLASSES[task])))
        assert {n: found[n] for n in expected} == pytest.approx(expected, rel=0, abs=1e-12)
        assert set(mine["pretraining"]) == {BACKBONES[backbone]}
        assert set(mine["regime"]) == {"frozen"}


def test_the_summary_counts_patients_and_samples(grid):
    for table in summaries.summarise(address.find_runs(grid[0]), resamples=20):
        assert set(table["n_patients"]) == {15}
        assert set(table["n_images"]) == {30}


def test_over_seeds_the_value_is_the_mean_and_the_spread_the_sample_standard_deviation(grid):
    results, runs = grid
    _, over_seeds = summaries.summarise(address.find_runs(results), resamples=50)
    assert set(over_seeds["n_seeds"]) == {2}
    rows = over_seeds[over_seeds["metric"].isin(["accuracy", "f1_weighted", "auroc", "auprc"])]
    assert len(rows) == 2 * 2 * 4
    for row in rows.itertuples():
        a, b = (
            by_sklearn(runs[row.task, row.backbone, seed], CLASSES[row.task])[row.metric]
            for seed in (0, 1)
        )
        assert row.value == pytest.approx((a + b) / 2, rel=0, abs=1e-12)
        assert row.sd == pytest.approx(abs(a - b) / np.sqrt(2), rel=0, abs=1e-12)


def test_intervals_are_those_of_drawing_patients_the_same_for_every_seed(grid):
    results, runs = grid
    by_seed, over_seeds = summaries.summarise(address.find_runs(results), resamples=60)
    seed = stream(runs["mri", "dinov2_small", 0])
    draws = np.random.default_rng(seed).integers(15, size=(60, 15))
    values = {0: [], 1: []}
    for seed, frame in ((s, runs["mri", "dinov2_small", s]) for s in (0, 1)):
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
    by_seed, over_seeds = summaries.summarise(address.find_runs(tmp_path), resamples=80)
    assert set(by_seed["seed"]) == {4} and set(over_seeds["n_seeds"]) == {1}
    assert over_seeds["sd"].isna().all()
    for column in ("metric", "value", "ci_low", "ci_high"):
        assert by_seed[column].tolist() == over_seeds[column].tolist()
    middle = by_seed[by_seed["metric"] != "ece"]  # resampling adds noise, which adds to an error
    assert (middle["ci_low"] < middle["value"]).all()
    assert (middle["value"] < middle["ci_high"]).all()


def test_the_order_in_which_predictions_were_written_does_not_matter(tmp_path):
    frame = predictions("mri", 0)
    save(tmp_path / "a", frame)
    save(tmp_path / "b", frame.sample(frac=1, random_state=1))
    for first, second in zip(
        summaries.summarise(address.find_runs(tmp_path / "a"), 40),
        summaries.summarise(address.find_runs(tmp_path / "b"), 40),
        strict=True,
    ):
        pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=0, atol=1e-12)


def test_label_fractions_and_heads_are_cells_of_their_own(tmp_path):
    arms = {("linear", 1.0): 0, ("linear", 0.1): 1, ("knn", 1.0): 2}
    frames = {arm: predictions("mri", seed) for arm, seed in arms.items()}
    for (head, fraction), frame in frames.items():
        save(tmp_path, frame, head=head, fraction=fraction)
    _, over_seeds = summaries.summarise(address.find_runs(tmp_path), resamples=20)
    found = over_seeds.query("metric == 'auroc'").set_index(["head", "label_fraction"])["value"]
    assert found.to_dict() == pytest.approx(
        {arm: by_sklearn(frame, CLASSES["mri"])["auroc"] for arm, frame in frames.items()},
        rel=0, abs=1e-12,
    )  # fmt: skip


def test_ids_and_labels_that_look_like_numbers_or_missing_values_stay_text(tmp_path):
    frame = predictions("mri", 0)
    frame["y_true"] = frame["y_true"].map({"low": "NA", "high": "1"})
    frame = frame.rename(columns={"prob_low": "prob_NA", "prob_high": "prob_1"})
    folder = save(tmp_path, frame)
    read, classes = read_predictions(folder)
    assert classes == ["NA", "1"]
    pd.testing.assert_frame_equal(read, frame, check_exact=True)  # floats too, to the last bit
    by_seed, _ = summaries.summarise(address.find_runs(tmp_path), resamples=20)
    found = by_seed.set_index("metric")["value"].to_dict()
    expected = by_sklearn(frame, ["NA", "1"])
    assert {n: found[n] for n in expected} == pytest.approx(expected, rel=0, abs=1e-12)


def test_beside_percentiles_stand_the_corrected_interval_and_delongs(grid):
    results, runs = grid
    by_seed, over_seeds = summaries.summarise(address.find_runs(results), resamples=300)
    mine = over_seeds.query("task == 'mri' and backbone == 'dinov2_small'").set_index("metric")
    frames = [runs["mri", "dinov2_small", seed] for seed in (0, 1)]
    classes, patients = CLASSES["mri"], sorted(set(frames[0]["patient_id"]))
    for name in ("auroc", "accuracy"):
        draws = [bootstrap.bootstrap(f, classes, 300, stream(f))[name] for f in frames]
        left_out = [
            np.mean([prediction.point(f[f["patient_id"] != p], classes)[name] for f in frames])
            for p in patients
        ]
        expected = bootstrap.bca_interval(
            np.mean(draws, axis=0), mine.loc[name, "value"], np.array(left_out)
        )
        found = mine.loc[name, ["bca_low", "bca_high"]].tolist()
        assert found == pytest.approx(expected, abs=1e-12)
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
    by_seed, _ = summaries.summarise(address.find_runs(tmp_path), resamples=500)
    found = by_seed.set_index("metric")["undefined"]
    # No patient of a class: (4/5)^5, (3/5)^5 twice; of two classes at once: less those.
    p = (4**5 + 2 * 3**5 - (2 * 2**5 + 1)) / 5**5
    assert found["auroc"] == pytest.approx(p, abs=0.09) and found["accuracy"] == 0


def test_grades_in_order_have_a_quadratic_kappa(tmp_path):
    frame = predictions("skin", 0)
    save(tmp_path, frame, "skin")
    plain, _ = summaries.summarise(address.find_runs(tmp_path), 20)
    ordered, _ = summaries.summarise(address.find_runs(tmp_path), 20, ordered=["skin"])
    assert set(ordered["metric"]) - set(plain["metric"]) == {"kappa_quadratic"}


# ----------------------------------------------------------------------------------- kept rows


@pytest.fixture
def made(monkeypatch):
    """How often the rows of a cell have been made."""
    calls, make = [], summaries._summarise_cell
    monkeypatch.setattr(summaries, "_summarise_cell", lambda *a: calls.append(a) or make(*a))
    return calls


def as_text(tables):
    return [table.to_csv(index=False) for table in tables]


def test_rows_that_were_kept_are_those_made_anew_to_the_last_byte(grid, made):
    folders = address.find_runs(grid[0])
    first = as_text(summaries.summarise(folders, 50, ["skin"]))
    assert len(made) == 4
    assert as_text(summaries.summarise(folders, 50, ["skin"])) == first and len(made) == 4
    # Some of the runs, in another order, by a single thread.
    few, _ = summaries.summarise(folders[::-1][:4], 50, ["skin"], threads=1)
    assert set(few["task"]) == {"skin"} and len(made) == 4
    assert few.to_csv(index=False).splitlines()[1:] == [
        line for line in first[0].splitlines() if line.startswith("skin")
    ]
    for path in grid[0].glob(f"runs/*/*/{summaries.KEPT}"):
        path.unlink()
    assert as_text(summaries.summarise(folders, 50, ["skin"])) == first and len(made) == 8


def test_rows_are_made_again_when_anything_they_follow_from_is_another(grid, made, monkeypatch):
    results, runs = grid
    folders = address.find_runs(results)
    summaries.summarise(folders, 50)
    made.clear()
    summaries.summarise(folders, 51)
    assert len(made) == 4
    summaries.summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2
    # Another run of one seed: its cell alone, and with its numbers.
    frame = runs["mri", "dinov2_small", 0].iloc[::-1].copy()
    frame[["prob_low", "prob_high"]] = frame[["prob_high", "prob_low"]].to_numpy()
    save(results, frame, "mri", "dinov2_small", 0)
    by_seed, _ = summaries.summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2 + 1
    cell = "task == 'mri' and backbone == 'dinov2_small' and seed == 0 and metric == 'auroc'"
    expected = by_sklearn(frame, CLASSES["mri"])["auroc"]
    assert by_seed.query(cell)["value"].tolist() == pytest.approx([expected], abs=1e-12)
    monkeypatch.setattr(summaries, "_code", lambda: "edited")
    summaries.summarise(folders, 51, ["skin"])
    assert len(made) == 4 + 2 + 1 + 4


def test_a_cell_that_becomes_a_main_one_gets_its_corrected_interval(tmp_path, made):
    folder = save(tmp_path, predictions("mri", 0), fraction=0.5)
    (plain, _), (main, _) = (
        summaries.summarise([folder], 50, trained=trained) for trained in ([], [("mri", 0.5)])
    )
    assert plain["bca_low"].isna().all() and main["bca_low"].notna().any() and len(made) == 2


@pytest.mark.parametrize("harm", ["{", "[]", "{}", "", "\x80"])
def test_a_damaged_file_of_kept_rows_is_made_again(grid, made, harm):
    folders = address.find_runs(grid[0])
    first = as_text(summaries.summarise(folders, 20))
    path = folders[0].parents[1] / summaries.KEPT
    path.write_text(harm, encoding="latin-1")
    assert as_text(summaries.summarise(folders, 20)) == first and len(made) == 4 + 1
    assert json.loads(path.read_text())


def test_the_command_makes_the_rows_that_notebook_05_reads(tmp_path, made, monkeypatch, repository):
    results, task, backbone = tmp_path / "r", "fundus_pm", "resnet50-imagenet"
    frozen = {"backbones": [backbone], "image_size": 64, "heads": ["linear"],
              "label_fractions": [1.0, 0.5]}  # fmt: skip
    asked = {"title": "a", "data": "phantoms", "tasks": [task], "seeds": [0, 1], "frozen": frozen,
             "finetuned": {"backbones": ["dinov2_small"], "image_size": 56, "label_fraction": 0.5},
             "collect": {"resamples": 30}}  # fmt: skip
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(asked))
    for seed, fraction in ((0, 1.0), (0, 0.5), (1, 0.5)):
        save(results, predictions("mri", seed), task, backbone, seed, fraction)
    (results / "runs" / task / backbone / "frozen.csv").touch()
    (results / "manifests").mkdir()
    shutil.copy(repository / "data_manifests" / f"{task}.yaml", results / "manifests")
    words = [str(tmp_path / "g.yaml"), str(results), task, backbone]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    assert summarise.main() == 0 and len(made) == 2
    # With the runs of the other backbone there, half of the labels is a main cell without asking.
    trained = address.run_folder(results, task, "dinov2_small", "finetuned", "linear", 0.5, 0)
    shutil.copytree(results / "runs" / task / backbone / "frozen-linear" / "seed0", trained)
    record = files.read_json(trained / "run.json")
    record["coordinates"] |= {"backbone": "dinov2_small", "regime": "finetuned",
                              "label_fraction": 0.5}  # fmt: skip
    files.save_json(trained / "run.json", record)
    table, _ = summaries.summarise(address.find_runs(results), 30)
    assert len(made) == 2 + 1 and set(table["regime"]) == {"frozen", "finetuned"}
    before = (results / "runs" / task / backbone / summaries.KEPT).stat().st_mtime_ns
    assert summarise.main() == 0 and len(made) == 2 + 1
    assert (results / "runs" / task / backbone / summaries.KEPT).stat().st_mtime_ns > before


def test_the_command_records_why_it_could_not_and_tries_only_what_is_transient_again(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "g.yaml").write_text("title: of nothing else")
    kept = tmp_path / "r" / "runs" / "task" / "backbone" / summaries.KEPT
    words = ["compare", str(tmp_path / "g.yaml"), str(tmp_path / "r"), "task", "backbone"]
    monkeypatch.setattr(sys, "argv", words)
    assert summarise.main() == 1 and "g.yaml" in capsys.readouterr().err
    record = jobs.failed(kept)
    assert record["line"].startswith(f"{tmp_path / 'g.yaml'}") and not record["transient"]
    monkeypatch.setattr(sys, "argv", [*words, "--attempt", "2"])
    assert summarise.main() == 1 and not capsys.readouterr().err


def test_a_grid_that_states_no_resamples_gets_as_many_as_its_notebooks_draw(repository):
    default = inspect.signature(summaries.summarise).parameters["resamples"].default
    notebook = json.loads((repository / "notebooks" / "05_collect_results.ipynb").read_text())
    code = "".join(line for cell in notebook["cells"] for line in cell["source"])
    assert f"resamples: int = {default} " in code


# ---------------------------------------------------------------------------------- differences


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
        bootstrap.bootstrap(f, CLASSES["mri"], resamples, stream(f), names=["auroc"])["auroc"]
        for f in frames
    ]
    cell = {"task": task, "backbone": backbone, "pretraining": "imagenet", "regime": regime,
            "head": "linear", "label_fraction": fraction}  # fmt: skip
    return differences.Arm(
        cell, "auroc", float(np.mean(values)), np.mean(draws, axis=0), frames, CLASSES["mri"]
    )


def test_arms_are_the_cells_of_the_grid_with_draws_that_go_together(grid):
    results, runs = grid
    found = differences.arms(address.find_runs(results), ["auroc"], resamples=40)
    assert [(a.cell["task"], a.cell["backbone"]) for a in found] == [
        (task, backbone) for task in CLASSES for backbone in BACKBONES
    ]
    first = found[0]
    frames = [runs["mri", "dinov2_small", seed] for seed in (0, 1)]
    expected = np.mean([by_sklearn(f, CLASSES["mri"])["auroc"] for f in frames])
    assert first.value == pytest.approx(expected, abs=1e-12)
    draws = [bootstrap.bootstrap(f, CLASSES["mri"], 40, stream(f))["auroc"] for f in frames]
    np.testing.assert_allclose(first.draws, np.mean(draws, axis=0), rtol=0, atol=1e-12)
    bare = differences.arms(address.find_runs(results), ["auroc"], resamples=0)
    assert [(a.cell, a.value) for a in bare] == [(a.cell, a.value) for a in found]
    assert not any(len(arm.draws) for arm in bare)


def test_the_same_people_are_drawn_together_and_others_independently():
    a, b = predictions("mri", 0), predictions("mri", 1).sample(frac=1, random_state=0)
    assert stream(a) == stream(b)  # two modalities
    other = predictions("mri", 0).assign(patient_id=lambda f: "x" + f["patient_id"])
    assert stream(a) != stream(other)
    draws = [
        bootstrap.bootstrap(f, CLASSES["mri"], 3000, stream(f))["accuracy"] for f in (a, other)
    ]
    # Drawn by one stream they would be the same numbers.
    assert abs(np.corrcoef(draws)[0, 1]) < 0.1


def test_a_paired_difference_is_that_of_scipy_on_the_same_patients():
    own = np.random.default_rng(9).normal(size=200)
    one, other = (binormal(1.5, seed=1, noise=0.6, own=own), binormal(1.5, seed=2, own=own))
    found = differences.difference(arm("a", [one]), arm("b", [other]))
    y = (one["y_true"] == "high").to_numpy()

    def statistic(rows):
        rows = rows.astype(int)
        scores = (f["prob_high"].to_numpy()[rows] for f in (one, other))
        areas = [sk.roc_auc_score(y[rows], score) for score in scores]
        return areas[0] - areas[1]

    expected = scipy.stats.bootstrap(
        (np.arange(200),), statistic, n_resamples=1000, method="percentile", vectorized=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found["difference"] == pytest.approx(statistic(np.arange(200)), abs=1e-12)
    error = 0.3 * expected.standard_error  # Monte-Carlo: 4 x sqrt(0.06^2 + 0.04^2) or so
    assert found["ci_low"] == pytest.approx(expected.confidence_interval.low, abs=error)
    assert found["ci_high"] == pytest.approx(expected.confidence_interval.high, abs=error)
    se = expected.standard_error
    assert found["detectable"] == pytest.approx((1.959964 + 0.841621) * se, rel=0.08)
    # Unpaired, the interval would be wider.
    apart = np.hypot(*(arm(n, [f]).draws.std() for n, f in (("a", one), ("b", other))))
    assert found["ci_high"] - found["ci_low"] < 0.8 * 2 * 1.96 * apart


def test_the_paired_delong_test_agrees_with_the_bootstrap_and_knows_the_mean_over_seeds():
    own = np.random.default_rng(3).normal(size=300)
    ours = [binormal(1.6, 300, seed=s, noise=0.5, own=own) for s in (1, 2)]
    theirs = [binormal(1.2, 300, seed=s, noise=0.9, own=own) for s in (3, 4, 5)]
    one, other = arm("a", ours), arm("b", theirs)
    found = differences.difference(one, other)
    z = scipy.stats.norm.isf(found["p_delong"] / 2)
    se = (one.draws - other.draws).std()
    assert z == pytest.approx(abs(found["difference"]) / se, rel=0.1)
    same = differences.difference(one, one)
    assert same["difference"] == 0 and same["p_delong"] == 1 and same["p_value"] == 1
    assert same["p_equivalence"] == pytest.approx(1 / 2001)


def test_p_values_and_equivalence_go_with_their_intervals():
    rng = np.random.default_rng(0)
    for centre in (0.0, 0.004, 0.012, 0.019, 0.03, -0.012):
        draws = rng.normal(centre, 0.006, 4999)
        found = differences.evidence(centre, draws, margin=0.02)
        low, high = np.quantile(draws, [0.05, 0.95])
        assert (found["p_equivalence"] < 0.05) == (low > -0.02 and high < 0.02), centre
        assert (found["p_value"] < 0.05) == (found["ci_low"] > 0 or found["ci_high"] < 0), centre
    # z = 2: a two-sided p of 0.0455
    two_errors = differences.evidence(0.012, rng.normal(0.012, 0.006, 4999))
    assert two_errors["p_value"] == pytest.approx(0.0455, abs=0.02)
    nothing = differences.evidence(float("nan"), np.array([]))
    assert np.isnan(list(nothing.values())).all()


def test_holm_is_worked_out_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1, never falling.
    np.testing.assert_allclose(differences.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    found = differences.holm([0.5, np.nan, 0.004])
    np.testing.assert_allclose(found, [0.5, np.nan, 0.008])
    assert differences.holm([0.9, 0.8]).tolist() == [1, 1] and len(differences.holm([])) == 0


def test_differences_are_between_backbones_of_a_regime_and_regimes_of_a_backbone():
    own = np.random.default_rng(1).normal(size=200)
    shifts = {"good": 3.0, "better": 3.1, "bad": 0.4}
    arms = [
        arm(name, [binormal(shift, seed=i, noise=0.05, own=0.8 * own)], regime=regime, fraction=f)
        for i, (name, shift) in enumerate(shifts.items())
        for regime, f in (("frozen", 1.0), ("frozen", 0.1), ("finetuned", 0.1))
    ]
    arms.append(arm("good", [binormal(3.0)], task="another"))  # has nothing to be compared with
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
    cells = pd.DataFrame(
        [("a", "frozen", 1.0), ("a", "frozen", 0.1), ("a", "frozen", 0.5), ("a", "lora", 0.1),
         ("b", "frozen", 0.1), ("b", "finetuned", 0.5)],
        columns=["task", "regime", "label_fraction"],
    )  # fmt: skip
    assert is_main(cells).tolist() == [True, True, False, True, False, True]
    for fraction, head in ((1.0, "linear"), (0.1, "linear"), (1.0, "knn")):
        save(tmp_path, predictions("mri", 0), fraction=fraction, head=head)
    (one,) = differences.arms(address.find_runs(tmp_path), resamples=5)
    assert one.cell["head"] == "linear" and one.cell["label_fraction"] == 1
    (knn,) = differences.arms(address.find_runs(tmp_path), resamples=5, head="knn")
    assert knn.cell["head"] == "knn"
    table, _ = summaries.summarise(address.find_runs(tmp_path), resamples=20)
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
    assert table.groupby("backbone")["tied"].agg(list).to_dict() == {
        "good": [True, True], "best": [True, True], "bad": [False, False],
    }  # fmt: skip
    assert set(table["metric"]) == {"auroc"} and len(table) == 6
    brier = [a._replace(metric="brier", value=1 - a.value, draws=1 - a.draws) for a in arms[:3]]
    assert differences.tied_with_best(brier)["tied"].tolist() == [True, True, False]
    strict = differences.tied_with_best(arms[:3], margin=1e-6)
    assert strict["tied"].sum() == 1


def test_costs_of_a_frozen_arm_hold_those_of_its_embedding(tmp_path):
    for seed, seconds in ((0, 1.0), (1, 3.0)):
        folder = save(tmp_path, predictions("mri", 0), seed=seed)
        record = files.read_json(folder / "run.json")
        record |= {"seconds": seconds, "peak_memory_bytes": {"resident": 50, "gpu": None}}
        files.save_json(folder / "run.json", record)
    place = address.features_folder(tmp_path, "mri", "dinov2_small")
    files.save_json(place / "meta.json", {
        "seconds": 10.0, "parameters": 22, "hardware": {"gpu": "a GPU"},
        "peak_memory_bytes": {"resident": 90, "gpu": 70},
    })  # fmt: skip
    (row,) = summaries.costs(address.find_runs(tmp_path), tmp_path).to_dict("records")
    assert row["seconds"] == 12 and row["parameters"] == 22
    assert row["memory"] == 70 and row["device"] == "a GPU"
    trained = save(tmp_path, predictions("mri", 0), seed=2)
    record = files.read_json(trained / "run.json")
    record["coordinates"] |= {"regime": "finetuned"}
    record |= {"how": {"parameters": 23}, "seconds": 7.0}
    record["peak_memory_bytes"] = {"resident": 40, "gpu": None}
    files.save_json(trained / "run.json", record)
    found = summaries.costs(address.find_runs(tmp_path), tmp_path).set_index("regime")
    assert found.loc["finetuned", ["seconds", "parameters", "memory"]].tolist() == [7, 23, 40]


# ---------------------------------------------------------------------------------------- ranks


def test_ranks_are_of_each_regime_at_its_most_labels_and_of_whoever_has_every_task():
    values = {("a", "mri"): 0.9, ("a", "skin"): 0.7, ("b", "mri"): 0.8, ("b", "skin"): 0.8,
              ("c", "mri"): 0.99}  # fmt: skip
    arms = []
    for (backbone, task), value in values.items():
        for regime, fraction, shift in (
            ("frozen", 1.0, 0),
            ("frozen", 0.1, -0.5),
            ("lora", 0.1, 0),
        ):
            if regime == "lora" and backbone == "b":
                continue
            cell = {"task": task, "backbone": backbone, "regime": regime, "head": "linear",
                    "label_fraction": fraction}  # fmt: skip
            arms.append(differences.Arm(cell, "auroc", value + shift, np.zeros(3), [], []))
    found = differences.ranks_by_regime(arms)
    assert list(found) == ["frozen"]  # one backbone alone has no rank
    ranks, tests = found["frozen"]
    assert ranks.to_dict() == {"a": 1.5, "b": 1.5} and tests["n_tasks"] == 2


def test_ranks_are_worked_out_by_hand_and_friedman_is_scipys():
    values = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, 0.6], "b": [0.8, 0.8, 0.6, 0.7], "c": [0.1, 0.2, 0.3, 0.4]},
        index=list("wxyz"),
    )
    ranks, found = differences.mean_ranks(values)
    assert ranks.to_dict() == {"a": (1 + 1.5 + 1 + 2) / 4, "b": (2 + 1.5 + 2 + 1) / 4, "c": 3}
    assert list(ranks.index) == ["a", "b", "c"]
    expected = scipy.stats.friedmanchisquare(values["a"], values["b"], values["c"]).pvalue
    assert found["p_friedman"] == pytest.approx(expected) and found["n_tasks"] == 4
    worst_first, _ = differences.mean_ranks(values, higher_is_better=False)
    assert worst_first["c"] == 1


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (6, 2.850), (10, 3.164)])
def test_the_critical_difference_has_the_constants_of_demsars_table(k, q):
    values = pd.DataFrame(np.random.default_rng(0).random((14, k)))
    _, found = differences.mean_ranks(values)
    assert found["critical_difference"] == pytest.approx(q * np.sqrt(k * (k + 1) / 84), abs=5e-4)


def test_a_missing_value_is_named_rather_than_ranked():
    values = pd.DataFrame({"a": [1.0, np.nan], "b": [1.0, 2.0]}, index=["mri", "skin"])
    with pytest.raises(ValueError, match="1 values are missing:\n.*skin × a"):
        differences.mean_ranks(values)


# ------------------------------------------------------------------------------------ refusals


def test_runs_of_a_task_judged_on_other_samples_are_refused_by_name(tmp_path):
    frame = predictions("mri", 0)
    first = save(tmp_path, frame, seed=0)
    second = save(tmp_path, frame.iloc[:-1], seed=1)
    with pytest.raises(ValueError) as caught:
        summaries.summarise(address.find_runs(tmp_path), resamples=5)
    message = str(caught.value)
    assert str(first) in message and str(second) in message
    assert "'029'" in message and "(1," in message


def test_tasks_may_have_samples_of_their_own(tmp_path):
    save(tmp_path, predictions("mri", 0))
    save(tmp_path, predictions("skin", 0, n_patients=9), "skin")
    by_seed, _ = summaries.summarise(address.find_runs(tmp_path), resamples=5)
    assert by_seed.groupby("task")["n_patients"].unique().map(list).to_dict() == {
        "mri": [15], "skin": [9],
    }  # fmt: skip


@pytest.mark.parametrize("column", ["y_true", "patient_id"])
def test_runs_of_a_task_judged_on_other_labels_or_patients_are_refused_by_name(tmp_path, column):
    # A manifest was corrected between the two runs: they are not about the same truth.
    frame = predictions("mri", 0)
    changed = frame.copy()
    changed.loc[0, column] = {"y_true": "high", "patient_id": "014"}[column]
    assert changed.loc[0, column] != frame.loc[0, column]
    first = save(tmp_path, frame, seed=0)
    second = save(tmp_path, changed, seed=1)
    with pytest.raises(ValueError) as caught:
        summaries.summarise(address.find_runs(tmp_path), resamples=5)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_a_sample_that_is_predicted_twice_is_refused_by_its_run(tmp_path):
    frame = predictions("mri", 0)
    folder = save(tmp_path, pd.concat([frame, frame.iloc[[3]]]))
    with pytest.raises(ValueError, match="predicted more than once") as caught:
        summaries.summarise(address.find_runs(tmp_path), resamples=5)
    assert str(folder) in str(caught.value)


def test_without_a_complete_run_the_message_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="no complete run.*notebooks 03 and 04"):
        summaries.summarise(address.find_runs(tmp_path))


def test_a_run_without_its_record_is_left_out(tmp_path):
    save(tmp_path, predictions("mri", 0), seed=0)
    folder = save(tmp_path, predictions("mri", 1).iloc[:5], seed=1)  # would be refused
    (folder / "run.json").unlink()
    by_seed, over_seeds = summaries.summarise(address.find_runs(tmp_path), resamples=5)
    assert set(by_seed["seed"]) == {0}
    assert set(over_seeds["n_seeds"]) == {1}


def test_only_the_runs_asked_for_are_summarised_and_a_missing_one_is_named(tmp_path):
    one = save(tmp_path, predictions("mri", 0), seed=0)
    save(tmp_path, predictions("mri", 1), seed=1)
    by_seed, _ = summaries.summarise([one], resamples=5)
    assert set(by_seed["seed"]) == {0}
    with pytest.raises(ValueError, match="1 of 2 runs are not complete:\n.*seed7"):
        summaries.summarise([one, one.parent / "seed7"])


def test_all_runs_that_cannot_be_read_are_named_at_once(tmp_path):
    folders = [save(tmp_path, predictions("mri", seed), seed=seed) for seed in range(7)]
    (folders[1] / "run.json").write_text('{"coordinates": ')
    (folders[2] / "run.json").write_text("{}")
    (folders[3] / "run.json").unlink()
    with pytest.raises(ValueError) as caught:
        summaries.summarise(folders, 5)
    lines = str(caught.value).splitlines()
    assert lines[0] == "1 of 7 runs are not complete:" and "seed3" in lines[1]
    assert lines[2] == "2 of 7 runs have no readable record:"
    assert "seed1" in lines[3] and "seed2" in lines[4] and "no coordinates" in lines[4]
    assert "notebooks 03 and 04" in lines[5]


def test_all_runs_whose_predictions_cannot_be_used_are_named_at_once(tmp_path, made):
    frames = {seed: predictions("mri", seed) for seed in range(6)}
    frames[3] = frames[3].drop(columns="patient_id")
    frames[4] = pd.concat([frames[4], frames[4].iloc[[3]]])
    folders = [save(tmp_path, f, seed=s, fraction=1 / (s + 1)) for s, f in frames.items()]
    folders.append(save(tmp_path, frames[0].iloc[:-1], backbone="resnet50-imagenet"))
    (folders[1] / "predictions.csv").unlink()
    text = (folders[2] / "predictions.csv").read_text()
    (folders[2] / "predictions.csv").write_text(text.replace("low", "high", 1))
    for _ in range(2):  # the same of kept rows
        with pytest.raises(ValueError) as caught:
            summaries.summarise(folders, 5)
        lines = str(caught.value).splitlines()
        assert lines[0] == "5 of 7 runs cannot be used:" and len(lines) == 6
        for words in ("No such file", "not the one that run.json records", "lacks patient_id",
                      "predicted more than once"):  # fmt: skip
            assert sum(words in line for line in lines) == 1, words
        assert str(folders[6]) in lines[5] and "different samples (1, such as '029')" in lines[5]
    assert len(made) == 3  # those of the sound cells were kept all the same


def test_hundreds_of_offenders_are_counted(tmp_path):
    folders = [address.run_folder(tmp_path, "mri", "a", "frozen", seed=s) for s in range(300)]
    with pytest.raises(ValueError) as caught:
        summaries.summarise(folders)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("300 of 300") and len(lines) == 23 and "280 more" in lines[21]
