"""Figures: they show what their frames say, name random weights, and repeat to the byte."""

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from shown import TASKS, all_words, bars, legend_words, long_table

from medlib.show import style
from medlib.show.figures import comparison, costs, embeddings, failures, images, parts, predictions
from medlib.show.figures.differences import _cliques, critical_difference, forest, worth_showing

BACKBONES = {
    "vit_tiny-imagenet": "imagenet",
    "vit_base-imagenet": "imagenet",
    "vit_base-random": "random",
    "dinov2_small": "dinov2",
    "dinov2_base": "dinov2",
    "resnet50-imagenet": "imagenet",
}
PARAMETERS = {"vit_tiny": 5.5e6, "vit_base": 86e6, "resnet50": 23.5e6}
PARAMETERS |= {"dinov2_small": 22e6, "dinov2_base": 86e6}
ARMS = [("frozen", "linear", 1.0), ("frozen", "linear", 0.1), ("finetuned", "linear", 0.1)]


def table(tasks=TASKS, backbones=BACKBONES):
    results = long_table(dict.fromkeys(tasks, ARMS), backbones, metrics=("auroc",))
    name = results["backbone"].str.partition("-")[0]
    return results.assign(parameters=name.map(PARAMETERS), seconds=100.0, memory=2.0**30)


def pairs(tasks=TASKS, backbones=BACKBONES):
    """A table like that of `on_same_labels`: all backbones of each task, at one label fraction."""
    rows = long_table(dict.fromkeys(tasks, [ARMS[2]]), backbones, metrics=("auroc",))
    rows = rows.rename(columns={"value": "finetuned"})
    rows["frozen"] = rows["finetuned"] - 0.02 + 0.01 * (np.arange(len(rows)) % 5)
    keys = ["task", "backbone", "pretraining", "label_fraction", "n_patients", "n_images"]
    return rows[[*keys, "frozen", "finetuned", "n_seeds"]]


def by_seed():
    """Results of three seeds at three label fractions."""
    parts = []
    for share, patients in ((0.1, 7), (0.5, 33), (1.0, 66)):
        for seed in range(3):
            part = long_table({"mri": [("frozen", "linear", share)]}, BACKBONES, ("auroc",))
            part["value"] += 0.1 * share + 0.01 * seed
            parts.append(part.assign(seed=seed, train_patients=patients))
    tuned = long_table({"mri": [("finetuned", "linear", 0.5)]}, {"resnet50-imagenet": "imagenet"})
    return pd.concat([*parts, tuned.assign(seed=0, train_patients=33)])


def differences():
    pairs = itertools.product(TASKS, itertools.combinations(BACKBONES, 2))
    columns = ["task", "one_backbone", "other_backbone"]
    table = pd.DataFrame([(task, *pair) for task, pair in pairs], columns=columns)
    for side in ("one", "other"):
        table[f"{side}_pretraining"] = table[f"{side}_backbone"].map(BACKBONES)
    value = pd.Series([0.01 * (i % 7 - 3) for i in range(len(table))])
    table = table.assign(difference=value, ci_low=value - 0.015, ci_high=value + 0.015)
    table = table.assign(procedure_low=value - 0.02, procedure_high=value + 0.02)
    table = table.assign(different=value.abs() > 0.02, equivalent=value == 0)
    table = table.assign(head="linear", label_fraction=1.0, contrast="backbones")
    return table.assign(one_regime="frozen", other_regime="frozen")


def curve_frame():
    grid = np.linspace(0, 1, 21)
    parts = []
    for backbone, pretraining in BACKBONES.items():
        for kind, y in (("roc", np.sqrt(grid)), ("pr", 1 - grid / 2)):
            part = pd.DataFrame({"curve": kind, "x": grid, "y": y, "low": y - 0.1, "high": y})
            parts.append(part.assign(backbone=backbone, pretraining=pretraining, area="0.7 [0, 1]"))
    return pd.concat(parts)


def counts(classes):
    pairs = pd.MultiIndex.from_product([classes, classes], names=["label", "called"])
    one = pd.DataFrame({"count": np.arange(1, len(pairs) + 1)}, pairs).reset_index()
    return pd.concat(one.assign(backbone=b, pretraining=p) for b, p in BACKBONES.items())


def benefits(classes):
    """Net benefits of two backbones at three thresholds, for each class."""
    table = pd.DataFrame({"threshold": [0.1, 0.4, 0.8], "net_benefit": [0.3, 0.25, 0.1]})
    table = table.assign(low=table["net_benefit"] - 0.05, high=table["net_benefit"] + 0.05)
    table["all"] = [0.3, 0.1, -0.4]
    both = ("dinov2_small", "dinov2"), ("vgg16-random", "random")
    return pd.concat(
        table.assign(**{"class": name, "backbone": backbone, "pretraining": weights})
        for name in classes
        for backbone, weights in both
    )


