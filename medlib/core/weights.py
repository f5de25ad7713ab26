"""Where the files of pretrained weights lie. Nothing is downloaded: medlib.zoo.hub does that."""

import os
from pathlib import Path

from medlib.core.backbones import Backbone, control

FOLDER, SHIPPED = Path(__file__).resolve().parents[2] / "weights", Path(__file__).parent


def weights_file(backbone: Backbone) -> Path | None:
    """The file in ``MEDLIB_WEIGHTS``, FOLDER (of fetched weights) or SHIPPED (beside the code)."""
    folders = Path(os.environ.get("MEDLIB_WEIGHTS") or FOLDER), FOLDER, SHIPPED
    paths = [folder / f"{backbone.timm_name}.safetensors" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def find_weights(backbone: Backbone, reason: str = "they were not fetched") -> Path:
    """:func:`weights_file`, or FileNotFoundError with the ``reason`` and the ways out."""
    if path := weights_file(backbone):
        return path
    folder, file = os.environ.get("MEDLIB_WEIGHTS", ""), f"{backbone.timm_name}.safetensors"
    where = f"={folder!r} (not there)" if folder else " (not set)"
    raise FileNotFoundError(
        f"No weights for {backbone.name}: {reason}. Looked for {file} in MEDLIB_WEIGHTS{where} and "
        f"in {FOLDER}. Fetch them where the hub can be reached (python -m medlib.zoo.weights fetch "
        f"{backbone.name}), or put {file} into a folder and name that (make … WEIGHTS=folder, or "
        "MEDLIB_WEIGHTS). Files of other kinds: python -m medlib.zoo.weights convert FILE ROW. "
        f"Random weights are a backbone of their own: {control(backbone)}."
    )
