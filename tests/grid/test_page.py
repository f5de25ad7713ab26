"""The name and the text of a grid's page say whether the grid is complete."""

import json

import pandas as pd
import pytest
import yaml
from small_grid import SMALL

from medlib import files
from medlib.grid import gridfile, page, records

GRID = SMALL | {"title": "Small & quick <grid>", "caption": "Phantoms, random weights."}
GRID |= {"tasks": ["chest_xray", "fundus_pm"]}


@pytest.fixture
def study(tmp_path):
    """A grid of four runs of which three are complete."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(GRID))
    grid = gridfile.read(tmp_path / "small.yaml")
    for run in gridfile.runs(grid)[:3]:
        save(run, tmp_path / "results")
    (tmp_path / "figures").mkdir()
    return tmp_path


def save(run, results):
    """A complete run with empty tables."""
    made, tables = records.Provenance("random", {}, {}, 1.0), {"predictions.csv": pd.DataFrame()}
    records.save_run(run, results, made, tables, pd.DataFrame(), {})
    if not run.promised(results).exists():
        run.promised(results).touch()


def write(study):
    return page.write(study / "small.yaml", study / "results", study / "figures")


def test_a_page_says_what_there_is_of_its_grid_and_what_it_ran_with(study):
    path = write(study)
    text = path.read_text(encoding="utf-8")
    assert path == study / "figures" / "report_incomplete.html"  # of four runs three are there
    assert "Small &amp; quick &lt;grid&gt;" in text and "Phantoms, random weights." in text
    assert "torch" in text and "Kermany" in text
    assert "The grid is not complete:</b> 3 runs done, 1 runs missing." in text
    assert write(study).read_text(encoding="utf-8") == text


def test_a_complete_grid_has_a_page_of_that_name_and_no_other(study):
    write(study)
    last = gridfile.runs(gridfile.read(study / "small.yaml"))[3]
    save(last, study / "results")
    path = write(study)
    assert "All runs of the grid are complete" in path.read_text(encoding="utf-8")
    assert path.name == "report.html" and not path.with_name("report_incomplete.html").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"coordinates": {"regime": "lora"}}', None])
def test_a_record_that_cannot_be_read_or_is_of_another_run_counts_as_missing(study, content):
    run = gridfile.runs(gridfile.read(study / "small.yaml"))[0]
    record = run.record(study / "results")
    if content is None:  # another regime: it would be a new arm
        said = files.read_json(record)
        said["coordinates"]["regime"] = "lora"
        content = json.dumps(said)
    record.write_text(content)
    with pytest.warns(UserWarning, match="run.json (is empty|is not the record).* counts as missi"):
        text = write(study).read_text(encoding="utf-8")
    assert "2 runs done, 2 runs missing." in text


def test_from_the_command_line_a_grid_that_cannot_be_read_is_one_message(
    study, capsys, monkeypatch
):
    monkeypatch.setattr(
        "sys.argv", ["page", str(study / "smal.yaml"), str(study / "r"), str(study / "f")]
    )
    assert page.main() == 1
    assert "'smal'" in capsys.readouterr().err
