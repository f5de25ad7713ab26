"""Check the rows of the table of backbones: all that is wrong in it, in one message."""

import functools
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import yaml

from medlib.core.backbones import TABLE_FILE, Backbone, control
from medlib.errors import listed, unknown

EMBEDDINGS = ("gap", "cls", "cls+patches", "cls4+patches", "pool")
# Rows with the same random control must agree in these fields.
CONTROLLED = ("architecture", "embedding", "patch", "rounded_periods", "build")
CONFIG = ("mean", "std", "interpolation")  # the preprocessing that a row may state
SOURCE = ("repository", "file", "revision")  # of weights on the hub; the last may be left out


@functools.cache
def check(path: Path = TABLE_FILE) -> None:
    """Raise ValueError that lists all that is wrong in a table of backbones."""
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {name: row if isinstance(row, dict) else {} for name, row in rows.items()}
    problems = [f"{name}: {problem}" for name, row in rows.items() for problem in _problems(row)]
    problems = problems or list(
        _clashes({name: Backbone(name, **row) for name, row in rows.items()})
    )
    if problems:
        raise ValueError(f"{path} cannot be used:\n{listed(problems)}")


def _clashes(table: dict[str, Backbone]) -> Iterator[str]:
    """Find rows whose random controls would share a name, but not an architecture."""
    first: dict[str, Backbone] = {}
    for row in table.values():
        other = first.setdefault(control(row), row)
        if differ := [each for each in CONTROLLED if getattr(row, each) != getattr(other, each)]:
            said = (
                f"{row.name}: its random control would be {control(row)}, as that of {other.name}"
            )
            yield f"{said}, but they differ in {', '.join(differ)}. Give one of them another name."


def _problems(row: dict) -> list[str]:
    """Fields of a row that are unknown, missing or of the wrong type."""
    known = [each for each in fields(Backbone) if each.name != "name"]
    names = [each.name for each in known]
    problems = [unknown("field", name, names) for name in row if name not in names]
    for each in known:
        must = each.default is MISSING and each.default_factory is MISSING
        value, kind = row.get(each.name), each.type
        if each.name not in row:
            problems += [f"{each.name} is missing"] * must
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problems.append(f"{each.name} is {value!r}, but must be {kind.__name__}")
        elif must and value == "":
            problems.append(f"{each.name} is empty")
        elif each.name == "embedding" and value not in EMBEDDINGS:
            problems.append(unknown("embedding", value, EMBEDDINGS))
    config = row.get("config", {}) if isinstance(row.get("config", {}), dict) else {}
    problems += [unknown("field of config", name, CONFIG) for name in config if name not in CONFIG]
    if row.get("hub") is False and (lacking := [name for name in CONFIG if name not in config]):
        problems.append(f"without a hub, config must state {' and '.join(lacking)} of the weights")
    return problems + _source_problems(row)


def _source_problems(row: dict) -> list[str]:
    source = row.get("source") if isinstance(row.get("source"), dict) else {}
    problems = [unknown("field of source", name, SOURCE) for name in source if name not in SOURCE]
    lacking = [name for name in SOURCE[:2] if not isinstance(source.get(name), str)]
    if source and lacking:
        problems.append(f"source must state {' and '.join(lacking)}")
    if source and row.get("hub", True):
        problems.append("source is for weights that timm does not publish: state hub: false")
    return problems
