"""A list of rows that is a table too: rows by number, columns by name, each loaded when touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from mlxjobs.errors import InvalidKeyError, InvalidMapError
from mlxjobs.reader import query
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.pandas_frames import frame_of, shown_table
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.table import RunTable

if TYPE_CHECKING:
    import pandas
    from typing_extensions import Self


class RowList(list[DataDict]):
    """The rows of a result and their columns: what `DataFrame` does not change.

    Attributes:
        whole: the rows that a group was taken from, which tell what keys there are; None: it is not a group.
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
        if values and all(value is ABSENT for value in values):
            self.check([key])
        return [None if value is ABSENT else value for value in values]

    def shown(self, key: str) -> list[Any]:
        """Return a column as it is shown, which loads nothing; ABSENT where a row does not have it."""
        own = [ABSENT if row.is_series(key) else row.own.get(key, ABSENT) for row in self]
        return self._filled(own, lambda table, positions: table.cells(positions, key))

    def _load(self, key: str) -> list[Any]:
        """A column, loaded; ABSENT where a row does not have it."""
        own = [row.own.get(key, ABSENT) for row in self]
        return self._filled(own, lambda table, positions: table.load(positions, key))

    def _filled(
        self, values: list[Any], ask: Callable[[RunTable, Sequence[int]], Sequence[Any]]
    ) -> list[Any]:
        """The values, with those of the runs where one is ABSENT; the runs are asked in one go."""
        wanted: dict[RunTable, dict[int, int]] = {}  # table -> place here -> position there
        for place, row in enumerate(self):
            if values[place] is ABSENT and row.source is not None:
                table, position = row.source
                wanted.setdefault(table, {})[place] = position
        for table, positions in wanted.items():
            for place, value in zip(positions, ask(table, list(positions.values())), strict=True):
                values[place] = value
        return values

    def check(self, keys: Iterable[str]) -> None:
        """Refuse keys that no row has, of no group; where there are no rows, nothing is refused.

        Raises:
            InvalidKeyError: there is one; it says what is near.
        """
        for key in keys if self else ():
            if all(value is ABSENT for value in self.shown(key)):
                if self.whole is not None:
                    self.whole.check([key])
                    continue
                raise InvalidKeyError(f"no row has the key {key!r}{query.near(key, self.keys())}")

    def keys(self) -> list[str]:
        """Return the names of all columns, sorted."""
        sources: dict[RunTable, list[int]] = {}
        for row in self:
            if row.source is not None:
                table, position = row.source
                sources.setdefault(table, []).append(position)
        keys = {key for row in self for key in row.own}
        for table, positions in sources.items():
            for key in table.keys:
                column = table.runs.column(key)
                if any(column[position] is not ABSENT for position in positions):
                    keys.add(key)
        return sorted(keys)

    def toPandas(self, lazy: bool = True) -> pandas.DataFrame:
        """Return a DataFrame of pandas, a row for each row.

        Args:
            lazy: show series and artifacts as LAZYDATA and ARTIFACT instead of loading them.
        """
        return frame_of(self, lazy=lazy)

    toPandasDF = toPandas

    def diff(self, start_key: str = "config") -> list[str]:
        """Return the columns that begin with `start_key` and are not the same in all rows."""
        # as they are written: 1 is neither 1.0 nor true for a program, and NaN is NaN
        return [
            key
            for key in self.keys()
            if key.startswith(start_key) and len(set(map(repr, self.shown(key)))) > 1
        ]

    config_diff = diff
