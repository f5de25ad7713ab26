"""Duplicates: copies of a picture are found however they were saved, look-alikes are not."""

import hashlib
import io
import itertools

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import idctn
from scipy.ndimage import gaussian_filter

from medlib.data import duplicates
from medlib.data.thumbnails import SIDE
from medlib.data.thumbnails import draw as draw_thumbnail

SIZE = 160  # pixels a side of the drawn pictures


def texture(seed, n=SIZE, grain=2.0):
    """Smooth noise with a standard deviation of 1."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(n, n)), grain, mode="wrap")
    return field / field.std()


def lesion(seed, contrast=6.0, shape=0):
    """A dark blob on pale skin, RGB: ``shape`` places the blob, ``seed`` draws its texture."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    cx, cy, rx, ry = np.random.default_rng(shape).uniform(
        [-0.3, -0.3, 0.3, 0.3], [0.3, 0.3, 0.6, 0.6]
    )
    blob = 1 / (1 + np.exp(12 * (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1)))
    grey = 175 - 90 * blob + contrast * texture(seed)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def saved(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def scaled(image, factor):
    return image.resize([round(factor * side) for side in image.size], Image.Resampling.BICUBIC)


COPIES = {
    "JPEG 50": lambda image: saved(image, 50),
    "JPEG 90": lambda image: saved(image, 90),
    "half the size": lambda image: scaled(image, 0.5),
    "enlarged": lambda image: scaled(image, 1.5),
    "down and up again": lambda image: scaled(scaled(image, 0.5), 2),
    "squashed": lambda image: image.resize((SIZE, 2 * SIZE // 3)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "gamma": lambda image: image.point([round(255 * (v / 255) ** 0.9) for v in range(256)] * 3),
    "grey": lambda image: image.convert("L"),
    "all at once": lambda image: saved(ImageEnhance.Contrast(scaled(image, 0.8)).enhance(1.1), 70),
}


def small(*pictures):
    return np.stack([draw_thumbnail(picture) for picture in pictures])


def find(thumbnails, sha256=None):
    """(first, second, kind) of the pairs that are found; without hashes, none is exact."""
    found = duplicates.find(thumbnails, [""] * len(thumbnails) if sha256 is None else sha256)
    return list(found[["first", "second", "kind"]].itertuples(index=False, name=None))


def correlations(thumbnails):
    """The correlations of all pairs, N×N, computed in another way than in the module."""
    return np.corrcoef(thumbnails.reshape(len(thumbnails), -1).astype(float))


def detail_correlations(thumbnails):
    rows = []
    for image in thumbnails.astype(float):
        band = gaussian_filter(image, 1, mode="nearest") - gaussian_filter(image, 2, mode="nearest")
        power = gaussian_filter(band * band, 2, mode="nearest")
        rows.append(band / (power + 1) ** 0.5)
    return correlations(np.stack(rows))


def spanning_forest(weights):
    """Kruskal's algorithm: heaviest pair first, unless its ends are joined already."""
    group = {i: {i} for pair in weights for i in pair}
    kept = set()
    for i, j in sorted(weights, key=weights.get, reverse=True):
        if group[i] is not group[j]:
            kept.add((i, j))
            group[i] |= group[j]
            for member in group[j]:
                group[member] = group[i]
    return kept


# -------------------------------------------------------------------------------- thumbnails


def test_a_thumbnail_is_a_small_grey_square_whatever_the_image():
    for mode, size in (("RGB", (300, 200)), ("L", (17, 40)), ("RGBA", (96, 96)), ("P", (99, 500))):
        thumbnail = draw_thumbnail(Image.new(mode, size))
        assert thumbnail.shape == (SIDE, SIDE)
        assert thumbnail.dtype == np.uint8
    assert (draw_thumbnail(Image.new("L", (200, 300), 77)) == 77).all()


def test_a_thumbnail_averages_what_is_finer_than_its_pixels():
    board = 255 * (np.indices((480, 480)).sum(0) % 2)  # 5 × 5 pixels become one
    thumbnail = draw_thumbnail(Image.fromarray(board.astype(np.uint8))).astype(int)
    assert np.abs(thumbnail - 127.5).max() < 8


def test_a_picture_smaller_than_a_thumbnail_is_not_blurred():
    board = 255 * (np.indices((48, 48)).sum(0) % 2)
    thumbnail = draw_thumbnail(Image.fromarray(board.astype(np.uint8)))
    # Linear interpolation at a quarter of a pixel halves the contrast along each side.
    assert thumbnail[8:-8, 8:-8].std() > 1.4 * 127.5 / 4


# ------------------------------------------------------------------------------------- exact


def test_each_file_of_a_group_is_paired_with_the_first():
    pictures = small(*(lesion(seed, shape=seed) for seed in range(6)))
    hashes = ["a", "b", "a", "c", "b", "a"]
    assert find(pictures, hashes) == [(0, 2, "exact"), (0, 5, "exact"), (1, 4, "exact")]


def test_unknown_hashes_are_like_none():
    pictures = small(*(lesion(seed, shape=seed) for seed in range(3)))
    assert find(pictures, ["", "", ""]) == []


def test_near_pairs_are_not_repeated_among_exact_copies():
    original, copy = lesion(0), saved(lesion(0), 80)
    found = find(small(original, copy, original, copy), ["a", "b", "a", "b"])
    assert found == [(0, 1, "near"), (0, 2, "exact"), (1, 3, "exact")]


# -------------------------------------------------------------------------------------- near


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_among_others(kind):
    pictures = [lesion(seed, shape=seed) for seed in range(8)]
    copies = [COPIES[kind](picture) for picture in pictures]
    assert find(small(*pictures, *copies)) == [(i, i + 8, "near") for i in range(8)]


def test_the_same_blob_with_another_texture_is_a_look_alike():
    pictures = small(*(lesion(seed, contrast=3) for seed in range(12)))
    alike = correlations(pictures)[np.triu_indices(12, 1)]
    assert alike.min() > duplicates.SAME_PICTURE  # by the pictures alone they would all be one
    assert find(pictures) == []


def test_a_texture_that_all_pictures_share_makes_no_copies():
    pictures = small(*(lesion(0, contrast=12, shape=shape) for shape in (0, 1, 3)))
    assert detail_correlations(pictures).min() > duplicates.SAME_DETAIL
    assert find(pictures) == []


def test_a_picture_of_the_same_thing_a_little_later_is_a_look_alike():
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    body = 60 + 120 * np.sin(np.pi * x) * np.sin(np.pi * y) + 5 * texture(0)
    breath = np.roll(body, 5, axis=0)
    pictures = small(*(Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in (body, breath)))
    assert correlations(pictures)[0, 1] > duplicates.SAME_PICTURE
    # The whole picture has moved, as in a crop: it is found as one, and not as a near copy.
    assert find(pictures) == [(0, 1, "cropped")]


def test_blank_images_are_only_ever_exact():
    grain = 255 / 2 + 0.8 * texture(0, SIDE, grain=1.5)
    blank = np.full_like(grain, 9)
    pictures = np.stack([grain, grain + 1, blank, blank, blank + 1]).astype(np.uint8)
    assert find(pictures) == []
    assert find(pictures, ["", "", "a", "a", "b"]) == [(2, 3, "exact")]


def test_the_correlation_is_that_of_the_detail_and_one_for_exact_copies():
    pictures = small(lesion(0), COPIES["all at once"](lesion(0)), lesion(1, shape=1))
    found = duplicates.find(pictures, ["a", "b", "a"])
    assert found["kind"].tolist() == ["near", "exact"]
    expected = detail_correlations(pictures[:2])[0, 1]
    assert found["correlation"].tolist() == [pytest.approx(expected, abs=1e-5), 1]


# ------------------------------------------------------------------------------------ groups


def test_a_hundred_equal_pictures_are_ninety_nine_pairs_with_the_first():
    pictures = small(lesion(1, shape=1), *[lesion(0)] * 100)
    assert find(pictures) == [(1, i, "near") for i in range(2, 101)]


def test_a_large_group_has_one_pair_less_than_images_and_hangs_together():
    rng = np.random.default_rng(0)
    frames = [np.clip(small(lesion(0))[0] + rng.normal(0, 1, (96, 96)), 0, 255) for _ in range(300)]
    pairs = [pair[:2] for pair in find(np.stack(frames).astype(np.uint8))]
    assert len(pairs) == 299
    assert len(spanning_forest(dict.fromkeys(pairs, 1))) == 299  # no cycle: so all are joined


@pytest.fixture(scope="module")
def mixture():
    """Thumbnails of which some are copies, some fade into one another, and most look alike."""
    pictures = [lesion(seed, contrast=4, shape=seed % 5) for seed in range(120)]
    pictures += [saved(pictures[i], quality) for i in range(0, 60, 3) for quality in (60, 85)]
    pictures += [Image.blend(pictures[0], pictures[5], share) for share in np.linspace(0.1, 0.9, 9)]
    order = np.random.default_rng(0).permutation(len(pictures))
    return small(*(pictures[i] for i in order))


def test_the_pairs_are_those_of_brute_force(mixture):
    picture, detail = correlations(mixture), detail_correlations(mixture)
    alike = {
        (i, j): detail[i, j]
        for i, j in itertools.combinations(range(len(mixture)), 2)
        if picture[i, j] >= duplicates.SAME_PICTURE and detail[i, j] >= duplicates.SAME_DETAIL
    }
    kept = spanning_forest(alike)
    assert 40 < len(kept) < len(alike)  # there are groups, and groups of more than two
    found = duplicates.find(mixture, [""] * len(mixture))
    assert set(zip(found["first"], found["second"], strict=True)) == kept
    expected = [alike[pair] for pair in zip(found["first"], found["second"], strict=True)]
    np.testing.assert_allclose(found["correlation"], expected, atol=1e-5)


def test_nothing_depends_on_how_the_work_is_cut(mixture, monkeypatch):
    whole = duplicates.find(mixture, [""] * len(mixture))
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    pieces = duplicates.find(mixture, [""] * len(mixture))
    pd.testing.assert_frame_equal(whole, pieces, atol=1e-5)


def test_the_first_look_misses_no_pair_that_is_alike_enough(mixture):
    high = np.argwhere(np.triu(correlations(mixture) >= duplicates.SAME_PICTURE, 1))
    blocks = duplicates._candidates(mixture, np.arange(len(mixture)))
    candidates = {pair for one, other in blocks for pair in zip(one, other, strict=True)}
    assert len(high) > 500
    assert {tuple(pair) for pair in high} <= candidates


def test_the_first_look_leaves_no_other_pair_where_pictures_are_smooth():
    rng, n = np.random.default_rng(0), SIDE
    waves = np.zeros((200, n, n))
    waves[:, :8, :8] = rng.normal(size=(8, 8)) + 0.2 * rng.normal(size=(200, 8, 8))
    images = idctn(waves, axes=(1, 2), norm="ortho")
    pictures = (128 + 120 * images / np.abs(images).max()).astype(np.uint8)
    correlation = np.triu(correlations(pictures), 1)
    candidates = np.zeros_like(correlation, bool)
    for pair in duplicates._candidates(pictures, np.arange(200)):
        candidates[pair] = True
    clear = np.abs(correlation - duplicates.SAME_PICTURE) > 1e-3
    expected = correlation > duplicates.SAME_PICTURE
    assert 0.01 < expected.mean() < 0.45
    assert (candidates == expected)[clear].all()


def test_the_order_of_the_images_does_not_matter(mixture):
    order = np.random.default_rng(1).permutation(len(mixture))
    straight = {pair[:2] for pair in find(mixture)}
    shuffled = {tuple(sorted(order[[i, j]])) for i, j, _ in find(mixture[order])}
    assert shuffled == straight


# ------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("n", [0, 1])
def test_without_two_images_there_is_no_pair(n):
    found = duplicates.find(small(lesion(0))[:n], ["a"] * n)
    assert found.empty
    assert list(found.columns) == ["first", "second", "kind", "correlation"]


def test_arrays_that_do_not_fit_are_refused():
    pictures = small(lesion(0), lesion(1))
    with pytest.raises(ValueError, match="2 thumbnails have 1 hashes"):
        duplicates.find(pictures, ["a"])
    with pytest.raises(ValueError, match=r"uint8 N×S×S, not float64 2×96×96"):
        duplicates.find(pictures / 255, ["a", "b"])


# --------------------------------------------------------------------------------- real data


def named_pairs(paths):
    """The pairs that are found among image files: {(name, name): kind}."""
    thumbnails, hashes = [], []
    for path in paths:
        with Image.open(path) as image:
            thumbnails.append(draw_thumbnail(image))
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    found = duplicates.find(np.stack(thumbnails), hashes)
    names = [path.stem for path in paths]
    return {(names[i], names[j]): kind for i, j, kind, _ in found.itertuples(index=False)}


@pytest.mark.real_data
def test_five_fundus_photographs_stand_twice_two_of_them_across_the_split(real_data):
    assert named_pairs(sorted((real_data / "ichallenge_pm").glob("PALM-*/*.jpg"))) == {
        ("P0014", "P0072"): "exact",
        ("P0056", "V0163"): "exact",
        ("P0057", "V0252"): "exact",
        ("V0107", "V0160"): "exact",
        ("V0027", "V0279"): "turned",  # looked at: one eye
        ("V0268", "V0320"): "exact",
    }


@pytest.mark.real_data
def test_six_chest_radiographs_of_the_test_set_stand_twice(real_data):
    assert named_pairs(sorted((real_data / "chest_xray" / "test").rglob("*.jpeg"))) == {
        ("NORMAL2-IM-0095-0001", "NORMAL2-IM-0096-0001"): "exact",
        ("NORMAL2-IM-0173-0001-0001", "NORMAL2-IM-0173-0001-0002"): "exact",
        ("NORMAL2-IM-0246-0001-0001", "NORMAL2-IM-0246-0001-0002"): "exact",
        ("person128_bacteria_606", "person128_bacteria_607"): "exact",
        ("person134_bacteria_643", "person134_bacteria_644"): "exact",
        ("person1661_virus_2872", "person1661_virus_2873"): "exact",
        # Looked at: one patient each, as the names say.
        ("person134_bacteria_642", "person134_bacteria_643"): "cropped",
        ("person1669_virus_2884", "person1669_virus_2885"): "turned and cropped",
    }


@pytest.mark.real_data
def test_one_photograph_stands_for_two_lesions_in_ham10000(real_data):
    folder = real_data / "ham10000"
    # HAM_0004919 and HAM_0000140: the same frame, down to the hair, in another white balance.
    paths = [next(folder.glob(f"*/ISIC_{number}.jpg")) for number in ("0025226", "0030074")]
    others = sorted((folder / "HAM10000_images_part_1").glob("ISIC_00243[0-4]?.jpg"))
    found = named_pairs([*paths, *others])
    assert found.pop(("ISIC_0025226", "ISIC_0030074")) == "near"
    assert found == {}


def test_a_film_is_one_group_and_not_every_frame_is_compared_with_every_other(monkeypatch):
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 256, (12, 12)), np.ones((8, 8)))
    frames = np.clip(still + rng.normal(0, 2, (40, 96, 96)), 0, 255).astype(np.uint8)
    hashes = [str(number) for number in range(40)]
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    whole = duplicates.find(frames, hashes)
    compared, detail = [], duplicates._detail
    monkeypatch.setattr(duplicates, "_detail", lambda t: compared.append(len(t)) or detail(t))
    monkeypatch.setattr(duplicates, "_CROWD", 3)
    film = duplicates.find(frames, hashes)
    blocks = 40 // 4
    assert len(film) == len(whole) == 39  # a tree: 40 frames are joined by 39 pairs
    assert len(compared) <= 2 * (blocks + 1)  # a block with the first one, and not with each other
    seen = {0}
    for _ in range(40):  # follow the pairs from frame 0: every frame is reached
        for pair in film.itertuples():
            if {pair.first, pair.second} & seen:
                seen |= {pair.first, pair.second}
    assert seen == set(range(40))
