"""What a submitted job does when its scheduler warns it: reach the next checkpoint, then leave and come back.

A signal only sets a flag and wakes a thread. The thread asks the scheduler at once what the signal
meant, because there may be no time later: if the job's time is over, it is requeued right there;
if it was cancelled, that is recorded. The task itself goes on until its next `log_checkpoint`, the
safe point, where it leaves by an exception.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.errors import MLXJobsError, RunError
from mlxjobs.jobs.cause import with_progress
from mlxjobs.jobs.hand_in import come_back, end_attempt
from mlxjobs.record.history import Preempted, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.scheduler import EX_TEMPFAIL, Fate, Here, JobState, JobStatus
from mlxjobs.system.console import note

_TIME_LIMIT = JobState.TIME_LIMIT.name
_STOP, _DRAIN = 0, 255  # no signals have these numbers
# how long before its job's end a task that has reached no safe point is left behind
_BEFORE_END_S = 10.0
# how long a task that has ended waits for a scheduler that does not answer, to be requeued
_PATIENCE_S = 600.0


class Preemption:
    """Follows the warnings that one attempt of a run gets.

    Args:
        run: the run.
        attempt: the number of the attempt.
        cluster: what the job runs on.
        here: the job.
        max_requeues: how often the run may come back.
    """

    def __init__(self, run: Run, attempt: int, cluster: Cluster, here: Here, max_requeues: int) -> None:
        self._run = run
        self._attempt = attempt
        self._cluster = cluster
        self._here = here
        self._max_requeues = max_requeues
        self._lock = threading.Lock()
        self._listening = False
        self._writer: int | None = None
        self._drained = threading.Event()
        self._signal: signal.Signals | None = None
        self._seen = False
        self._leaving: Preempted | None = None
        self._calling = False  # the user's callbacks are running
        self._began = time.monotonic()
        self._status: JobStatus | None = None
        self._silent = False  # the scheduler did not answer when it was asked last

    @property
    def requested(self) -> bool:
        """Whether a warning has come."""
        return self._signal is not None

    def tell_task(self) -> bool:
        """Tell the task whether a warning has come; one that then ends has left because of it."""
        self._seen = self._seen or self.requested
        return self.requested

    # -- signals ----------------------------------------------------------------------------

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Catch the scheduler's warnings; afterwards all handlers are as before."""
        if threading.current_thread() is not threading.main_thread():
            note("the task runs in a thread: signals of the scheduler cannot be caught")
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # C code that takes long keeps the handler waiting, but not the byte that the
        # interpreter's own handler writes; so the thread hears of a signal in any case
        before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        before = {
            number: signal.signal(number, self._note_signal)
            for number in self._cluster.scheduler.warning_signals
        }
        owner = os.getpid()
        self._listening, self._writer = True, writer
        os.register_at_fork(after_in_child=lambda: self._forget(owner, before, before_fd))
        thread = threading.Thread(target=self._watch, args=(reader,), name="mlxjobs-signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._restore(before, before_fd)
            # closing the pipe would not end the thread: a forked child may hold it open too
            os.write(writer, bytes([_STOP]))
            thread.join()
            self._writer = None
            os.close(writer)
            os.close(reader)

    def _restore(self, handlers: dict[signal.Signals, Any], wakeup_fd: int) -> None:
        self._listening = False
        for number, handler in handlers.items():
            # a job that leaves is about to be signalled again: that must not cut short its exit
            leaving = self._leaving is not None
            signal.signal(number, signal.SIG_IGN if leaving else (handler or signal.SIG_DFL))
        signal.set_wakeup_fd(wakeup_fd)

    def _forget(self, owner: int, handlers: dict[signal.Signals, Any], wakeup_fd: int) -> None:
        """In a child made by fork (a data loader's worker), signals mean what they meant before."""
        if self._listening and os.getppid() == owner:
            self._leaving = None
            self._restore(handlers, wakeup_fd)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """Keep from the commands that this thread starts what warns the whole job, or its process group."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._cluster.scheduler.warning_signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _watch(self, reader: int) -> None:
        warnings = self._cluster.scheduler.warning_signals
        while True:
            if not select.select([reader], [], [], self._time_left())[0]:
                self._leave_at_the_end()
                continue
            received = os.read(reader, 64)
            if _STOP in received:
                return
            heard = [number for number in received if number in warnings]
            if heard:
                self._signal = signal.Signals(heard[-1])
                if self._here.rank == 0:
                    with self._lock, self._deaf():
                        self._answer(at_safe_point=False)
            if _DRAIN in received:
                self._drained.set()

    def _time_left(self) -> float | None:
        """Seconds until a task that was warned has to be left behind; None: as long as it takes."""
        ends = self._status.ends if self._status is not None else None
        if ends is None or self._leaving is not None:
            return None
        return max(0.0, (ends - datetime.now(timezone.utc)).total_seconds() - _BEFORE_END_S)

    def _leave_at_the_end(self) -> None:
        """Let the job come back although no safe point was reached, where its end comes without a signal."""
        with self._lock, self._deaf():
            if self._leaving is not None:
                return  # it has reached one at the last moment
            self._come_back(_TIME_LIMIT, wait=False)
            self._status = None  # once is enough
            if self._leaving is None:
                return
        note(f"no safe point was reached before the end of the job: {self._leaving.reason}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._leaving.exit_code)

    # -- the answer -------------------------------------------------------------------------

    def at_safe_point(self, callbacks: Callable[[], None]) -> None:
        """Leave if a warning has come; called when a checkpoint is on the disk.

        Args:
            callbacks: runs what the user wants done before the task leaves.

        Raises:
            Preempted: the task has to leave.
        """
        if not self.requested or self._here.rank != 0 or self._calling:  # a callback may save once more
            return
        with self._lock, self._deaf():  # the thread may be asking at this moment
            if self._leaving is None:
                self._answer(at_safe_point=True)
            leaving = self._leaving
        if leaving is None:
            return
        self._calling = self._seen = True  # a task that catches everything and returns has left all the same
        try:
            callbacks()
        except SystemExit:  # it leaves in any case, and by this alone it would be COMPLETE
            pass
        except Exception:  # noqa: BLE001 - the checkpoint is safe; the job must go back to the queue
            note("a callback of on_preemption failed:")
            traceback.print_exc()
        finally:
            self._calling = False
        raise leaving

    def at_the_end(self, callbacks: Callable[[], None], *, by_exit: bool) -> None:
        """Leave if the task ended because of a warning, not because its work was done.

        Args:
            callbacks: as `at_safe_point`.
            by_exit: it ended by `sys.exit()`, as a handler of its own for SIGTERM does; else it returned.

        Raises:
            Preempted: it left, and comes back if it may.
            RunError: it left, and cannot come back.
        """
        if by_exit and self._writer is not None:  # a signal that the thread has not been woken by yet
            os.write(self._writer, bytes([_DRAIN]))
            self._drained.wait()
        if not (self._seen or (by_exit and self.requested)) or self._here.rank != 0:
            return
        end, pause_s = time.monotonic() + _PATIENCE_S, 1.0
        self.at_safe_point(callbacks)
        while self._silent and time.monotonic() < end:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
            self.at_safe_point(callbacks)
        raise RunError(
            "the task ended after a warning of the scheduler, perhaps because of it, and was not requeued; "
            f"to go on: mlxjobs requeue {self._run.log_id} --logs {self._run.path.parent}"
        )

    def _answer(self, *, at_safe_point: bool) -> None:
        fate = self._ask()
        if fate is Fate.CANCELLED:
            self._record(RunStatus.CANCELLED, with_progress(self._run, "CANCELLED"))
        elif fate is Fate.REQUEUED:
            reason = with_progress(self._run, "stopped and requeued by the scheduler")
            self._record(RunStatus.PREEMPTED, reason)
        elif fate is Fate.TIME_LIMIT:
            self._come_back(_TIME_LIMIT, wait=at_safe_point)
        elif at_safe_point:
            name = self._signal.name if self._signal else "a signal"
            self._come_back(f"warned by {name}", wait=True)

    def _ask(self) -> Fate:
        job_id = self._here.job_id
        self._silent = False
        try:
            self._status = self._cluster.status([job_id]).get(job_id)
            if self._status is not None:
                return self._cluster.scheduler.fate(self._status, self._here)
        except MLXJobsError as error:
            self._silent = True
            note(f"the scheduler does not say what the signal means: {error}")
        return Fate.UNKNOWN

    def _come_back(self, reason: str, *, wait: bool) -> None:
        try:
            self._try_to_come_back(reason, wait=wait)
        except (MLXJobsError, OSError) as error:
            note(f"the job could not be requeued, so it goes on: {error}")

    def _try_to_come_back(self, reason: str, *, wait: bool) -> None:
        state = self._run.state()
        given_up = state.attempt is not None and state.attempt.number > self._attempt
        if given_up or state.over or self._leaving is not None:
            return  # it has come back already; Grid Engine warns twice, and a hard limit follows a soft one
        done, words = state.interruptions, with_progress(self._run, reason)
        if done >= self._max_requeues:
            stop = f"{words}; requeued {done} times, scheduler.max_requeues is {self._max_requeues}"
            if reason == _TIME_LIMIT:
                self._record(RunStatus.CANCELLED, stop)
            else:
                note(f"the run is not requeued: {stop}")
            return
        ran_s = time.monotonic() - self._began
        code = come_back(self._run, self._attempt, self._cluster, self._here, self._status, ran_s, wait=wait)
        self._record(RunStatus.PREEMPTED, f"{words}, requeued {done + 1} of {self._max_requeues}", code)

    def _record(self, status: RunStatus, reason: str, exit_code: int = EX_TEMPFAIL) -> None:
        self._leaving = Preempted(status, reason, exit_code)
        with suppress(MLXJobsError, OSError):  # a full disk: leaving matters more, and the next attempt tells
            end_attempt(self._run, self._attempt, status, reason)
