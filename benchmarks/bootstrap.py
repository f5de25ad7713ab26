"""5000 bootstrap resamples: all at once, against calls of scikit-learn in a Python loop.

The peer does what the paper's released code does: draw rows, gather them, call scikit-learn's
function for each metric. It gets arrays of whole numbers. Some resamples are timed, and their time
is scaled, since all take equally long. Ours is ``bootstrap.bootstrap``, from the data frame of
predictions to the values of every resample, on all cores. The loop runs on one core, as such loops
do.

Three sets of metrics are timed: that code's four confusion metrics; macro AUROC; and the seven
metrics of a study's summary, with two images per patient. All draws are paired: a patient's counts
follow from their id.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from harness import arguments, contest, seconds
from sklearn import metrics as sk

from medlib.stats import bootstrap, metrics, prediction

FOUR = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted")
SEVEN = ("accuracy", "balanced_accuracy", *FOUR[1:], "auroc", "auprc")
PEER = "scikit-learn in a loop"


def case(n: int, k: int, per_patient: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), probabilities (n, K) right two times in three or so, and patients (n,)."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % k)
    proba = 0.7 * rng.dirichlet(np.ones(k), n) + 0.3 * np.eye(k)[y]
    return y, proba, np.arange(n) // per_patient


def loop_of(
    y: np.ndarray, proba: np.ndarray, patients: np.ndarray, names: tuple[str, ...]
) -> Callable[[int], None]:
    """The loop: draw patients, join their rows, call scikit-learn for each metric."""
    rng, k = np.random.default_rng(0), proba.shape[1]
    single = patients[-1] + 1 == len(y)
    rows = np.split(np.arange(len(y)), np.flatnonzero(np.diff(patients)) + 1)
    # The fastest form of the areas for scikit-learn: one column, or one for each class at once.
    ranks = (y, proba[:, 1]) if k == 2 else (np.eye(k, dtype=int)[y], proba)
    labels = (y, proba.argmax(1))
    weighted = {"average": "weighted", "zero_division": 0}
    functions = {
        "accuracy": sk.accuracy_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "precision_weighted": partial(sk.precision_score, **weighted),
        "recall_weighted": partial(sk.recall_score, **weighted),
        "f1_weighted": partial(sk.f1_score, **weighted),
        "auroc": sk.roc_auc_score,
        "auprc": sk.average_precision_score,
    }
    groups = [
        (pair, [functions[name] for name in names if name in group])
        for pair, group in ((labels, metrics.CONFUSION), (ranks, metrics.RANKS))
    ]

    def loop(resamples: int) -> None:
        for _ in range(resamples):
            drawn = rng.integers(len(rows), size=len(rows))
            if not single:
                drawn = np.concatenate([rows[i] for i in drawn])
            for (truth, predicted), scores in groups:
                if scores:
                    truth_drawn, predicted_drawn = truth[drawn], predicted[drawn]
                for score in scores:
                    score(truth_drawn, predicted_drawn)

    return loop


def contestants(
    n: int, k: int, per_patient: int, resamples: int, part: int, names: tuple[str, ...]
) -> dict[str, Callable[[], object]]:
    """Ours, and the loop, timed on a part of its resamples."""
    y, proba, patients = case(n, k, per_patient)
    classes = [f"class{c}" for c in range(k)]
    frame = pd.DataFrame(proba, columns=prediction.probability_columns(classes))
    frame["y_true"] = np.array(classes)[y]
    frame["patient_id"] = [f"{patient:06d}" for patient in patients]
    loop = loop_of(y, proba, patients, names)

    def ours() -> None:
        bootstrap.bootstrap(frame, classes, resamples, names=names)

    def peer() -> float:
        return seconds(lambda: loop(part)) * resamples / part

    loop(3)  # what scikit-learn does once only
    return {"ours": ours, "peer": peer}


def main() -> None:
    options = arguments(__doc__)
    small, large = (100, 200) if options.quick else (624, 10_000)
    resamples, part = (200, 5) if options.quick else (5000, 100)
    lines = [
        ("four, paired", FOUR, small, 2, 1, None),
        ("four, paired", FOUR, large, 7, 1, None),
        ("AUROC", ("auroc",), small, 2, 1, 100),
        ("AUROC", ("auroc",), large, 2, 1, 15),
        ("AUROC", ("auroc",), large, 7, 1, 15),
        ("seven by patient", SEVEN, small, 2, 2, None),
        ("seven by patient", SEVEN, large, 7, 2, None),
    ]
    for what, names, n, k, per_patient, target in lines:
        sides = contestants(n, k, per_patient, resamples, part, names)
        name = f"bootstrap, {what}, n = {n}, K = {k}"
        contest(name, PEER, sides, options.repeats, target=target, quick=options.quick)


if __name__ == "__main__":
    main()
