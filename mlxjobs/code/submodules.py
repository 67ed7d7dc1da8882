"""Where the files of a commit's submodules come from: never from the network, and never a silent gap.

A submodule is taken from its own repository: the one that is checked out in the user's tree, else the one
that git keeps in `.git/modules/` after another branch was checked out. Only these can hold the commit.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import Commit, show
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
    with suppress(SnapshotError):  # git has not the commit any more
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
    what = f"has not the commit {wanted[:12]} that is asked for" if places else "is not checked out"
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
