"""The artifact classes of `mlxjobs.logger.artifacts`."""

from mlxjobs.logger.artifacts import Artifact, Checkpoint

__all__ = ["Artifact", "Checkpoint"]
