"""A git commit becomes a read-only folder, made once for all who want it.

The copy is made by one `git read-tree --reset -u` whose work tree is the new, empty folder and whose
index is a private file, so that nothing of the user's is written. Chosen over the other ways because:
- `git archive` obeys export-ignore and export-subst, which leave files out and alter others;
- `git checkout-index --prefix` reads .gitattributes in the user's work tree, committed or not;
- `git worktree` and `git clone` register or configure something, and run hooks.
Git itself makes symbolic links, executable bits, line ends and filters as in the user's own checkout,
has no trouble with odd names, and writes many files in parallel. It holds the folder as its current
directory: whatever renames the folder meanwhile, it never makes a second one in its place.
Submodules are copied in the same way, each from its own repository (submodules.py). What the newest other
snapshot has already is shared with it (sharing.py).

Beside a snapshot `<hash>` lie `.<hash>.made` (how it was made), `.<hash>.<n>.index` (of each repository in
it) and, while it is being made, `.<hash>.lock`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from mlxjobs.code import flushing, git, sharing
from mlxjobs.code.git import Commit, relative, show
from mlxjobs.code.links import make_links
from mlxjobs.code.sharing import Made, beside, read_made
from mlxjobs.code.submodules import Part, check_lfs_contents, find_parts, lfs_settings
from mlxjobs.errors import SnapshotError
from mlxjobs.system.atomic import move
from mlxjobs.system.files import create_file, current_umask, replace_file
from mlxjobs.system.turn import turn

# splitIndex would write a part of the private index into the user's .git. A sparse checkout is how the
# user works, not what the commit holds. Workers wait for the disk more than they compute, so there are
# four on two cores too; the cap is for login nodes with hundreds of cores.
_FULL_COPY = ("core.splitIndex=false", "core.sparseCheckout=false", "submodule.recurse=false",
              f"checkout.workers={min(8, max(4, os.cpu_count() or 1))}")  # fmt: skip
_COPY_S = 3600  # a whole copy, on a slow network file system
_TURN_S = 300  # how long another launch that makes the same snapshot is waited for
_HINT = "Set version_manager.parent_work_dir to a writable folder of its own with enough free space."
_ABANDONED_S = 24 * 3600  # no copy takes a day: a temporary folder that old has no owner, on any host
_INDEX = r"(\.\d+\.index(\.lock)?)?"
NAME = "[0-9a-f]{40,64}(?:-[0-9a-f]{12})?"  # of a snapshot: the commit, and which links there are
_ASIDE = re.compile(rf"\.{NAME}\.(?P<host>.+)\.(?P<pid>\d+)\.[0-9a-f]{{8}}\.tmp{_INDEX}")


def make_snapshot(commit: Commit, root: Path, links: Mapping[str, str] | None = None) -> None:
    """Make `root`, whole and read-only, by writing aside and renaming; nothing is left behind on failure.

    One that is there, but may have lost files in a power failure, is mended where it is.

    Args:
        commit: any commit of the repository; those of its submodules must be on this machine too.
        root: the folder, whose name begins with the commit's hash.
        links: symbolic links in it that are no part of the commit -> where they lead.

    Raises:
        SnapshotError: it cannot be written, or something is missing that belongs to it.
    """
    folder = root.parent
    if relative(folder.resolve(), commit.top) in git.list_tree(commit)[0]:
        raise SnapshotError(f"Snapshots cannot be kept in {show(folder)}, which holds code.\n{_HINT}")
    parts, empty = find_parts(commit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hide_from_git(folder)
        with turn(beside(root, "lock"), partial(is_usable, root), _TURN_S):
            if not root.is_dir():
                remove_abandoned(root)
                _make(parts, empty, root, links or {})
            elif not is_usable(root):
                _mend(parts, root)
    except OSError as error:
        raise SnapshotError(f"The snapshot {show(root)} cannot be made: {error}\n{_HINT}") from error


def is_usable(root: Path) -> bool:
    """Tell whether a snapshot is there and whole."""
    return root.is_dir() and not flushing.is_doubtful(root)


def _make(parts: list[Part], empty: list[str], root: Path, links: Mapping[str, str]) -> None:
    aside = name_aside(root)
    try:
        aside.mkdir()
        source = sharing.newest_other(root)
        recipes = {}
        for number, part in enumerate(parts):
            filters = lfs_settings(part.commit)
            how = sharing.find_recipe(part, filters)
            recipes[part.path] = how.digest
            place, index = aside / part.path, _index(aside, number)
            sharing.make_folders(part, place)
            sharing.share(part, how, source, place, index)
            # Files that are read-only at once need no second visit; a filter would have that mask too.
            umask = current_umask() | 0o222 if how.is_plain else -1
            _check_out_surely(part.commit, place, index, filters, umask)
            # A default ACL of the folder overrules masks, of git's index too.
            if not how.is_plain or index.stat().st_mode & 0o222:
                _protect(place)
        make_links(aside, links)
        _publish(aside, root, Made(recipes, empty))
    finally:
        _remove_aside(aside)  # gone already when all went well


def _mend(parts: list[Part], root: Path) -> None:
    """Write what is not as in the commit anew, and leave the rest alone: others may be running it."""
    for number, part in enumerate(parts):
        index, filters = beside(root, f"{number}.index"), lfs_settings(part.commit)
        with suppress(OSError):  # lost itself: without it git writes everything
            os.utime(index, (1, 1))  # older than all files, so git looks into them
        _check_out_surely(part.commit, root / part.path, index, filters)
    _protect(root)
    flushing.finish(root)


def _index(aside: Path, number: int) -> Path:
    return aside.with_name(f"{aside.name}.{number}.index")


def name_aside(root: Path) -> Path:
    """Return a new name beside a snapshot; what is left there by a process that died may be cleared away."""
    owner = f"{os.uname().nodename}.{os.getpid()}"  # and a token, for two threads of this process
    return root.parent / f".{root.name}.{owner}.{os.urandom(4).hex()}.tmp"


def _hide_from_git(folder: Path) -> None:
    """Keep the snapshots out of `git status`: in `parent_work_dir`, or below where it holds other things."""
    ours = re.compile(rf"{re.escape(folder.name)}|\.?{NAME}(\..*)?|\.?\.gitignore.*")
    for place in (folder.parent, folder):
        if all(ours.fullmatch(path.name) for path in place.iterdir()):
            create_file(place / ".gitignore", "*\n")
            return


def _check_out_surely(
    commit: Commit, folder: Path, index: Path, filters: tuple[str, ...], umask: int = -1
) -> None:
    """As `_check_out`; an index that is there may be damaged itself, and without it git writes everything."""
    is_known = index.exists()
    try:
        _check_out(commit, folder, index, filters, umask)
    except SnapshotError:
        if not is_known:
            raise
        for path in index, index.with_name(f"{index.name}.lock"):
            path.unlink(missing_ok=True)
        _check_out(commit, folder, index, filters, umask)


def _check_out(commit: Commit, folder: Path, index: Path, filters: tuple[str, ...], umask: int = -1) -> None:
    """Have the commit's files in `folder`: what the index knows to be there already is left as it is."""
    settings = [word for setting in (*_FULL_COPY, *sharing.LOOK, *filters) for word in ("-c", setting)]
    command = (*settings, f"--work-tree={folder}", "read-tree", "--reset", "-u", commit.hash)
    result = git.run(
        commit.top, *command, wait_s=_COPY_S, umask=umask, GIT_INDEX_FILE=str(index), GIT_LFS_SKIP_SMUDGE="0"
    )
    if result.returncode:
        raise SnapshotError(
            f"git could not copy commit {commit.hash[:12]} of {show(commit.top)} to {show(index.parent)};"
            f" nothing is left there.\n{_HINT} If git misses an object, run `git fsck`.\n"
            f"{git.quote(result)}"
        )
    if filters:
        check_lfs_contents(commit, folder, index)


