"""Run a small grid through a real Slurm of one node, which is started and stopped here.

    python tests/slurm_node.py

Starts munged, slurmctld and slurmd on the loopback interface, with a simulated GPU. All their files
lie in one folder. Runs a part of a small grid through profiles/slurm/config.yaml, kills Snakemake
in the middle, and runs the same command again. Then checks that the grid completes, that finished
jobs do not run again, and that the jobs got the memory, time and GPU that the profile asks for.

Needs Debian's slurmctld, slurmd, slurm-client and munge. Must be run as root, since slurmd starts
jobs as their owners. Exit status: 0 if all checks pass, 1 if not, 2 if it could not begin.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import small_grid

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "squeue": "slurm-client",
}
ACCOUNT, PARTITION = "anyone", "study"
MEMORY = 1500  # MB per job: the small grid needs no more
TARGET = "results/small/summary.csv"
FEATURES = "results/small/features/fundus_pm/micro_resnet-random/seed0/meta.json"
ON_GPU = {"extract", "finetune"}

SLURM_CONF = """\
ClusterName=study
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# None of these needs control groups, which a container may not give.
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:1 State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Failure(RuntimeError):
    """A check that failed, with the end of the log that shows why."""


START = time.monotonic()


def say(message: str) -> None:
    print(f"[{time.monotonic() - START:6.1f} s] {message}", flush=True)


def tail(path: Path, lines: int = 40) -> str:
    if not path.is_file():
        return f"{path} was not written."
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"The end of {path}:\n" + "\n".join(text.splitlines()[-lines:])


