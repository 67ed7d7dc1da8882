"""A real OAR on this machine for the tests: Debian's packages, started by root (see `isolated.py`).

It is the packaged OAR but for: no cpusets, settings that make it quick, and three waits of its server, which
are shorter in a copy (`oar_conf.py`).

    python -m tests.clusters.oar up | down | status | run USER COMMAND...
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.clusters import oar_conf
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

CORES = 4
_PROGRAMS = {
    "Almighty": "oar-server",
    "oarsub": "oar-user",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "nsenter": "util-linux",
    "ip": "iproute2",
}
_MODULES = {  # files that no program on the PATH stands for
    "/usr/share/oar/oar-node": "oar-node",
    "/usr/share/perl5/JSON.pm": "libjson-perl",
    "/usr/share/doc/oar-server-pgsql": "oar-server-pgsql",
    "/usr/share/doc/oar-user-pgsql": "oar-user-pgsql",
    "/usr/lib/postgresql": "postgresql",
}
_ACTIVE = "state NOT IN ('Terminated', 'Error')"

# The first process: it gives OAR its files, and reaps what is orphaned.
_SERVER = """
set -e
base=$0
hostname oar-server
mount --bind "${base}etc" /etc/oar
mount --bind "${base}home" /var/lib/oar
mount --bind "${base}hosts" /etc/hosts
mount --bind "${base}Almighty" /usr/lib/oar/Almighty
mount --bind "${base}log/oar.log" /var/log/oar.log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
ip link set lo up
echo ready >/run/ready
set +e
trap '' HUP
while :; do sleep 1000 & wait $!; done
"""

# The first process of a node.
_NODE = """
hostname "$2"
/usr/sbin/sshd -D -f /etc/oar/sshd_config -o ListenAddress="$3" -o PidFile=none -o MaxSessions=1000 &
while :; do sleep 1000 & wait $!; done
"""


class OarCluster(IsolatedCluster):
    """One OAR of nodes with 4 cores each, all of them pretended."""

    name = "OAR"
    variable = "MLXJOBS_OAR_DIR"
    network = "127.0.6"
    server = (_SERVER,)
    node = _NODE

    # ---- the whole cluster

    def install(self) -> None:
        """OAR, and PostgreSQL."""
        require_root("install and start a real OAR")
        missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name, path=SYSTEM_PATH)]
        missing += [package for path, package in _MODULES.items() if not Path(path).exists()]
        if missing:
            install_packages(missing)
        account(USER)

    def restore(self) -> None:
        """Make the cluster what it was after `up`, but for the job numbers, whatever a test did to it."""
        self.start_server()
        for node in self.nodes:
            self._boot(node)
        wait_for(self._delete_all, 60, until=lambda left: not left)
        self.node_up(*self.nodes)

    # ---- the server

    def start_server(self) -> None:
        """Start OAR's server, Almighty, unless it runs, and return when it answers."""
        if not self._server_pids():
            self._detach("Almighty", "/usr/sbin/Almighty")
        wait_for(lambda: self._listens("127.0.0.1", 6666), 20)

    def stop_server(self) -> None:
        """End OAR's server; running jobs go on, and commands that need only the database answer."""
        for pid in self._server_pids():
            self.root("kill", "-9", pid, check=False)
        wait_for(self._server_pids, 20, until=lambda pids: not pids)

    def _server_pids(self) -> list[str]:
        # its parts are programs of their own, which it starts again and again
        parts = "Almighty|/usr/lib/oar/(sarko|finaud|Leon|NodeChangeState|bipbip|oar_meta_sched|schedulers)"
        return self.root("pgrep", "-u", "oar", "-f", parts, check=False).split()

    # ---- nodes

    def node_up(self, *nodes: str) -> None:
        """Switch nodes on and tell OAR so; return when it can use all of them."""
        for node in nodes:
            self._boot(node)
            if self.node_states()[node] != "Alive":
                self.root("oarnodesetting", "-s", "Alive", "-h", node)
        wait_for(self.node_states, 40, until=lambda states: all(states[node] == "Alive" for node in nodes))

    def node_states(self) -> dict[str, str]:
        """Return OAR's word for each node."""
        return self._pairs("SELECT network_address, min(state) FROM resources GROUP BY 1")

    # ---- commands and jobs

    def job_states(self, ids: Iterable[str]) -> dict[str, str]:
        """Return OAR's words for the states of jobs by their ids, without those that it does not know."""
        states = self._pairs("SELECT job_id, state FROM jobs")
        return {job: states[job] for job in ids if job in states}

    def job(self, job_id: str) -> dict[str, object]:
        """Return all that oarstat says of a job."""
        found: dict[str, dict[str, object]] = json.loads(self.root("oarstat", "-f", "-J", "-j", job_id))
        return found[job_id]

    def status(self) -> dict[str, str]:
        """Return what is up: 'up' or 'down' for the server, OAR's word for each node."""
        if self._processes.pid("server") is None:
            return {"server": "down"}
        return {"server": "up" if self._listens("127.0.0.1", 6666) else "down", **self.node_states()}

    # ---- how it is made

    def _prepare(self) -> None:
        wipe(self.base, self.variable)
        for name in ("pids", "log"):
            (self.base / name).mkdir()
        oar = account("oar")
        for name, source in {"etc": "/etc/oar", "home": "/var/lib/oar"}.items():
            subprocess.run(["cp", "--archive", source, str(self.base / name)], check=True)
        ping = self.base / "ping"
        ping.write_text(oar_conf.render_ping(self._addresses))
        ping.chmod(0o755)
        packaged = Path("/usr/share/oar/oar-common/oar.conf").read_text()
        (self.base / "etc" / "oar.conf").write_text(oar_conf.render_conf(packaged, ping))
        shutil.chown(self.base / "etc" / "oar.conf", "oar", "root")
        (self.base / "home" / ".batch_job_bashrc").write_text(oar_conf.BASHRC)
        (self.base / "hosts").write_text(oar_conf.render_hosts(self._addresses))
        (self.base / "Almighty").write_text(oar_conf.hurry_server(Path("/usr/lib/oar/Almighty").read_text()))
        (self.base / "Almighty").chmod(0o755)
        log = self.base / "log" / "oar.log"
        log.touch()
        os.chown(log, oar.pw_uid, 0)

    def _set_up(self) -> None:
        self._start_database()
        for node in self.nodes:
            self._boot(node)
        self.start_server()
        self._create_resources()

    def _start_database(self) -> None:
        """Start a PostgreSQL of its own, as the unprivileged user of Debian's package."""
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        data = self.base / "database"
        data.mkdir(mode=0o700)
        shutil.chown(data, "postgres", "postgres")
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        make = [
            "initdb",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            f"--pgdata={data}",
        ]
        self.root(*become, f"{programs}/{make[0]}", *make[1:])
        options = {
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "jit": "off",
            "max_connections": 200, "listen_addresses": "127.0.0.1", "unix_socket_directories": data,
        }  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._detach("postgres", *become, f"{programs}/postgres", "-D", str(data), *flags)
        wait_for(
            lambda: self._enter(_psql("postgres", "SELECT 1")).returncode, 20, until=lambda code: code == 0
        )
        self.root(
            "oar-database", "--create", "--db-admin-user", "postgres", "--db-admin-pass", "none", check=False
        )
        wait_for(lambda: self._sql("SELECT version FROM schema"), 10)

    def _create_resources(self) -> None:
        for words in (["-c", "-a", "host"], ["-a", "cpu"], ["-a", "core"]):
            self.root("oarproperty", *words)
        first = {"host": self.nodes[0], "cpu": 1, "core": 1, "cpuset": 0}
        properties = [word for name, value in first.items() for word in ("-p", f"{name}={value}")]
        self.root("oarnodesetting", "-a", "-h", self.nodes[0], *properties)
        self._sql(oar_conf.resources(self.nodes, CORES))

    def _boot(self, node: str) -> None:
        super()._boot(node)
        wait_for(lambda: self._listens(self._addresses[node], 6667), 20)

    def _detach(self, name: str, *argv: str) -> None:
        """Start a daemon beside the first process; it needs no ending of its own."""
        log = self.base / "log" / f"{name}.out"
        self.root("sh", "-c", 'log=$0; setsid --fork "$@" </dev/null >>"$log" 2>&1', str(log), *argv)

    def _listens(self, address: str, port: int) -> bool:
        return self._enter(["bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"]).returncode == 0

    def _sql(self, query: str) -> str:
        return self.root(*_psql("oar", query)).strip()

    def _pairs(self, query: str) -> dict[str, str]:
        return dict(line.split("|") for line in self._sql(query).splitlines())

    def _delete_all(self) -> str:
        left = self._sql(f"SELECT job_id FROM jobs WHERE {_ACTIVE}")
        if left:
            self.root("oardel", *left.split(), check=False)
        return left


def _psql(database: str, query: str) -> list[str]:
    flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
    return ["psql", "--host=127.0.0.1", "--username=postgres", *flags, f"--command={query}", database]


if __name__ == "__main__":
    main(OarCluster(), sys.argv[1:], __doc__ or "", {"up", "Alive"})
