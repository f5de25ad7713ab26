"""The controller of a grid: runs it, continues it, and says what is running and what failed.

    python -m medlib.grid.study run GRID [--only-failed] [snakemake's own options …]
    python -m medlib.grid.study figures GRID     draw again, from the runs that are there
    python -m medlib.grid.study plan GRID        what would run, and why
    python -m medlib.grid.study status GRID      what is done, failed, stale and missing
    python -m medlib.grid.study report GRID      Snakemake's own report of the jobs
    python -m medlib.grid.study weights GRID [folder]   fetch the weights of all its backbones

Snakemake runs the jobs. This module adds four things. Only one process can run a grid at a time. A
killed run is continued. Progress is printed. At the end, failed jobs are listed, with the reasons
and the command that runs only them again.
"""

import argparse
import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd

from medlib.core import settings, weights
from medlib.errors import listed
from medlib.files import TEMPORARY, read_json
from medlib.grid import gridfile, hours, jobs, made, page, plan, states
from medlib.grid.plan import Plan
from medlib.grid.watch import TARGET, Watch, duration, progress_words, why
from medlib.show import answers, registry

RETRIES = 2  # after a failure that may not happen again: see `jobs.TRANSIENT`
ROUNDS = 6  # at most: one for each kind of long job, and more in case code is edited meanwhile
DRAWING = ("collect", *registry.DRAWING, *registry.MODULES, "write_report")  # rules


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
    """Hold the lock of this study. Raises StudyError if another process holds it, or if results
    cannot be written.

    The operating system releases it when the process ends, however it ends.
    """
    with contextlib.ExitStack() as held:
        try:
            study.results.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(study.lock, "a+"))
        except OSError as error:
            said = f"{study.results} cannot be written to ({error.strerror})."
            way_out = "Running and drawing write into it: copy results/ to a writable place."
            raise StudyError(f"{said} {way_out}") from error
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
    """The process that runs this study at the moment, in words; "" if there is none."""
    if not study.lock.is_file():
        return ""
    with open(study.lock) as file:
        return "" if jobs.take(file, shared=True) else _holder(study)


def options(study: Study, *config: str) -> list[str]:
    # mtime: so that Snakemake does not use its own records. Times do not matter: see Snakefile.
    own = ["--rerun-triggers", "mtime", "--nolock", "--rerun-incomplete"]
    return ["--config", f"grid={study.name}", *config, *own]


def kept_digests(study: Study) -> Path:
    """The file that keeps digests, so that files are read again only if they have changed."""
    return study.results / "digests.json"


def planned(study: Study, arguments: Sequence[str] = (), failed: Collection[str] = ()) -> Plan:
    """The jobs that would run now. Raises ValueError if their graph cannot be built.

    ``arguments`` are Snakemake's own; ``failed`` are the jobs that are left out.
    """
    digests = made.Digests(kept_digests(study))
    # One job makes all probes of a backbone: its output may be there, but not all of its runs.
    lost = states.lost(study.grid, study.results, digests)
    return plan.plan(*plan.graph([*options(study), *arguments]), digests, lost, failed)


def failed_jobs(study: Study) -> dict[str, dict]:
    """The failed jobs of the grid: the first file that a job writes -> record of its failure."""
    return {
        str(output): record
        for output, record in jobs.failures(study.results).items()
        if gridfile.asks_for(study.grid, output.relative_to(study.results))
    }


def run(study: Study, arguments: list, only_failed: bool = False, partial: bool = False) -> int:
    """Run the jobs that are not done; returns 0 if everything that was asked for is done.

    ``arguments`` are Snakemake's own. With ``partial`` figures and tables are drawn from the
    complete runs alone. Raises StudyError if another process runs the grid.
    """
    begun = time.monotonic()
    with alone(study):
        if only_failed:
            failed = {record["outputs"][0] for record in failed_jobs(study).values()}
            if not failed:
                print(f"Nothing of grid '{study.name}' has failed.")
                return 0
            arguments = [*sorted(failed), *arguments]
        how = []
        if not any(a.split("=")[0] in ("--profile", "--executor", "-e") for a in arguments):
            # On this machine, jobs end with their controller; on a cluster they go on.
            os.environ[jobs.CONTROLLER] = str(study.lock.resolve())
            how = ["--retries", str(RETRIES), "--resources", *_machine()]
            # A killed job leaves unfinished files here, and not in figures/, where git looks.
            temporary = (study.results / "temporary").resolve()
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed run, whose jobs have ended
            temporary.mkdir()
            os.environ[TEMPORARY] = str(temporary)
        os.environ[made.KEPT] = str(kept_digests(study).resolve())
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        watch, over = Watch(study.progress), threading.Event()
        threading.Thread(target=_tick, args=(watch, over), daemon=True).start()
        try:
            if partial:
                how = [*options(study, "partial=true"), *how]
                status = plan.snakemake(watch, *how, "--keep-going", *arguments)
            else:
                status = rounds(study, watch, arguments, how)
        finally:
            over.set()
            study.progress.unlink(missing_ok=True)
        if status:
            print(failures(study.name, watch))
            with contextlib.suppress(ValueError, OSError):
                path = page.write(study.file, study.results, study.figures, stopped=True)
                print(f"What there is so far: {path}")
        elif not partial:
            left = len(planned(study).jobs)
            print(ending(study, left, watch.total, time.monotonic() - begun))
    return status


