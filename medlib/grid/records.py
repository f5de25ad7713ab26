"""The record of a run: what made it, and its predictions."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.data.manifest import read_samples
from medlib.environment import environment, peak_memory_bytes
from medlib.files import damaged, file_sha256, read_record, save_csv, save_json, save_text
from medlib.grid.address import Address
from medlib.show import model_card

CHECKPOINT = "checkpoint.safetensors"  # of a run that is not complete
TRAINED = "trained-*.safetensors"  # what its trainings have learnt, if models are saved
MODEL, FACTS, CARD = "model.safetensors", "model.json", "model_card.md"
SAVE_MODELS = "save_models"  # the parameter of a run that asks for its model


class Model(NamedTuple):
    """A run's model: ``tensors`` by name, and ``facts``, which say how to use them.

    See :mod:`medlib.grid.models`.
    """

    facts: dict
    tensors: dict


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

    ``inputs`` may be a part of those that the run has recorded. If the parameters ask for a model
    (:data:`SAVE_MODELS`), a run that has saved none is not complete; without, its model is no
    matter. The code that made it is not compared: a grid does that (:mod:`medlib.grid.made`).
    """
    folder, record = run.folder(results), read_record(run.record(results))
    asked = json.loads(json.dumps(parameters))  # as it is in the record
    then = dict(record.get("parameters", {}))
    known = {name: record.get("inputs", {}).get(name) for name in inputs}
    lacks_model = asked.pop(SAVE_MODELS, False) and not then.get(SAVE_MODELS)
    then.pop(SAVE_MODELS, None)
    if lacks_model or then != asked or known != inputs or "sha256" not in record:
        return None
    if damaged(folder, record["sha256"]):
        return None
    names = [name for name in record["sha256"] if name.endswith(".csv")]
    tables = {name: read_samples(folder / name) for name in names}
    return Complete(record, tables, pd.read_csv(folder / "history.csv"))


def save_run(
    run: Address,
    results: Path | str,
    provenance: Provenance,
    tables: dict[str, pd.DataFrame],
    history: pd.DataFrame,
    metrics: dict,
    model: Model | None = None,
) -> None:
    """Write a run's files below ``results``, ``run.json`` last; then remove its checkpoint.

    ``tables`` maps the name of a file to its table: predictions.csv (of the test part),
    validation.csv and, if the run was trained again on draws of its patients, redraws.csv. The
    record holds their digests, and those of the files of its ``model``, if it is to be saved.
    """
    folder, record = run.folder(results), run.record(results)
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # the run is not complete until the new record is there
    for name, table in tables.items():
        save_csv(folder / name, table)
    save_csv(folder / "history.csv", history)
    save_json(folder / "metrics.json", metrics)
    saved = _save_model(folder, model, metrics)
    content = vars(provenance) | environment()
    content["coordinates"] = asdict(run) | {"pretraining": content.pop("pretraining")}
    content["seconds"] = round(provenance.seconds, 3)
    content["peak_memory_bytes"] = peak_memory_bytes()
    content["sha256"] = {name: file_sha256(folder / name) for name in (*tables, *saved)}
    save_json(record, content)
    for path in (folder / CHECKPOINT, *folder.glob(TRAINED)):
        path.unlink(missing_ok=True)


def _save_model(folder: Path, model: Model | None, metrics: dict) -> list[str]:
    """Write the files of a model and its card; returns the names of those with a digest.

    Without a model, those of an earlier one are removed.
    """
    if model is None:
        for name in (MODEL, FACTS, CARD):
            (folder / name).unlink(missing_ok=True)
        return []
    from medlib.core.fast.resume import save  # torch, which not every reader of records needs

    save(folder / MODEL, model.tensors)
    # safetensors lets nobody else read its files.
    (folder / MODEL).chmod((folder / "metrics.json").stat().st_mode)
    facts = model.facts | {"sha256": file_sha256(folder / MODEL)}
    save_json(folder / FACTS, facts)
    save_text(folder / CARD, model_card.text(facts, metrics))
    return [MODEL, FACTS]
