"""Which images are the same picture: the same file, or a copy in another coding, size or tone.

Medical photographs look alike, so two correlations must be high: that of the pictures, and that of
their detail. Candidates come from a perceptual hash, the lowest frequencies of a thumbnail's cosine
transform (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). The
hash is not rounded to bits, so it bounds the correlation. Cropped, turned and mirrored copies are
found by :mod:`medlib.data.changed_copies`.
"""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from medlib.data.thumbnails import FLAT, detail

# Least correlations of two copies, from 16,655 fundus, chest and skin images. If two different
# pictures exceed the first limit, their detail correlates by at most 0.74. All images were copied
# (JPEG quality 50, half the size, 10 % brighter, 10 % less contrast): 2 in 66,620 copies are below
# one of the two limits.
SAME_PICTURE = 0.97
SAME_DETAIL = 0.8  # see _detail

_WAVES = 8  # cosine frequencies a side that are compared first
_CROWD = 100  # images; in a group larger than this, no further pairs are compared
_BLOCK = 256  # images that are compared with as many others at a time


def find(
    thumbnails: np.ndarray, sha256: Sequence[str], tiny: Sequence[bool] | None = None
) -> pd.DataFrame:
    """Pairs of images that are the same picture, by their thumbnails (uint8 N×S×S) and hashes.

    Returns one row for each pair: positions ``first`` < ``second``, ``kind`` and ``correlation``
    (of the detail). The kinds:

    - ``exact``: equal hashes; "" is unknown and equals no other. Each file is paired with the first
      one that is equal. Only that one is compared further.
    - ``near``: correlated by at least SAME_PICTURE, and by SAME_DETAIL in detail. FLAT thumbnails
      are never near. ``tiny`` images (N bools) are near only if their thumbnails are equal: at 28
      pixels a side, fundus photographs of different eyes correlate as copies do.
    - ``mirrored and cropped`` and the like: see :func:`medlib.data.changed_copies.find`.

    A group of k near copies has k-1 pairs, its maximum spanning tree. So each image is paired with
    its best match, and if the group crosses a split, a pair does. In a group of more than a
    hundred, such as the frames of a film, the tree is not the maximum one, which would take time
    with the square of k. Changed copies are listed only where they join groups. Raises ValueError
    for arrays that do not fit.
    """
    thumbnails = np.asarray(thumbnails)
    if len(thumbnails) and (thumbnails.ndim != 3 or thumbnails.dtype != np.uint8):
        shape = "×".join(map(str, thumbnails.shape))
        raise ValueError(f"thumbnails must be uint8 N×S×S, not {thumbnails.dtype} {shape}")
    if len(thumbnails) != len(sha256):
        raise ValueError(f"{len(thumbnails)} thumbnails have {len(sha256)} hashes")
    everything = np.arange(len(thumbnails))
    first = _first_equal(digest or position for position, digest in enumerate(sha256))
    again = first != everything
    exact = _table(first[again], everything[again], 1.0, "exact")

    # Equal thumbnails would make n²/2 candidates of n images: the first stands for all.
    files = np.array([p for p in everything[~again] if thumbnails[p].std() >= FLAT], dtype=int)
    first = files[_first_equal(hashlib.sha256(thumbnails[p].tobytes()).digest() for p in files)]
    again = first != files
    equal = _table(first[again], files[again], 1.0, "near")

    told = ~np.asarray(tiny, bool)[files] if tiny is not None else True
    files = files[~again & told]
    near = _table(*_near(thumbnails, files), "near")
    changed = _changed(thumbnails, files, near)
    pairs = pd.concat([exact, equal, near, changed])
    return pairs.sort_values(["first", "second"], ignore_index=True)


def _table(first: np.ndarray, second: np.ndarray, correlation, kind: str) -> pd.DataFrame:
    table = pd.DataFrame({"first": first, "second": second, "kind": kind})
    return table.assign(correlation=np.broadcast_to(correlation, len(table)).astype(float))


def _first_equal(keys: Iterable[Hashable]) -> np.ndarray:
    """For each key the position of the first that equals it."""
    seen = {}
    return np.array([seen.setdefault(key, i) for i, key in enumerate(keys)], dtype=int)


