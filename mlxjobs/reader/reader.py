"""The Reader: the runs of a log directory, queried.

reader = mlxpy.Reader("./logs")
results = reader.filter("info.status == 'COMPLETE' & config.optimizer.lr <= 1e-1")
results[:]["train.loss"]
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.errors import InvalidKeyError, MLXJobsError, RunError
from mlxjobs.reader import matching, query
from mlxjobs.reader.frame import DataFrame
from mlxjobs.reader.index import Index, IndexedRuns
from mlxjobs.reader.pandas_frames import import_pandas
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.series import Long, add_series, superseded
from mlxjobs.reader.table import RunTable
from mlxjobs.system.console import counted, shorten

if TYPE_CHECKING:
    import pandas

_FORMATS = ("datadict", "dataframe", "pandas")
_METRICS_FORMATS = ("pandas", "polars", "arrow", "arrays")
_SHOWN = 5


class UnreadableRunWarning(UserWarning):
    """Something in a log directory cannot be read; everything else is served."""


class UncertainRunWarning(UserWarning):
    """Nobody could say whether a run is still as it is recorded."""


class Parser(abc.ABC):
    """The base class of a user's own parsers, as in MLXP."""

    @abc.abstractmethod
    def parse(self, query: str) -> Callable[[Mapping[str, Any]], Any]:
        """Return what tells whether a run, a dictionary of flat keys, matches."""


class DefaultParser(Parser):
    """The parser of the language that `docs/reader.md` describes."""

    def parse(self, query: str) -> Callable[[Mapping[str, Any]], Any]:
        """Return what tells whether a dictionary of flat keys matches.

        Raises:
            InvalidQueryError: the query cannot be parsed.
        """
        parsed = _parse(query)
        return lambda row: matching.matches(parsed, row)


_parse = query.parse


