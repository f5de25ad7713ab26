"""A grid is checked as a whole before anything runs."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from medlib.grid import gridfile, records


def write(tmp_path, **changes):
    content = {
        "title": "a grid",
        "data": "phantoms",
        "tasks": ["fundus_pm"],
        "seeds": [0, 1],
        "frozen": {"backbones": ["vit_tiny-random"], "image_size": 64, "heads": ["linear"]},
        "finetuned": {"backbones": ["vit_tiny-random"], "image_size": 32},
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.mark.parametrize("name", ["demo", "pocket", "paper"])
def test_every_committed_grid_can_be_read(repository, name):
    assert len(gridfile.read(repository / "grids" / f"{name}.yaml")["tasks"]) == 6


def test_the_paper_grid_has_its_six_backbones_both_regimes_and_five_seeds(repository):
    paper = gridfile.read(repository / "grids" / "paper.yaml")
    six = {"vgg16-imagenet", "resnet50-imagenet", "densenet121-imagenet",
           "dinov2_small", "dinov2_base", "dinov2_large"}  # fmt: skip
    assert six <= set(paper["frozen"]["backbones"]) == set(paper["finetuned"]["backbones"])
    assert len(paper["seeds"]) == 5


def test_everything_wrong_is_named_at_once(tmp_path):
    wrong = write(
        tmp_path,
        sed=1,
        tasks=["fundos"],
        frozen={"backbones": ["vit_tny-random"], "image_size": 64, "heads": ["lineal"]},
        finetuned={"backbones": ["dinov2_small"], "image_size": 64, "epoch": 3},
    )
    with pytest.raises(ValueError) as error:
        gridfile.read(wrong)
    for part in (
        "field 'sed'",
        "task 'fundos'. Did you mean 'fundus_pm'?",
        "'vit_tny-random'. Did you mean 'vit_tiny-random'?",
        "head 'lineal'. Did you mean 'linear'?",
        "multiple of 14, not 64; the nearest are 56 and 70",
        "setting of finetuned 'epoch'. Did you mean 'epochs'?",
    ):
        assert part in str(error.value)


def test_an_unknown_grid_names_those_that_there_are(repository):
    with pytest.raises(ValueError, match="'pokcet'. Did you mean 'pocket'"):
        gridfile.read(repository / "grids" / "pokcet.yaml")


def test_a_grid_without_any_regime_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no regime: none of frozen, finetuned, lora"):
        gridfile.read(write(tmp_path, frozen={}, finetuned={}))


def test_what_could_not_be_compared_at_the_end_is_refused_at_the_beginning(tmp_path):
    frozen = {"backbones": ["vit_tiny-random"], "image_size": 64, "heads": ["knn"]}
    frozen["label_fractions"] = [0.1, 0.5]
    with pytest.raises(ValueError) as error:
        gridfile.read(write(tmp_path, frozen=frozen, finetuned={}))
    assert "heads lack linear" in str(error.value)
    assert "label_fractions lack 1.0" in str(error.value)
    # With fine-tuned arms on half of the labels, frozen ones are compared with those.
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": 0.5}
    gridfile.read(write(tmp_path, frozen=frozen | {"heads": ["linear"]}, finetuned=tuned))


def test_settings_of_lora_belong_to_lora_alone(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "lora_rank": 4}
    assert gridfile.read(write(tmp_path, lora=tuned))["lora"]["lora_rank"] == 4
    with pytest.raises(ValueError, match="setting of finetuned 'lora_rank'"):
        gridfile.read(write(tmp_path, finetuned=tuned))


@pytest.mark.parametrize("regime", ["finetuned", "lora"])
def test_every_setting_of_a_trained_regime_is_a_parameter_of_its_notebook(repository, regime):
    notebook = json.loads((repository / "notebooks" / "04_fine_tune.ipynb").read_text())
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    parameters = {line.partition(":")[0] for line in cell["source"]}
    assert set(gridfile.SETTINGS[regime]) - {"backbones", "seeds"} <= parameters


def test_frozen_features_are_probed_at_the_labels_of_fine_tuning_too(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32}
    tuned |= {"label_fraction": {"fundus_pm": 0.1}}
    asked = gridfile.read(write(tmp_path, finetuned=tuned))
    assert gridfile.label_fraction(asked, "fundus_pm") == 0.1
    assert gridfile.label_fractions(asked, "fundus_pm") == [1.0, 0.1]
    assert gridfile.image_sizes(asked) == [32, 64]
    lora = {"backbones": ["vit_tiny-random"], "image_size": 48, "label_fraction": 0.2}
    asked = gridfile.read(write(tmp_path, finetuned=tuned, lora=lora))
    assert gridfile.label_fraction(asked, "fundus_pm", "lora") == 0.2
    assert gridfile.label_fractions(asked, "fundus_pm") == [1.0, 0.2, 0.1]
    assert gridfile.image_sizes(asked) == [32, 48, 64]


def test_a_label_fraction_for_each_task_must_cover_all_tasks(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": {"chest": 0.1}}
    with pytest.raises(ValueError, match="no number for fundus_pm"):
        gridfile.read(write(tmp_path, finetuned=tuned))


def test_missing_data_and_weights_stop_a_grid_before_its_first_job(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLIB_DATA", str(tmp_path))
    monkeypatch.delenv("MEDLIB_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = gridfile.read(
        write(
            tmp_path,
            data="real",
            frozen={
                "backbones": ["dinov2_small", "vgg16-imagenet"],
                "image_size": 56,
                "heads": ["linear"],
            },  # fmt: skip
        )
    )
    with pytest.raises(ValueError) as error:
        gridfile.check_inputs(asked)
    assert "no folder 'ichallenge_pm'" in str(error.value)
    assert "No weights for dinov2_small" in str(error.value)
    assert "vgg16.tv_in1k" in str(error.value)


def test_phantoms_and_random_weights_need_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDLIB_DATA", raising=False)
    assert gridfile.check_inputs(gridfile.read(write(tmp_path))) is None


def plan(repository, name):
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--nolock"]
    done = subprocess.run(
        [*command, "--config", f"grid={name}", "--forceall"],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.M)}


def test_planning_counts_the_jobs_of_each_rule_without_running_any(repository):
    # 6 tasks × 13 backbones, fine-tuned for 5 seeds; nothing needs data or weights to be planned.
    jobs = plan(repository, "paper")
    assert jobs == {"prepare": 6, "extract": 78, "probe": 78, "finetune": 390,
                    "summarise": 78, "collect": 1,
                    "compare": 1, "costs": 1, "claims": 1, "look": 6, "write_report": 1, "all": 1,
                    "total": 642}  # fmt: skip


def test_the_runs_of_a_grid_are_those_of_its_heads_labels_and_seeds(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": 0.5}
    lora = {"backbones": ["vit_tiny-random"], "image_size": 32}
    asked = gridfile.read(write(tmp_path, finetuned=tuned, lora=lora))
    found = [str(path.relative_to("r/runs/fundus_pm/vit_tiny-random")) for path in
             gridfile.runs(asked, "r")]  # fmt: skip
    assert found == [
        "frozen-linear/seed0",  # on all labels nothing is random in it: one seed
        "frozen-linear-fraction0.5/seed0",
        "frozen-linear-fraction0.5/seed1",
        "finetuned-fraction0.5/seed0",
        "finetuned-fraction0.5/seed1",
        "lora/seed0",
        "lora/seed1",
    ]


def test_runs_are_there_when_their_job_is_complete(tmp_path):
    asked = gridfile.read(write(tmp_path, caption="Phantoms."))
    frozen, *tuned = gridfile.runs(asked, tmp_path)
    assert records.caption(asked, tmp_path) == "Phantoms. Not the whole grid: 0 of 3 runs."
    for folder in (frozen, *tuned[:1]):
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    assert records.done(asked, tmp_path) == tuned[:1]  # the probes were killed half-way
    records.last_output(frozen).touch()
    assert records.done(asked, tmp_path) == [frozen, *tuned[:1]]
    tuned[1].mkdir()
    (tuned[1] / "run.json").touch()
    assert records.caption(asked, tmp_path) == "Phantoms."


def test_a_regime_may_have_seeds_of_its_own(tmp_path):
    frozen = {"backbones": ["micro_resnet-random"], "image_size": 64, "heads": ["linear"],
              "label_fractions": [0.5], "seeds": [0, 1, 2]}  # fmt: skip
    tuned = {"backbones": ["micro_resnet-random"], "image_size": 64, "seeds": [7]}
    asked = gridfile.read(write(tmp_path, frozen=frozen, finetuned=tuned))
    assert gridfile.seeds(asked, "frozen") == [0, 1, 2] and gridfile.seeds(asked, "finetuned") == [
        7
    ]
    found = [f"{path.parent.name}/{path.name}" for path in gridfile.runs(asked, "r")]
    assert found == ["frozen-linear/seed0", "frozen-linear-fraction0.5/seed0",
                     "frozen-linear-fraction0.5/seed1", "frozen-linear-fraction0.5/seed2",
                     "finetuned/seed7"]  # fmt: skip
