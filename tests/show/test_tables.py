"""Tables in all formats: they show what the frames say, with the right bold, and LaTeX compiles."""

import itertools
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from made_arms import varying
from shown import ARMS, FROZEN_10, FROZEN_ALL, TASKS, TUNED_10, long_table, row_names

from medlib.show import tables
from medlib.show.figures import comparison
from medlib.show.names import METRICS
from medlib.stats import claims


def test_main_table_holds_the_numbers_of_the_long_table_in_order():
    table = long_table(ARMS).sample(frac=1, random_state=0)
    wide = tables.main_table(table, TASKS, metrics=("accuracy", "auroc"))
    assert len(wide) == 2 * 4 * 4
    assert list(wide["task"].unique()) == ["Glioma grade", "Dermoscopy"]
    assert list(wide["backbone"].unique()) == row_names(comparison.main_comparison(table, TASKS))
    first = wide.iloc[:4]
    arms = list(zip(first.regime, first["head"], first.label_fraction, strict=True))
    assert arms == [FROZEN_ALL, FROZEN_10, ("frozen", "knn", 1.0), TUNED_10]
    one = "task == 'mri' and backbone == 'vit_tiny-random' and head == 'knn' and metric == 'auroc'"
    source = table.query(one).iloc[0]
    cell = wide[
        (wide.task == "Glioma grade") & (wide.pretraining == "random") & (wide["head"] == "knn")
    ].iloc[0]
    ends = f"[{source.procedure_low:.3f}, {source.procedure_high:.3f}]"
    assert cell["auroc"] == f"{source.value:.3f} {ends}"
    assert cell["n_patients"] == 40 and cell["candidates"] == 7 and cell["training"] == "25%"
    gaps = table[(table.metric != "auroc") | (table.regime == "frozen")]
    gaps = tables.main_table(gaps, TASKS)
    assert (gaps.auroc[gaps.regime == "finetuned"] == "").all() and (gaps.f1_weighted == "").all()
    assert len(gaps) == len(wide)


def test_a_cell_says_which_interval_it_has_and_which_mean_is_over_a_class_of_few():
    names = ("accuracy", "f1_weighted", "f1_macro", "auroc", "kappa", "ece")
    table = long_table({"mri": [FROZEN_ALL]}, {"dinov2_small": "dinov2"}, metrics=names)
    value, intervals = table["value"].tolist(), ["ci_low", "ci_high", "procedure_low"]
    intervals += ["procedure_high"]
    table.loc[table["metric"] == "ece", intervals] = np.nan  # a calibration error never has one
    once = table.assign(procedure_low=np.nan, procedure_high=np.nan)

    def cells(of):
        return tables.main_table(of, TASKS, metrics=names)[list(names)].iloc[0].tolist()

    whole = [f"{v:.3f} [{v - 0.07:.3f}, {v + 0.05:.3f}]" for v in value[:-1]]
    short = [f"{v:.3f} [{v - 0.05:.3f}, {v + 0.04:.3f}]†" for v in value[:-1]]
    without = f"{value[-1]:.3f}"
    assert cells(table) == [*whole, without]
    assert cells(once) == [*short, without]
    few = ["", "", "‡", "‡", ""]  # the rarest class matters only for means over classes
    for of, texts in ((table, whole), (once, short)):
        marked = [text + mark for text, mark in zip(texts, few, strict=True)]
        assert cells(of.assign(rarest=19)) == [*marked, without]
    assert tables.MARKS.startswith("†: ") and "; ‡: " in tables.MARKS
    assert "fewer than 20 patients" in tables.MARKS


def test_marks_are_in_every_format_and_change_no_comparison(tmp_path):
    table = long_table(ARMS, metrics=("auroc",)).assign(rarest=3)
    once = table["backbone"] == "dinov2_small"
    table.loc[once, ["procedure_low", "procedure_high"]] = np.nan
    wide = tables.main_table(table, TASKS, metrics=("auroc",))
    written = tables.save_table(wide, tmp_path / "t", note=tables.MARKS)
    for path in written[1:]:
        text = path.read_text("utf-8")
        assert text.count("]†‡") == once.sum() and text.count("]‡") == (~once).sum()
        assert tables.MARKS in text
    best = [f"{value:.3f}" for value in table.groupby("task", sort=False)["value"].max()]
    md = written[1].read_text("utf-8")
    assert [cell[:5] for cell in re.findall(r"\*\*(.*?)\*\*", md)] == best


