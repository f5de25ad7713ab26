"""Make a row of the table of backbones for weights that are on no hub."""

from medlib.core.backbones import Backbone

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}


def row(architecture, embedding="cls", **more):
    names = ("new-own", f"{architecture}.own", "own", embedding, "MIT", "New", "CNN")
    return Backbone(*names, hub=False, config=HALF, **more)
