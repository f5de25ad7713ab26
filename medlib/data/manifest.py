"""Manifests: which samples a task has, whose they are, and how they are split.

A manifest (``data_manifests/<task>.csv``) has one row per sample, an image file or a volume:
``sample_id, patient_id, path, label``, then either ``split`` (train, val, test; where there is an
official test set) or ``fold`` (0 … k-1, for cross-validation), and ``sha256`` where the file is at
hand. ``path`` is relative to the data folder. Where each site is a fold, ``validates`` is the fold
in whose rotation a patient validates (in the others they train). Repeated cross-validation has the
folds of each further repetition in ``fold_1``, ``fold_2``, ….
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medlib.core import splits
from medlib.core.splits import SPLITS
from medlib.data.cards import OFFICIAL, SITES, Card, text
from medlib.data.known import without_missing
from medlib.errors import ManifestError, listed
from medlib.files import file_sha256, plain_text, save_csv, save_text

REQUIRED = ("sample_id", "patient_id", "path", "label")
BESIDE = ("mask", "reference")  # columns that name further files of a sample
VALIDATES = "validates"
FEWEST = 5  # patients of each class that a site needs to be a fold
Pairs = Iterable[tuple[str, str]]  # pairs of names
# How the reason of a copy that was left out begins.
COPY_REASONS = ("the same image as ", "a second copy of ")
POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of Git LFS's pointers
Parts = Callable[[Path], list[Path]]  # the files that one file stands for
LARGE = 50_000  # groups: scikit-learn places them one by one, a million in some minutes
_HASHING = Lock()  # threads ask for the hash of the same .npz at the same time


def read(
    path: Path | str, card: Card, data: Path | str | None = None, parts: Parts | None = None
) -> pd.DataFrame:
    """Read and validate a manifest; with ``data``, its files are checked as well.

    ``parts`` is explained in :func:`read_files`; DICOM series cannot be checked without it.
    Raises ManifestError listing every problem at once.
    """
    path = Path(path)
    if not path.is_file():
        way_out = f"run notebook 01_prepare_data with task={card.task!r} first."
        raise ManifestError(f"{path} does not exist: {way_out}")
    rows = read_rows(path)
    validate(rows, card, data, name=str(path), parts=parts)
    return rows


def read_rows(path: Path | str) -> pd.DataFrame:
    """A manifest's rows as they are in the file, not validated."""
    # Everything is text: an id of "007" must not become 7, nor a label of "NA" missing.
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).map(plain_text)
    for column in [*fold_columns(rows), *([VALIDATES] if VALIDATES in rows else [])]:
        if rows[column].str.fullmatch(r"\d+").all():
            rows[column] = rows[column].astype(int)
    return rows


def read_excluded(path: Path | str) -> pd.DataFrame:
    """What was left out of a manifest and why (name, reason); empty where nothing was."""
    file = Path(path).with_suffix(".excluded.csv")
    nothing = pd.DataFrame(columns=["name", "reason"], dtype=str)
    return read_rows(file) if file.is_file() else nothing


def write(
    rows: pd.DataFrame,
    excluded: pd.DataFrame,
    path: Path | str,
    card: Card | None = None,
    duplicates: pd.DataFrame | None = None,
) -> None:
    """Write a manifest, after validating it where its card is given.

    Beside it lie the card as it was used (``.yaml``) and, where there are any, what was left out
    and why (``.excluded.csv``) and the images that are there twice (``.duplicates.csv``).
    """
    path = Path(path)
    if card is not None:
        validate(rows, card, name=str(path))
        save_text(path.with_suffix(".yaml"), text(card))
    for ending, frame in {".excluded.csv": excluded, ".duplicates.csv": duplicates}.items():
        file = path.with_suffix(ending)
        if frame is not None and len(frame):
            save_csv(file, frame)
        else:
            file.unlink(missing_ok=True)
    save_csv(path, rows)


