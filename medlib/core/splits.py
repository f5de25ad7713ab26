"""Who trains, validates and tests: rotations of a split by patient, and label fractions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlib.errors import ManifestError, listed

SPLITS = ("train", "val", "test")


def sides(side: pd.Series, key: pd.Series) -> pd.Series:
    """For each row, in words, all sides of the split on which its key stands."""
    found = {k: ", ".join(sorted(map(str, v))) for k, v in side.groupby(key).unique().items()}
    return key.map(found)


def split_column(rows: pd.DataFrame) -> str | None:
    """``"split"`` or ``"fold"``: which of the two the manifest has; None unless it is just one."""
    found = [column for column in ("split", "fold") if column in rows]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Rotation:
    """One train, validation and test part of a task, as boolean masks over its rows."""

    fold: int  # the fold that is tested; 0 where the test set is official
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def rotations(rows: pd.DataFrame, label_fraction: float = 1.0, seed: int = 0) -> list[Rotation]:
    """The train/val/test parts that a regime goes through; every patient is tested at most once.

    An official split is one rotation. With k folds, fold i is tested, fold i+1 validates and the
    others train. ``label_fraction`` < 1 keeps that share of the labelled patients, in training
    and in validation alike: whoever has few labels has few to choose with. Raises ManifestError
    when a patient stands on two sides, or a class is missing on one.
    """
    stands = sides(rows[split_column(rows)], rows["patient_id"])
    several = dict(zip(rows["patient_id"], stands, strict=True))
    problems = [
        f"patient {patient!r} stands on several sides: {sides}"
        for patient, sides in sorted(several.items())
        if ", " in sides
    ]
    if "split" in rows:
        parts = [(0, *(np.asarray(rows["split"] == side) for side in SPLITS))]
    else:
        fold = rows["fold"].to_numpy()
        n = int(fold.max()) + 1
        parts = [
            (i, ~np.isin(fold, (i, (i + 1) % n)), fold == (i + 1) % n, fold == i) for i in range(n)
        ]
    rotated = [
        Rotation(
            i,
            _take_patients(rows, train, label_fraction, seed),
            _take_patients(rows, val, label_fraction, seed),
            test,
        )
        for i, train, val, test in parts
    ]
    everything = set(rows["label"])
    for rotation in rotated:
        for side in SPLITS:
            lacking = everything - set(rows["label"][getattr(rotation, side)])
            problems += [f"fold {rotation.fold}: no sample of class {label!r} in {side}"
                         for label in sorted(lacking)]  # fmt: skip
    if problems:
        raise ManifestError(f"The split cannot be used:\n{listed(problems)}")
    return rotated


def patients_by_side(rows: pd.DataFrame, parts: list[Rotation]) -> pd.DataFrame:
    """How many patients each rotation trains on, chooses with and tests: a row a fold."""
    counts = [
        {side: rows["patient_id"][getattr(part, side)].nunique() for side in SPLITS}
        for part in parts
    ]
    return pd.DataFrame(counts, index=pd.Index([part.fold for part in parts], name="fold"))


def _take_patients(
    rows: pd.DataFrame, inside: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """The mask ``inside`` thinned to a share of its patients: of each class, at least two."""
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction must lie in (0, 1], not {fraction}.")
    if fraction == 1:
        return inside
    # One draw ranks all patients, so that a smaller fraction is a subset of a larger one.
    patients = rows[inside].groupby("patient_id", sort=True)["label"].first()
    order = np.random.default_rng(seed).permutation(len(patients))
    patients, kept = patients.iloc[order], []
    for _, members in patients.groupby(patients, sort=True):
        kept += list(members.index[: max(2, round(fraction * len(members)))])
    return inside & rows["patient_id"].isin(kept).to_numpy()
