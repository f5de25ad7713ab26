"""Image files decoded to upright RGB and resized."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from medlib.data import dicom, greys
from medlib.data.cards import GreyValues
from medlib.data.manifest import sample_file

if TYPE_CHECKING:
    import torch

    Decoded = Image.Image | torch.Tensor

# The formats that are read, whatever a file's name is. Others could start a program, as EPS does.
Image.init()  # Pillow knows some of these only after this call
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
NEW_SUBFILE_TYPE, REDUCED = 254, 1  # TIFF: the tag, and its bit for a copy in lower resolution
MAX_RATIO = 200  # unpacked size divided by packed size; images stay far below it
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UNPACKING = Lock()  # threads that decode ask for the same .npz array at the same time


class Stored(NamedTuple):
    """How an image is stored: the format of its file, bits a value, and its size in pixels."""

    kind: str
    bits: int
    width: int
    height: int


def decode(
    path: Path | str, content: bytes | None = None, grey_values: GreyValues = ""
) -> Image.Image:
    """An image file as upright 8-bit RGB; with its ``content``, the file is not read again.

    Grey, palette, CMYK and alpha (over black) become RGB. EXIF rotation is applied. If a TIFF holds
    reduced copies beside one full image, the full image is taken. ``grey_values`` is the card's: by
    default 8-bit images stay as they are, and deeper ones are stretched. A DICOM file is recognised
    by its content and read by :func:`medlib.data.dicom.picture`. A path ``x.npz#train/7`` is an
    image within a MedMNIST file. Raises ValueError or OSError if the file is not a complete image,
    holds several images, shows nothing, or has more pixels than Pillow's limit.
    """
    file = sample_file(str(path))
    if file != str(path):
        split, _, number = str(path)[len(file) + 1 :].partition("/")
        with _UNPACKING:
            array = _npz_array(file, f"{split}_images", os.stat(file).st_mtime_ns)
        return Image.fromarray(np.ascontiguousarray(array[int(number)])).convert("RGB")
    content = Path(path).read_bytes() if content is None else content
    if dicom.is_dicom(content):
        return dicom.picture(content, grey_values)
    with _opened(path, content) as image:
        return _upright(image, path, content, grey_values)


def stored(path: Path | str, content: bytes | None = None) -> Stored:
    """How an image is stored, by its header. Raises as :func:`decode` does."""
    file = sample_file(str(path))
    if file != str(path):
        return Stored("NPZ", 8, *decode(path).size)
    content = Path(path).read_bytes() if content is None else content
    if dicom.is_dicom(content):
        return Stored("DICOM", *dicom.stored(content))
    with _opened(path, content) as image:
        return Stored(image.format, _bits(image), *image.size)


def _opened(path: Path | str, content: bytes | None) -> Image.Image:
    """An image file of which the header has been read and checked, but no pixel yet."""
    limit = Image.MAX_IMAGE_PIXELS
    way_out = f"more than {limit:,}: a decompression bomb, or it must be made smaller first"
    try:
        image = Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("its content is no image in a format that can be read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * limit:,} pixels, {way_out}") from error
    try:
        if image.width * image.height > limit:
            raise ValueError(f"it has {image.width} × {image.height} pixels, {way_out}")
        if image.format in ("TIFF", "GIF", "WEBP", "PNG"):  # a JPEG may hold its own previews
            _seek_the_one(image)
    except BaseException:
        image.close()
        raise
    return image


def _seek_the_one(image: Image.Image) -> None:
    """Go to the only full image of a file. TIFF pages that are marked as reduced do not count."""
    frames = range(getattr(image, "n_frames", 1))
    if image.format == "TIFF" and len(frames) > 1:
        kinds = {}
        for frame in frames:
            image.seek(frame)
            kinds[frame] = image.tag_v2.get(NEW_SUBFILE_TYPE, 0)
        frames = [frame for frame, kind in kinds.items() if not kind & REDUCED] or frames
    if len(frames) > 1:
        way_out = "save the one that is meant as a file of its own"
        raise ValueError(f"it holds {len(frames)} images (pages or frames): {way_out}")
    if frames[0] or image.tell():
        image.seek(frames[0])


def _bits(image: Image.Image) -> int:
    """How many bits a value of an image has. The image is opened, but not loaded."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    is_16 = image.mode.startswith("I;16") or ";16" in str([tile[3] for tile in image.tile])
    is_16 |= image.format == "PPM" and image.mode == "I"  # Pillow scales its values to 16 bits
    return 16 if is_16 else 32 if image.mode in ("I", "F") else 8


