"""DICOM: pixels as other readers see them, grey values as the card says, and no name in a message.

Expected values are worked out from the standard (PS3.3 C.7.6.3 and C.11) or come from SimpleITK.
"""

import contextlib
import hashlib
import io
from pathlib import Path

import made_dicom
import nibabel
import numpy as np
import pydicom
import pytest
from made_dicom import content, item
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import (
    MPEG4HP41,
    JPEG2000Lossless,
    RLELossless,
)

from medlib.data import decoding, dicom, dicom_series, manifest, volumes
from medlib.data.cards import Volumes
from medlib.data.dicom import DicomError


def grey(file, grey_values):
    """The grey values of a picture, whose three channels are the same."""
    drawn = np.asarray(dicom.picture(file, grey_values))
    assert drawn.dtype == np.uint8 and (drawn == drawn[:, :, :1]).all()
    return drawn[:, :, 0].tolist()


def row(*values, kind=np.uint16):
    return np.array([values], kind)


# ------------------------------------------------------------------------------- is it DICOM?


def test_a_file_is_dicom_by_its_content_alone(tmp_path):
    file = content(row(0, 1))
    assert dicom.is_dicom(file) and dicom.is_dicom(file[:1024])
    assert dicom.is_dicom(file[132:])  # without preamble and DICM
    for name in ("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "MR_small_implicit.dcm"):
        assert dicom.is_dicom(Path(get_testdata_file(name)).read_bytes())
    made = made_dicom.dataset(row(0, 255, kind=np.uint8))
    del made.file_meta, made.preamble
    for how in ((True, True), (False, True), (False, False)):  # implicit or not, little or big
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, made, implicit_vr=how[0], little_endian=how[1])
        assert buffer.getvalue()[128:132] != b"DICM" and dicom.is_dicom(buffer.getvalue())
        assert grey(buffer.getvalue(), "as_stored") == [[0, 255]]
    Image.new("L", (9, 9)).save(tmp_path / "x.png")
    Image.new("L", (9, 9)).save(tmp_path / "x.tif")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "x.nii")
    others = [path.read_bytes() for path in tmp_path.iterdir()]
    for other in (*others, b"", b"PatientID,Target\n" * 99, b"\x08\0\x05\0" * 99, b"\0" * 999):
        assert not dicom.is_dicom(other)


def test_a_preamble_may_hold_another_format(tmp_path):
    """As in microscopy, where a file is a TIFF as well."""
    Image.new("L", (3, 3)).save(tmp_path / "x.tif")
    file = (tmp_path / "x.tif").read_bytes()[:128].ljust(128, b"\0") + content(row(0, 255))[128:]
    (tmp_path / "both").write_bytes(file)
    assert decoding.decode(tmp_path / "both", None, (0, 255)).size == (2, 1)


# --------------------------------------------------------------------------------- grey values


def test_as_stored_is_what_the_bits_and_the_rescale_allow():
    file = content(row(0, 1000, 4095), BitsStored=12, HighBit=11)
    assert grey(file, "as_stored") == [[0, 62, 255]]  # 255 · 1000 / 4095 = 62.3
    signed = content(row(-128, 0, 127, kind=np.int8))
    assert grey(signed, "as_stored") == [[0, 128, 255]]  # 255 · 128 / 255
    turned = {"RescaleSlope": "-2", "RescaleIntercept": "10"}
    assert grey(content(row(0, 51, 255, kind=np.uint8), **turned), "as_stored") == [[255, 204, 0]]


LINEAR = [[0, 0, 128, 255, 255]]  # of -161, -160, 40, 239, 240, by a window of 40 and 400


