"""The controller of a grid: runs it, continues it, and says what is running and what failed.

    python -m medlib.grid.study run GRID [--only-failed] [snakemake's own options …]
    python -m medlib.grid.study figures GRID     draw again, from the runs that are there
    python -m medlib.grid.study plan GRID        what would run, and why
    python -m medlib.grid.study status GRID      what is done, failed, stale and missing
    python -m medlib.grid.study report GRID      Snakemake's own report of the jobs

Snakemake runs the jobs. This module adds: a grid is run only once at a time, a killed run is
continued, progress is printed, and the end lists what failed, why, and how to run only that again.
"""

import argparse
import contextlib
import fcntl
import gc
import itertools
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from medlib.core import settings
from medlib.files import read_json
from medlib.grid import gridfile, jobs, page, states
from medlib.grid.watch import TARGET, LogHandler, Watch, describe, duration, progress_words, why

RETRIES = 2  # of a failure that may not happen again: see `jobs.TRANSIENT`
DRAWING = ("collect", "compare", "costs", "claims", "look", "write_report")  # rules


class StudyError(RuntimeError):
    """A grid that cannot be run now."""


class Study:
    """A grid, read from its file, and the folders of its results and figures."""

    def __init__(self, name: str):
        self.name, self.file = name, f"grids/{name}.yaml"
        self.results, self.figures = Path("results", name), Path("figures", name)
        self.grid = gridfile.read(self.file)
        self.lock, self.progress = self.results / "controller.lock", self.results / "progress.json"


@contextlib.contextmanager
def alone(study: Study) -> Iterator[None]:
    """Hold the lock of this study. Raises StudyError that names the process which holds it.

    The operating system releases it when the process ends, however it ends.
    """
    study.results.mkdir(parents=True, exist_ok=True)
    with open(study.lock, "a+") as file:
        for _ in range(2):
            if not jobs.take(file):
                time.sleep(1)  # jobs of a killed run may be ending just now
        if not jobs.take(file):
            said = f"Grid '{study.name}' is being run already, by {_holder(study)}."
            raise StudyError(f"{said} Watch it with: make status GRID={study.name}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n")
        file.flush()
        yield


def _holder(study: Study) -> str:
    return study.lock.read_text(encoding="utf-8").strip() or "another process"


def running(study: Study) -> str:
    """Which process runs this study at the moment; "" for none."""
    if not study.lock.is_file():
        return ""
    with open(study.lock) as file:
        return "" if jobs.take(file, fcntl.LOCK_SH) else _holder(study)


