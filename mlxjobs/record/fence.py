"""Keep an attempt that a newer one has followed from writing to the run.

Such a process need not know that it was given up: its node was cut off from the network, or it was stopped
and continued. Asking before each write is not enough, since it may be stopped between question and write. So
the newer attempt takes away what the older one writes through, before it reads anything:

- every file that appears by a rename is written in a folder of the attempt first, `.attempt-<n>/` beside it:
  once that folder has been renamed, what lies in it cannot be renamed into place any more;
- metrics files are replaced by copies: who has the old one open appends to a file that has no name.

Whoever makes such a folder or opens such a file asks afterwards whether a newer attempt has begun. If none
has, it will begin later and find the folder and the file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = ".attempt-"
_GONE = ".gone-"


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
        check: raises `Superseded` if a newer attempt has begun, `Vanished` if the run directory is gone.
    """

    def __init__(self, attempt: int = 0, check: Callable[[], None] = lambda: None) -> None:
        self.attempt = attempt
        self.check = check
        self._folders: set[Path] = set()

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
        """Remove the folders, which are empty unless a write was interrupted."""
        for parent in self._folders:
            with suppress(OSError):
                (parent / f"{_FOLDER}{self.attempt}").rmdir()
        self._folders.clear()


def take_over(run: Path, fence: Fence) -> None:
    """Take from all earlier attempts of a run what they write through.

    Args:
        run: the run directory.
        fence: of the attempt that has just begun.

    Raises:
        Superseded: a newer attempt has begun.
        OSError: a file could not be copied.
    """
    for folder in list(_folders_of_attempts(run)):
        if folder.name.startswith(_FOLDER):
            gone = folder.with_name(f"{_GONE}{os.uname().nodename}.{os.getpid()}.{folder.name}")
            with suppress(FileNotFoundError):  # another attempt has begun too, and takes it away
                folder = folder.rename(gone)
        shutil.rmtree(folder, ignore_errors=True)
    with fence.explaining():
        for path in sorted((run / "metrics").glob("*.json")):
            _renew(path, fence)


def _folders_of_attempts(run: Path) -> Iterator[Path]:
    artifacts = run / "artifacts"
    tops = [run / "metadata", run / "metrics", artifacts]
    if artifacts.is_dir():  # a type's folder may be a link to a larger disk
        tops += [entry for entry in artifacts.iterdir() if entry.is_symlink() and entry.is_dir()]
    for top in tops:
        for parent, names, _ in os.walk(top):
            found = [name for name in names if name.startswith((_FOLDER, _GONE))]
            yield from (Path(parent, name) for name in found)
            names[:] = [name for name in names if name not in found]


def _renew(path: Path, fence: Fence) -> None:
    """Replace a file by a copy of itself, so that what others append to it is lost."""
    size = path.stat().st_size
    copy = fence.folder(path.parent) / path.name
    with path.open("rb") as source, copy.open("wb") as target:
        while size and (block := source.read(min(size, 1 << 20))):
            target.write(block)
            size -= len(block)
        target.flush()
        os.fsync(target.fileno())
    copy.replace(path)
