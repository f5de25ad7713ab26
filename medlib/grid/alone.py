"""The runs that a notebook reads. Opened on its own, a notebook makes two arms first."""

from pathlib import Path

from medlib.grid import address, kinds, states
from medlib.grid.notebooks import ensure

TASK = "chest_xray"  # if a notebook is about all tasks, and there is none yet
# A pretrained arm, for which no network is needed, and its random control.
ARMS = ("micro_resnet-phantoms", "micro_resnet-random")
SEEDS = [0, 1]  # a random control that was drawn once is in no test
LABELS = [1.0, 0.5, 0.25]  # shares of the labelled patients, so that a curve can be drawn


def folders(results: Path | str, grid_file: str = "", task: str = "") -> list[Path]:
    """The folders of the complete runs of a task; with ``task=""``, of all tasks.

    With a grid file, only its runs count. Without one, and on phantoms, there must be two backbones
    with a linear head to compare: if there are not, notebook 03 makes the arms :data:`ARMS`, where
    they are missing. Raises ValueError if there is no run, with the way out.
    """

    def found() -> list[address.Address]:
        runs = map(address.Address.parse, states.done_folders(grid_file, results))
        return [run for run in runs if task in ("", run.task)]

    runs = found()
    comparable = len({run.backbone for run in runs if run.head == "linear"}) > 1
    if not grid_file and not comparable and kinds.held(results) != kinds.REAL:
        of = task or (runs[0].task if runs else TASK)
        sizes = address.packed_sizes(results, of)  # another size would draw the phantoms again
        asked = {"task": of, "label_fractions": LABELS, "seeds": SEEDS}
        asked |= {"image_size": sizes[-1]} if sizes else {}
        for backbone in ARMS:
            linear = address.Address(of, backbone, "frozen").record(results)
            ensure("03_probe_features.ipynb", linear, results=results, backbone=backbone, **asked)
        runs = found()
    if not runs:
        way_out = "Run notebook 03 with this task and this results folder."
        if grid_file:
            way_out = f"Run the grid first: make study GRID={Path(grid_file).stem}"
        of = f" of the task {task!r}" if task else ""
        raise ValueError(f"No run{of} is complete in {results}. {way_out}")
    return [run.folder(results) for run in runs]
