"""The page of a grid: it contains everything, and opens in a browser without a network."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from medlib.show import report, style, tables
from medlib.show.figures.predictions import roc_curves

ENVIRONMENT = pd.DataFrame({"what": ["torch"], "value": ["2 <cpu>"], "runs": [3]})


@pytest.fixture
def page(tmp_path):
    """The path of a page; beside it lie two figures and a table."""
    predictions = pd.DataFrame({"y_true": ["a", "b"], "prob_a": [0.9, 0.2], "prob_b": [0.1, 0.8]})
    style.save(roc_curves(predictions, ["a", "b"]), tmp_path / "main_comparison")
    style.save(roc_curves(predictions, ["a", "b"]), tmp_path / "curves_fundus_pm")
    table = pd.DataFrame({"task": ["x < y", "x < y"], "auroc": ["0.9", "0.8"], "n": [1, np.nan]})
    tables.save_table(table, tmp_path / "main_table", "A & caption", "A note.")
    return tmp_path / "report.html"


def write(path, missing=1):
    """Write a page of four runs and return it."""
    cells = {"task": "fundus_pm", "backbone": "micro_resnet-random", "regime": ["a", "b"]}
    counts = {"done": [2, 2 - missing], "failed": 0, "stale": 0, "missing": [0, missing]}
    texts = "Small & quick <grid>", "Phantoms, random weights."
    report.write(path, *texts, pd.DataFrame(cells | counts), ENVIRONMENT, ["Kermany & al."])
    return path.read_text(encoding="utf-8")


def test_the_page_holds_every_figure_and_table_and_nothing_from_elsewhere(page):
    text = write(page)
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "http" not in text.partition("</style>")[0]
    assert "Small &amp; quick &lt;grid&gt;" in text and "<b>0.9</b>" in text
    assert "A &amp; caption" in text and "A note." in text and "x &lt; y" in text
    order = [text.index(f'id="{key}"') for key in ("main_comparison", "main_table", "curves")]
    assert order == sorted(order)
    links = set(re.findall(r'href="#(.*?)"', text))
    assert links == set(re.findall(r'<h2 id="(.*?)"', text))
    assert "arXiv 2402.07595" in text and "Kermany &amp; al." in text
    assert "torch" in text and "2 &lt;cpu&gt;" in text
    assert write(page) == text


def test_what_is_not_complete_is_said_on_top_and_marked(page):
    text = write(page)
    top = text.split("<nav>")[0]
    assert "The grid is not complete:</b> 3 runs done, 1 runs missing." in top
    # The one missing run is shown at the top and in the table of all cells.
    assert top.count("<td><mark>1</mark></td>") == 1 and text.count("<mark>") == 2
    text = write(page, missing=0)
    assert "All runs of the grid are complete" in text and "<mark>" not in text


@pytest.mark.xdist_group("browser")
def test_a_real_browser_shows_all_of_it_without_a_network(page):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium")
    text = write(page)
    # A copy of the page has a script that reports how the browser shows it.
    script = """<script>addEventListener("load", () => document.title = JSON.stringify({
        images: [...document.images].map(i => i.complete && i.naturalWidth > 100),
        rows: document.querySelectorAll("#main_table ~ div table tr").length,
        wide: document.documentElement.scrollWidth > innerWidth,
        requests: performance.getEntriesByType("resource")
            .filter(request => !request.name.startsWith("data:")).length,
    }))</script></body>"""
    copy = page.with_name("judged.html")
    copy.write_text(text.replace("</body>", script), encoding="utf-8")
    command = [browser, "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--window-size=1000,800"]
    command += ["--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    judged = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert judged["images"] == [True, True] and judged["rows"] >= 3
    assert judged["requests"] == 0 and not judged["wide"]
