"""Where the files of pretrained weights lie, and whether they are still the same."""

import contextlib
import os
import re
from pathlib import Path

from medlib.core.backbones import Backbone, control
from medlib.files import read_json, save_json

CLONE = Path(__file__).resolve().parents[2]
FOLDER = CLONE / "weights"  # medlib.zoo.hub writes here what it fetches
# The sha256 of each file at its first use. Commit this file: others then use the same weights.
LOCK = CLONE / "weights.lock.json"


def weights_file(backbone: Backbone) -> Path | None:
    """The backbone's file in the folder ``MEDLIB_WEIGHTS`` or else in :data:`FOLDER`, if any."""
    folders = Path(os.environ.get("MEDLIB_WEIGHTS") or FOLDER), FOLDER
    paths = [folder / f"{backbone.timm_name}.safetensors" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def find_weights(backbone: Backbone) -> Path:
    """The file of pretrained weights. Nothing is downloaded: :mod:`medlib.zoo.hub` does that.

    Raises FileNotFoundError, with the ways out.
    """
    if path := weights_file(backbone):
        return path
    raise FileNotFoundError(missing(backbone, "they were not fetched"))


def missing(backbone: Backbone, reason: str) -> str:
    """The message for weights that are not there: the reason, and the ways out."""
    folder, file = os.environ.get("MEDLIB_WEIGHTS", ""), f"{backbone.timm_name}.safetensors"
    where = f"={folder!r} (not there)" if folder else " (not set)"
    return (
        f"No weights for {backbone.name}: {reason}. Looked for {file} in MEDLIB_WEIGHTS{where} and "
        f"in {FOLDER}. Fetch them where the hub can be reached (python -m medlib.zoo.weights fetch "
        f"{backbone.name}), or put {file} into a folder and name that (make … WEIGHTS=folder, or "
        "MEDLIB_WEIGHTS). Files of other kinds: python -m medlib.zoo.weights convert FILE ROW. "
        f"Random weights are a backbone of their own: {control(backbone)}."
    )


def check(backbone: Backbone, path: Path, digest: str, revision: str | None = None) -> None:
    """Compare the sha256 of a weights file with the hub's, and with that of its first use.

    A first use is noted in :data:`LOCK`, with the ``revision`` on the hub. Raises ValueError.
    """
    promised = path.resolve().name  # in the hub's cache, a file is named by its sha256
    if re.fullmatch("[0-9a-f]{64}", promised) and promised != digest:
        raise ValueError(f"{path} is damaged: its sha256 is {digest}. Remove {path.resolve()}.")
    known = (lock := read_json(LOCK) if LOCK.is_file() else {}).get(backbone.timm_name)
    if not known:
        with contextlib.suppress(OSError):  # if the file cannot be written, nothing is noted
            save_json(LOCK, lock | {backbone.timm_name: {"sha256": digest, "revision": revision}})
    elif known["sha256"] != digest:
        other = f"has sha256 {digest[:12]}…, and had {known['sha256'][:12]}… when it was first used"
        raise ValueError(f"{path} {other}. Restore it, or take {backbone.timm_name} out of {LOCK}.")
