"""medlib.grid.summarise: the rows that notebook 05 reads, made by a command for each backbone."""

import shutil
import sys
from functools import partial

import pandas as pd
import yaml
from made_runs import predictions, write

from medlib.grid import address, jobs, summarise
from medlib.stats import summaries


def test_the_command_makes_the_rows_that_notebook_05_reads(tmp_path, monkeypatch, repository):
    made, make = [], summaries._summarise_cell
    monkeypatch.setattr(summaries, "_summarise_cell", lambda *a: made.append(a) or make(*a))
    results, task, backbone = tmp_path / "r", "fundus_pm", "resnet50-imagenet"
    frozen = {"backbones": [backbone], "image_size": 64, "heads": ["linear"]}
    frozen["label_fractions"] = [1.0, 0.5]
    finetuned = {"backbones": ["dinov2_small"], "image_size": 56, "label_fraction": 0.5}
    asked = {"title": "a", "data": "phantoms", "tasks": [task], "seeds": [0, 1], "frozen": frozen}
    asked |= {"finetuned": finetuned, "collect": {"resamples": 30}}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(asked))

    again = pd.DataFrame({"auroc": [0.5, 0.7, 0.6]})

    def save(backbone, regime, label_fraction, seed):
        run = address.Address(task, backbone, regime, "linear", label_fraction, seed)
        folder = run.folder(results)
        cell = {"task": task, "backbone": backbone, "pretraining": "imagenet", "regime": regime}
        cell |= {"head": "linear", "label_fraction": label_fraction, "seed": seed}
        redraws = again if regime == "frozen" else None
        write(folder, cell, predictions("mri", seed), redraws)

    for seed, fraction in ((0, 1.0), (0, 0.5), (1, 0.5)):
        save(backbone, "frozen", fraction, seed)
    (results / "runs" / task / backbone / "frozen.csv").touch()
    (results / "manifests").mkdir()
    shutil.copy(repository / "data_manifests" / f"{task}.yaml", results / "manifests")
    words = [str(tmp_path / "g.yaml"), str(results), task, backbone]
    monkeypatch.setattr(sys, "argv", ["summarise", *words])
    assert summarise.main() == 0 and len(made) == 2
    # The runs of another backbone change none of these rows.
    save("dinov2_small", "finetuned", 0.5, 0)
    kept = partial(address.intervals, results)
    table, over_seeds = summaries.summarise(address.find_runs(results), 30, kept=kept)
    assert len(made) == 2 + 1 and set(table["regime"]) == {"frozen", "finetuned"}
    training = over_seeds[over_seeds["metric"] == "auroc"].groupby("regime")["training"].unique()
    assert training["frozen"].tolist() == ["redraws"] and training["finetuned"].tolist() == [""]
    assert summarise.main() == 0 and len(made) == 2 + 1


def test_the_command_records_why_it_could_not_and_tries_only_what_is_transient_again(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "g.yaml").write_text("title: of nothing else")
    kept = address.intervals(tmp_path / "r", "task", "backbone")
    words = ["summarise", str(tmp_path / "g.yaml"), str(tmp_path / "r"), "task", "backbone"]
    monkeypatch.setattr(sys, "argv", words)
    assert summarise.main() == 1 and "g.yaml" in capsys.readouterr().err
    record = jobs.failed(kept)
    assert record["line"].startswith(f"{tmp_path / 'g.yaml'}") and not record["transient"]
    monkeypatch.setattr(sys, "argv", [*words, "--attempt", "2"])
    assert summarise.main() == 1 and not capsys.readouterr().err
