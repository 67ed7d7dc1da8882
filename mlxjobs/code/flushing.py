"""Whether a new snapshot is on the disk, so that a power failure cannot empty its files.

To write 200 MB to a disk takes as long as to make them, and a run on this machine need not wait for that: it
would die with the machine. So a snapshot gets its name at once, and `.<hash>.unflushed` beside it says in
which life (boot) of which machine it was made, until all is on the disk. What is found with a mark of another
life is compared with the commit before it is used. A job that is handed in waits for the disk: it may start
after a power failure, when nobody compares.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from mlxjobs.system.files import replace_file, sync_file_system

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# One call for the whole file system: 5,000 single fsync take minutes on a spinning disk. It goes on when the
# launch has ended, or is killed.
_FLUSH = '(sync -f "$0" && rm -f "$1") </dev/null >/dev/null 2>&1 &'


def _mark(root: Path) -> Path:
    return root.with_name(f".{root.name}.unflushed")


def _life() -> str:
    boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return f"{os.uname().nodename} {boot_id}"


def begin(root: Path) -> None:
    """Note that a snapshot is not yet on the disk, before it gets its name."""
    # Not durable itself: file systems keep the order in which names come to be, and an empty one is a doubt.
    replace_file(_mark(root), _life(), durable=False)


def finish_later(root: Path) -> None:
    """Have it written to the disk in the background, if it is not there yet."""
    if not _mark(root).exists():
        return
    argv = ["sh", "-c", _FLUSH, str(root), str(_mark(root))]
    with suppress(OSError):  # no such program: it stays in doubt
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True)


def finish(root: Path) -> None:
    """Wait until it is on the disk."""
    if _mark(root).exists():
        with suppress(OSError):  # as on a file system that cannot: it stays in doubt
            sync_file_system(root)
            _mark(root).unlink(missing_ok=True)


def doubt(root: Path) -> None:
    """Have a snapshot compared with its commit before it is used again."""
    replace_file(_mark(root), "", durable=False)


def is_doubtful(root: Path) -> bool:
    """Tell whether a power failure, say, may have taken files of a snapshot."""
    try:
        return _mark(root).read_text(errors="replace") != _life()
    except FileNotFoundError:
        return False
