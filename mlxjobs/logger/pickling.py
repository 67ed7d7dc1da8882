"""Pickle what pickle can take, else what cloudpickle can take, without a second copy of all in memory.

The bytes are summed on their way: the checksum of a file is the CRC-32 of the CRC-32s of its blocks,
so that a file can be checked by several threads at once.
"""

from __future__ import annotations

import copyreg
import os
import sys
import zlib
from collections import ChainMap, deque
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from operator import methodcaller
from typing import Any, Protocol

from mlxjobs.errors import InvalidArtifactError

BLOCK = 8 << 20  # bytes

_PIECE = 1 << 20

_SYNC_FILE_RANGE_WRITE = 2
_THREADS = 4  # more do not read faster from most disks


class _RewindableFile(Protocol):
    """A binary file that can be begun again."""

    def write(self, data: Any, /) -> Any:
        """Write all bytes of `data`."""

    def seek(self, position: int, /) -> Any:
        """Go on at this position."""

    def truncate(self) -> Any:
        """Cut off what follows the position."""


def dump(obj: Any, file: _RewindableFile) -> None:
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
        _dump(pickle.Pickler, obj, file)
        return
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a __reduce__ raises, cloudpickle may do without
        first = error
    import cloudpickle

    file.seek(0)
    file.truncate()
    try:
        _dump(cloudpickle.Pickler, obj, file)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise InvalidArtifactError(
            f"an object of type {type(obj).__name__} cannot be pickled: {first}; with cloudpickle: {error}"
        ) from error


def _dump(pickler: Any, obj: Any, file: _RewindableFile) -> None:
    if hasattr(sys.modules.get("torch.storage"), "UntypedStorage"):  # since torch 2.0
        pickler = _streaming(pickler)
    pickler(file, protocol=5).dump(obj)


def _buffer(data: Any) -> memoryview:
    from pickle import PickleBuffer

    return data.raw() if isinstance(data, PickleBuffer) else memoryview(data)


class Pickled:
    """An object as it was at one moment: its pickle in memory, as large as the object.

    Args:
        obj: anything that `dump` takes.

    Raises:
        InvalidArtifactError: it cannot be pickled.
    """

    def __init__(self, obj: Any) -> None:
        self._pieces: deque[bytes] = deque()
        dump(obj, self)

    def write(self, data: Any, /) -> None:
        """Add a copy of `data`."""
        self._pieces.append(bytes(_buffer(data)))

    def seek(self, position: int, /) -> None:
        """Begin again."""
        self._pieces.clear()

    def truncate(self) -> None:
        """Do nothing: `seek` has."""

    def move_to(self, file: _RewindableFile) -> None:
        """Write the pickle to a file; the memory is given back on the way."""
        while self._pieces:
            file.write(self._pieces.popleft())


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
        self._descriptor = descriptor
        self._start_writing = _sync_file_range()
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        self._block = self._blocks = 0  # CRC-32 of the block that is being written, and of those before

    @property
    def checksum(self) -> int:
        """The checksum of what was written."""
        return _add_block(self._blocks, self._block) if self.size % BLOCK else self._blocks

    def write(self, data: Any, /) -> int:
        """Write all bytes of an object that has a buffer; returns how many."""
        view = _buffer(data)
        total = view.nbytes
        while view:
            # a copy, as other threads and processes may change the task's memory between write and checksum
            piece = bytes(view[: min(_PIECE, BLOCK - self.size % BLOCK)])
            written = os.write(self._descriptor, piece)
            self._block = zlib.crc32(piece[:written], self._block)
            view = view[written:]
            self.size += written
            if self.size % BLOCK == 0:
                self._start_writing(self._descriptor, self.size - BLOCK, BLOCK)
                self._blocks, self._block = _add_block(self._blocks, self._block), 0
        return total

    def seek(self, position: int, /) -> int:
        """Begin again; `position` is 0."""
        self._begin()
        return os.lseek(self._descriptor, position, os.SEEK_SET)

    def truncate(self) -> int:
        """Cut off what follows the position."""
        os.ftruncate(self._descriptor, self.size)
        return self.size


