"""Opened on its own, a notebook makes two arms; a grid's runs are never added to."""

import pytest

from medlib.files import save_json
from medlib.grid import address, alone, kinds, notebooks


@pytest.fixture
def made(monkeypatch):
    """The runs that are asked for; each is complete at once."""
    asked = []

    def ensure(notebook, promised, *, results, **parameters):
        run = address.Address(parameters["task"], parameters["backbone"], "frozen")
        if not promised.is_file():
            asked.append((notebook, parameters))
            complete(results, run)

    monkeypatch.setattr(alone, "ensure", ensure)
    return asked


def complete(results, run):
    for path in (run.record(results), run.promised(results)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_a_fresh_folder_gets_a_pretrained_arm_and_its_control(tmp_path, made):
    folders = alone.folders(tmp_path)
    backbones = [address.Address.parse(folder).backbone for folder in folders]
    assert backbones == ["micro_resnet-phantoms", "micro_resnet-random"]
    assert [notebook for notebook, _ in made] == ["03_probe_features.ipynb"] * 2
    assert {parameters["task"] for _, parameters in made} == {alone.TASK}
    assert all("image_size" not in parameters for _, parameters in made)
    assert alone.folders(tmp_path) == folders and len(made) == 2  # nothing is made twice
    assert len(alone.folders(tmp_path, task="fundus_pm")) == 2 and len(made) == 4


def test_one_backbone_gets_company_at_the_size_of_its_images(tmp_path, made):
    complete(tmp_path, address.Address("fundus_pm", "vit_tiny-random", "frozen"))
    address.pack(tmp_path, "fundus_pm", 28, "bilinear").mkdir(parents=True)
    assert len(alone.folders(tmp_path)) == 3
    assert {(p["task"], p["image_size"]) for _, p in made} == {("fundus_pm", 28)}


def test_two_backbones_and_real_data_get_nothing_more(tmp_path, made):
    real, phantoms = tmp_path / "real", tmp_path / "phantoms"
    for name in ("vit_tiny-random", "vit_small-random"):
        complete(phantoms, address.Address("fundus_pm", name, "frozen"))
    complete(real, address.Address("fundus_pm", "vit_tiny-random", "frozen"))
    save_json(address.seeds(real, "fundus_pm"), {"phantoms": None})
    assert kinds.held(real) == kinds.REAL
    assert len(alone.folders(phantoms)) == 2 and len(alone.folders(real)) == 1 and made == []
    with pytest.raises(ValueError, match="No run of the task 'chest_xray' .*Run notebook 03"):
        alone.folders(real, task="chest_xray")


def test_a_grid_without_runs_says_how_to_run_it(tmp_path, made, repository):
    with pytest.raises(ValueError, match="make study GRID=demo"):
        alone.folders(tmp_path, str(repository / "grids" / "demo.yaml"))
    assert made == []


def test_lines_say_which_notebook_runs_for_which(tmp_path):
    outer = tmp_path / "00-03_probe_features.ipynb"
    inner = outer / "00-02_extract_features.ipynb"
    inner.mkdir(parents=True)
    (outer / "cells").write_text("\r0 of 21 cells\r3 of 21 cells\n")
    assert notebooks._lines(outer).splitlines() == [
        "Results are missing, so this runs first:",
        "  03_probe_features.ipynb: 3 of 21 cells",
        "    02_extract_features.ipynb: starts",
    ]
    assert "This ran first:" in notebooks._lines(outer, 0)
    assert notebooks._lines(outer, 1).endswith("(it failed)")


def test_a_misspelt_backbone_or_task_is_refused_before_anything_runs(tmp_path):
    promised, asked = tmp_path / "r" / "x.csv", {"results": tmp_path / "r"}
    for parameters, message in (
        ({"backbone": "resnet50"}, "Did you mean 'resnet50-imagenet'"),
        ({"task": "chest_xrays"}, "Did you mean 'chest_xray'"),
    ):
        with pytest.raises(ValueError, match=message):
            notebooks.ensure("03_probe_features.ipynb", promised, **asked, **parameters)
    assert not promised.parent.exists()
