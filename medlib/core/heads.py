"""Heads on frozen embeddings: L2-regularised logistic regression, kNN, and an MLP.

Every head has one hyper-parameter. Its value is chosen on the validation samples, one for all
rotations (:func:`metrics.choose`). The test part is predicted once, by the chosen model. That model
is not fitted again on training and validation data together: a frozen backbone must not learn from
more labels than a fine-tuned one. All candidates, and all seeds that train on the same rows, are
fitted at once.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medlib.core import metrics
from medlib.core.linear import PENALTIES, Predictor, Problems, fit_linear, predict_linear, scaler
from medlib.core.loading import device_name
from medlib.core.splits import Predicted, Rotation
from medlib.errors import unknown

BLOCK = 16_000_000  # elements of the largest arrays held at once
# x (n, d) float32, y (n,) int64, number of classes, problems -> Predictor
Fit = Callable[[Tensor, Tensor, int, Problems], Predictor]


class Head(NamedTuple):
    """How a head is fitted and predicts, the name of its hyper-parameter, the values tried."""

    fit: Fit
    predict: Callable[..., np.ndarray]
    hyperparameter: str
    candidates: tuple[float, ...]


def fit_knn(x: Tensor, y: Tensor, n_classes: int, problems: Problems) -> Predictor:
    """k nearest neighbours by cosine similarity; k is at most the number of images.

    A class's probability is its share of the neighbours. One search serves every k. Seeds have no
    effect.
    """
    unit, hot = nn.functional.normalize(x), nn.functional.one_hot(y, n_classes).double()
    counts = torch.tensor([min(int(k), len(y)) for k, _ in problems], device=x.device)
    return partial(predict_knn, unit=unit[None], hot=hot[None], k=counts)


def predict_knn(
    z: Tensor, chosen: Sequence[int], unit: Tensor, hot: Tensor, k: Tensor
) -> np.ndarray:
    k, shares = k[chosen], []
    most = int(k.max())
    block_size = 1 + BLOCK // (unit.shape[1] + most * hot.shape[2])
    for block in nn.functional.normalize(z).split(block_size):
        nearest = (block @ unit[0].T).topk(most).indices
        votes = hot[0, nearest].cumsum(1)[:, k - 1]  # (block, chosen, K)
        shares.append(votes.transpose(0, 1) / k[:, None, None])
    return torch.cat(shares, 1).cpu().numpy()


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
    learnt = (part.detach() for part in stacked)
    return partial(predict_mlp, **dict(zip(("w1", "b1", "w2", "b2"), learnt, strict=True)))


def predict_mlp(z: Tensor, chosen: Sequence[int], **stacked: Tensor) -> np.ndarray:
    logits = [_mlp(z[None], **{n: part[[i]] for n, part in stacked.items()}) for i in chosen]
    return torch.cat(logits).double().softmax(2).cpu().numpy()


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
    "linear": Head(fit_linear, predict_linear, "C", PENALTIES),
    "knn": Head(fit_knn, predict_knn, "k", (100, 50, 20, 10, 5, 3, 1)),
    "mlp": Head(fit_mlp, predict_mlp, "learning_rate", (1e-4, 3e-4, 1e-3, 3e-3)),
}


def predict(head: str, learnt: Mapping[str, Tensor], x: Tensor) -> np.ndarray:
    """Probabilities (m, K) of embeddings (m, d) by a model (:attr:`Predicted.model`)."""
    own = {name: value[None].to(x.device) for name, value in learnt.items()}
    return HEADS[head].predict((x - own.pop("shift")) / own.pop("scale"), [0], **own)[0]


def sweep(
    embeddings: np.ndarray,
    y: np.ndarray,
    samples: Sequence,
    runs: Iterable[tuple[str, int, list[Rotation]]],
    *,
    n_classes: int,
    device: str = "auto",
) -> Iterator[tuple[int, list[Predicted], list[dict], float]]:
    """Every run's predictions, how its candidate was chosen, and its share of the time.

    ``embeddings`` (n, d) are standardised by each training part; ``y`` (n,) classes as numbers
    0 … n_classes - 1; ``samples`` (n,) ids: rows with one id are slices of one volume, and are
    judged together; ``runs``: (head, seed, rotations). Runs of one head that learn from the same
    rows are computed together. Each is yielded as soon as it is done: its position in ``runs``; the
    probabilities and the model of each rotation; a history, one dict for each candidate and
    rotation (head, hyperparameter, value, fold, val_auroc, val_loss, chosen); and seconds.
    ``device`` "auto" is the GPU where there is one. Raises ValueError for an unknown head.
    """
    runs = list(runs)
    for head, *_ in runs:
        if head not in HEADS:
            raise ValueError(unknown("head", head, list(HEADS)))
    data = _data(embeddings, y, samples, device)
    total = sum(len(HEADS[head].candidates) * len(rotations) for head, _, rotations in runs)
    with tqdm(total=total, unit="model", desc="probes", delay=1) as progress:
        for positions in _together(runs):
            start, parts = time.perf_counter(), []
            head, _, rotations = runs[positions[0]]
            problems = [(c, runs[i][1]) for i in positions for c in HEADS[head].candidates]
            for rotation in rotations:
                fitted = _fitted(data, n_classes, rotation, HEADS[head].fit, problems)
                val = fitted[0](rotation.val, range(len(problems)))
                parts.append((*fitted, val, *_judged(data, rotation.val, val)))
                progress.update(len(problems))
            of_runs = _chosen(head, rotations, parts, len(positions))
            share = (time.perf_counter() - start) / len(positions)
            for position, (predicted, history) in zip(positions, of_runs, strict=True):
                yield position, predicted, history, share


def _data(embeddings: np.ndarray, y: np.ndarray, samples: Sequence, device: str) -> tuple:
    device = "cpu" if device == "mps" else device_name(device)  # mps has no float64
    x = torch.tensor(np.asarray(embeddings, dtype=np.float32), device=device)
    return x, np.asarray(y, dtype=np.int64), np.unique(samples, return_inverse=True)[1]


def _together(runs: list[tuple[str, int, list[Rotation]]]) -> list[list[int]]:
    """Groups of runs with the same head, the same training rows and the same validation rows."""
    groups: dict = {}
    for position, (head, _, rotations) in enumerate(runs):
        rows = b"".join(side.tobytes() for r in rotations for side in (r.train, r.val))
        groups.setdefault((head, rows), []).append(position)
    return list(groups.values())


def _fitted(
    data: tuple, n_classes: int, rotation: Rotation, fit: Fit, problems: Problems
) -> tuple[Callable[[np.ndarray, Sequence[int]], np.ndarray], Callable[[int], dict]]:
    """Fit the problems on a training part.

    Returns two functions. One gives probabilities for a mask (n,) of rows and positions of
    problems. The other gives the model at a position, for :func:`predict`.
    """
    x, y, _ = data
    train = torch.as_tensor(rotation.train, device=x.device)
    shift, scale = scaler(x[train])
    labels = torch.as_tensor(y[rotation.train], device=x.device)
    predict = fit((x[train] - shift) / scale, labels, n_classes, problems)

    def of_rows(rows: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        return predict((x[torch.as_tensor(rows, device=x.device)] - shift) / scale, positions)

    def model(position: int) -> dict[str, Tensor]:
        own = {n: part[position % len(part)].cpu() for n, part in predict.keywords.items()}
        return own | {"shift": shift.cpu(), "scale": scale.cpu()}

    return of_rows, model


def _judged(
    data: tuple, rows: np.ndarray, proba: np.ndarray, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (s,) of the samples in these rows, and AUROC and log-loss (…) of ``proba`` (…, v, K).

    ``counts`` (…, v): how often each row counts, the same for all rows of a sample.
    """
    _, y, samples = data
    if counts is not None:
        counts = metrics.by_sample(y[rows], counts[..., None], samples[rows])[1][..., 0].astype(int)
    truth, proba = metrics.by_sample(y[rows], proba, samples[rows])
    judged = (metric(truth, proba, counts) for metric in (metrics.auroc, metrics.log_loss))
    return truth, *judged


