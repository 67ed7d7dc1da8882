"""What one command line asks for, and who does it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = ("launch",)


def __getattr__(name: str) -> Any:
    # where programs, pickles and entry points of before 0.1 look for them
    if name in _PUBLIC:
        return getattr(import_module("mlxjobs.launcher.decorator"), name)
    raise AttributeError(f"module 'mlxjobs.launcher' has no attribute {name!r}")
