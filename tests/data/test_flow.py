"""The participant flow: its numbers equal a count by hand, and each of them is drawn."""

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest
from made_folders import card, picture, prepare, save
from shown import all_words

from medlib.data import flow, manifest
from medlib.data.passport import ALL
from medlib.show import flow as flow_figure

# Class, side and images of each patient who is used.
USED = {"p01": ("a", "train", 2), "p02": ("a", "train", 1), "p03": ("b", "train", 1)}
USED |= {"p04": ("b", "train", 1), "p05": ("a", "val", 1), "p06": ("b", "val", 1)}
USED |= {"p07": ("a", "test", 1), "p08": ("b", "test", 1), "p09": ("b", "test", 1)}
# Stage, name, patients and count, as counted by hand in the folder below.
COUNTED = [
    ("found", "all entries", None, 14),
    ("excluded", flow.ALL_REASONS, None, 3),
    ("copies", flow.ALL_REASONS, None, 1),
    ("kept", ALL, 9, 10),
    ("kept", "a", 4, 5),
    ("kept", "b", 5, 5),
    ("train", ALL, 4, 5),
    ("train", "a", 2, 3),
    ("train", "b", 2, 2),
    ("val", ALL, 2, 2),
    ("val", "a", 1, 1),
    ("val", "b", 1, 1),
    ("test", ALL, 3, 3),
    ("test", "a", 1, 1),
    ("test", "b", 2, 2),
]
NONE_LEFT_OUT = pd.DataFrame(columns=["name", "reason"])


@pytest.fixture
def prepared(tmp_path):
    """A folder of 14 images, of which ten can be used, and a file that is no image."""
    rows, seed = [], 0
    for who, (label, side, images) in USED.items():
        for k in range(images):
            seed += 1
            save(picture(seed), tmp_path / "set" / f"{who}_{k}.png")
            rows.append((f"{who}_{k}.png", who, label, side))
    copy = (tmp_path / "set" / "p07_0.png").read_bytes()  # an image of the test set, in training
    for who, label, content in (("p10", "a", copy), ("p11", "b", b"no picture"), ("p12", "", None)):
        file = tmp_path / "set" / f"{who}_0.png"
        file.write_bytes(content) if content else save(picture(90), file)
        rows.append((file.name, who, label, "train"))
    save(picture(91), tmp_path / "set" / "p13_0.png")  # no row names it
    (tmp_path / "set" / "notes.txt").write_text("no image")
    columns = {"path": "file", "patient_id": "who", "label": "class", "split": "side"}
    table = pd.DataFrame(rows, columns=["file", "who", "class", "side"])
    table.to_csv(tmp_path / "set" / "list.csv", index=False)
    options = {"table": "list.csv", "columns": columns}
    task = card("table", layout_options=options, split="official")
    return task, prepare(task, tmp_path, quarantine=True)


def numbers_of(task, prepared):
    classes = manifest.classes(prepared.rows, task)
    return flow.table(prepared.rows, classes, prepared.excluded, prepared.stored, prepared.notes)


def test_a_flow_counts_what_is_counted_by_hand(prepared):
    numbers = numbers_of(*prepared)
    counted = numbers.astype(object).where(numbers.notna(), None)
    of_reasons = counted["stage"].isin(["excluded", "copies"]) & (
        counted["name"] != flow.ALL_REASONS
    )
    shown = counted[~of_reasons & ~counted["stage"].isin([flow.OTHER, flow.NOTES])]
    columns = ["stage", "name", "patients", "count"]
    assert list(shown[columns].itertuples(index=False, name=None)) == COUNTED
    reasons = counted[of_reasons].set_index("name")
    assert reasons["count"].tolist() == [1, 1, 1, 1]
    (copy,) = reasons.index[reasons["stage"] == "copies"]
    assert copy == "set aside: the same image as … of the test set"
    assert any("no row of list.csv" in name for name in reasons.index)
    assert any("label" in name for name in reasons.index)
    (other,) = numbers[numbers["stage"] == flow.OTHER].itertuples()
    assert (other.count, other.unit) == (1, "files") and ".txt" in other.name
    assert "p1" not in numbers["name"].str.cat(), "ids of patients must not be shown"


