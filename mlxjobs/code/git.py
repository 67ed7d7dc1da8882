"""Git, called through GitPython: without hooks or questions, and never on the user's index, branch or files.

GitPython starts the program; it is imported at the first question, as that takes longer than the answer.
`change` alone, and what takes it back (`put_back`), touch those, and only where the user has said yes.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mlxjobs.errors import SnapshotError
from mlxjobs.system.atomic import move
from mlxjobs.system.console import name_some

if TYPE_CHECKING:
    from git import Repo

# The GIT_* variables that may stay: all others could point git to another repository, index or set of
# files than those of the folder it is called in, as a git hook or `git rebase --exec` does.
_HARMLESS = ("GIT_CONFIG_", "GIT_EXEC_", "GIT_CEIL", "GIT_DISC", "GIT_SS", "GIT_ASK", "GIT_LFS_")
# hooksPath: post-index-change and the like. fsmonitor: may be a program of the user's, or start a daemon.
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
# who made the user's own commit, and when, their variables say
_IDENTITY = ("GIT_AUTHOR_", "GIT_COMMITTER_")
_NO_CODE = (":(exclude,glob)**/__pycache__/**",)  # what python itself leaves beside code
_NAMED = 5  # files that a message names
_ANSWER_S = 120  # a question to git, on a slow network file system
_CHANGE_S = 3600  # hooks may run tests
_END_S = 5  # for what a git that is ended takes back: its locks, its workers and filters
_Result = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True)
class Commit:
    """A commit of a repository that is checked out somewhere.

    Attributes:
        top: the top of the user's work tree, without symbolic links.
        hash: the commit's full hash.
        branch: the branch that is checked out, as text, whatever its bytes are; None: detached.
    """

    top: Path
    hash: str
    branch: str | None


@dataclass(frozen=True)
class Taken:
    """A working tree that was taken into a commit, or its latest commit alone.

    Attributes:
        hash: the commit that holds it; HEAD's if nothing differs, or nothing else is wanted.
        dirty: whether tracked files differ from HEAD.
        left_out: files and folders that are not in it as they are.
        own: the commits of ours in it, which no branch knows: itself, then those in submodules.
    """

    hash: str
    dirty: bool
    left_out: list[str]
    own: tuple[Commit, ...] = ()


def run(
    place: Path, *arguments: str, wait_s: float = _ANSWER_S, stdin: bytes = b"", umask: int = -1, **env: str
) -> _Result:
    """Run git in `place`, deaf to variables meant for another call, and without hooks or questions."""
    words = ["-C", str(place), *_QUIET, *arguments]  # not by `shell`, which loses bytes of names
    # English, for the words looked for below; UTF-8, for filters. Optional locks would refresh .git/index.
    own = {"LC_ALL": "C.UTF-8", "LANGUAGE": "", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    if all((place / name).exists() for name in ("HEAD", "objects", "refs", "index")):
        # Where git keeps a submodule: its core.worktree may name a folder that is not there now, and
        # safe.bareRepository may keep git from looking.
        own["GIT_WORK_TREE"] = str(place)
        words[2:2] = ("-c", "safe.bareRepository=all")
    try:
        return _call(words, own | env, kept=_HARMLESS, wait_s=wait_s, stdin=stdin, umask=umask)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_answer(place, error) from error


def change(place: Path, *arguments: str, stdin: bytes | None = None) -> None:
    """Have git do what the user said yes to, as if they had typed it: with their hooks, identity and signing.

    Args:
        place: the top of the work tree.
        arguments: what stands after `git`.
        stdin: what git reads; None: the terminal, for what a hook may ask.

    Raises:
        SnapshotError: git refused; the message has its words, which may be those of a hook.
    """
    # their language too, which GitPython would set: empty is as good as not set
    own = {name: os.environ.get(name, "") for name in ("LC_ALL", "LANGUAGE")}
    words = ["-C", str(place), *arguments]
    try:
        result = _call(words, own, kept=(*_HARMLESS, *_IDENTITY), wait_s=_CHANGE_S, stdin=stdin)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_answer(place, error) from error
    if result.returncode:
        said = b"\n".join(filter(None, (result.stdout.strip(), result.stderr.strip())))
        raise SnapshotError(quote(subprocess.CompletedProcess(words, result.returncode, b"", said)))


def _call(
    words: Sequence[str],
    own: Mapping[str, str],
    *,
    kept: tuple[str, ...],
    wait_s: float,
    stdin: bytes | None,
    umask: int = -1,
) -> _Result:
    """Have GitPython start git, and wait for it.

    Its own waiting (`kill_after_timeout`) has a thread of its own, which outlives Ctrl-C by that time.

    Args:
        words: what stands after `git`.
        own: variables, besides those of this process.
        kept: which GIT_* variables of this process git may see: how they begin.
        wait_s: how long it may take.
        stdin: what git reads; None: what this process reads.
        umask: of git; -1: that of this process.
    """
    git = _load_gitpython()
    argv = [str(git.Git.GIT_PYTHON_GIT_EXECUTABLE), *words]
    hidden = [name for name in os.environ if name.startswith("GIT_") and not name.startswith(kept)]
    if hidden := [name for name in hidden if name not in own]:
        # GitPython adds variables to those of this process, and takes none away
        if shutil.which(argv[0]) is None:
            raise _not_there()
        argv = ["/usr/bin/env", *(word for name in hidden for word in ("-u", name)), *argv]
    istream = io.FileIO(0, closefd=False) if stdin is None else subprocess.PIPE  # a plain 0 would mean none
    try:
        running = git.Git().execute(argv, istream=istream, as_process=True, shell=False, env=own, umask=umask)
    except git.GitCommandNotFound as error:
        raise _not_there() from error
    process = running.proc
    try:
        out, err = process.communicate(stdin, timeout=wait_s)
    except BaseException:
        _end(process)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _load_gitpython() -> ModuleType:
    """Import GitPython, which looks for git at once.

    Raises:
        OSError: there is no git.
    """
    try:
        import git
    except ImportError as error:
        raise _not_there() if shutil.which("git") is None else OSError(str(error)) from error
    return git


def load_quietly() -> None:
    """Import GitPython for later, in a thread; what is wrong is told by who needs it."""
    with suppress(Exception):
        _load_gitpython()


def _not_there() -> OSError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "git")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a git that is not waited for any more: asked first, as it then ends what it started."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _no_answer(place: Path, error: Exception) -> SnapshotError:
    hint = "Is git installed (its module loaded), and the file system reachable? Try `git status` there."
    return SnapshotError(f"git gave no answer in {show(place)}: {error}\n{hint}")


def ask(place: Path, *arguments: str, **env: str) -> str:
    """Return what git answers; the encoding keeps any file name. Raises SnapshotError if it refuses."""
    result = run(place, *arguments, wait_s=_ANSWER_S, stdin=b"", umask=-1, **env)
    if result.returncode:
        raise _explain(place, result)
    return os.fsdecode(result.stdout)


def _explain(place: Path, result: _Result) -> SnapshotError:
    """Say why git refused to answer, and what to do."""
    said, where = quote(result), show(place)
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


def quote(result: _Result) -> str:
    """Return git's own words, at most the first 8 lines: a full disk gives one for each file."""
    lines = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {result.returncode}"]
    return "git: " + "\n     ".join(lines[:8])


