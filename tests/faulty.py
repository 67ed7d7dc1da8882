"""System calls that fail, or in which the process dies, at a point that the test chooses."""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]  # Python's own
import errno
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# those that change what is on the disk; what only reads leaves nothing behind
CALLS = (
    "open", "write", "pwrite", "fsync", "close", "link", "symlink", "replace", "rename", "unlink", "remove",
    "mkdir", "rmdir", "truncate", "ftruncate", "utime", "chmod",
)  # fmt: skip
# those that need room; a full disk lets all others pass
NEED_ROOM = ("open", "write", "pwrite", "fsync", "close", "link", "symlink", "mkdir")
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Calls:
    """The writing calls of a piece of code; `broken(number, name, real, arguments)` replaces each of them.

    Files that are opened by `open` count too: Python's own version of `io` makes them by these calls.

    Attributes:
        done: the names of the calls so far.
    """

    def __init__(self, broken: Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]) -> None:
        self.done: list[str] = []
        self._broken = broken
        self._written: set[int] = set()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put them into the place of the real ones."""
        for name in CALLS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        patch.setattr(io, "open", _pyio.open)
        patch.setattr("builtins.open", _pyio.open)

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if not self._counts(name, args):
                return real(*args, **more)
            self.done.append(name)
            result = self._broken(len(self.done), name, lambda *own: real(*(own or args), **more), args)
            if name == "open":
                self._written.add(result)
            return result

        return call

    def _counts(self, name: str, args: tuple[Any, ...]) -> bool:
        if name == "open":
            return len(args) > 1 and bool(args[1] & _CHANGES)
        if name == "close":
            counts = args[0] in self._written
            self._written.discard(args[0])
            return counts
        return True


def killed_at(point: int) -> Calls:
    """Kill the process in its call number `point`; of a write half is done."""

    def broken(number: int, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if number == point:
            if name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real()

    return Calls(broken)


def full_at(point: int, *, until: float = 1) -> Calls:
    """Let the disk be full at call number `point`, and in the calls after it: `until` in all.

    A write that fails first writes half of what it should, as a disk with a little room left does.
    """

    def broken(number: int, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if not point <= number < point + until or name not in NEED_ROOM:
            return real()
        if name == "close":  # NFS says it there
            real()
        if name == "write" and number == point and len(args[1]) > 1:
            return real(args[0], bytes(args[1])[: len(args[1]) // 2])
        path = next((arg for arg in args if isinstance(arg, (str, Path))), None)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if path is None else [str(path)]))

    return Calls(broken)


class _Reads(Calls):
    """The calls by which files below a folder are read, or looked for."""

    def __init__(self, folder: Path, broken: Callable[..., Any]) -> None:
        super().__init__(broken)
        self._folder = str(folder)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "stat", "lstat", "scandir", "listdir"):
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        patch.setattr(io, "open", _pyio.open)
        patch.setattr("builtins.open", _pyio.open)

    def _counts(self, name: str, args: tuple[Any, ...]) -> bool:
        return bool(args) and isinstance(args[0], (str, Path)) and str(args[0]).startswith(self._folder)


def vanishing_at(point: int, folder: Path) -> Calls:
    """Remove a folder just before call number `point` that reads in it, or looks for it."""

    def broken(number: int, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if number == point:
            shutil.rmtree(folder)
        return real()

    return _Reads(folder, broken)