def _add_block(blocks: int, block: int) -> int:
    return zlib.crc32(block.to_bytes(4, "little"), blocks)


def checksum_in_blocks(descriptor: int, size: int) -> int:
    """Return the checksum of the first `size` bytes of a file, read in blocks.

    Raises:
        OSError: it cannot be read.
    """
    begins = range(0, size, BLOCK)
    threads = min(_THREADS, len(begins), len(os.sched_getaffinity(0)))
    if threads > 1:
        try:
            return _summed_by(threads, descriptor, begins, size)
        except RuntimeError:  # the user, or the job, has as many threads as it may
            pass
    return _sum([_blocks(descriptor, begins, size)])


def _summed_by(threads: int, descriptor: int, begins: range, size: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        parts = [begins[first::threads] for first in range(threads)]
        return _sum(list(pool.map(lambda part: _blocks(descriptor, part, size), parts)))


def _sum(parts: list[list[int]]) -> int:
    """The CRC-32 of the CRC-32s of blocks, of which each part has every so many."""
    total = 0
    for index in range(sum(map(len, parts))):
        total = _add_block(total, parts[index % len(parts)][index // len(parts)])
    return total


def _blocks(descriptor: int, begins: range, size: int) -> list[int]:
    """The CRC-32s of the blocks that begin there."""
    view = memoryview(bytearray(min(BLOCK, size)))
    found = []
    for begin in begins:
        crc, position, end = 0, begin, min(begin + BLOCK, size)
        while position < end and (count := os.preadv(descriptor, [view[: end - position]], position)):
            crc = zlib.crc32(view[:count], crc)
            position += count
        found.append(crc)
    return found


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


# -- torch's tensors, as they lie in memory: torch itself makes two copies of each on the way ----------------


@lru_cache(maxsize=4)
def _streaming(pickler: type[Any]) -> type[Any]:
    """Return a subclass of a pickler that does not copy tensors in the memory of the CPU.

    Args:
        pickler: that of pickle or cloudpickle.
    """
    storage = sys.modules["torch.storage"]
    own: dict[type[Any], Any] = {storage.TypedStorage: _typed, storage.UntypedStorage: _untyped}
    table = getattr(pickler, "dispatch_table", None)
    known: Any = table if isinstance(table, Mapping) else copyreg.dispatch_table
    return type("Streaming", (pickler,), {"dispatch_table": ChainMap(own, known)})


def _typed(storage: Any) -> Any:
    return _reduce(storage, storage._untyped_storage, storage.dtype)


def _untyped(storage: Any) -> Any:
    # torch's tensors of newer types (float8, uint16) hold one, and want a typed one back
    return _reduce(storage, storage, sys.modules["torch"].uint8)


def _reduce(storage: Any, untyped: Any, dtype: Any) -> Any:
    if untyped.device.type != "cpu":
        return storage.__reduce__()
    wrapped = _Object(type(untyped), 0)
    if untyped.nbytes():
        # as a tensor that is cloned: a storage over the memory of pickle could not be resized
        tensor = _Object(methodcaller("clone"), _Object(*_bytes(untyped)))
        wrapped = _Object(methodcaller("untyped_storage"), tensor)
    typed = sys.modules["torch.storage"].TypedStorage
    return partial(typed, wrap_storage=wrapped, dtype=dtype, _internal=True), ()


class _Object:
    """Becomes what a function returns for one argument."""

    def __init__(self, function: Any, argument: Any) -> None:
        self._state = function, (argument,)

    def __reduce__(self) -> Any:
        return self._state


def _bytes(storage: Any) -> tuple[Any, Any]:
    """What makes a tensor of bytes from those of a storage; pickle writes them from where they are."""
    import ctypes
    from pickle import PickleBuffer

    torch = sys.modules["torch"]
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return partial(torch.frombuffer, dtype=torch.uint8), PickleBuffer(memory)
