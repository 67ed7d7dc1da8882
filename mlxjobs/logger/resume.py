"""Which metrics and artifacts of earlier attempts count, once an attempt has shown where it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlxjobs.logger.artifact_history import ArtifactHistory
from mlxjobs.logger.checkpoint_file import Record
from mlxjobs.logger.metrics import MetricsWriter
from mlxjobs.system.console import counted, note


class Resumption:
    """Keeps each step of an unfinished run once.

    An attempt shows where it begins by loading a checkpoint of the run, or by saving or ending
    without having loaded one: then it has begun from scratch. Metrics and artifacts that earlier
    attempts wrote after that point are moved away; what this attempt has written is never touched.

    Args:
        metrics: the run's metrics.
        artifacts: the run's artifacts.
        name: what messages call the run.
        unfinished: there were attempts before and the run is not complete; else nothing is moved.
    """

    def __init__(
        self,
        metrics: MetricsWriter,
        artifacts: ArtifactHistory,
        name: str,
        *,
        unfinished: bool,
    ) -> None:
        self._metrics = metrics
        self._artifacts = artifacts
        self._name = name
        self._unfinished = unfinished
        self._undecided = unfinished
        self._pending = False
        self._settled = False
        self._record: Record | None = None
        self._base: int | None = None  # what this attempt goes on from; 0: from scratch; None: all counts
        self._start: dict[str, int] = {}
        if unfinished:
            metrics.repair()
        if unfinished or metrics.attempt > 1:
            self._start = metrics.offsets()
            metrics.note_start(self._start)

    def goes_on_from(self, path: Path, record: Record | None) -> bool:
        """Note that a checkpoint of this run was loaded.

        Of several the newest counts: a task may look at its best model before it goes on from the
        last. After the attempt has saved, loading changes nothing.

        Returns:
            True if the attempt now goes on from this checkpoint.
        """
        last = self._record
        if self._settled or (last is not None and (record is None or record.sequence <= last.sequence)):
            return False
        if record is None and self._undecided:
            note(f"{path} does not say which metrics belong to it: all are kept")
        self._undecided = False
        self._record = record
        self._base = record.sequence if record is not None and self._unfinished else None
        if record is not None and self._unfinished:
            self._pending = True
            try:
                self._take_back()
            except OSError as error:
                # the object is good; failing here would make many a task begin from scratch
                note(f"what was written after {path.name} is not moved away yet: {error}")
        return True

    def _take_back(self) -> None:
        if self._pending and self._record is not None:
            lines = self._rewind(self._record.metrics, self._record.rewinds)
            files = self._artifacts.take_back(self._record.sequence)
            self._pending = False
            if lines or files:
                note(
                    f"run {self._name} goes on from {self._record.log_name}: what was written after it "
                    f"is moved to .superseded, {_counted(lines, files)}"
                )

    def begins_from_scratch(self, *, for_good: bool = True) -> None:
        """Note that there is no checkpoint to go on from, unless one was loaded.

        Args:
            for_good: False if a later attempt may go on from a checkpoint of an earlier one: that gives
                the metrics back, but artifacts would be lost to it, so they stay.

        Raises:
            OSError: the metrics or artifacts could not be moved.
        """
        if not self._undecided:
            return
        lines = self._rewind({}, None)
        files = self._artifacts.take_back(0) if for_good else 0
        self._undecided = False
        self._base = 0
        if lines or files:
            note(
                f"run {self._name} begins from scratch, as no checkpoint was loaded: what earlier attempts "
                f"wrote is moved to .superseded, {_counted(lines, files)}"
            )

    def has_superseded(self, record: Record) -> bool:
        """Tell whether an earlier attempt wrote a checkpoint after the point this one goes on from."""
        mine = record.attempt == self._metrics.attempt
        return self._base is not None and not mine and record.sequence > self._base

    def saves(self) -> None:
        """Note that the attempt is about to save a checkpoint.

        Raises:
            OSError: the metrics could not be moved.
        """
        self.begins_from_scratch()
        self._take_back()
        self._settled = True

    def ends(self, *, complete: bool) -> None:
        """Note that the attempt has ended; if it logged nothing, the lines before it stay.

        Args:
            complete: the run is.

        Raises:
            OSError: the metrics or artifacts could not be moved.
        """
        sizes = self._metrics.offsets()
        if any(size > self._start.get(log_name, 0) for log_name, size in sizes.items()):
            self.begins_from_scratch(for_good=complete)
        self._take_back()
        self._settled = True
        if self._base is None:  # all that earlier attempts wrote counts
            self._start = self._metrics.complete(self._start)
        self._metrics.settle(complete=True)

    def _rewind(self, offsets: Mapping[str, int], rewinds: int | None) -> int:
        with self._metrics.paused():  # else a line of another thread could be taken for an earlier attempt's
            before = self._metrics.offsets()
            own = {log_name: size - self._start.get(log_name, 0) for log_name, size in before.items()}
            try:
                return self._metrics.rewind(offsets, self._start, rewinds=rewinds)
            finally:
                # where it failed too: files that were shortened before that begin our lines elsewhere
                after = self._metrics.offsets()
                self._start = {log_name: size - own.get(log_name, 0) for log_name, size in after.items()}


def _counted(lines: int, files: int) -> str:
    parts = [f"{counted(lines, 'line')} of metrics"] if lines else []
    return " and ".join([*parts, counted(files, "artifact")] if files else parts)
