"""The command `mlxjobs`: what one does to runs from outside."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlxjobs import __version__
from mlxjobs.cli import code_commands
from mlxjobs.config.stored import flat
from mlxjobs.errors import MLXJobsError, RunError
from mlxjobs.jobs import look
from mlxjobs.logger.metrics import last_lines
from mlxjobs.logger.values import json_object
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.log_dir import from_ranges
from mlxjobs.record.run import Run, runs_in
from mlxjobs.system.console import named_output, note, say

app = typer.Typer(
    help="""Look at runs, end them, and make them come back.

    A run is a folder of the log directory: logs/5. Its number is all that these commands need:

        mlxjobs ls              all runs of ./logs, their states checked with the scheduler

        mlxjobs ls QUERY        those that match, as in 'config.lr > 0.01 & train.loss.last < 1'

        mlxjobs cancel 5 7-9    end runs for good

        mlxjobs preempt 5       checkpoint, leave, and come back

        mlxjobs requeue 5       stop the job now and start it again

        mlxjobs drill -- python main.py    does the program resume as it should?

        mlxjobs fsck            what is damaged, torn, stale or left over; --fix mends it

        mlxjobs diff 5 8        what differs: code, configuration, environment

        mlxjobs checkout 5 DIR  the code of a run, as a plain folder

        mlxjobs snapshots       the frozen code: size, age, who uses it; prune removes what nobody needs

        mlxjobs env 5           what was installed where it was launched, as a requirements file
    """,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
_Ids = Annotated[list[str], typer.Argument(metavar="RUN...", help="Numbers of runs: 5, or 7-9.")]
# what a query has and the name of a folder has not
_QUERY = re.compile(r"[=<>~&|`\s]|^(config|info|guard)\.")
_FACTS = ("id", "status", "attempts", "job", "started")
_COLOURS = {
    RunStatus.COMPLETE: "green", RunStatus.FAILED: "red", RunStatus.CANCELLED: "yellow",
    RunStatus.PREEMPTED: "magenta", RunStatus.RUNNING: "cyan", RunStatus.STARTING: "cyan",
}  # fmt: skip


def _numbers(words: Sequence[str]) -> list[int]:
    try:
        return from_ranges(words)
    except RunError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def ls(
    what: Annotated[str, typer.Argument(metavar="[QUERY|LOGS]", help="Which runs, or where.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run.")] = False,
    logs: _Logs = Path("logs"),
    sort: Annotated[str, typer.Option(help="Sort by a field; -FIELD: the largest first.")] = "",
    columns: Annotated[str, typer.Option(help="Fields to show, with commas between.")] = "",
) -> None:
    """Show the runs of a log directory: id, status, attempts, what differs, the last metrics.

    States are checked with the scheduler, in one question for all runs; "?" marks a state that
    nobody could confirm. A run that never said goodbye is put right.

    With a query, as in mlxjobs ls 'config.lr > 0.01 & train.loss.last < 1', only the runs that match.
    """
    if what and (os.path.isdir(what) or not _QUERY.search(what)):  # noqa: PTH112 - a query may be too long for a name
        logs, what = Path(what), ""
    if what or sort or columns:
        _ls_query(logs, what, sort, columns, as_json=as_json)
        return
    rows = list_rows(look.look(logs))
    _note_others(logs)
    if as_json:
        for row in rows:
            say(json.dumps(json_object(json.loads(json.dumps(row, default=str)))))  # NaN is no JSON
        return
    if not rows:
        say(f"no runs in {logs.absolute()}")
        return
    _print_table(rows)
    for row in rows:
        if row["doubt"]:
            note(f"run {row['id']}: {row['doubt']}")


def _note_others(logs: Path) -> None:
    """Say that there are runs which are not shown: those of MLXP have no history that could be checked."""
    infos = [run.metadata / "info.yaml" for run in runs_in(logs) if not run.history_dir.is_dir()]
    if count := sum(info.is_file() for info in infos):
        again = f"mlxjobs ls 'info.log_id > 0' --logs {logs}"
        note(f"{count} runs of MLXP are not shown, as they have no history to check: {again}")


def _ls_query(logs: Path, query: str, sort: str, columns: str, *, as_json: bool) -> None:
    from mlxjobs.cli import listing

    reader = listing.trusting_reader(logs)
    for log_id, doubt in reader.doubts.items():
        note(f"run {log_id}: {doubt}")
    table = listing.list_runs(reader, query, sort=sort or None, columns=columns.split(","))
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    if as_json:
        for row in rows:
            say(json.dumps(json_object(row), default=str))
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for key in table:
        shown.add_column(_cell(key.removeprefix("config.").removeprefix("info.")))
    for row in rows:
        shown.add_row(*map(_cell, row.values()))
    _print(shown)


@app.command()
def export(
    query: Annotated[str, typer.Argument(help="Which runs; none: all.")] = "",
    csv: Annotated[str, typer.Option(metavar="FILE", help="Write CSV; -: to standard output.")] = "",
    parquet: Annotated[str, typer.Option(metavar="FILE", help="Write Parquet (needs pyarrow).")] = "",
    as_json: Annotated[str, typer.Option("--json", metavar="FILE", help="One JSON object a line.")] = "",
    metrics: Annotated[str, typer.Option(metavar="SERIES", help="Write train.loss, say, in full.")] = "",
    logs: _Logs = Path("logs"),
) -> None:
    """Write runs to a file: all fields and the last metrics of each, or one series of all of them."""
    from mlxjobs.cli import listing

    targets = {form: file for form, file in (("csv", csv), ("parquet", parquet), ("json", as_json)) if file}
    if len(targets) != 1:
        raise typer.BadParameter("give one of --csv FILE, --parquet FILE, --json FILE")
    ((form, target),) = targets.items()
    count = listing.export(listing.trusting_reader(logs), query, metrics or None, form, target)
    if target != "-":
        say(f"{count} rows in {target}")


def list_rows(seen: Sequence[look.Seen]) -> list[dict[str, Any]]:
    """Return what `mlxjobs ls` shows of runs."""
    return [_row(one) for one in seen]


def _row(one: look.Seen) -> dict[str, Any]:
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


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
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
        table.add_column(_cell(name), justify="right")
    table.add_column("reason", overflow="fold")
    for row in rows:
        status = row["status"]
        shown = f"{status.value}{'?' if row['doubt'] else ''}"
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


def _print(table: Table) -> None:
    console = Console(emoji=False)  # 0:100:5 is a text
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no width to fit into
    with named_output():
        console.print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else escape(str(value))


def _each(
    words: Sequence[str], logs: Path, act: Callable[[Sequence[look.Seen]], Iterator[look.Outcome]]
) -> None:
    failed = 0
    for outcome in act(look.look(logs, _numbers(words))):
        if isinstance(outcome, MLXJobsError):
            note(f"error: {outcome}")
            failed = max(failed, outcome.exit_code)
        else:
            say(outcome)
    if failed:
        raise SystemExit(failed)


@app.command()
def cancel(runs: _Ids, logs: _Logs = Path("logs")) -> None:
    """End runs for good: their jobs are cancelled, their status is CANCELLED, they stay down."""
    _each(runs, logs, look.cancel)


@app.command()
def preempt(runs: _Ids, logs: _Logs = Path("logs")) -> None:
    """Make running runs checkpoint, leave the machine, and come back from the queue."""
    _each(runs, logs, look.preempt)


@app.command()
def requeue(runs: _Ids, logs: _Logs = Path("logs")) -> None:
    """Stop the jobs of runs now and start them again, from their last checkpoints."""
    _each(runs, logs, look.requeue)


@app.command(context_settings={"allow_interspersed_args": False})
def drill(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="python main.py ...")],
    scheduler: Annotated[str, typer.Option(help="Where; by default the local queue.")] = "",
    checkpoints: Annotated[int, typer.Option(min=2, help="How many checkpoints to wait for.")] = 3,
    timeout: Annotated[float, typer.Option(min=0, help="Minutes a run may go without a checkpoint.")] = 60,
    way: Annotated[list[str] | None, typer.Option(help="Only this way; may be given again.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the runs, whatever they show.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a way.")] = False,
    logs: _Logs = Path("logs"),
) -> None:
    """Try whether a program resumes as it should, before it has to: mlxjobs drill -- python main.py lr=0.1

    It runs undisturbed for a few checkpoints, then again while it is warned, requeued, killed, and at the
    end of its time; the metrics of all are compared. Exit code 0: it resumes exactly from all of that.
    """
    from mlxjobs.care.drill import HINTS, Drill, is_exact

    one = Drill(
        command, logs,
        scheduler=scheduler or None, checkpoints=checkpoints, patience_s=timeout * 60, ways=way or (),
    )  # fmt: skip
    outcomes = one.run()
    exact = is_exact(outcomes)
    if as_json:
        for outcome in outcomes:
            row = {"way": outcome.way, "verdict": outcome.verdict.value, "words": outcome.words}
            say(json.dumps(row, ensure_ascii=False))
    else:
        width = max(len(outcome.title) for outcome in outcomes)
        for outcome in outcomes:
            say(f"{outcome.title:<{width}}  {outcome.words}")
        for verdict in dict.fromkeys(outcome.verdict for outcome in outcomes):
            if verdict in HINTS:
                say(f"\n{verdict.value}? {HINTS[verdict]}")
    if exact and not keep:
        one.remove()
    else:
        note(f"the runs are kept in {one.folder}; remove it when you have looked")
    if not exact:
        raise SystemExit(1)


@app.command()
def fsck(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="5, or 7-9; none: all.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a finding.")] = False,
    logs: _Logs = Path("logs"),
) -> None:
    """Find what is wrong in run directories: torn, damaged, stale and left-over files; of MLXP's runs too.

    Ends with 0 if nothing is wrong, or all of it was mended; with 1 if something is left.
    """
    from mlxjobs.care.fsck import check

    found = left = 0
    for finding in check(logs, _numbers(runs) if runs else None, fix=fix):
        found += 1
        left += not finding.mended
        say(json.dumps(finding.as_json()) if as_json else finding.line(logs, fix=fix))
    if not as_json:
        say(f"{found} found, {found - left} mended, {left} left" if found else "nothing found")
    if left:
        raise SystemExit(1)


for _command in (code_commands.diff, code_commands.checkout, code_commands.env):
    app.command()(_command)
app.add_typer(code_commands.snapshots_app, name="snapshots")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        say(f"mlxjobs {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code."""
    warnings.showwarning = lambda message, *_: note(f"warning: {message}")
    if isinstance(sys.stdout, TextIOWrapper):  # what the terminal has no sign for is shown all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except MLXJobsError as error:
        note(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        note(f"error: {error.filename}: {error.strerror}")
        sys.exit(MLXJobsError.exit_code)
