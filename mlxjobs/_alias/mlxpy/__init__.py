"""The same objects as `mlxjobs`, under the name that programs written for MLXPy import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlxjobs
from mlxjobs import __version__ as __version__

if TYPE_CHECKING:
    from mlxjobs import Artifact as Artifact
    from mlxjobs import Checkpoint as Checkpoint
    from mlxjobs import ConfigDict as ConfigDict
    from mlxjobs import Context as Context
    from mlxjobs import DataDictList as DataDictList
    from mlxjobs import DataFrame as DataFrame
    from mlxjobs import DefaultLogger as DefaultLogger
    from mlxjobs import GitVM as GitVM
    from mlxjobs import LocalScheduler as LocalScheduler
    from mlxjobs import Logger as Logger
    from mlxjobs import MixedRunsWarning as MixedRunsWarning
    from mlxjobs import MLXJobsError as MLXJobsError
    from mlxjobs import OARScheduler as OARScheduler
    from mlxjobs import Preempted as Preempted
    from mlxjobs import Reader as Reader
    from mlxjobs import RunStatus as RunStatus
    from mlxjobs import Scheduler as Scheduler
    from mlxjobs import SLURMScheduler as SLURMScheduler
    from mlxjobs import VersionManager as VersionManager
    from mlxjobs import launch as launch

__all__ = mlxjobs.__all__


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(mlxjobs, name)
    raise AttributeError(f"module 'mlxpy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
