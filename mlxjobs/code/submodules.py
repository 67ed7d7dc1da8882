"""What a commit has elsewhere: submodules, and git-lfs's files. Never from the network, never a silent gap.

A submodule is taken from its own repository: the one that is checked out in the user's tree, else the one
that git keeps in `.git/modules/` after another branch was checked out. Only these can hold the commit.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import Commit, show, show_some
from mlxjobs.errors import SnapshotError

_FALSE = ("false", "no", "off", "0")  # as git reads them


@dataclass(frozen=True)
class Part:
    """A commit that fills a folder of the snapshot.

    Attributes:
        path: the folder in the snapshot; "" is all of it.
        commit: of the user's repository or of a submodule's; its `top` is where git finds that repository.
    """

    path: str
    commit: Commit


@dataclass(frozen=True)
class _Wish:
    """What .gitmodules and the user's configuration say of a submodule."""

    name: str
    active: str | None = None
    update: str | None = None


def find_parts(commit: Commit, path: str = "") -> tuple[list[Part], list[str]]:
    """Find all repositories that a commit is made of, and the submodules that the user does not want.

    Args:
        commit: any commit of a repository.
        path: the folder in the snapshot that it fills.

    Returns:
        The commit itself and then its submodules, outer ones before those inside them; and the paths of
        those that stay empty.

    Raises:
        SnapshotError: a submodule, or the commit of it that is asked for, is not on this machine.
    """
    parts, unwanted = [Part(path, commit)], []
    _, links = git.list_tree(commit)
    wishes = _read_wishes(commit) if links else {}
    for link in links:
        where = f"{path}/{link}" if path else link
        found = _find(commit, link, where, wishes.get(link, _Wish(link)))
        if found is None:
            unwanted.append(where)
        else:
            more, also_unwanted = find_parts(found, where)
            parts += more
            unwanted += also_unwanted
    return parts, unwanted


def find_there(commit: Commit) -> Iterator[Commit]:
    """Yield a commit, and those of its submodules at any depth whose repositories are on this machine."""
    yield commit
    with suppress(SnapshotError):  # git does not have the commit any more
        wishes = _read_wishes(commit)
        for link in git.list_tree(commit)[1]:
            with suppress(SnapshotError):
                found = _find(commit, link, link, wishes.get(link, _Wish(link)))
                if found is not None:
                    yield from find_there(found)


def _read_wishes(commit: Commit) -> dict[str, _Wish]:
    """Return what is known of each submodule: the user's configuration prevails over .gitmodules."""
    words = ("config", "-z", "--get-regexp", r"^submodule\..*\.(path|active|update)$")
    known: dict[str, dict[str, str]] = {}
    for source in ("--blob", f"{commit.hash}:.gitmodules"), ():
        answer = git.run(commit.top, words[0], *source, *words[1:])  # fails if there is none
        for entry in os.fsdecode(answer.stdout).split("\0")[:-1]:
            key, _, value = entry.partition("\n")
            name, _, what = key.removeprefix("submodule.").rpartition(".")
            known.setdefault(name, {})[what] = value
    return {
        facts["path"]: _Wish(name, facts.get("active"), facts.get("update"))
        for name, facts in known.items()
        if "path" in facts and ".." not in name.split("/")
    }


def _find(commit: Commit, link: str, where: str, wish: _Wish) -> Commit | None:
    """Return the submodule's commit in a repository that has it; None if the user does not want it."""
    is_checked_out = (commit.top / link / ".git").exists()
    if (wish.active or "").lower() in _FALSE or (wish.update == "none" and not is_checked_out):
        return None
    wanted = git.read_tree(commit)[link].split(" ")[2]
    places = [commit.top / link] if is_checked_out else []
    if not any(git.has_commit(place, wanted) for place in places):
        places += _kept(commit, wish.name)
    for place in places:
        if git.has_commit(place, wanted):
            return Commit(place, wanted, None)
    what = f"does not have the commit {wanted[:12]} that is asked for" if places else "is not checked out"
    top = shlex.quote(str(commit.top))
    raise SnapshotError(
        f"The submodule {show(where)} {what}, so the snapshot of commit {commit.hash[:12]} of "
        f"{show(commit.top)} would lack its files.\n"
        f"Run `git -C {top} submodule update --init --recursive`, or, if no run needs it,\n"
        f"`git -C {top} config {shlex.quote(f'submodule.{wish.name}.active')} false`."
    )


def _kept(commit: Commit, name: str) -> list[Path]:
    """Find where git keeps the repository of a submodule that is not checked out now."""
    # In a linked work tree (`git worktree`) the two differ, and either may have it.
    words = ("--git-dir", "--git-common-dir")
    # relative to where it is asked, or not: git before 2.31 cannot be told
    said = (git.ask(commit.top, "rev-parse", word)[:-1] for word in words)
    places = dict.fromkeys(commit.top / folder / "modules" / name for folder in said)
    return [place for place in places if (place / "HEAD").is_file()]


# -- git-lfs: a snapshot has contents, never the pointers that git stores for them -----------------

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # git-lfs itself takes nothing longer for a pointer

# The user's configuration may say `--skip`, or leave files out. A file that git-lfs has not must be
# neither a failure that names only one of them, nor a wait for a network that a node may not have.
_OFFLINE = ("filter.lfs.required=false", "lfs.url=file:///nonexistent", "lfs.skipdownloaderrors=true",
            "lfs.fetchinclude=", "lfs.fetchexclude=")  # fmt: skip


def lfs_settings(commit: Commit) -> tuple[str, ...]:
    """Return the settings of git with which a checkout of the commit has real contents; () without LFS."""
    tree = git.read_tree(commit)
    if not any(path.rpartition("/")[2] == ".gitattributes" for path in tree):
        return ()
    words = ("grep", "-q", "-F", "filter=lfs", commit.hash, "--", ":(glob)**/.gitattributes")
    if git.run(commit.top, *words).returncode:
        return ()
    process = "git-lfs filter-process" if shutil.which("git-lfs") else ""
    return (f"filter.lfs.process={process}", "filter.lfs.smudge=", *_OFFLINE)


def check_lfs_contents(commit: Commit, folder: Path, index: Path) -> None:
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
