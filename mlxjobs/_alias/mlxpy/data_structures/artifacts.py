"""The artifact classes of `mlxjobs.artifacts`."""

from mlxjobs.artifacts import Artifact, Checkpoint

__all__ = ["Artifact", "Checkpoint"]
