"""What all layouts share: what they yield, and the search for files, tables and classes."""

import csv
import io
import os
import zipfile
from collections import Counter, namedtuple
from collections.abc import Generator, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.data import known, manifest
from medlib.data.cards import Card
from medlib.data.known import KNOWN
from medlib.data.manifest import BESIDE
from medlib.errors import ManifestError, listed, unknown

# The endings of the formats that medlib.data.decoding reads.
IMAGES = (".apng", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg")
IMAGES += (".jpf", ".jpg", ".jpx", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")
IMAGES += (".webp",)
VOLUMES = (".nii", ".nii.gz")
TABLES = (".csv", ".tsv", ".tab", ".xlsx")
FILES = ("path", *BESIDE)  # columns that name files
COLUMNS = (*manifest.REQUIRED, "split", "fold", *BESIDE, *KNOWN)
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val"}
SPLIT_WORDS |= {"validation": "val", "test": "test", "testing": "test"}
OLE2 = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the first bytes of .xls, and of protected .xlsx


class Found(NamedTuple):
    """What a folder holds. All columns are text, and "" is a missing value.

    ``rows``: sample_id, patient_id, path, label and, where the data have them, split (train, val,
    test), mask, reference (the patient's reference volume), age, sex, site, body_part and the
    columns that the card names under ``subgroups``; paths are POSIX and relative to the data
    folder. ``excluded`` (name, reason): left out by design. ``problems`` (name, reason): what has
    to be corrected or set aside; such a sample has no row. ``notes``: sentences about what was
    assumed.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    problems: pd.DataFrame
    notes: tuple[str, ...] = ()


Excluded = namedtuple("Excluded", ["name", "reason"])
Problem = namedtuple("Problem", ["name", "reason"])
Note = namedtuple("Note", ["text"])
Items = Iterator[dict | Excluded | Problem | Note]


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


def read_cells(path: Path, encoding: str = "") -> pd.DataFrame:
    """A CSV, TSV or Excel table as text: "007" stays as it is, Excel's "1.0" becomes "1".

    A CSV is UTF-8, or UTF-16 with a byte order mark, unless ``encoding`` says otherwise. The index
    counts the rows from 0; empty rows are left out. Raises ManifestError for a file that is no such
    table, and for rows that do not fit the header; all these rows are listed.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ManifestError(f"{path} is no file, but a pipe or a device.")
    try:
        if problem := manifest.pointer_problem(content := path.read_bytes()):
            raise ManifestError(f"{path} {problem}.")
        if content.startswith(OLE2):
            protected = "EncryptedPackage".encode("utf-16-le") in content
            kind = "a workbook with a password" if protected else "an old Excel file (.xls)"
            raise ManifestError(
                f"{path} is {kind}: save it as CSV, or as .xlsx without a password."
            )
        if path.suffix.lower() == ".xlsx":
            cells = pd.read_excel(io.BytesIO(content), header=None, dtype=str, na_filter=False)
            header, *rows = cells.values.tolist() or [[]]
        else:
            header, *rows = _csv_rows(path, _decoded(path, content, encoding))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{path} cannot be read as a table: {error}") from error
    if not header:
        raise ManifestError(f"{path} cannot be read as a table: it is empty.")
    table = pd.DataFrame(rows, columns=[str(name).strip() for name in header], dtype=str)
    table = table.map(lambda cell: manifest.whole(cell.strip()))
    return table[(table != "").any(axis=1)]  # spreadsheets leave empty rows behind


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = encoding or ("utf-16" if is_utf_16 else "utf-8-sig")
    try:
        return content.decode(encoding)
    except LookupError:
        raise ManifestError(f"{path}: there is no encoding {encoding!r}. Try cp1252.") from None
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        what = f"row {row} holds the byte 0x{content[error.start]:02X}, so that it is not {name}"
        way_out = "save it as CSV UTF-8, or name its `encoding` (of Excel, often cp1252)"
        raise ManifestError(f"{path}: {what}: {way_out}, in layout_options.") from error


def _csv_rows(path: Path, text: str) -> list[list[str]]:
    """The header and the rows of a CSV. Short rows are filled up with empty cells."""
    lines = [*io.StringIO(text, newline="")]
    comma = max(",\t;", key=(lines or [""])[0].count)
    how = {"delimiter": comma, "strict": True}
    reader, rows, problems, before = csv.reader(iter(lines), **how), [], [], 0
    try:
        for cells in reader:
            begins, before = before + 1, reader.line_num
            width = len(rows[0]) if rows else len(cells)
            if before > begins and width > 2:  # a row of several lines
                inner = [line for cell in cells for line in cell.splitlines()[1:]]
                if any(line.count(comma) == width - 1 for line in inner):
                    problems.append(f"row {begins}: a text within it looks like rows of the table")
            if any(cells[width:]):
                problems.append(f"row {begins}: it has {len(cells)} cells, the header {width}")
            rows.append([*cells[:width], *[""] * (width - len(cells))])
    except csv.Error:
        odd = [n for n, line in enumerate(lines, 1) if line.count('"') % 2]
        problems += [f"row {n}: a quotation mark is opened and not closed" for n in odd]
        problems = problems or [f"row {reader.line_num}: text follows a closing quotation mark"]
    if problems:
        way_out = 'Close the quotation marks (within a text, " is written ""), or remove them.'
        raise ManifestError(f"{path} is no sound table:\n{listed(problems)}\n{way_out}")
    return rows or [[]]


def read_columns(
    path: Path, columns: dict, also: dict | None = None, encoding: str = ""
) -> pd.DataFrame:
    """The columns of a table, renamed. ``columns`` maps our names to the names in the table.

    ``also`` does so for columns that the table may lack. Raises ManifestError for columns that are
    missing, or whose name is twice in the header.
    """
    cells = read_cells(path, encoding)
    missing = [theirs for theirs in columns.values() if theirs not in cells]
    if missing:
        there = ", ".join(cells.columns)
        raise ManifestError(f"{path}: columns missing: {', '.join(missing)}; found: {there}.")
    columns = columns | {ours: c for ours, c in (also or {}).items() if c in cells}
    times = Counter(cells.columns)
    if doubled := [name for name in dict.fromkeys(columns.values()) if times[name] > 1]:
        what = f"columns whose name occurs several times: {', '.join(doubled)}"
        raise ManifestError(f"{path}: {what}. Rename or remove all but one.")
    table = pd.DataFrame({ours: cells[theirs] for ours, theirs in columns.items()})
    table = known.in_one_way(known.without_missing(table))
    table.attrs |= {"name": path.name, "columns": [*cells.columns]}  # for messages
    return table


def find_table(folder: Path, pattern: str, columns: dict, also: dict | None = None) -> pd.DataFrame:
    path = the_one(files(folder, pattern=pattern), folder, f"the table {pattern}")
    return read_columns(path, columns, also)


def match(
    table: pd.DataFrame, samples: dict[str, str], what: str = "label", complete: bool = True
) -> Generator[Problem, None, dict[str, dict]]:
    """Find the row of each sample, by the column ``image`` of the table.

    ``samples`` maps samples to their names in the table. With ``complete`` set to False, the table
    may lack some of them. Yields a Problem for each row and each sample that does not fit.
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
            yield Problem(sample, f"it is in {len(rows[name])} rows of {where}")
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


def no_class(code: str, classes: Iterable[str], where: str) -> str:
    wrong = f"labelled {code!r} in {where}, not one of {', '.join(classes)}"
    return wrong if code else f"it has no label in {where}"


def classes_of(card: Card, option: str, given: dict | None) -> dict[str, str]:
    """Classes by their codes. Without an option that gives codes, a class's name is its code."""
    for label in (given or {}).values():
        if label not in card.all_classes:
            way_out = f"Correct {option} in layout_options."
            raise ManifestError(unknown("class", label, card.all_classes, way_out))
    codes = given or {c: c for c in card.all_classes}
    return {manifest.whole(str(code)): label for code, label in codes.items()}


def class_of(code: str, classes: dict[str, str]) -> str:
    """The class of a code, in any case; "" if no class has this code, or several have."""
    if code in classes:
        return classes[code]
    labels = {label for name, label in classes.items() if name.lower() == code.lower()}
    return labels.pop() if len(labels) == 1 else ""


def table_file(folder: Path, table: str) -> Path:
    """The file of a card's ``table``. Raises ManifestError that lists the tables of the folder."""
    path = folder / table
    if not path.is_file():
        there = ", ".join(shown(p, folder) for p in files(folder, TABLES)) or "no table"
        raise ManifestError(f"{folder}: the table {table} is missing; there is: {there}.")
    return path


class Placed(NamedTuple):
    """Where a file lies: its label and split, and the folders below that of its class."""

    label: str
    split: str
    below: tuple[str, ...]


def in_class_folders(
    paths: Iterable[Path], folder: Path, card: Card, classes: dict | None
) -> Generator[Problem, None, dict[Path, Placed]]:
    """What ``<class>/…`` or ``{train,val,test}/<class>/…`` tells of each file.

    ``classes`` maps names of folders to classes. A file in another folder is a problem. Raises
    ManifestError if there are folders of a split, but not both train and test.
    """
    named = classes_of(card, "classes", None) | classes_of(card, "classes", classes)
    parts = {path: path.relative_to(folder).parts for path in paths}
    tops = {of_one[0] for of_one in parts.values()}
    splits = {top: SPLIT_WORDS[top.lower()] for top in tops if top.lower() in SPLIT_WORDS}
    if splits and not {"train", "test"} <= set(splits.values()):
        there = f"there are images in {', '.join(sorted(splits))}"
        way_out = "there must be some in train and in test, or no folder of a split at all."
        raise ManifestError(f"{folder}: {there}; {way_out}")
    placed, depth = {}, 1 if splits else 0
    for path, (top, *_) in parts.items():
        within, split = parts[path][depth:-1], splits.get(top, "")
        if not within or (splits and not split):
            yield Problem("/".join(parts[path]), "it lies in no folder of a class")
        elif within[0] not in named:
            reason = f"the folder is no class of the card ({', '.join(card.all_classes)})"
            at = "/".join(parts[path][: depth + 1])
            yield Problem(at, f"{reason}: name its class in layout_options, classes")
        else:
            placed[path] = Placed(named[within[0]], split, within[1:])
    return placed


def one_hot(table: pd.DataFrame, classes: Iterable[str]) -> list[str]:
    """For each row the class whose column is 1; "none", or several names joined by a plus."""
    told = table.to_dict("records")
    named = ([c if t[c] == "1" else f"{c}={t[c]}" for c in classes if t[c] != "0"] for t in told)
    return ["+".join(names) or "none" for names in named]
