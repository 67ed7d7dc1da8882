"""Looking at runs from outside: what the scheduler knows and the run itself could not record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from mlxjobs.jobs.arrays import alike, hand_in_all
from mlxjobs.jobs.cause import of_job, with_progress
from mlxjobs.jobs.hand_in import end_attempt, follow, hand_in, refuse
from mlxjobs.jobs.startable import is_alive, out_of_reach
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


def look(parent: Path, log_ids: Sequence[int] | None = None, *, run_code: bool = True) -> list[Seen]:
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
    seen = [one for one in map(_see, runs) if one.state.sequence or one.doubt]
    questions: dict[str, list[Seen]] = {}
    for one in seen:
        if one.state.status.ended or one.doubt:
            continue
        if one.state.job_id is not None:
            questions.setdefault(one.state.scheduler["class"], []).append(one)
        elif one.state.status is RunStatus.SUBMITTED:
            _check_submitter(one)
        elif one.state.attempt is not None and one.state.status is not RunStatus.WAITING:
            _check_process(one, one.state.attempt)
    for path, asked in questions.items():
        _ask(path, asked, run_code=run_code)
    for one in seen:
        with suppress(OSError, DamagedHistoryError):  # somebody else's runs, perhaps
            one.run.repaint()
    return seen


def _see(run: Run) -> Seen:
    try:
        seen = Seen(run, run.state())
        if not seen.state.status.ended:
            away = _out_of_reach(seen)
            seen.doubt = f"unknown since {_last_sign(run)}: {away}" if away else not_imported(seen)
        return seen
    except DamagedHistoryError as error:  # the other runs are shown all the same
        return Seen(run, RunState(), f"unknown: {error}")


def _record(one: Seen, record: Callable[[], RunState]) -> None:
    """Record what became of a run; where that cannot be, as in somebody else's folder, say so."""
    try:
        one.state = record()
    except NotRecordedError as error:
        what = f"that it is {error.state.status} cannot be recorded"
        one.state, one.doubt = error.state, f"{what}: {error.filename}: {error.strerror}"


def _out_of_reach(one: Seen) -> str | None:
    """Why a run's job is not looked for, if so; a scheduler of the user's own is not imported to know."""
    path = one.state.scheduler.get("class")
    return out_of_reach(Cluster(str(path)), one.state) if path in known().values() else None


def not_imported(one: Seen) -> str | None:
    """Why the scheduler that a run names is not imported, if so: another user could name any module."""
    path = one.state.scheduler.get("class")
    whose = None if path is None or path in known().values() else one.run.stranger
    return whose and f"unknown: its scheduler {path} is not imported, as {whose}"


def _check_submitter(one: Seen) -> None:
    """A process that is killed while it submits leaves a run that nobody hands in."""
    process = one.state.submitter
    if not process:  # an older version did not say
        return
    host, pid, container = process["host"], process["pid"], process.get("pid_namespace")
    alive = lives(host, pid, process["process_key"], container)
    if alive is None:
        one.doubt = f"is being handed in by process {pid} on {host}, or was"
    elif not alive:
        # if there is a job all the same, it starts all the same
        gone = UnknownSubmissionError("its submission was interrupted: the process is gone")
        refuse(one.run, one.state.submissions, gone)
        one.state = one.run.state()


def _check_process(one: Seen, attempt: Attempt) -> None:
    alive = lives(attempt.host, attempt.pid, attempt.process_key, attempt.pid_namespace)
    if alive is None:
        one.doubt = f"unknown since {_last_sign(one.run)}: {attempt.host} cannot be asked from here"
    elif not alive:
        reason = with_progress(one.run, "killed") + ": its process is gone"
        _record(one, lambda: end_attempt(one.run, attempt.number, RunStatus.FAILED, reason, presumed=True))


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
        answers = Cluster(path).status([str(one.state.job_id) for one in asked])
    except MLXJobsError as error:
        for one in asked:
            one.doubt = f"unknown since {_last_sign(one.run)}: {str(error).splitlines()[0]}"
        return
    for one in asked:
        status = answers.get(str(one.state.job_id))
        if status is None or not status.is_of(one.state.scheduler.get("submitted")):
            why = f"the scheduler does not know job {one.state.job_id} any more"
            again = f"to go on: mlxjobs requeue {one.run.log_id} --logs {one.run.path.parent}"
            one.doubt, one.forgotten = f"unknown since {_last_sign(one.run)}: {why}; {again}", True
        elif status.state is JobState.UNKNOWN:
            one.doubt = f"unknown: the scheduler says {status.word}"
        else:
            one.ending = status.state is JobState.ENDING
            _record(one, partial(_reconcile, one.run, one.state, status))


