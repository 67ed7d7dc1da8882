"""From a job to the text of its script. No I/O but reading the template."""

from __future__ import annotations

import re
import shlex
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from mlxjobs.scheduler import Job, Scheduler

if TYPE_CHECKING:
    from jinja2 import Template


def job_name(stem: str, suffix: str) -> str:
    """Return a name for a job that every queue takes: `main-5`."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', stem).strip('-') or 'run'}-{suffix}"


def render(job: Job, scheduler: Scheduler) -> str:
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
    """
    template = _template("array.sh" if job.tasks else scheduler.template)
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


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 - a shell script, no HTML; every value is quoted by `quote`
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.from_string(files("mlxjobs").joinpath("templates", name).read_text("utf-8"))
