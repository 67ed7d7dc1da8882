"""The Reader of `mlxjobs.reader`."""

from mlxjobs.reader import Reader

__all__ = ["Reader"]
