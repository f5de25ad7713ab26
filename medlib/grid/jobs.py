"""One job of a grid: it claims a GPU, ends with its controller, and records how it ended."""

import argparse
import errno
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from medlib import files
from medlib.environment import full_disk
from medlib.grid import made

try:
    import fcntl
except ImportError:  # Windows: notebooks run there one by one, grids do not
    fcntl = None

# Errors that may not happen again: a killed kernel, memory that others had taken, a network.
TRANSIENT = {"DeadKernelError", "MemoryError", "OutOfMemoryError", "AcceleratorError"}
TRANSIENT |= {"ConnectionError", "ConnectionResetError", "TimeoutError"}
# A controller that runs its jobs on its own machine sets this to the file that it keeps locked. Its
# jobs then end when it has been killed, and share the machine's GPUs.
CONTROLLER = "MEDLIB_CONTROLLER"
JOBS_PER_GPU = "MEDLIB_JOBS_PER_GPU"


class ExecutionError(RuntimeError):
    """A job that could not run, or that failed.

    ``cell`` is the number of the code cell that failed, or None. ``kind`` is the name of the error,
    and ``line`` its message in one line.
    """

    def __init__(self, message: str, cell: int | None = None, kind: str = ""):
        super().__init__(message)
        self.cell, self.kind = cell, kind
        lines = message.splitlines()
        self.line = lines[1 if cell is not None and len(lines) > 1 else 0]


def room(message: str, output: Path) -> str:
    """Advice to add to an error's message if it says that the disk is full; else ""."""
    if os.strerror(errno.ENOSPC) not in message and os.strerror(errno.EDQUOT) not in message:
        return ""
    kept = "Nothing half-written is left, and what is done is kept."
    return f". {full_disk(output.parent)} {kept}"


def failure_record(output: Path | str) -> Path:
    """The file that says why a job failed, beside the job's ``output``."""
    return Path(output).with_suffix(".failure.json")


def failed(output: Path | str) -> dict | None:
    """The record of a job's failure (source, cell, error, transient, attempt …); None if none."""
    return files.read_record(failure_record(output)) or None


