"""IBM Spectrum LSF 10.1, from its manual; not run on a real one.

Command and configuration reference: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler, exit_words

# bjobs(1), JOB STATUS; EXIT hides why
_STATES = {
    "PEND": JobState.PENDING,
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "PROV": JobState.PENDING,
    "FWD_PEND": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "SSUSP": JobState.RUNNING,
    "USUSP": JobState.RUNNING,
    "DONE": JobState.COMPLETED,
    "EXIT": JobState.FAILED,
}
# "Termination reasons displayed by bacct, bhist, and bjobs"
_REASONS = {
    "TERM_RUNLIMIT": JobState.TIME_LIMIT,
    "TERM_DEADLINE": JobState.TIME_LIMIT,
    "TERM_WINDOW": JobState.TIME_LIMIT,
    "TERM_MEMLIMIT": JobState.OUT_OF_MEMORY,
    "TERM_PREEMPT": JobState.PREEMPTED,
    "TERM_ZOMBI": JobState.NODE_FAIL,
    "TERM_ADMIN": JobState.CANCELLED,
    "TERM_FORCE_ADMIN": JobState.CANCELLED,
    "TERM_OWNER": JobState.CANCELLED,
    "TERM_FORCE_OWNER": JobState.CANCELLED,
    "TERM_BUCKET_KILL": JobState.CANCELLED,
}
_FIELDS = "jobid jobindex stat exit_code exit_reason time_left job_description"
# 255 may only mean that one of the jobs is not known (LSB_BJOBS_CONSISTENT_EXIT_CODE): then it tells of the
# others. What is left of a job's time becomes a time by the clock beside it.
_STATUS = (
    'date +%s; out=$(bjobs -json -hms -o "$0" "$@"); code=$?; printf "%s\\n" "$out"; '
    '[ "$code" -eq 0 ] || [ -n "$out" ]'
)


class LSFScheduler(Scheduler):
    """IBM Spectrum LSF."""

    directive = "#BSUB"
    commands = ("bsub", "bjobs", "bkill")
    # LSF_* is how its commands find it, two of LSB_* are the user's own defaults
    environment = ("LSB_*", "LS_*", "LSFUSER", "!LSB_DEFAULTQUEUE", "!LSB_DEFAULTPROJECT")
    # SIGINT and SIGTERM are how bkill, and so brequeue, begin to end a job: they do what they do
    warning_signals = (signal.SIGUSR1, signal.SIGUSR2)
    array_variable = "LSB_JOBINDEX"
    remote_shell = ("blaunch",)
    node_file = "LSB_DJOB_HOSTFILE"

    def option_name(self, line: str) -> str:
        """Names have one dash and may have several letters, `-We` is not `-W`; requirements add up."""
        name = re.split(r"[=\s]", line.strip(), maxsplit=1)[0]
        return {"-oo": "-o", "-eo": "-e", "-rn": "-r", "-R": line}.get(name, name)

    def options(self, job: Job) -> list[str]:
        """Name, no files of LSF's, and what lets a job come back."""
        return [
            f"-J {job.name}",
            f"-Jd {_mark(job.script)}",
            "-o /dev/null",
            "-e /dev/null",
            "-r",
            # by leaving with it a job asks to be requeued; a -Q of the user's own has to name it too
            f"-Q {self.requeue_exit_code()}",
            # a minute before LSF ends it, for its time or otherwise
            "-wa USR2",
            "-wt 1",
        ]

    def can_name(self, path: Path) -> bool:
        """LSF adds a report of the job to its file, and writes it when the job has ended: the script does."""
        return False

    def directives(self, job: Job) -> list[str]:
        """An array is a name with indices, so of the user's name and ours the one in force gets them."""
        lines = super().directives(job)
        if not job.tasks:
            return lines
        indices = self.array_option(job.tasks).split()[-1]
        return [re.sub(r"^(\S+ -J)\s+(\S+)$", rf'\1 "\2{indices}"', line) for line in lines[:-1]]

    def array_option(self, tasks: int) -> str:
        """bsub(1), -J."""
        return f"-J [1-{tasks}]"

    # -- commands and what they answer -----------------------------------------------------

    def submit_command(self, script: Path) -> list[str]:
        """By standard input: of a file options are read only where LSB_BSUB_PARSE_SCRIPT is set."""
        return ["/bin/sh", "-c", 'exec bsub <"$0"', str(script)]

    def parse_submission(self, output: str) -> str:
        """`Job <57> is submitted to queue <normal>.`"""
        match = re.search(r"^Job <(\d+)> is submitted ", output, re.MULTILINE)
        if match is None:
            raise ValueError(output)
        return match.group(1)

    def task_ids(self, array_id: str, tasks: int) -> list[str]:
        """bsub(1), -J."""
        return [f"{array_id}[{number}]" for number in range(1, tasks + 1)]

    def is_full(self, words: str) -> bool:
        """MAX_PEND_JOBS of lsb.users and lsb.params."""
        return "pending job threshold" in words.lower() or "pending jobs" in words.lower()

    def find_command(self) -> list[str]:
        """All of this user's jobs that LSF remembers."""
        return ["bjobs", "-a", "-json", "-o", _FIELDS]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """A script that was read from standard input has no name: so our jobs are marked."""
        found = {
            record["JOBID"] for record in _records(output) if record.get("JOB_DESCRIPTION") == _mark(script)
        }
        return sorted(found, key=int)

    def max_array_command(self) -> list[str]:
        """bparams(1)."""
        return ["bparams", "-a"]

    def parse_max_array(self, output: str) -> int | None:
        """MAX_JOB_ARRAY_SIZE of lsb.params."""
        match = re.search(r"MAX_JOB_ARRAY_SIZE\s*=\s*(\d+)", output)
        return int(match.group(1)) if match else None

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """bjobs(1), -o; a job that is named is shown when it has ended too, for an hour (CLEAN_PERIOD)."""
        return ["/bin/sh", "-c", _STATUS, _FIELDS, *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """A line with the time, and JSON."""
        clock = re.match(r"\s*([0-9]{1,11})\s*$", output.partition("\n")[0])
        now = datetime.fromtimestamp(int(clock.group(1)), timezone.utc) if clock else None
        return {_id(record): _status(record, now) for record in _records(output)}

    def history_command(self, job_ids: Sequence[str]) -> list[str]:
        """bhist(1): -n 0 looks into all of LSF's event files, -UF breaks no lines."""
        return ["bhist", "-n", "0", "-l", "-UF", *job_ids]

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """A job's end is a sentence; one that is not there has not ended."""
        jobs = {}
        for block in re.split(r"^Job <(?=\d)", output, flags=re.MULTILINE)[1:]:
            # of a job that was requeued the last end counts
            ends = re.findall(
                r"(Done successfully|Exited with exit code (\d+)|Exited by signal \d+|Exited)", block
            )
            if not ends:
                continue
            words, code = ends[-1]
            term = re.findall(r"\bTERM_[A-Z_]+", block)
            record = {"STAT": "DONE" if words.startswith("Done") else "EXIT", "EXIT_CODE": code}
            jobs[block.partition(">")[0]] = _status({**record, "EXIT_REASON": (term or [""])[-1]}, None)
        return jobs

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """bkill(1)."""
        return ["bkill", *job_ids]

    def requeue_command(self, job_id: str) -> list[str]:
        """brequeue(1), by the job's owner; -a: jobs that have ended too. The job keeps its id."""
        return ["brequeue", "-a", job_id]

    def preempt_command(self, job_id: str) -> list[str]:
        """bkill(1), -s."""
        return ["bkill", "-s", "USR2", job_id]

    # -- inside a job -----------------------------------------------------------------------

    def here(self, env: Mapping[str, str]) -> Here | None:
        """LSB_JOBINDEX is 0 in a job that is of no array."""
        if "LSB_JOBID" not in env:
            return None
        index = env.get("LSB_JOBINDEX", "0")
        return Here(env["LSB_JOBID"] + ("" if index in ("", "0") else f"[{index}]"))

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """What ends a job are other signals; a job that runs was warned."""
        if status.state is JobState.RUNNING:
            return Fate.RUNS_ON
        if status.state is JobState.PENDING:
            return Fate.REQUEUED
        if status.state is JobState.TIME_LIMIT:
            return Fate.TIME_LIMIT
        return Fate.CANCELLED if status.state is JobState.CANCELLED else Fate.UNKNOWN

    def requeue_exit_code(self) -> int:
        """The one that our -Q names: bsub(1)."""
        return 99

    def requeues_exit_after_s(self, status: JobStatus | None) -> float:
        """At once."""
        return 0.0


def _mark(script: Path) -> str:
    """Stand for a script in its job's description, where a path would have to be quoted."""
    return f"mlxjobs-{hashlib.sha256(str(script).encode(errors='surrogateescape')).hexdigest()[:32]}"


def _records(output: str) -> list[dict[str, str]]:
    """Read what bjobs -json printed; a job that it does not know is a record with an ERROR."""
    start = output.find("{")
    if start < 0:
        return []
    data: Any = json.loads(output[start:])  # JSONDecodeError is a ValueError
    records = data.get("RECORDS") if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise ValueError("bjobs gave JSON without RECORDS")
    named = [
        {key: str(value) for key, value in record.items()} for record in records if isinstance(record, dict)
    ]
    return [job for job in named if job.get("STAT") and re.fullmatch(r"[0-9]+", job.get("JOBID", ""))]


def _id(record: Mapping[str, str]) -> str:
    index = record.get("JOBINDEX", "0")
    return record["JOBID"] + ("" if index in ("", "0", "-") else f"[{index}]")


def _status(record: Mapping[str, str], now: datetime | None) -> JobStatus:
    word, reason = record["STAT"], record.get("EXIT_REASON", "").strip("- ")
    state = _STATES.get(word, JobState.UNKNOWN)
    if word == "EXIT":
        state = _REASONS.get(reason.partition(":")[0], JobState.FAILED)
        code = record.get("EXIT_CODE", "")
        reason = reason or (exit_words(int(code)) if code.isdecimal() else "")
    left = re.match(r"([0-9]{1,6}):([0-9]{1,2}):([0-9]{1,2})\b", record.get("TIME_LEFT", ""))
    ends = None
    if now is not None and left is not None and word == "RUN":
        hours, minutes, seconds = (int(part) for part in left.groups())
        ends = now + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return JobStatus(state, word, reason, ends=ends, requeues_exit=True)
