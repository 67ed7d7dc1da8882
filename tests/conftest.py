"""What all tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.clusters.fixtures import (
    cluster_python,
    oar,
    oar_dir,
    sge,
    sge_dir,
    slurm,
    torch_python,
    user_dir,
)
from tests.guards import GUARDS, heed_signals, leave_job
from tests.project import Project
from tests.slurm_stub import Slurm

__all__ = [
    "cluster_python",
    "oar",
    "oar_dir",
    "project",
    "sge",
    "sge_dir",
    "slurm",
    "slurm_stub",
    "torch_python",
    "user_dir",
]


# a slow machine is no fault of the code: how long an example takes, or to make one, fails no test
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

leave_job()
heed_signals()


def pytest_unconfigure() -> None:
    GUARDS.remove()


@pytest.fixture(autouse=True)
def _no_scheduler_of_the_machine() -> Iterator[None]:
    """Fail a test that asks a scheduler which the tests did not start, even if its code hides the answer."""
    yield
    assert GUARDS.calls() == []


# files that would keep one process busy for minutes when the others have done
_SPREAD = ("tests/config/test_sweeps.py", "tests/schedulers/test_standins.py")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process, and all files of the clusters to the same: they share them."""
    from xdist.scheduler import LoadFileScheduling

    scheduling = LoadFileScheduling(config, log)
    name = scheduling._split_scope

    def scope(test: str) -> str:
        if test.startswith("tests/clusters/"):
            return "clusters"
        return test if test.startswith(_SPREAD) else name(test)

    scheduling._split_scope = scope
    return scheduling


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project with the seed's program; its jobs are ended with the test."""
    project = Project(tmp_path / "project")
    yield project
    project.let_pass(10**6)
    if (tmp_path / "queue").exists():
        jobs = [line.partition("|")[0] for line in project.queue("status").splitlines()]
        if jobs:
            project.env["MLXJOBS_LOCAL_GRACE"] = "1"
            subprocess.run(
                [project.python, "-m", "mlxjobs.localqueue", "cancel", *jobs],
                env=project.env, capture_output=True, check=True,
            )  # fmt: skip
            project.queue("wait", "--timeout", "120", *jobs)


@pytest.fixture
def slurm_stub(project: Project) -> Slurm:
    """Stand-ins for Slurm's commands, and a project that submits to them."""
    return Slurm(project)
