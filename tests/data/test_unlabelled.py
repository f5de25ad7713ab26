"""medlib.data.unlabelled: every file of a folder is a sample, or named with the reason."""

import shutil

import made_dicom
import nibabel
import numpy as np
import pytest
from made_folders import card, picture, reasons, save

from medlib.data import unlabelled
from medlib.data.cards import Volumes
from medlib.errors import ManifestError

CENTRAL, TUMOUR = Volumes(slices=1), Volumes(choice="largest_tumour", slices=1)


def volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).random((8, 8, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def test_images_and_dicom_files_are_samples_and_all_else_is_named(tmp_path):
    save(picture(0), tmp_path / "b" / "x.PNG")
    save(picture(1), tmp_path / "a.jpg")
    made_dicom.write(tmp_path / "b" / "IM1", np.arange(64, dtype=np.uint16).reshape(8, 8))
    made_dicom.write(tmp_path / "b" / "report", SOPClassUID=made_dicom.SR, Modality="SR")
    (tmp_path / "b" / "labels.csv").write_text("a,b")
    (tmp_path / "c.dcm").write_bytes(b"no DICOM")
    volume(tmp_path / "head.nii.gz")
    (tmp_path / ".hidden").write_text("")
    found = unlabelled.in_folder(tmp_path)
    assert found.rows["sample_id"].tolist() == ["a.jpg", "b/IM1", "b/x.PNG"]
    assert found.rows["path"].tolist() == found.rows["sample_id"].tolist()
    left = reasons(found.excluded)
    assert set(left) == {"b/report", "b/labels.csv", "head.nii.gz"}
    assert left["head.nii.gz"] == "no image, by its name and content"
    assert reasons(found.problems) == {"c.dcm": "it is no DICOM file: copy it again"}
    assert len(list(unlabelled.left_out(found))) == 4


def test_volumes_are_nifti_files_and_dicom_series(tmp_path):
    volume(tmp_path / "one.nii.gz")
    volume(tmp_path / "one_seg.nii.gz")
    made_dicom.write_series(tmp_path / "two", np.arange(128, dtype=np.uint16).reshape(4, 8, 4))
    save(picture(0), tmp_path / "x.png")
    found = unlabelled.in_folder(tmp_path, CENTRAL)
    first, series = found.rows["sample_id"]
    assert first == "one.nii.gz" and series.startswith("two/")
    left = reasons(found.excluded)
    assert left == {
        "one_seg.nii.gz": "a mask, by its name",
        "x.png": "no volume, by its name and content",
    }


def test_volumes_that_need_a_mask_take_the_one_beside_them_or_are_refused_together(tmp_path):
    for case in ("p1", "p2", "p3"):
        volume(tmp_path / case / "flair.nii.gz")
    made_dicom.write_series(tmp_path / "p4", np.arange(128, dtype=np.uint16).reshape(4, 8, 4))
    volume(tmp_path / "p1" / "flair_seg.nii.gz")
    volume(tmp_path / "p2" / "seg.nii.gz")
    volume(tmp_path / "p2" / "flair_mask.nii.gz")  # named as a mask? not by BraTS: another volume
    with pytest.raises(ManifestError) as error:
        unlabelled.in_folder(tmp_path, TUMOUR)
    said = str(error.value)
    assert "choice largest_tumour" in said and "p3/flair.nii.gz" in said and "_seg.nii.gz" in said
    assert "p1" not in said and "p4/" in said
    shutil.rmtree(tmp_path / "p4")
    volume(tmp_path / "p3" / "other_seg.nii.gz")
    (tmp_path / "p2" / "flair_mask.nii.gz").unlink()
    rows = unlabelled.in_folder(tmp_path, TUMOUR).rows
    assert rows["mask"].tolist() == ["p1/flair_seg.nii.gz", "p2/seg.nii.gz", "p3/other_seg.nii.gz"]


def test_a_folder_without_a_sample_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="There is no image in .* It is empty"):
        unlabelled.in_folder(tmp_path)
    with pytest.raises(ManifestError, match="none is no folder"):
        unlabelled.in_folder(tmp_path / "none")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ManifestError, match="There is no image in .*\n.*x.txt: no image"):
        unlabelled.in_folder(tmp_path)


def test_a_card_finds_its_samples(tmp_path):
    for number, label in enumerate("abab"):
        save(picture(number), tmp_path / "set" / label / f"{number}.png")
    (tmp_path / "set" / "x.txt").write_text("")
    found = unlabelled.of_card(card(), tmp_path)
    assert sorted(found.rows["path"]) == [
        f"set/{label}/{n}.png" for n, label in ((0, "a"), (2, "a"), (1, "b"), (3, "b"))
    ]
    assert len(list(unlabelled.left_out(found))) == 1
