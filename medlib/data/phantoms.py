"""Small synthetic medical images, written as files in the folder layouts of the real data sets.

Each drawing is recognisable (a chest radiograph, a fundus photograph, a dermoscopy picture, a head
MRI) and its class is known, so a pipeline can be tried end to end in seconds and its result judged.
Fine structure (texture, dots, lines, rings) at random places shows the class. Position, shape,
colour and exposure vary alike in all classes. So a linear model of 16x16 thumbnails learns only a
part of it, while a small convolutional network learns it in seconds.

Drawings are float32 in [0, 1] with x (to the right) and y (downwards) from -1 to 1.
"""

import gzip
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from medlib.errors import unknown
from medlib.files import file_sha256, read_json, save_csv, save_json

MODALITIES = ("t1", "t1ce", "flair")
# Patients (lesions, eyes) of each class at scale 1.
CHEST = {"train": {"NORMAL": 90, "PNEUMONIA": 110}, "test": {"NORMAL": 45, "PNEUMONIA": 60}}
ELSEWHERE = {"healthy": 90, "pneumonia": 40}  # of another hospital, where pneumonia is rarer
SHUFFLED = 0.3  # the share of its patients among whom the labels are shuffled
MYOPIA = {"train": {"H": 24, "N": 86, "P": 120}, "val": {"H": 10, "N": 45, "P": 55}}
MACULAR = {"train": {"A": 110, "N": 110}, "val": {"A": 50, "N": 50}}
LESIONS = {"akiec": 40, "bcc": 46, "bkl": 54, "df": 36, "mel": 54, "nv": 120, "vasc": 36}
GUESSED = "face"  # the body part where diagnoses of lesions are shuffled
GLIOMAS = {1: 54, 2: 54}  # the codes of data.csv: 1 is WHO grade II, 2 is grade III
UCSF = {2: 36, 3: 36, 4: 36}  # WHO CNS grades
TISSUES = ("scalp", "skull", "csf", "grey", "white", "tumour", "necrosis", "rim")
GREYS = {  # of these tissues
    "t1": (0.88, 0.08, 0.12, 0.45, 0.58, 0.44, 0.02, 0.85),
    "t1ce": (0.9, 0.08, 0.13, 0.42, 0.52, 0.4, 0.06, 0.98),
    "flair": (0.88, 0.07, 0.08, 0.45, 0.36, 0.62, 0.2, 0.9),
}
SHIFT = (-0.2, 0.14, 0.12)  # how much brighter a tumour of grade III is on average, by modality


