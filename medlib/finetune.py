"""Fine-tuning: a backbone and a linear head on its embedding, trained together.

Two regimes: ``finetuned`` trains all weights; ``lora`` (Hu et al., arXiv 2106.09685) trains the
head and low-rank additions to the weights, which themselves stay as they are. AdamW with linear
warm-up and cosine decay, light augmentation; the learning rate and the epoch are chosen by the
macro AUROC of the validation samples, from the same list for every backbone.

On a CPU everything is float32, and the same seed gives the same predictions, bit for bit. On CUDA
the networks compute in bfloat16, images stay on the device where they fit, a long training is
compiled, and a step is one CUDA graph: within an epoch the device waits for nothing.

A run that is given a file keeps in it, after each epoch, all that it needs to go on: stopped at any
moment and called again, it ends with the same predictions.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from medlib import artifacts, backbones, features, metrics
from medlib.errors import unknown
from medlib.features import batches, device_name, send
from medlib.images import take
from medlib.manifest import Rotation

HISTORY = ["fold", "learning_rate", "epoch", "train_loss", "val_loss", "val_auroc", "chosen"]
REGIMES = ("finetuned", "lora")
CHECKPOINTING = ("auto", "always", "never")
# Compiling a network and its gradient takes 10 to 40 s, and saves milliseconds a step: on an H200
# it has paid after 1218 steps of ViT-L, 2143 of VGG16, 3235 of ViT-B, but after 9855 of ResNet50,
# of whose many layers each has a kernel or two of its own (benchmarks/finetuning.py prints it).
COMPILE_FROM = {"plain": 3000, "batch norm": 10_000}  # steps
RECORD_AFTER = 3  # steps, before a CUDA graph is made of one


class Classifier(nn.Module):
    """A backbone and a linear head on its embedding: normalised (B, 3, H, W) -> logits (B, K).

    With ``frozen_norm``, batch norm keeps the statistics of pretraining; where they are folded into
    the convolutions (``fixed_norm``), and under LoRA, it always does. ``lora_rank`` 0 trains all
    weights; a higher one the head and :func:`add_lora`'s additions of that rank.
    """

    def __init__(
        self,
        backbone: str,
        image_size: int,
        n_classes: int,
        seed: int = 0,
        *,
        frozen_norm: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
    ):
        super().__init__()
        self.row = backbones.get(backbone)
        self.backbone, self.weights_digest = backbones.build(backbone, image_size, seed)
        self.frozen_norm = frozen_norm or self.row.fixed_norm or lora_rank > 0
        with torch.inference_mode():
            blank = torch.zeros(1, 3, image_size, image_size)
            width = backbones.embed(self.row, self.backbone, blank).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(width, n_classes)
            if lora_rank:
                add_lora(self.backbone, lora_rank, lora_alpha)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, but for batch norm that must keep its statistics."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, normalised: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=normalised.is_cuda):
            embedded = backbones.embed(self.row, self.backbone, normalised)
        return self.head(embedded.float())  # bfloat16 would make many logits equal


def add_lora(network: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a network in place, and add to its layers the low-rank matrices that will be trained.

    The added product is scaled by ``alpha / rank`` and starts at zero: the network computes what it
    did before. Vision transformers get it on every linear layer (qkv, proj, fc1, fc2), networks
    without any on every convolution that is not grouped. (Of a ResNet's random control little can
    learn: each block ends in a batch norm that starts at zero, and stays there.) Raises ImportError
    where peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            f"The regime lora needs peft ({error}): pip install -r requirements.txt, or leave lora "
            "out of the grid."
        ) from error
    layers = dict(network.named_modules())
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    plain = [n for n, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear or plain)
    inject_adapter_in_model(config, network)


# ------------------------------------------------------------------------------------- batches


def resident(images: np.ndarray, device: torch.device) -> np.ndarray | torch.Tensor:
    """The images on the device, where that is CUDA and a third of its free memory holds them.

    Otherwise as they are: :func:`batches` then reads them as they are needed.
    """
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 3:
        return images
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for rows in np.array_split(np.arange(len(images)), math.ceil(images.nbytes / 2**28)):
        whole[rows[0] : rows[-1] + 1] = torch.from_numpy(take(images, rows))
    return whole


# --------------------------------------------------------------------------------------- training


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Light augmentation of normalised images (B, 3, H, W), each drawn on its own.

    A mirror image half of the time; rotation within ±10°, scale within ±10 %, shift within ±5 %;
    contrast within ±20 % and brightness within ±0.2 standard deviations.
    """
    return _augmented(images, send(_drawn(len(images), generator), images.device))