@pytest.mark.parametrize(
    "function, expected",
    [
        (None, LINEAR),  # ((40 - 39.5) / 399 + 0.5) · 255 = 127.8
        ("LINEAR", LINEAR),
        ("LINEAR_EXACT", [[0, 0, 128, 254, 255]]),  # (199 / 400 + 0.5) · 255 = 254.4
        ("SIGMOID", [[30, 30, 128, 224, 225]]),  # 255 / (1 + exp(4 · 201 / 400)) = 30.1 …
    ],
)
def test_the_files_window_is_applied_by_its_function_after_the_rescale(function, expected):
    stored = np.array([[-161, -160, 40, 239, 240]]) + 1024
    tags = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "VOILUTFunction": function}
    window = {"WindowCenter": ["40", "300"], "WindowWidth": ["400", "1500"]}  # the first counts
    assert grey(content(stored.astype(np.uint16), **tags, **window), "window") == expected


def test_a_window_is_that_of_pydicom():
    """On a real CT slice, with windows for lung, soft tissue and bone."""
    scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for centre, width in ((-600, 1500), (40, 350), (400, 1801)):
        scan.WindowCenter, scan.WindowWidth = centre, width
        values = pydicom.pixels.apply_rescale(scan.pixel_array, scan)
        theirs = pydicom.pixels.apply_windowing(values, scan)  # scaled to what the bits allow
        low, high = pydicom.pixels.apply_rescale(np.array([-(2**15), 2**15 - 1]), scan)
        theirs = 255 * (theirs - low) / (high - low)
        ours = np.array(grey(content(scan), "window"))
        assert np.abs(ours - theirs).max() <= 0.501


def test_a_voi_lut_comes_before_a_window():
    lut = item(LUTDescriptor=[4, 10, 12], LUTData=[0, 4095, 819, 1638])
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    file = content(row(9, 10, 11, 12, 13, 99), VOILUTSequence=[lut], **window)
    assert grey(file, "window") == [[0, 0, 255, 51, 102, 102]]  # of 4095: a fifth, two fifths


def test_a_modality_lut_maps_what_is_stored():
    lut = item(LUTDescriptor=[3, 1, 12], LUTData=[4095, 819, 0])
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    file = content(row(0, 1, 2, 3, 4), ModalityLUTSequence=[lut])
    assert grey(file, "as_stored") == [[255, 255, 51, 0, 0]]
    assert grey(file, (0, 1638)) == [[255, 255, 128, 0, 0]]


def test_stretched_leaves_the_padding_out():
    values = np.append(np.arange(1001), [-2000] * 999).astype(np.int16).reshape(40, 50)
    tags = {"PixelPaddingValue": -2000}
    drawn = np.array(grey(content(values, **tags), "stretched")).ravel()
    # The 0.5th and 99.5th percentiles of 0 … 1000 are 5 and 995.
    assert drawn[[4, 5, 500, 995, 996, 1500]].tolist() == [0, 0, 128, 255, 255, 0]
    ranged = np.where(values == -2000, np.resize([-2000, -1500], values.shape), values)
    tags |= {"PixelPaddingRangeLimit": -1400}
    file = content(ranged.astype(np.int16), **tags)
    assert (np.array(grey(file, "stretched")).ravel()[:1001] == drawn[:1001]).all()
    with pytest.raises(DicomError, match="nothing but padding"):
        dicom.picture(content(row(7, 7), PixelPaddingValue=7), "stretched")


def test_two_values_are_a_window_after_the_rescale():
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-1000"}
    file = content(row(0, 100, 500, 700), **tags)  # -1000, -800, 0, 400
    assert grey(file, (-1000, 400)) == [[0, 36, 182, 255]]


def test_in_monochrome1_low_values_are_bright():
    tags = {"WindowCenter": "128", "WindowWidth": "256"}
    for choice in ("window", "as_stored", (0, 255)):
        file = content(row(0, 55, 255, kind=np.uint8), PhotometricInterpretation="MONOCHROME1")
        tagged = content(
            row(0, 55, 255, kind=np.uint8), PhotometricInterpretation="MONOCHROME1", **tags
        )
        assert grey(tagged if choice == "window" else file, choice) == [[255, 200, 0]]


def test_overlay_bits_and_what_lies_above_the_stored_bits_are_no_grey_values():
    stored = row(0x0000, 0xF000, 0x1FFF, 0x0FFF)
    file = content(stored, BitsStored=12, HighBit=11)
    assert grey(file, "as_stored") == [[0, 0, 255, 255]]


