"""Where a task's output goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxjobs.record.run import Run


def divert(run: Run, rank: int) -> None:
    """Let what this process writes from now on go to files of its own, C code's output too."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is not None:  # as with `>&-`
            stream.flush()
        with run.output_of(rank, descriptor).open("ab") as file:
            os.dup2(file.fileno(), descriptor)


class _Tee:
    """Writes to a stream and, while there is one, to a file: handlers of Python's logging outlive a run."""

    stream: Any = None
    copy: Any = None

    def write(self, text: str) -> int:
        if self.copy is not None:
            self.copy.write(text)
        return len(text) if self.stream is None else int(self.stream.write(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.copy is not None:
            self.copy.flush()
        if self.stream is not None:
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# of all runs of this process, one after the other: what holds one since the first writes for the next too
_OUT, _ERR = _Tee(), _Tee()


@contextmanager
def tee(run: Run) -> Iterator[None]:
    """Copy what the task prints into the run directory."""
    before = sys.stdout, sys.stderr
    with _open(run.stdout) as _OUT.copy, _open(run.stderr) as _ERR.copy:
        _OUT.stream, _ERR.stream = before
        sys.stdout, sys.stderr = _OUT, _ERR
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            _OUT.copy = _ERR.copy = None


def _open(path: Path) -> Any:
    # as stderr does: what a terminal takes in some way may not end the task
    return path.open("a", buffering=1, errors="backslashreplace")
