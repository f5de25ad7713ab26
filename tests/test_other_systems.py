"""Where medlib is not on Linux: what notebooks import needs no module that Windows lacks."""

import subprocess
import sys

import numpy as np
import torch

from medlib.core import heads, loading, splits
from medlib.grid import notebooks

# Modules of the standard library that Windows does not have.
UNIX_ONLY = ("fcntl", "resource", "grp", "pwd", "termios")
HIDDEN = f"import sys\nsys.modules.update(dict.fromkeys({UNIX_ONLY}))\n"


def run(code, repository):
    command = [sys.executable, "-c", HIDDEN + code]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_notebooks_use_can_be_imported_without_modules_of_unix(repository):
    every = {
        path for name in repository.glob("notebooks/*.ipynb") for path in notebooks.sources(name)
    }
    files = [path for path in every if path.suffix == ".py"]
    names = [".".join(path.relative_to(repository).with_suffix("").parts) for path in files]
    assert {"medlib.environment", "medlib.grid.jobs", "medlib.core.finetune"} <= set(names)
    said = run(
        f"import importlib\nfor name in {sorted(names)}: importlib.import_module(name)\n"
        "import medlib.predict, medlib.grid.lab, medlib.grid.study\n"
        "from medlib.environment import environment, peak_memory_bytes\n"
        "assert environment()['versions']\nprint(peak_memory_bytes())",
        repository,
    )
    assert "'resident': None" in said  # psutil knows the peak on Windows alone


def test_a_notebook_runs_in_batch_and_a_grid_is_refused_without_file_locks(repository, tmp_path):
    said = run(
        f"""
from pathlib import Path
import nbformat
from medlib.grid import jobs, notebooks, study
cells = [nbformat.v4.new_code_cell("n: int = 1  # a number", metadata={{"tags": ["parameters"]}})]
kernel = {{"kernelspec": {{"name": "python3", "display_name": "", "language": "python"}}}}
nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), "{tmp_path}/a.ipynb")
sys.argv = ["", "{tmp_path}/a.ipynb", "{tmp_path}/b.ipynb", "--parameters", '{{"n": 2}}']
assert notebooks.main() == 0
with open("{tmp_path}/lock", "w") as file:
    try:
        jobs.take(file)
    except OSError as error:
        print(error)
""",
        repository,
    )
    assert "Run the grid in WSL" in said and (tmp_path / "b.ipynb").is_file()


def test_the_gpu_of_a_mac_is_used_only_if_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.device_name("auto") == "cpu" and loading.device_name("mps") == "mps"


def test_heads_leave_the_gpu_of_a_mac_which_has_no_float64():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), np.arange(40) % 2
    sides = [np.arange(40) % 4 == side for side in (0, 1)]
    rotation = splits.Rotation(0, ~(sides[0] | sides[1]), *sides)
    asked = [(name, 0, [rotation]) for name in heads.HEADS]
    # torch has no such device here: it would raise an error if the heads used it.
    found = list(heads.sweep(x, y, np.arange(40), asked, n_classes=2, device="mps"))
    assert len(found) == 3 and all(predicted[0].test.dtype == "f8" for _, predicted, *_ in found)
