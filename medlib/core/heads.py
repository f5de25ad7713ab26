"""Heads on frozen embeddings: L2-regularised logistic regression, kNN, and an MLP.

Every head has one hyper-parameter, chosen among its candidates by the macro AUROC of the validation
samples. The test part is predicted once, by the chosen model. That model is not fitted again on
training and validation data together: a frozen backbone must not learn from more labels than a
fine-tuned one. All candidates, and all seeds that train on the same rows, are fitted at once.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medlib.core import metrics
from medlib.core.fast.logistic import logistic_regression, probabilities
from medlib.core.loading import device_name
from medlib.core.splits import Rotation
from medlib.errors import unknown

BLOCK = 16_000_000  # similarities and votes of kNN held at once, in elements

Problems = Sequence[tuple[float, int]]  # what is fitted at once: candidate and seed of each
# Embeddings (m, d) and positions in the list of problems -> probabilities (positions, m, K).
Predictor = Callable[[Tensor, Sequence[int]], np.ndarray]
# x (n, d) float32, y (n,) int64, number of classes, problems -> Predictor
Fit = Callable[[Tensor, Tensor, int, Problems], Predictor]


class Head(NamedTuple):
    """How a head is fitted, the name of its hyper-parameter and its candidates."""

    fit: Fit
    hyperparameter: str
    candidates: tuple[float, ...]


def fit_linear(x: Tensor, y: Tensor, n_classes: int, problems: Problems) -> Predictor:
    """Multinomial logistic regression, see :func:`logistic_regression`; seeds have no effect.

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


def fit_knn(x: Tensor, y: Tensor, n_classes: int, problems: Problems) -> Predictor:
    """k nearest neighbours by cosine similarity, at most all images; seeds have no effect.

    A class's probability is its share of the neighbours. One search serves every k.
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


def fit_mlp(x: Tensor, y: Tensor, n_classes: int, problems: Problems) -> Predictor:
    """The head of the paper's released code: 256 hidden units with ReLU.

    It trains for 30 epochs of AdamW in batches of 64. The parameters of all problems are stacked. A
    seed draws the initial weights and the order of the images on the CPU, the same for every
    learning rate.
    """
    rates, seeds = zip(*problems, strict=True)
    draws = [_draw(seed, x.shape[1], len(y), n_classes) for seed in seeds]
    starts, orders = zip(*draws, strict=True)
    stacked = [torch.stack(p).to(x.device).requires_grad_() for p in zip(*starts, strict=True)]
    orders = torch.stack(orders, 1).to(x.device)  # (30, P, n)
    # The optimiser sees each problem as a slice of the stack, with its own rate.
    slices = [[part.detach()[i] for part in stacked] for i in range(len(problems))]
    groups = [{"params": own, "lr": rate} for own, rate in zip(slices, rates, strict=True)]
    optimiser = torch.optim.AdamW(groups, fused=True)
    for order in orders:
        for rows in order.split(64, dim=1):
            logits = _mlp(x[rows], *stacked)
            flat = logits.flatten(0, 1), y[rows].flatten()
            loss = nn.functional.cross_entropy(*flat, reduction="sum")
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
    y: np.ndarray,
    samples: Sequence,
    runs: Iterable[tuple[str, int, list[Rotation]]],
    *,
    n_classes: int,
    device: str = "auto",
) -> Iterator[tuple[int, list[np.ndarray], list[dict], float]]:
    """Every run's test predictions, how its candidate was chosen, and its share of the time.

    ``embeddings`` (n, d), which each training part standardises; ``y`` (n,) classes as numbers
    0 … n_classes - 1; ``samples`` (n,) ids: rows with one id are slices of one volume, and are
    judged together; ``runs``: (head, seed, rotations). Runs of one head that learn from the same
    rows are computed together. Each is yielded as soon as it is done: its position in ``runs``; for
    each rotation the probabilities (m, K) of its test rows; a history, one dict for each candidate
    and rotation (head, hyperparameter, value, fold, val_auroc, chosen); and seconds. ``device``
    "auto" is the GPU where there is one. Raises ValueError for an unknown head.
    """
    runs = list(runs)
    for head, *_ in runs:
        if head not in HEADS:
            raise ValueError(unknown("head", head, list(HEADS)))
    x = torch.tensor(np.asarray(embeddings, dtype=np.float32), device=device_name(device))
    y, samples = np.asarray(y, dtype=np.int64), np.asarray(samples)
    total = sum(len(HEADS[head].candidates) * len(rotations) for head, _, rotations in runs)
    with tqdm(total=total, unit="model", desc="probes") as progress:
        for positions in _together(runs):
            start, parts = time.perf_counter(), []
            head, _, rotations = runs[positions[0]]
            seeds = [runs[position][1] for position in positions]
            for rotation in rotations:
                parts.append(_rotate((x, y, samples), n_classes, rotation, head, seeds))
                progress.update(len(seeds) * len(HEADS[head].candidates))
            share = (time.perf_counter() - start) / len(positions)
            for position, of_run in zip(positions, zip(*parts, strict=True), strict=True):
                probabilities, histories = zip(*of_run, strict=True)
                yield position, list(probabilities), sum(histories, []), share


def _together(runs: list[tuple[str, int, list[Rotation]]]) -> list[list[int]]:
    """Groups of runs with the same head, the same training rows and the same validation rows."""
    groups: dict = {}
    for position, (head, _, rotations) in enumerate(runs):
        rows = b"".join(side.tobytes() for r in rotations for side in (r.train, r.val))
        groups.setdefault((head, rows), []).append(position)
    return list(groups.values())


def _rotate(
    data: tuple, n_classes: int, rotation: Rotation, head: str, seeds: list[int]
) -> list[tuple[np.ndarray, list[dict]]]:
    """Test probabilities (m, K) and history of one rotation, for every seed."""
    x, y, samples = data
    fit, hyperparameter, candidates = HEADS[head]
    sides = (np.flatnonzero(side) for side in (rotation.train, rotation.val, rotation.test))
    train, val, test = (torch.as_tensor(rows, device=x.device) for rows in sides)
    shift, scale = _scaler(x[train])
    problems = [(value, seed) for seed in seeds for value in candidates]
    labels = torch.as_tensor(y[rotation.train], device=x.device)
    predict = fit((x[train] - shift) / scale, labels, n_classes, problems)
    proba = predict((x[val] - shift) / scale, range(len(problems)))
    truth, proba = metrics.by_sample(y[rotation.val], proba, samples[rotation.val])
    scores = metrics.auroc(truth, proba).reshape(len(seeds), -1)
    # On a tie the first candidate wins: the strongest penalty, the smallest k or rate.
    best = scores.argmax(1)
    chosen = [i * len(candidates) + b for i, b in enumerate(best)]
    same, histories = {"head": head, "hyperparameter": hyperparameter}, []
    for aurocs, choice in zip(scores.tolist(), best.tolist(), strict=True):
        histories.append([])
        for place, (value, auroc) in enumerate(zip(candidates, aurocs, strict=True)):
            tried = {"value": float(value), "fold": rotation.fold, "val_auroc": auroc}
            histories[-1].append(same | tried | {"chosen": place == choice})
    return list(zip(predict((x[test] - shift) / scale, chosen), histories, strict=True))


def _scaler(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of the training part; 1 for a feature that is constant."""
    scale, shift = torch.std_mean(x.double(), dim=0, correction=0)
    constant = scale <= torch.finfo(x.dtype).eps * shift.abs()
    return shift.to(x), scale.masked_fill(constant, 1).to(x)
