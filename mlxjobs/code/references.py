"""The references that keep commits of our own from `git gc`: of a working tree, and of its submodules.

The commit W that a snapshot is made from is kept by `refs/mlxjobs/W`; one of ours in a submodule by
`refs/mlxjobs/W-<its hash>` in the submodule's own repository. So whoever forgets W drops all of them, and
need not ask which other commits have the same state of the submodule.

A launch and a removal at the same moment see each other as they do with snapshots (`marks`): the launch
leaves its mark and looks afterwards whether the references are there; who drops them looks afterwards for
new marks, and puts them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlxjobs.code import git
from mlxjobs.code.git import Commit, show
from mlxjobs.code.submodules import find_there
from mlxjobs.errors import SnapshotError

_SETTINGS = ("-c", "core.logAllRefUpdates=false", "-c", "core.filesRefLockTimeout=10000")


def keep(whole: str, own: Iterable[Commit]) -> None:
    """Write those references that are not there.

    Args:
        whole: the hash of the commit that a snapshot is made from.
        own: the commits of ours that it consists of: itself, and those in submodules.

    Raises:
        SnapshotError: one cannot be written, or git has collected its commit.
    """
    for commit in own:
        if not _is_kept(whole, commit):
            name = _name(whole, commit)
            result = git.run(commit.top, *_SETTINGS, "update-ref", name, commit.hash)
            if result.returncode:
                raise SnapshotError(_explain(commit, git.quote(result)))


def find_kept(whole: Commit) -> list[Commit]:
    """Return which of a commit and its submodules' have a reference, as far as they are on this machine."""
    return [commit for commit in find_there(whole) if _is_kept(whole.hash, commit)]


def drop(whole: str, own: Sequence[Commit]) -> None:
    """Remove the references, that of the whole last: without it the others are not found again."""
    for commit in reversed(own):
        git.run(commit.top, *_SETTINGS, "update-ref", "-d", _name(whole, commit))


def _name(whole: str, commit: Commit) -> str:
    return f"refs/mlxjobs/{whole}" + ("" if commit.hash == whole else f"-{commit.hash}")


def _is_kept(whole: str, commit: Commit) -> bool:
    words = ("rev-parse", "--quiet", "--verify", _name(whole, commit))
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
