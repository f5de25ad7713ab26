"""Scale values of any range to 8-bit grey values."""

import numpy as np

PERCENTILES = (0.5, 99.5)  # of an image's values; they become black and white


def shares(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale values so that ``low`` becomes 0 and ``high`` becomes 1. Nothing is cut off."""
    with np.errstate(over="ignore"):  # both ends equal: everything above them is white
        return (values - low) / max(high - low, np.finfo(np.float32).tiny)


def to_bytes(shares: np.ndarray) -> np.ndarray:
    """Shares as uint8: 0 for 0 and less, 255 for 1 and more."""
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def window(
    values: np.ndarray, inside: np.ndarray | None = None, percentiles: tuple = PERCENTILES
) -> np.ndarray:
    """Scale values to 0 … 255 (uint8) between two of their percentiles, or those of ``inside``.

    Raises ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    ends = np.percentile(values if inside is None else values[inside], percentiles)
    return to_bytes(shares(values, *ends))
