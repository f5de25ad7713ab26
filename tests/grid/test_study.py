"""A small grid runs through the command of `make study`, on a copy of the repository.

It resumes, reports failures, and runs again exactly what has changed.
"""

import argparse
import ast
import contextlib
import io
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_grid import CALLED_COMPLETE, SMALL, Study
from snakemake_interface_logger_plugins.common import LogEvent
from waiting import wait_for

from medlib.core import backbones
from medlib.grid import gridfile, jobs, models, notebooks, plan, study
from medlib.grid.study import failures
from medlib.grid.watch import Watch, progress_words
from medlib.show import style

CELL = Path("results/small/runs/fundus_pm/micro_resnet-random")
FROZEN, TUNED = CELL / "frozen.csv", CELL / "finetuned" / "seed0" / "run.json"
SUMMARY = Path("results/small/summary.csv")
DRAWING = {"compare", "costs", "claims", "look", "operate", "subgroups", "checklist"}
DRAWING |= {"write_report"}
pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid that has been run; one of its backbones has a weights file.

    Tests may change it, but they leave it complete.
    """
    import timm
    import torch
    from safetensors.torch import save_file

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
    study = Study(folder / "copy", grid, MEDLIB_WEIGHTS=str(weights))
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
    assert not list(folder.rglob("trained-*.safetensors")), "weights that were not chosen"
    for run in (TUNED.parent, CELL / "frozen-linear" / "seed0"):
        assert models.load(folder / run).facts["run"]["task"] == "fundus_pm"
    # Progress is a line now and then, not Snakemake's long output.
    assert "Grid 'small' (one task, one backbone): 17 jobs to do.\nThis may take" in said
    assert len(said.splitlines()) < 60


def test_garbage_is_collected_while_jobs_run(finished):
    told = """
import gc
from medlib.grid import study, watch
class Told(watch.Watch):
    def __call__(self, record):
        super().__call__(record)
        if getattr(record, "event", None) == watch.LogEvent.JOB_STARTED:
            print("collects garbage:", gc.isenabled())
