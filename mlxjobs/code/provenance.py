"""Did a run execute what was submitted: its configuration, its code, its environment?

What it was made with is noted in its history (`frozen`: checksums of two files, the interpreter, a checksum
of the list of installed distributions), and compared when an attempt begins and when it ends. What differs
goes into `tainted` of info.yaml. Nothing here ends a run by a failure of its own: what cannot be checked is
said. It finds accidents; whoever wants to forge a run can.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mlxjobs.errors import RunError
from mlxjobs.record.fence import Superseded
from mlxjobs.record.history import RunState
from mlxjobs.record.run import Run
from mlxjobs.system.console import name_some, note
from mlxjobs.system.files import replace_file
from mlxjobs.system.seals import size_and_crc32
from mlxjobs.system.trust import own_folder

_NAMED = 20  # findings that info.yaml names; "and more" follows
_TOLD = 3  # those that a message holds


# -- what is noted ------------------------------------------------------------------------------


def environment(logs: Path) -> dict[str, Any]:
    """Return what is noted of this process' environment; the distributions are listed in the log directory.

    Args:
        logs: the log directory.
    """
    found = {"prefix": sys.prefix, "python": sys.version.split()[0]}
    try:
        text = _listed(_distributions(sys.path))
    except OSError as error:
        note(f"the installed distributions are not noted, as they cannot be listed: {error}")
        return found
    found["distributions"] = digest = f"{zlib.crc32(text.encode()):08x}"
    with suppress(OSError, RunError):  # without the list one knows that it changed, but not what
        path = _list_of(logs, digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text, durable=False)
    return found


def note_all(run: Run) -> dict[str, Any]:
    """Return what is noted of a run that begins where it was made."""
    return {**environment(run.path.parent), **configuration(run)}


def configuration(run: Run) -> dict[str, Any]:
    """Return what is noted of the files that a run starts from, once they are written."""
    return {name: size_and_crc32(path) for name, path in _files(run).items() if path.exists()}


def record_change(
    run: Run, more: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
) -> None:
    """Record that what a run starts from was changed on purpose, so that it is not a taint.

    Args:
        run: the run; its files are written.
        more: the environment, where that is noted anew too.
        facts: what `info.yaml` says otherwise from now on.
    """

    def kept(state: RunState) -> dict[str, Any]:
        frozen = {**state.noted, **(more or {}), **configuration(run)}
        # what is not so any more is taken back, what never was is not spoken of
        said = {key: fact for key, fact in (facts or {}).items() if fact is not None or key in state.facts}
        return {"event": "kept", "frozen": frozen, "facts": said}

    run.record(kept, paint=False)


def _files(run: Run) -> dict[str, Path]:
    return {"config": run.stored, "settings": run.metadata / "mlxpy.yaml"}


def _list_of(logs: Path, digest: str) -> Path:
    return own_folder(logs / ".environments") / f"{digest}.txt"


def _distributions(folders: Iterable[str]) -> dict[str, str]:
    """Return name -> version of what is installed, by the names of folders: metadata are slow to read."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(folders):
        if not isinstance(folder, str):  # python passes over it, too
            continue
        try:
            # strings, without what is not UTF-8: they are written to files
            names = [os.fsencode(name).decode(errors="replace") for name in os.listdir(folder)]  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in sorted(names):
            stem, _, kind = entry.rpartition(".")
            name, _, version = stem.partition("-")
            if version and kind in ("dist-info", "egg-info"):
                found.setdefault(name.lower(), version)
    return found


def _listed(distributions: Mapping[str, str]) -> str:
    return "".join(f"{name} {distributions[name]}\n" for name in sorted(distributions))


class Refused(RunError):
    """A strict run that is not what was submitted."""


# -- what is compared ---------------------------------------------------------------------------


