"""Task cards and manifests: which samples a task has, whose they are, and how they are split.

A card (``data_manifests/<task>.yaml``) says what a task is. A manifest (``<task>.csv``) has one
row per sample, an image file or a volume: ``sample_id, patient_id, path, label``, then either
``split`` (train, val, test; where there is an official test set) or ``fold`` (0 … k-1, for
cross-validation), and ``sha256`` where the file is at hand. ``path`` is relative to the data
folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.model_selection import StratifiedGroupKFold

from medlib import artifacts
from medlib.errors import listed, unknown

CARDS = Path(__file__).resolve().parent.parent / "data_manifests"
SPLITS = ("train", "val", "test")
REQUIRED = ("sample_id", "patient_id", "path", "label")


class ManifestError(ValueError):
    """Something in a card, a manifest or a data folder that would make a comparison unsound."""


@dataclass(frozen=True)
class Card:
    """What a task is. Fields without a default must stand in the card's YAML file.

    ``split`` is ``official`` (the data set has a test set; validation patients are drawn from its
    training set) or ``cross-validation`` (``folds`` folds by patient). ``optional_classes`` are
    classes that some distributions of the data lack. ``layout`` and ``layout_options`` say how
    :mod:`medlib.layouts` reads the data set's ``folder``; a task with its own CSV needs neither.
    ``slices`` is how many central slices of a volume are classified (None: images, not volumes).
    ``known_duplicates`` lists groups of sample ids that are one image on both sides of an
    official split: those on the training side are dropped.
    """

    task: str
    title: str
    modality: str
    classes: tuple[str, ...]
    licence: str
    citation: str
    source: str
    split: str = "cross-validation"
    folds: int = 5
    folder: str = ""
    layout: str = ""
    layout_options: dict = field(default_factory=dict)
    optional_classes: tuple[str, ...] = ()
    slices: int | None = None
    known_duplicates: tuple[tuple[str, ...], ...] = ()
    notes: str = ""

    @property
    def all_classes(self) -> tuple[str, ...]:
        return self.classes + self.optional_classes


# ------------------------------------------------------------------------------------- cards


def tasks(cards: Path | str = CARDS) -> list[str]:
    """Names of all tasks that have a card."""
    return sorted(path.stem for path in Path(cards).glob("*.yaml"))


def read_card(task: str, cards: Path | str = CARDS) -> Card:
    """Read and check a task's card.

    Raises ManifestError for an unknown task and for a card with missing or unknown fields.
    """
    path = Path(cards) / f"{task}.yaml"
    if not path.is_file():
        way_out = f"A new task is a card and a CSV in {cards}."
        raise ManifestError(unknown("task", task, tasks(cards), way_out))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ManifestError(f"{path} is not valid YAML: {error}") from error
    known = {f.name: f for f in fields(Card) if f.name != "task"}
    problems = []
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: a card is a YAML mapping of {', '.join(known)}.")
    content = {name: value for name, value in content.items() if value is not None}
    required = ("title", "modality", "classes", "licence", "citation", "source")
    problems += [f"{name} is missing" for name in required if not content.get(name)]
    problems += [unknown("field", n, list(known), "") for n in content if n not in known]
    for name in ("classes", "optional_classes"):
        values = content.get(name, [])
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            problems.append(f"{name} must be a list of texts, not {values!r}")
            content[name] = []
    if len(content.get("classes", [])) < 2:
        problems.append("classes needs at least two entries")
    if content.get("split", "cross-validation") not in ("official", "cross-validation"):
        problems.append(f"split is {content['split']!r}, not 'official' or 'cross-validation'")
    if not isinstance(content.get("folds", 5), int) or content.get("folds", 5) < 3:
        problems.append("folds must be a whole number of 3 or more (train, val and test)")
    if problems:
        raise ManifestError(f"{path}: fix the card:\n{listed(problems)}")
    for name in ("classes", "optional_classes"):
        content[name] = tuple(content.get(name, ()))
    content["known_duplicates"] = tuple(map(tuple, content.get("known_duplicates", ())))
    return Card(task=task, **content)


# ---------------------------------------------------------------------------------- manifests


def read(path: Path | str, card: Card, data: Path | str | None = None) -> pd.DataFrame:
    """Read and validate a manifest; with ``data``, its files are checked as well.

    Raises ManifestError listing every problem at once.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(
            f"{path} does not exist: run notebook 01_prepare_data with task={card.task!r} first."
        )
    rows = read_rows(path)
    validate(rows, card, data, name=str(path))
    return rows


def read_rows(path: Path | str) -> pd.DataFrame:
    """A manifest's rows as they stand, not validated."""
    # Everything is text: an id of "007" must not become 7, nor a label of "NA" missing.
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "fold" in rows and rows["fold"].str.fullmatch(r"\d+").all():
        rows["fold"] = rows["fold"].astype(int)
    return rows


