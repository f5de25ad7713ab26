"""Which jobs of a grid would run, and why.

Snakemake's graph says which jobs there are and what they read. Whether a job has to run is decided
by the contents of its files: see :mod:`medlib.grid.made`.
"""

import gc
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd

from medlib.grid import made, watch

# Rules of jobs that may take hours. If a job that they depend on runs again, they wait for its
# output, and run again only if the output has changed. All other jobs run again at once.
LONG = ("extract", "probe", "finetune")
NOT_MADE, FOLLOWS = "not made yet", "follows from the jobs above"
LOST, ASKED = "runs that it made are missing or damaged", "was asked for"


@dataclass
class Job:
    """A job of the graph. ``beside`` is the file beside which its records lie."""

    rule: str
    words: str  # the job's name in messages
    beside: str
    inputs: list[str]
    settings: list[str]
    outputs: list[str]
    reason: str = ""  # why it has to run; "" if it need not


@dataclass(frozen=True)
class Plan:
    """The jobs that run now, in the order of the rules.

    ``waiting`` is the number of complete long jobs that may have to run afterwards.
    """

    jobs: list[Job]
    waiting: int = 0

    def table(self) -> pd.DataFrame:
        """A row for each job: rule, words, outputs (a list), reason."""
        columns = ["rule", "words", "outputs", "reason"]
        return pd.DataFrame([[getattr(j, c) for c in columns] for j in self.jobs], columns=columns)


def snakemake(listener: Callable[[logging.LogRecord], object], *arguments: str) -> int:
    """Run Snakemake's command line in this process; returns its exit status.

    ``listener`` gets each of Snakemake's log records.
    """
    from snakemake import cli
    from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

    watch.LogHandler.listener = staticmethod(listener)
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_medlib", watch)
    gc.disable()  # a growing graph holds no garbage; the Snakefile enables it when jobs start
    try:
        cli.main([*arguments, "--logger", "medlib"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    finally:
        gc.enable()
    return 0


def graph(arguments: Sequence[str]) -> tuple[list[Job], dict[int, list[int]]]:
    """All jobs in the order of the rules, and for each job the numbers of the jobs that it reads.

    Raises ValueError if the graph cannot be built. The graph is read as soon as it is built: a dry
    run would also schedule and print every job, which takes twice as long.
    """
    from snakemake.executors import dryrun
    from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

    jobs, needs, errors = [], {}, []

    class Reader(dryrun.Executor):
        def __init__(self, workflow, logger):
            super().__init__(workflow, logger)
            theirs = [job for job in self.dag.jobs if job.rule.name != watch.TARGET]
            theirs.sort(key=lambda job: (job.rule.lineno, *job.output))
            numbers = {job: number for number, job in enumerate(theirs)}
            for job in theirs:
                needs[numbers[job]] = [numbers[other] for other in self.dag.dependencies[job]]
                jobs.append(_job(job, ASKED if self.dag.reason(job).forced else ""))

    def listen(record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())

    registry = ExecutorPluginRegistry()
    registry.plugins.pop("plan", None)  # an earlier call's
    plugin = SimpleNamespace(Executor=Reader, common_settings=dryrun.common_settings)
    registry.register_plugin("plan", plugin)
    # With --quiet, a dry run ends when its graph is built.
    quietly = ("--executor", "plan", "--quiet", "progress", "rules", "--cores", "1")
    if snakemake(listen, *arguments, *quietly):
        raise ValueError("\n".join(errors))
    return jobs, needs


def _job(job: object, reason: str) -> Job:
    """A :class:`Job` from a job of Snakemake."""
    inputs, outputs, logs = ([str(f) for f in one] for one in (job.input, job.output, job.log))
    words = watch.describe(job.rule.name, job.wildcards_dict)
    settings = [str(value) for value in job.params]
    return Job(job.rule.name, words, [*logs, *outputs][0], inputs, settings, outputs, reason)


def plan(
    jobs: list[Job],
    needs: dict[int, list[int]],
    digests: made.Digests,
    lost: frozenset[str] = frozenset(),
    failed: Collection[str] = (),
) -> Plan:
    """The jobs of a graph that run now; sets their ``reason``.

    ``lost`` are outputs whose jobs have to run again although the files exist. ``failed`` are jobs,
    named by the file beside which their records lie: they do not run, and neither do the jobs that
    need them.
    """
    run, waiting, left_out = set(), set(), set()
    for number, job in enumerate(jobs):  # each job comes after the jobs that it needs
        above = set(needs[number])
        job.reason = job.reason or _reason(job, digests, lost)
        if not job.reason and above & run and job.rule not in LONG:
            job.reason = FOLLOWS
        if job.beside in failed or above & left_out:
            left_out.add(number)
        elif job.reason:
            run.add(number)
        elif above & (run | waiting):
            waiting.add(number)
    for number in run:  # the jobs will need these digests: see made.begun
        for path in jobs[number].inputs:
            digests.of(path)
    digests.keep()
    n_waiting = sum(jobs[number].rule in LONG for number in waiting)
    return Plan([jobs[number] for number in sorted(run)], n_waiting)


def _reason(job: Job, digests: made.Digests, lost: frozenset[str]) -> str:
    if not all(map(os.path.exists, job.outputs)):
        return NOT_MADE
    if not lost.isdisjoint(job.outputs):
        return LOST
    return made.why_stale(job.beside, job.inputs, job.settings, job.outputs, digests)
