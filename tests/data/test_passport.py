"""The split passport: every number drawn is in its table, and every text can be read."""

import matplotlib

matplotlib.use("Agg")

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medlib.data import passport
from medlib.show import passport as passport_figure
from medlib.show import style

CLASSES = ["low grade", "high grade"]

PAIR = dict(
    first="i0",
    second="i4",
    kind="exact",
    correlation=1.0,
    first_side="test",
    second_side="train",
    same_patient=False,
    action="i4 dropped",
)
NO_PAIRS = pd.DataFrame(columns=list(PAIR))
NONE_LEFT_OUT = pd.DataFrame(columns=["name", "reason"])


def small_manifest(**columns) -> pd.DataFrame:
    rows = {
        "sample_id": [f"i{i}" for i in range(8)],
        "patient_id": ["a", "a", "a", "b", "c", "d", "d", "e"],
        "path": [f"{i}.png" for i in range(8)],
        "label": ["low grade"] * 4 + ["high grade"] * 4,
        "split": ["test", "test", "test", "train", "train", "val", "val", "train"],
    }
    return pd.DataFrame(rows | columns)


def hard_manifest(n: int = 1200, classes: int = 10, folds: int = 10) -> pd.DataFrame:
    """Many classes, folds and sites, long names, wide letters, and most ages unknown."""
    patient = np.arange(n) * 2 // 3
    label = [f"class {'with a long name ' * (i % 2)}{i % classes}" for i in patient]
    return pd.DataFrame(
        {
            "sample_id": [f"I{i}" for i in range(n)],
            "patient_id": [f"P{i}" for i in patient],
            "path": "x.png",
            "label": label,
            "fold": patient % folds,
            "age": [str(i % 97) if i % 5 == 0 else "" for i in patient],
            "sex": np.where(patient % 3 == 0, "", "W" * 12),
            "site": [f"University Hospital {'WM' * (i % 20 % 6)} {i % 20}" for i in patient],
        }
    )


def hard_frames() -> dict[str, tuple]:
    pairs = [
        PAIR | {"first": f"{'W' * 40}_{i}", "second": f"I{i}", "action": "dropped, since " * 9}
        for i in range(20)
    ]
    left_out = [
        {"name": f"{'M' * 50}_{i}", "reason": f"{'x' * 60 * (i % 4)} could not {i % 8} be read"}
        for i in range(30)
    ]
    hard, few = hard_manifest(), hard_manifest(20, classes=2, folds=3)
    frames = {
        "hard": (hard, pd.DataFrame(pairs), pd.DataFrame(left_out)),
        "few": (few[["sample_id", "patient_id", "path", "label", "fold"]], NO_PAIRS, NONE_LEFT_OUT),
        "mixed": (few, pd.DataFrame([PAIR]), pd.DataFrame(left_out[:1])),
    }
    return {
        name: (rows, sorted(set(rows["label"])), *more) for name, (rows, *more) in frames.items()
    }


def part(table: pd.DataFrame, name: str, of: str = "") -> dict:
    rows = table[(table["part"] == name) & (table["class"] == of)]
    return dict(zip(rows["name"], rows["count"], strict=True))


def panel_names(fig: Figure) -> list[str]:
    return [ax.get_title("left") for ax in fig.axes]


def test_passport_counts_patients_and_images_of_each_class_on_each_side():
    table = passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    low, high = CLASSES
    assert part(table, "images by split", low) == {"train": 1, "val": 0, "test": 3}
    assert part(table, "patients by split", low) == {"train": 1, "val": 0, "test": 1}
    assert part(table, "images by split", high) == {"train": 2, "val": 2, "test": 0}
    assert part(table, "patients by split", high) == {"train": 2, "val": 1, "test": 0}
    assert part(table, "patients by split", passport.ALL) == {"train": 3, "val": 1, "test": 1}
    assert part(table, "images per patient", low) == {"1": 1, "2": 0, "3": 1}
    classes = table[table["part"] == "classes"].set_index(["class", "unit"])
    assert classes.loc[(low, "images"), "count"] == 4
    assert classes.loc[(high, "patients"), "share"] == 0.6
    units = table.groupby("part")["unit"].first()
    assert units["images by split"] == "images" and units["images per patient"] == "patients"
    folds = small_manifest(fold=[2, 2, 2, 0, 0, 1, 1, 0]).drop(columns="split")
    table = passport.table(folds, [*CLASSES, "none"], NO_PAIRS, NONE_LEFT_OUT)
    assert part(table, "patients by fold", low) == {"0": 1, "1": 0, "2": 1}
    assert part(table, "patients by fold", "none") == {"0": 0, "1": 0, "2": 0}
    with pytest.raises(ValueError, match="split it first"):
        passport.table(folds.drop(columns="fold"), CLASSES, NO_PAIRS, NONE_LEFT_OUT)


