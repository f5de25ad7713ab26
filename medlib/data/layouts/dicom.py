"""DICOM files, labelled by folders or by a table; RSNA Pneumonia and VinDr-CXR as distributed.

No name, date or UID of a file gets into a row: samples and patients are named by hashes. Problems
are named by the file's path or by the table's row.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Generator
from pathlib import Path
from typing import NamedTuple

from medlib.core.splits import SPLITS
from medlib.data import dicom
from medlib.data.cards import Card
from medlib.data.known import KNOWN
from medlib.data.layouts import base
from medlib.errors import ManifestError, unknown

# What a table may name an image or a series by; "file" is a path, or a name that is there once.
KEYS = ("file", *dicom.KEYS)
NO_DICOM = "no DICOM file"  # why a file is left out
ENDING = re.compile(r"\.(dcm|dicom|ima|img)$", re.IGNORECASE)


class Sample(NamedTuple):
    """An image, or a series: the header of its first file, and all its files."""

    path: Path
    header: dicom.Header
    files: tuple[Path, ...]
    headers: tuple[dicom.Header, ...]

    @property
    def is_series(self) -> bool:
        return len(self.files) > 1 or self.header.frames > 1


def dicom_folder(
    folder: Path,
    card: Card,
    *,
    table: str = "",
    key: str = "file",
    columns: dict | None = None,
    names: dict | None = None,
    classes: dict | None = None,
    patient: str = "patient_id",
) -> base.Items:
    """DICOM files of any name. A file is an image. If the card has volumes, it is part of a series.

    Labels come from folders, ``<class>/…`` or ``{train,test}/<class>/…``; ``classes`` maps names of
    folders to classes. Or they come from a ``table``, whose rows name an image, a series or all of
    a study by ``key`` (one of KEYS). ``columns`` maps ``label``, the key, ``patient_id``, ``split``
    and what is known of patients to the table's columns; ``names`` maps its labels to classes.
    Several rows with one label count as one. ``patient`` is the key by which a patient is known.
    """
    for option, value in {"key": key, "patient": patient}.items():
        if value not in KEYS:
            raise ManifestError(unknown(option, value, KEYS, "Correct layout_options."))
    samples = yield from images_and_series(folder, card.volumes is not None)
    if table:
        yield from _by_table(samples, folder, card, (table, key, columns or {}, names), patient)
    else:
        yield from _by_folder(samples, folder, card, classes, patient)


def images_and_series(
    folder: Path, volumes: bool
) -> Generator[base.Excluded | base.Problem, None, list[Sample]]:
    """The images below a folder or, if ``volumes`` are wanted, its series of several slices."""
    images, series = [], {}
    for here, there in base.walk(folder):
        found = dicom.headers(here)
        yield from _other_files(folder, [here / name for name in there if name not in found])
        for name, header in found.items():
            path = here / name
            uid = "" if isinstance(header, str) else header.sop_instance_uid
            if volumes and uid:
                uid = header.series_instance_uid
            if isinstance(header, str):
                yield base.Problem(base.shown(path, folder), header)
            elif header.left_out:
                yield base.Excluded(base.shown(path, folder), header.left_out)
            elif not uid:
                tag = "SeriesInstanceUID" if volumes else "SOPInstanceUID"
                yield base.Problem(base.shown(path, folder), f"it has no {tag}: export it again")
            elif volumes:
                series.setdefault(uid, []).append((path, header))
            else:
                images.append(Sample(path, header, (path,), (header,)))
    for of_one in series.values():
        files, headers = zip(*of_one, strict=True)
        shown, places = base.shown(files[0], folder), {path.parent for path in files}
        sample = Sample(files[0], headers[0], files, headers)
        if len(places) > 1:
            where = ", ".join(sorted(base.shown(place, folder) for place in places))
            yield base.Problem(shown, f"its series lies in several folders: {where}: keep one")
        elif sample.is_series:
            images.append(sample)
        else:
            yield base.Excluded(shown, "a series of one slice, and a volume needs several")
    return images


def _other_files(folder: Path, paths: list[Path]) -> base.Items:
    """Files that are not DICOM. A file with DICOM's ending is a problem, any other is left out."""
    for path in paths:
        if ENDING.search(path.name):
            yield base.Problem(base.shown(path, folder), "it is no DICOM file: copy it again")
        elif not path.name.lower().endswith(base.TABLES):
            yield base.Excluded(base.shown(path, folder), NO_DICOM)


