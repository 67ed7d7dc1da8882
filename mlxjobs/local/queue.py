"""A cluster of one machine: the job queue of one user, without a daemon, driven by its command line.

    python -m mlxjobs.localqueue submit|status|cancel|preempt|requeue|signal|wait|forget

Its files and its settings are described in `mlxjobs.local.state`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NoReturn

from mlxjobs.errors import JobSubmissionError, MLXJobsError, SchedulerError
from mlxjobs.local.state import (
    ACTIVE,
    KEEP_S,
    OF_A_JOB,
    PATIENCE_S,
    JobRecord,
    Queue,
    complain,
    open_queue,
    setting,
    staff,
)
from mlxjobs.system.files import current_umask


def _parse_signal(text: str) -> int:
    """Parse `USR1`, `SIGUSR1` or `10`."""
    name = text.upper().removeprefix("SIG")
    try:
        return signal.Signals(int(name)) if name.isdigit() else signal.Signals[f"SIG{name}"]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"unknown signal {text!r}") from None


def _parse_warning(text: str) -> tuple[int, float]:
    """Parse `USR2@60`: a signal, and how many seconds before the time limit it is sent (60 if not said)."""
    name, _, seconds = text.partition("@")
    if not (seconds or "60").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not SIGNAL@SECONDS")
    return _parse_signal(name), float(seconds or 60)


def parse_time_limit(text: str) -> float:
    """Parse Slurm's `minutes`, `MM:SS`, `HH:MM:SS`, `D-HH[:MM[:SS]]` into seconds; 0 is no limit.

    Source: https://slurm.schedmd.com/sbatch.html#OPT_time
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not minutes, MM:SS, HH:MM:SS or D-HH[:MM[:SS]]")
    days, *fields = match.groups()
    parts = [int(field) for field in fields if field is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    """Declare what may be said of a job, on the command line and in a script."""
    parser.add_argument("--job-name", metavar="NAME")
    parser.add_argument("--output", metavar="FILE")
    parser.add_argument("--error", metavar="FILE")
    parser.add_argument("--time", metavar="LIMIT", type=parse_time_limit)
    parser.add_argument("--signal", metavar="SIG@SECONDS", type=_parse_warning)


class _DirectiveParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise JobSubmissionError(f"{self.prog}: #LOCAL: {message}")


def _parse_directives(name: str, script: bytes) -> argparse.Namespace:
    """Parse the `#LOCAL` lines before the first command of a script; `name` is for messages."""
    parser = _DirectiveParser(prog=name, add_help=False, allow_abbrev=False)
    _add_job_options(parser)
    words: list[str] = []
    for line in os.fsdecode(script).split("\n"):
        if line.strip() and not line.startswith("#"):
            break
        if line.split(maxsplit=1)[:1] == ["#LOCAL"]:
            try:
                words += shlex.split(line[len("#LOCAL") :])
            except ValueError as error:
                raise JobSubmissionError(f"{name}: {line}: {error}") from error
    return parser.parse_args(words)


def _plan_job(name: str, script: bytes, arguments: argparse.Namespace) -> JobRecord:
    """Make the record of a job: the command line wins over the script, and that over this process."""
    if not script.startswith(b"#!"):
        raise JobSubmissionError(
            f"{name} is not a script: its first line must start with #! and name a shell"
        )
    said = vars(_parse_directives(name, script))
    said |= {option: vars(arguments)[option] for option in said if vars(arguments)[option] is not None}
    warn_signal, warn_s = said["signal"] or (0, 0.0)
    return JobRecord(
        name=said["job_name"] or Path(name).name,
        cwd=str(Path.cwd()),
        umask=current_umask(),
        grace_s=setting(os.environ, "MLXJOBS_LOCAL_GRACE", 30.0),
        queued=time.time(),
        output=said["output"] or os.devnull,
        error=said["error"] or os.devnull,
        limit_s=said["time"] or 0.0,
        warn_signal=warn_signal,
        warn_s=warn_s,
    )


def _submit(queue: Queue, arguments: argparse.Namespace) -> int:
    """Queue copies of scripts; none if one of them cannot be taken."""
    scripts = {name: Path(name).read_bytes() for name in arguments.scripts}
    jobs = [(_plan_job(name, scripts[name], arguments), scripts[name]) for name in arguments.scripts]
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_JOB}
    environment["MLXJOBS_LOCAL_DIR"] = str(queue.root)
    _remove_ended(queue, KEEP_S)
    for job, script in jobs:
        sys.stdout.write(f"Submitted local job {queue.add(job, script, environment)}\n")
        sys.stdout.flush()
    return 0


