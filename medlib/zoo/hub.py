"""Fetch pretrained weights from the hub, and put the file that a row reads into a folder.

timm's own files are used as they are. A row with a ``source`` names a file of other code: its
tensors are renamed (see :mod:`medlib.zoo.checkpoints`). Downloads are those of the hub's own
client: its proxies, its token, its cache. An interrupted download goes on where it stopped.
"""

import errno
import os
import shutil
import sys
import time
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from medlib import files
from medlib.core import weights
from medlib.core.backbones import Backbone, timm_config
from medlib.zoo import checkpoints

TIMEOUT = 8  # seconds to wait for the hub
FULL, READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
PAUSES = (0.5, 1.5, None)  # seconds between attempts after a server's error; None: no more attempts


def fetch(row: Backbone, folder: Path | None = None) -> Path | None:
    """The file of a row's weights, fetched if it is not there yet; None for random weights.

    With ``folder``, a file in it. Otherwise one in ``MEDLIB_WEIGHTS`` or in ``weights.FOLDER``.
    Raises FileNotFoundError within seconds, with the ways out, if neither a folder nor the hub has
    it; ValueError if the file is damaged, has changed since its first use, or does not fit the row;
    OSError, with the way out, if it cannot be written.
    """
    if row.pretraining == "random":
        return None
    found, copied = weights.weights_file(row), folder is not None
    target = (folder or weights.FOLDER) / f"{row.timm_name}.safetensors"
    if found and not copied:
        return _same_source(row, found)
    if target.is_file():
        return _same_source(row, target)
    published = found or download(row)
    revision = _revision(published)
    try:
        if found or not row.source:
            _place(published, target, copied)
        else:
            fitted = checkpoints.fit(checkpoints.read(published), row, published)
            checkpoints.write(fitted, target, f"{_source(row)}@{revision}")
    except OSError as error:
        raise _with_way_out(error, target.parent) from error
    weights.check(row, target, files.file_sha256(target), revision)
    return target


def _place(published: Path, target: Path, copied: bool) -> None:
    """Put a file into a folder: as a copy, or as a link into the hub's cache."""
    with files.replacing(target) as made:
        if copied:
            shutil.copyfile(published, made)
        else:
            os.symlink(published.resolve(), made)


def address(row: Backbone) -> tuple[str, str, str | None]:
    """The repository, the file and the revision (None: the newest) of a row's weights on the hub.

    A revision that the row does not state is that of the first use.
    """
    known = files.read_record(weights.LOCK).get(row.timm_name, {}).get("revision")
    if row.source:
        return row.source["repository"], row.source["file"], row.source.get("revision", known)
    return timm_config(row)["hf_hub_id"], "model.safetensors", known


def _source(row: Backbone) -> str:
    return f"{row.source['repository']}/{row.source['file']}"


def _revision(path: Path) -> str | None:
    """The revision of a file in the hub's cache: a part of its path."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _same_source(row: Backbone, path: Path) -> Path:
    """Raise ValueError if a file says that it came from elsewhere than its row says."""
    source, _, revision = checkpoints.source(path).rpartition("@")
    own = row.source and (_source(row), row.source.get("revision", revision))
    if own and source and (source, revision) != own:
        way_out = f"Remove {path}, and it is fetched again."
        raise ValueError(f"{path} is from {source}@{revision}; {row.name} names {own}. {way_out}")
    return path


def download(row: Backbone) -> Path:
    """A row's published file in the hub's cache, downloaded if it is not there.

    Raises FileNotFoundError, with the ways out, if the hub cannot be reached or does not have it.
    """
    if not (row.hub or row.source):
        raise FileNotFoundError(weights.missing(row, "its row names no file on a hub"))
    repository, file, revision = address(row)
    try:
        return _download(row, repository, file, revision)
    except Exception as error:  # offline, refused, gated, not found; no room
        if getattr(error, "errno", None) in (*FULL, *READ_ONLY):
            raise _with_way_out(error, Path(constants.HF_HUB_CACHE)) from error
        raise FileNotFoundError(weights.missing(row, _why(error, repository))) from error


def _download(row: Backbone, repository: str, file: str, revision: str | None) -> Path:
    asked = {"repo_id": repository, "filename": file, "revision": revision}
    try:
        return Path(huggingface_hub.hf_hub_download(**asked, local_files_only=True))
    except LocalEntryNotFoundError:
        size = _reach(repository, file, revision)
        said = f"Fetching the weights of {row.name} from the hub: {repository}/{file}"
        print(f"{said} ({(size or 0) / 1e6:,.0f} MB) …", file=sys.stderr, flush=True)
        return Path(huggingface_hub.hf_hub_download(**asked, etag_timeout=TIMEOUT))


def _reach(repository: str, file: str, revision: str | None) -> int | None:
    """Ask for the size of a file. Raises an error soon if the hub cannot be reached.

    Its own client would try for minutes. The front page may answer although files cannot be had.
    """
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") == "1":
        raise ConnectionError("HF_HUB_OFFLINE is set")
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    for pause in PAUSES:
        try:
            return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT).size
        except HfHubHTTPError as error:
            if error.response.status_code < 500 or pause is None:
                raise
        time.sleep(pause)
    return None


def _why(error: Exception, repository: str) -> str:
    """Why the hub gave nothing, in one line."""
    if type(error).__name__ == "GatedRepoError":
        return f"gated: accept the licence at huggingface.co/{repository}, and set HF_TOKEN"
    return f"the hub: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _with_way_out(error: OSError, folder: Path) -> OSError:
    """The error, or one that says what to do if the disk is full or cannot be written to."""
    if error.errno in FULL:
        said = f"The disk of {folder} is full, or your quota: make room and call the same again."
    elif error.errno in READ_ONLY:
        way_out = "Name a folder that can be: HF_HOME for the hub's cache, --to for weights."
        said = f"{folder} cannot be written to. {way_out}"
    else:
        return error
    return OSError(error.errno, said)
