"""New images and volumes, without labels: those below any folder, or those that a card finds."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from medlib.data import manifest
from medlib.data.cards import FOLDER, Card, Volumes
from medlib.data.layouts import base, dicom, mri, reader
from medlib.errors import ManifestError, listed


def in_folder(folder: Path | str, settings: Volumes | None = None) -> base.Found:
    """Every image below a folder or, with the ``settings`` of volumes, every volume.

    DICOM files are recognised by their content, and a series is one volume. Other files are
    recognised by their ending. A sample's id is its path (for a series, that of its first file),
    and no label is known. If the settings need a mask, it is the only file in the volume's folder
    that is named as one (``…_seg``). All other files are left out, each with the reason. Raises
    ManifestError for a folder that is not there or holds no sample, and one that lists all volumes
    without a mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder} is no folder: name one that holds images or volumes.")
    items, used = list(_items(folder, settings)), set()
    for row in (item for item in items if isinstance(item, dict)):
        used.update(row.pop("files"))
        row |= {c: base.shown(row[c], folder) if row[c] else "" for c in base.FILES if c in row}
    left = [item for item in items if isinstance(item, base.Excluded | base.Problem)]
    left = [item for item in left if item.reason != dicom.NO_DICOM]  # some of these are images
    named = {item.name for item in left}
    what = "volume" if settings else "image"
    for path in base.files(folder):
        if path not in used and (shown := base.shown(path, folder)) not in named:
            left.append(base.Excluded(shown, f"no {what}, by its name and content"))
    rows = [item for item in items if isinstance(item, dict)]
    columns = ["sample_id", "patient_id", "path", "label", *(["mask"] if settings else [])]
    found = base.Found(
        pd.DataFrame(rows, columns=columns, dtype=str).fillna("").sort_values("path"),
        reader.frame(item for item in left if isinstance(item, base.Excluded)),
        reader.frame(item for item in left if isinstance(item, base.Problem)),
    )
    return _checked(found, folder, settings)


def of_card(card: Card, data: Path | str) -> base.Found:
    """The samples of a task's card below ``data``, by its layout or its CSV; labels are not used.

    Files that are not needed (masks) are not named. Raises ManifestError as :func:`reader.read`
    does, and for volumes that lack a mask which is needed.
    """
    if card.layout:
        found = reader.read(card, data)
    else:
        rows = manifest.read_rows(FOLDER / f"{card.task}.csv")
        found = base.Found(
            rows, manifest.read_excluded(FOLDER / f"{card.task}.csv"), reader.frame(())
        )
    needed = {"mask": card.volumes and card.volumes.needs_mask, "reference": card.volumes}
    unused = [name for name in manifest.BESIDE if name in found.rows and not needed[name]]
    return _checked(found._replace(rows=found.rows.drop(columns=unused)), data, card.volumes)


def _items(folder: Path, settings: Volumes | None) -> base.Items:
    """The rows of a folder, each with the ``files`` that it uses, and what is left out."""
    series = yield from dicom.images_and_series(folder, settings is not None)
    for sample in series:
        yield _row(folder, sample.path, sample.files)
    read = {file for sample in series for file in sample.files}
    paths = base.files(folder, base.VOLUMES if settings else base.IMAGES)
    paths = [path for path in paths if path not in read]
    masks = {path for path in paths if settings and "mask" in mri.modalities([path])}
    for path in paths:
        if path in masks:
            if not settings.needs_mask:
                yield base.Excluded(base.shown(path, folder), "a mask, by its name")
            continue
        beside = [mask for mask in masks if mask.parent == path.parent]
        if settings is not None and settings.needs_mask:
            mask = beside[0] if len(beside) == 1 else ""
            yield _row(folder, path, (path, *beside)) | {"mask": mask}
        else:
            yield _row(folder, path, (path,))


def _row(folder: Path, path: Path, files: tuple[Path, ...]) -> dict:
    return base.row(base.shown(path, folder), path, "", files=files)


def _checked(found: base.Found, folder: Path | str, settings: Volumes | None) -> base.Found:
    """What was found; ManifestError if there is no sample, or volumes without a mask."""
    if found.rows.empty:
        reasons = [f"{n}: {why}" for n, why in [*found.problems.values, *found.excluded.values]]
        what = "volume" if settings else "image"
        there = f" What is there:\n{listed(reasons)}" if reasons else " It is empty."
        raise ManifestError(f"There is no {what} in {folder}.{there}")
    if settings and settings.needs_mask:
        masks = found.rows.get("mask", pd.Series("", found.rows.index))
        if lacking := found.rows["sample_id"][masks == ""].tolist():
            raise ManifestError(
                f"The model looks at slices that a mask of the tumour chooses (choice "
                f"{settings.choice}, crop_margin {settings.crop_margin}), but {len(lacking)} of "
                f"{len(found.rows)} volumes have no mask:\n{listed(lacking)}\nPut one beside "
                "each, in a folder of its own and named …_seg.nii.gz, or name them in a card."
            )
    return found


def left_out(found: base.Found) -> Iterator[str]:
    """A line for each file that is no sample, with the reason."""
    for name, reason in [*found.excluded.values, *found.problems.values]:
        yield f"{name}: {reason}"
