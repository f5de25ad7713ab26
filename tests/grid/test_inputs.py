"""Missing data and weights are found before the first job runs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import made_hub
import pytest
import timm
import torch
import transformers
import yaml
from safetensors.torch import save, save_file
from small_grid import SMALL, Study

from medlib.core import weights
from medlib.files import read_json
from medlib.grid import address, inputs, study

RESULTS = Path("results/own")
RESNET = "micro_resnet-imagenet"


@pytest.fixture(autouse=True)
def nothing_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MEDLIB_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def grid(*names, data="real", size=56):
    parts = {"frozen": {"backbones": names, "image_size": size}, "finetuned": {}, "lora": {}}
    return {"data": data, "tasks": ["fundus_pm"], "seeds": [0]} | parts


def jobs(*names):
    """The jobs that prepare a task, embed it and draw it."""
    made = [("prepare", address.manifest(RESULTS, "fundus_pm"))]
    made += [("extract", address.features(RESULTS, "fundus_pm", n, 0) / "meta.json") for n in names]
    made += [("compare", "figures/own/main_comparison.png")]
    made[0] = (*made[0], address.images(RESULTS, "fundus_pm") / "meta.json")
    return [SimpleNamespace(rule=rule, outputs=list(map(str, files))) for rule, *files in made]


def own_weights(state):
    weights.FOLDER.mkdir(exist_ok=True)
    save_file(state, weights.FOLDER / "test_resnet.r160_in1k.safetensors")


def test_all_that_is_missing_stops_a_grid_at_once():
    names = "dinov2_small", "vgg16-imagenet"
    with pytest.raises(ValueError, match="The grid cannot run:") as error:
        inputs.check(grid(*names), RESULTS, jobs(*names))
    for words in (
        "no folder 'ichallenge_pm'",
        "No weights for dinov2_small",
        "not looked for on the hub after that: vgg16-imagenet",
    ):
        assert words in str(error.value)


def test_what_no_job_needs_is_not_looked_for():
    names = "dinov2_small", "vgg16-imagenet"
    drawing = [job for job in jobs(*names) if job.rule == "compare"]
    inputs.check(grid(*names), RESULTS, drawing)
    inputs.check(grid(*names, data="phantoms"), RESULTS, jobs("micro_resnet-random"))


def test_weights_that_do_not_fit_are_found_before_the_first_job():
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    own_weights({name: value for name, value in state.items() if not name.startswith("layer1")})
    with pytest.raises(ValueError, match="does not fit micro_resnet-imagenet .*lacks"):
        inputs.check(grid(RESNET, data="phantoms"), RESULTS, jobs(RESNET))


def test_an_image_size_that_a_network_cannot_take_is_found_before_the_first_job():
    names = "dinov2_small-random", "micro_resnet-random"
    with pytest.raises(ValueError, match="dinov2_small-random needs an image size .* 14"):
        inputs.check(grid(*names, data="phantoms", size=32), RESULTS, jobs(*names))
    inputs.check(grid(*names, data="phantoms", size=28), RESULTS, jobs(*names))


def test_weights_of_a_grid_are_put_into_a_folder(monkeypatch, tmp_path, capsys):
    torch.manual_seed(0)
    own_weights(timm.create_model("test_resnet", num_classes=0).state_dict())
    own = SimpleNamespace(name="own", grid=grid(RESNET, "micro_resnet-random"))
    assert study.fetch_weights(own, [str(tmp_path / "carry")]) == 0
    assert [path.name for path in (tmp_path / "carry").iterdir()] == [
        "test_resnet.r160_in1k.safetensors"
    ]
    assert "make study GRID=own WEIGHTS=" in capsys.readouterr().out
    own.grid = grid(RESNET, "dinov2_small")
    with pytest.raises(study.StudyError, match="No weights for dinov2_small"):
        study.fetch_weights(own, [str(tmp_path / "carry")])


ROWS = """
ours_timm-hub: {timm_name: test_resnet.r160_in1k, pretraining: hub, embedding: gap, OTHER}
ours_vit-transformers: {timm_name: vit_tiny_patch16_224.x, pretraining: transformers, SMALL,
  hub: false, source: {repository: ours/dinov2, file: model.safetensors}, CONFIG}
ours_own-file: {timm_name: vit_tiny_patch16_224.own, pretraining: file, SMALL, hub: false, CONFIG}
"""
SHORT = {
    "SMALL": "build: {embed_dim: 24, depth: 2, num_heads: 2, patch_size: 14}, patch: 14, "
    "embedding: cls, OTHER",
    "CONFIG": "config: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bicubic}",
    "OTHER": "printed: Ours, family: CNN, licence: MIT",
}


def test_a_grid_fetches_and_converts_what_its_rows_name(tmp_path):
    rows = ROWS
    for name, words in SHORT.items():
        rows = rows.replace(name, words)
    names = list(yaml.safe_load(rows))
    torch.manual_seed(0)
    resnet = timm.create_model("test_resnet").state_dict()
    resnet["bn1.running_mean"] += 1  # as after a training
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 96, "image_size": 56, "patch_size": 14}
    vit = transformers.ViTModel(transformers.ViTConfig(**size)).state_dict()
    has = {"timm/test_resnet.r160_in1k/model.safetensors": save(resnet)}
    has["ours/dinov2/model.safetensors"] = save(vit)
    grid = SMALL | {"frozen": SMALL["frozen"] | {"backbones": names}}
    grid.pop("finetuned")
    with made_hub.serving(made_hub.having(has)) as (endpoint, asked):
        variables = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hub"),
            "NO_PROXY": "127.0.0.1",
        }
        study = Study(tmp_path / "copy", grid, HF_HUB_OFFLINE="0", MEDLIB_WEIGHTS="", **variables)
        table = study.folder / "medlib" / "core" / "backbones.yaml"
        table.write_text(table.read_text("utf-8") + rows, "utf-8")
        wanted = [f"results/small/runs/fundus_pm/{name}/frozen.csv" for name in names]
        status, said = study.call("run", *wanted)
        assert status == 1 and "No weights for ours_own-file: its row names no file" in said
        assert said.count("Fetching the weights of") == 2
        own = timm.create_model("vit_tiny_patch16_224", **yaml.safe_load(rows)[names[2]]["build"])
        torch.save(own.state_dict(), tmp_path / "own.pth")
        convert = [sys.executable, "-m", "medlib.zoo.weights", "convert", tmp_path / "own.pth"]
        how = {"cwd": study.folder, "env": study.environment, "check": True}
        subprocess.run([*convert, names[2]], **how)
        asked.clear()
        status, said = study.call("run", *wanted)
        assert status == 0, said
    digests = set()
    for name in names:
        folder = study.folder / address.features("results/small", "fundus_pm", name, 0)
        digests.add(read_json(folder / "meta.json")["weights_digest"])
    assert len(digests) == 3 and not any(digest.startswith("random") for digest in digests)
    assert asked == []