def _drawn(n: int, generator: torch.Generator) -> torch.Tensor:
    """What is done to each of ``n`` images (n, 8): an affine matrix, contrast and brightness."""

    def draw(*shape: int) -> torch.Tensor:  # uniform in -1 … 1; on the CPU, the same everywhere
        return torch.rand(*shape, generator=generator).mul_(2).sub_(1)

    angle, zoom = draw(n) * math.radians(10), 1 + 0.1 * draw(n)
    mirror = torch.where(draw(n) < 0, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # An affine grid is in half image widths: ±0.1 is a shift by ±5 % of the width.
    right, down = (0.1 * draw(n, 2)).unbind(1)
    contrast, brightness = 0.2 * draw(n), 0.2 * draw(n)
    return torch.stack(
        [mirror * cos, -sin, right, mirror * sin, cos, down, contrast, brightness], dim=1
    )


def _augmented(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    matrix = drawn[:, :6].reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = drawn[:, 6:, None, None].split(1, dim=1)
    return moved.mul_(1 + contrast).add_(brightness)


def _schedule(steps: int, warmup: float) -> Callable[[int], float]:
    """The factor on the learning rate at each step: linear warm-up, then half a cosine."""
    first = max(1, round(warmup * steps))
    return lambda step: (
        (step + 1) / first
        if step < first
        else 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))
    )


@torch.inference_mode()
def predict(
    model: Classifier,
    images: np.ndarray | torch.Tensor,
    rows: np.ndarray,
    batch_size: int = 32,
) -> np.ndarray:
    """Class probabilities (len(rows), K), float64, of the images with these row numbers."""
    model.eval()
    device = next(model.parameters()).device
    parts = np.split(rows, range(batch_size, len(rows), batch_size))
    # Not compiled: it would be once more for evaluation, and again for a last, smaller batch.
    logits = [
        model.forward(backbones.normalise(model.row, batch))
        for batch in batches(images, parts, device)
    ]
    return torch.cat(logits).double().softmax(1).cpu().numpy()


