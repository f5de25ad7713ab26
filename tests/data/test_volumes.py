"""Volumes: upright slices where they were asked for, or a refusal that says what to do."""

import gzip

import nibabel
import numpy as np
import pytest
from PIL import Image

from medlib.data import greys, volumes
from medlib.data.cards import Volumes

LARGEST = Volumes(slices=3, choice="largest_tumour")


def head():
    """A RAS volume (x to the patient's right, y to the front, z up), marked at known places.

    The air is 0 and the head 100. In all slices there is 200 at the front of the patient's right,
    and in the lowest slice 150 at the back of the left.
    """
    volume = np.zeros((14, 18, 7), np.float32)
    volume[2:12, 2:16] = 100
    volume[9:12, 12:16] = 200
    volume[2:5, 2:6, 0] = 150
    return volume


def tumour():
    """A RAS mask of :func:`head`: 6 voxels in slice 4, 2 in slice 5, BraTS's labels 1, 2 and 4."""
    mask = np.zeros((14, 18, 7), np.uint8)
    mask[4:6, 10:13, 4] = [[1, 2, 4], [4, 2, 1]]
    mask[6, 12:14, 5] = 4
    return mask


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


def stored_as(codes, volume, affine=None):
    """A RAS volume stored along other axes, as "LPS", at the same place in the patient."""
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    ornt = nibabel.orientations
    image = image.as_reoriented(
        ornt.ornt_transform(ornt.axcodes2ornt("RAS"), ornt.axcodes2ornt(codes))
    )
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    return np.asarray(image.dataobj), image.affine


def save(path, volume, affine=None, **header):
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def drawn(path, settings=None, **files):
    """Slices as integer arrays of rows × columns × RGB, by number."""
    found = volumes.slices(path, settings or Volumes(), **files)
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in found.values())
    return {z: np.asarray(image).astype(int) for z, image in found.items()}


def grey(path, settings=None, **files):
    """The slices as rows × columns, if all three channels are equal."""
    found = drawn(path, settings, **files)
    assert all((rgb == rgb[..., :1]).all() for rgb in found.values())
    return {z: rgb[..., 0] for z, rgb in found.items()}


def upright(values):
    """X×Y in RAS as it is drawn: anterior up, the patient's right on the left."""
    return values[::-1, ::-1].T


def reason(path, settings=None, **files):
    """The message of the ValueError that a volume is refused with."""
    with pytest.raises(ValueError) as caught:
        volumes.slices(path, settings or Volumes(), **files)
    return str(caught.value)


# ------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("stored", [ras, lps, upside_down, coronal, sagittal])
def test_a_slice_has_the_front_up_and_the_patients_right_on_the_left(tmp_path, stored):
    found = grey(save(tmp_path / "x.nii.gz", *stored(head())), Volumes(slices=7))
    assert list(found) == list(range(7))
    lowest, middle = found[0], found[3]
    assert middle.shape == (18, 14)  # rows are y, columns are x
    expected = np.zeros((18, 14), int)
    expected[2:16, 2:12] = 0  # 100 is the low end of the window, within the head
    expected[2:6, 2:5] = 255  # in front and right: above and on the left
    assert (middle == expected).all()
    assert (lowest[12:16, 9:12] == 128).all()  # 150: behind and left, below and on the right
    assert all((found[z] == middle).all() for z in range(1, 7))


def test_a_fourth_axis_of_length_1_is_left_away(tmp_path):
    flat = grey(save(tmp_path / "3.nii.gz", *lps(head())))
    for axes in (1, 2):
        volume, affine = lps(head())
        path = save(tmp_path / "4.nii.gz", volume.reshape(*volume.shape, *[1] * axes), affine)
        assert all((flat[z] == found).all() for z, found in grey(path).items())


def test_the_same_values_give_the_same_picture_whatever_their_number_type(tmp_path):
    expected = grey(save(tmp_path / "x.nii", head()))
    for kind in (np.uint8, np.int16, np.float64):
        found = grey(save(tmp_path / f"{kind.__name__}.nii", head().astype(kind)))
        assert all((expected[z] == found[z]).all() for z in expected)


# -------------------------------------------------------------------------- windows and head


def test_a_window_lies_between_the_percentiles_that_were_asked_for():
    values = np.arange(101, dtype=np.float32)  # its percentiles are its values
    found = greys.window(values, percentiles=(20, 70))
    assert found.dtype == np.uint8
    assert (found[:21] == 0).all()
    assert (found[70:] == 255).all()
    assert (found[21], found[45], found[60]) == (5, 128, 204)  # 5.1, 127.5 (to even), 204


def test_a_window_of_a_part_is_laid_over_everything():
    values = np.array([-50, 0, 10, 20, 500], np.float32)
    inside = np.array([False, True, True, True, False])
    assert greys.window(values, inside, (0, 100)).tolist() == [0, 0, 128, 255, 255]


