"""The language of the Reader's queries.

    query       ::= and (("|" | "or") and)*
    and         ::= not (("&" | "and") not)*
    not         ::= ("~" | "not") not | comparison
    comparison  ::= "(" query ")" | operand (operator operand)*
    operator    ::= "==" | "!=" | "<" | "<=" | ">" | ">=" | ["not"] "in" | ["not"] "like"
                  | ["not"] "ilike" | ["not"] "matches" | "=~" | "!~"
    operand     ::= field | number | string | date | "[" literals "]" | "(" literals ")"
                  | "True" | "False" | "None" | "nan" | "inf"
    field       ::= config.optimizer.lr | info.status | train.loss.last | `any.name at all`

Nothing is ever handed to Python's own interpreter.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any

from mlxjobs.errors import InvalidKeyError, InvalidQueryError

STATISTICS = ("first", "last", "min", "max", "mean", "count")

_SYMBOLS = ("==", "!=", "<=", ">=", "=~", "!~", "<", ">", "&", "|", "~", "(", ")", "[", "]", ",")
_WORDS = ("and", "or", "not", "in", "like", "ilike", "matches")
_CONSTANTS = {
    "true": True, "false": False, "none": None, "null": None, "nan": float("nan"), "inf": float("inf"),
}  # fmt: skip
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in", "like", "ilike", "matches", "=~", "!~")

_DATE = r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?|\d\d/\d\d/\d{4}"
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<date>(?:{_DATE})(?![\w.]))
    |(?P<number>[+-]?(?:0[xX][\da-fA-F]+|(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|[+-]inf\b)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<quoted>`[^`]+`)
    |(?P<name>[^\W\d][\w./@:-]*|\d[\w/@:-]*\.[\w./@:-]+)
    |(?P<symbol>{"|".join(map(re.escape, _SYMBOLS))})""",
    re.VERBOSE | re.DOTALL,
)

# what has to be written so between quotes
_ESCAPE = re.compile(r"\\([\\'\"])")


@dataclass(frozen=True)
class _Token:
    """A word of a query: its kind, what it means, and where it is."""

    kind: str
    value: Any
    start: int
    end: int


