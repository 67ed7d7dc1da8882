"""The removal of snapshots that nobody needs.

Beside a snapshot are the marks of all log directories whose runs were launched from it (`users`). It is
removed if the runs of all of these were asked, and none needs it. Whatever cannot be known keeps it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mlxjobs.code.copying import name_aside
from mlxjobs.code.git import Commit
from mlxjobs.code.run_code import code_of
from mlxjobs.code.snapshots import MARK, Snapshot, Usage, age, places_to_ask, real_path
from mlxjobs.code.users import Mark, drop_commits, find_kept_commits, keep_commits, marks_of
from mlxjobs.errors import MLXJobsError, SnapshotError
from mlxjobs.jobs.look import Seen, look_at_runs
from mlxjobs.record.run import runs_in
from mlxjobs.system.atomic import move
from mlxjobs.system.trust import stranger

# what a launch, or another removal, has in its hands at this moment
_IN_HAND = re.compile(r"\.(tmp(\..*)?|lock)$")
# between the mark of a launch and the records of its runs; large sweeps take minutes
_LAUNCHING_S = 3600.0


class Pruning:
    """Removes snapshots that no run needs.

    Args:
        logs: a log directory that is asked besides those that have left marks.
        keep_s: how long after its last launch, and after the end of its last run, a snapshot is kept.
    """

    def __init__(self, logs: Path, keep_s: float) -> None:
        self._logs = logs
        self._keep_s = keep_s
        self._now = time.time()
        self._looked: dict[Path, list[Seen] | str] = {}

    def why_kept(self, snapshot: Snapshot) -> str | None:
        """Return why a snapshot is not removed; None: nobody needs it."""
        whose = stranger(snapshot.root.parent, snapshot.root)
        if whose is not None:
            return whose.partition(";")[0]
        if not snapshot.marks:
            return "no launch has noted that it uses it; if none does, remove the folder"
        if self._now - snapshot.launched < max(self._keep_s, _LAUNCHING_S):
            return f"launched from {age(self._now - snapshot.launched)} ago"
        reasons = [
            *map(_unknown, snapshot.marks),
            *(self._needed_by(snapshot, place) for place in places_to_ask(snapshot, self._logs)),
        ]
        return next((reason for reason in reasons if reason), None)

    def _needed_by(self, snapshot: Snapshot, logs: Path) -> str | None:
        runs = self._look(logs)
        if isinstance(runs, str):
            return runs
        for seen in runs:
            if not seen.state.sequence:
                return f"run {seen.run.log_id} of {logs} cannot be read: {seen.doubt}"
        using = [seen for seen in runs if _uses(seen, snapshot)]
        for seen in using:
            status = seen.state.status
            if not status.ended:
                return f"run {seen.run.log_id} of {logs} is {status}{' (?)' if seen.doubt else ''}"
        for seen in using:
            try:
                since = self._now - seen.run.history_dir.stat().st_mtime  # its last event is its end
            except OSError as error:
                return f"run {seen.run.log_id} of {logs} cannot be read: {error}"
            if since < self._keep_s:
                return f"run {seen.run.log_id} of {logs} ended {age(since)} ago"
        return None

    def _look(self, logs: Path) -> list[Seen] | str:
        if logs not in self._looked:
            self._looked[logs] = self._ask(logs)
        return self._looked[logs]

    def _ask(self, logs: Path) -> list[Seen] | str:
        try:
            if not logs.exists():  # it was removed, else `_unknown` has said so
                return []
            runs = look_at_runs(logs)
            known = {seen.run.log_id for seen in runs}
            for run in runs_in(logs):  # what is not a run yet may become one
                if run.log_id not in known and self._now - run.path.stat().st_mtime < _LAUNCHING_S:
                    return f"run {run.log_id} of {logs} is being made"
            return runs
        except (MLXJobsError, OSError) as error:
            return f"the runs of {logs} cannot be asked: {error}"

    def remove(self, snapshot: Snapshot) -> Usage | None:
        """Remove a snapshot, unless somebody launches from it at this moment: then None.

        Raises:
            SnapshotError: it cannot be removed, or not whole.
        """
        root = snapshot.root
        aside = name_aside(root)
        try:
            aside.mkdir()
            _move(_beside(root), aside)
            move(root, aside / root.name)
            if _has_new_mark(root, snapshot):
                _move([aside / root.name, *aside.iterdir()], root.parent)
                shutil.rmtree(aside)  # what a launch has made anew meanwhile stays
                return None
            usage = Usage()
            usage.add(aside / root.name)
            remove_tree(aside)
            return usage
        except FileNotFoundError:  # somebody else removes it
            shutil.rmtree(aside, ignore_errors=True)
            return None
        except OSError as error:
            raise _refused(root, error) from error

    def forget(self, snapshot: Snapshot, known: Iterable[Snapshot]) -> None:
        """Drop what keeps the commit of a removed snapshot, and of its submodules, unless a run names it.

        While a run names it, `mlxjobs diff`, `checkout` and `requeue` make the code again from the commit.

        Args:
            snapshot: the snapshot.
            known: all that were found; another may be of the same commit, with other links or elsewhere.

        Raises:
            SnapshotError: git gives no answer, or cannot put back what a launch needs at this moment.
        """
        root = snapshot.root
        if snapshot.exists or not snapshot.marks or self.why_kept(snapshot) is not None:
            return
        for place in places_to_ask(snapshot, self._logs):
            runs = self._look(place)
            if isinstance(runs, str) or any(_uses(seen, snapshot) for seen in runs):
                return
        commit = root.name.partition("-")[0]
        folders = {other.root.parent for other in known}
        # another user's mark names what it likes
        for repo in {mark.repo for mark in snapshot.marks if mark.owner == os.geteuid()}:
            if repo.is_dir() and not _is_used(commit, snapshot, folders):
                own = find_kept_commits(Commit(repo, commit, None))
                drop_commits(commit, own)
                if _is_used(commit, snapshot, folders):  # launched from meanwhile
                    keep_commits(commit, own)
        _remove_marks(snapshot)


def _unknown(mark: Mark) -> str | None:
    """Say why it cannot be known who uses a snapshot, if its log directory cannot be looked into."""
    if mark.logs is None:
        return f"{mark.path} cannot be read: who uses it is not known"
    try:
        if mark.logs.exists() or (mark.logs.parent.is_dir() and mark.host == os.uname().nodename):
            return None
        why = f"is not there now; it was used on {mark.host}"
    except OSError as error:
        why = f"cannot be looked into: {error.strerror}"
    return f"{mark.logs}, whose runs use it, {why}; if it is gone for good, remove {mark.path}"


def _uses(seen: Seen, snapshot: Snapshot) -> bool:
    code = code_of(seen.state.facts)
    return code is not None and real_path(code.root) == real_path(snapshot.root)


def _is_used(commit: str, snapshot: Snapshot, folders: Iterable[Path]) -> bool:
    """Tell whether a snapshot of a commit is there, or a mark besides those known of this one."""
    for path in (path for folder in folders for path in folder.glob(f"*{commit}*")):
        mark = MARK.fullmatch(path.name)
        if mark and _has_new_mark(path.with_name(mark[1]), snapshot):
            return True
        if path.name.startswith(commit) and path.is_dir():
            return True
    return False


def _has_new_mark(root: Path, snapshot: Snapshot) -> bool:
    known = {(mark.path.name, mark.time) for mark in snapshot.marks}
    return any((mark.path.name, mark.time) not in known for mark in marks_of(root))


def _remove_marks(snapshot: Snapshot) -> None:
    """Remove the known marks, and none that a launch leaves in their place at this moment."""
    root = snapshot.root
    aside = name_aside(root)
    try:
        aside.mkdir()
        _move((mark.path for mark in snapshot.marks), aside)
        if _has_new_mark(aside / root.name, snapshot):
            _move(aside.iterdir(), root.parent)
        shutil.rmtree(aside)
    except OSError as error:
        raise _refused(root, error) from error


def _refused(root: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"{error.filename or root} cannot be removed: {error.strerror or error}")


def _beside(root: Path) -> list[Path]:
    """What belongs to a snapshot and lies beside it, besides the marks."""
    paths = root.parent.glob(f".{root.name}.*")
    return [path for path in paths if not (MARK.fullmatch(path.name) or _IN_HAND.search(path.name))]


def _move(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        if not os.path.lexists(folder / path.name):
            with suppress(FileNotFoundError):
                move(path, folder / path.name)


def remove_tree(folder: Path) -> None:
    """Remove a folder, with folders in it that were made read-only."""
    for directory, folders, _names in os.walk(folder):
        for path in (Path(directory, name) for name in folders):
            if not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
                path.chmod(0o700)
    shutil.rmtree(folder)