def _chosen(
    head: str, rotations: list[Rotation], parts: list[tuple], n_runs: int
) -> Iterator[tuple[list[Predicted], list[dict]]]:
    """Predictions and history of each run.

    ``parts`` holds for each rotation what :func:`_fitted` returns, the validation probabilities
    (P, v, K), labels of the validation samples, and the AUROC and log-loss (P,) of each problem.
    """
    *_, name, candidates = HEADS[head]
    predictors, models, vals, truths, *scores = zip(*parts, strict=True)
    aurocs, losses = (np.reshape(s, (len(rotations), n_runs, len(candidates))) for s in scores)
    best = metrics.choose(aurocs, losses, truths)
    positions = [run * len(candidates) + choice for run, choice in enumerate(best)]
    tests = [p(r.test, positions) for p, r in zip(predictors, rotations, strict=True)]
    for run, position in enumerate(positions):
        of_each = zip(vals, tests, models, strict=True)
        predicted = [Predicted(v[position], t[run], model(position)) for v, t, model in of_each]
        history = []
        for part, rotation in enumerate(rotations):
            for place, value in enumerate(candidates):
                tried = {"head": head, "hyperparameter": name, "value": float(value)}
                tried |= {"fold": rotation.fold, "val_auroc": float(aurocs[part, run, place])}
                tried |= {"val_loss": float(losses[part, run, place]), "chosen": place == best[run]}
                history.append(tried)
        yield predicted, history


