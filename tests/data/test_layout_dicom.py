"""DICOM folders: labels from folders or tables, and nothing that identifies a patient goes out."""

import hashlib
import json
import shutil

import made_dicom
import numpy as np
import pydicom
import pytest

from medlib.data import cards, dicom, manifest, packs, passport, preparation
from medlib.data.layouts import reader
from medlib.errors import ManifestError


def card(classes="a b", layout="dicom", **changes):
    fields = {"task": "toy", "title": "Toy", "modality": "drawing", "licence": "CC0"}
    fields |= {"citation": "nobody", "source": "https://example.org", "folder": "set"}
    fields |= {"classes": tuple(classes.split()), "layout": layout, "grey_values": "as_stored"}
    return cards.Card(**fields | {"folds": 3} | changes)


def short(name):
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def pixels(seed, size=12):
    """A picture that resembles no other."""
    coarse = np.random.default_rng(seed).integers(0, 4096, (size, size), dtype=np.uint16)
    return np.kron(coarse, np.ones((8, 8), np.uint16))


def image(path, seed=0, **tags):
    return made_dicom.write(path, pixels(seed), BitsStored=12, HighBit=11, **tags)


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def column(found, name):
    return dict(zip(found.rows["path"], found.rows[name], strict=True))


def reasons(frame):
    return dict(zip(frame["name"], frame["reason"], strict=True))


# -------------------------------------------------------------------------- labels from folders


def test_a_folder_per_class_whatever_the_files_are_called(tmp_path):
    tags = {"PatientAge": "058Y", "PatientSex": "M", "Manufacturer": "Maker"}
    image(tmp_path / "set" / "a" / "IM0001", PatientID="p1", SOPInstanceUID="1.2.1", **tags)
    image(tmp_path / "set" / "a" / "deep" / "x.ima", PatientID="p1")
    image(tmp_path / "set" / "B side" / "y.DCM", PatientID="p2", InstitutionName="Clinic")
    found = reader.read(card(layout_options={"classes": {"B side": "b"}}), tmp_path)
    files = ["set/B side/y.DCM", "set/a/IM0001", "set/a/deep/x.ima"]
    assert column(found, "label") == dict(zip(files, "baa", strict=True))
    assert list(column(found, "patient_id").values()) == [short("p2"), short("p1"), short("p1")]
    assert column(found, "sample_id")["set/a/IM0001"] == short("1.2.1")
    (row,) = found.rows[found.rows["path"] == "set/a/IM0001"].to_dict("records")
    assert (row["age"], row["sex"], row["site"], row["manufacturer"]) == ("58", "male", "", "Maker")
    assert found.problems.empty and found.excluded.empty


def test_train_and_test_folders_are_the_split(tmp_path):
    for seed, path in enumerate(("train/a/1", "train/b/2", "test/a/3", "test/b/4", "val/b/5")):
        image(tmp_path / "set" / path, seed)
    found = reader.read(card(), tmp_path)
    assert list(column(found, "split").values()) == ["test", "test", "train", "train", "val"]
    image(tmp_path / "set" / "a" / "6", 6)
    found = reader.read(card(), tmp_path)
    assert reasons(found.problems) == {"a/6": "it lies in no folder of a class"}
    shutil.rmtree(tmp_path / "set" / "test")
    with pytest.raises(
        ManifestError, match="images in train, val; there must be some in train and"
    ):
        reader.read(card(), tmp_path)


