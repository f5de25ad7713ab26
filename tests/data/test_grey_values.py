"""Within a task all stored values become 8-bit values in one way, or the image is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from made_folders import card, picture, prepare, refusal, save
from PIL import Image, TiffImagePlugin

from medlib.data import cards, decoding, passport
from medlib.errors import ManifestError

RAMP = np.linspace(0, 1824, 64 * 48).reshape(48, 64)  # 12-bit values; brighter below


def grey(path, *how):
    return np.asarray(decoding.decode(path, None, *how).convert("L"), float)


def write_png(path, values):
    """A 16-bit PNG of H×W×C values, chunk by chunk: Pillow writes no 16-bit colour."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(raw), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


def stretched(values):
    low, high = np.percentile(values, [0.5, 99.5])
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1))


def reason(path, *how):
    with pytest.raises(ValueError) as caught:
        decoding.decode(path, None, *how)
    return str(caught.value)


# ------------------------------------------------------------------------------- deep and inverted


@pytest.mark.parametrize("bits", [16, 8])
def test_white_is_zero_is_not_inverted(tmp_path, bits):
    """When Pillow writes such a TIFF, it inverts 8-bit values, but no 16-bit values."""
    values = np.rint(RAMP * (30 if bits == 16 else 255 / 1824))
    stored = (65535 - values).astype(np.uint16) if bits == 16 else values.astype(np.uint8)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 0  # WhiteIsZero
    Image.fromarray(stored).save(tmp_path / "x.tif", tiffinfo=tags)
    with Image.open(tmp_path / "x.tif") as written:
        assert written.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0
    expected = stretched(values) if bits == 16 else values
    assert np.abs(grey(tmp_path / "x.tif") - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_12_bit_values_in_a_16_bit_png_are_stretched_whatever_its_channels(tmp_path, channels):
    values = np.rint(np.repeat(RAMP[..., None], channels, axis=2))
    if channels in (2, 4):
        values[..., -1] = 65535  # opaque
    path = write_png(tmp_path / "x.png", values)
    assert np.abs(grey(path) - stretched(np.rint(RAMP))).max() <= 1
    assert "its highest value is 1824, of 65535" in reason(path, "as_stored")


def test_a_16_bit_png_keeps_its_colours(tmp_path):
    values = np.zeros((4, 4, 3))
    values[:, 2:, 0], values[:2, :, 1], values[..., 2] = 65535, 65535, 0
    found = np.asarray(decoding.decode(write_png(tmp_path / "x.png", values)))
    assert (found == values / 257).all()


def test_a_16_bit_pgm_is_as_deep_as_its_header_says(tmp_path):
    values = np.rint(RAMP * 32).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5\n64 48\n65535\n" + values.tobytes())
    assert decoding.stored(tmp_path / "x.pgm") == ("PPM", 16, 64, 48)
    assert np.abs(grey(tmp_path / "x.pgm", "as_stored") - values / 257).max() <= 1


def test_half_transparent_values_of_16_bits_lie_over_black(tmp_path):
    values = np.full((4, 4, 2), 40000.0)
    values[..., 1] = 65535
    values[:2, :, 1] = 32768  # half
    found = grey(write_png(tmp_path / "x.png", values), "as_stored")
    assert found[3, 0] == 156 and found[0, 0] == 78  # 40000 / 257, and half of it


def test_the_same_drawing_in_8_and_16_bits_gives_the_same_greys_under_either_rule(tmp_path):
    eight = np.rint(RAMP / 1824 * 130 + 20).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "16.png")
    for rule in ("as_stored", "stretched", (10.0, 200.0)):
        if rule == (10.0, 200.0):  # these are stored values, whatever the depth
            assert np.abs(grey(tmp_path / "8.png", rule) - (eight - 10.0) / 190 * 255).max() <= 0.5
        else:
            assert (grey(tmp_path / "8.png", rule) == grey(tmp_path / "16.png", rule)).all()
    assert (grey(tmp_path / "8.png", "as_stored") == eight).all()
    assert (grey(tmp_path / "8.png", "stretched") == stretched(eight)).all()


def test_a_stretched_jpeg_is_not_decoded_as_it_is_stored(tmp_path):
    dim = Image.fromarray(np.rint(RAMP / 1824 * 50).astype(np.uint8)).resize((640, 480))
    dim.save(tmp_path / "x.jpg", quality=95)
    plain = decoding.decode_to_resize(tmp_path / "x.jpg", 32)
    assert isinstance(plain, torch.Tensor) and plain.max() < 60
    found = decoding.decode_to_resize(tmp_path / "x.jpg", 32, None, "stretched")
    assert np.asarray(found).max() == 255 and np.asarray(found).min() == 0


def test_deep_colours_that_would_be_cut_to_8_bits_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    values = np.repeat(np.rint(RAMP).astype("<u2")[..., None], 3, axis=2)
    entries = [(256, 4, 64), (257, 4, 48), (259, 3, 1), (262, 3, 2), (277, 3, 3), (278, 4, 48)]
    entries += [(258, 3, None), (273, 4, None), (279, 4, values.nbytes)]
    place = 8 + 2 + 12 * len(entries) + 4
    ifd = struct.pack("<H", len(entries))
    for tag, kind, value in sorted(entries):
        count = 3 if tag == 258 else 1
        value = {258: place, 273: place + 6}.get(tag, value)
        short = kind == 3 and count == 1
        ifd += struct.pack("<HHI", tag, kind, count) + struct.pack(
            "<HH" if short else "<I", *([value, 0] if short else [value])
        )
    ifd += struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + ifd + values.tobytes())
    assert reason(path) == "it is a colour TIFF of 16 bits: save it as a PNG"


