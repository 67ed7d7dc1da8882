"""The one door to git: what it is told, what it gives, and what becomes of it when it is not waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from mlxjobs.code import git
from mlxjobs.errors import SnapshotError
from mlxjobs.system.processes import process_key
from tests.code.repos import write
from tests.project import await_value


def in_a_new_process(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, sys\nfrom pathlib import Path\nfrom mlxjobs.code import git\n{code}"
    whole = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", code], env=whole, capture_output=True, text=True)


def test_any_byte_goes_in_and_comes_out(repo: Path) -> None:
    content = bytes(range(256)) + b"\n\n"
    name = git.run(repo, "hash-object", "-w", "--stdin", stdin=content).stdout[:-1].decode()
    assert git.run(repo, "cat-file", "blob", name).stdout == content


def test_code_and_words_are_given_as_they_are(repo: Path) -> None:
    done = git.run(repo, "rev-parse", "--verify", "nothing")
    assert (done.returncode, done.stdout) == (128, b"")
    assert git.quote(done) == "git: fatal: Needed a single revision"


def test_files_have_the_rights_that_are_asked_for(repo: Path, tmp_path: Path) -> None:
    assert git.run(repo, "init", "-q", str(tmp_path / "new"), umask=0o077).returncode == 0
    assert (tmp_path / "new" / ".git" / "HEAD").stat().st_mode & 0o777 == 0o600


def test_this_process_is_left_as_it_was(repo: Path) -> None:
    ask = "before = dict(os.environ), os.getcwd()\ngit.find_commit(Path({!r}))\n"
    check = "print('git' in sys.modules, before == (dict(os.environ), os.getcwd()))"
    done = in_a_new_process(ask.format(str(repo)) + check, GIT_PYTHON_TRACE="full", GIT_DIR="/nowhere")
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_the_module_is_imported_at_the_first_question() -> None:
    done = in_a_new_process("import mlxjobs.code.gitvm\nprint('git' in sys.modules)")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("before", ["", "import git as known", "os.environ['GIT_DIR'] = '/nowhere'"])
def test_that_there_is_no_git_is_told(repo: Path, tmp_path: Path, before: str) -> None:
    bare = "for name in list(os.environ): name.startswith('GIT_') and os.environ.pop(name)"
    path = f"os.environ['PATH'] = {str(tmp_path)!r}"
    ask = f"{bare}\n{before}\n{path}\ngit.find_commit(Path({str(repo)!r}))"
    said = in_a_new_process(ask).stderr
    assert f"SnapshotError: git gave no answer in {repo}: [Errno 2] No such file or directory: 'git'" in said
    assert "Is git installed (its module loaded)" in said


def test_another_git_may_be_named_as_gitpython_takes_it(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, {"bin/mine": '#!/bin/sh\necho mine >> "$0.log"\nexec git "$@"\n'})
    (tmp_path / "bin" / "mine").chmod(0o755)
    ask = f"git.find_commit(Path({str(repo)!r}))"
    done = in_a_new_process(ask, GIT_PYTHON_GIT_EXECUTABLE=str(tmp_path / "bin" / "mine"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin" / "mine.log").exists()


def test_a_git_that_takes_too_long_is_told(repo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    with pytest.raises(SnapshotError, match=r"gave no answer .* timed out after 0\.1 seconds"):
        git.run(repo, "-c", f"alias.hang=!cat '{tmp_path}/never'", "hang", wait_s=0.1)
    with suppress(OSError):  # git may have been ended before it knew what it had started
        os.close(os.open(tmp_path / "never", os.O_WRONLY | os.O_NONBLOCK))


def functions(frame: FrameType | None) -> Iterator[str]:
    """The names of the functions that a thread is in."""
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def test_after_ctrl_c_neither_git_nor_what_it_started_goes_on(repo: Path, tmp_path: Path) -> None:
    for name in ("started", "never"):
        os.mkfifo(tmp_path / name)
    hang = f"alias.hang=!echo $$ > '{tmp_path}/started'; exec cat '{tmp_path}/never'"
    pids: list[int] = []
    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        pids.append(int((tmp_path / "started").read_text()))
        await_value(lambda: "communicate" in functions(sys._current_frames()[main]), "the wait for git")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        git.run(repo, "-c", hang, "hang")
    thread.join()
    # git has told it to end; the machine may not yet have taken it away
    await_value(lambda: not process_key(pids[0]), "the end of what git started")


def test_hooks_of_the_users_own_commit_speak_their_language(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = repo / ".git" / "hooks" / "pre-commit"
    write(hook.parent, {hook.name: f'#!/bin/sh\necho "$LC_ALL,$LANGUAGE" >> "{tmp_path}/said"\n'})
    hook.chmod(0o755)
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANGUAGE", "fr")
    git.change(repo, "commit", "--allow-empty", "--message=x", stdin=b"")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    git.change(repo, "commit", "--allow-empty", "--message=x")
    assert (tmp_path / "said").read_text() == ",fr\nC.UTF-8,fr\n"


def test_a_repository_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write(tmp_path, {".git": "gitdir: /nowhere\n"})
    with pytest.raises(SnapshotError, match="cannot be read"):
        git.open_repository(tmp_path)
