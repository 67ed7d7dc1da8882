"""What all tests share."""

from __future__ import annotations

from tests.clusters.fixtures import cluster_python, slurm, user_dir

__all__ = ["cluster_python", "slurm", "user_dir"]
