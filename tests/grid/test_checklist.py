"""The facts in the checklist of a small grid are those of files that were written by hand."""

import pandas as pd
import pytest
import yaml
from PIL import Image
from small_grid import SMALL

from medlib import files
from medlib.data import cards
from medlib.grid import checklist, facts, gridfile, page, records
from medlib.show import checklist as shown
from medlib.show.checklist import FILLED, NOT_DONE, OPEN, WRITE

TASKS = ["chest_xray", "dermoscopy"]
GRID = SMALL | {"title": "Small", "caption": "A caption.", "tasks": TASKS, "data": "real"}
# The states of some items, worked out by hand from the files of the fixture.
STATES = {
    "CLAIM 1": WRITE,
    "CLAIM 4": FILLED,  # the grid file declares aims
    "CLAIM 7": FILLED,  # cards state sources
    "CLAIM 13": FILLED,  # both cards have `acquisition`
    "CLAIM 16": OPEN,  # dermoscopy's card lacks `annotators`
    "CLAIM 19": NOT_DONE,  # there is no flow of dermoscopy
    "CLAIM 20": FILLED,
    "CLAIM 23": FILLED,  # versions are in the record of each run
    "CLAIM 30": NOT_DONE,  # fine-tuned from one seed
    "CLAIM 33": NOT_DONE,  # no external test
    "CLAIM 36": NOT_DONE,  # no passport; it would be open otherwise
    "CLAIM 44": WRITE,
    "TRIPOD+AI 5b": OPEN,  # no card has `inclusion_dates`
    "TRIPOD+AI 12a": FILLED,
    "TRIPOD+AI 14": NOT_DONE,  # no subgroups
    "TRIPOD+AI 17": OPEN,  # chest_xray's card lacks `ethics`
    "TRIPOD+AI 21": FILLED,
    "TRIPOD+AI 22": NOT_DONE,  # no model was kept
}


def manifest(task):
    """Six patients: of chest_xray two on each side, of dermoscopy three folds with two each."""
    rows = pd.DataFrame({"sample_id": [f"s{i}" for i in range(7)], "path": "x.png"})
    rows["patient_id"] = ["p0", "p0", "p1", "p2", "p3", "p4", "p5"]  # p0 has two images
    if task == "chest_xray":
        sick = ["normal", "pneumonia"]
        rows["label"] = [sick[k] for k in (0, 0, 1, 0, 1, 0, 1)]
        return rows.assign(split=["train"] * 3 + ["val"] * 2 + ["test"] * 2)
    rows["label"] = [["mel", "nv"][k] for k in (0, 0, 1, 0, 1, 0, 1)]
    ages, sexes = ["40", "40", "50", "60", "", "70", "80"], ["male"] * 3 + ["female"] * 4
    return rows.assign(fold=[0, 0, 0, 1, 1, 2, 2], age=ages, sex=sexes)


