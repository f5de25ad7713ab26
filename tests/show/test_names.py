"""Printed names, families and their order; random weights never look pretrained."""

import pandas as pd
import pytest
from shown import FROZEN_ALL, TASKS, all_words, legend_words, long_table, row_names

from medlib.core import backbones
from medlib.show import names, tables
from medlib.show.figures import comparison, parts
from medlib.show.names import METRICS, PAPER_METRICS, display_names
from medlib.stats import metrics


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
    assert PAPER_METRICS[:2] == ["auroc", "accuracy"] and len(PAPER_METRICS) == 6


def test_random_weights_never_look_pretrained():
    for row in backbones.TABLE.values():
        assert display_names(backbones.control(row)).endswith("(random weights)")
    # the column shows random weights that the key hides; the reverse is refused
    hidden = long_table({"mri": [FROZEN_ALL]}, {"dinov2_small": "random"})
    fig = comparison.main_comparison(hidden, TASKS)
    assert row_names(fig) == ["DINOv2 S architecture (random weights)"]
    assert "random weights" in tables.main_table(hidden, TASKS)["backbone"][0]
    lying = long_table({"mri": [FROZEN_ALL]}, {"vit_tiny-random": "imagenet"})
    with pytest.raises(ValueError, match="random"):
        comparison.main_comparison(lying, TASKS)
    with pytest.raises(ValueError, match="random"):
        tables.main_table(lying, TASKS)


def test_a_family_is_told_by_pretraining_and_architecture():
    assert names.family("vit_tiny-imagenet", "imagenet") == "ViT, ImageNet"
    assert names.family("resnet50-imagenet", "imagenet") == "CNN, ImageNet"
    assert names.family("dinov2_small", "dinov2") == "DINOv2"
    assert names.family("dinov2_small-random", "random") == "random weights"
    assert names.family("rad_dino", "raddino") == "RAD-DINO"
    assert names.family("dinov3_convnext_tiny", "dinov3") == "CNN, DINOv3"
    assert names.families()[:3] == ["CNN, ImageNet", "ViT, ImageNet", "DINOv2"]
    assert parts.look("random weights")["markerfacecolor"] == "white"
    every = [*names.families()[:3], names.RANDOM, names.UNKNOWN]
    assert len({parts.look(family)["color"] for family in every}) == 5


def test_an_image_size_is_a_part_of_the_name():
    sized = {
        "dinov2_small@518": ("dinov2", "DINOv2 S, 518 px"),
        "dinov2_small-random@518": ("random", "DINOv2 S architecture (random weights), 518 px"),
        "vit_tiny-imagenet@448": ("imagenet", "ViT-Ti (ImageNet), 448 px"),
        "dinov2_small": ("dinov2", "DINOv2 S"),
        "dinov2_small@56": ("dinov2", "DINOv2 S, 56 px"),
        "dinov2_small-random": ("random", "DINOv2 S architecture (random weights)"),
    }
    for key, (pretraining, name) in sized.items():
        assert names.full_name(key, pretraining) == name
    assert names.full_name("dinov2_small@518", "random") == sized["dinov2_small-random@518"][1]
    assert names.stem("dinov2_small@518") == names.stem("dinov2_small-random@518")
    assert names.family("dinov2_small@518", "dinov2") == "DINOv2"
    table = pd.DataFrame({"backbone": list(sized), "pretraining": [p for p, _ in sized.values()]})
    assert list(names.in_order(table)["backbone"]) == [
        "vit_tiny-imagenet@448",
        "dinov2_small",
        "dinov2_small-random",
        "dinov2_small@56",
        "dinov2_small@518",
        "dinov2_small-random@518",
    ]


NEW = """
deit_tiny-imagenet: {printed: DeiT-Ti, family: ViT, pretraining: imagenet, TIMM}
mixer_tiny-imagenet: {printed: Mixer-T, family: Mixer, pretraining: imagenet, TIMM}
vit_small-theirs: {printed: ViT-S, family: ViT, pretraining: theirs, TIMM}
ours_small: {printed: Ours S, family: ViT, pretraining: ours, TIMM}
"""


@pytest.fixture
def four_more(monkeypatch, tmp_path):
    """The table of backbones with four new rows: new architectures and new pretrainings."""
    file = tmp_path / "backbones.yaml"
    file.write_text(NEW.replace("TIMM", "timm_name: resnet18.x, embedding: gap, licence: MIT"))
    for key, row in backbones.read_table(file).items():
        monkeypatch.setitem(backbones.TABLE, key, row)


def test_a_new_row_is_a_name_a_family_and_a_place_in_the_order(four_more):
    families = {"deit_tiny-imagenet": "ViT, ImageNet", "mixer_tiny-imagenet": "Mixer, ImageNet"}
    families |= {"vit_small-theirs": "ViT, theirs", "ours_small": "ViT, ours"}
    for key, family in families.items():
        assert names.family(key, backbones.get(key).pretraining) == family
    # Existing families keep their looks, and each new family has another look.
    assert names.families()[:3] == ["CNN, ImageNet", "ViT, ImageNet", "DINOv2"]
    looks = [parts.look(family) for family in [*names.families(), names.RANDOM, names.UNKNOWN]]
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks)
    assert looks[0]["color"] == "#0072B2" and looks[2]["marker"] == "D"
    shown = ["ours_small-random", "vit_small-theirs", "vit_small-random", "vit_small-imagenet"]
    table = pd.DataFrame({"backbone": ["vgg16-imagenet", "old_net", *shown, "ours_small"]})
    weights = ["imagenet", "mae", "random", "theirs", "random", "imagenet", "ours"]
    assert list(names.in_order(table.assign(pretraining=weights))["name"]) == [
        "VGG16 (ImageNet)",
        "ViT-S (ImageNet)",
        "ViT-S (theirs)",
        "ViT-S (random weights)",
        "Ours S",
        "Ours S architecture (random weights)",
        "old_net",
    ]


def test_what_only_old_results_have_is_drawn_as_unknown_and_not_as_another_family():
    assert names.family("old_net-mae", "mae") == names.family("vgg16-imagenet", "mae")
    table = long_table({"mri": [FROZEN_ALL]}, {"old_net-mae": "mae", "vgg16-imagenet": "imagenet"})
    both = table.assign(frozen=table["value"], finetuned=table["value"] + 0.01)
    fig = comparison.freezing(both[both["metric"] == "auroc"], TASKS)
    known, unknown, _ = fig.legends[0].get_lines()  # the last one is chance
    assert legend_words(fig) == ["VGG16 (ImageNet)", "old_net-mae", "chance"]
    assert known.get_color() == parts.look("CNN, ImageNet")["color"]
    assert unknown.get_color() == parts.look(names.UNKNOWN)["color"] != known.get_color()
    assert "old_net-mae" in all_words(fig)
