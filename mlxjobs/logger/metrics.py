"""Metrics: one JSON line a call, appended by one write(2).

metrics/
  train.json                    {"loss":0.03,"epoch":0} ...
  .keys/metrics.yaml            log name -> key -> type, for whoever reads many runs
  .superseded/<attempt>/        lines of an attempt that a later one repeats
  .before/<attempt>/            what an attempt that runs has found (`logger.before`)
  .superseded/torn/             last lines that a killed process left unfinished
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from weakref import ref

from mlxjobs.errors import InvalidKeyError, InvalidMetricError, ShortMetricsError
from mlxjobs.logger import before
from mlxjobs.logger import rewind as rewinding
from mlxjobs.logger.values import json_object, key_text, type_name, unwrap
from mlxjobs.record.fence import Fence
from mlxjobs.system.files import is_file_name, naming, replace_file, sync_directory
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, read_yaml
from mlxjobs.system.seals import crc32_of, seal_yaml
from mlxjobs.system.turn import turn

RESERVED_NAMES = ("info", "config", "mlxpy", "artifacts")

_BYTE_N, _BYTE_U = b"nu"
_TAIL = 1 << 16
# how often a process that logs asks whether it was given up: what it writes until then is lost anyhow
_CHECK_S = 1.0
# how long it waits for another process that adds keys to the registry
_TURN_S = 2.0
# for how long a file may look shorter than it is: NFS remembers sizes for a minute (acregmax in nfs(5))
_OLD_S = 70.0
_PAUSE_S = 0.5


def _check_log_name(log_name: object) -> None:
    """Accept a name that a metrics file can have.

    Raises:
        InvalidKeyError: it is reserved, empty, hidden, or no name of a file.
    """
    if not is_file_name(log_name) or log_name in RESERVED_NAMES:
        raise InvalidKeyError(
            f"{log_name!r} cannot name a metrics file: use a string without path separators, not "
            f"empty, not beginning with a dot, and none of {', '.join(RESERVED_NAMES)}"
        )


def last_lines(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each metrics file of a run, log name -> its values; for whoever looks."""
    import json

    found = {}
    for log_name in rewinding.log_names(directory):
        with suppress(OSError, ValueError), open(directory / f"{log_name}.json", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
            last = json.loads(lines[-1]) if lines else {}
            if isinstance(last, dict):
                found[log_name] = last
    return found


def seals(directory: Path) -> dict[str, Any]:
    """Return what the end of an attempt records of its metrics, for `mlxjobs fsck`.

    Returns:
        `metrics`: log name -> size and CRC-32 of the whole lines; nothing if a file cannot be read, which
        is for whoever reads it to say. `rewinds`: the rewinds by then, as a process that is about to end may
        still take lines back.
    """
    found, rewinds = {}, rewinding.rewinds_so_far(directory)
    try:
        for log_name in rewinding.log_names(directory):
            path = directory / f"{log_name}.json"
            size = rewinding.whole_lines(path, rewinding.size_of(path))
            found[log_name] = [size, crc32_of(path, size)]
    except OSError:
        found = {}
    return {"metrics": found, "rewinds": rewinds}


def _unlock(writer: ref[MetricsWriter]) -> None:
    """In a child made by fork, where the thread that has taken a lock is not."""
    if (here := writer()) is not None:
        here._unlock()


class MetricsWriter:
    """Append metrics to the files of one run.

    NaN and infinities are written as the strings "NaN", "Infinity" and "-Infinity", the form of
    ProtoJSON, because JSON has no numbers for them; None is null.

    Args:
        directory: the run's `metrics/`; made when the first line is written.
        fence: of the attempt that writes.
    """

    def __init__(self, directory: Path, fence: Fence | None = None) -> None:
        import orjson  # 15 ms, which a program that only submits need not spend

        self._directory = directory
        self._fence = fence or Fence()
        self._next_check = monotonic() + _CHECK_S if fence else float("inf")
        self._dumps = orjson.dumps
        self._options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        # log name -> descriptor, keys in the registry
        self._streams: dict[str, tuple[int, set[str]]] = {}
        self._created = False
        self._unlock()
        os.register_at_fork(after_in_child=partial(_unlock, ref(self)))

    def _unlock(self) -> None:
        # not taken by a line whose keys are known; reentrant, for a signal handler may log
        self._lock = threading.RLock()
        # taken while a line is written, and while none may be
        self._writing = threading.RLock()

    @property
    def attempt(self) -> int:
        """The number of the attempt that writes; 0 if it is none."""
        return self._fence.attempt

    def append(self, metrics: Mapping[str, Any], log_name: str) -> None:
        """Write one line; lines are on disk in the order of the calls.

        Args:
            metrics: what to write: numbers, strings, None, numpy and torch scalars, and lists and
                dictionaries of them.
            log_name: the file, without `.json`.

        Raises:
            InvalidKeyError: no metrics file can have this name.
            InvalidMetricError: a key or value cannot be written; nothing was.
            OSError: the line could not be written; nothing of it was.
            Superseded: a newer attempt of the run has begun.
        """
        if monotonic() > self._next_check:
            self._fence.check()
            self._next_check = monotonic() + _CHECK_S
        try:
            descriptor, known = self._streams[log_name]
            line = self._dumps(metrics, unwrap, self._options)
            # orjson turns NaN into null silently; asking for single bytes first is 10 times faster
            if (_BYTE_U in line and _BYTE_N in line and b"null" in line) or not (
                known.issuperset(metrics) and len(metrics)
            ):
                descriptor, line = self._prepare(metrics, log_name)
        except (KeyError, TypeError):
            descriptor, line = self._prepare(metrics, log_name)
        with self._writing:
            try:
                written = os.write(descriptor, line)
            except OSError as error:
                self._fence.check()
                raise OSError(error.errno, error.strerror, str(self._path(log_name))) from error
            if written != len(line):
                self._withdraw(log_name, descriptor, line, written)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let other threads that log wait until the block is left: the files are being changed."""
        with self._lock, self._writing:
            yield

    def _prepare(self, metrics: Mapping[str, Any], log_name: str) -> tuple[int, bytes]:
        """The careful way: check everything, open the file, register new keys."""
        _check_log_name(log_name)
        line = self._encode(metrics)
        with self._lock:
            if log_name not in self._streams:
                self._streams[log_name] = self._open(log_name), set()
            descriptor, known = self._streams[log_name]
            types = {key_text(key): type_name(value) for key, value in metrics.items()}
            if not known.issuperset(types):
                self.register(log_name, types)
                known.update(types)
        return descriptor, line

    def _encode(self, metrics: Mapping[str, Any]) -> bytes:
        if not isinstance(metrics, Mapping):
            raise InvalidMetricError(f"log_metrics takes a dictionary, not {type(metrics).__name__}")
        try:
            plain = json_object(metrics)
        except RecursionError as error:
            raise InvalidMetricError("the metrics are nested too deeply to be written") from error
        try:
            return self._dumps(plain, None, self._options)
        except TypeError:  # integers of more than 64 bits
            import json

            return json.dumps(plain, separators=(",", ":")).encode() + b"\n"

    def _path(self, log_name: str) -> Path:
        return self._directory / f"{log_name}.json"

    def _open(self, log_name: str) -> int:
        path = self._path(log_name)
        self._fence.check()  # a run directory that was removed is not to be made again
        self._directory.mkdir(parents=True, exist_ok=True)
        rewinding.cut_torn_line(path, self._fence)
        self._created = True
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            self._fence.check()  # a newer attempt that begins after this makes the file another one
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _withdraw(self, log_name: str, descriptor: int, line: bytes, written: int) -> None:
        """Take a line that was written in part out again, and say so."""
        begin = os.fstat(descriptor).st_size - written
        if os.pread(descriptor, written + 1, begin) == line[:written]:  # else another process has written
            os.ftruncate(descriptor, begin)
        raise OSError(
            errno.ENOSPC,
            f"only {written} of {len(line)} bytes could be written: the disk is full, or the file "
            "has reached a size limit",
            str(self._path(log_name)),
        )

    def register(self, log_name: str, types: Mapping[str, str]) -> None:
        """Add keys with their types to the registry; it is an index only, so a broken one is made anew."""
        path = self._directory / ".keys" / "metrics.yaml"
        with self._fence.explaining(), naming(path):
            path.parent.mkdir(exist_ok=True)
            # forked workers register too, and often at the same time
            with turn(path.with_name(".turn"), lambda: False, _TURN_S):
                self._register(path, log_name, types)

    def _register(self, path: Path, log_name: str, types: Mapping[str, str]) -> None:
        registry: dict[str, dict[str, str]] = {}
        with suppress(FileNotFoundError, NotYAMLError):
            stored = read_yaml(path)
            if isinstance(stored, dict):
                registry = {name: keys for name, keys in stored.items() if isinstance(keys, dict)}
        before = registry.get(log_name, {})
        if before.keys() >= types.keys():
            return
        registry[log_name] = {**before, **{key: kind for key, kind in types.items() if key not in before}}
        replace_file(path, seal_yaml(dump_yaml(registry)), aside=self._fence.folder(path.parent))

    def offsets(self) -> dict[str, int]:
        """Return the size of every metrics file, log name -> bytes."""
        return rewinding.sizes(self._directory)

    def sync(self) -> None:
        """Flush to the disk what this writer wrote.

        Raises:
            OSError: the disk did not take it.
        """
        with self._lock:
            for log_name, (descriptor, _) in self._streams.items():
                with naming(self._path(log_name)):
                    os.fsync(descriptor)
            if self._created:
                sync_directory(self._directory)
                self._created = False

    def close(self) -> None:
        """Close the files; a later `append` opens them again."""
        with self._lock:
            streams, self._streams = self._streams, {}
            for descriptor, _ in streams.values():
                with suppress(OSError):  # NFS says here that a disk is full; what counts was flushed
                    os.close(descriptor)

    def repair(self) -> None:
        """Move the unfinished last line of every file, if it has one, to `.superseded/torn/`."""
        for log_name in rewinding.log_names(self._directory):
            rewinding.cut_torn_line(self._path(log_name), self._fence)

    def note_start(self, start: Mapping[str, int]) -> None:
        """Remember how large the files are where this attempt begins: log name -> bytes."""
        rewinding.note_start(self._directory, start, self._fence)

    def rewinds(self) -> int:
        """Return how many rewinds this run has had; a checkpoint remembers it."""
        return rewinding.rewinds_so_far(self._directory)

    def rewind(
        self,
        offsets: Mapping[str, int],
        start: Mapping[str, int],
        *,
        rewinds: int | None = None,
    ) -> int:
        """Make the files read as they did when they had these sizes, then this attempt's lines.

        What an earlier attempt wrote later is moved to `.superseded/<attempt>/`. Safe to call again
        after a crash at any point. A size inside a line goes back to the end of the line before.

        Args:
            offsets: log name -> bytes to keep; a file that is not named keeps nothing.
            start: log name -> bytes when this attempt began; what follows is its own and stays.
            rewinds: what `rewinds()` was when the sizes were taken: rewinds since then are undone
                first, so that the lines come back which an attempt in between had moved away.

        Returns:
            Number of lines moved.

        Raises:
            OSError: a file could not be written; nothing is lost.
        """
        with self.paused():
            return rewinding.rewind(
                self._directory,
                offsets,
                self._await_whole(offsets, start, rewinds),
                fence=self._fence,
                rewinds=rewinds,
                replaced=self._reopen,
            )

    def complete(self, start: Mapping[str, int]) -> dict[str, int]:
        """Add what earlier attempts wrote and this one did not see when it began.

        Args:
            start: log name -> bytes when this attempt began.

        Returns:
            `start` as it is then.

        Raises:
            OSError: a file could not be written; nothing is lost.
        """
        with self.paused():
            return before.complete(self._directory, start, self._fence, self._reopen)

    def _await_whole(
        self, offsets: Mapping[str, int], start: Mapping[str, int], rewinds: int | None
    ) -> dict[str, int]:
        """Complete the files, until they have what they had when these sizes were taken."""
        end = monotonic() + _OLD_S
        while True:
            start = before.complete(self._directory, start, self._fence, self._reopen)
            try:
                rewinding.check_whole(self._directory, offsets, start, rewinds)
            except rewinding.Short as short:
                if monotonic() > end:
                    raise ShortMetricsError(
                        f"{short.path} has {short.size} bytes of the {short.remembered} that the checkpoint "
                        "remembers, so lines of it are missing; nothing was changed. If another node still "
                        "writes it, start the run again later. If they are lost, go on without them: "
                        f"mlxjobs fsck --fix {self._directory.parent.name} "
                        f"--logs {self._directory.parent.parent}"
                    ) from None
            else:
                return start
            sleep(_PAUSE_S)

    def settle(self, *, complete: bool) -> None:
        """Remove what was kept of earlier attempts' files; see `before.settle`."""
        before.settle(self._directory, self._fence, complete=complete)

    def _reopen(self, log_name: str, path: Path) -> None:
        if log_name in self._streams:
            # the number stays the same, so another thread never writes to a closed descriptor
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            os.dup2(descriptor, self._streams[log_name][0], inheritable=False)
            os.close(descriptor)