def test_what_is_no_image_is_left_out_by_name(tmp_path):
    folder = tmp_path / "set" / "a"
    image(folder / "1", 1)
    made_dicom.write(folder / "DICOMDIR", SOPClassUID=made_dicom.DIRECTORY)
    made_dicom.write(folder / "sr", SOPClassUID=made_dicom.SR, Modality="SR")
    made_dicom.write(folder / "pr", SOPClassUID=made_dicom.PRESENTATION, Modality="PR")
    made_dicom.write(folder / "seg", pixels(2), Modality="SEG")
    image(folder / "scout", 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    table(folder / "notes.txt", "nothing")
    table(folder / "readings.csv", "a table, which needs no reason")
    shutil.copy(folder / "1", folder / "copy")
    found = reader.read(card(), tmp_path)
    assert list(column(found, "label")) == ["set/a/1"]
    assert reasons(found.excluded) == {
        "a/notes.txt": "no DICOM file",
        "set/a/copy": "a second copy of set/a/1",
        "a/DICOMDIR": "a DICOMDIR, which lists files and holds no image",
        "a/sr": "a DICOM file without a picture: Basic Text SR Storage",
        "a/pr": "a DICOM file without a picture: Grayscale Softcopy Presentation State Storage",
        "a/seg": "a DICOM file without a picture: Computed Radiography Image Storage",
        "a/scout": "a localizer",
    }


def test_a_file_without_ids_or_with_a_broken_header_is_a_problem(tmp_path):
    folder = tmp_path / "set" / "a"
    image(folder / "1", 1)
    image(folder / "2", 2, PatientID=None)
    made = made_dicom.dataset(pixels(3))
    del made.SOPInstanceUID
    (folder / "3").write_bytes(made_dicom.content(made))
    whole = made_dicom.content(pixels(4), NumberOfFrames="1")
    (folder / "4").write_bytes(whole.replace(b"IS\x02\x001 ", b"IS\x02\x00x "))
    table(folder / "5.dcm", "<html>not found</html>")
    (folder / "6").symlink_to(tmp_path / "nowhere")
    found = reader.read(card(), tmp_path)
    said = reasons(found.problems)
    assert set(said) == {"a/2", "a/3", "a/4", "a/5.dcm", "a/6"}
    assert "its patient_id is empty: name another key" in said["a/2"]
    assert "study_instance_uid" in said["a/2"]
    assert said["a/3"] == "it has no SOPInstanceUID: export it again"
    assert said["a/4"] == "its DICOM header is damaged (ValueError): copy it again"
    assert said["a/5.dcm"] == "it is no DICOM file: copy it again"
    assert said["a/6"] == "it cannot be read (No such file or directory)"
    # By another key, the patient is known.
    found = reader.read(card(layout_options={"patient": "file"}), tmp_path)
    assert (found.rows["patient_id"] == found.rows["sample_id"]).all() and len(found.rows) == 2
    with pytest.raises(ManifestError, match="Unknown patient 'name'.*file, sop_instance_uid"):
        reader.read(card(layout_options={"patient": "name"}), tmp_path)


# --------------------------------------------------------------------------- labels from a table


@pytest.mark.parametrize(
    "key, names",
    [
        ("sop_instance_uid", ["1.2.10", "1.2.11", "1.2.12"]),
        ("series_instance_uid", ["1.3.10", "1.3.11", "1.3.12"]),
        ("accession_number", ["A10", "A11", "A12"]),
        ("patient_id", ["p10", "p11", "p12"]),
        ("file", ["one/x10.dcm", "one/x11.dcm", "one/x12.dcm"]),
        ("file", ["x10.dcm", "x11.dcm", "x12.dcm"]),
        ("file", ["x10", "x11", "x12"]),
    ],
)
def test_a_table_names_images_by_any_of_their_ids(tmp_path, key, names):
    for number in (10, 11, 12):
        ids = {"SOPInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.3.{number}"}
        ids |= {"AccessionNumber": f"A{number}", "PatientID": f"p{number}"}
        image(tmp_path / "set" / "one" / f"x{number}.dcm", number, **ids)
    lines = [f"{name},{code}" for name, code in zip(names, "010", strict=True)]
    table(tmp_path / "set" / "labels.csv", "Which,Diagnosis", *lines)
    options = {"table": "labels.csv", "key": key, "names": {"0": "a", "1": "b"}}
    options["columns"] = {key: "Which", "label": "Diagnosis"}
    found = reader.read(card(layout_options=options), tmp_path)
    assert list(column(found, "label").values()) == ["a", "b", "a"]
    assert list(column(found, "patient_id").values()) == [short(f"p{n}") for n in (10, 11, 12)]


def test_all_images_of_a_study_get_its_label(tmp_path):
    study = {"StudyInstanceUID": "1.2.3", "PatientID": "p1"}
    for number in range(2):
        image(tmp_path / "set" / f"{number}.dcm", number, **study)
    image(tmp_path / "set" / "2.dcm", 2, StudyInstanceUID="1.2.4")
    # Of several rows with one label (a row for each box, say) the first tells the rest.
    lines = ["1.2.3,a,61", "1.2.3,a,", "1.2.4,b,"]
    table(tmp_path / "set" / "labels.csv", "study_instance_uid,label,age", *lines)
    options = {"table": "labels.csv", "key": "study_instance_uid"}
    found = reader.read(card(layout_options=options), tmp_path)
    assert list(column(found, "label").values()) == ["a", "a", "b"]
    assert list(column(found, "age").values()) == ["61", "61", ""]


def test_a_table_may_tell_patients_and_split_too(tmp_path):
    for number in range(3):
        image(tmp_path / "set" / f"{number}.dcm", number, PatientID="anonymous", PatientSex="F")
    lines = ["0,a,P7,train,male", "1,b,P8,test,", "2,b,P9,nowhere,"]
    table(tmp_path / "set" / "labels.csv", "file,label,patient_id,split,sex", *lines)
    found = reader.read(card(layout_options={"table": "labels.csv"}), tmp_path)
    assert found.rows["patient_id"].tolist() == [short("P7"), short("P8")]
    assert found.rows["split"].tolist() == ["train", "test"]
    assert found.rows["sex"].tolist() == ["male", ""]  # the table's column counts, also where empty
    said = {"2.dcm": "its split is 'nowhere' in labels.csv, not one of train, val, test"}
    assert reasons(found.problems) == said


def test_rows_and_images_that_do_not_fit_are_named_without_the_key(tmp_path):
    for number in range(4):
        image(tmp_path / "set" / "x" / f"{number}.dcm", number, AccessionNumber=f"ACC{number}")
    lines = ["ACC0,a", "ACC1,a", "ACC1,b", "ACC2,c", "ACC9,a", ",b"]
    table(tmp_path / "set" / "labels.csv", "accession_number,label", *lines)
    options = {"table": "labels.csv", "key": "accession_number"}
    found = reader.read(card(layout_options=options), tmp_path)
    assert list(column(found, "label")) == ["set/x/0.dcm"]
    assert reasons(found.problems) == {
        "x/1.dcm": "rows 3, 4 of labels.csv differ in its label or split",
        "x/2.dcm": "labelled 'c' in labels.csv, not one of a, b",
        "x/3.dcm": "no row of labels.csv has its accession_number",
        "row 6 of labels.csv": "no image has its accession_number",
        "row 7 of labels.csv": "its accession_number is empty",
    }
    known = card(layout_options=options, incomplete="leave_out")
    assert {"x/3.dcm", "row 6 of labels.csv"} <= set(reader.read(known, tmp_path).excluded["name"])


def test_a_file_name_that_is_there_twice_needs_its_path(tmp_path):
    for number, path in enumerate(("x/1.dcm", "y/1.dcm")):
        image(tmp_path / "set" / path, number)
    table(tmp_path / "set" / "labels.csv", "file,label", "x/1.dcm,a", "1.dcm,b")
    found = reader.read(card(layout_options={"table": "labels.csv"}), tmp_path)
    assert column(found, "label") == {"set/x/1.dcm": "a"}
    said = reasons(found.problems)
    assert said["row 3 of labels.csv"] == "several files have its file: give the path"
    assert said["y/1.dcm"] == "no row of labels.csv has its file"


def test_wrong_options_are_answered_with_the_right_ones(tmp_path):
    image(tmp_path / "set" / "1.dcm")
    for options, match in (
        ({"table": "x.csv"}, "the table x.csv is missing; there is: labels.csv"),
        ({"table": "labels.csv", "key": "sop"}, "Unknown key 'sop'.*sop_instance_uid"),
        ({"table": "labels.csv", "columns": {"lable": "x"}}, "Unknown column 'lable'"),
        ({"table": "labels.csv"}, "columns missing: label; found: file"),
    ):
        table(tmp_path / "set" / "labels.csv", "file", "1")
        with pytest.raises(ManifestError, match=match):
            reader.read(card(layout_options=options), tmp_path)


# --------------------------------------------------------------------------------------- volumes

VOLUMES = cards.Volumes(slices=3)


def head(seed):
    """A volume X×Y×Z with a head in it."""
    voxels = np.zeros((20, 24, 5), np.int16)
    voxels[3:17, 4:20] = np.random.default_rng(seed).integers(100, 2000, (14, 16, 5))
    return voxels


def test_with_volumes_each_series_is_a_sample(tmp_path):
    tags = {"PatientID": "p1", "PatientAge": "030Y"}
    made_dicom.write_series(
        tmp_path / "set" / "a" / "s", head(0), SeriesInstanceUID="1.2.3", **tags
    )
    for place in ("b/s", "b/t"):
        made_dicom.write_series(tmp_path / "set" / place, head(1), SeriesInstanceUID="1.2.4")
    made_dicom.write_series(tmp_path / "set" / "b" / "one", head(2)[:, :, :1])
    found = reader.read(card(volumes=VOLUMES), tmp_path)
    assert found.rows[["sample_id", "patient_id", "path", "label", "age"]].values.tolist() == [
        [short("1.2.3"), short("p1"), "set/a/s/000", "a", "30"]
    ]
    assert reasons(found.excluded) == {
        "b/one/000": "a series of one slice, and a volume needs several"
    }
    said = {"b/s/000": "its series lies in several folders: b/s, b/t: keep one"}
    assert reasons(found.problems) == said


@pytest.mark.parametrize(
    "key, names",
    [
        ("series_instance_uid", "1.3.{}"),
        ("sop_instance_uid", "1.2.{}.2"),
        ("file", "scans/s{}"),
        ("file", "s{}"),
        ("file", "scans/s{}/003"),
    ],
)
def test_a_table_names_a_series_by_itself_or_any_of_its_files(tmp_path, key, names):
    for number in range(2):
        folder = tmp_path / "set" / "scans" / f"s{number}"
        made_dicom.write_series(folder, head(number), SeriesInstanceUID=f"1.3.{number}")
        change_uids(folder, f"1.2.{number}")
    lines = [f"{names.format(number)},{label}" for number, label in enumerate("ab")]
    table(tmp_path / "set" / "labels.csv", f"{key},label", *lines)
    options = {"table": "labels.csv", "key": key}
    found = reader.read(card(volumes=VOLUMES, layout_options=options), tmp_path)
    assert column(found, "label") == {"set/scans/s0/000": "a", "set/scans/s1/000": "b"}


def test_a_table_of_paths_takes_a_slice_for_its_series_and_counts_no_other_slice_as_lost(tmp_path):
    for number in range(2):
        made_dicom.write_series(tmp_path / "set" / f"s{number}", head(number))
    made_dicom.write_series(tmp_path / "set" / "s2", head(2)[:, :, :2])
    table(tmp_path / "set" / "t.csv", "path,label", "s0/001,a", "s1/000,b")
    task = card(layout="table", layout_options={"table": "t.csv"}, volumes=VOLUMES)
    found = reader.read(task, tmp_path)
    assert column(found, "label") == {"set/s0/001": "a", "set/s1/000": "b"}
    assert reasons(found.excluded) == {"s2/*": "2 file(s) with no ending: not read"}


def test_images_that_say_that_text_is_burnt_in_are_counted_in_a_note(tmp_path):
    for number in range(12):
        burnt = {"BurnedInAnnotation": "YES"} if number < 3 else {}
        place = tmp_path / "set" / "ab"[number % 2] / str(number)
        image(place, number, PatientID=str(number), **burnt)
    notes = preparation.prepare(card(), tmp_path, workers=1).notes
    assert notes[-1].startswith("3 image(s) say that text is burnt into their pixels")


def change_uids(folder, stem):
    for number, path in enumerate(sorted(folder.iterdir())):
        made = pydicom.dcmread(path)
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{stem}.{number}"
        made.save_as(path)


def test_other_grey_values_make_another_pack(tmp_path):
    for number in range(12):
        place = tmp_path / "data" / "set" / "ab"[number % 2] / str(number)
        image(place, number, PatientID=str(number))
    how, drawn = {tmp_path / "pack": packs.Drawn(16, "bilinear")}, []
    for choice in ("as_stored", (0, 40950), (0, 40950)):
        used = card(grey_values=choice)
        done = preparation.prepare(used, tmp_path / "data", folders=how, workers=2)
        packed = packs.load(tmp_path / "pack", done.rows)
        drawn.append(packed.images.mean())
    assert abs(drawn[0] - 10 * drawn[1]) < 10 and drawn[1] == drawn[2]


def test_series_are_prepared_whole(tmp_path):
    """From files to packed slices; two patients in one series are named with the way out."""
    for number in range(12):
        folder = tmp_path / "data" / "set" / "ab"[number % 2] / f"s{number:02d}"
        made_dicom.write_series(folder, head(number), PatientID=f"p{number}")
    how = {tmp_path / "pack": packs.Drawn(16, "bilinear")}
    done = preparation.prepare(card(volumes=VOLUMES), tmp_path / "data", folders=how, workers=2)
    packed = packs.load(tmp_path / "pack", done.rows, VOLUMES)
    assert packed.images.shape == (36, 16, 16, 3)
    assert packed.index["slice"].tolist() == [1, 2, 3] * 12
    manifest.write(done.rows, done.excluded, tmp_path / "toy.csv", card(volumes=VOLUMES))
    again = tmp_path / "toy.csv", card(volumes=VOLUMES), tmp_path / "data", dicom.series_files
    manifest.read(*again)
    last = tmp_path / "data" / "set" / "a" / "s00" / "004"
    made = pydicom.dcmread(last)
    made.PatientID = "somebody else"
    made.save_as(last)
    with pytest.raises(ManifestError, match="s00/000 .*has changed"):
        manifest.read(*again)
    with pytest.raises(ManifestError, match="s00/000 cannot be read: it holds files of 2 patients"):
        preparation.prepare(card(volumes=VOLUMES), tmp_path / "data", workers=2)


# ------------------------------------------------------------------------------ the table layout


def test_in_the_table_layout_tags_tell_what_the_table_does_not(tmp_path):
    tags = {"PatientAge": "058Y", "PatientSex": "F", "InstitutionName": "Clinic"}
    image(tmp_path / "set" / "1.dcm", 1, PatientID="p1", Manufacturer="Maker", **tags)
    image(tmp_path / "set" / "2.dcm", 2, PatientID=None)
    lines = ["1.dcm,a,", "2.dcm,b,40"]
    table(tmp_path / "set" / "t.csv", "path,label,age", *lines)
    found = reader.read(card(layout="table", layout_options={"table": "t.csv"}), tmp_path)
    assert found.rows["patient_id"].tolist() == [short("p1"), "2.dcm"]
    assert found.rows["age"].tolist() == ["", "40"]
    assert found.rows["sex"].tolist() == ["female", ""]
    assert found.rows["site"].tolist() == ["Clinic", ""]
    assert found.rows["manufacturer"].tolist() == ["Maker", ""]


# --------------------------------------------------------------------------------------- privacy

MARKS = {
    "PatientName": "MARKNAME^JANE",
    "PatientID": "MARKPATIENT",
    "OtherPatientIDs": "MARKOTHER",
    "PatientBirthDate": "19610203",
    "PatientAddress": "MARKSTREET",
    "ReferringPhysicianName": "MARKDOCTOR^A",
    "PerformingPhysicianName": "MARKPERFORMER",
    "OperatorsName": "MARKOPERATOR",
    "InstitutionAddress": "MARKADDRESS",
    "StationName": "MARKSTATION",
    "StudyDate": "20190405",
    "SeriesDate": "20190405",
    "AcquisitionDate": "20190405",
    "StudyTime": "112233.445566",
    "StudyDescription": "MARKSTUDY",
    "SeriesDescription": "MARKSERIES",
    "ImageComments": "MARKCOMMENT",
    "AccessionNumber": "MARKACC",
    "StudyID": "MARKID",
    "DeviceSerialNumber": "MARKSERIAL",
}
# UIDs of the made files all begin so; dates may be written in two ways.
FORBIDDEN = [b"MARK", b"1.2.826.0.1.3680043.8.498", b"112233.4"]
FORBIDDEN += [b"19610203", b"1961-02", b"20190405", b"2019-04"]


def identified(number):
    tags = MARKS | {"PatientID": f"MARKPATIENT{number}", "AccessionNumber": f"MARKACC{number}"}
    tags |= {"InstitutionName": "Clinic", "Manufacturer": "Maker", "PatientSex": "F"}
    return tags | {"BurnedInAnnotation": "NO"}


def assert_nothing_marked(*texts):
    for text in texts:
        content = text if isinstance(text, bytes) else str(text).encode()
        for mark in FORBIDDEN:
            assert mark not in content, content[max(0, content.find(mark) - 80) :][:200]


def all_written(folder):
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_no_name_date_or_uid_leaves_the_files(tmp_path, kind, capfd, recwarn, caplog):
    data, results = tmp_path / "data", tmp_path / "results"
    for number in range(12):
        path = data / "set" / f"scan{number:02d}"
        if kind == "images":
            image(path, number, **identified(number))
        else:
            made_dicom.write_series(path, head(number), **identified(number))
    lines = [f"MARKACC{number},{'ab'[number % 2]}" for number in range(12)]
    table(data / "set" / "labels.csv", "accession_number,label", *lines)
    options = {"table": "labels.csv", "key": "accession_number"}
    used = card(layout_options=options, volumes=VOLUMES if kind == "volumes" else None)
    how = {results / "pack": packs.Drawn(16, "bilinear")}
    done = preparation.prepare(used, data, folders=how, workers=2)
    manifest.write(done.rows, done.excluded, results / "toy.csv", used, done.duplicates)
    numbers = passport.table(done.rows, used.classes, done.duplicates, done.excluded)
    numbers.to_csv(results / "passport.csv")
    assert (results / "pack" / "images.npy").is_file()
    assert done.rows["age"].tolist() == ["58"] * 12  # years alone are left of the dates
    assert {"age", "sex", "site", "manufacturer", "burnt_in"} <= set(done.rows)
    assert "manufacturer" in set(numbers["part"])
    assert_nothing_marked(*all_written(results), numbers.to_csv(), *capfd.readouterr())
    assert_nothing_marked(*(str(w.message) for w in recwarn), caplog.text)


def test_no_name_date_or_uid_stands_in_a_message(tmp_path, capfd, recwarn, caplog):
    """One file for each thing that can be wrong, with marks in all its tags."""
    data = tmp_path / "data"
    folder = data / "set"
    for number in range(12):
        image(folder / f"x{number:02d}", number, **identified(number))
    wrong = {"PatientAge": "MARKAGE", "Manufacturer": "Maker"}
    made = made_dicom.dataset
    bad = {
        "no uid": made(pixels(20), **identified(20)),
        "no patient": made(pixels(21), **identified(21) | {"PatientID": ""}),
        "frames": made(np.zeros((3, 4, 4), np.uint8), **identified(22)),
        "no rows": made(pixels(23), **identified(23) | {"Rows": None}),
        "no bits": made(pixels(24), **identified(24) | {"BitsAllocated": None}),
        "short": made(pixels(25), **identified(25) | {"Columns": 999}),
        "window": made(pixels(26), **identified(26) | wrong | {"PatientSex": "MARKSEX"}),
        "unlabelled": made(pixels(27), **identified(99)),
        "broken": made(pixels(28), **identified(28) | {"NumberOfFrames": "0001"}),
        "compressed": made(pixels(29), "1.2.840.10008.1.2.4.102", **identified(29)),
        "no decoder": made(pixels(30), "1.2.840.10008.1.2.4.70", **identified(30)),
        "date": made(pixels(31), **identified(31) | {"StudyDate": "MARK1961"}),
    }
    del bad["no uid"].SOPInstanceUID
    for name, one in bad.items():
        if name in ("compressed", "no decoder"):
            one.PixelData = pydicom.encaps.encapsulate([b"MARKPIXELS" * 3])
            one["PixelData"].is_undefined_length = True
        file = made_dicom.content(one)
        if name == "broken":
            file = file.replace(b"IS\x04\x000001", b"IS\x04\x00MARK")
        (folder / name).write_bytes(file)
    numbers = [*range(12), *range(20, 27), *range(28, 32), 1000]
    lines = [f"MARKACC{number},{'ab'[number % 2]}" for number in numbers]
    table(folder / "labels.csv", "accession_number,label", *lines)
    options = {"table": "labels.csv", "key": "accession_number"}
    messages, shown = [], []
    for choice in ("window", "as_stored", ""):
        with pytest.raises(ManifestError) as caught:
            preparation.prepare(card(layout_options=options, grey_values=choice), data, workers=2)
        messages.append(str(caught.value))
        shown += [str(e) for e in (caught.value, caught.value.__cause__, caught.value.__context__)]
    for name in ("no uid", "no patient", "frames", "no bits", "short", "broken", "compressed"):
        assert f"{name}" in messages[1], name
    assert "no decoder" in messages[1] and "unlabelled" in messages[1]
    assert "neither a window nor a VOI LUT" in messages[0] and "`grey_values`" in messages[2]
    done = preparation.prepare(card(layout_options=options), data, workers=2, quarantine=True)
    manifest.write(done.rows, done.excluded, tmp_path / "results" / "toy.csv", card())
    assert len(done.rows) == 14  # the twelve, "window" and "date" are sound
    assert_nothing_marked(*all_written(tmp_path / "results"), *messages, *shown)
    assert_nothing_marked(*capfd.readouterr(), *(str(w.message) for w in recwarn), caplog.text)


# ------------------------------------------------------------------------------ public data sets


def write_rsna(folder):
    """Write stage 2 as Kaggle ships it: a row for each box, test images without labels."""
    (folder / "stage_2_test_images").mkdir(parents=True)
    for number in range(8):
        tags = {"PatientID": f"id{number}", "PatientAge": "51", "PatientSex": "F"}
        path = folder / "stage_2_train_images" / f"id{number}.dcm"
        made_dicom.write(path, (pixels(number) >> 4).astype(np.uint8), **tags)
    image(folder / "stage_2_test_images" / "id99.dcm", 99)
    lines = ["patientId,x,y,width,height,Target"]
    for number in range(8):
        box = "264.0,152.0,213.0,379.0,1" if number % 2 else ",,,,0"
        lines += [f"id{number},{box}"] * (1 + number % 2)
    table(folder / "stage_2_train_labels.csv", *lines)
    table(folder / "stage_2_detailed_class_info.csv", "patientId,class", "id0,Normal")
    mapping = [
        {"subset_img_id": f"id{n}", "img_id": f"{n // 2:08d}_{n % 2:03d}.png", "orig_labels": []}
        for n in range(8)
    ]
    path = folder / "pneumonia-challenge-dataset-mappings_2018.json"
    path.write_text(json.dumps(mapping))
    return path


def test_rsna_pneumonia_as_kaggle_ships_it(tmp_path):
    mapping = write_rsna(tmp_path / "rsna-pneumonia-detection-challenge")
    used = cards.read("rsna_pneumonia")
    found = reader.read(used, tmp_path)
    assert found.rows["sample_id"].tolist() == [f"id{n}" for n in range(8)]
    assert found.rows["label"].tolist() == ["no_opacity", "opacity"] * 4
    assert found.rows["patient_id"].tolist() == [f"{n // 2:08d}" for n in range(8)]
    assert set(found.rows["age"]) == {"51"} and set(found.rows["sex"]) == {"female"}
    assert found.problems.empty
    mapping.unlink()
    with pytest.raises(ManifestError, match="dataset-mappings_2018.json is missing.*patients: "):
        reader.read(used, tmp_path)
    without = used.model_copy(update={"layout_options": {"patients": ""}})
    rows = reader.read(without, tmp_path).rows
    assert (rows["patient_id"] == rows["sample_id"]).all()


def test_rsna_images_whose_labels_or_patients_are_not_known_are_problems(tmp_path):
    mapping = write_rsna(tmp_path / "rsna_pneumonia")
    records = json.loads(mapping.read_text())
    mapping.write_text(json.dumps(records[1:]))
    labels = tmp_path / "rsna_pneumonia" / "stage_2_train_labels.csv"
    labels.write_text(labels.read_text() + "id2,1,1,1,1,1\nid50,,,,,0\n")
    said = reasons(reader.read(cards.read("rsna_pneumonia"), tmp_path).problems)
    assert said == {
        "id0": "its patient is not in pneumonia-challenge-dataset-mappings_2018.json",
        "id2": "it is in 2 rows of stage_2_train_labels.csv",
        "id50": "it has a label in stage_2_train_labels.csv but no image",
    }
    mapping.write_text("{}")
    mapping.write_text('[{"a": 1}]')
    with pytest.raises(ManifestError, match="is not RSNA's list"):
        reader.read(cards.read("rsna_pneumonia"), tmp_path)


def write_vindr(folder, votes, consensus):
    """Write it as PhysioNet ships it. ``votes``: who says "No finding" of each training image."""
    columns = "Aortic enlargement,Pneumonia,Other diseases,No finding"
    lines = [f"image_id,rad_id,{columns}"]
    for image_id, told in votes.items():
        image(folder / "train" / f"{image_id}.dicom", int(image_id, 16), PatientAge="045Y")
        lines += [f"{image_id},R{k},0,{1 - int(v)},0,{v}" for k, v in enumerate(told)]
    table(folder / "annotations" / "image_labels_train.csv", *lines)
    lines = [f"image_id,{columns.replace('diseases', 'disease')}"]
    for image_id, told in consensus.items():
        image(folder / "test" / f"{image_id}.dicom", int(image_id, 16), PatientID=None)
        lines += [f"{image_id},0,0,0,{told}"]
    table(folder / "annotations" / "image_labels_test.csv", *lines)
    table(folder / "annotations" / "annotations_train.csv", "image_id,rad_id,class_name,x_min")


def test_vindr_cxr_as_physionet_ships_it(tmp_path):
    votes = {"a0": "111", "a1": "110", "a2": "100", "a3": "000"}
    folder = tmp_path / "physionet.org" / "files" / "vindr-cxr" / "1.0.0"
    write_vindr(folder, votes, {"b0": "1", "b1": "0"})
    found = reader.read(cards.read("vindr_cxr"), tmp_path)
    rows = found.rows.set_index("sample_id")
    expected = ["no_finding", "no_finding", "finding", "finding", "no_finding", "finding"]
    assert rows["label"].to_dict() == dict(zip([*votes, "b0", "b1"], expected, strict=True))
    assert rows["split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert rows["age"].tolist() == ["45"] * 4 + [""] * 2
    assert (rows["patient_id"] == rows.index).all() and found.problems.empty


def test_votes_without_a_majority_are_problems(tmp_path):
    write_vindr(tmp_path / "vindr_cxr", {"a0": "10", "a1": "111"}, {"b0": "1", "b1": "0"})
    found = reader.read(cards.read("vindr_cxr"), tmp_path)
    said = {"a0": "labelled '1 0' in image_labels_train.csv, not one of 1, 0"}
    assert reasons(found.problems) == said


@pytest.mark.parametrize("task", ["rsna_pneumonia", "vindr_cxr"])
def test_public_data_sets_are_prepared_whole(tmp_path, task):
    if task == "rsna_pneumonia":
        write_rsna(tmp_path / "rsna_pneumonia")
    else:
        votes = {f"a{n}": "111" if n % 2 else "000" for n in range(10)}
        write_vindr(tmp_path / "vindr_cxr", votes, {f"b{n}": str(n % 2) for n in range(4)})
    used = cards.read(task).with_settings(folds=3)
    done = preparation.prepare(used, tmp_path, workers=2)
    side = "split" if used.split == "official" else "fold"
    assert done.rows.groupby("patient_id")[side].nunique().eq(1).all()
    assert set(done.rows["label"]) == set(used.classes)
