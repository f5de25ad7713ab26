"""How a candidate is chosen: by AUROC and log-loss of samples. Slices are averaged to samples."""

from collections.abc import Sequence

import numpy as np


def auroc(y: np.ndarray, proba: np.ndarray, counts: np.ndarray | None = None) -> float | np.ndarray:
    """Macro one-versus-rest AUROC, the metric by which hyper-parameters are chosen.

    ``y`` (n,) holds labels in 0 … K-1. ``proba`` is (n, K), or (…, n, K) for many predictions at
    once; then an array (…) is returned. ``counts`` (…, n) holds whole numbers: how often each
    sample counts. The AUROC is NaN when a class is missing, or a probability is not finite.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    ranked = np.array(ranked_classes(proba.shape[-1]))[:, None]
    score = np.moveaxis(proba, -1, -2)[..., ranked[:, 0], :]  # (…, classes, n)
    order = np.argsort(score, axis=-1)
    ordered = np.take_along_axis(score, order, axis=-1)
    counts = np.ones(len(y), dtype=np.int64) if counts is None else np.asarray(counts)
    counts = np.broadcast_to(counts[..., None, :], order.shape)
    counts = np.take_along_axis(counts, order, axis=-1)
    hits = counts * (y[order] == ranked)
    misses = np.cumsum(counts - hits, axis=-1)
    starts = np.ones((*score.shape[:-1], len(y) + 1), dtype=bool)  # of runs with equal scores
    starts[..., 1:-1] = ordered[..., 1:] != ordered[..., :-1]
    # Negative samples before the run of equal scores, and up to its end: a tie is half a pair.
    below = np.where(starts[..., :-1], misses - (counts - hits), 0)
    below = np.maximum.accumulate(below, axis=-1)
    upto = np.where(starts[..., 1:], misses, misses[..., -1:])[..., ::-1]
    upto = np.minimum.accumulate(upto, axis=-1)[..., ::-1]
    pairs = 2 * hits.sum(-1) * misses[..., -1]
    areas = ratio_or_nan(((below + upto) * hits).sum(-1), pairs)
    return np.where(np.isfinite(score).all(-1), areas, np.nan).mean(-1)[()]


def log_loss(
    y: np.ndarray, proba: np.ndarray, counts: np.ndarray | None = None
) -> float | np.ndarray:
    """The mean over samples of -log p of their class, in nats; arguments as for :func:`auroc`."""
    own = np.take_along_axis(proba, np.broadcast_to(y[:, None], (*proba.shape[:-1], 1)), -1)[..., 0]
    losses = -np.log(np.clip(own, np.finfo(float).eps, 1))
    counts = np.ones(len(y)) if counts is None else counts
    total = np.broadcast_to(counts.sum(-1), losses.shape[:-1])
    return ratio_or_nan((losses * counts).sum(-1), total)[()]


def choose(aurocs: np.ndarray, losses: np.ndarray, y: Sequence[np.ndarray]) -> np.ndarray:
    """The candidate that each run takes: positions (…), one for all rotations.

    ``aurocs`` and ``losses`` (rotations, …, candidates) are those of the validation samples; ``y``
    holds their labels, an array for each rotation. The candidate with the highest mean AUROC over
    rotations is the best. Candidates that are below it by less than one pair of samples in each
    rotation and class tie with it: validation cannot tell them apart. Among ties the lowest mean
    log-loss is chosen; if losses are equal, the first candidate.
    """
    step = np.mean([np.mean([1 / pairs for pairs in _pairs(labels)]) for labels in y])
    aurocs = np.nan_to_num(np.mean(aurocs, axis=0), nan=-1.0)
    # A little less than one pair: after rounding, too, a whole pair is no tie.
    tied = aurocs > aurocs.max(-1, keepdims=True) - step * (1 - 1e-9)
    return np.where(tied, np.mean(losses, axis=0), np.inf).argmin(-1)


def _pairs(y: np.ndarray) -> list[int]:
    """For each ranked class: its samples times the other samples, and at least 1."""
    sizes = np.bincount(y)
    return [int(sizes[c] * (len(y) - sizes[c])) or 1 for c in ranked_classes(len(sizes))]


def codes(labels: Sequence, classes: Sequence[str]) -> np.ndarray:
    """The position of each label (n,) in ``classes``. Raises ValueError for any other label."""
    places = {name: place for place, name in enumerate(classes)}
    if strangers := sorted({label for label in labels if label not in places}, key=str):
        raise ValueError(
            f"The label {strangers[0]!r} is none of the classes ({', '.join(classes)}). Labels are "
            "text: read tables of predictions or samples with their labels as text."
        )
    return np.array([places[label] for label in labels], dtype=np.int64)


def by_sample(y: np.ndarray, proba: np.ndarray, samples: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Labels (s,) and probabilities (…, s, K) by sample: the mean of (…, n, K) over its rows.

    Rows with one sample id are the slices of a volume. Samples keep the order of first occurrence.
    """
    _, first, number = np.unique(np.asarray(samples), return_index=True, return_inverse=True)
    order = np.argsort(first[number], kind="stable")
    starts = np.flatnonzero(np.diff(first[number][order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    return y[order[starts]], np.add.reduceat(proba[..., order, :], starts, -2) / counts[:, None]


def ranked_classes(k: int) -> list[int]:
    """The classes over which a rank metric is averaged. With two classes it is only the second."""
    return [1] if k == 2 else list(range(k))


def ratio_or_nan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)
