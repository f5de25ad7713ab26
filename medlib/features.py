"""Frozen embedding extraction, and its cache.

Embeddings are extracted once per task and backbone; every head, seed and label fraction reads them.
A cache is a folder: ``embeddings.npy`` (n, d) float32, ``index.csv`` (a row per embedding, as the
pack's) and ``meta.json``, with a hash of all that the embeddings depend on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from medlib import artifacts, backbones
from medlib.images import Pack

VERSION = 2  # raise when the same images and weights would give other embeddings or meta


class Features(NamedTuple):
    """Embeddings (n, d) float32, their index (n rows) and how they were made."""

    embeddings: np.ndarray
    index: pd.DataFrame
    meta: dict


def device_name(device: str = "auto") -> str:
    """``"auto"`` as what this machine has: cuda or cpu; any other name as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def extract(
    pack: Pack,
    backbone: str,
    folder: Path | str,
    *,
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
) -> Features:
    """Embed all images of a pack with a frozen backbone, and cache the result in ``folder``.

    A cache that is there and matches is returned as it is. ``seed`` initialises the weights of a
    random control arm; pretrained arms do not depend on it. Runs in float32. Raises what
    :func:`medlib.backbones.build` raises; nothing is left behind then.
    """
    row, folder, start = backbones.get(backbone), Path(folder), time.perf_counter()
    if pack.meta["interpolation"] != row.preprocessing["interpolation"]:
        raise ValueError(
            f"{backbone} wants {row.preprocessing['interpolation']} images, these are "
            f"{pack.meta['interpolation']}."
        )
    size = pack.meta["size"]
    model, digest = backbones.build(backbone, size, seed)
    depends_on = {
        "version": VERSION,
        "images": pack.meta["hash"],
        "backbone": backbone,
        "weights_digest": digest,
        "image_size": size,
        "precision": "float32",
    }
    wanted = artifacts.content_hash(depends_on)
    meta_file = folder / "meta.json"
    if meta_file.is_file() and artifacts.read_json(meta_file).get("hash") == wanted:
        return load(folder)

    device = device_name(device)
    model = model.to(device)
    n = len(pack.images)
    meta_file.unlink(missing_ok=True)  # until the new one is there, not complete
    bar = tqdm(total=n, desc=f"embedding with {backbone}", unit="image")
    with artifacts.replacing(folder / "embeddings.npy") as temporary, torch.inference_mode(), bar:
        embeddings = None
        for first in range(0, n, batch_size):
            batch = torch.from_numpy(np.array(pack.images[first : first + batch_size]))
            normalised = backbones.normalise(row, batch.to(device))
            values = backbones.embed(row, model, normalised).float().cpu().numpy()
            if embeddings is None:
                embeddings = np.lib.format.open_memmap(
                    temporary, "w+", np.float32, (n, values.shape[1])
                )
            embeddings[first : first + len(values)] = values
            bar.update(len(values))
        if not np.isfinite(embeddings).all():
            raise FloatingPointError(f"{backbone} gives embeddings that are not finite.")
        embeddings.flush()
    artifacts.save_csv(folder / "index.csv", pack.index)
    meta = depends_on | {
        "hash": wanted,
        "interpolation": pack.meta["interpolation"],
        "pretraining": row.pretraining,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": device,
        "seconds": round(time.perf_counter() - start, 3),
    }
    artifacts.save_json(meta_file, meta | artifacts.environment())
    return load(folder)


def load(folder: Path | str, pack_hash: str | None = None) -> Features:
    """Open a cache; with ``pack_hash``, check that it was made from that pack.

    Raises FileNotFoundError when it is not there, ValueError when it is stale.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(
            f"There are no embeddings in {folder}. Run notebook 02_extract_features for this task "
            "and backbone."
        )
    meta = artifacts.read_json(folder / "meta.json")
    if pack_hash is not None and meta["images"] != pack_hash:
        raise ValueError(
            f"The embeddings in {folder} are of other images than those prepared now: run notebook "
            "02_extract_features for this task and backbone again."
        )
    index = artifacts.read_samples(folder / "index.csv")
    return Features(np.load(folder / "embeddings.npy", mmap_mode="r"), index, meta)
