"""Images: whatever the file, an upright 8-bit RGB picture; packed once, and never stale."""

import os
import re

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlib import artifacts, images
from medlib.manifest import ManifestError

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def pixels(path):
    image = images.decode(path)
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


def pack(rows, data, folder, size=8, **settings):
    settings = {"interpolation": "bilinear", "workers": 1} | settings
    return images.pack(rows, data, folder, size=size, **settings)


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
        images.decode(tmp_path / "x.tif")


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


# ----------------------------------------------------------------------------------- volumes


def head():
    """A RAS volume (x to the patient's right, y to the front, z up), marked at known places.

    The air is 0 and the head 100; 200 stands at the patient's right in front, in all slices, and
    150 at the left behind in the lowest slice.
    """
    volume = np.zeros((14, 18, 7), np.float32)
    volume[2:12, 2:16] = 100
    volume[9:12, 12:16] = 200
    volume[2:5, 2:6, 0] = 150
    return volume


def ras(volume):
    return volume, np.diag([1.0, 1, 1, 1])


def lps(volume):
    return volume[::-1, ::-1], np.diag([-1.0, -1, 1, 1])


def upside_down(volume):
    return volume[:, :, ::-1], np.diag([1.0, 1, -2.5, 1])


def coronal(volume):
    """Stored as (x, z, y), with oblique millimetres and an origin elsewhere."""
    affine = np.array([[0.9, 0, 0.05, -90], [0, 0.05, 0.9, 40], [0.05, 3, 0, 7], [0, 0, 0, 1.0]])
    return volume.transpose(0, 2, 1), affine


def sagittal(volume):
    """Stored as (y, z, x), from the front to the back."""
    affine = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    return volume.transpose(1, 2, 0)[::-1], affine


def save(path, volume, affine=None, **header):
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def grey_slices(path, n):
    drawn = images.volume_slices(path, n)
    assert all(image.mode == "RGB" for image in drawn.values())
    return {z: np.asarray(image)[..., 0].astype(int) for z, image in drawn.items()}


@pytest.mark.parametrize("stored", [ras, lps, upside_down, coronal, sagittal])
def test_a_slice_has_the_front_up_and_the_patients_right_on_the_left(tmp_path, stored):
    drawn = grey_slices(save(tmp_path / "x.nii.gz", *stored(head())), 7)
    assert list(drawn) == list(range(7))
    lowest, middle = drawn[0], drawn[3]
    assert middle.shape == (18, 14)  # rows are y, columns are x
    expected = np.zeros((18, 14), int)
    expected[2:16, 2:12] = 0  # 100 is the low end of the window, within the head
    expected[2:6, 2:5] = 255  # in front and right: above and on the left
    assert (middle == expected).all()
    assert (lowest[12:16, 9:12] == 128).all()  # 150: behind and left, below and on the right
    assert all((drawn[z] == middle).all() for z in range(1, 7))


