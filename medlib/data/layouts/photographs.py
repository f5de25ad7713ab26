"""Layouts of radiographs and photographs: Kermany, iChallenge, HAM10000, ISIC 2017."""

import re
from pathlib import Path

import pandas as pd

from medlib.data.cards import Card
from medlib.data.layouts import base
from medlib.errors import ManifestError, listed

PATIENT = re.compile(r"(person\d+|(?:NORMAL2-)?IM-\d+)[-_]|(?:NORMAL|BACTERIA|VIRUS)-(\d+)-")
ANNOTATIONS = ("annotation", "mask", "lesion", "disc", "fovea")  # in names of their folders
NAME_COLUMNS = ("imgname", "image", "filename", "name")
LABEL_COLUMNS = ("label", "amd label", "pm label", "amd")
HAM_TABLES = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
LESIONS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def kermany(folder: Path, card: Card) -> base.Items:
    """Paediatric chest radiographs, ``{train,test}/{NORMAL,PNEUMONIA}/`` (Kermany et al. 2018).

    Kaggle's and Mendeley's archives can be read. Kaggle's has ``chest_xray/chest_xray/`` once more
    within, and 16 images in ``val``; Mendeley's has ``CellData/chest_xray/``. The patient is in the
    file name. ``person7_…`` and ``IM-0115-…`` restart in the test folder, so the folder is part of
    the patient's id. Nothing published says whether equal numbers are the same child. In Mendeley's
    later versions, ``BACTERIA-1008087-0001`` is one patient in any folder.
    """
    roots = [p for p in base.folders(folder) if (p / "train").is_dir() and (p / "test").is_dir()]
    # Beside the radiographs, Mendeley's archive has retinal scans: other classes.
    held = {root: {p.name.lower() for p in (root / "train").iterdir()} for root in roots}
    fitting = [root for root in roots if held[root] >= set(card.classes)]
    root = base.the_one(fitting or roots, folder, "a folder with train and test")
    for other in sorted(set(roots) - {root}):
        reason = f"another train and test; those of {base.shown(root, folder.parent)} are read"
        yield base.Excluded(base.shown(other, folder), reason)
    for path in base.files(root, base.IMAGES):
        split = path.relative_to(root).parts[0]
        sample, match = f"{split}-{base.stem(path.name)}", PATIENT.match(path.name)
        if split == "val":
            reason = "in Kaggle's val folder: its patients are in train too, and 16 cannot validate"
            yield base.Excluded(sample, reason)
        elif split in ("train", "test") and match is None:
            yield base.Problem(sample, "no patient number in the file name")
        elif split in ("train", "test"):
            whose, label = match[2] or f"{split}-{match[1]}", path.parent.name.lower()
            yield base.row(sample, path, label, patient_id=whose, split=split)


def ichallenge(
    folder: Path, card: Card, *, letters: dict, folders: dict | None = None
) -> base.Items:
    """Fundus photographs of iChallenge-PM (PALM) and iChallenge-AMD (ADAM).

    ``*Training400`` trains, ``*Validation400`` is the test set. The class of a training image comes
    from its name's first letter (``letters``: P → pathologic_myopia). If that gives none, it comes
    from its folder (``folders``: Non-AMD → other). The class of a validation image comes from a
    table: 0, 1, … in the order of the card's classes. One image is one patient.
    """
    by_letter = {k.upper(): v for k, v in base.classes_of(card, "letters", letters).items()}
    by_folder = base.classes_of(card, "folders", folders).items() if folders else ()
    by_folder = {k.lower(): v for k, v in by_folder}
    for path in _photographs(folder, "*Training400"):
        sample, within = base.stem(path.name), path.parent.name
        letter = path.name[0].upper() if re.match(r"[A-Za-z]\d", path.name) else ""
        told = {by_letter.get(letter), by_folder.get(within.lower())} - {None}
        if len(told) == 1:
            yield base.row(sample, path, told.pop(), split="train")
        elif told:
            yield base.Problem(sample, f"its name and its folder {within} tell different classes")
        else:
            yield base.Problem(sample, f"neither its name nor its folder {within} tells a class")
    photos = _photographs(folder, "*Validation400")
    codes = {str(code): label for code, label in enumerate(card.classes)}
    yield from base.labelled(photos, _validation_table(folder, photos), codes, split="test")


def _photographs(folder: Path, pattern: str) -> list[Path]:
    def is_drawn(path: Path) -> bool:
        return any(word in base.shown(path, folder).lower() for word in ANNOTATIONS)

    roots = [p for p in base.folders(folder, pattern) if not is_drawn(p)]
    root = base.the_one(roots, folder, f"the folder {pattern}")
    return [path for path in base.files(root, base.IMAGES) if not is_drawn(path.parent)]


