"""Backbones: the table is true, and weights are the right ones or are refused with the reason."""

import copy
import dataclasses
import hashlib
import pickle
import socket

import made_rows
import numpy as np
import pytest
import timm
import torch
from made_values import image, numbers
from safetensors.torch import save_file

from medlib import files
from medlib.core import backbones, networks
from medlib.core import weights as weight_files
from medlib.core.fast import fusing
from medlib.core.weights import find_weights, weights_file
from medlib.data import decoding
from medlib.zoo import rows

RESNET, EFFICIENTNET = "micro_resnet-imagenet", "micro_efficientnet-imagenet"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.delenv("MEDLIB_WEIGHTS", raising=False)


@pytest.fixture
def weights(monkeypatch, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(folder))
    return folder


def trained(architecture, num_classes=0, moved=0.1, **arguments):
    """The state of a network in which all values differ, batch statistics included."""
    torch.manual_seed(1)
    model = timm.create_model(architecture, num_classes=num_classes, **arguments)
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value + moved * torch.rand_like(value)
    return state


def save(folder, name, state):
    folder.mkdir(exist_ok=True)
    path = folder / f"{backbones.get(name).timm_name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(model, state):
    """Whether all values of the model are those of the state."""
    found = model.state_dict()
    return all(torch.equal(value, state[name]) for name, value in found.items())


def refusal(name, image_size=32):
    with pytest.raises(ValueError) as caught:
        networks.build(name, image_size)
    return str(caught.value)


def pictures(n, size):
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.normal(size=(n, 3, size, size)).astype(np.float32))


# ------------------------------------------------------------------------------------- table


def test_the_papers_six_and_the_controls_are_there():
    assert {
        "vgg16-imagenet",
        "resnet50-imagenet",
        "densenet121-imagenet",
        "dinov2_small",
        "dinov2_base",
        "dinov2_large",
        "vit_tiny-imagenet",
        "vit_small-imagenet",
        "mobilenetv2-imagenet",
    } <= set(backbones.TABLE)


def test_every_row_has_a_key_of_its_own_and_a_random_control():
    names = backbones.names()
    # Two rows of one architecture share their control.
    controls = {key.split("-")[0] for key in backbones.TABLE}
    assert len(names) == len(set(names)) == len(backbones.TABLE) + len(controls)
    for key, row in backbones.TABLE.items():
        assert row.name == key
        control = backbones.get(key.split("-")[0] + "-random")
        assert control.name in names
        assert control.pretraining == "random"
        shared = key.endswith(
            "-phantoms"
        )  # medlib's own weights: its twin's control is its own, too
        own = ("timm_name", "config", "licence") * (not shared)
        for field in ("embedding", "patch", "build", *own):
            assert getattr(control, field) == getattr(row, field)
        assert control.timm_name.partition(".")[0] == row.timm_name.partition(".")[0]


def test_a_table_with_fields_that_are_unknown_or_missing_is_not_read(tmp_path):
    file = tmp_path / "table.yaml"
    file.write_text("a: {timm_name: resnet18.x, embeding: gap}\nb:\nc: text\n")
    with pytest.raises(ValueError, match="table.yaml cannot be used") as error:
        backbones.read_table(file)
    assert "a: got an unexpected keyword argument 'embeding'" in str(error.value)
    assert "b: missing 6 required positional arguments: 'timm_name'" in str(error.value)
    assert "c: " in str(error.value)


@pytest.mark.parametrize("name", backbones.TABLE)
def test_a_row_fits_its_architecture_in_timm(name):
    row = backbones.get(name)
    assert timm.is_model(row.architecture)
    assert name.endswith("-imagenet") == (row.pretraining == "imagenet")
    assert row.licence
    size = {"img_size": 2 * row.patch} if row.patch > 1 else {}
    with torch.device("meta"):
        model = timm.create_model(row.architecture, num_classes=0, **size, **row.build)
    if hasattr(model, "patch_embed"):
        assert row.patch % model.patch_embed.patch_size[0] == 0
        assert row.embedding != "gap" or not getattr(model, "cls_token", None)
        assert "cls" not in row.embedding or model.num_prefix_tokens >= 1
    else:
        assert row.patch == 1 and row.embedding in ("gap", "pool")


