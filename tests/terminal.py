"""A project driven in a terminal, by keys."""

from __future__ import annotations

import pexpect

from tests.project import Project


def terminal(project: Project, *arguments: str) -> pexpect.spawn[str]:
    """Type `python main.py ...` in a terminal."""
    return typed(project, project.python, "main.py", *arguments)


def typed(project: Project, command: str, *arguments: str) -> pexpect.spawn[str]:
    """Type a command in a terminal."""
    env = {**project.env, "TERM": "dumb"}
    return pexpect.spawn(
        command, list(arguments), cwd=str(project.folder), env=env, encoding="utf-8", timeout=120, echo=False
    )


def closing(child: pexpect.spawn[str]) -> tuple[int | None, str]:
    """Wait for the end; return the exit code and what was printed until then."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, str(child.before)