def _parameter_groups(
    model: Classifier, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict]:
    """What AdamW is to train, with the learning rate and the weight decay of each group.

    The head learns at ``learning_rate``; each layer below at ``layer_decay`` times the rate of the
    one above it (Clark et al., arXiv 2003.10555). A layer is what timm's ``group_matcher`` says: a
    block of a transformer, a stage of a CNN.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    above = dict.fromkeys(named, 0)  # the number of layers between a parameter and the loss
    if layer_decay != 1:
        from timm.models import group_parameters

        matcher = model.backbone.group_matcher(coarse=True)
        layer = group_parameters(model.backbone, matcher, reverse=True)
        last = max(layer.values())
        above |= {f"backbone.{name}": last + 1 - number for name, number in layer.items()}
    groups = {}
    for name, parameter in named.items():
        # Norms and biases are not shrunk: weight decay is about the weights of a projection.
        shrunk = parameter.ndim > 1
        group = {
            "params": [],
            "lr": learning_rate * layer_decay ** above[name],
            "weight_decay": weight_decay if shrunk else 0,
        }
        groups.setdefault((above[name], shrunk), group)["params"].append(parameter)
    return list(groups.values())


@dataclass
class Course:
    """How far a training has come: beside the model, all that its next epoch depends on."""

    epoch: int = 0  # the last one that is done
    micro_batches: int = 1  # into which a step is cut, as the GPU's memory demands
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # see :func:`_state`


def _trained(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _state(optimiser: torch.optim.Optimizer, order: torch.Generator) -> dict[str, torch.Tensor]:
    """The moments of the optimiser, by the number of their parameter, and all random states."""
    found = {"order": order.get_state(), "random": torch.get_rng_state()}
    parameters = _trained(optimiser)
    if parameters[0].is_cuda:
        found["random_cuda"] = torch.cuda.get_rng_state(parameters[0].device)
    for number, parameter in enumerate(parameters):
        for name, value in optimiser.state[parameter].items():
            found[f"{number}.{name}"] = value
    return found


def _restore(
    optimiser: torch.optim.Optimizer, order: torch.Generator, state: dict[str, torch.Tensor]
) -> None:
    """What :func:`_state` has given, put back into a new optimiser of the same parameters."""
    order.set_state(state["order"])
    torch.set_rng_state(state["random"])
    parameters = _trained(optimiser)
    if "random_cuda" in state:
        torch.cuda.set_rng_state(state["random_cuda"], parameters[0].device)
    for number, parameter in enumerate(parameters):
        moments = {}
        for key, value in state.items():
            if key.startswith(f"{number}."):
                # The memory layout is the parameter's, as the fused optimiser wants it.
                like = parameter if value.shape == parameter.shape else value
                place = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
                moments[key.partition(".")[2]] = place.copy_(value)
        optimiser.state[parameter] = moments


def train(
    model: Classifier,
    images: np.ndarray | torch.Tensor,
    y: np.ndarray,
    rows: np.ndarray,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    warmup: float,
    balanced: bool,
    seed: int,
    layer_decay: float = 1.0,
    progress: Callable[[int], object] = lambda n: None,
    course: Course | None = None,
) -> Iterator[tuple[int, float]]:
    """Train ``model`` on the images with these row numbers; yield (epoch, loss) after each epoch.

    ``images`` N×H×W×3 uint8, ``y`` (N,) labels; ``progress`` is told the number of images of each
    step. ``course`` is kept up to date; one that has begun is gone on with, from the model as it
    was then. A step that does not fit the GPU is cut into micro-batches, half as large each time,
    whose gradients add up to that of the whole (batch norm alone then sees fewer images at once).

    Raises FloatingPointError when the loss is not finite, naming step, epoch and learning rate;
    MemoryError when not even one image fits the GPU.
    """
    course = Course() if course is None else course
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(
        _parameter_groups(model, learning_rate, weight_decay, layer_decay),
        fused=True, capturable=device.type == "cuda",
    )  # fmt: skip
    peaks = [group["lr"] for group in optimiser.param_groups]
    for group in optimiser.param_groups:  # a tensor, which a CUDA graph reads at every replay
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
    # The last, smaller batch of an epoch is left out (batch norm needs several images); since
    # the order is drawn anew each time, no image is left out for good.
    batch_size = min(batch_size, len(rows))
    steps = len(rows) // batch_size
    schedule, number = _schedule(steps * epochs, warmup), itertools.count(course.epoch * steps)
    weight = None
    if balanced:
        counts = np.bincount(y[rows], minlength=model.head.out_features)
        inverse = np.divide(len(rows), counts, out=np.zeros(len(counts)), where=counts > 0)
        weight = torch.tensor(inverse, dtype=torch.float32, device=device)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(np.asarray(y, dtype=np.int64)).to(device)
    total, finite = torch.zeros((), device=device), torch.zeros((), device=device)
    if course.epoch:
        _restore(optimiser, generator, course.tensors)

    def launched(batch: torch.Tensor, target: torch.Tensor, drawn: torch.Tensor) -> None:
        inputs = _augmented(backbones.normalise(model.row, batch), drawn)
        whole = len(target) if weight is None else weight[target].sum()
        mean = torch.zeros_like(total)
        optimiser.zero_grad(set_to_none=True)
        parts = (inputs.chunk(course.micro_batches), target.chunk(course.micro_batches))
        for part, wanted in zip(*parts, strict=True):
            loss = functional.cross_entropy(model(part), wanted, weight=weight, reduction="sum")
            (loss / whole).backward()
            mean += loss.detach() / whole
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total.add_(mean)
        finite.add_(total.isfinite())

    def prepared() -> Callable[..., None]:
        # Checkpointing asks for the state of the random numbers, which a graph cannot hold.
        recorded = device.type == "cuda" and not getattr(
            model.backbone, "grad_checkpointing", False
        )
        return _replayed(launched, stream) if recorded else launched

    # One for all that is tried: cuBLAS keeps a workspace for each stream, for good.
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    step = prepared()
    for epoch in range(course.epoch + 1, epochs + 1):
        model.train()
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        # Row numbers in order: neighbours in the file are read together.
        parts = [np.sort(part) for part in np.split(order[: steps * batch_size], steps)]
        pairs = zip(batches(images, parts, device), batches(labels, parts, device), strict=True)
        total.zero_()
        finite.zero_()
        for batch, target in pairs:
            factor = schedule(next(number))
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"].fill_(peak * factor)
            inputs = batch, target, send(_drawn(batch_size, generator), device)
            while not _fits(step, inputs):
                if course.micro_batches >= batch_size:
                    raise MemoryError(
                        f"The GPU's memory does not hold one image of a step of {batch_size}: take "
                        'checkpointing="always", smaller images or a smaller backbone.'
                    )
                course.micro_batches = min(2 * course.micro_batches, batch_size)
                step = prepared()  # what was recorded has the old parts in it
            progress(batch_size)
        mean = total.item() / steps  # only here does the host wait for the device
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"The training loss is {mean} from step {int(finite) + 1} of {steps} in epoch "
                f"{epoch} on, at learning rate {learning_rate:g}: take it out of learning_rates, "
                "or lengthen the warm-up."
            )
        course.epoch, course.tensors = epoch, _state(optimiser, generator)
        yield epoch, mean


def _fits(step: Callable[..., None], inputs: tuple[torch.Tensor, ...]) -> bool:
    """Run a step; False where the GPU's memory did not hold it, and nothing has been learnt."""
    try:
        step(*inputs)
        return True
    except torch.OutOfMemoryError:
        pass
    # Only here, where the error no longer holds the step's tensors, is there anything to free.
    torch.cuda.empty_cache()
    return False


