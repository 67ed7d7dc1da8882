"""Which runs match a query: column by column, and no column before it is needed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.query import (
    STATISTICS,
    Both,
    Compare,
    Field,
    Literal,
    Node,
    Not,
    Operand,
    Query,
    Truth,
    read_date,
)

# (name, positions of runs) -> their values
_Column = Callable[[str, Sequence[int]], Sequence[Any]]

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONTRARY = {"!=": "==", **{f"not {word}": word for word in ("in", "like", "ilike", "matches")}}
_NUMBERS = frozenset((int, float, bool))
_DATE = re.compile(r"\d\d/\d\d/\d{4}|\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")


def select(
    query: Query, size: int, column: _Column, costly: Callable[[str], bool] = lambda name: False
) -> list[int]:
    """Return the positions of the runs that match, in their order.

    Args:
        query: the query.
        size: how many runs there are.
        column: gives the values of a field for some runs.
        costly: tells which fields are expensive; of conditions joined by "&" they are asked last,
            for the runs only that match the others.
    """
    if query.node is None:
        return list(range(size))
    return _select(query.node, range(size), column, costly)


def matches(query: Query, row: Mapping[str, Any]) -> bool:
    """Tell whether one dictionary of fields matches."""
    return bool(select(query, 1, lambda name, positions: [row.get(name, ABSENT)] * len(positions)))


def _select(
    node: Node, positions: Sequence[int], column: _Column, costly: Callable[[str], bool]
) -> list[int]:
    if isinstance(node, Not):
        hits = set(_select(node.part, positions, column, costly))
        return [position for position in positions if position not in hits]
    if isinstance(node, Both) and node.symbol == "&":
        for part in sorted(node.parts, key=lambda part: _costs(part, costly)):
            positions = _select(part, positions, column, costly)
        return list(positions)
    if isinstance(node, Both):
        matching: set[int] = set()
        for part in node.parts:
            rest = [position for position in positions if position not in matching] if matching else positions
            matching.update(_select(part, rest, column, costly))
        return [position for position in positions if position in matching]
    values = _truth(node, positions, column) if isinstance(node, Truth) else _compare(node, positions, column)
    return [position for position, value in zip(positions, values, strict=True) if value]


def _costs(node: Node, costly: Callable[[str], bool]) -> bool:
    if isinstance(node, Both):
        return any(_costs(part, costly) for part in node.parts)
    if isinstance(node, Not):
        return _costs(node.part, costly)
    operands = (node.operand,) if isinstance(node, Truth) else (node.left, node.right)
    return any(isinstance(operand, Field) and costly(operand.name) for operand in operands)


def _values(operand: Operand, positions: Sequence[int], column: _Column) -> Sequence[Any]:
    if isinstance(operand, Literal):
        return [operand.value] * len(positions)
    return column(operand.name, positions)


def _truth(node: Truth, positions: Sequence[int], column: _Column) -> list[bool]:
    return [bool(value) for value in _values(node.operand, positions, column)]


def _compare(node: Compare, positions: Sequence[int], column: _Column) -> list[Any]:
    left = _values(node.left, positions, column)
    if isinstance(node.right, Literal):
        fast = _compare_all(left, node.operator, node.right.value)
        if fast is not None:
            return fast
    right = _values(node.right, positions, column)
    return [_holds(a, node.operator, b) for a, b in zip(left, right, strict=True)]


def _compare_all(values: Sequence[Any], symbol: str, literal: Any) -> list[Any] | None:
    """As `_holds`, quickly, for the usual literals; None for the others."""
    kind = type(literal)
    if kind is str or kind in _NUMBERS:
        if symbol == "==":
            return [value == literal for value in values]
        if symbol == "!=":
            return [value is not ABSENT and value != literal for value in values]
    if kind in _NUMBERS and symbol in _ORDER:
        test = _ORDER[symbol]
        return [type(value) in _NUMBERS and test(value, literal) for value in values]
    try:  # few values, as of most fields, or all different, as of seeds
        verdicts = {value: _holds(value, symbol, literal) for value in set(values)}
        return [verdicts[value] for value in values]
    except TypeError:  # lists among them
        return None


def _holds(a: Any, symbol: str, b: Any) -> bool:
    """Tell whether a comparison holds.

    A field that a run does not have compares as false with everything, but with None, which it
    equals: so `x != 1` and `x not in [1]` are false too, while `~(x == 1)` is true. Values that have
    no order are not in order. Days are compared as days, also those in strings such as "23/11/2026".
    """
    if a is ABSENT or b is ABSENT:
        return symbol == "==" and (a is None or b is None or a is b)
    if symbol == "!=" or symbol.startswith("not "):
        return not _holds(a, _CONTRARY[symbol], b)
    if symbol == "==":
        return _equal(a, b)
    if symbol in _ORDER:
        return _ordered(a, _ORDER[symbol], b)
    if symbol == "in":
        return _contains(b, a)
    if not isinstance(a, str) or not isinstance(b, str):
        return False
    return _pattern(symbol, b).search(a) is not None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, date) or isinstance(b, date):
        return _ordered(a, operator.eq, b)
    return bool(a == b)


def _ordered(a: Any, test: Callable[[Any, Any], Any], b: Any) -> bool:
    if type(a) in _NUMBERS and type(b) in _NUMBERS:
        return bool(test(a, b))
    if not isinstance(a, (str, date)) or not isinstance(b, (str, date)):
        return False
    first, second = _moment(a), _moment(b)
    if first is not None and second is not None:
        return bool(test(*_alike(first, second)))
    return isinstance(a, str) and isinstance(b, str) and bool(test(a, b))


def _contains(container: Any, value: Any) -> bool:
    if isinstance(container, list):
        if type(value) in _NUMBERS or value is None:
            return value in container  # no date is equal to it
        return any(_equal(value, item) for item in container)
    return isinstance(container, str) and isinstance(value, str) and value in container


@lru_cache(maxsize=65536)
def _moment(value: str | date) -> date | None:
    if isinstance(value, date):
        return value
    if _DATE.fullmatch(value) is None:
        return None
    try:
        return read_date(value.replace(" ", "T"))
    except ValueError:
        return None


def _alike(a: date, b: date) -> tuple[date, date]:
    """A day and a moment are compared as days; a moment without a zone is in the local one."""
    if not isinstance(a, datetime) or not isinstance(b, datetime):
        return tuple(day.date() if isinstance(day, datetime) else day for day in (a, b))  # type: ignore[return-value]
    if (a.tzinfo is None) == (b.tzinfo is None):
        return a, b
    return a.astimezone(), b.astimezone()


@lru_cache(maxsize=256)
def _pattern(symbol: str, pattern: str) -> re.Pattern[str]:
    if symbol == "matches":
        return re.compile(pattern)
    signs = {"%": ".*", "_": "."}
    body = "".join(signs.get(character, re.escape(character)) for character in pattern)
    return re.compile(f"^{body}\\Z", re.DOTALL | (re.IGNORECASE if symbol == "ilike" else 0))


def summary_of(name: str) -> tuple[str, str] | None:
    """Split `train.loss.last` into the series and what is asked of it; None if it is not such a name."""
    base, _, statistic = name.rpartition(".")
    return (base, statistic) if base and statistic in STATISTICS else None
