"""Images: any file becomes an upright 8-bit RGB picture; it is packed once, never out of date."""

import io
import itertools
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms

from medlib import files
from medlib.core.fast import transfer
from medlib.data import decoding, embeddings, manifest, packing, packs, volumes
from medlib.data.cards import GEOMETRIES, Volumes
from medlib.data.thumbnails import draw as draw_thumbnail
from medlib.errors import ManifestError
from medlib.grid import address, notebooks

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def pixels(path):
    image = decoding.decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient(h=6, w=8):
    """RGB whose corners all differ, uint8."""
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([y * 255 // (h - 1), x * 255 // (w - 1), (x + y) * 9], -1).astype(np.uint8)


def table(paths, **columns):
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    rows = pd.DataFrame(
        {"sample_id": names, "patient_id": names, "path": list(paths), "label": "a", "fold": 0}
    )
    return rows.assign(**columns)


def hashed(rows, data):
    """The rows with the hashes of their files."""
    plain = rows.drop(columns="sha256", errors="ignore").to_dict("records")
    hashes = [manifest.read_files(row, data)[1] for row in plain]
    return rows.assign(**pd.DataFrame(hashes, index=rows.index))


def pack_one(rows, data, folder, size=8, interpolation="bilinear", workers=1, volumes=None):
    folders = {folder: packs.Drawn(size, interpolation)}
    return packing.pack(rows, data, folders, settings=volumes, workers=workers)[folder]


def head():
    """A RAS volume (x to the patient's right, y to the front, z up): air 0, head 100 to 190."""
    volume = np.zeros((14, 18, 7), np.float32)
    volume[2:12, 2:16] = 100 + 10 * np.arange(10)[:, None, None]
    return volume


def save(path, volume):
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    return path


# ---------------------------------------------------------------------------------- decoding


def test_rgb_comes_out_as_it_is(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    assert (pixels(tmp_path / "x.png") == gradient()).all()


def test_8_bit_grey_becomes_three_equal_channels_unscaled(tmp_path):
    grey = gradient()[..., 2] // 2 + 20
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert (pixels(tmp_path / "x.png") == grey[..., None]).all()


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_windowed_and_not_truncated(tmp_path, name):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits, as scanners write them
    Image.fromarray(ramp).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I;16")
    low, high = 0.005 * 4095, 0.995 * 4095  # percentiles of a ramp
    expected = np.clip((ramp - low) / (high - low), 0, 1) * 255
    found = pixels(tmp_path / name)
    assert np.abs(found - expected[..., None]).max() <= 0.51
    assert (found[0, 0], found[-1, -1]) == (pytest.approx(0), pytest.approx(255))


def test_one_hot_pixel_does_not_darken_a_16_bit_image(tmp_path):
    ramp = np.tile(np.arange(100, dtype=np.uint16) * 10, (100, 1))
    ramp[50, 50] = 65535
    Image.fromarray(ramp).save(tmp_path / "x.png")
    found = pixels(tmp_path / "x.png")[0, :, 0]
    assert found[0] == 0
    assert 125 <= found[50] <= 131
    assert found[99] == 255


def test_floating_point_grey_is_windowed(tmp_path):
    ramp = np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    expected = np.clip((ramp + 0.99) / 1.98, 0, 1) * 255
    assert np.abs(pixels(tmp_path / "x.tif") - expected[..., None]).max() <= 0.51


def test_floating_point_grey_that_is_not_finite_is_refused(tmp_path):
    ramp = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    ramp[3, 3] = np.nan
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="NaN"):
        decoding.decode(tmp_path / "x.tif")


def test_alpha_is_laid_over_black(tmp_path):
    alpha = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    Image.fromarray(np.dstack([gradient(), alpha])).save(tmp_path / "x.png")
    expected = gradient() * (alpha[..., None] / 255)
    assert np.abs(pixels(tmp_path / "x.png") - expected).max() <= 1


def test_grey_with_alpha_is_laid_over_black(tmp_path):
    grey_alpha = np.dstack([np.full((4, 4), 200, np.uint8), np.full((4, 4), 128, np.uint8)])
    grey_alpha[0, 0, 1] = 0
    Image.fromarray(grey_alpha).save(tmp_path / "x.png")
    found = pixels(tmp_path / "x.png")
    assert (found[0, 0] == 0).all()
    assert np.abs(found[1:].astype(int) - 100).max() <= 1


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_gives_its_colours_and_black_where_it_is_transparent(tmp_path, transparent):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / "x.png", **({"transparency": 1} if transparent else {}))
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.mode == "P"
    green = (0, 0, 0) if transparent else GREEN
    assert pixels(tmp_path / "x.png").tolist() == [[[*RED], [*green]], [[*BLUE], [*green]]]


def test_black_and_white_becomes_0_and_255(tmp_path):
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png")[..., 0].tolist() == [[255, 0], [0, 255]]


def test_cmyk_becomes_its_colours(tmp_path):
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, :16] = (0, 255, 255, 0)  # no cyan, all magenta and yellow: red
    inks[:, 16:] = (255, 255, 0, 0)  # blue
    Image.fromarray(inks, "CMYK").save(tmp_path / "x.jpg", quality=95)
    found = pixels(tmp_path / "x.jpg").astype(int)
    assert np.abs(found[:, 2:14] - RED).max() <= 12
    assert np.abs(found[:, 18:30] - BLUE).max() <= 12


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photograph_taken_with_the_camera_turned_is_upright(tmp_path, mode):
    lying = np.zeros((16, 32, 3), np.uint8)
    lying[:, :16] = 240  # bright on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left goes up
    Image.fromarray(lying).convert(mode).save(tmp_path / "x.jpg", quality=95, exif=exif)
    found = pixels(tmp_path / "x.jpg").astype(int)
    assert found.shape == (32, 16, 3)
    assert (found[:15] > 225).all()
    assert (found[17:] < 15).all()


