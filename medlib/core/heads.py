"""Heads on frozen embeddings: L2-regularised logistic regression, kNN, and the paper's MLP.

Every head has one hyper-parameter, tried on a stated grid and chosen by the macro AUROC of the
validation samples. The test part is predicted once, after the choice, by the model that was
chosen: it is not fitted again on training and validation data, so that a frozen backbone gets
no more labels to learn from than a fine-tuned one.

All values of a grid, and all seeds that train on the same rows, are fitted at once: one batched
solver for the regressions, one search for every k, stacked parameters for the MLPs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medlib.core import metrics, splits
from medlib.core.fast.logistic import logistic_regression, probabilities
from medlib.errors import unknown
from medlib.stats import prediction

BLOCK = 16_000_000  # similarities and votes of kNN held at once, in elements

# Embeddings (m, d) and positions in the list of problems -> probabilities (positions, m, K).
Predictor = Callable[[Tensor, Sequence[int]], np.ndarray]
# (x (n, d) float32, y (n,) int64, n_classes, problems: (value, seed) each) -> Predictor
Fit = Callable[[Tensor, Tensor, int, Sequence[tuple[float, int]]], Predictor]


class Head(NamedTuple):
    """How a head is fitted, the name of its hyper-parameter and the values tried for it."""

    fit: Fit
    hyperparameter: str
    grid: tuple[float, ...]


def fit_linear(
    x: Tensor, y: Tensor, n_classes: int, problems: Sequence[tuple[float, int]]
) -> Predictor:
    """Multinomial logistic regression, see :func:`logistic_regression`; the seeds play no part.

    A class that is not in ``y`` has probability 0.
    """
    present, codes = y.unique(return_inverse=True)
    weights, bias = logistic_regression(x, codes, [value for value, _ in problems])

    def predict(z: Tensor, chosen: Sequence[int]) -> np.ndarray:
        logits = z.double() @ weights[chosen].transpose(1, 2) + bias[chosen, None]
        proba = probabilities(logits, dim=2)
        full = proba.new_zeros(*proba.shape[:2], n_classes)
        full[:, :, present] = torch.cat([1 - proba, proba], 2) if len(present) == 2 else proba
        return full.cpu().numpy()

    return predict


def fit_knn(
    x: Tensor, y: Tensor, n_classes: int, problems: Sequence[tuple[float, int]]
) -> Predictor:
    """k nearest neighbours by cosine similarity, voting by their share; the seeds play no part.

    One search serves every k; more neighbours than there are training images are all of them.
    """
    unit, hot = nn.functional.normalize(x), nn.functional.one_hot(y, n_classes).double()
    counts = torch.tensor([min(int(k), len(y)) for k, _ in problems], device=x.device)

    def predict(z: Tensor, chosen: Sequence[int]) -> np.ndarray:
        k = counts[chosen]
        most, shares = int(k.max()), []
        for block in nn.functional.normalize(z).split(1 + BLOCK // (len(y) + most * n_classes)):
            nearest = (block @ unit.T).topk(most).indices
            votes = hot[nearest].cumsum(1)[:, k - 1]  # (block, chosen, K)
            shares.append(votes.transpose(0, 1) / k[:, None, None])
        return torch.cat(shares, 1).cpu().numpy()

    return predict


def fit_mlp(
    x: Tensor, y: Tensor, n_classes: int, problems: Sequence[tuple[float, int]]
) -> Predictor:
    """The paper's head: 256 hidden units with ReLU; 30 epochs of AdamW in batches of 64.

    The parameters of all problems (learning rate, seed) are stacked. A seed draws the initial
    weights and the order of the images on the CPU, the same for every learning rate.
    """
    rates, seeds = zip(*problems, strict=True)
    starts, orders = zip(
        *(_draw(seed, x.shape[1], len(y), n_classes) for seed in seeds), strict=True
    )
    stacked = [
        torch.stack(same).to(x.device).requires_grad_() for same in zip(*starts, strict=True)
    ]
    orders = torch.stack(orders, 1).to(x.device)  # (30, P, n)
    # The optimiser sees the stack as a slice a problem, each with its own rate.
    slices = [[part.detach()[i] for part in stacked] for i in range(len(problems))]
    optimiser = torch.optim.AdamW(
        [{"params": own, "lr": rate} for own, rate in zip(slices, rates, strict=True)], fused=True
    )
    for order in orders:
        for rows in order.split(64, dim=1):
            logits = _mlp(x[rows], *stacked)
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), y[rows].flatten(), reduction="sum"
            )
            gradients = torch.autograd.grad(loss / rows.shape[1], stacked)
            for i, own in enumerate(slices):
                for part, gradient in zip(own, gradients, strict=True):
                    part.grad = gradient[i]
            optimiser.step()

    @torch.inference_mode()
    def predict(z: Tensor, chosen: Sequence[int]) -> np.ndarray:
        logits = [_mlp(z[None], *(part[[i]] for part in stacked)) for i in chosen]
        return torch.cat(logits).double().softmax(2).cpu().numpy()

    return predict


def _draw(seed: int, d: int, n: int, n_classes: int) -> tuple[list[Tensor], Tensor]:
    """Initial weights as PyTorch draws them, and the order of the images in each of 30 epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(d, 256), nn.Linear(256, n_classes)]
        order = torch.stack([torch.randperm(n) for _ in range(30)])
    parts = [part for layer in layers for part in (layer.weight.detach().T, layer.bias.detach())]
    return [part.reshape(-1, part.shape[-1]) for part in parts], order


