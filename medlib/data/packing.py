"""Files read once: hashed, decoded, and drawn as thumbnails and as the images of packs.

The whole field of view is kept and squashed to a square, so that no crop hides a lesion (unless
the geometry is ``crop``, or the card's ``volumes`` ask for the tumour's box). Large plain JPEGs go
through torchvision and torch in about half of Pillow's time (see
:func:`medlib.data.decoding.resize`).
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from medlib import files
from medlib.data import decoding, dicom, manifest, packs, volumes
from medlib.data.cards import GEOMETRIES, GreyValues, Volumes
from medlib.data.thumbnails import SIDE, TINY
from medlib.data.thumbnails import draw as draw_thumbnail
from medlib.errors import ManifestError, listed, unknown

Place = Path | str
Slicing = Volumes | None  # a card's volumes
Folders = dict[Path, packs.Drawn]  # folders of packs, and how the images of each are drawn


class Reading(NamedTuple):
    """The result of reading the files of some rows once.

    ``rows``: those whose files can be used, with their sha256. ``thumbnails`` (uint8 N×S×S; for a
    volume, its middle slice) and ``tiny`` (N bools) are what :mod:`medlib.data.duplicates` takes.
    ``unreadable`` (name, reason): samples whose files are missing, empty or changed. ``broken``
    (name, reason): samples that cannot be decoded. ``stored`` (sample_id, kind, bits, width,
    height, few_greys): how image files are stored; empty for volumes. ``slices``: for each sample
    id, where its images begin in the arrays, and the numbers of its slices (0 for an image).
    ``arrays``: for each pack's folder, a file without header of the images in the order of reading.
    """

    rows: pd.DataFrame
    thumbnails: np.ndarray
    tiny: np.ndarray
    unreadable: pd.DataFrame
    broken: pd.DataFrame
    stored: pd.DataFrame
    slices: dict[str, tuple[int, list[int]]]
    arrays: dict[Path, Path]


@contextlib.contextmanager
def reading(
    rows: pd.DataFrame,
    data: Place,
    folders: Folders,
    *,
    settings: Slicing = None,
    grey_values: GreyValues = "",
    workers: int = 0,
) -> Iterator[Reading]:
    """Read each file that ``rows`` name below ``data`` once, and draw it for each of ``folders``.

    Within the ``with`` block, :func:`write` makes packs of what was drawn. ``settings`` are the
    card's ``volumes``, None for images; ``grey_values`` are the card's, too. ``workers`` threads
    decode (0: one per core). Raises ValueError for an unknown interpolation or geometry.
    """
    for how in folders.values():
        if how.interpolation not in decoding.RESAMPLING:
            raise ValueError(unknown("interpolation", how.interpolation, list(decoding.RESAMPLING)))
        if how.geometry not in GEOMETRIES:
            raise ValueError(unknown("geometry", how.geometry, GEOMETRIES))
    with contextlib.ExitStack() as stack:
        arrays = {}
        if folders:
            stack.enter_context(decoding.torch_in_one_thread(rows["path"]))
            # On the disk of the packs, but without making their folders, which may stay empty.
            near = next(p for p in Path(next(iter(folders))).absolute().parents if p.is_dir())
            scratch = tempfile.TemporaryDirectory(prefix=".drawn-", dir=near)
            scratch = Path(stack.enter_context(scratch))
            arrays = {Path(folder): scratch / str(k) for k, folder in enumerate(folders)}
        hashes, small, stored, slices, count = [], [], [], {}, 0
        problems = {"unreadable": [], "broken": []}
        with contextlib.ExitStack() as opened:
            outputs = [opened.enter_context(open(file, "wb")) for file in arrays.values()]
            how = [*folders.values()]
            for row, (outcome, given) in _each(rows, data, how, settings, grey_values, workers):
                if outcome in problems:
                    problems[outcome].append((row["sample_id"], given))
                    continue
                of_one, thumbnail, facts, numbers, images = given
                hashes.append(of_one)
                small.append(thumbnail)
                stored += [(row["sample_id"], *facts)] if facts else []
                slices[row["sample_id"]], count = (count, numbers), count + len(numbers)
                for output, drawn in zip(outputs, images, strict=True):
                    output.write(drawn.tobytes())
        thumbnails = np.array([picture for picture, _ in small], np.uint8).reshape(-1, SIDE, SIDE)
        tiny = np.array([is_tiny for _, is_tiny in small], bool)
        used = rows[rows["sample_id"].isin(slices)].reset_index(drop=True)
        used = used.assign(**pd.DataFrame(hashes, dtype=str))
        named = [pd.DataFrame(p, columns=["name", "reason"], dtype=str) for p in problems.values()]
        stored = pd.DataFrame(stored, columns=["sample_id", *decoding.Stored._fields, "few_greys"])
        yield Reading(used, thumbnails, tiny, *named, stored, slices, arrays)


def _each(
    rows: pd.DataFrame,
    data: Place,
    how_each: list[packs.Drawn],
    settings: Slicing,
    grey_values: GreyValues,
    workers: int,
) -> Iterator[tuple[dict, tuple[str, object]]]:
    """Every row, in order, with ("unreadable" or "broken", reason) or ("read", a dict).

    The dict has the hashes of the files, a thumbnail, whether the image is tiny, how an image file
    is stored, slice numbers, and the images by size.
    """
    sides = (decoding.shorter_side(how.size, how.geometry) for how in how_each)
    smallest = min(sides, default=math.inf)
    parts = dicom.series_files if settings else None

    def one(row: dict) -> tuple[str, object]:
        try:
            contents, hashes, problem = manifest.read_files(row, data, parts)
            if problem:
                return "unreadable", problem
            drawn = _draw(row, data, contents, settings, smallest, grey_values)
            pictures = list(drawn.values())
            middle = decoding.as_picture(pictures[len(pictures) // 2])
            small = draw_thumbnail(middle), min(middle.size) < TINY
            facts = None
            if settings is None:
                path = Path(data) / row["path"]
                facts = *decoding.stored(path, contents.get(path)), _has_few_greys(middle)
            images = [
                np.stack([decoding.resize(p, *how[:3]) for p in pictures]) for how in how_each
            ]
        except Exception as error:  # any decoder's error: named with its file, all together
            text = (str(error) or type(error).__name__).replace(f"{Path(data)}{os.sep}", "")
            return "broken", f"{row['path']} cannot be read: {text}"
        return "read", (hashes, small, facts, list(drawn), images)

    # Threads, not processes: Pillow, torch and NumPy let go of the interpreter while they work.
    # Work is handed out in runs, so that finished images do not pile up in memory.
    tasks = rows.to_dict("records")
    bar = tqdm(total=len(tasks), desc="decoding", unit="file", mininterval=1)
    with bar, ThreadPoolExecutor(workers or joblib.cpu_count()) as pool:
        for start in range(0, len(tasks), 256):
            part = tasks[start : start + 256]
            for row, done in zip(part, pool.map(one, part), strict=True):
                bar.update()
                yield row, done


def _draw(
    row: dict,
    data: Place,
    contents: dict,
    settings: Slicing,
    size: float,
    grey_values: GreyValues,
) -> dict:
    """A row's pictures by slice number: one of an image file, several of a volume."""
    path = Path(data) / row["path"]
    if settings is None:
        return {0: decoding.decode_to_resize(path, size, contents.get(path), grey_values)}
    beside = {name: Path(data) / row[name] for name in manifest.BESIDE if row.get(name)}
    return volumes.slices(path, settings, contents=contents, **beside)


