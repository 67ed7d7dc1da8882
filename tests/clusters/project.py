"""A project of a cluster's ordinary user, driven on the cluster's own machines."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Generic

from tests.clusters.fixtures import Cluster
from tests.clusters.machine import USER, account
from tests.project import Project


class UserProject(Project, Generic[Cluster]):
    """A project of the cluster's ordinary user; its commands run where the scheduler's commands are.

    Args:
        cluster: it.
        python: the interpreter that the user runs.
        home: a folder of the user's on all nodes.
        name: the project's folder in it.
    """

    settings: ClassVar[str]
    """`configs/mlxpy.yaml`; `{go}` in it is the file that says which epochs may end."""

    def __init__(self, cluster: Cluster, python: Path, home: Path, name: str = "project") -> None:
        super().__init__(home / name)
        self.cluster: Cluster = cluster
        self.python = str(python)
        self.env = {"GO": str(self.go), "PATH": f"{python.parent}:{cluster.environment['PATH']}"}
        text = self.settings.replace("{go}", str(self.go))
        (self.folder / "configs" / "mlxpy.yaml").write_text(text)
        self.own()

    def own(self) -> None:
        """Give all files to the user."""
        who = account(USER)
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, who.pw_uid, who.pw_gid)

    def command(
        self, *command: str, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = self.cluster.run(command, cwd=cwd or self.folder, env={**self.env, **(env or {})}, timeout=120)
        assert done.returncode == code, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def job(self, log_id: int = 1) -> str:
        """The run's job, as it is recorded."""
        job_id = self.state(log_id).job_id
        assert job_id is not None
        return job_id

    def start(self, *arguments: str, log_id: int = 1) -> str:
        """Submit a run, stop it in the middle of epoch 2, and return its job."""
        self.let_pass(2)
        self.run(*arguments)
        self.await_epoch(2, log_id)
        return self.job(log_id)

    def await_job(self, job: str, *states: str) -> None:
        """Wait until a job is in one of these states, in the scheduler's words."""
        self.cluster.wait_for(lambda: self.cluster.job_states([job]).get(job), 90, until=states.__contains__)


def warn(project: UserProject[Any], number: signal.Signals = signal.SIGUSR2) -> None:
    """Warn the task itself, as Slurm's node does when nobody can reach the controller any more."""
    found = subprocess.run(
        ["pgrep", "-f", str(project.folder / "main.py")], capture_output=True, text=True, check=True
    )
    for pid in found.stdout.split():
        os.kill(int(pid), number)
    project.await_warning()