def _protect(folder: Path) -> None:
    """Take the right to write from the files, so that no run changes what others run.

    Folders stay writable: programs leave files beside their code (`__pycache__`, lightning_logs).
    """
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_symlink() and (mode := entry.stat().st_mode) & 0o222:
                    os.chmod(entry.path, mode & 0o555)  # noqa: PTH101 - a Path for each file takes longer


def _publish(aside: Path, root: Path, made: Made) -> None:
    """Give the copy its name; if another launch was faster, its copy is the one."""
    notes = [beside(root, "made"), beside(root, "unflushed")]
    replace_file(notes[0], sharing.encode_made(made), durable=False)
    flushing.begin(root)
    try:
        move(aside, root)  # never replaces a folder that holds something: rename(2)
    except OSError:
        if not root.is_dir():
            for note in notes:
                note.unlink(missing_ok=True)
            raise
        return
    for number in range(len(made.recipes)):
        move(_index(aside, number), beside(root, f"{number}.index"))


def find_abandoned(folder: Path) -> list[Path]:
    """Return what launches that were killed have left in a folder of snapshots."""
    found = [(path, _ASIDE.fullmatch(path.name)) for path in folder.iterdir()]
    return [path for path, name in found if name and _is_abandoned(path, name["host"], int(name["pid"]))]


def find_missing(root: Path, top: Path) -> list[str]:
    """Return the files of a snapshot's commit, and of its submodules, that the snapshot has not."""
    made = read_made(root)
    missing = []
    for number, part in enumerate(made.recipes if made else ()):
        folder, index = root / part, beside(root, f"{number}.index")
        if not folder.is_dir():
            missing.append(part)
        elif index.is_file():
            words = (f"--work-tree={folder}", "ls-files", "--deleted", "-z")
            names = git.ask(top, *words, GIT_INDEX_FILE=str(index)).split("\0")[:-1]
            missing += [f"{part}/{name}" if part else name for name in names]
    if not missing:  # also if all these files are gone
        paths, _ = git.list_tree(Commit(top, root.name.partition("-")[0], None))
        missing = [path for path in paths if not os.path.lexists(root / path)]
    return sorted(missing)


def remove_abandoned(root: Path) -> None:
    """Remove what launches that were killed have left beside a snapshot."""
    for path in find_abandoned(root.parent):
        # Renamed first: if its owner lives after all (another container with this host's name), it
        # fails to publish, where it could have published what is half removed.
        claimed = name_aside(root)
        with suppress(OSError):  # another launch was faster
            move(path, claimed)
            _remove_aside(claimed)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    try:
        if host == os.uname().nodename:
            os.kill(pid, 0)
        return time.time() - path.lstat().st_mtime > _ABANDONED_S
    except ProcessLookupError:
        return True
    except OSError:  # removed by another launch meanwhile, or alive and another user's
        return False


def _remove_aside(aside: Path) -> None:
    import shutil  # with its compression libraries, which finding an existing snapshot never needs

    shutil.rmtree(aside, ignore_errors=True)
    rest = re.compile(re.escape(aside.name) + _INDEX)
    for path in [path for path in aside.parent.iterdir() if rest.fullmatch(path.name)]:
        with suppress(OSError):  # what is left is an abandoned name, tried again by the next copy
            path.unlink()
