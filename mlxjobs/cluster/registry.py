"""From a name in the settings to a scheduler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mlxjobs.cluster import own_scheduler
from mlxjobs.config.settings import NO_SCHEDULER
from mlxjobs.errors import InvalidSchedulerError, MLXJobsError
from mlxjobs.scheduler import Scheduler
from mlxjobs.system import user_class

_GROUP = "mlxjobs.schedulers"
_SCHEDULER: type[Scheduler] = Scheduler  # type: ignore[type-abstract]  # to compare with


@cache
def known() -> dict[str, str]:
    """Return the schedulers that are installed: name -> import path `module:Class`."""
    from importlib.metadata import entry_points  # reads a file of every installed distribution

    # the last one of a name counts: nobody else's can take the name of one of ours
    points = sorted(
        entry_points(group=_GROUP), key=lambda point: (point.name, point.value.startswith("mlxjobs."))
    )
    return {point.name: point.value for point in points}


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
    if last in known() and package in user_class.PACKAGES:
        return known()[last]
    if last and package not in user_class.PACKAGES:
        return f"{package}:{last}"
    from difflib import get_close_matches

    near = get_close_matches(last, known(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InvalidSchedulerError(
        f"unknown scheduler '{name}'; {hint}Known ones: {', '.join(known())}, "
        "or the import path of your own subclass of mlxpy.Scheduler"
    )


def load(path: str) -> Scheduler:
    """Import a scheduler.

    Args:
        path: `module:Class` as `find` returns it, or `module:Class@folder` as `locate` does.

    Raises:
        InvalidSchedulerError: it cannot be imported, or is not a scheduler.
    """
    where, _, folder = path.partition("@")
    scheduler, _ = user_class.make_instance(
        where, _SCHEDULER, InvalidSchedulerError, folder, advice=own_scheduler.HELP
    )
    if not type(scheduler).__module__.startswith("mlxjobs."):
        own_scheduler.guard(scheduler, where)
    return scheduler


def locate(path: str, program: Path, copy: Path) -> str:
    """Say where a scheduler of the user's own is, so that it is found from any folder.

    Args:
        path: as `find` returns it.
        program: the folder of the program that was started.
        copy: the same folder of the program that the job starts, which may be in a snapshot.

    Returns:
        `module:Class@folder`, the folder being that of the snapshot if the class is in it; `path` for
        one that is installed.

    Raises:
        InvalidSchedulerError: as `load`.
    """
    if path in known().values():
        return path
    _, home = user_class.make_instance(path, _SCHEDULER, InvalidSchedulerError, advice=own_scheduler.HELP)
    if not home:
        return path
    same = os.path.normpath(copy / os.path.relpath(home, program))
    return f"{path}@{same if user_class.has_module(same, path.partition(':')[0]) else home}"


def _environment_of(path: str) -> Sequence[str]:
    try:
        return load(path).environment
    except MLXJobsError:  # a package of somebody else's that is broken, and not in use here
        return ()


def clean_environment(env: Mapping[str, str], own: Sequence[str] = ()) -> dict[str, str]:
    """Return an environment without what schedulers set inside their jobs.

    A job that is submitted from inside another would inherit its rank, its processors' mask and
    its restart count otherwise.

    Args:
        env: an environment.
        own: what a scheduler that is not installed, the user's own, sets.
    """
    patterns = [*own, "MLXJOBS_RANK*"]  # the latter is what `mlxjobs.cluster.ranks` sets
    patterns += [pattern for path in known().values() for pattern in _environment_of(path)]
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    exact = {pattern for pattern in patterns if not pattern.endswith("*")} - kept
    begins = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))
    return {
        name: value
        for name, value in env.items()
        if name in kept or not (name in exact or (begins and name.startswith(begins)))
    }
