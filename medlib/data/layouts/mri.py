"""Layouts of glioma MRI: BraTS, UCSF-PDGM, TCGA-LGG."""

import glob
import re
from collections import namedtuple
from pathlib import Path

import pandas as pd

from medlib.data.cards import Card
from medlib.data.layouts import base
from medlib.errors import ManifestError, unknown

# How the name of a modality's file ends, in upper or lower case, after _ or -.
MODALITIES = {"t1": "t1|t1n", "t1ce": "t1ce|t1c|t1gd", "t2": "t2|t2w", "flair": "flair|t2f|fla"}
ENDINGS = MODALITIES | {"mask": "seg|segm|tumor_segmentation"}
REQUIRED = ["t1", "t1ce", "flair"]  # so that tasks on each of them are about the same patients
# UCSF-PDGM: these ids are follow-up scans of other patients. From version 3 on they have new names.
FOLLOW_UPS = {"0315": "0433FU007d", "0278": "0431FU001d", "0175": "0396FU175d"}
FOLLOW_UPS |= {"0138": "0429FU003d", "0181": "0409FU001d", "0289": "0391FU016d"}
# BraTS from 2021 on: two patients have two numbers each, as UCSF-PDGM's table shows.
REPEATED = {"00639": "00557", "00626": "00758"}
# ``key``: the sample's name in the table of labels; ``volumes`` are paths, the others texts.
Case = namedtuple("Case", ["sample", "patient", "key", "site", "volumes"])


def _case_folders(folder: Path, *patterns: str) -> dict[Path, list[Path]]:
    """The volumes of every folder that has some, or that is named as a case."""
    cases = {}
    for here, names in base.walk(folder):
        volumes = [here / name for name in names if name.lower().endswith(base.VOLUMES)]
        if volumes or base.like(here, *patterns):
            cases[here] = volumes
    return cases


def modalities(volumes: list[Path]) -> dict[str, list[Path]]:
    """A case's files by modality; those whose bias field was corrected are preferred."""
    by_modality = {}
    for modality, endings in ENDINGS.items():
        for bias in ("_bias", ""):
            pattern = re.compile(f"(^|[_-])({endings}){bias}$", re.IGNORECASE)
            files = [path for path in volumes if pattern.search(base.stem(path.name))]
            if files and modality not in by_modality:
                by_modality[modality] = files
    return by_modality


def _volumes(
    cases: list[Case], table: pd.DataFrame, classes: dict, card: Card, wanted: tuple[str, list, str]
) -> base.Items:
    """A row for every case with a known label and all required modalities.

    ``wanted``: the modality, those that are required, and that of the patient's reference volume.
    """
    modality, require, reference = wanted
    reference = reference or [*require, modality][0]
    needed = dict.fromkeys([*require, modality, reference])
    for name in needed:
        if name not in MODALITIES:
            raise ManifestError(unknown("modality", name, list(MODALITIES)))
    keys = {case.sample: case.key for case in cases}
    records = yield from base.match(table, keys, complete=False)
    lacking = base.Excluded if card.incomplete == "leave_out" else base.Problem
    for case in cases:
        by_modality, record = modalities(case.volumes), records.get(case.sample, {"label": ""})
        for name, several in by_modality.items():
            if len(several) > 1:
                names = ", ".join(file.name for file in several)
                yield base.Problem(case.sample, f"several files for {name}: {names}")
        if missing := [name for name in needed if name not in by_modality]:
            yield lacking(case.sample, f"no {', '.join(missing)}")
        elif record["label"] not in classes:
            yield lacking(case.sample, f"no known grade in {table.attrs['name']}")
        else:
            row = record | {"sample_id": case.sample, "patient_id": case.patient}
            row |= {"label": classes[record["label"]], "site": case.site}
            files = {"path": modality, "mask": "mask", "reference": reference}
            yield row | {column: by_modality.get(name, [""])[0] for column, name in files.items()}