class Proof:
    """Looks, when an attempt begins and when it ends, whether it executes what was submitted.

    Args:
        run: the run.
        state: its state, this attempt included.
        strict: whether a run that differs is refused.

    As a context it looks when it is left. An error of the task's is passed on as it is.
    """

    def __init__(self, run: Run, state: RunState, *, strict: bool) -> None:
        self._run = run
        self._attempt = len(state.attempts)
        self._frozen = state.noted
        self._code = state.facts.get("version_manager")
        self._tainted = list(state.tainted)
        self._known = set(state.tainted)
        self._strict = strict
        self._folders = list(sys.path)  # a task may add to it

    def begin(self) -> None:
        """Look before the task is called.

        Raises:
            Refused: something differs, and the run is strict.
        """
        found = self._look()
        if self._strict and self._tainted + found:
            raise Refused(self._refusal("is not started", self._tainted + found))
        self._tell(found)

    def __enter__(self) -> Proof:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if isinstance(error, Superseded):  # it has no say any more
            return
        self._tell(self._look())
        done = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        if done and self._strict and self._tainted:
            raise Refused(self._refusal("does not count as complete", self._tainted))

    def _refusal(self, what: str, found: list[str]) -> str:
        return (
            f"run {self._run.log_id} {what}, for it is not what was submitted ({name_some(found, _TOLD)}) "
            "and version_manager.strict is true; start a new run, or give +mlxpy.version_manager.strict=false"
        )

    def _tell(self, found: list[str]) -> None:
        self._known.update(found)
        room = max(0, _NAMED - len(self._tainted))
        found = found[:room] + (["and more"] if len(found) > room else [])
        found = [finding for finding in found if finding not in self._tainted]
        if not found:
            return
        self._tainted += found
        note(f"run {self._run.log_id} is tainted, it is not what was submitted: {name_some(found, _TOLD)}")
        event = {"event": "tainted", "attempt": self._attempt, "found": found}
        try:
            self._run.record(lambda state: event)
        except OSError as error:
            note(f"that run {self._run.log_id} is tainted cannot be recorded: {error}")

    def _look(self) -> list[str]:
        """Return what differs and was not known to."""
        found: list[str] = []
        for what, compare in (
            ("its configuration", self._compare_files),
            ("its environment", self._compare_environment),
            ("where it imports from", self._compare_modules),
        ):
            try:
                found += compare()
            except Exception as error:  # noqa: BLE001 - a program may put anything into sys.modules
                note(f"run {self._run.log_id}: {what} is not checked: {type(error).__name__}: {error}")
        return [finding for finding in found if finding not in self._known]

    def _compare_files(self) -> list[str]:
        return [
            f"{path} was changed"
            for name, path in _files(self._run).items()
            if name in self._frozen and (not path.exists() or size_and_crc32(path) != self._frozen[name])
        ]

    def _compare_environment(self) -> list[str]:
        now = {"prefix": sys.prefix, "python": sys.version.split()[0]}
        found = [
            f"{key} {self._frozen[key]} -> {value}"
            for key, value in now.items()
            if self._frozen.get(key, value) != value
        ]
        digest = self._frozen.get("distributions")
        if digest is None:
            return found
        installed = _distributions(self._folders)
        if f"{zlib.crc32(_listed(installed).encode()):08x}" == digest:
            return found
        return found + self._differences(digest, installed)

    def _differences(self, digest: str, installed: Mapping[str, str]) -> list[str]:
        try:
            text = _list_of(self._run.path.parent, digest).read_text("utf-8")
        except (OSError, RunError, UnicodeDecodeError):
            return ["the installed distributions changed"]
        before = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
        return [
            f"{name} {before.get(name, 'not installed')} -> {installed.get(name, 'not installed')}"
            for name in sorted({*before, *installed})
            if before.get(name) != installed.get(name)
        ]

    def _compare_modules(self) -> list[str]:
        return _live_files(self._code)


# -- where imports come from: the snapshot, or the folder that its user goes on editing -----------
#
# An editable install (`pip install -e .`) leads every interpreter of its environment to the user's
# folder: by a line in a .pth file, or by a finder that has a map of packages. Both come after
# $PYTHONPATH, so naming the snapshot there puts them right; a finder that asks to come first cannot be
# overtaken, and is only found out.

_INSTALLED = ("site-packages", "dist-packages")


def _tops(facts: Any) -> tuple[str, str] | None:
    """Return the tops of repository and snapshot, without links; None if the facts do not name them."""
    if isinstance(facts, Mapping):
        repo, snapshot = facts.get("repo_path"), facts.get("snapshot")
        if isinstance(repo, str) and isinstance(snapshot, str):
            return os.path.realpath(repo), os.path.realpath(snapshot)
    return None


