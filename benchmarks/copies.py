"""Measure the search for changed copies of images: recall, false pairs and time.

    python benchmarks/copies.py [DATA] [--copies 500]

All images of each data set below DATA (or MEDLIB_DATA) are searched for copies. This gives seconds
and the pairs that are found. Their names go to a file, since only a person can tell whether such a
pair is a copy. Then copies of some images are made (JPEG, quality 90) and added, and all are
searched again. This is repeated until there are COPIES of each kind. Two things are counted: the
made copies that are found, and the pairs of images that the first search did not join. These pairs
are false, unless they show the same skin or eye.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from harness import photographs
from PIL import Image, ImageDraw

from medlib.data import duplicates, manifest
from medlib.data.thumbnails import draw as draw_thumbnail
from medlib.files import save_csv

FOLDERS = {"HAM10000": "ham10000", "chest": "chest_xray", "fundus": "ichallenge_pm"}


def crop(image: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    """Cut out a share of the area, with the same proportions, at a random place."""
    width, height = (round(side * area**0.5) for side in image.size)
    left = rng.integers(0, image.width - width + 1)
    top = rng.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def trim_and_point(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """3 to 4 % of either side cut off, and a white arrow drawn in."""
    image = crop(image, rng.uniform(0.96, 0.97) ** 2, rng)
    draw, length = ImageDraw.Draw(image), rng.uniform(0.08, 0.12) * image.width
    angle = rng.uniform(0, 2 * np.pi)
    tip = rng.uniform(0.2, 0.8, 2) * image.size
    for part, off in ((1, np.pi), (0.35, np.pi - 0.5), (0.35, np.pi + 0.5)):
        along = np.array([np.cos(angle + off), np.sin(angle + off)])
        ends = [tuple(tip), tuple(tip + part * length * along)]
        draw.line(ends, fill="white", width=max(2, image.width // 80))
    return image


def turn(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    """Turn left or right, at random. Corners become black."""
    return image.rotate(degrees * rng.choice([-1, 1]), Image.Resampling.BICUBIC)


FLIP = Image.Transpose.FLIP_LEFT_RIGHT
QUARTERS = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
KINDS = {
    "mirrored": lambda image, rng: image.transpose(FLIP),
    "quarter turn": lambda image, rng: image.transpose(QUARTERS[rng.integers(2)]),
    "half turn": lambda image, rng: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 2°": lambda image, rng: turn(image, 2, rng),
    "turned by 5°": lambda image, rng: turn(image, 5, rng),
    "crop to 95 %": lambda image, rng: crop(image, 0.95, rng),
    "crop to 90 %": lambda image, rng: crop(image, 0.9, rng),
    "crop to 80 %": lambda image, rng: crop(image, 0.8, rng),
    "3 to 4 % off each side, an arrow": trim_and_point,
    "mirrored crop to 80 %": lambda image, rng: crop(image.transpose(FLIP), 0.8, rng),
}


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def copied(image: Image.Image, kind: str, number: int) -> np.ndarray:
    """The thumbnail of a made copy, which is the same each time."""
    buffer = io.BytesIO()
    KINDS[kind](image, np.random.default_rng([number, 7])).save(buffer, "JPEG", quality=90)
    with Image.open(buffer) as again:
        return draw_thumbnail(again)


def searched(thumbnails: np.ndarray) -> tuple[pd.DataFrame, float]:
    start = time.perf_counter()
    pairs = duplicates.find(thumbnails, [""] * len(thumbnails))
    return pairs, time.perf_counter() - start


def same_group(pairs: pd.DataFrame, n: int) -> np.ndarray:
    """For each image, the first image of its group. Pairs join images to groups."""
    group = np.arange(n)
    for members in manifest.linked(zip(pairs["first"], pairs["second"], strict=True)):
        group[members] = min(members)
    return group


def measured(paths: list[Path], most: int) -> tuple[dict, dict, pd.DataFrame]:
    """Recall in percent by kind; seconds and counts; pairs within the data set, and wrong ones."""
    with ThreadPoolExecutor(2) as pool:
        small = np.stack(list(pool.map(lambda p: draw_thumbnail(opened(p)), paths)))
    pairs, taken = searched(small)
    names = np.array([path.stem for path in paths])
    named = pairs.assign(first=names[pairs["first"]], second=names[pairs["second"]])
    n, own, rng = len(paths), same_group(pairs, len(paths)), np.random.default_rng(0)
    found, wrong, made = {kind: [] for kind in KINDS}, [], 0
    while min(map(len, found.values())) < most:
        # A search for all kinds at once; no original has two copies in it.
        many = min(n // len(KINDS), most - len(next(iter(found.values()))))
        chosen = rng.permutation(n)[: many * len(KINDS)]
        kinds = np.repeat(list(KINDS), many)
        copies = [copied(opened(paths[k]), kind, k) for k, kind in zip(chosen, kinds, strict=True)]
        joined, _ = searched(np.concatenate([small, copies]))
        group = same_group(joined, n + len(chosen))
        for kind, one in zip(kinds, group[n:] == group[chosen], strict=True):
            found[kind].append(one)
        whose = np.concatenate([own, own[chosen]])
        others = joined[whose[joined["first"]] != whose[joined["second"]]]
        names_too = np.array([*names, *(names[chosen] + " " + kinds.astype(object))])
        wrong.append(others.assign(**{e: names_too[others[e]] for e in ("first", "second")}))
        made += n + len(chosen)
    wrong = pd.concat(wrong)
    counts = {"images": n, "seconds": taken, "changed": (pairs["kind"] != "near").sum()}
    counts["wrong"] = 1e4 * len(wrong) / made
    recall = {kind: 100 * np.mean(ones) for kind, ones in found.items()}
    return recall, counts, pd.concat([named.assign(made=False), wrong.assign(made=True)])


def table(results: dict[str, tuple[dict, dict]]) -> Iterable[str]:
    yield "| | " + " | ".join(results) + " |"
    yield "|---|" + "---|" * len(results)
    lines = {
        "images": "{:,.0f}",
        "seconds for all": "{:.0f}",
        "changed copies within the data set itself": "{:.0f}",
        "pairs of made copies with other images, per 10,000 images": "{:.1f}",
    }
    keys = ["images", "seconds", "changed", "wrong"]
    for (name, form), key in zip(lines.items(), keys, strict=True):
        cells = (form.format(counts[key]) for _, counts in results.values())
        yield f"| {name} | " + " | ".join(cells) + " |"
    for kind in KINDS:
        cells = (f"{recall[kind]:.1f} %" for recall, _ in results.values())
        yield f"| {kind} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("MEDLIB_DATA"))
    parser.add_argument("--quick", action="store_true", help="noise; nothing is kept")
    parser.add_argument("--copies", type=int, default=500, help="made of each kind (500)")
    parser.add_argument("--to", type=Path, default=Path("results/bench"))
    asked = parser.parse_args()
    if not asked.quick and asked.data is None:
        parser.error("which data folder?")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        sets = {name: Path(asked.data or ".") / folder for name, folder in FOLDERS.items()}
        if asked.quick:
            sets, asked.copies = {"noise": Path(scratch)}, 4
            photographs(Path(scratch), 12, (120, 90))
        for name, folder in sets.items():
            paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            if not paths:
                parser.error(f"no JPEG below {folder}")
            *results[name], pairs = measured(paths, asked.copies)
            if not asked.quick:
                save_csv(asked.to / f"copies_{folder.name}.csv", pairs)
    print(f"{len(KINDS)} kinds × {asked.copies} made copies of each data set; recall in percent\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