def excluded_path(path: Path | str) -> Path:
    """Where a manifest's list of what was left out lies: columns name and reason."""
    return Path(path).with_suffix(".excluded.csv")


def write(rows: pd.DataFrame, excluded: pd.DataFrame, path: Path | str) -> None:
    """Write a manifest and, beside it, what was left out of it and why."""
    artifacts.save_csv(excluded_path(path), excluded)
    artifacts.save_csv(path, rows)


def check_rows(rows: pd.DataFrame, card: Card, name: str = "manifest") -> None:
    """Raise ManifestError that lists everything wrong with columns, ids and labels."""
    _complain(_row_problems(rows, card), name)


def validate(
    rows: pd.DataFrame, card: Card, data: Path | str | None = None, name: str = "manifest"
) -> None:
    """Raise ManifestError that lists everything wrong with ``rows``, or return.

    Checks columns, ids, labels, that no patient and (by sha256) no image stands in two splits,
    that every class can be learned and judged and, with ``data``, that files are there and
    unchanged.
    """
    problems = _row_problems(rows, card)
    if all(column in rows for column in REQUIRED):
        problems += _split_problems(rows, card)
        if data is not None:
            problems += _file_problems(rows, Path(data))
    _complain(problems, name)


def _complain(problems: list[str], name: str) -> None:
    if problems:
        raise ManifestError(
            f"{name}: {len(problems)} problem(s):\n{listed(problems)}\n"
            "Correct the rows, or remove them, and run notebook 01_prepare_data again."
        )


def _row_problems(rows: pd.DataFrame, card: Card) -> list[str]:
    missing = [column for column in REQUIRED if column not in rows]
    if missing:
        return [f"columns missing: {', '.join(missing)}; found: {', '.join(rows.columns)}"]
    problems = [f"{c} is empty in row {i + 2}" for c in REQUIRED for i in rows.index[rows[c] == ""]]
    repeated = rows["sample_id"][rows["sample_id"].duplicated()].unique()
    problems += [f"sample_id {value!r} stands in several rows" for value in repeated]
    strangers = rows[~rows["label"].isin(card.all_classes) & (rows["label"] != "")]
    return problems + [
        f"label {row.label!r} of {row.sample_id} is not a class of the card "
        f"({', '.join(card.all_classes)})"
        for row in strangers.itertuples()
    ]


def _split_problems(rows: pd.DataFrame, card: Card) -> list[str]:
    column = split_column(rows)
    if column is None:
        return ["there is neither a column split nor a column fold (or there are both)"]
    problems = []
    if column == "split":
        wrong = rows[~rows["split"].isin(SPLITS)]
        problems += [f"split {r.split!r} of {r.sample_id} is not one of {SPLITS}"
                     for r in wrong.itertuples()]  # fmt: skip
    elif not pd.api.types.is_integer_dtype(rows["fold"]):
        wrong = rows[~rows["fold"].astype(str).str.fullmatch(r"\d+")]
        return [f"fold {r.fold!r} of {r.sample_id} is not a whole number from 0 on"
                for r in wrong.itertuples()]  # fmt: skip
    for patient, sides in _on_several_sides(rows, "patient_id", column):
        problems.append(f"patient {patient!r} stands in several {column}s: {sides}")
    if "sha256" in rows:
        hashed = rows[rows["sha256"].fillna("") != ""]
        for digest, sides in _on_several_sides(hashed, "sha256", column):
            same = ", ".join(hashed["sample_id"][hashed["sha256"] == digest])
            problems.append(f"{same} are one image but stand in several {column}s: {sides}")
    sides = SPLITS if column == "split" else sorted(rows["fold"].unique())
    if column == "fold" and list(sides) != list(range(len(sides))):
        problems.append(
            f"folds count from 0 on without a gap (fold 0, 1, …), not {list(map(int, sides))}"
        )
    if column == "fold" and len(sides) < 3:
        problems.append(f"{len(sides)} fold(s): three or more are needed (train, val and test)")
    for side in sides:
        present = set(rows["label"][rows[column] == side])
        problems += [f"class {label!r} has no sample in {column} {side}"
                     for label in _required(rows, card) if label not in present]  # fmt: skip
    return problems


def _on_several_sides(rows: pd.DataFrame, key: str, column: str) -> list[tuple[str, str]]:
    sides = rows.groupby(key, sort=True)[column].unique()
    return [(k, ", ".join(map(str, sorted(v)))) for k, v in sides.items() if len(v) > 1]


def _required(rows: pd.DataFrame, card: Card) -> tuple[str, ...]:
    return card.classes + tuple(c for c in card.optional_classes if (rows["label"] == c).any())