def test_the_parts_of_a_flow_add_up(prepared):
    counts = numbers_of(*prepared).groupby("stage")["count"].first()
    assert counts["found"] == counts["excluded"] + counts["copies"] + counts["kept"]
    assert counts["kept"] == counts["train"] + counts["val"] + counts["test"]


def test_the_figure_has_each_count_in_its_texts(prepared):
    words = all_words(flow_figure.draw(numbers_of(*prepared), "A title", "toy.excluded.csv"))
    lines = words.splitlines()
    expected = ["found: 14 entries", "excluded: 3 entries", "copies dropped: 1 images", "A title"]
    expected += ["9 patients", "10 images", "a: 4 / 5", "b: 5 / 5", "training", "a: 2 / 3"]
    expected += ["4 patients", "5 images", "b: 2 / 2", "2 patients", "2 images", "3 patients"]
    assert set(expected) <= set(lines), set(expected) - set(lines)
    assert lines.count("b: 2 / 2") == 2 and lines.count("a: 1 / 1") == 2
    assert "Other files, not counted above: 1 file(s)" in words


def folds(n=24, k=6):
    rows = pd.DataFrame({"sample_id": [f"s{i}" for i in range(n)], "path": "x.nii.gz"})
    return rows.assign(
        patient_id=rows["sample_id"], label=["a", "b"] * (n // 2), fold=rows.index % k
    )


def test_in_cross_validation_each_fold_is_a_side():
    numbers = flow.table(folds(), ["a", "b"], NONE_LEFT_OUT)
    of_all = numbers[numbers["name"] == ALL].set_index("stage")
    assert of_all["patients"].to_dict() == {"kept": 24} | {f"fold {f}": 4 for f in range(6)}
    assert set(of_all["unit"]) == {"volumes"}
    words = all_words(flow_figure.draw(numbers)).splitlines()
    assert words.count("4 patients") == 6 and "excluded: none" in words
    assert "copies dropped: none" in words and "24 volumes" not in words  # one volume each
    again = folds().assign(fold_1=lambda rows: rows["fold"])
    (note,) = flow.table(again, ["a", "b"], NONE_LEFT_OUT).query("stage == 'notes'")["name"]
    assert note == "The folds are those of the first of 2 repetitions."


def test_of_many_reasons_and_classes_the_most_frequent_are_drawn_and_the_others_counted():
    reasons = [f"reason {name * 3}" for k, name in enumerate("abcdefgh") for _ in range(9 - k)]
    excluded = pd.DataFrame({"name": "x", "reason": reasons})  # 9, 8, … 2: 44 in all
    rows = folds(26, 3).assign(label=[f"class {chr(97 + i % 13)}" for i in range(26)])
    numbers = flow.table(rows, sorted(set(rows["label"])), excluded)
    words = all_words(flow_figure.draw(numbers, more="t.excluded.csv"))
    assert "excluded: 44 entries" in words and "4 × reason fff" in words
    assert "reason ggg" not in words and "5 for 2 more reasons: t.excluded.csv" in words
    assert "Only the 10 classes with the most patients are named, of 13." in words
    assert "class k" not in words and "26 patients" in words


def test_long_words_stay_in_their_boxes():
    reasons = [f"{'a very long reason that goes on ' * k}{'x' * 60}" for k in range(6)]
    excluded = pd.DataFrame({"name": "x", "reason": reasons})
    rows = folds(20, 5).assign(label=["a " + "long name " * 6, "b" * 40] * 10)
    fig = flow_figure.draw(
        flow.table(rows, sorted(set(rows["label"])), excluded), "A title that goes on " * 12
    )
    fig.draw_without_rendering()
    (ax,) = fig.axes
    boxes = [patch.get_window_extent() for patch in ax.patches if hasattr(patch, "get_width")]
    texts = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert min(text.x0 for text in texts) >= 0 and min(text.y0 for text in texts) >= 0
    assert max(text.x1 for text in texts) <= fig.bbox.x1 and len(boxes) == 4 + 5
    starts = [(box, text) for box in boxes for text in texts if box.contains(text.x0, text.y0)]
    assert len(starts) > 40
    assert all(text.x1 <= box.x1 and text.y1 <= box.y1 for box, text in starts)


def test_rows_without_a_split_are_refused():
    with pytest.raises(ValueError, match="split it first"):
        flow.table(folds().drop(columns="fold"), ["a"], NONE_LEFT_OUT)
