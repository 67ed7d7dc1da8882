"""The frozen code of a run, later: its snapshot, or what the repository still has of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlxjobs.code import flushing, git
from mlxjobs.code.copying import find_missing, is_usable, make_snapshot
from mlxjobs.code.git import Commit, show
from mlxjobs.code.links import find_links
from mlxjobs.code.users import leave_mark, marks_of
from mlxjobs.errors import RunError, SnapshotError
from mlxjobs.record.run import Run
from mlxjobs.system.trust import stranger

_NOWHERE = Path(os.devnull)  # it exists everywhere, and is not a folder


@dataclass(frozen=True)
class Code:
    """The frozen code of a run.

    Attributes:
        hash: of the commit.
        root: the snapshot, which may be gone.
        repo: the repository it was made from, which may be gone, or have lost the commit.
        links: what the snapshot shows of the live tree by links: paths below the repository's top.
    """

    hash: str
    root: Path
    repo: Path
    links: tuple[str, ...] = ()

    @property
    def is_committed(self) -> bool:
        """Whether the repository still has the commit, and may be read."""
        try:
            return self.repo.is_dir() and git.has_commit(self.repo, self.hash)
        except SnapshotError:
            return False


def facts_of(run: Run) -> dict[str, Any]:
    """Return what is recorded of a run besides its states; of MLXP's runs what their `info.yaml` says."""
    facts = run.state().facts
    if not facts:
        info = run.read_yaml("info")
        facts = info if isinstance(info, dict) else {}
    return facts


def version_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a version manager recorded; nothing if there was none."""
    version = facts.get("version_manager")
    return version if isinstance(version, dict) else {}


def code_of(facts: Mapping[str, Any]) -> Code | None:
    """Return the frozen code of a run; None: it ran from the folder where it was launched."""
    code = commit_of(facts)
    return None if code is None or code.root == _NOWHERE else code


def commit_of(facts: Mapping[str, Any]) -> Code | None:
    """Return the code that a run names, also if it was not frozen: then `root` is no folder."""
    version = version_of(facts)
    commit, root, repo = (str(version.get(key) or "") for key in ("commit_hash", "snapshot", "repo_path"))
    if not repo or re.fullmatch(r"[0-9a-f]{40,64}", commit) is None:
        return None
    links = version.get("link")
    return Code(
        commit, Path(root or _NOWHERE), Path(repo), tuple(map(str, links if isinstance(links, list) else ()))
    )


def live_edits(facts: Mapping[str, Any]) -> str | None:
    """Say that a run was not frozen, and ran with edits that its commit has not; None: nothing to say."""
    version = version_of(facts)
    if version.get("snapshot") or not version.get("dirty"):
        return None
    return f"ran from {version.get('repo_path')} itself, with edits that no commit holds"


def make_again(code: Code, aside: Path) -> Path:
    """Make the code anew from its commit, in a folder somewhere below `aside`, and return that.

    Raises:
        SnapshotError: the repository does not have the commit any more, or it cannot be written.
    """
    root = aside / "code" / code.hash  # beside it, and above, a .gitignore is made
    links: dict[str, str] = {}
    with suppress(SnapshotError):  # data that is gone is not missed in a copy
        links = _find_links(code)
    _remake(code, root, links)
    return root


def _find_links(code: Code) -> dict[str, str]:
    return find_links([str(code.repo / path) for path in code.links], code.repo, code.repo)


def _remake(code: Code, root: Path, links: Mapping[str, str]) -> None:
    if not code.is_committed:
        what = "it was not frozen" if code.root == _NOWHERE else f"{show(code.root)} was removed"
        raise SnapshotError(
            f"the code is gone: {what}, and {show(code.repo)} does not have commit {code.hash[:12]} any more;"
            f" a clone that has it gives it back: git fetch CLONE {code.hash}"
        )
    make_snapshot(Commit(code.repo, code.hash, None), root, links)


@lru_cache  # many runs that start again have the same code
def _has_gaps(code: Code) -> bool:
    try:
        return code.is_committed and bool(find_missing(code.root, code.repo))
    except SnapshotError:  # what is known of it is damaged, which mending mends too
        return True


def bring_back(run: Run) -> None:
    """Have the snapshot of a run that is to start again, whole, and keep it from being pruned.

    Raises:
        RunError: it is gone for good.
    """
    code = code_of(facts_of(run))
    if code is None:
        return
    try:
        while True:
            if not code.root.is_dir() or (not is_usable(code.root) and code.is_committed):
                _remake(code, code.root, _find_links(code))
            elif not marks_of(code.root):  # one of the user's own managers made it: it is never removed
                return
            if stranger(code.root.parent, code.root):  # nobody but its owner removes it
                return
            if _has_gaps(code):  # whoever tidies up scratch disks has been there
                flushing.doubt(code.root)
                _remake(code, code.root, _find_links(code))
                _has_gaps.cache_clear()
            leave_mark(code.root, run.path.parent, code.repo)
            if is_usable(code.root):
                flushing.finish(code.root)  # a job may start after a power failure
            if code.root.is_dir():  # else it was pruned before the mark was there
                return
    except (SnapshotError, OSError) as error:
        raise RunError(f"run {run.log_id} cannot start again: {error}") from error
