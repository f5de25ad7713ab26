"""Packs: all images of a task, decoded and resized once, in one uint8 array.

A pack is a folder: ``images.npy`` (N×H×W×3, uint8), ``index.csv`` (one row per image, in the same
order: sample_id, patient_id, label, split or fold, slice) and ``meta.json``. A volume gives one
image per slice. Packs are written by :mod:`medlib.data.packing`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib import files
from medlib.data import manifest
from medlib.data.cards import Volumes
from medlib.errors import ManifestError

VERSION = 3  # raise when the same files would come out as other pixels


class Pack(NamedTuple):
    """Packed images of a task: ``images`` N×H×W×3 uint8 (memory-mapped), ``index`` N rows."""

    images: np.ndarray
    index: pd.DataFrame
    meta: dict


def pack_hash(rows: pd.DataFrame, size: int, interpolation: str, settings: Volumes | None) -> str:
    """What a pack depends on: the manifest's rows and how they become images."""
    how = settings and settings.model_dump()
    return files.content_hash(rows, [VERSION, size, interpolation, how])


def recorded(folder: Path | str) -> dict:
    """What is recorded of the pack or embeddings in a folder; empty where there are none."""
    meta = Path(folder) / "meta.json"
    return files.read_json(meta) if meta.is_file() else {}


def load(
    folder: Path | str, rows: pd.DataFrame | None = None, settings: Volumes | None = None
) -> Pack:
    """Open a pack; with the manifest's ``rows``, check that it was made from them.

    ``settings`` are the card's ``volumes``. Raises FileNotFoundError when there is no pack,
    ManifestError when it is stale.
    """
    folder, meta = Path(folder), recorded(folder)
    if "hash" not in meta:
        size, _, interpolation = folder.name.partition("-")
        way_out = f"with {size} among its image_sizes (interpolation {interpolation})."
        none = f"There are no packed images in {folder}."
        raise FileNotFoundError(f"{none} Run notebook 01_prepare_data for this task {way_out}")
    how = meta["size"], meta["interpolation"], settings
    if rows is not None and meta["hash"] != pack_hash(rows, *how):
        way_out = "run notebook 01_prepare_data for this task again."
        raise ManifestError(f"The images in {folder} were packed from another manifest: {way_out}")
    index = manifest.read_samples(folder / "index.csv")
    return Pack(np.load(folder / "images.npy", mmap_mode="r"), index, meta)
