"""Two runs side by side, and the code of one as a folder: what a run's records and snapshot tell later."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.code import git
from mlxjobs.code.git import show
from mlxjobs.code.run_code import Code, commit_of, facts_of, live_edits, make_again, version_of
from mlxjobs.config.stored import flatten
from mlxjobs.errors import MLXJobsError, RunError, SnapshotError
from mlxjobs.record.run import Run
from mlxjobs.system.atomic import move
from mlxjobs.system.files import current_umask, sync_directory

_DIFF_S = 600
# programs that the repository's configuration names are not called: it may be another user's; and neither
# does it say what is shown: diff.ignoreSubmodules would hide other commits of them
_PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=none")
_VERSIONED = re.compile(r"\+{0,2}mlxpy\.use_version_manager=")
Pairs = dict[str, tuple[Any, Any]]


# -- differences ---------------------------------------------------------------------------------


def diff_code(old: Code, new: Code, *, options: tuple[str, ...] = ()) -> str:
    """Return what `git diff` says of the code of two runs; "": it is the same.

    Args:
        old: before.
        new: after.
        options: of `git diff`: `--stat`, `--color=always`.

    Raises:
        SnapshotError: the code of one is gone.
    """
    if old.hash == new.hash:
        return ""
    for repo in dict.fromkeys((new.repo, old.repo)):
        if all(Code(code.hash, code.root, repo).is_committed for code in (old, new)):
            # into submodules too, whose edits are commits there
            return git.ask(repo, "diff", "--submodule=diff", *_PLAIN, *options, old.hash, new.hash, "--")
    with _folder(old) as before, _folder(new) as after:
        # side by side, for short names; no repository above is asked for its settings
        place, names = before.parent, (before.name, after.name)
        if after.parent != place:
            place, names = Path("/"), (str(before), str(after))
        command = ("diff", *_PLAIN, *options, "--no-index", "--", *names)
        result = git.run(place, *command, wait_s=_DIFF_S, GIT_CEILING_DIRECTORIES=str(place.parent))
        if result.returncode not in (0, 1):
            raise SnapshotError(f"{show(before)} and {show(after)} cannot be compared.\n{git.quote(result)}")
        return os.fsdecode(result.stdout)


@contextmanager
def _folder(code: Code) -> Iterator[Path]:
    """Give the snapshot, or for a while what the repository has of it."""
    if code.root.is_dir():
        yield code.root
        return
    with tempfile.TemporaryDirectory(prefix="mlxjobs-") as folder:
        yield make_again(code, Path(folder))


def _diff_config(old: Run, new: Run) -> Pairs:
    """Return the keys whose values differ, with both values; `None` where a run has no such key.

    Secrets are shown as they are stored, masked; they are told if they differ.
    """
    one, two = ({**flatten(run.read_yaml("config")), "": None} for run in (old, new))
    pairs = {key: (one.get(key), two.get(key)) for key in {**one, **two}}
    # as they are written: 1 is neither 1.0 nor true for a program, and NaN is NaN
    changed = {key: pair for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
    secrets = old.read_secrets(), new.read_secrets()
    hidden = {key for key in {*secrets[0], *secrets[1]} if secrets[0].get(key) != secrets[1].get(key)}
    return changed | {key: (one[key], two[key]) for key in sorted(hidden) if key in one and key in two}


def _diff_environment(old: Mapping[str, Any], new: Mapping[str, Any]) -> Pairs | None:
    """Return what differs of what two runs were launched with; None: one of them recorded nothing.

    Args:
        old: what the version manager recorded of one run.
        new: of the other.
    """
    if not (old.get("requirements") and new.get("requirements")):
        return None
    one, two = (_environment(version) for version in (old, new))
    return {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}


def _environment(version: Mapping[str, Any]) -> dict[str, Any]:
    facts = version.get("environment") or {}
    found = {key: value for key, value in facts.items() if key not in ("conda", "executable")}
    for line in map(str, version["requirements"]):
        name, *rest = [line] if line.startswith("-e ") else re.split(r"==| @ ", line, maxsplit=1)
        found[name] = rest[0] if rest else line
    for package in (facts.get("conda") or {}).get("packages", []):
        name = str(package).rpartition("::")[2].partition("=")[0]
        found[f"conda {name}"] = package
    return found


# -- the code as a folder ------------------------------------------------------------------------


def check_out(code: Code, folder: Path) -> None:
    """Make a plain, writable folder of the code of a run; whole or not at all.

    Args:
        code: the code; its snapshot, or its commit in the repository, has to be there.
        folder: what to make; it may exist if it is empty.

    Raises:
        RunError: the folder holds something, or cannot be written.
        SnapshotError: the code is gone.
    """
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{show(folder)} is there, and not an empty folder: name another one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            made = _copy(code, Path(aside)) if code.root.is_dir() else make_again(code, Path(aside))
            _make_writable(made)
            move(made, folder)
            sync_directory(folder.parent)
    except (OSError, shutil.Error) as error:
        raise RunError(f"{show(folder)} cannot be made: {error}; nothing is left there") from error


def _copy(code: Code, aside: Path) -> Path:
    return Path(shutil.copytree(code.root, aside / code.hash, symlinks=True, ignore=_not_copied))


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """Files that runs left beside the code are theirs, but nobody's are what python compiled, and sockets."""
    copied = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    kinds = {name: stat.S_IFMT(Path(folder, name).lstat().st_mode) for name in names}
    return [name for name, kind in kinds.items() if name == "__pycache__" or kind not in copied]


