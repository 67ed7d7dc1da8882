"""Processes on several nodes that see one folder through caches: a model of a network file system.

A real folder is the server. Each process is a thread, of which one runs at a time; its calls of the file
system go through the view of its node, which remembers names, their absence, attributes and listings. A
`Plan` says when another process has its turn, where a view gives an old answer, which requests are done but
told as failed, and who is killed where. So an interleaving is a value: hypothesis makes it, and makes it
small.

What a view may do, by the rules of Linux's NFS client (nfs(5), "data and metadata coherence"):

- link, mkdir, rename, unlink, rmdir, and open with O_EXCL are decided by the server;
- opening a file asks for its attributes, but its name may lead to the file that had it before, if that still
  has another name; what was missing may go on to be missing;
- opening a folder asks for its names, if it changed; its own name may lead to the folder that had it before;
- stat gives what was known for up to `remembered_s`;
- a file that another node removed cannot be written to any more.

With `handles` False, as on sshfs, a node knows files by their paths, and opening a file or a folder may give
old sizes and old names, too.
"""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]  # Python's own, which calls what stands in `os`
import builtins
import errno
import io
import os
import re
import shutil
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.system.files import is_aside

_CALL_S = 0.01  # what a call takes of the time that passes for the processes
_SAME_ANSWER = 30  # how often a view gives one old answer; who asks for ever is to get on
_MOST_CALLS = 30_000
_SHOWN = 3  # calls before something special
_REAL = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
_real_open, _real_monotonic, _real_sleep = builtins.open, time.monotonic, time.sleep


class Killed(BaseException):
    """Ends the thread of a process that was killed: each of its calls raises it."""


@dataclass(frozen=True)
class Server:
    """What kind of file system it is.

    Attributes:
        caches: whether views remember anything.
        handles: whether nodes know files by handles, and opening a file or folder asks the server.
        links: whether there are hard links.
        remembered_s: how long views remember.
    """

    caches: bool = True
    handles: bool = True
    links: bool = True
    remembered_s: float = 60.0


@dataclass(frozen=True)
class Turn:
    """A process runs until it has made so many requests that change something, and so many more calls.

    Attributes:
        who: the number of the process, from 0; it begins with its first turn.
        requests: how many.
        calls: how many of any kind after that.
        what: `run`; `kill`: it is killed then; `look`: instead, somebody looks at all files from its node.
    """

    who: int
    requests: int = 0
    calls: int = 0
    what: str = "run"


@dataclass(frozen=True)
class Plan:
    """All that is left to chance in an interleaving.

    Attributes:
        turns: in their order; then the process that began last runs to its end, then the others.
        nodes: on which node each process is.
        old: whether a view gives what it remembers where that is no longer right.
        except_at: the numbers of such looks where it is the other way round.
        retold: the numbers of the requests that are done, but told as failed.
    """

    turns: tuple[Turn, ...] = ()
    nodes: tuple[int, ...] = (0, 1, 2)
    old: bool = False
    except_at: frozenset[int] = frozenset()
    retold: frozenset[int] = frozenset()


@dataclass
class _Known:
    """What a view remembers, since when, and how often it was told though it was no longer right."""

    value: Any
    since: float
    told: int = 0


@dataclass
class _Open:
    """A descriptor: the file's number, and the path it was opened by."""

    inode: int
    path: str


