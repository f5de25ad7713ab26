"""Probes on frozen embeddings: all at once, against scikit-learn in a loop.

First, 45 regularisations (C from 1e-6 to 1e5, as DINOv2's linear evaluation tries them) in each of
five folds of 5000 images. The features are correlated, with eigenvalues of 1/rank as embeddings
have them, and the classes overlap. Both sides get the same standardised training parts, and both
must come within 1e-6 of the lowest objective, relative to it. The peer is the fastest of
scikit-learn's solvers, in float32 if it can. It has one tolerance for all C: the loosest power of
ten at which every C of a subset (each ninth, five in all) reaches 1e-6 on the first fold. Its time
is that of this subset, on another fold in each repeat, times 9 times 5. scikit-learn's default
solver (lbfgs) is shown as well. Ours is everything from the embeddings to the weights of all 45:
the eigenbasis, the iterations in float32, and the last ones in float64.

Gaps are measured from the lower of two objectives: ours, iterated to a gap of 1e-12, and theirs.

Then the frozen half of one task and backbone: every head, setting and seed, from the embeddings
to test predictions. The peer fits scikit-learn's heads and a PyTorch loop one at a time, on one
fold; its time is scaled by five. Its regressions stop at the tolerance or after the 300 iterations
that a user would set, whether or not they have converged.

Both sides use all threads that the environment allows (OMP_NUM_THREADS).
"""

import argparse
import itertools
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import arguments, interleaved, report, seconds
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from medlib.core import heads, splits
from medlib.core.fast import logistic

FOLDS = 5
GAP = 1e-6
C = np.logspace(-6, 5, 45)
SUBSET = range(4, 45, 9)
SOLVERS = (
    ("lbfgs", np.float64),
    ("newton-cg", np.float32),
    ("newton-cg", np.float64),
    ("newton-cholesky", np.float32),
    ("newton-cholesky", np.float64),
)
# The Hessian of newton-cholesky, k (d + 1) square: beyond this, tens of seconds an iteration.
LARGEST_HESSIAN = 3000


def embeddings(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) with eigenvalues 1/rank, and labels (n,) drawn from a linear model."""
    rng = np.random.default_rng(0)
    root = 1 / np.sqrt(np.arange(1, d + 1))
    u = rng.normal(size=(n, d))
    logits = u @ (rng.normal(size=(d, k)) * np.sqrt(root)[:, None])
    y = (3 * logits / logits.std() + rng.gumbel(size=(n, k))).argmax(1)
    return ((u * root) @ np.linalg.qr(rng.normal(size=(d, d)))[0]).astype(np.float32), y


def training_parts(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Standardised features and labels of each fold's training part: four fifths of the images."""
    fold, parts = np.arange(len(y)) % FOLDS, []
    for i in range(FOLDS):
        train = x[fold != i].astype(np.float64)
        parts.append((((train - train.mean(0)) / train.std(0)).astype(np.float32), y[fold != i]))
    return parts


def objective(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, c: float) -> float:
    """Mean cross-entropy + |W|²/(2C), in float64."""
    w = np.asarray(w, np.float64)
    logits = x.astype(np.float64) @ w.T + np.asarray(b, np.float64)
    if len(w) == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    losses = -log_softmax(logits, axis=1)[np.arange(len(y)), y]
    return losses.mean() + (w**2).sum() / (2 * c)


