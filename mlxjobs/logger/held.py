"""A run of a drill stops in the middle of a step, for the drill to disturb it there.

.drill/<time>/<way>/
  .hold     `wait 2` or `kill 2`: what the first attempt does after its second checkpoint
  .held     written when it does
  1/        the run
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record.fence import Fence

DRILL, HOLD, HELD = ".drill", ".hold", ".held"


def _is_held(log_dir: Path) -> bool:
    """Whether a run is one of a drill that wants to disturb it."""
    return log_dir.parts[-4:-3] == (DRILL,) and (log_dir.parent / HOLD).exists()


def make_logger(log_dir: Path, warned: Callable[[], bool], *, fence: Fence, **hooks: Any) -> DefaultLogger:
    """Make the logger of an attempt, which a drill may want to disturb.

    Args:
        log_dir: the run directory.
        warned: tells whether a warning of the scheduler has come.
        fence: what the attempt writes through.
        hooks: what else `DefaultLogger` takes.
    """
    if fence.attempt != 1 or not _is_held(log_dir):
        return DefaultLogger(log_dir, fence=fence, **hooks)
    logger = HeldLogger(log_dir, fence=fence, **hooks)
    logger.hold(warned)
    return logger


class HeldLogger(DefaultLogger):
    """A logger that keeps the task from going on, or kills it, in the step after a given checkpoint."""

    # of the class, as a logger that was unpickled elsewhere never holds
    _kills = False
    _left: int | None = None
    _warned: Callable[[], bool] | None = None

    def hold(self, warned: Callable[[], bool]) -> None:
        """Do what the drill has asked for.

        Args:
            warned: tells whether a warning of the scheduler has come; then the task goes on.
        """
        how, after = self._place(HOLD).read_text().split()
        self._kills, self._left, self._warned = how == "kill", int(after), warned

    def log_metrics(self, metrics_dict: Mapping[str, Any], log_name: str = "metrics") -> None:
        """Append one line, which a killed attempt will have written after its last checkpoint."""
        super().log_metrics(metrics_dict, log_name)
        self._hold_if_due()

    def log_checkpoint(self, checkpoint: Any, log_name: str = "checkpoint", **options: Any) -> None:
        """Write a checkpoint, and count it."""
        self._hold_if_due()
        super().log_checkpoint(checkpoint, log_name, **options)
        if self._left is not None:
            self._left -= 1

    def _place(self, name: str) -> Path:
        return self._log_dir.parent / name

    def _hold_if_due(self) -> None:
        if self._left is None or self._left > 0:
            return
        self._left = None
        self.await_checkpoint()
        self._place(HELD).touch()
        if self._kills:
            os.kill(os.getpid(), signal.SIGKILL)
        while self._place(HOLD).exists() and self._warned is not None and not self._warned():
            time.sleep(0.05)