def find_commit(place: Path) -> Commit:
    """Find the repository that `place` is in, and its latest commit."""
    # The path comes last, whole: it may contain newlines.
    questions = ("--is-bare-repository", "HEAD", "--symbolic-full-name", "HEAD", "--show-toplevel")
    _bare, commit, rest = ask(place, "rev-parse", *questions).split("\n", 2)
    if rest.startswith("/"):  # a branch or tag has the name HEAD too, so git gives no answer to that question
        rest = os.fsdecode(run(place, "symbolic-ref", "-q", "HEAD").stdout or b"HEAD\n") + rest
    ref, name = rest.split("\n", 1)
    top = Path(name[:-1])
    if not place.resolve().is_relative_to(top):
        raise SnapshotError(
            f"The repository of {show(place)} says that its files are in {show(top)} (core.worktree), "
            "so what is here is in no version.\nLaunch from there, or run `git config --unset core.worktree`."
        )
    branch = os.fsencode(ref.removeprefix("refs/heads/")).decode(errors="replace")
    return Commit(top, commit, None if ref == "HEAD" else branch)


@lru_cache(maxsize=2)  # a commit never changes, and a launch asks for the same one again
def read_tree(commit: Commit) -> dict[str, str]:
    """Return what each path of the commit is, folders and submodules too: mode, type and hash."""
    lines = ask(commit.top, "ls-tree", "-r", "-t", "-z", commit.hash).split("\0")[:-1]
    entries = (line.partition("\t") for line in lines)
    return {path: what for what, _, path in entries}


def list_tree(commit: Commit) -> tuple[set[str], list[str]]:
    """List all files and folders of the commit, and which of them are submodules."""
    tree = read_tree(commit)
    return {".", *tree}, [path for path, what in tree.items() if what.startswith("160000 ")]


def has_commit(place: Path, name: str) -> bool:
    """Tell whether the repository has this commit. Raises SnapshotError if it cannot be read."""
    result = run(place, "cat-file", "-e", f"{name}^{{commit}}")
    said = quote(result)
    if result.returncode and any(word in said for word in ("dubious ownership", "unsafe repo", "not a git")):
        raise _explain(place, result)
    return not result.returncode


