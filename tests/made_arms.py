"""Make arms with chosen values, draws and redraws, without any run."""

import numpy as np
import pandas as pd

from medlib.stats.effects import Arm

CLASSES = ["low", "high"]


def frame_of(label, proba, classes=CLASSES):
    """Predictions (n, K) for labels (n,) in 0 … K-1, with one image per patient."""
    frame = pd.DataFrame({"sample_id": [f"{i:04d}" for i in range(len(label))]})
    frame["patient_id"], frame["split"] = frame["sample_id"], "test"
    frame["y_true"] = np.array(classes)[label]
    return frame.assign(**{f"prob_{name}": proba[:, k] for k, name in enumerate(classes)})


def row(table, **where):
    """The one row of a table with these values, as a dict."""
    for column, value in where.items():
        table = table[table[column] == value]
    (found,) = table.to_dict("records")
    return found


def arm(backbone="a", values=0.8, draws=None, redraws=None, metric="auroc", frames=(), **cell):
    """A frozen backbone on all labels unless ``cell`` says otherwise.

    ``values``, ``draws`` and ``redraws`` are dictionaries by seed; a single value is for seed 0.
    Without ``draws``, all draws of test patients give the arm's own value.
    """
    values = values if isinstance(values, dict) else {0: values}
    draws = draws or {seed: [value, value] for seed, value in values.items()}
    named = {"task": "mri", "backbone": backbone, "pretraining": "imagenet", "regime": "frozen"}
    named |= {"head": "linear", "label_fraction": 1.0} | cell
    by_seed = [{s: np.array(of) for s, of in part.items()} for part in (draws, redraws or {})]
    return Arm(named, metric, values, *by_seed, list(frames), CLASSES)


def varying(backbone, value, patients, training, rng, seeds=(0, 1, 2), resamples=2000, **cell):
    """An arm whose mean over seeds is ``value``, with normally distributed draws.

    ``patients`` and ``training`` are the standard errors over test patients and over training. A
    frozen arm has 200 redraws for each seed. The values of a trained arm differ between seeds.
    """
    values, redraws = dict.fromkeys(seeds, value), {}
    if cell.get("regime", "frozen") != "frozen":
        apart = rng.normal(size=len(seeds))
        apart *= training * np.sqrt(len(seeds)) / np.std(apart, ddof=1) if len(seeds) > 1 else 0
        values = dict(zip(seeds, value + apart - apart.mean(), strict=True))
    of_patients = patients * rng.normal(size=resamples)  # the same ones for every seed
    draws = {seed: own + of_patients for seed, own in values.items()}
    if cell.get("regime", "frozen") == "frozen":
        redraws = {seed: value + training * rng.normal(size=200) for seed in seeds}
    return arm(backbone, values, draws, redraws, **cell)
