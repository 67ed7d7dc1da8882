"""Where it goes what a task prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlxjobs.store import Run


def divert(run: Run, rank: int) -> None:
    """Let what this process writes from now on go to files of its own, C code's output too."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        with run.output_of(rank, descriptor).open("ab") as file:
            os.dup2(file.fileno(), descriptor)


class _Tee:
    """Writes to a stream and to a file."""

    def __init__(self, stream: Any, copy: Any) -> None:
        self._stream = stream
        self._copy = copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        return int(self._stream.write(text))

    def flush(self) -> None:
        self._copy.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tee(run: Run) -> Iterator[None]:
    """Copy what the task prints into the run directory."""
    before = sys.stdout, sys.stderr
    with run.stdout.open("a", buffering=1) as out, run.stderr.open("a", buffering=1) as err:
        sys.stdout, sys.stderr = _Tee(before[0], out), _Tee(before[1], err)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
