"""A saved model gives the run's own test predictions again, here and in any other folder."""

import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from made_models import NET, SIZE, Study
from PIL import Image

from medlib import files, predict
from medlib.core import backbones
from medlib.data import manifest, phantoms
from medlib.errors import ManifestError
from medlib.grid import address, models, new_images, records
from medlib.grid.address import Address
from medlib.stats import prediction

IMAGES, VOLUMES = "fundus_pm", "glioma_flair"  # an official split, and three folds of volumes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medlib.core.fast.engine.cpu_has_bfloat16", lambda: False)
        made = Study(tmp_path_factory.mktemp("study"))
        made.prepare(IMAGES)
        made.prepare(VOLUMES, folds=3, volumes={"slices": 2})
        for task in (IMAGES, VOLUMES):
            made.probe(task, save_models=True)
            made.tune(task, "finetuned")
        made.tune(IMAGES, "lora")
        yield made


def arms(*heads):
    return [f"frozen-{head}" for head in heads]


def run_of(task, arm):
    regime, _, head = arm.partition("-")
    return Address(task, NET, regime, head or "linear")


def answer(study, run, folder=None, **how):
    """The predictions of a run's model for the phantoms of its task."""
    model = models.load(folder or run.folder(study.results))
    return new_images.predict(model, study.card(run.task), study.data, device="cpu", **how)


def known(study, run):
    """The run's own predictions, by sample."""
    return manifest.read_samples(run.folder(study.results) / "predictions.csv").set_index(
        "sample_id"
    )


@pytest.mark.parametrize("arm", [*arms("linear", "knn", "mlp"), "finetuned", "lora"])
def test_the_tests_images_get_the_runs_own_predictions(study, arm):
    run = run_of(IMAGES, arm)
    tested, found = known(study, run), answer(study, run).table.set_index("sample_id")
    columns = [name for name in tested if name.startswith("prob_")]
    np.testing.assert_allclose(found.loc[tested.index, columns], tested[columns], atol=1e-6)
    assert tested[columns].to_numpy().std() > 0.001, "all predictions are alike"


@pytest.mark.parametrize("arm", [*arms("linear", "knn", "mlp"), "finetuned"])
def test_in_cross_validation_each_folds_model_predicts_its_own_fold_as_the_run_did(study, arm):
    run = run_of(VOLUMES, arm)
    tested, found = known(study, run), answer(study, run)
    ids, columns = (
        found.table["sample_id"],
        prediction.probability_columns(["grade_II", "grade_III"]),
    )
    assert set(found.of_rotations) == {0, 1, 2} and set(ids) == set(tested.index)
    for fold, proba in found.of_rotations.items():
        own = pd.DataFrame(proba, index=ids).loc[tested.index[tested["fold"] == fold]]
        np.testing.assert_allclose(own, tested.loc[own.index, columns], atol=1e-6)
    mean = np.mean(list(found.of_rotations.values()), axis=0)
    np.testing.assert_allclose(found.table[columns], mean, atol=1e-12)
    assert any("was never tested" in note for note in found.notes)


def test_a_frozen_linear_model_is_small_and_nothing_in_a_run_can_be_unpickled(study):
    for task in (IMAGES, VOLUMES):
        folder = run_of(task, "frozen-linear").folder(study.results)
        size = sum((folder / name).stat().st_size for name in (records.MODEL, records.FACTS))
        assert 1000 < size < 100_000
    for path in study.results.glob("runs/**/*"):
        assert path.is_dir() or path.suffix in (".csv", ".json", ".md", ".safetensors"), path
    kept = list(study.results.glob(f"runs/**/{records.TRAINED}"))
    assert kept == [], "weights of trainings that were not chosen"


def test_a_lora_model_holds_no_frozen_weights(study):
    names = models.load(run_of(IMAGES, "lora").folder(study.results)).tensors
    of_network = {n for n in names if n.startswith("0.backbone.") and n.endswith("weight")}
    assert of_network and all("lora_" in name for name in of_network)


