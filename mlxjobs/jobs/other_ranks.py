"""The ranks of a job beside rank 0: they write nothing but their output, and record nothing but a failure."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlxjobs.config.secrets import Shown
from mlxjobs.errors import SchedulerError
from mlxjobs.jobs.failure import TaskFailed, last_line
from mlxjobs.jobs.startable import Place
from mlxjobs.record.history import Attempt, RunStatus
from mlxjobs.record.run import Run

# how long another rank that fails waits for rank 0 to begin
_RANK_0_S = 10.0


def call_as_other_rank(run: Run, place: Place, call: Callable[[], Any], shown: Shown) -> Any:
    """Call the task of a rank that writes nothing, but for its failure: rank 0 may wait for it for ever."""
    try:
        return call()
    except TaskFailed as failed:
        reason = shown.text(last_line(failed.__cause__ or failed))
        with suppress(SchedulerError, OSError):
            _record_failed_rank(run, place, reason)
        raise
    except SystemExit as error:
        if error.code not in (None, 0):
            with suppress(SchedulerError, OSError):
                _record_failed_rank(run, place, shown.text(f"SystemExit: {error.code}"))
        raise


def _record_failed_rank(run: Run, place: Place, reason: str) -> None:
    """Record that the run failed, unless rank 0 has left or the scheduler is ending the job."""
    cluster, here = place.cluster, place.here
    attempt = None if here is None else _begun(run, here.job_id)
    if cluster is None or here is None or attempt is None:
        return
    from mlxjobs.jobs.hand_in import end_attempt
    from mlxjobs.scheduler import Fate

    status = cluster.status([here.job_id]).get(here.job_id)
    if status is not None and cluster.scheduler.fate(status, here) is Fate.RUNS_ON:
        where = f"rank {here.rank} on {socket.gethostname()}"
        words = f"{where}: {reason} (more in {run.output_of(here.rank, 2).name})"
        end_attempt(run, attempt.number, RunStatus.FAILED, words)


def _begun(run: Run, job_id: str) -> Attempt | None:
    """Return this job's attempt, which rank 0 begins, perhaps after another rank has failed already."""
    end = time.monotonic() + _RANK_0_S
    while True:
        attempt = run.state().attempt
        if attempt is not None and attempt.job_id == job_id and attempt.status is None:
            return attempt
        if time.monotonic() >= end:
            return None
        time.sleep(0.1)
