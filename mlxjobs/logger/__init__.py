"""What a task records and takes back: metrics, artifacts, checkpoints."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = ("DefaultLogger", "Logger", "SilentLogger", "_restore")


def __getattr__(name: str) -> Any:
    # where programs, pickles and entry points of before 0.1 look for them
    if name in _PUBLIC:
        return getattr(import_module("mlxjobs.logger.logger"), name)
    raise AttributeError(f"module 'mlxjobs.logger' has no attribute {name!r}")
