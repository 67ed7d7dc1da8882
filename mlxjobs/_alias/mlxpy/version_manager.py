"""What a version manager of one's own is made of: the contract of `mlxjobs.version_manager`."""

from mlxjobs.version_manager import Frozen, Launch, VersionManager

__all__ = ["Frozen", "Launch", "VersionManager"]
