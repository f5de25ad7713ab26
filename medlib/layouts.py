"""The folder layouts in which data sets are distributed, read into manifest rows.

A layout is a function ``(folder, data, **options) -> (rows, excluded)``. ``folder`` is the data
set's folder below the data folder ``data``; ``rows`` has the columns sample_id, patient_id, path,
label and, where the data set has an official test set, split; ``excluded`` (name, reason) says what
was left out and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medlib import manifest
from medlib.errors import listed, unknown
from medlib.manifest import Card, ManifestError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
Read = tuple[pd.DataFrame, pd.DataFrame]


def read(card: Card, data: Path | str) -> Read:
    """Read the card's data set below ``data``.

    Raises ManifestError, naming folder and ways out, when it is not there or not in that layout.
    """
    if not card.layout:
        raise ManifestError(
            f"{card.task}: nothing says which samples there are. Write data_manifests/"
            f"{card.task}.csv ({', '.join(manifest.REQUIRED)}), or name a layout in the card: "
            f"{', '.join(LAYOUTS)}."
        )
    if card.layout not in LAYOUTS:
        way_out = f"Correct `layout` in data_manifests/{card.task}.yaml."
        raise ManifestError(unknown("layout", card.layout, list(LAYOUTS), way_out))
    folder = Path(data) / card.folder
    if not folder.is_dir():
        raise ManifestError(
            f"{card.task}: there is no folder {card.folder!r} in {data}. Get the data set from "
            f"{card.source} and put it there, or name another data folder."
        )
    rows, excluded = LAYOUTS[card.layout](folder, Path(data), **card.layout_options)
    if rows.empty:
        raise ManifestError(f"{card.task}: no sample was found in {folder} ({card.layout}).")
    return rows, excluded


def prepare(card: Card, data: Path | str, *, given: Path | None = None, seed: int = 0) -> Read:
    """A task's validated manifest, with splits and hashes, and what was left out of it and why.

    ``given`` is a manifest that fixes samples and, if it has them, splits: the committed one of a
    public data set, or a user's own CSV. Without it the folder's layout is read, and splits are
    drawn from ``seed``. Raises ManifestError that lists every problem.
    """
    if given is None:
        rows, excluded = read(card, data)
    else:
        rows, (_, excluded) = manifest.read_rows(given), _frame([], [])
        manifest.check_rows(rows, card, name=str(given))
        if (reasons := manifest.excluded_path(given)).is_file():
            excluded = manifest.read_rows(reasons)
    rows = manifest.with_hashes(rows, data)
    rows, twins = manifest.drop_known_duplicates(rows, card)
    if "fold" not in rows:
        rows = manifest.assign_splits(rows, card, seed)
    manifest.validate(rows, card, name=card.task)
    columns = [*manifest.REQUIRED, manifest.split_column(rows), "sha256"]
    return rows[columns], pd.concat([excluded, twins], ignore_index=True)


def _frame(rows: list[dict], excluded: list[tuple[str, str]]) -> Read:
    return pd.DataFrame(rows), pd.DataFrame(excluded, columns=["name", "reason"], dtype=str)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ManifestError(f"The folder {folder} is missing: is the download complete?")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise ManifestError(f"The table {path} is missing: is the download complete?")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in columns if column not in table]
    if missing:
        raise ManifestError(f"{path}: columns missing: {', '.join(missing)}.")
    return table


def kermany(folder: Path, data: Path) -> Read:
    """Paediatric chest radiographs, ``{train,test}/{NORMAL,PNEUMONIA}/`` (Kermany et al. 2018).

    The patient is in the file name. Numbers restart in the test folder, so the folder is part of
    the patient's id. Nothing published says whether equal numbers are the same child.
    """
    rows, excluded = [], []
    for split in ("train", "test"):
        for path in _images(folder / split):
            match = re.match(r"(person\d+|(?:NORMAL2-)?IM-\d+)[-_]", path.name)
            label = path.parent.name.lower()
            if match is None:
                excluded.append((path.name, "no patient number in the file name"))
                continue
            rows.append({
                "sample_id": f"{split}-{path.stem}",
                "patient_id": f"{split}-{match[1]}",
                "path": path.relative_to(data).as_posix(),
                "label": label,
                "split": split,
            })  # fmt: skip
    return _frame(rows, excluded)


def ichallenge_pm(folder: Path, data: Path) -> Read:
    """Fundus photographs of iChallenge-PM (PALM): training 400, validation 400 as the test set.

    The training label is the first letter of the file name (P pathologic myopia; H high myopia
    and N normal are both 0), the test label stands in ``labels.csv``. One image is one patient.
    """
    rows, excluded = [], []
    for path in _images(folder / "PALM-Training400"):
        if re.match(r"[HNP]\d", path.name):
            rows.append((path, "train", path.name[0] == "P"))
        else:
            excluded.append((path.name, "its name begins with none of H, N and P and a number"))
    test = folder / "PALM-Validation400"
    labels = _table(test / "labels.csv", ("imgName", "Label")).set_index("imgName")["Label"]
    images = _images(test)
    names = {path.name for path in images}
    problems = [f"{name} has no label" for name in sorted(names - set(labels.index))]
    problems += [f"{name} has a label but no image" for name in sorted(set(labels.index) - names)]
    problems += [f"{n} is labelled {v!r}, not 0 or 1" for n, v in labels.items()
                 if v not in ("0", "1")]  # fmt: skip
    problems += [f"{n} is listed twice" for n in labels.index[labels.index.duplicated()]]
    if problems:
        raise ManifestError(f"{test / 'labels.csv'} does not fit its folder:\n{listed(problems)}")
    rows += [(path, "test", labels[path.name] == "1") for path in images]
    return _frame(
        [
            {
                "sample_id": path.stem,
                "patient_id": path.stem,
                "path": path.relative_to(data).as_posix(),
                "label": "pathologic_myopia" if myopia else "other",
                "split": split,
            }
            for path, split, myopia in rows
        ],
        excluded,
    )


def ham10000(folder: Path, data: Path) -> Read:
    """Dermoscopy, two image folders and ``HAM10000_metadata.csv`` (Tschandl et al. 2018).

    A lesion is what must not cross a split, so ``patient_id`` is the lesion.
    """
    table = _table(folder / "HAM10000_metadata.csv", ("lesion_id", "image_id", "dx"))
    images = {path.stem: path for path in _images(folder)}
    problems = [f"{i} has no image" for i in table["image_id"] if i not in images]
    problems += [f"{i} is not in the table" for i in sorted(set(images) - set(table["image_id"]))]
    if problems:
        raise ManifestError(f"{folder}: table and images disagree:\n{listed(problems)}")
    return _frame(
        [
            {
                "sample_id": row.image_id,
                "patient_id": row.lesion_id,
                "path": images[row.image_id].relative_to(data).as_posix(),
                "label": row.dx,
            }
            for row in table.itertuples()
        ],
        [],
    )


def tcga_lgg(folder: Path, data: Path, *, modality: str) -> Read:
    """MRI volumes ``<patient>/<patient>_{t1,t1ce,flair}.nii.gz``, WHO grade in ``data.csv``.

    Only patients with a known grade and all three modalities are taken, so that the three tasks
    are about the same people. ``modality``: t1, t1ce or flair.
    """
    table = _table(folder / "data.csv", ("Patient", "neoplasm_histologic_grade"))
    grades = table.set_index("Patient")["neoplasm_histologic_grade"]
    names = {"1": "grade_II", "2": "grade_III"}  # as data.csv codes them
    rows, excluded = [], []
    for patient in sorted(p for p in folder.iterdir() if p.is_dir()):
        volumes = {m: patient / f"{patient.name}_{m}.nii.gz" for m in ("t1", "t1ce", "flair")}
        missing = [m for m, path in volumes.items() if not path.is_file()]
        # The folder may carry the scan's date after the patient's id.
        matches = [p for p in grades.index if re.match(rf"{re.escape(p)}(_|$)", patient.name)]
        grade = names.get(grades[matches[0]]) if len(matches) == 1 else None
        if missing:
            excluded.append((patient.name, f"no {', '.join(missing)}"))
        elif grade is None:
            excluded.append((patient.name, "no known grade in data.csv"))
        else:
            rows.append({
                "sample_id": patient.name,
                "patient_id": matches[0],
                "path": volumes[modality].relative_to(data).as_posix(),
                "label": grade,
            })  # fmt: skip
    return _frame(rows, excluded)


LAYOUTS: dict[str, Callable[..., Read]] = {
    "kermany": kermany,
    "ichallenge_pm": ichallenge_pm,
    "ham10000": ham10000,
    "tcga_lgg": tcga_lgg,
}