def rounds(study: Study, watch: Watch, arguments: list[str], how: list[str]) -> int:
    """Plan the grid and run the planned jobs, until no job is left; returns the exit status.

    Several rounds may be needed: a long job (:data:`medlib.grid.plan.LONG`) is planned only after
    its inputs are complete. A job that has failed in one round is left out of the next ones.
    """
    from snakemake import cli

    from medlib.grid import inputs  # here, since it imports torch

    _, known = cli.parse_args(arguments)
    own = [argument for argument in arguments if argument not in known.targets]
    status, begun = 0, set()
    for number in range(ROUNDS):
        forced = ["--forcerun"] if number else []  # force nothing more: it has run
        jobs_now = planned(study, [*known.targets, *own, *forced], watch.failed).jobs
        now = [job.outputs[0] for job in jobs_now]
        if not now or (status and not begun.isdisjoint(now)):  # all is done, or it was stopped
            break
        if not number:
            announce(study, jobs_now)
        begun.update(now)
        inputs.check(study.grid, study.results, jobs_now)
        again = [job for job in jobs_now if job.reason not in (plan.NOT_MADE, plan.FOLLOWS)]
        for line in reasons(plan.Plan(again)):
            print(line, flush=True)
        how_now = [*options(study), *how, "--keep-going", *own, "--forcerun", *now]
        status = plan.snakemake(watch, *now, *how_now) or status
    return status


def ending(study: Study, left: int, ran: int, seconds: float) -> str:
    """The message at the end if nothing has failed. The grid is complete only if no job is left."""
    if left:
        more = f"{left} jobs of the grid are left: make study GRID={study.name}"
        return f"All {ran} jobs that you asked for are done. {more}"
    where = f"All its figures and tables on one page: {study.figures / page.PAGE}{answer(study)}"
    if not ran:
        return f"Nothing to be done: grid '{study.name}' is complete. {where}"
    return f"Grid '{study.name}' is complete, after {duration(seconds)}. {where}"


def answer(study: Study) -> str:
    """The recommendation that notebook 06 has written; "" if it has not been written."""
    path = study.figures / "answer.csv"
    return f"\n{answers.text(pd.read_csv(path))}" if path.is_file() else ""


def draw(study: Study, arguments: list[str]) -> int:
    """Draw all figures and tables again from the complete runs; no model is run."""
    name, results = study.name, study.results
    n, of = len(states.done(study.grid, results)), len(gridfile.runs(study.grid))
    if not n:
        raise StudyError(f"No run of grid '{name}' is complete yet: make study GRID={name}")
    print(f"Drawing {study.figures} from {n} of {of} runs in {results}.")
    drawing = ["summarise", *DRAWING]
    rules = ["--allowed-rules", TARGET, *drawing, "--forcerun", *drawing]
    status = run(study, [*rules, *arguments], partial=True)
    if not status:
        path = study.figures / page.page_name(study.grid, results)
        print(f"All figures and tables of these runs on one page: {path}{answer(study)}")
    return status


def _tick(watch: Watch, over: threading.Event) -> None:
    while not over.wait(5):
        watch.show()


def _machine() -> list[str]:
    """Snakemake's resources on this machine: memory in MB, and GPUs if there are any."""
    import psutil

    memory, devices = psutil.virtual_memory().total // 2**20, jobs.visible_gpus()
    gpus = [f"gpu={len(devices) * jobs.jobs_per_gpu()}"] if devices else []
    return [f"mem_mb={memory}", *gpus]


def failures(name: str, watch: Watch) -> str:
    """The message about a grid's failed jobs, and how to go on."""
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
    again = f"To run only these again: make study GRID={name} ONLY=failed"
    there = f"For figures and tables of the complete runs: make figures GRID={name}"
    return "\n".join([f"{head}:", *lines, again, there])


