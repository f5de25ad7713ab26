"""What all layouts share: what they yield, and the search for files, tables and classes."""

import os
import re
import zipfile
from collections import namedtuple
from collections.abc import Generator, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.data import manifest
from medlib.data.cards import Card
from medlib.data.manifest import BESIDE, KNOWN
from medlib.errors import ManifestError, unknown

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VOLUMES = (".nii", ".nii.gz")
TABLES = (".csv", ".tsv", ".xlsx")
FILES = ("path", *BESIDE)  # columns that name files
COLUMNS = (*manifest.REQUIRED, "split", *BESIDE, *KNOWN)
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Found(NamedTuple):
    """What a folder holds. All columns are text, and "" is a missing value.

    ``rows``: sample_id, patient_id, path, label and, where the data have them, split (train, val,
    test), mask, reference (the patient's reference volume), age, sex and site; paths are POSIX and
    relative to the data folder. ``excluded`` (name, reason): left out by design. ``problems``
    (name, reason): what has to be corrected or set aside; such a sample has no row.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    problems: pd.DataFrame


Excluded = namedtuple("Excluded", ["name", "reason"])
Problem = namedtuple("Problem", ["name", "reason"])
Items = Iterator[dict | Excluded | Problem]


def row(sample: str, path: Path, label: str, **known: str) -> dict:
    """A row of ``Found``; without ``patient_id``, the sample is a patient of its own."""
    return {"sample_id": sample, "patient_id": sample, "path": path, "label": label} | known


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
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


def files(folder: Path, endings: tuple[str, ...] = ("",), pattern: str = "*") -> list[Path]:
    """The files below ``folder`` with one of these endings, named like ``*this?.csv``."""
    files = (here / name for here, names in walk(folder) for name in names)
    return sorted(p for p in files if p.name.lower().endswith(endings) and like(p, pattern))


def folders(folder: Path, pattern: str = "*") -> list[Path]:
    return [here for here, _ in walk(folder) if like(here, pattern)]


def like(path: Path, *patterns: str) -> bool:
    return any(fnmatchcase(path.name.lower(), pattern.lower()) for pattern in patterns)


def the_one(paths: list[Path], folder: Path, what: str) -> Path:
    """The path nearest to the top. Raises ManifestError if there is none, or more than one."""
    least = min((len(path.parts) for path in paths), default=0)
    first = [path for path in paths if len(path.parts) == least]
    if not first:
        raise ManifestError(f"{folder}: {what} is missing: is the download complete?")
    if len(first) > 1:
        several = ", ".join(shown(path, folder) for path in first)
        raise ManifestError(f"{folder}: {what} is there several times: {several}. Keep one.")
    return first[0]


def shown(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def stem(name: str) -> str:
    """A file's name without its ending; a name that has none stays as it is (``a.b``)."""
    ending = next((e for e in (*IMAGES, *VOLUMES) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def read_cells(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Excel table as text: "007" stays as it is; of "1.0", as Excel has it, "1"."""
    text = {"dtype": str, "keep_default_na": False}
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ManifestError(f"{path} is no file, but a pipe or a device.")
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


def read_columns(path: Path, columns: dict, also: dict | None = None) -> pd.DataFrame:
    """A table's ``columns`` under our names (ours: theirs), and of ``also`` those that it has."""
    cells = read_cells(path)
    missing = [theirs for theirs in columns.values() if theirs not in cells]
    if missing:
        there = ", ".join(cells.columns)
        raise ManifestError(f"{path}: columns missing: {', '.join(missing)}; found: {there}.")
    columns = columns | {ours: c for ours, c in (also or {}).items() if c in cells}
    table = pd.DataFrame({ours: cells[theirs] for ours, theirs in columns.items()})
    for column in table.columns.intersection(KNOWN):
        nothing = table[column].str.lower().isin(("unknown", "na", "nan", "n/a"))
        table[column] = table[column].mask(nothing, "")
    table.attrs["name"] = path.name  # for messages
    return table


def find_table(folder: Path, pattern: str, columns: dict, also: dict | None = None) -> pd.DataFrame:
    path = the_one(files(folder, pattern=pattern), folder, f"the table {pattern}")
    return read_columns(path, columns, also)


def match(
    table: pd.DataFrame, samples: dict[str, str], what: str = "label", complete: bool = True
) -> Generator[Problem, None, dict[str, dict]]:
    """The row of every sample, by the column ``image``; what does not fit is a problem.

    ``samples``: what the table calls each sample. Without ``complete`` it may lack some.
    """
    where, rows = table.attrs["name"], {}
    for index, record in zip(table.index, table.to_dict("records"), strict=True):
        if record["image"]:
            rows.setdefault(record["image"], []).append(record)
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


def labelled(images: list[Path], table: pd.DataFrame, classes: dict, **fixed: str) -> Items:
    """A row for every image; the table tells its label's code, and perhaps patient, age, sex."""
    ids = {path: stem(path.name) for path in images}
    records = yield from match(table, {sample: sample for sample in ids.values()})
    for path, sample in ids.items():
        if sample not in records:
            continue  # a problem that match has told
        told = {c: v for c, v in records[sample].items() if c in COLUMNS}
        if told["label"] in classes:
            yield row(sample, path, **told | fixed | {"label": classes[told["label"]]})
        else:
            yield Problem(sample, no_class(told["label"], classes, table.attrs["name"]))


def no_class(code: str, classes: dict[str, str], where: str) -> str:
    wrong = f"labelled {code!r} in {where}, not one of {', '.join(classes)}"
    return wrong if code else f"it has no label in {where}"


def classes_of(card: Card, option: str, given: dict | None) -> dict[str, str]:
    """The classes by the codes that an option gives them; without it, by their own names."""
    for label in (given or {}).values():
        if label not in card.all_classes:
            way_out = f"Correct {option} in layout_options."
            raise ManifestError(unknown("class", label, card.all_classes, way_out))
    return {str(code): label for code, label in (given or {c: c for c in card.all_classes}).items()}


def one_hot(table: pd.DataFrame, classes: Iterable[str]) -> list[str]:
    """Of each row the class that is 1; "none", and several joined by a plus, are no class."""
    told = table.to_dict("records")
    named = ([c if t[c] == "1" else f"{c}={t[c]}" for c in classes if t[c] != "0"] for t in told)
    return ["+".join(names) or "none" for names in named]
