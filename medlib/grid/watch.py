"""The progress of a running grid, from Snakemake's events."""

import contextlib
import logging
import re
import shutil
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from medlib import files
from medlib.environment import full_disk
from medlib.grid import jobs

# The file of progress is written after these events of Snakemake.
SHOWN = (LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR)
TARGET = "all"  # the rule of the Snakefile that only names the targets: not a job
# Snakemake's messages about a failed job. They are not printed: the list at the end is clearer.
NOISE = r"RuleException|WorkflowError:\s+At least one job did not|Exiting because a job execution"
COORDINATES = ("task", "backbone", "arm", "seed")


class LogHandler(LogHandlerBase):
    """Passes Snakemake's events to a function, instead of printing them."""

    listener: Callable[[logging.LogRecord], object]
    writes_to_stream, writes_to_file = True, False
    has_filter, has_formatter, needs_rulegraph = True, True, False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            type(self).listener(record)
        except Exception:  # printing must not end the run
            self.handleError(record)


def describe(rule: str, wildcards: dict | None) -> str:
    """A job in words, such as "finetune fundus_pm vit_tiny-random seed 0"."""
    known = {name: str(value) for name, value in (wildcards or {}).items()}
    if "seed" in known:
        known["seed"] = f"seed {known['seed']}"
    return " ".join([rule, *(known[name] for name in COORDINATES if name in known)])


class Watch:
    """Follows a run by Snakemake's events: prints a line at times, and writes a file of progress.

    The longer the run, the rarer the lines: about four hundred in three days.
    """

    def __init__(self, path: Path | None = None, out=None, clock=time.time):
        self.path, self.out, self.clock = path, out or sys.stdout, clock
        self.begun = self.shown = clock()
        self.jobs: dict[int, dict] = {}  # id -> rule, words, the first file that it writes
        self.working: dict[int, float] = {}  # id -> when it started
        self.failed: dict[str, dict] = {}  # the first file that a job writes -> the job
        self.left: Counter = Counter()  # jobs of each rule that are not done
        self.took: dict[str, list[float]] = defaultdict(list)
        self.done, self.total = 0, 0
        self.lock = threading.RLock()

    def __call__(self, record: logging.LogRecord) -> None:
        with self.lock:
            event = getattr(record, "event", None)
            if event == LogEvent.RUN_INFO:
                self.begin(Counter(record.stats))
            elif event in (LogEvent.JOB_INFO, LogEvent.JOB_ERROR):
                known = self.jobs.setdefault(record.jobid, {})
                writes = next(iter([*(record.log or ()), *(record.output or ())]), "")
                known |= {"rule": record.rule_name, "writes": writes}
                words = describe(record.rule_name, getattr(record, "wildcards", None))
                known.setdefault("words", words)  # an error does not come with wildcards
                if event == LogEvent.JOB_ERROR:
                    self.working.pop(record.jobid, None)
                    if known["writes"] not in self.failed:
                        self.failed[known["writes"]] = known
                        self.say(f"failed: {known['words']}: {why(known)[1]}")
            elif event == LogEvent.JOB_STARTED:
                self.working |= dict.fromkeys(record.jobs, self.clock())
            elif event == LogEvent.JOB_FINISHED:
                since = self.working.pop(record.job_id, self.clock())
                rule, known = self.rule(record.job_id), self.jobs.get(record.job_id, {})
                self.failed.pop(known.get("writes"), None)  # a later attempt succeeded
                if rule != TARGET:
                    self.done += 1
                    self.left[rule] -= 1
                    self.took[rule].append(self.clock() - since)
            elif record.levelno >= logging.WARNING and not re.match(NOISE, record.getMessage()):
                self.say(record.getMessage())
            if event in SHOWN:
                self.show()

    def begin(self, jobs_to_run: Counter) -> None:
        """Note that a new call of Snakemake begins, which numbers its jobs anew."""
        more = " more" * bool(self.total)
        self.jobs.clear()
        self.working.clear()
        self.left = jobs_to_run
        del self.left["total"], self.left[TARGET]
        self.total += self.left.total()
        self.say(f"{self.left.total()}{more} jobs to run.")

    def rule(self, job: int) -> str:
        return self.jobs.get(job, {}).get("rule", "")

    def seconds_left(self) -> float | None:
        """An estimate, from each rule's mean duration and the parallelism so far; None if unknown.

        A job that has run t seconds longer than the mean is expected to need t seconds more.
        """
        every = [seconds for took in self.took.values() for seconds in took]
        if len(every) < 3:
            return None
        usual = sum(every) / len(every)
        mean = {rule: sum(took) / len(took) for rule, took in self.took.items()}
        now, waiting = self.clock(), Counter(self.left)
        worked, work = sum(every), 0.0
        for job, since in self.working.items():
            waiting[self.rule(job)] -= 1
            worked += now - since
            work += abs(mean.get(self.rule(job), usual) - (now - since))
        work += sum(n * mean.get(rule, usual) for rule, n in waiting.items())
        parallel = worked / max(now - self.begun, 1e-9)
        return max(work, 0) / max(parallel, 1e-9)

    def summary(self) -> dict:
        now = self.clock()
        running = [
            {"job": known["words"], "seconds": now - since, "writes": known["writes"]}
            for job, since in self.working.items()
            if (known := self.jobs.get(job))
        ]
        counts = {"done": self.done, "failed": len(self.failed), "total": self.total}
        return counts | {"seconds_left": self.seconds_left(), "running": running}

    def show(self) -> None:
        """Write the file of progress, and print a line if the last one was long ago."""
        now = self.clock()
        with self.lock:
            if not self.total:
                return
            if self.path is not None:
                with contextlib.suppress(OSError):  # the job that needs a full disk reports it
                    files.save_json(self.path, self.summary())
            if now - self.shown >= max(10, 0.02 * (now - self.begun)):
                self.shown = now
                self.say(progress_words(self.summary()))

    def say(self, words: str) -> None:
        print(words, file=self.out, flush=True)


def progress_words(now: dict) -> str:
    """One line: how many jobs are done, which are running, and about how long the rest takes."""
    words = f"{now['done']} of {now['total']} jobs ({now['done'] / max(now['total'], 1):.0%})"
    words += f", {now['failed']} failed" * bool(now["failed"])
    names = [f"{job['job']} ({duration(job['seconds'])})" for job in now["running"]]
    if names:
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        words += f" · running: {', '.join(names[:3])}{rest}"
    if now["seconds_left"] is not None and now["done"] < now["total"]:
        words += f" · about {duration(now['seconds_left'])} left"
    return words


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def why(job: dict) -> tuple[str, str, str]:
    """Where a job failed, a line of its error, and its executed notebook; each "" if unknown."""
    notebook = job["writes"] if job["writes"].endswith(".ipynb") else ""
    record = jobs.failed(job["writes"]) if job["writes"] else None
    if record is None:
        output = Path(job["writes"])
        with contextlib.suppress(OSError):
            if shutil.disk_usage(output.parent).free < 2**20:  # no room for a record either
                return "", full_disk(output.parent), notebook
        return "", "it ended without a message: killed, or out of memory?", notebook
    where, line = Path(record["source"]).name, record["line"]
    if record["cell"] is not None:
        where = f"code cell {record['cell']} of {where}"
    return where, line if len(line) < 300 else line[:300] + " …", notebook
