"""Rows as tables of pandas, if it is there, and as a string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlxjobs.errors import MLXJobsError
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.rows import DataDict, hashable

if TYPE_CHECKING:
    import pandas

    from mlxjobs.reader.table import RunTable

_SHOWN_ROWS = 20
_SHOWN_WIDTH = 24


def import_pandas() -> Any:
    """Return pandas.

    Raises:
        MLXJobsError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MLXJobsError(
            "this needs pandas, which is not installed: pip install 'mlxjobs[data]'"
        ) from error
    return pandas


def _columns_of(rows: Sequence[DataDict], *, lazy: bool) -> dict[str, list[Any]]:
    """Return the columns of rows, sorted by name; None where a row has no value."""
    sources = [row.source for row in rows if row.source is not None]
    only_runs = len(sources) == len(rows)
    own = {key for row in rows for key in row.own}
    if only_runs and len({table for table, _ in sources}) == 1 and (not own or lazy):
        return _columns_of_runs(rows, sources[0][0], [position for _, position in sources], lazy=lazy)
    shown = [row.flattened() if lazy else {key: row[key] for key in row} for row in rows]
    keys = dict.fromkeys(key for row in shown for key in row)
    return {key: [row.get(key) for row in shown] for key in (sorted(keys) if only_runs else keys)}


def _columns_of_runs(
    rows: Sequence[DataDict], table: RunTable, positions: Sequence[int], *, lazy: bool
) -> dict[str, list[Any]]:
    """The same for rows that are runs of one table: by columns, without a dictionary for each row."""
    columns = {}
    for key in table.keys:
        if not lazy:
            values: Sequence[Any] = table.load(positions, key)
        else:
            values = table.cells(positions, key)
        if any(value is not ABSENT for value in values):
            columns[key] = [None if value is ABSENT else value for value in values]
    for key in {key for row in rows for key in row.own} - table.series:
        values = [row.shown(key) for row in rows]
        columns[key] = [None if value is ABSENT else value for value in values]
    return {key: columns[key] for key in sorted(columns)}


def frame_of(rows: Sequence[DataDict], *, lazy: bool) -> pandas.DataFrame:
    """Return rows as a DataFrame of pandas."""
    pd = import_pandas()
    columns = _columns_of(rows, lazy=lazy) if rows else {}
    frame: pandas.DataFrame = pd.DataFrame({key: _cells(pd, values) for key, values in columns.items()})
    return frame


def _cells(pd: Any, values: list[Any]) -> Any:
    """Lists and arrays in cells stay what they are."""
    if any(isinstance(value, (list, tuple, dict)) or hasattr(value, "__array__") for value in values):
        column = pd.Series([None] * len(values), dtype=object)
        for place, value in enumerate(values):
            column.iat[place] = value
        return column
    return values


def indexed(frame: pandas.DataFrame, keys: Sequence[str]) -> pandas.DataFrame:
    """Return a frame with some of its columns as index; lists there become tuples."""
    pd = import_pandas()
    if frame.empty:
        return frame
    columns = [
        pd.Index([hashable(value) for value in frame[key]], name=key, tupleize_cols=False) for key in keys
    ]
    index = columns[0] if len(columns) == 1 else pd.MultiIndex.from_arrays(columns)
    rest: pandas.DataFrame = frame.drop(columns=list(keys))
    rest.index = index
    return rest


def grouped_frame(parts: Mapping[tuple[Any, ...], Any], group_keys: Sequence[str]) -> pandas.DataFrame:
    """Return the frames of groups as one, the values of the groups as its first indices."""
    pd = import_pandas()
    if not parts:
        empty: pandas.DataFrame = pd.DataFrame()
        return empty
    frames = [part.assign(**{}) for part in parts.values()]
    index = pd.MultiIndex.from_tuples(
        [(*key, place) for key, frame in zip(parts, frames, strict=True) for place in range(len(frame))],
        names=[*group_keys, None],
    )
    frame = pd.concat(frames, ignore_index=True)
    frame.index = index
    try:
        sorted_frame: pandas.DataFrame = frame.sort_index(axis=0)
    except TypeError:  # values that have no order among each other
        sorted_frame = frame
    return sorted_frame


def shown_table(rows: Sequence[DataDict], *, first: Sequence[str] = (), html: bool = False) -> str:
    """Return rows as a string for people: as pandas shows them, or plainly without it."""
    try:
        frame = frame_of(rows, lazy=True)
    except MLXJobsError:
        return _plain_table(rows)
    if first:
        frame = indexed(frame, first)
    return str(frame._repr_html_()) if html else str(frame)


def _plain_table(rows: Sequence[DataDict]) -> str:
    columns = _columns_of(rows[:_SHOWN_ROWS], lazy=True) if rows else {}
    lines = []
    for key, values in columns.items():
        cells = [str(value)[:_SHOWN_WIDTH] for value in values[:4]]
        lines.append(f"{key:40} {'  '.join(cells)}{'  ...' if len(values) > 4 else ''}")
    return "\n".join([*lines, f"[{len(rows)} rows]"])
