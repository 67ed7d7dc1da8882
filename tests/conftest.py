"""What all tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process, and all files of the clusters to the same: they share them."""
    from xdist.scheduler import LoadFileScheduling

    scheduling = LoadFileScheduling(config, log)
    name = scheduling._split_scope
    scheduling._split_scope = lambda test: "clusters" if test.startswith("tests/clusters/") else name(test)
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
            project.queue("wait", "--timeout", "60", *jobs)


@pytest.fixture
def slurm_stub(project: Project) -> Slurm:
    """Stand-ins for Slurm's commands, and a project that submits to them."""
    return Slurm(project)
