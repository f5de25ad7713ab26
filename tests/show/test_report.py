"""The page of a grid: it contains everything, and opens in a browser without a network."""

import base64
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlib.show import registry, report, style, tables
from medlib.show.figures.predictions import roc_curves

ENVIRONMENT = pd.DataFrame({"what": ["torch"], "value": ["2 <cpu>"], "runs": [3]})


@pytest.fixture
def page(tmp_path):
    """The path of a page; beside it lie two figures of a task, a third one and two tables."""
    predictions = pd.DataFrame({"y_true": ["a", "b"], "prob_a": [0.9, 0.2], "prob_b": [0.1, 0.8]})
    for stem in ("main_comparison", "curves_fundus_pm"):
        style.save(roc_curves(predictions, ["a", "b"]), tmp_path / stem, pd.DataFrame({"x": [1]}))
    table = pd.DataFrame({"task": ["x < y", "x < y"], "auroc": ["0.9", "0.8"], "n": [1, np.nan]})
    tables.save_table(table, tmp_path / "main_table", "A & caption", "A note.")
    said = pd.DataFrame({"task": ["Fundus"], "answer": ["Take <a>: AUROC 0.9, 1.2 s. No more."]})
    tables.save_table(said, tmp_path / "answer", "Recommended.")
    return tmp_path / "report.html"


def write(path, missing=1, tasks=None):
    """Write a page of four runs and return it."""
    cells = {"task": "fundus_pm", "backbone": "micro_resnet-random", "regime": ["a", "b"]}
    counts = {"done": [2, 2 - missing], "failed": 0, "stale": 0, "missing": [0, missing]}
    texts = "Small & quick <grid>", "Phantoms, random weights."
    states, tasks = pd.DataFrame(cells | counts), tasks or {"fundus_pm": "Fundus & eyes"}
    report.write(path, *texts, states, ENVIRONMENT, ["Kermany & al."], tasks)
    return path.read_text(encoding="utf-8")


def test_the_page_holds_every_figure_and_table_and_requests_nothing(page):
    text = write(page)
    assert text.count('src="data:image/webp;base64,') == text.count("<img ") == 2
    assert not re.search(r'(src|srcset|data)="(?!data:)', text) and "<script" not in text
    assert "http" not in text.partition("</style>")[0]
    assert "Small &amp; quick &lt;grid&gt;" in text and "<b>0.9</b>" in text
    assert "A &amp; caption" in text and "A note." in text and "x &lt; y" in text
    links = set(re.findall('href="(.*?)"', text))
    there = {link for link in links if not link.startswith("#")}
    assert there == {
        file.name
        for file in page.parent.iterdir()
        if file.suffix != ".html" and file.stem != "answer"
    }
    inside = {link[1:] for link in links - there}
    assert inside == {"answer", "main_table", "task-fundus_pm", "grid", "cite"}
    assert inside <= set(re.findall(' id="(.*?)"', text))
    assert "arXiv 2402.07595" in text and "Kermany &amp; al." in text
    assert "torch" in text and "2 &lt;cpu&gt;" in text
    assert write(page) == text


def test_it_opens_with_the_question_and_the_answer_and_folds_all_but_its_figures(page):
    text = write(page)
    opened, *folded = text.split("<main>")[1].split("<details>")
    order = [
        report.QUESTION,
        "<dt>Fundus</dt>",
        "<b>Take &lt;a&gt;: AUROC 0.9, 1.2 s.</b> No more.",
    ]
    order += [registry.CAPTIONS["main_comparison"][1], "main_comparison.pdf"]
    places = [opened.index(words) for words in order]
    assert places == sorted(places) and "<table" not in opened.split("question")[1]
    assert [re.search("<h2>(.*?)</h2>", part)[1] for part in folded] == [
        "In numbers",
        "Fundus &amp; eyes",
        "The grid",
    ]
    assert 'id="curves-fundus_pm"' in folded[1] and 'alt="ROC curves' in folded[1]
    (page.parent / "answer.csv").unlink()
    assert "There is no answer yet" in write(page)


def test_sections_are_in_the_order_of_the_tasks_that_are_given(page):
    for kind in ("png", "csv"):
        name = f"curves_fundus_pm.{kind}"
        (page.parent / name.replace("fundus_pm", "chest")).write_bytes(
            (page.parent / name).read_bytes()
        )
    for order in (["fundus_pm", "chest"], ["chest", "fundus_pm"]):
        text = write(page, tasks={task: task for task in order})
        places = [text.index(f'id="curves-{task}"') for task in order]
        assert places == sorted(places)


def noise(path, seed):
    """Save a figure of random grey values: nothing is harder to compress."""
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 1300), np.uint8)
    Image.fromarray(pixels).save(path)
    return np.stack([pixels] * 3, axis=-1)


def copies(page, stems):
    """The images in a page, as arrays, by stem."""
    text = page.read_text("utf-8")
    found = re.findall(r'base64,([^"]*)".*?<span class="files">(\w+):', text)
    made = {stem: Image.open(io.BytesIO(base64.b64decode(data))) for data, stem in found}
    assert set(made) == stems
    return {stem: np.asarray(image.convert("RGB")) for stem, image in made.items()}


def test_a_plot_keeps_its_pixels_and_photographs_their_greys(page, monkeypatch):
    stems = {"main_comparison", "curves_fundus_pm", "wrong_fundus_pm", "size"}
    photograph = noise(page.with_name("wrong_fundus_pm.png"), 0)
    noise(page.with_name("size.png"), 1)
    write(page)
    made = copies(page, stems)
    plot = np.asarray(Image.open(page.with_name("main_comparison.png")).convert("RGB"))
    assert np.abs(plot.astype(int) - made["main_comparison"]).max() <= 16
    assert len(np.unique(made["size"])) <= 32 < len(np.unique(made["wrong_fundus_pm"]))
    assert made["wrong_fundus_pm"].shape == (277, 1200, 3)
    assert abs(photograph.mean() - made["wrong_fundus_pm"].mean()) < 2
    large = page.stat().st_size
    # With less room, all copies are smaller.
    monkeypatch.setattr(report, "LIMIT", large - 1000)
    write(page)
    assert page.stat().st_size < large
    assert copies(page, stems)["wrong_fundus_pm"].shape[1] < 1200


def test_a_damaged_figure_is_named_with_the_way_out(page):
    page.with_name("size.png").write_bytes(b"")
    with pytest.raises(ValueError, match="size.png is empty or damaged: .*make figures"):
        write(page)


def test_what_is_not_complete_is_said_on_top_and_marked(page):
    text = write(page)
    top = text.split("<main>")[1].split("<section>")[0]
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
    text = text.replace('loading="lazy"', "").replace("<details>", "<details open>")
    # A copy of the page has a script that reports how the browser shows it.
    script = """<script>addEventListener("load", () => document.title = JSON.stringify({
        images: [...document.images].map(i => i.complete && i.naturalWidth > 100),
        rows: document.querySelectorAll("#main_table table tr").length,
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