def test_grey_values_that_the_card_does_not_explain_are_refused_with_the_choices():
    with pytest.raises(DicomError, match="window, as_stored, stretched, or two values"):
        dicom.picture(content(row(0, 1)))
    with pytest.raises(ValueError, match="Unknown grey_values 'widnow'. Did you mean 'window'"):
        dicom.picture(content(row(0, 1)), "widnow")


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": "1"}, {"WindowWidth": "2"}])
def test_a_file_without_a_window_is_refused_with_the_other_choices(tags):
    with pytest.raises(DicomError, match="neither a window nor a VOI LUT.*as_stored, stretched"):
        dicom.picture(content(row(0, 1), **tags), "window")


def test_a_window_that_is_none_is_refused():
    for tags, match in (
        ({"WindowWidth": "0"}, "window of width 0"),
        ({"WindowWidth": "9", "VOILUTFunction": "CUBIC"}, "VOILUTFunction 'CUBIC'"),
    ):
        with pytest.raises(DicomError, match=match):
            dicom.picture(content(row(0, 1), WindowCenter="1", **tags), "window")


# -------------------------------------------------------------------------------------- colour

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 80, 70]]], np.uint8)


def test_colour_needs_no_grey_values_whether_by_pixel_or_by_plane():
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    by_plane = made_dicom.dataset(COLOURS, PlanarConfiguration=1)
    by_plane.PixelData = planes.tobytes()
    for file in (content(COLOURS), content(by_plane)):
        for choice in ("", "window", (3, 4)):
            assert (np.asarray(dicom.picture(file, choice)) == COLOURS).all()


def test_ybr_becomes_rgb():
    ybr = np.array([[[76, 85, 255], [150, 44, 21]], [[29, 255, 107], [255, 128, 128]]], np.uint8)
    file = content(ybr, PhotometricInterpretation="YBR_FULL")
    expected = [[[254, 0, 0], [0, 255, 1]], [[0, 0, 254], [255, 255, 255]]]  # PS3.3 C.7.6.3.1.2
    assert np.abs(np.asarray(dicom.picture(file)).astype(int) - expected).max() <= 1


def test_a_palette_becomes_rgb():
    tables = {"Red": [0, 65535, 0], "Green": [0, 0, 65535], "Blue": [0, 32896, 0]}
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in tables.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(values, "<u2").tobytes()
    file = content(row(0, 1, 2, 7, kind=np.uint8), **tags)
    expected = [[[0, 0, 0], [255, 0, 128], [0, 255, 0], [0, 255, 0]]]
    assert np.asarray(dicom.picture(file)).tolist() == expected


def test_deep_colour_keeps_its_highest_bits():
    """pydicom's test picture in 8, 16 and 32 bits; SimpleITK mixes up the bytes of the 16."""
    pictures = [
        np.asarray(dicom.picture(Path(get_testdata_file(f"SC_rgb_rle{bits}.dcm")).read_bytes()))
        for bits in ("", "_16bit", "_32bit")
    ]
    assert pictures[0][0, 0].tolist() == [255, 0, 0] and pictures[0][15, 0].tolist() == [
        255,
        128,
        128,
    ]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()


# ------------------------------------------------------------------------------------- refusals


def test_several_frames_are_refused_with_their_number():
    with pytest.raises(DicomError, match="has 12 frames"):
        dicom.picture(content(np.zeros((12, 2, 2), np.uint8)), "as_stored")


def test_missing_tags_are_named_all_at_once():
    file = content(row(0, 1), BitsAllocated=None, Rows=None)
    with pytest.raises(DicomError, match="Rows, BitsAllocated missing"):
        dicom.picture(file, "as_stored")
    with pytest.raises(DicomError, match="PixelData missing"):
        dicom.picture(content(Rows=2), "as_stored")
    with pytest.raises(DicomError, match="PhotometricInterpretation 'CMYK'; these can be read"):
        dicom.picture(content(row(0, 1), PhotometricInterpretation="CMYK"), "as_stored")


