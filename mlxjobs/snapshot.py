"""Frozen copies of the user's code: a git commit becomes a folder, made once for all its runs.

Files of the folder are read-only.

The copy is made by one `git read-tree --reset -u` whose work tree is the new, empty folder and whose
index is a private file, so that nothing of the user's is written. Chosen over the other ways because:
- `git archive` obeys export-ignore and export-subst, which leave files out and alter others;
- `git checkout-index --prefix` reads .gitattributes in the user's work tree, committed or not;
- `git worktree` and `git clone` register or configure something, and run hooks.
Git itself makes symbolic links, executable bits, line ends and filters (LFS) as in the user's own
checkout, has no trouble with odd names, and writes many files in parallel. It holds the folder as its
current directory: whatever renames the folder meanwhile, it never makes a second one in its place.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.errors import SnapshotError
from mlxjobs.files import create_file, sync_directory
from mlxjobs.trust import stranger

# The GIT_* variables that may stay: all others could point git to another repository, index or set of
# files than those of the folder it is called in, as a git hook or `git rebase --exec` does.
_HARMLESS = ("GIT_CONFIG_", "GIT_EXEC_", "GIT_CEIL", "GIT_DISC", "GIT_SS", "GIT_ASK", "GIT_LFS_")
# hooksPath: post-index-change and the like. fsmonitor: may be a program of the user's, or start a daemon.
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
# splitIndex would write a part of the private index into the user's .git. A sparse checkout is how the
# user works, not what the commit holds. The cap on workers is for login nodes with hundreds of cores.
_FULL_COPY = ("core.splitIndex=false", "core.sparseCheckout=false", "submodule.recurse=false",
              f"checkout.workers={min(8, os.cpu_count() or 1)}")  # fmt: skip
_ANSWER_S, _COPY_S = 120, 3600  # a question to git and a whole copy, on a slow network file system
_ABANDONED_S = 24 * 3600  # no copy takes a day: a temporary folder that old has no owner, on any host
_Result = subprocess.CompletedProcess[bytes]
_NAMED = 5  # files that a warning names
_ASIDE = re.compile(r"\.[0-9a-f]{40,64}\.(?P<host>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp(\.index(\.lock)?)?")
_HINT = "Set version_manager.parent_work_dir to a writable folder of its own with enough free space."


@dataclass(frozen=True)
class Launch:
    """What a version manager is told of the command that was typed.

    Attributes:
        work_dir: the directory where the command was typed.
        program: the script that runs, absolute or relative to `work_dir`; None for `python -m`.
        parent_work_dir: where snapshots are kept, absolute or relative to `work_dir`.
        compute_requirements: whether to list the installed distributions.
        ignore: folders, such as the log directory, whose files are not missed in a snapshot.
    """

    work_dir: Path
    program: Path | None
    parent_work_dir: Path
    compute_requirements: bool = False
    ignore: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Frozen:
    """The frozen code of a run: the top folder of the copy, the directory to run in, the script to run.

    Attributes:
        facts: what `info.yaml` says under `version_manager`.
        warnings: what the user should be told, one text each.
    """

    root: Path
    work_dir: Path
    program: Path | None
    facts: dict[str, Any]
    warnings: tuple[str, ...]


class VersionManager(ABC):
    """Base of all version managers; `version_manager.name` takes the import path of a subclass."""

    @abstractmethod
    def freeze(self, launch: Launch) -> Frozen:
        """Give a copy of the code that later edits do not change.

        Raises:
            SnapshotError: the code cannot be frozen.
        """


class GitVM(VersionManager):
    """Run the latest commit of the git repository that holds the program, from a copy of its own."""

    def freeze(self, launch: Launch) -> Frozen:
        """Give the read-only snapshot `<parent_work_dir>/<repository>/<commit hash>/`, made if not there yet.

        Safe to call from any number of processes and hosts at once: all get the same complete copy.
        The user's branch, index, stash and files are only read, and no hook runs. A directory outside
        the repository stays what it is.

        Raises:
            SnapshotError: git or the repository cannot be used, what should run is not committed, or
                the copy cannot be written.
        """
        program = None if launch.program is None else launch.work_dir / launch.program
        if program is not None:  # a committed link to a script runs as the link it is
            program = program.parent.resolve() / program.name
        work_dir = launch.work_dir.resolve()
        commit = _find_commit(work_dir if program is None else program.parent)
        wanted = [path for path in (program, work_dir) if path is not None]
        parent_work_dir = (launch.work_dir / launch.parent_work_dir.expanduser()).absolute()
        root = parent_work_dir / (commit.top.name or "root") / commit.hash
        _check_owner(root)
        if root.is_dir():
            _check_committed(commit, wanted, lambda path: os.path.lexists(root / path))
        else:
            _make_snapshot(commit, wanted, root)
        ignore = (launch.work_dir / path for path in launch.ignore)
        left_out = _list_left_out(commit.top, root.parent, *ignore)
        facts = {
            "name": type(self).__name__,
            "commit_hash": commit.hash,
            "repo_path": str(commit.top),
            "snapshot": str(root),
            "branch": commit.branch,
            "dirty": any(tracked for _, tracked in left_out),  # as `git describe --dirty` means it
            "requirements": requirements() if launch.compute_requirements else [],
        }
        inside = _relative(work_dir, commit.top)
        place = root / inside if inside is not None else launch.work_dir
        script = program and root / program.relative_to(commit.top)
        warnings = _warn(commit, [path for path, _ in left_out], _read_submodules(root))
        return Frozen(root, place, script, facts, warnings)


def _check_owner(root: Path) -> None:
    """Raise if the snapshot, or the folder of the repository's snapshots, is another user's."""
    whose = stranger(root.parent, root)
    if whose is not None:
        raise SnapshotError(
            f"a snapshot that is another user's is not run as you: {whose},\n"
            "or set version_manager.parent_work_dir to a folder of your own."
        )


def requirements() -> list[str]:
    """List the installed distributions as sorted `name==version`, each name once: the one `import` finds.

    What comes from a folder, an archive or a repository (with its commit) is `name @ url`.
    """
    from importlib import metadata  # imports the e-mail parser, which a launch without this never needs

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if "Name" not in distribution.metadata:  # what an interrupted pip leaves behind
            continue
        name = distribution.metadata["Name"]
        url = _parse_direct_url(distribution.read_text("direct_url.json"))
        key = re.sub(r"[-_.]+", "-", name).lower()
        found.setdefault(key, f"{name} @ {url}" if url else f"{name}=={distribution.version}")
    return [found[key] for key in sorted(found)]


def _parse_direct_url(text: str | None) -> str | None:
    """The origin, as https://packaging.python.org/en/latest/specifications/direct-url/ records it."""
    import json

    record = json.loads(text) if text else {}
    vcs = record.get("vcs_info")
    url = f"{vcs['vcs']}+{record['url']}@{vcs['commit_id']}" if vcs else record.get("url")
    return f"{url}#subdirectory={record['subdirectory']}" if record.get("subdirectory") else url


