"""What is wrong with a run's metrics and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mlxjobs.care.findings import DAMAGED, Finding, copy_aside, move_aside
from mlxjobs.care.fsck_metadata import Known
from mlxjobs.errors import DamagedCheckpointError, MLXJobsError
from mlxjobs.logger import checkpoint_file, checkpoints, rewind
from mlxjobs.logger.metrics import MetricsWriter
from mlxjobs.logger.values import type_name
from mlxjobs.record.facts import read_plain
from mlxjobs.record.fence import Fence
from mlxjobs.record.history import RunStatus
from mlxjobs.system.files import replace_file
from mlxjobs.system.seals import crc32_of, is_sealed, open_json

# keys that count steps, the slowest first
_STEPS = ("epoch", "epochs", "global_step", "step", "steps", "iteration", "iterations", "iter")
_NON_FINITE = ("NaN", "Infinity", "-Infinity")
_SHOWN = 3


@dataclass
class _Log:
    """What one pass over a metrics file finds.

    Attributes:
        path: the file.
        types: key -> type of its values.
        bad: numbers of lines that are not JSON objects, from 1.
        torn: its last line has no end; whether what is there is a whole object.
        lines: step and hash of each line, if all have a step.
    """

    path: Path
    types: dict[str, str] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)
    torn: bool = False
    whole: bool = True
    lines: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".json")


def _read(path: Path) -> _Log:
    log = _Log(path)
    keys: tuple[str, ...] | None = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            row = _row(line)
            if not line.endswith(b"\n"):
                log.torn, log.whole = True, row is not None
            if row is None:
                if line.strip() and not log.torn:
                    log.bad.append(number)
                continue
            _note_types(row, log.types)
            keys = tuple(key for key in _STEPS if key in row) if keys is None else keys
            step: tuple[Any, ...] = tuple(row.get(key) for key in keys)
            if step and all(type(count) is int for count in step):
                log.lines.append((step, hash(line.strip())))
            else:
                keys, log.lines = (), []
    return log


def _row(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return None


def _note_types(row: Mapping[str, Any], types: dict[str, str]) -> None:
    for key, value in row.items():
        if key not in types or types[key] == "NoneType":
            types[key] = "float" if value in _NON_FINITE else type_name(value)


def check_metrics(known: Known) -> Iterator[Finding]:
    """Look at the metrics files, what was moved away from them, and the registry of their keys."""
    folder = known.run.metrics
    if known.state is not None:
        yield from _check_seals(known)
    yield from _check_superseded(folder)
    yield from _check_remembered(known)
    logs = []
    for name in rewind.log_names(folder):
        path = folder / f"{name}.json"
        try:
            logs.append(_read(path))
        except OSError as error:
            yield Finding(path, f"cannot be read: {error.strerror}")
    for log in logs:
        if log.bad:
            shown = ", ".join(map(str, log.bad[:_SHOWN])) + (" ..." if log.bad[_SHOWN:] else "")
            are = "is" if len(log.bad) == 1 else "are"
            yield Finding(log.path, f"{len(log.bad)} of its lines {are} not JSON and not shown: {shown}")
        if log.torn and known.settled:
            yield _torn(log)
        if known.by_mlxp:
            yield from _check_steps(known, log)
    if known.settled:
        yield from _check_keys(known, {log.name: log.types for log in logs if log.types})


def _check_seals(known: Known) -> Iterator[Finding]:
    """The end of an attempt recorded the checksums; they hold until one begins, or takes lines back."""
    recorded: Any = {}
    rewinds = rewind.rewinds_so_far(known.run.metrics)
    for event in known.events:
        if event.get("event") == "started":
            recorded = {}
        elif event.get("event") == "ended" and event.get("rewinds", rewinds) == rewinds:
            recorded = event.get("metrics") or recorded
    yield from _compare(recorded, known.run.metrics)


def _compare(recorded: Any, folder: Path) -> Iterator[Finding]:
    for name, pair in recorded.items() if isinstance(recorded, dict) else ():
        if not (isinstance(pair, list) and [type(number) for number in pair[:2]] == [int, int]):
            continue  # a later version's
        size, crc = pair[:2]
        path = folder / f"{name}.json"
        there = rewind.size_of(path)
        if there < size:
            yield Finding(path, f"has lost {size - there} of {size} bytes since the attempt ended")
        elif crc32_of(path, size) != crc:
            yield Finding(path, "is edited or damaged: it is not what it was when the attempt ended")


def _check_remembered(known: Known) -> Iterator[Finding]:
    """What the newest checkpoint remembers has to be there: who goes on from it waits for it."""
    folder, places = known.run.metrics, checkpoints.folders(known.run.path)
    if not known.settled or known.state is None or known.state.status is RunStatus.COMPLETE:
        return
    records = [saved.record for place in places for saved in checkpoints.find(place) if saved.record]
    if not records:
        return
    record = max(records, key=lambda record: record.sequence)
    for name, size in record.metrics.items():
        try:
            rewind.check_whole(folder, {name: size}, rewind.sizes(folder), record.rewinds)
        except rewind.Short as short:
            what = f"has {short.size} bytes of the {size} that a checkpoint remembers"
            fix = partial(rewind.accept_loss, folder, name, size)
            yield Finding(short.path, what, "let the run go on without those lines", fix)


def _check_superseded(folder: Path) -> Iterator[Finding]:
    for note in sorted((folder / rewind.SUPERSEDED).glob(f"[0-9]*/{rewind.NOTE}")):
        try:
            content, _ = open_json(note.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            yield Finding(note, f"is damaged: {error}; it says where lines were taken away")
            continue
        for name, (size, crc) in content.get("files", {}).items():
            path = note.with_name(f"{name}.json")
            if not path.exists() or rewind.size_of(path) != size or crc32_of(path, size) != crc:
                yield Finding(path, "is edited or damaged: it is not what was moved there")


def _torn(log: _Log) -> Finding:
    if log.whole:
        mend = "end its last line"
        return Finding(log.path, "lacks the end of its last line", mend, lambda: _end_line(log.path))
    mend = f"move the line to {rewind.SUPERSEDED}/torn"
    fix = partial(rewind.cut_torn_line, log.path, Fence())
    return Finding(log.path, "has a last line that is not finished", mend, fix)


def _end_line(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\n")


# -- steps that a requeued run of MLXP's wrote twice ----------------------------------------------


def _check_steps(known: Known, log: _Log) -> Iterator[Finding]:
    same, other = _repeated(log.lines)
    if other:
        shown = ", ".join("/".join(map(str, step)) for step in other[:_SHOWN])
        more = " ..." if other[_SHOWN:] else ""
        yield Finding(log.path, f"{len(other)} steps are there twice, with other values: {shown}{more}")
    if not same:
        return
    what = f"{len(same)} lines are there twice, as a run was started again"
    if known.settled and not log.bad and not _counted(known.run.path):
        mend = f"keep the last of each, move the others to {rewind.SUPERSEDED}/repeated"
        yield Finding(log.path, what, mend, lambda: _take_out(log.path, same))
    else:
        yield Finding(log.path, what)


def _repeated(lines: list[tuple[tuple[int, ...], int]]) -> tuple[set[int], list[tuple[int, ...]]]:
    """Return the lines (from 0) that come again alike, and the steps that come again with other values.

    Where the step goes back, a run was started again. Several lines of a step one after the other
    are not a repetition.
    """
    places: dict[tuple[int, ...], list[list[int]]] = {}
    before: tuple[int, ...] = ()
    start = 0
    for number, (step, _) in enumerate(lines):
        if step < before:
            start = number
        before = step
        starts = places.setdefault(step, [])
        if starts and starts[-1][0] >= start:
            starts[-1].append(number)
        else:
            starts.append([number])
    same: set[int] = set()
    other = []
    for step, starts in places.items():
        last = [lines[number][1] for number in starts[-1]]
        for earlier in starts[:-1]:
            if [lines[number][1] for number in earlier] == last[: len(earlier)]:
                same.update(earlier)
            else:
                other.append(step)
    return same, list(dict.fromkeys(other))


def _counted(run: Path) -> bool:
    """Whether a checkpoint remembers how long the metrics files were."""
    return any(saved.record for folder in checkpoints.folders(run) for saved in checkpoints.find(folder))


def _take_out(path: Path, numbers: set[int]) -> None:
    """Move lines away: first write the copy of them, then the file without them."""
    lines = path.read_bytes().splitlines(keepends=True)
    copy = path.parent / rewind.SUPERSEDED / "repeated" / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    taken = b"".join(line for number, line in enumerate(lines) if number in numbers)
    earlier = copy.read_bytes() if copy.exists() else b""
    if not earlier.endswith(taken):  # else this is done again, as it was killed here
        replace_file(copy, earlier + taken)
    replace_file(path, b"".join(line for number, line in enumerate(lines) if number not in numbers))


# -- keys -----------------------------------------------------------------------------------------


def _check_keys(known: Known, logged: dict[str, dict[str, str]]) -> Iterator[Finding]:
    folder = known.run.metrics / ".keys"
    registered: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        problem, keys = _read_keys(path, known)
        if problem is not None:
            mend = f"move it to {DAMAGED}, write it anew from the metrics"

            def renew(path: Path = path) -> None:
                copy_aside(known.run.path, path)
                path.unlink()
                _register(known, logged)

            yield Finding(path, problem, mend, renew)
            return
        for name, inner in keys.items():
            registered.setdefault(name, set()).update(inner)
    lacking = {
        name: {key: kind for key, kind in types.items() if key not in registered.get(name, ())}
        for name, types in logged.items()
    }
    lacking = {name: types for name, types in lacking.items() if types}
    if lacking:
        names = [f"{name}.{key}" for name, types in lacking.items() for key in types]
        shown = ", ".join(names[:_SHOWN]) + (" ..." if names[_SHOWN:] else "")
        what = f"lacks {shown}" if folder.is_dir() else "is missing"
        yield Finding(folder, what, "add the keys that the metrics have", lambda: _register(known, lacking))


def _read_keys(path: Path, known: Known) -> tuple[str | None, dict[str, set[str]]]:
    """What is wrong with a registry, and its keys: ours has those of all logs, MLXP's of one."""
    try:
        text = path.read_bytes()
        content = read_plain(str(path))
    except (OSError, MLXJobsError) as error:
        return f"cannot be read: {error}", {}
    if is_sealed(text) is False or (known.sealed and is_sealed(text) is None):
        return "is edited or damaged: it is not what was written", {}
    if not isinstance(content, dict):
        return "holds no keys and values", {}
    keys: dict[str, set[str]] = {}
    for key, inner in content.items():
        if isinstance(inner, dict):
            keys[str(key)] = set(map(str, inner))
        else:
            keys.setdefault(path.stem, set()).add(str(key))
    return None, keys


