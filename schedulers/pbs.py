"""PBS Professional, OpenPBS and Torque, from their manuals; not run on a real one.

qsub(1B), qstat(1B), qrerun(1B), qsig(1B), pbs_job_attributes(7B) of OpenPBS, and those of Torque:
https://github.com/openpbs/openpbs/tree/master/doc/man1, https://docs.adaptivecomputing.com/torque/.
"""

from __future__ import annotations

import re
import signal
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler, exit_words, in_zone

# qstat(1B), "The job's state"; C is Torque's F. F, C and X say how it ended by other attributes only
_STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "W": JobState.PENDING,
    "T": JobState.PENDING,
    "B": JobState.RUNNING,
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
    "E": JobState.ENDING,
}
# OpenPBS, src/include/job.h: JOB_SUBSTATE_RERUN and its phases; JOB_SUBSTATE_TERMINATED
_RERUN = {"60", "61", "62", "63"}
_TERMINATED = "91"
# the same file, special exit values: JOB_EXEC_KILL_VMEM, _MEM and _WALLTIME
_KILLS = {-26: JobState.OUT_OF_MEMORY, -27: JobState.OUT_OF_MEMORY, -29: JobState.TIME_LIMIT}
# a job that a signal ended has 256 and its number (PBS) or 128 and its number (a shell's way)
_SIGTERMS = (256 + signal.SIGTERM, 128 + signal.SIGTERM)
# 153 is PBSE_UNKJOBID, 15001, cut to a byte: qstat has told of the other jobs
_STATUS = 'qstat -x -f "$@" || [ $? -eq 153 ]'
# a job may not wait for a subjob of an array (PBS User's Guide), but for a time: by then that has left
_LATER = 'exec qsub -a "$(date -d "+1 minute" +%Y%m%d%H%M.%S)" "$@"'


