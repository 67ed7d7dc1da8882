"""A version manager found by its name; what one of the user's own has frozen is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from mlxjobs.code import git
from mlxjobs.code.git import show
from mlxjobs.errors import MLXJobsError, SnapshotError
from mlxjobs.system import user_class
from mlxjobs.system.trust import stranger
from mlxjobs.system.user_class import words_of
from mlxjobs.version_manager import Frozen, Launch, VersionManager

_HELP = "docs/version_manager.md shows a whole one"
_PLAIN = "strings, numbers, true or false, None, and lists and dictionaries of these"
_INTEGERS = range(-(2**63), 2**64)  # those of JSON as it is read here


def load_version_manager(name: str) -> VersionManager:
    """Import a version manager.

    Args:
        name: what `version_manager.name` says: `GitVM`, with or without its package, or the import
            path of a subclass of `mlxpy.VersionManager`.

    Raises:
        SnapshotError: it cannot be imported, or is not a version manager.
    """
    from mlxjobs.code.gitvm import GitVM  # with all that freezing takes

    if _is_ours(name):
        return GitVM()
    package, _, last = _split(name)
    if not package:
        raise SnapshotError(
            f"unknown version manager '{name}': it is GitVM, or the import path of your own subclass "
            "of mlxpy.VersionManager (version_manager.name)"
        )
    base: type[VersionManager] = VersionManager  # type: ignore[type-abstract]  # to compare with
    manager, _ = user_class.make_instance(f"{package}:{last}", base, SnapshotError, advice=_HELP)
    guard_manager(manager, f"{package}.{last}")
    return manager


def import_ahead(name: str) -> None:
    """Begin to import what freezing takes, in a thread, while this process does something else.

    Args:
        name: what `version_manager.name` says.
    """
    if _is_ours(name):
        Thread(target=git.load_quietly, daemon=True).start()


def _is_ours(name: str) -> bool:
    package, _, last = _split(name)
    return last == "GitVM" and package in user_class.PACKAGES


def _split(name: str) -> tuple[str, str, str]:
    return name.replace(":", ".").rpartition(".")


def guard_manager(manager: VersionManager, path: str) -> None:
    """Make what a version manager of the user's own does wrong an error with a message.

    Args:
        manager: the user's.
        path: its import path.
    """
    for name in ("freeze", "freeze_asking"):
        setattr(manager, name, _Guarded(getattr(manager, name), f"{path}.{name}"))


class _Guarded:
    """A method that freezes, and gives what can be run and stored, or raises an error of ours."""

    def __init__(self, freeze: Callable[..., Any], what: str) -> None:
        self._freeze = freeze
        self._what = what

    def __call__(self, launch: Launch, *more: Any) -> Frozen:
        try:
            frozen = self._freeze(launch, *more)
        except MLXJobsError:
            raise
        except Exception as error:
            raise SnapshotError(f"{self._what} failed: {words_of(error)}") from error
        if not isinstance(frozen, Frozen):
            raise self._wrong(f"returned {frozen!r}, which is not a Frozen")
        self._check_paths(frozen, launch)
        warnings = frozen.warnings
        if not (isinstance(warnings, (list, tuple)) and all(isinstance(text, str) for text in warnings)):
            raise self._wrong(f"returned warnings={warnings!r}, which is not a tuple of strings")
        facts = self._plain("facts", frozen.facts)
        if not isinstance(facts, dict):
            raise self._wrong(f"returned facts={facts!r}, which is not a dictionary")
        return Frozen(frozen.root, frozen.work_dir, frozen.program, facts, tuple(warnings))

    def _check_paths(self, frozen: Frozen, launch: Launch) -> None:
        for name in ("root", "work_dir", "program"):
            path = getattr(frozen, name)
            if path is None and name == "program":
                continue
            if not isinstance(path, Path) or not path.is_absolute():
                raise self._wrong(f"returned {name}={path!r}, which is not an absolute Path")
            if not (path.exists() if name == "program" else path.is_dir()):
                raise self._wrong(f"returned {name}={path!r}, and there is no {show(path)}")
        if frozen.program is not None and launch.program is None:
            raise self._wrong("returned a program, where a module is run (python -m): leave it None")
        is_copy = not launch.work_dir.resolve().is_relative_to(frozen.root.resolve())
        whose = stranger(frozen.root.parent, frozen.root) if is_copy else None
        if whose is not None:
            raise SnapshotError(f"{self._what}: a copy that is another user's is not run as you: {whose}")

    def _plain(self, key: str, value: Any) -> Any:
        """Return a value as it can be stored."""
        if isinstance(value, Mapping):
            wrong = [name for name in value if not isinstance(name, str)]
            if wrong:
                raise self._wrong(f"returned {key} with the key {wrong[0]!r}, which is not a string")
            return {self._plain(key, name): self._plain(f"{key}.{name}", value[name]) for name in value}
        if isinstance(value, (list, tuple)):
            return [self._plain(f"{key}.{number}", item) for number, item in enumerate(value)]
        is_number = type(value) is float or (type(value) is int and value in _INTEGERS)
        if value is None or isinstance(value, bool) or is_number or (type(value) is str and _is_text(value)):
            return value
        raise self._wrong(f"returned {key}={value!r}, which cannot be stored: only {_PLAIN} can")

    def _wrong(self, words: str) -> SnapshotError:
        return SnapshotError(f"{self._what} {words}; {_HELP}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return False
    return True
