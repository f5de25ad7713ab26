"""What can be chosen: regimes, heads, and the settings of extraction and of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from medlib.errors import listed, unknown

REGIMES = ("frozen", "finetuned", "lora")
TRAINED = REGIMES[1:]  # those in which the backbone itself learns
HEADS = ("linear", "knn", "mlp")
CHECKPOINTING = ("auto", "always", "never")


def _setting(default: object, help: str, must: str = "", holds: Callable | None = None):
    """A field of settings: its help, and what its values must be, in words and as a test."""
    metadata = {"help": help, "must": must, "holds": holds or (lambda value: True)}
    return field(default=default, metadata=metadata)


def _positive(value: float) -> bool:
    return value > 0


def _counts(value: int) -> bool:
    return value >= 1


def _share(value: float) -> bool:
    return 0 <= value <= 1


@dataclass(frozen=True)
class FineTuning:
    """The settings of one training; grid file, notebook 04 and a run's record have these names.

    Raises ValueError that lists every value of another type or outside its range. Each field's
    ``metadata["help"]`` says what it means.
    """

    learning_rates: tuple[float, ...] = _setting(
        (0.001, 0.003),
        "tried in turn; chosen on validation patients",
        "positive numbers, at least one",
        lambda rates: rates and all(_fits(rate, 0.0) and rate > 0 for rate in rates),
    )
    epochs: int = _setting(10, "for each learning rate; the best one is kept", "1 or more", _counts)
    batch_size: int = _setting(16, "images a step", "1 or more", _counts)
    weight_decay: float = _setting(
        0.05, "of AdamW, on weight matrices only", "0 or more", lambda value: value >= 0
    )
    warmup: float = _setting(
        0.1, "share of all steps over which the learning rate rises", "from 0 to 1", _share
    )
    balanced: bool = _setting(False, "weigh classes by the inverse of their frequency")
    layer_decay: float = _setting(
        1.0,
        "a layer's learning rate over that of the layer above; 1: one for all",
        "more than 0",
        _positive,
    )
    frozen_norm: bool = _setting(False, "batch norm keeps the statistics of pretraining")
    checkpointing: str = _setting(
        "auto", 'recompute to save memory: "always", "never", "auto" (GPU too small)'
    )
    lora_rank: int = _setting(8, "of the additions; regime lora only", "1 or more", _counts)
    lora_alpha: float = _setting(
        16.0,
        "they are scaled by lora_alpha / lora_rank; regime lora only",
        "more than 0",
        _positive,
    )

    def __post_init__(self) -> None:
        if isinstance(self.learning_rates, list):
            object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        problems = _problems(self)
        if self.checkpointing not in CHECKPOINTING:
            problems.append(unknown("checkpointing", self.checkpointing, CHECKPOINTING))
        _refuse("training", problems)


@dataclass(frozen=True)
class Extraction:
    """How images are embedded. These settings change speed and rounding only.

    ``batch_size`` 0 finds one. ``device`` "auto" is CUDA where there is one. ``precision`` is
    "float32", "bfloat16", "float16" or "auto": float16 on CUDA, unless it changes the embeddings
    too much. ``compiled`` None compiles where that saves time.
    """

    batch_size: int = _setting(0, "images at once; 0 finds a size", "0 or more", lambda n: n >= 0)
    device: str = "auto"
    precision: str = "auto"
    compiled: bool | None = None

    def __post_init__(self) -> None:
        _refuse("extraction", _problems(self))


def _problems(settings: object) -> list[str]:
    """Every value of another type than its default's, or for which its field's test fails."""
    problems = []
    for each in fields(settings):
        value, default = getattr(settings, each.name), each.default
        if default is not None and not _fits(value, default):
            problems.append(f"{each.name} is {value!r}, but must be {type(default).__name__}")
        elif "holds" in each.metadata and not each.metadata["holds"](value):
            problems.append(f"{each.name} is {value!r}, but must be {each.metadata['must']}")
    return problems


def _fits(value: object, default: object) -> bool:
    """Whether a value has its default's type; a whole number passes as a float."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _refuse(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"These settings of {what} cannot be used:\n{listed(problems)}")
