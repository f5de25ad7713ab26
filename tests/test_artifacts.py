"""Artifacts: files appear whole or not at all; hashes and places are the same everywhere."""

import hashlib
import importlib.metadata
import json
import os
import platform

import numpy as np
import pandas as pd
import pytest

from medlib import files
from medlib.data import cards
from medlib.grid import address, records

# ---------------------------------------------------------------------------------- writing


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    for text in ("first", "second"):
        with files.replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary != path
            assert temporary.name == "x.txt"  # writers may look at the suffix
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_temporaries(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "x.txt"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "stale.txt").write_text("old")
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "fresh.txt").write_text("new")
        assert (folder / "stale.txt").exists()
    assert [path.name for path in folder.iterdir()] == ["fresh.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "half.txt").write_text("half")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_whose_last_rename_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "old.txt").write_text("old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"), files.replacing(folder) as temporary:
        temporary.mkdir()
    assert (folder / "old.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_written_files_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain.txt").write_text("x")
    (tmp_path / "plain").mkdir()
    files.save_json(tmp_path / "x.json", {})
    with files.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_comes_back_and_its_keys_are_sorted(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ü": "é"}}
    files.save_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    text = (tmp_path / "x.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    files.save_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        files.save_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_floats_survive_csv_to_the_last_bit(tmp_path):
    values = [0.1 + 0.2, 1 / 3, 1e-300, np.nextafter(1, 2), 123456789.123456789]
    files.save_csv(tmp_path / "x.csv", pd.DataFrame({"p": values}))
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0] == "p"
    assert [float(line) for line in lines[1:]] == values


# ----------------------------------------------------------------------------------- hashes


def test_a_files_hash_is_its_sha256(tmp_path):
    content = bytes(range(256)) * 9000  # larger than any one buffer
    (tmp_path / "x").write_bytes(content)
    assert files.file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert files.file_sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afb")


def test_a_content_hash_is_the_same_on_every_machine():
    text = b'{"a": [1, 2.5, null], "b": "x"}\0"second"\0'
    expected = hashlib.sha256(text).hexdigest()[:16]
    assert files.content_hash({"b": "x", "a": [1, 2.5, None]}, "second") == expected
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", "b,c"]})
    csv = json.dumps('n,s\n1,a\n2,"b,c"\n').encode() + b"\0"
    assert files.content_hash(frame) == hashlib.sha256(csv).hexdigest()[:16]


def test_a_content_hash_sees_order_type_shape_and_place():
    array = np.arange(6, dtype=np.float32)
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", "b"]})
    different = [
        (array,), (array.astype(np.float64),), (array[::-1],), (array.reshape(2, 3),),
        (array.view(np.int32),), (array, 1), (1, array), (frame,), (frame.iloc[::-1],),
        (frame[["s", "n"]],), ("a", "b"), ("b", "a"), ("ab",), (["a", "b"],), (1,), ("1",), (1.0,),
    ]  # fmt: skip
    assert len({files.content_hash(*parts) for parts in different}) == len(different)


def test_a_content_hash_does_not_see_memory_layout_keys_order_or_index():
    array = np.arange(12.0).reshape(3, 4)
    assert files.content_hash(array) == files.content_hash(np.asfortranarray(array))
    assert files.content_hash({"a": 1, "b": 2}) == files.content_hash({"b": 2, "a": 1})
    frame = pd.DataFrame({"n": [1, 2]})
    assert files.content_hash(frame) == files.content_hash(frame.set_axis([5, 9]))


# ------------------------------------------------------------------------------------ places


def test_phantoms_lie_in_the_results_and_a_named_folder_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    assert cards.data_folder("phantoms", tmp_path / "r") == tmp_path / "r" / "phantoms"
    assert cards.data_folder(str(tmp_path), "r") == tmp_path
    monkeypatch.setenv("MEDLIB_DATA", str(tmp_path))
    assert cards.data_folder("real", "r") == tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_real_data_without_a_folder_says_how_to_name_one(monkeypatch, value):
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("MEDLIB_DATA", value)
    with pytest.raises(FileNotFoundError) as caught:
        cards.data_folder("real", "r")
    message = str(caught.value)
    for part in ("MEDLIB_DATA is not set", "DATA=folder", "data='phantoms'"):
        assert part in message


@pytest.mark.parametrize("by", ["environment", "name"])
def test_a_data_folder_that_is_not_there_is_named(tmp_path, monkeypatch, by):
    missing = str(tmp_path / "nowhere")
    monkeypatch.setenv("MEDLIB_DATA", missing)
    with pytest.raises(FileNotFoundError) as caught:
        cards.data_folder("real" if by == "environment" else missing, "r")
    message = str(caught.value)
    for part in (repr(missing), "does not exist", "DATA=folder", "data='phantoms'"):
        assert part in message


@pytest.mark.parametrize(
    "coordinates, name",
    [
        ({"regime": "frozen"}, "frozen-linear/seed0"),
        ({"regime": "frozen", "head": "knn", "seed": 3}, "frozen-knn/seed3"),
        (
            {"regime": "frozen", "head": "mlp", "label_fraction": 0.1},
            "frozen-mlp-fraction0.1/seed0",
        ),
        ({"regime": "finetuned", "head": "mlp", "seed": 1}, "finetuned/seed1"),
        ({"regime": "finetuned", "label_fraction": 0.05}, "finetuned-fraction0.05/seed0"),
        ({"regime": "finetuned", "label_fraction": 1}, "finetuned/seed0"),
        ({"regime": "lora", "label_fraction": 0.1, "seed": 2}, "lora-fraction0.1/seed2"),
        ({"regime": "lora"}, "lora/seed0"),
    ],
)
def test_a_run_folder_is_named_by_its_coordinates(coordinates, name):
    folder = address.run_folder("results/demo", "fundus", "dinov2_small", **coordinates)
    assert folder.as_posix() == f"results/demo/runs/fundus/dinov2_small/{name}"


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="'forzen'; choose one of frozen, finetuned, lora"):
        address.run_folder("r", "fundus", "dinov2_small", "forzen")


def test_other_places_are_those_of_the_design():
    places = [
        address.manifest_path("r", "fundus"),
        address.images_folder("r", "fundus", 224, "bicubic"),
        address.features_folder("r", "fundus", "dinov2_small"),
    ]
    assert [place.as_posix() for place in places] == [
        "r/manifests/fundus.csv",
        "r/images/fundus/224-bicubic",
        "r/features/fundus/dinov2_small",
    ]


def test_probes_without_chance_run_for_the_first_seed_only():
    runs = address.frozen_runs(["linear", "knn", "mlp"], [1, 0.1], iter([4, 5]))
    found = {(run["head"], run["label_fraction"], run["seed"]) for run in runs}
    assert len(runs) == len(found) == 10
    assert found == {
        ("linear", 1, 4), ("linear", 0.1, 4), ("linear", 0.1, 5),
        ("knn", 1, 4), ("knn", 0.1, 4), ("knn", 0.1, 5),
        ("mlp", 1, 4), ("mlp", 1, 5), ("mlp", 0.1, 4), ("mlp", 0.1, 5),
    }  # fmt: skip


# ---------------------------------------------------------------------------------- records

COORDINATES = {"task": "toy", "backbone": "net", "regime": "frozen", "head": "knn", "seed": 0}


def save_run(folder, **changes):
    values = {
        "coordinates": COORDINATES, "parameters": {"k": 5}, "inputs": {"images": "abc"},
        "predictions": pd.DataFrame({"sample_id": ["x"], "a": [1 / 3]}),
        "history": pd.DataFrame({"epoch": [0], "loss": [0.5]}),
        "metrics": {"auroc": 0.75}, "seconds": 1.23456, "how": {"precision": "float32"},
    }  # fmt: skip
    records.save_run(folder, **values | changes)


def run_folder(root, task="toy", seed=0):
    return address.run_folder(root, task, "net", "frozen", "knn", seed=seed)


def test_a_run_is_recorded_with_all_that_made_it(tmp_path):
    folder = run_folder(tmp_path)
    save_run(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"predictions.csv", "history.csv", "metrics.json", "run.json"}
    assert (folder / "predictions.csv").read_text() == f"sample_id,a\nx,{1 / 3!r}\n"
    assert json.loads((folder / "metrics.json").read_text()) == {"auroc": 0.75}
    record = json.loads((folder / "run.json").read_text())
    assert record["coordinates"] == COORDINATES
    assert record["parameters"] == {"k": 5}
    assert record["inputs"] == {"images": "abc"}
    assert record["how"] == {"precision": "float32"}
    assert record["seconds"] == 1.235
    written = (folder / "predictions.csv").read_bytes()
    assert record["predictions_sha256"] == hashlib.sha256(written).hexdigest()
    assert record["versions"]["python"] == platform.python_version()
    for package in ("torch", "timm", "numpy", "medlib"):
        assert record["versions"][package] == importlib.metadata.version(package)
    assert record["hardware"]["cpu_count"] == os.cpu_count()
    assert "git_commit" in record
    assert 2**20 < record["peak_memory_bytes"]["resident"] < 2**40


@pytest.mark.parametrize("fails", ["predictions.csv", "history.csv", "metrics.json", "run.json"])
@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_fails_at_any_file_is_not_complete(tmp_path, monkeypatch, fails, before):
    folder = run_folder(tmp_path)
    if before:
        save_run(folder)
        assert address.find_runs(tmp_path) == [folder]
    rename = os.replace

    def fail(source, target):
        if os.path.basename(target) == fails:
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_run(folder, metrics={"auroc": 0.5})
    assert not (folder / "run.json").exists()
    assert address.find_runs(tmp_path) == []
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_run_json_is_written_last(tmp_path, monkeypatch):
    order, rename = [], os.replace

    def note(source, target):
        order.append(os.path.basename(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", note)
    save_run(run_folder(tmp_path))
    assert sorted(order) == ["history.csv", "metrics.json", "predictions.csv", "run.json"]
    assert order[-1] == "run.json"


def test_complete_runs_are_found_and_incomplete_ones_are_not(tmp_path):
    complete = [run_folder(tmp_path, task, seed) for task in ("b", "a") for seed in (1, 0)]
    for folder in complete:
        save_run(folder)
    incomplete = run_folder(tmp_path, "c")
    save_run(incomplete)
    (incomplete / "run.json").unlink()
    (tmp_path / "runs" / "run.json").write_text("{}")  # astray
    assert address.find_runs(tmp_path) == sorted(complete)


def test_where_nothing_has_run_no_run_is_found(tmp_path):
    assert address.find_runs(tmp_path / "nowhere") == []
