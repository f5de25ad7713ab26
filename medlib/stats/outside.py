"""Find images that are unlike the training images, by the distance of their embeddings.

A normal distribution is fitted to the standardised training embeddings. It has one variance for
each of the first principal components, and one variance for all other directions (probabilistic
PCA: Tipping & Bishop, J. R. Stat. Soc. B 61, 1999). The distance is the Mahalanobis distance, as
Lee et al. (NeurIPS 2018, arXiv 1807.03888) use it for features of networks, but with one
distribution for all classes. Only this distribution is stored, and no embedding of a patient.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse.linalg import svds

# Principal components that have a variance of their own. On real tasks 4, 16 and 32 perform alike.
COMPONENTS = 8
USUAL = 0.95  # the share of samples from the source of the validation samples that is usual
Arrays = Mapping[str, np.ndarray]


def fitted(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """Fit the distribution of training embeddings (n, d) that :func:`distances` takes.

    ``shift`` and ``scale`` (d,) standardise them. Returns components (q, d) in float16, variances
    (q,) in float32, ``rest`` (the variance of all other directions), shift and scale.
    """
    z = (np.asarray(x, np.float32) - shift) / scale
    q = max(1, min(COMPONENTS, min(z.shape) - 1))
    if min(z.shape) > q and z.any():
        start = np.random.default_rng(0).normal(size=min(z.shape))  # the same result in each call
        *_, singular, components = svds(z, q, v0=start.astype(z.dtype))
    else:  # a single image, a single feature, or embeddings that are all the same
        _, singular, components = np.linalg.svd(z, full_matrices=False)
        singular, components = singular[:q], components[:q]
    total, along = float(np.square(z, dtype=np.float64).sum()) / len(z), singular**2 / len(z)
    tiny = np.finfo(np.float32).eps * max(total, 1.0)
    rest = (total - along.sum()) / max(1, z.shape[1] - len(along))
    kept = {"components": components.astype(np.float16), "rest": np.float32(max(rest, tiny))}
    kept["variances"] = np.maximum(along, tiny).astype(np.float32)
    return kept | {"shift": np.asarray(shift), "scale": np.asarray(scale)}


def distances(known: Arrays, x: np.ndarray) -> np.ndarray:
    """The Mahalanobis distance (m,) of each embedding (m, d), in units of sqrt(d)."""
    z = ((np.asarray(x, np.float32) - known["shift"]) / known["scale"]).astype(np.float64)
    along = z @ known["components"].T.astype(np.float64)
    beside = np.maximum(np.square(z).sum(1) - np.square(along).sum(1), 0)
    squares = (along**2 / known["variances"]).sum(1) + beside / float(known["rest"])
    return np.sqrt(squares / z.shape[1])


def by_sample(distances: np.ndarray, samples: Sequence) -> np.ndarray:
    """The mean distance of each sample's rows (the slices of a volume), in order of appearance."""
    return pd.Series(distances).groupby(np.asarray(samples), sort=False).mean().to_numpy()


def usual(distances: np.ndarray) -> float:
    """The largest distance that counts as usual, from the distances of validation samples (n,).

    A new sample from the same source is farther away with a probability of at most 5 % (split
    conformal prediction: Vovk et al., Algorithmic Learning in a Random World, 2005). With fewer
    than 19 samples this probability is at most 1 / (n + 1).
    """
    n = len(distances)
    return float(np.sort(distances)[min(n, int(np.ceil(USUAL * (n + 1) - 1e-9))) - 1])
