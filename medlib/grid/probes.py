"""Fit the probes of one frozen backbone on one task, the heads on its embeddings, and save them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medlib.core import metrics
from medlib.core.heads import HEADS, sweep
from medlib.data import manifest
from medlib.data.embeddings import Features
from medlib.files import read_json
from medlib.grid import address, models, records
from medlib.grid.address import Address
from medlib.stats import prediction
from medlib.stats.redraws import redrawn_metrics


class Probe(NamedTuple):
    """A run of a frozen backbone: test metrics, a row for each candidate, and the time."""

    values: dict[str, float]
    history: pd.DataFrame
    seconds: float
    read_back: bool  # whether it was complete already, and was not fitted again


def fit(
    runs: list[Address],
    features: dict[int, Features],
    classes: list[str],
    results: Path | str,
    *,
    image_size: int,
    redraws: Mapping[float, int] | None = None,
    save_models: bool = False,
    again: bool = False,
) -> dict[Address, Probe]:
    """Fit the heads of all ``runs`` of one backbone on one task, and save each below ``results``.

    ``features`` holds the embeddings by the seed of the backbone's weights: one entry for a
    pretrained backbone, one for each seed of a random control. ``redraws`` maps a label fraction
    to a number: a linear head at this fraction is fitted again on so many draws of its patients.
    The model of a linear head is always saved. The models of a kNN (the embeddings of its training
    patients) and of an MLP take megabytes, and are saved with ``save_models``. A run that is
    complete, with the same embeddings and settings, is read back unless ``again``.
    """
    probes: dict[Address, Probe] = {}
    for weights_seed, made in features.items():
        todo = {}
        for run in runs:
            if made.meta["pretraining"] == "random" and run.seed != weights_seed:
                continue
            n = (redraws or {}).get(run.label_fraction, 0) if run.head == "linear" else 0
            asked = {"image_size": image_size, "candidates": HEADS[run.head].candidates}
            asked |= {records.SAVE_MODELS: True} if save_models and run.head != "linear" else {}
            todo[run] = asked | {"redraws": n}
        for run in () if again else list(todo):
            if found := records.complete(run, results, todo[run], _inputs(made)):
                values = prediction.point(found.tables["predictions.csv"], classes)
                probes[run] = Probe(values, found.history, found.record["seconds"], True)
                del todo[run]
        probes |= _fitted(todo, made, classes, results)
    return {run: probes[run] for run in runs}


def _fitted(
    todo: dict[Address, dict], made: Features, classes: list[str], results: Path | str
) -> Iterator[tuple[Address, Probe]]:
    """Fit the runs in ``todo`` (run -> parameters) to the same embeddings.

    Each run is saved as soon as it is fitted, and then yielded.
    """
    y, samples, runs = metrics.codes(made.index["label"], classes), made.index["sample_id"], [*todo]
    indices = [manifest.repetition(made.index, run.seed) for run in runs]
    parts = [
        manifest.rotations(index, run.label_fraction, run.seed)
        for run, index in zip(runs, indices, strict=True)
    ]
    asked = [(run.head, run.seed, part) for run, part in zip(runs, parts, strict=True)]
    swept = sweep(made.embeddings, y, samples, asked, n_classes=len(classes)) if runs else ()
    for number, predicted, history, seconds in swept:
        run, index, part = runs[number], indices[number], parts[number]
        tables, history = prediction.tables(index, part, predicted, classes), pd.DataFrame(history)
        values = prediction.point(tables["predictions.csv"], classes)
        if n := todo[run]["redraws"]:
            tables["redraws.csv"] = redrawn_metrics(made.embeddings, index, part, classes, n)
        patients = manifest.patients_by_side(index, part)["train"].mean()
        provenance = records.Provenance(
            pretraining=made.meta["pretraining"],
            parameters=todo[run],
            inputs=_inputs(made),
            seconds=seconds,
            how=_how(made, train_patients=patients, candidates=len(todo[run]["candidates"])),
            seeds=_seeds(run, made, results),
        )
        model = None
        if run.head == "linear" or todo[run].get(records.SAVE_MODELS):
            split, validation = (index, part), tables["validation.csv"]
            model = models.of_head(run, made, split, predicted, validation, results)
        records.save_run(run, results, provenance, tables, history, values, model)
        yield run, Probe(values, history, round(seconds, 3), False)  # rounded as in the record


def _inputs(made: Features) -> dict:
    """The hashes of what a probe is made from: its embeddings."""
    digests = {name: made.meta[name] for name in ("weights_digest", "mask_at_test_time")}
    return {"features": made.meta["hash"]} | digests


def _how(made: Features, **of_probe: float) -> dict:
    """How a probe was made, and what its embeddings cost. Notebook 05 reads costs from records."""
    embedding = {name: made.meta[name] for name in ("seconds", "peak_memory_bytes")}
    embedding["gpu"] = made.meta["hardware"]["gpu"]
    return {"parameters": made.meta["parameters"], "embedding": embedding} | of_probe


def _seeds(run: Address, made: Features, results: Path | str) -> dict:
    """The seeds of everything that was drawn at random for a run."""
    of_task = read_json(address.seeds(results, run.task))
    return records.drawn(
        of_task,
        run.seed,
        weights=made.meta["pretraining"] == "random",
        folds=len(manifest.fold_columns(made.index)) > 1,
        labels=run.label_fraction < 1,
        head=run.head == "mlp",
    )
