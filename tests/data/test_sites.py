"""Leave one site out: each site is tested once, and no patient is on two sides."""

import numpy as np
import pandas as pd
import pytest

from medlib.core import splits
from medlib.data import cards, manifest, preparation
from medlib.data.layouts import reader
from medlib.errors import ManifestError

CARD = {"task": "t", "title": "T", "modality": "M", "classes": ["a", "b"], "licence": "L"}
CARD |= {"citation": "C", "source": "S", "split": "leave-one-site-out"}


def card(**more):
    return cards.Card(**CARD | more)


def made(sites, views=2):
    """``views`` samples a patient; ``sites`` maps a site to its patients of each class."""
    whose = [
        (f"{site}-{label}{k}", site, label)
        for site, counts in sites.items()
        for label, n in zip("ab", counts, strict=True)
        for k in range(n)
    ]
    rows = pd.DataFrame([one for one in whose for _ in range(views)])
    rows.columns = ["patient_id", "site", "label"]
    rows["sample_id"] = [f"{one}-{k}" for k, one in enumerate(rows["patient_id"])]
    return rows.assign(path=rows["sample_id"] + ".png")


SITES = {"N": (12, 8), "S": (5, 5), "W": (7, 20), "E": (6, 6)}


def test_each_site_is_tested_once_and_no_patient_is_on_two_sides():
    rows = manifest.assign_splits(made(SITES), card())
    manifest.validate(rows, card())
    tested, patients = [], rows["patient_id"]
    for part in manifest.rotations(rows):
        sides = [set(patients[mask]) for mask in (part.train, part.val, part.test)]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert set().union(*sides) == set(patients)
        (site,) = set(rows["site"][part.test])
        assert set(rows["sample_id"][rows["site"] == site]) == set(rows["sample_id"][part.test])
        assert set(rows["site"][part.val]) == set(SITES) - {site}  # of every other site
        tested.append(site)
    assert sorted(tested) == sorted(SITES)
    once = rows.drop_duplicates("patient_id")
    per_rotation = once.groupby(["validates", "label"]).size().unstack()
    assert (per_rotation.max() - per_rotation.min() <= 2).all()  # each patient validates once


def test_the_draw_follows_the_seed_and_label_fractions_keep_to_it():
    rows = made(SITES)
    one, again, other = (manifest.assign_splits(rows, card(), seed) for seed in (0, 0, 1))
    assert one.equals(again) and not one["validates"].equals(other["validates"])
    assert one["fold"].equals(other["fold"])
    for whole, part in zip(manifest.rotations(one), manifest.rotations(one, 0.5), strict=True):
        assert part.test.tolist() == whole.test.tolist()
        assert not (part.train & ~whole.train).any() and part.train.sum() < whole.train.sum()


def test_every_site_that_cannot_be_tested_is_named_with_the_way_out():
    rows = made(SITES | {"EZ": (1, 0), "FG": (8, 4)})
    rows.loc[0, "site"] = ""
    rows.loc[2, "site"] = "W"  # one of two images of a patient at N
    with pytest.raises(ManifestError) as error:
        manifest.assign_splits(rows, card(joined_sites={"x": ["QQ"]}))
    words = str(error.value)
    assert "N-a0-0 has no site" in words
    assert "patient 'N-a1' is at several sites: N, W" in words
    assert "site EZ has fewer than 5 patients of a class: a 1, b 0" in words
    assert "site FG has fewer than 5 patients of a class: a 8, b 4" in words
    assert "joined_sites names 'QQ', which no sample has" in words
    assert "joined_sites: {others: [A, B]}" in words and "cross-validation" in words
    with pytest.raises(ManifestError, match=r"2 site\(s\): three or more"):
        manifest.assign_splits(made({"N": (9, 9), "S": (9, 9)}), card())
    with pytest.raises(ManifestError, match="come with a split of their own"):
        manifest.assign_splits(made(SITES).assign(split="train"), card())


def test_small_sites_are_joined_as_the_card_says():
    how = card(joined_sites={"others": ["EZ", "FG"]})
    rows = manifest.assign_splits(made(SITES | {"EZ": (1, 1), "FG": (8, 4)}), how)
    joined = rows[rows["site"].isin(["EZ", "FG"])]
    assert joined["fold"].nunique() == 1 and rows["fold"].nunique() == 5
    manifest.validate(rows, how)
    with pytest.raises(ManifestError, match="fold 4 is in sites EZ, FG"):
        manifest.validate(rows, card())


