"""The state of runs, seen from outside: what the scheduler knows and the run itself could not record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.cluster.registry import known
from mlxjobs.errors import (
    DamagedHistoryError,
    MLXJobsError,
    RunError,
    SchedulerError,
    UnknownSubmissionError,
)
from mlxjobs.jobs.cause import cause_of_job, with_progress
from mlxjobs.jobs.hand_in import end_attempt, follow_job, record_refused
from mlxjobs.jobs.startable import out_of_reach
from mlxjobs.record.history import Attempt, RunState, RunStatus
from mlxjobs.record.run import NotRecordedError, Run, runs_in
from mlxjobs.scheduler import JobState, JobStatus
from mlxjobs.system.processes import lives

# how long after it began a job may still be said to wait; clocks that differ by more say nothing of that
_LATE = timedelta(minutes=2)


@dataclass
class Seen:
    """A run as it is known after its scheduler was asked.

    Attributes:
        run: the run.
        state: what is recorded, the news included.
        doubt: why its status may be out of date; None if it is certain.
        forgotten: its scheduler answered, and does not know its job: that neither waits nor runs.
        ending: its scheduler is stopping its job at this moment.
    """

    run: Run
    state: RunState
    doubt: str | None = None
    forgotten: bool = False
    ending: bool = False

    @property
    def out_of_reach(self) -> str | None:
        """Why its job is not looked for, if so; a scheduler of the user's own is not imported to know."""
        path = self.state.scheduler.get("class")
        return out_of_reach(Cluster(str(path)), self.state) if path in known().values() else None

    @property
    def not_imported(self) -> str | None:
        """Why the scheduler that it names is not imported, if so: another user could name any module."""
        path = self.state.scheduler.get("class")
        whose = None if path is None or path in known().values() else self.run.stranger
        return whose and f"unknown: its scheduler {path} is not imported, as {whose}"


def look_at_runs(parent: Path, log_ids: Sequence[int] | None = None, *, run_code: bool = True) -> list[Seen]:
    """Return the runs of a log directory, checked against their schedulers: one question to each.

    What a scheduler knows better is recorded: a job that was cancelled behind our back, killed, or
    lost with its node.

    Args:
        parent: the log directory.
        log_ids: which runs; None: all.
        run_code: ask schedulers too whose class is in a project; a run directory says which one that is.

    Raises:
        RunError: there is no such directory, or no such run.
    """
    runs = runs_in(parent)
    if log_ids is not None:
        by_id = {run.log_id: run for run in runs}
        lacking = [str(log_id) for log_id in log_ids if log_id not in by_id]
        if lacking:
            raise RunError(f"{parent} has no run {', '.join(lacking)}")
        runs = [by_id[log_id] for log_id in log_ids]
    # a folder without events is being made at this moment, or its making failed
    looked_at = [seen for seen in map(_see, runs) if seen.state.sequence or seen.doubt]
    questions: dict[str, list[Seen]] = {}
    for seen in looked_at:
        if seen.state.status.ended or seen.doubt:
            continue
        if seen.state.job_id is not None:
            questions.setdefault(seen.state.scheduler["class"], []).append(seen)
        elif seen.state.status is RunStatus.SUBMITTED:
            _check_submitter(seen)
        elif seen.state.attempt is not None and seen.state.status is not RunStatus.WAITING:
            _check_process(seen, seen.state.attempt)
    for path, asked in questions.items():
        _ask(path, asked, run_code=run_code)
    for seen in looked_at:
        with suppress(OSError, DamagedHistoryError):  # somebody else's runs, perhaps
            seen.run.repaint()
    return looked_at


def _see(run: Run) -> Seen:
    try:
        seen = Seen(run, run.state())
        if not seen.state.status.ended:
            away = seen.out_of_reach
            seen.doubt = f"unknown since {_last_sign(run)}: {away}" if away else seen.not_imported
        return seen
    except DamagedHistoryError as error:  # the other runs are shown all the same
        return Seen(run, RunState(), f"unknown: {error}")


def _record(seen: Seen, record: Callable[[], RunState]) -> None:
    """Record what became of a run; where that cannot be, as in somebody else's folder, say so."""
    try:
        seen.state = record()
    except NotRecordedError as error:
        what = f"that it is {error.state.status} cannot be recorded"
        seen.state, seen.doubt = error.state, f"{what}: {error.filename}: {error.strerror}"


def _check_submitter(seen: Seen) -> None:
    """A process that is killed while it submits leaves a run that nobody hands in."""
    process = seen.state.submitter
    if not process:  # an older version did not say
        return
    host, pid, container = process["host"], process["pid"], process.get("pid_namespace")
    alive = lives(host, pid, process["process_key"], container)
    if alive is None:
        seen.doubt = f"is being handed in by process {pid} on {host}, or was"
    elif not alive:
        # if there is a job all the same, it starts all the same
        gone = UnknownSubmissionError("its submission was interrupted: the process is gone")
        record_refused(seen.run, seen.state.submissions, gone)
        seen.state = seen.run.state()


