"""The drill on a real OAR, as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.drill import EXACT, drill
from tests.clusters.oar import OarCluster
from tests.clusters.on_oar import OarProject

pytestmark = [pytest.mark.oar, pytest.mark.timeout(600)]


def test_oar(oar: OarCluster, cluster_python: Path, oar_dir: Path) -> None:
    project = OarProject(oar, cluster_python, oar_dir)
    code, words = drill(project, "OARScheduler", "--way=kill", "--way=time-limit")
    limit = "not tried: OARScheduler has no time limit that the drill can set"
    assert (code, words) == (0, {"kill": EXACT, "time-limit": limit})
