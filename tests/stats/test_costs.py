"""Costs are compared on the same labels and the same image size, or not at all."""

import itertools

import pandas as pd

from medlib.stats.costs import OTHER_LABELS, OTHER_SIZE, comparable

SHARES = {"frozen": (1.0, 0.5, 0.1), "finetuned": (0.5, 0.1)}


def arms(shares=SHARES, sizes=None):
    """Two backbones on two tasks, in regimes with these label fractions and image sizes."""
    cells = itertools.product(("a", "b"), ("mri", "skin"), shares.items())
    rows = [
        {"backbone": name, "task": task, "regime": regime, "label_fraction": share}
        for name, task, (regime, of_regime) in cells
        for share in of_regime
    ]
    table = pd.DataFrame(rows).assign(pretraining="imagenet", image_size=224)
    for regime, size in (sizes or {}).items():
        table.loc[table["regime"] == regime, "image_size"] = size
    return table.assign(value=range(len(table)))


def test_regimes_are_compared_at_the_largest_share_of_labels_that_both_have():
    table = arms()
    alike, left_out = comparable(table)
    assert left_out == {} and set(alike["label_fraction"]) == {0.5}
    assert sorted(alike["value"]) == table.index[table["label_fraction"] == 0.5].tolist()
    # Each task has its own largest share.
    fewer = table[(table["task"] == "mri") | (table["label_fraction"] != 0.5)]
    alike, left_out = comparable(fewer)
    assert alike.groupby("task")["label_fraction"].unique().map(list).to_dict() == {
        "mri": [0.5],
        "skin": [0.1],
    }
    assert left_out == {} and len(alike) == 8


def test_a_regime_at_another_image_size_is_left_out_and_the_rest_has_all_labels():
    alike, left_out = comparable(arms(sizes={"finetuned": 112}))
    assert left_out == {"finetuned": OTHER_SIZE}
    assert set(alike["regime"]) == {"frozen"} and set(alike["label_fraction"]) == {1.0}
    # Two backbones may have different sizes, if each has the same in every regime.
    table = arms()
    table.loc[table["backbone"] == "b", "image_size"] = 448
    assert comparable(table)[1] == {}


def test_a_regime_without_a_common_share_on_every_task_is_left_out():
    shares = SHARES | {"finetuned": (0.5,), "lora": (0.1,)}
    alike, left_out = comparable(arms(shares))
    assert left_out == {"lora": OTHER_LABELS} and set(alike["label_fraction"]) == {0.5}
    table = arms()
    frozen_on_skin = (table["task"] == "skin") & (table["regime"] == "frozen")
    alike, left_out = comparable(table[~frozen_on_skin | (table["label_fraction"] == 1)])
    assert left_out == {"finetuned": OTHER_LABELS} and set(alike["label_fraction"]) == {1.0}


def test_one_regime_alone_is_compared_on_its_most_labels():
    alike, left_out = comparable(arms({"finetuned": (0.1, 0.03)}))
    assert left_out == {} and set(alike["label_fraction"]) == {0.1} and len(alike) == 4
