"""A grid file: tasks × backbones × regimes × seeds, checked as a whole before anything runs.

``grids/<grid>.yaml`` holds ``title``, ``caption`` (printed beneath every figure), ``data``
("phantoms" or "real"), ``tasks``, ``seeds``, and the settings of notebook 01 (``prepare``), of the
regimes (``frozen``, ``finetuned``, ``lora``) and of notebook 05 (``collect``). Settings have the
names of the notebooks' parameters. Any regime may be left out, or have ``seeds`` of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from medlib.core import backbones, settings, weights
from medlib.data import cards
from medlib.errors import listed, unknown
from medlib.grid import address

TRAINING = (
    "backbones",
    "image_size",
    "learning_rates",
    "epochs",
    "batch_size",
    "weight_decay",
    "warmup",
    "balanced",
    "layer_decay",
    "frozen_norm",
    "checkpointing",
    "label_fraction",
    "seeds",
)
SETTINGS = {
    "prepare": ("folds", "phantom_scale", "quarantine", "volumes"),
    "frozen": ("backbones", "image_size", "heads", "label_fractions", "seeds"),
    "finetuned": TRAINING,
    "lora": (*TRAINING, "lora_rank", "lora_alpha"),
    "collect": ("resamples",),
}
FIELDS = ("title", "caption", "data", "tasks", "seeds", *SETTINGS)
HEADS = ("linear", "knn", "mlp")
# What may be part of a path, of a rule's name and of a command, as it is.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def read(path: Path | str) -> dict:
    """Read and check a grid file.

    ``label_fraction`` of a trained regime may be one number or a mapping of tasks to numbers.
    Raises ValueError that lists every unknown field, task, backbone and head, every name that
    cannot be part of a path, and every backbone that does not fit its image size.
    """
    path = Path(path)
    if not path.is_file():
        grids = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ValueError(unknown("grid", path.stem, grids, f"A grid is a file in {path.parent}/."))
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    problems = [unknown("field", name, FIELDS) for name in grid if name not in FIELDS]
    problems += _name_problems([path.stem, *(grid.get("tasks") or ())])
    problems += [f"{n} is missing" for n in ("title", "data", "tasks", "seeds") if not grid.get(n)]
    for part, names in SETTINGS.items():
        grid.setdefault(part, {})
        problems += [unknown(f"setting of {part}", n, names) for n in grid[part] if n not in names]
    choices = cards.tasks()
    problems += [unknown("task", t, choices) for t in grid.get("tasks") or () if t not in choices]
    for regime in settings.REGIMES:
        problems += _regime_problems(regime, grid)
    heads = grid["frozen"].get("heads", ())
    problems += [unknown("head", head, HEADS) for head in heads if head not in HEADS]
    if heads and "linear" not in heads:
        problems.append("frozen: heads lack linear, with which backbones are compared")
    trained = any(grid[regime] for regime in settings.TRAINED)
    if not trained and 1.0 not in grid["frozen"].get("label_fractions", [1.0]):
        problems.append("frozen: label_fractions lack 1.0, on which backbones are compared")
    if not any(grid[regime] for regime in settings.REGIMES):
        problems.append(f"there is no regime: none of {', '.join(settings.REGIMES)}")
    if problems:
        raise ValueError(f"{path} cannot be run:\n{listed(problems)}")
    return grid


def _name_problems(names: Iterable) -> list[str]:
    """Names become paths and wildcards: other signs in them would be read as something else."""
    return [
        f"{name!r} cannot be a name: letters, digits and _ . + - only, and none of . + - in front"
        for name in names
        if not NAME.fullmatch(str(name))
    ]


def _regime_problems(regime: str, grid: dict) -> list[str]:
    settings = grid[regime]
    if not settings:
        return []
    required = ["backbones", "image_size"] + ["heads"] * (regime == "frozen")
    problems = [f"{regime}: {name} is missing" for name in required if not settings.get(name)]
    problems += _name_problems(settings.get("backbones") or ())
    for name in settings.get("backbones") or ():
        try:
            backbones.check_image_size(backbones.get(name), settings.get("image_size") or 224)
        except ValueError as error:
            problems.append(f"{regime}: {error}")
    fractions = settings.get("label_fraction")
    if isinstance(fractions, dict):
        missing = [task for task in grid.get("tasks") or () if task not in fractions]
        problems += [f"{regime}: label_fraction has no number for {task}" for task in missing]
    return problems


def image_sizes(grid: dict) -> list[int]:
    """The sizes, in pixels, at which images have to be packed."""
    return sorted({grid[r]["image_size"] for r in settings.REGIMES if grid[r]})


def seeds(grid: dict, regime: str) -> list[int]:
    """The seeds of a regime: its own, or those of the grid."""
    return grid[regime].get("seeds") or grid["seeds"]


def label_fraction(grid: dict, task: str, regime: str = "finetuned") -> float:
    """The share of labelled patients on which a task is fine-tuned."""
    fraction = grid[regime].get("label_fraction", 1.0)
    return fraction[task] if isinstance(fraction, dict) else fraction


def label_fractions(grid: dict, task: str) -> list[float]:
    """The shares on which a task's embeddings are probed: the grid's, and that of fine-tuning.

    A frozen backbone is thereby always shown at the same labels as a fine-tuned one.
    """
    own = {label_fraction(grid, task, regime) for regime in settings.TRAINED if grid[regime]}
    return sorted(own | set(grid["frozen"].get("label_fractions", [1.0])), reverse=True)


def runs(grid: dict, results: Path | str) -> list[Path]:
    """The folders of all runs that the grid asks for."""
    folders = []
    for task in grid["tasks"]:
        probes = address.frozen_runs(
            grid["frozen"].get("heads", ()), label_fractions(grid, task), seeds(grid, "frozen")
        )
        for backbone in grid["frozen"].get("backbones", ()):
            folders += [
                address.run_folder(results, task, backbone, "frozen", **probe) for probe in probes
            ]
        folders += fine_tuned(grid, results, task)
    return folders


def regime_of(folder: Path) -> str:
    """The regime of a run."""
    return folder.parent.name.partition("-")[0]


def fine_tuned(
    grid: dict, results: Path | str, task: str, backbone: str | None = None
) -> list[Path]:
    """The folders of all runs of a task in which the backbone itself is trained (None: any)."""
    return [
        address.run_folder(
            results,
            task,
            name,
            regime,
            label_fraction=label_fraction(grid, task, regime),
            seed=seed,
        )
        for regime in settings.TRAINED
        for name in grid[regime].get("backbones", ())
        if backbone in (None, name)
        for seed in seeds(grid, regime)
    ]


def all_backbones(grid: dict) -> set[str]:
    """The names of the backbones of any regime."""
    return {name for regime in settings.REGIMES for name in grid[regime].get("backbones", ())}


def asks_for(grid: dict, path: Path) -> bool:
    """Whether a file, relative to the results folder, is of a task and backbone of the grid.

    What an earlier version of the grid has left behind is not.
    """
    if path.parts[0] in ("runs", "features"):
        return path.parts[1] in grid["tasks"] and path.parts[2] in all_backbones(grid)
    return path.parts[0] != "images" or path.parts[1] in grid["tasks"]


def check_inputs(grid: dict) -> None:
    """Raise before the first job when its data or weights cannot be had.

    Weights that only the hub has are fetched here, once, so that jobs on machines without a
    network find them. Raises ValueError that lists everything that is missing.
    """
    problems = []
    if grid["data"] != "phantoms":
        problems += data_problems(grid)
    rows = [backbones.get(name) for name in sorted(all_backbones(grid))]
    fetched = [r for r in rows if r.pretraining != "random" and not weights.weights_file(r)]
    for row in fetched:
        try:
            weights.find_weights(row)
        except FileNotFoundError as error:
            problems.append(str(error))
            others = [r.timm_name for r in fetched if r is not row]
            if others:
                problems.append("not in MEDLIB_WEIGHTS either: " + ", ".join(others))
            break  # where one cannot be fetched, waiting for the others tells nothing new
    if problems:
        raise ValueError(f"The grid cannot start:\n{listed(problems)}")


def data_problems(grid: dict) -> list[str]:
    try:
        data = cards.data_folder(grid["data"], "")
    except FileNotFoundError as error:
        return [str(error)]
    tasks = [cards.read(task) for task in grid["tasks"]]
    return [
        f"{card.task}: there is no folder {card.folder!r} in {data}; its source: {card.source}"
        for card in tasks
        if card.layout and cards.data_set_folder(card, data) is None
    ]
