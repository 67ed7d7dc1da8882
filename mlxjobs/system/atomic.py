"""Requests that a file system does as a whole or not at all, and what to think of its answers.

Several nodes that see one file system through their caches agree on one thing only: what the server did.
So what decides is a request (link, mkdir, rename, open with O_EXCL), never a look. And an answer may be
wrong: if the first one was lost, the client asks again, and the server finds the name taken, or gone, by
the request itself (link(2) and rename(2), BUGS). So "exists" and "is missing" are believed only after a
look whether the thing is done.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

# what a file system answers that has no hard links: CIFS, some Lustre and BeeGFS, many in user space
NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))
# that a file or folder is not what it was when this node found it; the next one who asks by its name knows
GONE = frozenset((errno.ENOENT, errno.ESTALE, errno.ENOTDIR))

_TRIES = 20
_PAUSE_S = 0.05
_COPIED_AT_ONCE = 8 << 20  # bytes

_Content = TypeVar("_Content")


def look_anew(folder: str | Path) -> None:
    """Let this node forget what it remembers of the names in a folder: opening one asks the server (nfs(5)).

    Names that changed are then looked up again. Nothing is raised: whoever looks next is told what is wrong.
    """
    with suppress(OSError):
        os.scandir(folder).close()


def read_again(read: Callable[[], _Content]) -> _Content:
    """Return what a function reads from a file by its name, though another node replaces the file meanwhile.

    The old one is then gone for who has it open on NFS (ESTALE), and its name is that of the new one.
    """
    for _ in range(_TRIES):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


def link(source: Path, target: Path) -> bool:
    """Give a file a second name, unless another file has it.

    Returns:
        Whether `target` is now a name of this file.

    Raises:
        OSError: neither; its errno is one of `NO_LINKS` where there are no hard links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return _same(source, target)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, which nobody else gives, or a copy where there are no hard links.

    Raises:
        OSError: neither could be made.
    """
    try:
        link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with open(source, "rb") as old, open(target, "wb") as new:
            shutil.copyfileobj(old, new, _COPIED_AT_ONCE)
            new.flush()
            os.fsync(new.fileno())


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder, in the place of a file or an empty folder if there is one.

    Raises:
        OSError: it has its old name.
    """
    before = os.lstat(source)
    try:
        source.replace(target)
    except FileNotFoundError:
        if not _is(target, before):
            raise


def _same(one: Path, other: Path) -> bool:
    try:
        return _is(other, os.lstat(one))
    except OSError:
        return False


def _is(path: Path, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), before)
    except OSError:
        return False


def destroy(folder: Path) -> bool:
    """Remove a folder for good: until then, whoever has it open can put files into it.

    Returns:
        Whether it is gone; files that this node has open may keep it.
    """
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno in GONE:
                return True
            time.sleep(_PAUSE_S)
    return False


def create_by_folder(content: Path, target: Path) -> bool:
    """Give a file the name `target`, once for all, where there are no hard links.

    A folder that holds the file takes the name's place by a rename, which fails if another one has it; then
    anybody may give the file its name. The folder stays, so that no later one can take the place.

    Args:
        content: the file, whole and on the disk; it is gone afterwards.
        target: its name; of this kind everybody has to make it this way.

    Returns:
        Whether this file has the name.

    Raises:
        OSError: it could not be done.
    """
    place = target.with_name(f".{target.name}.place")
    folder = content.with_name(f"{content.name}.d")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        move(content, folder / target.name)
        (folder / "taken").touch()  # no folder takes the place of one that holds something: rename(2)
        try:
            move(folder, place)
            won = True
        except OSError:
            if not place.is_dir():
                raise
            won = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # also for who took the place and was killed; a file that is not there any more has its name
    with suppress(FileNotFoundError):
        move(place / target.name, target)
    return won
