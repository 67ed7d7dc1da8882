"""Every error this package raises on purpose.

    MLXJobsError
    ├── InvalidConfigFileError      settings or configuration files that cannot be used
    ├── MissingFieldError           the configuration lacks a field (KeyError too)
    ├── InvalidKeyError             a name that cannot be used for metrics or artifacts (KeyError too)
    ├── InvalidQueryError           a query of the Reader that cannot be parsed (SyntaxError too)
    ├── InvalidMetricError          a metric that cannot be written as JSON (TypeError too)
    ├── ShortMetricsError           a metrics file lacks lines that a checkpoint remembers (OSError too)
    ├── InvalidArtifactError        an object that is not an artifact, or a type that is not registered
    │   └── ArtifactNotFoundError   the run has no such artifact (FileNotFoundError too)
    ├── CheckpointNotFoundError     the run has no such checkpoint (FileNotFoundError too)
    ├── DamagedCheckpointError      neither a checkpoint nor the one before it can be read
    ├── InvalidMapError             an aggregation that cannot be applied
    ├── RunError                    a run directory that cannot be used as asked
    │   └── DamagedHistoryError     a file of its history is not what was written
    ├── SnapshotError               the code cannot be frozen
    ├── InvalidSchedulerError       no scheduler, an unknown one, or a wrong subclass
    ├── InvalidShellPathError       the shell of the job script does not exist
    └── SchedulerError              a scheduler's command could not be run, failed, or was not understood
        └── JobSubmissionError      the scheduler did not take the job
            ├── QueueFullError          it has no room for it at the moment
            └── UnknownSubmissionError  nobody can tell whether it did

A message says what happened, where, and what to do next. `exit_code` is what the program exits with.
"""

from __future__ import annotations


class MLXJobsError(Exception):
    """Base of all errors of this package.

    Attributes:
        exit_code: the exit code of a program that ends with this error.
    """

    exit_code = 2

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidConfigFileError(MLXJobsError):
    """A settings or configuration file, or an override of one, cannot be used."""


class MissingFieldError(MLXJobsError, KeyError):
    """The configuration lacks a field that was asked for."""


class InvalidKeyError(MLXJobsError, KeyError):
    """A name cannot be used for metrics, artifacts or queries."""


class InvalidQueryError(MLXJobsError, SyntaxError):
    """A query of the Reader cannot be parsed; the message shows where."""


class InvalidArtifactError(MLXJobsError):
    """An object is not an artifact, or its type is not registered."""


class ArtifactNotFoundError(InvalidArtifactError, FileNotFoundError):
    """The run has no such artifact."""


class InvalidMetricError(MLXJobsError, TypeError):
    """A metric cannot be written as JSON, or what should be logged is not a dictionary."""


class ShortMetricsError(MLXJobsError, OSError):
    """A metrics file lacks lines that it had when a checkpoint was saved."""


class DamagedCheckpointError(MLXJobsError):
    """A checkpoint cannot be read, nor can the one before it."""


class CheckpointNotFoundError(MLXJobsError, FileNotFoundError):
    """The run has no such checkpoint."""


class InvalidMapError(MLXJobsError):
    """An aggregation map cannot be applied."""


class RunError(MLXJobsError):
    """A run directory cannot be created, or not be used as asked."""


class DamagedHistoryError(RunError):
    """A file of a run's history is not what was written, so nobody knows the state of the run."""


class SnapshotError(MLXJobsError):
    """The code of a run cannot be frozen."""


class InvalidSchedulerError(MLXJobsError):
    """No scheduler is set, or the one that is set is unknown or wrong."""


class InvalidShellPathError(MLXJobsError):
    """The shell that should run the job script does not exist."""


class SchedulerError(MLXJobsError):
    """A scheduler's command could not be run, failed, or its output was not understood."""

    exit_code = 3


class JobSubmissionError(SchedulerError):
    """The scheduler did not take the job."""


class QueueFullError(JobSubmissionError):
    """The scheduler takes no more jobs of this user, or so many at once, at the moment."""


class UnknownSubmissionError(JobSubmissionError):
    """The scheduler did not say whether it took the job, and could not be asked."""
