"""What happens to jobs on a cluster, at random, to runs of an ordinary user on the real Slurm."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.clusters.machine import USER, ClusterError, account, say, wait_for
from tests.clusters.project import UserProject
from tests.clusters.slurm import SlurmCluster

# single runs are disturbed by so many threads: a command that awaits the controller takes long
_AT_ONCE = 3
_RUN = re.compile(rb"forced_log_id=(\d+)")


def pids_of(project: UserProject[SlurmCluster]) -> dict[int, int]:
    """Return the processes that execute runs of a project: process id, as seen here, -> run."""
    user, mark, found = account(USER).pw_uid, os.fsencode(project.folder / "main.py"), {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and entry.stat().st_uid == user:
                command = (entry / "cmdline").read_bytes()
                if mark in command and (match := _RUN.search(command)):
                    found[int(entry.name)] = int(match[1])
    return found


class Torment:
    """Disturbs the runs of a project, one thing or several at a time.

    Args:
        project: whose runs; all its jobs are in partition `low`.
        draw: what decides.
        every_s: mean time between two disturbances of single runs.
        every_large_s: mean time between two of a node or the controller.
    """

    def __init__(
        self,
        project: UserProject[SlurmCluster],
        draw: random.Random,
        every_s: float = 1.0,
        every_large_s: float = 8.0,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._project = project
        self._cluster = project.cluster
        self._draw = draw
        self._every_s, self._every_large_s = every_s, every_large_s
        self._behind: list[threading.Thread] = []
        self._nodes = {node: threading.Lock() for node in self._cluster.nodes}

    def go_on(self, seconds: float) -> None:
        """Disturb for so long, and return when the cluster is whole again; jobs may still be on their way."""
        end = time.monotonic() + seconds
        small: dict[Callable[[float], None], int] = {
            self._preempt: 6, self._requeue: 6, self._requeue_by_us: 3, self._kill: 4, self._freeze: 3,
        }  # fmt: skip
        large: dict[Callable[[float], None], int] = {
            self._power_off: 3, self._cut_off: 3, self._restart_slurmd: 2, self._preempt_node: 4,
            self._kill_controller: 2, self._stop_controller: 1, self._hang_controller: 2,
        }  # fmt: skip
        loops = [(small, self._every_s * _AT_ONCE)] * _AT_ONCE + [(large, self._every_large_s)]
        threads = [
            threading.Thread(target=self._keep_on, args=(kinds, mean, end, self._draw.random()))
            for kinds, mean in loops
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for thread in self._behind:
            thread.join()
        self._cluster.continue_controller()
        self._cluster.start_controller()
        for node in self._cluster.nodes:
            self._start(node)

    def _keep_on(
        self, kinds: dict[Callable[[float], None], int], mean_s: float, end: float, seed: float
    ) -> None:
        draw = random.Random(seed)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, draw.expovariate(1 / mean_s)))
            (kind,) = draw.choices(list(kinds), list(kinds.values()))
            self._do(kind, draw.random())

    def _do(self, kind: Callable[[float], None], chance: float) -> None:
        try:
            kind(chance)
        except (ClusterError, TimeoutError, subprocess.TimeoutExpired) as error:
            # a command that meets another disturbance; what matters is what becomes of the runs
            self.errors.append(f"{kind.__name__}: {error}")

    # ---- of one run

    def _one(self, chance: float) -> tuple[int, int] | None:
        running = sorted(pids_of(self._project).items())
        return running[int(chance * len(running))] if running else None

    def _user(self, kind: str, *command: str) -> None:
        done = self._cluster.run(command, cwd=self._project.folder, env=self._project.env)
        self.counts[kind if done.returncode == 0 else f"{kind}, refused"] += 1
        if "Traceback" in done.stderr:
            self.errors.append(f"{' '.join(command)}:\n{done.stderr}")

    def _mlxjobs(self, kind: str, *words: str) -> None:
        self._user(kind, self._project.python, "-m", "mlxjobs", *words)

    def _preempt(self, chance: float) -> None:
        if (one := self._one(chance)) is not None:
            self._mlxjobs("mlxjobs preempt", "preempt", str(one[1]))

    def _requeue_by_us(self, chance: float) -> None:
        if (one := self._one(chance)) is not None:
            self._mlxjobs("mlxjobs requeue of a running run", "requeue", str(one[1]))

    def _requeue(self, chance: float) -> None:
        if (one := self._one(chance)) is not None and (job := self._project.state(one[1]).job_id):
            self._user("scontrol requeue", "scontrol", "requeue", job)

    def _kill(self, chance: float) -> None:
        if (one := self._one(chance)) is not None:
            _signal([one[0]], signal.SIGKILL)
            self.counts["SIGKILL of python"] += 1

    def _freeze(self, chance: float) -> None:
        """The process is stopped before the requeue, and goes on at some moment after it."""
        if (one := self._one(chance)) is not None and (job := self._project.state(one[1]).job_id):
            _signal([one[0]], signal.SIGSTOP)
            self._user("SIGSTOP, scontrol requeue, SIGCONT", "scontrol", "requeue", job)
            time.sleep(4 * chance % 1 * 3)
            _signal([one[0]], signal.SIGCONT)

    # ---- of a node

    def _a_node(self, chance: float) -> str | None:
        """Take a node that nothing else is being done to."""
        free = [node for node, lock in self._nodes.items() if not lock.locked()]
        node = free[int(chance * len(free))] if free else None
        return node if node is not None and self._nodes[node].acquire(blocking=False) else None

    def _start(self, node: str) -> None:
        """As an administrator: a node that Slurm keeps out, as it met a job there twice, is resumed."""
        with suppress(TimeoutError):
            self._cluster.start(node)
            return
        self._cluster.root("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.counts["(node resumed by the administrator)"] += 1

    def _with_node(self, chance: float, do: Callable[[str], None]) -> None:
        node = self._a_node(chance)
        if node is not None:
            thread = threading.Thread(target=self._in_background, args=(node, do))
            self._behind.append(thread)
            thread.start()

    def _in_background(self, node: str, do: Callable[[str], None]) -> None:
        try:
            do(node)
        except (ClusterError, TimeoutError) as error:
            self.errors.append(f"{node}: {error}")
        finally:
            self._start(node)
            self._nodes[node].release()

    def _power_off(self, chance: float) -> None:
        def power_off(node: str) -> None:
            self._cluster.crash(node)
            self.counts["node powered off and on"] += 1
            time.sleep(chance * 7 % 1 * 15)

        self._with_node(chance, power_off)

    def _restart_slurmd(self, chance: float) -> None:
        def restart(node: str) -> None:
            self._cluster.stop_slurmd(node)
            self.counts["slurmd restarted"] += 1
            time.sleep(chance * 7 % 1 * 3)

        self._with_node(chance, restart)

    def _cut_off(self, chance: float) -> None:
        """Slurm gives the node up and starts its jobs elsewhere, while their processes still exist."""

        def cut_off(node: str) -> None:
            stopped = [pid for pid in pids_of(self._project) if _is_on(pid, self._cluster.process(node))]
            asleep = stopped[: len(stopped) // 2 + 1]  # the others log on all the while
            _signal(asleep, signal.SIGSTOP)
            self._cluster.stop_slurmd(node)
            self.counts["node cut off, its processes live on"] += 1
            self.counts["(processes stopped meanwhile)"] += len(asleep)
            with suppress(TimeoutError):
                wait_for(lambda: self._cluster.status().get(node, ""), 25, until=lambda word: "down" in word)
            time.sleep(chance * 7 % 1 * 10)
            _signal(asleep, signal.SIGCONT)
            time.sleep(chance * 11 % 1 * 5)

        self._with_node(chance, cut_off)

    def _preempt_node(self, chance: float) -> None:
        node = sorted(self._nodes)[int(chance * len(self._nodes))]
        job = ("sbatch", "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null")
        self._user("preempted by a higher partition (a node)", *job, "--wrap=sleep 1")

    # ---- of the controller

    def _kill_controller(self, chance: float) -> None:
        if (pid := self._cluster.process("slurmctld")) is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: self._cluster.process("slurmctld") is None, 10)
        self.counts["slurmctld killed and started"] += 1
        time.sleep(chance * 7 % 1 * 6)
        self._cluster.start_controller()

    def _stop_controller(self, chance: float) -> None:
        self._cluster.stop_controller()
        self.counts["slurmctld stopped and started"] += 1
        time.sleep(chance * 7 % 1 * 6)
        self._cluster.start_controller()

    def _hang_controller(self, chance: float) -> None:
        self._cluster.pause_controller()
        self.counts["slurmctld hangs (SIGSTOP)"] += 1
        time.sleep(chance * 7 % 1 * 6)
        self._cluster.continue_controller()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_on(pid: int, unshare: int | None) -> bool:
    """Whether a process is one of the node's, whose first process `unshare` started."""
    with suppress(OSError):
        return unshare is not None and os.path.samestat(
            os.stat(f"/proc/{pid}/ns/pid"), os.stat(f"/proc/{unshare}/ns/pid_for_children")
        )
    return False


