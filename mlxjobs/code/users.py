"""Who still needs a snapshot and its commits: marks beside the one, references to the others.

Each launch leaves a mark beside the snapshot, which names the log directory of its runs. So whoever
removes snapshots knows whom to ask, in other projects and of other users too. Removing one and launching
from it at the same moment cannot both succeed: a launch leaves its mark and looks afterwards whether the
snapshot is still there, who removes renames it first and looks afterwards for new marks.

References keep commits of our own from `git gc`: of a working tree, and of its submodules. The commit W
that a snapshot is made from is kept by `refs/mlxjobs/W`; one of ours in a submodule by
`refs/mlxjobs/W-<its hash>` in the submodule's own repository. So whoever forgets W drops all of them, and
need not ask which other commits have the same state of the submodule. A launch leaves its mark and looks
afterwards whether the references are there; who drops them looks afterwards for new marks, and puts them
back.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import Commit, show
from mlxjobs.code.submodules import find_there
from mlxjobs.errors import SnapshotError
from mlxjobs.system.files import replace_file

_SETTINGS = ("-c", "core.logAllRefUpdates=false", "-c", "core.filesRefLockTimeout=10000")


# -- marks ---------------------------------------------------------------------------------------


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


# -- references ----------------------------------------------------------------------------------


def keep_commits(whole: str, own: Iterable[Commit]) -> None:
    """Write those references that are not there.

    Args:
        whole: the hash of the commit that a snapshot is made from.
        own: the commits of ours that it consists of: itself, and those in submodules.

    Raises:
        SnapshotError: one cannot be written, or git has collected its commit.
    """
    for commit in own:
        if not _is_kept(whole, commit):
            name = _reference(whole, commit)
            result = git.run(commit.top, *_SETTINGS, "update-ref", name, commit.hash)
            if result.returncode:
                raise SnapshotError(_explain(commit, git.quote(result)))


def find_kept_commits(whole: Commit) -> list[Commit]:
    """Return which of a commit and its submodules' have a reference, as far as they are on this machine."""
    return [commit for commit in find_there(whole) if _is_kept(whole.hash, commit)]


def drop_commits(whole: str, own: Sequence[Commit]) -> None:
    """Remove the references, that of the whole last: without it the others are not found again."""
    for commit in reversed(own):
        git.run(commit.top, *_SETTINGS, "update-ref", "-d", _reference(whole, commit))


def _reference(whole: str, commit: Commit) -> str:
    return f"refs/mlxjobs/{whole}" + ("" if commit.hash == whole else f"-{commit.hash}")


def _is_kept(whole: str, commit: Commit) -> bool:
    words = ("rev-parse", "--quiet", "--verify", _reference(whole, commit))
    return not git.run(commit.top, *words).returncode


def _explain(commit: Commit, said: str) -> str:
    top = show(commit.top)
    if "nonexistent object" in said:
        return (
            f"The files of {top} were taken, and `git gc` has removed them from its repository meanwhile.\n"
            f"Launch again.\n{said}"
        )
    return (
        f"The repository of {top} cannot be written, so it cannot keep the files as they are.\n"
        "Get the right, and the space, to write there, launch from a clone of your own, or set\n"
        f"version_manager.include=commit.\n{said}"
    )
