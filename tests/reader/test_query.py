"""The query language, against a naive evaluation in Python, and its messages."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import mlxpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxjobs.errors import InvalidKeyError, InvalidQueryError
from mlxjobs.reader.matching import matches
from mlxjobs.reader.query import parse
from mlxjobs.reader.series import Source, summarise
from tests.run_trees import write_run

ROW: dict[str, Any] = {
    "config.lr": 0.1, "config.optimizer.name": "adam", "config.seed": 3, "config.flag": True,
    "config.off": False, "config.none": None, "config.layers": [1, 2], "config.data/set": "mnist",
    "config.my-key": "x", "info.status": "COMPLETE", "info.start_date": "20/04/2023",
    "info.when": "2023-04-20T16:01:13+02:00", "odd key": 1, "config.nan": float("nan"),
}  # fmt: skip


def is_true(query: str, row: Mapping[str, Any] = ROW) -> bool:
    return matches(parse(query), row)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   ",
        "info.status == 'COMPLETE' & config.lr <= 1e-1",
        'info.status == "COMPLETE"',
        "config.lr == 1E-1 | config.lr > 5",
        "config.lr > -1 & config.lr > +.05 & config.lr < 1.",
        "config.seed == 0x3 & config.seed < 1_000",
        "~(config.lr > 1)",
        "~config.lr > 1",
        "not config.lr > 1 and not config.off or False",
        "config.flag == True & config.flag == true & config.off == FALSE",
        "config.flag & ~config.off",
        "config.none == None & config.lr != None",
        "config.missing == None & ~(config.missing != None)",
        "config.seed in [1, 2, 3] & config.seed not in [4]",
        "config.seed in (1, 3,)",
        "config.lr == (0.1) & config.seed in (3) & [3] == (3,) & [1, 2] == [(1), 2]",
        "config.optimizer.name in ['adam', 'sgd']",
        "1 in config.layers & 7 not in config.layers",
        "config.layers == [1, 2] & config.layers != [2, 1]",
        "config.optimizer.name =~ '^ad.m$' & config.optimizer.name !~ 'sgd'",
        "config.optimizer.name matches 'da'",
        r"config.optimizer.name =~ '\badam\b' & config.optimizer.name =~ 'a\wam' & '\d' like '_d'",
        r"config.optimizer.name =~ '\\wdam' & 'it\'s' =~ 't\'s' & 'a' !~ ('b')",
        "config.optimizer.name not matches 'x'",
        "config.optimizer.name like 'a%' & config.optimizer.name like '_dam'",
        "config.optimizer.name ilike 'AD%' & config.optimizer.name not like 'dam'",
        "config.data/set == 'mnist' & config.my-key == 'x'",
        "`odd key` == 1",
        "0.01 < config.lr < 0.5",
        "config.lr < config.seed",
        "info.start_date >= 2023-04-20 & info.start_date < 21/04/2023",
        "info.start_date == 20/04/2023",
        "info.start_date > '19/05/2022'",  # days, not strings
        "info.when > 2023-04-19 & info.when == 2023-04-20",
        "info.when >= 2023-04-20T14:01:13Z & info.when < 2023-04-20T16:01:14+02:00",
        "config.nan != config.nan & ~(config.nan < 1)",
        "config.nan < inf | config.lr < inf & config.lr > -inf",
        "(((config.lr == 0.1)))",
        "config.lr\n  == 0.1\n& config.seed\t== 3",
        "info.status != 'it\\'s'",
    ],
)
def test_queries_that_are_true_of_the_row(query: str) -> None:
    assert is_true(query)


@pytest.mark.parametrize(
    "query",
    [
        "config.lr > 1 & config.seed == 3",
        "config.seed == 4 | config.lr > 1",
        "config.missing == 1",
        "config.missing != 1",
        "config.missing < 1",
        "config.missing not in [1]",
        "config.missing",
        "config.optimizer.name < 3",
        "config.seed like '3'",
        "config.none < 1",
        "config.layers < 3",
        "config.seed in 5",
        "config.lr == '0.1'",
        "info.start_date < 2023-04-20",
        "config.optimizer.name like 'a'",
        "config.seed == 3 & (config.lr > 1 | config.off)",
        "~(config.missing == 1) & config.off",
    ],
)
def test_queries_that_are_false_of_the_row(query: str) -> None:
    assert not is_true(query)


def test_and_binds_closer_than_or() -> None:
    assert is_true("True | True & False")
    assert not is_true("(True | True) & False")
    assert is_true("~False & True")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("config.lr = 1", "to compare, write ==\n  config.lr = 1\n            ^"),
        (
            "config.lr == ",
            "the query ends too early: a field or a value is missing\n  config.lr == \n               ^",
        ),
        ("(config.lr == 1", "the ( is never closed\n  (config.lr == 1\n  ^"),
        ("config.lr == 1)", "one ) too many\n  config.lr == 1)\n                ^"),
        ("config.lr in [1, 2", "the [ is never closed\n  config.lr in [1, 2\n               ^"),
        (
            "config.lr in [1 2]",
            "a comma is missing between values\n  config.lr in [1 2]\n                  ^",
        ),
        ("config.lr in [a]", "a string is written in quotes: 'a'\n  config.lr in [a]\n                ^"),
        ("a == 1 b == 2", "here & or | is missing\n  a == 1 b == 2\n         ^"),
        ("a == 1 &\nb === 2", "to compare, write ==\n  b === 2\n      ^"),
        ("a == 'x", "the ' is never closed\n  a == 'x\n       ^"),
        ("a not b", "one of in, like, ilike, matches is missing\n  a not b\n        ^"),
        (
            "a =~ '('",
            "this is not a regular expression: missing ), unterminated subpattern at position 0\n  a =~ '('",
        ),
        (
            "a > 2023-13-01",
            "2023-13-01 is not a date: month must be in 1..12\n  a > 2023-13-01\n      ^^^^^^^^^^",
        ),
        ("a > 012", "012 is not a number"),
        ("a ; b", "';' means nothing here\n  a ; b\n    ^"),
        ("& a", "here a field or a value is missing\n  & a\n  ^"),
        ("(" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_query_says_where(query: str, message: str) -> None:
    with pytest.raises(InvalidQueryError) as caught:
        parse(query)
    assert message in str(caught.value)
    assert isinstance(caught.value, SyntaxError)


def test_a_query_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for query in (f"__import__('pathlib').Path('{trap}').touch()", f"a == open('{trap}', 'w')"):
        with pytest.raises(InvalidQueryError):
            parse(query)
    assert not trap.exists()


@pytest.fixture
def reader(tmp_path: Path) -> mlxpy.Reader:
    for log_id, losses in ((1, [3.0, 1.0]), (2, [0.5, 2.0, float("nan")]), (3, [])):
        write_run(tmp_path, log_id, {"optimizer": {"lr": log_id / 10}}, losses=losses)
    return mlxpy.Reader(tmp_path)


@pytest.mark.parametrize(
    ("query", "log_ids"),
    [
        ("train.loss.last <= 1", [1]),
        ("train.loss.first < 1", [2]),
        ("train.loss.min < 0.6 | train.loss.max >= 3", [1, 2]),
        ("train.loss.mean == 2", [1]),
        ("train.loss.count == 3 & config.optimizer.lr > 0", [2]),
        ("train.loss.last == None", [3]),
        ("~(train.loss.count > 0)", [3]),
    ],
)
def test_metrics_can_be_asked_for(reader: mlxpy.Reader, query: str, log_ids: list[int]) -> None:
    assert reader.filter(query)[:]["info.log_id"] == log_ids


def test_only_the_metrics_of_runs_that_match_the_rest_are_read(
    reader: mlxpy.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def count(source: Source) -> dict[str, list[Any]]:
        read.append(source.path)
        return summarise(source)

    monkeypatch.setattr("mlxjobs.reader.table.summarise", count)
    assert reader.filter("train.loss.last == 1 & config.optimizer.lr == 0.1")[:]["info.log_id"] == [1]
    assert len(read) == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("config.lr > 1", "no run has the field 'config.lr'; near: "),
        ("config.lr > 1", "config.optimizer.lr\n  config.lr > 1\n  ^^^^^^^^^"),
        ("config.optimizer.lr > 0 & train.los.last < 1", "near: train.loss.last"),
        ("config.optimizer.lr == adam", "a string is written in quotes: 'adam'\n"),
        ("train.loss < 1", "train.loss is a series: compare train.loss.first or train.loss.last"),
    ],
)
def test_an_unknown_field_is_shown_with_what_is_near(reader: mlxpy.Reader, query: str, message: str) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        reader.filter(query)
    assert message in str(caught.value)


# -- against Python -------------------------------------------------------------------------------

FIELDS = ["config.a", "config.b", "config.c/d", "config.missing"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False, width=16),
    st.sampled_from(["", "a", "it's", 'x"y', "\\n", "Ab"]),
)  # fmt: skip
ROWS = st.fixed_dictionaries({key: SCALARS | st.lists(SCALARS, max_size=2) for key in FIELDS[:3]})
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
    "in": lambda a, b: any(a == one for one in b), "not in": lambda a, b: all(a != one for one in b),
}  # fmt: skip
Test = Callable[[Mapping[str, Any]], bool]


def _naive(key: str, sign: str, value: Any) -> Test:
    def holds(row: Mapping[str, Any]) -> bool:
        if key not in row:
            return value is None and sign == "=="
        try:
            return (
                bool(SIGNS[sign](row[key], value))
                if sign in ("==", "!=", "in", "not in")
                else ordered(row[key])
            )
        except TypeError:
            return False

    def ordered(stored: Any) -> bool:
        both = (stored, value)
        alike = all(isinstance(one, (int, float)) for one in both) or all(
            isinstance(one, str) for one in both
        )
        return alike and bool(SIGNS[sign](stored, value))

    return holds


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Test]:
    key = draw(st.sampled_from(FIELDS))
    sign = draw(st.sampled_from(list(SIGNS)))
    value = draw(st.lists(SCALARS, max_size=3) if "in" in sign else SCALARS)
    space = draw(st.sampled_from([" ", "  ", "\n"]))
    return f"{key}{space}{sign}{space}{value!r}", _naive(key, sign, value)


def _negated(one: tuple[str, Test]) -> tuple[str, Test]:
    return f"~({one[0]})", lambda row: not one[1](row)


def _joined(a: tuple[str, Test], b: tuple[str, Test], sign: str) -> tuple[str, Test]:
    if sign == "&":
        return f"({a[0]}) & ({b[0]})", lambda row: a[1](row) and b[1](row)
    return f"({a[0]})|({b[0]})", lambda row: a[1](row) or b[1](row)


QUERIES = st.recursive(
    comparisons(),
    lambda inner: inner.map(_negated) | st.builds(_joined, inner, inner, st.sampled_from("&|")),
    max_leaves=6,
)


@given(QUERIES, ROWS)
def test_a_query_means_what_the_same_python_means(query: tuple[str, Test], row: Mapping[str, Any]) -> None:
    assert is_true(query[0], row) == query[1](row)


@given(
    st.lists(comparisons(), min_size=2, max_size=4),
    st.lists(st.sampled_from("&|"), min_size=3, max_size=3),
    ROWS,
)
def test_precedence_without_parentheses(
    parts: list[tuple[str, Test]], signs: list[str], row: Mapping[str, Any]
) -> None:
    text = parts[0][0]
    groups = [[parts[0][1](row)]]
    for sign, (more, holds) in zip(signs, parts[1:], strict=False):
        text += f" {sign} {more}"
        if sign == "|":
            groups.append([])
        groups[-1].append(holds(row))
    assert is_true(text, row) == any(map(all, groups))


def _refusal(text: str) -> str:
    """The message if a query cannot be parsed; else what it is for an empty row, which is true or false."""
    try:
        return str(is_true(text, {}))
    except InvalidQueryError as error:
        return str(error)


@given(st.text(max_size=30) | st.text("abc.=<>&|~()[],'\"` 123-:/Tinot", max_size=20))
def test_any_text_is_parsed_or_refused_with_a_place(text: str) -> None:
    said = _refusal(text)
    assert said in ("True", "False") or "^" in said


@given(st.dates(date(1000, 1, 1)), st.dates(date(1000, 1, 1)))
def test_days_are_ordered_as_days(a: date, b: date) -> None:
    for form in ("%d/%m/%Y", "%Y-%m-%d"):
        row = {"info.start_date": a.strftime(form)}
        for sign in ("==", "!=", "<", "<=", ">", ">="):
            assert is_true(f"info.start_date {sign} {b.isoformat()}", row) == SIGNS[sign](a, b)


ZONES = st.integers(-12, 12).map(lambda hours: timezone(timedelta(hours=hours)))


@given(
    st.datetimes(datetime(1900, 1, 1), timezones=ZONES), st.datetimes(datetime(1900, 1, 1), timezones=ZONES)
)
def test_moments_are_ordered_as_moments(a: datetime, b: datetime) -> None:
    a, b = a.replace(microsecond=123000), b.replace(microsecond=0)
    row = {"info.when": a.isoformat(timespec="milliseconds")}
    assert is_true(f"info.when < {b.isoformat()}", row) == (a < b)
