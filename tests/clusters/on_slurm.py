"""A project of the ordinary user on a real Slurm."""

from __future__ import annotations

import subprocess

import pytest

from tests.clusters.machine import USER
from tests.clusters.project import UserProject
from tests.clusters.slurm import SlurmCluster

SETTINGS = """
scheduler:
  name: SLURMScheduler
  shell_path: /bin/bash
  option_cmd: ['--partition=low', '--time=10', '--mem=200']
  shell_config_cmd: 'export FROM_SHELL_CONFIG=1'
  cleanup_cmd: 'unset LEFT_OVER'
  env_cmd: ['export FROM_ENV=2', 'echo "environment $FROM_SHELL_CONFIG $FROM_ENV ${LEFT_OVER-clean}"']
use_scheduler: true
"""


class ClusterProject(UserProject[SlurmCluster]):
    """A project of the ordinary user on Slurm."""

    settings = SETTINGS

    def scontrol(self, *words: str) -> None:
        """As the user."""
        self.command("scontrol", *words)


def assert_whole(project: ClusterProject, log_id: int = 1, jobs: list[str] | None = None) -> None:
    """The run is complete, each epoch is there once, and its attempts were in these jobs, or all in one."""
    state = project.await_status("COMPLETE", log_id=log_id)
    assert project.epochs(log_id) == [0, 1, 2, 3, 4]
    losses = project.losses(log_id)
    assert losses == pytest.approx([100 * 0.9 ** (epoch + 1) for epoch in range(5)])
    assert project.info(log_id)["tainted"] == []
    used = [attempt["job_id"] for attempt in project.info(log_id)["attempts"]]
    assert used == (jobs or [str(state.job_id)] * len(used))


def let_it_leave(project: ClusterProject, job: str) -> None:
    """Let a warned run reach its safe point and leave, and start it again without Slurm's delay."""
    project.await_warning()
    project.let_pass(3)
    project.await_status("PREEMPTED", "STARTING", "RUNNING")
    project.cluster.hurry(job)
    project.let_pass(10)


def running_commands() -> set[str]:
    found = subprocess.run(["ps", "-u", USER, "-o", "comm="], capture_output=True, text=True, check=False)
    return set(found.stdout.split())
