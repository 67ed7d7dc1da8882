"""OAR's server stops at the worst moments: runs end whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.oar import OarCluster
from tests.clusters.on_oar import OarProject, assert_whole
from tests.clusters.project import warn

pytestmark = [pytest.mark.oar, pytest.mark.timeout(240)]


@pytest.fixture
def on_oar(oar: OarCluster, cluster_python: Path, oar_dir: Path) -> Iterator[OarProject]:
    project = OarProject(oar, cluster_python, oar_dir)
    yield project
    project.let_pass(10**6)


def test_a_job_is_warned_while_oars_server_is_down(on_oar: OarProject) -> None:
    old = on_oar.start()
    on_oar.cluster.stop_server()
    warn(on_oar)
    on_oar.let_pass(3)
    on_oar.await_status("PREEMPTED")  # its successor is in the database, where the server will find it
    on_oar.cluster.start_server()
    on_oar.let_pass(10)
    state = assert_whole(on_oar, old)
    assert state.attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"


def test_a_job_ends_while_oars_server_is_down(on_oar: OarProject) -> None:
    job = on_oar.start()
    on_oar.cluster.stop_server()
    on_oar.let_pass(10)
    on_oar.await_status("COMPLETE")
    assert "COMPLETE" in on_oar.mlxjobs("ls").stdout
    on_oar.cluster.start_server()
    assert assert_whole(on_oar).job_id == job
