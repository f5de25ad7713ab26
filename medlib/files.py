"""Files written whole or not at all, and content hashes."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes ``path``, else it is removed.

    Works for a file and for a folder (an existing folder is replaced). Contents reach the disk
    before the name does: after a loss of power there is the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(os.environ.get(TEMPORARY) or path.parent)
    if not place.is_dir() or place.stat().st_dev != path.parent.stat().st_dev:
        place = path.parent  # a rename is whole only within one file system
    handle = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=place))
    temporary, aside = handle / path.name, handle / f"{path.name}.replaced"
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _sync(written)
        if temporary.is_dir() and path.exists():
            # A folder cannot be renamed over a full one; set the old one aside first.
            os.rename(path, aside)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        shutil.rmtree(handle, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot do this with folders
            os.fsync(handle)
    finally:
        os.close(handle)


def save_text(path: Path | str, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(path: Path | str, value: object) -> None:
    save_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


TEMPORARY = "MEDLIB_TEMPORARY"  # a folder for unfinished files; if unset, that of the file
FORMULA = re.compile(r"'*([=@\t\r]|[+-](?![\d.]))")  # what a spreadsheet would run


def save_csv(path: Path | str, frame) -> None:
    """Write a DataFrame: with floats at full precision, and an apostrophe before formulas."""
    texts = [name for name, kind in frame.dtypes.items() if kind.kind == "O"] if len(frame) else []
    quoted = {name: frame[name].map(_quoted, na_action="ignore") for name in texts}
    with replacing(path) as temporary:
        frame.assign(**quoted).to_csv(temporary, index=False, lineterminator="\n")


def _quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def plain_text(cell: object) -> object:
    """A cell of a CSV as it was before :func:`save_csv` wrote it."""
    quoted = isinstance(cell, str) and cell[:1] == "'" and FORMULA.match(cell)
    return cell[1:] if quoted else cell


def read_json(path: Path | str) -> dict:
    """The object in a JSON file. Raises ValueError that names a file which does not hold one."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # not UTF-8, not JSON, or no object
        way_out = "remove it, and run again what writes it"
        raise ValueError(f"{path} is empty or damaged ({error}): {way_out}") from error


def read_record(path: Path | str) -> dict:
    """The object in a JSON file; {} if the file is missing or, with a warning, unreadable."""
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        warnings.warn(f"{error}. It counts as missing.", stacklevel=2)
        return {}


def file_sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path | str, digests: dict[str, str]) -> list[str]:
    """The files of a folder whose sha256 is not the recorded one, or that are missing; warns."""
    paths = {Path(folder) / name: digest for name, digest in digests.items()}
    found = [str(p) for p, digest in paths.items() if not p.is_file() or file_sha256(p) != digest]
    if found:
        warnings.warn(f"Damaged or missing: {', '.join(found)}.", stacklevel=3)
    return found


def content_hash(*parts: object) -> str:
    """A 16-digit sha256 of frames, arrays of numbers and JSON values, the same everywhere."""
    numpy = sys.modules.get("numpy")  # without it, no part is an array
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "to_csv"):  # a DataFrame; pandas itself is not needed here
            part = part.to_csv(index=False, lineterminator="\n")
        elif numpy and isinstance(part, numpy.ndarray):
            part = [part.dtype.str, list(part.shape), hashlib.sha256(part.tobytes()).hexdigest()]
        digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