def bins():
    one = pd.DataFrame({"confidence": [0.55, 0.75, 0.95], "accuracy": [0.5, 0.6, 0.9]})
    one = one.assign(low=one["accuracy"] - 0.1, high=one["accuracy"] + 0.1, count=[5, 10, 20])
    return pd.concat(
        one.assign(backbone=b, pretraining=p, probabilities=kind, ece="0.123")
        for b, p in BACKBONES.items()
        for kind in ("raw", "calibrated")
    )


def points(n=60):
    rng = np.random.default_rng(0)
    one = pd.DataFrame({"x": rng.normal(size=n), "y": rng.normal(size=n)})
    one["label"] = np.array(["a", "b"])[np.arange(n) % 2]
    one["patient"] = [f"p{i // 4:02d}" for i in range(n)]
    one["site"] = [f"s{i % 3}" for i in range(n)]
    kept = {"vit_base-random": "random", "dinov2_small": "dinov2"}
    one["shares"] = "9 % of variance"
    return pd.concat(one.assign(backbone=b, pretraining=p) for b, p in kept.items())


def ranks():
    values = pd.Series({"DINOv2 S": 1.2, "ResNet50 (ImageNet)": 2.1, "ViT-B (random weights)": 2.7})
    test = {"n_tasks": 6, "p_friedman": 0.03, "critical_difference": 1.35}
    return {"frozen": values, "fine-tuned": values[::-1]}, {"frozen": test, "fine-tuned": test}


def widths():
    ends = {"ci_low": [0.7, 0.75], "ci_high": [0.9, 0.85]}
    return pd.DataFrame({"way": ["patients", "images"], "value": 0.8, "ratio": [1, 2]} | ends)


def seen(places=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    colours = {
        "DINOv2 S": rng.random((3, places, places, 3)),
        "ViT-B (random weights)": rng.random((3, 4, 4, 3)),
    }
    evidence = {"ResNet50 (ImageNet), evidence": rng.normal(size=(3, 7, 7))}
    return images, ["no", "no", "yes"], colours, evidence


KINDS = {"all wrong": ["s0", "s1"], "surest error": ["s2"], "least sure": ["s3", "s4"]}
LESIONS = ["naevus", "a_lesion_with_a_very_long_name"]


def looked_at(why):
    """Pictures of samples with these values of ``why``, the samples, and all answers."""
    kept = [(sample, kind) for kind in why for sample in KINDS[kind]]
    cases = pd.DataFrame(kept, columns=["sample_id", "why"])
    cases["y_true"] = [LESIONS[sample != "s1"] for sample in cases["sample_id"]]
    one = pd.DataFrame({"sample_id": [f"s{i}" for i in range(6)]})
    one["y_true"] = np.where(one["sample_id"] == "s1", *LESIONS)
    one["called"] = [LESIONS[0]] * 4 + [LESIONS[1], LESIONS[0]]
    answers = [
        one.assign(backbone=b, pretraining=p, probability=0.5 + 0.01 * i)
        for i, (b, p) in enumerate(BACKBONES.items())
    ]
    numbers = cases["sample_id"].str[1:].astype(np.uint8).to_numpy()
    return numbers[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8), cases, pd.concat(answers)


def rates(classes, patients=40):
    cells = list(itertools.product(classes, ("auroc", "sensitivity", "specificity")))
    one = pd.DataFrame(cells, columns=["label", "metric"]).assign(n_patients=patients)
    one = one.assign(value=np.linspace(0.3, 0.9, len(one)))
    one = one.assign(ci_low=one["value"] - 0.1, ci_high=one["value"] + 0.05)
    return pd.concat(one.assign(backbone=b, pretraining=p) for b, p in BACKBONES.items())


def every_backbone(words="Both are wrong."):
    return failures.wrong_by_all(*looked_at(["all wrong"]), words, "Title")


def of_labels(classes=LESIONS):
    return failures.by_label(*looked_at(["surest error", "least sure"]), classes, "Title")


DRAWN = {
    "freezing": lambda: comparison.freezing(pairs(), TASKS),
    "size": lambda: costs.size(table(), TASKS),
    "label_efficiency": lambda: costs.label_efficiency(by_seed(), TASKS),
    "cost": lambda: costs.cost(table({"mri": TASKS["mri"]}).query("label_fraction == 0.1")),
    "critical_difference": lambda: critical_difference(*ranks(), note="Few tasks."),
    "forest": lambda: forest(differences(), TASKS, 0.02),
    "curves": lambda: predictions.curves(curve_frame(), "Title"),
    "confusion": lambda: predictions.confusion(counts(["no", "yes"]), ["no", "yes"], "Title"),
    "confusion_7": lambda: predictions.confusion(counts(list("abcdefg")), list("abcdefg"), "Title"),
    "wrong_by_all": every_backbone,
    "wrong": of_labels,
    "by_class": lambda: failures.by_class(rates(["no", "yes"]), ["no", "yes"], "Title"),
    "reliability": lambda: predictions.reliability(bins(), "Title"),
    "decision_curves": lambda: predictions.decision_curves(benefits(["yes"]), "Title"),
    "decision_curves_7": lambda: predictions.decision_curves(benefits(list("abcdefg")), "Title"),
    "embeddings": lambda: embeddings.embeddings(points(), ["a", "b"], "Title"),
    "what_it_sees": lambda: embeddings.what_it_sees(*seen(), "Title"),
    "interval_widths": lambda: predictions.interval_widths(widths(), "Title"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_it_repeats_to_the_byte_and_fits_the_page(tmp_path, name):
    first, again = (style.save(DRAWN[name](), tmp_path / n, pd.DataFrame()) for n in ("a", "b"))
    assert [p.read_bytes() for p in first[:3]] == [p.read_bytes() for p in again[:3]]
    assert DRAWN[name]().get_figwidth() <= style.PAGE + 1e-9


def test_long_titles_stay_on_the_page():
    title = "Glioma grade II versus III, FLAIR MRI and all that was seen on it"
    tasks = {name: {"title": title, "chance": 0.5} for name in ("one", "two", "three")}
    draws = pd.concat(by_seed().assign(task=name) for name in tasks)
    apart = pd.concat(differences().query("task == 'mri'").assign(task=name) for name in tasks)
    figures = [comparison.freezing(pairs(tasks), tasks), costs.size(table(tasks), tasks)]
    figures += [costs.label_efficiency(draws, tasks), forest(apart, tasks)]
    for fig in figures:
        fig.draw_without_rendering()
        words = [t for ax in fig.axes for t in (ax._left_title, *ax.texts)]
        assert sum(text.get_text().startswith("Glioma") for text in words) == 3
        for text in words:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= fig.bbox.x1 + 1, text.get_text()


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"interval_widths", "size"}))
def test_random_weights_are_named(name):
    assert "random" in all_words(DRAWN[name]())


