"""Processes that die at any point of what they do to a run directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def crash_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], object]
) -> list[Path]:
    """Run `act` on a copy of the folder once for every change it makes to the disk, dying just before."""

    class Crash(BaseException):
        pass

    copies = []
    for point in range(100):
        copy = tmp_path / f"crash{point}"
        shutil.copytree(tmp_path / "run", copy)
        steps = iter(range(point))

        def step(real: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                if next(steps, None) is None:  # noqa: B023
                    raise Crash
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "link", "replace", "rename", "truncate", "mkdir", "rmdir", "unlink"):
                patch.setattr(os, name, step(getattr(os, name)))
            try:
                act(copy)
            except Crash:
                copies.append(copy)
                continue
        return copies
    raise AssertionError("it never ended")
