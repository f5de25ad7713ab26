"""A grid is checked as a whole before anything runs."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from medlib import files
from medlib.core import settings
from medlib.data import cards
from medlib.grid import address, gridfile, states
from medlib.grid.study import one_more_seed
from medlib.stats.runs import is_main

GOOD = """
title: a grid
data: phantoms
tasks: [fundus_pm]
seeds: [0, 1]
frozen: {backbones: [vit_tiny-random], image_size: 64, heads: [linear]}
finetuned: {backbones: [vit_tiny-random], image_size: 32}
"""


def write(tmp_path, **changes):
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(GOOD) | changes))
    return path


@pytest.mark.parametrize(("name", "tasks"), [("demo", 6), ("pocket", 9), ("paper", 10)])
def test_every_committed_grid_can_be_read(repository, name, tasks):
    assert len(gridfile.read(repository / "grids" / f"{name}.yaml")["tasks"]) == tasks


def test_the_paper_grid_has_its_six_backbones_both_regimes_and_five_seeds(repository):
    paper = gridfile.read(repository / "grids" / "paper.yaml")
    six = {f"{name}-imagenet" for name in ("vgg16", "resnet50", "densenet121")}
    six |= {"dinov2_small", "dinov2_base", "dinov2_large"}
    assert six <= set(paper["frozen"]["backbones"]) == set(paper["finetuned"]["backbones"])
    assert len(paper["seeds"]) == 5


def test_the_paper_grid_has_the_papers_tasks_and_then_their_stand_ins(repository):
    paper = gridfile.read(repository / "grids" / "paper.yaml")
    assert paper["tasks"] == [*cards.MRI, *cards.PUBLIC, *cards.STAND_INS.values()]
    assert cards.in_order(paper["tasks"]) == paper["tasks"]


def test_the_pocket_grid_grades_gliomas_in_three_classes_as_well(repository):
    pocket = gridfile.read(repository / "grids" / "pocket.yaml")
    three = [f"glioma_who2021_{modality}" for modality in ("t1", "t1ce", "flair")]
    assert pocket["tasks"][6:] == three
    assert cards.in_order(pocket["tasks"])[:6] == pocket["tasks"][:6]
    for task in three:
        assert gridfile.label_fraction(pocket, task) == 0.5
        assert len(cards.read(task).classes) == 3 and (cards.FOLDER / f"{task}.csv").is_file()


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
    # Fine-tuned arms have half of the labels, so frozen arms are compared with them there.
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": 0.5}
    gridfile.read(write(tmp_path, frozen=frozen | {"heads": ["linear"]}, finetuned=tuned))


def written(tmp_path, old, new):
    path = tmp_path / "test.yaml"
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    assert old in GOOD
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0, 1]", "['0']", "seeds[0] is '0', but must be a valid integer"),
        ("[0, 1]", "[true]", "seeds[0] is True, but must be a valid integer"),
        ("[0, 1]", "[-1]", "seeds[0] is -1, but must be greater than or equal to 0"),
        ("[0, 1]", "[0, 1, 0]", "seeds hold 0 more than once"),
        ("[0, 1]", "[]", "seeds is missing"),
        ("[0, 1]", "0", "seeds is 0, but must be a valid list"),
        ("[fundus_pm]", "[fundus_pm, fundus_pm]", "tasks hold 'fundus_pm' more than once"),
        ("title: a grid", "title: ''", "title is missing"),
        ("64", "'64'", "frozen: image_size is '64', but must be a valid integer"),
        ("64, ", "64, label_fractions: [1.0, 1.5], ", "frozen: label_fractions[1] is 1.5, but"),
        ("64, ", "64, label_fractions: [1.0, 0], ", "frozen: label_fractions[1] is 0, but"),
        ("64, ", "64, redraws: -1, ", "frozen: redraws is -1, but must be greater than or equal"),
        ("64, ", "64, redraws: 2.5, ", "frozen: redraws is 2.5, but must be a valid integer"),
        ("32", "32, redraws: 100", "Unknown setting of finetuned 'redraws'"),
        ("frozen:", "primary: frosen\nfrozen:", "'frosen'. Did you mean 'frozen'?"),
        ("frozen:", "primary: [frozen]\nfrozen:", "primary is ['frozen'], but must be a valid"),
        ("32", "32, label_fraction: .nan", "finetuned: label_fraction is nan, but"),
        ("32", "32, label_fraction: {fundus_pm: 2}", "label_fraction.fundus_pm is 2, but"),
        ("32", "32, epochs: 0", "finetuned: epochs is 0, but"),
        ("32", "32, epochs: '3'", "finetuned: epochs is '3', but"),
        ("32", "32, learning_rates: [1e-3, -1]", "finetuned: learning_rates is"),
        ("32", "32, balanced: 1", "finetuned: balanced is 1, but"),
        ("32", "32, learning_rates: [.inf]", "finetuned: learning_rates is (inf,), but"),
        ("32", "32, learning_rates: [1e-3, 0.001]", "learning_rates hold 0.001 more than once"),
        ("32", "32, epochs: 1000000000", "1000000000 is larger than any number of a grid may be"),
        ("[0, 1]", "[99999999999999999999]", "is larger than any number of a grid may be"),
        ("frozen:", "seeds: [3]\nfrozen:", "'seeds' is stated before"),
        ("frozen:", "collect: {resamples: -1}\nfrozen:", "collect: resamples is -1, but"),
        ("frozen:", "thresholds: {sensitivity: 1}\nfrozen:", "thresholds: sensitivity is 1, but"),
        ("frozen:", "thresholds: {prevalence: {fundus_pm: {mypia: 0.1}}}\nfrozen:", "'mypia'"),
        ("frozen:", "thresholds: {prevalence: {chest_xray: {}}}\nfrozen:", "task 'chest_xray'"),
        ("frozen:", "thresholds: {prevalence: {fundus_pm: 0.1}}\nfrozen:", "fundus_pm is 0.1, but"),
        ("frozen:", "lora: null\nfrozen:", "lora is None, but must be a mapping of names"),
        ("frozen:", "x: !!python/object/apply:os.system [ls]\nfrozen:", "it is not plain YAML: "),
        ("frozen:", "x: 2026-99-99\nfrozen:", "it is not plain YAML: "),
        (GOOD, "", "it must hold a mapping with the fields title, caption, primary, data"),
        (GOOD, "- tasks", "it must hold a mapping with the fields title, caption, primary, data"),
        (GOOD, "[" * 9999, "it is not plain YAML: "),
        (GOOD, "a: &a [*a]", "Unknown field 'a'"),
        (GOOD, "#" * 70_000, "it is larger than 65,536 bytes"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_of_one_message(tmp_path, old, new, message):
    with pytest.raises(ValueError) as error:
        gridfile.read(written(tmp_path, old, new))
    head, *lines = str(error.value).splitlines()
    assert head.endswith("test.yaml cannot be run:")
    assert all(line.startswith("  - ") for line in lines) and message in str(error.value)
    if old != GOOD:
        assert len(lines) == 1


def test_a_problem_is_told_with_the_line_on_which_it_stands(tmp_path):
    path = tmp_path / "test.yaml"
    path.write_text(
        "title: lines\ndata: phantoms\ntasks: [fundus_pm]\nseeds:\n  - 0\n  - -1\n"
        "frozen:\n  backbones: [resnet50-random]\n  heads: [linear, knm]\n"
        "  label_fractions:\n    - 1.0\n    - 2\nfinetuned:\n  backbones: [resnet50-random]\n"
        "  image_size: 32\n  epoch: 3\n"
    )
    with pytest.raises(ValueError) as error:
        gridfile.read(path)
    lines = sorted(line[4:].split(":")[0] for line in str(error.value).splitlines()[1:])
    assert lines == ["line 12", "line 16", "line 6", "line 8", "line 9"]
    told = {line[4:].split(": ", 1)[0]: line for line in str(error.value).splitlines()[1:]}
    assert "image_size is missing" in told["line 8"]  # the line of the part that lacks it
    assert "seeds[1] is -1" in told["line 6"] and "'knm'. Did you mean 'knn'?" in told["line 9"]
    assert "Did you mean 'epochs'?" in told["line 16"]


def test_aliases_within_aliases_are_refused_and_a_few_are_not(tmp_path, repository):
    bomb = "a0: &a0 [x, x]\n"
    bomb += "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(30))
    with pytest.raises(ValueError, match=r"more than 10 aliases \(\*name\)"):
        gridfile.read(written(tmp_path, GOOD, bomb))
    assert "*backbones" in (repository / "grids" / "paper.yaml").read_text("utf-8")


def test_numbers_are_what_they_look_like_and_only_what_is_stated_is_passed_on(tmp_path):
    rates = "image_size: 32, learning_rates: [1e-3, 2E+1, 0.5], lora_rank: 4, label_fraction: 1"
    text = GOOD.replace("image_size: 32", rates).replace("finetuned", "lora")
    grid = gridfile.read(written(tmp_path, GOOD, text))
    assert grid["lora"] == {
        "backbones": ["vit_tiny-random"],
        "image_size": 32,
        "lora_rank": 4,
        "label_fraction": 1.0,
        "learning_rates": [0.001, 20.0, 0.5],
    }
    assert grid["finetuned"] == grid["prepare"] == grid["collect"] == {}


def test_thresholds_of_a_task_have_its_own_prevalence(tmp_path):
    classes = cards.read("fundus_pm").classes
    stated = f"thresholds: {{sensitivity: 0.9, prevalence: {{fundus_pm: {{{classes[1]}: 0.02}}}}}}"
    grid = gridfile.read(written(tmp_path, "frozen:", f"{stated}\nfrozen:"))
    assert gridfile.thresholds(grid, "fundus_pm") == {
        "sensitivity": 0.9,
        "prevalence": {classes[1]: 0.02},
    }
    without = gridfile.read(written(tmp_path, "frozen:", "frozen:"))
    assert gridfile.thresholds(without, "fundus_pm") == {"prevalence": {}}


@dataclasses.dataclass(frozen=True)
class WithOneMore(settings.FineTuning):
    dropout: float = 0.5


def test_models_are_saved_where_the_grid_says_so(tmp_path):
    task = "chest_xray"
    assert gridfile.saved_models(gridfile.read(write(tmp_path)), task) == {}
    assert gridfile.saved_models(gridfile.read(write(tmp_path, save_models=False)), task) == {}
    asked = gridfile.read(write(tmp_path, save_models=True))
    assert gridfile.saved_models(asked, task) == {"save_models": True}
    with pytest.raises(ValueError, match="save_models is 'yes', but must be a valid boolean"):
        gridfile.read(write(tmp_path, save_models="yes"))


def test_models_are_tested_elsewhere_where_the_grid_says_so(tmp_path):
    own = {"tasks": ["chest_xray", "fundus_pm"], "external": {"chest_xray": ["other_chest"]}}
    grid = gridfile.read(write(tmp_path, **own, elsewhere={"recalibrate": 8}))
    assert gridfile.prepared(grid) == ["chest_xray", "fundus_pm", "other_chest"]
    assert gridfile.elsewhere(grid, "chest_xray") == {"others": ["other_chest"], "recalibrate": 8}
    assert gridfile.elsewhere(grid, "fundus_pm")["others"] == []
    # A model must be there to be tested elsewhere; that of another task need not.
    assert gridfile.saved_models(grid, "chest_xray") == {"save_models": True}
    assert gridfile.saved_models(grid, "fundus_pm") == {}
    assert {run.task for run in gridfile.runs(grid)} == {"chest_xray", "fundus_pm"}
    assert gridfile.asks_for(grid, Path("images/other_chest/x")) is True
    plain = gridfile.read(write(tmp_path))
    assert gridfile.prepared(plain) == plain["tasks"]
    assert gridfile.asks_for(plain, Path("images/other_chest/x")) is False


def test_data_sets_that_cannot_test_a_task_are_refused_at_once(tmp_path):
    external = {"fundus": ["other_chest"], "chest_xray": ["other_chst", "chest_xray", "fundus_pm"]}
    with pytest.raises(ValueError) as refused:
        gridfile.read(write(tmp_path, tasks=["chest_xray"], external=external))
    said = str(refused.value)
    assert "'fundus'" in said and "other_chst" in said and "other_chest" in said
    assert "chest_xray cannot be tested on itself" in said
    assert "fundus_pm does not say that models of chest_xray may be tested on it" in said


def test_a_new_setting_of_training_is_one_field(monkeypatch):
    """The names of the settings, and their allowed values, come from FineTuning alone."""
    ours = {"image_size", "backbones", "seeds", "label_fraction", "recipe"}
    fields = {field.name for field in dataclasses.fields(settings.FineTuning)}
    assert set(gridfile.SETTINGS["lora"]) - ours == fields
    own = {name for name in fields if not name.startswith("lora_")}
    assert set(gridfile.SETTINGS["finetuned"]) - ours == own
    source = Path(gridfile.__file__).read_text("utf-8")
    assert not re.findall("|".join(fields), source)
    monkeypatch.setattr(settings, "FineTuning", WithOneMore)
    assert gridfile._trained("lora").model_fields["dropout"].default == 0.5


def test_a_recipe_is_settings_that_the_grid_may_overrule(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "recipe": "gentle"}
    read = gridfile.read(write(tmp_path, finetuned=tuned | {"warmup": 0.3}))["finetuned"]
    asked = {"backbones": ["vit_tiny-random"], "image_size": 32, "warmup": 0.3}
    assert read == settings.RECIPES["gentle"] | asked and read["probe_first"] is True
    with pytest.raises(ValueError, match="Unknown recipe 'gentl'. Did you mean 'gentle'"):
        gridfile.read(write(tmp_path, finetuned=tuned | {"recipe": "gentl"}))
    for recipe in settings.RECIPES.values():
        settings.FineTuning(**recipe)


def test_settings_of_lora_belong_to_lora_alone(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "lora_rank": 4}
    assert gridfile.read(write(tmp_path, lora=tuned))["lora"]["lora_rank"] == 4
    with pytest.raises(ValueError, match="setting of finetuned 'lora_rank'"):
        gridfile.read(write(tmp_path, finetuned=tuned))


@pytest.mark.parametrize("regime", ["finetuned", "lora"])
def test_every_setting_of_a_trained_regime_is_a_parameter_of_its_notebook(repository, regime):
    names = set(parameters(repository, "04_fine_tune"))
    assert set(gridfile.SETTINGS[regime]) - {"backbones", "seeds", "recipe"} <= names


def test_frozen_features_are_probed_at_the_labels_of_fine_tuning_too(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32}
    tuned |= {"label_fraction": {"fundus_pm": 0.1}}
    grid = gridfile.read(write(tmp_path, finetuned=tuned))
    assert gridfile.label_fraction(grid, "fundus_pm") == 0.1
    assert gridfile.label_fractions(grid, "fundus_pm") == [1.0, 0.1]
    assert gridfile.image_sizes(grid) == [32, 64]
    lora = {"backbones": ["vit_tiny-random"], "image_size": 48, "label_fraction": 0.2}
    grid = gridfile.read(write(tmp_path, finetuned=tuned, lora=lora))
    assert gridfile.label_fraction(grid, "fundus_pm", "lora") == 0.2
    assert gridfile.label_fractions(grid, "fundus_pm") == [1.0, 0.2, 0.1]
    assert gridfile.image_sizes(grid) == [32, 48, 64]


def test_frozen_heads_are_trained_again_on_redraws_where_backbones_are_compared(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32}
    lora = tuned | {"label_fraction": 0.2}
    tuned |= {"label_fraction": {"fundus_pm": 0.1, "chest_xray": 0.3}}
    frozen = {"backbones": ["vit_tiny-imagenet"], "image_size": 32, "heads": ["linear", "knn"]}
    frozen["label_fractions"] = [0.5, 1.0, 0.1]
    both = {"tasks": ["fundus_pm", "chest_xray"], "frozen": frozen, "finetuned": tuned}
    for parts, expected in (
        (both, {"fundus_pm": [1.0, 0.1], "chest_xray": [1.0, 0.3]}),
        (both | {"lora": lora}, {"fundus_pm": [1.0, 0.2, 0.1], "chest_xray": [1.0, 0.3, 0.2]}),
        (both | {"finetuned": {}}, {"fundus_pm": [1.0], "chest_xray": [1.0]}),
    ):
        grid = gridfile.read(write(tmp_path, **parts))
        found = {task: gridfile.redrawn_fractions(grid, task) for task in grid["tasks"]}
        assert found == expected
        # These shares are those of the main comparison. All of them are probed.
        table = pd.DataFrame([dataclasses.asdict(run) for run in gridfile.runs(grid)])
        main = table[is_main(table) & (table["regime"] == "frozen")]
        for task, shares in expected.items():
            assert set(main.loc[main["task"] == task, "label_fraction"]) == set(shares)
            assert set(gridfile.label_fractions(grid, task)) >= set(shares)


def test_how_a_grid_is_judged_is_passed_on_as_it_states_it(tmp_path, repository):
    assert "primary" not in gridfile.read(write(tmp_path))
    frozen = {"backbones": ["vit_tiny-random"], "image_size": 64, "heads": ["linear"]}
    grid = gridfile.read(write(tmp_path, primary="finetuned", frozen=frozen | {"redraws": 7}))
    assert grid["primary"] == gridfile.primary(grid) == "finetuned"
    assert grid["frozen"]["redraws"] == 7
    trained = gridfile.read(write(tmp_path, frozen={}))
    assert gridfile.primary(trained) == "finetuned", "the first regime that the grid has"
    with pytest.raises(ValueError, match="primary is 'lora', a regime that the grid does not have"):
        gridfile.read(write(tmp_path, primary="lora"))
    # A setting that a grid does not state has the notebook's default, and the two agree.
    for part, name, notebook in (
        (gridfile.Frozen, "redraws", "03_probe_features"),
        (gridfile.Collect, "resamples", "08_test_claims"),
    ):
        own = ast.literal_eval(parameters(repository, notebook)[name])
        assert own == part.model_fields[name].default


def parameters(repository, notebook):
    """The parameters of a notebook, with the text of their default."""
    text = (repository / "notebooks" / f"{notebook}.ipynb").read_text("utf-8")
    tagged = [c for c in json.loads(text)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = [line.partition("  #")[0] for cell in tagged for line in cell["source"]]
    return {line.partition(":")[0]: line.partition(" = ")[2] for line in lines}


def test_every_setting_of_frozen_backbones_is_a_parameter_of_its_notebook(repository):
    names = parameters(repository, "03_probe_features")
    assert set(gridfile.SETTINGS["frozen"]) - {"backbones"} <= set(names)
    assert {"redraws", "redrawn_fractions"} <= set(names)


def test_a_label_fraction_for_each_task_must_cover_all_tasks(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": {"chest": 0.1}}
    with pytest.raises(ValueError, match="no number for fundus_pm"):
        gridfile.read(write(tmp_path, finetuned=tuned))


def test_several_image_sizes_make_an_arm_of_each(tmp_path):
    frozen = {"backbones": ["dinov2_small", "vit_tiny-random@64"], "image_size": [28, 56, 518]}
    frozen["heads"] = ["linear"]
    tuned = {"backbones": ["dinov2_small"], "image_size": 56}
    grid = gridfile.read(write(tmp_path, frozen=frozen, finetuned=tuned, caption="Small."))
    sizes = {"dinov2_small": 28, "dinov2_small@56": 56, "dinov2_small@518": 518}
    sizes |= {"vit_tiny-random@64": 64}
    assert {n: gridfile.image_size(grid, "frozen", n) for n in grid["frozen"]["backbones"]} == sizes
    assert gridfile.image_size(grid, "finetuned", "dinov2_small") == 56
    assert gridfile.image_sizes(grid) == [28, 56, 64, 518]
    assert gridfile.all_backbones(grid) == set(sizes)
    assert {run.backbone for run in gridfile.runs(grid) if run.regime == "frozen"} == set(sizes)
    words = "Small. Image size where a name does not state it: 28 px (frozen), 56 px (finetuned)."
    assert grid["caption"] == words


def test_a_geometry_is_of_the_whole_grid_and_stands_in_every_caption(tmp_path):
    grid = gridfile.read(write(tmp_path, prepare={"geometry": "crop"}, caption="Small."))
    assert grid["caption"] == "Small. Only the centre of each image is used."
    with pytest.raises(ValueError, match="Unknown geometry 'zoom'"):
        gridfile.read(write(tmp_path, prepare={"geometry": "zoom"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": [28, 30]}, "dinov2_small@30 needs an image size that is a multiple of 14"),
        ({"image_size": [28, 28]}, "image_size hold 28 more than once"),
        ({"image_size": []}, "image_size is missing"),
        ({"image_size": [28, "56"]}, r"image_size\[1\] is '56', but must be a valid integer"),
        ({"backbones": ["dinov2_small", "dinov2_small@28"]}, "backbones hold 'dinov2_small' more"),
        ({"backbones": ["dinov2_small@x"]}, "@ must be followed by an image size in pixels"),
        ({"backbones": ["dino@28"]}, "Unknown backbone 'dino'"),
    ],
)
def test_image_sizes_that_cannot_be_are_refused(tmp_path, change, words):
    frozen = {"image_size": 28, "backbones": ["dinov2_small"], "heads": ["linear"]} | change
    with pytest.raises(ValueError, match=words):
        gridfile.read(write(tmp_path, frozen=frozen))


def plan(repository, name):
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--nolock"]
    command += ["--config", f"grid={name}", "--forceall"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.M)}


def test_planning_counts_the_jobs_of_each_rule_without_running_any(repository):
    # 10 tasks × 13 backbones, fine-tuned for 5 seeds. Three of them are random controls, embedded
    # with 5 draws of their weights. Nothing needs data or weights to be planned.
    jobs = plan(repository, "paper")
    once = ("collect", "compare", "costs", "claims", "checklist", "write_report", "all")
    once = dict.fromkeys(once, 1)
    many = {
        "prepare": 10,
        "extract": 10 * (10 + 3 * 5),
        "probe": 130,
        "finetune": 650,
        "summarise": 130,
        "look": 10,
        "operate": 10,
        "subgroups": 10,
    }
    assert jobs == once | many | {"total": 1207}


def test_the_runs_of_a_grid_are_those_of_its_heads_labels_and_seeds(tmp_path):
    tuned = {"backbones": ["vit_tiny-random"], "image_size": 32, "label_fraction": 0.5}
    lora = {"backbones": ["vit_tiny-random"], "image_size": 32}
    grid = gridfile.read(write(tmp_path, finetuned=tuned, lora=lora))
    cell = address.cell("r", "fundus_pm", "vit_tiny-random")
    runs = [str(run.folder("r").relative_to(cell)) for run in gridfile.runs(grid)]
    assert runs == [
        "frozen-linear/seed0",  # each seed draws the weights of a random control
        "frozen-linear/seed1",
        "frozen-linear-fraction0.5/seed0",
        "frozen-linear-fraction0.5/seed1",
        "finetuned-fraction0.5/seed0",
        "finetuned-fraction0.5/seed1",
        "lora/seed0",
        "lora/seed1",
    ]


def test_runs_are_there_when_their_job_is_complete(tmp_path):
    frozen = {"backbones": ["vit_tiny-random"], "image_size": 64, "heads": ["linear"], "seeds": [0]}
    grid = gridfile.read(write(tmp_path, caption="Phantoms.", frozen=frozen))
    frozen, *tuned = gridfile.runs(grid)
    assert states.caption(grid, tmp_path) == "Phantoms. Not the whole grid: 0 of 3 runs."
    for run in (frozen, *tuned[:1]):
        files.save_json(run.record(tmp_path), {"coordinates": vars(run)})
    assert states.done(grid, tmp_path) == tuned[:1]  # the probes were killed half-way
    frozen.promised(tmp_path).touch()
    assert states.done(grid, tmp_path) == [frozen, *tuned[:1]]
    files.save_json(tuned[1].record(tmp_path), {"coordinates": vars(tuned[1])})
    assert states.caption(grid, tmp_path) == "Phantoms."


def test_a_regime_may_have_seeds_of_its_own(tmp_path):
    common = {"backbones": ["micro_resnet-random"], "image_size": 64}
    frozen = common | {"heads": ["linear"], "label_fractions": [0.5], "seeds": [0, 1, 2]}
    grid = gridfile.read(write(tmp_path, frozen=frozen, finetuned=common | {"seeds": [7]}))
    assert gridfile.seeds(grid, "frozen") == [0, 1, 2] and gridfile.seeds(grid, "finetuned") == [7]
    assert [(run.arm, run.seed) for run in gridfile.runs(grid)] == [
        ("frozen-linear", 0),
        ("frozen-linear", 1),
        ("frozen-linear", 2),
        ("frozen-linear-fraction0.5", 0),
        ("frozen-linear-fraction0.5", 1),
        ("frozen-linear-fraction0.5", 2),
        ("finetuned", 7),
    ]


def test_a_seed_draws_the_weights_of_random_controls_in_both_regimes_and_no_others(tmp_path):
    both = {"backbones": ["vit_tiny-imagenet", "vit_tiny-random"], "image_size": 32}
    frozen = both | {"heads": ["linear", "mlp"], "seeds": [3, 5]}
    grid = gridfile.read(write(tmp_path, frozen=frozen, finetuned=both | {"seeds": [3, 5]}))
    assert gridfile.weight_seeds(grid, "vit_tiny-imagenet") == [0]
    assert gridfile.weight_seeds(grid, "vit_tiny-random") == [3, 5]
    runs = gridfile.runs(grid)
    linear = [(r.backbone, r.seed) for r in runs if r.regime == "frozen" and r.head == "linear"]
    # With pretrained weights nothing is random in a linear head on all labels.
    assert linear == [("vit_tiny-imagenet", 3), ("vit_tiny-random", 3), ("vit_tiny-random", 5)]
    assert sum(r.head == "mlp" for r in runs) == 4


def test_with_repeated_cross_validation_every_seed_has_folds_of_its_own(tmp_path):
    both = {"backbones": ["vit_tiny-imagenet"], "image_size": 32, "heads": ["linear"]}
    tasks = ["dermoscopy", "chest_xray"]  # cross-validated, and with an official test set
    asked = {"tasks": tasks, "frozen": both | {"seeds": [3, 5]}, "finetuned": {}}
    once, twice = (
        gridfile.runs(gridfile.read(write(tmp_path, prepare={"repeats": n}, **asked)))
        for n in (1, 2)
    )
    assert [(run.task, run.seed) for run in once] == [("dermoscopy", 3), ("chest_xray", 3)]
    more = [("dermoscopy", 3), ("dermoscopy", 5), ("chest_xray", 3)]
    assert [(run.task, run.seed) for run in twice] == more


def test_a_plan_says_what_one_more_seed_would_cost(tmp_path):
    tuned = {"backbones": ["vit_tiny-random", "resnet50-random"], "image_size": 32}
    asked = {"finetuned": tuned | {"seeds": [4]}, "lora": tuned}
    grid = gridfile.read(write(tmp_path, tasks=["fundus_pm", "chest_xray"], **asked))
    study = SimpleNamespace(grid=grid, results=tmp_path)
    one = " With a single seed nothing is concluded about its arms."
    lora = "One more seed of lora: 4 trainings"
    assert one_more_seed(study) == [f"One more seed of finetuned: 4 trainings.{one}", f"{lora}."]
    own = [run for run in gridfile.runs(grid) if run.regime == "lora"]
    for run, seconds in zip(own, (10, 20), strict=False):
        files.save_json(run.record(tmp_path), {"seconds": seconds, "coordinates": vars(run)})
    assert one_more_seed(study)[1] == f"{lora}, about 60 s of work."  # four of 15 s
