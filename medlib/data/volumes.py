"""Volumes as pictures: axial slices, upright and windowed, chosen with or without a mask.

A file is NIfTI, or one of a DICOM series (:mod:`medlib.data.dicom_series`). A volume, its mask and
its patient's reference volume may be stored along any axes: their affines bring them to RAS+ (x to
the patient's right, y to the front, z up), where they are compared.
"""

import gzip
import io
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel
import nibabel.processing
import numpy as np
from PIL import Image

from medlib.data import dicom, dicom_series
from medlib.data.cards import Volumes
from medlib.data.greys import window

MAX_VOXELS = 2**28  # 1 GiB as float32; a header of 352 bytes may claim anything
Contents = Mapping[Path, bytes]  # contents of files that were read already
Trust = str | np.ndarray  # sform, qform, "" (what the header states), or an affine (4×4)
IN_CARD = "under `volumes` in the card"


def slices(
    path: Path | str,
    settings: Volumes,
    *,
    mask: Path | str | None = None,
    reference: Path | str | None = None,
    contents: Contents | None = None,
) -> dict[int, Image.Image]:
    """The axial slices of a volume that ``settings`` choose: RGB pictures by RAS+ slice number.

    They are drawn in radiological convention, anterior up and the patient's right on the left, and
    windowed to the percentiles of the whole volume's head. ``mask`` (any label above 0 is tumour)
    is read where the settings need one. ``reference`` is the patient's reference volume: a volume
    or a mask of another geometry is resampled to it where the settings say so. ``contents`` holds
    files that were read already. Raises ValueError, with the way out, for a file that is no whole
    3-D volume, for values that are not finite or all alike, for too few slices, for a mask that is
    missing or empty, and for another geometry than the reference's. Raises FileNotFoundError if
    there is no file.
    """
    if settings.needs_mask and not mask:
        needs = "crop_margin" if settings.choice != "largest_tumour" else "choice largest_tumour"
        no_mask = f"it has no mask, which {needs} needs: name one in the manifest"
        raise ValueError(f"{no_mask}, or write `choice: central` without `crop_margin` {IN_CARD}")
    contents = contents or {}
    volume, own = _read(path, "it", contents, settings.affine)
    if volume.min() == volume.max():
        raise ValueError(f"it is constant ({volume.min():g}): there is nothing to see, replace it")
    if reference:
        name = f"its reference volume {Path(reference).name}"
        *_, wanted = _open(reference, name, contents, settings.affine)
        both = f"its geometry ({own}) is not that of {name} ({wanted})"
        volume, own = _onto(wanted, volume, own, settings, both, order=1), wanted
    if volume.shape[2] < settings.slices:
        few = f"it has {volume.shape[2]} axial slices, {settings.slices} were asked for"
        raise ValueError(f"{few}: lower `slices` {IN_CARD}, or take it out of the manifest")
    needed = settings.needs_mask
    tumour = _tumour(Path(mask), path, own, settings, contents) if needed else None
    head = _head(volume)
    grey = window(volume, head, settings.percentiles)
    if grey.min() == grey.max():
        way_out = f"replace it, or widen `percentiles` {IN_CARD}"
        raise ValueError(f"its head has one grey value only, as a mask has: {way_out}")
    if settings.crop_margin is not None:
        grey = grey[_box(tumour, own.sizes, settings.crop_margin)]
    return {z: _picture(grey, z, settings.neighbours) for z in _chosen(settings, head, tumour)}


class Geometry(NamedTuple):
    """Where voxels lie: ``shape`` in voxels, ``affine`` (4×4) to millimetres, both in RAS+."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """The three edges of a voxel in millimetres."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def __str__(self) -> str:
        far = self.affine @ [*np.subtract(self.shape, 1), 1]  # tells rotated volumes apart
        return (
            f"{' × '.join(map(str, self.shape))} voxels of {_numbers(self.sizes, ' × ')} mm, origin"
            f" ({_numbers(self.affine[:3, 3])}) mm, last voxel at ({_numbers(far[:3])}) mm"
        )


def _numbers(values: np.ndarray, between: str = ", ") -> str:
    return between.join(f"{round(value, 3) + 0.0:g}" for value in values.tolist())  # never -0


def _load(path: Path, contents: Contents) -> tuple[object, io.BufferedIOBase | None]:
    """nibabel's image of a file, and the stream that its voxels are read from, if any."""
    content = contents[path] if path in contents else path.read_bytes()
    if dicom.is_dicom(content):
        return dicom_series.volume(path, contents), None
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return nibabel.load(path), None
    stream = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):  # gzip; the file's name may be wrong
        stream = gzip.GzipFile(fileobj=stream)
    header = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    stream.seek(0)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if kind.header_class.may_contain_header(header):
            return kind.from_stream(stream), stream
    raise ValueError("it begins with no NIfTI header")