def test_slopes_lead_from_frozen_to_fine_tuned_on_the_same_labels():
    rows = pairs()
    fig = comparison.freezing(rows, TASKS)
    for ax, task in zip(fig.axes, TASKS, strict=True):
        part = rows[rows["task"] == task]
        lines = [line for line in ax.lines if line.get_marker() != "None"]
        drawn = {tuple(line.get_ydata()) for line in lines}
        assert drawn == set(part[["frozen", "finetuned"]].itertuples(index=False, name=None))
        assert len(lines) == len(part) == len(BACKBONES)
        assert {tuple(line.get_xdata()) for line in lines} == {(0, 1)}
        # There are no intervals: those of single values say nothing about the difference.
        assert not ax.collections
        chance = [line for line in ax.lines if line not in lines]
        assert [set(line.get_ydata()) for line in chance] == [{0.5}] * (task == "mri")
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()
    words = all_words(fig)
    assert "10 % of labels" in words and "DINOv2 B" in words and "40 test patients" in words
    assert legend_words(fig)[-1] == "chance"
    everything = rows.assign(label_fraction=1.0)
    assert "of labels" not in all_words(comparison.freezing(everything, TASKS))
    other = rows[rows["task"] == "skin"]
    assert "no backbone in both regimes" in all_words(comparison.freezing(other, TASKS))
    none = comparison.freezing(rows.iloc[:0], TASKS)
    assert not none.axes and "Notebook 04 fine-tunes one" in all_words(none)


def test_no_two_backbones_look_alike_and_a_control_has_the_marker_of_its_twin():
    rows = pd.DataFrame({"backbone": [*BACKBONES, "resnet50-random"]})
    rows["pretraining"] = [*BACKBONES.values(), "random"]
    looks = parts.backbone_looks(rows)
    marks = [(look["marker"], look["color"], look["linestyle"]) for look in looks.values()]
    assert len(set(marks)) == len(marks) == 7
    twin, control = looks["ViT-B (ImageNet)"], looks["ViT-B (random weights)"]
    assert twin["marker"] == control["marker"] and twin["markerfacecolor"] == twin["color"]
    assert (control["markerfacecolor"], control["color"]) == ("white", style.GREY)


