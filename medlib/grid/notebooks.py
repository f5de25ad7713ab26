"""Run one notebook with one set of parameters, by papermill.

    python -m medlib.grid.notebooks NOTEBOOK OUTPUT --parameters '{"seed": 1}' --expect FILE …

The names and types of the parameters must be those of the cell tagged ``parameters``, and the
notebook must write the expected files. The kernel is ``python3``, started in the notebook's folder.
If a run fails, the reason is recorded beside the executed notebook.
"""

import argparse
import ast
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from medlib.core.settings import fits
from medlib.environment import MEDLIB, shipped
from medlib.errors import listed, unknown
from medlib.grid import kinds
from medlib.grid.jobs import CONTROLLER, ExecutionError, add_arguments, failed, room, run_job
from medlib.grid.made import code_cells

NOTEBOOKS = shipped("notebooks")
PROGRESS = "MEDLIB_PROGRESS"  # the folder in which a notebook says how far it is, if one waits

# papermill's JSON-schema validator imports this module if it is installed. That takes most of a
# second in every job, for a check of URLs that no notebook needs. None: as if not installed.
sys.modules.setdefault("rfc3987_syntax", None)


def check_parameters(notebook: Path | str, parameters: dict) -> None:
    """Raise ExecutionError that lists every unknown or wrongly typed parameter."""
    import papermill

    try:
        cell = papermill.inspect_notebook(str(notebook))
    except ValueError as error:  # some editors save notebooks without a kernel
        said = f"{notebook} names no kernel: give it the kernelspec python3."
        raise ExecutionError(said) from error
    problems = []
    for name, value in parameters.items():
        if name not in cell:
            problems.append(unknown("parameter", name, list(cell)))
            continue
        default = ast.literal_eval(cell[name]["default"])  # None allows any value
        if default is not None and not fits(value, default):
            wanted = f"{type(default).__name__} like its default {default!r}"
            given = f"{json.dumps(value)} ({type(value).__name__})"
            problems.append(f"{name} is {given}, but must be {wanted}")
    if problems:
        raise ExecutionError(f"{notebook} cannot take these parameters:\n{listed(problems)}")