class PBSScheduler(Scheduler):
    """PBS Professional, OpenPBS and Torque: their answers tell which."""

    directive = "#PBS"
    commands = ("qsub", "qstat", "qdel")
    template = "pbs.sh"
    environment = ("PBS_*", "!PBS_CONF_FILE", "!PBS_DEFAULT", "!PBS_SERVER", "!PBS_DPREFIX")
    # SIGTERM is how qdel and the time limit begin to end a job, and qstat does not tell which: so it is
    # left to do what it does. The warning is the script's own, or `qsig`
    warning_signals = (signal.SIGUSR1, signal.SIGUSR2)
    array_variable = "PBS_ARRAY_INDEX"
    node_file = "PBS_NODEFILE"

    def options(self, job: Job) -> list[str]:
        """Name, no files of PBS's, and what lets a job come back from a node that failed."""
        return [f"-N {_name(job.name)}", "-o /dev/null", "-e /dev/null", "-r y"]

    def can_name(self, path: Path) -> bool:
        """PBS copies its files when a job has ended, over those of earlier runs: the script writes them."""
        return False

    def option_name(self, line: str) -> str:
        """Resources and attributes add up: `-l walltime=1:0:0` does not replace `-l select=1`."""
        name = super().option_name(line)
        return line if name in ("-l", "-W") else name

    def array_option(self, tasks: int) -> str:
        """qsub(1B) of PBS; Torque's arrays are not used (see `parse_max_array`)."""
        return f"-J 1-{tasks}"

    # -- commands and what they answer -----------------------------------------------------

    def submit_command(self, script: Path) -> list[str]:
        """qsub(1B)."""
        return ["qsub", str(script)]

    def resubmit_command(self, script: Path, after: str) -> list[str]:
        """qrerun is for managers and operators (qrerun(1B)), so a job comes back as a new one."""
        if "[" in after:
            return ["/bin/sh", "-c", _LATER, "qsub", str(script)]
        return ["qsub", "-W", f"depend=afterany:{after}", str(script)]

    def parse_submission(self, output: str) -> str:
        """`57.server`, or `57[].server`, on the last line."""
        lines = output.split()
        if not lines or not re.fullmatch(r"\d+(\[\])?(\.[\w.-]+)?", lines[-1]):
            raise ValueError(output)
        return lines[-1]

    def task_ids(self, array_id: str, tasks: int) -> list[str]:
        """`57[].server` -> `57[1].server`."""
        return [array_id.replace("[]", f"[{number}]", 1) for number in range(1, tasks + 1)]

    def may_have_submitted(self, words: str) -> bool:
        """The server took it, and its answer was lost on the way."""
        return any(sign in words for sign in ("End of File", "Premature end", "timed out", "protocol error"))

    def is_full(self, words: str) -> bool:
        """PBSE_ENTLIMCT and its like (OpenPBS, src/lib/Libifl/pbs_geterrmsg); Torque's max_user_queuable."""
        return "would exceed" in words or "Maximum number of jobs already in queue" in words

    def find_command(self) -> list[str]:
        """All that may be seen: with -f no user can be named."""
        return ["qstat", "-x", "-f"]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """What qsub was given is kept, and a script is its last argument (qsub(1B), OPERANDS)."""
        job_ids = [
            job_id
            for job_id, job in _jobs(output).items()
            if f" {job.get('Submit_arguments', job.get('submit_args', ''))}".endswith(f" {script}")
        ]
        return sorted(job_ids, key=lambda job_id: int(re.match(r"\d*", job_id)[0] or 0))  # type: ignore[index]

    def max_array_command(self) -> list[str]:
        """qstat(1B), -B -f."""
        return ["qstat", "-B", "-f"]

    def parse_max_array(self, output: str) -> int:
        """max_array_size (pbs_server_attributes(7B)), which Torque lacks; nor has its qsub -J."""
        match = re.search(r"^\s*max_array_size = (\d+)", output, re.MULTILINE)
        return int(match.group(1)) if match else 1

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """-x: finished jobs too, in PBS; XML, in Torque, which shows those for a while in any case."""
        return ["/bin/sh", "-c", _STATUS, "qstat", *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Either `Job Id:` and lines of `name = value`, or XML."""
        return {job_id: _status(job) for job_id, job in _jobs(output).items()}

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """qdel(1B)."""
        return ["qdel", *job_ids]

    def preempt_command(self, job_id: str) -> list[str]:
        """qsig(1B): to the session leader, or to all processes of the job; not all know the names."""
        return ["qsig", "-s", str(signal.SIGUSR2.value), job_id]

    # -- inside a job -----------------------------------------------------------------------

    def here(self, env: Mapping[str, str]) -> Here | None:
        """qsub(1B), ENVIRONMENT VARIABLES; a subjob's id holds its index."""
        return Here(env["PBS_JOBID"]) if "PBS_JOBID" in env else None

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """What ends a job is SIGTERM, which is not heard."""
        if status.state is JobState.RUNNING:
            return Fate.RUNS_ON
        if status.state is JobState.PENDING or status.reason == "rerun":
            return Fate.REQUEUED
        if status.state is JobState.TIME_LIMIT:
            return Fate.TIME_LIMIT
        return Fate.CANCELLED if status.state is JobState.CANCELLED else Fate.UNKNOWN


def _name(name: str) -> str:
    """Cut a name to 15 characters, as older ones want (qsub(1B) of Torque), and keep the run's number."""
    stem, dash, number = name.rpartition("-")
    return re.sub(r"^[^A-Za-z]", "r", f"{stem[: max(1, 14 - len(number))]}{dash}{number}")[:15]


def _jobs(output: str) -> dict[str, dict[str, str]]:
    start = output.find("<Data>")
    if start < 0:
        return _plain_jobs(output)
    try:
        data = ET.fromstring(output[start : output.rfind(">") + 1])  # noqa: S314 - of the site's own server
    except ET.ParseError as error:
        raise ValueError(f"qstat gave broken XML: {error}") from error
    jobs = {}
    for element in data.findall("Job"):
        job = {part.tag: part.text or "" for part in element if not len(part)}
        job |= {f"{part.tag}.{item.tag}": item.text or "" for part in element for item in part}
        jobs[job.get("Job_Id", "")] = job
    return {job_id: job for job_id, job in jobs.items() if job_id and job.get("job_state")}


def _plain_jobs(output: str) -> dict[str, dict[str, str]]:
    jobs: dict[str, dict[str, str]] = {}
    # long values are broken, and go on after a tab (qstat(1B), -w)
    for block in re.split(r"^Job Id: ?", output.replace("\n\t", ""), flags=re.MULTILINE)[1:]:
        job_id, _, rest = block.partition("\n")
        job = dict(re.findall(r"^ {4}([\w.]+) = (.*)$", rest, re.MULTILINE))
        if job_id.strip() and job.get("job_state"):
            jobs[job_id.strip()] = job
    return jobs


def _status(job: Mapping[str, str]) -> JobStatus:
    word = job["job_state"]
    state, reason = _STATES.get(word, JobState.UNKNOWN), job.get("comment", "")
    if word in ("F", "C", "X"):
        state, reason = _end(job)
    elif job.get("substate") in _RERUN:
        reason = "rerun"
    runs = _number(job.get("run_count", job.get("start_count", "")))
    start, limit = _time(job.get("stime", job.get("start_time", ""))), _limit(job)
    return JobStatus(
        state,
        word,
        reason,
        max(0, runs - 1) if runs is not None else None,
        _time(job.get("ctime", "")),
        ends=start + limit if word == "R" and start is not None and limit is not None else None,
    )


def _end(job: Mapping[str, str]) -> tuple[JobState, str]:
    code = _number(job.get("Exit_status", job.get("exit_status", "")))
    used, limit = _duration(job.get("resources_used.walltime", "")), _limit(job)
    if code is None:  # it never ran, or is a subjob of which no more is said
        return (JobState.CANCELLED, "") if job.get("substate") == _TERMINATED else (JobState.UNKNOWN, "")
    if code == 0:
        return JobState.COMPLETED, ""
    reason = exit_words(code - 128 if code > 256 else code)
    if code in _KILLS:
        return _KILLS[code], reason
    if code > 128 and used is not None and limit is not None and used >= limit:
        return JobState.TIME_LIMIT, reason
    return (JobState.CANCELLED if code in _SIGTERMS else JobState.FAILED), reason


def _limit(job: Mapping[str, str]) -> timedelta | None:
    return _duration(job.get("Resource_List.walltime", ""))


def _duration(text: str) -> timedelta | None:
    if not re.fullmatch(r"\d{1,9}(:\d{1,9}){0,3}", text):
        return None
    parts = [int(part) for part in reversed(text.split(":"))]
    return timedelta(**dict(zip(("seconds", "minutes", "hours", "days"), parts, strict=False)))


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def _time(text: str) -> datetime | None:
    """`Fri Aug 29 14:55:55 2008` here, or seconds since 1970 in Torque's XML."""
    try:
        if re.fullmatch(r"[0-9]{1,12}", text):
            return datetime.fromtimestamp(int(text), timezone.utc)
        return in_zone(datetime.strptime(text, "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError, OSError):
        return None