def _validation_table(folder: Path, photos: list[Path]) -> pd.DataFrame:
    """The first table that names validation images and labels; tables beside them come first."""
    beside, ids = {p.parent for p in photos}, {base.stem(p.name) for p in photos}
    looked_at = []
    for path in sorted(base.files(folder, base.TABLES), key=lambda p: p.parent not in beside):
        try:
            cells = base.read_cells(path)
        except ManifestError as error:
            looked_at.append(str(error))
            continue
        columns = {column.lower(): column for column in cells}
        image = next((columns[c] for c in NAME_COLUMNS if c in columns), None)
        label = next((columns[c] for c in LABEL_COLUMNS if c in columns), None)
        if image and label and cells[image].map(base.stem).isin(ids).any():
            table = base.read_columns(path, {"image": image, "label": label})
            table["image"] = table["image"].map(base.stem)
            return table
        looked_at.append(f"{base.shown(path, folder)}: {', '.join(columns.values())}")
    raise ManifestError(
        f"{folder}: the table of validation labels is missing: is the download complete? It names "
        f"the images in a column {' or '.join(NAME_COLUMNS)}, and their labels in a column "
        f"{' or '.join(LABEL_COLUMNS)}. Looked at:\n{listed(looked_at or ['(there is no table)'])}"
    )


def ham10000(folder: Path, card: Card) -> base.Items:
    """Dermoscopy, from Dataverse or Kaggle, or as ISIC 2018 Task 3 (Tschandl et al. 2018).

    Dataverse and Kaggle have ``HAM10000_metadata`` and folders ``ham10000_images*`` (Kaggle ships
    every image twice). ISIC has a one-hot ground truth, lesion groupings and one folder of images.
    A lesion must not cross a split, so ``patient_id`` is the lesion.
    """
    metadata = [p for p in base.files(folder) if base.like(p, *HAM_TABLES)]
    truth = base.files(folder, pattern="*Training_GroundTruth.csv")
    if bool(metadata) == bool(truth):
        problem = "are both there: keep one" if truth else "are missing: is the download complete?"
        tables = "HAM10000_metadata and ISIC2018_Task3_Training_GroundTruth.csv"
        raise ManifestError(f"{folder}: the tables {tables} {problem}")
    path = base.the_one(metadata or truth, folder, "the table of labels")
    if metadata:
        images = _images_in(folder, "ham10000_images*")
        columns = {"image": "image_id", "patient_id": "lesion_id", "label": "dx"}
        also = {"age": "age", "sex": "sex", "body_part": "localization"}
        table = base.read_columns(path, columns, also)
        table["label"] = table["label"].str.lower()
    else:
        images = _images_in(folder, "ISIC2018_Task3_Training_Input")
        table = base.read_columns(path, {"image": "image"} | {c: c.upper() for c in LESIONS})
        table["label"] = base.one_hot(table, LESIONS)
        columns = {"image": "image", "patient_id": "lesion_id"}
        lesions = base.find_table(folder, "*LesionGroupings.csv", columns)
        ids = (base.stem(path.name) for path in images)
        yield from base.match(lesions, {name: name for name in ids}, "lesion")
        table = _with(table, lesions)
    yield from base.labelled(images, table, {name: name for name in LESIONS})


def _images_in(folder: Path, pattern: str) -> list[Path]:
    """The images in folders of such a name; masks and superpixels are none."""
    roots = base.folders(folder, pattern)
    if not roots:
        raise ManifestError(f"{folder}: the folder {pattern} is missing: is the download complete?")
    drawn = ("_segmentation", "_superpixels")
    images = {path for root in roots for path in base.files(root, base.IMAGES)}
    return sorted(path for path in images if not base.stem(path.name).lower().endswith(drawn))


def _with(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """``table`` with what ``other`` says of its images."""
    joined = table.merge(other.drop_duplicates("image"), on="image", how="left").fillna("")
    joined.attrs["name"] = table.attrs["name"]
    return joined


def isic2017(folder: Path, card: Card) -> base.Items:
    """Dermoscopy of ISIC 2017 Part 3, ``ISIC-2017_{Training,Validation,Test_v2}_…`` (Codella 2018).

    The ground truth has columns melanoma and seborrheic_keratosis. An image that is neither is a
    nevus. It is not known which images show one lesion, so one image is one patient.
    """
    columns = {name: name for name in ("melanoma", "seborrheic_keratosis")}
    for part, split in {"Training": "train", "Validation": "val", "Test_v2": "test"}.items():
        photos = f"ISIC-2017_{part}_Data"
        if split == "val" and not base.folders(folder, photos):
            continue  # then validation images are drawn from training
        truth = f"ISIC-2017_{part}_Part3_GroundTruth.csv"
        table = base.find_table(folder, truth, {"image": "image_id"} | columns)
        table["label"] = base.one_hot(table, columns)
        if base.files(folder, pattern=(metadata := f"{photos}_metadata.csv")):
            also = {"age": "age_approximate", "sex": "sex"}
            table = _with(table, base.find_table(folder, metadata, {"image": "image_id"}, also))
        classes = {"none": "nevus"} | columns
        yield from base.labelled(_images_in(folder, photos), table, classes, split=split)
