"""Pickle what pickle can take, else what cloudpickle can take, without a second copy in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from mlxjobs.errors import InvalidArtifactError

_CHUNK = 8 << 20  # bytes
_SYNC_FILE_RANGE_WRITE = 2


class RewindableFile(Protocol):
    """A binary file that can be begun again."""

    def write(self, data: Any, /) -> Any:
        """Write all bytes of `data`."""

    def seek(self, position: int, /) -> Any:
        """Go on at this position."""

    def truncate(self) -> Any:
        """Cut off what follows the position."""


def dump(obj: Any, file: RewindableFile) -> None:
    """Pickle an object that may hold lambdas and local classes; `pickle.load` reads it.

    Args:
        obj: anything; what pickle cannot take is left to cloudpickle.
        file: an empty file; begun again if pickle fails half-way.

    Raises:
        InvalidArtifactError: neither can pickle it.
        OSError: `file` did not take it.
    """
    import pickle

    try:
        pickle.Pickler(file, protocol=5).dump(obj)
        return
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises, cloudpickle may do without
        first = error
    import cloudpickle

    file.seek(0)
    file.truncate()
    try:
        cloudpickle.Pickler(file, protocol=5).dump(obj)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise InvalidArtifactError(
            f"an object of type {type(obj).__name__} cannot be pickled: {first}; with cloudpickle: {error}"
        ) from error


class EarlyWriter:
    """A file whose bytes begin their way to the disk while more are pickled.

    Without it the disk is idle until fsync, which then waits for everything. Nothing is buffered
    here: pickle hands over large arrays as they are, and collects small objects itself.

    Args:
        descriptor: an open, empty file.

    Attributes:
        size: bytes written.
    """

    def __init__(self, descriptor: int) -> None:
        from pickle import PickleBuffer

        self._buffer_type = PickleBuffer
        self._descriptor = descriptor
        self._start_writing = _sync_file_range()
        self.size = 0
        self._started = 0

    def write(self, data: Any, /) -> int:
        """Write all bytes of an object that has a buffer; returns how many."""
        view = data.raw() if isinstance(data, self._buffer_type) else memoryview(data)
        total = view.nbytes
        while view:
            written = os.write(self._descriptor, view[:_CHUNK])
            view = view[written:]
            self.size += written
            if self.size - self._started >= _CHUNK:
                self._start_writing(self._descriptor, self._started, self.size - self._started)
                self._started = self.size
        return total

    def seek(self, position: int, /) -> int:
        """Go on writing at this position."""
        self.size = self._started = os.lseek(self._descriptor, position, os.SEEK_SET)
        return position

    def truncate(self) -> int:
        """Cut off what follows the position."""
        os.ftruncate(self._descriptor, self.size)
        return self.size


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[[int, int, int], None]:
    """The system call of Linux that starts writing a range to the disk, or nothing."""
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return lambda descriptor, begin, size: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def start(descriptor: int, begin: int, size: int) -> None:
        call(descriptor, begin, size, _SYNC_FILE_RANGE_WRITE)  # a hint: fsync says if the disk fails

    return start
