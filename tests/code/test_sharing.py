"""What snapshots have in common is one file on the disk; what differs in any way never is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxjobs.code.copying import find_missing
from mlxjobs.system.turn import turn
from tests.code.repos import AS_A_PROGRAM, commit, contents, freeze, git, leftovers, shared, write


def test_unchanged_files_are_shared_and_the_others_are_those_of_the_commit(repo: Path) -> None:
    (repo / "link").symlink_to("main.py")
    odd = {"new\nline": "x", os.fsdecode(b"\xff"): "y", "deep/er/file": "z"}
    commit(repo, odd | {"gone/too": "a", "was_a_file": "b", "was/a/folder": "c", "run.sh": "#!/bin/sh\n"})
    first = freeze(repo).root
    before = contents(first)
    git(repo, "rm", "-rq", "gone", "was_a_file", "was")
    (repo / "run.sh").chmod(0o755)
    commit(repo, {"main.py": "later", "was_a_file/now": "d", "was": "e", "new.py": "f"})
    second = freeze(repo).root
    assert contents(second) == contents(repo)
    assert contents(first) == before
    assert shared(first, second) == {*odd, "link", "pkg/part.py"}
    assert [path for path in second.rglob("*") if path.is_file() and path.stat().st_mode & 0o222] == []
    write(repo, {"main.py": "print(1)\n"})  # what the first one had, which the newest has not
    commit(repo, {})
    assert contents(freeze(repo).root) == contents(repo)


def edit_in_place(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("spoilt")


def spoil_with_the_same_size_and_time(path: Path) -> None:
    times = (path.stat().st_atime, path.stat().st_mtime)
    other = path.with_name("other")  # beside it, else it may be given the number (inode) of the old one
    other.write_text("y" * path.stat().st_size)
    os.utime(other, times)
    other.replace(path)


def link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "spoil",
    [edit_in_place, Path.unlink, link_elsewhere, lambda path: path.chmod(0o755),
     spoil_with_the_same_size_and_time],
)  # fmt: skip
def test_a_file_that_was_changed_in_the_older_snapshot_is_not_passed_on(
    repo: Path, spoil: Callable[[Path], None]
) -> None:
    first = freeze(repo).root
    spoil(first / "pkg" / "part.py")
    spoilt = contents(first)
    commit(repo, {"main.py": "later"})
    assert contents(freeze(repo).root) == contents(repo)
    assert contents(first) == spoilt  # nothing was written through a link


def test_an_edit_within_the_second_in_which_the_snapshot_was_made_is_seen(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = freeze(repo).root
    path = first / "pkg" / "part.py"
    second = path.stat().st_mtime_ns // 10**9
    path.chmod(0o644)
    path.write_text("y" * path.stat().st_size)
    os.utime(path, ns=(0, second * 10**9 + 999_999_999))
    os.utime(first.with_name(f".{first.name}.made"), (second, second))
    commit(repo, {"main.py": "later"})
    copyfile = shutil.copyfile

    def copy_later(source: Path, target: Path) -> None:
        copyfile(source, target)
        os.utime(target, (second + 5, second + 5))

    monkeypatch.setattr(shutil, "copyfile", copy_later)
    assert contents(freeze(repo).root) == contents(repo)


def test_what_a_run_left_in_a_snapshot_stays_there(repo: Path) -> None:
    first = freeze(repo).root
    write(first, {"out.txt": "of a run", "pkg/__pycache__/part.pyc": "x", "later.py": "x", "folder": "x"})
    commit(repo, {"later.py": "committed", "folder/file": "committed"})
    second = freeze(repo).root
    assert contents(second) == contents(repo)
    assert (first / "later.py").read_text() == "x"


def new_attributes(repo: Path) -> None:
    write(repo, {".gitattributes": "*.py text eol=crlf\n"})


def new_info_attributes(repo: Path) -> None:
    write(repo, {".git/info/attributes": "*.py text eol=crlf\n"})


def new_line_ends(repo: Path) -> None:
    git(repo, "config", "core.autocrlf", "true")


@pytest.mark.parametrize("change", [new_attributes, new_info_attributes, new_line_ends])
def test_nothing_is_shared_when_files_are_written_in_another_way(
    repo: Path, change: Callable[[Path], None]
) -> None:
    first = freeze(repo).root
    change(repo)
    commit(repo, {"later.py": "x\n"})
    second = freeze(repo).root
    assert shared(first, second) == set()
    assert (second / "pkg" / "part.py").read_bytes() == b"x = 1\r\n"


@pytest.mark.parametrize("content", [b"", b"DIRC garbage"])
def test_a_damaged_index_beside_the_older_snapshot_costs_only_time(repo: Path, content: bytes) -> None:
    first = freeze(repo).root
    before = contents(first)
    index = first.with_name(f".{first.name}.0.index")
    index.chmod(0o644)
    index.write_bytes(content)
    commit(repo, {"main.py": "later"})
    second = freeze(repo).root
    assert contents(second) == contents(repo)
    assert contents(first) == before
    commit(repo, {"main.py": "last"})
    third = freeze(repo).root
    assert shared(second, third) == {"pkg/part.py"}


def test_what_is_no_note_of_a_snapshot_is_passed_over(repo: Path) -> None:
    first = freeze(repo).root
    (first.parent / "..made").touch()
    (first.parent / f"{'0' * 40}").mkdir()
    (first.parent / f".{'0' * 40}.made").symlink_to("nowhere")  # as if it were pruned at this moment
    commit(repo, {"main.py": "later"})
    second = freeze(repo).root
    assert shared(first, second) == {"pkg/part.py"}
    second.with_name(f".{second.name}.made").write_text("[" * 100_000)
    commit(repo, {"main.py": "last"})
    assert contents(freeze(repo).root) == contents(repo)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_nothing_is_shared_with_the_snapshot_of_a_stranger(repo: Path) -> None:
    first = freeze(repo).root
    os.chown(first, 12345, 12345)
    commit(repo, {"later.py": "x"})
    assert shared(first, freeze(repo).root) == set()


def test_without_hard_links_all_is_copied(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = freeze(repo).root
    commit(repo, {"later.py": "x"})

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("mlxjobs.code.sharing.os.link", refuse)
        patch.setattr("mlxjobs.code.copying.create_file", lambda *_: True)  # makes links of its own
        second = freeze(repo).root
    assert contents(second) == contents(repo)
    assert shared(first, second) == set()


def test_a_kill_between_the_links_and_the_checkout_leaves_nothing_that_is_used(
    repo: Path, tmp_path: Path
) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    os.mkfifo(started)
    os.mkfifo(never)
    commit(repo, {".gitattributes": "zz filter=slow\n", "zz": "first"})
    git(repo, "config", "filter.slow.smudge", f"if test -e '{tmp_path}/go'; then echo yes > '{started}'; "
                                              f"cat '{never}'; else cat; fi")  # fmt: skip
    first = freeze(repo).root
    commit(repo, {"zz": "second"})
    (tmp_path / "go").touch()
    argv = [sys.executable, "-c", AS_A_PROGRAM, str(repo)]
    launch = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert launch.stdin is not None
    with launch.stdin:
        launch.stdin.write("go\n")
    assert started.read_text() == "yes\n"  # the links are there
    os.killpg(launch.pid, signal.SIGKILL)
    launch.wait()
    half = [path for path in first.parent.iterdir() if path.name.endswith(".tmp")]
    assert [shared(first, path) >= {"main.py"} for path in half] == [True]
    (tmp_path / "go").unlink()
    second = freeze(repo).root
    assert contents(second) == contents(repo)
    assert leftovers(repo / ".workdir") == []
    assert (first / "zz").read_text() == "first"


def test_a_launch_waits_for_the_one_that_makes_the_same_snapshot(repo: Path, tmp_path: Path) -> None:
    commit(repo, {".gitattributes": "zz filter=count\n", "zz": "x"})
    calls = tmp_path / "calls"
    git(repo, "config", "filter.count.smudge", f"echo x >> '{calls}'; sleep 0.1; cat")
    argv = [sys.executable, "-c", AS_A_PROGRAM, str(repo)]
    launches = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    assert {launch.communicate(b"go\n")[0].split()[1] for launch in launches} == {b"4"}
    assert calls.read_text() == "x\n"


def test_files_that_a_snapshot_lacks_are_found(repo: Path) -> None:
    root = freeze(repo).root
    assert find_missing(root, repo) == []
    (root / "pkg" / "part.py").unlink()
    assert find_missing(root, repo) == ["pkg/part.py"]


def test_one_who_comes_late_leaves_no_lock(tmp_path: Path) -> None:
    with turn(tmp_path / "lock", lambda: True, 0):
        pass
    assert list(tmp_path.iterdir()) == []
