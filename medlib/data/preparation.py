"""From a folder as it was downloaded to a manifest and packs for a sound comparison.

Everything that would make it unsound is searched for before anything is written: files that cannot
be read, samples without patient or label, and duplicate images.
"""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medlib.data import duplicates, manifest, packing
from medlib.data.cards import Card
from medlib.data.layouts import base, reader
from medlib.data.manifest import BESIDE, KNOWN, REQUIRED
from medlib.errors import ManifestError, listed


class Prepared(NamedTuple):
    """A task's manifest, and what its passport reports.

    ``rows``: the manifest, with sha256 and, where they are known, age, sex and site. ``excluded``:
    name and reason of each sample left out. ``duplicates``: a row for each pair of samples that are
    one image: first, second, kind (exact, near), correlation, first_side, second_side,
    same_patient, same_label, action.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    duplicates: pd.DataFrame


def prepare(
    card: Card,
    data: Path | str,
    *,
    folders: packing.Folders | None = None,
    given: Path | None = None,
    repeats: int = 1,
    seed: int = 0,
    quarantine: bool = False,
    workers: int = 0,
) -> Prepared:
    """Read a task's data set below ``data``, check it, split it by patient and pack its images.

    Each file is read and decoded once; ``folders`` says of each pack's folder how its images are
    drawn. ``given`` is a manifest that fixes samples, labels and, if it has them,
    splits: the committed one of a public data set, or a user's own CSV. If the card has a layout,
    its files are then found in the folder by sample id, so that any distribution of the data set
    will do. Without ``given`` the layout says which samples there are, and splits are drawn from
    ``seed`` where the data have none. So are the folds of further ``repeats`` of cross-validation.
    Raises ManifestError that lists every sample that cannot be used, or else every image that
    stands on two sides of a split. With ``quarantine`` these are left out instead, and listed with
    their reasons in ``excluded``.
    """
    listing = _fixed(card, data, given) if given is not None else reader.read(card, data)
    used = {"mask": card.volumes and card.volumes.needs_mask, "reference": card.volumes}
    unused = [name for name in BESIDE if name in listing.rows and not used[name]]  # not read
    rows, folders = listing.rows.drop(columns=unused), folders or {}
    how = {"settings": card.volumes, "grey_values": card.grey_values, "workers": workers}
    with packing.reading(rows, data, folders, **how) as read:
        prepared = _checked_and_split(card, data, listing, read, quarantine, repeats, seed)
        packing.write(read, prepared.rows, folders, card.volumes, card.grey_values)
    return prepared


def _checked_and_split(
    card: Card,
    data: Path | str,
    listing: base.Found,
    read: packing.Reading,
    quarantine: bool,
    repeats: int,
    seed: int,
) -> Prepared:
    problems, excluded = _joined(listing.problems, read.unreadable, read.broken), listing.excluded
    if len(problems) and not quarantine:
        lines = listed((problems["name"] + ": " + problems["reason"]).tolist(), most=1000)
        what = f"{len(problems)} problem(s) in {data} (beside {len(listing.rows)} samples found)"
        way_out = "Correct them, or set them aside (quarantine=True in notebook 01_prepare_data)."
        raise ManifestError(f"{card.task}: {what}:\n{lines}\n{way_out}")
    excluded = _joined(excluded, problems.assign(reason="set aside: " + problems["reason"]))
    if read.rows.empty:
        raise ManifestError(f"{card.task}: of the samples in {data} none can be used.")

    pairs = _pairs(read, card)
    rows, known = manifest.drop_duplicates(read.rows, card.known_duplicates)
    excluded = _joined(excluded, known)
    if manifest.split_column(rows) is not None:
        rows, excluded = _one_side_each(rows, pairs, card, quarantine, excluded)
    if "fold" not in rows:  # copies stay together
        rows = manifest.assign_splits(rows, card, seed, _ids(pairs))
    rows = manifest.repeat_folds(rows, card, repeats, seed, _ids(pairs))
    manifest.validate(rows, card, name=card.task)
    side = manifest.split_column(rows)
    columns = [*REQUIRED, *manifest.side_columns(rows), "sha256"]
    columns += [c for c in KNOWN if c in rows and (rows[c] != "").any()]
    columns += [name for c in BESIDE if c in rows for name in (c, f"{c}_sha256")]
    return Prepared(rows[columns], excluded, _report(pairs, read.rows, rows, side))


def _joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Names and reasons, each name once, with its first reason."""
    return pd.concat(parts).drop_duplicates("name").reset_index(drop=True)