def list_left_out(
    top: Path, *ignore: Path, each: bool = False, inner: bool = True, asking: Callable[..., str] = ask
) -> list[tuple[str, bool]]:
    """List what differs from the latest commit, tracked files (True) before untracked ones.

    Args:
        top: the top of the work tree.
        ignore: folders that are not looked into.
        each: name all untracked files, where else a folder stands for those in it.
        inner: list submodules in which something is edited, besides those of which another commit is there.
        asking: what asks git, as `ask` does, for two threads at once.
    """
    from concurrent.futures import ThreadPoolExecutor  # with logging, which `mlxjobs ls` needs not

    places = all_but(top, ignore)
    ignored = f"--ignore-submodules={'untracked' if inner else 'dirty'}"
    options = ("--porcelain=v1", "-z", "--no-renames", "-uno", ignored)
    # Two goes side by side, as `git status` alone looks at all files and then into all folders.
    with ThreadPoolExecutor(1) as pool:
        untracked = pool.submit(list_untracked, top, *ignore, each=each, asking=asking)
        tracked = asking(top, "status", *options, "--", *places).split("\0")[:-1]
        return [(line[3:], True) for line in tracked] + [(path, False) for path in untracked.result()]


def list_untracked(
    top: Path, *ignore: Path, each: bool = True, asking: Callable[..., str] = ask
) -> list[str]:
    """List every untracked file, or the folders of nothing else; a repository inside ends with a slash."""
    options = ("--others", "--exclude-standard", "-z")
    folded = () if each else ("--directory", "--no-empty-directory")
    return asking(top, "ls-files", *options, *folded, "--", *all_but(top, ignore)).split("\0")[:-1]


def list_conflicts(top: Path) -> list[str]:
    """List the files whose conflicts are not resolved."""
    lines = ask(top, "ls-files", "--unmerged", "-z").split("\0")[:-1]
    return sorted({line.partition("\t")[2] for line in lines})


def open_repository(top: Path) -> Repo:
    """Return GitPython's view of a repository, for what is in its own files: where they are, and its remotes.

    It reads them itself, and asks neither git nor whether the owner is trusted: git has answered before.
    Commits, references and the index are for git to read: there are kinds of each that GitPython knows not.

    Raises:
        SnapshotError: it cannot be read.
    """
    git = _load_gitpython()
    try:
        opened: Repo = git.Repo(top, expand_vars=False)
    except (git.GitError, OSError, ValueError) as error:
        raise SnapshotError(f"The repository of {show(top)} cannot be read: {error}") from error
    return opened


def git_folder(top: Path) -> Path:
    """Return the folder of the work tree's HEAD and index."""
    return Path(open_repository(top).git_dir)


def put_back(index: Path, content: bytes) -> str:
    """Write what an index was; return why it cannot be, or "". Its lock is taken, as git does."""
    lock = index.with_name(f"{index.name}.lock")
    try:
        if not content:
            index.unlink(missing_ok=True)
        elif index.read_bytes() != content:
            _replace_index(index, content, lock)
        return ""
    except OSError as error:
        return f", and {show(index)} cannot be put back: {error.strerror}: {show(lock)}"


def _replace_index(index: Path, content: bytes, lock: Path) -> None:
    with lock.open("xb") as stream:
        os.fchmod(stream.fileno(), index.stat().st_mode & 0o777)
        stream.write(content)
    move(lock, index)


def all_but(top: Path, ignore: tuple[Path, ...] = ()) -> list[str]:
    """Return the pathspecs of all that is code: not in these folders, and not made by python itself."""
    # a link is what is seen of it, and so are files that are reached through one
    places = {place for path in ignore for place in (without_links(path), path.resolve())}
    inside = (relative(place, top) for place in sorted(places))
    return [".", *_NO_CODE, *(f":(exclude,literal){path}" for path in inside if path not in (None, "."))]


def without_links(path: Path) -> Path:
    """Return where a path is, without the links on the way to it; one that it is itself stays."""
    path = Path(os.path.normpath(path))
    return path.parent.resolve() / path.name


def relative(path: Path, top: Path) -> str | None:
    """Return the path below `top` as git writes it; None if it is elsewhere."""
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else None


def show(path: Path | str) -> str:
    """Return the path for a message: odd characters are escaped."""
    return str(path) if str(path).isprintable() else repr(str(path))


def show_some(paths: Sequence[str]) -> str:
    """Return the first of these paths for a message, and how many more there are."""
    return name_some([show(path) for path in paths], _NAMED)
