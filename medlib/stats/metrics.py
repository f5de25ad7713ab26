"""Metrics of predictions, for one set of sample weights or for many at once.

A resample of patients is a vector of weights: how often each patient was drawn. Samples are sorted
once. After that, a resample needs only cumulative sums of whole numbers for each class. They are
made for many resamples at once, without copying the data. Where a resample lacks a class, the
metrics in :data:`RANKS` are NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np

from medlib.core.metrics import ranked_classes, ratio_or_nan
from medlib.errors import unknown

# These follow from the confusion matrix.
CONFUSION = ("accuracy", "balanced_accuracy", "precision_weighted", "recall_weighted")
CONFUSION += ("f1_weighted", "precision_macro", "recall_macro", "f1_macro")
CONFUSION += ("kappa", "kappa_quadratic")
RANKS = ("auroc", "auprc", "sensitivity_at_95_specificity")  # these from the order of the scores
LOSSES = ("log_loss", "brier", "ece")  # these from the probabilities: less is better
NAMES = CONFUSION + RANKS + LOSSES
BINS = 15  # of the expected calibration error


def applicable(n_classes: int, ordered: bool = False) -> tuple[str, ...]:
    """The metrics that a task has.

    Sensitivity at 95 % specificity is for two classes. Quadratic kappa is for three or more classes
    that are ``ordered`` grades; for two classes it equals kappa.
    """
    left_out = ["sensitivity_at_95_specificity"] * (n_classes > 2)
    left_out += ["kappa_quadratic"] * (n_classes == 2 or not ordered)
    return tuple(name for name in NAMES if name not in left_out)


def compute(
    y: np.ndarray,
    proba: np.ndarray,
    weights: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of ``names`` (None: all that are :func:`applicable`), once per row of weights.

    ``y`` (n,) labels in 0 … K-1; ``proba`` (n, K); ``weights`` (B, n), or None for one row of ones.
    Returns arrays (B,). The definitions are those of scikit-learn:

    - precision is 0 for a class that is never predicted;
    - balanced accuracy is the mean over the classes present; macro means are over the classes
      present or predicted;
    - AUROC and AUPRC (average precision) are those of the second class if there are two classes,
      else one-versus-rest means over classes;
    - the Brier score is between 0 and 1 for two classes, and the sum over classes (0 to 2) for
      more;
    - log-loss is in nats;
    - sensitivity at 95 % specificity is the highest one among the points of the ROC curve;
    - the expected calibration error is of the predicted class, in :data:`BINS` bins of equal width
      (Guo et al., ICML 2017).

    NaN where a class without weight makes a metric undefined. Raises ValueError for a name that is
    not in :data:`NAMES`, or not defined for so many classes.
    """
    names = checked(names, np.shape(proba)[1])
    weights = np.ones((1, len(y)), dtype=np.int64) if weights is None else np.asarray(weights)
    # Sums of whole numbers are exact, and ten times as fast to cumulate.
    weights = weights.astype(np.int64 if weights.dtype.kind in "biu" else np.float64, copy=False)
    return evaluator(y, proba, np.arange(len(y)), names)(weights)


def checked(names: Sequence[str] | None, n_classes: int) -> Sequence[str]:
    if names is None:
        return applicable(n_classes)
    for name in names:
        if name not in NAMES:
            raise ValueError(unknown("metric", name, NAMES))
        if n_classes > 2 and name not in applicable(n_classes, ordered=True):
            raise ValueError(f"{name} is defined for two classes, not for {n_classes}.")
    return names


