"""The models of runs: made together with the predictions, saved, loaded and used elsewhere.

A model is two files. ``model.safetensors`` holds tensors, named ``<rotation>.<name>``: what each
rotation's model has learnt, and (``outside.…``) the distribution of its training embeddings.
``model.json`` holds all that is needed to use the tensors: see :func:`described`. Nothing is
pickled.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medlib import files
from medlib.core import backbones, features, finetune, heads, linear, loading, metrics
from medlib.core.classifier import Classifier, assign, learnt
from medlib.core.fast import fusing
from medlib.core.fast.engine import precision_name
from medlib.core.fast.resume import Kept
from medlib.core.settings import Extraction, FineTuning
from medlib.core.splits import SPLITS, Predicted, Rotation
from medlib.core.weights import find_weights
from medlib.data import cards, manifest
from medlib.data.embeddings import OF_PACK, Features
from medlib.data.packs import Pack
from medlib.environment import environment
from medlib.grid import address
from medlib.grid.address import Address
from medlib.grid.records import FACTS, MODEL, Model
from medlib.stats import calibration, operating, outside, prediction

FORMAT = 1  # to be raised when an older medlib can no longer read a new model
RULES = (operating.Rule(operating.YOUDEN), operating.Rule("sensitivity", 0.95))
RULES += (operating.Rule("specificity", 0.95),)
# Fields of a card that are about one folder alone. They may name patients, so they are left out.
LOCAL = {"folder", "other_folders", "layout", "layout_options", "incomplete"}
LOCAL |= {"known_duplicates", "not_duplicates"}
OUTSIDE = "outside."  # the names of tensors of a distribution begin with it
# The fields of a backbone's row that change its embeddings.
OF_ROW = ("timm_name", "pretraining", "embedding", "patch", "position_offset", "rounded_periods")
OF_ROW += ("fixed_norm", "build", "config")


class Rotated(NamedTuple):
    """The predictions of one rotation's model for m images: probabilities (m, K), distances (m,).

    A distance above 1 is unusual.
    """

    proba: np.ndarray
    distances: np.ndarray


# --------------------------------------------------------------------------------- made


def of_head(
    run: Address,
    made: Features,
    split: tuple[pd.DataFrame, list[Rotation]],
    predicted: list[Predicted],
    validation: pd.DataFrame,
    results: Path | str,
) -> Model:
    """The model of a probe.

    ``split``: the index of the embeddings, and the run's rotations. ``predicted``: the predictions
    and the fitted head of each rotation. ``validation``: the run's table of validation predictions,
    on which thresholds are chosen.
    """
    index, rotations = split
    tensors, x = {}, made.embeddings
    for part, own in zip(rotations, predicted, strict=True):
        scaling = [own.model[name].numpy() for name in ("shift", "scale")]
        known = outside.fitted(x[part.train], *scaling)
        known["usual"] = _usual(known, x[part.val], index["sample_id"][part.val])
        without = {name: known[name] for name in known.keys() - {"shift", "scale"}}
        tensors |= _named(part.fold, own.model, without)
    names = ("weights_digest", "precision", "image_size", *OF_PACK)
    facts = {name: made.meta[name] for name in names} | {"weights_seed": made.meta["seed"]}
    return Model(described(run, split, validation, facts, results), tensors)


def of_training(
    run: Address,
    pack: Pack,
    split: tuple[pd.DataFrame, list[Rotation]],
    trained: tuple[Kept, pd.DataFrame, dict],
    validation: pd.DataFrame,
    results: Path | str,
    settings: FineTuning,
) -> Model:
    """The model of a fine-tuned backbone.

    ``trained``: the weights that were kept, and the history and ``how`` of the training; the rest
    is as in :func:`of_head`. Each rotation's network embeds its training and validation images once
    more.
    """
    (index, rotations), (kept, history, how) = split, trained
    rates = history[history["chosen"]].set_index("fold")["learning_rate"]
    network = {name: getattr(settings, name) for name in ("frozen_norm", "lora_alpha")}
    network["lora_rank"] = settings.lora_rank if run.regime == "lora" else 0
    size, classes = pack.images.shape[1], manifest.classes(index, _card(run, results))
    facts = {"weights_digest": how["weights_digest"], "precision": how["precision"]}
    facts |= {"image_size": size, "weights_seed": run.seed, "network": network}
    facts |= {"geometry": "squash"} | {n: pack.meta[n] for n in OF_PACK if n in pack.meta}
    model, _ = _network(run.backbone, facts, len(classes), "auto")
    tensors = {}
    for part in rotations:
        own = _loaded(kept.model(part.fold, rates[part.fold]))
        assign(learnt(model), own)
        train, val = (_embedded(model, pack.images, m.nonzero()[0]) for m in (part.train, part.val))
        scaling = [value.numpy() for value in linear.scaler(torch.from_numpy(train))]
        known = outside.fitted(train, *scaling)
        known["usual"] = _usual(known, val, index["sample_id"][part.val])
        tensors |= _named(part.fold, own, known)
    return Model(described(run, split, validation, facts, results), tensors)


def _usual(known: outside.Arrays, x: np.ndarray, samples: pd.Series) -> np.ndarray:
    far = outside.by_sample(outside.distances(known, x), samples)
    return np.float32(outside.usual(far))


def _named(fold: int, own: Mapping[str, Tensor], known: Mapping) -> dict[str, Tensor]:
    all_of = dict(own) | {OUTSIDE + n: torch.from_numpy(np.array(v)) for n, v in known.items()}
    return {f"{fold}.{name}": value for name, value in all_of.items()}


def _card(run: Address, results: Path | str) -> cards.Card:
    return cards.used(address.manifest(results, run.task))


def described(
    run: Address,
    split: tuple[pd.DataFrame, list[Rotation]],
    validation: pd.DataFrame,
    facts: dict,
    results: Path | str,
) -> dict:
    """The content of a model's ``model.json``: what it is, what it needs, and how it was made.

    ``facts``: weights_digest, weights_seed, precision, image_size, interpolation, geometry,
    mask_at_test_time and, for a fine-tuned backbone, the settings that change its network. The
    result adds, for each rotation, the thresholds by :data:`RULES` and the temperature, chosen on
    its validation samples, and the numbers of patients and images of each class on each side.
    """
    (index, rotations), card, row = split, _card(run, results), backbones.get(run.backbone)
    classes = manifest.classes(index, card)
    validated = dict(list(validation.groupby(validation["rotation"].astype(str))))
    of_rotations = [
        {"fold": part.fold, "patients_and_images": _counted(index, part)}
        | _chosen(validated[str(part.fold)], classes)
        for part in rotations
    ]
    scale = {name: list(row.preprocessing[name]) for name in ("mean", "std")}
    return facts | {
        "format": FORMAT,
        "classes": classes,
        "run": dataclasses.asdict(run),
        "card": card.model_dump(mode="json", exclude=LOCAL),
        "backbone": json.loads(json.dumps(dataclasses.asdict(row))),
        "normalisation": scale,
        "rotations": of_rotations,
        "manifest_sha256": files.file_sha256(address.manifest(results, run.task)),
        "versions": environment()["versions"],
    }


def _counted(index: pd.DataFrame, part: Rotation) -> dict[str, dict]:
    """Patients and images by side and class: {"train": {"normal": [9, 12], …}, …}."""
    return {
        side: {
            label: [int(own["patient_id"].nunique()), len(own)]
            for label, own in index[getattr(part, side)].groupby("label")
        }
        for side in SPLITS
    }


def _chosen(validated: pd.DataFrame, classes: list[str]) -> dict:
    """The thresholds and the temperature of a rotation, from its validation predictions."""
    y, proba = prediction.arrays(validated, classes)
    thresholds = [
        {"class": classes[c], "rule": rule.kind, "aim": None if rule.aim != rule.aim else rule.aim}
        | {"threshold": operating.threshold(y == c, proba[:, c], rule)}
        for c in metrics.ranked_classes(len(classes))
        for rule in RULES
    ]
    scaling = calibration.fitted(y, proba, calibration.TEMPERATURE)
    return {"thresholds": thresholds, "temperature": 1 / scaling.slope}


# --------------------------------------------------------------------------------- used


def load(folder: Path | str) -> Model:
    """The model in a run's folder, or in a folder with copies of its two files.

    Raises FileNotFoundError for a missing file. Raises ValueError if a file is damaged or not of
    this format, or if the tensors do not fit the classes.
    """
    folder = Path(folder)
    if missing := [name for name in (FACTS, MODEL) if not (folder / name).is_file()]:
        way_out = "Models of frozen linear heads are always saved, others if the grid file says"
        way_out += " `save_models: true`. Runs of older versions have none: run them again."
        raise FileNotFoundError(f"{folder} lacks {' and '.join(missing)}. {way_out}")
    facts = files.read_json(folder / FACTS)
    if facts.get("format") != FORMAT:
        said = f"{folder / FACTS} has format {facts.get('format')}, and this medlib reads {FORMAT}"
        raise ValueError(f"{said}: use the version that made it ({_version(facts)}).")
    if files.file_sha256(folder / MODEL) != facts["sha256"]:
        raise ValueError(f"{folder / MODEL} is damaged, or belongs to another {FACTS}.")
    tensors = _loaded(folder / MODEL)
    last = "bias" if facts["run"]["regime"] == "frozen" else "head.bias"
    last = {"knn": "hot", "mlp": "b2"}.get(facts["run"]["head"], last)
    sizes = {tensors[f"{one['fold']}.{last}"].shape[-1] for one in facts["rotations"]}
    if sizes != {len(facts["classes"])}:
        named = ", ".join(facts["classes"])
        raise ValueError(f"{folder / FACTS} names the classes {named}, the tensors have {sizes}.")
    return Model(facts, tensors)


def _version(facts: dict) -> str:
    return f"medlib {facts.get('versions', {}).get('medlib', 'unknown')}"


def _loaded(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def predict(model: Model, images: np.ndarray, device: str = "auto") -> dict[int, Rotated]:
    """The predictions of each rotation's model, by its fold, for images (m, S, S, 3) uint8.

    Raises FileNotFoundError if the weights of the backbone are missing. Raises ValueError if they
    are not those of the model, or if the backbone's row in the table has changed.
    """
    facts = model.facts
    _check_backbone(facts)
    if facts["run"]["regime"] == "frozen":
        return of_embeddings(model, _frozen(facts, images, device))
    network, digest = _network(facts["run"]["backbone"], facts, len(facts["classes"]), device)
    check_digest(facts, digest)
    computes = "bfloat16" if loading.device_name(device) == "cuda" else "float32"
    if computes != facts["precision"]:
        print(f"The model was made in {facts['precision']}; here {computes} is used.")
    found, rows = {}, np.arange(len(images))
    for fold, own, known in _by_fold(model):
        assign(learnt(network), own)
        x = _embedded(network, images, rows)
        with torch.inference_mode():
            logits = network.head(torch.from_numpy(x).to(network.head.weight.device))
        proba = logits.cpu().double().softmax(1).numpy()
        found[fold] = Rotated(proba, outside.distances(known, x) / float(known["usual"]))
    return found


def of_embeddings(model: Model, x: np.ndarray) -> dict[int, Rotated]:
    """:func:`predict` for embeddings (m, d) of images by the model's frozen backbone."""
    x = torch.from_numpy(np.array(x))
    return {fold: _of_head(model.facts, *parts, x) for fold, *parts in _by_fold(model)}


