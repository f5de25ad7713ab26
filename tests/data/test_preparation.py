"""Preparation: problems that would make a comparison unsound stop it, or are set aside."""

import hashlib
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from medlib.data import cards, manifest, packs, phantoms, preparation
from medlib.data.cards import Volumes
from medlib.data.layouts import reader
from medlib.data.packing import pack
from medlib.errors import ManifestError

STAND_INS = list(cards.STAND_INS.values())
GLIOMA = STAND_INS[:3]


def toy(**changes):
    fields = {"task": "toy", "title": "Toy", "modality": "drawing", "classes": ("a", "b")}
    fields |= {"licence": "CC0", "citation": "nobody", "source": "https://example.org"}
    fields |= {"folds": 3, "folder": "own", "layout": "folder_per_class"}
    return cards.Card(**fields | changes)


def picture(seed, size=(96, 80)):
    """A picture that resembles no other: smooth noise, in colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write_classes(data, patients=6, **extra):
    """`own/{a,b}/{a,b}<k>.png`, and further files {path: bytes or picture}."""
    for number, label in enumerate("ab"):
        (data / "own" / label).mkdir(parents=True)
        for k in range(patients):
            picture(100 * number + k).save(data / "own" / label / f"{label}{k}.png")
    for path, content in extra.items():
        path = data / "own" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)
    return data


def prepare(card, data, **settings):
    return preparation.prepare(card, data, workers=1, **settings)


def reasons(excluded):
    return dict(zip(excluded["name"], excluded["reason"], strict=True))


def refusal(card, data, **settings):
    with pytest.raises(ManifestError) as caught:
        prepare(card, data, **settings)
    return str(caught.value)


# --------------------------------------------------------------------------------- bad files


BAD = {
    "a/empty.png": (b"", "is empty (0 bytes)"),
    "a/text.jpg": (b"<html>404 not found</html>", "no image in a format that can be read"),
    "b/truncated.png": (None, "truncated"),
    "b/outside.png": (None, "leads out of the data folder"),
}


@pytest.fixture
def spoiled(tmp_path):
    """A folder per class, sound but for four files."""
    data = write_classes(tmp_path / "data")
    for path, (content, _) in BAD.items():
        if content is not None:
            (data / "own" / path).write_bytes(content)
    whole = (data / "own" / "a" / "a0.png").read_bytes()
    (data / "own" / "b" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    picture(999).save(tmp_path / "elsewhere.png")
    (data / "own" / "b" / "outside.png").symlink_to(tmp_path / "elsewhere.png")
    return data


def test_all_files_that_cannot_be_used_are_listed_at_once(spoiled):
    message = refusal(toy(), spoiled)
    assert "toy: 4 problem(s)" in message and "quarantine=True" in message
    for path, (_, reason) in BAD.items():
        (line,) = [line for line in message.splitlines() if path in line]
        assert reason in line


def test_no_file_is_left_out_of_a_long_list(tmp_path):
    data = write_classes(tmp_path, **{f"a/bad{k:02d}.png": b"no picture" for k in range(60)})
    message = refusal(toy(), data)
    assert "60 problem(s)" in message
    assert all(f"bad{k:02d}.png" in message for k in range(60))


def test_what_cannot_be_used_is_set_aside_when_that_is_asked(spoiled):
    prepared = prepare(toy(), spoiled, quarantine=True)
    assert len(prepared.rows) == 12
    said = reasons(prepared.excluded)
    assert len(said) == 4
    for path, (_, reason) in BAD.items():
        name = path.rpartition(".")[0].replace("/", "-")
        assert said[name].startswith("set aside: ") and reason in said[name]


def test_when_nothing_can_be_used_that_is_said(tmp_path):
    (tmp_path / "own" / "a").mkdir(parents=True)
    (tmp_path / "own" / "a" / "x.png").write_bytes(b"")
    assert "none of the samples" in refusal(toy(), tmp_path, quarantine=True)


def test_names_with_spaces_and_other_letters_and_capital_extensions_are_read(tmp_path):
    names = ["b/ein Bild.PNG", "b/Läsion.JPEG", "b/写真.Jpg"]
    data = write_classes(tmp_path, **{name: picture(50 + i) for i, name in enumerate(names)})
    prepared = prepare(toy(), data)
    assert {f"own/{name}" for name in names} <= set(prepared.rows["path"])
    path = tmp_path / "results" / "toy.csv"
    manifest.write(prepared.rows, prepared.excluded, path, toy(), prepared.duplicates)
    again = manifest.read(path, toy(), data)
    assert again["path"].tolist() == prepared.rows["path"].tolist()


# -------------------------------------------------------------------------------- duplicates


def copy_of(seed):
    """The picture once more: smaller, brighter, coded anew."""
    return (
        picture(seed).resize((72, 60), Image.Resampling.LANCZOS).point(lambda v: min(255, v * 1.05))
    )


def official(tmp_path, **extra):
    """`own/{train,test}/{a,b}/…`, ten and four patients of each class."""
    for side, count in (("train", 10), ("test", 4)):
        for number, label in enumerate("ab"):
            folder = tmp_path / "own" / side / label
            folder.mkdir(parents=True)
            for k in range(count):
                name = f"{side}{label}{k}.png"
                picture(1000 * (side == "test") + 100 * number + k).save(folder / name)
    for path, content in extra.items():
        content.save(tmp_path / "own" / path)
    return tmp_path


def test_a_copy_on_both_sides_of_an_official_split_is_refused_with_the_ways_out(tmp_path):
    data = official(tmp_path, **{"train/a/copy.jpg": copy_of(1002)})
    message = refusal(toy(split="official"), data)
    assert "train-a-copy" in message and "test-a-testa2 (split test)" in message
    assert "known_duplicates" in message and "not_duplicates" in message


def test_of_a_known_copy_the_training_side_is_dropped_and_the_manifest_says_so(tmp_path):
    data = official(tmp_path, **{"train/a/copy.jpg": copy_of(1002)})
    card = toy(split="official", known_duplicates=(("train-a-copy", "test-a-testa2"),))
    prepared = prepare(card, data)
    assert reasons(prepared.excluded) == {
        "train-a-copy": "the same image as test-a-testa2 of the test set"
    }
    (pair,) = prepared.duplicates.to_dict("records")
    assert {pair["first"], pair["second"]} == {"train-a-copy", "test-a-testa2"}
    assert {pair["first_side"], pair["second_side"]} == {"train", "test"}
    assert pair["kind"] == "near" and pair["correlation"] > 0.98
    assert pair["action"] == "train-a-copy dropped"
    assert len(prepared.rows) == 28


def test_a_pair_that_the_card_knows_to_differ_is_no_duplicate(tmp_path):
    data = official(tmp_path, **{"train/a/copy.jpg": copy_of(1002)})
    card = toy(split="official", not_duplicates=(("test-a-testa2", "train-a-copy"),))
    prepared = prepare(card, data)
    assert prepared.duplicates.empty and len(prepared.rows) == 29


def test_in_quarantine_the_training_side_of_an_unknown_copy_is_dropped(tmp_path):
    data = official(tmp_path, **{"train/a/copy.jpg": copy_of(1002)})
    prepared = prepare(toy(split="official"), data, quarantine=True)
    said = reasons(prepared.excluded)
    assert said == {"train-a-copy": "set aside: the same image as test-a-testa2 of the test set"}


def test_a_chain_of_copies_leaves_none_on_another_side(tmp_path):
    """Three identical files, two in train and one in test: both in train are dropped."""
    data = official(tmp_path)
    twin = (data / "own" / "test" / "a" / "testa1.png").read_bytes()
    for name in ("one.png", "two.png"):
        (data / "own" / "train" / "a" / name).write_bytes(twin)
    prepared = prepare(toy(split="official"), data, quarantine=True)
    assert set(reasons(prepared.excluded)) == {"train-a-one", "train-a-two"}
    digest = hashlib.sha256(twin).hexdigest()
    assert (prepared.rows["sha256"] == digest).sum() == 1


def test_copies_stay_in_one_fold_and_are_reported(tmp_path):
    data = write_classes(tmp_path, 9, **{"a/copy.jpg": copy_of(4)})
    prepared = prepare(toy(), data)
    fold = prepared.rows.set_index("sample_id")["fold"]
    assert fold["a-copy"] == fold["a-a4"]
    (pair,) = prepared.duplicates.to_dict("records")
    assert (pair["first"], pair["second"], pair["kind"]) == ("a-a4", "a-copy", "near")
    assert pair["first_side"] == pair["second_side"] == str(fold["a-a4"])
    assert (pair["same_patient"], pair["same_label"], pair["action"]) == (False, True, "both kept")


def test_one_picture_under_two_labels_is_refused_with_both_and_both_can_be_set_aside(tmp_path):
    data = write_classes(tmp_path, 9)
    shutil.copy(data / "own" / "a" / "a4.png", data / "own" / "b" / "again.png")
    message = refusal(toy(), data)
    assert "a-a4: it is 'a' and the same image as b-again, which is 'b'" in message
    assert "b-again: it is 'b' and the same image as a-a4, which is 'a'" in message
    prepared = prepare(toy(), data, quarantine=True)
    assert {"a-a4", "b-again"} == set(prepared.excluded["name"])
    assert not {"a-a4", "b-again"} & set(prepared.rows["sample_id"])
    (pair,) = prepared.duplicates.to_dict("records")
    assert (pair["kind"], pair["same_label"]) == ("exact", False)


@pytest.mark.parametrize("patient", [r"^(\w)", ""])
def test_a_copy_under_two_labels_is_refused_unless_it_is_of_one_patient(tmp_path, patient):
    data = write_classes(tmp_path, 9)
    for name in ("x1", "x2", "x3"):  # of patient x, in both classes
        for label in "ab":
            picture(ord(name[1]) + 100 * (label == "b")).save(data / "own" / label / f"{name}.png")
    image = Image.open(data / "own" / "a" / "x1.png")
    image.save(data / "own" / "b" / "x9.jpg", quality=90)
    card = toy(layout_options={"patient": r"^(x|..)"} if patient else {})
    if patient:
        pairs = prepare(card, data).duplicates.to_dict("records")
        assert [(p["kind"], p["same_patient"], p["same_label"]) for p in pairs] == [
            ("near", True, False)
        ]
    else:
        assert "b-x9: it is 'b' and a copy of a-x1, which is 'a'" in refusal(card, data)


def test_pictures_of_one_kind_are_no_copies(tmp_path):
    assert prepare(toy(), write_classes(tmp_path, 20)).duplicates.empty


def test_of_images_that_are_too_small_to_compare_only_equal_ones_are_copies(tmp_path):
    for number in range(18):
        folder = tmp_path / "own" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(picture(1, (28, 28))).copy()
        pixels[:2, :2] = number * 10  # what tells them apart at 28 pixels a side
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    Image.open(tmp_path / "own" / "a" / "04.png").save(tmp_path / "own" / "a" / "again.bmp")
    (pair,) = prepare(toy(), tmp_path).duplicates.to_dict("records")
    assert (pair["first"], pair["second"], pair["kind"]) == ("a-04", "a-again", "near")


# --------------------------------------------------------------------------- changed copies


def changed(seed):
    """The picture once more: mirrored, and cut at two sides."""
    return (
        picture(seed, (192, 160)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((9, 0, 192, 152))
    )


def test_a_changed_copy_on_both_sides_is_refused_and_shown(tmp_path):
    data = official(tmp_path, **{"train/a/leak.png": changed(1002)})
    how = {tmp_path / "pack": packs.Drawn(48, "bilinear")}
    with pytest.raises(ManifestError, match="test-a-testa2") as caught:
        prepare(toy(split="official"), data, folders=how)
    pairs, pictures = caught.value.copies
    (pair,) = pairs.to_dict("records")
    assert {pair["first"], pair["second"]} == {"train-a-leak", "test-a-testa2"}
    assert pair["kind"] == "mirrored and cropped"
    assert {pair["first_side"], pair["second_side"]} == {"train", "test"}
    assert pictures.shape == (1, 2, 48, 48, 3)
    # The pictures are in the order of the pair, and one is nearly the mirror of the other.
    expected = picture(1002).resize((48, 48))
    original = pictures[0, int(pair["second"] == "test-a-testa2")].astype(int)
    assert np.abs(original - np.asarray(expected)).mean() < 5


def test_a_card_confirms_or_dismisses_a_changed_copy(tmp_path):
    data = official(tmp_path, **{"train/a/leak.png": changed(1002)})
    names = ("train-a-leak", "test-a-testa2")
    confirmed = prepare(toy(split="official", known_duplicates=(names,)), data)
    assert set(reasons(confirmed.excluded)) == {"train-a-leak"}
    assert confirmed.duplicates["kind"].tolist() == ["mirrored and cropped"]
    assert confirmed.copies.pairs.empty  # nothing is left to decide
    dismissed = prepare(toy(split="official", not_duplicates=(names,)), data)
    assert dismissed.duplicates.empty and len(dismissed.rows) == len(confirmed.rows) + 1


def test_the_lines_for_the_card_are_read_as_the_pairs(tmp_path):
    data = official(tmp_path, **{"train/a/leak.png": changed(1002)})
    with pytest.raises(ManifestError) as caught:
        prepare(toy(split="official"), data)
    lines = yaml.safe_load(preparation.card_lines(caught.value.copies))
    assert set(lines) == {"known_duplicates", "not_duplicates"}
    for pairs in lines.values():
        assert [set(pair) for pair in pairs] == [{"train-a-leak", "test-a-testa2"}]


def test_patients_of_a_changed_copy_stay_in_one_fold_unless_the_card_dismisses_it(tmp_path):
    extra = {f"a/copy{k}.png": changed(k) for k in range(6)}
    data = write_classes(tmp_path, 9, **extra)
    prepared = prepare(toy(), data)
    fold = prepared.rows.set_index("sample_id")["fold"]
    assert all(fold[f"a-copy{k}"] == fold[f"a-a{k}"] for k in range(6))
    assert len(prepared.copies.pairs) == 6
    names = tuple((f"a-copy{k}", f"a-a{k}") for k in range(6))
    dismissed = prepare(toy(not_duplicates=names), data)
    fold = dismissed.rows.set_index("sample_id")["fold"]
    assert dismissed.duplicates.empty and len(dismissed.copies.pairs) == 0
    assert any(fold[f"a-copy{k}"] != fold[f"a-a{k}"] for k in range(6))


def test_a_changed_copy_moves_its_patients_only(tmp_path):
    data = write_classes(tmp_path, 12)
    before = prepare(toy(), data, repeats=2).rows.set_index("sample_id")
    changed(3).save(data / "own" / "a" / "a4.png")  # now a4 is a copy of a3
    after = prepare(toy(), data, repeats=2).rows.set_index("sample_id")
    for column in ("fold", "fold_1"):
        moved = set(before.index[before[column] != after[column]])
        assert moved <= {"a-a3", "a-a4"}
        assert after[column]["a-a3"] == after[column]["a-a4"]


def test_what_the_card_confirms_stays_in_one_fold_though_it_was_not_found(tmp_path):
    data = write_classes(tmp_path, 9)
    names = [(f"a-a{k}", f"a-a{k + 4}") for k in range(4)]
    apart = prepare(toy(), data).rows.set_index("sample_id")["fold"]
    assert any(apart[one] != apart[other] for one, other in names)
    prepared = prepare(toy(known_duplicates=tuple(names)), data)
    fold = prepared.rows.set_index("sample_id")["fold"]
    assert len(fold) == 18 and all(fold[one] == fold[other] for one, other in names)


def test_at_most_a_dozen_pairs_keep_their_pictures(tmp_path):
    extra = {f"a/copy{k:02d}.png": changed(k) for k in range(14)}
    copies = prepare(toy(), write_classes(tmp_path, 14, **extra)).copies
    assert len(copies.pairs) == 14 and len(copies.pictures) == 12
    assert copies.pairs["correlation"].is_monotonic_increasing  # what is least sure comes first


# --------------------------------------------------------------------------- a given manifest


def given(data, **columns):
    """A CSV of the files that `write_classes` wrote, beside the data folder."""
    names = [f"{label}{k}" for label in "ab" for k in range(6)]
    rows = pd.DataFrame({"sample_id": names, "patient_id": names})
    rows["path"] = [f"own/{name[0]}/{name}.png" for name in names]
    rows = rows.assign(label=[name[0] for name in names], **columns)
    path = data.parent / "own.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture
def own(tmp_path):
    return write_classes(tmp_path / "data")


def test_a_given_manifest_fixes_samples_and_splits(own):
    folds = [2, 0, 1] * 4
    picture(77).save(own / "own" / "another.png")  # in the folder, not in the CSV
    csv = given(own, fold=folds, comment="ignored", age=[str(k) for k in range(12)])
    csv.with_suffix(".excluded.csv").write_text("name,reason\na9,blurred\n")
    rows, excluded, *_ = prepare(toy(layout=""), own, given=csv, seed=5)
    expected = ["sample_id", "patient_id", "path", "label", "fold", "sha256", "age"]
    assert rows.columns.tolist() == expected
    assert rows["fold"].tolist() == folds
    contents = [(own / path).read_bytes() for path in rows["path"]]
    assert rows["sha256"].tolist() == [hashlib.sha256(c).hexdigest() for c in contents]
    assert reasons(excluded) == {"a9": "blurred"}


def test_a_given_manifest_without_splits_gets_them_from_the_seed(own):
    csv = given(own)
    folds = [
        prepare(toy(layout=""), own, given=csv, seed=seed).rows.set_index("sample_id")["fold"]
        for seed in (0, 0, 1, 2)
    ]
    counts = folds[0].groupby([folds[0].index.str[0], folds[0]]).size()
    assert counts.tolist() == [2] * 6
    assert folds[0].to_dict() == folds[1].to_dict()
    assert any((folds[0] != other).any() for other in folds[2:])


def test_everything_wrong_with_a_given_manifest_is_listed_at_once(own):
    csv = given(own, fold=[0, 1, 2] * 4, sha256="")
    rows = pd.read_csv(csv, dtype=str, keep_default_na=False)
    rows.loc[1, "sha256"] = "0" * 64
    rows.loc[2, "label"] = "c"
    rows.loc[4, "sample_id"] = "a3"
    rows.to_csv(csv, index=False)
    (own / "own" / "b" / "b5.png").unlink()
    message = refusal(toy(layout=""), own, given=csv)
    assert "4 problem(s)" in message  # a3 twice counts once
    said = ["a1.png (a1) has changed: sha256", "label 'c' is not a class of the card (a, b)"]
    said += ["a3: several rows have this id", "b5.png (b5) is not in"]
    assert all(part in message for part in said)


def test_a_given_manifest_that_leaks_is_refused(own):
    csv = given(own, fold=[0, 1, 2] * 4, patient_id=["p0"] * 2 + list("abcdefghij"))
    assert "p0: fold 0 (1), fold 1 (1)" in refusal(toy(layout=""), own, given=csv)
    shutil.copy(own / "own" / "a" / "a0.png", own / "own" / "a" / "a1.png")
    csv = given(own, fold=[0, 1, 2] * 4)
    assert "a0 (fold 0), a1 (fold 1)" in refusal(toy(layout=""), own, given=csv)


def test_a_given_manifest_that_lacks_a_column_says_which(own):
    csv = own.parent / "own.csv"
    csv.write_text("sample_id,path\nx,y\n")
    message = refusal(toy(), own, given=csv)
    assert "columns missing: patient_id, label; found: sample_id, path" in message


def test_a_given_manifest_holds_for_another_distribution_of_the_data_set(tmp_path):
    """The published chest manifest names Kaggle's paths; here lies Mendeley's tree."""
    drawn = phantoms.write("chest_xray", tmp_path / "kaggle", scale=0.01)
    card = cards.read("chest_xray")
    fixed = prepare(card, tmp_path / "kaggle", seed=3).rows
    csv = tmp_path / "chest_xray.csv"
    columns = [*manifest.REQUIRED, "split"]
    manifest.write(fixed[columns], fixed.iloc[:0], csv)
    shutil.copytree(drawn, tmp_path / "mendeley" / "CellData" / "chest_xray")
    rows = prepare(card, tmp_path / "mendeley", given=csv).rows
    assert rows["path"].str.startswith("CellData/chest_xray/").all()
    others = ["sample_id", "patient_id", "label", "split", "sha256"]
    pd.testing.assert_frame_equal(rows[others], fixed[others])


def test_a_folder_that_contradicts_the_given_manifest_is_refused(own):
    csv = given(own, sample_id=[f"{n[0]}-{n}" for n in (f"{x}{k}" for x in "ab" for k in range(6))])
    rows = pd.read_csv(csv, dtype=str)
    rows.loc[0, "label"] = "b"
    rows.to_csv(csv, index=False)
    (own / "own" / "b" / "b3.png").unlink()
    picture(70).save(own / "own" / "b" / "new.png")
    message = refusal(toy(), own, given=csv)
    assert "2 problem(s)" in message
    assert "a-a0: it is 'b' in own.csv, but 'a' in the folder" in message
    assert "b-b3: it is in own.csv, but not in the folder" in message
    prepared = prepare(toy(), own, given=csv, quarantine=True)
    assert len(prepared.rows) == 10
    assert reasons(prepared.excluded)["b-new"] == "not in own.csv, which fixes the samples"


# ------------------------------------------------------------------------------------ volumes


def head(rng, tumour):
    """A head of 20 × 24 × 9 voxels with texture of its own, and the mask of its tumour."""
    volume, mask = np.zeros((20, 24, 9), np.float32), np.zeros((20, 24, 9), np.uint8)
    volume[3:17, 3:21] = 100 + 40 * rng.standard_normal((14, 18, 9))
    mask[6:9, 6:9, tumour] = 1
    return volume, mask


@pytest.fixture
def heads(tmp_path):
    """Volumes with a table: v<k>.nii.gz, m<k>.nii.gz, scans.csv; six patients of each class."""
    folder, rng, lines = tmp_path / "own", np.random.default_rng(0), ["file,mask,patient,grade"]
    folder.mkdir()
    for k in range(12):
        for name, array in zip("vm", head(rng, k % 9), strict=True):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}{k}.nii.gz")
        lines.append(f"v{k}.nii.gz,m{k}.nii.gz,p{k},{'ab'[k % 2]}")
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def scans(**changes):
    columns = {"path": "file", "mask": "mask", "patient_id": "patient", "label": "grade"}
    options = {"table": "scans.csv", "columns": columns}
    chosen = Volumes(slices=1, choice="largest_tumour")
    return toy(**{"layout": "table", "layout_options": options, "volumes": chosen} | changes)


def test_masks_are_kept_and_hashed_only_where_they_are_used(heads):
    rows = prepare(scans(), heads).rows
    assert {"mask", "mask_sha256"} <= set(rows)
    assert rows["mask_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert "mask" not in prepare(scans(volumes=Volumes(slices=1)), heads).rows


def test_masks_that_are_empty_or_of_another_shape_are_named_with_their_volumes(heads):
    folder = heads / "own"
    for name, array in {"m1": np.zeros((20, 24, 9)), "m2": np.ones((20, 24, 8))}.items():
        image = nibabel.Nifti1Image(array.astype(np.uint8), np.eye(4))
        nibabel.save(image, folder / f"{name}.nii.gz")
    (folder / "m3.nii.gz").unlink()
    message = refusal(scans(), heads)
    assert "3 problem(s)" in message
    lines = {k: line for k in (1, 2, 3) for line in message.splitlines() if f"v{k}" in line}
    assert "empty" in lines[1] and "20 × 24 × 8" in lines[2] and "m3.nii.gz" in lines[3]
    prepared = prepare(scans(), heads, quarantine=True)
    assert len(prepared.rows) == 9 and len(prepared.excluded) == 3


def test_modalities_of_different_geometry_are_refused_with_both_named_or_resampled(tmp_path):
    """BraTS 2023: FLAIR has voxels twice as high as T1, which is the patient's reference."""
    lines, rng = ["case,grade"], np.random.default_rng(0)
    for k in range(12):
        case = f"BraTS-GLI-{k:05d}-000"
        folder = tmp_path / "brats" / case
        folder.mkdir(parents=True)
        volume, mask = head(rng, k % 9)
        for name in ("t1n", "t1c", "seg"):
            content = mask if name == "seg" else volume
            nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), folder / f"{case}-{name}.nii.gz")
        coarse = nibabel.Nifti1Image(volume[:, :, ::2], np.diag([1.0, 1, 2, 1]))
        nibabel.save(coarse, folder / f"{case}-t2f.nii.gz")
        lines.append(f"{case},{k % 2}")
    (tmp_path / "brats" / "grades.csv").write_text("\n".join(lines) + "\n")
    names = {"labels": "grades.csv", "id": "case", "label": "grade", "names": {"0": "a", "1": "b"}}
    options = {"modality": "flair"} | names
    card = toy(folder="brats", layout="brats", layout_options=options, volumes=Volumes(slices=9))
    message = refusal(card, tmp_path)
    assert "12 problem(s)" in message
    assert "20 × 24 × 5 voxels of 1 × 1 × 2 mm" in message
    assert "20 × 24 × 9 voxels of 1 × 1 × 1 mm" in message and "resample: true" in message
    card = card.with_settings(volumes={"resample": True})
    rows = prepare(card, tmp_path).rows
    assert rows["patient_id"].tolist()[0] == "BraTS-GLI-00000"
    how = {tmp_path / "p": packs.Drawn(24, "bilinear")}
    made = pack(rows, tmp_path, how, settings=card.volumes)
    assert made[tmp_path / "p"].index.groupby("sample_id")["slice"].agg(list).iloc[0] == [*range(9)]


