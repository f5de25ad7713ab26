"""medlib.compare: summary tables that scikit-learn confirms, of runs judged on the same samples."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from medlib import artifacts, compare, metrics

CLASSES = {"mri": ["low", "high"], "skin": ["nv", "mel", "bcc"]}
BACKBONES = {"dinov2_small": "dinov2", "resnet50-imagenet": "imagenet"}
SUMMARY = ["task", "backbone", "pretraining", "regime", "head", "label_fraction", "seed", "metric",
           "value", "ci_low", "ci_high", "n_patients", "n_images"]  # fmt: skip


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
    folder = artifacts.run_folder(results, task, backbone, "frozen", head, fraction, seed)
    coordinates = {
        "task": task, "backbone": backbone, "pretraining": BACKBONES[backbone],
        "regime": "frozen", "head": head, "label_fraction": fraction, "seed": seed,
    }  # fmt: skip
    artifacts.save_run(
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
    by_seed, _ = compare.summarise(artifacts.find_runs(results), resamples=50)
    assert list(by_seed.columns) == SUMMARY
    assert len(by_seed) == 2 * 2 * 2 * len(metrics.NAMES)
    assert not by_seed.duplicated(["task", "backbone", "seed", "metric"]).any()
    of_run = by_seed.set_index(["task", "backbone", "seed"]).sort_index()
    for (task, backbone, seed), frame in runs.items():
        expected = by_sklearn(frame, CLASSES[task])
        mine = of_run.loc[task, backbone, seed]
        assert dict(zip(mine["metric"], mine["value"], strict=True)) == pytest.approx(
            expected, rel=0, abs=1e-12
        )
        assert set(mine["pretraining"]) == {BACKBONES[backbone]}
        assert set(mine["regime"]) == {"frozen"}


def test_the_summary_counts_patients_and_samples(grid):
    for table in compare.summarise(artifacts.find_runs(grid[0]), resamples=20):
        assert set(table["n_patients"]) == {15}
        assert set(table["n_images"]) == {30}


def test_over_seeds_the_value_is_the_mean_and_the_spread_the_sample_standard_deviation(grid):
    results, runs = grid
    _, over_seeds = compare.summarise(artifacts.find_runs(results), resamples=50)
    assert len(over_seeds) == 2 * 2 * len(metrics.NAMES)
    assert set(over_seeds["n_seeds"]) == {2}
    for row in over_seeds.itertuples():
        a, b = (
            by_sklearn(runs[row.task, row.backbone, seed], CLASSES[row.task])[row.metric]
            for seed in (0, 1)
        )
        assert row.value == pytest.approx((a + b) / 2, rel=0, abs=1e-12)
        assert row.sd == pytest.approx(abs(a - b) / np.sqrt(2), rel=0, abs=1e-12)


def test_intervals_are_those_of_drawing_patients_the_same_for_every_seed(grid):
    results, runs = grid
    by_seed, over_seeds = compare.summarise(artifacts.find_runs(results), resamples=60)
    draws = np.random.default_rng(0).integers(15, size=(60, 15))
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
    by_seed, over_seeds = compare.summarise(artifacts.find_runs(tmp_path), resamples=80)
    assert set(by_seed["seed"]) == {4} and set(over_seeds["n_seeds"]) == {1}
    assert over_seeds["sd"].isna().all()
    for column in ("metric", "value", "ci_low", "ci_high"):
        assert by_seed[column].tolist() == over_seeds[column].tolist()
    assert (by_seed["ci_low"] < by_seed["value"]).all()
    assert (by_seed["value"] < by_seed["ci_high"]).all()


def test_the_order_in_which_predictions_were_written_does_not_matter(tmp_path):
    frame = predictions("mri", 0)
    save(tmp_path / "a", frame)
    save(tmp_path / "b", frame.sample(frac=1, random_state=1))
    for first, second in zip(
        compare.summarise(artifacts.find_runs(tmp_path / "a"), 40),
        compare.summarise(artifacts.find_runs(tmp_path / "b"), 40),
        strict=True,
    ):
        pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=0, atol=1e-12)


def test_label_fractions_and_heads_are_cells_of_their_own(tmp_path):
    arms = {("linear", 1.0): 0, ("linear", 0.1): 1, ("knn", 1.0): 2}
    frames = {arm: predictions("mri", seed) for arm, seed in arms.items()}
    for (head, fraction), frame in frames.items():
        save(tmp_path, frame, head=head, fraction=fraction)
    _, over_seeds = compare.summarise(artifacts.find_runs(tmp_path), resamples=20)
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
    read, classes = compare.read_predictions(folder)
    assert classes == ["NA", "1"]
    pd.testing.assert_frame_equal(read, frame, check_exact=True)  # floats too, to the last bit
    by_seed, _ = compare.summarise(artifacts.find_runs(tmp_path), resamples=20)
    found = by_seed.set_index("metric")["value"].to_dict()
    assert found == pytest.approx(by_sklearn(frame, ["NA", "1"]), rel=0, abs=1e-12)


# ------------------------------------------------------------------------------------ refusals


def test_runs_of_a_task_judged_on_other_samples_are_refused_by_name(tmp_path):
    frame = predictions("mri", 0)
    first = save(tmp_path, frame, seed=0)
    second = save(tmp_path, frame.iloc[:-1], seed=1)
    with pytest.raises(ValueError) as caught:
        compare.summarise(artifacts.find_runs(tmp_path), resamples=5)
    message = str(caught.value)
    assert str(first) in message and str(second) in message
    assert "'029'" in message and "(1," in message


def test_tasks_may_have_samples_of_their_own(tmp_path):
    save(tmp_path, predictions("mri", 0))
    save(tmp_path, predictions("skin", 0, n_patients=9), "skin")
    by_seed, _ = compare.summarise(artifacts.find_runs(tmp_path), resamples=5)
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
        compare.summarise(artifacts.find_runs(tmp_path), resamples=5)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_a_sample_that_is_predicted_twice_is_refused_by_its_run(tmp_path):
    frame = predictions("mri", 0)
    folder = save(tmp_path, pd.concat([frame, frame.iloc[[3]]]))
    with pytest.raises(ValueError, match="predicted more than once") as caught:
        compare.summarise(artifacts.find_runs(tmp_path), resamples=5)
    assert str(folder) in str(caught.value)


def test_without_a_complete_run_the_message_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="no complete run.*notebooks 03 and 04"):
        compare.summarise(artifacts.find_runs(tmp_path))


def test_a_run_without_its_record_is_left_out(tmp_path):
    save(tmp_path, predictions("mri", 0), seed=0)
    folder = save(tmp_path, predictions("mri", 1).iloc[:5], seed=1)  # would be refused
    (folder / "run.json").unlink()
    by_seed, over_seeds = compare.summarise(artifacts.find_runs(tmp_path), resamples=5)
    assert set(by_seed["seed"]) == {0}
    assert set(over_seeds["n_seeds"]) == {1}


def test_only_the_runs_asked_for_are_summarised_and_a_missing_one_is_named(tmp_path):
    one = save(tmp_path, predictions("mri", 0), seed=0)
    save(tmp_path, predictions("mri", 1), seed=1)
    by_seed, _ = compare.summarise([one], resamples=5)
    assert set(by_seed["seed"]) == {0}
    with pytest.raises(ValueError, match="1 of 2 runs are not complete:\n.*seed7"):
        compare.summarise([one, one.parent / "seed7"])
