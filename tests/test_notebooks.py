"""Notebooks have no outputs in git, ask a question in their title, and run on phantoms."""

import ast
import json
import re
import shutil

import pandas as pd
import pytest

from medlib import files
from medlib.core.heads import HEADS
from medlib.data import cards, phantoms
from medlib.grid import address, jobs
from medlib.grid.notebooks import code, execute
from medlib.show import subgroups, tables
from medlib.stats import calibration

NAMES = [
    "00_core_in_a_page",
    "01_prepare_data",
    "02_extract_features",
    "03_probe_features",
    "04_fine_tune",
    "05_collect_results",
    "06_compare_backbones",
    "07_weigh_costs",
    "08_test_claims",
    "09_look_closer",
    "10_predict_new_images",
    "11_test_elsewhere",
    "12_choose_thresholds",
    "13_compare_groups",
]


@pytest.fixture(params=NAMES)
def cells(request, repository):
    return json.loads((repository / "notebooks" / f"{request.param}.ipynb").read_text())["cells"]


def code_of(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_these_are_all_the_notebooks(repository):
    assert sorted(path.stem for path in (repository / "notebooks").glob("*.ipynb")) == NAMES


def test_no_outputs_and_no_execution_counts_are_committed(cells):
    assert all(cell["outputs"] == [] for cell in code_of(cells))
    assert all(cell["execution_count"] is None for cell in code_of(cells))


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_python3(repository, name):
    content = json.loads((repository / "notebooks" / f"{name}.ipynb").read_text())
    kernel = content["metadata"]["kernelspec"]
    assert kernel["name"] == "python3"
    assert kernel["display_name"] == "Python 3 (ipykernel)"  # JupyterLab would write it, git see it


def test_parameters_are_typed_literals_with_a_comment(cells):
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    source = "".join(tagged[0]["source"])
    for line, node in zip(source.splitlines(), ast.parse(source).body, strict=True):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
        assert re.search(r"  # \S", line), line


def test_no_cell_gives_a_parameter_another_value(cells):
    """Later cells would then not do what they were asked for."""
    named = set()
    for cell in code_of(cells):
        tree = ast.parse("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", []):
            named = {node.target.id for node in tree.body}
            continue
        stored = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assert named.isdisjoint(stored), named & stored


def test_it_asks_a_question_and_says_how_to_read_the_answer(cells):
    first, last = "".join(cells[0]["source"]), "".join(cells[-1]["source"])
    assert first.splitlines()[0].startswith("# ") and first.splitlines()[0].endswith("?")
    assert all(f"**{word}**" in first for word in ("Reads", "Writes", "Takes"))
    assert last.startswith("## How to read this") and "surprising" in last


# The other notebooks show one run, or have no figures.
@pytest.mark.parametrize("name", [*NAMES[6:10], *NAMES[11:]])
def test_what_a_grid_draws_has_its_caption(repository, name):
    tree = ast.parse(code(repository / "notebooks" / f"{name}.ipynb"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    written = [c for c in calls if ast.unparse(c.func) in ("style.save", "tables.save_table")]
    assert len(written) >= 2
    assert all("caption" in {n.id for n in ast.walk(c) if isinstance(n, ast.Name)} for c in written)


def test_cells_are_few_and_short(cells):
    code = ["".join(cell["source"]) for cell in code_of(cells)]
    assert 15 <= len(cells) <= 25
    assert sum(len(c.splitlines()) <= 8 for c in code) >= len(code) / 2


def test_names_of_files_are_escaped_in_every_styled_table(repository):
    notebooks = [repository / "notebooks" / f"{name}.ipynb" for name in NAMES]
    lines = "\n".join(map(code, notebooks)).splitlines()
    styled = [line for line in lines if ".style." in line]
    assert len(styled) >= 5
    assert all('.style.format(escape="html")' in line for line in styled)


def pictures(notebook):
    outputs = [o for c in code_of(json.loads(notebook.read_text())["cells"]) for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.xdist_group("notebooks")
def test_all_notebooks_run_in_order_on_phantoms(repository, tmp_path):
    """A small task, end to end: files are where the next step, and the user, expect them."""
    results, figures, notebooks = tmp_path / "results", tmp_path / "figures", tmp_path / "executed"
    shared = {"results": str(results)}
    task = shared | {"task": "glioma_flair", "backbone": "micro_resnet-random"}
    runs = results / "runs" / "glioma_flair" / "micro_resnet-random"
    shown = shared | {"figures": str(figures)}
    second = task | {"backbone": "vit_tiny-random", "image_size": 32}
    looked_at = ("curves", "confusion", "by_class", "wrong_by_all", "wrong")
    looked_at += ("embeddings", "seen")

    def drawn(*names):
        return [figures / f"{n}.{kind}" for n in names for kind in ("png", "pdf", "svg", "csv")]

    def written(*names):
        return [figures / f"{n}.{kind}" for n in names for kind in ("csv", "md", "tex")]

    steps = {
        "00_core_in_a_page": (shared, [results / "core" / "micro_resnet-random" / "meta.json"]),
        "01_prepare_data": (
            shared
            | {
                "task": "glioma_flair",
                "image_sizes": [32],
                "folds": 3,
                "repeats": 2,
                "phantom_scale": 0.2,
                "figures": str(figures),
                "volumes": {"choice": "largest_tumour", "slices": 3},
            },
            [
                results / "manifests" / "glioma_flair.csv",
                *drawn("passport_glioma_flair", "flow_glioma_flair"),
                results / "images" / "glioma_flair" / "32-bilinear" / "images.npy",
            ],
        ),
        "02_extract_features": (
            task | {"image_size": 32},
            [address.features(results, "glioma_flair", "micro_resnet-random") / "embeddings.npy"],
        ),
        "03_probe_features": (
            task
            | {"image_size": 32, "seeds": [0, 1], "label_fractions": [1.0, 0.5, 0.4]}
            | {"redraws": 15, "redrawn_fractions": [1.0, 0.5]},
            [
                runs / "frozen-linear" / "seed0" / "run.json",
                runs / "frozen-knn-fraction0.5" / "seed1" / "predictions.csv",
                runs / "frozen-mlp" / "seed1" / "run.json",
                runs / "frozen.csv",
            ],
        ),
        "04_fine_tune": (
            task | {"image_size": 32, "epochs": 2, "label_fraction": 0.5, "save_models": True},
            [runs / "finetuned-fraction0.5" / "seed0" / "run.json"],
        ),
        "05_collect_results": (
            shared | {"resamples": 200},
            [results / f"{name}.csv" for name in ("summary", "summary_over_seeds", "costs")],
        ),
        "06_compare_backbones": (
            shown | {"caption": "phantoms", "resamples": 200},
            drawn("recommendation", "main_comparison", "freezing")
            + written("answer", "best_arms", "main_table", "full_table"),
        ),
        "07_weigh_costs": (shown, drawn("size", "label_efficiency", "cost")),
        "08_test_claims": (
            shown | {"resamples": 200},
            drawn("critical_difference", "differences_frozen", "differences_regimes")
            + written("claims", "confounds")
            + [results / "differences.csv", results / "claims_sensitivity.csv"],
        ),
        "09_look_closer": (
            shown | {"task": "glioma_flair", "resamples": 200, "drawn_bands": 50},
            drawn(*(f"{name}_glioma_flair" for name in looked_at))
            + written("classes_glioma_flair"),
        ),
        "10_predict_new_images": (task, [results / "new_images" / "predictions.csv"]),
        "11_test_elsewhere": (
            shown | {"resamples": 200, "recalibrate": 8, "caption": "phantoms"},
            drawn("external_chest_xray", "shift_chest_xray")
            + written("external_chest_xray", "carried_chest_xray", "recalibrated_chest_xray"),
        ),
        "12_choose_thresholds": (
            shown | {"task": "glioma_flair", "resamples": 200, "drawn_bands": 50},
            drawn("reliability_glioma_flair", "decision_glioma_flair")
            + written("thresholds_glioma_flair", "calibration_glioma_flair"),
        ),
        "13_compare_groups": (
            shown | {"task": "glioma_flair", "resamples": 200, "few": 3, "caption": "phantoms"},
            drawn("subgroups_glioma_flair") + written("subgroups_glioma_flair"),
        ),
    }
    assert list(steps) == NAMES
    # The third regime, through the same notebook, collected and compared with the others.
    tuned, _ = steps["04_fine_tune"]
    again = "04_fine_tune", (tuned | {"regime": "lora"}, [runs / "lora-fraction0.5" / "seed0"])
    # A second backbone, so that there is something to compare.
    other = results / "runs" / "glioma_flair" / "vit_tiny-random" / "frozen-linear" / "seed0"
    more = ("02_extract_features", (second, [])), ("03_probe_features", (second, [other]))
    order = [*list(steps.items())[:5], again, *more, *list(steps.items())[5:]]
    for name, (parameters, expected) in order:
        notebook = repository / "notebooks" / f"{name}.ipynb"
        output = notebooks / f"{name}.ipynb"
        execute(notebook, output, parameters, [str(path) for path in expected])
        assert pictures(output) >= 1 or name == "00_core_in_a_page", name
    record = files.read_json(runs / "finetuned-fraction0.5" / "seed0" / "run.json")
    assert record["coordinates"]["pretraining"] == "random"
    adapted = files.read_json(runs / "lora-fraction0.5" / "seed0" / "run.json")
    assert adapted["how"]["trained_parameters"] < record["how"]["trained_parameters"]
    assert set(pd.read_csv(results / "summary.csv")["regime"]) == {"frozen", "finetuned", "lora"}
    frozen = files.read_json(runs / "frozen-linear" / "seed0" / "run.json")
    # A seed draws the same weights of a random control in both regimes; another seed, others.
    other = files.read_json(runs / "frozen-linear" / "seed1" / "run.json")
    digests = [one["inputs"]["weights_digest"] for one in (record, frozen, other)]
    assert digests[0] == digests[1] != digests[2]
    seeds = {"phantoms": 0, "split": 0, "weights": 0, "labels": 0, "head": 0}
    seeds["folds"] = 0  # of the first repetition of cross-validation
    assert record["seeds"] == seeds | {"order": 0}
    assert frozen["seeds"] == seeds | {"labels": None, "head": None}
    of_patient = [
        pd.read_csv(runs / "frozen-linear" / seed / "predictions.csv", dtype=str).set_index(
            "sample_id"
        )["fold"]
        for seed in ("seed0", "seed1")
    ]
    assert set(of_patient[0].index) == set(of_patient[1].index)
    assert (of_patient[0] != of_patient[1].reindex(of_patient[0].index)).any()
    fewer = files.read_json(runs / "frozen-mlp-fraction0.4" / "seed1" / "run.json")
    assert fewer["seeds"] == seeds | {"weights": 1, "folds": 1, "labels": 1, "head": 1}
    assert record["inputs"]["mask_at_test_time"] is frozen["inputs"]["mask_at_test_time"] is True
    assert cards.used(address.manifest(results, "glioma_flair")).volumes.slices == 3
    assert record["inputs"]["weights_digest"].startswith("random-")
    assert {"versions", "git_commit", "hardware", "seconds", "peak_memory_bytes"} <= set(record)
    said_of_runs(runs, folds=3)
    said_of_trainings(results, figures)
    assert "random weights" in (figures / "main_table.md").read_text()
    main = pd.read_csv(figures / "main_comparison.csv")
    assert set(main["label_fraction"]) == {1.0, 0.5}, "other shares of the labels crowd the figure"
    embedded = pd.read_csv(figures / "embeddings_glioma_flair.csv")
    assert embedded["site"].nunique() > 1
    wrong = pd.read_csv(figures / "wrong_glioma_flair.csv")  # it contains no pixels
    columns = "sample_id why patient_id y_true prob_grade_II prob_grade_III called probability"
    assert list(wrong) == [*columns.split(), "against", "backbone", "pretraining"]
    assert embedded["patient"].str.fullmatch(r"patient \d+").all()  # a number, and no name
    ends = pd.read_csv(results / "summary_over_seeds.csv").query(
        "metric == 'auprc' and regime == 'frozen' and head == 'linear' and label_fraction == 1"
    )
    curves = pd.read_csv(figures / "curves_glioma_flair.csv")
    printed = curves[curves["curve"] == "pr"].groupby("backbone")["area"].first()
    assert printed.to_dict() == {
        row.backbone: f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
        for row in ends.itertuples()
    }, "the interval of the table is another"
    claimed = pd.read_csv(figures / "claims.csv")
    assert set(claimed["verdict"]) == {"not tested"} and claimed["missing"].notna().all()
    noted = claimed.set_index("claim")["note"].dropna()  # C2 is about photographs and radiographs
    assert set(noted) == {"on stand-ins: glioma_flair"} and set(noted.index) == {"C1", "C3", "C4"}
    assert set(pd.read_csv(results / "differences.csv")["contrast"]) == {"backbones", "regimes"}


def said_of_runs(runs, folds):
    """Check the files of the runs: each validation patient is predicted once, by another fold."""
    for run in runs.glob("*/seed*/run.json"):
        record, regime = files.read_json(run), run.parts[-3].partition("-")[0]
        tested, validated = (
            pd.read_csv(run.with_name(name), dtype={"patient_id": str})
            for name in ("predictions.csv", "validation.csv")
        )
        # A rotation's model is tested on the fold that names it, and validated on another.
        assert set(tested["fold"]) == set(validated["rotation"]) == set(range(folds))
        assert (validated["fold"] != validated["rotation"]).all()
        assert not validated["sample_id"].duplicated().any()
        names = {"predictions.csv", "validation.csv"}
        at, redrawn = record["coordinates"], run.with_name("redraws.csv")
        if regime == "frozen" and at["head"] == "linear" and at["label_fraction"] in (1.0, 0.5):
            names.add("redraws.csv")
            values = pd.read_csv(redrawn)["auroc"]
            assert len(values) == 15 and values.nunique() > 3
            assert values.dropna().between(0, 1).all()  # some draws lack a class
        if at["head"] == "linear":  # also for a trained backbone, because of save_models
            names |= {"model.safetensors", "model.json"}
            assert run.with_name("model_card.md").is_file()
        assert set(record["sha256"]) == names and redrawn.is_file() == ("redraws.csv" in names)
        digest = {name: files.file_sha256(run.with_name(name)) for name in names}
        assert record["sha256"] == digest
        tried = 2 * 2 if regime != "frozen" else len(HEADS[at["head"]].candidates)
        assert record["how"]["candidates"] == tried  # learning rates times epochs


def said_of_trainings(results, figures):
    """An arm that was trained once has an interval over test patients alone, and no test."""
    table = pd.read_csv(results / "summary_over_seeds.csv", keep_default_na=False, na_values=[""])
    area = table[(table["metric"] == "auroc") & (table["head"] == "linear")]
    area = area.set_index(["backbone", "regime", "label_fraction"])
    known = area["training"].dropna().to_dict()
    # Random weights are drawn anew for each seed; the second backbone has a single one.
    control = "micro_resnet-random", "frozen"
    assert known == dict.fromkeys([(*control, 1.0), (*control, 0.5)], "redraws and seeds")
    unknown = area["training"].isna()
    ends = area[["procedure_low", "procedure_high"]]
    assert (ends.isna().all(axis=1) == unknown).all() and area["ci_low"].notna().all()
    words = (figures / "main_table.md").read_text()
    rows = [line for line in words.splitlines() if line.startswith("| Glioma")]
    assert sum("†" not in row for row in rows) == 2 < len(rows) and tables.MARKS in words
    # A slope uses the seeds that both regimes have.
    by_seed = pd.read_csv(results / "summary.csv").query("metric == 'auroc' and head == 'linear'")
    (slope,) = pd.read_csv(figures / "freezing.csv").to_dict("records")
    of = by_seed.query("backbone == 'micro_resnet-random' and label_fraction == 0.5 and seed == 0")
    of = of.set_index("regime")["value"]
    assert (slope["frozen"], slope["finetuned"]) == (of["frozen"], of["finetuned"])
    assert slope["n_seeds"] == 1
    apart = pd.read_csv(results / "differences.csv")
    assert apart["p_value"].isna().all() and apart["ci_low"].notna().any()
    assert not apart["primary"].any() and not apart["different"].any()  # of random weights alone
    ways = pd.read_csv(results / "claims_sensitivity.csv")
    assert len(ways) == 3 * 2 * 3
    assert (ways[["C1", "C2", "C3", "C4"]].to_numpy() == "not tested").all()
    said_of_groups(results, figures)
    beside = pd.read_csv(figures / "calibration_glioma_flair.csv")
    raw = beside[(beside["probabilities"] == "raw") & beside["metric"].isin(calibration.METRICS)]
    raw = raw.set_index(["backbone", "metric"])
    assert len(raw) == 2 * 5
    for (backbone, metric), row in raw.iterrows():
        one = (table["backbone"] == backbone) & (table["regime"] == "frozen")
        one &= (table["metric"] == metric) & (table["head"] == "linear")
        (value,) = table[one & (table["label_fraction"] == 1)]["value"]
        assert row["value"] == pytest.approx(value, abs=1e-12)
    assert set(beside["probabilities"]) == {"raw", *calibration.METHODS}


def said_of_groups(results, figures):
    """Every test patient is in one group of each attribute, and no group is dropped."""
    table = pd.read_csv(figures / "subgroups_glioma_flair.csv", keep_default_na=False)
    rows = table[(table["part"] == "group") & (table["metric"] == "auroc")]
    manifest = pd.read_csv(results / "manifests" / "glioma_flair.csv", dtype=str)
    assert set(rows["attribute"]) == {"age", "sex", "site"}
    counts = rows.groupby(["backbone", "attribute"])["n_patients"].apply(
        lambda n: n.astype(int).sum()
    )
    assert set(counts) == {manifest["patient_id"].nunique()}
    sites = rows[(rows["attribute"] == "site") & (rows["backbone"] == "micro_resnet-random")]
    sizes = manifest.groupby("site")["patient_id"].nunique()
    assert sites.set_index("group")["n_patients"].astype(int).to_dict() == sizes.to_dict()
    assert (rows["value"] == "").equals(rows["why"] != "")
    assert {"gap", "sites"} < set(table["part"])
    assert "phantoms" in (figures / "subgroups_glioma_flair.md").read_text()


@pytest.mark.xdist_group("alone")
def test_a_task_of_which_nothing_is_known_gets_a_sentence(repository, tmp_path):
    """Chest radiographs have neither age, sex nor site."""
    results, figures = tmp_path / "results", tmp_path / "figures"
    shared = {"results": str(results), "task": "chest_xray"}
    prepare = shared | {"image_sizes": [28], "phantom_scale": 0.1}
    execute(repository / "notebooks" / "01_prepare_data.ipynb", tmp_path / "01.ipynb", prepare)
    probe = shared | {"image_size": 28, "heads": ["linear"], "redraws": 0}
    execute(repository / "notebooks" / "03_probe_features.ipynb", tmp_path / "03.ipynb", probe)
    shown = shared | {"figures": str(figures)}
    execute(repository / "notebooks" / "13_compare_groups.ipynb", tmp_path / "13.ipynb", shown)
    assert subgroups.NOTHING in (figures / "subgroups_chest_xray.md").read_text()
    assert subgroups.NOTHING in (figures / "subgroups_chest_xray.tex").read_text()
    assert pd.read_csv(figures / "subgroups_chest_xray.csv").empty
    assert (figures / "subgroups_chest_xray.png").is_file()


@pytest.mark.xdist_group("alone")
def test_a_notebook_opened_on_its_own_gets_its_inputs(repository, tmp_path):
    results = tmp_path / "results"
    parameters = {"results": str(results), "task": "fundus_pm", "image_size": 28, "heads": ["knn"]}
    notebook = repository / "notebooks" / "03_probe_features.ipynb"
    execute(notebook, tmp_path / "out.ipynb", parameters)
    runs = results / "runs/fundus_pm/micro_resnet-phantoms"
    knn = runs / "frozen-knn" / "seed0" / "run.json"
    assert knn.is_file()
    # Run again, with one more head: complete runs are read back, unless `again` is set.
    before, scores = knn.stat().st_ino, pd.read_csv(runs / "frozen.csv")
    more = parameters | {"heads": ["knn", "mlp"]}
    execute(notebook, tmp_path / "out.ipynb", more)
    assert "1 of 2 runs are complete" in (tmp_path / "out.ipynb").read_text()
    assert knn.stat().st_ino == before
    both = pd.read_csv(runs / "frozen.csv")
    assert both["head"].tolist() == ["knn", "mlp"]
    assert both.iloc[:1].equals(scores)  # and its time, to the last digit
    execute(notebook, tmp_path / "out.ipynb", parameters | {"again": True})
    assert knn.stat().st_ino != before
    # Notebook 09 needs two backbones: the control is made at the image size that is there.
    looked = repository / "notebooks" / "09_look_closer.ipynb"
    shown = {"results": str(results), "task": "fundus_pm", "figures": str(tmp_path / "figures")}
    execute(looked, tmp_path / "09.ipynb", shown | {"resamples": 50, "drawn_bands": 20})
    text = (tmp_path / "09.ipynb").read_text()
    assert "This ran first" in text and "    02_extract_features.ipynb: 19 of 19 cells" in text
    assert "01_prepare_data" not in text.split("This ran first")[1].split("]")[0]
    assert (results / "runs/fundus_pm/micro_resnet-random/frozen-linear/seed0/run.json").is_file()
    curves = pd.read_csv(tmp_path / "figures" / "curves_fundus_pm.csv")
    assert set(curves["pretraining"]) == {"phantoms", "random"}
    # Phantoms are named wherever a title is printed, and real data need another folder.
    assert cards.used(address.manifest(results, "fundus_pm")).title.endswith(" (phantoms)")
    with pytest.raises(jobs.ExecutionError, match="holds phantoms, but data='real' asks for real"):
        execute(notebook, tmp_path / "out.ipynb", parameters | {"data": "real"})


@pytest.mark.xdist_group("alone")
def test_a_training_that_is_complete_is_read_back(repository, tmp_path):
    results = tmp_path / "results"
    parameters = {"results": str(results), "task": "fundus_pm", "image_size": 28, "epochs": 1}
    parameters["learning_rates"] = [0.001]
    notebook = repository / "notebooks" / "04_fine_tune.ipynb"
    run = results / "runs/fundus_pm/micro_resnet-phantoms/finetuned/seed0/run.json"
    made = []
    for more in ({}, {}, {"again": True}, {"epochs": 2}):
        execute(notebook, tmp_path / "out.ipynb", parameters | more)
        back = "seed0 is complete and read back" in (tmp_path / "out.ipynb").read_text()
        made.append((run.stat().st_ino, back))
    assert made[0][0] == made[1][0] and [back for _, back in made] == [False, True, False, False]
    predictions = run.with_name("predictions.csv")
    predictions.write_text(predictions.read_text().replace("0.", "1.", 1))  # damaged
    execute(notebook, tmp_path / "out.ipynb", parameters | {"epochs": 2})
    assert "seed0 is complete and read back" not in (tmp_path / "out.ipynb").read_text()


@pytest.mark.xdist_group("alone")
def test_bad_files_stop_the_notebook_with_a_list_or_are_set_aside(repository, tmp_path):
    results = tmp_path / "results"
    folder = phantoms.write("ichallenge_pm", tmp_path / "data", scale=0.05)
    for name in ("N0001.jpg", "P0002.jpg"):
        (folder / "PALM-Training400" / name).write_bytes(b"half a download")
    parameters = {
        "task": "fundus_pm",
        "data": str(tmp_path / "data"),
        "results": str(results),
        "image_sizes": [28],
        "from_folder": True,
    }
    notebook = repository / "notebooks" / "01_prepare_data.ipynb"
    with pytest.raises(jobs.ExecutionError) as error:
        execute(notebook, tmp_path / "out.ipynb", parameters)
    assert "N0001.jpg" in str(error.value) and "P0002.jpg" in str(error.value)
    assert not (results / "manifests").exists() and not (results / "images").exists()
    execute(notebook, tmp_path / "out.ipynb", parameters | {"quarantine": True})
    reasons = (results / "manifests" / "fundus_pm.excluded.csv").read_text()
    assert "N0001,set aside:" in reasons and "P0002,set aside:" in reasons
    # Later notebooks need the packs and no raw file. A pack records the manifest it was made from.
    shutil.rmtree(folder)
    parameters = {"task": "fundus_pm", "backbone": "micro_resnet-random", "image_size": 28}
    parameters |= {"data": str(tmp_path / "data"), "results": str(results)}
    notebook = repository / "notebooks" / "02_extract_features.ipynb"
    execute(notebook, tmp_path / "out.ipynb", parameters)
    manifest = results / "manifests" / "fundus_pm.csv"
    rows = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(rows[:-1]))
    with pytest.raises(jobs.ExecutionError, match="were packed from another manifest"):
        execute(notebook, tmp_path / "out.ipynb", parameters)


@pytest.mark.xdist_group("alone")
def test_bad_parameters_stop_a_notebook_with_one_message(repository, tmp_path):
    notebook = repository / "notebooks" / "01_prepare_data.ipynb"
    for parameters, message in (
        ({"task": "fundos"}, "Unknown task 'fundos'. Did you mean 'fundus_pm'?"),
        ({"task": "fundus_pm", "data": str(tmp_path / "none")}, "does not exist"),
    ):
        with pytest.raises(jobs.ExecutionError) as error:
            execute(notebook, tmp_path / "out.ipynb", parameters | {"results": "r"})
        assert message in str(error.value)
    assert not (repository / "notebooks" / "r").exists()
    for name in ("02_extract_features", "03_probe_features", "10_predict_new_images"):
        asked = {"backbone": "resnet50", "results": str(tmp_path / "r")}
        with pytest.raises(jobs.ExecutionError, match="Did you mean 'resnet50-imagenet'") as error:
            execute(repository / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", asked)
        assert not (tmp_path / "r").exists(), "it was refused before any work"


@pytest.mark.xdist_group("large")  # ViT-L takes 8 GB: one at a time
@pytest.mark.parametrize(("backbone", "size"), [("vgg16-random", 32), ("dinov2_large-random", 28)])
def test_the_papers_largest_networks_run_through_their_notebooks(
    repository, tmp_path, backbone, size
):
    """Both regimes of the paper's grid run on a few phantoms, with random weights."""
    shared = {"task": "fundus_pm", "results": str(tmp_path / "results"), "image_size": size}
    prepare = repository / "notebooks" / "01_prepare_data.ipynb"
    small = {"task": "fundus_pm", "results": shared["results"], "image_sizes": [size]}
    execute(prepare, tmp_path / "01.ipynb", small | {"phantom_scale": 0.05})
    for name, more in (
        ("02_extract_features", {}),
        ("04_fine_tune", {"learning_rates": [0.001], "epochs": 1, "label_fraction": 0.3}),
    ):
        notebook = repository / "notebooks" / f"{name}.ipynb"
        parameters = shared | {"backbone": backbone} | more
        execute(notebook, tmp_path / f"{name}.ipynb", parameters)
    runs = tmp_path / "results" / "runs" / "fundus_pm" / backbone
    assert (runs / "finetuned-fraction0.3" / "seed0" / "run.json").is_file()
