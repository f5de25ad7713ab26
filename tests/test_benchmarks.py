"""The benchmarks run, and their timing is correct. No test asks how fast anything is."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if path.stem not in ("harness", "figure", "overhead", "eva_study")
)
SLOW = ("copies", "extraction", "frozen_study", "memory", "peers", "scale", "simulations")
# These time nothing, or need packages that `make` does not install.
NOT_TIMED = ["copies", "hours", "peers", "recipes", "simulations"]


@pytest.fixture
def harness(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import harness

    monkeypatch.setattr(harness, "SUMMARY", tmp_path / "bench" / "summary.json")
    return harness


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=[pytest.mark.bench] * (s in SLOW)) for s in SCRIPTS]
)
def test_a_benchmark_runs_with_tiny_sizes_and_keeps_nothing_of_them(script, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / f"{script}.py", "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("MEDLIB_DATA", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " × " in done.stdout
    assert not (tmp_path / "results").exists()


def test_make_runs_every_benchmark_that_times_something():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (line,) = [line for line in makefile.splitlines() if line.startswith("BENCHMARKS")]
    assert sorted(line.partition("=")[2].split()) == [s for s in SCRIPTS if s not in NOT_TIMED]


def test_what_a_job_spends_on_beginning_is_what_its_work_leaves(tmp_path):
    """A job of 20 s: papermill took 17 s of it, and the cells took 0.5, 4 (imports) and 8 s."""
    sources = {"task: str = 'a'": 0.5, "import time": 4.0, "work()": 8.0}
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"papermill": {"duration": seconds}})
        for source, seconds in sources.items()
    ]
    span = {"start_time": "2026-01-01T10:00:00+00:00", "end_time": "2026-01-01T10:00:17+00:00"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": span})
    path = Path("results/demo/03_probe_features.ipynb")
    (tmp_path / path.parent).mkdir(parents=True)
    nbformat.write(notebook, tmp_path / path)
    records = tmp_path / ".snakemake" / "metadata"
    records.mkdir(parents=True)
    record = {"log": [str(path)], "starttime": 100.0, "endtime": 120.0}
    (records / "a").write_text(json.dumps(record))
    command = [sys.executable, ROOT / "benchmarks" / "overhead.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.endswith("%")]
    found = {" ".join(words[:-3]): words[-3] for words in lines}
    before = {"Snakemake and process": "3", "papermill and kernel": "4", "imports": "4"}
    assert found == before | {"work": "8"}


def test_contestants_take_turns_and_may_time_themselves(harness):
    turns = []
    times = harness.interleaved(
        {
            "slow": lambda: turns.append("slow") or time.sleep(0.02),
            "scaled": lambda: turns.append("scaled") or 12.5,
        },
        repeats=3,
    )
    assert turns == ["slow", "scaled"] * 3
    assert times["scaled"].tolist() == [12.5] * 3
    assert (times["slow"] >= 0.02).all() and len(times["slow"]) == 3


def test_the_summary_holds_the_median_ratio_and_replaces_an_older_one(harness, capsys):
    for ratios in ([1.0, 1.0, 1.0], [2.0, 9.0, 4.0]):
        harness.report("a", "b", np.array(ratios), target=5, value=0.25, unit="s")
    harness.report("a", "another peer", 1.5, target=None, value=0.25, unit="s")
    harness.report("quick", "b", 1.5, target=None, value=0.25, unit="s", quick=True)
    first, second = json.loads(harness.SUMMARY.read_text("utf-8"))
    given = {"name": "a", "peer": "b", "target": 5, "value": 0.25, "unit": "s"}
    assert first == given | {"ratio": 4.0, "low": 2.0, "high": 9.0}
    assert second["peer"] == "another peer" and second["target"] is None
    printed = capsys.readouterr().out.splitlines()
    assert "MISSED" in printed[1] and "MISSED" not in printed[2] and "[2, 9]" in printed[1]


def test_operations_are_counted_as_by_hand(harness):
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    assert harness.flops(lambda: a @ b) == 2 * 30 * 40 * 50
    layer = torch.nn.Conv2d(3, 8, 5)
    assert harness.flops(lambda: layer(torch.randn(2, 3, 12, 12))) == 2 * 2 * 8 * 8 * 8 * 3 * 25


def test_every_way_to_multiply_matrices_gives_a_rate(harness):
    rates = [harness.matrix_rate(way) for way in harness.LIMITS]
    assert all(1e8 < rate < 1e16 for rate in rates)
