"""What the commands and the workers of the local queue share: its files, its locks, its processes.

Commands and workers (`mlxjobs.local.worker`) meet only in the state directory, `$MLXJOBS_LOCAL_DIR`:

    jobs/7/job.json          the record; written only by the holder of jobs/7/lock
    jobs/7/lock              flock: who supervises or changes the job; free with a RUNNING record: worker lost
    jobs/7/control           socket of the supervising worker, which obeys one request per connection
    jobs/7/script, environment.json
    slots/0, slots/1, ...    flock: one live worker each; taken by whoever starts the worker, and inherited
    staff                    flock: held while workers are counted and started, and when one decides to leave
    ids                      flock, and the last job id ever given

The kernel drops a flock with its process, so SIGKILL or a reboot leaves nothing to clean up: the next
command or worker that meets a lost job kills what is left of it and queues it again. No process ids are kept.

`$MLXJOBS_LOCAL_JOBS` is how many jobs run at once (0: none is started), `$MLXJOBS_LOCAL_GRACE` the seconds
between SIGTERM and SIGKILL; a job keeps the grace it was submitted with. Needs Linux 5.3 (pidfd).
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mlxjobs.errors import MLXJobsError, SchedulerError
from mlxjobs.system.atomic import move
from mlxjobs.system.files import numbers_in, replace_file, sync_directory

PATIENCE_S = 10.0  # for a worker's answer and for killed processes to be gone
KEEP_S = 7 * 24 * 3600.0  # ended jobs
ACTIVE = ("PENDING", "RUNNING")
RUN = "MLXJOBS_LOCAL_RUN"  # its value, new in each run, marks the processes of that run
_ELSEWHERE = "set MLXJOBS_LOCAL_DIR to a folder of yours on a disk of this machine"
OF_A_JOB = ("MLXJOBS_LOCAL_JOB_ID", "MLXJOBS_LOCAL_RESTART_COUNT", RUN)
# The path is appended, since a package folder put first may shadow the standard library.
_WORKER = "import sys; sys.path.append(sys.argv[1]); from mlxjobs.local.worker import main; main()"


def complain(message: str) -> None:
    """Tell the user."""
    sys.stderr.write(f"mlxjobs.localqueue: {message}\n")


class JobRecord(NamedTuple):
    """The record of one job; times are unix times, `warn_signal` 0 is none, `limit_s` 0 is no limit."""

    name: str
    cwd: str
    umask: int
    grace_s: float
    queued: float
    output: str = os.devnull
    error: str = os.devnull
    limit_s: float = 0.0
    warn_signal: int = 0
    warn_s: float = 0.0
    state: str = "PENDING"
    reason: str = ""
    restarts: int = 0
    deadline: float | None = None
    run: str = ""

    def again(self, reason: str, queued: float) -> JobRecord:
        """Return the record of this job once it is put back into the queue."""
        return self._replace(
            state="PENDING", reason=reason, restarts=self.restarts + 1, queued=queued, deadline=None
        )


def _try_lock(path: Path, flags: int = os.O_RDWR) -> int | None:
    """Lock a file without waiting; closing the descriptor that is returned unlocks it. None: it is locked."""
    fd = os.open(path, flags, 0o600)
    try:
        _lock(fd, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Wait for the lock of a file, which is created if need be, and hold it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(fd, path, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, path: Path, operation: int) -> None:
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        raise
    except OSError as error:  # many a Lustre
        raise SchedulerError(f"{path} cannot be locked: {error.strerror}; {_ELSEWHERE}") from error


def kill_matching(belongs: Callable[[int], bool]) -> int:
    """Send SIGKILL to all processes that `belongs` says yes to, wait for them, and return how many.

    They may have forked meanwhile: only a 0 says that none is left, but those that became another user's
    (sudo). A pid may come to name another process at any time, hence pidfds, and the second question once
    the pidfd pins the process.
    """
    killed = 0
    fds: list[int] = []
    try:
        for pid in numbers_in(Path("/proc")):
            if belongs(pid):
                killed += 1
                with suppress(ProcessLookupError):
                    fds.append(os.pidfd_open(pid))
                    if not (belongs(pid) and _kill(fds[-1])):
                        os.close(fds.pop())
                        killed -= 1
        until = time.monotonic() + PATIENCE_S
        for fd in fds:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(max(0.0, until - time.monotonic()) * 1000)
    finally:
        for fd in fds:
            os.close(fd)
    return killed


def _kill(fd: int) -> bool:
    """Send SIGKILL to a process; False if this user may not."""
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def _kill_run(run: str) -> bool:
    """Kill what is left of a run whose worker is gone; return whether that worked.

    Found by the environment, which every child inherits. A process that has overwritten its own is not
    found; a live worker needs no mark, since orphans become its children.
    """
    mark = f"{RUN}={run}".encode()

    def belongs(pid: int) -> bool:
        try:
            return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            return False

    until = time.monotonic() + PATIENCE_S
    while kill_matching(belongs):
        if time.monotonic() > until:
            return False
    return True


def _write_record(directory: Path, job: JobRecord) -> None:
    """Replace the record in a job's directory, atomically."""
    replace_file(directory / "job.json", json.dumps({"schema": 1, **job._asdict()}), mode=0o600)


@contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Give a directory a path that fits into the 108 bytes of a socket's address (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def new_socket() -> socket.socket:
    """Make a socket for requests; a packet is one request or one answer."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Queue:
    """The state directory, and how many jobs run at once. Only `hold` and `add` entitle to write a record."""

    def __init__(self, root: Path, at_once: int) -> None:
        self.root = root
        self.jobs = root / "jobs"
        self.at_once = at_once

    def directory(self, number: int) -> Path:
        """Return the folder of a job's files."""
        return self.jobs / str(number)

    def numbers(self) -> list[int]:
        """List the ids of all jobs."""
        return numbers_in(self.jobs)

    def read(self, number: int) -> JobRecord | None:
        """Read a job's record; None if there is no such job."""
        path = self.directory(number) / "job.json"
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        if record.pop("schema") != 1:
            raise SchedulerError(f"{path} is of another version of mlxjobs, which must end or forget it")
        return JobRecord(**record)

    def scan(self) -> dict[int, JobRecord]:
        """Read all records, in the order in which the jobs wait."""
        jobs = {number: job for number in self.numbers() if (job := self.read(number))}
        return dict(sorted(jobs.items(), key=lambda item: (item[1].queued, item[0])))

    def write(self, number: int, job: JobRecord) -> None:
        """Replace a job's record."""
        _write_record(self.directory(number), job)

    @contextmanager
    def hold(self, number: int) -> Iterator[JobRecord | None]:
        """Lock a job without waiting, and read it; None if it is locked or unknown."""
        lock = None
        with suppress(FileNotFoundError):
            lock = _try_lock(self.directory(number) / "lock")
        try:
            yield None if lock is None else self.read(number)
        finally:
            if lock is not None:
                os.close(lock)

    def add(self, job: JobRecord, script: bytes, environment: dict[str, str]) -> int:
        """Queue a job and return its id; the job appears whole or not at all, also after a power failure."""
        aside = self.jobs / f".new-{os.getpid()}-{time.time_ns()}"
        aside.mkdir(mode=0o700)
        replace_file(aside / "script", script, mode=0o700)
        replace_file(aside / "environment.json", json.dumps(environment), mode=0o600)
        (aside / "lock").touch(0o600)
        _write_record(aside, job)
        with locked(self.root / "ids") as fd:
            # A power failure may take back the counter, `forget` takes the directories: never reuse an id.
            number = 1 + max([int(os.pread(fd, 32, 0).strip(b"\0") or 0), *self.numbers()])
            os.pwrite(fd, b"%d" % number, 0)
            move(aside, self.directory(number))
        sync_directory(self.jobs)
        return number

    def revive(self, number: int, job: JobRecord) -> bool:
        """Queue a held job again whose worker is gone. False: a process of it is left in spite of SIGKILL."""
        if not _kill_run(job.run):
            return False
        self.write(number, job.again("worker lost", job.queued))
        return True

    def revive_lost(self, records: dict[int, JobRecord]) -> int:
        """Queue all jobs of a scan again whose worker is gone, and return how many."""
        revived = 0
        for number in [number for number, job in records.items() if job.state == "RUNNING"]:
            with self.hold(number) as job:
                if job and job.state == "RUNNING":
                    revived += self.revive(number, job)
        return revived

    def ask(self, number: int, request: str) -> str | None:
        """Have the supervising worker of a job obey a request; its answer, or None if nobody supervises."""
        try:
            with short_path(self.directory(number)) as directory, new_socket() as connection:
                connection.settimeout(PATIENCE_S)
                connection.connect(f"{directory}/control")
                connection.send(request.encode())
                return connection.recv(4096).decode() or None
        except (FileNotFoundError, ConnectionError, BlockingIOError):
            return None
        except TimeoutError:
            raise SchedulerError(f"the worker of job {number} does not answer") from None

    def start_workers(self, at_once: int) -> list[int]:
        """Start the workers that waiting jobs need, up to `at_once` in all; return their process ids."""
        slots = self.root / "slots"
        free: list[int] = []
        with locked(self.root / "staff"):
            states = [job.state for job in self.scan().values()]
            if "PENDING" not in states:
                return []
            total = max(at_once, len(numbers_in(slots)))
            for slot in range(total):
                lock = _try_lock(slots / str(slot), os.O_RDWR | os.O_CREAT)
                if lock is not None:
                    free.append(lock)
            busy = total - len(free)
            # Workers between two jobs, or on their way, are going to take a waiting job each.
            needed = states.count("PENDING") - (busy - states.count("RUNNING"))
            started = [_start_worker(self.root, slot) for slot in free[: max(0, min(needed, at_once - busy))]]
            for slot in free:
                os.close(slot)
        return started