def test_a_map_of_tiny_values_has_its_contrast_and_a_constant_one_is_black():
    tiny = np.array([0, 1, 2], np.float32) * 1e-9  # a diffusivity in m²/s
    assert greys.window(tiny, percentiles=(0, 100)).tolist() == [0, 128, 255]
    assert greys.window(np.full(5, 7, np.float32)).tolist() == [0] * 5
    with pytest.raises(ValueError, match="NaN"):
        greys.window(np.array([1, np.nan]))


def test_a_volume_is_windowed_as_a_whole_over_the_head(tmp_path):
    rng = np.random.default_rng(0)
    volume = np.full((20, 24, 3), -1000.0, np.float32)  # air as in CT
    volume[3:17, 3:21] = rng.uniform(-200, 800, (14, 18, 3))
    volume[3:17, 3:21, 2] -= 300  # a darker slice stays darker
    inside = volume[volume > -900]
    path = save(tmp_path / "x.nii.gz", volume)
    for ends in ((0.5, 99.5), (5, 80)):
        low, high = np.percentile(inside, ends)
        expected = np.clip((volume - low) / (high - low), 0, 1) * 255
        found = grey(path, Volumes(slices=3, percentiles=ends))
        for z in range(3):
            assert np.abs(found[z] - upright(expected[..., z])).max() <= 0.51
        assert found[0].mean() > found[2].mean()


def test_a_grey_background_does_not_take_contrast_from_the_head(tmp_path):
    black = np.zeros((30, 30, 1), np.float32)
    black[5:25, 5:25, 0] = np.linspace(300, 700, 400).reshape(20, 20)
    with_grey = np.where(black == 0, 200, black)
    a, b = (
        grey(save(tmp_path / f"{k}.nii.gz", volume), Volumes(slices=1))[0]
        for k, volume in enumerate((black, with_grey))
    )
    assert (a == b).all()  # both backgrounds are darker than the head: black
    assert a[0, 0] == 0
    assert (a.min(), a.max()) == (0, 255)


def ramp():
    """Air of 0 around a head of 400 values from 100 to 499, and where that is."""
    volume = np.zeros((30, 30, 1), np.float32)
    volume[5:25, 5:25, 0] = np.arange(100, 500).reshape(20, 20)
    return volume, volume > 0


def test_a_head_in_a_background_brighter_than_itself_is_found(tmp_path):
    volume, inside = ramp()
    found = grey(save(tmp_path / "x.nii.gz", np.where(inside, volume, 2000)), Volumes(slices=1))[0]
    expected = np.clip((volume[..., 0] - 101.995) / (497.005 - 101.995), 0, 1) * 255
    expected = np.where(inside[..., 0], expected, 255)  # 0.5 % and 99.5 % of 100 … 499
    assert np.abs(found - upright(expected)).max() <= 0.51


def test_negative_values_within_the_head_are_shown_below_the_others(tmp_path):
    volume, inside = ramp()  # the same head, from -200 to 199: some of it as the air
    found = grey(save(tmp_path / "x.nii.gz", np.where(inside, volume - 300, 0)), Volumes(slices=1))
    picture = upright(found[0])  # its own inverse, except for the order of the axes
    assert (picture[5, 5], picture[24, 24]) == (0, 255)
    assert 120 <= picture[0, 0] <= 135  # the air lies in the middle of the window
    assert (np.diff(picture[5:25, 5:25].ravel()) >= 0).all()


@pytest.mark.parametrize("hot", [1e4, 1e7, -1e7])
def test_one_hot_voxel_changes_the_other_pixels_by_no_more_than_a_rank(tmp_path, hot):
    volume, _ = ramp()
    calm = grey(save(tmp_path / "calm.nii.gz", volume), Volumes(slices=1))[0]
    volume[15, 15, 0] = hot
    found = grey(save(tmp_path / "hot.nii.gz", volume), Volumes(slices=1))[0]
    apart = np.abs(upright(calm) - upright(found))
    assert upright(found)[15, 15] == (255 if hot > 0 else 0)
    apart[15, 15] = 0
    assert apart.max() <= 1  # both percentiles move by one of 400 places at most


def test_a_few_voxels_in_exact_air_are_a_head(tmp_path):
    volume = np.zeros((30, 30, 3), np.float32)  # the 99th percentile of the contrast is 0
    volume[15, 14:17, 1] = (10, 20, 30)
    found = grey(save(tmp_path / "x.nii.gz", volume), Volumes(slices=1, percentiles=(0, 100)))[1]
    assert upright(found)[15, 14:17].tolist() == [0, 128, 255]


def test_scaled_integers_give_the_picture_of_their_values(tmp_path):
    stored = np.zeros((14, 18, 3), np.int16)
    stored[2:12, 2:16] = np.arange(420).reshape(10, 14, 3) + 100
    values = stored * 2.0 - 1024
    scaled = save(tmp_path / "scaled.nii", values, slope=2, inter=-1024)
    a = grey(scaled, Volumes(slices=3))
    assert nibabel.load(scaled).dataobj.slope == 2
    b = grey(save(tmp_path / "plain.nii", values), Volumes(slices=3))
    assert all((a[z] == b[z]).all() for z in range(3))
    assert a[1].max() > 250


# ---------------------------------------------------------------------------- which slices