class Carers:
    """What people do meanwhile: the user starts again what has ended, the administrator what Slurm keeps out.

    Args:
        project: whose runs.
    """

    def __init__(self, project: UserProject[SlurmCluster]) -> None:
        self.reasons: Counter[str] = Counter()
        self.by_hand: Counter[int] = Counter()
        self.errors: list[str] = []
        self.released: Counter[str] = Counter()
        self.left: dict[int, str] = {}
        self._project = project
        self._cluster = project.cluster

    def look_after(self, done: threading.Event, pause_s: float = 8.0) -> None:
        """Go round until told that it is over."""
        while not done.wait(pause_s):
            try:
                self.go_round()
            except (ClusterError, subprocess.TimeoutExpired) as error:
                say(f"carers: {error}")

    def go_round(self) -> None:
        """Look at all runs once, and do what there is to do."""
        self._release()
        rows = self._rows()
        self.left = {
            row["id"]: f"{row['status']}, {row['reason'] or ''}, {row['doubt'] or ''}"
            for row in rows
            if row["status"] != "COMPLETE"
        }
        # what the controller had not saved when it was killed is lost
        lost = [row for row in rows if "does not know job" in str(row["doubt"])]
        ended = [row for row in rows if row["status"] in ("FAILED", "CANCELLED")] + lost
        if ended and self._mlxjobs("requeue", *(str(row["id"]) for row in ended)) is not None:
            for row in ended:
                self.by_hand[row["id"]] += 1
                why = "the controller had lost its job" if row in lost else str(row["reason"])
                self.reasons[re.sub(r"\d+", "N", why.partition("; to go on")[0])] += 1

    def _rows(self) -> list[dict[str, Any]]:
        out = self._mlxjobs("ls", "--json")
        return [json.loads(line) for line in (out or "").splitlines()]

    def _mlxjobs(self, *words: str) -> str | None:
        command = [self._project.python, "-m", "mlxjobs", *words]
        done = self._cluster.run(command, cwd=self._project.folder, env=self._project.env)
        if "Traceback" in done.stderr or (done.returncode and "controller" not in done.stderr):
            self.errors.append(f"mlxjobs {' '.join(words)} gave {done.returncode}:\n{done.stderr}")
        return done.stdout if done.returncode == 0 else None

    def _release(self) -> None:
        held = self._cluster.root(
            "squeue", "--noheader", "--array", "--states=PD", "--format=%i|%r", check=False
        )
        for line in held.splitlines():
            job, _, reason = line.partition("|")
            if "held" in reason.lower():
                self._cluster.root("scontrol", "release", job, check=False)
                self.released[reason] += 1
        for node, state in self._cluster.status().items():
            if node in self._cluster.nodes and state.startswith("drain"):
                self._cluster.root("scontrol", "update", f"nodename={node}", "state=resume", check=False)
                self.released["node drained"] += 1
