"""medlib.grid.elsewhere: a task's finished models on the samples of another data set."""

import shutil

import numpy as np
import pandas as pd
import pytest
from made_models import NET, SIZE, Study
from PIL import Image

from medlib import files
from medlib.data import cards, manifest
from medlib.errors import ManifestError
from medlib.grid import address, elsewhere, models, new_images
from medlib.grid.address import Address
from medlib.stats import differences, external, prediction

OWN, OTHER = "chest_xray", "other_chest"
VOLUMES, OTHER_VOLUMES = "glioma_flair", "glioma_t1"  # of the same patients, in three folds


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medlib.core.fast.engine.cpu_has_bfloat16", lambda: False)
        made = Study(tmp_path_factory.mktemp("study"))
        made.prepare(OWN, sizes=(SIZE, 64))
        made.prepare(OTHER, sizes=(SIZE, 64), folds=3)
        for task in (VOLUMES, OTHER_VOLUMES):
            made.prepare(task, folds=3, volumes={"slices": 2})
        made.probe(OWN, save_models=True)
        made.probe(VOLUMES, ["linear"])
        made.tune(OWN, "finetuned")
        yield made


def copied(study, results):
    """The study in another folder."""
    shutil.copytree(study.results, results)
    return Study(results)


def arms(study, task):
    folders = [f for f in address.find_runs(study.results) if Address.parse(f).task == task]
    return differences.arms(folders, resamples=0, head="")


def judged_on(study, task=OWN, other=OTHER, names=None):
    found = elsewhere.other(study.results, task, other, names)
    judged, without = elsewhere.predictions(study.results, arms(study, task), found, "cpu")
    return found, judged, without


# ------------------------------------------------------------------------------- the predictions


def test_every_arm_predicts_there_what_its_model_predicts_from_the_files(study):
    """As `medlib.predict` does it, which reads the files anew and knows no label."""
    found, judged, without = judged_on(study)
    assert without == [] and len(judged) == 4  # three heads, and one that is fine-tuned
    card = study.card(OTHER)
    for arm, by_seed in judged:
        run = Address(OWN, NET, arm.cell["regime"], arm.cell["head"])
        model = models.load(run.folder(study.results))
        new = new_images.predict(model, card, study.data, device="cpu").table
        table = by_seed[0][0].set_index("sample_id")
        columns = prediction.probability_columns(arm.classes)
        known = new.set_index("sample_id").loc[table.index, columns]
        np.testing.assert_allclose(table[columns], known, atol=1e-6)
        assert list(table.index) == sorted(found.samples["sample_id"])
        labels = table["y_true"].to_dict()
        assert labels == dict(found.samples[["sample_id", "label"]].to_numpy())
    assert set(labels.values()) == {"normal", "pneumonia"}  # the task's own classes


def test_of_folds_each_models_predictions_are_there_with_its_validation_patients(study):
    found, judged, _ = judged_on(study, VOLUMES, OTHER_VOLUMES, {})
    ((arm, by_seed),) = judged
    assert set(by_seed[0]) == {0, 1, 2}
    same, outside = external.outside(arm, by_seed, found.samples["label"].unique())
    assert len(outside.frames) == 3 and "fold" not in outside.frames[0]
    sides = [frame.set_index("sample_id")["prob_grade_III"] for frame in outside.frames]
    assert sides[0].corr(sides[1]) < 0.999999  # three different models
    own = set(same.frames[0].loc[same.frames[0]["fold"] == 1, "patient_id"])
    validated = set(outside.validated[1]["patient_id"])  # of the model that is tested on fold 1
    assert validated and validated.isdisjoint(own)


def test_predictions_are_kept_until_the_model_or_the_images_change(study, monkeypatch):
    judged_on(study)
    run = Address(OWN, NET, "finetuned")
    kept = address.external(study.results, OTHER, run)
    before = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(models, "predict", lambda *_: pytest.fail("predicted again"))
        patch.setattr(models, "of_embeddings", lambda *_: pytest.fail("predicted again"))
        judged_on(study)
    kept.write_bytes(before[:-20])  # damaged
    with pytest.warns(UserWarning):
        judged_on(study)
    assert kept.read_bytes() == before
    record = files.read_json(kept.with_suffix(".json"))
    files.save_json(kept.with_suffix(".json"), record | {"made_from": {"model": "another"}})
    judged_on(study)
    assert files.read_json(kept.with_suffix(".json")) == record


def test_runs_without_a_model_are_named(study, tmp_path):
    made, run = copied(study, tmp_path / "r"), Address(OWN, NET, "frozen", "knn")
    (run.folder(made.results) / "model.json").unlink()
    found = elsewhere.other(made.results, OWN, OTHER)
    judged, without = elsewhere.predictions(made.results, arms(made, OWN), found, "cpu")
    assert len(judged) == 3 and without == [str(run.folder(""))]


