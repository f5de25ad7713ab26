"""medlib.stats.claims: verdicts on predictions whose truth is known, in all four outcomes."""

import numpy as np
import pandas as pd
import pytest

from medlib.core import backbones
from medlib.data import cards
from medlib.stats import claims, differences

CONTROLS = ("vit_small-imagenet", "vit_base-imagenet", "vit_small-random", "resnet50-random")
EVERY = (*claims.DINOV2.values(), *claims.CNNS, *CONTROLS)
TASKS = claims.MRI + claims.PUBLIC


def arms(value, sd=0.004, backbones=EVERY, fractions=None, seed=0, tasks=TASKS):
    """Arms whose AUROC is `value(task, backbone, regime)`, drawn with an independent error."""
    rng, made = np.random.default_rng(seed), []
    fractions = fractions or {"frozen": 1.0, "finetuned": 1.0}
    for task in tasks:
        for backbone in backbones:
            for regime, fraction in fractions.items():
                cell = {"task": task, "backbone": backbone, "regime": regime, "head": "linear"}
                cell |= {"label_fraction": fraction}
                cell |= {"pretraining": backbone.partition("-")[2] or "dinov2"}
                truth = value(task, backbone, regime)
                draws = truth + sd * rng.normal(size=2000)
                made.append(differences.Arm(cell, "auroc", truth, draws, [], ["no", "yes"]))
    return made


def as_claimed(task, backbone, regime):
    """AUROC as the paper claims it."""
    if backbone not in claims.DINOV2.values():
        return 0.85
    if task in claims.MRI:
        return 0.80
    return 0.93 if regime == "frozen" else 0.88


def reversed_(task, backbone, regime):
    """DINOv2 is better on MRI and worse elsewhere, and larger sizes are much better."""
    if backbone not in claims.DINOV2.values():
        return 0.80
    size = {"dinov2_small": -0.06, "dinov2_base": 0.0, "dinov2_large": 0.06}[backbone]
    return size + (0.88 if task in claims.MRI else 0.70)


def verdict(table):
    return table.groupby("claim")["verdict"].agg(lambda verdicts: " ".join(set(verdicts))).to_dict()


def test_what_the_paper_claims_is_supported_where_it_is_so():
    table = claims.verdicts(arms(as_claimed))
    assert verdict(table) == dict.fromkeys(["C1", "C2", "C3", "C4"], "supported")
    effects = table.set_index(["claim", "part"])["difference"]
    assert effects["C1", "DINOv2 (S, B, L) minus CNNs"] == pytest.approx(-0.05)
    assert effects["C2", "DINOv2 (S, B, L) minus CNNs"] == pytest.approx((0.08 + 0.03) / 2)
    assert effects["C2", "the same, frozen minus fine-tuned"] == pytest.approx(0.05)
    assert effects["C3", "DINOv2 S minus B"] == pytest.approx(0)
    assert (table["missing"] == "").all() and table["ci_low"].lt(table["ci_high"]).all()


def test_it_is_contradicted_where_the_opposite_is_so():
    table = claims.verdicts(arms(reversed_))
    assert verdict(table) == dict.fromkeys(["C1", "C2", "C3", "C4"], "contradicted")


def test_a_direction_is_contradicted_where_nothing_differs():
    table = claims.verdicts(arms(lambda *_: 0.85, sd=0.002))
    verdicts = verdict(table)
    assert verdicts["C1"] == verdicts["C2"] == "contradicted"
    assert verdicts["C3"] == verdicts["C4"] == "supported"


def test_it_is_inconclusive_where_the_intervals_are_wide():
    table = claims.verdicts(arms(lambda *_: 0.85, sd=0.2))
    assert verdict(table) == dict.fromkeys(["C1", "C2", "C3", "C4"], "inconclusive")


def test_one_part_of_a_claim_is_not_the_claim():
    def value(task, backbone, regime):  # stronger on photographs, frozen and fine-tuned
        return 0.93 if backbone in claims.DINOV2.values() and task in claims.PUBLIC else 0.85

    table = claims.verdicts(arms(value, sd=0.002)).set_index("claim")
    assert set(table.loc["C2", "verdict"]) == {"contradicted"}
    assert table.loc["C2", "p_for"].iloc[0] < 0.05 < table.loc["C2", "p_for"].iloc[1]


@pytest.mark.parametrize("lacking", ["dinov2_small", "dinov2_large", "vgg16-imagenet"])
def test_it_is_not_tested_without_every_weight_that_it_speaks_of(lacking):
    table = claims.verdicts(arms(as_claimed, backbones=[b for b in EVERY if b != lacking]))
    verdicts = verdict(table)
    assert verdicts["C1"] == verdicts["C2"] == "not tested"
    others = "not tested" if lacking in claims.DINOV2.values() else "supported"
    assert verdicts["C3"] == others
    missing = table[table["claim"] == "C1"]["missing"].iloc[0].split("; ")
    assert missing == [
        f"{task}: {lacking}, {regime}" for task in claims.MRI for regime in claims.BOTH
    ]
    untested = table[table["missing"] != ""]
    assert untested[["difference", "ci_low", "p_for", "p_against"]].isna().all(axis=None)


