"""Copies of a picture that were mirrored, turned or cropped, found by small grey thumbnails.

There are three steps, each on fewer pairs.

1. Every picture is described by histograms of oriented gradients (Dalal and Triggs, CVPR 2005). A
   mirror or a quarter turn only permutes these numbers. Crops and slight turns change them. How
   much is measured on made copies of the same pictures. Directions that copying changes most then
   count least in the distance (Fisher's linear discriminant).
2. Each picture is aligned with its nearest ones by an affine map (Baker and Matthews, Lucas-Kanade
   20 Years On, IJCV 2004; inverse compositional).
3. The aligned pictures, and their detail, must correlate where they overlap.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from torch.nn import functional

from medlib.data.thumbnails import detail as detail_of

NEAREST = 3  # pictures with which each is aligned
# Least correlations of two aligned copies. Among 16,655 fundus, chest and skin images, the detail
# of two different ones correlates by at most 0.82. About 1 % of made copies (benchmarks/copies.py)
# are below one of the two limits: they were turned, and their corners became black.
SAME_PICTURE = 0.75
SAME_DETAIL = 0.85

_MIDDLE = 48  # pixels a side of the pictures that are described
# Pixels a side, scales of the detail (see `detail`), steps, and the least correlation after them.
_STAGES = [(32, (0.6, 4, 3), 7, 0.4), (48, (0.6, 1.5, 1.5), 1, 0.35), (48, (0.6, 1.5, 1.5), 3, 0.7)]
_BINS, _CELLS = 8, 6  # directions of gradients; cells a side
_AXES = 64  # dimensions of the space in which descriptions are compared
_TAUGHT = 500  # pictures, at most, that are copied to measure what copying changes
_LEAST_SIDE, _MOST_DEGREES = 0.88, 5.0  # how far these copies are cropped and turned
_LEAST_SCALE, _LEAST_OVERLAP = 0.8, 0.6  # a pair beyond these is no copy
_CROPPED = 0.012  # a larger change of scale, or shift in half sides, is called a crop
_BATCH = 64  # pairs that are aligned at a time


class _Pairs(NamedTuple):
    """Ordered pairs of positions; ``position`` (0 to 7) is how the second is mirrored or turned."""

    one: torch.Tensor
    other: torch.Tensor
    position: torch.Tensor

    def chosen(self, which: torch.Tensor) -> "_Pairs":
        return _Pairs(*(values[which] for values in self))


def find(thumbnails: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    """Pairs of pictures of different groups that are copies, once they are aligned.

    ``thumbnails`` is uint8 N×S×S. Pictures of one ``group`` (N integers) are known to be copies and
    are not compared. Returns positions ``first`` < ``second``, ``kind`` and the ``correlation`` of
    the detail. ``kind`` says what was done: "mirrored", "turned" (by a quarter, a half or a few
    degrees), "cropped", several of them joined by "and", or "altered" (an arrow, another tone).
    Each picture is compared with its NEAREST others only. If a picture has many copies, some pairs
    may be missing.
    """
    pairs = _nearest(thumbnails, group)
    maps, pairs = _aligned(thumbnails, pairs)
    maps, pairs, detail = _judged(thumbnails, maps, pairs)
    one, other = pairs.one.numpy(), pairs.other.numpy()
    found = pd.DataFrame({"first": np.minimum(one, other), "second": np.maximum(one, other)})
    found["kind"] = np.array([kind(affine) for affine in maps.numpy()], dtype=object)
    found["correlation"] = detail.numpy().astype(float)
    # Most pairs were aligned twice, once from each picture. The better alignment counts.
    found = found.sort_values("correlation", ascending=False, kind="stable")
    return found.drop_duplicates(["first", "second"]).sort_values(["first", "second"])


def _shrunk(pictures: np.ndarray, side: int) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).float()[:, None]
    return functional.interpolate(pixels, (side, side), mode="area")[:, 0]


# ------------------------------------------------------------------------- nearest pictures


def _nearest(thumbnails: np.ndarray, group: np.ndarray) -> _Pairs:
    """Each picture with its NEAREST ones of other groups. The best of eight positions counts."""
    n, group = len(thumbnails), torch.as_tensor(np.asarray(group))
    parts = torch.arange(n).split(_BATCH)
    described = _in_threads(
        lambda rows: _described(_shrunk(thumbnails[rows.numpy()], _MIDDLE)), parts
    )
    described = torch.cat(described)
    axes = _telling_axes(thumbnails, described)
    places = [_positioned(described, position) @ axes for position in range(8)]
    lengths = [(place**2).sum(1) for place in places]

    def nearest_of(rows: torch.Tensor) -> _Pairs:
        farness = torch.full((len(rows), n), torch.inf)
        position = torch.zeros((len(rows), n), dtype=torch.int8)
        for number, (place, length) in enumerate(zip(places, lengths, strict=True)):
            # The length of the row itself is the same for all distances, so it is left out.
            distance = torch.addmm(length, places[0][rows], place.T, alpha=-2)
            position.masked_fill_(distance < farness, number)
            farness = torch.minimum(farness, distance)
        farness[group[rows][:, None] == group] = torch.inf
        far, others = farness.topk(min(NEAREST, n), largest=False)
        there = torch.isfinite(far)
        which = position.gather(1, others)[there].long()
        return _Pairs(rows[:, None].expand_as(others)[there], others[there], which)

    of_all = zip(*_in_threads(nearest_of, parts), strict=True)
    return _Pairs(*(torch.cat(values) for values in of_all))


def _in_threads(function: Callable, batches: Iterable[torch.Tensor]) -> list:
    """The function's result for each batch. Each core works on a batch of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            return list(pool.map(function, batches))
    finally:
        torch.set_num_threads(threads)


