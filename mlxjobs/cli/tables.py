"""Runs as a table of the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from mlxjobs.config.stored import flat
from mlxjobs.errors import MLXJobsError
from mlxjobs.jobs.look import Seen
from mlxjobs.logger.metrics import last_lines
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.console import named_output

_FACTS = ("id", "status", "attempts", "job", "started")
_COLOURS = {
    RunStatus.COMPLETE: "green", RunStatus.FAILED: "red", RunStatus.CANCELLED: "yellow",
    RunStatus.PREEMPTED: "magenta", RunStatus.RUNNING: "cyan", RunStatus.STARTING: "cyan",
}  # fmt: skip


def list_rows(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """Return what `mlxjobs ls` shows of runs."""
    return [_row(one) for one in seen]


def _row(one: Seen) -> dict[str, Any]:
    return {
        "id": one.run.log_id,
        "status": one.state.status,
        "attempts": len(one.state.attempts),
        "job": one.state.job_id,
        "config": flat(_read(one.run, "config")),
        "metrics": _last_metrics(one.run),
        "started": _clock(one.state),
        "reason": one.state.reason,
        "tainted": one.state.tainted,
        "doubt": one.doubt,
    }


def _read(run: Run, name: str) -> Any:
    try:
        return run.read_yaml(name)
    except MLXJobsError:
        return {}


def _clock(state: RunState) -> str:
    start = state.attempts[0].start if state.attempts else None
    return datetime.fromisoformat(start).astimezone().strftime("%d/%m %H:%M") if start else ""


def _last_metrics(run: Run) -> dict[str, Any]:
    """The last line of each metrics file: `train.loss` -> value."""
    lines = last_lines(run.metrics)
    return {f"{name}.{key}": value for name, line in lines.items() for key, value in line.items()}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print what `list_rows` returns."""
    # of the configuration only what tells the runs apart
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row["config"])
        if len({repr(row["config"].get(key)) for row in rows}) > 1
    ]
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _FACTS:
        table.add_column(name, justify="right" if name in ("id", "attempts", "job") else "left", no_wrap=True)
    for name in (*_short(keys, {*_FACTS, "reason", *metrics}), *metrics):
        table.add_column(cell(name), justify="right")
    table.add_column("reason", overflow="fold")
    for row in rows:
        status = row["status"]
        shown = f"{status.value}{'?' if row['doubt'] else ''}"
        table.add_row(
            str(row["id"]),
            f"[{_COLOURS.get(status, 'default')}]{shown}[/]",
            str(row["attempts"]),
            cell(row["job"]),
            row["started"],
            *(cell(row["config"].get(key)) for key in keys),
            *(cell(row["metrics"].get(key)) for key in metrics),
            cell(_reason(row)),
        )
    print_rich(table)


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


def print_rich(table: Table) -> None:
    """Print a table: as wide as the terminal, or as it needs to be in a pipe."""
    console = Console(emoji=False)  # 0:100:5 is a text
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    with named_output():
        console.print(table)


def cell(value: Any) -> str:
    """Return a value as a cell of a table shows it."""
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else escape(str(value))
