"""The main figure: its panels, rows, series and notes agree with its table."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from shown import (
    ARMS,
    FROZEN_10,
    FROZEN_ALL,
    TASKS,
    TUNED_10,
    all_words,
    bars,
    legend_words,
    long_table,
    row_names,
)

from medlib.data import cards
from medlib.show import style, tables
from medlib.show.figures import comparison

INTERVALS = ["other test patients", "other test and training patients"]
SERIES = ["frozen, all labels", "frozen, same labels as fine-tuned", "fine-tuned"]


def test_main_comparison_has_its_panels_rows_and_series():
    table = long_table(ARMS)
    fig = comparison.main_comparison(table, TASKS)
    assert isinstance(fig, Figure)
    assert [ax.get_title("left") for ax in fig.axes] == ["Glioma grade", "Dermoscopy"]
    names = ["ResNet50 (ImageNet)", "ViT-Ti (ImageNet)", "ViT-Ti (random weights)", "DINOv2 S"]
    assert row_names(fig) == names
    assert legend_words(fig) == [*SERIES, "random weights", *INTERVALS, "chance"]
    assert "40 patients, 80 images" in all_words(fig)
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    # the values drawn are those of the table, and the random ones are hollow
    for ax, task in zip(fig.axes, TASKS, strict=True):
        rows = table[(table.task == task) & (table.metric == "auroc") & (table["head"] != "knn")]
        points = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
        drawn = sorted(x for line in points for x in line.get_xdata())
        np.testing.assert_allclose(drawn, sorted(rows["value"]))
        for line in points:
            values = set(line.get_xdata())
            untrained = values <= set(rows.value[rows.pretraining == "random"])
            assert (line.get_markerfacecolor() == "white") == untrained
            assert (line.get_color() == style.GREY) == untrained
    assert fig.axes[0].get_ylim()[0] > fig.axes[0].get_ylim()[1]  # first row on top


def test_both_intervals_are_drawn_where_the_table_says_the_one_over_patients_thick():
    table = long_table({"mri": [FROZEN_ALL, FROZEN_10]}, metrics=("auroc",))
    fig = comparison.main_comparison(table, {"mri": TASKS["mri"]})
    places = {x: y for line in fig.axes[0].lines for x, y in zip(*line.get_data(), strict=True)}
    drawn = bars(fig.axes[0])
    for look, name in (("thick", "ci"), ("thin", "procedure")):
        expected = set()
        for row in table.itertuples():
            y = places[row.value]  # of the value's own mark
            expected.add((getattr(row, f"{name}_low"), y, getattr(row, f"{name}_high"), y))
        assert drawn[look] == {tuple(np.round(ends, 9)) for ends in expected}
    assert len(drawn["thick"]) == len(table) == 8
    assert "AUROC (95 % intervals)" in all_words(fig)


def test_an_arm_that_was_trained_once_has_no_thin_line():
    table = long_table({"mri": [FROZEN_ALL, TUNED_10]}, metrics=("auroc",))
    once = (table["regime"] == "finetuned") & (table["backbone"] == "dinov2_small")
    table.loc[once, ["procedure_low", "procedure_high"]] = np.nan
    drawn = bars(comparison.main_comparison(table, {"mri": TASKS["mri"]}).axes[0])
    thick, thin = (sorted(ends[0] for ends in drawn[look]) for look in ("thick", "thin"))
    np.testing.assert_allclose(thick, sorted(table["ci_low"]))
    np.testing.assert_allclose(thin, sorted(table.loc[~once, "procedure_low"]))
    assert len(thick) == len(thin) + 1 == 8
    (alone,) = comparison.main_comparison(table[once], {"mri": TASKS["mri"]}).axes
    assert not bars(alone)["thin"]


def test_one_share_of_the_labels_is_not_named():
    table = long_table({"mri": [FROZEN_ALL]}, {"dinov2_small": "dinov2"}, metrics=("auroc",))
    fig = comparison.main_comparison(table, {"mri": TASKS["mri"]})
    assert legend_words(fig) == ["frozen", *INTERVALS, "chance"]


def test_label_fractions_that_differ_are_told_in_the_panels():
    arms = {
        "mri": [FROZEN_ALL, FROZEN_10, TUNED_10],
        "skin": [FROZEN_ALL, ("frozen", "linear", 0.25), ("finetuned", "linear", 0.25)],
    }
    fig = comparison.main_comparison(long_table(arms), TASKS)
    assert legend_words(fig)[:3] == SERIES
    notes = [" ".join(text.get_text() for text in ax.texts) for ax in fig.axes]
    assert "fine-tuned on 10 % of labels" in notes[0]
    assert "fine-tuned on 25 % of labels" in notes[1]


def test_lora_is_a_third_series_after_the_other_two():
    lora = ("lora", "linear", 0.1)
    table = long_table({"mri": [lora, FROZEN_ALL, FROZEN_10, TUNED_10]})
    fig = comparison.main_comparison(table, {"mri": TASKS["mri"]})
    assert legend_words(fig)[:4] == [*SERIES, "LoRA"]
    assert "fine-tuned on 10 % of labels" in all_words(fig)
    wide = tables.main_table(table, {"mri": TASKS["mri"]})
    assert wide["regime"].iloc[:4].tolist() == ["frozen", "frozen", "finetuned", "lora"]
    alone = comparison.main_comparison(long_table({"mri": [lora]}), {"mri": TASKS["mri"]})
    assert legend_words(alone)[0].startswith("LoRA")


def test_patients_with_one_image_each_are_counted_once():
    table = long_table(ARMS)
    table.loc[table["task"] == "mri", "n_images"] = 40
    notes = [
        ax.texts[0].get_text().split("\n")[0]
        for ax in comparison.main_comparison(table, TASKS).axes
    ]
    assert notes == ["40 patients", "40 patients, 80 images"]


def test_a_task_with_few_patients_of_a_class_says_so():
    table = long_table(ARMS)
    table.loc[table["task"] == "skin", "rarest"] = 19
    notes = [ax.texts[0].get_text() for ax in comparison.main_comparison(table, TASKS).axes]
    assert "of a class" not in notes[0]  # 20 are enough
    assert notes[1].split("\n")[:2] == ["40 patients, 80 images", "only 19 of a class"]


def test_label_shares_are_named_where_a_task_was_fine_tuned_on_several():
    arms = {"mri": [FROZEN_ALL, FROZEN_10, ("finetuned", "linear", 1.0), TUNED_10]}
    fig = comparison.main_comparison(long_table(arms), {"mri": TASKS["mri"]})
    assert legend_words(fig)[:4] == [
        "frozen, all labels",
        "frozen, 10 % of labels",
        "fine-tuned, all labels",
        "fine-tuned, 10 % of labels",
    ]
    assert "fine-tuned on" not in all_words(fig)


@pytest.mark.parametrize("n", range(1, 11))
def test_main_comparison_takes_one_to_ten_tasks_and_gaps(n):
    tasks = {f"t{i}": {"title": f"Task {i}", "chance": None} for i in range(n)}
    table = long_table({task: [FROZEN_ALL, TUNED_10] for task in tasks})
    table = table.drop(table.index[::3])
    table = table[(table["task"] != f"t{n - 1}") | (n == 1)]  # the last task has no results yet
    fig = comparison.main_comparison(table, tasks)
    fig.draw_without_rendering()
    shown = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert shown == [f"Task {i}" for i in range(n)]
    assert ("no results" in all_words(fig)) == (n > 1)
    assert "chance" not in legend_words(fig)


def test_the_title_of_every_task_is_as_narrow_as_its_panel():
    tasks = {task: {"title": cards.read(task).title, "chance": 0.5} for task in cards.tasks()}
    fig = comparison.main_comparison(long_table({task: [FROZEN_ALL] for task in tasks}), tasks)
    fig.draw_without_rendering()
    for ax in fig.axes[: len(tasks)]:
        wide = ax._left_title.get_window_extent().width
        assert wide <= ax.get_window_extent().width, ax.get_title("left")


def test_main_comparison_refuses_what_it_cannot_draw():
    table = long_table(ARMS)
    for wrong, word in (
        (pd.concat([table, table]), "several rows"),
        (table.assign(pretraining=None), "pretraining"),
        (table.assign(task="other"), "other"),
    ):
        with pytest.raises(ValueError, match=word):
            comparison.main_comparison(wrong, TASKS)
    for column in ("ci_low", "procedure_high"):
        with pytest.raises(KeyError, match=column):
            comparison.main_comparison(table.drop(columns=column), TASKS)
    with pytest.raises(ValueError, match="auprc"):
        comparison.main_comparison(table, TASKS, metric="auprc")


@pytest.mark.parametrize("title", ["MRI", "A title that takes three lines " * 2])
def test_names_of_rows_stay_apart_however_long_titles_and_names_are(title):
    table = long_table({"mri": [FROZEN_ALL]}, metrics=("auroc",))
    one = table[table["backbone"] == "dinov2_small"].assign(pretraining="random")
    backbones = ["dinov2_small-random", "micro_resnet-random", "micro_efficientnet-random"]
    tasks = {f"mri{number}": {"title": title, "chance": 0.5} for number in range(6)}
    rows = [one.assign(task=task, backbone=name) for task in tasks for name in backbones]
    fig = comparison.main_comparison(pd.concat(rows, ignore_index=True), tasks)
    fig.draw_without_rendering()
    labels = fig.axes[0].get_yticklabels()
    assert sum("\n" in label.get_text() for label in labels) == 3
    boxes = sorted(label.get_window_extent().intervaly.tolist() for label in labels)
    room = 0.2 * (boxes[0][1] - boxes[0][0])  # a fifth of a label between two labels
    assert all(high[0] - low[1] > room for low, high in itertools.pairwise(boxes))
