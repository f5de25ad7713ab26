"""Write complete runs with made-up predictions, without using medlib's own writer."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from medlib import files
from medlib.grid.address import find_runs as runs_below  # noqa: F401 - for the tests

CLASSES = {"mri": ["low", "high"], "skin": ["nv", "mel", "bcc"]}
CANDIDATES = 7  # settings that a run chooses among
BACKBONES = {"dinov2_small": "dinov2", "resnet50-imagenet": "imagenet"}


def predictions(task, seed, n_patients=15):
    """A table of predictions: two samples per patient, numbers as ids, every class present."""
    classes, rng = CLASSES[task], np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 2)
    y = patient % len(classes)
    proba = rng.dirichlet(np.ones(len(classes)), size=len(y)) * 0.7 + 0.3 * np.eye(len(classes))[y]
    frame = pd.DataFrame({"sample_id": [f"{i:03d}" for i in range(len(y))]})
    frame["patient_id"] = [f"{p:03d}" for p in patient]
    frame["split"], frame["y_true"] = "test", [classes[label] for label in y]
    frame[[f"prob_{name}" for name in classes]] = proba
    return frame


def write(folder, coordinates, frame, redraws=None, validation=None, how=None, **record):
    """Write the files of a run that the statistics read. A table that is None is not written."""
    tables = {"predictions": frame, "validation": validation, "redraws": redraws}
    sha256 = {}
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        path.unlink(missing_ok=True)
        if table is not None:
            files.save_csv(path, table)
            sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    how = {"candidates": CANDIDATES} | (how or {})
    made = {"coordinates": coordinates, "sha256": sha256, "how": how, "hardware": {"gpu": None}}
    files.save_json(folder / "run.json", made | record)


def save(results, frame, task="mri", backbone="dinov2_small", seed=0, **given):
    """A run of a frozen backbone unless ``given`` says otherwise; returns its folder.

    ``given`` may hold coordinates, the tables that :func:`write` takes, and other record fields.
    """
    coordinates = {"task": task, "backbone": backbone, "pretraining": BACKBONES[backbone]}
    coordinates |= {"regime": "frozen", "head": "linear", "label_fraction": 1.0, "seed": seed}
    record = {name: value for name, value in given.items() if name not in coordinates}
    coordinates |= {name: value for name, value in given.items() if name in coordinates}
    arm = "-".join(str(coordinates[name]) for name in ("regime", "head", "label_fraction"))
    folder = results / "runs" / task / backbone / arm / f"seed{seed}"
    write(folder, coordinates, frame, **record)
    return folder


def kept_below(results):
    """The function (task, backbone) -> file of rows that ``summaries.summarise`` takes."""
    return lambda task, backbone: Path(results) / "kept" / f"{task}, {backbone}.json"
