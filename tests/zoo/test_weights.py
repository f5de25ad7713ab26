"""The command line for files of weights: it describes them, and converts them for a row."""

import pytest
import timm
import torch
from made_rows import row

from medlib.core import networks
from medlib.zoo import checkpoints, weights


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["weights", *map(str, arguments)])
    status = weights.main()
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    path = tmp_path / "mine.pth"
    torch.save({"teacher": {f"backbone.{n}": t for n, t in state.items()}, "epoch": 9}, path)
    return path


def test_a_file_is_described_with_the_rows_that_take_it(file, monkeypatch, capsys):
    status, said = call(monkeypatch, capsys, "inspect", file)
    assert status == 0 and "152 tensors, 5,524,995 values" in said
    rows = said.partition("Rows whose network takes it:")[2].split("\n")[1:]
    assert rows[0] == (
        "  vit_tiny-imagenet (vit_tiny_patch16_224): names of timm; under 'teacher.backbone.'; "
        "set aside: head (2)"
    )
    assert len([row for row in rows if row]) == 1


def test_a_converted_file_is_what_a_row_reads(file, monkeypatch, capsys, tmp_path):
    folder = tmp_path / "weights"
    status, said = call(monkeypatch, capsys, "convert", file, "vit_tiny-imagenet", "--to", folder)
    assert status == 0 and "sha256" in said, said
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(folder))
    model, digest = networks.build("vit_tiny-imagenet", 224)
    assert digest in said
    own = torch.load(file, weights_only=True)["teacher"]
    assert all(torch.equal(v, own[f"backbone.{n}"]) for n, v in model.state_dict().items())
    # The same again changes nothing; another file of that name is not replaced.
    assert call(monkeypatch, capsys, "convert", file, "vit_tiny-imagenet", "--to", folder)[0] == 0
    (path,) = folder.iterdir()
    path.write_bytes(b"another")
    status, said = call(monkeypatch, capsys, "convert", file, "vit_tiny-imagenet", "--to", folder)
    assert status == 1 and "is there and differs" in said
    assert path.read_bytes() == b"another" and list(folder.iterdir()) == [path]


def test_what_does_not_fit_or_is_not_there_is_one_message(file, monkeypatch, capsys, tmp_path):
    for arguments, words in (
        (("convert", file, "vit_small-imagenet"), "width: 192, not 384"),
        (("convert", file, "vit_tiny"), "Did you mean 'vit_tiny-"),
        (("inspect", tmp_path / "no.pth"), "no.pth"),
    ):
        status, said = call(monkeypatch, capsys, *arguments)
        assert status == 1 and words in said and "Traceback" not in said


def test_the_names_of_a_networks_authors_are_taken_where_timm_knows_them():
    own = row("test_convnext", "pool")
    state = timm.create_model("test_convnext", num_classes=4).state_dict()
    # As its authors name the parts of a ConvNeXt.
    renames = ("stem.", "downsample_layers.0."), (".blocks.", "."), ("head.norm.", "norm.")
    official = {}
    for name, value in state.items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if ".downsample." in name:
            number = int(parts[1])
            name = ".".join(["downsample_layers", str(number), *parts[3:]])
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1")
        name = name.replace("mlp.fc2", "pwconv2").replace("head.fc.", "head.")
        official[name] = value
    assert not official.keys() <= state.keys()
    found = checkpoints.fit({f"model.{n}": v for n, v in official.items()}, own, "file")
    for name, value in found.state.items():
        assert torch.equal(value.reshape(state[name].shape), state[name])