def _reconcile(run: Run, state: RunState, status: JobStatus) -> RunState:
    """Record what the scheduler knows and the run does not."""
    state = follow(run, state, status)
    attempt = state.attempt
    running = state.status in (RunStatus.STARTING, RunStatus.RUNNING)
    if running and attempt is not None and attempt.job_id == state.job_id:
        if status.state is JobState.PENDING and _waits_again(attempt, status):
            reason = with_progress(run, "stopped and requeued by the scheduler")
            return end_attempt(run, attempt.number, RunStatus.PREEMPTED, reason, presumed=True)
        if status.state.ended:
            words = of_job(run, attempt, status) + _hint(run, status)
            return end_attempt(run, attempt.number, _verdict(status), words, status.ended, presumed=True)
    elif not running and status.state.ended:
        how, number = _verdict(status), len(state.attempts)
        reason = f"{_not_begun(state, status)}: {of_job(run, None, status)}{_hint(run, status)}"
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


# -- what a user can do to runs from outside ------------------------------------------------------

Outcome = str | MLXJobsError


def _cluster_of(one: Seen) -> Cluster:
    path = one.state.scheduler.get("class")
    if path is None or one.state.job_id is None:
        raise _not_submitted(one)
    why = not_imported(one)
    if (away := _out_of_reach(one)) is not None:
        why = f"{away}; if it is gone: mlxjobs cancel {one.run.log_id} --logs {one.run.path.parent}"
    if why is not None:
        raise RunError(f"run {one.run.log_id}: {why}")
    return Cluster(path)


def _not_submitted(one: Seen) -> RunError:
    return RunError(f"run {one.run.log_id} ({one.run.path}) was not submitted to a scheduler")


def cancel(seen: Sequence[Seen]) -> Iterator[Outcome]:
    """End runs for good: their jobs are cancelled, by one command, and they stay down.

    Yields:
        What was done, in one line, or why it could not be: the scheduler refused, or the run runs
        where it cannot be reached.
    """
    submitted: dict[str, list[Seen]] = {}
    for one in seen:
        run, state = one.run, one.state
        job_id = _job_to_end(state)
        if state.status.ended:
            yield f"run {run.log_id} has ended already: {state.status}"
        elif away := _out_of_reach(one):
            _withdraw(one)
            yield f"run {run.log_id} is cancelled, but {away}: end it there"
        elif job_id is not None and (why := not_imported(one)):
            yield RunError(f"run {run.log_id} is not cancelled: {why}")
        elif job_id is not None and not one.forgotten:
            submitted.setdefault(state.scheduler["class"], []).append(one)
        elif state.attempt is not None and is_alive(state.attempt):
            yield RunError(
                f"run {run.log_id} runs in process {state.attempt.pid} on {state.attempt.host}, started by "
                f"hand: end it there (Ctrl-C, or kill {state.attempt.pid})"
            )
        else:
            _withdraw(one)
            yield f"run {run.log_id} is cancelled"
    for path, group in submitted.items():
        yield from _cancel_jobs(path, group)


def _job_to_end(state: RunState) -> str | None:
    """Return the job of a run; of one that hands in at this moment what is to follow it, its own."""
    last = state.attempt
    if state.job_id is None and last is not None and last.status is None:
        return last.job_id
    return state.job_id


def _withdraw(one: Seen) -> RunState:
    event = {
        "event": "withdrawn", "status": RunStatus.CANCELLED.value,
        "reason": "cancelled by mlxjobs cancel", "recalled": True,
    }  # fmt: skip
    return one.run.record(lambda now: None if now.status.ended else {**event, "attempts": len(now.attempts)})


def _cancel_jobs(path: str, group: Sequence[Seen]) -> Iterator[Outcome]:
    job_ids = [str(_job_to_end(one.state)) for one in group]
    try:
        cluster = Cluster(path)
        cluster.cancel(job_ids)
        if cluster.scheduler.requeue_command(job_ids[0]) is None:
            # where a restart gives a job a new id, it may have had one at this very moment
            now = cluster.status(job_ids)
            moved = [now[one].job_id for one in job_ids if one in now and now[one].job_id not in ("", one)]
            cluster.cancel(moved)
    except MLXJobsError as error:
        if len(group) > 1:  # one that the scheduler refuses must not keep the others
            for one in group:
                yield from _cancel_jobs(path, [one])
        else:
            yield SchedulerError(f"run {group[0].run.log_id} was not cancelled: {error}")
        return
    for one, job_id in zip(group, job_ids, strict=True):
        newest = _withdraw(one).job_id
        if newest in (None, job_id):
            yield f"run {one.run.log_id} is cancelled (job {job_id})"
            continue
        try:  # it was handed in meanwhile, to follow the one that was seen
            cluster.cancel([str(newest)])
            yield f"run {one.run.log_id} is cancelled (jobs {job_id} and {newest})"
        except SchedulerError as error:
            yield SchedulerError(f"job {newest} of run {one.run.log_id} was not cancelled: {error}")


