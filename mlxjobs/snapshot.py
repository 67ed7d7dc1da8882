"""Where pickles and settings of before 0.1 find `mlxjobs.code.gitvm`."""

from mlxjobs.code.gitvm import *  # noqa: F403
