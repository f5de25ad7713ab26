"""The files of a run: its record, which says how it was made, its predictions and its model."""

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
TRAINED = "trained-*.safetensors"  # the weights of its trainings, if models are saved
MODEL, FACTS, CARD = "model.safetensors", "model.json", "model_card.md"
SAVE_MODELS = "save_models"  # the parameter of a run that asks for its model


class Model(NamedTuple):
    """A run's model: its ``tensors`` by name, and the ``facts`` that are needed to use them.

    See :mod:`medlib.grid.models`.
    """

    facts: dict
    tensors: dict


@dataclass(frozen=True)
class Provenance:
    """How a run was made."""

    pretraining: str
    parameters: dict  # all settings that the run was given
    inputs: dict  # hashes of its inputs, and the digest of the backbone's weights
    seconds: float
    how: dict = field(default_factory=dict)  # what was decided on the way, such as the precision
    seeds: dict = field(default_factory=dict)  # what was drawn, and the seed (None: not drawn)


def drawn(of_task: dict, seed: int, **is_drawn: bool) -> dict:
    """What was drawn at random for a run -> its seed, or None if it was not drawn.

    ``of_task`` is the same for the task: the seeds that notebook 01 has recorded.
    """
    return of_task | {what: seed if yes else None for what, yes in is_drawn.items()}


class Complete(NamedTuple):
    """The files that :func:`save_run` has written: record, tables by file name, and history."""

    record: dict
    tables: dict[str, pd.DataFrame]
    history: pd.DataFrame


def complete(run: Address, results: Path | str, parameters: dict, inputs: dict) -> Complete | None:
    """A run that is complete, undamaged, and was made from these parameters and inputs; or None.

    ``inputs`` may be some of those that the run has recorded. If the parameters ask for a model
    (:data:`SAVE_MODELS`), a run that has saved none is not complete. If they do not, it does not
    matter whether the run has saved one. The code is not compared; a grid does that
    (:mod:`medlib.grid.made`).
    """
    folder, record = run.folder(results), read_record(run.record(results))
    asked = json.loads(json.dumps(parameters))  # in the form that the record has
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

    ``tables`` maps file names to tables: predictions.csv (of the test samples), validation.csv and,
    if the run was trained again on draws of its patients, redraws.csv. The record holds the digests
    of the tables, and of the model's files if a ``model`` is given.
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
    """Write the files of a model and its card; returns the names of the files to be digested.

    Without a model, the files of an earlier one are removed.
    """
    if model is None:
        for name in (MODEL, FACTS, CARD):
            (folder / name).unlink(missing_ok=True)
        return []
    from medlib.core.fast.resume import save  # here: it imports torch, which readers do not need

    save(folder / MODEL, model.tensors)
    # safetensors makes files that only their owner can read.
    (folder / MODEL).chmod((folder / "metrics.json").stat().st_mode)
    facts = model.facts | {"sha256": file_sha256(folder / MODEL)}
    save_json(folder / FACTS, facts)
    save_text(folder / CARD, model_card.text(facts, metrics))
    return [MODEL, FACTS]
