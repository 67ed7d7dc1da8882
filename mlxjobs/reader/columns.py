"""The index's file: one SQLite database that is never changed, only replaced by a newer one.

So nobody needs a lock, which network file systems do not give reliably: a reader has opened one file
or the other, and of two writers the last one wins; what the other had found out is found out again,
since each run's entry says itself whether it is up to date (`Facts.mark`).

    blocks   the runs with number // 256 = block: number, mark, live mark; and those with a problem
    cells    a column of a block: its values in the order of the block's runs

Columns are read when they are asked for, so a query reads only what it speaks of.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from weakref import finalize

import orjson

from mlxjobs.system.atomic import move
from mlxjobs.system.files import aside_of

INDEX_SCHEMA = 2
BLOCK_SIZE = 256


class _Absent:
    """The cell of a run that has no value in a column."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT = _Absent()

_TABLES = """
CREATE TABLE blocks (block INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE cells (key TEXT NOT NULL, block INTEGER NOT NULL, content BLOB NOT NULL);
CREATE UNIQUE INDEX cells_of_key ON cells (key, block);
CREATE INDEX cells_of_block ON cells (block);
"""


def encode_column(values: list[Any]) -> bytes:
    """Return a column as bytes; NaN, infinities and long integers survive."""
    missing = [i for i, value in enumerate(values) if value is ABSENT] if ABSENT in values else []
    plain = [None if value is ABSENT else value for value in values] if missing else values
    try:
        text = orjson.dumps([plain, missing])
        if b"null" not in text or not _has_non_finite(plain):  # orjson writes null for NaN
            return b"o" + text
    except TypeError:  # integers of more than 64 bits
        pass
    return b"j" + json.dumps([plain, missing]).encode()


def _has_non_finite(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    if float in kinds and not all(math.isfinite(value) for value in values if type(value) is float):
        return True
    nested = [value for value in values if type(value) in (list, dict)] if kinds & {list, dict} else []
    return any(_has_non_finite(list(value.values()) if type(value) is dict else value) for value in nested)


def decode_column(content: bytes) -> list[Any]:
    """Return what `encode_column` was given."""
    values: list[Any]
    values, missing = orjson.loads(content[1:]) if content[:1] == b"o" else json.loads(content[1:])
    for position in missing:
        values[position] = ABSENT
    return values


def _sealed(place: str, content: bytes) -> bytes:
    """What is kept at a place in the file, with a checksum of both: SQLite has none."""
    return content + zlib.crc32(content, zlib.crc32(place.encode())).to_bytes(4, "big")


def _opened(place: str, content: bytes) -> bytes:
    if _sealed(place, content[:-4]) != content:
        raise ValueError(f"{place} is not what was written")
    return content[:-4]


class ColumnFile:
    """An index file that was opened, or a database in memory.

    Args:
        path: the file; None: an empty one in memory.

    Raises:
        sqlite3.Error: it is not an index of this version.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._connection = sqlite3.connect(":memory:", check_same_thread=False)
            finalize(self, self._connection.close)
            self._connection.executescript(f"{_TABLES}PRAGMA user_version={INDEX_SCHEMA};")
            return
        # immutable: no locks and no journal, since the file under this name is replaced, not changed
        name = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(name, uri=True, check_same_thread=False)
        finalize(self, self._connection.close)
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != INDEX_SCHEMA:
            self._connection.close()
            raise sqlite3.DatabaseError(f"{path} has schema {version}, not {INDEX_SCHEMA}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def blocks(self) -> dict[int, dict[str, Any]]:
        """Return what each block knows of its runs: `runs` [number, mark, live], `problems`.

        Raises:
            ValueError: it is damaged; as `column` and `block`.
        """
        rows = self._connection.execute("SELECT block, content FROM blocks ORDER BY block")
        return {block: orjson.loads(_opened(f"{block}", content)) for block, content in rows}

    def keys(self) -> list[str]:
        """Return the names of all columns, sorted."""
        return [key for (key,) in self._connection.execute("SELECT DISTINCT key FROM cells ORDER BY key")]

    def column(self, key: str) -> dict[int, list[Any]]:
        """Return a column: block -> values."""
        rows = self._connection.execute("SELECT block, content FROM cells WHERE key = ?", (key,))
        return {block: decode_column(_opened(f"{block} {key}", content)) for block, content in rows}

    def block(self, block: int) -> dict[str, list[Any]]:
        """Return all columns of a block."""
        rows = self._connection.execute("SELECT key, content FROM cells WHERE block = ?", (block,))
        return {key: decode_column(_opened(f"{block} {key}", content)) for key, content in rows}

    def write(self, changes: Iterable[BlockChange], cells: Iterable[_CellChange] = ()) -> None:
        """Change the database in memory."""
        _write(self._connection, changes, cells)
        self._connection.commit()


# block number, what it knows of its runs (None: the block is gone), columns to replace (None: keep)
BlockChange = tuple[int, Mapping[str, Any] | None, Mapping[str, list[Any]] | None]
# block number, what it must know of its runs for this to belong to them, column, values
_CellChange = tuple[int, Mapping[str, Any], str, list[Any]]


def _write(
    connection: sqlite3.Connection, changes: Iterable[BlockChange], cells: Iterable[_CellChange] = ()
) -> None:
    for block, known, columns in changes:
        connection.execute("DELETE FROM blocks WHERE block = ?", (block,))
        if known is not None:
            content = _sealed(f"{block}", orjson.dumps(known))
            connection.execute("INSERT INTO blocks VALUES (?, ?)", (block, content))
        if columns is not None or known is None:
            connection.execute("DELETE FROM cells WHERE block = ?", (block,))
            new = (_cell(key, block, values) for key, values in (columns or {}).items())
            connection.executemany("INSERT INTO cells VALUES (?, ?, ?)", new)
    for block, known, key, values in cells:
        row = connection.execute("SELECT content FROM blocks WHERE block = ?", (block,)).fetchone()
        if row is not None and row[0] == _sealed(f"{block}", orjson.dumps(known)):
            connection.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", _cell(key, block, values))


def _cell(key: str, block: int, values: list[Any]) -> tuple[str, int, bytes]:
    return key, block, _sealed(f"{block} {key}", encode_column(values))


def publish_index(
    target: Path, changes: Iterable[BlockChange], base: Path | None, cells: Iterable[_CellChange] = ()
) -> ColumnFile:
    """Replace the index file by one with these changes, atomically.

    Args:
        target: the file.
        changes: blocks that are new.
        base: the file that the changes are made to; None: an empty one.
        cells: columns of blocks that are new; left out if the block has changed meanwhile.

    Returns:
        The file that was written, which need not be the one of that name any more.

    Raises:
        OSError: it cannot be written.
        sqlite3.Error: it cannot be written, or `base` is damaged.
    """
    aside = aside_of(target)
    try:
        if base is None:
            aside.unlink(missing_ok=True)
        else:
            shutil.copyfile(base, aside)
        with closing(sqlite3.connect(aside)) as connection:
            # the file is nobody else's yet: no journal
            connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            if base is None:
                connection.executescript(f"{_TABLES}PRAGMA user_version={INDEX_SCHEMA};")
            _write(connection, changes, cells)
            connection.commit()
        _flush(aside)
        file = ColumnFile(aside)
        move(aside, target)
        return file
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
