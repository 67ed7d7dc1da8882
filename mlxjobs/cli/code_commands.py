"""Commands about the code of runs and what it ran with: `mlxjobs diff`, `checkout`, `env`, `snapshots`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxjobs.errors import RunError, SnapshotError
from mlxjobs.logger.values import json_object
from mlxjobs.record.log_dir import from_ranges
from mlxjobs.record.run import Run
from mlxjobs.system.console import note, say

if TYPE_CHECKING:  # what other commands would import for nothing
    from mlxjobs.code import compare, snapshots

Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
Id = Annotated[str, typer.Argument(metavar="RUN", help="The number of a run: 5.")]


def _run(word: str, logs: Path) -> Run:
    numbers = from_ranges([word])
    if len(numbers) != 1:
        raise RunError(f"{word!r} is not one run: give its number")
    run = Run(logs / str(numbers[0]))
    if not os.path.isdir(run.metadata):  # noqa: PTH112 - also where it may not be looked at
        raise RunError(f"{logs.absolute()} has no run {numbers[0]}; see: mlxjobs ls --logs {logs}")
    return run


def env(
    run: Id,
    conda: Annotated[bool, typer.Option("--conda", help="As an environment.yml for conda.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Print what was installed where a run was launched, as pip and uv take it: mlxjobs env 5 > old.txt"""
    from mlxjobs.code import environment, run_code

    one = _run(run, logs)
    recorded = run_code.version_of(run_code.facts_of(one))
    lines, facts = recorded.get("requirements"), recorded.get("environment") or {}
    if not lines:
        raise RunError(
            f"what was installed is not recorded for run {run}; it is for runs that are launched with "
            "+mlxpy.version_manager.compute_requirements=true, which configs/mlxpy.yaml can hold"
        )
    if as_json:
        say(json.dumps({"id": one.log_id, "requirements": lines, "environment": facts}))
        return
    text = environment.as_conda(facts) if conda else None
    if conda and text is None:
        raise RunError(f"run {run} was launched in no conda environment; without --conda: for pip and uv")
    say(text or environment.as_requirements(f"what run {run} was launched with", lines, facts))


def diff(
    old: Id,
    new: Id,
    stat: Annotated[bool, typer.Option("--stat", help="Only which files differ, and how much.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Show what differs between two runs: code, as `git diff` does, configuration, and environment."""
    from mlxjobs.code import compare

    colour = ("--color=always",) if sys.stdout.isatty() and not as_json else ()
    one, two = _run(old, logs), _run(new, logs)
    found = compare.compare(one, two, options=(*colour, *(("--stat",) if stat else ())))
    if as_json:
        text = json.dumps({"runs": [one.log_id, two.log_id], **vars(found)}, default=str)
        say(json.dumps(json_object(json.loads(text))))  # NaN is no JSON
        return
    for text in found.notes:
        note(text)
    _show("code", found.code, found.why, lambda code: _printable(code).rstrip("\n"))
    _show("configuration", found.config, found.why, _pairs, "config")
    _show("environment", found.environment, found.why, _pairs)


def _show(title: str, what: Any, why: dict[str, str], write: Callable[[Any], str], key: str = "") -> None:
    if what is None:
        say(f"{title}: {why[key or title]}")
    else:
        say(f"{title}:\n{write(what)}" if what else f"{title}: the same")


def _pairs(pairs: compare.Pairs) -> str:
    return "\n".join(f"  {key}: {_value(old)} -> {_value(new)}" for key, (old, new) in pairs.items())


def _value(value: Any) -> str:
    return "-" if value is None else _printable(str(value))


def _printable(text: str) -> str:
    return os.fsencode(text).decode(errors="replace")  # names of files may be no text


def checkout(
    run: Id,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Give the code of a run as a plain folder: mlxjobs checkout 5 ../as-run-5"""
    from mlxjobs.code import compare, run_code

    one = _run(run, logs)
    facts = run_code.facts_of(one)
    code = run_code.commit_of(facts)
    if code is None:
        raise RunError(
            f"the code of run {run} is not recorded: it ran from the folder where it was launched, "
            "without a version manager (use_version_manager=true)"
        )
    folder = folder.absolute()
    folder = folder.parent.resolve() / folder.name  # ../as-run-5 is shown without its dots
    compare.check_out(code, folder)
    again = compare.command_in(facts, code, folder)
    if as_json:
        say(json.dumps({"id": one.log_id, "commit": code.hash, "folder": str(folder), "command": again}))
        return
    say(f"the code of run {run}, commit {code.hash[:12]}, is in {folder}\nto run it again: {again}")
    if edits := run_code.live_edits(facts):
        note(f"run {run} {edits}: they are not there")
    if one.stranger:
        note(f"look at it before you run it: {one.stranger.partition(';')[0]}")


snapshots_app = typer.Typer(help="List the snapshots that runs were launched from; prune removes them.")


@snapshots_app.callback(invoke_without_command=True)
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
    return _printable(f"{root.parent.name}/{root.name[:12]}")


def _find(users: snapshots.Users) -> list[snapshots.Snapshot]:
    """Find the snapshots where the project keeps them, and where its runs do."""
    from mlxjobs.code import snapshots
    from mlxjobs.config import settings

    options, file = settings.defaults(), Path("configs") / settings.FILE_NAME
    if file.exists():
        settings.merge(options, settings.read_file(file), str(file))
    own = settings.folder(options["version_manager"]["parent_work_dir"]).absolute()
    return snapshots.find({snapshots.real(parent) for parent in (own, *users.parents())})


@snapshots_app.command()
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