def _described(pictures: torch.Tensor) -> torch.Tensor:
    """Histograms of gradients: of pictures N×S×S, _BINS directions in each of _CELLS² cells."""
    across = pictures[:, 1:-1, 2:] - pictures[:, 1:-1, :-2]
    down = pictures[:, 2:, 1:-1] - pictures[:, :-2, 1:-1]
    strength = torch.hypot(across, down)
    power = functional.avg_pool2d(strength[:, None] ** 2, 9, 1, 4, count_include_pad=False)[:, 0]
    strength = strength / (power + 1).sqrt()  # a grey level keeps noise in even regions small
    angle = torch.atan2(down, across) * _BINS / (2 * torch.pi)
    bins = torch.arange(_BINS)[:, None, None]
    away = (torch.remainder(angle[:, None] - bins + _BINS / 2, _BINS) - _BINS / 2).abs()
    shares = strength[:, None] * (1 - away).clamp_min(0)
    smooth = functional.avg_pool2d(shares, 5, 1, 2)  # a pixel counts in cells beside its own, too
    return functional.adaptive_avg_pool2d(smooth, _CELLS).flatten(1).sqrt()


def _positioned(described: torch.Tensor, position: int) -> torch.Tensor:
    """The descriptions of the same pictures mirrored or turned: see :func:`_start`."""
    cells = described.view(-1, _BINS, _CELLS, _CELLS)
    bins = torch.arange(_BINS)
    if position & 4:  # rows and columns swapped
        cells = cells.transpose(2, 3)[:, (_BINS // 4 - bins) % _BINS]
    if position & 1:  # upside down
        cells = cells.flip(2)[:, -bins % _BINS]
    if position & 2:  # left and right swapped
        cells = cells.flip(3)[:, (_BINS // 2 - bins) % _BINS]
    return cells.flatten(1)


def _telling_axes(thumbnails: np.ndarray, described: torch.Tensor) -> torch.Tensor:
    """Axes (columns) along which pictures differ much, and copies of one picture little."""
    # Chosen by content, so that the order of the pictures does not matter.
    order = sorted(range(len(thumbnails)), key=lambda p: hashlib.sha256(thumbnails[p]).digest())
    taught = np.array(order[:_TAUGHT])
    all_positions = torch.cat([_positioned(described[taught], p) for p in range(8)])
    between = np.cov(all_positions.numpy().T.astype(float))
    pictures, changes = _shrunk(thumbnails[taught], _MIDDLE), []
    rng = np.random.default_rng(0)
    for _ in range(3):
        side = rng.uniform(_LEAST_SIDE, 1, len(taught))
        angle = np.radians(rng.uniform(-_MOST_DEGREES, _MOST_DEGREES, len(taught)))
        place = rng.uniform(-1, 1, (2, len(taught))) * (1 - side)
        cos, sin = side * np.cos(angle), side * np.sin(angle)
        maps = np.array([[cos, -sin, place[0]], [sin, cos, place[1]]]).transpose(2, 0, 1)
        copies, _ = _sampled(pictures, torch.from_numpy(maps).float())
        changes.append((_described(copies) - described[taught]).numpy().astype(float))
    changes = np.concatenate(changes)
    within = changes.T @ changes / len(changes)
    within += (1e-2 * np.trace(within) / len(within) + 1e-9) * np.eye(len(within))
    axes = eigh(between, within, subset_by_index=[len(within) - _AXES, len(within) - 1])[1]
    return torch.from_numpy(axes).float()


# -------------------------------------------------------------------------------- alignment


def _aligned(thumbnails: np.ndarray, pairs: _Pairs) -> tuple[torch.Tensor, _Pairs]:
    """Align all pairs roughly. Returns maps and pairs of those that may be copies."""
    maps = _start(pairs.position)
    for side, scales, steps, least in _STAGES:
        maps, alike = _fitted(_details(thumbnails, side, scales), maps, pairs, steps)
        maps, pairs = maps[alike >= least], pairs.chosen(alike >= least)
    return maps, pairs


def _fitted(
    pictures: torch.Tensor, maps: torch.Tensor, pairs: _Pairs, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of all pairs after some steps, and the correlations of what they align."""

    def fit(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fixed, moving = (pictures[ends].float() for ends in pairs.chosen(rows)[:2])
        affine = _refined(fixed, moving, maps[rows], steps)
        moved, inside = _sampled(moving, affine)
        return affine, _correlation(fixed, moved, _eroded(inside, 1))

    if not len(maps):
        return maps, torch.empty(0)
    fitted = _in_threads(fit, torch.arange(len(maps)).split(_BATCH))
    return tuple(torch.cat(values) for values in zip(*fitted, strict=True))


def _details(thumbnails: np.ndarray, side: int, scales: tuple) -> torch.Tensor:
    def small(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(detail_of(_shrunk(thumbnails[rows.numpy()], side), *scales)).half()

    return torch.cat(_in_threads(small, torch.arange(len(thumbnails)).split(_BATCH)))


def _judged(
    thumbnails: np.ndarray, maps: torch.Tensor, pairs: _Pairs
) -> tuple[torch.Tensor, _Pairs, torch.Tensor]:
    """Align pairs to the end. Returns maps, pairs and correlations of those that are copies."""

    def judge(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fixed, moving = (thumbnails[ends.numpy()] for ends in pairs.chosen(rows)[:2])
        wide = [torch.from_numpy(detail_of(pictures, 1.5, 4, 4)) for pictures in (fixed, moving)]
        affine = _refined(*wide, maps[rows], 4)
        fixed, moving = (torch.from_numpy(pictures).float() for pictures in (fixed, moving))
        moved, inside = _sampled(moving, affine, "bicubic")
        fine = [torch.from_numpy(detail_of(pictures)) for pictures in (fixed, moved)]
        alike = _correlation(*fine, _eroded(inside, 3))
        same = (alike >= SAME_DETAIL) & _plausible(affine, inside)
        return affine, alike, same & (_correlation(fixed, moved, inside) >= SAME_PICTURE)

    if not len(maps):
        return maps, pairs, torch.empty(0)
    judged = _in_threads(judge, torch.arange(len(maps)).split(_BATCH))
    refined, alike, same = (torch.cat(values) for values in zip(*judged, strict=True))
    return refined[same], pairs.chosen(same), alike[same]


def _start(position: torch.Tensor) -> torch.Tensor:
    """Maps n×2×3 of the eight positions, in coordinates from -1 to 1 (across, down).

    Bit 0: upside down; bit 1: left and right swapped; bit 2: before that, rows and columns swapped.
    """
    down, across = 1.0 - 2 * (position & 1), 1.0 - 2 * (position >> 1 & 1)
    swapped, nothing = (position & 4) > 0, torch.zeros(len(position))
    straight = [across * ~swapped, down * swapped, nothing]
    return torch.stack([*straight, across * swapped, down * ~swapped, nothing], 1).view(-1, 2, 3)


def _refined(
    fixed: torch.Tensor, moving: torch.Tensor, maps: torch.Tensor, steps: int
) -> torch.Tensor:
    """Affine maps after some Gauss-Newton steps: ``moving``, sampled by them, fits ``fixed``."""
    side = fixed.shape[-1]
    fixed, moving = (_normed(pictures, torch.ones_like(pictures)) for pictures in (fixed, moving))
    down, across = torch.gradient(fixed, spacing=2 / side, dim=(1, 2))
    y, x = _mesh(side)
    slopes = [across * x, across * y, across, down * x, down * y, down]
    slopes = torch.stack(slopes, 1).flatten(2)
    inverse = torch.linalg.inv(slopes @ slopes.mT + 1e-5 * side**2 * torch.eye(6))
    last = torch.tensor([0.0, 0, 1]).expand(len(maps), 1, 3)
    for _ in range(steps):
        moved, inside = _sampled(moving, maps)
        error = moved - fixed
        error *= inside * (error.abs() < 2.5)  # black corners and arrows do not pull
        change = inverse @ (slopes @ error.flatten(1)[:, :, None])
        change /= inside.mean((1, 2))[:, None, None].clamp_min(0.5)
        change = torch.eye(2, 3) + change.view(-1, 2, 3).clamp(-0.1, 0.1)
        maps = (maps @ torch.linalg.inv(torch.cat([change, last], 1)))[:, :, :3]
    return maps


def _sampled(
    pictures: torch.Tensor, maps: torch.Tensor, mode: str = "bilinear"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures n×S×S seen through affine maps n×2×3, and 1.0 where that lies inside them."""
    side = pictures.shape[-1]
    y, x = _mesh(side)
    grid = x[:, :, None] * maps[:, None, None, :, 0] + y[:, :, None] * maps[:, None, None, :, 1]
    grid += maps[:, None, None, :, 2]
    how = {"mode": mode, "padding_mode": "border", "align_corners": False}
    moved = functional.grid_sample(pictures[:, None], grid, **how)
    inside = torch.maximum(grid[..., 0].abs(), grid[..., 1].abs()) <= 1 - 0.5 / side
    return moved[:, 0], inside.float()


def _mesh(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of pixels' centres, from -1 to 1."""
    centres = (torch.arange(side) * 2 + 1) / side - 1
    return torch.meshgrid(centres, centres, indexing="ij")


def _normed(pictures: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Pictures with a weighted mean of 0 and a standard deviation of 1."""
    total = weights.sum((1, 2), keepdim=True).clamp_min(1)
    pictures = pictures - (pictures * weights).sum((1, 2), keepdim=True) / total
    power = (pictures**2 * weights).sum((1, 2), keepdim=True) / total
    return pictures / power.sqrt().clamp_min(1e-6)


def _correlation(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    products = _normed(one, weights) * _normed(other, weights) * weights
    return products.sum((1, 2)) / weights.sum((1, 2)).clamp_min(1)


def _eroded(inside: torch.Tensor, pixels: int) -> torch.Tensor:
    """The area without its margin, where pixels were mixed with those outside."""
    return -functional.max_pool2d(-inside[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def _plausible(maps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    scales = torch.linalg.svdvals(maps[:, :, :2])
    scales = torch.maximum(scales, 1 / scales.clamp_min(1e-6)).amax(1)
    return (scales <= 1 / _LEAST_SCALE) & (inside.mean((1, 2)) >= _LEAST_OVERLAP)


def kind(affine: np.ndarray) -> str:
    """Name what an affine map (2×3) does to a picture: the kinds of :func:`find`."""
    across, down = affine[:, :2].T
    mirrored = across[0] * down[1] - across[1] * down[0] < 0
    turn = np.degrees(np.arctan2(across[1], across[0]))
    slight = abs((turn + 45) % 90 - 45) > 1
    quarter = not mirrored and round(turn / 90) % 4 != 0
    scale = np.sqrt(abs(across[0] * down[1] - across[1] * down[0]))
    cropped = max(abs(scale - 1), *np.abs(affine[:, 2])) > _CROPPED
    words = {"mirrored": mirrored, "turned": quarter or slight, "cropped": cropped}
    return " and ".join(word for word, applies in words.items() if applies) or "altered"