def python_path(facts: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the folders of a snapshot that have to come before those of the live repository.

    Args:
        facts: what `info.yaml` says under `version_manager`.
        folder: the folder of the program, whose counterpart Python puts first by itself.

    Returns:
        For each folder of the repository that this interpreter imports from, its counterpart.
    """
    found_tops = _tops(facts)
    if found_tops is None:
        return ()
    repo, snapshot = found_tops
    first = None if getattr(sys.flags, "safe_path", False) else os.path.realpath(folder)
    found: dict[str, None] = {}
    for entry in (*sys.path, *_roots_of_finders()):
        if not isinstance(entry, str):  # python passes over it, too
            continue
        place = os.path.realpath(entry)
        if place == first or not _is_live(place, repo, snapshot):
            continue
        copy = os.path.normpath(os.path.join(snapshot, os.path.relpath(place, repo)))  # noqa: PTH118
        if os.path.exists(copy):  # noqa: PTH110 - what is not committed is missing, and found out later
            found[copy] = None
    return tuple(found)


def with_python_path(folders: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python looks into these folders first."""
    whole = [*folders, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(whole)} if whole else dict(environment)


def _live_files(facts: Any) -> list[str]:
    """Return the files of the modules that were imported from a repository and not from its snapshot.

    Args:
        facts: what `info.yaml` says under `version_manager`; without a snapshot there is nothing to find.
    """
    found_tops = _tops(facts)
    if found_tops is None:
        return []
    repo, snapshot = found_tops
    spared = tuple(f"{repo}/{inside}/" for inside in facts.get("link") or ())  # shown there on purpose
    live: dict[str, str] = {}  # folder -> what it is without links, or "" if all is well there
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # not asked for: some would import then
        if not (isinstance(file, str) and isinstance(name, str)):
            continue
        if "/site-packages/" in file or "/dist-packages/" in file:
            if "." in name:
                continue  # it is where its package is
            file = os.path.realpath(file)  # installed as a link, perhaps
        folder, _, base = file.rpartition("/")
        if folder not in live:
            place = os.path.realpath(folder)
            is_live = _is_live(place, repo, snapshot) and not f"{place}/".startswith(spared)
            live[folder] = place if is_live else ""
        if live[folder]:
            found.add(f"{live[folder]}/{base}")
    return sorted(found)


def _is_live(place: str, repo: str, snapshot: str) -> bool:
    """Whether a folder is of a repository, or of another snapshot of it, but not of its environments."""
    for top in (os.path.dirname(snapshot), repo):  # noqa: PTH120 - thousands of them in milliseconds
        if _is_in(place, top):
            break
    else:
        return False
    if _is_in(place, snapshot):
        return False
    if any(name in place[len(top) :].split("/") for name in _INSTALLED):
        return False
    return not any(_is_in(prefix, top) and _is_in(place, prefix) for prefix in {sys.prefix, sys.base_prefix})


def _is_in(place: str, top: str) -> bool:
    return place == top or place.startswith(f"{top}/")


def _roots_of_finders() -> Iterator[str]:
    """Return the folders that would be on the path, did the finders of editable installs not exist."""
    for finder in sys.meta_path:
        kind = finder if isinstance(finder, type) else type(finder)
        module: Any = sys.modules.get(kind.__module__)
        # setuptools: package -> folder; `editables` (hatchling, pdm): package -> file
        for packages in (getattr(module, "MAPPING", None), getattr(finder, "_redirections", None)):
            if isinstance(packages, Mapping):
                yield from filter(None, (_root(str(name), str(at)) for name, at in packages.items()))


def _root(package: str, place: str) -> str | None:
    """Return the folder below which a package has its name; None if it is called otherwise there."""
    path = Path(place)
    path = path.parent if path.name == "__init__.py" else path
    path = path.with_suffix("") if path.suffix == ".py" else path
    parts = package.split(".")
    return str(path.parents[len(parts) - 1]) if list(path.parts[-len(parts) :]) == parts else None
