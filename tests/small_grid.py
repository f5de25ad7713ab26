"""The smallest grid that has every kind of job, in a folder of its own: what tests of runs share.

Standard library only, so that scripts which start no test can use it as well.
"""

import json
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = {
    "title": "one task, one backbone",
    # What a shell, Snakemake or LaTeX would take for more than words.
    "caption": "Phantoms; 'quoted' \"twice\" `touch pwned` $(touch pwned) {wildcards.task}\n& more",
    "data": "phantoms",
    "tasks": ["fundus_pm"],
    "seeds": [0],
    "prepare": {"phantom_scale": 0.1},
    "frozen": {"backbones": ["micro_resnet-random"], "image_size": 28, "heads": ["linear"]},
    "finetuned": {"backbones": ["micro_resnet-random"], "image_size": 28, "epochs": 2,
                  "learning_rates": [0.001]},
    "collect": {"resamples": 100},
}  # fmt: skip


def lay(folder: Path) -> None:
    """Copy the parts of the repository that a run needs into a new folder, with the small grid."""
    for name in ("medlib", "notebooks", "data_manifests", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "grids").mkdir()
    # JSON is YAML, too.
    (folder / "grids" / "small.yaml").write_text(json.dumps(SMALL, indent=2), encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """The variables of a run in that folder: its medlib, and this interpreter's commands."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(folder), "PATH": tools, "OMP_NUM_THREADS": "1"}
