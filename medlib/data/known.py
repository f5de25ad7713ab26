"""What is known of patients beside their label (possible confounders), in one spelling."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

# Columns of a manifest about a patient; burnt_in: whether an image's file states burnt-in text.
KNOWN = ("age", "sex", "site", "manufacturer", "body_part", "burnt_in")
# By these columns the patients of every task fall into groups; a card may name others.
GROUPED = ("age", "sex", "site", "manufacturer", "body_part")
AGE_CUTS = (40, 65)  # years, unless the card's `subgroups` has others
NOT_KNOWN = "not known"  # the group of those whose value is missing
# Texts in tables that mean "not known", in upper or lower case.
MISSING = ("", "nan", "na", "n/a", "none", "null", "unknown", "<na>", "?", "-")
SEXES = {"m": "male", "man": "male", "f": "female", "w": "female", "woman": "female"}
A_YEAR = {"Y": 1, "M": 12, "W": 365.25 / 7, "D": 365.25}  # how many of a unit are one year


def years(age: str) -> str:
    """An age in years. DICOM's "058Y", "018M", "003W" and "010D" are rounded to two digits."""
    match = re.fullmatch(r"(\d{1,3})\s*([YMWD])", age.strip().upper())
    return f"{round(int(match[1]) / A_YEAR[match[2]], 2):g}" if match else age


def without_missing(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in which "nan", "NA", "unknown" and the like are replaced by ""."""
    columns = rows.columns.intersection(["patient_id", *KNOWN])
    return rows.assign(
        **{c: rows[c].mask(rows[c].astype(str).str.lower().isin(MISSING), "") for c in columns}
    )


def in_one_way(table: pd.DataFrame) -> pd.DataFrame:
    """A table of texts with ages in years and with "male" and "female" in one spelling."""
    known = {}
    if "age" in table:
        known["age"] = table["age"].map(years)
    if "sex" in table:
        lower = table["sex"].str.lower()
        spelt = lower.isin(["male", "female"])
        known["sex"] = lower.map(SEXES).fillna(table["sex"].mask(spelt, lower))
    return table.assign(**known)


def groups(rows: pd.DataFrame, subgroups: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The group of each row by each attribute: a column of ordered categories for each.

    ``rows`` are those of a manifest. ``subgroups`` is the card's: it maps further columns to their
    cut points. Without cut points, each value of the column is a group. Ages are cut at AGE_CUTS,
    unless ``subgroups`` has other cut points. In a column with cut points, a value that is no
    number (or no age) counts as :data:`NOT_KNOWN`, as a missing one does. Values are ordered by
    name, and NOT_KNOWN comes last. A column without any known value is left out.
    """
    cuts = {"age": AGE_CUTS} | dict(subgroups)
    found = {}
    for column in (c for c in dict.fromkeys([*GROUPED, *cuts]) if c in rows):
        values = rows[column].astype(str).str.strip()
        values = values.mask(values.str.lower().isin(MISSING), "")
        ends = cuts.get(column, ())
        named = _between(values, ends, column) if len(ends) else values
        order = _cut_names(ends) if len(ends) else sorted({*named} - {""})
        if (named != "").any():
            order = [name for name in order if (named == name).any()]
            order += [NOT_KNOWN] * bool((named == "").any())
            named = named.mask(named == "", NOT_KNOWN)
            found[column] = pd.Categorical(named, order, ordered=True)
    return pd.DataFrame(found, index=rows.index)


def _cut_names(ends: Sequence[float]) -> list[str]:
    inner = [f"{low:g} to under {high:g}" for low, high in zip(ends, ends[1:], strict=False)]
    return [f"under {ends[0]:g}", *inner, f"{ends[-1]:g} and over"]


def _between(values: pd.Series, ends: Sequence[float], column: str) -> pd.Series:
    """The name of the interval that each number lies in; "" where there is no number."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    if column == "age":
        numbers = numbers.where(numbers.between(0, 120))  # no patient has another age
    names = np.array(_cut_names(ends), dtype=object)[np.searchsorted(ends, numbers, side="right")]
    return pd.Series(names, values.index).mask(numbers.isna(), "")