def _open(path: Path | str, what: str, contents: Contents, trust: Trust) -> tuple:
    """Read and check a volume's header; ``what`` begins the messages.

    Returns nibabel's image and its stream, as :func:`_load`, nibabel's orientation (3×2: how the
    axes become those of RAS+), and the Geometry.
    """
    try:
        image, stream = _load(Path(path), contents)
    except FileNotFoundError:
        raise
    except dicom.DicomError as error:
        raise ValueError(f"{what} {error}") from error
    except Exception as error:  # nibabel, gzip and zlib have errors of their own
        why = f"({_reason(error)}): copy or download it again"
        raise ValueError(f"{what} is not a NIfTI file {why}") from error
    # Analyze files, which nibabel reads as well, do not say which side is left.
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ValueError(f"{what} is not a NIfTI file but {type(image).__name__}: convert it")
    shape, kind = image.shape, image.get_data_dtype()
    if len(shape) < 3 or set(shape[3:]) - {1}:
        way_out = "store the one that is meant as a file of its own"
        problem = f"is not one 3-D volume, which is needed: its shape is {shape}"
        raise ValueError(f"{what} {problem}; {way_out}")
    shape = shape[:3]
    if min(shape) < 1:
        raise ValueError(f"{what} is empty, its shape is {shape}: replace it")
    if math.prod(shape) > MAX_VOXELS:
        many = f"{' × '.join(map(str, shape))} voxels by its header, more than the {MAX_VOXELS}"
        way_out = "the file is damaged, or must be cropped or downsampled"
        raise ValueError(f"{what} has {many} that are read: {way_out}")
    if kind.kind not in "iuf":
        raise ValueError(f"{what} holds values of type {kind}, not grey values: convert it")
    affine = _affine(image, what, trust)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    sound = np.isfinite(affine).all()
    # A voxel with less than a millionth of its box's volume is flat, so it has no orientation.
    if not (sound and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * math.prod(sizes) > 0):
        problem = f"has an affine that is singular or not finite, {affine[:3].tolist()}"
        way_out = "convert it from its DICOM series again"
        raise ValueError(f"{what} {problem}, so that left and right are not known: {way_out}")
    orientation = nibabel.io_orientation(affine)
    upright = tuple(shape[axis] for axis in np.argsort(orientation[:, 0]))
    affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, shape)
    return image, stream, orientation, Geometry(upright, affine)


def _affine(image: nibabel.Nifti1Pair, what: str, trust: Trust) -> np.ndarray:
    """The affine (4×4) of an image: the one that ``trust`` names, or else the one it states."""
    if isinstance(trust, np.ndarray):
        return trust
    (sform, s_code), (qform, q_code) = image.get_sform(coded=True), image.get_qform(coded=True)
    if trust and not isinstance(image.dataobj, dicom_series.Slices):  # DICOM has one of its own
        return np.asarray(getattr(image.header, f"get_{trust}")(), float)
    way_out = f"write which one to trust, `affine: sform` or `affine: qform`, {IN_CARD}"
    if not s_code and not q_code:
        stated = "does not state where its voxels lie (sform and qform codes are both 0)"
        raise ValueError(f"{what} {stated}, so that left and right are not known: {way_out}")
    affine = np.asarray(sform if s_code else qform, float)
    if s_code and q_code and np.isfinite(affine).all():
        corners = np.array(list(product(*((0, n) for n in image.shape[:3]), [1])))
        apart = np.linalg.norm(corners @ (affine - qform).T, axis=1).max()
        if apart > 0.5 * np.linalg.norm(affine[:3, :3], axis=0).min():
            two = f"has an sform and a qform that differ by up to {apart:.3g} mm"
            raise ValueError(f"{what} {two}: {way_out}")
    return affine


def _read(
    path: Path | str, what: str, contents: Contents, trust: Trust
) -> tuple[np.ndarray, Geometry]:
    """A volume's values in RAS+ (X×Y×Z, float32), and its geometry."""
    image, stream, orientation, geometry = _open(path, what, contents, trust)
    try:
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
        while stream and stream.read(1 << 20):  # to the checksum at the end of a .gz
            pass
    except dicom.DicomError as error:
        raise ValueError(f"{what} {error}") from error
    except Exception as error:  # truncated or damaged: nibabel, mmap, gzip, zlib raise their own
        why = f"({_reason(error)}): copy or download it again"
        raise ValueError(f"{what} cannot be read to its end {why}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinite values: replace them (0 where it is empty)")
    return nibabel.apply_orientation(values, orientation), geometry


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _agree(a: Geometry, b: Geometry) -> bool:
    """Whether the voxels of two volumes lie at the same places."""
    if a.shape != b.shape:
        return False
    # Rounding of float32 quaternions moves the corners of a volume by up to 0.1 mm; less than a
    # tenth of a voxel is invisible.
    corners = np.array(list(product(*((0, n) for n in a.shape), [1])))
    apart = np.linalg.norm((corners @ (a.affine - b.affine).T), axis=1)
    return bool(apart.max() < 0.1 * min(*a.sizes, *b.sizes))


