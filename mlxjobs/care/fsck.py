"""Find what is wrong in run directories, ours and MLXP's, and mend what can be mended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlxjobs.care.findings import Finding
from mlxjobs.care.fsck_logs import check_jobs, check_links, check_marks, check_snapshots
from mlxjobs.care.fsck_metadata import Known, check_history, check_leftovers, check_metadata, lacks_events
from mlxjobs.care.fsck_metrics import check_checkpoints, check_metrics
from mlxjobs.errors import DamagedHistoryError
from mlxjobs.jobs.look import Seen, look_at_runs
from mlxjobs.record.facts import outdate
from mlxjobs.record.history import RunStatus
from mlxjobs.record.run import Run, runs_in

# a run without a history, or without anything, that nobody has touched for so long is no longer written
_IDLE_S = 3600

_CHECKS: tuple[Callable[[Known], Iterator[Finding]], ...] = (
    check_metadata,
    check_metrics,
    check_checkpoints,
    check_leftovers,
)


def check_logs(logs: Path, log_ids: Sequence[int] | None = None, *, fix: bool = False) -> Iterator[Finding]:
    """Check runs, one after the other.

    States that are out of date are recorded, with `fix` or without, as `mlxjobs ls` does.

    Args:
        logs: the log directory.
        log_ids: which runs; None: all, and what the log directory holds beside them.
        fix: mend what can be mended. It may be killed at any moment, and be started again.

    Yields:
        What is wrong; with `fix`, after it was tried to mend it.

    Raises:
        RunError: there is no such directory, or no such run.
    """
    for finding in _findings(logs, log_ids):
        if fix:
            _try_fix(finding, logs)
        yield finding


def _try_fix(finding: Finding, logs: Path) -> None:
    """Mend it, but in a run of ours only: somebody else's may lead anywhere by links."""
    whose = None if finding.run is None else Run(logs / str(finding.run)).stranger
    if whose is not None and not finding.mended:
        finding.error = whose
    else:
        finding.try_fix()
        if finding.mended and finding.run is not None:
            outdate(str(logs / str(finding.run)))


def _findings(logs: Path, log_ids: Sequence[int] | None) -> Iterator[Finding]:
    runs = runs_in(logs)
    before = {run.log_id: _status(run) for run in runs if log_ids is None or run.log_id in log_ids}
    whole = [run.log_id for run in runs if run.log_id in before and not lacks_events(run)]
    if log_ids is not None:
        whole += [log_id for log_id in log_ids if log_id not in before]  # which it says do not exist
    known = look_at_runs(logs, whole)
    for seen in known:
        yield from _check_state(seen, before.get(seen.run.log_id))
    for run in runs:
        if run.log_id in before:
            for finding in _check_run(run):
                finding.run = run.log_id
                yield finding
    yield from check_jobs(logs, known, alone=log_ids is not None)
    if log_ids is None:
        yield from check_marks(logs, known)
        yield from check_links(logs)
        yield from check_snapshots(known)


def _status(run: Run) -> RunStatus | None:
    try:
        return run.state().status
    except DamagedHistoryError:
        return None


def _check_state(seen: Seen, before: RunStatus | None) -> Iterator[Finding]:
    run, now = seen.run, seen.state
    if not now.sequence:
        return  # told with the event that is damaged
    if seen.doubt:
        yield Finding(run.metadata, f"is {now.status}, {seen.doubt}", run=run.log_id)
    elif before is not None and now.status is not before:
        what = f"was {before}, and is {now.status}: {now.reason}"
        yield Finding(run.metadata, what, "record it", None, run.log_id, mended=True)


def _check_run(run: Run) -> Iterator[Finding]:
    """What is wrong with a run when one looks, and still is when one looks again.

    It may have been changed meanwhile, or on another node that this one has an old view of.
    """
    first = {(finding.path, finding.what) for finding in _look_at(run)}
    if first:
        for _ in os.walk(run.path):  # opens all folders, so that this node forgets what it knew of them
            pass
        for finding in _look_at(run):
            if (finding.path, finding.what) in first:
                yield finding


def _look_at(run: Run) -> Iterator[Finding]:
    known = Known(run)
    idle = _idle(run)
    if not any(run.history_dir.glob("*.json")) and not (run.metadata / "info.yaml").exists():
        if idle:  # else it is being made
            yield Finding(
                run.path, "is a folder that never became a run: remove it if it holds nothing of yours"
            )
        return
    yield from check_history(known)
    state = known.state
    known.settled = state is not None and (state.status.ended if state.sequence else idle)
    for check in _CHECKS:
        try:
            yield from check(known)
        except Exception as error:  # noqa: BLE001 - damaged files hold anything; the other checks go on
            yield Finding(run.path, f"could not be checked in full: {type(error).__name__}: {error}")


def _idle(run: Run) -> bool:
    try:
        files = [run.path, run.metadata, *run.metadata.iterdir(), *run.written()]
        return max(path.stat().st_mtime for path in files if path.exists()) < time.time() - _IDLE_S
    except OSError:
        return False
