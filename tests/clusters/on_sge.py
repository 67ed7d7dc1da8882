"""A project of the ordinary user on a real Grid Engine."""

from __future__ import annotations

import pytest

from mlxjobs.record.history import RunState
from tests.clusters.project import UserProject
from tests.clusters.sge import SgeCluster

SETTINGS = """
scheduler:
  name: SGEScheduler
  shell_path: /bin/bash
  env_cmd: ['export GO={go}', 'echo "as $(id -un) in job $JOB_ID"']
use_scheduler: true
"""


class SgeProject(UserProject[SgeCluster]):
    """A project of the ordinary user on Grid Engine."""

    settings = SETTINGS


def assert_whole(project: SgeProject, *jobs: str, log_id: int = 1) -> RunState:
    """The run is complete, each epoch is there once, and its attempts were in these jobs and the last one."""
    state = project.await_status("COMPLETE", log_id=log_id, attempts=len(jobs) + 1)
    assert project.epochs(log_id) == [0, 1, 2, 3, 4]
    assert project.losses(log_id) == pytest.approx([100 * 0.9 ** (epoch + 1) for epoch in range(5)])
    assert project.info(log_id)["tainted"] == []
    used = [attempt["job_id"] for attempt in project.info(log_id)["attempts"]]
    assert used == [*jobs, state.job_id]
    if jobs:
        assert state.attempts[-1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"
    return state