def validate(
    rows: pd.DataFrame,
    card: Card,
    data: Path | str | None = None,
    name: str = "manifest",
    parts: Parts | None = None,
) -> None:
    """Check ``rows``; raises ManifestError that lists everything wrong with them.

    Checked are columns, ids, labels and paths; that no patient and (by sha256) no image is on two
    sides of the split; that every class is on every side; and, with ``data``, that the files exist
    and are unchanged (``parts``: see :func:`read`).
    """
    missing = [column for column in REQUIRED if column not in rows]
    if missing:
        problems = [f"columns missing: {', '.join(missing)}; found: {', '.join(rows.columns)}"]
    elif split_column(rows) is None:
        problems = ["there is neither a column split nor a column fold (or there are both)"]
    elif data is not None and not Path(data).is_dir():
        problems = [f"the data folder {data} does not exist"]
    else:
        problems = _row_problems(rows, card, data, parts)
        for side in side_columns(rows):
            problems = [*problems, *_stands_problems(rows, side)]
            problems += _side_problems(rows, side, classes(rows, card))
        if card.split == SITES:
            problems += _site_problems(rows, card)
        problems = [*dict.fromkeys(problems)]  # each once
    if problems:
        way_out = "Correct the rows, or remove them, and run notebook 01_prepare_data again."
        raise ManifestError(f"{name}: {len(problems)} problem(s):\n{listed(problems)}\n{way_out}")


def _row_problems(
    rows: pd.DataFrame, card: Card, data: Path | str | None, parts: Parts | None
) -> Iterator[str]:
    """What is wrong with each row by itself, and with its files."""
    rows = without_missing(rows.fillna("").reset_index(drop=True))
    known = ", ".join(card.all_classes)
    again = rows["sample_id"].duplicated(keep=False)
    strange = ~rows["label"].isin(["", *card.all_classes])
    wrong = again | strange | (rows[list(REQUIRED)] == "").any(axis=1)
    for number, row in zip(rows.index[wrong], rows[wrong].to_dict("records"), strict=True):
        sample, label = row["sample_id"], row["label"]
        where = f"row {number + 2}"  # as a spreadsheet counts
        yield from (f"{name} is empty in {where}" for name in REQUIRED if row[name] == "")
        if strange[number]:
            yield f"label {label!r} of {sample} is not a class of the card ({known})"
        if again[number]:
            yield f"sample_id {sample!r} is in several rows"
    for row in rows.to_dict("records") if data else ():
        if problem := read_files(row, data, parts)[-1]:
            yield problem


def _stands_problems(rows: pd.DataFrame, side: str) -> Iterator[str]:
    """Problems of the sides in a column: split, fold, or further folds."""
    rows = rows.fillna("").reset_index(drop=True)
    stands = rows[side].astype(str)
    allowed = stands.isin(SPLITS) if side == "split" else stands.str.fullmatch(r"\d+")
    must = f"one of {SPLITS}" if side == "split" else "a whole number from 0 on"
    for sample, value in zip(rows["sample_id"][~allowed], rows[side][~allowed], strict=True):
        yield f"{side} {value!r} of {sample} is not {must}"
    for patient, several in _on_several(stands, rows["patient_id"]).items():
        yield f"patient {patient!r} is in several {side}s: {several}"
    if "sha256" in rows:
        hashed = rows[rows["sha256"] != ""]
        ids = hashed.groupby("sha256")["sample_id"]
        for image, several in _on_several(stands[hashed.index], hashed["sha256"]).items():
            samples = ", ".join(sorted(set(ids.get_group(image))))
            yield f"{samples} are one image but in several {side}s: {several}"


def _on_several(stands: pd.Series, key: pd.Series) -> dict[str, str]:
    """The keys whose rows are on several sides, and these sides in words."""
    pairs = pd.DataFrame({"key": key, "side": stands}).drop_duplicates()
    pairs = pairs[pairs["key"].duplicated(keep=False)]
    return {name: ", ".join(sorted(of)) for name, of in pairs.groupby("key")["side"]}