study.Watch = Told
study.run(study.Study("small"), ["--cores", "2", "--forcerun", "write_report"])
"""
    command = [sys.executable, "-c", told]
    said = subprocess.run(
        command, cwd=finished.folder, env=finished.environment, capture_output=True, text=True
    ).stdout
    assert set(re.findall("collects garbage: .*", said)) == {"collects garbage: True"}


def test_nothing_of_a_grid_reaches_a_shell_and_nobody_is_called(finished):
    assert not list(finished.folder.parent.rglob("pwned"))
    assert not (finished.folder / "calls.log").exists()
    table = (finished.folder / "figures/small/main_table.md").read_text(encoding="utf-8")
    assert "$(touch pwned) {wildcards.task}" in table


def test_what_a_study_calls_is_noticed(finished):
    code = "import socket; socket.create_connection(('192.0.2.1', 9), 0.1)"
    subprocess.run([sys.executable, "-c", code], env=finished.environment, capture_output=True)
    log = finished.folder / "calls.log"
    assert "192.0.2.1" in log.read_text()
    log.unlink()


def test_the_state_of_a_complete_grid_is_told(finished):
    status, said = finished.call("status")
    assert status == 0 and "3 done, 0 failed, 0 stale, 0 missing" in said
    assert not (finished.folder / "results" / "small" / "progress.json").exists()


LONG_AGO = 10**18  # nanoseconds: in 2001


@contextlib.contextmanager
def edited(path, edit):
    """Edit a file and give it an old date; afterwards restore its content and its date."""
    before, stamp = path.read_bytes(), path.stat()
    path.write_bytes(edit(before))
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    assert path.read_bytes() != before
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


DRAWN = dict.fromkeys(DRAWING, 1)
ONCE = {"collect": 1, **DRAWN}
ROWS = "medlib/core/backbones.yaml"
NEW_ROW = "new-imagenet: {printed: New, family: CNN, timm_name: resnet18.a1_in1k, "
NEW_ROW += "pretraining: imagenet, embedding: gap, licence: MIT}"
PROBED = {"probe": 2, "summarise": 2, **ONCE}
TUNED_AGAIN = {"finetune": 1, "summarise": 1, **ONCE}
# Long jobs wait for what these write, and run again only if that has changed.
PREPARED = {"prepare": 1, "subgroups": 1, "checklist": 1, "write_report": 1}
EXTRACTED = {"extract": 1}
REPORTED = {"checklist": 1, "write_report": 1}
RAN = '"outputs": [{"name": "stdout", "output_type": "stream", "text": ["a patient"]}]'
IMAGENET = "test_resnet.r160_in1k, pretraining: imagenet, "
EDITS = {  # a file, a text in it, what replaces the text, and the jobs that run again
    "a notebook": (
        "notebooks/03_probe_features.ipynb",
        "].round(3)",
        "].round(4)",
        PROBED,
    ),
    "a default": ("notebooks/04_fine_tune.ipynb", "epochs: int = ", "epochs: int = 1", TUNED_AGAIN),
    "a comment": ("medlib/core/heads.py", "import numpy", "# Arrays.\n\nimport numpy", {}),
    "words in a notebook": ("notebooks/04_fine_tune.ipynb", "## ", "## About ", {}),
    "a cell's output": ("notebooks/04_fine_tune.ipynb", '"outputs": []', RAN, {}),
    "training": ("medlib/core/fast/graph.py", "RECORD_AFTER = 3", "RECORD_AFTER = 4", TUNED_AGAIN),
    "heads": ("medlib/core/heads.py", '"""', '"""Better: ', PROBED),
    "a style": ("medlib/show/style.py", '"""', '"""Nicer: ', DRAWN),
    "claims": ("medlib/stats/claims.py", '"""', '"""Bolder: ', {"claims": 1, **REPORTED}),
    "a card": ("data_manifests/fundus_pm.yaml", "title: ", "title: New ", PREPARED),
    "volumes": ("medlib/data/volumes.py", '"""', '"""Larger: ', PREPARED),
    "a setting": ("grids/small.yaml", "epochs: 2", "epochs: 3", TUNED_AGAIN),
    "resamples": ("grids/small.yaml", "resamples: 100", "resamples: 99", {"summarise": 2, **ONCE}),
    "a new row": (ROWS, "# The paper's three CNNs.", NEW_ROW, {}),
    "a printed name": (ROWS, "printed: Micro-ResNet", "printed: Tiny-ResNet", DRAWN),
    # The random control does not change: its batch norm was not folded.
    "a row": (ROWS, IMAGENET, IMAGENET + "fixed_norm: true, ", EXTRACTED),
}


@pytest.mark.parametrize(("file", "old", "new", "run"), EDITS.values(), ids=EDITS)
def test_what_has_changed_decides_what_runs_again(finished, file, old, new, run):
    with edited(finished.folder / file, lambda text: text.replace(old.encode(), new.encode(), 1)):
        rules, said = finished.plan()
    assert rules == run, said
    if run and file.startswith(("notebooks/0", "medlib/core/")) and not file.endswith(".yaml"):
        assert f"changed: {file}" in said
    if run and file.startswith(("grids", ROWS)):
        assert "its settings have changed" in said
    waiting = {"prepare": 5, "extract": 1}.get(next(iter(run), ""), 0)
    assert (f"{waiting} long jobs read what these write." in said) == bool(waiting)


def test_what_has_changed_is_known_without_snakemakes_own_records(finished):
    finished.grid(finished.asked | {"collect": {"resamples": 99}})
    hidden, away = finished.folder / ".snakemake", finished.folder / "away"
    hidden.rename(away)
    try:
        rules, said = finished.plan()
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        away.rename(hidden)
        finished.grid(finished.asked)
    assert rules == {"summarise": 2, **ONCE}, said


def test_a_manifest_made_again_with_the_same_content_trains_nothing_again(finished):
    record = finished.folder / TUNED
    before = record.stat().st_ino
    path = finished.folder / "medlib/data/duplicates.py"
    original = path.read_text()
    for text in (original.replace('"""', '"""Fewer: ', 1), original):
        path.write_text(text)
        assert finished.plan()[0] == PREPARED
        status, said = finished.call()
        assert status == 0 and CALLED_COMPLETE.search(said), said
        assert re.findall(r"\d+ (?:more )?jobs to run", said) == ["1 jobs to run"]
    assert record.stat().st_ino == before


def test_code_that_is_edited_while_a_job_runs_runs_again(finished):
    path = finished.folder / "medlib/core/fast/graph.py"
    text = path.read_text()
    path.write_text(text.replace("RECORD_AFTER = 3", "RECORD_AFTER = 4"))
    process = finished.begin("run", TUNED)
    wait_for(lambda: finished.processes("ipykernel"))  # its inputs have been looked at
    path.write_text(text)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert re.findall(r"\d+ (?:more )?jobs to run", said) == ["1 jobs to run", "1 more jobs to run"]
    status, said = finished.call()
    assert status == 0 and CALLED_COMPLETE.search(said), said


def test_a_new_backbone_in_the_grid_runs_alone_and_a_touched_file_not_at_all(finished):
    # The same content with a new time stamp, as of a copy; weights are large files.
    assert finished.weights.stat().st_size > 1_000_000
    for name in ("medlib/data/packs.py", "notebooks/04_fine_tune.ipynb", finished.weights):
        (finished.folder / name).touch()
    assert finished.plan()[0] == {}
    frozen = finished.asked["frozen"]
    more = {"backbones": [*frozen["backbones"], "micro_efficientnet-random"]}
    finished.grid(finished.asked | {"frozen": frozen | more})
    rules, said = finished.plan()
    finished.grid(finished.asked)
    assert rules == {"extract": 1, "probe": 1, "summarise": 1, **ONCE}, said


def test_other_weights_run_again_what_they_were_used_for(finished):
    with edited(finished.weights, lambda data: data[:-1] + bytes([data[-1] ^ 1])):
        rules, said = finished.plan()
    assert rules == EXTRACTED, said
    assert "changed:" in said and "test_resnet" in said


@pytest.mark.parametrize(
    ("file", "rule"),
    [
        ("results/small/features/fundus_pm/micro_resnet-random/seed0/meta.json", "extract"),
        (CELL / "frozen-linear" / "seed0" / "run.json", "probe"),
        (TUNED, "finetune"),
        (SUMMARY, "collect"),
        ("figures/small/main_comparison.png", "compare"),
        ("figures/small/report.html", "write_report"),
    ],
)
def test_a_grid_that_lacks_any_of_its_files_is_not_complete(finished, file, rule):
    file = finished.folder / file
    away = file.with_name("away")
    file.rename(away)
    try:
        rules, said = finished.plan()
    finally:
        away.rename(file)
    assert rule in rules and not CALLED_COMPLETE.search(said), said


def zeroed(content):
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


RESULTS = Path("results/small")
DAMAGE = {  # a file, what is done to its content, and the rule that repairs it
    "predictions": (CELL / "frozen-linear/seed0/predictions.csv", zeroed, "probe"),
    "validation": (
        TUNED.parent / "validation.csv",
        lambda c: c.replace(b"0.", b"1.", 1),
        "finetune",
    ),
    "a model": (CELL / "frozen-linear/seed0/model.safetensors", lambda c: c[:-1] + b"x", "probe"),
    "a record's regime": (TUNED, lambda c: c.replace(b'"finetuned"', b'"lora"'), "finetune"),
    "a head": (
        CELL / "frozen-linear/seed0/run.json",
        lambda c: c.replace(b"linear", b"knn"),
        "probe",
    ),
    "an interval": (CELL / "intervals.json", lambda c: c.replace(b"0.", b"1.", 1), "summarise"),
    "a summary": (SUMMARY, lambda c: c.replace(b"0.", b"1.", 1), "collect"),
    "a manifest": (RESULTS / "manifests/fundus_pm.csv", lambda c: c + b"x", "prepare"),
    "a figure": (Path("figures/small/claims.csv"), lambda c: b"", "claims"),
}


@pytest.mark.parametrize(("file", "damage", "rule"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_seen_and_repaired_by_the_job_that_wrote_the_file(finished, file, damage, rule):
    with edited(finished.folder / file, damage):
        rules, said = finished.plan()
        if rule in ("probe", "finetune"):
            _, state = finished.call("status")
            missing = int(file.name == "run.json")  # a record; a damaged table makes its run stale
            assert f"2 done, 0 failed, {1 - missing} stale, {missing} missing" in state, state
    assert rule == next(iter(rules)), said
    assert "damaged" in said and not CALLED_COMPLETE.search(said), said


def test_files_that_a_loss_of_power_left_empty_are_made_again(finished):
    study = finished
    before = (study.folder / SUMMARY).read_bytes()
    prepared = RESULTS / "images/fundus_pm"
    empty = [
        prepared / "28-bicubic/meta.json",
        RESULTS / "features/fundus_pm/micro_resnet-random/seed0/meta.json",
        CELL / "frozen-linear/seed0/run.json",
        CELL / "frozen-linear/seed0/predictions.csv",
        TUNED,
        CELL / "intervals.json",
        RESULTS / "progress.json",
        RESULTS / "digests.json",
        prepared / "01_prepare_data.made.json",
        prepared / "01_prepare_data.failure.json",
        TUNED.parent / "04_fine_tune.failure.json",
    ]
    for name in empty:
        (study.folder / name).write_bytes(b"")
    status, said = study.call("status")
    assert status == 0 and "1 done" in said and "Traceback" not in said, said
    status, said = study.call()
    assert status == 0 and CALLED_COMPLETE.search(said), said
    assert "1 × prepare" in said and "damaged" in said  # the reason is printed
    assert (study.folder / SUMMARY).read_bytes() == before
    assert study.plan()[0] == {}


def test_a_grid_without_its_weights_is_refused_as_often_as_it_is_asked_for(tmp_path):
    backbones = {"frozen": SMALL["frozen"] | {"backbones": ["micro_resnet-imagenet"]}}
    nowhere = {"HF_HUB_OFFLINE": "1", "MEDLIB_WEIGHTS": "", "HF_HOME": str(tmp_path / "no cache")}
    study = Study(tmp_path / "copy", SMALL | backbones, **nowhere)
    for _ in range(2):
        status, said = study.call()
        assert status == 1 and "No weights for micro_resnet-imagenet" in said
        assert not CALLED_COMPLETE.search(said), said
    assert "extract" in study.plan()[0]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_grid_that_is_stopped_goes_on_where_it_was(tmp_path, sent):
    """`make test-attack` sends these, and others, at many random moments."""
    study = Study(tmp_path / "copy")
    process = study.begin("run")
    wait_for((study.folder / "results/small/manifests/fundus_pm.csv").is_file)
    wait_for(lambda: study.processes("medlib.grid.notebooks"))  # the next job
    process.send_signal(sent)
    said, _ = process.communicate(timeout=600)
    assert process.returncode and not CALLED_COMPLETE.search(said), said
    rules, said = study.plan()
    assert {"probe", "finetune", "collect", *DRAWING} <= set(rules), said
    if sent == signal.SIGTERM:
        status, said = study.call("run", SUMMARY)  # `make test-attack` goes on to the page
        assert status == 0 and not CALLED_COMPLETE.search(said), said
        assert set(study.plan()[0]) == DRAWING and (study.folder / SUMMARY).is_file()


# ----------------------------------------------------------------------------------- one at a time


def test_a_second_run_is_refused_and_the_first_can_be_watched(tmp_path):
    study = Study(tmp_path / "copy")
    first = study.begin("run", SUMMARY)
    notebook = study.folder / "results/small/images/fundus_pm/01_prepare_data.ipynb"
    try:
        wait_for(notebook.is_file)
        status, said = study.call("run", SUMMARY)
        assert status == 1 and f"being run already, by process {first.pid} on " in said
        assert "make status GRID=small" in said
        _, said = study.call("status")
        assert f"Being run by process {first.pid}" in said
        assert " of 6 jobs (" in said and " · running: " in said
        assert re.search(r"fundus_pm.*: results/small/.*\.ipynb", said)
        assert re.search(r"^\d done, 0 failed, 0 stale, \d missing$", said, re.M)
        # What a job has done so far can be opened while it runs.
        import nbformat

        assert nbformat.read(notebook, 4).cells
        # One job may have ended, and the next not begun its kernel.
        wait_for(lambda: study.processes("medlib.grid.notebooks") and study.processes("ipykernel"))
        first.kill()
        first.wait()
        wait_for(lambda: not study.processes("medlib.grid.notebooks"))
        wait_for(lambda: not study.processes("ipykernel"))
    finally:
        first.kill()
        first.wait()
    _, said = study.call("status")
    assert "Being run" not in said


# ------------------------------------------------------------------------------------ failing well


def test_a_cell_that_fails_stops_no_other_and_is_told_with_the_way_out(tmp_path):
    broken = SMALL["finetuned"] | {"learning_rates": [0.001, 1e30]}
    study = Study(tmp_path / "copy", SMALL | {"finetuned": broken})
    status, said = study.call("run", FROZEN, TUNED)
    assert status == 1
    assert (study.folder / FROZEN).is_file() and not (study.folder / TUNED).exists()
    table = said[said.index("1 of 4 jobs failed") :]
    assert "- finetune fundus_pm micro_resnet-random finetuned seed 0" in table
    assert "code cell" in table
    assert "of 04_fine_tune.ipynb: FloatingPointError: The training" in table
    notebook = TUNED.parent / "04_fine_tune.ipynb"
    assert f"the executed notebook: {notebook}" in table
    assert "make study GRID=small ONLY=failed" in table
    assert "make figures GRID=small" in table
    assert "FloatingPointError" in (study.folder / notebook).read_text()
    assert said.count("take it out of learning_rates") == 2  # at once, and in the table
    # Its last good checkpoint is kept. A failure that would happen again was not tried again.
    assert (study.folder / TUNED.parent / "checkpoint.safetensors").is_file()
    _, said = study.call("status")
    assert "1 done, 1 failed, 0 stale, 0 missing" in said
    figures = study.folder / "figures" / "small"
    incomplete = "The grid is not complete:</b> 1 runs done, 1 runs failed."
    page = figures / "report_incomplete.html"
    assert incomplete in page.read_text(encoding="utf-8")
    # The same command once more must not say "complete" while a run is missing.
    status, said = study.call()
    assert status == 1 and not CALLED_COMPLETE.search(said), said
    assert not (figures / "report.html").exists()
    # The complete runs can be drawn, and captions say that runs are missing.
    status, said = study.call("figures")
    assert status == 0 and "Drawing figures/small from 1 of 2 runs" in said, said
    assert set(pd.read_csv(figures / "main_comparison.csv")["regime"]) == {"frozen"}
    assert "Not the whole grid: 1 of 2 runs." in (figures / "main_table.md").read_text()
    assert not (figures / "report.html").exists()
    page = page.read_text(encoding="utf-8")
    assert incomplete in page and "data:image/webp" in page
    study.grid(SMALL)
    status, said = study.call("run", "--only-failed")
    assert status == 0 and "1 jobs to run." in said, said
    assert "jobs of the grid are left: make study" in said and not CALLED_COMPLETE.search(said)
    assert (study.folder / TUNED).is_file()
    assert DRAWING | {"summarise", "collect"} == set(study.plan()[0])  # of all runs, this time
    status, said = study.call("run", "--only-failed")
    assert status == 0 and "Nothing of grid 'small' has failed" in said


def test_an_unknown_grid_and_a_broken_one_are_one_message(tmp_path):
    study = Study(tmp_path / "copy", SMALL | {"tasks": ["fundus"]})
    for command in ("run", "plan", "status"):
        status, said = study.call(command)
        assert status == 1 and "Unknown task 'fundus'. Did you mean 'fundus_pm'?" in said
        assert "Traceback" not in said


def test_a_complete_grid_whose_results_are_read_only_is_looked_at_and_not_changed(finished):
    place = finished.folder / "results"
    mount = [["mount", "--bind", place, place], ["mount", "-o", "remount,ro,bind", place]]
    if any(subprocess.run(one, capture_output=True).returncode for one in mount):
        pytest.skip("no folder can be mounted read-only here")
    try:
        assert finished.plan()[0] == {}
        status, said = finished.call("status")
        assert status == 0 and "0 failed, 0 stale, 0 missing" in said, said
        for command in ("run", "figures"):
            status, said = finished.call(command)
            assert status == 1 and "Traceback" not in said
            assert "cannot be written to (Read-only file system)" in said, said
    finally:
        subprocess.run(["umount", place], check=True)


NONE_DONE = "No run of grid 'small' is complete yet"


@pytest.mark.parametrize(
    ("command", "words"), [("run", "results"), ("figures", NONE_DONE), ("status", "")]
)
def test_results_that_are_a_file_are_one_message(tmp_path, monkeypatch, capsys, command, words):
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "results").write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study", command, "small"])
    monkeypatch.setattr(study, "planned", lambda *a: plan.Plan([]))
    status, said = study.main(), capsys.readouterr()
    assert status == (0 if command == "status" else 1)
    assert words in said.err and len(said.err.splitlines()) == (command != "status")
    assert command != "status" or "0 done, 0 failed, 0 stale, 2 missing" in said.out


def test_of_a_grid_of_which_nothing_is_there_nothing_is_drawn(tmp_path):
    status, said = Study(tmp_path / "copy").call("figures")
    assert status == 1
    assert said == "No run of grid 'small' is complete yet: make study GRID=small\n"


def test_no_name_of_a_file_reaches_a_shell(tmp_path):
    """Classes, patients and files of a folder have names that a shell would interpret."""
    data = tmp_path / "my data $(touch pwned)"
    rng = np.random.default_rng(0)
    names = ["a b", "it's", '"q"', "$(touch pwned)", "`touch pwned`", "new\nline"]
    names += ["semi;touch pwned", "{task}", "-x", "é%s"]
    for name in names:
        for label in ("the well & good", "ill $(touch pwned)"):
            image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
            (data / "odd set" / label).mkdir(parents=True, exist_ok=True)
            image.save(data / "odd set" / label / f"{name}-{label[0]}.png")
    grid = SMALL | {"tasks": ["odd"], "data": "real", "prepare": {}}
    study = Study(tmp_path / "copy", grid, MEDLIB_DATA=str(data))
    card = {
        "title": "Odd; $(touch pwned)",
        "modality": "`touch pwned`",
        "folder": "odd set",
        "classes": ["the well & good", "ill $(touch pwned)"],
        "layout": "folder_per_class",
        "licence": "none",
        "citation": "'none'",
        "source": '"none"',
    }
    (study.folder / "data_manifests" / "odd.yaml").write_text(yaml.safe_dump(card))
    status, said = study.call("run", "results/small/manifests/odd.csv")
    assert status == 0, said
    rows = pd.read_csv(study.folder / "results/small/manifests/odd.csv", keep_default_na=False)
    assert len(rows) == 2 * len(names)
    assert rows["path"].str.contains("$(touch pwned)", regex=False).any()
    assert not list(tmp_path.rglob("pwned"))


MAGENTA = (254, 2, 253)  # of a patch in each image: no figure has this colour


KERNING = rb"\)\s*[-\d.e]+\s*\(|\0"  # a PDF writes this between two letters of a word


def without_kerning(stream):
    return re.sub(KERNING, b"", stream)


def shows_magenta(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (abs(pixels - MAGENTA).max(axis=-1) <= 8).any()


def test_a_mark_in_a_pdf_is_found():
    with matplotlib.rc_context(style.STYLE):
        fig, pdf = matplotlib.figure.Figure(), io.BytesIO()
        fig.text(0.1, 0.1, "MARKED-1-0.png")
        fig.savefig(pdf, format="pdf")
    found = b""
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf.getvalue(), re.S):
        with contextlib.suppress(zlib.error):
            found += without_kerning(zlib.decompress(stream))
    assert b"MARKED-1-0.png" in found


def marked_data(folder):
    """Images with a magenta patch. Names of files and patients hold MARKED; one is unreadable."""
    rng, rows = np.random.default_rng(0), []
    (folder / "private").mkdir(parents=True)
    for patient in range(16):
        for number in range(2):
            pixels = rng.integers(0, 200, (48, 48, 3), dtype=np.uint8)
            pixels[8:40, 8:40] = MAGENTA
            pixels[20:30, 20:30] = 90 * (patient % 2)
            file = f"MARKED-{patient}-{number}.png"
            Image.fromarray(pixels).save(folder / "private" / file)
            label = ["well", "ill"][patient % 2]
            rows.append([file, f"MARKED p{patient}", label, 40 + patient, f"ward {patient % 3}"])
    shutil.copy(folder / "private" / "MARKED-1-0.png", folder / "private" / "MARKED-3-1.png")
    (folder / "private" / "MARKED-5-0.png").write_bytes(b"half a file")
    columns = ["file", "patient", "diagnosis", "age", "site"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "private" / "scans.csv", index=False)
    columns = {"path": "file", "patient_id": "patient", "label": "diagnosis"}
    known = {"age": "age", "site": "site"}
    return {
        "title": "Private",
        "modality": "photographs",
        "folder": "private",
        "classes": ["well", "ill"],
        "layout": "table",
        "layout_options": {"table": "scans.csv", "columns": columns | known},
        "folds": 3,
        "licence": "none",
        "citation": "none",
        "source": "none",
    }


def test_git_takes_nothing_of_a_patient_from_a_study(tmp_path, repository):
    card = marked_data(tmp_path / "data")
    grid = SMALL | {"tasks": ["private"], "data": "real", "prepare": {"quarantine": True}}
    grid |= {"finetuned": {}}
    study = Study(tmp_path / "copy", grid, MEDLIB_DATA=str(tmp_path / "data"))
    (study.folder / "data_manifests" / "private.yaml").write_text(yaml.safe_dump(card))
    status, said = study.call()
    assert status == 0, said
    seen = study.folder / "figures" / "small" / "wrong_private.png"
    left = seen.with_name(".wrong_private.png.x1y2") / seen.name  # as it is left by a killed job
    left.parent.mkdir()
    shutil.copy(seen, left)
    for name in (".gitignore", ".gitattributes"):
        shutil.copy(repository / name, study.folder)
    subprocess.run(["git", "init", "-q"], cwd=study.folder, check=True)
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=study.folder, capture_output=True, text=True, check=True)
    staged = [study.folder / name for name in done.stdout.splitlines()]
    drawn = [path for path in staged if path.parent == seen.parent]
    assert {"passport_private.csv", "embeddings_private.svg", "main_table.md"} <= {
        path.name for path in drawn
    }
    for path in staged:
        content = path.read_bytes()
        for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.S):  # of a PDF
            with contextlib.suppress(zlib.error):
                content += without_kerning(zlib.decompress(stream))
        assert b"MARKED" not in content, path
        assert path.suffix != ".png" or not shows_magenta(path), path
    # The search works: it finds the marks where they should be.
    assert shows_magenta(seen)
    assert "MARKED" in (study.folder / "results/small/manifests/private.csv").read_text()


@pytest.mark.parametrize(
    "name", ["a b", "a'b", "$(touch pwned)", "a\nb", "a;b", "{task}", "-a", "..", "a/b"]
)
def test_names_that_become_paths_are_plain(tmp_path, name):
    file = tmp_path / "small.yaml"
    broken = SMALL | {"tasks": [name], "frozen": SMALL["frozen"] | {"backbones": [name]}}
    file.write_text(yaml.safe_dump(broken))
    with pytest.raises(ValueError) as error:
        gridfile.read(file)
    assert str(error.value).count("cannot be a name: letters, digits") == 2


def test_nothing_that_is_read_can_run(repository):
    """medlib uses no pickle, evaluates no text, calls no shell, and unpacks no archive blindly."""
    words = "pickle joblib.load joblib.Memory dill shelve marshal read_pickle torch.load extractall"
    words += " unpack_archive eval exec os.system os.popen yaml.load shell allow_pickle"
    banned = set(words.split())
    files = {path: path.read_text("utf-8") for path in (repository / "medlib").rglob("*.py")}
    sources = [*files.values(), *map(notebooks.code, (repository / "notebooks").glob("*.ipynb"))]
    used, loads = set(), []
    for node in itertools.chain(*(ast.walk(ast.parse(source)) for source in sources)):
        if isinstance(node, ast.Attribute):
            used |= {ast.unparse(node)} | ({node.attr} - {"eval"})  # a network's eval() is another
        elif isinstance(node, ast.Import | ast.ImportFrom):
            used |= {alias.name for alias in node.names} | {getattr(node, "module", None)}
        else:
            used |= {getattr(node, "id", None), getattr(node, "arg", None)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            loads.append({keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
    # A published file of weights may be a pickle: torch reads tensors from it and refuses the rest.
    assert [load.get("weights_only") for load in loads] == ["True"]
    assert {name for name in used if str(name).startswith("pickle.")} == {"pickle.UnpicklingError"}
    banned -= {"torch.load", "pickle"}
    assert not used & banned


# -------------------------------------------------------------------------------------- the watch


def watching(clock=lambda: 0.0, **stats):
    watch = Watch(out=io.StringIO(), clock=clock)
    watch(event(LogEvent.RUN_INFO, stats=stats | {"total": sum(stats.values())}))
    return watch


def event(kind, **values):
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, values.pop("msg", ""), (), None)
    record.__dict__.update(values, event=kind)
    return record


def job(number, rule="probe", **wildcards):
    values = {"jobid": number, "rule_name": rule, "log": [f"{number}.ipynb"], "output": ["o"]}
    return event(LogEvent.JOB_INFO, wildcards=wildcards, **values)


def failure(number, rule, log=(), output=()):
    return event(LogEvent.JOB_ERROR, jobid=number, rule_name=rule, log=log, output=output)


def test_progress_tells_what_is_done_what_runs_and_for_how_long_it_may_go_on():
    clock = [0.0]
    watch = watching(lambda: clock[0], probe=8, finetune=2, all=1)
    for number in range(3):  # two at a time, ten seconds each
        watch(event(LogEvent.JOB_STARTED, jobs=[2 * number, 2 * number + 1]))
        for one in (2 * number, 2 * number + 1):
            watch(job(one, task=f"t{one}"))
        clock[0] += 10
        for one in (2 * number, 2 * number + 1):
            watch(event(LogEvent.JOB_FINISHED, job_id=one))
    watch(event(LogEvent.JOB_STARTED, jobs=[6, 7]))
    watch(job(6, "finetune", task="t", backbone="b", arm="lora-fraction0.5", seed=3))
    clock[0] += 5
    now = watch.summary()
    assert (now["done"], now["failed"], now["total"]) == (6, 0, 10)
    assert [one["job"] for one in now["running"]] == ["finetune t b lora-fraction0.5 seed 3"]
    # Four are left, of ten seconds each, two at a time; two of them have run for five seconds.
    assert now["seconds_left"] == pytest.approx((4 * 10 - 2 * 5) / ((60 + 10) / 35))
    words = progress_words(now)
    assert words.startswith(
        "6 of 10 jobs (60%) · running: finetune t b lora-fraction0.5 seed 3 (5 s)"
    )
    assert words.endswith("about 15 s left")
    clock[0] += 20  # far longer than usual: 15 s over, and two more that wait
    assert watch.summary()["seconds_left"] == pytest.approx((2 * 15 + 2 * 10) / ((60 + 50) / 55))


def test_a_job_that_went_well_at_a_second_attempt_has_not_failed():
    watch = watching(probe=2)
    for number in (1, 2):
        watch(event(LogEvent.JOB_STARTED, jobs=[number]))
        watch(job(number, task=f"t{number}"))
        watch(failure(number, "probe", log=[f"{number}.ipynb"]))
    watch(event(LogEvent.JOB_STARTED, jobs=[1]))
    watch(event(LogEvent.JOB_FINISHED, job_id=1))
    assert [one["words"] for one in watch.failed.values()] == ["probe t2"]
    assert "it ended without a message: killed, or out of memory?" in watch.out.getvalue()


def test_a_job_without_a_notebook_says_why_it_failed_as_well(tmp_path):
    def work():
        raise jobs.ExecutionError("2 of 5 runs cannot be used:\n- a\n- b")

    output = tmp_path / "intervals.json"
    output.write_text("{}")
    job = argparse.Namespace(inputs=[], settings=[], expect=[str(output)], attempt=1, gpu=0)
    assert jobs.run_job(work, output, Path("compare.py"), job) == 1
    assert output.read_text() == "{}"
    watch = watching(summarise=1)
    watch(failure(1, "summarise", output=[str(output)]))
    assert "failed: summarise: 2 of 5 runs cannot be used" in watch.out.getvalue()
    table = failures("small", watch)
    assert "compare.py: 2 of 5 runs" in table and "notebook" not in table
    assert jobs.failures(tmp_path)[output]["outputs"] == [str(output)]


def test_a_job_whose_record_found_no_room_says_that_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    watch = watching(probe=1)
    watch(failure(1, "probe", log=[str(tmp_path / "n.ipynb")]))
    told = f"The disk of {tmp_path} is full, or your quota: make room"
    assert told in watch.out.getvalue() and "killed" not in watch.out.getvalue()


def test_three_days_of_progress_are_some_hundred_lines():
    clock = [0.0]
    watch = watching(lambda: clock[0], probe=9000)
    for number in range(9000):
        watch(event(LogEvent.JOB_STARTED, jobs=[number]))
        watch(job(number, task="t"))
        clock[0] += 3 * 24 * 3600 / 9000
        watch(event(LogEvent.JOB_FINISHED, job_id=number))
    assert 100 < len(watch.out.getvalue().splitlines()) < 500


def test_tests_that_share_a_finished_grid_stay_in_one_process(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not among processes that share out the tests (make test)")
    assert request.node.nodeid.endswith("@study")