def test_the_record_holds_digests_of_the_model_and_a_damaged_one_is_not_complete(study):
    run = run_of(IMAGES, "frozen-linear")
    folder, record = run.folder(study.results), files.read_json(run.record(study.results))
    for name in (records.MODEL, records.FACTS):
        assert record["sha256"][name] == files.file_sha256(folder / name)
    asked = run, study.results, record["parameters"], record["inputs"]
    tables = records.complete(*asked).tables
    assert set(tables) == {"predictions.csv", "validation.csv"}
    whole = (folder / records.MODEL).read_bytes()
    try:
        (folder / records.MODEL).write_bytes(whole[:-1] + b"x")
        with pytest.warns(UserWarning, match="model.safetensors"):
            assert records.complete(*asked) is None
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            models.load(folder)
    finally:
        (folder / records.MODEL).write_bytes(whole)
    assert records.complete(*asked)


def test_a_run_without_a_model_is_read_back_unless_one_is_asked_for(study, tmp_path):
    for kind in ("manifests", "images"):
        shutil.copytree(study.results / kind, tmp_path / kind)
    other = Study.__new__(Study)
    other.results, other.data = tmp_path, study.data
    run, linear = run_of(IMAGES, "frozen-knn"), run_of(IMAGES, "frozen-linear")
    other.probe(IMAGES, ("knn", "linear"))
    assert not (run.folder(tmp_path) / records.MODEL).exists()
    with pytest.raises(FileNotFoundError, match="model.json and model.safetensors.*save_models"):
        models.load(run.folder(tmp_path))
    # The state that an earlier version has left.
    record = files.read_json(linear.record(tmp_path))
    record["sha256"] = {n: d for n, d in record["sha256"].items() if n.endswith(".csv")}
    files.save_json(linear.record(tmp_path), record)
    for name in (records.MODEL, records.FACTS, records.CARD):
        (linear.folder(tmp_path) / name).unlink()
    again = other.probe(IMAGES, ("knn", "linear"))
    assert all(probe.read_back for probe in again.values())
    asked = other.probe(IMAGES, ("knn",), save_models=True)
    assert not asked[run].read_back and (run.folder(tmp_path) / records.MODEL).exists()
    assert other.probe(IMAGES, ("knn",), save_models=True)[run].read_back
    assert other.probe(IMAGES, ("knn",))[run].read_back  # it has more than is asked for
    other.probe(IMAGES, ("knn",), again=True)
    assert not list(run.folder(tmp_path).glob("model*"))


def test_a_model_is_described_by_its_validation_patients_and_its_training(study):
    run = run_of(VOLUMES, "frozen-linear")
    facts = models.load(run.folder(study.results)).facts
    index = study.pack(VOLUMES).index
    for rotation in facts["rotations"]:
        fold, counted = rotation["fold"], rotation["patients_and_images"]
        tested = index[(index["fold"] == fold) & (index["label"] == "grade_II")]
        assert counted["test"]["grade_II"] == [tested["patient_id"].nunique(), len(tested)]
        n = {s: sum(i for _, i in of.values()) for s, of in counted.items()}
        assert sum(n.values()) == len(index)
        validated = pd.read_csv(run.folder(study.results) / "validation.csv")
        own = validated[validated["rotation"] == fold]
        score, sick = own["prob_grade_III"].to_numpy(), (own["y_true"] == "grade_III").to_numpy()
        at = {row["rule"]: row["threshold"] for row in rotation["thresholds"]}
        reached = [t for t in score if (score[sick] >= t).mean() >= 0.95]
        assert at["sensitivity"] == pytest.approx(max(reached), abs=1e-12)
        balance = [(score[sick] >= t).mean() - (score[~sick] >= t).mean() for t in score]
        youden = (score[sick] >= at["Youden"]).mean() - (score[~sick] >= at["Youden"]).mean()
        assert youden == pytest.approx(max(balance))
    assert facts["classes"] == ["grade_II", "grade_III"] and facts["card"]["volumes"]["slices"] == 2
    named = {"folder", "layout_options", "known_duplicates", "not_duplicates"}
    assert not named & facts["card"].keys(), "of one folder; it may name patients"
    digest = files.file_sha256(address.manifest(study.results, VOLUMES))
    assert facts["manifest_sha256"] == digest
    assert facts["backbone"]["timm_name"] == backbones.get(NET).timm_name
    assert facts["weights_digest"].startswith("random-") and facts["versions"]["medlib"]


