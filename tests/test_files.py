"""Files appear whole or not at all; hashes are the same everywhere."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest

from medlib import files
from medlib.data import manifest

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
        (array,),
        (array.astype(np.float64),),
        (array[::-1],),
        (array.reshape(2, 3),),
        (array.view(np.int32),),
        (array, 1),
        (1, array),
        (frame,),
        (frame.iloc[::-1],),
        (frame[["s", "n"]],),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        (["a", "b"],),
        (1,),
        ("1",),
        (1.0,),
    ]
    assert len({files.content_hash(*parts) for parts in different}) == len(different)


def test_a_content_hash_does_not_see_memory_layout_keys_order_or_index():
    array = np.arange(12.0).reshape(3, 4)
    assert files.content_hash(array) == files.content_hash(np.asfortranarray(array))
    assert files.content_hash({"a": 1, "b": 2}) == files.content_hash({"b": 2, "a": 1})
    frame = pd.DataFrame({"n": [1, 2]})
    assert files.content_hash(frame) == files.content_hash(frame.set_axis([5, 9]))


def test_a_spreadsheet_runs_no_text_of_a_csv_and_medlib_reads_it_as_it_was(tmp_path):
    texts = ["=1+1", "@cmd", "-x", "+x", "'=a", "''@", "\tq", "-1.5", "+.3 [a]", "'q", "plain", ""]
    frame = pd.DataFrame({"sample_id": texts, "label": pd.Categorical(["=z"] * 12), "n": range(12)})
    files.save_csv(tmp_path / "t.csv", frame)
    written = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    first = written["sample_id"].str[:1]
    assert first.tolist() == ["'"] * 7 + ["-", "+", "'", "p", ""]
    assert (written["label"] == "'=z").all()
    for read in (manifest.read_rows, manifest.read_samples):
        back = read(tmp_path / "t.csv")
        assert back["sample_id"].tolist() == texts and set(back["label"]) == {"=z"}
    files.save_csv(tmp_path / "none.csv", frame[:0])
    assert (tmp_path / "none.csv").read_text() == "sample_id,label,n\n"


def test_contents_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, os.replace

    def named(handle):
        done.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(str(tmp_path)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("renamed") or rename(a, b))
    files.save_text(tmp_path / "a.txt", "a")
    assert done[0].endswith("/a.txt") and done[1:] == ["renamed", ""]
    done.clear()
    with files.replacing(tmp_path / "folder") as new:
        new.mkdir()
        (new / "b").write_text("b")
    assert [name.rpartition("/")[2] for name in done] == ["b", "folder", "renamed", ""]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_json_file_that_cannot_be_read_is_named_and_counts_as_missing(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match="r.json is empty or damaged .*: remove it, and run again"):
        files.read_json(tmp_path / "r.json")
    with pytest.warns(UserWarning, match="r.json .* counts as missing"):
        assert files.read_record(tmp_path / "r.json") == {}
    assert files.read_record(tmp_path / "none.json") == {}


def test_what_is_not_whole_yet_may_lie_elsewhere_on_the_same_disk(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for given, place in (
        (elsewhere, elsewhere),
        (tmp_path / "none", tmp_path),
        ("/proc", tmp_path),
    ):
        monkeypatch.setenv(files.TEMPORARY, str(given))
        with files.replacing(tmp_path / "x.txt") as new:
            assert new.parent.parent == place
            new.write_text("x")
        assert (tmp_path / "x.txt").read_text() == "x" and not list(elsewhere.iterdir())
