"""What a task records: metrics, artifacts and checkpoints of its run."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mlxjobs.logger import artifacts
from mlxjobs.logger.artifact_history import ArtifactHistory
from mlxjobs.logger.artifacts import Artifact
from mlxjobs.logger.checkpoints import SUFFIX
from mlxjobs.logger.metrics import MetricsWriter
from mlxjobs.logger.resume import Resumption
from mlxjobs.logger.saving import Checkpoints, Monitor
from mlxjobs.record.fence import Fence, Superseded

# the loggers of this process, by directory: a pickled logger comes back as the one of its run
_ACTIVE: WeakValueDictionary[str, DefaultLogger] = WeakValueDictionary()
_LOADING: ContextVar[DefaultLogger | None] = ContextVar("loading", default=None)


class Logger(abc.ABC):
    """Base of all loggers: where a run's files are, and what to do when it is preempted.

    Args:
        log_dir: the run directory.
        preempted: tells whether the scheduler has asked this attempt to stop.
    """

    def __init__(self, log_dir: Path | str, *, preempted: Callable[[], bool] | None = None) -> None:
        self._log_dir = Path(log_dir).absolute()
        self._preempted = preempted
        self._callbacks: list[Callable[[], object]] = []

    @property
    def log_id(self) -> int | str:
        """The run's number, or the name of its folder if that is none."""
        name = self._log_dir.name
        return int(name) if name.isdecimal() else name

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self._log_dir)

    @property
    def parent_log_dir(self) -> str:
        """The folder with all runs."""
        return str(self._log_dir.parent)

    @property
    def metrics_dir(self) -> str:
        """The folder of what `log_metrics` writes."""
        return str(self._log_dir / "metrics")

    @property
    def artifacts_dir(self) -> str:
        """The folder of artifacts, with one folder for each type."""
        return str(self._log_dir / "artifacts")

    @property
    def metadata_dir(self) -> str:
        """The folder of `config.yaml`, `info.yaml` and `mlxpy.yaml`."""
        return str(self._log_dir / "metadata")

    def get_info(self) -> dict[str, Any]:
        """Return the run's number and its folders."""
        keys = ("log_id", "log_dir", "metrics_dir", "metadata_dir", "artifacts_dir")
        return {key: getattr(self, key) for key in keys}

    @property
    def preempted(self) -> bool:
        """True once the scheduler has asked this attempt to stop; the next `log_checkpoint` leaves."""
        return self._preempted is not None and self._preempted()

    def on_preemption(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Have a function called when a preempted attempt leaves, after its last checkpoint."""
        self._callbacks.append(callback)
        return callback

    def run_preemption_callbacks(self) -> None:
        """Call what `on_preemption` was given, in that order, whatever one of them raises."""
        with ExitStack() as stack:
            for callback in reversed(self._callbacks):
                stack.callback(callback)

    @abc.abstractmethod
    def log_metrics(self, metrics_dict: Mapping[str, Any], log_name: str = "metrics") -> None:
        """Append a dictionary of scalars to `metrics/<log_name>.json`."""

    @abc.abstractmethod
    def log_artifact(self, artifact: Artifact, log_name: str) -> None:
        """Write an artifact to `artifacts/<its class>/<log_name><ext>`."""

    @abc.abstractmethod
    def log_checkpoint(
        self,
        checkpoint: Any,
        log_name: str = "checkpoint",
        *,
        keep: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
        blocking: bool = True,
    ) -> None:
        """Write an object from which the task can go on."""

    @abc.abstractmethod
    def load_checkpoint(self, log_name: str | None = None, root: str | Path | None = None) -> Any:
        """Read an object that `log_checkpoint` wrote."""


class DefaultLogger(Logger):
    """Records a run in its directory, each step once however often the run is resumed.

    An attempt that loads a checkpoint of the run goes on from there: metrics that earlier attempts
    wrote after that checkpoint are moved to `metrics/.superseded/`, and artifacts are as they were. An
    attempt that saves or completes without having loaded one has begun from scratch: all is moved.

    Args:
        log_dir: the run directory; made if missing.
        fence: of this attempt; by default the logger belongs to none.
        unfinished: there were attempts before, and the run is not complete.
        preempted: tells whether the scheduler has asked this attempt to stop.
        checkpointed: called when a checkpoint is on the disk; what it raises ends the task.
        resumed: called with a checkpoint of this run when the attempt goes on from it.
    """

    _checkpointed: Callable[[], None] | None = None
    _resumed: Callable[[Path], None] | None = None

    def __init__(
        self,
        log_dir: Path | str,
        *,
        fence: Fence | None = None,
        unfinished: bool = False,
        preempted: Callable[[], bool] | None = None,
        checkpointed: Callable[[], None] | None = None,
        resumed: Callable[[Path], None] | None = None,
    ) -> None:
        super().__init__(log_dir, preempted=preempted)
        for folder in (self.metrics_dir, self.artifacts_dir, self.metadata_dir):
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._checkpointed = checkpointed
        self._resumed = resumed
        self._attach(fence, unfinished)
        _ACTIVE[self.log_dir] = self

    def _attach(self, fence: Fence | None = None, unfinished: bool = False) -> None:
        self._fence = fence or Fence()
        self._metrics = MetricsWriter(self._log_dir / "metrics", fence)
        self._append = self._metrics.append
        folder = Path(self.artifacts_dir)
        self._history = ArtifactHistory(folder, self._fence, lambda: self._checkpoints.newest)
        self._resumption = Resumption(self._metrics, self._history, str(self.log_id), unfinished=unfinished)
        self._checkpoints = Checkpoints(self._log_dir, self._history, self._metrics, self._resumption)
        self._background = self._checkpoints.background

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.log_dir)

    def log_metrics(self, metrics_dict: Mapping[str, Any], log_name: str = "metrics") -> None:
        """Append one line to `metrics/<log_name>.json`.

        Args:
            metrics_dict: numbers, strings, numpy and torch scalars. NaN and infinities become the
                strings "NaN", "Infinity" and "-Infinity", since JSON has no numbers for them.
            log_name: the file, without `.json`.

        Raises:
            InvalidKeyError: no metrics file can have this name.
            InvalidMetricError: a value cannot be written; nothing was.
            OSError: the line could not be written, nothing of it was; or a checkpoint before it could not.
        """
        if self._background.error is not None:
            self._background.raise_error()
        self._append(metrics_dict, log_name)

    def log_checkpoint(
        self,
        checkpoint: Any,
        log_name: str = "checkpoint",
        *,
        keep: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
        blocking: bool = True,
    ) -> None:
        """Write an object from which the task can go on to `artifacts/Checkpoint/<log_name>.pkl`.

        When this returns it is on the disk. A preempted attempt leaves here, in any case after that.

        Args:
            checkpoint: anything that pickle or cloudpickle takes.
            log_name: the file, with or without `.pkl`.
            keep: how many to keep, this one included, as `<log_name>.pkl.<number>`; by default this
                and the one before.
            monitor: a metric, `<log name>.<key>`: the checkpoint at whose time its last value was the
                best so far is kept too, as `<log_name>_best`.
            mode: `min` or `max`: which values of it are good.
            blocking: False to return when the object is copied in memory, and write it meanwhile. What
                fails is raised by the next call of the logger, or fails the run at its end.

        Raises:
            InvalidKeyError: no checkpoint can have this name, or `monitor` was never logged.
            InvalidArtifactError: the object cannot be pickled; the old checkpoint is as it was.
            OSError: it, or the one before, could not be written; the old checkpoint is as it was.
        """
        by = None if monitor is None else Monitor(monitor, mode)
        self._checkpoints.save(checkpoint, log_name, keep=keep, monitor=by, blocking=blocking)
        if not blocking and not self.preempted:
            return
        self._checkpoints.await_saved()
        if self._checkpointed is not None:
            self._checkpointed()

    def load_checkpoint(self, log_name: str | None = None, root: str | Path | None = None) -> Any:
        """Read an object that `log_checkpoint` wrote; this runs what the file says, as pickle does.

        A damaged checkpoint is replaced, with a warning, by the one before it.

        Args:
            log_name: the checkpoint, with or without `.pkl`; by default the newest.
            root: another run's directory, or the folder of the file; by default this run.

        Raises:
            CheckpointNotFoundError: there is none; it says where it was looked for.
            DamagedCheckpointError: there is one, but none that can be read.
        """
        place = None if root is None else Path(root)
        own = self._checkpoints.are_in(place)
        token = _LOADING.set(self if own else None)
        try:
            loaded = self._checkpoints.load(log_name, place)
        finally:
            _LOADING.reset(token)
        if own and self._resumption.goes_on_from(loaded.path, loaded.record) and self._resumed is not None:
            self._resumed(loaded.path)
        return loaded.checkpoint

    def log_artifact(self, artifact: Artifact, log_name: str) -> None:
        """Write an artifact to `artifacts/<its class>/<log_name><ext>`.

        Args:
            artifact: an instance of a subclass of `Artifact`.
            log_name: the file, without extension.

        Raises:
            InvalidArtifactError: it is not an artifact, or its `_save` wrote nothing.
            InvalidKeyError: no artifact can have this name.
            OSError: the file could not be written.
        """
        self._background.raise_error()
        if type(artifact) is artifacts.Checkpoint and artifact.ext == SUFFIX:
            self.log_checkpoint(artifact.obj, log_name)
        else:
            artifacts.write_artifact(artifact, Path(self.artifacts_dir), log_name, self._history)

    def log_artifacts(
        self,
        artifact: Any,
        artifact_name: str | None = None,
        artifact_type: str | None = None,
        *,
        log_name: str | None = None,
    ) -> None:
        """Write an object to `artifacts/<artifact_type>/<artifact_name>`, or an `Artifact` to its place.

        Args:
            artifact: an `Artifact`, or any object that the type takes.
            artifact_name: the file.
            artifact_type: a registered type; not needed for an `Artifact`.
            log_name: another word for `artifact_name`.

        Raises:
            InvalidArtifactError: the type is missing, not registered, or does not take the object.
            InvalidKeyError: no artifact can have this name.
            OSError: the file could not be written.
        """
        self._background.raise_error()
        name: Any = artifact_name if artifact_name is not None else log_name
        if artifact_type is None or isinstance(artifact, Artifact):
            self.log_artifact(artifact, name)
        else:
            artifacts.write_typed(artifact, Path(self.artifacts_dir), name, artifact_type, self._history)

    def load_artifacts(
        self,
        artifact_name: str,
        artifact_type: str | type[Artifact] | None = None,
        root: str | Path | None = None,
    ) -> Any:
        """Read an artifact.

        Args:
            artifact_name: the file, with or without extension.
            artifact_type: its type; by default the only one that has the name.
            root: another run's directory; by default this run.

        Raises:
            InvalidArtifactError: there is none, or several, or the type cannot be read.
            InvalidKeyError: no artifact can have this name.
        """
        folder = Path(self.artifacts_dir if root is None else root)
        if root is not None and (folder / "artifacts").is_dir():
            folder = folder / "artifacts"
        return artifacts.read_artifact(folder, artifact_name, artifact_type)

    def register_artifact_type(
        self, name: str, save: Callable[[Any, str], object], load: Callable[[str], Any]
    ) -> None:
        """Say how objects of a type of artifacts are written, `save(obj, path)`, and read, `load(path)`.

        Raises:
            InvalidKeyError: no folder can have this name.
            InvalidArtifactError: `save` or `load` cannot be called.
        """
        artifacts.register_artifact_type(name, save, load)

    def await_checkpoint(self) -> None:
        """Wait until no checkpoint is being written; if that fails, the next call raises it."""
        self._background.join()

    def finish(self, *, complete: bool = True) -> None:
        """Settle which metrics and artifacts count, and flush; called when an attempt ends.

        Args:
            complete: the run is; else a later attempt may go on from a checkpoint.

        Raises:
            OSError: they, or the last checkpoint, could not be written.
            Superseded: a newer attempt has begun.
        """
        self._fence.check()
        self._checkpoints.await_saved()
        self._resumption.ends(complete=complete)
        self._metrics.sync()

    def forget(self) -> None:
        """Forget what a later attempt would need, for the run is complete and that is recorded."""
        self._history.forget()

    def close(self) -> None:
        """Close the files; logging afterwards opens them again."""
        self.await_checkpoint()
        if _ACTIVE.get(self.log_dir) is self:
            del _ACTIVE[self.log_dir]
        self._metrics.close()
        with suppress(OSError, Superseded):
            self._metrics.settle(complete=False)
        self._fence.close()


class SilentLogger(DefaultLogger):
    """For the other processes of a parallel job: what is written goes nowhere, reading works."""

    def __init__(
        self,
        log_dir: Path | str,
        *,
        preempted: Callable[[], bool] | None = None,
        checkpointed: Callable[[], None] | None = None,
    ) -> None:
        Logger.__init__(self, log_dir, preempted=preempted)  # makes no folders
        self._checkpointed = checkpointed
        self._attach()
        _ACTIVE[self.log_dir] = self

    def log_metrics(self, metrics_dict: Mapping[str, Any], log_name: str = "metrics") -> None:
        """Do nothing."""

    def log_checkpoint(self, checkpoint: Any, log_name: str = "checkpoint", **options: Any) -> None:
        """Write nothing; a preempted attempt may leave here."""
        if self._checkpointed is not None:
            self._checkpointed()

    def log_artifact(self, artifact: Artifact, log_name: str) -> None:
        """Do nothing."""

    def log_artifacts(self, *args: Any, **options: Any) -> None:
        """Do nothing."""

    def finish(self, *, complete: bool = True) -> None:
        """Do nothing."""


def _restore(cls: type[DefaultLogger], log_dir: str) -> DefaultLogger:
    """Return the logger of a run in this process, else one that adds to the run and rewinds nothing."""
    if (active := _ACTIVE.get(log_dir)) is not None:
        return active
    loading = _LOADING.get()
    if loading is not None and Path(log_dir).name == loading._log_dir.name:
        return loading  # the run has been moved since
    logger = cls.__new__(cls)
    Logger.__init__(logger, log_dir)
    logger._attach()
    _ACTIVE[log_dir] = logger
    return logger
