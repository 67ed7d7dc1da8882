"""Checkpoints of a run: whole and on the disk, or not there at all.

    artifacts/Checkpoint/
      last_ckpt.pkl              the newest of this name
      .last_ckpt.pkl.previous    the one before
      last_ckpt.pkl.7            with `keep`: those before, by their number
      last_ckpt_best.pkl         with `monitor`: the best so far, often the same file by another name

A new one is written aside and flushed. Then what should stay of the old ones gets a second name, and
last the new one its name: a crash at any moment leaves the old or the new, whole.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from mlxjobs.errors import DamagedCheckpointError, InvalidArtifactError
from mlxjobs.logger import checkpoint_file
from mlxjobs.logger.checkpoint_file import Record, peek, read_record
from mlxjobs.record.fence import Fence
from mlxjobs.system.atomic import link_or_copy, look_anew, move
from mlxjobs.system.console import note
from mlxjobs.system.files import aside_of, naming, remove_asides, sync_directory

SUFFIX = ".pkl"


@dataclass(frozen=True)
class Loaded:
    """An object that was read, the file it came from, and the record in that file, if any."""

    path: Path
    checkpoint: Any
    record: Record | None


# --- names


def previous(path: Path) -> Path:
    """Return where the checkpoint before `path` is kept."""
    return path.with_name(f".{path.name}.previous")


def best(path: Path) -> Path:
    """Return where the best checkpoint is kept, by the metric that is monitored."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}_best{SUFFIX}")


def _numbered(path: Path, sequence: int) -> Path:
    return path.with_name(f"{path.name}.{sequence}")


def older(path: Path) -> list[Path]:
    """Return what is kept of earlier checkpoints of this name, newest first."""
    if not path.name.endswith(SUFFIX):
        return []
    pattern = re.compile(re.escape(path.name) + r"\.([0-9]+)")
    ages = {
        path.parent / name: int(found[1])
        for name in _names(path.parent)
        if (found := pattern.fullmatch(name))
    }
    if previous(path).exists():
        record = read_record(previous(path))
        ages[previous(path)] = record.sequence if record is not None else -1
    return sorted(ages, key=lambda kept: ages[kept], reverse=True)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- writing


def save(
    obj: Any,
    path: Path,
    record: Record,
    *,
    keep: int | None = None,
    is_best: bool = False,
    damaged: bool = False,
    fence: Fence | None = None,
) -> None:
    """Replace a checkpoint, atomically and durably.

    Args:
        obj: anything that pickle or cloudpickle takes, or a `Pickled`, which is used up.
        path: the file; its folder is made.
        record: what to remember with it.
        keep: how many there are afterwards, the new one included; None: it and the one before.
        is_best: let the best one be this.
        damaged: the file that is there is known to be damaged, and is not kept.
        fence: of the attempt that saves.

    Raises:
        InvalidArtifactError: the object cannot be pickled; the old checkpoint is as it was.
        OSError: the file could not be written; the old checkpoint is as it was.
        Superseded: a newer attempt has begun.
    """
    fence = fence or Fence()
    with fence.explaining(), naming(path), ExitStack() as stack:
        _make_folder(path.parent)
        remove_asides(path)
        folder = fence.folder(path.parent)
        aside = _temporary(stack, folder, path)
        try:
            checkpoint_file.write(obj, aside, record)
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"the checkpoint {path} was not written: {error}") from error
        moves = []
        if is_best:
            # before the new one has its name: a crash in between may not leave a stale best
            moves.append((_second_file(stack, folder, aside, path, "best"), best(path)))
        look_anew(path.parent)
        if keep != 1 and not damaged and _worth_keeping(path):
            kept = previous(path) if keep is None else _numbered(path, _sequence(path))
            moves.append((_second_file(stack, folder, path, path, "kept"), kept))
        for source, target in [*moves, (aside, path)]:  # the new checkpoint last
            move(source, target)
        sync_directory(path.parent)
    if keep is not None:
        _remove_all_but(keep, path)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_directory(folder.parent)


def _temporary(stack: ExitStack, folder: Path, path: Path, what: str = "") -> Path:
    """A file that is gone when the stack is left, also where rename(2) did nothing as both were one file."""

    def remove() -> None:
        with suppress(OSError):
            aside.unlink(missing_ok=True)

    aside = aside_of(path, folder, what)
    stack.callback(remove)
    return aside


def _second_file(stack: ExitStack, folder: Path, source: Path, path: Path, what: str) -> Path:
    """Let a file have a second name, so that there is a good file at every moment; a copy if it cannot."""
    second = _temporary(stack, folder, path, what)
    second.unlink(missing_ok=True)
    link_or_copy(source, second)
    return second


def _worth_keeping(path: Path) -> bool:
    """False for a damaged file that would take the place of a good one."""
    if not path.exists():
        return False
    return read_record(path) is not None or not any(map(read_record, older(path)))


def _sequence(path: Path) -> int:
    record = read_record(path)
    return 0 if record is None else record.sequence