@pytest.mark.parametrize("rule", ["as_stored", "window"])
def test_rules_that_do_not_fit_a_file_are_refused_with_those_that_do(tmp_path, rule):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "x.tif")
    assert "stretched" in reason(tmp_path / "x.tif", rule)


# ------------------------------------------------------------------- alpha, frames, pages, blanks


def test_a_picture_that_cannot_be_seen_is_refused(tmp_path):
    drawing = np.rint(RAMP / 1824 * 255).astype(np.uint8)
    opaque, black = np.full_like(drawing, 255), np.zeros_like(drawing)
    clear = Image.fromarray(np.dstack([drawing] * 3 + [black]))
    clear.save(tmp_path / "clear.png")
    assert reason(tmp_path / "clear.png").startswith("it is transparent everywhere")
    Image.fromarray(np.dstack([black] * 3 + [drawing])).save(tmp_path / "alpha.png")
    assert "the picture is its alpha channel" in reason(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([opaque] * 3 + [drawing])).save(tmp_path / "white.png")
    assert (grey(tmp_path / "white.png") == drawing).all()  # white over black is the picture
    values = np.dstack([RAMP * 30, np.zeros_like(RAMP)])
    assert "transparent everywhere" in reason(write_png(tmp_path / "deep.png", values))


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.webp", "x.png"])
def test_a_file_of_several_images_is_refused_with_their_number(tmp_path, name):
    first, *others = (picture(seed).convert("L") for seed in range(3))
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert reason(tmp_path / name).startswith("it holds 3 images (pages or frames): save the one")


def test_pages_that_a_tiff_marks_as_small_copies_are_passed_over(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (10, 200, 30)]
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "x.tif"), True) as writer:
        for page, kind in zip(pages, (1, 0, 1), strict=True):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[254] = kind
            page.save(writer, format="TIFF", tiffinfo=tags)
            writer.newFrame()
    assert (grey(tmp_path / "x.tif") == 200).all()


def test_an_image_beyond_pillows_limit_is_refused_in_words(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "x.png")
    for limit in (4000, 1000):  # Pillow itself refuses more than twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "must be made smaller first" in reason(tmp_path / "x.png")


# --------------------------------------------------------------------------------- within a task


def write_mixed(root):
    for k in range(12):
        drawing = np.asarray(picture(k).convert("L"))
        deep = drawing.astype(np.uint16) * 257
        kind = deep if k % 2 else drawing
        save(Image.fromarray(kind), root / "set" / "ab"[k % 2] / f"{k}.png")


def test_8_and_16_bits_in_one_task_need_a_rule_in_the_card(tmp_path):
    write_mixed(tmp_path)
    message = refusal(card(), tmp_path, quarantine=True)
    assert "6 of 12 images have more than 8 bits (b-1)" in message
    assert "Write `grey_values: stretched` or `grey_values: as_stored` in the card" in message
    for rule in ("stretched", "as_stored"):
        prepared = prepare(card(grey_values=rule), tmp_path)
        assert prepared.stored["bits"].value_counts().to_dict() == {8: 6, 16: 6}


def test_the_passport_shows_depth_size_and_kind_of_file_by_class(tmp_path):
    write_mixed(tmp_path)
    rows, excluded, pairs, stored, notes, _ = prepare(card(grey_values="stretched"), tmp_path)
    numbers = passport.table(rows, ["a", "b"], pairs, excluded, stored, notes)
    shown = numbers[numbers["part"] == passport.FILE_TYPE].set_index(["class", "name"])["count"]
    assert shown["a", "PNG, 8 bits"] == shown["b", "PNG, 16 bits"] == 6
    assert shown["a", "PNG, 16 bits"] == shown["b", "PNG, 8 bits"] == 0
    assert set(numbers["name"][numbers["part"] == passport.IMAGE_SIZE]) == {"96×80"}
    assert numbers["name"][numbers["part"] == "notes"].tolist() == list(notes)


@pytest.mark.parametrize("rule", ["streched", [5], [9, 1], [0, "1"], True])
def test_a_rule_that_is_none_is_refused_with_the_ones_there_are(tmp_path, rule):
    cards_text = cards.text(card()).replace("grey_values: ''", f"grey_values: {rule}")
    (tmp_path / "toy.yaml").write_text(cards_text)
    with pytest.raises(ManifestError, match="grey_values is .*as_stored, stretched, window, or"):
        cards.read("toy", tmp_path)


def test_a_rule_of_two_values_is_written_and_read_back(tmp_path):
    task = card(grey_values=[-160, 240])
    assert task.grey_values == (-160.0, 240.0)
    (tmp_path / "toy.yaml").write_text(cards.text(task))
    assert cards.read("toy", tmp_path) == task
