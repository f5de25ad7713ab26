"""Changed copies: mirrored, turned and cropped pictures are found, look-alikes are not."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from medlib.data import changed_copies, duplicates
from medlib.data.thumbnails import detail
from medlib.data.thumbnails import draw as draw_thumbnail

SIZE = 200  # pixels a side of the drawn pictures
T = Image.Transpose


def skin(seed, shape=None):
    """A blotched picture with speckles: ``shape`` places the blotches, ``seed`` the speckles."""
    blotches = np.random.default_rng(seed if shape is None else 1000 + shape)
    grey = np.zeros((SIZE, SIZE))
    for rng, grain, contrast in ((blotches, 20, 35), (np.random.default_rng(seed), 3, 14)):
        field = gaussian_filter(rng.normal(size=(SIZE, SIZE)), grain)
        grey += contrast * field / field.std()
    return Image.fromarray(np.clip(128 + grey, 0, 255).astype(np.uint8))


def cropped(image, share, x=0.5, y=0.5):
    """``share`` of the side is left; ``x`` and ``y`` (0 to 1) say where."""
    side = round(share * SIZE)
    left, top = round(x * (SIZE - side)), round(y * (SIZE - side))
    return image.crop((left, top, left + side, top + side))


def with_arrow(image):
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.line([(60, 120), (80, 100)], fill=255, width=3)
    draw.line([(80, 100), (70, 102)], fill=255, width=3)
    draw.line([(80, 100), (78, 110)], fill=255, width=3)
    return image


def mirror(image):
    return image.transpose(T.FLIP_LEFT_RIGHT)


COPIES = {
    "left and right swapped": (mirror, "mirrored"),
    "upside down": (lambda i: i.transpose(T.FLIP_TOP_BOTTOM), "mirrored"),
    "rows and columns swapped": (lambda i: i.transpose(T.TRANSPOSE), "mirrored"),
    "quarter turn": (lambda i: i.transpose(T.ROTATE_90), "turned"),
    "quarter turn the other way": (lambda i: i.transpose(T.ROTATE_270), "turned"),
    "half turn": (lambda i: i.transpose(T.ROTATE_180), "turned"),
    "2 degrees": (lambda i: i.rotate(2, Image.Resampling.BICUBIC), "turned"),
    "5 degrees": (lambda i: i.rotate(-5, Image.Resampling.BICUBIC), "turned"),
    "95 % of the area": (lambda i: cropped(i, 0.95**0.5, 0, 1), "cropped"),
    "90 % of the area": (lambda i: cropped(i, 0.9**0.5, 0.3, 0.8), "cropped"),
    "80 % of the area": (lambda i: cropped(i, 0.8**0.5, 1, 1), "cropped"),
    "cropped, with an arrow": (lambda i: with_arrow(cropped(i, 0.965, 1, 0)), "cropped"),
    "mirrored crop": (lambda i: mirror(cropped(i, 0.8**0.5)), "mirrored and cropped"),
    "quarter turn of a crop": (lambda i: cropped(i, 0.92).rotate(90), "turned and cropped"),
}


def small(*pictures):
    return np.stack([draw_thumbnail(picture) for picture in pictures])


def find(thumbnails, group=None):
    group = np.arange(len(thumbnails)) if group is None else group
    found = changed_copies.find(thumbnails, group)
    return list(found[["first", "second", "kind"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def originals():
    return [skin(seed) for seed in range(8)]


@pytest.mark.parametrize("name", COPIES)
def test_a_changed_copy_is_found_among_others(name, originals):
    change, kind = COPIES[name]
    pictures = small(*originals, *map(change, originals))
    assert find(pictures) == [(i, i + 8, kind) for i in range(8)]


def test_with_the_other_copies_it_is_found_by_the_search_for_duplicates(originals):
    pictures = small(*originals, mirror(originals[2]), originals[5].resize((150, 150)))
    found = duplicates.find(pictures, [""] * len(pictures))
    assert found[["first", "second", "kind"]].to_numpy().tolist() == [
        [2, 8, "mirrored"],
        [5, 9, "near"],
    ]
    assert found["correlation"].between(0.85, 1.0001).all()


def test_a_copy_of_a_near_copy_joins_the_group_by_one_pair(originals):
    first = originals[0]
    pictures = small(first, first.resize((150, 150)), mirror(first), mirror(first).resize((99, 99)))
    found = duplicates.find(pictures, [""] * 4)
    assert len(found) == 3  # a tree of four images
    assert sorted(found["kind"]) == ["mirrored", "near", "near"]


def test_the_same_blotches_with_other_speckles_are_look_alikes():
    pictures = small(*(skin(seed, shape=0) for seed in range(6)))
    mirrored = small(*(mirror(skin(seed, shape=0)) for seed in range(6, 12)))
    assert find(np.concatenate([pictures, mirrored])) == []


def test_pictures_of_a_known_group_are_not_compared(originals):
    pictures = small(*originals[:3], mirror(originals[0]), mirror(originals[1]))
    assert find(pictures, np.array([0, 1, 2, 0, 4])) == [(1, 4, "mirrored")]


def test_the_order_of_the_images_does_not_matter(originals):
    copies = [change(image) for image, (change, _) in zip(originals, COPIES.values(), strict=False)]
    pictures = small(*originals, *copies)
    order = np.random.default_rng(0).permutation(len(pictures))
    straight = {tuple(sorted(pair[:2])) for pair in find(pictures)}
    shuffled = {tuple(sorted(order[list(pair[:2])].tolist())) for pair in find(pictures[order])}
    assert len(straight) == 8 and shuffled == straight


def test_blank_and_tiny_pictures_are_never_changed_copies(originals):
    grain = gaussian_filter(np.random.default_rng(0).normal(size=(96, 96)), 2)
    blank = (128 + grain / grain.std()).astype(np.uint8)
    pictures = np.stack([blank, blank[:, ::-1], *small(originals[0], mirror(originals[0]))])
    found = duplicates.find(pictures, [""] * 4, tiny=[False, False, True, True])
    assert found.empty


def test_a_film_that_moves_is_compared_in_a_number_of_pairs_that_grows_with_its_length(monkeypatch):
    wide = np.asarray(skin(0).resize((400, 400)))
    frames = np.stack([wide[5 * k : 5 * k + 96, 3 * k : 3 * k + 96] for k in range(60)])
    counted, aligned = [], changed_copies._aligned
    monkeypatch.setattr(
        changed_copies, "_aligned", lambda t, p: counted.append(len(p.one)) or aligned(t, p)
    )
    found = duplicates.find(frames, [""] * len(frames))
    assert counted == [len(frames) * changed_copies.NEAREST]
    assert len(found) < len(frames)  # a forest


def test_a_last_batch_of_one_picture_is_no_exception(originals, monkeypatch):
    monkeypatch.setattr(changed_copies, "_BATCH", 8)
    assert find(small(*originals, mirror(originals[3]))) == [(3, 8, "mirrored")]


def test_pictures_that_all_are_of_one_group_have_no_pairs(originals):
    assert find(small(*originals[:3]), np.zeros(3, int)) == []


# ---------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("position", range(8))
def test_a_description_is_permuted_as_its_picture_is(position, originals):
    pixels = small(originals[0])
    turned = pixels.swapaxes(1, 2) if position & 4 else pixels
    turned = turned[:, ::-1] if position & 1 else turned
    turned = turned[:, :, ::-1] if position & 2 else turned
    of_both = [
        changed_copies._described(changed_copies._shrunk(p, changed_copies._MIDDLE))
        for p in (pixels, turned)
    ]
    permuted = changed_copies._positioned(of_both[0], position)
    np.testing.assert_allclose(permuted, of_both[1], atol=1e-3)
    maps = changed_copies._start(torch.tensor([position]))
    seen, _ = changed_copies._sampled(torch.from_numpy(pixels.copy()).float(), maps)
    np.testing.assert_allclose(seen, turned, atol=1e-2)


def affine(degrees=0.0, scale=1.0, flip=False, shift=0.0):
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[-c if flip else c, -s, shift], [-s if flip else s, c, 0.0]])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (affine(), "altered"),
        (affine(degrees=0.5, shift=0.005), "altered"),
        (affine(degrees=2), "turned"),
        (affine(degrees=90), "turned"),
        (affine(degrees=-87), "turned"),
        (affine(degrees=180), "turned"),
        (affine(flip=True), "mirrored"),
        (affine(degrees=90, flip=True), "mirrored"),
        (affine(degrees=3, flip=True), "mirrored and turned"),
        (affine(scale=0.9), "cropped"),
        (affine(scale=1.1), "cropped"),
        (affine(shift=0.03), "cropped"),
        (affine(degrees=182, scale=0.95, flip=True), "mirrored and turned and cropped"),
    ],
)
def test_a_map_is_told_in_words(change, kind):
    assert changed_copies.kind(change) == kind


def test_detail_is_divided_by_its_local_strength():
    x = np.arange(96)
    wave = np.tile(np.sin(2 * np.pi * x / 8), (96, 1))
    weak, strong = (detail((128 + a * wave)[None]) for a in (20, 80))
    assert np.abs(strong).max() < 1.3 * np.abs(weak).max()  # though four times as strong
