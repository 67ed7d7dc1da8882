"""Where pickles and settings of before 0.1 find `mlxjobs.reader.rows`."""

from mlxjobs.reader.rows import *  # noqa: F403
