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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medlib import manifest, metrics
from medlib.errors import unknown

GAP = 3e-8  # where a regression stops: the estimated gap to its optimum, relative to the objective
ITERATIONS = 5000  # at most, in float32 and again in float64
PATIENCE = 10  # iterations in float32 that may bring no smaller gap: what is left is rounding
TRIALS = 10  # step lengths tried at most
MEMORY = 10  # steps that L-BFGS remembers
REFRESH = 5  # iterations that an approximation of the Hessian serves
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


# -------------------------------------------------------------------------------------- linear


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
        proba = _probabilities(logits, dim=2)
        full = proba.new_zeros(*proba.shape[:2], n_classes)
        full[:, :, present] = torch.cat([1 - proba, proba], 2) if len(present) == 2 else proba
        return full.cpu().numpy()

    return predict


def logistic_regression(x: Tensor, y: Tensor, c: Sequence[float]) -> tuple[Tensor, Tensor]:
    """L2-regularised logistic regressions on one training set, for every value of C at once.

    ``x`` (n, d) standardised embeddings, ``y`` (n,) labels 0 … K-1, all of which occur. For each C
    the minimum of the mean cross-entropy + ``|W|² / (2 C)``, the bias free: one value of C means
    the same at every number of training images (scikit-learn's C, which weighs the sum, is C / n).
    Returns weights (len(c), K, d) and biases (len(c), K) in float64; for two classes not K rows
    but one, the log-odds of the second class.

    The embeddings are turned into the eigenbasis of their Gram matrix, where the penalty is
    unchanged and the Hessian nearly diagonal over features; then L-BFGS (Nocedal & Wright 2006,
    algorithm 7.4) runs over all problems at once, first in float32, then in float64. A problem
    stops when its estimated gap is below :data:`GAP` of its objective; a RuntimeWarning names the
    values of C that do not get there. Raises ValueError where there is only one class.
    """
    n_classes = int(y.max()) + 1
    if n_classes < 2:
        raise ValueError("Logistic regression needs training images of at least two classes.")
    basis = _eigenbasis(x)
    # The bias is one more weight, of a feature that is 1 everywhere, without a penalty.
    z = torch.cat([x @ basis, x.new_ones(len(x), 1)], 1)
    hot = y[None] if n_classes == 2 else nn.functional.one_hot(y, n_classes).T
    penalty = (1 / torch.tensor(c, dtype=torch.float64, device=x.device))[:, None, None]
    penalty = penalty.repeat(1, 1, z.shape[1])
    penalty[:, :, -1] = 0
    start = penalty.new_zeros(len(c), len(hot), z.shape[1])
    rough, _ = _minimise(z, hot.to(z), penalty.to(z), start.to(z), PATIENCE)
    found, gap = _minimise(z.double(), hot.double(), penalty, rough.double(), ITERATIONS)
    if missed := [f"{c[i]:g} (gap {gap[i]:.1g})" for i in (~(gap <= GAP)).nonzero().flatten()]:
        warnings.warn(
            f"Logistic regression has not converged for C = {', '.join(missed)}; relative to the "
            f"objective, the gap should be below {GAP:g}. Drop these values, or the result is that "
            "of a somewhat smaller C.",
            RuntimeWarning,
            stacklevel=2,
        )
    return found[:, :, :-1] @ basis.T.double(), found[:, :, -1]


def _eigenbasis(x: Tensor) -> Tensor:
    """Orthonormal columns (d, min(n, d)) that span the rows of x and diagonalise its Gram matrix.

    Rounding in it costs nothing: any orthonormal basis has the same optimum, and what is not
    quite orthonormal moves the objective's value at that optimum in second order only.
    """
    if len(x) >= x.shape[1]:
        return torch.linalg.eigh(x.T @ x)[1]
    q, r = torch.linalg.qr(x.T)
    return q @ torch.linalg.eigh(r @ r.T)[1]