def _replayed(step: Callable[..., None], stream: torch.cuda.Stream) -> Callable[..., None]:
    """A training step as a CUDA graph, recorded on a stream: launched as a whole, where launching
    it kernel by kernel takes the host longer than the device takes to run them.

    The first calls run as they are, to allocate and to choose kernels; the next one is recorded.
    Inputs keep their shapes. A step that cannot be recorded runs on as it is, after a warning.
    """
    device, calls, graph, held = stream.device, itertools.count(), None, ()

    def plainly(*inputs: torch.Tensor) -> None:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)

    def run(*inputs: torch.Tensor) -> None:
        nonlocal graph, held
        if next(calls) < RECORD_AFTER or graph is False:
            return plainly(*inputs)
        if graph is None:
            held, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
            random = torch.cuda.default_generators[device.index or 0]
            usual = random.clone_state()
            try:
                with (
                    torch.cuda.stream(torch.cuda.current_stream(device)),  # also after an error
                    # Other threads, which read images, may go on meanwhile.
                    torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
                ):
                    step(*held)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"No CUDA graph of this network, going on without: {reason}",
                              stacklevel=3)  # fmt: skip
                graph = False
                random.graphsafe_set_state(usual)  # what failed has left it recording
                return plainly(*inputs)
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return graph.replay()

    return run


