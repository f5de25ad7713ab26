"""The commands, cards and rows that the README shows work as they are printed."""

import io
import json
import re
import shlex
import subprocess
import sys

import made_dicom
import made_hub
import nibabel
import numpy as np
import pandas as pd
import pytest
import small_grid
import timm
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import save

from medlib.core import backbones, networks
from medlib.data import cards, manifest
from medlib.data.layouts import reader
from medlib.zoo import weights


def block(repository, kind, containing):
    text = (repository / "README.md").read_text("utf-8")
    blocks = re.findall(rf"```{kind}\n(.*?)```", text, re.S)
    (found,) = [block for block in blocks if containing in block]
    return found


def test_a_backbone_is_one_row_whatever_its_weights_are(repository, monkeypatch, tmp_path, capsys):
    """The rows: a network of timm, one of transformers on the hub, and a file of one's own."""
    file = tmp_path / "backbones.yaml"
    file.write_text(rows := block(repository, "yaml", "vit_small-ours"))
    assert len(rows.splitlines()) + len(block(repository, "sh", "zoo.weights").splitlines()) <= 15
    for name, row in backbones.read_table(file).items():
        monkeypatch.setitem(backbones.TABLE, name, row)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18").state_dict()
    resnet["bn1.running_mean"] += 1  # as after a training
    own = timm.create_model("vit_small_patch16_224", num_classes=2).state_dict()
    torch.save({"model": {f"module.{n}": value for n, value in own.items()}}, "checkpoint.pth")
    size = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    dinov2 = transformers.Dinov2Model(transformers.Dinov2Config(**size)).state_dict()
    has = {
        "timm/resnet18.a1_in1k/model.safetensors": save(resnet),
        "facebook/dinov2-small/model.safetensors": save(dinov2),
    }
    with made_hub.serving(made_hub.having(has)) as (endpoint, _):
        made_hub.ask(endpoint, monkeypatch, tmp_path)
        for command in block(repository, "sh", "zoo.weights").strip().splitlines():
            monkeypatch.setattr("sys.argv", shlex.split(command.partition("#")[0])[2:])
            assert weights.main() == 0, capsys.readouterr()
    assert "  vit_small-ours (vit_small_patch16_224): names of timm" in capsys.readouterr().out
    for name, layer, published in (
        ("resnet18-imagenet", "layer1.0.conv1.weight", resnet["layer1.0.conv1.weight"]),
        ("vit_small-ours", "blocks.0.mlp.fc1.weight", own["blocks.0.mlp.fc1.weight"]),
        ("dinov2_hf", "blocks.3.mlp.fc1.weight", dinov2["encoder.layer.3.mlp.fc1.weight"]),
    ):
        model, _ = networks.build(name, 28 if name == "dinov2_hf" else 32)
        assert torch.equal(model.get_parameter(layer), published)


@pytest.fixture
def clone(tmp_path):
    """The parts of a clone that a run needs; a folder `data` is laid beside it."""
    small_grid.lay(tmp_path / "clone")
    return tmp_path / "clone"


def follow(repository, clone, task):
    """Run the README's command for one task; returns the manifest that it writes and the images."""
    command = block(repository, "sh", '"task": "knees"').replace('"knees"', f'"{task}"')
    command = command.replace(".venv/bin/python", shlex.quote(sys.executable))
    command = command.replace("[224]", "[32]")  # the only change: it is faster
    how = {"shell": True, "cwd": clone, "env": small_grid.environment(clone)}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (clone / "results" / "prepared.ipynb").is_file()
    images = clone / "results" / "own" / "images" / task / "32-bicubic" / "images.npy"
    rows = manifest.read_rows(clone / "results" / "own" / "manifests" / f"{task}.csv")
    return rows, np.load(images)


def write_card(repository, clone, task, containing):
    card = block(repository, "yaml", containing)
    assert len(card.splitlines()) < 15
    (clone / "data_manifests" / f"{task}.yaml").write_text(card)
    return yaml.safe_load(card)


