"""Commands about frozen code: `mlxjobs snapshots`, `snapshots prune`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxjobs.cli.options import Logs
from mlxjobs.cli.tables import printable
from mlxjobs.errors import SnapshotError
from mlxjobs.system.console import note, say

if TYPE_CHECKING:  # what other commands would import for nothing
    from mlxjobs.code import snapshots


app = typer.Typer(help="List the snapshots that runs were launched from; prune removes them.")


@app.callback(invoke_without_command=True)
def list_snapshots(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a snapshot.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """List the snapshots of the project and of the runs in the log directory: size, age, and who uses them.

    `shared` is what a snapshot has in common with others, by hard links: it is on the disk once.
    """
    if context.invoked_subcommand:
        return
    from mlxjobs.code import snapshots

    users = snapshots.Users(logs)
    rows = []
    for one in _find(users):
        usage, found = one.usage(), list(users.of(one))
        if not one.exists and not found:
            continue
        if as_json:
            runs = {str(place): ids for place, ids in found}
            about = {
                "snapshot": str(one.root),
                "exists": one.exists,
                "size": usage.own,
                "shared": usage.shared,
            }
            say(json.dumps({**about, "launched": one.launched, "runs": runs}))
            continue
        sizes = map(snapshots.size, (usage.own, usage.shared)) if one.exists else ("removed", "")
        age = f"{snapshots.age(time.time() - one.launched)} ago"
        rows.append([_short(one.root), *sizes, age, snapshots.runs_text(found, logs)])
    if as_json:
        return
    if not rows:
        say("no snapshots")
        return
    rows.insert(0, ["snapshot", "size", "shared", "launched", "runs"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _short(root: Path) -> str:
    return printable(f"{root.parent.name}/{root.name[:12]}")


def _find(users: snapshots.Users) -> list[snapshots.Snapshot]:
    """Find the snapshots where the project keeps them, and where its runs do."""
    from mlxjobs.code import snapshots
    from mlxjobs.config.settings import SETTINGS_FILE, as_folder, read_settings

    settings = read_settings(Path("configs") / SETTINGS_FILE)
    own = as_folder(settings.version_manager.parent_work_dir).absolute()
    return snapshots.find({snapshots.real(parent) for parent in (own, *users.parents())})


@app.command()
def prune(
    older_than: Annotated[str, typer.Option(metavar="TIME", help="Keep what was used within it.")] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a snapshot.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Remove the snapshots that no run needs any more: mlxjobs snapshots prune --older-than 12h

    One is kept while a run of any log directory, also of other projects and users, waits, runs or may come
    back, or has ended within the given time; and whenever that cannot be known.
    """
    from mlxjobs.care.pruning import Pruning
    from mlxjobs.code import snapshots

    pruning = Pruning(logs, snapshots.seconds(older_than))
    total, removed, kept, failed = snapshots.Usage(), 0, 0, 0
    known = _find(snapshots.Users(logs))
    for one in known:
        usage, why = snapshots.Usage(), pruning.why_kept(one) if one.exists else "removed"
        try:
            if why is None and dry_run:
                usage = one.usage()
            elif why is None:
                done = pruning.remove(one)
                usage, why = (done, None) if done is not None else (usage, "a launch uses it at this moment")
            if not dry_run:
                pruning.forget(one, known)
        except SnapshotError as error:
            note(f"error: {error}")
            failed, why = failed + 1, str(error)
        if why == "removed":
            continue
        total.merge(usage)
        removed, kept = removed + (why is None), kept + (why is not None)
        if as_json:
            about = {"snapshot": str(one.root), "removed": why is None and not dry_run, "why": why}
            say(json.dumps({**about, "size": usage.own}))
        else:
            say(f"{_short(one.root)}: {f'kept, {why}' if why else 'to remove' if dry_run else 'removed'}")
    if not as_json:
        what = ("to remove", "to free") if dry_run else ("removed", "freed")
        say(f"{removed} {what[0]}, {kept} kept; {snapshots.size(total.own)} {what[1]}")
    if failed:
        raise SystemExit(SnapshotError.exit_code)
