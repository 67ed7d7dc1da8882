"""Which process this is, and whether another lives: on this machine, in a container, after a reboot."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def process_key(pid: int) -> str:
    """Identify a process of this machine for ever, as its number alone is given again; "" if it is gone.

    Field 22 of /proc/PID/stat is when it began, in ticks since the machine's boot: proc(5).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot}/{fields[19]}"


def this_process() -> dict[str, Any]:
    """Return what an event says of the process that records it, as `lives` takes it."""
    pid = os.getpid()
    me = {"host": socket.gethostname(), "pid": pid, "process_key": process_key(pid)}
    return {**me, "uid": os.geteuid(), "pid_namespace": pid_namespace()}


def pid_namespace() -> int:
    """Identify what numbers this process' number is one of: those of the machine, or of a container."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - namespaces(7): no path of a file
    except OSError:
        return 0


def lives(host: str, pid: int | None, key: str, namespace: int | None = None) -> bool | None:
    """Whether a process lives, given its `process_key` too; None if that cannot be seen from here.

    That may be for its container, if its `pid_namespace` is given; a reboot ends those too.
    """
    if host != socket.gethostname() or pid is None:
        return None
    if namespace not in (None, pid_namespace()):
        boot = process_key(os.getpid()).partition("/")[0]
        return None if key.partition("/")[0] == boot else False
    return bool(key) and process_key(pid) == key
