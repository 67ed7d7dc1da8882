"""The drill on a real Grid Engine, as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.drill import EXACT, drill
from tests.clusters.on_sge import SgeProject
from tests.clusters.sge import SgeCluster

pytestmark = [pytest.mark.sge, pytest.mark.timeout(600)]


def test_grid_engine(sge: SgeCluster, cluster_python: Path, sge_dir: Path) -> None:
    project = SgeProject(sge, cluster_python, sge_dir)
    code, words = drill(project, "SGEScheduler", "--way=warning", "--way=requeue", "--way=kill")
    assert (code, words) == (0, dict.fromkeys(("warning", "requeue", "kill"), EXACT))
