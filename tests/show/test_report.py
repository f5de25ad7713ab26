"""medlib.report: one page that holds everything, and opens in a browser without a network."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from medlib.grid import gridfile, records
from medlib.show import report, style, tables
from medlib.show.figures.predictions import roc_curves

GRID = {
    "title": "Small & quick <grid>", "caption": "Phantoms, random weights.", "data": "phantoms",
    "tasks": ["chest_xray", "fundus_pm"], "seeds": [0],
    "frozen": {"backbones": ["micro_resnet-random"], "image_size": 28, "heads": ["linear"]},
    "finetuned": {"backbones": ["micro_resnet-random"], "image_size": 28, "epochs": 1,
                  "learning_rates": [0.001]},
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """A grid of four runs of which three are complete, a figure and a table."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(GRID))
    found = gridfile.read(tmp_path / "small.yaml")
    for run in gridfile.runs(found)[:3]:
        provenance = records.Provenance("random", parameters={}, inputs={}, seconds=1.0)
        predictions, results = pd.DataFrame({"a": [1]}), tmp_path / "results"
        records.save_run(run, results, provenance, predictions, pd.DataFrame(), metrics={})
        run.promised(results).touch()
    figures = tmp_path / "figures"
    predictions = pd.DataFrame({"y_true": ["a", "b"], "prob_a": [0.9, 0.2], "prob_b": [0.1, 0.8]})
    style.save(roc_curves(predictions, ["a", "b"]), figures / "main_comparison")
    style.save(roc_curves(predictions, ["a", "b"]), figures / "curves_fundus_pm")
    table = pd.DataFrame({"task": ["x < y", "x < y"], "auroc": ["0.9", "0.8"], "n": [1, np.nan]})
    tables.save_table(table, figures / "main_table", "A & caption", "A note.")
    return tmp_path


def write(study):
    return report.write(study / "small.yaml", study / "results", study / "figures")


def test_the_page_holds_every_figure_and_table_and_nothing_from_elsewhere(study):
    path = write(study)
    page = path.read_text(encoding="utf-8")
    assert path == study / "figures" / "report_incomplete.html"  # of four runs three are there
    assert page.count("data:image/png;base64,") == 2
    assert (
        not re.search(r'(src|href)="(?!data:|#)', page)
        and "http" not in page.split("<style>")[1][:50]
    )
    assert "Small &amp; quick &lt;grid&gt;" in page and "<b>0.9</b>" in page
    assert "A &amp; caption" in page and "A note." in page and "x &lt; y" in page
    assert (
        page.index('id="main_comparison"')
        < page.index('id="main_table"')
        < page.index('id="curves"')
    )
    links = set(re.findall(r'href="#(.*?)"', page))
    assert links == set(re.findall(r'<h2 id="(.*?)"', page))
    assert "arXiv 2402.07595" in page and "torch" in page
    assert write(study).read_text(encoding="utf-8") == page


def test_what_is_not_complete_is_said_on_top_and_marked(study):
    page = write(study).read_text(encoding="utf-8")
    top = page.split("<nav>")[0]
    assert "The grid is not complete:</b> 3 runs done, 1 runs missing." in top
    # The one gap stands on top and in the table of all cells.
    assert top.count("<td class='gap'>1</td>") == 1 and page.count("<td class='gap'>") == 2
    missing = gridfile.runs(gridfile.read(study / "small.yaml"))[3].folder(study / "results")
    shutil.copytree(missing.parent.parent / "frozen-linear" / "seed0", missing)
    path = write(study)
    assert "All runs of the grid are complete" in path.read_text(encoding="utf-8")
    assert path.name == "report.html" and not path.with_name("report_incomplete.html").exists()


def test_from_the_command_line_a_grid_that_cannot_be_read_is_one_message(
    study, capsys, monkeypatch
):
    arguments = ["report", str(study / "smal.yaml"), "r", "f"]
    monkeypatch.setattr("sys.argv", arguments)
    assert report.main() == 1
    assert "'smal'" in capsys.readouterr().err


@pytest.mark.xdist_group("browser")
def test_a_real_browser_shows_all_of_it_without_a_network(study):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium")
    path = write(study)
    # The page judges itself: a copy carries a script that writes what the browser has made of it.
    script = """<script>addEventListener("load", () => document.title = JSON.stringify({
        images: [...document.images].map(i => i.complete && i.naturalWidth > 100),
        rows: document.querySelectorAll("#main_table ~ div table tr").length,
        wide: document.documentElement.scrollWidth > innerWidth,
        requests: performance.getEntriesByType("resource")
            .filter(request => !request.name.startsWith("data:")).length,
    }))</script></body>"""
    copy = study / "judged.html"
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    command = [browser, "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run",
               f"--user-data-dir={study / 'profile'}", "--window-size=1000,800", "--dump-dom",
               copy.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert found["images"] == [True, True] and found["rows"] >= 3
    assert found["requests"] == 0 and not found["wide"]
