"""Predictions of a saved model for new images: probabilities, classes, and unusual images."""

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.core.metrics import by_sample
from medlib.data import cards, packing, packs, unlabelled
from medlib.data.cards import Card, Volumes
from medlib.errors import ManifestError, listed, unknown
from medlib.files import save_csv
from medlib.grid import models
from medlib.grid.records import Model
from medlib.stats import operating, outside
from medlib.stats.prediction import probability_columns

# How a class is chosen: name on the command line -> rule of medlib.stats.operating.
RULES = {"likeliest": operating.LIKELIEST, "youden": operating.YOUDEN}
RULES |= {name: name for name in ("sensitivity", "specificity")}
PICTURED = 12  # number of samples that are shown


class Answer(NamedTuple):
    """A model's predictions of new images.

    - ``table``: a row for each sample: sample_id, prob_<class>, class, distance, unusual (whether
      the distance is above 1).
    - ``of_rotations``: the probabilities (s, K) by each rotation's model, by its fold.
    - ``pictures``: an image (S, S, 3) uint8 of some samples, in the order of their distances; the
      middle slice of a volume.
    - ``left_out``: a line for each file that was not used.
    - ``notes``: how to read the predictions.
    """

    table: pd.DataFrame
    of_rotations: dict[int, np.ndarray]
    pictures: dict[str, np.ndarray]
    left_out: list[str]
    notes: list[str]


def predict(
    model: Model,
    source: Path | str | Card,
    data: Path | str = "",
    *,
    rule: str = "likeliest",
    quarantine: bool = False,
    device: str = "auto",
) -> Answer:
    """Predict the images or volumes below a folder, or those that a card finds below ``data``.

    ``rule`` is one of :data:`RULES`. A run with several rotations has a model for each of them:
    probabilities, threshold and distance are means over these models. Raises ManifestError that
    lists all samples that cannot be read; with ``quarantine`` they are left out and named instead.
    Also raises what :func:`models.predict` and the functions of :mod:`unlabelled` raise.
    """
    threshold = _threshold(model.facts, rule)
    settings = Volumes(**model.facts["card"]["volumes"]) if model.facts["card"]["volumes"] else None
    if isinstance(source, Card):
        found = unlabelled.of_card(source.model_copy(update={"volumes": settings}), data)
    else:
        found, data = unlabelled.in_folder(source, settings), source
    with _drawn(model.facts, found.rows, data, settings) as (read, images):
        bad = pd.concat([found.problems, read.unreadable, read.broken])
        lines = listed((bad["name"] + ": " + bad["reason"]).tolist(), most=1000)
        if len(bad) and not quarantine:
            said = f"{len(bad)} of {len(found.rows) + len(found.problems)} samples in {data}"
            raise ManifestError(
                f"{said} cannot be used:\n{lines}\nReplace them, or set them aside."
            )
        if not len(images):
            raise ManifestError(f"Of the samples in {data} none can be used:\n{lines}")
        slices = read.slices
        samples = np.repeat(list(slices), [len(numbers) for _, numbers in slices.values()])
        parts = models.predict(model, images, device)
        table, of_rotations = _table(model.facts["classes"], parts, samples, threshold)
        pictures = _pictures(table, images, slices)
    found = found._replace(problems=bad)
    left_out, notes = list(unlabelled.left_out(found)), list(_notes(model.facts, table, threshold))
    return Answer(table, of_rotations, pictures, left_out, notes)


@contextlib.contextmanager
def _drawn(
    facts: dict, rows: pd.DataFrame, data: Path | str, settings: Volumes | None
) -> Iterator[tuple[packing.Reading, np.ndarray]]:
    """The result of reading the files, and their images (m, S, S, 3) as the model needs them."""
    size, grey = facts["image_size"], facts["card"]["grey_values"]
    grey = tuple(grey) if isinstance(grey, list) else grey
    how = packs.Drawn(size, facts["interpolation"], facts["geometry"], grey)
    with tempfile.TemporaryDirectory(prefix="medlib-") as scratch:
        folder = Path(scratch) / "images"
        asked = {"settings": settings, "grey_values": grey}
        with packing.reading(rows, data, {folder: how}, **asked) as read:
            file, shape = read.arrays[folder], (-1, size, size, 3)
            empty = np.zeros((0, size, size, 3), np.uint8)  # an empty file cannot be mapped
            whole = np.memmap(file, np.uint8, "r").reshape(shape) if read.slices else empty
            yield read, whole


