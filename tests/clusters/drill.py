"""Runs `mlxjobs drill` on a cluster."""

from __future__ import annotations

import json

from tests.clusters.fixtures import Cluster
from tests.clusters.project import UserProject

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