DAMAGED = {"RescaleSlope": "1.000000", "WindowCenter": "1.000000", "NumberOfFrames": "00000001"}


@pytest.mark.parametrize("tag", DAMAGED)
def test_a_tag_that_cannot_be_read_is_refused_and_not_quoted(tmp_path, tag):
    """pydicom's own errors quote the value, which may be anybody's name."""
    tags = {"WindowCenter": "1", "WindowWidth": "2", "RescaleSlope": "1"} | {tag: DAMAGED[tag]}
    file = content(row(0, 1), **tags).replace(DAMAGED[tag].encode(), b"JANE DOE")
    (tmp_path / "x").write_bytes(file)
    with pytest.raises(ValueError) as caught:
        volumes.slices(tmp_path / "x", Volumes(slices=1))
    assert "JANE" not in f"{caught.value} {caught.value.__cause__}"
    with pytest.raises(DicomError, match=r"has a damaged tag \(ValueError\): export it again"):
        dicom.picture(file, "window")


def test_a_truncated_file_is_refused():
    file = Path(get_testdata_file("MR_truncated.dcm")).read_bytes()
    with pytest.raises(DicomError, match="8130 vs 8192 bytes.*copy it again"):
        dicom.picture(file, "stretched")


def test_damaged_rle_is_refused_although_its_decoder_panics():
    file = Path(get_testdata_file("MR_small_RLE.dcm")).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(file)
        for place in rng.integers(len(file) // 2, len(file), 4):
            damaged[place] ^= 0xFF
        with contextlib.suppress(DicomError):  # or the damage is in the pixels only
            dicom.picture(bytes(damaged), "stretched")


def test_a_header_that_claims_too_many_pixels_is_refused_before_they_are_decoded():
    with pytest.raises(DicomError, match="60000 × 60000 pixels, more than"):
        dicom.picture(content(row(0, 1), Rows=60000, Columns=60000), "as_stored")


def compressed(syntax):
    made = made_dicom.dataset(np.zeros((2, 2), np.uint8), syntax)
    made.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
    made["PixelData"].is_undefined_length = True
    return content(made)


def test_a_syntax_that_nothing_decodes_is_named_with_the_way_out():
    with pytest.raises(DicomError, match="MPEG-4 .*no decoder: convert it"):
        dicom.picture(compressed(MPEG4HP41), "as_stored")
    with pytest.raises(DicomError, match="an unknown transfer syntax"):
        private = compressed(MPEG4HP41).replace(MPEG4HP41.encode(), b"1.2.826.0.1.3680043.8.5")
        dicom.picture(private, "as_stored")


@pytest.mark.parametrize(
    "syntax, name, package",
    [
        (JPEG2000Lossless, "JPEG 2000", "pylibjpeg-openjpeg"),
        (RLELossless, "RLE", "pylibjpeg-rle"),
        ("1.2.840.10008.1.2.4.51", "JPEG Extended", "pylibjpeg-libjpeg"),
    ],
)
def test_a_decoder_that_is_not_installed_is_named_with_its_package(
    monkeypatch, syntax, name, package
):
    class Nothing:
        available_plugins = ("pillow",)

    monkeypatch.setattr(dicom, "get_decoder", lambda uid: Nothing)
    with pytest.raises(DicomError, match=f"{name}.*pip install pylibjpeg {package}$"):
        dicom.picture(compressed(syntax), "as_stored")


# --------------------------------------------------------------------------- what headers tell


@pytest.mark.parametrize(
    "told, years",
    [
        ("058Y", "58"),
        ("011M", "0.92"),
        ("003W", "0.06"),
        ("010D", "0.03"),
        ("000Y", "0"),
        ("58", "58"),
        ("018M", "1.5"),
        ("58 years", ""),
        ("", ""),
    ],
)
def test_an_age_is_in_years(tmp_path, told, years):
    path = made_dicom.write(tmp_path / "x", row(0, 1), PatientAge=told)
    assert dicom.header(path).known["age"] == years


@pytest.mark.parametrize(
    "birth, study, years",
    [
        ("19600229", "20200228", "59"),  # a day before the birthday
        ("20190101", "20190403", "0.25"),  # 92 days
        ("20200101", "20190101", ""),
        ("", "20190101", ""),
        ("anonymous", "20190101", ""),
    ],
)
def test_without_an_age_dates_tell_it(tmp_path, birth, study, years):
    dates = {"PatientBirthDate": birth, "StudyDate": study}
    path = made_dicom.write(tmp_path / "x", row(0, 1), **dates)
    assert dicom.header(path).known["age"] == years


def test_what_else_a_header_tells(tmp_path):
    tags = {"PatientSex": "F", "Manufacturer": "Maker ", "InstitutionName": "Clinic"}
    path = made_dicom.write(tmp_path / "x", row(0, 1), BurnedInAnnotation="YES", **tags)
    known = {"sex": "female", "manufacturer": "Maker", "site": "Clinic", "burnt_in": "yes"}
    assert dicom.header(path).known == known | {"age": ""}
    path = made_dicom.write(tmp_path / "y", row(0, 1), PatientSex="?")
    assert set(dicom.header(path).known.values()) == {""}


@pytest.mark.parametrize("characters", ["ISO_IR 100", "ISO_IR 192"])
def test_names_of_sites_may_have_any_letters(tmp_path, characters):
    tags = {"SpecificCharacterSet": characters, "InstitutionName": "Universitätsklinik Köln"}
    path = made_dicom.write(tmp_path / "x", row(0, 1), **tags)
    assert dicom.header(path).known["site"] == "Universitätsklinik Köln"


def test_a_hash_is_the_beginning_of_a_sha256():
    assert dicom.short_hash("p01") == hashlib.sha256(b"p01").hexdigest()[:12]


# -------------------------------------------------------------------------- independent readers

# The two readers may differ by one grey level in lossy JPEG. In colour they may differ by three,
# since colours are converted as well. All other images are equal.
LOSSY = {"JPGExtended.dcm": 1, "SC_rgb_jpeg_lossy_gdcm.dcm": 2, "SC_rgb_dcmtk_+eb+cr.dcm": 1}
LOSSY |= {"SC_rgb_dcmtk_+eb+cy+n1.dcm": 2, "SC_rgb_dcmtk_+eb+cy+np.dcm": 2, "SC_rgb_jpeg.dcm": 1}
LOSSY |= {"SC_jpeg_no_color_transform.dcm": 1, "SC_rgb_jpeg_app14_dcmd.dcm": 1}
COMPARED = [*LOSSY, "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"]
COMPARED += ["MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm", "693_J2KI.dcm"]
COMPARED += ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm"]
COMPARED += ["J2K_pixelrep_mismatch.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm"]
COMPARED += ["image_dfl.dcm", "examples_overlay.dcm", "examples_palette.dcm", "ExplVR_BigEnd.dcm"]
COMPARED += ["examples_rgb_color.dcm", "examples_jpeg2k.dcm", "GDCMJ2K_TextGBR.dcm"]
COMPARED += ["SC_rgb_dcmtk_+eb+cy+n2.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_gdcm_KY.dcm"]
COMPARED += [
    "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
]
COMPARED += [
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_small_odd.dcm",
]
COMPARED += ["SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm"]


@pytest.fixture
def simpleitk():
    reader = pytest.importorskip("SimpleITK")
    reader.ProcessObject.SetGlobalWarningDisplay(False)
    return reader


def by_simpleitk(simpleitk, path):
    return np.squeeze(simpleitk.GetArrayFromImage(simpleitk.ReadImage(str(path))))


@pytest.mark.parametrize("name", COMPARED)
def test_pixels_are_those_of_simpleitk(simpleitk, name):
    """Grey values after the modality LUT, and colour as RGB."""
    path = Path(get_testdata_file(name))
    read = dicom.read(path.read_bytes())
    if read.PhotometricInterpretation == "MONOCHROME2":
        ours = dicom.modality_values(read, dicom.stored_values(read))
    else:
        ours = np.asarray(dicom.picture(path.read_bytes()))
    theirs = by_simpleitk(simpleitk, path)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(float) - theirs).max() <= LOSSY.get(name, 0)