@pytest.mark.parametrize(
    "n, expected", [(1, [3]), (2, [2, 3]), (3, [2, 3, 4]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_the_central_slices_are_taken(tmp_path, n, expected):
    path = save(tmp_path / "x.nii.gz", *upside_down(head()))
    assert list(drawn(path, Volumes(slices=n))) == expected


def largest(tmp_path, areas, n):
    """The slices around the largest of a tumour with these areas in its seven slices."""
    mask = np.zeros((14, 18, 7), np.uint8)
    for z, area in enumerate(areas):
        mask[3, 3 : 3 + area, z] = 4
    files = {"mask": save(tmp_path / "mask.nii.gz", mask)}
    path = save(tmp_path / "x.nii.gz", head())
    return list(drawn(path, Volumes(slices=n, choice="largest_tumour"), **files))


@pytest.mark.parametrize(
    "areas, n, expected",
    [
        ([0, 0, 1, 2, 5, 1, 0], 1, [4]),
        ([0, 0, 1, 2, 5, 1, 0], 3, [3, 4, 5]),
        ([0, 0, 1, 2, 5, 1, 0], 2, [3, 4]),
        ([0, 0, 1, 2, 5, 1, 0], 7, [0, 1, 2, 3, 4, 5, 6]),
        ([0, 4, 1, 0, 4, 4, 0], 1, [1]),  # the first of those as large
        ([9, 1, 1, 1, 1, 1, 1], 3, [0, 1, 2]),  # at the lower end
        ([0, 0, 0, 0, 0, 2, 3], 4, [3, 4, 5, 6]),  # at the upper end
    ],
)
def test_slices_lie_around_the_largest_tumour_and_within_the_volume(tmp_path, areas, n, expected):
    assert largest(tmp_path, areas, n) == expected


@pytest.mark.parametrize("codes", ["RAS", "LPS", "RIA", "ASL", "PIR", "LAI"])
@pytest.mark.parametrize("of_volume", ["RAS", "LPI"])
def test_a_mask_may_be_stored_along_other_axes_than_its_volume(tmp_path, codes, of_volume):
    affine = np.array([[0.9, 0, 0, -80], [0, 1.1, 0, 40], [0, 0, 3.0, -7], [0, 0, 0, 1]])
    path = save(tmp_path / "x.nii.gz", *stored_as(of_volume, head(), affine))
    mask = save(tmp_path / "seg.nii.gz", *stored_as(codes, tumour(), affine))
    found = grey(path, Volumes(slices=2, choice="largest_tumour", crop_margin=0), mask=mask)
    assert list(found) == [3, 4]
    # The box is x 4 … 6 and y 10 … 13 of RAS: in slice 4 a head of 100, with none of the 200.
    assert [picture.shape for picture in found.values()] == [(4, 3), (4, 3)]


def head_of_areas(areas):
    """A volume whose head (100 to 199) covers the given number of voxels in each slice."""
    volume = np.zeros((14, 14, len(areas)), np.float32)
    for z, area in enumerate(areas):
        row = np.zeros(100)
        row[:area] = 100 + np.arange(area)
        volume[2:12, 2:12, z] = row.reshape(10, 10)
    return volume


@pytest.mark.parametrize(
    "n, expected",
    [
        (0, [1, 2, 3, 4, 5, 6]),  # 25 of 100 is a quarter, 24 is not
        (6, [1, 2, 3, 4, 5, 6]),
        (2, [1, 6]),
        (1, [3]),
        (3, [1, 3, 6]),  # places 0, 2.5 (to even) and 5 of six
        (4, [1, 3, 4, 6]),  # places 0, 1.67, 3.33 and 5
    ],
)
def test_the_slices_of_the_whole_head_are_evenly_spread(tmp_path, n, expected):
    path = save(tmp_path / "x.nii.gz", head_of_areas([10, 25, 50, 100, 90, 70, 40, 24, 0]))
    assert list(drawn(path, Volumes(slices=n, choice="all_head"))) == expected


def test_a_head_of_fewer_slices_than_asked_for_is_refused(tmp_path):
    path = save(tmp_path / "x.nii.gz", head_of_areas([10, 25, 50, 100, 90, 70, 40, 24, 0]))
    message = reason(path, Volumes(slices=7, choice="all_head"))
    assert "its head has 6 axial slices, 7 were asked for" in message
    assert "lower `slices`" in message


def stairs():
    """A volume of which slice z of seven has the grey value 10 + 40 z all over the head."""
    volume = np.zeros((14, 18, 7), np.float32)
    volume[2:12, 2:16] = 10 + 40 * np.arange(7)
    return volume


def test_with_neighbours_red_and_blue_are_the_slices_below_and_above(tmp_path):
    path = save(tmp_path / "x.nii.gz", *stored_as("LPI", stairs()))
    found = drawn(path, Volumes(slices=7, neighbours=True, percentiles=(0, 100)))
    # 10 … 250 over 0 … 255: a step is 42.5, and rounded to even 0, 42, 85, 128, 170, 212, 255.
    levels = [0, 42, 85, 128, 170, 212, 255]
    below, above = [levels[0], *levels[:-1]], [*levels[1:], levels[-1]]  # ends are repeated
    for z, picture in found.items():
        assert picture[9, 7].tolist() == [below[z], levels[z], above[z]]
        assert picture[0, 0].tolist() == [0, 0, 0]


def test_a_volume_of_one_slice_is_its_own_neighbour(tmp_path):
    path = save(tmp_path / "x.nii.gz", ramp()[0])
    plain, coloured = (drawn(path, Volumes(slices=1, neighbours=n))[0] for n in (False, True))
    assert (plain == coloured).all()


# ------------------------------------------------------------------------------------ crops


def checkered():
    """A head in which a voxel's value tells x and y: 10 (x + 14 y) + 5; air 0; 7 slices."""
    x, y = np.mgrid[0:14, 0:18]
    volume = np.where((x > 1) & (x < 12) & (y > 1) & (y < 16), 10.0 * (x + 14 * y) + 5, 0)
    return np.repeat(volume[..., None], 7, 2).astype(np.float32)


@pytest.mark.parametrize(
    "margin, x, y",
    [
        (0, slice(4, 7), slice(10, 14)),
        (1, slice(2, 9), slice(9, 15)),  # 2 voxels of 0.5 mm in x, 1 of 2 mm in y
        (2.1, slice(0, 12), slice(8, 16)),  # 4.2 and 1.05 voxels: at least the margin, 5 and 2
        (6, slice(0, 14), slice(7, 17)),  # as far as the volume in x
        (1000, slice(0, 14), slice(0, 18)),
        (float("inf"), slice(0, 14), slice(0, 18)),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "ASL", "LPI"])
def test_a_crop_is_the_tumours_box_and_its_margin_in_millimetres(tmp_path, margin, x, y, codes):
    affine = np.diag([0.5, 2, 7, 1])
    path = save(tmp_path / "x.nii.gz", *stored_as(codes, checkered(), affine))
    mask = save(tmp_path / "seg.nii.gz", *stored_as("LPS", tumour(), affine))
    whole = grey(path, Volumes(slices=3))[3]
    found = grey(path, Volumes(slices=3, crop_margin=margin), mask=mask)
    assert list(found) == [2, 3, 4]
    for picture in found.values():  # one crop for all slices, and one window: the volume's
        assert (upright(picture) == upright(whole)[x, y]).all()


def test_a_voxel_size_that_a_header_rounds_does_not_widen_the_margin(tmp_path):
    affine = np.diag([0.9, 0.9, 1, 1])  # 0.89999998 in the header's float32
    path = save(tmp_path / "x.nii.gz", checkered(), affine)
    mask = save(tmp_path / "seg.nii.gz", tumour(), affine)
    found = grey(path, Volumes(slices=1, crop_margin=1.8), mask=mask)
    assert found[3].shape == (4 + 2 * 2, 3 + 2 * 2)


# ------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("missing", [None, ""])
@pytest.mark.parametrize(
    "settings, needs",
    [
        (LARGEST, "choice largest_tumour needs"),
        (Volumes(crop_margin=5), "crop_margin needs"),
        (Volumes(choice="all_head", crop_margin=0), "crop_margin needs"),
    ],
)
def test_a_mask_that_is_needed_and_not_there_is_asked_for(tmp_path, missing, settings, needs):
    message = reason(save(tmp_path / "x.nii.gz", head()), settings, mask=missing)
    assert f"it has no mask, which {needs}" in message
    assert "`choice: central`" in message


def test_a_mask_that_is_not_needed_is_not_read(tmp_path):
    path = save(tmp_path / "x.nii.gz", head())
    assert list(drawn(path, Volumes(slices=1), mask=tmp_path / "absent.nii.gz")) == [3]


def bad_masks():
    nan, below = tumour().astype(np.float32), tumour().astype(np.float32)
    nan[0, 0, 0] = np.nan
    below = -below
    return {
        "empty": (np.zeros((14, 18, 7), np.uint8), "is empty, no voxel is above 0"),
        "below": (below, "is empty, no voxel is above 0"),
        "nan": (nan, "holds NaN or infinite values"),
        "four": (np.stack([tumour()] * 2, -1), r"not one 3-D volume"),
    }


@pytest.mark.parametrize("name", bad_masks())
def test_a_mask_that_is_no_mask_is_refused_by_its_name(tmp_path, name):
    mask, why = bad_masks()[name]
    mask = save(tmp_path / "p1_seg.nii.gz", mask)
    message = reason(save(tmp_path / "x.nii.gz", head()), LARGEST, mask=mask)
    assert "its mask p1_seg.nii.gz " in message
    assert why in message


def test_a_mask_that_is_not_there_is_a_missing_file(tmp_path):
    path = save(tmp_path / "x.nii.gz", head())
    with pytest.raises(FileNotFoundError, match="absent"):
        volumes.slices(path, LARGEST, mask=tmp_path / "absent.nii.gz")


def test_a_mask_of_another_geometry_is_refused_with_both_or_resampled_to_the_nearest(tmp_path):
    path = save(tmp_path / "x.nii.gz", checkered())
    coarse = np.zeros((7, 9, 7), np.uint8)  # 2 mm in x and y: its voxel i lies at 2 i
    coarse[2, 5, 4] = 4  # at (4, 10)
    mask = save(tmp_path / "seg.nii.gz", coarse, np.diag([2.0, 2, 1, 1]))
    message = reason(path, LARGEST, mask=mask)
    assert "its mask seg.nii.gz has another geometry" in message
    assert "14 × 18 × 7 voxels of 1 × 1 × 1 mm" in message
    assert "7 × 9 × 7 voxels of 2 × 2 × 1 mm" in message
    assert "`resample: true` under `volumes` in the card" in message
    settings = Volumes(slices=1, choice="largest_tumour", crop_margin=0, resample=True)
    found = grey(path, settings, mask=mask)
    # x 4 lies on the voxel. 3 and 5 are half way to its neighbours; rounding adds one of them.
    assert list(found) == [4]
    assert found[4].shape == (2, 2)


def test_a_mask_that_lies_elsewhere_is_refused_when_it_is_resampled(tmp_path):
    path = save(tmp_path / "x.nii.gz", head())
    elsewhere = np.eye(4)
    elsewhere[0, 3] = 500
    mask = save(tmp_path / "seg.nii.gz", tumour(), elsewhere)
    settings = Volumes(slices=1, choice="largest_tumour", resample=True)
    message = reason(path, settings, mask=mask)
    assert "origin (500, 0, 0) mm" in message
    assert "nothing of it lies there" in message


# ------------------------------------------------------------------------- which affine to trust


def stated(path, volume, sform, qform, codes):
    """A volume whose header has these two affines with these codes (0: not stated)."""
    image = nibabel.Nifti1Image(volume, sform)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    image.header["sform_code"], image.header["qform_code"] = codes
    nibabel.save(image, path)
    return path


MIRRORED = np.diag([-1.0, 1, 1, 1])  # the first axis runs to the patient's left


def test_a_header_that_states_no_place_is_refused_until_the_card_trusts_an_affine(tmp_path):
    path = stated(tmp_path / "x.nii.gz", head(), MIRRORED, np.eye(4), (0, 0))
    message = reason(path)
    assert "sform and qform codes are both 0" in message and "left and right are not" in message
    assert "`affine: sform` or `affine: qform`, under `volumes` in the card" in message
    plain = grey(save(tmp_path / "plain.nii.gz", head()))
    by_qform = grey(path, Volumes(affine="qform"))
    by_sform = grey(path, Volumes(affine="sform"))
    assert all((by_qform[z] == plain[z]).all() for z in plain)
    assert all((by_sform[z] == plain[z][:, ::-1]).all() for z in plain)


def test_an_sform_and_a_qform_that_disagree_are_refused_until_the_card_trusts_one(tmp_path):
    path = stated(tmp_path / "x.nii.gz", head(), MIRRORED, np.eye(4), (1, 1))
    assert "an sform and a qform that differ by up to" in reason(path)
    assert "`affine: sform` or `affine: qform`" in reason(path)
    assert all(len(drawn(path, Volumes(affine=one))) == 5 for one in ("sform", "qform"))
    moved = np.eye(4)
    moved[0, 3] = 0.4  # less than half a voxel: rounding, and no other place
    path = stated(tmp_path / "y.nii.gz", head(), moved, np.eye(4), (1, 1))
    assert len(drawn(path)) == 5


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 0)])
def test_one_stated_affine_is_enough(tmp_path, codes):
    path = stated(tmp_path / "x.nii.gz", head(), MIRRORED, MIRRORED, codes)
    plain = grey(save(tmp_path / "plain.nii.gz", head()))
    assert all((found == plain[z][:, ::-1]).all() for z, found in grey(path).items())


