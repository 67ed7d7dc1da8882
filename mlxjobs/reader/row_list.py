"""A list of rows that is a table too: rows by number, columns by name, each loaded when touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from mlxjobs.errors import InvalidKeyError, InvalidMapError
from mlxjobs.reader import query
from mlxjobs.reader.columns import MISSING
from mlxjobs.reader.pandas_frames import frame_of, shown_table
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.table import RunTable

if TYPE_CHECKING:
    import pandas
    from typing_extensions import Self


class RowList(list[DataDict]):
    """The rows of a result and their columns: what `DataFrame` does not change.

    Attributes:
        whole: the rows that a group was taken from, which tell what keys there are; None: it is no group.
    """

    whole: Self | None = None

    def __init__(self, rows: Iterable[DataDict] = ()) -> None:
        super().__init__(rows)
        for row in self:
            if not isinstance(row, DataDict):
                raise InvalidMapError(f"a row is a DataDict, not {type(row).__name__}")

    @overload  # type: ignore[override]
    def __getitem__(self, index: int) -> DataDict: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    @overload
    def __getitem__(self, index: str) -> list[Any]: ...
    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, str):
            return self.column(index)
        return (
            type(self)(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)
        )

    def __repr__(self) -> str:
        return shown_table(self)

    def _repr_html_(self) -> str:
        return shown_table(self, html=True)

    # -- columns ------------------------------------------------------------------------------

    def column(self, key: str) -> list[Any]:
        """Return a column, loaded; None where a row does not have it.

        Raises:
            InvalidKeyError: no row has it.
        """
        values = self._load(key)
        if values and all(value is MISSING for value in values):
            self.check([key])
        return [None if value is MISSING else value for value in values]

    def shown(self, key: str) -> list[Any]:
        """Return a column as it is shown, which loads nothing; MISSING where a row does not have it."""
        own = [MISSING if row.is_series(key) else row.own.get(key, MISSING) for row in self]
        return self._filled(own, lambda table, positions: table.cells(positions, key))

    def _load(self, key: str) -> list[Any]:
        """A column, loaded; MISSING where a row does not have it."""
        own = [row.own.get(key, MISSING) for row in self]
        return self._filled(own, lambda table, positions: table.load(positions, key))

    def _filled(
        self, values: list[Any], ask: Callable[[RunTable, Sequence[int]], Sequence[Any]]
    ) -> list[Any]:
        """The values, with those of the runs where one is MISSING; the runs are asked in one go."""
        wanted: dict[int, list[int]] = {}
        for place, row in enumerate(self):
            if values[place] is MISSING and row.source is not None:
                wanted.setdefault(id(row.source[0]), []).append(place)
        for places in wanted.values():
            source = self[places[0]].source
            assert source is not None  # noqa: S101 - as chosen above
            positions = [self[place].source[1] for place in places]  # type: ignore[index]
            for place, value in zip(places, ask(source[0], positions), strict=True):
                values[place] = value
        return values

    def check(self, keys: Iterable[str]) -> None:
        """Refuse keys that no row has, nor one of the other groups; where there are no rows, none is refused.

        Raises:
            InvalidKeyError: there is one; it says what is near.
        """
        for key in keys if self else ():
            if all(value is MISSING for value in self.shown(key)):
                if self.whole is not None:
                    self.whole.check([key])
                    continue
                raise InvalidKeyError(f"no row has the key {key!r}{query.near(key, self.keys())}")

    def keys(self) -> list[str]:
        """Return the names of all columns, sorted."""
        tables = {id(row.source[0]): row.source[0] for row in self if row.source is not None}
        found = {key for row in self for key in row.own}
        for table in tables.values():
            positions = [row.source[1] for row in self if row.source is not None and row.source[0] is table]
            for key in table.keys:
                column = table.snapshot.column(key)
                if any(column[position] is not MISSING for position in positions):
                    found.add(key)
        return sorted(found)

    def toPandas(self, lazy: bool = True) -> pandas.DataFrame:
        """Return a DataFrame of pandas, a row for each row.

        Args:
            lazy: show series and artifacts as LAZYDATA and ARTIFACT instead of loading them.
        """
        return frame_of(self, lazy=lazy)

    toPandasDF = toPandas

    def diff(self, start_key: str = "config") -> list[str]:
        """Return the columns that begin with `start_key` and are not the same in all rows."""
        found = []
        for key in self.keys():
            if key.startswith(start_key):
                # as they are written: 1 is neither 1.0 nor true for a program, and NaN is NaN
                shown = set(map(repr, self.shown(key)))
                if len(shown) > 1:
                    found.append(key)
        return found

    config_diff = diff
