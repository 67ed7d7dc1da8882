"""One machine and no cluster: the queue of `python -m mlxjobs.localqueue`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler

# As `python -m mlxjobs.localqueue`, which would look into the current folder first: for our package, and for
# the modules of the standard library too. That may be anybody's folder, or have a select.py of its own.
_START = (
    "import sys; sys.path = [*filter(None, sys.path), sys.argv.pop(1)]; "
    "from mlxjobs.local.queue import main; raise SystemExit(main())"
)
QUEUE = [sys.executable, "-c", _START, str(Path(__file__).parents[2])]
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIME_LIMIT,
}


class LocalScheduler(Scheduler):
    """A queue of one user on one machine, which outlives the terminal and needs no daemon."""

    directive = "#LOCAL"
    commands = ()
    own_queues = True
    environment = ("MLXJOBS_LOCAL_JOB_ID", "MLXJOBS_LOCAL_RESTART_COUNT")

    def options(self, job: Job) -> list[str]:
        """Name, output and error."""
        return [
            f"--job-name={shlex.quote(job.name)}",
            *(
                f"--{stream}={shlex.quote(str(path))}"
                for stream, path in (("output", job.stdout), ("error", job.stderr))
                if self.names(path)
            ),
        ]

    def submit_command(self, script: Path) -> list[str]:
        """`submit` answers `Submitted local job 7`."""
        return [*QUEUE, "submit", str(script)]

    def parse_submission(self, output: str) -> str:
        """The number at the end."""
        match = re.search(r"^Submitted local job (\d+)$", output, re.MULTILINE)
        if match is None:
            raise ValueError(output)
        return match.group(1)

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """`status` leaves out jobs that it does not know."""
        return [*QUEUE, "status", *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """`7|RUNNING|preempted|0|1795420000.5`, the last cell being when it will be killed."""
        rows = [line.split("|") for line in output.splitlines()]
        return {
            row[0]: JobStatus(_STATES.get(row[1], JobState.UNKNOWN), row[1], row[2], int(row[3]))
            for row in rows
            if len(row) == 5
        }

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """End jobs for good."""
        return [*QUEUE, "cancel", *job_ids]

    def requeue_command(self, job_id: str) -> list[str]:
        """Stop a job and start it again."""
        return [*QUEUE, "requeue", job_id]

    def preempt_command(self, job_id: str) -> list[str]:
        """Stop a job and queue it again behind those that wait."""
        return [*QUEUE, "preempt", job_id]

    def time_limit_option(self, seconds: int) -> str:
        """In Slurm's form."""
        return f"--time=0:00:{seconds}"

    def here(self, env: Mapping[str, str]) -> Here | None:
        """The queue sets two variables."""
        if "MLXJOBS_LOCAL_JOB_ID" not in env:
            return None
        return Here(env["MLXJOBS_LOCAL_JOB_ID"], int(env.get("MLXJOBS_LOCAL_RESTART_COUNT", "0")))

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """A job that is being stopped is RUNNING, and its reason says what for."""
        if status.state is not JobState.RUNNING:
            return Fate.CANCELLED if status.state.ended else Fate.REQUEUED
        fates = {
            "cancelled": Fate.CANCELLED,
            "preempted": Fate.REQUEUED,
            "requeued": Fate.REQUEUED,
            "time limit": Fate.TIME_LIMIT,
        }
        return fates.get(status.reason, Fate.RUNS_ON)
