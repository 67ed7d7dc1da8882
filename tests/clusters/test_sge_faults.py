"""Grid Engine's server stops at the worst moment: runs end whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.on_sge import SgeProject, assert_whole
from tests.clusters.sge import SgeCluster

pytestmark = [pytest.mark.sge, pytest.mark.timeout(240)]


@pytest.fixture
def on_sge(sge: SgeCluster, cluster_python: Path, sge_dir: Path) -> Iterator[SgeProject]:
    project = SgeProject(sge, cluster_python, sge_dir)
    yield project
    project.let_pass(10**6)


def test_a_job_ends_while_the_qmaster_is_down(on_sge: SgeProject) -> None:
    job = on_sge.start()
    on_sge.cluster.stop_server()
    assert "unknown since" in on_sge.mlxjobs("ls").stderr
    on_sge.let_pass(10)
    on_sge.await_status("COMPLETE")
    on_sge.cluster.start_server()
    assert assert_whole(on_sge).job_id == job
