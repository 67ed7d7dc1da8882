"""The runs of a log directory as a table: stored columns, and those that are worked out when asked for.

config.*, info.*           stored
<log>.<key>                a series, read from the metrics file when it is touched
<log>.<key>.last           and first, min, max, mean, count: of a series; remembered in the index
artifact.<type>.           the artifacts of a type, by name; loaded when `load()` is called
guard.*                    what a run may not share with the others of its group
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxjobs.errors import CheckpointNotFoundError, InvalidKeyError
from mlxjobs.logger import artifacts, checkpoints
from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.index import ALIASES, REMEMBERED, IndexedRuns
from mlxjobs.reader.matching import summary_of
from mlxjobs.reader.query import STATISTICS
from mlxjobs.reader.series import Source, file_mark, load_series, summarise

LAZYDATA = "LAZYDATA"
LAZYARTIFACT = "ARTIFACT"

GUARDS = ("guard.code", "guard.finished", "guard.resumed", "guard.environment", "guard.hardware")


class StoredArtifact:
    """An artifact of a run; nothing is read before `load()`.

    Attributes:
        name: its file.
        path: the folder of the file.
        type: its type: `pickle`, `numpy`, `Checkpoint`, ...
    """

    def __init__(self, name: str, folder: Path, type_: str, artifacts_dir: Path) -> None:
        self.name = name
        self.path = str(folder)
        self.type = type_
        self._artifacts_dir = artifacts_dir

    def __repr__(self) -> str:
        return f"StoredArtifact({self.type}, {self.path}/{self.name})"

    def load(self) -> Any:
        """Read the object; for pickles and the like this runs what the file says.

        Raises:
            InvalidArtifactError: its type is not known here; register it first.
            ArtifactNotFoundError: it is gone.
        """
        inside = Path(self.path, self.name).relative_to(self._artifacts_dir / self.type)
        return artifacts.read_artifact(self._artifacts_dir, str(inside), self.type)


class RunTable:
    """The runs of a log directory and all their columns.

    Args:
        runs: as the index has them.
        remember: keeps a column that was computed.
    """

    def __init__(self, runs: IndexedRuns, remember: Callable[[str, list[Any]], None]) -> None:
        self.runs = runs
        self._remember = remember
        self._summaries: dict[str, list[Any]] = {}
        self._guards: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.runs)

    # -- names --------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> list[str]:
        """All columns that are shown, sorted."""
        return self.runs.keys()

    @cached_property
    def names(self) -> frozenset[str]:
        """The same as a set."""
        return frozenset(self.keys)

    @cached_property
    def series(self) -> frozenset[str]:
        """The columns with series."""
        return frozenset(
            key for key in self.keys if not key.startswith(("config.", "info.")) and not _is_artifact(key)
        )

    @cached_property
    def values(self) -> frozenset[str]:
        """The columns that a query can compare as they are."""
        plain = [key for key in self.keys if key not in self.series]
        short = [key.rstrip(".") for key in plain if key.endswith(".")]
        guards = (key for key in GUARDS if key not in self.series)
        return frozenset([*plain, *short, *(ALIASES[key] for key in plain if key in ALIASES), *guards])

    def types(self) -> dict[str, str]:
        """Return the type of each column: a Python type, LAZYDATA or Artifact."""
        types = {}
        for key in self.keys:
            if key in self.series:
                types[key] = LAZYDATA
            elif _is_artifact(key):
                types[key] = "Artifact"
            else:
                kinds = {type(value) for value in self.runs.column(key) if value is not ABSENT}
                types[key] = " | ".join(sorted(map(str, kinds)))
        return types

    # -- columns ------------------------------------------------------------------------------

    def column(self, name: str, positions: Sequence[int]) -> Sequence[Any]:
        """Return the values of a column for some runs, as a query compares them."""
        if name in GUARDS and name not in self.series:
            return _pick(self._guard(name), positions)
        if name not in self.values and (asked := summary_of(name)) is not None and asked[0] in self.series:
            return self._statistic(*asked, positions)
        return _pick(self.runs.column(self._stored(name)), positions)

    def is_costly(self, name: str) -> bool:
        """Tell whether a column needs the metrics of its runs."""
        return name not in self.values

    def _stored(self, name: str) -> str:
        return f"{name}." if name.startswith("artifact.") and f"{name}." in self.names else name

    def cells(self, positions: Sequence[int], key: str) -> Sequence[Any]:
        """Return what rows show: values, or LAZYDATA or LAZYARTIFACT; ABSENT where one has none."""
        values = self.column(key, positions)
        lazy = LAZYDATA if key in self.series else LAZYARTIFACT if _is_artifact(self._stored(key)) else None
        return values if lazy is None else [value if value is ABSENT else lazy for value in values]

    def load(self, positions: Sequence[int], key: str) -> list[Any]:
        """Return the values of a column for some runs, loaded; ABSENT where a run has none."""
        cells = self.column(key, positions)
        if key in self.series:
            return [
                value if value is ABSENT else self._load_series(position, key, value)
                for position, value in zip(positions, cells, strict=True)
            ]
        if _is_artifact(key := self._stored(key)):
            return [
                value if value is ABSENT else self._handles(position, key, value)
                for position, value in zip(positions, cells, strict=True)
            ]
        return list(cells)

    def _load_series(self, position: int, key: str, cell: str) -> list[Any]:
        log_name, inner, kind = _split(key, cell)
        return load_series(Source(self._metrics(position, log_name), {inner: kind}), [inner])[inner]

    def _handles(self, position: int, key: str, names: list[str]) -> dict[str, StoredArtifact]:
        kind, _, rest = key.removeprefix("artifact.").partition(".")
        base = Path(self.path(position)) / "artifacts"
        try:
            folder = base.joinpath(kind, *self._folders(base / kind, rest))
        except InvalidKeyError:  # removed since: `load()` says so
            folder = base / kind / rest.removeprefix(".")
        return {name: StoredArtifact(name, folder, kind, base) for name in names}

    def _folders(self, base: Path, dotted: str) -> list[str]:
        """The folders of an artifact's key; MLXP joins them with dots, which a folder's name may have too."""
        if not dotted:
            return []
        words = dotted.removeprefix(".").split(".")
        for count in range(1, len(words) + 1):
            name = ".".join(words[:count])
            if (base / name).is_dir():
                try:
                    return [name, *self._folders(base / name, ".".join(words[count:]))]
                except InvalidKeyError:
                    continue
        raise InvalidKeyError(f"there is no folder {dotted} in {base}")

    def path(self, position: int) -> str:
        """Return the run directory."""
        return f"{self.runs.logs}/{self.runs.log_ids[position]}"

    def _metrics(self, position: int, log_name: str) -> str:
        return f"{self.path(position)}/metrics/{log_name}.json"

    def log_of(self, key: str) -> str:
        """Return the log that a series is in, as the first run that has it says."""
        return _split(key, next(cell for cell in self.runs.column(key) if cell is not ABSENT))[0]

    def source(self, position: int, key: str) -> tuple[Source, str] | None:
        """Return the metrics file of a series of a run, and the key in it; None if it has no such series."""
        cell = self.runs.column(key)[position]
        if cell is ABSENT:
            return None
        log_name, inner, _ = _split(key, cell)
        return Source(self._metrics(position, log_name), self._kinds(log_name, position)), inner

    # -- statistics of series -----------------------------------------------------------------

    def _statistic(self, series: str, statistic: str, positions: Sequence[int]) -> list[Any]:
        cells = self.runs.column(series)
        places: dict[tuple[str, str], list[int]] = {}  # one place, but for a key `top.acc` in a log `val`
        for position in positions:
            if cells[position] is not ABSENT:
                places.setdefault(_split(series, cells[position])[:2], []).append(position)
        values = {}
        for (log_name, key), wanted in places.items():
            summaries = self._summaries_of(log_name, wanted)
            for position in wanted:
                if (summary := summaries[position][1].get(key)) is not None:
                    values[position] = summary[STATISTICS.index(statistic)]
        return [values.get(position, ABSENT) for position in positions]

    def _summaries_of(self, log_name: str, positions: Iterable[int]) -> list[Any]:
        """For each run [mark of the file, key -> summary]; those of `positions` are up to date."""
        column = f"{REMEMBERED}{log_name}"
        if column not in self._summaries:
            self._summaries[column] = list(self.runs.column(column))
        entries = self._summaries[column]
        live, log_ids = self.runs.live, self.runs.log_ids
        news = 0
        for position in positions:
            entry = entries[position]
            if entry is not ABSENT and log_ids[position] not in live:
                continue
            path = self._metrics(position, log_name)
            mark = file_mark(path)
            if entry is ABSENT or entry[0] != mark:
                kinds = self._kinds(log_name, position)
                entries[position] = [mark, summarise(Source(path, kinds))]
                news += log_ids[position] not in live
        if news:
            self._remember(column, entries)
        return entries

    def _kinds(self, log_name: str, position: int) -> dict[str, str]:
        kinds = {}
        for key in self.series:
            cell: Any = self.runs.column(key)[position] if key.startswith(f"{log_name}.") else ABSENT
            if cell is not ABSENT:
                name, inner, kind = _split(key, cell)
                if name == log_name:
                    kinds[inner] = kind
        return kinds

    # -- checkpoints and artifacts ------------------------------------------------------------

    def load_artifact(self, position: int, name: str, type_: Any = None) -> Any:
        """Read an artifact of a run; raises as `artifacts.read_artifact`."""
        return artifacts.read_artifact(Path(self.path(position)) / "artifacts", name, type_)

    def load_checkpoint(self, position: int, name: str | None = None) -> Any:
        """Read a checkpoint of a run, by default the newest; this runs what the file says.

        Raises:
            CheckpointNotFoundError: there is none.
            DamagedCheckpointError: it cannot be read, and the one before it neither.
        """
        folders = checkpoints.folders(Path(self.path(position)))
        for folder in folders:
            if files := checkpoints.candidates(folder, name):
                return checkpoints.load_first(files, stacklevel=4).checkpoint
        what = "checkpoint" if name is None else f"checkpoint {name!r}"
        raise CheckpointNotFoundError(f"there is no {what} in {' or '.join(map(str, folders))}")

    # -- guards -------------------------------------------------------------------------------

    def _guard(self, name: str) -> list[Any]:
        if name not in self._guards:
            worked_out = _GUARDS[name.removeprefix("guard.")]
            sources = [self.runs.column(f"info.{key}") for key in worked_out[1]]
            self._guards[name] = [worked_out[0](*cells) for cells in zip(*sources, strict=True)]
        return self._guards[name]


def _is_artifact(key: str) -> bool:
    """Whether a column is artifacts of a type, `artifact.numpy.` or `artifact.numpy..folder`, not a log."""
    return key.startswith("artifact.") and (key.endswith(".") or ".." in key)


def _split(key: str, cell: str) -> tuple[str, str, str]:
    """Return the log name, the metric's key and its type, from a series' name and cell."""
    length, _, kind = cell.partition(":")
    return key[: int(length)], key[int(length) + 1 :], kind


def _pick(column: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
    # only a range is all runs in their order
    return column if isinstance(positions, range) else [column[position] for position in positions]


def _or_none(value: Any) -> Any:
    return None if value is ABSENT else value


def _resumed(attempts: Any) -> bool:
    return isinstance(attempts, list) and len(attempts) > 1


def _hardware(host: Any, attempts: Any, device: Any) -> Any:
    """The machines of a run; node12 and node7 of a cluster are taken to be alike."""
    hosts = [attempt.get("host") for attempt in attempts] if isinstance(attempts, list) else []
    names = {str(name).partition(".")[0] for name in (hosts or [_or_none(host)]) if name}
    kinds = sorted({re.sub(r"\d+", "#", name) for name in names})
    return " ".join([*kinds, *([str(device)] if _or_none(device) is not None else [])]) or None


def _environment(executable: Any, requirements: Any) -> Any:
    if isinstance(requirements, list) and requirements:
        return " ".join(sorted(map(str, requirements)))
    return _or_none(executable)


_GUARDS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "code": (_or_none, ("version_manager.commit_hash",)),
    "finished": (lambda status: status == "COMPLETE", ("status",)),
    "resumed": (_resumed, ("attempts",)),
    "environment": (_environment, ("executable", "version_manager.requirements")),
    "hardware": (_hardware, ("hostname", "attempts", "gpu")),
}
