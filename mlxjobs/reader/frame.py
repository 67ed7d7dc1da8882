"""Results of the Reader: a list of rows that is a table too, and its groups.

The names are those of MLXP 0.1 (`groupBy`, `toPandasDF`, `config_diff`) and of MLXP 1.0 (`groupby`,
`toPandas`, `diff`); both do the same, but for what each generation's programs rely on.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mlxjobs.errors import InvalidKeyError, InvalidMapError
from mlxjobs.logger.values import as_plain
from mlxjobs.reader import matching, query
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.guard import check_group, warn_of
from mlxjobs.reader.maps import (
    MAP_TYPES,
    AggregationMap,
    aggregated,
    as_rows,
    by_column,
    by_row,
    by_value,
    together,
)
from mlxjobs.reader.pandas_frames import frame_of, grouped_frame, indexed, shown_table
from mlxjobs.reader.row_list import RowList
from mlxjobs.reader.rows import DataDict, hashable
from mlxjobs.reader.table import LAZYDATA

if TYPE_CHECKING:
    import pandas

_Keys = str | Sequence[str]


class DataFrame(RowList):
    """A list of rows, which are dictionaries with flat keys.

    `results[0]` is a row, `results[:3]` some rows, `results[:]["train.loss"]` a column, loaded.
    """

    _warned = False

    # -- rows ---------------------------------------------------------------------------------

    def filter(self, filter_map: Any, bygroups: _Keys | None = None) -> DataFrame:
        """Return the rows that a query or a map lets through.

        Args:
            filter_map: a query; or (function, keys), where the function takes columns and returns
                a list of truth values; or a function of a row.
            bygroups: apply it to each group of these keys instead.

        Raises:
            InvalidMapError: the map gives something else.
            InvalidQueryError: the query cannot be parsed.
            InvalidKeyError: no row has a key.
        """
        if bygroups:
            rows_of_groups: DataFrame = self.groupby(bygroups).filter(filter_map, ungroup=True)
            return rows_of_groups
        if isinstance(filter_map, str):
            return self._matching(filter_map)
        if callable(filter_map):
            return DataFrame(row for row in self if filter_map(row))
        if not self:
            return self
        rows, reducing = self._as_rows(together(filter_map, self.column))
        if reducing or len(rows.keys()) != 1:
            raise InvalidMapError(
                "a filter gives one truth value for each row: a list as long as the columns"
            )
        (key,) = rows.keys()
        return DataFrame(row for row, keep in zip(self, rows, strict=True) if bool(keep[key]))

    def _matching(self, text: str) -> DataFrame:
        parsed = query.parse(text)
        rows = list(self)

        def column(name: str, positions: Sequence[int]) -> list[Any]:
            shown = DataFrame(rows[position] for position in positions).shown(name)
            return [ABSENT if value is LAZYDATA else as_plain(value) for value in shown]

        if self:
            self._check_fields(parsed)
        return DataFrame(rows[position] for position in matching.select(parsed, len(rows), column))

    def _check_fields(self, parsed: query.Query) -> None:
        keys = self.keys()
        series = {key for key in keys if any(row.is_series(key) for row in self)}
        names = {field.name for field in parsed.fields()} - {*keys, *series}
        # a statistic of a series is not worked out before the query asks for it
        others = {name for name in names if name.rpartition(".")[0] not in series}
        more = {name for name in others if any(name in row for row in self)}
        try:
            query.check_fields(parsed, {*keys, *more} - series, series)
        except InvalidKeyError:
            if self.whole is None:
                raise
            self.whole._check_fields(parsed)

    def sort(self, by: _Keys, ascending: bool = True) -> DataFrame:  # type: ignore[override]
        """Return the rows sorted by one column or several; what has no value, or NaN, comes last."""
        keys = _list(by)
        self.check(keys)
        places = list(range(len(self)))
        for key in reversed(keys):
            values = [as_plain(value) for value in self._load(key)]
            order = [_sort_key(value) for value in values]
            places.sort(key=order.__getitem__, reverse=not ascending)
            # NaN too, or the largest first would begin with what diverged
            places.sort(key=[v is ABSENT or v is None or v != v for v in values].__getitem__)
        return DataFrame(self[place] for place in places)

    def merge(self, new_df: Sequence[DataDict]) -> DataFrame:
        """Return the rows with the columns of as many other rows added.

        Raises:
            InvalidMapError: there are more or fewer of them.
        """
        if len(new_df) != len(self):
            raise InvalidMapError(f"{len(self)} rows cannot be merged with {len(new_df)}: give as many")
        return DataFrame(a.copied({**a.own, **_columns_of(b)}) for a, b in zip(self, new_df, strict=True))

    def select(self, keys: _Keys) -> DataFrame:
        """Return the rows with these columns only; nothing is loaded before it is touched."""
        wanted = _list(keys)
        self.check(wanted)
        columns = {key: self._load(key) for key in wanted}
        return DataFrame(
            DataDict({key: columns[key][i] for key in wanted if columns[key][i] is not ABSENT})
            for i in range(len(self))
        )

    # -- groups -------------------------------------------------------------------------------

    def groupby(self, group_keys: _Keys) -> GroupedDataFrame:
        """Group the rows by the values of one column or several; lists are values too.

        Raises:
            InvalidKeyError: no row has a key.
        """
        return self._grouped(group_keys, hashable)

    def _grouped(self, group_keys: _Keys, name: Callable[[Any], Any]) -> GroupedDataFrame:
        keys = _list(group_keys)
        self.check(keys)
        columns = [[name(value) for value in self._shown(key)] for key in keys]
        groups: dict[tuple[Any, ...], DataFrame] = {}
        for place, row in enumerate(self):
            groups.setdefault(tuple(column[place] for column in columns), DataFrame()).append(row)
        for group in groups.values():
            group.whole = self
        return GroupedDataFrame(keys, groups)

    def _shown(self, key: str) -> list[Any]:
        """A column as values to group by; series are not loaded."""
        is_series = any(row.is_series(key) for row in self)
        values = [LAZYDATA] * len(self) if is_series else self._load(key)
        return [None if value is ABSENT else value for value in values]

    def groupBy(self, list_group_keys: _Keys) -> GroupedDataFrame:
        """Group as `groupby`, but the names of the groups are strings, as in MLXP 0.1."""
        return self._grouped(list_group_keys, lambda value: str(hashable(value)))

    # -- maps ---------------------------------------------------------------------------------

    def aggregate(self, maps: Any) -> DataFrame:
        """Return one row: what maps make of whole columns.

        Says so, once, if the rows are runs that should not be put together (see `guard`).

        Args:
            maps: (function, keys[, names]) or `AvgStd("train.loss")` and the like, or a list.

        Raises:
            InvalidMapError: a map cannot be applied.
            InvalidKeyError: no row has a key.
        """
        if not self._warned:
            self._warned = True
            warn_of([((), check_group(self))], [])
        return DataFrame([DataDict(aggregated(maps, self.column, len(self)))])

    def apply(self, maps: Any, map_type: str = "Generic") -> DataFrame:
        """Apply maps to whole columns together (Generic), one by one (Columnwise), to rows, or to values.

        Raises:
            InvalidMapError: a map cannot be applied.
            InvalidKeyError: no row has a key.
        """
        if map_type not in MAP_TYPES:
            raise InvalidMapError(f"map_type {map_type!r} is not one of {', '.join(MAP_TYPES)}")
        if map_type == "Generic":
            return self._as_rows(together(maps, self.column))[0]
        if map_type == "Columnwise":
            return self._as_rows(by_column(maps, self.column))[0]
        if map_type == "Rowwise":
            return DataFrame(map(DataDict, by_row(maps, self.column, len(self))))
        return self.map(maps)

    def transform(self, maps: Any) -> DataFrame:
        """Apply maps to columns; each gives a column of the same length."""
        rows, reducing = self._as_rows(by_column(maps, self.column))
        if reducing:
            raise InvalidMapError(
                "a transformation gives a column as long as the one it takes: see aggregate"
            )
        return rows

    def map(self, maps: Any) -> DataFrame:
        """Apply maps to each value of columns."""
        return DataFrame(map(DataDict, by_value(maps, self.column, len(self))))

    def _as_rows(self, columns: dict[str, Any]) -> tuple[DataFrame, bool]:
        rows = as_rows(columns, len(self))
        return DataFrame(map(DataDict, rows if rows is not None else [columns])), rows is None


class GroupedDataFrame:
    """Groups of rows: a dictionary of tuples of values -> `DataFrame`, in the order of the rows.

    Attributes:
        group_keys: the columns whose values make the groups.
        grouped_dict: the groups.
    """

    def __init__(self, group_keys: _Keys, grouped_dict: Mapping[tuple[Any, ...], Any]) -> None:
        self.group_keys = _list(group_keys)
        self.grouped_dict: dict[tuple[Any, ...], Any] = dict(grouped_dict)
        self._warned = False

    @property
    def group_vals(self) -> list[tuple[Any, ...]]:
        """The values of the groups."""
        return list(self.grouped_dict)

    @property
    def groups_size(self) -> int:
        """How many groups there are."""
        return len(self.grouped_dict)

    def __len__(self) -> int:
        return len(self.grouped_dict)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.grouped_dict)

    def __getitem__(self, key: Any) -> Any:
        if (group := self._find(key)) is not None:
            return self.grouped_dict[group]
        raise InvalidKeyError(
            f"there is no group {key!r}; there are {', '.join(map(str, self.grouped_dict))}"
        )

    def _find(self, key: Any) -> tuple[Any, ...] | None:
        """The group that is meant by its values, by the only one, or by how they read."""
        wanted = hashable(key) if isinstance(key, (tuple, list)) else (hashable(key),)
        if wanted in self.grouped_dict:
            return cast("tuple[Any, ...]", wanted)
        read = {tuple(map(str, values)): values for values in self.grouped_dict}
        return read.get(tuple(map(str, wanted)))

    def __repr__(self) -> str:
        return shown_table(self.ungroup(), first=self.group_keys) if self._flat else repr(self.grouped_dict)

    def _repr_html_(self) -> str:
        return shown_table(self.ungroup(), first=self.group_keys, html=True) if self._flat else repr(self)

    @property
    def _flat(self) -> bool:
        return all(isinstance(group, DataFrame) for group in self.grouped_dict.values())

    def items(self) -> ItemsView[tuple[Any, ...], Any]:
        """Return the groups with their values."""
        return self.grouped_dict.items()

    def keys(self) -> KeysView[tuple[Any, ...]]:
        """Return the values of the groups."""
        return self.grouped_dict.keys()

    def toPandas(self, lazy: bool = True) -> pandas.DataFrame:
        """Return a DataFrame of pandas with the values of the groups as its first indices."""
        parts = {key: group.toPandas(lazy=lazy) for key, group in self.items()}
        return grouped_frame(parts, self.group_keys)

    def toPandasDF(self, lazy: bool = True) -> pandas.DataFrame:
        """Return a DataFrame of pandas with the columns of the groups as its index, as MLXP 0.1."""
        if not self._flat:  # groups of groups: the inner columns stay columns
            frame: pandas.DataFrame = self.ungroup().toPandasDF(lazy)
            return frame
        return indexed(frame_of(self.ungroup(), lazy=lazy), self.group_keys)

    def ungroup(self) -> Any:
        """Return all rows, with the values of their groups as columns."""
        if not self._flat:
            inner = {key: group.ungroup() for key, group in self.items()}
            return GroupedDataFrame(self.group_keys, inner)
        rows = []
        for key, group in self.items():
            values = dict(zip(self.group_keys, key, strict=True))
            rows += [row.copied({k: v for k, v in values.items() if not row.lists(k)}) for row in group]
        return DataFrame(rows)

    def select(self, key_list: Iterable[Any]) -> GroupedDataFrame:
        """Return the groups with these values, given as for `grouped[key]`, as far as there are any."""
        wanted = {self._find(key) for key in key_list}
        return GroupedDataFrame(self.group_keys, {k: group for k, group in self.items() if k in wanted})

    def aggregate(self, maps: Any, ungroup: bool = False) -> Any:
        """Aggregate each group to one row.

        Says so, once, if a group holds runs that should not be put together (see `guard`).

        Args:
            maps: as for `DataFrame.aggregate`; the objects of MLXP 0.1 give its flat result.
            ungroup: return a `DataFrame` with the values of the groups as columns.
        """
        if not self._warned and self._flat:
            self._warned = True
            warn_of([(key, check_group(group)) for key, group in self.items()], self.group_keys)
        for group in self.grouped_dict.values():
            group._warned = True
        every = maps if isinstance(maps, list) else [maps]
        flat = bool(every) and all(isinstance(part, AggregationMap) for part in every)
        return self._each(lambda group: group.aggregate(maps), ungroup or flat)

    def apply(self, maps: Any, map_type: str = "Generic", ungroup: bool = False) -> Any:
        """Apply maps to each group, as `DataFrame.apply`."""
        return self._each(lambda group: group.apply(maps, map_type), ungroup)

    def transform(self, maps: Any, ungroup: bool = False) -> Any:
        """Transform each group, as `DataFrame.transform`."""
        return self._each(lambda group: group.transform(maps), ungroup)

    def map(self, maps: Any, ungroup: bool = False) -> Any:
        """Apply maps to the values of each group, as `DataFrame.map`."""
        return self._each(lambda group: group.map(maps), ungroup)

    def filter(self, filter_map: Any, bygroups: _Keys | None = None, ungroup: bool = False) -> Any:
        """Filter each group, as `DataFrame.filter`; with `bygroups`, other groups of the same rows."""
        if bygroups:
            rows = self.ungroup().groupby(bygroups).filter(filter_map, ungroup=True)
            return rows if ungroup else rows.groupby(self.group_keys)
        return self._each(lambda group: group.filter(filter_map), ungroup)

    def sort(self, by: _Keys, ascending: bool = True, ungroup: bool = False) -> Any:
        """Sort each group, as `DataFrame.sort`."""
        return self._each(lambda group: group.sort(by, ascending), ungroup)

    def groupby(self, group_keys: _Keys) -> GroupedDataFrame:
        """Group each group again."""
        grouped: GroupedDataFrame = self._each(lambda group: group.groupby(group_keys), False)
        return grouped

    def _each(self, act: Callable[[Any], Any], ungroup: bool) -> Any:
        groups = GroupedDataFrame(self.group_keys, {key: act(group) for key, group in self.items()})
        return groups.ungroup() if ungroup else groups


def _columns_of(row: DataDict) -> dict[str, Any]:
    return {key: row[key] for key in row} if row.source is not None else dict(row.own)


def _list(keys: _Keys) -> list[str]:
    names = [keys] if isinstance(keys, str) else list(keys)
    if not all(isinstance(name, str) for name in names) or not names:
        raise InvalidKeyError(f"{keys!r}: give the name of a column, or a list of names")
    return names


def _sort_key(value: Any) -> tuple[int, Any]:
    """Numbers before strings before lists before all else: no two values that cannot be compared meet."""
    if isinstance(value, (int, float)):
        return (0, value) if value == value else (1, 0)
    if isinstance(value, (list, tuple)):
        return (3, [_sort_key(item) for item in value])
    return (2, value) if isinstance(value, str) else (4, str(value))


DataDictList = DataFrame
GroupedDataDicts = GroupedDataFrame
