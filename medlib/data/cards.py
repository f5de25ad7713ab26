"""Task cards, ``data_manifests/<task>.yaml``: what a task is, its data, how they are split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from medlib.data.known import KNOWN
from medlib.environment import shipped
from medlib.errors import ManifestError, listed, unknown

FOLDER = shipped("data_manifests")
# The paper's tasks, in its order: clinical MRI, and public photographs and radiographs.
MRI = ("glioma_ucsf_t1", "glioma_ucsf_t1ce", "glioma_ucsf_flair")
PUBLIC = ("chest_xray", "fundus_amd", "dermoscopy")
# A task of the paper -> the task that stands in for it where it was not run.
STAND_INS = {
    "glioma_ucsf_t1": "glioma_t1",
    "glioma_ucsf_t1ce": "glioma_t1ce",
    "glioma_ucsf_flair": "glioma_flair",
    "fundus_amd": "fundus_pm",
}
# Nothing is converted: "3" is not 3, and true is not 1. YAML's lists become tuples.
GEOMETRIES = ("squash", "crop")  # how a picture becomes a square: see decoding.resize
GREY_VALUES = ("", "as_stored", "stretched", "window")
# Fields of a card for the checklist: a paper must report them, and no folder tells them.
FOR_A_PAPER = ("acquisition", "reference_standard", "annotators", "inclusion_dates", "ethics")
GreyValues = str | tuple[float, float]  # how stored values become 8-bit ones: see Card
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Strict(False)]
Groups = Annotated[tuple[Annotated[Texts, Field(min_length=2)], ...], Strict(False)]
Cuts = Annotated[tuple[float, ...], Strict(False)]
OFFICIAL, FOLDS, SITES = "official", "cross-validation", "leave-one-site-out"  # ways to split
# Columns that have another meaning in a manifest, or in predictions.
TAKEN = ("sample_id", "patient_id", "path", "label", "y_true", "split", "fold", "validates")
TAKEN += ("sha256", "mask", "reference", "mask_sha256", "reference_sha256", "rotation")


class Volumes(BaseModel):
    """How the volumes of a task become images: the card's ``volumes``.

    ``slices`` axial slices are taken. By ``choice`` these are the ``central`` ones, those around
    the slice with the ``largest_tumour`` (by its mask), or slices spread evenly over the whole head
    (``all_head``; with ``slices`` 0, every slice of it). With ``neighbours``, the slices below and
    above are the red and the blue channel. ``crop_margin`` crops to the box of the tumour's mask
    and this many millimetres around it. Grey values are scaled between two ``percentiles`` of the
    head. With ``resample``, a volume is resampled to its patient's reference volume. Without it, a
    volume that differs from the reference in shape or position is refused. ``affine`` is needed if
    a NIfTI file states no affine, or two that differ: it says which to trust, the ``sform`` or the
    ``qform``. With ``mask_affine: volume``, a mask has the affine of its volume, and its own is
    ignored.
    """

    model_config = STRICT

    choice: Literal["central", "largest_tumour", "all_head"] = "central"
    slices: int = 5
    neighbours: bool = False
    crop_margin: Annotated[float, Field(ge=0)] | None = None
    percentiles: Annotated[tuple[float, float], Strict(False)] = (0.5, 99.5)
    resample: bool = False
    affine: Literal["", "sform", "qform"] = ""
    mask_affine: Literal["own", "volume"] = "own"

    @field_validator("slices")
    @classmethod
    def _enough(cls, slices: int, info) -> int:
        if slices < (0 if info.data.get("choice") == "all_head" else 1):
            raise ValueError("not 1 or more (or 0 with `choice: all_head`)")
        return slices

    @field_validator("percentiles")
    @classmethod
    def _ascending(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ends[0] < ends[1] <= 100:
            raise ValueError("not two ascending percentages, as [0.5, 99.5]")
        return ends

    @property
    def needs_mask(self) -> bool:
        return self.choice == "largest_tumour" or self.crop_margin is not None


class Card(BaseModel):
    """What a task is. Fields without a default must stand in the card's YAML file.

    ``split`` is ``official`` (the data set has a test set; validation patients are drawn from its
    training set), ``cross-validation`` (``folds`` folds by patient: three or more, to train,
    validate and test) or ``leave-one-site-out`` (each site is tested once, by a model that no
    patient of it has trained or validated). For the latter, ``joined_sites`` maps a name to the
    sites that count as one, because they are too small: ``{others: [EZ, FG]}``. ``subgroups`` maps
    columns of the data set to their cut points, or to none where each value is a group:
    ``{body_part: [], age: [40, 65]}``. The manifest keeps these columns. ``ordered``: the classes
    are grades, lowest first, so that some mistakes are larger than others. ``optional_classes`` are
    missing in some distributions of the data. ``layout`` and ``layout_options`` say how
    :mod:`medlib.data.layouts` reads the data set's ``folder`` (or the first of ``other_folders``
    that exists); a task with its own CSV needs neither. ``grey_values`` says which values become
    black and white: ``as_stored``, 0 and the highest value that the bits allow; ``stretched``, the
    0.5th and 99.5th percentiles of each image; ``window``, those that a DICOM file states; or two
    numbers. Without it, 8-bit images stay as they are and deeper ones are stretched; a task that
    has both kinds is refused. ``volumes`` says how volumes become images (None: the samples are
    images). ``incomplete`` is ``stop``, or ``leave_out`` where some patients are known to lack a
    modality or a label. ``known_duplicates`` lists groups of sample ids that are one image on
    several sides of a split: those on the training side are dropped. ``not_duplicates`` lists pairs
    that look like one image and are not. ``external_for`` names the tasks whose finished models may
    be tested on this data set, and maps its classes to those of the task: ``{chest_xray: {healthy:
    normal}}``. A class without an entry keeps its name. The fields of :data:`FOR_A_PAPER` are
    texts; one that is missing is an open item of the checklist, not an error.
    """

    model_config = STRICT

    task: Text
    title: Text
    modality: Text
    classes: Texts
    licence: Text
    citation: Text
    source: Text
    split: Literal["cross-validation", "official", "leave-one-site-out"] = "cross-validation"
    folds: Annotated[int, Field(ge=3)] = 5
    ordered: bool = False
    folder: str = ""
    other_folders: Texts = ()
    layout: str = ""
    layout_options: dict = {}
    optional_classes: Texts = ()
    grey_values: GreyValues = ""
    volumes: Volumes | None = None
    incomplete: Literal["stop", "leave_out"] = "stop"
    known_duplicates: Groups = ()
    not_duplicates: Groups = ()
    subgroups: dict[str, Cuts] = {}
    joined_sites: dict[str, Texts] = {}
    external_for: dict[str, dict[str, str]] = {}
    notes: str = ""
    acquisition: str = ""
    reference_standard: str = ""
    annotators: str = ""
    inclusion_dates: str = ""
    ethics: str = ""

    @field_validator("subgroups")
    @classmethod
    def _columns(cls, subgroups: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        problems = [f"{name} has another meaning" for name in subgroups if name in TAKEN]
        problems += [
            f"the cut points of {name} do not ascend: {list(cuts)}"
            for name, cuts in subgroups.items()
            if list(cuts) != sorted(set(cuts))
        ]
        if problems:
            raise ValueError("but " + "; ".join(problems))
        return subgroups

    @field_validator("external_for")
    @classmethod
    def _own_classes(cls, tasks: dict[str, dict], info: ValidationInfo) -> dict[str, dict]:
        own = (*info.data.get("classes", ()), *info.data.get("optional_classes", ()))
        if named := sorted({name for names in tasks.values() for name in names if name not in own}):
            raise ValueError(f"but this data set has no class {', '.join(named)}")
        return tasks

    @field_validator("joined_sites")
    @classmethod
    def _once(cls, joined: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        sites = [site for several in joined.values() for site in several]
        if again := sorted({site for site in sites if sites.count(site) > 1}):
            raise ValueError(f"but it has {', '.join(again)} twice")
        return joined

    @field_validator("classes")
    @classmethod
    def _several(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < 2:
            raise ValueError("but at least two different classes are needed")
        return classes

    @field_validator("grey_values", mode="before")
    @classmethod
    def _a_rule(cls, rule: object) -> GreyValues:
        if rule in GREY_VALUES:
            return rule
        if isinstance(rule, list | tuple) and len(rule) == 2:
            low, high = rule
            if all(type(end) in (int, float) for end in rule) and low < high:
                return (float(low), float(high))
        raise ValueError(f"not one of {', '.join(GREY_VALUES[1:])}, or [lowest, highest]")

    @property
    def all_classes(self) -> tuple[str, ...]:
        return self.classes + self.optional_classes

    @property
    def further_columns(self) -> tuple[str, ...]:
        """The columns of ``subgroups`` that no manifest knows by itself."""
        return tuple(name for name in self.subgroups if name not in KNOWN)

    def classes_for(self, task: Card, names: Mapping[str, str] | None = None) -> dict[str, str]:
        """Map this card's classes to the classes of a task whose models are tested on its data.

        Returns {own class: class of the task}. ``names`` replaces ``external_for``. Classes that
        the task does not have are left out. Raises ManifestError if the card does not say that it
        may test that task and ``names`` is None, and if fewer than two of the task's classes
        remain.
        """
        if names is None and task.task not in self.external_for:
            raise ManifestError(
                f"{self.task} does not say that models of {task.task} may be tested on it: add "
                f"`external_for: {{{task.task}: {{}}}}` to its card, with the classes whose names "
                f"differ. {task.task} has {', '.join(task.all_classes)}; {self.task} has "
                f"{', '.join(self.all_classes)}."
            )
        names = self.external_for[task.task] if names is None else names
        found = {name: names.get(name, name) for name in self.all_classes}
        found = {name: to for name, to in found.items() if to in task.all_classes}
        if len(set(found.values())) < 2:
            raise ManifestError(
                f"Of the classes of {task.task} ({', '.join(task.all_classes)}), {self.task} has "
                f"{', '.join(set(found.values())) or 'none'}, and two are needed. Its own classes "
                f"are {', '.join(self.all_classes)}: map them in `external_for`."
            )
        return found

    def with_settings(
        self, folds: int = 0, volumes: dict | None = None, phantoms: bool = False
    ) -> Card:
        """A copy of the card with other ``folds`` (0: unchanged) and settings of ``volumes``.

        ``phantoms``: its title says that its images are phantoms, wherever it is printed.
        Raises ManifestError that lists all invalid settings, also for ``volumes`` of images.
        """
        if volumes and self.volumes is None:
            raise ManifestError(f"{self.task}: volumes is {volumes}, but its samples are images.")
        content = self.model_dump() | {"folds": folds or self.folds}
        if phantoms:
            content["title"] += " (phantoms)"
        if volumes:
            content["volumes"] |= volumes
        try:
            return Card(**content)
        except ValidationError as error:
            raise ManifestError(f"{self.task}:\n{listed(_problems(error))}") from None


# The names that a card knows, at its top and in its parts.
NAMES = {"": [*Card.model_fields][1:], "volumes": [*Volumes.model_fields]}  # [0] is task


# What pydantic expected, by the kind of the problem, in the words of a YAML file.
EXPECTED = {
    "string_type": "a text (write it in quotes)",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than_equal": "{ge} or more",
    "too_short": "{min_length} or more entries",
}


def _problems(error: ValidationError) -> list[str]:
    """A line for each problem; an unknown name or value is answered with the closest valid one."""
    lines = []
    for problem in error.errors():
        kind, given, facts = problem["type"], problem["input"], problem.get("ctx", {})
        *part, name = map(str, problem["loc"])
        part = ".".join(part)
        where = re.sub(r"\.(\d+)", r"[\1]", f"{part}.{name}".strip("."))
        if kind == "extra_forbidden":
            lines.append(unknown(f"{part} field".strip(), name, NAMES.get(part, ())))
        elif kind == "literal_error":
            lines.append(unknown(where, given, re.findall("'(.*?)'", facts["expected"])))
        elif kind in ("missing", "string_too_short"):
            lines.append(f"{where} is missing")
        elif kind in EXPECTED:
            lines.append(f"{where} is {given!r}, not {EXPECTED[kind].format(**facts)}")
        else:  # "value_error" was raised by a validator of ours: its message follows the value
            lines.append(f"{where} is {given!r}, {facts.get('error', problem['msg'])}")
    return lines


def tasks(folder: Path | str = FOLDER) -> list[str]:
    """Names of all tasks that have a card."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def of_paper(present: Collection[str], tasks: Iterable[str] = MRI + PUBLIC) -> list[str]:
    """The paper's tasks. If one is not present but its stand-in is, the stand-in replaces it."""
    stand_ins = {t: other for t, other in STAND_INS.items() if other in present}
    return [task if task in present else stand_ins.get(task, task) for task in tasks]