@dataclass(frozen=True)
class _Commit:
    top: Path  # of the user's work tree, without symbolic links
    hash: str
    branch: str | None  # None: detached


def _git(place: Path, *arguments: str, wait_s: float = _ANSWER_S, **env: str) -> _Result:
    """Run git in `place`, deaf to variables meant for another call, and without hooks or questions."""
    argv = ["git", "-C", str(place), *_QUIET, *arguments]  # not by `shell`, which loses bytes of names
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(_HARMLESS)}
    # English, for the words looked for below; UTF-8, for filters. Optional locks would refresh .git/index.
    own |= {"LC_ALL": "C.UTF-8", "LANGUAGE": "", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=wait_s, env=own | env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        hint = "Is git installed (its module loaded), and the file system reachable? Try `git status` there."
        raise SnapshotError(f"git gave no answer in {_show(place)}: {error}\n{hint}") from error


def _ask(place: Path, *arguments: str) -> str:
    """What git answers; the encoding keeps any file name."""
    result = _git(place, *arguments)
    if result.returncode:
        raise _explain(place, result)
    return os.fsdecode(result.stdout)


def _explain(place: Path, result: _Result) -> SnapshotError:
    """Say why git refused to answer, and what to do."""
    said, where = _quote_git(result), _show(place)
    what = f"git cannot read the repository of {where}"
    is_damaged = any((path / ".git").exists() for path in (place, *place.parents))
    hint = "It may be damaged: run `git status` and `git fsck` there."
    if "dubious ownership" in said or "unsafe repository" in said:
        what = f"git does not trust the repository of {where}, which belongs to another user"
        hint = "If you trust its owner, run the `git config ... safe.directory` line that git names."
    elif result.stdout.startswith(b"true"):
        what = f"The repository of {where} is bare: it has no files to launch from"
        hint = "Launch from a clone or a `git worktree` of it."
    elif "not a git repository (or any" in said and not is_damaged:
        what = f"{where} is in no git repository, so there is no version to freeze"
        hint = "Run `git init`, `git add` and `git commit` there, or set use_version_manager=false."
    elif "unknown revision" in said:
        what = f"The repository of {where} has no commit, so there is no version to freeze"
        hint = "Run `git add` and `git commit` (if it had one, `git fsck`), or set use_version_manager=false."
    return SnapshotError(f"{what}.\n{hint}\n{said}")


def _quote_git(result: _Result) -> str:
    """Git's own words, at most the first 8 lines: a full disk gives one for each file."""
    lines = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"]
    return "git: " + "\n     ".join(lines[:8])


def _find_commit(place: Path) -> _Commit:
    """Find the repository that `place` is in, and its latest commit."""
    # The path comes last, whole: it may contain newlines.
    questions = ("--is-bare-repository", "HEAD", "--symbolic-full-name", "HEAD", "--show-toplevel")
    _bare, commit, ref, top = _ask(place, "rev-parse", *questions).split("\n", 3)
    return _Commit(Path(top[:-1]), commit, None if ref == "HEAD" else ref.removeprefix("refs/heads/"))


def _list_tree(commit: _Commit) -> tuple[set[str], list[str]]:
    """List all files and folders of the commit, and which of them are submodules."""
    lines = _ask(commit.top, "ls-tree", "-r", "-t", "-z", commit.hash).split("\0")[:-1]
    entries = [line.partition("\t") for line in lines]
    submodules = [path for mode, _, path in entries if mode.startswith("160000 ")]
    return {".", *(path for _, _, path in entries)}, submodules


def _list_left_out(top: Path, *ignore: Path) -> list[tuple[str, bool]]:
    """List what differs from the latest commit, tracked files (True) before untracked ones."""
    inside = (_relative(path.resolve(), top) for path in ignore)
    excluded = [f":(exclude,literal){path}" for path in inside if path not in (None, ".")]
    options = ("--porcelain=v1", "-z", "--no-renames", "-unormal", "--ignore-submodules=dirty")
    lines = _ask(top, "status", *options, "--", ".", *excluded).split("\0")[:-1]
    return sorted(((line[3:], not line.startswith("??")) for line in lines), key=lambda item: not item[1])


def _relative(path: Path, top: Path) -> str | None:
    """The path below `top` as git writes it; None if it is elsewhere."""
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else None


def _show(path: Path | str) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))