def _side_problems(rows: pd.DataFrame, side: str, present: list[str]) -> list[str]:
    """What is wrong with a split as a whole; ``present``: the classes that the data have."""
    sides, problems = list(SPLITS), []
    if side != "split":
        if not pd.api.types.is_integer_dtype(rows[side]):
            return []  # folds that are no numbers are reported row by row
        sides = sorted(rows[side].unique().tolist())
        if sides != list(range(len(sides))):
            problems.append(
                f"{side}s count from 0 on without a gap ({side} 0, {side} 1, …), not {sides}"
            )
        if len(sides) < 3:
            problems.append(f"{len(sides)} {side}(s): three or more are needed (train, val, test)")
    for one in sides:
        labels = set(rows["label"][rows[side] == one])
        lacking = [label for label in present if label not in labels]
        problems += [f"class {label!r} has no sample in {side} {one}" for label in lacking]
    return problems


def whole(number: str) -> str:
    """Write a whole number without decimals: "1.0", as pandas and Excel write it, becomes "1"."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", number)


def classes(rows: pd.DataFrame, card: Card) -> list[str]:
    """The task's classes in the card's order; optional ones only where the data have them."""
    return [*card.classes, *(c for c in card.optional_classes if (rows["label"] == c).any())]


def sound_rows(rows: pd.DataFrame, card: Card) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose ids and labels can be used; and the others, with reasons (name, reason)."""
    rows = without_missing(rows.reset_index(drop=True))
    strange = ~rows["label"].isin(card.all_classes)
    rows = rows.assign(label=rows["label"].mask(strange, rows["label"].map(whole)))
    known = ", ".join(card.all_classes)
    no_class = "label " + rows["label"].map(repr) + f" is not a class of the card ({known})"
    wrong = [(rows[column] == "", f"its {column} is empty") for column in REQUIRED]
    wrong += [(rows["sample_id"].duplicated(keep=False), "several rows have this id")]
    wrong += [(~rows["label"].isin(card.all_classes), no_class)]
    reasons = pd.Series("", rows.index, dtype=object).case_when(wrong)  # the first that holds
    names = rows["sample_id"].where(rows["sample_id"] != "", "row " + (rows.index + 2).astype(str))
    bad = pd.DataFrame({"name": names, "reason": reasons})[reasons != ""]
    return rows[reasons == ""].reset_index(drop=True), bad.reset_index(drop=True)


def sample_file(path: str) -> str:
    """The file of a sample's path; what follows a ``.npz#`` names an image within that file."""
    file, mark, _ = path.partition(".npz#")
    return file + ".npz" if mark else path


def sample_sha256(data: Path | str, path: str) -> str:
    """The sha256 of a sample within an ``.npz``: of that file's hash, and of the sample's name."""
    file = sample_file(path)
    stat = (Path(data) / file).stat()
    with _HASHING:
        digest = _file_sha256(Path(data) / file, stat.st_mtime_ns, stat.st_size)
    return hashlib.sha256(f"{digest}{path[len(file) :]}".encode()).hexdigest()


@lru_cache(maxsize=16)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    return file_sha256(path)


