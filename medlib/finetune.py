"""Fine-tuning: all weights of a backbone and a linear head on its embedding.

AdamW with linear warm-up and cosine decay, light augmentation; the learning rate and the epoch are
chosen by the macro AUROC of the validation samples, from the same list for every backbone. Mixed
precision (bfloat16) on CUDA only. On a CPU the same seed gives the same predictions, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from medlib import backbones, metrics
from medlib.features import device_name
from medlib.manifest import Rotation

HISTORY = ["fold", "learning_rate", "epoch", "train_loss", "val_loss", "val_auroc", "chosen"]


class Classifier(nn.Module):
    """A backbone and a linear head on its embedding: normalised (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, backbone: str, image_size: int, n_classes: int, seed: int = 0):
        super().__init__()
        self.row = backbones.get(backbone)
        self.backbone, self.weights_digest = backbones.build(backbone, image_size, seed)
        with torch.inference_mode():
            blank = torch.zeros(1, 3, image_size, image_size)
            width = backbones.embed(self.row, self.backbone, blank).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(width, n_classes)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, but for batch norm that must keep its statistics (``fixed_norm``)."""
        super().train(mode)
        if self.row.fixed_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, normalised: torch.Tensor) -> torch.Tensor:
        return self.head(backbones.embed(self.row, self.backbone, normalised))


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Light augmentation of normalised images (B, 3, H, W), each drawn on its own.

    A mirror image half of the time; rotation within ±10°, scale within ±10 %, shift within ±5 %;
    contrast within ±20 % and brightness within ±0.2 standard deviations.
    """

    def draw(*shape: int) -> torch.Tensor:  # uniform in -1 … 1; on the CPU, the same everywhere
        return torch.rand(*shape, generator=generator).mul_(2).sub_(1)

    n = len(images)
    angle, zoom = draw(n) * math.radians(10), 1 + 0.1 * draw(n)
    mirror = torch.where(draw(n) < 0, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    affine = torch.stack([mirror * cos, -sin, mirror * sin, cos], dim=1).view(n, 2, 2)
    # An affine grid is in half image widths: ±0.1 is a shift by ±5 % of the width.
    matrix = torch.cat([affine, 0.1 * draw(n, 2, 1)], dim=2).to(images.device)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = (draw(n, 1, 1, 1).mul_(0.2).to(images.device) for _ in range(2))
    return moved * (1 + contrast) + brightness


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
    model: Classifier, images: np.ndarray, rows: np.ndarray, batch_size: int = 32
) -> np.ndarray:
    """Class probabilities (len(rows), K), float64, of the images with these row numbers."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for first in range(0, len(rows), batch_size):
        batch = torch.from_numpy(images[rows[first : first + batch_size]]).to(device)
        logits = model(backbones.normalise(model.row, batch))
        parts.append(logits.double().softmax(1).cpu().numpy())
    return np.concatenate(parts)


def train(
    model: Classifier,
    images: np.ndarray,
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
) -> Iterator[tuple[int, float]]:
    """Train ``model`` on the images with these row numbers; yield (epoch, loss) after each epoch.

    ``images`` N×H×W×3 uint8, ``y`` (N,) labels. Raises FloatingPointError when the loss is not
    finite, naming the epoch and the learning rate.
    """
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    # Norms and biases are not shrunk: weight decay is about the weights of a projection.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0}],
        lr=learning_rate,
        fused=True,
    )
    # The last, smaller batch of an epoch is left out (batch norm needs several images); since
    # the order is drawn anew each time, no image is left out for good.
    batch_size = min(batch_size, len(rows))
    steps = len(rows) // batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(steps * epochs, warmup))
    weight = None
    if balanced:
        counts = np.bincount(y[rows], minlength=model.head.out_features)
        inverse = np.divide(len(rows), counts, out=np.zeros(len(counts)), where=counts > 0)
        weight = torch.tensor(inverse, dtype=torch.float32, device=device)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(np.asarray(y, dtype=np.int64))
    for epoch in range(1, epochs + 1):
        model.train()
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        total = torch.zeros((), device=device)
        for step in range(steps):
            # Row numbers in order: neighbours in the file are read together.
            chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
            batch = torch.from_numpy(images[chosen]).to(device)
            target = labels[torch.from_numpy(chosen)].to(device)
            inputs = augment(backbones.normalise(model.row, batch), generator)
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
                loss = functional.cross_entropy(model(inputs), target, weight=weight)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.detach()
        mean = total.item() / steps
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"The training loss is {mean} in epoch {epoch} at learning rate {learning_rate:g}: "
                "take it out of learning_rates, or lengthen the warm-up."
            )
        yield epoch, mean


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _judge(
    model: Classifier, images: np.ndarray, rows: np.ndarray, index: pd.DataFrame, classes: list[str]
) -> tuple[float, float]:
    """Mean cross-entropy and macro AUROC of the samples (mean over slices) of a validation part."""
    frame = metrics.prediction_frame(index.iloc[rows], predict(model, images, rows), classes)
    y, proba = metrics.arrays(frame, classes)
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
    seed: int = 0,
    device: str = "auto",
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Fine-tune a backbone on every rotation.

    ``images`` N×H×W×3 uint8 (square), ``index`` N rows (sample_id, patient_id, label, split or
    fold). For each learning rate the model starts from the same weights; learning rate and epoch
    with the best validation AUROC are kept, and the test part is predicted once, by them.
    Returns predictions (one row a sample), a history with the columns :data:`HISTORY` and the
    digest of the weights that training started from.
    """
    y = metrics.codes(index["label"], classes)
    model = Classifier(backbone, images.shape[1], len(classes), seed)
    start = _copy(model)
    model = model.to(device_name(device))
    settings = {"epochs": epochs, "batch_size": batch_size, "weight_decay": weight_decay,
                "warmup": warmup, "balanced": balanced, "seed": seed}  # fmt: skip
    predictions, history = [], []
    n_epochs = len(rotations) * len(learning_rates) * epochs
    with tqdm(total=n_epochs, desc=f"fine-tuning {backbone}", unit="epoch") as bar:
        for rotation in rotations:
            rows = {s: np.flatnonzero(getattr(rotation, s)) for s in ("train", "val", "test")}
            best, best_state, records = (-1.0, -math.inf), start, []
            for rate in learning_rates:
                model.load_state_dict(start)
                for epoch, train_loss in train(
                    model, images, y, rows["train"], learning_rate=rate, **settings
                ):
                    val_loss, val_auroc = _judge(model, images, rows["val"], index, classes)
                    # Small validation sets tie often in AUROC; the loss then decides.
                    if (val_auroc, -val_loss) > best:
                        best, best_state = (val_auroc, -val_loss), _copy(model)
                    records.append((rotation.fold, rate, epoch, train_loss, val_loss, val_auroc))
                    bar.update()
            if best[0] < 0:
                raise ValueError(
                    f"Fold {rotation.fold}: no epoch has a validation AUROC. The val part needs "
                    "samples of every class, and training predictions that are finite: take the "
                    "highest out of learning_rates."
                )
            model.load_state_dict(best_state)
            proba = predict(model, images, rows["test"])
            test = index.iloc[rows["test"]]
            predictions.append(metrics.prediction_frame(test, proba, classes))
            frame = pd.DataFrame(records, columns=HISTORY[:-1])
            kept = (frame["val_auroc"] == best[0]) & (frame["val_loss"] == -best[1])
            history.append(frame.assign(chosen=kept & ~kept.duplicated()))
    return (
        pd.concat(predictions, ignore_index=True),
        pd.concat(history, ignore_index=True),
        model.weights_digest,
    )