@lru_cache
def _plane(n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of an n x n canvas, each (n, n) in [-1, 1]."""
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j].astype(np.float32)
    return x, y


def _noise(rng: np.random.Generator, n: int, period: float) -> np.ndarray:
    """Smooth noise (n, n) of about unit variance; `period` is the size of its grain in pixels."""
    cells = max(3, round(2 * n / period))
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    fine = np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC))
    return fine / fine.std()


def _net(rng: np.random.Generator, n: int, period: float, width: float = 0.3) -> np.ndarray:
    """An irregular network of bright lines (n, n) in [0, 1]: where smooth noise crosses zero."""
    return np.exp(-((_noise(rng, n, period) / width) ** 2))


def _ellipse(x, y, cx, cy, rx, ry, angle=0.0, soft=0.08, rough=0.0) -> np.ndarray:
    """Mask in [0, 1] of an ellipse; `soft` is the width of its edge and `rough` bends it."""
    c, s = np.cos(angle), np.sin(angle)
    u, v = c * (x - cx) + s * (y - cy), c * (y - cy) - s * (x - cx)
    return np.clip((1 - np.hypot(u / rx, v / ry) + rough) / soft + 0.5, 0, 1)


def _ink(n: int, curves: Iterable[tuple] = (), dots: Iterable[tuple] = ()) -> np.ndarray:
    """Mask (n, n) of curves ((points, 2) and a width) and dots (x, y, radius), in plane units."""
    sheet = Image.new("L", (2 * n, 2 * n))  # twice the size, then halved: smooth edges
    pen = ImageDraw.Draw(sheet)
    for points, width in curves:
        pen.line([tuple(p) for p in (points + 1) * n], 255, max(1, round(width * n)), "curve")
    for x, y, r in dots:
        pen.ellipse([(x - r + 1) * n, (y - r + 1) * n, (x + r + 1) * n, (y + r + 1) * n], 255)
    return np.asarray(sheet.reduce(2), np.float32) / 255


def _paint(image: np.ndarray, value, mask: np.ndarray) -> None:
    """Move `image` ((n, n) or (n, n, 3)) towards `value` where `mask` (n, n) is high, in place."""
    mask = mask[..., None] if image.ndim > mask.ndim else mask
    image += mask * (np.asarray(value, np.float32) - image)


def _places(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) random x, y inside `mask`."""
    rows, cols = np.nonzero(mask > 0.5)
    pick = rng.integers(len(rows), size=count)
    return np.stack([cols[pick], rows[pick]], 1) * (2 / (len(mask) - 1)) - 1


def _dots(rng: np.random.Generator, mask: np.ndarray, count: int, small: float, large: float):
    """Mask of `count` dots inside `mask`, their radii between `small` and `large`."""
    at = np.column_stack([_places(rng, mask, count), rng.uniform(small, large, count)])
    return _ink(len(mask), dots=at)


def _tree(rng, start, heading, length, width, bend=0.25, depth=3) -> Iterator[tuple]:
    """Curves of a branching vessel, the trunk first."""
    headings = heading + np.cumsum(rng.normal(bend * rng.choice([-1, 1]) / 8, bend / 2, 8))
    steps = np.stack([np.cos(headings), np.sin(headings)], 1) * length / 8
    points = np.vstack([start, start + np.cumsum(steps, 0)])
    yield points, width
    for _ in range(2 if depth > 1 else 0):
        k = int(rng.integers(3, 8))
        side = headings[k] + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
        yield from _tree(rng, points[k], side, length * 0.6, width * 0.7, bend, depth - 1)


def _view(rng, image: np.ndarray, size: tuple[int, int], turn: float, cast: float) -> np.ndarray:
    """One photograph of a drawing: turned, zoomed, shifted, exposed anew; `size` is (w, h)."""
    n = len(image)
    angle, zoom = rng.uniform(-turn, turn), rng.uniform(0.92, 1.05)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    (w, h), (dx, dy) = size, rng.uniform(-4, 4, 2)
    where = (c, -s, n / 2 + dx - c * w / 2 + s * h / 2, s, c, n / 2 + dy - s * w / 2 - c * h / 2)
    sheet = Image.fromarray(_bytes(image))
    sheet = sheet.transform(size, Image.Transform.AFFINE, where, Image.Resampling.BICUBIC)
    photo = np.asarray(sheet, np.float32) / 255
    gain = rng.uniform(0.85, 1.15) * np.exp(rng.normal(0, cast, photo.shape[2:]))
    photo = photo ** rng.uniform(0.85, 1.2) * gain
    return photo + rng.normal(0, 0.012, photo.shape)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _save_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_bytes(image)).save(path, "JPEG", quality=92, subsampling=0)


def _chest(rng: np.random.Generator, sick: bool, n: int = 128) -> np.ndarray:
    """Frontal chest radiograph (n, n): ribs, lungs, heart, diaphragm, clavicles.

    Pneumonia adds three or four patches of reticular and nodular opacity inside the lungs;
    healthy chests have as many smooth hazes of about the same mean brightness instead.
    """
    x, y = _plane(n)
    x = x * rng.uniform(0.95, 1.15) + rng.normal(0, 0.03)
    y = y * rng.uniform(0.95, 1.1) + rng.normal(0, 0.03)
    image = np.full((n, n), 0.04, np.float32)
    body = _ellipse(x, y, 0, 0.55, 0.88, 1.35, soft=0.05)
    arms = _ellipse(np.abs(x), y, 0.98, -0.35, 0.2, 0.75, -0.5, 0.15)
    neck = _ellipse(x, y, 0, -1.05, 0.3, 0.55, soft=0.2)
    flesh = np.maximum(np.maximum(body, 0.9 * arms), neck)
    _paint(image, rng.uniform(0.5, 0.6) + 0.04 * _noise(rng, n, 60), flesh)
    lung_y = rng.uniform(-0.02, 0.06)
    left = _ellipse(x, y, -0.42, lung_y, 0.29, 0.66, 0.13, 0.16)
    lungs = np.maximum(left, _ellipse(x, y, 0.44, lung_y, 0.28, 0.66, -0.13, 0.16))
    _paint(image, rng.uniform(0.2, 0.3), lungs)
    dome = y - rng.uniform(0.52, 0.62) + 0.25 * np.cos(3.4 * (np.abs(x) - 0.42)) - 0.05 * (x > 0)
    belly = np.clip((dome - 0.22) / 0.06, 0, 1) * body
    _paint(image, 0.72, belly)
    heart = _ellipse(x, y, 0.13, 0.32, rng.uniform(0.27, 0.36), 0.36, 0.5, 0.2)
    _paint(image, 0.7, heart * (1 - belly))
    _paint(image, 0.68, np.exp(-((x / 0.13) ** 4)) * body * 0.75)  # spine and mediastinum
    image += 0.04 * np.cos(y * 34) * np.exp(-((x / 0.1) ** 4)) * body  # vertebrae
    _paint(image, 0.4, _ellipse(x, y, 0.0, -0.75, 0.05, 0.4, soft=0.5) * 0.6)  # trachea
    ribs = np.cos((y + 0.45 * (np.abs(x) - 0.35) ** 2 * 2 + 0.2 * np.abs(x)) * rng.uniform(30, 38))
    cage = _ellipse(x, y, 0, 0.05, 0.76, 0.8, soft=0.2) * (1 - belly) * (1 - 0.7 * heart)
    image += rng.uniform(0.045, 0.08) * np.clip(ribs + 0.2, -0.4, 1) * cage
    for side in (-1, 1):
        hilum = np.array([side * 0.17, 0.02])
        for angle in rng.uniform(-1.0, 1.2, 4):
            heading = angle if side > 0 else np.pi - angle
            vessels = _ink(n, _tree(rng, hilum, heading, 0.4, 0.022))
            image += 0.08 * vessels * lungs * (1 - heart)
        bone = np.array([[side * 0.1, -0.66], [side * 0.4, -0.7], [side * 0.75, -0.88]])
        _paint(image, 0.75, _ink(n, [(bone, 0.055)]) * 0.5)
    _opacities(rng, image, lungs * (1 - belly) * (1 - 0.8 * heart), sick)
    image += 0.045 * _noise(rng, n, 9) * flesh  # muscle and fat, so that no two patients look alike
    marker = Image.new("L", (n, n))
    ImageDraw.Draw(marker).text((rng.integers(10, 22), rng.integers(22, 40)), "R", 255)
    return np.maximum(image, np.asarray(marker, np.float32) / 255 * 0.9)


