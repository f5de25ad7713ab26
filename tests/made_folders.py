"""Make data sets for tests: folders of pictures and their cards; and prepare them."""

import numpy as np
import pytest
from PIL import Image

from medlib.data import cards, preparation
from medlib.errors import ManifestError


def card(layout="folder_per_class", **changes):
    fields = {"task": "toy", "title": "Toy", "modality": "drawing", "classes": ("a", "b")}
    fields |= {"licence": "CC0", "citation": "nobody", "source": "https://example.org"}
    fields |= {"folds": 3, "folder": "set", "layout": layout}
    return cards.Card(**fields | changes)


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"content of " + path.encode("utf-8", "surrogateescape"))


def picture(seed, size=(96, 80)):
    """A picture of smooth noise, which resembles no other picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(image, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def reasons(frame):
    return dict(zip(frame["name"], frame["reason"], strict=True))


def prepare(task, data, **settings):
    return preparation.prepare(task, data, workers=1, **settings)


def refusal(task, data, **settings):
    with pytest.raises(ManifestError) as caught:
        prepare(task, data, **settings)
    return str(caught.value)