def _make_writable(folder: Path) -> None:
    """Give all of it the modes of new files: no others, as of another user's snapshot, are taken over."""
    umask = current_umask()
    for directory, _folders, names in os.walk(folder):
        for path in (Path(directory), *(Path(directory, name) for name in names)):
            if not path.is_symlink():
                executable = path.stat().st_mode & (stat.S_IFDIR | stat.S_IXUSR)
                path.chmod((0o777 if executable else 0o666) & ~umask)


def command_in(facts: Mapping[str, Any], code: Code, folder: Path) -> str:
    """Return the command that runs a run's program again, in a folder that holds its code."""
    work_dir = Path(str(facts.get("work_dir") or code.root))
    inside = next((path for top in (code.root, code.repo) if (path := git.relative(work_dir, top))), ".")
    place = folder / inside
    words = [word for word in _split(str(facts.get("cmd") or "")) if not _VERSIONED.match(word)]
    for top in (code.root, code.repo):
        if words and Path(words[0]).is_relative_to(top):
            words[0] = os.path.relpath(folder / Path(words[0]).relative_to(top), place)
    python = str(facts.get("executable") or "python")
    return (
        f"cd {shlex.quote(str(place))} && {shlex.join([python, *words, '+mlxpy.use_version_manager=false'])}"
    )


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # MLXP has written words side by side, as they were
        return command.split()


# -- for people ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """What differs between two runs.

    Attributes:
        code: what `git diff` says; None: not known, `why` tells.
        config: key -> both values; None: one is not recorded.
        environment: name -> both values; None: one is not recorded.
        why: why something is not known, by the attribute's name.
        notes: what else is to be known of the two runs.
    """

    code: str | None
    config: Pairs | None
    environment: Pairs | None
    why: dict[str, str]
    notes: list[str]


def compare_runs(old: Run, new: Run, *, options: tuple[str, ...] = ()) -> Difference:
    """Return what differs between two runs; what is not recorded, or gone, is told as that."""
    facts = [facts_of(run) for run in (old, new)]
    log_ids = (old.log_id, new.log_id)
    code, why = _compare_code(log_ids, [commit_of(known) for known in facts], options)
    config: Pairs | None = None
    try:
        config = _diff_config(old, new)
    except RunError as error:
        why["config"] = str(error)
    versions = [version_of(known) for known in facts]
    environment = _diff_environment(*versions)
    if environment is None:
        why["environment"] = _not_recorded(log_ids, [version.get("requirements") for version in versions])
    notes = [
        f"run {log_id} {edits}"
        for log_id, edits in zip(log_ids, map(live_edits, facts), strict=True)
        if edits
    ]
    return Difference(code, config, environment, why, notes)


def _compare_code(
    log_ids: tuple[int, int], codes: list[Code | None], options: tuple[str, ...]
) -> tuple[str | None, dict[str, str]]:
    old, new = codes
    if old is None or new is None:
        return None, {"code": _not_recorded(log_ids, codes)}
    try:
        return diff_code(old, new, options=options), {}
    except MLXJobsError as error:
        return None, {"code": str(error)}


def _not_recorded(log_ids: tuple[int, int], found: Sequence[object]) -> str:
    lacking = dict.fromkeys(log_id for log_id, one in zip(log_ids, found, strict=True) if not one)
    return f"not recorded for run {' and '.join(map(str, lacking))}"
