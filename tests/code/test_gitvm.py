"""Snapshots of real git repositories: complete, read-only, made once; the user's repository untouched."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.code import copying, flushing
from mlxjobs.code import git as repository
from mlxjobs.code.environment import record_environment
from mlxjobs.errors import SnapshotError
from mlxjobs.version_manager import VersionManager
from tests.code.repos import AS_A_PROGRAM, commit, contents, fake_git, freeze, git, leftovers, new_repo, write

# ---- what a snapshot holds ----


def test_the_latest_commit_is_copied_and_not_what_was_edited_since(repo: Path) -> None:
    committed = contents(repo)
    write(repo, {"main.py": "edited", "new.py": "untracked", "staged.py": "staged"})
    git(repo, "add", "staged.py")
    head = git(repo, "rev-parse", "HEAD")

    frozen = freeze(repo)

    assert frozen.root == repo / ".workdir" / "proj" / head
    assert (frozen.work_dir, frozen.program) == (frozen.root, frozen.root / "main.py")
    assert contents(frozen.root) == committed


def test_the_facts_tell_which_version_it_is(repo: Path) -> None:
    frozen = freeze(repo)
    assert frozen.facts == {
        "name": "GitVM",
        "commit_hash": git(repo, "rev-parse", "HEAD"),
        "head": git(repo, "rev-parse", "HEAD"),
        "include": "commit",
        "repo_path": str(repo),
        "snapshot": str(frozen.root),
        "branch": "main",
        "dirty": False,
        "requirements": [],
    }
    assert frozen.warnings == ()


def test_requirements_are_listed_when_asked_for(repo: Path) -> None:
    assert f"pytest=={pytest.__version__}" in freeze(repo, compute_requirements=True).facts["requirements"]


def test_links_executables_and_odd_names_are_as_in_the_users_checkout(repo: Path) -> None:
    odd = ["a b", "it's", 'q"q', "$HOME", "new\nline", "é中", "-dash", "back\\slash", "tab\t", "*?[x]"]
    odd += [":(top)x", "#x", os.fsdecode(b"not-utf8-\xff"), ".hidden", "deep/" * 30 + "x"]
    write(repo, dict.fromkeys(odd, "odd") | {"run.sh": "#!/bin/sh\n", "empty": ""})
    (repo / "run.sh").chmod(0o755)
    for name, target in {
        "to_file": "main.py",
        "to_folder": "pkg",
        "dangling": "no where",
        "up": "/etc",
    }.items():
        (repo / name).symlink_to(target)
    commit(repo, {})
    frozen = freeze(repo)
    assert contents(frozen.root) == contents(repo)
    assert contents(frozen.root)["run.sh"] == ("file x", b"#!/bin/sh\n")
    assert len(contents(frozen.root)) == 2 + len(odd) + 2 + 4


def test_attributes_are_those_of_the_commit_and_export_ones_change_nothing(repo: Path) -> None:
    files = {
        ".gitattributes": "*.id export-subst ident\nsecret export-ignore\n*.bat text eol=crlf\n",
        "v.id": "$Format:%H$",
        "secret": "kept",
        "win.bat": "a\r\nb\r\n",
    }
    commit(repo, files)
    expected = contents(repo)
    write(repo, {".gitattributes": "*.bat -text\n*.py text eol=crlf\n"})  # not committed
    assert contents(freeze(repo).root) == expected


def test_filters_of_the_user_are_applied(repo: Path) -> None:
    git(repo, "config", "filter.rot.clean", "tr a-z b-za")
    git(repo, "config", "filter.rot.smudge", "tr b-za a-z")
    git(repo, "config", "filter.rot.required", "true")
    commit(repo, {".gitattributes": "*.enc filter=rot\n", "x.enc": "hello"})
    assert git(repo, "cat-file", "-p", "HEAD:x.enc") == "ifmmp"
    assert (freeze(repo).root / "x.enc").read_text() == "hello"


def test_many_files_are_written_in_parallel_and_all_of_them(repo: Path) -> None:
    commit(repo, {f"d{i % 7}/f{i}.txt": str(i) for i in range(500)})  # git starts workers from 100 on
    root = freeze(repo).root
    assert contents(root) == contents(repo)
    assert len(contents(root)) == 502


def test_a_sparse_checkout_gives_the_whole_commit(repo: Path) -> None:
    committed = contents(repo)
    git(repo, "sparse-checkout", "set", "--no-cone", "/main.py")
    assert not (repo / "pkg").exists()
    frozen = freeze(repo)
    assert contents(frozen.root) == committed
    assert frozen.warnings == ()


def test_no_file_of_a_snapshot_can_be_written(repo: Path) -> None:
    (repo / "link").symlink_to("/etc/hostname")
    commit(repo, {"run.sh": "#!/bin/sh\n"})
    root = freeze(repo).root
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) == 3
    assert [path for path in files if path.stat().st_mode & 0o222] == []


def test_where_the_folders_own_rules_of_access_overrule_masks_neither(repo: Path, tmp_path: Path) -> None:
    parent = tmp_path / "shared"
    parent.mkdir()
    entries = ((1, 7), (4, 7), (0x20, 5))  # user::rwx, group::rwx, other::r-x
    rules = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, may, 2**32 - 1) for tag, may in entries)
    try:
        os.setxattr(parent, "system.posix_acl_default", rules)
    except OSError:
        pytest.skip("this file system has no default ACLs")
    root = freeze(repo, parent=str(parent)).root
    assert [path for path in root.rglob("*") if path.is_file() and path.stat().st_mode & 0o222] == []


def test_who_has_no_home_and_no_name_has_snapshots(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")  # as in a container, under a number that it does not know
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert contents(freeze(repo).root) == contents(repo)


def test_a_program_may_leave_files_beside_its_code(repo: Path) -> None:
    commit(repo, {"main.py": "open('out.txt', 'w').write('x'); import pkg.part; print(pkg.part.x)\n"})
    frozen = freeze(repo)
    assert frozen.program is not None
    argv = [sys.executable, str(frozen.program)]
    done = subprocess.run(argv, cwd=frozen.work_dir, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert (frozen.work_dir / "out.txt").read_text() == "x"


# ---- where the repository is, and where the command was typed ----


@pytest.mark.parametrize(
    "name",
    ["a b", "it's", 'q"q', "$HOME", "a\nb", "ends\n", "é中", os.fsdecode(b"\xff"), "-n", "a:(x)*", "[ab]"],
)
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    repo = new_repo(tmp_path / name / name)
    committed = contents(repo)
    write(repo, {f"{name}/1/x": "log"})
    frozen = freeze(repo, ignore=(Path(name),))
    assert frozen.root.parent == repo / ".workdir" / name
    assert contents(frozen.root) == committed
    assert frozen.facts["repo_path"] == str(repo)
    assert frozen.warnings == ()


def test_from_a_subfolder_the_run_stays_in_that_subfolder(repo: Path) -> None:
    frozen = freeze(repo / "pkg", "../main.py")
    assert frozen.root.parent == repo / "pkg" / ".workdir" / "proj"
    assert (frozen.work_dir, frozen.program) == (frozen.root / "pkg", frozen.root / "main.py")
    assert freeze(repo / "pkg", "part.py").program == frozen.root / "pkg" / "part.py"


def test_a_module_is_run_from_the_repository_of_the_directory(repo: Path) -> None:
    frozen = freeze(repo / "pkg", None)
    assert (frozen.work_dir, frozen.program) == (frozen.root / "pkg", None)


def test_a_directory_outside_the_repository_stays_and_keeps_the_snapshots(repo: Path, tmp_path: Path) -> None:
    outside = tmp_path / "out side"
    outside.mkdir()
    frozen = freeze(outside, str(repo / "main.py"))
    assert frozen.root.parent == outside / ".workdir" / "proj"
    assert (frozen.work_dir, frozen.program) == (outside, frozen.root / "main.py")


def test_an_absolute_parent_is_one(repo: Path, tmp_path: Path) -> None:
    assert freeze(repo, parent=str(tmp_path / "abs")).root.parent == tmp_path / "abs" / "proj"


def test_a_path_through_a_link_to_the_repository_works(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(repo)
    frozen = freeze(tmp_path / "alias" / "pkg", str(tmp_path / "alias" / "main.py"))
    assert (frozen.work_dir, frozen.program) == (frozen.root / "pkg", frozen.root / "main.py")


def test_a_committed_link_to_a_script_stays_the_program(repo: Path) -> None:
    (repo / "run.py").symlink_to("pkg/part.py")
    commit(repo, {})
    assert freeze(repo, "run.py").program == freeze(repo).root / "run.py"


def test_a_worktree_gives_its_own_commit_and_branch(repo: Path, tmp_path: Path) -> None:
    tree = tmp_path / "wt"
    git(repo, "worktree", "add", "-q", "-b", "topic/new", str(tree))
    head = commit(tree, {"main.py": "of the worktree"})
    frozen = freeze(tree)
    assert frozen.root == tree / ".workdir" / "wt" / head
    assert frozen.program is not None
    assert frozen.program.read_text() == "of the worktree"
    assert (frozen.facts["branch"], frozen.facts["repo_path"]) == ("topic/new", str(tree))


def test_a_detached_head_has_no_branch(repo: Path) -> None:
    first = git(repo, "rev-parse", "HEAD")
    commit(repo, {"main.py": "later"})
    git(repo, "checkout", "-q", "--detach", first)
    facts = freeze(repo).facts
    assert (facts["branch"], facts["commit_hash"]) == (None, first)


def test_a_shallow_clone_works(repo: Path, tmp_path: Path) -> None:
    commit(repo, {"main.py": "later"})
    git(tmp_path, "clone", "-q", "--depth", "1", repo.as_uri(), "shallow")
    assert contents(freeze(tmp_path / "shallow").root) == contents(repo)


def test_a_partial_clone_gets_what_it_has_not_or_says_so(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "uploadpack.allowFilter", "true")
    for name in ("a", "b"):
        git(tmp_path, "clone", "-q", "--filter=blob:none", "--sparse", repo.as_uri(), name)
        assert not (tmp_path / name / "pkg").exists()
    assert contents(freeze(tmp_path / "a").root) == contents(repo)
    repo.rename(repo.with_name("gone"))
    with pytest.raises(SnapshotError, match=r"(?s)could not copy commit.*git fsck.*git: "):
        freeze(tmp_path / "b")
    assert leftovers(tmp_path / "b" / ".workdir") == []


def test_a_repository_of_sha256_names_works(tmp_path: Path) -> None:
    repo = tmp_path / "sha256"
    repo.mkdir()
    git(repo, "init", "-q", "--object-format=sha256")
    head = commit(repo, {"main.py": "x"})
    assert len(head) == 64
    assert freeze(repo).root.name == head


# ---- the user's repository is not touched ----


def test_no_byte_of_the_repository_changes(repo: Path) -> None:
    write(repo, {"main.py": "stashed"})
    git(repo, "stash", "-q")
    write(repo, {"main.py": "staged", "new.py": "untracked"})
    git(repo, "add", "main.py")
    write(repo, {"main.py": "changed again"})
    git(repo, "config", "core.splitIndex", "true")
    os.utime(repo / "pkg" / "part.py", (1, 1))  # a plain `git status` would refresh .git/index now
    before = (contents(repo / ".git"), contents(repo))
    for _ in range(2):
        freeze(repo)
        assert (contents(repo / ".git"), contents(repo)) == before
    assert git(repo, "status", "--porcelain") == "MM main.py\n?? new.py"
    assert contents(repo / ".git") != before[0]  # so a plain status does write


def test_no_hook_runs(repo: Path) -> None:
    script = f"#!/bin/sh\ntouch '{repo}'/.git/hook-ran\n"
    hooks = (
        "post-checkout",
        "post-index-change",
        "reference-transaction",
        "post-commit",
        "fsmonitor-watchman",
    )
    for name in hooks:
        write(repo, {f".git/hooks/{name}": script})
        (repo / ".git" / "hooks" / name).chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(repo / ".git" / "hooks" / "fsmonitor-watchman"))
    git(repo, "update-index", "--refresh")
    (repo / ".git" / "hook-ran").unlink()  # so they do run without us
    freeze(repo)
    assert not (repo / ".git" / "hook-ran").exists()


def test_variables_meant_for_another_repository_are_ignored(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_repo(tmp_path / "other", {"main.py": "other"})
    expected = contents(repo)
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_PREFIX": "pkg/",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_TRACE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    frozen = freeze(repo, ignore=(Path("logs"),))
    assert contents(frozen.root) == expected
    assert frozen.facts["repo_path"] == str(repo)


@pytest.mark.parametrize("name", ["refs/heads/HEAD", "refs/tags/HEAD"])
def test_a_branch_or_tag_named_head_does_not_hide_the_latest_commit(repo: Path, name: str) -> None:
    git(repo, "update-ref", name, "HEAD")
    newest = commit(repo, {"main.py": "print(2)\n"})
    facts = freeze(repo).facts
    assert (facts["commit_hash"], facts["branch"]) == (newest, "main")
    git(repo, "checkout", "-q", "--detach")
    assert freeze(repo).facts["branch"] is None


def test_a_folder_that_has_some_names_of_a_git_folder_is_code(repo: Path) -> None:
    commit(repo, {f"pkg/{name}": "x" for name in ("main.py", "HEAD", "index", "objects/x")})
    frozen = freeze(repo, "pkg/main.py")
    assert frozen.program == frozen.root / "pkg" / "main.py"
    assert frozen.root.parent.name == "proj"


def test_trust_declared_by_variables_is_kept(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distrust(repo, monkeypatch)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(repo))
    assert freeze(repo).root.is_dir()


# ---- made once ----


def distrust(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        monkeypatch.delenv("SUDO_UID", raising=False)
        os.chown(repo, 12345, 12345)
    else:
        fake_git(repo, monkeypatch, "export GIT_TEST_ASSUME_DIFFERENT_OWNER=1")


def test_an_existing_snapshot_is_found_with_three_questions_to_git(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = freeze(repo).root
    before = root.stat()
    fake_git(
        repo, monkeypatch, f'printf "%s\\n" "$*" >> "{repo}"/../calls'
    )  # at once: two are asked together
    assert freeze(repo).root == root
    calls = (repo.parent / "calls").read_text().splitlines()
    asked = ("rev-parse", "status", "ls-files")
    assert sorted(next(word for word in call.split() if word in asked) for call in calls) == sorted(asked)
    assert (root.stat().st_ino, root.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_commits_have_two_snapshots(repo: Path) -> None:
    first = freeze(repo)
    commit(repo, {"main.py": "later"})
    second = freeze(repo)
    assert first.program is not None
    assert second.program is not None
    assert (first.program.read_text(), second.program.read_text()) == ("print(1)\n", "later")


def test_sixteen_processes_get_the_same_complete_snapshot(repo: Path) -> None:
    commit(repo, {f"f{i}": "x" for i in range(300)})
    argv = [sys.executable, "-c", AS_A_PROGRAM, str(repo)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(16)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    root = freeze(repo).root
    assert answers == [[str(root.stat().st_ino), "302"]] * 16
    assert leftovers(repo / ".workdir") == []


def test_when_another_launch_is_faster_its_snapshot_is_used(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = copying._publish
    others: list[int] = []

    def be_overtaken(*copy: Any) -> None:
        monkeypatch.setattr(copying, "_publish", publish)
        others.append(freeze(repo).root.stat().st_ino)
        publish(*copy)

    monkeypatch.setattr(copying, "_publish", be_overtaken)
    monkeypatch.setattr(copying, "_TURN_S", 0)  # as if this one had been stopped for long
    assert [freeze(repo).root.stat().st_ino] == others
    assert leftovers(repo / ".workdir") == []


@pytest.mark.parametrize("git_survives", [False, True])
def test_after_a_kill_in_the_middle_the_next_launch_makes_it_whole(
    repo: Path, tmp_path: Path, git_survives: bool
) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    os.mkfifo(tmp_path / "never")
    commit(repo, {".gitattributes": "zz filter=slow\n", "zz": "last", "aa": "first"})
    expected = contents(repo)
    git(repo, "config", "filter.slow.smudge", f"echo yes > '{started}'; cat '{tmp_path}/never'")
    argv = [sys.executable, "-c", AS_A_PROGRAM, str(repo)]
    launch = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert launch.stdin is not None
    with launch.stdin:
        launch.stdin.write("go\n")
    try:
        assert started.read_text() == "yes\n"  # the copy is under way
        launch.kill() if git_survives else os.killpg(launch.pid, signal.SIGKILL)
        launch.wait()
        assert len(leftovers(repo / ".workdir")) >= 1
        git(repo, "config", "filter.slow.smudge", "cat")
        frozen = freeze(repo)
        assert contents(frozen.root) == expected
        assert leftovers(repo / ".workdir") == []
    finally:
        if git_survives:
            os.killpg(launch.pid, signal.SIGKILL)


def test_only_what_dead_launches_left_is_removed(repo: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, folder, old = os.uname().nodename, repo / ".workdir" / "proj", "a" * 40
    removed = [f".{old}.{host}.{dead.pid}.00000000.tmp", f".{old}.elsewhere.1.00000001.tmp"]
    kept = [f".{old}.{host}.{os.getpid()}.00000002.tmp", f".{old}.elsewhere.{dead.pid}.00000003.tmp"]
    kept += ["mine", old]
    for name in removed + kept:
        write(folder, {f"{name}/sub/file": "x"})
    write(
        folder, {f"{removed[0]}.0.index": "x", f"{removed[0]}.1.index.lock": "x", f"{kept[0]}.0.index": "x"}
    )
    a_day_ago = (folder / removed[1]).stat().st_mtime - 24 * 3600 - 60
    os.utime(folder / removed[1], (a_day_ago, a_day_ago))
    root = freeze(repo).root
    flushing.finish(root)
    made = root.name
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*kept, f"{kept[0]}.0.index", made, f".{made}.made", f".{made}.0.index"]
    )


def test_a_copy_that_was_taken_away_is_not_published(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as by a launch in another container with the same host name, where this one's pid is dead
    taken = repo / ".workdir" / "proj" / "taken"
    monkeypatch.setattr(flushing, "begin", lambda root: next(root.parent.glob("*.tmp")).rename(taken))
    with pytest.raises(SnapshotError, match="No such file"):
        freeze(repo)
    assert leftovers(repo / ".workdir") == ["taken"]


# ---- the snapshots' folder and git status ----


def test_the_folder_of_snapshots_is_never_seen_as_untracked(repo: Path) -> None:
    frozen = freeze(repo)
    assert (repo / ".workdir" / ".gitignore").read_text() == "*\n"
    assert git(repo, "status", "--porcelain") == ""
    assert frozen.warnings == ()
    (repo / ".workdir" / ".gitignore").unlink()
    assert freeze(repo).warnings == ()


def test_a_link_to_the_folder_of_snapshots_is_no_part_of_them(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (repo / ".workdir").symlink_to(tmp_path / "scratch")
    assert freeze(repo).warnings == ()
    assert freeze(repo, include="all").facts["commit_hash"] == git(repo, "rev-parse", "HEAD")


def test_a_gitignore_that_is_there_is_kept(repo: Path) -> None:
    write(repo, {".workdir/.gitignore": "proj\n"})
    commit(repo, {})
    freeze(repo)
    assert (repo / ".workdir" / ".gitignore").read_text() == "proj\n"


@pytest.mark.parametrize("parent", [".", "pkg", "results"])
def test_among_other_files_only_the_snapshots_are_hidden(repo: Path, parent: str) -> None:
    write(repo, {"results/table": "untracked"})
    frozen = freeze(repo, parent=parent)
    assert frozen.root.parent == repo / parent / "proj"
    assert git(repo, "status", "--porcelain") == "?? results/"
    assert len(frozen.warnings) == 1


def test_snapshots_are_not_kept_among_code(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "proj", {"main.py": "", "proj/__init__.py": ""})
    for parent in (".", ".."):  # proj/ is the package, and ../proj the repository itself
        with pytest.raises(SnapshotError, match="which holds code"):
            freeze(repo, parent=parent)
    assert git(repo, "status", "--porcelain", "--ignored") == ""


# ---- warnings ----


def test_a_warning_names_five_files_and_counts_the_rest(repo: Path) -> None:
    write(repo, {"main.py": "edited", "pkg/part.py": "edited"} | {f"new{i}\n": "" for i in range(5)})
    frozen = freeze(repo)
    assert len(frozen.warnings) == 1
    assert "main.py, pkg/part.py, 'new0\\n', 'new1\\n', 'new2\\n' and 2 more" in frozen.warnings[0]
    assert frozen.facts["dirty"] is True


def test_untracked_files_are_told_but_the_commit_is_not_dirty(repo: Path) -> None:
    write(repo, {"new.py": "", "folder/a": "", "folder/b": ""})
    git(repo, "config", "status.showUntrackedFiles", "no")
    frozen = freeze(repo)
    assert "folder/, new.py." in frozen.warnings[0]
    assert frozen.facts["dirty"] is False


def test_ignored_folders_are_not_missed(repo: Path) -> None:
    write(repo, {"logs/1/a": "", "exp/logs/1/a": "", ".gitignore": "*.o\n", "x.o": ""})
    git(repo, "add", ".gitignore")
    git(repo, "commit", "-qm", "ignore")
    assert freeze(repo, ignore=(Path("logs"), repo / "exp" / "logs", Path("/elsewhere"))).warnings == ()
    assert "exp/." in freeze(repo, ignore=(Path("logs"),)).warnings[0]
    assert "exp/, logs/." in freeze(repo, ignore=(repo, repo.parent)).warnings[0]  # all cannot be ignored


def test_an_ignored_folder_with_the_name_of_a_pattern_hides_nothing_else(repo: Path) -> None:
    write(repo, {"new.py": "", "*/log": ""})
    assert ": new.py." in freeze(repo, ignore=(Path("*"),)).warnings[0]


def test_renamed_and_deleted_files_are_told(repo: Path) -> None:
    git(repo, "mv", "main.py", "moved.py")
    (repo / "pkg" / "part.py").unlink()
    assert "main.py, moved.py, pkg/part.py." in freeze(repo, None).warnings[0]


# ---- errors ----


def test_a_program_that_is_not_committed_is_refused_before_anything_is_made(repo: Path) -> None:
    write(repo, {"new.py": ""})
    with pytest.raises(SnapshotError, match=r"(?s)new\.py.*git add.*git commit"):
        freeze(repo, "new.py")
    assert not (repo / ".workdir").exists()


def test_what_is_not_committed_is_refused_when_the_snapshot_exists_too(repo: Path) -> None:
    freeze(repo)
    write(repo, {"new/new.py": ""})
    for place, program in (repo, "new/new.py"), (repo / "new", "../main.py"):
        with pytest.raises(SnapshotError, match=r"(?s)proj/new.*not in the latest commit.*git add"):
            freeze(place, program, str(repo / ".workdir"))


def test_a_folder_that_is_a_program_is_run(repo: Path) -> None:
    for _ in range(2):
        frozen = freeze(repo, "pkg")
        assert frozen.program == frozen.root / "pkg"


def test_a_directory_that_is_not_committed_is_refused(repo: Path) -> None:
    (repo / "scratch").mkdir()
    with pytest.raises(SnapshotError, match=r"(?s)scratch.*not in the latest commit.*git add"):
        freeze(repo / "scratch", "../main.py")
    with pytest.raises(SnapshotError, match="scratch"):
        freeze(repo / "scratch", None)


NO_REPOSITORY = r"(?s)in no git repository.*git init.*use_version_manager=false"


def test_no_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=NO_REPOSITORY):
        freeze(tmp_path, None)


def test_git_is_understood_whatever_the_users_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")
    monkeypatch.setenv("LANGUAGE", "fr")
    in_french = '{ echo "fatal: ni ceci ni aucun de ses parents n\'est un depot git" >&2; exit 128; }'
    fake_git(tmp_path / "x", monkeypatch, f'[ "$LC_ALL$LANGUAGE" = C.UTF-8 ] || {in_french}')
    with pytest.raises(SnapshotError, match=NO_REPOSITORY):
        freeze(tmp_path, None)


def test_a_repository_without_commit_is_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(SnapshotError, match=r"(?s)has no commit.*git commit"):
        freeze(tmp_path, None)


@pytest.mark.parametrize("has_commit", [True, False])
def test_a_bare_repository_is_told(repo: Path, tmp_path: Path, has_commit: bool) -> None:
    bare = tmp_path / "bare.git"
    git(
        tmp_path,
        *(("clone", "-q", "--bare", str(repo)) if has_commit else ("init", "-q", "--bare")),
        str(bare),
    )
    with pytest.raises(SnapshotError, match=r"(?s)is bare.*clone"):
        freeze(bare, None)


def test_a_repository_whose_files_are_elsewhere_is_told(repo: Path, tmp_path: Path) -> None:
    git(repo, "config", "core.worktree", str(new_repo(tmp_path / "other")))
    with pytest.raises(SnapshotError, match=r"(?s)files are in .*/other \(core\.worktree\)"):
        freeze(repo)


def test_a_repository_of_another_user_is_told_in_gits_words(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distrust(repo, monkeypatch)
    with pytest.raises(SnapshotError, match=r"(?s)another user.*git: fatal: .*safe\.directory"):
        freeze(repo)


def test_git_that_is_not_installed_is_told(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repo))
    with pytest.raises(SnapshotError, match=r"(?s)No such file.*'git'.*Is git installed"):
        freeze(repo)


def test_git_that_does_not_answer_is_told(repo: Path) -> None:
    with pytest.raises(SnapshotError, match=r"(?s)timed out.*git status"):
        repository.run(repo, "status", wait_s=0)


def lose_head(repo: Path) -> None:
    (repo / ".git" / "HEAD").write_text("garbage\n")


def lose_commit(repo: Path) -> None:
    remove_object(repo, "HEAD")


def lose_index(repo: Path) -> None:
    (repo / ".git" / "index").write_text("garbage")


def remove_object(repo: Path, name: str) -> None:
    full = git(repo, "rev-parse", name)
    (repo / ".git" / "objects" / full[:2] / full[2:]).unlink()


@pytest.mark.parametrize("damage", [lose_head, lose_commit, lose_index])
def test_a_damaged_repository_is_told(repo: Path, damage: Callable[[Path], None]) -> None:
    damage(repo)
    with pytest.raises(SnapshotError, match=r"(?s)cannot read the repository.*git fsck.*git: "):
        freeze(repo)


def test_a_damaged_branch_is_told(repo: Path) -> None:
    (repo / ".git" / "refs" / "heads" / "main").write_text("garbage\n")
    with pytest.raises(SnapshotError, match=r"(?s)has no commit.*git fsck"):
        freeze(repo)


def test_a_missing_file_in_the_commit_leaves_nothing(repo: Path) -> None:
    remove_object(repo, "HEAD:pkg/part.py")
    with pytest.raises(SnapshotError, match=r"(?s)could not copy commit.*git fsck.*part\.py"):
        freeze(repo)
    assert leftovers(repo / ".workdir") == []


def test_a_failing_filter_leaves_nothing(repo: Path) -> None:
    commit(repo, {".gitattributes": "zz filter=bad\n", "zz": "last", "aa": "first"})
    git(repo, "config", "filter.bad.smudge", "false")
    git(repo, "config", "filter.bad.required", "true")
    with pytest.raises(SnapshotError, match=r"(?s)could not copy.*nothing is left.*git: .*smudge filter"):
        freeze(repo)
    assert list((repo / ".workdir" / "proj").iterdir()) == []


def test_a_full_disk_leaves_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = (
        'case "$*" in *read-tree*) echo half > "$GIT_INDEX_FILE.lock"; mkdir "${GIT_INDEX_FILE%.0.index}/d"\n'
    )
    full += 'echo "error: unable to write file d/x: No space left on device" >&2; exit 128;; esac'
    fake_git(repo, monkeypatch, full)
    with pytest.raises(SnapshotError, match=r"(?s)parent_work_dir.*enough free space.*No space left"):
        freeze(repo)
    assert list((repo / ".workdir" / "proj").iterdir()) == []


def test_an_unusable_parent_folder_is_told(repo: Path) -> None:
    write(repo, {"file": ""})
    with pytest.raises(SnapshotError, match=r"(?s)cannot be made.*file.*parent_work_dir"):
        freeze(repo, parent="file")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_parent_folder_without_permission_is_told(repo: Path) -> None:
    (repo / ".workdir").mkdir(mode=0o555)
    with pytest.raises(SnapshotError, match=r"(?s)Permission denied.*parent_work_dir"):
        freeze(repo)


def test_a_file_in_the_snapshots_place_is_told_and_kept(repo: Path) -> None:
    place = f".workdir/proj/{git(repo, 'rev-parse', 'HEAD')}"
    write(repo, {place: "a file"})
    with pytest.raises(SnapshotError, match="cannot be made"):
        freeze(repo)
    assert (repo / place).read_text() == "a file"
    assert [str(path.relative_to(repo)) for path in (repo / ".workdir" / "proj").iterdir()] == [place]


def test_an_interrupted_launch_leaves_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copying, "make_links", interrupt)
    with pytest.raises(KeyboardInterrupt):
        freeze(repo)
    assert list((repo / ".workdir" / "proj").iterdir()) == []


# ---- the rest ----


def test_without_a_sync_command_the_snapshot_is_made(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_git(repo, monkeypatch, "")
    monkeypatch.setenv("PATH", str(repo.parent / "shim"))
    assert freeze(repo).root.is_dir()


def test_a_version_manager_of_the_users_own_must_freeze() -> None:
    class Nothing(VersionManager):
        pass

    with pytest.raises(TypeError, match="freeze"):
        Nothing()  # type: ignore[abstract]  # that is what is tested


def test_requirements_name_versions_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(place: str, name: str, origin: object = None) -> None:
        info = f"{place}/{name.replace('-', '_')}-1.0.dist-info"
        write(tmp_path, {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"})
        if origin is not None:
            write(tmp_path, {f"{info}/direct_url.json": json.dumps(origin)})

    vcs = {"vcs": "git", "commit_id": "abc", "requested_revision": "main"}
    install("a", "Zeta")
    install("a", "my-pkg")
    install("b", "My.Pkg")  # hidden by the one in a/
    install("b", "edit", {"url": "file:///src/edit", "dir_info": {"editable": True}})
    install("b", "vcs", {"url": "https://h/r.git", "vcs_info": vcs, "subdirectory": "py"})
    write(tmp_path, {"b/broken-1.0.dist-info/METADATA": "\n"})
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert record_environment()["requirements"] == [
        "-e /src/edit",
        "my-pkg==1.0",
        "vcs @ git+https://h/r.git@abc#subdirectory=py",
        "Zeta==1.0",
    ]
