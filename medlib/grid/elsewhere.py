"""The finished models of a task, and the samples of another data set on which they are tested."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medlib import files
from medlib.data import cards, duplicates, embeddings, manifest, packs, thumbnails
from medlib.data.embeddings import OF_PACK
from medlib.errors import ManifestError, listed
from medlib.grid import address, models
from medlib.grid.address import Address
from medlib.grid.records import FACTS, Model
from medlib.stats import external, prediction
from medlib.stats.effects import Arm

MOST_SHOWN = 6  # pictures of a data set


class Other(NamedTuple):
    """Another data set, as a test of a task's models.

    ``samples``: sample_id, patient_id and label (a class of the task) of those that are judged.
    ``left_out``: name and reason of the others. ``pairs``: images that stand in both data sets
    (own, other, kind, correlation).
    """

    task: str
    name: str
    samples: pd.DataFrame
    left_out: pd.DataFrame
    pairs: pd.DataFrame


def other(
    results: Path | str, task: str, name: str, names: Mapping[str, str] | None = None
) -> Other:
    """The samples of the data set ``name`` on which models of ``task`` are tested.

    Both are prepared. ``names`` maps classes of the data set to those of the task, in place of its
    card. Left out, with the reason: samples of a class that the task does not have, and images that
    stand in the task's data set, too. Raises ManifestError for the same data set, for classes that
    do not fit (:meth:`Card.classes_for`), and for volumes that become images in another way.
    """
    if name == task:
        raise ManifestError(f"{name} has trained the models: name another data set.")
    card, theirs = (cards.used(address.manifest(results, each)) for each in (task, name))
    if card.volumes != theirs.volumes:
        both = [f"{each.task}: {each.volumes or 'images'}" for each in (card, theirs)]
        raise ManifestError(
            f"Volumes of {name} become images in another way than those of {task}: prepare both "
            f"with the same `volumes`.\n{listed(both)}"
        )
    mapped = theirs.classes_for(card, names)
    rows = manifest.read_samples(address.manifest(results, name))
    pairs = copies(results, task, name)
    why = rows["label"].map(lambda label: "" if label in mapped else f"class {label}")
    in_both = rows["sample_id"].isin(pairs["other"])
    why = why.mask((why == "") & in_both, f"its image stands in {task}, too")
    left_out = pd.DataFrame({"name": rows["sample_id"], "reason": why})[why != ""]
    samples = rows.loc[why == "", ["sample_id", "patient_id", "label"]]
    samples = samples.assign(label=samples["label"].map(mapped))
    found = Other(task, name, *(t.reset_index(drop=True) for t in (samples, left_out)), pairs)
    if samples["label"].nunique() < 2:
        there = samples["label"].value_counts().to_dict() or "none"
        reasons = left_out["reason"].value_counts().to_dict()
        raise ManifestError(
            f"Of {name} there are too few samples to test {task}: {there}. Left out: {reasons}."
        )
    return found


def copies(results: Path | str, task: str, name: str) -> pd.DataFrame:
    """Images that stand in both data sets: own, other (sample ids), kind, correlation.

    By the digests of files, and by thumbnails of the largest packed images
    (:func:`duplicates.find`): of a volume that of its middle slice. Of images below
    ``thumbnails.TINY`` pixels only equal ones are found. Every sample of ``name`` that has a copy
    in ``task`` is named once.
    """
    pictures, ids, digests, n = [], [], [], []
    for each in (task, name):
        rows = manifest.read_samples(address.manifest(results, each)).set_index("sample_id")
        largest = address.packed_sizes(results, each)[-1]
        pack = packs.load(address.pack(results, each, largest, "bilinear"))
        places = pack.index.groupby("sample_id", sort=False).indices
        middle = {sample: of[len(of) // 2] for sample, of in places.items()}
        drawn = [thumbnails.draw(Image.fromarray(pack.images[row])) for row in middle.values()]
        pictures, ids = pictures + drawn, ids + list(middle)
        digests += rows.reindex(middle)["sha256"].fillna("").tolist()
        n.append(len(middle))
    tiny = [pack.images.shape[1] < thumbnails.TINY] * len(ids)
    found = duplicates.find(np.stack(pictures), digests, tiny)
    joined = coo_array((np.ones(len(found)), (found["first"], found["second"])), (len(ids),) * 2)
    group = connected_components(joined, directed=False)[1]
    own, best = np.arange(len(ids)) < n[0], {}
    for pair in found.sort_values("correlation", ascending=False).itertuples():
        best.setdefault(group[pair.first], pair)
    first = {group[place]: ids[place] for place in np.flatnonzero(own)[::-1]}
    rows = [
        [first[group[place]], ids[place], best[group[place]].kind, best[group[place]].correlation]
        for place in np.flatnonzero(~own)
        if group[place] in first
    ]
    return pd.DataFrame(rows, columns=["own", "other", "kind", "correlation"])


def predictions(
    results: Path | str, arms: Iterable[Arm], found: Other, device: str = "auto"
) -> tuple[list[tuple[Arm, dict]], list[str]]:
    """What the models of arms predict for the samples of another data set.

    The first list has each arm whose runs have saved their models, and its predictions: seed ->
    fold -> a table as predictions.csv, sorted by sample id, with the classes of the task as labels.
    The second names the runs without a model. All samples are predicted once, and the predictions
    kept (:func:`address.external`) until the model or the images change.
    """
    judged, without = [], []
    label_of = found.samples.set_index("sample_id")["label"]
    for arm in arms:
        runs = {seed: _run(arm, seed) for seed in arm.values}
        lacking = [r for r in runs.values() if not (r.folder(results) / FACTS).is_file()]
        if lacking:
            without += [str(run.folder("")) for run in lacking]
            continue
        by_seed = {}
        for seed, run in runs.items():
            table = _kept(results, run, found.name, device)
            table = table[table["sample_id"].isin(label_of.index)]
            table = table.assign(y_true=table["sample_id"].map(label_of))
            table = table.sort_values("sample_id", kind="stable")
            by_seed[seed] = {
                fold: own.drop(columns="rotation").reset_index(drop=True)
                for fold, own in table.groupby("rotation")
            }
        judged.append((arm, by_seed))
    return judged, without


def _run(arm: Arm, seed: int) -> Address:
    place = {name: value for name, value in arm.cell.items() if name != "pretraining"}
    return Address(**place, seed=seed)


def _kept(results: Path | str, run: Address, name: str, device: str) -> pd.DataFrame:
    """A run's predictions for all samples of a data set, with the column rotation."""
    model = models.load(run.folder(results))
    pack, path = _pack(results, name, model), address.external(results, name, run)
    made_from = {"model": model.facts["sha256"], "images": pack.meta["hash"]}
    record = files.read_record(path.with_suffix(".json"))
    if record.get("made_from") == made_from and not files.damaged(path.parent, record["sha256"]):
        return manifest.read_samples(path)
    if run.regime == "frozen":
        made = _embedded(results, name, model, pack, device)
        parts = models.of_embeddings(model, made.embeddings)
    else:
        parts = models.predict(model, pack.images, device)
    index = pack.index[["sample_id", "patient_id", "label"]].assign(split="test")
    tables = [
        prediction.prediction_frame(index, of.proba, model.facts["classes"]).assign(rotation=fold)
        for fold, of in parts.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    files.save_csv(path, table)
    digests = {path.name: files.file_sha256(path)}
    files.save_json(path.with_suffix(".json"), {"made_from": made_from, "sha256": digests})
    return table


def _pack(results: Path | str, name: str, model: Model) -> packs.Pack:
    """The images of a data set as a model wants them."""
    facts, card = model.facts, cards.used(address.manifest(results, name))
    folder = address.pack(results, name, facts["image_size"], facts["interpolation"])
    pack = packs.load(folder, settings=card.volumes)
    there = {"geometry": "squash"} | {n: pack.meta[n] for n in OF_PACK if n in pack.meta}
    if other := [n for n in OF_PACK if n in there and there[n] != facts.get(n)]:
        told = [f"{n}: {there[n]}, not {facts.get(n)}" for n in other]
        raise ManifestError(
            f"The images of {name} are not as the models want them:\n{listed(told)}"
        )
    return pack


def _embedded(
    results: Path | str, name: str, model: Model, pack: packs.Pack, device: str
) -> embeddings.Features:
    """A data set's embeddings by the frozen backbone of a model, made if they are not there."""
    facts, key, seed = model.facts, model.facts["run"]["backbone"], model.facts["weights_seed"]
    folder, how = address.features(results, name, key, seed), models.extraction(facts, device)
    made = embeddings.extract(pack, key, folder, seed, how)
    models.check_digest(facts, made.meta["weights_digest"])
    return made


class Shift(NamedTuple):
    """``apart`` is :func:`external.told_apart`. ``pictures`` has the surest images of each side."""

    apart: pd.DataFrame
    pictures: dict[str, list[np.ndarray]]


def shift(results: Path | str, arm: Arm, found: Other, device: str = "auto") -> Shift:
    """Train a classifier to recognise the data set of an image, by a frozen arm's backbone.

    All images of the task, and the judged ones of the other data set. Raises what
    :func:`external.told_apart` raises.
    """
    model = models.load(_run(arm, min(arm.values)).folder(results))
    seed, sides, drawn = model.facts["weights_seed"], [], []
    for name in (found.task, found.name):
        drawn.append(_pack(results, name, model))
        if name == found.task:
            made = embeddings.load(address.features(results, name, arm.cell["backbone"], seed))
        else:
            made = _embedded(results, name, model, drawn[-1], device)
        sides.append(external.Embedded(made.embeddings, made.index))
    label_of = found.samples.set_index("sample_id")["label"]
    x, index = sides[1]
    judged = index["sample_id"].isin(label_of.index).to_numpy()
    index = index[judged].assign(label=index["sample_id"].map(label_of))
    apart = external.told_apart(sides[0], external.Embedded(x[judged], index))
    pictures = {}
    for side, pack in zip((external.INSIDE, external.OUTSIDE), drawn, strict=True):
        own = apart[apart["y_true"] == side].sort_values(f"prob_{side}", ascending=False)
        once = own.drop_duplicates("patient_id")["sample_id"].head(MOST_SHOWN)
        places = pack.index.groupby("sample_id").indices
        pictures[side] = [np.array(pack.images[places[s][len(places[s]) // 2]]) for s in once]
    return Shift(apart, pictures)
