"""From a job to the text of its script. No I/O but reading the template."""

from __future__ import annotations

import re
import shlex
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from mlxjobs.config.command_line import split_arguments
from mlxjobs.errors import InvalidConfigFileError, InvalidSchedulerError, SchedulerError
from mlxjobs.scheduler import Job, Scheduler

if TYPE_CHECKING:
    from importlib.abc import Traversable

    from jinja2 import Template


def job_name(stem: str, suffix: str) -> str:
    """Return a name for a job that any queue takes: `main-5`."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', stem).strip('-') or 'run'}-{suffix}"


def render_script(job: Job, scheduler: Scheduler) -> str:
    """Return the script of a job.

    Args:
        job: what it runs, and where.
        scheduler: for its directives and its template.

    Returns:
        The text, in the order that the documentation promises: `#!`, directives, shell_config_cmd,
        cleanup_cmd, env_cmd, `cd`, the command. The script of an array runs the script of a run for
        each of its tasks: `<number>/script.sh` beside it.

    Raises:
        InvalidConfigFileError: an option of the user cannot be used.
        InvalidSchedulerError: its template is missing or wrong, or its options are.
    """
    from jinja2 import TemplateError

    file = _ours("array.sh") if job.tasks else _template_of(scheduler)
    try:
        return _render(_template(file.read_text("utf-8")), job, scheduler)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{file}, line {line}" if line else f"{file}"
        raise InvalidSchedulerError(f"{where}: {error}") from error
    except SchedulerError as error:
        raise InvalidSchedulerError(str(error)) from error


def _render(template: Template, job: Job, scheduler: Scheduler) -> str:
    return template.render(
        shell_path=job.shell_path,
        directives=scheduler.directives(job),
        redirect=not (scheduler.names(job.stdout) and scheduler.names(job.stderr)),
        stdout=job.stdout,
        stderr=job.stderr,
        shell_config_lines=list(job.shell_config_lines),
        cleanup_lines=list(job.cleanup_lines),
        env_lines=list(job.env_lines),
        work_dir=job.work_dir,
        command=list(job.command),
        folder=job.script.parent,
        variable=scheduler.array_variable,
    )


def place_in(script: str) -> Path | None:
    """Return the run directory whose run a script starts; None if that cannot be read in it."""
    # the command ends the script, and a folder's name in it may have line breaks
    begin = script.rfind("\n", 0, max(0, script.rfind("+mlxpy.logger.parent_log_dir="))) + 1
    try:
        words = shlex.split(script[begin:])
        place, _ = split_arguments([word for word in words if word.startswith("+mlxpy.logger.")])
        return Path(place["logger"]["parent_log_dir"], str(place["logger"]["forced_log_id"]))
    except (ValueError, KeyError, InvalidConfigFileError):
        return None


def _ours(name: str) -> Traversable:
    return files("mlxjobs").joinpath("templates", name)


def _template_of(scheduler: Scheduler) -> Traversable:
    """Find a scheduler's template: beside the module of the class that names it, or among ours."""
    owner = next(owner for owner in type(scheduler).__mro__ if "template" in vars(owner))
    module = getattr(sys.modules.get(owner.__module__), "__file__", None) or ""
    beside = Path(module).absolute().parent / scheduler.template
    if beside.is_file():
        return beside
    ours = _ours(scheduler.template)
    if not scheduler.template or not ours.is_file():
        known = ", ".join(sorted(file.name for file in files("mlxjobs").joinpath("templates").iterdir()))
        raise InvalidSchedulerError(
            f"{owner.__module__}:{owner.__qualname__}: its template '{scheduler.template}' is neither in "
            f"{beside.parent} nor one of ours: {known}"
        )
    return ours


@cache
def _template(text: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 - a shell script, no HTML; every value is quoted by `quote`
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.from_string(text)
