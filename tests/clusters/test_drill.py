"""The drill on a real Slurm, as an ordinary user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clusters.slurm import SlurmCluster
from tests.clusters.test_runs import ClusterProject
from tests.project import MAIN

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def drill(project: ClusterProject, *options: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what is said of each way."""
    done = project.cluster.run(
        [project.python, "-m", "mlxjobs", "drill", "--scheduler=SLURMScheduler", "--json", *options,
         "--", project.python, "main.py", "num_epoch=1000000"],
        cwd=project.folder, env=project.env, timeout=500,
    )  # fmt: skip
    assert done.stdout, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {row["way"]: row["words"] for row in rows}


@pytest.fixture
def drilled(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> ClusterProject:
    return ClusterProject(slurm, cluster_python, user_dir)


def test_a_program_that_resumes_exactly(drilled: ClusterProject) -> None:
    code, words = drill(drilled)
    assert words == dict.fromkeys(("warning", "requeue", "kill", "time-limit"), "resumes exactly")
    assert code == 0
    assert not drilled.logs.exists()
    assert not drilled.command("squeue", "--noheader", "--me").stdout


def test_a_program_that_does_not(drilled: ClusterProject) -> None:
    wrong = MAIN.replace("model = checkpoint['model']", "model = checkpoint['model'] + 1")
    (drilled.folder / "main.py").write_text(wrong)
    code, words = drill(drilled, "--way=kill")
    assert words["kill"].startswith("resumes, but `loss` differs from epoch 1 (")
    assert code == 1
