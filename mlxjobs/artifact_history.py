"""Take artifacts back, so that a resumed run has those of the checkpoint that it goes on from.

    artifacts/image/
      .since/<checkpoint>.<attempt>/   what was changed after a checkpoint, by the attempt that did so:
        old/best/.prediction.png         what was replaced, as it had been
        new/best/.prediction.png         nothing had this name
      .superseded/<attempt>/           what was taken back, by the attempt that had written it

Only the first change after a checkpoint is noted. Checkpoints are numbered over the whole run; 0 is its
beginning. Each type has notes of its own, for its folder may be a link to another disk.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxjobs.fence import Fence
from mlxjobs.files import sync_directory

_SINCE = ".since"
_SUPERSEDED = ".superseded"
_OLD, _NEW = "old", "new"


@dataclass(frozen=True)
class _Changes:
    """What one attempt changed after one checkpoint in the artifacts of one type."""

    top: Path
    checkpoint: int
    attempt: int

    @property
    def folder(self) -> Path:
        return self.top / _SINCE / f"{self.checkpoint}.{self.attempt}"

    def note(self, kind: str, name: Path) -> Path:
        """Where an artifact is noted; the dot tells one that is a folder from a folder of artifacts."""
        return self.folder / kind / name.with_name(f".{name.name}")

    def has(self, name: Path) -> bool:
        """Tell whether an artifact is noted."""
        return any(os.path.lexists(self.note(kind, name)) for kind in (_OLD, _NEW))

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
        changes = _Changes(top, self._newest(), self.fence.attempt)
        name = target.relative_to(top)
        if changes.has(name):
            return
        note = changes.note(_OLD if os.path.lexists(target) else _NEW, name)
        note.parent.mkdir(parents=True, exist_ok=True)
        with self.fence.explaining():
            aside = self.fence.folder(top / _SINCE) / f"{os.getpid()}.{threading.get_ident()}"
            _remove(aside)
            if os.path.lexists(target):
                _copy(target, aside)
            else:
                aside.touch()
            aside.replace(note)

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
        own = {(one.top, name) for one in history if one.attempt == attempt for _, name in one.notes()}
        moved: set[Path] = set()
        with self.fence.explaining():
            for one in reversed(history):
                if one.attempt >= attempt or one.checkpoint < checkpoint:
                    continue
                for _, name in one.notes():
                    if (one.top, name) not in own:
                        moved |= self._undo(one, name)
                if not one.notes():
                    shutil.rmtree(one.folder)
        return len(moved)

    def _undo(self, changes: _Changes, name: Path) -> set[Path]:
        """Have one artifact as it was before a change; returns it, if it was moved away."""
        path = changes.top / name
        was_there = os.path.lexists(path)
        if was_there:
            self._put_aside(path, changes.top / _SUPERSEDED / str(changes.attempt) / name)
        old = changes.note(_OLD, name)
        if os.path.lexists(old):
            path.parent.mkdir(parents=True, exist_ok=True)
            old.replace(path)
        else:
            changes.note(_NEW, name).unlink()
        return {path} if was_there else set()

    def _put_aside(self, path: Path, place: Path) -> None:
        """Move an artifact away; of several that an attempt wrote one after the other, the last is kept."""
        aside = self.fence.folder(path.parent) / path.name
        _remove(aside)
        path.rename(aside)  # through the attempt's own folder: one that was given up moves nothing
        if os.path.lexists(place):
            _remove(aside)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(place)
        sync_directory(place.parent)

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
        for one in history:
            if one.checkpoint and one.checkpoint not in numbers:
                before = max((number for number in numbers if number < one.checkpoint), default=0)
                self._fold(one, before, history)

    def _fold(self, one: _Changes, before: int, history: list[_Changes]) -> None:
        """Let changes count as made after an earlier checkpoint, unless there was one since then already."""
        earlier = [other for other in history if other.top == one.top and other.checkpoint == before]
        into = _Changes(one.top, before, self.fence.attempt)
        for kind, name in one.notes():
            if not any(other.has(name) for other in (*earlier, into)):
                into.note(kind, name).parent.mkdir(parents=True, exist_ok=True)
                one.note(kind, name).replace(into.note(kind, name))
        shutil.rmtree(one.folder, ignore_errors=True)

    def forget(self) -> None:
        """Forget all changes: nobody will go back."""
        for one in self._history():
            shutil.rmtree(one.top / _SINCE, ignore_errors=True)

    def _history(self) -> list[_Changes]:
        """What was changed, oldest first."""
        return sorted(self._changes(), key=lambda one: (one.checkpoint, one.attempt))

    def _changes(self) -> Iterator[_Changes]:
        with suppress(FileNotFoundError):
            for top in self._folder.iterdir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    for folder in (top / _SINCE).iterdir():
                        checkpoint, _, attempt = folder.name.partition(".")
                        if checkpoint.isdecimal() and attempt.isdecimal():
                            yield _Changes(top, int(checkpoint), int(attempt))


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
        os.link(path, other, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, other, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