@pytest.mark.parametrize("name", [n for n, row in backbones.TABLE.items() if row.hub])
def test_weights_and_preprocessing_are_those_of_timm(name):
    row = backbones.get(name)
    assert row.timm_name in timm.list_pretrained(f"{row.architecture}.*")
    config = timm.get_pretrained_cfg(row.timm_name)
    file = row.timm_name.replace("_quickgelu", "")  # one file for both
    assert config.hf_hub_id == f"timm/{file}"
    assert row.preprocessing == {
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
    }


def test_a_key_may_end_in_an_image_size():
    row = backbones.get("dinov2_small@56")
    assert row == dataclasses.replace(backbones.get("dinov2_small"), name="dinov2_small@56")
    assert backbones.control(row) == "dinov2_small-random@56"
    control = backbones.get("dinov2_small-random@56")
    assert backbones.control(control) == control.name and control.pretraining == "random"
    model, _ = networks.build(control.name, 56)
    assert model.pos_embed.shape[1] == 1 + 4**2
    with pytest.raises(ValueError, match="dinov2_small-random@56 is not for images of 28 pixels"):
        networks.build(control.name, 28)
    for wrong in ("dinov2_small@", "dinov2_small@-5", "dinov2_small@0", "dinov2_small@56@28"):
        with pytest.raises(ValueError, match="@ must be followed by an image size in pixels"):
            backbones.get(wrong)


def test_weights_from_elsewhere_say_how_they_want_their_images():
    half = (0.5, 0.5, 0.5)
    expected = {"mean": half, "std": half, "interpolation": "bilinear"}
    assert backbones.get("mobilenetv2-imagenet").preprocessing == expected
    assert backbones.get("mobilenetv2-random").preprocessing == expected


@pytest.mark.parametrize("name", backbones.TABLE)
def test_images_can_be_packed_as_every_backbone_wants_them(name):
    assert backbones.get(name).preprocessing["interpolation"] in decoding.RESAMPLING