def test_a_progressive_jpeg_is_decoded_whole(tmp_path):
    picture = Image.fromarray(gradient()).resize((64, 48))
    picture.save(tmp_path / "x.jpg", quality=95, progressive=True)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.info["progressive"]
        expected = np.asarray(image.convert("RGB"))
    found = pixels(tmp_path / "x.jpg")
    assert (found == expected).all()
    assert np.abs(found.astype(int) - np.asarray(picture)).mean() < 3


@pytest.mark.parametrize("kind", ["P", "L", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_file_comes_out_as_the_same_upright_picture(tmp_path, kind):
    """One grey picture, saved in every way, is the same within rounding (for CMYK, JPEG's)."""
    y, x = np.mgrid[0:48, 0:64]
    grey = ((x * 3 + y) % 256).astype(np.uint8)
    grey[0, :20], grey[0, 20:40] = 0, 255  # so that the 16-bit window is the whole range
    if kind == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif kind == "CMYK":
        inks = np.zeros((48, 64, 4), np.uint8)
        inks[..., 3] = 255 - grey
        picture = Image.fromarray(inks, "CMYK")
    else:
        picture = Image.fromarray(grey).convert(kind)
    name = tmp_path / ("x.tif" if kind in ("CMYK", "I;16") else "x.png")
    picture.save(name)
    found = pixels(name).astype(int)
    assert np.abs(found - grey[..., None]).max() <= (2 if kind == "I;16" else 0)


def bomb(path, width, height):
    """A PNG whose header claims more pixels than any scanner takes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, chunk in {b"IHDR": header, b"IDAT": zlib.compress(bytes(9)), b"IEND": b""}.items():
        checksum = struct.pack(">I", zlib.crc32(kind + chunk))
        content += struct.pack(">I", len(chunk)) + kind + chunk + checksum
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    bomb(tmp_path / "x.png", side, side)
    with pytest.raises((ValueError, Image.DecompressionBombError), match="bomb"):
        decoding.decode(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_what_would_start_a_program_is_no_image_whatever_its_name(tmp_path, monkeypatch, name):
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / name).write_text(eps)
    with Image.open(tmp_path / name) as image:  # Pillow itself would take it
        assert image.format == "EPS"
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    with pytest.raises(ValueError, match="no image in a format that can be read"):
        decoding.decode(tmp_path / name)
    assert not started


def test_an_array_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", train_images=np.zeros((2000, 224, 224), np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 2**17
    monkeypatch.setattr(shutil, "copyfileobj", lambda *a: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="unpack to 100,352,128 bytes: it is a decompression bomb"):
        decoding.decode(f"{tmp_path}/x.npz#train/0")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "y.npz", train_images=images)
    none = shutil._ntuple_diskusage(9, 9, 0)
    with monkeypatch.context() as full, pytest.raises(ValueError, match=r"has 0 .*TMPDIR\)"):
        full.setattr(shutil, "disk_usage", lambda folder: none)
        decoding.decode(f"{tmp_path}/y.npz#train/0")
    monkeypatch.undo()
    found = np.asarray(decoding.decode(f"{tmp_path}/y.npz#train/2"))
    assert (found == images[2][..., None]).all()


def test_a_file_that_is_no_image_is_told_as_such(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match="no image in a format that can be read"):
        decoding.decode(tmp_path / "x.jpg")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_image_within_an_npz_is_decoded_by_its_number(tmp_path, save):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    colour = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    save(tmp_path / "x.npz", train_images=grey, test_images=colour)
    assert (pixels(f"{tmp_path}/x.npz#train/4") == grey[4][..., None]).all()
    assert (pixels(f"{tmp_path}/x.npz#test/0") == colour[0]).all()
    with pytest.raises(IndexError):
        decoding.decode(f"{tmp_path}/x.npz#test/3")


# ------------------------------------------------------------------------------- plain JPEGs

# torchvision keeps its decoders for now, beside torchcodec's
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


def photograph(h, w, mode="RGB"):
    """Waves, grain, and edges between black and white, at which bicubic weights overshoot."""
    y, x = np.mgrid[0:h, 0:w]
    rng = np.random.default_rng(h + w)
    waves = [128 + 70 * np.sin(x / (4 + k) + y / (9 - k)) for k in range(3)]
    picture = np.stack(waves, -1) + rng.normal(0, 15, (h, w, 1))
    picture[(x // 7 + y // 5) % 4 == 0] = 255
    picture[(x // 7 + y // 5) % 4 == 1] = 0
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert(mode)


def jpeg(picture, **how):
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 90} | how)
    return file.getvalue()


def with_sampling(content, luminance):
    """A JPEG whose header gives its first component other sampling factors."""
    start = content.index(b"\xff\xc0")
    return content[: start + 11] + bytes([luminance]) + content[start + 12 :]


def pillows(path, size, interpolation):
    """Pillow's pixels, resized by Pillow, in numbers that may be subtracted."""
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), filters[interpolation]), int)


