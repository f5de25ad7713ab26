"""Each row of the zoo gives the embeddings that its publisher's own code gives."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_values import image, numbers
from safetensors.torch import save_file

from medlib import files
from medlib.core import backbones, networks
from medlib.zoo import checkpoints

# For each kind of network: the embeddings that its publisher's code gave on weights made by
# made_values.numbers, the names and shapes of the tensors in the published file, and the arguments
# that make timm's network as small.
KINDS = files.read_json(Path(__file__).with_name("publishers.json"))
ROWS = {row: kind for kind in KINDS.values() for row in kind["rows"]}


def publish(kind, folder):
    """A file of made weights, with the names and the wrapping of the published file."""
    path = folder / kind["file"]
    state = {name: numbers(name, shape) for name, shape in kind["tensors"].items()}
    state |= {name: torch.zeros(kind["tensors"][name]) for name in kind.get("zero", ())}
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif under := kind.get("under"):
        torch.save({under: state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, path)
    else:
        torch.save(state, path)
    return path


def test_every_row_of_the_zoo_has_a_publisher():
    names = [name for name in backbones.TABLE if not name.endswith("-phantoms")]  # of medlib itself
    assert set(ROWS) == set(names[names.index("dinov2reg_small") :])


@pytest.mark.parametrize("name", ROWS)
def test_a_row_gives_what_its_publishers_code_gives(name, tmp_path, monkeypatch):
    kind, row = ROWS[name], backbones.get(name)
    row = replace(row, build={**row.build, **kind["build"]})
    monkeypatch.setitem(backbones.TABLE, name, row)
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(tmp_path))
    path = publish(kind, tmp_path)
    found = checkpoints.fit(checkpoints.read(path), row, path)
    checkpoints.write(found, tmp_path / f"{row.timm_name}.safetensors")
    for size, values in kind["embedding"].items():
        model, _ = networks.build(name, int(size))
        assert {each.eps for each in model.modules() if hasattr(each, "eps")} == set(kind["eps"])
        with torch.inference_mode():
            embedded = networks.embed(row, model, image(int(size)))[0]
        torch.testing.assert_close(embedded, torch.tensor(values), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_biases_of_dinov3_that_timm_lacks_are_refused_unless_its_mask_takes_them_out(masked):
    kind, row = ROWS["dinov3_small"], backbones.get("dinov3_small")
    state = {name: numbers(name, shape) for name, shape in kind["tensors"].items()}
    for name in state:
        if name.endswith("bias_mask"):
            state[name] = torch.zeros_like(state[name]) if masked else torch.ones_like(state[name])
    row = replace(row, build=kind["build"])
    if masked:
        checkpoints.fit(state, row, "made")
    else:
        with pytest.raises(ValueError, match=r"2 are left over: blocks\.0\.attn\.qkv\.bias"):
            checkpoints.fit(state, row, "made")
