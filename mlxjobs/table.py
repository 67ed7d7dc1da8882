"""Where pickles and settings of before 0.1 find `mlxjobs.reader.table`."""

from mlxjobs.reader.table import *  # noqa: F403