def most_apart(path, size, interpolation):
    found = decoding.resize(decoding.decode_to_resize(path, 14), size, interpolation)
    assert found.dtype == np.uint8 and found.shape == (size, size, 3)
    assert found.flags.c_contiguous  # pixel by pixel: planes would have to be woven
    return np.abs(found - pillows(path, size, interpolation)).max()


PLAIN = {
    "grey": lambda: jpeg(photograph(300, 401, "L")),
    "4:4:4": lambda: jpeg(photograph(300, 401), subsampling=0),
    "4:2:2": lambda: jpeg(photograph(300, 401), subsampling=1),
    "4:2:0": lambda: jpeg(photograph(299, 303), subsampling=2),
    "tall": lambda: jpeg(photograph(299, 203)),
    "4:1:1": lambda: with_sampling(jpeg(photograph(64, 64), subsampling=2), 0x41),
    "4:4:0": lambda: with_sampling(jpeg(photograph(64, 64), subsampling=1), 0x12),
    "progressive": lambda: jpeg(photograph(300, 401), progressive=True),
    "progressive grey": lambda: jpeg(photograph(300, 401, "L"), progressive=True),
    "coarse": lambda: jpeg(photograph(300, 401), quality=10),
    "small": lambda: jpeg(photograph(21, 30)),
    "one row": lambda: jpeg(photograph(1, 50)),
    "one column": lambda: jpeg(photograph(90, 1)),
    "one pixel": lambda: jpeg(photograph(1, 1)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_jpeg_is_decoded_as_by_pillow_and_resized_within_one_grey_level(tmp_path, kind):
    path = tmp_path / "x.JPG"
    path.write_bytes(PLAIN[kind]())
    found = decoding.decode_to_resize(path, 14)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    if expected.shape[1] >= expected.shape[0] >= 28:
        found = found.permute(1, 2, 0).numpy()
    assert (np.asarray(found) == expected).all()
    for size in (14, 32, 100, 150, 224):
        shrinks = expected.shape[1] >= expected.shape[0] >= 2 * size
        for interpolation in decoding.RESAMPLING:
            assert most_apart(path, size, interpolation) <= (1 if shrinks else 0)


def test_the_header_that_a_test_patches_has_the_sampling_that_it_says():
    with Image.open(io.BytesIO(PLAIN["4:1:1"]())) as image:
        assert [layer[1:3] for layer in image.layer] == [(4, 1), (1, 1), (1, 1)]
    with Image.open(io.BytesIO(PLAIN["4:4:0"]())) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize("shape", [(448, 300), (448, 448), (449, 600), (460, 224), (900, 1000)])
def test_patterns_of_black_and_white_are_hardly_ever_two_grey_levels_from_pillow(shape):
    """Two passes in the other order would be 15 levels off."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((200, 250)) > 0.5, np.ones((6, 5)))[: shape[0], : shape[1]]
    picture = np.repeat((255 * blocks).astype(np.uint8)[..., None], 3, axis=-1)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for interpolation, kernel in decoding.RESAMPLING.items():
        expected = np.asarray(Image.fromarray(picture).resize((224, 224), kernel), int)
        apart = np.abs(decoding.resize(tensor, 224, interpolation) - expected)
        assert apart.max() <= 2 and (apart > 1).mean() < 1e-4


@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "PNG"])
def test_what_is_called_a_jpeg_but_is_not_plain_is_left_to_pillow(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "PNG":
        photograph(60, 80).save(path, "PNG")
    else:
        content = jpeg(photograph(60, 80, "CMYK"))
        at = content.index(b"Adobe") + 11  # the transform: 0 CMYK, 2 YCCK
        path.write_bytes(content[:at] + bytes([2 * (kind == "YCCK")]) + content[at + 1 :])
    assert isinstance(decoding.decode_to_resize(path, 14), Image.Image)
    for interpolation in decoding.RESAMPLING:
        assert most_apart(path, 40, interpolation) == 0


def turned(stored, orientation):
    """A stored picture as its EXIF orientation says it is shown, by the standard's table."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_packed_upright_whatever_way_it_is_stored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "x.jpg").write_bytes(jpeg(photograph(120, 180), exif=exif))
    with Image.open(tmp_path / "x.jpg") as image:
        upright = Image.fromarray(np.ascontiguousarray(turned(np.asarray(image), orientation)))
    expected = np.asarray(upright.resize((48, 48), Image.Resampling.BICUBIC), int)
    packed = pack_one(table(["x.jpg"]), tmp_path, tmp_path / "pack", 48, "bicubic")
    assert np.abs(packed.images[0] - expected).max() <= (1 if orientation == 1 else 0)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_jpeg_that_was_cut_off_is_refused_in_pillows_words(tmp_path, kept, progressive):
    content = jpeg(photograph(200, 300), progressive=progressive)
    (tmp_path / "x.jpg").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(OSError, match="image file is truncated"):
        decoding.decode_to_resize(tmp_path / "x.jpg", 14)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    content = jpeg(photograph(64, 64))
    at = content.index(b"\xff\xc0") + 5
    claim = struct.pack(">HH", 12_000, 12_000)
    (tmp_path / "x.jpg").write_bytes(content[:at] + claim + content[at + 4 :])
    with pytest.raises(ValueError, match=r"12000 × 12000 pixels.*decompression bomb"):
        decoding.decode_to_resize(tmp_path / "x.jpg", 14)


def test_jpegs_are_packed_with_one_thread_of_torch_each_and_torch_has_its_own_back(
    tmp_path, monkeypatch
):
    photograph(40, 50).save(tmp_path / "x.jpg")
    decode, seen = decoding.decode_to_resize, []
    monkeypatch.setattr(
        decoding, "decode_to_resize", lambda *a: seen.append(torch.get_num_threads()) or decode(*a)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pack_one(table(["x.jpg"]), tmp_path, tmp_path / "pack", workers=2)
        assert (seen, torch.get_num_threads()) == ([1], 3)
        (tmp_path / "x.jpg").write_bytes(b"")
        with pytest.raises(ManifestError):
            pack_one(table(["x.jpg"]), tmp_path, tmp_path / "other", workers=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


PACKED_WITHOUT_TORCH = """
import sys
import pandas as pd
from medlib.data import packing, packs
row = {"sample_id": "s", "patient_id": "s", "path": "s0.png", "label": "a", "fold": 0}
packing.pack(pd.DataFrame([row]), sys.argv[1], {sys.argv[1] + "/pack": packs.Drawn(8, "bilinear")})
sys.exit("torch" in sys.modules)
"""


def test_torch_is_not_imported_where_there_is_no_jpeg(tmp_path):
    write_pictures(tmp_path, 1)
    subprocess.run([sys.executable, "-c", PACKED_WITHOUT_TORCH, str(tmp_path)], check=True)


# ----------------------------------------------------------------------------------- packing


def write_pictures(folder, n=3, shape=(40, 30)):
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(n)]
    for k, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"s{k}.png")
    return arrays, table([f"s{k}.png" for k in range(n)])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 64])
