"""All snapshots: which there are, how large, who uses them; and the removal of those that nobody needs.

Beside a snapshot are the marks of all log directories whose runs were launched from it (`marks`). It is
removed if the runs of all of these were asked, and none needs it. Whatever cannot be known keeps it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlxjobs import repository, watch
from mlxjobs.copying import NAME
from mlxjobs.errors import MLXJobsError, SnapshotError
from mlxjobs.frozen_code import code_of, facts_of
from mlxjobs.log_dir import in_ranges
from mlxjobs.marks import Mark, marks_of
from mlxjobs.store import runs_in
from mlxjobs.trust import stranger

_MARK = re.compile(rf"\.({NAME})\.log-[0-9a-f]+")
# what a launch, or another removal, has in its hands at this moment
_IN_HAND = re.compile(r"\.(tmp(\..*)?|lock)$")
# between the mark of a launch and the records of its runs; large sweeps take minutes
_LAUNCHING_S = 3600.0


@dataclass
class Usage:
    """The disk blocks of files, each once, however many names it has here.

    Attributes:
        files: (device, inode) -> [bytes, names anywhere, names here].
    """

    files: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def add(self, folder: Path) -> None:
        """Add all that is in a folder, and itself."""
        for directory, _folders, names in os.walk(folder):
            for path in (directory, *(os.path.join(directory, name) for name in names)):  # noqa: PTH118
                with suppress(OSError):  # what a run removes meanwhile
                    self._count(os.lstat(path), is_folder=path is directory)

    def _count(self, about: os.stat_result, *, is_folder: bool) -> None:
        names = 1 if is_folder else about.st_nlink  # a folder's count is of the folders in it
        entry = self.files.setdefault((about.st_dev, about.st_ino), [about.st_blocks * 512, names, 0])
        entry[2] += 1

    def merge(self, other: Usage) -> None:
        """Add what was counted elsewhere."""
        for key, (size, names, here) in other.files.items():
            entry = self.files.setdefault(key, [size, names, 0])
            entry[1], entry[2] = max(entry[1], names), entry[2] + here

    @property
    def own(self) -> int:
        """Bytes that are free when these files are removed."""
        return sum(size for size, names, here in self.files.values() if names <= here)

    @property
    def shared(self) -> int:
        """Bytes of files that have names elsewhere too, as in another snapshot."""
        return sum(size for size, names, here in self.files.values() if names > here)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as it is found.

    Attributes:
        root: its folder; it may have been removed, while runs still name it.
        marks: of the log directories whose runs were launched from it.
    """

    root: Path
    marks: tuple[Mark, ...]

    @property
    def exists(self) -> bool:
        """Whether its files are there."""
        return self.root.is_dir()

    @property
    def launched(self) -> float:
        """When it was last launched from, or made, as far as that is known: seconds since 1970."""
        times = [mark.time for mark in self.marks]
        with suppress(FileNotFoundError):
            times = times or [self.root.stat().st_mtime]
        return max(times, default=0.0)

    def usage(self) -> Usage:
        """Return what it takes on the disk."""
        found = Usage()
        found.add(self.root)
        return found


def find(parents: Iterable[Path]) -> list[Snapshot]:
    """Return the snapshots below these `parent_work_dir`, those included that were removed and are named."""
    roots: set[Path] = set()
    for folder in (folder for parent in parents for folder in _list(parent)):
        if not folder.is_symlink():
            names = {path.name for path in _list(folder)}
            marked = {mark[1] for mark in map(_MARK.fullmatch, names) if mark}
            found = {name for name in names | marked if re.fullmatch(NAME, name)}
            roots |= {Path(os.path.abspath(folder)) / name for name in found}  # noqa: PTH100 - keeps links
    return [Snapshot(root, tuple(marks_of(root))) for root in sorted(roots)]


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it is not there, is none, or is not for us to read
        return []


