"""A grid file: tasks × backbones × regimes × seeds, checked as a whole before anything runs.

``grids/<grid>.yaml`` has these fields:

- ``title``, and ``caption``, which is printed beneath every figure;
- ``data``: "phantoms", "real" or a folder; ``tasks``; ``seeds``;
- ``primary``: the regime whose pairs of backbones are the primary family of tests;
- ``save_models``: whether all runs save their models;
- ``frozen``, ``finetuned`` and ``lora``: the settings of the regimes, any of which may be left out;
- ``external``: for a task, the data sets on which its finished models are tested;
- ``prepare``, ``collect``, ``elsewhere``, ``thresholds`` and ``subgroups``: the settings of
  notebooks 01, 05, 11, 12 and 13. ``prevalence`` of ``thresholds`` maps task and class to a share.

Settings have the names of the notebooks' parameters. Those of training are the fields of
:class:`medlib.core.settings.FineTuning`.
"""

import re
import reprlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import AfterValidator, Field, Tag, ValidationInfo

from medlib.core import backbones, settings
from medlib.data import cards
from medlib.errors import ManifestError, listed, unknown
from medlib.grid.address import Address, belongs_to, frozen_runs
from medlib.zoo import rows

# Limits of a file. Aliases within aliases could fill the memory.
MAX_BYTES, MAX_ALIASES = 64 * 1024, 10
OF_ALL, BY_TASK = "one for all", "by task"  # the two forms of label_fraction
ONE, SEVERAL = "one", "several"  # the two forms of image_size


def _refused(problem: Callable[[Any, ValidationInfo], str | None]) -> AfterValidator:
    """A validator that refuses the values for which ``problem`` returns a message."""

    def check(value: object, info: ValidationInfo) -> object:
        if message := problem(value, info):
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _unplain(name: str, _: object = None) -> str | None:
    """A message if a name has unsafe characters: names become parts of paths and commands."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*", name)
    wanted = "letters, digits and _ . + - @ only, and none of . + - @ first"
    return None if plain else f"{name!r} cannot be a name: {wanted}"


def _unfit(name: str, info: ValidationInfo) -> None:
    sizes = info.data.get("image_size")  # None if the sizes are invalid themselves
    for each in _sized([name], sizes) if sizes else [name]:
        row = backbones.get(each)
        if sizes:
            backbones.check_image_size(row, _size(each, sizes))


def _sized(names: list[str], sizes: int | list[int]) -> list[str]:
    """The keys of backbones at each image size. A key at the first size does not contain it."""
    first, *others = sizes if isinstance(sizes, list) else [sizes]
    every = ["", *(f"@{size}" for size in others)]
    keys = [name + size for name in names for size in (every if "@" not in name else [""])]
    return [key.removesuffix(f"@{first}") for key in keys]


def _size(key: str, sizes: int | list[int]) -> int:
    """The image size of a key: the one that it contains, or the first of ``sizes``."""
    first = sizes[0] if isinstance(sizes, list) else sizes
    return int(key.partition("@")[2] or first)


def _twice(values: list, info: ValidationInfo) -> str | None:
    if info.field_name == "backbones":
        values = _sized(values, info.data.get("image_size", 0))
    again = [value for i, value in enumerate(values) if value in values[:i]]
    return f"{info.field_name} hold {again[0]!r} more than once" if again else None


def _not_linear(heads: list[str], _: ValidationInfo) -> str | None:
    return None if "linear" in heads else "heads lack linear, with which backbones are compared"


def _not_all(shares: list[float], info: ValidationInfo) -> str | None:
    missing = 1.0 not in shares and not info.context["trained"]
    return "label_fractions lack 1.0, on which backbones are compared" if missing else None


def _task_without(share: float | dict, info: ValidationInfo) -> str:
    missing = [t for t in info.context["tasks"] if isinstance(share, dict) and t not in share]
    return "\n".join(f"label_fraction has no number for {task}" for task in missing)


def _one_of(kind: str, choices: Callable[[], list[str] | tuple[str, ...]]) -> AfterValidator:
    return _refused(lambda name, _: None if name in choices() else unknown(kind, name, choices()))


def _list_of(item: object, *checks: AfterValidator) -> object:
    """The type of a list of at least one item, none of them twice, that passes the checks."""
    return Annotated[list[item], Field(min_length=1), _refused(_twice), *checks]


Name = Annotated[str, _refused(_unplain)]
Share = Annotated[float, Field(gt=0, le=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]
Size = Annotated[int, Field(gt=0)]  # of images, in pixels
Seeds = _list_of(Annotated[int, Field(ge=0)])


class Part(pydantic.BaseModel):
    """A part of a grid file. Values are not converted: a text is not accepted as a number.

    A field with a default may be left out.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Prepare(Part):
    folds: Annotated[int, Field(ge=0)] = 0
    repeats: Annotated[int, Field(ge=1)] = 1
    phantom_scale: Annotated[float, Field(gt=0)] = 1.0
    quarantine: bool = False
    geometry: Annotated[str, _one_of("geometry", lambda: cards.GEOMETRIES)] = "squash"
    volumes: dict[str, pydantic.JsonValue] = {}