def test_patient_of_two_classes_counts_in_both_and_once_in_all():
    rows = small_manifest(patient_id=["a", "a", "a", "b", "b", "d", "d", "e"])
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    counts = [part(table, "patients by split", name)["train"] for name in [*CLASSES, passport.ALL]]
    assert counts == [1, 2, 2]


def test_every_number_and_bar_of_the_passport_stands_in_its_table():
    rows = small_manifest(age=["41"] * 4 + ["", "7", "7", "85"], sex=["f"] * 4 + ["m"] * 4)
    frames = (
        rows,
        CLASSES,
        pd.DataFrame([PAIR]),
        pd.DataFrame({"name": ["z9"], "reason": ["no t1"]}),
    )
    table, fig = passport.table(*frames), passport_figure.draw(passport.table(*frames))
    expected = ["patients by split", "images by split", "images per patient", "age in years", "sex"]
    assert panel_names(fig) == expected
    for ax in fig.axes:
        rows = table[table["part"] == ax.get_title("left")]
        names = [tick.get_text().replace("not\nknown", "unknown") for tick in ax.get_xticklabels()]
        drawn = [text.get_text() for text in ax.texts]
        for name, bars in zip([*CLASSES, passport.ALL], ax.containers, strict=True):
            of_class = rows[rows["class"] == name].set_index("name").loc[names]
            numbers = [drawn.pop(0) for _ in names]
            assert numbers == [f"{count:,}" for count in of_class["count"]]
            heights = np.array([bar.get_height() for bar in bars])
            highest = rows["share"].max()
            np.testing.assert_allclose(heights / 0.58, of_class["share"].fillna(0) / highest)
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == ["low grade\n2 (40.0 %)", "high grade\n3 (60.0 %)", "all classes\n5"]
    for number in re.findall(r"\d+\.\d+|(?<![\w.])\d+(?![\w.])", "\n".join(passport_text(fig))):
        values = [*table["count"], *table["correlation"].dropna()]
        assert float(number) in values, number


def test_names_of_classes_are_printed_as_words():
    rows = small_manifest()
    rows["label"] = rows["label"].str.replace(" ", "_")
    fig = passport_figure.draw(
        passport.table(rows, ["low_grade", "high_grade"], NO_PAIRS, NONE_LEFT_OUT)
    )
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == ["low grade\n2 (40.0 %)", "high grade\n3 (60.0 %)", "all classes\n5"]


def passport_text(fig: Figure) -> list[str]:
    """Under the panels: a heading and a text on duplicates, and two on what was left out."""
    return [text.get_text() for text in fig.subfigs[-1].texts]


