"""From a folder as it was downloaded to a manifest and packs for a sound comparison.

Before anything is written, everything is searched for that would make the comparison unsound: files
that cannot be read, samples without patient or label, and duplicate images.
"""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from medlib.data import duplicates, manifest, packing
from medlib.data.cards import SITES, Card
from medlib.data.known import KNOWN
from medlib.data.layouts import base, reader
from medlib.data.manifest import BESIDE, REQUIRED
from medlib.data.thumbnails import FLAT
from medlib.errors import ManifestError, listed


class Copies(NamedTuple):
    """Pairs of images that tie two patients together, or are on two sides of a split.

    ``pairs``: first, second, kind, correlation, first_side, second_side ("" before sides are
    drawn); pairs on two sides come first, then those with the lowest correlation. ``pictures``: the
    images of the first MOST_SHOWN pairs, uint8 K×2×S×S×3.
    """

    pairs: pd.DataFrame
    pictures: np.ndarray


class Stopped(ManifestError):
    """Preparation was stopped by what it found; ``copies`` are the pairs to look at."""

    def __init__(self, message: str, copies: Copies):
        super().__init__(message)
        self.copies = copies


class Prepared(NamedTuple):
    """A task's manifest, and what its passport reports.

    ``rows``: the manifest, with sha256 and, where they are known, age, sex, site, body_part and the
    columns of the card's ``subgroups``. ``excluded``: name and reason of each sample left out.
    ``duplicates``: a row for each pair of samples that are one image: first, second, kind (exact,
    near, or what was done to it, such as "mirrored and cropped"), correlation, first_side,
    second_side, same_patient, same_label, action. ``stored``: how image files are stored
    (sample_id, kind, bits, width, height, few_greys). ``notes``: sentences about what was assumed.
    ``copies``: the pairs that a person should look at.
    """

    rows: pd.DataFrame
    excluded: pd.DataFrame
    duplicates: pd.DataFrame
    stored: pd.DataFrame
    notes: tuple[str, ...]
    copies: Copies | None = None


