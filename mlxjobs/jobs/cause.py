"""Why an attempt ended, in one line: `OUT_OF_MEMORY at epoch 41, 15.8 of 16 GB`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mlxjobs.logger.metrics import last_lines
from mlxjobs.record.history import Attempt
from mlxjobs.record.run import Run
from mlxjobs.scheduler import JobState, JobStatus

# keys that tell how far a task is, the coarsest first
PROGRESS = ("epoch", "round", "episode", "iteration", "iter", "global_step", "step", "update", "batch")
_GIB = 1 << 30


def with_progress(run: Run, words: str) -> str:
    """Add how far the run has come, by the last lines of its metrics, to the words for what happened."""
    at = progress(last_lines(run.metrics).values())
    return f"{words} at {at}" if at else words


def progress(lines: Collection[Mapping[str, Any]]) -> str | None:
    """Say how far a task had come when it logged these lines: `epoch 41`; None: they do not tell."""
    for key in PROGRESS:
        values = [line[key] for line in lines if isinstance(line.get(key), int)]
        if values:
            return f"{key.removeprefix('global_')} {max(values)}"
    return None


def cause_of_job(run: Run, attempt: Attempt | None, status: JobStatus) -> str:
    """Say why the job of an attempt ended, as its scheduler knows it.

    Args:
        run: the run.
        attempt: what ran in the job; None if nothing began.
        status: the job's, which has ended.
    """
    words = _head(status)
    if status.state is JobState.NODE_FAIL and attempt is not None and attempt.host:
        words = f"{words} {attempt.host}"
    if attempt is not None:
        words = with_progress(run, words)
    if status.memory is not None and status.state is JobState.OUT_OF_MEMORY:
        used, limit = (f"{size / _GIB:.3g}" for size in status.memory)
        words = f"{words}, {used} of {limit} GB"
    said = f"{words} {status.state.name}".upper()
    own = [part for part in (status.word, status.reason) if part and part.upper() not in said]
    return f"{words} ({': '.join(own)})" if own else words


def _head(status: JobStatus) -> str:
    if status.state is JobState.COMPLETED:
        return "exit code 0, but the task never said that it ended,"
    if status.state is JobState.FAILED and status.reason:
        return status.reason
    # a run of a job that was started again: Slurm says REQUEUED, which is no end
    return status.state.name if status.state.ended else status.word