def test_ages_stand_in_bands_with_the_unknown_and_impossible_apart():
    ages = ["3.5", "", "34", "unknown", "39.9", "999", "94", "101"]
    rows = small_manifest(age=ages, patient_id=list("abcdefgh"))
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    counts = part(table, "age in years", passport.ALL)
    assert list(counts) == [*(f"{low}–{low + 9}" for low in range(0, 90, 10)), "90+", "unknown"]
    assert {name: n for name, n in counts.items() if n} == {
        "0–9": 1,
        "30–39": 2,
        "90+": 2,
        "unknown": 3,
    }
    shares = table[(table["part"] == "age in years") & (table["class"] == CLASSES[0])]
    shares = shares.set_index("name")["share"]
    assert shares["30–39"] == 0.5 and np.isnan(shares["unknown"])  # of those that are known
    assert not {"3.5", "39.9", "94", "101"} & set(table["name"])
    children = rows.assign(age=["1", "2", "3", "4", "5", "6", "7", "11"])
    table = passport.table(children, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    assert part(table, "age in years", passport.ALL) == {"0–4": 4, "5–9": 3, "10–14": 1}


def test_patient_has_one_age_and_one_sex_the_first_that_is_known():
    rows = small_manifest(
        age=["", "41", "58", "41", "62", "", "66", "67"], sex=["", "", "f", "m", "m", "f", "m", ""]
    )
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    assert part(table, "age in years", CLASSES[0])["40–44"] == 2
    assert part(table, "age in years", CLASSES[1]) == {
        "40–44": 0,
        "45–49": 0,
        "50–54": 0,
        "55–59": 0,
        "60–64": 1,
        "65–69": 2,
    }
    assert part(table, "sex", CLASSES[1]) == {"f": 1, "m": 1, "unknown": 1}


def test_sexes_stand_in_the_order_of_their_names_and_sites_in_that_of_their_counts():
    values = ["x"] * 4 + ["m", "f", "f", "m"]
    rows = small_manifest(sex=values, site=values)  # patients: x 2, f 1, m 1 and, the last, m
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    assert part(table, "sex", passport.ALL) == {"f": 1, "m": 2, "x": 2}
    assert list(part(table, "sex", passport.ALL)) == ["f", "m", "x"]
    assert list(part(table, "site", passport.ALL)) == ["m", "x", "f"]


@pytest.mark.parametrize("empty", ["", None, np.nan, "unknown", "NA", " "])
def test_passport_has_no_panel_of_what_nobody_knows(empty):
    rows = small_manifest(age=empty, sex=empty, site=empty)
    fig = passport_figure.draw(passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT))
    assert panel_names(fig) == ["patients by split", "images by split", "images per patient"]
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    assert not set(table["part"]) & set(passport.CONFOUNDERS.values())


def test_passport_of_one_image_each_does_not_say_it_twice():
    rows = small_manifest(patient_id=list("abcdefgh"), path=[f"{i}.nii.gz" for i in range(8)])
    fig = passport_figure.draw(passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT))
    assert panel_names(fig) == ["patients by split, one volume each"]
    table = passport.table(rows, CLASSES, NO_PAIRS, NONE_LEFT_OUT)
    assert part(table, "volumes by split", CLASSES[0]) == {"train": 1, "val": 0, "test": 3}


def test_small_sites_are_summed_up_and_none_is_lost():
    rows = hard_manifest()
    table = passport.table(rows, sorted(set(rows["label"])), NO_PAIRS, NONE_LEFT_OUT)
    counts = part(table, "site", passport.ALL)
    assert len(counts) == 10 and list(counts)[-1] == "11 other"
    assert sum(counts.values()) == rows["patient_id"].nunique()
    assert list(counts.values())[:-1] == sorted(list(counts.values())[:-1], reverse=True)


def test_duplicates_are_counted_by_kind_patient_and_side_and_the_gravest_are_listed():
    near = PAIR | {"kind": "near", "first_side": "train", "action": "both kept"}
    pairs = [near | {"first": f"i{i}", "correlation": 0.9 + i / 100} for i in range(8)]
    pairs += [near | {"same_patient": True, "first": "i2"}, PAIR | {"second_side": ""}, PAIR]
    frames = small_manifest(), CLASSES, pd.DataFrame(pairs), NONE_LEFT_OUT
    table = passport.table(*frames)
    assert part(table, "duplicates") == {
        "all": 11,
        "exact, of two patients, on two sides": 1,
        "near, of two patients, on one side": 8,
        "near, of one patient, on one side": 1,
        "exact, of two patients, not both split": 1,
    }
    named = part(table, "pairs")
    assert list(named)[:2] == ["pair 1 (test and train)", "pair 2 (train and train)"]
    assert named[passport.REST] == 5 and len(named) == 7
    heading, text, *_ = passport_text(passport_figure.draw(passport.table(*frames)))
    assert heading == "duplicates found: 11 pairs"
    text = " ".join(text.replace("\u00a0", " ").split())
    assert text.startswith("1 × exact, of two patients, on two sides: … dropped 8 × near")
    assert "pair 1 (test and train), r = 1.000: exact, … dropped pair 2 (train" in text
    assert text.endswith("and 5 more")
    none = passport_figure.draw(passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT))
    assert passport_text(none) == ["duplicates found: none", "", "left out: nothing", ""]