def evaluator(
    y: np.ndarray, proba: np.ndarray, owner: np.ndarray, names: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Sort the samples once; returns the function from weights (B, owners) to metrics (B,).

    ``owner`` (n,) is the column of the weights for each sample.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    k = proba.shape[1]
    groups = CONFUSION, RANKS, LOSSES
    of_matrix, areas, losses = ([name for name in names if name in group] for group in groups)
    rankings = [_ranking(y == c, proba[:, c], owner) for c in ranked_classes(k)] if areas else []
    cells = y * k + proba.argmax(1)
    by_cell = np.argsort(cells, kind="stable")
    occupied, starts = np.unique(cells[by_cell], return_index=True)
    sums = _loss_sums(y, proba, owner) if losses else None

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {}
        if of_matrix:
            confusion = np.zeros((len(weights), k * k), dtype=weights.dtype)
            ordered = weights.take(owner[by_cell], axis=1)
            confusion[:, occupied] = np.add.reduceat(ordered, starts, axis=1)
            values |= confusion_metrics(confusion.reshape(-1, k, k), of_matrix)
        if losses:
            weighted = weights @ sums
            number, log_loss, brier = weighted[:, :3].T
            totals = log_loss, brier, np.abs(weighted[:, 3:]).sum(1)
            values |= {
                name: ratio_or_nan(total, number)
                for name, total in zip(LOSSES, totals, strict=True)
            }
        if areas:
            parts = [_areas(weights, ranking, areas) for ranking in rankings]
            values |= {name: np.mean([part[name] for part in parts], axis=0) for name in areas}
        return {name: values[name] for name in names}

    return evaluate


def confusion_metrics(confusion: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics of :data:`CONFUSION` from matrices (B, K labels, K predictions)."""
    k = confusion.shape[1]
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support, called = confusion.sum(2), confusion.sum(1)
    total, present = support.sum(1), (support > 0).sum(1)
    share = ratio_or_nan(support, np.broadcast_to(total[:, None], support.shape))
    seen = ((support > 0) | (called > 0)).sum(1)
    by_class = {"precision": (hits, called), "recall": (hits, support)}
    by_class["f1"] = 2 * hits, support + called
    apart = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    computed = {}
    for name in names:
        part, _, mean = name.rpartition("_")
        if name == "accuracy":
            computed[name] = ratio_or_nan(hits.sum(1), total)
        elif name == "balanced_accuracy":
            computed[name] = ratio_or_nan(_ratio(hits, support).sum(1), present)
        elif mean == "weighted":
            computed[name] = (_ratio(*by_class[part]) * share).sum(1)
        elif mean == "macro":
            computed[name] = ratio_or_nan(_ratio(*by_class[part]).sum(1), seen)
        else:  # Cohen's kappa: one minus the disagreement, as a share of that expected by chance
            cost = apart**2 if name == "kappa_quadratic" else apart > 0
            observed = np.einsum("bij,ij->b", confusion, cost) * total
            expected = np.einsum("bi,bj,ij->b", support, called, cost, optimize=True)
            computed[name] = 1 - ratio_or_nan(observed, expected)
    return computed


def _loss_sums(y: np.ndarray, proba: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Sums over the samples of each owner: (owners, 3 + BINS).

    Columns: the number of samples, log-loss, Brier score; then, for each bin of confidence, the sum
    of correct (0 or 1) minus confidence.
    """
    n, k = proba.shape
    kept = np.clip(proba[np.arange(n), y], np.finfo(float).eps, 1 - np.finfo(float).eps)
    brier = ((proba - np.eye(k)[y]) ** 2).sum(1) * (0.5 if k == 2 else 1)
    confidence = proba.max(1)
    surplus = (proba.argmax(1) == y) - confidence
    bins = confidence_bins(confidence, BINS)
    sums = np.zeros((owner.max() + 1, 3 + BINS))
    for column, values in ((0, 1), (1, -np.log(kept)), (2, brier), (3 + bins, surplus)):
        np.add.at(sums, (owner, column), values)
    return sums


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where both are 0."""
    return a / (b + (b == 0))


def _ranking(positive: np.ndarray, score: np.ndarray, owner: np.ndarray) -> tuple | None:
    """The order of the scores for :func:`_areas`; None if a score is not finite.

    Returns the owners of the samples, highest score first (n,). Then it returns four arrays with a
    value for each positive sample (P,): its place, the first and the last place with the same
    score, and the number of the last positive sample with the same score.
    """
    if not np.isfinite(score).all():  # NaN would be ranked by the order of its rows
        return None
    order = np.argsort(-score, kind="stable")
    falling, places = -score[order], np.flatnonzero(positive[order])
    first = np.searchsorted(falling, falling[places], "left")
    last = np.searchsorted(falling, falling[places], "right") - 1
    return owner[order], places, first, last, np.searchsorted(places, last, "right") - 1


def _areas(weights: np.ndarray, ranking: tuple | None, names: Sequence[str]) -> dict:
    """The metrics of :data:`RANKS` for every row of weights, ties counted as scikit-learn does.

    Only sums over the positive samples are needed. AUROC is the share of the pairs (positive,
    negative) that are in order. Average precision is the mean precision at the scores of the
    positives. The ROC curve rises only at these scores.
    """
    if ranking is None:
        return dict.fromkeys(names, np.full(len(weights), np.nan))
    owners, places, first, last, last_hit = ranking
    ordered = weights.take(owners, axis=1)
    above = np.zeros((len(weights), len(owners) + 1), dtype=weights.dtype)
    np.cumsum(ordered, axis=1, out=above[:, 1:])  # above[:, i]: the weight of the first i places
    hits, upto = ordered.take(places, axis=1), above.take(last + 1, axis=1)
    positive, computed = hits.sum(1), {}
    negative = above[:, -1] - positive
    if "auroc" in names:
        pairs = 2 * positive * negative
        # Twice the pairs (positive, any sample) with the other one higher, a tie counting half;
        # positive² of them are pairs of two positive samples, or of one with itself.
        wrong = np.einsum("bp,bp->b", hits, above.take(first, axis=1) + upto) - positive**2
        computed["auroc"] = ratio_or_nan(pairs - wrong, pairs)
    if {"auprc", "sensitivity_at_95_specificity"} & set(names):
        right = np.cumsum(hits, axis=1).take(last_hit, axis=1)
    if "auprc" in names:
        precision = np.einsum("bp,bp->b", hits, _ratio(right, upto))
        computed["auprc"] = ratio_or_nan(precision, positive * (negative > 0))
    if "sensitivity_at_95_specificity" in names:
        few = 20 * (upto - right) <= negative[:, None]  # no more than 5 % of the negatives
        best = np.where(few, right, 0).max(1, initial=0)
        computed["sensitivity_at_95_specificity"] = ratio_or_nan(best, positive * (negative > 0))
    return computed


def confidence_bins(confidence: np.ndarray, n: int) -> np.ndarray:
    """The number of the bin of each confidence (0 to 1). The ``n`` bins are equally wide."""
    return np.searchsorted(np.arange(1, n) / n, confidence)