def _changed(thumbnails: np.ndarray, files: np.ndarray, near: pd.DataFrame) -> pd.DataFrame:
    """Changed copies between groups of near copies: a spanning forest of pairs."""
    n = len(thumbnails)
    if len(files) < 2:
        return near.iloc[:0]
    from medlib.data import changed_copies  # imports torch, which takes seconds

    joined = coo_array((np.ones(len(near)), (near["first"], near["second"])), shape=(n, n))
    group = connected_components(joined, directed=False)[1]
    pairs = changed_copies.find(thumbnails[files], group[files])
    for name in ("first", "second"):
        pairs[name] = files[pairs[name]]
    # The nodes of the forest are groups of near copies. Of two groups, the best pair counts.
    ends = np.sort([group[pairs["first"]], group[pairs["second"]]], axis=0)
    pairs = pairs.assign(one=ends[0], other=ends[1])
    pairs = pairs.sort_values("correlation", ascending=False, kind="stable")
    pairs = pairs.drop_duplicates(["one", "other"])
    distance = 2 - pairs["correlation"]  # above 0, which would mean no pair
    tree = minimum_spanning_tree(coo_array((distance, (pairs["one"], pairs["other"])), (n, n)))
    tree = set(zip(*tree.nonzero(), strict=True))
    kept = [pair in tree for pair in zip(pairs["one"], pairs["other"], strict=True)]
    return pairs.loc[kept, ["first", "second", "kind", "correlation"]]


def _near(thumbnails: np.ndarray, files: np.ndarray) -> tuple[np.ndarray, ...]:
    """Near pairs i < j among some positions and their details' correlations: a spanning forest."""
    n = len(thumbnails)
    i, j, correlation = np.empty(0, int), np.empty(0, int), np.empty(0)
    group, crowded = np.arange(n), np.zeros(n, bool)
    for one, other in _candidates(thumbnails, files):
        new = (group[one] != group[other]) | ~crowded[one]
        if not new.any():
            continue
        one, other = one[new], other[new]
        for form, least in ((_unit, SAME_PICTURE), (_detail, SAME_DETAIL)):
            (of_one, a), (of_other, b) = (np.unique(k, return_inverse=True) for k in (one, other))
            alike = (form(thumbnails[of_one]) @ form(thumbnails[of_other]).T)[a, b]
            one, other, alike = (values[alike >= least] for values in (one, other, alike))
        if len(alike):
            # Thinned as it grows: 10,000 frames of a film leave 10,000 pairs, not 50 million.
            i, j = np.append(i, one), np.append(j, other)
            distance = 2 - np.append(correlation, alike)  # above 0, which would mean no pair
            pairs = coo_array((distance, (i, j)), shape=(n, n)).tocsr()
            tree = minimum_spanning_tree(pairs).tocoo()
            i, j, correlation = tree.row, tree.col, 2 - tree.data
            group = connected_components(tree, directed=False)[1]
            crowded = (np.bincount(group) > _CROWD)[group]
    return i, j, correlation


def _candidates(thumbnails: np.ndarray, files: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield candidate pairs i < j. All pairs that correlate by SAME_PICTURE or more are included.

    The low frequencies are a part of a unit vector. The remainders of two vectors add to their
    correlation at most the product of the remainders' lengths (Parseval; Cauchy and Schwarz). With
    this length as one more component, 64 numbers an image bound the correlation of S² pixels from
    above. All are compared with all, in half a minute for 100,000 images.
    """
    blocks = [files[k : k + _BLOCK] for k in range(0, len(files), _BLOCK)]
    hashed = [(block, _low_frequencies(thumbnails[block])) for block in blocks]
    for (a, low), (b, others) in combinations_with_replacement(hashed, 2):
        bound = low @ others.T
        one, other = np.nonzero(bound >= SAME_PICTURE - 1e-5)  # 1e-5: rounding of float32
        once = a[one] < b[other]
        if once.any():
            yield a[one[once]], b[other[once]]


def _low_frequencies(thumbnails: np.ndarray) -> np.ndarray:
    size = thumbnails.shape[1]
    waves = dctn(_unit(thumbnails).reshape(-1, size, size), axes=(1, 2), norm="ortho")
    low = waves[:, :_WAVES, :_WAVES].reshape(len(waves), -1).copy()
    # The first frequency is the mean, always 0. The length of the remainder takes its place.
    low[:, 0] = 0
    low[:, 0] = np.sqrt(np.maximum(0, 1 - (low**2).sum(1)))
    return low


def _unit(images: np.ndarray) -> np.ndarray:
    """Images as float32 rows of mean 0 and length 1: their products are correlations."""
    rows = images.reshape(len(images), images.shape[1] * images.shape[2]).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    return _unit(detail(thumbnails))