MOST_SHOWN = 12  # pairs whose pictures are kept
MOST_TIED = 5  # patients that may share one picture; if more do, it is probably a placeholder


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

    Each file is read and decoded once. ``folders`` maps each pack's folder to how its images are
    drawn. ``given`` is a manifest that fixes samples, labels and, if it has them, splits: the
    committed one of a public data set, or a user's own CSV. If the card has a layout, the files of
    ``given`` are found in the folder by sample id, so any distribution of the data set can be used.
    Without ``given`` the layout says which samples there are, and splits are drawn from ``seed`` if
    the data have none. The folds of further ``repeats`` of cross-validation are drawn from it, too.
    Raises ManifestError that lists every sample that cannot be used, or else every image or
    patient that is on two sides of a split. With ``quarantine`` these are left out instead, and
    listed with their reasons in ``excluded``: of two sides, the training side is left out.
    """
    listing = _fixed(card, data, given) if given is not None else reader.read(card, data)
    used = {"mask": card.volumes and card.volumes.needs_mask, "reference": card.volumes}
    unused = [name for name in BESIDE if name in listing.rows and not used[name]]  # not read
    rows, grey = listing.rows.drop(columns=unused), card.grey_values
    folders = {f: how._replace(grey_values=grey) for f, how in (folders or {}).items()}
    how = {"settings": card.volumes, "grey_values": grey, "workers": workers}
    with packing.reading(rows, data, folders, **how) as read:
        pairs = _pairs(read, card)
        copies = _copies(read, pairs, card, folders)
        try:
            prepared = _checked_and_split(
                card, data, listing, read, pairs, quarantine, repeats, seed
            )
        except ManifestError as error:
            raise Stopped(str(error), copies) from error
        prepared = prepared._replace(copies=copies)
        packing.write(read, prepared.rows, folders, card.volumes)
    return prepared


def _checked_and_split(
    card: Card,
    data: Path | str,
    listing: base.Found,
    read: packing.Reading,
    pairs: pd.DataFrame,
    quarantine: bool,
    repeats: int,
    seed: int,
) -> Prepared:
    _one_rule_for_grey_values(card, read.stored)
    excluded = listing.excluded
    unsound = [_blank(read), _masks(read), _shared(read.rows, pairs)]
    unsound.append(_under_two_labels(read.rows, pairs, card))
    problems = _joined(listing.problems, read.unreadable, read.broken, *unsound)
    if len(problems) and not quarantine:
        lines = listed((problems["name"] + ": " + problems["reason"]).tolist(), most=1000)
        what = f"{len(problems)} problem(s) in {data} (beside {len(listing.rows)} samples found)"
        way_out = "Correct them, or set them aside (quarantine=True in notebook 01_prepare_data)."
        raise ManifestError(f"{card.task}: {what}:\n{lines}\n{way_out}")
    excluded = _joined(excluded, problems.assign(reason="set aside: " + problems["reason"]))
    rows = read.rows[~read.rows["sample_id"].isin(problems["name"])].reset_index(drop=True)
    if rows.empty:
        raise ManifestError(f"{card.task}: none of the samples in {data} can be used.")

    same = pairs[pairs["kind"].isin(["exact", "near"])]
    if card.split == SITES and "fold" not in rows:  # the side of a copy is its site
        rows = manifest.assign_splits(rows, card, seed, _ids(same))
    rows, known = manifest.drop_duplicates(rows, card.known_duplicates)
    excluded = _joined(excluded, known)
    if manifest.split_column(rows) is not None:
        rows, excluded = _one_side_each(rows, pairs, card, quarantine, excluded)
        rows, excluded = _patients_on_one_side(rows, card, quarantine, excluded)
    if "fold" not in rows:  # copies stay together
        rows = manifest.assign_splits(rows, card, seed, _ids(same))
    rows = manifest.repeat_folds(rows, card, repeats, seed, _ids(same))
    confirmed = [pair for group in card.known_duplicates for pair in combinations(group, 2)]
    rows = _gathered(rows, [*_ids(pairs), *confirmed])
    manifest.validate(rows, card, name=card.task)
    side = manifest.split_column(rows)
    columns = [*REQUIRED, *manifest.kept_columns(rows), "sha256"]
    also = (*KNOWN, *card.further_columns)
    columns += [c for c in also if c in rows and (rows[c].fillna("") != "").any()]
    columns += [name for c in BESIDE if c in rows for name in (c, f"{c}_sha256")]
    report = _report(pairs, read.rows, rows, side)
    return Prepared(
        rows[columns],
        excluded,
        report,
        read.stored,
        (*listing.notes, *_burnt_in(rows), *_sites(rows, card)),
    )


def _burnt_in(rows: pd.DataFrame) -> list[str]:
    """A note that counts the images with text in their pixels, as their files say."""
    n = int((rows["burnt_in"] == "yes").sum()) if "burnt_in" in rows else 0
    many = f"{n} image(s) say that text is burnt into their pixels (BurnedInAnnotation)."
    return [f"{many} Look at them before you share images or figures."] if n else []


def _sites(rows: pd.DataFrame, card: Card) -> list[str]:
    """A note that says which site is tested in which fold."""
    if card.split != SITES:
        return []
    names = dict(sorted(zip(rows["fold"], manifest.site_names(rows, card), strict=True)))
    folds = ", ".join(f"fold {fold} is {name}" for fold, name in names.items())
    return [f"Each site is tested once, by a model that has not seen it: {folds}."]


def _one_rule_for_grey_values(card: Card, stored: pd.DataFrame) -> None:
    """Raise ManifestError if some images have 8 bits, others more, and the card states no rule."""
    deep = stored["bits"] > 8
    if card.grey_values == "" and deep.any() and not deep.all():
        many = f"{deep.sum()} of {len(deep)} images have more than 8 bits"
        example = stored["sample_id"][deep].iloc[0]
        why = "their grey values would be stretched, and those of the others would not"
        way_out = "Write `grey_values: stretched` or `grey_values: as_stored` in the card"
        raise ManifestError(f"{card.task}: {many} ({example}): {why}. {way_out}, for all alike.")


def _blank(read: packing.Reading) -> pd.DataFrame:
    """Images on which there is nothing to see. Many patients may share such an image."""
    blank = read.thumbnails.std(axis=(1, 2)) < FLAT
    names = read.rows["sample_id"][blank] if len(read.stored) else []
    why = "it is blank: replace it, or write `grey_values: stretched` in the card if it is only dim"
    return pd.DataFrame({"name": names, "reason": why}, dtype=str)


def _masks(read: packing.Reading) -> pd.DataFrame:
    """Samples that look like a mask of another image.

    They have few grey values, the size of that image, and a name that begins with its name.
    """
    stored = read.stored.set_index("sample_id")
    paths = read.rows.set_index("sample_id")["path"].reindex(stored.index)
    of_each = zip(paths, stored["width"], stored["height"], strict=True)
    sizes = {base.stem(path): size for path, *size in of_each}
    found = []
    for sample in stored.index[stored["few_greys"].astype(bool)]:
        name, size = base.stem(paths[sample]), sizes[base.stem(paths[sample])]
        ends = [k for k in range(1, len(name)) if name[k] in " _-" and name[:k].rpartition("/")[2]]
        of = next((name[:k] for k in ends if sizes.get(name[:k]) == size), "")
        if of:
            why = f"it looks like a mask of {of}: a few grey values, the same size, a longer name"
            found.append((sample, f"{why}. Take it out, or rename it if it is an image"))
    return pd.DataFrame(found, columns=["name", "reason"], dtype=str)


def _under_two_labels(rows: pd.DataFrame, pairs: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Samples that are one image but have two labels. The reason of each names the other.

    Two frames of a film may differ in label: copies that are not exact, of one patient, are kept.
    """
    rows, official = rows.set_index("sample_id"), manifest.split_column(rows) is not None
    known = [set(group) for group in card.known_duplicates if official]  # the card decides
    reasons = {}
    for kind, *pair in pairs[["kind", "first", "second"]].itertuples(index=False):
        labels, patients = rows["label"][pair], rows["patient_id"][pair]
        one_film = kind != "exact" and patients.nunique() == 1
        if labels.nunique() > 1 and not one_film and not any(set(pair) <= k for k in known):
            for name, other in (pair, pair[::-1]):
                what = f"the same image as {other}" if kind == "exact" else f"a copy of {other}"
                why = f"it is {labels[name]!r} and {what}, which is {labels[other]!r}"
                reasons.setdefault(name, why)
    return pd.DataFrame([*reasons.items()], columns=["name", "reason"], dtype=str)