def test_a_manifest_whose_folds_are_not_the_sites_is_refused(tmp_path):
    rows = manifest.assign_splits(made(SITES), card())
    manifest.write(rows, pd.DataFrame(), tmp_path / "t.csv", card())
    back = manifest.read(tmp_path / "t.csv", card())
    assert back["validates"].tolist() == rows["validates"].tolist()
    swapped = rows.assign(fold=(rows["fold"] + (rows.index == 0)) % 4)
    with pytest.raises(ManifestError, match="site E is in folds 0, 1"):
        manifest.validate(swapped, card())
    with pytest.raises(ManifestError, match="is not another fold"):
        manifest.validate(rows.assign(validates=rows["fold"]), card())
    half = rows.assign(validates=np.where(rows.index % 2 == 0, rows["validates"], 0))
    with pytest.raises(ManifestError, match="validates in several"):
        manifest.validate(half, card())
    with pytest.raises(ManifestError, match="no column validates"):
        manifest.validate(rows.drop(columns="validates"), card())


def test_the_core_refuses_patients_who_would_train_and_validate():
    patients, labels = list("aabbcc"), [0, 1] * 3
    stands = [[0, 1], [0, 1], [1, 2], [1, 2], [2, 0], [2, 0]]
    (first, _, _) = splits.rotations(stands, patients, labels)
    masks = [mask.tolist() for mask in (first.train, first.val, first.test)]
    assert masks == [[k // 2 == side for k in range(6)] for side in (1, 2, 0)]
    stands[0] = [0, 2]
    with pytest.raises(ManifestError, match=r"patient 'a' is on several sides: \[0, 1\], \[0, 2\]"):
        splits.rotations(stands, patients, labels)
    stands[0] = stands[1] = [0, 0]  # never validates where it is tested
    with pytest.raises(ManifestError, match="fold 1: no sample of class 0 in train|no sample of"):
        splits.rotations([[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]], patients, labels)


def test_further_columns_of_a_table_are_kept_or_missed(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    rng, rows = np.random.default_rng(0), made(SITES, views=1)
    for path in rows["path"]:
        Image.fromarray(rng.integers(255, size=(16, 16), dtype=np.uint8)).save(
            tmp_path / "set" / path
        )
    rows["scanner"], rows["bmi"] = "one", [f"{20 + k % 9}" for k in range(len(rows))]
    rows.to_csv(tmp_path / "set" / "table.csv", index=False)
    columns = {"path": "path", "label": "label", "device": "scanner"}
    how = {"folder": "set", "layout": "table"}
    how["layout_options"] = {"table": "table.csv", "columns": columns}
    asked = card(**how, subgroups={"device": (), "bmi": (25.0,)})
    prepared = preparation.prepare(asked, tmp_path, workers=1)
    assert set(prepared.rows["device"]) == {"one"}
    bmi = rows.set_index("sample_id")["bmi"]
    assert prepared.rows.set_index("sample_id")["bmi"].to_dict() == bmi.to_dict()
    assert "fold 0 is E, fold 1 is N, fold 2 is S, fold 3 is W" in prepared.notes[-1]
    with pytest.raises(ManifestError, match="columns missing: weight"):
        reader.read(card(**how, subgroups={"device": (), "weight": ()}), tmp_path)
    # A manifest that fixes samples alone gets the columns from the folder.
    given = tmp_path / "t.csv"
    prepared.rows[["sample_id", "patient_id", "path", "label", "fold", "validates"]].to_csv(
        given, index=False
    )
    again = preparation.prepare(asked, tmp_path, given=given, workers=1)
    assert again.rows.equals(prepared.rows)


def test_a_copy_at_another_site_stops(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    rng, rows = np.random.default_rng(0), made(SITES, views=1)
    pixels = rng.integers(255, size=(len(rows), 16, 16), dtype=np.uint8)
    rows["path"] = "set/" + rows["path"]
    first, other = rows.index[rows["site"] == "N"][0], rows.index[rows["site"] == "S"][0]
    pixels[other] = pixels[first]
    for path, image in zip(rows["path"], pixels, strict=True):
        Image.fromarray(image).save(tmp_path / path)
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ManifestError, match="1 image.s. are on several sides") as error:
        preparation.prepare(card(), tmp_path, given=tmp_path / "t.csv", workers=1)
    assert rows["sample_id"][first] in str(error.value)
    assert rows["sample_id"][other] in str(error.value)
