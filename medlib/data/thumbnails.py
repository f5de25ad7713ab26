"""Small grey pictures of images. Copies are found by comparing them."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 96  # pixels
TINY = 40  # pixels; if a side is shorter, only an equal picture counts as a copy
FLAT = 2.0  # grey levels; a picture with a smaller standard deviation is blank


def draw(image: Image.Image) -> np.ndarray:
    """An image, of any size and mode, as a small grey square: uint8 S×S, antialiased."""
    # Compression changes a bilinear thumbnail least. But a small picture would be blurred by it.
    small = min(image.size) < SIDE
    kernel = Image.Resampling.LANCZOS if small else Image.Resampling.BILINEAR
    return np.asarray(image.convert("L").resize((SIDE, SIDE), kernel))


def detail(pictures: np.ndarray, fine=1.0, coarse=2.0, around=2.0, least=1.0) -> np.ndarray:
    """The middle frequencies of pictures (N×S×S), with equal contrast: float32 N×S×S.

    A difference of Gaussians removes slow shading, which different patients share, and the finest
    grain, which compression changes. It is divided by its local strength (Jarrett et al., ICCV
    2009). Otherwise the bright rim of the camera's field would count most. ``least`` (grey levels)
    is added to the strength, so that rounding errors stay small in even regions. ``fine``,
    ``coarse`` and ``around`` are in pixels.
    """
    images = np.asarray(pictures, np.float32)
    band = _blurred(images, fine) - _blurred(images, coarse)
    return band / np.sqrt(_blurred(band**2, around) + least)


def _blurred(images: np.ndarray, pixels: float) -> np.ndarray:
    return gaussian_filter(images, (0, pixels, pixels), mode="nearest")
