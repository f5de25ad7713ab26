"""Where the files of pretrained weights are found, and whether they are still the same."""

import contextlib
import os
import re
import time
from pathlib import Path

from medlib.core.backbones import Backbone, control, timm_config
from medlib.files import read_json, read_record, save_json

# The sha256 of each file at its first use. Commit this file: others then use the same weights.
LOCK = Path(__file__).resolve().parents[2] / "weights.lock.json"
HUB_TIMEOUT = 8  # seconds to wait for the hub
PAUSES = (0.5, 1.5, None)  # seconds between attempts after a server's error; None: no more attempts


def weights_file(backbone: Backbone) -> Path | None:
    """The backbone's file in ``MEDLIB_WEIGHTS``, if it is there."""
    folder = os.environ.get("MEDLIB_WEIGHTS", "")
    path = Path(folder) / f"{backbone.timm_name}.safetensors"
    return path if folder and path.is_file() else None


def find_weights(backbone: Backbone) -> Path:
    """The file of pretrained weights: from ``MEDLIB_WEIGHTS``, else from timm's hub (or its cache).

    Raises FileNotFoundError within seconds, with the ways out, when neither has it.
    """
    if (path := weights_file(backbone)) is not None:
        return path
    folder, file = os.environ.get("MEDLIB_WEIGHTS", ""), f"{backbone.timm_name}.safetensors"
    where = f"={folder!r} (not there)" if folder else " (not set)"
    reason = "which does not have these weights"
    if backbone.hub:
        try:
            return _from_hub(backbone)
        except Exception as error:  # offline, refused, gated, not found: all have one way out
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if type(error).__name__ == "GatedRepoError":
                where_to = f"huggingface.co/{timm_config(backbone)['hf_hub_id']}"
                reason = f"gated: accept the licence at {where_to}, and set HF_TOKEN"
    raise FileNotFoundError(
        f"No weights for {backbone.name}. Looked for {file} in MEDLIB_WEIGHTS{where}, then on the "
        f"hub ({reason}). Either put {file} into a folder and name that (make … WEIGHTS=folder, or "
        "MEDLIB_WEIGHTS), or run where the hub can be reached. Files of other kinds: python -m "
        "medlib.zoo.weights convert FILE ROW. Random weights are a backbone of their own: "
        f"{control(backbone)}."
    )


def check(backbone: Backbone, path: Path, digest: str) -> None:
    """Compare the sha256 of a weights file with the hub's, and with that of its first use.

    A first use is noted in :data:`LOCK`, with the revision on the hub. Raises ValueError.
    """
    promised = path.resolve().name  # in the hub's cache, a file is named by its sha256
    if re.fullmatch("[0-9a-f]{64}", promised) and promised != digest:
        raise ValueError(f"{path} is damaged: its sha256 is {digest}. Remove {path.resolve()}.")
    known = (lock := read_json(LOCK) if LOCK.is_file() else {}).get(backbone.timm_name)
    revision = path.parent.name if path.parts[-3:-2] == ("snapshots",) else None
    if not known:
        with contextlib.suppress(OSError):  # if the file cannot be written, nothing is noted
            save_json(LOCK, lock | {backbone.timm_name: {"sha256": digest, "revision": revision}})
    elif known["sha256"] != digest:
        other = f"has sha256 {digest[:12]}…, and had {known['sha256'][:12]}… when it was first used"
        raise ValueError(f"{path} {other}. Restore it, or take {backbone.timm_name} out of {LOCK}.")


def _from_hub(backbone: Backbone) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, file = timm_config(backbone)["hf_hub_id"], "model.safetensors"
    known = {"revision": read_record(LOCK).get(backbone.timm_name, {}).get("revision")}
    try:
        path = huggingface_hub.hf_hub_download(repository, file, local_files_only=True, **known)
    except LocalEntryNotFoundError:
        _reach_hub(repository, file)
        known["etag_timeout"] = HUB_TIMEOUT
        path = huggingface_hub.hf_hub_download(repository, file, **known)
    return Path(path)


def _reach_hub(repository: str, file: str) -> None:
    """Raise an error soon if the hub cannot be reached. Its own client would try for minutes.

    The request is for the file: the front page may answer although files cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") == "1":
        raise ConnectionError("HF_HUB_OFFLINE is set")
    url = huggingface_hub.hf_hub_url(repository, file)
    for pause in PAUSES:
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
            return
        except HfHubHTTPError as error:
            if error.response.status_code < 500 or pause is None:
                raise
        time.sleep(pause)