def brats(
    folder: Path,
    card: Card,
    *,
    modality: str,
    require: list = REQUIRED,
    reference: str = "",
    labels: str = "",
    id: str = "",
    label: str = "",
    names: dict | None = None,
) -> base.Items:
    """MRI volumes of the BraTS challenges, ``<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz``.

    The grade comes from a folder HGG or LGG (2018, 2019) or from ``name_mapping.csv`` (2018 to
    2020). Later years have no grade. Then ``labels`` names a table, ``id`` and ``label`` its
    columns, and ``names`` maps its codes to classes. An id is that of a case or a patient, 00495 or
    495. ``BraTS-GLI-00495-001`` (2023) is a further scan of patient ``BraTS-GLI-00495``. Two
    patients have a second number.
    """
    folders = _case_folders(folder, "BraTS??_*_*", "BraTS2021_?????", "BraTS-*-?????-???")
    above = {(c.name, p.upper()) for c in folders for p in c.relative_to(folder).parts}
    classes, key_of = {"HGG": "HGG", "LGG": "LGG"}, str
    above = pd.DataFrame(sorted(a for a in above if a[1] in classes), columns=["image", "label"])
    above.attrs["name"], table = "the names of its folders", above
    if labels:
        if not (id and label):
            raise ManifestError("layout_options: with labels, id and label name its columns.")
        classes, key_of = base.classes_of(card, "names", names), _brats_number
        table = base.find_table(folder, glob.escape(labels), {"image": id, "label": label})
        table["image"] = table["image"].map(key_of)
    elif mappings := base.files(folder, pattern="name_mapping.csv"):
        path, cases = base.the_one(mappings, folder, "the table"), {case.name for case in folders}
        years = [c for c in base.read_cells(path) if c.endswith("subject_ID")] or ["subject_ID"]
        tables = [base.read_columns(path, {"image": year, "label": "Grade"}) for year in years]
        table = max(tables, key=lambda t: t["image"].isin(cases).sum())
        table = table[~table["image"].isin(("", "NA"))]
        for row in above.merge(table, on="image").itertuples():
            if row.label_x != row.label_y:
                reason = f"in a folder {row.label_x}, but {row.label_y} in {path.name}"
                yield base.Problem(row.image, reason)
        table = pd.concat([table, above[~above["image"].isin(table["image"])]])
        table.attrs["name"] = path.name
    elif above.empty:
        graded = "BraTS 2018 to 2020 have folders HGG and LGG or name_mapping.csv: is it complete?"
        way_out = "For later years name a table in layout_options, with labels (file), id and label"
        way_out += " (its columns) and names (code: class)."
        raise ManifestError(f"{folder}: nothing tells the grades. {graded} {way_out}")
    known, cases = set(table["image"]), []
    for case, volumes in folders.items():
        patient = re.sub(r"^(BraTS-\w+-\d+)-\d+$", r"\1", case.name)
        key = next((k for k in map(key_of, (case.name, patient)) if k in known), "")
        again = re.sub(r"(?<=^BraTS2021_)\d{5}$|(?<=^BraTS-GLI-)\d{5}$", _first_number, patient)
        site = re.match(r"BraTS1[789]_([^_]+)_", case.name, re.IGNORECASE)
        if not key and "validation" in base.shown(case, folder).lower():
            yield base.Excluded(case.name, "of the validation set, whose grades are not public")
        else:
            cases.append(Case(case.name, again, key, site[1] if site else "", volumes))
    yield from _volumes(cases, table, classes, card, (modality, require, reference))


def _first_number(match: re.Match) -> str:
    return REPEATED.get(match[0], match[0])


def _brats_number(name: str) -> str:
    """What identifies a case from 2021 on, however it is written: ``00495`` or ``00495-001``."""
    match = re.fullmatch(r"(?:BraTS2021_|BraTS-\w+-)?(\d+)(?:-(\d+))?", name, re.IGNORECASE)
    if match is None:
        return name
    return f"{int(match[1]):05d}" + (f"-{int(match[2]):03d}" if match[2] else "")


