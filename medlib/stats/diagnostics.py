"""Details behind one number: curves, confusion matrices, calibration, and what a network sees.

Functions of predictions take the predictions of one arm, a frame for each seed, and return the tidy
frame of a figure. Bands are pointwise 95 % percentile intervals over draws of patients.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medlib.core.metrics import ranked_classes, ratio_or_nan
from medlib.stats import bootstrap, draws, metrics, prediction

RATES = np.linspace(0, 1, 201)  # false positive rates and recalls at which curves are evaluated
BINS = 10  # of confidence
Frames = Sequence[pd.DataFrame]


def roc_and_pr(frames: Frames, classes: list[str], resamples: int = 500) -> pd.DataFrame:
    """ROC and precision-recall curves with bands: curve ("roc", "pr"), x, y, low, high.

    For "roc", ``x`` is the false positive rate and ``y`` the sensitivity (linear between points).
    For "pr", ``x`` is the recall and ``y`` the precision at the first threshold that reaches this
    recall, as in average precision. With more than two classes, ``y`` is the mean over the curves
    of each class against the others. With several seeds, it is the mean over seeds. The band leaves
    out resamples that lack a class.
    """
    owner, counts = _draws(frames[0], resamples)
    weights = np.vstack([np.ones_like(counts[:1]), counts])[:, owner]  # first the sample itself
    drawn, ranked = {"roc": 0.0, "pr": 0.0}, ranked_classes(len(classes))
    for frame in frames:
        y, proba = prediction.arrays(frame.sort_values("sample_id"), classes)
        for c in ranked:
            for kind, values in _curves_of(y == c, proba[:, c], weights).items():
                drawn[kind] += values / (len(ranked) * len(frames))
    parts = []
    for kind, values in drawn.items():
        low, high = np.nanquantile(values[1:], [0.025, 0.975], axis=0)
        columns = {"curve": kind, "x": RATES, "y": values[0], "low": low, "high": high}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _curves_of(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> dict:
    """Sensitivity and precision at :data:`RATES` for each row of ``weights`` (B, n): (B, 201)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of equal scores
    drawn, hit = weights[:, order], positive[order]
    right, wrong = (np.cumsum(drawn * side, axis=1)[:, last] for side in (hit, ~hit))
    roc, pr = np.full((2, len(weights), len(RATES)), np.nan)
    for row, (hits, misses) in enumerate(zip(right, wrong, strict=True)):
        if not hits[-1] or not misses[-1]:
            continue
        x, y = np.append(0, misses / misses[-1]), np.append(0, hits / hits[-1])
        roc[row] = np.interp(RATES, x, y)  # at a vertical step: its upper end
        called = hits + misses
        precision = np.divide(hits, called, out=np.ones(len(hits)), where=called > 0)
        first = np.searchsorted(y[1:], np.maximum(RATES, 1e-12), side="left")
        pr[row] = precision[np.minimum(first, len(precision) - 1)]
    return {"roc": roc, "pr": pr}


def confusion(frames: Frames, classes: list[str]) -> pd.DataFrame:
    """A confusion matrix in long form: label, called (the predicted class) and count.

    With several seeds, count is the mean over seeds.
    """
    k, counts = len(classes), 0.0
    for frame in frames:
        y, proba = prediction.arrays(frame, classes)
        counts = counts + np.bincount(y * k + proba.argmax(1), minlength=k * k) / len(frames)
    pairs = pd.MultiIndex.from_product([classes, classes], names=["label", "called"])
    return pd.DataFrame({"count": counts}, pairs).reset_index()


def by_class(frames: Frames, classes: list[str], resamples: int = 500) -> pd.DataFrame:
    """Each class against the rest: label, n_patients, metric, value, ci_low, ci_high.

    The metrics are "auroc" (of the class's probability), "sensitivity" (recall: the share of the
    class that is predicted as this class) and "specificity" (the share of the rest that is not).
    The predicted class is the one with the highest probability. In cross-validation each is a mean
    over folds, as in :func:`prediction.evaluator`; with several seeds, their mean. The intervals
    are those of :func:`bootstrap.interval`, on the same draws of test patients as everywhere.
    ``n_patients`` is the number of patients with a sample of the class. NaN where the class, or the
    rest, has no sample.
    """
    rows, label, patient = [], frames[0]["y_true"], frames[0]["patient_id"]
    for name in classes:
        inside, outside = (patient[side].nunique() for side in (label == name, label != name))
        parts = [_against_rest(frame, classes, name, resamples) for frame in frames]
        rarest = {"auroc": min(inside, outside), "sensitivity": inside, "specificity": outside}
        for metric, n in rarest.items():
            value, *drawn = np.mean([part[metric] for part in parts], axis=0)
            ends = bootstrap.interval(metric, value, np.array(drawn), np.array([]), n)
            row = {"label": name, "n_patients": inside, "metric": metric, "value": value}
            rows.append(row | bootstrap.ends("ci", ends))
    return pd.DataFrame(rows)


