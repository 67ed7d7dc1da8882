"""Maps: functions that are applied to columns, as tuples (function, keys, names) or as objects.

The objects are those of MLXP 0.1 (`AvgStd("train.loss")`), the tuples those of MLXP 1.0. What they
return where numpy is missing are lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxjobs.errors import InvalidMapError
from mlxjobs.logger.values import as_plain

MAP_TYPES = ("Generic", "Columnwise", "Rowwise", "Pointwise")


class AggregationMap:
    """Makes one row of a group; subclasses define `apply`.

    Args:
        keys: the columns it takes.
        func: a function, for subclasses that want one.
        args: its arguments, the same way.
        map_name: names its result: `min(train.loss)`.
    """

    def __init__(
        self,
        keys: Sequence[str],
        func: Callable[..., Any] | None = None,
        args: Mapping[str, Any] | None = None,
        map_name: str = "",
    ) -> None:
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.func = func
        self.args = dict(args or {})
        self.map_name = map_name
        self.name = self.make_name()

    def make_name(self) -> str:
        """Return the name of the result."""
        return f"{self.map_name}({','.join(self.keys)})"

    def apply(self, data: list[dict[str, Any]]) -> Any:
        """Return the new columns, alone or with the place of the row they come from.

        Args:
            data: for each row of the group, its values of `keys`.
        """
        later = getattr(self, "_apply", None)  # what MLXP called it between its generations
        if later is None:
            raise InvalidMapError(f"{type(self).__name__} has no method apply(data)")
        return later(data)


def _run_map(aggregation: AggregationMap, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Apply an aggregation map to the rows of a group, and return the new columns."""
    result = aggregation.apply(data)
    columns = result[0] if isinstance(result, tuple) else result
    if not isinstance(columns, Mapping):
        name = type(aggregation).__name__
        raise InvalidMapError(f"{name}.apply returned {type(columns).__name__}, not a dictionary")
    return dict(columns)


def _series(value: Any) -> list[Any]:
    value = as_plain(value)
    return list(value) if isinstance(value, (list, tuple)) else [value]


class Last(AggregationMap):
    """The last value of the series of each run: a list, in the order of the runs."""

    def __init__(self, key: str) -> None:
        super().__init__([key], map_name="last")

    def apply(self, data: list[dict[str, Any]]) -> Any:
        """Return {"last(key)": values}."""
        values = [_series(row[self.keys[0]]) for row in data]
        return {self.name: [value[-1] if value else None for value in values]}, None


class _Best(AggregationMap):
    """The best value of all runs, and which run has it."""

    word = "min"
    last_only = False

    def __init__(self, key: str) -> None:
        super().__init__([key], map_name=self.word)

    def apply(self, data: list[dict[str, Any]]) -> Any:
        """Return {"min(key)": value, "arg_min(key)": place of the run}, and that place."""
        pick = min if self.word == "min" else max
        best: dict[int, Any] = {}
        for place, row in enumerate(data):
            values = _series(row[self.keys[0]])
            numbers = [value for value in (values[-1:] if self.last_only else values) if _is_number(value)]
            if numbers:
                best[place] = pick(numbers)
        if not best:
            return {self.name: None, f"arg_{self.name}": None}, None
        place = pick(best, key=lambda place: best[place])
        return {self.name: best[place], f"arg_{self.name}": place}, place


class Min(_Best):
    """The smallest value of a column, or in the series of a column; NaN is left out."""


class MinLast(_Best):
    """The smallest of the last values of the series."""

    last_only = True


class Max(_Best):
    """The largest value of a column, or in the series of a column; NaN is left out."""

    word = "max"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


class AvgStd(AggregationMap):
    """Mean and standard deviation of series over the runs, step by step, up to the shortest."""

    def __init__(self, key: str) -> None:
        super().__init__([key], map_name="avgstd")

    def apply(self, data: list[dict[str, Any]]) -> Any:
        """Return {"key_avg": ..., "key_std": ...}, arrays for series and numbers for values."""
        columns = {}
        for key in self.keys:
            column = [as_plain(row[key]) for row in data]
            single = not any(isinstance(value, (list, tuple)) for value in column)
            try:
                mean, deviation = _mean_and_deviation([_series(value) for value in column])
            except (TypeError, ValueError) as error:
                raise InvalidMapError(f"AvgStd({key!r}) takes numbers: {error}") from error
            columns[f"{key}_avg"] = mean[0] if single else mean
            columns[f"{key}_std"] = deviation[0] if single else deviation
        return columns, None


def _mean_and_deviation(rows: list[list[Any]]) -> tuple[Any, Any]:
    length = min(map(len, rows))
    try:
        import numpy as np
    except ImportError:
        columns = [[float(row[i]) for row in rows] for i in range(length)]
        means = [sum(values) / len(values) for values in columns]
        squares = [
            sum((v - m) ** 2 for v in values) / len(values) for values, m in zip(columns, means, strict=True)
        ]
        return means, [math.sqrt(square) for square in squares]
    table = np.asarray([row[:length] for row in rows], dtype=float)
    with np.errstate(invalid="ignore"):  # infinities have no deviation
        return table.mean(axis=0), table.std(axis=0)