def test_random_weights_never_stand_in_for_pretrained_ones():
    names = [f"{b.partition('-')[0]}-random" for b in EVERY if "random" not in b]
    table = claims.verdicts(arms(lambda *_: 0.9, backbones=names))
    assert set(table["verdict"]) == {"not tested"}
    assert "glioma_ucsf_t1: dinov2_small, frozen" in table["missing"].iloc[0]
    assert set(claims.verdicts([])["verdict"]) == {"not tested"}


def test_a_regime_that_was_not_run_is_named():
    table = claims.verdicts(arms(as_claimed, fractions={"frozen": 1.0}))
    assert set(table["verdict"]) == {"not tested"}
    assert "finetuned" in table["missing"].iloc[0] and "frozen" not in table["missing"].iloc[0]


def test_frozen_and_fine_tuned_networks_are_compared_on_the_same_labels():
    few = arms(as_claimed, fractions={"frozen": 0.1, "finetuned": 0.1})
    many = arms(lambda *_: 0.99, fractions={"frozen": 1.0}, seed=1)
    table = claims.verdicts(few + many)
    assert set(table["verdict"]) == {"supported"}
    assert table["difference"].iloc[0] == pytest.approx(-0.05)


def test_other_heads_and_other_metrics_are_left_out():
    real = arms(as_claimed)
    knn = [a._replace(cell=a.cell | {"head": "knn"}, value=0.5) for a in real]
    brier = [a._replace(metric="brier", value=0.1) for a in real]
    expected = claims.verdicts(real)
    pd.testing.assert_frame_equal(claims.verdicts(real + knn + brier), expected)


def test_four_claims_are_corrected_for_their_number():
    # z = 2.2, a two-sided p of 0.028: significant alone, but not as the smallest of four.
    def value(task, backbone, regime):
        return 0.85 - (0.03 if backbone in claims.DINOV2.values() and task in claims.MRI else 0)

    sd = 0.03 / 2.2 * 3  # of an arm; of the contrast (6 backbones, 2 regimes, 3 tasks) a third
    table = claims.verdicts(arms(value, sd=sd, seed=4)).set_index("claim")
    p = table.loc["C1", "p_for"]
    assert 0.0125 < p < 0.05 and table.loc["C1", "ci_high"] < 0
    assert (table["p_for"].drop("C1") > 0.05).all()
    assert table.loc["C1", "verdict"] == "inconclusive"
    alone = claims.verdicts(arms(value, sd=sd, seed=4), claims.CLAIMS[:1])
    assert alone["verdict"].tolist() == ["supported"]


# ------------------------------------------------------------------------------------- stand-ins

GLIOMA = ["glioma_t1", "glioma_t1ce", "glioma_flair"]


def weaker_by(**losses):
    """AUROC 0.85, and less of DINOv2 on these tasks."""
    return lambda task, backbone, _: (
        0.85 - losses.get(task, 0) * (backbone in claims.DINOV2.values())
    )


def effects(table):
    """Of each claim's first part: the tasks, the difference and the note."""
    first = table.drop_duplicates(["claim", "note"]).set_index(["claim", "note"])
    return first[["tasks", "difference"]].apply(tuple, axis=1).to_dict()


def test_a_claim_is_judged_on_stand_ins_where_the_papers_tasks_were_not_run():
    tasks = [*GLIOMA, "chest_xray", "fundus_pm", "dermoscopy"]
    made = arms(weaker_by(glioma_t1=0.03, glioma_flair=0.06), tasks=tasks)
    table = claims.verdicts(made)
    assert effects(table)["C1", "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair"] == (
        "glioma_t1 glioma_t1ce glioma_flair",
        pytest.approx(-(0.03 + 0 + 0.06) / 3),
    )
    assert effects(table)["C2", "on stand-ins: fundus_pm"] == (
        "chest_xray fundus_pm dermoscopy",
        pytest.approx(0),
    )
    both = "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair, fundus_pm"
    assert set(table["note"][table["claim"].isin(["C3", "C4"])]) == {both}
    assert verdict(table)["C1"] == "supported" and (table["missing"] == "").all()
    pd.testing.assert_frame_equal(claims.with_stand_ins(made), table)
    parts = claims.confounds(made)
    assert list(parts["task"].unique()) == [*tasks, "all"]


def test_a_stand_in_is_never_mixed_with_the_papers_tasks():
    value = weaker_by(glioma_ucsf_t1=0.03, glioma_t1=0.3, glioma_t1ce=0.3, fundus_pm=0.3)
    own, every = arms(value), arms(value, tasks=[*TASKS, *GLIOMA, "fundus_pm"])
    table = claims.verdicts(every)
    assert set(table["note"]) == {""} and table["tasks"].iloc[0] == " ".join(claims.MRI)
    assert table["difference"].iloc[0] == pytest.approx(-0.03 / 3)
    expected = claims.verdicts(own)
    columns = ["claim", "part", "tasks", "difference", "verdict", "missing", "note"]
    pd.testing.assert_frame_equal(table[columns], expected[columns])
    assert "glioma_t1" not in set(claims.confounds(every)["task"])


