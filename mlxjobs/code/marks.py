"""Who uses a snapshot: each launch leaves a mark beside it, which names the log directory of its runs.

So whoever removes snapshots knows whom to ask, in other projects and of other users too. Removing one and
launching from it at the same moment cannot both succeed: a launch leaves its mark and looks afterwards
whether the snapshot is still there, who removes renames it first and looks afterwards for new marks.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.system.files import replace_file


@dataclass(frozen=True)
class Mark:
    """What a launch noted.

    Attributes:
        path: the file.
        time: when the last launch was, in seconds since 1970.
        owner: the user's number.
        logs: the log directory; None: the mark cannot be read.
        repo: the repository of the code.
        host: the machine of the last launch, whose disks may have what others have not.
    """

    path: Path
    time: float
    owner: int
    logs: Path | None
    repo: Path
    host: str


def leave_mark(root: Path, logs: Path, repo: Path) -> None:
    """Note that runs of a log directory use a snapshot, now.

    Raises:
        OSError: it cannot be noted.
    """
    who = hashlib.sha256(os.fsencode(f"{os.geteuid()} {logs.absolute()}")).hexdigest()[:16]
    text = json.dumps({"logs": str(logs.absolute()), "repo": str(repo), "host": os.uname().nodename})
    # without it the snapshot is kept: so it need not survive a power failure
    replace_file(root.with_name(f".{root.name}.log-{who}"), text, durable=False)


def marks_of(root: Path) -> list[Mark]:
    """Return the marks beside a snapshot, which itself may be gone."""
    found = []
    for path in sorted(root.parent.glob(f".{root.name}.log-*")):
        try:
            about = path.stat()
        except FileNotFoundError:  # removed meanwhile
            continue
        try:
            # others may leave what they like: a pipe, say, that nobody ever writes to
            said = json.loads(path.read_bytes() if stat.S_ISREG(about.st_mode) else b"")
            place, repo, host = Path(said["logs"]), Path(said["repo"]), str(said["host"])
            logs = place if place.is_absolute() else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            logs, repo, host = None, Path(), ""
        found.append(Mark(path, about.st_mtime, about.st_uid, logs, repo, host))
    return found
