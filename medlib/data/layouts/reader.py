"""The folder layouts in which data sets are distributed, read into manifest rows.

A layout is a generator ``(folder, card, **options)`` over a data set's folder. It yields rows
(dicts of the columns of ``base.Found``; path, mask and reference as Path), and Excluded and Problem
with name and reason. Its keyword arguments are the card's ``layout_options``. What every layout
needs is checked here: one file for an id, labels that are classes, paths below the data folder.
Hidden names (``._x.jpg``, ``.DS_Store``) and ``__MACOSX`` are no part of any data set.
"""

import filecmp
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from medlib.data import cards, manifest
from medlib.data.cards import Card
from medlib.data.dicom import series_files
from medlib.data.layouts import base, dicom, generic, mri, photographs, tables
from medlib.errors import ManifestError, listed, unknown

Left = base.Excluded | base.Problem  # out of the manifest


def read(card: Card, data: Path | str) -> base.Found:
    """Read the card's data set below ``data``.

    Raises ManifestError, naming the folder and ways out, when nothing can be read: an unknown
    layout or option, a folder, table or column that is missing, or no sample at all.
    """
    data = Path(data)
    if not card.layout:
        csv = f"data_manifests/{card.task}.csv ({', '.join(manifest.REQUIRED)})"
        way_out = f"Write {csv}, or name a layout in the card: {', '.join(LAYOUTS)}."
        raise ManifestError(f"{card.task}: nothing says which samples there are. {way_out}")
    if card.layout not in LAYOUTS:
        way_out = f"Correct `layout` in data_manifests/{card.task}.yaml."
        raise ManifestError(unknown("layout", card.layout, list(LAYOUTS), way_out))
    options, folder = _options(card), cards.data_set_folder(card, data)
    if folder is None:
        names = " or ".join(map(repr, (card.folder, *card.other_folders)))
        way_out = f"Get it from {card.source} and put it there, or name another data folder."
        raise ManifestError(f"{card.task}: there is no folder {names} in {data}. {way_out}")
    items = list(LAYOUTS[card.layout](folder, card, **options))
    rows = [item for item in items if isinstance(item, dict)]
    for row in rows:
        row |= {c: base.shown(row[c], data) if row[c] else "" for c in base.FILES if c in row}
    items += [problem for row in rows for problem in _row_problems(row, card)]
    rows, copies = _one_file_an_id(rows, data)
    items += [*copies, *_not_read(folder, data, rows, card)]
    problems = frame(item for item in items if isinstance(item, base.Problem))
    bad = set(problems["name"])
    excluded = frame(i for i in items if isinstance(i, base.Excluded) and i.name not in bad)
    rows = [row for row in rows if _printable(row["sample_id"]) not in bad]
    if not rows:
        reasons = [f"{name}: {reason}" for name, reason in [*problems.values, *excluded.values]]
        none = f"no sample was found in {folder} ({card.layout})"
        raise ManifestError(f"{card.task}: {none}.\n{listed(reasons)}")
    columns = (*base.COLUMNS, *card.further_columns)
    there = [c for c in columns if c in manifest.REQUIRED or any(row.get(c) for row in rows)]
    items += _without_column(card, there)
    notes = tuple(dict.fromkeys(item.text for item in items if isinstance(item, base.Note)))
    table = pd.DataFrame(rows, columns=there, dtype=str).fillna("")
    table = table.astype({"fold": int} if "fold" in table else {})
    return base.Found(table, excluded, problems, notes)


def _without_column(card: Card, there: list[str]) -> Iterator[base.Note]:
    """A note that names the columns of the card's ``subgroups`` for which no sample has a value."""
    if missing := [name for name in card.subgroups if name not in there]:
        yield base.Note(f"No sample has a value of {', '.join(missing)} (subgroups of the card).")


def _options(card: Card) -> dict:
    """The card's layout options, checked against the keyword arguments of its layout."""
    given, arguments = card.layout_options, inspect.signature(LAYOUTS[card.layout]).parameters
    taken = {name: p for name, p in arguments.items() if p.kind is p.KEYWORD_ONLY}
    problems = [unknown("option", o, list(taken) or ["none"]) for o in given if o not in taken]
    for name, option in taken.items():
        kind = option.annotation if option.annotation in (str, int, list) else dict
        if name not in given and option.default is option.empty:
            problems.append(f"The option {name!r} is missing. There are: {', '.join(taken)}.")
        elif name in given and not isinstance(given[name], kind):
            problems.append(f"The option {name!r} is {given[name]!r}, not of type {kind.__name__}.")
    if problems:
        where = f"data_manifests/{card.task}.yaml (layout {card.layout})"
        raise ManifestError(f"Correct `layout_options` in {where}:\n{listed(problems)}")
    return given


