"""A real Grid Engine on this machine for the tests: Debian's packages, started by root (see `isolated.py`).

The nodes are on a bridge, as Grid Engine knows a host by its address. It is the packaged Grid Engine but for
settings that make it quick (`sge_conf.py`).

    python -m tests.clusters.sge up | down | status | run USER COMMAND...
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from xml.etree import ElementTree

from tests.clusters import sge_conf
from tests.clusters.isolated import IsolatedCluster
from tests.clusters.machine import (
    SYSTEM_PATH,
    USER,
    account,
    install_packages,
    main,
    require_root,
    wait_for,
    wipe,
)

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


class SgeCluster(IsolatedCluster):
    """One Grid Engine of nodes with 4 slots each, and a queue above that suspends them."""

    name = "Grid Engine"
    variable = "MLXJOBS_SGE_DIR"
    network = "10.99.0"
    server = (_SERVER, sge_conf.ADDRESS)
    node = _NODE
    node_namespaces = ("--net",)

    # ---- the whole cluster

    def install(self) -> None:
        """The qmaster, execution hosts, and the user's commands."""
        require_root("install and start a real Grid Engine")
        if missing := [_PROGRAMS[name] for name in _PROGRAMS if not shutil.which(name, path=SYSTEM_PATH)]:
            install_packages(missing)
        account(USER)

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

    def node_states(self) -> dict[str, str]:
        """Return `up` for each node whose queues take jobs, else the letters that qstat(1) has for them."""
        states: dict[str, str] = {}
        for line in self.root("qstat", "-f", "-q", "all.q").splitlines():
            if found := re.match(r"all\.q@(\S+)\s+\S+\s+\S+\s+(\S+)\s+\S+\s*(\S*)$", line):
                node, load, letters = found.groups()
                states[node] = letters or ("up" if load != "-NA-" else "u")
        return states

    # ---- commands and jobs

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

    def _prepare(self) -> None:
        wipe(self.base, self.variable)
        for name in ("pids", "log", "conf"):
            (self.base / name).mkdir()
        admin = account("sgeadmin")
        subprocess.run(["cp", "--archive", "/var/lib/gridengine", str(self.base / "root")], check=True)
        (self.base / "root" / "default" / "common" / "act_qmaster").write_text(f"{sge_conf.SERVER}\n")
        for name in ("", "qmaster", "qmaster/job_scripts", "spooldb", "execd"):
            (self.base / "spool" / name).mkdir()
            os.chown(self.base / "spool" / name, admin.pw_uid, admin.pw_gid)
        (self.base / "hosts").write_text(sge_conf.render_hosts(self._addresses))

    def _set_up(self) -> None:
        self._create_cell()
        self.start_server()
        self._configure()

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
        super()._boot(node)
        init = wait_for(lambda: self._init(node), 20)
        network = ["nsenter", f"--target={self._pid()}", "--net", "ip", "link"]
        # the card of a node that was switched off goes a moment after the node
        subprocess.run([*network, "delete", node], capture_output=True, check=False)
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(init)]
        subprocess.run([*network, "add", node, "master", "nodes", "up", *peer], check=True)

    def _delete_all(self) -> str:
        left = self.root("qstat", "-u", "*")
        self.root("qdel", "-f", "-u", "*", check=False)  # without jobs it does nothing
        return left


if __name__ == "__main__":
    main(SgeCluster(), sys.argv[1:], __doc__ or "", {"up"})
