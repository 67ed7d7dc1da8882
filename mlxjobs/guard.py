"""Where pickles and settings of before 0.1 find `mlxjobs.reader.guard`."""

from mlxjobs.reader.guard import *  # noqa: F403
