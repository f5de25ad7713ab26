"""One notebook, one set of parameters: papermill, made strict.

    python -m medlib.execute NOTEBOOK OUTPUT --parameters '{"task": "fundus"}' --expect FILE …

Parameters are JSON and must be named, and typed, as the cell tagged ``parameters`` has them; the
kernel is ``python3``, started in the notebook's own folder; a promised output that is not there at
the end is a failure.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import time
from pathlib import Path

from medlib.errors import listed, unknown

MEDLIB = Path(__file__).parent


# papermill's JSON-schema validator loads, if it is there, a checker of internationalised URLs that
# compiles a grammar for most of a second in every job. No notebook needs it: it is optional, and
# a module that is None in this table counts as not installed.
sys.modules.setdefault("rfc3987_syntax", None)


class ExecutionError(RuntimeError):
    """A notebook that was not run, or did not do what was asked of it."""


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
            f"{error.ename}: {error.evalue}\nThe executed notebook: {output}"
        ) from error
    missing = [name for name in expect if not Path(name).exists()]
    if missing:
        raise ExecutionError(
            f"{notebook.name} ran to its end but did not write:\n{listed(missing)}\n"
            f"The executed notebook: {output}"
        )
    return time.perf_counter() - start


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
        raise ExecutionError(done.stderr.strip() or f"{notebook} ended with {done.returncode}")


def sources(notebook: Path | str) -> list[Path]:
    """The notebook and the medlib modules that it imports, directly or through others.

    What a grid has to run again when one of them is edited.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found, todo = set(), imports(code)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo |= imports((MEDLIB / f"{module}.py").read_text(encoding="utf-8"))
    return [Path(notebook), *(MEDLIB / f"{module}.py" for module in sorted(found))]


def imports(code: str) -> set[str]:
    """The medlib modules that Python code imports."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "medlib":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medlib."):
            modules.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            modules |= {a.name.split(".")[1] for a in node.names if a.name.startswith("medlib.")}
    return modules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed notebook is saved")
    parser.add_argument("--parameters", default="{}", help="a JSON object")
    parser.add_argument("--expect", nargs="*", default=[], help="files that the run must write")
    arguments = parser.parse_args()
    try:
        parameters = json.loads(arguments.parameters)
        if not isinstance(parameters, dict):
            raise ExecutionError(f"--parameters is not a JSON object: {arguments.parameters}")
        seconds = execute(arguments.notebook, arguments.output, parameters, arguments.expect)
    except json.JSONDecodeError as error:
        print(f"--parameters is not JSON ({error}): {arguments.parameters}", file=sys.stderr)
        return 2
    except ExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.notebook.stem}: {seconds:.1f} s -> {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