def test_the_share_that_is_due_to_training_is_that_of_the_auroc():
    names, both = ("accuracy", "auroc"), {"vgg16-imagenet": "imagenet", "dinov2_small": "dinov2"}
    table = long_table({"mri": [FROZEN_ALL]}, both, metrics=names)
    table["training_share"] = [0.9, 0.126, 0.9, np.nan]
    wide = tables.main_table(table, TASKS, metrics=names)
    assert wide["training"].tolist() == ["13%", ""] and list(wide)[-3:] == [*names, "training"]
    without = tables.main_table(table[table["metric"] == "accuracy"], TASKS, metrics=names)
    assert without["training"].tolist() == ["", ""]


def test_the_best_is_bold_where_a_marked_value_has_no_interval(tmp_path):
    table = long_table({"mri": [FROZEN_ALL]}, metrics=("auroc",)).assign(rarest=3)
    intervals = ["ci_low", "ci_high", "procedure_low", "procedure_high"]
    table[intervals] = np.nan  # as in a grid without resamples
    wide = tables.main_table(table, TASKS, metrics=("auroc",))
    _, md, *_ = tables.save_table(wide, tmp_path / "t")
    assert re.findall(r"\*\*(.*?)\*\*", md.read_text("utf-8")) == [f"{table['value'].max():.3f}‡"]


def test_tables_agree_across_formats_and_bold_the_best(tmp_path):
    wide = tables.main_table(long_table(ARMS), TASKS, metrics=("balanced_accuracy", "auroc"))
    paths = tables.save_table(wide, tmp_path / "t" / "main_table", "100 % of_it & more", "A note.")
    assert [path.name for path in paths] == [
        f"main_table.{k}" for k in ("csv", "md", "tex", "html")
    ]
    csv, md, tex, html = (path.read_text() for path in paths)
    back = pd.read_csv(paths[0], keep_default_na=False)
    assert list(back["auroc"]) == list(wide["auroc"])
    number = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]"
    for text in (md, tex, html):
        assert re.findall(number, text) == list(wide["auroc"])
    # values rise down the long table, so the last arm of a task is the best
    long = long_table(ARMS)
    long = long[long.metric == "auroc"]
    best = [f"{v:.3f}" for v in long.groupby("task", sort=False)["value"].max()]
    assert [cell[:5] for cell in re.findall(r"\\textbf\{(.*?)\}", tex)] == best
    assert [cell[:5] for cell in re.findall(r"\*\*(.*?)\*\*", md)] == best
    assert [cell[:5] for cell in re.findall(r"<b>(.*?)</b>", html)] == best
    assert "<caption>100 % of_it &amp; more</caption>" in html and html.count("<tr>") == 1 + len(
        wide
    )
    assert "\\caption{100 \\% of\\_it \\& more}" in tex
    headings = ["task", "backbone", "regime", "head", "labels", "patients", "candidates"]
    headings += ["balanced accuracy", "AUROC", "due to training"]
    assert re.findall("<th>(.*?)</th>", html) == headings
    lines = tex.splitlines()
    assert lines[lines.index(r"\toprule") + 1] == " & ".join(headings) + r" \\"
    assert [word.strip() for word in md.splitlines()[2].strip("|").split("|")] == headings
    assert list(back.columns) == list(wide.columns)  # the CSV has the raw table, with pretraining
    assert "100 \\%" in tex and "| 10 %" in md
    body = tex.split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    assert body.count("\\midrule") == 1  # between the two tasks
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", tex)[1]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(wide)
    assert all(line.count(" & ") == len(columns) - 1 for line in rows)
    assert tex.count("{") - tex.count("\\{") == tex.count("}") - tex.count("\\}")
    assert "A note." in tex and "A note." in html and "\n\nA note. Licences" in md
    again = tables.save_table(wide, tmp_path / "u" / "main_table", "100 % of_it & more", "A note.")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_licences_stand_under_every_table_of_backbones(tmp_path):
    names = ["RETFound L, 448 px", "VGG16 (ImageNet)", "ViT-S (random weights)"]
    rows = pd.DataFrame({"backbone": names})
    words = "A note. Licences of the weights: BSD-3-Clause (VGG16 (ImageNet)); "
    words += "CC-BY-NC-4.0, gated (RETFound L)."
    _, md, tex, html = tables.save_table(rows, tmp_path / "t", note="A note.")
    assert all(words in path.read_text("utf-8") for path in (md, tex, html))
    other = tables.save_table(pd.DataFrame({"claim": ["C1"]}), tmp_path / "u")
    assert "Licences" not in other[1].read_text("utf-8")


