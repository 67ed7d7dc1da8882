"""Names that files may have, and errors that say which file they speak of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxjobs.errors import MLXJobsError


def is_file_name(name: object) -> bool:
    """Tell whether `name` is the plain name of a file that is not hidden."""
    if not isinstance(name, str) or not name or name.startswith("."):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return not any(separator in name for separator in "/\\\0")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every OSError of the block name a file; calls on descriptors raise it without one.

    Raises:
        OSError: what the block raised, with `path` if it had no file name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or isinstance(error, MLXJobsError):
            raise
        if error.errno is None:  # numpy's
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
