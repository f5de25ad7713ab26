"""Layouts: folders as they are distributed become rows, and what is left out has a reason."""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlib import layouts, manifest, phantoms
from medlib.manifest import ManifestError

TASKS = ("chest_xray", "fundus", "dermoscopy", "glioma_t1", "glioma_t1ce", "glioma_flair")


def touch(root, *paths):
    """Files of distinct bytes; layouts read names and tables, never pixels."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"content of " + path.encode())


def read(task, root):
    return layouts.read(manifest.read_card(task), root)


def toy(**changes):
    fields = {
        "task": "toy", "title": "Toy", "modality": "drawing", "classes": ("a", "b"), "folds": 3,
        "licence": "CC0", "citation": "nobody", "source": "https://example.org",
    }  # fmt: skip
    return manifest.Card(**fields | changes)


def reasons(excluded):
    return dict(zip(excluded["name"], excluded["reason"], strict=True))


# -------------------------------------------------------------------------------------- kermany


def test_a_radiographs_patient_is_in_its_name_and_counts_anew_in_each_folder(tmp_path):
    touch(
        tmp_path / "chest_xray",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0383-0001-0002.jpeg",
        "train/PNEUMONIA/person7_bacteria_24.jpeg",
        "train/PNEUMONIA/person7_virus_1.jpeg",
        "test/NORMAL/IM-0115-0001.jpeg",
        "test/PNEUMONIA/person7_virus_9.jpeg",
        "val/PNEUMONIA/person9_virus_9.jpeg",  # the sixteen images that nobody uses
    )
    rows, excluded = read("chest_xray", tmp_path)
    assert excluded.empty
    found = rows.set_index("sample_id")
    assert found["patient_id"].to_dict() == {
        "train-IM-0115-0001": "train-IM-0115",
        "train-NORMAL2-IM-0383-0001": "train-NORMAL2-IM-0383",
        "train-NORMAL2-IM-0383-0001-0002": "train-NORMAL2-IM-0383",
        "train-person7_bacteria_24": "train-person7",
        "train-person7_virus_1": "train-person7",
        "test-IM-0115-0001": "test-IM-0115",
        "test-person7_virus_9": "test-person7",
    }
    one = found.loc["train-person7_virus_1"]
    assert (one.label, one.split) == ("pneumonia", "train")
    assert one.path == "chest_xray/train/PNEUMONIA/person7_virus_1.jpeg"
    assert found["label"].value_counts().to_dict() == {"normal": 4, "pneumonia": 3}


def test_radiographs_without_a_patient_number_are_left_out_with_the_reason(tmp_path):
    touch(
        tmp_path / "chest_xray",
        "train/NORMAL/IM-0001-0001.jpeg",
        "train/NORMAL/._IM-0002-0001.jpeg",  # as macOS leaves them behind
        "train/PNEUMONIA/BACTERIA-1008087-0001.jpeg",
        "train/NORMAL/readme.txt",  # no image, no word about it
        "test/NORMAL/IM-0001-0001.jpeg",
    )
    rows, excluded = read("chest_xray", tmp_path)
    assert rows["sample_id"].tolist() == ["train-IM-0001-0001", "test-IM-0001-0001"]
    why = "no patient number in the file name"
    assert reasons(excluded) == {
        "._IM-0002-0001.jpeg": why,
        "BACTERIA-1008087-0001.jpeg": why,
    }


def test_a_missing_half_of_a_data_set_is_named(tmp_path):
    touch(tmp_path / "chest_xray", "train/NORMAL/IM-0001-0001.jpeg")
    with pytest.raises(ManifestError, match=r"chest_xray/test is missing: is the download"):
        read("chest_xray", tmp_path)


# ---------------------------------------------------------------------------------- iChallenge-PM


def write_palm(root, train, test, table):
    palm = root / "ichallenge_pm"
    touch(palm / "PALM-Training400", *train)
    touch(palm / "PALM-Validation400", *test)
    text = "imgName,Label\n" + "".join(f"{name},{label}\n" for name, label in table)
    (palm / "PALM-Validation400" / "labels.csv").write_text(text)


def test_fundus_labels_come_from_names_in_training_and_from_the_table_in_testing(tmp_path):
    test = ["V0001.jpg", "V0002.jpg"]
    write_palm(
        tmp_path,
        ["H0001.jpg", "N0001.jpg", "P0001.jpg"],
        test,
        [("V0002.jpg", 1), ("V0001.jpg", 0)],
    )
    rows, excluded = read("fundus", tmp_path)
    assert excluded.empty
    assert rows["patient_id"].tolist() == rows["sample_id"].tolist()
    assert rows[["sample_id", "label", "split"]].to_numpy().tolist() == [
        ["H0001", "other", "train"],
        ["N0001", "other", "train"],
        ["P0001", "pathologic_myopia", "train"],
        ["V0001", "other", "test"],
        ["V0002", "pathologic_myopia", "test"],
    ]
    assert rows["path"].iloc[-1] == "ichallenge_pm/PALM-Validation400/V0002.jpg"


def test_all_disagreements_of_fundus_labels_and_images_are_listed(tmp_path):
    write_palm(
        tmp_path,
        ["H0001.jpg", "P0001.jpg"],
        [f"V000{k}.jpg" for k in (1, 2, 3, 4)],
        [("V0001.jpg", 0), ("V0002.jpg", 2), ("V0003.jpg", 1), ("V0003.jpg", 0), ("V0009.jpg", 1)],
    )
    with pytest.raises(ManifestError) as caught:
        read("fundus", tmp_path)
    message = str(caught.value)
    assert "labels.csv" in message
    assert "V0004.jpg has no label" in message
    assert "V0009.jpg has a label but no image" in message
    assert "V0002.jpg is labelled '2', not 0 or 1" in message
    assert "V0003.jpg is listed twice" in message


def test_a_training_name_that_tells_no_label_is_never_taken_as_other(tmp_path):
    names = ["H0001.jpg", "p0002.jpg", "._P0003.jpg", "thumbnail.png"]
    write_palm(tmp_path, names, ["V0001.jpg"], [("V0001.jpg", 0)])
    try:
        rows, excluded = read("fundus", tmp_path)
    except ManifestError as error:  # to refuse them is as good as to leave them out
        assert "thumbnail.png" in str(error)
    else:
        labels = rows.set_index("sample_id")["label"].to_dict()
        assert labels.get("p0002") != "other"
        assert set(labels) <= {"H0001", "p0002", "V0001"}
        assert "thumbnail.png" in set(excluded["name"])


def test_a_missing_label_table_and_missing_columns_are_named(tmp_path):
    write_palm(tmp_path, ["H0001.jpg"], ["V0001.jpg"], [])
    table = tmp_path / "ichallenge_pm" / "PALM-Validation400" / "labels.csv"
    table.write_text("image;label\n")
    with pytest.raises(ManifestError, match=r"labels\.csv: columns missing: imgName, Label"):
        read("fundus", tmp_path)
    table.unlink()
    with pytest.raises(ManifestError, match=r"labels\.csv is missing: is the download"):
        read("fundus", tmp_path)


# -------------------------------------------------------------------------------------- HAM10000


def write_ham(root, rows, images):
    folder = root / "ham10000"
    touch(folder, *images)
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    text = header + "".join(f"{','.join(row)},histo,50.0,male,back\n" for row in rows)
    (folder / "HAM10000_metadata.csv").write_text(text)


def test_a_dermoscopy_patient_is_the_lesion_over_both_image_folders(tmp_path):
    write_ham(
        tmp_path,
        [("HAM_1", "ISIC_1", "nv"), ("HAM_2", "ISIC_2", "mel"), ("HAM_1", "ISIC_3", "nv")],
        [
            "HAM10000_images_part_1/ISIC_1.jpg",
            "HAM10000_images_part_1/ISIC_2.jpg",
            "HAM10000_images_part_2/ISIC_3.jpg",
        ],
    )
    rows, excluded = read("dermoscopy", tmp_path)
    assert excluded.empty
    assert rows.to_numpy().tolist() == [
        ["ISIC_1", "HAM_1", "ham10000/HAM10000_images_part_1/ISIC_1.jpg", "nv"],
        ["ISIC_2", "HAM_2", "ham10000/HAM10000_images_part_1/ISIC_2.jpg", "mel"],
        ["ISIC_3", "HAM_1", "ham10000/HAM10000_images_part_2/ISIC_3.jpg", "nv"],
    ]


def test_disagreements_of_dermoscopy_table_and_images_are_listed(tmp_path):
    write_ham(
        tmp_path,
        [("HAM_1", "ISIC_1", "nv"), ("HAM_2", "ISIC_2", "mel"), ("HAM_3", "ISIC_5", "df")],
        ["HAM10000_images_part_1/ISIC_1.jpg", "HAM10000_images_part_2/ISIC_4.jpg"],
    )
    with pytest.raises(ManifestError) as caught:
        read("dermoscopy", tmp_path)
    message = str(caught.value)
    assert "ISIC_2 has no image" in message
    assert "ISIC_5 has no image" in message
    assert "ISIC_4 is not in the table" in message
    assert "ISIC_1" not in message


# -------------------------------------------------------------------------------------- TCGA-LGG


def write_tcga(root, patients, table):
    """`patients` {folder: modalities}, `table` rows (patient, grade)."""
    folder = root / "tcga_lgg"
    for name, modalities in patients.items():
        touch(folder, *(f"{name}/{name}_{m}.nii.gz" for m in (*modalities.split(), "seg")))
    text = "Patient,histological_type,neoplasm_histologic_grade\n"
    text += "".join(f"{name},1,{grade}\n" for name, grade in table)
    (folder / "data.csv").write_text(text)


@pytest.mark.parametrize("modality", ["t1", "t1ce", "flair"])
def test_glioma_tasks_take_their_modality_and_the_grade_of_the_table(tmp_path, modality):
    complete = "t1 t1ce flair"
    write_tcga(
        tmp_path,
        {"TCGA_CS_4941_19960909": complete, "TCGA_CS_4942": complete, "TCGA_CS_494": complete},
        [("TCGA_CS_4941", 2), ("TCGA_CS_4942", 1), ("TCGA_CS_494", 1)],
    )
    rows, excluded = read(f"glioma_{modality}", tmp_path)
    assert excluded.empty
    assert dict(zip(rows["path"], rows["label"], strict=True)) == {
        f"tcga_lgg/TCGA_CS_494/TCGA_CS_494_{modality}.nii.gz": "grade_II",
        f"tcga_lgg/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_{modality}.nii.gz": "grade_III",
        f"tcga_lgg/TCGA_CS_4942/TCGA_CS_4942_{modality}.nii.gz": "grade_II",
    }


def test_glioma_patients_without_all_modalities_or_a_grade_are_left_out_with_the_reason(tmp_path):
    complete = "t1 t1ce flair"
    write_tcga(
        tmp_path,
        {
            "TCGA_DU_1": complete,
            "TCGA_DU_2": "t1ce flair",  # its _t1ce is no _t1
            "TCGA_DU_3": "flair",
            "TCGA_DU_4": complete,
            "TCGA_DU_5": complete,
        },
        [("TCGA_DU_1", 1), ("TCGA_DU_2", 1), ("TCGA_DU_3", 2), ("TCGA_DU_4", "")],
    )
    rows, excluded = read("glioma_t1", tmp_path)
    assert rows["sample_id"].tolist() == ["TCGA_DU_1"]
    assert reasons(excluded) == {
        "TCGA_DU_2": "no t1",
        "TCGA_DU_3": "no t1, t1ce",
        "TCGA_DU_4": "no known grade in data.csv",
        "TCGA_DU_5": "no known grade in data.csv",
    }


def test_two_scans_of_one_person_are_one_patient(tmp_path):
    complete = "t1 t1ce flair"
    write_tcga(
        tmp_path,
        {"TCGA_DU_7_19960909": complete, "TCGA_DU_7_20010101": complete, "TCGA_DU_8": complete},
        [("TCGA_DU_7", 1), ("TCGA_DU_8", 2)],
    )
    rows, _ = read("glioma_t1", tmp_path)
    assert rows["sample_id"].is_unique
    first, second, other = rows.sort_values("sample_id")["patient_id"]
    assert first == second != other


# --------------------------------------------------------------------------------------- reading


def test_an_unknown_layout_is_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(ManifestError, match=r"'kermani'.*Did you mean 'kermany'\?.*toy\.yaml"):
        layouts.read(toy(layout="kermani"), tmp_path)


def test_a_missing_data_set_says_where_to_get_it_and_where_it_belongs(tmp_path):
    with pytest.raises(ManifestError) as caught:
        read("dermoscopy", tmp_path)
    message = str(caught.value)
    for part in ("dermoscopy", "'ham10000'", str(tmp_path), "https://doi.org/10.7910/DVN/DBW86T"):
        assert part in message


def test_a_folder_without_samples_is_an_error(tmp_path):
    touch(tmp_path / "chest_xray", "train/x.txt", "test/x.txt")
    with pytest.raises(ManifestError, match=r"chest_xray: no sample was found"):
        read("chest_xray", tmp_path)


# --------------------------------------------------------------------------- preparing, given CSV


def given(root, **columns):
    """Twelve files, six patients of each class, and their CSV, outside of the data folder."""
    names = [f"{label}{k}" for label in "ab" for k in range(6)]
    touch(root / "data", *(f"own/{name}.png" for name in names))
    rows = pd.DataFrame({
        "sample_id": names, "patient_id": names, "path": [f"own/{n}.png" for n in names],
        "label": [n[0] for n in names],
    }).assign(**columns)  # fmt: skip
    rows.to_csv(root / "own.csv", index=False)
    return root / "data", root / "own.csv"


def test_a_given_manifest_fixes_samples_and_splits(tmp_path):
    folds = [2, 0, 1] * 4
    data, csv = given(tmp_path, fold=folds, comment="ignored")
    touch(data, "own/another.png")  # in the folder, not in the CSV
    (tmp_path / "own.excluded.csv").write_text("name,reason\na9,blurred\n")
    rows, excluded = layouts.prepare(toy(), data, given=csv, seed=5)
    assert rows.columns.tolist() == ["sample_id", "patient_id", "path", "label", "fold", "sha256"]
    assert rows["fold"].tolist() == folds
    contents = [b"content of " + path.encode() for path in rows["path"]]
    assert rows["sha256"].tolist() == [hashlib.sha256(c).hexdigest() for c in contents]
    assert reasons(excluded) == {"a9": "blurred"}


def test_a_given_manifest_without_splits_gets_them_from_the_seed(tmp_path):
    data, csv = given(tmp_path)
    first, excluded = layouts.prepare(toy(), data, given=csv, seed=0)
    assert excluded.empty
    assert pd.crosstab(first["label"], first["fold"]).to_numpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    folds = [
        layouts.prepare(toy(), data, given=csv, seed=seed)[0].set_index("sample_id")["fold"]
        for seed in (0, 1, 2)
    ]
    assert folds[0].to_dict() == first.set_index("sample_id")["fold"].to_dict()
    assert any((folds[0] != other).any() for other in folds[1:])


def test_a_given_manifest_of_other_files_names_each_of_them(tmp_path):
    data, csv = given(tmp_path, fold=[0, 1, 2] * 4, sha256="")
    rows = pd.read_csv(csv, dtype=str, keep_default_na=False)
    rows.loc[1, "sha256"] = "0" * 64
    rows.to_csv(csv, index=False)
    (data / "own" / "b5.png").unlink()
    with pytest.raises(ManifestError) as caught:
        layouts.prepare(toy(), data, given=csv)
    message = str(caught.value)
    assert "2 of 12 files do not fit the manifest" in message
    assert "own/a1.png has changed" in message
    assert "000000000000…" in message
    assert "own/b5.png (b5) is not in" in message
    assert "from_folder=True" in message


def test_a_given_manifest_with_strange_labels_is_refused_before_files_are_read(tmp_path):
    _, csv = given(tmp_path, fold=[0, 1, 2] * 4, label=["a", "c"] * 6)
    with pytest.raises(ManifestError, match=r"own\.csv: 6 problem.*(?s:.)*'c' of a1 is not"):
        layouts.prepare(toy(), tmp_path / "nowhere", given=csv)


def test_a_given_manifest_that_leaks_a_patient_is_refused(tmp_path):
    data, csv = given(tmp_path, fold=[0, 1, 2] * 4, patient_id=["p0"] * 2 + list("abcdefghij"))
    with pytest.raises(ManifestError, match=r"patient 'p0' stands in several folds: 0, 1"):
        layouts.prepare(toy(), data, given=csv)


def test_the_same_picture_in_two_given_folds_is_refused(tmp_path):
    data, csv = given(tmp_path, fold=[0, 1, 2] * 4)
    (data / "own" / "a1.png").write_bytes((data / "own" / "a0.png").read_bytes())
    with pytest.raises(ManifestError, match=r"a0, a1 are one image but stand in several folds"):
        layouts.prepare(toy(), data, given=csv)


def test_preparing_drops_the_training_side_of_known_duplicates(tmp_path):
    train = [f"{kind}{k:04d}.jpg" for kind in "NP" for k in range(6)]
    test = [f"V{k:04d}.jpg" for k in range(4)]
    write_palm(tmp_path, train, test, [(name, k % 2) for k, name in enumerate(test)])
    card = toy(
        classes=("other", "pathologic_myopia"), folder="ichallenge_pm", layout="ichallenge_pm",
        split="official", known_duplicates=(("V0001", "P0005"),),
    )  # fmt: skip
    rows, excluded = layouts.prepare(card, tmp_path)
    assert reasons(excluded) == {"P0005": "the same image as V0001 of the test set"}
    assert "P0005" not in set(rows["sample_id"])
    counts = rows["split"].value_counts()
    assert counts["test"] == 4
    assert counts["train"] + counts["val"] == 11
    assert counts["val"] in (2, 3)  # a fifth of six and of five patients


def test_an_image_of_the_test_set_in_training_is_refused_when_the_card_does_not_know(tmp_path):
    train = [f"{kind}{k:04d}.jpg" for kind in "NP" for k in range(6)]
    test = [f"V{k:04d}.jpg" for k in range(4)]
    write_palm(tmp_path, train, test, [(name, k % 2) for k, name in enumerate(test)])
    palm = tmp_path / "ichallenge_pm"
    twin = (palm / "PALM-Validation400" / "V0001.jpg").read_bytes()
    (palm / "PALM-Training400" / "P0005.jpg").write_bytes(twin)
    card = toy(
        classes=("other", "pathologic_myopia"), folder="ichallenge_pm", layout="ichallenge_pm",
        split="official",
    )  # fmt: skip
    with pytest.raises(ManifestError, match="P0005.*V0001.*one image but stand in several splits"):
        layouts.prepare(card, tmp_path)


# -------------------------------------------------------------------------------------- phantoms


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    for dataset in phantoms.DATASETS:
        phantoms.write(dataset, root, scale=0.01)
    return root


@pytest.mark.parametrize("task", TASKS)
def test_phantoms_of_every_card_are_prepared_whole(drawn, task):
    card = manifest.read_card(task)
    rows, excluded = layouts.prepare(card, drawn)
    pattern = "*.jp*g" if card.slices is None else f"*_{card.layout_options['modality']}.nii.gz"
    files = {path.relative_to(drawn).as_posix() for path in (drawn / card.folder).rglob(pattern)}
    taken = {p for p in files if not any(name in p for name in excluded["name"])}
    assert set(rows["path"]) == taken
    assert set(rows["label"]) == set(card.classes)
    side = "split" if card.split == "official" else "fold"
    assert rows.groupby("patient_id")[side].nunique().eq(1).all()
    assert manifest.classes(rows, card) == list(card.classes)
    if card.slices:
        assert len(excluded) == 3  # no T1, no T1ce, no grade: one patient each


def test_phantoms_carry_the_label_of_their_folder_or_table(drawn):
    chest, _ = read("chest_xray", drawn)
    assert (chest["label"].str.upper() == chest["path"].str.split("/").str[2]).all()
    ham, _ = read("dermoscopy", drawn)
    table = pd.read_csv(drawn / "ham10000" / "HAM10000_metadata.csv").set_index("image_id")
    assert (ham["label"].to_numpy() == table["dx"][ham["sample_id"]].to_numpy()).all()


def test_the_three_phantom_glioma_tasks_are_split_alike(drawn):
    prepared = [layouts.prepare(manifest.read_card(task), drawn)[0] for task in TASKS[3:]]
    folds = [dict(zip(rows["patient_id"], rows["fold"], strict=True)) for rows in prepared]
    assert folds[0] == folds[1] == folds[2]
    assert len({rows["path"].iloc[0] for rows in prepared}) == 3


# ------------------------------------------------------------------------------------- real data


@pytest.mark.real_data
@pytest.mark.parametrize("task", TASKS)
def test_real_folders_hold_the_samples_of_the_committed_manifest(real_data, task):
    card = manifest.read_card(task)
    rows, excluded = layouts.read(card, real_data)
    kept, _ = manifest.drop_known_duplicates(rows, card)
    columns = ["sample_id", "patient_id", "path", "label"]
    committed = pd.read_csv(manifest.CARDS / f"{task}.csv", dtype=str)[columns]
    assert sorted(kept[columns].to_numpy().tolist()) == sorted(committed.to_numpy().tolist())
    left_out = manifest.excluded_path(manifest.CARDS / f"{task}.csv")
    listed = reasons(pd.read_csv(left_out)) if left_out.is_file() and card.slices else {}
    assert reasons(excluded) == listed


@pytest.mark.real_data
def test_real_radiographs_are_5216_for_training_and_624_for_testing(real_data):
    rows, excluded = read("chest_xray", real_data)
    assert rows["split"].value_counts().to_dict() == {"train": 5216, "test": 624}
    assert pd.crosstab(rows["split"], rows["label"]).to_numpy().tolist() == [
        [234, 390],
        [1341, 3875],
    ]
    assert excluded.empty


@pytest.mark.real_data
def test_real_dermoscopy_is_10015_images_of_7470_lesions(real_data):
    rows, excluded = read("dermoscopy", real_data)
    assert (len(rows), rows["patient_id"].nunique(), len(excluded)) == (10015, 7470, 0)
    assert rows.groupby("patient_id")["label"].nunique().eq(1).all()


@pytest.mark.real_data
def test_real_fundus_twins_are_dropped_from_training(real_data):
    rows, excluded = layouts.prepare(manifest.read_card("fundus"), real_data)
    assert len(rows) == 798
    assert (rows["split"] == "test").sum() == 400
    assert reasons(excluded) == {
        "P0056": "the same image as V0163 of the test set",
        "P0057": "the same image as V0252 of the test set",
    }
    palm = real_data / "ichallenge_pm"
    for twin, kept in (("P0056", "V0163"), ("P0057", "V0252")):
        a, b = (
            np.asarray(Image.open(palm / folder / f"{name}.jpg"), float)
            for folder, name in (("PALM-Training400", twin), ("PALM-Validation400", kept))
        )
        assert np.abs(a - b).mean() < 1


@pytest.mark.real_data
@pytest.mark.parametrize("task", TASKS[3:])
def test_real_gliomas_are_100_patients_and_10_are_left_out(real_data, task):
    rows, excluded = layouts.prepare(manifest.read_card(task), real_data)
    assert rows["label"].value_counts().to_dict() == {"grade_III": 55, "grade_II": 45}
    assert rows["patient_id"].is_unique
    assert len(excluded) == 10
    assert all(re.fullmatch(r"no (t1|t1ce|t1, t1ce)", reason) for reason in excluded["reason"])
    counts = pd.crosstab(rows["label"], rows["fold"])
    assert counts.loc["grade_II"].tolist() == [9] * 5
    assert counts.loc["grade_III"].tolist() == [11] * 5