def test_simpleitk_inverts_monochrome1_as_pictures_do(simpleitk):
    """It turns stored values v into 4095 - v before the rescale, 0.684 · v + 200."""
    path = next(Path(get_testdata_file("DICOMDIR")).parent.rglob("CR1/6154"))
    read = dicom.read(path.read_bytes())
    ours = dicom.modality_values(read, dicom.stored_values(read))
    theirs = by_simpleitk(simpleitk, path)
    np.testing.assert_allclose(ours + theirs, 2 * 200 + 0.684 * 4095, atol=1e-3)
    drawn = np.array(grey(path.read_bytes(), "as_stored"))
    expected = 255 * (theirs - 200) / (0.684 * 4095)
    assert np.abs(drawn - expected).max() <= 0.501


def test_a_series_is_that_of_simpleitk(simpleitk):
    """A CT of pydicom's, five slices: values, spacing, position and orientation."""
    folder = next(Path(get_testdata_file("DICOMDIR")).parent.rglob("CT5N"))
    reader = simpleitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    ours = dicom_series.volume(sorted(folder.iterdir())[2])
    voxels = simpleitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    assert (np.asarray(ours.dataobj) == voxels).all() and voxels.shape == (16, 16, 5)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
    affine[:3, 3] = theirs.GetOrigin()
    np.testing.assert_allclose(ours.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-6)