def _opacities(rng: np.random.Generator, image: np.ndarray, lungs: np.ndarray, sick: bool) -> None:
    """Draw patches into the lungs: nodules and lines where `sick`, else a smooth haze."""
    n, (x, y) = len(image), _plane(len(image))
    for cx, cy in _places(rng, lungs, int(rng.integers(3, 5))):
        rx, ry = rng.uniform(0.25, 0.42, 2)
        patch = _ellipse(x, y, cx, cy, rx, ry, rng.uniform(0, 3), 0.5, 0.15 * _noise(rng, n, 40))
        patch *= lungs
        if sick:
            nodules = 0.85 * _dots(rng, patch, 12, 0.02, 0.05)
            patch *= np.maximum(0.5 * _net(rng, n, 12), nodules)
        else:
            patch *= rng.uniform(0.2, 0.55)
        _paint(image, 0.75, patch)


def _write_chest(folder: Path, scale: float, rng: np.random.Generator) -> None:
    """`chest_xray/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg`: grey, 112 x 112."""
    for split, classes in CHEST.items():
        image_number = 0
        for label, patients in classes.items():
            number = 0  # restarts in test, as in the real data
            for k in range(_count(patients, scale)):
                number += int(rng.integers(1, 4))
                drawing = _chest(rng, label == "PNEUMONIA")
                series = "NORMAL2-IM" if k % 3 == 2 else "IM"
                kind = "virus" if rng.random() < 0.35 else "bacteria"
                for view in range(_images_of_one(rng)):
                    image_number += int(rng.integers(1, 3))
                    name = f"{series}-{number:04d}-0001{f'-{view:04d}' if view else ''}.jpeg"
                    if label == "PNEUMONIA":
                        name = f"person{number}_{kind}_{image_number}.jpeg"
                    photo = _view(rng, drawing, (112, 112), turn=0.06, cast=0)
                    _save_jpeg(folder / split / label / name, photo)


def _write_other_chest(
    folder: Path, scale: float, rng: np.random.Generator, shuffled: float = SHUFFLED
) -> None:
    """`other_chest/{healthy,pneumonia}/p*_*.jpeg`: grey, 112 x 112, of another hospital.

    Its scanner has less contrast, more noise and a black border. The labels of a share of the
    patients are shuffled among them. So a model with the AUROC A on the true classes is expected to
    have 0.5 + (1 - shuffled) (A - 0.5) on these labels.
    """
    drawn = rng.permutation(_drawn(ELSEWHERE, scale))
    photos = []
    for kind in drawn:
        drawing = _chest(rng, kind == "pneumonia")
        views = range(_images_of_one(rng))
        photos.append([_view(rng, drawing, (112, 112), turn=0.06, cast=0) for _ in views])
    for photo in (photo for views in photos for photo in views):
        photo[:] = 0.12 + 0.7 * np.clip(photo, 0, 1) ** 1.3 + rng.normal(0, 0.03, photo.shape)
        border = int(rng.integers(3, 7))
        photo[:border], photo[-border:], photo[:, :border], photo[:, -border:] = 0, 0, 0, 0
    labels, chosen = drawn.copy(), rng.permutation(len(drawn))[: round(shuffled * len(drawn))]
    labels[chosen] = rng.permutation(labels[chosen])
    for number, (label, views) in enumerate(zip(labels, photos, strict=True), start=1):
        for view, photo in enumerate(views):
            _save_jpeg(folder / label / f"p{number:03d}_{view}.jpeg", photo)