def test_reasons_that_differ_in_ids_alone_are_one():
    reasons = {
        "P1": "the same image as i3 of the test set",
        "P2": "the same image as i4 of the test set",
        "P3": "no t1, t1ce",
        "P4": "no t1, t1ce",
        "scans/P9.png": "scans/P9.png cannot be read: truncated",
        "P8": "sub/1234.png cannot be read: truncated",
        "P5": "no t1, t1ce",
        "P6": "no t1, t1ce",
        "7": "fewer than 5 slices",
        "5": "fewer than 7 slices, see (P1).",
    }
    excluded = pd.DataFrame(reasons.items(), columns=["name", "reason"])
    table = passport.table(small_manifest(), CLASSES, NO_PAIRS, excluded)
    assert part(table, "left out") == {
        "all": 10,
        "… cannot be read: truncated": 2,
        "no t1, t1ce": 4,
        "the same image as … of the test set": 2,
        "fewer than 5 slices": 1,
        "fewer than 7 slices, see (…).": 1,
    }
    fig = passport_figure.draw(passport.table(small_manifest(), CLASSES, NO_PAIRS, excluded))
    heading, text = passport_text(fig)[2:]
    assert heading == "left out: 10"
    assert text.startswith("4 × no t1, t1ce\n2 × the same image as … of the test set\n")


@pytest.mark.parametrize("case", ["hard", "few", "mixed"])
def test_passport_text_is_legible_and_nothing_overlaps_or_is_cut_off(case):
    fig = passport_figure.draw(passport.table(*hard_frames()[case]), "A title " * 20)
    assert fig.get_figwidth() == style.PAGE
    fig.set_dpi(200)  # as it is saved
    fig.draw_without_rendering()
    texts = [text for text in fig.findobj(matplotlib.text.Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 5.5
    boxes = np.array([text.get_window_extent().extents for text in texts])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= fig.bbox.extents[2:]).all()
    left, bottom, right, top = (boxes[:, [i]] for i in range(4))
    apart = (right <= left.T + 1) | (top <= bottom.T + 1)
    touching = np.argwhere(~(apart | apart.T | np.eye(len(texts), dtype=bool)))
    assert not [(texts[i].get_text(), texts[j].get_text()) for i, j in touching]
    heights = [ax.get_window_extent().height / 200 / len(ax.containers) for ax in fig.axes]
    assert min(heights) > 0.27 and max(heights) < 0.5  # inches of a class's row


def test_passport_grows_with_its_content():
    frames = hard_frames()
    few, mixed = (passport_figure.draw(passport.table(*frames[case])) for case in ("few", "mixed"))
    assert few.get_figheight() < 2.5 < mixed.get_figheight() < 8


def test_passport_saved_twice_gives_the_same_bytes(tmp_path):
    frames = hard_frames()["mixed"]
    for folder in ("a", "b"):
        fig, table = passport_figure.draw(passport.table(*frames)), passport.table(*frames)
        paths = style.save(fig, tmp_path / folder / "passport", table)
        again = style.save(fig, tmp_path / folder / "again", table)
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    back = pd.read_csv(paths[-1], keep_default_na=False)
    assert list(back["count"]) == list(table["count"])  # whole numbers


def test_of_many_classes_only_the_largest_are_drawn_and_a_note_says_so():
    classes = [f"class {number:03d}" for number in range(200)]
    labels = [name for number, name in enumerate(classes) for _ in range(3 + (number >= 150))]
    ids = [f"s{number}" for number in range(len(labels))]
    rows = pd.DataFrame({"sample_id": ids, "patient_id": ids, "path": "x.png", "label": labels})
    rows["fold"] = np.arange(len(rows)) % 3
    table = passport.table(rows, classes, NO_PAIRS, NONE_LEFT_OUT)
    assert set(classes) < set(table["class"])  # the numbers are those of all
    fig = passport_figure.draw(table)
    ticks = [tick.get_text() for tick in fig.subfigs[0].axes[0].get_yticklabels()]
    assert len(ticks) == passport_figure.MOST + 1 and "class" in ticks[0] and "150" in ticks[0]
    words = " ".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))
    assert "Only the 40 classes with the most patients are drawn, of 200." in words


