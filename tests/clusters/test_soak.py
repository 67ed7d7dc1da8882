"""A short soak; the whole one is `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.slurm import SlurmCluster
from tests.soak import soak

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


def test_runs_that_everything_happens_to_are_those_that_nothing_happened_to(
    slurm: SlurmCluster, cluster_python: Path, user_dir: Path
) -> None:
    report = soak(slurm, cluster_python, user_dir, runs=12, seconds=20, seed=7)
    assert report.wrong == []
    assert report.figures["COMPLETE in the end"] == 12
