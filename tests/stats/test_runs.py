"""medlib.stats.runs: runs are read exactly as they were written, or refused by name."""

import pandas as pd
import pytest
from made_runs import CANDIDATES, kept_below, predictions, runs_below, save
from scored import frame_by_sklearn

from medlib import files
from medlib.stats import runs, summaries


def test_ids_and_labels_that_look_like_numbers_or_missing_values_stay_text(tmp_path):
    frame = predictions("mri", 0)
    frame["y_true"] = frame["y_true"].map({"low": "NA", "high": "1"})
    frame = frame.rename(columns={"prob_low": "prob_NA", "prob_high": "prob_1"})
    folder = save(tmp_path, frame)
    read, classes = runs.read_predictions(folder)
    assert classes == ["NA", "1"]
    pd.testing.assert_frame_equal(read, frame, check_exact=True)  # floats too, to the last bit
    by_seed, _ = summaries.summarise(runs_below(tmp_path), resamples=20)
    values = by_seed.set_index("metric")["value"].to_dict()
    expected = frame_by_sklearn(frame, ["NA", "1"])
    assert {n: values[n] for n in expected} == pytest.approx(expected, rel=0, abs=1e-12)


def test_runs_of_a_task_judged_on_other_samples_are_refused_by_name(tmp_path):
    frame = predictions("mri", 0)
    first = save(tmp_path, frame, seed=0)
    second = save(tmp_path, frame.iloc[:-1], seed=1)
    with pytest.raises(ValueError) as caught:
        summaries.summarise(runs_below(tmp_path), resamples=5)
    message = str(caught.value)
    assert str(first) in message and str(second) in message
    assert "'029'" in message and "(1," in message


@pytest.mark.parametrize("column", ["y_true", "patient_id"])
def test_runs_of_a_task_judged_on_other_labels_or_patients_are_refused_by_name(tmp_path, column):
    # The manifest was corrected between the two runs, so the truth is not the same.
    frame = predictions("mri", 0)
    changed = frame.copy()
    changed.loc[0, column] = {"y_true": "high", "patient_id": "014"}[column]
    assert changed.loc[0, column] != frame.loc[0, column]
    first = save(tmp_path, frame, seed=0)
    second = save(tmp_path, changed, seed=1)
    with pytest.raises(ValueError) as caught:
        summaries.summarise(runs_below(tmp_path), resamples=5)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_a_sample_that_is_predicted_twice_is_refused_by_its_run(tmp_path):
    frame = predictions("mri", 0)
    folder = save(tmp_path, pd.concat([frame, frame.iloc[[3]]]))
    with pytest.raises(ValueError, match="predicted more than once") as caught:
        summaries.summarise(runs_below(tmp_path), resamples=5)
    assert str(folder) in str(caught.value)


def test_without_a_complete_run_the_message_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="no complete run.*notebooks 03 and 04"):
        summaries.summarise(runs_below(tmp_path))


def test_a_run_without_its_record_is_left_out(tmp_path):
    save(tmp_path, predictions("mri", 0), seed=0)
    folder = save(tmp_path, predictions("mri", 1).iloc[:5], seed=1)  # would be refused
    (folder / "run.json").unlink()
    by_seed, over_seeds = summaries.summarise(runs_below(tmp_path), resamples=5)
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
    folders = [save(tmp_path, f, seed=s, label_fraction=1 / (s + 1)) for s, f in frames.items()]
    folders.append(save(tmp_path, frames[0].iloc[:-1], backbone="resnet50-imagenet"))
    (folders[1] / "predictions.csv").unlink()
    text = (folders[2] / "predictions.csv").read_text()
    (folders[2] / "predictions.csv").write_text(text.replace("low", "high", 1))
    for _ in range(2):  # the second time, from kept rows
        with pytest.raises(ValueError) as caught:
            summaries.summarise(folders, 5, kept=kept_below(tmp_path))
        lines = str(caught.value).splitlines()
        assert lines[0] == "5 of 7 runs cannot be used:" and len(lines) == 6
        changed = "not the one that run.json records"
        for words in ("No such file", changed, "lacks patient_id", "predicted more than once"):
            assert sum(words in line for line in lines) == 1, words
        assert str(folders[6]) in lines[5] and "different samples (1, such as '029')" in lines[5]
    assert len(made) == 3  # rows of the valid cells were kept in spite of the error


def test_hundreds_of_offenders_are_counted(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in range(300)]
    with pytest.raises(ValueError) as caught:
        summaries.summarise(folders)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("300 of 300") and len(lines) == 23 and "280 more" in lines[21]


def test_a_record_without_digests_or_candidates_is_refused_by_what_it_lacks(tmp_path):
    frame = predictions("mri", 0)
    folders = [save(tmp_path, frame, seed=0, sha256={"redraws.csv": "0"})]
    folders.append(save(tmp_path, frame, seed=1))
    record = files.read_json(folders[1] / "run.json")
    files.save_json(folders[1] / "run.json", record | {"how": {}})
    folders.append(save(tmp_path, frame, seed=2))
    with pytest.raises(ValueError) as caught:
        runs.read_records(folders)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 3 runs have no readable record:"
    assert "seed0" in lines[1] and lines[1].endswith("it lacks sha256")
    assert "seed1" in lines[2] and lines[2].endswith("it lacks candidates")


@pytest.mark.parametrize("file", ["redraws.csv", "validation.csv"])
def test_tables_that_are_not_those_of_the_record_are_refused_made_or_kept(tmp_path, made, file):
    frame = predictions("mri", 0)
    again = pd.DataFrame({"auroc": [0.7, 0.8, float("nan")], "accuracy": [0.6, 0.7, 0.8]})
    folder = save(tmp_path, frame, redraws=again, validation=frame.assign(rotation=0))
    (run,) = runs.runs_by_cell([folder])[0]
    assert set(run.sha256) == {"predictions.csv", "validation.csv", "redraws.csv"}
    pd.testing.assert_frame_equal(runs.redraws(run), again, check_exact=True)
    validated = runs.validation(run)
    pd.testing.assert_frame_equal(validated, frame.assign(rotation=0), check_exact=True)
    whole = (folder / file).read_text()
    for kept in (None, kept_below(tmp_path)):
        summaries.summarise([folder], 5, kept=kept)
        for harm in (whole.replace("0.", "0.1", 1), None):
            (folder / file).write_text(harm) if harm else (folder / file).unlink()
            with pytest.raises(ValueError, match=f"1 of 1 runs cannot be used(.|\n)*{file}"):
                summaries.summarise([folder], 5, kept=kept)
            (folder / file).write_text(whole)


def test_a_run_without_redraws_and_validation_has_empty_tables(tmp_path):
    (run,) = runs.runs_by_cell([save(tmp_path, predictions("mri", 0))])[0]
    assert runs.redraws(run).empty and runs.validation(run).empty
    assert run.candidates == CANDIDATES
