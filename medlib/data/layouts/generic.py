"""Layouts of any data set: a folder per class, MedMNIST."""

import math
import re
import zipfile
from pathlib import Path

import numpy as np

from medlib.core.splits import SPLITS
from medlib.data.cards import Card
from medlib.data.layouts import base, patients
from medlib.data.layouts.mri import modalities
from medlib.errors import ManifestError, unknown

MAX_LABELS = 10**7  # more are refused: the header of a MedMNIST file may claim any number
# A mask or another drawing has one of these words in its name, or lies in a folder called so.
WORD = "(mask|seg|segmentation|superpixel|label|gt|overlay|contour|annotation|roi)s?"
DRAWN = re.compile(rf"(.+?)[ _-]+{WORD}([ _-]?\d+)?", re.IGNORECASE)
FOLDER_OF_DRAWN = re.compile(rf"(.+[ _-])?{WORD}", re.IGNORECASE)


def folder_per_class(
    folder: Path, card: Card, *, patient: str = "", classes: dict | None = None
) -> base.Items:
    """``<class>/…`` or ``{train,val,test}/<class>/…``: images, or volumes where the card has them.

    ``patient`` is a regular expression: what it (or its first group) finds in a file's name is the
    patient. With a ``/`` in it, it is searched in the whole path below ``folder``. Without it, one
    file is one patient. ``classes`` maps names of folders to classes.
    """
    pattern = patients.pattern("patient", patient)
    paths = base.files(folder, base.VOLUMES if card.volumes else base.IMAGES)
    stems = {(path.parent, base.stem(path.name).lower()) for path in paths}
    placed = yield from base.in_class_folders(paths, folder, card, classes)
    for path, place in placed.items():
        shown = base.shown(path, folder)
        whose, drawn = patients.of(pattern, shown), DRAWN.fullmatch(base.stem(path.name).lower())
        if card.volumes and "mask" in modalities([path]):
            yield base.Excluded(shown, "a mask, by its name")
        elif drawn and (path.parent, drawn[1]) in stems:
            yield base.Excluded(shown, "a mask or a drawing of the image beside it, by its name")
        elif any(FOLDER_OF_DRAWN.fullmatch(part) for part in place.below):
            yield base.Excluded(shown, "a mask or a drawing, by its folder")
        elif not whose:
            yield base.Problem(shown, patients.none(patient))
        else:
            sample = base.stem(shown.replace("/", "-"))
            whose = whose if patient else sample
            yield base.row(sample, path, place.label, patient_id=whose, split=place.split)
    if not patient:
        yield from patients.one_image_each(base.shown(path, folder) for path in paths)


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
