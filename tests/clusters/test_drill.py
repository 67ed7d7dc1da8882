"""The drill on a real Slurm, as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.drill import EXACT, drill
from tests.clusters.on_slurm import ClusterProject
from tests.clusters.slurm import SlurmCluster
from tests.project import MAIN

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_slurm(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> None:
    project = ClusterProject(slurm, cluster_python, user_dir)
    code, words = drill(project, "SLURMScheduler")
    assert words == dict.fromkeys(("warning", "requeue", "kill", "time-limit"), EXACT)
    assert code == 0
    assert not project.logs.exists()
    assert not project.command("squeue", "--noheader", "--me").stdout


def test_a_program_that_does_not_resume_exactly(
    slurm: SlurmCluster, cluster_python: Path, user_dir: Path
) -> None:
    project = ClusterProject(slurm, cluster_python, user_dir)
    wrong = MAIN.replace("model = checkpoint['model']", "model = checkpoint['model'] + 1")
    (project.folder / "main.py").write_text(wrong)
    code, words = drill(project, "SLURMScheduler", "--way=kill")
    assert words["kill"].startswith("resumes, but `loss` differs from epoch 1 (")
    assert code == 1