def snakemake(listener: Callable[[logging.LogRecord], object], *arguments: str) -> int:
    """Snakemake's own command line, in this process; returns its exit status."""
    from snakemake import cli
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    LogHandler.listener = staticmethod(listener)
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_medlib", sys.modules[__name__])
    gc.disable()  # a growing graph holds no garbage; the Snakefile enables it when jobs start
    try:
        cli.main([*arguments, "--logger", "medlib"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    finally:
        gc.enable()
    return 0


def options(study: Study, *config: str) -> list[str]:
    # Copied or restored weights are newer, but the same: large files are compared by content, too.
    same = ["--max-checksum-file-size", "100GB"]
    return ["--config", f"grid={study.name}", *config, "--nolock", "--rerun-incomplete", *same]


def forced(study: Study) -> list[str]:
    """The option that repeats jobs whose last output is there, but one of their runs is not."""
    missing = set(gridfile.runs(study.grid)) - set(states.done(study.grid, study.results))
    promised = {run.promised(study.results) for run in missing}
    lost = sorted(str(file) for file in promised if file.is_file())
    return ["--forcerun", *lost] if lost else []


def failed_jobs(study: Study) -> dict[str, dict]:
    """The jobs that failed: what a job writes first -> the record of its failure."""
    return {
        str(output): record
        for output, record in jobs.failures(study.results).items()
        if gridfile.asks_for(study.grid, output.relative_to(study.results))
    }


def run(study: Study, arguments: list, only_failed: bool = False, partial: bool = False) -> int:
    """Run the jobs that are not done; returns 0 if all that was asked for is done.

    ``arguments`` are Snakemake's own. ``partial`` draws figures and tables without the missing
    runs. Raises StudyError if another process runs it.
    """
    begun = time.monotonic()
    with alone(study):
        if only_failed:
            failed = {record["outputs"][0] for record in failed_jobs(study).values()}
            if not failed:
                print(f"Nothing of grid '{study.name}' has failed.")
                return 0
            arguments = [*sorted(failed), *arguments]
        elif not partial:
            arguments = [*arguments, *forced(study)]
        if not any(a.split("=")[0] in ("--profile", "--executor", "-e") for a in arguments):
            # On this machine, jobs end with their controller; on a cluster they go on.
            os.environ[jobs.CONTROLLER] = str(study.lock.resolve())
            arguments = ["--retries", str(RETRIES), *arguments, "--resources", *_machine()]
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        watch, over = Watch(study.progress), threading.Event()
        threading.Thread(target=_tick, args=(watch, over), daemon=True).start()
        config = ["partial=true"] * partial
        status = snakemake(watch, *options(study, *config), "--keep-going", *arguments)
        over.set()
        study.progress.unlink(missing_ok=True)
        if status:
            print(failures(study.name, watch))
            with contextlib.suppress(ValueError, OSError):
                path = page.write(study.file, study.results, study.figures, stopped=True)
                print(f"What there is so far: {path}")
        elif not partial:
            print(ending(study, len(planned(study)), watch.total, time.monotonic() - begun))
    return status


def ending(study: Study, left: int, ran: int, seconds: float) -> str:
    """What is printed if nothing has failed; the grid is complete only if no job is left."""
    if left:
        more = f"{left} jobs of the grid are left: make study GRID={study.name}"
        return f"All {ran} jobs that were asked for are done. {more}"
    where = f"All its figures and tables on one page: {study.figures / page.PAGE}"
    if not ran:
        return f"Nothing to be done: grid '{study.name}' is complete. {where}"
    return f"Grid '{study.name}' is complete, after {duration(seconds)}. {where}"


def draw(study: Study, arguments: list[str]) -> int:
    """Draw all figures and tables again, from the runs that are there; no model is run."""
    name, results = study.name, study.results
    n, of = len(states.done(study.grid, results)), len(gridfile.runs(study.grid))
    if not n:
        raise StudyError(f"No run of grid '{name}' is complete yet: make study GRID={name}")
    print(f"Drawing {study.figures} from {n} of {of} runs in {results}.")
    rules = ["--allowed-rules", TARGET, "summarise", *DRAWING, "--forcerun", *DRAWING]
    status = run(study, [*rules, *arguments], partial=True)
    if not status:
        path = study.figures / page.page_name(study.grid, results)
        print(f"All figures and tables of these runs on one page: {path}")
    return status


def _tick(watch: Watch, over: threading.Event) -> None:
    while not over.wait(5):
        watch.show()


def _machine() -> list[str]:
    """What this machine has for its jobs: memory in MB, and GPUs, if any."""
    import psutil

    memory, devices = psutil.virtual_memory().total // 2**20, jobs.visible_gpus()
    gpus = [f"gpu={len(devices) * jobs.jobs_per_gpu()}"] if devices else []
    return [f"mem_mb={memory}", *gpus]


def failures(name: str, watch: Watch) -> str:
    """What is printed of a grid's failed jobs, and how to go on."""
    lines = []
    for job in watch.failed.values():
        where, line, notebook = why(job)
        lines += [f"- {job['words']}", f"    {where + ': ' if where else ''}{line}"]
        lines += [f"    the executed notebook: {notebook}"] * bool(notebook)
    if not lines:
        return f"Grid '{name}' stopped before it was done."
    waiting = watch.total - watch.done - len(watch.failed)
    head = f"{len(watch.failed)} of {watch.total} jobs failed"
    head += f"; {waiting} others were not run, most because they need these" * (waiting > 0)
    again = f"Just these again: make study GRID={name} ONLY=failed"
    there = f"Figures and tables of what is there: make figures GRID={name}"
    return "\n".join([f"{head}:", *lines, again, there])


NOT_MADE, FOLLOWS = "not made yet", "follows from the jobs above"
# Snakemake's reasons -> ours. The first that fits is printed.
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
    for (pattern, ours), part in itertools.product(REASONS, words.split("; ")):
        if match := re.match(pattern, part):
            return match.expand(ours)
    return words


def planned(study: Study, arguments: list[str] | tuple = ()) -> pd.DataFrame:
    """The jobs that would run now: rule, words, outputs (a list), reason. Raises StudyError.

    They are read from Snakemake's graph as soon as it is built. A dry run would also schedule and
    print every job, which takes as long again.
    """
    from snakemake.executors import dryrun
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

    graph_jobs, errors = [], []

    class Planner(dryrun.Executor):
        def __init__(self, workflow, logger):
            super().__init__(workflow, logger)
            graph_jobs.extend((job, str(self.dag.reason(job))) for job in self.dag.needrun_jobs())

    def listen(record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())

    registry = ExecutorPluginRegistry()
    registry.plugins.pop("plan", None)  # an earlier call's
    plugin = SimpleNamespace(Executor=Planner, common_settings=dryrun.common_settings)
    registry.register_plugin("plan", plugin)
    # With --quiet, a dry run ends when its graph is built.
    quietly = ("--executor", "plan", "--quiet", "progress", "rules", "--cores", "1")
    if snakemake(listen, *options(study), *quietly, *arguments, *forced(study)):
        raise StudyError("\n".join(errors))
    graph_jobs.sort(key=lambda pair: (pair[0].rule.lineno, *pair[0].output))
    rows = []
    for job, because in graph_jobs:
        words = describe(job.rule.name, job.wildcards_dict)
        rows.append((job.rule.name, words, list(map(str, job.output)), reason(because)))
    table = pd.DataFrame(rows, columns=["rule", "words", "outputs", "reason"])
    return table[table["rule"] != TARGET]


def plan(study: Study, arguments: list[str]) -> int:
    """Print what would run and why, grouped."""
    would_run = planned(study, arguments)
    if would_run.empty:
        print(f"Nothing would run: grid '{study.name}' is complete.")
    else:
        width = would_run["rule"].str.len().max()
        print(f"{len(would_run)} jobs would run:")
        for (rule, because), words in would_run.groupby(["rule", "reason"], sort=False)["words"]:
            few = len(words) <= 3 and because not in (NOT_MADE, FOLLOWS)
            names = f" ({', '.join(words)})" if few else ""
            print(f"{len(words):6d} × {rule:{width}s}  {because}{names}")
    for line in one_more_seed(study):
        print(line)
    return 0


def one_more_seed(study: Study) -> list[str]:
    """What one more seed of each trained regime would cost, if it took as long as the done runs."""
    runs, done = gridfile.runs(study.grid), states.done(study.grid, study.results)
    lines = []
    for regime in settings.TRAINED:
        seeds = gridfile.seeds(study.grid, regime)
        n = sum(run.regime == regime for run in runs) // len(seeds)
        own = [run.record(study.results) for run in done if run.regime == regime]
        seconds = [read_json(record)["seconds"] for record in own]
        if n:
            took = f", about {duration(n * sum(seconds) / len(own))} of work" if own else ""
            one = " With a single seed nothing is concluded about it." * (len(seeds) == 1)
            lines.append(f"One more seed of {regime}: {n} trainings{took}.{one}")
    return lines


def show_status(study: Study, arguments: list[str]) -> int:
    """Print what is done, failed, stale and missing, and what is running."""
    if holder := running(study):
        print(f"Being run by {holder}.")
        with contextlib.suppress(OSError, ValueError):
            now = read_json(study.progress)
            print(progress_words(now))
            for job in now["running"]:
                print(f"    {job['job']}: {job['writes']}")
    would_be_made = itertools.chain(*planned(study, arguments)["outputs"])
    table = states.table(study.grid, study.results, set(would_be_made))
    print(table.to_string(index=False))
    total = table[list(states.STATES)].sum()
    print(", ".join(f"{total[state]} {state}" for state in states.STATES))
    for output, record in failed_jobs(study).items():
        print(f"failed: {record['line']}\n    of: {output}")
    return 0


def write_page(study: Study, arguments: list[str]) -> int:
    """Write Snakemake's own report."""
    path = study.figures / "snakemake_report.html"
    status = snakemake(Watch(), *options(study), "--report", str(path), *arguments)
    if not status:
        print(f"What ran, when and from what: {path}")
    return status


COMMANDS = {"run": run, "figures": draw, "plan": plan, "status": show_status, "report": write_page}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("grid", help="a file in grids/, without .yaml")
    parser.add_argument("--only-failed", action="store_true", help="run only what has failed")
    known, rest = parser.parse_known_args()
    only_failed = {"only_failed": known.only_failed} if known.command == "run" else {}
    try:
        return COMMANDS[known.command](Study(known.grid), rest, **only_failed)
    except (StudyError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
