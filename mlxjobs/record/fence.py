"""Keep an attempt that a newer one has followed from writing to the run.

Such a process need not know that it was given up: its node was cut off from the network, or it was stopped
and continued. Asking before each write is not enough, since it may be stopped between question and write. So
the newer attempt takes away what the older one writes through, before it reads anything:

- the lease, `metadata/.attempt-<n>/lease`, a file that the attempt touches to learn whether it still counts:
  the server answers that, where looking for events of a newer one may be answered by what the node remembers;
- every file that appears by a rename is written in a folder of the attempt first, `.attempt-<n>/` beside it:
  once that folder has been removed, what lay in it cannot be renamed into place any more;
- metrics files are replaced by copies (`logger.before`): who has the old one open appends to that.

Whoever makes such a folder or opens such a file touches the lease afterwards. If it is there, a newer attempt
will begin later and find the folder and the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxjobs.system.atomic import GONE, destroy, move
from mlxjobs.system.files import remembers_s

_FOLDER = ".attempt-"
_GONE = ".gone-"
LEASE = "lease"
# how long one that has lost its lease waits to see who took it: sshfs(1) remembers names for 20 s
_SEEN_S = 30.0
_PAUSE_S = 0.5


class Superseded(BaseException):
    """Unwinds the task of an attempt that a newer one has followed; no `except Exception` stops it."""

    exit_code = 76


class Vanished(Superseded):
    """Unwinds the task of an attempt whose run directory was removed or moved: nothing is left to write."""

    exit_code = 72  # EX_OSFILE of sysexits.h


class Fence:
    """What one attempt writes through, until a newer attempt takes it away.

    Args:
        attempt: its number; 0: of a logger that belongs to no attempt, which nothing is taken from.
        ask: raises `Superseded` if a newer attempt has begun, `Vanished` if the run directory is gone.
    """

    def __init__(self, attempt: int = 0, ask: Callable[[], None] = lambda: None) -> None:
        self.attempt = attempt
        self._ask = ask
        self._lease: Path | None = None
        self._pid = 0
        self._folders: set[Path] = set()

    def begin(self, run: Path) -> None:
        """Take the lease, of an attempt whose beginning is recorded.

        Args:
            run: the run directory.

        Raises:
            Superseded: a newer attempt has begun.
            OSError: it cannot be written.
        """
        self._take(_lease_of(run, self.attempt))
        self._ask()  # one that began in between has not found it

    def _take(self, lease: Path) -> None:
        lease.parent.mkdir(exist_ok=True)
        lease.touch()
        self._lease, self._pid = lease, os.getpid()

    def check(self) -> None:
        """Raise unless this attempt is the run's newest, as far as the server of its files knows.

        Raises:
            Superseded: a newer attempt has begun.
            Vanished: the run directory is gone.
            OSError: nobody can tell.
        """
        if self._lease is None:
            self._ask()
            return
        try:
            os.utime(self._lease)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._ask_why(self._lease)

    def _ask_why(self, lease: Path) -> None:
        """Learn who took the lease away; if nobody did whose attempt counts, take it again."""
        end = time.monotonic() + _SEEN_S
        self._ask()
        while time.monotonic() < end:
            time.sleep(_PAUSE_S)
            self._ask()
        self._take(lease)
        self._ask()

    def folder(self, parent: Path) -> Path:
        """Return the folder in which to write what is then renamed to a place in `parent`.

        Raises:
            Superseded: a newer attempt has begun.
            OSError: the folder cannot be made.
        """
        if not self.attempt:
            return parent
        folder = parent / f"{_FOLDER}{self.attempt}"
        if parent not in self._folders or not folder.is_dir():  # its user may make room
            folder.mkdir(exist_ok=True)
            try:
                self.check()
            except BaseException:
                with suppress(OSError):  # the lease is in one of them
                    folder.rmdir()
                raise
            self._folders.add(parent)
        return folder

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Let a write that fails because a newer attempt has begun say so.

        Raises:
            Superseded: a newer attempt has begun.
            OSError: what the block raised, for another reason.
        """
        try:
            yield
        except OSError:
            self.check()
            raise

    def close(self) -> None:
        """Give the lease back, and remove the folders, which are empty unless a write was interrupted."""
        if self._lease is not None and self._pid == os.getpid():  # not in a process made by fork
            with suppress(OSError):
                remove_folder(self._lease.parent)
        self._lease = None
        for parent in self._folders:
            with suppress(OSError):
                (parent / f"{_FOLDER}{self.attempt}").rmdir()
        self._folders.clear()


def remove_folder(folder: Path) -> None:
    """Remove the folder of an attempt, with its lease if it has one.

    Raises:
        OSError: it holds something else.
    """
    (folder / LEASE).unlink(missing_ok=True)
    folder.rmdir()


def _lease_of(run: Path, attempt: int) -> Path:
    return run / "metadata" / f"{_FOLDER}{attempt}" / LEASE


def take_over(run: Path, attempt: int, living: Iterable[int]) -> None:
    """Take from all earlier attempts of a run what they write through, but for its metrics.

    Args:
        run: the run directory.
        attempt: the one that has begun.
        living: those before it that may still write; of the others only what they have left is removed.

    Raises:
        OSError: something could not be taken away.
    """
    for earlier in living:
        try:
            _lease_of(run, earlier).unlink()
        except OSError as error:
            if error.errno not in GONE:
                raise
    time.sleep(remembers_s(run))  # for what they have just made
    for folder in list(_folders_of_attempts(run, attempt)):
        gone = folder
        if folder.name.startswith(_FOLDER):
            gone = folder.with_name(f"{_GONE}{os.uname().nodename}.{os.getpid()}.{folder.name}")
            try:
                move(folder, gone)
            except OSError as error:  # another attempt has begun too, and takes it away
                if error.errno not in GONE:
                    raise
                continue
        destroy(gone)


def _folders_of_attempts(run: Path, before: int) -> Iterator[Path]:
    artifacts = run / "artifacts"
    tops = [run / "metadata", run / "metrics", artifacts]
    with suppress(FileNotFoundError):  # a type's folder may be a link to a larger disk
        tops += [entry for entry in artifacts.iterdir() if entry.is_symlink() and entry.is_dir()]
    for top in tops:
        for parent, names, _ in os.walk(top, onerror=_raise_unless_gone):
            theirs = [name for name in names if name.startswith((_FOLDER, _GONE))]
            yield from (Path(parent, name) for name in theirs if _is_before(name, before))
            names[:] = [name for name in names if name not in theirs]


def _raise_unless_gone(error: OSError) -> None:
    """A folder that cannot be listed may hold one of an attempt that lives."""
    if error.errno not in GONE:
        raise error


def _is_before(name: str, attempt: int) -> bool:
    number = name.removeprefix(_FOLDER)
    return not number.isdecimal() or int(number) < attempt