def test_medmnist_is_prepared_with_its_own_splits_and_names(tmp_path):
    (tmp_path / "medmnist").mkdir()
    rng, arrays = np.random.default_rng(0), {}
    for split, n in {"train": 6, "val": 4, "test": 4}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(tmp_path / "medmnist" / "pneumoniamnist_64.npz", **arrays)
    read = {"layout": "medmnist", "layout_options": {"flag": "pneumoniamnist", "size": 64}}
    classes = ("normal", "pneumonia")
    card = toy(folder="medmnist", classes=classes, split="official", **read)
    rows = prepare(card, tmp_path).rows
    assert rows["split"].value_counts().to_dict() == {"train": 6, "val": 4, "test": 4}
    folders = {tmp_path / "pack": packs.Drawn(64, "bilinear")}
    packed = pack(rows, tmp_path, folders)[tmp_path / "pack"]
    tested = packed.index.index[packed.index["split"] == "test"]
    assert (packed.images[tested, :, :, 0] == arrays["test_images"]).all()
    assert packed.index["label"][tested].tolist() == ["normal", "pneumonia"] * 2


# ----------------------------------------------------------------------- phantoms, twice, whole


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    for dataset in phantoms.DATASETS:
        phantoms.write(dataset, root, scale=0.01)
    return root


