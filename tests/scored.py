"""Random predictions with ties, as arrays and tables, and metrics computed by scikit-learn."""

import numpy as np
import pandas as pd
from sklearn import metrics as sk


def names(k):
    return [f"class {c}" for c in range(k)]


def case(k, n, seed, never_predicted=None):
    """Labels (n,) in which every class occurs, and probabilities (n, k) with many ties."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    proba = rng.dirichlet(np.ones(k), size=n) * 0.7 + 0.3 * np.eye(k)[y]
    proba = np.round(proba, 1)
    if never_predicted is not None:
        proba[:, never_predicted] *= 0.01
        proba[:, never_predicted - 1] += 0.02
    return y, proba / proba.sum(1, keepdims=True)


def area(y, proba, weights=None):
    """Macro one-versus-rest AUROC by scikit-learn."""
    ranked = [1] if proba.shape[1] == 2 else range(proba.shape[1])
    return np.mean([sk.roc_auc_score(y == c, proba[:, c], sample_weight=weights) for c in ranked])


def by_sklearn(y, proba, weights=None):
    """All metrics by name, computed by scikit-learn; the calibration error is computed here."""
    k = proba.shape[1]
    predicted = proba.argmax(1)
    weighted = dict(sample_weight=weights)
    average = dict(average="weighted", zero_division=0) | weighted
    macro = average | {"average": "macro"}
    ranked = [1] if k == 2 else range(k)
    values = {
        "accuracy": sk.accuracy_score(y, predicted, **weighted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted, **weighted),
        "precision_weighted": sk.precision_score(y, predicted, **average),
        "recall_weighted": sk.recall_score(y, predicted, **average),
        "f1_weighted": sk.f1_score(y, predicted, **average),
        "precision_macro": sk.precision_score(y, predicted, **macro),
        "recall_macro": sk.recall_score(y, predicted, **macro),
        "f1_macro": sk.f1_score(y, predicted, **macro),
        "kappa": sk.cohen_kappa_score(y, predicted, labels=range(k), **weighted),
        "auroc": area(y, proba, weights),
        "auprc": np.mean(
            [sk.average_precision_score(y == c, proba[:, c], **weighted) for c in ranked]
        ),
        "log_loss": sk.log_loss(y, proba, labels=range(k), **weighted),
        "ece": calibration_error(y, proba, np.ones(len(y)) if weights is None else weights),
    }
    if k == 2:
        curve = sk.roc_curve(y, proba[:, 1], drop_intermediate=False, **weighted)
        reached = curve[1][curve[0] <= 0.05]  # empty where there is no negative sample
        values["sensitivity_at_95_specificity"] = reached.max() if len(reached) else np.nan
        values["brier"] = sk.brier_score_loss(y, proba[:, 1], pos_label=1, **weighted)
    else:
        values["brier"] = sk.brier_score_loss(y, proba, labels=range(k), **weighted)
    return values


def calibration_error(y, proba, weights):
    """The error bin by bin, as in Guo et al.: bin m has the confidences in ((m - 1)/15, m/15]."""
    total, confidence, right = 0.0, proba.max(1), proba.argmax(1) == y
    for m in range(1, 16):
        low = -1 if m == 1 else (m - 1) / 15
        members = (confidence > low) & (confidence <= m / 15)
        if weights[members].sum():
            gap = np.average(right[members], weights=weights[members]) - np.average(
                confidence[members], weights=weights[members]
            )
            total += abs(gap) * weights[members].sum() / weights.sum()
    return total


def frame_by_sklearn(frame, classes):
    """:func:`by_sklearn` of a predictions frame."""
    y = frame["y_true"].map(classes.index).to_numpy()
    return by_sklearn(y, frame[[f"prob_{name}" for name in classes]].to_numpy())


def frame(y, proba, patients=None, folds=None):
    """A table of predictions, a row for each sample. With ``folds`` it is a cross-validation."""
    ids = [f"s{i:03d}" for i in range(len(y))]
    classes = names(proba.shape[1])
    rows = pd.DataFrame({"sample_id": ids, "patient_id": ids if patients is None else patients})
    column, side = ("split", "test") if folds is None else ("fold", folds)
    rows[column] = side
    rows["y_true"] = [classes[label] for label in y]
    rows[[f"prob_{name}" for name in classes]] = proba
    return rows


def clustered(n_patients, per_patient, seed=0):
    """A frame in which all images of a patient are copies of one image."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n_patients) % 2)
    positive = np.clip(0.5 + 0.15 * (2 * label - 1) + rng.normal(0, 0.2, n_patients), 0.01, 0.99)
    owner = np.repeat(np.arange(n_patients), per_patient)
    proba = np.stack([1 - positive, positive], axis=1)[owner]
    return frame(label[owner], proba, [f"p{i:03d}" for i in owner])


def mixed(n_patients, k, seed=0):
    """Labels, probabilities and patients of images: one to four per patient, and with ties."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    # A patient's images are similar, so drawing single images gives another distribution.
    y = (rng.permutation(np.arange(n_patients) % k))[owner]
    own = rng.dirichlet(np.ones(k), n_patients)[owner]
    proba = 0.4 * own + 0.3 * rng.dirichlet(np.ones(k), len(owner)) + 0.3 * np.eye(k)[y]
    proba = np.round(proba, 2)
    order = rng.permutation(len(owner))
    patients = np.array([f"p{i:03d}" for i in owner])
    return y[order], (proba / proba.sum(1, keepdims=True))[order], patients[order]
