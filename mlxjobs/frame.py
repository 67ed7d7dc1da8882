"""Where pickles and settings of before 0.1 find `mlxjobs.reader.frame`."""

from mlxjobs.reader.frame import *  # noqa: F403
