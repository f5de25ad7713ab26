"""A run's record: written last, with all that made the run."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform

import pandas as pd
import pytest

from medlib.grid import address, records

RUN = address.Address("toy", "net", "frozen", "knn")
COORDINATES = {"task": "toy", "backbone": "net", "regime": "frozen", "head": "knn", "seed": 0}


TABLES = {
    "predictions.csv": pd.DataFrame({"sample_id": ["x"], "a": [1 / 3]}),
    "validation.csv": pd.DataFrame({"sample_id": ["y"], "a": [2 / 3]}),
}
REDRAWS = {"redraws.csv": pd.DataFrame({"auroc": [0.5, 0.25]})}
WRITTEN = [*TABLES, *REDRAWS, "history.csv", "metrics.json", "run.json"]


def save_run(results, run=RUN, metrics=None, tables=TABLES | REDRAWS):
    """Save a small run; returns its folder."""
    records.save_run(
        run,
        results,
        records.Provenance(
            "random", {"k": 5}, {"images": "abc"}, 1.23456, {"precision": "float32"}
        ),
        tables=tables,
        history=pd.DataFrame({"epoch": [0], "loss": [0.5]}),
        metrics=metrics or {"auroc": 0.75},
    )
    return run.folder(results)


def test_a_run_is_recorded_with_all_that_made_it(tmp_path):
    folder = save_run(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == set(WRITTEN)
    assert (folder / "predictions.csv").read_text() == f"sample_id,a\nx,{1 / 3!r}\n"
    assert (folder / "validation.csv").read_text() == f"sample_id,a\ny,{2 / 3!r}\n"
    assert (folder / "redraws.csv").read_text() == "auroc\n0.5\n0.25\n"
    assert json.loads((folder / "metrics.json").read_text()) == {"auroc": 0.75}
    record = json.loads((folder / "run.json").read_text())
    assert record["coordinates"] == COORDINATES | {"label_fraction": 1.0, "pretraining": "random"}
    assert record["parameters"] == {"k": 5}
    assert record["inputs"] == {"images": "abc"}
    assert record["how"] == {"precision": "float32"}
    assert record["seconds"] == 1.235
    digests = {}
    for name in ("predictions.csv", "validation.csv", "redraws.csv"):
        digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert record["sha256"] == digests
    assert record["versions"]["python"] == platform.python_version()
    for package in ("torch", "timm", "numpy", "medlib"):
        assert record["versions"][package] == importlib.metadata.version(package)
    assert record["hardware"]["cpu_count"] == os.cpu_count()
    assert "git_commit" in record
    assert 2**20 < record["peak_memory_bytes"]["resident"] < 2**40


def test_a_run_without_redraws_records_none(tmp_path):
    save_run(tmp_path)  # with redraws, which must not stay in the record
    folder = save_run(tmp_path, tables=TABLES)
    assert set(json.loads((folder / "run.json").read_text())["sha256"]) == set(TABLES)


@pytest.mark.parametrize("fails", WRITTEN)
@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_fails_at_any_file_is_not_complete(tmp_path, monkeypatch, fails, before):
    folder = RUN.folder(tmp_path)
    if before:
        save_run(tmp_path)
        assert address.find_runs(tmp_path) == [folder]
    rename = os.replace

    def fail(source, target):
        if os.path.basename(target) == fails:
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_run(tmp_path, metrics={"auroc": 0.5})
    assert not (folder / "run.json").exists()
    assert address.find_runs(tmp_path) == []
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_run_json_is_written_last(tmp_path, monkeypatch):
    order, rename = [], os.replace

    def note(source, target):
        order.append(os.path.basename(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", note)
    save_run(tmp_path)
    assert sorted(order) == sorted(WRITTEN)
    assert order[-1] == "run.json"


def test_complete_runs_are_found_and_incomplete_ones_are_not(tmp_path):
    cells = [{"task": task, "seed": seed} for task in ("b", "a") for seed in (1, 0)]
    complete = [save_run(tmp_path, dataclasses.replace(RUN, **cell)) for cell in cells]
    incomplete = save_run(tmp_path, dataclasses.replace(RUN, task="c"))
    (incomplete / "run.json").unlink()
    (tmp_path / "runs" / "run.json").write_text("{}")  # astray
    assert address.find_runs(tmp_path) == sorted(complete)


def test_where_nothing_has_run_no_run_is_found(tmp_path):
    assert address.find_runs(tmp_path / "nowhere") == []
