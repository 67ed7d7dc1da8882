"""One checkpoint's file: a pickle, which pickle.load reads, and a trailer, which it ignores.

    pickle
    "\\nmlxjobs checkpoint "  a record as JSON
    CRC-32 of the line above, length of the record, "MLXJCK2\\n"

The record says how far every metrics file had got, and the length and checksum of the pickle. So a
file that lost its end, or has another byte anywhere, is known before anything is unpickled.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlxjobs.errors import DamagedCheckpointError
from mlxjobs.logger.pickling import EarlyWriter, Pickled, checksum_in_blocks, dump

_MARKER = b"\nmlxjobs checkpoint "
_MAGIC = b"MLXJCK2\n"
_FOOTER = struct.Struct("<II8s")
_OLD_MAGIC = b"MLXJCKP\n"  # had no checksums
_OLD_FOOTER = struct.Struct("<I8s")
_STOP = b"."  # the last byte of every pickle
_LARGEST_TRAILER = 1 << 20  # some 10,000 metrics files


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
        monitor: the metric by which the best is kept, if one is.
        value: what it was.
        size: bytes of the pickle; set when it is written.
        checksum: of the pickle; set when it is written, None in files that have none.
        more: what a later version of this package has added.
    """

    sequence: int
    attempt: int
    log_name: str
    metrics: dict[str, int]
    rewinds: int = 0
    time: str = field(default_factory=_now)
    monitor: str | None = None
    value: float | None = None
    size: int = 0
    checksum: int | None = None
    schema: int = 2
    more: dict[str, Any] = field(default_factory=dict)


def write(obj: Any, path: Path, record: Record) -> None:
    """Write a checkpoint to a new file and flush it to the disk.

    Args:
        obj: anything that pickle or cloudpickle takes, or a `Pickled`, which is used up.
        path: the file.
        record: what to remember with it.

    Raises:
        InvalidArtifactError: the object cannot be pickled.
        OSError: the file could not be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        stream = EarlyWriter(descriptor)
        if isinstance(obj, Pickled):
            obj.move_to(stream)
        else:
            dump(obj, stream)
        stream.write(_trailer(replace(record, size=stream.size, checksum=stream.checksum)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trailer(record: Record) -> bytes:
    import json

    content = asdict(record)
    text = json.dumps({**content.pop("more"), **content}).encode()
    line = _MARKER + text
    return line + _FOOTER.pack(zlib.crc32(line), len(text), _MAGIC)


def read_record(path: Path) -> Record | None:
    """Return what a checkpoint remembers, without reading its object.

    Returns:
        None for a file that does not exist, that MLXP or the user wrote, or that lost its end.
    """
    try:
        return peek(path)
    except (OSError, DamagedCheckpointError):
        return None


def peek(path: Path) -> Record | None:
    """Return what a checkpoint remembers, without reading its object; None if somebody else wrote it.

    Raises:
        DamagedCheckpointError: it is not a whole pickle, or its record is damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return _read_trailer(file)


def verify(path: Path) -> Record | None:
    """Compare all of a checkpoint with its checksum; returns what it remembers, as `peek` does.

    Raises:
        DamagedCheckpointError: it is not what was written.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        record = _read_trailer(file)
        if record is not None and record.checksum is not None:
            _check(file.fileno(), record)
        return record


def _read_trailer(file: Any) -> Record | None:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _FOOTER.size))
    tail = file.read(_FOOTER.size)
    if tail.endswith(_MAGIC) and len(tail) == _FOOTER.size:
        crc, length, _ = _FOOTER.unpack(tail)
        end -= _FOOTER.size
    elif tail.endswith(_OLD_MAGIC) and len(tail) >= _OLD_FOOTER.size:
        crc, (length, _) = None, _OLD_FOOTER.unpack(tail[-_OLD_FOOTER.size :])
        end -= _OLD_FOOTER.size
    elif tail.endswith(_STOP) and not _holds_marker(file, end):
        return None
    else:
        raise DamagedCheckpointError("its end is missing")
    begin = end - length - len(_MARKER)
    if begin < 0:
        raise DamagedCheckpointError("its record is longer than the file")
    file.seek(begin)
    line = file.read(end - begin)
    if not line.startswith(_MARKER) or crc not in (None, zlib.crc32(line)):
        raise DamagedCheckpointError("its record is damaged")
    record = _parse(line.removeprefix(_MARKER))
    if record.size != begin:
        raise DamagedCheckpointError(f"it has {begin} bytes where {record.size} were written")
    return record


def _holds_marker(file: Any, end: int) -> bool:
    """Whether it is one of ours that was cut inside the trailer, behind a byte that could end a pickle."""
    file.seek(max(0, end - _LARGEST_TRAILER))
    return _MARKER in file.read(_LARGEST_TRAILER)


def _parse(text: bytes) -> Record:
    import json

    try:
        content = json.loads(text)
        known = {entry.name for entry in fields(Record)} - {"more"}
        more = {key: value for key, value in content.items() if key not in known}
        return Record(**{key: content[key] for key in known & content.keys()}, more=more)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its record cannot be read") from error


def read_checkpoint(path: Path) -> tuple[Any, Record | None]:
    """Read a checkpoint's object and record; like `pickle.load`, this runs what the file says.

    A damaged file runs nothing: all of it is read and compared with its checksum first.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: it is there but cannot be read.
    """
    import pickle

    try:
        with open(path, "rb") as file:
            record = _read_trailer(file)
            if record is not None and record.checksum is not None:
                _check(file.fileno(), record)
            file.seek(0)
            return _unpickle(pickle.load, file, record), record
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read: {error}") from error.__cause__
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(f"the checkpoint {path} cannot be read: {error}") from error


def _check(descriptor: int, record: Record) -> None:
    if checksum_in_blocks(descriptor, record.size) != record.checksum:
        raise DamagedCheckpointError("its bytes are not those that were written")


def _unpickle(read: Callable[[Any], Any], file: Any, record: Record | None) -> Any:
    try:
        return read(file)
    except Exception as error:  # damaged bytes raise anything, MemoryError included
        whole = "" if record is None or record.checksum is None else "its bytes are right, but "
        raise DamagedCheckpointError(f"{whole}{type(error).__name__}: {error}") from error