def _against_rest(
    frame: pd.DataFrame, classes: list[str], name: str, resamples: int
) -> dict[str, np.ndarray]:
    """The metrics of :func:`by_class` for one class: of the sample itself, then of each draw."""
    y, proba = prediction.arrays(frame, classes)
    c = classes.index(name)
    own, called = y == c, proba.argmax(1) == c
    binary, sides = prediction.against_rest(frame, name), [f"not {name}", name]
    itself = prediction.point(binary, sides, ["auroc"])["auroc"]
    drawn = bootstrap.bootstrap(binary, sides, resamples, names=["auroc"])["auroc"]
    made = {"auroc": np.append(itself, drawn)}
    owner, patients = pd.factorize(frame["patient_id"], sort=True)
    weights = np.vstack([np.ones(len(patients)), draws.counts(patients, 0, resamples)])
    folds, n = list(prediction.folds(frame)), len(patients)
    for metric, side, right in (("sensitivity", own, called), ("specificity", ~own, ~called)):
        asked = np.stack([np.bincount(owner[fold & side], minlength=n) for fold, _ in folds])
        hits = [np.bincount(owner[fold & side & right], minlength=n) for fold, _ in folds]
        shares = ratio_or_nan(np.stack(hits) @ weights.T, asked @ weights.T)
        made[metric] = prediction.over_folds(shares, [share for _, share in folds])
    return made


def reliability(frames: Frames, classes: list[str], resamples: int = 500) -> pd.DataFrame:
    """The accuracy of the predicted class by bins of confidence: a row for each filled bin.

    Columns: confidence (the mean in the bin), accuracy, low, high, count (mean over seeds).
    """
    owner, counts = _draws(frames[0], resamples)
    sums = np.zeros((3, counts.shape[1], BINS))  # samples, confidence, hits: by patient and bin
    for frame in frames:
        y, proba = prediction.arrays(frame.sort_values("sample_id"), classes)
        confidence = proba.max(1)
        bins = metrics.confidence_bins(confidence, BINS)
        for part, values in zip(sums, (1, confidence, proba.argmax(1) == y), strict=True):
            np.add.at(part, (owner, bins), values)
    n, confidence, hits = sums.sum(1)
    filled, drawn = n > 0, ratio_or_nan(counts @ sums[2], counts @ sums[0])
    low, high = np.nanquantile(drawn[:, filled], [0.025, 0.975], axis=0)
    table = {"confidence": confidence[filled] / n[filled], "accuracy": hits[filled] / n[filled]}
    return pd.DataFrame(table | {"low": low, "high": high, "count": n[filled] / len(frames)})


def _draws(frame: pd.DataFrame, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The patient of each sample (sorted by id), and how often each is drawn (B, patients)."""
    owner, patients = pd.factorize(frame.sort_values("sample_id")["patient_id"], sort=True)
    return owner, draws.counts(patients, 0, resamples).astype(np.int64)


def interval_widths(frame: pd.DataFrame, classes: list[str], resamples: int = 5000) -> pd.DataFrame:
    """The 95 % interval of a run's accuracy, drawn in three ways.

    Columns: way, value, ci_low, ci_high, ratio (the width by patient over the width of this way).
    The first way draws patients, as in this study. The second draws images, as if a patient's
    images were independent. The third is that of the paper's released code: it resamples the
    bootstrap values and takes their means. This is an interval of the bootstrap's mean, which is
    too narrow by a factor of the square root of the number of values.
    """
    alone = frame.assign(patient_id=frame["sample_id"])
    how = {"resamples": resamples, "names": ["accuracy"]}
    people, images = (bootstrap.bootstrap(f, classes, **how)["accuracy"] for f in (frame, alone))
    values = images[np.isfinite(images)]
    means = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    ways = {"patients": people, "images": images, "means of bootstrap values": means}
    table = pd.DataFrame([bootstrap.ends("ci", bootstrap.percentiles(d)) for d in ways.values()])
    table.insert(0, "way", list(ways))
    table.insert(1, "value", prediction.point(frame, classes, ["accuracy"])["accuracy"])
    width = table["ci_high"] - table["ci_low"]
    return table.assign(ratio=width.iloc[0] / width)


def principal_colours(maps: np.ndarray) -> np.ndarray:
    """Local features (n, h, w, d) as colours (n, h, w, 3) in 0 to 1: three principal components.

    The components are computed over all positions of all images together, so that a colour means
    the same in each image (as Oquab et al., DINOv2, TMLR 2024, show patch tokens).
    """
    from sklearn.decomposition import PCA

    places = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    values = PCA(min(3, places.shape[1]), svd_solver="full").fit_transform(places)
    values = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    low, high = np.percentile(values, [1, 99], axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    return scaled.clip(0, 1).round(3).reshape(*maps.shape[:3], 3)


def class_activation(
    maps: np.ndarray, embeddings: np.ndarray, y: np.ndarray, of: np.ndarray
) -> np.ndarray:
    """Class-activation maps (n, h, w) of a linear head: positive at evidence for the class.

    They apply to networks whose embedding is the mean of ``maps`` (n, h, w, d) over positions (Zhou
    et al., CVPR 2016). The head is a logistic regression on standardised ``embeddings`` (m, d) with
    labels ``y`` (m,). ``of`` (n,) names the class of each image's map.
    """
    from sklearn.linear_model import LogisticRegression

    centre, spread = embeddings.mean(0), embeddings.std(0)
    spread = np.where(spread > 0, spread, 1)
    head = LogisticRegression(C=0.1, max_iter=200).fit((embeddings - centre) / spread, y)
    weights = head.coef_ if len(head.classes_) > 2 else np.vstack([-head.coef_, head.coef_])
    chosen = weights[[list(head.classes_).index(name) for name in of]]
    return np.einsum("nhwd,nd->nhw", (maps - centre) / spread, chosen)