class Process:
    """One process of the model; `act` is what it does."""

    def __init__(self, world: World, number: int, node: int, act: Callable[[Process], None]) -> None:
        self.world, self.number = world, number
        self.node = world.node(node)
        self.pid = 1000 + number
        self.name = f"process {number} on {self.node.name}"
        self.doing = "begins"
        self.attempt = 0
        self.superseded = False
        self.dead = self.ended = False
        self.error: BaseException | None = None
        self.where = ""
        self.files: dict[int, _Open] = {}
        self._objects: list[Any] = []
        self._act = act
        self._lock = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._left: tuple[int, int] | None = None  # requests and calls of this turn; None: no end

    @property
    def began(self) -> bool:
        """Whether it has had a turn."""
        return self._thread is not None

    def turn(self, left: tuple[int, int] | None) -> None:
        """Let it run; returns when its turn is over, or it has ended."""
        if self.ended:
            return
        self._left = left
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name)
            self.world.begun.append(self)
            self._thread.start()
        self._lock.release()
        self.world.baton.acquire()
        if self.ended:
            self._thread.join()

    def end(self) -> None:
        """Kill it, if it lives."""
        self.dead = True
        if self.began:
            self.turn(None)

    def _run(self) -> None:
        self._lock.acquire()
        _PROCESSES[threading.get_ident()] = self
        try:
            self._act(self)
        except Killed:
            pass
        except BaseException as error:
            self.where = _where(error)
            self.error = error.with_traceback(None)
            self.world.say(self, "ends", f"{error!r} {self.where}".rstrip())
        finally:
            self._close_all()
            self.ended = True
            del _PROCESSES[threading.get_ident()]
            self.world.baton.release()

    def _close_all(self) -> None:
        for opened in self._objects:  # what is in their buffers is lost with the process
            opened._closefd = False
            opened._fd = -1
        for descriptor in self.files:
            _REAL["close"](descriptor)
        self.files.clear()

    @contextmanager
    def op(self, name: str) -> Iterator[None]:
        """Name what the process is doing, for the trace."""
        before, self.doing = self.doing, name
        yield
        self.doing = before

    def step(self, call: str, *paths: object, request: bool = False) -> None:
        """Come to a call: another process may have its turn first, or this one is killed."""
        if self._left is not None:
            requests, calls = self._left
            if requests == 0 and calls == 0:
                self.world.baton.release()
                self._lock.acquire()
            elif requests == 0:
                self._left = 0, calls - 1
            elif request:
                self._left = requests - 1, calls
        if self.dead:
            raise Killed
        self.world.passed(self, call, paths)

    def keep(self, opened: Any) -> None:
        """Remember a file object that is to lose its descriptor with the process."""
        raw = getattr(getattr(opened, "buffer", opened), "raw", opened)
        self._objects.append(raw)


def _where(error: BaseException) -> str:
    """The last calls of ours in an error that is none of ours."""
    if not isinstance(error, OSError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mlxjobs" in frame.filename]
    return "in " + " > ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames[-4:]
    )


