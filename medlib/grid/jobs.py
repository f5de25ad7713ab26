"""One job of a grid: its failure recorded, its GPU claimed, its end that of its controller."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# What may go well the second time: a killed kernel, memory that others had taken, a network.
TRANSIENT = (
    "DeadKernelError",
    "MemoryError",
    "OutOfMemoryError",
    "AcceleratorError",
    "ConnectionError",
    "ConnectionResetError",
    "TimeoutError",
)
# Set by a controller that runs its jobs on its own machine: the file that it keeps locked. Its jobs
# end when it has been killed, and share out the machine's GPUs among themselves.
CONTROLLER = "MEDLIB_CONTROLLER"
JOBS_PER_GPU = "MEDLIB_JOBS_PER_GPU"


class ExecutionError(RuntimeError):
    """A notebook that was not run, or did not do what was asked of it.

    ``cell`` is the number of the code cell that failed, if it was one, ``kind`` the name of its
    error, ``line`` what it says in one line.
    """

    def __init__(self, message: str, cell: int | None = None, kind: str = ""):
        super().__init__(message)
        self.cell, self.kind = cell, kind
        lines = message.splitlines()
        self.line = lines[1 if cell is not None and len(lines) > 1 else 0]


def room(message: str, output: Path) -> str:
    """What to do where the disk is full."""
    if os.strerror(errno.ENOSPC) not in message and os.strerror(errno.EDQUOT) not in message:
        return ""
    return (
        f". The disk of {output.parent} is full, or your quota: make room and call the same "
        "command again. Nothing half-written is left, and what is done is kept."
    )


def failure_record(output: Path | str) -> Path:
    """Where it stands that, and why, the run of an executed notebook failed."""
    return Path(output).with_suffix(".failure.json")


def failures(folder: Path, below: bool = False) -> dict[Path, dict]:
    """What failed in a folder, and ``below`` it, when last run: output -> its record."""
    found = {}
    for path in sorted((folder.rglob if below else folder.glob)("*.failure.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[path.with_name(record["output"])] = record
    return found


def failed(output: Path | str) -> dict | None:
    """Why the last run of a job failed, or None: its source, cell, error, transient, attempt."""
    record = failure_record(output)
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def run_job(
    work: Callable[[], object],
    output: Path,
    source: Path,
    expect: Sequence[str],
    attempt: int = 1,
    gpu: bool = False,
) -> int:
    """Do the work of one of a grid's jobs; returns 0, or 1 where it failed, as is then recorded.

    ``output`` is the executed notebook, or what else the job writes first; ``source`` is what it
    runs, ``expect`` what it has promised. A failure is an ExecutionError; what is not transient is
    not tried again from the second ``attempt`` on. The job ends with its controller, and with
    ``gpu`` holds one of the controller's GPUs.
    """
    record = failure_record(output)
    controller = os.environ.get(CONTROLLER)
    if controller:
        threading.Thread(target=_end_with, args=(controller,), daemon=True).start()
    before = failed(output)
    kept = record.with_suffix(".ipynb")  # Snakemake empties the notebook before a new attempt
    if attempt > 1 and before and not before["transient"]:
        if kept.is_file():
            shutil.copy(kept, output)
        return 1  # as it has said: it would fail again
    try:
        record.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
        claim = claim_gpu() if gpu and controller else None  # held until the end
        work()
        del claim
    except ExecutionError as error:
        if not controller:  # which says it itself, once
            print(error, file=sys.stderr)
        words = {
            "source": str(source), "output": output.name, "cell": error.cell, "error": str(error),
            "line": error.line, "outputs": list(expect),
            "transient": error.kind in TRANSIENT, "attempt": attempt,
        }  # fmt: skip
        _record(record, words, output, kept)
        return 1
    return 0


def _record(record: Path, words: dict, output: Path, kept: Path) -> None:
    """Keep why a job failed, and its executed notebook."""
    from medlib import files  # it brings pandas along, which only here is worth the wait

    try:
        files.save_json(record, words)
        if output.suffix == kept.suffix and output.is_file():
            shutil.copy(output, kept)
    except OSError as full:  # a full disk: the job's failure is still seen by its status
        print(f"{record} cannot be written: {full}", file=sys.stderr)


def jobs_per_gpu() -> int:
    return int(os.environ.get(JOBS_PER_GPU) or 1)


def claim_gpu() -> object | None:
    """Take one of this machine's GPUs for this process alone; wait until one is free.

    Sets ``CUDA_VISIBLE_DEVICES``, which the kernel inherits. Returns what holds the claim (a file,
    locked until it is closed or the process has ended, however it ends), or None on a machine
    without a GPU. ``MEDLIB_JOBS_PER_GPU`` lets several jobs share one.
    """
    devices = visible_gpus()
    if not devices:
        return None
    folder = Path(tempfile.gettempdir()) / f"medlib-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        # All devices once, before any of them twice.
        for slot in range(jobs_per_gpu()):
            for device in devices:
                file = open(folder / f"gpu-{device}-{slot}", "w")  # noqa: SIM115
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    continue
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                return file
        time.sleep(1)


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use: of ``CUDA_VISIBLE_DEVICES``, else all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    n = sum(line.startswith("GPU ") for line in found.stdout.splitlines())
    return [str(i) for i in range(n)]


def _end_with(controller: str) -> None:
    """End this process as soon as its controller has; its kernel then ends by itself.

    A controller that is killed cannot end its jobs: they would go on beside those of the next.
    """
    with open(controller) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # waits until the controller lets go of it
        os._exit(1)