@dataclass(frozen=True)
class Field:
    """A column that a query speaks of."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Literal:
    """A value that is written in a query."""

    value: Any


Operand = Field | Literal


@dataclass(frozen=True)
class Compare:
    """Two operands and what should hold between them."""

    left: Operand
    operator: str
    right: Operand


@dataclass(frozen=True)
class Truth:
    """An operand that stands alone: is it true?"""

    operand: Operand


@dataclass(frozen=True)
class Not:
    """A condition that must not hold."""

    part: Node


@dataclass(frozen=True)
class Both:
    """All of several conditions ("&"), or any of them ("|")."""

    symbol: str
    parts: tuple[Node, ...]


Node = Compare | Truth | Not | Both


@dataclass(frozen=True)
class Query:
    """A query that was parsed.

    Attributes:
        text: as it was written.
        node: what it means; None is the empty query, which everything matches.
    """

    text: str
    node: Node | None

    def fields(self) -> list[Field]:
        """Return the columns it speaks of, in their order."""
        return sorted(_fields(self.node), key=lambda field: field.start) if self.node else []


def parse(text: str) -> Query:
    """Parse a query.

    Raises:
        InvalidQueryError: it cannot be parsed; the message shows where.
    """
    if not isinstance(text, str):
        raise InvalidQueryError(f"a query is a string, not {type(text).__name__}")
    if not text.strip():
        return Query(text, None)
    try:
        return Query(text, _Parser(text).parse())
    except RecursionError:
        raise InvalidQueryError("the query is nested too deeply") from None


def point(text: str, start: int, end: int, message: str) -> str:
    """Return a message with the line of the query it speaks of, and carets below."""
    begin = text.rfind("\n", 0, start) + 1
    line = text[begin:].split("\n", 1)[0]
    width = max(1, min(end, begin + len(line)) - start)
    return f"{message}\n  {line.expandtabs(1)}\n  {' ' * (start - begin)}{'^' * width}"


def check_fields(query: Query, values: Collection[str], series: Collection[str]) -> None:
    """Refuse columns that no run has.

    Args:
        query: the query.
        values: the columns with values.
        series: the columns with series; a query takes `train.loss.last` and the like of them.

    Raises:
        InvalidKeyError: no run has a column; the message shows it and what is near.
    """
    for field in query.fields():
        base, _, statistic = field.name.rpartition(".")
        if field.name in values or (base in series and statistic in STATISTICS):
            continue
        if field.name in series:
            hint = " or ".join(f"{field.name}.{name}" for name in STATISTICS)
            message = f"{field.name} is a series: compare {hint}"
        else:
            known = [*values, *(f"{name}.last" for name in series)]
            message = f"no run has the field {field.name!r}{near(field.name, known)}"
        raise InvalidKeyError(point(query.text, field.start, field.end, message))


def near(name: str, known: Collection[str]) -> str:
    """Return the end of a message that names the fields which are like `name`."""
    alike = get_close_matches(name, known, n=3, cutoff=0.6)
    last = name.rpartition(".")[2]
    alike += [other for other in sorted(known) if other.rpartition(".")[2] == last and other not in alike][:3]
    if alike:
        return f"; near: {', '.join(alike)}"
    if "." not in name:
        return f"; a string is written in quotes: {name!r}"
    return ""


def _fields(node: Node) -> Iterator[Field]:
    if isinstance(node, Both):
        for part in node.parts:
            yield from _fields(part)
    elif isinstance(node, Not):
        yield from _fields(node.part)
    else:
        operands = (node.operand,) if isinstance(node, Truth) else (node.left, node.right)
        yield from (operand for operand in operands if isinstance(operand, Field))


# -- words ----------------------------------------------------------------------------------------


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        word = _TOKEN.match(text, position)
        if word is None:
            raise InvalidQueryError(point(text, position, position + 1, _odd(text[position])))
        kind = str(word.lastgroup)
        if kind != "space":
            yield _token(kind, word.group(), *word.span(), text)
        position = word.end()
    yield _Token("end", "", len(text), len(text))


def _odd(character: str) -> str:
    if character in "'\"`":
        return f"the {character} is never closed"
    if character == "=":
        return "to compare, write =="
    return f"{character!r} means nothing here"


def _token(kind: str, word: str, start: int, end: int, text: str) -> _Token:
    try:
        if kind == "name" and word.lower() in _WORDS:
            return _Token("symbol", word.lower(), start, end)
        if kind == "name" and word.lower() in _CONSTANTS:
            return _Token("value", _CONSTANTS[word.lower()], start, end)
        if kind == "quoted":
            return _Token("name", word[1:-1], start, end)
        if kind in _READ:
            return _Token("value", _READ[kind](word), start, end)
    except (ValueError, SyntaxError) as error:
        what = {"date": "is not a date", "number": "is not a number"}.get(kind, "cannot be read")
        raise InvalidQueryError(point(text, start, end, f"{word} {what}: {error}")) from error
    return _Token(kind, word, start, end)


def read_date(word: str) -> date:
    """Return the day or moment that a string gives, as 2026-11-23, 2026-11-23T16:01 or 23/11/2026.

    Raises:
        ValueError: it is neither.
    """
    if "/" in word:
        return datetime.strptime(word, "%d/%m/%Y").date()
    if "T" in word:
        return datetime.fromisoformat(word.replace("Z", "+00:00"))
    return date.fromisoformat(word)


def _read_text(word: str) -> Any:
    """What Python says a string is between these quotes, and nothing else; \\d is not a mistake."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(word)


def _read_number(word: str) -> Any:
    return float(word) if word[1:] == "inf" else ast.literal_eval(word)


_READ: dict[str, Callable[[str], Any]] = {
    "date": read_date,
    "number": _read_number,
    "text": _read_text,
}


