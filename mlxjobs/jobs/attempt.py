"""One execution of a run: take the attempt's number, call the task, record how it ended."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.code import provenance
from mlxjobs.config import stored
from mlxjobs.config.secrets import Shown
from mlxjobs.config.settings import Settings
from mlxjobs.config_dict import ConfigDict, seed_of
from mlxjobs.errors import RunError, SchedulerError
from mlxjobs.jobs.context import Context
from mlxjobs.jobs.startable import Place, check_startable
from mlxjobs.jobs.streams import divert, tee
from mlxjobs.logger.held import HeldLogger, is_held
from mlxjobs.logger.logger import DefaultLogger, SilentLogger
from mlxjobs.logger.metrics import seals
from mlxjobs.record import history
from mlxjobs.record.fence import Fence, Superseded, Vanished, take_over
from mlxjobs.record.history import Attempt, Event, Preempted, RunState, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.console import note
from mlxjobs.system.processes import this_process

if TYPE_CHECKING:  # a run outside of a job does not pay for what only jobs need
    from mlxjobs.cluster.cluster import Cluster
    from mlxjobs.jobs.preemption import Preemption

Task = Callable[[Context], Any]

# how long another rank that fails waits for rank 0 to begin
_RANK_0_S = 10.0


class TaskFailed(Exception):
    """The user's task raised; its traceback has been printed and the run is recorded as FAILED."""


# -- the attempt --------------------------------------------------------------------------------


def _limits(state: RunState, max_requeues: int) -> str | None:
    """Say why a run may not come back once more, or None."""
    for count, what in (
        (state.interruptions, "stopped and requeued"),
        (state.losses, "killed without a word"),
    ):
        if count > max_requeues:
            return f"{what} {count} times, scheduler.max_requeues is {max_requeues}"
    return None


def _begin(
    run: Run, place: Place, facts: dict[str, Any], cluster: Cluster | None
) -> tuple[RunState, RunState]:
    """Take the next attempt number; return the states before and after."""
    if place.cluster is not None and place.here is not None:
        from mlxjobs.jobs.hand_in import settle

        settle(run, place.cluster, place.here)
    before = RunState()

    def started(state: RunState) -> dict[str, Any]:
        nonlocal before
        check_startable(run, state, place, cluster)
        before = state
        return {
            "event": "started",
            "attempt": len(state.attempts) + 1,
            **this_process(),
            "job_id": place.here.job_id if place.here else None,
            "first_job_id": place.here.first_job_id if place.here else "",
            "restarts": place.here.restarts if place.here else 0,
            "facts": facts,
            # of a run that was submitted, or began before, it is on record
            **({} if state.sequence else {"frozen": provenance.note_all(run)}),
        }

    after = run.record(started, paint=False)  # "running" follows
    return before, after


def _fence(run: Run, number: int) -> Fence:
    """Return what an attempt writes through, once no earlier one can write any more."""
    events: list[Event] = []

    def check() -> None:
        nonlocal events
        newer = run.events(events)
        if len(newer) > len(events):
            events = newer
            _check_newest(run, history.fold(newer), number)
        elif not run.history_dir.is_dir():
            raise Vanished(
                f"{run.path} is gone, removed or moved: attempt {number} has nothing to write to, and ends"
            )

    fence = Fence(number, check)
    if number > 1:
        take_over(run.path, fence)
    return fence


def _check_newest(run: Run, state: RunState, number: int) -> None:
    newest = state.attempt
    if newest is not None and newest.number > number:
        where = f"on {newest.host}" + (f" in job {newest.job_id}" if newest.job_id else "")
        raise Superseded(
            f"run {run.log_id} was started again {where} at {newest.start}, as attempt {newest.number}: "
            f"this process, attempt {number}, may not write to it any more, and ends"
        )


