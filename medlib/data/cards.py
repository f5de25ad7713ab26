"""Task cards: what a task is, where its data come from, and how they are read and split.

A card is a file ``data_manifests/<task>.yaml``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from medlib.errors import ManifestError, listed, unknown
from medlib.grid import address

FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"
# The paper's tasks, in its order: clinical MRI, and public photographs and radiographs.
MRI = ("glioma_t1", "glioma_t1ce", "glioma_flair")
PUBLIC = ("chest_xray", "fundus_pm", "dermoscopy")


@dataclass(frozen=True)
class Volumes:
    """How the volumes of a task become images: the card's ``volumes``.

    ``slices`` axial slices are taken: the ``central`` ones, those around the slice with the
    ``largest_tumour`` (by its mask), or spread evenly over ``all_head``, the whole head (0: every
    slice of it). With ``neighbours``, a slice's red and blue are the slices below and above it.
    ``crop_margin``, in millimetres, crops to the box of the tumour's mask. Grey values are scaled
    between these ``percentiles`` of the head. With ``resample``, a volume is brought onto the grid
    of its patient's reference volume; without, another grid than that is refused.
    """

    slices: int = 5
    choice: str = "central"
    neighbours: bool = False
    crop_margin: float | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    resample: bool = False

    @property
    def needs_mask(self) -> bool:
        return self.choice == "largest_tumour" or self.crop_margin is not None


@dataclass(frozen=True)
class Card:
    """What a task is. Fields without a default must stand in the card's YAML file.

    ``split`` is ``official`` (the data set has a test set; validation patients are drawn from its
    training set) or ``cross-validation`` (``folds`` folds by patient). ``ordered``: the classes are
    grades, lowest first, so that some mistakes are larger than others. ``optional_classes`` are
    classes that some distributions of the data lack. ``layout`` and ``layout_options`` say how
    :mod:`medlib.layouts` reads the data set's ``folder`` (or the first of ``other_folders`` that
    is there); a task with its own CSV needs neither. ``volumes`` says how volumes become images
    (None: images, not volumes). ``incomplete`` is ``stop``, or ``leave_out`` where it is known that
    some patients lack a modality or a label. ``known_duplicates`` lists groups of sample ids that
    are one image on several sides of a split: those on the training side are dropped.
    ``not_duplicates`` lists pairs that look like one image and are not.
    """

    task: str
    title: str
    modality: str
    classes: tuple[str, ...]
    licence: str
    citation: str
    source: str
    split: str = "cross-validation"
    folds: int = 5
    ordered: bool = False
    folder: str = ""
    other_folders: tuple[str, ...] = ()
    layout: str = ""
    layout_options: dict = field(default_factory=dict)
    optional_classes: tuple[str, ...] = ()
    volumes: Volumes | None = None
    incomplete: str = "stop"
    known_duplicates: tuple[tuple[str, ...], ...] = ()
    not_duplicates: tuple[tuple[str, ...], ...] = ()
    notes: str = ""

    @property
    def all_classes(self) -> tuple[str, ...]:
        return self.classes + self.optional_classes

    def with_settings(self, folds: int = 0, volumes: dict | None = None) -> Card:
        """The card with as many ``folds`` (0: its own) and these settings of its ``volumes``.

        Raises ManifestError for settings that cannot be, and for a task of images that has none.
        """
        card = replace(self, folds=folds or self.folds)
        if not volumes:
            return card
        if self.volumes is None:
            raise ManifestError(f"{self.task}: volumes is {volumes}, but its samples are images.")
        return replace(card, volumes=volumes_of(asdict(self.volumes) | volumes))


def tasks(folder: Path | str = FOLDER) -> list[str]:
    """Names of all tasks that have a card."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def in_order(tasks: Iterable[str]) -> list[str]:
    """Each task once: those of the paper in its order, then others by name."""
    first = MRI + PUBLIC
    return sorted(set(tasks), key=lambda t: (first.index(t) if t in first else len(first), t))


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
    problems = _problems(content)
    if problems:
        raise ManifestError(f"{path}: fix the card:\n{listed(problems)}")
    for name in TEXTS:
        content[name] = tuple(content.get(name, ()))
    for name in GROUPS:
        content[name] = tuple(map(tuple, content.get(name, ())))
    if "volumes" in content:
        content["volumes"] = volumes_of(content["volumes"])
    return Card(task=task, **content)


def used(results: Path | str, task: str) -> Card:
    """The card with which a task was prepared, as notebook 01 left it beside the manifest."""
    folder = address.manifest(results, task).parent
    if not (folder / f"{task}.yaml").is_file():
        raise ManifestError(
            f"There is no card of {task!r} in {folder}: run notebook 01_prepare_data with "
            f"task={task!r} first."
        )
    return read(task, folder)


TEXTS = ("classes", "optional_classes", "other_folders")
GROUPS = ("known_duplicates", "not_duplicates")
VALUES = {  # fields that have one of a few values, and those
    "split": ("cross-validation", "official"),
    "incomplete": ("stop", "leave_out"),
}


