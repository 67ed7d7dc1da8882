"""Commands that show runs: `mlxjobs ls`, `export`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from mlxjobs.cli.options import Logs
from mlxjobs.system.console import counted, note, say

# what a query has and the name of a folder has not
_QUERY = re.compile(r"[=<>~&|`\s]|^(config|info|guard)\.")


def ls(
    what: Annotated[str, typer.Argument(metavar="[QUERY|LOGS]", help="Which runs, or where.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run.")] = False,
    logs: Logs = Path("logs"),
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
    from mlxjobs.cli.tables import list_rows, print_runs, say_json
    from mlxjobs.jobs.look import look_at_runs

    rows = list_rows(look_at_runs(logs))
    _note_others(logs)
    if as_json:
        for row in rows:
            say_json(row)
        return
    if not rows:
        say(f"no runs in {logs.absolute()}")
        return
    print_runs(rows)
    for row in rows:
        if row["doubt"]:
            note(f"run {row['id']}: {row['doubt']}")


def _note_others(logs: Path) -> None:
    """Say how many runs are not shown: those of MLXP have no history that could be checked."""
    from mlxjobs.record.run import runs_in

    infos = [run.metadata / "info.yaml" for run in runs_in(logs) if not run.history_dir.is_dir()]
    if count := sum(info.is_file() for info in infos):
        again = f"mlxjobs ls 'info.log_id > 0' --logs {logs}"
        runs = "1 run of MLXP is not shown, as it has"
        if count > 1:
            runs = f"{count} runs of MLXP are not shown, as they have"
        note(f"{runs} no history to check: {again}")


def _ls_query(logs: Path, query: str, sort: str, columns: str, *, as_json: bool) -> None:
    from mlxjobs.cli import listing
    from mlxjobs.cli.tables import print_columns, say_json

    reader = listing.trusting_reader(logs)
    for log_id, doubt in reader.doubts.items():
        note(f"run {log_id}: {doubt}")
    table = listing.list_runs(reader, query, sort=sort or None, columns=columns.split(","))
    if not as_json:
        print_columns(table)
        return
    for cells in zip(*table.values(), strict=True):
        say_json(dict(zip(table, cells, strict=True)))


def export(
    query: Annotated[str, typer.Argument(help="Which runs; none: all.")] = "",
    csv: Annotated[str, typer.Option(metavar="FILE", help="Write CSV; -: to standard output.")] = "",
    parquet: Annotated[str, typer.Option(metavar="FILE", help="Write Parquet (needs pyarrow).")] = "",
    as_json: Annotated[str, typer.Option("--json", metavar="FILE", help="One JSON object a line.")] = "",
    metrics: Annotated[str, typer.Option(metavar="SERIES", help="Write train.loss, say, in full.")] = "",
    logs: Logs = Path("logs"),
) -> None:
    """Write runs to a file: all fields and the last metrics of each, or one series of all of them."""
    from mlxjobs.cli import listing

    targets = {form: file for form, file in (("csv", csv), ("parquet", parquet), ("json", as_json)) if file}
    if len(targets) != 1:
        raise typer.BadParameter("give one of --csv FILE, --parquet FILE, --json FILE")
    ((form, target),) = targets.items()
    count = listing.write_runs(listing.trusting_reader(logs), query, metrics or None, form, target)
    if target != "-":
        say(f"{counted(count, 'row')} in {target}")
