"""Phantom pretraining: its weights are part of medlib, and they help on the tasks' phantoms."""

import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from medlib.core import features, heads, metrics, networks, splits, weights
from medlib.core.backbones import control, get
from medlib.data import phantoms
from medlib.zoo import hub, textures

ROW = get(textures.BACKBONE)


def test_the_weights_are_part_of_medlib_and_need_no_network(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDLIB_WEIGHTS", raising=False)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(hub, "LOCK", tmp_path / "lock.json")
    file = hub.fetch(ROW)
    assert file == weights.SHIPPED / "test_resnet.phantoms.safetensors"
    assert file.stat().st_size < 1e6 and not hub.LOCK.exists()  # git keeps it, and no lock
    assert {v.dtype for v in load_file(file).values()} == {torch.float16, torch.int64}
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["made by"] == "python -m medlib.zoo.textures"
    model, _ = networks.build(textures.BACKBONE, 56)
    assert not networks.folded_norm(model)
    assert control(ROW) == textures.START
    twin = get(textures.START)
    assert (twin.preprocessing, twin.embedding) == (ROW.preprocessing, ROW.embedding)


def test_a_wheel_would_contain_the_weights(repository):
    listed = subprocess.run(
        ["git", "ls-files", "medlib/core"], cwd=repository, capture_output=True, text=True
    ).stdout
    assert "test_resnet.phantoms.safetensors" in listed
    assert '"*.safetensors"' in (repository / "pyproject.toml").read_text()


def test_a_drawing_says_what_it_holds_and_repeats_from_its_seed():
    (images, held), (again, _) = textures.drawn(60, 3), textures.drawn(60, 3)
    assert images.dtype == torch.uint8 and images.shape == (60, textures.SIZE, textures.SIZE, 3)
    assert torch.equal(images, again) and not torch.equal(images, textures.drawn(60, 4)[0])
    counts = held.sum(1)
    assert set(counts.tolist()) == {0, 1, 2, 3} and (held.sum(0) > 5).all()
    for texture in textures.TEXTURES.values():
        ink = texture(np.random.default_rng(0), 40)
        assert ink.shape == (40, 40) and ink.min() >= 0 and ink.max() <= 1 and ink.std() > 0.05


def test_pretraining_repeats_and_learns():
    said = []
    (first, area), (again, _) = (
        textures.pretrain(256, 3, say=lambda words, **_: said.append(words)) for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    losses = [float(words.split()[-1]) for words in said[:3]]
    assert losses[2] < losses[0] and area > 0.5
    networks.build(textures.START, textures.SIZE)[0].load_state_dict(first)  # every name is there


def test_it_is_better_than_its_random_control_on_phantoms(tmp_path):
    """Chest radiographs: frozen, with a linear head, on the official split; no training."""
    folder = phantoms.write("chest_xray", tmp_path / "data", scale=0.7)
    files = sorted(folder.rglob("*.jpeg"))
    images = np.stack([np.asarray(Image.open(f).convert("RGB").resize((56, 56))) for f in files])
    y = np.array([f.parent.name == "PNEUMONIA" for f in files]).astype(int)
    test = np.array([f.parent.parent.name == "test" for f in files])
    val = ~test & (np.arange(len(y)) % 4 == 0)
    rotation = splits.Rotation(0, ~test & ~val, val, test)

    def auroc(backbone, seed=0):
        place = tmp_path / f"{backbone}{seed}"
        embeddings, _ = features.extract(images, backbone, place, images_hash="chest", seed=seed)
        runs = [("linear", 0, [rotation])]
        _, (made,), *_ = next(heads.sweep(embeddings, y, np.arange(len(y)), runs, n_classes=2))
        return metrics.auroc(y[test], made.test)

    learned = auroc(textures.BACKBONE)
    drawn = np.mean([auroc(textures.START, seed) for seed in range(3)])
    assert 1 - learned < 0.6 * (1 - drawn), (learned, drawn)  # 0.023 and 0.058


@pytest.mark.parametrize("kept", ["half", "count"])
def test_halves_are_kept_in_rows(kept):
    value = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    value = value if kept == "half" else torch.tensor(7)
    made = textures._half(value)
    assert made.is_contiguous() and made.dtype == (torch.float16 if kept == "half" else torch.int64)