@pytest.mark.parametrize(
    ("values", "chance", "low", "high"),
    [
        ([0.99, 1.0], None, 0.8, 1.0),  # a span of 0.2, ending at 1
        ([0.0, 0.05], None, 0.0, 0.2),
        ([0.61, 0.63], None, 0.52, 0.72),  # the middle stays
        ([0.9, 0.95], 0.5, 0.5, 0.95),  # chance is on the axis
        ([0.4, 0.9], 0.5, 0.4, 0.9),
        ([-0.1, 1.3], None, -0.1, 1.3),  # not a proportion
    ],
)
def test_an_axis_of_values_has_a_least_span_and_ends_at_zero_and_one(values, chance, low, high):
    ax = Figure().subplots()
    parts.value_axis(ax, values, [np.nan], tasks={"mri": {"chance": chance}})
    room = 0.04 * (high - low)
    assert ax.get_ylim() == pytest.approx((low - room, high + room))


def test_ticks_of_training_patients_do_not_collide():
    assert parts.far_apart([23, 113, 228, 569, 1138, 2278], 1.6) == [23, 228, 569, 2278]
    assert parts.far_apart([4, 8, 16], 1.6) == [4, 8, 16]
    assert parts.far_apart([72], 1.6) == [72]
    draws = by_seed().assign(train_patients=lambda t: t["train_patients"] + 2200)
    (ax,) = costs.label_efficiency(draws, {"mri": TASKS["mri"]}).axes
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_sizes_of_a_family_are_joined_and_the_band_is_the_margin():
    rows = table().query("task == 'mri'")
    fig = costs.size(rows, {"mri": TASKS["mri"]}, margin=0.03)
    lines = [line for line in fig.axes[0].lines if line.get_marker() != "None"]
    assert len(lines) == 4  # two families, two regimes
    assert {tuple(line.get_xdata()) for line in lines} == {(5.5, 86.0), (22.0, 86.0)}
    first = rows.query("backbone == 'dinov2_small' and regime == 'frozen' and label_fraction == 1")
    bands = [patch.get_y() for patch in fig.axes[0].patches]
    assert pytest.approx(first["value"].iloc[0] - 0.03) in bands
    drawn, shown = bars(fig.axes[0]), rows[rows["pretraining"] != "random"]
    shown = shown[shown["backbone"] != "resnet50-imagenet"]
    shown = shown.query("regime == 'finetuned' or label_fraction == 1")
    for look, name in (("thick", "ci"), ("thin", "procedure")):
        x, low, high = shown["parameters"] / 1e6, shown[f"{name}_low"], shown[f"{name}_high"]
        expected = {tuple(np.round(ends, 9)) for ends in zip(x, low, x, high, strict=True)}
        assert drawn[look] == expected and len(expected) == 8
    assert "± 0.03 of the smallest, frozen" in legend_words(fig)
    for name in ("vit_tiny-imagenet", "resnet50-imagenet"):  # one size; none
        alone = costs.size(rows[rows["backbone"] == name], {"mri": TASKS["mri"]})
        assert not alone.axes and "this grid says nothing about size" in all_words(alone)


def test_a_task_and_a_family_with_one_size_are_not_drawn_and_the_task_is_named():
    rows = table()
    one = (rows["task"] == "skin") & rows["backbone"].isin(["vit_base-imagenet", "dinov2_base"])
    fig = costs.size(rows[~one], TASKS)
    assert [ax.get_title("left") for ax in fig.axes] == ["Glioma grade"]
    assert "Without two sizes of one family: Dermoscopy." in all_words(fig)
    fig = costs.size(rows[rows["backbone"] != "dinov2_base"], TASKS)
    assert "DINOv2" not in legend_words(fig) and len(fig.axes) == 2


def test_label_efficiency_shows_means_over_draws_and_their_range():
    rows = by_seed()
    fig = costs.label_efficiency(rows, {"mri": TASKS["mri"]})
    own = rows[(rows["backbone"] == "dinov2_small")].groupby("train_patients")["value"]
    lines = [line for line in fig.axes[0].lines if list(line.get_xdata()) == [7, 33, 66]]
    assert len(lines) == len(BACKBONES)
    assert any(np.allclose(line.get_ydata(), own.mean()) for line in lines)
    assert {"fine-tuned", "worst to best seed", "chance"} <= set(legend_words(fig))
    (tuned,) = [line for line in fig.axes[0].lines if line.get_markeredgecolor() == style.BLACK]
    marker = next(line for line in lines if line.get_color() == tuned.get_color()).get_marker()
    value = rows.loc[rows["regime"] == "finetuned", "value"].tolist()
    assert tuned.get_ydata().tolist() == value[:1] and tuned.get_marker() == marker
    assert "own axis for patients" in all_words(fig) and "moved sideways" in all_words(fig)
    edges = [path.vertices[:, 1] for c in fig.axes[0].collections for path in c.get_paths()]
    ends = [own.min().min(), own.max().max()]
    assert any(np.allclose([edge.min(), edge.max()], ends) for edge in edges)


