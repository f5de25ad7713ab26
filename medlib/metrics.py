"""Point metrics of predictions, and their 95 % intervals from a bootstrap over patients.

Everything is computed from class probabilities ``(n, K)``, labels ``(n,)`` in 0 … K-1 and sample
weights. A resample of patients is a vector of weights: how often each patient was drawn. Samples
are sorted once; a resample then costs the drawing of its patients and, for each class, cumulated
sums of whole numbers, made for many resamples at once without a single copy of the data.

Where a resample lacks a class, the metrics that need it (:data:`RANKS`) are undefined there: NaN.
Intervals leave such resamples out, and the summary says what share of them that was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import joblib
import numpy as np
import pandas as pd
from scipy import special

from medlib.errors import unknown

CONFUSION = (  # these follow from the confusion matrix
    "accuracy",
    "balanced_accuracy",
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "kappa",
    "kappa_quadratic",
)
RANKS = ("auroc", "auprc", "sensitivity_at_95_specificity")  # these from the order of the scores
LOSSES = ("log_loss", "brier", "ece")  # these from the probabilities: less is better
NAMES = CONFUSION + RANKS + LOSSES
BINS = 15  # of the expected calibration error
CHUNK = 1 << 17  # weights that a thread holds at once, in elements: its arrays fit the cache
MAX_THREADS = 8  # more would wait for the draws, which are made one after another


def probability_columns(classes: list[str]) -> list[str]:
    """The columns of predictions.csv that hold the classes' probabilities."""
    return [f"prob_{name}" for name in classes]


