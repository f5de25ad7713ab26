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
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from medlib import files
from medlib.core import loading, metrics, networks
from medlib.core.classifier import (
    Classifier,
    assign,
    augmented,
    copied,
    drawn,
    learnt,
    parameter_groups,
)
from medlib.core.fast import fusing
from medlib.core.fast.graph import fits, replayed
from medlib.core.fast.memory import checkpoint
from medlib.core.fast.resume import WORST, Course, keep, restore, restored, state
from medlib.core.loading import batches, device_name, resident, send
from medlib.core.splits import Rotation
from medlib.errors import unknown
from medlib.stats import prediction

HISTORY = ["fold", "learning_rate", "epoch", "train_loss", "val_loss", "val_auroc", "chosen"]
REGIMES = ("finetuned", "lora")
# Compiling a network and its gradient takes 10 to 40 s, and saves milliseconds a step: on an H200
# it has paid after 1218 steps of ViT-L, 2143 of VGG16, 3235 of ViT-B, but after 9855 of ResNet50,
# of whose many layers each has a kernel or two of its own (benchmarks/finetuning.py prints it).
COMPILE_FROM = {"plain": 3000, "batch norm": 10_000}  # steps


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
        model.forward(networks.normalise(model.row, batch))
        for batch in batches(images, parts, device)
    ]
    return torch.cat(logits).double().softmax(1).cpu().numpy()


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
        parameter_groups(model, learning_rate, weight_decay, layer_decay),
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
        restore(optimiser, generator, course.tensors)

    def launched(batch: torch.Tensor, target: torch.Tensor, drawn: torch.Tensor) -> None:
        inputs = augmented(networks.normalise(model.row, batch), drawn)
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
        return replayed(launched, stream) if recorded else launched

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
            inputs = batch, target, send(drawn(batch_size, generator), device)
            while not fits(step, inputs):
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
        course.epoch, course.tensors = epoch, state(optimiser, generator)
        yield epoch, mean


def _judge(
    model: Classifier,
    images: np.ndarray | torch.Tensor,
    rows: np.ndarray,
    index: pd.DataFrame,
    classes: list[str],
) -> tuple[float, float]:
    """Mean cross-entropy and macro AUROC of the samples (mean over slices) of a validation part."""
    frame = prediction.prediction_frame(index.iloc[rows], predict(model, images, rows), classes)
    y, proba = prediction.arrays(frame, classes)
    loss = -np.log(proba[np.arange(len(y)), y].clip(1e-12)).mean()
    return float(loss), metrics.auroc(y, proba)


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
    start, best_state = copied(model), copied(model)
    model = fusing.place(model, device)
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
        "code": [files.file_sha256(file) for file in (__file__, networks.__file__,
                                                          loading.__file__, metrics.__file__)],
    }  # fmt: skip
    sides = [np.stack([rotation.train, rotation.val, rotation.test]) for rotation in rotations]
    identity = files.content_hash(asked, index, *sides)
    at = restored(resume, identity, model, best_state)
    bar = tqdm(desc=f"fine-tuning {backbone}", total=n_images, initial=at.images, unit="image",
               mininterval=1)  # fmt: skip

    def progress(n: int) -> None:
        at.images += n
        bar.update(n)

    for rotation in rotations[len(at.probabilities) :]:
        rows = {s: np.flatnonzero(getattr(rotation, s)) for s in ("train", "val", "test")}
        for rate in learning_rates[at.rate :]:
            if not at.course.epoch:
                assign(learnt(model), start)
            for epoch, train_loss in train(
                model, images, y, rows["train"], learning_rate=rate, progress=progress,
                course=at.course, **settings,
            ):  # fmt: skip
                val_loss, val_auroc = _judge(model, images, rows["val"], index, classes)
                # Small validation sets tie often in AUROC; the loss then decides.
                if (val_auroc, -val_loss) > at.best:
                    at.best = (val_auroc, -val_loss)
                    assign(best_state, learnt(model))
                at.records.append((rotation.fold, rate, epoch, train_loss, val_loss, val_auroc))
                keep(resume, identity, at, model, best_state)
            at.rate, at.course = at.rate + 1, Course(micro_batches=at.course.micro_batches)
        if at.best[0] < 0:
            raise ValueError(
                f"Fold {rotation.fold}: no epoch has a validation AUROC. The val part needs "
                "samples of every class, and training predictions that are finite: take the "
                "highest out of learning_rates."
            )
        assign(learnt(model), best_state)
        at.probabilities.append(predict(model, images, rows["test"]))
        frame = pd.DataFrame(at.records, columns=HISTORY[:-1])
        kept = (frame["val_auroc"] == at.best[0]) & (frame["val_loss"] == -at.best[1])
        at.history += frame.assign(chosen=kept & ~kept.duplicated()).to_dict("records")
        at.rate, at.best, at.records = 0, WORST, []
    bar.close()
    predictions = [
        prediction.prediction_frame(index.iloc[np.flatnonzero(rotation.test)], proba, classes)
        for rotation, proba in zip(rotations, at.probabilities, strict=True)
    ]
    how |= {"micro_batches": at.course.micro_batches, "resumed": at.resumed,
            "seconds_before": round(at.seconds, 3)}  # fmt: skip
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(at.history, columns=HISTORY), how