def test_packed_pixels_are_pillows_own_resize(tmp_path, interpolation, size):
    arrays, rows = write_pictures(tmp_path)
    packed = pack_one(rows, tmp_path, tmp_path / "pack", size, interpolation=interpolation)
    assert packed.images.dtype == np.uint8
    assert packed.images.shape == (len(arrays), size, size, 3)
    for path, found in zip(rows["path"], packed.images, strict=True):
        assert (found == pillows(tmp_path / path, size, interpolation)).all()
    how = {"size": size, "interpolation": interpolation, "geometry": "squash"}
    how["grey_values"] = ""
    how |= {"volumes": None, "mask_at_test_time": False}
    made = {"hash": packed.meta["hash"], "sha256": packed.meta["sha256"]}
    assert packed.meta == how | made
    assert made["sha256"] == {
        name: files.file_sha256(tmp_path / "pack" / name) for name in ("index.csv", "digests.npy")
    }


def test_an_unknown_interpolation_is_refused(tmp_path):
    _, rows = write_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"'nearest'\. Choose one of: bilinear, bicubic"):
        pack_one(rows, tmp_path, tmp_path / "pack", interpolation="nearest")


@pytest.mark.parametrize("workers", [1, 3])
def test_hundreds_of_images_stay_in_the_order_of_their_rows(tmp_path, workers):
    order = np.random.default_rng(2).permutation(300)
    for k in order:
        Image.new("RGB", (2, 2), (k % 256, k // 256, 7)).save(tmp_path / f"s{k}.bmp")
    rows = table([f"s{k}.bmp" for k in order])
    packed = pack_one(rows, tmp_path, tmp_path / "pack", 2, workers=workers)
    assert (packed.images[:, 0, 0, 0] + 256 * packed.images[:, 1, 1, 1].astype(int) == order).all()
    assert packed.index["sample_id"].tolist() == [f"s{k}" for k in order]


def test_the_index_has_a_row_an_image_and_keeps_ids_and_labels_as_text(tmp_path):
    _, rows = write_pictures(tmp_path)
    texts = {"sample_id": ["007", "1e3", "NaN"], "patient_id": ["01", "1", "NA"]}
    texts["label"] = ["NA", "null", "1"]
    rows = hashed(rows.assign(**texts, fold=[2, 0, 1]), tmp_path)
    packed = pack_one(rows, tmp_path, tmp_path / "pack")
    assert packed.index.columns.tolist() == ["sample_id", "patient_id", "label", "fold", "slice"]
    expected = [["007", "01", "NA", 2, 0], ["1e3", "1", "null", 0, 0], ["NaN", "NA", "1", 1, 0]]
    assert packed.index.to_numpy().tolist() == expected
    by_split = rows.drop(columns="fold").assign(split=["train", "val", "test"])
    index = pack_one(by_split, tmp_path, tmp_path / "other").index
    assert index["split"].tolist() == ["train", "val", "test"]


def test_rows_that_were_filtered_are_packed_in_their_own_order(tmp_path):
    arrays, rows = write_pictures(tmp_path)
    packed = pack_one(rows.iloc[[2, 0]], tmp_path, tmp_path / "pack", 30)
    assert packed.index["sample_id"].tolist() == ["s2", "s0"]
    expected = Image.fromarray(arrays[2]).resize((30, 30), Image.Resampling.BILINEAR)
    assert (packed.images[0] == np.asarray(expected)).all()


def test_a_volume_gives_one_image_a_slice(tmp_path):
    for k in range(2):
        volume = head()
        volume[5:9, 5:9, 2 + k] = 250
        save(tmp_path / f"v{k}.nii.gz", volume)
    rows = table(["v0.nii.gz", "v1.nii.gz"], sample_id=["v0", "v1"], fold=[1, 0])
    packed = pack_one(rows, tmp_path, tmp_path / "pack", 18, volumes=Volumes(slices=3))
    assert packed.images.shape == (6, 18, 18, 3)
    assert packed.index["sample_id"].tolist() == ["v0"] * 3 + ["v1"] * 3
    assert packed.index["slice"].tolist() == [2, 3, 4] * 2
    assert packed.index["fold"].tolist() == [1] * 3 + [0] * 3
    centre = packed.images[:, 9:11, 8:10, 0].mean((1, 2)) > 200
    assert centre.tolist() == [True, False, False, False, True, False]


def write_broken(folder):
    """One good image among broken ones: their names."""
    Image.new("RGB", (300, 300), RED).save(folder / "good.jpg")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404 not found</html>")
    return ["truncated.jpg", "empty.jpg", "text.jpg", "absent.jpg"]


def test_all_files_that_cannot_be_read_are_listed_and_nothing_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    broken = write_broken(tmp_path / "data")
    rows = table([broken[0], "good.jpg", *broken[1:]])
    folder = tmp_path / "images" / "toy" / "8-bilinear"
    with pytest.raises(ManifestError) as caught:
        pack_one(rows, tmp_path / "data", folder)
    message = str(caught.value)
    assert f"4 of 5 files in {tmp_path / 'data'} cannot be read" in message
    for name in broken:
        assert re.search(rf"{name} .{{4}}", message)  # the name and a reason
    assert "good.jpg" not in message
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_all_volumes_that_cannot_be_read_are_listed(tmp_path):
    nan = head()
    nan[1, 2, 3] = np.nan
    for name, volume in {"nan": nan, "thin": head()[..., :4], "good": head()}.items():
        save(tmp_path / f"{name}.nii.gz", volume)
    whole = (tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    names = ["nan", "good", "thin", "truncated"]
    rows = table([f"{name}.nii.gz" for name in names], sample_id=names)
    with pytest.raises(ManifestError, match="3 of 4 files") as caught:
        pack_one(rows, tmp_path, tmp_path / "pack", volumes=Volumes())
    for name, reason in {"nan": "NaN", "thin": "slices", "truncated": ""}.items():
        assert re.search(rf"- {name}\.nii\.gz cannot be read: .*{reason}", str(caught.value))
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (256, 256), (90, 120), (500, 900)])
def test_a_crop_is_what_torchvision_makes_of_resize_256_and_centre_crop_224(shape, interpolation):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    picture = Image.fromarray(array)
    kernel = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(256, kernel), transforms.CenterCrop(224)]
    expected = np.asarray(transforms.Compose(steps)(picture))
    assert np.array_equal(decoding.resize(picture, 224, interpolation, "crop"), expected)
    tensor = torch.from_numpy(array).permute(2, 0, 1)  # as a plain JPEG comes
    apart = np.abs(decoding.resize(tensor, 224, interpolation, "crop").astype(int) - expected)
    assert apart.max() <= 1


