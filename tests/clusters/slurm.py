"""A real Slurm on this machine for the tests: Debian's packages, started by root, on loopback.

Every node is a process tree in namespaces of its own (host name, process ids, mounts), so that signals,
preemption and a crash behave as on a real cluster. Files and network are shared by all nodes. Nothing under
/etc is written: all daemons and commands find the cluster by SLURM_CONF, so that several checkouts, and a
Slurm that the machine has already, do not meet.

    python -m tests.clusters.slurm up | down | status | run USER COMMAND...
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.clusters import accounting as database
from tests.clusters.machine import (
    SYSTEM_PATH,
    USER,
    ClusterError,
    Processes,
    account,
    checksum,
    children,
    default_base,
    free_ports,
    install_packages,
    lock_folder,
    main,
    require_root,
    say,
    wait_for,
    wipe,
)
from tests.clusters.slurm_conf import CLUSTER, render_slurm_conf

_VARIABLE = "MLXJOBS_SLURM_DIR"
_PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_FREEZER = Path("/sys/fs/cgroup/freezer")
_DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
_USABLE = {"idle", "mixed", "allocated", "completing"}

# The first process of a node. It starts slurmd, does so again at SIGUSR1, and reaps what is orphaned.
_NODE = """
set -e
conf=$0 node=$1 freezer=$2
hostname "$node"
mount --bind "${conf%/*}/hosts" /etc/hosts
[ -z "$freezer" ] || mount --bind "$freezer" /sys/fs/cgroup/freezer
boot() { setsid --fork slurmd -D -N "$node" -f "$conf"; }
trap boot USR1
boot
set +e
while :; do sleep 1000 & wait $!; done
"""


class SlurmCluster:
    """One Slurm of nodes m1, m2, ... with 4 CPUs and 2 GPUs each, all of them pretended.

    Partition `low` is the default one; jobs of `high` preempt its jobs, which are requeued.

    Args:
        base: folder of everything that the cluster writes; a cluster is known by it. Default: the environment
            variable MLXJOBS_SLURM_DIR, else a folder under /tmp that belongs to this checkout.
    """

    wait_for = staticmethod(wait_for)

    def __init__(self, base: Path | None = None) -> None:
        self.base = (base or default_base(_VARIABLE)).absolute()
        self.nodes: list[str] = []
        self._processes = Processes(self.base / "pids", f"{self.base}/")
        self._storage: dict[str, object] = {}
        self._overrides: dict[str, str] = {}
        self._partition_overrides: dict[str, dict[str, str]] = {}
        self._port = 0
        self._lock: int | None = None
        self._freezer: Path | None = None
        if os.access(_FREEZER / "cgroup.procs", os.W_OK):
            self._freezer = _FREEZER / f"mlxjobs-{checksum(self.base):08x}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a command needs to reach this cluster, and no others."""
        return {
            "SLURM_CONF": f"{self.base}/slurm.conf",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
        }

    # ---- the whole cluster

    def install(self, *, accounting: bool = False) -> None:
        """Install Slurm where it is missing, and create the ordinary account.

        Raises:
            ClusterError: not root, or apt-get failed.
        """
        require_root("install and start a real Slurm")
        programs = {**_PROGRAMS, **(database.PROGRAMS if accounting else {})}
        missing = [package for name, package in programs.items() if not shutil.which(name, path=SYSTEM_PATH)]
        if missing:
            install_packages(missing)
        account(USER)

    def up(self, nodes: int = 3, *, accounting: bool = False) -> None:
        """Start a new cluster without any jobs; what an earlier one in the same folder left is ended first.

        Args:
            nodes: how many.
            accounting: run slurmdbd and a database too, so that sacct works; `install` must have been told.

        Raises:
            ClusterError: not root, another process uses the folder, or a daemon does not start.
        """
        require_root("install and start a real Slurm")
        started = time.monotonic()
        if self._lock is None:
            self._lock = lock_folder(self.base, _VARIABLE)
        self._end_all()
        wipe(self.base, _VARIABLE)
        self.nodes = [f"m{number}" for number in range(1, nodes + 1)]
        try:
            self._prepare()
            self._start_munged()
            if accounting:
                self._start_accounting()
            self.start_controller()
            self.start(*self.nodes)
        except (TimeoutError, OSError, subprocess.CalledProcessError) as error:
            self.down()
            raise ClusterError(f"Slurm does not start ({error}); its logs are in {self.base}/log") from error
        except BaseException:
            self.down()
            raise
        say(f"Slurm is up in {time.monotonic() - started:.1f} s: SLURM_CONF={self.base}/slurm.conf")

    def down(self) -> None:
        """End all that was started, with its jobs; the logs stay until the next `up`. Safe to call twice."""
        self._end_all()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def restore(self) -> None:
        """Make the cluster what it was after `up`, but for the job numbers, whatever a test did to it."""
        self.continue_controller()
        self.start_controller()
        if self._overrides or self._partition_overrides:
            self._overrides, self._partition_overrides = {}, {}
            self._reconfigure()
        self._boot(self.nodes)
        for node, state in self._node_states(self.nodes).items():
            if state.startswith(("drain", "down")):
                self.root("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait_for(self._cancel_all, 30, until=lambda left: not left)
        self.start(*self.nodes)

    # ---- the controller

    def start_controller(self) -> None:
        """Start slurmctld, unless it runs, and return when it answers."""
        if self._processes.pid("slurmctld") is None:
            self._spawn("slurmctld", "slurmctld", "-D", "-f", f"{self.base}/slurm.conf")
        wait_for(lambda: self.root("scontrol", "ping", check=False), 20, until=lambda out: "is UP" in out)

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state; running jobs go on."""
        self._processes.end("slurmctld")

    def pause_controller(self) -> None:
        """Make slurmctld hang: commands time out, yet what they asked is done when it continues."""
        self._processes.send("slurmctld", signal.SIGSTOP)

    def continue_controller(self) -> None:
        """Let a paused slurmctld go on."""
        self._processes.send("slurmctld", signal.SIGCONT)

    def set_conf(
        self,
        *,
        low: Mapping[str, object] | None = None,
        high: Mapping[str, object] | None = None,
        **overrides: object,
    ) -> None:
        """Change lines of slurm.conf, or keys of a partition, and reconfigure; None is the default again.

        Slurm takes some settings (AuthInfo, SelectType, ...) only when its daemons start.
        """
        _override(self._overrides, overrides)
        for name, keys in (("low", low), ("high", high)):
            _override(self._partition_overrides.setdefault(name, {}), keys or {})
        self._reconfigure()

    # ---- nodes

    def start(self, *nodes: str) -> None:
        """Switch nodes on, or start their slurmd again, and return when Slurm can use all of them."""
        self._boot(nodes)
        wait_for(lambda: self._node_states(nodes), 40, until=lambda states: set(states.values()) <= _USABLE)

    def stop_slurmd(self, node: str) -> None:
        """End the slurmd of a node; its jobs go on, which is what a cut network looks like to slurmctld."""
        init = self._init(node)
        if init is None:
            return
        for pid in children(init, "slurmd"):
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: children(init, "slurmd"), 20, until=lambda pids: not pids)

    def crash(self, node: str) -> None:
        """Switch a node off: everything on it dies at once, without any signal that it could handle."""
        if (init := self._init(node)) is not None:
            os.kill(init, signal.SIGKILL)  # with the first process of its namespace all others are killed
            wait_for(lambda: self._processes.pid(node) is None, 20)
        self._processes.end(node, signal.SIGKILL)
        if self._freezer is not None:
            _remove_cgroup(self._freezer / node)

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
        """Run a command as `user` from `cwd` (default: their home), with `environment` and `env` only.

        A failing command is no error here: tests look at what it says.
        """
        who = account(user)
        own = {"HOME": who.pw_dir, "USER": user, "LOGNAME": user, "SHELL": "/bin/bash"}
        return subprocess.run(
            [str(word) for word in argv],
            user=who.pw_uid,
            group=who.pw_gid,
            extra_groups=[],
            umask=0o022,
            cwd=cwd or who.pw_dir,
            env={**self.environment, **own, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def root(self, *argv: str, check: bool = True) -> str:
        """Return what an administrator's command prints.

        Raises:
            ClusterError: the command failed, unless `check` is false.
        """
        done = self.run(argv, user="root", cwd=Path("/"), env={"SLURM_TIME_FORMAT": "%s"})
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def job_states(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the states of jobs by their ids (7, or 7_0 of an array), without those that Slurm forgot.

        Raises:
            ClusterError: slurmctld does not answer.
        """
        states = self._all_states()
        return {job: states[job] for job in ids if job in states}

    def hurry(self, job_id: str) -> None:
        """Let a job that was just requeued start now, not after the 6 s that Slurm makes it wait."""

        def waits() -> str:
            return self.root("squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%T %r %V")

        line = wait_for(waits, 30, until=lambda out: out.startswith("PENDING BeginTime"))
        # The slurmd that ran it refuses a credential made in the second of the requeue or before.
        requeued = int(line.split()[2])
        wait_for(time.time, 5, until=lambda now: now >= requeued + 1)
        self.root("scontrol", "update", f"jobid={job_id}", "StartTime=now")

    def status(self) -> dict[str, str]:
        """Return what is up: 'up' or 'down' for each daemon, Slurm's word for each node."""
        known = {*self._processes.names(), "slurmctld"}
        daemons = {name: "up" if self._processes.pid(name) else "down" for name in _DAEMONS if name in known}
        return {**daemons, **(self._node_states() if daemons["slurmctld"] == "up" else {})}

    def process(self, name: str) -> int | None:
        """Return the process id of a daemon, or of what holds a node; None when it does not run."""
        return self._processes.pid(name)

    # ---- how it is made

    def _prepare(self) -> None:
        for name in ("pids", "log", "state", "munge", *(f"spool/{node}" for node in self.nodes)):
            (self.base / name).mkdir(parents=True)
        key = self.base / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        names = "".join(f"127.0.0.1 {name}\n" for name in self.nodes)
        (self.base / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        for number in (0, 1):
            (self.base / f"nvidia{number}").symlink_to("/dev/null")  # Slurm counts devices that are there
        (self.base / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.base}/nvidia[0-1]\n")
        self._port = free_ports(len(self.nodes) + 2, self.base)
        self._storage, self._overrides, self._partition_overrides = {}, {}, {}
        self._write_conf()

    def _write_conf(self) -> None:
        lines: dict[str, object] = {**self._storage, **self._overrides}
        if self._freezer is not None:
            lines = {"ProctrackType": "proctrack/cgroup", **lines}
            text = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
            (self.base / "cgroup.conf").write_text(text)
        text = render_slurm_conf(self.base, self.nodes, self._port, lines, self._partition_overrides)
        (self.base / "slurm.conf").write_text(text)

    def _reconfigure(self) -> None:
        self._write_conf()
        if self._processes.pid("slurmctld") is not None:
            self.root("scontrol", "reconfigure")

    def _spawn(self, name: str, *argv: str) -> None:
        env = {**self.environment, "PATH": SYSTEM_PATH}
        self._processes.spawn(name, argv, env=env, log=self.base / "log" / f"{name}.out")

    def _start_munged(self) -> None:
        munge = self.base / "munge"
        # one for all nodes: Debian's Slurm takes a credential that was decoded before (MULTIPLE_SLURMD)
        files = {"key": "key", "pid": "pid", "seed": "seed", "log": "log"}
        options = [f"--{option}-file={munge}/{name}" for option, name in files.items()]
        self._spawn("munged", "munged", "--foreground", f"--socket={munge}/socket", *options)
        wait_for(lambda: self.root("munge", "-n", f"--socket={munge}/socket", check=False), 10)

    def _start_accounting(self) -> None:
        port = self._port + len(self.nodes) + 1
        self._storage = database.start_accounting(self.base, port, self._spawn)
        self._write_conf()
        # slurmctld must find itself known there; fails until slurmdbd has made its tables
        add = ["sacctmgr", "--immediate", "add", "cluster", CLUSTER]
        wait_for(lambda: self.run(add, user="root"), 30, until=lambda done: done.returncode == 0)

    def _spawn_node(self, node: str) -> None:
        flags = ["--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        freezer = ""
        if self._freezer is not None:
            # with a namespace of cgroups this one is the root of the node's tree, which Slurm writes into
            freezer = str(self._freezer / node)
            Path(freezer).mkdir(parents=True, exist_ok=True)
            flags.append("--cgroup")
        enter = '[ -z "$0" ] || echo $$ >"$0/cgroup.procs"; exec unshare "$@"'
        init = ["sh", "-c", _NODE, f"{self.base}/slurm.conf", node, freezer]
        self._spawn(node, "sh", "-c", enter, freezer, *flags, *init)

    def _boot(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            if (init := self._init(node)) is None:
                self._spawn_node(node)
            elif not children(init, "slurmd"):
                os.kill(init, signal.SIGUSR1)

    def _init(self, node: str) -> int | None:
        unshare = self._processes.pid(node)
        inits = children(unshare, "sh") if unshare is not None else []
        return inits[0] if inits else None

    def _end_all(self) -> None:
        # all state goes with the next `up`, so nothing needs the time to save it
        for name in self._processes.names():
            self._processes.end(name, signal.SIGKILL) if name in _DAEMONS else self.crash(name)
        if self._freezer is not None:
            _remove_cgroup(self._freezer)

    def _node_states(self, nodes: Iterable[str] | None = None) -> dict[str, str]:
        out = self.root("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T", check=False)
        states = dict(line.split() for line in out.splitlines())
        return {node: states.get(node, "unknown") for node in (states if nodes is None else nodes)}

    def _cancel_all(self) -> str:
        # to be repeated: a job that was about to be requeued is there again
        left = self.root("squeue", "--noheader", "--format=%A")
        if left:
            self.root("scancel", "--quiet", *left.split(), check=False)
        return left

    def _all_states(self) -> dict[str, str]:
        # all jobs and no --jobs: with that, one unknown id is an error
        out = self.root("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(line.split() for line in out.splitlines())


def _override(target: dict[str, str], changes: Mapping[str, object]) -> None:
    for key, value in changes.items():
        target.pop(key, None)
        if value is not None:
            target[key] = str(value)


def _remove_cgroup(folder: Path) -> None:
    # files of a cgroup cannot be removed, its folder can, once the last of its processes is gone entirely
    wait_for(lambda: _busy_cgroups(folder), 10, until=lambda busy: not busy)


def _busy_cgroups(folder: Path) -> list[str]:
    busy = []
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            busy.append(path)
    return busy


if __name__ == "__main__":
    main(SlurmCluster(), sys.argv[1:], __doc__ or "", {"up", *_USABLE})
