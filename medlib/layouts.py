"""The folder layouts in which data sets are distributed, read into manifest rows.

A layout is a generator ``(folder, card, **options)`` over a data set's folder. It yields rows
(dicts of the columns below; path, mask and grid as Path), and Excluded and Problem with name and
reason. Its keyword arguments are the card's ``layout_options``. What every layout needs (one file
an id, labels that are classes, paths below the data folder) is checked once, in :func:`read`.

Hidden names (``._x.jpg``, ``.DS_Store``) and ``__MACOSX`` are no part of any data set.
"""

from __future__ import annotations

import filecmp
import glob
import inspect
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib import cards, manifest
from medlib.cards import Card
from medlib.errors import ManifestError, listed, unknown
from medlib.manifest import BESIDE, KNOWN

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VOLUMES = (".nii", ".nii.gz")
TABLES = (".csv", ".tsv", ".xlsx")
FILES = ("path", *BESIDE)  # columns that name files
COLUMNS = (*manifest.REQUIRED, "split", *BESIDE, *KNOWN)
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Found(NamedTuple):
    """What a folder holds. All columns are text, and "" is a missing value.

    ``rows``: sample_id, patient_id, path, label and, where the data have them, split (train, val,
    test), mask, grid (the patient's reference volume), age, sex and site; paths are POSIX and
    relative to the data folder. ``excluded`` (name, reason): left out by design. ``problems``
    (name, reason): what has to be corrected or set aside; such a sample has no row.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    problems: pd.DataFrame


class Excluded(NamedTuple):
    name: str
    reason: str


class Problem(NamedTuple):
    name: str
    reason: str


Items = Iterator[dict | Excluded | Problem]


def read(card: Card, data: Path | str) -> Found:
    """Read the card's data set below ``data``.

    Raises ManifestError, naming the folder and ways out, when nothing can be read: an unknown
    layout or option, a folder, table or column that is missing, or no sample at all.
    """
    data = Path(data)
    if not card.layout:
        raise ManifestError(
            f"{card.task}: nothing says which samples there are. Write data_manifests/"
            f"{card.task}.csv ({', '.join(manifest.REQUIRED)}), or name a layout in the card: "
            f"{', '.join(LAYOUTS)}."
        )
    if card.layout not in LAYOUTS:
        way_out = f"Correct `layout` in data_manifests/{card.task}.yaml."
        raise ManifestError(unknown("layout", card.layout, list(LAYOUTS), way_out))
    options = _options(card)
    names = (card.folder, *card.other_folders)
    folder = cards.data_set_folder(card, data)
    if folder is None:
        raise ManifestError(
            f"{card.task}: there is no folder {' or '.join(map(repr, names))} in {data}. Get the "
            f"data set from {card.source} and put it there, or name another data folder."
        )
    found = list(LAYOUTS[card.layout](folder, card, **options))
    rows = [
        row | {c: _shown(row[c], data) if row[c] else "" for c in FILES if c in row}
        for row in found
        if isinstance(row, dict)
    ]
    found += [problem for row in rows for problem in _row_problems(row, card)]
    rows, copies = _one_file_an_id(rows, data)
    found += copies
    problems = _frame(item for item in found if isinstance(item, Problem))
    bad = set(problems["name"])
    excluded = _frame(i for i in found if isinstance(i, Excluded) and i.name not in bad)
    rows = [row for row in rows if row["sample_id"] not in bad]
    if not rows:
        reasons = [f"{name}: {reason}" for name, reason in [*problems.values, *excluded.values]]
        raise ManifestError(
            f"{card.task}: no sample was found in {folder} ({card.layout}).\n{listed(reasons)}"
        )
    there = [c for c in COLUMNS if c in manifest.REQUIRED or any(row.get(c) for row in rows)]
    return Found(pd.DataFrame(rows, columns=there, dtype=str).fillna(""), excluded, problems)


def _options(card: Card) -> dict:
    """The card's layout options, checked against the keyword arguments of its layout."""
    given, arguments = card.layout_options, inspect.signature(LAYOUTS[card.layout]).parameters
    taken = {name: p for name, p in arguments.items() if p.kind is p.KEYWORD_ONLY}
    problems = [unknown("option", o, list(taken) or ["none"]) for o in given if o not in taken]
    for name, option in taken.items():
        kind = {"str": str, "int": int, "list": list}.get(option.annotation, dict)
        if name not in given and option.default is option.empty:
            problems.append(f"The option {name!r} is missing. There are: {', '.join(taken)}.")
        elif name in given and not isinstance(given[name], kind):
            problems.append(f"The option {name!r} is {given[name]!r}, not of type {kind.__name__}.")
    if problems:
        raise ManifestError(
            f"Correct `layout_options` in data_manifests/{card.task}.yaml (layout {card.layout}):\n"
            f"{listed(problems)}"
        )
    return given


