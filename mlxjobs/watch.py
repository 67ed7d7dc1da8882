"""Looking at runs from outside: what the scheduler knows and the run itself could not record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.cluster import Cluster
from mlxjobs.errors import MLXJobsError, RunError, SchedulerError
from mlxjobs.hand_in import end_attempt, follow, hand_in
from mlxjobs.history import Attempt, RunState, RunStatus
from mlxjobs.scheduler import JobState, JobStatus
from mlxjobs.startable import is_alive
from mlxjobs.store import Run, runs_in


@dataclass
class Seen:
    """A run as it is known after its scheduler was asked.

    Attributes:
        run: the run.
        state: what is recorded, the news included.
        doubt: why its status may be out of date; None if it is certain.
    """

    run: Run
    state: RunState
    doubt: str | None = None


def look(parent: Path, log_ids: Sequence[int] | None = None) -> list[Seen]:
    """Return the runs of a log directory, checked against their schedulers: one question to each.

    What a scheduler knows better is recorded: a job that was cancelled behind our back, killed, or
    lost with its node.

    Args:
        parent: the log directory.
        log_ids: which runs; None: all.

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
    seen = [one for one in (Seen(run, run.state()) for run in runs) if one.state.sequence]
    questions: dict[str, list[Seen]] = {}
    for one in seen:
        if one.state.status.ended:
            continue
        if one.state.job_id is not None:
            questions.setdefault(one.state.scheduler["class"], []).append(one)
        elif one.state.attempt is not None:
            _check_process(one, one.state.attempt)
    for path, asked in questions.items():
        _ask(path, asked)
    return seen


def _check_process(one: Seen, attempt: Attempt) -> None:
    alive = is_alive(attempt)
    if alive is None:
        one.doubt = f"last heard of on {attempt.host}"
    elif not alive:
        one.state = end_attempt(one.run, attempt, RunStatus.FAILED, "killed: its process is gone")


def _ask(path: str, asked: Sequence[Seen]) -> None:
    try:
        answers = Cluster(path).status([str(one.state.job_id) for one in asked])
    except MLXJobsError as error:
        for one in asked:
            one.doubt = str(error).splitlines()[0]
        return
    for one in asked:
        status = answers.get(str(one.state.job_id))
        if status is None or not status.is_of(one.state.scheduler.get("submitted")):
            one.doubt = f"the scheduler does not know job {one.state.job_id} any more"
        elif status.state is JobState.UNKNOWN:
            one.doubt = f"the scheduler says {status.word}"
        else:
            one.state = _reconcile(one.run, follow(one.run, one.state, status), status)


def _reconcile(run: Run, state: RunState, status: JobStatus) -> RunState:
    """Record what the scheduler knows and the run does not."""
    attempt = state.attempt
    running = state.status in (RunStatus.STARTING, RunStatus.RUNNING)
    if running and attempt is not None and attempt.job_id == state.job_id:
        if status.state is JobState.PENDING:
            return end_attempt(run, attempt, RunStatus.PREEMPTED, "stopped and requeued by the scheduler")
        if status.state.ended:
            return end_attempt(run, attempt, _verdict(status), f"the job ended: {_words(run, status)}")
    elif not running and status.state.ended:
        how, number = _verdict(status), len(state.attempts)
        reason = f"the job ended before the task began: {_words(run, status)}"
        event = {"event": "withdrawn", "attempts": number, "status": how.value, "reason": reason}
        return run.record(lambda now: None if now.sequence != state.sequence else event)
    return state


def _verdict(status: JobStatus) -> RunStatus:
    """FAILED is the task's doing; what the user or the scheduler ended for good is CANCELLED."""
    by_itself = status.state in (JobState.FAILED, JobState.COMPLETED, JobState.OUT_OF_MEMORY)
    return RunStatus.FAILED if by_itself else RunStatus.CANCELLED


def _words(run: Run, status: JobStatus) -> str:
    """The scheduler's words for a job's end, and what to do where it should have come back."""
    words = f"{status.word} {status.reason}".strip()
    if status.state in (JobState.PREEMPTED, JobState.TIME_LIMIT, JobState.NODE_FAIL):
        words += f"; to go on: mlxjobs requeue {run.log_id} --logs {run.path.parent}"
    return words