@pytest.mark.parametrize("task", [*cards.MRI, *cards.PUBLIC, *STAND_INS])
def test_phantoms_of_every_task_of_the_paper_and_stand_in_are_prepared_whole(drawn, task):
    card = cards.read(task)
    rows, excluded, duplicates, *_ = prepare(card, drawn)
    side = "split" if card.split == "official" else "fold"
    assert set(rows["label"]) == set(card.classes)
    assert rows.groupby("patient_id")[side].nunique().eq(1).all()
    assert len(excluded) == (3 if task in GLIOMA else 0)  # no T1, no T1ce, no grade
    assert duplicates.empty or not duplicates["action"].str.contains("dropped").any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_phantom_radiographs_of_two_patients_are_no_copies(tmp_path, seed):
    """As many as the demo grid draws."""
    card = cards.read("chest_xray")
    phantoms.write(card.folder, tmp_path, scale=0.45, seed=seed)
    prepared = prepare(card, tmp_path)
    assert prepared.copies.pairs.empty and prepared.excluded.empty


@pytest.mark.parametrize("tasks", [cards.MRI, GLIOMA])
def test_the_three_phantom_glioma_tasks_are_split_alike(drawn, tasks):
    folds = []
    for task in tasks:
        rows = prepare(cards.read(task), drawn).rows
        folds.append(dict(zip(rows["patient_id"], rows["fold"], strict=True)))
    assert folds[0] == folds[1] == folds[2]


