"""Cards and manifests: every mistake is named, and no split has a patient on two sides."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import yaml

from medlib.core import splits
from medlib.data import cards, manifest
from medlib.data.layouts import reader
from medlib.errors import ManifestError

GLIOMA = [cards.STAND_INS[task] for task in cards.MRI]  # those with a committed manifest
COMMITTED = [t for t in cards.tasks() if (cards.FOLDER / f"{t}.csv").is_file()]
TOY = {"title": "Toy", "modality": "drawing", "licence": "CC0", "citation": "nobody, 2024"}
TOY["source"] = "https://example.org"


def toy(**changes):
    return cards.Card(**TOY | {"task": "toy", "classes": ("a", "b")} | changes)


def write_card(folder, **changes):
    fields = TOY | {"classes": ["a", "b"]} | changes
    fields = {name: value for name, value in fields.items() if value is not ...}
    (folder / "toy.yaml").write_text(yaml.safe_dump(fields))


def samples(counts, images=lambda k: 1, **columns):
    """Rows of `counts` {label: patients}; patient k of a label has `images(k)` images."""
    cases = [(label, k) for label, n in counts.items() for k in range(n)]
    rows = [
        (f"{label}{k}-{i}", f"{label}{k}", label) for label, k in cases for i in range(images(k))
    ]
    rows = pd.DataFrame(rows, columns=["sample_id", "patient_id", "label"])
    rows.insert(2, "path", rows["sample_id"] + ".png")
    return rows.assign(**columns)


def folded(n_folds=3, patients=2, images=lambda k: 1):
    """`patients` patients of each class in each fold: patient k is in fold k % n_folds."""
    rows = samples({"a": n_folds * patients, "b": n_folds * patients}, images)
    return rows.assign(fold=rows["patient_id"].str[1:].astype(int) % n_folds)


def complaint(rows, card=None, data=None):
    with pytest.raises(ManifestError) as caught:
        manifest.validate(rows, card or toy(), data)
    return str(caught.value)


def read_all(rows, data):
    """Rows whose files can be read, with hashes; and what is wrong with the others, by sample."""
    hashes, problems = [], {}
    for row in rows.to_dict("records"):
        _, found, problem = manifest.read_files(row, data)
        hashes.append(found)
        problems |= {row["sample_id"]: problem} if problem else {}
    good = rows.assign(**pd.DataFrame(hashes, index=rows.index))
    return good[~rows["sample_id"].isin(problems)], problems


# ------------------------------------------------------------------------------------- cards


def test_the_six_tasks_of_the_paper_and_their_stand_ins_have_a_card():
    assert {*cards.MRI, *cards.PUBLIC, *cards.STAND_INS.values()} <= set(cards.tasks())
    assert cards.STAND_INS.keys() <= {*cards.MRI, *cards.PUBLIC}
    assert len(set(cards.STAND_INS.values())) == len(cards.STAND_INS)
    for task, other in cards.STAND_INS.items():  # of the same modality, and another data set
        card, stand_in = cards.read(task), cards.read(other)
        assert stand_in.modality == card.modality and stand_in.folder != card.folder


def test_a_stand_in_takes_the_place_of_a_task_that_is_missing():
    paper = ["glioma_ucsf_t1", "glioma_ucsf_t1ce", "glioma_ucsf_flair"]
    paper += ["chest_xray", "fundus_amd", "dermoscopy"]
    assert cards.of_paper([]) == cards.of_paper(paper) == paper
    assert cards.of_paper([*paper, "glioma_t1", "fundus_pm"]) == paper
    some = ["glioma_ucsf_t1", "glioma_t1", "glioma_t1ce", "glioma_who2021_flair"]
    taken = ["glioma_ucsf_t1", "glioma_t1ce", "glioma_ucsf_flair"]
    assert cards.of_paper(some, cards.MRI) == taken


def test_tasks_come_in_the_papers_order_then_stand_ins_then_others_by_name():
    found = cards.in_order(["knees", "dermoscopy", "glioma_t1", "adrenals", "knees", "fundus_pm"])
    assert found == ["glioma_t1", "fundus_pm", "dermoscopy", "adrenals", "knees"]
    every = ["adrenals", "fundus_pm", "glioma_flair", "glioma_t1", "glioma_ucsf_t1", "fundus_amd"]
    found = ["glioma_ucsf_t1", "glioma_flair", "fundus_amd", "glioma_t1", "fundus_pm", "adrenals"]
    assert cards.in_order(every) == found


@pytest.mark.parametrize("task", cards.tasks())
def test_every_committed_card_names_a_layout_and_its_options(task):
    card = cards.read(task)
    assert card.layout in reader.LAYOUTS and card.folder
    assert (card.volumes is not None) == task.startswith("glioma")


def test_a_glioma_task_has_one_kind_of_label():
    """HGG/LGG, WHO grade II/III/IV and WHO 2021 grade 2/3/4 are different labels."""
    kinds = {task: cards.read(task).classes for task in cards.tasks()}
    families = {"glioma": ("grade_II", "grade_III"), "glioma_hgg_lgg": ("LGG", "HGG")}
    families |= dict.fromkeys(("glioma_who2021", "glioma_ucsf"), ("grade_2", "grade_3", "grade_4"))
    for family, names in families.items():
        assert {kinds[f"{family}_{modality}"] for modality in ("t1", "t1ce", "flair")} == {names}


@pytest.mark.parametrize("task", COMMITTED)
def test_every_committed_card_and_manifest_is_valid(task):
    card = cards.read(task)
    rows = manifest.read(cards.FOLDER / f"{task}.csv", card)
    plain = pd.read_csv(cards.FOLDER / f"{task}.csv", dtype=str)
    assert rows["sample_id"].tolist() == plain["sample_id"].tolist()
    assert plain["sample_id"].is_unique
    side = {"official": "split", "cross-validation": "fold"}[card.split]
    assert plain.groupby("patient_id")[side].nunique().max() == 1
    sides = plain.groupby(side)["label"].unique()
    assert all(set(labels) == set(card.classes) for labels in sides)
    expected = ["test", "train", "val"] if side == "split" else list("01234")
    assert sides.index.tolist() == expected


LESIONS = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}


@pytest.mark.parametrize(
    "task, images, patients, labels",
    [
        ("chest_xray", 5840, None, {"normal": 1341 + 234, "pneumonia": 3875 + 390}),
        ("dermoscopy", 10015, 7470, LESIONS),
        ("fundus_pm", 798, 798, {"other": 187 + 189, "pathologic_myopia": 211 + 211}),
        *[(task, 100, 100, {"grade_II": 45, "grade_III": 55}) for task in GLIOMA],
    ],
)
def test_committed_manifests_hold_the_published_numbers(task, images, patients, labels):
    rows = manifest.read_rows(cards.FOLDER / f"{task}.csv")
    assert len(rows) == images
    assert patients is None or rows["patient_id"].nunique() == patients
    assert rows["label"].value_counts().to_dict() == labels


@pytest.mark.parametrize("task, test", [("chest_xray", 624), ("fundus_pm", 400)])
def test_committed_official_splits_keep_the_test_set_and_validate_on_a_fifth(task, test):
    rows = manifest.read_rows(cards.FOLDER / f"{task}.csv")
    patients = rows.groupby("split")["patient_id"].nunique()
    assert (rows["split"] == "test").sum() == test
    assert 0.17 < patients["val"] / (patients["val"] + patients["train"]) < 0.23


@pytest.mark.parametrize("task", ["dermoscopy", *GLIOMA])
def test_committed_folds_hold_a_fifth_of_each_class(task):
    rows = manifest.read_rows(cards.FOLDER / f"{task}.csv")
    counts = pd.crosstab(rows["label"], rows["fold"])
    fifths = counts.sum(axis=1).to_numpy()[:, None] / 5
    few = 1 + 0.003 * fifths  # if a copy is found later, its patients move to one fold
    assert (np.abs(counts - fifths) < few).all(axis=None)


def test_the_three_glioma_tasks_put_every_patient_in_the_same_fold():
    t1, t1ce, flair = (manifest.read_rows(cards.FOLDER / f"{task}.csv") for task in GLIOMA)
    columns = ["sample_id", "patient_id", "label", "fold"]
    for other in (t1ce, flair):
        pd.testing.assert_frame_equal(t1[columns], other[columns])


def test_an_unknown_task_is_answered_with_the_nearest_one():
    with pytest.raises(ManifestError, match=r"'chest_xrays'.*Did you mean 'chest_xray'\?"):
        cards.read("chest_xrays")


def test_a_card_is_read_with_its_values_and_defaults(tmp_path):
    write_card(tmp_path, folds=4, optional_classes=["c"], known_duplicates=[["x", "y"]])
    card = cards.read("toy", tmp_path)
    assert (card.task, card.classes, card.folds) == ("toy", ("a", "b"), 4)
    assert (card.split, card.volumes) == ("cross-validation", None)
    assert card.all_classes == ("a", "b", "c")
    assert card.known_duplicates == (("x", "y"),)


def test_all_mistakes_of_a_card_are_listed_at_once(tmp_path):
    write_card(
        tmp_path, title=..., licence=..., classes=["a", 2], split="oficial", folds=2, volume={}
    )
    with pytest.raises(ManifestError) as caught:
        cards.read("toy", tmp_path)
    message = str(caught.value)
    said = ["toy.yaml", "title is missing", "licence is missing", "classes[1] is 2, not a text"]
    said += ["'oficial'. Did you mean 'official'?", "folds is 2, not 3 or more"]
    said += ["'volume'. Did you mean 'volumes'?"]
    assert all(part in message for part in said)


def test_no_and_yes_are_classes_and_only_true_and_false_are_booleans(tmp_path):
    write_card(tmp_path)
    plain = (tmp_path / "toy.yaml").read_text()
    (tmp_path / "toy.yaml").write_text(plain.replace("- a\n- b", "- no\n- yes"))
    card = cards.read("toy", tmp_path)
    assert card.classes == ("no", "yes")
    (tmp_path / "toy.yaml").write_text(cards.text(card))
    assert cards.read("toy", tmp_path) == card
    (tmp_path / "toy.yaml").write_text(plain.replace("- a\n- b", "- true\n- 1"))
    with pytest.raises(
        ManifestError, match=r"classes\[0\] is True, not a text .*\n.*classes\[1\] is 1, not a text"
    ):
        cards.read("toy", tmp_path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_card_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "toy.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"toy\.yaml.*mapping"):
        cards.read("toy", tmp_path)


def test_a_card_that_is_no_yaml_is_refused_by_name(tmp_path):
    (tmp_path / "toy.yaml").write_text("title: a: b\n")
    with pytest.raises(ManifestError, match=r"toy\.yaml is not valid YAML"):
        cards.read("toy", tmp_path)


@pytest.mark.parametrize("field, default", [("layout_options", {}), ("known_duplicates", ())])
def test_a_field_left_empty_in_a_card_counts_as_not_given(tmp_path, field, default):
    write_card(tmp_path, **{field: None})
    assert getattr(cards.read("toy", tmp_path), field) == default


def test_a_card_like_another_says_only_what_differs(tmp_path):
    write_card(tmp_path, folds=7, volumes={"slices": 3}, layout_options={"modality": "t1"})
    (tmp_path / "twin.yaml").write_text("like: toy\ntitle: Twin\nlayout_options: {modality: t2}\n")
    card = cards.read("twin", tmp_path)
    assert (card.task, card.title, card.folds, card.classes) == ("twin", "Twin", 7, ("a", "b"))
    assert card.layout_options == {"modality": "t2"}
    assert card.volumes == cards.Volumes(slices=3)
    names = [path.name for path in cards.files("twin", tmp_path)]
    assert names == ["twin.yaml", "toy.yaml"]
    (tmp_path / "toy.csv").write_text("")
    names = [path.name for path in cards.files("toy", tmp_path)]
    assert names == ["toy.yaml", "toy.csv"]


@pytest.mark.parametrize(
    "like, message",
    [
        ("tyo", "Unknown task 'tyo'. Did you mean 'toy'"),
        ("twin", "Unknown task 'twin'"),
        ("chain", "chain is like another card itself"),
    ],
)
def test_a_card_like_no_other_is_refused(tmp_path, like, message):
    write_card(tmp_path)
    (tmp_path / "chain.yaml").write_text("like: toy\n")
    (tmp_path / "twin.yaml").write_text(f"like: {like}\n")
    with pytest.raises(ManifestError) as caught:
        cards.read("twin", tmp_path)
    assert "twin.yaml" in str(caught.value) and message in str(caught.value)


def test_all_wrong_settings_of_volumes_are_listed(tmp_path):
    wrong = {"slice": 5, "choice": "centre", "percentiles": [99, 1], "crop_margin": -1}
    wrong |= {"neighbours": "yes", "slices": 0}
    write_card(tmp_path, volumes=wrong)
    with pytest.raises(ManifestError) as caught:
        cards.read("toy", tmp_path)
    said = ["'slice'. Did you mean 'slices'?", "'centre'. Did you mean 'central'?"]
    said += ["percentiles is [99, 1]", "crop_margin is -1", "neighbours is 'yes'", "slices is 0"]
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("folds", "3", "folds is '3', not a whole number"),
        ("folds", True, "folds is True, not a whole number"),
        ("folds", 3.0, "folds is 3.0, not a whole number"),
        ("ordered", 1, "ordered is 1, not true or false"),
        ("title", 7, "title is 7, not a text"),
        ("layout_options", [1], "layout_options is [1], not a mapping"),
        ("known_duplicates", [["x"]], "known_duplicates[0] is ['x'], not 2 or more entries"),
        ("volumes", 3, "volumes is 3, not a mapping"),
        ("volumes", {"slices": "3"}, "volumes.slices is '3', not a whole number"),
        ("volumes", {"crop_margin": True}, "volumes.crop_margin is True, not a number"),
    ],
)
def test_a_value_of_another_type_is_refused_and_never_converted(tmp_path, field, value, message):
    write_card(tmp_path, **{field: value})
    with pytest.raises(ManifestError) as caught:
        cards.read("toy", tmp_path)
    assert message in str(caught.value)


def test_a_cards_settings_can_be_others_for_one_run():
    card = toy(volumes=cards.Volumes(slices=3, choice="all_head"))
    other = card.with_settings(folds=4, volumes={"choice": "largest_tumour"})
    assert (other.folds, other.volumes.slices, other.volumes.choice) == (4, 3, "largest_tumour")
    assert other.volumes.needs_mask and not card.volumes.needs_mask
    assert cards.Volumes(crop_margin=0).needs_mask
    assert card.with_settings() == card
    with pytest.raises(ManifestError, match="toy: volumes is .* but its samples are images"):
        toy().with_settings(volumes={"slices": 3})


def test_the_card_that_was_used_is_read_back_as_it_was(tmp_path):
    lists = {"known_duplicates": (("x", "y"),), "other_folders": ("A",)}
    settings = cards.Volumes(crop_margin=2.5, percentiles=(1.0, 99.0))
    card = toy(volumes=settings, folds=3, layout_options={"names": {"Ä": "a"}}, **lists)
    path = tmp_path / "manifests" / "toy.csv"
    manifest.write(folded(), pd.DataFrame(columns=["name", "reason"]), path, card)
    assert cards.used(path) == card
    with pytest.raises(ManifestError, match="run notebook 01_prepare_data with task='other' first"):
        cards.used(path.with_name("other.csv"))


def test_a_manifest_that_is_not_sound_is_not_written(tmp_path):
    rows = folded().assign(patient_id="one")
    with pytest.raises(ManifestError, match="patient 'one' is in several folds"):
        manifest.write(rows, rows, tmp_path / "toy.csv", toy())
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- validating


def test_a_sound_manifest_passes():
    manifest.validate(folded(), toy())
    split = samples({"a": 3, "b": 3})
    split["split"] = split["patient_id"].str[1:].map({"0": "train", "1": "val", "2": "test"})
    manifest.validate(split, toy())


def test_validation_lists_every_offender_in_one_message():
    rows = samples({"a": 4, "b": 4}).assign(sha256="")
    rows["split"] = ["train", "val", "test", "train"] * 2
    rows.loc[3, "sample_id"] = "a0-0"  # twice
    rows.loc[4, "patient_id"] = "a1"  # in train as b0, in val as a1
    rows.loc[5, "label"] = "bb"  # no class; and then val has no b
    rows.loc[[0, 2], "sha256"] = "f" * 64  # train and test
    rows.loc[7, "path"] = ""
    message = complaint(rows)
    assert "path is empty in row 9" in message  # the header is row 1
    assert "sample_id 'a0-0' is in several rows" in message
    assert "patient 'a1' is in several splits: train, val" in message
    assert "label 'bb' of b1-0 is not a class of the card (a, b)" in message
    assert "a0-0, a2-0 are one image but in several splits: test, train" in message
    assert "class 'b' has no sample in split val" in message
    assert "6 problem(s)" in message


def test_a_long_list_of_offenders_ends_in_a_count():
    rows = folded(patients=10).assign(label="z")
    message = complaint(rows)
    assert message.count("label 'z'") == 20
    assert f"… and {60 + 6 - 20} more" in message  # 60 labels; two classes lack in three folds


def test_missing_columns_are_named_with_those_that_are_there():
    message = complaint(folded().drop(columns=["label", "path"]))
    assert "columns missing: path, label; found: sample_id, patient_id, fold" in message


@pytest.mark.parametrize("change", ["neither", "both"])
def test_a_manifest_needs_just_one_of_split_and_fold(change):
    rows = folded()
    rows = rows.drop(columns="fold") if change == "neither" else rows.assign(split="train")
    assert "neither a column split nor a column fold (or there are both)" in complaint(rows)


def test_a_strange_split_is_named():
    rows = samples({"a": 3, "b": 3}).assign(split=["train", "val", "test", "train", "vali", "test"])
    assert "split 'vali' of b1-0" in complaint(rows)


def test_a_fold_that_is_no_number_is_named():
    rows = folded().astype({"fold": str})
    rows.loc[3, "fold"] = "x"
    assert "'x'" in complaint(rows)


def test_two_folds_are_too_few():
    assert "2 fold(s)" in complaint(folded(n_folds=2))


def test_folds_counted_from_one_are_refused():
    rows = folded()
    assert "fold 0" in complaint(rows.assign(fold=rows["fold"] + 1))


def test_identical_files_within_one_fold_or_without_hash_are_no_offence():
    rows = folded().assign(sha256="")
    manifest.validate(rows, toy())
    rows.loc[rows["patient_id"].isin(["a0", "a3"]), "sha256"] = "f" * 64  # both in fold 0
    manifest.validate(rows, toy())


def test_an_optional_class_is_required_only_where_the_data_have_it():
    glioma = toy(optional_classes=("c",))
    assert manifest.classes(folded(), glioma) == ["a", "b"]
    manifest.validate(folded(), glioma)
    rows = folded(patients=3)
    rows.loc[rows["patient_id"] == "b0", "label"] = "c"
    assert manifest.classes(rows, glioma) == ["a", "b", "c"]
    assert "class 'c' has no sample in fold 1" in complaint(rows, glioma)


def test_missing_and_changed_files_are_named(tmp_path):
    rows = folded()
    for path in rows["path"]:
        (tmp_path / path).write_bytes(path.encode())
    rows["sha256"] = [hashlib.sha256(path.encode()).hexdigest() for path in rows["path"]]
    manifest.validate(rows, toy(), tmp_path)
    (tmp_path / "a2-0.png").unlink()
    (tmp_path / "b5-0.png").write_bytes(b"another picture")
    message = complaint(rows, data=tmp_path)
    assert "a2-0.png (a2-0) is not in" in message
    found = hashlib.sha256(b"another picture").hexdigest()[:12]
    expected = hashlib.sha256(b"b5-0.png").hexdigest()[:12]
    assert f"b5-0.png (b5-0) has changed: sha256 {found}…, manifest says {expected}…" in message
    assert "2 problem(s)" in message
    good, problems = read_all(rows, tmp_path)
    assert len(good) == 10
    assert list(problems) == ["a2-0", "b5-0"]
    assert "b5-0.png (b5-0) has changed" in problems["b5-0"]


def test_a_data_folder_that_is_not_there_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in complaint(folded(), data=tmp_path / "nowhere")


def test_paths_that_lead_out_of_the_data_folder_are_named(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.png").write_bytes(b"outside")
    (data / "plain.png").write_bytes(b"inside")
    (data / "inner.png").symlink_to(data / "plain.png")
    (data / "outer.png").symlink_to(tmp_path / "secret.png")
    (data / "broken.png").symlink_to(data / "nowhere.png")
    (data / "empty.png").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    (data / "folder").symlink_to(tmp_path / "elsewhere")
    says = {"plain.png": "", "inner.png": ""}
    says["outer.png"] = f"leads out of the data folder, to {tmp_path / 'secret.png'}"
    says["folder/x.png"] = "leads out of the data folder"
    says["../secret.png"] = "paths are relative to it"
    says[str(data / "plain.png")] = "paths are relative"
    says |= {"broken.png": "is a link to", "absent.png": "is not in"}
    says["empty.png"] = "is empty (0 bytes)"
    for path, message in says.items():
        found = manifest.file_problem(data, path)
        assert (message in found) if message else (found == ""), (path, found)
    rows = samples({"a": len(says)}).assign(path=list(says))
    good, problems = read_all(rows, data)
    assert good["path"].tolist() == ["plain.png", "inner.png"]
    assert len(problems) == 7
    rows = folded(patients=3).iloc[: len(says)].assign(path=list(says))
    message = complaint(rows, data=data)
    assert all(text in message for text in says.values())


def test_files_beside_a_sample_are_hashed_and_checked(tmp_path):
    rows = samples({"a": 3}).assign(mask=["m.png", "", "absent.png"])
    for path in [*rows["path"], "m.png"]:
        (tmp_path / path).write_bytes(path.encode())
    good, problems = read_all(rows, tmp_path)
    assert good["mask_sha256"].tolist() == [hashlib.sha256(b"m.png").hexdigest(), ""]
    assert list(problems.values()) == [f"its mask absent.png is not in {tmp_path}"]


def test_a_mask_that_has_changed_is_named(tmp_path):
    rows = folded().assign(mask="m.png")
    for path in [*rows["path"], "m.png"]:
        (tmp_path / path).write_bytes(path.encode())
    rows, _ = read_all(rows, tmp_path)
    manifest.validate(rows, toy(), tmp_path)
    (tmp_path / "m.png").write_bytes(b"drawn anew")
    assert "its mask m.png has changed: sha256" in complaint(rows, data=tmp_path)


def test_an_image_within_a_file_has_a_hash_of_its_own_that_follows_the_file(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"one")
    paths = ["x.npz#train/0", "x.npz#train/1"]
    before = [manifest.sample_sha256(tmp_path, path) for path in paths]
    assert before[0] != before[1] and len(before[0]) == 64
    (tmp_path / "x.npz").write_bytes(b"another")
    assert manifest.sample_sha256(tmp_path, paths[0]) != before[0]
    assert manifest.sample_file("a#b.png") == "a#b.png"  # only an .npz holds images


def test_rows_that_cannot_be_used_are_told_from_the_others():
    rows = samples({"a": 3, "b": 3})
    rows.loc[1, "sample_id"] = "a0-0"
    rows.loc[2, "label"] = "B"
    rows.loc[3, "patient_id"] = ""
    good, bad = manifest.sound_rows(rows, toy())
    assert good["sample_id"].tolist() == ["b1-0", "b2-0"]
    assert dict(zip(bad["name"], bad["reason"], strict=True)) == {
        "a0-0": "several rows have this id",
        "a2-0": "label 'B' is not a class of the card (a, b)",
        "b0-0": "its patient_id is empty",
    }


def test_hashes_are_the_files_sha256(tmp_path):
    rows = folded()
    for path in rows["path"]:
        (tmp_path / path).write_bytes(b"file " + path.encode())
    hashed, problems = read_all(rows, tmp_path)
    assert not problems
    expected = [hashlib.sha256(b"file " + p.encode()).hexdigest() for p in rows["path"]]
    assert hashed["sha256"].tolist() == expected


def test_a_manifest_that_is_not_there_says_which_notebook_writes_it(tmp_path):
    with pytest.raises(ManifestError, match="01_prepare_data with task='toy'"):
        manifest.read(tmp_path / "toy.csv", toy())


def test_ids_and_labels_survive_the_round_trip_as_text(tmp_path):
    ids = ["007", "1e3", "NaN", "x,y", 'é"q', "6"]
    rows = pd.DataFrame({"sample_id": ids, "patient_id": list("012345")})
    rows["path"] = [f"{i} .png" for i in range(6)]
    rows = rows.assign(label=["NA", "null"] * 3, fold=[0, 0, 1, 1, 2, 2])
    excluded = pd.DataFrame({"name": ["0008"], "reason": ["None"]})
    path = tmp_path / "deep" / "toy.csv"
    manifest.write(rows, excluded, path)
    back = manifest.read(path, toy(classes=("NA", "null")))
    assert back.to_dict("list") == rows.to_dict("list")
    left_out = manifest.read_rows(tmp_path / "deep" / "toy.excluded.csv")
    assert left_out.to_dict("list") == {"name": ["0008"], "reason": ["None"]}


def test_a_manifest_saved_by_a_spreadsheet_can_be_read(tmp_path):
    text = folded().to_csv(index=False, lineterminator="\r\n")
    (tmp_path / "toy.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    rows = manifest.read(tmp_path / "toy.csv", toy())
    assert rows.columns.tolist() == ["sample_id", "patient_id", "path", "label", "fold"]


# ------------------------------------------------------------------------------------ splits


def test_folds_are_stratified_within_rounding():
    rows = manifest.assign_splits(samples({"a": 23, "b": 41}), toy())
    counts = pd.crosstab(rows["label"], rows["fold"])
    assert counts.columns.tolist() == [0, 1, 2, 3, 4]
    assert set(counts.loc["a"]) == {4, 5}  # 23 / 5
    assert set(counts.loc["b"]) == {8, 9}  # 41 / 5
    assert set(counts.sum()) <= {12, 13, 14}


def test_a_patients_images_stay_in_one_fold():
    rows = manifest.assign_splits(samples({"a": 20, "b": 30}, lambda k: 1 + k % 4), toy(folds=4))
    assert len(rows) == 20 * 2.5 + (28 * 2.5 + 1 + 2)
    assert rows.groupby("patient_id")["fold"].nunique().eq(1).all()
    assert set(rows["fold"]) == {0, 1, 2, 3}
    counts = pd.crosstab(rows["label"], rows["fold"])
    assert (counts.max(axis=1) - counts.min(axis=1) <= 4).all()  # no more than one patient's


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows():
    rows = samples({"a": 20, "b": 20}, lambda k: 1 + k % 2)
    first = manifest.assign_splits(rows, toy(), seed=3).set_index("sample_id")["fold"]
    shuffled = rows.sample(frac=1, random_state=0)
    again = manifest.assign_splits(shuffled, toy(), seed=3).set_index("sample_id")["fold"]
    assert again.to_dict() == first.to_dict()
    other = manifest.assign_splits(rows, toy(), seed=4).set_index("sample_id")["fold"]
    assert (other != first).any()


def test_very_many_patients_are_dealt_out_evenly_and_stay_whole(monkeypatch):
    rows = samples({"a": 403, "b": 52}, lambda k: 1 + k % 3)
    monkeypatch.setattr(manifest, "LARGE", 100)
    made = manifest.assign_splits(rows, toy(), seed=1)
    manifest.validate(made, toy())
    patients = made.drop_duplicates("patient_id").assign(
        images=made["patient_id"].map(made["patient_id"].value_counts())
    )
    counts = pd.crosstab([patients["label"], patients["images"]], patients["fold"])
    assert counts.shape == (6, 5)  # of each kind of patient each fold has its share
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    same = manifest.assign_splits(rows, toy(), seed=1)
    other = manifest.assign_splits(rows, toy(), seed=2)
    assert (same["fold"] == made["fold"]).all() and (other["fold"] != made["fold"]).any()


def test_repeated_cross_validation_draws_other_folds_for_each_seed():
    rows = manifest.assign_splits(samples({"a": 20, "b": 20}, lambda k: 1 + k % 2), toy(), seed=3)
    twice = manifest.repeat_folds(rows, toy(), repeats=3, seed=3)
    columns = manifest.fold_columns(twice)
    assert columns == ["fold", "fold_1", "fold_2"] and (twice["fold"] == rows["fold"]).all()
    manifest.validate(twice, toy())
    for column in columns:
        assert twice.groupby("patient_id")[column].nunique().eq(1).all()
        assert set(twice[column]) == {0, 1, 2, 3, 4}
    assert (twice["fold"] != twice["fold_1"]).any() and (twice["fold_1"] != twice["fold_2"]).any()
    for seed, column in ((0, "fold"), (1, "fold_1"), (2, "fold_2"), (3, "fold")):
        own = manifest.repetition(twice, seed)
        assert (own["fold"] == twice[column]).all() and manifest.fold_columns(own) == ["fold"]
    once = manifest.repeat_folds(twice, toy(), repeats=1)
    assert list(once.columns) == list(rows.columns)
    assert manifest.repetition(rows, 1) is rows


def test_each_repetitions_folds_are_checked():
    rows = folded(patients=2, images=lambda k: 2)
    rows["fold_1"] = rows["fold"]
    manifest.validate(rows, toy())
    rows.loc[0, "fold_1"] = 2
    assert "patient 'a0' is in several fold_1s: 0, 2" in complaint(rows)
    rows["fold_1"] = rows["fold"] // 2
    assert "2 fold_1(s): three or more are needed" in complaint(rows)


def test_an_official_split_is_not_repeated_and_an_unannounced_one_is_refused():
    rows = samples({"a": 3, "b": 3}).assign(split=["train", "val", "test"] * 2)
    assert manifest.repeat_folds(rows, toy(split="official"), repeats=2) is rows
    assert manifest.repeat_folds(rows, toy(), repeats=1) is rows
    with pytest.raises(ManifestError, match="toy: its samples come with a split.*repeats to 1"):
        manifest.repeat_folds(rows, toy(), repeats=2)


def test_patients_who_share_an_identical_file_stay_together():
    rows = samples({"a": 15, "b": 15}, lambda k: 2)
    rows["sha256"] = [f"{i:064x}" for i in range(len(rows))]
    same = rows.set_index("sample_id")["sha256"]
    same["a1-0"] = same["a0-1"]  # a0 = a1, a1 = a2, and so a0, a1, a2 are one group
    same["a2-0"] = same["a1-1"]
    rows["sha256"] = same.to_numpy()
    for seed in range(8):
        folds = manifest.assign_splits(rows, toy(), seed).groupby("patient_id")["fold"].unique()
        assert folds["a0"].tolist() == folds["a1"].tolist() == folds["a2"].tolist()
    apart = rows.drop(columns="sha256")
    seen = [
        manifest.assign_splits(apart, toy(), s).groupby("patient_id")["fold"].first()[:3].nunique()
        for s in range(8)
    ]
    assert max(seen) > 1  # without the hashes, some seed separates them


def test_an_official_split_keeps_its_test_set_and_validates_on_a_fifth_of_patients():
    train = samples({"a": 20, "b": 30}).assign(split="train")
    test = samples({"a": 7, "b": 9}).assign(split="test")
    test[["sample_id", "patient_id"]] = "t" + test[["sample_id", "patient_id"]]
    rows = manifest.assign_splits(pd.concat([test, train]), toy(split="official"))
    assert set(rows["sample_id"][rows["split"] == "test"]) == set(test["sample_id"])
    counts = pd.crosstab(rows["split"], rows["label"])
    assert counts.loc["val"].to_dict() == {"a": 4, "b": 6}
    assert counts.loc["train"].to_dict() == {"a": 16, "b": 24}
    assert rows.groupby("patient_id")["split"].nunique().eq(1).all()


def test_an_official_split_that_comes_with_validation_is_left_alone():
    rows = samples({"a": 8, "b": 8})
    rows["split"] = rows["patient_id"].str[1:].astype(int).map(lambda k: splits.SPLITS[k % 3])
    split = manifest.assign_splits(rows, toy(split="official"), seed=1)
    before = rows.set_index("sample_id")["split"].to_dict()
    assert split.set_index("sample_id")["split"].to_dict() == before


def test_an_official_split_without_a_column_split_is_refused():
    with pytest.raises(ManifestError, match="toy: the card says 'split: official'"):
        manifest.assign_splits(samples({"a": 9, "b": 9}), toy(split="official"))


def test_too_few_patients_are_refused_with_the_count():
    rows = samples({"a": 12, "b": 4}, lambda k: 3)  # twelve images of b, yet four patients
    with pytest.raises(ManifestError, match=r"5 folds need at least 5 patients .* b has 4$"):
        manifest.assign_splits(rows, toy())


def test_known_duplicates_are_dropped_from_training_only():
    rows = samples({"a": 4, "b": 4}).assign(split=["train", "test"] * 4)
    twins = (("a1-0", "b0-0"), ("a0-0", "b2-0"), ("b1-0", "b3-0"), ("b1-0", "absent"))
    kept, dropped = manifest.drop_duplicates(rows, twins)
    assert dropped.to_dict("records") == [
        {"name": "b0-0", "reason": "the same image as a1-0 of the test set"}
    ]  # a0 and b2 both train; b1 and b3 both test
    assert kept["sample_id"].tolist() == [s for s in rows["sample_id"] if s != "b0-0"]
    assert kept.index.tolist() == list(range(7))


def test_of_an_image_on_three_sides_what_is_tested_stays():
    rows = samples({"a": 4}).assign(split=["train", "val", "test", "train"])
    kept, dropped = manifest.drop_duplicates(rows, [["a0-0", "a1-0", "a2-0", "a3-0"]])
    assert kept["sample_id"].tolist() == ["a2-0"]
    assert set(dropped["reason"]) == {"the same image as a2-0 of the test set"}


def test_of_an_image_in_several_folds_the_first_sample_and_its_fold_stay():
    rows = samples({"a": 4}).assign(fold=[1, 0, 1, 2])
    kept, dropped = manifest.drop_duplicates(rows, [["a3-0", "a0-0", "a2-0"]])
    assert kept["sample_id"].tolist() == ["a0-0", "a1-0", "a2-0"]
    assert dropped["reason"].tolist() == ["the same image as a0-0 of another fold"]


def test_without_duplicates_or_without_a_split_nothing_is_dropped():
    for rows, groups in ((folded(), ()), (samples({"a": 2}), [("a0-0", "a1-0")])):
        kept, dropped = manifest.drop_duplicates(rows, groups)
        pd.testing.assert_frame_equal(kept, rows)
        assert dropped.empty
        assert dropped.columns.tolist() == ["name", "reason"]


def test_patients_of_whom_there_is_the_same_image_stay_together():
    rows = samples({"a": 15, "b": 15}, lambda k: 2)
    pairs = [("a0-1", "a7-0"), ("a7-1", "b3-0"), ("b3-1", "absent")]
    fold = manifest.assign_splits(rows, toy(), pairs=pairs).groupby("patient_id")["fold"].first()
    assert fold["a0"] == fold["a7"] == fold["b3"]


def test_names_are_linked_through_others():
    pairs = [("d", "c"), ("a", "b"), ("x", "y"), ("b", "c")]
    assert manifest.linked(pairs) == [["a", "b", "c", "d"], ["x", "y"]]
    assert manifest.linked([]) == []


# --------------------------------------------------------------------------------- rotations


def test_every_patient_is_tested_exactly_once_and_stands_on_one_side():
    rows = folded(n_folds=5, patients=3, images=lambda k: 1 + k % 3)
    parts = manifest.rotations(rows)
    assert [part.fold for part in parts] == [0, 1, 2, 3, 4]
    assert (sum(part.test.astype(int) for part in parts) == 1).all()
    assert (sum(part.val.astype(int) for part in parts) == 1).all()
    for part in parts:
        sides = [set(rows["patient_id"][mask]) for mask in (part.train, part.val, part.test)]
        assert [len(side) for side in sides] == [18, 6, 6]
        assert len(set.union(*sides)) == 30


def test_fold_i_is_tested_and_the_next_one_validates():
    rows = folded(n_folds=3)
    last = manifest.rotations(rows)[2]
    assert set(rows["fold"][last.test]) == {2}
    assert set(rows["fold"][last.val]) == {0}
    assert set(rows["fold"][last.train]) == {1}


def test_an_official_split_is_one_rotation():
    rows = samples({"a": 9, "b": 9})
    rows["split"] = rows["patient_id"].str[1:].astype(int).map(lambda k: splits.SPLITS[k % 3])
    (part,) = manifest.rotations(rows)
    for side in splits.SPLITS:
        assert (getattr(part, side) == (rows["split"] == side)).all()


def test_patients_are_counted_by_side():
    rows = folded(n_folds=4, patients=2, images=lambda k: 3)
    table = manifest.patients_by_side(rows, manifest.rotations(rows))
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table.to_dict("records") == [{"train": 8, "val": 4, "test": 4}] * 4


def fraction_rows():
    """Official split, several images a patient: 10 a and 40 b train, 5 and 20 val, 4 and 4 test."""
    parts = []
    counts = {"train": (10, 40), "val": (5, 20), "test": (4, 4)}
    for side, (a, b) in counts.items():
        part = samples({"a": a, "b": b}, lambda k: 1 + k % 3).assign(split=side)
        part[["sample_id", "patient_id"]] = side + part[["sample_id", "patient_id"]]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    "fraction, train, val",
    [(0.5, (5, 20), (2, 10)), (0.1, (2, 4), (2, 2)), (0.01, (2, 2), (2, 2))],
)
def test_a_label_fraction_keeps_that_share_of_patients_and_two_of_each_class(fraction, train, val):
    rows = fraction_rows()
    (part,) = manifest.rotations(rows, fraction, seed=1)
    for mask, (a, b) in ((part.train, train), (part.val, val)):
        kept = rows[mask].groupby("label")["patient_id"].nunique()
        assert kept.to_dict() == {"a": a, "b": b}
        whole = rows["patient_id"].isin(rows["patient_id"][mask])
        assert (whole == mask).all()  # a patient is kept with all images
    assert (part.test == (rows["split"] == "test")).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_label_fraction_is_a_subset_of_a_larger_one(seed):
    for rows in (fraction_rows(), folded(n_folds=3, patients=12)):
        parts = [manifest.rotations(rows, f, seed) for f in (0.05, 0.2, 0.25, 0.6, 1.0)]
        for small, large in zip(parts, parts[1:], strict=False):
            for a, b in zip(small, large, strict=True):
                assert not (a.train & ~b.train).any()
                assert not (a.val & ~b.val).any()
                assert (a.test == b.test).all()


def test_another_seed_keeps_other_patients():
    rows = fraction_rows()
    first, again, other = (manifest.rotations(rows, 0.3, seed)[0].train for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_label_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"\(0, 1\], not {fraction}"):
        manifest.rotations(folded(), fraction)


def test_rotations_refuse_a_patient_on_two_sides_and_a_class_without_samples():
    rows = folded()
    rows.loc[1, "patient_id"] = "a0"  # fold 1, while a0 is in fold 0
    rows.loc[(rows["fold"] == 2) & (rows["label"] == "b"), "label"] = "a"
    with pytest.raises(ManifestError) as caught:
        manifest.rotations(rows)
    message = str(caught.value)
    assert "patient 'a0' is on several sides: 0, 1" in message
    assert "fold 2: no sample of class 'b' in test" in message
    assert "fold 1: no sample of class 'b' in val" in message
    assert "fold 0: no sample of class 'b' in train" in message


def test_an_official_split_that_comes_without_validation_gets_a_fifth_of_its_training_patients():
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(40)],
            "patient_id": [f"p{i}" for i in range(40)],
            "path": [f"{i}.png" for i in range(40)],
            "label": ["a", "b"] * 20,
            "split": ["train"] * 30 + ["test"] * 10,
        }
    )
    split = manifest.assign_splits(rows, toy())["split"].value_counts()
    assert dict(split) == {"train": 24, "val": 6, "test": 10}