def test_where_both_were_run_the_stand_ins_get_rows_of_their_own():
    value = weaker_by(glioma_ucsf_t1=0.03, glioma_t1=0.3)
    table = claims.with_stand_ins(arms(value, tasks=[*TASKS, *GLIOMA, "fundus_pm"]))
    own, added = table[table["note"] == ""], table[table["note"] != ""]
    assert own.index.tolist() == list(range(len(own))) and len(added) == len(own)
    assert own["claim"].tolist() == added["claim"].tolist()
    assert effects(table)["C1", ""][1] == pytest.approx(-0.03 / 3)
    note = "on stand-ins: glioma_t1, glioma_t1ce, glioma_flair"
    assert effects(table)["C1", note] == (" ".join(GLIOMA), pytest.approx(-0.3 / 3))
    assert (table["missing"] == "").all()


def test_a_claim_whose_tasks_no_stand_in_changes_gets_no_second_row():
    table = claims.with_stand_ins(arms(as_claimed, tasks=[*TASKS, "fundus_pm"]))
    added = table[table["note"] != ""]
    assert set(added["note"]) == {"on stand-ins: fundus_pm"}
    assert list(added["claim"].unique()) == ["C2", "C3", "C4"]
    assert added["tasks"].iloc[0] == "chest_xray fundus_pm dermoscopy"


def test_only_the_stand_ins_that_are_used_are_named():
    table = claims.verdicts(arms(as_claimed, tasks=["glioma_ucsf_t1", "glioma_t1", "glioma_t1ce"]))
    first = table.iloc[0]
    assert first["tasks"] == "glioma_ucsf_t1 glioma_t1ce glioma_ucsf_flair"
    assert first["note"] == "on stand-ins: glioma_t1ce" and first["verdict"] == "not tested"
    assert first["missing"].startswith("glioma_ucsf_flair: dinov2_small, frozen; ")


def test_another_task_is_not_judged():
    made = arms(as_claimed, tasks=[*TASKS, "glioma_who2021_t1", "knees"])
    table = claims.with_stand_ins(made)
    assert len(table) == len(claims.verdicts(made)) and set(table["note"]) == {""}


def test_claims_speak_of_tasks_and_backbones_that_there_are():
    for claim in claims.CLAIMS:
        assert set(claim.tasks) <= set(cards.tasks())
        for part in claim.parts:
            for name in part.backbones:
                assert backbones.get(name).pretraining != "random"
            assert sum(part.backbones.values()) == pytest.approx(0)
    assert [claim.name for claim in claims.CLAIMS] == ["C1", "C2", "C3", "C4"]
    for name in claims.SUPERVISED.values():
        assert backbones.get(name).pretraining == "imagenet"


# ------------------------------------------------------------------------------------- confounds


def test_the_difference_is_the_sum_of_pretraining_and_architecture():
    values = {"dinov2_small": 0.9, "vit_small-imagenet": 0.84, "vit_small-random": 0.6}
    values |= {"dinov2_base": 0.92, "vit_base-imagenet": 0.85, "resnet50-random": 0.7}
    table = claims.confounds(arms(lambda task, backbone, regime: values.get(backbone, 0.80)))
    effects = table.query("task == 'dermoscopy' and regime == 'frozen' and size == 'S'")
    effects = effects.set_index("part")["difference"]
    assert effects["total"] == pytest.approx(0.10)
    assert effects["pretraining"] == pytest.approx(0.06)
    assert effects["architecture"] == pytest.approx(0.04)
    assert effects["architecture, random weights"] == pytest.approx(-0.10)
    whole = table.pivot_table(index=["task", "regime", "size"], columns="part", values="difference")
    np.testing.assert_allclose(whole["pretraining"] + whole["architecture"], whole["total"])
    mean = table.query("task == 'all' and part == 'total' and size == 'B'")
    assert len(mean) == 2 and mean["difference"].tolist() == pytest.approx([0.12, 0.12])
    wide = table.query("task == 'dermoscopy' and part == 'total'")
    assert (mean["ci_high"] - mean["ci_low"]).max() < (wide["ci_high"] - wide["ci_low"]).min()


def test_a_part_without_its_control_is_not_tested_and_the_others_are():
    table = claims.confounds(arms(as_claimed, backbones=[b for b in EVERY if "vit_" not in b]))
    tested = table[table["missing"] == ""]
    assert set(tested["part"]) == {"total"} and tested["difference"].notna().all()
    lacking = table[(table["part"] == "pretraining") & (table["task"] == "chest_xray")]
    assert lacking["missing"].str.contains("chest_xray: vit_").all()
    assert lacking["difference"].isna().all()
