"""Read DICOM files: their headers, and single images as pictures.

No name, date or UID leaves this module, except in a :class:`Header`, which stays in memory.
Messages hold sizes, kinds and names of tags, never values that could identify a patient. pydicom's
own warnings and log quote such values, so they are turned off.
"""

import contextlib
import hashlib
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medlib.data import greys
from medlib.data.cards import GREY_VALUES, GreyValues
from medlib.data.known import years
from medlib.errors import unknown

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom|medlib\.data\.dicom")

KEYS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "accession_number")
KEYS += ("patient_id",)  # by these a table may name an image, a series or a patient
SEXES = {"M": "male", "F": "female", "O": "other"}
NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
NO_IMAGES = ("SEG", "RTDOSE", "REG", "RWV")  # modalities with rows, but without a picture
DIRECTORY = "1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
PLAIN += (DeflatedExplicitVRLittleEndian,)  # transfer syntaxes that need no decoder
# The package that decodes each of the others.
PACKAGES = {"1.2.840.10008.1.2.5": "pylibjpeg-rle"}
PACKAGES |= {f"1.2.840.10008.1.2.4.{n}": "pylibjpeg-openjpeg" for n in (90, 91, 201, 202, 203)}
PACKAGES |= {f"1.2.840.10008.1.2.4.{n}": "pylibjpeg-libjpeg" for n in (50, 51, 57, 70, 80, 81)}
TAGS = ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID"]
TAGS += ["SOPClassUID", "Modality", "ImageType", "NumberOfFrames", "Rows", "PatientAge"]
TAGS += ["PatientBirthDate", "StudyDate", "PatientSex", "Manufacturer", "InstitutionName"]
TAGS += ["BurnedInAnnotation"]
_READING = Lock()  # threads ask for the headers of the same folder at the same time


class DicomError(ValueError):
    """A problem of a DICOM file. The message continues "it", as in "has 12 frames: …"."""


@contextlib.contextmanager
def quoting_no_value() -> Iterator[None]:
    """Replace errors of pydicom by a DicomError: pydicom's may quote the value of a tag.

    pydicom parses a value when it is first used, so any line that uses one may fail.
    """
    try:
        yield
    except (DicomError, MemoryError):
        raise
    except Exception as error:
        raise DicomError(f"has a damaged tag ({type(error).__name__}): export it again") from None


class Header(NamedTuple):
    """What a file's header tells, as texts; "" where it tells nothing.

    The first five are as in the file and identify a patient: they are compared, hashed, and never
    written. ``known`` has age (years), sex (male, female, other), manufacturer, site and burnt_in
    (yes, no), as the manifest's columns. ``left_out`` says why this is no image of a patient.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    accession_number: str
    patient_id: str
    frames: int
    known: dict[str, str]
    left_out: str


def short_hash(name: str) -> str:
    """The first 12 hex digits of a name's sha256. They replace the name in a manifest.

    They do not hide a patient's number from somebody who can hash all possible numbers. Keep the
    manifest of a hospital's data as private as the data.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def is_dicom(content: bytes) -> bool:
    """Whether a file's content, or its first 1,000 bytes or so, is DICOM.

    With ``DICM`` after a preamble it is. Files without a preamble (ACR-NEMA, and some archives)
    are recognised by two data elements in ascending order, the first of group 2 or 8.
    """
    if content[128:132] == b"DICM":
        return True
    return any(_two_elements(content, order) for order in ("little", "big"))