def _shared(rows: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Samples whose picture more than MOST_TIED patients share."""
    same = pairs[(pairs["kind"] == "exact") | (pairs["correlation"] >= 0.9999)]
    patients, found = rows.set_index("sample_id")["patient_id"], []
    for group in manifest.linked(_ids(same)):
        whose = sorted(set(patients[group]))
        if len(whose) > MOST_TIED:
            few = f"{len(whose)} patients have this picture ({', '.join(whose[:3])}, …)"
            why = f"{few}, more than {MOST_TIED}: is it a placeholder?"
            found += [(sample, why) for sample in group]
    return pd.DataFrame(found, columns=["name", "reason"], dtype=str)


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
            problems[sample] = told.get(sample, f"it is in {given.name}, but not in the folder")
        elif label != labels[sample]:
            differs = f"it is {label!r} in {given.name}, but {labels[sample]!r} in the folder"
            problems[sample] = differs
    rows = rows[~rows["sample_id"].isin(problems)].reset_index(drop=True)
    for column in ("path", *BESIDE, *KNOWN, *card.further_columns):
        if column in there and (column == "path" or column not in rows):
            rows[column] = there[column].reindex(rows["sample_id"]).to_numpy()
    new = sorted(set(there.index) - named)
    extra = pd.DataFrame({"name": new, "reason": f"not in {given.name}, which fixes the samples"})
    problems = pd.DataFrame([*problems.items()], columns=["name", "reason"], dtype=str)
    return base.Found(rows, _joined(excluded, read.excluded, extra), _joined(unusable, problems))


def _pairs(read: packing.Reading, card: Card) -> pd.DataFrame:
    """Pairs of samples that are one image, by their ids."""
    hashes = read.rows["sha256"].tolist() if len(read.rows) else []
    pairs = duplicates.find(read.thumbnails, hashes, read.tiny)
    ids = read.rows["sample_id"].to_numpy()
    pairs = pairs.assign(first=ids[pairs["first"]], second=ids[pairs["second"]])
    denied = {frozenset(pair) for group in card.not_duplicates for pair in combinations(group, 2)}
    kept = [frozenset(pair) not in denied for pair in _ids(pairs)]
    return pairs[np.array(kept, dtype=bool)].reset_index(drop=True)


def _copies(
    read: packing.Reading, pairs: pd.DataFrame, card: Card, folders: packing.Folders
) -> Copies:
    """The pairs of images of two patients, without those that the card confirms."""
    rows, confirmed = read.rows.set_index("sample_id"), map(set, card.known_duplicates)
    confirmed, side = list(confirmed), manifest.split_column(read.rows)
    for end in ("first", "second"):
        pairs = pairs.assign(**{f"{end}_side": _sides(rows, side, pairs[end])})
    one, other = (rows["patient_id"].reindex(pairs[end]).to_numpy() for end in ("first", "second"))
    open_ones = [not any(set(pair) <= group for group in confirmed) for pair in _ids(pairs)]
    pairs = pairs[(one != other) & np.array(open_ones, bool)]
    together = pairs["first_side"] == pairs["second_side"]
    order = pairs.assign(together=together).sort_values(["together", "correlation", "first"])
    pairs = pairs.loc[order.index].reset_index(drop=True)
    shown = pairs[["first", "second"]].head(MOST_SHOWN).to_numpy()
    pictures = packing.pictures(read, shown.ravel().tolist(), folders)
    return Copies(pairs, pictures.reshape(len(shown), 2, *pictures.shape[1:]))


def _gathered(rows: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Move patients who share a pair of copies to one side: the one with most of their images.

    Folds are drawn before, without regard to changed copies. Otherwise one more pair would change
    the folds of nearly all patients. In this way only the patients of the pair move.
    """
    patient = rows.set_index("sample_id")["patient_id"].to_dict()
    ties = [(patient[a], patient[b]) for a, b in pairs if a in patient and b in patient]
    rows = rows.copy()
    for group in manifest.linked(ties):
        members = rows["patient_id"].isin(group)
        for side in manifest.side_columns(rows):
            counts = rows.loc[members, side].value_counts()
            if len(counts) > 1:
                rows.loc[members, side] = min(counts.index[counts == counts.max()])
    return rows


def card_lines(copies: Copies) -> str:
    """Two lines for the card. The first confirms all pairs shown, the second dismisses them."""
    shown = copies.pairs[["first", "second"]].head(len(copies.pictures)).to_numpy().tolist()
    pairs = yaml.safe_dump(shown, default_flow_style=True, width=float("inf")).strip()
    return f"known_duplicates: {pairs}\nnot_duplicates: {pairs}"


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
            f"{card.task}: {len(across)} image(s) are on several sides of the split:\n"
            f"{listed(lines, most=1000)}\nName each group in the card: under known_duplicates its "
            "training side is dropped, under not_duplicates it counts as different images. Or drop "
            "them all with quarantine=True in notebook 01_prepare_data."
        )
    rows, dropped = manifest.drop_duplicates(rows, across)
    return rows, _joined(excluded, dropped.assign(reason="set aside: " + dropped["reason"]))


