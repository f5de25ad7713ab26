"""Images and volumes decoded, resized and packed once, into uint8 arrays that all else reads.

A pack is a folder: ``images.npy`` (N×H×W×3, uint8), ``index.csv`` (one row per image, in the same
order: sample_id, patient_id, label, split or fold, slice) and ``meta.json``. A volume gives one
image per slice. The whole field of view is kept and squashed to a square: no crop hides a lesion
(unless the card's ``volumes`` ask for the tumour's box). Pillow decodes and resizes; large plain
JPEGs go through torchvision and torch, which takes about half the time: the same pixels decoded,
and within one grey level of Pillow's resized.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from medlib import files
from medlib.data import duplicates, manifest, volumes
from medlib.data.cards import Volumes
from medlib.data.decoding import RESAMPLING, _torch_in_one_thread, decode, decode_to_resize, resize
from medlib.errors import ManifestError, listed

if TYPE_CHECKING:
    import torch
VERSION = 3  # raise when the same files would come out as other pixels


class Pack(NamedTuple):
    """Packed images of a task: ``images`` N×H×W×3 uint8 (memory-mapped), ``index`` N rows."""

    images: np.ndarray
    index: pd.DataFrame
    meta: dict


def draw(
    row: dict, data: Path | str, settings: Volumes | None, decoder: Callable
) -> dict[int, Image.Image | torch.Tensor]:
    """A manifest row's images by slice number: one of an image file, several of a volume."""
    if settings is None:
        return {0: decoder(Path(data) / row["path"])}
    beside = {name: Path(data) / row[name] for name in ("mask", "grid") if row.get(name)}
    return volumes.slices(Path(data) / row["path"], settings, **beside)


def drawn(
    rows: pd.DataFrame,
    data: Path | str,
    settings: Volumes | None,
    decoder: Callable,
    finish: Callable,
    workers: int,
) -> Iterator[tuple[int, object, str]]:
    """Draw and ``finish`` every row in parallel; yields position, result and problem, in order."""

    def one(row: dict) -> tuple[object, str]:
        try:
            return finish(draw(row, data, settings, decoder)), ""
        except Exception as error:  # any decoder's error: named with its file, all together
            text = f"{error or type(error).__name__}"
            return None, text.replace(f"{Path(data)}{os.sep}", "")

    # Threads, not processes: Pillow, torch and NumPy let go of the interpreter while they work.
    # Work is handed out in runs, so that finished images do not pile up in memory.
    columns = [name for name in ("path", "mask", "grid") if name in rows]
    tasks = rows[columns].to_dict("records")
    bar = tqdm(total=len(tasks), desc="decoding", unit="file", mininterval=1)
    with bar, ThreadPoolExecutor(workers or joblib.cpu_count()) as pool:
        for start in range(0, len(tasks), 256):
            for position, done in enumerate(pool.map(one, tasks[start : start + 256]), start):
                bar.update()
                yield position, *done


class Thumbnails(NamedTuple):
    """A small grey picture of every row (uint8 N×S×S), and which images are tiny (N bools)."""

    pictures: np.ndarray
    tiny: np.ndarray


