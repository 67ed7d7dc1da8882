"""Moab Workload Manager over Torque, from its manual; not run on a real one.

msub, showq, checkjob, mjobctl: https://docs.adaptivecomputing.com/mwm/ (7.2 to 9.1), "Commands".
"""

from __future__ import annotations

import re
import signal
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler

# "Job States"; Completed hides how
_STATES = {
    "BatchHold": JobState.PENDING,
    "Blocked": JobState.PENDING,
    "Deferred": JobState.PENDING,
    "Depend": JobState.PENDING,
    "Hold": JobState.PENDING,
    "Idle": JobState.PENDING,
    "Migrated": JobState.PENDING,
    "NotQueued": JobState.PENDING,
    "Staging": JobState.PENDING,
    "Starting": JobState.PENDING,
    "SystemHold": JobState.PENDING,
    "UserHold": JobState.PENDING,
    "Running": JobState.RUNNING,
    "Suspended": JobState.RUNNING,
    "Canceling": JobState.ENDING,
    "Removed": JobState.CANCELLED,
    "Vacated": JobState.PREEMPTED,
}
_SIGTERMS = (str(256 + signal.SIGTERM), str(128 + signal.SIGTERM))
# what waits and runs, and what has ended not long ago (JOBCPURGETIME): two documents, one after the other
_QUEUES = 'who=user=$(id -un); showq --xml -w "$who" && showq -c --xml -w "$who"'
# checkjob takes one job, and knows those that showq has folded or forgotten
_EACH = 'for job do checkjob --xml "$job" 2>/dev/null; done; true'