def _check_committed(commit: _Commit, wanted: list[Path], is_held: Callable[[str], bool]) -> None:
    for path in wanted:
        inside = _relative(path, commit.top)
        if inside is not None and not is_held(inside):
            raise SnapshotError(
                f"{_show(path)} is not in the latest commit ({commit.hash[:12]}) of {_show(commit.top)}.\n"
                "Run `git add` and `git commit` to have it in the snapshot, or set use_version_manager=false."
            )


def _warn(commit: _Commit, left_out: list[str], submodules: list[str]) -> tuple[str, ...]:
    """Say what the snapshot lacks, one text for each reason."""
    what = f"the snapshot of commit {commit.hash[:12]} of {_show(commit.top)}"
    named = ", ".join(map(_show, left_out[:_NAMED]))
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    texts = []
    if left_out:
        texts.append(f"Not committed, so not in {what}: {named}{more}. Commit what the run needs.")
    if submodules:
        texts.append(f"Submodules are empty folders in {what}: {', '.join(map(_show, submodules))}.")
    return tuple(texts)


def _make_snapshot(commit: _Commit, wanted: list[Path], root: Path) -> None:
    """Make `root`, whole and read-only, by writing aside and renaming; nothing is left behind on failure."""
    folder = root.parent
    paths, submodules = _list_tree(commit)
    _check_committed(commit, wanted, paths.__contains__)
    if _relative(folder.resolve(), commit.top) in paths:
        raise SnapshotError(f"Snapshots cannot be kept in {_show(folder)}, which holds code.\n{_HINT}")
    aside = _name_aside(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hide_from_git(folder)
        remove_abandoned(root)
        aside.mkdir()
        _check_out(commit, aside)
        _protect(aside)
        _flush(aside)
        if submodules:
            create_file(root.with_name(f".{root.name}.submodules"), os.fsencode("\0".join(submodules)))
        _publish(aside, root)
    except OSError as error:
        raise SnapshotError(f"The snapshot {_show(root)} cannot be made: {error}\n{_HINT}") from error
    finally:
        _remove_aside(aside)  # gone already when all went well


def _read_submodules(root: Path) -> list[str]:
    """The submodules noted when the snapshot was made, as asking git anew each time would take longer."""
    with suppress(FileNotFoundError):
        return os.fsdecode(root.with_name(f".{root.name}.submodules").read_bytes()).split("\0")
    return []


def _name_aside(root: Path) -> Path:
    owner = f"{os.uname().nodename}.{os.getpid()}"  # and a token, for two threads of this process
    return root.parent / f".{root.name}.{owner}.{os.urandom(4).hex()}.tmp"


def _hide_from_git(folder: Path) -> None:
    """Keep the snapshots out of `git status`: in `parent_work_dir`, or below where it holds other things."""
    ours = re.compile(rf"{re.escape(folder.name)}|\.?[0-9a-f]{{40,64}}(\..*)?|\.?\.gitignore.*")
    for place in (folder.parent, folder):
        if all(ours.fullmatch(path.name) for path in place.iterdir()):
            create_file(place / ".gitignore", "*\n")
            return


def _check_out(commit: _Commit, aside: Path) -> None:
    """Write the commit's files into the empty folder `aside`."""
    settings = [word for setting in _FULL_COPY for word in ("-c", setting)]
    command = (*settings, f"--work-tree={aside}", "read-tree", "--reset", "-u", commit.hash)
    result = _git(commit.top, *command, wait_s=_COPY_S, GIT_INDEX_FILE=f"{aside}.index")
    if result.returncode:
        raise SnapshotError(
            f"git could not copy commit {commit.hash[:12]} of {_show(commit.top)} to {_show(aside.parent)};"
            f" nothing is left there.\n{_HINT} If git misses an object, run `git fsck`.\n{_quote_git(result)}"
        )


def _protect(aside: Path) -> None:
    """Take the right to write from the files, so that no run changes what others run.

    Folders stay writable: programs leave files beside their code (`__pycache__`, lightning_logs).
    """
    for directory, _, names in os.walk(aside):
        for path in (Path(directory, name) for name in names):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o555)