def execute(
    notebook: Path | str, output: Path | str, parameters: dict | None = None, expect: Sequence = ()
) -> float:
    """Run a notebook and save the executed copy as ``output``; returns the seconds it took.

    Raises ExecutionError for parameters that do not fit, a cell that fails, and expected files
    that were not written.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook, output = Path(notebook), Path(output)
    name, there = notebook.name, f"The executed notebook: {output}"
    if not notebook.is_file():
        raise ExecutionError(f"There is no notebook {notebook}.")
    check_parameters(notebook, parameters or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    how = {"kernel_name": "python3", "cwd": str(notebook.parent), "progress_bar": False}
    how["extra_arguments"] = ["--log-level=CRITICAL"]
    try:
        with contextlib.ExitStack() as stack:
            if told := os.environ.get(PROGRESS):
                bar = stack.enter_context(open(Path(told) / "cells", "w", encoding="utf-8"))
                how["progress_bar"] = {"file": bar, "bar_format": "{n_fmt} of {total_fmt} cells"}
            papermill.execute_notebook(str(notebook), str(output), parameters or {}, **how)
    except PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}{room(str(error.evalue), output)}"
        said = f"{name} failed in its code cell {error.exec_count}.\n{said}\n{there}"
        raise ExecutionError(said, error.exec_count, error.ename) from error
    except (RuntimeError, TimeoutError, ConnectionError) as error:  # nbclient's, about a kernel
        said = f"killed, or the machine ran out of memory. ({type(error).__name__}: {error})"
        said = f"{name}: its kernel died or did not answer: {said}\n"
        said += f"The executed notebook up to this point: {output}"
        raise ExecutionError(said, kind="DeadKernelError") from error
    except OSError as error:  # the executed notebook cannot be saved
        kind = type(error).__name__
        said = f"{name}: {output} cannot be written.\n{kind}: {error}{room(str(error), output)}"
        raise ExecutionError(said, kind=kind) from error
    if missing := [file for file in expect if not Path(file).exists()]:
        said = f"{name} ran to its end but did not write:\n{listed(missing)}\n{there}"
        raise ExecutionError(said)
    return time.perf_counter() - start


def ensure(notebook: str, *promised: Path, results: str, **parameters: object) -> None:
    """If one of the ``promised`` files is missing, run the notebook that writes them, and say so.

    So a notebook that is opened on its own gets its inputs; in a grid they are always there. The
    notebook is the one in ``notebooks/``, not a working copy. The executed copy is saved beside the
    first file. While it runs, a line for it, and for each notebook that it runs itself, says how
    far it is. Raises ValueError for an unknown backbone or task, and if ``results`` holds another
    kind of data than is asked for; :class:`ExecutionError` if the notebook fails.
    """
    if "data" in parameters:
        kinds.check(results, parameters["data"])
    if all(path.exists() for path in promised):
        return
    from medlib.core import backbones  # here: a job of a grid needs neither
    from medlib.data import cards

    if "backbone" in parameters:
        backbones.get(parameters["backbone"])
    if "task" in parameters:
        cards.read(parameters["task"])
    output = promised[0].absolute().parent / notebook
    parameters["results"] = str(Path(results).absolute())
    command = [sys.executable, "-m", "medlib.grid.notebooks", str(NOTEBOOKS / notebook)]
    command += [str(output), "--parameters", json.dumps(parameters)]
    command += ["--expect", *(str(path.absolute()) for path in promised)]
    above = os.environ.get(PROGRESS)  # set where another notebook waits for this one
    with tempfile.TemporaryDirectory() as own:
        told = Path(above or own)
        told /= f"{len(list(told.glob('*.ipynb'))):02}-{notebook}"
        told.mkdir()
        # In another process: papermill cannot start its event loop in a running kernel's loop.
        with open(told / "errors", "w+", encoding="utf-8") as errors:
            how = {"stdout": subprocess.DEVNULL, "stderr": errors, "text": True}
            done = subprocess.Popen(command, env=os.environ | {PROGRESS: str(told)}, **how)
            _wait(done, None if above else told)
            errors.seek(0)
            said = errors.read().strip()
    if done.returncode:
        record = failed(output)  # under a controller, nothing is printed
        message = record["error"] if record else said
        raise ExecutionError(message or f"{notebook} ended with {done.returncode}")


def _wait(process: subprocess.Popen, told: Path | None) -> None:
    """Wait for a process, and end it if the wait is interrupted. With ``told``, show its lines."""
    from IPython.display import display

    def show(words: str) -> None:
        if shown:  # None outside a notebook
            shown.update({"text/plain": words}, raw=True)

    first = {"text/plain": _lines(told)} if told else {}
    shown = display(first, raw=True, display_id=True) if told else None
    try:
        while process.poll() is None:
            time.sleep(0.5)
            show(_lines(told) if told else "")
    finally:
        process.terminate()  # nothing happens if it has ended
        process.wait()
        show(_lines(told, process.returncode) if told else "")


def _lines(told: Path, ended: int | None = None) -> str:
    """A line for each notebook that was run, indented below the one that needs it."""
    said = ["Results are missing, so this runs first:" if ended is None else "This ran first:"]
    for place in sorted([told, *told.glob("**/*.ipynb")]):
        bar = place / "cells"
        cells = re.split(r"[\r\n]", bar.read_text().strip())[-1] if bar.is_file() else "starts"
        depth = len(place.relative_to(told).parts)
        said.append(f"{'  ' * (depth + 1)}{place.name.partition('-')[2]}: {cells}")
    said[-1] += " (it failed)" if ended else ""
    return "\n".join(said)


def code(notebook: Path | str) -> str:
    """The code of all cells of a notebook."""
    return "\n".join(text for _, text in code_cells(Path(notebook).read_text(encoding="utf-8")))


def sources(notebook: Path | str, without: Collection[Path] = ()) -> list[Path]:
    """The notebook and the medlib modules that it imports, directly or through others.

    The modules in ``without`` are left out, and so are those that only they import.
    """
    modules, without = set(), frozenset(without)
    todo = imports(code(notebook)) - without
    while todo:
        modules |= todo
        below = (imports(m.read_text(encoding="utf-8")) for m in todo)
        todo = frozenset().union(*below) - modules - without
    return [Path(notebook), *sorted(modules)]


@functools.cache  # several rules depend on the same module
def imports(text: str) -> frozenset[Path]:
    """The files of the medlib modules that Python code imports."""
    named = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    ours = (name.split(".")[1:] for name in named if name.startswith("medlib."))
    files = (MEDLIB.joinpath(*parts).with_suffix(".py") for parts in ours)
    return frozenset(file for file in files if file.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed notebook is saved")
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    add_arguments(parser)
    job = parser.parse_args()
    notebook, output = job.notebook, job.output
    try:
        parameters = json.loads(job.parameters)
    except json.JSONDecodeError as error:
        parser.error(f"--parameters is not JSON ({error}): {job.parameters}")

    def work() -> None:
        if not isinstance(parameters, dict):
            raise ExecutionError(f"--parameters is not a JSON object: {job.parameters}")
        seconds = execute(notebook, output, parameters, job.expect)
        if not os.environ.get(CONTROLLER):
            print(f"{notebook.stem}: {seconds:.1f} s -> {output}")

    return run_job(work, output, notebook, job)


if __name__ == "__main__":
    sys.exit(main())
