"""Runs as plain tables, for the terminal and for files of other programs."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mlxjobs.errors import InvalidKeyError, MLXJobsError
from mlxjobs.logger.values import json_object
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.frame import DataFrame
from mlxjobs.reader.reader import Reader, UncertainRunWarning

# column -> values
Table = dict[str, list[Any]]

_FORMATS = ("csv", "parquet", "json")


class _TrustingReader(Reader):
    _runs_code = True


def trusting_reader(logs: Path) -> Reader:
    """Return the runs of a log directory as `mlxjobs ls` knows them: the user's own schedulers are asked too.

    Raises:
        RunError: there is no such directory, or it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertainRunWarning)  # `doubts` are shown in their own way
        return _TrustingReader(logs)


def list_runs(reader: Reader, query: str, *, sort: str | None, columns: Sequence[str]) -> Table:
    """Return the runs that match, one column for each field.

    Args:
        reader: the runs.
        query: which of them.
        sort: the column to sort by, of a series the last value; with a "-" before it, the largest first.
        columns: which columns; none: number, status, what differs in the configuration, and the
            last value of each series.

    Raises:
        MLXJobsError: the query, or a column, is wrong; it says what.
    """
    rows: DataFrame = reader.filter(query)
    series = [key for key in rows.keys() if rows[0].is_series(key)]  # noqa: SIM118 - a list, no dictionary
    if sort:
        key = sort.removeprefix("-")
        rows = rows.sort(f"{key}.last" if key in series else key, ascending=not sort.startswith("-"))
    wanted = [key.strip() for key in columns if key.strip()]
    if not wanted:
        wanted = ["info.log_id", "info.status", *rows.diff(), *(f"{key}.last" for key in series)]
    wanted = [f"{key}.last" if key in series else key for key in wanted]
    rows.check(wanted)
    return {key: _nones(rows.shown(key)) for key in wanted}


def _all_fields(reader: Reader, query: str) -> Table:
    """Return all fields of the runs that match; of series the last value."""
    rows: DataFrame = reader.filter(query)
    table: Table = {}
    for key in rows.keys():  # noqa: SIM118 - a list, not a dictionary
        if rows[0].is_series(key):
            table[f"{key}.last"] = _nones(rows.shown(f"{key}.last"))
        elif not key.startswith("artifact."):
            table[key] = _nones(rows.shown(key))
    return table


def _nones(values: Sequence[Any]) -> list[Any]:
    return [None if value is ABSENT else value for value in values]


def write_runs(reader: Reader, query: str, series: str | None, form: str, target: str) -> int:
    """Write the runs that match, or one of their series, to a file; returns the number of rows.

    Args:
        reader: the runs.
        query: which of them.
        series: write this series as one long table (log_id, step, value); None: write the runs.
        form: "csv", "json" (one object a line) or "parquet".
        target: the file; "-": standard output.

    Raises:
        MLXJobsError: the query is wrong, the file cannot be written, or a package is missing.
    """
    if form not in _FORMATS:
        raise InvalidKeyError(f"{form!r} is not one of {', '.join(_FORMATS)}")
    table = _all_fields(reader, query) if series is None else dict(_arrays(reader, query, series))
    try:
        {"csv": _csv, "json": _json, "parquet": _parquet}[form](table, target)
    except BrokenPipeError:  # whoever read it has seen enough
        raise
    except OSError as error:
        what = "standard output" if target == "-" else target
        raise MLXJobsError(f"{what} cannot be written: {error.strerror or error}") from error
    return len(next(iter(table.values()), []))


def _arrays(reader: Reader, query: str, series: str) -> Table:
    table: Table = reader.metrics(query, series, result_format="arrays")
    return table


@contextmanager
def _opened(target: str) -> Iterator[IO[str]]:
    if target == "-":
        yield sys.stdout
        sys.stdout.flush()
    else:
        with Path(target).open("w", encoding="utf-8", newline="") as stream:
            yield stream


def _csv(table: Table, target: str) -> None:
    with _opened(target) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in row])


def _json(table: Table, target: str) -> None:
    with _opened(target) as stream:
        for row in zip(*table.values(), strict=True):
            # NaN and infinities as strings, as in the metrics files
            line = json_object(dict(zip(table, row, strict=True)))
            # a terminal need not be UTF-8
            stream.write(json.dumps(line, ensure_ascii=target == "-") + "\n")


def _parquet(table: Table, target: str) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "pip install 'mlxjobs[parquet]'"
        raise MLXJobsError(f"this needs pyarrow, which is not installed: {hint}") from error
    columns = {}
    for key, values in table.items():
        try:
            columns[key] = pyarrow.array(values)
        # values of several types, or as large as no column holds
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
            strings = [None if value is None else json.dumps(value) for value in values]
            columns[key] = pyarrow.array(strings)
    pyarrow.parquet.write_table(pyarrow.table(columns), sys.stdout.buffer if target == "-" else target)
