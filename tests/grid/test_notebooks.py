"""medlib.grid.notebooks refuses parameters that papermill accepts, and says what to do instead."""

import errno
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from waiting import wait_for

from medlib.grid import notebooks
from medlib.grid.jobs import (
    CONTROLLER,
    JOBS_PER_GPU,
    ExecutionError,
    claim_gpu,
    failed,
    take,
    visible_gpus,
)

JUDGING = ("bootstrap", "effects", "differences", "claims", "summaries", "calibration", "runs")
PREPARING = ("decoding", "packing", "duplicates", "volumes", "preparation", "phantoms", "passport")
PREPARING += ("dicom", "dicom_series")


def written(path, cells):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    """A notebook with parameters, which writes a sum, or fails if it is told to."""
    cell = nbformat.v4.new_code_cell(
        "fold: int = 1  # which fold\nrate: float = 0.5  # learning rate\n"
        "flag: bool = False  # fail\nnames: list = ['a']  # some names",
        metadata={"tags": ["parameters"]},
    )
    body = nbformat.v4.new_code_cell(
        "from pathlib import Path\nassert not flag, 'asked to fail'\n"
        "Path('sum.txt').write_text(str(fold + rate))"
    )
    return written(tmp_path / "sum.ipynb", [cell, body])


def test_it_runs_in_the_notebooks_folder_with_its_parameters(notebook, tmp_path):
    output = tmp_path / "out" / "sum.ipynb"
    notebooks.execute(notebook, output, {"fold": 2, "rate": 1}, [str(tmp_path / "sum.txt")])
    assert (tmp_path / "sum.txt").read_text() == "3"
    assert nbformat.read(output, 4).metadata.kernelspec.name == "python3"


