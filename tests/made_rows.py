"""A row of the table of backbones for weights that no hub has."""

from medlib.core.backbones import Backbone

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}


def row(architecture, embedding="cls", **more):
    names = ("new-own", f"{architecture}.own", "own", embedding, "MIT", "New", "CNN")
    return Backbone(*names, hub=False, config=HALF, **more)