# -- what a user can do to a run from outside -----------------------------------------------------


def _cluster_of(one: Seen) -> Cluster:
    path = one.state.scheduler.get("class")
    if path is None or one.state.job_id is None:
        raise RunError(f"run {one.run.log_id} ({one.run.path}) was not submitted to a scheduler")
    return Cluster(path)


def cancel(one: Seen) -> str:
    """End a run for good: its job is cancelled, and it stays down.

    Returns:
        What was done, in one line.

    Raises:
        MLXJobsError: the scheduler refused, or the run runs where it cannot be reached.
    """
    run, state = one.run, one.state
    if state.status.ended:
        return f"run {run.log_id} has ended already: {state.status}"
    if state.job_id is not None:
        try:
            _cancel_job(_cluster_of(one), state.job_id)
        except SchedulerError as error:
            raise SchedulerError(f"run {run.log_id} was not cancelled: {error}") from error
    elif state.attempt is not None and is_alive(state.attempt):
        raise RunError(
            f"run {run.log_id} runs in process {state.attempt.pid} on {state.attempt.host}, started by "
            f"hand: end it there (Ctrl-C, or kill {state.attempt.pid})"
        )
    event = {
        "event": "withdrawn", "attempts": len(state.attempts), "status": RunStatus.CANCELLED.value,
        "reason": "cancelled by mlxjobs cancel",
    }  # fmt: skip
    run.record(lambda now: None if now.status.ended else {**event, "attempts": len(now.attempts)})
    return f"run {run.log_id} is cancelled" + (f" (job {state.job_id})" if state.job_id else "")


def _cancel_job(cluster: Cluster, job_id: str) -> None:
    cluster.cancel([job_id])
    if cluster.scheduler.requeue_command(job_id) is not None:
        return
    # where a restart gives a job a new id, it may have had one at this very moment
    now = cluster.status([job_id]).get(job_id)
    if now is not None and now.job_id not in ("", job_id):
        cluster.cancel([now.job_id])


def preempt(one: Seen) -> str:
    """Make a run checkpoint, leave and come back. Returns what was done; raises as `cancel`."""
    if one.state.status not in (RunStatus.STARTING, RunStatus.RUNNING):
        raise RunError(f"run {one.run.log_id} is {one.state.status}, not running: nothing to preempt")
    _cluster_of(one).preempt(str(one.state.job_id))
    return f"run {one.run.log_id} is asked to checkpoint and come back (job {one.state.job_id})"


def requeue(one: Seen) -> str:
    """Stop the job of a run and start it again. Returns what was done; raises as `cancel`."""
    if one.state.status is RunStatus.COMPLETE:
        raise RunError(f"run {one.run.log_id} is COMPLETE: nothing to do again")
    cluster = _cluster_of(one)
    if cluster.scheduler.requeue_command(str(one.state.job_id)) is None:
        return _submit_again(one, cluster)
    cluster.requeue(str(one.state.job_id))
    return f"run {one.run.log_id} is requeued (job {one.state.job_id})"


def _submit_again(one: Seen, cluster: Cluster) -> str:
    """Hand in the script again, where the scheduler has no command that starts a job again."""
    run, state, old = one.run, one.state, str(one.state.job_id)

    def unchanged(now: RunState) -> None:
        if now.status is not state.status or len(now.attempts) != len(state.attempts):
            raise RunError(f"run {run.log_id} is being started by somebody else at this moment")

    if state.status.ended:
        job_id = hand_in(run, cluster, check=unchanged)
        return f"run {run.log_id} is submitted again (job {job_id})"
    attempt = state.attempt
    if attempt is None or attempt.status is not None:
        raise RunError(f"run {run.log_id} waits in the queue already (job {old})")
    # first the new job, which waits for the end of the old one: so the run cannot be lost in between
    job_id = hand_in(run, cluster, check=unchanged, after=old, attempt=attempt.number)
    end_attempt(run, attempt, RunStatus.PREEMPTED, "requeued by mlxjobs requeue")
    cluster.cancel([old])
    return f"run {run.log_id} is submitted again (job {job_id}), and job {old} is stopped"