def test_all_wrong_parameters_are_named_at_once_and_nothing_runs(notebook, tmp_path):
    wrong = {"fald": 1, "fold": "02", "rate": "1e-4", "flag": 1, "names": [1]}
    with pytest.raises(ExecutionError) as error:
        notebooks.execute(notebook, tmp_path / "out.ipynb", wrong)
    for part in (
        "'fald'. Did you mean 'fold'?",
        'fold is "02" (str), but must be int',
        'rate is "1e-4" (str), but must be float',
        "flag is 1 (int), but must be bool",
        "names is [1] (list)",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out.ipynb").exists()


def test_true_is_no_number(notebook):
    with pytest.raises(ExecutionError, match="fold is true"):
        notebooks.check_parameters(notebook, {"fold": True})


def test_a_failing_cell_is_reported_with_its_message_and_where_to_look(notebook, tmp_path):
    output = tmp_path / "out.ipynb"
    with pytest.raises(ExecutionError, match="asked to fail") as error:
        notebooks.execute(notebook, output, {"flag": True})
    assert str(output) in str(error.value)
    assert "asked to fail" in output.read_text()


def test_a_promised_file_that_is_not_written_is_a_failure(notebook, tmp_path):
    with pytest.raises(ExecutionError, match="did not write:\n.*other.txt"):
        notebooks.execute(notebook, tmp_path / "out.ipynb", {}, [str(tmp_path / "other.txt")])


def run(*arguments):
    command = [sys.executable, "-m", "medlib.grid.notebooks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_takes_json_and_ends_with_a_status(notebook, tmp_path):
    good = run(notebook, tmp_path / "o.ipynb", "--parameters", json.dumps({"fold": 40, "rate": 2}))
    assert (good.returncode, (tmp_path / "sum.txt").read_text()) == (0, "42")
    bad = run(notebook, tmp_path / "o.ipynb", "--parameters", '{"fold": 2')
    assert bad.returncode == 2 and "is not JSON" in bad.stderr
    missing = run(tmp_path / "none.ipynb", tmp_path / "o.ipynb")
    assert missing.returncode == 1 and "There is no notebook" in missing.stderr


# What describes a saved model; no job depends on it: see the Snakefile.
SAVING = {notebooks.MEDLIB / "grid" / "models.py"}


def test_sources_follow_imports_from_the_notebook_through_the_modules(repository):
    notebook = repository / "notebooks" / "04_fine_tune.ipynb"
    names = [path.name for path in notebooks.sources(notebook, SAVING)]
    assert names[0] == "04_fine_tune.ipynb"
    assert {"finetune.py", "classifier.py", "metrics.py", "errors.py"} <= set(names)
    assert not {"heads.py", "summaries.py", "models.py"} & set(names)
    more = {path.name for path in notebooks.sources(notebook)} - set(names)
    assert {"models.py", "operating.py", "outside.py"} <= more


@pytest.mark.parametrize(
    ("notebook", "drawn"),
    [("03_probe_features", {"stats/draws", "stats/redraws"}), ("04_fine_tune", set())],
)
def test_what_only_prepares_or_plans_is_no_reason_to_train_again(repository, notebook, drawn):
    modules = notebooks.sources(repository / "notebooks" / f"{notebook}.ipynb", SAVING)[1:]
    names = {str(path.relative_to(notebooks.MEDLIB).with_suffix("")) for path in modules}
    assert {f"data/{name}" for name in PREPARING} & names == set()
    for folder, own in (("data", PREPARING), ("stats", JUDGING)):  # else this asks nothing
        assert all((notebooks.MEDLIB / folder / f"{name}.py").is_file() for name in own)
    assert not any(name.startswith("data/layouts") for name in names)
    assert {f"stats/{name}" for name in JUDGING} & names == set()
    stats = {name for name in names if name.startswith("stats/")}
    assert stats == {"stats/prediction", "stats/metrics"} | drawn  # draws of training patients
    planning = {"grid/gridfile", "grid/states", "grid/study", "grid/watch", "grid/summarise"}
    assert planning & names == set()


# ---------------------------------------------------------------------------- failures and attempts


def failing(tmp_path, code):
    """A notebook that runs the given code, and counts in a file how often it was run."""
    cells = [
        nbformat.v4.new_code_cell("times: int = 1  # nothing", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("open('runs', 'a').write('x')"),
        nbformat.v4.new_code_cell(code),
    ]
    return written(tmp_path / "failing.ipynb", cells)


def attempt(notebook, tmp_path, number=1):
    output = tmp_path / "executed" / "out.ipynb"
    return run(notebook, output, "--attempt", number, "--expect", "a.csv"), failed(output)


def test_a_failure_is_recorded_and_what_would_fail_again_is_not_tried_again(tmp_path):
    notebook = failing(tmp_path, "raise ValueError('no such\\nlabel')")
    done, record = attempt(notebook, tmp_path)
    assert done.returncode == 1 and "no such" in done.stderr
    assert record["line"] == "ValueError: no such" and record["cell"] == 3
    assert record["outputs"] == ["a.csv"] and not record["transient"]
    executed = tmp_path / "executed" / "out.ipynb"
    shown = executed.read_text()
    executed.write_text("")  # as Snakemake does before a second attempt
    assert attempt(notebook, tmp_path, 2)[0].returncode == 1
    assert (tmp_path / "runs").read_text() == "x" and executed.read_text() == shown
    # A first attempt is always made: the cause of the failure may have been removed meanwhile.
    failing(tmp_path, "open('../a.csv', 'w'); import os; os.chdir('..')")
    done, record = attempt(notebook, tmp_path)
    assert (tmp_path / "runs").read_text() == "xx"
    assert record["line"].endswith("ran to its end but did not write:") and record["cell"] is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("raise MemoryError('4 GB')", "MemoryError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "kernel died"),
    ],
)
def test_what_may_go_well_the_next_time_is_tried_again(tmp_path, code, kind):
    notebook = failing(tmp_path, code)
    for number in (1, 2):
        done, record = attempt(notebook, tmp_path, number)
        assert done.returncode == 1 and kind in record["line"] and record["transient"]
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_success_wipes_the_record_of_the_failure_before_it(notebook, tmp_path):
    output = tmp_path / "o.ipynb"
    for flag, expected in ((True, 1), (False, 0)):
        done = run(notebook, output, "--parameters", json.dumps({"flag": flag}))
        assert done.returncode == expected
        assert (failed(output) is not None) == flag


def test_a_full_disk_is_said_so_and_room_is_all_that_it_takes(small_disk, tmp_path):
    saving = "from medlib import files; files.save_text('disk/kept', '.' * 700_000)"
    notebook = failing(tmp_path, saving)
    (small_disk / "other").write_bytes(bytes(600_000))
    command = [notebook, tmp_path / "o.ipynb", "--expect", small_disk / "kept"]
    done = run(*command)
    assert done.returncode == 1
    assert "is full, or your quota: make room and call the same command again" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["other"]  # no half-written file
    (small_disk / "other").unlink()
    assert run(*command).returncode == 0
    assert (small_disk / "kept").stat().st_size == 700_000


def test_a_disk_too_full_for_the_executed_notebook_is_said_so_too(small_disk, tmp_path):
    notebook = failing(tmp_path, "print('.' * 700_000)")
    (small_disk / "other").write_bytes(bytes(900_000))
    done = run(notebook, small_disk / "o.ipynb")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "make room" in done.stderr


# ------------------------------------------------------------------------- controller and devices


def test_a_job_ends_with_its_controller_and_its_kernel_with_it(tmp_path):
    code = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    notebook = failing(tmp_path, code)
    lock = open(tmp_path / "lock", "w")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    job = subprocess.Popen(
        [sys.executable, "-m", "medlib.grid.notebooks", notebook, tmp_path / "o.ipynb"],
        env=os.environ | {CONTROLLER: str(tmp_path / "lock")},
    )
    pid = tmp_path / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text())
    kernel = int(pid.read_text())
    lock.close()  # as when its process ends
    assert job.wait(30) == 1
    wait_for(lambda: state(kernel) == "Z")


def state(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


CLAIM = """
import os, sys, time
from medlib.grid import jobs
claim = jobs.claim_gpu()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("share", "first"), [(1, ["3", "GPU-7"]), (2, ["3", "GPU-7", "3", "GPU-7"])]
)
def test_a_gpu_is_one_jobs_alone_until_it_ends_unless_told_to_share(tmp_path, share, first):
    devices = {"CUDA_VISIBLE_DEVICES": "3, GPU-7", JOBS_PER_GPU: str(share)}
    environment = os.environ | devices | {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""}
    jobs = []

    def begin():
        how = {"stdout": subprocess.PIPE, "env": environment, "text": True}
        jobs.append(subprocess.Popen([sys.executable, "-c", CLAIM], **how))
        return jobs[-1].stdout

    try:
        assert [begin().readline().strip() for _ in first] == first
        waiting = begin()
        assert not select.select([waiting], [], [], 2)[0]
        jobs[1].kill()
        assert waiting.readline().strip() == "GPU-7"
    finally:
        for job in jobs:
            job.kill()
            job.wait()


@pytest.mark.parametrize("taken", ["open", "link", "file"])
def test_claims_are_made_in_a_private_folder_only(tmp_path, monkeypatch, taken):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, victim = tmp_path / f"medlib-{os.getuid()}", tmp_path / "victim"
    victim.mkdir(mode=0o700)
    if taken == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.symlink_to(victim) if taken == "link" else folder.write_text("")
    error = FileExistsError if taken == "file" else ExecutionError
    with pytest.raises(error, match=f"medlib-{os.getuid()}"):
        claim_gpu()
    assert list(victim.iterdir()) == []
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    claim_gpu().close()
    place = tmp_path / "run" / "medlib" / "gpu-3-0"
    assert place.is_file() and place.stat().st_mode & 0o777 == 0o600
    place.unlink()
    (victim / "f").write_text("kept")
    place.symlink_to(victim / "f")
    with pytest.raises(OSError) as refused:
        claim_gpu()
    assert refused.value.errno == errno.ELOOP  # the link is not followed
    assert (victim / "f").read_text() == "kept"


def test_a_file_system_without_locks_is_told_with_the_way_out(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    wanted = pytest.raises(OSError, match="cannot be locked .*nolock")
    with open(tmp_path / "lock", "w") as file, wanted:
        take(file)


def test_a_machine_without_a_gpu_claims_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == [] and claim_gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert claim_gpu() is None


def test_gpus_are_counted_as_nvidia_smi_lists_them(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    listing = "GPU 0: H100 (UUID: GPU-1)\nGPU 1: H100 (UUID: GPU-2)\n  MIG 1g.10gb Device 0"
    tool.write_text(f"#!/bin/sh\necho '{listing}'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]
