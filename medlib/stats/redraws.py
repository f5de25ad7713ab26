"""What the linear head would have reached after other draws of its training patients."""

import numpy as np
import pandas as pd

from medlib.core import heads
from medlib.core import metrics as core_metrics
from medlib.core.metrics import ratio_or_nan
from medlib.core.splits import Rotation
from medlib.stats import draws, metrics


def redrawn_metrics(
    embeddings: np.ndarray,
    index: pd.DataFrame,
    rotations: list[Rotation],
    classes: list[str],
    n: int,
    device: str = "auto",
) -> pd.DataFrame:
    """The test metrics of the linear head after ``n`` draws of training and validation patients.

    ``embeddings`` (rows, d) and their ``index`` (sample_id, patient_id, label). A row for each
    redraw, a column for each metric, on the unchanged test patients; in cross-validation the mean
    over folds, as :func:`prediction.evaluator` weighs them. NaN where a redraw lacks a class (see
    :func:`heads.redrawn`).
    """
    y, samples = core_metrics.codes(index["label"], classes), index["sample_id"].to_numpy()
    owner, patients = pd.factorize(index["patient_id"], sort=True)
    drawn = draws.counts(patients, 0, n, draws.TRAINING)[:, owner].astype(np.int64)
    asked = embeddings, y, samples, rotations, drawn
    predicted = heads.redrawn(*asked, n_classes=len(classes), device=device)
    names = metrics.applicable(len(classes), ordered=True)
    total, shares = np.zeros((n, len(names))), np.zeros((n, len(names)))
    for rotation, proba in zip(rotations, predicted, strict=True):
        truth, proba = core_metrics.by_sample(y[rotation.test], proba, samples[rotation.test])
        share = len(set(owner[rotation.test]))
        for i in np.flatnonzero(np.isfinite(proba).all((1, 2))):
            of_fold = metrics.compute(truth, proba[i], names=names)
            values = np.array([of_fold[name][0] for name in names])
            total[i] += share * np.nan_to_num(values)
            shares[i] += share * np.isfinite(values)
    return pd.DataFrame(ratio_or_nan(total, shares), columns=names)
