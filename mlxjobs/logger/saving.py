"""The checkpoints of one attempt: which number comes next, which is the best, what is still being written."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlxjobs.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArtifactError,
    InvalidKeyError,
    InvalidMetricError,
)
from mlxjobs.logger import checkpoints
from mlxjobs.logger.artifact_history import ArtifactHistory
from mlxjobs.logger.artifacts import check_artifact_name
from mlxjobs.logger.checkpoint_file import Record, peek
from mlxjobs.logger.checkpoints import SUFFIX, Loaded
from mlxjobs.logger.metrics import MetricsWriter
from mlxjobs.logger.pickling import Pickled
from mlxjobs.logger.resume import Resumption
from mlxjobs.logger.rewind import log_names
from mlxjobs.system.atomic import look_anew
from mlxjobs.system.console import note

_BLOCK = 1 << 16
_TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Background:
    """One piece of work at a time in a thread; its error is kept until somebody asks.

    Attributes:
        error: why the last piece of work failed, until it is raised.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do some work in a thread, which the interpreter awaits at its end; at once if there can be none."""
        thread = threading.Thread(target=self._do, args=(work,), name="mlxjobs-checkpoint")
        try:
            thread.start()
        except RuntimeError:  # the user, or the job, has as many as it may
            self._do(work)
        else:
            self._thread = thread

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks next
            note(f"a checkpoint was not written: {error}")  # perhaps nobody asks
            self.error = error

    def join(self) -> None:
        """Wait until nothing is being done."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_error(self) -> None:
        """Raise the error of the last piece of work, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error


class Checkpoints:
    """Saves and loads the checkpoints of a run.

    Args:
        log_dir: the run directory.
        history: of the run's artifacts.
        metrics: the run's metrics.
        resumption: where this attempt goes on from.
    """

    def __init__(
        self, log_dir: Path, history: ArtifactHistory, metrics: MetricsWriter, resumption: Resumption
    ) -> None:
        self._folder = log_dir / "artifacts" / "Checkpoint"
        self._metrics_folder = log_dir / "metrics"
        self._history = history
        self._fence = history.fence
        self._metrics = metrics
        self._resumption = resumption
        self._sequence: int | None = None  # of the newest checkpoint; read when first needed
        self._damaged: set[Path] = set()
        self.background = Background()

    def save(
        self,
        obj: object,
        log_name: str,
        *,
        keep: int | None = None,
        monitor: Monitor | None = None,
        blocking: bool = True,
    ) -> None:
        """Write a checkpoint; raises as `DefaultLogger.log_checkpoint`."""
        name = check_artifact_name(log_name).removesuffix(SUFFIX)
        path = self._folder / f"{name}{SUFFIX}"
        if keep is not None and (type(keep) is not int or keep < 1):
            raise InvalidArtifactError(
                f"log_checkpoint: keep is {keep!r}; use a whole number from 1, or None"
            )
        if monitor is not None:
            monitor.check()
        self.await_saved()
        self._fence.check()
        self._resumption.saves()
        value = None if monitor is None else monitor.last_value(self._metrics_folder)
        is_best = monitor is not None and value is not None and self._is_best(path, monitor, value)
        self._sequence = self.newest + 1
        record = Record(
            self._sequence,
            self._fence.attempt,
            name,
            self._metrics.offsets(),
            self._metrics.rewinds(),
            monitor=None if monitor is None else monitor.name,
            value=value,
        )
        damaged = path in self._damaged

        def write(obj: object) -> None:
            self._metrics.sync()
            checkpoints.save(
                obj, path, record, keep=keep, is_best=is_best, damaged=damaged, fence=self._fence
            )
            self._damaged.discard(path)
            self._history.keep(lambda: checkpoints.sequences(self._folder))

        if blocking:
            write(obj)
        else:
            pickled = self._pickle(obj, path)
            self.background.start(lambda: write(pickled))

    @staticmethod
    def _pickle(obj: object, path: Path) -> Pickled:
        try:
            return Pickled(obj)
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"the checkpoint {path} was not written: {error}") from error

    @property
    def newest(self) -> int:
        """The number of the run's newest checkpoint, which may still be being written; 0: there is none."""
        if self._sequence is None:
            self._sequence = max(checkpoints.sequences(self._folder), default=0)
            self._sequence = max(self._sequence, self._history.newest())  # of one that is gone too
        return self._sequence

    def _is_best(self, path: Path, monitor: Monitor, value: float) -> bool:
        best = checkpoints.best(path)
        look_anew(best.parent)
        try:
            record = peek(best)
        except FileNotFoundError:
            return monitor.is_better(value, None)
        except DamagedCheckpointError as error:
            note(f"the best {path.stem!r}, {best}, is damaged ({error}): from now on the best counts anew")
            return monitor.is_better(value, None)
        if record is None:
            return monitor.is_better(value, None)
        if f"{record.log_name}{SUFFIX}" != path.name:
            raise InvalidKeyError(
                f"log_checkpoint: the best {path.stem!r} cannot be kept as {best}, which is a checkpoint "
                f"{record.log_name!r} of its own: give one of them another log_name"
            )
        comparable = record.monitor == monitor.name and not self._resumption.has_superseded(record)
        return monitor.is_better(value, record.value if comparable else None)

    def await_saved(self) -> None:
        """Wait until the checkpoint that is being written is on the disk.

        Raises:
            OSError: it could not be written.
        """
        self.background.join()
        self.background.raise_error()

    def are_in(self, root: Path | None) -> bool:
        """Tell whether a folder, as `load` takes it, is that of this run; None is."""
        return root is None or self._folder.resolve() in [
            place.resolve() for place in checkpoints.folders(root)
        ]

    def load(self, log_name: str | None, root: Path | None) -> Loaded:
        """Read a checkpoint; raises, and takes its arguments, as `DefaultLogger.load_checkpoint`."""
        name = None if log_name is None else check_artifact_name(log_name)
        self.await_saved()
        folders = [self._folder] if root is None else checkpoints.folders(root)
        found = [files for folder in folders if (files := checkpoints.candidates(folder, name))]
        if not found:
            if self.are_in(root) and not checkpoints.find(self._folder):
                self._resumption.begins_from_scratch()
            what = "checkpoint" if log_name is None else f"checkpoint {log_name!r}"
            raise CheckpointNotFoundError(f"there is no {what} in {' or '.join(map(str, folders))}")
        files = found[0] if name is not None else [file for files in found for file in files]
        return checkpoints.load_first(files, damaged=self._damaged, stacklevel=3)