def _fixed(card: Card, data: Path | str, given: Path) -> base.Found:
    """The samples of a given manifest, with what the data set's folder says of them."""
    rows = manifest.read_rows(given)
    missing = [column for column in REQUIRED if column not in rows]
    if missing:
        there = ", ".join(rows.columns)
        raise ManifestError(f"{given}: columns missing: {', '.join(missing)}; found: {there}.")
    named = set(rows["sample_id"])
    rows, unusable = manifest.sound_rows(rows, card)
    excluded = manifest.read_excluded(given)
    if not card.layout:
        return base.Found(rows, excluded, unusable)
    read = reader.read(card, data)
    there = read.rows.set_index("sample_id")
    told = pd.concat([read.excluded, read.problems]).set_index("name")["reason"].to_dict()
    labels, problems = there["label"].to_dict(), {}
    for sample, label in zip(rows["sample_id"], rows["label"], strict=True):
        if sample not in labels:
            problems[sample] = told.get(sample, f"it stands in {given.name}, but not in the folder")
        elif label != labels[sample]:
            differs = f"it is {label!r} in {given.name}, but {labels[sample]!r} in the folder"
            problems[sample] = differs
    rows = rows[~rows["sample_id"].isin(problems)].reset_index(drop=True)
    for column in ("path", *BESIDE, *KNOWN):
        if column in there and (column == "path" or column not in rows):
            rows[column] = there[column].reindex(rows["sample_id"]).to_numpy()
    new = sorted(set(there.index) - named)
    extra = pd.DataFrame({"name": new, "reason": f"not in {given.name}, which fixes the samples"})
    problems = pd.DataFrame([*problems.items()], columns=["name", "reason"], dtype=str)
    return base.Found(rows, _joined(excluded, read.excluded, extra), _joined(unusable, problems))


def _pairs(read: packing.Reading, card: Card) -> pd.DataFrame:
    """Pairs of samples that are one image, by their ids."""
    pairs = duplicates.find(read.thumbnails, read.rows["sha256"].tolist(), read.tiny)
    ids = read.rows["sample_id"].to_numpy()
    pairs = pairs.assign(first=ids[pairs["first"]], second=ids[pairs["second"]])
    denied = {frozenset(pair) for group in card.not_duplicates for pair in combinations(group, 2)}
    kept = [frozenset(pair) not in denied for pair in _ids(pairs)]
    return pairs[np.array(kept, dtype=bool)].reset_index(drop=True)


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
        lines = [", ".join(f"{s} ({side} {sides[s]})" for s in group) for group in across]
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


def _report(pairs: pd.DataFrame, before: pd.DataFrame, rows: pd.DataFrame, side: str):
    """The pairs, with the side of either image and what was done."""
    before, after = before.set_index("sample_id"), rows.set_index("sample_id")
    report = pairs.copy()
    for name in ("first", "second"):
        stands = after[side].reindex(report[name])
        if side in before:  # the side from which it was dropped
            stands = stands.fillna(before[side].reindex(report[name]))
        report[f"{name}_side"] = [str(s) if pd.notna(s) else "" for s in stands]
    for key, same in {"patient_id": "same_patient", "label": "same_label"}.items():
        one, other = (before[key].reindex(report[name]).to_numpy() for name in ("first", "second"))
        report[same] = one == other
    dropped = ([s for s in pair if s not in after.index] for pair in _ids(report))
    actions = (" and ".join(f"{sample} dropped" for sample in samples) for samples in dropped)
    report["action"] = [action or "both kept" for action in actions]
    return report
