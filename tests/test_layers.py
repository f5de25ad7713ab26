"""The structure that medlib's docstring states is the one that its imports have."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import medlib
from medlib.grid import notebooks

MODULES = {path.stem for path in Path(medlib.__file__).parent.glob("*.py")} - {"__init__"}
LAYERS = {m[2]: int(m[1]) for m in re.finditer(r"^\| (\d) +\| `(\w+)`", medlib.__doc__, re.M)}


def test_every_module_stands_in_the_table():
    assert set(LAYERS) == MODULES


def test_a_module_imports_only_from_layers_below_its_own():
    upward = [
        f"{module} (layer {LAYERS[module]}) imports {imported} (layer {LAYERS[imported]})"
        for module in sorted(MODULES)
        for imported in notebooks.imports((notebooks.MEDLIB / f"{module}.py").read_text("utf-8"))
        if LAYERS[imported] >= LAYERS[module]
    ]
    assert upward == []


def test_the_package_re_exports_nothing():
    tree = ast.parse(Path(medlib.__file__).read_text("utf-8"))
    assert [type(node) for node in tree.body] == [ast.Expr]


def loaded_by(module: str) -> set[str]:
    """The top-level modules that importing one module of medlib loads, in a fresh interpreter."""
    code = f"import sys, medlib.{module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_metrics_splits_hashes_and_the_planner_never_import_torch():
    for module in ("metrics", "manifest", "artifacts", "grid", "compare"):
        assert "torch" not in loaded_by(module), module


def test_the_core_runs_where_only_the_usual_packages_of_a_gpu_machine_are():
    missing_there = {"nibabel", "papermill", "snakemake", "pandera", "seaborn"}
    assert loaded_by("finetune") & missing_there == set()
    assert loaded_by("probe") & missing_there == set()
