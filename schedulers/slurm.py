"""Slurm, 20.11 and newer: https://slurm.schedmd.com/man_index.html. Tested on 22.05."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler, exit_words, in_zone

# squeue(1), JOB STATE CODES. COMPLETING and the like hide what the job was before.
_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "STAGE_OUT": JobState.ENDING,
    "COMPLETING": JobState.ENDING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "NODE_FAIL": JobState.NODE_FAIL,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIME_LIMIT,
    "DEADLINE": JobState.TIME_LIMIT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "PREEMPTED": JobState.PREEMPTED,
}
_SEPARATOR = "\x1f"
# scancel repeats a signal to a task of an array, first after 5 s, while others of its tasks wait (22.05):
# so it is ended before, and was heard if the controller answers
_WARN = """timeout 3 scancel --signal=USR2 --full "$1" && exit
[ $? -eq 124 ] && squeue --noheader --me >/dev/null"""


class SLURMScheduler(Scheduler):
    """SchedMD's Slurm."""

    directive = "#SBATCH"
    commands = ("sbatch", "squeue", "scontrol", "scancel")
    template = "slurm.sh"
    # what slurmd, srun and the MPI plug-ins set; SLURM_CONF says where the controller is, and
    # SBATCH_* and SQUEUE_* are the user's own defaults
    environment = ("SLURM_*", "SLURMD_*", "SRUN_*", "PMI_*", "PMIX_*", "PMI2_*", "!SLURM_CONF")
    aliases = {  # noqa: RUF012 - declared in the base class
        "-J": "--job-name",
        "-o": "--output",
        "-e": "--error",
        "-D": "--chdir",
        "--workdir": "--chdir",
        "-t": "--time",
        "--no-requeue": "--requeue",
    }
    array_variable = "SLURM_ARRAY_TASK_ID"
    array_index = "%a"
    launches_ranks = True
    submitit = "slurm"

    def options(self, job: Job) -> list[str]:
        """Name, output, error, and what lets a job come back."""
        return [
            f"--job-name={shlex.quote(job.name)}",
            f"--output={_file(job.stdout) if self.names(job.stdout) else '/dev/null'}",
            f"--error={_file(job.stderr) if self.names(job.stderr) else '/dev/null'}",
            # without it a requeued job overwrites what it said before
            "--open-mode=append",
            "--requeue",
            # a minute before the time limit, to the batch step's process only (sbatch(1), --signal).
            # USR2, as NCCL takes USR1 for itself
            "--signal=B:USR2@60",
            *([f"--ntasks-per-node={job.ranks_per_node}"] if job.ranks_per_node else []),
        ]

    def can_name(self, path: Path) -> bool:
        """Neither does a line break, nor is a backslash one in a file name pattern."""
        return not {"\n", "\\"} & set(str(path))

    def array_option(self, tasks: int) -> str:
        """sbatch(1)."""
        return f"--array=1-{tasks}"

    def submit_command(self, script: Path) -> list[str]:
        """sbatch(1)."""
        return ["sbatch", "--parsable", str(script)]

    def parse_submission(self, output: str) -> str:
        """`57` or `57;cluster`, on the last line: sites print notices before it."""
        lines = output.split()
        match = re.fullmatch(r"(\d+)(;\S+)?", lines[-1]) if lines else None
        if match is None:
            raise ValueError(output)
        return match.group(1)

    def may_have_submitted(self, words: str) -> bool:
        """A controller that hangs takes the job once it goes on; one that dies may have taken it before."""
        signs = ("timed out", "Zero Bytes", "Unexpected message", "reset by peer")
        return any(sign in words for sign in signs)

    def is_full(self, words: str) -> bool:
        """Limits of the user, the account or the partition (resource_limits.html), and MaxJobCount."""
        return re.search(r"Max(Submit)?Job|GrpSubmit|job submit limit|temporarily un", words) is not None

    def find_command(self) -> list[str]:
        """The script's path is the one mark that no option of the user can replace.

        %F is the array's id for all of its tasks, and else the job's.
        """
        return ["squeue", "--noheader", "--me", "--states=all", f"--format=%F{_SEPARATOR}%o"]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """Jobs whose command is this script."""
        rows = [line.partition(_SEPARATOR) for line in output.splitlines()]
        seen = str(script).partition("\n")[0]
        return sorted({job_id for job_id, _, command in rows if command == seen}, key=int)

    def max_array_command(self) -> list[str]:
        """scontrol(1)."""
        return ["scontrol", "show", "config"]

    def parse_max_array(self, output: str) -> int | None:
        """Numbers of tasks are smaller than MaxArraySize (slurm.conf(5)), and ours begin with 1."""
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", output, re.MULTILINE)
        return int(match.group(1)) - 1 if match else None

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """squeue(1): exact at once, and no load for the accounting database.

        With one unknown id alone squeue fails; with two it leaves out what it does not know, so
        one id is asked for twice.
        """
        ids = list(job_ids) * 2 if len(job_ids) == 1 else list(job_ids)
        fields = ("JobArrayID", "State", "Reason", "RestartCnt", "SubmitTime", "exit_code")
        form = ",".join(f"{name}:200{_SEPARATOR}" for name in fields)
        return [
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--jobs={','.join(ids)}",
            f"--Format={form}",
        ]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """One line a job."""
        jobs = {}
        for line in output.splitlines():
            cells = [cell.strip() for cell in line.split(_SEPARATOR)]
            if len(cells) < 6:
                continue
            job_id, word, reason, restarts, submitted, code = cells[:6]
            jobs[job_id] = JobStatus(
                _state(word),
                word,
                (_exit(code) if word == "FAILED" else "") or ("" if reason == "None" else reason),
                int(restarts) if restarts.isdecimal() else None,
                _time(submitted),
            )
        return jobs

    def history_command(self, job_ids: Sequence[str]) -> list[str]:
        """sacct(1); -S, because without it only today's jobs are shown. The steps know the memory used."""
        return _sacct(job_ids)

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """The job's line, then its steps' (`57.batch`); tasks of an array that never ran share one."""
        rows = _rows(output)
        used: dict[str, int] = {}
        for row in rows:
            job_id = row[0].partition(".")[0]
            used[job_id] = max(used.get(job_id, 0), _bytes(row[5]) or 0)
        jobs = [row for row in rows if "." not in row[0]]
        return {job_id: _ended(row, used[row[0]]) for row in jobs for job_id in _ids(row[0])}

    def earlier_command(self, job_id: str) -> list[str]:
        """All runs of a job, oldest first (measured); only accounting remembers how one was stopped."""
        return [*_sacct([job_id]), "--duplicates", "--allocations"]

    def parse_earlier(self, output: str) -> list[JobStatus]:
        """A line a run."""
        return [_ended(row) for row in _rows(output)]

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """scancel(1)."""
        return ["scancel", *job_ids]

    def requeue_command(self, job_id: str) -> list[str]:
        """scontrol(1); for an array's task `job_id` is `<array>_<task>`, never the array's own id."""
        return ["scontrol", "requeue", job_id]

    def preempt_command(self, job_id: str) -> list[str]:
        """A user cannot preempt, but can warn: the batch step and the tasks of srun."""
        return ["/bin/sh", "-c", _WARN, "scancel", job_id]

    def time_limit_option(self, seconds: int) -> str:
        """In minutes, as Slurm rounds up to them."""
        return f"--time={math.ceil(seconds / 60)}"

    def here(self, env: Mapping[str, str]) -> Here | None:
        """sbatch(1), OUTPUT ENVIRONMENT VARIABLES; srun(1) for the ranks."""
        if "SLURM_JOB_ID" not in env:
            return None
        job_id = env["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in env:
            # the last task's SLURM_JOB_ID is the whole array's id: never use that one
            job_id = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
        # only srun's tasks have ranks; the batch script has SLURM_NTASKS and SLURM_PROCID=0 too
        in_step = env.get("SLURM_STEP_ID", "batch").isdecimal()
        return Here(
            job_id,
            int(env.get("SLURM_RESTART_COUNT", "0")),
            int(env.get("SLURM_PROCID", "0")) if in_step else 0,
            int(env.get("SLURM_NTASKS", "1")) if in_step else 1,
        )

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """Read off squeue: measured on 22.05.

        While a job is being stopped its state is COMPLETING, whatever for. A restart that is
        counted already means that it goes back into the queue (preemption, requeue, node failure);
        the reason TimeLimit says itself; nothing at all is a cancellation.
        """
        if status.restarts is not None and status.restarts > here.restarts:
            return Fate.REQUEUED
        if status.state in (JobState.RUNNING, JobState.PENDING):
            return Fate.RUNS_ON if status.state is JobState.RUNNING else Fate.REQUEUED
        if status.reason == "TimeLimit" or status.state is JobState.TIME_LIMIT:
            return Fate.TIME_LIMIT
        if status.state is JobState.UNKNOWN:
            return Fate.UNKNOWN
        return Fate.CANCELLED


def _state(word: str) -> JobState:
    return _STATES.get(word, JobState.UNKNOWN)


def _sacct(job_ids: Sequence[str]) -> list[str]:
    return [
        "env", "SLURM_BITSTR_LEN=0",  # else `57_[1,3,5...` is cut after 64 bytes (sacct(1), JobID)
        "sacct", "--noheader", "--parsable2", "--starttime=now-90days", f"--jobs={','.join(job_ids)}",
        f"--delimiter={_SEPARATOR}", "--format=jobid,state,submit,end,exitcode,maxrss,reqmem",
    ]  # fmt: skip


def _ids(job_id: str) -> list[str]:
    """`57_[2-4,6%2]` -> `57_2`, `57_3`, ...: submitit reads what Slurm writes of several tasks."""
    if "[" not in job_id:
        return [job_id]
    from submitit.slurm.slurm import read_job_id  # 0.2 s, and few answers have such a line

    try:
        parts = read_job_id(job_id)
    except ValueError:  # every nth task, `57_[1-9:2]`: nothing is said of them, rather than a guess
        return []
    return [
        f"{array}_{task}" for array, *ends in parts if ends for task in range(int(ends[0]), int(ends[-1]) + 1)
    ]


def _rows(output: str) -> list[list[str]]:
    rows = [line.split(_SEPARATOR) for line in output.splitlines()]
    return [row for row in rows if len(row) == 7 and row[1]]


def _ended(row: Sequence[str], used: int = 0) -> JobStatus:
    """States come as `CANCELLED by 1001`, and codes of 128 and more without those 128 (measured)."""
    state, limit = _state(row[1].split()[0]), _bytes(row[6])
    reason = _exit(row[4]) if state is JobState.FAILED and row[4].startswith("0:") else ""
    memory = (used, limit) if used and limit else None
    return JobStatus(state, row[1], reason, submitted=_time(row[2]), ended=_time(row[3]), memory=memory)


def _exit(text: str) -> str:
    """`3:0` is an exit code, `0:9` a signal; squeue has the wait status: `768`, `9` (measured)."""
    if text.isdecimal():
        text = f"{int(text) >> 8}:{int(text) & 127}"
    code, _, number = text.partition(":")
    if not (code.isdecimal() and number.isdecimal()) or (code, number) == ("0", "0"):
        return ""
    return exit_words(int(code) or 128 + int(number))


def _bytes(text: str) -> int | None:
    """`16G`; not `4Gc`, which is for each core (before 21.08)."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return int(float(match.group(1)) * 1024 ** " KMGT".index(match.group(2) or " ")) if match else None


def _time(text: str) -> datetime | None:
    try:
        return in_zone(datetime.fromisoformat(text))
    except ValueError:
        return None


def _file(path: Path) -> str:
    """Write a file's path for --output, where `%` begins a pattern (sbatch(1), filename pattern).

    sbatch takes quotes as a shell does; no quoting saves a line break or a backslash.
    """
    return shlex.quote(str(path).replace("%", "%%"))
