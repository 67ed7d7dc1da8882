"""Where pickles and settings of before 0.1 find `mlxjobs.logger.held`."""

from mlxjobs.logger.held import *  # noqa: F403
