"""The answer in words, as a table and as a figure."""

import matplotlib

matplotlib.use("Agg")

import made_arms
import numpy as np
import pandas as pd
import pytest
from shown import all_words

from medlib.show import answers, tables
from medlib.show.figures.recommendation import MOST, recommendation
from medlib.stats import runs
from medlib.stats.recommendation import ALL_TASKS, COLUMNS, ONCE, recommend

TASKS = {"chest": {"title": "Chest radiographs"}, "mri": {"title": "Glioma"}}
NO_PAIRS = pd.DataFrame(columns=["task", "one_pretraining", "one_regime"])
NO_COSTS = pd.DataFrame(columns=[*runs.CELL, "seconds"])
ARM = {"pretraining": "imagenet", "regime": "frozen", "head": "linear", "label_fraction": 1.0}
ARM |= {"metric": "auroc", "n_patients": 200, "margin": 0.02, "why": "", "memory": 2.0**30}
ARM |= {"parameters": 5.5e6, "among_best": False, "no_worse": False, "recommended": False}
ARM |= {"patients_needed": np.nan}


def arm(task, backbone, value, low, high, **more):
    first = {"task": task, "backbone": backbone, "value": value, "seconds": 100.0}
    first |= {"difference": (low + high) / 2, "best_low": low, "best_high": high, "share_best": 0.5}
    return ARM | first | more


def best():
    known = {"among_best": True, "no_worse": True}
    rows = [
        arm("chest", "vit_tiny-imagenet", 0.953, -0.01, 0.02, seconds=400.0, **known),
        arm("chest", "resnet50-imagenet", 0.95, -0.014, 0.01, recommended=True, **known),
        arm("chest", "vgg16-imagenet", 0.8, -0.2, 0.0),
        arm("chest", "vit_base-imagenet", 0.96, np.nan, np.nan, regime="finetuned", why=ONCE),
        arm("mri", "resnet50-imagenet", 0.6, -0.2, 0.3, among_best=True, patients_needed=4321.0),
        arm("mri", "vit_tiny-imagenet", 0.58, -0.3, 0.2, among_best=True, patients_needed=4321.0),
    ]
    return pd.DataFrame(rows)[COLUMNS]


def regimes(low=0.01, high=0.05):
    pair = {"task": "chest", "head": "linear", "label_fraction": 0.1, "difference": 0.03}
    for side, regime in (("one", "finetuned"), ("other", "frozen")):
        own = {"backbone": "resnet50-imagenet", "pretraining": "imagenet", "regime": regime}
        pair |= {f"{side}_{name}": value for name, value in own.items()}
    return pd.DataFrame([pair | {"procedure_low": low, "procedure_high": high}])


def costs():
    """On a tenth of the labels fine-tuning takes 300 s, and the frozen arm 12 s."""
    same = {"task": "chest", "backbone": "resnet50-imagenet", "pretraining": "imagenet"}
    rows = [("finetuned", 0.1, 300.0), ("frozen", 0.1, 12.0), ("frozen", 1.0, 15.0)]
    keys = "regime", "label_fraction", "seconds"
    return pd.DataFrame([same | {"head": "linear"} | dict(zip(keys, r, strict=True)) for r in rows])


def test_the_answer_names_what_to_take_what_cannot_be_told_from_it_and_whether_tuning_pays():
    said = answers.sentences(best(), regimes(), costs(), TASKS)
    chest = " ".join(said["Chest radiographs"])
    assert chest.startswith(
        "Take ResNet50 (ImageNet), frozen, linear head: AUROC 0.950, 100 s. It is"
    )
    assert "no worse than the best by more than 0.02" in chest
    both = "ViT-Ti (ImageNet), frozen, linear head; ResNet50 (ImageNet), frozen, linear head."
    assert f"2 arms cannot be told from the best: {both}" in chest
    assert f"1 arm is not judged: {ONCE}." in chest
    assert "Fine-tuning is shown to help 1 of 1 backbones, and to harm 0." in chest
    assert "+0.030 [+0.010, +0.050] (ResNet50 (ImageNet))" in chest
    assert "On these labels it took 300 s per backbone; freezing took 12 s." in chest