def test_a_mask_that_has_lost_its_place_is_refused_until_the_card_says_it_is_the_volumes(tmp_path):
    place = np.array([[-1.0, 0, 0, 90], [0, -1, 0, 120], [0, 0, 1, -70], [0, 0, 0, 1]])
    volume = save(tmp_path / "x.nii.gz", head(), place)
    mask = save(tmp_path / "seg.nii.gz", tumour())  # the identity
    expected = drawn(volume, LARGEST, mask=save(tmp_path / "right.nii.gz", tumour(), place))
    for resample in (False, True):
        message = reason(volume, LARGEST.model_copy(update={"resample": resample}), mask=mask)
        assert "its affine is the identity" in message
        assert "write `mask_affine: volume` under `volumes` in the card" in message
    trusting = LARGEST.model_copy(update={"mask_affine": "volume"})
    found = drawn(volume, trusting, mask=mask)
    assert found.keys() == expected.keys()
    assert all((found[z] == expected[z]).all() for z in found)
    other = save(tmp_path / "other.nii.gz", tumour()[:-1])
    assert "is for masks of their volume's shape" in reason(volume, trusting, mask=other)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_file_is_read_by_its_content_whatever_its_name_says(tmp_path, name):
    other = save(tmp_path / ("y.nii.gz" if name == "x.nii" else "y.nii"), head())
    (tmp_path / name).write_bytes(other.read_bytes())
    expected = drawn(other)
    assert all((found == expected[z]).all() for z, found in drawn(tmp_path / name).items())