# --------------------------------------------------------------------------------------- memory


def activation_bytes(model: Classifier, image_size: int) -> int:
    """The bytes that one image's forward pass keeps for the gradient."""
    device = next(model.parameters()).device

    def kept(n_images: int) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself it would keep the graph alive, which keeps it alive

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(torch.zeros(n_images, 3, image_size, image_size, device=device))
        del logits  # it has kept alive, until now, all that was counted
        return sum(storages.values())

    model.eval()  # batch norm's statistics are not to change
    return kept(2) - kept(1)  # weights are kept as well, but once


def checkpoint(model: Classifier, checkpointing: str, image_size: int, batch_size: int) -> bool:
    """Let a network recompute activations rather than keep them, where asked to; whether it does.

    It costs a third more time. ``"auto"``: on CUDA, and where a step would take more than 80 % of
    the free memory. Raises ValueError for another word, and where a network cannot do it.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(unknown("checkpointing", checkpointing, CHECKPOINTING))
    device = next(model.parameters()).device
    wanted = checkpointing == "always"
    if checkpointing == "auto" and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # A gradient and AdamW's two moments in float32, a copy in bfloat16.
        step = 14 * trained + batch_size * activation_bytes(model, image_size)
        wanted = step > 0.8 * free
    if wanted:
        try:
            model.backbone.set_grad_checkpointing(True)
        except AssertionError as error:  # timm's way of saying so
            if checkpointing == "auto":
                return False
            raise ValueError(
                f'{model.row.name} cannot checkpoint: take checkpointing="never" and a smaller '
                "batch_size."
            ) from error
    return wanted


def _learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that are not frozen, and batch norm's statistics."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in _learnt(model).items()}


def _assign(target: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])


# ------------------------------------------------------------------------------------ choosing


def _judge(
    model: Classifier,
    images: np.ndarray | torch.Tensor,
    rows: np.ndarray,
    index: pd.DataFrame,
    classes: list[str],
) -> tuple[float, float]:
    """Mean cross-entropy and macro AUROC of the samples (mean over slices) of a validation part."""
    frame = metrics.prediction_frame(index.iloc[rows], predict(model, images, rows), classes)
    y, proba = metrics.arrays(frame, classes)
    loss = -np.log(proba[np.arange(len(y)), y].clip(1e-12)).mean()
    return float(loss), metrics.auroc(y, proba)


# -------------------------------------------------------------------------------- going on

WORST = (-1.0, -math.inf)
LONG = 1.0  # seconds of writing a checkpoint that are not spent after each epoch


@dataclass
class Progress:
    """How far a run has come: beside the model and the best one so far, all that it needs."""

    rate: int = 0  # the number of the learning rate at work
    course: Course = field(default_factory=Course)  # of that training
    best: tuple[float, float] = WORST  # (AUROC, -loss) of the rotation at work
    records: list[tuple] = field(default_factory=list)  # its rows of the history
    history: list[dict] = field(default_factory=list)  # rows of the rotations that are done
    probabilities: list[np.ndarray] = field(default_factory=list)  # of their test parts
    images: int = 0  # that have been trained on
    resumed: int = 0  # how often
    seconds: float = 0.0  # of all earlier attempts, up to the checkpoint that was gone on from
    begun: float = field(default_factory=time.perf_counter)
    rests_until: float = 0.0  # no checkpoint is written before


IN_WORDS = ("rate", "best", "records", "history", "images", "resumed")  # what JSON can hold


def _keep(
    path: Path | None,
    identity: str,
    at: Progress,
    model: Classifier,
    best_state: dict[str, torch.Tensor],
) -> None:
    """Write a checkpoint: one safetensors file, under a temporary name and renamed.

    After each epoch. Only where that takes long, of a large network, it is not done more often
    than costs a tenth of the time: with few images, an epoch is trained faster than it is written.
    """
    from safetensors.torch import save_file

    begun = time.perf_counter()
    if path is None or begun < at.rests_until:
        return
    parts = {
        "model": _learnt(model), "best": best_state, "course": at.course.tensors,
        "test": {str(i): torch.from_numpy(p) for i, p in enumerate(at.probabilities)},
    }  # fmt: skip
    tensors = {
        f"{part}/{name}": value.detach().cpu().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    words = {name: getattr(at, name) for name in IN_WORDS} | {
        "epoch": at.course.epoch, "micro_batches": at.course.micro_batches,
        "seconds": at.seconds + begun - at.begun,
    }  # fmt: skip
    with artifacts.replacing(path) as temporary:
        save_file(tensors, temporary, {"identity": identity, "progress": json.dumps(words)})
    end = time.perf_counter()
    if end - begun > LONG:
        at.rests_until = end + 10 * (end - begun)


def _kept(
    path: Path | None, identity: str, model: Classifier, best_state: dict[str, torch.Tensor]
) -> Progress:
    """What :func:`_keep` wrote, put into ``model`` and ``best_state``; else a new beginning."""
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
        warnings.warn(
            f"{path} is not a checkpoint of these images, settings and code: starting anew.",
            stacklevel=3,
        )
        return Progress()
    parts: dict = {"model": {}, "best": {}, "course": {}, "test": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    words = json.loads(header["progress"])
    _assign(_learnt(model), parts["model"])
    _assign(best_state, parts["best"])
    course = Course(words.pop("epoch"), words.pop("micro_batches"), parts["course"])
    at = Progress(course=course, **words)
    at.best, at.records, at.resumed = tuple(at.best), [tuple(r) for r in at.records], at.resumed + 1
    at.probabilities = [parts["test"][str(i)].numpy() for i in range(len(parts["test"]))]
    return at


def run(
    backbone: str,
    images: np.ndarray,
    index: pd.DataFrame,
    classes: list[str],
    rotations: list[Rotation],
    *,
    learning_rates: list[float],
    epochs: int,
    batch_size: int = 16,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    balanced: bool = False,
    layer_decay: float = 1.0,
    frozen_norm: bool = False,
    checkpointing: str = "auto",
    regime: str = "finetuned",
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    seed: int = 0,
    device: str = "auto",
    resume: Path | None = None,
    images_hash: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Fine-tune a backbone on every rotation.

    ``images`` N×H×W×3 uint8 (square), ``index`` N rows (sample_id, patient_id, label, split or
    fold). For each learning rate the model starts from the same weights; learning rate and epoch
    with the best validation AUROC are kept, and the test part is predicted once, by them.
    ``regime`` is one of :data:`REGIMES`; ``lora_rank`` and ``lora_alpha`` count in ``lora`` only.
    On CUDA a long training is compiled (:data:`COMPILE_FROM`).

    ``resume`` is the file in which the run keeps how far it has come (:class:`Progress`), and from
    which it goes on, if it is there and of the same images (``images_hash``), settings and code.

    Returns predictions (one row a sample), a history with the columns :data:`HISTORY`, and how it
    was done: the digest of the weights that training started from, how many parameters were
    trained, precision, compilation, checkpointing, whether the images lay on the device, into how
    many micro-batches steps were cut, and, of a run that was gone on with, ``resumed`` (how often)
    and ``seconds_before`` (those up to the checkpoints).
    """
    if regime not in REGIMES:
        raise ValueError(unknown("regime", regime, REGIMES))
    if regime == "lora" and lora_rank < 1:
        raise ValueError(f"lora_rank is {lora_rank}, but must be 1 or more.")
    y = metrics.codes(index["label"], classes)
    size, device = images.shape[1], torch.device(device_name(device))
    model = Classifier(
        backbone, size, len(classes), seed, frozen_norm=frozen_norm,
        lora_rank=lora_rank if regime == "lora" else 0, lora_alpha=lora_alpha,
    )  # fmt: skip
    # Both stay in the host's memory: of the device's there is less.
    start, best_state = _copy(model), _copy(model)
    model = backbones.place(model, device)
    images = resident(images, device)
    n_train = [int(rotation.train.sum()) for rotation in rotations]
    # An epoch leaves out its last, smaller batch.
    n_images = sum(n - n % min(batch_size, n) for n in n_train) * len(learning_rates) * epochs
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    compile_from = COMPILE_FROM["batch norm" if normed else "plain"]
    how = {
        "weights_digest": model.weights_digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "compiled": device.type == "cuda" and n_images >= compile_from * batch_size,
        "checkpointing": checkpoint(model, checkpointing, size, batch_size),
        "images_on_device": isinstance(images, torch.Tensor),
    }
    if how["compiled"]:
        model.compile()
    settings = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay,
                "warmup": warmup, "balanced": balanced, "layer_decay": layer_decay,
                "seed": seed}  # fmt: skip
    asked = settings | {
        "backbone": backbone, "weights": model.weights_digest, "classes": classes,
        "learning_rates": learning_rates, "frozen_norm": frozen_norm, "regime": regime,
        "lora": [lora_rank, lora_alpha], "images": [images_hash, list(images.shape)],
        "torch": torch.__version__, "device": device.type,
        "code": [artifacts.file_sha256(file) for file in (__file__, backbones.__file__,
                                                          features.__file__, metrics.__file__)],
    }  # fmt: skip
    sides = [np.stack([rotation.train, rotation.val, rotation.test]) for rotation in rotations]
    identity = artifacts.content_hash(asked, index, *sides)
    at = _kept(resume, identity, model, best_state)
    bar = tqdm(desc=f"fine-tuning {backbone}", total=n_images, initial=at.images, unit="image",
               mininterval=1)  # fmt: skip

    def progress(n: int) -> None:
        at.images += n
        bar.update(n)

    for rotation in rotations[len(at.probabilities) :]:
        rows = {s: np.flatnonzero(getattr(rotation, s)) for s in ("train", "val", "test")}
        for rate in learning_rates[at.rate :]:
            if not at.course.epoch:
                _assign(_learnt(model), start)
            for epoch, train_loss in train(
                model, images, y, rows["train"], learning_rate=rate, progress=progress,
                course=at.course, **settings,
            ):  # fmt: skip
                val_loss, val_auroc = _judge(model, images, rows["val"], index, classes)
                # Small validation sets tie often in AUROC; the loss then decides.
                if (val_auroc, -val_loss) > at.best:
                    at.best = (val_auroc, -val_loss)
                    _assign(best_state, _learnt(model))
                at.records.append((rotation.fold, rate, epoch, train_loss, val_loss, val_auroc))
                _keep(resume, identity, at, model, best_state)
            at.rate, at.course = at.rate + 1, Course(micro_batches=at.course.micro_batches)
        if at.best[0] < 0:
            raise ValueError(
                f"Fold {rotation.fold}: no epoch has a validation AUROC. The val part needs "
                "samples of every class, and training predictions that are finite: take the "
                "highest out of learning_rates."
            )
        _assign(_learnt(model), best_state)
        at.probabilities.append(predict(model, images, rows["test"]))
        frame = pd.DataFrame(at.records, columns=HISTORY[:-1])
        kept = (frame["val_auroc"] == at.best[0]) & (frame["val_loss"] == -at.best[1])
        at.history += frame.assign(chosen=kept & ~kept.duplicated()).to_dict("records")
        at.rate, at.best, at.records = 0, WORST, []
    bar.close()
    predictions = [
        metrics.prediction_frame(index.iloc[np.flatnonzero(rotation.test)], proba, classes)
        for rotation, proba in zip(rotations, at.probabilities, strict=True)
    ]
    how |= {"micro_batches": at.course.micro_batches, "resumed": at.resumed,
            "seconds_before": round(at.seconds, 3)}  # fmt: skip
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(at.history, columns=HISTORY), how