def ours(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights, bias = logistic.logistic_regression(torch.from_numpy(x), torch.from_numpy(y), c)
    return weights.numpy(), bias.numpy()


def lowest(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> list[float]:
    """The objectives of our solver when it iterates to a gap of 1e-12."""
    usual, logistic._minimise = logistic._minimise, partial(logistic._minimise, enough=1e-12)
    try:
        return [objective(x, y, w, b, v) for w, b, v in zip(*ours(x, y, c), c, strict=True)]
    finally:
        logistic._minimise = usual


def theirs(
    x: np.ndarray, y: np.ndarray, c: float, solver: str, dtype: type, tol: float
) -> tuple[float, LogisticRegression]:
    """Seconds of one fit, and the model; the conversion of the features is not counted."""
    x, model = x.astype(dtype), LogisticRegression(C=c / len(y), solver=solver, tol=tol)
    model.set_params(max_iter=10_000)
    return seconds(lambda: model.fit(x, y)), model


def calibrated(
    x: np.ndarray, y: np.ndarray, c: np.ndarray, best: list[float], solver: str, dtype: type
) -> tuple[float, float, float]:
    """A solver's loosest tolerance that reaches the gap for every C; its seconds and worst gap."""
    for tol in 10.0 ** -np.arange(2, 9):
        taken, worst = 0.0, -np.inf
        for value, low in zip(c[::-1], best[::-1], strict=True):  # the hardest first
            spent, model = theirs(x, y, value, solver, dtype, tol)
            found = objective(x, y, model.coef_, model.intercept_, value)
            taken, worst = taken + spent, max(worst, (found - low) / low)
            if worst > GAP:
                break
        else:
            return tol, taken, worst
    return tol, np.inf, worst


def regressions(n: int, d: int, k: int, options: argparse.Namespace) -> None:
    """One size: the peer's tolerances, the gaps of both sides, and the two ratios."""
    parts = training_parts(*embeddings(n, d, k))
    (x, y), subset = parts[0], C[list(SUBSET)]
    best, peers = lowest(x, y, subset), {}
    for solver, dtype in SOLVERS:
        if solver == "newton-cholesky" and (1 if k == 2 else k) * d > LARGEST_HESSIAN:
            continue
        peers[solver, dtype] = tol, taken, worst = calibrated(x, y, subset, best, solver, dtype)
        print(
            f"  {solver:<16} {dtype.__name__:<8} tol {tol:.0e}, worst gap {worst:.1e}, "
            f"{taken / len(subset):.3g} s a fit"
        )
    values = [objective(x, y, w, b, c) for w, b, c in zip(*ours(x, y, C), C, strict=True)]
    print(f"  ours: worst gap {np.max(np.array(values) / lowest(x, y, C) - 1):.1e}", flush=True)

    def batched() -> None:
        for x, y in parts:
            ours(x, y, C)

    def loop(solver: str, dtype: type) -> Callable[[], float]:
        tol, turn = peers[solver, dtype][0], itertools.count()

        def run() -> float:
            x, y = parts[next(turn) % FOLDS]
            taken = sum(theirs(x, y, c, solver, dtype, tol)[0] for c in subset)
            return taken * len(C) / len(subset) * FOLDS

        return run

    fastest, default = min(peers, key=lambda key: peers[key][1]), SOLVERS[0]
    sides = {"ours": batched, "fastest": loop(*fastest), "default": loop(*default)}
    times = interleaved(sides, options.repeats)
    own = float(np.median(times["ours"]))
    for side, label, target in (
        ("fastest", f"{fastest[0]} {fastest[1].__name__}", 60),
        ("default", "lbfgs (its default)", None),
    ):
        report(
            f"45 regularisations × 5 folds, d={d}, K={k}",
            f"scikit-learn {label}",
            times[side] / times["ours"],
            target=target,
            value=own,
            unit="s",
            quick=options.quick,
        )


# --------------------------------------------------------------------- a task and a backbone


def one_at_a_time(
    x: dict[str, np.ndarray], y: dict[str, np.ndarray], k: int, seeds: list[int]
) -> None:
    """The heads of one fold: fit, choose by validation AUROC, predict the test part."""

    def choose(predictors: list[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        scores = [roc_auc_score(y["val"], p(x["val"]), multi_class="ovr") for p in predictors]
        return predictors[int(np.argmax(scores))](x["test"])

    candidates = {name: head.candidates for name, head in heads.HEADS.items()}
    choose(
        [
            LogisticRegression(C=c / len(y["train"]), max_iter=300)
            .fit(x["train"], y["train"])
            .predict_proba
            for c in candidates["linear"]
        ]
    )
    choose(
        [
            KNeighborsClassifier(n, metric="cosine", algorithm="brute")
            .fit(x["train"], y["train"])
            .predict_proba
            for n in candidates["knn"]
        ]
    )
    for seed in seeds:
        choose([plain_mlp(x["train"], y["train"], k, rate, seed) for rate in candidates["mlp"]])


def plain_mlp(
    x: np.ndarray, y: np.ndarray, k: int, rate: float, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, k))
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(30):
        for rows in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return lambda z: model(torch.from_numpy(z)).double().softmax(1).detach().numpy()


def frozen_half(n: int, d: int, k: int, seeds: list[int], options: argparse.Namespace) -> None:
    x, y = embeddings(n, d, k)
    samples, fold = np.arange(n), np.arange(n) % FOLDS
    rotations = splits.rotations(fold, samples, y)
    sides = {"train": fold >= 2, "val": fold == 1, "test": fold == 0}
    shift, scale = x[sides["train"]].mean(0), x[sides["train"]].std(0)
    parts = {side: (x[rows] - shift) / scale for side, rows in sides.items()}
    labels = {side: y[rows] for side, rows in sides.items()}
    # Only the MLP has anything random in it.
    runs = [
        (head, seed, rotations)
        for head in heads.HEADS
        for seed in (seeds if head == "mlp" else seeds[:1])
    ]

    def batched() -> None:
        for _ in heads.sweep(x, y, samples, runs, n_classes=k, device="cpu"):
            pass

    def loop() -> float:
        return FOLDS * seconds(lambda: one_at_a_time(parts, labels, k, seeds))

    times = interleaved({"ours": batched, "loop": loop}, options.repeats)
    report(
        f"frozen half of a task and backbone, n={n}, d={d}",
        "one head at a time",
        times["loop"] / times["ours"],
        target=None,
        value=float(np.median(times["ours"])),
        unit="s",
        quick=options.quick,
    )


def main() -> None:
    options = arguments(__doc__)
    sizes = [(400, 48)] if options.quick else [(5000, d) for d in (384, 768, 1024)]
    with warnings.catch_warnings():
        # Solvers warn at their limit of iterations. Here it is measured whether they converged.
        warnings.simplefilter("ignore")
        for n, d in sizes:
            for k in (2, 7):
                regressions(n, d, k, options)
        frozen_half(*((400, 32, 3, [0]) if options.quick else (2000, 384, 3, [0, 1, 2])), options)


if __name__ == "__main__":
    main()
