"""From a job to the text of its script. No I/O but reading the template."""

from __future__ import annotations

import shlex
from importlib.resources import files

from mlxjobs.scheduler import Job, Scheduler


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
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 - a shell script, no HTML; every value is quoted by `quote`
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    template = environment.from_string(
        files("mlxjobs")
        .joinpath("templates", "array.sh" if job.tasks else scheduler.template)
        .read_text("utf-8")
    )
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