def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Logits (P, m, K) of P networks; x (P, m, d), weights (P, d, 256) and (P, 256, K)."""
    return torch.baddbmm(b2, torch.baddbmm(b1, x, w1).relu(), w2)


HEADS: dict[str, Head] = {
    "linear": Head(fit_linear, "C", (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)),
    "knn": Head(fit_knn, "k", (1, 3, 5, 10, 20, 50, 100)),
    "mlp": Head(fit_mlp, "learning_rate", (1e-4, 3e-4, 1e-3, 3e-3)),
}


def sweep(
    embeddings: np.ndarray,
    index: pd.DataFrame,
    classes: list[str],
    runs: Iterable[dict],
    *,
    device: str = "auto",
) -> Iterator[tuple[dict, pd.DataFrame, pd.DataFrame, float]]:
    """Every run's test predictions, how its setting was chosen, and its share of the seconds.

    ``embeddings`` (n, d) and ``index`` (n rows: sample_id, patient_id, label, split or fold)
    belong together; ``runs`` are dicts of head, label_fraction and seed, as
    :func:`medlib.artifacts.frozen_runs` makes them. Runs of one head that learn from the same
    rows are computed together; each is yielded as soon as it is done, as ``(run, predictions,
    history, seconds)``: predictions with one row a sample; history with head, hyperparameter,
    value, fold, val_auroc, chosen. Embeddings are standardised by each training part. Computes on
    ``device``; ``"auto"`` is the GPU where there is one. Raises ValueError for an unknown head,
    and what :func:`medlib.manifest.rotations` raises.
    """
    runs = list(runs)
    for run in runs:
        if run["head"] not in HEADS:
            raise ValueError(unknown("head", run["head"], list(HEADS)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(np.asarray(embeddings, dtype=np.float32), device=device)
    groups = _shared(index, runs)
    total = sum(
        len(together) * len(rotations) * len(HEADS[together[0]["head"]].grid)
        for together, rotations in groups
    )
    with tqdm(total=total, unit="model", desc="probes") as progress:
        for together, rotations in groups:
            start, parts = time.perf_counter(), []
            head, seeds = together[0]["head"], [run["seed"] for run in together]
            for rotation in rotations:
                parts.append(_rotate(x, index, classes, rotation, head, seeds))
                progress.update(len(together) * len(HEADS[head].grid))
            share = (time.perf_counter() - start) / len(together)
            for run, found in zip(together, zip(*parts, strict=True), strict=True):
                predictions, histories = zip(*found, strict=True)
                yield (
                    run,
                    pd.concat(predictions, ignore_index=True),
                    pd.concat(histories, ignore_index=True),
                    share,
                )


def _shared(
    index: pd.DataFrame, runs: list[dict]
) -> list[tuple[list[dict], list[splits.Rotation]]]:
    """Runs grouped by head and by the rows that they train on and choose with."""
    groups, seen = {}, {}
    for run in runs:
        drawn = (run["label_fraction"], run["seed"])
        if drawn not in seen:
            seen[drawn] = splits.rotations(index, *drawn)
        rows = b"".join(side.tobytes() for r in seen[drawn] for side in (r.train, r.val))
        groups.setdefault((run["head"], rows), ([], seen[drawn]))[0].append(run)
    return list(groups.values())


def _rotate(
    x: Tensor,
    index: pd.DataFrame,
    classes: list[str],
    rotation: splits.Rotation,
    head: str,
    seeds: list[int],
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Test predictions and history of one rotation, for every seed."""
    fit, hyperparameter, grid = HEADS[head]
    train, val, test = (
        torch.as_tensor(np.flatnonzero(side), device=x.device)
        for side in (rotation.train, rotation.val, rotation.test)
    )
    shift, scale = _scaler(x[train])
    y = torch.as_tensor(metrics.codes(index["label"][rotation.train], classes), device=x.device)
    problems = [(value, seed) for seed in seeds for value in grid]
    predict = fit((x[train] - shift) / scale, y, len(classes), problems)
    proba = predict((x[val] - shift) / scale, range(len(problems)))
    labels, proba = _by_sample(index[rotation.val], proba, classes)
    scores = np.array([metrics.auroc(labels, p) for p in proba]).reshape(len(seeds), len(grid))
    # On a tie the first value wins: the strongest penalty, the smallest k or rate.
    best = scores.argmax(1)
    chosen = [i * len(grid) + b for i, b in enumerate(best)]
    proba = predict((x[test] - shift) / scale, chosen)
    return [
        (
            prediction.prediction_frame(index[rotation.test], proba[i], classes),
            pd.DataFrame({
                "head": head, "hyperparameter": hyperparameter, "value": np.array(grid, float),
                "fold": rotation.fold, "val_auroc": scores[i],
                "chosen": np.arange(len(grid)) == best[i],
            }),
        )
        for i in range(len(seeds))
    ]  # fmt: skip


def _scaler(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of the training part; 1 for a feature that is constant."""
    scale, shift = torch.std_mean(x.double(), dim=0, correction=0)
    constant = scale <= torch.finfo(x.dtype).eps * shift.abs()
    return shift.to(x), scale.masked_fill(constant, 1).to(x)


def _by_sample(
    index: pd.DataFrame, proba: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (s,) and probabilities (P, s, K) by sample: the mean of (P, m, K) over its rows."""
    owner, _ = pd.factorize(index["sample_id"])
    order = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    counts = np.diff(starts, append=len(owner))
    labels = metrics.codes(index["label"], classes)[order[starts]]
    return labels, np.add.reduceat(proba[:, order], starts, axis=1) / counts[:, None]