def _patients_on_one_side(
    rows: pd.DataFrame, card: Card, quarantine: bool, excluded: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``rows`` with no patient on two sides of the split, or a ManifestError that lists them."""
    side = manifest.split_column(rows)
    sides = rows.groupby("patient_id", sort=True)[side].nunique()
    across = rows[rows["patient_id"].isin(sides.index[sides > 1])]
    groups = [group["sample_id"].tolist() for _, group in across.groupby("patient_id")]
    if not groups:
        return rows, excluded
    if not quarantine:
        times = across.groupby(["patient_id", side]).size()
        lines = [
            f"{patient}: " + ", ".join(f"{side} {s} ({n})" for (_, s), n in of_one.items())
            for patient, of_one in times.groupby(level=0)
        ]
        raise ManifestError(
            f"{card.task}: {len(groups)} patient(s) are on several sides of the split (in "
            f"parentheses, how many samples):\n{listed(lines, most=1000)}\nMove their files to one "
            "side, or correct the table. If equal names are different people, let `patient` in "
            "layout_options find the folder, too. Or set the training side aside with "
            "quarantine=True in notebook 01_prepare_data."
        )
    kept, dropped = manifest.drop_duplicates(rows, groups)
    whose = rows.set_index("sample_id")["patient_id"][dropped["name"]].to_numpy()
    reason = [f"set aside: its patient {patient} is on another side as well" for patient in whose]
    return kept, _joined(excluded, dropped.assign(reason=reason))


def _sides(rows: pd.DataFrame, side: str | None, samples: pd.Series) -> list[str]:
    """The side of each sample; "" if it has no row, or if no side is drawn yet."""
    if side not in rows:
        return [""] * len(samples)
    return ["" if pd.isna(stands) else str(stands) for stands in rows[side].reindex(samples)]


def _ids(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs["first"], pairs["second"], strict=True))


def _report(pairs: pd.DataFrame, before: pd.DataFrame, rows: pd.DataFrame, side: str):
    """The pairs, with the side of either image and what was done."""
    before, after = before.set_index("sample_id"), rows.set_index("sample_id")
    report = pairs.copy()
    for name in ("first", "second"):
        ends = zip(*(_sides(at, side, report[name]) for at in (after, before)), strict=True)
        report[f"{name}_side"] = [now or dropped_from for now, dropped_from in ends]
    for key, same in {"patient_id": "same_patient", "label": "same_label"}.items():
        one, other = (before[key].reindex(report[name]).to_numpy() for name in ("first", "second"))
        report[same] = one == other
    dropped = ([s for s in pair if s not in after.index] for pair in _ids(report))
    actions = (" and ".join(f"{sample} dropped" for sample in samples) for samples in dropped)
    report["action"] = [action or "both kept" for action in actions]
    return report
