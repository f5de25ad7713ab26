"""Fetch pretrained weights from the hub, and put the file that a row reads into a folder.

timm's own files are used as they are. A row with a ``source`` names a file of another library. The
tensors of such a file are renamed (see :mod:`medlib.zoo.checkpoints`). The hub's own client
downloads, with its proxies, its token and its cache. It continues an interrupted download.
"""

import contextlib
import errno
import os
import re
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
from medlib.environment import full_disk
from medlib.zoo import checkpoints, rows

# The sha256 of each file at its first use. Commit this file: others then use the same weights.
LOCK = weights.FOLDER.with_name("weights.lock.json")
TIMEOUT = 8  # seconds to wait for the hub
FULL, READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
PAUSES = (0.5, 1.5)  # seconds to wait after a server's error, before the next attempt


def fetch(row: Backbone, folder: Path | None = None) -> Path | None:
    """The checked file of a row's weights, fetched if it is not there; None for random weights.

    If ``folder`` is given, the file lies in it. Otherwise it lies in ``MEDLIB_WEIGHTS`` or in
    ``weights.FOLDER``. All errors say what to do. FileNotFoundError is raised within seconds if no
    folder has the file and the hub does not give it. ValueError is raised if the table has wrong
    rows, or if the file is damaged, has changed since its first use, does not fit the row, or is
    not from the source that the row names. OSError is raised if the file cannot be written.
    """
    rows.check()
    if row.pretraining == "random":
        return None
    path, revision = weights.weights_file(row), None
    if path and path.parent == weights.SHIPPED:
        return path  # it is part of medlib, and needs no copy
    if folder is not None or path is None:
        target = (folder or weights.FOLDER) / f"{row.timm_name}.safetensors"
        if not target.is_file():
            revision = _fetch(row, target, path, copied=folder is not None)
        path = target
    _check(row, path, revision)
    return path


def _fetch(row: Backbone, target: Path, found: Path | None, copied: bool) -> str | None:
    """Write a row's file into a folder. Returns its revision on the hub.

    timm's file is copied, or linked to the hub's cache. A file of another library is converted.
    ``found`` is the row's file in another folder, if there is one.
    """
    published = found or download(row)
    parts = published.parts
    revision = parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
    try:
        if not found and row.source:
            fitted = checkpoints.fit(checkpoints.read(published), row, published)
            checkpoints.write(fitted, target, f"{_source(row)}@{revision}")
            return revision
        with files.replacing(target) as made:
            if copied:
                shutil.copyfile(published, made)
            else:
                os.symlink(published.resolve(), made)
        return revision
    except OSError as error:
        raise _with_way_out(error, target.parent) from error


def _check(row: Backbone, path: Path, revision: str | None) -> None:
    """Compare a file with its source, the hub's sha256, and the sha256 of its first use.

    A first use is noted in :data:`LOCK`, with the revision on the hub. Raises ValueError.
    """
    source, _, of = checkpoints.source(path).rpartition("@")
    named = row.source and (_source(row), row.source.get("revision", of))
    if named and source and (source, of) != named:
        way_out = f"Remove {path}, and it is fetched again."
        said = f"{path} is from {source}@{of}, but {row.name} names {'@'.join(named)}."
        raise ValueError(f"{said} {way_out}")
    digest, promised = files.file_sha256(path), path.resolve().name
    if (
        re.fullmatch("[0-9a-f]{64}", promised) and promised != digest
    ):  # the cache's names are digests
        raise ValueError(f"{path} is damaged: its sha256 is {digest}. Remove {path.resolve()}.")
    known = (lock := files.read_json(LOCK) if LOCK.is_file() else {}).get(row.timm_name)
    if not known:
        with contextlib.suppress(OSError):  # if the file cannot be written, nothing is noted
            files.save_json(LOCK, lock | {row.timm_name: {"sha256": digest, "revision": revision}})
    elif known["sha256"] != digest:
        other = f"has sha256 {digest[:12]}…, and had {known['sha256'][:12]}… when it was first used"
        raise ValueError(f"{path} {other}. Restore it, or take {row.timm_name} out of {LOCK}.")


def _source(row: Backbone) -> str:
    return f"{row.source['repository']}/{row.source['file']}"


def address(row: Backbone) -> tuple[str, str, str | None]:
    """The repository, the file and the revision (None: the newest) of a row's weights on the hub.

    A revision that the row does not state is that of the first use.
    """
    known = files.read_record(LOCK).get(row.timm_name, {}).get("revision")
    if row.source:
        return row.source["repository"], row.source["file"], row.source.get("revision", known)
    return timm_config(row)["hf_hub_id"], "model.safetensors", known


def download(row: Backbone) -> Path:
    """A row's published file in the hub's cache, downloaded if it is not there.

    Raises FileNotFoundError, with the ways out, if the hub cannot be reached or does not have it.
    """
    if not (row.hub or row.source):
        return weights.find_weights(row, "its row names no file on a hub")
    repository, file, revision = address(row)
    try:
        return _download(row, repository, file, revision)
    except Exception as error:  # offline, refused, gated, not found; no room
        if getattr(error, "errno", None) in (*FULL, *READ_ONLY):
            raise _with_way_out(error, Path(constants.HF_HUB_CACHE)) from error
        why = f"the hub: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if type(error).__name__ == "GatedRepoError":
            why = f"gated: accept the licence at huggingface.co/{repository}, and set HF_TOKEN"
        try:
            return weights.find_weights(row, why)
        except FileNotFoundError as missing:
            raise missing from error


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

    The hub's own client would try for minutes. The file itself is asked for: the front page may
    answer although files cannot be downloaded.
    """
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") == "1":
        raise ConnectionError("HF_HUB_OFFLINE is set")
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    for pause in PAUSES:
        try:
            return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT).size
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(pause)
    return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT).size


def _with_way_out(error: OSError, folder: Path) -> OSError:
    """The error, or one that says what to do if the disk is full or cannot be written to."""
    if error.errno in FULL:
        said = full_disk(folder)
    elif error.errno in READ_ONLY:
        way_out = "Name a folder that can be: HF_HOME for the hub's cache, --to for weights."
        said = f"{folder} cannot be written to. {way_out}"
    else:
        return error
    return OSError(error.errno, said)
