"""Read a DICOM series, or one enhanced multi-frame file, as a volume with its affine.

Slices are put in order by ImagePositionPatient along the normal of ImageOrientationPatient. The
affine is RAS+ in millimetres, as in NIfTI: DICOM's x and y (to the left, to the back) are turned.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pydicom

from medlib.data import dicom
from medlib.data.dicom import DicomError

# Positions are rounded in some files; less than a tenth of a voxel is invisible.
TOLERANCE = 0.1  # how far a slice may lie from its place, as a share of the slice distance
PARALLEL = 1e-3  # how much two direction cosines of one orientation may differ
SAME_PLACE = 0.01  # mm


class Frame(NamedTuple):
    """One slice: its file and number there, and where it lies (mm, DICOM's axes)."""

    file: str
    dataset: pydicom.FileDataset
    number: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.dataset.Rows, self.dataset.Columns


class Slices:
    """The voxels of frames in order, as nibabel needs them. They are decoded when first used."""

    def __init__(self, frames: list[Frame]):
        self.frames, self.dtype = frames, np.dtype(np.float32)
        self.shape, self.ndim = (*frames[0].shape[::-1], len(frames)), 3

    @dicom.quoting_no_value()
    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """X×Y×Z, float32: columns, rows, slices; values after the modality LUT."""
        voxels, decoded = np.empty(self.shape, np.float32), {}
        for z, frame in enumerate(self.frames):
            several = dicom.frames(frame.dataset) > 1
            stored = decoded.get(frame.file)
            if stored is None:
                stored = dicom.stored_values(frame.dataset)
                decoded = {frame.file: stored} if several else {}
            stored = stored[frame.number] if several else stored
            values = dicom.modality_values(frame.dataset, stored, frame.number)
            # In MONOCHROME1 low values are bright. In all other volumes high values are.
            inverse = frame.dataset.PhotometricInterpretation == "MONOCHROME1"
            voxels[:, :, z] = -values.T if inverse else values.T
        return voxels if dtype is None else voxels.astype(dtype, copy=False)


@dicom.quoting_no_value()
def volume(path: Path, contents: Mapping[Path, bytes] | None = None) -> nibabel.Nifti1Image:
    """The volume of the series that the DICOM file at ``path`` belongs to.

    The series is :func:`medlib.data.dicom.series_files`; ``contents`` holds files that were read
    already. Values are float32, after the modality LUT. MONOCHROME1 gets the opposite sign. Values
    are decoded when they are first used. Raises DicomError, with the way out, if there are fewer
    than two slices, if they are in colour, or of several patients, sizes or orientations, if one
    has no position, if two have the same one, or if distances differ by more than a tenth.
    """
    contents, frames = contents or {}, []
    for file in dicom.series_files(path):
        content = contents[file] if file in contents else file.read_bytes()
        try:
            frames += _frames(file.name, dicom.read(content))
        except DicomError as error:
            raise DicomError(f"cannot be read as a series: its file {file.name} {error}") from error
    if len(frames) < 2:
        raise DicomError("has one slice, and a volume needs several: are all files in its folder?")
    _check_alike(frames)
    frames, step = _in_order(frames)
    first = frames[0]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]  # from one column to the next
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    return nibabel.Nifti1Image(Slices(frames), np.diag([-1, -1, 1, 1]) @ affine)


def _frames(file: str, dataset: pydicom.FileDataset) -> list[Frame]:
    """The frames of a file, each with its position."""
    found, count = [], dicom.frames(dataset)
    told_of = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    lost = "slices cannot be put in order: take the series out"
    if count > 1 and told_of != count:
        raise DicomError(
            f"has {count} frames, but states the positions of {told_of}, so that {lost}"
        )
    for number in range(count):
        told = []
        for tag, sequence, size in (
            ("ImagePositionPatient", "PlanePositionSequence", 3),
            ("ImageOrientationPatient", "PlaneOrientationSequence", 6),
            ("PixelSpacing", "PixelMeasuresSequence", 2),
        ):
            values = dicom.functional_group(dataset, sequence, number).get(tag)
            if values is None or len(values) != size:
                raise DicomError(f"lacks the {tag}, without which {lost}")
            told.append(np.array([float(value) for value in values]))
        found.append(Frame(file, dataset, number, *told))
    return found


def _check_alike(frames: list[Frame]) -> None:
    """Raise DicomError unless all frames are grey, of one patient, size and orientation."""
    apart = "move the files of each into a folder of its own"
    first = frames[0]
    kinds = {dicom.text(frame.dataset, "PhotometricInterpretation") for frame in frames}
    if not kinds <= {"MONOCHROME1", "MONOCHROME2"}:
        raise DicomError("is in colour, and a volume has grey values: leave it out")
    patients = {dicom.text(frame.dataset, "PatientID") for frame in frames}
    if len(patients) > 1:
        whose = f"holds files of {len(patients)} patients under one SeriesInstanceUID"
        raise DicomError(f"{whose}: one of them is wrong, {apart}")
    sizes = sorted({f"{frame.shape[1]} × {frame.shape[0]}" for frame in frames})
    if len(sizes) > 1:
        raise DicomError(f"has slices of {len(sizes)} sizes ({', '.join(sizes)} pixels): {apart}")
    turned = [f for f in frames if np.abs(f.orientation - first.orientation).max() > PARALLEL]
    if turned:
        both = f"{first.file} and {turned[0].file}"
        raise DicomError(f"has slices of several orientations ({both}): {apart}")
    if any(not np.allclose(f.spacing, first.spacing, rtol=PARALLEL) for f in frames):
        raise DicomError(f"has slices of several values of PixelSpacing: {apart}")


def _in_order(frames: list[Frame]) -> tuple[list[Frame], np.ndarray]:
    """The frames sorted along their normal, and the step (mm) from one to the next."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    frames = sorted(frames, key=lambda frame: frame.position @ normal)
    along = np.array([frame.position @ normal for frame in frames])
    gaps = np.diff(along)
    several = dicom.frames(frames[0].dataset) > 1
    names = [f"{f.file}, frame {f.number + 1}" if several else f.file for f in frames]
    between = [f"{one} and {other}" for one, other in pairwise(names)]
    if gaps.min() < SAME_PLACE:
        twice = int((gaps < SAME_PLACE).sum())
        where = between[int(gaps.argmin())]
        way_out = "move copies and further volumes (echoes, phases) into folders of their own"
        raise DicomError(f"has {twice} slice(s) where another one lies ({where}): {way_out}")
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > TOLERANCE * usual)
    if len(wrong):
        where = f"{gaps[wrong[0]]:.4g} mm between {between[wrong[0]]}"
        way_out = "are slices missing? Get all files, or take the series out"
        uneven = f"has slices {usual:.4g} mm apart, but not at {len(wrong)} place(s): {where}"
        raise DicomError(f"{uneven} (more than {TOLERANCE:.0%} off): {way_out}")
    positions = np.array([frame.position for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = np.linalg.norm(positions - positions[0] - step * np.arange(len(frames))[:, None], axis=1)
    if off.max() > TOLERANCE * usual:
        away = f"{names[int(off.argmax())]} by {off.max():.4g} mm"
        uneven = f"has slices that are off a straight line with even steps ({away})"
        raise DicomError(f"{uneven}: take the series out")
    return frames, step
