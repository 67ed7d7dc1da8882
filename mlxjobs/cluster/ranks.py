"""The ranks of one job: copies of its program that work together, on one host or on several.

Slurm starts them itself (srun). For other schedulers `mlxjobs.launch_ranks` does, and tells each by
environment variables which one it is; a job without these has one rank.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlxjobs.scheduler import Here, Scheduler

RANK = "MLXJOBS_RANK"
RANKS = "MLXJOBS_RANK_COUNT"
LOCAL_RANK = "MLXJOBS_RANK_ON_NODE"
NODE = "MLXJOBS_RANK_NODE"
NODES = "MLXJOBS_RANK_NODE_COUNT"
HOSTS = "MLXJOBS_RANK_HOSTS"
SCHEDULER = "MLXJOBS_RANK_SCHEDULER"


def placed(here: Here, env: Mapping[str, str]) -> Here:
    """Return the job that a process is in with its rank, where we started the ranks."""
    if RANK not in env:
        return here
    return replace(here, rank=int(env[RANK]), world_size=int(env[RANKS]))


def hosts(scheduler: Scheduler, env: Mapping[str, str]) -> list[str]:
    """Return the names of a job's hosts, that of rank 0 first; this one alone if the scheduler names none.

    Args:
        scheduler: the job's.
        env: the environment of a process of the job; before ranks are started, of one where rank 0 will be.
    """
    if env.get(HOSTS):
        return env[HOSTS].split(",")
    own = socket.gethostname()
    found = dict.fromkeys(scheduler.hosts(env, lambda path: Path(path).read_text("utf-8")))
    return sorted(found, key=lambda host: not is_host(host, own)) or [own]


def is_host(one: str, other: str) -> bool:
    """Whether two names are the same host's; one may lack the domain."""
    return one.partition(".")[0] == other.partition(".")[0]


def tell_submitit(scheduler: Scheduler, path: str) -> None:
    """Let `submitit.JobEnvironment()` answer in this process and its children, which are in a job."""
    os.environ["SUBMITIT_EXECUTOR"] = scheduler.submitit
    os.environ[SCHEDULER] = path
