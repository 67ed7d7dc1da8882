"""What is wrong with a run's history, configuration and facts, and what killed processes left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxjobs.care.findings import DAMAGED, Finding, copy_aside, move_aside
from mlxjobs.errors import MLXJobsError
from mlxjobs.record.facts import read_copy, read_plain
from mlxjobs.record.fence import LEASE, remove_folder
from mlxjobs.record.history import Event, RunState, fold, render_info
from mlxjobs.record.run import COPIED, Run
from mlxjobs.system.files import is_aside
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, load_yaml
from mlxjobs.system.seals import is_sealed, open_json

_EVENT = re.compile(r"([0-9]{4,})\.json")
_FOLDERS = re.compile(r"\.attempt-\d+|\.gone-.+")  # of attempts
_SINCE = ".since"  # holds artifacts under their names with a dot before


@dataclass
class Known:
    """A run that is looked at.

    Attributes:
        run: the run.
        events: its history, as far as it can be read.
        state: what follows from it; None if it is damaged.
        settled: no attempt of it is running or about to, so what is unfinished stays so.
        sealed: this package made it, with checksums in all its files.
    """

    run: Run
    events: list[Event] = field(default_factory=list)
    state: RunState | None = None
    settled: bool = False
    sealed: bool = False

    @property
    def by_mlxp(self) -> bool:
        """Whether MLXP made it."""
        return not self.events or bool(self.events[0].get("status"))


def _numbers(run: Run) -> list[int]:
    paths = run.history_dir.iterdir() if run.history_dir.is_dir() else ()
    return sorted(int(name[1]) for path in paths if (name := _EVENT.fullmatch(path.name)))


def lacks_events(run: Run) -> bool:
    """Whether an event is missing: then nothing may be recorded, which would take its place."""
    numbers = _numbers(run)
    return bool(numbers) and numbers[-1] != len(numbers)


def check_history(known: Known) -> Iterator[Finding]:
    """Read the events, and note in `known` what they say."""
    run = known.run
    whole = True
    for number, there in enumerate(_numbers(run), 1):
        path = run.history_dir / f"{there:04d}.json"
        if there != number:
            path = run.history_dir / f"{number:04d}.json"
            yield Finding(path, "is missing, so the state of the run is unknown; restore it from a backup")
            return
        try:
            event, sealed = open_json(path.read_bytes())
            known.sealed = sealed if number == 1 else known.sealed
            known.events.append(event)
        except (OSError, ValueError, RecursionError) as error:
            whole = False
            lost = "the state of the run is unknown; restore it from a backup"
            yield Finding(path, f"is damaged: {error}; {lost}")
    known.sealed = known.sealed and not known.by_mlxp
    if whole:
        try:
            known.state = run.state()
        except MLXJobsError as error:
            yield Finding(run.history_dir, f"cannot be understood: {error}")


def check_metadata(known: Known) -> Iterator[Finding]:
    """Look at the configuration, the settings, and info.yaml."""
    run = known.run
    sound = {}
    for path in (run.metadata / "config.yaml", run.metadata / "mlxpy.yaml", run.stored):
        problem = _problem(path, known)
        sound[path.stem] = problem is None
        if problem:
            yield Finding(path, problem)
    yield from _check_info(known)
    for name in COPIED if known.events else ():
        if sound.get(name, True):
            yield from _check_copy(run, name)


def _problem(path: Path, known: Known) -> str | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return "is missing" if known.sealed or path.name == "config.yaml" else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if is_sealed(text) is False or (known.sealed and is_sealed(text) is None):
        return "is edited or damaged: it is not what was written"
    if path != known.run.stored:
        return _unreadable(path)
    return None


def _unreadable(path: Path) -> str | None:
    try:
        content = read_plain(str(path))
    except MLXJobsError as error:
        return str(error).removeprefix(f"{path} ")
    return None if isinstance(content, dict) else "holds no keys and values"


def _check_info(known: Known) -> Iterator[Finding]:
    run = known.run
    path = run.metadata / "info.yaml"
    if known.state is None or not known.events:
        if not path.exists():
            yield Finding(path, "is missing")
        elif (problem := _unreadable(path)) is not None:
            yield Finding(path, problem)
        return
    if _is_picture(path, known.events):
        return
    newer = run.events()  # of a run that lives, it may have been painted in between
    if len(newer) > len(known.events) and _is_picture(path, newer):
        return

    def paint() -> None:
        copy_aside(run.path, path)
        run.paint()
        if not _is_picture(path, run.events()):  # why not, it has told
            raise OSError(f"{path} cannot be written")

    yield Finding(path, "does not say what the events say", "write it anew from the events", paint)


def _is_picture(path: Path, events: list[Event]) -> bool:
    try:
        text, painted = path.read_bytes(), dump_yaml(render_info(fold(events)))
    except OSError:
        return False
    if text == painted.encode():
        return True
    try:  # another version may have written it in another form
        return bool(load_yaml(text) == load_yaml(painted))
    except (NotYAMLError, RecursionError):  # of a comparison of what holds itself
        return False


def _check_copy(run: Run, name: str) -> Iterator[Finding]:
    """The Reader takes the JSON copy for the YAML file, unless it is older, or names another size."""
    path, copy = run.metadata / f"{name}.yaml", run.metadata / f".{name}.json"
    if not copy.exists() or not path.exists() or _unreadable(path) is not None:
        return
    content, size = read_plain(str(path)), path.stat().st_size
    copied: Any = read_copy(str(copy), path.stat().st_mtime_ns, size)
    if copied != content:
        what = "is older than the YAML file" if copied is None else "is not what the YAML file says"
        mend = f"write it anew from {name}.yaml"
        yield Finding(copy, what, mend, lambda: run.copy_json(name, content, size))


def check_leftovers(known: Known) -> Iterator[Finding]:
    """Look for what killed processes were writing; of a run that may go on nothing is left over."""
    if not known.settled:
        return
    run = known.run
    for folder in (run.metadata, run.metrics, run.artifacts):
        for parent, names, files in os.walk(folder):
            left = [name for name in (*names, *files) if _FOLDERS.fullmatch(name) or is_aside(name)]
            names[:] = [name for name in names if name not in left and not parent.endswith(_SINCE)]
            for name in sorted(left):
                yield _leftover(run, Path(parent, name))


def _leftover(run: Run, path: Path) -> Finding:
    if path.is_dir() and all(inside.name == LEASE for inside in path.iterdir()):
        return Finding(
            path, "is an empty folder that an attempt left", "remove it", lambda: remove_folder(path)
        )
    return Finding(
        path,
        "was left by a process that was killed",
        f"move it to {DAMAGED}",
        lambda: move_aside(run.path, path),
    )