class World:
    """The server, the nodes, the processes, and the clock.

    Args:
        root: an empty folder, the server's.
        plan: what is left to chance.
        server: what kind of file system it is.
    """

    def __init__(self, root: Path, plan: Plan, server: Server) -> None:
        self.root, self.plan, self.server = str(root), plan, server
        self.now = 0.0
        self.baton = threading.Semaphore(0)
        self.processes: list[Process] = []
        self.begun: list[Process] = []
        self.faults: list[str] = []
        self.trace: list[tuple[str, str, str, tuple[object, ...], str]] = []
        self.versions: dict[int, int] = {}  # number of a folder -> how often its names have changed
        self.folders = 0  # how often a name of a folder has changed
        self.removed: dict[int, str] = {}  # number of a file -> the node that removed its last name
        self.events: dict[str, tuple[int, int]] = {}  # name of an event -> who made it, file
        self.newest = 0  # the newest attempt that has taken over
        self._nodes: dict[int, View] = {}
        self._held: list[int] = []
        self._looks = self._requests = 0

    def node(self, number: int) -> View:
        """Return a node's view."""
        return self._nodes.setdefault(number, View(self, f"node {number}"))

    def begin(self, act: Callable[[Process], None], node: int) -> Process:
        """Make a process, which begins when it gets its first turn."""
        self.processes.append(Process(self, len(self.processes), node, act))
        return self.processes[-1]

    def play(self) -> None:
        """Let the processes run as planned, then the newest to its end, then the others."""
        for turn in self.plan.turns:
            process = self.processes[turn.who]
            if turn.what == "look":
                self.trace.append((process.node.name, "", "LOOKS at all files", (), ""))
                process.node.look_at_all()
                continue
            process.turn((turn.requests, turn.calls))
            if turn.what == "kill" and not process.ended:
                self.say(process, "KILLED")
                process.end()
        for process in self.processes[:2]:  # the second always comes
            if not process.began:
                process.turn((0, 3))
        for process in reversed(self.begun):
            process.turn(None)

    def close(self) -> None:
        """End what still runs, and forget all."""
        for process in self.processes:
            process.end()
        for descriptor in self._held:
            _REAL["close"](descriptor)

    def passed(self, process: Process, call: str, paths: tuple[object, ...]) -> None:
        """Note a call, for which a moment passes."""
        self.now += _CALL_S
        self.trace.append((process.name, process.doing, call, paths, ""))
        if len(self.trace) > _MOST_CALLS:
            process.dead = True
            self.faults.append(f"{process.name} does not end: {process.doing}")
            raise Killed

    def say(self, process: Process, what: str, remark: str = "") -> None:
        """Note what befell a process."""
        self.trace.append((process.name, process.doing, what, (), f"  <- {remark}" if remark else ""))

    def remark(self, process: Process, text: str) -> None:
        """Note what was special in the last call."""
        *before, remark = self.trace[-1]
        self.trace[-1] = (*before, f"{remark}  <- {text}")  # type: ignore[assignment]

    def gives_old(self, process: Process | None, known: _Known, text: str) -> bool:
        """Whether a view tells what it remembers, though it is no longer right."""
        if process is None or known.told >= _SAME_ANSWER:
            return False
        old = self.plan.old ^ (self._looks in self.plan.except_at)
        self.remark(process, f"{'OLD' if old else 'fresh'} answer, look {self._looks}: {text}")
        self._looks += 1
        known.told += old
        return old

    def answer(self, process: Process, code: int, path: str) -> None:
        """Tell that a request was done, or an error though it was."""
        number, self._requests = self._requests, self._requests + 1
        if number in self.plan.retold:
            self.remark(process, f"DONE, BUT TOLD {errno.errorcode[code]}, request {number}")
            raise OSError(code, os.strerror(code), path)

    def changes(self, process: Process, path: str, *, folder: bool = False) -> None:
        """Note that a name changes."""
        inode = _REAL["lstat"](os.path.dirname(path)).st_ino
        self.versions[inode] = self.versions.get(inode, 0) + 1
        self.folders += folder

    def removes(self, process: Process, path: str) -> None:
        """Note that a file or folder loses a name; its number is not given again."""
        try:
            found = _REAL["lstat"](path)
            self._held.append(_REAL["open"](path, os.O_PATH | os.O_NOFOLLOW))
        except FileNotFoundError:
            return
        if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
            self.removed[found.st_ino] = process.node.name

    def find(self, inode: int) -> str | None:
        """Return a path of a file or folder by its number, which is what a handle is."""
        folders = [self.root]
        while folders:
            with _REAL["scandir"](folders.pop()) as entries:
                for entry in entries:
                    if entry.inode() == inode:
                        return str(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        return None

    def is_visible(self, path: str) -> bool:
        """Whether a file counts as the run's, and is not only on its way."""
        _, room, *names = [*os.path.relpath(path, self.root).split(os.sep), ""]
        hidden = (".attempt-", ".gone-", ".keys", ".turn", ".before", "before.")
        return room in ("metrics", "artifacts") and not any(
            name.startswith(hidden) or is_aside(name) for name in names
        )

    def names(self, process: Process, path: str) -> None:
        """Note that a process gives a file its name: an event must have it for ever."""
        name = os.path.basename(path)
        if os.path.basename(os.path.dirname(path)) == ".history" and name[0] != ".":
            inode = _REAL["lstat"](path).st_ino
            if self.events.setdefault(name, (process.number, inode)) != (process.number, inode):
                self.faults.append(f"{process.name} overwrites the event {name}")

    def puts(self, process: Process, path: str, what: str) -> None:
        """Note that a process puts something into a file of the run: one that was given up must not."""
        if process.superseded and self.is_visible(path):
            short = os.path.relpath(path, self.root)
            self.remark(process, "FAULT: this attempt was given up")
            self.faults.append(
                f"{process.name}, attempt {process.attempt}, {what} {short} after attempt {self.newest} "
                "has taken over"
            )

    def took_over(self, process: Process) -> None:
        """Note that an attempt has taken over: from now on older ones may not write."""
        self.say(process, f"HAS TAKEN OVER as attempt {process.attempt}")
        self.newest = max(self.newest, process.attempt)
        for other in self.processes:
            other.superseded = 0 < other.attempt < self.newest

    def text(self) -> str:
        """Return what happened until the first fault: all that was special, and the calls just before it.

        `process 1 on node 1` stands before what it did, with the number of calls that are not shown.
        """
        lines: list[str] = []
        ops: list[str] = []  # what a process did, that is not shown yet
        calls: list[str] = []
        before = ""
        for index, (who, doing, call, paths, remark) in enumerate(self.trace):
            if not ops or ops[-1] != doing:
                ops.append(doing)
            calls.append(f"    {call} {' '.join(self._short(path) for path in paths)}{remark}".rstrip())
            following = self.trace[index + 1][0] if index + 1 < len(self.trace) else ""
            if remark or call[0].isupper() or following != who:
                if (heading := f"{who}: {', '.join(op for op in ops if op)}".rstrip(" :")) != before:
                    lines.append(heading)
                before = f"{who}: {doing}"
                if len(calls) > _SHOWN:
                    lines.append(f"    ... {len(calls) - _SHOWN} calls")
                lines += calls[-_SHOWN:]
                ops, calls = [], []
            if "FAULT" in remark:
                break
        return "\n".join(lines)

    def _short(self, path: object) -> str:
        text = str(path).replace(self.root + "/1/", "").replace(self.root, "logs")
        return re.sub(r"\.node\d\.(\d+)\.\d+", r".\1", text)


class _Entry:
    """What scandir gives."""

    def __init__(self, path: str, name: str, found: os.stat_result) -> None:
        self.path, self.name, self._found = f"{path}/{name}", name, found

    def __fspath__(self) -> str:
        return self.path

    def inode(self) -> int:
        return self._found.st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self._found.st_mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISREG(self._found.st_mode)

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self._found.st_mode)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._found


