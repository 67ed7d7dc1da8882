"""Checkpoints: pickles that are whole and on the disk, or not there at all.

    artifacts/Checkpoint/
      last_ckpt.pkl              a pickle, which pickle.load reads, and a trailer, which it ignores
      .last_ckpt.pkl.previous    the one before

The trailer is a marker, a record as JSON, the record's length and a magic number. It says how far
every metrics file had got, and how long the pickle is, so that a file that lost its end is known.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlxjobs.console import note
from mlxjobs.errors import CheckpointNotFoundError, DamagedCheckpointError, InvalidArtifactError
from mlxjobs.fence import Fence
from mlxjobs.files import sync_directory
from mlxjobs.paths import naming
from mlxjobs.pickling import EarlyWriter, dump

SUFFIX = ".pkl"

_MARKER = b"\nmlxjobs checkpoint "
_FOOTER = struct.Struct("<I8s")
_MAGIC = b"MLXJCKP\n"
_IDLE_S = 3600


def _now() -> str:
    from datetime import datetime

    return datetime.now().astimezone().isoformat()


@dataclass(frozen=True)
class Record:
    """What a checkpoint remembers beside its object.

    Attributes:
        sequence: 1, 2, 3 ... over all checkpoints of the run.
        attempt: the attempt that wrote it.
        log_name: its name.
        metrics: log name -> bytes of each metrics file at that moment.
        rewinds: how often the metrics had been rewound by then.
        time: when it was written, ISO 8601 with offset.
        size: bytes of the pickle; set when it is written.
        more: what a later version of this package has added.
    """

    sequence: int
    attempt: int
    log_name: str
    metrics: dict[str, int]
    rewinds: int = 0
    time: str = field(default_factory=_now)
    size: int = 0
    schema: int = 1
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """An object that was read, the file it came from, and the record in that file, if any."""

    checkpoint: Any
    path: Path
    record: Record | None


def previous(path: Path) -> Path:
    """Return where the checkpoint before `path` is kept."""
    return path.with_name(f".{path.name}.previous")


# --- writing


def save(obj: Any, path: Path, record: Record, *, keep: bool = True, fence: Fence | None = None) -> None:
    """Replace a checkpoint, atomically and durably; the one before is kept.

    Args:
        obj: anything that pickle or cloudpickle takes.
        path: the file; its folder is made.
        record: what to remember with it.
        keep: keep the file that is there as the previous one; False if it is known to be damaged.
        fence: of the attempt that saves.

    Raises:
        InvalidArtifactError: the object cannot be pickled; the old checkpoint is as it was.
        OSError: the file could not be written; the old checkpoint is as it was.
        Superseded: a newer attempt has begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    fence = fence or Fence()
    aside = fence.folder(path.parent) / f".{path.name}.{_writer()}.tmp"
    try:
        with fence.explaining(), naming(path):
            _write(obj, aside, record)
            if keep and _worth_keeping(path):
                _keep_previous(path, aside.parent)
            aside.replace(path)
    except InvalidArtifactError as error:
        aside.unlink(missing_ok=True)
        raise InvalidArtifactError(f"the checkpoint {path} was not written: {error}") from error
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _write(obj: Any, aside: Path, record: Record) -> None:
    import json

    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        stream = EarlyWriter(descriptor)
        dump(obj, stream)
        content = asdict(replace(record, size=stream.size))
        text = json.dumps({**content.pop("more"), **content}).encode()
        stream.write(_MARKER + text + _FOOTER.pack(len(text), _MAGIC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _worth_keeping(path: Path) -> bool:
    """False for a damaged file that would take the place of a good previous one."""
    if not path.exists():
        return False
    return read_record(path) is not None or read_record(previous(path)) is None


def _keep_previous(path: Path, folder: Path) -> None:
    """Let `path` have a second name, so that there is a good file at every moment."""
    link = folder / f".{path.name}.{_writer()}.link.tmp"
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        path.replace(previous(path))  # no hard links here
        return
    try:
        link.replace(previous(path))
    finally:
        # still there after a failure, and where both are one file already: rename(2) then does nothing
        link.unlink(missing_ok=True)


def _writer() -> str:
    return f"{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`, which may be as large as a checkpoint."""
    here = f".{path.name}.{os.uname().nodename}."
    for leftover in path.parent.glob(f".{_glob_escape(path.name)}.*.tmp"):
        with suppress(OSError, ValueError):
            if leftover.name.startswith(here):
                gone = not _alive(int(leftover.name.removeprefix(here).split(".")[0]))
            else:
                gone = time.time() - leftover.stat().st_mtime > _IDLE_S
            if gone:
                leftover.unlink()


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- reading


def read_record(path: Path) -> Record | None:
    """Return what a checkpoint remembers, without reading its object.

    Returns:
        None for a file that does not exist, that MLXP or the user wrote, or that lost its end.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _read_trailer(file)
    except (OSError, DamagedCheckpointError):
        return None


def _read_trailer(file: Any) -> Record | None:
    """None if there is no trailer; DamagedCheckpointError if it does not belong to the file before it."""
    import json

    end = file.seek(0, os.SEEK_END) - _FOOTER.size
    if end < 0:
        return None
    file.seek(end)
    length, magic = _FOOTER.unpack(file.read(_FOOTER.size))
    if magic != _MAGIC:
        return None
    begin = end - length - len(_MARKER)
    if begin < 0:
        raise DamagedCheckpointError("its record is longer than the file")
    file.seek(begin)
    trailer = file.read(end - begin)
    try:
        content = json.loads(trailer.removeprefix(_MARKER))
        known = {entry.name for entry in fields(Record)} - {"more"}
        more = {key: value for key, value in content.items() if key not in known}
        record = Record(**{key: content[key] for key in known & content.keys()}, more=more)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its record cannot be read") from error
    if record.size != begin or not trailer.startswith(_MARKER):
        raise DamagedCheckpointError(f"it has {begin} bytes where {record.size} were written")
    return record


def load(path: Path) -> Any:
    """Read a checkpoint's object; like `pickle.load`, this runs what the file says.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: it is there but cannot be read.
    """
    return _load(path).checkpoint


def _load(path: Path) -> Loaded:
    import pickle

    try:
        with open(path, "rb") as file:
            record = _read_trailer(file)
            file.seek(0)
            checkpoint = _unpickle(pickle.load, file)
            rest = file.read(len(_MARKER)) if record is None else b""
        if rest and _MARKER.startswith(rest):
            raise DamagedCheckpointError("its record was cut off")
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read: {error}") from error.__cause__
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
    return Loaded(checkpoint, path, record)


def _unpickle(read: Callable[[Any], Any], file: Any) -> Any:
    try:
        return read(file)
    except Exception as error:  # damaged bytes raise anything, MemoryError included
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error


def load_newest(path: Path, *, stacklevel: int = 1) -> Loaded:
    """Read a checkpoint, or with a warning the one before if it is damaged.

    Args:
        path: the checkpoint.
        stacklevel: whose line the warning shows; 1 is the caller of this function.

    Raises:
        CheckpointNotFoundError: there is neither.
        DamagedCheckpointError: none of them can be read.
    """
    problem: Exception | None = None
    for candidate in (path, previous(path)):
        try:
            loaded = _load(candidate)
        except FileNotFoundError:
            continue
        except DamagedCheckpointError as error:
            problem = problem or error
            continue
        if candidate != path:
            reason = problem or f"the checkpoint {path} is missing"
            message = f"{reason}; going on from the one before it, {candidate}"
            note(message)  # warnings may be switched off
            warnings.warn(message, stacklevel=stacklevel + 1)
        return loaded
    if problem is None:
        raise CheckpointNotFoundError(f"there is no checkpoint {path}")
    raise DamagedCheckpointError(
        f"{problem}; no earlier one can be read either. Remove {path} to start over"
    ) from problem


def find(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first: by sequence, then those without a record by date."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    visible = {name for name in names if name.endswith(SUFFIX) and not name.startswith(".")}
    kept = {name[1:].removesuffix(".previous") for name in names if name.endswith(f"{SUFFIX}.previous")}
    return sorted((folder / name for name in visible | kept), key=_age, reverse=True)


def _age(path: Path) -> tuple[int, float]:
    records = [record for record in map(read_record, (path, previous(path))) if record is not None]
    if records:
        return max(record.sequence for record in records), 0.0
    existing = path if path.exists() else previous(path)
    return 0, existing.stat().st_mtime


def highest_sequence(folder: Path) -> int:
    """Return the sequence number of the newest checkpoint of a folder, 0 if none has one."""
    return max((_age(path)[0] for path in find(folder)), default=0)


def folders(root: Path) -> list[Path]:
    """Return where checkpoints may be in a run directory, or in a folder that holds some itself."""
    places = [root / "artifacts" / "Checkpoint", root / "artifacts" / "pickle", root / "Checkpoint"]
    return [*(place for place in places if place.is_dir()), root]


def candidates(folder: Path, log_name: str | None) -> list[Path]:
    """Return the checkpoints of a folder that have this name, best first; with None all, newest first."""
    if log_name is None:
        return find(folder)
    paths = [folder / f"{log_name.removesuffix(SUFFIX)}{SUFFIX}", folder / f"{log_name}{SUFFIX}"]
    paths.append(folder / log_name)  # as MLXP 1.0 wrote it
    return [path for path in paths if path.is_file() or previous(path).is_file()]
