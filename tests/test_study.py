"""A small grid through `make study`'s command, on a copy of the repository: it runs, resumes, fails
well, and runs again exactly what has changed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    "finetuned": {"backbones": ["micro_resnet-random"], "image_size": 28, "epochs": 2,
                  "learning_rates": [0.001]},
    "collect": {"resamples": 100},
}  # fmt: skip
CELL = Path("results/small/runs/fundus_pm/micro_resnet-random")
FROZEN, TUNED = CELL / "frozen.csv", CELL / "finetuned" / "seed0" / "run.json"
SUMMARY = Path("results/small/summary.csv")
DRAWING = {"compare", "costs", "claims", "look", "write_report"}
# 20 for the whole test: MEDLIB_KILLS=20 pytest tests/test_study.py -k killed
KILLS = int(os.environ.get("MEDLIB_KILLS", "3"))

pytestmark = pytest.mark.xdist_group("study")


class Study:
    """The parts of a repository that a run needs, in a folder of their own."""

    def __init__(self, repository, folder, grid=SMALL, **environment):
        self.folder = folder
        for name in ("medlib", "notebooks", "data_manifests"):
            shutil.copytree(repository / name, folder / name)
        shutil.copy(repository / "Snakefile", folder)
        (folder / "grids").mkdir()
        self.grid(grid)
        self.environment = os.environ | {"PYTHONPATH": str(folder)} | environment

    def grid(self, grid):
        (self.folder / "grids" / "small.yaml").write_text(yaml.safe_dump(grid))

    def begin(self, command="run", *arguments):
        cores = ["--cores", "2"] if command == "run" else []
        return subprocess.Popen(
            [sys.executable, "-m", "medlib.study", command, "small", *cores, *map(str, arguments)],
            cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def call(self, command="run", *arguments):
        """Exit status and all that was printed."""
        process = self.begin(command, *arguments)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    def plan(self):
        """The rules that would run, and the printed reasons."""
        status, said = self.call("plan")
        assert status == 0, said
        lines = [line.split() for line in said.splitlines() if " × " in line]
        return {line[2]: int(line[0]) for line in lines}, said

    def processes(self, *words):
        """The ids of this study's processes whose command line has all of these words."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
                here = os.readlink(process / "cwd")
            except OSError:
                continue
            if here.startswith(str(self.folder)) and all(word in line for word in words):
                found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid that has been run, with a backbone that has a weights file; tests may change it, but
    leave it complete."""
    import timm
    import torch
    from safetensors.torch import save_file

    from medlib import backbones

    repository = Path(__file__).resolve().parent.parent
    folder = tmp_path_factory.mktemp("study")
    weights = folder / "weights"
    weights.mkdir()
    row = backbones.get("micro_resnet-imagenet")
    torch.manual_seed(0)
    tensors = timm.create_model(row.architecture).state_dict()
    for name, value in tensors.items():
        if name.endswith("running_mean"):  # as in a network that has seen images
            value.normal_()
    save_file(tensors, weights / f"{row.timm_name}.safetensors")
    grid = SMALL | {"frozen": SMALL["frozen"] | {"backbones": ["micro_resnet-random", row.name]}}
    study = Study(repository, folder / "copy", grid, MEDLIB_WEIGHTS=str(weights))
    study.weights = weights / f"{row.timm_name}.safetensors"
    study.first = study.call()
    study.asked = grid
    return study


def test_a_grid_runs_to_its_figures_and_a_second_call_runs_nothing(finished):
    folder, (status, said) = finished.folder, finished.first
    assert status == 0, said
    table = pd.read_csv(folder / "figures" / "small" / "main_comparison.csv")
    assert set(table["regime"]) == {"frozen", "finetuned"}
    assert set(table["pretraining"]) == {"random", "imagenet"}
    assert table[["value", "ci_low", "ci_high"]].notna().all().all()
    status, again = finished.call()
    assert status == 0 and "Nothing to be done" in again
    report = (folder / "figures" / "small" / "report.html").read_text(encoding="utf-8")
    assert "All runs of the grid are complete" in report
    for stem in ("main_comparison", "claims", "cost", "curves_fundus_pm", "seen_fundus_pm"):
        assert (folder / "figures" / "small" / f"{stem}.csv").is_file()
    assert (folder / CELL / "03_probe_features.ipynb").is_file()
    assert (folder / TUNED.parent / "04_fine_tune.ipynb").is_file()
    assert not list(folder.rglob("checkpoint.safetensors"))
    # Progress is a line now and then, not Snakemake's pages.
    assert "12 jobs to run." in said and len(said.splitlines()) < 60


def test_the_state_of_a_complete_grid_is_told(finished):
    status, said = finished.call("status")
    assert status == 0 and "3 done, 0 failed, 0 stale, 0 missing" in said
    assert not (finished.folder / "results" / "small" / "progress.json").exists()


def edited(path, old, new):
    """Change a file, and give back what undoes it, time stamp included."""
    before, stamp = path.read_bytes(), path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert path.read_bytes() != before

    def undo():
        path.write_bytes(before)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    return undo


@pytest.mark.parametrize(
    ("file", "old", "new", "run"),
    [
        ("notebooks/03_probe_features.ipynb", "minutes for", "some minutes for",
         {"probe": 2, "collect": 1, **dict.fromkeys(DRAWING, 1)}),
        ("medlib/finetune.py", "RECORD_AFTER = 3", "RECORD_AFTER = 4",
         {"finetune": 1, "collect": 1, **dict.fromkeys(DRAWING, 1)}),
        ("medlib/probe.py", '"""', '"""Better: ',
         {"probe": 2, "collect": 1, **dict.fromkeys(DRAWING, 1)}),
        ("medlib/plots.py", '"""', '"""Nicer: ', dict.fromkeys(DRAWING - {"write_report"}, 1)
         | {"write_report": 1}),
        ("medlib/claims.py", '"""', '"""Bolder: ', {"claims": 1, "write_report": 1}),
        ("data_manifests/fundus_pm.yaml", "title: ", "title: New ",
         {"prepare": 1, "extract": 2, "probe": 2, "finetune": 1, "collect": 1,
          **dict.fromkeys(DRAWING, 1)}),
        ("grids/small.yaml", "epochs: 2", "epochs: 3",
         {"finetune": 1, "collect": 1, **dict.fromkeys(DRAWING, 1)}),
        ("grids/small.yaml", "resamples: 100", "resamples: 99",
         {"collect": 1, "compare": 1, "claims": 1, "costs": 1, "write_report": 1}),
        ("medlib/backbones.yaml", "# The paper's six.",
         "new-imagenet: {timm_name: resnet18.a1_in1k, pretraining: imagenet, embedding: gap, "
         "licence: MIT}", {}),
        ("medlib/backbones.yaml", "test_resnet.r160_in1k, pretraining: imagenet, embedding: gap",
         "test_resnet.r160_in1k, pretraining: imagenet, fixed_norm: true, embedding: gap",
         {"extract": 2, "probe": 2, "finetune": 1, "collect": 1, **dict.fromkeys(DRAWING, 1)}),
    ],
)  # fmt: skip
def test_what_has_changed_decides_what_runs_again(finished, file, old, new, run):
    undo = edited(finished.folder / file, old, new)
    try:
        rules, said = finished.plan()
    finally:
        undo()
    assert rules == run, said
    if run and file.startswith(("notebooks/0", "medlib/f", "medlib/p")):
        assert f"changed: {file}" in said
    if file.startswith("grids"):
        assert "its settings have changed" in said


def test_a_new_backbone_in_the_grid_runs_alone_and_a_touched_file_not_at_all(finished):
    for name in ("medlib/images.py", "notebooks/04_fine_tune.ipynb"):
        (finished.folder / name).touch()  # the same words with a new time stamp
    assert finished.plan()[0] == {}
    more = finished.asked | {"frozen": finished.asked["frozen"] | {"backbones": [
        *finished.asked["frozen"]["backbones"], "micro_efficientnet-random"]}}  # fmt: skip
    finished.grid(more)
    rules, said = finished.plan()
    finished.grid(finished.asked)
    assert rules == {"extract": 1, "probe": 1, "collect": 1, **dict.fromkeys(DRAWING, 1)}, said


def test_other_weights_run_again_what_they_were_used_for(finished):
    stamp = finished.weights.stat()
    os.utime(finished.weights)
    with open(finished.weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    try:
        rules, said = finished.plan()
    finally:
        with open(finished.weights, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(last)
        os.utime(finished.weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    expected = {"extract": 1, "probe": 1, "collect": 1, **dict.fromkeys(DRAWING, 1)}
    assert rules == expected, said
    assert "changed:" in said and "test_resnet" in said


# ----------------------------------------------------------------------------------- one at a time


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not come to that in time"
        time.sleep(0.05)


def test_a_second_run_is_refused_and_the_first_can_be_watched(repository, tmp_path):
    study = Study(repository, tmp_path / "copy")
    first = study.begin("run", FROZEN)
    notebook = study.folder / "results/small/images/fundus_pm/01_prepare_data.ipynb"
    try:
        wait_for(notebook.is_file)
        status, said = study.call("run", FROZEN)
        assert status == 1 and f"being run already, by process {first.pid} on " in said
        assert "make status GRID=small" in said
        _, said = study.call("status")
        assert f"Being run by process {first.pid}" in said
        assert "0 of 3 jobs (0%) · running: prepare fundus_pm" in said
        assert "results/small/images/fundus_pm/01_prepare_data.ipynb" in said
        assert "0 done, 0 failed, 0 stale, 2 missing" in said
        # What a job has done so far can be opened while it runs.
        import nbformat

        assert nbformat.read(notebook, 4).cells
        jobs = study.processes("medlib.execute")
        assert jobs and study.processes("ipykernel")
        first.kill()
        first.wait()
        wait_for(lambda: not study.processes("medlib.execute"), 5)
        wait_for(lambda: not study.processes("ipykernel"), 10)
    finally:
        first.kill()
        first.wait()
    _, said = study.call("status")
    assert "Being run" not in said


def test_a_grid_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(
    finished, repository, tmp_path
):
    """The controller, a job's papermill or its kernel, killed at seeded random moments."""
    assert finished.first[0] == 0
    chance, study = random.Random(0), Study(
        repository, tmp_path / "copy", finished.asked,
        MEDLIB_WEIGHTS=finished.environment["MEDLIB_WEIGHTS"],
    )  # fmt: skip
    expected = (finished.folder / SUMMARY).read_bytes()
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    started, killed = 0, []

    def begin():
        nonlocal started
        started += 1
        return subprocess.Popen(
            [sys.executable, "-m", "medlib.study", "run", "small", "--cores", "2", SUMMARY],
            cwd=study.folder, env=study.environment, stdout=log, stderr=log,
        )  # fmt: skip

    run = begin()
    while len(killed) < KILLS:
        time.sleep(chance.uniform(1, 15))
        if run.poll() is not None:
            if run.returncode == 0:  # once more, from nothing
                assert (study.folder / SUMMARY).read_bytes() == expected
                shutil.rmtree(study.folder / "results")
                shutil.rmtree(study.folder / ".snakemake")
            run = begin()
            continue
        victim = chance.choice(["controller", "medlib.execute", "ipykernel"])
        processes = [run.pid] if victim == "controller" else study.processes(victim)
        if processes:
            os.kill(chance.choice(processes), signal.SIGKILL)
            killed.append(victim)
        if victim == "controller":
            run.wait()
            run = begin()
    run.wait(600)
    if run.returncode:  # a job was killed more often than it is tried
        run = begin()
        run.wait(600)
    log.close()
    said = (tmp_path / "log").read_text()
    print(f"{killed} in {started} runs")
    assert run.returncode == 0, said[-3000:]
    assert (study.folder / SUMMARY).read_bytes() == expected
    assert "being run already" not in said
    # Nothing half-written is left, nor a checkpoint of what is complete.
    assert not list(study.folder.rglob("checkpoint.safetensors"))