def _row_problems(row: dict, card: Card) -> Iterator[Problem]:
    for column in manifest.REQUIRED:
        if not row[column]:
            yield Problem(row["sample_id"], f"its {column} is empty")
    if row["label"] and row["label"] not in card.all_classes:
        classes = ", ".join(card.all_classes)
        yield Problem(row["sample_id"], f"labelled {row['label']!r}, not one of {classes}")
    for column in FILES:
        if row.get(column, "").split("/")[0] == "..":
            yield Problem(row["sample_id"], f"its {column} leads out of the data folder")


def _one_file_an_id(rows: list[dict], data: Path) -> tuple[list[dict], list[Excluded | Problem]]:
    """The first row of every id, and what becomes of further ones: copies, or other images."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["sample_id"], []).append(row)
    further: list[Excluded | Problem] = []
    for sample, (first, *others) in groups.items():
        if all(_is_copy(first, other, data) for other in others):
            reason = f"a second copy of {first['path']}"
            further += [Excluded(other["path"], reason) for other in others]
        else:
            files = ", ".join(row["path"] for row in groups[sample])
            further.append(Problem(sample, f"{len(groups[sample])} files have this id: {files}"))
    return [group[0] for group in groups.values()], further


def _is_copy(row: dict, other: dict, data: Path) -> bool:
    alike = all(row[c] == other.get(c) for c in row if c not in FILES)
    paths = data / row["path"], data / other["path"]
    return alike and all(p.is_file() for p in paths) and filecmp.cmp(*paths, shallow=False)


def _frame(items: Iterable[Excluded | Problem]) -> pd.DataFrame:
    """Names and reasons; a name that comes several times has all its reasons in one row."""
    reasons: dict[str, list[str]] = {}
    for name, reason in items:
        reasons.setdefault(name, []).append(reason)
    joined = [(name, "; ".join(dict.fromkeys(of_one))) for name, of_one in reasons.items()]
    return pd.DataFrame(joined, columns=["name", "reason"], dtype=str)


# ------------------------------------------------------------------------- folders and files


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder at and below ``folder``, in order, with the names of its files."""

    def unreadable(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for here, below, names in os.walk(folder, onerror=unreadable, followlinks=True):
        here = Path(here)
        links = [n for n in below if (here / n).is_symlink()]
        # A link to a folder above itself would be walked for ever.
        left_out = {n for n in links if here.resolve().is_relative_to((here / n).resolve())}
        left_out |= {"__MACOSX"} | {n for n in (*below, *names) if n.startswith(".")}
        below[:] = sorted(set(below) - left_out)
        yield here, sorted(set(names) - left_out)


def _files(folder: Path, endings: tuple[str, ...] = ("",), pattern: str = "*") -> list[Path]:
    """The files below ``folder`` with one of these endings, named like ``*this?.csv``."""
    files = (here / name for here, names in _walk(folder) for name in names)
    return sorted(p for p in files if p.name.lower().endswith(endings) and _like(p, pattern))


def _folders(folder: Path, pattern: str = "*") -> list[Path]:
    return [here for here, _ in _walk(folder) if _like(here, pattern)]


def _like(path: Path, *patterns: str) -> bool:
    return any(fnmatchcase(path.name.lower(), pattern.lower()) for pattern in patterns)


def _the_one(paths: list[Path], folder: Path, what: str) -> Path:
    """The path that lies least deep; ManifestError where there is none, or more than one."""
    least = min((len(path.parts) for path in paths), default=0)
    first = [path for path in paths if len(path.parts) == least]
    if not first:
        raise ManifestError(f"{folder}: {what} is missing: is the download complete?")
    if len(first) > 1:
        found = ", ".join(_shown(path, folder) for path in first)
        raise ManifestError(f"{folder}: {what} is there several times: {found}. Keep one of them.")
    return first[0]


def _shown(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _stem(name: str) -> str:
    """A file's name without its ending; a name that has none stays as it is (``a.b``)."""
    ending = next((e for e in (*IMAGES, *VOLUMES) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


# ------------------------------------------------------------------------------------ tables


def _cells(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Excel table as text: "007" stays as it is; of "1.0", as Excel has it, "1"."""
    text = {"dtype": str, "keep_default_na": False}
    try:
        if path.suffix.lower() == ".xlsx":
            table = pd.read_excel(path, **text)
        else:
            with path.open(encoding="utf-8-sig") as file:
                text["sep"] = max(",\t;", key=file.readline().count)
            table = pd.read_csv(path, encoding="utf-8-sig", index_col=False, **text)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path} cannot be read as a table: {error}") from error
    table = table.rename(columns=lambda name: str(name).strip())
    table = table.map(lambda cell: re.sub(r"^(-?\d+)\.0+$", r"\1", cell.strip()))
    return table[(table != "").any(axis=1)]  # spreadsheets leave empty rows behind


def _table(path: Path, columns: dict[str, str], also: dict[str, str] | None = None) -> pd.DataFrame:
    """A table's ``columns`` under our names (ours: theirs), and of ``also`` those that it has."""
    cells = _cells(path)
    missing = [theirs for theirs in columns.values() if theirs not in cells]
    if missing:
        found = ", ".join(cells.columns)
        raise ManifestError(f"{path}: columns missing: {', '.join(missing)}; found: {found}.")
    columns = columns | {ours: c for ours, c in (also or {}).items() if c in cells}
    table = pd.DataFrame({ours: cells[theirs] for ours, theirs in columns.items()})
    for column in table.columns.intersection(KNOWN):
        nothing = table[column].str.lower().isin(("unknown", "na", "nan", "n/a"))
        table[column] = table[column].mask(nothing, "")
    table.attrs["name"] = path.name  # for messages
    return table


def _find_table(
    folder: Path, pattern: str, columns: dict[str, str], also: dict[str, str] | None = None
) -> pd.DataFrame:
    path = _the_one(_files(folder, pattern=pattern), folder, f"the table {pattern}")
    return _table(path, columns, also)


def _match(
    table: pd.DataFrame, samples: dict[str, str], what: str = "label", complete: bool = True
) -> Generator[Problem, None, dict[str, dict]]:
    """The row of every sample, by the column ``image``; what does not fit is a problem.

    ``samples``: what the table calls each sample. Without ``complete`` it may lack some.
    """
    where, rows = table.attrs["name"], {}
    for index, row in zip(table.index, table.to_dict("records"), strict=True):
        if row["image"]:
            rows.setdefault(row["image"], []).append(row)
        else:
            yield Problem(f"row {index + 2} of {where}", "it names no image")
    for name in sorted(rows.keys() - set(samples.values())):
        yield Problem(name, f"it has a {what} in {where} but no image")
    for sample, name in samples.items():
        if len(rows.get(name, ())) > 1:
            yield Problem(sample, f"it stands in {len(rows[name])} rows of {where}")
        elif name not in rows and complete:
            yield Problem(sample, f"it has no {what} in {where}")
    return {sample: rows[name][0] for sample, name in samples.items() if name in rows}


def _labelled(
    images: list[Path], table: pd.DataFrame, classes: dict[str, str], **fixed: str
) -> Items:
    """A row for every image; the table tells its label's code, and perhaps patient, age, sex."""
    ids, where = {path: _stem(path.name) for path in images}, table.attrs["name"]
    records = yield from _match(table, {sample: sample for sample in ids.values()})
    for path, sample in ids.items():
        if sample not in records:
            continue  # a problem that _match has told
        told = {c: v for c, v in records[sample].items() if c in COLUMNS}
        if told["label"] in classes:
            row = {"sample_id": sample, "patient_id": sample, "path": path} | told | fixed
            yield row | {"label": classes[told["label"]]}
        else:
            yield Problem(sample, _no_class(told["label"], classes, where))


def _no_class(code: str, classes: dict[str, str], where: str) -> str:
    if not code:
        return f"it has no label in {where}"
    return f"labelled {code!r} in {where}, not one of {', '.join(classes)}"


def _classes(card: Card, option: str, given: dict | None) -> dict[str, str]:
    """The classes by the codes that an option gives them; without it, by their own names."""
    for label in (given or {}).values():
        if label not in card.all_classes:
            way_out = f"Correct {option} in layout_options."
            raise ManifestError(unknown("class", label, card.all_classes, way_out))
    return {str(code): label for code, label in (given or {c: c for c in card.all_classes}).items()}


def _one_hot(table: pd.DataFrame, classes: Iterable[str]) -> list[str]:
    """Of each row the class that is 1; "none", and several joined by a plus, are no class."""
    return [
        "+".join(c if row[c] == "1" else f"{c}={row[c]}" for c in classes if row[c] != "0")
        or "none"
        for row in table.to_dict("records")
    ]


# ------------------------------------------------------------------------------------ images

PATIENT = re.compile(r"(person\d+|(?:NORMAL2-)?IM-\d+)[-_]|(?:NORMAL|BACTERIA|VIRUS)-(\d+)-")


def kermany(folder: Path, card: Card) -> Items:
    """Paediatric chest radiographs, ``{train,test}/{NORMAL,PNEUMONIA}/`` (Kermany et al. 2018).

    As Kaggle ships them (``chest_xray/chest_xray/`` once more within, 16 images in ``val``) or
    Mendeley (``CellData/chest_xray/``). The patient is in the file name. ``person7_…`` and
    ``IM-0115-…`` restart in the test folder, so the folder is part of the patient's id; nothing
    published says whether equal numbers are the same child. ``BACTERIA-1008087-0001``, of
    Mendeley's later versions, is one patient wherever it stands.
    """
    roots = [p for p in _folders(folder) if (p / "train").is_dir() and (p / "test").is_dir()]
    # Beside the radiographs, Mendeley's archive has retinal scans: other classes.
    held = {root: {p.name.lower() for p in (root / "train").iterdir()} for root in roots}
    fitting = [root for root in roots if held[root] >= set(card.classes)]
    root = _the_one(fitting or roots, folder, "a folder with train and test")
    for other in sorted(set(roots) - {root}):
        reason = f"another train and test; those of {_shown(root, folder.parent)} are read"
        yield Excluded(_shown(other, folder), reason)
    for path in _files(root, IMAGES):
        split = path.relative_to(root).parts[0]
        sample, match = f"{split}-{_stem(path.name)}", PATIENT.match(path.name)
        if split == "val":
            reason = "in Kaggle's val folder: its patients are in train too, and 16 cannot validate"
            yield Excluded(sample, reason)
        elif split in ("train", "test") and match is None:
            yield Problem(sample, "no patient number in the file name")
        elif split in ("train", "test"):
            whose, label = match[2] or f"{split}-{match[1]}", path.parent.name.lower()
            row = {"sample_id": sample, "patient_id": whose, "path": path}
            yield row | {"label": label, "split": split}


ANNOTATIONS = ("annotation", "mask", "lesion", "disc", "fovea")  # in names of their folders
NAME_COLUMNS = ("imgname", "image", "filename", "name")
LABEL_COLUMNS = ("label", "amd label", "pm label", "amd")


def ichallenge(folder: Path, card: Card, *, letters: dict, folders: dict | None = None) -> Items:
    """Fundus photographs of iChallenge-PM (PALM) and iChallenge-AMD (ADAM).

    ``*Training400`` trains, ``*Validation400`` is the test set. The class of a training image is
    told by its name's first letter (``letters``: P → pathologic_myopia) or, where that tells
    nothing, by its folder (``folders``: Non-AMD → other); that of a validation image, as 0, 1, …
    in the order of the card's classes, by a table. One image is one patient.
    """
    by_letter = {k.upper(): v for k, v in _classes(card, "letters", letters).items()}
    by_folder = _classes(card, "folders", folders) if folders else {}
    by_folder = {k.lower(): v for k, v in by_folder.items()}
    for path in _photographs(folder, "*Training400"):
        sample, within = _stem(path.name), path.parent.name
        letter = path.name[0].upper() if re.match(r"[A-Za-z]\d", path.name) else ""
        told = {by_letter.get(letter), by_folder.get(within.lower())} - {None}
        if len(told) == 1:
            row = {"sample_id": sample, "patient_id": sample, "path": path}
            yield row | {"label": told.pop(), "split": "train"}
        elif told:
            yield Problem(sample, f"its name and its folder {within} tell different classes")
        else:
            yield Problem(sample, f"neither its name nor its folder {within} tells a class")
    photos = _photographs(folder, "*Validation400")
    codes = {str(code): label for code, label in enumerate(card.classes)}
    yield from _labelled(photos, _validation_table(folder, photos), codes, split="test")


def _photographs(folder: Path, pattern: str) -> list[Path]:
    def is_drawn(path: Path) -> bool:
        return any(word in _shown(path, folder).lower() for word in ANNOTATIONS)

    roots = [p for p in _folders(folder, pattern) if not is_drawn(p)]
    root = _the_one(roots, folder, f"the folder {pattern}")
    return [path for path in _files(root, IMAGES) if not is_drawn(path.parent)]


def _validation_table(folder: Path, photos: list[Path]) -> pd.DataFrame:
    """The first table that names validation images and labels; those beside them come first."""
    beside, ids = {p.parent for p in photos}, {_stem(p.name) for p in photos}
    looked_at = []
    for path in sorted(_files(folder, TABLES), key=lambda p: p.parent not in beside):
        try:
            cells = _cells(path)
        except ManifestError as error:
            looked_at.append(str(error))
            continue
        columns = {column.lower(): column for column in cells}
        image = next((columns[c] for c in NAME_COLUMNS if c in columns), None)
        label = next((columns[c] for c in LABEL_COLUMNS if c in columns), None)
        if image and label and cells[image].map(_stem).isin(ids).any():
            table = _table(path, {"image": image, "label": label})
            table["image"] = table["image"].map(_stem)
            return table
        looked_at.append(f"{_shown(path, folder)}: {', '.join(columns.values())}")
    raise ManifestError(
        f"{folder}: the table of validation labels is missing: is the download complete? It names "
        f"the images in a column {' or '.join(NAME_COLUMNS)}, and their labels in a column "
        f"{' or '.join(LABEL_COLUMNS)}. Looked at:\n{listed(looked_at or ['(there is no table)'])}"
    )


HAM_TABLES = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
LESIONS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def ham10000(folder: Path, card: Card) -> Items:
    """Dermoscopy, from Dataverse or Kaggle, or as ISIC 2018 Task 3 (Tschandl et al. 2018).

    The first has ``HAM10000_metadata`` and folders ``ham10000_images*`` (Kaggle ships every image
    twice), the other a one-hot ground truth, lesion groupings and one folder of images. A lesion
    is what must not cross a split, so ``patient_id`` is the lesion.
    """
    metadata = [p for p in _files(folder) if _like(p, *HAM_TABLES)]
    truth = _files(folder, pattern="*Training_GroundTruth.csv")
    if bool(metadata) == bool(truth):
        problem = "are both there: keep one" if truth else "are missing: is the download complete?"
        tables = "HAM10000_metadata and ISIC2018_Task3_Training_GroundTruth.csv"
        raise ManifestError(f"{folder}: the tables {tables} {problem}")
    path = _the_one(metadata or truth, folder, "the table of labels")
    if metadata:
        images = _images_in(folder, "ham10000_images*")
        columns = {"image": "image_id", "patient_id": "lesion_id", "label": "dx"}
        table = _table(path, columns, {"age": "age", "sex": "sex"})
        table["label"] = table["label"].str.lower()
    else:
        images = _images_in(folder, "ISIC2018_Task3_Training_Input")
        table = _table(path, {"image": "image"} | {c: c.upper() for c in LESIONS})
        table["label"] = _one_hot(table, LESIONS)
        columns = {"image": "image", "patient_id": "lesion_id"}
        lesions = _find_table(folder, "*LesionGroupings.csv", columns)
        yield from _match(lesions, {_stem(p.name): _stem(p.name) for p in images}, "lesion")
        table = _with(table, lesions)
    yield from _labelled(images, table, {name: name for name in LESIONS})


def _images_in(folder: Path, pattern: str) -> list[Path]:
    """The images in folders of such a name; masks and superpixels are none."""
    roots = _folders(folder, pattern)
    if not roots:
        raise ManifestError(f"{folder}: the folder {pattern} is missing: is the download complete?")
    drawn = ("_segmentation", "_superpixels")
    found = {path for root in roots for path in _files(root, IMAGES)}
    return sorted(path for path in found if not _stem(path.name).lower().endswith(drawn))


def _with(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """``table`` with what ``other`` says of its images."""
    joined = table.merge(other.drop_duplicates("image"), on="image", how="left").fillna("")
    joined.attrs["name"] = table.attrs["name"]
    return joined


def isic2017(folder: Path, card: Card) -> Items:
    """Dermoscopy of ISIC 2017 Part 3, ``ISIC-2017_{Training,Validation,Test_v2}_…`` (Codella 2018).

    The ground truth has columns melanoma and seborrheic_keratosis; neither is a nevus. Which
    images show one lesion is not told, so one image is one patient.
    """
    columns = {name: name for name in ("melanoma", "seborrheic_keratosis")}
    for part, split in {"Training": "train", "Validation": "val", "Test_v2": "test"}.items():
        photos = f"ISIC-2017_{part}_Data"
        if split == "val" and not _folders(folder, photos):
            continue  # then validation images are drawn from training
        truth = f"ISIC-2017_{part}_Part3_GroundTruth.csv"
        table = _find_table(folder, truth, {"image": "image_id"} | columns)
        table["label"] = _one_hot(table, columns)
        if _files(folder, pattern=(metadata := f"{photos}_metadata.csv")):
            also = {"age": "age_approximate", "sex": "sex"}
            table = _with(table, _find_table(folder, metadata, {"image": "image_id"}, also))
        classes = {"none": "nevus"} | columns
        yield from _labelled(_images_in(folder, photos), table, classes, split=split)


# ----------------------------------------------------------------------------------- volumes

MODALITIES = {  # by what a file's name ends in, in upper or lower case, after _ or -
    "t1": "t1|t1n",
    "t1ce": "t1ce|t1c|t1gd",
    "t2": "t2|t2w",
    "flair": "flair|t2f|fla",
    "mask": "seg|segm|tumor_segmentation",
}
REQUIRED = ["t1", "t1ce", "flair"]  # so that tasks on each of them are about the same patients


class Case(NamedTuple):
    """``key`` is what the table of labels calls the sample."""

    sample: str
    patient: str
    key: str
    site: str
    volumes: list[Path]


def _case_folders(folder: Path, *patterns: str) -> dict[Path, list[Path]]:
    """The volumes of every folder that has some, or that is named as a case."""
    cases = {}
    for here, names in _walk(folder):
        volumes = [here / name for name in names if name.lower().endswith(VOLUMES)]
        if volumes or _like(here, *patterns):
            cases[here] = volumes
    return cases


def _modalities(volumes: list[Path]) -> dict[str, list[Path]]:
    """A case's files by modality; those whose bias field was corrected are preferred."""
    found = {}
    for modality, endings in MODALITIES.items():
        for bias in ("_bias", ""):
            pattern = re.compile(f"(^|[_-])({endings}){bias}$", re.IGNORECASE)
            files = [path for path in volumes if pattern.search(_stem(path.name))]
            if files and modality not in found:
                found[modality] = files
    return found


def _volumes(
    cases: list[Case], table: pd.DataFrame, classes: dict[str, str], card: Card,
    modality: str, require: list, grid: str,
) -> Items:  # fmt: skip
    """A row for every case with a known label and all required modalities.

    ``grid``: whose volume is the reference that a case's other volumes are compared with.
    """
    grid = grid or [*require, modality][0]
    needed = dict.fromkeys([*require, modality, grid])
    for name in needed:
        if name not in MODALITIES or name == "mask":
            raise ManifestError(unknown("modality", name, [m for m in MODALITIES if m != "mask"]))
    keys = {case.sample: case.key for case in cases}
    records = yield from _match(table, keys, complete=False)
    lacking = Excluded if card.incomplete == "leave_out" else Problem
    for case in cases:
        found, record = _modalities(case.volumes), records.get(case.sample, {"label": ""})
        for name, files in found.items():
            if len(files) > 1:
                names = ", ".join(file.name for file in files)
                yield Problem(case.sample, f"several files for {name}: {names}")
        if missing := [name for name in needed if name not in found]:
            yield lacking(case.sample, f"no {', '.join(missing)}")
        elif record["label"] not in classes:
            yield lacking(case.sample, f"no known grade in {table.attrs['name']}")
        else:
            row = record | {"sample_id": case.sample, "patient_id": case.patient}
            row |= {"label": classes[record["label"]], "site": case.site}
            files = {"path": modality, "mask": "mask", "grid": grid}
            yield row | {column: found.get(name, [""])[0] for column, name in files.items()}


GRADES = {"HGG": "HGG", "LGG": "LGG"}


def brats(
    folder: Path, card: Card, *, modality: str, require: list = REQUIRED, grid: str = "",
    labels: str = "", id: str = "", label: str = "", names: dict | None = None,
) -> Items:  # fmt: skip
    """MRI volumes of the BraTS challenges, ``<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz``.

    The grade is told by a folder HGG or LGG (2018, 2019) or by ``name_mapping.csv`` (2018 to
    2020). Later years have none: ``labels`` names a table, ``id`` and ``label`` its columns and
    ``names`` what its codes mean; an id is a case's or a patient's, 00495 or 495.
    ``BraTS-GLI-00495-001`` (2023) is a further scan of patient ``BraTS-GLI-00495``.
    """
    folders = _case_folders(folder, "BraTS??_*_*", "BraTS2021_?????", "BraTS-*-?????-???")
    above = {(c.name, p.upper()) for c in folders for p in c.relative_to(folder).parts}
    above = pd.DataFrame(sorted(a for a in above if a[1] in GRADES), columns=["image", "label"])
    above.attrs["name"] = "the names of its folders"
    table, classes, key_of = above, GRADES, str
    if labels:
        if not (id and label):
            raise ManifestError("layout_options: with labels, id and label name its columns.")
        classes, key_of = _classes(card, "names", names), _brats_number
        table = _find_table(folder, glob.escape(labels), {"image": id, "label": label})
        table["image"] = table["image"].map(key_of)
    elif mappings := _files(folder, pattern="name_mapping.csv"):
        path, cases = _the_one(mappings, folder, "the table"), {case.name for case in folders}
        years = [c for c in _cells(path) if c.endswith("subject_ID")] or ["subject_ID"]
        tables = [_table(path, {"image": year, "label": "Grade"}) for year in years]
        table = max(tables, key=lambda t: t["image"].isin(cases).sum())
        table = table[~table["image"].isin(("", "NA"))]
        for row in above.merge(table, on="image").itertuples():
            if row.label_x != row.label_y:
                reason = f"in a folder {row.label_x}, but {row.label_y} in {path.name}"
                yield Problem(row.image, reason)
        table = pd.concat([table, above[~above["image"].isin(table["image"])]])
        table.attrs["name"] = path.name
    elif above.empty:
        raise ManifestError(
            f"{folder}: nothing tells the grades. BraTS 2018 to 2020 have folders HGG and LGG or "
            "name_mapping.csv (is the download complete?); later years have no grades: name a "
            "table of yours in layout_options, with labels (file), id and label (its columns) and "
            "names (code: class)."
        )
    known, cases = set(table["image"]), []
    for case, volumes in folders.items():
        patient = re.sub(r"^(BraTS-\w+-\d+)-\d+$", r"\1", case.name)
        key = next((k for k in map(key_of, (case.name, patient)) if k in known), "")
        site = re.match(r"BraTS1[789]_([^_]+)_", case.name, re.IGNORECASE)
        if not key and "validation" in _shown(case, folder).lower():
            yield Excluded(case.name, "of the validation set, whose grades are not public")
        else:
            cases.append(Case(case.name, patient, key, site[1] if site else "", volumes))
    yield from _volumes(cases, table, classes, card, modality, require, grid)


def _brats_number(name: str) -> str:
    """What identifies a case from 2021 on, however it is written: ``00495`` or ``00495-001``."""
    match = re.fullmatch(r"(?:BraTS2021_|BraTS-\w+-)?(\d+)(?:-(\d+))?", name, re.IGNORECASE)
    if match is None:
        return name
    return f"{int(match[1]):05d}" + (f"-{int(match[2]):03d}" if match[2] else "")


FOLLOW_UPS = {"0315": "0433", "0278": "0431", "0175": "0396", "0138": "0429", "0181": "0409",
              "0289": "0391"}  # two ids of one patient  # fmt: skip


def ucsf_pdgm(
    folder: Path, card: Card, *, modality: str, require: list = REQUIRED, grid: str = ""
) -> Items:
    """MRI volumes ``UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{T1,T1c,FLAIR,T2}[_bias].nii.gz``.

    The WHO grade stands in ``*metadata*.csv`` (Calabrese et al. 2022), whose ids have three
    digits. Follow-up scans, under an id of their own or as ``0433FU003d``, are of one patient.
    """
    columns = {"image": "ID", "label": "WHO CNS Grade"}
    table = _find_table(folder, "*metadata*.csv", columns, {"age": "Age at MRI", "sex": "Sex"})
    table["image"] = [re.sub(r"\d+", lambda n: n[0].zfill(4), i, count=1) for i in table["image"]]
    known, cases = set(table["image"]), []
    for case, volumes in _case_folders(folder, "UCSF-PDGM-????*_nifti").items():
        sample = re.sub("_nifti$", "", case.name)
        match = re.fullmatch(r"(UCSF-PDGM-)(\d{4})(FU\w+)?", sample)
        if match is None:
            yield Problem(case.name, "not named like UCSF-PDGM-0004_nifti")
        elif match[3] and sample not in known:
            yield Excluded(sample, "a follow-up scan without a grade of its own")
        else:
            patient = match[1] + FOLLOW_UPS.get(match[2], match[2])
            cases.append(Case(sample, patient, sample, "", volumes))
    grades = {grade: f"grade_{grade}" for grade in "234"}
    yield from _volumes(cases, table, grades, card, modality, require, grid)


TCGA_LABELS = {  # where each grading stands: file, its columns, those it may have, its codes
    "histology": (
        "data.csv",
        {"image": "Patient", "label": "neoplasm_histologic_grade"},
        {"age": "age_at_initial_pathologic", "sex": "gender"},
        {"1": "grade_II", "2": "grade_III"},
    ),
    "who2021": (
        "tcga_2021_who_labels.csv",
        {"image": "case_id", "label": "WHO_CNS5_grade"},
        {"age": "Age (years at diagnosis)"},
        {f"Grade {grade}": f"grade_{grade}" for grade in "234"},
    ),
}


def tcga_lgg(
    folder: Path, card: Card, *, modality: str, require: list = REQUIRED, grid: str = "",
    labels: str = "histology",
) -> Items:  # fmt: skip
    """MRI volumes ``TCGA_CS_4941[_<date>]/…_{t1,t1ce,flair,seg}.nii.gz`` of lower-grade gliomas.

    ``labels``: the histologic grade of ``data.csv`` (TCGA-LGG, Pedano et al. 2016; Buda et al.
    2019) or the WHO 2021 grade of ``tcga_2021_who_labels.csv``. Nothing says which sex a code of
    ``data.csv`` means, so the code stays.
    """
    if labels not in TCGA_LABELS:
        raise ManifestError(unknown("grading (labels)", labels, list(TCGA_LABELS)))
    file, columns, also, grades = TCGA_LABELS[labels]
    table, cases = _find_table(folder, file, columns, also), []
    for case, volumes in _case_folders(folder, "TCGA[_-]??[_-]*").items():
        match = re.match(r"TCGA_([^_]+)_[^_]+", case.name.replace("-", "_"))
        patient, site = (match[0], match[1]) if match else (case.name, "")
        cases.append(Case(case.name, patient, patient, site, volumes))
    table["image"] = table["image"].str.replace("-", "_")
    if labels == "who2021":  # a row a slide, of all gliomas of TCGA
        table = table[table["image"].isin([case.key for case in cases])]
        table = table.drop_duplicates(["image", "label"])
    if "sex" in table:
        table["sex"] = table["sex"].where(table["sex"] == "", "gender " + table["sex"])
    yield from _volumes(cases, table, grades, card, modality, require, grid)


# ------------------------------------------------------------------------------- any data set


def folder_per_class(
    folder: Path, card: Card, *, patient: str = "", classes: dict | None = None
) -> Items:
    """``<class>/…`` or ``{train,val,test}/<class>/…``: images, or volumes where the card has them.

    ``patient`` is a regular expression: what it (or its first group) finds in a file's name is the
    patient; without, one file is one patient. ``classes`` maps names of folders to classes.
    """
    try:
        pattern = re.compile(patient or ".*")
    except re.error as error:
        raise ManifestError(f"layout_options: patient is no regular expression: {error}") from error
    named = _classes(card, "classes", None) | _classes(card, "classes", classes)
    paths = _files(folder, VOLUMES if card.volumes else IMAGES)
    parts = {path: path.relative_to(folder).parts for path in paths}
    splits = {p[0]: SPLITS[p[0].lower()] for p in parts.values() if p[0].lower() in SPLITS}
    if splits and not {"train", "test"} <= set(splits.values()):
        raise ManifestError(
            f"{folder}: there are images in {', '.join(splits)}; there must be some in train and "
            "in test, or the folders of the classes must lie here, beside no such folder."
        )
    for path in paths:
        shown, depth = "/".join(parts[path]), 1 if splits else 0
        split, (*within, _) = splits.get(parts[path][0], ""), parts[path][depth:]
        at, match = "/".join(parts[path][: depth + 1]), pattern.search(path.name)
        whose = match and match[min(pattern.groups, 1)]
        if not within or (splits and not split):
            yield Problem(shown, "it lies in no folder of a class")
        elif within[0] not in named:
            reason = f"the folder is no class of the card ({', '.join(card.all_classes)})"
            yield Problem(at, f"{reason}: name its class in layout_options, classes")
        elif card.volumes and "mask" in _modalities([path]):
            yield Excluded(shown, "a mask, by its name")
        elif not whose:
            yield Problem(shown, f"its name tells no patient: it has no {patient!r}")
        else:
            sample = _stem(shown.replace("/", "-"))
            row = {"sample_id": sample, "patient_id": whose if patient else sample, "path": path}
            yield row | {"label": named[within[0]], "split": split}


def own_table(
    folder: Path, card: Card, *, table: str, columns: dict | None = None, names: dict | None = None
) -> Items:
    """A user's CSV, TSV or Excel table, with a row a sample; its paths start at its own folder.

    ``columns`` maps our columns to the table's; path and label are needed. ``names`` maps the
    table's labels to classes.
    """
    path = folder / table
    if not path.is_file():
        there = ", ".join(_shown(p, folder) for p in _files(folder, TABLES)) or "no table"
        raise ManifestError(f"{folder}: the table {table} is missing; there is: {there}.")
    for column in columns or {}:
        if column not in COLUMNS:
            raise ManifestError(unknown("column", column, COLUMNS, "Correct layout_options."))
    needed = {"path": "path", "label": "label"} | (columns or {})
    cells = _table(path, needed, {c: c for c in COLUMNS if c not in needed})
    rows, classes = cells.to_dict("records"), _classes(card, "names", names)
    for index, row in zip(cells.index, rows, strict=True):
        sample = row.get("sample_id") or _stem(row["path"]).replace("/", "-")
        row["sample_id"] = sample or f"row {index + 2}"
        row["patient_id"] = row.get("patient_id", row["sample_id"])
    times = Counter(row["sample_id"] for row in rows)
    for row in rows:
        reasons, split = [], row.get("split", "")
        if times[row["sample_id"]] > 1:
            reasons.append(f"it stands in {times[row['sample_id']]} rows of {table}")
        if split and split.lower() not in SPLITS:
            reasons.append(f"its split is {split!r}, not one of {', '.join(manifest.SPLITS)}")
        if row["label"] not in classes:
            reasons.append(_no_class(row["label"], classes, table))
        for column in (c for c in FILES if row.get(c)):
            if not (path.parent / row[column]).is_file():
                reasons.append(f"{row[column]} is not there")
            row[column] = path.parent / row[column]
        yield from (Problem(row["sample_id"], reason) for reason in reasons)
        if not reasons:
            yield row | {"label": classes[row["label"]], "split": SPLITS.get(split.lower(), "")}


def medmnist(folder: Path, card: Card, *, flag: str, size: int = 28) -> Items:
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
        raise ManifestError(
            f"The card's classes must be those of {flag}, in their order.\n"
            f"{flag}: {list(classes)}\n{card.task}: {list(card.classes)}"
        )
    name = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
    path = _the_one(_files(folder, pattern=name), folder, f"the file {name}")
    for split in manifest.SPLITS:
        try:
            with zipfile.ZipFile(path) as archive:
                with archive.open(f"{split}_labels.npy") as file:
                    labels = np.lib.format.read_array(file)
                with archive.open(f"{split}_images.npy") as file:
                    version, _ = np.lib.format.read_magic(file)
                    shape, *_ = getattr(np.lib.format, f"read_array_header_{version}_0")(file)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ManifestError(f"{path} cannot be read: {error}. Download it again.") from error
        if shape[1:3] != (size, size) or labels.shape != (shape[0], 1):
            raise ManifestError(
                f"{path}: {split} has images of shape {shape} and labels of shape {labels.shape}, "
                f"not n × {size} × {size} and n × 1."
            )
        for index, code in enumerate(labels[:, 0].tolist()):
            sample = f"{split}-{index:06d}"
            if code not in range(len(classes)):
                yield Problem(sample, f"labelled {code}, not one of 0 to {len(classes) - 1}")
                continue
            row = {"sample_id": sample, "patient_id": sample, "split": split}
            yield row | {"path": Path(f"{path}#{split}/{index}"), "label": classes[int(code)]}


LAYOUTS: dict[str, Callable[..., Items]] = {
    "kermany": kermany,
    "ichallenge": ichallenge,
    "ham10000": ham10000,
    "isic2017": isic2017,
    "brats": brats,
    "ucsf_pdgm": ucsf_pdgm,
    "tcga_lgg": tcga_lgg,
    "folder_per_class": folder_per_class,
    "table": own_table,
    "medmnist": medmnist,
}
