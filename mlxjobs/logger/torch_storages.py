"""Pickle torch's tensors as they lie in memory; torch itself makes two copies of each on the way.

What is written is read by plain `pickle.load`, with nothing but torch.
"""

from __future__ import annotations

import copyreg
import sys
from collections import ChainMap
from collections.abc import Mapping
from functools import lru_cache, partial
from operator import methodcaller
from typing import Any


@lru_cache(maxsize=4)
def streaming(pickler: type[Any]) -> type[Any]:
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