def prediction_frame(index: pd.DataFrame, proba: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Predictions by sample: the mean probability over its rows (the slices of a volume).

    ``index`` has a row per row of ``proba`` (n, K): sample_id, patient_id, label, split or fold.
    """
    columns = probability_columns(classes)
    side = "split" if "split" in index else "fold"
    frame = index[["sample_id", "patient_id", side]].assign(y_true=index["label"])
    frame[columns] = proba
    keys = ["sample_id", "patient_id", side, "y_true"]
    return frame.groupby(keys, sort=False, as_index=False)[columns].mean()


def applicable(n_classes: int, ordered: bool = False) -> tuple[str, ...]:
    """The metrics that a task has.

    Sensitivity at 95 % specificity is for two classes; quadratic kappa for three or more that are
    ``ordered`` grades (of two it is kappa itself).
    """
    left_out = {"sensitivity_at_95_specificity": n_classes > 2,
                "kappa_quadratic": n_classes == 2 or not ordered}  # fmt: skip
    return tuple(name for name in NAMES if not left_out.get(name, False))


def compute(
    y: np.ndarray,
    proba: np.ndarray,
    weights: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of ``names`` (None: all that are :func:`applicable`), once per row of weights.

    ``y`` (n,) labels in 0 … K-1; ``proba`` (n, K); ``weights`` (B, n), or None for one row of
    ones. Returns arrays of shape (B,). As scikit-learn defines them: precision is 0 for a class
    that is never predicted; balanced accuracy is the mean over the classes present, macro means
    are over those that are present or predicted; AUROC and AUPRC (average precision) are
    one-versus-rest means over classes, for two classes of the second class; the Brier score is
    between 0 and 1 for two classes, and the sum over classes (0 to 2) for more; log-loss is in
    nats. Sensitivity at 95 % specificity is the highest on the ROC curve's own points. The
    expected calibration error is of the predicted class, in :data:`BINS` bins of equal width (Guo
    et al., ICML 2017). Where a class with no weight makes a metric undefined it is NaN. Raises
    ValueError for a name that is not in :data:`NAMES`, or not for so many classes.
    """
    names = _checked(names, np.shape(proba)[1])
    weights = np.ones((1, len(y)), dtype=np.int64) if weights is None else np.asarray(weights)
    # Sums of whole numbers are exact, and ten times as fast to cumulate.
    weights = weights.astype(np.int64 if weights.dtype.kind in "biu" else np.float64, copy=False)
    return _evaluator(y, proba, np.arange(len(y)), names)(weights)


def _checked(names: Sequence[str] | None, n_classes: int) -> Sequence[str]:
    if names is None:
        return applicable(n_classes)
    for name in names:
        if name not in NAMES:
            raise ValueError(unknown("metric", name, NAMES))
        if n_classes > 2 and name not in applicable(n_classes, ordered=True):
            raise ValueError(f"{name} is defined for two classes, not for {n_classes}.")
    return names


def _evaluator(
    y: np.ndarray, proba: np.ndarray, owner: np.ndarray, names: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Sort the samples once; returns the function from weights (B, owners) to metrics (B,).

    ``owner`` (n,) is the column of the weights that holds for each sample.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    k = proba.shape[1]
    of_matrix, areas, losses = (
        [name for name in names if name in group] for group in (CONFUSION, RANKS, LOSSES)
    )
    rankings = [_ranking(y == c, proba[:, c], owner) for c in _ranked(k)] if areas else []
    cells = y * k + proba.argmax(1)
    by_cell = np.argsort(cells, kind="stable")
    occupied, starts = np.unique(cells[by_cell], return_index=True)
    sums = _loss_sums(y, proba, owner) if losses else None

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        if of_matrix:
            confusion = np.zeros((len(weights), k * k), dtype=weights.dtype)
            ordered = weights.take(owner[by_cell], axis=1)
            confusion[:, occupied] = np.add.reduceat(ordered, starts, axis=1)
            found |= _confusion_metrics(confusion.reshape(-1, k, k), of_matrix)
        if losses:
            found |= _losses(weights @ sums)
        if areas:
            parts = [_areas(weights, ranking, areas) for ranking in rankings]
            found |= {name: np.mean([part[name] for part in parts], axis=0) for name in areas}
        return {name: found[name] for name in names}

    return evaluate


def _confusion_metrics(confusion: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics of :data:`CONFUSION` from matrices (B, K labels, K predictions)."""
    k = confusion.shape[1]
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support, called = confusion.sum(2), confusion.sum(1)
    total, present = support.sum(1), (support > 0).sum(1)
    share = support / total[:, None]
    seen = ((support > 0) | (called > 0)).sum(1)
    by_class = {
        "precision": lambda: _ratio(hits, called),
        "recall": lambda: _ratio(hits, support),
        "f1": lambda: _ratio(2 * hits, support + called),
    }
    apart = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    found = {}
    for name in names:
        part, _, mean = name.rpartition("_")
        if name == "accuracy":
            found[name] = hits.sum(1) / total
        elif name == "balanced_accuracy":
            found[name] = _ratio(hits, support).sum(1) / present
        elif mean == "weighted":
            found[name] = (by_class[part]() * share).sum(1)
        elif mean == "macro":
            found[name] = by_class[part]().sum(1) / seen
        else:  # Cohen's kappa: one minus the disagreement, as a share of that expected by chance
            cost = apart**2 if name == "kappa_quadratic" else apart > 0
            observed = np.einsum("bij,ij->b", confusion, cost) * total
            expected = np.einsum("bi,bj,ij->b", support, called, cost, optimize=True)
            found[name] = 1 - _defined(observed, expected)
    return found


def _loss_sums(y: np.ndarray, proba: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Of every owner the sums over its samples that :func:`_losses` needs (owners, 3 + BINS).

    How many samples; their log-loss and Brier score; and for each bin of confidence how many more
    were right than their confidence said.
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


def _losses(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of :data:`LOSSES` from the weighted sums (B, 3 + BINS) over all owners."""
    total = sums[:, 0]
    return {
        "log_loss": sums[:, 1] / total,
        "brier": sums[:, 2] / total,
        "ece": np.abs(sums[:, 3:]).sum(1) / total,
    }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, where b is 0 only if a is: 0 there."""
    return a / (b + (b == 0))


def _ranked(k: int) -> list[int]:
    """The classes over which the metrics of :data:`RANKS` are means."""
    return [1] if k == 2 else list(range(k))


def _ranking(
    positive: np.ndarray, score: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, ...] | None:
    """What :func:`_areas` needs of the order of the scores; None when one is not finite.

    The owners of the samples, highest score first (n,); then of every positive sample, in that
    order, (P,) each: its place, the first and the last place with its score, and the last of the
    positive samples with its score.
    """
    if not np.isfinite(score).all():  # sorted last, NaN would be ranked by the order of its rows
        return None
    order = np.argsort(-score, kind="stable")
    falling, places = -score[order], np.flatnonzero(positive[order])
    first = np.searchsorted(falling, falling[places], "left")
    last = np.searchsorted(falling, falling[places], "right") - 1
    return owner[order], places, first, last, np.searchsorted(places, last, "right") - 1


def _areas(
    weights: np.ndarray, ranking: tuple[np.ndarray, ...] | None, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The metrics of :data:`RANKS` for every row of weights, ties counted as scikit-learn does.

    A sum over the positive samples alone: AUROC is the share of pairs (positive, negative) that
    are in order, average precision the mean precision at the positives' scores. The ROC curve
    rises at their scores only.
    """
    if ranking is None:
        return dict.fromkeys(names, np.full(len(weights), np.nan))
    owners, places, first, last, last_hit = ranking
    ordered = weights.take(owners, axis=1)
    above = np.zeros((len(weights), len(owners) + 1), dtype=weights.dtype)
    np.cumsum(ordered, axis=1, out=above[:, 1:])  # above[:, i]: the weight of the first i places
    hits, upto = ordered.take(places, axis=1), above.take(last + 1, axis=1)
    positive, found = hits.sum(1), {}
    negative = above[:, -1] - positive
    if "auroc" in names:
        pairs = 2 * positive * negative
        # Twice the pairs (positive, any sample) with the other one higher, a tie being half of
        # one. Those of two positive samples, itself included, are positive² of them.
        wrong = np.einsum("bp,bp->b", hits, above.take(first, axis=1) + upto) - positive**2
        found["auroc"] = _defined(pairs - wrong, pairs)
    if {"auprc", "sensitivity_at_95_specificity"} & set(names):
        right = np.cumsum(hits, axis=1).take(last_hit, axis=1)
    if "auprc" in names:
        found["auprc"] = _defined(np.einsum("bp,bp->b", hits, _ratio(right, upto)), positive)
    if "sensitivity_at_95_specificity" in names:
        few = 20 * (upto - right) <= negative[:, None]  # no more than 5 % of the negatives
        best = np.where(few, right, 0).max(1, initial=0)
        found["sensitivity_at_95_specificity"] = _defined(best, positive * (negative > 0))
    return found


def _defined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


def auroc(y: np.ndarray, proba: np.ndarray) -> float | np.ndarray:
    """Macro one-versus-rest AUROC, the metric by which hyper-parameters are chosen.

    ``y`` (n,) labels in 0 … K-1; ``proba`` (n, K), or (…, n, K) for many predictions of the same
    samples at once, which gives an array (…). NaN when a class is missing, or a probability is
    not finite.
    """
    y, proba = np.asarray(y), np.asarray(proba, dtype=np.float64)
    ranked = np.array(_ranked(proba.shape[-1]))[:, None]
    score = np.moveaxis(proba, -1, -2)[..., ranked[:, 0], :]  # (…, classes, n)
    order = np.argsort(score, axis=-1)
    ordered = np.take_along_axis(score, order, axis=-1)
    hits = y[order] == ranked
    misses = np.cumsum(~hits, axis=-1)
    starts = np.ones((*score.shape[:-1], len(y) + 1), dtype=bool)  # of runs of equal scores
    starts[..., 1:-1] = ordered[..., 1:] != ordered[..., :-1]
    # Negative samples below a positive one's run, and up to the run's end: a tie is half a pair.
    below = np.maximum.accumulate(np.where(starts[..., :-1], misses - ~hits, 0), axis=-1)
    upto = np.where(starts[..., 1:], misses, len(y))[..., ::-1]
    upto = np.minimum.accumulate(upto, axis=-1)[..., ::-1]
    pairs = 2 * hits.sum(-1) * misses[..., -1]
    areas = _defined(((below + upto) * hits).sum(-1), pairs)
    return np.where(np.isfinite(score).all(-1), areas, np.nan).mean(-1)[()]


def codes(labels: pd.Series, classes: list[str]) -> np.ndarray:
    """Labels (n,) as their positions in ``classes``; ValueError for one that is no class."""
    found = pd.Index(classes).get_indexer(labels).astype(np.int64)
    if (found < 0).any():
        strangers = sorted(set(labels[found < 0]), key=str)
        raise ValueError(
            f"The label {strangers[0]!r} is none of the classes ({', '.join(classes)}). Labels are "
            "text: read predictions with compare.read_predictions, manifests with manifest.read."
        )
    return found


def arrays(predictions: pd.DataFrame, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) in 0 … K-1 and probabilities (n, K) of a predictions frame."""
    proba = predictions[probability_columns(classes)].to_numpy()
    return codes(predictions["y_true"], classes), proba


def point(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, float]:
    """Metrics of a predictions frame (one row a sample), as :func:`compute` has them."""
    found = compute(*arrays(predictions, classes), names=names)
    return {name: float(value[0]) for name, value in found.items()}


def bootstrap(
    predictions: pd.DataFrame,
    classes: list[str],
    resamples: int = 5000,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    paired: bool = True,
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Metrics on ``resamples`` draws of patients with replacement: arrays (resamples,) by name.

    A patient's samples are drawn together. Two frames with the same patients and the same
    ``seed`` get the same draws, whatever their order, so their differences are paired; so are the
    metrics of a frame. ``paired=False`` gives that up for speed: the metrics of :data:`CONFUSION`
    then follow from one multinomial draw over the patients' distinct confusion matrices (few,
    unless patients have many samples), which has the same distribution. Take it for the interval
    of one metric of one frame, never for a difference or a mean of several.

    The values are the same, to the bit, for any number of ``threads`` (by default one a core, at
    most :data:`MAX_THREADS`). Each holds at most 100 bytes × the larger of :data:`CHUNK` and the
    number of samples, beside the sorted samples and, unless paired, K × K counts a patient. Raises
    what :func:`compute` does.
    """
    names = _checked(names, len(classes))
    y, proba = arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    rng, found = np.random.default_rng(seed), {}
    by_matrix = [] if paired else [name for name in names if name in CONFUSION]
    by_patient = [name for name in names if name not in by_matrix]
    threads = threads or min(MAX_THREADS, joblib.cpu_count())
    if by_matrix:
        drawn = _draw_confusion(y, proba, owner, resamples, rng, threads)
        found |= _confusion_metrics(drawn, by_matrix)
    if by_patient:
        evaluate = _evaluator(y, proba, owner, by_patient)
        rows = max(1, CHUNK // len(y))
        found |= _draw_patients(evaluate, len(patients), resamples, rows, rng, threads)
    return {name: found[name] for name in names}


def _draw_confusion(
    y: np.ndarray,
    proba: np.ndarray,
    owner: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    threads: int,
) -> np.ndarray:
    """Confusion matrices (resamples, K, K), each that of as many patients as there are.

    Patients with the same confusion matrix are interchangeable, so how often each matrix is drawn
    is multinomial.
    """
    k, n_patients = proba.shape[1], owner.max() + 1
    cells = owner * k * k + y * k + proba.argmax(1)
    own = np.bincount(cells, minlength=n_patients * k * k).reshape(n_patients, k * k)
    kinds = sorted(Counter(row.tobytes() for row in own).items())
    matrices = np.array([np.frombuffer(row, own.dtype) for row, _ in kinds], dtype=np.float64)
    share = np.array([count for _, count in kinds]) / n_patients
    # An eighth of a chunk: a multinomial count takes many times as long as a weight. The blocks
    # are the same for any number of threads, and each has a stream of random numbers to itself.
    rows = max(1, CHUNK // 8 // len(kinds))

    def draw(stream: np.random.Generator) -> np.ndarray:
        return stream.multinomial(n_patients, share, size=rows)

    with ThreadPoolExecutor(threads) as pool:
        counts = np.concatenate(list(pool.map(draw, rng.spawn(-(-max(resamples, 1) // rows)))))
    # One product for all: in each thread it would have threads of its own.
    return (counts[:resamples] @ matrices).reshape(-1, k, k)


def counts(draws: np.ndarray) -> np.ndarray:
    """How often each patient is in each row of ``draws`` (B, n), which is overwritten."""
    draws += draws.shape[1] * np.arange(len(draws))[:, None]
    return np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)


def confidence_bins(confidence: np.ndarray, n: int) -> np.ndarray:
    """The bin, of ``n`` of equal width, of each confidence in 0 to 1; each holds its upper edge."""
    return np.searchsorted(np.arange(1, n) / n, confidence)


def _draw_patients(
    evaluate: Callable[[np.ndarray], dict[str, np.ndarray]],
    n_patients: int,
    resamples: int,
    rows: int,
    rng: np.random.Generator,
    threads: int,
) -> dict[str, np.ndarray]:
    """``evaluate`` on how often each patient is drawn, ``rows`` resamples at once."""
    starts, lock, parts = iter(range(0, max(resamples, 1), rows)), Lock(), {}

    def work(_: int) -> None:
        while True:
            with lock:  # draws are made in order, whichever thread makes them
                start = next(starts, None)
                if start is None:
                    return
                size = (min(rows, resamples - start), n_patients)
                draws = rng.integers(n_patients, size=size)
            parts[start] = evaluate(counts(draws))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    ordered = [parts[start] for start in sorted(parts)]
    return {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}


def jackknife(
    predictions: pd.DataFrame, classes: list[str], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Metrics with one patient left out, for each patient in turn: arrays (patients,) by name.

    In the order of the sorted patient ids, so that the seeds of a cell can be averaged.
    """
    names = _checked(names, len(classes))
    y, proba = arrays(predictions, classes)
    owner, patients = pd.factorize(predictions["patient_id"], sort=True)
    evaluate, n, parts = _evaluator(y, proba, owner, names), len(patients), []
    rows = max(1, CHUNK // len(y))
    for start in range(0, n, rows):
        left_out = np.arange(start, min(start + rows, n))
        weights = np.ones((len(left_out), n), dtype=np.int64)
        weights[np.arange(len(left_out)), left_out] = 0
        parts.append(evaluate(weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values; those that are undefined (NaN) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def bca_interval(
    values: np.ndarray, point: float, left_out: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (Efron, JASA 1987) of bootstrap ``values``.

    ``point`` is the metric on the sample itself, ``left_out`` its values with one patient left
    out (:func:`jackknife`). Undefined values are left out. NaN where there is no such interval:
    all values on one side of the point, as at a perfect score.
    """
    values, left_out = values[np.isfinite(values)], left_out[np.isfinite(left_out)]
    if not len(values) or not len(left_out):
        return float("nan"), float("nan")
    below = ((values < point).mean() + (values <= point).mean()) / 2
    if not 0 < below < 1:
        return float("nan"), float("nan")
    apart = left_out.mean() - left_out
    spread = (apart**2).sum()
    acceleration = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    bias = special.ndtri(below)
    wanted = bias + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(values, special.ndtr(bias + wanted / (1 - acceleration * wanted)))
    return float(low), float(high)


def delong(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs (m,) of ``scores`` (m, n) on the same samples, and their covariance (m, m).

    ``y`` (n,) is 1 for positive samples, else 0. DeLong et al. (Biometrics 44, 1988), in the form
    for clustered data of Obuchowski (Biometrics 53, 1997): the samples of one of ``patients`` (n,)
    may depend on each other. With one sample a patient it is DeLong's. NaN where a class is
    missing, or is that of a single patient.
    """
    y, scores = np.asarray(y, dtype=bool), np.asarray(scores, dtype=np.float64)
    owner, names = pd.factorize(np.asarray(patients))
    m, positive, negative = len(scores), int(y.sum()), int((~y).sum())
    n_positive, n_negative = len(set(owner[y])), len(set(owner[~y]))
    if min(n_positive, n_negative) < 2:
        return np.full(m, np.nan), np.full((m, m), np.nan)
    # A sample's placement: the share of the other class that it is in order with.
    placement = np.empty_like(scores)
    for row, score in zip(placement, scores, strict=True):
        up, down = np.sort(score[~y]), np.sort(score[y])
        sides = [np.searchsorted(up, score[y], side) for side in ("left", "right")]
        row[y] = sum(sides) / (2 * negative)
        sides = [np.searchsorted(down, score[~y], side) for side in ("left", "right")]
        row[~y] = 1 - sum(sides) / (2 * positive)
    areas = placement[:, y].mean(1)
    apart = placement - areas[:, None]
    # By patient, sums over their positive and over their negative samples.
    by_patient = np.zeros((2, m, len(names)))
    for side, chosen in enumerate((y, ~y)):
        for row, values in zip(by_patient[side], apart, strict=True):
            np.add.at(row, owner[chosen], values[chosen])
    up, down = by_patient[0] / positive, by_patient[1] / negative
    across = up @ down.T
    covariance = (
        n_positive / (n_positive - 1) * up @ up.T
        + n_negative / (n_negative - 1) * down @ down.T
        + len(names) / (len(names) - 1) * (across + across.T)
    )
    return areas, covariance