def test_the_pareto_front_holds_what_nothing_beats():
    shown = ["vit_tiny-imagenet", "resnet50-imagenet", "dinov2_small", "vit_base-random"]
    rows = pd.DataFrame({"backbone": shown, "pretraining": [BACKBONES[name] for name in shown]})
    rows = rows.assign(regime="frozen", value=[0.7, 0.6, 0.9, 0.9], seconds=[60.0, 120, 240, 480])
    rows = rows.assign(parameters=[5e6, 25e6, 22e6, 86e6], memory=2.0**30)
    fig = costs.cost(rows, words="All have the same labels.")
    (step,) = [line for line in fig.axes[0].lines if len(line.get_xdata()) > 1]
    assert list(step.get_xdata()) == [1, 4] and list(step.get_ydata()) == [0.7, 0.9]
    names = ["ResNet50 (ImageNet)", "ViT-Ti (ImageNet)", "ViT-B (random)", "DINOv2 S"]
    assert legend_words(fig)[:-1] == names and "same labels" in all_words(fig)
    tuned = costs.cost(rows.assign(regime="finetuned"))
    rims = {line.get_markeredgecolor() for line in tuned.axes[0].lines if len(line.get_xdata()) < 2}
    assert rims == {style.BLACK} and "fine-tuned" in legend_words(tuned)
    assert "No arm was run on every task" in all_words(costs.cost(rows.iloc[:0]))


def test_the_words_of_costs_state_labels_image_size_and_what_is_left_out():
    arms = pd.DataFrame({"label_fraction": [0.5, 0.03], "image_size": [224, 224]})
    assert costs.cost_words(arms, {"finetuned": "another image size"}) == (
        "All arms of a task have the same labels (3 % or 50 % of them). A backbone has the same "
        "image size in every regime (224 px). Not comparable, so not drawn: fine-tuned (another "
        "image size)."
    )


def test_bars_join_what_is_within_the_critical_difference():
    assert _cliques(np.array([1.0, 1.5, 2.4, 4.0]), 1.0) == [(0, 1), (1, 2)]
    assert _cliques(np.array([1.0, 1.1, 1.2]), 5.0) == [(0, 2)]
    assert _cliques(np.array([1.0, 3.0]), 1.0) == []
    fig = critical_difference(*ranks())
    words = all_words(fig)
    assert "DINOv2 S  1.20" in words and "2.70  ViT-B (random weights)" in words
    assert "critical difference 1.35 ranks" in words and "p = 0.03" in words
    assert "1 is the best. Orange: the critical difference." in " ".join(words.split())


def test_of_many_pairs_those_of_pretrained_families_are_shown():
    kept = worth_showing(differences())
    pairs = set(zip(kept["one_backbone"], kept["other_backbone"], strict=True))
    assert ("vit_tiny-imagenet", "dinov2_small") in pairs
    assert ("dinov2_small", "resnet50-imagenet") in pairs
    assert not any("random" in name for pair in pairs for name in pair)
    assert ("dinov2_small", "dinov2_base") not in pairs
    random = differences()[differences()["other_pretraining"] == "random"]
    assert len(worth_showing(random)) == len(random)


def test_a_forest_has_a_row_a_pair_and_a_mark_for_what_was_shown():
    rows = differences()
    fig = forest(rows, TASKS)
    assert len(fig.axes[0].get_yticklabels()) == 15
    lines = [line for line in fig.axes[0].lines if line.get_marker() in "os"]
    marks = {
        f"{line.get_marker()}{line.get_markerfacecolor()}": len(line.get_xdata()) for line in lines
    }
    mri = rows[rows["task"] == "mri"]
    assert marks[f"o{style.VERMILION}"] == mri["different"].sum()
    assert marks[f"s{style.BLUE}"] == mri["equivalent"].sum()
    assert sum(marks.values()) == 15
    assert " ".join(fig.get_supxlabel().split()) == "Frozen, 95 % intervals."
    sides = "difference in AUROC ← second better first better →"
    assert {" ".join(ax.get_xlabel().split()) for ax in fig.axes} == {sides}
    names = ["other test patients", "other test and training patients"]
    assert legend_words(fig)[3:5] == names
    regimes = rows.assign(one_regime="finetuned", other_backbone=rows["one_backbone"])
    regimes["other_pretraining"] = rows["one_pretraining"]
    regimes = regimes.drop_duplicates(["task", "one_backbone"])
    words = all_words(forest(regimes, TASKS))
    assert "Fine-tuned minus frozen" in words and "DINOv2 S − " not in words
    assert "← frozen better" in words and "fine-tuned better →" in words
    adapted = regimes.assign(one_regime="lora")
    both = forest(pd.concat([regimes, adapted]), TASKS)
    labels = [label.get_text() for label in both.axes[0].get_yticklabels()]
    assert len(labels) == 2 * regimes["one_backbone"].nunique() == len(set(labels))