def _file_problems(rows: pd.DataFrame, data: Path) -> list[str]:
    if not data.is_dir():
        return [f"the data folder {data} does not exist"]
    problems = []
    for row in rows.itertuples():
        path = data / row.path
        if not path.is_file():
            problems.append(f"{row.path} ({row.sample_id}) is not in {data}")
        elif expected := getattr(row, "sha256", ""):
            found = artifacts.file_sha256(path)
            if found != expected.lower():
                problems.append(
                    f"{row.path} has changed: sha256 {found[:12]}…, manifest says {expected[:12]}…"
                )
    return problems


def with_hashes(rows: pd.DataFrame, data: Path | str) -> pd.DataFrame:
    """``rows`` with the sha256 of each file below ``data``.

    Raises ManifestError that lists every file that is missing, or differs from the hash it has.
    """
    problems = _file_problems(rows, Path(data))
    if problems:
        raise ManifestError(
            f"{len(problems)} of {len(rows)} files do not fit the manifest:\n{listed(problems)}\n"
            "Complete the download, or remove those rows; or read the folder as it is "
            "(from_folder=True in notebook 01_prepare_data)."
        )
    return rows.assign(sha256=[artifacts.file_sha256(Path(data) / path) for path in rows["path"]])


def classes(rows: pd.DataFrame, card: Card) -> list[str]:
    """The task's classes in the card's order; optional ones only where the data have them."""
    return list(_required(rows, card))


# ------------------------------------------------------------------------------------ splits


def split_column(rows: pd.DataFrame) -> str | None:
    """``"split"`` or ``"fold"``: which of the two the manifest has; None unless it is just one."""
    found = [column for column in ("split", "fold") if column in rows]
    return found[0] if len(found) == 1 else None


def drop_known_duplicates(rows: pd.DataFrame, card: Card) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows without the training side of the card's known duplicates, and what was dropped."""
    groups = [set(group) for group in card.known_duplicates]
    kept_side = rows["split"] == "test" if "split" in rows else pd.Series(False, rows.index)
    tested = set(rows["sample_id"][kept_side])
    twins = {s: sorted(g & tested)[0] for g in groups if g & tested for s in g - tested}
    dropped = rows[rows["sample_id"].isin(twins)]
    reasons = ["the same image as " + twins[s] + " of the test set" for s in dropped["sample_id"]]
    excluded = pd.DataFrame({"name": dropped["sample_id"], "reason": reasons}, dtype=str)
    return rows.drop(dropped.index).reset_index(drop=True), excluded.reset_index(drop=True)


def assign_splits(rows: pd.DataFrame, card: Card, seed: int = 0) -> pd.DataFrame:
    """Give every row its side, by patient and stratified by label.

    Rows that come with a ``split`` keep it, and where none is ``val`` a fifth of the training
    patients become it; other rows get a ``fold``. Patients that share an
    identical file (sha256) stay together. The result depends on patients, labels and
    ``seed`` only, so tasks on the same patients are split alike.
    """
    rows = rows.sort_values(["patient_id", "sample_id"]).reset_index(drop=True)
    if "split" in rows:
        train = rows["split"] == "train"
        if (rows["split"] == "val").any():
            return rows
        part = _folds(rows[train], 5, seed, card.task)
        return rows.assign(split=rows["split"].mask(train & (part.reindex(rows.index) == 0), "val"))
    if card.split == "official":
        raise ManifestError(f"{card.task}: the card says 'split: official', the data have none")
    return rows.assign(fold=_folds(rows, card.folds, seed, card.task))


def _folds(rows: pd.DataFrame, n_folds: int, seed: int, task: str) -> pd.Series:
    patients = rows.groupby("label")["patient_id"].nunique()
    short = patients[patients < n_folds]
    if len(short):
        raise ManifestError(
            f"{task}: {n_folds} folds need at least {n_folds} patients of each class; too few: "
            + ", ".join(f"{label} has {n}" for label, n in short.items())
        )
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = pd.Series(-1, index=rows.index)
    parts = splitter.split(rows["sample_id"], rows["label"], _groups(rows))
    for fold, (_, inside) in enumerate(parts):
        folds.iloc[inside] = fold
    return folds


def _groups(rows: pd.DataFrame) -> np.ndarray:
    """Patients as group numbers; patients who share an identical file are one group."""
    parent = {patient: patient for patient in rows["patient_id"]}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    if "sha256" in rows:
        for _, twins in rows[rows["sha256"].duplicated(keep=False)].groupby("sha256"):
            first, *others = (root(p) for p in twins["patient_id"])
            for other in others:
                parent[root(other)] = root(first)
    return pd.factorize(rows["patient_id"].map(root))[0]


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
    problems = [
        f"patient {patient!r} stands on several sides: {sides}"
        for patient, sides in _on_several_sides(rows, "patient_id", split_column(rows))
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