def test_preparing_twice_gives_the_same_bytes(drawn, tmp_path):
    card = cards.read("dermoscopy")
    for name in ("one", "two"):
        prepared = prepare(card, drawn)
        path = tmp_path / name / "dermoscopy.csv"
        manifest.write(prepared.rows, prepared.excluded, path, card, prepared.duplicates)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"dermoscopy.csv", "dermoscopy.yaml"} <= files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


# ----------------------------------------------------------------------------------- real data


def committed(task):
    return cards.FOLDER / f"{task}.csv"


@pytest.mark.real_data
@pytest.mark.parametrize("task", [t for t in cards.tasks() if committed(t).is_file()])
def test_real_folders_give_the_committed_manifest(real_data, task, tmp_path):
    """Notebook 01 makes again what it has published, byte for byte."""
    card = cards.read(task)
    rows, excluded, *_ = preparation.prepare(card, real_data)
    facts = [*manifest.REQUIRED, manifest.split_column(rows)]
    manifest.write(rows[facts], excluded, tmp_path / f"{task}.csv")
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (cards.FOLDER / made.name).read_bytes()


@pytest.mark.real_data
def test_real_radiographs_have_six_duplicate_pairs_in_the_test_set(real_data):
    rows, excluded, pairs, *_ = preparation.prepare(cards.read("chest_xray"), real_data)
    counts = rows["split"].replace("val", "train").value_counts().to_dict()
    assert counts == {"train": 5216, "test": 624}
    tested = pairs[(pairs["first_side"] == "test") & (pairs["kind"] == "exact")]
    assert len(tested) == 6 and (tested["second_side"] == "test").all()
    assert excluded.empty