def _pictures(table: pd.DataFrame, images: np.ndarray, slices: dict) -> dict[str, np.ndarray]:
    """Images of some samples: evenly spaced in the order of distance, the farthest one included."""
    order = table.sort_values("distance", kind="stable")["sample_id"].tolist()
    few = np.unique(np.linspace(0, len(order) - 1, PICTURED).astype(int))
    middle = {s: slices[s][0] + len(slices[s][1]) // 2 for s in (order[place] for place in few)}
    return {sample: np.array(images[row]) for sample, row in middle.items()}


def _threshold(facts: dict, rule: str) -> float | None:
    """The mean of the rotations' thresholds for the second of two classes.

    None for the rule "likeliest".
    """
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, list(RULES)))
    if rule == "likeliest":
        return None
    if len(facts["classes"]) > 2:
        named = ", ".join(facts["classes"])
        raise ValueError(f"rule {rule!r} is for two classes, not {named}: use likeliest.")
    rows = (row for rotation in facts["rotations"] for row in rotation["thresholds"])
    return float(np.mean([row["threshold"] for row in rows if row["rule"] == RULES[rule]]))


def _table(
    classes: list[str], parts: dict[int, models.Rotated], samples: np.ndarray, at: float | None
) -> tuple[pd.DataFrame, dict[int, np.ndarray]]:
    nothing = np.zeros(len(samples), int)
    of_rotations = {fold: by_sample(nothing, one.proba, samples)[1] for fold, one in parts.items()}
    proba = np.mean(list(of_rotations.values()), axis=0)
    far = [outside.by_sample(one.distances, samples) for one in parts.values()]
    called = proba.argmax(1) if at is None else (proba[:, 1] >= at).astype(int)
    table = pd.DataFrame({"sample_id": list(dict.fromkeys(samples.tolist()))})
    table[probability_columns(classes)] = proba
    distance = np.mean(far, axis=0)
    table = table.assign(**{"class": [classes[c] for c in called]}, distance=distance)
    return table.assign(unusual=distance > 1), of_rotations


def _notes(facts: dict, table: pd.DataFrame, threshold: float | None) -> Iterator[str]:
    n, classes = len(facts["rotations"]), facts["classes"]
    if n > 1:
        mean = f"The probabilities are the mean over the models of {n} folds"
        yield f"{mean}. Each was tested on its own fold; their mean was never tested."
    if threshold is not None:
        of = "the mean of the folds' thresholds, which" if n > 1 else "the threshold, which"
        said = f"{classes[1]} is called from a probability of {threshold:.3f} on"
        yield f"{said}: {of} validation patients chose."
    if unusual := int(table["unusual"].sum()):
        said = f"{unusual} of {len(table)} samples are unusual: farther from the training images"
        yield f"{said} than 95 % of validation samples. Look at them before you trust a prediction."
    if facts["backbone"]["pretraining"] == "random":
        yield "The backbone has random weights: the model is a control and must not be used."
    if facts["backbone"]["pretraining"] == "phantoms":
        yield "The backbone has learned drawn textures only: the model is for demonstration only."


def main(asked: argparse.Namespace) -> int:
    """Run ``python -m medlib.predict`` with these arguments; returns the exit status."""
    try:
        model, (source, data) = models.load(asked.model), _source(asked.source, asked.data)
        how = {"rule": asked.rule, "quarantine": asked.quarantine, "device": asked.device}
        answer = predict(model, source, data, **how)
        save_csv(asked.out, answer.table)
    except (ValueError, OSError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    called = Counter(answer.table["class"])
    counts = ", ".join(f"{name} {called[name]}" for name in model.facts["classes"])
    print(f"{asked.out}: {len(answer.table)} samples ({counts})", *answer.notes, sep="\n")
    if left := answer.left_out:
        print(f"{len(left)} file(s) were not used:\n{listed(left, most=1000)}")
    return 0


def _source(named: str, data: str) -> tuple[Path | Card, Path | str]:
    """The source and the folder of the data: a folder twice, or a card and the data folder."""
    path = Path(named)
    if path.is_dir():
        return path, path
    folder = path.parent if path.suffix == ".yaml" else cards.FOLDER
    if path.stem not in cards.tasks(folder):
        raise ValueError(f"{named} is no folder. {unknown('task', named, cards.tasks(folder))}")
    return cards.read(path.stem, folder), cards.data_folder(data or "real", "")