def _onto(
    wanted: Geometry, values: np.ndarray, own: Geometry, settings: Volumes, both: str, order: int
) -> np.ndarray:
    """Values in the geometry ``wanted``, resampled if needed. ``order``: of the spline (mask: 0).

    Raises ValueError that begins with ``both`` if the settings do not allow to resample.
    """
    if _agree(own, wanted):
        return values
    if not settings.resample:
        raise ValueError(f"{both}: write `resample: true` {IN_CARD}")
    image, outside = nibabel.Nifti1Image(values, own.affine), _rim(values) if order else 0
    # With SciPy's mode "constant", a voxel that rounding puts 1e-15 outside is lost.
    how = {"mode": "grid-constant", "cval": outside}
    image = nibabel.processing.resample_from_to(image, wanted, order, **how)
    resampled = image.get_fdata(dtype=np.float32)
    if resampled.max() == (resampled.min() if order else 0):
        raise ValueError(f"{both}, and nothing of it lies there: register the two, or replace it")
    return resampled


def _tumour(
    mask: Path, volume: Path | str, wanted: Geometry, settings: Volumes, contents: Contents
) -> np.ndarray:
    """Where the mask is above 0, in the geometry ``wanted`` of its volume: X×Y×Z, bool."""
    what, trust = f"its mask {mask.name}", settings.affine
    if settings.mask_affine == "volume":
        image, *_ = _open(volume, "it", contents, trust)
        trust = _affine(image, "it", trust)
    drawn, *_ = _open(mask, what, contents, trust)
    values, own = _read(mask, what, contents, trust)
    if not (values > 0).any():
        raise ValueError(f"{what} is empty, no voxel is above 0: draw it, or take the row out")
    both = f"{what} has another geometry ({own}) than the volume ({wanted})"
    if settings.mask_affine == "volume" and drawn.shape[:3] != image.shape[:3]:
        raise ValueError(f"{both}: `mask_affine: volume` is for masks of their volume's shape")
    if np.allclose(np.abs(_affine(drawn, what, trust)), np.eye(4)) and not _agree(own, wanted):
        lost = "its affine is the identity, so that it may have lost its place"
        way_out = "if its voxels are those of its volume, write `mask_affine: volume`"
        raise ValueError(f"{both}; {lost}: {way_out} {IN_CARD}")
    return _onto(wanted, (values > 0).astype(np.uint8), own, settings, both, order=0) > 0


def _rim(volume: np.ndarray) -> float:
    """The grey value of the background: the median of the four outer planes in x and y."""
    return np.median(np.concatenate([volume[[0, -1]].ravel(), volume[:, [0, -1]].ravel()]))


def _head(volume: np.ndarray) -> np.ndarray:
    """Where the head is: X×Y×Z, bool; not empty unless the volume is constant."""
    # Real backgrounds may be grey and real values negative, so the head is what differs from the
    # rim by 2 % of the range of values. That range is 1 to 3 times the 99th percentile in real
    # heads; a hot voxel may make it 1000 times, and then 4 times is taken.
    contrast = np.abs(volume - _rim(volume))
    return contrast > 0.02 * min(np.ptp(volume), 4 * np.percentile(contrast, 99))


def _chosen(settings: Volumes, head: np.ndarray, tumour: np.ndarray | None) -> list[int]:
    """The numbers of the slices to draw, ascending."""
    n, depth = settings.slices, head.shape[2]
    if settings.choice == "all_head":
        areas = head.sum((0, 1))
        within = np.flatnonzero(4 * areas >= areas.max())
        if len(within) < n:
            few = f"its head has {len(within)} axial slices, {n} were asked for"
            raise ValueError(f"{few}: lower `slices` {IN_CARD} (0: every slice of the head)")
        if n == 1:
            within = within[[(len(within) - 1) // 2]]
        elif n > 0:
            within = within[np.rint(np.linspace(0, len(within) - 1, n)).astype(int)]
        return within.tolist()
    first = (depth - n) // 2
    if settings.choice == "largest_tumour":
        first = min(max(int(tumour.sum((0, 1)).argmax()) - n // 2, 0), depth - n)
    return list(range(first, first + n))


def _box(tumour: np.ndarray, sizes: np.ndarray, margin: float) -> tuple[slice, slice]:
    """The part of x and y that holds the tumour of all slices and ``margin`` mm around it."""
    box = []
    for axis in (0, 1):
        there = np.flatnonzero(tumour.any(axis=(1 - axis, 2)))
        # At least the margin; but a voxel of 0.9 mm is 0.89999998 in a header.
        wide = np.ceil(margin / sizes[axis] - 0.01)
        start, stop = max(there[0] - wide, 0), min(there[-1] + 1 + wide, tumour.shape[axis])
        box.append(slice(int(start), int(stop)))
    return tuple(box)


def _picture(grey: np.ndarray, z: int, neighbours: bool) -> Image.Image:
    """Slice ``z`` of X×Y×Z uint8: rows from front to back, columns from right to left."""
    around = np.clip([z - 1, z, z + 1], 0, grey.shape[2] - 1) if neighbours else [z, z, z]
    upright = grey[::-1, ::-1, around].transpose(1, 0, 2)
    return Image.fromarray(np.ascontiguousarray(upright))
