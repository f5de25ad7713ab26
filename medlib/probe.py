"""Heads on frozen embeddings: L2-regularised logistic regression, kNN, and the paper's MLP.

Every head has one hyper-parameter, tried on a stated grid and chosen by the macro AUROC of the
validation samples. The test part is predicted once, after the choice, by the model that was
chosen: it is not fitted again on training and validation data, so that a frozen backbone gets
no more labels to learn from than a fine-tuned one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from medlib import metrics
from medlib.errors import unknown
from medlib.manifest import Rotation

# Embeddings (n, d) -> class probabilities (n, K).
Predictor = Callable[[np.ndarray], np.ndarray]
# (x (n, d), y (n,), value, n_classes, seed) -> Predictor
Fit = Callable[[np.ndarray, np.ndarray, float, int, int], Predictor]


class Head(NamedTuple):
    """How a head is fitted, the name of its hyper-parameter and the values tried for it."""

    fit: Fit
    hyperparameter: str
    grid: tuple[float, ...]


def fit_linear(x: np.ndarray, y: np.ndarray, c: float, n_classes: int, seed: int) -> Predictor:
    """Multinomial logistic regression, scikit-learn's: C weighs the mean loss, not its sum.

    The penalty is ``|W|² / (2 C)`` beside the mean cross-entropy, so that one value of C means the
    same at every number of training images. W has a row a class; for two classes it is the one
    vector of their log-odds.
    """
    model = LogisticRegression(C=c / len(y), max_iter=300, tol=1e-4)
    with warnings.catch_warnings():
        # A weakly regularised fit that stops early is only a little more regularised.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return lambda z: _all_classes(model.predict_proba(z), model.classes_, n_classes)


def fit_knn(x: np.ndarray, y: np.ndarray, k: float, n_classes: int, seed: int) -> Predictor:
    """k nearest neighbours by cosine similarity, voting by their share."""
    model = KNeighborsClassifier(min(int(k), len(y)), metric="cosine", algorithm="brute")
    model.fit(x, y)
    return lambda z: _all_classes(model.predict_proba(z), model.classes_, n_classes)


def fit_mlp(
    x: np.ndarray, y: np.ndarray, learning_rate: float, n_classes: int, seed: int
) -> Predictor:
    """The paper's head: 256 hidden units with ReLU; 30 epochs of AdamW in batches of 64."""
    inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    labels = torch.from_numpy(np.asarray(y, dtype=np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, n_classes))
        optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
        for _ in range(30):
            for rows in torch.randperm(len(labels)).split(64):
                loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

    @torch.inference_mode()
    def predict(z: np.ndarray) -> np.ndarray:
        logits = model(torch.from_numpy(np.ascontiguousarray(z, dtype=np.float32)))
        return logits.double().softmax(1).numpy()

    return predict


def _all_classes(proba: np.ndarray, present: np.ndarray, n_classes: int) -> np.ndarray:
    """Probability columns for every class, 0 for those that the model has not seen."""
    full = np.zeros((len(proba), n_classes))
    full[:, present] = proba
    return full


HEADS: dict[str, Head] = {
    "linear": Head(fit_linear, "C", (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)),
    "knn": Head(fit_knn, "k", (1, 3, 5, 10, 20, 50, 100)),
    "mlp": Head(fit_mlp, "learning_rate", (1e-4, 3e-4, 1e-3, 3e-3)),
}


def run(
    head: str,
    embeddings: np.ndarray,
    index: pd.DataFrame,
    classes: list[str],
    rotations: list[Rotation],
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fit a head on every rotation: its test predictions, and how its setting was chosen.

    ``embeddings`` (n, d) and ``index`` (n rows: sample_id, patient_id, label, split or fold)
    belong together; embeddings are standardised by the training part. Returns predictions with
    one row a sample, and a history: head, hyperparameter, value, fold, val_auroc, chosen.
    Raises ValueError for an unknown head.
    """
    if head not in HEADS:
        raise ValueError(unknown("head", head, list(HEADS)))
    fit, hyperparameter, grid = HEADS[head]
    y = metrics.codes(index["label"], classes)
    predictions, history = [], []
    for rotation in rotations:
        scaler = StandardScaler().fit(embeddings[rotation.train])
        x = {side: scaler.transform(embeddings[getattr(rotation, side)])
             for side in ("train", "val", "test")}  # fmt: skip
        scored = []
        for value in grid:
            predict = fit(x["train"], y[rotation.train], value, len(classes), seed)
            val = metrics.prediction_frame(index[rotation.val], predict(x["val"]), classes)
            scored.append((metrics.auroc(*metrics.arrays(val, classes)), value, predict))
        # On a tie the first value wins: the strongest penalty, the smallest k or rate.
        best = max(range(len(grid)), key=lambda i: scored[i][0])
        proba = scored[best][2](x["test"])
        predictions.append(metrics.prediction_frame(index[rotation.test], proba, classes))
        history += [
            {"head": head, "hyperparameter": hyperparameter, "value": float(value),
             "fold": rotation.fold, "val_auroc": score, "chosen": i == best}
            for i, (score, value, _) in enumerate(scored)
        ]  # fmt: skip
    return pd.concat(predictions, ignore_index=True), pd.DataFrame(history)
