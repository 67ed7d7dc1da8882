"""Starts the ranks of a job whose scheduler has no launcher (OAR, PBS ...), and ends them together.

    python -m mlxjobs.launch_ranks SCHEDULER RANKS_PER_NODE COMMAND...

It is the job's process: the one that the scheduler signals and whose exit code counts. A shell beside
each rank, here or behind the scheduler's remote shell, holds the other end of a pipe: lines are
signals to hand on, and its end, by whatever killed this process, ends the rank and its children.
"""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from mlxjobs.cluster import ranks, registry
from mlxjobs.errors import MLXJobsError, SchedulerError
from mlxjobs.scheduler import Scheduler
from mlxjobs.system.console import note

# Rank 0 loses its connections when another rank fails, and says so itself if it is given the time; and
# where it leaves first, to come back, the others fail before its exit code is here.
_GRACE_S = 15.0
_END_S = 10.0

# One command list, so that the shell has read all of it before anything else reads its input.
_RANK = """{{
trap '' USR1 USR2
{exports}
cd {folder} || exit
exec 3<&0 </dev/null
setsid {command} 3<&- &
rank=$!
(
    while read -r name; do kill -s "$name" "$rank"; done
    kill -s KILL -- "-$rank" || kill -s KILL "$rank"
) <&3 >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$rank"
code=$?
kill "$watch" 2>/dev/null
kill -s KILL -- "-$rank" 2>/dev/null
exit "$code"
}}
"""


class Group:
    """The ranks of one job.

    Args:
        scheduler: the job's.
        nodes: its hosts, this one first.
        per_node: ranks on each.
        command: what a rank executes.
    """

    def __init__(
        self, scheduler: Scheduler, nodes: Sequence[str], per_node: int, command: Sequence[str]
    ) -> None:
        self._shell = scheduler.remote_shell
        self._warnings = scheduler.warning_signals
        self._places = [(node, number) for node in range(len(nodes)) for number in range(per_node)]
        self._nodes = nodes
        self._command = command
        self._shells: list[subprocess.Popen[str]] = []
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def run(self) -> int:
        """Start the ranks, wait for them, and return the exit code of the job."""
        for number in self._warnings:
            signal.signal(number, self._hand_on)
        try:
            for rank in range(len(self._places)):
                self._start(rank)
            return self._wait()
        finally:
            self._end()

    def _start(self, rank: int) -> None:
        node, local = self._places[rank]
        variables = {
            ranks.RANK: rank,
            ranks.RANKS: len(self._places),
            ranks.LOCAL_RANK: local,
            ranks.NODE: node,
            ranks.NODES: len(self._nodes),
            ranks.HOSTS: ",".join(self._nodes),
        }
        env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        shell = ["/bin/sh"] if node == 0 else [*self._shell, self._nodes[node], "exec /bin/sh"]
        process = subprocess.Popen(shell, stdin=subprocess.PIPE, text=True)
        self._shells.append(process)
        threading.Thread(target=lambda: self._ended.put((rank, process.wait())), daemon=True).start()
        self._tell(process, _rank_script(self._command, os.getcwd(), env))  # noqa: PTH109 - a str

    def _wait(self) -> int:
        """Wait for all ranks; for rank 0 alone once it has failed, and not long once another one has."""
        codes: dict[int, int] = {}
        deadline = None
        while len(codes) < len(self._places):
            try:
                rank, code = self._ended.get(
                    timeout=None if deadline is None else max(0.0, deadline - time.monotonic())
                )
            except queue.Empty:
                break
            codes[rank] = code = code if code >= 0 else 128 - code  # as a shell tells of a signal
            if rank == 0 and code != 0:
                return code
            if code != 0 and deadline is None:
                deadline = time.monotonic() + _GRACE_S
                host = self._nodes[self._places[rank][0]]
                note(f"rank {rank} on {host} ended with exit code {code}: so does the job")
        return 1 if any(codes.values()) else 0

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        for process in self._shells:
            self._tell(process, f"{signal.Signals(number).name.removeprefix('SIG')}\n")

    @staticmethod
    def _tell(process: subprocess.Popen[str], text: str) -> None:
        # it has ended, which is told elsewhere; or a warning comes while its script is being written
        with suppress(OSError, ValueError, RuntimeError):
            if process.stdin is not None:
                process.stdin.write(text)
                process.stdin.flush()

    def _end(self) -> None:
        for number in self._warnings:
            signal.signal(number, signal.SIG_IGN)
        for process in self._shells:
            with suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
        end = time.monotonic() + _END_S
        for process in self._shells:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:  # its node does not answer
                process.kill()


def _rank_script(command: Sequence[str], folder: str, env: Mapping[str, str]) -> str:
    """Return what the shell beside a rank executes; by its input, as arguments are seen by all users."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items() if name.isidentifier()]
    return _RANK.format(exports="\n".join(exports), folder=shlex.quote(folder), command=shlex.join(command))


def main(argv: Sequence[str]) -> int:
    """Do what the command line says, and return the exit code."""
    path, per_node, *command = argv
    try:
        scheduler = registry.load(path)
        nodes = ranks.hosts(scheduler)
        if len(nodes) * int(per_node) == 1:
            os.execv(command[0], command)  # noqa: S606
        if len(nodes) > 1 and not ranks.is_host(nodes[0], os.uname().nodename):
            raise SchedulerError(
                f"this host, {os.uname().nodename}, is not one of the job's ({', '.join(nodes)}), so no "
                "ranks can be started from here: leave scheduler.ranks_per_node out"
            )
        return Group(scheduler, nodes, int(per_node), command).run()
    except MLXJobsError as error:
        note(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
