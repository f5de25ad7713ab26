"""5000 resamples of patients: all at once, against a loop over scikit-learn.

The two are timed in turn on the same predictions; the loop's time is that of 200 resamples, scaled.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from medlib import artifacts, metrics

RESAMPLES, LOOP, REPEATS = 5000, 200, 3
SUMMARY = Path("results/bench/summary.json")


def predictions(n: int, n_classes: int) -> tuple[pd.DataFrame, list[str]]:
    """Random predictions of n images, two a patient."""
    rng = np.random.default_rng(0)
    classes = [f"class{k}" for k in range(n_classes)]
    frame = pd.DataFrame(
        rng.dirichlet(np.ones(n_classes), n), columns=[f"prob_{c}" for c in classes]
    )
    return frame.assign(
        y_true=rng.choice(classes, n), patient_id=[str(i // 2) for i in range(n)]
    ), classes


def loop(frame: pd.DataFrame, classes: list[str], resamples: int) -> None:
    """Draw patients, gather their rows, and call scikit-learn for each metric."""
    y, proba = metrics.arrays(frame, classes)
    owner, patients = pd.factorize(frame["patient_id"], sort=True)
    rows = [np.flatnonzero(owner == i) for i in range(len(patients))]
    rng, hot = np.random.default_rng(0), np.eye(len(classes))[y]
    for _ in range(resamples):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        truth, called = y[drawn], proba[drawn].argmax(1)
        sk.accuracy_score(truth, called)
        sk.balanced_accuracy_score(truth, called)
        for score in (sk.precision_score, sk.recall_score, sk.f1_score):
            score(truth, called, average="weighted", zero_division=0)
        for score in (sk.roc_auc_score, sk.average_precision_score):
            if len(classes) == 2:
                score(truth, proba[drawn, 1])
            else:
                score(hot[drawn], proba[drawn], average="macro")


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    records = json.loads(SUMMARY.read_text()) if SUMMARY.is_file() else []
    print(f"{'bootstrap of seven metrics':34} {'ours, s':>9} {'loop, s':>9} {'ratio':>7}")
    for n, n_classes in ((624, 2), (10_000, 7)):
        frame, classes = predictions(n, n_classes)
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(seconds(metrics.bootstrap, frame, classes, RESAMPLES))
            theirs.append(seconds(loop, frame, classes, LOOP) * RESAMPLES / LOOP)
        ratio = float(np.median(np.array(theirs) / np.array(ours)))
        name = f"bootstrap, n = {n}, {n_classes} classes"
        print(f"{name:34} {np.median(ours):9.2f} {np.median(theirs):9.1f} {ratio:6.0f}×")
        records = [record for record in records if record["name"] != name]
        records.append({
            "name": name, "peer": "scikit-learn in a loop", "ratio": round(ratio, 1),
            "target": None, "value": round(float(np.median(ours)), 3), "unit": "s",
        })  # fmt: skip
    artifacts.save_json(SUMMARY, records)


if __name__ == "__main__":
    main()