def test_a_pack_of_another_geometry_is_another_pack(tmp_path):
    _, rows = write_pictures(tmp_path)
    folder = tmp_path / "pack"
    made = {}
    for geometry in GEOMETRIES:
        how = {folder: packs.Drawn(16, "bilinear", geometry)}
        made[geometry] = packing.pack(rows, tmp_path, how)[folder]
        assert made[geometry].meta["geometry"] == geometry
        packs.load(folder, rows)
    assert not np.array_equal(made["squash"].images, made["crop"].images)
    assert made["squash"].meta["hash"] != made["crop"].meta["hash"]
    with pytest.raises(ValueError, match="Unknown geometry 'zoom'.*squash, crop"):
        packing.pack(rows, tmp_path, {folder: packs.Drawn(16, "bilinear", "zoom")})


def test_several_packs_are_made_from_one_decoding(tmp_path, monkeypatch):
    _, rows = write_pictures(tmp_path)
    kinds = itertools.product((8, 12), ("bilinear", "bicubic"))
    asked = {tmp_path / f"{size}-{name}": packs.Drawn(size, name) for size, name in kinds}
    opened, decode = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: opened.append(args) or decode(*args))
    made = packing.pack(rows, tmp_path, asked, workers=1)
    assert len(opened) == 3
    for folder, (size, interpolation, *_) in asked.items():
        alone = pack_one(rows, tmp_path, tmp_path / "alone" / folder.name, size, interpolation)
        assert (made[folder].images == alone.images).all()
    before = stamp(tmp_path / "8-bilinear")
    packing.pack(rows, tmp_path, asked | {tmp_path / "new": packs.Drawn(9, "bicubic")}, workers=1)
    assert stamp(tmp_path / "8-bilinear") == before


def test_packing_twice_gives_the_same_bytes(tmp_path):
    _, rows = write_pictures(tmp_path, 40)
    for name, workers in (("one", 1), ("two", 3)):
        pack_one(rows, tmp_path, tmp_path / name, workers=workers)
    for file in ("images.npy", "index.csv", "meta.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from medlib.data import decoding, manifest, packing, packs
decode, seen = decoding.decode, []
def decode_and_die(*args):
    seen.append(args)
    if len(seen) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args)
