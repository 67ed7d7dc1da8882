"""OAR 2.5: https://oar.imag.fr/docs/2.5/. What is measured was measured on 2.5.9."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler, exit_words

# the enumeration `state` of OAR's table `jobs`; Terminated and Error hide why
_STATES = {
    "Waiting": JobState.PENDING,
    "Hold": JobState.PENDING,
    "toLaunch": JobState.PENDING,
    "toAckReservation": JobState.PENDING,
    "Launching": JobState.PENDING,
    "Running": JobState.RUNNING,
    "Suspended": JobState.RUNNING,
    "Resuming": JobState.RUNNING,
    "Finishing": JobState.ENDING,
    "toError": JobState.ENDING,
}
# events of OAR's own doing
_CAUSES = {
    "BESTEFFORT_KILL": JobState.PREEMPTED,
    "WALLTIME": JobState.TIME_LIMIT,
    "PING_CHECKER_NODE_SUSPECTED": JobState.NODE_FAIL,
}
_NOISE = re.compile(r"SWITCH_INTO_\w+|SEND_KILL_JOB|RESUBMIT_\w+|CHECKPOINT\w*|SCHEDULER_PRIORITY_\w+")
_MINIMUM_S = 70.0
# what a script may set by `#OAR --name value`, beside the long forms of the class's aliases
_LONG = {"--anterior", "--array", "--array-param-file", "--checkpoint", "--notify", "--project", "--signal"}
# OAR puts paths, unquoted, into Perl and into shell commands of its own
_PLAIN = re.compile(r"[A-Za-z0-9_./+@=:,-]+")


class OARScheduler(Scheduler):
    """OAR, as on the clusters of Grenoble and Grid'5000."""

    directive = "#OAR"
    commands = ("oarsub", "oarstat", "oardel")
    environment = ("OAR_*", "OARDO_*", "!OAR_JOB_KEY_FILE")  # that is the user's, for oarsub
    aliases = {  # noqa: RUF012 - declared in the base class
        "-n": "--name",
        "-O": "--stdout",
        "-E": "--stderr",
        "-d": "--directory",
        "-l": "--resource",
        "-p": "--property",
        "-q": "--queue",
        "-t": "--type",
    }
    array_variable = "OAR_ARRAY_INDEX"
    remote_shell = ("oarsh",)
    node_file = "OAR_NODEFILE"

    def options(self, job: Job) -> list[str]:
        """Name, output, error, and what lets a job come back."""
        return [
            f"-n {job.name}",
            f"-O {job.stdout if self.names(job.stdout) else '/dev/null'}",
            f"-E {job.stderr if self.names(job.stderr) else '/dev/null'}",
            # else OAR resubmits neither a besteffort job that it kills nor one that exits with 99
            "-t idempotent",
            # OAR ends jobs by SIGKILL; this alone makes it warn them, a minute before, with USR2
            "--checkpoint 60",
            "--signal 12",
        ]

    def can_name(self, path: Path) -> bool:
        """OAR writes paths into programs without quoting them, and `%jobid%` is a pattern."""
        return _PLAIN.fullmatch(str(path)) is not None

    def option_name(self, line: str) -> str:
        """Types add up, so each is an option of its own: `-t besteffort` does not replace `-t idempotent`."""
        name = super().option_name(line)
        return f"{name} {_value(line).partition('=')[0]}" if name == "--type" else name

    def directives(self, job: Job) -> list[str]:
        """As oarsub reads them: `--name x`, and no quotes around a value.

        `--checkpoint=30` is refused, `--name=x` gives the name `=x`, quotes are refused or kept (measured).
        """
        lines = [line.removeprefix(f"{self.directive} ") for line in super().directives(job)]
        known = {*self.aliases, *self.aliases.values(), *_LONG}
        return [f"{self.directive} {_as_read(line, known)}" for line in lines]

    def array_option(self, tasks: int) -> str:
        """oarsub(1). No pattern of an output file's path holds the number."""
        return f"--array {tasks}"

    # -- commands and what they answer -----------------------------------------------------

    def submit_command(self, script: Path) -> list[str]:
        """oarsub(1). -S scans the script for directives; without -d the job runs in $PWD."""
        folder = str(script.parent) if self.can_name(script) else "/"
        return ["oarsub", "-d", folder, "-S", _word(script)]

    def resubmit_command(self, script: Path, after: str) -> list[str]:
        """-a waits for the end of the other job, however it ends (measured)."""
        return ["oarsub", "-a", after, *self.submit_command(script)[1:]]

    def parse_submission(self, output: str) -> str:
        """`OAR_JOB_ID=7`, after what admission rules say; a refused job has a negative id or none."""
        match = re.search(r"^OAR_JOB_ID=(\d+)$", output, re.MULTILINE)
        if match is None:
            raise ValueError(output)
        return match.group(1)

    def parse_array(self, output: str, tasks: int) -> list[str]:
        """One line `OAR_JOB_ID=7` a task, in their order (measured)."""
        job_ids = re.findall(r"^OAR_JOB_ID=(\d+)$", output, re.MULTILINE)
        if len(job_ids) != tasks:
            raise ValueError(output)
        return job_ids

    def may_have_submitted(self, words: str) -> bool:
        """With its server down oarsub says `Job is killed`, and the job runs later (measured)."""
        return "Cannot connect to executor" in words

    def find_command(self) -> list[str]:
        """This user's jobs that have not ended."""
        return ["oarstat", "-J", "-u"]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """Jobs whose command is this script."""
        job_ids = (job_id for job_id, job in _jobs(output).items() if job["command"] == _word(script))
        return sorted(job_ids, key=int)

    def parse_found_array(self, output: str, script: Path, tasks: int) -> list[str]:
        """The jobs of the newest array: those that have ended are not listed, and ids follow one another."""
        jobs = {job_id: job for job_id, job in _jobs(output).items() if job["command"] == _word(script)}
        if not jobs:
            return []
        first = max(int(job["array_id"]) for job in jobs.values())
        return [str(first + number) for number in range(tasks)]

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """-f for exit codes and events; whole arrays, as in them a resubmitted job has a new id."""
        asked = ",".join(str(int(job_id)) for job_id in job_ids)
        where = f"array_id IN (SELECT array_id FROM jobs WHERE job_id IN ({asked}))"  # noqa: S608 - numbers
        return ["oarstat", "-f", "-J", "--sql", where]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Each job as what it is now: a resubmitted one's successor names it in `resubmit_job_id`."""
        jobs = _jobs(output)
        try:
            heirs = {str(job["resubmit_job_id"]): job_id for job_id, job in jobs.items()}
            return {job_id: _status(jobs, heirs, job_id) for job_id in jobs}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"oarstat gave a job that lacks something: {error!r}") from error

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """oardel(1). A job that is deleted is not resubmitted, idempotent or not (measured)."""
        return ["oardel", *job_ids]

    def preempt_command(self, job_id: str) -> list[str]:
        """`oardel -c` sends the checkpoint signal, and nothing more."""
        return ["oardel", "-c", job_id]

    # -- inside a job -----------------------------------------------------------------------

    def here(self, env: Mapping[str, str]) -> Here | None:
        """The array's id is the id of its first job, and a resubmitted job keeps it (measured)."""
        if "OAR_JOB_ID" not in env:
            return None
        first = env.get("OAR_ARRAY_ID", "") if env.get("OAR_ARRAY_INDEX", "1") == "1" else ""
        return Here(env["OAR_JOB_ID"], first_job_id=first)

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """OAR has one signal, the warning: what ends a job is SIGKILL."""
        if status.state is JobState.RUNNING:
            return Fate.RUNS_ON
        return Fate.CANCELLED if status.state is JobState.CANCELLED else Fate.UNKNOWN

    def requeue_exit_code(self) -> int:
        """oarsub(1), type idempotent."""
        return 99

    def requeues_exit_after_s(self, status: JobStatus | None) -> float | None:
        """Of an idempotent job, as ours are by default, what ran for more than 60 s (NodeChangeState).

        By OAR's clock, in whole seconds from when its server noted the start, which python's may be before:
        a job that left 61.0 s after python's had 60 s and was lost (measured). A busy server is later still.
        """
        return _MINIMUM_S if status is None or status.requeues_exit else None


