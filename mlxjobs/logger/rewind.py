"""Take metrics lines back, so that a resumed run has each step once.

A rewind first makes its folder `.superseded/<attempt>/` durable, by one rename, with the lines it
takes and a note of where each file is cut; then it shortens the files. The content of a file before
the rewind is thus what the file holds before the cut, followed by the copy, whether a crash came
before the file was shortened or not. So every rewind can be undone, and a checkpoint gives back the
lines it was saved with even when an attempt in between began from scratch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlxjobs.record.fence import Fence
from mlxjobs.system.atomic import move
from mlxjobs.system.files import aside_of, naming, replace_file, sync_directory
from mlxjobs.system.seals import open_json, seal_json, size_and_crc32

SUPERSEDED = ".superseded"

_Sizes = Mapping[str, int]  # log name -> bytes; 0 for a file that is not named

_BLOCK = 1 << 20
NOTE = ".rewind.json"
_STARTS = ".starts.json"
_LOST = ".lost.json"
_FIRST = 1  # the first attempt


@dataclass(frozen=True)
class _Rewind:
    """A rewind of the past: where it cut each file, and the folder with what it cut off."""

    number: int
    folder: Path
    cuts: dict[str, int]


class Short(Exception):
    """A metrics file has fewer bytes than a checkpoint remembers."""

    def __init__(self, path: Path, size: int, remembered: int) -> None:
        super().__init__(path, size, remembered)
        self.path, self.size, self.remembered = path, size, remembered


@dataclass(frozen=True)
class _Plan:
    """What one file becomes: `pieces` (file, bytes from its beginning), then its own from `start`."""

    name: str
    path: Path
    pieces: list[tuple[Path, int]]
    start: int

    @property
    def kept(self) -> int:
        """Bytes at the beginning of the file that stay where they are."""
        return self.pieces[0][1] if self.pieces and self.pieces[0][0] == self.path else 0

    @property
    def restores(self) -> bool:
        return self.kept < sum(length for _, length in self.pieces)

    @property
    def changes(self) -> bool:
        return self.kept < self.start or self.restores


def log_names(directory: Path) -> list[str]:
    """Return the names of the metrics files in a folder, sorted and without `.json`."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        files = [entry.name for entry in entries if entry.name.endswith(".json")]
        return sorted(name[:-5] for name in files if not name.startswith("."))
    return []


def sizes(directory: Path) -> dict[str, int]:
    """Return the size of every metrics file of a folder, log name -> bytes."""
    return {name: size_of(directory / f"{name}.json") for name in log_names(directory)}


def rewinds_so_far(directory: Path) -> int:
    """Return the number of the last rewind in a metrics folder, 0 if there was none."""
    return max((past.number for past in _read_rewinds(directory)), default=0)


