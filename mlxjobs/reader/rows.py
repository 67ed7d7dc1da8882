"""One row of a result: a dictionary of flat keys, whose series and artifacts are read when touched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlxjobs.errors import InvalidKeyError
from mlxjobs.logger.values import as_plain
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.table import RunTable


class DataDict(Mapping[str, Any]):
    """A run, or what was worked out of several: flat key -> value.

    A series or an artifact is shown as LAZYDATA or ARTIFACT, read when its key is asked for, and
    then kept with the row.

    Args:
        values: values of its own, which hide those of the run.
        table: the runs; None: the row has only values of its own.
        position: which run it is.
    """

    __slots__ = ("_own", "_position", "_table")

    def __init__(
        self, values: Mapping[str, Any] | None = None, table: RunTable | None = None, position: int = 0
    ) -> None:
        self._own: dict[str, Any] | None = dict(values) if values is not None else None
        self._table = table
        self._position = position

    def __getitem__(self, key: str) -> Any:
        if self._own is not None and key in self._own:
            return self._own[key]
        if self._table is None:
            raise KeyError(key)
        try:
            value = self._table.load([self._position], key)[0]
        except InvalidKeyError:
            value = ABSENT
        if value is ABSENT:
            raise KeyError(key)
        if key in self._table.series:
            self._own = {**(self._own or {}), key: value}
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.flattened())

    def __len__(self) -> int:
        return len(self.flattened())

    def __contains__(self, key: object) -> bool:
        if self._own is not None and key in self._own:
            return True
        return self._table is not None and isinstance(key, str) and self.shown(key) is not ABSENT

    def __repr__(self) -> str:
        return repr(self.flattened())

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in self.flattened().items()
        )
        return f"<table>{cells}</table>"

    def shown(self, key: str) -> Any:
        """Return what is shown for a key, which loads nothing; ABSENT if the row does not have it."""
        if self._own is not None and key in self._own and not self.is_series(key):
            return self._own[key]
        if self._table is None:
            return ABSENT
        return self._table.cells([self._position], key)[0]

    def is_series(self, key: str) -> bool:
        """Tell whether a key is a series of the row's run, or of others beside it."""
        return self._table is not None and key in self._table.series

    def lists(self, key: str) -> bool:
        """Tell whether the row shows a key; to some, as `guard.code`, it only answers."""
        if self._own is not None and key in self._own:
            return True
        return self._table is not None and key in self._table.names and key in self

    def flattened(self) -> dict[str, Any]:
        """Return the row as a plain dictionary that loads nothing: LAZYDATA for series."""
        values = dict(self._own or {})
        if self._table is not None:
            for key in self._table.keys:
                if (value := self.shown(key)) is not ABSENT:
                    values[key] = value
        return {key: values[key] for key in sorted(values)} if self._table is not None else values

    _flattened = flattened

    def update(self, new: Mapping[str, Any]) -> None:
        """Set values of the row; the run is not changed."""
        self._own = {**(self._own or {}), **new}

    def copied(self, new: Mapping[str, Any] | None = None) -> DataDict:
        """Return the same row with some other values."""
        row = DataDict(self._own, self._table, self._position)
        if new:
            row.update(new)
        return row

    @property
    def source(self) -> tuple[RunTable, int] | None:
        """The runs and which of them this is; None if the row was worked out."""
        return None if self._table is None else (self._table, self._position)

    @property
    def own(self) -> Mapping[str, Any]:
        """The values that are the row's own, not its run's; series that were loaded among them."""
        return self._own or {}

    def _run(self) -> tuple[RunTable, int]:
        if self._table is None:
            raise InvalidKeyError("this row was worked out of others: it is not a run, and has no files")
        return self._table, self._position

    @property
    def log_dir(self) -> str:
        """The run directory, where it is now."""
        table, position = self._run()
        return table.path(position)

    def load_artifact(self, name: str, artifact_type: Any = None) -> Any:
        """Read an artifact of the run by its name, as `logger.load_artifacts` does."""
        table, position = self._run()
        return table.load_artifact(position, name, artifact_type)

    def load_checkpoint(self, name: str | None = None) -> Any:
        """Read a checkpoint of the run, by default the newest; this runs what the file says."""
        table, position = self._run()
        return table.load_checkpoint(position, name)


def hashable(value: Any) -> Any:
    """Return a value that can name a group: lists become tuples, and each NaN is the same."""
    value = as_plain(value)
    if isinstance(value, (list, tuple)):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, hashable(item)) for key, item in value.items())
    return math.nan if isinstance(value, float) and value != value else value