def test_a_forest_has_both_intervals_and_no_thin_one_where_there_was_one_training():
    rows = differences()
    once = (rows["task"] == "skin") & (rows["one_backbone"] == "dinov2_small")
    rows.loc[once, ["procedure_low", "procedure_high"]] = np.nan
    fig = forest(rows, TASKS)
    for ax, task in zip(fig.axes, TASKS, strict=True):
        part, drawn = rows[rows["task"] == task], bars(ax)
        for look, name in (("thick", "ci"), ("thin", "procedure")):
            known = part[part[f"{name}_low"].notna()]
            ends = [(round(x, 9), round(z, 9)) for x, _, z, _ in drawn[look]]
            expected = known[[f"{name}_low", f"{name}_high"]].round(9)
            assert sorted(ends) == sorted(expected.itertuples(index=False, name=None))
            assert all(y == same for _, y, _, same in drawn[look])
    assert len(drawn["thin"]) == len(drawn["thick"]) - once.sum() and once.sum() == 2
    assert "Without a thin line: training was not repeated" in all_words(fig)
    alone = forest(rows[once], TASKS)  # no thin line at all: the legend has none
    assert "other test and training patients" not in legend_words(alone)


def test_confusions_show_the_share_of_each_label():
    fig = predictions.confusion(counts(["no", "yes"]), ["no", "yes"])
    words = all_words(fig)
    assert "33 %\n1" in words and "57 %\n4" in words
    assert "true class" in words and "predicted class" in words
    image = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[1 / 3, 2 / 3], [3 / 7, 4 / 7]])


def test_one_confusion_matrix_does_not_fill_the_page():
    title = (
        "A title that is much longer than one column of a journal is wide, so that it is wrapped"
    )
    few = counts(["no", "yes"]).query("backbone == 'dinov2_small'")
    fig = predictions.confusion(few, ["no", "yes"], title)
    assert fig.get_figwidth() == style.COLUMN and fig.get_figheight() < 4
    fig.draw_without_rendering()
    assert fig.axes[0].get_window_extent().width < style.COLUMN * fig.dpi
    box = fig._suptitle.get_window_extent()
    assert box.x1 <= fig.bbox.x1 and " ".join(fig._suptitle.get_text().split()) == title


def test_curves_name_their_areas_and_every_backbone_has_a_band():
    fig = predictions.curves(curve_frame(), "Title")
    titles = [ax.get_legend().get_title().get_text() for ax in fig.axes]
    assert titles == ["AUROC [95 % interval]", "AUPRC [95 % interval]"]
    assert "ViT-B (random): 0.7 [0, 1]" in legend_words(fig)
    assert [len(ax.collections) for ax in fig.axes] == [len(BACKBONES)] * 2
    assert "Bands: pointwise 95 % intervals over test patients." in all_words(fig)


def test_the_panel_above_an_empty_place_names_the_classes():
    fig = predictions.confusion(counts(["no", "yes"]), ["no", "yes"])  # six, in rows of four
    named = [ax.xaxis.get_tick_params()["labelbottom"] for ax in fig.axes if ax.axison]
    assert named == [False, False, True, True, True, True]


def test_a_bin_of_too_few_samples_to_tell_has_no_mark():
    few = bins().query("backbone == 'dinov2_small'").assign(count=[4, 5, 20] * 2)
    (ax,) = predictions.reliability(few).axes
    assert len(ax.patches) == 3  # of raw probabilities alone
    _, raw, calibrated = (line.get_xdata().tolist() for line in ax.lines)
    assert raw == calibrated == [0.75, 0.95]
    assert ax.get_title("left").splitlines()[1:] == ["raw: ECE 0.123", "calibrated: ECE 0.123"]
    words = all_words(ax.figure)
    assert "bars: share of samples" in words and "ECE: expected calibration error" in words


def test_decision_curves_stand_beside_calling_all_and_calling_none():
    fig = predictions.decision_curves(benefits(["yes"]), "Title")
    (ax,) = fig.axes
    every, none, *lines = ax.lines
    assert every.get_ydata().tolist() == [0.3, 0.1, -0.4] and set(none.get_ydata()) == {0}
    assert [line.get_ydata().tolist() for line in lines] == [[0.3, 0.25, 0.1]] * 2
    assert len(ax.collections) == 2  # a band for each backbone
    words = {text.get_text() for text in fig.legends[0].get_texts()}
    assert words == {"calling all", "calling none", "DINOv2 S", "VGG16 (random)"}


