"""The folder of all runs: their numbers, and what is kept there beside them.

logs/
  5/ 6/ ...                   runs
  .waiting/7                  marks run 7 as waiting for room in the queue
  .arrays/1/script.sh 5 6     a submission of many runs, with a link to each
  .environments/5f3a01bc.txt  a list of installed distributions that runs were made with
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mlxjobs.errors import RunError
from mlxjobs.system.files import numbers_in
from mlxjobs.system.trust import own_folder


def take_log_id(parent: str, above: int | None = None) -> str:
    """Create the folder with the next free number, and return its path.

    Args:
        parent: where.
        above: a number that is taken, which saves looking for the highest one.

    Each process walks up from what it saw and moves on only over numbers that are taken: so no number
    is skipped, however many start at once, and no lock is needed. (Strings, as paths are slow here.)
    """
    number = max(numbers_in(parent), default=0) if above is None else above
    while True:
        number += 1
        path = f"{parent}/{number}"
        try:
            os.mkdir(path)  # noqa: PTH102
        except FileExistsError:
            continue
        return path


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
    return Path(take_log_id(str(arrays)))
