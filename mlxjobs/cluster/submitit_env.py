"""What submitit says of our jobs where their scheduler is none of its own: a plug-in by entry point."""

from __future__ import annotations

import os
from typing import ClassVar

from submitit import JobEnvironment

from mlxjobs.cluster import ranks, registry
from mlxjobs.errors import SchedulerError
from mlxjobs.scheduler import Here, Scheduler


class MlxjobsJobEnvironment(JobEnvironment):
    """Ids, ranks and hosts of a job; chosen by SUBMITIT_EXECUTOR=mlxjobs, which our jobs set."""

    _env: ClassVar[dict[str, str]] = {
        "num_tasks": ranks.RANKS,
        "num_nodes": ranks.NODES,
        "node": ranks.NODE,
        "global_rank": ranks.RANK,
        "local_rank": ranks.LOCAL_RANK,
    }

    def activated(self) -> bool:
        """Whether this process is in a job that we started."""
        return super().activated() and ranks.SCHEDULER in os.environ

    @property
    def raw_job_id(self) -> str:
        """The id of the job, as the scheduler's commands take it."""
        return self._job()[1].job_id

    @property
    def hostnames(self) -> list[str]:
        """The job's hosts, that of rank 0 first."""
        return ranks.hosts(self._job()[0])

    def _job(self) -> tuple[Scheduler, Here]:
        scheduler = registry.load(os.environ[ranks.SCHEDULER])
        here = scheduler.here(os.environ)
        if here is None:
            raise SchedulerError(f"this process is in no job of {type(scheduler).__name__}'s any more")
        return scheduler, here
