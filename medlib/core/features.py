"""Frozen embedding extraction, and its cache.

Embeddings are extracted once per task and backbone; every head, seed and label fraction reads them.
A cache is a folder: ``embeddings.npy`` (n, d) float32, ``index.csv`` (a row per embedding, as the
pack's) and ``meta.json``, with a hash of all that the embeddings depend on. While it is being made
there are ``embeddings.partial.npy`` and ``progress.json`` instead, from which a killed extraction
goes on.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from medlib import files
from medlib.core import backbones, networks
from medlib.core.fast import fusing
from medlib.core.loading import batches, device_name, take
from medlib.data.packs import Pack
from medlib.errors import unknown

VERSION = 5  # raise when the same images and weights would give other embeddings or meta
PRECISIONS = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
# The least cosine similarity to float32 that a lower precision must keep for every image. It is
# seen on a sample; what is chosen by itself must keep five times the distance there.
SIMILAR, SURELY_SIMILAR, SAMPLE = 0.999, 0.9998, 64
# Compiling takes 8 to 50 s. On a CPU it saves a tenth with ResNets and nothing, or less, with all
# else; on an H200 it saves a vision transformer 10 s in a million images (benchmarks/README.md).
COMPILE_FROM = {"cpu": math.inf, "cuda": 1_000_000}  # images
CPU_BATCH = 16  # from here on oneDNN is used in one thread, too; larger ones gain nothing
LOOKED_AT = 8  # images of which it is kept what the network sees where
PIECE = 64  # batches that are written together: a kill loses no more than these


class Features(NamedTuple):
    """Embeddings (n, d) float32, their index (n rows) and how they were made."""

    embeddings: np.ndarray
    index: pd.DataFrame
    meta: dict


def precision_name(precision: str, device: str) -> str:
    """``"auto"`` as what is tried first on the device: float16 on CUDA, float32 on a CPU.

    Float16 is as fast there as bfloat16, and has eight times its resolution.

    Raises ValueError for an unknown precision, and for a lower one on a CPU, which has no units for
    it and would be slower.
    """
    cuda = torch.device(device).type == "cuda"
    if precision == "auto":
        return "float16" if cuda else "float32"
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, ["auto", *PRECISIONS]))
    if precision != "float32" and not cuda:
        raise ValueError(f"precision={precision!r} is for GPUs; on {device} use 'float32'.")
    return precision


def embedder(
    row: backbones.Backbone, model: torch.nn.Module, compiled: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from uint8 images (B, H, W, 3) on the model's device to float32 embeddings."""
    dtype = next(model.parameters()).dtype

    def embed(images: torch.Tensor) -> torch.Tensor:
        return networks.embed(row, model, networks.normalise(row, images).to(dtype))

    if not compiled:
        return embed
    torch.compiler.reset()  # what was compiled for other networks counts towards a limit
    # Weights are constants here: they are laid out, and batch norm is folded in, beforehand.
    return torch.compile(embed, dynamic=False, options={"freezing": True})


def _compiled(row, model, batch, plain: Callable) -> tuple[Callable, bool]:
    """The compiled function and True; ``plain`` and False where nothing can be compiled."""
    embed = embedder(row, model, compiled=True)
    try:
        embed(batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # there is no C++ compiler, most of all
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"torch.compile does not work here, going on without: {reason}", stacklevel=4)
        return plain, False
    return embed, True


def find_batch_size(embed: Callable, images: np.ndarray, device: str) -> int:
    """The batch size for a device: fixed on a CPU; on a GPU, what half of its free memory holds."""
    if torch.device(device).type != "cuda":
        return CPU_BATCH
    few = torch.from_numpy(take(images, np.arange(min(8, len(images))))).to(device)
    embed(few)  # the first call allocates what later ones share
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    embed(few)
    each = (torch.cuda.max_memory_allocated(device) - before) / len(few)
    fitting = 0.5 * torch.cuda.mem_get_info(device)[0] / each
    return int(2 ** np.clip(np.floor(np.log2(fitting)), 0, 9))


