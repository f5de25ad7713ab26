"""Notebooks save exactly the figures and tables of the registry.

README lists them all, and git ignores those that show patients.
"""

import ast
import re
import subprocess

import pytest

from medlib.data import cards
from medlib.grid import notebooks
from medlib.show import registry


def saved_stems(repository, notebook):
    """The names under which a notebook saves figures and tables, with {task} for variables."""
    code = notebooks.code(repository / "notebooks" / f"{notebook}.ipynb")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and ast.unparse(node.left).startswith("Path(figures"):
            name = node.right
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            words = (p.value if isinstance(p, ast.Constant) else f"{{{p.value.id}}}" for p in parts)
            yield "".join(words).removesuffix(".md")  # a table is read back to be displayed


@pytest.mark.parametrize(("rule", "notebook"), registry.NOTEBOOKS.items())
def test_a_notebook_saves_its_entries_and_nothing_else(repository, rule, notebook):
    entries = {entry.stem for entry in registry.ENTRIES if entry.rule == rule}
    assert set(saved_stems(repository, notebook)) == entries and entries


def test_every_rule_has_a_notebook_and_every_heading_its_entry():
    rules = {*registry.NOTEBOOKS, *registry.MODULES}
    assert {entry.rule for entry in registry.ENTRIES} == rules
    assert {entry.kind for entry in registry.ENTRIES} == set(registry.FILES)
    assert set(registry.WORDS) <= {entry.heading for entry in registry.ENTRIES}


def test_the_snakefile_has_these_rules_and_runs_these_notebooks(repository):
    text = (repository / "Snakefile").read_text("utf-8")
    for rule, notebook in registry.NOTEBOOKS.items():
        body = text.split(f"rule {rule}:")[1].split("\nrule ")[0]
        assert f'made_by("{notebook}")' in body
        assert f'shown("{rule}")' in body or f'reported("{rule}")' in body
    for rule, module in registry.MODULES.items():
        body = text.split(f"rule {rule}:")[1].split("\nrule ")[0]
        assert f"python -m medlib.grid.{module} " in body and f'shown("{rule}")' in body


def test_readme_lists_every_figure_and_table(repository):
    text = (repository / "README.md").read_text("utf-8").split("## What comes out")[1]
    table = text.split("\n\n**")[0]  # another table, of the files of models, follows
    first = re.findall(r"^\| (`.*?) \|", table, re.M)
    listed = {
        name.replace("<", "{").replace(">", "}") for name in re.findall("`(.*?)`", str(first))
    }
    assert listed == {entry.stem for entry in registry.ENTRIES}


def test_what_shows_patients_is_never_committed(repository):
    for entry in registry.ENTRIES:
        files = [f"figures/paper/{entry.stem}.{kind}" for kind in registry.FILES[entry.kind]]
        command = ["git", "check-ignore", *(file.format(task="t", regime="r") for file in files)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert len(done.stdout.splitlines()) == len(files) * entry.patients


def test_a_passport_of_phantoms_says_so_in_its_title(repository):
    text = notebooks.code(repository / "notebooks" / "01_prepare_data.ipynb")
    # If the caption came from the grid, all data would be prepared again.
    assert "phantoms=is_phantom" in text
    card = cards.read("chest_xray")
    assert card.with_settings(phantoms=True).title == f"{card.title} (phantoms)"


def test_files_of_a_rule_are_those_of_its_entries():
    names = registry.files("look", frozen=True)
    assert "seen_{task}.png" in names and "differences_{regime}.png" not in names
    assert [n for n in names if "seen" not in n and "embeddings" not in n] == (
        registry.files("look", frozen=False)
    )
    assert registry.files("compare", frozen=True)[-4:] == [
        f"full_table.{kind}" for kind in ("csv", "md", "tex", "html")
    ]


def test_a_page_has_the_sections_of_what_is_there():
    stems = ["curves_b", "differences_regimes", "curves_a", "differences_frozen", "report", "size"]
    stems += ["curves_a_b", "wrong_by_all_b", "wrong_b"]

    def of(task):
        found = registry.sections(stems, task)
        return [(key, [stem for stem, _ in shown]) for key, _, _, shown in found]

    assert of("") == [
        ("differences_regimes", ["differences_regimes"]),
        ("differences", ["differences_frozen"]),
        ("size", ["size"]),
    ]
    assert of("a") == [("curves-a", ["curves_a"])]
    assert of("b") == [
        ("curves-b", ["curves_b"]),
        ("wrong_by_all-b", ["wrong_by_all_b", "wrong_b"]),
    ]


def test_every_figure_has_a_caption_and_says_what_is_to_be_seen():
    figures = {entry.stem for entry in registry.ENTRIES if entry.kind != "table"}
    assert set(registry.CAPTIONS) == figures
    for stem, (caption, alt) in registry.CAPTIONS.items():
        assert len(alt) > 40 and alt != caption and alt[-1] == caption[-1] == "."
        assert ("{task}" in alt) == ("{task}" in stem)
