"""The only module that prints: what the program tells its user, all on one of two streams."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print what was asked for, on standard output."""
    print(message, flush=True)  # noqa: T201


def note(message: str) -> None:
    """Print what the user should know beside that, on standard error."""
    print(f"mlxjobs: {message}", file=sys.stderr, flush=True)  # noqa: T201