def suitable(
    row: backbones.Backbone, model: torch.nn.Module, asked: str, batch: torch.Tensor
) -> tuple[torch.nn.Module, dict]:
    """The model in the precision to compute in; that precision and the cosine similarity it keeps.

    The similarity is the least to float32 in a batch of uint8 images (B, H, W, 3). ``asked`` "auto"
    is float32 for a network that does not bear less. Raises FloatingPointError where a precision
    that was asked for is not good enough.
    """
    precision = precision_name(asked, batch.device)
    if precision == "float32":
        return model, {"precision": precision, "cosine_to_float32": None}
    lower = fusing.lowered(model, PRECISIONS[precision], networks.normalise(row, batch[:1]))
    found = [embedder(row, either)(batch) for either in (lower, model)]
    least = functional.cosine_similarity(*found).min().item()
    if asked == "auto" and not least >= SURELY_SIMILAR:
        precision, lower = "float32", model
    elif not least >= SIMILAR:
        raise FloatingPointError(
            f"{row.name} in {precision}: embeddings differ from those in float32 (cosine "
            f"similarity {least:.4f}, at least {SIMILAR} is asked for). Set precision='float32'."
        )
    return lower, {"precision": precision, "cosine_to_float32": least}


def extract(
    pack: Pack,
    backbone: str,
    folder: Path | str,
    *,
    batch_size: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compiled: bool | None = None,
    seed: int = 0,
) -> Features:
    """Embed all images of a pack with a frozen backbone, and cache the result in ``folder``.

    A cache that is there and matches is returned as it is; one that was interrupted is gone on
    with. ``seed`` initialises the weights of a random control arm; pretrained arms do not depend on
    it. ``batch_size`` 0 finds one; ``compiled`` None compiles where it pays
    (:data:`COMPILE_FROM`); ``precision`` as in :func:`precision_name`, where "auto" goes back to
    float32 for a network that does not bear less, and the meta says so. Raises what
    :func:`medlib.backbones.build` raises, and FloatingPointError for embeddings that are not
    finite or, in a lower precision that was asked for, not those of float32.
    """
    row, folder, start = backbones.get(backbone), Path(folder), time.perf_counter()
    if pack.meta["interpolation"] != row.preprocessing["interpolation"]:
        raise ValueError(
            f"{backbone} wants {row.preprocessing['interpolation']} images, these are "
            f"{pack.meta['interpolation']}."
        )
    device = device_name(device)
    tried, size = precision_name(precision, device), pack.meta["size"]
    model, digest = networks.build(backbone, size, seed)
    depends_on = {
        "version": VERSION,
        "images": pack.meta["hash"],
        "backbone": backbone,
        "weights_digest": digest,
        "image_size": size,
        "precision": tried,
    }
    wanted = files.content_hash(depends_on)
    meta_file = folder / "meta.json"
    if meta_file.is_file() and files.read_json(meta_file).get("hash") == wanted:
        return load(folder)

    meta_file.unlink(missing_ok=True)  # until the new one is there, not complete
    model = fusing.place(model, device)
    _write_maps(pack, row, model, folder)
    made = _write(pack.images, row, model, folder, wanted, precision, compiled, batch_size)
    files.save_csv(folder / "index.csv", pack.index)
    meta = depends_on | {
        "hash": wanted,
        "interpolation": pack.meta["interpolation"],
        "pretraining": row.pretraining,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": device,
        **made,
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory_bytes": files.peak_memory_bytes(),
    }
    files.save_json(meta_file, meta | files.environment())
    (folder / "progress.json").unlink()
    return load(folder)