def _two_elements(content: bytes, order: str) -> bool:
    """Whether content begins with two data elements of the groups 2 or 8, in ascending order."""
    at, last = 0, (0, -1)
    for _ in range(2):
        head = content[at : at + 8]
        tag = tuple(int.from_bytes(head[i : i + 2], order) for i in (0, 2))
        if len(head) < 8 or tag[0] not in (2, 8) or tag <= last or tag[1] > 0x3000:
            return False
        explicit = re.fullmatch(rb"[A-Z]{2}", head[4:6])
        if explicit and head[4:6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR"):
            length = 4 + int.from_bytes(content[at + 8 : at + 12], order)
        else:
            length = int.from_bytes(head[6:8] if explicit else head[4:8], order)
        at, last = at + 8 + length, tag
        if length > 512:  # longer than any of the first elements: this was no length
            return False
    return True


# ------------------------------------------------------------------------------------- headers


def headers(folder: Path) -> dict[str, Header | str]:
    """The header of each DICOM file in a folder (not below it), by the file's name.

    If a DICOM file cannot be read, a text says why. Pixels are not read. The folder is read again
    only if a file was added, removed or renamed.
    """
    with _READING:
        return _headers(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _headers(folder: Path, mtime_ns: int) -> dict[str, Header | str]:
    paths = (p for p in sorted(folder.iterdir()) if not (p.is_dir() or p.name.startswith(".")))
    found = {path.name: header(path) for path in paths}
    return {name: told for name, told in found.items() if told is not None}


def header(path: Path) -> Header | str | None:
    """The header of one file, as :func:`headers` gives it; None if it is no DICOM file."""
    try:
        with path.open("rb") as file:
            if not is_dicom(file.read(1024)):
                return None
            file.seek(0)
            return _header(file)
    except OSError as error:  # a broken link, or no permission
        return f"it cannot be read ({error.strerror})"


def _header(file: io.BufferedIOBase) -> Header | str:
    try:
        told = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)
        names = (text(told, tag) for tag in TAGS[: len(KEYS)])
        frames = int(told.get("NumberOfFrames") or 1)
        return Header(*names, frames, _known(told), _left_out(told))
    except Exception as error:  # pydicom's messages may quote what identifies a patient
        return f"its DICOM header is damaged ({type(error).__name__}): copy it again"


def text(dataset: pydicom.Dataset, tag: str) -> str:
    """A tag's value as text; "" where there is none."""
    value = dataset.get(tag)
    return "" if value is None else str(value).strip("\0 ")


def _known(told: pydicom.Dataset) -> dict[str, str]:
    return {
        "age": _age(text(told, "PatientAge")) or _age_between(told),
        "sex": SEXES.get(text(told, "PatientSex").upper(), ""),
        "manufacturer": text(told, "Manufacturer"),
        "site": text(told, "InstitutionName"),
        "burnt_in": {"YES": "yes", "NO": "no"}.get(text(told, "BurnedInAnnotation").upper(), ""),
    }


def _age(text: str) -> str:
    """Years from "058Y", "011M", "003W" or "010D". Some archives write only 58."""
    age = years(text if text[-1:].isalpha() else f"{text}Y")
    return age if re.fullmatch(r"[\d.]+", age) else ""


def _age_between(told: pydicom.Dataset) -> str:
    """Years from birth to the study. From two years on they are rounded down, as in PatientAge."""
    dates = []
    for tag in ("PatientBirthDate", "StudyDate"):
        with contextlib.suppress(ValueError):
            dates.append(datetime.strptime(text(told, tag).replace(".", ""), "%Y%m%d"))
    if len(dates) < 2 or dates[1] < dates[0]:
        return ""
    years = (dates[1] - dates[0]).days / 365.25
    return f"{math.floor(years) if years >= 2 else round(years, 2):g}"


def _left_out(told: pydicom.Dataset) -> str:
    """Why a DICOM object is left out; "" if it is an image of a patient."""
    kind = UID(told.get("SOPClassUID") or told.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == DIRECTORY:
        return "a DICOMDIR, which lists files and holds no image"
    name = kind.name if kind.keyword else "an object of an unknown class"  # else the UID itself
    if text(told, "Modality") in NO_IMAGES or not told.get("Rows"):
        return f"a DICOM file without a picture: {name}"
    return "a localizer" if "LOCALIZER" in text(told, "ImageType").upper() else ""


def series_files(path: Path) -> list[Path]:
    """The files of a file's series, sorted by name: those in its folder with its SeriesInstanceUID.

    Localizers and other objects without an image are left out. A file that is not a DICOM image, or
    has no SeriesInstanceUID, is returned alone.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):  # not even opened
        return [path]
    here = headers(path.parent)
    own = here.get(path.name)
    if not isinstance(own, Header) or own.left_out or not own.series_instance_uid:
        return [path]
    uid = own.series_instance_uid
    images = {name: h for name, h in here.items() if isinstance(h, Header) and not h.left_out}
    return [path.parent / name for name, h in images.items() if h.series_instance_uid == uid]


# -------------------------------------------------------------------------------------- pixels


def read(content: bytes) -> pydicom.FileDataset:
    """A file's content as pydicom's dataset. Its transfer syntax and its size have been checked.

    Raises DicomError if it holds no image that can be read.
    """
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    except Exception as error:
        raise DicomError(f"cannot be read ({type(error).__name__}): copy it again") from None
    missing = [tag for tag in NEEDED if dataset.get(tag) in (None, "")]
    if not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        missing.append("PixelData")
    if missing:
        raise DicomError(f"holds no whole image: {', '.join(missing)} missing")
    if dataset.Rows * dataset.Columns > Image.MAX_IMAGE_PIXELS:
        many = f"{dataset.Columns} × {dataset.Rows} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
        raise DicomError(f"has {many}: its header is damaged, or it must be made smaller first")
    if not dataset.file_meta.get("TransferSyntaxUID"):  # pydicom has guessed it
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return dataset


def frames(dataset: pydicom.Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def stored(content: bytes) -> tuple[int, int, int]:
    """Bits of a value, width and height of an image, by its header."""
    with quoting_no_value():
        told = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
        return int(told.get("BitsStored") or told.BitsAllocated), told.Columns, told.Rows


def stored_values(dataset: pydicom.FileDataset) -> np.ndarray:
    """The pixels as stored: (rows, columns), or (rows, columns, 3) in RGB for colour.

    If there are several frames, they are the first axis. YBR is converted to RGB. Unused bits and
    overlay bits are 0.
    Raises DicomError where a decoder is missing, or where the pixels are damaged.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = ""
    if syntax not in PLAIN:
        _check_decoder(syntax)
        plugin = "pylibjpeg"  # whatever else is installed: the same pixels everywhere
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # each decoder has its own; RLE's may be a panic of Rust
        why = " ".join(str(error).split()) or type(error).__name__
        raise DicomError(f"holds pixels that cannot be decoded ({why}): copy it again") from error


def _check_decoder(syntax: UID) -> None:
    name = syntax.name if syntax.keyword else "an unknown transfer syntax"
    if syntax not in PACKAGES:
        way_out = "convert it to Explicit VR Little Endian, with gdcmconv --raw or dcmdjpeg"
        raise DicomError(f"is compressed as {name}, for which there is no decoder: {way_out}")
    if "pylibjpeg" not in get_decoder(syntax).available_plugins:
        way_out = f"pip install pylibjpeg {PACKAGES[syntax]}"
        raise DicomError(f"is compressed as {name}, whose decoder is not installed: {way_out}")


def functional_group(dataset: pydicom.Dataset, name: str, frame: int = 0) -> pydicom.Dataset:
    """The part of an enhanced file that describes a frame; the dataset itself if it has none."""
    for sequence, number in (("PerFrame", frame), ("Shared", 0)):
        groups = dataset.get(f"{sequence}FunctionalGroupsSequence") or ()
        if len(groups) > number and groups[number].get(name):
            return groups[number].get(name)[0]
    return dataset


def modality_values(dataset: pydicom.Dataset, stored: np.ndarray, frame: int = 0) -> np.ndarray:
    """Stored values after the modality LUT, or after rescale slope and intercept: float32."""
    source = functional_group(dataset, "PixelValueTransformationSequence", frame)
    if source.get("ModalityLUTSequence"):
        return _looked_up(dataset, source.ModalityLUTSequence[0], stored)[0]
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    values = stored.astype(np.float32)
    if slope is not None and float(slope) != 1:
        values *= float(slope)
    if intercept is not None and float(intercept) != 0:
        values += float(intercept)
    return values


def _looked_up(
    dataset: pydicom.Dataset, table: pydicom.Dataset, values: np.ndarray
) -> tuple[np.ndarray, int]:
    """Values after a modality or VOI LUT (float32), and the highest value that the LUT can give.

    pydicom's own functions refuse a LUT of 12 bits, and in one of 8 bits they wrap an index above
    255.
    """
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):
        little = dataset.file_meta.TransferSyntaxUID != ExplicitVRBigEndian
        wide = len(data) >= 2 * (entries or 2**16)
        data = np.frombuffer(data, ("<u2" if little else ">u2") if wide else "u1")
    data = np.atleast_1d(np.asarray(data))[: entries or 2**16]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(data) - 1)
    return data[index].astype(np.float32), 2**bits - 1


