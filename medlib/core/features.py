"""Frozen embedding extraction, and its cache.

Images are embedded once per backbone. Every head, seed and label fraction reads these embeddings. A
cache is a folder with ``embeddings.npy`` (n, d) float32, ``meta.json`` (with a hash of all that the
embeddings depend on) and, if asked for, ``maps.npz`` (local features of a few images). Until it is
complete, it holds ``embeddings.partial.npy`` and ``progress.json`` instead. A killed extraction
continues from these.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from medlib import files
from medlib.core import backbones, networks
from medlib.core.fast import engine, fusing, transfer
from medlib.core.loading import batches, device_name
from medlib.core.settings import Extraction

VERSION = 7  # raise when the same images and weights would give other embeddings or meta
PIECE = 64  # batches that are written together: a kill loses no more than these


def extract(
    images: np.ndarray,
    backbone: str,
    folder: Path | str,
    *,
    images_hash: str,
    look_at: Sequence[int] = (),
    seed: int = 0,
    settings: Extraction | None = None,
) -> tuple[np.ndarray, dict]:
    """Embed images with a frozen backbone, and cache the result in ``folder``.

    ``images`` (n, H, W, 3) uint8, square; ``images_hash`` names them. ``look_at``: row numbers of
    the images whose local features are kept as well. A cache that matches is returned as it is, an
    interrupted one is completed, a damaged one is made again. ``seed`` initialises the weights of a
    random control arm; pretrained arms do not depend on it. Returns embeddings (n, d) float32,
    memory-mapped, and meta: what they depend on, how they were made, and the files' digests. Raises
    what :func:`networks.build` raises, and FloatingPointError if embeddings are not finite, or if
    the asked precision changes them too much against float32.
    """
    settings = Extraction() if settings is None else settings
    row, folder, start = backbones.get(backbone), Path(folder), time.perf_counter()
    device, size = device_name(settings.device), images.shape[1]
    tried = engine.precision_name(settings.precision, device)
    model, digest = networks.build(backbone, size, seed)
    depends_on = {"version": VERSION, "images": images_hash, "image_size": size}
    depends_on |= {"backbone": backbone, "weights_digest": digest, "precision": tried}
    wanted, meta_file = files.content_hash(depends_on), folder / "meta.json"
    meta = files.read_record(meta_file)
    if meta.get("hash") != wanted or files.damaged(folder, meta["sha256"]):
        meta_file.unlink(missing_ok=True)  # without it the cache counts as incomplete
        model = fusing.place(model, device)
        if len(look_at):
            _write_maps(images, np.asarray(look_at), row, model, folder)
        made = _write(images, row, model, folder, wanted, settings)
        made["sha256"] = {f.name: files.file_sha256(f) for f in sorted(folder.glob("*.np[yz]"))}
        made |= {"hash": wanted, "pretraining": row.pretraining, "seed": seed, "device": device}
        made["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        made["seconds"] = round(time.perf_counter() - start, 3)
        files.save_json(meta_file, depends_on | made)
        (folder / "progress.json").unlink()
        meta = files.read_json(meta_file)
    return np.load(folder / "embeddings.npy", mmap_mode="r"), meta


@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)  # TF32 has 10 bits
def _write(images, row, model, folder, wanted, settings: Extraction) -> dict:
    """Write ``embeddings.npy`` in pieces, continuing from ``progress.json``; returns how."""
    embed, how = engine.fastest(row, model, images, settings)
    n, size, device = len(images), how["batch_size"], next(model.parameters()).device
    partial, progress = folder / "embeddings.partial.npy", folder / "progress.json"
    done, crc = _kept(partial, files.read_record(progress), wanted)
    parts = [np.arange(i, min(i + size, n)) for i in range(done, n, size)]
    piece, filled, start, left = None, 0, time.perf_counter(), n - done
    with tqdm(total=n, initial=done, desc=f"embedding with {row.name}", unit="image") as bar:
        for number, batch in enumerate(batches(images, parts, device), start=1):
            made = embed(batch)
            if piece is None:  # one block: small ones would fragment the memory
                piece = made.new_empty(PIECE * min(size, n), made.shape[1])
            piece[filled : filled + len(made)] = made
            filled += len(made)
            bar.update(len(made))
            if number % PIECE == 0 or number == len(parts):
                values = piece[:filled].cpu().numpy()  # only here the host waits for a GPU
                if not np.isfinite(values).all():
                    raise FloatingPointError(f"{row.name} gives embeddings that are not finite.")
                _save_piece(partial, values, done, n)
                done, filled, crc = done + filled, 0, zlib.crc32(values, crc)
                files.save_json(progress, {"hash": wanted, "done": done, "crc32": crc})
    os.replace(partial, folder / "embeddings.npy")
    return how | {"images_per_second": round(left / (time.perf_counter() - start), 1)}


@torch.inference_mode()
def _write_maps(images, rows: np.ndarray, row, model: torch.nn.Module, folder: Path) -> None:
    """``maps.npz``: ``rows``, numbers of images, and their local features ``maps`` (n, h, w, d)."""
    device = next(model.parameters()).device
    normalised = networks.normalise(row, torch.from_numpy(transfer.take(images, rows)).to(device))
    maps = networks.local_features(model, normalised).cpu().numpy()
    with files.replacing(folder / "maps.npz") as temporary:
        np.savez(temporary, rows=rows, maps=maps.astype(np.float16))


def _kept(partial: Path, record: dict, wanted: str) -> tuple[int, int]:
    """How many embeddings an interrupted extraction has saved undamaged, and their CRC-32."""
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, too short, no header
        rows = np.load(partial, mmap_mode="r")[: record.get("done", 0)]
        crc = zlib.crc32(np.ascontiguousarray(rows))
        if (record.get("hash"), record.get("crc32")) == (wanted, crc):
            return len(rows), crc
    return 0, 0


def _save_piece(path: Path, values: np.ndarray, first: int, n: int) -> None:
    """Write rows into a file of ``n`` rows. Opened anew each time, it takes up no memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode, shape = "r+" if first else "w+", (n, values.shape[1])
    array = np.lib.format.open_memmap(path, mode, np.float32, shape)
    array[first : first + len(values)] = values
    array.flush()
