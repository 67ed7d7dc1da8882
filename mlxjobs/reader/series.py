"""Metrics files, read in bulk: whole lines only, in memory that does not grow with the file.

A last line without its newline was not finished, or is being written right now; it is left out. So
is a line that is not JSON, which is counted. NaN and infinities come back as floats: this package
writes them as strings and registers the type of the metric, MLXP wrote them bare.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mlxjobs.logger.rewind import SUPERSEDED

_CHUNK = 1 << 20
_TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBERS = frozenset((int, float, bool))

# first, last, min, max, mean, count
_Summary = list[Any]


@dataclass
class Source:
    """A metrics file and what is known of it.

    Attributes:
        path: the file.
        kinds: key -> registered type; "" if MLXP wrote it.
        bad: lines in it that are not JSON objects; counted while it is read.
        torn: whether its last line is unfinished; known once it was read.
    """

    path: str
    kinds: dict[str, str] = field(default_factory=dict)
    bad: int = 0
    torn: bool = False

    def at(self, path: str) -> Source:
        """Return the same of another file."""
        return Source(path, self.kinds)


def _rows(source: Source) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines of a metrics file, many at once; none if there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    source.bad, source.torn = 0, False
    try:
        descriptor = os.open(source.path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        left, rest = os.fstat(descriptor).st_size, b""
        while left > 0 and (block := os.read(descriptor, min(left, _CHUNK))):
            left -= len(block)
            block = rest + block if rest else block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if end:
                yield _parse(block[:end], source)
        if rest:
            yield from _last(rest, source)
    finally:
        os.close(descriptor)


def _last(line: bytes, source: Source) -> Iterator[list[dict[str, Any]]]:
    """A last line without a newline counts if it is whole: then only the newline is missing."""
    row = _parse_line(line)
    if row is None:
        source.torn = True
    else:
        yield [row]


def _parse(lines: bytes, source: Source) -> list[dict[str, Any]]:
    try:
        # one call for all lines is several times faster than one for each
        rows = orjson.loads(b"[" + lines.rstrip().replace(b"\n", b",") + b"]")
        if set(map(type, rows)) <= {dict} and len(rows) == lines.count(b"\n"):
            return list(rows)
    except orjson.JSONDecodeError:
        pass
    parsed = [_parse_line(line) for line in lines.splitlines() if line.strip()]
    source.bad += parsed.count(None)
    return [row for row in parsed if row is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    for loads in (orjson.loads, json.loads):  # only the latter takes the bare NaN of MLXP
        try:
            row = loads(line)
        except (ValueError, RecursionError):
            continue
        return row if isinstance(row, dict) else None
    return None


def _values_of(rows: Sequence[dict[str, Any]], key: str, kind: str) -> list[Any]:
    """Return the values of a key, in their order, from the lines that have it."""
    try:
        values = [row[key] for row in rows]
    except KeyError:
        values = [row[key] for row in rows if key in row]
    return _as_floats(values) if kind != "str" else values


def _as_floats(values: list[Any]) -> list[Any]:
    """Return the values with "NaN" and the infinities as floats."""
    if str in set(map(type, values)):
        return [_TEXTS.get(value, value) if type(value) is str else value for value in values]
    return values


def load_series(source: Source, keys: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of some keys of a metrics file, with their Python types."""
    series: dict[str, list[Any]] = {key: [] for key in keys}
    for chunk in _rows(source):
        for key in keys:
            series[key] += _values_of(chunk, key, source.kinds.get(key, ""))
    return series


def summarise(source: Source) -> dict[str, _Summary]:
    """Return first, last, smallest, largest, mean and count of every key of a metrics file.

    Smallest, largest and mean are those of the numbers; NaN counts as missing there.
    """
    totals: dict[str, _Total] = {}
    for chunk in _rows(source):
        for key in dict.fromkeys(key for row in chunk for key in row):
            totals.setdefault(key, _Total()).add(_values_of(chunk, key, source.kinds.get(key, "")))
    return {key: total.summary() for key, total in totals.items()}