# ------------------------------------------------------------------------------------ pictures


def picture(content: bytes, grey_values: GreyValues = "") -> Image.Image:
    """One DICOM image as 8-bit RGB. It is not turned or mirrored.

    ``grey_values`` is the card's field of that name and says what becomes black and white:
    ``window``: the file's VOI LUT, else its first window. ``as_stored``: the lowest and the highest
    value that BitsStored allows, after the modality LUT. ``stretched``: the 0.5th and 99.5th
    percentiles of the values; padding does not count. Or two values, after the modality LUT (in CT,
    Hounsfield units). MONOCHROME1, where low values are bright, is inverted afterwards. Colour
    becomes RGB without a window; deeper colour is cut to 8 bits. Overlays, presentation states and
    colour profiles are ignored. Burnt-in text stays.
    Raises DicomError, a ValueError, if the file has several frames or lacks tags, if neither card
    nor file says what grey values mean, and if the pixels cannot be decoded.
    """
    scale = _scale_of(grey_values)
    with quoting_no_value():
        return _picture(read(content), scale)


def _picture(dataset: pydicom.FileDataset, scale: Callable) -> Image.Image:
    kind = text(dataset, "PhotometricInterpretation")
    if (several := frames(dataset)) > 1:
        way_out = "export the frame that is meant, or read it as a volume (`volumes` in the card)"
        raise DicomError(f"has {several} frames, where one image is needed: {way_out}")
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        stored = stored_values(dataset)
        grey = greys.to_bytes(scale(dataset, stored, modality_values(dataset, stored)))
        return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey).convert("RGB")
    if kind not in (*COLOURS, "PALETTE COLOR"):
        can = ", ".join(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", *COLOURS))
        raise DicomError(f"has the PhotometricInterpretation {kind!r}; these can be read: {can}")
    colour = stored_values(dataset)
    if kind == "PALETTE COLOR":
        colour = apply_color_lut(colour, dataset)[..., :3]
        deeper = 8 * (colour.dtype.itemsize - 1)
    else:
        deeper = max(int(dataset.get("BitsStored") or dataset.BitsAllocated) - 8, 0)
    return Image.fromarray(np.ascontiguousarray(colour >> deeper).astype(np.uint8))


def _scale_of(grey_values: GreyValues) -> Callable:
    """The function that scales values as the card says: (dataset, stored, values) → 0 … 1."""
    if isinstance(grey_values, tuple | list):
        low, high = grey_values
        return lambda dataset, stored, values: _between(values, low, high)
    scales = {"window": _windowed, "as_stored": _whole_range, "stretched": _stretched}
    if grey_values and grey_values not in scales:
        raise ValueError(
            unknown("grey_values", grey_values, GREY_VALUES[1:], "Or give two values.")
        )
    return scales.get(grey_values, _not_told)


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DicomError("holds NaN or infinite values")
    return greys.shares(values, float(low), float(high))


def _not_told(dataset: pydicom.Dataset, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    ways = "window, as_stored, stretched, or two values as [-1000, 400]"
    raise DicomError(f"has grey values: say in the card, `grey_values`, what they mean: {ways}")


def _windowed(dataset: pydicom.Dataset, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.2: the VOI LUT, or a window with its function."""
    source = functional_group(dataset, "FrameVOILUTSequence")
    if source.get("VOILUTSequence"):
        grey, highest = _looked_up(dataset, source.VOILUTSequence[0], values)
        return grey / highest
    ends = [source.get(tag) for tag in ("WindowCenter", "WindowWidth")]
    if any(end in (None, "", []) for end in ends):
        others = "as_stored, stretched, or two values as [-1000, 400]"
        raise DicomError(f"has neither a window nor a VOI LUT: choose in `grey_values` {others}")
    centre, width = (float(np.atleast_1d(end)[0]) for end in ends)
    function = text(source, "VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else np.finfo(np.float32).tiny):
        raise DicomError(f"has a window of width {width:g}: choose other `grey_values`")
    if function == "LINEAR":  # the standard subtracts one from the upper end
        return _between(values, centre - width / 2, centre + width / 2 - 1)
    if function == "LINEAR_EXACT":
        return _between(values, centre - width / 2, centre + width / 2)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    way_out = "it must be LINEAR, LINEAR_EXACT or SIGMOID; choose other `grey_values`"
    raise DicomError(f"has the VOILUTFunction {function!r}: {way_out}")


def _whole_range(dataset: pydicom.Dataset, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Scale from the lowest to the highest value that the bits and the modality LUT allow."""
    if stored.dtype.kind == "f":
        raise DicomError("holds floating-point values, whose range is open: choose `stretched`")
    source = functional_group(dataset, "PixelValueTransformationSequence")
    if source.get("ModalityLUTSequence"):
        return _between(values, 0, 2 ** int(source.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    lowest = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0
    ends = modality_values(dataset, np.array([lowest, lowest + 2**bits - 1], np.int64))
    return _between(values, *sorted(ends.tolist()))


def _stretched(dataset: pydicom.Dataset, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    inside = values
    if (padding := dataset.get("PixelPaddingValue")) not in (None, ""):
        limit = dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((int(padding), int(padding if limit in (None, "") else limit)))
        inside = values[(stored < low) | (stored > high)]
        if not inside.size:
            raise DicomError("is nothing but padding (PixelPaddingValue)")
    if not np.isfinite(inside).all():
        raise DicomError("holds NaN or infinite values")
    return _between(values, *np.percentile(inside, greys.PERCENTILES))