# --------------------------------------------------------------------------------------- series

VOXELS = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)


def test_slices_come_in_the_order_of_their_positions_with_values_after_the_rescale(tmp_path):
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-10"}
    made_dicom.write_series(tmp_path, VOXELS, origin=(10, 20, -30), **tags)
    names = sorted(tmp_path.iterdir())
    positions = [pydicom.dcmread(name).ImagePositionPatient[2] for name in names]
    assert positions != sorted(positions)
    for name in (names[0], names[3]):
        volume = dicom_series.volume(name)
        assert volume.get_data_dtype() == np.float32
        assert (np.asarray(volume.dataobj) == 2 * VOXELS - 10).all()
        # 0.5 mm to the left, 2 mm to the back, 3 mm up, in axes that go to the right and the front
        expected = [[-0.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]]
        np.testing.assert_allclose(volume.affine, expected)


def test_a_sagittal_series_lies_where_it_was_taken(tmp_path):
    sagittal = [0, 1, 0, 0, 0, -1]  # columns go to the back, rows go down
    made_dicom.write_series(tmp_path, VOXELS, direction=sagittal, origin=(5, 0, 9))
    volume = dicom_series.volume(tmp_path / "001")
    # The normal, back × down, points to the patient's right: DICOM's -x is +x here.
    expected = [[0, 0, 3, -5], [-0.5, 0, 0, 0], [0, -2, 0, 9], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)
    assert (np.asarray(volume.dataobj) == VOXELS).all()


def enhanced(voxels, order, **tags):
    """A multi-frame file whose frames are in this order."""
    frames = np.ascontiguousarray(voxels[:, :, order].T.transpose(0, 1, 2))
    groups = []
    for z in order:
        place = item(ImagePositionPatient=[10, 20, -30 + 3 * z])
        scale = item(RescaleSlope=str(1 + z), RescaleIntercept="5")
        groups.append(item(PlanePositionSequence=[place], PixelValueTransformationSequence=[scale]))
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=made_dicom.AXIAL)],
        PixelMeasuresSequence=[item(PixelSpacing=[2, 0.5])],
    )
    tags = {"SOPClassUID": made_dicom.ENHANCED_MR, "Modality": "MR"} | tags
    tags |= {"SharedFunctionalGroupsSequence": [shared]}
    return content(frames, PerFrameFunctionalGroupsSequence=groups, **tags)


