"""Does a program resume as it should? Run it undisturbed, disturb it in all ways there are, and compare.

The disturbed runs stop by themselves in the middle of a step (see `hold`), so even a program whose steps
take no time is disturbed at the same place each time.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

import yaml  # noqa: F401 - to end the jobs takes it, and once Ctrl-C has cut its import short it has none

from mlxjobs.care.curves import Curves, Deviation, deviations, spread
from mlxjobs.care.trial import Stuck, Trial, settings_for
from mlxjobs.errors import MLXJobsError, RunError
from mlxjobs.jobs.act import preempt_runs, requeue_runs
from mlxjobs.logger.held import DRILL
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.system.console import counted, note

# a task that has not noticed a warning after so long goes on without
_UNNOTICED_S, _AT_LIMIT_S = 60.0, 240.0
# a job that starts takes no longer until its program does; the rest was the queue
_START_S = 120.0
# an attempt that starts a little slower has to come to a checkpoint too
_MARGIN = 1.3
_UNDISTURBED, _AGAIN = "undisturbed", "undisturbed-again"


class Verdict(str, Enum):
    """What a way of disturbing has shown; the names that `--json` shows."""

    EXACT = "resumes exactly"
    UNSURE = "resumes, exactly or not"
    DIFFERS = "resumes, but differs"
    OVER = "starts over"
    FAILED = "fails"
    STAYED = "does not leave, or does not come back"
    NO_CHECKPOINT = "writes no checkpoint"
    TOO_SHORT = "is too short"
    STUCK = "is stuck"
    UNTRIED = "not tried"


HINTS = {
    Verdict.UNSURE: "Seed everything that draws numbers (seeding_function), and log metrics in each step: "
    "then the drill can tell.",
    Verdict.DIFFERS: "Save in the checkpoint all that the next step depends on: model, optimizer, learning "
    "rate schedule, gradient scaler, epoch and step, the states of all random generators, the order of the "
    "data. Log a step's metrics before its checkpoint.",
    Verdict.OVER: "Call ctx.logger.load_checkpoint() at the start, and go on from what it returns; catch "
    "FileNotFoundError alone there, so that nothing else hides.",
    Verdict.STAYED: "Leave SIGTERM, SIGUSR1 and SIGUSR2 to mlxjobs, and do not catch BaseException.",
    Verdict.NO_CHECKPOINT: "Call ctx.logger.log_checkpoint(state) at the end of each epoch, or more often.",
    Verdict.TOO_SHORT: "Give it more to do: more epochs, or more checkpoints.",
    Verdict.STUCK: "Write checkpoints more often, or give it more time: --timeout MINUTES.",
}


@dataclass(frozen=True)
class WayOutcome:
    """What became of one way.

    Attributes:
        way: the way, as `--way` takes it.
        title: the same in words.
        verdict: what it shows.
        words: the same with its particulars.
    """

    way: str
    title: str
    verdict: Verdict
    words: str


def is_exact(outcomes: Sequence[WayOutcome]) -> bool:
    """Whether a run resumed exactly in each way that was tried, and some were."""
    shown = {outcome.verdict for outcome in outcomes} - {Verdict.UNTRIED}
    return shown == {Verdict.EXACT}


@dataclass(frozen=True)
class _Way:
    """One way of disturbing.

    Attributes:
        name: of its folder.
        title: in words.
        act: does it to a run that is held; None: the run ends by itself.
        kills: whether the held attempt kills itself.
        limited: whether the job has a time limit.
    """

    name: str
    title: str
    act: Callable[[Trial], None] | None = None
    kills: bool = False
    limited: bool = False


def _bring_back(trial: Trial) -> None:
    """Start a killed run again, once it has ended; or if it does not, as its other ranks go on."""
    give_up = time.monotonic() + _UNNOTICED_S

    def ended(state: RunState) -> bool:
        return state.status.ended or len(state.attempts) > 1 or time.monotonic() > give_up

    if len(trial.follow(ended).attempts) == 1:
        trial.do(requeue_runs)


_WAYS = (
    _Way("warning", "warned, leaves by itself", lambda trial: trial.do(preempt_runs)),
    _Way("requeue", "stopped and requeued", lambda trial: trial.do(requeue_runs)),
    _Way("kill", "killed in a step", _bring_back, kills=True),
    _Way("time-limit", "at its time limit", limited=True),
)


class _Verdict(Exception):
    """What a way has shown; raised where that ends it early."""

    def __init__(self, verdict: Verdict, words: str = "") -> None:
        super().__init__(words or verdict.value)
        self.verdict = verdict


class Drill:
    """A drill of one command.

    Args:
        command: the program and its arguments.
        logs: the log directory; all is done in a folder of its own in `.drill` there.
        scheduler: the scheduler's name; None: that of the command, or the local queue.
        checkpoints: how many to wait for.
        patience_s: how long a run may go without a new checkpoint.
        ways: names of the ways to try; none: all.

    Raises:
        InvalidConfigFileError: a setting in the command cannot be read.
        RunError: there is no such way, or the command names a run.
    """

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        *,
        scheduler: str | None,
        checkpoints: int,
        patience_s: float,
        ways: Sequence[str] = (),
    ) -> None:
        unknown = [name for name in ways if name not in {way.name for way in _WAYS}]
        if unknown:
            known = ", ".join(way.name for way in _WAYS)
            raise RunError(f"{unknown[0]!r} is not a way of disturbing a run: give some of {known}")
        self._ways = [way for way in _WAYS if way.name in ways or not ways]
        self._made = [path for path in (logs.absolute() / DRILL, logs.absolute()) if not path.exists()]
        stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{time.time_ns() % 1000:03d}"
        self.folder = logs.absolute() / DRILL / stamp
        self._command = [*command, *settings_for(command, scheduler)]
        self._patience_s = patience_s
        self._wanted = checkpoints + 1
        self._trials: list[Trial] = []
        self._after = 1  # the checkpoint after which runs are disturbed
        self._held_s = 1.0  # how long a job takes to get there
        self._noise: Curves | None = None

    def run(self) -> list[WayOutcome]:
        """Run the drill, and return what each way has shown; all jobs that it started have then ended.

        Raises:
            RunError: the command submits no run, or more than one.
        """
        with self._ending_all():
            note(f"drill in {self.folder}")
            first = _Way(_UNDISTURBED, "undisturbed")
            try:
                self._reference = self._undisturbed(_UNDISTURBED)
            except (_Verdict, Stuck) as error:
                return [_outcome(first, error)]
            return [self._disturbed(way) for way in self._ways]

    def remove(self) -> None:
        """Remove all that the drill has left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # there is more in it now
            for path in self._made:
                path.rmdir()

    @contextmanager
    def _ending_all(self) -> Iterator[None]:
        """End all jobs if the drill is ended."""

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        try:
            yield
        except BaseException as error:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            submits_nothing = isinstance(error, RunError)
            for trial in self._trials:
                with suppress(MLXJobsError):
                    trial.end(wait=submits_nothing)
            if submits_nothing:
                self.remove()
            else:
                note(f"the jobs of the drill are ended; its runs are kept in {self.folder}")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def _name(self) -> str:
        return self._reference.cluster.name

    def _trial(self, name: str) -> Trial:
        self._trials.append(Trial(self.folder / name, self._command, self._patience_s))
        return self._trials[-1]

    # -- undisturbed ------------------------------------------------------------------------

    def _undisturbed(self, name: str) -> Trial:
        trial = self._trial(name)
        note(f"{name}: to {counted(self._wanted, 'checkpoint')}")
        trial.start()
        try:
            state = trial.follow(lambda state: state.status.ended or trial.saved() >= self._wanted)
            self._lines = trial.lines()
        finally:
            trial.end()
        saved = trial.saved()
        if state.status in (RunStatus.FAILED, RunStatus.CANCELLED):
            raise _Verdict(Verdict.FAILED, f"{state.status}: {state.reason}{_more_in(trial)}")
        if saved == 0:
            raise _Verdict(Verdict.NO_CHECKPOINT)
        if saved < self._wanted:
            note(f"{name}: ended after {counted(saved, 'checkpoint')}")
        self._after = max(1, (min(saved, self._wanted) - 1) // 2)
        return trial

    def _undisturbed_again(self) -> Curves:
        """What a second undisturbed run logs, which is made when this is first called."""
        if self._noise is None:
            trial = self._trial(_AGAIN)
            note(f"{_AGAIN}: does that also differ if nothing disturbs it?")
            trial.start()
            try:
                trial.follow(lambda state: state.status.ended or trial.reaches(self._lines))
                self._noise = trial.lines()
            finally:
                trial.end()
        return self._noise

    # -- disturbed --------------------------------------------------------------------------

    def _disturbed(self, way: _Way) -> WayOutcome:
        note(f"{way.name}: after checkpoint {self._after}")
        trial = self._trial(way.name)
        try:
            outcome = _outcome(way, self._try(way, trial))
        except (_Verdict, Stuck) as error:
            outcome = _outcome(way, error)
        except MLXJobsError as error:
            outcome = WayOutcome(way.name, way.title, Verdict.FAILED, f"could not be tried: {error}")
        finally:
            trial.end()
        note(f"{way.name}: {outcome.words}")
        return outcome

    def _try(self, way: _Way, trial: Trial) -> _Verdict:
        scheduler = self._reference.cluster.scheduler
        if way.name == "warning" and scheduler.preempt_command("1") is None:
            raise _Verdict(Verdict.UNTRIED, f"not tried: {self._name} has no command that warns")
        options = self._limit() if way.limited else None
        trial.start(f"{'kill' if way.kills else 'wait'} {self._after}", options)
        submitted = time.monotonic()
        trial.follow(lambda state: bool(state.attempts) or state.status.ended)
        started = max(submitted, time.monotonic() - _START_S)
        state = trial.follow(lambda state: trial.held or state.status.ended or len(state.attempts) > 1)
        self._held_s = max(self._held_s, time.monotonic() - started)
        if state.status is RunStatus.COMPLETE and not trial.held:
            raise _Verdict(Verdict.TOO_SHORT, "ends before it can be disturbed")
        before = {name: len(lines) for name, lines in trial.lines().items()}
        if way.act is not None:
            way.act(trial)
        self._await_return(way, trial)
        saved = trial.saved()
        state = trial.follow(
            lambda state: state.status.ended or (trial.saved() > saved and trial.reaches(self._lines))
        )
        if state.status in (RunStatus.FAILED, RunStatus.CANCELLED):
            return _Verdict(Verdict.FAILED, f"comes back, but fails: {state.reason}{_more_in(trial)}")
        return self._judge(state, trial, before)

    def _limit(self) -> list[str]:
        """The options of a job that ends in the middle of a step."""
        scheduler = self._reference.cluster.scheduler
        limit = scheduler.time_limit_option(math.ceil(_MARGIN * self._held_s + 1))
        if limit is None:
            raise _Verdict(
                Verdict.UNTRIED, f"not tried: {self._name} has no time limit that the drill can set"
            )
        ours = scheduler.option_name(limit)
        return [*(line for line in self._reference.options() if scheduler.option_name(line) != ours), limit]

    def _await_return(self, way: _Way, trial: Trial) -> None:
        release_at = time.monotonic() + (_AT_LIMIT_S if way.limited else _UNNOTICED_S)

        def back(state: RunState) -> bool:
            if time.monotonic() > release_at:
                trial.release()
            return len(state.attempts) > 1 or state.status.ended or trial.saved() > self._after + 2

        state = trial.follow(back)
        if len(state.attempts) > 1:
            return
        if state.status in (RunStatus.FAILED, RunStatus.CANCELLED):
            raise _Verdict(Verdict.STAYED, f"does not come back: {state.reason}")
        raise _Verdict(Verdict.STAYED, "goes on as if there had been no warning")

    def _judge(self, state: RunState, trial: Trial, before: dict[str, int]) -> _Verdict:
        lines = trial.lines()
        found = deviations(self._lines, lines, ended=state.status.ended)
        if not any(attempt.resumed_from for attempt in state.attempts[1:]):
            if found and found[0].index == 0 and found[0].of_progress and found[0].key:
                words = "goes on without load_checkpoint(), so its earlier metrics are gone"
                return _Verdict(Verdict.OVER, words)
            return _Verdict(Verdict.OVER)
        if not any(len(rows) > before.get(name, 0) for name, rows in self._lines.items()):
            return _Verdict(
                Verdict.UNSURE, "resumes; it logs no metrics after that, so nothing can be compared"
            )
        if not found:
            return _Verdict(Verdict.EXACT)
        return self._explain(found, lines)

    def _explain(self, found: Sequence[Deviation], lines: Curves) -> _Verdict:
        again = self._undisturbed_again()
        noise = {(usual.log, usual.key): usual for usual in deviations(self._lines, again, ended=True)}
        real = [deviation for deviation in found if (deviation.log, deviation.key) not in noise]
        if not real:
            both = noise[found[0].log, found[0].key]
            words = f"resumes; whether exactly cannot be told, as of two undisturbed runs, too, {both}"
            usual, here = (spread(self._lines, other, both.log, both.key) for other in (again, lines))
            if usual is not None and here is not None:
                words += f", by up to {usual:.3g}; after this by up to {here:.3g}"
            return _Verdict(Verdict.UNSURE, words)
        if real[0].over:
            return _Verdict(Verdict.OVER, f"starts over, though it loads a checkpoint: {real[0]}")
        others = len({deviation.key for deviation in real}) - 1
        more = f", and {others} more" if others else ""
        return _Verdict(Verdict.DIFFERS, f"resumes, but {real[0]}{more}")


def _more_in(trial: Trial) -> str:
    return f" (more in {os.path.relpath(trial.run.stderr)})"


def _outcome(way: _Way, error: Exception) -> WayOutcome:
    verdict = error.verdict if isinstance(error, _Verdict) else Verdict.STUCK
    return WayOutcome(way.name, way.title, verdict, str(error))