class Regime(Part):
    image_size: Annotated[
        Annotated[Size, Tag(ONE)] | Annotated[_list_of(Size), Tag(SEVERAL)],
        pydantic.Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
    ]
    backbones: _list_of(Annotated[Name, _refused(_unfit)])
    seeds: Seeds = []


class Frozen(Regime):
    heads: _list_of(Annotated[Name, _one_of("head", lambda: settings.HEADS)], _refused(_not_linear))
    label_fractions: _list_of(Share, _refused(_not_all)) = [1.0]
    redraws: Annotated[int, Field(ge=0)] = 100


class Trained(Regime):
    label_fraction: Annotated[
        Annotated[Share, Tag(OF_ALL)] | Annotated[dict[str, Share], Tag(BY_TASK)],
        pydantic.Discriminator(lambda value: BY_TASK if isinstance(value, dict) else OF_ALL),
        _refused(_task_without),
    ] = 1.0
    recipe: Annotated[str, _one_of("recipe", lambda: list(settings.RECIPES))] = "plain"


def _recipe(grid: dict, regime: str) -> dict:
    """The settings of a trained regime. Its own settings take precedence over its recipe's."""
    own = grid[regime]
    return settings.RECIPES.get(own.pop("recipe", ""), {}) | own


class Collect(Part):
    resamples: Annotated[int, Field(ge=0)] = 5000


def _not_a_class(prevalence: dict[str, dict], info: ValidationInfo) -> str:
    """A message that lists unknown tasks, and unknown classes of a task; "" if there are none."""
    tasks, lines = info.context["tasks"], []
    for task, shares in prevalence.items():
        if task not in tasks:
            lines.append(unknown("task", task, tasks))
        elif task in cards.tasks():
            classes = cards.read(task).all_classes
            lines += [unknown(f"class of {task}", c, classes) for c in shares if c not in classes]
    return "\n".join(f"  - {line}" for line in lines)


class Thresholds(Part):
    sensitivity: Inside = 0.95
    specificity: Inside = 0.95
    prevalence: Annotated[dict[str, dict[str, Inside]], _refused(_not_a_class)] = {}


class Groups(Part):
    few: Annotated[int, Field(ge=2)] = 20


def _trained(regime: str) -> type[Trained]:
    """The model of a trained regime: its settings are the fields of FineTuning.

    FineTuning checks the values. Fields that are named after another regime (``lora_…``) are left
    out.
    """

    def type_of(name: str, default: object) -> object:
        checked = Annotated[Any, AfterValidator(lambda v: settings.FineTuning(**{name: v}) and v)]
        return Annotated[checked, _refused(_twice)] if isinstance(default, tuple) else checked

    others = tuple(f"{other}_" for other in settings.TRAINED if other != regime)
    own = [each for each in fields(settings.FineTuning) if not each.name.startswith(others)]
    own = {each.name: (type_of(each.name, each.default), each.default) for each in own}
    return pydantic.create_model(regime, __base__=Trained, **own)


class Elsewhere(Part):
    recalibrate: Annotated[int, Field(ge=4)] = 20


