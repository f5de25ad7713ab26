"""The embeddings of a task: a pack embedded by a frozen backbone, with the index of its images.

A folder holds what :mod:`medlib.core.features` writes and the pack's ``index.csv``, one row for
each embedding. ``meta.json`` also says how the pack was made.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib import files
from medlib.core import backbones, features
from medlib.core.settings import Extraction
from medlib.data import manifest
from medlib.data.packs import Pack, recorded
from medlib.environment import environment, peak_memory_bytes

LOOKED_AT = 8  # images of which local features are kept
OF_PACK = ("interpolation", "geometry", "mask_at_test_time")  # of a pack's meta; written last


class Features(NamedTuple):
    """Embeddings (n, d) float32, their index (n rows) and how they were made."""

    embeddings: np.ndarray
    index: pd.DataFrame
    meta: dict


def extract(
    pack: Pack, backbone: str, folder: Path | str, seed: int = 0, settings: Extraction | None = None
) -> Features:
    """Embed all images of a pack with a frozen backbone, and cache the result in ``folder``.

    A cache that matches is returned as it is. Raises ValueError for images that were resized in
    another way than the backbone's own, and what :func:`medlib.core.features.extract` raises.
    """
    wanted = backbones.get(backbone).preprocessing["interpolation"]
    if (given := pack.meta["interpolation"]) != wanted:
        raise ValueError(f"{backbone} wants {wanted} images, these are {given}.")
    asked = {"images_hash": pack.meta["hash"], "look_at": looked_at(pack.index)}
    _, meta = features.extract(pack.images, backbone, folder, seed=seed, settings=settings, **asked)
    if not meta.keys() >= set(OF_PACK):
        index = Path(folder) / "index.csv"
        files.save_csv(index, pack.index)
        # Last: without these the folder counts as incomplete.
        meta |= {"peak_memory_bytes": peak_memory_bytes()} | environment()
        meta |= {"geometry": "squash"} | {n: pack.meta[n] for n in OF_PACK if n in pack.meta}
        meta["sha256"][index.name] = files.file_sha256(index)
        files.save_json(Path(folder) / "meta.json", meta)
    return load(folder)


def looked_at(index: pd.DataFrame) -> np.ndarray:
    """The rows of about LOOKED_AT images, spread over each class: the same for every backbone."""
    classes, rows = np.unique(index["label"]), []
    for name in classes:
        members = np.flatnonzero(index["label"] == name)
        inner = np.linspace(0, len(members) - 1, max(1, LOOKED_AT // len(classes)) + 2)[1:-1]
        rows += list(members[np.unique(inner.astype(int))])
    return np.array(rows)


def load(folder: Path | str, pack_hash: str | None = None) -> Features:
    """Open a cache; with ``pack_hash``, check that it was made from that pack.

    Raises FileNotFoundError when it is not there or not complete, ValueError when it is stale or
    damaged.
    """
    folder, meta = Path(folder), recorded(folder)
    if not meta.keys() >= set(OF_PACK):
        way_out = "Run notebook 02_extract_features for this task and backbone."
        raise FileNotFoundError(f"There are no embeddings in {folder}. {way_out}")
    if pack_hash is not None and meta["images"] != pack_hash:
        way_out = "run notebook 02_extract_features for this task and backbone again."
        other = "are of other images than those prepared now"
        raise ValueError(f"The embeddings in {folder} {other}: {way_out}")
    if damaged := files.damaged(folder, meta["sha256"]):
        way_out = "Remove the folder and run notebook 02_extract_features again."
        raise ValueError(f"Damaged or missing: {', '.join(damaged)}. {way_out}")
    index = manifest.read_samples(folder / "index.csv")
    return Features(np.load(folder / "embeddings.npy", mmap_mode="r"), index, meta)