@pytest.mark.xdist_group("readme")
def test_a_folder_per_class_is_prepared_with_one_card(repository, clone):
    card = write_card(repository, clone, "knees", "Knee")
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = clone.parent / "data" / "knees" / card["classes"][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(255, size=(9, 9, 3), dtype=np.uint8)
        name = f"p{number // 2 // 2:02d}{number % 2}_{'left' if number % 4 < 2 else 'right'}"
        picture = Image.fromarray(pixels).resize((60, 70))
        picture.save(folder / (name + (".png", ".jpg", ".JPG")[number % 3]))
    rows, images = follow(repository, clone, "knees")
    assert images.shape == (24, 32, 32, 3)
    assert rows["patient_id"].nunique() == 12  # a left and a right knee each
    assert rows.groupby("patient_id")["fold"].nunique().eq(1).all()
    assert set(rows["fold"]) == {0, 1, 2, 3, 4}


@pytest.mark.xdist_group("readme")
def test_a_folder_per_class_is_planned_with_the_own_grid(repository, clone):
    """The grid file works for any card: nothing but the name of the task is changed."""
    write_card(repository, clone, "knees", "Knee")
    for number in range(24):
        name = f"p{number:02d}_left.png"
        folder = clone.parent / "data" / "knees" / ("healthy", "osteoarthritis")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(folder / name)
    own = (repository / "grids" / "own.yaml").read_text("utf-8")
    assert "make plan GRID=own DATA=../data" in block(repository, "sh", "GRID=own")
    (clone / "grids" / "own.yaml").write_text(re.sub(r"\[chest_xray\]", "[knees]", own))
    environment = small_grid.environment(clone) | {"MEDLIB_DATA": str(clone.parent / "data")}
    command = [sys.executable, *small_grid.STUDY, "plan", "own"]
    how = {"cwd": clone, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(re.findall(r"× (\w+)", done.stdout)) >= {"prepare", "extract", "finetune", "look"}
    assert "The frozen half" in done.stdout and "The fine-tuned half" in done.stdout
    assert "Not counted" not in done.stdout
    environment["MEDLIB_DATA"] = str(clone.parent / "nowhere")
    done = subprocess.run(command, **how)
    assert "Not counted: knees (its images were not found" in done.stdout


def test_the_own_grid_has_no_words_and_no_numbers_of_another_task(repository):
    own = yaml.safe_load((repository / "grids" / "own.yaml").read_text("utf-8"))
    assert len(own["tasks"]) == 1 and "label_fraction" not in own["finetuned"]
    captions = [
        yaml.safe_load((repository / "grids" / f"{name}.yaml").read_text("utf-8"))["caption"]
        for name in ("pocket", "demo")
    ]
    assert own["caption"] not in captions
    others = {task.split("_")[0] for task in cards.tasks()}
    assert not [word for word in others if word in own["title"].lower() + own["caption"].lower()]


def test_every_data_set_of_a_card_stands_in_the_table_with_its_source_and_licence(repository):
    text = (repository / "README.md").read_text("utf-8")
    section = text.split("## Where the data are")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    named = {task: row for row in rows for task in re.findall(r"`(\w+)`", row[0])}
    assert set(named) == set(cards.tasks()) - {"other_chest"}  # there are only phantoms of it
    for task, (_, _, source, _, licence) in named.items():
        card = cards.read(task)
        assert (card.source, card.licence) == (source, licence.removesuffix(" |"))


@pytest.mark.xdist_group("readme")
def test_volumes_with_a_table_are_prepared_with_one_card(repository, clone):
    card = write_card(repository, clone, "adrenals", "Adrenal")
    table = pd.read_csv(io.StringIO(block(repository, "csv", "diagnosis")), dtype=str)
    rng, lines = np.random.default_rng(0), []
    for number in range(20):
        path = f"mri/s{number:03d}.nii.gz"
        row = {"file": path, "patient": f"p{number:02d}", "diagnosis": card["classes"][number % 2]}
        lines.append(table.iloc[0].to_dict() | row)
        file = clone.parent / "data" / "adrenals" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        volume = np.zeros((20, 20, 7), np.float32)
        volume[2:18, 2:18] = rng.random((16, 16, 7))
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
    pd.DataFrame(lines).to_csv(clone.parent / "data" / "adrenals" / "scans.csv", index=False)
    rows, images = follow(repository, clone, "adrenals")
    assert images.shape == (60, 32, 32, 3)
    assert rows.groupby("fold")["label"].value_counts().eq(2).all()
    assert (rows["age"] == "54").all()


@pytest.mark.xdist_group("readme")
def test_dicom_files_with_a_table_are_prepared_with_one_card(repository, clone):
    card = write_card(repository, clone, "hands", "Hand radiographs")
    folder = clone.parent / "data" / "hands"
    lines = block(repository, "csv", "accession_number").splitlines()[:1]
    for number in range(20):
        rng = np.random.default_rng(number)
        pixels = np.kron(rng.integers(4096, size=(9, 8), dtype=np.uint16), np.ones((6, 6), "u2"))
        window = {"WindowCenter": "2048", "WindowWidth": "4096", "AccessionNumber": f"A{number}"}
        tags = {"PatientID": f"patient {number // 2}", "Manufacturer": "Maker"}
        made_dicom.write(folder / f"export{number % 3}" / f"IM{number}", pixels, **tags, **window)
        lines.append(f"A{number},{number // 2 % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    rows, images = follow(repository, clone, "hands")
    assert images.shape == (20, 32, 32, 3)
    assert rows["label"].value_counts().to_dict() == dict.fromkeys(card["classes"], 10)
    assert rows.groupby("patient_id")["fold"].nunique().eq(1).all()
    assert rows["patient_id"].nunique() == 10 and set(rows["manufacturer"]) == {"Maker"}
    assert images.std() > 30  # the window shows them


@pytest.mark.xdist_group("readme")
def test_a_result_is_used_on_new_images_as_the_readme_says(repository, clone):
    text = (repository / "README.md").read_text("utf-8")
    section = text.split("## Use the result\n")[1].split("\n## ")[0]
    assert len(section.strip().splitlines()) <= 25
    commands = block(repository, "sh", "medlib.predict")
    run = re.search(r"results/demo/runs/(\w+)/([\w-]+)/frozen-linear/seed0", commands)
    asked = {"task": run[1], "backbone": run[2], "image_size": 28, "results": "../results/demo"}
    how = {"cwd": clone, "env": small_grid.environment(clone), "capture_output": True, "text": True}
    probe = [sys.executable, "-m", "medlib.grid.notebooks", "notebooks/03_probe_features.ipynb"]
    probe += ["results/out.ipynb", "--parameters", json.dumps(asked | {"heads": ["linear"]})]
    done = subprocess.run(probe, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    (clone / "figures" / "demo").mkdir(parents=True)
    (clone / "figures" / "demo" / "answer.md").write_text("the answer")
    new = clone.parent / "new_radiographs"
    new.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(255, size=(40, 50), dtype=np.uint8)
        Image.fromarray(pixels).save(new / f"{number}.png")
    commands = commands.replace(".venv/bin/python", shlex.quote(sys.executable))
    done = subprocess.run(commands, shell=True, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the answer" in done.stdout and "for demonstration" in done.stdout
    table = pd.read_csv(clone / "predictions.csv")
    assert table["sample_id"].tolist() == ["0.png", "1.png", "2.png"]
    classes = list(cards.read(run[1]).classes)
    assert set(table["class"]) <= set(classes) and table["unusual"].all()  # it is noise
    assert table[[f"prob_{name}" for name in classes]].sum(axis=1).to_numpy() == pytest.approx(1)
    command = block(repository, "sh", "11_test_elsewhere")
    done = subprocess.run(
        command.replace(".venv/bin/python", shlex.quote(sys.executable)), shell=True, **how
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tested = pd.read_csv(clone / "figures" / "demo" / f"external_{run[1]}.csv")
    assert set(tested["tested_on"]) == {run[1], "other_chest"}
    assert (clone / "figures" / "demo" / f"carried_{run[1]}.md").is_file()


def test_every_layout_stands_in_the_table_of_layouts(repository):
    text = (repository / "data_manifests" / "README.md").read_text("utf-8")
    section = text.split("## Layouts")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.M)) - {"layout"}
    assert named == set(reader.LAYOUTS)
    section = text.split("## The card")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", section, re.M))))
    assert named == set(cards.Card.model_fields) - {"task"} | {"like"}
    section = text.split("## Volumes")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.M)) - {"volumes"}
    assert named == set(cards.Volumes.model_fields)


def test_every_file_that_the_readme_links_to_is_there(repository):
    text = (repository / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (repository / link).exists()]
    assert missing == [] and len(links) > 8


def test_the_tree_in_the_readme_names_what_is_there(repository):
    text = (repository / "README.md").read_text("utf-8")
    tree = text.split("## The tree")[1].split("```")[1]
    lines = tree.strip("\n").splitlines()
    named = ["medlib/" * line.startswith("  ") + line.split()[0] for line in lines]
    assert [name for name in named if not (repository / name).exists()] == []
