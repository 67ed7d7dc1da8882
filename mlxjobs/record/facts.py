"""What a run directory says of its run, whoever wrote it: this package, MLXP 0.1 or MLXP 1.0.

    config.<key>, info.<key>           values; dictionaries are flattened, everything else is plain JSON
    <log name>.<key>                   a series: "5:float", the length of its log's name and its type
    artifact.<type>.[.<folder>...]     the names of the files there; the names are those of MLXP 1.0

Nothing here runs code or builds objects that a file names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import orjson

from mlxjobs.errors import MLXJobsError, RunError
from mlxjobs.record.history import render_info
from mlxjobs.record.run import Run
from mlxjobs.system.plain_yaml import NotYAMLError, load_yaml, new_loader

ENDED = frozenset(("COMPLETE", "FAILED", "CANCELLED"))

# a file changed so lately may change again without another size or time: as git's index has it
_RACY_NS = 3_000_000_000
_METADATA = ("info", "config")


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read from one run directory.

    Attributes:
        values: flat key -> value.
        mark: as long as `mark_of` gives the same, nothing has changed; empty if it may have.
        live: `live_mark_of` if the run has not ended, else None.
        problem: why the run cannot be served; None if it can.
    """

    values: dict[str, Any]
    mark: list[int]
    live: list[int] | None = None
    problem: str | None = None


def mark_of(path: str) -> list[int] | None:
    """Return what changes when a run's metadata changes; None if the directory has none."""
    try:  # nearly always both are there; strings, as a Path costs 3 times more
        a, b = os.stat(f"{path}/metadata/info.yaml"), os.stat(f"{path}/metadata/config.yaml")  # noqa: PTH116
        return [a.st_mtime_ns, a.st_size, a.st_ino, b.st_mtime_ns, b.st_size, b.st_ino]
    except OSError:
        pass
    mark: list[int] = []
    for name in _METADATA:
        try:
            found = os.stat(f"{path}/metadata/{name}.yaml")  # noqa: PTH116
            mark += (found.st_mtime_ns, found.st_size, found.st_ino)
        except (FileNotFoundError, NotADirectoryError):
            mark += (0, 0, 0)
        except OSError as error:  # no permission: still a run, which has to be reported
            mark += (-1, error.errno or 0, 0)
    return mark if any(mark) else None


def outdate(path: str) -> None:
    """Change what `mark_of` gives, so that every index reads the run again, as its metrics were mended."""
    config = f"{path}/metadata/config.yaml"
    with suppress(OSError):  # there is none
        found = os.stat(config)  # noqa: PTH116
        # back, or its copy would look older than it
        os.utime(config, ns=(found.st_atime_ns, found.st_mtime_ns - 1000))


def live_mark_of(path: str) -> list[int]:
    """Return what changes when a run gets a new metric, artifact or checkpoint, or an event."""
    mark: list[int] = []
    with suppress(OSError):  # whoever added an event may have been killed before painting info.yaml
        found = os.stat(f"{path}/metadata/.history")  # noqa: PTH116
        mark += (found.st_mtime_ns, found.st_size, found.st_ino)
    for folder in (f"{path}/metrics/.keys", f"{path}/artifacts"):
        for entry in _walk(folder):
            try:
                found = entry.stat()
            except OSError:
                continue
            mark += (found.st_mtime_ns, found.st_size, found.st_ino)
    return sorted(mark)


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def read_facts(path: str, mark: list[int]) -> Facts:
    """Read a run directory.

    Args:
        path: the directory; its name is the run's number.
        mark: what `mark_of` gave, before anything is read.

    Returns:
        What it says; a run that cannot be read has a `problem` and no values.
    """
    settled = max(mark[0], mark[3]) < time.time_ns() - _RACY_NS
    kept = mark if settled else []
    values: dict[str, Any] = {}
    try:
        for name, (mtime, size) in zip(_METADATA, ((mark[0], mark[1]), (mark[3], mark[4])), strict=True):
            if mtime:
                content = _metadata(f"{path}/metadata", name, mtime, size)
                if name == "info" and str(content.get("status")) not in ENDED:
                    content = _latest(Run(Path(path)), content)
                _flatten(name, content, values)
    except RunError as error:
        # what cannot be opened now may be the next time, or by somebody else, and no mark tells
        unsure = isinstance(error.__cause__, OSError) and -1 not in mark
        return Facts({}, [] if unsure else kept, None, str(error))
    except RecursionError:
        return Facts({}, kept, None, f"the metadata in {path} contain themselves")
    if "info.log_id" not in values and "info.logger.log_id" not in values:
        values["info.log_id"] = int(path.rpartition("/")[2])
    live = None if str(values.get("info.status")) in ENDED else live_mark_of(path)
    for read, folder in ((_series, "metrics"), (_artifacts, "artifacts")):
        try:
            values.update(read(f"{path}/{folder}"))
        except OSError:
            kept = []
    return Facts(values, kept, live)


