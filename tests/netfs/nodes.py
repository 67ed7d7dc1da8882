"""Two nodes on this machine that share a folder over a network file system: an imitated one, or sshfs.

A node has mounts, a host name and process ids of its own, and its own client of the file system, at the same
path on both. Whatever happens, all of a node ends with its first process, which ends with the tests.
What a test sees in `TwoNodes.server` is what the server has; what a node sees may be older.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mlxjobs.system.processes import process_key
from tests.clusters.machine import (
    SYSTEM_PATH,
    ClusterError,
    children,
    install_packages,
    require_root,
    wait_for,
)

SOURCE = Path(__file__).with_name("nfsish.c")

# The first process of a node: its second argument on is the client of the file system, without which it ends.
_FIRST = 'hostname "$1" && shift && "$@" & wait $!'
_WITH_US = ("setpriv", "--pdeathsig=KILL")  # what it starts is ended by the kernel when this process ends
_NAMESPACES = ("--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")


class Client(Protocol):
    """A network file system: which program makes a node see the server's folder."""

    def command(self, server: Path, mount: Path, folder: Path) -> list[str]:
        """Return the program, which stays in the foreground; `folder` is the node's own."""


class Nfsish:
    """The imitated NFS client, built from its source.

    Args:
        folder: where to build it.

    Raises:
        ClusterError: it cannot be built or used here.
    """

    def __init__(self, folder: Path) -> None:
        require_nodes()
        for program, package in (("gcc", "gcc"), ("pkg-config", "pkg-config"), ("fusermount3", "fuse3")):
            require_program(program, package)
        if _pkg_config("--exists").returncode != 0:
            install_packages(["libfuse3-dev"])
        self.program = folder / "nfsish"
        flags = _pkg_config("--cflags", "--libs").stdout.split()
        build = ["gcc", "-O1", "-Wall", str(SOURCE), "-o", str(self.program), *flags, "-lpthread"]
        done = subprocess.run(build, capture_output=True, text=True, env={"PATH": SYSTEM_PATH}, check=False)
        if done.returncode != 0:
            raise ClusterError(f"nfsish cannot be built:\n{done.stderr[-2000:]}")

    def command(self, server: Path, mount: Path, folder: Path) -> list[str]:
        options = f"allow_other,default_permissions,fsname={folder.name}"
        return [str(self.program), str(server), str(mount), str(folder / "knobs"), "-o", options]


def require_nodes() -> None:
    """Refuse at once where there can be no nodes.

    Raises:
        ClusterError: it says what is missing.
    """
    require_root("mount file systems in namespaces of its own")
    if not Path("/dev/fuse").exists():
        raise ClusterError("there is no /dev/fuse here")
    done = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"no namespaces can be made here: {done.stderr.strip()}")


def require_program(program: str, package: str) -> None:
    """Install a program's Debian package if it is missing.

    Raises:
        ClusterError: it cannot be installed.
    """
    if shutil.which(program, path=SYSTEM_PATH) is None:
        install_packages([package])


def _pkg_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["pkg-config", *arguments, "fuse3"],
        env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, check=False,
    )  # fmt: skip