def _fundus(rng: np.random.Generator, kind: str, n: int = 112) -> np.ndarray:
    """Colour fundus photograph (n, n, 3): disc, arcades, macula, black surround.

    `kind` is N (normal), H (high myopia: a pale crescent at the disc), P (pathologic myopia: as H,
    with tessellation and patches of atrophy and pigment at random places) or A (age-related macular
    degeneration: drusen around the macula).
    """
    x, y = _plane(n)
    base = np.array([0.62, 0.3, 0.13]) + rng.uniform(-0.5, 0.5) * np.array([0.1, -0.12, -0.1])
    base = base * rng.uniform(0.8, 1.2) * np.exp(rng.normal(0, 0.12, 3))
    image = np.ones((n, n, 3), np.float32) * base.astype(np.float32)
    image *= (1.1 + 0.07 * _noise(rng, n, 70) - 0.35 * (x**2 + y**2))[..., None]
    dx, dy = rng.uniform(0.35, 0.6), rng.uniform(-0.12, 0.12)
    macula = dx - rng.uniform(0.62, 0.72), dy + rng.uniform(0.0, 0.1)
    image *= (1 - 0.45 * np.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / 0.035))[..., None]
    for cx, cy in rng.uniform(-0.7, 0.7, (int(rng.integers(1, 4)), 2)):  # smooth pale areas
        pale = _ellipse(x, y, cx, cy, *rng.uniform(0.25, 0.5, 2), rng.uniform(0, 3), 1.2)
        _paint(image, base * 1.7 + 0.08, pale * rng.uniform(0.1, 0.5))
    disc = rng.uniform(0.13, 0.17), rng.uniform(0.15, 0.19)
    if kind in "HP":
        crescent = _ellipse(x, y, dx - 0.08, dy, disc[0] * 1.3, disc[1] * 1.25, soft=0.2)
        _paint(image, [0.9, 0.68, 0.42], crescent * rng.uniform(0.3, 0.8))
    if kind == "P":
        _myopia(rng, image)
    if kind == "A":
        drusen = _dots(rng, _ellipse(x, y, *macula, 0.45, 0.4), 40, 0.015, 0.045)
        _paint(image, base + [0.3, 0.3, 0.12], drusen * 0.8)
    _paint(image, [0.95, 0.72, 0.42], _ellipse(x, y, dx, dy, *disc, soft=0.15))
    _paint(image, [1.0, 0.9, 0.7], _ellipse(x, y, dx - 0.01, dy, 0.06, 0.07, soft=0.5))
    vessels = []
    for up in (-1, 1):
        t = np.linspace(0, 1, 12)
        arch = 0.62 * np.sin(np.pi * np.minimum(t * 0.62, 1)) * rng.uniform(0.85, 1.1)
        arcade = np.stack([dx - 1.35 * t**1.25, dy + up * arch], 1)
        vessels.append((arcade, 0.035))
        for k in range(2, 10, 2):
            away = np.arctan2(up, -0.7) + rng.normal(0, 0.25)
            vessels += _tree(rng, arcade[k], away, rng.uniform(0.3, 0.5), 0.02, depth=2)
            vessels += _tree(rng, arcade[k], -away * 0.9, rng.uniform(0.15, 0.3), 0.012, depth=1)
        vessels += _tree(rng, np.array([dx, dy]), up * rng.uniform(0.5, 1.2), 0.5, 0.025)
    _paint(image, base * [0.55, 0.3, 0.4], _ink(n, vessels) * 0.75)
    image *= _ellipse(x, y, 0, 0, 0.97, 0.97, soft=0.03)[..., None] * rng.uniform(0.8, 1.2)
    image += rng.normal(0, 0.012, image.shape)
    return image[:, ::-1] if rng.random() < 0.5 else image  # right or left eye