# -- the metric that says which checkpoint is the best ------------------------------------------------------


class Monitor(NamedTuple):
    """A metric, and whether small or large values are good.

    Attributes:
        name: log name and key, `val.loss`.
        mode: `min` or `max`.
    """

    name: str
    mode: str

    def check(self) -> None:
        """Refuse what cannot be a monitor.

        Raises:
            InvalidArtifactError: the mode is none.
            InvalidKeyError: the name has no log name and key.
        """
        if self.mode not in ("min", "max"):
            raise InvalidArtifactError(f"log_checkpoint: mode is {self.mode!r}; use 'min' or 'max'")
        if not isinstance(self.name, str) or "." not in self.name.strip("."):
            raise InvalidKeyError(f"log_checkpoint: monitor is {self.name!r}; use '<log name>.<key>'")

    def is_better(self, value: float, than: float | None) -> bool:
        """Tell whether a value beats the best so far; NaN never does."""
        if math.isnan(value) or than is None:
            return not math.isnan(value)
        return value < than if self.mode == "min" else value > than

    def last_value(self, metrics: Path) -> float:
        """Return what was logged last, from the files: they are right after a resumption too.

        Args:
            metrics: the run's `metrics/`.

        Raises:
            InvalidKeyError: it was never logged.
            InvalidMetricError: it is not a number.
        """
        names = log_names(metrics)
        for log_name, key in _splits(self.name):
            if log_name in names:
                for row in _rows_backwards(metrics / f"{log_name}.json"):
                    if key in row:
                        return self._number(row[key])
        raise InvalidKeyError(
            f"log_checkpoint(monitor={self.name!r}): this metric was never logged in {metrics}; call "
            "log_metrics({<key>: ...}, log_name=...) first, and name it '<log name>.<key>'"
        )

    def _number(self, value: Any) -> float:
        if isinstance(value, str) and value in _TEXTS:
            return _TEXTS[value]
        if isinstance(value, (int, float)):
            return float(value)
        raise InvalidMetricError(
            f"log_checkpoint(monitor={self.name!r}): its last value is {value!r}, which is not a number"
        )


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` is the key `b.c` of the log `a`, or `c` of `a.b`."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def _rows_backwards(path: Path) -> Iterator[dict[str, Any]]:
    import orjson

    for line in _lines_backwards(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:  # an unfinished line
            continue
        if isinstance(row, dict):
            yield row


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from reversed(lines)
            end = begin
        yield rest