def _latest(run: Run, painted: dict[Any, Any]) -> dict[Any, Any]:
    """What info.yaml would say if whoever added the last event had not been killed before painting it."""
    try:
        if run.picture_is_stale() and (state := run.state()).sequence:
            return render_info(state)
    except (OSError, MLXJobsError):  # damaged
        pass
    return painted


def _flatten(prefix: str, value: dict[Any, Any], into: dict[str, Any]) -> None:
    for key, item in value.items():
        if type(item) is dict:
            _flatten(f"{prefix}.{key}", item, into)
        else:
            into[f"{prefix}.{key}"] = _plain(item) if type(item) is list else item


# -- config and info ------------------------------------------------------------------------------


def _metadata(folder: str, name: str, mtime: int, size: int) -> dict[Any, Any]:
    content = read_copy(f"{folder}/.{name}.json", mtime, size)
    if content is None:
        content = read_plain(f"{folder}/{name}.yaml")
    if not isinstance(content, dict):
        raise RunError(f"{folder}/{name}.yaml holds no keys and values")
    return content


def read_copy(path: str, mtime: int, size: int) -> Any:
    """The content of the JSON copy if it is that of the YAML file with this time and size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if found.st_mtime_ns < mtime:
            return None
        copy = orjson.loads(os.read(descriptor, found.st_size))
        return copy["content"] if copy["size"] == size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(descriptor)


@cache
def _loader() -> Any:
    """A safe loader that gives JSON's types only: dates as strings, and what MLXP 0.1 dumped of Python."""

    def construct(loader: Any, suffix: str, node: Any) -> Any:
        if node.id == "sequence":
            return loader.construct_sequence(node, deep=True)
        if node.id == "mapping":
            return loader.construct_mapping(node, deep=True)
        return str(node.value)

    loader = new_loader()
    loader.yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in loader.yaml_implicit_resolvers.items()
    }
    for tag in ("timestamp", "binary", "set", "omap", "pairs"):
        loader.add_constructor(f"tag:yaml.org,2002:{tag}", lambda loader, node: construct(loader, "", node))
    loader.add_multi_constructor("tag:yaml.org,2002:python/", construct)
    return loader


def read_plain(path: str) -> Any:
    """Read a YAML file, of MLXP's too, as JSON's types.

    Raises:
        RunError: it cannot be read, or is not YAML.
    """
    try:
        with open(path, "rb") as stream:
            content = load_yaml(stream.read(), _loader())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except NotYAMLError as error:
        raise RunError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return {} if content is None else content


def _plain(value: Any) -> Any:
    """The same with strings as keys, as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


# -- metrics and artifacts ------------------------------------------------------------------------


def _series(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _names(f"{folder}/.keys", ".yaml"):
        with suppress(FileNotFoundError), open(f"{folder}/.keys/{name}.yaml", "rb", buffering=0) as stream:
            found.update(_registered(name, stream.readall()))
    return found or _unregistered(folder)


def _names(folder: str, end: str) -> list[str]:
    """The files with this end, without it; those whose names are not UTF-8 are not ours."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        name.removesuffix(end)
        for name in names
        if name.endswith(end) and name[0] != "." and name.encode(errors="ignore").decode() == name
    )


@lru_cache(maxsize=1024)
def _registered(log_name: str, text: bytes) -> tuple[tuple[str, str], ...]:
    """The keys in a registry: ours has one for all logs, MLXP's one for each. Runs are much alike: cached."""
    try:
        content = load_yaml(text, _loader())
    except NotYAMLError:
        return ()
    if not isinstance(content, dict):
        return ()
    found = []
    for key, kind in content.items():
        if isinstance(kind, dict):
            found += [(f"{key}.{inner}", f"{len(str(key))}:{type_ or ''}") for inner, type_ in kind.items()]
        else:
            found.append((f"{log_name}.{key}", f"{len(log_name)}:{kind or ''}"))
    return tuple(found)


def _unregistered(folder: str) -> dict[str, str]:
    """The keys of the first lines, for a run whose registry is lost."""
    found: dict[str, str] = {}
    for name in _names(folder, ".json"):
        with suppress(FileNotFoundError, ValueError), open(f"{folder}/{name}.json", "rb") as stream:
            line = orjson.loads(stream.readline())
            if isinstance(line, dict):
                found.update({f"{name}.{key}": f"{len(name)}:" for key in line})
    return found


def _artifacts(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with os.scandir(folder) as entries:
            kinds = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return found
    for kind in kinds:
        _artifact_files(f"{folder}/{kind}", f"artifact.{kind}.", found)
    return found


def _artifact_files(folder: str, key: str, into: dict[str, list[str]]) -> None:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError:
        return
    files = [entry.name for entry in entries if not entry.is_dir()]
    if files:
        into[os.fsencode(key).decode(errors="replace")] = files
    for entry in entries:
        if entry.is_dir():
            _artifact_files(entry.path, f"{key}.{entry.name}", into)