class MWMScheduler(Scheduler):
    """Moab Workload Manager.

    Sweeps are no arrays: `canceljob` and `mjobctl` read `45[3]` as a regular expression, which is
    the job 453 (mjobctl, JOB EXPRESSION), and ENABLEJOBARRAYS is off by default ("Job Arrays").
    """

    directive = "#MSUB"
    commands = ("msub", "showq", "checkjob", "canceljob")
    template = "pbs.sh"  # what runs the jobs is Torque
    environment = ("MOAB_*", "PBS_*", "!MOABHOMEDIR", "!PBS_DEFAULT", "!PBS_SERVER")
    # as in PBS: SIGTERM is the beginning of a job's end, and the warning is the script's own
    warning_signals = (signal.SIGUSR1, signal.SIGUSR2)
    node_file = "PBS_NODEFILE"

    def options(self, job: Job) -> list[str]:
        """Name, no files of Torque's, what lets a job come back, and MOAB_JOBID in its environment."""
        return [f"-N {job.name}", "-o /dev/null", "-e /dev/null", "-r y", "-E"]

    def can_name(self, path: Path) -> bool:
        """Torque copies its files when a job has ended, over those of earlier runs; so the script does."""
        return False

    def option_name(self, line: str) -> str:
        """Resources and attributes add up: `-l walltime=1:0:0` does not replace `-l nodes=1`."""
        name = super().option_name(line)
        return line if name in ("-l", "-W") else name

    # -- commands and what they answer -----------------------------------------------------

    def submit_command(self, script: Path) -> list[str]:
        """msub."""
        return ["msub", str(script)]

    def resubmit_command(self, script: Path, after: str) -> list[str]:
        """Not every user may `mjobctl -R`, nor is every job restartable: so it comes back as a new one."""
        return ["msub", "-l", f"depend=afterany:{after}", str(script)]

    def parse_submission(self, output: str) -> str:
        """`57` or `Moab.57`, after an empty line."""
        lines = output.split()
        if not lines or not re.fullmatch(r"([A-Za-z][\w-]*\.)?\d+", lines[-1]):
            raise ValueError(output)
        return lines[-1]

    def may_have_submitted(self, words: str) -> bool:
        """`ERROR:  client timed out after 30 seconds (...)`."""
        return "timed out" in words

    def is_full(self, words: str) -> bool:
        """MAXIJOB and like limits refuse at submission with ENABLEHIGHTHROUGHPUT or REJECTACTION."""
        return "maximum" in words.lower() and "jobs" in words.lower()

    def find_command(self) -> list[str]:
        """mjobctl, -q; showq does not know a job's script."""
        return ["mjobctl", "-q", "diag", "ALL", "--format=xml"]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """Jobs whose CmdFile is this script."""
        job_ids = [job["JobID"] for job in _jobs(output) if job.get("CmdFile") == str(script)]
        return sorted(job_ids, key=lambda job_id: int(job_id.rpartition(".")[2]))

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """showq tells of all jobs of the user."""
        return ["/bin/sh", "-c", _QUEUES]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Elements `job`, of any document."""
        return {job["JobID"]: _status(job) for job in _jobs(output)}

    def history_command(self, job_ids: Sequence[str]) -> list[str]:
        """checkjob."""
        return ["/bin/sh", "-c", _EACH, "checkjob", *job_ids]

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """canceljob."""
        return ["canceljob", *job_ids]

    def preempt_command(self, job_id: str) -> list[str]:
        """mjobctl, -N."""
        return ["mjobctl", "-N", str(signal.SIGUSR2.value), job_id]

    # -- inside a job -----------------------------------------------------------------------

    def here(self, env: Mapping[str, str]) -> Here | None:
        """msub, -E; without it Torque's id, whose number is Moab's own unless a site says otherwise."""
        job_id = env.get("MOAB_JOBID") or env.get("PBS_JOBID", "").partition(".")[0]
        return Here(job_id) if job_id else None

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """What ends a job is SIGTERM, which is not heard."""
        if status.state is JobState.RUNNING:
            return Fate.RUNS_ON
        if status.state in (JobState.PENDING, JobState.PREEMPTED):
            return Fate.REQUEUED
        if status.state is JobState.TIME_LIMIT:
            return Fate.TIME_LIMIT
        return Fate.CANCELLED if status.state is JobState.CANCELLED else Fate.UNKNOWN


def _jobs(output: str) -> list[dict[str, str]]:
    if "<" not in output:
        return []
    # several documents, each with or without a declaration, are one with a root of ours
    text = re.sub(r"<\?.*?\?>", "", output[output.find("<") : output.rfind(">") + 1], flags=re.DOTALL)
    try:
        root = ET.fromstring(f"<all>{text}</all>")  # noqa: S314 - of the site's own server
    except ET.ParseError as error:
        raise ValueError(f"Moab gave broken XML: {error}") from error
    jobs = [dict(element.attrib) for element in root.iter("job")]
    return [job for job in jobs if job.get("State") and re.search(r"[0-9]$", job.get("JobID", ""))]


def _status(job: Mapping[str, str]) -> JobStatus:
    word, code = job["State"], job.get("CompletionCode", "")
    state, reason = _STATES.get(word, JobState.UNKNOWN), job.get("BlockReason", "")
    if word == "Completed":
        state, reason = _end(job, code), "" if code in ("", "0") else f"completion code {code}"
    start, limit = _seconds(job.get("StartTime", "")), _seconds(job.get("ReqAWDuration", ""))
    starts = _seconds(job.get("StartCount", ""))
    return JobStatus(
        state,
        word,
        reason,
        int(starts) - 1 if starts else None,
        _time(_seconds(job.get("SubmissionTime", ""))),
        ends=_time(start + limit) if word == "Running" and start and limit else None,
    )


def _end(job: Mapping[str, str], code: str) -> JobState:
    """CompletionCode is the exit code, or CNCLD with or without it in brackets (showq, -c)."""
    used, limit = _seconds(job.get("AWDuration", "")), _seconds(job.get("ReqAWDuration", ""))
    if code == "0":
        return JobState.COMPLETED
    if used and limit and used >= limit:
        return JobState.TIME_LIMIT
    if code.startswith("CNCLD") or code in _SIGTERMS:
        return JobState.CANCELLED
    return JobState.FAILED if code else JobState.UNKNOWN


def _seconds(text: str) -> float | None:
    """`3600`, in showq; `1:00:00`, elsewhere."""
    if not re.fullmatch(r"[0-9]{1,11}(:[0-9]{1,9}){0,3}", text):
        return None
    units = (1, 60, 3600, 86400)
    return float(sum(int(part) * unit for part, unit in zip(reversed(text.split(":")), units, strict=False)))


def _time(seconds: float | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc) if seconds else None
    except (ValueError, OverflowError, OSError):
        return None
