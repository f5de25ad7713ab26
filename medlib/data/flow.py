"""The numbers of a participant flow: what was found, what was left out, and who is on which side.

They come from the files of the preparation: the manifest, what was left out and why, and the notes.
"""

import re
from collections.abc import Sequence

import pandas as pd

from medlib.core.splits import SPLITS
from medlib.data import manifest, passport
from medlib.data.passport import ALL

FOUND, EXCLUDED, COPIES, KEPT = "found", "excluded", "copies", "kept"  # stages
ALL_REASONS = "all reasons"
OTHER, NOTES = "other files", "notes"
_OTHER_FILES = re.compile(r"(\d+) file\(s\) with ")  # files that are no images, see layouts.reader
_COPY = re.compile(rf"(set aside: )?({'|'.join(map(re.escape, manifest.COPY_REASONS))})")


def table(
    rows: pd.DataFrame,
    classes: Sequence[str],
    excluded: pd.DataFrame,
    stored: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> pd.DataFrame:
    """The numbers of a task's participant flow in long form. No sample or patient is named.

    ``rows`` is a manifest (sample_id, patient_id, path, label, and split or fold), ``excluded`` has
    name and reason; ``stored`` is that of :class:`medlib.data.preparation.Prepared`, ``notes`` are
    sentences. Raises ValueError for a manifest that is not split.

    Columns: stage, name, patients, count, unit (what is counted). ``patients`` is empty if it is
    not known. A patient with samples of two classes counts in both, and once in "all classes". The
    stages, in this order:

    - found: the samples and what was left out, which may be a file, a patient or a table's row;
    - excluded, and copies: first all of them, then by reason, the most frequent first;
    - kept;
    - the sides (train, val, test, or fold 0, fold 1, …): all classes, then each class;
    - other files: those that are no images, by reason; they do not count as found;
    - notes.
    """
    side = manifest.split_column(rows)
    if side is None:
        raise ValueError("a manifest needs a `split` or a `fold` column, not both: split it first")
    others = excluded["reason"].str.extract(_OTHER_FILES, expand=False).astype(float)
    left_out = excluded[others.isna()]
    is_copy = left_out["reason"].str.match(_COPY)
    ids = passport.ids_of(rows, excluded["name"])
    n = len(rows) + len(left_out)
    tables = [pd.DataFrame({"stage": [FOUND], "name": "all entries", "count": n})]
    for stage, part in ((EXCLUDED, left_out[~is_copy]), (COPIES, left_out[is_copy])):
        total = pd.DataFrame({"name": [ALL_REASONS], "count": len(part)})
        tables += [total.assign(stage=stage)]
        tables += [passport.by_reason(part["reason"], ids).assign(stage=stage)]
    tables.append(_by_class(rows, classes).assign(stage=KEPT))
    present = set(rows[side])
    sides = [part for part in SPLITS if part in present] if side == "split" else sorted(present)
    for one in sides:
        stage = one if side == "split" else f"fold {one}"
        tables.append(_by_class(rows[rows[side] == one], classes).assign(stage=stage))
    not_read = passport.without_ids(excluded["reason"][others.notna()], ids)
    files = pd.DataFrame({"name": not_read, "count": others.dropna(), "stage": OTHER})
    repeats = len(manifest.side_columns(rows))
    first = [f"The folds are those of the first of {repeats} repetitions."] * (repeats > 1)
    texts = pd.DataFrame({"name": [*first, *passport.without_any_id(notes)], "stage": NOTES})
    columns = ["stage", "name", "patients", "count", "unit"]
    numbers = pd.concat([*tables, files, texts], ignore_index=True).reindex(columns=columns)
    units = {FOUND: "entries", EXCLUDED: "entries", OTHER: "files", NOTES: "sentences"}
    numbers["unit"] = numbers["stage"].map(units).fillna(passport.unit_of(rows, stored))
    return numbers.astype({"patients": "Int64", "count": "Int64"})


def _by_class(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Patients and samples of all classes together, and of each class."""
    both = pd.concat([rows.assign(label=ALL), rows]).groupby("label")["patient_id"]
    counts = pd.DataFrame({"patients": both.nunique(), "count": both.size()})
    return counts.reindex([ALL, *classes], fill_value=0).rename_axis("name").reset_index()
