"""The questions before code is frozen: what to do with untracked files and uncommitted changes, where to run.

All is asked before anything is done, so that whoever leaves at a question leaves the repository as it was.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import show
from mlxjobs.code.gitvm import find_code, not_missed
from mlxjobs.code.links import find_links
from mlxjobs.config.rehearsal import Mistake
from mlxjobs.errors import SnapshotError
from mlxjobs.system.console import ask_letter, note, read_line, shorten
from mlxjobs.version_manager import Launch

_SHOWN = 10  # files that a question names
_MESSAGE = "Commit before a launch"
_AGAIN = "check again"
# what git has in its folder while something is in progress
_IN_PROGRESS = {
    "MERGE_HEAD": "A merge is in progress, which this commit would conclude",
    "CHERRY_PICK_HEAD": "A cherry-pick is in progress, which this commit would conclude",
    "REVERT_HEAD": "A revert is in progress, which this commit would conclude",
    "rebase-merge": "A rebase is in progress",
    "rebase-apply": "A rebase is in progress",
}


@dataclass
class _Answers:
    """What is to be done once all is answered: files to add, a commit's message, whether to make a copy."""

    add: list[str] = field(default_factory=list)
    message: str | None = None
    copy: bool = True


def ask_about_uncommitted(launch: Launch, find_mistake: Callable[[], Mistake | None] = lambda: None) -> bool:
    """Ask the user what the snapshot should hold and where to run; add and commit what they say.

    Args:
        launch: the command that was typed.
        find_mistake: tells what is wrong with it as the files are. Where what is not committed can make no
            difference nothing is asked; else it is told, and what is answered decides.

    Returns:
        Whether to run from a copy; False: from the files as they are.

    Raises:
        SnapshotError: git or the repository cannot be used, the terminal was closed, or git refused to
            add or commit; the repository is as it was.
        MLXJobsError: the mistake, as what would run has it too; the repository is as it was.
        KeyboardInterrupt: Ctrl-C; the repository is as it was.
    """
    _program, commit, folder = find_code(launch)
    find_links(launch.link, launch.work_dir, commit.top)  # raises if they are wrong
    ignore = not_missed(launch, folder)
    answers = _Answers()
    mistake = find_mistake()
    if mistake is not None:
        _refuse(mistake, launch, commit.top, ignore, answers)
        note(
            f"as the files are, this command line is wrong: {mistake.error}\n"
            "What is not committed may be the reason, so what you answer decides. Ctrl-C leaves all as it is."
        )
    try:
        if launch.include != "all":  # what is taken as it is needs no question
            _ask_untracked(commit.top, ignore, answers)
        if launch.include == "commit":
            _ask_uncommitted(commit.top, ignore, answers)
        where = f"here, in {show(commit.top)}: what is edited later is what runs"
        answers.copy = ask_letter("Where to run?", ["from a copy, which stays as it is", where]) == "a"
    except EOFError:
        raise SnapshotError(
            "there was no answer, so nothing was done. interactive_mode=false launches without questions."
        ) from None
    # it may have been put right in another window
    if mistake is not None and (mistake := find_mistake()) is not None:
        _refuse(mistake, launch, commit.top, ignore, answers)
    _apply(commit.top, answers)
    return answers.copy


def _refuse(mistake: Mistake, launch: Launch, top: Path, ignore: Sequence[Path], answers: _Answers) -> None:
    """Raise the mistake, unless what would run may lack what it hangs on."""
    left_out = git.list_left_out(top, *ignore, each=True)
    if not answers.copy or launch.include == "all":
        left_out = []
    elif launch.include == "tracked" or answers.message is not None:
        left_out = [(path, tracked) for path, tracked in left_out if not tracked and path not in answers.add]
    if not any(mistake.hangs_on(top / path) for path, _tracked in left_out):
        raise mistake.error


# -- the questions --------------------------------------------------------------------------------


def _ask_untracked(top: Path, ignore: Sequence[Path], answers: _Answers) -> None:
    while True:
        found = [path for path, tracked in git.list_left_out(top, *ignore) if not tracked]
        if not found:
            return
        question = f"Files of {show(top)} that git does not track:\n{_listed(found)}"
        letter = ask_letter(question, ["add them, or some of them", _AGAIN, "ignore them"])
        if letter == "a":
            answers.add = _choose(git.list_untracked(top, *ignore))
        if letter != "b":
            return


