"""What the harnesses of OAR and Grid Engine share: clusters that want their files and ports at fixed places.

The server and the user's commands live behind one process whose namespaces (host name, process ids, mounts,
network) are its own, and each node in one more of its kind below it. So a scheduler finds its files where it
wants them, and its ports free, while nothing of this machine is changed and several checkouts do not meet.
Whatever happens, all of it ends with that process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tests.clusters.machine import (
    SYSTEM_PATH,
    USER,
    ClusterError,
    Processes,
    account,
    children,
    default_base,
    lock_folder,
    require_root,
    say,
    wait_for,
)


class IsolatedCluster(ABC):
    """One server, and nodes node1, node2, ..., in namespaces of their own.

    Args:
        base: folder of everything that the cluster writes; a cluster is known by it. Default: the environment
            variable `variable`, else a folder under /tmp that belongs to this checkout.
    """

    wait_for = staticmethod(wait_for)
    environment: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    name: ClassVar[str]
    """The scheduler's, for messages."""
    variable: ClassVar[str]
    network: ClassVar[str]
    """What the addresses of the nodes begin with."""
    server: ClassVar[tuple[str, ...]]
    """The script of the first process, which is given the base folder, and its other arguments."""
    node: ClassVar[str]
    """The script of a node's first process, which is given the base folder, the node and its address."""
    node_namespaces: ClassVar[tuple[str, ...]] = ()
    """Which of its own a node has beside the usual ones."""

    def __init__(self, base: Path | None = None) -> None:
        self.base = (base or default_base(self.variable)).absolute()
        self.nodes: list[str] = []
        self._addresses: dict[str, str] = {}
        self._processes = Processes(self.base / "pids", f"{self.base}/")
        self._lock: int | None = None

    # ---- the whole cluster

    @abstractmethod
    def install(self) -> None:
        """Install the scheduler where it is missing, and create the ordinary account.

        Raises:
            ClusterError: not root, or apt-get failed.
        """

    def up(self, nodes: int = 2) -> None:
        """Start a new cluster without any jobs; what an earlier one in the same folder left is ended first.

        Args:
            nodes: how many.

        Raises:
            ClusterError: not root, another process uses the folder, or a daemon does not start.
        """
        require_root(f"install and start a real {self.name}")
        started = time.monotonic()
        if self._lock is None:
            self._lock = lock_folder(self.base, self.variable)
        self._end()
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._addresses = {node: f"{self.network}.{number}" for number, node in enumerate(self.nodes, 11)}
        try:
            self._prepare()
            script, *arguments = self.server
            server = ["sh", "-c", script, f"{self.base}/", *arguments]  # the mark of our processes
            self._spawn("server", "unshare", "--net", *_NAMESPACES, *server)
            wait_for(lambda: children(self._processes.pid("server") or 0, "sh"), 20)
            wait_for(lambda: self._enter(["cat", "/run/ready"]).stdout, 20)
            self._set_up()
            self.node_up(*self.nodes)
        except (TimeoutError, OSError, subprocess.CalledProcessError, ValueError, ClusterError) as error:
            self.down()
            raise ClusterError(f"{self.name} does not start ({error}); look in {self.base}") from error
        say(f"{self.name} of {nodes} nodes is up after {time.monotonic() - started:.1f} s")

    def down(self) -> None:
        """End all that was started, with its jobs; the logs stay until the next `up`. Safe to call twice."""
        self._end()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @abstractmethod
    def restore(self) -> None:
        """Make the cluster what it was after `up`, but for the job numbers, whatever a test did to it."""

    @abstractmethod
    def status(self) -> dict[str, str]:
        """Return what is up: 'up' or 'down' for the server, and for each node as `node_states` does."""

    # ---- nodes

    @abstractmethod
    def node_up(self, *nodes: str) -> None:
        """Switch nodes on; return when the scheduler can use all of them."""

    def node_down(self, node: str) -> None:
        """Switch a node off: everything on it dies at once, and nobody tells the scheduler."""
        if (init := self._init(node)) is not None:
            os.kill(init, signal.SIGKILL)  # with the first process of its namespace all others are killed
        self._processes.end(node, signal.SIGKILL)

    @abstractmethod
    def node_states(self) -> dict[str, str]:
        """Return the scheduler's word for each node."""

    # ---- commands and jobs

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: str = USER,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the server as `user` from `cwd` (default: their home), with `env` and little else.

        A failing command is no error here: tests look at what it says.
        """
        who = account(user)
        folder = cwd or Path(who.pw_dir)
        own = {"HOME": who.pw_dir, "USER": user, "LOGNAME": user, "SHELL": "/bin/bash", "PWD": str(folder)}
        become = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
        given = [f"{name}={value}" for name, value in {**self.environment, **own, **(env or {})}.items()]
        command = ["env", "--ignore-environment", f"--chdir={folder}", *given, *map(str, argv)]
        return self._enter([*become, *command], timeout=timeout)

    def root(self, *argv: str, check: bool = True) -> str:
        """Return what an administrator's command prints.

        Raises:
            ClusterError: the command failed, unless `check` is false.
        """
        done = self._enter(argv)
        if check and done.returncode != 0:
            words = (done.stderr or done.stdout).strip()
            raise ClusterError(f"{' '.join(argv)} failed ({done.returncode}): {words}")
        return done.stdout

    @abstractmethod
    def job_states(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the scheduler's words for jobs by their ids, without those that it does not know."""

    # ---- how it is made

    @abstractmethod
    def _prepare(self) -> None:
        """Write the files that the first process shows to the scheduler."""

    @abstractmethod
    def _set_up(self) -> None:
        """Start and configure the server; its first process runs."""

    def _boot(self, node: str) -> None:
        """Switch a node on, if it is off."""
        if self._init(node) is None:
            enter = ["nsenter", f"--target={self._pid()}", "--all"]
            unshare = ["unshare", *self.node_namespaces, *_NAMESPACES]
            first = ["sh", "-c", self.node, "sh", f"{self.base}/", node, self._addresses[node]]
            self._spawn(node, *enter, *unshare, *first)

    def _spawn(self, name: str, *argv: str) -> None:
        env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
        self._processes.spawn(name, argv, env=env, log=self.base / "log" / f"{name}.out")

    def _pid(self) -> int:
        unshare = self._processes.pid("server")
        inits = children(unshare, "sh") if unshare is not None else []
        if not inits:
            raise ClusterError(f"{self.name} is down")
        return inits[0]

    def _init(self, node: str) -> int | None:
        """The first process of a node: the child of `unshare`, which is the child of `nsenter`."""
        found = self._processes.pid(node)
        for program in ("unshare", "sh"):
            below = children(found, program) if found is not None else []
            found = below[0] if below else None
        return found

    def _enter(self, argv: Sequence[str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--target={self._pid()}", "--all", "--wd=/", *argv],
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "HOME": "/"},
            stdin=subprocess.DEVNULL,
            capture_output=True, text=True, umask=0o022, timeout=timeout, check=False,
        )  # fmt: skip

    def _end(self) -> None:
        # all state goes with the next `up`, so nothing needs the time to save it
        for name in sorted(self._processes.names(), key="server".__eq__):
            self._processes.end(name, signal.SIGKILL)


_NAMESPACES = ("--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