class _Entries:
    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        return next(self._entries)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _lstat(path: str) -> os.stat_result | None:
    try:
        found: os.stat_result = _REAL["lstat"](path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def _differ(one: os.stat_result, other: os.stat_result, *, names: bool) -> bool:
    """Whether attributes differ that our code asks for; with `names`, the count of names is one."""
    if stat.S_ISDIR(one.st_mode):
        return one.st_ino != other.st_ino
    if not names:
        return (one.st_ino, one.st_size) != (other.st_ino, other.st_size)
    return (one.st_ino, one.st_size, one.st_nlink) != (other.st_ino, other.st_size, other.st_nlink)


class View:
    """One node's view of the server; its methods are the functions of `os`, for one process."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self._names: dict[str, _Known] = {}  # path -> number of the file, or None
        self._attributes: dict[int | str, _Known] = {}  # number, or path without handles -> os.stat_result
        self._listings: dict[str, _Known] = {}  # path of a folder -> entries
        self._versions: dict[str, int] = {}  # path of a folder -> its version when its names were asked for
        self._places: dict[str, tuple[int, str]] = {}  # path of a folder -> where it is, for sure

    # -- what is remembered

    def _recall(self, known: dict[Any, _Known], key: Any) -> _Known | None:
        found = known.get(key)
        if found is None or not self.world.server.caches:
            return None
        if self.world.now - found.since > self.world.server.remembered_s:
            del known[key]
            return None
        return found

    def _key(self, path: str, inode: int) -> int | str:
        return inode if self.world.server.handles else path

    def _learn(self, path: str, found: os.stat_result | None) -> None:
        self._names[path] = _Known(None if found is None else found.st_ino, self.world.now)
        if found is not None:
            self._attributes[self._key(path, found.st_ino)] = _Known(found, self.world.now)

    def _changes(self, *paths: str) -> None:
        """What this node changes itself it asks for anew."""
        for path in paths:
            known = self._names.pop(path, None)
            if known is not None:
                self._attributes.pop(self._key(path, known.value), None)
            self._listings.pop(path.rpartition("/")[0], None)

    def look_at_all(self) -> None:
        """Ask for all names and attributes, and for some that may be missing: `mlxjobs ls` is typed here."""
        root = self.world.root
        for folder, folders, files in os.walk(root):
            entries = []
            for name in (*folders, *files):
                found = _lstat(f"{folder}/{name}")
                self._learn(f"{folder}/{name}", found)
                assert found is not None
                entries.append(_Entry(folder, name, found))
            self._listings[folder] = _Known(entries, self.world.now)
            self._versions[folder] = self.world.versions.get(_REAL["lstat"](folder).st_ino, 0)
        history = f"{root}/1/metadata/.history"
        checkpoint = f"{root}/1/artifacts/Checkpoint"
        for path in (
            *(f"{history}/{number:04d}.json" for number in range(1, 12)),
            f"{root}/1/metrics/train.json", f"{root}/1/metrics/val.json", checkpoint,
            f"{checkpoint}/checkpoint.pkl", f"{checkpoint}/.checkpoint.pkl.previous",
        ):  # fmt: skip
            if _lstat(path) is None and _lstat(os.path.dirname(path)) is not None:
                self._learn(path, None)

    # -- where things are

    def _folder(self, process: Process, path: str) -> str:
        """Where a folder is, by what this node remembers of it and of those above it."""
        if len(path) <= len(self.world.root) or not self.world.server.caches:
            return path
        version, place = self._places.get(path, (-1, ""))
        if version == self.world.folders:
            return place
        place = f"{self._folder(process, os.path.dirname(path))}/{os.path.basename(path)}"
        found = _lstat(place)
        inode = None if found is None else found.st_ino
        known = self._recall(self._names, path)
        if known is not None and known.value != inode:
            if known.value is None:
                if self.world.gives_old(process, known, f"{os.path.basename(path)} is missing"):
                    raise _missing(path)
            else:
                other = self.world.find(known.value) if self.world.server.handles else None
                if other is not None and self.world.gives_old(
                    process, known, f"the folder that is {self.world._short(other)} now"
                ):
                    return other
        self._names[path] = _Known(inode, self.world.now)
        if inode is not None:
            self._versions.setdefault(path, self.world.versions.get(inode, 0))
            self._places[path] = self.world.folders, place
        return place

    def _place(self, process: Process, path: str) -> str:
        """Where a name is, by what this node remembers of the folders above it."""
        if not self.world.server.caches:
            return path
        folder, _, name = path.rpartition("/")
        return f"{self._folder(process, folder)}/{name}"

    def _file(self, process: Process, path: str) -> str:
        """Where a file is: its name may lead to what had it before, if that is anywhere."""
        place = self._place(process, path)
        if not self.world.server.caches:
            return place
        found = _lstat(place)
        inode = None if found is None else found.st_ino
        known = self._recall(self._names, path)
        if known is not None and known.value != inode:
            if known.value is None:
                if self.world.gives_old(process, known, "it is missing"):
                    raise _missing(path)
            else:
                other = self.world.find(known.value) if self.world.server.handles else None
                if other is not None and self.world.gives_old(
                    process, known, f"the file that is {self.world._short(other)} now"
                ):
                    return other
        self._names[path] = _Known(inode, self.world.now)
        return place

    # -- looks

    def stat(self, process: Process, path: str, *, follow_symlinks: bool = True) -> os.stat_result:
        process.step("stat", path)
        place = self._place(process, path)
        found = _lstat(place)
        known = self._recall(self._names, path)
        if known is not None and known.value is None:
            if found is not None and self.world.gives_old(process, known, "it is missing"):
                raise _missing(path)
        elif (
            known is not None
            and (old := self._recall(self._attributes, self._key(path, known.value))) is not None
        ):
            differ = found is None or _differ(old.value, found, names=self.world.server.handles)
            if differ and self.world.gives_old(process, old, f"{old.value.st_size} bytes"):
                return old.value  # type: ignore[no-any-return]
        self._learn(path, found)
        if found is None:
            raise _missing(path)
        return found

    def lstat(self, process: Process, path: str) -> os.stat_result:
        return self.stat(process, path)

    def _list(self, process: Process, path: str) -> list[_Entry]:
        place = self._folder(process, path)
        fresh = [
            _Entry(path, name, found)
            for name in sorted(_REAL["listdir"](place))
            if (found := _lstat(f"{place}/{name}")) is not None
        ]
        if not self.world.server.handles:
            known = self._recall(self._listings, path)
            if known is not None and [(entry.name, entry.inode()) for entry in known.value] != [
                (entry.name, entry.inode()) for entry in fresh
            ]:
                text = " ".join(entry.name for entry in known.value) or "empty"
                if self.world.gives_old(process, known, text):
                    return known.value  # type: ignore[no-any-return]
        self._opened_folder(path, place)
        self._listings[path] = _Known(fresh, self.world.now)
        return fresh

    def _opened_folder(self, path: str, place: str) -> None:
        """Names in a folder that has changed are asked for anew."""
        version = self.world.versions.get(_REAL["lstat"](place).st_ino, 0)
        if self._versions.get(path) != version:
            self._versions[path] = version
            for name in [name for name in self._names if name.rpartition("/")[0] == path]:
                self._attributes.pop(self._key(name, self._names.pop(name).value), None)
                self._places.pop(name, None)

    def scandir(self, process: Process, path: str) -> _Entries:
        process.step("scandir", path)
        return _Entries(self._list(process, path))

    def listdir(self, process: Process, path: str) -> list[str]:
        process.step("listdir", path)
        return [entry.name for entry in self._list(process, path)]

    # -- files

    def open(self, process: Process, path: str, flags: int, mode: int = 0o777) -> int:
        what = "create" if flags & os.O_EXCL else "open"
        process.step(what, path, request=bool(flags & os.O_CREAT))
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        if flags & os.O_CREAT and (known := self._names.get(path)) is not None and known.value is None:
            self._changes(path)
        place = self._place(process, path) if exclusive else self._file(process, path)
        before = _lstat(place)
        if before is not None and stat.S_ISDIR(before.st_mode):
            if self.world.server.handles:
                self._opened_folder(path, place)
            return self._opened(process, _REAL["open"](place, flags), path)
        try:
            descriptor: int = _REAL["open"](place, flags, mode)
        except FileNotFoundError:
            self._learn(path, None)
            raise
        except FileExistsError:
            self._changes(path)
            raise
        found: os.stat_result = _REAL["fstat"](descriptor)
        if before is None or flags & os.O_TRUNC or self.world.server.handles:
            self._attributes[self._key(path, found.st_ino)] = _Known(found, self.world.now)
        self._opened(process, descriptor, path)
        if before is None:
            self._changes(path)
            self._learn(path, found)
            self.world.changes(process, place)
            self.world.names(process, place)
        if flags & os.O_TRUNC and before is not None and before.st_size:
            self.world.puts(process, place, "empties")
        return descriptor

    def _opened(self, process: Process, descriptor: int, path: str) -> int:
        process.files[descriptor] = _Open(_REAL["fstat"](descriptor).st_ino, path)
        return descriptor

    def close(self, process: Process, descriptor: int) -> None:
        process.step("close", process.files[descriptor].path)
        del process.files[descriptor]
        _REAL["close"](descriptor)

    def fstat(self, process: Process, descriptor: int) -> os.stat_result:
        process.step("fstat", process.files[descriptor].path)
        return self._attributes_of(process, descriptor)

    def _attributes_of(self, process: Process, descriptor: int) -> os.stat_result:
        found: os.stat_result = _REAL["fstat"](descriptor)
        key = self._key(process.files[descriptor].path, found.st_ino)
        old = self._recall(self._attributes, key)
        if (
            old is not None
            and _differ(old.value, found, names=self.world.server.handles)
            and self.world.gives_old(process, old, f"{old.value.st_size} of {found.st_size} bytes")
        ):
            return old.value  # type: ignore[no-any-return]
        self._attributes[key] = _Known(found, self.world.now)
        return found

    def lseek(self, process: Process, descriptor: int, position: int, how: int) -> int:
        if how == os.SEEK_END:
            process.step("seek to end", process.files[descriptor].path)
            position += self._attributes_of(process, descriptor).st_size
            how = os.SEEK_SET
        return _REAL["lseek"](descriptor, position, how)  # type: ignore[no-any-return]

    def _room(self, process: Process, descriptor: int, position: int, size: int) -> int:
        return max(0, min(size, self._attributes_of(process, descriptor).st_size - position))

    def read(self, process: Process, descriptor: int, size: int) -> bytes:
        process.step("read", process.files[descriptor].path)
        position = _REAL["lseek"](descriptor, 0, os.SEEK_CUR)
        return _REAL["read"](descriptor, self._room(process, descriptor, position, size))  # type: ignore[no-any-return]

    def pread(self, process: Process, descriptor: int, size: int, position: int) -> bytes:
        process.step("pread", process.files[descriptor].path)
        room = self._room(process, descriptor, position, size)
        return _REAL["pread"](descriptor, room, position)  # type: ignore[no-any-return]

    def _before_write(self, process: Process, descriptor: int, what: str) -> None:
        opened = process.files[descriptor]
        process.step(what, opened.path, request=True)
        found = _REAL["fstat"](descriptor)
        by_handle = self.world.server.caches and self.world.server.handles
        if found.st_nlink == 0 and by_handle and self.world.removed.get(opened.inode) != self.name:
            self.world.remark(process, "ESTALE")
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), opened.path)
        if process.superseded and found.st_nlink and (path := self.world.find(opened.inode)) is not None:
            self.world.puts(process, path, f"{what}s")

    def write(self, process: Process, descriptor: int, data: Any) -> int:
        self._before_write(process, descriptor, "write")
        count: int = _REAL["write"](descriptor, data)
        self._own(process, descriptor)
        return count

    def ftruncate(self, process: Process, descriptor: int, size: int) -> None:
        self._before_write(process, descriptor, "shorten")
        _REAL["ftruncate"](descriptor, size)
        self._own(process, descriptor)

    def _own(self, process: Process, descriptor: int) -> None:
        found = _REAL["fstat"](descriptor)
        key = self._key(process.files[descriptor].path, found.st_ino)
        self._attributes[key] = _Known(found, self.world.now)

    def fsync(self, process: Process, descriptor: int) -> None:
        process.step("fsync", process.files[descriptor].path)

    # -- requests

    def link(self, process: Process, source: str, target: str, *, follow_symlinks: bool = True) -> None:
        process.step("link", source, target, request=True)
        if not self.world.server.links:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)
        old, new = self._file(process, source), self._place(process, target)
        self._changes(target)
        _REAL["link"](old, new, follow_symlinks=False)
        self.world.changes(process, new)
        self.world.names(process, new)
        self.world.puts(process, new, "links")
        self.world.answer(process, errno.EEXIST, target)
        self._learn(target, _lstat(new))
        self._changes(source)

    def rename(self, process: Process, source: str, target: str) -> None:
        process.step("rename", source, target, request=True)
        old, new = self._place(process, source), self._place(process, target)
        self._changes(source, target)
        found = _lstat(old)
        folder = found is not None and stat.S_ISDIR(found.st_mode)
        self.world.removes(process, new)
        _REAL["rename"](old, new)
        self.world.puts(process, old, "takes away")
        self.world.changes(process, old, folder=folder)
        self.world.changes(process, new)
        self.world.names(process, new)
        self.world.puts(process, new, "renames")
        self.world.answer(process, errno.ENOENT, source)
        self._learn(target, _lstat(new))
        self._learn(source, _lstat(old))

    def replace(self, process: Process, source: str, target: str) -> None:
        self.rename(process, source, target)

    def mkdir(self, process: Process, path: str, mode: int = 0o777) -> None:
        process.step("mkdir", path, request=True)
        place = self._place(process, path)
        self._changes(path)
        _REAL["mkdir"](place, mode)
        self.world.changes(process, place, folder=True)
        self.world.answer(process, errno.EEXIST, path)
        self._learn(path, _lstat(place))

    def _remove(self, process: Process, path: str, how: str) -> None:
        process.step(how, path, request=True)
        place = self._place(process, path)
        self._changes(path)
        self.world.removes(process, place)
        _REAL[how](place)
        self.world.changes(process, place, folder=how == "rmdir")
        self.world.answer(process, errno.ENOENT, path)
        self._learn(path, None)

    def unlink(self, process: Process, path: str) -> None:
        self._remove(process, path, "unlink")

    def remove(self, process: Process, path: str) -> None:
        self._remove(process, path, "unlink")

    def rmdir(self, process: Process, path: str) -> None:
        self._remove(process, path, "rmdir")

    def utime(self, process: Process, path: str, *args: Any, **more: Any) -> None:
        process.step("utime", path, request=True)
        place = self._file(process, path)
        _REAL["utime"](place, *args, **more)
        self._learn(path, _lstat(place))

    def chmod(self, process: Process, path: str, mode: int, **more: Any) -> None:
        process.step("chmod", path, request=True)
        _REAL["chmod"](self._file(process, path), mode, **more)


# -- in the place of the real ones

_PROCESSES: dict[int, Process] = {}
_BY_PATH = (
    "stat", "lstat", "scandir", "listdir", "open", "link", "rename", "replace", "mkdir", "unlink", "remove",
    "rmdir", "utime", "chmod",
)  # fmt: skip
_BY_DESCRIPTOR = ("close", "fstat", "lseek", "read", "pread", "write", "ftruncate", "fsync")
_TWO = ("link", "rename", "replace")


def _by_path(name: str) -> Callable[..., Any]:
    real = _REAL[name]

    def call(path: Any = ".", *args: Any, **more: Any) -> Any:
        process = _PROCESSES.get(threading.get_ident())
        if process is None or isinstance(path, int):
            return real(path, *args, **more)
        text = os.fspath(path)
        if not isinstance(text, str) or not text.startswith(process.world.root):
            return real(path, *args, **more)
        if name in _TWO:
            args = (os.fspath(args[0]), *args[1:])
        more = {key: value for key, value in more.items() if key != "dir_fd"}
        return getattr(process.node, name)(process, text, *args, **more)

    return call


def _by_descriptor(name: str) -> Callable[..., Any]:
    real = _REAL[name]

    def call(descriptor: Any, *args: Any) -> Any:
        process = _PROCESSES.get(threading.get_ident())
        if process is None or descriptor not in process.files:
            return real(descriptor, *args)
        return getattr(process.node, name)(process, descriptor, *args)

    return call


def _open(file: Any, *args: Any, **more: Any) -> Any:
    process = _PROCESSES.get(threading.get_ident())
    if process is None or isinstance(file, int) or not os.fspath(file).startswith(process.world.root):
        return _real_open(file, *args, **more)
    opened = _pyio.open(file, *args, **more)
    process.keep(opened)
    return opened


def _preadv(descriptor: int, buffers: list[Any], position: int) -> int:
    data = os.pread(descriptor, len(buffers[0]), position)
    buffers[0][: len(data)] = data
    return len(data)


def _uname() -> Any:
    process = _PROCESSES.get(threading.get_ident())
    found = _REAL["uname"]()
    if process is None:
        return found
    return os.uname_result((found[0], process.node.name.replace(" ", ""), *found[2:]))


def _getpid() -> int:
    process = _PROCESSES.get(threading.get_ident())
    return _REAL["getpid"]() if process is None else process.pid


def _kill(pid: int, number: int) -> None:
    process = _PROCESSES.get(threading.get_ident())
    if process is None:
        _REAL["kill"](pid, number)
    elif not any(other.pid == pid and other.began and not other.ended for other in process.world.processes):
        raise ProcessLookupError


def _monotonic() -> float:
    process = _PROCESSES.get(threading.get_ident())
    return _real_monotonic() if process is None else process.world.now


def _sleep(seconds: float) -> None:
    process = _PROCESSES.get(threading.get_ident())
    if process is None:
        return _real_sleep(seconds)
    process.world.now += seconds
    return process.step(f"sleep {seconds:g} s")


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the threads of processes go through their views; all other threads go on as ever."""
    for name in _BY_PATH:
        patch.setattr(os, name, _by_path(name))
    for name in _BY_DESCRIPTOR:
        patch.setattr(os, name, _by_descriptor(name))
    for name, call in (("preadv", _preadv), ("uname", _uname), ("getpid", _getpid), ("kill", _kill)):
        patch.setattr(os, name, call)
    patch.setattr(os, "register_at_fork", lambda **_: None)  # else every logger of a test stays registered
    patch.setattr(builtins, "open", _open)
    patch.setattr(io, "open", _open)
    # through descriptors, and without Python's `os`
    patch.setattr(shutil, "_use_fd_functions", False)
    patch.setattr(shutil, "_USE_CP_SENDFILE", False)
    patch.setattr(time, "sleep", _sleep)
    patch.setattr(time, "monotonic", _monotonic)
    for module in [module for name, module in sys.modules.items() if name.startswith("mlxjobs")]:
        for name, value in list(vars(module).items()):
            if value is _real_monotonic or value is _real_sleep:
                patch.setattr(module, name, _monotonic if value is _real_monotonic else _sleep)
