"""Launch, freeze, queue, preempt and resume Hydra experiments on a cluster or a laptop.

Every job pays for this import, so a name is loaded when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxjobs import errors as errors
    from mlxjobs.code.gitvm import GitVM as GitVM
    from mlxjobs.config_dict import ConfigDict as ConfigDict
    from mlxjobs.errors import MLXJobsError as MLXJobsError
    from mlxjobs.jobs.context import Context as Context
    from mlxjobs.launcher.decorator import launch as launch
    from mlxjobs.logger.artifacts import Artifact as Artifact
    from mlxjobs.logger.artifacts import Checkpoint as Checkpoint
    from mlxjobs.logger.logger import DefaultLogger as DefaultLogger
    from mlxjobs.logger.logger import Logger as Logger
    from mlxjobs.reader.frame import DataDictList as DataDictList
    from mlxjobs.reader.frame import DataFrame as DataFrame
    from mlxjobs.reader.guard import MixedRunsWarning as MixedRunsWarning
    from mlxjobs.reader.reader import Reader as Reader
    from mlxjobs.record.history import Preempted as Preempted
    from mlxjobs.record.history import RunStatus as RunStatus
    from mlxjobs.scheduler import Scheduler as Scheduler
    from mlxjobs.schedulers.local import LocalScheduler as LocalScheduler
    from mlxjobs.schedulers.oar import OARScheduler as OARScheduler
    from mlxjobs.schedulers.slurm import SLURMScheduler as SLURMScheduler
    from mlxjobs.version_manager import VersionManager as VersionManager

__version__ = "0.1.0.dev0"

_MODULES = {
    "Artifact": "logger.artifacts",
    "Checkpoint": "logger.artifacts",
    "ConfigDict": "config_dict",
    "Context": "jobs.context",
    "DataDictList": "reader.frame",
    "DataFrame": "reader.frame",
    "DefaultLogger": "logger.logger",
    "GitVM": "code.gitvm",
    "LocalScheduler": "schedulers.local",
    "Logger": "logger.logger",
    "MLXJobsError": "errors",
    "MixedRunsWarning": "reader.guard",
    "OARScheduler": "schedulers.oar",
    "Preempted": "record.history",
    "Reader": "reader.reader",
    "RunStatus": "record.history",
    "SLURMScheduler": "schedulers.slurm",
    "Scheduler": "scheduler",
    "VersionManager": "version_manager",
    "launch": "launcher.decorator",
}
__all__ = sorted([*_MODULES, "__version__", "errors"])


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("mlxjobs.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'mlxjobs' has no attribute {name!r}")
    value = getattr(import_module(f"mlxjobs.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
