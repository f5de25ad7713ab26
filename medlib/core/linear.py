"""The linear head on frozen embeddings. Fine-tuning may begin with it as its last layer."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medlib.core import metrics
from medlib.core.fast import logistic

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)  # values of C that are tried

Problems = Sequence[tuple[float, int]]  # fitted at once: each one's candidate and seed
# Embeddings (m, d) and positions in the list of problems -> probabilities (positions, m, K). Its
# keywords are what was learnt: tensors with a row for each problem, or one row for all of them.
Predictor = partial[np.ndarray]


def scaler(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of the training part; 1 for a feature that is constant."""
    scale, shift = torch.std_mean(x.double(), dim=0, correction=0)
    constant = scale <= torch.finfo(x.dtype).eps * shift.abs()
    return shift.to(x), scale.masked_fill(constant, 1).to(x)


def fit_linear(
    x: Tensor, y: Tensor, n_classes: int, problems: Problems, counts: Tensor | None = None
) -> Predictor:
    """Multinomial logistic regression, see :mod:`medlib.core.fast.logistic`; seeds have no effect.

    A class that is not in ``y`` has probability 0. With ``counts`` (R, n) the problems are solved
    on each of R resamples of the images, and the predictor takes positions in R × problems.
    """
    present, codes = y.unique(return_inverse=True)
    c = [value for value, _ in problems]
    if counts is None:
        weights, bias = logistic.logistic_regression(x, codes, c)
    else:
        parts = logistic.resampled(x, codes, c, counts)
        weights, bias = (part.flatten(0, 1).double() for part in parts)
    own = present[-bias.shape[1] :]  # with two classes, the first has logit 0
    weight = weights.new_zeros(len(bias), n_classes, x.shape[1])
    full = bias.new_full((len(bias), n_classes), -torch.inf)
    full[:, present] = 0
    weight[:, own], full[:, own] = weights, bias
    return partial(predict_linear, weight=weight, bias=full)


def predict_linear(z: Tensor, chosen: Sequence[int], weight: Tensor, bias: Tensor) -> np.ndarray:
    logits = z.to(weight) @ weight[chosen].transpose(1, 2) + bias[chosen, None]
    return logits.softmax(2).cpu().numpy()


def layer(
    x: Tensor, y: np.ndarray, samples: Sequence, train: np.ndarray, val: np.ndarray, k: int
) -> tuple[Tensor, Tensor]:
    """A linear probe, as a layer on embeddings that are not standardised.

    ``x`` (n, d); ``y`` (n,) classes 0 … k - 1; ``samples`` (n,) ids; ``train``, ``val`` (n,) bool.
    C is chosen on ``val``. Returns weights (k, d), biases (k,): 0 for a class not in ``train``.
    """
    shift, scale = scaler(x[train])
    problems = [(c, 0) for c in PENALTIES]
    predict = fit_linear((x[train] - shift) / scale, torch.from_numpy(y[train]), k, problems)
    proba = predict((x[val] - shift) / scale, range(len(problems)))
    truth, proba = metrics.by_sample(y[val], proba, np.asarray(samples)[val])
    scores = metrics.auroc(truth, proba), metrics.log_loss(truth, proba)
    best = metrics.choose(*(score[None] for score in scores), [truth])
    weight = predict.keywords["weight"][best] / scale
    bias = predict.keywords["bias"][best].nan_to_num(neginf=0) - weight @ shift.double()
    return weight.float(), bias.float()