def _start_worker(root: Path, slot: int) -> int:
    """Start a worker that inherits the lock of its slot and nothing else of ours; return its process id."""
    log = os.open(root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(Path(__file__).parents[2]), str(root), str(slot)],
        pass_fds=(slot,),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=root,
        env={name: value for name, value in os.environ.items() if name not in OF_A_JOB},
        start_new_session=True,
    )
    os.close(log)
    worker.returncode = 0  # nobody is going to wait for it, and subprocess should not warn
    return worker.pid


def staff(queue: Queue) -> None:
    """Make sure that waiting jobs have workers; a failure is told, and the next command tries again."""
    try:
        # What a job starts ends with the job, so its worker has to start other workers.
        inside = _job_around(queue)
        if inside is None or not queue.ask(inside, f"workers {queue.at_once}"):
            queue.start_workers(queue.at_once)
    except (MLXJobsError, OSError) as error:
        complain(f"no worker could be started: {error}")


def _job_around(queue: Queue) -> int | None:
    """Return the job that this process is in; by its mark, as its number is hidden from what it submits."""
    run = os.environ.get(RUN)
    return next((number for number, job in queue.scan().items() if job.run == run), None) if run else None


def setting(environ: Mapping[str, str], name: str, default: float) -> float:
    """Read a number >= 0 from the environment."""
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise SchedulerError(f"{name}={text} is not a number of at least 0")
    return value


def _default_root(environ: Mapping[str, str]) -> Path:
    state = environ.get("XDG_STATE_HOME", "")
    try:
        home = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError as error:  # a user without an entry, as in many a container
        raise SchedulerError(f"this user has no home folder: {_ELSEWHERE}") from error
    return home / "mlxjobs" / "local" / os.uname().nodename


def open_queue(environ: Mapping[str, str]) -> Queue:
    """Open the state directory that the environment names, creating it if need be.

    Raises:
        SchedulerError: it cannot be made; or others could write to it, and so could have planted jobs.
    """
    root = Path.cwd() / (environ.get("MLXJOBS_LOCAL_DIR") or _default_root(environ))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SchedulerError(f"{root} cannot be made: {error.strerror}; {_ELSEWHERE}") from error
    for status in (root.lstat(), root.stat()):  # a link's own mode says nothing
        if status.st_uid != os.geteuid():
            raise SchedulerError(f"{root} belongs to another user; set MLXJOBS_LOCAL_DIR")
    if root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SchedulerError(f"others may write to {root}: look for planted jobs, then chmod 700 {root}")
    for name in ("jobs", "slots"):
        (root / name).mkdir(mode=0o700, exist_ok=True)
    return Queue(root, int(setting(environ, "MLXJOBS_LOCAL_JOBS", len(os.sched_getaffinity(0)))))
