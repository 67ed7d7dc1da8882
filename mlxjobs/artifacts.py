"""Where pickles and settings of before 0.1 find `mlxjobs.logger.artifacts`."""

from mlxjobs.logger.artifacts import *  # noqa: F403
