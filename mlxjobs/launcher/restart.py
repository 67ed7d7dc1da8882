"""A program starts itself again inside its snapshot, where it knows what was known before."""

from __future__ import annotations

import binascii
import json
import os
import shlex
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlxjobs.config import command_line
from mlxjobs.config.settings import Settings
from mlxjobs.system.console import flush

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake

# carries what is known of a run into the program that is started for it from the snapshot
_SNAPSHOT = "MLXJOBS_SNAPSHOT"


def take_inherited() -> dict[str, Any] | None:
    """Return the facts that this program was started with inside its snapshot; None: it was not."""
    packed = os.environ.pop(_SNAPSHOT, "")
    return json.loads(zlib.decompress(binascii.a2b_base64(packed))) if packed else None


def restart_in_snapshot(
    settings: Settings,
    arguments: Sequence[str],
    find_mistake: Callable[[], Mistake | None] = lambda: None,
) -> dict[str, Any]:
    """Become the same program, started from its snapshot; return only if there is none, and the facts.

    Args:
        settings: those in force, with absolute paths.
        arguments: what else the command line says.
        find_mistake: tells what is wrong with the command line; called only if there is something to ask.

    Raises:
        SnapshotError: the code cannot be frozen.
        MLXJobsError: the mistake.
    """
    from mlxjobs.code.provenance import with_python_path
    from mlxjobs.launcher.program import freeze_code, this_program

    here = this_program()
    program, version = freeze_code(settings, here, find_mistake)
    origin = {"cmd": shlex.join(sys.argv), "launch_dir": str(here.work_dir)}
    inherited = {**origin, "version_manager": version}
    if program == here:
        return inherited
    flush()
    sys.stderr.flush()
    os.chdir(program.work_dir)
    # the settings file may be untracked, so the snapshot may lack it: all settings are handed on
    all_settings = f"mlxpy={command_line.quote_dict(settings.to_dict())}"
    command = [*program.interpreter, program.target, all_settings, *arguments]
    environment = with_python_path(program.python_path, os.environ)
    # a variable takes 128 KiB at most, and the requirements of a large environment are more
    packed = binascii.b2a_base64(zlib.compress(json.dumps(inherited).encode()), newline=False).decode()
    os.execve(command[0], command, {**environment, _SNAPSHOT: packed})  # noqa: S606
