"""A project of the ordinary user on a real OAR."""

from __future__ import annotations

import pytest

from mlxjobs.record.history import RunState
from tests.clusters.oar import OarCluster
from tests.clusters.project import UserProject

SETTINGS = """
scheduler:
  name: OARScheduler
  shell_path: /bin/bash
  option_cmd: ['-l nodes=1,walltime=0:10:0']
  env_cmd: ['export GO={go}', 'echo "as $(id -un) in job $OAR_JOB_ID"']
use_scheduler: true
"""


class OarProject(UserProject[OarCluster]):
    """A project of the ordinary user on OAR."""

    settings = SETTINGS

    def oarsub(self, *options: str) -> str:
        """Submit a normal job that does nothing, or what the options say; return its id."""
        out = self.command("oarsub", "-d", str(self.folder), *options).stdout
        return out.rpartition("OAR_JOB_ID=")[2].strip()


def assert_whole(project: OarProject, *jobs: str, log_id: int = 1) -> RunState:
    """The run is complete, each epoch is there once, and its attempts were in these jobs and a new one."""
    state = project.await_status("COMPLETE", log_id=log_id)
    assert project.epochs(log_id) == [0, 1, 2, 3, 4]
    assert project.losses(log_id) == pytest.approx([100 * 0.9 ** (epoch + 1) for epoch in range(5)])
    assert project.info(log_id)["tainted"] == []
    used = [attempt["job_id"] for attempt in project.info(log_id)["attempts"]]
    assert used == [*jobs, state.job_id]
    assert len(set(used)) == len(used)
    if jobs:
        assert state.attempts[-1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"
    return state