def _remove_all_but(keep: int, path: Path) -> None:
    for kept in older(path)[keep - 1 :]:
        with suppress(OSError):  # it is removed next time
            kept.unlink()


# --- reading


@dataclass(frozen=True)
class Candidate:
    """A file that may be loaded.

    Attributes:
        path: the file.
        record: what it remembers.
        problem: why it cannot be loaded, as far as can be told without reading all of it.
    """

    path: Path
    record: Record | None = None
    problem: str | None = None

    @property
    def age(self) -> tuple[float, bool, float]:
        """What newer ones have more of: the damaged come first, and those without a record last, by date."""
        if self.problem is not None:
            return inf, False, 0.0
        if self.record is None:
            return 0, False, self.path.stat().st_mtime
        return self.record.sequence, self.path.name == f"{self.record.log_name}{SUFFIX}", 0.0


def kept(path: Path) -> list[Candidate]:
    """Return a checkpoint and what is kept of earlier ones of this name, newest first."""
    found: list[Candidate] = []
    recorded = False
    for file in reversed([path, *older(path)]):
        candidate = _candidate(file)
        if recorded and candidate.record is None and candidate.problem is None:
            lost = "it has no record, though one before it has: its end is missing"
            candidate = Candidate(file, problem=f"the checkpoint {file} cannot be read: {lost}")
        recorded = recorded or candidate.record is not None
        found.insert(0, candidate)
    return found


def _candidate(path: Path) -> Candidate:
    try:
        return Candidate(path, peek(path))
    except FileNotFoundError:
        return Candidate(path, problem=f"the checkpoint {path} is missing")
    except (DamagedCheckpointError, OSError) as error:
        return Candidate(path, problem=f"the checkpoint {path} cannot be read: {error}")


def load(path: Path) -> Any:
    """Read a checkpoint's object; like `pickle.load`, this runs what the file says.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: it is there but cannot be read.
    """
    return checkpoint_file.read_checkpoint(path)[0]


def load_first(
    candidates: Iterable[Candidate], *, damaged: set[Path] | None = None, stacklevel: int = 1
) -> Loaded:
    """Read the first checkpoint that is not damaged; if that is not the first of all, with a warning.

    Args:
        candidates: at least one.
        damaged: the damaged ones are added to it.
        stacklevel: whose line the warning shows; 1 is the caller of this function.

    Raises:
        DamagedCheckpointError: none of them can be read.
    """
    problems: list[str] = []
    for candidate in candidates:
        try:
            loaded = _load(candidate)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            if damaged is not None:
                damaged.add(candidate.path)
            continue
        if problems:
            message = f"{problems[0]}; going on from the one before it, {loaded.path}"
            note(message)  # warnings may be switched off
            warnings.warn(message, stacklevel=stacklevel + 1)
        return loaded
    advice = "If nothing can be done about that, remove the files to start over"
    message = f"{problems[0]}; no earlier one can be read either. {advice}"
    note(message)  # a bare `except:` around load_checkpoint must not hide it
    raise DamagedCheckpointError(message)


def _load(candidate: Candidate) -> Loaded:
    if candidate.problem is not None:
        raise DamagedCheckpointError(candidate.problem)
    try:
        return Loaded(candidate.path, *checkpoint_file.read_checkpoint(candidate.path))
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"the checkpoint {candidate.path} is missing") from error


def find(folder: Path) -> list[Candidate]:
    """Return all files of checkpoints in a folder, newest first."""
    pattern = re.compile(rf"\.?(.+{re.escape(SUFFIX)})(\.previous|\.[0-9]+)?")
    matches = [(name, pattern.fullmatch(name)) for name in _names(folder)]
    names = {found[1] for name, found in matches if found and (name[0] != ".") == (found[2] != ".previous")}
    files = [candidate for name in sorted(names) for candidate in kept(folder / name)]
    return sorted(files, key=lambda candidate: candidate.age, reverse=True)


def sequences(folder: Path) -> set[int]:
    """Return the numbers of the checkpoints of a folder."""
    return {found.record.sequence for found in find(folder) if found.record is not None}


def folders(root: Path) -> list[Path]:
    """Return where checkpoints may be in a run directory, or in a folder that holds some itself."""
    places = [root / "artifacts" / "Checkpoint", root / "artifacts" / "pickle", root / "Checkpoint"]
    return [*(place for place in places if place.is_dir()), root]


def candidates(folder: Path, log_name: str | None) -> list[Candidate]:
    """Return the checkpoints of a folder that have this name, best first; with None all, newest first."""
    if log_name is None:
        return find(folder)
    look_anew(folder)
    paths = [folder / f"{log_name.removesuffix(SUFFIX)}{SUFFIX}", folder / f"{log_name}{SUFFIX}"]
    paths.append(folder / log_name)  # as MLXP 1.0 wrote it
    return next((kept(path) for path in paths if path.is_file() or older(path)), [])