def redrawn(
    embeddings: np.ndarray,
    y: np.ndarray,
    samples: Sequence,
    rotations: list[Rotation],
    counts: np.ndarray,
    *,
    n_classes: int,
    device: str = "auto",
) -> list[np.ndarray]:
    """What the linear head would have predicted after other training and validation patients.

    ``counts`` (R, n) says how often each row is drawn in each of R resamples; all rows of a patient
    are drawn alike. In each resample every C is fitted again, one is chosen again, and the same
    test rows are predicted. The mean and deviation of the features, and the difference that counts
    as a tie, are those of the run itself. Returns for each rotation the probabilities (R, m, K).
    They are NaN where a resample lacks a class in the training or validation part of any rotation.
    """
    data, counts = _data(embeddings, y, samples, device), np.asarray(counts)
    sides = [side for rotation in rotations for side in (rotation.train, rotation.val)]
    whole = np.all([_has_all(data[1][side], counts[:, side]) for side in sides], axis=0)
    if not whole.any():
        return [np.full((len(counts), r.test.sum(), n_classes), np.nan) for r in rotations]
    problems, kept, parts = [(c, 0) for c in HEADS["linear"].candidates], counts[whole], []
    n = len(problems)
    for rotation in rotations:
        drawn = torch.as_tensor(kept[:, rotation.train], device=data[0].device)
        predict, _ = _fitted(data, n_classes, rotation, partial(fit_linear, counts=drawn), problems)
        scores, weights = [], kept[:, None, rotation.val]
        # An AUROC takes about ten arrays as large as the probabilities.
        at_once = 1 + BLOCK // (n * rotation.val.sum() * n_classes * 10)
        for start in range(0, len(kept), at_once):
            some = weights[start : start + at_once]
            positions = np.arange(start * n, (start + len(some)) * n)
            val = predict(rotation.val, positions)
            val = val.reshape(len(some), n, *val.shape[1:])
            scores.append(_judged(data, rotation.val, val, some))
        truth, aurocs, losses = zip(*scores, strict=True)
        parts.append((predict, truth[0], np.concatenate(aurocs), np.concatenate(losses)))
    predictors, truths, aurocs, losses = zip(*parts, strict=True)
    best = metrics.choose(np.array(aurocs), np.array(losses), truths)
    positions = np.arange(len(best)) * n + best
    probabilities = []
    for predict, rotation in zip(predictors, rotations, strict=True):
        proba = np.full((len(counts), rotation.test.sum(), n_classes), np.nan)
        proba[whole] = predict(rotation.test, positions)
        probabilities.append(proba)
    return probabilities


def _has_all(y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether each resample (R,), given by ``counts`` (R, n), has every class of ``y`` (n,)."""
    return np.all([counts[:, y == label].any(1) for label in np.unique(y)], axis=0)