def test_a_passport_of_1600_drops_stays_a_page_whatever_their_names(tmp_path):
    rows = small_manifest(sample_id=[f"a ({i})" for i in range(8)])
    names = [f"b ({i}).png" for i in range(1600)]
    reasons = [f"set aside: the same image as a ({i % 8}) of the test set" for i in range(800)]
    reasons += [
        f"set aside: its file in chest x/{name} is odd {i * 7919}"
        for i, name in enumerate(names[800:])
    ]
    left_out = pd.DataFrame({"name": names, "reason": reasons})
    pairs = pd.DataFrame(
        [
            PAIR | {"first": f"a ({i % 8})", "second": name, "action": f"{name} dropped"}
            for i, name in enumerate(names[:800])
        ]
    )
    numbers = passport.table(rows, CLASSES, pairs, left_out, notes=["Each is one."] * 40)
    found = numbers[numbers["part"] == "left out"].set_index("name")["count"]
    assert found["set aside: the same image as … of the test set"] == 800
    assert found.iloc[0] == 1600 and len(found) <= 2 + passport.MOST_REASONS
    dropped = numbers[numbers["part"] == "duplicates"]
    assert dropped["count"].tolist() == [800, 800] and dropped["detail"].iloc[1] == "… dropped"
    fig = passport_figure.draw(numbers, "Toy")
    assert fig.get_figheight() < 9  # inches


def test_kinds_of_file_and_sizes_are_counted_by_class_as_images():
    stored = pd.DataFrame(
        {"sample_id": [f"i{i}" for i in range(8)], "kind": ["PNG"] * 3 + ["JPEG"] * 5}
    )
    stored = stored.assign(bits=[8, 16, 16, 8, 8, 8, 8, 8], width=224, height=224)
    table = passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT, stored)
    assert part(table, passport.FILE_TYPE, "low grade") == {
        "JPEG, 8 bits": 1,
        "PNG, 16 bits": 2,
        "PNG, 8 bits": 1,
    }
    assert part(table, passport.FILE_TYPE, "high grade")["JPEG, 8 bits"] == 4
    assert part(table, passport.IMAGE_SIZE, "all classes") == {"224×224": 8}
    assert set(table["unit"][table["part"] == passport.FILE_TYPE]) == {"images"}
    stored["width"] = [100, 200, 300, 400, 500, 600, 700, 1300]  # longer sides, 224 at least
    table = passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT, stored)
    sides = "longer side 128–255, 256–511, 512–1023, 1024–2047".replace(", ", ", longer side ")
    assert list(part(table, passport.IMAGE_SIZE, "all classes").items()) == list(
        zip(sides.split(", "), (2, 3, 2, 1), strict=True)
    )


def test_a_file_type_or_size_that_all_images_have_is_a_sentence_and_no_panel():
    stored = pd.DataFrame({"sample_id": [f"i{i}" for i in range(8)], "kind": "JPEG", "bits": 8})
    stored = stored.assign(width=[96] * 7 + [224], height=96)
    numbers = passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT, stored)
    fig = passport_figure.draw(numbers)
    assert passport.IMAGE_SIZE in panel_names(fig) and passport.FILE_TYPE not in panel_names(fig)
    assert "All images: JPEG, 8 bits." in fig.get_supxlabel()
    stored["width"] = 96
    numbers = passport.table(small_manifest(), CLASSES, NO_PAIRS, NONE_LEFT_OUT, stored)
    fig = passport_figure.draw(numbers)
    assert not {passport.IMAGE_SIZE, passport.FILE_TYPE} & set(panel_names(fig))
    assert "All images: JPEG, 8 bits, 96×96 pixels." in fig.get_supxlabel()