def test_embeddings_are_coloured_by_what_is_known():
    fig = embeddings.embeddings(points(), ["a", "b"])
    titles = [ax.get_title("left") for ax in fig.axes]
    assert titles == ["by label", "by patient: 8 of 15", "by site"] * 2
    joined = [len(line.get_xdata()) for line in fig.axes[1].lines]
    assert joined == [4] * 8  # the images of each patient
    assert {"a", "b", "s0", "s1", "s2"} == set(legend_words(fig))
    few = points().query("backbone == 'dinov2_small'").iloc[:-10]
    few["label"] = np.where(np.arange(len(few)) < 5, "a", "b")
    large, small = embeddings.embeddings(few, ["b", "a"]).axes[0].collections[-2:]
    assert small.get_zorder() > large.get_zorder() and len(small.get_offsets()) == 5
    single = points().assign(patient=lambda f: [str(i) for i in range(len(f))], site="")
    titles = [ax.get_title("left") for ax in embeddings.embeddings(single, ["a", "b"]).axes]
    assert titles == ["by label"] * 2


def test_many_classes_have_a_panel_each():
    classes = list("abcdefg")
    table = points(70).assign(label=lambda t: np.array(classes)[np.arange(len(t)) % 7])
    fig = embeddings.embeddings(table.drop(columns="site"), classes)
    titles = [f"{name} (10)" for name in classes] + ["by patient: 8 of 18"]
    assert [ax.get_title("left") for ax in fig.axes] == titles * 2
    grey, coloured = fig.axes[0].collections
    assert (len(grey.get_offsets()), len(coloured.get_offsets())) == (60, 10)
    more = [f"class {i}" for i in range(10)]
    labels = np.repeat(more, np.arange(2, 12))  # the first two are the smallest
    table = points(len(labels)).drop(columns=["site", "patient"]).assign(label=[*labels, *labels])
    titles = [ax.get_title("left") for ax in embeddings.embeddings(table, more).axes]
    assert titles == [f"class {i} ({i + 2})" for i in range(2, 10)] * 2


def test_every_backbone_is_shown_on_the_same_images():
    images, labels, colours, evidence = seen()
    fig = embeddings.what_it_sees(images, labels, colours, evidence)
    assert len(fig.axes) == 4 * 3
    np.testing.assert_array_equal(fig.axes[0].images[0].get_array(), images[0])
    np.testing.assert_array_equal(fig.axes[3].images[0].get_array(), colours["DINOv2 S"][0])
    overlay = fig.axes[9].images[1]
    most = np.abs(evidence["ResNet50 (ImageNet), evidence"]).max()
    assert overlay.get_clim() == (-most, most)
    assert "evidence for and against" in all_words(fig)
    assert "evidence for" not in all_words(embeddings.what_it_sees(images, labels, colours, {}))


def test_maps_of_a_few_positions_are_no_evidence_and_the_figure_says_so():
    images, labels, colours, evidence = seen(places=2)
    fig = embeddings.what_it_sees(images, labels, colours, evidence)
    assert len(fig.axes) == 3 * 3
    said = "Not drawn, because so few positions say nothing about places in an image: DINOv2 S (2 ×"
    assert said in " ".join(all_words(fig).split())
    coarse = {name: values[:, :2, :2] for name, values in (colours | evidence).items()}
    one = {"ResNet50 (ImageNet), evidence": coarse.pop("ResNet50 (ImageNet), evidence")}
    none = embeddings.what_it_sees(images, labels, coarse, one)
    assert not none.axes and "ViT-B (random weights) (2 × 2)" in " ".join(all_words(none).split())


def coloured(ax):
    """The texts below a picture, line by line, by colour."""
    lines = {text.get_color(): text.get_text().split("\n") for text in ax.texts}
    return {colour: lines.get(colour, []) for colour in ("black", style.VERMILION, "0.25")}


def test_what_every_backbone_gets_wrong_has_label_answers_and_probabilities():
    fig = every_backbone()
    first, second, third = fig.axes[:3]
    assert [ax.images[0].get_array().max() for ax in (first, second)] == [0, 1]
    assert not third.images and len(fig.axes) == failures.ACROSS
    titles = [ax.get_title("left").replace("\n", " ") for ax in (first, second)]
    assert titles == ["label: a lesion with a very long name", "label: naevus"]
    names = coloured(first)["0.25"]
    assert names[0] == "ResNet50 (ImageNet)" and "ViT-B (random)" in names and len(names) == 6
    wrong, right = coloured(first)[style.VERMILION], coloured(second)["black"]
    order = [list(BACKBONES).index("resnet50-imagenet"), list(BACKBONES).index("vit_tiny-imagenet")]
    assert wrong[0] == f"naevus 0.{50 + order[0]}" and f"naevus 0.{50 + order[1]}" in wrong
    assert len(wrong) == 6 and right == wrong  # the second is a naevus: "naevus" is right
    assert set(coloured(first)["black"]) == {""}
    words = " ".join(all_words(fig).split())
    assert "Both are wrong." in words and "Every backbone that counts" in words


