"""Two grids side by side: what differs in data, code, settings and numbers.

    python -m medlib.grid.compare GRID_A GRID_B [--out STEM]

A grid is a name in ``grids/``, or the path of a grid file: of a file elsewhere, the results are
those beside it, in ``../results/<name>``. So a clone can be compared with a changed copy of it.
Prints the tables, and saves them as ``STEM.md`` and ``STEM.csv`` (by default
``results/compared/<A>_<B>``).
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib import files
from medlib.data import manifest
from medlib.grid import address, gridfile, page, states
from medlib.show import names, tables
from medlib.stats import bootstrap, differences, effects, prediction, runs, summaries

RESAMPLES = 5000  # of test patients, if the grid file states no other number; as in notebook 05
ARM = [name for name in runs.CELL if name != "pretraining"]
INTERVALS = ["ci_low", "ci_high", "procedure_low", "procedure_high"]
FACTS = ["part", "what", "one", "other"]  # columns of what differs
NUMBERS = [*runs.CELL, "one", *(f"one_{end}" for end in INTERVALS)]  # columns of the AUROCs
NUMBERS += ["other", *(f"other_{end}" for end in INTERVALS), "n_patients_one", "n_patients_other"]
NUMBERS += ["difference", *INTERVALS, "n_seeds", "note"]
PAIRED, APART = "same test patients: paired", "other test patients: not paired"
UNPAIRED = "same test patients, but no common seed: not paired"
NOTHING = "–"


class Side(NamedTuple):
    """A grid with its results."""

    name: str
    grid: dict
    results: Path
    records: dict  # of its complete runs, by address


def side(name: str) -> Side:
    """Read a grid and its records, by its name or by the path of its file.

    Raises ValueError if the file is missing or wrong, or if no run is complete.
    """
    file = Path(name) if name.endswith(".yaml") else Path("grids", f"{name}.yaml")
    grid, results = gridfile.read(file), file.parent.parent / "results" / file.stem
    records = states.records(grid, results)
    if not records:
        way_out = f"Run it (make study GRID={file.stem}), or give the path of the grid file in the "
        way_out += "clone that has its results"
        raise ValueError(f"{results} holds no complete run of {file}. {way_out}.")
    return Side(name, grid, results, records)


def facts(one: Side, other: Side) -> pd.DataFrame:
    """What differs in data, code and settings: columns :data:`FACTS`, a row for each difference."""
    parts = {"data": data, "code and hardware": code, "settings": settings}
    rows = []
    for part, read in parts.items():
        a, b = read(one), read(other)
        for what in dict.fromkeys([*a, *b]):
            if a.get(what) != b.get(what):
                rows.append((part, what, a.get(what, NOTHING), b.get(what, NOTHING)))
    return pd.DataFrame(rows, columns=FACTS)


def data(of: Side) -> dict[str, str]:
    """Of each task and data set: its manifest's digest, and its patients and images."""
    said = {}
    for task in gridfile.prepared(of.grid):
        path = address.manifest(of.results, task)
        if not path.is_file():
            said[f"{task}: manifest"] = "not prepared"
            continue
        samples = manifest.read_samples(path)
        said[f"{task}: manifest"] = files.file_sha256(path)[:12]
        said[f"{task}: patients"] = f"{samples['patient_id'].nunique():,}"
        said[f"{task}: images"] = f"{len(samples):,}"
    return said


def code(of: Side) -> dict[str, str]:
    """Commit, versions and hardware of the complete runs. Several values: with numbers of runs."""
    table, said = page.environment(of.grid, of.results), {}
    for what, rows in table.groupby("what"):
        values = [f"{row.value} ({row.runs} runs)" for row in rows.itertuples()]
        said[what] = rows["value"].iloc[0] if len(rows) == 1 else "; ".join(values)
    return said


def settings(of: Side) -> dict[str, str]:
    """The settings in the grid file, such as ``finetuned.epochs``: "5", and the complete runs."""

    def flat(part: Mapping, place: str) -> Iterator[tuple[str, str]]:
        for name, value in part.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{place}{name}.")
            elif isinstance(value, list):
                yield place + name, ", ".join(map(str, value))
            else:
                yield place + name, str(value)

    n, planned = len(of.records), len(gridfile.runs(of.grid))
    return dict(flat(of.grid, "")) | {"complete runs": f"{n} of {planned}"}


def numbers(one: Side, other: Side) -> pd.DataFrame:
    """The test AUROC of each arm that both grids have, and the difference ``other`` minus ``one``.

    Columns: :data:`NUMBERS`. The intervals of the values are those of `summaries.summarise`, and
    those of a difference are those of :func:`differences.difference`. The difference is paired by
    patient, redraw and seed, on the seeds that both have. It needs the same test samples with the
    same labels, and the same classes. Without them there are only the two values.
    """
    common = _keys(one) & _keys(other)
    a, b = (_arms(of, common) for of in (one, other))
    rows = []
    for key in (key for key in a if key in b):
        row = {name: a[key].cell[name] for name in runs.CELL}
        for where, arm in (("one", a[key]), ("other", b[key])):
            row |= {where: arm.value} | {f"{where}_{n}": end for n, end in _intervals(arm).items()}
            row[f"n_patients_{where}"] = arm.frames[0]["patient_id"].nunique()
        row["note"] = APART
        if _samples(a[key]) == _samples(b[key]):
            between = differences.difference(b[key], a[key])
            row |= {end: between[end] for end in ("difference", *INTERVALS, "n_seeds")}
            row["note"] = PAIRED if pd.notna(between["difference"]) else UNPAIRED
        rows.append(row)
    return pd.DataFrame(rows, columns=NUMBERS)


