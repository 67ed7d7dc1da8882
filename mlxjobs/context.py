"""Where pickles and settings of before 0.1 find `mlxjobs.jobs.context`."""

from mlxjobs.jobs.context import *  # noqa: F403