def _not_read(folder: Path, data: Path, rows: list[dict], card: Card) -> Iterator[base.Excluded]:
    """Count the files whose ending the layout does not read, by folder and ending."""
    of_kind = base.VOLUMES if card.volumes else base.IMAGES
    if card.layout == "dicom":  # this layout lists such files itself
        return
    is_any = card.layout in ANY_DATA
    read = base.TABLES + (of_kind if is_any else base.IMAGES + base.VOLUMES)
    used = {manifest.sample_file(row["path"]) for row in rows}
    if card.volumes:
        used = {base.shown(file, data) for path in used for file in series_files(data / path)}
    times = Counter()
    for path in base.files(folder):
        if not path.name.lower().endswith(read) and base.shown(path, data) not in used:
            within = path.relative_to(folder).parts[:-1]
            where = within[: 2 if within and within[0].lower() in base.SPLIT_WORDS else 1]
            ending = path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
            if ending or is_any:  # the table of HAM10000 has no ending
                times["/".join(where), "".join(ending).lower()] += 1
    for (where, ending), number in sorted(times.items()):
        words = f"the ending {ending}" if ending else "no ending"
        yield base.Excluded(
            f"{where}/*{ending}".strip("/"), f"{number} file(s) with {words}: not read"
        )


def _row_problems(row: dict, card: Card) -> Iterator[base.Problem]:
    for column in manifest.REQUIRED:
        if not row[column]:
            yield base.Problem(row["sample_id"], f"its {column} is empty")
    if row["label"] and row["label"] not in card.all_classes:
        classes = ", ".join(card.all_classes)
        yield base.Problem(row["sample_id"], f"labelled {row['label']!r}, not one of {classes}")
    for column in base.FILES:
        if row.get(column, "").split("/")[0] == "..":
            yield base.Problem(row["sample_id"], f"its {column} leads out of the data folder")
        if _printable(row.get(column, "")) != row.get(column, ""):
            way_out = "rename the file or its folder (`convmv -f cp1252 -t utf-8` does)"
            yield base.Problem(row["sample_id"], f"its {column} is not written in UTF-8: {way_out}")


def _one_file_an_id(rows: list[dict], data: Path) -> tuple[list[dict], list[Left]]:
    """The first row of every id. Further rows are left out as copies, or reported as problems."""
    groups, further = {}, []
    for row in rows:
        groups.setdefault(row["sample_id"], []).append(row)
    for sample, (first, *others) in groups.items():
        if all(_is_copy(first, other, data) for other in others):
            reason = f"{manifest.COPY_REASONS[1]}{first['path']}"
            further += [base.Excluded(other["path"], reason) for other in others]
        else:
            paths = [row["path"] for row in groups[sample]]
            reason = f"{len(paths)} files have this id: {', '.join(paths)}"
            further.append(base.Problem(sample, reason))
    return [group[0] for group in groups.values()], further


def _printable(name: str) -> str:
    """A name that can be printed: a byte that is not UTF-8 is written as ``\\udcfc``."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_copy(row: dict, other: dict, data: Path) -> bool:
    alike = all(row[c] == other.get(c) for c in row if c not in base.FILES)
    paths = data / row["path"], data / other["path"]
    return alike and all(p.is_file() for p in paths) and filecmp.cmp(*paths, shallow=False)


def frame(items: Iterable[Left]) -> pd.DataFrame:
    """Names and reasons; a name that comes several times has all its reasons in one row."""
    items = [tuple(map(_printable, item)) for item in items]
    table = pd.DataFrame(items, columns=["name", "reason"], dtype=str).drop_duplicates()
    return table.groupby("name", sort=False)["reason"].agg("; ".join).reset_index()


LAYOUTS = {"kermany": photographs.kermany, "ichallenge": photographs.ichallenge}
LAYOUTS |= {"ham10000": photographs.ham10000, "isic2017": photographs.isic2017}
LAYOUTS |= {"brats": mri.brats, "ucsf_pdgm": mri.ucsf_pdgm, "tcga_lgg": mri.tcga_lgg}
LAYOUTS |= {"folder_per_class": generic.folder_per_class, "table": tables.own_table}
LAYOUTS |= {"medmnist": generic.medmnist, "dicom": dicom.dicom_folder}
LAYOUTS |= {"rsna_pneumonia": dicom.rsna_pneumonia, "vindr_cxr": dicom.vindr_cxr}
ANY_DATA = ("folder_per_class", "table")  # they read one kind of file: images, or volumes
