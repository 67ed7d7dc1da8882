"""Commands that try and mend: `mlxjobs drill`, `fsck`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mlxjobs.cli.options import Logs, numbers
from mlxjobs.system.console import note, say


def drill(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="python main.py ...")],
    scheduler: Annotated[str, typer.Option(help="Where; by default the local queue.")] = "",
    checkpoints: Annotated[int, typer.Option(min=2, help="How many checkpoints to wait for.")] = 3,
    timeout: Annotated[float, typer.Option(min=0, help="Minutes a run may go without a checkpoint.")] = 60,
    way: Annotated[list[str] | None, typer.Option(help="Only this way; may be given again.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the runs, whatever they show.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a way.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Try whether a program resumes as it should, before it has to: mlxjobs drill -- python main.py lr=0.1

    It runs undisturbed for a few checkpoints, then again while it is warned, requeued, killed, and at the
    end of its time; the metrics of all are compared. Exit code 0: it resumes exactly from all of that.
    """
    from mlxjobs.care.drill import HINTS, Drill, is_exact

    drill = Drill(
        command, logs,
        scheduler=scheduler or None, checkpoints=checkpoints, patience_s=timeout * 60, ways=way or (),
    )  # fmt: skip
    outcomes = drill.run()
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
        drill.remove()
    else:
        note(f"the runs are kept in {drill.folder}; remove it when you have looked")
    if not exact:
        raise SystemExit(1)


def fsck(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="5, or 7-9; none: all.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a finding.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Find what is wrong in run directories: torn, damaged, stale and left-over files; of MLXP's runs too.

    Ends with 0 if nothing is wrong, or all of it was mended; with 1 if something is left.
    """
    from mlxjobs.care.fsck import check_logs

    found = left = 0
    for finding in check_logs(logs, numbers(runs) if runs else None, fix=fix):
        found += 1
        left += not finding.mended
        say(json.dumps(finding.as_json()) if as_json else finding.line(logs, fix=fix))
    if not as_json:
        say(f"{found} found, {found - left} mended, {left} left" if found else "nothing found")
    if left:
        raise SystemExit(1)