class Reader:
    """Reads the runs of a log directory, ours or MLXP's; fast, as it keeps an index.

    A Reader shows the runs as they are when it is made: schedulers are asked, in one question each, what
    became of those that have not ended. `filter` looks again at what these have written, and `refresh`
    does all anew.

    Args:
        src_dir: the log directory.
        dst_dir: where to keep the index; by default in the log directory, or, if that cannot be
            written, in the user's cache.
        parser: parses queries instead of ours.
        refresh: look at the runs; False: take the index as it is, if there is one, and ask nobody.
        reload: forget the index, and read everything.

    Raises:
        RunError: there is no such directory, or it cannot be read.
    """

    # whether to ask schedulers whose class is in a user's project: a run directory says which it is
    _runs_code = False

    def __init__(
        self,
        src_dir: str | Path,
        dst_dir: str | Path | None = None,
        parser: Parser | None = None,
        refresh: bool = True,
        reload: bool = False,
    ) -> None:
        self.src_dir = str(Path(src_dir).absolute())
        self.dst_dir = None if dst_dir is None else str(Path(dst_dir).absolute())
        self.parser = parser
        self._index = Index(Path(src_dir), None if dst_dir is None else Path(dst_dir))
        self._told: set[int] = set()
        self._doubts: dict[int, str] = {}
        stored = self._index.stored() if not refresh and not reload else None
        self._show(stored if stored is not None else self._sync(anew=reload))

    def _sync(self, *, anew: bool = False, again: bool = True) -> IndexedRuns:
        """Read what changed, and ask what became of the runs that have not ended."""
        runs = self._index.sync(anew=anew)
        log_ids = [log_id for log_id in sorted(runs.live) if Path(self.src_dir, str(log_id)).is_dir()]
        if not log_ids:
            self._doubts = {}
            return runs
        from mlxjobs.jobs.look import look_at_runs  # what it imports is not needed for runs that have ended

        try:
            seen = look_at_runs(Path(self.src_dir), log_ids, run_code=self._runs_code)
        except RunError:
            if not again:
                raise
            return self._sync(again=False)  # a run was removed at this moment
        self._doubts = {run.run.log_id: run.doubt for run in seen if run.doubt}
        if self._doubts:
            message = f"{counted(len(self._doubts), 'run')} may not be as recorded: {_listed(self._doubts)}"
            warnings.warn(message, UncertainRunWarning, stacklevel=3)
        return self._index.recheck(runs)

    def _show(self, runs: IndexedRuns) -> None:
        self._table = RunTable(runs, lambda key, values: self._index.remember(runs, key, values))
        news = {log_id: why for log_id, why in runs.problems.items() if log_id not in self._told}
        self._told.update(news)
        if news:
            message = (
                f"{len(news)} of {counted(len(runs) + len(news), 'run')} cannot be read: {_listed(news)}"
            )
            warnings.warn(message, UnreadableRunWarning, stacklevel=3)

    def refresh(self) -> Reader:
        """Look at all runs again, and at new ones; returns the same Reader."""
        self._show(self._sync())
        return self

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"Reader({self.src_dir!r}): {len(self)} runs"

    @property
    def problems(self) -> dict[int, str]:
        """The runs that cannot be read, and why."""
        return dict(self._table.runs.problems)

    @property
    def doubts(self) -> dict[int, str]:
        """The runs of which nobody could say whether they are still as recorded: since when, and why."""
        return dict(self._doubts)

    @property
    def live(self) -> list[int]:
        """The runs that have not ended, or never said so."""
        return sorted(self._table.runs.live)

    def types(self) -> dict[str, str]:
        """Return all fields with their types, sorted; needs no pandas."""
        return self._table.types()

    @property
    def fields(self) -> pandas.DataFrame:
        """All fields with their types, as a DataFrame of pandas."""
        return self._typed(self.types())

    @property
    def searchable(self) -> pandas.DataFrame:
        """The fields that a query can compare, as a DataFrame of pandas; series by `train.loss.last`."""
        types = {key: kind for key, kind in self.types().items() if key not in self._table.series}
        names = [f"{key}.{name}" for key in self._table.series for name in query.STATISTICS]
        return self._typed({**types, **dict.fromkeys(sorted(names), "of a series")})

    def _typed(self, types: dict[str, str]) -> pandas.DataFrame:
        frame: pandas.DataFrame = import_pandas().DataFrame(
            {"Type": list(types.values())}, index=list(types), dtype=object
        )
        frame.index.name = "Fields"
        return frame

    # -- queries ------------------------------------------------------------------------------

    def filter(self, query_string: str = "", result_format: str = "datadict") -> Any:
        """Return the runs that match a query.

        Args:
            query_string: as `docs/reader.md` describes; empty: all runs.
            result_format: "datadict" (or "dataframe"): a `DataFrame` of ours, which is a list;
                "pandas": one of pandas, with all series loaded.

        Raises:
            InvalidQueryError: the query cannot be parsed; the message shows where.
            InvalidKeyError: no run has a field; the message shows it and what is near.
            MLXJobsError: there is no such format, or pandas is not installed.
        """
        if result_format not in _FORMATS:
            raise MLXJobsError(
                f"result_format {result_format!r} is not one of {', '.join(map(repr, _FORMATS))}"
            )
        table = self._current()
        rows = DataFrame(DataDict(None, table, position) for position in self._select(table, query_string))
        return rows.toPandas(lazy=False) if result_format == "pandas" else rows

    def _current(self) -> RunTable:
        runs = self._index.recheck(self._table.runs)
        if runs is not self._table.runs:
            self._show(runs)
        return self._table

    def _select(self, table: RunTable, query_string: str) -> list[int]:
        if self.parser is not None and query_string:
            test = self.parser.parse(query_string)
            rows = (DataDict(None, table, position).flattened() for position in range(len(table)))
            return [position for position, row in enumerate(rows) if test(row)]
        parsed = query.parse(query_string)
        if len(table):
            query.check_fields(parsed, table.values, table.series)
        return matching.select(parsed, len(table), table.column, table.is_costly)

    # -- metrics ------------------------------------------------------------------------------

    def metrics(
        self,
        query_string: str,
        key: str,
        *,
        step: str | None = None,
        superseded: bool = False,
        result_format: str = "pandas",
    ) -> Any:
        """Return a series of all runs that match, as one long table: log_id, step, value.

        Args:
            query_string: as for `filter`.
            key: the series: "train.loss".
            step: the key of the same lines that gives the step; by default values are counted from 0.
            superseded: also the lines that a resumed run has repeated; a column `attempt` tells
                whose they are, "" for those that count.
            result_format: "pandas", "polars", "arrow", or "arrays": a dictionary of arrays.

        Raises:
            InvalidQueryError: the query cannot be parsed.
            InvalidKeyError: no run has a field of the query, the series, or the step.
            MLXJobsError: there is no such format, or its package is not installed.
        """
        if result_format not in _METRICS_FORMATS:
            allowed = ", ".join(map(repr, _METRICS_FORMATS))
            raise MLXJobsError(f"result_format {result_format!r} is not one of {allowed}")
        table = self._current()
        if key not in table.series and len(table):
            raise InvalidKeyError(f"no run has the series {key!r}{query.near(key, table.series)}")
        if step is not None and len(table):
            series = f"{table.log_of(key)}.{step}"
            if series not in table.series:
                raise InvalidKeyError(f"no run has the series {series!r}{query.near(series, table.series)}")
        long = Long(attempt=[] if superseded else None)
        self._fill(long, table, self._select(table, query_string), key, step)
        return _converted(long.columns(), result_format)

    def _fill(self, long: Long, table: RunTable, positions: list[int], key: str, step: str | None) -> None:
        unfinished, bad = [], []
        for position in positions:
            series = table.source(position, key)
            if series is None:
                continue
            source, inner = series
            log_id = table.runs.log_ids[position]
            if long.attempt is not None:
                for attempt, path in superseded(table.path(position), Path(source.path).stem):
                    add_series(long, log_id, source.at(path), inner, step=step, attempt=attempt)
            add_series(long, log_id, source, inner, step=step)
            if source.torn and log_id not in table.runs.live:
                unfinished.append(log_id)
            if source.bad:
                bad.append(log_id)
        log_name = key.partition(".")[0]
        _tell(f"the last line of {log_name}.json is not finished, and left out", unfinished)
        _tell(f"there are lines in {log_name}.json that are not JSON, and left out", bad)