# ------------------------------------------------------------------------------- geometry


def test_a_geometry_is_described_by_shape_voxel_size_and_place(tmp_path):
    affine = np.diag([-0.9, 1.25, 3, 1])
    affine[:3, 3] = (90, -0.0001, -72.5)
    path = save(tmp_path / "x.nii.gz", head(), affine)  # x runs to the left: origin 90 - 13 · 0.9
    assert (
        "14 × 18 × 7 voxels of 0.9 × 1.25 × 3 mm, origin (78.3, 0, -72.5) mm, "
        "last voxel at (90, 21.25, -54.5) mm"
    ) in reason(path, reference=save(tmp_path / "t1.nii.gz", head()))


def test_a_volume_of_its_references_geometry_is_drawn_as_it_is(tmp_path):
    path = save(tmp_path / "x.nii.gz", *stored_as("LPS", checkered()))
    other = save(tmp_path / "ref.nii.gz", *stored_as("ASR", head()))
    plain = grey(path)
    for settings in (Volumes(), Volumes(resample=True)):
        for reference in (path, other, None, ""):
            found = grey(path, settings, reference=reference)
            assert list(found) == list(plain)
            assert all((found[z] == plain[z]).all() for z in plain)


def shifted(millimetres):
    affine = np.eye(4)
    affine[1, 3] = millimetres
    return affine


