"""medlib.data.pictures: the image of a sample, or the central slice of a volume."""

import numpy as np
import pandas as pd
import pytest

from medlib.data import packs, pictures

INDEX = pd.DataFrame(
    {
        "sample_id": ["b", "a", "b", "b", "c", "c", "c", "c"],
        "slice": [30, 0, 10, 20, 4, 3, 2, 1],
    }
)


def test_of_a_volume_it_is_the_slice_in_the_middle_whatever_the_order_of_rows():
    # b: 10, 20, 30 in rows 2, 3, 0. c: 1, 2, 3, 4: of two central slices the later, as thumbnails.
    assert pictures.central(INDEX, ["c", "a", "b", "a"]).tolist() == [5, 1, 3, 1]


def test_samples_that_are_not_packed_are_listed():
    with pytest.raises(ValueError, match=r"(?s)- x\n.*- y\n.*01_prepare_data"):
        pictures.central(INDEX, ["a", "x", "y"])


def test_pictures_are_those_of_the_pack_and_damage_is_found(tmp_path):
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    digests = packs.image_digests(images)
    pack = packs.Pack(packs.Checked.open(tmp_path / "images.npy", digests), INDEX, {})
    read = pictures.of_samples(pack, ["b", "c"])
    np.testing.assert_array_equal(read, images[[3, 5]])
    assert read.dtype == np.uint8
    digests[5] += 1
    pack = packs.Pack(packs.Checked.open(tmp_path / "images.npy", digests), INDEX, {})
    assert pictures.of_samples(pack, ["b"]).shape == (1, 4, 6, 3)
    with pytest.raises(ValueError, match="Image 5 in .* is damaged"):
        pictures.of_samples(pack, ["c"])