def execute(
    run: Run | None,
    task: Task,
    config: ConfigDict,
    settings: Settings,
    *,
    seeding: Callable[[Any], Any] | None,
    facts: dict[str, Any],
    place: Place,
    cluster: Cluster | None = None,
    shown: Shown | None = None,
) -> Any:
    """Execute a task once, as the next attempt of a run.

    Args:
        run: the run; None with `use_logger: false`, when nothing is recorded.
        task: the user's function.
        config: its configuration, resolved.
        settings: the settings in force.
        seeding: called with the seed before the task.
        facts: what `info.yaml` says of this process: `executable`, `cmd`, `work_dir` ...
        place: the scheduler's job this process is in, if any.
        cluster: where the run was submitted to, if it was.
        shown: the configuration as it is shown, if it holds secrets.

    Returns:
        What the task returned.

    Raises:
        TaskFailed: it raised.
        Preempted: it left, to come back or because it was cancelled.
        Superseded: it was given up, and a newer attempt has begun.
        AlreadyComplete: there is nothing to do.
        MLXJobsError: it could not be started.
    """
    shown = shown or Shown(config.to_dict())
    if run is None:
        context = Context(config, ConfigDict(settings.to_dict()), ConfigDict(facts), None)
        return _reporting(lambda: _call(task, context, seeding), shown)
    limit = settings.scheduler.max_requeues
    with ExitStack() as stack:
        if place.rank > 0:
            divert(run, place.rank)
            preemption = _listen(stack, run, 0, place, limit)
            silent = SilentLogger(run.path, preempted=_flag(preemption))
            context = Context(config, ConfigDict(settings.to_dict()), _info(run.state(), place), silent)
            return _as_other_rank(
                run, place, lambda: _reporting(lambda: _call(task, context, seeding), shown), shown
            )
        before, after = _begin(run, place, facts, cluster)
        stop = _limits(before, limit)
        number = len(after.attempts)
        if stop is not None:
            _end(run, number, RunStatus.FAILED, stop)
            raise RunError(f"run {run.log_id} is not started again: {stop}")
        fence, proof = _prepare(run, after, shown, strict=settings.version_manager.strict)
        preemption = _listen(stack, run, number, place, limit)
        logger = _logger(run, fence, before, preemption)
        stack.callback(logger.close)
        if settings.logger.log_streams_to_file and place.here is None:
            stack.enter_context(tee(run))
        context = Context(config, ConfigDict(settings.to_dict()), _info(after, place), logger)

        def call() -> Any:
            with proof:
                try:
                    result = _call(task, context, seeding)
                except SystemExit as error:
                    if preemption is not None and error.code in (None, 0):
                        preemption.at_the_end(logger.run_preemption_callbacks, by_exit=True)
                    raise
                if preemption is not None:
                    preemption.at_the_end(logger.run_preemption_callbacks, by_exit=False)
                return result

        return _record(run, number, logger, call, place, shown)


def _prepare(run: Run, state: RunState, shown: Shown, *, strict: bool) -> tuple[Fence, provenance.Proof]:
    """Make an attempt that has its number fit to call the task; what hinders it is recorded."""
    number = len(state.attempts)
    try:
        fence = _fence(run, number)
        with fence.explaining():
            run.write_yaml("config", stored.plain_config(shown.config), fence.folder(run.metadata))
        proof = provenance.Proof(run, state, strict=strict)
        proof.begin()
    except OSError as error:
        _end(run, number, RunStatus.FAILED, _last_line(error))
        raise RunError(f"run {run.log_id} ({run.path}) cannot be started: {error}") from error
    except provenance.Refused as error:
        _end(run, number, RunStatus.FAILED, str(error))
        raise
    return fence, proof


def _listen(stack: ExitStack, run: Run, number: int, place: Place, limit: int) -> Preemption | None:
    """Catch the scheduler's warnings until the stack is left, if this is a job."""
    if place.cluster is None or place.here is None:
        return None
    from mlxjobs.jobs.preemption import Preemption

    preemption = Preemption(run, number, place.cluster, place.here, limit)
    stack.enter_context(preemption.listen())
    return preemption


def _flag(preemption: Preemption | None) -> Callable[[], bool] | None:
    return preemption.look if preemption is not None else None


def _logger(run: Run, fence: Fence, before: RunState, preemption: Preemption | None) -> DefaultLogger:
    def checkpointed() -> None:
        if preemption is not None:
            preemption.at_safe_point(logger.run_preemption_callbacks)

    def resumed(checkpoint: Path) -> None:
        name = os.path.relpath(checkpoint, run.path)
        try:
            run.record(lambda state: {"event": "resumed", "attempt": fence.attempt, "checkpoint": name})
        except OSError as error:  # the object is good; failing here would make many a task begin from scratch
            note(f"that run {run.log_id} goes on from {name} cannot be recorded: {error}")

    # a drill stops the first attempt where it wants to disturb it
    held = fence.attempt == 1 and is_held(run.path)
    logger = (HeldLogger if held else DefaultLogger)(
        run.path,
        fence=fence,
        unfinished=bool(before.attempts) and before.status is not RunStatus.COMPLETE,
        preempted=_flag(preemption),
        checkpointed=checkpointed,
        resumed=resumed,
    )
    if isinstance(logger, HeldLogger):
        logger.hold(lambda: preemption is not None and preemption.requested)
    return logger


def _info(state: RunState, place: Place) -> ConfigDict:
    info = ConfigDict(history.render(state))
    info.rank = place.rank
    info.world_size = place.here.world_size if place.here else 1
    return info


def _call(task: Task, context: Context, seeding: Callable[[Any], Any] | None) -> Any:
    if seeding is not None:
        seeding(seed_of(context.config))
    return task(context)


