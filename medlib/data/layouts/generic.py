"""Layouts of any data set: a folder per class, a table, MedMNIST."""

import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import regex  # as re, with a limit of time

from medlib.core.splits import SPLITS
from medlib.data.cards import Card
from medlib.data.layouts import base, dicom
from medlib.data.layouts.mri import modalities
from medlib.errors import ManifestError, unknown

MAX_LABELS = 10**7  # of a set of MedMNIST: its header may claim anything
PATIENCE = 1  # seconds to match one name: with some patterns it could take hours


def folder_per_class(
    folder: Path, card: Card, *, patient: str = "", classes: dict | None = None
) -> base.Items:
    """``<class>/…`` or ``{train,val,test}/<class>/…``: images, or volumes where the card has them.

    ``patient`` is a regular expression: what it (or its first group) finds in a file's name is the
    patient; without, one file is one patient. ``classes`` maps names of folders to classes.
    """
    try:
        pattern = regex.compile(patient or ".*")
    except regex.error as error:
        raise ManifestError(f"layout_options: patient is no regular expression: {error}") from error
    named = base.classes_of(card, "classes", None) | base.classes_of(card, "classes", classes)
    paths = base.files(folder, base.VOLUMES if card.volumes else base.IMAGES)
    parts = {path: path.relative_to(folder).parts for path in paths}
    tops = {p[0] for p in parts.values() if p[0].lower() in base.SPLIT_WORDS}
    splits = {top: base.SPLIT_WORDS[top.lower()] for top in tops}
    if splits and not {"train", "test"} <= set(splits.values()):
        there = f"there are images in {', '.join(sorted(splits))}"
        way_out = "there must be some in train and in test, or no folder of a split at all."
        raise ManifestError(f"{folder}: {there}; {way_out}")
    for path in paths:
        shown, depth = "/".join(parts[path]), 1 if splits else 0
        split, (*within, _) = splits.get(parts[path][0], ""), parts[path][depth:]
        at, match = "/".join(parts[path][: depth + 1]), _search(pattern, path.name)
        whose = match and match[min(pattern.groups, 1)]
        if not within or (splits and not split):
            yield base.Problem(shown, "it lies in no folder of a class")
        elif within[0] not in named:
            reason = f"the folder is no class of the card ({', '.join(card.all_classes)})"
            yield base.Problem(at, f"{reason}: name its class in layout_options, classes")
        elif card.volumes and "mask" in modalities([path]):
            yield base.Excluded(shown, "a mask, by its name")
        elif not whose:
            yield base.Problem(shown, f"its name tells no patient: it has no {patient!r}")
        else:
            sample = base.stem(shown.replace("/", "-"))
            whose = whose if patient else sample
            yield base.row(sample, path, named[within[0]], patient_id=whose, split=split)


def _search(pattern: regex.Pattern, name: str) -> regex.Match | None:
    try:
        return pattern.search(name, timeout=PATIENCE)
    except TimeoutError as error:
        slow = f"patient takes more than {PATIENCE} s to search {name!r}"
        way_out = "write it without a repeat within a repeat, such as (a+)+"
        raise ManifestError(f"layout_options: {slow}: {way_out}.") from error


