"""The ranks of one job: copies of its program that work together, on one host or on several.

Slurm starts them itself (srun). For other schedulers `mlxjobs.launch_ranks` does, and tells each by
environment variables which one it is; a job without these has one rank.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
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


def hosts(scheduler: Scheduler) -> list[str]:
    """Return the names of the hosts of this process' job, that of rank 0 first.

    Before ranks are started, rank 0 is to be where this process is. It is this host alone if neither the
    scheduler nor submitit, for those whose jobs it knows, names others.
    """
    if os.environ.get(HOSTS):
        return os.environ[HOSTS].split(",")
    own = socket.gethostname()
    names = scheduler.hosts(os.environ, lambda path: Path(path).read_text("utf-8")) or _by_submitit(scheduler)
    return sorted(dict.fromkeys(names), key=lambda host: not is_host(host, own)) or [own]


def _by_submitit(scheduler: Scheduler) -> Sequence[str]:
    if scheduler.submitit == Scheduler.submitit:  # ours, which would ask here
        return ()
    from submitit.core.plugins import get_job_environments

    environment = get_job_environments().get(scheduler.submitit)
    return environment.hostnames if environment else ()


def is_host(one: str, other: str) -> bool:
    """Whether two names are the same host's; one may lack the domain."""
    return one.partition(".")[0] == other.partition(".")[0]


def tell_submitit(scheduler: Scheduler, path: str) -> None:
    """Let `submitit.JobEnvironment()` answer in this process and its children, which are in a job."""
    os.environ["SUBMITIT_EXECUTOR"] = scheduler.submitit
    os.environ[SCHEDULER] = path
