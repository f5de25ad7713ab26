"""Images and volumes decoded, resized and packed once, into uint8 arrays that all else reads.

A pack is a folder: ``images.npy`` (N×H×W×3, uint8), ``index.csv`` (one row per image, in the same
order: sample_id, patient_id, label, split or fold, slice) and ``meta.json``. A volume gives one
image per slice. The whole field of view is kept and squashed to a square: no crop hides a lesion.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from medlib import artifacts
from medlib.errors import listed
from medlib.manifest import ManifestError, split_column

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
VERSION = 1  # raise when the same files would come out as other pixels


class Pack(NamedTuple):
    """Packed images of a task: ``images`` N×H×W×3 uint8 (memory-mapped), ``index`` N rows."""

    images: np.ndarray
    index: pd.DataFrame
    meta: dict


# ---------------------------------------------------------------------------------- decoding


def decode(path: Path | str) -> Image.Image:
    """An image file as upright 8-bit RGB.

    Grey, palette, CMYK and alpha (over black) become RGB; EXIF rotation is applied; 16-bit and
    floating-point grey is windowed to its 0.5th and 99.5th percentiles rather than truncated.
    Raises ValueError or OSError for a file that is no complete image.
    """
    with Image.open(path) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return Image.fromarray(window(np.asarray(image, np.float32))).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return image.convert("RGB")


def window(values: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Scale values to 0 … 255 between the 0.5th and 99.5th percentiles (of ``inside``)."""
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    low, high = np.percentile(values if inside is None else values[inside], (0.5, 99.5))
    scaled = (values - low) / max(high - low, 1e-6)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def volume_slices(path: Path | str, n_slices: int) -> dict[int, Image.Image]:
    """The ``n_slices`` central axial slices of a NIfTI volume, upright, by slice number.

    The volume is brought to RAS+ by its affine and windowed as a whole; a slice is drawn in
    radiological convention: anterior up, the patient's right on the left. Raises ValueError
    for a volume that is not 3-D, not finite, constant, or thinner than ``n_slices``.
    """
    import nibabel  # here, since machines that only train on packed images may not have it

    volume = nibabel.as_closest_canonical(nibabel.load(path))
    if volume.ndim != 3:
        raise ValueError(f"a 3-D volume is needed, its shape is {volume.shape}")
    values = np.asarray(volume.dataobj, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    if values.min() == values.max():
        raise ValueError(f"it is constant ({values.min():g})")
    if values.shape[2] < n_slices:
        raise ValueError(f"it has {values.shape[2]} axial slices, {n_slices} were asked for")
    # Real backgrounds may be grey and real values negative: the head is what differs from the
    # rim, not what is greater than zero.
    rim = np.median(np.concatenate([values[[0, -1]].ravel(), values[:, [0, -1]].ravel()]))
    head = np.abs(values - rim) > 0.02 * np.ptp(values)
    grey = window(values, head)
    first = (values.shape[2] - n_slices) // 2
    return {
        z: Image.fromarray(np.ascontiguousarray(grey[::-1, ::-1, z].T)).convert("RGB")
        for z in range(first, first + n_slices)
    }


# ----------------------------------------------------------------------------------- packing


def pack_hash(rows: pd.DataFrame, size: int, interpolation: str, slices: int | None) -> str:
    """What a pack depends on: the manifest's rows and how they are drawn."""
    return artifacts.content_hash(rows, [VERSION, size, interpolation, slices])


def pack(
    rows: pd.DataFrame,
    data: Path | str,
    folder: Path | str,
    *,
    size: int,
    interpolation: str,
    slices: int | None = None,
    workers: int = 0,
) -> Pack:
    """Decode the manifest's files below ``data`` and pack them into ``folder``.

    A pack that is there and matches is returned as it is. ``interpolation`` is bilinear or
    bicubic (antialiased, Pillow's); ``slices`` is the number of central slices of each volume,
    None for images; ``workers`` threads decode (0: one per core). Raises ManifestError that
    lists every file that could not be decoded; then nothing is written.
    """
    if interpolation not in RESAMPLING:
        choices = ", ".join(RESAMPLING)
        raise ValueError(f"Unknown interpolation {interpolation!r}; choose one of {choices}.")
    folder, wanted = Path(folder), pack_hash(rows, size, interpolation, slices)
    if (folder / "meta.json").is_file() and artifacts.read_json(folder / "meta.json").get(
        "hash"
    ) == wanted:
        return load(folder)

    def draw(relative: str) -> dict[int, np.ndarray] | str:
        path = Path(data) / relative
        try:
            parts = volume_slices(path, slices) if slices else {0: decode(path)}
            return {z: _resized(image, size, interpolation) for z, image in parts.items()}
        except Exception as error:  # any decoder error: named with its file, all together, below
            return f"{relative}: {error or type(error).__name__}"

    with artifacts.replacing(folder) as temporary:
        temporary.mkdir()
        shape = (len(rows) * (slices or 1), size, size, 3)
        array = np.lib.format.open_memmap(temporary / "images.npy", "w+", np.uint8, shape)
        drawn_slices, failures = [], []
        for number, drawn in enumerate(_in_parallel(draw, list(rows["path"]), workers)):
            if isinstance(drawn, str):
                failures.append(drawn)
                continue
            first = number * (slices or 1)
            array[first : first + len(drawn)] = list(drawn.values())
            drawn_slices += drawn
        if failures:
            raise ManifestError(
                f"{len(failures)} of {len(rows)} files in {data} cannot be read:\n"
                f"{listed(failures)}\nReplace them, or take their rows out of the manifest."
            )
        array.flush()
        kept = ["sample_id", "patient_id", "label", split_column(rows)]
        index = rows.loc[rows.index.repeat(slices or 1), kept].assign(slice=drawn_slices)
        artifacts.save_csv(temporary / "index.csv", index)
        meta = {"hash": wanted, "size": size, "interpolation": interpolation, "slices": slices}
        artifacts.save_json(temporary / "meta.json", meta)
    return load(folder)


def _resized(image: Image.Image, size: int, interpolation: str) -> np.ndarray:
    return np.asarray(image.resize((size, size), RESAMPLING[interpolation]))


def _in_parallel(function: Callable, items: list, workers: int):
    # Threads, not processes: Pillow and NumPy let go of the interpreter while they work.
    # Work is handed out in runs, so that finished images do not pile up in memory.
    bar = tqdm(total=len(items), desc="decoding", unit="file")
    with bar, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in range(0, len(items), 256):
            for result in pool.map(function, items[start : start + 256]):
                bar.update()
                yield result


def load(folder: Path | str, rows: pd.DataFrame | None = None, slices: int | None = None) -> Pack:
    """Open a pack; with the manifest's ``rows``, check that it was made from them.

    Raises FileNotFoundError when it is not there, ManifestError when it is stale.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        size, _, interpolation = folder.name.partition("-")
        raise FileNotFoundError(
            f"There are no packed images in {folder}. Run notebook 01_prepare_data for this task "
            f"with {size} among its image_sizes (interpolation {interpolation})."
        )
    meta = artifacts.read_json(folder / "meta.json")
    if rows is not None and meta["hash"] != pack_hash(
        rows, meta["size"], meta["interpolation"], slices
    ):
        raise ManifestError(
            f"The images in {folder} were packed from another manifest: run notebook "
            "01_prepare_data for this task again."
        )
    index = artifacts.read_samples(folder / "index.csv")
    return Pack(np.load(folder / "images.npy", mmap_mode="r"), index, meta)