def _row(sample: Sample, shown: str, patient: str, told: dict) -> dict | base.Problem:
    """A sample's row. If a table and the tags both tell something, the table counts."""
    own = sample.header
    name = own.series_instance_uid if sample.is_series else own.sop_instance_uid
    whose = told.get("patient_id") or (name if patient == "file" else getattr(own, patient))
    if not whose:
        way_out = "name another key by which patients are known in layout_options, patient"
        return base.Problem(shown, f"its {patient} is empty: {way_out} ({', '.join(KEYS)})")
    known = own.known | {column: told[column] for column in KNOWN if column in told}
    hashes = {"patient_id": dicom.short_hash(whose), "split": told.get("split", "")}
    return base.row(dicom.short_hash(name), sample.path, told["label"], **hashes | known)


# -------------------------------------------------------------------------- labels from folders


def _by_folder(
    samples: list[Sample], folder: Path, card: Card, classes: dict | None, patient: str
) -> base.Items:
    by_path = {sample.path: sample for sample in samples}
    placed = yield from base.in_class_folders(by_path, folder, card, classes)
    for path, place in placed.items():
        told = {"label": place.label, "split": place.split}
        yield _row(by_path[path], base.shown(path, folder), patient, told)


# ------------------------------------------------------------------------- labels from a table


def _by_table(
    samples: list[Sample], folder: Path, card: Card, options: tuple, patient: str
) -> base.Items:
    """``options``: table, key, columns and names of :func:`dicom_folder`."""
    table, key, columns, names = options
    further, classes = card.further_columns, base.classes_of(card, "names", names)
    rows = _table_rows(folder, table, key, columns, further)
    lacking = base.Excluded if card.incomplete == "leave_out" else base.Problem
    given, several = _names(samples, key, folder, (folder / table).parent)
    for sample, own_names in zip(samples, given, strict=True):
        shown = base.shown(sample.path, folder)
        told = [row for name in own_names for row in rows.get(name, ())]
        labels, splits = ({row.get(c, "") for _, row in told} for c in ("label", "split"))
        numbers = ", ".join(str(number) for number, _ in told)
        if not told:
            yield lacking(shown, f"no row of {table} has its {key}")
        elif len(labels) > 1 or len(splits) > 1:
            yield base.Problem(shown, f"rows {numbers} of {table} differ in its label or split")
        elif not (label := base.class_of(told[0][1]["label"], classes)):
            yield base.Problem(shown, base.no_class(labels.pop(), classes, table))
        elif (split := splits.pop()) and split.lower() not in base.SPLIT_WORDS:
            sides = ", ".join(SPLITS)
            yield base.Problem(shown, f"its split is {split!r} in {table}, not one of {sides}")
        else:
            row = told[0][1] | {"split": base.SPLIT_WORDS.get(split.lower(), "")}
            kept = {column: row[column] for column in further}
            row = _row(sample, shown, patient, row | {"label": label})
            yield row | kept if isinstance(row, dict) else row
    there = set().union(*given)
    for name, of_one in rows.items():
        if name not in there:
            reason = f"no image has its {key}" if name else f"its {key} is empty"
            reason = f"several files have its {key}: give the path" if name in several else reason
            yield from (lacking(f"row {number} of {table}", reason) for number, _ in of_one)


def _table_rows(
    folder: Path, table: str, key: str, columns: dict, further: tuple[str, ...]
) -> dict[str, list[tuple[int, dict]]]:
    """The rows of the table, with their numbers, grouped by the column of the key.

    The columns ``further`` must be there, under these names or those that ``columns`` gives.
    """
    path = base.table_file(folder, table)
    known = (key, "label", "patient_id", "split", *KNOWN, *further)
    for column in columns:
        if column not in known:
            raise ManifestError(unknown("column", column, known, "Correct layout_options."))
    needed = {"label": "label", key: key} | {name: name for name in further} | columns
    cells = base.read_columns(path, needed, {c: c for c in known if c not in needed})
    rows = {}
    for index, row in zip(cells.index, cells.to_dict("records"), strict=True):
        rows.setdefault(row[key], []).append((index + 2, row))
    return rows


def _names(samples: list[Sample], key: str, *places: Path) -> tuple[list[set[str]], set[str]]:
    """The names by which a table may call each sample; and names that several files share."""
    if key != "file":
        return [{getattr(h, key) for h in s.headers} - {""} for s in samples], set()
    full, short = [], []
    for sample in samples:
        paths = {*sample.files, *([sample.path.parent] if sample.is_series else [])}
        full.append({base.shown(path, place) for path in paths for place in places})
        full[-1] |= {ENDING.sub("", name) for name in full[-1]}
        short.append({path.name for path in paths} | {ENDING.sub("", path.name) for path in paths})
    times = Counter(name for of_one in short for name in of_one)
    several = {name for name, count in times.items() if count > 1}
    return [a | (b - several) for a, b in zip(full, short, strict=True)], several