def _myopia(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw pathologic myopia: choroidal vessels showing through, patches of atrophy, pigment."""
    n, (x, y), base = len(image), _plane(len(image)), image.mean((0, 1))
    cx, cy = rng.uniform(-0.4, 0.4, 2)
    field = _ellipse(x, y, cx, cy, *rng.uniform(0.6, 1.0, 2), rng.uniform(0, 3), 0.6)
    image *= (1 + field * (0.6 * _net(rng, n, 12, 0.45) - 0.3))[..., None]
    for cx, cy in rng.uniform(-0.65, 0.65, (int(rng.integers(2, 5)), 2)):
        rough = 0.3 * _noise(rng, n, 20)
        patch = _ellipse(x, y, cx, cy, *rng.uniform(0.09, 0.17, 2), 0, 0.2, rough)
        _paint(image, base * 0.8 + [0.45, 0.4, 0.22], patch * 0.85)
        spots = _dots(rng, np.maximum(patch, _ellipse(x, y, cx, cy, 0.1, 0.1)), 5, 0.015, 0.035)
        _paint(image, [0.12, 0.06, 0.04], spots * 0.85)


def _write_fundus(
    folder: Path, scale: float, rng: np.random.Generator, *, eyes: dict, name: str, ill: str
) -> None:
    """`<name>-Training400/<kind>dddd.jpg`, `<name>-Validation400/Vdddd.jpg`: RGB, 112 x 112."""
    for kind, count in eyes["train"].items():
        for k in range(_count(count, scale)):
            path = folder / f"{name}-Training400" / f"{kind}{k + 1:04d}.jpg"
            _save_jpeg(path, _fundus(rng, kind))
    kinds = rng.permutation(_drawn(eyes["val"], scale))
    validation = folder / f"{name}-Validation400"
    names = [f"V{k + 1:04d}.jpg" for k in range(len(kinds))]
    for name, kind in zip(names, kinds, strict=True):
        _save_jpeg(validation / name, _fundus(rng, kind))
    labels = pd.DataFrame({"imgName": names, "Label": (kinds == ill).astype(int)})
    labels.to_csv(validation / "labels.csv", index=False, lineterminator="\r\n")


def _lesion(rng: np.random.Generator, dx: str, n: int = 168) -> np.ndarray:
    """Dermoscopy picture (n, n, 3): a lesion on skin, with hairs; its pattern tells the class.

    akiec: red network around pale follicles; bcc: branching red vessels, blue-grey nests;
    bkl: white cysts and dark openings; df: white scar in the middle of fine lines; mel: black
    dots and a blue-grey veil; nv: regular brown network; vasc: red-purple lacunae.
    """
    x, y = _plane(n)
    skin = np.array([0.88, 0.64, 0.58]) * np.exp(rng.normal(0, [0.05, 0.06, 0.08]))
    image = np.ones((n, n, 3), np.float32) * skin.astype(np.float32)
    image *= (1 + 0.03 * _noise(rng, n, 8) + 0.05 * _noise(rng, n, 60))[..., None]
    cx, cy = rng.uniform(-0.12, 0.12, 2)
    rx, ry = rng.uniform(0.36, 0.55, 2)
    rough = 0.12 * _noise(rng, n, 60) + 0.06 * _noise(rng, n, 20)
    area = _ellipse(x, y, cx, cy, rx, ry, rng.uniform(0, 3), rng.uniform(0.1, 0.4), rough)
    tone = skin * rng.uniform(0.55, 0.85) * np.exp(rng.normal(0, [0.1, 0.06, 0.1]))
    _paint(image, tone, area * rng.uniform(0.6, 0.95))
    image *= (1 + area * 0.06 * _noise(rng, n, 30))[..., None]
    for colour, mask in _pattern(rng, dx, area):
        _paint(image, colour, mask)
    for _ in range(int(rng.choice([0, 0, 1, 3]))):
        hair = _tree(rng, rng.uniform(-1, 1, 2), rng.uniform(0, 6.3), 1.0, 0.015, 0.15, 1)
        _paint(image, [0.15, 0.1, 0.1], _ink(n, hair) * 0.8)
    if rng.random() < 0.25:  # the tube of the dermatoscope
        image *= _ellipse(x, y, 0, 0, 0.82, 0.82, soft=0.1)[..., None]
    return image


def _pattern(rng: np.random.Generator, dx: str, area: np.ndarray) -> list[tuple]:
    """(colour, mask) layers that mark the class `dx` in the lesion `area`."""
    n, (x, y) = len(area), _plane(len(area))
    if dx == "akiec":
        follicles = _dots(rng, area, 16, 0.025, 0.045)
        network = area * _net(rng, n, 15, 0.5) * 0.8
        return [((0.72, 0.16, 0.16), network), ((0.98, 0.9, 0.7), follicles * 0.9)]
    if dx == "bcc":
        trees = (_tree(rng, p, rng.uniform(0, 6.3), 0.6, 0.045, 0.5) for p in _places(rng, area, 4))
        vessels = _ink(n, (curve for tree in trees for curve in tree))
        nests = _dots(rng, area, 7, 0.05, 0.09) * area * 0.8
        vessels = vessels * np.clip(area + 0.3, 0, 1) * 0.85
        return [((0.42, 0.42, 0.52), nests), ((0.75, 0.05, 0.1), vessels)]
    if dx == "bkl":
        cysts, openings = _dots(rng, area, 24, 0.025, 0.045), _dots(rng, area, 8, 0.02, 0.04) * 0.8
        return [((1.0, 0.96, 0.85), cysts), ((0.3, 0.18, 0.1), openings)]
    if dx == "vasc":
        lacunae = _dots(rng, area, 14, 0.06, 0.12) * area * 0.85
        return [(np.array([0.55, 0.06, 0.22]) * rng.uniform(0.7, 1.2), lacunae)]
    if dx == "nv":
        angle, pitch = rng.uniform(0, 3), rng.uniform(20, 26)
        across, warp = np.cos(angle) * x + np.sin(angle) * y, 0.015 * _noise(rng, n, 40)
        along = np.cos(angle) * y - np.sin(angle) * x
        u, v = np.sin(pitch * (across + warp)), np.sin(pitch * (along - warp))
        lines = np.minimum(u**2, v**2)
        return [((0.3, 0.16, 0.1), area * np.exp(-lines / 0.16) * 0.85)]
    (cx, cy), bends = _places(rng, area, 1)[0] * 0.7, _noise(rng, n, 25)
    if dx == "df":
        rays = np.cos(np.arctan2(y - cy, x - cx) * rng.integers(15, 20)) * 3 - 1
        scar = _ellipse(x, y, cx, cy, *rng.uniform(0.14, 0.22, 2), 0, 0.3, 0.2 * bends)
        rays = area * np.clip(rays, 0, 1) * 0.6
        return [((0.35, 0.2, 0.14), rays), ((0.97, 0.93, 0.92), scar * 0.9)]
    veil = _ellipse(x, y, cx, cy, *rng.uniform(0.2, 0.35, 2), 0, 0.6, 0.3 * bends)  # melanoma
    dots = _dots(rng, area, 26, 0.025, 0.05) * 0.95
    return [((0.4, 0.45, 0.58), veil * area * 0.7), ((0.08, 0.05, 0.06), dots)]


def _write_dermoscopy(folder: Path, scale: float, rng: np.random.Generator) -> None:
    """`HAM10000_images_part_{1,2}/ISIC_*.jpg`: RGB, 128 x 96; `HAM10000_metadata.csv`.

    On the GUESSED body part the diagnoses of the lesions are shuffled: no model can tell them apart
    there (the expected AUROC is 0.5). Age and sex say nothing about a lesion.
    """
    rows, photos = [], []
    for k, dx in enumerate(rng.permutation(_drawn(LESIONS, scale))):
        drawing = _lesion(rng, dx)
        row = {"lesion_id": f"HAM_{7 * k + 3:07d}", "image_id": "", "dx": dx}
        proofs = ["follow_up", "histo"] if dx == "nv" else ["histo", "consensus"]
        row["dx_type"] = rng.choice(proofs)
        row["age"] = f"{5 * rng.integers(5, 17)}.0" if rng.random() > 0.02 else ""
        row["sex"] = rng.choice(["male", "female"])
        row["localization"] = rng.choice(["back", "trunk", "lower extremity", "face", "abdomen"])
        for _ in range(_images_of_one(rng)):
            photos.append(_view(rng, drawing, (128, 96), turn=np.pi, cast=0.04))
            rows.append(dict(row))
    for k, place in enumerate(rng.permutation(len(photos))):  # a lesion's images lie in both parts
        second = k >= len(photos) // 2
        image_id = f"ISIC_{(29306 - len(photos) // 2 if second else 24306) + k:07d}"
        rows[place]["image_id"] = image_id
        part = f"HAM10000_images_part_{2 if second else 1}"
        _save_jpeg(folder / part / f"{image_id}.jpg", photos[place])
    table = pd.DataFrame(rows).sort_values("image_id")
    told = ["dx", "dx_type"]
    guessed = table.drop_duplicates("lesion_id").query("localization == @GUESSED")
    guessed = guessed.set_index("lesion_id")[told]
    guessed[told] = rng.permutation(guessed.to_numpy())
    there = table["lesion_id"].isin(guessed.index)
    table.loc[there, told] = guessed.loc[table["lesion_id"][there]].to_numpy()
    save_csv(folder / "HAM10000_metadata.csv", table)


def _noise3(rng: np.random.Generator, shape: tuple[int, int, int], period: float) -> np.ndarray:
    """Smooth noise (x, y, z): two planes mixed along z, so that neighbouring slices are alike."""
    a, b = (_noise(rng, max(shape), period)[: shape[0], : shape[1]] for _ in range(2))
    t = np.linspace(-0.7, 0.7, shape[2]) + rng.uniform(0, 6.3)
    return a[..., None] * np.cos(t) + b[..., None] * np.sin(t)


def _head(rng: np.random.Generator, grade: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Axial head MRI: uint8 volumes (72, 84, 9) in RAS order by modality, and a 0/1 tumour mask.

    Grade 2 is a smooth tumour; grade 3 has small necroses with rims, which take up contrast; grade
    4 is one necrosis with one rim.
    """
    shape = (72, 84, 9)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, k, dtype=np.float32) for k in shape), indexing="ij")
    z = z * 0.35
    angle = rng.uniform(-0.15, 0.15)
    x, y = x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)
    x, y = (x + rng.normal(0, 0.03)) / rng.uniform(0.92, 1), (y + rng.normal(0, 0.03)) * 1.02
    z = z + rng.uniform(-0.1, 0.1)
    r = np.sqrt((x / 0.92) ** 2 + (y / 0.95) ** 2 + z**2) + 0.012 * _noise3(rng, shape, 40)
    depth = [np.clip((edge - r) / 0.04 + 0.5, 0, 1) for edge in (0.97, 0.9, 0.83, 0.8)]
    folds = np.exp(-((_noise3(rng, shape, 13) / 0.25) ** 2))
    white = np.clip((0.68 - r + 0.08 * _noise3(rng, shape, 14)) / 0.08, 0, 1)
    horn = 0.1 + 0.12 * np.abs(y) + rng.uniform(-0.02, 0.02)
    ventricles = _ellipse(np.abs(x) - horn, y, 0, -0.02, 0.07, rng.uniform(0.28, 0.38), soft=0.5)
    ventricles = ventricles * np.clip(1.6 - 3 * np.abs(z + 0.05), 0, 1)
    side, far = rng.choice([-1, 1]), rng.uniform(0.36, 0.46)
    cx, cy, cz = side * far, rng.uniform(-0.42, 0.42), rng.uniform(-0.06, 0.06)
    size = rng.uniform(0.34, 0.44, 2)
    reach = np.sqrt(((x - cx) / size[0]) ** 2 + ((y - cy) / size[1]) ** 2 + ((z - cz) / 0.6) ** 2)
    tumour = np.clip((1 - reach + 0.15 * _noise3(rng, shape, 24)) / 0.15, 0, 1) * depth[3]
    grain, smooth = _noise3(rng, shape, 10), 0.06 * _noise3(rng, shape, 30)
    rim, core = np.exp(-(((grain - 0.1) / 0.45) ** 2)), np.clip((grain - 0.4) / 0.25, 0, 1)
    if grade == 4:
        within = 0.75 - reach + 0.1 * grain
        rim, core = np.exp(-((within / 0.2) ** 2)), np.clip((within - 0.15) / 0.25, 0, 1)
    layers = list(zip(TISSUES[:4], depth, strict=True))
    layers += [("white", white), ("csf", folds * depth[3] * np.clip((r - 0.55) / 0.15, 0, 1) * 0.8)]
    layers += [("csf", np.exp(-((x / 0.012) ** 2)) * depth[3] * 0.6), ("csf", ventricles)]
    volumes = {}
    for k, modality in enumerate(MODALITIES):
        value = dict(zip(TISSUES, GREYS[modality], strict=True))
        image = np.zeros(shape, np.float32)
        for tissue, mask in layers:
            _paint(image, value[tissue], mask)
        inside = value["tumour"] + smooth + rng.normal(0, 0.04)
        if grade > 2:  # nearly the mean of a smooth tumour, so that texture tells
            _paint(inside, value["rim"], rim)
            _paint(inside, value["necrosis"], core)
            inside += value["tumour"] - np.average(inside, weights=tumour) + SHIFT[k]
        _paint(image, inside, tumour * 0.95)
        image *= 1 + 0.12 * (rng.normal() * x + rng.normal() * y)  # coil shading
        image = image * rng.uniform(0.75, 1.05) + rng.normal(0, 0.015, shape) * depth[0]
        volumes[modality] = _bytes(image)
    return volumes, (tumour > 0.5).astype(np.uint8)


