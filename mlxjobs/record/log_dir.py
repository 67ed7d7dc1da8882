"""The folder of all runs: their numbers, and what is kept there beside them.

logs/
  5/ 6/ ...                   runs
  .waiting/7                  marks run 7 as waiting for room in the queue
  .arrays/1/script.sh 5 6     a submission of many runs, with a link to each
  .no-hard-links              there are none, so events are created another way
  .environments/5f3a01bc.txt  a list of installed distributions that runs were made with
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mlxjobs.errors import RunError
from mlxjobs.system.atomic import GONE, move
from mlxjobs.system.files import aside_of, numbers_in
from mlxjobs.system.trust import own_folder

# what every run has; the first of them is what shows that its folder is somebody's
_FOLDERS = ("metadata", "metadata/.history", "metrics", "artifacts")
# how long the folder of a run that is being made may be empty; the longest pause between two looks
_EMPTY_S = 2.0
_PAUSE_S = 0.1


def take_log_id(parent: str, above: int | None = None) -> str:
    """Create the folder of a run with the next free number, and return its path.

    Args:
        parent: where.
        above: a number that is taken, which saves looking for the highest one.
    """
    return _take_number(parent, above, make_run_folder)


def _take_number(parent: str, above: int | None, make: Callable[[str], bool]) -> str:
    """Each process walks up from what it saw and moves on only over numbers that are taken.

    So no number is skipped, however many start at once, and no lock is needed. (Strings, as paths are slow
    here.)
    """
    number = max(numbers_in(parent), default=0) if above is None else above
    while True:
        number += 1
        path = f"{parent}/{number}"
        if make(path):
            return path


def _make_folder(path: str) -> bool:
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        return False
    return True


def make_run_folder(path: str) -> bool:
    """Make the folder of a run, with those that every run has, which nobody else can get.

    A folder that stays empty is nobody's: who made it was killed, or was told that it exists by mistake
    (see `system.atomic`). It is taken by a rename, which fails if it holds something by then.

    Returns:
        Whether it is ours.

    Raises:
        OSError: it cannot be made.
    """
    if not _make_folder(path):
        return _stays_empty(path) and _take_empty(path)
    for name in _FOLDERS:
        try:
            if not _make_folder(f"{path}/{name}") and name == _FOLDERS[0] and not _is_begun(path):
                return False
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False  # we were stopped for so long that somebody took it
    return True


def _is_begun(path: str) -> bool:
    """Whether the folder holds no more than we have made, and not what somebody moved there."""
    first = _FOLDERS[0]
    return os.listdir(path) == [first] and not os.listdir(f"{path}/{first}")  # noqa: PTH208


def _stays_empty(path: str) -> bool:
    end, pause = time.monotonic() + _EMPTY_S, 0.001
    while True:
        try:
            if os.listdir(path):  # noqa: PTH208
                return False
        except OSError:  # a file, a folder that is not ours, or one that was removed
            return False
        if time.monotonic() > end:
            return True
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_S)


def _take_empty(path: str) -> bool:
    import shutil

    aside = aside_of(Path(path))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name in ("", *_FOLDERS):
            (aside / name).mkdir(exist_ok=True)
        move(aside, Path(path))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def no_links_mark(parent: Path) -> Path:
    """Return the file that says that the log directory is on a file system without hard links."""
    return parent / ".no-hard-links"


def in_ranges(log_ids: Iterable[int]) -> str:
    """Write numbers of runs as the command `mlxjobs` takes them: `5-9 12`."""
    parts: list[list[int]] = []
    for log_id in sorted(log_ids):
        if parts and parts[-1][1] == log_id - 1:
            parts[-1][1] = log_id
        else:
            parts.append([log_id, log_id])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def from_ranges(words: Iterable[str]) -> list[int]:
    """Return the numbers that words such as `5` and `7-9` name.

    Raises:
        RunError: one is none of that.
    """
    numbers: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RunError(f"{word!r} is not a run: give its number, or a range such as 7-9")
        if int(last or first) < int(first):
            raise RunError(f"{word!r} names no run: a range begins with the smaller number")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def waiting_folder(parent: Path) -> Path:
    """Return the folder of the marks of this user's runs that wait for room in the queue."""
    return own_folder(parent / ".waiting")


def waiting_in(parent: Path) -> list[int]:
    """Return the numbers of the runs that are marked as waiting for room in the queue."""
    try:
        return numbers_in(waiting_folder(parent))
    except FileNotFoundError:
        return []


def arrays_folder(parent: Path) -> Path:
    """Return the folder of this user's arrays of runs."""
    return own_folder(parent / ".arrays")


def take_array(parent: Path) -> Path:
    """Create a folder for an array of runs of this log directory, which nobody else can get.

    It holds the array's script, and for each task a link to its run: so what a run's directory holds
    is found below the task's number.
    """
    arrays = arrays_folder(parent)
    arrays.mkdir(exist_ok=True)
    return Path(_take_number(str(arrays), None, _make_folder))