@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)  # TF32 has 10 bits
def _write(images, row, model, folder, wanted, precision, compiled, batch_size) -> dict:
    """Write ``embeddings.npy`` in pieces, from where ``progress.json`` says; returns how."""
    device, n = str(next(model.parameters()).device), len(images)
    spread = np.linspace(0, n - 1, min(SAMPLE, n)).astype(np.int64)
    sample = next(batches(images, [spread], device))
    model = fusing.fold_scales(model, networks.normalise(row, sample[:1]))
    model, how = suitable(row, model, precision, sample)
    embed = embedder(row, model)
    batch_size = batch_size or find_batch_size(embed, images, device)
    first = next(batches(images, [np.arange(min(batch_size, n))], device))
    if compiled is None:
        compiled = n >= COMPILE_FROM[torch.device(device).type]
    if compiled:
        embed, compiled = _compiled(row, model, first, embed)

    partial, progress = folder / "embeddings.partial.npy", folder / "progress.json"
    done = _rows_done(partial, progress, wanted)
    if not done:
        progress.unlink(missing_ok=True)  # it may speak of other embeddings
    parts = [np.arange(i, min(i + batch_size, n)) for i in range(done, n, batch_size)]
    piece, filled = None, 0
    start, left = time.perf_counter(), n - done
    with tqdm(total=n, initial=done, desc=f"embedding with {row.name}", unit="image") as bar:
        for number, batch in enumerate(batches(images, parts, device), start=1):
            count, missing = len(batch), len(first) - len(batch)
            if compiled and missing:  # another shape would be compiled anew
                batch = functional.pad(batch, (0, 0) * 3 + (0, missing))
            made = embed(batch)[:count]
            if piece is None:  # one block: small ones would break up the memory that batches reuse
                piece = made.new_empty(PIECE * len(first), made.shape[1])
            piece[filled : filled + count] = made
            filled += count
            bar.update(count)
            if number % PIECE == 0 or number == len(parts):
                values = piece[:filled].cpu().numpy()  # only here a GPU is waited for
                if not np.isfinite(values).all():
                    raise FloatingPointError(f"{row.name} gives embeddings that are not finite.")
                _save_piece(partial, values, done, n)
                done, filled = done + filled, 0
                files.save_json(progress, {"hash": wanted, "done": done})
    os.replace(partial, folder / "embeddings.npy")
    rate = round(left / (time.perf_counter() - start), 1)
    return how | {"batch_size": batch_size, "compiled": compiled, "images_per_second": rate}


def looked_at(index: pd.DataFrame, n: int = LOOKED_AT) -> np.ndarray:
    """The rows of about ``n`` images, spread over each class: the same for every backbone."""
    classes = sorted(set(index["label"]))
    each, rows = max(1, n // len(classes)), []
    for name in classes:
        members = np.flatnonzero(index["label"] == name)
        places = np.linspace(0, len(members) - 1, each + 2)[1:-1].astype(int)
        rows += list(members[np.unique(places)])
    return np.array(rows)


@torch.inference_mode()
def _write_maps(pack, row: backbones.Backbone, model: torch.nn.Module, folder: Path) -> None:
    """``maps.npz``: ``rows`` of the index, and their local features (n, h, w, d) as ``maps``."""
    rows = looked_at(pack.index)
    device = next(model.parameters()).device
    normalised = networks.normalise(row, torch.from_numpy(pack.images[rows]).to(device))
    maps = networks.local_features(model, normalised).cpu().numpy()
    with files.replacing(folder / "maps.npz") as temporary:
        np.savez(temporary, rows=rows, maps=maps.astype(np.float16))


def _save_piece(path: Path, values: np.ndarray, first: int, n: int) -> None:
    """Put rows into an array of ``n`` rows; it is opened anew each time, to hold no memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if first == 0:
        array = np.lib.format.open_memmap(path, "w+", np.float32, (n, values.shape[1]))
    else:
        array = np.load(path, mmap_mode="r+")
    array[first : first + len(values)] = values
    array.flush()


def _rows_done(partial: Path, progress: Path, wanted: str) -> int:
    if not (partial.is_file() and progress.is_file()):
        return 0
    record = files.read_json(progress)
    return record["done"] if record["hash"] == wanted else 0


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
    meta = files.read_json(folder / "meta.json")
    if pack_hash is not None and meta["images"] != pack_hash:
        raise ValueError(
            f"The embeddings in {folder} are of other images than those prepared now: run notebook "
            "02_extract_features for this task and backbone again."
        )
    index = files.read_samples(folder / "index.csv")
    return Features(np.load(folder / "embeddings.npy", mmap_mode="r"), index, meta)
