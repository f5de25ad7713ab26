"""The record of a run: what made it, and its predictions."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.data.manifest import read_samples
from medlib.environment import environment, peak_memory_bytes
from medlib.files import damaged, file_sha256, read_record, save_csv, save_json
from medlib.grid.address import Address

CHECKPOINT = "checkpoint.safetensors"  # of a run that is not complete


@dataclass(frozen=True)
class Provenance:
    """What made a run, beside its address."""

    pretraining: str
    parameters: dict  # everything that the run was asked for
    inputs: dict  # hashes of what it read, and the digest of its weights
    seconds: float
    how: dict = field(default_factory=dict)  # what it decided by itself, such as its precision
    seeds: dict = field(default_factory=dict)  # what was drawn, and the seed (None: not drawn)


def drawn(of_task: dict, seed: int, **is_drawn: bool) -> dict:
    """What a run has drawn and from which seed; None is not drawn. ``of_task``: by notebook 01."""
    return of_task | {what: seed if yes else None for what, yes in is_drawn.items()}


class Complete(NamedTuple):
    """What :func:`save_run` has written of a run: its record, tables by file name, and history."""

    record: dict
    tables: dict[str, pd.DataFrame]
    history: pd.DataFrame


def complete(run: Address, results: Path | str, parameters: dict, inputs: dict) -> Complete | None:
    """A run that is complete, undamaged, and was made from these parameters and inputs; or None.

    ``inputs`` may be a part of those that the run has recorded. The code that made it is not
    compared: a grid does that (:mod:`medlib.grid.made`).
    """
    folder, record = run.folder(results), read_record(run.record(results))
    asked = json.loads(json.dumps(parameters))  # as it is in the record
    known = {name: record.get("inputs", {}).get(name) for name in inputs}
    if record.get("parameters") != asked or known != inputs or "sha256" not in record:
        return None
    if damaged(folder, record["sha256"]):
        return None
    tables = {name: read_samples(folder / name) for name in record["sha256"]}
    return Complete(record, tables, pd.read_csv(folder / "history.csv"))


def save_run(
    run: Address,
    results: Path | str,
    provenance: Provenance,
    tables: dict[str, pd.DataFrame],
    history: pd.DataFrame,
    metrics: dict,
) -> None:
    """Write a run's files below ``results``, ``run.json`` last; then remove its checkpoint.

    ``tables`` maps the name of a file to its table: predictions.csv (of the test part),
    validation.csv and, if the run was trained again on draws of its patients, redraws.csv. The
    record holds their digests.
    """
    folder, record = run.folder(results), run.record(results)
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # the run is not complete until the new record is there
    for name, table in tables.items():
        save_csv(folder / name, table)
    save_csv(folder / "history.csv", history)
    save_json(folder / "metrics.json", metrics)
    content = vars(provenance) | environment()
    content["coordinates"] = asdict(run) | {"pretraining": content.pop("pretraining")}
    content["seconds"] = round(provenance.seconds, 3)
    content["peak_memory_bytes"] = peak_memory_bytes()
    content["sha256"] = {name: file_sha256(folder / name) for name in tables}
    save_json(record, content)
    (folder / CHECKPOINT).unlink(missing_ok=True)
