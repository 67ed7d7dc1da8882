"""A task that raises: what its user is shown, and the line that is recorded."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mlxjobs.config.secrets import Shown
from mlxjobs.record.fence import Superseded
from mlxjobs.record.history import Preempted

_OURS = os.path.dirname(__file__)  # noqa: PTH120 - as code objects name files


class TaskFailed(Exception):
    """The user's task raised; its traceback has been printed and the run is recorded as FAILED."""


def call_and_report(call: Callable[[], Any], shown: Shown) -> Any:
    """Call the task; what it raises is printed, and not recorded."""
    try:
        return call()
    except (Preempted, Superseded, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        print_traceback(error, shown)
        raise TaskFailed from error


def last_line(error: BaseException) -> str:
    """Return the last line of a traceback: the error and its message."""
    return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]


def print_traceback(error: BaseException, shown: Shown) -> None:
    """Print the whole traceback from the task's own first frame on, without secrets."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames):
        frames = frames.tb_next
    sys.stderr.write(shown.text("".join(traceback.format_exception(type(error), error, frames))))
    sys.stderr.flush()


def _is_ours(frames: TracebackType) -> bool:
    return os.path.dirname(frames.tb_frame.f_code.co_filename) == _OURS  # noqa: PTH120