def read_files(
    row: dict, data: Path | str, parts: Parts | None = None
) -> tuple[dict[Path, bytes], dict[str, str], str]:
    """Read each file that a row names once: its ``path``, and the files in ``BESIDE``.

    If one file stands for several, ``parts`` gives them all (for volumes,
    :func:`medlib.data.dicom.series_files`), and the hash covers them.

    Returns the contents by file (without ``.npz`` files, which hold many samples), the hashes by
    column (``sha256``, ``mask_sha256``, …; "" if no file is named), and a problem in words: a file
    cannot be read, or differs from the hash in the row. The problem is "" if there is none.
    """
    contents, hashes = {}, {}
    for column in ("path", *(c for c in BESIDE if c in row)):
        path, digest = row[column], ""
        hashed = "sha256" if column == "path" else f"{column}_sha256"
        if path:
            what = f"{path} ({row['sample_id']})" if column == "path" else f"its {column} {path}"
            if problem := file_problem(data, path):
                return contents, hashes, f"{what} {problem}"
            file = Path(data) / path
            if sample_file(path) != path:
                digest = sample_sha256(data, path)
            else:
                digests = []
                for part in parts(file) if parts else [file]:
                    if problem := file_problem(data, part.relative_to(data).as_posix()):
                        return contents, hashes, f"{what} {problem}"
                    contents[part] = contents[part] if part in contents else part.read_bytes()
                    if problem := pointer_problem(contents[part]):
                        return contents, hashes, f"{what} {problem}"
                    digests.append(hashlib.sha256(contents[part]).hexdigest())
                together = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
                digest = together if len(digests) > 1 else digests[0]
            if (known := row.get(hashed, "").lower()) and known != digest:
                changed = f"sha256 {digest[:12]}…, manifest says {known[:12]}…"
                return contents, hashes, f"{what} has changed: {changed}"
        hashes[hashed] = digest
    return contents, hashes, ""


def pointer_problem(content: bytes) -> str:
    """A problem in words if a file is only a pointer of Git LFS; otherwise ""."""
    way_out = "run `git lfs pull` in the repository that it is from"
    return f"is a Git LFS pointer, not the file: {way_out}" if content.startswith(POINTER) else ""


def file_problem(data: Path | str, path: str) -> str:
    """Why the file of a manifest's path cannot be read below ``data``, in words; "" if it can."""
    data, relative = Path(data), Path(sample_file(path))
    if relative.is_absolute() or ".." in relative.parts:
        return f"leads out of the data folder {data}: paths are relative to it, and go down"
    file = data / relative
    if file.is_symlink() and not file.exists():
        return f"is a link to {file.readlink()}, which does not exist"
    if not file.is_file():
        return f"is not in {data}"
    if not (target := file.resolve()).is_relative_to(data.resolve()):
        way_out = "copy it in, or name a data folder that holds both"
        return f"is a link that leads out of the data folder, to {target}: {way_out}"
    return "" if file.stat().st_size else "is empty (0 bytes): get it again"


def drop_duplicates(rows: pd.DataFrame, twins: Iterable[Iterable[str]]) -> tuple[pd.DataFrame, ...]:
    """Drop rows until no image is on two sides of the split.

    Each group in ``twins`` has the sample ids of one image. One side is kept: test, else
    validation, else training; if the sides are folds, that of the first sample. The group's samples
    on other sides are dropped. Returns (rows, dropped); dropped has name and reason. Rows without a
    split lose nothing: :func:`assign_splits` keeps such patients together.
    """
    column, reasons = split_column(rows), {}
    sides = dict(zip(rows["sample_id"], rows[column], strict=True)) if column else {}
    for group in twins:
        there = sorted(sample for sample in group if sample in sides and sample not in reasons)
        if column == "split":
            there.sort(key=lambda sample: -SPLITS.index(sides[sample]))
        for sample in there[1:]:
            if sides[sample] != sides[there[0]]:
                where = f"the {sides[there[0]]} set" if column == "split" else "another fold"
                reasons[sample] = f"{COPY_REASONS[0]}{there[0]} of {where}"
    dropped = pd.DataFrame(sorted(reasons.items()), columns=["name", "reason"], dtype=str)
    return rows[~rows["sample_id"].isin(reasons)].reset_index(drop=True), dropped