def test_surest_errors_and_least_sure_stand_beside_each_other_by_label():
    fig = of_labels()
    axes = np.array(fig.axes).reshape(2, 4)
    assert [ax.get_ylabel().replace("\n", " ") for ax in axes[:, 0]] == [
        "naevus",
        "a lesion with a very long name",
    ]
    shown = [[int(ax.images[0].get_array().max()) for ax in row if ax.images] for row in axes]
    assert shown == [[], [2, 3, 4]]
    titles = [ax.get_title("left") for ax in axes[1]]
    assert titles == ["surest error", "", "least sure", "least sure"]
    assert axes[0, 0].texts[0].get_text() == "no other\nerror"
    assert axes[0, 2].texts[0].get_text() == "no other\nsample"
    found = coloured(axes[1, 3])["black"]  # the name is cut, the probability is not
    assert all(line.startswith("a lesion") and "… 0.5" in line for line in found)


def test_without_a_sample_that_all_get_wrong_there_is_a_sentence():
    pictures, cases, answers = looked_at(["all wrong"])
    counts = pd.DataFrame({"label": ["a", "b"], "n": [3, 4], "wrong": [0, 0], "expected": [0.5, 1]})
    said = failures.shared_words(counts, judges=2, unit="volumes")
    assert said == (
        "All 2 pretrained backbones get the same 0 of 7 volumes wrong. If their errors were "
        "independent within each class, 1.5 would be expected."
    )
    fig = failures.wrong_by_all(pictures[:0], cases[:0], answers, said)
    assert said in " ".join(all_words(fig).split())
    some = failures.shared_words(counts.assign(wrong=[1, 2]), judges=3, pretrained=False)
    assert some.startswith("All 3 random backbones get the same 3 of 7 images wrong. If their")
    assert some.endswith(
        "These images may be mislabelled or hard, or the backbones may share a bias."
    )
    one = failures.shared_words(counts.assign(wrong=[1, 2]), judges=1)
    assert one == "The one pretrained backbone gets 3 of 7 images wrong."


def test_a_label_without_any_case_has_its_row():
    pictures, cases, answers = looked_at(["least sure"])
    fig = failures.by_label(pictures[:0], cases[:0], answers, LESIONS)
    assert all_words(fig).count("no other") == 4


def test_of_each_class_the_three_metrics_and_their_intervals_are_drawn():
    classes = ["no", "yes"]
    table = rates(classes).assign(n_patients=lambda t: np.where(t["label"] == "no", 19, 20))
    fig = failures.by_class(table, classes)
    for ax, metric in zip(fig.axes, ("auroc", "sensitivity", "specificity"), strict=True):
        part = table[table["metric"] == metric]
        ends = [s.ravel() for lines in ax.collections for s in lines.get_segments()]
        drawn = {(round(a, 9), round(b, 9)) for a, _, b, _ in ends}
        rows = part[["ci_low", "ci_high"]].round(9).itertuples(index=False, name=None)
        assert drawn == set(rows) and len(ends) == 2 * len(BACKBONES)
        values = [line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", "")]
        assert sorted(values) == pytest.approx(sorted(part["value"]))
    words = all_words(fig)
    assert "no (19 patients ‡)" in words and "yes (20 patients)" in words
    assert "‡: a class has fewer than 20 patients" in words
    assert "‡" not in all_words(failures.by_class(rates(classes), classes))


def test_without_anything_to_compare_a_figure_says_so():
    assert "There are no ranks: they need two tasks" in all_words(critical_difference({}, {}))
    nothing = differences().iloc[:0]
    assert "no pair" in all_words(forest(nothing, TASKS))
    assert worth_showing(nothing).empty


def test_of_many_classes_only_the_first_get_a_row_and_the_title_says_so():
    classes = [f"class {number}" for number in range(60)]
    pixels = np.zeros((60, 8, 8, 3), np.uint8)
    fig = images.sample_grid(pixels, classes, classes, per_class=1, title="Many")
    assert len(fig.axes) == images.MOST
    assert "Many (the first 40 of 60 classes)" in fig.texts[0].get_text().replace("\n", " ")
