"""The table of backbones: how each is built, and where its weights come from.

A backbone is one row of ``backbones.yaml``. Its key names its pretraining: ``vit_tiny-imagenet``.
Its control arm has the same architecture at random initialisation: ``vit_tiny-random``. If a study
compares several image sizes, a key may end in one: ``vit_tiny-imagenet@448``.
"""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from medlib.errors import listed, unknown

TABLE_FILE = Path(__file__).with_name("backbones.yaml")


@dataclass(frozen=True)
class Backbone:
    """One row: how to build a network and where its weights come from.

    ``timm_name`` is ``architecture.tag`` in timm; the weights file is ``<timm_name>.safetensors``.
    ``embedding``: ``gap`` is the mean over the last feature map, or over the tokens of a network
    without class token; ``cls`` the class token; ``cls+patches`` the class token joined with the
    mean of the patch tokens; ``cls4+patches`` the class tokens of the last four blocks joined with
    that mean; ``pool`` the input of the published classifier (attention pooling, or pooling and a
    norm). The image size must be a multiple of ``patch`` (pixels). A network with a ``patch`` above
    1 is built for one image size. ``position_offset``: see :func:`networks.positions`.
    ``rounded_periods``: see :class:`networks.RoundedPeriods`. ``build``: further arguments of the
    architecture. ``config``: mean, std and interpolation, if timm's ``pretrained_cfg`` has others.
    With ``hub: false``, timm does not publish the weights. Then ``config`` must state all three,
    and ``source`` names the repository, the file and, if it must not change, the revision. Without
    a ``source``, the weights are a file of your own. ``printed`` is the architecture's name in
    figures, ``family`` its kind ("CNN", "ViT").
    """

    name: str
    timm_name: str
    pretraining: str
    embedding: str
    licence: str
    printed: str = field(repr=False)  # no part of repr: a new printed name trains nothing again
    family: str = field(repr=False)
    patch: int = 1
    hub: bool = True  # whether timm publishes these weights on the hub
    source: Mapping = field(default_factory=dict, repr=False)  # no part: the file's digest counts
    gated: bool = field(default=False, repr=False)  # the hub asks to accept the licence first
    position_offset: float = 0.0
    rounded_periods: bool = False
    fixed_norm: bool = False  # batch norm is folded into the convolutions: see networks.load
    build: Mapping = field(default_factory=dict)
    config: Mapping = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self.timm_name.partition(".")[0]

    @functools.cached_property
    def preprocessing(self) -> dict:
        """Mean and standard deviation (of RGB in 0 … 1), interpolation: timm's own."""
        config = timm_config(self) | self.config
        colours = {name: tuple(config[name]) for name in ("mean", "std")}
        return colours | {"interpolation": config["interpolation"]}


def control(row: Backbone) -> str:
    key, at, size = row.name.partition("@")
    return key.removesuffix(f"-{row.pretraining}") + "-random" + at + size


def read_table(path: Path = TABLE_FILE) -> dict[str, Backbone]:
    """The rows of a table. Raises ValueError for fields that are unknown or missing.

    The values of the fields are checked by :mod:`medlib.zoo.rows`.
    """
    table, problems = {}, []
    for name, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            table[name] = Backbone(name, **(row or {}))
        except TypeError as error:
            problems.append(f"{name}: {str(error).partition(') ')[2] or error}")
    if problems:
        raise ValueError(f"{path} cannot be used:\n{listed(problems)}")
    return table


TABLE = read_table()


def timm_config(backbone: Backbone) -> dict:
    """timm's ``pretrained_cfg`` of the weights, or of the architecture where timm lacks them."""
    import timm

    name = backbone.timm_name if backbone.hub else backbone.architecture
    if not timm.is_model(backbone.architecture):
        close = difflib.get_close_matches(backbone.architecture, timm.list_models(), n=3)
        said = f"{backbone.name}: timm has no architecture {backbone.architecture!r}."
        raise ValueError(f"{said} The nearest: {', '.join(close) or 'none'}.")
    try:
        return timm.get_pretrained_cfg(name).to_dict()
    except RuntimeError:
        known = timm.list_pretrained(f"{backbone.architecture}.*")
        way_out = "For weights of your own: hub: false, and config."
        raise ValueError(f"{backbone.name}: {unknown('timm_name', name, known, way_out)}") from None


def names() -> list[str]:
    """Every key: the table's rows, then the random control of each architecture."""
    return list(dict.fromkeys([*TABLE, *(control(row) for row in TABLE.values())]))


def get(name: str) -> Backbone:
    """The row of a key; raises ValueError, with the valid keys, for an unknown one."""
    key, at, size = name.partition("@")
    if at and not (size.isdecimal() and int(size)):
        raise ValueError(f"{name}: @ must be followed by an image size in pixels.")
    if at:
        return replace(get(key), name=name)
    if name in TABLE:
        return TABLE[name]
    for row in TABLE.values():
        if name == control(row):
            return replace(row, name=name, pretraining="random", fixed_norm=False)
    way_out = "A new backbone is one row in medlib/core/backbones.yaml."
    raise ValueError(unknown("backbone", name, names(), way_out))


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raise ValueError for an image size that is not the key's, or no multiple of ``patch``."""
    if image_size != int(backbone.name.partition("@")[2] or image_size):
        raise ValueError(f"{backbone.name} is not for images of {image_size} pixels.")
    if image_size % backbone.patch:
        below = image_size // backbone.patch * backbone.patch
        nearest = [size for size in (below, below + backbone.patch) if size > 0]
        raise ValueError(
            f"{backbone.name} needs an image size that is a multiple of {backbone.patch}, not "
            f"{image_size}; the nearest are {' and '.join(map(str, nearest))}."
        )