class Node:
    """One node; `TwoNodes` makes it.

    Attributes:
        name: its host name.
        folder: its own folder, which is on no network: its home, its caches, its queue.
        mount: where it has the shared folder.
    """

    def __init__(self, name: str, folder: Path, mount: Path) -> None:
        self.name = name
        self.folder = folder
        self.mount = mount
        self.env = {
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "MLXJOBS_LOCAL_DIR": str(folder / "queue"),
        }
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._started: list[subprocess.Popen[str]] = []

    def up(self, client: Client, server: Path, knobs: Mapping[str, object]) -> None:
        """Switch it on; return when it sees the shared folder.

        Raises:
            ClusterError: it does not; with the client's last words.
        """
        (self.folder / "home").mkdir(parents=True)
        self.set(**knobs)
        program = client.command(server, self.mount, self.folder)
        first = ["sh", "-c", _FIRST, "sh", self.name, *program]
        log = self.folder / "client.log"
        with log.open("wb") as out:
            # --kill-child: with it ends the first process, and so all of the node
            self._unshare = subprocess.Popen(
                [*_WITH_US, "unshare", *_NAMESPACES, *first],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            self._init = wait_for(lambda: children(self._pid(), "sh"), 20)[0]
            wait_for(self._is_mounted, 20)
        except (TimeoutError, ClusterError) as error:
            raise ClusterError(f"{self.name} does not start ({error}):\n{log.read_text()[-2000:]}") from error

    def _pid(self) -> int:
        if self._unshare is None or self._unshare.poll() is not None:
            raise ClusterError(f"{self.name} is down")
        return self._unshare.pid

    def _is_mounted(self) -> bool:
        self._pid()
        return f" {self.mount} " in Path(f"/proc/{self._init}/mounts").read_text()

    def down(self) -> None:
        """Switch it off: everything on it dies at once. Safe to call twice."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(20)
            self._unshare = None
            wait_for(lambda: not process_key(self._init), 20)
        for program in self._started:
            program.kill()  # it only waits for what ended with the node
            program.communicate(timeout=20)
        self._started.clear()

    def set(self, **knobs: object) -> None:
        """Change how its client behaves from the next request on; what is not named is as by default."""
        new = self.folder / "knobs.new"
        new.write_text("".join(f"{name}={value}\n" for name, value in knobs.items()))
        new.replace(self.folder / "knobs")

    def disturbed(self) -> list[str]:
        """Return the requests that its client told wrongly or let fail, as it was set: `link 0001.json`."""
        lines = (self.folder / "client.log").read_text().splitlines()
        return [line.removeprefix("disturbed: ") for line in lines if line.startswith("disturbed: ")]

    def start(
        self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on it, in a folder (default: the shared one); its output is on `stdout`.

        It ends with the node, if not before.
        """
        argv = self._argv(["sh", "-c", 'cd "$0" && exec "$@"', str(cwd or self.mount), *map(str, command)])
        started = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**(os.environ if env is None else env), **self.env}, start_new_session=True,
        )  # fmt: skip
        self._started.append(started)
        return started

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it, as `start` does, to its end; a failing one is no error here."""
        argv = self._argv(["sh", "-c", 'cd "$0" && exec "$@"', str(cwd or self.mount), *map(str, command)])
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
            env={**(os.environ if env is None else env), **self.env},
        )  # fmt: skip

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of its processes, by the id that it has there."""
        name = number.name.removeprefix("SIG")
        subprocess.run(self._argv(["sh", "-c", f"kill -s {name} {pid}"]), check=True)
        if number is signal.SIGCONT:
            for program in self._started:  # nsenter stops itself with what it waits for
                program.send_signal(number)

    def _argv(self, command: Sequence[str]) -> list[str]:
        self._pid()
        enter = ["nsenter", f"--target={self._init}", "--mount", "--uts", "--pid", "--", *command]
        return [*_WITH_US, *enter]


class TwoNodes:
    """Two nodes, `a` and `b`, and what they share.

    Args:
        base: an empty folder for all of it.
        client: how they see it.

    Attributes:
        server: the shared folder as the server has it, which is never old.
        mount: where both nodes have it.
    """

    def __init__(self, base: Path, client: Client) -> None:
        self.server = base / "server"
        self.mount = base / "mnt"
        self._client = client
        self.a = Node("nodea", base / "nodea", self.mount)
        self.b = Node("nodeb", base / "nodeb", self.mount)

    def up(self, **knobs: object) -> None:
        """Switch both on.

        Args:
            knobs: how their clients behave; nfsish.c tells which there are.

        Raises:
            ClusterError: one does not start.
        """
        self.server.mkdir()
        self.mount.mkdir()
        try:
            for node in (self.a, self.b):
                node.up(self._client, self.server, knobs)
        except BaseException:
            self.down()
            raise

    def set(self, **knobs: object) -> None:
        """Change how both clients behave."""
        for node in (self.a, self.b):
            node.set(**knobs)

    def down(self) -> None:
        """Switch both off. Safe to call twice."""
        errors = []
        for node in (self.a, self.b):
            try:
                node.down()
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                errors.append(f"{node.name} does not end: {error}")
        if errors:
            raise ClusterError("; ".join(errors))