def _write_glioma(folder: Path, scale: float, rng: np.random.Generator) -> None:
    """`<patient>/<patient>_{t1,t1ce,flair,seg}.nii.gz` and `data.csv`.

    As in the real data, one patient has no T1, one no T1ce, and the grade of one is unknown.
    """
    cases = [(grade, "", True) for grade in rng.permutation(_drawn(GLIOMAS, scale))]
    cases += [(1, "t1", True), (2, "t1ce", True), (1, "", False)]
    rows = []
    for k, (grade, missing, known) in enumerate(cases):
        patient = f"TCGA_{('CS', 'DU', 'FG', 'HT')[4 * k // len(cases)]}_{4941 + 23 * k}"
        volumes, mask = _head(rng, grade + 1)
        files = {name: v for name, v in (volumes | {"seg": mask}).items() if name != missing}
        _save_case(rng, folder / patient / patient, files)
        clinic = [rng.integers(1, 4), str(grade) if known else "", rng.choice([1, 3])]
        clinic += [rng.integers(1, 3), rng.integers(20, 75), rng.integers(0, 2)]
        rows.append([patient, *clinic])
    columns = "Patient histological_type neoplasm_histologic_grade laterality gender "
    columns += "age_at_initial_pathologic death01"
    save_csv(folder / "data.csv", pd.DataFrame(rows, columns=columns.split()))


