"""Frozen copies of the user's code: a git commit becomes a folder, made once for all its runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.code import flushing, git
from mlxjobs.code.copying import is_usable, make_snapshot
from mlxjobs.code.git import Commit, Taken, relative, show, show_some
from mlxjobs.code.links import find_links, suffix
from mlxjobs.code.sharing import read_made
from mlxjobs.code.users import keep_commits, leave_mark
from mlxjobs.errors import SnapshotError
from mlxjobs.system.trust import stranger
from mlxjobs.version_manager import Frozen, Launch, VersionManager

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake

_LACKS = {
    "commit": ("in the latest commit", "Run `git add` and `git commit` to have it in the snapshot"),
    "tracked": (
        "among the tracked files",
        "Run `git add` to have it in the snapshot, set version_manager.include=all",
    ),
    "all": (
        "among the files that git does not ignore",
        "Take it out of .gitignore, or if it is a folder, put a file into it",
    ),
}


class GitVM(VersionManager):
    """Run what the git repository of the program holds, from a copy of its own."""

    def freeze(self, launch: Launch) -> Frozen:
        """Give the read-only snapshot `<parent_work_dir>/<repository>/<commit hash>/`, made if not there yet.

        The commit is the latest one, or one of our own that holds the working tree (`worktree`).
        Safe to call from any number of processes and hosts at once: all get the same complete copy.
        The user's branch, index, stash and files are only read, and no hook runs. A directory outside
        the repository stays what it is.

        Raises:
            SnapshotError: git or the repository cannot be used, what should run is not committed, or
                the copy cannot be written.
        """
        program, head, folder = find_code(launch)
        work_dir = launch.work_dir.resolve()
        wanted = [path for path in (program, work_dir) if path is not None]
        links = find_links(launch.link, launch.work_dir, head.top)
        ignore = not_missed(launch, folder)
        if launch.include == "commit":
            with ThreadPoolExecutor(1) as pool:  # git looks at the user's files while the snapshot is made
                leaving = pool.submit(_leave, head, ignore)
                root = _have(launch, head, folder, wanted, links)
            commit, taken = head, leaving.result()
        else:
            from mlxjobs.code import (
                worktree,  # with tempfile and many patterns, which the latest commit needs not
            )

            taken = worktree.take(head, launch.include, launch.max_untracked_mb, ignore)
            commit = replace(head, hash=taken.hash)
            root = _have(launch, commit, folder, wanted, links, taken.own)
        flushing.finish_later(root)  # not before: git would wait for the disk
        facts = self._facts(launch, head, taken, root)
        if links:
            facts["link"] = list(links)
        inside = relative(work_dir, commit.top)
        place = root / inside if inside is not None else launch.work_dir
        script = program and root / program.relative_to(commit.top)
        warnings = _warn(commit, launch.include, taken.left_out, root)
        return Frozen(root, place, script, facts, warnings)

    def freeze_asking(self, launch: Launch, find_mistake: Callable[[], Mistake | None]) -> Frozen:
        """Ask what the copy should hold, add and commit what is answered, and make it; or give what is here.

        Raises:
            SnapshotError: as `freeze` does; or there was no answer, or git refused to add or commit.
            MLXJobsError: the mistake, as what would run has it too.
        """
        from mlxjobs.code.questions import ask_about_uncommitted

        wants_copy = ask_about_uncommitted(launch, find_mistake)
        return self.freeze(launch) if wants_copy else self.stay(launch)

    def stay(self, launch: Launch) -> Frozen:
        """Give the user's own files instead of a copy: later edits do change what runs.

        Raises:
            SnapshotError: git or the repository cannot be used.
        """
        _program, head, folder = find_code(launch)
        facts = self._facts(launch, head, _leave(head, not_missed(launch, folder)), None)
        return Frozen(head.top, launch.work_dir, launch.program, facts, ())

    def _facts(self, launch: Launch, head: Commit, taken: Taken, root: Path | None) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "name": type(self).__name__,
            "commit_hash": taken.hash,
            "head": head.hash,
            "include": None if root is None else launch.include,
            "repo_path": str(head.top),
            "snapshot": None if root is None else str(root),
            "branch": head.branch,
            "dirty": taken.dirty,
            "requirements": [],
        }
        if launch.compute_requirements:
            from mlxjobs.code.environment import record_environment  # imports the e-mail parser

            facts |= record_environment()
        return facts


def find_code(launch: Launch) -> tuple[Path | None, Commit, Path]:
    """Return the script, if there is one, the commit of its repository, and the folder of its snapshots."""
    program = None if launch.program is None else launch.work_dir / launch.program
    if program is not None:  # a committed link to a script runs as the link it is
        program = program.parent.resolve() / program.name
    commit = git.find_commit(launch.work_dir.resolve() if program is None else program.parent)
    parent_work_dir = (launch.work_dir / launch.parent_work_dir).absolute()
    return program, commit, parent_work_dir / (commit.top.name or "root")


def not_missed(launch: Launch, folder: Path) -> list[Path]:
    """Return what nobody misses in a snapshot: the snapshots themselves, the runs, and what is linked."""
    while not folder.parent.is_dir():  # the highest of those that will be made
        folder = folder.parent
    parent = [folder.parent] if folder.parent.is_symlink() else []  # to where there is room
    return [folder, *parent, *(launch.work_dir / path for path in (*launch.ignore, *map(Path, launch.link)))]


def _have(
    launch: Launch,
    commit: Commit,
    folder: Path,
    wanted: list[Path],
    links: Mapping[str, str],
    own: Sequence[Commit] = (),
) -> Path:
    """Return the snapshot of a commit, made if it is not there yet, with what should run in it."""
    root = folder / f"{commit.hash}{suffix(links)}"
    _check_owner(root)
    if not is_usable(root):
        _check_held(commit, launch.include, wanted, partial(_is_promised, commit))
        keep_commits(commit.hash, own)  # a copy takes its time
        make_snapshot(commit, root, links)
    _note_use(launch, commit, root, links, own)

    def is_there(path: str) -> bool:
        return os.path.lexists(root / path)

    if _lacking(commit, wanted, is_there):
        _check_held(commit, launch.include, wanted, partial(_is_promised, commit))
        flushing.doubt(root)  # whoever tidies up scratch disks has been there
        make_snapshot(commit, root, links)
        _check_held(commit, launch.include, wanted, is_there)
    return root


def _note_use(
    launch: Launch, commit: Commit, root: Path, links: Mapping[str, str], own: Sequence[Commit]
) -> None:
    """Keep the snapshot and its commits from being pruned; what was pruned before is made again."""
    while True:
        try:
            if launch.log_dir is not None:
                leave_mark(root, launch.log_dir, commit.top)
        except OSError as error:
            raise SnapshotError(
                f"That runs use the snapshot {show(root)} cannot be noted beside it: {error.strerror};\n"
                "without that it may be removed. Set version_manager.parent_work_dir to a folder of your own."
            ) from error
        keep_commits(commit.hash, own)  # not before the mark is there
        if root.is_dir():
            return
        make_snapshot(commit, root, links)


def _check_owner(root: Path) -> None:
    """Raise if the snapshot, or the folder of the repository's snapshots, is another user's."""
    whose = stranger(root.parent, root)
    if whose is not None:
        raise SnapshotError(
            f"a snapshot that is another user's is not run as you: {whose},\n"
            "or set version_manager.parent_work_dir to a folder of your own."
        )


def _leave(head: Commit, ignore: list[Path]) -> Taken:
    """Take the latest commit, and nothing else."""
    left_out = git.list_left_out(head.top, *ignore)
    dirty = any(tracked for _, tracked in left_out)  # as `git describe --dirty` means it
    return Taken(head.hash, dirty, [path for path, _ in left_out])


def _check_held(commit: Commit, include: str, wanted: list[Path], is_held: Callable[[str], bool]) -> None:
    """Raise if what should run is not in the snapshot; say what puts it there."""
    where, way = _LACKS[include]
    path = _lacking(commit, wanted, is_held)
    if path is not None:
        raise SnapshotError(
            f"{show(path)} is not {where} ({commit.hash[:12]}) of {show(commit.top)}.\n"
            f"{way}, or set use_version_manager=false."
        )


def _lacking(commit: Commit, wanted: list[Path], is_held: Callable[[str], bool]) -> Path | None:
    """Return the first that is in the repository's folder and not held; what is elsewhere stays there."""
    for path in wanted:
        inside = relative(path, commit.top)
        if inside is not None and not is_held(inside):
            return path
    return None


def _is_promised(commit: Commit, path: str) -> bool:
    """Tell whether the commit has a path; what is inside its submodules is seen when they are there."""
    paths, submodules = git.list_tree(commit)
    return path in paths or any(path.startswith(f"{submodule}/") for submodule in submodules)


def _warn(commit: Commit, include: str, left_out: list[str], root: Path) -> tuple[str, ...]:
    """Say what the snapshot lacks, one string for each reason."""
    what = f"the snapshot of commit {commit.hash[:12]} of {show(commit.top)}"
    made = read_made(root)
    texts = []
    if left_out:
        why, do = ("Not committed", "Commit") if include == "commit" else ("Untracked", "`git add`")
        texts.append(f"{why}, so not in {what}: {show_some(left_out)}. {do} what the run needs.")
    if made and made.empty:
        texts.append(
            f"Submodules that git is told to leave out are empty folders in {what}: "
            f"{', '.join(map(show, made.empty))}."
        )
    return tuple(texts)