# ------------------------------------------------------------------------------------ the samples


def test_samples_are_counted_by_class_and_those_of_other_classes_are_left_out(study):
    own = manifest.read_samples(address.manifest(study.results, OTHER))
    found = elsewhere.other(study.results, OWN, OTHER)
    assert len(found.left_out) == 0 and len(found.samples) == len(own)
    assert (found.samples["label"] == "normal").sum() == (own["label"] == "healthy").sum()
    swapped = {"healthy": "pneumonia", "pneumonia": "normal"}
    other = elsewhere.other(study.results, OWN, OTHER, swapped)
    assert (other.samples["label"] == "pneumonia").sum() == (own["label"] == "healthy").sum()
    with pytest.raises(ManifestError, match="has pneumonia, and two are needed.*healthy, pneu"):
        elsewhere.other(study.results, OWN, OTHER, {})


def test_an_image_that_stands_in_both_is_found_in_another_coding_and_left_out(study, tmp_path):
    """One exact copy, one as PNG and darker, of training and of test images."""
    made = copied(study, tmp_path / "r")
    own = manifest.read_samples(address.manifest(study.results, OWN))
    picked = own.groupby("split").head(1).set_index("split")["path"]
    folder = made.data / OTHER
    shutil.copy(made.data / picked["train"], folder / "healthy" / "p900_0.jpeg")
    image = np.asarray(Image.open(made.data / picked["test"]), float) * 0.9
    Image.fromarray(image.astype(np.uint8)).save(folder / "pneumonia" / "p901_0.png")
    made.pack_again(OTHER, made.card(OTHER), (64,))
    found = elsewhere.other(made.results, OWN, OTHER)
    assert set(found.left_out["name"]) == {"healthy-p900_0", "pneumonia-p901_0"}
    assert set(found.left_out["reason"]) == {"its image stands in chest_xray, too"}
    kinds = found.pairs.set_index("other")["kind"]
    assert kinds.to_dict() == {"healthy-p900_0": "exact", "pneumonia-p901_0": "near"}
    ids = own.set_index("path")["sample_id"]
    assert set(found.pairs["own"]) == {ids[picked["train"]], ids[picked["test"]]}
    assert set(found.samples["sample_id"]).isdisjoint(found.left_out["name"])


@pytest.mark.parametrize(
    ("task", "other", "names", "message"),
    [
        (OWN, OWN, None, "chest_xray has trained the models: name another data set"),
        (OTHER, OWN, None, "does not say that models of other_chest may be tested on it: add"),
        (VOLUMES, OTHER, {}, "Volumes of other_chest become images in another way"),
    ],
)
def test_what_cannot_test_a_task_is_refused_with_the_way_out(study, task, other, names, message):
    with pytest.raises(ManifestError, match=message):
        elsewhere.other(study.results, task, other, names)


def test_images_of_another_size_are_refused(study, tmp_path):
    made = copied(study, tmp_path / "r")
    shutil.rmtree(address.pack(made.results, OTHER, SIZE, "bilinear"))
    found = elsewhere.other(made.results, OWN, OTHER)
    with pytest.raises(FileNotFoundError, match=f"with {SIZE} among its image_sizes"):
        elsewhere.predictions(made.results, arms(made, OWN), found, "cpu")


# -------------------------------------------------------------------------------------- the shift


def test_the_shift_is_told_by_embeddings_and_shows_the_surest_images(study):
    found = elsewhere.other(study.results, OWN, OTHER)
    arm = next(a for a in arms(study, OWN) if a.cell["head"] == "linear")
    shift = elsewhere.shift(study.results, arm, found, "cpu")
    inside = manifest.read_samples(address.manifest(study.results, OWN))
    counts = shift.apart["y_true"].value_counts().to_dict()
    assert counts == {"inside": len(inside), "outside": len(found.samples)}
    assert external.shift(shift.apart, 200)["value"].iloc[0] > 0.9  # another scanner
    assert set(shift.apart["label"]) == {"normal", "pneumonia"}
    surest = shift.apart.sort_values("prob_outside").iloc[-1]["sample_id"]
    pack = study.pack(OTHER)
    place = pack.index.index[pack.index["sample_id"] == surest][0]
    assert (shift.pictures["outside"][0] == pack.images[place]).all()
    assert all(len(images) == elsewhere.MOST_SHOWN for images in shift.pictures.values())


def test_the_card_says_whose_models_may_be_tested_and_maps_its_classes():
    own, other = cards.read(OWN), cards.read(OTHER)
    assert other.classes_for(own) == {"healthy": "normal", "pneumonia": "pneumonia"}
    assert pd.Series(other.external_for[OWN]).isin(own.classes).all()
    with pytest.raises(ManifestError, match="add `external_for: {other_chest: {}}` to its card"):
        own.classes_for(other)
