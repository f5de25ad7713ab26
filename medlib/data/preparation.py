"""From a folder as it was downloaded to a manifest that a sound comparison can rest on.

Everything that would make it unsound is looked for before anything is written: files that cannot
be read, samples without patient or label, and images that are there twice.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.data import duplicates, manifest, packs
from medlib.data.cards import Card
from medlib.data.layouts import base, reader
from medlib.data.manifest import BESIDE, KNOWN, REQUIRED
from medlib.errors import ManifestError, listed


class Prepared(NamedTuple):
    """A task's manifest, and what its passport says of it.

    ``rows``: the manifest, with sha256 and, where they are known, age, sex and site. ``excluded``:
    name and reason of what was left out. ``duplicates``: a row a pair of samples that are one
    image: first, second, kind (exact, near), correlation, first_side, second_side, same_patient,
    same_label, action.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    duplicates: pd.DataFrame


def prepare(
    card: Card,
    data: Path | str,
    *,
    given: Path | None = None,
    seed: int = 0,
    quarantine: bool = False,
    workers: int = 0,
) -> Prepared:
    """Read a task's data set below ``data``, check it and split it by patient.

    ``given`` is a manifest that fixes samples, labels and, if it has them, splits: the committed
    one of a public data set, or a user's own CSV. With a layout in the card, its files are then
    looked for in the folder by sample id, whichever distribution of the data set that is. Without
    ``given`` the layout is read, and splits are drawn from ``seed`` where the data have none.

    Raises ManifestError that lists every sample that cannot be used, and then every image that
    stands on two sides of a split. With ``quarantine`` these are left out instead, and are listed
    with their reasons in ``excluded``.
    """
    found = _fixed(card, data, given) if given is not None else reader.read(card, data)
    rows, unreadable = manifest.with_hashes(_needed(found.rows, card), data)
    small, broken = packs.thumbnails(rows, data, card.volumes, workers)
    problems = _joined(found.problems, unreadable, broken)
    excluded = found.excluded
    if len(problems):
        if not quarantine:
            raise ManifestError(_refusal(card, data, problems, len(found.rows)))
        readable = ~rows["sample_id"].isin(broken["name"])
        rows = rows[readable].reset_index(drop=True)
        small = packs.Thumbnails(small.pictures[readable], small.tiny[readable])
        excluded = _joined(excluded, problems.assign(reason="set aside: " + problems["reason"]))
    if rows.empty:
        raise ManifestError(f"{card.task}: of the samples in {data} none can be used.")

    pairs = _pairs(rows, small, card)
    before = rows
    rows, known = manifest.drop_duplicates(rows, card.known_duplicates)
    excluded = _joined(excluded, known)
    if manifest.split_column(rows) is not None:
        rows, excluded = _one_side_each(rows, pairs, card, quarantine, excluded)
    if "fold" not in rows:  # copies stay together
        rows = manifest.assign_splits(rows, card, seed, _ids(pairs))
    manifest.validate(rows, card, name=card.task)
    side = manifest.split_column(rows)
    columns = [
        *REQUIRED,
        side,
        "sha256",
        *(c for c in KNOWN if c in rows and (rows[c] != "").any()),
    ]
    columns += [name for c in BESIDE if c in rows for name in (c, f"{c}_sha256")]
    return Prepared(rows[columns], excluded, _report(pairs, before, rows, side))


def _joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Names and reasons, each name once: what was said first stands."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=["name", "reason"], dtype=str)
    return pd.concat(parts).drop_duplicates("name").reset_index(drop=True)


def _refusal(card: Card, data: Path | str, problems: pd.DataFrame, total: int) -> str:
    lines = (problems["name"] + ": " + problems["reason"]).tolist()
    return (
        f"{card.task}: {len(problems)} problem(s) in {data} (beside {total} samples that were "
        f"found):\n{listed(lines, most=1000)}\nCorrect them, or set them aside: quarantine=True in "
        "notebook 01_prepare_data goes on with the rest and lists them in the manifest's "
        ".excluded.csv."
    )


