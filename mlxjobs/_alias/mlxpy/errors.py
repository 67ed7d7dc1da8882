"""The errors of `mlxjobs.errors`, the same classes."""

from mlxjobs.errors import *  # noqa: F403
