"""Where pickles and settings of before 0.1 find `mlxjobs.cluster.submitit_env`."""

from mlxjobs.cluster.submitit_env import *  # noqa: F403
