"""The metrics files as they were before an attempt began, which are kept until it has ended.

    metrics/
      train.json                  a copy, with which this attempt goes on
      .before/3/train.json        what attempt 3 found: the file that an older attempt may have open
      .superseded/before.3/       the same, where it has lines of which nobody knows whether they count

What this node takes for the size of a file that another node wrote may be old, so the copy may be short. The
file that it was made from has all lines, until nobody can miss them: a copy is completed when the attempt has
shown where it begins, and the file is removed when all that it has is in the run's file or moved from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mlxjobs.logger.rewind import SUPERSEDED, append, flush, is_accounted, note_start, size_of, whole_lines
from mlxjobs.record.fence import Fence
from mlxjobs.system import atomic
from mlxjobs.system.files import aside_of, naming, numbers_in, sync_directory
from mlxjobs.system.plain_yaml import NotYAMLError, read_yaml

BEFORE = ".before"


def renew(directory: Path, fence: Fence) -> None:
    """Let the metrics files be copies, so that what an older attempt appends is not in them.

    Args:
        directory: the run's `metrics/`.
        fence: of the attempt that begins.

    Raises:
        Superseded: a newer attempt has begun.
        OSError: a file could not be copied; what is there stays.
    """
    with fence.explaining():
        left = _left_by_killed(directory, fence.attempt)
        for name in sorted({*_files(directory), *_registered(directory), *left}):
            _renew(directory / name, left.get(name, {}), fence)
        for attempt in {attempt for found in left.values() for attempt in found}:
            with suppress(OSError):
                (directory / BEFORE / str(attempt)).rmdir()


def _files(folder: Path) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return [name for name in names if name.endswith(".json") and name[0] != "."]


def _registered(directory: Path) -> list[str]:
    """Files that the registry of keys knows: a listing may be old, but opening a file shows its content."""
    with suppress(OSError, NotYAMLError):
        registry = read_yaml(directory / ".keys" / "metrics.yaml")
        if isinstance(registry, dict):
            return [f"{name}.json" for name in registry]
    return []


def _left_by_killed(directory: Path, attempt: int) -> dict[str, dict[int, Path]]:
    """What earlier attempts kept and did not remove: name -> attempt -> file."""
    found: dict[str, dict[int, Path]] = {}
    with suppress(OSError):
        for number in numbers_in(directory / BEFORE):
            if number < attempt:
                for name in _files(directory / BEFORE / str(number)):
                    found.setdefault(name, {})[number] = directory / BEFORE / str(number) / name
    return found


def _renew(path: Path, left: Mapping[int, Path], fence: Fence) -> None:
    kept = path.parent / BEFORE / str(fence.attempt) / path.name
    is_there = _keep(path, kept)
    for attempt, earlier in left.items():
        try:
            if is_accounted(path.parent, attempt, earlier):
                earlier.unlink(missing_ok=True)
            elif is_there and not _begins(earlier, kept):
                _move_away(earlier, attempt)
            else:  # that attempt wrote nothing, and its copy may have been short
                atomic.move(earlier, kept)
                is_there = True
        except OSError as error:  # that attempt, or a newer one, has just removed it
            if error.errno not in atomic.GONE:
                raise
    if is_there:
        copy = fence.folder(path.parent) / path.name
        with naming(copy), open(copy, "wb") as target:
            append(kept, 0, None, target)
            flush(target)
        atomic.move(copy, path)


def _keep(path: Path, kept: Path) -> bool:
    """Give a file its second name, which no other attempt gives; False if there is no such file."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(kept):  # never moved: by then it may be a newer attempt's
            atomic.link_or_copy(path, kept)
    except FileNotFoundError:
        with suppress(OSError):
            kept.unlink(missing_ok=True)
            kept.parent.rmdir()
            kept.parent.parent.rmdir()
        return False
    return True


def _begins(longer: Path, shorter: Path) -> bool:
    """Whether a file begins with all of another one, and has more."""
    with open(longer, "rb") as one, open(shorter, "rb") as other:
        while block := other.read(1 << 20):
            if one.read(len(block)) != block:
                return False
        return one.read(1) != b""


def _move_away(kept: Path, attempt: int) -> None:
    folder = kept.parent.parent.parent / SUPERSEDED / f"before.{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    atomic.move(kept, folder / kept.name)


def complete(
    directory: Path, start: Mapping[str, int], fence: Fence, replaced: Callable[[str, Path], None]
) -> dict[str, int]:
    """Add to the copies what the files that they were made from have by now.

    Args:
        directory: the metrics folder.
        start: log name -> bytes of earlier attempts' lines in each file.
        fence: of the attempt.
        replaced: called with the log name and path of a file that is now another one.

    Returns:
        `start` as it is then.

    Raises:
        OSError: a file could not be written; nothing is lost.
        Superseded: a newer attempt has begun.
    """
    found = dict(start)
    folder = directory / BEFORE / str(fence.attempt)
    for name in _files(folder):
        log_name, kept, path = name.removesuffix(".json"), folder / name, directory / name
        begin, end = found.get(log_name, 0), whole_lines(kept, size_of(kept))
        if end <= begin or is_accounted(directory, fence.attempt, kept):
            continue
        with fence.explaining():
            aside = aside_of(directory / "complete", fence.folder(directory))
            with naming(aside), open(aside, "wb") as target:
                append(kept, 0, end, target)
                append(path, begin, None, target)
                flush(target)
            atomic.move(aside, path)
        replaced(log_name, path)
        found[log_name] = end
    if found != start:
        sync_directory(directory)
        note_start(directory, found, fence)
    return found


def settle(directory: Path, fence: Fence, *, complete: bool) -> None:
    """Remove what was kept for an attempt that ends, as far as all of it is in the run's files or moved away.

    Args:
        directory: the metrics folder.
        fence: of the attempt.
        complete: it has settled what counts, so the rest is moved away; else the next attempt looks at it.

    Raises:
        OSError: it could not be read.
        Superseded: a newer attempt has begun, which looks at it.
    """
    folder = directory / BEFORE / str(fence.attempt)
    if not fence.attempt or not folder.is_dir():
        return
    fence.check()
    for name in _files(folder):
        if is_accounted(directory, fence.attempt, folder / name):
            (folder / name).unlink(missing_ok=True)
        elif complete:
            _move_away(folder / name, fence.attempt)
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
