"""The metric that says which checkpoint is the best so far."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlxjobs.errors import InvalidArtifactError, InvalidKeyError, InvalidMetricError
from mlxjobs.logger.rewind import log_names

_BLOCK = 1 << 16
_TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Monitor(NamedTuple):
    """A metric, and whether small or large values are good.

    Attributes:
        name: log name and key, `val.loss`.
        mode: `min` or `max`.
    """

    name: str
    mode: str

    def check(self) -> None:
        """Refuse what cannot be a monitor.

        Raises:
            InvalidArtifactError: the mode is none.
            InvalidKeyError: the name has no log name and key.
        """
        if self.mode not in ("min", "max"):
            raise InvalidArtifactError(f"log_checkpoint: mode is {self.mode!r}; use 'min' or 'max'")
        if not isinstance(self.name, str) or "." not in self.name.strip("."):
            raise InvalidKeyError(f"log_checkpoint: monitor is {self.name!r}; use '<log name>.<key>'")

    def is_better(self, value: float, than: float | None) -> bool:
        """Tell whether a value beats the best so far; NaN never does."""
        if math.isnan(value) or than is None:
            return not math.isnan(value)
        return value < than if self.mode == "min" else value > than

    def last_value(self, metrics: Path) -> float:
        """Return what was logged last, from the files: they are right after a resumption too.

        Args:
            metrics: the run's `metrics/`.

        Raises:
            InvalidKeyError: it was never logged.
            InvalidMetricError: it is no number.
        """
        names = log_names(metrics)
        for log_name, key in _splits(self.name):
            if log_name in names:
                for row in _rows_backwards(metrics / f"{log_name}.json"):
                    if key in row:
                        return self._number(row[key])
        raise InvalidKeyError(
            f"log_checkpoint(monitor={self.name!r}): this metric was never logged in {metrics}; call "
            "log_metrics({<key>: ...}, log_name=...) first, and name it '<log name>.<key>'"
        )

    def _number(self, value: Any) -> float:
        if isinstance(value, str) and value in _TEXTS:
            return _TEXTS[value]
        if isinstance(value, (int, float)):
            return float(value)
        raise InvalidMetricError(
            f"log_checkpoint(monitor={self.name!r}): its last value is {value!r}, which is no number"
        )


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """`a.b.c` is the key `b.c` of the log `a`, or `c` of `a.b`."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def _rows_backwards(path: Path) -> Iterator[dict[str, Any]]:
    import orjson

    for line in _lines_backwards(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:  # an unfinished line
            continue
        if isinstance(row, dict):
            yield row


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            rest, *lines = (file.read(end - begin) + rest).split(b"\n")
            yield from reversed(lines)
            end = begin
        yield rest