# -- tuples ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """A function, the columns it takes, and the names of its results."""

    function: Callable[..., Any]
    keys: tuple[str, ...]
    names: tuple[str, ...]


def _read_maps(maps: Any, map_type: str) -> list[_Map]:
    """Read what a user gave as (function, keys[, names]), or as a list of such tuples.

    Raises:
        InvalidMapError: it is something else; it says what.
    """
    return [_read_map(given, map_type) for given in (maps if isinstance(maps, list) else [maps])]


def _read_map(given: Any, map_type: str) -> _Map:
    if not isinstance(given, tuple) or len(given) not in (2, 3) or not callable(given[0]):
        raise InvalidMapError(
            f"{given!r} is not a map: give (function, keys) or (function, keys, names), as in "
            '(max, "train.loss", "best"), or a list of them'
        )
    keys = _strings(given[1])
    by_column = map_type in ("Columnwise", "Pointwise")
    if len(given) == 3:
        names = _strings(given[2])
    else:  # the names of MLXP
        called = f"f{getattr(given[0], '__name__', type(given[0]).__name__)}"
        names = tuple(f"{called}.{key}" for key in (keys if by_column else ["_".join(keys)]))
    if by_column and len(keys) != len(names):
        raise InvalidMapError(f"the map takes {len(keys)} columns and names {len(names)}: name each")
    return _Map(given[0], keys, names)


def _strings(words: Any) -> tuple[str, ...]:
    given = (words,) if isinstance(words, str) else tuple(words) if isinstance(words, (list, tuple)) else ()
    if not given or not all(isinstance(word, str) for word in given):
        raise InvalidMapError(f"{words!r}: the keys and names of a map are strings, or tuples of strings")
    return given


def _named(a_map: _Map, result: Any) -> dict[str, Any]:
    """Return what a function gave, by the names of its map.

    Raises:
        InvalidMapError: it gave another number of results.
    """
    if len(a_map.names) == 1:
        return {a_map.names[0]: result[0] if isinstance(result, tuple) and len(result) == 1 else result}
    if not isinstance(result, tuple) or len(result) != len(a_map.names):
        given = f"{len(result)} results" if isinstance(result, tuple) else f"one {type(result).__name__}"
        raise InvalidMapError(f"the map names {len(a_map.names)} results, its function gave {given}")
    return dict(zip(a_map.names, result, strict=True))


def as_rows(columns: dict[str, Any], size: int) -> list[dict[str, Any]] | None:
    """Return the rows of columns of this length; None if they are single values.

    Raises:
        InvalidMapError: some are columns and some are not.
    """
    whole = [_is_column(value, size) for value in columns.values()]
    if not any(whole):
        return None
    if not all(whole):
        raise InvalidMapError(f"of {', '.join(columns)} some are columns of {size} rows and some are not")
    return [{name: values[i] for name, values in columns.items()} for i in range(size)]


def _is_column(value: Any, size: int) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__"):
        return False
    try:
        return len(value) == size
    except TypeError:  # an array without dimensions
        return False


# -- applied to the columns of a result -----------------------------------------------------------

_Column = Callable[[str], list[Any]]


def aggregated(maps: Any, column: _Column, size: int) -> dict[str, Any]:
    """Return the one row that maps, tuples or objects, make of columns."""
    columns: dict[str, Any] = {}
    for a_map in maps if isinstance(maps, list) else [maps]:
        if isinstance(a_map, AggregationMap):
            values = {key: column(key) for key in a_map.keys}
            columns.update(_run_map(a_map, [{key: values[key][i] for key in values} for i in range(size)]))
        else:
            columns.update(by_column(a_map, column))
    return columns


def by_column(maps: Any, column: _Column) -> dict[str, Any]:
    """Return what maps make of each of their columns alone."""
    columns: dict[str, Any] = {}
    for a_map in _read_maps(maps, "Columnwise"):
        columns.update(zip(a_map.names, [a_map.function(column(key)) for key in a_map.keys], strict=True))
    return columns


def together(maps: Any, column: _Column) -> dict[str, Any]:
    """Return what maps make of all their columns together."""
    columns: dict[str, Any] = {}
    for a_map in _read_maps(maps, "Generic"):
        columns.update(_named(a_map, a_map.function(*(column(key) for key in a_map.keys))))
    return columns


def by_value(maps: Any, column: _Column, size: int) -> list[dict[str, Any]]:
    """Return the rows that maps make of each value of their columns."""
    rows: list[dict[str, Any]] = [{} for _ in range(size)]
    for a_map in _read_maps(maps, "Pointwise"):
        for key, name in zip(a_map.keys, a_map.names, strict=True):
            for row, value in zip(rows, column(key), strict=True):
                row[name] = a_map.function(value)
    return rows


def by_row(maps: Any, column: _Column, size: int) -> list[dict[str, Any]]:
    """Return the rows that maps make of the values of each row."""
    rows: list[dict[str, Any]] = [{} for _ in range(size)]
    for a_map in _read_maps(maps, "Rowwise"):
        columns = [column(key) for key in a_map.keys]
        for row, values in zip(rows, zip(*columns, strict=True), strict=True):
            row.update(_named(a_map, a_map.function(*values)))
    return rows