def _not_external(external: dict[str, list[str]], info: ValidationInfo) -> str:
    """The tasks that the grid does not have, and data sets that cannot test them."""
    tasks, lines = info.context["tasks"], []
    for task, others in external.items():
        if task not in tasks:
            lines.append(unknown("task", task, tasks))
            continue
        for other in others:
            if other not in cards.tasks():
                lines.append(unknown("data set", other, cards.tasks()))
            elif other == task:
                lines.append(f"{task} cannot be tested on itself: it has trained the models")
            elif task in cards.tasks():
                try:
                    cards.read(other).classes_for(cards.read(task))
                except ManifestError as error:
                    lines.append(str(error))
    return "\n".join(f"  - {line}" for line in lines)


class Top(Part):
    title: cards.Text
    caption: str = ""
    primary: Annotated[str, _one_of("regime", lambda: settings.REGIMES)] = ""
    data: cards.Text
    tasks: _list_of(Annotated[Name, _one_of("task", cards.tasks)])
    seeds: Seeds
    save_models: bool = False
    external: Annotated[dict[str, _list_of(Name)], _refused(_not_external)] = {}


PARTS = {"prepare": Prepare, "frozen": Frozen} | {r: _trained(r) for r in settings.TRAINED}
PARTS |= {"collect": Collect, "thresholds": Thresholds, "subgroups": Groups, "elsewhere": Elsewhere}
SETTINGS = {name: tuple(part.model_fields) for name, part in PARTS.items()}
Grid = pydantic.create_model("Grid", __base__=Top, **{p: (PARTS[p], {}) for p in PARTS})


class Loader(yaml.SafeLoader):
    """A loader that reads 1e-3 as a number, as YAML 1.2 does."""


SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("-+0123456789"))


def read(path: Path | str) -> dict:
    """Read and check a grid file.

    The result has an entry for every part, and only the settings that the file states.
    ``label_fraction`` of a trained regime is one number, or a mapping of tasks to numbers. If a
    regime has several image sizes, the result lists each backbone once for each size: as ``key`` at
    the first size, which becomes ``image_size``, and as ``key@size`` at the others. A ``recipe`` is
    replaced by its settings (:data:`medlib.core.settings.RECIPES`).

    Raises ValueError that lists everything that is unknown, missing, of a wrong type or out of its
    range, and every backbone that does not fit its image size.
    """
    rows.check()
    path = Path(path)
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ValueError(unknown("grid", path.stem, known, f"A grid is a file in {path.parent}/."))
    try:
        grid, problems = _checked(*_parse(path))
        problems += filter(None, [_unplain(path.stem)])
    except ValueError as error:
        problems = [str(error)]
    if problems:
        raise ValueError(f"{path} cannot be run:\n{listed(problems)}")
    return grid


Lines = dict[tuple, int]  # the line of each value; a key is its path of names and list positions


