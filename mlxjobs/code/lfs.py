"""Files that git-lfs keeps: a snapshot has their contents, never the pointers that git stores for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import Commit, show, show_some
from mlxjobs.errors import SnapshotError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # git-lfs itself takes nothing longer for a pointer

# The user's configuration may say `--skip`, or leave files out. A file that git-lfs has not must be
# neither a failure that names only one of them, nor a wait for a network that a node may not have.
_OFFLINE = ("filter.lfs.required=false", "lfs.url=file:///nonexistent", "lfs.skipdownloaderrors=true",
            "lfs.fetchinclude=", "lfs.fetchexclude=")  # fmt: skip


def settings(commit: Commit) -> tuple[str, ...]:
    """Return the settings of git with which a checkout of the commit has real contents; () without LFS."""
    tree = git.read_tree(commit)
    if not any(path.rpartition("/")[2] == ".gitattributes" for path in tree):
        return ()
    words = ("grep", "-q", "-F", "filter=lfs", commit.hash, "--", ":(glob)**/.gitattributes")
    if git.run(commit.top, *words).returncode:
        return ()
    process = "git-lfs filter-process" if shutil.which("git-lfs") else ""
    return (f"filter.lfs.process={process}", "filter.lfs.smudge=", *_OFFLINE)


def check_contents(commit: Commit, folder: Path, index: Path) -> None:
    """Raise SnapshotError if files of git-lfs are still pointers in a folder that was checked out."""
    words = (f"--work-tree={folder}", "ls-files", "-z", "--", ":(attr:filter=lfs)")
    result = git.run(commit.top, *words, GIT_INDEX_FILE=str(index))
    if result.returncode:
        raise SnapshotError(f"git cannot tell which files of {show(commit.top)} are git-lfs's.\n"
                            f"{git.quote(result)}")  # fmt: skip
    paths = [path for path in os.fsdecode(result.stdout).split("\0") if path]
    missing = [path for path in paths if _is_pointer(folder / path)]
    if missing:
        install = "" if shutil.which("git-lfs") else "Install git-lfs, run `git lfs install`, and "
        raise SnapshotError(
            f"Contents of commit {commit.hash[:12]} of {show(commit.top)} that git-lfs should have are not"
            f" on this machine: {show_some(missing)}.\n"
            f"{install or 'Run '}{'run ' if install else ''}`git lfs pull` there"
            " (`git lfs fetch --all` if the commit is not the one that is checked out)."
        )


def _is_pointer(path: Path) -> bool:
    if path.is_symlink() or path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
