"""What is known of patients beside their label (possible confounders), in one spelling."""

import re

import pandas as pd

# Columns of a manifest: of a patient, and whether an image says that it has burnt-in text.
KNOWN = ("age", "sex", "site", "manufacturer", "burnt_in")
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