# -- sentences ------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent, one method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._at = 0

    def parse(self) -> Node:
        node = self._any()
        token = self._next
        if token.kind != "end":
            word = self._text[token.start : token.end]
            raise self._error("one ) too many" if word == ")" else "here & or | is missing", token)
        return node

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *symbols: str) -> _Token | None:
        token = self._next
        if token.kind == "symbol" and token.value in symbols:
            self._at += 1
            return token
        return None

    def _error(self, message: str, token: _Token) -> InvalidQueryError:
        return InvalidQueryError(point(self._text, token.start, token.end, message))

    def _any(self) -> Node:
        parts = [self._all()]
        while self._take("|", "or"):
            parts.append(self._all())
        return Both("|", tuple(parts)) if len(parts) > 1 else parts[0]

    def _all(self) -> Node:
        parts = [self._not()]
        while self._take("&", "and"):
            parts.append(self._not())
        return Both("&", tuple(parts)) if len(parts) > 1 else parts[0]

    def _not(self) -> Node:
        if self._take("~", "not"):
            return Not(self._not())
        return self._comparison()

    def _comparison(self) -> Node:
        opening = self._next
        if opening.kind == "symbol" and opening.value == "(" and not self._is_list():
            self._at += 1
            node = self._any()
            if not self._take(")"):
                message = "the ( is never closed" if self._next.kind == "end" else "here & or | is missing"
                raise self._error(message, opening if self._next.kind == "end" else self._next)
            return node
        return self._chain(self._operand())

    def _chain(self, left: Operand) -> Node:
        parts: list[Node] = []
        while (operator := self._operator()) is not None:
            token = self._next
            right = self._operand()
            if operator.endswith("matches") and isinstance(right, Literal):
                right = Literal(self._expression(right.value, token))
            parts.append(Compare(left, operator, right))
            left = right
        if not parts:
            return Truth(left)
        return Both("&", tuple(parts)) if len(parts) > 1 else parts[0]

    def _expression(self, value: Any, token: _Token) -> Any:
        """The regular expression, whose own escapes, as of \\b, are not those of a string."""
        if token.kind == "value" and isinstance(value, str):
            value = _ESCAPE.sub(r"\1", self._text[token.start + 1 : token.end - 1])
        try:
            re.compile(value)
        except (re.error, TypeError) as error:
            raise self._error(f"this is not a regular expression: {error}", token) from error
        return value

    def _operator(self) -> str | None:
        if self._take("not"):
            operator = self._take("in", "like", "ilike", "matches")
            if operator is None:
                raise self._error("after this `not`, one of in, like, ilike, matches is missing", self._next)
            return f"not {operator.value}"
        operator = self._take(*_COMPARISONS)
        if operator is None:
            return None
        return {"=~": "matches", "!~": "not matches"}.get(operator.value, str(operator.value))

    def _is_list(self) -> bool:
        """Whether "(" opens a list of values, as in `x in (1, 2)`, and not a condition."""
        before = self._tokens[self._at - 1] if self._at else None
        return before is not None and before.kind == "symbol" and before.value == "in"

    def _operand(self) -> Operand:
        token = self._next
        if token.kind == "name":
            self._at += 1
            return Field(token.value, token.start, token.end)
        return Literal(self._literal())

    def _literal(self) -> Any:
        token, is_list = self._next, self._next.value == "[" or self._is_list()
        self._at += 1
        if token.kind == "value":
            return token.value
        if token.kind == "symbol" and token.value in ("[", "("):
            values = self._list("]" if token.value == "[" else ")", token)
            last = self._tokens[self._at - 2]
            is_list = is_list or len(values) != 1 or (last.kind, last.value) == ("symbol", ",")
            return values if is_list else values[0]  # (1) is 1, and (1,) a list
        if token.kind == "name":
            raise self._error(
                f"a list holds values only; a string is written in quotes: {token.value!r}", token
            )
        missing = "the query ends too early: a field or a value is missing"
        raise self._error(missing if token.kind == "end" else "here a field or a value is missing", token)

    def _list(self, closing: str, opening: _Token) -> list[Any]:
        values: list[Any] = []
        while not self._take(closing):
            if self._next.kind != "end":
                values.append(self._literal())
            if self._next.kind == "end":
                raise self._error(f"the {opening.value} is never closed", opening)
            if not self._take(",") and (self._next.kind, self._next.value) != ("symbol", closing):
                raise self._error("a comma is missing between values", self._next)
        return values
