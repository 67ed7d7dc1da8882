"""Attempts of a run without a launcher: the loggers that it would give to their tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxjobs.logger.before import renew
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record.fence import Fence, take_over


def attempt(run: Path, number: int, **options: Any) -> DefaultLogger:
    """Begin an attempt of a run that is not complete, and return its logger."""
    fence = Fence(number)
    if number > 1:
        take_over(run, number, range(1, number))
        renew(run / "metrics", fence)
    return DefaultLogger(run, **{"fence": fence, "unfinished": number > 1, **options})
