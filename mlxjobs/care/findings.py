"""What is wrong with a run directory, and how it is mended: by renames, and what held data is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.errors import MLXJobsError
from mlxjobs.system.atomic import move
from mlxjobs.system.files import replace_file, sync_directory

DAMAGED = ".damaged"


@dataclass
class Finding:
    """One thing that is wrong.

    Attributes:
        path: the file or folder.
        what: what is wrong with it, in one line.
        mend: what `--fix` does, in one line; "" if that is for a person to decide.
        fix: does it; safe to be killed in, and to be done again.
        run: the number of the run; None: of the whole log directory.
        mended: whether it is put right.
        error: why it could not be.
    """

    path: Path
    what: str
    mend: str = ""
    fix: Callable[[], object] | None = None
    run: int | None = None
    mended: bool = False
    error: str = ""

    def try_fix(self) -> None:
        """Mend it, if it can be; else `error` says why not."""
        if self.fix is None or self.mended:
            return
        try:
            self.fix()
            self.mended = True
        except (OSError, ValueError, MLXJobsError) as error:
            self.error = str(error)

    def line(self, logs: Path, *, fix: bool) -> str:
        """Return it as one line for people; `fix`: mending was tried."""
        path = self.path.relative_to(logs) if self.path.is_relative_to(logs) else self.path
        text = f"{path} {self.what}"
        if self.mended:
            text += f" (mended: {self.mend})"
        elif self.error:
            text += f" (not mended: {self.error})"
        elif self.mend and not fix:
            text += f" (--fix: {self.mend})"
        return f"run {self.run}: {text}" if self.run is not None else text

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "run": self.run, "path": str(self.path), "what": self.what, "mend": self.mend,
            "mended": self.mended, "error": self.error,
        }  # fmt: skip


def _kept(run: Path, path: Path) -> Path:
    """A new name in `.damaged/`, where nobody else looks, for a file of a run."""
    place = run / DAMAGED / path.relative_to(run)
    place.parent.mkdir(parents=True, exist_ok=True)
    name, count = place.name, 1
    while place.exists() or place.is_symlink():
        count += 1
        place = place.with_name(f"{name}.{count}")
    return place


def move_aside(run: Path, path: Path) -> None:
    """Move a file or folder of a run to its `.damaged/`, under the same path."""
    move(path, _kept(run, path))
    sync_directory(path.parent)


def copy_aside(run: Path, path: Path) -> None:
    """Keep what a file holds in `.damaged/`, before it is replaced."""
    if path.exists():
        replace_file(_kept(run, path), path.read_bytes())
