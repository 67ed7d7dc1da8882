"""A real OAR on this machine for the tests: Debian's packages, started by root, in namespaces of its own.

The server, its database and the user's commands live behind one process whose namespaces (host name,
process ids, mounts, network) are its own, and each node in one more of its kind below it. So OAR finds its
files at the fixed places it wants, /etc/oar and /var/lib/oar, and its ports free, while nothing of this
machine is changed and several checkouts do not meet. Whatever happens, all of it ends with that process.

It is the packaged OAR but for: no cpusets, settings that make it quick, and three waits of its server, which
are shorter in a copy (`oar_conf.py`).

    python -m tests.clusters.oar up | down | status | run USER COMMAND...
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.clusters import oar_conf
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

VARIABLE = "MLXJOBS_OAR_DIR"
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


def _default_base() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return Path(os.environ.get(VARIABLE) or f"/tmp/mlxjobs-oar-{checksum(checkout):08x}")


class OarCluster:
    """One OAR of nodes node1, node2, ... with 4 cores each, all of them pretended.

    Args:
        base: folder of everything that the cluster writes; a cluster is known by it. Default: the environment
            variable MLXJOBS_OAR_DIR, else a folder under /tmp that belongs to this checkout.
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
        """Install OAR and PostgreSQL where they are missing, and create the ordinary account.

        Raises:
            ClusterError: not root, or apt-get failed.
        """
        require_root("install and start a real OAR")
        missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name, path=SYSTEM_PATH)]
        missing += [package for path, package in _MODULES.items() if not Path(path).exists()]
        if missing:
            install_packages(missing)
        account(USER)

    def up(self, nodes: int = 2) -> None:
        """Start a new cluster without any jobs; what an earlier one in the same folder left is ended first.

        Args:
            nodes: how many.

        Raises:
            ClusterError: not root, another process uses the folder, or a daemon does not start.
        """
        require_root("install and start a real OAR")
        started = time.monotonic()
        if self._lock is None:
            self._lock = lock_folder(self.base, VARIABLE)
        self._end()
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._addresses = {node: f"127.0.6.{number}" for number, node in enumerate(self.nodes, 11)}
        try:
            self._wipe()
            self._prepare()
            server = ["sh", "-c", _SERVER, f"{self.base}/"]  # the mark of our processes
            self._spawn("server", "unshare", "--net", *_namespaces(), *server)
            wait_for(lambda: children(self._processes.pid("server") or 0, "sh"), 20)
            wait_for(lambda: self._enter(["cat", "/run/ready"]).stdout, 20)
            self._start_database()
            for node in self.nodes:
                self._boot(node)
            self.start_server()
            self._create_resources()
            self.node_up(*self.nodes)
        except (TimeoutError, OSError, subprocess.CalledProcessError, ValueError) as error:
            self.down()
            raise ClusterError(f"OAR does not start ({error}); its logs are in {self.base}/log") from error
        say(f"OAR of {nodes} nodes is up after {time.monotonic() - started:.1f} s")

    def down(self) -> None:
        """End all that was started, with its jobs; the logs stay until the next `up`. Safe to call twice."""
        self._end()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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

    def node_down(self, node: str) -> None:
        """Switch a node off: everything on it dies at once, and nobody tells OAR."""
        if (init := self._init(node)) is not None:
            os.kill(init, signal.SIGKILL)  # with the first process of its namespace all others are killed
        self._processes.end(node, signal.SIGKILL)

    def node_states(self) -> dict[str, str]:
        """Return OAR's word for each node."""
        return self._pairs("SELECT network_address, min(state) FROM resources GROUP BY 1")

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
            raise ClusterError(f"{' '.join(argv)} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

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

    def _wipe(self) -> None:
        mine = (self.base / "pids").is_dir()
        for path in sorted(self.base.iterdir(), key=lambda path: path.name == "pids"):
            if not mine:
                raise ClusterError(f"{self.base} holds other things; set {VARIABLE} to a folder of its own")
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _prepare(self) -> None:
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
        if self._init(node) is None:
            enter = ["nsenter", f"--target={self._pid()}", "--all", "unshare", *_namespaces()]
            self._spawn(node, *enter, "sh", "-c", _NODE, "sh", f"{self.base}/", node, self._addresses[node])
        wait_for(lambda: self._listens(self._addresses[node], 6667), 20)

    def _spawn(self, name: str, *argv: str) -> None:
        env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
        self._processes.spawn(name, argv, env=env, log=self.base / "log" / f"{name}.out")

    def _detach(self, name: str, *argv: str) -> None:
        """Start a daemon beside the first process; it needs no ending of its own."""
        log = self.base / "log" / f"{name}.out"
        self.root("sh", "-c", 'log=$0; setsid --fork "$@" </dev/null >>"$log" 2>&1', str(log), *argv)

    def _pid(self) -> int:
        unshare = self._processes.pid("server")
        inits = children(unshare, "sh") if unshare is not None else []
        if not inits:
            raise ClusterError("OAR is down")
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
            capture_output=True,
            text=True,
            umask=0o022,
            timeout=timeout,
            check=False,
        )

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

    def _end(self) -> None:
        # all state goes with the next `up`, so nothing needs the time to save it
        for name in sorted(self._processes.names(), key="server".__eq__):
            self._processes.end(name, signal.SIGKILL)


def _namespaces() -> list[str]:
    return ["--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _psql(database: str, query: str) -> list[str]:
    flags = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
    return ["psql", "--host=127.0.0.1", "--username=postgres", *flags, f"--command={query}", database]


def main(argv: Sequence[str]) -> int:
    """Do what a developer asks for on the command line, and return the exit code."""
    cluster = OarCluster()
    match list(argv):
        case ["up"]:
            cluster.install()
            cluster.up()
        case ["down"]:
            require_root("end OAR")
            cluster.down()
        case ["status"]:
            states = cluster.status()
            print("\n".join(f"{name:10} {state}" for name, state in states.items()))
            return 0 if set(states.values()) <= {"up", "Alive"} else 3
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
