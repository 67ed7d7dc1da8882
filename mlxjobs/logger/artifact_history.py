"""Take artifacts back, so that a resumed run has those of the checkpoint that it goes on from.

    artifacts/image/
      .since/<checkpoint>.<attempt>/   what was changed after a checkpoint, by the attempt that did so:
        old/best/.prediction.png         what was replaced, as it had been
        new/best/.prediction.png         nothing had this name
      .since/<checkpoint>.<attempt>.back/  the same of what was changed by taking back
      .superseded/<attempt>/           what was taken back, by the attempt that had written it

Only the first change after a checkpoint is noted. Checkpoints are numbered over the whole run; 0 is its
beginning. Each type has notes of its own, for its folder may be a link to another disk.

As it was at a checkpoint, an artifact is in the oldest note of a change after it. Taking back is such a
change, so a task may look at an old checkpoint, and a run may go back to one of an attempt that was given up.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.record.fence import Fence
from mlxjobs.system.atomic import link, look_anew, move
from mlxjobs.system.files import aside_of, sync_directory

_SINCE = ".since"
_SUPERSEDED = ".superseded"
_OLD, _NEW = "old", "new"
_BACK = ".back"
_NAME = re.compile(rf"([0-9]+)\.([0-9]+)({re.escape(_BACK)})?")


@dataclass(frozen=True)
class _Changes:
    """What one attempt changed after one checkpoint in the artifacts of one type."""

    top: Path
    checkpoint: int
    attempt: int
    back: bool = False

    @property
    def folder(self) -> Path:
        return self.top / _SINCE / f"{self.checkpoint}.{self.attempt}{_BACK if self.back else ''}"

    @property
    def when(self) -> tuple[int, int, bool]:
        """What orders changes in time: an attempt takes nothing back that it has written before."""
        return self.attempt, self.checkpoint, not self.back

    def note(self, kind: str, name: Path) -> Path:
        """Where an artifact is noted; the dot tells one that is a folder from a folder of artifacts."""
        return self.folder / kind / name.with_name(f".{name.name}")

    def has(self, name: Path) -> bool:
        """Tell whether an artifact is noted."""
        return any(os.path.lexists(self.note(kind, name)) for kind in (_OLD, _NEW))

    def names(self) -> list[Path]:
        """Return the artifacts that are noted."""
        return [name for _, name in self.notes()]

    def forget(self, name: Path) -> None:
        """Drop what is noted of an artifact."""
        for kind in (_OLD, _NEW):
            note = self.note(kind, name)
            _remove(note)
            with suppress(OSError):  # more is in it
                for parent in note.parents[: len(name.parts) + 1]:
                    parent.rmdir()

    def notes(self) -> list[tuple[str, Path]]:
        """Return what is noted: old or new, and the artifact's name."""
        return [(kind, name) for kind in (_NEW, _OLD) for name in _noted(self.folder / kind, Path())]