def _choose(untracked: list[str]) -> list[str]:
    """Ask which files to add, until all that is named is there."""
    while True:
        words = _split(read_line("Which? all, or names and patterns: "))
        if words == ["all"]:
            words = ["*"]
        chosen = [_matching(word, untracked) for word in words]
        for word, paths in zip(words, chosen, strict=True):
            if not paths:
                note(f"no untracked file is named {word}")
        if words and all(chosen):
            found = sorted({path for paths in chosen for path in paths})
            inner = [path for path in found if path.endswith("/")]
            if inner:
                note(f"repositories of their own are not added: {', '.join(map(show, inner))}")
            return [path for path in found if path not in inner]


def _split(line: str) -> list[str]:
    """Split an answer at spaces and commas; quotes keep those of a name."""
    words = shlex.shlex(line, posix=True)
    words.whitespace, words.whitespace_split, words.commenters = " \t,", True, ""
    try:
        return list(words)
    except ValueError as error:  # a quote that is not closed
        note(str(error))
        return []


def _matching(word: str, paths: Iterable[str]) -> list[str]:
    """Return the files of this name, of the folder of this name, or that match the pattern."""
    name = word.removeprefix("./").rstrip("/")
    named = [path for path in paths if path.rstrip("/") == name or path.startswith(f"{name}/")]
    return named or [path for path in paths if fnmatchcase(path, name)]


def _ask_uncommitted(top: Path, ignore: Sequence[Path], answers: _Answers) -> None:
    while True:
        if answers.add:  # else somebody has added them meanwhile
            answers.add = sorted({*answers.add} & {*git.list_untracked(top, *ignore)})
        # what is edited inside of a submodule, no commit of this repository takes
        left_out = git.list_left_out(top, *ignore, inner=False)
        found = [path for path, tracked in left_out if tracked] + answers.add
        if not found:
            return
        question = f"Changes in {show(top)} that are not committed:\n{_listed(found)}"
        branch = git.find_commit(top).branch
        where = "on no branch, as HEAD is detached" if branch is None else f"on {branch}"
        commits = f"commit them {where}{_in_progress(top)}"
        letter = ask_letter(question, [commits, _AGAIN, "ignore them"])
        if letter == "a":
            conflicts = git.list_conflicts(top)
            if conflicts:
                note(f"conflicts have to be resolved before: {', '.join(map(show, conflicts))}")
                continue
            answers.message = read_line(f"Message [{_MESSAGE}]: ") or _MESSAGE
        if letter != "b":
            return


def _in_progress(top: Path) -> str:
    folder = git.git_folder(top)
    found = [words for name, words in _IN_PROGRESS.items() if (folder / name).exists()]
    return f". {found[0]}" if found else ""


def _listed(paths: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in shorten([show(path) for path in paths], _SHOWN))


# -- what was answered ----------------------------------------------------------------------------


def _apply(top: Path, answers: _Answers) -> None:
    """Add and commit, both or neither."""
    with _index_kept(top):
        if answers.add:
            names = os.fsencode("".join(f"{path}\0" for path in answers.add))
            command = ("--literal-pathspecs", "add", "--pathspec-from-file=-", "--pathspec-file-nul")
            git.change(top, *command, stdin=names)
        if answers.message is not None:
            git.change(top, "commit", "--all", f"--message={answers.message}")
    if answers.message is not None:
        now = git.find_commit(top)
        note(f"committed as {now.hash[:12]}{f' on {now.branch}' if now.branch else ''}")


@contextmanager
def _index_kept(top: Path) -> Iterator[None]:
    """Put the index back if what is done inside fails before there is a new commit."""
    head = git.find_commit(top).hash
    index = git.git_folder(top) / "index"
    before = index.read_bytes() if index.exists() else b""
    try:
        yield
    except BaseException as error:
        left = ""
        if git.find_commit(top).hash == head:
            left = git.put_back(index, before)
        if not isinstance(error, SnapshotError):
            raise
        raise SnapshotError(
            f"git did not do what was answered{left or ', and all is as it was'}.\n{error}"
        ) from error