def assign_splits(rows: pd.DataFrame, card: Card, seed: int = 0, pairs: Pairs = ()) -> pd.DataFrame:
    """Assign every row to a part of the split. Patients stay together; labels are stratified.

    Rows that come with a ``split`` keep it; if none is ``val``, a fifth of the training patients
    become ``val``. Other rows get a ``fold``. Patients who share an identical file (sha256), or one
    of the ``pairs`` of sample ids, stay together. The result depends only on patients, labels,
    shared images and ``seed``, so tasks on the same patients are split alike. With the card's
    ``leave-one-site-out`` each site is a fold, and ``seed`` draws who validates in which rotation.
    """
    rows = rows.sort_values(["patient_id", "sample_id"]).reset_index(drop=True)
    if card.split == SITES:
        return _by_site(rows, card, seed, pairs)
    if "split" in rows:
        train = rows["split"] == "train"
        if (rows["split"] == "val").any():
            return rows
        part = _folds(rows[train], 5, seed, card.task, pairs)
        return rows.assign(split=rows["split"].mask(train & (part.reindex(rows.index) == 0), "val"))
    if card.split == OFFICIAL:
        raise ManifestError(f"{card.task}: the card says 'split: official', the data have none")
    return rows.assign(fold=_folds(rows, card.folds, seed, card.task, pairs))


def repeat_folds(
    rows: pd.DataFrame, card: Card, repeats: int, seed: int = 0, pairs: Pairs = ()
) -> pd.DataFrame:
    """Rows with the folds of ``repeats`` repetitions: each further one is a new draw.

    An official split and sites are not repeated: the rows come back as they are. ``seed`` and
    ``pairs`` are those of :func:`assign_splits`. Raises ManifestError for rows that come with a
    split which the card does not announce.
    """
    if split_column(rows) != "fold" or card.split == SITES:
        if repeats > 1 and card.split not in (OFFICIAL, SITES):
            there = f"{card.task}: its samples come with a split, which cannot be drawn again"
            raise ManifestError(f"{there}: set repeats to 1, or say 'split: official' in the card.")
        return rows
    n_folds = rows["fold"].nunique()
    drawn = {
        f"fold_{r}": _folds(rows, n_folds, seed + r, card.task, pairs) for r in range(1, repeats)
    }
    return rows.drop(columns=fold_columns(rows)[1:]).assign(**drawn)


def site_names(rows: pd.DataFrame, card: Card) -> pd.Series:
    """The site that each row counts to: its own, or the name under which the card joins it."""
    joined = {site: name for name, several in card.joined_sites.items() for site in several}
    sites = rows["site"] if "site" in rows else pd.Series("", rows.index)
    sites = without_missing(pd.DataFrame({"site": sites}).fillna(""))["site"]
    return sites.map(lambda site: joined.get(site, site))


def _site_problems(rows: pd.DataFrame, card: Card) -> list[str]:
    """Problems of rows split by site: folds that are no sites, patients who validate wrongly."""
    sites = site_names(rows, card)
    problems = [f"{sample} has no site" for sample in rows["sample_id"][sites == ""]]
    for name, other in (("site", "fold"), ("fold", "site")):
        pairs = pd.DataFrame({"site": sites, "fold": rows["fold"].astype(str)})
        several = pairs.groupby(name)[other].agg(lambda values: sorted(set(values)))
        problems += [
            f"{name} {one} is in {other}s {', '.join(of)}"
            for one, of in several.items()
            if len(of) > 1
        ]
    if VALIDATES not in rows:
        return [*problems, f"there is no column {VALIDATES}"]
    own = rows[VALIDATES].astype(str)
    wrong = ~own.isin(rows["fold"].astype(str)) | (own == rows["fold"].astype(str))
    problems += [
        f"{VALIDATES} {value!r} of {sample} is not another fold"
        for sample, value in zip(rows["sample_id"][wrong], rows[VALIDATES][wrong], strict=True)
    ]
    several = rows.groupby("patient_id")[VALIDATES].nunique()
    return problems + [
        f"patient {one!r} validates in several" for one in several[several > 1].index
    ]