def _content(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ManifestError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        known = ", ".join(f.name for f in fields(Card) if f.name != "task")
        raise ManifestError(f"{path}: a card is a YAML mapping of {known}.")
    return content


def _problems(content: dict) -> list[str]:
    known = [f.name for f in fields(Card) if f.name != "task"]
    required = ("title", "modality", "classes", "licence", "citation", "source")
    problems = [f"{name} is missing" for name in required if not content.get(name)]
    problems += [unknown("field", name, known) for name in content if name not in known]
    for name in TEXTS:
        values = content.get(name, [])
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            problems.append(f"{name} must be a list of texts, not {values!r}")
    for name in GROUPS:
        groups = content.get(name, [])
        if not isinstance(groups, list) or not all(
            isinstance(g, list) and len(g) > 1 and all(isinstance(v, str) for v in g)
            for g in groups
        ):
            problems.append(f"{name} must be a list of lists of sample ids, not {groups!r}")
    if isinstance(content.get("classes"), list) and len(set(map(str, content["classes"]))) < 2:
        problems.append("classes needs at least two entries")
    for name, values in VALUES.items():
        if content.get(name, values[0]) not in values:
            problems.append(f"{name} is {content[name]!r}, not {' or '.join(map(repr, values))}")
    folds = content.get("folds", 5)
    if not isinstance(folds, int) or folds < 3:
        problems.append("folds must be a whole number of 3 or more (train, val and test)")
    if not isinstance(content.get("ordered", False), bool):
        problems.append(f"ordered is {content['ordered']!r}, not true or false")
    if not isinstance(content.get("layout_options", {}), dict):
        problems.append(f"layout_options must be a mapping, not {content['layout_options']!r}")
    try:
        volumes_of(content.get("volumes", {}))
    except ManifestError as error:
        problems.append(str(error))
    return problems


CHOICES = ("central", "largest_tumour", "all_head")


def volumes_of(settings: dict) -> Volumes:
    """The settings of a card's ``volumes``, checked; those that are not given have defaults.

    Raises ManifestError that lists every unknown setting and every value that cannot be.
    """
    if not isinstance(settings, dict):
        raise ManifestError(f"volumes must be a mapping, as {{slices: 5}}, not {settings!r}")
    known = [f.name for f in fields(Volumes)]
    problems = [unknown("setting", name, known) for name in settings if name not in known]
    made = Volumes(**{name: value for name, value in settings.items() if name in known})
    if made.choice not in CHOICES:
        problems.append(unknown("choice", made.choice, CHOICES))
    if type(made.slices) is not int or made.slices < (made.choice != "all_head"):
        problems.append(f"slices is {made.slices!r}, not a whole number from 1 on")
    for name in ("neighbours", "resample"):
        if not isinstance(getattr(made, name), bool):
            problems.append(f"{name} is {getattr(made, name)!r}, not true or false")
    margin = made.crop_margin
    if margin is not None and not (_is_number(margin) and margin >= 0):
        problems.append(f"crop_margin is {margin!r}, not a number of millimetres")
    ends = made.percentiles
    if not (isinstance(ends, list | tuple) and len(ends) == 2 and all(map(_is_number, ends))
            and 0 <= ends[0] < ends[1] <= 100):  # fmt: skip
        problems.append(f"percentiles is {ends!r}, not two numbers as [0.5, 99.5]")
    if problems:
        raise ManifestError("volumes: " + "; ".join(problems))
    return replace(made, percentiles=tuple(map(float, ends)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def files(task: str, folder: Path | str = FOLDER) -> list[Path]:
    """The files that say what a task is: its card, the card that it is like, and its manifest."""
    card = Path(folder) / f"{task}.yaml"
    base = _content(card).get("like")
    files = [card, *([card.with_name(f"{base}.yaml")] if base else []), card.with_suffix(".csv")]
    return [file for file in files if file.is_file()]


def text(card: Card) -> str:
    """A card as the YAML that reads back as the same card."""
    content = {f.name: getattr(card, f.name) for f in fields(Card) if f.name != "task"}
    if card.volumes is not None:
        content["volumes"] = asdict(card.volumes)
    plain = json.loads(json.dumps({n: v for n, v in content.items() if v not in (None, (), {})}))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def data_set_folder(card: Card, data: Path | str) -> Path | None:
    """Where the card's data set lies below ``data``; None where it is not there."""
    folders = [Path(data) / name for name in (card.folder, *card.other_folders) if name]
    return next((folder for folder in folders if folder.is_dir()), None)


def data_folder(data: str, results: Path | str) -> Path:
    """The folder that holds the data sets.

    ``data`` is ``"phantoms"`` (drawn into the results folder), ``"real"`` (the folder named by
    the environment variable ``MEDLIB_DATA``) or a folder.

    Raises FileNotFoundError when the folder is not there, naming it and the ways out.
    """
    if data == "phantoms":
        return Path(results) / "phantoms"
    folder = os.environ.get("MEDLIB_DATA", "") if data == "real" else data
    if not folder:
        raise FileNotFoundError(
            "The grid asks for real data, but MEDLIB_DATA is not set. Name the folder that holds "
            "the data sets (make … DATA=folder, or the environment variable MEDLIB_DATA), or use "
            "data='phantoms'."
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"The data folder {folder!r} does not exist. Give the folder that holds the data sets "
            "(make … DATA=folder, or the environment variable MEDLIB_DATA), or use "
            "data='phantoms'."
        )
    return Path(folder)