def _by_fold(model: Model) -> Iterator[tuple[int, dict[str, Tensor], dict[str, np.ndarray]]]:
    """For each rotation: its fold, its model's tensors, and the distribution of its embeddings."""
    for fold in (rotation["fold"] for rotation in model.facts["rotations"]):
        start = f"{fold}."
        own = {n.removeprefix(start): t for n, t in model.tensors.items() if n.startswith(start)}
        scaling = {n: own[n].numpy() for n in ("shift", "scale") if n in own}
        known = {n.removeprefix(OUTSIDE): own.pop(n).numpy() for n in list(own) if OUTSIDE in n}
        yield fold, own, scaling | known


def _of_head(facts: dict, own: dict, known: dict, x: Tensor) -> Rotated:
    proba = heads.predict(facts["run"]["head"], own, x)
    return Rotated(proba, outside.distances(known, x.numpy()) / float(known["usual"]))


def _check_backbone(facts: dict) -> None:
    """Raise ValueError if the backbone's row or weights file differs from that of the model."""
    key = facts["run"]["backbone"]
    row = backbones.get(key)
    now = json.loads(json.dumps(dataclasses.asdict(row)))
    if other := [name for name in OF_ROW if now[name] != facts["backbone"][name]]:
        lines = [f"{name}: {now[name]!r}, not {facts['backbone'][name]!r}" for name in other]
        raise ValueError(
            f"The row of {key} in medlib/core/backbones.yaml is not that of the model "
            f"({'; '.join(lines)}): use {_version(facts)}, which made it."
        )
    if row.pretraining != "random":
        check_digest(facts, files.file_sha256(find_weights(row)))


