"""The names of files, the errors that name them, and the only way to write what others may be reading.

A reader sees the old file or the new one, never half of one, also after a power failure: the new
content is written aside in the same folder, flushed to the disk, and renamed (rename(2) is atomic
within a file system, NFS included).
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from mlxjobs.errors import MLXJobsError
from mlxjobs.system import atomic

# also without a thread, and of `checkpoints` with a word
_ASIDE = re.compile(r"\..+\.\d+(\.\d+)?(\.[a-z]+)?\.tmp")
_OCTAL = re.compile(r"\\([0-7]{3})")
_SSHFS_S = 21.0  # its dcache_timeout, and one more
_IDLE_S = 3600  # after which a writer on another machine is believed to be gone

_flushed_later = ContextVar("flushed_later", default=False)


@contextmanager
def flushed_together(folder: Path) -> Iterator[None]:
    """Flush all that is written inside the block at its end, by one call for the whole file system.

    For many files that nobody relies on before all of them are there: flushing each costs a
    thousand runs 14 s, all at once 0.1 s.

    Args:
        folder: on the file system that is written to; it exists when the block is left.
    """
    token = _flushed_later.set(True)
    try:
        yield
    finally:
        _flushed_later.reset(token)
    sync_file_system(folder)


def sync_file_system(folder: Path) -> None:
    """Wait until all that was written to the folder's file system is on the disk."""
    import ctypes  # Python has no syncfs(2), and sync(2) waits for the other file systems too

    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(fd)


def current_umask() -> int:
    """Return what new files are denied; for a moment, threads beside this one make private ones."""
    umask = os.umask(0o077)  # there is no way to ask without setting it
    os.umask(umask)
    return umask


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power failure."""
    if _flushed_later.get():
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # fsync(2) names no file
        raise OSError(error.errno, error.strerror, str(directory)) from error
    finally:
        os.close(fd)


def aside_of(path: Path, folder: Path | None = None, what: str = "") -> Path:
    """Return where this thread makes what is then renamed to `path`; `is_aside` knows such names.

    Args:
        path: the name it is to have.
        folder: where to make it, on the same file system; by default the folder of `path`.
        what: a word in small letters, where a thread makes several for one `path`.
    """
    writer = f"{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}"
    return (folder or path.parent) / f".{path.name}.{writer}{what and f'.{what}'}.tmp"


def is_aside(name: str) -> bool:
    """Whether a file has a name of `aside_of`, or one that an older version gave."""
    return _ASIDE.fullmatch(name) is not None


def remove_asides(path: Path) -> None:
    """Remove what killed processes left when they made `path`, as it may be large."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for aside in path.parent.iterdir():
            if aside.name.startswith(f".{path.name}.") and aside.name.endswith(".tmp"):
                with suppress(OSError, ValueError):
                    if _is_abandoned(aside, path):
                        aside.unlink()


def _is_abandoned(aside: Path, path: Path) -> bool:
    here = f".{path.name}.{os.uname().nodename}."
    if not aside.name.startswith(here):
        return time.time() - aside.stat().st_mtime > _IDLE_S
    try:
        os.kill(int(aside.name.removeprefix(here).split(".")[0]), 0)
    except ProcessLookupError:
        return True
    return False


def _create_anew(path: Path, mode: int) -> int:
    """Open a new file: never one that somebody else has put there, nor what their link leads to."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, mode)
    except FileExistsError:  # what a process that was killed has left
        path.unlink(missing_ok=True)
        return os.open(path, flags, mode)


def _write_aside(
    path: Path, content: bytes, mode: int, *, durable: bool = True, folder: Path | None = None
) -> Path:
    """Write `content` to a new file beside `path`; nothing is left behind on failure."""
    aside = aside_of(path, folder)
    try:
        fd = _create_anew(aside, mode)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            if durable and not _flushed_later.get():
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):  # write(2) and fsync(2) name no file, open(2) one that nobody knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return aside


def replace_file(
    path: Path,
    content: bytes | str,
    *,
    mode: int = 0o666,
    durable: bool = True,
    sync_folder: bool = True,
    aside: Path | None = None,
) -> None:
    """Replace `path` by a file with this content, atomically.

    Args:
        path: the file; it may exist or not, its folder must.
        content: the new content; a string is encoded as UTF-8.
        mode: permission bits of the new file, before the user's umask.
        durable: flush it to the disk; what can be made again does not need that.
        sync_folder: flush the folder's entry too; what is followed by another file in the same
            folder, before anybody relies on it, does not need that.
        aside: the folder to write it in first, on the same file system; by default that of `path`.

    Raises:
        OSError: the file could not be written; the old one is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    new = _write_aside(path, data, mode, durable=durable, folder=aside)
    try:
        atomic.move(new, path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    if durable and sync_folder:
        sync_directory(path.parent)


def create_file(path: Path, content: bytes | str, *, mode: int = 0o666, no_links: Path | None = None) -> bool:
    """Create `path` with this content, whole and durable, unless it exists already.

    Of several processes that create the same file at once exactly one succeeds. link(2) is used
    because it fails when the target exists and, unlike O_EXCL followed by a write, never shows a
    file that is still empty; on NFS the server decides (open(2), O_EXCL).

    Args:
        path: the file; its folder exists.
        content: what it is to hold.
        mode: permission bits of the new file, before the user's umask.
        no_links: a file that says to all nodes that there are no hard links here; it is made when that is
            found. None: then a reader may see the new file before it is whole.

    Returns:
        True if this call created the file, False if it existed.

    Raises:
        OSError: the file could not be written.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = _write_aside(path, data, mode)
    try:
        created = _give_name(aside, path, no_links)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        aside.unlink(missing_ok=True)
    if created:
        sync_directory(path.parent)
    return created


def _give_name(aside: Path, path: Path, no_links: Path | None) -> bool:
    if no_links is None or not no_links.exists():
        try:
            return atomic.link(aside, path)
        except OSError as error:
            if error.errno not in atomic.NO_LINKS:
                raise
    if no_links is not None:
        no_links.touch()
        return atomic.create_by_folder(aside, path)
    try:
        with open(path, "xb") as file:
            file.write(aside.read_bytes())
    except FileExistsError:
        return False
    return True


def remembers_s(folder: Path) -> float:
    """Return for how long this node may have an old view of a folder though it asks anew, in seconds.

    Opening a file or a folder asks the server on NFS (nfs(5), close-to-open), and elsewhere; sshfs answers
    even that from what it remembers (sshfs(1), dcache_timeout).
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        path = os.path.realpath(folder)
    except OSError:
        return 0.0
    kinds: dict[str, str] = {}
    for fields in map(str.split, mounts):  # proc(5): the mount point is the fifth; the kind follows a dash
        kinds[_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])] = fields[fields.index("-") + 1]
    inside = [point for point in kinds if path == point or path.startswith(f"{point.rstrip('/')}/")]
    return _SSHFS_S if kinds[max(inside, key=len)] == "fuse.sshfs" else 0.0


def numbers_in(folder: str | Path) -> list[int]:
    """Return the numbers that entries of a folder have as their names, sorted; `007` is not a number.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


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
