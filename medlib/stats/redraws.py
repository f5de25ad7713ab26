"""Test metrics of the linear head after other draws of its training patients."""

import numpy as np
import pandas as pd

from medlib.core import heads
from medlib.core import metrics as core_metrics
from medlib.core.splits import Rotation
from medlib.stats import draws, metrics, prediction


def redrawn_metrics(
    embeddings: np.ndarray,
    index: pd.DataFrame,
    rotations: list[Rotation],
    classes: list[str],
    n: int,
    device: str = "auto",
) -> pd.DataFrame:
    """The test metrics of the linear head after ``n`` draws of training and validation patients.

    ``index`` describes the rows of ``embeddings`` (rows, d): sample_id, patient_id, label. The
    table has a row for each redraw and a column for each metric. Test patients are not redrawn. In
    cross-validation a metric is the mean over folds, as in :func:`prediction.evaluator`. NaN where
    a redraw lacks a class (see :func:`heads.redrawn`).
    """
    y, samples = core_metrics.codes(index["label"], classes), index["sample_id"].to_numpy()
    owner, patients = pd.factorize(index["patient_id"], sort=True)
    drawn = draws.counts(patients, 0, n, draws.TRAINING)[:, owner].astype(np.int64)
    asked = embeddings, y, samples, rotations, drawn
    predicted = heads.redrawn(*asked, n_classes=len(classes), device=device)
    names = metrics.applicable(len(classes), ordered=True)
    values = np.full((len(rotations), n, len(names)), np.nan)
    for of_fold, rotation, proba in zip(values, rotations, predicted, strict=True):
        truth, proba = core_metrics.by_sample(y[rotation.test], proba, samples[rotation.test])
        for i in np.flatnonzero(np.isfinite(proba).all((1, 2))):
            computed = metrics.compute(truth, proba[i], names=names)
            of_fold[i] = [computed[name][0] for name in names]
    shares = [len(set(owner[rotation.test])) for rotation in rotations]
    return pd.DataFrame(prediction.over_folds(values, shares), columns=names)