@pytest.mark.real_data
def test_real_fundus_pairs_cross_the_official_line_and_their_training_side_goes(real_data):
    found = reader.read(cards.read("fundus_pm"), real_data).rows
    assert found["split"].value_counts().to_dict() == {"train": 400, "test": 400}
    rows, excluded, pairs, *_ = preparation.prepare(cards.read("fundus_pm"), real_data)
    assert len(rows) == 798
    assert reasons(excluded) == {
        "P0056": "the same image as V0163 of the test set",
        "P0057": "the same image as V0252 of the test set",
    }
    crossing = pairs[pairs["first_side"] != pairs["second_side"]]
    crossing = {frozenset(pair) for pair in zip(crossing["first"], crossing["second"], strict=True)}
    assert crossing == {frozenset(("V0252", "P0057")), frozenset(("V0163", "P0056"))}
    unknown = cards.read("fundus_pm").model_copy(update={"known_duplicates": ()})
    message = refusal(unknown, real_data)
    assert "V0252" in message and "P0057" in message and "2 image(s)" in message


@pytest.mark.real_data
@pytest.mark.parametrize("task", GLIOMA)
def test_real_gliomas_are_100_patients_and_ten_are_left_out(real_data, task):
    rows, excluded, *_ = preparation.prepare(cards.read(task), real_data)
    assert rows["label"].value_counts().to_dict() == {"grade_III": 55, "grade_II": 45}
    assert rows["patient_id"].is_unique and len(excluded) == 10
    assert excluded["reason"].str.fullmatch(r"no (t1|t1ce|t1, t1ce)").all()
