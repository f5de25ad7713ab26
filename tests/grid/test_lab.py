"""Working copies of notebooks: when they are made again, and that git takes no outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_grid import SMALL

from medlib.grid import lab
from medlib.grid.made import code_cells
from medlib.grid.notebooks import check_parameters


@pytest.fixture
def here(tmp_path, monkeypatch, repository):
    """A folder with a grid file, from which `make lab` is called."""
    (tmp_path / "grids").mkdir()
    asked = SMALL | {"tasks": ["dermoscopy"], "prepare": {"repeats": 2, "phantom_scale": 0.5}}
    asked["finetuned"] = SMALL["finetuned"] | {"label_fraction": {"dermoscopy": 0.5}}
    (tmp_path / "grids" / "small.yaml").write_text(json.dumps(asked))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(repository):
    return sorted(path.name for path in (repository / "notebooks").glob("*.ipynb"))


def test_copies_are_the_notebooks_and_an_edited_one_is_kept(here, repository, monkeypatch):
    assert lab.copy(Path("lab")) == []
    copies = {path.name: path.read_text() for path in (here / "lab").glob("*.ipynb")}
    assert sorted(copies) == names(repository)
    originals = repository / "notebooks"
    assert all(text == (originals / name).read_text() for name, text in copies.items())
    edited = here / "lab" / names(repository)[1]
    mine = edited.read_text().replace("chest_xray", "dermoscopy")
    edited.write_text(mine)
    run = json.loads(copies[names(repository)[2]])  # run and saved: outputs are no edit
    run["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["a"]}]
    (here / "lab" / names(repository)[2]).write_text(json.dumps(run))
    assert lab.copy(Path("lab")) == [] and edited.read_text() == mine
    assert json.loads((here / "lab" / names(repository)[2]).read_text()) == run
    # The originals change, as after a git pull.
    newer = here / "notebooks"
    newer.mkdir()
    for name, text in copies.items():
        (newer / name).write_text(text.replace("chest_xray", "fundus_pm"))
    monkeypatch.setattr(lab, "NOTEBOOKS", newer)
    (told,) = lab.copy(Path("lab"))
    assert edited.name in told and "as you edited it" in told and edited.read_text() == mine
    assert "fundus_pm" in (here / "lab" / names(repository)[2]).read_text()


def test_copies_for_a_grid_have_its_parameters_and_read_its_results(here, repository):
    lab.copy(Path("lab-small"), "small")
    stated = {}
    for name in names(repository):
        (source,) = [
            code for given, code in code_cells((here / "lab-small" / name).read_text()) if given
        ]
        stated[name[:2]] = values = {}
        exec(source, values)
        own = {k: v for k, v in values.items() if not k.startswith("__")}
        check_parameters(repository / "notebooks" / name, own)  # names and types still fit
        assert len(re.findall("  # ", source)) == len(source.splitlines())
    assert all(v["results"] == "../results/small" for k, v in stated.items())
    assert stated["01"]["repeats"] == 2 and stated["01"]["image_sizes"] == [28]
    assert stated["03"]["label_fractions"] == [1.0, 0.5] and stated["03"]["heads"] == ["linear"]
    assert stated["03"]["redrawn_fractions"] == [1.0, 0.5] and stated["03"]["seeds"] == [0]
    assert stated["04"]["label_fraction"] == 0.5 and stated["04"]["epochs"] == 2
    assert stated["04"]["regime"] == "finetuned" and stated["04"]["task"] == "dermoscopy"
    assert stated["05"]["grid_file"] == "../grids/small.yaml"
    assert stated["05"]["resamples"] == stated["09"]["resamples"] == 100
    assert stated["08"]["figures"] == "../results/small/lab" and stated["08"]["caption"]


def test_an_unknown_grid_is_one_message(here):
    command = [sys.executable, "-m", "medlib.grid.lab", "smal"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Did you mean 'small'?" in done.stderr
    assert "Traceback" not in done.stderr and not Path("lab-smal").exists()


MARK = "iVBORw0KGgo"  # how a PNG begins, in base64


def test_git_takes_no_output_of_a_notebook_and_no_working_copy(tmp_path, repository):
    """Notebooks that show a picture: one of the study's own, a copy, and one at the root."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    for name in (".gitignore", ".gitattributes"):
        (tmp_path / name).write_text((repository / name).read_text())
    makefile = (repository / "Makefile").read_text()
    for key, value in re.findall(r"\$\(FILTER\)\.(\w+) (\"[^\"]+\"|\w+)", makefile):
        tool = str(Path(sys.executable).parent / "nbstripout")
        value = value.strip('"').replace("$(CURDIR)/$(BIN)/nbstripout", tool)
        git("config", f"filter.nbstripout.{key}", value)
    original = repository / "notebooks" / "01_prepare_data.ipynb"
    content = json.loads(original.read_text())
    shown = {"output_type": "display_data", "metadata": {}, "data": {"image/png": MARK}}
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    code[3] |= {"outputs": [shown], "execution_count": 3}
    for place in ("notebooks", "lab", "lab-pocket", ""):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / original.name).write_text(json.dumps(content, indent=1))
    git("add", "-A")
    staged = git("ls-files").split()
    assert staged == [".gitattributes", ".gitignore", f"notebooks/{original.name}"]
    assert all(MARK not in git("show", f":{name}") for name in staged)
    committed = git("show", f":notebooks/{original.name}")
    assert committed == original.read_text()  # nothing else is changed
    assert MARK in (tmp_path / "notebooks" / original.name).read_text()  # the file still shows it