def show_plan(study: Study, arguments: list[str]) -> int:
    """Print what would run and why, grouped."""
    now = planned(study, arguments)
    table = now.table()
    if table.empty:
        print(f"Nothing would run: grid '{study.name}' is complete.")
    else:
        print("\n".join([f"{len(table)} jobs would run:", *reasons(now)]))
    if now.waiting:
        waiting = f"{now.waiting} long jobs read what these write"
        print(f"{waiting}. They run again only if their inputs change.")
    for line in [*_hours(study, now.jobs), *one_more_seed(study)]:
        print(line)
    return 0


def _hours(study: Study, jobs_now: list[plan.Job]) -> list[str]:
    """Lines on how long these jobs may take, and on the jobs that were not counted."""
    if not jobs_now:
        return []
    machine = hours.this_machine()
    table, unknown = hours.estimate(study.grid, study.results, jobs_now, machine)
    return [*hours.words(table, machine), *(f"Not counted: {each}." for each in unknown)]


def announce(study: Study, jobs_now: list[plan.Job]) -> None:
    """Print which grid this is, and about how long its jobs may take on this machine."""
    table, unknown = hours.estimate(study.grid, study.results, jobs_now, hours.this_machine())
    took = hours.about(table["here"].sum())
    lines = [
        f"Grid '{study.name}' ({study.grid['title']}): {len(jobs_now)} jobs to do.",
        f"This may take {took} on this machine. Half or twice as long is no surprise.",
        *(f"Not counted: {each}." for each in unknown),
        f"What is already there is kept. Hours by rule: make plan GRID={study.name}",
    ]
    print("\n".join(lines), flush=True)


def reasons(now: Plan) -> list[str]:
    """Why the jobs of a plan run: a line for each rule and reason."""
    table, lines = now.table(), []
    width = table["rule"].str.len().max()
    for (rule, because), words in table.groupby(["rule", "reason"], sort=False)["words"]:
        few = len(words) <= 3 and because not in (plan.NOT_MADE, plan.FOLLOWS)
        names = f" ({', '.join(words)})" if few else ""
        lines.append(f"{len(words):6d} × {rule:{width}s}  {because}{names}")
    return lines


def one_more_seed(study: Study) -> list[str]:
    """What one more seed of each trained regime would cost, estimated from the complete runs."""
    runs, done = gridfile.runs(study.grid), states.records(study.grid, study.results)
    lines = []
    for regime in settings.TRAINED:
        seeds = gridfile.seeds(study.grid, regime)
        n = sum(run.regime == regime for run in runs) // len(seeds)
        seconds = [record["seconds"] for run, record in done.items() if run.regime == regime]
        if n:
            took = f", about {duration(n * sum(seconds) / len(seconds))} of work" if seconds else ""
            one = " With a single seed nothing is concluded about its arms." * (len(seeds) == 1)
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
    would_be_made = {output for job in planned(study, arguments).jobs for output in job.outputs}
    table = states.table(study.grid, study.results, would_be_made)
    print(table.to_string(index=False))
    total = table[list(states.STATES)].sum()
    print(", ".join(f"{total[state]} {state}" for state in states.STATES))
    for output, record in failed_jobs(study).items():
        print(f"failed: {record['line']}\n    of: {output}")
    return 0


def fetch_weights(study: Study, arguments: list[str]) -> int:
    """Fetch the weights of all backbones into a folder, for a machine without a network."""
    from medlib.grid import inputs

    folder = Path(arguments[0]) if arguments else weights.FOLDER
    names = sorted(gridfile.all_backbones(study.grid))
    if problems := inputs.fetch(names, folder):
        raise StudyError(f"Not all weights of grid '{study.name}' are there:\n{listed(problems)}")
    print(f"The weights of grid '{study.name}' are in {folder}. Where there is no network: ")
    print(f"    make study GRID={study.name} WEIGHTS={folder}")
    return 0


def write_page(study: Study, arguments: list[str]) -> int:
    """Write Snakemake's own report."""
    path = study.figures / "snakemake_report.html"
    status = plan.snakemake(Watch(), *options(study), "--report", str(path), *arguments)
    if not status:
        print(f"What ran, when and from what: {path}")
    return status


COMMANDS = {
    "run": run,
    "figures": draw,
    "plan": show_plan,
    "status": show_status,
    "report": write_page,
    "weights": fetch_weights,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("grid", help="a file in grids/, without .yaml")
    parser.add_argument("--only-failed", action="store_true", help="run only what has failed")
    known, rest = parser.parse_known_args()
    only_failed = {"only_failed": known.only_failed} if known.command == "run" else {}
    try:
        return COMMANDS[known.command](Study(known.grid), rest, **only_failed)
    except (StudyError, ValueError, OSError) as error:  # OSError: results that cannot be written
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while no job ran
        print("Stopped. The same command continues.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