def tags(path: Path, given: Collection[str]) -> dict[str, str]:
    """What a DICOM file tells of its patient, without the columns that are ``given`` already.

    The patient is a hash, as in :func:`dicom_folder`. Empty for a file of another format.
    """
    if path.name.lower().endswith((*base.IMAGES, *base.VOLUMES)):
        return {}
    header = dicom.header(path)
    if not isinstance(header, dicom.Header):
        return {}
    whose = {"patient_id": dicom.short_hash(header.patient_id)} if header.patient_id else {}
    return {column: t for column, t in (header.known | whose).items() if column not in given}


# ------------------------------------------------------------------------------ public data sets

RSNA_PATIENTS = "pneumonia-challenge-dataset-mappings_2018.json"


def rsna_pneumonia(folder: Path, card: Card, *, patients: str = RSNA_PATIENTS) -> base.Items:
    """Chest radiographs of the RSNA Pneumonia Detection Challenge, as Kaggle ships stage 2.

    ``stage_2_train_labels.csv`` has a row for each box. ``Target`` is 1 if the image has a box. The
    images come from ChestX-ray14, where a patient has several. Their PatientID names the image, not
    the patient. RSNA's file ``patients`` names the patient; with "", each image is one patient.
    """
    columns = {"image": "patientId", "label": "Target"}
    table = base.find_table(folder, "stage_2_train_labels.csv", columns)
    table = table.drop_duplicates(["image", "label"])
    whose = _rsna_patients(folder, patients) if patients else {}
    classes = dict(zip("01", card.classes, strict=True))
    for row in _public(folder, "stage_2_train_images", ".dcm", table, classes):
        if isinstance(row, dict) and patients:
            if row["sample_id"] not in whose:
                row = base.Problem(row["sample_id"], f"its patient is not in {patients}")
            else:
                row["patient_id"] = whose[row["sample_id"]]
        yield row


def _rsna_patients(folder: Path, name: str) -> dict[str, str]:
    """The patient of each image. In ChestX-ray14, 00011978_014.png is of patient 00011978."""
    found = base.files(folder, pattern=name)
    if not found:
        source = "RSNA's page of the challenge (www.rsna.org, AI image challenge, 2018)"
        lost = f"{folder}: {name} is missing, which tells whose images these are"
        way_out = 'Or write `patients: ""` in layout_options: then a patient may be on two sides.'
        raise ManifestError(f"{lost}. Get it from {source}. {way_out}")
    path = base.the_one(found, folder, name)
    try:
        records = json.loads(path.read_text("utf-8"))
        return {one["subset_img_id"]: one["img_id"].partition("_")[0] for one in records}
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is not RSNA's list of images ({error!r}).") from error


def vindr_cxr(folder: Path, card: Card) -> base.Items:
    """Chest radiographs of VinDr-CXR, ``{train,test}/<image_id>.dicom`` (Nguyen et al. 2022).

    Three radiologists read each training image. It is of the card's first class if most of them
    say "No finding". Test images have the consensus of five. Patients are not known, so each image
    is one patient.
    """
    for split in ("train", "test"):
        columns = {"image": "image_id", "label": "No finding"}
        table = base.find_table(folder, f"image_labels_{split}.csv", columns)
        votes = table.groupby("image")["label"].agg(list).map(_majority)
        table = table.drop_duplicates("image")
        table["label"] = table["image"].map(votes)
        table.attrs["name"] = f"image_labels_{split}.csv"
        classes = {"1": card.classes[0], "0": card.classes[1]}
        for item in _public(folder, split, ".dicom", table, classes):
            yield item | {"split": split} if isinstance(item, dict) else item


def _majority(votes: list[str]) -> str:
    """The vote (0 or 1) of more than half; otherwise all votes, which are no valid label."""
    told = [vote for vote in "01" if votes.count(vote) > len(votes) / 2]
    return told[0] if told and {*votes} <= {"0", "1"} else " ".join(votes)


def _public(folder: Path, name: str, ending: str, table, classes: dict) -> base.Items:
    """A row for each image in the folder of this name; its id is the file's name."""
    root = base.the_one(base.folders(folder, name), folder, f"the folder {name}")
    images = {path.stem: path for path in base.files(root, (ending,))}
    records = yield from base.match(table, {sample: sample for sample in images})
    for sample, path in images.items():
        header = dicom.headers(path.parent).get(path.name, "it is no DICOM file: download it again")
        if isinstance(header, str):
            yield base.Problem(sample, header)
        elif sample in records and records[sample]["label"] not in classes:
            code = records[sample]["label"]
            yield base.Problem(sample, base.no_class(code, classes, table.attrs["name"]))
        elif sample in records:
            yield base.row(sample, path, classes[records[sample]["label"]], **header.known)
