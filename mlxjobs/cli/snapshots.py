"""Commands about frozen code: `mlxjobs snapshots`, `snapshots prune`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxjobs.cli.options import Logs
from mlxjobs.cli.tables import printable
from mlxjobs.errors import SnapshotError
from mlxjobs.system.console import note, say

if TYPE_CHECKING:  # what other commands would import for nothing
    from mlxjobs.care.pruning import Pruning
    from mlxjobs.code import snapshots

    _Runs = tuple[Path, list[int]]  # a log directory, and which of its runs

_GONE = "removed"

group = typer.Typer(help="List the snapshots that runs were launched from; prune removes them.")


@group.callback(invoke_without_command=True)
def _list(
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

    known = _used(snapshots.Users(logs))
    if as_json:
        for snapshot, runs in known:
            _say_json(snapshot, runs)
        return
    rows = [
        [_short(snapshot.root), *_sizes(snapshot), _age(snapshot), snapshots.runs_text(runs, logs)]
        for snapshot, runs in known
    ]
    if not rows:
        say("no snapshots")
        return
    rows.insert(0, ["snapshot", "size", "shared", "launched", "runs"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _used(users: snapshots.Users) -> Iterator[tuple[snapshots.Snapshot, list[_Runs]]]:
    """The snapshots that are there, or that a run was launched from; and those runs."""
    for snapshot in _find(users):
        runs = list(users.of(snapshot))
        if snapshot.exists or runs:
            yield snapshot, runs


def _say_json(snapshot: snapshots.Snapshot, runs: list[_Runs]) -> None:
    usage = snapshot.usage()
    about = {
        "snapshot": str(snapshot.root), "exists": snapshot.exists, "size": usage.own, "shared": usage.shared,
        "launched": snapshot.launched, "runs": {str(place): log_ids for place, log_ids in runs},
    }  # fmt: skip
    say(json.dumps(about))


def _sizes(snapshot: snapshots.Snapshot) -> tuple[str, str]:
    from mlxjobs.code.snapshots import size

    if not snapshot.exists:
        return "removed", ""
    usage = snapshot.usage()
    return size(usage.own), size(usage.shared)


def _age(snapshot: snapshots.Snapshot) -> str:
    from mlxjobs.code.snapshots import age

    return f"{age(time.time() - snapshot.launched)} ago"


def _short(root: Path) -> str:
    return printable(f"{root.parent.name}/{root.name[:12]}")


def _find(users: snapshots.Users) -> list[snapshots.Snapshot]:
    """Find the snapshots where the project keeps them, and where its runs do."""
    from mlxjobs.code import snapshots
    from mlxjobs.config.settings import SETTINGS_FILE, as_folder, read_settings

    settings = read_settings(Path("configs") / SETTINGS_FILE)
    own = as_folder(settings.version_manager.parent_work_dir).absolute()
    return snapshots.find_snapshots({snapshots.real_path(parent) for parent in (own, *users.parents())})


@group.command()
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
    total, removed, kept, failed = snapshots.Usage(), 0, 0, False
    known = _find(snapshots.Users(logs))
    for snapshot in known:
        usage = snapshots.Usage()
        try:
            usage, why = _remove(pruning, snapshot, dry_run=dry_run)
            if not dry_run:
                pruning.forget(snapshot, known)
        except SnapshotError as error:
            note(f"error: {error}")
            failed, why = True, str(error)
        if why == _GONE:
            continue
        total.merge(usage)
        removed, kept = removed + (why is None), kept + (why is not None)
        if as_json:
            about = {"snapshot": str(snapshot.root), "removed": why is None and not dry_run, "why": why}
            say(json.dumps({**about, "size": usage.own}))
        else:
            done = f"kept, {why}" if why else "to remove" if dry_run else "removed"
            say(f"{_short(snapshot.root)}: {done}")
    if not as_json:
        what = ("to remove", "to free") if dry_run else ("removed", "freed")
        say(f"{removed} {what[0]}, {kept} kept; {snapshots.size(total.own)} {what[1]}")
    if failed:
        raise SystemExit(SnapshotError.exit_code)


def _remove(
    pruning: Pruning, snapshot: snapshots.Snapshot, *, dry_run: bool
) -> tuple[snapshots.Usage, str | None]:
    """Remove a snapshot unless it is needed; return what that frees, and why it is kept."""
    from mlxjobs.code.snapshots import Usage

    why = pruning.why_kept(snapshot) if snapshot.exists else _GONE
    if why is not None:
        return Usage(), why
    if dry_run:
        return snapshot.usage(), None
    usage = pruning.remove(snapshot)
    return (usage, None) if usage is not None else (Usage(), "a launch uses it at this moment")