def _by_site(rows: pd.DataFrame, card: Card, seed: int, pairs: Pairs) -> pd.DataFrame:
    """Rows with a fold for each site, and the fold in whose rotation each patient validates.

    A rotation's validation patients come from all other sites. Each patient validates once, of
    each class about as many in every rotation. Raises ManifestError that lists all problems.
    """
    sites, problems = site_names(rows, card), []
    if "split" in rows:
        problems.append("the samples come with a split of their own, which is not by site")
    problems += [f"{sample} has no site" for sample in rows["sample_id"][sites == ""]]
    known = sites != ""
    for patient, of_one in _on_several(sites[known], rows["patient_id"][known]).items():
        problems.append(f"patient {patient!r} is at several sites: {of_one}")
    there = set(rows["site"]) if "site" in rows else set()
    asked = [site for several in card.joined_sites.values() for site in several]
    problems += [
        f"joined_sites names {site!r}, which no sample has" for site in asked if site not in there
    ]
    patients = rows.groupby([sites[known], rows["label"]])["patient_id"].nunique()
    patients = patients.unstack(fill_value=0).reindex(columns=classes(rows, card), fill_value=0)
    for site, counts in patients[(patients < FEWEST).any(axis=1)].iterrows():
        has = ", ".join(f"{label} {n}" for label, n in counts.items())
        problems.append(f"site {site} has fewer than {FEWEST} patients of a class: {has}")
    if len(patients) < 3:
        problems.append(f"{len(patients)} site(s): three or more are needed (train, val, test)")
    if problems:
        way_out = "Join small sites in the card (`joined_sites: {others: [A, B]}`), name each "
        way_out += "sample's site in the data set's table, or choose `split: cross-validation`."
        what = f"{card.task}: leave-one-site-out cannot be used"
        raise ManifestError(f"{what}:\n{listed(problems)}\n{way_out}")
    fold = pd.Series(pd.factorize(sites, sort=True)[0], rows.index)
    return rows.assign(fold=fold, validates=_validating(rows, fold, seed, pairs))


def _validating(rows: pd.DataFrame, fold: pd.Series, seed: int, pairs: Pairs) -> pd.Series:
    """For each row the fold, not its own, in whose rotation its patient validates.

    Patients are shuffled; each goes where the fewest of its class validate so far. Patients who
    share an image stay together.
    """
    first = pd.DataFrame({"group": _groups(rows, pairs), "label": rows["label"], "fold": fold})
    first = first.drop_duplicates("group")
    n_folds = int(fold.max()) + 1
    counts = {label: np.zeros(n_folds) for label in first["label"]}
    chosen = {}
    for at in np.random.default_rng(seed).permutation(len(first)):
        group, label, own = first.iloc[at]
        so_far = counts[label].copy()
        so_far[own] = np.inf
        chosen[group] = int(so_far.argmin())
        counts[label][chosen[group]] += 1
    return pd.Series(_groups(rows, pairs), rows.index).map(chosen)


def _folds(rows: pd.DataFrame, n_folds: int, seed: int, task: str, pairs: Pairs) -> pd.Series:
    patients = rows.groupby("label")["patient_id"].nunique()
    few = ", ".join(f"{label} has {n}" for label, n in patients[patients < n_folds].items())
    if few:
        need = f"{n_folds} folds need at least {n_folds} patients of each class"
        raise ManifestError(f"{task}: {need}; too few: {few}")
    groups = _groups(rows, pairs)
    if groups.max() >= LARGE:
        return _dealt(rows, groups, n_folds, seed)
    # Imported here: it takes a second or more, and only notebook 01 splits patients.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = pd.Series(-1, index=rows.index)
    parts = splitter.split(rows["sample_id"], rows["label"], groups)
    for fold, (_, inside) in enumerate(parts):
        folds.iloc[inside] = fold
    return folds


