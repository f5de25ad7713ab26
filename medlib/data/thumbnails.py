"""Small grey pictures of images, by which copies are found."""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 96  # pixels
TINY = 40  # pixels; of a picture with a shorter side only an equal one is known to be a copy
FLAT = 2.0  # grey levels of standard deviation; what varies less is blank, and like nothing


def draw(image: Image.Image) -> np.ndarray:
    """An image, of any size and mode, as a small grey square: uint8 S×S, antialiased."""
    # Bilinear shrinking is the least upset by compression; enlarging, it would blur what is there.
    small = min(image.size) < SIDE
    kernel = Image.Resampling.LANCZOS if small else Image.Resampling.BILINEAR
    return np.asarray(image.convert("L").resize((SIDE, SIDE), kernel))


def detail(pictures: np.ndarray, fine=1.0, coarse=2.0, around=2.0, least=1.0) -> np.ndarray:
    """The middle frequencies of pictures (N×S×S), with equal contrast: float32 N×S×S.

    A difference of Gaussians removes slow shading, which different patients share, and the finest
    grain, which compression changes. It is divided by its local strength (as in Jarrett et
    al., ICCV 2009), so that the rim of the camera's field does not outweigh what is inside; the
    added ``least`` grey level keeps rounding errors in even regions small. Others are in pixels.
    """
    images = np.asarray(pictures, np.float32)
    band = _blurred(images, fine) - _blurred(images, coarse)
    return band / np.sqrt(_blurred(band**2, around) + least)


def _blurred(images: np.ndarray, pixels: float) -> np.ndarray:
    return gaussian_filter(images, (0, pixels, pixels), mode="nearest")
