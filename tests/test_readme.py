"""What the README tells a newcomer to write is what medlib takes."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from medlib import backbones, layouts, manifest
from medlib.backbones import Backbone


def block(repository, kind, containing):
    text = (repository / "README.md").read_text("utf-8")
    blocks = re.findall(rf"```{kind}\n(.*?)```", text, re.S)
    (found,) = [block for block in blocks if containing in block]
    return found


def test_a_backbone_is_one_row(repository, monkeypatch):
    row = eval(block(repository, "python", "Backbone("), {"Backbone": Backbone})[0]
    monkeypatch.setitem(backbones.TABLE, row.name, row)
    model, digest = backbones.build("convnext_tiny-random", 32)
    assert digest.startswith("random-") and model.num_features == 768


def test_a_task_is_a_card_and_a_csv(repository, tmp_path):
    card = block(repository, "yaml", "Knee")
    assert len(card.splitlines()) < 15
    (tmp_path / "my_task.yaml").write_text(card)
    example = pd.read_csv(io.StringIO(block(repository, "csv", "sample_id")), dtype=str)
    rows, rng = [], np.random.default_rng(0)
    for number in range(20):
        label = yaml.safe_load(card)["classes"][number % 2]
        row = example.iloc[0].to_dict() | {
            "sample_id": f"k{number}",
            "patient_id": f"p{number}",
            "path": f"knees/left/k{number}.png",
            "label": label,
        }
        rows.append(row)
        path = tmp_path / "data" / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(255, size=(9, 9, 3), dtype=np.uint8)).save(path)
    given = tmp_path / "my_task.csv"
    pd.DataFrame(rows).to_csv(given, index=False)
    read = manifest.read_card("my_task", tmp_path)
    prepared, _ = layouts.prepare(read, tmp_path / "data", given=given)
    assert prepared.groupby("fold")["label"].value_counts().eq(2).all()


def test_every_file_that_the_readme_links_to_is_there(repository):
    text = (repository / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not Path(repository / link).exists()]
    assert missing == [] and len(links) > 8


def test_the_tree_in_the_readme_names_what_is_there(repository):
    text = (repository / "README.md").read_text("utf-8")
    tree = text.split("## The tree")[1].split("```")[1]
    named = [line.split()[0] for line in tree.strip().splitlines()]
    assert [name for name in named if not (repository / name).exists()] == []
