"""Which jobs run now, and which wait until another job has written their inputs."""

import pytest

from medlib.grid import made, plan
from medlib.grid.plan import Job

RULES = ["prepare", "extract", "probe", "finetune", "summarise", "collect"]
NEEDS = {0: [], 1: [0], 2: [1], 3: [0], 4: [2, 3], 5: [4]}


@pytest.fixture
def jobs(tmp_path):
    """A chain of complete jobs, each with one output and the record of what it was made from."""
    files = [tmp_path / f"{rule}.csv" for rule in RULES]
    made_jobs = []
    for number, (rule, file) in enumerate(zip(RULES, files, strict=True)):
        file.write_text(rule)
        inputs = [str(files[above]) for above in NEEDS[number]]
        made_jobs.append(Job(rule, rule, str(file), inputs, ["{}"], [str(file)]))
    for job in made_jobs:
        made.ended(job.beside, made.begun(job.inputs, job.settings), job.outputs)
    return made_jobs


def planned(jobs, **how):
    now = plan.plan(jobs, NEEDS, made.Digests(), **how)
    return {job.rule: job.reason for job in now.jobs}, now.waiting


def test_of_a_complete_graph_nothing_runs(jobs):
    assert planned(jobs) == ({}, 0)


def test_short_jobs_follow_and_long_ones_wait_for_what_is_written(jobs):
    jobs[0].settings = ["other"]
    assert planned(jobs) == ({"prepare": "its settings have changed"}, 3)
    jobs[0].settings, jobs[0].reason = ["{}"], ""
    jobs[3].settings = ["other"]
    follows = dict.fromkeys(["summarise", "collect"], plan.FOLLOWS)
    assert planned(jobs) == ({"finetune": "its settings have changed"} | follows, 0)


def test_what_was_written_anew_runs_the_long_jobs_that_read_it(jobs, tmp_path):
    (tmp_path / "prepare.csv").write_text("other rows")
    made.ended(jobs[0].beside, made.begun([], ["{}"]), jobs[0].outputs)
    reasons, waiting = planned(jobs)
    changed = "changed: prepare.csv"
    follows = dict.fromkeys(["summarise", "collect"], plan.FOLLOWS)
    assert reasons == {"extract": changed, "finetune": changed} | follows
    assert waiting == 1  # the probes, until the embeddings are there


def test_a_missing_output_is_made_and_lost_runs_are_made_again(jobs, tmp_path):
    (tmp_path / "extract.csv").unlink()
    assert planned(jobs) == ({"extract": plan.NOT_MADE}, 1)
    (tmp_path / "extract.csv").write_text("extract")
    jobs[1].reason = ""
    reasons, _ = planned(jobs, lost=frozenset(jobs[2].outputs))
    assert reasons["probe"] == plan.LOST and set(reasons) == {"probe", "summarise", "collect"}


def test_what_failed_and_what_needs_it_is_left_out_and_the_rest_runs(jobs):
    jobs[2].settings = jobs[3].settings = ["other"]
    reasons, _ = planned(jobs, failed={jobs[2].beside})
    assert reasons == {"finetune": "its settings have changed"}
