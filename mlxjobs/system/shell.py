"""The only module that runs other programs' commands: argument lists, never a shell; always a time-out."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxjobs.errors import SchedulerError


class Result(NamedTuple):
    """What a command gave: its exit code and its two outputs as text."""

    code: int
    out: str
    err: str

    def words(self) -> str:
        """The command's own words, for an error message: stderr, else stdout, else its exit code."""
        return self.err.strip() or self.out.strip() or f"exit code {self.code}"


class CommandTimeout(SchedulerError):
    """A command did not end in its time; whether it did its work is unknown."""


class CommandMissing(SchedulerError):
    """A command is not there, or cannot be started."""


def missing(commands: Sequence[str]) -> list[str]:
    """Return those of these commands that are not on the PATH."""
    return [command for command in commands if shutil.which(command) is None]


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run a command and return what it gave, whatever its exit code.

    Args:
        argv: the program and its arguments.
        timeout_s: seconds after which the command is killed, or left alone if it may not be.
        env: its whole environment; None: this process'.
        cwd: its working directory; None: this process'.

    Raises:
        CommandMissing: there is no such program, or it cannot be started.
        CommandTimeout: it did not end in `timeout_s`.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else None,
            cwd=cwd,
        )
    except FileNotFoundError as error:
        raise CommandMissing(
            f"'{argv[0]}' was not found on the PATH ({os.environ.get('PATH', '')}); "
            "is this a machine of the cluster, and is its module loaded?"
        ) from error
    except OSError as error:  # it may not be executed; this user may start no more processes
        raise CommandMissing(f"'{argv[0]}' cannot be started: {error}") from error
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        what = "was stopped" if _kill(process) else "cannot be stopped: it may still do what it was asked"
        raise CommandTimeout(f"'{argv[0]}' gave no answer in {timeout_s:g} s and {what}") from error
    except BaseException:
        _kill(process)
        raise
    return Result(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """End a command; False for one that runs as another user (setuid, as oarsub) and cannot be ended."""
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.kill()
    except PermissionError:
        # it is waited for all the same, so that it leaves no zombie
        threading.Thread(target=process.wait, daemon=True).start()
        return False
    process.wait()
    return True
