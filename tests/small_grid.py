"""The smallest grid that has every kind of job, in a folder of its own. Tests of runs share it.

Imports only the standard library, so that scripts without pytest can use it as well.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = {
    "title": "one task, one backbone",
    # Characters that have a meaning for a shell, for Snakemake or for LaTeX.
    "caption": "Phantoms; 'quoted' \"twice\" `touch pwned` $(touch pwned) {wildcards.task}\n& more",
    "data": "phantoms",
    "tasks": ["fundus_pm"],
    "seeds": [0],
    "prepare": {"phantom_scale": 0.1},
    "frozen": {"backbones": ["micro_resnet-random"], "image_size": 28, "heads": ["linear"]},
    "finetuned": {
        "backbones": ["micro_resnet-random"],
        "image_size": 28,
        "learning_rates": [0.001],
        "epochs": 2,
    },
    "collect": {"resamples": 100},
    "save_models": True,
}


STUDY = ["-m", "medlib.grid.study"]
# This is printed if a grid is complete, and only then.
CALLED_COMPLETE = re.compile(r"(?i)grid '\w+' is complete")
# Runs first in every process of a study: notes each outside address that it connects to.
NO_NETWORK = """
import socket
from pathlib import Path
connect = socket.socket.connect
def told(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "local")):
        with open(Path(__file__).with_name("calls.log"), "a") as file:
            print(address, file=file)
    return connect(self, address)
socket.socket.connect = told
"""


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
    """The environment of a run in that folder: it uses the folder's medlib and this Python."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(folder), "PATH": tools, "OMP_NUM_THREADS": "1"}


def as_in_a_terminal() -> None:
    """Restore the default signals before a process starts.

    A process that a shell starts in the background ignores SIGINT, and one that `nohup` starts
    ignores SIGHUP. Their children inherit this.
    """
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)


class Study:
    """The parts of a repository that a run needs, in a folder of their own."""

    def __init__(self, folder, grid=SMALL, **variables):
        self.folder = folder
        lay(folder)
        self.grid(grid)
        (folder / "sitecustomize.py").write_text(NO_NETWORK)
        self.environment = environment(folder) | variables

    def grid(self, grid):
        import yaml

        (self.folder / "grids" / "small.yaml").write_text(yaml.safe_dump(grid))

    def begin(self, command="run", *arguments, **how):
        cores = ["--cores", "2"] if command in ("run", "figures") else []
        line = [sys.executable, *STUDY, command, "small", *cores, *map(str, arguments)]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | how
        how |= {"cwd": self.folder, "env": self.environment}
        return subprocess.Popen(line, preexec_fn=as_in_a_terminal, **how)

    def call(self, command="run", *arguments):
        """Run a command of the study; returns its exit status and its output."""
        process = self.begin(command, *arguments)
        said, _ = process.communicate(timeout=1800)
        return process.returncode, said

    def plan(self):
        """The rules that would run, with the number of their jobs, and the printed text."""
        status, said = self.call("plan")
        assert status == 0, said
        lines = [line.split() for line in said.splitlines() if " × " in line]
        return {line[2]: int(line[0]) for line in lines}, said

    def processes(self, *words):
        """The ids of this study's processes whose command line has all of these words."""
        ids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
                here = os.readlink(process / "cwd")
            except OSError:
                continue
            if here.startswith(str(self.folder)) and all(word in line for word in words):
                ids.append(int(process.name))
        return ids
