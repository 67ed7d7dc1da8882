"""Commands that do something to runs: `mlxjobs cancel`, `preempt`, `requeue`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlxjobs.cli.options import Ids, Logs, numbers
from mlxjobs.errors import MLXJobsError
from mlxjobs.system.console import note, say

if TYPE_CHECKING:
    from mlxjobs.jobs.act import DoneOrError
    from mlxjobs.jobs.look import Seen


def cancel(runs: Ids, logs: Logs = Path("logs")) -> None:
    """End runs for good: their jobs are cancelled, their status is CANCELLED, they stay down."""
    from mlxjobs.jobs.act import cancel_runs

    _each(runs, logs, cancel_runs)


def preempt(runs: Ids, logs: Logs = Path("logs")) -> None:
    """Make running runs checkpoint, leave the machine, and come back from the queue."""
    from mlxjobs.jobs.act import preempt_runs

    _each(runs, logs, preempt_runs)


def requeue(runs: Ids, logs: Logs = Path("logs")) -> None:
    """Stop the jobs of runs now and start them again, from their last checkpoints."""
    from mlxjobs.jobs.act import requeue_runs

    _each(runs, logs, requeue_runs)


def _each(words: Sequence[str], logs: Path, act: Callable[[Sequence[Seen]], Iterator[DoneOrError]]) -> None:
    from mlxjobs.jobs.look import look_at_runs

    failed = 0
    for outcome in act(look_at_runs(logs, numbers(words))):
        if isinstance(outcome, MLXJobsError):
            note(f"error: {outcome}")
            failed = max(failed, outcome.exit_code)
        else:
            say(outcome)
    if failed:
        raise SystemExit(failed)