def failures(folder: Path) -> dict[Path, dict]:
    """The failed jobs in a folder and below it: output of the job -> record of its failure."""
    records = {path: files.read_record(path) for path in sorted(folder.rglob("*.failure.json"))}
    return {path.with_name(record["output"]): record for path, record in records.items() if record}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments with which the Snakefile describes a job; :func:`run_job` reads them."""
    add = parser.add_argument
    add("--inputs", nargs="*", default=[], help="the files that the job is made from")
    add("--settings", nargs="*", default=[], help="texts on which its result depends as well")
    add("--expect", nargs="*", default=[], help="files that it must write")
    add("--gpu", type=int, default=0, help="1: take a GPU, where there is one")
    add("--attempt", type=int, default=1, help="from 2 on: run again only after transient errors")


def run_on_grid(write: Callable, source: Path, log: str) -> int:
    """Run ``write(grid_file, results, figures)`` as the job of a module; returns the exit status.

    The three paths are arguments of the command. ``source`` is the module's file. The job's records
    lie beside ``log``, a file name in the results folder.
    """
    parser = argparse.ArgumentParser(description=source.stem)
    for name in ("grid_file", "results", "figures"):
        parser.add_argument(name, type=Path)
    add_arguments(parser)
    job = parser.parse_args()

    def work() -> None:
        write(job.grid_file, job.results, job.figures)

    return run_job(work, job.results / log, source, job)


def run_job(work: Callable, output: Path, source: Path, job: argparse.Namespace) -> int:
    """Do the work of one job and record how it ended. Returns 0, or 1 if it failed.

    The records lie beside ``output``, such as the executed notebook. ``source`` is the file that
    the job runs. ``job`` holds the arguments of :func:`add_arguments`. From the second attempt on,
    the work is done only if the last failure was one of :data:`TRANSIENT`. If the controller ends,
    the job ends as well. With ``job.gpu`` it holds one of the controller's GPUs.
    """
    record, before = failure_record(output), failed(output)
    if controller := os.environ.get(CONTROLLER):
        threading.Thread(target=_end_with, args=(controller,), daemon=True).start()
    kept = record.with_suffix(".ipynb")  # a copy: Snakemake empties the notebook before an attempt
    if job.attempt > 1 and before and not before["transient"]:
        if kept.is_file():
            shutil.copy(kept, output)
        return 1  # it would fail again
    try:
        record.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
        made.record(output).unlink(missing_ok=True)
        claim = claim_gpu() if job.gpu and controller else None  # held until the end
        # Recorded now: if code is edited while the job runs, the record must show the old code.
        made_from = made.begun(job.inputs, job.settings)
        work()
        _date(job.expect, job.inputs)
        made.ended(output, made_from, job.expect)
        del claim
    except (ExecutionError, ValueError, OSError, MemoryError) as error:
        if not isinstance(error, ExecutionError):
            said = f"{error}{room(str(error), output)}"
            error = ExecutionError(said, kind=type(error).__name__)
        if not controller:  # a controller prints the error itself, once
            print(error, file=sys.stderr)
        _keep(error, record, output, str(source), job)
        return 1
    return 0


def _date(outputs: list, inputs: list) -> None:
    """Make sure that no output is older than an input: Snakemake would report an error.

    An output is older if the job has kept it unchanged, or if the input comes from a machine with
    another clock and has a date in the future. Such outputs get the newest input's date.
    """
    newest = max((os.stat(path).st_mtime_ns for path in inputs), default=0)
    for path in outputs:
        if os.stat(path).st_mtime_ns < newest:
            os.utime(path, ns=(newest, newest))


def _keep(
    error: ExecutionError, record: Path, output: Path, source: str, job: argparse.Namespace
) -> None:
    """Write why a job failed, and keep its executed notebook."""
    why = {"cell": error.cell, "error": str(error), "line": error.line}
    why |= {"output": output.name, "transient": error.kind in TRANSIENT}
    why |= {"source": source, "outputs": job.expect, "attempt": job.attempt}
    try:
        files.save_json(record, why)
        if output.suffix == ".ipynb" and output.is_file():
            shutil.copy(output, record.with_suffix(".ipynb"))
    except OSError as full:  # the exit status still says that the job failed
        print(f"{record} cannot be written: {full}", file=sys.stderr)


def take(file: IO, shared: bool = False) -> bool:
    """Try to lock an open file; False if another process holds the lock.

    Several processes can hold a ``shared`` lock. Raises OSError that says what to do, on a system
    or a file system that has no locks.
    """
    if fcntl is None:
        said = "Grids need the file locks of Linux or macOS, and this system does not have them."
        raise OSError(f"{said} Run the grid in WSL. Notebooks run here, one by one.")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        way_out = "Put the clone, with results/, on a file system that has locks"
        said = f"{file.name} cannot be locked ({error.strerror}). {way_out}"
        raise OSError(f"{said}; on NFS, mount it without the option nolock.") from error
    return True


def jobs_per_gpu() -> int:
    return int(os.environ.get(JOBS_PER_GPU) or 1)


def claim_gpu() -> object | None:
    """Take one of this machine's GPUs for this process alone; wait until one is free.

    Sets ``CUDA_VISIBLE_DEVICES``, which the kernel inherits. Returns a locked file, which holds the
    claim until it is closed or the process ends, or None on a machine without a GPU.
    ``MEDLIB_JOBS_PER_GPU`` lets several jobs share one.
    """
    devices = visible_gpus()
    if not devices:
        return None
    folder = _private_folder()
    while True:
        # Every device gets one job before any gets two.
        for slot, device in itertools.product(range(jobs_per_gpu()), devices):
            path, mode = folder / f"gpu-{device}-{slot}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            file = os.fdopen(os.open(path, mode, 0o600), "w")
            if take(file):
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                return file
            file.close()
        time.sleep(1)


def _private_folder() -> Path:
    """The folder for this user's claims, in which nobody else can write.

    Raises ExecutionError if it belongs to somebody else or others can use it.
    """
    given = Path(os.environ.get("XDG_RUNTIME_DIR") or "none")
    if given.is_absolute() and given.is_dir() and given.stat().st_uid == os.getuid():
        folder = given / "medlib"
    else:
        folder = Path(tempfile.gettempdir()) / f"medlib-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        way_out = "Remove it, or name a folder of your own in XDG_RUNTIME_DIR"
        raise ExecutionError(f"{folder} is not a folder that only you can write to. {way_out}.")
    return folder


def visible_gpus() -> list[str]:
    """The names of the GPUs in ``CUDA_VISIBLE_DEVICES``, or of all GPUs if it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        tool = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    n = sum(line.startswith("GPU ") for line in tool.stdout.splitlines())
    return [str(i) for i in range(n)]


def _end_with(controller: str) -> None:
    """End this process as soon as its controller ends; its kernel then ends by itself.

    A killed controller cannot end its jobs. They would run at the same time as those of the next
    controller.
    """
    with open(controller) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # waits until the controller releases it
        os._exit(1)