class Users:
    """Which runs use a snapshot; schedulers are not asked.

    Args:
        logs: a log directory that is looked into besides those that have left marks.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._named: dict[Path, Mapping[Path, list[int]]] = {}

    def parents(self) -> set[Path]:
        """Return the folders in which the runs of the log directory have their snapshots."""
        return {root.parent.parent for root in self._names(self._logs)}

    def of(self, snapshot: Snapshot) -> Iterator[tuple[Path, list[int]]]:
        """Yield log directories, and the numbers of their runs that use a snapshot."""
        for place in _asked(snapshot, self._logs):
            numbers = self._names(place).get(_real(snapshot.root), [])
            if numbers:
                yield place, numbers

    def _names(self, logs: Path) -> Mapping[Path, list[int]]:
        if logs not in self._named:
            found: dict[Path, list[int]] = {}
            self._named[logs] = found
            with suppress(MLXJobsError):  # it is gone
                for run in runs_in(logs):
                    with suppress(MLXJobsError):  # damaged, or being made
                        code = code_of(facts_of(run))
                        if code is not None:
                            found.setdefault(_real(code.root), []).append(run.log_id)
        return self._named[logs]


def _asked(snapshot: Snapshot, logs: Path) -> list[Path]:
    places = [logs, *(mark.logs for mark in snapshot.marks if mark.logs is not None)]
    return list(dict.fromkeys(map(_real, places)))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


# -- removal -------------------------------------------------------------------------------------


class Pruning:
    """Removes snapshots that no run needs.

    Args:
        logs: a log directory that is asked besides those that have left marks.
        keep_s: how long after its last launch, and after the end of its last run, a snapshot is kept.
    """

    def __init__(self, logs: Path, keep_s: float) -> None:
        self._logs = logs
        self._keep_s = keep_s
        self._now = time.time()
        self._looked: dict[Path, list[watch.Seen] | str] = {}

    def why_kept(self, snapshot: Snapshot) -> str | None:
        """Return why a snapshot is not removed; None: nobody needs it."""
        whose = stranger(snapshot.root.parent, snapshot.root)
        if whose is not None:
            return whose.partition(";")[0]
        if not snapshot.marks:
            return "no launch has noted that it uses it; if none does, remove the folder"
        if self._now - snapshot.launched < max(self._keep_s, _LAUNCHING_S):
            return f"launched from {age(self._now - snapshot.launched)} ago"
        unreadable = [mark.path for mark in snapshot.marks if mark.logs is None]
        if unreadable:
            return f"{unreadable[0]} cannot be read: who uses it is not known"
        reasons = (self._needed_by(snapshot, place) for place in _asked(snapshot, self._logs))
        return next((reason for reason in reasons if reason), None)

    def _needed_by(self, snapshot: Snapshot, logs: Path) -> str | None:
        seen = self._look(logs)
        if isinstance(seen, str):
            return seen
        for one in seen:
            if not one.state.sequence:
                return f"run {one.run.log_id} of {logs} cannot be read: {one.doubt}"
        using = [one for one in seen if _uses(one, snapshot)]
        for one in using:
            status = one.state.status
            if not status.ended:
                return f"run {one.run.log_id} of {logs} is {status}{' (?)' if one.doubt else ''}"
        for one in using:
            try:
                since = self._now - one.run.history_dir.stat().st_mtime  # its last event is its end
            except OSError as error:
                return f"run {one.run.log_id} of {logs} cannot be read: {error}"
            if since < self._keep_s:
                return f"run {one.run.log_id} of {logs} ended {age(since)} ago"
        return None

    def _look(self, logs: Path) -> list[watch.Seen] | str:
        if logs not in self._looked:
            self._looked[logs] = self._ask(logs)
        return self._looked[logs]

    def _ask(self, logs: Path) -> list[watch.Seen] | str:
        try:
            if not logs.exists():
                if logs.parent.is_dir() or logs == _real(self._logs):  # it was removed
                    return []
                return f"{logs}, whose runs use it, is not there now; if it is gone for good, remove its mark"
            seen = watch.look(logs)
            known = {one.run.log_id for one in seen}
            for run in runs_in(logs):  # what is no run yet may become one
                if run.log_id not in known and self._now - run.path.stat().st_mtime < _LAUNCHING_S:
                    return f"run {run.log_id} of {logs} is being made"
            return seen
        except (MLXJobsError, OSError) as error:
            return f"the runs of {logs} cannot be asked: {error}"

    def remove(self, snapshot: Snapshot) -> Usage | None:
        """Remove a snapshot, unless somebody launches from it at this moment: then None.

        Raises:
            SnapshotError: it cannot be removed, or not whole.
        """
        root = snapshot.root
        token = f"{os.uname().nodename}.{os.getpid()}.{os.urandom(4).hex()}"
        aside = root.with_name(f".{root.name}.{token}.tmp")  # as `copying` names what may be cleared away
        try:
            aside.mkdir()
            _move(_beside(root), aside)
            root.rename(aside / root.name)
            if {(mark.path, mark.time) for mark in marks_of(root)} - {
                (m.path, m.time) for m in snapshot.marks
            }:
                _move([aside / root.name, *aside.iterdir()], root.parent)
                shutil.rmtree(aside)  # what a launch has made anew meanwhile stays
                return None
            usage = Usage()
            usage.add(aside / root.name)
            remove_tree(aside)
            return usage
        except FileNotFoundError:  # somebody else removes it
            shutil.rmtree(aside, ignore_errors=True)
            return None
        except OSError as error:
            raise SnapshotError(
                f"{error.filename or root} cannot be removed: {error.strerror or error}"
            ) from error

    def forget(self, snapshot: Snapshot) -> bool:
        """Drop what keeps the commit of a removed snapshot, unless a run names it; True: it was dropped.

        While a run names it, `mlxjobs diff`, `checkout` and `requeue` make the code again from the commit.
        """
        root = snapshot.root
        if snapshot.exists or not snapshot.marks or self.why_kept(snapshot) is not None:
            return False
        for place in _asked(snapshot, self._logs):
            seen = self._look(place)
            if isinstance(seen, str) or any(_uses(one, snapshot) for one in seen):
                return False
        commit = root.name.partition("-")[0]
        others = {path.name for path in root.parent.glob(f"*{commit}*")} - {
            mark.path.name for mark in snapshot.marks
        }
        for mark in snapshot.marks:
            # others of this commit have other links; another user's mark names what it likes
            if not others and mark.owner == os.geteuid() and mark.repo.is_dir():
                with suppress(SnapshotError):
                    repository.run(mark.repo, "update-ref", "-d", f"refs/mlxjobs/{commit}")
            mark.path.unlink(missing_ok=True)
        return True


def _uses(one: watch.Seen, snapshot: Snapshot) -> bool:
    code = code_of(one.state.facts)
    return code is not None and _real(code.root) == _real(snapshot.root)


def _beside(root: Path) -> list[Path]:
    """What belongs to a snapshot and lies beside it, besides the marks."""
    found = root.parent.glob(f".{root.name}.*")
    return [path for path in found if not (_MARK.fullmatch(path.name) or _IN_HAND.search(path.name))]


def _move(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        if not os.path.lexists(folder / path.name):
            with suppress(FileNotFoundError):
                path.rename(folder / path.name)


def remove_tree(folder: Path) -> None:
    """Remove a folder, with folders in it that were made read-only."""
    for directory, folders, _names in os.walk(folder):
        for path in (Path(directory, name) for name in folders):
            if not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
                path.chmod(0o700)
    shutil.rmtree(folder)


# -- words ---------------------------------------------------------------------------------------

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> float:
    """Return how long `30d`, `12h` or `2w` is.

    Raises:
        SnapshotError: it is no such text.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise SnapshotError(f"{text!r} is no time: give a number and s, m, h, d or w, as in 30d")
    return float(match[1]) * _SECONDS[match[2]]


def age(value: float) -> str:
    """Write a time in its largest unit: `3 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= length:
            return f"{value / length:.0f} {unit}"
    return f"{max(value, 0):.0f} s"


def size(count: float) -> str:
    """Write a number of bytes: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def runs_text(found: Iterable[tuple[Path, list[int]]], logs: Path) -> str:
    """Write who uses a snapshot: `3-7 9`, and `12 in /other/logs`."""
    here = _real(logs)
    parts = [in_ranges(ids) + ("" if _real(place) == here else f" in {place}") for place, ids in found]
    return "; ".join(parts)
