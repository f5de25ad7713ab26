"""Working copies of the notebooks, to be edited and run in JupyterLab.

    python -m medlib.grid.lab [GRID] [jupyter lab's own options …]

The copies lie in ``lab/``. With a grid they lie in ``lab-GRID/`` and have its parameters, so they
read its results back. Git ignores these folders: no picture of a patient can be committed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from medlib.core.settings import REGIMES, TRAINED
from medlib.files import content_hash, read_record, save_json, save_text
from medlib.grid import gridfile
from medlib.grid.made import code_cells
from medlib.grid.notebooks import NOTEBOOKS

FIRST, ELSEWHERE = "01_prepare_data.ipynb", "11_test_elsewhere.ipynb"
COPIED = ".copied.json"  # a digest of each copy's code, from when the copy was made
PARAMETER = re.compile(r"^(\w+)(: \w+ = )(.*?)(  # .*)$", re.MULTILINE)


def parameters(name: str, grid: dict, notebook: str) -> dict:
    """The parameters with which a notebook shows a grid's first task, backbone and seed."""
    trained = notebook.startswith("04")
    ways = [regime for regime in (TRAINED if trained else REGIMES) if grid[regime]]
    regime = ways[0] if ways else REGIMES[0]
    own, task = dict(grid[regime]), grid["tasks"][0]
    if notebook == ELSEWHERE:
        task = next(iter(grid.get("external", {})), task)
    if ways:
        seeds = gridfile.seeds(grid, regime)
        own |= {"backbone": own["backbones"][0], "seeds": seeds, "seed": seeds[0]}
        own["image_size"] = gridfile.image_size(grid, regime, own["backbone"])
    if trained and ways:
        own["label_fraction"] = gridfile.label_fraction(grid, task, regime)
    elif grid["frozen"]:
        own["label_fractions"] = gridfile.label_fractions(grid, task)
        own["redrawn_fractions"] = gridfile.redrawn_fractions(grid, task)
    own |= {"task": task, "regime": regime, "data": grid["data"], "results": f"../results/{name}"}
    own |= {"figures": f"../results/{name}/lab", "grid_file": f"../grids/{name}.yaml"}
    own |= {"caption": grid.get("caption", ""), "primary": gridfile.primary(grid)}
    own |= {"image_sizes": gridfile.image_sizes(grid)}
    if notebook == FIRST:
        own |= {"seed": 0} | grid["prepare"]
    own |= grid["collect"] | grid["subgroups"] | gridfile.saved_models(grid, task)
    return own | gridfile.elsewhere(grid, task) | gridfile.thresholds(grid, task)


def with_parameters(notebook: str, values: dict) -> str:
    """The text of a notebook in which the parameters named in ``values`` have these defaults."""

    def line(found: re.Match) -> str:
        value = repr(values[found[1]]) if found[1] in values else found[3]
        return "".join((found[1], found[2], value, found[4]))

    content = json.loads(notebook)
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            source = PARAMETER.sub(line, "".join(cell["source"]))
            cell["source"] = source.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def copy(folder: Path, grid: str = "") -> list[str]:
    """Make the working copies that are missing; returns messages for the user.

    A copy whose code was edited is kept. Any other copy is made again if its original has changed.
    """
    asked = gridfile.read(Path("grids") / f"{grid}.yaml") if grid else {}
    before, told = read_record(folder / COPIED), []
    for original in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, place = original.read_text(encoding="utf-8"), folder / original.name
        if grid:
            text = with_parameters(text, parameters(grid, asked, original.name))
        new = _digest(text)
        if place.is_file() and _digest(place.read_text(encoding="utf-8")) != before.get(place.name):
            if before.get(place.name) != new:
                told.append(f"{place} is kept as you edited it; notebooks/ has a newer one.")
        elif before.get(place.name) != new or not place.is_file():
            save_text(place, text)
            before[place.name] = new
    save_json(folder / COPIED, before)
    return told


def _digest(notebook: str) -> str:
    return content_hash(code_cells(notebook))


def main() -> None:
    given = sys.argv[1:]
    grid = given.pop(0) if given and not given[0].startswith("-") else ""
    folder = Path(f"lab-{grid}" if grid else "lab")
    try:
        told = [f"Working copies of the notebooks: {folder}/", *copy(folder, grid)]
        print("\n".join(told), flush=True)  # JupyterLab takes the place of this process
    except ValueError as error:
        sys.exit(str(error))
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir=."]
    command += [f"--LabApp.default_url=/lab/tree/{folder}/{FIRST}"]
    if os.name == "nt":  # a process cannot take the place of another one there
        sys.exit(subprocess.call([*command, *given]))
    command += ["--allow-root"] * (os.geteuid() == 0)  # as in most containers
    os.execv(sys.executable, [*command, *given])


if __name__ == "__main__":
    main()
