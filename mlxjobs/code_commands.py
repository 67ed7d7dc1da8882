"""Commands about the code of runs and what it ran with: `mlxjobs env`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mlxjobs.console import say
from mlxjobs.errors import RunError
from mlxjobs.history import RunState
from mlxjobs.log_dir import from_ranges
from mlxjobs.store import Run

Logs = Annotated[Path, typer.Option("--logs", "-d", help="The log directory.")]
Id = Annotated[str, typer.Argument(metavar="RUN", help="The number of a run: 5.")]


def _state(word: str, logs: Path) -> tuple[Run, RunState]:
    """Return a run and what is recorded of it."""
    numbers = from_ranges([word])
    if len(numbers) != 1:
        raise RunError(f"{word!r} is not one run: give its number")
    run = Run(logs / str(numbers[0]))
    if not run.metadata.is_dir():
        raise RunError(f"{logs.absolute()} has no run {numbers[0]}; see: mlxjobs ls --logs {logs}")
    return run, run.state()


def env(
    run: Id,
    conda: Annotated[bool, typer.Option("--conda", help="As an environment.yml for conda.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    logs: Logs = Path("logs"),
) -> None:
    """Print what was installed where a run was launched, as pip and uv take it: mlxjobs env 5 > old.txt"""
    from mlxjobs import environment

    _, state = _state(run, logs)
    recorded: Any = state.facts.get("version_manager")
    recorded = recorded if isinstance(recorded, dict) else {}
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
