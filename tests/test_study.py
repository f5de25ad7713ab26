"""A small grid through Snakemake: what `make study` does, on a copy of the repository."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

SMALL = {
    "title": "one task, one backbone",
    "caption": "phantoms",
    "data": "phantoms",
    "tasks": ["fundus_pm"],
    "seeds": [0],
    "prepare": {"phantom_scale": 0.1},
    "frozen": {"backbones": ["micro_resnet-random"], "image_size": 28, "heads": ["linear"]},
    "finetuned": {"backbones": ["micro_resnet-random"], "image_size": 28, "epochs": 1,
                  "learning_rates": [0.001]},
    "collect": {"resamples": 100},
}  # fmt: skip


@pytest.fixture
def study(repository, tmp_path):
    """The parts that a run needs, in a folder of their own, and a function that runs a grid."""
    for name in ("medlib", "notebooks", "data_manifests"):
        shutil.copytree(repository / name, tmp_path / name)
    shutil.copy(repository / "Snakefile", tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "small.yaml").write_text(yaml.safe_dump(SMALL))

    def run(*arguments):
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "grid=small"]
        tools = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        return subprocess.run(
            [*command, "--quiet", "rules", "host", *arguments], cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "PATH": tools},
            capture_output=True, text=True,
        )  # fmt: skip

    return tmp_path, run


@pytest.mark.xdist_group("study")
def test_a_grid_runs_to_its_figures_and_a_second_call_runs_nothing(study):
    folder, run = study
    first = run()
    assert first.returncode == 0, first.stderr
    table = pd.read_csv(folder / "figures" / "small" / "main_comparison.csv")
    assert set(table["regime"]) == {"frozen", "finetuned"}
    assert set(table["pretraining"]) == {"random"}
    assert table[["value", "ci_low", "ci_high"]].notna().all().all()
    again = run()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
    report = (folder / "figures" / "small" / "report.html").read_text(encoding="utf-8")
    assert "All runs of the grid are complete" in report
    for stem in ("main_comparison", "claims", "cost", "curves_fundus_pm", "seen_fundus_pm"):
        assert (folder / "figures" / "small" / f"{stem}.csv").is_file()
    executed = folder / "results" / "small" / "runs" / "fundus_pm" / "micro_resnet-random"
    assert (executed / "03_probe_features.ipynb").is_file()
    assert (executed / "finetuned" / "seed0" / "04_fine_tune.ipynb").is_file()
