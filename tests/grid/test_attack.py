"""A grid that is killed or stopped at random moments continues: `make test-attack`.

Each attack runs a small grid, ends it at seeded random moments, and calls the same command again.
Two things must hold. What is there in the end is what an undisturbed run leaves, to the byte; and
no call says that the grid is complete before that.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from small_grid import CALLED_COMPLETE, REPOSITORY, SMALL, Study, as_in_a_terminal

# How many times a grid is attacked in each way. Too long to be part of every test.
ATTACKS = int(os.environ.get("MEDLIB_ATTACKS", "0"))
# These files contain or show seconds and bytes of memory, which differ between any two runs.
MEASURED = ("costs.csv", "cost.", "size.csv", "report.html")

pytestmark = [
    pytest.mark.skipif(not ATTACKS, reason="make test-attack sets MEDLIB_ATTACKS"),
    pytest.mark.xdist_group("attack"),
]


def written(study):
    """The content of every summary, figure and table of a grid, by name."""
    files = [*study.folder.glob("results/small/*.csv"), *study.folder.glob("figures/small/*")]
    return {
        str(file.relative_to(study.folder)): file.read_bytes()
        for file in files
        if file.is_file() and not file.name.startswith(MEASURED)
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What an undisturbed run writes."""
    study = Study(tmp_path_factory.mktemp("undisturbed") / "copy")
    status, said = study.call()
    assert status == 0 and CALLED_COMPLETE.search(said), said
    return written(study)


class Attacked:
    """A grid whose command is ended again and again. Each call is checked when it has ended."""

    def __init__(self, folder, expected):
        self.study, self.expected = Study(folder), expected
        self.log, self.calls, self.ends = folder.with_name("log"), 0, 0
        self.begin()

    def begin(self):
        self.calls += 1
        with open(self.log, "w") as log:
            # A process group of its own, as in a shell.
            self.run = self.study.begin(stdout=log, stderr=log, start_new_session=True)

    def judge(self):
        """Check the output of a call that has ended. Returns whether the grid is complete."""
        said, done = self.log.read_text(), self.run.returncode == 0
        called_complete = bool(CALLED_COMPLETE.search(said))
        assert called_complete or not done, said
        assert "being run already" not in said, said
        if called_complete:  # also by a call that was killed after it had said so
            self.ends += 1
            there = written(self.study)
            assert there.keys() == self.expected.keys()
            differing = [name for name in there if there[name] != self.expected[name]]
            assert not differing
            assert not list(self.study.folder.rglob("checkpoint.safetensors"))
        return done

    def again(self):
        """Check the call that has ended, and begin the next. A complete grid starts anew."""
        if self.judge():
            shutil.rmtree(self.study.folder / "results")
            shutil.rmtree(self.study.folder / "figures")
            shutil.rmtree(self.study.folder / ".snakemake")
        self.begin()

    def finish(self):
        """Run to the end, undisturbed. Several calls may be needed: killed jobs may have failed."""
        for _ in range(4):
            self.run.wait(1800)
            if self.judge():
                return
            self.begin()
        raise AssertionError(self.log.read_text())


def test_killed_at_any_moment(expected, tmp_path):
    """SIGKILL is sent to the controller, to a job's papermill or to its kernel."""
    chance, grid, killed = random.Random(0), Attacked(tmp_path / "copy", expected), []
    while len(killed) < ATTACKS:
        time.sleep(chance.uniform(1, 15))
        if grid.run.poll() is not None:
            grid.again()
            continue
        victim = chance.choice(["controller", "medlib.grid.notebooks", "ipykernel"])
        processes = [grid.run.pid] if victim == "controller" else grid.study.processes(victim)
        if processes:
            os.kill(chance.choice(processes), signal.SIGKILL)
            killed.append(victim)
        if victim == "controller":
            grid.run.wait()
            grid.again()
    grid.finish()
    print(f"killed {killed} in {grid.calls} calls, {grid.ends} of them to the end")


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT", "SIGINT twice", "SIGHUP"])
@pytest.mark.parametrize("whom", ["all", "controller"])
def test_stopped_at_any_moment(expected, tmp_path, sent, whom):
    """A signal to stop is sent to all processes, as a terminal does, or to the controller."""
    chance, grid = random.Random(f"{sent} {whom}"), Attacked(tmp_path / "copy", expected)
    name, _, twice = sent.partition(" ")
    for _ in range(max(1, ATTACKS // 8)):
        time.sleep(chance.uniform(3, 40))
        for _ in range(2 if twice else 1):
            if grid.run.poll() is None:
                send = os.killpg if whom == "all" else os.kill
                send(grid.run.pid, getattr(signal, name))
                time.sleep(chance.uniform(0.1, 2))
        grid.run.wait(600)
        grid.again()
    grid.finish()
    print(f"{sent} to {whom}: {grid.calls} calls, {grid.ends} of them to the end")


def test_stopped_by_a_time_limit_around_make(expected, tmp_path):
    """`timeout -s TERM 40 make study`, like a batch system, and then `make study`."""
    study = Study(tmp_path / "copy")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, study.folder)
    make = ["make", "-o", ".venv/.ready", "study", "GRID=small"]

    def call(*before):
        how = {"cwd": study.folder, "env": study.environment, "capture_output": True, "text": True}
        how["preexec_fn"] = as_in_a_terminal
        done = subprocess.run([*before, *make], **how)
        return done.returncode, done.stdout + done.stderr

    chance = random.Random(1)
    for _ in range(3):
        status, said = call("timeout", "-s", "TERM", f"{chance.uniform(8, 30):.1f}")
        assert status and not CALLED_COMPLETE.search(said), said
    status, said = call()
    assert status == 0 and CALLED_COMPLETE.search(said), said
    assert written(study) == expected


def test_a_job_that_fails_and_is_mended(expected, tmp_path):
    broken = SMALL | {"finetuned": SMALL["finetuned"] | {"learning_rates": [1e30]}}
    study = Study(tmp_path / "copy", broken)
    for _ in range(2):
        status, said = study.call()
        assert status == 1 and not CALLED_COMPLETE.search(said), said
    study.grid(SMALL)
    status, said = study.call()
    assert status == 0 and CALLED_COMPLETE.search(said), said
    assert written(study) == expected


@pytest.mark.parametrize("small_disk", [200], indirect=True)
@pytest.mark.parametrize("left", [0.1, 0.3, 1, 2])
def test_a_disk_that_fills_and_has_room_made(expected, tmp_path, small_disk, left):
    """``left`` MiB are free at the start, on a disk that holds results and figures."""
    study = Study(tmp_path / "copy")
    for name in ("results", "figures"):
        (small_disk / name).mkdir()
        (study.folder / name).symlink_to(small_disk / name)
    (small_disk / "other").write_bytes(bytes(int((200 - left) * 2**20)))
    for _ in range(2):
        status, said = study.call()
        assert status and not CALLED_COMPLETE.search(said), said
        assert "is full, or your quota" in said, said
    (small_disk / "other").unlink()
    status, said = study.call()
    assert status == 0 and CALLED_COMPLETE.search(said), said
    assert written(study) == expected