@pytest.mark.parametrize(
    "name, meant",
    [
        ("dinov2_smal", "dinov2_small"),
        ("resnet50_imagenet", "resnet50-imagenet"),
        ("dinov2-large", "dinov2_large"),
        ("vit_tiny-rand", "vit_tiny-random"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(name, meant):
    message = refusal(name)
    assert f"Unknown backbone {name!r}. Did you mean {meant!r}?" in message
    assert all(key in message for key in backbones.names())
    assert "medlib/core/backbones.yaml" in message


# -------------------------------------------------------------------------------- image sizes


@pytest.mark.parametrize(
    "name, size, nearest",
    [
        ("dinov2_small", 225, "224 and 238"),
        ("dinov2_large-random", 256, "252 and 266"),
        ("vit_tiny-imagenet", 100, "96 and 112"),
    ],
)
def test_an_image_size_that_patches_do_not_divide_is_refused_with_the_nearest(name, size, nearest):
    message = refusal(name, size)
    assert name in message
    assert f"not {size}; the nearest are {nearest}" in message


def test_an_image_size_below_one_patch_is_not_answered_with_zero():
    message = refusal("dinov2_small-random", 10)
    assert "not 10" in message
    assert "14" in message
    assert " 0 " not in message


@pytest.mark.parametrize("size", [0, -14])
def test_an_image_size_of_nothing_is_refused(size):
    assert str(size) in refusal("dinov2_small-random", size)


@pytest.mark.parametrize(
    "name, size", [("dinov2_small", 224), ("vit_tiny-imagenet", 224), ("resnet50-imagenet", 225)]
)
def test_an_image_size_that_fits_passes(name, size):
    backbones.check_image_size(backbones.get(name), size)


# ------------------------------------------------------------------------------------ random arm


def test_random_values_depend_on_the_seed_alone():
    torch.manual_seed(11)
    first, digest = networks.build("micro_resnet-random", 32, seed=7)
    torch.manual_seed(12)
    again, digest_again = networks.build("micro_resnet-random", 32, seed=7)
    other, digest_other = networks.build("micro_resnet-random", 32, seed=8)
    assert same(again, first.state_dict())
    assert digest == digest_again != digest_other
    assert digest.startswith("random-")
    assert not same(other, first.state_dict())


def test_building_leaves_the_callers_chance_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    networks.build("micro_resnet-random", 32)
    assert torch.equal(torch.rand(3), expected)


def test_the_random_arm_never_touches_weights(weights, monkeypatch):
    def fail(*_):
        raise AssertionError("the random arm asked for weights")

    for row in backbones.TABLE.values():
        (weights / f"{row.timm_name}.safetensors").write_text("no weights")
    monkeypatch.setattr(networks, "find_weights", fail)
    monkeypatch.setattr(weight_files, "weights_file", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    for name in ("micro_resnet-random", "mobilenetv2-random", "vit_tiny-random"):
        _, digest = networks.build(name, 32)
        assert digest.startswith("random-")


def test_a_digest_sees_values_names_and_buffers():
    model = timm.create_model("test_resnet", num_classes=0)
    digests = [networks.state_digest(model)]
    assert networks.state_digest(model) == digests[0]
    parts = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        parts.update(name.encode() + value.numpy().tobytes())
    assert digests[0] == parts.hexdigest()[:16]
    model.bn1.running_mean[0] += 1
    digests.append(networks.state_digest(model))
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0] += 1
    digests.append(networks.state_digest(model))
    assert len(set(digests)) == 3


# ------------------------------------------------------------------------- preprocessing, embedding


def test_images_are_normalised_to_the_backbones_own_scale():
    grey = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = networks.normalise(backbones.get("resnet50-imagenet"), torch.from_numpy(grey))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((grey / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.shape == (2, 3, 5, 4)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    half = networks.normalise(backbones.get("vit_tiny-imagenet"), torch.from_numpy(grey))
    np.testing.assert_allclose(half.permute(0, 2, 3, 1).numpy(), grey / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet50-random", 0),
        ("mobilenetv2-random", 0),
        ("densenet121-random", 62),
        ("micro_efficientnet-random", 0),
    ],
)
def test_a_batch_norm_after_a_convolution_is_folded_into_it_and_no_number_changes(name, left):
    model, _ = networks.build(name, 64)
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        for values, low, high in (
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.2, 0.2),
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 2),
        ):
            values.data.uniform_(low, high, generator=generator)
    digest = networks.state_digest(model)
    images = torch.randn(3, 3, 64, 64, generator=generator)
    folded = fusing.fold_scales(model, images[:1])
    with torch.inference_mode():
        found, expected = (networks.embed(backbones.get(name), m, images) for m in (folded, model))
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) == left
    assert networks.state_digest(model) == digest, "the model itself was changed"


def test_the_scale_of_a_transformers_layers_is_folded_into_them_and_no_number_changes():
    model = fusing.place(networks.build("dinov2_small-random", 28)[0], "cpu")
    generator = torch.Generator().manual_seed(0)
    scales = [m for m in model.modules() if isinstance(m, timm.layers.LayerScale)]
    assert len(scales) == 24
    for scale in scales:
        scale.gamma.data.uniform_(-1, 1, generator=generator)
    digest = networks.state_digest(model)
    images = torch.randn(3, 3, 28, 28, generator=generator)
    folded = fusing.fold_scales(model, images[:1])
    with torch.inference_mode():
        found, expected = (m.forward_features(images) for m in (folded, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not any(isinstance(m, timm.layers.LayerScale) for m in folded.modules())
    assert networks.state_digest(model) == digest, "the model itself was changed"


def test_a_model_with_nothing_to_fold_and_one_that_would_change_are_left_alone():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

        def forward_features(self, x):
            x = self.convolution(x)
            return x + self.norm(x)

    plain, _ = networks.build("vit_tiny-random", 32)
    assert fusing.fold_scales(plain, torch.randn(1, 3, 32, 32)) is plain
    model = Twice().eval()
    model.norm.running_var.fill_(4)
    assert fusing.fold_scales(model, torch.randn(1, 3, 5, 5)) is model


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("name", ["vit_tiny-random", "dinov2_small-random", "micro_resnet-random"])
def test_where_a_model_is_placed_changes_its_speed_and_no_number(monkeypatch, name, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    plain, _ = networks.build(name, 56 if "dino" in name else 32)
    placed = fusing.place(copy.deepcopy(plain), "cpu")
    assert networks.state_digest(placed) == networks.state_digest(plain)
    changed = {type(layer) for layer in placed.modules()} - {type(own) for own in plain.modules()}
    assert bool(changed) == (capability == "AVX512" and "resnet" not in name)
    images = torch.randn(16, 3, *(2 * [56 if "dino" in name else 32]))
    found, expected = (
        networks.embed(backbones.get(name), model, images) for model in (placed, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    for own, other in zip(placed.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "name, width",
    [
        ("micro_resnet-random", 96),
        ("micro_efficientnet-random", 256),
        ("mobilenetv2-random", 1280),
        ("densenet121-random", 1024),
        ("vgg16-random", 512),
    ],
)
@torch.no_grad()
def test_a_cnn_is_embedded_by_the_average_of_its_last_feature_map(name, width):
    model, _ = networks.build(name, 64)
    assert not model.training
    x = pictures(2, 64)
    found = networks.embed(backbones.get(name), model, x)
    assert found.shape == (2, width)
    features = model.forward_features(x).numpy()
    assert features.shape[2] > 1
    np.testing.assert_allclose(found.numpy(), features.mean((2, 3)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.numpy(), model(x).numpy(), rtol=1e-3, atol=1e-6)  # timm's own
    assert np.ptp(found.numpy(), axis=0).max() > 0  # two pictures, two embeddings


@torch.no_grad()
def test_a_supervised_transformer_is_embedded_by_its_class_token():
    model, _ = networks.build("vit_tiny-random", 48)
    x = pictures(2, 48)
    tokens = model.forward_features(x).numpy()
    assert tokens.shape == (2, 1 + 9, 192)
    found = networks.embed(backbones.get("vit_tiny-random"), model, x).numpy()
    np.testing.assert_array_equal(found, tokens[:, 0])
    np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_dinov2_is_embedded_by_its_class_token_and_the_mean_of_its_patches():
    model, _ = networks.build("dinov2_small-random", 42)
    x = pictures(2, 42)
    tokens = model.forward_features(x).numpy()
    assert tokens.shape == (2, 1 + 9, 384)
    found = networks.embed(backbones.get("dinov2_small-random"), model, x).numpy()
    assert found.shape == (2, 768)
    np.testing.assert_array_equal(found[:, :384], tokens[:, 0])
    np.testing.assert_allclose(found[:, 384:], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------- weights from a folder


@pytest.mark.parametrize("num_classes", [0, 1000])
def test_weights_of_the_folder_are_loaded_with_or_without_a_classifier(weights, num_classes):
    state = trained("test_resnet", num_classes)
    assert ("fc.weight" in state) == (num_classes > 0)
    path = save(weights, RESNET, state)
    model, digest = networks.build(RESNET, 64, seed=3)
    assert digest == sha256(path)
    assert same(model, state)
    assert not [name for name in model.state_dict() if name.startswith("fc.")]
    assert not model.training


def test_folded_batch_norm_is_declared_in_the_row(weights):
    torch.manual_seed(0)
    fresh = timm.create_model("mobilenetv2_100", num_classes=0).state_dict()  # statistics 0 and 1
    save(weights, "mobilenetv2-imagenet", fresh)
    model, _ = networks.build("mobilenetv2-imagenet", 32)
    assert same(model, fresh)
    path = save(weights, "mobilenetv2-imagenet", trained("mobilenetv2_100"))
    message = refusal("mobilenetv2-imagenet")
    assert str(path) in message
    assert "fixed_norm=False" in message
    save(weights, RESNET, timm.create_model("test_resnet", num_classes=0).state_dict())
    assert "fixed_norm=True" in refusal(RESNET)


@pytest.mark.parametrize(
    "name, other", [(RESNET, "test_efficientnet"), ("vit_tiny-imagenet", "test_resnet")]
)
def test_weights_of_another_architecture_are_refused(weights, name, other):
    path = save(weights, name, trained(other))
    message = refusal(name)
    assert str(path) in message
    assert name in message


@pytest.mark.parametrize(
    "name, state",
    [
        (RESNET, lambda: {**trained("test_resnet"), "bn1.weight": torch.ones(5)}),
        ("vit_tiny-imagenet", lambda: trained("vit_tiny_patch16_224", embed_dim=96, img_size=32)),
    ],
)
def test_weights_of_another_width_are_refused(weights, name, state):
    path = save(weights, name, state())
    message = refusal(name)
    assert str(path) in message
    assert name in message


def test_a_parameter_without_a_value_is_refused(weights):
    state = trained("test_resnet")
    del state["layer3.0.conv1.weight"]
    path = save(weights, RESNET, state)
    message = refusal(RESNET)
    assert str(path) in message
    assert "lacks ['layer3.0.conv1.weight']" in message


def test_a_value_without_a_parameter_is_refused(weights):
    path = save(weights, RESNET, trained("test_resnet") | {"neck.weight": torch.ones(1)})
    message = refusal(RESNET)
    assert str(path) in message
    assert "['neck.weight'] too many" in message


@pytest.mark.parametrize("part", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused(weights, part):
    path = save(weights, RESNET, trained("test_resnet"))
    path.write_bytes(path.read_bytes()[:part])
    message = refusal(RESNET)
    assert f"{path} is not a complete safetensors file" in message


@pytest.mark.parametrize("how", ["pickle", "torch", "torch of old"])
def test_nothing_is_ever_unpickled(weights, tmp_path, how):
    path, mark = weights / "test_resnet.r160_in1k.safetensors", tmp_path / "mark"
    if how == "pickle":
        path.write_bytes(f"cbuiltins\nopen\n(S'{mark}'\nS'w'\ntR.".encode())  # opens the mark
    else:
        torch.save(trained("test_resnet"), path, _use_new_zipfile_serialization=how == "torch")
    assert f"{path} is not a complete safetensors file" in refusal(RESNET)
    assert not mark.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes()).close()
        assert mark.exists()  # an ordinary read does run the code


def test_position_embeddings_are_resampled_to_the_image_size(weights):
    state = trained("vit_small_patch14_dinov2", img_size=42)  # 3 x 3 patches
    path = save(weights, "dinov2_small", state)
    model, digest = networks.build("dinov2_small", 56)  # 4 x 4
    assert digest == sha256(path)
    found = model.state_dict()
    positions, before = found.pop("pos_embed"), state["pos_embed"]
    assert before.shape == (1, 1 + 9, 384)
    assert positions.shape == (1, 1 + 16, 384)
    assert torch.equal(positions[:, 0], before[:, 0])  # the class token's
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    unchanged, _ = networks.build("dinov2_small", 42)
    assert same(unchanged, state)


@pytest.mark.parametrize("size", [98, 224, 518])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_gives_the_embeddings_that_its_authors_code_gives(
    weights, a_row, registers, size, repository
):
    reference = files.read_json(repository / "tests/core/dinov2_reference.json")
    found = official_dinov2(weights, a_row, registers, size, "cls+patches", depth=2)
    expected = torch.tensor(reference[f"{registers} registers, {size} px"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_the_last_four_blocks_of_dinov2_give_what_its_linear_evaluation_reads(
    weights, a_row, registers, repository
):
    reference = files.read_json(repository / "tests/core/dinov2_reference.json")
    found = official_dinov2(weights, a_row, registers, 98, "cls4+patches", depth=5)
    expected = torch.tensor(reference[f"cls4, {registers} registers, 98 px"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def official_dinov2(weights, a_row, registers, size, embedding, depth):
    """The embedding of an image, from weights with the names and shapes of the authors' files."""
    build = {"embed_dim": 24, "depth": depth, "num_heads": 2}
    reg, offset = ("reg4_", 0.0) if registers else ("", 0.1)
    architecture = f"vit_small_patch14_{reg}dinov2"
    row = a_row(architecture, embedding, patch=14, build=build, position_offset=offset)
    assert registers or backbones.get("dinov2_small").position_offset == offset
    with torch.device("meta"):
        own = timm.create_model(architecture, num_classes=0, **build).state_dict()
    shapes = {name: value.shape for name, value in own.items()}
    shapes |= {"mask_token": (1, 24), "pos_embed": (1, 1 + 37**2, 24)}
    if registers:
        shapes["register_tokens"] = shapes.pop("reg_token")
    save(weights, row.name, {name: numbers(name, shape) for name, shape in shapes.items()})
    model, _ = networks.build(row.name, size)
    with torch.inference_mode():
        return networks.embed(row, model, image(size))[0]


def test_the_periods_of_dinov3_are_those_of_its_files_in_every_precision(a_row):
    published = [1.0, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5]
    published += [10.0, 13.3125, 17.75, 23.75, 31.625, 42.25, 56.25, 75.0]
    assert backbones.get("dinov3_small").rounded_periods
    build = {"embed_dim": 64, "depth": 1, "num_heads": 1}
    a_row("vit_small_patch16_dinov3", "cls", patch=16, rounded_periods=True, build=build)
    model, _ = networks.build("new-random", 32)
    for dtype in (torch.float32, torch.float16):
        assert copy.deepcopy(model).to(dtype).rope.periods.tolist() == published


def test_the_offset_of_dinov2s_positions_matters():
    embeddings = numbers("pos_embed", (1, 1 + 37**2, 8))
    assert networks.positions(embeddings, 37, 0.1) is embeddings
    official, plain = (networks.positions(embeddings, 16, offset) for offset in (0.1, 0.0))
    assert official.shape == (1, 1 + 16**2, 8)
    assert torch.equal(official[:, 0], embeddings[:, 0])
    assert (official - plain).abs().max() > 0.1


# ------------------------------------------------------------------------------------ new rows


@pytest.fixture
def a_row(monkeypatch):
    """Adds a row to the table: a network with the user's own weights."""

    def add(architecture, embedding, **more):
        row = made_rows.row(architecture, embedding, **more)
        monkeypatch.setitem(backbones.TABLE, row.name, row)
        return row

    return add


SIGLIP = {"embed_dim": 64, "depth": 1, "num_heads": 2}
GAP, CLS = ("gap", "pool"), ("cls", "cls+patches", "pool")
KINDS = {  # architecture: fields of its row, image size, embeddings that it has
    "test_resnet": ({}, 64, GAP),
    "test_convnext": ({}, 64, ("pool",)),  # a norm after pooling
    "test_mambaout": ({}, 64, GAP),
    "mobilenetv4_conv_small_035": ({}, 64, GAP),
    "swin_tiny_patch4_window7_224": ({"patch": 4, "build": {"depths": (1, 1, 1, 1)}}, 56, GAP),
    "sequencer2d_s": ({}, 56, GAP),
    "maxvit_rmlp_pico_rw_256": ({"patch": 32}, 64, GAP),
    "levit_128s": ({"patch": 16}, 64, GAP),
    "efficientformer_l1": ({}, 224, GAP),
    "test_vit": ({"patch": 16}, 64, (*CLS, "cls4+patches")),
    "eva02_tiny_patch14_224": ({"patch": 14, "build": {"depth": 1}}, 56, CLS),
    "beit_base_patch16_224": ({"patch": 16, "build": SIGLIP}, 64, CLS),
    "vit_base_patch16_siglip_224": ({"patch": 16, "build": SIGLIP}, 64, ("pool",)),
    "resnet50_clip": ({}, 224, ("pool",)),  # attention pooling
}


@pytest.mark.parametrize("architecture", KINDS)
def test_pool_is_what_the_published_classifier_reads(architecture, weights, a_row):
    fields, size, _ = KINDS[architecture]
    row = a_row(architecture, "pool", **fields)
    given = ({"img_size": size} if row.patch > 1 else {}) | dict(row.build)
    state = trained(architecture, 5, moved=0.01, **given)
    save(weights, row.name, state)
    model, _ = networks.build(row.name, size)
    full = timm.create_model(architecture, num_classes=5, **given).eval()
    full.load_state_dict(state)
    images = pictures(2, size)
    with torch.inference_mode():
        embedded, expected = networks.embed(row, model, images), full(images)
        heads = full.get_classifier()
        heads = heads if isinstance(heads, tuple) else (getattr(heads, "fc", heads),)
        found = sum(head(embedded) for head in heads) / len(heads)
    assert embedded.shape == (2, networks.width(row, model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", KINDS)
def test_an_embedding_is_of_the_networks_own_layout_or_refused_with_the_choices(
    architecture, a_row
):
    fields, size, accepted = KINDS[architecture]
    for embedding in rows.EMBEDDINGS:
        row = a_row(architecture, embedding, **fields)
        if embedding not in accepted:
            message = refusal("new-random", size)
            assert "new-random in medlib/core/backbones.yaml" in message
            assert "Set embedding to pool" in message or "Choose one of" in message
        else:
            model, _ = networks.build("new-random", size)
            with torch.inference_mode():
                found = networks.embed(row, model, pictures(2, size))
                maps = networks.local_features(model, pictures(2, size))
            assert found.shape == (2, networks.width(row, model))
            assert maps.shape[0] == 2 and maps.shape[3] == model.num_features
            if embedding == "gap":
                torch.testing.assert_close(found, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_the_class_token_of_a_network_with_its_norm_in_the_head_is_normed(a_row):
    row = a_row("eva02_tiny_patch14_224", "cls+patches", patch=14, build={"depth": 1})
    model, _ = networks.build("new-random", 56)
    model.fc_norm.weight.data.uniform_(0.5, 2)
    with torch.inference_mode():
        tokens = model.forward_features(pictures(2, 56))
        found = networks.embed(row, model, pictures(2, 56))
        expected = model.fc_norm(torch.cat([tokens[:, :1], tokens[:, 1:].mean(1, True)], 1))
    torch.testing.assert_close(found, expected.flatten(1))


def test_the_class_tokens_of_the_last_blocks_go_through_the_final_norm(a_row):
    row = a_row("eva02_tiny_patch14_224", "cls4+patches", patch=14, build={"depth": 5})
    model, _ = networks.build("new-random", 56)
    model.fc_norm.weight.data.uniform_(0.5, 2)
    after = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, tokens: after.append(tokens))
    with torch.inference_mode():
        found = networks.embed(row, model, pictures(2, 56))
        expected = [tokens[:, 0] for tokens in after[-4:]] + [after[-1][:, 1:].mean(1)]
        expected = torch.cat([model.fc_norm(tokens) for tokens in expected], 1)
    assert found.shape == (2, networks.width(row, model)) == (2, 5 * 192)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "fields", "size", "words"),
    [
        ("test_vit", {"embedding": "gap", "patch": 16}, 64, "Unknown embedding 'gap'. Choose one"),
        (
            "test_vit",
            {"embedding": "cls"},
            64,
            "patch is 1, but the network's patches have",
        ),
        ("test_vit", {"embedding": "cls", "patch": 8}, 64, "Set patch to 16"),
        ("test_vit", {"embedding": "cls", "rounded_periods": True}, 64, "is for the rotary posi"),
        ("test_resnet", {"embedding": "gap", "patch": 16}, 64, "patch is for networks that are"),
        ("test_resnet", {"embedding": "gap", "build": {"layrs": 1}}, 64, "layrs"),
        (
            "maxvit_rmlp_pico_rw_256",
            {"embedding": "pool"},
            192,
            "cannot embed images of 192",
        ),
        ("test_resnett", {"embedding": "gap"}, 64, "no architecture 'test_resnett'. The nearest:"),
    ],
)
def test_a_row_that_does_not_fit_its_network_is_refused(architecture, fields, size, words, a_row):
    a_row(architecture, **fields)
    assert words in refusal("new-random", size)


def test_an_unknown_tag_is_answered_with_the_known_ones(monkeypatch):
    row = dataclasses.replace(backbones.get(RESNET), timm_name="test_resnet.r160_in2k")
    monkeypatch.setitem(backbones.TABLE, RESNET, row)
    message = refusal(RESNET)
    assert (
        "Unknown timm_name 'test_resnet.r160_in2k'. Did you mean 'test_resnet.r160_in1k'" in message
    )


def test_two_classifiers_and_a_classifier_of_another_size_are_set_aside(weights, a_row):
    row = a_row("levit_128s", "gap", patch=16)
    state = trained("levit_128s", 7, img_size=64)
    assert {"head.linear.weight", "head_dist.linear.weight"} <= set(state)
    save(weights, row.name, state)
    model, _ = networks.build(row.name, 64)
    assert same(model, state)


# ----------------------------------------------------------------------------- files of weights


def test_a_folder_that_is_named_comes_before_that_of_the_clone(weights, monkeypatch):
    own = save(weights, RESNET, trained("test_resnet"))
    fetched = save(weight_files.FOLDER, EFFICIENTNET, trained("test_efficientnet"))
    save(weight_files.FOLDER, RESNET, trained("test_resnet"))
    assert find_weights(backbones.get(RESNET)) == own
    assert find_weights(backbones.get(EFFICIENTNET)) == fetched
    assert weights_file(backbones.get("dinov2_small")) is None
    monkeypatch.delenv("MEDLIB_WEIGHTS")
    assert find_weights(backbones.get(EFFICIENTNET)) == fetched


def test_without_a_file_the_message_names_it_and_the_ways_out(weights, monkeypatch):
    words = (
        "No weights for dinov2_small: they were not fetched. Looked for vit_small_patch14_dinov2"
    )
    with pytest.raises(FileNotFoundError, match=words) as error:
        networks.build("dinov2_small", 28)
    for part in (f"={str(weights)!r} (not there)", "weights fetch dinov2_small", "WEIGHTS=folder"):
        assert part in str(error.value)
    monkeypatch.delenv("MEDLIB_WEIGHTS")
    with pytest.raises(FileNotFoundError, match=r"MEDLIB_WEIGHTS \(not set\)"):
        find_weights(backbones.get("dinov2_small"))
