"""The numbers of a split passport: patients and images by side, and how else classes differ."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from medlib.core.splits import SPLITS
from medlib.data.manifest import split_column

FILE_TYPE, IMAGE_SIZE = "images by file type", "images by size"  # in pixels
MOST_SIZES = 6  # sizes of images that have a column each
MOST_REASONS, MOST_LETTERS = 6, 240  # reasons that are listed, and letters of each
_MARKS = ("\n", ".,:;", ".,:;()[]'\"")  # around a name in a text; the name may hold some itself
# A word with both letters and digits, or with three digits, may be an id.
_ANY_ID = re.compile(r"[\w.-]*(\d[\w.-]*[A-Za-z_]|[A-Za-z_][\w.-]*\d|\d{3})[\w./-]*")
ALL, UNKNOWN, REST = "all classes", "unknown", "all others"  # rows and columns
# The manifest's columns → panels.
CONFOUNDERS = {"age": "age in years", "sex": "sex", "site": "site", "manufacturer": "manufacturer"}
CONFOUNDERS["body_part"] = "body part"


def table(
    manifest: pd.DataFrame,
    classes: Sequence[str],
    duplicates: pd.DataFrame,
    excluded: pd.DataFrame,
    stored: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> pd.DataFrame:
    """The numbers of the split passport in long form. No sample or patient is named.

    `manifest` has sample_id, patient_id, path, label, and `split` or `fold`; it may have age
    (years), sex, site, manufacturer and body_part, "" where unknown. `duplicates` has first, second
    (sample ids), kind (exact, near, …), correlation, first_side, second_side, same_patient and
    action; `excluded` has name and reason; `stored`, for images, has sample_id, kind, bits, width
    and height; `notes` are sentences. Raises ValueError for a manifest that is not split.

    Columns: part, class (or "all classes"; "" in the last four parts), name, count, unit (what is
    counted), share, correlation, detail. A patient with images of two classes counts in both, and
    once in "all classes". If a patient has several ages, sexes and so on, the first known one
    counts. The parts, in this order:

    - classes (share: of all), patients and images by side, images per patient;
    - what is known of patients (share: of the patients of the class with a known value);
    - images by file type (with its bits) and by size in pixels;
    - duplicates, and pairs (up to six, the gravest first; detail: what was done);
    - left out (by reason), and notes.
    """
    side = split_column(manifest)
    if side is None:
        raise ValueError("a manifest needs a `split` or a `fold` column, not both: split it first")
    present = set(manifest[side])
    sides = [part for part in SPLITS if part in present] if side == "split" else sorted(present)
    rows = pd.concat([manifest, manifest.assign(label=ALL)]).set_index("label")
    rows[side] = pd.Categorical(rows[side], sides)
    patients = rows.groupby(["label", "patient_id"], sort=False)
    unit = unit_of(manifest, stored)
    once = ~rows.reset_index().duplicated(["label", "patient_id", side]).to_numpy()
    parts = {f"patients by {side}": rows.loc[once, side], f"{unit} by {side}": rows[side]}
    parts[f"{unit} per patient"] = _count_bands(patients.size())
    for column in rows.columns.intersection(list(CONFOUNDERS)):
        values = _known(rows[column])
        if column == "age":
            years = pd.to_numeric(rows[column], errors="coerce").astype(float)
            values = years.where(years.between(0, 120))  # no patient has another age
        firsts = values.groupby([rows.index, rows["patient_id"]], sort=False).first()
        if firsts.notna().any():
            banded = {"age": _age_bands, "sex": _categories}.get(column, _largest)
            parts[CONFOUNDERS[column]] = banded(firsts)
    if stored is not None and len(stored):
        parts |= _as_stored(rows, stored)
    tables = [_class_rows(patients.size(), unit, classes)]
    for part, values in parts.items():
        counted = unit if part in (f"{unit} by {side}", FILE_TYPE, IMAGE_SIZE) else "patients"
        tables.append(_by_class(values, classes).assign(part=part, unit=counted))
    ids = ids_of(manifest, excluded["name"], duplicates["first"], duplicates["second"])
    tables += [_duplicate_rows(duplicates, ids), _excluded_rows(excluded, ids)]
    texts = pd.DataFrame({"name": without_any_id(notes)})
    tables.append(texts.assign(part="notes", unit="sentences", count=1))
    columns = ["part", "class", "name", "count", "unit", "share", "correlation", "detail"]
    table = pd.concat(tables, ignore_index=True).reindex(columns=columns)
    return table.fillna({"class": "", "detail": ""})


def unit_of(manifest: pd.DataFrame, stored: pd.DataFrame | None) -> str:
    """What a sample is: "images" or "volumes"."""
    # a DICOM series has any name
    in_files = manifest["path"].str.contains(r"\.nii(?:\.gz)?$").all()
    return "volumes" if in_files or (stored is not None and stored.empty) else "images"


def _as_stored(rows: pd.DataFrame, stored: pd.DataFrame) -> dict[str, pd.Series]:
    """The file type (with its bits) and the size of each image. Many sizes are grouped in bands."""
    stored = stored.set_index("sample_id")
    of_files = stored["kind"] + ", " + stored["bits"].astype(str) + " bits"
    sizes = stored["width"].astype(str) + "×" + stored["height"].astype(str)
    order = sizes[stored.sort_values(["width", "height"]).index].unique()
    if len(order) > MOST_SIZES:
        longest = stored[["width", "height"]].max(axis=1)
        lows = 2 ** np.floor(np.log2(longest)).astype(int)
        sizes = "longer side " + lows.astype(str) + "–" + (2 * lows - 1).astype(str)
        order = sizes[lows.sort_values().index].unique()
    as_parts = {FILE_TYPE: (of_files, sorted(of_files.unique())), IMAGE_SIZE: (sizes, order)}
    return {
        part: pd.Series(pd.Categorical(rows["sample_id"].map(values), names), rows.index)
        for part, (values, names) in as_parts.items()
    }


def _known(values: pd.Series) -> pd.Series:
    """Texts, with nothing where a value is unknown."""
    texts = values.astype("string").str.strip()
    return texts.mask(texts.str.lower().isin(["", "nan", "none", "na", UNKNOWN]))


def _with_unknown(values: pd.Series) -> pd.Series:
    return values.cat.add_categories(UNKNOWN).fillna(UNKNOWN) if values.isna().any() else values


def _count_bands(counts: pd.Series) -> pd.Series:
    """Numbers of images in bands, from that of the smallest to that of the largest."""
    bands = ["1", "2", "3", "4–5", "6–10", "11–20", "21+"]
    cut = pd.cut(counts, [0, 1, 2, 3, 5, 10, 20, np.inf], labels=bands)
    return cut.cat.set_categories(bands[cut.cat.codes.min() : cut.cat.codes.max() + 1])


def _age_bands(ages: pd.Series) -> pd.Series:
    """Ages in bands of ten years, of five where they lie close; from 90 on, one band for all."""
    years = ages.clip(upper=90)
    width = 10 if years.max() - years.min() > 40 else 5
    lows = np.arange(years.min() // width * width, years.max() + 1, width).astype(int)
    bands = {low: f"{low}–{low + width - 1}" if low < 90 else "90+" for low in lows}
    named = (years // width * width).map(bands)
    return _with_unknown(named.astype(pd.CategoricalDtype(list(bands.values()))))


def _categories(values: pd.Series) -> pd.Series:
    return _with_unknown(values.astype(pd.CategoricalDtype(sorted(values.dropna().unique()))))


def _largest(values: pd.Series, most: int = 10) -> pd.Series:
    """The most frequent values as categories, and the rest as one: "12 other"."""
    counts = values.xs(ALL).value_counts()
    ranked = sorted(counts.index, key=lambda value: (-counts[value], value))
    if len(ranked) > most:
        rest = ranked[most - 1 :]
        ranked = [*ranked[: most - 1], f"{len(rest)} other"]
        values = values.mask(values.isin(rest), ranked[-1])
    return _with_unknown(values.astype(pd.CategoricalDtype(ranked)))


def _by_class(values: pd.Series, classes: Sequence[str]) -> pd.DataFrame:
    """Long form of how often each category occurs in each class; the index starts with labels."""
    counts = values.groupby(level="label").value_counts().unstack(fill_value=0)
    counts = counts.reindex([*classes, ALL], columns=values.cat.categories, fill_value=0)
    known = counts.drop(columns=UNKNOWN, errors="ignore")
    shares = known.div(known.sum(axis=1), axis=0).round(4).reindex_like(counts)
    long = pd.DataFrame({"count": counts.stack(), "share": shares.stack()})
    long = long.rename_axis(["class", "name"]).reset_index()
    return long.assign(name=long["name"].astype(str))


def _class_rows(sizes: pd.Series, unit: str, classes: Sequence[str]) -> pd.DataFrame:
    """How many patients and images a class has; `sizes` are the images of each patient."""
    of_class = sizes.groupby(level="label").agg(patients="size", images="sum")
    of_class = of_class.reindex([*classes, ALL], fill_value=0).set_axis(["patients", unit], axis=1)
    counts, shares = of_class.stack(), (of_class / of_class.loc[ALL]).round(4).stack()
    long = pd.DataFrame({"count": counts, "share": shares}).rename_axis(["class", "unit"])
    return long.reset_index().assign(part="classes", name="all")


def ids_of(manifest: pd.DataFrame, *more: pd.Series) -> set[str]:
    """The names of samples and patients. No figure or table may show them."""
    ids = {*manifest["sample_id"], *manifest["patient_id"]}.union(*more)
    # A word or a small number may be meant as such: "fewer than 5 slices".
    return {name for name in ids if re.search(r"\d", name) and not re.fullmatch(r"\d{1,2}", name)}


def without_any_id(texts: Sequence[str]) -> list[str]:
    """Replace every word in texts that looks like an id by "…"."""
    return [_ANY_ID.sub("…", text) for text in texts]


def without_ids(texts: pd.Series, ids: set[str]) -> pd.Series:
    """Replace ids and paths in texts by "…", so that texts become equal that differ only in these.

    If many different texts remain, every word that looks like an id is replaced. Long texts are
    cut.
    """
    longest = min(max((name.count(" ") for name in ids), default=0) + 1, 8)  # words of an id

    def without(text: str) -> str:
        words, kept = text.split(), []
        while words:
            for n in range(min(longest, len(words)), 0, -1):
                whole = " ".join(words[:n])
                bare = next((b for m in _MARKS if (b := whole.strip(m)) in ids), "")
                bare = bare or (n == 1 and "/" in whole and whole.strip(_MARKS[-1]))
                if bare:
                    kept.append(whole.replace(bare, "…"))
                    break
            else:
                n = 1
                kept.append(words[0])
            words = words[n:]
        return " ".join(kept)

    texts = texts.map(without)
    if texts.nunique() > MOST_REASONS:
        texts = texts.map(lambda text: _ANY_ID.sub("…", text))
    return texts.str.slice(0, MOST_LETTERS)


def _duplicate_rows(duplicates: pd.DataFrame, ids: set[str]) -> pd.DataFrame:
    """Pairs by kind, patient and side; then a few of them, the gravest first."""
    total = pd.DataFrame({"name": ["all"], "count": len(duplicates), "unit": "pairs"})
    if duplicates.empty:
        return total.assign(part="duplicates")
    pairs = duplicates.astype(str)
    pairs["correlation"] = pd.to_numeric(pairs["correlation"], errors="coerce").round(4)
    first, second, same = pairs["first_side"], pairs["second_side"], pairs["same_patient"] == "True"
    # a sample that was dropped before the split has no side
    where = np.select([(first == "") | (second == ""), first == second], [2, 1], 0)
    wheres = np.array([", on two sides", ", on one side", ", not both split"])
    pairs["group"] = pairs["kind"] + np.where(same, ", of one patient", ", of two patients")
    pairs["group"] += wheres[where]
    pairs["name"] = pairs["first"] + pairs["second"]  # only so that the order is always the same
    order = {"where": True, "same": True, "kind": True, "correlation": False, "name": True}
    pairs = pairs.assign(where=where, same=same).sort_values([*order], ascending=[*order.values()])
    action = without_ids(pairs["action"], ids)
    groups = pairs.assign(name=pairs["group"], detail=action)
    groups = groups.groupby(["name", "detail"], sort=False).size().rename("count").reset_index()
    groups = _first(groups)
    sides = pairs["first_side"].replace("", "not split") + " and "
    sides += pairs["second_side"].replace("", "not split")
    numbers = pd.Series(range(1, len(pairs) + 1), pairs.index).astype(str)
    detail = pairs["kind"] + ", " + action
    named = pairs.assign(count=1, detail=detail, name="pair " + numbers + " (" + sides + ")")
    named = _first(named[["name", "count", "correlation", "detail"]]).assign(part="pairs")
    counted = pd.concat([total, groups]).assign(part="duplicates")
    return pd.concat([counted, named]).assign(unit="pairs")


def _first(table: pd.DataFrame, most: int = MOST_REASONS) -> pd.DataFrame:
    """The first rows of a table of names and counts; what is left is one row, with its sum."""
    rest = pd.DataFrame({"name": [REST], "count": table["count"].iloc[most:].sum()})
    return pd.concat([table.head(most), rest]) if len(table) > most else table


def _excluded_rows(excluded: pd.DataFrame, ids: set[str]) -> pd.DataFrame:
    """What was left out, by reason."""
    total = pd.DataFrame({"name": ["all"], "count": len(excluded)})
    table = pd.concat([total, _first(by_reason(excluded["reason"], ids))])
    return table.assign(part="left out", unit="names", detail="")


def by_reason(reasons: pd.Series, ids: set[str]) -> pd.DataFrame:
    """How often each reason (name) occurs (count), without ids; the most frequent first."""
    counts = without_ids(reasons, ids).value_counts().rename_axis("name").reset_index(name="count")
    return counts.sort_values(["count", "name"], ascending=[False, True])
