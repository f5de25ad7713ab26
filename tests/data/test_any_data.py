"""Folders and tables that people really have: all is read correctly, or named with the way out."""

import os
import unicodedata

import pandas as pd
import pytest
from made_folders import card, picture, prepare, reasons, refusal, save, touch
from PIL import Image

from medlib.data import decoding, manifest, passport
from medlib.data.layouts import base, reader
from medlib.errors import ManifestError


def own(**options):
    return card("table", layout_options={"table": "table.csv"} | options)


def write(root, *lines):
    root.mkdir(parents=True, exist_ok=True)
    (root / "table.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def column(found, name):
    return dict(zip(found.rows["sample_id"], found.rows[name], strict=True))


# ---------------------------------------------------------------------------------- which files


def test_the_endings_that_are_looked_for_are_those_of_the_formats_that_are_decoded():
    known = Image.registered_extensions().items()
    assert set(base.IMAGES) == {ending for ending, kind in known if kind in decoding.FORMATS}


def test_whatever_pillow_reads_is_read_and_other_files_are_counted_by_ending_and_class(tmp_path):
    for k, ending in enumerate(["jpg", "jfif", "gif", "pgm", "jp2", "PNG"] * 2):
        save(picture(k).convert("L"), tmp_path / "set" / "ab"[k // 6] / f"{k}.{ending}")
    touch(tmp_path / "set", "a/1.svs", "a/2.SVS", "b/3.dcm", "b/4", "notes.txt")
    prepared = prepare(card(), tmp_path)
    assert len(prepared.rows) == 12
    assert reasons(prepared.excluded) == {
        "a/*.svs": "2 file(s) with the ending .svs: not read",
        "b/*.dcm": "1 file(s) with the ending .dcm: not read",
        "b/*": "1 file(s) with no ending: not read",
        "*.txt": "1 file(s) with the ending .txt: not read",
    }
    numbers = passport.table(prepared.rows, ["a", "b"], prepared.duplicates, prepared.excluded)
    left_out = numbers[numbers["part"] == "left out"]
    assert left_out["name"].str.contains("2 file(s) with the ending .svs", regex=False).any()


def test_official_folders_count_what_is_not_read_within_each_class(tmp_path):
    touch(tmp_path / "set", "Training/a/1.png", "Testing/a/2.png", "Training/b/3.svs")
    found = reader.read(card(), tmp_path)
    assert column(found, "split") == {"Training-a-1": "train", "Testing-a-2": "test"}
    assert list(found.excluded["name"]) == ["Training/b/*.svs"]


def test_a_folder_without_any_image_is_told_which_endings_it_has(tmp_path):
    touch(tmp_path / "set", "a/1.svs", "a/2.svs", "b/3.svs", "b/4.mha")
    with pytest.raises(
        ManifestError, match=r"no sample was found(?s:.*)2 file\(s\).*\.svs"
    ) as caught:
        reader.read(card(), tmp_path)
    assert "b/*.mha: 1 file(s) with the ending .mha" in str(caught.value)


def test_masks_and_drawings_beside_their_image_are_set_aside(tmp_path):
    drawn = ["a (0)_mask.png", "a (0)_mask_1.png", "x-segmentation.tif", "x_overlay.jpg"]
    touch(tmp_path / "set" / "a", "a (0).png", "x.jpg", "who_mask.png", *drawn, "masks/x.png")
    found = reader.read(card(), tmp_path)
    assert set(found.rows["sample_id"]) == {"a-a (0)", "a-x", "a-who_mask"}  # one stands alone
    why = "a mask or a drawing of the image beside it, by its name"
    expected = {f"a/{name}": why for name in drawn}
    assert reasons(found.excluded) == expected | {
        "a/masks/x.png": "a mask or a drawing, by its folder"
    }
    assert found.problems.empty


def test_what_looks_like_a_mask_of_another_image_stops_until_it_is_judged(tmp_path):
    for k in range(6):
        save(picture(k), tmp_path / "set" / "ab"[k % 2] / f"{k}.png")
    mask = Image.new("L", (96, 80))
    mask.paste(255, (20, 20, 60, 60))
    save(mask, tmp_path / "set" / "a" / "0_tumour.png")
    save(mask.resize((90, 80)), tmp_path / "set" / "a" / "2_small.png")  # of another size
    save(picture(9), tmp_path / "set" / "a" / "4_later.png")  # many grey values
    assert "a-0_tumour: it looks like a mask of set/a/0" in refusal(card(), tmp_path)
    prepared = prepare(card(), tmp_path, quarantine=True)
    assert list(prepared.excluded["name"]) == ["a-0_tumour"] and len(prepared.rows) == 8


def test_names_that_are_no_utf_8_are_told_with_the_way_out(tmp_path):
    touch(tmp_path / "set", "a/1.png", "b/2.png")
    with open(os.fsencode(tmp_path / "set" / "a") + b"/gr\xfcn.png", "wb") as file:
        file.write(b"x")
    found = reader.read(card(), tmp_path)
    (reason,) = found.problems["reason"]
    assert "its path is not written in UTF-8: rename" in reason and len(found.rows) == 2
    assert list(found.problems["name"]) == ["a-gr\\udcfcn"]


def test_a_pointer_of_git_lfs_is_told_from_an_image_and_from_a_table(tmp_path):
    for k in range(6):
        save(picture(k), tmp_path / "set" / "ab"[k % 2] / f"{k}.png")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 9\n"
    (tmp_path / "set" / "a" / "0.png").write_bytes(pointer)
    assert "0.png (a-0) is a Git LFS pointer, not the file: run `git lfs pull`" in refusal(
        card(), tmp_path
    )
    (tmp_path / "set" / "table.csv").write_bytes(pointer)
    assert "table.csv is a Git LFS pointer" in refusal(own(), tmp_path)


# -------------------------------------------------------------------------------------- patients


def test_blank_images_are_reported_and_never_tie_patients(tmp_path):
    """60 patients with two images each; 40 of them share one black picture."""
    black = Image.new("RGB", (96, 80))
    for k in range(60):
        folder = tmp_path / "set" / "ab"[k % 2]
        save(picture(k), folder / f"p{k:02d}_1.png")
        save(black if k < 40 else picture(100 + k), folder / f"p{k:02d}_2.png")
    task = card(layout_options={"patient": r"^(p\d+)_"})
    message = refusal(task, tmp_path)
    assert "40 problem(s)" in message and "a-p00_2: it is blank: replace it" in message
    prepared = prepare(task, tmp_path, quarantine=True)
    assert len(prepared.excluded) == 40 and len(prepared.rows) == 80
    patients = prepared.rows.groupby("fold")["patient_id"].nunique()
    assert patients.max() - patients.min() <= 2  # of 60 patients in three folds


def test_one_picture_ties_no_more_than_a_few_patients(tmp_path):
    placeholder = picture(999)
    for k in range(30):
        folder = tmp_path / "set" / "ab"[k % 2]
        save(picture(k), folder / f"p{k:02d}_1.png")
        if k % 2 == 0 and k < 14:  # seven patients of one class
            save(placeholder, folder / f"p{k:02d}_2.png", compress_level=k % 9)
    task = card(layout_options={"patient": r"^(p\d+)_"})
    message = refusal(task, tmp_path)
    assert "7 patients have this picture (p00, p02, p04, …), more than 5" in message
    prepared = prepare(task, tmp_path, quarantine=True)
    assert len(prepared.rows) == 30 and len(prepared.excluded) == 7


def chexpert(root, per_patient=2, patients=20):
    names = [
        f"train/patient{k:05d}/study{n}/view1_frontal.jpg"
        for k in range(patients)
        for n in range(per_patient)
    ]
    touch(root, *names)
    return names


def test_without_patients_it_is_said_that_each_image_is_one_and_likely_names_are_shown(tmp_path):
    names = chexpert(tmp_path / "set")
    write(tmp_path / "set", "path,label", *(f"{n},{'ab'[k // 2 % 2]}" for k, n in enumerate(names)))
    found = reader.read(own(), tmp_path)
    assert found.rows["patient_id"].nunique() == 40
    first, likely = found.notes
    assert first.startswith("Patients are not known")
    assert "40 paths hold 20 names such as 'patient00000'" in likely
    option = "patient: '(patient\\d+).*/'"
    assert likely.endswith(option)
    found = reader.read(own(patient=r"(patient\d+).*/"), tmp_path)  # as the note says
    assert found.rows["patient_id"].nunique() == 20 and found.notes == ()


def test_a_patient_is_found_in_the_folders_of_a_class(tmp_path):
    touch(tmp_path / "set", "a/p1/1.png", "a/p1/2.png", "b/p2/1.png", "b/other/1.png")
    found = reader.read(card(layout_options={"patient": r"/(p\d)/"}), tmp_path)
    assert column(found, "patient_id") == {"a-p1-1": "p1", "a-p1-2": "p1", "b-p2-1": "p2"}
    assert reasons(found.problems) == {
        "b/other/1.png": "its path tells no patient: it has no '/(p\\\\d)/'"
    }


def test_a_column_that_may_name_patients_is_pointed_out(tmp_path):
    touch(tmp_path / "set", "1.png", "2.png")
    write(tmp_path / "set", "path,label,PatientID", "1.png,a,7", "2.png,b,7")
    assert "columns: {patient_id: PatientID}" in reader.read(own(), tmp_path).notes[1]


@pytest.mark.parametrize("unknown", ["nan", "NA", "unknown", "Unknown", "n/a", "None"])
def test_a_patient_that_is_not_known_is_no_patient(tmp_path, unknown):
    touch(tmp_path / "set", "1.png", "2.png", "3.png")
    lines = ["1.png,a,p1", f"2.png,b,{unknown}", f"3.png,b,{unknown}"]
    write(tmp_path / "set", "path,label,patient_id", *lines)
    found = reader.read(own(), tmp_path)
    assert list(found.rows["sample_id"]) == ["1"]
    assert reasons(found.problems) == dict.fromkeys("23", "its patient_id is empty")
    rows = pd.DataFrame(
        {"sample_id": ["x"], "patient_id": [unknown], "path": ["x"], "label": ["a"]}
    )
    _, unusable = manifest.sound_rows(rows, card())  # a manifest of one's own
    assert reasons(unusable) == {"x": "its patient_id is empty"}


@pytest.mark.parametrize("by", ["folders", "table"])
def test_patients_on_both_sides_of_an_official_split_are_all_named_or_leave_training(tmp_path, by):
    lines = ["path,label,patient_id,split"]
    for k in range(24):
        side, label = ("train", "test")[k >= 16], "ab"[k % 2]
        name = f"{side}/{label}/p{k % 20:02d}_{k}.png"  # p00 to p03 are on both sides
        save(picture(k), tmp_path / "set" / name)
        lines.append(f"{name},{label},p{k % 20:02d},{side}")
    write(tmp_path / "set", *lines)
    task = card(split="official", layout_options={"patient": r"^(p\d+)_"})
    task = task if by == "folders" else own().model_copy(update={"split": "official"})
    message = refusal(task, tmp_path)
    assert "4 patient(s) are on several sides" in message
    assert all(f"p{k:02d}: split test (1), split train (1)" in message for k in range(4))
    assert "Move their files to one side, or correct the table" in message
    prepared = prepare(task, tmp_path, quarantine=True)
    assert len(prepared.rows) == 20 and (prepared.rows["split"] == "test").sum() == 8
    assert len(prepared.excluded) == 4
    assert all("is on another side as well" in reason for reason in prepared.excluded["reason"])


# ---------------------------------------------------------------------------------------- tables


def test_a_quotation_mark_that_is_not_closed_is_refused_with_its_rows(tmp_path):
    lines = [f"{k}.png,{'ab'[k % 2]},fine" for k in range(24)]
    lines[4], lines[19] = '4.png,a,"a bit dark', '19.png,b,"blurred'
    write(tmp_path / "set", "path,label,note", *lines)
    touch(tmp_path / "set", *(f"{k}.png" for k in range(24)))
    with pytest.raises(ManifestError) as caught:
        reader.read(own(), tmp_path)
    message = str(caught.value)
    assert "row 6: a quotation mark is opened" in message and "row 21: a quot" in message


def test_rows_that_a_text_has_swallowed_are_seen(tmp_path):
    """The second quotation mark is where a text may end, so the CSV is valid but has fewer rows."""
    lines = ["1.png,a,fine", '2.png,a,"dark', "3.png,a,fine", '4.png,b,"', "5.png,b,fine"]
    write(tmp_path / "set", "path,label,note", *lines)
    touch(tmp_path / "set", *(f"{k}.png" for k in range(1, 6)))
    with pytest.raises(ManifestError, match="row 3: a text within it looks like rows"):
        reader.read(own(), tmp_path)


def test_notes_of_several_lines_and_quoted_commas_are_read(tmp_path):
    touch(tmp_path / "set", "1.png", "2.png")
    lines = ['1.png,a,"two\nlines, and ""quoted"""', "2.png,b,5' 10\u2028\x0b", ""]
    write(tmp_path / "set", "path,label,note", *lines)
    assert list(reader.read(own(), tmp_path).rows["label"]) == ["a", "b"]


def test_a_row_with_more_cells_than_the_header_is_refused(tmp_path):
    write(tmp_path / "set", "path,label", "1.png,a", "2.png,b,,", "3.png,b, see note, left")
    with pytest.raises(ManifestError, match="row 4: it has 4 cells, the header 2"):
        reader.read(own(), tmp_path)


def test_images_that_no_row_names_are_listed(tmp_path):
    touch(tmp_path / "set", "1.png", "2.png", "in/3.png")
    write(tmp_path / "set", "path,label", "1.png,a", "2.png,b")
    found = reader.read(own(), tmp_path)
    assert reasons(found.excluded) == {"in/3.png": "no row of table.csv names it"}


def test_two_columns_of_one_name_are_refused_if_that_name_is_asked_for(tmp_path):
    touch(tmp_path / "set", "1.png", "2.png")
    write(tmp_path / "set", "path,label,label,note,note", "1.png,a,b,,", "2.png,b,b,,")
    with pytest.raises(ManifestError, match=r"occurs several times: label\. Rename or remove"):
        reader.read(own(), tmp_path)
    write(tmp_path / "set", "path,label,note,note", "1.png,a,,", "2.png,b,,")
    assert len(reader.read(own(), tmp_path).rows) == 2


def test_a_tables_own_folds_are_used_when_they_are_named_and_else_pointed_out(tmp_path):
    lines = [f"{k}.png,{'ab'[k % 2]},{k // 2 % 3}" for k in range(12)]
    for k in range(12):
        save(picture(k), tmp_path / "set" / f"{k}.png")
    write(tmp_path / "set", "path,label,fold", *lines)
    assert any(
        "The column fold of table.csv is not used" in n for n in prepare(own(), tmp_path).notes
    )
    rows = prepare(own(columns={"fold": "fold"}), tmp_path).rows.set_index("sample_id")
    assert [rows.loc[str(k), "fold"] for k in range(12)] == [k // 2 % 3 for k in range(12)]
    lines = [line[:-1] + str(int(line[-1]) + 9) for line in lines]  # 9, 10 and 11
    write(tmp_path / "set", "path,label,part", *lines[:-1], "11.png,b,")
    task = own(columns={"fold": "part"})
    assert "11: its fold is empty" in refusal(task, tmp_path)
    prepared = prepare(task, tmp_path, quarantine=True)
    again = prepared.rows.set_index("sample_id")["fold"]
    assert again.equals(rows["fold"].drop("11"))
    assert "counted from 0 on: 9 is 0, 10 is 1, 11 is 2." in prepared.notes[0]


def test_ages_and_sexes_are_read_however_they_are_written(tmp_path):
    touch(tmp_path / "set", *(f"{k}.png" for k in range(6)))
    known = ["058Y,M", "018M,male", "58,F", "010D,Female", "4W,w", "unknown,O"]
    write(tmp_path / "set", "path,label,age,sex", *(f"{k}.png,a,{x}" for k, x in enumerate(known)))
    rows = reader.read(own(), tmp_path).rows
    assert list(rows["age"]) == ["58", "1.5", "58", "0.03", "0.08", ""]
    assert list(rows["sex"]) == ["male", "male", "female", "female", "female", "O"]


# --------------------------------------------------------------------- what a table calls things


def test_files_are_found_however_the_table_writes_their_names(tmp_path):
    umlaut = unicodedata.normalize("NFD", "grün")
    touch(
        tmp_path / "set",
        "in/A1.PNG",
        "in/b2.jpg",
        "in/b2.json",
        f"in/{umlaut}.png",
        "in/deep/c3.tif",
        "d4.png",
    )
    names = [r"in\a1.png", "b2", unicodedata.normalize("NFC", "grün.png"), "c3.tif"]
    names.append("/somewhere/else/set/d4.png")
    write(tmp_path / "set", "path,label", *(f"{name},a" for name in names))
    found = reader.read(own(), tmp_path)
    assert found.problems.empty and list(found.excluded["name"]) == ["in/*.json"]
    paths = ["in/A1.PNG", "in/b2.jpg", f"in/{umlaut}.png", "in/deep/c3.tif", "d4.png"]
    assert list(found.rows["path"]) == [f"set/{path}" for path in paths]
    assert any("5 file(s) of table.csv were found by searching" in note for note in found.notes)


def test_a_name_that_may_be_several_files_is_refused_with_all_of_them(tmp_path):
    touch(tmp_path / "set", "left/1.png", "right/1.png", "2.png", "2.jpg", "x/3.png")
    write(tmp_path / "set", "path,label", "1.png,a", "2,b", "y/3.png,b", "4.png,a", "x/3.png,a")
    found = reader.read(own(), tmp_path)
    said = reasons(found.problems)
    assert "1.png may be left/1.png, right/1.png: name its folder as well" in said["1"]
    assert "2 may be 2.jpg, 2.png" in said["2"]
    assert said["y-3"] == "y/3.png is not there: looked in set, and for its name below"
    assert list(found.rows["sample_id"]) == ["x-3"]


def test_the_folder_of_a_bare_name_may_stand_in_another_column(tmp_path):
    touch(tmp_path / "set", "left/1.png", "right/1.png")
    write(tmp_path / "set", "side,name,label", "left,1.png,a", "right,1.png,b")
    found = reader.read(own(columns={"path": ["side", "name"]}), tmp_path)
    assert column(found, "path") == {"left-1": "set/left/1.png", "right-1": "set/right/1.png"}


def test_two_files_of_one_stem_are_two_samples_if_the_table_tells_them_apart(tmp_path):
    touch(tmp_path / "set", "x.png", "x.jpg", "y.png")
    write(tmp_path / "set", "path,label", "x.png,a", "x.jpg,b", "y.png,b")
    found = reader.read(own(), tmp_path)
    assert column(found, "label") == {"x.png": "a", "x.jpg": "b", "y": "b"}


def test_rows_are_chosen_by_the_values_of_columns(tmp_path):
    touch(tmp_path / "set", *(f"{k}.png" for k in range(4)))
    lines = ["0.png,a,PA,X-ray", "1.png,b,ap,X-ray", "2.png,b,L,X-ray", "3.png,a,PA,CT"]
    write(tmp_path / "set", "path,label,view,modality", *lines)
    where = {"view": ["PA", "AP"], "modality": ["X-ray"]}
    found = reader.read(own(where=where), tmp_path)
    assert list(found.rows["sample_id"]) == ["0", "1"]
    assert reasons(found.excluded) == {
        "2": "its view is 'L', not PA or AP (where)",
        "3": "its modality is 'CT', not X-ray (where)",
    }
    with pytest.raises(ManifestError, match=r"columns missing: veiw; found: path, label, view"):
        reader.read(own(where={"veiw": "PA"}), tmp_path)


def test_codes_match_in_any_case_and_by_a_pattern(tmp_path):
    codes = ["A", "b", "Adenoma, tubular", "adenoma", "1.0", "1", "polyp", "TRUE"]
    touch(tmp_path / "set", *(f"{k}.png" for k in range(8)))
    write(tmp_path / "set", "path,label", *(f'{k}.png,"{code}"' for k, code in enumerate(codes)))
    task = own(names={"a": "a", "B": "b", 1.0: "b", "True": "b"}, patterns={"adenoma.*": "a"})
    found = reader.read(task, tmp_path)
    assert list(found.rows["label"]) == ["a", "b", "a", "a", "b", "b", "b"]
    (reason,) = found.problems["reason"]
    assert reason.startswith("labelled 'polyp' in table.csv, not one of a, B, 1, True, adenoma.*")


@pytest.mark.parametrize(
    "words", ["Training Testing Validation", "train test val", "TRAIN test valid"]
)
def test_the_sides_of_a_table_may_be_called_in_several_ways(tmp_path, words):
    touch(tmp_path / "set", "0.png", "1.png", "2.png")
    lines = [f"{k}.png,a,{word}" for k, word in enumerate(words.split())]
    write(tmp_path / "set", "path,label,split", *lines)
    assert list(reader.read(own(), tmp_path).rows["split"]) == ["train", "test", "val"]


def test_whole_numbers_that_pandas_wrote_as_floats_are_the_cards_classes(tmp_path):
    rows = pd.DataFrame({"sample_id": ["x", "y"], "patient_id": ["p", "q"], "path": ["x", "y"]})
    rows["label"] = ["1.0", "2.5"]
    sound, unusable = manifest.sound_rows(rows, card(classes=("0", "1")))
    assert sound["label"].tolist() == ["1"]
    assert reasons(unusable) == {"y": "label '2.5' is not a class of the card (0, 1)"}


@pytest.mark.parametrize("protected", [True, False])
def test_an_old_or_protected_workbook_is_named_as_such(tmp_path, protected):
    inside = "EncryptedPackage".encode("utf-16-le") if protected else b"Workbook"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "table.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + inside)
    kind = "a workbook with a password" if protected else r"an old Excel file \(\.xls\)"
    with pytest.raises(ManifestError, match=rf"table\.xlsx is {kind}: save it as CSV"):
        reader.read(card("table", layout_options={"table": "table.xlsx"}), tmp_path)
