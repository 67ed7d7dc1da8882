"""Runs read again: queries, groups, tables."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = ("DefaultParser", "Parser", "Reader", "UncertainRunWarning", "UnreadableRunWarning")


def __getattr__(name: str) -> Any:
    # where programs, pickles and entry points of before 0.1 look for them
    if name in _PUBLIC:
        return getattr(import_module("mlxjobs.reader.reader"), name)
    raise AttributeError(f"module 'mlxjobs.reader' has no attribute {name!r}")