def _has_few_greys(picture: Image.Image) -> bool:
    """Whether four grey values, or fewer, cover at least 98 % of a picture, as in a mask."""
    grey = picture.resize((64, 64), Image.Resampling.NEAREST).convert("L")
    levels = np.bincount(np.asarray(grey).ravel() // 8, minlength=32)  # JPEG blurs them a little
    return bool(np.sort(levels)[-4:].sum() >= 0.98 * levels.sum())


def pictures(read: Reading, samples: list[str], folders: Folders) -> np.ndarray:
    """An image of each sample, at the size of the largest pack: uint8 N×S×S×3.

    A volume gives its middle slice. Without ``folders``, the grey thumbnails are returned.
    """
    if not folders or not samples:
        numbers = pd.Index(read.rows["sample_id"]).get_indexer(samples)
        return np.repeat(read.thumbnails[numbers][..., None], 3, axis=3)
    folder, how = max(folders.items(), key=lambda item: item[1].size)
    side, places = how.size, (read.slices[sample] for sample in samples)
    drawn = np.memmap(read.arrays[Path(folder)], np.uint8, "r").reshape(-1, side, side, 3)
    return drawn[[first + len(slices) // 2 for first, slices in places]]


def write(read: Reading, rows: pd.DataFrame, folders: Folders, settings: Slicing = None) -> None:
    """Make packs of the images of ``rows``, in their order. A pack that matches them stays."""
    kept = ["sample_id", "patient_id", "label", *manifest.kept_columns(rows)]
    places = [read.slices[sample] for sample in rows["sample_id"]]
    index = rows[kept].iloc[np.repeat(np.arange(len(rows)), [len(s) for _, s in places])]
    index = index.assign(slice=[number for _, slices in places for number in slices])
    for folder, how in folders.items():
        digest, size = packs.pack_hash(rows, how, settings), how.size
        if packs.recorded(folder).get("hash") == digest:
            continue
        meta = {"hash": digest} | how._asdict()
        meta["volumes"] = settings and settings.model_dump()
        meta["mask_at_test_time"] = settings is not None and settings.needs_mask
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(index), size, size, 3)}
        with files.replacing(folder) as new, open(read.arrays[Path(folder)], "rb") as source:
            new.mkdir()
            numbers = np.concatenate([first + np.arange(len(slices)) for first, slices in places])
            digests = np.empty(len(index), np.uint32)
            with open(new / "images.npy", "wb") as target:
                np.lib.format.write_array_header_1_0(target, header)
                for row, number in enumerate(numbers.tolist()):
                    source.seek(number * size * size * 3)
                    image = source.read(size * size * 3)
                    pixels = np.frombuffer(image, np.uint8).reshape(1, size, size, 3)
                    digests[row] = packs.image_digests(pixels)[0]
                    target.write(image)
            np.save(new / "digests.npy", digests)
            files.save_csv(new / "index.csv", index)
            small = "index.csv", "digests.npy"
            meta["sha256"] = {name: files.file_sha256(new / name) for name in small}
            files.save_json(new / "meta.json", meta)


def pack(
    rows: pd.DataFrame, data: Place, folders: Folders, *, settings: Slicing = None, workers: int = 0
) -> dict[Path, packs.Pack]:
    """Read the files of a manifest's rows and pack them into each of ``folders``.

    A pack that is there and matches is kept as it is, and no file is opened for it. ``settings``
    and ``workers`` are those of :func:`reading`. Raises ManifestError that lists every file that
    cannot be used; then no folder is written.
    """
    hashes = {folder: packs.pack_hash(rows, how, settings) for folder, how in folders.items()}
    wanted = {f: how for f, how in folders.items() if packs.recorded(f).get("hash") != hashes[f]}
    if wanted:
        with reading(rows, data, wanted, settings=settings, workers=workers) as read:
            problems = [*read.unreadable["reason"], *read.broken["reason"]]
            if problems:
                what = f"{len(problems)} of {len(rows)} files in {data} cannot be read"
                way_out = "take their rows out (quarantine=True in notebook 01_prepare_data)."
                raise ManifestError(f"{what}:\n{listed(problems)}\nReplace them, or {way_out}")
            write(read, rows, wanted, settings)
    return {folder: packs.load(folder) for folder in folders}