def thumbnails(
    rows: pd.DataFrame, data: Path | str, settings: Volumes | None = None, workers: int = 0
) -> tuple[Thumbnails, pd.DataFrame]:
    """What :mod:`medlib.duplicates` compares; to make it, every file is read once.

    Of a volume it is the middle one of its slices. Returns also the problems (name, reason) of the
    rows that cannot be read; those rows' pictures are blank.
    """
    side = duplicates.THUMBNAIL
    pictures = np.zeros((len(rows), side, side), np.uint8)
    tiny, problems = np.zeros(len(rows), bool), []

    def finish(drawn: dict[int, Image.Image]) -> tuple[np.ndarray, bool]:
        image = list(drawn.values())[len(drawn) // 2]
        return duplicates.thumbnail(image), min(image.size) < duplicates.TINY

    decoder = partial(decode, at_least=2 * side)
    for position, result, problem in drawn(rows, data, settings, decoder, finish, workers):
        if problem:
            sample, path = rows["sample_id"].iloc[position], rows["path"].iloc[position]
            problems.append((sample, f"{path} cannot be read: {problem}"))
        else:
            pictures[position], tiny[position] = result
    problems = pd.DataFrame(problems, columns=["name", "reason"], dtype=str)
    return Thumbnails(pictures, tiny), problems


def pack_hash(rows: pd.DataFrame, size: int, interpolation: str, settings: Volumes | None) -> str:
    """What a pack depends on: the manifest's rows and how they are drawn."""
    how = None if settings is None else asdict(settings)
    return files.content_hash(rows, [VERSION, size, interpolation, how])


def pack(
    rows: pd.DataFrame,
    data: Path | str,
    folders: dict[Path, tuple[int, str]],
    *,
    settings: Volumes | None = None,
    workers: int = 0,
) -> dict[Path, Pack]:
    """Decode the manifest's files below ``data`` once and pack them into each of ``folders``.

    ``folders`` says of each folder its image size in pixels and its interpolation, bilinear or
    bicubic, as :func:`resize` has them. A pack that is there and matches is kept as it is.
    ``settings`` are the card's ``volumes``, None for images; ``workers`` threads decode (0: one per
    core). Raises ManifestError that lists every file that could not be decoded; then no folder is
    written.
    """
    wanted = {}
    for folder, (size, interpolation) in folders.items():
        if interpolation not in RESAMPLING:
            choices = ", ".join(RESAMPLING)
            raise ValueError(f"Unknown interpolation {interpolation!r}; choose one of {choices}.")
        digest = pack_hash(rows, size, interpolation, settings)
        if _hash_of(folder) != digest:
            wanted[Path(folder)] = (size, interpolation, digest)
    if wanted:
        _write_packs(rows, data, wanted, settings, workers)
    return {folder: load(folder) for folder in folders}


def _hash_of(folder: Path | str) -> str | None:
    meta = Path(folder) / "meta.json"
    return files.read_json(meta).get("hash") if meta.is_file() else None


def _write_packs(rows, data, wanted, settings, workers) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_torch_in_one_thread(rows["path"]))
        writers = {}
        for folder, (size, interpolation, _) in wanted.items():
            temporary = stack.enter_context(files.replacing(folder))
            temporary.mkdir()
            writers[temporary] = stack.enter_context(_ArrayWriter(temporary, size, interpolation))

        def finish(drawn: dict) -> tuple[list[int], list[np.ndarray]]:
            parts = list(drawn.values())
            return list(drawn), [np.stack([w.resized(p) for p in parts]) for w in writers.values()]

        taken, numbers, failures = [], [], []
        decoder = partial(decode_to_resize, size=min(size for size, *_ in wanted.values()))
        results = drawn(rows, data, settings, decoder, finish, workers)
        for position, result, problem in results:
            if problem:
                failures.append(f"{rows['path'].iloc[position]}: {problem}")
            elif not failures:
                taken += [position] * len(result[0])
                numbers += result[0]
                for writer, part in zip(writers.values(), result[1], strict=True):
                    writer.append(part)
        if failures:
            raise ManifestError(
                f"{len(failures)} of {len(rows)} files in {data} cannot be read:\n"
                f"{listed(failures)}\nReplace them, or take their rows out of the manifest "
                "(quarantine=True in notebook 01_prepare_data)."
            )
        kept = ["sample_id", "patient_id", "label", manifest.split_column(rows)]
        index = rows.iloc[taken][kept].assign(slice=numbers)
        for temporary, (size, interpolation, digest) in zip(writers, wanted.values(), strict=True):
            writers[temporary].finish()
            files.save_csv(temporary / "index.csv", index)
            meta = {
                "hash": digest,
                "size": size,
                "interpolation": interpolation,
                "volumes": None if settings is None else asdict(settings),
                "mask_at_test_time": settings is not None and settings.needs_mask,
            }
            files.save_json(temporary / "meta.json", meta)


class _ArrayWriter:
    """An ``images.npy`` that grows: how many slices a volume gives is known when it is read."""

    def __init__(self, folder: Path, size: int, interpolation: str):
        self.size, self.interpolation = size, interpolation
        self.file, self.count = open(folder / "images.npy", "wb"), 0  # noqa: SIM115
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads a header for the first axis to grow: its length does not change.
        shape = (self.count, self.size, self.size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def resized(self, picture: Image.Image | torch.Tensor) -> np.ndarray:
        return resize(picture, self.size, self.interpolation)

    def append(self, images: np.ndarray) -> None:
        self.file.write(images.tobytes())
        self.count += len(images)

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def __enter__(self) -> _ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def load(
    folder: Path | str, rows: pd.DataFrame | None = None, settings: Volumes | None = None
) -> Pack:
    """Open a pack; with the manifest's ``rows``, check that it was made from them.

    ``settings`` are the card's ``volumes``.

    Raises FileNotFoundError when it is not there, ManifestError when it is stale.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        size, _, interpolation = folder.name.partition("-")
        raise FileNotFoundError(
            f"There are no packed images in {folder}. Run notebook 01_prepare_data for this task "
            f"with {size} among its image_sizes (interpolation {interpolation})."
        )
    meta = files.read_json(folder / "meta.json")
    if rows is not None and meta["hash"] != pack_hash(
        rows, meta["size"], meta["interpolation"], settings
    ):
        raise ManifestError(
            f"The images in {folder} were packed from another manifest: run notebook "
            "01_prepare_data for this task again."
        )
    index = manifest.read_samples(folder / "index.csv")
    return Pack(np.load(folder / "images.npy", mmap_mode="r"), index, meta)
