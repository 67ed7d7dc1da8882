"""All snapshots: which there are, how large, and which runs use them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlxjobs.code.copying import NAME
from mlxjobs.code.run_code import code_of, facts_of
from mlxjobs.code.users import Mark, marks_of
from mlxjobs.errors import MLXJobsError, SnapshotError
from mlxjobs.record.log_dir import in_ranges
from mlxjobs.record.run import runs_in

# the name of a mark beside a snapshot
MARK = re.compile(rf"\.({NAME})\.log-[0-9a-f]+")


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


def find_snapshots(parents: Iterable[Path]) -> list[Snapshot]:
    """Return the snapshots below these `parent_work_dir`, those included that were removed and are named."""
    roots: set[Path] = set()
    for folder in (folder for parent in parents for folder in _list(parent)):
        if not folder.is_symlink():
            names = {path.name for path in _list(folder)}
            marked = {mark[1] for mark in map(MARK.fullmatch, names) if mark}
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
        for place in places_to_ask(snapshot, self._logs):
            numbers = self._names(place).get(real_path(snapshot.root), [])
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
                            found.setdefault(real_path(code.root), []).append(run.log_id)
        return self._named[logs]


def places_to_ask(snapshot: Snapshot, logs: Path) -> list[Path]:
    """Return the log directories to ask who uses a snapshot: this one, and those that have left marks."""
    places = [logs, *(mark.logs for mark in snapshot.marks if mark.logs is not None)]
    return list(dict.fromkeys(map(real_path, places)))


def real_path(path: Path) -> Path:
    """Return a path by which the same folder is known again; it may be missing."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # no path at all, in a mark or a record that somebody planted
        return path


# -- words ---------------------------------------------------------------------------------------

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(text: str) -> float:
    """Return how long `30d`, `12h` or `2w` is.

    Raises:
        SnapshotError: it is not written like that.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise SnapshotError(f"{text!r} is not a time: give a number and s, m, h, d or w, as in 30d")
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
    here = real_path(logs)
    parts = [in_ranges(ids) + ("" if real_path(place) == here else f" in {place}") for place, ids in found]
    return "; ".join(parts)