@pytest.fixture
def study(tmp_path):
    """A grid of four runs, all complete, with the manifests above and two figures."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(GRID))
    results = tmp_path / "results"
    for task in TASKS:
        files.save_csv(results / "manifests" / f"{task}.csv", manifest(task))
        seeds = {"phantoms": None, "split": 3 if task == "dermoscopy" else None}
        files.save_json(results / "manifests" / f"{task}.seeds.json", seeds)
    reasons = ["no label", "no label", "set aside: the same image as s0 of the test set"]
    excluded = pd.DataFrame({"name": ["u1", "u2", "u3"], "reason": reasons})
    files.save_csv(results / "manifests" / "chest_xray.excluded.csv", excluded)
    for run in gridfile.runs(gridfile.read(tmp_path / "small.yaml")):
        made = records.Provenance("random", {}, {}, 1.0, how={"parameters": 2_500_000})
        tables = {"predictions.csv": pd.DataFrame()}
        records.save_run(run, results, made, tables, pd.DataFrame(), {})
        run.promised(results).touch()
    (tmp_path / "figures").mkdir()
    for name in ("flow_chest_xray", "main_comparison"):
        Image.new("RGB", (8, 8)).save(tmp_path / "figures" / f"{name}.png")
    return tmp_path


def items(study):
    checklist.write(study / "small.yaml", study / "results", study / "figures")
    return pd.read_csv(study / "figures" / "checklist.csv", keep_default_na=False).set_index("item")


def gathered(study, **changes):
    grid = gridfile.read(study / "small.yaml") | changes
    return facts.gather(grid, study / "results")


def test_the_states_are_those_worked_out_by_hand(study):
    table = items(study)
    assert table["state"][list(STATES)].to_dict() == STATES
    assert "annotators is missing in the card(s) dermoscopy." in table["answer"]["CLAIM 16"]
    both = "inclusion_dates is missing in the card(s) chest_xray, dermoscopy."
    assert both in table["answer"]["TRIPOD+AI 5b"]
    assert "There is no flow_<task> of dermoscopy." in table["answer"]["CLAIM 19"]
    assert "a second training of fine-tuned arms" in table["answer"]["CLAIM 30"]
    assert table["where"]["CLAIM 20"] == "notebook 01; medlib/data/manifest.py"


def test_every_fact_of_the_items_is_gathered_and_no_other(study):
    assert set(gathered(study)) == set(shown.read().places)


def test_facts_are_those_of_the_files(study):
    told = {name: fact.words for name, fact in gathered(study).items()}
    found = "10 entries found, 2 excluded, 1 copies dropped; used 6 patients, 7 images"
    nothing = "7 entries found, 0 excluded, 0 copies dropped; used 6 patients, 7 images"
    assert told["counts"] == f"chest_xray: {found}. dermoscopy: {nothing}."
    copy = "1 × set aside: the same image as … of the test set"
    out = f"chest_xray: 2 × no label; {copy}. dermoscopy: nothing left out."
    assert told["exclusions"] == out
    chest = "train 2 (1 normal, 1 pneumonia); val 2 (1 normal, 1 pneumonia)"
    other = ", ".join(f"0 {name}" for name in ("akiec", "bcc", "bkl", "df"))
    skin = f"all 6 ({other}, 3 mel, 3 nv, 0 vasc); 3 folds of 2"
    test = "test 2 (1 normal, 1 pneumonia)"
    assert told["sizes"] == f"chest_xray: patients: {chest}; {test}. dermoscopy: patients: {skin}."
    drawn = "cross-validation by patient, 3 folds; drawn with seed 3, classes stratified"
    fixed = "the official test set; fixed beforehand"
    assert told["split"] == f"chest_xray: {fixed}. dermoscopy: {drawn}."
    assert told["missing"] == "dermoscopy: not known: age of 1 patients."
    # p0, p1, p2, p4 and p5 are 40, 50, 60, 70 and 80; p0 and p1 are the only men of six
    people = "age 60 (median; 40 to 80), 67 % female, 33 % male"
    assert told["demographics"] == f"dermoscopy: {people}."
    assert "Micro-ResNet" in told["models"] and "(2.5 million, gap)" in told["models"]
    assert "torch" in told["software"] and "git commit" in told["software"]


def test_what_manifests_do_not_tell_is_open(study):
    told = gathered(study)
    assert told["demographics"].state == OPEN
    unknown = "chest_xray: its manifest does not contain age, sex, site."
    assert unknown in told["demographics"].lacks
    assert told["sites"].lacks == "the manifests of chest_xray, dermoscopy contain no site"


def test_masks_that_choose_slices_have_to_be_explained(study):
    assert gathered(study)["masks"].words == "Nobody: pixels are read."
    told = gathered(study, tasks=["glioma_t1"], prepare={"volumes": {"choice": "largest_tumour"}})
    assert told["masks"].state == WRITE and "glioma_t1" in told["masks"].lacks
    assert "5 slices of a volume (largest tumour)" in told["subsets"].words


def test_results_are_told_where_they_are_and_not_done_where_they_are_not(study):
    before = gathered(study)
    for name in ("metrics", "performance", "sample_size", "saved_models"):
        assert before[name].words == "" and before[name].state == NOT_DONE and before[name].lacks
    row = {"task": "chest_xray", "head": "linear", "metric": "auroc"}
    rows = [row | {"value": 0.75}, row | {"value": 0.875}, row | {"head": "knn", "value": 0.1}]
    files.save_csv(study / "results" / "summary_over_seeds.csv", pd.DataFrame(rows))
    pairs = pd.DataFrame({"task": ["chest_xray"] * 3, "detectable": [0.02, 0.04, 0.09]})
    files.save_csv(study / "results" / "differences.csv", pairs)
    told = {name: fact.words for name, fact in gathered(study).items()}
    assert told["metrics"] == "AUROC"
    assert told["performance"] == "chest_xray: AUROC of 2 arms 0.750 to 0.875."
    found = "a difference of 0.040 would be found four times in five"
    assert told["sample_size"] == f"chest_xray: {found}."


def test_a_task_that_is_not_prepared_and_a_grid_without_runs_are_named(study):
    (study / "results" / "manifests" / "dermoscopy.csv").unlink()
    for path in (study / "results" / "runs").glob("*/*/*/*/run.json"):
        path.unlink()
    told = gathered(study)
    assert (
        told["counts"].lacks == "not prepared: dermoscopy" and "chest_xray" in told["counts"].words
    )
    assert told["software"].lacks == "no run is complete"


def test_a_field_that_is_written_into_a_card_fills_its_item(study, monkeypatch):
    def read(task, read=cards.read):
        return read(task).model_copy(update={"inclusion_dates": "2010 to 2015"})

    monkeypatch.setattr(cards, "read", read)
    table = items(study)
    assert table["state"]["TRIPOD+AI 5b"] == FILLED
    assert table["answer"]["TRIPOD+AI 5b"] == "chest_xray, dermoscopy: 2010 to 2015."


def test_phantoms_are_not_taken_for_the_data_set(study):
    grid = GRID | {"data": "phantoms"}
    (study / "small.yaml").write_text(yaml.safe_dump(grid))
    table = items(study)
    assert table["state"][["CLAIM 7", "CLAIM 13", "TRIPOD+AI 17"]].eq(NOT_DONE).all()
    assert "Vienna" not in table["answer"].str.cat()


def test_the_report_holds_the_checklist_folded(study):
    items(study)
    text = page.write(study / "small.yaml", study / "results", study / "figures").read_text("utf-8")
    section = text.split("<details><summary><h2>What a paper must report</h2></summary>")[1]
    section = section.split("</details>")[0]
    assert "<caption>What a paper must report: of 96 items" in section
    assert "TRIPOD+AI 27c" in section and "A caption." in section and "&lt;task&gt;" in section


def test_from_the_command_line_it_is_one_job(study, monkeypatch):
    names = ["small.yaml", "results", "figures"]
    monkeypatch.setattr("sys.argv", ["checklist", *(str(study / name) for name in names)])
    assert checklist.main() == 0
    there = {path.suffix for path in (study / "figures").glob("checklist.*")}
    assert there == {".csv", ".md", ".tex", ".html"}
