"""The page of a grid is named by what there is of the grid, and says it."""

import shutil

import pandas as pd
import pytest
import yaml
from small_grid import SMALL

from medlib.grid import gridfile, page, records

GRID = SMALL | {"title": "Small & quick <grid>", "caption": "Phantoms, random weights."}
GRID |= {"tasks": ["chest_xray", "fundus_pm"]}


@pytest.fixture
def study(tmp_path):
    """A grid of four runs of which three are complete."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(GRID))
    grid = gridfile.read(tmp_path / "small.yaml")
    made = records.Provenance("random", {}, {}, 1.0)
    for run in gridfile.runs(grid)[:3]:
        tables = {"predictions.csv": pd.DataFrame({"a": [1]})}
        records.save_run(run, tmp_path / "results", made, tables, pd.DataFrame(), {})
        run.promised(tmp_path / "results").touch()
    (tmp_path / "figures").mkdir()
    return tmp_path


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
    runs = gridfile.runs(gridfile.read(study / "small.yaml"))
    shutil.copytree(*(run.folder(study / "results") for run in (runs[2], runs[3])))
    path = write(study)
    assert "All runs of the grid are complete" in path.read_text(encoding="utf-8")
    assert path.name == "report.html" and not path.with_name("report_incomplete.html").exists()


def test_from_the_command_line_a_grid_that_cannot_be_read_is_one_message(
    study, capsys, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["page", str(study / "smal.yaml"), str(study / "r"), str(study / "f")])
    assert page.main() == 1
    assert "'smal'" in capsys.readouterr().err