def wait_for(what: str, done: Callable[[], bool], seconds: float, log: Path) -> None:
    """Wait until ``done`` returns true; after ``seconds``, raise Failure with the log's end."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise Failure(f"Waited {seconds:.0f} s for {what}.\n{tail(log)}")
        time.sleep(1)


def obstacles() -> str:
    """Why this cannot run here, and what to do; "" if it can."""
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin"  # where Debian keeps daemons
    missing = sorted({package for tool, package in PACKAGES.items() if not shutil.which(tool)})
    if missing:
        return f"Missing: apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid():
        return "slurmd starts jobs in their owners' names and must be root: sudo, or a container."
    host = hostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = "no address"
    if not address.startswith("127."):
        # srun listens on the address of its own host's name.
        return f"{host} is {address}, not this machine alone: put '127.0.0.1 {host}' in /etc/hosts."
    return ""


def hostname() -> str:
    return socket.gethostname().split(".")[0]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listening(pids: set[int]) -> set[str]:
    """The IPv4 and IPv6 addresses, in hexadecimal, on which processes listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    open_ones = [row for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    return {row[1].split(":")[0] for row in open_ones}


@contextlib.contextmanager
def daemon(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """A process in the foreground whose output goes to a log; it is ended afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Start a Slurm of one node and wait until it is idle. SLURM_CONF names it to its commands."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    configuration = folder / "slurm.conf"
    configuration.write_text(
        SLURM_CONF.format(
            host=hostname(),
            folder=folder,
            ports=free_ports(2),
            cpus=os.cpu_count(),
            # A little less than the machine has: Slurm does not use a node that has too little.
            memory=int(megabytes * 0.95),
            partition=PARTITION,
        )
    )
    (folder / "gres.conf").write_text(f"NodeName={hostname()} Name=gpu File=/dev/null\n")
    os.environ["SLURM_CONF"] = str(configuration)
    # The plugin removes SLURM_CONF for the srun inside a job, which then looks in /etc only.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    os.environ["PATH"] = f"{srun.parent}{os.pathsep}{os.environ['PATH']}"
    munge = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(daemon(munge, folder / "munged.out"))]
        wait_for("munged", (folder / "munge.socket").exists, 20, folder / "munged.out")
        for name in ("slurmctld", "slurmd"):
            command = [name, "-D", "-f", str(configuration)]
            daemons.append(stack.enter_context(daemon(command, folder / f"{name}.out")))
        wait_for(
            "the node to be idle",
            lambda: ask("sinfo", "-h", "-o", "%T").strip() == "idle",
            60,
            folder / "slurmctld.log",
        )
        addresses = listening({process.pid for process in daemons})
        if not addresses or not addresses <= {"0100007F"}:
            raise Failure(f"Slurm listens beyond 127.0.0.1, at {sorted(addresses)} (hexadecimal).")
        stack.callback(empty_queue, folder / "slurmctld.log")
        yield


def ask(*command: str) -> str:
    """The output of a Slurm command; "" if it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def queue() -> list[str]:
    return ask("squeue", "-h", "-o", "%i %T").splitlines()


def empty_queue(log: Path) -> None:
    """Cancel the jobs that are left, so that none outlives its Slurm."""
    for line in queue():
        ask("scancel", line.split()[0])
    wait_for("jobs to be cancelled", lambda: not queue(), 60, log)


def jobs() -> dict[str, dict[str, str]]:
    """Slurm's fields of each job that it remembers, by job id."""
    by_id = {}
    for line in ask("scontrol", "--oneliner", "show", "job").splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        by_id[fields.get("JobId", "")] = fields
    return by_id


def devices() -> dict[str, str]:
    """The GPU that each running notebook sees, by job id."""
    seen = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            if b"medlib.grid.notebooks" in (process / "cmdline").read_bytes():
                variables = dict(
                    entry.split("=", 1)
                    for entry in (process / "environ").read_text(errors="replace").split("\0")
                    if "=" in entry
                )
                if job := variables.get("SLURM_JOB_ID"):
                    seen[job] = variables.get("CUDA_VISIBLE_DEVICES", "")
    return seen


def use(profile: Path) -> None:
    """Fill in the profile as a user does, and reduce the memory that it asks for."""
    text = profile.read_text(encoding="utf-8")
    for pattern, replacement in (
        (r"slurm_account: your-account", f"slurm_account: {ACCOUNT}"),
        (r"slurm_partition: your-partition", f"slurm_partition: {PARTITION}"),
        (r"mem_mb: \d+", f"mem_mb: {MEMORY}"),
    ):
        text, count = re.subn(pattern, replacement, text)
        if not count:
            raise Failure(f"{profile} has no line {pattern!r}: this script has to be adapted.")
    profile.write_text(text, encoding="utf-8")


def start(work: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, *small_grid.STUDY, "run", "small", TARGET]
    command += ["--profile", "profiles/slurm"]
    how = {"cwd": work, "env": small_grid.environment(work), "stdin": subprocess.DEVNULL}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, **how)


def snakemakes(log: Path) -> str:
    """Snakemake's own log of the run whose output is ``log`` (first.log or second.log)."""
    written = sorted((log.parent / ".snakemake" / "log").glob("*.log"))
    number = ["first.log", "second.log"].index(log.name)
    return written[number].read_text(encoding="utf-8") if number < len(written) else ""


def finished(log: Path) -> list[str]:
    """The rules of the jobs that succeeded according to Snakemake, in order."""
    return re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", snakemakes(log), re.MULTILINE)


def submitted(log: Path) -> list[str]:
    return re.findall(r"submitted with SLURM jobid (\d+)", snakemakes(log))


def check(holds: bool, message: str, log: Path) -> None:
    """Unless ``holds``, raise Failure with the ends of Snakemake's log and of the newest job's."""
    if not holds:
        # Snakemake's plugin for Slurm keeps the logs of failed jobs. They say why the jobs failed.
        kept = [*(log.parent / ".snakemake" / "slurm_logs").rglob("*.log")]
        newest = sorted(kept, key=lambda path: path.stat().st_mtime)[-1:]
        raise Failure("\n\n".join([message, *map(tail, [log, *newest])]))


def study(work: Path, limit: float) -> None:
    """Run the small grid, kill Snakemake once in the middle, run it again, and check the result."""
    work.mkdir()
    small_grid.lay(work)
    use(work / "profiles" / "slurm" / "config.yaml")
    first, second = work / "first.log", work / "second.log"
    records, seen = {}, {}

    def look() -> None:
        records.update(jobs())
        seen.update(devices())

    process = start(work, first)
    try:

        def in_the_middle() -> bool:
            look()
            check(process.poll() is None, f"Snakemake ended with {process.returncode}.", first)
            return "extract" in finished(first) and any("RUNNING" in line for line in queue())

        wait_for("features, and a job that runs after them", in_the_middle, limit, first)
    finally:
        process.kill()
        process.wait()
    done = finished(first)
    say(f"Killed Snakemake after {', '.join(done)}; Slurm still has {', '.join(queue())}.")
    stamp = (work / FEATURES).stat().st_mtime_ns

    def at_rest() -> bool:
        look()
        return not queue()

    wait_for("the jobs that were running to end by themselves", at_rest, limit, first)
    say("They ended by themselves. Going on with the same command.")
    process = start(work, second)
    try:

        def ended() -> bool:
            look()
            return process.poll() is not None

        wait_for("the second run to end", ended, limit, second)
    finally:
        if process.poll() is None:
            end(process)
    check(process.returncode == 0, f"The second run ended with {process.returncode}.", second)
    say(f"The second run did the rest: {', '.join(finished(second))}.")

    check((work / TARGET).is_file(), f"There is no {TARGET}.", second)
    check((work / FEATURES).stat().st_mtime_ns == stamp, "The features were made again.", second)
    again = set(done) & set(finished(second))
    check(not again, f"Done before the kill, and again after it: {sorted(again)}", second)
    ids = submitted(first) + submitted(second)
    check(bool(ids) and set(ids) <= set(records), f"Slurm knows not all of {ids}.", second)
    for job in ids:
        record = records[job]
        rule = re.sub(r"^rule_|_wildcards_.*", "", record.get("Comment", ""))
        gpu = "gpu:1" in record.get("TresPerJob", "")
        memory = re.search(r"mem=(\w+)", record.get("TRES", record.get("ReqTRES", "")))
        say(
            f"job {job}: {rule}, {record['JobState']}, {memory[1] if memory else 'no'} memory, "
            f"limit {record['TimeLimit']}, {'1 GPU' if gpu else 'no GPU'}, "
            f"CUDA_VISIBLE_DEVICES={seen.get(job, '(not caught)')}"
        )
        check(gpu == (rule in ON_GPU), f"Job {job} ({rule}): {record}", second)
        check(bool(memory), f"Job {job} asked for no memory: {record}", second)
        if rule in ON_GPU and job in seen:
            check(bool(seen[job]), f"Job {job} ({rule}) has a GPU but does not see it.", second)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="keep the folder, whose name it prints")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a step may take")
    arguments = parser.parse_args()
    if why := obstacles():
        print(why, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    # A short name: a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    folder.chmod(0o711)  # munged's clients, of any user, must reach its socket
    failed = True
    try:
        with slurm(folder):
            node = ask("sinfo", "-h", "-N", "-o", "%N, %T, %c CPUs, %m MB, %G").strip()
            say(f"Slurm is up in {folder}: {node}")
            study(folder / "work", arguments.limit)
        failed = False
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        if failed or arguments.keep:
            say(f"Kept for a look: {folder}")
        else:
            shutil.rmtree(folder)
    say("The grid ran through Slurm, was killed, and continued where it stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
