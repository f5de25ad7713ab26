"""Checkpoints of fine-tuning, written after each epoch, from which a killed run continues."""

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from medlib import files
from medlib.core.classifier import Classifier, assign, learnt
from medlib.core.splits import Predicted


@dataclass
class Course:
    """How far one training has come: all that its next epoch needs, except the model itself."""

    epoch: int = 0  # the last one that is done
    micro_batches: int = 1  # into which a step is cut, as the GPU's memory demands
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # see :func:`state`


def _trained(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def state(optimiser: torch.optim.Optimizer, order: torch.Generator) -> dict[str, torch.Tensor]:
    """The optimiser's moments, by the number of their parameter, and all random states."""
    states = {"order": order.get_state(), "random": torch.get_rng_state()}
    parameters = _trained(optimiser)
    if parameters[0].is_cuda:
        states["random_cuda"] = torch.cuda.get_rng_state(parameters[0].device)
    for number, parameter in enumerate(parameters):
        for name, value in optimiser.state[parameter].items():
            states[f"{number}.{name}"] = value
    return states


def restore(
    optimiser: torch.optim.Optimizer, order: torch.Generator, state: dict[str, torch.Tensor]
) -> None:
    """Put what :func:`state` returned into a new optimiser of the same parameters."""
    order.set_state(state["order"])
    torch.set_rng_state(state["random"])
    parameters = _trained(optimiser)
    if "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], parameters[0].device)
    for key, value in state.items():
        number, _, name = key.partition(".")
        if name:  # a moment, and not a random state
            parameter = parameters[int(number)]
            # The memory layout is the parameter's, as the fused optimiser wants it.
            like = parameter if value.shape == parameter.shape else value
            place = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
            optimiser.state[parameter][name] = place.copy_(value)


LONG = 1.0  # seconds: a checkpoint that takes longer to write is not written after each epoch


@dataclass
class Progress:
    """How far a run has come: all that the rest needs, except the model and its best state."""

    course: Course = field(default_factory=Course)  # of the present training
    history: list[dict] = field(default_factory=list)  # a row for each epoch that is done
    # An item for each training that is done: all learning rates of a rotation, then the next one.
    predicted: list[Predicted] = field(default_factory=list)
    images: int = 0  # how many images the steps have seen
    resumed: int = 0  # how often the run has been resumed
    seconds: float = 0.0  # of all earlier attempts, up to the checkpoint they were resumed from
    begun: float = field(default_factory=time.perf_counter)
    rests_until: float = 0.0  # no checkpoint is written before this time


IN_WORDS = ("history", "images", "resumed")  # stored as JSON


class Kept(NamedTuple):
    """What a run keeps on the disk: a checkpoint, and beside it the weights of its trainings."""

    checkpoint: Path | None = None
    models: bool = False

    def model(self, fold: object, rate: float) -> Path:
        return self.checkpoint.with_name(f"trained-fold{fold}-{float(rate)}.safetensors")


NOTHING = Kept()


def keep_model(kept: Kept, fold: int, rate: float, model: Classifier) -> None:
    """Write what a training of this fold with this learning rate has learnt, if it is kept."""
    if kept.models:
        save(kept.model(fold, rate), learnt(model))


def save(path: Path, tensors: Mapping[str, torch.Tensor], words: dict | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, words)


def keep(
    path: Path | None, identity: str, at: Progress, model: Classifier, best: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint after an epoch: a safetensors file, renamed when it is complete.

    After a checkpoint that took longer than :data:`LONG` to write, no epoch is saved for ten times
    as long. (A large network may train on few images faster than it is saved.)
    """
    begun = time.perf_counter()
    if path is None or begun < at.rests_until:
        return
    parts = {"model": learnt(model), "best": best, "course": at.course.tensors}
    sides = [side for predicted in at.predicted for side in (predicted.val, predicted.test)]
    parts["predicted"] = {str(i): torch.from_numpy(side) for i, side in enumerate(sides)}
    tensors = {f"{part}/{name}": v for part, values in parts.items() for name, v in values.items()}
    words = {name: getattr(at, name) for name in IN_WORDS}
    words |= {"epoch": at.course.epoch, "micro_batches": at.course.micro_batches}
    words["seconds"] = at.seconds + begun - at.begun
    save(path, tensors, {"identity": identity, "progress": json.dumps(words)})
    end = time.perf_counter()
    if end - begun > LONG:
        at.rests_until = end + 10 * (end - begun)


def restored(
    path: Path | None, identity: str, model: Classifier, best_state: dict[str, torch.Tensor]
) -> Progress:
    """Load into ``model`` and ``best_state`` what :func:`keep` wrote, or begin anew."""
    if path is None or not path.is_file():
        return Progress()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            fits = header.get("identity") == identity
            tensors = {name: file.get_tensor(name) for name in file.keys() if fits}  # noqa: SIM118
    except SafetensorError:
        fits = False
    if not fits:
        words = f"{path} is not a checkpoint of these images, settings and code: starting anew."
        warnings.warn(words, stacklevel=3)
        return Progress()
    parts: dict = {"model": {}, "best": {}, "course": {}, "predicted": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    words = json.loads(header["progress"])
    assign(learnt(model), parts["model"])
    assign(best_state, parts["best"])
    course = Course(words.pop("epoch"), words.pop("micro_batches"), parts["course"])
    words["resumed"] += 1
    sides = [parts["predicted"][str(i)].numpy() for i in range(len(parts["predicted"]))]
    predicted = [Predicted(*pair) for pair in zip(sides[::2], sides[1::2], strict=True)]
    return Progress(course, predicted=predicted, **words)
