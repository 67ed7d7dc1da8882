"""Where pickles and settings of before 0.1 find `mlxjobs.reader.maps`."""

from mlxjobs.reader.maps import *  # noqa: F403
