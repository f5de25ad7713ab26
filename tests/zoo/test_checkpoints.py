"""Published files of weights: read without running them, fitted to timm's networks, or refused."""

import argparse
import os

import numpy as np
import pytest
import timm
import torch
import transformers
from made_rows import row
from safetensors.torch import load_file, save_file

from medlib.zoo import checkpoints

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
CONFIG = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 96, "image_size": 56, "patch_size": 14}


VIT = row("vit_tiny_patch16_224", patch=16, build=SMALL)


def values(own, **given):
    """Values for all tensors of a network; all values differ."""
    torch.manual_seed(0)
    state = timm.create_model(own.architecture, **own.build, **given).state_dict()
    return {name: value + 0.1 * torch.rand_like(value) for name, value in state.items()}


def wrapped(how, state):
    """The same values as different trainings save them."""
    prefixed = lambda prefix: {prefix + name: value for name, value in state.items()}  # noqa: E731
    other = {name: value + 1 for name, value in state.items()}
    one = torch.ones(1)
    return {
        "plain": state,
        "model": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)},
        "Lightning": {"state_dict": prefixed("model.backbone."), "hparams": {"lr": np.float64(1)}},
        "DINO": {
            "student": {f"module.backbone.{name}": value for name, value in other.items()},
            "teacher": prefixed("backbone.") | {"head.mlp.0.weight": torch.ones(2, 2)},
        },
        "compiled": prefixed("_orig_mod.module."),
        "open_clip": prefixed("visual.trunk.") | {"text.ln.weight": one, "logit_scale": 1.0},
        "MAE": {"model": state | {"mask_token": one, "decoder_blocks.0.norm1.weight": one}},
    }[how]


KINDS = ("plain", "model", "Lightning", "DINO", "compiled", "open_clip", "MAE")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("how", KINDS)
def test_the_network_is_found_in_what_trainings_save(tmp_path, how, suffix):
    state = values(VIT, num_classes=0)
    path = tmp_path / f"weights{suffix}"
    torch.save(wrapped(how, state), path)
    found = checkpoints.fit(checkpoints.read(path), VIT, path)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    beside = {"DINO": {"student", "teacher"}, "MAE": {"mask_token", "decoder_blocks"}}
    assert found.set_aside.keys() == beside.get(how, {"text"} if how == "open_clip" else set())


def test_a_classifier_is_set_aside_and_counted(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(values(VIT, num_classes=7), path)
    found = checkpoints.fit(checkpoints.read(path), VIT, path)
    assert found.set_aside == {"head": 2} and "head.weight" not in found.state


TOWERS = {  # class of transformers: its settings, the architecture in timm, its arguments
    "Dinov2": ({}, "vit_small_patch14_dinov2", {}),
    "Dinov2WithRegisters": ({"num_register_tokens": 4}, "vit_small_patch14_reg4_dinov2", {}),
    "DINOv3ViT": ({"num_register_tokens": 4}, "vit_small_patch16_dinov3", {"patch_size": 14}),
    "ViT": ({}, "vit_tiny_patch16_224", {"patch_size": 14}),
    "CLIPVision": ({"hidden_act": "gelu"}, "vit_base_patch16_clip_224", {"patch_size": 14}),
    "SiglipVision": (
        {},
        "vit_base_patch16_siglip_224",
        {"patch_size": 14, "act_layer": "gelu_tanh"},  # as published; timm's own is the exact GELU
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_model_of_transformers_gives_the_same_in_timm(tmp_path, name):
    settings, architecture, build = TOWERS[name]
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**CONFIG | settings)
    ).eval()
    for each in theirs.parameters():
        each.data += 0.1 * torch.randn_like(each)
    if name == "DINOv3ViT":  # timm's has no bias there, and the published one is zero
        for layer in theirs.model.layer:
            layer.attention.q_proj.bias.data.zero_()
            layer.attention.v_proj.bias.data.zero_()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    own = row(architecture, patch=14, build=SMALL | build | {"img_size": 56})
    found = checkpoints.fit(checkpoints.read(path), own, path)
    ours = timm.create_model(own.architecture, num_classes=0, **own.build).eval()
    ours.load_state_dict(found.state)
    images = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        said, features = theirs(pixel_values=images), ours.forward_features(images)
        if name == "CLIPVision":  # its last norm is applied to the class token alone
            torch.testing.assert_close(features[:, 0], said.pooler_output, rtol=1e-4, atol=1e-5)
        elif name == "SiglipVision":
            pooled = ours.forward_head(features, pre_logits=True)
            torch.testing.assert_close(pooled, said.pooler_output, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(features, said.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_file_that_would_run_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/mark",)

    torch.save({"model": values(VIT), "hook": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="system, which could run code. Ask its authors for a"):
        checkpoints.read(tmp_path / "weights.pth")
    assert not (tmp_path / "mark").exists()


def test_a_torchscript_archive_is_named_with_the_way_out(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(ValueError, match="ViT-B-16.pt is a TorchScript archive. Save what torch"):
        checkpoints.read(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.txt", "no.pt"])
def test_a_file_that_is_damaged_or_of_another_kind_is_refused(tmp_path, name):
    if name == "no.pt":
        torch.save({"epoch": 3}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        checkpoints.read(tmp_path / name)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"build": SMALL | {"embed_dim": 32}}, "width: 24, not 32"),
        ({"build": SMALL | {"depth": 3}}, "blocks: 2, not 3"),
        ({"build": SMALL | {"patch_size": 8}, "patch": 8}, "patch: 16, not 8"),
        ({"build": SMALL | {"reg_tokens": 4}}, "1 are missing: reg_token"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_likeliest_reason(tmp_path, own, words):
    path = tmp_path / "weights.safetensors"
    save_file(values(VIT), path)
    wrong = row("vit_tiny_patch16_224", **{"patch": 16} | own)
    with pytest.raises(ValueError, match="does not fit new-own") as error:
        checkpoints.fit(load_file(path), wrong, path)
    assert words in str(error.value)