def test_best_is_decided_by_number_and_only_for_metrics(tmp_path):
    frame = pd.DataFrame(
        {
            "task": ["a", "a", "a", "b"],
            "auroc": ["0.9 [0.8, 1.0]", "0.95", "", "0.5"],
            "p_value": [0.5, 0.001, np.nan, 1.0],
            "what": ["p < 5 %", "$ # {y} ^", "a_b", "±"],
        }
    )
    paths = tables.save_table(frame, tmp_path / "claims")
    _, md, tex, html = (path.read_text() for path in paths)
    assert re.findall("<b>(.*?)</b>", html) == ["0.95"] and "p &lt; 5 %" in html
    assert re.findall(r"\\textbf\{(.*?)\}", tex) == ["0.95"]  # task b has a single value
    assert r"p \textless{} 5 \%" in tex and r"\$ \# \{y\} \textasciicircum" in tex
    assert r"a\_b" in tex and "p value" in tex
    assert "| – " in md and "| 0.001 " in md and "**0.95**" in md


def test_pretraining_is_printed_where_a_name_does_not_say_it(tmp_path):
    table = long_table({"mri": [FROZEN_ALL]}, {"new_net": "radimagenet"})
    _, md, tex, _ = tables.save_table(tables.main_table(table, TASKS), tmp_path / "table")
    assert "| radimagenet" in md.read_text() and "& radimagenet" in tex.read_text()


def test_bold_is_what_is_tied_with_the_best_where_that_is_known(tmp_path):
    table = long_table(ARMS).sample(frac=1, random_state=3)
    names = ("accuracy", "auroc")
    table["tied"] = table["backbone"].isin(["dinov2_small"]) & (table["metric"] == "auroc")
    table = table[table["head"] == "linear"]
    wide, best = (make(table, TASKS, names) for make in (tables.main_table, tables.ties))
    assert list(best) == list(names) and len(best) == len(wide)
    assert (best["auroc"] == (wide["backbone"] == "DINOv2 S")).all() and not best["accuracy"].any()
    paths = tables.save_table(wide, tmp_path / "t", best=best)
    _, md, tex, _ = (path.read_text() for path in paths)
    bold = [line for line in md.splitlines() if "**" in line]
    assert len(bold) == 6 and all("DINOv2 S" in line and line.count("**") == 2 for line in bold)
    assert tex.count(r"\textbf{") == 6


def test_less_is_better_for_losses(tmp_path):
    frame = pd.DataFrame({"task": ["a", "a"], "brier": ["0.2", "0.1"], "auroc": ["0.9", "0.8"]})
    _, md, *_ = tables.save_table(frame, tmp_path / "t")
    assert "**0.1**" in md.read_text() and "**0.9**" in md.read_text()


def test_metrics_are_printed_in_one_order():
    table = pd.DataFrame({"metric": ["brier", "auroc", "accuracy", "auroc"]})
    assert tables.all_metrics(table) == ["auroc", "accuracy", "brier"]


def verdicts(tasks=claims.MRI + claims.PUBLIC, seeds=(0, 1, 2)):
    """Verdicts and confounds of arms with the same AUROC; fine-tuned arms have these ``seeds``."""
    rng, arms = np.random.default_rng(0), []
    for task in tasks:
        for backbone in (*claims.DINOV2.values(), *claims.CNNS[:2]):
            for regime in claims.BOTH:
                of = seeds if regime == "finetuned" else (0,)
                how = {"seeds": of, "resamples": 500, "task": task, "regime": regime}
                arms.append(varying(backbone, 0.8, 0.002, 0.002, rng, **how))
    return claims.verdicts(arms), claims.confounds(arms)


