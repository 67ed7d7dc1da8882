"""From the name in the settings to a scheduler."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

from mlxjobs.errors import InvalidSchedulerError
from mlxjobs.scheduler import Scheduler

GROUP = "mlxjobs.schedulers"
NONE = "NoScheduler"


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
    if not name or name == NONE:
        raise InvalidSchedulerError(
            f"no scheduler is set. Known ones: {', '.join(known())}. Set one for this project in "
            "configs/mlxpy.yaml (scheduler: name: ...), or for once: "
            "+mlxpy.scheduler.name=LocalScheduler"
        )
    package, _, last = name.replace(":", ".").rpartition(".")
    if last in known() and package in ("", "mlxpy", "mlxp", "mlxjobs"):
        return known()[last]
    if package:
        return f"{package}:{last}"
    near = get_close_matches(name, known(), n=1, cutoff=0.4)
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
    module_name, _, class_name = path.partition(":")
    try:
        if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - a str, for sys.path
            sys.path.append(os.getcwd())  # noqa: PTH109
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InvalidSchedulerError(f"the scheduler {path} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Scheduler)):
        raise InvalidSchedulerError(f"{path} is no subclass of mlxpy.Scheduler")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise InvalidSchedulerError(f"{path} lacks the methods {lacking}")
    scheduler: Scheduler = found()
    return scheduler


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what schedulers set inside their jobs.

    A job that is submitted from inside another would inherit its rank, its processors' mask and
    its restart count otherwise.
    """
    patterns = [pattern for path in known().values() for pattern in load(path).environment]
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    exact = {pattern for pattern in patterns if not pattern.endswith("*")} - kept
    begins = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))
    return {
        name: value
        for name, value in env.items()
        if name in kept or not (name in exact or (begins and name.startswith(begins)))
    }
