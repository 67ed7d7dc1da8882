"""Commands about the code of runs and what it ran with: `mlxjobs diff`, `checkout`, `env`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mlxjobs import compare
from mlxjobs.console import note, say
from mlxjobs.errors import RunError
from mlxjobs.log_dir import from_ranges
from mlxjobs.store import Run

Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
Id = Annotated[str, typer.Argument(metavar="RUN", help="The number of a run: 5.")]


def _run(word: str, logs: Path) -> Run:
    numbers = from_ranges([word])
    if len(numbers) != 1:
        raise RunError(f"{word!r} is not one run: give its number")
    run = Run(logs / str(numbers[0]))
    if not run.metadata.is_dir():
        raise RunError(f"{logs.absolute()} has no run {numbers[0]}; see: mlxjobs ls --logs {logs}")
    return run


def env(
    run: Id,
    conda: Annotated[bool, typer.Option("--conda", help="As an environment.yml for conda.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Print what was installed where a run was launched, as pip and uv take it: mlxjobs env 5 > old.txt"""
    from mlxjobs import environment

    recorded = compare.version_of(compare.facts_of(_run(run, logs)))
    lines, facts = recorded.get("requirements"), recorded.get("environment") or {}
    if not lines:
        raise RunError(
            f"what was installed is not recorded for run {run}; it is for runs that are launched with "
            "+mlxpy.version_manager.compute_requirements=true, which configs/mlxpy.yaml can hold"
        )
    if as_json:
        say(json.dumps({"id": int(run), "requirements": lines, "environment": facts}))
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
    colour = ("--color=always",) if sys.stdout.isatty() and not as_json else ()
    one, two = _run(old, logs), _run(new, logs)
    found = compare.compare(one, two, options=(*colour, *(("--stat",) if stat else ())))
    if as_json:
        say(json.dumps({"runs": [one.log_id, two.log_id], **vars(found)}, default=str))
        return
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
    one = _run(run, logs)
    facts = compare.facts_of(one)
    code = compare.code_of(facts)
    if code is None:
        raise RunError(
            f"the code of run {run} is not recorded: it ran from the folder where it was launched, "
            "without a version manager (use_version_manager=true)"
        )
    folder = folder.absolute()
    compare.check_out(code, folder)
    again = compare.command_in(facts, code, folder)
    if as_json:
        say(json.dumps({"id": one.log_id, "commit": code.hash, "folder": str(folder), "command": again}))
        return
    say(f"the code of run {run}, commit {code.hash[:12]}, is in {folder}\nto run it again: {again}")
    if one.stranger:
        note(f"look at it before you run it: {one.stranger.partition(';')[0]}")