def _reporting(call: Callable[[], Any], shown: Shown) -> Any:
    """Call the task where nothing is recorded."""
    try:
        return call()
    except (Preempted, Superseded, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        _print_traceback(error, shown)
        raise TaskFailed from error


def _as_other_rank(run: Run, place: Place, call: Callable[[], Any], shown: Shown) -> Any:
    """Call the task of a rank that writes nothing, but for its failure: rank 0 may wait for it for ever."""
    try:
        return call()
    except TaskFailed as failed:
        reason = shown.text(_last_line(failed.__cause__ or failed))
        with suppress(SchedulerError, OSError):
            _record_failed_rank(run, place, reason)
        raise
    except SystemExit as error:
        if error.code not in (None, 0):
            with suppress(SchedulerError, OSError):
                _record_failed_rank(run, place, shown.text(f"SystemExit: {error.code}"))
        raise


def _record_failed_rank(run: Run, place: Place, reason: str) -> None:
    """Record that the run failed, unless rank 0 has left or the scheduler is ending the job."""
    cluster, here = place.cluster, place.here
    attempt = None if here is None else _begun(run, here.job_id)
    if cluster is None or here is None or attempt is None:
        return
    from mlxjobs.jobs.hand_in import end_attempt
    from mlxjobs.scheduler import Fate

    status = cluster.status([here.job_id]).get(here.job_id)
    if status is not None and cluster.scheduler.fate(status, here) is Fate.RUNS_ON:
        where = f"rank {here.rank} on {socket.gethostname()}"
        words = f"{where}: {reason} (more in {run.output_of(here.rank, 2).name})"
        end_attempt(run, attempt.number, RunStatus.FAILED, words)


def _begun(run: Run, job_id: str) -> Attempt | None:
    """Return this job's attempt, which rank 0 begins, perhaps after another rank has failed already."""
    end = time.monotonic() + _RANK_0_S
    while True:
        attempt = run.state().attempt
        if attempt is not None and attempt.job_id == job_id and attempt.status is None:
            return attempt
        if time.monotonic() >= end:
            return None
        time.sleep(0.1)


def _record(
    run: Run, number: int, logger: DefaultLogger, call: Callable[[], Any], place: Place, shown: Shown
) -> Any:
    """Call the task and record how it ended, whatever it was; one that was given up has no say."""
    run.record(lambda state: {"event": "running", "attempt": number})
    try:
        result = _to_the_end(call, logger)
    except Preempted:  # recorded when the decision was made
        try:
            logger.finish(complete=False)
        except OSError as error:  # its checkpoint is safe, and how it leaves decides whether it comes back
            note(f"what run {run.log_id} logged after its last checkpoint may be lost: {error}")
        raise
    except Superseded:
        raise
    except KeyboardInterrupt:
        _end(run, number, RunStatus.CANCELLED, "interrupted from the keyboard")
        raise
    except SystemExit as error:
        if error.code in (None, 0):
            _completed(run, number, logger)
        else:
            _end(run, number, RunStatus.FAILED, shown.text(f"SystemExit: {error.code}"))
            if place.is_reserved(error.code):
                raise SystemExit(1) from error
        raise
    except RunError as error:
        _end(run, number, RunStatus.FAILED, shown.text(str(error)))
        raise
    except BaseException as error:
        _end(run, number, RunStatus.FAILED, shown.text(_last_line(error)))
        _print_traceback(error, shown)
        raise TaskFailed from error
    _completed(run, number, logger)
    return result


def _to_the_end(call: Callable[[], Any], logger: DefaultLogger) -> Any:
    """Call the task; when it is over, whatever it raised, so is all that it has the logger do."""
    try:
        result = call()
    except SystemExit as error:
        if error.code in (None, 0):
            logger.finish()
        raise
    finally:
        logger.await_checkpoint()
    logger.finish()
    return result


def _completed(run: Run, number: int, logger: DefaultLogger) -> None:
    _end(run, number, RunStatus.COMPLETE, None)
    logger.forget()  # not before: without the record a later attempt goes on from a checkpoint


def _end(run: Run, number: int, status: RunStatus, reason: str | None) -> None:
    event = {"event": "ended", "attempt": number, "status": status.value, "reason": reason}
    event |= seals(run.metrics)

    def ended(state: RunState) -> dict[str, Any]:
        _check_newest(run, state, number)
        return event

    try:
        run.record(ended)
    except OSError as error:
        what = f"that run {run.log_id} is {status} cannot be recorded: {error}"
        if status is RunStatus.COMPLETE:
            again = "start it again once it can be written to: it goes on from its last checkpoint"
            raise RunError(f"{what}; {again}") from error
        note(what)  # what ended it matters more


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]


def _print_traceback(error: BaseException, shown: Shown) -> None:
    """Print the whole traceback from the task's own first frame on, without secrets."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    sys.stderr.write(shown.text("".join(traceback.format_exception(type(error), error, frames))))
    sys.stderr.flush()
