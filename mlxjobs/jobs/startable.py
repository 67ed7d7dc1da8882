"""Whether a process may be the next attempt of a run, which only one may be at a time."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxjobs.errors import RunError, SchedulerError
from mlxjobs.record.history import Attempt, RunState, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.processes import lives

if TYPE_CHECKING:  # a run outside of a job does not pay for what only jobs need
    from mlxjobs.cluster.cluster import Cluster
    from mlxjobs.scheduler import Here


class AlreadyComplete(Exception):
    """The scheduler started a job again whose run is complete: there is nothing to do."""


@dataclass(frozen=True)
class Place:
    """Where an attempt runs.

    Attributes:
        cluster: the cluster whose job this is; None: no job of a scheduler.
        here: that job.
    """

    cluster: Cluster | None = None
    here: Here | None = None

    @property
    def rank(self) -> int:
        """This process' number among the job's tasks; 0 outside of a job."""
        return self.here.rank if self.here else 0

    def is_reserved(self, exit_code: object) -> bool:
        """Whether the scheduler would take this exit code of a task for more than a failure."""
        if self.cluster is None or not isinstance(exit_code, int):
            return False
        scheduler = self.cluster.scheduler
        codes = set(scheduler.reserved_exit_codes)
        if scheduler.requeues_exit_after_s(None) is not None:
            codes.add(scheduler.requeue_exit_code())
        return exit_code & 0xFF in codes  # no more of it reaches the scheduler


def is_alive(attempt: Attempt) -> bool | None:
    """Whether the process of an attempt lives; None if that cannot be seen from here."""
    return lives(attempt.host, attempt.pid, attempt.process_key)


def out_of_reach(cluster: Cluster, state: RunState) -> str | None:
    """Say why a run's job is not looked for, if so: in another queue its number means another job."""
    host, uid = state.submitter.get("host"), state.submitter.get("uid")
    if not cluster.scheduler.own_queues or state.job_id is None:
        return None
    if host in (None, socket.gethostname()) and uid in (None, os.geteuid()):
        return None
    where = f"a queue of the machine {host}" if host != socket.gethostname() else f"the queue of user {uid}"
    return f"job {state.job_id} is in {where}, which cannot be asked from here"


def _job_lives(cluster: Cluster | None, state: RunState, job_id: str, here_id: str | None) -> bool | None:
    """Whether a scheduler's job waits or runs, elsewhere than here; None if nobody can say."""
    if cluster is None or out_of_reach(cluster, state):
        return None
    try:
        status = cluster.status([job_id]).get(job_id)
    except SchedulerError:
        return None
    if status is None or not status.is_of(state.scheduler.get("submitted")):
        return False
    if here_id is not None and status.job_id == here_id:
        return False  # it ended, and was started again under the id of the job that this process is in
    return not status.state.ended


def check_startable(run: Run, state: RunState, place: Place, cluster: Cluster | None) -> None:
    """Raise unless this process may be the run's next attempt.

    Args:
        run: the run.
        state: what is known of it.
        place: where this process runs.
        cluster: the cluster that the run was submitted to, to ask about its job.

    Raises:
        RunError: the run is running, or waits in a queue, elsewhere.
        AlreadyComplete: the scheduler started a job of a complete run again.
    """
    here_id = place.here.job_id if place.here else None
    ours = {here_id, place.here.first_job_id} - {""} if place.here else set()
    last = state.attempt
    resumed = last is not None and not ours.isdisjoint({last.job_id, last.first_job_id})
    # of several jobs one has completed it, and the others come back: who submits it again makes a new one
    is_made_by_us = state.unanswered > 0 or not ours.isdisjoint(state.known_jobs)
    if state.status is RunStatus.COMPLETE and ours and is_made_by_us:
        raise AlreadyComplete
    if state.recalled and ours and is_made_by_us:
        again = f"to start it all the same: mlxjobs requeue {run.log_id} --logs {run.path.parent}"
        raise RunError(f"run {run.log_id} was cancelled, so this job ends; {again}")
    if state.status.ended:
        return
    if last is not None and state.status in (RunStatus.STARTING, RunStatus.RUNNING):
        alive = is_alive(last)
        if last.job_id is not None and not resumed and alive is not True:
            alive = _job_lives(cluster, state, last.job_id, here_id)
        elif last.job_id is not None and (alive is None or _started_again(last, place.here)):
            alive = False  # for the scheduler its last start is over; if it lives, it is shut out
        if alive or alive is None:
            _refuse(run, last, alive)
        return
    job_id = state.job_id
    if job_id is None or not ours.isdisjoint({job_id, state.first_job_id}):
        return
    if _job_lives(cluster, state, job_id, here_id) is not False:
        raise RunError(
            f"run {run.log_id} waits in the queue as job {job_id}; "
            f"cancel that first: mlxjobs cancel {run.log_id} --logs {run.path.parent}"
        )


def _started_again(last: Attempt, here: Here | None) -> bool:
    """Whether the scheduler started the job of the last attempt once more, and made this process."""
    return here is not None and (here.job_id, here.restarts) != (last.job_id, last.restarts)


def _refuse(run: Run, last: Attempt, alive: bool | None) -> None:
    job = f", job {last.job_id}" if last.job_id else ""
    where = f"on {last.host} (process {last.pid}{job}) since {last.start}"
    if alive:
        raise RunError(f"run {run.log_id} is running {where}; two processes cannot share a run")
    raise RunError(
        f"run {run.log_id} was started {where} and nobody can tell from here whether it still runs; "
        f"if it does not: mlxjobs cancel {run.log_id} --logs {run.path.parent}"
    )
