"""What a user can do to runs from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.errors import MLXJobsError, RunError, SchedulerError
from mlxjobs.jobs.arrays import group_alike, hand_in_all
from mlxjobs.jobs.hand_in import end_attempt, hand_in
from mlxjobs.jobs.look import Seen
from mlxjobs.jobs.startable import is_alive
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run

DoneOrError = str | MLXJobsError


def _cluster_of(seen: Seen) -> Cluster:
    path = seen.state.scheduler.get("class")
    if path is None or seen.state.job_id is None:
        raise _not_submitted(seen)
    why = seen.not_imported
    if (away := seen.out_of_reach) is not None:
        why = f"{away}; if it is gone: mlxjobs cancel {seen.run.log_id} --logs {seen.run.path.parent}"
    if why is not None:
        raise RunError(f"run {seen.run.log_id}: {why}")
    return Cluster(path)


def _not_submitted(seen: Seen) -> RunError:
    return RunError(f"run {seen.run.log_id} ({seen.run.path}) was not submitted to a scheduler")


def cancel_runs(runs: Sequence[Seen]) -> Iterator[DoneOrError]:
    """End runs for good: their jobs are cancelled, by one command, and they stay down.

    Yields:
        What was done, in one line, or why it could not be: the scheduler refused, or the run runs
        where it cannot be reached.
    """
    submitted: dict[str, list[Seen]] = {}
    for seen in runs:
        run, state = seen.run, seen.state
        job_id = _job_to_end(state)
        if state.status.ended:
            yield f"run {run.log_id} has ended already: {state.status}"
        elif away := seen.out_of_reach:
            _withdraw(seen)
            yield f"run {run.log_id} is cancelled, but {away}: end it there"
        elif job_id is not None and (why := seen.not_imported):
            yield RunError(f"run {run.log_id} is not cancelled: {why}")
        elif job_id is not None and not seen.forgotten:
            submitted.setdefault(state.scheduler["class"], []).append(seen)
        elif state.attempt is not None and is_alive(state.attempt):
            yield RunError(
                f"run {run.log_id} runs in process {state.attempt.pid} on {state.attempt.host}, started by "
                f"hand: end it there (Ctrl-C, or kill {state.attempt.pid})"
            )
        else:
            _withdraw(seen)
            yield f"run {run.log_id} is cancelled"
    for path, group in submitted.items():
        yield from _cancel_jobs(path, group)


def _job_to_end(state: RunState) -> str | None:
    """Return the job of a run; of one that hands in at this moment what is to follow it, its own."""
    last = state.attempt
    if state.job_id is None and last is not None and last.status is None:
        return last.job_id
    return state.job_id


def _withdraw(seen: Seen) -> RunState:
    event = {
        "event": "withdrawn", "status": RunStatus.CANCELLED.value,
        "reason": "cancelled by mlxjobs cancel", "recalled": True,
    }  # fmt: skip
    return seen.run.record(lambda now: None if now.status.ended else {**event, "attempts": len(now.attempts)})


def _cancel_jobs(path: str, group: Sequence[Seen]) -> Iterator[DoneOrError]:
    job_ids = [str(_job_to_end(seen.state)) for seen in group]
    try:
        cluster = Cluster(path)
        cluster.cancel(job_ids)
        if cluster.scheduler.requeue_command(job_ids[0]) is None:
            # where a restart gives a job a new id, it may have had one at this very moment
            now = cluster.status(job_ids)
            moved = [now[old].job_id for old in job_ids if old in now and now[old].job_id not in ("", old)]
            cluster.cancel(moved)
    except MLXJobsError as error:
        if len(group) > 1:  # one that the scheduler refuses must not keep the others
            for seen in group:
                yield from _cancel_jobs(path, [seen])
        else:
            yield SchedulerError(f"run {group[0].run.log_id} was not cancelled: {error}")
        return
    for seen, job_id in zip(group, job_ids, strict=True):
        newest = _withdraw(seen).job_id
        if newest in (None, job_id):
            yield f"run {seen.run.log_id} is cancelled (job {job_id})"
            continue
        try:  # it was handed in meanwhile, to follow the one that was seen
            cluster.cancel([str(newest)])
            yield f"run {seen.run.log_id} is cancelled (jobs {job_id} and {newest})"
        except SchedulerError as error:
            yield SchedulerError(f"job {newest} of run {seen.run.log_id} was not cancelled: {error}")


def preempt_runs(runs: Sequence[Seen]) -> Iterator[DoneOrError]:
    """Make runs checkpoint, leave and come back. Yields as `cancel_runs`."""
    for seen in runs:
        try:
            if seen.state.status not in (RunStatus.STARTING, RunStatus.RUNNING):
                yield RunError(
                    f"run {seen.run.log_id} is {seen.state.status}, not running: nothing to preempt"
                )
                continue
            if seen.ending:  # Slurm's scancel would wait, and then warn what is started next
                yield RunError(f"run {seen.run.log_id} is being stopped by its scheduler already")
                continue
            _cluster_of(seen).preempt(str(seen.state.job_id))
            yield f"run {seen.run.log_id} is asked to checkpoint and come back (job {seen.state.job_id})"
        except MLXJobsError as error:
            yield error


def requeue_runs(runs: Sequence[Seen]) -> Iterator[DoneOrError]:
    """Stop the jobs of runs and start them again; hand in again those that have none.

    Yields as `cancel_runs`.
    """
    from mlxjobs.code.run_code import bring_back  # git and all that, which looking does not need

    again: list[Seen] = []
    for seen in runs:
        try:
            if seen.state.status is RunStatus.COMPLETE:
                yield RunError(f"run {seen.run.log_id} is COMPLETE: nothing to do again")
            elif "class" not in seen.state.scheduler:
                yield _not_submitted(seen)
            elif seen.state.status.ended or seen.state.status is RunStatus.WAITING or seen.forgotten:
                seen.run.check_owner()
                bring_back(seen.run)
                again.append(seen)
            elif seen.state.job_id is None:
                yield RunError(
                    f"run {seen.run.log_id} {seen.doubt or 'is being handed in at this moment'}; "
                    f"if not: mlxjobs cancel {seen.run.log_id} --logs {seen.run.path.parent}"
                )
            else:
                yield _start_again(seen)
        except MLXJobsError as error:
            yield error
    yield from _submit_again(again)


def _unchanged(runs: Iterable[Seen]) -> Callable[[Run, RunState], None]:
    """Return a check that raises unless a run is as it was seen."""
    states = {seen.run.log_id: seen.state for seen in runs}

    def check(run: Run, now: RunState) -> None:
        before = states[run.log_id]
        if now.status is not before.status or len(now.attempts) != len(before.attempts):
            raise RunError(f"run {run.log_id} is being started by somebody else at this moment")

    return check


def _submit_again(runs: Sequence[Seen]) -> Iterator[DoneOrError]:
    waiting = {seen.run.log_id for seen in runs if seen.state.status is RunStatus.WAITING}
    unknown: dict[int, MLXJobsError] = {}
    for cluster, settings, group in group_alike([seen.run for seen in runs], unknown):
        patient = any(run.log_id in waiting for run in group)
        result = hand_in_all(group, cluster, settings, check=_unchanged(runs), patient=patient)
        for run in group:
            if run.log_id in result.jobs:
                run.mark_waiting(False)
                yield f"run {run.log_id} is submitted again (job {result.jobs[run.log_id]})"
            elif run.log_id in result.waiting:
                yield f"run {run.log_id} waits: {run.state().reason}"
            else:
                yield result.failed[run.log_id]
    yield from unknown.values()


def _start_again(seen: Seen) -> str:
    """Stop the job of a run that has not ended, and start it again."""
    cluster, job_id = _cluster_of(seen), str(seen.state.job_id)
    if cluster.scheduler.requeue_command(job_id) is not None:
        cluster.requeue(job_id)
        return f"run {seen.run.log_id} is requeued (job {job_id})"
    run, attempt = seen.run, seen.state.attempt
    if attempt is None or attempt.status is not None:
        raise RunError(f"run {run.log_id} waits in the queue already (job {job_id})")
    # first the new job, which waits for the end of the old one: so the run cannot be lost in between
    new = hand_in(run, cluster, check=_unchanged([seen]), after=job_id, attempt=attempt.number)
    end_attempt(run, attempt.number, RunStatus.PREEMPTED, "requeued by mlxjobs requeue")
    cluster.cancel([job_id])
    return f"run {run.log_id} is submitted again (job {new}), and job {job_id} is stopped"