def test_a_multi_frame_file_with_positions_is_a_volume(tmp_path):
    """Each frame with a scale of its own, as in PET and in Philips' MR."""
    (tmp_path / "one").write_bytes(enhanced(VOXELS, [3, 1, 0, 2, 4]))
    volume = dicom_series.volume(tmp_path / "one")
    assert (np.asarray(volume.dataobj) == VOXELS * np.arange(1, 6) + 5).all()
    expected = [[-0.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_a_dicom_volume_is_drawn_as_the_same_volume_in_nifti(tmp_path):
    rng = np.random.default_rng(0)
    voxels = np.zeros((20, 24, 7), np.int16)
    voxels[3:17, 4:20] = rng.integers(100, 2000, (14, 16, 7))
    made_dicom.write_series(tmp_path / "mr", voxels, origin=(3, 4, 5))
    affine = np.diag([-0.5, -2, 3, 1])
    affine[:3, 3] = -3, -4, 5
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "mr.nii.gz")
    settings = Volumes(slices=3)
    ours = volumes.slices(tmp_path / "mr" / "001", settings)
    theirs = volumes.slices(tmp_path / "mr.nii.gz", settings)
    assert list(ours) == list(theirs) == [2, 3, 4]
    assert all((np.asarray(ours[z]) == np.asarray(theirs[z])).all() for z in ours)
    both = volumes.slices(tmp_path / "mr.nii.gz", settings, reference=tmp_path / "mr" / "001")
    assert list(both) == [2, 3, 4]


def change(path, **tags):
    made = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    path.write_bytes(content(made))


# Files 000 to 004 lie at z = 3, 12, 6, 0, 9 mm.
REFUSED = {
    "another patient": ({"PatientID": "somebody"}, "files of 2 patients under one Series"),
    "another orientation": (
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        "several orientations .*000 and 002",
    ),
    "another size": ({"Rows": 6, "Columns": 2}, "slices of 2 sizes .2 × 6, 4 × 3 pixels"),
    "another spacing in the plane": ({"PixelSpacing": [2, 0.6]}, "several values of PixelSpacing"),
    "a position twice": ({"ImagePositionPatient": [0, 0, 3]}, "1 slice.* where another one lies"),
    "no position": ({"ImagePositionPatient": None}, "file 002 lacks the ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "002 lacks the ImageOrientationPat"),
    "no spacing": ({"PixelSpacing": None}, "002 lacks the PixelSpacing"),
    "an uneven step": ({"ImagePositionPatient": [0, 0, 5.5]}, "not at 2 place.*: 2.5 mm between"),
    "a slice aside": ({"ImagePositionPatient": [1, 0, 6]}, "off a straight line.*002 by 1 mm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_series_that_is_no_volume_is_refused(tmp_path, case):
    tags, match = REFUSED[case]
    made_dicom.write_series(tmp_path, VOXELS)
    change(tmp_path / "002", **tags)
    with pytest.raises(ValueError, match=match) as caught:
        volumes.slices(tmp_path / "000", Volumes(slices=1))
    assert "somebody" not in str(caught.value)


def test_a_missing_slice_is_found_and_rounded_positions_are_no_gap(tmp_path):
    made_dicom.write_series(tmp_path, VOXELS)
    change(tmp_path / "002", ImagePositionPatient=[0, 0, 6.2])  # within a tenth of 3 mm
    assert np.asarray(dicom_series.volume(tmp_path / "000").dataobj).shape == (4, 3, 5)
    (tmp_path / "002").unlink()
    with pytest.raises(DicomError, match="but not at 1 place.* 6 mm between 000 and 004"):
        dicom_series.volume(tmp_path / "000")


def test_what_is_bright_is_high_in_a_volume_of_monochrome1(tmp_path):
    made_dicom.write_series(tmp_path, VOXELS, PhotometricInterpretation="MONOCHROME1")
    assert (np.asarray(dicom_series.volume(tmp_path / "000").dataobj) == -VOXELS).all()


def test_one_slice_is_no_volume_and_colour_is_none(tmp_path):
    made_dicom.write_series(tmp_path / "one", VOXELS[:, :, :1])
    with pytest.raises(DicomError, match="one slice"):
        dicom_series.volume(tmp_path / "one" / "000")
    tags = {"ImageOrientationPatient": made_dicom.AXIAL, "PixelSpacing": [1, 1]}
    for z in range(2):
        uid = {"SeriesInstanceUID": "1.2.3"}
        file = tmp_path / "colour" / str(z)
        made_dicom.write(file, COLOURS, ImagePositionPatient=[0, 0, z], **tags, **uid)
    with pytest.raises(DicomError, match="in colour"):
        dicom_series.volume(tmp_path / "colour" / "0")


def test_frames_that_share_one_position_are_refused_with_their_number(tmp_path):
    tags = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": made_dicom.AXIAL}
    path = made_dicom.write(
        tmp_path / "cine", np.zeros((8, 2, 2), np.uint8), PixelSpacing=[1, 1], **tags
    )
    with pytest.raises(DicomError, match="has 8 frames, but states the positions of 0"):
        dicom_series.volume(path)


def test_localizers_and_other_series_in_the_folder_do_not_belong_to_a_series(tmp_path):
    made_dicom.write_series(tmp_path, VOXELS, SeriesInstanceUID="1.2.3")
    (tmp_path / "other").mkdir()
    made_dicom.write_series(tmp_path / "other", VOXELS, SeriesInstanceUID="1.2.3")
    tags = {"SeriesInstanceUID": "1.2.3", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    made_dicom.write(tmp_path / "scout", row(0, 1), **tags)
    made_dicom.write(tmp_path / "alone", row(0, 1))
    (tmp_path / "notes.txt").write_text("not DICOM")
    names = [path.name for path in dicom.series_files(tmp_path / "003")]
    assert names == ["000", "001", "002", "003", "004"]
    assert dicom.series_files(tmp_path / "alone") == [tmp_path / "alone"]
    assert dicom.series_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_folder_is_read_once_until_it_changes(tmp_path, monkeypatch):
    read, seen = dicom._header, []
    monkeypatch.setattr(dicom, "_header", lambda file: seen.append(file.name) or read(file))
    made_dicom.write_series(tmp_path, VOXELS)
    for name in ("000", "001", "002"):
        assert len(dicom.series_files(tmp_path / name)) == 5
    assert len(seen) == 5
    (tmp_path / "004").unlink()
    assert len(dicom.series_files(tmp_path / "000")) == 4


# ------------------------------------------------------------------------------- the manifest


def test_the_hash_of_a_series_covers_all_its_files(tmp_path):
    made_dicom.write_series(tmp_path / "mr", VOXELS)
    files = sorted((tmp_path / "mr").iterdir())
    single = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    row = {"sample_id": "s", "path": "mr/000"}
    contents, hashes, problem = manifest.read_files(row, tmp_path, parts=dicom.series_files)
    assert problem == "" and set(contents) == set(files)
    assert hashes["sha256"] == hashlib.sha256("".join(single).encode()).hexdigest()
    change(files[3], Manufacturer="another")
    _, _, problem = manifest.read_files(row | hashes, tmp_path, parts=dicom.series_files)
    assert problem.startswith("mr/000 (s) has changed")
    contents, hashes, _ = manifest.read_files(row, tmp_path)  # an image of its own
    assert list(contents) == [files[0]]
    assert hashes["sha256"] == hashlib.sha256(files[0].read_bytes()).hexdigest()


def test_a_file_of_a_series_that_leads_out_of_the_data_folder_is_refused(tmp_path):
    made_dicom.write_series(tmp_path / "data" / "mr", VOXELS)
    outside = (tmp_path / "data" / "mr" / "003").rename(tmp_path / "003")
    (tmp_path / "data" / "mr" / "003").symlink_to(outside)
    row = {"sample_id": "s", "path": "mr/000"}
    *_, problem = manifest.read_files(row, tmp_path / "data", parts=dicom.series_files)
    assert "leads out of the data folder" in problem
