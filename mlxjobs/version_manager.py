"""What a version manager is: it gives a copy of the code that later edits do not change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake


@dataclass(frozen=True)
class Launch:
    """What a version manager is told of the command that was typed.

    Attributes:
        work_dir: the directory where the command was typed.
        program: the script that runs, absolute or relative to `work_dir`; None for `python -m`.
        parent_work_dir: where snapshots are kept, absolute or relative to `work_dir`.
        compute_requirements: whether to list the installed distributions.
        ignore: folders, such as the log directory, whose files are not missed in a snapshot.
        include: "commit": the latest commit; "tracked": uncommitted edits too; "all": untracked files too.
        max_untracked_mb: how much of untracked files is taken at most; megabytes.
        link: files and folders that a snapshot shows by links to them, absolute or relative to `work_dir`.
        log_dir: where the runs are recorded that use the copy; None: nowhere.
    """

    work_dir: Path
    program: Path | None
    parent_work_dir: Path
    compute_requirements: bool = False
    ignore: tuple[Path, ...] = ()
    include: str = "commit"
    max_untracked_mb: int = 100
    link: tuple[str, ...] = ()
    log_dir: Path | None = None


@dataclass(frozen=True)
class Frozen:
    """The frozen code of a run: the top folder of the copy, the directory to run in, the script to run.

    Attributes:
        facts: what `info.yaml` says under `version_manager`.
        warnings: what the user should be told, one string each.
    """

    root: Path
    work_dir: Path
    program: Path | None
    facts: dict[str, Any]
    warnings: tuple[str, ...]


class VersionManager(ABC):
    """Base of all version managers; `version_manager.name` takes the import path of a subclass."""

    @abstractmethod
    def freeze(self, launch: Launch) -> Frozen:
        """Give a copy of the code that later edits do not change.

        Raises:
            SnapshotError: the code cannot be frozen.
        """

    def freeze_asking(self, launch: Launch, find_mistake: Callable[[], Mistake | None]) -> Frozen:
        """Give a copy where somebody sits at a terminal and may be asked before; this one asks nothing.

        Args:
            launch: the command that was typed.
            find_mistake: composes the command line with the files as they are, and returns what is wrong with
                it: `error`, to be raised, and `hangs_on(path)`, whether that file may be the reason.

        Raises:
            SnapshotError: the code cannot be frozen, or there was no answer.
        """
        return self.freeze(launch)
