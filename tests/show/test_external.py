"""A test on another data set in words, tables and figures."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from shown import all_words, legend_words, row_names

from medlib.show import external as words
from medlib.show.figures import external as figure
from medlib.stats import calibration
from medlib.stats.external import COLUMNS, RECALIBRATED

TITLES = {"chest": "Chest radiographs", "north": "North Hospital", "south": "South Hospital"}
PAIR = {"vit_tiny-imagenet": "imagenet", "vit_tiny-random": "random"}
CELL = {"task": "chest", "regime": "frozen", "head": "linear", "label_fraction": 1.0}


def compared(backbones=PAIR, others=("north",), metrics=("log_loss", "auroc")):
    """The k-th backbone has rank k inside, and the opposite rank outside."""
    rows, n = [], len(backbones)
    for metric in metrics:
        for k, (backbone, pretraining) in enumerate(backbones.items()):
            cell = CELL | {"backbone": backbone, "pretraining": pretraining, "metric": metric}
            for place in ("chest", *others):
                inside = place == "chest"
                value = (0.9 if inside else 0.7) - 0.002 * k
                row = cell | {"tested_on": place, "value": value, "n_patients": 1100}
                row |= {"ci_low": value - 0.05, "ci_high": value + 0.04, "n_images": 1234}
                row["rank"] = k + 1 if inside else n - k
                if not inside:
                    row |= {"drop": 0.2, "drop_low": 0.11, "drop_high": 0.29}
                rows.append(row)
    return pd.DataFrame(rows)[COLUMNS]


def test_the_table_has_inside_outside_drop_and_ranks_and_begins_with_the_auroc():
    table = words.table(compared(), "chest", TITLES)
    assert table["metric"].tolist() == ["AUROC", "log-loss"] * 2
    first = table.iloc[0].to_dict()
    assert first == {
        "tested on": "North Hospital",
        "arm": "ViT-Ti (ImageNet), frozen, linear head",
        "metric": "AUROC",
        "inside": "0.900 [0.850, 0.940]",
        "outside": "0.700 [0.650, 0.740]",
        "drop": "+0.200 [+0.110, +0.290]",
        "rank inside → outside": "1 → 2",
    }
    two = words.table(compared(others=("north", "south")), "chest", TITLES)
    assert two["tested on"].tolist() == ["North Hospital"] * 4 + ["South Hospital"] * 4


def test_the_figure_has_a_row_for_each_arm_and_a_panel_for_each_data_set():
    fig = figure.external(compared(others=("north", "south")), "chest", TITLES)
    said = all_words(fig)
    assert len(fig.axes) == 2
    assert row_names(fig)[0] == "ViT-Ti (ImageNet), frozen, linear head"
    for expected in ("North Hospital", "South Hospital", "1,100 patients, 1,234 images"):
        assert expected in said
    assert "drop +0.200 [+0.110, +0.290], rank 1 → 2" in said
    words = ["inside: Chest radiographs", "outside: another data set", "chance"]
    assert legend_words(fig) == words
    values = sorted(line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "o")
    assert values == pytest.approx([0.698, 0.7, 0.898, 0.9])


def test_of_many_arms_the_best_inside_are_drawn_and_nothing_is_cut_off():
    many = {f"resnet{k}-imagenet": "imagenet" for k in range(30)}
    fig = figure.external(compared(many), "chest", TITLES | {"north": "A " + "long title " * 6})
    assert "6 more arms, with lower values inside, are not drawn" in all_words(fig)
    assert len(row_names(fig)) == figure.MOST
    page = fig.bbox
    for text in fig.findobj(matplotlib.text.Text):
        if text.get_text().strip():
            box = text.get_window_extent()
            assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, text.get_text()


def test_surest_images_stand_in_a_row_for_each_data_set():
    rng = np.random.default_rng(0)
    rows = [
        (title, [rng.integers(255, size=(8, 8, 3), dtype=np.uint8) for _ in range(n)])
        for title, n in (("Chest radiographs", 6), ("North Hospital", 4))
    ]
    fig = figure.shift(rows, "The words.")
    assert len([ax for ax in fig.axes if ax.images]) == 10
    places = [ax.get_position() for ax in fig.axes[:6]]
    gaps = [b.x0 - a.x1 for a, b in zip(places, places[1:], strict=False)]
    fig.draw_without_rendering()
    assert max(gaps) < 2 * min(gaps) + 0.01  # a long title makes no room beside a picture
    titles = [text for ax in fig.axes for text in ax.texts]
    assert len(titles) == 2 and all(t.get_window_extent().y1 <= fig.bbox.y1 for t in titles)
    said = all_words(fig)
    assert "Chest radiographs" in said and "North Hospital" in said and "The words." in said
    nothing = figure.shift([], "No frozen backbone was run.")
    assert "No frozen backbone was run." in all_words(nothing)


# --------------------------------------------------------------------------------------- sentences


def choice(rows):
    table = pd.DataFrame(rows, columns=["backbone", "difference", "low", "high", "share_best"])
    table["best"] = [True] + [False] * (len(table) - 1)
    return table.assign(**CELL, pretraining="imagenet")


def test_an_arm_that_is_shown_to_be_better_outside_is_named():
    first = ("vgg16-imagenet", 0.0, 0.0, 0.0, 0.12)
    other = ("resnet50-imagenet", 0.05, 0.01, 0.09, 0.88)
    said = list(words.choice_words(choice([first, other]), "North Hospital"))
    assert said == [
        "Best inside: VGG16 (ImageNet), frozen, linear head.",
        "On North Hospital, ResNet50 (ImageNet), frozen, linear head is shown to be better: "
        "+0.050 [+0.010, +0.090].",
        "It is the best in 12% of draws of the external patients.",
    ]
    unsure = ("resnet50-imagenet", 0.01, -0.02, 0.04, 0.5)
    said = " ".join(words.choice_words(choice([first, unsure]), "North Hospital"))
    assert "no other arm is shown to be better" in said
    assert "ResNet50 (ImageNet), frozen, linear head may be better by up to 0.040." in said
    alone = choice([first]).assign(pretraining="random")
    said = " ".join(words.choice_words(alone, "North Hospital"))
    assert "(all arms are random controls)" in said and "no other arm to compare" in said


def test_the_shift_and_what_was_left_out_are_said():
    rows = [("", 0.9, 0.85, 0.93), ("normal", 0.8, 0.7, 0.9)]
    table = pd.DataFrame(rows, columns=["label", "value", "ci_low", "ci_high"])
    said = words.shift_words(table)
    assert "0.900 [0.850, 0.930]" in said and "Within a class: normal 0.800 [0.700, 0.900]." in said
    assert "Within" not in words.shift_words(table.head(1))
    reasons = ["class tb", "class tb", "its image stands in chest, too"]
    left = pd.DataFrame({"name": list("abc"), "reason": reasons})
    expected = "3 samples were left out: 2 (class tb); 1 (its image stands in chest, too)."
    assert words.left_out_words(left) == expected
    assert words.left_out_words(left.head(0)) == ""


# ------------------------------------------------------------------------------------------ tables


def test_thresholds_inside_and_outside_stand_beside_each_other():
    arm = CELL | {"backbone": "vgg16-imagenet", "pretraining": "imagenet", "tested_on": "north"}
    rows = [
        arm
        | {"class": "ill", "rule": rule, "metric": metric, "place": place, "value": value}
        | {"ci_low": value - 0.1, "ci_high": value + 0.05}
        for rule, value in (("Youden", 0.8), ("likeliest class", 0.6))
        for metric in ("sensitivity", "ppv")
        for place in ("inside", "outside")
    ]
    table = words.carried(pd.DataFrame(rows), TITLES)
    assert table["rule"].tolist() == ["Youden", "likeliest class"]
    assert list(table)[4:] == [
        "sensitivity, inside", "sensitivity, outside", "PPV, inside", "PPV, outside",
    ]  # fmt: skip
    assert table["tested on"].tolist() == ["North Hospital"] * 2
    assert table["PPV, outside"].tolist() == ["0.80 [0.70, 0.85]", "0.60 [0.50, 0.65]"]


def test_recalibration_has_a_row_for_each_kind_and_says_where_patients_are_too_few():
    arm = CELL | {"backbone": "vgg16-imagenet", "pretraining": "imagenet", "tested_on": "north"}
    rows = [
        arm | {"probabilities": kind, "metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        for kind in (calibration.RAW, RECALIBRATED)
        for metric in ("log_loss", "slope")
    ]
    few = arm | {"backbone": "resnet50-imagenet", "probabilities": RECALIBRATED}
    made = pd.DataFrame([row | {"why": ""} for row in rows] + [few | {"why": "9 are too few"}])
    table = words.probabilities(made, TITLES)
    assert table["probabilities"].tolist() == ["raw", "recalibrated", "recalibrated"]
    assert table["log-loss"].tolist() == ["0.500 [0.400, 0.600]"] * 2 + [""]
    assert table["calibration slope"].iloc[0] == "0.500 [0.400, 0.600]"
    assert table["note"].tolist() == ["", "", "9 are too few"]
