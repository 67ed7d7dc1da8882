"""The private names of Hydra that we use, each looked up here alone.

Hydra moves them from version to version. Where one is missing, `None` is found, and whoever asked leaves
the matter to Hydra's own way, which is slower or does a little more, and right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def loader_class() -> Any:
    """Return the class whose `load_sweep_config` composes each run of a sweep."""
    return _find("hydra._internal.config_loader_impl", "ConfigLoaderImpl")


def override_applier() -> Callable[[list[Any], Any], None] | None:
    """Return what applies parsed overrides, in order, to a configuration composed from files."""
    return getattr(loader_class(), "_apply_overrides_to_config", None)


@contextmanager
def replaced_applier(apply: Callable[[list[Any], Any], None]) -> Iterator[None]:
    """Let Hydra apply overrides by another function inside the block."""
    with replaced(loader_class(), "_apply_overrides_to_config", staticmethod(apply)):
        yield


def dirname_maker() -> Callable[..., str] | None:
    """Return what makes `hydra.job.override_dirname`, which Hydra 1.4 has no more."""
    maker: Callable[..., str] | None = _find("hydra._internal.config_loader_impl", "get_overrides_dirname")
    return maker


def callbacks_class() -> Any:
    """Return what calls the callbacks of a configuration."""
    return _find("hydra._internal.callbacks", "Callbacks")


@contextmanager
def silent_hydra() -> Iterator[None]:
    """Let Hydra call no callbacks and leave logging alone.

    Both stay in the configuration, so they cannot be overridden; they are replaced where Hydra looks
    them up.
    """
    callbacks = callbacks_class()
    with (
        replaced(sys.modules.get("hydra._internal.hydra"), "Callbacks", lambda *given, **named: callbacks()),
        replaced(sys.modules.get("hydra.core.utils"), "configure_log", lambda *given, **named: None),
    ):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module or class inside the block, if it has one of that name."""
    try:
        before = vars(owner)[name]  # a static method as such, which getattr would unpack
    except (KeyError, TypeError):
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _find(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None
