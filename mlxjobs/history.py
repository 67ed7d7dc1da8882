"""Where pickles and settings of before 0.1 find `mlxjobs.record.history`."""

from mlxjobs.record.history import *  # noqa: F403
