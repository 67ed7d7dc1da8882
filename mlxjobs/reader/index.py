"""The index of a log directory: what its runs say, read again only where something changed.

It is a file beside the runs, or in the user's cache if they cannot be written to, or in memory if
that cannot be written either. It is never the truth: delete it, and it is made again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

from mlxjobs.errors import RunError
from mlxjobs.reader.columns import ABSENT, BLOCK_SIZE, BlockChange, ColumnFile, publish_index
from mlxjobs.record.facts import live_mark_of, mark_of, read_facts
from mlxjobs.system.files import numbers_in

INDEX_NAME = ".mlxjobs-index.sqlite"
# what begins the names of columns that were computed
REMEMBERED = "#"

# a run of either generation answers to both names
_SAME = {
    f"info.{key}": f"info.logger.{key}"
    for key in ("log_id", "log_dir", "metrics_dir", "metadata_dir", "artifacts_dir")
}
ALIASES = {**_SAME, **{new: old for old, new in _SAME.items()}}


class IndexedRuns:
    """The runs of a log directory as they were at one moment; columns are loaded when asked for.

    Attributes:
        logs: the log directory.
        log_ids: the runs, sorted.
        live: those that have not ended.
        problems: the runs that cannot be served, and why.
    """

    def __init__(self, logs: str, file: ColumnFile, blocks: dict[int, dict[str, Any]]) -> None:
        self.logs = logs
        self._file = file
        self.blocks = blocks
        runs = [run for block in blocks.values() for run in block["runs"]]
        self.log_ids: list[int] = [run[0] for run in runs]
        self.live = {run[0] for run in runs if run[2] is not None}
        self.problems = {log_id: why for block in blocks.values() for log_id, _, why in block["problems"]}
        self._sizes = [(number, len(block["runs"])) for number, block in blocks.items()]
        self._columns: dict[str, list[Any]] = {}
        self._keys: list[str] | None = None

    def __len__(self) -> int:
        return len(self.log_ids)

    def keys(self) -> list[str]:
        """Return the names of all columns, sorted; those that are only remembered are not among them."""
        if self._keys is None:
            self._keys = [
                key for key in self._ask(lambda file: file.keys()) if not key.startswith(REMEMBERED)
            ]
        return self._keys

    def column(self, key: str) -> list[Any]:
        """Return the values of a column, one for each run; `ABSENT` where a run has none."""
        if key not in self._columns:
            values = self._stored(key)
            if key in ALIASES and ABSENT in values:
                other = self._stored(ALIASES[key])
                values = [b if a is ABSENT else a for a, b in zip(values, other, strict=True)]
            self._columns[key] = values
        return self._columns[key]

    def _stored(self, key: str) -> list[Any]:
        cells = self._ask(lambda file: file.column(key))
        values: list[Any] = []
        for number, size in self._sizes:
            values += cells.get(number) or [ABSENT] * size
        return values

    def _ask(self, question: Callable[[ColumnFile], Any]) -> Any:
        try:
            return question(self._file)
        # damaged, or the file was replaced on another machine, and NFS has forgotten the old one
        except (sqlite3.Error, ValueError):
            self._file = ColumnFile()
            self._file.write([_read_again(self.logs, number, block) for number, block in self.blocks.items()])
            return question(self._file)


def _read_again(logs: str, number: int, block: dict[str, Any]) -> BlockChange:
    values = []
    for log_id, *_ in block["runs"]:
        path = f"{logs}/{log_id}"
        values.append(read_facts(path, mark_of(path) or [0] * 6).values)
    return number, block, _columns(values)


def _columns(values: list[dict[str, Any]]) -> dict[str, list[Any]]:
    keys: dict[str, Any] = {}
    for facts in values:
        keys.update(facts)
    return {key: [facts.get(key, ABSENT) for facts in values] for key in keys}


@dataclass
class _Plan:
    """What has to be done to one block: the entries that stay, and the runs to read with their marks."""

    runs: list[list[Any]] = field(default_factory=list)
    problems: list[list[Any]] = field(default_factory=list)
    read: list[tuple[int, list[int]]] = field(default_factory=list)


class Index:
    """Keeps the index of a log directory.

    Args:
        logs: the log directory.
        folder: where to keep the file; None: in the log directory, or in the user's cache.
    """

    def __init__(self, logs: Path, folder: Path | None = None) -> None:
        self._logs = str(logs.absolute())
        self._paths = _places(logs.absolute(), folder)
        self._memory: ColumnFile | None = None

    def sync(self, *, anew: bool = False) -> IndexedRuns:
        """Read what changed since the last time, and return the runs as they are now.

        Args:
            anew: forget everything, and read all runs.

        Raises:
            RunError: there is no such directory, or it cannot be listed.
        """
        log_ids = _log_ids(self._logs)
        path, file = (None, None) if anew else self._open()
        try:
            return self._update(log_ids, path, file)
        except (sqlite3.Error, ValueError):  # damaged: what is in it is in the run directories too
            return self._update(log_ids, None, None)

    def stored(self) -> IndexedRuns | None:
        """Return the runs as the index has them, without a look at any; None if there is no index."""
        try:
            _, file = self._open()
            return None if file is None else IndexedRuns(self._logs, file, file.blocks())
        except (sqlite3.Error, ValueError):
            return None

    def recheck(self, runs: IndexedRuns) -> IndexedRuns:
        """Return the same runs, or newer ones if a run that had not ended has changed."""
        for block in runs.blocks.values():
            for log_id, mark, live in block["runs"]:
                path = f"{self._logs}/{log_id}"
                if live is not None and (mark_of(path) != mark or live_mark_of(path) != live):
                    return self.sync()
        return runs

    def remember(self, runs: IndexedRuns, key: str, values: list[Any]) -> None:
        """Keep a column that was computed, for whoever asks next; nothing is said if that fails."""
        cells, begin = [], 0
        for number, block in runs.blocks.items():
            end = begin + len(block["runs"])
            cells.append((number, block, key, values[begin:end]))
            begin = end
        if self._memory is not None:
            self._memory.write((), cells)
            return
        path, _ = self._open()
        if path is not None:
            with suppress(OSError, sqlite3.Error):
                publish_index(path, (), path, cells).close()

    def _open(self) -> tuple[Path | None, ColumnFile | None]:
        """The newest file that can be read."""
        if self._memory is not None:
            return None, self._memory
        files = []
        for path in self._paths:
            with suppress(OSError):
                files.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(files, reverse=True):
            with suppress(sqlite3.Error):
                return path, ColumnFile(path)
        return None, None

    def _update(self, log_ids: list[int], path: Path | None, file: ColumnFile | None) -> IndexedRuns:
        blocks = file.blocks() if file is not None else {}
        plans = _compare(self._logs, log_ids, blocks)
        if file is None or plans:
            file = self._save(lambda: self._changes(plans, blocks, file), path, file)
            blocks = file.blocks()
        return IndexedRuns(self._logs, file, blocks)

    def _changes(
        self, plans: dict[int, _Plan], blocks: dict[int, dict[str, Any]], file: ColumnFile | None
    ) -> Iterator[BlockChange]:
        """Read the runs block by block, so that few are in memory at once."""
        for number, plan in plans.items():
            before = blocks.get(number, {"runs": []})["runs"]
            old = file.block(number) if file is not None and plan.runs else {}
            yield _change(self._logs, number, plan, [run[0] for run in before], old)

    def _save(
        self, changes: Callable[[], Iterable[BlockChange]], path: Path | None, file: ColumnFile | None
    ) -> ColumnFile:
        """Put the changes where they can be written, and open that."""
        if self._memory is None:
            for target in self._paths:
                with suppress(OSError, sqlite3.OperationalError):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    return publish_index(target, changes(), path)
        memory = self._memory or ColumnFile()
        if file is not None and file is not self._memory:
            memory.write((number, known, file.block(number)) for number, known in file.blocks().items())
        memory.write(list(changes()))
        self._memory = memory
        return memory


def _change(logs: str, number: int, plan: _Plan, before: list[int], old: dict[str, list[Any]]) -> BlockChange:
    facts = {log_id: read_facts(f"{logs}/{log_id}", mark) for log_id, mark in plan.read}
    good = {log_id: run for log_id, run in facts.items() if run.problem is None}
    runs = sorted([*plan.runs, *([log_id, run.mark, run.live] for log_id, run in good.items())])
    bad = [[log_id, run.mark, run.problem] for log_id, run in facts.items() if run.problem is not None]
    problems = sorted([*plan.problems, *bad])
    if not runs and not problems:
        return number, None, None
    places = {log_id: place for place, log_id in enumerate(before)}
    values = []
    for log_id, *_ in runs:
        if log_id in good:
            values.append(good[log_id].values)
        else:
            place = places[log_id]
            values.append({k: column[place] for k, column in old.items() if column[place] is not ABSENT})
    return number, {"runs": runs, "problems": problems}, _columns(values)


def _compare(logs: str, log_ids: list[int], blocks: dict[int, dict[str, Any]]) -> dict[int, _Plan]:
    """Return the blocks in which something has changed, and what to do to them."""
    now: dict[int, list[int]] = {}
    for log_id in log_ids:
        now.setdefault(log_id // BLOCK_SIZE, []).append(log_id)
    plans = {}
    for number in sorted(now.keys() | blocks.keys()):
        known = blocks.get(number, {"runs": [], "problems": []})
        plan = _compare_block(logs, now.get(number, []), known)
        if plan.read or len(plan.runs) + len(plan.problems) < len(known["runs"]) + len(known["problems"]):
            plans[number] = plan
    return plans


def _compare_block(logs: str, log_ids: list[int], known: dict[str, Any]) -> _Plan:
    runs = {run[0]: run for run in known["runs"]}
    problems = {problem[0]: problem for problem in known["problems"]}
    plan = _Plan()
    for log_id in log_ids:
        path = f"{logs}/{log_id}"
        mark = mark_of(path)
        if mark is None:
            continue
        if (run := runs.get(log_id)) is not None and run[1] == mark:
            if run[2] is None or run[2] == live_mark_of(path):
                plan.runs.append(run)
                continue
        elif (problem := problems.get(log_id)) is not None and problem[1] == mark:
            plan.problems.append(problem)
            continue
        plan.read.append((log_id, mark))
    return plan


def _log_ids(logs: str) -> list[int]:
    try:
        numbers = numbers_in(logs)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise RunError(
            f"no log directory at {logs}: {reason}; give the folder that holds the runs 1, 2, 3 ..."
        ) from error
    return [number for number in numbers if number < 10**17]  # SQLite holds no larger ones


def _places(logs: Path, folder: Path | None) -> list[Path]:
    """Where the file may be, the best place first."""
    name = f"{logs.name}-{sha1(os.fsencode(logs.resolve()), usedforsecurity=False).hexdigest()[:16]}.sqlite"
    if folder is not None:
        folder = folder.absolute()
        return [folder / (INDEX_NAME if folder == logs else name)]
    places = [logs / INDEX_NAME]
    with suppress(RuntimeError):  # a user without a home, as in a container
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        places.append(cache / "mlxjobs" / "index" / name)
    return places