def _word(script: Path) -> str:
    """Write a path for two shells, the one that scans the script and the one that runs it.

    oarsub takes what stands before the first space for the script, so quotes alone do not help.
    """
    if _PLAIN.fullmatch(str(script)):
        return str(script)
    octal = "".join(f"\\{byte:03o}" for byte in str(script).encode(errors="surrogateescape"))
    return f"\"$(printf${{IFS}}'{octal}')\""


def _value(line: str) -> str:
    match = re.match(r"\s*(--[^=\s]+|-.)[=\s]?\s*(.*)", line, re.DOTALL)
    return match.group(2).strip() if match else ""


def _as_read(line: str, known: Container[str]) -> str:
    name = re.split(r"[=\s]", line, maxsplit=1)[0]
    name = name if name.startswith("--") else name[:2]
    if name not in known:
        return line
    value = _value(line)
    quoted = re.fullmatch(r"""(["'])(.*)\1""", value)
    return f"{name} {quoted.group(2) if quoted and quoted.group(1) not in quoted.group(2) else value}"


def _jobs(output: str) -> dict[str, dict[str, Any]]:
    """Read `oarstat -J`, which prints nothing at all when there is no job."""
    start = output.find("{")
    jobs: Any = json.loads(output[start:]) if start >= 0 else {}
    if not isinstance(jobs, dict) or not all(
        isinstance(job, dict) and "command" in job for job in jobs.values()
    ):
        raise ValueError("oarstat gave JSON that is not a list of jobs")
    return jobs