decoding.decode = decode_and_die
data = Path(sys.argv[1])
rows = manifest.read_rows(data / "rows.csv")
packing.pack(rows, data, {data / "pack": packs.Drawn(8, "bilinear")}, workers=2)
"""


def test_packing_that_is_killed_leaves_nothing_that_looks_complete(tmp_path):
    _, rows = write_pictures(tmp_path, 40)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "pack").exists()
    with pytest.raises(FileNotFoundError, match="01_prepare_data"):
        packs.load(tmp_path / "pack")
    assert len(pack_one(rows, tmp_path, tmp_path / "pack").images) == 40


def test_volumes_may_give_different_numbers_of_slices(tmp_path):
    for k in range(3):
        volume = head()
        volume[..., : 2 * k] = 0  # air
        save(tmp_path / f"v{k}.nii", volume)
    rows = table([f"v{k}.nii" for k in range(3)])
    whole = Volumes(slices=0, choice="all_head")
    packed = pack_one(rows, tmp_path, tmp_path / "pack", volumes=whole)
    slices = packed.index.groupby("sample_id")["slice"].agg(list).to_dict()
    assert slices == {"v0": [0, 1, 2, 3, 4, 5, 6], "v1": [2, 3, 4, 5, 6], "v2": [4, 5, 6]}
    assert packed.images.shape == (15, 8, 8, 3)
    assert isinstance(packed.images, np.memmap)


def test_a_pack_says_whether_masks_chose_its_slices(tmp_path):
    save(tmp_path / "v.nii", head())
    mask = np.zeros((14, 18, 7), np.uint8)
    mask[4:6, 4:6, 5] = 1
    save(tmp_path / "m.nii", mask)
    rows = hashed(table(["v.nii"], mask="m.nii"), tmp_path)
    chosen = Volumes(slices=1, choice="largest_tumour")
    packed = pack_one(rows, tmp_path, tmp_path / "pack", volumes=chosen)
    assert packed.meta["mask_at_test_time"] is True
    assert packed.meta["volumes"]["choice"] == "largest_tumour"
    assert packed.index["slice"].tolist() == [5]
    other = rows.assign(mask_sha256="1" * 64)
    with pytest.raises(ManifestError, match="packed from another manifest"):
        packs.load(tmp_path / "pack", other, chosen)
    plain = pack_one(rows, tmp_path, tmp_path / "plain", volumes=Volumes(slices=1))
    assert plain.meta["mask_at_test_time"] is False


# -------------------------------------------------------------------------------- thumbnails


def test_thumbnails_follow_the_rows_and_name_what_cannot_be_read(tmp_path):
    _, rows = write_pictures(tmp_path, 5)
    (tmp_path / "s1.png").write_bytes((tmp_path / "s1.png").read_bytes()[:200])
    (tmp_path / "s3.png").write_text("no picture")
    with packing.reading(rows, tmp_path, {}) as read:
        assert read.rows["sample_id"].tolist() == ["s0", "s2", "s4"]
    assert read.thumbnails.dtype == np.uint8 and len(read.thumbnails) == len(read.tiny) == 3
    assert read.broken["name"].tolist() == ["s1", "s3"] and read.unreadable.empty
    assert read.broken["reason"][1].startswith("s3.png cannot be read: its content is no image")
    assert read.tiny.all()  # 40 × 30 pixels
    for name, found in zip(read.rows["path"], read.thumbnails, strict=True):
        with Image.open(tmp_path / name) as picture:
            assert (found == draw_thumbnail(picture.convert("RGB"))).all()


@pytest.mark.parametrize("shape", [(30, 40), (120, 90), (400, 900)])
def test_thumbnails_are_the_same_whether_packs_are_drawn_or_not(tmp_path, shape):
    photograph(*shape).save(tmp_path / "x.jpg")
    rows, folders = table(["x.jpg"]), {tmp_path / "pack": packs.Drawn(14, "bilinear")}
    with (
        packing.reading(rows, tmp_path, {}) as alone,
        packing.reading(rows, tmp_path, folders) as r,
    ):
        assert (r.thumbnails == alone.thumbnails).all() and (r.tiny == alone.tiny).all()


def test_packs_hold_the_rows_that_stay_in_their_new_order(tmp_path):
    arrays, rows = write_pictures(tmp_path, 5)
    (tmp_path / "s3.png").write_text("no picture")
    folder = tmp_path / "packs" / "a"
    with packing.reading(rows, tmp_path, {folder: packs.Drawn(30, "bilinear")}) as read:
        kept = read.rows.iloc[[3, 0, 1]]
        packing.write(read, kept, {folder: packs.Drawn(30, "bilinear")})
    packed = packs.load(folder, kept)
    assert packed.index["sample_id"].tolist() == ["s4", "s0", "s1"]
    for k, found in zip((4, 0, 1), packed.images, strict=True):
        assert (found == pillows(tmp_path / f"s{k}.png", 30, "bilinear")).all()
    assert [path.name for path in folder.parent.iterdir()] == ["a"]  # nothing else is left


def test_each_file_is_read_once_and_decoded_once(tmp_path, monkeypatch):
    _, rows = write_pictures(tmp_path, 4)
    opened, decoded, read, decode = [], [], Path.read_bytes, decoding.decode
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read(path))
    monkeypatch.setattr(decoding, "decode", lambda *args: decoded.append(args) or decode(*args))
    monkeypatch.setattr(Image, "open", by_content_only(Image.open))
    folders = {
        tmp_path / "a": packs.Drawn(8, "bilinear"),
        tmp_path / "b": packs.Drawn(16, "bicubic"),
    }
    with packing.reading(rows, tmp_path, folders, workers=1) as reading:
        assert reading.broken["reason"].tolist() == []
        assert reading.rows["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert opened == rows["path"].tolist() and len(decoded) == 4


def by_content_only(opener):
    def opened(source, *args, **kwargs):
        assert not isinstance(source, str | Path), f"{source} is read again"
        return opener(source, *args, **kwargs)

    return opened


def test_a_file_that_differs_from_its_recorded_hash_is_refused_where_it_is_read(tmp_path):
    _, rows = write_pictures(tmp_path)
    rows = hashed(rows, tmp_path)
    (tmp_path / "s1.png").write_bytes((tmp_path / "s1.png").read_bytes() + b"!")
    with pytest.raises(
        ManifestError, match=r"1 of 3 files.*\n.*s1\.png \(s1\) has changed: sha256"
    ):
        pack_one(rows, tmp_path, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_volumes_thumbnail_is_the_middle_of_its_slices(tmp_path):
    volume = head()
    volume[5:9, 5:9, 3] = 300
    save(tmp_path / "v.nii", volume)
    with packing.reading(table(["v.nii"]), tmp_path, {}, settings=Volumes(slices=3)) as read:
        assert read.broken.empty and read.unreadable.empty
    middle = list(volumes.slices(tmp_path / "v.nii", Volumes(slices=1)).values())[0]
    assert (read.thumbnails[0] == draw_thumbnail(middle)).all()


def stamp(folder):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def test_a_pack_is_reused_while_nothing_has_changed(tmp_path):
    _, rows = write_pictures(tmp_path)
    folder = tmp_path / "pack"
    pack_one(rows, tmp_path, folder)
    before = stamp(folder)
    assert set(before) == {"images.npy", "digests.npy", "index.csv", "meta.json"}
    for name in ("s0.png", "s1.png", "s2.png"):
        (tmp_path / name).unlink()  # not even opened
    again = pack_one(rows.copy(), tmp_path, folder, workers=2)
    assert stamp(folder) == before
    assert len(again.images) == 3


@pytest.mark.parametrize("change", ["rows", "label", "sha256", "size", "interpolation"])
def test_a_pack_is_made_again_when_something_has_changed(tmp_path, change):
    _, rows = write_pictures(tmp_path)
    rows = hashed(rows, tmp_path)
    folder, settings = tmp_path / "pack", {}
    before = pack_one(rows, tmp_path, folder)
    hash_before, stamps = before.meta["hash"], stamp(folder)
    if change == "rows":
        rows = rows.iloc[:2]
    elif change == "label":
        rows = rows.assign(label="b")
    elif change == "sha256":
        Image.new("RGB", (4, 4), RED).save(tmp_path / "s1.png")
        rows = hashed(rows, tmp_path)
    else:
        settings = {"size": 10} if change == "size" else {"interpolation": "bicubic"}
    after = pack_one(rows, tmp_path, folder, **settings)
    assert after.meta["hash"] != hash_before
    assert stamp(folder)["images.npy"] != stamps["images.npy"]
    assert after.images.shape == (len(rows), settings.get("size", 8), settings.get("size", 8), 3)
    assert after.index["label"].tolist() == rows["label"].tolist()
    if change == "sha256":
        assert (after.images[1] == RED).all()


def test_a_pack_that_cannot_be_made_again_leaves_the_old_one_which_is_then_refused(tmp_path):
    _, rows = write_pictures(tmp_path)
    pack_one(rows, tmp_path, tmp_path / "pack")
    before = stamp(tmp_path / "pack")
    more = pd.concat([rows, table(["absent.png"])], ignore_index=True)
    with pytest.raises(ManifestError, match=r"absent\.png"):
        pack_one(more, tmp_path, tmp_path / "pack")
    assert stamp(tmp_path / "pack") == before
    with pytest.raises(ManifestError, match="01_prepare_data"):
        packs.load(tmp_path / "pack", more)


def test_a_pack_is_opened_without_reading_it_and_checked_against_its_rows(tmp_path):
    _, rows = write_pictures(tmp_path)
    packed = pack_one(rows, tmp_path, tmp_path / "pack")
    opened = packs.load(tmp_path / "pack", rows)
    assert isinstance(opened.images, np.memmap)
    assert (opened.images == packed.images).all()
    pd.testing.assert_frame_equal(opened.index, packed.index)


def test_a_damaged_image_is_found_when_it_is_read_and_not_before(tmp_path):
    _, rows = write_pictures(tmp_path)
    pack_one(rows, tmp_path, tmp_path / "pack")
    images = np.load(tmp_path / "pack" / "images.npy", mmap_mode="r+")
    whole = np.array(images)
    images[1, 4:] = 0
    images.flush()
    opened = packs.load(tmp_path / "pack", rows).images
    read = transfer.take(opened, np.array([2, 0, 2]))
    assert (read == whole[[2, 0, 2]]).all() and type(read) is np.ndarray
    assert (transfer.take(opened, np.array([0, 2])) == whole[[0, 2]]).all()  # none of them is new
    for _ in range(2):
        with pytest.raises(ValueError, match="Image 1 in .*images.npy is damaged. Remove its fol"):
            transfer.take(opened, np.array([0, 1]))
    out = np.empty((2, *whole.shape[1:]), np.uint8)
    with pytest.raises(ValueError, match="Image 1 in "):
        transfer.take(opened, np.array([0, 1]), out)
    assert opened.sound.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="Image 1 in "):  # what reads all images reads it, too
        damaged = packs.load(tmp_path / "pack", rows)
        embeddings.extract(damaged, "micro_resnet-random", tmp_path / "f")


@pytest.mark.parametrize("size", [14, 15, 28, 32])
def test_a_digest_tells_an_image_from_every_damaged_one(size):
    rng = np.random.default_rng(0)
    image = np.full((size, size, 3), 64, np.uint8)  # even, so that equal rows might cancel out
    image[:, size // 2 :] = rng.integers(0, 256, (size, size - size // 2, 3))
    damaged = np.stack([image] * 6)
    damaged[1, : size // 2] = 0
    damaged[2, size // 2 :, : size // 4] = 0  # of an even region alone
    damaged[3] = 0
    damaged[4, -1, -1, -1] ^= 1
    damaged[5] = image[:, ::-1]
    digests = packs.image_digests(damaged)
    assert len(set(digests.tolist())) == 6
    # By hand, with the plain sum of a row of bytes as little-endian words.
    width = next(n for n in (8, 4, 2, 1) if size * 3 % n == 0)
    words = [
        [int.from_bytes(row[i : i + width], "little") for i in range(0, size * 3, width)]
        for row in (line.tobytes() for line in image)
    ]
    sums = b"".join((sum(lane) % 2**64).to_bytes(8, "little") for lane in zip(*words, strict=True))
    assert digests[0] == zlib.crc32(sums)


@pytest.mark.filterwarnings("ignore:.*meta.json is empty")
@pytest.mark.parametrize("name", ["index.csv", "digests.npy", "images.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["edited", "empty"])
def test_a_damaged_pack_is_refused_with_what_to_do(tmp_path, name, damage):
    _, rows = write_pictures(tmp_path)
    pack_one(rows, tmp_path, tmp_path / "pack")
    file = tmp_path / "pack" / name
    if damage == "empty":
        file.write_bytes(b"")
    elif name == "images.npy":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.write_bytes(file.read_bytes().replace(b"a", b"b"))
    refused = FileNotFoundError if name == "meta.json" else ManifestError
    with pytest.raises(refused, match="[Rr]un notebook 01_prepare_data"):
        packs.load(tmp_path / "pack", rows)


@pytest.mark.parametrize("stale", ["label", "fewer", "slices"])
def test_a_stale_pack_is_refused_with_what_to_do(tmp_path, stale):
    _, rows = write_pictures(tmp_path)
    pack_one(rows, tmp_path, tmp_path / "pack")
    changed = {"label": rows.assign(label="b"), "fewer": rows.iloc[1:], "slices": rows}[stale]
    with pytest.raises(ManifestError, match=r"packed from another manifest.*01_prepare_data"):
        packs.load(tmp_path / "pack", changed, Volumes() if stale == "slices" else None)


def test_a_missing_pack_says_which_notebook_makes_it_and_how(tmp_path):
    folder = address.pack(tmp_path, "fundus", 224, "bicubic")
    with pytest.raises(FileNotFoundError) as caught:
        packs.load(folder)
    message = str(caught.value)
    for part in (str(folder), "01_prepare_data", "224 among its image_sizes", "bicubic"):
        assert part in message


READ_THROUGH = """
import os, sys
import numpy as np
from medlib.core.fast import transfer
packed = np.load(sys.argv[1], mmap_mode="r")
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, most = resident(), 0
order = np.random.default_rng(0).permutation(len(packed))
for start in range(0, len(packed), 64):
    rows = order[start : start + 64]
    found = transfer.take(packed, rows)
    assert found.shape == (len(rows), 64, 64, 3) and (found[:, 0, 0, 0] == rows % 251).all()
    most = max(most, resident() - before)