def in_order(tasks: Iterable[str]) -> list[str]:
    """The tasks without repetition: first those of :func:`of_paper`, then the others.

    Among the others, stand-ins come first, in a fixed order. The rest are sorted by name.
    """
    tasks = set(tasks)
    first = [*of_paper(tasks), *STAND_INS.values()]
    return sorted(tasks, key=lambda t: (first.index(t) if t in first else len(first), t))


def read(task: str, folder: Path | str = FOLDER) -> Card:
    """Read and check a task's card.

    A card may say ``like: <task>`` and then only what differs from that card. Raises ManifestError
    for an unknown task, and one that lists every missing, unknown and wrong field.
    """
    path = Path(folder) / f"{task}.yaml"
    if not path.is_file():
        way_out = f"A new task is a card and a CSV in {folder}."
        raise ManifestError(unknown("task", task, tasks(folder), way_out))
    content = _content(path)
    if (base := content.pop("like", None)) is not None:
        base_path = path.with_name(f"{base}.yaml")
        if base == task or not base_path.is_file():
            others = [name for name in tasks(folder) if name != task]
            raise ManifestError(f"{path}: {unknown('task', base, others, 'Correct `like`.')}")
        base_content = _content(base_path)
        if "like" in base_content:
            raise ManifestError(f"{path}: {base} is like another card itself; name that one.")
        content = base_content | content
    content = {name: value for name, value in content.items() if value is not None}
    try:
        return Card(**content | {"task": task})
    except ValidationError as error:
        problems = listed(_problems(error))
        raise ManifestError(f"{path}: fix the card:\n{problems}") from None