def preempt(seen: Sequence[Seen]) -> Iterator[Outcome]:
    """Make runs checkpoint, leave and come back. Yields as `cancel`."""
    for one in seen:
        try:
            if one.state.status not in (RunStatus.STARTING, RunStatus.RUNNING):
                yield RunError(f"run {one.run.log_id} is {one.state.status}, not running: nothing to preempt")
                continue
            if one.ending:  # Slurm's scancel would wait, and then warn what is started next
                yield RunError(f"run {one.run.log_id} is being stopped by its scheduler already")
                continue
            _cluster_of(one).preempt(str(one.state.job_id))
            yield f"run {one.run.log_id} is asked to checkpoint and come back (job {one.state.job_id})"
        except MLXJobsError as error:
            yield error


def requeue(seen: Sequence[Seen]) -> Iterator[Outcome]:
    """Stop the jobs of runs and start them again; hand those in again that have none. Yields as `cancel`."""
    from mlxjobs.code.run_code import bring_back  # git and all that, which looking does not need

    again: list[Seen] = []
    for one in seen:
        try:
            if one.state.status is RunStatus.COMPLETE:
                yield RunError(f"run {one.run.log_id} is COMPLETE: nothing to do again")
            elif "class" not in one.state.scheduler:
                yield _not_submitted(one)
            elif one.state.status.ended or one.state.status is RunStatus.WAITING or one.forgotten:
                one.run.check_owner()
                bring_back(one.run)
                again.append(one)
            elif one.state.job_id is None:
                yield RunError(
                    f"run {one.run.log_id} {one.doubt or 'is being handed in at this moment'}; "
                    f"if not: mlxjobs cancel {one.run.log_id} --logs {one.run.path.parent}"
                )
            else:
                yield _start_again(one)
        except MLXJobsError as error:
            yield error
    yield from _submit_again(again)


def _unchanged(seen: Iterable[Seen]) -> Callable[[Run, RunState], None]:
    """Return a check that raises unless a run is as it was seen."""
    states = {one.run.log_id: one.state for one in seen}

    def check(run: Run, now: RunState) -> None:
        before = states[run.log_id]
        if now.status is not before.status or len(now.attempts) != len(before.attempts):
            raise RunError(f"run {run.log_id} is being started by somebody else at this moment")

    return check


def _submit_again(ended: Sequence[Seen]) -> Iterator[Outcome]:
    waiting = {one.run.log_id for one in ended if one.state.status is RunStatus.WAITING}
    unknown: dict[int, MLXJobsError] = {}
    for cluster, given, runs in alike([one.run for one in ended], unknown):
        patient = any(run.log_id in waiting for run in runs)
        result = hand_in_all(runs, cluster, given, check=_unchanged(ended), patient=patient)
        for run in runs:
            if run.log_id in result.jobs:
                run.mark_waiting(False)
                yield f"run {run.log_id} is submitted again (job {result.jobs[run.log_id]})"
            elif run.log_id in result.waiting:
                yield f"run {run.log_id} waits: {run.state().reason}"
            else:
                yield result.failed[run.log_id]
    yield from unknown.values()


def _start_again(one: Seen) -> str:
    """Stop the job of a run that has not ended, and start it again."""
    cluster, job_id = _cluster_of(one), str(one.state.job_id)
    if cluster.scheduler.requeue_command(job_id) is not None:
        cluster.requeue(job_id)
        return f"run {one.run.log_id} is requeued (job {job_id})"
    run, attempt = one.run, one.state.attempt
    if attempt is None or attempt.status is not None:
        raise RunError(f"run {run.log_id} waits in the queue already (job {job_id})")
    # first the new job, which waits for the end of the old one: so the run cannot be lost in between
    new = hand_in(run, cluster, check=_unchanged([one]), after=job_id, attempt=attempt.number)
    end_attempt(run, attempt.number, RunStatus.PREEMPTED, "requeued by mlxjobs requeue")
    cluster.cancel([job_id])
    return f"run {run.log_id} is submitted again (job {new}), and job {job_id} is stopped"
