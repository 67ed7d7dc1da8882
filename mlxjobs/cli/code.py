"""Commands about the code of runs and what it ran with: `mlxjobs diff`, `checkout`, `env`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxjobs.cli.options import Id, Logs, one_run
from mlxjobs.cli.tables import printable, say_json
from mlxjobs.errors import RunError
from mlxjobs.system.console import note, say

if TYPE_CHECKING:  # what other commands would import for nothing
    from mlxjobs.code import compare


def env(
    run: Id,
    conda: Annotated[bool, typer.Option("--conda", help="As an environment.yml for conda.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Print what was installed where a run was launched, as pip and uv take it: mlxjobs env 5 > old.txt"""
    from mlxjobs.code import environment, run_code

    launched = one_run(run, logs)
    recorded = run_code.version_of(run_code.facts_of(launched))
    lines, facts = recorded.get("requirements"), recorded.get("environment") or {}
    if not lines:
        raise RunError(
            f"what was installed is not recorded for run {run}; it is for runs that are launched with "
            "+mlxpy.version_manager.compute_requirements=true, which configs/mlxpy.yaml can hold"
        )
    if as_json:
        say(json.dumps({"id": launched.log_id, "requirements": lines, "environment": facts}))
        return
    text = environment.as_conda(facts) if conda else None
    if conda and text is None:
        raise RunError(f"run {run} was not launched in a conda environment; without --conda: for pip and uv")
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
    first, second = one_run(old, logs), one_run(new, logs)
    found = compare.compare_runs(first, second, options=(*colour, *(("--stat",) if stat else ())))
    if as_json:
        say_json({"runs": [first.log_id, second.log_id], **vars(found)})
        return
    for line in found.notes:
        note(line)
    _show("code", found.code, found.why, lambda code: printable(code).rstrip("\n"))
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
    return "-" if value is None else printable(str(value))


def checkout(
    run: Id,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Give the code of a run as a plain folder: mlxjobs checkout 5 ../as-run-5"""
    from mlxjobs.code import compare, run_code

    launched = one_run(run, logs)
    facts = run_code.facts_of(launched)
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
        say(json.dumps({"id": launched.log_id, "commit": code.hash, "folder": str(folder), "command": again}))
        return
    say(f"the code of run {run}, commit {code.hash[:12]}, is in {folder}\nto run it again: {again}")
    if edits := run_code.live_edits(facts):
        note(f"run {run} {edits}: they are not there")
    if launched.stranger:
        note(f"look at it before you run it: {launched.stranger.partition(';')[0]}")