@pytest.mark.parametrize(
    "n, expected", [(1, [3]), (2, [2, 3]), (3, [2, 3, 4]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_the_central_slices_are_taken(tmp_path, n, expected):
    path = save(tmp_path / "x.nii.gz", *upside_down(head()))
    assert list(images.volume_slices(path, n)) == expected


def test_a_volume_is_windowed_as_a_whole_over_the_head(tmp_path):
    rng = np.random.default_rng(0)
    volume = np.full((20, 24, 3), -1000.0, np.float32)  # air as in CT
    volume[3:17, 3:21] = rng.uniform(-200, 800, (14, 18, 3))
    volume[3:17, 3:21, 2] -= 300  # a darker slice stays darker
    inside = volume[volume > -900]
    low, high = np.percentile(inside, (0.5, 99.5))
    expected = np.clip((volume - low) / (high - low), 0, 1) * 255
    drawn = grey_slices(save(tmp_path / "x.nii.gz", volume), 3)
    for z in range(3):
        assert np.abs(drawn[z] - expected[::-1, ::-1, z].T).max() <= 0.51
    assert drawn[0].max() > drawn[2].max()


def test_a_grey_background_does_not_take_contrast_from_the_head(tmp_path):
    black = np.zeros((30, 30, 1), np.float32)
    black[5:25, 5:25, 0] = np.linspace(300, 700, 400).reshape(20, 20)
    grey = np.where(black == 0, 200, black)
    a, b = (
        grey_slices(save(tmp_path / f"{k}.nii.gz", volume), 1)[0]
        for k, volume in enumerate((black, grey))
    )
    assert (a == b).all()  # both backgrounds are darker than the head: black
    assert a[0, 0] == 0
    assert (a.min(), a.max()) == (0, 255)


def test_scaled_integers_give_the_picture_of_their_values(tmp_path):
    stored = np.zeros((14, 18, 3), np.int16)
    stored[2:12, 2:16] = np.arange(420).reshape(10, 14, 3) + 100
    values = stored * 2.0 - 1024
    a = grey_slices(save(tmp_path / "scaled.nii", values, slope=2, inter=-1024), 3)
    assert nibabel.load(tmp_path / "scaled.nii").dataobj.slope == 2
    b = grey_slices(save(tmp_path / "plain.nii", values), 3)
    assert all((a[z] == b[z]).all() for z in range(3))
    assert a[1].max() > 250


def bad_volumes():
    nan, infinite = head(), head()
    nan[1, 2, 3], infinite[1, 2, 3] = np.nan, np.inf
    return {
        "four": (head()[..., None].repeat(2, 3), r"3-D .* \(14, 18, 7, 2\)"),
        "nan": (nan, "NaN or infinite"),
        "infinite": (infinite, "NaN or infinite"),
        "constant": (np.full((9, 9, 9), 7, np.float32), r"constant \(7\)"),
        "thin": (head()[..., :4], "4 axial slices, 5 were asked for"),
    }


@pytest.mark.parametrize("name", bad_volumes())
def test_a_volume_that_cannot_be_judged_is_refused_with_the_reason(tmp_path, name):
    volume, reason = bad_volumes()[name]
    with pytest.raises(ValueError, match=reason):
        images.volume_slices(save(tmp_path / "x.nii.gz", volume), 5)


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
    packed = pack(rows, tmp_path, tmp_path / "pack", size, interpolation=interpolation)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    assert packed.images.dtype == np.uint8
    assert packed.images.shape == (3, size, size, 3)
    for array, found in zip(arrays, packed.images, strict=True):
        expected = Image.fromarray(array).resize((size, size), filters[interpolation])
        assert (found == np.asarray(expected)).all()
    meta = {name: packed.meta[name] for name in ("size", "interpolation", "slices")}
    assert meta == {"size": size, "interpolation": interpolation, "slices": None}


def test_an_unknown_interpolation_is_refused(tmp_path):
    _, rows = write_pictures(tmp_path)
    with pytest.raises(ValueError, match="'nearest'; choose one of bilinear, bicubic"):
        pack(rows, tmp_path, tmp_path / "pack", interpolation="nearest")


@pytest.mark.parametrize("workers", [1, 3])
def test_hundreds_of_images_stay_in_the_order_of_their_rows(tmp_path, workers):
    order = np.random.default_rng(2).permutation(300)
    for k in order:
        Image.new("RGB", (2, 2), (k % 256, k // 256, 7)).save(tmp_path / f"s{k}.bmp")
    rows = table([f"s{k}.bmp" for k in order])
    packed = pack(rows, tmp_path, tmp_path / "pack", 2, workers=workers)
    assert (packed.images[:, 0, 0, 0] + 256 * packed.images[:, 1, 1, 1].astype(int) == order).all()
    assert packed.index["sample_id"].tolist() == [f"s{k}" for k in order]


def test_the_index_has_a_row_an_image_and_keeps_ids_and_labels_as_text(tmp_path):
    _, rows = write_pictures(tmp_path)
    rows = rows.assign(
        sample_id=["007", "1e3", "NaN"], patient_id=["01", "1", "NA"], label=["NA", "null", "1"],
        fold=[2, 0, 1], sha256="f" * 64,
    )  # fmt: skip
    packed = pack(rows, tmp_path, tmp_path / "pack")
    assert packed.index.columns.tolist() == ["sample_id", "patient_id", "label", "fold", "slice"]
    assert packed.index.to_numpy().tolist() == [
        ["007", "01", "NA", 2, 0], ["1e3", "1", "null", 0, 0], ["NaN", "NA", "1", 1, 0],
    ]  # fmt: skip
    by_split = rows.drop(columns="fold").assign(split=["train", "val", "test"])
    index = pack(by_split, tmp_path, tmp_path / "other").index
    assert index["split"].tolist() == ["train", "val", "test"]


def test_rows_that_were_filtered_are_packed_in_their_own_order(tmp_path):
    arrays, rows = write_pictures(tmp_path)
    packed = pack(rows.iloc[[2, 0]], tmp_path, tmp_path / "pack", 30)
    assert packed.index["sample_id"].tolist() == ["s2", "s0"]
    expected = Image.fromarray(arrays[2]).resize((30, 30), Image.Resampling.BILINEAR)
    assert (packed.images[0] == np.asarray(expected)).all()


def test_a_volume_gives_one_image_a_slice(tmp_path):
    for k in range(2):
        volume = head()
        volume[5:9, 5:9, 2 + k] = 200
        save(tmp_path / f"v{k}.nii.gz", volume)
    rows = table(["v0.nii.gz", "v1.nii.gz"], sample_id=["v0", "v1"], fold=[1, 0])
    packed = pack(rows, tmp_path, tmp_path / "pack", 18, slices=3)
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
        pack(rows, tmp_path / "data", folder)
    message = str(caught.value)
    assert f"4 of 5 files in {tmp_path / 'data'} cannot be read" in message
    for name in broken:
        assert re.search(rf"{name}: .{{4}}", message)  # the name and a reason
    assert "good.jpg" not in message
    assert list(folder.parent.iterdir()) == []


def test_all_volumes_that_cannot_be_read_are_listed(tmp_path):
    bad = bad_volumes()
    for name, (volume, _) in bad.items():
        save(tmp_path / f"{name}.nii.gz", volume)
    whole = save(tmp_path / "good.nii.gz", head()).read_bytes()
    (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    names = [*bad, "good", "truncated"]
    rows = table([f"{name}.nii.gz" for name in names], sample_id=names)
    with pytest.raises(ManifestError, match="6 of 7 files") as caught:
        pack(rows, tmp_path, tmp_path / "pack", slices=5)
    for name, (_, reason) in bad.items():
        assert re.search(rf"- {name}\.nii\.gz: .*{reason}", str(caught.value))
    assert "truncated.nii.gz: " in str(caught.value)
    assert not (tmp_path / "pack").exists()


def stamp(folder):
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def test_a_pack_is_reused_while_nothing_has_changed(tmp_path):
    _, rows = write_pictures(tmp_path)
    folder = tmp_path / "pack"
    pack(rows, tmp_path, folder)
    before = stamp(folder)
    assert set(before) == {"images.npy", "index.csv", "meta.json"}
    for name in ("s0.png", "s1.png", "s2.png"):
        (tmp_path / name).unlink()  # not even opened
    again = pack(rows.copy(), tmp_path, folder, workers=2)
    assert stamp(folder) == before
    assert len(again.images) == 3


@pytest.mark.parametrize("change", ["rows", "label", "sha256", "size", "interpolation"])
def test_a_pack_is_made_again_when_something_has_changed(tmp_path, change):
    _, rows = write_pictures(tmp_path)
    rows = rows.assign(sha256="0" * 64)
    folder, settings = tmp_path / "pack", {}
    before = pack(rows, tmp_path, folder)
    hash_before, stamps = before.meta["hash"], stamp(folder)
    if change == "rows":
        rows = rows.iloc[:2]
    elif change == "label":
        rows = rows.assign(label="b")
    elif change == "sha256":
        Image.new("RGB", (4, 4), RED).save(tmp_path / "s1.png")
        rows = rows.assign(sha256="1" * 64)
    else:
        settings = {"size": 10} if change == "size" else {"interpolation": "bicubic"}
    after = pack(rows, tmp_path, folder, **settings)
    assert after.meta["hash"] != hash_before
    assert stamp(folder)["images.npy"] != stamps["images.npy"]
    assert after.images.shape == (len(rows), settings.get("size", 8), settings.get("size", 8), 3)
    assert after.index["label"].tolist() == rows["label"].tolist()
    if change == "sha256":
        assert (after.images[1] == RED).all()


def test_a_pack_that_cannot_be_made_again_leaves_the_old_one_which_is_then_refused(tmp_path):
    _, rows = write_pictures(tmp_path)
    pack(rows, tmp_path, tmp_path / "pack")
    before = stamp(tmp_path / "pack")
    more = pd.concat([rows, table(["absent.png"])], ignore_index=True)
    with pytest.raises(ManifestError, match=r"absent\.png"):
        pack(more, tmp_path, tmp_path / "pack")
    assert stamp(tmp_path / "pack") == before
    with pytest.raises(ManifestError, match="01_prepare_data"):
        images.load(tmp_path / "pack", more)


def test_a_pack_is_opened_without_reading_it_and_checked_against_its_rows(tmp_path):
    _, rows = write_pictures(tmp_path)
    packed = pack(rows, tmp_path, tmp_path / "pack")
    opened = images.load(tmp_path / "pack", rows)
    assert isinstance(opened.images, np.memmap)
    assert (opened.images == packed.images).all()
    pd.testing.assert_frame_equal(opened.index, packed.index)


@pytest.mark.parametrize("stale", ["label", "fewer", "slices"])
def test_a_stale_pack_is_refused_with_what_to_do(tmp_path, stale):
    _, rows = write_pictures(tmp_path)
    pack(rows, tmp_path, tmp_path / "pack")
    changed = {"label": rows.assign(label="b"), "fewer": rows.iloc[1:], "slices": rows}[stale]
    with pytest.raises(ManifestError, match=r"packed from another manifest.*01_prepare_data"):
        images.load(tmp_path / "pack", changed, 5 if stale == "slices" else None)


def test_a_missing_pack_says_which_notebook_makes_it_and_how(tmp_path):
    folder = artifacts.images_folder(tmp_path, "fundus", 224, "bicubic")
    with pytest.raises(FileNotFoundError) as caught:
        images.load(folder)
    message = str(caught.value)
    for part in (str(folder), "01_prepare_data", "224 among its image_sizes", "bicubic"):
        assert part in message


# ------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
def test_real_images_are_packed_as_pillow_reads_them(real_data, tmp_path):
    paths = ["ichallenge_pm/PALM-Training400/H0001.jpg", "ichallenge_pm/PALM-Training400/P0001.jpg"]
    packed = pack(table(paths), real_data, tmp_path / "pack", 64)
    for path, found in zip(paths, packed.images, strict=True):
        image = Image.open(real_data / path).convert("RGB")
        assert (found == np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))).all()


@pytest.mark.real_data
def test_real_gliomas_have_five_slices_with_contrast(real_data):
    patients = sorted(path for path in (real_data / "tcga_lgg").iterdir() if path.is_dir())[::11]
    assert len(patients) == 10
    for patient in patients:
        drawn = grey_slices(patient / f"{patient.name}_flair.nii.gz", 5)
        assert len(drawn) == 5
        assert all(grey.std() > 20 for grey in drawn.values())
