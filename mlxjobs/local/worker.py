"""Run the jobs of the local queue: a process that runs one after the other, and ends when none waits.

The worker is the subreaper of all that its job starts (prctl(2)), so nothing escapes by forking twice: an
orphan becomes a child of the worker, and is killed with the job. The job's main process dies with the worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlxjobs.local.state import (
    RUN,
    JobRecord,
    Queue,
    kill_matching,
    locked,
    new_socket,
    open_queue,
    short_path,
)
from mlxjobs.scheduler import exit_words

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
# A stronger reason replaces a weaker one while the job is being stopped.
_STRENGTH = {"": 0, "time limit": 1, "preempted": 2, "requeued": 2, "cancelled": 3}


def _prctl(option: int, value: int) -> None:
    """Call prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _record_of_end(job: JobRecord, code: int, now: float) -> JobRecord:
    """Return the record of a job whose main process has ended; `code` is negative if a signal ended it."""
    if job.reason in ("preempted", "requeued"):
        return job.again(job.reason, now)
    if job.reason:
        return job._replace(state="CANCELLED" if job.reason == "cancelled" else "TIMEOUT", deadline=None)
    reason = exit_words(code if code >= 0 else 128 - code)
    return job._replace(state="FAILED" if code else "COMPLETED", reason=reason, deadline=None)


def _parent_of(pid: int) -> int:
    """Return a process's parent; 0 if there is no such process."""
    try:
        # The name, in parentheses, may hold anything (proc_pid_stat(5)).
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _prepare_main(worker: int) -> None:
    """Make a process that is about to become a job what a user expects of a new process."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != worker:  # it died before the call
        os._exit(1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _open_output(job: JobRecord, name: str) -> BinaryIO:
    """Open a file of a job for appending; a terminal does not become the worker's own."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY
    return os.fdopen(os.open(Path(job.cwd) / name, flags, 0o666), "wb")