def _arm(run: address.Address) -> tuple:
    return tuple(getattr(run, name) for name in ARM)


def _keys(of: Side) -> set[tuple]:
    return {_arm(run) for run in of.records}


def _arms(of: Side, wanted: set[tuple]) -> dict[tuple, effects.Arm]:
    """The arms of these keys, in the order of the grid file."""
    folders = {run.folder(of.results): _arm(run) for run in of.records if _arm(run) in wanted}
    if not folders:
        return {}
    cells = runs.runs_by_cell(list(folders))
    resamples = of.grid["collect"].get("resamples", RESAMPLES)
    made = runs.by_cell(
        cells, lambda cell: effects.of_runs(cell, ["auroc"], resamples), f"resamples {of.name}"
    )
    arms = {folders[of_cell[0].folder]: arm for of_cell, (arm,) in made}
    return {key: arms[key] for key in dict.fromkeys(folders.values())}


def _intervals(arm: effects.Arm) -> dict[str, float]:
    rarest, draws = prediction.rarest(arm.frames[0]), np.mean(list(arm.draws.values()), axis=0)
    ends = bootstrap.interval(arm.metric, arm.value, draws, [], rarest)
    whole = bootstrap.ends("ci", ends) | summaries.procedure(arm, rarest)
    return {end: whole[end] for end in INTERVALS}


def _samples(arm: effects.Arm) -> tuple:
    """What an arm was tested on: samples, patients, labels and classes."""
    return arm.classes, arm.frames[0][runs.IDENTITY].to_numpy().tolist()


def text(found: pd.DataFrame, values: pd.DataFrame, one: Side, other: Side) -> str:
    """Both tables in Markdown, with a sentence above each. The grids are called A and B."""
    headings = {"one": "A", "other": "B"}
    said = f"# A: {one.name}, B: {other.name}\n\n## Data, code and settings\n\n"
    if found.empty:
        said += "No difference in data, code and settings.\n"
    else:
        said += tables.markdown(found.rename(columns=headings))
    said += f"\n## Numbers\n\nTest AUROC of the {len(values)} arms that both grids have. "
    only = len(_keys(one) - _keys(other)), len(_keys(other) - _keys(one))
    said += "Only A has {} arms, only B has {}. ".format(*only)
    if values.empty:
        return said.strip() + "\n"
    shown = pd.DataFrame({"task": values["task"]})
    shown["arm"] = [_words(row) for row in values.to_dict("records")]
    for grid, heading in headings.items():
        shown[heading] = _cells(values, grid, f"{grid}_", "{:.3f}")
    shown["B minus A"] = _cells(values, "difference", "", "{:+.3f}")
    pairs = zip(values["n_patients_one"], values["n_patients_other"], strict=True)
    shown["patients"] = [f"{n}" if n == m else f"{n}; {m}" for n, m in pairs]
    n = (values["note"] == PAIRED).sum()
    said += f"In {n} of them the test patients are the same, and the difference is paired. "
    said += "The 95 % intervals are over other test and training patients; "
    said += f"{tables.ONE_TRAINING}: over other test patients alone, because the error due to "
    return said + f"training is not known.\n\n{tables.markdown(shown)}"


def _words(row: Mapping) -> str:
    """An arm as printed: "ViT-Ti (ImageNet), frozen, linear head, 100 % of labels"."""
    backbone = names.full_name(row["backbone"], row["pretraining"])
    words = [backbone, names.REGIMES[row["regime"]], names.HEADS[row["head"]]]
    return ", ".join([*words, f"{100 * row['label_fraction']:g} % of labels"])


def _cells(values: pd.DataFrame, column: str, prefix: str, number: str) -> list[str]:
    """Values with the interval of the procedure. Without it: over test patients, with a mark."""
    known = values[f"{prefix}procedure_low"].notna()
    ends = {
        end: values[f"{prefix}procedure_{end}"].where(known, values[f"{prefix}ci_{end}"])
        for end in ("low", "high")
    }
    whole = pd.DataFrame({"value": values[column]} | ends)
    cells = tables.with_ends(whole, number, ("value", "low", "high"))
    marks = np.where(known | whole["low"].isna(), "", tables.ONE_TRAINING)
    return [cell + mark or NOTHING for cell, mark in zip(cells, marks, strict=True)]


def table(found: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Both tables as one: ``part`` is "numbers" in the rows of AUROCs."""
    whole = pd.concat([found, values.assign(part="numbers", what="auroc")], ignore_index=True)
    return whole[[*FACTS, *(name for name in NUMBERS if name not in FACTS)]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("grids", nargs=2, metavar="GRID", help="a name, or the path of a grid file")
    parser.add_argument("--out", type=Path, help="path of the tables, without .md and .csv")
    asked = parser.parse_args()
    try:
        one, other = map(side, asked.grids)
        found, values = facts(one, other), numbers(one, other)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    stem = asked.out or Path("results", "compared", "_".join(Path(g).stem for g in asked.grids))
    said = text(found, values, one, other)
    files.save_text(f"{stem}.md", said)
    files.save_csv(f"{stem}.csv", table(found, values))
    print(f"{said}\nSaved as {stem}.md and {stem}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