def test_the_claims_table_says_what_was_not_tested_and_what_is_missing(tmp_path):
    judged, parts = verdicts()
    table = tables.claims_table(judged)
    assert table["claim"].tolist() == judged["claim"].tolist()
    first = table.iloc[0]
    assert first["difference in AUROC"] == first["verdict"] == "not tested"
    assert first["missing"] == "densenet121-imagenet" and first["power"] == ""
    sizes = table[table["claim"] == "C3"]
    assert set(sizes["verdict"]) == {"supported"} and set(sizes["missing"]) == {""}
    assert sizes["expected"].iloc[0] == "within ± 0.02"
    # The variance is 0.002² for patients and again for training, times 4 / 24: six tasks, two
    # regimes and two backbones.
    error, of_c3 = np.sqrt(2 * 0.002**2 * 4 / 24), judged[judged["claim"] == "C3"]
    np.testing.assert_allclose(of_c3["error"], error, rtol=0.2)
    assert set(sizes["power"]) == {"100%"}  # the margin is 17 errors wide
    cells = sizes["difference in AUROC"].tolist()
    for cell, row in zip(cells, of_c3.itertuples(), strict=True):
        assert re.fullmatch(r"[+-]0\.000 \[-0\.00\d, \+0\.00\d\]", cell)
        assert cell.split("[")[1] == f"{row.procedure_low:+.3f}, {row.procedure_high:+.3f}]"
    csv, md, *_ = tables.save_table(table, tmp_path / "claims", data=judged)
    assert {"power", "procedure_low", "verdict", "missing"} <= set(pd.read_csv(csv))
    assert "not tested" in md.read_text()
    titles = {task: {"title": task.upper()} for task in claims.MRI + claims.PUBLIC}
    wide = tables.confounds_table(parts, titles)
    kinds = ["total", "pretraining", "architecture", "architecture, random weights"]
    assert list(wide) == ["task", "regime", "size", *kinds]
    first = ["GLIOMA_UCSF_T1", "GLIOMA_UCSF_T1CE"]
    assert len(wide) == 2 * 2 * 7 and wide["task"].iloc[:2].tolist() == first
    assert set(wide["pretraining"]) == {"not tested"} and "mean over all tasks" in set(wide["task"])


def test_of_arms_that_were_trained_once_no_claim_has_an_interval():
    judged, _ = verdicts(seeds=(0,))
    sizes = tables.claims_table(judged).query("claim == 'C3'")
    assert set(sizes["difference in AUROC"]) == set(sizes["verdict"]) == {"not tested"}
    assert set(sizes["missing"]) == {"more than one training of each arm"}
    assert judged.query("claim == 'C3'")["ci_low"].notna().all()  # the interval over patients


def test_the_power_of_a_part_is_printed_in_percent():
    judged, _ = verdicts()
    judged["power"] = [None, 0.004, 0.495, 0.804, *[1.0] * (len(judged) - 4)]
    printed = tables.claims_table(judged.astype({"power": float}))["power"].tolist()
    assert printed[:5] == ["", "0%", "50%", "80%", "100%"]


def test_calibrated_metrics_stand_under_raw_ones_of_the_same_backbone():
    rows = []
    for at, (backbone, pretraining) in enumerate(
        {"dinov2_small": "dinov2", "vgg16-imagenet": "imagenet"}.items()
    ):
        for kind, more in (("raw", 0.2), ("calibrated", 0.1)):
            for metric in ("brier", "ece"):
                value = more + 0.01 * at
                ends = (value - 0.05, value + 0.06) if metric == "brier" else (np.nan, np.nan)
                names = {"backbone": backbone, "pretraining": pretraining, "probabilities": kind}
                names |= {"metric": metric, "value": value, "ci_low": ends[0], "ci_high": ends[1]}
                names["class"] = ""
                rows.append(names)
    table = tables.calibration_table(pd.DataFrame(rows))
    assert table.to_numpy().tolist() == [
        ["VGG16 (ImageNet)", "raw", "0.210 [0.160, 0.270]", "0.210"],
        ["VGG16 (ImageNet)", "calibrated", "0.110 [0.060, 0.170]", "0.110"],
        ["DINOv2 S", "raw", "0.200 [0.150, 0.260]", "0.200"],
        ["DINOv2 S", "calibrated", "0.100 [0.050, 0.160]", "0.100"],
    ]
    assert list(table) == ["backbone", "probabilities", "brier", "ece"]


