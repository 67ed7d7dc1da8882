"""Commands that do something to runs: `mlxjobs cancel`, `preempt`, `requeue`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlxjobs.cli.options import Ids, Logs, numbers
from mlxjobs.errors import MLXJobsError
from mlxjobs.jobs import look
from mlxjobs.system.console import note, say


def cancel(runs: Ids, logs: Logs = Path("logs")) -> None:
    """End runs for good: their jobs are cancelled, their status is CANCELLED, they stay down."""
    _each(runs, logs, look.cancel)


def preempt(runs: Ids, logs: Logs = Path("logs")) -> None:
    """Make running runs checkpoint, leave the machine, and come back from the queue."""
    _each(runs, logs, look.preempt)


def requeue(runs: Ids, logs: Logs = Path("logs")) -> None:
    """Stop the jobs of runs now and start them again, from their last checkpoints."""
    _each(runs, logs, look.requeue)


def _each(
    words: Sequence[str], logs: Path, act: Callable[[Sequence[look.Seen]], Iterator[look.Outcome]]
) -> None:
    failed = 0
    for outcome in act(look.look(logs, numbers(words))):
        if isinstance(outcome, MLXJobsError):
            note(f"error: {outcome}")
            failed = max(failed, outcome.exit_code)
        else:
            say(outcome)
    if failed:
        raise SystemExit(failed)
