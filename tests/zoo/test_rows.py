"""The table of backbones: every row fits its network, or all that is wrong is listed."""

import pytest
import yaml

from medlib.core import backbones
from medlib.grid import gridfile
from medlib.zoo import hub, rows


@pytest.fixture(autouse=True)
def not_known():
    rows.check.cache_clear()
    yield
    rows.check.cache_clear()


def test_the_table_is_sound_and_checked_before_a_grid_is_read_or_weights_are_fetched(monkeypatch):
    rows.check()

    def fail():
        raise ValueError("a wrong row")

    for ask in (gridfile.read, hub.fetch):
        with monkeypatch.context() as patched, pytest.raises(ValueError, match="a wrong row"):
            patched.setattr(rows, "check", fail)
            ask(backbones.get("micro_resnet-random"))


def test_a_row_that_cannot_be_is_refused_with_all_that_is_wrong(tmp_path):
    file = tmp_path / "table.yaml"
    file.write_text(
        "a: {timm_name: resnet18.x, pretraining: imagenet, embeding: gap, licence: MIT}\n"
        "b: {timm_name: resnet18.x, pretraining: imagenet, embedding: token, licence: MIT}\n"
        "c:\n"
    )
    with pytest.raises(ValueError, match="table.yaml cannot be used") as error:
        rows.check(file)
    for words in (
        "a: Unknown field 'embeding'. Did you mean 'embedding'?",
        "a: embedding is missing",
        "b: Unknown embedding 'token'",
        "c: timm_name is missing",
    ):
        assert words in str(error.value)


def test_weights_without_a_hub_must_state_their_preprocessing(tmp_path):
    file, row = tmp_path / "table.yaml", dict(printed="A", family="ViT", pretraining="own")
    row |= dict(timm_name="vit_tiny_patch16_224.own", embedding="cls", licence="MIT", patch=16)
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for own, words in (
        ({"hub": False}, "without a hub, config must state mean and std and interpolation of"),
        ({"hub": False, "config": half}, "config must state interpolation of the weights"),
        ({"config": {"means": [0.5] * 3}}, "Unknown field of config 'means'. Did you mean 'mean'"),
    ):
        file.write_text(yaml.safe_dump({"a-own": row | own}))
        with pytest.raises(ValueError, match="a-own: ") as error:
            rows.check(file)
        assert words in str(error.value)
    own = {"hub": False, "config": half | {"interpolation": "bicubic"}}
    file.write_text(yaml.safe_dump({"a-own": row | own}))
    rows.check(file)


def test_a_random_control_belongs_to_one_architecture(tmp_path):
    file = tmp_path / "table.yaml"
    row = dict(printed="A", family="CNN", embedding="gap", licence="MIT")
    first = row | dict(pretraining="imagenet", timm_name="resnet50.tv_in1k")
    same_network = row | dict(pretraining="dino", timm_name="resnet50.a1_in1k")
    other = row | dict(pretraining="clip", timm_name="resnet50_clip.openai")
    both = {"resnet50-imagenet": first, "resnet50-dino": same_network}
    file.write_text(yaml.safe_dump(both))
    rows.check(file)
    rows.check.cache_clear()
    both = {"resnet50-imagenet": first, "resnet50-clip": other}
    file.write_text(yaml.safe_dump(both, sort_keys=False))
    with pytest.raises(ValueError, match="resnet50-clip: its random control would be") as error:
        rows.check(file)
    assert "resnet50-random, as that of resnet50-imagenet" in str(error.value)
    assert "differ in architecture" in str(error.value)


def test_the_types_of_a_rows_values_are_checked_when_the_table_is_read(tmp_path):
    file = tmp_path / "backbones.yaml"
    row = "timm_name: a.b, pretraining: imagenet, embedding: gap, licence: MIT"
    file.write_text(
        f"one: {{{row}, patch: true}}\ntwo: {{{row}, hub: 'no', build: [1]}}\n"
        "three: {timm_name: 5, pretraining: imagenet, embedding: [gap], licence: 1.0}\n"
    )
    with pytest.raises(ValueError) as caught:
        rows.check(file)
    for part in (
        "one: patch is True, but must be int",
        "two: hub is 'no', but must be bool",
        "two: build is [1], but must be Mapping",
        "three: timm_name is 5, but must be str",
        "three: embedding is ['gap'], but must be str",
        "three: licence is 1.0, but must be str",
    ):
        assert part in str(caught.value)
