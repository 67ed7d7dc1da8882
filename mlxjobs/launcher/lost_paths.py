"""Settings that look like relative paths, and lead nowhere in the snapshot that the run starts in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from mlxjobs.system.console import name_some, note

_NAMED = 10  # settings that the warning names
_LONGEST = 1024  # characters of what may be a path


class LostPaths:
    """Warns of them, naming each setting and value once.

    Args:
        before: the folder where the command was typed.
        now: the folder where the program runs.
    """

    def __init__(self, before: str, now: Path) -> None:
        self._before = Path(before)
        self._now = now
        self._told: set[tuple[str, str]] = set()
        self._is_lost = lru_cache(maxsize=4096)(self._look)

    def warn(self, configs: Iterable[Any]) -> None:
        """Look at configurations, without their secrets, and say in one warning what is lost in them."""
        if self._before == self._now:
            return
        pairs = {pair for config in configs for pair in _texts("", config) if self._is_lost(pair[1])}
        new = sorted(pairs - self._told)
        self._told.update(new)
        if not new:
            return
        named = name_some([f"{key}={value}" for key, value in new], _NAMED)
        note(
            f"these settings look like paths relative to {self._before}, and are not in the snapshot where "
            f"the run starts: {named}.\n"
            "Make them visible there with version_manager.link, give absolute paths, or have the program "
            "start from ctx.info.launch_dir."
        )

    def _look(self, text: str) -> bool:
        if text in ("", "***") or text.startswith("/") or "${" in text or len(text) > _LONGEST:
            return False
        try:
            return (self._before / text).exists() and not (self._now / text).exists()
        except (OSError, ValueError):  # no name of a file
            return False


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(f"{key}.{name}" if key else str(name), item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _texts(f"{key}.{number}", item)
    elif isinstance(value, (str, PurePath)):
        yield key, str(value)