def _minimise(
    z: Tensor, hot: Tensor, penalty: Tensor, start: Tensor, patience: int
) -> tuple[Tensor, Tensor]:
    """The weights that minimise P objectives, and their estimated relative gaps (P,).

    ``z`` (n, r), ``hot`` (k, n) labels, ``penalty`` (P, 1, r), ``start`` (P, k, r). Problems that
    have converged, or have not come closer for ``patience`` iterations, leave the batch. The gap is
    gᵀH⁻¹g / 2, by the larger of two estimates of H⁻¹.
    """
    n, squares, eps = len(z), z.square(), torch.finfo(z.dtype).eps
    found, gaps = start.clone(), penalty.new_full((len(start),), torch.inf)
    live, weights, history = torch.arange(len(start), device=z.device), start, []
    stale = torch.zeros_like(live)
    logits = weights @ z.T
    proba = _probabilities(logits)
    residual = proba - hot
    gradient = residual @ z / n + penalty * weights
    for iteration in range(ITERATIONS + 1):
        if iteration % REFRESH == 0:
            turn, curvature = _hessian(proba, squares, penalty)
        direction = _lbfgs(gradient, turn, curvature, history)
        slope = _dot(gradient, direction)
        # The own class's probability by what it lacks of 1: exact where it lacks little.
        losses = -torch.log1p(-residual.abs().amax(1).clamp(max=1 - eps))
        objective = losses.mean(1) + _dot(penalty * weights, weights) / 2
        decrement = _dot(gradient, _solve(gradient, turn, curvature))
        gap = torch.maximum(-slope, decrement) / 2 / objective
        better = gap < gaps[live]
        found[live[better]], gaps[live[better]] = weights[better], gap[better]
        stale = torch.where(better, 0, stale + 1)
        open_ = (gap > GAP) & gap.isfinite() & (stale < patience)
        if iteration == ITERATIONS or not open_.any():
            break
        if not open_.all():
            live, stale, weights, penalty, logits, proba = (
                part[open_] for part in (live, stale, weights, penalty, logits, proba)
            )
            gradient, direction, slope, turn, curvature = (
                part[open_] for part in (gradient, direction, slope, turn, curvature)
            )
            history = [tuple(part[open_] for part in pair) for pair in history]
        length, logits, proba, residual = _line_search(
            logits, direction @ z.T, proba, hot, slope,
            _dot(penalty * weights, direction), _dot(penalty * direction, direction),
        )  # fmt: skip
        step = length[:, None, None] * direction
        weights, before = weights + step, gradient
        gradient = residual @ z / n + penalty * weights
        history = [*history, _pair(step, gradient - before)][-MEMORY:]
    return found, gaps


def _probabilities(logits: Tensor, dim: int = 1) -> Tensor:
    """Softmax over ``dim``, or the sigmoid where that holds the log-odds of the second class."""
    return logits.sigmoid() if logits.shape[dim] == 1 else logits.softmax(dim)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (P,) of tensors (P, …)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _variance(proba: Tensor, values: Tensor) -> Tensor:
    """Sums (P,) over images of the variance over classes of ``values`` (P, k, n).

    Centred first: where p is nearly 0 or 1, Σ p v² - (Σ p v)² would be rounding.
    """
    if proba.shape[1] == 1:
        return _dot(proba - proba.square(), values.square())
    return _dot(proba, (values - (proba * values).sum(1, keepdim=True)).square())