def turned(degrees):
    affine, angle = np.eye(4), np.radians(degrees)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


@pytest.mark.parametrize("affine", [shifted(0.01), turned(0.05), np.diag([1.001, 1, 1, 1])])
def test_the_rounding_of_a_header_is_no_other_geometry(tmp_path, affine):
    path = save(tmp_path / "x.nii.gz", checkered(), affine)
    assert list(grey(path, reference=save(tmp_path / "t1.nii.gz", head()))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "affine, described",
    [
        (shifted(0.5), "origin (0, 0.5, 0) mm"),
        (turned(3), "last voxel at (12.092, 17.657, 6) mm"),  # 13 cos 3° - 17 sin 3°, …
        (np.diag([1.05, 1, 1, 1]), "voxels of 1.05 × 1 × 1 mm"),
    ],
)
def test_another_geometry_than_the_references_is_refused_with_both(tmp_path, affine, described):
    path = save(tmp_path / "x.nii.gz", checkered(), affine)
    message = reason(path, reference=save(tmp_path / "p1_t1.nii.gz", head()))
    assert "is not that of its reference volume p1_t1.nii.gz" in message
    assert described in message
    assert "14 × 18 × 7 voxels of 1 × 1 × 1 mm, origin (0, 0, 0) mm" in message
    assert "`resample: true` under `volumes` in the card" in message


def test_another_shape_is_another_geometry(tmp_path):
    path = save(tmp_path / "x.nii.gz", checkered())
    message = reason(path, reference=save(tmp_path / "t1.nii.gz", head()[:, :, :5]))
    assert "14 × 18 × 7 voxels" in message
    assert "14 × 18 × 5 voxels" in message


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA"])
def test_a_volume_of_twice_the_voxel_size_is_resampled_between_its_voxels(tmp_path, codes):
    coarse = np.full((6, 6, 3), 40.0, np.float32)  # air of 40
    coarse[2, 2], coarse[3, 2], coarse[2, 3], coarse[3, 3] = 100, 140, 180, 220
    path = save(tmp_path / "x.nii.gz", *stored_as(codes, coarse, np.diag([2.0, 2, 2, 1])))
    reference = save(tmp_path / "t1.nii.gz", np.zeros((11, 11, 5), np.uint8))
    settings = Volumes(slices=1, percentiles=(0, 100), resample=True)
    found = upright(grey(path, settings, reference=reference)[2])
    assert found.shape == (11, 11)
    # The head begins where it differs from 40: next to the head half way, 70 = (40 + 100) / 2,
    # or at the corners (40 · 3 + 100) / 4 = 55, which is the lowest; the highest is 220.
    values = {(3, 3): 55, (4, 3): 70, (4, 4): 100, (5, 4): 120, (6, 4): 140, (4, 5): 140}
    values |= {(5, 5): 160, (6, 5): 180, (4, 6): 180, (5, 6): 200, (6, 6): 220}
    values |= {(7, 6): 130, (6, 7): 130, (7, 7): 85}
    for (x, y), value in values.items():
        assert found[x, y] == pytest.approx((value - 55) / (220 - 55) * 255, abs=0.51), (x, y)
    assert (found[:3] == 0).all()


