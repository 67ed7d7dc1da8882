"""One execution of a run: take the attempt's number, call the task, record how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.code import provenance
from mlxjobs.config import stored
from mlxjobs.config.secrets import Shown
from mlxjobs.config.settings import Settings
from mlxjobs.config_dict import ConfigDict, seed_of
from mlxjobs.errors import RunError
from mlxjobs.jobs.context import Context
from mlxjobs.jobs.failure import TaskFailed, call_and_report, last_line, print_traceback
from mlxjobs.jobs.other_ranks import call_as_other_rank
from mlxjobs.jobs.startable import Place, check_startable
from mlxjobs.jobs.streams import divert, tee
from mlxjobs.logger.before import renew
from mlxjobs.logger.logger import DefaultLogger, SilentLogger
from mlxjobs.logger.metrics import seals
from mlxjobs.record import history
from mlxjobs.record.fence import Fence, Superseded, Vanished, take_over
from mlxjobs.record.history import Event, Preempted, RunState, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.console import note
from mlxjobs.system.processes import this_process

if TYPE_CHECKING:  # a run outside of a job does not pay for what only jobs need
    from mlxjobs.cluster.cluster import Cluster
    from mlxjobs.jobs.preemption import Preemption

_Task = Callable[[Context], Any]


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
        from mlxjobs.jobs.hand_in import settle_last_attempt

        settle_last_attempt(run, place.cluster, place.here)
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


def _fence(run: Run, state: RunState) -> Fence:
    """Return what an attempt writes through, once no earlier one can write any more."""
    number = len(state.attempts)
    events: list[Event] = []

    def ask() -> None:
        nonlocal events
        newer = run.events(events)
        if len(newer) > len(events):
            events = newer
            _check_newest(run, history.fold(newer), number)
        elif not run.history_dir.is_dir():
            raise Vanished(
                f"{run.path} is gone, removed or moved: attempt {number} has nothing to write to, and ends"
            )

    fence = Fence(number, ask)
    fence.begin(run.path)
    if number > 1:
        silent = [old.number for old in state.attempts[:-1] if old.status is None or old.presumed]
        take_over(run.path, number, {*silent, number - 1})
        renew(run.metrics, fence)
    return fence


def _check_newest(run: Run, state: RunState, number: int) -> None:
    newest = state.attempt
    if newest is not None and newest.number > number:
        where = f"on {newest.host}" + (f" in job {newest.job_id}" if newest.job_id else "")
        raise Superseded(
            f"run {run.log_id} was started again {where} at {newest.start}, as attempt {newest.number}: "
            f"this process, attempt {number}, may not write to it any more, and ends"
        )


def _prepare(run: Run, state: RunState, shown: Shown, *, strict: bool) -> tuple[Fence, provenance.Proof]:
    """Make an attempt that has its number fit to call the task; what hinders it is recorded."""
    number = len(state.attempts)
    try:
        fence = _fence(run, state)
        with fence.explaining():
            run.write_yaml("config", stored.plain_config(shown.config), fence.folder(run.metadata))
        proof = provenance.Proof(run, state, strict=strict)
        proof.begin()
    except OSError as error:
        _end(run, number, RunStatus.FAILED, last_line(error))
        raise RunError(f"run {run.log_id} ({run.path}) cannot be started: {error}") from error
    except provenance.Refused as error:
        _end(run, number, RunStatus.FAILED, str(error))
        raise
    return fence, proof


def _flag(preemption: Preemption | None) -> Callable[[], bool] | None:
    return preemption.tell_task if preemption is not None else None


def _info(state: RunState, place: Place) -> ConfigDict:
    info = ConfigDict(history.render_info(state))
    info.rank = place.rank
    info.world_size = place.here.world_size if place.here else 1
    return info


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
        _end(run, number, RunStatus.FAILED, shown.text(last_line(error)))
        print_traceback(error, shown)
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


def _plain_logger(log_dir: Path, warned: Callable[[], bool], **hooks: Any) -> DefaultLogger:
    return DefaultLogger(log_dir, **hooks)


@dataclass(frozen=True)
class Execution:
    """A task that is executed once, and what it is given.

    Attributes:
        task: the user's function.
        config: its configuration, resolved.
        settings: the settings in force.
        shown: the configuration as it is shown, without its secrets.
        facts: what `info.yaml` says of this process: `executable`, `cmd`, `work_dir` ...
        seeding: called with the seed before the task.
        place: the scheduler's job this process is in, if any.
        cluster: where the run was submitted to, if it was.
        make_logger: makes an attempt's logger, of the run directory, a function that tells whether a
            warning of the scheduler has come, and what else `DefaultLogger` takes.
    """

    task: _Task
    config: ConfigDict
    settings: Settings
    shown: Shown
    facts: dict[str, Any]
    seeding: Callable[[Any], Any] | None = None
    place: Place = field(default_factory=Place)
    cluster: Cluster | None = None
    make_logger: Callable[..., DefaultLogger] = _plain_logger

    def execute(self, run: Run | None) -> Any:
        """Execute the task, as the next attempt of a run.

        Args:
            run: the run; None with `use_logger: false`, when nothing is recorded.

        Returns:
            What the task returned.

        Raises:
            TaskFailed: it raised.
            Preempted: it left, to come back or because it was cancelled.
            Superseded: it was given up, and a newer attempt has begun.
            AlreadyComplete: there is nothing to do.
            MLXJobsError: it could not be started.
        """
        if run is None:
            context = self._context(ConfigDict(self.facts), None)
            return call_and_report(lambda: self._call(context), self.shown)
        return self.as_other_rank(run) if self.place.rank > 0 else self.as_rank_0(run)

    def as_rank_0(self, run: Run) -> Any:
        """Take the attempt's number, call the task, and record how it ended."""
        before, after = _begin(run, self.place, self.facts, self.cluster)
        number = len(after.attempts)
        stop = _limits(before, self.settings.scheduler.max_requeues)
        if stop is not None:
            _end(run, number, RunStatus.FAILED, stop)
            raise RunError(f"run {run.log_id} is not started again: {stop}")
        fence, proof = _prepare(run, after, self.shown, strict=self.settings.version_manager.strict)
        with ExitStack() as stack:
            preemption = self._listen(stack, run, number)
            logger = self._logger(run, fence, before, preemption)
            stack.callback(logger.close)
            if self.settings.logger.log_streams_to_file and self.place.here is None:
                stack.enter_context(tee(run))
            context = self._context(_info(after, self.place), logger)

            def call() -> Any:
                with proof:
                    return self._call_to_leave(context, logger, preemption)

            return _record(run, number, logger, call, self.place, self.shown)

    def as_other_rank(self, run: Run) -> Any:
        """Call the task beside rank 0, which does all that is done once for the run."""
        divert(run, self.place.rank)
        with ExitStack() as stack:
            preemption = self._listen(stack, run, 0)
            silent = SilentLogger(run.path, preempted=_flag(preemption))
            context = self._context(_info(run.state(), self.place), silent)
            return call_as_other_rank(
                run, self.place, lambda: call_and_report(lambda: self._call(context), self.shown), self.shown
            )

    def _context(self, info: ConfigDict, logger: DefaultLogger | None) -> Context:
        return Context(self.config, ConfigDict(self.settings.to_dict()), info, logger)

    def _call(self, context: Context) -> Any:
        if self.seeding is not None:
            self.seeding(seed_of(context.config))
        return self.task(context)

    def _call_to_leave(self, context: Context, logger: DefaultLogger, preemption: Preemption | None) -> Any:
        """Call the task; where it ends because of a warning, it leaves, and comes back."""
        try:
            result = self._call(context)
        except SystemExit as error:
            if preemption is not None and error.code in (None, 0):
                preemption.at_the_end(logger.run_preemption_callbacks, by_exit=True)
            raise
        if preemption is not None:
            preemption.at_the_end(logger.run_preemption_callbacks, by_exit=False)
        return result

    def _listen(self, stack: ExitStack, run: Run, number: int) -> Preemption | None:
        """Catch the scheduler's warnings until the stack is left, if this is a job."""
        place = self.place
        if place.cluster is None or place.here is None:
            return None
        from mlxjobs.jobs.preemption import Preemption

        limit = self.settings.scheduler.max_requeues
        preemption = Preemption(run, number, place.cluster, place.here, limit)
        stack.enter_context(preemption.listen())
        return preemption

    def _logger(
        self, run: Run, fence: Fence, before: RunState, preemption: Preemption | None
    ) -> DefaultLogger:
        def checkpointed() -> None:
            if preemption is not None:
                preemption.at_safe_point(logger.run_preemption_callbacks)

        def resumed(checkpoint: Path) -> None:
            name = os.path.relpath(checkpoint, run.path)
            try:
                run.record(lambda state: {"event": "resumed", "attempt": fence.attempt, "checkpoint": name})
            except OSError as error:  # the object is good: to fail here would have many a task start over
                note(f"that run {run.log_id} goes on from {name} cannot be recorded: {error}")

        logger = self.make_logger(
            run.path,
            lambda: preemption is not None and preemption.requested,
            fence=fence,
            unfinished=bool(before.attempts) and before.status is not RunStatus.COMPLETE,
            preempted=_flag(preemption),
            checkpointed=checkpointed,
            resumed=resumed,
        )
        return logger