def _check_process(seen: Seen, attempt: Attempt) -> None:
    alive = lives(attempt.host, attempt.pid, attempt.process_key, attempt.pid_namespace)
    if alive is None:
        seen.doubt = f"unknown since {_last_sign(seen.run)}: {attempt.host} cannot be asked from here"
    elif not alive:
        reason = with_progress(seen.run, "killed") + ": its process is gone"
        _record(seen, lambda: end_attempt(seen.run, attempt.number, RunStatus.FAILED, reason, presumed=True))


def _last_sign(run: Run) -> str:
    """When the run last wrote something, as the file system says."""
    written = [path.stat().st_mtime for path in run.written()]
    moment = datetime.fromtimestamp(max(written, default=0.0))
    return moment.strftime("%H:%M" if moment.date() == datetime.now().date() else "%d/%m/%Y %H:%M")


def _ask(path: str, asked: Sequence[Seen], *, run_code: bool) -> None:
    try:
        if not run_code and path not in known().values():
            why = "is not of an installed package: `mlxjobs ls` asks it"
            raise SchedulerError(f"the scheduler {path} {why}")
        answers = Cluster(path).status([str(seen.state.job_id) for seen in asked])
    except MLXJobsError as error:
        for seen in asked:
            seen.doubt = f"unknown since {_last_sign(seen.run)}: {str(error).splitlines()[0]}"
        return
    for seen in asked:
        status = answers.get(str(seen.state.job_id))
        if status is None or not status.is_of(seen.state.scheduler.get("submitted")):
            why = f"the scheduler does not know job {seen.state.job_id} any more"
            again = f"to go on: mlxjobs requeue {seen.run.log_id} --logs {seen.run.path.parent}"
            seen.doubt, seen.forgotten = f"unknown since {_last_sign(seen.run)}: {why}; {again}", True
        elif status.state is JobState.UNKNOWN:
            seen.doubt = f"unknown: the scheduler says {status.word}"
        else:
            seen.ending = status.state is JobState.ENDING
            _record(seen, partial(_reconcile, seen.run, seen.state, status))


def _reconcile(run: Run, state: RunState, status: JobStatus) -> RunState:
    """Record what the scheduler knows and the run does not."""
    state = follow_job(run, state, status)
    attempt = state.attempt
    running = state.status in (RunStatus.STARTING, RunStatus.RUNNING)
    if running and attempt is not None and attempt.job_id == state.job_id:
        if status.state is JobState.PENDING and _waits_again(attempt, status):
            reason = with_progress(run, "stopped and requeued by the scheduler")
            return end_attempt(run, attempt.number, RunStatus.PREEMPTED, reason, presumed=True)
        if status.state.ended:
            words = cause_of_job(run, attempt, status) + _hint(run, status)
            return end_attempt(run, attempt.number, _verdict(status), words, status.ended, presumed=True)
    elif not running and status.state.ended:
        how, number = _verdict(status), len(state.attempts)
        reason = f"{_not_begun(state, status)}: {cause_of_job(run, None, status)}{_hint(run, status)}"
        event = {"event": "withdrawn", "attempts": number, "status": how.value, "reason": reason}
        return run.record(lambda now: None if now.sequence != state.sequence else event)
    return state


def _waits_again(attempt: Attempt, status: JobStatus) -> bool:
    """Tell a job that was put back from one that its scheduler does not know to have begun: Moab polls."""
    age = datetime.now(timezone.utc) - datetime.fromisoformat(attempt.start)
    return (status.restarts or 0) > attempt.restarts or abs(age) > _LATE


def _not_begun(state: RunState, status: JobStatus) -> str:
    """Tell a job that ended instead of coming back from one that came back, and ended too early."""
    last = state.attempt
    if state.status is RunStatus.PREEMPTED and last is not None and status.restarts == last.restarts:
        return "the job was to be started again, and ended"
    return "the job ended before the task began"


def _verdict(status: JobStatus) -> RunStatus:
    """FAILED is the task's doing; what the user or the scheduler ended for good is CANCELLED."""
    by_itself = status.state in (JobState.FAILED, JobState.COMPLETED, JobState.OUT_OF_MEMORY)
    return RunStatus.FAILED if by_itself else RunStatus.CANCELLED


def _hint(run: Run, status: JobStatus) -> str:
    """What to do where the run should have come back."""
    if status.state in (JobState.PREEMPTED, JobState.TIME_LIMIT, JobState.NODE_FAIL):
        return f"; to go on: mlxjobs requeue {run.log_id} --logs {run.path.parent}"
    return ""
