"""The layout ``table``: a data set of any kind, described by a table."""

import unicodedata
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd

from medlib.core.splits import SPLITS
from medlib.data.cards import Card
from medlib.data.layouts import base, dicom, patients
from medlib.errors import ManifestError, unknown


def own_table(
    folder: Path,
    card: Card,
    *,
    table: str,
    columns: dict | None = None,
    names: dict | None = None,
    patterns: dict | None = None,
    where: dict | None = None,
    patient: str = "",
    encoding: str = "",
) -> base.Items:
    """A user's CSV, TSV or Excel table, one row per sample.

    ``columns`` maps our columns to the table's; path and label are needed. A path is relative to
    the table's folder or to the data set's. A name that is not there is searched below the data
    set's folder. Several columns may hold the parts of a path. ``names`` maps the table's labels to
    classes, in upper or lower case. ``patterns`` maps regular expressions to classes; they must
    match a whole label. ``where`` maps a column to the values of the rows that are used.
    ``patient`` finds the patient in a path, as in :func:`generic.folder_per_class`. ``encoding`` is
    needed for a CSV that is not UTF-8. If the table lacks a column that DICOM's tags can fill, they
    fill it. A column that the card names under ``subgroups`` must be there.
    """
    path = base.table_file(folder, table)
    cells = _cells(path, columns or {}, card.further_columns, [*(where or {})], encoding)
    places, pattern = _Places(path, folder, card), patients.pattern("patient", patient)
    rows = yield from _chosen(cells, where or {}, places)
    yield from _number_folds(rows)
    codes, spelt = base.classes_of(card, "names", names), {}
    if patterns:
        spelt = base.classes_of(card, "patterns", patterns)
        spelt = {patients.pattern("patterns", f"(?i){p}"): c for p, c in spelt.items()}
    times, sides = Counter(row["sample_id"] for row in rows), base.SPLIT_WORDS
    alone = False  # whether some image is taken as a patient of its own
    for row in rows:
        label = _class_of(row["label"], codes, spelt)
        reasons = [*_wrong(row, times, table)]
        if not label:
            reasons.append(base.no_class(row["label"], [*codes, *(patterns or ())], table))
        reasons += places.fill(row)
        if patient and not reasons:
            row["patient_id"] = patients.of(pattern, base.shown(row["path"], folder))
            reasons += [patients.none(patient)] * (not row["patient_id"])
        yield from (base.Problem(row["sample_id"], reason) for reason in reasons)
        if not reasons:
            told = dicom.tags(row["path"], row) if row["path"] else {}
            row = {"patient_id": row["sample_id"]} | told | row  # the table comes first
            alone |= row["patient_id"] == row["sample_id"]
            yield row | {"label": label, "split": sides.get(row.get("split", "").lower(), "")}
    yield from places.left(table)
    if alone and "patient_id" not in cells:
        shown = (base.shown(file, folder) for file in places.named)
        yield from patients.one_image_each(shown, cells.attrs["unused"])
    if "fold" in cells.attrs["unused"]:
        way_out = "To use it, write in layout_options: columns: {fold: fold}"
        yield base.Note(f"The column fold of {table} is not used. {way_out}")


def _cells(
    path: Path, columns: dict, further: tuple[str, ...], filters: list[str], encoding: str
) -> pd.DataFrame:
    """The table's columns under our names. The columns of filters are called ``where <theirs>``.

    ``further`` are columns that must be there, under our names or those that ``columns`` gives.
    ``attrs["unused"]`` holds the names of all other columns.
    """
    for column, theirs in columns.items():
        if column not in (known := (*base.COLUMNS, *further)):
            raise ManifestError(unknown("column", column, known, "Correct layout_options."))
        if isinstance(theirs, list) and column not in base.FILES:
            raise ManifestError(f"layout_options: {column} is one column, not {theirs}.")
    needed = {"path": "path", "label": "label"} | {name: name for name in further} | columns
    parts = {c: theirs for c, theirs in needed.items() if isinstance(theirs, list)}
    asked = {c: theirs for c, theirs in needed.items() if c not in parts}
    asked |= {f"{c} {k}": name for c, several in parts.items() for k, name in enumerate(several)}
    asked |= {f"where {name}": name for name in filters}
    also = {c: c for c in base.COLUMNS if c not in needed and c != "fold"}
    cells = base.read_columns(path, asked, also, encoding)
    for column, several in parts.items():
        folders = [cells.pop(f"{column} {k}").str.strip("/") for k in range(len(several))]
        cells[column] = ["/".join(filter(None, names)) for names in zip(*folders, strict=True)]
    for column in cells.columns.intersection(base.FILES):
        cells[column] = cells[column].str.replace("\\", "/").str.removeprefix("./")
    used = {*asked.values(), *also.values()}
    cells.attrs["unused"] = [c for c in cells.attrs["columns"] if c not in used]
    return cells