def coefficients(classes):
    same = {"backbone": "dinov2_small", "pretraining": "dinov2", "probabilities": "raw"}
    rows = [
        same | {"metric": metric, "class": name, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
        for metric in ("intercept", "slope")
        for name in classes
    ]
    return pd.DataFrame(rows)


def test_of_two_classes_slope_and_intercept_are_printed_and_of_more_the_mean_slope():
    two = tables.calibration_table(coefficients(["high"]))
    assert list(two) == ["backbone", "probabilities", "calibration intercept", "calibration slope"]
    more = tables.calibration_table(coefficients(["a", "b", "c", ""]))
    assert list(more) == ["backbone", "probabilities", "calibration slope"]
    assert more["calibration slope"].tolist() == ["0.500 [0.400, 0.600]"]


def test_the_table_of_thresholds_has_a_row_for_each_class_backbone_and_rule():
    rows = []
    for rule, at in (("likeliest class", np.nan), ("Youden", 0.25)):
        for metric, prevalence in (("sensitivity", 0.5), ("ppv", 0.5), ("ppv", 0.01)):
            row = {"class": "melanoma", "rule": rule, "threshold": at, "metric": metric}
            row |= {"prevalence": prevalence, "value": 0.9, "ci_low": 0.8, "ci_high": 0.95}
            rows.append(row | {"validation": 0.875})
    points = pd.DataFrame(rows)
    both = [
        points.assign(backbone=name, pretraining=weights)
        for name, weights in (("dinov2_small", "dinov2"), ("vgg16-imagenet", "imagenet"))
    ]
    table = tables.thresholds_table(pd.concat(both))
    cell = "0.90 [0.80, 0.95]"
    assert table.to_numpy().tolist() == [
        ["melanoma", name, rule, at, f"{cell} (0.88)", cell, cell]
        for name in ("VGG16 (ImageNet)", "DINOv2 S")
        for rule, at in (("likeliest class", ""), ("Youden", "0.25"))
    ]
    assert list(table)[4:] == ["sensitivity", "PPV", "PPV at 0.01"]


def test_the_claims_table_names_the_stand_ins(tmp_path):
    judged, _ = verdicts(["glioma_ucsf_t1", "glioma_t1ce", "chest_xray", "fundus_pm"])
    table = tables.claims_table(judged).set_index("claim")
    assert table.loc["C1", "note"] == "on stand-ins: glioma_t1ce"
    assert set(table.loc["C2", "note"]) == {"on stand-ins: fundus_pm"}
    assert set(table.loc["C3", "note"]) == {"on stand-ins: glioma_t1ce, fundus_pm"}
    written = tables.save_table(table.reset_index(), tmp_path / "claims", data=judged)
    for path in written[1:]:
        assert "on stand-ins: glioma" in path.read_text()
    assert set(pd.read_csv(written[0], keep_default_na=False)["note"]) == set(judged["note"])
    assert set(tables.claims_table(verdicts()[0])["note"]) == {""}


def large_table():
    heads = [("frozen", head, share) for head in ("linear", "knn", "mlp") for share in (1.0, 0.1)]
    arms = {f"t{i}": heads for i in range(6)}
    tasks = {task: {"title": f"Task {task}, with a title & more", "chance": 0.5} for task in arms}
    return tables.main_table(long_table(arms, metrics=tuple(METRICS)), tasks, METRICS)


def test_a_table_that_would_leave_the_page_becomes_several(tmp_path):
    wide = large_table()
    paths = tables.save_table(wide, tmp_path / "full", "All, 95 %.")
    _, md, tex, _ = (path.read_text() for path in paths)
    parts = tex.split(r"\begin{table}")[1:]
    # The names of an arm take 71 of 150 letters. Three of 16 metrics fit, with 20 letters each.
    assert len(parts) == 6 * 6 and md.count("\n|") == len(wide) + 2
    labels = re.findall(r"\\label\{(.*?)\}", tex)
    assert labels == [f"tab:full-{i}" for i in range(1, 37)]
    number = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]"
    assert len(re.findall(number, tex)) == len(wide) * len(METRICS)
    for part in parts:
        longest = max(len(line) for line in part.splitlines() if "&" in line)
        assert longest < 240 and part.count(r"\\") <= 26


