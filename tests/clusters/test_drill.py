"""The drill on real clusters, as an ordinary user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clusters.fixtures import Cluster
from tests.clusters.oar import OarCluster
from tests.clusters.project import UserProject
from tests.clusters.sge import SgeCluster
from tests.clusters.slurm import SlurmCluster
from tests.clusters.test_oar_runs import OarProject
from tests.clusters.test_runs import ClusterProject
from tests.clusters.test_sge_runs import SgeProject
from tests.project import MAIN

pytestmark = pytest.mark.timeout(600)

EXACT = "resumes exactly"


def drill(project: UserProject[Cluster], scheduler: str, *options: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what is said of each way."""
    done = project.cluster.run(
        [project.python, "-m", "mlxjobs", "drill", f"--scheduler={scheduler}", "--json", *options,
         "--", project.python, "main.py", "num_epoch=1000000"],
        cwd=project.folder, env=project.env, timeout=500,
    )  # fmt: skip
    assert done.stdout, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {row["way"]: row["words"] for row in rows}


@pytest.mark.slurm
def test_slurm(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> None:
    project = ClusterProject(slurm, cluster_python, user_dir)
    code, words = drill(project, "SLURMScheduler")
    assert words == dict.fromkeys(("warning", "requeue", "kill", "time-limit"), EXACT)
    assert code == 0
    assert not project.logs.exists()
    assert not project.command("squeue", "--noheader", "--me").stdout


@pytest.mark.slurm
def test_a_program_that_does_not_resume_exactly(
    slurm: SlurmCluster, cluster_python: Path, user_dir: Path
) -> None:
    project = ClusterProject(slurm, cluster_python, user_dir)
    wrong = MAIN.replace("model = checkpoint['model']", "model = checkpoint['model'] + 1")
    (project.folder / "main.py").write_text(wrong)
    code, words = drill(project, "SLURMScheduler", "--way=kill")
    assert words["kill"].startswith("resumes, but `loss` differs from epoch 1 (")
    assert code == 1


@pytest.mark.oar
def test_oar(oar: OarCluster, cluster_python: Path, oar_dir: Path) -> None:
    project = OarProject(oar, cluster_python, oar_dir)
    code, words = drill(project, "OARScheduler", "--way=kill", "--way=time-limit")
    limit = "not tried: OARScheduler has no time limit that the drill can set"
    assert (code, words) == (0, {"kill": EXACT, "time-limit": limit})


@pytest.mark.sge
def test_grid_engine(sge: SgeCluster, cluster_python: Path, sge_dir: Path) -> None:
    project = SgeProject(sge, cluster_python, sge_dir)
    code, words = drill(project, "SGEScheduler", "--way=warning", "--way=requeue", "--way=kill")
    assert (code, words) == (0, dict.fromkeys(("warning", "requeue", "kill"), EXACT))
