"""The figure and the table of subgroups: nothing is missing, and words fit on the page."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from shown import all_words, legend_words

from medlib.show import style, subgroups, tables
from medlib.show.figures import subgroups as figure
from medlib.stats.subgroups import GAPS, ONE_GROUP, ROWS, SITES, Subgroups, joined, shown

PAIR = {"vit_tiny-imagenet": "imagenet", "vit_tiny-random": "random"}
MANY = PAIR | {"dinov2_small": "dinov2", "dinov2_base": "dinov2", "dinov2_large": "dinov2"}
MANY |= {"resnet50-imagenet": "imagenet", "resnet50-random": "random", "vgg16-imagenet": "imagenet"}
MANY |= {"vgg16-random": "random", "densenet121-imagenet": "imagenet"}
AGES, LONG = (
    ["under 40", "65 and over"],
    [f"the department number {n} of a clinic" for n in range(15)],
)


def found(backbones=PAIR, attributes=None, few=("65 and over",), classes=("",)):
    """Made-up results: values from 0.7 up, with intervals of 0.1 to each side."""
    attributes = attributes or {"age": AGES, "site": ["A", "B", "C"]}
    cells = {"task": "t", "regime": "frozen", "head": "linear", "label_fraction": 1.0}
    rows, gaps, sites = [], [], []
    for b, (backbone, pretraining) in enumerate(backbones.items()):
        cell = cells | {"backbone": backbone, "pretraining": pretraining, "metric": "auroc"}
        for of_class in classes:
            for attribute, groups in attributes.items():
                place = cell | {"attribute": attribute, "of_class": of_class}
                for g, group in enumerate(groups):
                    row = place | {"group": group, "n_patients": 100 - g, "n_images": 120}
                    row |= {"rarest": 50 - g, "by_class": "a 50, b 50", "folds": 1, "n_folds": 1}
                    value = 0.7 + 0.01 * b + 0.001 * g
                    ends = {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
                    why = "too few: grade_II 3" if group in few else ""
                    rows.append(row | (ends if not why else {}) | {"why": why})
                known = [group for group in groups if group not in few]
                gap = place | {"n_groups": len(known), "why": ONE_GROUP}
                if len(known) > 1:
                    gap |= {"higher": known[-1], "lower": known[0], "gap": 0.05, "why": ""}
                    gap |= {"gap_low": -0.01, "gap_high": 0.11}
                gaps.append(gap)
                if attribute == "site":
                    site = place | {"pooled": 0.72, "pooled_low": 0.6, "pooled_high": 0.82}
                    site |= {"new_site_low": 0.5, "new_site_high": 0.9, "tau2": 0.012, "i2": 0.31}
                    site |= {"q": 3.0, "p_value": 0.22, "n_sites": 3, "left_out": "EZ", "why": ""}
                    sites.append(site)
    parts = zip((rows, gaps, sites), (ROWS, GAPS, SITES), strict=True)
    return Subgroups(*(pd.DataFrame(part, columns=columns) for part, columns in parts))


def test_a_figure_has_every_group_and_says_what_is_too_few():
    fig = figure.subgroups(found(), title="Title")
    words = all_words(fig)
    assert "under 40\n100 patients, rarest class 50" in words and "too few: grade II 3" in words
    assert "not pooled: EZ" in words and "I² 31 %, tau² 0.012, p = 0.22" in " ".join(words.split())
    assert "C minus A +0.050 [-0.010, +0.110]" in " ".join(words.split())
    assert ONE_GROUP in " ".join(words.split())  # of ages
    assert legend_words(fig) == ["ViT-Ti (ImageNet)", "ViT-Ti (random weights)"]
    ages, sites = fig.axes[0], fig.axes[2]
    # Both backbones have a value in one age group and at all three sites.
    assert [len(ax.lines) for ax in (ages, sites)] == [2, 6]
    assert len(sites.patches) >= 2  # diamonds
    ends = [(lines.get_segments()[0][:, 0]) for lines in sites.collections if lines.get_segments()]
    assert any(np.allclose(end, [0.5, 0.9]) for end in ends)  # a new site


def test_without_any_attribute_a_figure_and_a_table_say_so(tmp_path):
    nothing = Subgroups(*(part.iloc[:0] for part in found()))
    assert all_words(figure.subgroups(nothing)) == subgroups.NOTHING
    printed = subgroups.table(shown(nothing))
    tables.save_table(printed, tmp_path / "table", data=joined(nothing))
    for kind in ("md", "tex", "html"):
        assert subgroups.NOTHING in (tmp_path / f"table.{kind}").read_text()
    assert len(pd.read_csv(tmp_path / "table.csv")) == 0


@pytest.mark.parametrize("backbones", [PAIR, MANY], ids=["few", "many"])
def test_long_names_and_many_rows_stay_on_the_page_and_repeat_to_the_byte(tmp_path, backbones):
    attributes = {"site": LONG, "body_part": AGES, "device": ["one"]}
    asked = found(backbones, attributes, few=LONG[:2], classes=("a", "b"))
    asked = shown(asked, "b")

    def drawn():
        return figure.subgroups(asked, title="Glioma grade II versus III, contrast-enhanced " * 3)

    fig = drawn()
    fig.draw_without_rendering()
    for ax in fig.axes:
        for text in (ax._left_title, *ax.texts, *ax.get_yticklabels()):
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= fig.bbox.x1 + 1, text.get_text()
    words = all_words(fig)
    assert "3 smaller groups are in the table" in words
    assert "body part, b against the rest" in words
    controls = "3 random controls are only in the table" in " ".join(words.split())
    assert controls == (backbones is MANY)
    first, again = (style.save(drawn(), tmp_path / name, asked.table) for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


def test_the_table_has_a_row_for_what_is_too_few_and_a_line_between_attributes(tmp_path):
    printed = subgroups.table(found())
    ages = printed[printed["attribute"] == "age"]
    assert ages["group"].tolist() == ["under 40"] * 2 + ["65 and over", "largest gap"]
    assert ages["auroc"].tolist()[1:3] == ["0.710 [0.610, 0.810]", "too few: grade_II 3"]
    assert ages[["backbone", "auroc"]].iloc[-1].tolist() == ["", ONE_GROUP]
    sites = printed[printed["attribute"] == "site"]
    names = ["all sites pooled", "a new site", "heterogeneity"]
    assert sites["group"].tolist()[-6:] == names * 2
    assert sites["auroc"].tolist()[-6:-3] == [
        "0.720 [0.600, 0.820]",
        "[0.500, 0.900]",
        "I² 31 %, tau² 0.012, p = 0.22",
    ]
    tables.save_table(printed, tmp_path / "table", note=subgroups.left_out(found()))
    lines = (tmp_path / "table.tex").read_text().splitlines()
    assert lines.count(r"\midrule") == 2 and "Not pooled: EZ." in "".join(lines)


def test_a_class_is_chosen_by_its_groups_and_not_by_its_results():
    one = found(classes=("", "a", "b"), attributes={"age": AGES, "sex": ["f", "m"]})
    enough = (one.table["of_class"] != "b") & (one.table["attribute"] == "age")
    one.table.loc[enough, ["value", "why"]] = [np.nan, "too few: a 3"]
    one.table.loc[(one.table["of_class"] == "b") & (one.table["group"] == AGES[1]), "why"] = ""
    chosen = shown(one)
    classes = chosen.table.groupby("attribute", sort=False)["of_class"].unique()
    assert list(classes.index) == ["age", "sex"]  # the order is as before
    assert {name: list(of) for name, of in classes.items()} == {"age": ["b"], "sex": [""]}
    assert set(chosen.gaps["of_class"][chosen.gaps["attribute"] == "age"]) == {"b"}
    assert set(shown(one, "a").table["of_class"]) == {"a"}
    with pytest.raises(ValueError, match="Unknown class 'c'.* a, b"):
        shown(one, "c")
    with pytest.raises(ValueError, match="two classes: leave it out"):
        shown(found(), "a")