def _dealt(rows: pd.DataFrame, groups: np.ndarray, n_folds: int, seed: int) -> pd.Series:
    """Folds of very many groups: shuffled, sorted by their labels, and dealt to folds in turn."""
    counts = pd.crosstab(groups, rows["label"])  # a row a group, in the order of their numbers
    kinds = counts.groupby(list(counts.columns)).ngroup().to_numpy()
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(kinds[order], kind="stable")]
    fold = np.empty(len(counts), int)
    fold[order] = np.arange(len(counts)) % n_folds
    return pd.Series(fold[groups], rows.index)


def _groups(rows: pd.DataFrame, pairs: Pairs) -> np.ndarray:
    """Patients as group numbers; patients who share an image are one group."""
    patient = dict(zip(rows["sample_id"], rows["patient_id"], strict=True))
    same = [(patient[a], patient[b]) for a, b in pairs if a in patient and b in patient]
    if "sha256" in rows:
        hashed = rows[rows["sha256"].fillna("") != ""]
        first = hashed.groupby("sha256")["patient_id"].transform("first")
        other = first != hashed["patient_id"]
        same += list(zip(first[other], hashed["patient_id"][other], strict=True))
    leader = {member: group[0] for group in linked(same) for member in group}
    return pd.factorize(rows["patient_id"].map(lambda one: leader.get(one, one)))[0]


def linked(pairs: Pairs) -> list[list[str]]:
    """The names that pairs link, directly or through others: sorted groups of sorted names."""
    pairs = list(pairs)
    numbers, names = pd.factorize(np.array(pairs, dtype=object).ravel(), sort=True)
    one, other = numbers.reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    return [list(names[component == number]) for number in range(component.max(initial=-1) + 1)]


def split_column(rows: pd.DataFrame) -> str | None:
    """``"split"`` or ``"fold"``, whichever the manifest has; None if it has neither or both."""
    there = [column for column in ("split", "fold") if column in rows]
    return there[0] if len(there) == 1 else None


def fold_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of folds: ``fold``, then one for each further repetition."""
    return sorted((c for c in rows if re.fullmatch(r"fold(_\d+)?", c)), key=lambda c: (len(c), c))


def side_columns(rows: pd.DataFrame) -> list[str]:
    """The columns with the side of each row: ``split``, or one column of folds per repetition."""
    return fold_columns(rows) or ["split"]


def kept_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of a row's sides: :func:`side_columns`, and VALIDATES if it is there."""
    return side_columns(rows) + [VALIDATES] * (VALIDATES in rows)


def repetition(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows, or a pack's index, with the folds of one seed alone, as ``fold``.

    With R repetitions of cross-validation, seed s uses repetition s modulo R.
    """
    columns = fold_columns(rows)
    if len(columns) < 2:
        return rows
    return rows.drop(columns=columns).assign(fold=rows[columns[seed % len(columns)]])


def rotations(rows: pd.DataFrame, label_fraction: float = 1.0, seed: int = 0) -> list:
    """:func:`medlib.core.splits.rotations` of a manifest's rows, or of a pack's index."""
    side, patients, labels = (rows[name] for name in (split_column(rows), "patient_id", "label"))
    if VALIDATES in rows:
        side = rows[[side.name, VALIDATES]]
    return splits.rotations(side, patients, labels, label_fraction, seed)


def patients_by_side(rows: pd.DataFrame, parts: list[splits.Rotation]) -> pd.DataFrame:
    """How many patients train, validate and are tested in each rotation: one row per fold."""
    patients, folds = rows["patient_id"], pd.Index([part.fold for part in parts], name="fold")
    counts = [{side: patients[getattr(p, side)].nunique() for side in SPLITS} for p in parts]
    return pd.DataFrame(counts, index=folds)


def read_samples(path: Path | str) -> pd.DataFrame:
    """A table of samples. Ids and labels stay text: "007" is no number, "NA" no missing value."""
    texts = dict.fromkeys(("sample_id", "patient_id", "label", "y_true"), str)
    samples = pd.read_csv(path, dtype=texts, keep_default_na=False)
    return samples.assign(**{n: samples[n].map(plain_text) for n in texts if n in samples})