@pytest.mark.parametrize("arm", ["frozen-linear", "finetuned"])
def test_a_model_works_in_another_folder_and_refuses_other_weights(study, tmp_path, arm):
    run = run_of(IMAGES, arm)
    for name in (records.MODEL, records.FACTS):
        shutil.copy(run.folder(study.results) / name, tmp_path)
    here, there = (answer(study, run, folder).table for folder in (None, tmp_path))
    pd.testing.assert_frame_equal(here, there)
    facts = files.read_json(tmp_path / records.FACTS)
    files.save_json(tmp_path / records.FACTS, facts | {"weights_seed": 1})  # other random weights
    with pytest.raises(
        ValueError, match="weights of micro_resnet-random that were found here .* not those"
    ):
        answer(study, run, tmp_path)
    other = facts | {"backbone": facts["backbone"] | {"embedding": "pool"}}
    files.save_json(tmp_path / records.FACTS, other)
    with pytest.raises(
        ValueError, match="row of micro_resnet-random .*embedding: 'gap', not 'pool'"
    ):
        answer(study, run, tmp_path)
    files.save_json(tmp_path / records.FACTS, facts | {"classes": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="names the classes a, b, c"):
        models.load(tmp_path)
    files.save_json(tmp_path / records.FACTS, facts | {"format": 99})
    with pytest.raises(ValueError, match="has format 99"):
        models.load(tmp_path)


def test_a_model_of_published_weights_refuses_another_file(study, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    run = run_of(IMAGES, "frozen-linear")
    model = models.load(run.folder(study.results))
    facts = model.facts | {"weights_digest": "0" * 64}
    facts["run"] = facts["run"] | {"backbone": "micro_resnet-imagenet"}
    row = asdict(backbones.get("micro_resnet-imagenet"))
    facts["backbone"] = facts["backbone"] | {n: row[n] for n in ("pretraining", "fixed_norm")}
    monkeypatch.setenv("MEDLIB_WEIGHTS", str(weights))
    with pytest.raises(FileNotFoundError, match="test_resnet.r160_in1k.safetensors"):
        models.predict(model._replace(facts=facts), np.zeros((1, SIZE, SIZE, 3), np.uint8))
    (weights / "test_resnet.r160_in1k.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"not those .* \(0000000000000000000…\)"):
        models.predict(model._replace(facts=facts), np.zeros((1, SIZE, SIZE, 3), np.uint8))


# ------------------------------------------------------------------------------- new images


def test_what_is_unlike_the_training_images_is_unusual_and_most_test_images_are_not(
    study, tmp_path
):
    run = run_of(IMAGES, "frozen-linear")
    found = answer(study, run).table.set_index("sample_id")
    tested = found.loc[known(study, run).index]
    assert tested["unusual"].mean() < 0.3  # of 22; 5 % are expected
    rng = np.random.default_rng(0)
    for number in range(5):
        noise = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    phantoms.write("chest_xray", tmp_path, scale=0.05)
    model = models.load(run.folder(study.results))
    other = new_images.predict(model, tmp_path, device="cpu")
    assert other.table["unusual"].mean() > 0.95
    names = set(other.table["sample_id"])
    assert {"0.png"} < names and any(name.startswith("chest_xray/") for name in names)


def test_a_folder_without_labels_gives_the_same_and_names_every_file_that_is_not_used(
    study, tmp_path
):
    run = run_of(IMAGES, "frozen-linear")
    rows = manifest.read_rows(address.manifest(study.results, IMAGES)).head(5)
    for path in rows["path"]:
        (tmp_path / "deep").mkdir(exist_ok=True)
        shutil.copy(study.data / path, tmp_path / "deep")
    (tmp_path / "notes.txt").write_text("by hand")
    model = models.load(run.folder(study.results))
    found = new_images.predict(model, tmp_path, device="cpu")
    by_card = answer(study, run).table.set_index("sample_id").loc[rows["sample_id"]]
    ids = [f"deep/{path.rpartition('/')[2]}" for path in rows["path"]]
    own = found.table.set_index("sample_id").loc[ids]
    np.testing.assert_allclose(own["distance"], by_card["distance"], atol=1e-6)
    assert found.left_out == ["notes.txt: no image, by its name and content"]
    for name in ("one.jpg", "two.png"):
        (tmp_path / name).write_bytes(b"half a download")
    with pytest.raises(ManifestError) as error:
        new_images.predict(model, tmp_path, device="cpu")
    assert "one.jpg" in str(error.value) and "two.png" in str(error.value)
    aside = new_images.predict(model, tmp_path, quarantine=True, device="cpu")
    pd.testing.assert_frame_equal(aside.table, found.table)
    assert len(aside.left_out) == 3 and sum("cannot be read" in x for x in aside.left_out) == 2


def test_a_class_is_called_at_the_mean_of_the_folds_thresholds(study):
    run = run_of(VOLUMES, "frozen-linear")
    facts = files.read_json(run.folder(study.results) / records.FACTS)
    for rule, kind in (("youden", "Youden"), ("sensitivity", "sensitivity")):
        at = [
            row["threshold"]
            for rotation in facts["rotations"]
            for row in rotation["thresholds"]
            if row["rule"] == kind
        ]
        table = answer(study, run, rule=rule).table
        called = np.where(table["prob_grade_III"] >= np.mean(at), "grade_III", "grade_II")
        assert table["class"].tolist() == called.tolist() and len(at) == 3
    likeliest = answer(study, run).table
    called = likeliest[["prob_grade_II", "prob_grade_III"]].idxmax(axis=1).str.removeprefix("prob_")
    assert likeliest["class"].tolist() == called.tolist()
    with pytest.raises(ValueError, match="Unknown rule 'yuden'. Did you mean 'youden'"):
        answer(study, run, rule="yuden")


@pytest.mark.parametrize("choice", ["central", "largest_tumour"])
def test_volumes_in_a_folder_are_predicted_and_those_that_lack_a_needed_mask_are_refused(
    study, tmp_path, choice
):
    run, rows = (
        run_of(VOLUMES, "frozen-linear"),
        manifest.read_rows(address.manifest(study.results, VOLUMES)),
    )
    for path in rows["path"].head(3):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(study.data / path, tmp_path / path)
    model = models.load(run.folder(study.results))
    by_card = answer(study, run).table.set_index("sample_id").loc[rows["sample_id"].head(3)]
    if choice == "central":
        found = new_images.predict(model, tmp_path, device="cpu").table
        probabilities = found.set_index("sample_id").loc[rows["path"].head(3), "prob_grade_III"]
        np.testing.assert_allclose(probabilities, by_card["prob_grade_III"], atol=1e-6)
        return
    volumes = model.facts["card"]["volumes"] | {"choice": choice}
    card = model.facts["card"] | {"volumes": volumes}
    other = model._replace(facts=model.facts | {"card": card})
    with pytest.raises(ManifestError, match="3 of 3 volumes have no mask") as error:
        new_images.predict(other, tmp_path, device="cpu")
    assert all(path in str(error.value) for path in rows["path"].head(3))
    for path in rows["path"].head(3):
        (mask,) = (study.data / path).parent.glob("*_seg*")
        shutil.copy(mask, (tmp_path / path).parent)
    assert len(new_images.predict(other, tmp_path, device="cpu").table) == 3


def called(monkeypatch, capsys, *arguments):
    """Exit status and printed text of ``python -m medlib.predict`` with these arguments."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments), "--device", "cpu"])
    return predict.main(), capsys.readouterr()


def test_the_command_writes_a_table_and_says_what_it_did(study, tmp_path, monkeypatch, capsys):
    run, out = run_of(IMAGES, "frozen-linear"), tmp_path / "out.csv"
    folder = run.folder(study.results)
    asked = folder, IMAGES, "--data", study.data, "--out", out, "--rule", "sensitivity"
    status, said = called(monkeypatch, capsys, *asked)
    assert status == 0 and "from a probability of" in said.out and "a control" in said.out
    table, own = pd.read_csv(out), answer(study, run, rule="sensitivity").table
    pd.testing.assert_frame_equal(table, own, check_exact=False, atol=1e-9)
    assert list(table) == [
        "sample_id",
        "prob_other",
        "prob_pathologic_myopia",
        "class",
        "distance",
        "unusual",
    ]
    assert table["unusual"].dtype == bool
    before = out.read_bytes()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "x.jpg").write_bytes(b"half")
    status, said = called(monkeypatch, capsys, folder, tmp_path / "new", "--out", out)
    assert status == 1 and "x.jpg" in said.err and out.read_bytes() == before
    status, said = called(
        monkeypatch, capsys, folder, tmp_path / "new", "--out", out, "--quarantine"
    )
    assert status == 1 and "none can be used" in said.err and out.read_bytes() == before
    status, said = called(monkeypatch, capsys, folder, "fundus_mp", "--out", out)
    assert status == 1 and "fundus_mp is no folder" in said.err and "'fundus_pm'?" in said.err
    status, said = called(monkeypatch, capsys, tmp_path, IMAGES, "--out", out)
    assert status == 1 and "lacks model.json and model.safetensors" in said.err


def test_a_rule_for_two_classes_is_refused_for_more(study):
    facts = models.load(run_of(IMAGES, "frozen-linear").folder(study.results)).facts
    with pytest.raises(ValueError, match="'youden' is for two classes, not a, b, c"):
        new_images.predict(
            records.Model(facts | {"classes": ["a", "b", "c"]}, {}), study.data, rule="youden"
        )


def test_a_model_of_seven_classes_calls_the_likeliest(tmp_path, monkeypatch):
    monkeypatch.setattr("medlib.core.fast.engine.cpu_has_bfloat16", lambda: False)
    made = Study.__new__(Study)
    made.results, made.data = tmp_path, tmp_path / "phantoms"
    made.prepare("dermoscopy", folds=3)
    made.probe("dermoscopy", ("linear", "knn"), save_models=True)
    for run in (run_of("dermoscopy", arm) for arm in arms("linear", "knn")):
        tested, found = known(made, run), answer(made, run)
        classes = models.load(run.folder(tmp_path)).facts["classes"]
        columns = prediction.probability_columns(classes)
        assert len(classes) == 7
        for fold, proba in found.of_rotations.items():
            own = pd.DataFrame(proba, index=found.table["sample_id"])
            own = own.loc[tested.index[tested["fold"] == fold]]
            np.testing.assert_allclose(own, tested.loc[own.index, columns], atol=1e-6)
        called = found.table[columns].idxmax(axis=1).str.removeprefix("prob_")
        assert found.table["class"].tolist() == called.tolist() and called.nunique() > 2


def test_the_card_beside_a_model_is_about_it(study):
    for run in (run_of(IMAGES, "lora"), run_of(VOLUMES, "frozen-mlp")):
        text = (run.folder(study.results) / records.CARD).read_text()
        assert "None" not in text and study.card(run.task).title in text
    metrics = files.read_json(run.folder(study.results) / "metrics.json")
    assert f"| auroc | {metrics['auroc']:.3f} |" in text and "an ensemble of 3 models" in text
