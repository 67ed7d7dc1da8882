"""How commands show runs: tables of the terminal, and objects of JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlxjobs.errors import MLXJobsError
from mlxjobs.system.console import named_output, say

if TYPE_CHECKING:  # not every command that prints JSON prints tables
    from rich.table import Table

    from mlxjobs.jobs.look import Seen
    from mlxjobs.record.history import RunState
    from mlxjobs.record.run import Run

_FACTS = ("id", "status", "attempts", "job", "started")
_COLOURS = {
    "COMPLETE": "green", "FAILED": "red", "CANCELLED": "yellow",
    "PREEMPTED": "magenta", "RUNNING": "cyan", "STARTING": "cyan",
}  # fmt: skip


def say_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object on a line; NaN and infinities as strings, and what JSON has no type for."""
    from mlxjobs.logger.values import json_object

    say(json.dumps(json_object(json.loads(json.dumps(content, default=str)))))


def printable(text: str) -> str:
    """Return a string as UTF-8 has it; names of files may hold any bytes."""
    return os.fsencode(text).decode(errors="replace")


def list_rows(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """Return what `mlxjobs ls` shows of runs."""
    return [_row(run) for run in seen]


def _row(seen: Seen) -> dict[str, Any]:
    return {
        "id": seen.run.log_id,
        "status": seen.state.status,
        "attempts": len(seen.state.attempts),
        "job": seen.state.job_id,
        "config": _config(seen.run),
        "metrics": _last_metrics(seen.run),
        "started": _clock(seen.state),
        "reason": seen.state.reason,
        "tainted": seen.state.tainted,
        "doubt": seen.doubt,
    }


def _config(run: Run) -> dict[str, Any]:
    from mlxjobs.config.stored import flatten

    try:
        return flatten(run.read_yaml("config"))
    except MLXJobsError:
        return {}


def _clock(state: RunState) -> str:
    start = state.attempts[0].start if state.attempts else None
    return datetime.fromisoformat(start).astimezone().strftime("%d/%m %H:%M") if start else ""


def _last_metrics(run: Run) -> dict[str, Any]:
    """The last line of each metrics file: `train.loss` -> value."""
    from mlxjobs.logger.metrics import last_lines

    lines = last_lines(run.metrics)
    return {f"{name}.{key}": value for name, line in lines.items() for key, value in line.items()}


def print_columns(columns: Mapping[str, Sequence[Any]]) -> None:
    """Print columns side by side."""
    table = _new_table()
    for key in columns:
        table.add_column(_cell(key.removeprefix("config.").removeprefix("info.")))
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(_cell, cells))
    _print(table)


def print_runs(rows: Sequence[dict[str, Any]]) -> None:
    """Print what `list_rows` returns."""
    # of the configuration only what tells the runs apart
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row["config"])
        if len({repr(row["config"].get(key)) for row in rows}) > 1
    ]
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    table = _new_table()
    for name in _FACTS:
        table.add_column(name, justify="right" if name in ("id", "attempts", "job") else "left", no_wrap=True)
    for name in (*_short(keys, {*_FACTS, "reason", *metrics}), *metrics):
        table.add_column(_cell(name), justify="right")
    table.add_column("reason", overflow="fold")
    for row in rows:
        status = row["status"].value
        shown = f"{status}{'?' if row['doubt'] else ''}"
        table.add_row(
            str(row["id"]),
            f"[{_COLOURS.get(status, 'default')}]{shown}[/]",
            str(row["attempts"]),
            _cell(row["job"]),
            row["started"],
            *(_cell(row["config"].get(key)) for key in keys),
            *(_cell(row["metrics"].get(key)) for key in metrics),
            _cell(_reason(row)),
        )
    _print(table)


def _short(keys: Sequence[str], taken: Collection[str]) -> list[str]:
    """The last parts of keys of a configuration, where each is the only one of its name."""
    short = [key.rpartition(".")[2] for key in keys]
    names = Counter([*short, *taken])
    return [
        name if names[name] == 1 else key if key not in taken else f"config.{key}"
        for key, name in zip(keys, short, strict=True)
    ]


def _reason(row: dict[str, Any]) -> str:
    tainted = f"tainted: {row['tainted'][0]}{' ...' if row['tainted'][1:] else ''}" if row["tainted"] else ""
    return "; ".join(filter(None, [row["reason"], tainted]))


def _new_table() -> Table:
    from rich.table import Table

    return Table(box=None, header_style="bold", pad_edge=False)


def _print(table: Table) -> None:
    """Print a table: as wide as the terminal, or as it needs to be in a pipe."""
    from rich.console import Console

    console = Console(emoji=False)  # 0:100:5 is a string
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    with named_output():
        console.print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else escape(str(value))
