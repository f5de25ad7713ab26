"""Checks, before the first job, that the data sets and weights of a grid are there."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from medlib.core import backbones, networks, settings
from medlib.data import cards
from medlib.errors import listed
from medlib.grid import gridfile
from medlib.grid.address import belongs_to
from medlib.grid.plan import Job
from medlib.zoo import hub


def check(grid: dict, results: Path, jobs: Iterable[Job]) -> None:
    """Fetch the weights that ``jobs`` need, and check weights and data sets before the jobs run.

    The jobs then need no network. Raises ValueError that lists everything that is missing, damaged
    or does not fit.
    """
    of = {"prepare": set(), "extract": set(), "finetune": set()}
    for job in jobs:
        of.get(job.rule, set()).update(_named(job, results))
    names = sorted({backbone for _, backbone in of["extract"] | of["finetune"] if backbone})
    tasks = sorted({task for task, _ in of["prepare"] if task})
    problems = _of_data(grid, tasks) if tasks and grid["data"] != "phantoms" else []
    problems += fetch(names) or _unfit(grid, names)
    if problems:
        raise ValueError(f"The grid cannot run:\n{listed(problems)}")


def _named(job: Job, results: Path) -> set[tuple[str | None, str | None]]:
    """The tasks and backbones that a job's outputs belong to."""
    paths = [Path(output) for output in job.outputs]
    return {belongs_to(p.relative_to(results)) for p in paths if p.is_relative_to(results)}


def fetch(names: Iterable[str], folder: Path | None = None) -> list[str]:
    """Fetch the weights of backbones with :func:`hub.fetch`. Returns a message for each problem."""
    rows = [row for row in map(backbones.get, names) if row.pretraining != "random"]
    problems = []
    for number, row in enumerate(rows, start=1):
        try:
            hub.fetch(row, folder)
        except FileNotFoundError as error:
            problems.append(str(error))
            answered = isinstance(error.__cause__, HfHubHTTPError | None)
            if not answered and rows[number:]:  # then trying the others tells nothing new
                others = ", ".join(other.name for other in rows[number:])
                return [*problems, f"not looked for on the hub after that: {others}"]
        except (ValueError, OSError) as error:
            problems.append(f"{row.name}: {error}")
    return problems


def _unfit(grid: dict, names: list[str]) -> list[str]:
    """A message for each backbone that cannot be built for an image size that the grid uses."""
    problems = []
    for name in names:
        regimes = [r for r in settings.REGIMES if name in grid[r].get("backbones", ())]
        for size in sorted({gridfile.image_size(grid, regime, name) for regime in regimes}):
            try:
                networks.build(name, size)
            except ValueError as error:
                problems.append(str(error))
    return problems


def _of_data(grid: dict, tasks: list[str]) -> list[str]:
    """A message for each task whose data set is not there."""
    try:
        data = cards.data_folder(grid["data"], "")
    except FileNotFoundError as error:
        return [str(error)]
    return [
        f"{card.task}: there is no folder {card.folder!r} in {data}; its source: {card.source}"
        for card in map(cards.read, tasks)
        if card.layout and cards.data_set_folder(card, data) is None
    ]