def _register(known: Known, types: Mapping[str, Mapping[str, str]]) -> None:
    if known.events:
        writer = MetricsWriter(known.run.metrics)
        for name, inner in types.items():
            writer.register(name, inner)
        return
    folder = known.run.metrics / ".keys"
    folder.mkdir(exist_ok=True)
    for name, inner in types.items():  # as MLXP has them, for its own Reader
        path = folder / f"{name}.yaml"
        known_keys = read_plain(str(path)) if path.exists() else {}
        text = "".join(f"{json.dumps(key)}: ''\n" for key in [*known_keys, *inner])
        replace_file(path, text)


# -- checkpoints ----------------------------------------------------------------------------------


def check_checkpoints(known: Known) -> Iterator[Finding]:
    """Compare all checkpoints with their checksums; nothing is unpickled."""
    run = known.run.path
    for folder in checkpoints.folders(run)[:-1]:
        good, bad = [], []
        for saved in checkpoints.find(folder):
            problem = saved.problem or _damage(saved.path)
            if problem is None:
                good.append(saved)
            elif saved.path.exists():  # else a newer one has taken its place
                bad.append((saved.path, problem))
        for path, problem in bad:
            what = f"is damaged: {problem.rpartition('cannot be read: ')[2]}"
            if known.settled and any(saved.record for saved in good):
                yield Finding(path, what, f"move it to {DAMAGED}", partial(move_aside, run, path))
            else:
                yield Finding(path, f"{what}; no other can be loaded" if not good else what)


def _damage(path: Path) -> str | None:
    try:
        if checkpoint_file.verify(path) is None:
            _parse(path)
    except FileNotFoundError:
        return None
    except (DamagedCheckpointError, OSError) as error:
        return str(error)
    return None


def _parse(path: Path) -> None:
    """Read the pickle of somebody else's without running it: it has no checksum."""
    import pickletools

    with open(path, "rb") as file:
        try:
            for _ in pickletools.genops(file):
                pass
        except Exception as error:  # damaged bytes raise anything
            raise DamagedCheckpointError(str(error)) from error