def _chosen(
    cells: pd.DataFrame, where: dict, places: "_Places"
) -> Generator[base.Excluded, None, list[dict]]:
    """Keep the rows that ``where`` asks for, and give each a sample_id. Others are left out."""
    rows = cells.to_dict("records")
    stems = [base.stem(row["path"]).strip("/").replace("/", "-") for row in rows]
    paths = pd.DataFrame({"stem": stems, "path": cells["path"].to_numpy()}).drop_duplicates()
    several = paths["stem"].value_counts()  # x.png and x.jpg have one stem
    for index, row, stem in zip(cells.index, rows, stems, strict=True):
        whole = row["path"].strip("/").replace("/", "-")
        named = row.get("sample_id") or (stem if several[stem] == 1 else whole)
        row["sample_id"] = named or f"row {index + 2}"
    chosen = []
    for row in rows:
        told = {column: row.pop(f"where {column}") for column in where}
        for column, wanted in where.items():
            values = [str(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
            if told[column].lower() not in [value.lower() for value in values]:
                reason = f"its {column} is {told[column]!r}, not {' or '.join(values)} (where)"
                yield base.Excluded(row["sample_id"], reason)
                places.find(row["path"])  # else its file would be listed as named by no row
                break
        else:
            chosen.append(row)
    return chosen


def _wrong(row: dict, times: Counter, table: str) -> Iterator[str]:
    """What is wrong with a row's id, split or fold."""
    if (n := times[row["sample_id"]]) > 1:
        yield f"it is in {n} rows of {table}"
    if (split := row.get("split", "")) and split.lower() not in base.SPLIT_WORDS:
        yield f"its split is {split!r}, not one of {', '.join(SPLITS)}"
    if row.get("fold") == "":
        yield "its fold is empty"


def _number_folds(rows: list[dict]) -> base.Items:
    """Number the folds from 0 on. A note says so if the table calls them otherwise."""
    names = {row["fold"] for row in rows if row.get("fold")}
    names = sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (99, name))
    numbers = {name: str(number) for number, name in enumerate(names)}
    for row in rows:
        if "fold" in row:
            row["fold"] = numbers.get(row["fold"], "")
    if any(name != number for name, number in numbers.items()):
        called = ", ".join(f"{name} is {number}" for name, number in numbers.items())
        yield base.Note(f"The table's folds are counted from 0 on: {called}.")


def _class_of(code: str, names: dict, patterns: dict) -> str:
    """The class of a label, by its name or else by a pattern; "" if none fits, or several do."""
    label = base.class_of(code, names)
    if label or not code:
        return label
    labels = {c for pattern, c in patterns.items() if patients.found(pattern, code, "fullmatch")}
    return labels.pop() if len(labels) == 1 else ""


class _Places:
    """The files that a table names, and those that it does not."""

    def __init__(self, table: Path, folder: Path, card: Card):
        self.roots = [*dict.fromkeys([table.parent, folder])]
        self.folder, self.endings = folder, base.VOLUMES if card.volumes else base.IMAGES
        self.named, self.searched = {}, {}  # cells by file; files that were searched for, by cell

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """Every file of the data set, by its name and by its name without ending."""
        files = {}
        for file in base.files(self.folder):
            names = {_plain(file.name), _plain(base.stem(file.name)), _plain(file.stem)}
            for name in names:
                files.setdefault(name, []).append(file)
        return files

    def fill(self, row: dict) -> Iterator[str]:
        """Replace names by files in a row. Yields a reason for each file that is missing."""
        for column in (c for c in base.FILES if row.get(c)):
            row[column], reason = self.find(row[column])
            if reason:
                yield reason

    def find(self, name: str) -> tuple[Path | str, str]:
        """The file that a cell names, and ""; or "", and the reason why no file can be taken."""
        for root in self.roots:
            if (root / name).is_file():
                self.named.setdefault(root / name, name)
                return root / name, ""
        parts = [_plain(part) for part in name.split("/") if part not in ("", ".")]
        fitting = [f for f in self.by_name.get((parts or [""])[-1], []) if self._ends(f, parts)]
        of_kind = [f for f in fitting if f.name.lower().endswith(self.endings)]
        fitting = of_kind or fitting  # x.png rather than x.json beside it
        if len(fitting) == 1 and self.named.setdefault(fitting[0], name) == name:
            self.searched[name] = base.shown(fitting[0], self.folder)
            return fitting[0], ""
        if fitting:
            there = ", ".join(base.shown(f, self.folder) for f in fitting)
            also = f" (another row names it {self.named[fitting[0]]})" if len(fitting) == 1 else ""
            way_out = "name its folder as well (in columns, path may be a list of columns)"
            return "", f"{name} may be {there}{also}: {way_out}"
        roots = " and ".join(root.name for root in self.roots)
        return "", f"{name} is not there: looked in {roots}, and for its name below"

    def _ends(self, file: Path, parts: list[str]) -> bool:
        """Whether the folders in a cell and those of a file agree, as far as both are given."""
        there = [_plain(part) for part in file.relative_to(self.folder).parts[:-1]]
        wanted = parts[:-1]
        if len(wanted) > len(there):  # a path that begins above the data set's folder
            there = there or [_plain(self.folder.name)]
            return wanted[-len(there) :] == there
        return there[len(there) - len(wanted) :] == wanted

    def left(self, table: str) -> base.Items:
        """The files that no row names. A note says how many files were found by a search."""
        known = {file.resolve() for file in self.named}
        for file in base.files(self.folder, self.endings):
            if file.resolve() not in known:
                yield base.Excluded(base.shown(file, self.folder), f"no row of {table} names it")
        if self.searched:
            many = f"{len(self.searched)} file(s) of {table} were found by searching their names"
            name, file = next(iter(self.searched.items()))
            yield base.Note(f"{many}, as they are written in another way: {name} is {file}.")


def _plain(name: str) -> str:
    """A name in lower case and in one Unicode form: file systems and spreadsheets change both."""
    return unicodedata.normalize("NFC", name).casefold()
