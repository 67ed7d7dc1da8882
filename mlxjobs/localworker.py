"""Where workers that were started before 0.1 find `mlxjobs.local.worker`."""

from mlxjobs.local.worker import main as main
