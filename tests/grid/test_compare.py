"""Two grids side by side, on made runs: what differs, and AUROCs that scikit-learn confirms."""

import numpy as np
import pandas as pd
import pytest
import yaml
from made_runs import predictions, write
from sklearn.metrics import roc_auc_score

from medlib import files
from medlib.grid import address, compare, gridfile

TASK, BACKBONE = "fundus_pm", "resnet50-imagenet"
FROZEN = {"backbones": [BACKBONE, "dinov2_small"], "image_size": 224, "heads": ["linear", "knn"]}
GRID = {"title": "a", "data": "phantoms", "tasks": [TASK], "seeds": [0], "frozen": FROZEN}
GRID |= {"collect": {"resamples": 400}}
VERSIONS = {"medlib": "0.1.0", "torch": "2.0"}


def save(root, grid, shift=0.0, n_patients=40, commit="aaa", again=0.01):
    """A grid file in a folder of its own, with all its runs; returns the path of the file.

    Each run predicts the same patients. ``shift`` moves their probabilities towards the first
    class, by a random share of it.
    """
    (root / "grids").mkdir(parents=True)
    (root / "grids" / "g.yaml").write_text(yaml.safe_dump(grid))
    results = root / "results" / "g"
    for run in gridfile.runs(gridfile.read(root / "grids" / "g.yaml")):
        frame = predictions("mri", run.seed, n_patients)
        moved = shift * np.random.default_rng(9).uniform(size=len(frame))
        frame["prob_low"] = (frame["prob_low"] + moved) / (1 + moved)
        frame["prob_high"] = 1 - frame["prob_low"]
        value = roc_auc_score(frame["y_true"] == "high", frame["prob_high"])
        drawn = np.random.default_rng(1).normal(value, again, 50)
        pretraining = "imagenet" if run.backbone == BACKBONE else "dinov2"
        record = {"git_commit": commit, "versions": VERSIONS}
        write(
            run.folder(results),
            vars(run) | {"pretraining": pretraining},
            frame,
            pd.DataFrame({"auroc": drawn}),
            **record,
        )
        run.promised(results).touch()
    table = frame.rename(columns={"y_true": "label"}).assign(path="x.png")
    files.save_csv(address.manifest(results, TASK), table)
    return root / "grids" / "g.yaml"


def sides(*paths):
    return [compare.side(str(path)) for path in paths]


def auroc(side, run):
    frame = pd.read_csv(run.folder(side.results) / "predictions.csv")
    return roc_auc_score(frame["y_true"] == "high", frame["prob_high"])


def test_a_grid_beside_itself_does_not_differ(tmp_path):
    one, other = sides(*[save(tmp_path / "a", GRID)] * 2)
    assert compare.facts(one, other).empty
    values = compare.numbers(one, other)
    assert len(values) == 4 and set(values["note"]) == {compare.PAIRED}
    assert values[["difference", *compare.INTERVALS]].eq(0).all(axis=None)
    assert "No difference in data, code and settings." in compare.text(
        compare.facts(one, other), values, one, other
    )


def test_on_the_same_patients_the_difference_is_paired(tmp_path):
    changed = GRID | {"frozen": FROZEN | {"heads": ["linear"]}, "seeds": [0, 1]}
    one, other = sides(
        save(tmp_path / "a", GRID), save(tmp_path / "b", changed, 2.0, commit="bbb", again=0.02)
    )
    found = compare.facts(one, other).set_index("what")
    assert found.loc["git commit", ["one", "other"]].tolist() == ["aaa", "bbb"]
    assert found.loc["frozen.heads", ["one", "other"]].tolist() == ["linear, knn", "linear"]
    assert found.loc["seeds", ["one", "other"]].tolist() == ["0", "0, 1"]
    assert "torch" not in found.index and f"{TASK}: patients" not in found.index
    assert found.loc[f"{TASK}: manifest", "part"] == "data"  # other probabilities stand in it
    values = compare.numbers(one, other)
    assert values["head"].tolist() == ["linear"] * 2 and values["backbone"].is_unique
    run = address.Address(TASK, BACKBONE, "frozen")
    row = values.set_index("backbone").loc[BACKBONE]
    a, b = auroc(one, run), auroc(other, run)
    assert row["one"] == pytest.approx(a) and row["other"] == pytest.approx(b)
    assert row["difference"] == pytest.approx(b - a) and row["difference"] != 0
    # Over test patients: draws of whole patients, the same ones for both grids.
    frames = [
        pd.read_csv(run.folder(side.results) / "predictions.csv", dtype=str)
        for side in (one, other)
    ]
    rng, drawn = np.random.default_rng(3), []
    for _ in range(1500):
        chosen = rng.integers(0, 40, 40)
        rows = np.concatenate([2 * chosen, 2 * chosen + 1])
        pairs = [
            (f["y_true"].to_numpy()[rows] == "high", f["prob_high"].to_numpy()[rows])
            for f in frames
        ]
        drawn.append(np.subtract(*(roc_auc_score(y, p.astype(float)) for y, p in pairs[::-1])))
    half = (row["ci_high"] - row["ci_low"]) / 2
    assert half == pytest.approx(1.96 * np.std(drawn), rel=0.12)
    # Over training patients as well: redraws with the same normal numbers, times 0.01 and 0.02.
    redraws = 0.01 * np.std(np.random.default_rng(1).normal(size=50), ddof=1)
    whole = (row["procedure_high"] - row["procedure_low"]) / 2
    assert whole == pytest.approx(1.96 * np.hypot(half / 1.96, redraws), rel=0.05)
    said = compare.text(compare.facts(one, other), values, one, other)
    assert "Only A has 2 arms, only B has 0." in said and f"{b - a:+.3f} [" in said


def test_on_other_patients_there_are_only_the_two_values(tmp_path):
    one, other = sides(save(tmp_path / "a", GRID), save(tmp_path / "b", GRID, n_patients=50))
    found = compare.facts(one, other).set_index("what")
    assert found.loc[f"{TASK}: patients", ["one", "other"]].tolist() == ["40", "50"]
    values = compare.numbers(one, other)
    assert len(values) == 4 and set(values["note"]) == {compare.APART}
    assert values["difference"].isna().all()
    assert values[["one", "other", "one_ci_low", "other_procedure_high"]].notna().all(axis=None)
    said = compare.text(compare.facts(one, other), values, one, other)
    assert "| – " in said and "40; 50" in said and "In 0 of them" in said


def test_from_the_command_line_both_tables_are_printed_and_saved(tmp_path, monkeypatch, capsys):
    a, b = save(tmp_path / "a", GRID), save(tmp_path / "b", GRID, commit="b|b")
    words = ["compare", str(a), str(b), "--out", str(tmp_path / "made" / "both")]
    monkeypatch.setattr("sys.argv", words)
    assert compare.main() == 0
    said = (tmp_path / "made" / "both.md").read_text("utf-8")
    assert said in capsys.readouterr().out and r"b\|b" in said
    table = pd.read_csv(tmp_path / "made" / "both.csv")
    assert set(table["part"]) == {"code and hardware", "numbers"}
    assert table["difference"].notna().sum() == 4


def test_what_cannot_be_compared_is_one_message(tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "a", GRID)
    (path.parent / "empty.yaml").write_text(path.read_text())
    for name, words in (("empty", "holds no complete run"), ("nothing", "nothing")):
        monkeypatch.setattr("sys.argv", ["compare", str(path), str(path.with_stem(name))])
        assert compare.main() == 1
        assert words in capsys.readouterr().err