def _listed(reasons: Mapping[int, str]) -> str:
    return "; ".join(shorten([f"run {log_id}: {why}" for log_id, why in reasons.items()], _SHOWN))


def _tell(what: str, log_ids: list[int]) -> None:
    if log_ids:
        more = " ..." if len(log_ids) > _SHOWN else ""
        shown = ", ".join(map(str, log_ids[:_SHOWN]))
        warnings.warn(
            f"{what}, in {counted(len(log_ids), 'run')}: {shown}{more}", UnreadableRunWarning, stacklevel=4
        )


def _converted(columns: dict[str, Any], result_format: str) -> Any:
    """The columns in another package's form, without a copy where it can be had."""
    if result_format == "arrays":
        return columns
    if result_format == "pandas":
        pd = import_pandas()
        return pd.DataFrame({key: _numpy(values) for key, values in columns.items()}, copy=False)
    package = {"polars": "polars", "arrow": "pyarrow"}[result_format]
    try:
        module = __import__(package)
    except ImportError as error:
        message = f"this needs {package}, which is not installed: pip install {package}"
        raise MLXJobsError(message) from error
    make = module.table if result_format == "arrow" else module.DataFrame
    return make({key: _numpy(values) for key, values in columns.items()})


def _numpy(values: Any) -> Any:
    if isinstance(values, list):
        return values
    import numpy as np

    return (
        np.frombuffer(values, dtype=values.typecode) if len(values) else np.array([], dtype=values.typecode)
    )