def cut_torn_line(path: Path, fence: Fence) -> None:
    """Move a last line without a newline, which a killed process left, to `.superseded/torn/`.

    Raises:
        OSError: the line could not be moved; the file is as it was.
        Superseded: a newer attempt has begun.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        whole = _line_start(file, size)
        if whole == size:
            return
        file.seek(whole)
        torn = file.read()
    copy = path.parent / SUPERSEDED / "torn" / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with naming(copy), open(copy, "ab") as target:
        target.write(torn + b"\n")
        flush(target)
    _truncate(path, whole, fence, size)


def note_start(directory: Path, start: _Sizes, fence: Fence) -> None:
    """Remember how large the files are where this attempt begins, to know who wrote which lines.

    Raises:
        OSError: it could not be written.
        Superseded: a newer attempt has begun.
    """
    if not fence.attempt:
        return
    folder = directory / SUPERSEDED
    starts = {str(attempt): dict(sizes) for attempt, sizes in _read_starts(folder).items()}
    starts[str(fence.attempt)] = dict(start)
    folder.mkdir(parents=True, exist_ok=True)
    with fence.explaining():
        replace_file(folder / _STARTS, seal_json(starts) + "\n", aside=fence.folder(folder))


def _read_starts(folder: Path) -> dict[int, dict[str, int]]:
    with suppress(OSError, ValueError, TypeError):
        starts, _ = open_json((folder / _STARTS).read_bytes())
        return {int(attempt): dict(sizes) for attempt, sizes in starts.items()}
    return {}


def accept_loss(directory: Path, name: str, remembered: int) -> None:
    """Note that nobody has the lines any more that a checkpoint remembers, up to this size of a file."""
    folder = directory / SUPERSEDED
    folder.mkdir(parents=True, exist_ok=True)
    lost = {**_read_lost(folder), name: remembered}
    replace_file(folder / _LOST, seal_json(lost) + "\n")


def _read_lost(folder: Path) -> dict[str, int]:
    with suppress(OSError, ValueError, TypeError):
        lost, _ = open_json((folder / _LOST).read_bytes())
        return {str(name): int(size) for name, size in lost.items()}
    return {}


def rewind(
    directory: Path,
    offsets: _Sizes,
    start: _Sizes,
    *,
    fence: Fence,
    rewinds: int | None,
    replaced: Callable[[str, Path], None],
) -> int:
    """Cut every metrics file back to an earlier size, but keep what follows `start`.

    The lines taken are in `.superseded/<attempt>/`, a folder for each attempt that wrote some.

    Args:
        directory: the metrics folder.
        offsets: bytes to keep.
        start: bytes when this attempt began.
        fence: of the attempt.
        rewinds: the last rewind when the sizes were taken; later ones are undone. None: undo none.
        replaced: called with the log name and path of a file that is now another one.

    Returns:
        Number of lines taken.

    Raises:
        OSError: a file could not be written; nothing is lost, and the rewind can be repeated.
        Superseded: a newer attempt has begun.
    """
    own = {name: max(0, size - start.get(name, 0)) for name, size in sizes(directory).items()}

    def now() -> dict[str, int]:
        return {name: size - own.get(name, 0) for name, size in sizes(directory).items()}

    before, lines = now(), 0
    undone = _later(_read_rewinds(directory), rewinds)
    for writer, began in _writers(directory, fence.attempt):
        if writer == _FIRST:
            lines += _cut(directory, offsets, now(), fence, writer, rewinds, replaced)
            break
        kept = {}
        for name in own:
            cuts = (past.cuts[name] for past in undone if name in past.cuts)
            kept[name] = max(began.get(name, 0), min([offsets.get(name, 0), *cuts]))
        lines += _cut(directory, kept, now(), fence, writer, None, replaced)
    if now() != before:
        note_start(directory, now(), fence)
    return lines


def _cut(
    directory: Path,
    offsets: _Sizes,
    start: _Sizes,
    fence: Fence,
    writer: int,
    rewinds: int | None,
    replaced: Callable[[str, Path], None],
) -> int:
    """One rewind; what it takes was written by one attempt."""
    past = _later(_read_rewinds(directory), 0)
    later = _later(past, rewinds)
    names = {*log_names(directory), *(name for entry in later for name in entry.cuts)}
    plans = [
        _plan(directory / f"{name}.json", offsets.get(name, 0), start.get(name, 0), later)
        for name in sorted(names)
    ]
    plans = [plan for plan in plans if plan.changes]
    if not plans:
        return 0
    with fence.explaining():
        number = past[-1].number + 1 if past else 1
        lines = _set_aside(directory / SUPERSEDED, plans, fence, number, writer)
        for plan in plans:
            if _apply(plan, fence):
                replaced(plan.name, plan.path)
    sync_directory(directory)
    return lines


def is_accounted(directory: Path, attempt: int, found: Path) -> bool:
    """Whether all lines that an attempt found in a file still are before its own, or were moved away.

    Args:
        directory: the metrics folder.
        attempt: its number.
        found: the file as it found it.
    """
    log_name, size = found.name.removesuffix(".json"), whole_lines(found, size_of(found))
    for past in _later(_read_rewinds(directory), 0):
        cut, moved = past.cuts.get(log_name), past.folder / found.name
        if cut is not None and cut + size_of(moved) == size and _ends(found, cut, moved):
            size = cut
    start = _read_starts(directory / SUPERSEDED).get(attempt, {})
    return size <= start.get(log_name, -1)


def _ends(path: Path, begin: int, other: Path) -> bool:
    """Whether a file has all of another one from some byte on."""
    with open(path, "rb") as file, open(other, "rb") as expected:
        file.seek(begin)
        while block := expected.read(_BLOCK):
            if file.read(len(block)) != block:
                return False
    return True


def _writers(directory: Path, attempt: int) -> list[tuple[int, _Sizes]]:
    """Earlier attempts that may have written lines, newest first, and where each began."""
    starts = _read_starts(directory / SUPERSEDED)
    writers: list[tuple[int, _Sizes]] = []
    for number in sorted((number for number in starts if _FIRST < number < attempt), reverse=True):
        began = starts[number]
        if writers:  # what was there then may have been cut by a later one
            began = {name: min(size, writers[-1][1].get(name, 0)) for name, size in began.items()}
        writers.append((number, began))
    return [*writers, (_FIRST, {})]


def _read_rewinds(directory: Path) -> Iterator[_Rewind]:
    for path in (directory / SUPERSEDED).glob("[0-9]*/" + NOTE):
        with suppress(OSError, ValueError, KeyError, TypeError):
            note, _ = open_json(path.read_bytes())
            yield _Rewind(int(note["number"]), path.parent, dict(note["cuts"]))


def _pieces(path: Path, start: int, later: list[_Rewind]) -> list[tuple[Path, int]]:
    """What the lines before `start` were before some rewinds: files, and how many bytes of each."""
    name, pieces = path.name.removesuffix(".json"), [(path, start)]
    for entry in reversed(later):
        if name in entry.cuts:
            copy = entry.folder / path.name
            pieces = [*_first(pieces, entry.cuts[name]), (copy, size_of(copy))]
    return pieces


def check_whole(directory: Path, offsets: _Sizes, start: _Sizes, rewinds: int | None) -> None:
    """Raise `Short` if the files lack lines that they had when these sizes were taken; as `rewind`."""
    later = _later(_read_rewinds(directory), rewinds)
    lost = _read_lost(directory / SUPERSEDED)
    for name, offset in offsets.items():
        path = directory / f"{name}.json"
        begin = min(start.get(name, 0), size_of(path))
        there = sum(length for _, length in _pieces(path, begin, later))
        if there < offset and offset > lost.get(name, 0):
            raise Short(path, there, offset)


def _later(rewinds: Iterable[_Rewind], since: int | None) -> list[_Rewind]:
    """The rewinds after one of them, oldest first."""
    past = sorted(rewinds, key=lambda entry: entry.number)
    return [] if since is None else [entry for entry in past if entry.number > since]


def _plan(path: Path, offset: int, start: int, later: list[_Rewind]) -> _Plan:
    name = path.name.removesuffix(".json")
    start = whole_lines(path, min(start, size_of(path)))
    pieces = _first(_pieces(path, start, later), offset)
    if pieces:
        source, length = pieces[-1]
        pieces[-1] = (source, whole_lines(source, length))
    return _Plan(name, path, [piece for piece in pieces if piece[1]], start)


def _set_aside(parent: Path, plans: list[_Plan], fence: Fence, number: int, writer: int) -> int:
    """Make the copies and the note durable, all at once by a rename; returns the lines copied."""
    parent.mkdir(exist_ok=True)
    aside = aside_of(parent / "rewind", fence.folder(parent))
    _remove_folder(aside)
    aside.mkdir(exist_ok=True)  # nobody else has this name
    lines = 0
    for plan in plans:
        copy = aside / plan.path.name
        with naming(copy), open(copy, "wb") as target:
            lines += append(plan.path, plan.kept, plan.start, target)
            flush(target)
    cuts = {plan.name: plan.kept for plan in plans}
    files = {name: size_and_crc32(aside / f"{name}.json") for name in cuts}
    note = {"schema": 1, "number": number, "cuts": cuts, "files": files}
    replace_file(aside / NOTE, seal_json(note) + "\n")
    folder = parent / str(writer)
    count = 1
    while folder.exists():
        count += 1
        folder = parent / f"{writer}.{count}"
    move(aside, folder)
    sync_directory(parent)
    return lines


def _apply(plan: _Plan, fence: Fence) -> bool:
    """Shorten the file, or write it anew if lines of this attempt follow; tells whether it is new."""
    size = size_of(plan.path)
    if plan.start == size and not plan.restores and _truncate(plan.path, plan.kept, fence, size):
        return False
    size = size_of(plan.path)
    # not named after the file, whose name may be as long as names can be
    aside = aside_of(plan.path.with_name("rewind"), fence.folder(plan.path.parent))
    try:
        with naming(aside), open(aside, "wb") as target:
            for source, length in plan.pieces:
                append(source, 0, length, target)
            append(plan.path, plan.start, size, target)
            flush(target)
        move(aside, plan.path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return True


def _first(pieces: list[tuple[Path, int]], size: int) -> list[tuple[Path, int]]:
    kept = []
    for path, length in pieces:
        kept.append((path, min(length, size)))
        size -= kept[-1][1]
    return [piece for piece in kept if piece[1]]


def size_of(path: Path) -> int:
    """Return the size of a file, 0 if there is none: opening it asks the server for that (nfs(5))."""
    try:
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return 0


def _line_start(file: BinaryIO, position: int) -> int:
    """The last beginning of a line at or before `position`."""
    while position > 0:
        begin = max(0, position - _BLOCK)
        file.seek(begin)
        newline = file.read(position - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        position = begin
    return 0


def whole_lines(path: Path, size: int) -> int:
    """Return how many of the first bytes of a file are whole lines."""
    if size == 0:
        return 0
    with open(path, "rb") as file:
        return _line_start(file, size)


def append(source: Path, begin: int, end: int | None, target: BinaryIO) -> int:
    """Append bytes of a file to another, in constant memory; returns the number of lines.

    Args:
        source: the file.
        begin: the first byte.
        end: the byte after the last one; None: all that there are.
        target: the other file, open.
    """
    lines = 0
    if end is None or begin < end:
        with open(source, "rb") as file:
            file.seek(begin)
            while block := file.read(_BLOCK if end is None else min(_BLOCK, end - begin)):
                target.write(block)
                lines += block.count(b"\n")
                begin += len(block)
    return lines


def _truncate(path: Path, size: int, fence: Fence, before: int) -> bool:
    """Shorten a file, unless it has grown: then another process, as a forked worker, is writing to it."""
    with naming(path), open(path, "r+b") as file:
        fence.check()  # not before: a newer attempt makes the file another one
        if file.seek(0, os.SEEK_END) != before:
            return False
        file.truncate(size)
        os.fsync(file.fileno())
    return True


def flush(file: BinaryIO) -> None:
    """Wait until what was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        import shutil

        shutil.rmtree(folder)
