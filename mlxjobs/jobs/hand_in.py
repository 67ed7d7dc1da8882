"""A run's script is handed to its scheduler, once and on record; and a running job makes itself come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.errors import JobSubmissionError, RunError, SchedulerError, UnknownSubmissionError
from mlxjobs.jobs.cause import cause_of_job, with_progress
from mlxjobs.logger.metrics import seals
from mlxjobs.record.history import RunState, RunStatus, iso
from mlxjobs.record.run import Run
from mlxjobs.scheduler import EX_TEMPFAIL, Here, JobStatus
from mlxjobs.system import shell
from mlxjobs.system.console import note
from mlxjobs.system.processes import this_process


def hand_in(
    run: Run,
    cluster: Cluster,
    *,
    check: Callable[[Run, RunState], None] | None = None,
    prepare: Callable[[], None] | None = None,
    after: str | None = None,
    attempt: int | None = None,
) -> str:
    """Submit the script of a run, and record it.

    Args:
        run: the run.
        cluster: where to.
        check: raises if the run's state allows no submission; it may be called again with a newer state.
        prepare: writes the script, once nobody else can submit the run.
        after: a job whose end the new one is to wait for.
        attempt: the attempt that wants to be followed by another one; it goes on if that is refused.

    Returns:
        The id of the job.

    Raises:
        JobSubmissionError: the scheduler did not take it.
        MLXJobsError: what `check` raises.
    """
    run.check_owner()
    known = run.state().known_jobs
    number = claim_submission(run, cluster, check)
    try:
        if prepare is not None:
            prepare()
        job_id = cluster.submit(run.script.absolute(), known, after)
    except (SchedulerError, OSError, KeyboardInterrupt) as error:
        refused = record_refused(run, number, error, attempt)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise refused from error
    record_submitted(run, cluster, number, job_id)
    return job_id


def claim_submission(run: Run, cluster: Cluster, check: Callable[[Run, RunState], None] | None) -> int:
    """Take a run's next submission, which nobody else can then make; return its number."""
    me = this_process()

    def submitting(state: RunState) -> dict[str, Any]:
        if check is not None:
            check(run, state)
        return {"event": "submitting", "scheduler": cluster.name, "class": cluster.path, "process": me}

    return run.record(submitting).submissions


def record_submitted(run: Run, cluster: Cluster, number: int, job_id: str) -> None:
    """Record that a submission made a job; if that cannot be, the job does it when it starts."""
    submitted = {"event": "submitted", "submission": number, "job_id": job_id}
    try:
        state = run.record(lambda now: submitted)
    except OSError as error:
        note(f"that run {run.log_id} is job {job_id} cannot be recorded before it starts: {error}")
        return
    if state.recalled and state.submissions == number:
        note(f"run {run.log_id} was cancelled meanwhile, and so is its job {job_id}")
        with suppress(SchedulerError):  # then the job ends when it starts
            cluster.cancel([job_id])


def record_refused(
    run: Run, number: int, error: BaseException, attempt: int | None = None
) -> JobSubmissionError:
    """Record that a submission failed, or was interrupted; return the error that says so."""
    reason = (str(error) or "interrupted while it was submitted").splitlines()[0]
    event = {"event": "refused", "submission": number, "reason": reason, "attempt": attempt}
    if isinstance(error, (UnknownSubmissionError, KeyboardInterrupt)):
        event["unknown"] = True  # there may be a job
    try:
        run.record(lambda state: event)
    except OSError as unrecorded:
        note(f"that run {run.log_id} was not submitted cannot be recorded: {unrecorded}")
    return JobSubmissionError(f"run {run.log_id} ({run.path}): {error}")


def record_waiting(run: Run, number: int, reason: str) -> None:
    """Record that the queue had no room: the run waits to be handed in."""
    event = {"event": "waiting", "submission": number, "reason": reason.splitlines()[0]}
    run.record(lambda state: event)
    run.mark_waiting(True)


