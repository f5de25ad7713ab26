"""Records of what jobs were made from: only content makes a job stale, never a date."""

import json
import os
import time

import nbformat
import pytest

from medlib.grid import made


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A complete job of a module, a notebook and a table; returns why it is stale now."""
    monkeypatch.chdir(tmp_path)
    with open("module.py", "w") as module:
        module.write("x = 1  # one\n\n\ny = '''a\n\n b  '''\n")
    cells = [
        nbformat.v4.new_code_cell("seed: int = 0  # any", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("Words."),
        nbformat.v4.new_code_cell("%%bash\nls  # not Python: it's"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "n.ipynb")
    for name in ("table.csv", "weights.bin"):
        (tmp_path / name).write_text(name)
    inputs = ["module.py", "n.ipynb", "table.csv", str(tmp_path / "weights.bin")]
    made.ended("log.ipynb", made.begun(inputs, ["{}"]), ["table.csv"])
    return lambda inputs=inputs: made.why_stale(
        "log.ipynb", inputs, ["{}"], ["table.csv"], made.Digests()
    )


def test_comments_blank_lines_outputs_and_words_are_not_code(job, tmp_path):
    assert job() == ""
    (tmp_path / "module.py").write_text("# first\nx = 1\ny = '''a\n\n b  '''\n")
    notebook = nbformat.read("n.ipynb", 4)
    notebook.cells[0].source = "seed: int = 0  # any number\n"
    notebook.cells[1].source = "Other words."
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="a patient")]
    notebook.cells.append(nbformat.v4.new_markdown_cell("More."))
    notebook.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}
    nbformat.write(notebook, "n.ipynb")
    os.utime("table.csv", (0, 0))
    assert job() == ""


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("module.py", "x = 1", "x = 2"),
        ("module.py", "'''a\n\n b  '''", "'''a\n b  '''"),  # a text's blank line is code
        ("module.py", "'''a\n\n b  '''", "'''a\n\n b '''"),
        ("n.ipynb", "seed: int = 0", "seed: int = 1"),
        ("n.ipynb", '"parameters"', '"parameter"'),
        ("n.ipynb", "%%bash", "%%sh"),
        ("table.csv", "table", "tables"),
        ("weights.bin", "weights", "Weights"),
    ],
)
def test_other_content_counts_whatever_the_date_says(job, tmp_path, name, old, new):
    file = tmp_path / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    os.utime(file, (0, 0))
    assert job() == f"changed: {name}"


def test_weights_may_lie_elsewhere_but_another_set_of_inputs_counts(job, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "there" / "weights.bin")
    inputs = ["module.py", "n.ipynb", "table.csv"]
    assert job(inputs=[*inputs, str(tmp_path / "there" / "weights.bin")]) == ""
    assert job(inputs=inputs) == "its set of inputs has changed" == job(inputs=["module.py"])


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"inputs": {}}', None])
def test_a_record_that_cannot_be_read_is_none(job, tmp_path, damage):
    record = made.record("log.ipynb")
    record.unlink() if damage is None else record.write_text(damage)
    assert job() == "there is no record of what it was made from"


def test_a_damaged_output_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text("0.7")
    made.ended("log.ipynb", made.begun([], []), ["scores.csv"])
    (tmp_path / "scores.csv").write_text("0.8")
    assert made.why_stale("log.ipynb", [], [], ["scores.csv"], made.Digests()) == (
        "damaged or edited: scores.csv"
    )


def test_a_file_is_read_again_only_if_it_may_have_changed(tmp_path, monkeypatch):
    file, kept = tmp_path / "large.bin", tmp_path / "digests.json"
    file.write_bytes(b"abc")
    first = made.Digests(kept)
    digest = first.of(file)
    first.keep()
    assert json.loads(kept.read_text()) == {}  # too recent: another change could have the same time
    monkeypatch.setattr(made, "SETTLED", -1e9)
    first = made.Digests(kept)
    assert first.of(file) == digest and first.of(tmp_path / "none") == ""
    first.keep()
    read = []
    monkeypatch.setattr(made, "_digest", lambda path: read.append(path) or "read")
    assert made.Digests(kept).of(file) == digest and not read
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    # Its size, inode and time of writing are as before. Only its time of change differs.
    assert made.Digests(kept).of(file) == "read"
    kept.write_text("not JSON")
    assert made.Digests(kept).of(file) == "read"
