"""How long it takes to plan ten thousand jobs, and to collect their runs into summary.csv.

Planning is `make plan` of the paper's grid and of a grid of 10,000 jobs, in a copy of the
repository without results. The larger one is planned again when all its jobs are finished, with
files of a few bytes: first without stored digests, then with those that the first plan has stored.
Collecting is what notebook 05 does (records, costs, intervals, tables) with 10,000 finished runs of
six tasks, which have as many test samples as the real ones. The runs of one backbone are made and
get their intervals (5000 resamples), which is timed as well. The runs of the others are links to
them, with their own records. Planning and collecting are separate processes, whose peak memory is
read when they end. The files that they read are in the page cache.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import pandas as pd
import yaml

from medlib import environment, files
from medlib.core import backbones
from medlib.data import cards
from medlib.grid import address, records
from medlib.stats import prediction, summaries

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
REDRAWS = 100  # of the training patients, of each frozen run
# Test samples, patients and classes of the paper's tasks.
SIZES = dict.fromkeys(cards.MRI, (501, 495, 3)) | {
    "chest_xray": (624, 408, 2),
    "fundus_amd": (400, 400, 2),
    "dermoscopy": (10_015, 7_470, 7),
}
# A small process between: a child's peak includes the memory that its parent held at its start.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stderr=subprocess.STDOUT).returncode
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
print("measured", time.perf_counter() - start, peak)
sys.exit(code)
"""
PLAN = """
import sys
from medlib.grid import study
now = study.planned(study.Study(sys.argv[1]))
print(len(now.jobs), "jobs would run")
"""
COLLECT = """
import functools, sys
from medlib import files
from medlib.grid import address
from medlib.stats import runs, summaries
results = sys.argv[1]
folders = address.find_runs(results)
records = runs.read_records(folders)
costs = summaries.costs(folders)
kept = functools.partial(address.intervals, results)
summary, over_seeds = summaries.summarise(folders, int(sys.argv[2]), kept=kept)
for name, table in ("costs", costs), ("summary", summary), ("summary_over_seeds", over_seeds):
    files.save_csv(f"{results}/{name}.csv", table)
"""
# Every file of a grid, with the records of its runs and jobs.
FINISH = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from medlib import files
from medlib.grid import gridfile, made, plan, study

def write(path, text):  # not files.save_json: that waits for the disk each time
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

own = study.Study(sys.argv[1])
jobs, _ = plan.graph(study.options(own))
for job in jobs:
    for output in job.outputs:
        write(output, output)
for run in gridfile.runs(own.grid):
    predictions = run.folder(own.results) / "predictions.csv"
    write(predictions, str(run))
    digest = {predictions.name: files.file_sha256(predictions)}
    told = {"coordinates": asdict(run), "sha256": digest, "seconds": 1.0}
    write(run.record(own.results), json.dumps(told))
digests = made.Digests()
for job in jobs:
    told = {"settings": job.settings}
    for name in ("inputs", "outputs"):
        told[name] = {path: digests.of(path) for path in getattr(job, name)}
    write(made.record(job.beside), json.dumps(told))
"""


def clone(folder: Path) -> Path:
    """The parts of the repository that a plan needs."""
    for name in ("medlib", "notebooks", "data_manifests", "grids"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def large_grid(seeds: int) -> dict:
    """Every backbone, fine-tuned in both ways on the paper's tasks; 34 seeds make 10,000 jobs."""
    settings = {"backbones": backbones.names(), "image_size": 224}
    return {
        "title": "many jobs",
        "data": "phantoms",
        "tasks": list(SIZES),
        "seeds": list(range(seeds)),
        "frozen": settings | {"heads": ["linear"]},
        "finetuned": settings,
        "lora": settings,
    }


