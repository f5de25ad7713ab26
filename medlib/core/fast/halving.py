"""Fewer trainings: after each fold the worse half of the learning rates is left out."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from medlib.core.fast.resume import Progress
from medlib.core.settings import FineTuning
from medlib.core.splits import Predicted

NOT_TRAINED = {"train_loss": math.nan, "val_loss": math.nan, "val_auroc": math.nan, "chosen": False}


def stay(settings: FineTuning, done: int) -> int:
    """How many learning rates are trained after this number of folds."""
    n = len(settings.learning_rates)
    return math.ceil(n / 2**done) if settings.halving else n


def rates(at: Progress, settings: FineTuning, fold: int, ranked: Callable) -> Iterator[float]:
    """The learning rates to be trained on a fold, from where the run stopped.

    With ``halving``, half of the rates, rounded up, stay after each fold: those with the highest
    mean validation score over the finished folds (successive halving: Jamieson and Talwalkar, arXiv
    1502.07943). For each other rate, epochs without a score are added to ``at``, so it is never
    chosen. The caller must add a yielded rate's training to ``at`` before it asks for the next.
    """
    n, epochs = len(settings.learning_rates), settings.epochs
    done = len(at.predicted) // n
    kept = range(n)
    if done:
        complete = ranked(at.history[: done * n * epochs], settings)
        kept = [position for _, position, _ in complete][: stay(settings, done)]
    for position in range(len(at.predicted) - done * n, n):
        rate = settings.learning_rates[position]
        if position in kept:
            yield rate
            continue
        rows = [{"fold": fold, "learning_rate": rate, "epoch": e + 1} for e in range(epochs)]
        at.history.extend(row | NOT_TRAINED for row in rows)
        at.predicted.append(Predicted(np.zeros((0, 0)), np.zeros((0, 0))))
