"""What is known of jobs that the controller has forgotten, with an accounting database and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.fixtures import small_slurm
from tests.clusters.on_slurm import ClusterProject
from tests.clusters.slurm import SlurmCluster
from tests.project import await_value

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture(params=[True, False], ids=["with accounting", "without"])
def accounting(request: pytest.FixtureRequest) -> Iterator[tuple[SlurmCluster, bool]]:
    """A small Slurm, and whether it has accounting."""
    with small_slurm(nodes=2, accounting=request.param) as cluster:
        yield cluster, request.param


def test_a_job_that_squeue_forgot(
    accounting: tuple[SlurmCluster, bool], cluster_python: Path, user_dir: Path
) -> None:
    cluster, database = accounting
    cluster.set_conf(MinJobAge=2)
    project = ClusterProject(cluster, cluster_python, user_dir)
    project.run("mlxpy.scheduler.option_cmd=['--begin=now+1hour']")
    job = project.job()
    project.command("scancel", job)
    await_value(lambda: job not in cluster.job_states([job]), "the controller to forget the job", 60)
    shown = project.mlxjobs("ls")
    if database:
        assert "CANCELLED " in shown.stdout
    else:
        assert "SUBMITTED?" in shown.stdout
        assert f"the scheduler does not know job {job} any more" in shown.stderr


def test_why_the_start_before_ended(
    accounting: tuple[SlurmCluster, bool], cluster_python: Path, user_dir: Path
) -> None:
    cluster, database = accounting
    project = ClusterProject(cluster, cluster_python, user_dir)
    project.start()
    host = project.state().attempts[0].host
    cluster.crash(host)
    project.let_pass(10)
    state = project.await_status("COMPLETE", attempts=2)
    known = f"NODE_FAIL {host} at epoch 2, started again by the scheduler"
    assert state.attempts[0].reason == (known if database else "vanished: killed, or its node failed")
    assert project.epochs() == [0, 1, 2, 3, 4]