def measured(command: list[str], folder: Path) -> tuple[str, float, int]:
    """What a command prints, and its seconds and peak memory in bytes, start-up included."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    text, _, numbers = done.stdout.rpartition("measured")
    taken, peak = numbers.split()
    return text, float(taken), int(peak)


def plan(folder: Path, grid: str) -> tuple[int, float, int]:
    """How many jobs of a grid would run; the seconds and peak memory, in bytes, of its plan."""
    text, taken, peak = measured(["-c", PLAN, grid], folder)
    return int(re.findall(r"^(\d+) jobs would run", text, re.M)[0]), taken, peak


def of_plan(what: str, measures: list[tuple[int, float, int]], bound: float, quick: bool) -> None:
    """Report the times and the largest memory of repeated calls of :func:`plan`."""
    taken, peak = np.array([seconds for _, seconds, _ in measures]), max(m[2] for m in measures)
    against = (bound / taken, f"the bound of {bound} s", float(np.median(taken)), "s")
    memory = (GIB / peak, "the bound of 1 GiB", peak / GIB, "GiB")
    for name, (ratio, peer, value, unit) in ("planning", against), ("memory of planning", memory):
        told = {"target": 1.0, "value": value, "unit": unit, "quick": quick}
        harness.report(f"{name} {what}", peer, ratio, **told)


def make_runs(results: Path, task: str, size: tuple[int, int, int], seeds: int) -> list[Path]:
    """The finished runs of one backbone: fine-tuned, and frozen on three shares of the labels."""
    n, n_patients, k = size
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % k)
    classes = [f"class{c}" for c in range(k)]
    frame = pd.DataFrame({"sample_id": [f"{task}_{i:06d}" for i in range(n)]})
    frame["patient_id"] = [f"patient_{p:06d}" for p in np.sort(np.arange(n) % n_patients)]
    frame["split"], frame["y_true"] = "test", np.array(classes)[y]
    peak, folders = environment.peak_memory_bytes(), []
    how = {"parameters": 1, "train_patients": n_patients, "candidates": 30}
    how["embedding"] = {"seconds": 1.0, "peak_memory_bytes": peak, "gpu": None}
    for regime, share in (("finetuned", 1.0), ("frozen", 0.5), ("frozen", 0.25), ("frozen", 0.1)):
        for seed in range(seeds):
            proba = 0.7 * rng.dirichlet(np.ones(k), n) + 0.3 * np.eye(k)[y]
            frame[prediction.probability_columns(classes)] = proba
            run = address.Address(task, "backbone000", regime, "linear", share, seed)
            made = records.Provenance("imagenet", {"image_size": 224}, {}, 1.0, how)
            values, tables = prediction.point(frame, classes), {"predictions.csv": frame}
            tables["validation.csv"] = frame.drop(columns="split").assign(split="val", rotation=0)
            if regime == "frozen":
                again = pd.DataFrame([values] * REDRAWS)
                tables["redraws.csv"] = again + 0.01 * rng.normal(size=again.shape)
            records.save_run(run, results, made, tables, pd.DataFrame({"value": [1.0]}), values)
            folders.append(run.folder(results))
    return folders


def as_other(results: Path, task: str, number: int) -> None:
    """Another backbone whose runs predicted the same."""
    name = f"backbone{number:03d}"
    first = address.cell(results, task, "backbone000")
    shutil.copytree(first, address.cell(results, task, name), copy_function=os.link)
    for path in address.cell(results, task, name).rglob("run.json"):
        record = files.read_json(path)
        record["coordinates"]["backbone"] = name
        files.save_json(path, record)  # a new file: the link is replaced


def main() -> None:
    options = harness.arguments(__doc__)
    quick = options.quick
    with tempfile.TemporaryDirectory() as temporary:
        folder = clone(Path(temporary))
        grid = folder / "grids" / "large.yaml"
        grid.write_text(yaml.safe_dump(large_grid(1 if quick else 34)), encoding="utf-8")
        for name, words, bound in (("paper", "the paper's grid", 5), ("large", "a large grid", 30)):
            measures = [plan(folder, name) for _ in range(options.repeats)]
            jobs = measures[0][0]
            of_plan(f"{words}, {jobs:,} jobs", measures, bound, quick)
        measured(["-c", FINISH, "large"], folder)
        for words, repeats in ((", no digests kept", 1), ("", options.repeats)):
            measures = [plan(folder, "large") for _ in range(repeats)]
            assert not any(left for left, *_ in measures)
            of_plan(f"{jobs:,} finished jobs{words}", measures, 30, quick)
    seeds, resamples, others = (2, 20, 2) if quick else (5, 5000, 84)
    with tempfile.TemporaryDirectory() as temporary:
        results, made, n = Path(temporary), {}, 0
        kept = functools.partial(address.intervals, results)
        for task, (samples, patients, k) in SIZES.items():
            size = (samples // 5, patients // 5, k) if quick else (samples, patients, k)
            folders = make_runs(results, task, size, seeds)
            summarise = functools.partial(summaries.summarise, folders, resamples, kept=kept)
            made[task] = harness.seconds(summarise)
            for number in range(1, others):
                as_other(results, task, number)
            n += others * len(folders)
        command = ["-c", COLLECT, str(results), str(resamples)]
        measures = [measured(command, ROOT) for _ in range(options.repeats)]
        taken = np.array([seconds for _, seconds, _ in measures])
        common = {"target": 1.0, "quick": quick}
        harness.report(
            f"collecting {n:,} runs",
            "the bound of 60 s",
            60 / taken,
            value=float(np.median(taken)),
            unit="s",
            **common,
        )
        peak = max(memory for *_, memory in measures)
        harness.report(
            f"memory of collecting {n:,} runs",
            "the bound of 1 GiB",
            GIB / peak,
            value=peak / GIB,
            unit="GiB",
            **common,
        )
        for task in (cards.MRI[0], "chest_xray", "dermoscopy"):
            of_run = made[task] / (4 * seeds)
            harness.report(
                f"intervals of a run, {task}",
                "reading them when collecting",
                of_run * n / taken,
                target=None,
                value=of_run,
                unit="s",
                quick=quick,
            )


if __name__ == "__main__":
    main()
