"""Arguments that several commands take.

Every start of the command imports this and the files of all groups, so these import at their top only
what is light; a command imports what it needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxjobs.errors import RunError

if TYPE_CHECKING:
    from mlxjobs.record.run import Run

Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
Ids = Annotated[list[str], typer.Argument(metavar="RUN...", help="Numbers of runs: 5, or 7-9.")]
Id = Annotated[str, typer.Argument(metavar="RUN", help="The number of a run: 5.")]


def numbers(words: Sequence[str]) -> list[int]:
    """Return the numbers of the runs that were typed.

    Raises:
        BadParameter: one is not a number, or a range.
    """
    from mlxjobs.record.log_dir import from_ranges

    try:
        return from_ranges(words)
    except RunError as error:
        raise typer.BadParameter(str(error)) from error


def one_run(word: str, logs: Path) -> Run:
    """Return the run whose number was typed.

    Raises:
        RunError: it is not a number, or there is no such run.
    """
    from mlxjobs.record.log_dir import from_ranges
    from mlxjobs.record.run import Run

    numbers = from_ranges([word])
    if len(numbers) != 1:
        raise RunError(f"{word!r} is not one run: give its number")
    run = Run(logs / str(numbers[0]))
    if not os.path.isdir(run.metadata):  # noqa: PTH112 - also where it may not be looked at
        raise RunError(f"{logs.absolute()} has no run {numbers[0]}; see: mlxjobs ls --logs {logs}")
    return run
