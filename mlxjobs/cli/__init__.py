"""The command `mlxjobs`."""