# ------------------------------------------------------------------------------------ failing well


def test_a_cell_that_fails_stops_no_other_and_is_told_with_the_way_out(repository, tmp_path):
    broken = SMALL["finetuned"] | {"learning_rates": [0.001, 1e30]}
    study = Study(repository, tmp_path / "copy", SMALL | {"finetuned": broken})
    status, said = study.call("run", FROZEN, TUNED)
    assert status == 1
    assert (study.folder / FROZEN).is_file() and not (study.folder / TUNED).exists()
    table = said[said.index("1 of 4 jobs failed") :]
    assert "- finetune fundus_pm micro_resnet-random finetuned seed 0" in table
    assert (
        "code cell" in table and "of 04_fine_tune.ipynb: FloatingPointError: The training" in table
    )
    notebook = TUNED.parent / "04_fine_tune.ipynb"
    assert f"the executed notebook: {notebook}" in table
    assert "make study GRID=small ONLY=failed" in table
    assert "FloatingPointError" in (study.folder / notebook).read_text()
    assert said.count("take it out of learning_rates") == 2  # at once, and in the table
    # Its last good checkpoint is kept; what cannot go well a second time was not tried again.
    assert (study.folder / TUNED.parent / "checkpoint.safetensors").is_file()
    _, said = study.call("status")
    assert "1 done, 1 failed, 0 stale, 0 missing" in said
    page = (study.folder / "figures" / "small" / "report.html").read_text(encoding="utf-8")
    assert "The grid is not complete:</b> 1 runs done, 1 runs failed." in page
    study.grid(SMALL)
    status, said = study.call("run", "--only-failed")
    assert status == 0 and "1 jobs to run." in said, said
    assert (study.folder / TUNED).is_file()
    status, said = study.call("run", "--only-failed")
    assert status == 0 and "Nothing of grid 'small' has failed" in said


def test_an_unknown_grid_and_a_broken_one_are_one_message(repository, tmp_path):
    study = Study(repository, tmp_path / "copy", SMALL | {"tasks": ["fundus"]})
    for command in ("run", "plan", "status"):
        status, said = study.call(command)
        assert status == 1 and "Unknown task 'fundus'. Did you mean 'fundus_pm'?" in said
        assert "Traceback" not in said