class _Supervisor:
    """One run of a job, whose lock is held.

    Args:
        alarm: a socket that becomes readable when this process gets a signal.
        helpers: the children of this process that are workers, not of the job.
    """

    def __init__(
        self, queue: Queue, number: int, job: JobRecord, alarm: socket.socket, helpers: set[int]
    ) -> None:
        self.queue, self.number, self.job, self.alarm, self.helpers = queue, number, job, alarm, helpers
        self.leaving = False
        self.main = 0
        self.code: int | None = None
        self.limit_at = self.warn_at = self.kill_at = float("inf")  # of the monotonic clock

    def run(self) -> bool:
        """Run the job to its end and record it; return whether the worker was told to leave meanwhile."""
        deadline = time.time() + self.job.limit_s if self.job.limit_s else None
        self.record(state="RUNNING", reason="", run=os.urandom(16).hex(), deadline=deadline)
        failure = ""
        with self.listen() as control:
            try:
                self.start()
            except OSError as error:
                failure = " ".join(f"cannot start: {error}".replace("|", " ").split())
            while not failure and self.code is None:
                self.attend(control)
        self.kill_all()
        if failure:
            self.record(state="FAILED", reason=failure, deadline=None)
        else:
            self.record(**_record_of_end(self.job, self.code or 0, time.time())._asdict())
        return self.leaving

    def record(self, **fields: object) -> None:
        """Change the record."""
        self.job = self.job._replace(**fields)  # type: ignore[arg-type]  # named where it is called
        self.queue.write(self.number, self.job)

    @contextmanager
    def listen(self) -> Iterator[socket.socket]:
        """Take requests; one that comes too late finds nobody, and is obeyed by the process that sent it."""
        directory = self.queue.directory(self.number)
        (directory / "control").unlink(missing_ok=True)
        with new_socket() as control:
            with short_path(directory) as short:
                control.bind(f"{short}/control")
            control.listen()
            yield control

    def start(self) -> None:
        """Start the main process."""
        job, directory, me = self.job, self.queue.directory(self.number), os.getpid()
        environment = json.loads((directory / "environment.json").read_bytes())
        environment |= {"MLXJOBS_LOCAL_JOB_ID": str(self.number), RUN: job.run}
        if job.restarts:
            environment["MLXJOBS_LOCAL_RESTART_COUNT"] = str(job.restarts)
        os.umask(job.umask)
        with _open_output(job, job.output) as output, _open_output(job, job.error) as error:
            process = subprocess.Popen(
                [directory / "script"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
                cwd=job.cwd,
                env=environment,
                start_new_session=True,
                preexec_fn=lambda: _prepare_main(me),
            )
        process.returncode = 0  # reaped by ourselves; subprocess should not try to
        self.main = process.pid
        if job.limit_s:
            self.limit_at = time.monotonic() + job.limit_s
        if job.limit_s and job.warn_signal:
            self.warn_at = self.limit_at - job.warn_s

    def attend(self, control: socket.socket) -> None:
        """Sleep until something is to be done for the running job, and do it."""
        until = min(self.limit_at, self.warn_at, self.kill_at)
        timeout = None if until == float("inf") else max(0.0, until - time.monotonic())
        ready = select.select([self.alarm, control], [], [], timeout)[0]
        if self.alarm in ready and set(self.alarm.recv(4096)) - {signal.SIGCHLD}:
            self.leaving = True  # the machine is being shut down
            self.stop("preempted")
        self.reap()
        if self.code is None and control in ready:
            self.answer(control)
        now = time.monotonic()
        if self.code is None and now >= self.kill_at:
            self.kill_at = float("inf")
            self.kill_all()
        if self.code is None and now >= self.warn_at:
            self.warn_at = float("inf")
            self.send(self.job.warn_signal)
        if self.code is None and now >= self.limit_at:
            self.stop("time limit")

    def stop(self, reason: str) -> str:
        """Ask the main process to end, unless that was done before; `ok`, or why not for this reason."""
        if self.job.reason == "cancelled" != reason:
            return f"job {self.number} is being cancelled"
        if self.job.reason:
            if _STRENGTH[reason] > _STRENGTH[self.job.reason]:
                self.record(reason=reason)
            return "ok"
        # First the record: the job may ask why it has to end.
        self.record(reason=reason, deadline=time.time() + self.job.grace_s)
        self.kill_at = time.monotonic() + self.job.grace_s
        self.limit_at = self.warn_at = float("inf")
        self.send(signal.SIGCONT)
        return self.send(signal.SIGTERM)

    def send(self, number: int) -> str:
        """Send the main process a signal; `ok`, or why that cannot be."""
        try:
            os.kill(self.main, number)
        except PermissionError:
            return f"job {self.number} runs as another user, and cannot be signalled"
        return "ok"

    def answer(self, control: socket.socket) -> None:
        """Obey one request."""
        connection = control.accept()[0]
        with connection:
            connection.settimeout(1.0)
            words: list[str] = []
            with suppress(OSError):  # the process that asks was killed before it could
                words = connection.recv(4096).decode().split()
            if words:
                answer = self.obey(*words)
                with suppress(OSError):
                    connection.send(answer.encode())

    def obey(self, verb: str, value: str = "") -> str:
        """Do what a request asks for; `ok`, or why not."""
        if verb == "signal":
            return self.send(int(value))
        if verb == "workers":
            self.helpers.update(self.queue.start_workers(int(value)))
            return "ok"
        return self.stop({"cancel": "cancelled", "preempt": "preempted", "requeue": "requeued"}[verb])

    def reap(self) -> bool:
        """Take note of children that have ended; return whether any are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.helpers.discard(pid)
            if pid == self.main and self.code is None:
                self.code = os.waitstatus_to_exitcode(status)

    def kill_all(self) -> None:
        """Kill all processes of the job; their orphans become our children, until no more come."""
        me = os.getpid()
        while self.reap() and kill_matching(lambda pid: pid not in self.helpers and _parent_of(pid) == me):
            pass


def _catch_signals() -> socket.socket:
    """Turn SIGCHLD and requests to end into bytes on a socket, which is returned."""
    alarm, bell = socket.socketpair()
    for end_of_pair in (alarm, bell):
        end_of_pair.setblocking(False)
    signal.set_wakeup_fd(bell.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return alarm


def _work(queue: Queue, slot: int) -> None:
    """Run waiting jobs until there are none, or the worker is told to leave; then free the slot."""
    alarm = _catch_signals()
    helpers: set[int] = set()
    leaving = False
    while not leaving:
        records = queue.scan()
        if queue.revive_lost(records):
            helpers.update(queue.start_workers(queue.at_once))
            continue
        for number in [number for number, job in records.items() if job.state == "PENDING"]:
            with queue.hold(number) as job:
                if job and job.state == "PENDING":
                    leaving = _Supervisor(queue, number, job, alarm, helpers).run()
                    break
        else:
            with locked(queue.root / "staff"):
                if all(job.state != "PENDING" for job in queue.scan().values()):
                    os.close(slot)
                    return
            time.sleep(0.02)  # a command or another worker is about to change the job it holds


def main() -> None:
    """Be a worker: the arguments are the state directory and the locked file descriptor of a slot."""
    root, slot = sys.argv[-2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _work(open_queue({**os.environ, "MLXJOBS_LOCAL_DIR": root}), int(slot))