def ucsf_pdgm(
    folder: Path, card: Card, *, modality: str, require: list = REQUIRED, reference: str = ""
) -> base.Items:
    """MRI volumes ``UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{T1,T1c,FLAIR,T2}[_bias].nii.gz``.

    The WHO grade is in ``*metadata*.csv`` (Calabrese et al. 2022), whose ids have three digits.
    Follow-up scans have an id of their own, or one like ``0433_FU007d``. They belong to the patient
    of the first scan.
    """
    columns = {"image": "ID", "label": "WHO CNS Grade"}
    table = base.find_table(folder, "*metadata*.csv", columns, {"age": "Age at MRI", "sex": "Sex"})
    ids = table["image"].str.replace("_FU", "FU")
    table["image"] = [re.sub(r"\d+", lambda n: n[0].zfill(4), i, count=1) for i in ids]
    known, cases, old = set(table["image"]), [], {new: old for old, new in FOLLOW_UPS.items()}
    for case, volumes in _case_folders(folder, "UCSF-PDGM-????*_nifti").items():
        sample = re.sub("_nifti$", "", case.name)
        match = re.fullmatch(r"(UCSF-PDGM-)(\d{4})(?:_?(FU\w+))?", sample)
        if match is None:
            yield base.Problem(case.name, "not named like UCSF-PDGM-0004_nifti")
            continue
        start, number, days = match[1], match[2], match[3] or ""
        keys = [start + number + days, start + old.get(number + days, number + days)]
        key = next((key for key in keys if key in known), keys[0])
        if days and key not in known:
            yield base.Excluded(sample, "a follow-up scan without a grade of its own")
        else:
            patient = start + FOLLOW_UPS.get(number, number)[:4]
            cases.append(Case(sample, patient, key, "", volumes))
    grades = {grade: f"grade_{grade}" for grade in "234"}
    yield from _volumes(cases, table, grades, card, (modality, require, reference))


def tcga_lgg(
    folder: Path,
    card: Card,
    *,
    modality: str,
    require: list = REQUIRED,
    reference: str = "",
    labels: str = "histology",
) -> base.Items:
    """MRI volumes ``TCGA_CS_4941[_<date>]/…_{t1,t1ce,flair,seg}.nii.gz`` of lower-grade gliomas.

    ``labels``: the histologic grade of ``data.csv`` (TCGA-LGG, Pedano et al. 2016; Buda et al.
    2019) or the WHO 2021 grade of ``tcga_2021_who_labels.csv``. ``data.csv`` codes the sex as 1
    (female) or 2 (male): TCGA's clinical table agrees for all 107 patients that both name.
    """
    if labels == "histology":
        file, image, label = "data.csv", "Patient", "neoplasm_histologic_grade"
        also = {"age": "age_at_initial_pathologic", "sex": "gender"}
        grades = {"1": "grade_II", "2": "grade_III"}
    elif labels == "who2021":
        file, image, label = "tcga_2021_who_labels.csv", "case_id", "WHO_CNS5_grade"
        also = {"age": "Age (years at diagnosis)"}
        grades = {f"Grade {grade}": f"grade_{grade}" for grade in "234"}
    else:
        raise ManifestError(unknown("grading (labels)", labels, ["histology", "who2021"]))
    table, cases = base.find_table(folder, file, {"image": image, "label": label}, also), []
    for case, volumes in _case_folders(folder, "TCGA[_-]??[_-]*").items():
        match = re.match(r"TCGA_([^_]+)_[^_]+", case.name.replace("-", "_"))
        patient, site = (match[0], match[1]) if match else (case.name, "")
        cases.append(Case(case.name, patient, patient, site, volumes))
    table["image"] = table["image"].str.replace("-", "_")
    if labels == "who2021":  # a row a slide, of all gliomas of TCGA
        table = table[table["image"].isin([case.key for case in cases])]
        table = table.drop_duplicates(["image", "label"])
    if "sex" in table:
        table["sex"] = table["sex"].replace({"1": "female", "2": "male"})
    yield from _volumes(cases, table, grades, card, (modality, require, reference))
