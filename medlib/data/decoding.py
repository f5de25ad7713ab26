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
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from medlib.data import dicom, volumes
from medlib.data.manifest import sample_file

if TYPE_CHECKING:
    import torch

    Decoded = Image.Image | torch.Tensor

# What a file's content may be, whatever its name is. Others could start a program: EPS Ghostscript.
Image.init()  # Pillow knows some of these only after this call
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
MAX_RATIO = 200  # unpacked size divided by packed size; images stay far below it
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UNPACKING = Lock()  # threads that decode ask for the same .npz array at the same time


def decode(
    path: Path | str, content: bytes | None = None, grey_values: str | tuple = ""
) -> Image.Image:
    """An image file as upright 8-bit RGB; with its ``content``, the file is not read again.

    Grey, palette, CMYK and alpha (over black) become RGB; EXIF rotation is applied; 16-bit and
    floating-point grey is windowed to its 0.5th and 99.5th percentiles rather than truncated. A
    path ``x.npz#train/7`` is an image within a MedMNIST file. DICOM, whatever its name is, goes to
    :func:`medlib.data.dicom.picture` with the card's ``grey_values``. Raises ValueError or OSError
    for a file that is no complete image, or has more pixels than Pillow's limit.
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
        return _upright(image)


def _opened(path: Path | str, content: bytes | None) -> Image.Image:
    """An image file of which the header has been read and checked, but no pixel yet."""
    try:
        image = Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("its content is no image in a format that can be read") from error
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        many = f"{image.width} × {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
        raise ValueError(f"it has {many}: a decompression bomb, or to be made smaller first")
    return image


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(volumes.window(np.asarray(image, np.float32))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def decode_to_resize(
    path: Path | str, size: float, content: bytes | None = None, grey_values: str | tuple = ""
) -> Decoded:
    """An image file, decoded for :func:`resize` to ``size`` pixels or more.

    A plain JPEG (by its name; 8-bit grey or colour, stored upright) that torch may shrink comes as
    a tensor, 3×H×W uint8, of the pixels that :func:`decode` gives; any other file as a picture.
    Raises as :func:`decode` does.
    """
    if not _named_jpeg(path):
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
        return _upright(image)


def _named_jpeg(path: Path | str) -> bool:
    return str(path).lower().endswith((".jpg", ".jpeg"))


def as_picture(decoded: Decoded) -> Image.Image:
    """What :func:`decode_to_resize` gives, as Pillow's picture."""
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
    CenterCrop(224) do: what lies near the edges is lost.
    Pillow resizes, except for a tensor that is no taller than wide and shrinks to half or less.
    That is within one grey level of Pillow's (about 1 value in 500 differs); with bicubic and
    patterns of pure black and white, 1 value in 100,000 is two levels off.
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