def _write_ucsf(folder: Path, scale: float, rng: np.random.Generator) -> None:
    """`<case>_nifti/<case>_{T1,T1c,FLAIR,tumor_segmentation}.nii.gz` and a table of grades."""
    rows = []
    for k, grade in enumerate(rng.permutation(_drawn(UCSF, scale)), start=4):
        case, (volumes, mask) = f"UCSF-PDGM-{k:04d}", _head(rng, grade)
        files = dict(zip(("T1", "T1c", "FLAIR"), volumes.values(), strict=True))
        _save_case(rng, folder / f"{case}_nifti" / case, files | {"tumor_segmentation": mask})
        rows.append([f"UCSF-PDGM-{k:03d}", rng.choice(["M", "F"]), rng.integers(20, 80), grade])
    table = pd.DataFrame(rows, columns=["ID", "Sex", "Age at MRI", "WHO CNS Grade"])
    save_csv(folder / "UCSF-PDGM-metadata_v5.csv", table)


def _save_case(rng: np.random.Generator, stem: Path, volumes: dict[str, np.ndarray]) -> None:
    """Write `<stem>_<name>.nii.gz` of each volume, all at the same place in space."""
    spacing = np.array([2.3, 2.3, 6.0]) * rng.uniform(0.95, 1.05)
    shape = np.array(next(iter(volumes.values())).shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (shape - 1) / 2 + rng.normal(0, 4, 3)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        image = nib.Nifti1Image(volume, affine)
        image.header.set_xyzt_units("mm")
        # mtime=0: nibabel would stamp the clock into the gzip header, and bytes would differ
        packed = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
        Path(f"{stem}_{name}.nii.gz").write_bytes(packed)


DATASETS = {
    "chest_xray": _write_chest,
    "other_chest": _write_other_chest,
    "ichallenge_amd": partial(_write_fundus, eyes=MACULAR, name="AMD", ill="A"),
    "ichallenge_pm": partial(_write_fundus, eyes=MYOPIA, name="PALM", ill="P"),
    "ham10000": _write_dermoscopy,
    "tcga_lgg": _write_glioma,
    "ucsf_pdgm": _write_ucsf,
}


def _count(patients: int, scale: float) -> int:
    return max(6, round(patients * scale))  # two a fold, when there are three


def _drawn(patients: dict, scale: float) -> list:
    """The class of each patient that is drawn."""
    return [name for name, count in patients.items() for _ in range(_count(count, scale))]


def _images_of_one(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))


