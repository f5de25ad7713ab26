"""medlib installed from a path, as on Google Colab: no clone around it, another working folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("installed")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A working folder, and an environment in which medlib is installed without a clone."""
    folder = tmp_path_factory.mktemp("colab")
    source, content = folder / "source", folder / "content"
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("medlib", "notebooks", "data_manifests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(folder / "packages"), str(source)]
    subprocess.run(command, check=True)
    shutil.rmtree(source)
    shutil.copytree(REPOSITORY / "notebooks", content, ignore=ignored)
    environment = os.environ | {"PYTHONPATH": str(folder / "packages"), "TQDM_DISABLE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    return content, environment


def call(elsewhere, *arguments):
    folder, environment = elsewhere
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_package_and_every_card_is_installed(elsewhere):
    said = call(
        elsewhere,
        "-c",
        "import medlib; from medlib.data import cards; from medlib.grid import notebooks\n"
        "print(medlib.__file__, cards.FOLDER, notebooks.NOTEBOOKS, sep='\\n')",
    )
    package, cards, notebooks = map(Path, said.splitlines())
    package = package.parent
    assert package.parent.name == "packages" and package in cards.parents
    for there, here in (
        (package, REPOSITORY / "medlib"),
        (cards, REPOSITORY / "data_manifests"),
        (notebooks, REPOSITORY / "notebooks"),
    ):
        kinds = ("*.py", "*.yaml", "*.csv", "*.html", "*.ipynb")
        wanted = {path.relative_to(here) for kind in kinds for path in here.rglob(kind)}
        wanted = {path for path in wanted if ".ipynb_checkpoints" not in path.parts}
        assert {path for path in wanted if not (there / path).is_file()} == set()


def test_the_listed_packages_are_the_folders():
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {path.parent.relative_to(REPOSITORY) for path in REPOSITORY.glob("medlib/**/*.py")}
    own = {".".join(folder.parts) for folder in found}
    assert set(listed["packages"]) == own | set(listed["package-dir"])


def test_notebooks_run_by_nbconvert_and_by_papermill(elsewhere):
    folder, _ = elsewhere
    convert = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output", "done.ipynb"]
    call(elsewhere, *convert, "00_core_in_a_page.ipynb")
    assert (folder / "done.ipynb").is_file()
    mill = ["-m", "papermill", "--no-progress-bar", "-k", "python3"]
    small = ["-p", "task", "fundus_pm", "-p", "phantom_scale", "0.1"]
    call(elsewhere, *mill, "01_prepare_data.ipynb", "prepared.ipynb", *small)
    # Its embeddings are not there yet: 03 runs the notebook 02 that was installed.
    asked = ["-p", "task", "fundus_pm", "-p", "redraws", "5"]
    call(elsewhere, *mill, "03_probe_features.ipynb", "probed.ipynb", *asked)
    results = folder.parent / "results" / "lab"
    run = results / "runs" / "fundus_pm" / "micro_resnet-phantoms" / "frozen-linear" / "seed0"
    assert len(pd.read_csv(run / "predictions.csv")) > 10
    executed = results / "features" / "fundus_pm" / "micro_resnet-phantoms" / "seed0"
    assert (executed / "02_extract_features.ipynb").is_file()