def used(manifest_path: Path | str) -> Card:
    """The card with which a task was prepared: notebook 01 leaves it beside the manifest."""
    path = Path(manifest_path)
    if path.with_suffix(".yaml").is_file():
        return read(path.stem, path.parent)
    way_out = f"run notebook 01_prepare_data with task={path.stem!r} first."
    raise ManifestError(f"There is no card of {path.stem!r} in {path.parent}: {way_out}")


class _Loader(yaml.SafeLoader):
    """Reads only true and false as booleans, as YAML 1.2 does. ``no`` and ``yes`` are texts."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOLEANS = re.compile("^(true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEANS, list("tTfF"))


def _content(path: Path) -> dict:
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise ManifestError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: a card is a YAML mapping of {', '.join(NAMES[''])}.")
    if "task" in content:
        raise ManifestError(f"{path}: the task is the file's name; take the field `task` out.")
    return {str(name): value for name, value in content.items()}


def files(task: str, folder: Path | str = FOLDER) -> list[Path]:
    """The files that say what a task is: its card, the card that it is like, and its manifest."""
    card = Path(folder) / f"{task}.yaml"
    base = _content(card).get("like")
    files = [card, *([card.with_name(f"{base}.yaml")] if base else []), card.with_suffix(".csv")]
    return [file for file in files if file.is_file()]


def text(card: Card) -> str:
    """A card as the YAML that reads back as the same card."""
    content = card.model_dump(mode="json", exclude={"task"})
    plain = {name: value for name, value in content.items() if value not in (None, [], {})}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def data_set_folder(card: Card, data: Path | str) -> Path | None:
    """Where the card's data set lies below ``data``; None where it is not there."""
    folders = [Path(data) / name for name in (card.folder, *card.other_folders) if name]
    return next((folder for folder in folders if folder.is_dir()), None)


def data_folder(data: str, results: Path | str) -> Path:
    """The folder that holds the data sets.

    ``data`` is ``"phantoms"`` (drawn into the results folder), ``"real"`` (the folder named by the
    environment variable ``MEDLIB_DATA``) or a folder. Raises FileNotFoundError if it is not there.
    """
    if data == "phantoms":
        return Path(results) / "phantoms"
    folder = os.environ.get("MEDLIB_DATA", "") if data == "real" else data
    if folder and Path(folder).is_dir():
        return Path(folder)
    unset = "The grid asks for real data, but MEDLIB_DATA is not set."
    problem = f"The data folder {folder!r} does not exist." if folder else unset
    ways = "(make … DATA=folder, or the environment variable MEDLIB_DATA), or use data='phantoms'."
    raise FileNotFoundError(f"{problem} Name the folder that holds the data sets {ways}")