def _hessian(proba: Tensor, squares: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """A Kronecker approximation of the Hessian (classes × features), by its eigenvectors.

    The mean over images of diag(p) - ppᵀ couples the classes; the features, uncoupled by the
    eigenbasis, are scaled by their squares (n, r), weighted by each image's Σ p (1 - p). Where
    all images have the same p it is the Hessian itself. Returns the eigenvectors over classes
    (P, k, k) and the eigenvalues (P, k, r).
    """
    spread = (proba - proba.square()).sum(1)
    features = spread @ squares / spread.sum(1, keepdim=True)
    classes = -proba @ proba.transpose(1, 2) / len(squares)
    classes.diagonal(dim1=1, dim2=2).add_(proba.mean(2))
    scale, turn = torch.linalg.eigh(classes)
    # One logit more for every class changes nothing: that direction has no curvature to divide by.
    scale = scale.clamp(min=1e-6 * scale.amax(1, keepdim=True))
    return turn, scale[:, :, None] * features[:, None] + penalty


def _solve(vector: Tensor, turn: Tensor, curvature: Tensor) -> Tensor:
    """The inverse of that Hessian, applied to (P, k, r)."""
    return turn @ (turn.transpose(1, 2) @ vector / curvature)


def _lbfgs(
    gradient: Tensor, turn: Tensor, curvature: Tensor, history: list[tuple[Tensor, ...]]
) -> Tensor:
    """The descent direction (P, k, r): the two-loop recursion over what :func:`_pair` remembers."""
    direction, shares = -gradient, []
    for step, change, inverse in reversed(history):
        shares.append(inverse * _dot(step, direction)[:, None, None])
        direction = direction - shares[-1] * change
    direction = _solve(direction, turn, curvature)
    for (step, change, inverse), share in zip(history, reversed(shares), strict=True):
        direction = direction + (share - inverse * _dot(change, direction)[:, None, None]) * step
    return direction


def _pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step, the gradient's change along it, and the inverse (P, 1, 1) of their product.

    That is 0 where rounding has left no curvature: the step is forgotten.
    """
    product = _dot(step, change)
    return step, change, torch.where(product > 0, 1 / product, 0)[:, None, None]


def _line_search(
    logits: Tensor,
    change: Tensor,
    proba: Tensor,
    hot: Tensor,
    slope: Tensor,
    linear: Tensor,
    quadratic: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step lengths (P,) that at least halve the slope; logits, probabilities and residuals there.

    ``change`` is what a step of 1 adds to the logits (P, k, n); ``linear`` and ``quadratic`` are
    the penalty's own derivatives. Newton's method with exact second derivatives, kept in a
    bracket: the objective along a line is convex, so its slope only rises.
    """
    n = logits.shape[2]
    length = -slope / (_variance(proba, change) / n + quadratic)
    low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
    for trial in range(TRIALS):
        moved = torch.addcmul(logits, length[:, None, None], change)
        proba = _probabilities(moved)
        residual = proba - hot
        there = _dot(residual, change) / n + linear + length * quadratic
        steep = there.abs() > slope.abs() / 2
        if trial == TRIALS - 1 or not steep.any():
            break
        low, high = torch.where(there < 0, length, low), torch.where(there > 0, length, high)
        better = length - there / (_variance(proba, change) / n + quadratic)
        middle = torch.where(high.isinf(), 4 * length, (low + high) / 2)
        better = torch.where((better > low) & (better < high), better, middle)
        length = torch.where(steep, better, length)
    return length, moved, proba, residual


# ----------------------------------------------------------------------------------------- knn


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


# ----------------------------------------------------------------------------------------- mlp


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


# ----------------------------------------------------------------------------------- all heads


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
) -> list[tuple[list[dict], list[manifest.Rotation]]]:
    """Runs grouped by head and by the rows that they train on and choose with."""
    groups, seen = {}, {}
    for run in runs:
        drawn = (run["label_fraction"], run["seed"])
        if drawn not in seen:
            seen[drawn] = manifest.rotations(index, *drawn)
        rows = b"".join(side.tobytes() for r in seen[drawn] for side in (r.train, r.val))
        groups.setdefault((run["head"], rows), ([], seen[drawn]))[0].append(run)
    return list(groups.values())


def _rotate(
    x: Tensor,
    index: pd.DataFrame,
    classes: list[str],
    rotation: manifest.Rotation,
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
            metrics.prediction_frame(index[rotation.test], proba[i], classes),
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