class ArtifactHistory:
    """The artifacts of a run, with what is needed to have those of its checkpoints again.

    Args:
        folder: the run's `artifacts/`.
        fence: of the attempt that writes; of a logger that belongs to none nothing is noted.
        newest: returns the number of the run's newest checkpoint, 0 if there is none.
    """

    def __init__(self, folder: Path, fence: Fence, newest: Callable[[], int]) -> None:
        self._folder = folder
        self._newest = newest
        self.fence = fence

    def before(self, target: Path) -> None:
        """Note what is at a place, before something is put there for the first time after a checkpoint.

        Args:
            target: the place, in the folder of a type.

        Raises:
            OSError: it could not be noted.
            Superseded: a newer attempt has begun.
        """
        if not self.fence.attempt:
            return
        top = self._folder / target.relative_to(self._folder).parts[0]
        self._note(_Changes(top, self._newest(), self.fence.attempt), target.relative_to(top))

    def _note(self, changes: _Changes, name: Path) -> None:
        if changes.has(name):
            return
        target = changes.top / name
        note = changes.note(_OLD if os.path.lexists(target) else _NEW, name)
        note.parent.mkdir(parents=True, exist_ok=True)
        with self.fence.explaining():
            aside = self._aside(changes.top)
            if os.path.lexists(target):
                _copy(target, aside)
            else:
                aside.touch()
            move(aside, note)

    def _aside(self, top: Path) -> Path:
        """A free place from which to rename to where artifacts, notes and the superseded are."""
        aside = aside_of(top / _SINCE / "artifact", self.fence.folder(top / _SINCE))
        _remove(aside)
        return aside

    def newest(self) -> int:
        """Return the highest number of a checkpoint after which a change is noted, 0 if there is none."""
        return max((change.checkpoint for change in self._changes()), default=0)

    def take_back(self, checkpoint: int) -> int:
        """Have the artifacts as they were when a checkpoint was saved; those of this attempt stay.

        Safe to call again after a crash at any point.

        Args:
            checkpoint: its number; 0: the run begins from scratch.

        Returns:
            Number of artifacts that were moved to `.superseded/`.

        Raises:
            OSError: one could not be moved; nothing is lost.
            Superseded: a newer attempt has begun.
        """
        attempt = self.fence.attempt
        history = self._history()
        own = {
            (change.top, name)
            for change in history
            for name in change.names()
            if change.attempt == attempt and not change.back
        }
        found: dict[tuple[Path, Path], list[_Changes]] = {}
        for change in history:
            if change.back if change.attempt == attempt else change.checkpoint >= checkpoint:
                for name in change.names():
                    if (change.top, name) not in own:
                        found.setdefault((change.top, name), []).append(change)
        with self.fence.explaining():
            return sum(self._go_back(name, changes) for (_, name), changes in found.items())

    def _go_back(self, name: Path, changes: list[_Changes]) -> bool:
        """Have one artifact as it was before some changes, oldest first; tells if one was moved away."""
        top = changes[0].top
        path, old = top / name, changes[0].note(_OLD, name)
        look_anew(path.parent)
        moved = os.path.lexists(path) and not _is_same(path, old)
        if moved or not os.path.lexists(path):
            version = path
            for change in reversed(changes):
                if not change.back and os.path.lexists(version):
                    self._supersede(top, name, version, change.attempt)
                version = change.note(_OLD, name)
            if all(change.checkpoint < self._newest() for change in changes):
                self._note(_Changes(top, self._newest(), self.fence.attempt, back=True), name)
            self._put(top, path, old)
        for number, change in enumerate(changes):  # those that no way back leads to any more
            if any(other.checkpoint == change.checkpoint for other in changes[:number]):
                self.fence.check()
                change.forget(name)
        return moved

    def _supersede(self, top: Path, name: Path, version: Path, attempt: int) -> None:
        """Keep what an attempt wrote; of several versions one after the other, the last."""
        place = top / _SUPERSEDED / str(attempt) / name
        if not os.path.lexists(place):
            aside = self._aside(top)
            _copy(version, aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            move(aside, place)
            sync_directory(place.parent)

    def _put(self, top: Path, path: Path, old: Path) -> None:
        """Let a copy of what was noted, or nothing, take the place of an artifact."""
        gone = None
        if os.path.lexists(path):
            # through the attempt's own folder: one that was given up moves nothing
            gone = self.fence.folder(path.parent) / path.name
            _remove(gone)
            move(path, gone)
        if os.path.lexists(old):
            aside = self._aside(top)
            _copy(old, aside)
            path.parent.mkdir(parents=True, exist_ok=True)
            move(aside, path)
        if gone is not None:
            _remove(gone)

    def keep(self, checkpoints: Callable[[], set[int]]) -> None:
        """Keep what is needed to go back to some checkpoints, and no more.

        Args:
            checkpoints: returns their numbers; called only if anything is noted.
        """
        history = self._history()
        if not history:
            return
        self.fence.check()
        numbers = checkpoints()
        for change in history:
            if change.checkpoint and change.checkpoint not in numbers:
                before = max((number for number in numbers if number < change.checkpoint), default=0)
                self._fold(change, before, history)

    def _fold(self, change: _Changes, before: int, history: list[_Changes]) -> None:
        """Let changes count as made after an earlier checkpoint, unless there was one since then already."""
        earlier = [other for other in history if other.top == change.top and other.checkpoint == before]
        into = _Changes(change.top, before, change.attempt, change.back)
        history.append(into)
        for kind, name in change.notes():
            if not any(other.has(name) for other in (*earlier, into)):
                into.note(kind, name).parent.mkdir(parents=True, exist_ok=True)
                move(change.note(kind, name), into.note(kind, name))
        shutil.rmtree(change.folder, ignore_errors=True)

    def forget(self) -> None:
        """Forget all changes: nobody will go back."""
        for change in self._history():
            shutil.rmtree(change.top / _SINCE, ignore_errors=True)

    def _history(self) -> list[_Changes]:
        """What was changed, oldest first."""
        return sorted(self._changes(), key=lambda change: change.when)

    def _changes(self) -> Iterator[_Changes]:
        with suppress(FileNotFoundError):
            for top in self._folder.iterdir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    for folder in (top / _SINCE).iterdir():
                        if found := _NAME.fullmatch(folder.name):
                            yield _Changes(top, int(found[1]), int(found[2]), found[3] is not None)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except FileNotFoundError:
        return False


def _noted(folder: Path, inside: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        for entry in sorted((folder / inside).iterdir()):
            if entry.name.startswith("."):
                yield inside / entry.name[1:]
            else:
                yield from _noted(folder, inside / entry.name)


def _copy(path: Path, other: Path) -> None:
    """Let what is at a place be at another one too, by second names, or copies where there are no links."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, other, symlinks=True, copy_function=_copy_file)
    else:
        _copy_file(path, other)


def _copy_file(path: Path | str, other: Path | str) -> None:
    try:
        linked = link(Path(path), Path(other))
    except OSError:
        linked = False
    if not linked:
        shutil.copy2(path, other, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