print(most)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_resident_memory_does_not_grow_while_a_pack_is_read_through(tmp_path):
    shape = (6000, 64, 64, 3)  # 74 MB
    packed = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape)
    packed[:, 0, 0, 0] = np.arange(6000) % 251
    packed.flush()
    command = [sys.executable, "-c", READ_THROUGH, str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10e6


UNUSED = {"decoding.py", "duplicates.py", "packing.py", "preparation.py", "volumes.py"}


@pytest.mark.parametrize("notebook", ["02_extract_features", "03_probe_features", "04_fine_tune"])
def test_editing_how_files_are_read_does_not_make_training_stale(repository, notebook):
    sources = {p.name for p in notebooks.sources(repository / "notebooks" / f"{notebook}.ipynb")}
    assert {"packs.py", "manifest.py", "cards.py"} <= sources
    assert not sources & UNUSED
    assert {path.name for path in (notebooks.MEDLIB / "data").iterdir()} >= UNUSED


@pytest.mark.parametrize("module", ["packs", "manifest", "cards", "layouts.reader"])
def test_manifests_packs_and_layouts_are_read_without_what_decodes(module):
    code = f"import sys, medlib.data.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", *(f"medlib.data.{name[:-3]}" for name in UNUSED)}


# ------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("folder", ["chest_xray", "ham10000", "ichallenge_pm"])
def test_real_images_are_packed_within_one_grey_level_of_pillow(
    real_data, tmp_path, folder, interpolation
):
    found = sorted(p for p in (real_data / folder).rglob("*") if p.suffix in (".jpg", ".jpeg"))
    assert found
    paths = [str(path.relative_to(real_data)) for path in found[:: max(1, len(found) // 40)]]
    for size in (64, 224):
        packed = pack_one(table(paths), real_data, tmp_path / f"{size}", size, interpolation)
        for path, picture in zip(paths, packed.images, strict=True):
            assert np.abs(picture - pillows(real_data / path, size, interpolation)).max() <= 1
