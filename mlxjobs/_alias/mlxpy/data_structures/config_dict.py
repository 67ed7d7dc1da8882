"""The dictionary of `mlxjobs.config_dict`."""

from mlxjobs.config_dict import ConfigDict

__all__ = ["ConfigDict"]