def end_attempt(
    run: Run,
    number: int,
    status: RunStatus,
    reason: str,
    ended: datetime | None = None,
    *,
    presumed: bool = False,
) -> RunState:
    """Record how an attempt ended, and when if that is known, unless it has spoken, or another one begun.

    `presumed` is for who concludes that from outside, and may be wrong: then the attempt can still speak.
    """

    def record(state: RunState) -> dict[str, Any] | None:
        newest = state.attempt
        if newest is None or newest.number != number:
            return None
        if newest.status is not None and (presumed or not newest.presumed):
            return None
        event = {"event": "ended", "attempt": number, "status": status.value, "reason": reason}
        event |= {"presumed": True} if presumed else {}
        if status.ended:  # else another one follows
            event |= seals(run.metrics)
        return event if ended is None else {**event, "time": iso(ended)}

    return run.record(record)


def follow_job(run: Run, state: RunState, status: JobStatus) -> RunState:
    """Record that the scheduler ended the run's job and started it again under a new id, if it did."""
    old, attempt = state.job_id, state.attempt
    if not status.job_id or status.job_id == old:
        return state
    if attempt is not None and attempt.status is None and attempt.job_id == old:
        reason = f"{with_progress(run, status.cause)}, started again by the scheduler"
        end_attempt(run, attempt.number, RunStatus.PREEMPTED, reason)
    moved = {"event": "moved", "from": old, "job_id": status.job_id}
    return run.record(lambda now: moved if now.job_id == old else None)


def settle_last_attempt(run: Run, cluster: Cluster, here: Here) -> None:
    """Record how the last attempt ended, where the scheduler ended it and started its job again: here."""
    state = run.state()
    last = state.attempt
    if last is None or last.status is not None or last.job_id is None:
        return
    if last.job_id != here.job_id:
        if last.job_id == state.job_id:
            with suppress(SchedulerError):  # nobody to ask on this node: then nobody knows
                status = cluster.status([last.job_id]).get(last.job_id)
                if status is not None and status.job_id == here.job_id:
                    follow_job(run, state, status)
    elif here.restarts > last.restarts and (runs := cluster.earlier(here.job_id))[last.restarts :]:
        how = runs[last.restarts]
        words = f"{cause_of_job(run, last, how)}, started again by the scheduler"
        end_attempt(run, last.number, RunStatus.PREEMPTED, words, how.ended)


def come_back(
    run: Run,
    attempt: int,
    cluster: Cluster,
    here: Here,
    status: JobStatus | None,
    ran_s: float,
    *,
    wait: bool,
) -> int:
    """See to it that the job of a running attempt is started again once that has left.

    By its exit code, if that is the scheduler's way and the job has run long enough; else by the
    scheduler's command; else by handing in the script again.

    Args:
        run: the run.
        attempt: the attempt's number.
        cluster: what the job runs on.
        here: the job.
        status: what the scheduler says of it; None: it could not be asked.
        ran_s: how long the attempt has run.
        wait: rather than fail, wait until the job has run long enough.

    Returns:
        The exit code to leave with.

    Raises:
        SchedulerError: it would not be started again.
        RunError: it has ended.
        OSError: it would not, as that cannot be recorded.
    """
    scheduler = cluster.scheduler
    enough_s = scheduler.requeues_exit_after_s(status)
    if enough_s is not None and ran_s >= enough_s:
        return scheduler.requeue_exit_code()
    if scheduler.requeue_command(here.job_id) is not None:
        cluster.requeue(here.job_id)
        return scheduler.requeue_exit_code()
    try:
        _check_submission(cluster)
        hand_in(run, cluster, check=_check_unfinished, after=here.job_id, attempt=attempt)
    except (SchedulerError, OSError) as error:
        if enough_s is None or not wait:
            raise
        left_s = enough_s - ran_s
        note(f"{error}. So the job waits for {left_s:.0f} s, after which its exit code brings it back")
        time.sleep(left_s)
        return scheduler.requeue_exit_code()
    return EX_TEMPFAIL


def _check_unfinished(run: Run, state: RunState) -> None:
    """Raise if the task ended, or somebody cancelled the run, while the scheduler was asked."""
    if state.over:
        raise RunError(f"run {run.log_id} is {state.status} by now")


def _check_submission(cluster: Cluster) -> None:
    lacking = shell.missing(cluster.scheduler.commands[:1])
    if lacking:
        raise SchedulerError(
            f"this compute node cannot submit, as it has no {lacking[0]}; once the job has ended, submit the "
            "run again from a login node: mlxjobs requeue"
        )
