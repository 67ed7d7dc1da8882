"""Whose files these are: what another user may have put there is never run as ours.

The owner of a file decides, as nobody but root can make files that belong to somebody else. Root's count as
ours, and those of users that `$MLXJOBS_TRUST` names: `MLXJOBS_TRUST=bob,1003`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mlxjobs.errors import RunError

_VARIABLE = "MLXJOBS_TRUST"


def stranger(*paths: Path) -> str | None:
    """Name the first of these files that is another user's, and what to do; None if none is.

    Args:
        paths: files and folders; those that are missing are nobody's. A link is also what it leads to.
    """
    ours = {0, os.geteuid(), *_trusted()}
    for path in paths:
        for owner in _owners(path):
            if owner not in ours:
                who = _name(owner)
                return (
                    f"{path} belongs to {who}; if you trust {who}, copy it (cp -r) or set {_VARIABLE}={who}"
                )
    return None


def own_folder(path: Path) -> Path:
    """Return the name of a folder in which nobody else exchanges files: `path`, if that is ours or free.

    In a log directory that several users share it may be another user's: then each has one of their own.

    Raises:
        RunError: that belongs to another user too.
    """
    if stranger(path) is None:
        return path
    own = path.with_name(f"{path.name}-{os.geteuid()}")
    whose = stranger(own)
    if whose is not None:
        raise RunError(f"a folder that should be yours: {whose}")
    return own


def _owners(path: Path) -> Iterator[int]:
    try:
        found = path.lstat()
        yield found.st_uid
        if stat.S_ISLNK(found.st_mode):
            yield path.stat().st_uid
    except OSError:  # it cannot be read then, either
        return


def _trusted() -> Iterator[int]:
    import pwd

    for word in os.environ.get(_VARIABLE, "").split(","):
        if word.strip().isdecimal():
            yield int(word)
        elif word.strip():
            try:
                yield pwd.getpwnam(word.strip()).pw_uid
            except KeyError:
                continue


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
