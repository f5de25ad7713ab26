"""Packs: all images of a task, decoded and resized once, in one uint8 array.

A pack is a folder: ``images.npy`` (N×H×W×3, uint8), ``digests.npy`` (N, of each image),
``index.csv`` (one row per image, in the same order: sample_id, patient_id, label, split or fold,
slice) and ``meta.json``. A volume gives one image per slice. Packs are written by
:mod:`medlib.data.packing`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib import files
from medlib.data import manifest
from medlib.data.cards import GreyValues, Volumes
from medlib.errors import ManifestError

VERSION = 5  # raise it when the same files would give other pixels


class Pack(NamedTuple):
    """Packed images of a task: ``images`` N×H×W×3 uint8 (memory-mapped), ``index`` N rows."""

    images: np.ndarray
    index: pd.DataFrame
    meta: dict


class Drawn(NamedTuple):
    """How a pack's images are drawn: their size in pixels, and what `decoding.resize` takes.

    ``grey_values`` are the card's, and used when the files are decoded.
    """

    size: int
    interpolation: str
    geometry: str = "squash"
    grey_values: GreyValues = ""


class Checked(np.memmap):
    """A memory-mapped array of images that knows the digest of each image.

    The core checks an image when it reads it for the first time
    (:func:`medlib.core.fast.transfer.take`).
    """

    digests: np.ndarray | None = None  # (n,) uint32; a part of the array has none
    sound: np.ndarray  # (n,) bool: which images have been checked

    @classmethod
    def open(cls, path: Path | str, digests: np.ndarray) -> "Checked":
        """Memory-map a file of images (n, …) uint8. Raises ValueError if it is not whole."""
        images = np.load(path, mmap_mode="r").view(cls)
        if len(images) != len(digests):
            raise ValueError(f"{path} holds {len(images)} images, not {len(digests)}")
        images.digests, images.sound = digests, np.zeros(len(digests), dtype=bool)
        return images

    def check(self, rows: np.ndarray, read: np.ndarray) -> None:
        """Compare the images that were read from ``rows`` with the digests of these rows.

        Raises ValueError that names the first damaged image.
        """
        if self.digests is None:
            return
        new = np.flatnonzero(~self.sound[rows])
        if len(new) < len(rows):  # else nothing is copied
            rows, read = rows[new], read[new]
        damaged = rows[image_digests(read) != self.digests[rows]]
        if len(damaged):
            way_out = "Remove its folder and run notebook 01_prepare_data again."
            raise ValueError(f"Image {damaged[0]} in {self.filename} is damaged. {way_out}")
        self.sound[rows] = True


def image_digests(images: np.ndarray) -> np.ndarray:
    """A digest (n,) uint32 of each image (n, H, W, 3) uint8: the CRC-32 of its sum over rows.

    The CRC-32 of a whole image would take three times as long as reading it. Zeros, changed
    values and missing bytes change the sum. Rows that are swapped within an image do not.
    """
    n, height, width, channels = images.shape
    rows = np.ascontiguousarray(images).reshape(n, height, width * channels)
    widest = next(kind for kind in ("u8", "u4", "u2", "u1") if not rows.shape[2] % int(kind[1]))
    sums = rows.view(widest).sum(axis=1, dtype=np.uint64)  # wraps: modulo 2**64
    return np.array([zlib.crc32(one) for one in sums], np.uint32)


def pack_hash(rows: pd.DataFrame, how: Drawn, settings: Volumes | None) -> str:
    """What a pack depends on: the manifest's rows and how they become images."""
    return files.content_hash(rows, [VERSION, *how, settings and settings.model_dump()])


def recorded(folder: Path | str) -> dict:
    """Read the ``meta.json`` of a pack or of embeddings; {} if it is missing or unreadable."""
    return files.read_record(Path(folder) / "meta.json")


def load(
    folder: Path | str, rows: pd.DataFrame | None = None, settings: Volumes | None = None
) -> Pack:
    """Open a pack; with the manifest's ``rows``, check that it was made from them.

    ``settings`` are the card's ``volumes``. Raises FileNotFoundError when there is no pack,
    ManifestError when it is stale or damaged. Each image is checked when it is first read.
    """
    folder, meta = Path(folder), recorded(folder)
    if "hash" not in meta:
        size, _, interpolation = folder.name.partition("-")
        way_out = f"with {size} among its image_sizes (interpolation {interpolation})."
        none = f"There are no packed images in {folder}."
        raise FileNotFoundError(f"{none} Run notebook 01_prepare_data for this task {way_out}")
    how = Drawn(*(meta[name] for name in Drawn._fields if name in meta))
    if rows is not None and meta["hash"] != pack_hash(rows, how, settings):
        way_out = "run notebook 01_prepare_data for this task again."
        raise ManifestError(f"The images in {folder} were packed from another manifest: {way_out}")
    problem = ", ".join(files.damaged(folder, meta["sha256"]))
    if not problem:
        try:
            images = Checked.open(folder / "images.npy", np.load(folder / "digests.npy"))
            return Pack(images, manifest.read_samples(folder / "index.csv"), meta)
        except (OSError, ValueError, EOFError) as error:
            problem = str(error)
    way_out = f"Remove {folder} and run notebook 01_prepare_data for this task again."
    raise ManifestError(f"The pack is damaged: {problem}. {way_out}")