@dataclass
class _Total:
    first: Any = None
    last: Any = None
    low: Any = None
    high: Any = None
    sum: float = 0.0
    numbers: int = 0
    count: int = 0

    def add(self, values: list[Any]) -> None:
        if not values:
            return
        if not self.count:
            self.first = values[0]
        self.last = values[-1]
        self.count += len(values)
        numbers = [value for value in values if type(value) in _NUMBERS and value == value]
        if numbers:
            low, high = min(numbers), max(numbers)
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)
            self.sum += _sum(numbers)
            self.numbers += len(numbers)

    def summary(self) -> _Summary:
        mean = self.sum / self.numbers if self.numbers else None
        return [self.first, self.last, self.low, self.high, mean, self.count]


def _sum(numbers: list[Any]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return float(sum(map(float, numbers)))


def file_mark(path: str) -> list[int]:
    """Return what changes when a metrics file changes."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - asked for every run
    except OSError:
        return [0, 0, 0]
    return [stat.st_mtime_ns, stat.st_size, stat.st_ino]


# -- the long table -------------------------------------------------------------------------------


@dataclass
class Long:
    """The values of a series of many runs, one row for each value.

    Attributes:
        log_id: the run of each row.
        step: the number of the value in its run, from 0; or what another key of its line says.
        value: the values: an array of floats, or a list if they are not numbers.
        attempt: which attempt wrote a line that was superseded later, "" for lines that count; None
            if superseded lines were not asked for.
    """

    log_id: array[int] = field(default_factory=lambda: array("q"))
    step: array[Any] | list[Any] = field(default_factory=lambda: array("q"))
    value: array[float] | list[Any] = field(default_factory=lambda: array("d"))
    attempt: list[str] | None = None

    def __len__(self) -> int:
        return len(self.log_id)

    def add(self, log_id: int, steps: Sequence[Any], values: list[Any], attempt: str) -> None:
        """Add the values of a run."""
        self.log_id.extend(array("q", [log_id]) * len(values))
        self.step = _extended(self.step, steps)
        self.value = _extended(self.value, values)
        if self.attempt is not None:
            self.attempt += [attempt] * len(values)

    def columns(self) -> dict[str, Any]:
        """Return the columns by name."""
        columns: dict[str, Any] = {"log_id": self.log_id, "step": self.step, "value": self.value}
        return columns if self.attempt is None else {**columns, "attempt": self.attempt}


def _extended(column: Any, values: Sequence[Any]) -> Any:
    """The column with the values: an array as long as they are numbers, then a list."""
    if isinstance(column, list):
        column.extend(values)
        return column
    try:
        if column.typecode == "q":
            column.extend(values if isinstance(values, range) else array("q", values))
        else:
            numbers = [math.nan if value is None else value for value in values] if None in values else values
            column.extend(array("d", numbers))
    except OverflowError:
        return [*column, *values]
    except TypeError:
        if column.typecode == "q":  # steps that are not whole numbers
            return _extended(array("d", column), values)
        return [*column, *values]
    return column


def add_series(
    table: Long, log_id: int, source: Source, key: str, *, step: str | None, attempt: str = ""
) -> None:
    """Add the values of a key of a metrics file to a table, in constant memory.

    Args:
        table: the table.
        log_id: the run.
        source: the file.
        key: the key.
        step: the key that gives the step; None: values are counted.
        attempt: whose superseded lines these are.
    """
    kind = source.kinds.get(key, "")
    count = 0
    for chunk in _rows(source):
        if step is None:
            values = _values_of(chunk, key, kind)
            steps: Sequence[Any] = range(count, count + len(values))
        else:
            both = [row for row in chunk if key in row and step in row]
            values = _values_of(both, key, kind)
            steps = _values_of(both, step, source.kinds.get(step, ""))
        table.add(log_id, steps, values, attempt)
        count += len(values)


def superseded(run: str, log_name: str) -> list[tuple[str, str]]:
    """Return the files with lines that a resumed run has repeated: (attempt, path)."""
    folder = Path(run) / "metrics" / SUPERSEDED
    files = [attempt / f"{log_name}.json" for attempt in sorted(folder.glob("*")) if attempt.name != "torn"]
    return [(path.parent.name.partition(".")[0], str(path)) for path in files if path.exists()]