def test_a_volume_that_is_moved_fills_what_it_does_not_reach_with_its_background(tmp_path):
    volume = np.where(checkered() > 0, checkered(), 700)  # the air is 700, not 0
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 3] = -5  # five voxels towards the left
    path = save(tmp_path / "x.nii.gz", *stored_as("LPS", volume, affine))
    reference = save(tmp_path / "t1.nii.gz", head())
    before = upright(grey(path)[3])
    found = upright(grey(path, Volumes(resample=True), reference=reference)[3])
    # What lies at x in the volume lies at x - 5 in the reference; what is left is windowed.
    left = np.full((14, 18), 700.0)
    left[:9] = volume[5:, :, 3]
    low, high = np.percentile(np.repeat(left[left != 700], 7), (0.5, 99.5))
    expected = np.clip((left - low) / (high - low), 0, 1) * 255
    assert np.abs(found - expected).max() <= 0.51
    assert (found != before).any()


def test_voxels_at_the_border_of_the_same_lattice_are_kept(tmp_path):
    """The reference is the volume without some planes: nothing is interpolated, nothing lost."""
    affine = np.array([[0.7, 0, 0, -31.3], [0, 0.7, 0, 12.1], [0, 0, 1.3, 5.7], [0, 0, 0, 1]])
    volume = checkered() + np.arange(7, dtype=np.float32)
    path = save(tmp_path / "x.nii.gz", *stored_as("LPS", volume, affine))
    inner = affine.copy()
    inner[:3, 3] += affine[:3, :3] @ (1, 0, 2)
    reference = save(tmp_path / "t1.nii.gz", *stored_as("SAR", head()[:13, :, :5], inner))
    cut = save(tmp_path / "cut.nii.gz", volume[1:, :, 2:], inner)
    found = grey(path, Volumes(slices=5, resample=True), reference=reference)
    expected = grey(cut, Volumes(slices=5))
    assert all(np.abs(found[z] - expected[z]).max() <= 1 for z in range(5))


def test_a_volume_and_its_mask_are_both_resampled_to_the_reference(tmp_path):
    """Of three geometries, the reference's has the slice and the crop."""
    deep = np.repeat(checkered()[..., :1], 14, 2)
    path = save(tmp_path / "x.nii.gz", *stored_as("LPS", deep, np.diag([1, 1, 0.5, 1])))
    affine = np.eye(4)
    affine[:3, 3] = (-2, -1, -3)  # a mask that begins outside the reference
    wide = np.pad(tumour(), ((2, 2), (1, 3), (3, 1)))
    mask = save(tmp_path / "seg.nii.gz", *stored_as("PIR", wide, affine))
    reference = save(tmp_path / "t1.nii.gz", head())
    settings = Volumes(slices=3, choice="largest_tumour", crop_margin=1, resample=True)
    found = grey(path, settings, mask=mask, reference=reference)
    assert list(found) == [3, 4, 5]
    whole = grey(save(tmp_path / "same.nii.gz", checkered()), Volumes(slices=1))[3]
    for picture in found.values():
        assert np.abs(upright(picture) - upright(whole)[3:8, 9:15]).max() <= 1


def test_a_mask_must_have_the_geometry_of_the_reference_and_not_of_its_volume(tmp_path):
    path = save(tmp_path / "x.nii.gz", checkered())
    mask = save(tmp_path / "seg.nii.gz", tumour())
    small = save(tmp_path / "t1.nii.gz", head()[:, :, 3:], shifted(0))
    assert "its geometry" in reason(
        path, LARGEST, mask=mask, reference=small
    )  # the volume's comes first
    cut = save(tmp_path / "cut.nii.gz", checkered()[:, :, 3:])
    assert "its mask seg.nii.gz has another geometry" in reason(
        cut, LARGEST, mask=mask, reference=small
    )


def test_a_volume_that_lies_elsewhere_is_refused_when_it_is_resampled(tmp_path):
    path = save(tmp_path / "x.nii.gz", checkered(), shifted(-300))
    reference = save(tmp_path / "t1.nii.gz", head())
    message = reason(path, Volumes(resample=True), reference=reference)
    assert "origin (0, -300, 0) mm" in message
    assert "nothing of it lies there" in message


def test_the_reference_is_checked_by_its_header(tmp_path):
    path = save(tmp_path / "x.nii.gz", head())
    (tmp_path / "t1.nii.gz").write_text("not found")
    message = reason(path, reference=tmp_path / "t1.nii.gz")
    assert "its reference volume t1.nii.gz is not a NIfTI file" in message


# --------------------------------------------------------------------------------- refusals


def bad_volumes():
    nan, infinite = head(), head()
    nan[1, 2, 3], infinite[1, 2, 3] = np.nan, np.inf
    flat = np.where(head() > 0, 1, 0).astype(np.float32)
    return {
        "four": (head()[..., None].repeat(2, 3), "which is needed: its shape is (14, 18, 7, "),
        "two": (head()[..., 3], "one 3-D volume, which is needed: its shape is (14, 18)"),
        "empty": (head()[:0], "is empty, its shape is (0, 18, 7)"),
        "nan": (nan, "NaN or infinite"),
        "infinite": (infinite, "NaN or infinite"),
        "large": (head().astype(np.float64) * 1e300, "NaN or infinite"),  # in single precision
        "constant": (np.full((9, 9, 9), 7, np.float32), "constant (7)"),
        "mask": (flat, "one grey value only"),
        "thin": (head()[..., :4], "4 axial slices, 5 were asked for"),
        "complex": (head().astype(np.complex64), "values of type complex64, not grey values"),
        "colour": (np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "not grey values"),
    }


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", bad_volumes())
def test_a_volume_that_cannot_be_judged_is_refused_with_the_reason(tmp_path, name):
    volume, why = bad_volumes()[name]
    assert why in reason(save(tmp_path / "x.nii.gz", volume))


