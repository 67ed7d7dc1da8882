"""The Reader of `mlxjobs.reader.reader`."""

from mlxjobs.reader.reader import Reader

__all__ = ["Reader"]
