"""Layouts: folders as they are distributed become rows; all else is listed with a reason."""

import os
import time

import numpy as np
import pandas as pd
import pytest

from medlib.data import cards, manifest, phantoms
from medlib.data.layouts import base, generic, reader
from medlib.errors import ManifestError


def touch(root, *paths):
    """Files of distinct bytes; layouts read names and tables, never pixels."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"content of " + path.encode())


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def card(layout, classes, **changes):
    fields = {"task": "toy", "title": "Toy", "modality": "drawing", "licence": "CC0"}
    fields |= {"citation": "nobody", "source": "https://example.org", "folder": "set"}
    fields |= {"classes": tuple(classes.split()), "layout": layout}
    return cards.Card(**fields | changes)


def reasons(frame):
    return dict(zip(frame["name"], frame["reason"], strict=True))


def column(found, name):
    """One column of the rows, by sample id."""
    return dict(zip(found.rows["sample_id"], found.rows[name], strict=True))


# --------------------------------------------------------------------------------------- reading

CLASSES = card("folder_per_class", "a b")


def test_a_card_without_a_layout_is_told_what_to_write(tmp_path):
    with pytest.raises(ManifestError, match=r"Write data_manifests/toy\.csv.*kermany, ichallenge"):
        reader.read(card("", "a b"), tmp_path)


def test_an_unknown_layout_is_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(ManifestError, match=r"'kermani'.*Did you mean 'kermany'\?.*toy\.yaml"):
        reader.read(card("kermani", "a b"), tmp_path)


def test_a_missing_data_set_says_where_to_get_it_and_where_it_belongs(tmp_path):
    with pytest.raises(ManifestError) as caught:
        reader.read(card("kermany", "a b", other_folders=("CellData",)), tmp_path)
    for part in ("toy", "'set' or 'CellData'", str(tmp_path), "https://example.org"):
        assert part in str(caught.value)


def test_the_first_folder_of_the_card_that_is_there_is_read(tmp_path):
    touch(tmp_path / "second", "a/1.png", "b/2.png")
    touch(tmp_path / "third", "a/3.png")
    both = card("folder_per_class", "a b", other_folders=("second", "third"))
    assert column(reader.read(both, tmp_path), "path") == {
        "a-1": "second/a/1.png",
        "b-2": "second/b/2.png",
    }


def test_every_wrong_option_is_listed_with_the_ones_there_are(tmp_path):
    options = {"modalitie": "t1", "require": "t1", "reference": 3}
    with pytest.raises(ManifestError) as caught:
        reader.read(card("ucsf_pdgm", "a b", layout_options=options), tmp_path)
    message = str(caught.value)
    assert "data_manifests/toy.yaml (layout ucsf_pdgm)" in message
    assert "Unknown option 'modalitie'. Did you mean 'modality'?" in message
    assert "The option 'modality' is missing. There are: modality, require, reference." in message
    assert "The option 'require' is 't1', not of type list." in message
    assert "The option 'reference' is 3, not of type str." in message
    with pytest.raises(ManifestError, match=r"'patient'\. Choose one of: none"):
        reader.read(card("kermany", "a b", layout_options={"patient": "x"}), tmp_path)


def test_a_folder_without_samples_is_an_error_that_gives_the_reasons(tmp_path):
    touch(tmp_path / "set", "c/1.png", "c/2.png")
    with pytest.raises(ManifestError, match=r"toy: no sample was found in .*set.*\n  - c: the "):
        reader.read(CLASSES, tmp_path)


def test_hidden_files_and_those_of_macos_are_no_part_of_a_data_set(tmp_path):
    touch(tmp_path / "set", "a/1.png", "b/2.png", "a/._1.png", ".DS_Store", "a/.thumbs/3.png")
    touch(tmp_path / "set", "__MACOSX/a/._1.png", "__MACOSX/a/4.png", "b/__MACOSX/5.png")
    found = reader.read(CLASSES, tmp_path)
    assert found.rows["sample_id"].tolist() == ["a-1", "b-2"]
    assert found.excluded.empty and found.problems.empty


def test_upper_case_endings_spaces_and_other_alphabets_are_read(tmp_path):
    names = ["a/Ärztin 1.JPG", "a/x.y.Jpeg", "b/眼 底.TIFF", "b/z.webp"]
    touch(tmp_path / "set", *names)
    assert column(reader.read(CLASSES, tmp_path), "path") == {
        "a-Ärztin 1": "set/a/Ärztin 1.JPG",
        "a-x.y": "set/a/x.y.Jpeg",
        "b-z": "set/b/z.webp",
        "b-眼 底": "set/b/眼 底.TIFF",
    }


def test_a_linked_folder_is_read_and_a_loop_ends(tmp_path):
    touch(tmp_path, "disk/1.png", "set/b/2.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path)
    (tmp_path / "set" / "b" / "again").symlink_to(tmp_path / "set" / "b")
    found = reader.read(CLASSES, tmp_path)
    assert {"a-1", "b-2"} <= set(found.rows["sample_id"])
    assert len(found.rows) < 20


def test_a_second_copy_of_a_file_is_left_out_and_says_of_which(tmp_path):
    touch(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    (tmp_path / "set" / "a" / "1.png").write_bytes(b"content of a/1.jpg")
    found = reader.read(CLASSES, tmp_path)
    assert column(found, "path") == {"a-1": "set/a/1.jpg", "b-2": "set/b/2.jpg"}
    assert reasons(found.excluded) == {"set/a/1.png": "a second copy of set/a/1.jpg"}
    assert found.problems.empty


def test_different_files_of_one_id_are_a_problem_and_none_is_taken(tmp_path):
    touch(tmp_path / "set", "a/1.jpg", "a/1.png", "b/2.jpg")
    found = reader.read(CLASSES, tmp_path)
    assert found.rows["sample_id"].tolist() == ["b-2"]
    assert reasons(found.problems) == {
        "a-1": "2 files have this id: set/a/1.jpg, set/a/1.png",
    }


def test_copies_in_the_folders_of_two_classes_are_a_problem(tmp_path):
    images = ["train/NORMAL/IM-1-1.jpeg", "train/PNEUMONIA/IM-1-1.jpeg", "test/NORMAL/IM-2-1.jpeg"]
    touch(tmp_path / "set", *images)
    (tmp_path / "set" / images[0]).write_bytes(b"content of " + images[1].encode())
    found = reader.read(card("kermany", "normal pneumonia"), tmp_path)
    assert found.rows["sample_id"].tolist() == ["test-IM-2-1"]
    files = f"set/{images[0]}, set/{images[1]}"
    assert reasons(found.problems) == {"train-IM-1-1": f"2 files have this id: {files}"}


def test_all_columns_are_text_and_what_the_data_lack_has_no_column(tmp_path):
    touch(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    found = reader.read(CLASSES, tmp_path)
    assert found.rows.columns.tolist() == ["sample_id", "patient_id", "path", "label"]
    assert found.excluded.columns.tolist() == ["name", "reason"]
    assert found.problems.columns.tolist() == ["name", "reason"]
    assert all(isinstance(value, str) for value in found.rows.to_numpy().ravel())


# -------------------------------------------------------------------------------------- kermany

CHEST = card("kermany", "normal pneumonia", other_folders=("CellData",), split="official")


def test_a_radiographs_patient_is_in_its_name_and_counts_anew_in_each_folder(tmp_path):
    touch(
        tmp_path / "set",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0383-0001-0002.jpeg",
        "train/PNEUMONIA/person7_bacteria_24.jpeg",
        "train/PNEUMONIA/person7_virus_1.jpeg",
        "test/NORMAL/IM-0115-0001.jpeg",
        "test/PNEUMONIA/person7_virus_9.jpeg",
    )
    found = reader.read(CHEST, tmp_path)
    assert column(found, "patient_id") == {
        "train-IM-0115-0001": "train-IM-0115",
        "train-NORMAL2-IM-0383-0001": "train-NORMAL2-IM-0383",
        "train-NORMAL2-IM-0383-0001-0002": "train-NORMAL2-IM-0383",
        "train-person7_bacteria_24": "train-person7",
        "train-person7_virus_1": "train-person7",
        "test-IM-0115-0001": "test-IM-0115",
        "test-person7_virus_9": "test-person7",
    }
    one = found.rows.set_index("sample_id").loc["train-person7_virus_1"]
    assert (one.label, one.split) == ("pneumonia", "train")
    assert one.path == "set/train/PNEUMONIA/person7_virus_1.jpeg"
    assert found.rows["label"].value_counts().to_dict() == {"normal": 4, "pneumonia": 3}
    assert found.excluded.empty and found.problems.empty


def test_a_patient_of_mendeleys_later_versions_is_one_patient_in_both_folders(tmp_path):
    touch(
        tmp_path / "set",
        "train/NORMAL/NORMAL-1003233-0001.jpeg",
        "train/PNEUMONIA/BACTERIA-1008087-0001.jpeg",
        "test/PNEUMONIA/VIRUS-1008087-0002.jpeg",
    )
    assert column(reader.read(CHEST, tmp_path), "patient_id") == {
        "train-NORMAL-1003233-0001": "1003233",
        "train-BACTERIA-1008087-0001": "1008087",
        "test-VIRUS-1008087-0002": "1008087",
    }


def test_kaggles_inner_copy_and_its_sixteen_validation_images_are_left_out(tmp_path):
    inside = ["train/NORMAL/IM-1-1.jpeg", "train/PNEUMONIA/person1_virus_1.jpeg"]
    inside += ["test/NORMAL/IM-1-1.jpeg", "val/NORMAL/NORMAL2-IM-1427-0001.jpeg"]
    touch(tmp_path / "set", *inside, *(f"chest_xray/{path}" for path in inside))
    found = reader.read(CHEST, tmp_path)
    assert found.rows["path"].str.startswith(("set/train/", "set/test/")).tolist() == [True] * 3
    reason = "in Kaggle's val folder: its patients are in train too, and 16 cannot validate"
    assert reasons(found.excluded) == {
        "chest_xray": "another train and test; those of set are read",
        "val-NORMAL2-IM-1427-0001": reason,
    }
    assert found.problems.empty


def test_radiographs_are_found_in_a_folder_within_and_beside_retinal_scans(tmp_path):
    touch(
        tmp_path / "CellData",
        "chest_xray/train/NORMAL/IM-1-1.jpeg",
        "chest_xray/train/PNEUMONIA/person1_virus_1.jpeg",
        "chest_xray/test/NORMAL/IM-1-1.jpeg",
        "OCT/train/CNV/CNV-1-1.jpeg",
        "OCT/train/NORMAL/NORMAL-1-1.jpeg",
        "OCT/test/CNV/CNV-2-1.jpeg",
    )
    found = reader.read(CHEST, tmp_path)
    assert found.rows["path"].str.startswith("CellData/chest_xray/").tolist() == [True] * 3
    assert reasons(found.excluded) == {
        "OCT": "another train and test; those of CellData/chest_xray are read"
    }


def test_two_sets_of_radiographs_side_by_side_are_refused_by_name(tmp_path):
    for version in ("v2", "v3"):
        touch(tmp_path / "set" / version, "train/NORMAL/IM-1-1.jpeg", "test/NORMAL/IM-1-1.jpeg")
    with pytest.raises(ManifestError, match=r"train and test is there several times: v2, v3"):
        reader.read(CHEST, tmp_path)


def test_radiographs_without_a_patient_number_or_a_class_are_problems(tmp_path):
    touch(
        tmp_path / "set",
        "train/NORMAL/IM-0001-0001.jpeg",
        "train/NORMAL/copy.jpeg",
        "train/COVID/person3_virus_1.jpeg",
        "train/NORMAL/readme.txt",  # no image, no word about it
        "test/NORMAL/IM-0001-0001.jpeg",
    )
    found = reader.read(CHEST, tmp_path)
    assert found.rows["sample_id"].tolist() == ["test-IM-0001-0001", "train-IM-0001-0001"]
    assert reasons(found.problems) == {
        "train-copy": "no patient number in the file name",
        "train-person3_virus_1": "labelled 'covid', not one of normal, pneumonia",
    }


def test_a_missing_half_of_a_data_set_is_an_incomplete_download(tmp_path):
    touch(tmp_path / "set", "train/NORMAL/IM-0001-0001.jpeg")
    with pytest.raises(ManifestError, match=r"train and test is missing: is the download comp"):
        reader.read(CHEST, tmp_path)


# ------------------------------------------------------------------------------------ iChallenge

PALM = card(
    "ichallenge",
    "other pathologic_myopia",
    split="official",
    layout_options={"letters": {"P": "pathologic_myopia", "H": "other", "N": "other"}},
)
ADAM = card(
    "ichallenge",
    "other amd",
    split="official",
    layout_options={
        "letters": {"A": "amd", "N": "other"},
        "folders": {"AMD": "amd", "Non-AMD": "other"},
    },
)


def write_palm(root, train, test, *table):
    touch(root / "set" / "PALM-Training400", *train)
    touch(root / "set" / "PALM-Validation400", *test)
    if table:
        write(root / "set" / "PALM-Validation400" / "labels.csv", "imgName,Label", *table)


def test_fundus_labels_come_from_names_in_training_and_from_the_table_in_testing(tmp_path):
    train = ["H0001.jpg", "N0001.jpg", "p0001.JPG"]
    write_palm(tmp_path, train, ["V0001.jpg", "V0002.jpg"], "V0002.jpg,1", "V0001,0")
    found = reader.read(PALM, tmp_path)
    assert found.rows.columns.tolist() == ["sample_id", "patient_id", "path", "label", "split"]
    assert found.rows.to_numpy().tolist() == [
        ["H0001", "H0001", "set/PALM-Training400/H0001.jpg", "other", "train"],
        ["N0001", "N0001", "set/PALM-Training400/N0001.jpg", "other", "train"],
        ["p0001", "p0001", "set/PALM-Training400/p0001.JPG", "pathologic_myopia", "train"],
        ["V0001", "V0001", "set/PALM-Validation400/V0001.jpg", "other", "test"],
        ["V0002", "V0002", "set/PALM-Validation400/V0002.jpg", "pathologic_myopia", "test"],
    ]


def test_annotations_are_no_photographs_and_the_official_workbook_tells_the_labels(tmp_path):
    touch(
        tmp_path / "set",
        "PALM-Training400/PALM-Training400/H0001.jpg",
        "PALM-Training400/PALM-Training400/P0001.jpg",
        "PALM-Training400-Annotation-D&F/Disc_Masks/H0001.bmp",
        "PALM-Training400-Annotation-Lesion/Lesion_Masks/Atrophy/P0001.bmp",
        "Annotation-Training400/H0001.png",
        "PALM-Validation400/V0001.jpg",
        "PALM-Validation400/V0002.jpg",
        "PALM-Validation400/Disc_Masks/V0001.bmp",
    )
    truth = tmp_path / "set" / "PALM-Validation-GT"
    truth.mkdir()
    (truth / "~$PM_Label.xlsx").write_bytes(b"Excel has it open")
    names = {"ID": [1, 2], "imgName": ["V0001.jpg", "V0002.jpg"]}
    table = pd.DataFrame(names | {"Label": [0, 1], "Fovea_X": [1053.4, None]})
    table.to_excel(truth / "PM_Label_and_Fovea_Location.xlsx", index=False)
    found = reader.read(PALM, tmp_path)
    assert column(found, "label") == {
        "H0001": "other",
        "P0001": "pathologic_myopia",
        "V0001": "other",
        "V0002": "pathologic_myopia",
    }
    assert found.excluded.empty and found.problems.empty


def test_amd_labels_come_from_names_or_folders_that_do_not_contradict(tmp_path):
    touch(
        tmp_path / "set",
        "Training400/AMD/A0001.jpg",
        "Training400/non-amd/N0001.jpg",
        "Training400/Non-AMD/image7.jpg",
        "Training400/AMD/N0002.jpg",
        "Training400/readme.png",
        "Validation400/V0001.jpg",
    )
    write(tmp_path / "set" / "labels.csv", "image;AMD Label", "V0001.jpg;1")
    found = reader.read(ADAM, tmp_path)
    assert column(found, "label") == {
        "A0001": "amd",
        "N0001": "other",
        "image7": "other",
        "V0001": "amd",
    }
    assert reasons(found.problems) == {
        "N0002": "its name and its folder AMD tell different classes",
        "readme": "neither its name nor its folder Training400 tells a class",
    }


def test_a_training_name_that_tells_no_label_is_never_taken_as_other(tmp_path):
    write_palm(tmp_path, ["H0001.jpg", "Q0002.jpg", "thumbnail.png"], ["V1.jpg"], "V1.jpg,0")
    found = reader.read(PALM, tmp_path)
    assert found.rows["sample_id"].tolist() == ["H0001", "V1"]
    assert set(found.problems["name"]) == {"Q0002", "thumbnail"}


def test_each_disagreement_of_labels_and_images_has_its_own_reason_and_the_rest_is_read(tmp_path):
    test = [f"V000{k}.jpg" for k in range(1, 9)]
    table = ["V0001.jpg,0", "V0002.jpg,2", "V0003.jpg,1", "V0003,0", "V0009.jpg,1", "V0005.jpg,"]
    table += [*["V0006.jpg,1"] * 3, ",1", "V0007.jpg,1.0"]
    write_palm(tmp_path, ["H0001.jpg", "P0001.jpg"], test, *table, ",", "V0008.jpg")
    found = reader.read(PALM, tmp_path)
    assert found.rows["sample_id"].tolist() == ["H0001", "P0001", "V0001", "V0007"]
    assert column(found, "label")["V0007"] == "pathologic_myopia"
    assert reasons(found.problems) == {
        "V0002": "labelled '2' in labels.csv, not one of 0, 1",
        "V0003": "it is in 2 rows of labels.csv",
        "V0004": "it has no label in labels.csv",
        "V0005": "it has no label in labels.csv",
        "V0006": "it is in 3 rows of labels.csv",
        "V0008": "it has no label in labels.csv",
        "V0009": "it has a label in labels.csv but no image",
        "row 11 of labels.csv": "it names no image",
    }


def test_the_table_beside_the_validation_images_comes_before_others(tmp_path):
    write_palm(tmp_path, ["H0001.jpg"], ["V0001.jpg"], "V0001.jpg,1")
    write(tmp_path / "set" / "A-predictions.csv", "imgName,Label", "V0001.jpg,0")
    assert column(reader.read(PALM, tmp_path), "label")["V0001"] == "pathologic_myopia"


def test_without_a_table_of_labels_the_ones_that_were_looked_at_are_listed(tmp_path):
    write_palm(tmp_path, ["H0001.jpg"], ["V0001.jpg"])
    with pytest.raises(ManifestError, match=r"validation labels is missing.*\n  - \(there is no"):
        reader.read(PALM, tmp_path)
    write(tmp_path / "set" / "train.csv", "imgName,Label", "H0001.jpg,0")
    write(tmp_path / "set" / "PALM-Validation400" / "fovea.csv", "imgName,Fovea_X", "V0001.jpg,3")
    write(tmp_path / "set" / "empty.csv")
    with pytest.raises(ManifestError) as caught:
        reader.read(PALM, tmp_path)
    message = str(caught.value)
    assert "a column imgname or image or filename or name, and their labels in a column label" in (
        message
    )
    assert "PALM-Validation400/fovea.csv: imgName, Fovea_X" in message
    assert "train.csv: imgName, Label" in message
    assert "empty.csv cannot be read as a table" in message


def test_a_missing_folder_of_photographs_and_a_class_the_card_lacks_are_named(tmp_path):
    touch(tmp_path / "set", "PALM-Validation400/V0001.jpg")
    with pytest.raises(ManifestError, match=r"folder \*Training400 is missing: is the download"):
        reader.read(PALM, tmp_path)
    wrong = card("ichallenge", "other amd", layout_options={"letters": {"A": "amb"}})
    with pytest.raises(ManifestError, match=r"class 'amb'\. Did you mean 'amd'\?.*letters"):
        reader.read(wrong, tmp_path)


# -------------------------------------------------------------------------------------- HAM10000

HAM = card("ham10000", "akiec bcc bkl df mel nv vasc")


def write_ham(root, rows, images, table="HAM10000_metadata.csv", comma=","):
    touch(root / "set", *images)
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    write(root / "set" / table, *(comma.join(row) for row in [header, *rows]))


LESIONS = [
    ["HAM_1", "ISIC_1", "nv", "histo", "80.0", "male", "scalp"],
    ["HAM_2", "ISIC_2", "mel", "histo", "", "unknown", "back"],
    ["HAM_1", "ISIC_3", "NV", "histo", "80.0", "male", "scalp"],
]
HAM_IMAGES = [
    "HAM10000_images_part_1/ISIC_1.jpg",
    "HAM10000_images_part_1/ISIC_2.jpg",
    "HAM10000_images_part_2/ISIC_3.jpg",
]


@pytest.mark.parametrize(
    ("table", "comma"),
    [("HAM10000_metadata.csv", ","), ("HAM10000_metadata", ","), ("HAM10000_metadata.tab", "\t")],
)
def test_a_dermoscopy_patient_is_the_lesion_over_both_image_folders(tmp_path, table, comma):
    write_ham(tmp_path, LESIONS, HAM_IMAGES, table, comma)
    touch(tmp_path / "set", "HAM10000_segmentations/ISIC_1_segmentation.png")
    touch(tmp_path / "set", "ham10000_images_part_2/ISIC_3_segmentation.png")
    found = reader.read(HAM, tmp_path)
    assert found.rows.to_dict("list") == {
        "sample_id": ["ISIC_1", "ISIC_2", "ISIC_3"],
        "patient_id": ["HAM_1", "HAM_2", "HAM_1"],
        "path": [f"set/{path}" for path in HAM_IMAGES],
        "label": ["nv", "mel", "nv"],
        "age": ["80", "", "80"],
        "sex": ["male", "", "male"],
        "body_part": ["scalp", "back", "scalp"],
    }
    assert found.excluded.empty and found.problems.empty


def test_kaggle_ships_every_image_twice_and_one_of_them_is_read(tmp_path):
    write_ham(tmp_path, LESIONS, HAM_IMAGES)
    for path in HAM_IMAGES:
        twin = tmp_path / "set" / path.replace("HAM10000", "ham10000")
        twin.parent.mkdir(exist_ok=True)
        twin.write_bytes((tmp_path / "set" / path).read_bytes())
    twin.write_bytes(b"another picture")
    found = reader.read(HAM, tmp_path)
    assert found.rows["path"].tolist() == [f"set/{path}" for path in HAM_IMAGES[:2]]
    assert reasons(found.excluded) == {
        f"set/ham10000_images_part_1/ISIC_{k}.jpg": "a second copy of "
        f"set/HAM10000_images_part_1/ISIC_{k}.jpg"
        for k in (1, 2)
    }
    assert reasons(found.problems) == {
        "ISIC_3": "2 files have this id: set/HAM10000_images_part_2/ISIC_3.jpg, "
        "set/ham10000_images_part_2/ISIC_3.jpg"
    }


def test_disagreements_of_dermoscopy_table_and_images_are_listed(tmp_path):
    more = [("HAM_3", "ISIC_5", "df"), ("HAM_4", "ISIC_6", "wart"), ("", "ISIC_7", "df")]
    rows = [*LESIONS, *([*row, "", "", "", ""] for row in more)]
    more = [f"HAM10000_images_part_2/ISIC_{k}.jpg" for k in (4, 6, 7)]
    write_ham(tmp_path, rows, HAM_IMAGES + more)
    found = reader.read(HAM, tmp_path)
    assert found.rows["sample_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3"]
    known = "akiec, bcc, bkl, df, mel, nv, vasc"
    assert reasons(found.problems) == {
        "ISIC_4": "it has no label in HAM10000_metadata.csv",
        "ISIC_5": "it has a label in HAM10000_metadata.csv but no image",
        "ISIC_6": f"labelled 'wart' in HAM10000_metadata.csv, not one of {known}",
        "ISIC_7": "its patient_id is empty",
    }


def write_isic2018(root, truth, lesions, images):
    folder = root / "set"
    touch(folder / "ISIC2018_Task3_Training_Input", *images)
    name = "ISIC2018_Task3_Training_GroundTruth"
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    write(folder / name / f"{name}.csv", header, *truth)
    header = "image,lesion_id,diagnosis_confirm_type"
    write(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", header, *lesions)


def test_isic_2018_gives_the_same_samples_patients_and_labels_as_dataverse(tmp_path):
    write_ham(tmp_path / "one", LESIONS, HAM_IMAGES)
    nevus, melanoma = "0.0,1.0,0.0,0.0,0.0,0.0,0.0", "1.0,0.0,0.0,0.0,0.0,0.0,0.0"
    truth = [f"ISIC_1,{nevus}", f"ISIC_2,{melanoma}", f"ISIC_3,{nevus}"]
    lesions = ["ISIC_1,HAM_1,histo", "ISIC_2,HAM_2,histo", "ISIC_3,HAM_1,histo"]
    images = ["ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg", "ATTRIBUTION.txt"]
    write_isic2018(tmp_path / "other", truth, lesions, images)
    one, other = (reader.read(HAM, tmp_path / name) for name in ("one", "other"))
    same = ["sample_id", "patient_id", "label"]
    assert one.rows[same].equals(other.rows[same])
    assert other.rows["path"].iloc[0] == "set/ISIC2018_Task3_Training_Input/ISIC_1.jpg"
    assert other.problems.empty


def test_isic_2018_rows_of_no_or_several_classes_and_images_without_a_lesion_are_problems(tmp_path):
    firsts = ["0.0,1.0", "1.0,1.0", "0.0,0.0", "0.0,1.0", "0.0,0.5"]  # MEL, NV
    truth = [f"ISIC_{k},{first},0.0,0.0,0.0,0.0,0.0" for k, first in enumerate(firsts, 1)]
    lesions = [f"ISIC_{k},HAM_{k},histo" for k in (1, 2, 3, 5, 5, 6)]
    write_isic2018(tmp_path, truth, lesions, [f"ISIC_{k}.jpg" for k in range(1, 6)])
    found = reader.read(HAM, tmp_path)
    assert found.rows["sample_id"].tolist() == ["ISIC_1"]
    where, known = "ISIC2018_Task3_Training_GroundTruth.csv", "akiec, bcc, bkl, df, mel, nv, vasc"
    lesions = "ISIC2018_Task3_Training_LesionGroupings.csv"
    assert reasons(found.problems) == {
        "ISIC_2": f"labelled 'mel+nv' in {where}, not one of {known}",
        "ISIC_3": f"labelled 'none' in {where}, not one of {known}",
        "ISIC_4": f"it has no lesion in {lesions}; its patient_id is empty",
        "ISIC_5": f"it is in 2 rows of {lesions}; labelled 'nv=0.5' in {where}, not one of {known}",
        "ISIC_6": f"it has a lesion in {lesions} but no image",
    }


def test_dermoscopy_with_both_or_no_distribution_or_without_images_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ManifestError, match="Truth.csv are missing: is the download complete"):
        reader.read(HAM, tmp_path)
    write_ham(tmp_path, LESIONS, [])
    with pytest.raises(ManifestError, match=r"folder ham10000_images\* is missing: is the downl"):
        reader.read(HAM, tmp_path)
    write_isic2018(tmp_path, [], [], [])
    with pytest.raises(ManifestError, match="HAM10000_metadata and .* are both there: keep one"):
        reader.read(HAM, tmp_path)


def test_missing_columns_are_named_beside_those_that_are_there(tmp_path):
    write_ham(tmp_path, [], HAM_IMAGES)
    write(tmp_path / "set" / "HAM10000_metadata.csv", "lesion,image_id,label", "HAM_1,ISIC_1,nv")
    found = r"csv: columns missing: lesion_id, dx; found: lesion, image_id, label\."
    with pytest.raises(ManifestError, match=found):
        reader.read(HAM, tmp_path)


# -------------------------------------------------------------------------------------- ISIC 2017

ISIC = card("isic2017", "melanoma nevus seborrheic_keratosis", split="official")


def write_isic2017(root, part, truth, known=()):
    folder, names = root / "set", [row.split(",")[0] for row in truth]
    touch(folder / f"ISIC-2017_{part}_Data", *(f"{name}.jpg" for name in names))
    touch(folder / f"ISIC-2017_{part}_Data", *(f"{name}_superpixels.png" for name in names))
    touch(folder / f"ISIC-2017_{part}_Part1_GroundTruth", f"{names[0]}_segmentation.png")
    header = "image_id,melanoma,seborrheic_keratosis"
    write(folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv", header, *truth)
    if known:
        header = "image_id,age_approximate,sex"
        path = folder / f"ISIC-2017_{part}_Data" / f"ISIC-2017_{part}_Data_metadata.csv"
        write(path, header, *known)


def test_isic_2017_has_three_official_splits_and_three_classes(tmp_path):
    known = ["ISIC_1,55,female", "ISIC_2,unknown,unknown"]
    write_isic2017(tmp_path, "Training", ["ISIC_1,0.0,0.0", "ISIC_2,1.0,0.0"], known)
    write_isic2017(tmp_path, "Validation", ["ISIC_3,0.0,1.0"])
    write_isic2017(tmp_path, "Test_v2", ["ISIC_4,0.0,0.0", "ISIC_5,1.0,1.0"])
    found = reader.read(ISIC, tmp_path)
    assert found.rows.to_dict("list") == {
        "sample_id": ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"],
        "patient_id": ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"],
        "path": [
            "set/ISIC-2017_Training_Data/ISIC_1.jpg",
            "set/ISIC-2017_Training_Data/ISIC_2.jpg",
            "set/ISIC-2017_Validation_Data/ISIC_3.jpg",
            "set/ISIC-2017_Test_v2_Data/ISIC_4.jpg",
        ],
        "label": ["nevus", "melanoma", "seborrheic_keratosis", "nevus"],
        "split": ["train", "train", "val", "test"],
        "age": ["55", "", "", ""],
        "sex": ["female", "", "", ""],
    }
    assert reasons(found.problems) == {
        "ISIC_5": "labelled 'melanoma+seborrheic_keratosis' in "
        "ISIC-2017_Test_v2_Part3_GroundTruth.csv, not one of none, melanoma, seborrheic_keratosis"
    }


def test_isic_2017_does_without_its_validation_part_but_not_without_its_test_part(tmp_path):
    write_isic2017(tmp_path, "Training", ["ISIC_1,0.0,0.0"])
    with pytest.raises(ManifestError, match=r"table ISIC-2017_Test_v2_Part3_GroundTruth\.csv is m"):
        reader.read(ISIC, tmp_path)
    write_isic2017(tmp_path, "Test_v2", ["ISIC_4,0.0,0.0"])
    assert reader.read(ISIC, tmp_path).rows["split"].tolist() == ["train", "test"]


# ----------------------------------------------------------------------------------- modalities


@pytest.mark.parametrize(
    "names",
    [
        ("x_t1.nii.gz", "x_t1ce.nii.gz", "x_flair.nii.gz", "x_t2.nii.gz", "x_seg.nii.gz"),
        ("x-t1n.nii.gz", "x-t1c.nii.gz", "x-t2f.nii.gz", "x-t2w.nii.gz", "x-seg.nii.gz"),
        ("T1.nii", "T1GD.NII.GZ", "FLAIR.nii", "T2.nii", "W39_1998.09.19_Segm.nii"),
        ("x_T1.nii", "x_t1Gd.nii", "x_fla.nii", "x_T2.nii", "x_tumor_segmentation.nii"),
    ],
)
def test_a_modality_is_what_a_name_ends_in(tmp_path, names):
    others = ["x_t1_brain.nii.gz", "x_brain_segmentation.nii.gz", "xt1.nii.gz", "x_ADC.nii.gz"]
    touch(tmp_path / "set" / "HGG" / "x", *names, *others)
    for modality, name in zip(("t1", "t1ce", "flair", "t2"), names[:4], strict=True):
        options = {"modality": modality, "require": []}
        found = reader.read(card("brats", "HGG LGG", layout_options=options), tmp_path)
        assert found.rows["path"].tolist() == [f"set/HGG/x/{name}"]
        assert found.rows["mask"].tolist() == [f"set/HGG/x/{names[4]}"]


def test_two_files_of_one_modality_are_a_problem(tmp_path):
    complete = ["x_t1.nii.gz", "x_t1.nii", "x_t1ce.nii.gz", "x_flair.nii.gz"]
    touch(tmp_path / "set" / "LGG" / "x", *complete)
    touch(tmp_path / "set" / "LGG" / "y", "y_t1.nii.gz", "y_t1ce.nii.gz", "y_flair.nii.gz")
    found = reader.read(card("brats", "HGG LGG", layout_options={"modality": "flair"}), tmp_path)
    assert found.rows["sample_id"].tolist() == ["y"]
    assert reasons(found.problems) == {"x": "several files for t1: x_t1.nii, x_t1.nii.gz"}


def test_what_is_a_problem_is_not_left_out_as_well(tmp_path):
    touch(tmp_path / "set" / "LGG" / "x", "x_t1.nii.gz", "x_t1.nii")
    touch(tmp_path / "set" / "LGG" / "y", "y_t1.nii.gz", "y_t1ce.nii.gz", "y_flair.nii.gz")
    options = {"layout_options": {"modality": "t1"}, "incomplete": "leave_out"}
    found = reader.read(card("brats", "HGG LGG", **options), tmp_path)
    assert found.excluded.empty
    assert found.problems["name"].tolist() == ["x"]


def test_an_unknown_modality_is_refused_with_the_ones_there_are(tmp_path):
    touch(tmp_path / "set" / "LGG" / "x", "x_t1.nii.gz")
    for options in ({"modality": "t1cd"}, {"modality": "t1", "reference": "mask"}):
        wrong = card("brats", "HGG LGG", layout_options=options)
        with pytest.raises(ManifestError, match=r"Choose one of: t1, t1ce, t2, flair"):
            reader.read(wrong, tmp_path)


# ----------------------------------------------------------------------------------------- BraTS


def brats(modality="t1", classes="HGG LGG", incomplete="stop", **options):
    options = {"modality": modality} | options
    return card("brats", classes, layout_options=options, incomplete=incomplete)


def write_cases(root, *cases, ending="_{}.nii.gz", modalities="t1 t1ce t2 flair seg"):
    for case in cases:
        name = case.split("/")[-1]
        touch(root, *(f"{case}/{name}{ending.format(m)}" for m in modalities.split()))


def test_brats_2018_grades_stand_above_the_cases_and_sites_in_their_names(tmp_path):
    names = ["HGG/Brats18_CBICA_AAB_1", "HGG/Brats18_TCIA01_131_1", "LGG/Brats18_2013_0_1"]
    write_cases(tmp_path / "set" / "MICCAI_BraTS_2018_Data_Training", *names)
    found = reader.read(brats("t1ce"), tmp_path)
    base = "set/MICCAI_BraTS_2018_Data_Training/LGG/Brats18_2013_0_1/Brats18_2013_0_1"
    assert found.rows.iloc[2].to_dict() == {
        "sample_id": "Brats18_2013_0_1",
        "patient_id": "Brats18_2013_0_1",
        "path": f"{base}_t1ce.nii.gz",
        "label": "LGG",
        "mask": f"{base}_seg.nii.gz",
        "reference": f"{base}_t1.nii.gz",
        "site": "2013",
    }
    assert found.rows["label"].tolist() == ["HGG", "HGG", "LGG"]
    assert found.rows["site"].tolist() == ["CBICA", "TCIA01", "2013"]


MAPPING = (
    "Grade,BraTS_2017_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID"
)


def write_brats2020(root, *rows):
    training = root / "set" / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    write(training / "name_mapping.csv", MAPPING, *rows)
    return training


def test_brats_2020_as_kaggle_ships_it_is_graded_by_its_mapping(tmp_path):
    rows = ["HGG,Brats17_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001"]
    rows += ["LGG,NA,NA,BraTS19_2013_1_1,BraTS20_Training_355", "HGG,NA,NA,BraTS19_2013_2_1,NA"]
    training = write_brats2020(tmp_path, *rows)
    write_cases(training, "BraTS20_Training_001", ending="_{}.nii")
    write_cases(training, "BraTS20_Training_355", ending="_{}.nii", modalities="t1 t1ce t2 flair")
    touch(training / "BraTS20_Training_355", "W39_1998.09.19_Segm.nii")
    validation = tmp_path / "set" / "BraTS2020_ValidationData" / "MICCAI_BraTS2020_ValidationData"
    write_cases(validation, "BraTS20_Validation_001", modalities="t1 t1ce t2 flair")
    write(validation / "name_mapping_validation_data.csv", "BraTS_2020_subject_ID", "BraTS20_Val")
    found = reader.read(brats(), tmp_path)
    assert column(found, "label") == {"BraTS20_Training_001": "HGG", "BraTS20_Training_355": "LGG"}
    assert found.rows["mask"].str.split("/").str[-1].tolist() == [
        "BraTS20_Training_001_seg.nii",
        "W39_1998.09.19_Segm.nii",
    ]
    assert "site" not in found.rows
    reason = "of the validation set, whose grades are not public"
    assert reasons(found.excluded) == {"BraTS20_Validation_001": reason}
    assert found.problems.empty


def test_grades_of_folder_and_mapping_must_agree_and_either_is_enough(tmp_path):
    write_cases(tmp_path / "set", *(f"HGG/BraTS19_CBICA_{case}_1" for case in "ABC"))
    write_cases(tmp_path / "set", "rest/BraTS19_CBICA_D_1", "rest/BraTS19_CBICA_E_1")
    ids = {"A": "HGG", "B": "LGG", "D": "LGG", "F": "LGG"}
    rows = [f"{grade},NA,NA,BraTS19_CBICA_{case}_1,NA" for case, grade in ids.items()]
    write(tmp_path / "set" / "name_mapping.csv", MAPPING, *rows)
    found = reader.read(brats(), tmp_path)
    assert found.rows["sample_id"].str[-3].tolist() == ["A", "C", "D"]
    assert found.rows["label"].tolist() == ["HGG", "HGG", "LGG"]
    assert reasons(found.problems) == {
        "BraTS19_CBICA_B_1": "in a folder HGG, but LGG in name_mapping.csv",
        "BraTS19_CBICA_E_1": "no known grade in name_mapping.csv",
        "BraTS19_CBICA_F_1": "it has a label in name_mapping.csv but no image",
    }


def test_a_case_that_stands_twice_in_the_mapping_is_a_problem(tmp_path):
    row = "HGG,NA,NA,NA,BraTS20_Training_001"
    training = write_brats2020(tmp_path, row, row, row.replace("001", "002"))
    write_cases(training, "BraTS20_Training_001", "BraTS20_Training_002")
    found = reader.read(brats(), tmp_path)
    assert found.rows["sample_id"].tolist() == ["BraTS20_Training_002"]
    assert reasons(found.problems) == {
        "BraTS20_Training_001": "it is in 2 rows of name_mapping.csv"
    }


def test_a_case_that_is_there_twice_is_read_once_or_is_a_problem(tmp_path):
    for grade in ("HGG", "LGG"):
        write_cases(tmp_path / "set", f"{grade}/BraTS19_A_{grade}_1")
        write_cases(tmp_path / "set" / "copy", f"{grade}/BraTS19_A_{grade}_1")
    write_cases(tmp_path / "set", "HGG/BraTS19_A_X_1", "LGG/BraTS19_A_X_1")
    twin = tmp_path / "set" / "copy" / "LGG" / "BraTS19_A_LGG_1" / "BraTS19_A_LGG_1_t1.nii.gz"
    twin.write_bytes(b"another scan")
    found = reader.read(brats(), tmp_path)
    scan = "HGG/BraTS19_A_HGG_1/BraTS19_A_HGG_1_t1.nii.gz"
    assert found.rows["path"].tolist() == [f"set/{scan}"]
    assert reasons(found.excluded) == {f"set/copy/{scan}": f"a second copy of set/{scan}"}
    assert set(found.problems["name"]) == {"BraTS19_A_LGG_1", "BraTS19_A_X_1"}


def test_years_without_grades_need_a_table_and_the_message_says_how(tmp_path):
    write_cases(tmp_path / "set", "BraTS2021_00000")
    with pytest.raises(ManifestError) as caught:
        reader.read(brats(), tmp_path)
    for part in ("2018 to 2020", "HGG and LGG", "name_mapping.csv", "labels (file), id and label"):
        assert part in str(caught.value)
    with pytest.raises(ManifestError, match="with labels, id and label name its columns"):
        reader.read(brats(labels="train_labels.csv"), tmp_path)
    table = {"labels": "train_labels.csv", "id": "BraTS21ID", "label": "MGMT_value"}
    with pytest.raises(ManifestError, match=r"table train_labels\.csv is missing: is the downl"):
        reader.read(brats(**table), tmp_path)


@pytest.mark.parametrize("ids", [("00000", "00495"), ("0", "495"), ("BraTS2021_00000", "000495")])
def test_brats_2021_is_labelled_by_a_table_whose_ids_may_lack_zeros(tmp_path, ids):
    write_cases(tmp_path / "set", "BraTS2021_00000", "BraTS2021_00495", "BraTS2021_01666")
    rows = [f"{ids[0]},1", f"{ids[1]},0"]
    write(tmp_path / "set" / "train_labels.csv", "BraTS21ID,MGMT_value", *rows)
    task = brats(
        classes="plain methylated",
        incomplete="leave_out",
        labels="train_labels.csv",
        id="BraTS21ID",
        label="MGMT_value",
        names={0: "plain", 1: "methylated"},
    )
    found = reader.read(task, tmp_path)
    assert column(found, "label") == {"BraTS2021_00000": "methylated", "BraTS2021_00495": "plain"}
    assert column(found, "patient_id")["BraTS2021_00495"] == "BraTS2021_00495"
    assert reasons(found.excluded) == {"BraTS2021_01666": "no known grade in train_labels.csv"}
    assert found.problems.empty


def test_brats_2023_scans_share_their_patient_and_may_share_its_row(tmp_path):
    cases = ["BraTS-GLI-00008-000", "BraTS-GLI-00008-001", "BraTS-GLI-00009-100"]
    write_cases(tmp_path / "set", *cases, ending="-{}.nii.gz", modalities="t1n t1c t2w t2f seg")
    ids = ["BraTS-GLI-00008", "BraTS-GLI-00009-100", "BraTS-GLI-00010"]
    table = pd.DataFrame({"case": ids, "who": [4, 2, 3]})
    table.to_excel(tmp_path / "set" / "grades.xlsx", index=False)
    names = {2: "low", 3: "low", 4: "high"}
    task = brats("flair", "low high", labels="grades.xlsx", id="case", label="who", names=names)
    found = reader.read(task, tmp_path)
    assert found.rows[["sample_id", "patient_id", "label"]].to_numpy().tolist() == [
        ["BraTS-GLI-00008-000", "BraTS-GLI-00008", "high"],
        ["BraTS-GLI-00008-001", "BraTS-GLI-00008", "high"],
        ["BraTS-GLI-00009-100", "BraTS-GLI-00009", "low"],
    ]
    assert found.rows["path"].iloc[0] == ("set/BraTS-GLI-00008-000/BraTS-GLI-00008-000-t2f.nii.gz")
    assert reasons(found.problems) == {"00010": "it has a label in grades.xlsx but no image"}


@pytest.mark.parametrize(("incomplete", "part"), [("stop", "problems"), ("leave_out", "excluded")])
def test_incomplete_cases_are_problems_unless_the_card_knows_of_them(tmp_path, incomplete, part):
    write_cases(tmp_path / "set", "HGG/A", "LGG/B", "C")
    write_cases(tmp_path / "set", "LGG/D", modalities="t1ce flair")
    write_cases(tmp_path / "set", "LGG/E", modalities="t2 seg")
    (tmp_path / "set" / "LGG" / "BraTS19_CBICA_F_1").mkdir()
    found = reader.read(brats(incomplete=incomplete), tmp_path)
    assert found.rows["sample_id"].tolist() == ["A", "B"]
    assert reasons(getattr(found, part)) == {
        "C": "no known grade in the names of its folders",
        "D": "no t1",
        "E": "no t1, t1ce, flair",
        "BraTS19_CBICA_F_1": "no t1, t1ce, flair",
    }
    assert len(found.problems) + len(found.excluded) == 4


def test_the_required_modalities_and_the_reference_can_be_chosen(tmp_path):
    write_cases(tmp_path / "set", "HGG/A", "LGG/B")
    write_cases(tmp_path / "set", "LGG/C", modalities="t1 t1ce flair")
    found = reader.read(brats("t2", require=["flair"], reference="t1ce"), tmp_path)
    assert found.rows["path"].str[-10:].tolist() == ["_t2.nii.gz"] * 2
    assert found.rows["reference"].str.endswith("_t1ce.nii.gz").all()
    assert reasons(found.problems) == {"C": "no t2"}


# ------------------------------------------------------------------------------------- UCSF-PDGM

UCSF = card(
    "ucsf_pdgm",
    "grade_2 grade_3 grade_4",
    layout_options={"modality": "t1ce"},
    incomplete="leave_out",
)
EVERY = "T1 T1c T2 FLAIR tumor_segmentation"


def write_ucsf(root, *rows):
    header = "ID,Sex,Age at MRI,WHO CNS Grade,Final pathologic diagnosis"
    write(root / "set" / "UCSF-PDGM-metadata_v5.csv", header, *rows)


def write_scan(root, name, modalities=EVERY):
    ids = modalities.split()
    touch(root / "set" / f"UCSF-PDGM-{name}_nifti", *(f"UCSF-PDGM-{name}_{m}.nii.gz" for m in ids))


def test_ucsf_ids_of_three_digits_find_their_folders_and_corrected_files_are_taken(tmp_path):
    many = f"{EVERY} T1_bias T1c_bias ADC DTI_eddy_FA brain_segmentation brain_parenchyma_seg_2 SWI"
    write_scan(tmp_path, "0004", many)
    write_scan(tmp_path, "0005")
    write_scan(tmp_path, "0006")
    rows = ["UCSF-PDGM-004,M,66,4,Gbm", "UCSF-PDGM-005,F,31,2,Astro", "UCSF-PDGM-006,F,40,,Astro"]
    write_ucsf(tmp_path, *rows)
    found = reader.read(UCSF, tmp_path)
    base = "set/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004"
    assert found.rows.iloc[0].to_dict() == {
        "sample_id": "UCSF-PDGM-0004",
        "patient_id": "UCSF-PDGM-0004",
        "path": f"{base}_T1c_bias.nii.gz",
        "label": "grade_4",
        "mask": f"{base}_tumor_segmentation.nii.gz",
        "reference": f"{base}_T1_bias.nii.gz",
        "age": "66",
        "sex": "male",
    }
    assert found.rows["path"].iloc[1] == "set/UCSF-PDGM-0005_nifti/UCSF-PDGM-0005_T1c.nii.gz"
    assert reasons(found.excluded) == {
        "UCSF-PDGM-0006": "no known grade in UCSF-PDGM-metadata_v5.csv"
    }
    assert found.problems.empty


def test_ucsf_follow_ups_are_of_the_same_patient(tmp_path):
    for name in ("0315", "0433", "0433FU003d", "0431FU010d"):
        write_scan(tmp_path, name)
    rows = ["UCSF-PDGM-315,M,50,3,A", "UCSF-PDGM-433,M,48,2,A", "UCSF-PDGM-431FU010d,M,48,4,A"]
    write_ucsf(tmp_path, *rows)
    found = reader.read(UCSF, tmp_path)
    assert found.rows[["sample_id", "patient_id", "label"]].to_numpy().tolist() == [
        ["UCSF-PDGM-0315", "UCSF-PDGM-0433", "grade_3"],
        ["UCSF-PDGM-0431FU010d", "UCSF-PDGM-0431", "grade_4"],
        ["UCSF-PDGM-0433", "UCSF-PDGM-0433", "grade_2"],
    ]
    assert reasons(found.excluded) == {
        "UCSF-PDGM-0433FU003d": "a follow-up scan without a grade of its own"
    }


@pytest.mark.parametrize("ids", ["315", "433_FU007d", "0433FU007d"])
def test_a_ucsf_follow_up_is_of_its_patient_in_all_versions(tmp_path, ids):
    for name in ("0433", "0433_FU007d", "0431_FU001d"):
        write_scan(tmp_path, name)
    write_ucsf(tmp_path, f"UCSF-PDGM-{ids},M,50,3,A", "UCSF-PDGM-433,M,48,2,A")
    found = reader.read(UCSF, tmp_path)
    assert found.rows[["sample_id", "patient_id", "label"]].to_numpy().tolist() == [
        ["UCSF-PDGM-0433_FU007d", "UCSF-PDGM-0433", "grade_3"],
        ["UCSF-PDGM-0433", "UCSF-PDGM-0433", "grade_2"],
    ]
    assert found.problems.empty
    why = {"UCSF-PDGM-0431_FU001d": "a follow-up scan without a grade of its own"}
    assert reasons(found.excluded) == why


def test_all_six_follow_ups_of_ucsfs_later_versions_are_grouped_with_their_patient(tmp_path):
    days = (
        "0433_FU007d",
        "0431_FU001d",
        "0396_FU175d",
        "0429_FU003d",
        "0409_FU001d",
        "0391_FU016d",
    )
    first = [name[:4] for name in days]
    for name in (*days, *first):
        write_scan(tmp_path, name)
    write_ucsf(tmp_path, *(f"UCSF-PDGM-{name},M,50,3,A" for name in (*days, *first)))
    found = reader.read(UCSF, tmp_path)
    assert found.problems.empty and len(found.rows) == 12
    of = column(found, "patient_id")
    assert all(of[f"UCSF-PDGM-{name}"] == f"UCSF-PDGM-{name[:4]}" for name in (*days, *first))


@pytest.mark.parametrize("name", ["BraTS2021_{}", "BraTS-GLI-{}-000"])
def test_repeated_scans_of_brats_are_of_one_patient(tmp_path, name):
    numbers = ("00557", "00639", "00758", "00626", "00001")
    ending = "_{}.nii.gz" if "2021" in name else "-{}.nii.gz"
    write_cases(tmp_path / "set", *map(name.format, numbers), ending=ending)
    write(tmp_path / "set" / "t.csv", "id,g", *(f"{n},0" for n in numbers))
    task = brats(classes="a b", labels="t.csv", id="id", label="g", names={0: "a"})
    of = column(reader.read(task, tmp_path), "patient_id")
    start = name.removesuffix("-000")
    assert of == {
        name.format("00557"): start.format("00557"),
        name.format("00639"): start.format("00557"),
        name.format("00758"): start.format("00758"),
        name.format("00626"): start.format("00758"),
        name.format("00001"): start.format("00001"),
    }


def test_ucsf_without_its_table_or_with_folders_of_other_names_says_so(tmp_path):
    write_scan(tmp_path, "0004")
    with pytest.raises(ManifestError, match=r"table \*metadata\*\.csv is missing: is the download"):
        reader.read(UCSF, tmp_path)
    write_ucsf(tmp_path, "UCSF-PDGM-004,M,66,4,Gbm", "UCSF-PDGM-009,M,66,4,Gbm")
    write_scan(tmp_path, "12")
    found = reader.read(UCSF, tmp_path)
    assert reasons(found.problems) == {
        "UCSF-PDGM-12_nifti": "not named like UCSF-PDGM-0004_nifti",
        "UCSF-PDGM-0009": "it has a label in UCSF-PDGM-metadata_v5.csv but no image",
    }
    write(tmp_path / "set" / "UCSF-PDGM-metadata_v4.csv", "ID")
    with pytest.raises(ManifestError, match=r"several times: .*_v4\.csv, .*_v5\.csv\. Keep one"):
        reader.read(UCSF, tmp_path)


# -------------------------------------------------------------------------------------- TCGA-LGG


def tcga(modality="t1", labels="histology"):
    classes = "grade_II grade_III" if labels == "histology" else "grade_2 grade_3 grade_4"
    options = {"modality": modality, "labels": labels}
    return card("tcga_lgg", classes, layout_options=options, incomplete="leave_out")


def write_tcga(root, patients, *table):
    """`patients` {folder: modalities}, `table` rows (patient, grade, gender, age)."""
    for name, modalities in patients.items():
        write_cases(root / "set", name, modalities=f"{modalities} seg")
    header = "Patient,neoplasm_histologic_grade,gender,age_at_initial_pathologic"
    write(root / "set" / "data.csv", header, *table)


ALL = "t1 t1ce flair"


@pytest.mark.parametrize("modality", ["t1", "t1ce", "flair"])
def test_glioma_tasks_take_their_modality_and_the_grade_of_the_table(tmp_path, modality):
    write_tcga(
        tmp_path,
        {"TCGA_CS_4941_19960909": ALL, "TCGA_DU_4942": ALL, "TCGA_CS_494": ALL},
        "TCGA_CS_4941,2,2,67",
        "TCGA_DU_4942,1,1,44",
        "TCGA_CS_494,1,,",
    )
    found = reader.read(tcga(modality), tmp_path)
    assert found.rows.drop(columns=["path", "mask"]).to_dict("list") == {
        "sample_id": ["TCGA_CS_494", "TCGA_CS_4941_19960909", "TCGA_DU_4942"],
        "patient_id": ["TCGA_CS_494", "TCGA_CS_4941", "TCGA_DU_4942"],
        "label": ["grade_II", "grade_III", "grade_II"],
        "reference": [f"set/{n}/{n}_t1.nii.gz" for n in found.rows["sample_id"]],
        "age": ["", "67", "44"],
        "sex": ["", "male", "female"],
        "site": ["CS", "CS", "DU"],
    }
    for name, path in column(found, "path").items():
        assert path == f"set/{name}/{name}_{modality}.nii.gz"
    assert found.excluded.empty and found.problems.empty


def test_glioma_patients_without_all_modalities_or_a_grade_are_left_out_with_the_reason(tmp_path):
    write_tcga(
        tmp_path,
        {
            "TCGA_DU_1": ALL,
            "TCGA_DU_2": "t1ce flair",  # its _t1ce is no _t1
            "TCGA_DU_3": "flair",
            "TCGA_DU_4": ALL,
            "TCGA_DU_5": ALL,
            "TCGA_DU_6": ALL,
        },
        *("TCGA_DU_1,1,1,30", "TCGA_DU_2,1,1,30", "TCGA_DU_3,2,1,30", "TCGA_DU_4,,1,30"),
        *("TCGA_DU_6,1,1,30", "TCGA_DU_6,2,1,30", "TCGA_DU_7,2,1,30"),
    )
    found = reader.read(tcga(), tmp_path)
    assert found.rows["sample_id"].tolist() == ["TCGA_DU_1"]
    assert reasons(found.excluded) == {
        "TCGA_DU_2": "no t1",
        "TCGA_DU_3": "no t1, t1ce",
        "TCGA_DU_4": "no known grade in data.csv",
        "TCGA_DU_5": "no known grade in data.csv",
    }
    assert reasons(found.problems) == {
        "TCGA_DU_6": "it is in 2 rows of data.csv",
        "TCGA_DU_7": "it has a label in data.csv but no image",
    }


def test_two_scans_of_one_person_are_one_patient(tmp_path):
    scans = {"TCGA_DU_7_19960909": ALL, "TCGA_DU_7_20010101": ALL, "TCGA_DU_8": ALL}
    write_tcga(tmp_path, scans, "TCGA_DU_7,1,1,30", "TCGA_DU_8,2,1,30")
    found = reader.read(tcga(), tmp_path)
    assert found.rows["patient_id"].tolist() == ["TCGA_DU_7", "TCGA_DU_7", "TCGA_DU_8"]


def test_the_grades_of_2021_stand_in_a_row_a_slide_that_must_agree(tmp_path):
    names = [f"TCGA_CS_{k}" for k in (1, 2, 3, 4, 5)]
    write_tcga(tmp_path, dict.fromkeys(names, ALL))
    lines = ["slide_id,case_id,Age (years at diagnosis),WHO_CNS5_grade,label"]
    lines += ["s1,TCGA-CS-1,67,Grade 4,2", "s2,TCGA-CS-1,67,Grade 4,2", "s3,TCGA-CS-2,44,Grade 2,0"]
    lines += [
        "s4,TCGA-CS-3,44,Grade NA,0",
        "s5,TCGA-CS-4,44,Grade 2,0",
        "s6,TCGA-CS-4,44,Grade 3,1",
    ]
    lines += ["s7,TCGA-02-0003,50,Grade 4,2"]  # a case of TCGA that is no part of TCGA-LGG
    write(tmp_path / "set" / "tcga_2021_who_labels.csv", *lines)
    found = reader.read(tcga("t1", "who2021"), tmp_path)
    assert found.rows[["sample_id", "patient_id", "label", "age", "site"]].to_numpy().tolist() == [
        ["TCGA_CS_1", "TCGA_CS_1", "grade_4", "67", "CS"],
        ["TCGA_CS_2", "TCGA_CS_2", "grade_2", "44", "CS"],
    ]
    reason = "no known grade in tcga_2021_who_labels.csv"
    assert reasons(found.excluded) == {"TCGA_CS_3": reason, "TCGA_CS_5": reason}
    assert reasons(found.problems) == {"TCGA_CS_4": "it is in 2 rows of tcga_2021_who_labels.csv"}
    with pytest.raises(ManifestError, match=r"'who2012'\. Did you mean 'who2021'\?"):
        reader.read(tcga("t1", "who2012"), tmp_path)


# ------------------------------------------------------------------------------ folder per class


def per_class(**options):
    return card("folder_per_class", "a b", layout_options=options)


def test_folders_are_classes_under_their_own_or_another_name(tmp_path):
    touch(tmp_path / "set", "a/x/1.png", "Class B/2.jpg", "notes/readme.txt")
    found = reader.read(per_class(classes={"Class B": "b"}), tmp_path)
    assert found.rows.to_numpy().tolist() == [
        ["Class B-2", "Class B-2", "set/Class B/2.jpg", "b"],
        ["a-x-1", "a-x-1", "set/a/x/1.png", "a"],
    ]
    assert found.problems.empty


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folders_of_splits_are_official_splits(tmp_path, val):
    touch(tmp_path / "set", "Train/a/1.png", "Train/b/2.png", f"{val}/a/3.png", "test/b/4.png")
    found = reader.read(per_class(), tmp_path)
    assert column(found, "split") == {
        "Train-a-1": "train",
        "Train-b-2": "train",
        f"{val}-a-3": "val",
        "test-b-4": "test",
    }
    assert column(found, "label")["test-b-4"] == "b"


def test_a_training_folder_without_a_test_folder_is_refused(tmp_path):
    touch(tmp_path / "set", "train/a/1.png", "val/b/2.png")
    with pytest.raises(ManifestError, match="images in train, val; .* some in train and in test"):
        reader.read(per_class(), tmp_path)


def test_the_patient_is_found_in_a_name_by_its_group_or_as_a_whole(tmp_path):
    touch(tmp_path / "set", "a/P7_left.png", "a/P7_right.png", "b/P12_left.png", "b/left.png")
    for pattern, seven, twelve in ((r"P(\d+)_", "7", "12"), (r"P\d+", "P7", "P12")):
        found = reader.read(per_class(patient=pattern), tmp_path)
        assert found.rows["patient_id"].tolist() == [seven, seven, twelve]
        reason = f"its name tells no patient: it has no {pattern!r}"
        reason += " (with a / in it, the whole path is searched)"
        assert reasons(found.problems) == {"b/left.png": reason}
    with pytest.raises(ManifestError, match="patient is no regular expression: missing"):
        reader.read(per_class(patient="P("), tmp_path)


def test_a_folder_that_is_no_class_is_one_problem_and_images_in_no_folder_are_each_one(tmp_path):
    touch(tmp_path / "set", "a/1.png", "c/2.png", "c/3.png", "4.png")
    found = reader.read(per_class(), tmp_path)
    assert found.rows["sample_id"].tolist() == ["a-1"]
    assert reasons(found.problems) == {
        "c": "the folder is no class of the card (a, b): name its class in layout_options, classes",
        "4.png": "it lies in no folder of a class",
    }
    touch(tmp_path / "split", "train/a/1.png", "test/b/2.png", "test/c/3.png", "a/4.png")
    split = card("folder_per_class", "a b", folder="split")
    assert set(reader.read(split, tmp_path).problems["name"]) == {"test/c", "a/4.png"}


def test_volumes_are_read_where_the_card_has_volumes_and_masks_are_none(tmp_path):
    touch(tmp_path / "set", "a/1.nii.gz", "b/2.NII", "b/2_seg.nii.gz", "b/3.png")
    volumes = card("folder_per_class", "a b", volumes=cards.Volumes())
    found = reader.read(volumes, tmp_path)
    assert column(found, "path") == {"a-1": "set/a/1.nii.gz", "b-2": "set/b/2.NII"}
    assert reasons(found.excluded) == {
        "b/2_seg.nii.gz": "a mask, by its name",
        "b/*.png": "1 file(s) with the ending .png: not read",
    }


# ----------------------------------------------------------------------------------- own tables


def own(table="table.csv", **options):
    return card("table", "a b", layout_options={"table": table} | options)


def test_a_table_of_ones_own_needs_only_paths_and_labels(tmp_path):
    touch(tmp_path / "set" / "in", "x/1.png", "x/2.png")
    write(tmp_path / "set" / "in" / "table.csv", "path,label,age", "x/1.png,a,070", "x/2.png,b,")
    found = reader.read(own("in/table.csv"), tmp_path)
    assert found.rows.to_dict("list") == {
        "sample_id": ["x-1", "x-2"],
        "patient_id": ["x-1", "x-2"],
        "path": ["set/in/x/1.png", "set/in/x/2.png"],
        "label": ["a", "b"],
        "age": ["070", ""],
    }


@pytest.mark.parametrize("ending", ["csv", "tsv", "xlsx"])
def test_a_tables_own_columns_and_codes_are_translated(tmp_path, ending):
    touch(tmp_path / "set", "1.nii.gz", "1m.nii.gz", "2.nii.gz", "2m.nii.gz")
    table = pd.DataFrame(
        {
            "Scan": ["s1", "s2"],
            "Person": [7, 8],
            "File": ["1.nii.gz", "2.nii.gz"],
            "Grade": [0, 1],
            "Part": ["Train", "valid"],
            "Tumour": ["1m.nii.gz", ""],
            "Sex": ["f", "m"],
            "Hospital": ["Ü", "Z"],
            "age": [70, None],
            "other": [1.5, 2.5],
        }
    )
    path = tmp_path / "set" / f"table.{ending}"
    if ending == "xlsx":
        table.to_excel(path, index=False)
    else:
        table.to_csv(path, index=False, sep=",\t"[ending == "tsv"], encoding="utf-8-sig")
    columns = {
        "sample_id": "Scan",
        "patient_id": "Person",
        "path": "File",
        "label": "Grade",
        "split": "Part",
        "mask": "Tumour",
        "sex": "Sex",
        "site": "Hospital",
    }
    task = own(path.name, columns=columns, names={0: "a", 1: "b"})
    assert reader.read(task, tmp_path).rows.to_numpy().tolist() == [
        ["s1", "7", "set/1.nii.gz", "a", "train", "set/1m.nii.gz", "70", "female", "Ü"],
        ["s2", "8", "set/2.nii.gz", "b", "val", "", "", "male", "Z"],
    ]


def test_every_row_that_cannot_be_used_has_its_reasons(tmp_path):
    touch(tmp_path, "set/1.png", "set/2.png", "set/3.png", "elsewhere.png")
    (tmp_path.parent / "outside.png").write_bytes(b"")
    lines = ["sample_id,patient_id,path,label,split,mask", "s1,p1,1.png,a,train,"]
    lines += ["s2,p2,2.png,a,train,", "s2,p2,2.png,a,train,", "s3,p3,gone.png,c,train,"]
    lines += ["s4,p4,,b,train,", ",,3.png,,train,", "s6,p6,3.png,b,later,", "s7,,3.png,b,train,"]
    lines += ["s8,p8,3.png,b,train,no.nii", ",,,b,train,", "s10,p10,../elsewhere.png,b,test,"]
    lines += ["s11,p11,../../outside.png,b,test,"]
    write(tmp_path / "set" / "table.csv", *lines)
    found = reader.read(own(), tmp_path)
    assert column(found, "path") == {"s1": "set/1.png", "s10": "elsewhere.png"}
    assert reasons(found.problems) == {
        "s2": "it is in 2 rows of table.csv",
        "s3": "labelled 'c' in table.csv, not one of a, b; gone.png is not there: "
        "looked in set, and for its name below",
        "s4": "its path is empty",
        "3": "it has no label in table.csv",
        "s6": "its split is 'later', not one of train, val, test",
        "s7": "its patient_id is empty",
        "s8": "no.nii is not there: looked in set, and for its name below",
        "row 11": "its patient_id is empty; its path is empty",
        "s11": "its path leads out of the data folder",
    }


def test_a_missing_table_or_column_is_named_beside_what_is_there(tmp_path):
    touch(tmp_path / "set", "1.png")
    write(tmp_path / "set" / "labels.csv", "file,label", "1.png,a")
    with pytest.raises(ManifestError, match=r"table\.csv is missing; there is: labels\.csv"):
        reader.read(own(), tmp_path)
    with pytest.raises(ManifestError, match=r"columns missing: path; found: file, label"):
        reader.read(own("labels.csv"), tmp_path)
    with pytest.raises(ManifestError, match=r"columns missing: eye; found: file, label"):
        reader.read(own("labels.csv", columns={"path": "file", "site": "eye"}), tmp_path)
    with pytest.raises(ManifestError, match=r"column 'patient'\. Did you mean 'patient_id'\?"):
        reader.read(own("labels.csv", columns={"patient": "file"}), tmp_path)
    with pytest.raises(ManifestError, match=r"class 'c'\. Choose one of: a, b\. Correct names"):
        reader.read(own("labels.csv", columns={"path": "file"}, names={0: "c"}), tmp_path)


def test_a_table_in_another_encoding_is_refused_with_its_row_or_read_when_it_is_named(tmp_path):
    touch(tmp_path / "set", "ä.png")
    table = tmp_path / "set" / "table.csv"
    table.write_bytes("path,label\nä.png,a\n".encode("cp1252"))
    with pytest.raises(
        ManifestError, match=r"table\.csv: row 2 holds the byte 0xE4, so that it is not UTF-8: save"
    ):
        reader.read(own(), tmp_path)
    found = reader.read(own(encoding="cp1252"), tmp_path)
    assert column(found, "path") == {"ä": "set/ä.png"}
    with pytest.raises(ManifestError, match=r"no encoding 'klingon'"):
        reader.read(own(encoding="klingon"), tmp_path)
    table.write_bytes("path\tlabel\nä.png\ta\n".encode("utf-16"))  # as Excel's "Unicode text"
    assert column(reader.read(own(), tmp_path), "path") == {"ä": "set/ä.png"}


# --------------------------------------------------------------------------------------- MedMNIST


def mnist(flag="breastmnist", classes=("malignant", "normal, benign"), **options):
    task = card("medmnist", "a b", layout_options={"flag": flag} | options)
    return task.model_copy(update={"classes": classes})


def write_npz(path, size=28, **changes):
    arrays = {}
    for split, labels in {"train": [0, 1, 1], "val": [1, 0], "test": [0]}.items():
        arrays[f"{split}_images"] = np.zeros((len(labels), size, size), np.uint8)
        arrays[f"{split}_labels"] = np.array(labels, np.uint8)[:, None]
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays | changes)


@pytest.mark.parametrize(
    ("options", "name"), [({}, "breastmnist"), ({"size": 64}, "breastmnist_64")]
)
def test_medmnist_samples_are_places_in_its_arrays(tmp_path, options, name):
    write_npz(tmp_path / "set" / f"{name}.npz", options.get("size", 28))
    found = reader.read(mnist(**options), tmp_path)
    assert found.rows.columns.tolist() == ["sample_id", "patient_id", "path", "label", "split"]
    assert found.rows.to_numpy()[[0, 2, 4, 5]].tolist() == [
        ["train-000000", "train-000000", f"set/{name}.npz#train/0", "malignant", "train"],
        ["train-000002", "train-000002", f"set/{name}.npz#train/2", "normal, benign", "train"],
        ["val-000001", "val-000001", f"set/{name}.npz#val/1", "malignant", "val"],
        ["test-000000", "test-000000", f"set/{name}.npz#test/0", "malignant", "test"],
    ]
    assert len(found.rows) == 6 and found.problems.empty


def test_medmnist_labels_that_are_no_class_are_problems(tmp_path):
    write_npz(tmp_path / "set" / "breastmnist.npz", val_labels=np.array([[2], [0]], np.uint8))
    found = reader.read(mnist(), tmp_path)
    assert len(found.rows) == 5
    assert reasons(found.problems) == {"val-000000": "labelled 2, not one of 0 to 1"}


@pytest.mark.parametrize(
    "changes",
    [
        {"val_images": np.zeros((3, 28, 28), np.uint8)},  # of two labels
        {"train_images": np.zeros((3, 64, 64), np.uint8)},
        {"test_labels": np.zeros((1, 14), np.uint8)},
    ],
)
def test_medmnist_arrays_that_do_not_fit_are_refused(tmp_path, changes):
    write_npz(tmp_path / "set" / "breastmnist.npz", **changes)
    with pytest.raises(ManifestError, match="has images of shape .* not n × 28 × 28 and n × 1"):
        reader.read(mnist(), tmp_path)


def test_medmnist_sets_that_no_card_can_describe_are_refused(tmp_path):
    write_npz(tmp_path / "set" / "breastmnist.npz")
    with pytest.raises(ManifestError, match="nodulemnist3d has volumes, not images"):
        reader.read(mnist("nodulemnist3d"), tmp_path)
    with pytest.raises(ManifestError, match="chestmnist has several labels an image"):
        reader.read(mnist("chestmnist"), tmp_path)
    with pytest.raises(ManifestError, match=r"flag 'brestmnist'\. Did you mean 'breastmnist'\?"):
        reader.read(mnist("brestmnist"), tmp_path)
    with pytest.raises(ManifestError) as caught:
        reader.read(mnist(classes=("normal, benign", "malignant")), tmp_path)
    assert "breastmnist: ['malignant', 'normal, benign']" in str(caught.value)
    assert "toy: ['normal, benign', 'malignant']" in str(caught.value)


def test_medmnist_files_that_are_missing_or_broken_are_named(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ManifestError, match=r"file breastmnist_224\.npz is missing: is the downl"):
        reader.read(mnist(size=224), tmp_path)
    (tmp_path / "set" / "breastmnist.npz").write_bytes(b"half of a download")
    with pytest.raises(ManifestError, match=r"breastmnist\.npz cannot be read: File is not a zip"):
        reader.read(mnist(), tmp_path)
    np.savez(tmp_path / "set" / "breastmnist.npz", train_images=np.zeros((3, 28, 28)))
    with pytest.raises(ManifestError, match=r"cannot be read: .*train_labels\.npy.*Download it"):
        reader.read(mnist(), tmp_path)


# -------------------------------------------------------------------------------------- phantoms

PHANTOMS = {
    "chest_xray": CHEST,
    "other_chest": cards.read("other_chest").model_copy(update={"folder": "set"}),
    "ichallenge_amd": ADAM,
    "ichallenge_pm": PALM,
    "ham10000": HAM,
    "tcga_lgg": tcga("flair"),
    "ucsf_pdgm": UCSF,
}
VOLUMES = {"tcga_lgg": "*_flair.nii.gz", "ucsf_pdgm": "*_T1c.nii.gz"}


@pytest.mark.parametrize("dataset", phantoms.DATASETS)
def test_phantoms_are_read_whole(tmp_path, dataset):
    folder = phantoms.write(dataset, tmp_path, scale=0.01).rename(tmp_path / "set")
    task = PHANTOMS[dataset]
    found = reader.read(task, tmp_path)
    files = folder.rglob(VOLUMES.get(dataset, "*.jp*g"))
    taken = {
        p.relative_to(tmp_path).as_posix()
        for p in files
        if p.parent.name not in set(found.excluded["name"])
    }
    assert set(found.rows["path"]) == taken
    assert set(found.rows["label"]) == set(task.classes)
    assert found.problems.empty
    left_out = ["no t1", "no t1ce", "no known grade in data.csv"] if dataset == "tcga_lgg" else []
    assert found.excluded["reason"].tolist() == left_out
    assert ("split" in found.rows) == (task.split == "official")


# ------------------------------------------------------------------------------------- real data

GLIOMA = [cards.STAND_INS[task] for task in cards.MRI]


@pytest.mark.real_data
@pytest.mark.parametrize("task", ["chest_xray", "fundus_pm", "dermoscopy", *GLIOMA])
def test_real_folders_hold_the_samples_of_the_committed_manifest(real_data, task):
    found = reader.read(cards.read(task), real_data)
    assert found.problems.empty
    columns = ["sample_id", "patient_id", "path", "label"]
    committed = manifest.read_rows(cards.FOLDER / f"{task}.csv")[columns]
    left_out = reasons(manifest.read_excluded(cards.FOLDER / f"{task}.csv"))
    twins = {name for name, why in left_out.items() if "the same image" in why}  # dropped later
    kept = found.rows[~found.rows["sample_id"].isin(twins)]
    assert sorted(kept[columns].to_numpy().tolist()) == sorted(committed.to_numpy().tolist())
    assert set(found.rows["sample_id"]) >= twins
    assert reasons(found.excluded) == {n: why for n, why in left_out.items() if n not in twins}


@pytest.mark.real_data
def test_real_radiographs_are_5216_for_training_and_624_for_testing(real_data):
    found = reader.read(cards.read("chest_xray"), real_data)
    assert pd.crosstab(found.rows["split"], found.rows["label"]).to_numpy().tolist() == [
        [234, 390],
        [1341, 3875],
    ]


@pytest.mark.real_data
def test_real_dermoscopy_is_10015_images_of_7470_lesions(real_data):
    rows = reader.read(cards.read("dermoscopy"), real_data).rows
    assert (len(rows), rows["patient_id"].nunique()) == (10015, 7470)
    assert rows.groupby("patient_id")["label"].nunique().eq(1).all()
    assert set(rows["sex"]) == {"male", "female", ""}


@pytest.mark.real_data
def test_real_fundus_photographs_are_400_for_training_and_400_for_testing(real_data):
    rows = reader.read(cards.read("fundus_pm"), real_data).rows
    assert pd.crosstab(rows["split"], rows["label"]).to_numpy().sum(axis=1).tolist() == [400, 400]
    assert (rows[rows["split"] == "train"]["label"] == "pathologic_myopia").sum() == 213


@pytest.mark.real_data
@pytest.mark.parametrize("task", GLIOMA)
def test_real_gliomas_are_100_patients_and_10_are_left_out(real_data, task):
    found = reader.read(cards.read(task), real_data)
    assert found.rows["label"].value_counts().to_dict() == {"grade_III": 55, "grade_II": 45}
    assert found.rows["patient_id"].is_unique
    assert found.excluded["reason"].value_counts().to_dict() == {"no t1, t1ce": 6, "no t1ce": 4}
    assert (found.rows[["mask", "reference", "age", "sex", "site"]] != "").all(axis=None)


@pytest.mark.real_data
def test_real_gliomas_of_grade_4_are_so_by_the_grading_of_2021_only(real_data):
    old, new = (
        reader.read(cards.read(task), real_data).rows.set_index("sample_id")
        for task in ("glioma_t1", "glioma_who2021_t1")
    )
    assert new["label"].value_counts().to_dict() == {"grade_2": 38, "grade_3": 37, "grade_4": 19}
    assert set(new.index) < set(old.index)
    assert new["patient_id"].equals(old["patient_id"][new.index])


# -------------------------------------------------------------------------------- hostile inputs


def test_a_pattern_that_searches_for_ever_is_given_up(tmp_path):
    touch(tmp_path / "set", "a/" + "x" * 40 + "!.png", "b/y.png")
    begun = time.monotonic()
    task = card("folder_per_class", "a b", layout_options={"patient": "(x|x|xx)+y"})
    with pytest.raises(ManifestError, match="takes more than 1 s to search 'xxx.*a repeat"):
        reader.read(task, tmp_path)
    assert time.monotonic() - begun < 20


def test_a_pipe_in_place_of_a_table_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "scans.csv")
    with pytest.raises(ManifestError, match="is no file, but a pipe or a device"):
        base.read_cells(tmp_path / "set" / "scans.csv")
    task = card("table", "a b", layout_options={"table": "scans.csv"})
    with pytest.raises(ManifestError, match="the table scans.csv is missing"):
        reader.read(task, tmp_path)


def test_a_pipe_in_place_of_an_image_is_a_problem_with_its_name(tmp_path):
    touch(tmp_path / "set", "a/x.png", "b/y.png")
    os.mkfifo(tmp_path / "set" / "a" / "pipe.png")
    assert "is not in" in manifest.file_problem(tmp_path, "set/a/pipe.png")


def test_medmnist_labels_beyond_reason_are_refused_by_their_header(tmp_path, monkeypatch):
    write_npz(tmp_path / "set" / "breastmnist.npz")
    monkeypatch.setattr(generic, "MAX_LABELS", 2)
    with pytest.raises(ManifestError, match=r"its labels have the shape \(3, 1\)"):
        reader.read(mnist(), tmp_path)