def craft(path, volume=None, **fields):
    """A NIfTI-1 file whose header says whatever it is told to, over the voxels of ``volume``."""
    volume = head() if volume is None else volume
    header = nibabel.Nifti1Header()
    header.set_data_dtype(volume.dtype)
    header.set_data_shape(volume.shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4) + volume.tobytes("F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_crafted_header_is_read_where_it_tells_the_truth(tmp_path):
    found, expected = grey(craft(tmp_path / "a.nii.gz")), grey(save(tmp_path / "b.nii", head()))
    assert all((found[z] == expected[z]).all() for z in expected)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_header_that_claims_an_absurd_size_is_refused_before_anything_is_read(tmp_path, name):
    path = craft(tmp_path / name, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    good = save(tmp_path / "good.nii.gz", head())
    for message in (reason(path), reason(good, reference=path), reason(good, LARGEST, mask=path)):
        assert "32767 × 32767 × 32767 voxels by its header, more than the 268435456" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [0, 0, 0, 0]},
        {"srow_x": [0, 1, 0, 0]},  # x and y point the same way
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_z": [0, 0, 1, np.inf]},
    ],
)
def test_a_volume_that_does_not_say_where_left_is_is_refused(tmp_path, fields):
    message = reason(craft(tmp_path / "x.nii.gz", **fields))
    assert "singular or not finite" in message
    assert "DICOM" in message


def test_small_voxels_are_not_taken_for_a_singular_affine(tmp_path):
    path = save(tmp_path / "x.nii.gz", head(), np.diag([1e-4, 1e-4, 1e-4, 1]))
    assert list(drawn(path)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_truncated_file_is_refused(tmp_path, name):
    rng = np.random.default_rng(0)
    whole = save(tmp_path / name, rng.normal(size=(20, 20, 9)).astype(np.float32)).read_bytes()
    for kept, why in ((0.5, "cannot be read to its end"), (0.001, "is not a NIfTI file")):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
        message = reason(tmp_path / name)
        assert f"it {why} (" in message
        assert "copy or download it again" in message


def test_a_damaged_gzip_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "x.nii.gz", rng.normal(size=(20, 20, 9)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    assert "it cannot be read to its end (" in reason(path)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.txt"])
@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>" * 50])
def test_a_file_that_is_no_nifti_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "it is not a NIfTI file (" in reason(tmp_path / name)


def test_a_format_that_does_not_say_which_side_is_left_is_refused(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(head(), np.eye(4)), tmp_path / "x.img")
    assert "not a NIfTI file but" in reason(tmp_path / "x.img")


def test_a_volume_that_is_not_there_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        volumes.slices(tmp_path / "absent.nii.gz", Volumes())


# -------------------------------------------------------------------------------- real data


@pytest.mark.real_data
def test_real_gliomas_have_slices_with_contrast_around_a_tumour_of_one_geometry(real_data):
    patients = sorted(path for path in (real_data / "tcga_lgg").iterdir() if path.is_dir())
    modalities = ("t1", "t1ce", "flair")
    complete = 0
    for patient in patients:
        files = {m: patient / f"{patient.name}_{m}.nii.gz" for m in (*modalities, "seg")}
        if not all(path.is_file() for path in files.values()):
            continue
        complete += 1
        for modality in modalities:
            at = {"mask": files["seg"], "reference": files["t1ce"]}
            found = grey(files[modality], Volumes(choice="largest_tumour"), **at)
            # The data set's five slices are those around the largest tumour.
            assert list(found) == [0, 1, 2, 3, 4]
            assert all(picture.std() > 20 for picture in found.values())
    assert complete == 100


@pytest.mark.real_data
def test_a_real_tumour_is_brighter_on_flair_than_the_other_side_of_the_head(real_data, tmp_path):
    """It would not be if the mask were read mirrored, or the crop were drawn elsewhere."""
    patients = sorted(path for path in (real_data / "tcga_lgg").iterdir() if path.is_dir())[::4]
    settings, brighter = Volumes(slices=1, crop_margin=0), []
    for patient in patients:
        flair, mask = (patient / f"{patient.name}_{name}.nii.gz" for name in ("flair", "seg"))
        image = nibabel.load(mask)  # x is its first axis
        mirrored = save(tmp_path / "mirrored.nii.gz", np.asarray(image.dataobj)[::-1], image.affine)
        there, across = (grey(flair, settings, mask=m)[2].mean() for m in (mask, mirrored))
        brighter.append(there > across)
    assert np.mean(brighter) > 0.9
