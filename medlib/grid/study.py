"""A grid from one command: run it, go on with it, watch it, and see what failed.

    python -m medlib.grid.study run GRID [--only-failed] [snakemake's own options …]
    python -m medlib.grid.study figures GRID     draw again, from the runs that are there
    python -m medlib.grid.study plan GRID        what would run, and why
    python -m medlib.grid.study status GRID      what is done, failed, stale and missing
    python -m medlib.grid.study report GRID      Snakemake's own report of the jobs

Snakemake runs the jobs. What is added here: a run of a grid that is going on already is refused,
and one that was killed is gone on with; progress is a line now and then; and at the end stand the
cells that failed, why, and how to run just those again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import logging
import os
import re
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from medlib.files import read_json
from medlib.grid import gridfile, page, records
from medlib.grid.jobs import CONTROLLER, failures, jobs_per_gpu, visible_gpus
from medlib.grid.watch import TARGET, LogHandler, Watch, describe, duration, progress_words, why

LOCK, PROGRESS = "controller.lock", "progress.json"  # in results/<grid>/
RETRIES = 2  # of what is transient: see `execute`
DRAWING = ("collect", "compare", "costs", "claims", "look", "write_report")  # rules


class StudyError(RuntimeError):
    """A grid that cannot be run now."""


@contextlib.contextmanager
def alone(grid: str) -> Iterator[Path]:
    """Be the one run of this grid; yields the file that is locked.

    The lock is the operating system's own: it ends with the process that holds it, however that
    ends, so none is ever left behind. Raises StudyError, naming the process that holds it.
    """
    path = Path("results") / grid / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        for patience in (True, True, False):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise StudyError(
                        f"Grid '{grid}' is being run already, by {_holder(path)}. Watch it with: "
                        f"make status GRID={grid}"
                    ) from None
                time.sleep(1)  # the jobs of a run that was killed may be noticing it just now
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n")
        file.flush()
        yield path.resolve()


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() or "another process"


def running(grid: str) -> str:
    """Who runs this grid at the moment; "" for nobody."""
    path = Path("results") / grid / LOCK
    if not path.is_file():
        return ""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(path)
    return ""


def snakemake(listener: Callable[[logging.LogRecord], object], *arguments: str) -> int:
    """Snakemake's own command line, in this process; returns its exit status."""
    from snakemake import cli
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    LogHandler.listener = staticmethod(listener)
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_medlib", sys.modules[__name__])
    gc.disable()  # nothing of a growing graph is garbage; when jobs start, the Snakefile enables it
    try:
        cli.main([*arguments, "--logger", "medlib"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    finally:
        gc.enable()
    return 0


def options(grid: str, *config: str) -> list[str]:
    # Weights that were copied or restored are newer, and the same: compare large files as well.
    same = ["--max-checksum-file-size", "100GB"]
    return ["--config", f"grid={grid}", *config, "--nolock", "--rerun-incomplete", *same]


def lost(asked: dict, results: Path) -> list[str]:
    """Files that promise runs which are not there: a job that makes many runs has to run again."""
    done = set(records.done(asked, results))
    missing = [run for run in gridfile.runs(asked, results) if run not in done]
    return sorted({str(file) for file in map(records.last_output, missing) if file.is_file()})


def forced(files: list[str]) -> list[str]:
    return ["--forcerun", *files] if files else []


def failed_jobs(grid: dict, results: Path) -> dict[str, dict]:
    """The failures of the jobs of a grid: what a job writes first -> its record."""
    return {
        str(output): record
        for output, record in failures(results, below=True).items()
        if gridfile.asks_for(grid, output.relative_to(results))
    }


def run(grid: str, arguments: list[str], only_failed: bool = False, partial: bool = False) -> int:
    """Run what is not done of a grid; returns 0 where all that was asked for is done.

    ``arguments`` are Snakemake's own; ``partial`` leaves out, of figures and tables, the runs that
    are not there. The grid is called complete only if, after all, no job is left. Raises StudyError
    where it is being run already.
    """
    asked, results = gridfile.read(f"grids/{grid}.yaml"), Path("results") / grid
    begun = time.monotonic()
    with alone(grid) as lock:
        if only_failed:
            known = failed_jobs(asked, results)
            if not known:
                print(f"Nothing of grid '{grid}' has failed.")
                return 0
            arguments = [*sorted({r["outputs"][0] for r in known.values()}), *arguments]
        elif not partial:
            arguments = [*arguments, *forced(lost(asked, results))]
        local = not any(a.split("=")[0] in ("--profile", "--executor", "-e") for a in arguments)
        if local:
            # Jobs that outlive a killed controller are a cluster's way, not a machine's.
            os.environ[CONTROLLER] = str(lock)
            arguments = ["--retries", str(RETRIES), *arguments, "--resources", *_machine()]
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        watch, over = Watch(results / PROGRESS), threading.Event()
        alive = threading.Thread(target=_tick, args=(watch, over), daemon=True)
        alive.start()
        config = ["partial=true"] * partial
        status = snakemake(watch, *options(grid, *config), "--keep-going", *arguments)
        over.set()
        (results / PROGRESS).unlink(missing_ok=True)
        if status:
            print(_failures(grid, watch))
            with contextlib.suppress(ValueError, OSError):
                path = page.write(f"grids/{grid}.yaml", results, figures_of(grid), stopped=True)
                print(f"What there is so far: {path}")
        elif not partial:
            print(ending(grid, len(planned(grid)), watch.total, time.monotonic() - begun))
    return status


def figures_of(grid: str) -> Path:
    return Path("figures") / grid


def ending(grid: str, left: int, ran: int, seconds: float) -> str:
    """What is said of a grid of which nothing has failed and so many jobs are left."""
    if left:
        more = f"{left} jobs of the grid are left: make study GRID={grid}"
        return f"All {ran} jobs that were asked for are done. {more}"
    where = f"All its figures and tables on one page: {figures_of(grid) / page.PAGE}"
    if not ran:
        return f"Nothing to be done: grid '{grid}' is complete. {where}"
    return f"Grid '{grid}' is complete, after {duration(seconds)}. {where}"


def draw(grid: str, arguments: list[str]) -> int:
    """Draw all figures and tables again, from the runs that are there; no model is run."""
    asked, results = gridfile.read(f"grids/{grid}.yaml"), Path("results") / grid
    n, of = len(records.done(asked, results)), len(gridfile.runs(asked, results))
    if not n:
        raise StudyError(f"No run of grid '{grid}' is complete yet: make study GRID={grid}")
    print(f"Drawing figures/{grid} from {n} of {of} runs in results/{grid}.")
    rules = ["--allowed-rules", TARGET, "summarise", *DRAWING, "--forcerun", *DRAWING]
    status = run(grid, [*rules, *arguments], partial=True)
    if not status:
        path = figures_of(grid) / page.page_name(asked, results)
        print(f"All figures and tables of these runs on one page: {path}")
    return status


def _tick(watch: Watch, over: threading.Event) -> None:
    while not over.wait(5):
        watch.show()


def _machine() -> list[str]:
    """What this machine has of what jobs declare: memory in MB, and GPUs, if any."""
    import psutil

    found = [f"mem_mb={psutil.virtual_memory().total // 2**20}"]
    if devices := visible_gpus():
        found.append(f"gpu={len(devices) * jobs_per_gpu()}")
    return found


def _failures(grid: str, watch: Watch) -> str:
    """The table of what failed, and how to go on."""
    lines = []
    for job in watch.failed.values():
        where, line, notebook = why(job)
        lines += [f"- {job['words']}", f"    {where + ': ' if where else ''}{line}"]
        lines += [f"    the executed notebook: {notebook}"] * bool(notebook)
    if not lines:
        return f"Grid '{grid}' stopped before it was done."
    waiting = watch.total - watch.done - len(watch.failed)
    head = f"{len(watch.failed)} of {watch.total} jobs failed"
    head += f"; {waiting} that need them, or were left, were not run" * (waiting > 0)
    again = f"Just these again: make study GRID={grid} ONLY=failed"
    there = f"Figures and tables of what is there: make figures GRID={grid}"
    return "\n".join([f"{head}:", *lines, again, there])


NOT_MADE, FOLLOWS = "not made yet", "follows from the jobs above"
# Snakemake's reasons -> ours; the first that fits. What names a file is kept with its name.
REASONS = (
    (r"Incomplete output files", "was interrupted"),
    (r"Updated input files: (.+)", r"changed: \1"),
    (r"Params have changed", "its settings have changed"),
    (r"Set of input files has changed", "its set of inputs has changed"),
    (r"Code has changed", "its rule in the Snakefile has changed"),
    (r"Missing output files", NOT_MADE),
    (r"Input files updated by another job", FOLLOWS),
    (r"Forced execution", "runs that it made are missing"),
)


def reason(words: str) -> str:
    """Snakemake's reason for a job, in fewer words."""
    parts = words.split("; ")
    for pattern, ours in REASONS:
        for part in parts:
            if found := re.match(pattern, part):
                return found.expand(ours)
    return words


def planned(grid: str, arguments: list[str] | tuple = ()) -> list[dict]:
    """The jobs that would run now: rule, words, outputs, reason. Raises StudyError.

    They are read from Snakemake's graph as soon as it stands. A dry run would go on to schedule and
    to print every job, which takes as long again.
    """
    from snakemake.executors import dryrun
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

    jobs, errors = [], []

    class Planner(dryrun.Executor):
        def __init__(self, workflow, logger):
            super().__init__(workflow, logger)
            needed = sorted(self.dag.needrun_jobs(), key=lambda job: (job.rule.lineno, *job.output))
            jobs.extend({
                "rule": job.rule.name, "words": describe(job.rule.name, job.wildcards_dict),
                "outputs": list(map(str, job.output)), "reason": reason(str(self.dag.reason(job))),
            } for job in needed if job.rule.name != TARGET)  # fmt: skip

    def listen(record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())

    registry = ExecutorPluginRegistry()
    registry.plugins.pop("plan", None)  # an earlier call's
    plugin = SimpleNamespace(Executor=Planner, common_settings=dryrun.common_settings)
    registry.register_plugin("plan", plugin)
    # Quiet, a dry run ends when its graph stands.
    quietly = ("--executor", "plan", "--quiet", "progress", "rules", "--cores", "1")
    again = lost(gridfile.read(f"grids/{grid}.yaml"), Path("results") / grid)
    if snakemake(listen, *options(grid), *quietly, *arguments, *forced(again)):
        raise StudyError("\n".join(errors))
    return jobs


def plan(grid: str, arguments: list[str]) -> int:
    """Print what would run and why, grouped."""
    jobs = planned(grid, arguments)
    if not jobs:
        print(f"Nothing would run: grid '{grid}' is complete.")
        return 0
    groups: dict = defaultdict(list)
    for job in jobs:
        groups[job["rule"], job["reason"]].append(job["words"])
    width = max(len(rule) for rule, _ in groups)
    print(f"{len(jobs)} jobs would run:")
    for (rule, because), words in groups.items():
        few = len(words) <= 3 and because not in (NOT_MADE, FOLLOWS)
        names = f" ({', '.join(words)})" if few else ""
        print(f"{len(words):6d} × {rule:{width}s}  {because}{names}")
    return 0


def show_status(grid: str) -> int:
    """Print what is done, failed, stale and missing, and what is running."""
    asked, results = gridfile.read(f"grids/{grid}.yaml"), Path("results") / grid
    if holder := running(grid):
        print(f"Being run by {holder}.")
        with contextlib.suppress(OSError, ValueError):
            now = read_json(results / PROGRESS)
            print(progress_words(now))
            for job in now["running"]:
                print(f"    {job['job']}: {job['writes']}")
    stale = {path for job in planned(grid) for path in job["outputs"]}
    states = records.states(asked, results, stale)
    print(states.to_string(index=False))
    total = states[list(records.STATES)].sum()
    print(", ".join(f"{total[state]} {state}" for state in records.STATES))
    for output, record in failed_jobs(asked, results).items():
        print(f"failed: {record['line']}\n    of: {output}")
    return 0


def write_page(grid: str, arguments: list[str]) -> int:
    """Snakemake's own report."""
    gridfile.read(f"grids/{grid}.yaml")
    path = f"figures/{grid}/snakemake_report.html"
    status = snakemake(Watch(), *options(grid), "--report", path, *arguments)
    if not status:
        print(f"What ran, when and from what: {path}")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "figures", "plan", "status", "report"))
    parser.add_argument("grid", help="a file in grids/, without .yaml")
    parser.add_argument("--only-failed", action="store_true", help="run what has failed, no more")
    known, rest = parser.parse_known_args()
    try:
        if known.command == "run":
            return run(known.grid, rest, known.only_failed)
        if known.command == "figures":
            return draw(known.grid, rest)
        if known.command == "plan":
            return plan(known.grid, rest)
        if known.command == "status":
            return show_status(known.grid)
        return write_page(known.grid, rest)
    except (StudyError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
