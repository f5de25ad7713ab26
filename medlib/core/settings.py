"""What can be chosen: regimes, heads, and the settings of extraction and of training."""

from dataclasses import dataclass, field, fields

from medlib.errors import listed, unknown

REGIMES = ("frozen", "finetuned", "lora")
TRAINED = REGIMES[1:]  # those in which the backbone itself learns
HEADS = ("linear", "knn", "mlp")
WHEN = ("auto", "always", "never")  # to recompute activations
SEVERAL = "positive numbers, at least one"
RANGES = {
    "": lambda value: True,
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0, less than 1": lambda value: 0 <= value < 1,
    "more than 0": lambda value: value > 0,
    SEVERAL: lambda values: bool(values) and all(value > 0 for value in values),
}


def _setting(default: object, help: str, must_be: str = "", choices: tuple[str, ...] = ()):
    """A field of :class:`FineTuning`: its default, what it means, its range in words or choices."""
    return field(default=default, metadata={"help": help, "must be": must_be, "choices": choices})


@dataclass(frozen=True)
class FineTuning:
    """The settings of a training: the grid file, notebook 04 and a run's record use these names.

    Raises ValueError that lists every value that has a wrong type or is out of range.
    """

    learning_rates: tuple[float, ...] = _setting(
        (0.001, 0.003), "tried in turn; chosen on validation patients", SEVERAL
    )
    halving: bool = _setting(False, "after each fold, leave out the worse half of the rates")
    epochs: int = _setting(10, "for each learning rate; the best one is kept", "1 or more")
    batch_size: int = _setting(16, "images per step", "1 or more")
    weight_decay: float = _setting(0.05, "of AdamW, on weight matrices only", "0 or more")
    warmup: float = _setting(
        0.1, "share of all steps over which the learning rate rises", "from 0 to 1"
    )
    balanced: bool = _setting(False, "weigh classes by the inverse of their frequency")
    layer_decay: float = _setting(
        1.0, "a layer's learning rate over that of the layer above; 1: one for all", "more than 0"
    )
    backbone_rate: float = _setting(
        1.0, "the backbone's learning rate over that of the head (arXiv 1801.06146)", "more than 0"
    )
    clip: float = _setting(1.0, "largest gradient norm; 0: any (arXiv 1211.5063)", "0 or more")
    drop_path: float = _setting(
        0.0, "share of the last layer's branches left out (arXiv 1603.09382)", "from 0, less than 1"
    )
    probe_first: bool = _setting(False, "the head begins as a linear probe (arXiv 2202.10054)")
    frozen_norm: bool = _setting(False, "batch norm keeps the statistics of pretraining")
    checkpointing: str = _setting(
        "auto", 'recompute to save memory: "always", "never", "auto" (GPU too small)', "", WHEN
    )
    lora_rank: int = _setting(8, "of the additions; regime lora only", "1 or more")
    lora_alpha: float = _setting(
        16.0, "additions are scaled by lora_alpha / lora_rank; regime lora only", "more than 0"
    )

    def __post_init__(self) -> None:
        if isinstance(self.learning_rates, list):
            object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        problems = []
        for each in fields(self):
            value, must_be = getattr(self, each.name), each.metadata["must be"]
            if not fits(value, each.default) or not RANGES[must_be](value):
                must_be = must_be or type(each.default).__name__
                problems.append(f"{each.name} is {value!r}, but must be {must_be}")
            elif (choices := each.metadata["choices"]) and value not in choices:
                problems.append(unknown(each.name, value, choices))
        if problems:
            raise ValueError(f"These settings of training cannot be used:\n{listed(problems)}")


# "gentle" changes pretrained layers less, as MAE's fine-tuning (arXiv 2111.06377) and LP-FT do.
RECIPES = {
    "plain": {},
    "gentle": {"layer_decay": 0.75, "warmup": 0.2, "drop_path": 0.1, "probe_first": True},
}


def fits(value: object, default: object) -> bool:
    """Whether a value, and each item of a list, has its default's type; 1 passes as 1.0."""
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < float("inf")  # nor is it NaN
    items = value if default and isinstance(default, list | tuple) else ()
    return type(value) is type(default) and all(fits(item, default[0]) for item in items)


@dataclass(frozen=True)
class Extraction:
    """How images are embedded. These settings change speed and rounding only.

    ``precision``: float32, bfloat16, float16, or "auto": float16 on CUDA, bfloat16 on a CPU that
    has it, unless that changes the embeddings too much.
    """

    batch_size: int = 0  # images at once; 0 finds a size
    device: str = "auto"  # "auto": CUDA where there is one
    precision: str = "auto"
    compiled: bool | None = None  # None: where that saves time
