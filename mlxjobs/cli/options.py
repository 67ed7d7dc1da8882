"""Arguments that several commands take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mlxjobs.errors import RunError
from mlxjobs.record.log_dir import from_ranges
from mlxjobs.record.run import Run

Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
Ids = Annotated[list[str], typer.Argument(metavar="RUN...", help="Numbers of runs: 5, or 7-9.")]
Id = Annotated[str, typer.Argument(metavar="RUN", help="The number of a run: 5.")]


def numbers(words: Sequence[str]) -> list[int]:
    """Return the numbers of the runs that were typed.

    Raises:
        BadParameter: one is not a number, or a range.
    """
    try:
        return from_ranges(words)
    except RunError as error:
        raise typer.BadParameter(str(error)) from error


def one_run(word: str, logs: Path) -> Run:
    """Return the run whose number was typed.

    Raises:
        RunError: it is not a number, or there is no such run.
    """
    numbers = from_ranges([word])
    if len(numbers) != 1:
        raise RunError(f"{word!r} is not one run: give its number")
    run = Run(logs / str(numbers[0]))
    if not os.path.isdir(run.metadata):  # noqa: PTH112 - also where it may not be looked at
        raise RunError(f"{logs.absolute()} has no run {numbers[0]}; see: mlxjobs ls --logs {logs}")
    return run