def _status(queue: Queue, arguments: argparse.Namespace) -> int:
    """Print a line for each job that is known."""
    for number in arguments.ids or queue.numbers():
        if job := queue.read(number):
            deadline = "" if job.deadline is None else round(job.deadline)
            sys.stdout.write(f"{number}|{job.state}|{job.reason}|{job.restarts}|{deadline}\n")
    return 0


def _obey(queue: Queue, number: int, job: JobRecord, verb: str) -> str:
    """Do what a request asks for to a held job, which does not run; return `ok`, or why not."""
    if job.state == "RUNNING":
        if not queue.revive(number, job):
            return f"a process of job {number}, whose worker is gone, cannot be killed"
        job = queue.read(number) or job
    if verb == "cancel" and job.state == "PENDING":
        queue.write(number, job._replace(state="CANCELLED", reason="cancelled"))
    elif verb == "cancel":
        return f"job {number} has ended already ({job.state})"
    elif verb == "requeue" and job.state == "PENDING":
        return f"job {number} is pending already"
    elif verb == "requeue":
        queue.write(number, job.again("requeued", time.time()))
    else:
        return f"job {number} is not running ({job.state})"
    return "ok"


def _request(queue: Queue, number: int, text: str) -> str:
    """Have a request obeyed by the worker of a job, or do it if there is none; return `ok`, or why not."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if queue.read(number) is None:
            return f"job {number} is unknown"
        with queue.hold(number) as job:
            if job:
                return _obey(queue, number, job, text.split()[0])
        if answer := queue.ask(number, text):
            return answer
        time.sleep(0.01)  # its worker is about to start or to end it
    raise SchedulerError(f"job {number} is locked, but nobody answers for it")


def _change(queue: Queue, arguments: argparse.Namespace) -> int:
    """Cancel, preempt, requeue or signal jobs; to cancel one that has ended is not a failure."""
    verb = arguments.command
    text = f"{verb} {arguments.sig:d}" if verb == "signal" else verb
    failed = False
    for number in arguments.ids:
        try:
            answer = _request(queue, number, text)
        except SchedulerError as error:  # a worker that does not answer must not keep the other jobs
            answer, failed = str(error), True
        if answer != "ok":
            failed = failed or verb != "cancel"
            complain(answer)
    return int(failed)


def _wait(queue: Queue, arguments: argparse.Namespace) -> int:
    """Wait until jobs have ended; 1 if the time is over before."""
    waiting = arguments.ids or queue.numbers()
    until = time.monotonic() + arguments.timeout
    for tick in count():
        waiting = [number for number in waiting if (job := queue.read(number)) and job.state in ACTIVE]
        if not waiting:
            break
        if time.monotonic() > until:
            complain(f"still waiting for job {', '.join(map(str, waiting))}")
            return 1
        if tick % 10 == 0:  # dearer than a look at the jobs
            queue.revive_lost(queue.scan())
            staff(queue)
        time.sleep(0.1)
    return 0


def _forget(queue: Queue, arguments: argparse.Namespace) -> int:
    """Delete the records of ended jobs."""
    _remove_ended(queue, 0.0)
    return 0


def _remove_ended(queue: Queue, age_s: float) -> None:
    """Remove jobs that ended so long ago, and what killed commands have left half made or half removed."""
    now = time.time()
    for number in queue.numbers():
        with suppress(FileNotFoundError):
            if now - (queue.directory(number) / "job.json").stat().st_mtime >= age_s:
                with queue.hold(number) as job:
                    if job and job.state not in ACTIVE:
                        _remove(queue.directory(number).rename(queue.jobs / f".gone-{number}"))
    for path in queue.jobs.glob(".*"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > KEEP_S:
                _remove(path)


def _remove(directory: Path) -> None:
    """Remove a flat directory."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _command_line() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = argparse.ArgumentParser(prog="mlxjobs.localqueue", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("submit", "status", "cancel", "preempt", "requeue", "signal", "wait", "forget"):
        command = commands.add_parser(name, allow_abbrev=False)
        if name == "submit":
            _add_job_options(command)
            command.add_argument("scripts", metavar="SCRIPT", nargs="+")
        if name == "signal":
            command.add_argument("sig", metavar="SIG", type=_parse_signal)
        if name == "wait":
            command.add_argument("--timeout", metavar="S", type=float, default=float("inf"))
        if name not in ("submit", "forget"):
            some = "*" if name in ("status", "wait") else "+"
            command.add_argument("ids", metavar="ID", type=int, nargs=some)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command, look after lost and waiting jobs, and return the exit code."""
    arguments = _command_line().parse_args(argv)
    commands = {"submit": _submit, "status": _status, "wait": _wait, "forget": _forget}
    try:
        queue = open_queue(os.environ)
        queue.revive_lost(queue.scan())
        try:
            return commands.get(arguments.command, _change)(queue, arguments)
        finally:
            staff(queue)
    except (MLXJobsError, OSError) as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