def _flush(aside: Path) -> None:
    """Have the files on the disk before the folder gets its name, else a power failure may empty them."""
    # One call for the whole file system: 5,000 single fsync take minutes on a spinning disk.
    argv = ["sync", "-f", str(aside)]
    with suppress(OSError, subprocess.SubprocessError):  # no such program, or too slow: only safety is lost
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S)


def _publish(aside: Path, root: Path) -> None:
    """Give the copy its name; if another launch was faster, its copy is the one."""
    try:
        aside.rename(root)  # never replaces a folder that holds something: rename(2)
        sync_directory(root.parent)
    except OSError:
        if not root.is_dir():
            raise


def abandoned(folder: Path) -> list[Path]:
    """Return what launches that were killed have left in a folder of snapshots."""
    found = [(path, _ASIDE.fullmatch(path.name)) for path in folder.iterdir()]
    return [path for path, name in found if name and _is_abandoned(path, name["host"], int(name["pid"]))]


def lacking(root: Path, repository: Path) -> list[str]:
    """Return the files of a snapshot's commit that the snapshot has not."""
    paths, _ = _list_tree(_Commit(repository, root.name, None))
    return sorted(path for path in paths if not os.path.lexists(root / path))


def remove_abandoned(root: Path) -> None:
    """Remove what launches that were killed have left beside a snapshot."""
    for path in abandoned(root.parent):
        # Renamed first: if its owner lives after all (another container with this host's name), it
        # fails to publish, where it could have published what is half removed.
        claimed = _name_aside(root)
        with suppress(OSError):  # another launch was faster
            path.rename(claimed)
            _remove_aside(claimed)


def _is_abandoned(path: Path, host: str, pid: int) -> bool:
    try:
        if host == os.uname().nodename:
            os.kill(pid, 0)
        return time.time() - path.lstat().st_mtime > _ABANDONED_S
    except ProcessLookupError:
        return True
    except OSError:  # removed by another launch meanwhile, or alive and another user's
        return False


def _remove_aside(aside: Path) -> None:
    import shutil  # with its compression libraries, which finding an existing snapshot never needs

    shutil.rmtree(aside, ignore_errors=True)
    for path in (aside, Path(f"{aside}.index"), Path(f"{aside}.index.lock")):
        with suppress(OSError):  # what is left is an abandoned name, tried again by the next copy
            path.unlink()
