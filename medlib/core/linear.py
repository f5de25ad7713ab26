"""What both regimes need of linear heads: scaling, penalties, and a probe as a layer."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medlib.core import metrics
from medlib.core.fast import logistic

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)  # values of C that are tried


def scaler(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of the training part; 1 for a feature that is constant."""
    scale, shift = torch.std_mean(x.double(), dim=0, correction=0)
    constant = scale <= torch.finfo(x.dtype).eps * shift.abs()
    return shift.to(x), scale.masked_fill(constant, 1).to(x)


def layer(
    x: Tensor, y: np.ndarray, samples: Sequence, train: np.ndarray, val: np.ndarray, k: int
) -> tuple[Tensor, Tensor]:
    """A linear probe, as a layer on embeddings that are not standardised.

    ``x`` (n, d); ``y`` (n,) classes 0 … k - 1; ``samples`` (n,) ids; ``train``, ``val`` (n,) bool.
    C is chosen on ``val``. Returns weights (k, d), biases (k,): 0 for a class not in ``train``.
    """
    present, codes = torch.from_numpy(y[train]).unique(return_inverse=True)
    shift, scale = scaler(x[train])
    fitted, bias = logistic.logistic_regression((x[train] - shift) / scale, codes, PENALTIES)
    weights, biases = x.new_zeros(len(bias), k, x.shape[1]).double(), bias.new_zeros(len(bias), k)
    own = present[-bias.shape[1] :]  # of two classes, the first has logit 0
    weights[:, own] = fitted / scale
    biases[:, own] = bias - weights[:, own] @ shift.double()
    proba = (x[val].double() @ weights.mT + biases[:, None]).softmax(2).numpy()
    truth, proba = metrics.by_sample(y[val], proba, np.asarray(samples)[val])
    scores = metrics.auroc(truth, proba), metrics.log_loss(truth, proba)
    best = metrics.choose(*(score[None] for score in scores), [truth])
    return weights[best].float(), biases[best].float()
