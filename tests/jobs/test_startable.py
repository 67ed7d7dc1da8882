"""Only one process at a time may be a run's attempt; the dead do not count."""

import os
import socket
import subprocess
import sys

import pytest

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.cluster.registry import known
from mlxjobs.jobs.startable import Place, is_alive
from mlxjobs.record.history import Attempt
from mlxjobs.scheduler import Here
from mlxjobs.system.processes import process_key


def attempt(pid: int, key: str, host: str | None = None) -> Attempt:
    return Attempt(1, "2026-11-23T10:00:00.000+01:00", host or socket.gethostname(), pid, key)


def test_a_process_is_known_by_more_than_its_number() -> None:
    mine = process_key(os.getpid())
    assert is_alive(attempt(os.getpid(), mine))
    # the number was given to another process, or the machine was started again
    assert not is_alive(attempt(os.getpid(), mine + "0"))
    assert not is_alive(attempt(os.getpid(), "another-boot/" + mine.partition("/")[2]))


def test_a_process_that_ended_is_dead_even_before_it_is_waited_for() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    key = process_key(child.pid)
    assert is_alive(attempt(child.pid, key))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert is_alive(attempt(child.pid, key)) is False
    child.communicate()
    assert is_alive(attempt(child.pid, key)) is False


def test_what_runs_on_another_machine_cannot_be_seen() -> None:
    assert is_alive(attempt(1, "x", host="elsewhere")) is None


@pytest.mark.parametrize(
    ("scheduler", "reserved"),
    [("OARScheduler", {99}), ("SGEScheduler", {99, 100}), ("SLURMScheduler", set())],
)
def test_what_a_task_exits_with_is_kept_from_a_scheduler_that_it_would_mean_more_to(
    scheduler: str, reserved: set[int]
) -> None:
    place = Place(Cluster(known()[scheduler]), Here("57"))
    assert {code for code in range(256) if place.is_reserved(code)} == reserved
    assert place.is_reserved(256 + 99) == (99 in reserved)  # the system takes a byte of it
    assert not place.is_reserved("out of luck")