def _fixed(card: Card, data: Path | str, given: Path) -> base.Found:
    """The samples of a given manifest, with what the data set's folder says of them."""
    rows = manifest.read_rows(given)
    missing = [column for column in REQUIRED if column not in rows]
    if missing:
        raise ManifestError(
            f"{given}: columns missing: {', '.join(missing)}; found: {', '.join(rows.columns)}."
        )
    named = set(rows["sample_id"])
    rows, unusable = manifest.sound_rows(rows, card)
    excluded = manifest.read_excluded(given)
    if not card.layout:
        return base.Found(rows, excluded, unusable)
    read = reader.read(card, data)
    there = read.rows.set_index("sample_id")
    known = rows["sample_id"].isin(there.index)
    told = pd.concat([read.excluded, read.problems]).set_index("name")["reason"].to_dict()
    problems = [
        (sample, told.get(sample, f"it stands in {given.name}, but not in the folder"))
        for sample in rows["sample_id"][~known]
    ]
    rows = rows[known].reset_index(drop=True)
    labels = there["label"].reindex(rows["sample_id"]).to_numpy()
    differs = (labels != rows["label"]).to_numpy()
    problems += [
        (row.sample_id, f"it is {row.label!r} in {given.name}, but {label!r} in the folder")
        for row, label in zip(rows[differs].itertuples(), labels[differs], strict=True)
    ]
    rows = rows[~differs].reset_index(drop=True)
    for column in ("path", *BESIDE, *KNOWN):
        if column in there and (column == "path" or column not in rows):
            rows[column] = there[column].reindex(rows["sample_id"]).to_numpy()
    new = sorted(set(there.index) - named)
    extra = pd.DataFrame({"name": new, "reason": f"not in {given.name}, which fixes the samples"})
    problems = pd.DataFrame(problems, columns=["name", "reason"], dtype=str)
    return base.Found(rows, _joined(excluded, read.excluded, extra), _joined(unusable, problems))


def _needed(rows: pd.DataFrame, card: Card) -> pd.DataFrame:
    """``rows`` without the further files that no step reads."""
    settings = card.volumes
    used = {"mask": settings and settings.needs_mask, "grid": settings is not None}
    return rows.drop(columns=[c for c in BESIDE if c in rows and not used[c]])


def _pairs(rows: pd.DataFrame, small: packs.Thumbnails, card: Card) -> pd.DataFrame:
    """Pairs of samples that are one image, by their ids."""
    found = duplicates.find(small.pictures, rows["sha256"].tolist(), small.tiny)
    ids = rows["sample_id"].to_numpy()
    found = found.assign(first=ids[found["first"]], second=ids[found["second"]])
    denied = {frozenset(pair) for group in card.not_duplicates for pair in combinations(group, 2)}
    kept = [frozenset(pair) not in denied for pair in _ids(found)]
    return found[np.array(kept, dtype=bool)].reset_index(drop=True)


def _one_side_each(
    rows: pd.DataFrame, pairs: pd.DataFrame, card: Card, quarantine: bool, excluded: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``rows`` with no image on two sides of the split, or a ManifestError that lists them."""
    side = manifest.split_column(rows)
    sides = dict(zip(rows["sample_id"], rows[side].astype(str), strict=True))
    groups = [[s for s in group if s in sides] for group in manifest.linked(_ids(pairs))]
    across = [group for group in groups if len({sides[sample] for sample in group}) > 1]
    if not across:
        return rows, excluded
    if not quarantine:
        lines = [
            ", ".join(f"{sample} ({side} {sides[sample]})" for sample in group) for group in across
        ]
        raise ManifestError(
            f"{card.task}: {len(across)} image(s) stand on several sides of the split:\n"
            f"{listed(lines, most=1000)}\nName each group in the card: under known_duplicates its "
            "training side is dropped, under not_duplicates it counts as different images. Or drop "
            "them all with quarantine=True in notebook 01_prepare_data."
        )
    rows, dropped = manifest.drop_duplicates(rows, across)
    return rows, _joined(excluded, dropped.assign(reason="set aside: " + dropped["reason"]))


def _ids(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs["first"], pairs["second"], strict=True))


def _report(
    pairs: pd.DataFrame, before: pd.DataFrame, rows: pd.DataFrame, side: str
) -> pd.DataFrame:
    """The pairs, with where either image stands and what was done."""
    after = rows.set_index("sample_id")
    before = before.set_index("sample_id")
    report = pairs.copy()
    for name in ("first", "second"):
        stands = after[side].reindex(report[name])
        if side in before:  # the side from which it was dropped
            stands = stands.fillna(before[side].reindex(report[name]))
        report[f"{name}_side"] = [str(s) if pd.notna(s) else "" for s in stands]
    for column in ("patient", "label"):
        key = "patient_id" if column == "patient" else column
        one, other = (before[key].reindex(report[name]).to_numpy() for name in ("first", "second"))
        report[f"same_{column}"] = one == other
    report["action"] = [
        " and ".join(f"{s} dropped" for s in pair if s not in after.index) or "both kept"
        for pair in _ids(report)
    ]
    return report