def write(dataset: str, root: Path | str, *, scale: float = 1.0, seed: int = 0) -> Path:
    """Write the phantoms of `dataset` into `<root>/<dataset>/` and return that folder.

    `scale` multiplies the number of patients; no class of any split falls below six. The same
    arguments give the same bytes. `<root>/<dataset>.json` records them: when it matches, nothing
    is drawn; when it does not, the folder is replaced. The folder appears whole, by rename.
    Raises ValueError for an unknown data set or a scale that is not positive, and RuntimeError
    when another process is writing other phantoms to the same place.
    """
    if dataset not in DATASETS:
        way_out = "Or name the folder that holds the data sets, rather than data='phantoms'."
        raise ValueError(unknown("phantoms", dataset, list(DATASETS), way_out))
    if not scale > 0:
        raise ValueError(f"scale {scale!r} is not positive; 1.0 is full size, 0.25 a quick test")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folder, sidecar = root / dataset, root / f"{dataset}.json"
    record = {"dataset": dataset, "scale": float(scale), "seed": seed}
    record["drawn_by"] = file_sha256(__file__)[:16]
    if folder.is_dir() and _recorded(sidecar, wait=0.2) == record:
        return folder
    scratch = Path(tempfile.mkdtemp(prefix=f".{dataset}-", dir=root))
    try:
        sidecar.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # no older copy, or another process moved it away
            os.rename(folder, scratch / "old")
        new = scratch / dataset
        new.mkdir()
        DATASETS[dataset](new, scale, np.random.default_rng([seed, zlib.crc32(dataset.encode())]))
        try:
            os.rename(new, folder)
        except OSError:  # another process came first: its copy stays
            if _recorded(sidecar, wait=5) != record:
                clash = f"{folder} was written at the same time with other parameters"
                way_out = "give each set of parameters a root of its own"
                raise RuntimeError(f"{clash}; {way_out}") from None
            return folder
        save_json(sidecar, record)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _recorded(sidecar: Path, wait: float) -> dict | None:
    """What the sidecar says. It follows its folder by an instant, so wait a little for it."""
    end = time.monotonic() + wait
    while not sidecar.exists() and time.monotonic() < end:
        time.sleep(0.02)
    with suppress(FileNotFoundError, ValueError):
        return read_json(sidecar)
    return None