def _status(jobs: Mapping[str, Mapping[str, Any]], heirs: Mapping[str, str], job_id: str) -> JobStatus:
    now, cause, before = job_id, "", set[str]()
    while now in heirs:
        if now in before:  # an answer that was damaged on its way
            raise ValueError(f"oarstat gave jobs that succeed one another in a circle: {now}")
        before.add(now)
        ended = jobs[now]
        cause = _end(ended)[1] or f"exit code {(ended.get('exit_code') or 0) >> 8}"
        now = heirs[now]
    job = jobs[now]
    state, reason = (
        _end(job) if job["state"] in ("Error", "Terminated") else (None, str(job["message"] or ""))
    )
    if state is None:
        state = _STATES.get(job["state"], JobState.UNKNOWN)
    runs = state is JobState.RUNNING and job.get("walltime")
    return JobStatus(
        state,
        str(job["state"]),
        reason,
        job_id=now,
        cause=cause,
        ends=_time(job["startTime"] + job["walltime"]) if runs else None,
        requeues_exit="idempotent" in job["types"],
        submitted=_time(job["submissionTime"]),
    )


def _end(job: Mapping[str, Any]) -> tuple[JobState, str]:
    """Say how a job ended: by its exit code, a raw wait status, or by what was done to it."""
    code = job.get("exit_code")
    if job["state"] == "Terminated" and code is not None:
        return (JobState.COMPLETED, "") if code == 0 else (JobState.FAILED, _exit(code))
    events = sorted(job.get("events") or (), key=lambda event: int(event["event_id"]))
    if causes := [str(event["type"]) for event in events if event["type"] in _CAUSES]:
        return _CAUSES[causes[0]], causes[0]
    for event in events:
        if event["type"] == "FRAG_JOB_REQUEST":
            if f"User {job.get('job_user')} " in event["description"]:
                return JobState.CANCELLED, "oardel"
            # a node that is set to Dead or Absent, or an administrator's oardel: OAR does not tell which
            return JobState.NODE_FAIL, "taken away with its node, or deleted by an administrator"
    return JobState.FAILED, _last_words(events) or str(job["message"] or "")


def _exit(code: int) -> str:
    return exit_words(code >> 8 or 128 + (code & 127))


def _last_words(events: Iterable[Mapping[str, Any]]) -> str:
    words = [
        f"{event['type']}: {event['description']}" for event in events if not _NOISE.fullmatch(event["type"])
    ]
    return words[-1] if words else ""


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
