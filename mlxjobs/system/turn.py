"""Of many processes that would do the same long work at once, one does it and the others wait."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_POLL_S = 0.2


@contextmanager
def turn(path: Path, is_done: Callable[[], bool], wait_s: float) -> Iterator[None]:
    """Wait until the work is done, or it is this process's turn to do it.

    Only a help: where the file system has no locks, or the one whose turn it is was stopped for longer
    than `wait_s`, several work at once, and the work must bear that. A process that is killed gives up
    its turn.

    Args:
        path: the lock, a file that exists only while somebody works.
        is_done: whether somebody else has done the work.
        wait_s: how long to wait at most.
    """
    lock = _await(path, is_done, wait_s)
    try:
        yield
    finally:
        if lock is not None:
            try:
                with suppress(OSError):
                    path.unlink()
            finally:  # Ctrl-C at this moment
                os.close(lock)


def _await(path: Path, is_done: Callable[[], bool], wait_s: float) -> int | None:
    """Return the lock, open; None if it was not taken."""
    end, pause = time.monotonic() + wait_s, 0.005
    while not is_done():
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:  # the work says better what is wrong there
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except FileNotFoundError:  # whose turn it was has removed it, and another process may make it again
            pass
        except OSError as error:
            no_locks = not isinstance(error, BlockingIOError)
            if no_locks or time.monotonic() > end:
                os.close(lock)
                return None
        os.close(lock)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_S)
    return None
