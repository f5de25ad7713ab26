"""The profiles for clusters, without a cluster: part of a small grid runs through a fake PBS."""

import re
import subprocess
import sys

import pytest
import small_grid
import yaml

QSUB = """\
#!/bin/sh
# Runs a job in the background, as PBS does on a node; the job's number is its folder's name.
# If there is a file `full`, it ends jobs in the way in which PBS ends jobs with too little memory.
job=$(mktemp -d {queue}/XXXXXX)
echo "$@" >"$job/arguments"
basename "$job"
[ ! -e full ] || {{ echo 271 >"$job/code"; exit; }}
for script; do :; done
# The script's folder is removed when Snakemake ends, so a copy is made, as schedulers do.
cp "$script" "$job/script"
(sh "$job/script" >"$job/log" 2>&1; echo $? >"$job/code") >/dev/null 2>&1 &
"""
QSTAT = """\
#!/bin/sh
for job; do :; done
if [ -s "{queue}/$job/code" ]; then
    printf '    job_state = F\\n    Exit_status = %s\\n' "$(cat "{queue}/$job/code")"
else
    echo '    job_state = R'
fi
"""
FROZEN = "results/small/runs/fundus_pm/micro_resnet-random/frozen.csv"


@pytest.fixture
def cluster(tmp_path):
    """A folder with the small grid, the fake PBS's folder of jobs, and a function that runs."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    folder, queue, tools = (tmp_path / name for name in ("study", "queue", "bin"))
    for one in (folder, queue, tools):
        one.mkdir()
    small_grid.lay(folder)
    for name, text in (("qsub", QSUB), ("qstat", QSTAT)):
        (tools / name).write_text(text.format(queue=queue))
        (tools / name).chmod(0o755)
    variables = small_grid.environment(folder)
    variables["PATH"] = f"{tools}:{variables['PATH']}"

    def run(*arguments):
        command = [sys.executable, "-m", "snakemake", "--profile", "profiles/cluster"]
        command += ["--config", "grid=small", "--seconds-between-status-checks", "1", *arguments]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)

    return folder, queue, run


def asked(queue):
    """The requests to the scheduler: for each rule, a list of GPUs, memory in MB and seconds."""
    by_rule = {}
    for job in queue.iterdir():
        text = (job / "arguments").read_text()
        rule = re.search(r"snakejob\.(\w+)\.", text)[1]
        numbers = re.search(r"ngpus=(\d+):mem=(\d+)mb -l walltime=(\d+)", text)
        by_rule.setdefault(rule, []).append([int(number) for number in numbers.groups()])
    return by_rule


@pytest.mark.xdist_group("study")
def test_a_grid_goes_through_a_scheduler_with_the_resources_that_the_profile_names(cluster):
    folder, queue, run = cluster
    done = run(FROZEN)
    assert done.returncode == 0, done.stderr
    assert (folder / FROZEN).is_file()
    assert asked(queue) == {
        "prepare": [[0, 16000, 240 * 60]],
        "extract": [[1, 16000, 120 * 60]],
        "probe": [[0, 16000, 240 * 60]],
    }
    again = run(FROZEN)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.xdist_group("study")
def test_a_job_that_the_scheduler_ends_is_tried_again_with_more_and_then_reported(cluster):
    folder, queue, run = cluster
    (folder / "full").touch()
    done = run("results/small/manifests/fundus_pm.csv", "--restart-times", "1")
    assert done.returncode != 0 and "Error in rule prepare" in done.stdout + done.stderr
    assert sorted(asked(queue)["prepare"]) == [[0, 16000, 240 * 60], [0, 32000, 480 * 60]]


def test_both_profiles_ask_for_the_same(repository):
    slurm, other = (
        yaml.safe_load((repository / "profiles" / name / "config.yaml").read_text())
        for name in ("slurm", "cluster")
    )
    assert slurm["set-resources"] == other["set-resources"]
    for name in ("mem_mb", "runtime"):
        assert slurm["default-resources"][name] == other["default-resources"][name]
