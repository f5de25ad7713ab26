"""Who trains, validates and tests: rotations of a split by patient, and label fractions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medlib.errors import ManifestError, listed

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Rotation:
    """One train, validation and test part of a task, as boolean masks (n,) over its rows."""

    fold: int  # the fold that is tested; 0 where the test set is official
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Predicted(NamedTuple):
    """The probabilities that one rotation's model predicts.

    ``val`` (v, K) are those of the validation rows, ``test`` (m, K) those of the test rows;
    ``model`` is what a head has learnt: tensors by name, for :func:`heads.predict`.
    """

    val: np.ndarray
    test: np.ndarray
    model: Mapping = {}


def rotations(
    side: Sequence, patients: Sequence, labels: Sequence, label_fraction: float = 1.0, seed: int = 0
) -> list[Rotation]:
    """The train/val/test parts that a regime goes through; every patient is tested at most once.

    ``side``, ``patients`` and ``labels`` (n,) are the side of the split, the patient and the class
    of each row. A side is one of :data:`SPLITS` (an official split: one rotation) or the number of
    a fold. With k folds, fold i is tested, fold i+1 validates and the others train. Or ``side`` is
    (n, 2): the fold of a row, and the fold in whose rotation it validates. A ``label_fraction`` < 1
    keeps that share of the labelled patients, in training and in validation alike; ``seed`` draws
    them. Raises ManifestError if a patient is on two sides, or a class is missing on one;
    ValueError for a label fraction outside (0, 1].
    """
    side, patients, labels = (np.asarray(values) for values in (side, patients, labels))
    if not 0 < label_fraction <= 1:
        raise ValueError(f"label_fraction must lie in (0, 1], not {label_fraction}.")
    rotated, problems = [], _on_several_sides(side, patients)
    for fold, train, val, test in _parts(side):
        if label_fraction < 1:
            train, val = (_few(patients, labels, m, label_fraction, seed) for m in (train, val))
        rotated.append(Rotation(fold, train, val, test))
        for name, inside in zip(SPLITS, (train, val, test), strict=True):
            lacking = np.setdiff1d(labels, labels[inside]).tolist()
            problems += [f"fold {fold}: no sample of class {one!r} in {name}" for one in lacking]
    if problems:
        raise ManifestError(f"The split cannot be used:\n{listed(problems)}")
    return rotated


def _parts(side: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """The fold that is tested and the masks of train, val and test, for each rotation."""
    if side.dtype.kind not in "iu":
        return [(0, *(side == name for name in SPLITS))]
    n = int(side.max()) + 1
    own, other = side.T if side.ndim > 1 else (side, (side - 1) % n)  # tested and validated in
    return [(i, (own != i) & (other != i), (own != i) & (other == i), own == i) for i in range(n)]


def _on_several_sides(side: np.ndarray, patients: np.ndarray) -> list[str]:
    sides: dict = {}
    for patient, one in zip(patients.tolist(), side.tolist(), strict=True):
        sides.setdefault(patient, set()).add(str(one))
    return [
        f"patient {patient!r} is on several sides: {', '.join(sorted(several))}"
        for patient, several in sorted(sides.items())
        if len(several) > 1
    ]


def _few(
    patients: np.ndarray, labels: np.ndarray, inside: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """The mask ``inside`` (n,) with a share of its patients; at least two of each class stay."""
    # One draw ranks all patients, so that a smaller fraction is a subset of a larger one.
    names, first = np.unique(patients[inside], return_index=True)
    order = np.random.default_rng(seed).permutation(len(names))
    names, classes, kept = names[order], labels[inside][first][order], []
    for label in np.unique(classes):
        members = names[classes == label]
        kept += list(members[: max(2, round(fraction * len(members)))])
    return inside & np.isin(patients, kept)