def _upright(
    image: Image.Image, path: Path | str, content: bytes | None, grey_values: GreyValues
) -> Image.Image:
    """An opened image as upright 8-bit RGB. ``grey_values`` says how values become 8-bit."""
    bits = _bits(image)
    if grey_values == "window":
        raise ValueError("grey_values: window is for DICOM; choose stretched or as_stored")
    if bits > 8:
        values, full = _deep(image, bits, path, content)
        picture = Image.fromarray(_to_8_bits(values, full, grey_values or "stretched"))
    else:
        picture = _over_black(image)
        if grey_values not in ("", "as_stored"):
            picture = Image.fromarray(_to_8_bits(np.asarray(picture, np.float32), 255, grey_values))
    picture = picture.convert("RGB")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def _over_black(image: Image.Image) -> Image.Image:
    """An 8-bit image as RGB. Transparent pixels become black."""
    image.load()
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha, colours = image.getchannel("A").getextrema(), image.convert("RGB").getextrema()
    if alpha[1] == 0:
        raise ValueError("it is transparent everywhere (its alpha is 0): save it without alpha")
    if alpha[0] < alpha[1] and all(low == high == 0 for low, high in colours):
        raise ValueError("it is black, and the picture is its alpha channel: save that as grey")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def _deep(
    image: Image.Image, bits: int, path: Path | str, content: bytes | None
) -> tuple[np.ndarray, float]:
    """The values of an image with more than 8 bits (H×W or H×W×3, float32), and the highest value.

    The highest value is the largest that its bits allow; for floating-point values, infinity.
    """
    grey = image.mode.startswith(("I", "F"))
    if not grey and image.format != "PNG":  # Pillow cuts these to 8 bits
        raise ValueError(f"it is a colour {image.format} of {bits} bits: save it as a PNG")
    full = np.inf if image.mode == "F" else float(2**bits - 1)
    if grey:
        whites = (
            image.format == "TIFF"
            and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
        )
        values = np.asarray(image, np.float32)
        if whites:  # WhiteIsZero
            values = (values.max() if full == np.inf else full) - values
        return values, full
    import torch
    from torchvision.io import ImageReadMode, decode_png

    content = Path(path).read_bytes() if content is None else content
    coded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    values = decode_png(coded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy().astype(np.float32)
    if values.shape[2] in (2, 4):
        if values[..., -1].max() == 0:
            raise ValueError("it is transparent everywhere (its alpha is 0): save it without alpha")
        values = values[..., :-1] * (values[..., -1:] / full)
    return (values[..., 0] if values.shape[2] == 1 else values), full


def _to_8_bits(values: np.ndarray, full: float, grey_values: GreyValues) -> np.ndarray:
    """Values as uint8, by the rule of the card. ``full`` is the highest value that is possible."""
    if grey_values == "stretched":
        return greys.window(values)
    if grey_values == "as_stored":
        if values.max() < full / 8 and full > 255:
            highest = f"its highest value is {values.max():g}, of {full:g} that are possible"
            raise ValueError(f"{highest}: as stored it is black. Use grey_values: stretched")
        low, high = 0.0, full
    else:
        low, high = grey_values
    return greys.to_bytes(greys.shares(values, low, high))


def decode_to_resize(
    path: Path | str, size: float, content: bytes | None = None, grey_values: GreyValues = ""
) -> Decoded:
    """An image file, decoded for :func:`resize` to ``size`` pixels or more.

    A plain JPEG (by its name; 8-bit grey or colour, stored upright) that torch may shrink comes as
    a tensor, 3×H×W uint8, of the pixels that :func:`decode` gives; any other file as a picture.
    Raises as :func:`decode` does.
    """
    if not _named_jpeg(path) or grey_values not in ("", "as_stored"):
        return decode(path, content, grey_values)
    content = Path(path).read_bytes() if content is None else content
    with _opened(path, content) as image:
        coded = image.format == "JPEG" and image.mode in ("L", "RGB")
        plain = coded and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if plain and _torch_may_shrink(*image.size, size):
            import torch
            from torchvision.io import ImageReadMode, decode_jpeg  # from 0.29 on also in torchcodec

            with contextlib.suppress(RuntimeError):  # damaged: Pillow says how
                # Grey, too, as three channels: torch resizes these faster than one.
                coded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return decode_jpeg(coded, ImageReadMode.RGB)
        return _upright(image, path, content, grey_values)


def _named_jpeg(path: Path | str) -> bool:
    return str(path).lower().endswith((".jpg", ".jpeg"))


def as_picture(decoded: Decoded) -> Image.Image:
    """The result of :func:`decode_to_resize` as Pillow's picture."""
    is_picture = isinstance(decoded, Image.Image)
    return decoded if is_picture else Image.fromarray(decoded.permute(1, 2, 0).numpy())


def _torch_may_shrink(width: int, height: int, size: float) -> bool:
    # Torch's weights have 16 bits, Pillow's 22: if few pixels are averaged, the errors of the two
    # passes add up. And of a tall picture Pillow shrinks the height first, which torch never does.
    return width >= height >= 2 * size


def shorter_side(size: int, geometry: str) -> int:
    """The shorter side, in pixels, to which a picture is resized for an image of this size."""
    return round(size * 256 / 224) if geometry == "crop" else size


def resize(picture: Decoded, size: int, interpolation: str, geometry: str = "squash") -> np.ndarray:
    """A picture as size×size×3, uint8: bilinear or bicubic, antialiased.

    ``squash`` keeps the whole field of view and changes its proportions. ``crop`` resizes the
    shorter side to 256/224 of the size and takes the centre, as torchvision's Resize(256) and
    CenterCrop(224) do: what lies near the edges is lost. Pillow resizes, except for a tensor that
    is no taller than wide and shrinks to half or less. torch resizes that one: its values are
    within one grey level of Pillow's (about 1 value in 500 differs). With bicubic and patterns of
    pure black and white, 1 value in 100,000 is two levels off.
    """
    is_picture = isinstance(picture, Image.Image)
    width, height = picture.size if is_picture else reversed(picture.shape[1:])
    wide = high = short = shorter_side(size, geometry)
    if geometry == "crop":
        wide, high = (int(short * side / min(width, height)) for side in (width, height))
    if not is_picture and _torch_may_shrink(width, height, short):
        from torch.nn.functional import interpolate

        # These strides make torch keep the channels last; with picture[None] it would not.
        pixels = picture.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        small = interpolate(pixels, (high, wide), mode=interpolation, antialias=True)
        small = small[0].permute(1, 2, 0).numpy()
    else:
        small = np.asarray(as_picture(picture).resize((wide, high), RESAMPLING[interpolation]))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return small[top : top + size, left : left + size]


@contextlib.contextmanager
def torch_in_one_thread(paths: Iterable[str]) -> Iterator[None]:
    """If there are JPEGs: import torch, and let it use one thread in each of our threads."""
    if not any(map(_named_jpeg, paths)):
        yield
        return
    import torch
    import torchvision.io  # noqa: F401  here, not by several threads at a time

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=3)  # train, val, test
def _npz_array(file: str, name: str, mtime_ns: int) -> np.ndarray:
    """An array of an .npz, unpacked onto the disk and mapped: pathmnist at 224 px has 16 GB.

    Raises ValueError, before it is unpacked, for one that is a decompression bomb or too large.
    """
    with zipfile.ZipFile(file) as archive, tempfile.NamedTemporaryFile() as raw:
        told = archive.getinfo(f"{name}.npy")
        size, free = told.file_size, shutil.disk_usage(tempfile.gettempdir()).free
        if size > MAX_RATIO * max(told.compress_size, 2**16):
            raise ValueError(f"{name} would unpack to {size:,} bytes: it is a decompression bomb")
        if size > free:
            where = f"{tempfile.gettempdir()} has {free:,} (name another folder in TMPDIR)"
            raise ValueError(f"{name} would unpack to {size:,} bytes, and {where}")
        with archive.open(told) as packed:
            shutil.copyfileobj(packed, raw, 1 << 20)
        raw.flush()
        return np.load(raw.name, mmap_mode="r")  # stays readable after the name is gone