@pytest.mark.parametrize("engine", ["pdflatex", "xelatex", "tectonic"])
def test_tables_compile_with_a_plain_article_class(tmp_path, engine):
    if shutil.which(engine) is None:
        pytest.skip(f"there is no {engine}")
    judged, _ = verdicts()
    tables.save_table(large_table(), tmp_path / "full", "All metrics, 95 % & more", "A note.")
    tables.save_table(
        tables.claims_table(judged), tmp_path / "claims", "Claims", "C1: less < more > 5 %."
    )
    marked = long_table(ARMS).assign(rarest=3, procedure_low=np.nan)
    tables.save_table(tables.main_table(marked, TASKS), tmp_path / "main", "Main", "A_note #1 † ‡")
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\extrafloats{100}\n"
        "\\begin{document}\n\\input{full}\\input{claims}\\input{main}\n\\end{document}\n"
    )
    command = [engine, *(["-halt-on-error"] if engine != "tectonic" else []), "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
    boxes = re.findall(r"Overfull .hbox \((\d+)", done.stdout)
    assert not [points for points in boxes if float(points) > 60], boxes


def test_captions_and_cells_are_escaped_in_every_format(tmp_path):
    sly = r"\input{/etc/passwd} ^ ~ a|b <img src=x onerror=alert(1)> & 5 %"
    frame = pd.DataFrame({"task": [sly], "a|b": ["=1+1"]})
    csv, md, tex, html = tables.save_table(frame, tmp_path / "t", caption=sly, note=sly)
    tex = tex.read_text()
    assert r"\input" not in tex and tex.count(r"\textbackslash") == 3
    assert tex.count("textasciicircum") == 3 and tex.count("textasciitilde") == 3
    (row,) = [
        line for line in md.read_text().splitlines() if line.startswith("| ") and "input" in line
    ]
    assert row.count("|") - row.count(r"\|") == 3 and "<img" not in row
    assert "<img" not in html.read_text()
    assert pd.read_csv(csv).loc[0, "a|b"] == "'=1+1"


def test_each_class_has_a_row_a_backbone_and_a_mark_where_it_has_few_patients():
    cells = itertools.product(["a_b", "c"], ["auroc", "sensitivity", "specificity"])
    rows = pd.DataFrame(cells, columns=["label", "metric"])
    rows["n_patients"] = [1200, 1200, 1200, 19, 19, 19]
    rows = rows.assign(value=0.5, ci_low=0.4, ci_high=0.6)
    rows.loc[4, ["value", "ci_low", "ci_high"]] = np.nan
    kept = {"vit_tiny-random": "random", "dinov2_small": "dinov2"}
    rates = pd.concat(rows.assign(backbone=b, pretraining=p) for b, p in kept.items())
    table = tables.classes_table(rates, ["c", "a_b"])
    assert list(table) == [
        "class", "n_patients", "backbone", "auroc", "sensitivity", "specificity",
    ]  # fmt: skip
    assert table["class"].tolist() == ["c", "c", "a b", "a b"]
    assert table["n_patients"].tolist() == ["19‡", "19‡", "1,200", "1,200"]
    assert table["backbone"].tolist() == ["ViT-Ti (random weights)", "DINOv2 S"] * 2
    assert set(table["auroc"]) == {"0.500 [0.400, 0.600]"}
    assert table["sensitivity"].tolist() == ["", "", *["0.500 [0.400, 0.600]"] * 2]
