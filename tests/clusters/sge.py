"""A real Grid Engine on this machine for the tests: Debian's packages, in namespaces of its own, by root.

The qmaster and the user's commands live behind one process whose namespaces (host name, process ids, mounts,
network) are its own, and each node in one more of its kind below it, on a bridge: Grid Engine knows a host by
its address. So it finds its files at the fixed places it wants, and its ports free, while nothing of this
machine is changed and several checkouts do not meet. Whatever happens, all of it ends with that process.

It is the packaged Grid Engine but for settings that make it quick (`sge_conf.py`).

    python -m tests.clusters.sge up | down | status | run USER COMMAND...
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.clusters import sge_conf
from tests.clusters.machine import (
    SYSTEM_PATH,
    ClusterError,
    Processes,
    account,
    checksum,
    children,
    install_packages,
    lock_folder,
    require_root,
    say,
    wait_for,
)

USER = "mlxalice"
"""The ordinary account that submits jobs."""

VARIABLE = "MLXJOBS_SGE_DIR"
_CELL = ("SGE_ROOT=/var/lib/gridengine", "SGE_CELL=default")
_ADMIN = ("setpriv", "--reuid=sgeadmin", "--regid=sgeadmin", "--clear-groups")
_PROGRAMS = {
    "sge_qmaster": "gridengine-master",
    "sge_execd": "gridengine-exec",
    "qsub": "gridengine-client",
    "nsenter": "util-linux",
    "ip": "iproute2",
}

# The first process: it gives Grid Engine its files, and reaps what is orphaned.
_SERVER = """
set -e
base=$0
hostname sge-server
mount --bind "${base}root" /var/lib/gridengine
mount --bind "${base}spool" /var/spool/gridengine
mount --bind "${base}hosts" /etc/hosts
mount -t tmpfs -o mode=755 tmpfs /run
install -d -o sgeadmin -g sgeadmin /run/gridengine
ip link set lo up
# an address of its own: else it takes that of a node, and changes it when that node goes
ip link add nodes address 02:00:00:00:00:01 type bridge
ip address add "$1/24" dev nodes
ip link set nodes up
echo ready >/run/ready
set +e
trap '' HUP
while :; do sleep 1000 & wait $!; done
"""

# The first process of a node: its network card comes from outside.
_NODE = """
hostname "$2"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$3/24" dev eth0
ip link set eth0 up
/usr/sbin/sge_execd
while :; do sleep 1000 & wait $!; done
"""


def _default_base() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return Path(os.environ.get(VARIABLE) or f"/tmp/mlxjobs-sge-{checksum(checkout):08x}")


class SgeCluster:
    """One Grid Engine of nodes node1, node2, ... with 4 slots each, and a queue above that suspends them.

    Args:
        base: folder of everything that the cluster writes; a cluster is known by it. Default: the environment
            variable MLXJOBS_SGE_DIR, else a folder under /tmp that belongs to this checkout.
    """

    wait_for = staticmethod(wait_for)
    environment: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

    def __init__(self, base: Path | None = None) -> None:
        self.base = (base or _default_base()).absolute()
        self.nodes: list[str] = []
        self._addresses: dict[str, str] = {}
        self._processes = Processes(self.base / "pids", f"{self.base}/")
        self._lock: int | None = None

    # ---- the whole cluster

    def install(self) -> None:
        """Install Grid Engine where it is missing, and create the ordinary account.

        Raises:
            ClusterError: not root, or apt-get failed.
        """
        require_root("install and start a real Grid Engine")
        if missing := [_PROGRAMS[name] for name in _PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]:
            install_packages(missing)
        account(USER)

    def up(self, nodes: int = 2) -> None:
        """Start a new cluster without any jobs; what an earlier one in the same folder left is ended first.

        Args:
            nodes: how many.

        Raises:
            ClusterError: not root, another process uses the folder, or a daemon does not start.
        """
        require_root("install and start a real Grid Engine")
        started = time.monotonic()
        if self._lock is None:
            self._lock = lock_folder(self.base, VARIABLE)
        self._end()
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._addresses = {node: f"10.99.0.{number}" for number, node in enumerate(self.nodes, 11)}
        try:
            self._prepare()
            server = ["sh", "-c", _SERVER, f"{self.base}/", sge_conf.ADDRESS]  # the mark of our processes
            self._spawn("server", "unshare", *_namespaces(), *server)
            wait_for(lambda: children(self._processes.pid("server") or 0, "sh"), 20)
            wait_for(lambda: self._enter(["cat", "/run/ready"]).stdout, 20)
            self._create_cell()
            self.start_server()
            self._configure()
            self.node_up(*self.nodes)
        except (TimeoutError, OSError, subprocess.CalledProcessError, ValueError, ClusterError) as error:
            self.down()
            raise ClusterError(f"Grid Engine does not start ({error}); look in {self.base}") from error
        say(f"Grid Engine of {nodes} nodes is up after {time.monotonic() - started:.1f} s")

    def down(self) -> None:
        """End all that was started, with its jobs; the logs stay until the next `up`. Safe to call twice."""
        self._end()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restore(self) -> None:
        """Make the cluster what it was after `up`, but for the job numbers, whatever a test did to it."""
        self.start_server()
        for node, state in self.node_states().items():
            if state != "up":  # its daemon with a job may not come back to a new qmaster (measured: 120 s)
                self.node_down(node)
        self.node_up(*self.nodes)
        wait_for(self._delete_all, 60, until=lambda left: not left)
        self.root("qmod", "-c", "*", check=False)  # a queue in error takes no more jobs

    # ---- the server

    def start_server(self) -> None:
        """Start the qmaster unless it runs, and return when it answers."""
        if not self._server_runs():
            self.root("sge_qmaster")
        wait_for(lambda: self._enter(["qconf", "-sh"]).returncode, 30, until=lambda code: code == 0)

    def stop_server(self) -> None:
        """End the qmaster as an administrator does; running jobs go on."""
        self.root("pkill", "-TERM", "-x", "sge_qmaster", check=False)
        wait_for(self._server_runs, 30, until=lambda runs: not runs)

    def _server_runs(self) -> bool:
        return self._enter(["pgrep", "-x", "sge_qmaster"]).returncode == 0

    # ---- nodes

    def node_up(self, *nodes: str) -> None:
        """Switch nodes on; return when Grid Engine can use all of them."""
        for node in nodes:
            self._boot(node)
        wait_for(self.node_states, 60, until=lambda states: all(states.get(node) == "up" for node in nodes))

    def node_down(self, node: str) -> None:
        """Switch a node off: everything on it dies at once, and nobody tells Grid Engine."""
        if (init := self._init(node)) is not None:
            os.kill(init, signal.SIGKILL)  # with the first process of its namespace all others are killed
        self._processes.end(node, signal.SIGKILL)

    def node_states(self) -> dict[str, str]:
        """Return `up` for each node whose queues take jobs, else the letters that qstat(1) has for them."""
        states: dict[str, str] = {}
        for line in self.root("qstat", "-f", "-q", "all.q").splitlines():
            if found := re.match(r"all\.q@(\S+)\s+\S+\s+\S+\s+(\S+)\s+\S+\s*(\S*)$", line):
                node, load, letters = found.groups()
                states[node] = letters or ("up" if load != "-NA-" else "u")
        return states

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
            raise ClusterError(f"{' '.join(argv)} failed ({done.returncode}): {done.stderr or done.stdout}")
        return done.stdout

    def job_states(self, ids: Iterable[str]) -> dict[str, str]:
        """Return qstat's letters by job or `job.task`; `ended` for what only the accounting file knows."""
        states = {}
        for job in ElementTree.fromstring(self.root("qstat", "-u", "*", "-g", "d", "-xml")).iter("job_list"):
            task = job.findtext("tasks")
            name = job.findtext("JB_job_number", "") + (f".{task}" if task else "")
            states[name] = job.findtext("state", "")
        found = {job: states[job] for job in ids if job in states}
        return {**{job: "ended" for job in ids if job not in found and self.records(job)}, **found}

    def records(self, job_id: str) -> list[dict[str, str]]:
        """Return what the accounting file says of a job, one for each time that it ran."""
        job, _, task = job_id.partition(".")
        said = self.root("qacct", "-j", job, *(["-t", task] if task else []), check=False)
        parts = re.split(r"(?m)^=+$", said)[1:]
        lines = ([line.split(None, 1) for line in part.splitlines()] for part in parts)
        return [{words[0]: words[-1].strip() for words in part if words} for part in lines]

    def status(self) -> dict[str, str]:
        """Return what is up: 'up' or 'down' for the server, and for each node as `node_states` does."""
        if self._processes.pid("server") is None or not self._server_runs():
            return {"server": "down"}
        return {"server": "up", **self.node_states()}

    # ---- how it is made

    def _wipe(self) -> None:
        mine = (self.base / "pids").is_dir()
        for path in sorted(self.base.iterdir(), key=lambda path: path.name == "pids"):
            if not mine:
                raise ClusterError(f"{self.base} holds other things; set {VARIABLE} to a folder of its own")
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _prepare(self) -> None:
        self._wipe()
        for name in ("pids", "log", "conf"):
            (self.base / name).mkdir()
        admin = account("sgeadmin")
        subprocess.run(["cp", "--archive", "/var/lib/gridengine", str(self.base / "root")], check=True)
        (self.base / "root" / "default" / "common" / "act_qmaster").write_text(f"{sge_conf.SERVER}\n")
        for name in ("", "qmaster", "qmaster/job_scripts", "spooldb", "execd"):
            (self.base / "spool" / name).mkdir()
            os.chown(self.base / "spool" / name, admin.pw_uid, admin.pw_gid)
        (self.base / "hosts").write_text(sge_conf.render_hosts(self._addresses))

    def _create_cell(self) -> None:
        """As the package does when it is installed, and with root for a manager."""
        make = ["/var/lib/gridengine", "default", "/var/spool/gridengine/spooldb", "sgeadmin"]
        self.root(*_ADMIN, "/usr/share/gridengine/scripts/init_cluster", *make)
        self.root(*_ADMIN, "env", *_CELL, "/usr/lib/gridengine/spooldefaults", "managers", "root")

    def _configure(self) -> None:
        change = sge_conf.change
        self._give("-Mconf", "global", change(self.root("qconf", "-sconf"), sge_conf.CONFIGURATION))
        self._give("-Msconf", "scheduler", change(self.root("qconf", "-ssconf"), sge_conf.SCHEDULER))
        self.root("qconf", "-as", sge_conf.SERVER)
        for node in self.nodes:
            self.root("qconf", "-ah", node)
            self.root("qconf", "-as", node)  # a job may submit
            self._give("-Ae", node, sge_conf.render_host(node))
        self._give("-Ahgrp", "group", sge_conf.render_group(self.nodes))
        for name in ("smp", "high"):
            self._give("-Ap", name, sge_conf.PARALLEL.format(name=name))
        for name, more in sge_conf.QUEUES.items():
            queue = change(self.root("qconf", "-sq"), {"qname": name, **sge_conf.QUEUE, **more})
            self._give("-Aq", name, queue)

    def _give(self, option: str, name: str, text: str) -> None:
        file = self.base / "conf" / name
        file.write_text(text)
        self.root("qconf", option, str(file))

    def _boot(self, node: str) -> None:
        if self._init(node) is not None:
            return
        enter = ["nsenter", f"--target={self._pid()}", "--all", "unshare", *_namespaces()]
        self._spawn(node, *enter, "sh", "-c", _NODE, "sh", f"{self.base}/", node, self._addresses[node])
        init = wait_for(lambda: self._init(node), 20)
        network = ["nsenter", f"--target={self._pid()}", "--net", "ip", "link"]
        # the card of a node that was switched off goes a moment after the node
        subprocess.run([*network, "delete", node], capture_output=True, check=False)
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(init)]
        subprocess.run([*network, "add", node, "master", "nodes", "up", *peer], check=True)

    def _spawn(self, name: str, *argv: str) -> None:
        env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
        self._processes.spawn(name, argv, env=env, log=self.base / "log" / f"{name}.out")

    def _pid(self) -> int:
        unshare = self._processes.pid("server")
        inits = children(unshare, "sh") if unshare is not None else []
        if not inits:
            raise ClusterError("Grid Engine is down")
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

    def _delete_all(self) -> str:
        left = self.root("qstat", "-u", "*")
        self.root("qdel", "-f", "-u", "*", check=False)  # without jobs it does nothing
        return left

    def _end(self) -> None:
        # all state goes with the next `up`, so nothing needs the time to save it
        for name in sorted(self._processes.names(), key="server".__eq__):
            self._processes.end(name, signal.SIGKILL)


def _namespaces() -> list[str]:
    return ["--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]


def main(argv: Sequence[str]) -> int:
    """Do what a developer asks for on the command line, and return the exit code."""
    cluster = SgeCluster()
    match list(argv):
        case ["up"]:
            cluster.install()
            cluster.up()
        case ["down"]:
            require_root("end Grid Engine")
            cluster.down()
        case ["status"]:
            states = cluster.status()
            print("\n".join(f"{name:10} {state}" for name, state in states.items()))
            return 0 if set(states.values()) == {"up"} else 3
        case ["run", user, *command] if command:
            done = cluster.run(command, user=user, cwd=Path.cwd())
            sys.stdout.write(done.stdout)
            sys.stderr.write(done.stderr)
            return done.returncode
        case _:
            print((__doc__ or "").splitlines()[-1].strip(), file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ClusterError as error:
        sys.exit(f"error: {error}")
