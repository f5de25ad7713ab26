"""One notebook, one set of parameters: papermill, made strict.

    python -m medlib.execute NOTEBOOK OUTPUT --parameters '{"task": "fundus"}' --expect FILE …

Parameters are JSON and must be named, and typed, as the cell tagged ``parameters`` has them; the
kernel is ``python3``, started in the notebook's own folder; a promised output that is not there at
the end is a failure. What failed stands in a record beside the executed notebook (:func:`failed`).
"""

from __future__ import annotations

import argparse
import ast
import errno
import fcntl
import functools
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

from medlib.errors import listed, unknown

MEDLIB = Path(__file__).parent
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


# papermill's JSON-schema validator loads, if it is there, a checker of internationalised URLs that
# compiles a grammar for most of a second in every job. No notebook needs it: it is optional, and
# a module that is None in this table counts as not installed.
sys.modules.setdefault("rfc3987_syntax", None)


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


def check_parameters(notebook: Path | str, parameters: dict) -> None:
    """Raise ExecutionError that lists every unknown or wrongly typed parameter."""
    import papermill

    try:
        cell = papermill.inspect_notebook(str(notebook))
    except ValueError as error:  # as saved by an editor that leaves the kernel out
        message = f"{notebook} names no kernel: give it the kernelspec python3."
        raise ExecutionError(message) from error
    problems = []
    for name, value in parameters.items():
        if name not in cell:
            problems.append(unknown("parameter", name, list(cell)))
            continue
        default = ast.literal_eval(cell[name]["default"])
        if not _fits(value, default):
            problems.append(
                f"{name} is {json.dumps(value)} ({type(value).__name__}), but must be "
                f"{type(default).__name__} like its default {default!r}"
            )
    if problems:
        raise ExecutionError(f"{notebook} cannot take these parameters:\n{listed(problems)}")


def _fits(value: object, default: object) -> bool:
    """Whether a value has its default's type; whole numbers pass as float, anything for None."""
    if default is None:
        return True
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if type(value) is not type(default):
        return False
    if isinstance(default, list) and default:
        return all(_fits(item, default[0]) for item in value)
    return True


def execute(
    notebook: Path | str,
    output: Path | str,
    parameters: dict | None = None,
    expect: tuple[str, ...] | list[str] = (),
) -> float:
    """Run a notebook and save the executed copy as ``output``; returns the seconds it took.

    Raises ExecutionError for parameters that do not fit, a cell that fails (its message, and
    where the executed notebook lies) and expected files that were not written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook, output = Path(notebook), Path(output)
    if not notebook.is_file():
        raise ExecutionError(f"There is no notebook {notebook}.")
    check_parameters(notebook, parameters or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters or {}, kernel_name="python3",
            cwd=str(notebook.parent), progress_bar=False,
            extra_arguments=["--log-level=CRITICAL"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise ExecutionError(
            f"{notebook.name} failed in its code cell {error.exec_count}.\n"
            f"{error.ename}: {error.evalue}{_room(str(error.evalue), output)}\n"
            f"The executed notebook: {output}", error.exec_count, error.ename,
        ) from error  # fmt: skip
    except (RuntimeError, TimeoutError, ConnectionError) as error:  # nbclient's, of a kernel
        raise ExecutionError(
            f"{notebook.name}: its kernel died, or did not answer: killed, or the machine ran out "
            f"of memory. ({type(error).__name__}: {error})\n"
            f"The executed notebook, as far as it came: {output}", kind="DeadKernelError",
        ) from error  # fmt: skip
    except OSError as error:  # of the executed notebook itself
        raise ExecutionError(
            f"{notebook.name}: {output} cannot be written.\n{type(error).__name__}: {error}"
            f"{_room(str(error), output)}", kind=type(error).__name__,
        ) from error  # fmt: skip
    missing = [name for name in expect if not Path(name).exists()]
    if missing:
        raise ExecutionError(
            f"{notebook.name} ran to its end but did not write:\n{listed(missing)}\n"
            f"The executed notebook: {output}"
        )
    return time.perf_counter() - start


def _room(message: str, output: Path) -> str:
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
    from medlib import artifacts  # it brings pandas along, which only here is worth the wait

    try:
        artifacts.save_json(record, words)
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


def ensure(notebook: str, *promised: Path, **parameters: object) -> None:
    """Where a promised file is missing, run the notebook that writes it, and say so.

    This is how a notebook opened on its own gets its inputs; in a grid they are always there. The
    notebook's name is relative to the working folder, and its executed copy lies beside the first
    promised file.
    """
    if all(path.exists() for path in promised):
        return
    print(f"{promised[0]} is not there yet: running {notebook} …", flush=True)
    command = [
        sys.executable, "-m", "medlib.execute", notebook, str(promised[0].parent / notebook),
        "--parameters", json.dumps(parameters), "--expect", *map(str, promised),
    ]  # fmt: skip
    # A process of its own: papermill cannot start its event loop inside a running kernel's.
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # Under a controller nothing is printed: why it failed stands in its record alone.
        known = failed(promised[0].parent / notebook)
        words = known["error"] if known else done.stderr.strip()
        raise ExecutionError(words or f"{notebook} ended with {done.returncode}")


def sources(notebook: Path | str) -> list[Path]:
    """The notebook and the medlib modules that it imports, directly or through others.

    What a grid has to run again when one of them is edited.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found, todo = set(), set(imports(code))
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo |= imports((MEDLIB / f"{module}.py").read_text(encoding="utf-8"))
    return [Path(notebook), *(MEDLIB / f"{module}.py" for module in sorted(found))]


@functools.cache  # of each module once, however many rules depend on it
def imports(code: str) -> frozenset[str]:
    """The medlib modules that Python code imports."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "medlib":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medlib."):
            modules.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            modules |= {a.name.split(".")[1] for a in node.names if a.name.startswith("medlib.")}
    return frozenset(modules)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed notebook is saved")
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    parser.add_argument("--expect", nargs="*", default=[], help="files that the run must write")
    parser.add_argument("--gpu", type=int, default=0, help="1: take a GPU, where there is one")
    parser.add_argument("--attempt", type=int, default=1, help="from 2 on: only what is transient")
    arguments = parser.parse_args()
    notebook, output, expect = arguments.notebook, arguments.output, arguments.expect
    try:
        parameters = json.loads(arguments.parameters)
    except json.JSONDecodeError as error:
        print(f"--parameters is not JSON ({error}): {arguments.parameters}", file=sys.stderr)
        return 2

    def work() -> None:
        if not isinstance(parameters, dict):
            raise ExecutionError(f"--parameters is not a JSON object: {arguments.parameters}")
        seconds = execute(notebook, output, parameters, expect)
        if not os.environ.get(CONTROLLER):
            print(f"{notebook.stem}: {seconds:.1f} s -> {output}")

    return run_job(work, output, notebook, expect, arguments.attempt, bool(arguments.gpu))


if __name__ == "__main__":
    sys.exit(main())
