"""From a name in the settings to a scheduler or a version manager."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from mlxjobs.errors import InvalidSchedulerError, MLXJobsError, SnapshotError
from mlxjobs.scheduler import Scheduler
from mlxjobs.settings import NO_SCHEDULER

if TYPE_CHECKING:
    from mlxjobs.snapshot import VersionManager

GROUP = "mlxjobs.schedulers"
_PACKAGES = ("", "mlxpy", "mlxp", "mlxjobs")  # what may stand before the name of something of ours


@cache
def known() -> dict[str, str]:
    """Return the schedulers that are installed: name -> import path `module:Class`."""
    from importlib.metadata import entry_points  # reads a file of every installed distribution

    return {point.name: point.value for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def find(name: str) -> str:
    """Return the import path of a scheduler.

    Args:
        name: what `scheduler.name` says: a known name, with or without its package in front, or
            the import path of a subclass of `mlxpy.Scheduler` (`my_app.MyScheduler`).

    Raises:
        InvalidSchedulerError: there is none of that name.
    """
    if not name or name == NO_SCHEDULER:
        raise InvalidSchedulerError(
            f"no scheduler is set. Known ones: {', '.join(known())}. Set one for this project in "
            "configs/mlxpy.yaml (scheduler: name: ...), or for once: "
            "+mlxpy.scheduler.name=LocalScheduler"
        )
    package, _, last = name.replace(":", ".").rpartition(".")
    if last in known() and package in _PACKAGES:
        return known()[last]
    if package not in _PACKAGES:
        return f"{package}:{last}"
    near = get_close_matches(last, known(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidSchedulerError(
        f"unknown scheduler '{name}'; {hint}Known ones: {', '.join(known())}, "
        "or the import path of your own subclass of mlxpy.Scheduler"
    )


def load(path: str) -> Scheduler:
    """Import a scheduler.

    Args:
        path: `module:Class`, as `find` returns it.

    Raises:
        InvalidSchedulerError: it cannot be imported, or is no scheduler.
    """
    scheduler: Scheduler = _make(path, Scheduler, InvalidSchedulerError)
    return scheduler


def load_version_manager(name: str) -> VersionManager:
    """Import a version manager.

    Args:
        name: what `version_manager.name` says: `GitVM`, with or without its package, or the import
            path of a subclass of `mlxpy.VersionManager`.

    Raises:
        SnapshotError: it cannot be imported, or is no version manager.
    """
    from mlxjobs.snapshot import GitVM, VersionManager

    package, _, last = name.replace(":", ".").rpartition(".")
    if last == "GitVM" and package in _PACKAGES:
        return GitVM()
    if not package:
        raise SnapshotError(
            f"unknown version manager '{name}': it is GitVM, or the import path of your own subclass "
            "of mlxpy.VersionManager (version_manager.name)"
        )
    manager: VersionManager = _make(f"{package}:{last}", VersionManager, SnapshotError)
    return manager


def _make(path: str, base: type, error_type: type[MLXJobsError]) -> Any:
    """Import a class of the user's or of ours, check it, and make its object."""
    module_name, _, class_name = path.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - a str, for sys.path
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise error_type(f"{path} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise error_type(f"{path} is no subclass of mlxpy.{base.__name__}")
    if inspect.isabstract(found):
        raise error_type(
            f"{path} lacks the methods {', '.join(sorted(getattr(found, '__abstractmethods__', ())))}"
        )
    return found()


def _environment_of(path: str) -> tuple[str, ...]:
    try:
        return load(path).environment
    except MLXJobsError:  # a package of somebody else's that is broken, and not in use here
        return ()


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what schedulers set inside their jobs.

    A job that is submitted from inside another would inherit its rank, its processors' mask and
    its restart count otherwise.
    """
    patterns = [pattern for path in known().values() for pattern in _environment_of(path)]
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    exact = {pattern for pattern in patterns if not pattern.endswith("*")} - kept
    begins = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))
    return {
        name: value
        for name, value in env.items()
        if name in kept or not (name in exact or (begins and name.startswith(begins)))
    }