def _parse(path: Path) -> tuple[dict, Lines]:
    """The content of a YAML file, and the line of each value.

    Raises ValueError for a file that is too large, has too many aliases, or is no YAML mapping.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        if sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)) > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases (*name)")
        loader, lines = Loader(text), {}
        if node := loader.get_single_node():
            _note_lines(node, (), lines, set())
        stated = loader.construct_document(node) if node else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"it is not plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(stated, dict):
        wanted = f"a mapping with the fields {', '.join(Grid.model_fields)}"
        raise ValueError(f"it must hold {wanted}, not {reprlib.repr(stated)}")
    return stated, lines


def _note_lines(node: yaml.Node, place: tuple, lines: Lines, seen: set[int]) -> None:
    """Add the lines of a node, and of all nodes below it, to ``lines``.

    Raises ValueError for a repeated name and for a number that is too large.
    """
    line = lines[place] = node.start_mark.line + 1
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 9:
        raise ValueError(f"line {line}: {node.value} is larger than any number of a grid may be")
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    below: list[tuple] = []
    if isinstance(node, yaml.SequenceNode):
        below = list(enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if any(key.value == name for name, _ in below):
                again = f"line {key.start_mark.line + 1}: {key.value!r} is stated before"
                raise ValueError(again)
            below.append((key.value, value))
    for name, value in below:
        _note_lines(value, (*place, name) if isinstance(name, str | int) else place, lines, seen)


def _checked(stated: dict, lines: Lines) -> tuple[dict, list[str]]:
    """The grid, in which a missing part is an empty one, and a list of all problems."""
    stated = {name: part for name, part in stated.items() if part != {}}
    regimes, tasks = stated.keys() & settings.REGIMES, stated.get("tasks")
    tasks = [t for t in tasks if isinstance(t, str)] if isinstance(tasks, list) else []
    context = {"tasks": tasks, "trained": regimes - {"frozen"}}
    grid, problems = {}, []
    try:
        grid = Grid.model_validate(stated, context=context).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        problems = _problems(error, lines)
    if not regimes:
        problems.append(f"there is no regime: none of {', '.join(settings.REGIMES)}")
    elif stated.get("primary") in [r for r in settings.REGIMES if r not in regimes]:
        problems.append(f"primary is {stated['primary']!r}, a regime that the grid does not have")
    for regime in settings.TRAINED:
        if grid.get(regime):
            grid[regime] = _recipe(grid, regime)
    own = {regime: grid[regime] for regime in settings.REGIMES if grid.get(regime)}
    for of in own.values():
        of["backbones"] = _sized(of["backbones"], of["image_size"])
        of["image_size"] = _size("", of["image_size"])
    words = ["Only the centre of each image is used."] * (_geometry(grid) == "crop")
    if any("@" in name for of in own.values() for name in of["backbones"]):
        sizes = ", ".join(f"{of['image_size']} px ({regime})" for regime, of in own.items())
        words.append(f"Image size where a name does not state it: {sizes}.")
    if grid and words:
        grid["caption"] = " ".join([grid.get("caption", ""), *words]).strip()
    return dict.fromkeys(PARTS, {}) | grid, problems


def _problems(error: pydantic.ValidationError, lines: Lines) -> list[str]:
    """A message for each problem that pydantic has found, with its line in the file."""
    told = []
    for problem in error.errors():
        kind = problem["type"]
        place = [name for name in problem["loc"] if name not in (OF_ALL, BY_TASK, ONE, SEVERAL)]
        ends = range(len(place), -1, -1)  # a missing field: the line of the part that lacks it
        stands = next(lines[tuple(place[:n])] for n in ends if tuple(place[:n]) in lines)
        at, place = f"line {stands}: ", [str(name) for name in place]
        part = place.pop(0) if place[0] in PARTS and len(place) > 1 else ""
        name = re.sub(r"\.(\d+)", r"[\1]", ".".join(place))
        before, of = (f"{part}: ", f"setting of {part}") if part else ("", "field")
        if kind == "extra_forbidden":
            told.append(at + unknown(of, name, SETTINGS.get(part, tuple(Grid.model_fields))))
        elif kind == "missing" or kind.endswith("too_short"):
            told.append(f"{at}{before}{name} is missing")
        elif kind == "value_error":  # from a validator above: one line, or a heading and a list
            message = str(problem["ctx"]["error"]).splitlines()
            own = [line for line in message if line.startswith("  - ")] or message
            told += [at + before + line.removeprefix("  - ") for line in own]
        else:
            wanted = problem["msg"].replace("Input should be", "but must be")
            wanted = re.sub("valid dictionary.*", "mapping of names to values", wanted)
            told.append(f"{at}{before}{name} is {reprlib.repr(problem['input'])}, {wanted}")
    return told


def _geometry(grid: dict) -> str:
    return grid.get("prepare", {}).get("geometry", "squash")


def image_size(grid: dict, regime: str, backbone: str) -> int:
    """The image size of a backbone in a regime, in pixels."""
    return _size(backbone, grid[regime]["image_size"])


def image_sizes(grid: dict) -> list[int]:
    """The sizes, in pixels, at which images have to be packed."""
    used = [
        (regime, name) for regime in settings.REGIMES for name in grid[regime].get("backbones", ())
    ]
    return sorted({image_size(grid, *each) for each in used})


def seeds(grid: dict, regime: str) -> list[int]:
    """The seeds of a regime: its own, or those of the grid."""
    return grid[regime].get("seeds", grid["seeds"])


def weight_seeds(grid: dict, backbone: str) -> list[int]:
    """The seeds of a frozen backbone's weights: all seeds for a random control, otherwise [0].

    A fine-tuned random control draws its weights from its seed as well, so that the spread over
    seeds means the same in both regimes.
    """
    return seeds(grid, "frozen") if backbones.get(backbone).pretraining == "random" else [0]


def label_fraction(grid: dict, task: str, regime: str = "finetuned") -> float:
    """The share of labelled patients on which a task is fine-tuned."""
    fraction = grid[regime].get("label_fraction", 1.0)
    return fraction[task] if isinstance(fraction, dict) else fraction


def label_fractions(grid: dict, task: str) -> list[float]:
    """The label fractions at which a task's embeddings are probed, the largest first.

    They are those of the frozen regime and those of the trained regimes, so that a frozen and a
    fine-tuned backbone can be compared on the same labels.
    """
    own = {label_fraction(grid, task, regime) for regime in settings.TRAINED if grid[regime]}
    return sorted(own | set(grid["frozen"].get("label_fractions", [1.0])), reverse=True)


def saved_models(grid: dict, task: str) -> dict:
    """The parameter ``save_models`` of notebooks 03 and 04 if a task's models are needed; else {}.

    They are needed if the grid asks for models, or if it tests the task on another data set. If
    they are not, the parameter is left out: then jobs of older grid files do not run again.
    """
    needed = grid.get("save_models") or task in grid.get("external", {})
    return {"save_models": True} if needed else {}


def prepared(grid: dict) -> list[str]:
    """The tasks of the grid, and the data sets on which their models are tested."""
    others = [name for several in grid.get("external", {}).values() for name in several]
    return list(dict.fromkeys([*grid["tasks"], *others]))


def elsewhere(grid: dict, task: str) -> dict:
    """The settings of notebook 11 for a task. If ``others`` is empty, there is nothing to test."""
    aims = {name: value for name, value in grid["thresholds"].items() if name != "prevalence"}
    return aims | grid["elsewhere"] | {"others": grid.get("external", {}).get(task, [])}


def thresholds(grid: dict, task: str) -> dict:
    """The settings of notebook 12 for a task."""
    own = dict(grid["thresholds"])
    return own | {"prevalence": own.get("prevalence", {}).get(task, {})}


def primary(grid: dict) -> str:
    """The regime whose pairs of backbones are the primary family of tests (default: the first)."""
    return grid.get("primary") or next(r for r in settings.REGIMES if grid[r])


def redrawn_fractions(grid: dict, task: str) -> list[float]:
    """The label fractions at which a task's backbones are compared: see `runs.is_main`.

    At these fractions the head of a frozen backbone is trained again on redraws of its patients.
    """
    trained = {label_fraction(grid, task, r) for r in settings.TRAINED if grid[r]}
    return [share for share in label_fractions(grid, task) if share == 1 or share in trained]


def runs(grid: dict) -> list[Address]:
    """All runs that the grid asks for."""
    heads, addresses = grid["frozen"].get("heads", ()), []
    for task in grid["tasks"]:
        asked = heads, label_fractions(grid, task), seeds(grid, "frozen")
        repeated = grid["prepare"].get("repeats", 1) > 1 and cards.read(task).split == cards.FOLDS
        for backbone in grid["frozen"].get("backbones", ()):
            random_weights = backbones.get(backbone).pretraining == "random"
            addresses += frozen_runs(task, backbone, *asked, random_weights or repeated)
        addresses += [
            Address(task, backbone, regime, "linear", label_fraction(grid, task, regime), seed)
            for regime in settings.TRAINED
            for backbone in grid[regime].get("backbones", ())
            for seed in seeds(grid, regime)
        ]
    return addresses


def all_backbones(grid: dict) -> set[str]:
    """The names of the backbones of any regime."""
    return {name for regime in settings.REGIMES for name in grid[regime].get("backbones", ())}


def asks_for(grid: dict, path: Path) -> bool:
    """Whether a file belongs to a task and a backbone of the grid; ``path`` is below the results.

    Files that an earlier version of the grid has left behind do not.
    """
    task, backbone = belongs_to(path)
    return task in (None, *prepared(grid)) and backbone in (None, *all_backbones(grid))