def own_table(
    folder: Path, card: Card, *, table: str, columns: dict | None = None, names: dict | None = None
) -> base.Items:
    """A user's CSV, TSV or Excel table, one row per sample; its paths are relative to its folder.

    ``columns`` maps our columns to the table's; path and label are needed. ``names`` maps the
    table's labels to classes. Of DICOM files, the tags tell what the table has no column for.
    """
    path = folder / table
    if not path.is_file():
        tables = [base.shown(p, folder) for p in base.files(folder, base.TABLES)]
        there = ", ".join(tables) or "no table"
        raise ManifestError(f"{folder}: the table {table} is missing; there is: {there}.")
    for column in columns or {}:
        if column not in base.COLUMNS:
            raise ManifestError(unknown("column", column, base.COLUMNS, "Correct layout_options."))
    needed = {"path": "path", "label": "label"} | (columns or {})
    cells = base.read_columns(path, needed, {c: c for c in base.COLUMNS if c not in needed})
    rows, classes = cells.to_dict("records"), base.classes_of(card, "names", names)
    for index, row in zip(cells.index, rows, strict=True):
        sample = row.get("sample_id") or base.stem(row["path"]).replace("/", "-")
        row["sample_id"] = sample or f"row {index + 2}"
        row["patient_id"] = row.get("patient_id", row["sample_id"])
    times, sides = Counter(row["sample_id"] for row in rows), base.SPLIT_WORDS
    for row in rows:
        reasons, split = [], row.get("split", "")
        if times[row["sample_id"]] > 1:
            reasons.append(f"it stands in {times[row['sample_id']]} rows of {table}")
        if split and split.lower() not in sides:
            reasons.append(f"its split is {split!r}, not one of {', '.join(SPLITS)}")
        if row["label"] not in classes:
            reasons.append(base.no_class(row["label"], classes, table))
        for column in (c for c in base.FILES if row.get(c)):
            if not (path.parent / row[column]).is_file():
                reasons.append(f"{row[column]} is not there")
            row[column] = path.parent / row[column]
        yield from (base.Problem(row["sample_id"], reason) for reason in reasons)
        if not reasons:
            row |= dicom.tags(row["path"], cells.columns) if row["path"] else {}
            yield row | {"label": classes[row["label"]], "split": sides.get(split.lower(), "")}


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array in an .npz, from its header."""
    with archive.open(f"{name}.npy") as file:
        version, _ = np.lib.format.read_magic(file)
        return getattr(np.lib.format, f"read_array_header_{version}_0")(file)[0]


def medmnist(folder: Path, card: Card, *, flag: str, size: int = 28) -> base.Items:
    """A set of MedMNIST (Yang et al. 2023), ``<flag>.npz`` (28 px) or ``<flag>_<size>.npz``.

    A sample's path is ``<file>#<split>/<index>``; one image is one patient. Images are counted and
    measured by their headers, and not read.
    """
    from medmnist.info import INFO  # takes seconds: it imports torch

    if flag not in INFO:
        raise ManifestError(unknown("flag", flag, list(INFO)))
    if flag.endswith("3d") or "multi-label" in INFO[flag]["task"]:
        why = "has volumes, not images" if flag.endswith("3d") else "has several labels an image"
        raise ManifestError(f"{flag} {why}: choose another set of MedMNIST.")
    classes = tuple(INFO[flag]["label"][str(code)] for code in range(len(INFO[flag]["label"])))
    if classes != card.classes:
        both = f"{flag}: {list(classes)}\n{card.task}: {list(card.classes)}"
        raise ManifestError(f"The card's classes must be those of {flag}, in their order.\n{both}")
    name = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
    path = base.the_one(base.files(folder, pattern=name), folder, f"the file {name}")
    for split in SPLITS:
        try:
            with zipfile.ZipFile(path) as archive:
                claimed = _shape(archive, f"{split}_labels")
                if math.prod(claimed) > MAX_LABELS:
                    raise ValueError(f"its labels have the shape {claimed}")
                with archive.open(f"{split}_labels.npy") as file:
                    labels = np.lib.format.read_array(file)
                shape = _shape(archive, f"{split}_images")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ManifestError(f"{path} cannot be read: {error}. Download it again.") from error
        if shape[1:3] != (size, size) or labels.shape != (shape[0], 1):
            there = f"{split} has images of shape {shape} and labels of shape {labels.shape}"
            raise ManifestError(f"{path}: {there}, not n × {size} × {size} and n × 1.")
        for index, code in enumerate(labels[:, 0].tolist()):
            sample = f"{split}-{index:06d}"
            if code in range(len(classes)):
                within = Path(f"{path}#{split}/{index}")
                yield base.row(sample, within, classes[int(code)], split=split)
            else:
                yield base.Problem(sample, f"labelled {code}, not one of 0 to {len(classes) - 1}")