def test_where_the_data_cannot_tell_the_answer_says_so_and_how_many_patients_would():
    (*_, mri) = answers.sentences(best(), NO_PAIRS, NO_COSTS, TASKS).values()
    assert mri[0] == "The data cannot tell: no arm is shown to be within 0.02 of the best."
    assert "About 4,321 test patients would be needed to tell (now 200)" in mri[2]
    assert "Take" not in " ".join(mri)


def test_arms_that_were_trained_once_leave_open_whether_tuning_pays():
    said = answers.sentences(best(), regimes(np.nan, np.nan), costs(), TASKS)
    *_, tuning, cost = said["Chest radiographs"]
    assert "cannot be said: each arm was trained once." in tuning and "took 300 s" in cost


def test_random_controls_alone_give_no_answer_and_phantoms_are_named_as_such():
    tasks = {"chest": {"title": "Chest radiographs (phantoms)"}}
    said = answers.sentences(best().iloc[:0], NO_PAIRS, NO_COSTS, tasks)
    assert said == {"Every task": [answers.ONLY_RANDOM, answers.PHANTOMS]}
    assert answers.ONLY_RANDOM in all_words(recommendation(best().iloc[:0], tasks))


def test_a_study_of_random_controls_alone_has_an_empty_table(tmp_path):
    control = made_arms.arm("resnet50-random", pretraining="random")
    table = recommend([control], NO_COSTS.assign(parameters=1, memory=1))
    assert table.empty and list(table) == COLUMNS
    shown = tables.best_arms(table, TASKS, "auroc")
    written = tables.save_table(shown, tmp_path / "best", "A caption.", data=table)
    assert shown["verdict"].tolist() == [answers.ONLY_RANDOM]
    assert all(answers.ONLY_RANDOM in path.read_text() for path in written[1:])
    assert answers.table(answers.sentences(table, NO_PAIRS, NO_COSTS, TASKS))[
        "answer"
    ].tolist() == [answers.ONLY_RANDOM]


def test_all_tasks_together_come_first():
    table = pd.concat([best(), best()[4:].assign(task=ALL_TASKS)])
    assert [*answers.sentences(table, NO_PAIRS, NO_COSTS, TASKS)] == [
        "All tasks together",
        "Chest radiographs",
        "Glioma",
    ]


def test_the_table_of_best_arms_prints_each_arm_with_its_verdict():
    shown = tables.best_arms(best(), TASKS, "auroc")
    assert shown["verdict"].tolist()[:4] == [
        "cannot be told from the best",
        "recommended",
        "worse than the best",
        ONCE,
    ]
    row = shown.iloc[1].to_dict()
    assert row["minus the best of the others"] == "-0.002 [-0.014, +0.010]"
    assert (row["auroc"], row["seconds"], row["million parameters"]) == ("0.950", "100", "5.5")
    assert row["GB of memory"] == "1.0" and row["best in"] == "50%"


def test_the_figure_has_a_row_an_arm_and_marks_the_recommended_one():
    fig = recommendation(best(), TASKS)
    words = all_words(fig)
    assert "ResNet50 (ImageNet), frozen, linear head" in words
    assert "0.953, 400 s, the best in 50% of draws" in words
    assert f"0.960, 100 s, {ONCE}" in words
    stars = [line for ax in fig.axes for line in ax.lines if line.get_marker() == "*"]
    assert [star.get_xdata() for star in stars] == [pytest.approx([-0.002])]


def test_of_many_arms_those_with_the_best_values_are_drawn_and_the_others_counted():
    rows = [arm("mri", "resnet50-imagenet", 0.9 - k / 100, -0.1, 0.0) for k in range(MOST + 6)]
    fig = recommendation(pd.DataFrame(rows)[COLUMNS], {"mri": TASKS["mri"]})
    assert len(fig.axes[0].get_yticks()) == MOST and "and 6 with lower values" in all_words(fig)


def test_the_answer_reads_as_text_in_lines_of_a_terminal():
    answered = answers.table(answers.sentences(best(), regimes(), costs(), TASKS))
    assert answered.columns.tolist() == ["task", "answer"]
    text = answers.text(answered)
    assert text.startswith("Chest radiographs:\n  Take ResNet50")
    assert max(map(len, text.splitlines())) <= 100
