"""medlib.plots: each figure holds what its frame says, files repeat byte by byte, tables agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
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
    legend_words,
    long_table,
    row_names,
)

from medlib.core import backbones
from medlib.data import cards
from medlib.show import style, tables
from medlib.show.figures import comparison, predictions, training
from medlib.show.figures.embeddings import projection
from medlib.show.figures.images import sample_grid, slice_strip
from medlib.show.names import ARCHITECTURES, HEADS, METRICS, PAPER_METRICS, display_names
from medlib.stats import metrics

ROOT = Path(__file__).parents[1]
CLASSES = ["low grade", "high grade"]


# ---------------------------------------------------------------- style and names


def test_use_style_sets_embedded_fonts_and_a_fixed_salt():
    with matplotlib.rc_context():
        matplotlib.rcParams["pdf.fonttype"] = 3
        style.use_style()
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        assert matplotlib.rcParams["svg.hashsalt"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vgg16-imagenet", "VGG16 (ImageNet)"),
        ("densenet121-imagenet", "DenseNet121 (ImageNet)"),
        ("dinov2_large", "DINOv2 L"),
        ("vit_tiny-random", "ViT-Ti (random weights)"),
        ("dinov2_small-random", "DINOv2 S architecture (random weights)"),
        ("new_net-random", "new_net (random weights)"),
        ("random_net", "random_net (random weights)"),
        ("new_net-radimagenet", "new_net-radimagenet"),
        ("vit_tiny", "vit_tiny"),
    ],
)
def test_display_names(key, name):
    assert display_names(key) == name


def test_every_backbone_of_the_table_has_a_printed_name():
    names = [display_names(key) for key in backbones.names()]
    assert len(set(names)) == len(names)
    for key, name in zip(backbones.names(), names, strict=True):
        assert name[0].isupper() and "_" not in name, key
        random = backbones.get(key).pretraining == "random"
        assert ("random weights" in name) == random, key


def test_every_metric_has_a_printed_name():
    assert set(METRICS) == set(metrics.NAMES)
    assert PAPER_METRICS[0] == "accuracy" and PAPER_METRICS[-1] == "auroc"


def test_tasks_come_in_the_papers_order_then_by_name():
    found = cards.in_order(["knees", "dermoscopy", "glioma_t1", "adrenals", "knees"])
    assert found == ["glioma_t1", "dermoscopy", "adrenals", "knees"]


def test_random_weights_never_look_pretrained():
    for architecture in ARCHITECTURES:
        assert display_names(f"{architecture}-random").endswith("(random weights)")
    # a key that hides it is found out by the pretraining column, and the reverse is refused
    hidden = long_table({"mri": [FROZEN_ALL]}, {"dinov2_small": "random"})
    fig = comparison.main_comparison(hidden, TASKS)
    assert row_names(fig) == ["DINOv2 S architecture (random weights)"]
    assert "random weights" in tables.main_table(hidden, TASKS)["backbone"][0]
    lying = long_table({"mri": [FROZEN_ALL]}, {"vit_tiny-random": "imagenet"})
    with pytest.raises(ValueError, match="random"):
        comparison.main_comparison(lying, TASKS)
    with pytest.raises(ValueError, match="random"):
        tables.main_table(lying, TASKS)


# ---------------------------------------------------------------- export


def test_save_writes_four_valid_files_and_the_same_bytes_again(tmp_path):
    table = long_table(ARMS, sd=0.01)
    for folder in ("a", "b"):
        fig = comparison.main_comparison(table, TASKS)
        paths = style.save(fig, tmp_path / folder / "deep" / "main.v2", table, "a caption")
        again = style.save(fig, tmp_path / folder / "again" / "main.v2", table, "a caption")
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert [path.name for path in paths] == [f"main.v2.{k}" for k in ("png", "pdf", "svg", "csv")]
    for path in paths:
        twin = tmp_path / "a" / "deep" / path.name
        assert path.read_bytes() == twin.read_bytes(), path.name
    png, pdf, svg, csv = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF") and b"<svg" in svg
    assert b"CreationDate" not in pdf and b"<dc:date>" not in svg
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # TrueType, embedded
    assert plt.imread(paths[0]).shape[1] == 1400  # 7 inches at 200 dpi
    pd.testing.assert_frame_equal(pd.read_csv(paths[3]), table)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(p.name for p in paths)


def test_save_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from medlib.show import style\n"
        "from medlib.show.figures import embeddings\n"
        "e = np.random.default_rng(0).normal(size=(60, 8))\n"
        "fig = embeddings.projection(e, ['a', 'b'] * 30, ['a', 'b'], title='é')\n"
        "style.save(fig, sys.argv[1])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed / "figure")],
            check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed, "MPLBACKEND": "Agg"},
        )  # fmt: skip
    for kind in ("png", "pdf", "svg"):
        one, two = ((tmp_path / seed / f"figure.{kind}").read_bytes() for seed in ("1", "2"))
        assert one == two, kind


def test_save_leaves_the_old_file_when_drawing_fails(tmp_path):
    (tmp_path / "x.png").write_bytes(b"old")
    fig = plt.figure()
    fig.text(0, 0, r"$\nonsense$")
    with pytest.raises(ValueError):
        style.save(fig, tmp_path / "x")
    plt.close(fig)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_figures_do_not_stay_open_and_do_not_change_the_settings():
    before, size = plt.get_fignums(), matplotlib.rcParams["font.size"]
    comparison.main_comparison(long_table(ARMS), TASKS)
    assert plt.get_fignums() == before
    assert matplotlib.rcParams["font.size"] == size


# ---------------------------------------------------------------- data, choices, training


def test_sample_grid_has_a_row_per_class_with_counts():
    images = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    labels = ["low grade"] * 7 + ["high grade"] * 2
    fig = sample_grid(images, labels, CLASSES, per_class=3, title="MRI")
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == [
        "low grade\n7 images",
        "high grade\n2 images",
    ]
    shown = [[int(ax.images[0].get_array().max()) for ax in row if ax.images] for row in axes]
    assert shown == [[0, 3, 6], [7, 8]]  # spread over the class, none shown twice
    with pytest.raises(ValueError, match="uint8"):
        sample_grid(images / 9, labels, CLASSES)


def test_slice_strip_shows_one_volume_per_class_in_slice_order_with_its_orientation():
    index = pd.DataFrame(
        {
            "sample_id": ["b"] * 3 + ["a"] * 20 + ["c"] * 2,
            "label": ["low grade"] * 3 + ["high grade"] * 20 + ["low grade"] * 2,
            "slice": [71, 69, 70, *range(20), 5, 6],
        }
    )
    images = np.arange(25, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    fig = slice_strip(images, index, CLASSES, title="MRI")
    axes = np.array(fig.axes).reshape(2, 8)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["low grade\nb", "high grade\na"]
    shown = [[int(ax.images[0].get_array().max()) for ax in row if ax.images] for row in axes]
    assert shown == [[1, 2, 0], [3, 6, 8, 11, 14, 17, 19, 22]]  # of twenty slices, eight
    numbers = [[ax.texts[0].get_text() for ax in row if ax.images] for row in axes]
    assert numbers == [["69", "70", "71"], ["0", "3", "5", "8", "11", "14", "16", "19"]]
    letters = {text.get_text(): text.get_position() for text in axes[0, 0].texts[1:]}
    assert letters["R"][0] < letters["A"][0] == letters["P"][0] < letters["L"][0]
    assert letters["P"][1] < letters["R"][1] == letters["L"][1] < letters["A"][1]
    assert not any(ax.texts[1:] for ax in axes.flat[1:])
    both = slice_strip(images, index)
    assert [ax.get_ylabel()[:3] for ax in both.axes[::8]] == ["low", "hig"]


def test_projection_separates_what_is_separate_and_states_the_variance():
    rng = np.random.default_rng(0)
    labels = np.array(CLASSES)[np.arange(80) % 2]
    embeddings = rng.normal(size=(80, 5)) * [1, 10, 100, 1, 1]
    embeddings[labels == "high grade"] += np.array([8, 80, 800, 8, 8])
    fig = projection(embeddings, labels, CLASSES, title="ResNet50")
    ax = fig.axes[0]
    low, high = (points.get_offsets()[:, 0] for points in ax.collections)
    assert max(low) < min(high) or max(high) < min(low)
    share = float(re.search(r"\((\d+\.\d) % of variance\)", ax.get_xlabel())[1])
    assert 85 < share < 100  # standardised: else the third column alone would make it 99
    assert legend_words(fig) == ["low grade (40)", "high grade (40)"]


def choices() -> pd.DataFrame:
    rows = []
    for head, name, values in (
        ("mlp", "learning_rate", [1e-4, 1e-3]),
        ("linear", "C", [1e-4, 1e-2, 1.0, 100.0]),
        ("knn", "k", [3, 5, 9]),
    ):
        for fold in range(3):
            for i, value in enumerate(values):
                rows.append(
                    dict(head=head, hyperparameter=name, value=value, fold=fold,
                         val_auroc=0.7 + 0.01 * i + 0.02 * fold, chosen=i == 1)
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_validation_curve_has_a_panel_per_head_with_its_choices():
    fig = training.validation_curve(choices())
    assert [ax.get_title("left") for ax in fig.axes] == list(HEADS.values())
    assert [ax.get_xlabel() for ax in fig.axes] == ["C", "k", "learning rate"]
    *folds, mean, chosen = fig.axes[0].lines
    assert len(folds) == 3
    np.testing.assert_allclose(mean.get_ydata(), [0.72, 0.73, 0.74, 0.75])
    assert set(chosen.get_xdata()) == {1e-2} and len(chosen.get_xdata()) == 3


def test_learning_curves_show_losses_and_mark_what_was_kept():
    rows = [
        dict(fold=fold, learning_rate=rate, epoch=epoch, train_loss=1 / epoch,
             val_loss=1.1 / epoch, val_auroc=0.6 + 0.05 * epoch, chosen=rate == 1e-4 and epoch == 2)
        for fold in range(2) for rate in (1e-5, 1e-4) for epoch in (1, 2, 3)
    ]  # fmt: skip
    fig = training.learning_curves(pd.DataFrame(rows))
    loss, auroc = fig.axes
    curves = [line for line in loss.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 2 * 2 * 2 and len({line.get_color() for line in curves}) == 2
    dashed = [line for line in curves if line.is_dashed()]
    assert len(dashed) == 4
    for line in curves:
        first = 1 if line in dashed else 1.1  # training losses are the dashed ones
        np.testing.assert_allclose(line.get_ydata(), [first, first / 2, first / 3])
    assert len([line for line in auroc.lines if len(line.get_xdata()) == 3]) == 4
    stars = auroc.lines[-1]
    assert list(stars.get_xdata()) == [2, 2]
    np.testing.assert_allclose(stars.get_ydata(), 0.7)
    assert legend_words(fig) == [
        "learning rate:", "1e-5", "0.0001", "loss in:", "training", "validation", "kept",
    ]  # fmt: skip


def test_names_of_classes_are_printed_as_words():
    classes = ["grade_II", "grade_III"]
    labels, images = np.repeat(classes, 2), np.zeros((4, 4, 4, 3), np.uint8)
    rows = {"sample_id": ["a", "a", "b", "b"], "label": labels, "slice": range(4)}
    judged = {"y_true": labels, "prob_grade_II": 0.5, "prob_grade_III": 0.5}
    for fig in (
        sample_grid(images, labels, classes),
        slice_strip(images, pd.DataFrame(rows)),
        projection(np.random.default_rng(0).normal(size=(4, 3)), labels, classes),
        predictions.roc_curves(pd.DataFrame(judged), classes),
    ):
        words = " ".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))
        assert "grade III" in words and "_" not in words


def test_roc_curves_state_the_auroc():
    truth = np.array(["low grade", "low grade", "high grade", "high grade"])
    risk = np.array([0.1, 0.6, 0.4, 0.9])  # three of the four pairs are in order
    frame = pd.DataFrame({"y_true": truth, "prob_low grade": 1 - risk, "prob_high grade": risk})
    fig = predictions.roc_curves(frame, CLASSES)
    assert legend_words(fig) == ["high grade: AUROC 0.750"]
    frame["prob_other"] = 0.0
    fig = predictions.roc_curves(frame, [*CLASSES, "other"])
    assert legend_words(fig) == [
        "low grade: AUROC 0.750", "high grade: AUROC 0.750", "other: AUROC undefined",
    ]  # fmt: skip


# ---------------------------------------------------------------- the comparison


def test_a_caption_follows_the_words_that_are_there_once_and_the_figure_grows_by_its_lines():
    fig = comparison.main_comparison(long_table(ARMS, sd=0.01), TASKS)
    height, at = fig.get_figheight(), fig.axes[0]
    fig.draw_without_rendering()
    panel = at.get_window_extent().height
    style.caption_below(fig, "What is drawn.")
    for _ in range(2):
        style.caption_below(fig, "small ImageNet backbones\nand random controls; " * 9)
        text = fig.get_supxlabel()
        assert " ".join(text.split()).startswith("What is drawn. small ImageNet backbones and")
        assert text.count("random controls") == 9 and text.count("What is drawn.") == 1
        assert fig.get_figheight() == pytest.approx(height + 0.14 * len(text.splitlines()))
    fig.draw_without_rendering()
    assert at.get_window_extent().height == pytest.approx(panel, abs=0.1 * panel)


def test_main_comparison_has_its_panels_rows_and_series():
    table = long_table(ARMS, sd=0.01)
    fig = comparison.main_comparison(table, TASKS)
    assert isinstance(fig, Figure)
    assert [ax.get_title("left") for ax in fig.axes] == ["Glioma grade", "Dermoscopy"]
    assert row_names(fig) == [
        "ResNet50 (ImageNet)", "ViT-Ti (ImageNet)", "ViT-Ti (random weights)", "DINOv2 S",
    ]  # fmt: skip
    assert legend_words(fig) == [
        "frozen, all labels", "frozen, same labels as fine-tuned", "fine-tuned",
        "random weights", "± 1 SD over seeds", "chance",
    ]  # fmt: skip
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


def test_each_interval_is_drawn_where_the_table_says():
    table = long_table({"mri": [FROZEN_ALL]}, {"dinov2_small": "dinov2"}, metrics=("auroc",))
    fig = comparison.main_comparison(table, {"mri": TASKS["mri"]})
    ends = [s[:, 0].tolist() for c in fig.axes[0].collections for s in c.get_segments()]
    assert table[["ci_low", "ci_high"]].iloc[0].tolist() in ends
    assert legend_words(fig) == ["frozen", "chance"]  # one fraction only: none is named


def test_label_fractions_that_differ_are_told_in_the_panels():
    arms = {
        "mri": [FROZEN_ALL, FROZEN_10, TUNED_10],
        "skin": [FROZEN_ALL, ("frozen", "linear", 0.25), ("finetuned", "linear", 0.25)],
    }
    fig = comparison.main_comparison(long_table(arms), TASKS)
    assert legend_words(fig)[:3] == [
        "frozen, all labels", "frozen, same labels as fine-tuned", "fine-tuned",
    ]  # fmt: skip
    notes = [" ".join(text.get_text() for text in ax.texts) for ax in fig.axes]
    assert "fine-tuned on 10 % of labels" in notes[0]
    assert "fine-tuned on 25 % of labels" in notes[1]


def test_lora_is_a_third_series_after_the_other_two():
    lora = ("lora", "linear", 0.1)
    table = long_table({"mri": [lora, FROZEN_ALL, FROZEN_10, TUNED_10]})
    fig = comparison.main_comparison(table, {"mri": TASKS["mri"]})
    assert legend_words(fig)[:4] == [
        "frozen, all labels", "frozen, same labels as fine-tuned", "fine-tuned", "LoRA",
    ]  # fmt: skip
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


def test_label_shares_are_named_where_a_task_was_fine_tuned_on_several():
    arms = {"mri": [FROZEN_ALL, FROZEN_10, ("finetuned", "linear", 1.0), TUNED_10]}
    fig = comparison.main_comparison(long_table(arms), {"mri": TASKS["mri"]})
    assert legend_words(fig)[:4] == [
        "frozen, all labels", "frozen, 10 % of labels",
        "fine-tuned, all labels", "fine-tuned, 10 % of labels",
    ]  # fmt: skip
    assert "fine-tuned on" not in all_words(fig)


@pytest.mark.parametrize("n", range(1, 8))
def test_main_comparison_takes_one_to_seven_tasks_and_gaps(n):
    tasks = {f"t{i}": {"title": f"Task {i}", "chance": None} for i in range(n)}
    table = long_table({task: [FROZEN_ALL, TUNED_10] for task in tasks})
    table = table.drop(table.index[::3])
    table = table[(table["task"] != f"t{n - 1}") | (n == 1)]  # the last task has nothing yet
    fig = comparison.main_comparison(table, tasks)
    fig.draw_without_rendering()
    shown = [ax.get_title("left") for ax in fig.axes if ax.get_title("left")]
    assert shown == [f"Task {i}" for i in range(n)]
    assert ("no results" in all_words(fig)) == (n > 1)
    assert "chance" not in legend_words(fig)


def test_main_comparison_refuses_what_it_cannot_draw():
    table = long_table(ARMS)
    for wrong, word in (
        (pd.concat([table, table]), "several rows"),
        (table.assign(pretraining=None), "pretraining"),
        (table.assign(task="other"), "other"),
    ):
        with pytest.raises(ValueError, match=word):
            comparison.main_comparison(wrong, TASKS)
    with pytest.raises(KeyError, match="ci_low"):
        comparison.main_comparison(table.drop(columns="ci_low"), TASKS)
    with pytest.raises(ValueError, match="auprc"):
        comparison.main_comparison(table, TASKS, metric="auprc")