def check_digest(facts: dict, digest: str) -> None:
    if digest != facts["weights_digest"]:
        key, wanted = facts["run"]["backbone"], facts["weights_digest"]
        raise ValueError(
            f"The weights of {key} that were found here ({digest[:19]}…) are not those that the "
            f"model was made with ({wanted[:19]}…): get that file, or name its folder in "
            "MEDLIB_WEIGHTS."
        )


def _frozen(facts: dict, images: np.ndarray, device: str) -> np.ndarray:
    """Embeddings (m, d) of images by the model's frozen backbone."""
    key, scratch = facts["run"]["backbone"], Path(tempfile.mkdtemp(prefix="medlib-"))
    try:
        given = {"seed": facts["weights_seed"], "settings": extraction(facts, device)}
        x, meta = features.extract(images, key, scratch, images_hash="", **given)
        check_digest(facts, meta["weights_digest"])
        return np.array(x)
    finally:
        shutil.rmtree(scratch)


def extraction(facts: dict, device: str) -> Extraction:
    """The settings with which a model's frozen backbone embeds: in the precision of the model.

    If the device lacks it, float32 is used, and a message says so.
    """
    wanted, device = facts["precision"], loading.device_name(device)
    try:
        return Extraction(device=device, precision=precision_name(wanted, device))
    except ValueError:
        print(f"The model was made in {wanted}, which {device} does not have: float32 is used.")
        return Extraction(device=device, precision="float32")


def _network(key: str, facts: dict, k: int, device: str) -> tuple[Classifier, str]:
    """The network of a fine-tuned backbone before training, on its device; its weights' digest."""
    size, seed = facts["image_size"], facts["weights_seed"]
    network = Classifier(key, size, k, seed, **facts["network"])
    return fusing.place(network, loading.device_name(device)), network.weights_digest


def _embedded(network: Classifier, images: np.ndarray, rows: Sequence) -> np.ndarray:
    """Embeddings (len(rows), d) of the images in these rows: the input of the head."""
    head, network.head = network.head, nn.Identity()
    x = finetune.outputs(network, images, rows).float().cpu().numpy()
    network.head = head
    return x
