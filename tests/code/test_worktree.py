"""`version_manager.include: tracked | all`: the working tree as it is, and nothing of the user's changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.code import git as repository
from mlxjobs.errors import SnapshotError
from mlxjobs.version_manager import Frozen
from tests.code.repos import add_submodule, commit, contents, git, new_repo, write
from tests.code.repos import freeze as freeze_any
from tests.project import MAIN, Project

EVIL = [
    "new\nline",
    "-n",
    "--",
    ":(top)x",
    ":!x",
    ":^x",
    "a b",
    'q"',
    "*",
    "[ab]",
    os.fsdecode(b"\xff\xfe"),
    "\\",
]
KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAA\n" * 4
)
AS_A_PROGRAM = """
import sys
from pathlib import Path
from mlxjobs.code.gitvm import GitVM
from mlxjobs.version_manager import Launch
sys.stdin.readline()
print(GitVM().freeze(Launch(Path(sys.argv[1]), Path("main.py"), Path(".workdir"), include="all")).root)
"""


def freeze(top: Path, include: str = "tracked", program: str | None = "main.py", **more: Any) -> Frozen:
    return freeze_any(top, program, include=include, **more)


def on_disk(top: Path, *without: str) -> dict[str, tuple[str, bytes]]:
    """The files of a work tree: no folders, nothing of git's and none below `without`."""
    found = {path: kind for path, kind in contents(top).items() if path.rpartition("/")[2] != ".git"}
    return {path: kind for path, kind in found.items() if not any(path.startswith(one) for one in without)}


def held(frozen: Frozen, top: Path) -> dict[str, str]:
    """What the snapshot's commit holds of a repository: the hash of each path."""
    lines = git(top, "ls-tree", "-r", "-z", frozen.root.name).split("\0")[:-1]
    return {line.partition("\t")[2]: line.split()[2].partition("\t")[0] for line in lines}


# ---- what is in it ----


def test_tracked_takes_all_edits_of_tracked_files_and_names_the_others(repo: Path) -> None:
    commit(repo, {"gone.py": "", "run.sh": "", "kind": "", "folder/x": "", "staged": "a"})
    write(repo, {"main.py": "edited", "new.py": "", "added.py": "not yet", "staged": "b", "both": "staged"})
    git(repo, "add", "staged", "both")
    git(repo, "add", "--intent-to-add", "added.py")
    write(repo, {"added.py": "all of it", "both": "edited since"})
    for name in ("gone.py", "kind", "folder/x"):
        (repo / name).unlink()
    (repo / "run.sh").chmod(0o755)
    (repo / "kind").symlink_to("main.py")
    (repo / "folder").rmdir()
    write(repo, {"folder": "a file now"})
    git(repo, "add", "folder")

    frozen = freeze(repo)

    assert contents(frozen.root) == on_disk(repo, "new.py")
    assert frozen.program is not None
    assert frozen.program.read_text() == "edited"
    assert len(frozen.warnings) == 1
    assert "Untracked" in frozen.warnings[0]
    assert ": new.py. `git add`" in frozen.warnings[0]


def test_all_takes_what_git_does_not_ignore(repo: Path) -> None:
    write(repo, dict.fromkeys(EVIL, "evil") | {".gitignore": "*.o\nout/\n", "x.o": "", "out/x": ""})
    write(repo, {"logs/1/a": "log", "pkg/__pycache__/a.pyc": "", "deep/er/new.py": "n", "main.py": "edited"})
    (repo / "run").symlink_to("/etc")  # the link, not what is behind it
    os.mkfifo(repo / "pipe")
    frozen = freeze(repo, "all", ignore=(repo / "logs",))
    ignored = ("x.o", "out", "logs", "pkg/__pycache__", ".workdir")
    assert contents(frozen.root) == on_disk(repo, *ignored)
    assert contents(frozen.root)["run"] == ("link", b"/etc")
    assert {name: contents(frozen.root)[name][1] for name in EVIL} == dict.fromkeys(EVIL, b"evil")
    assert frozen.warnings == ()
    assert freeze(repo, "all", ignore=(repo / "logs",)).root == frozen.root


def test_a_program_that_is_new_runs_under_all_and_is_refused_under_tracked(repo: Path) -> None:
    write(repo, {"new.py": ""})
    assert freeze(repo, "all", "new.py").program is not None
    with pytest.raises(SnapshotError, match=r"(?s)new\.py is not among the tracked.*git add.*include=all"):
        freeze(repo, "tracked", "new.py")
    write(repo, {".gitignore": "new.py\n"})
    with pytest.raises(SnapshotError, match=r"(?s)new\.py is not among.*not ignore.*\.gitignore"):
        freeze(repo, "all", "new.py")


def test_a_clean_tree_is_its_commit(repo: Path) -> None:
    head = git(repo, "rev-parse", "HEAD")
    os.utime(repo / "main.py", (1, 1))  # touched, not edited
    for include in ("tracked", "all"):
        frozen = freeze(repo, include)
        assert frozen.root.name == head
        assert (frozen.facts["head"], frozen.facts["include"], frozen.facts["dirty"]) == (
            head,
            include,
            False,
        )
    assert git(repo, "for-each-ref", "refs/mlxjobs") == ""


def test_the_facts_tell_the_hash_of_what_runs_and_where_it_began(repo: Path) -> None:
    head = git(repo, "rev-parse", "HEAD")
    write(repo, {"new.py": ""})
    facts = freeze(repo, "all").facts
    assert (facts["commit_hash"] == head, facts["head"], facts["dirty"]) == (False, head, False)
    write(repo, {"main.py": "edited"})
    frozen = freeze(repo, "all")
    assert frozen.facts["commit_hash"] == frozen.root.name
    assert (frozen.facts["branch"], frozen.facts["dirty"]) == ("main", True)
    assert git(repo, "rev-parse", f"{frozen.root.name}^") == head


def test_the_same_tree_gives_the_same_snapshot_whoever_asks(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repo, {"main.py": "edited"})
    first = freeze(repo).root
    write(repo, {"main.py": "again"})
    assert freeze(repo).root != first
    write(repo, {"main.py": "edited"})
    git(repo, "config", "i18n.commitEncoding", "latin1")
    git(repo, "config", "user.name", "somebody else")
    git(repo, "add", "main.py")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "somebody else")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert freeze(repo).root == freeze(repo, "all").root == first


def test_bits_that_hide_edits_do_not_hide_them(repo: Path) -> None:
    commit(repo, {"a": "1", "b": "1", "c": "1", "d": "1"})
    git(repo, "update-index", "--assume-unchanged", "a", "d")
    git(repo, "update-index", "--skip-worktree", "b", "c")
    write(repo, {"a": "edited", "b": "edited"})
    (repo / "d").unlink()
    (repo / "c").unlink()  # as in a sparse checkout
    root = freeze(repo).root
    assert not (root / "d").exists()
    assert [(root / name).read_text() for name in "abc"] == ["edited", "edited", "1"]


@pytest.mark.parametrize("how", ["--cone", "--no-cone", "--sparse-index"])
def test_a_sparse_checkout_gives_edits_inside_and_outside_of_it(repo: Path, how: str) -> None:
    commit(repo, {"out/a": "committed", "out/b": "committed", "far/c": "committed"})
    git(repo, "sparse-checkout", "set", how, *(["/main.py", "/pkg/"] if how == "--no-cone" else ["pkg"]))
    write(repo, {"pkg/part.py": "edited", "out/a": "made by hand", "far/new": "untracked"})
    root, names = freeze(repo, "all").root, ("pkg/part.py", "out/a", "out/b", "far/c", "far/new")
    assert {name: (root / name).read_text() for name in names} == {
        "pkg/part.py": "edited", "out/a": "made by hand", "out/b": "committed", "far/c": "committed",
        "far/new": "untracked",
    }  # fmt: skip


def test_tracked_files_among_the_runs_are_taken_and_those_of_python_stay(repo: Path) -> None:
    commit(repo, {"logs/note": "1", "pkg/__pycache__/part.pyc": "1"})
    write(repo, {"logs/note": "edited", "logs/1/new": "", "pkg/__pycache__/part.pyc": "made anew"})
    for include in ("tracked", "all"):
        root = freeze(repo, include, ignore=(repo / "logs",)).root
        assert (root / "logs" / "note").read_text() == "edited"
        assert (root / "pkg" / "__pycache__" / "part.pyc").read_text() == "1"
        assert not (root / "logs" / "1").exists()
    git(repo, "checkout", "-q", "logs")
    assert freeze(repo, ignore=(repo / "logs",)).root.name == git(repo, "rev-parse", "HEAD")


def test_an_edit_in_the_instant_of_the_last_add_is_seen(repo: Path) -> None:
    past = (1_700_000_000, 1_700_000_000)
    git(repo, "config", "core.trustctime", "false")
    write(repo, {"main.py": "print(2)\n"})
    os.utime(repo / "main.py", past)
    git(repo, "add", "main.py")
    write(repo, {"main.py": "print(3)\n"})  # as long, and of the same time: so is the index
    for path in (repo / "main.py", repo / ".git" / "index"):
        os.utime(path, past)
    assert (freeze(repo).root / "main.py").read_text() == "print(3)\n"


def test_in_a_conflict_the_files_are_taken_as_they_are(repo: Path) -> None:
    commit(repo, {"gone": "1"})
    git(repo, "checkout", "-qb", "other")
    commit(repo, {"main.py": "theirs", "gone": "2"})
    git(repo, "checkout", "-q", "main")
    (repo / "gone").unlink()
    commit(repo, {"main.py": "ours"})
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "-q", "other")
    (repo / "gone").unlink()
    frozen = freeze(repo)
    assert contents(frozen.root) == on_disk(repo)
    assert "<<<<<<<" in (frozen.root / "main.py").read_text()


def test_filters_and_line_ends_are_the_users(repo: Path) -> None:
    git(repo, "config", "filter.rot.clean", "tr a-z b-za")
    git(repo, "config", "filter.rot.smudge", "tr b-za a-z")
    git(repo, "config", "core.safecrlf", "true")
    write(
        repo,
        {".gitattributes": "*.enc filter=rot\n*.bat text eol=crlf\n", "x.enc": "hi", "a.bat": "a\nb\r\n"},
    )
    root = freeze(repo, "all").root
    assert git(repo, "cat-file", "-p", f"{root.name}:x.enc") == "ij"
    assert ((root / "x.enc").read_bytes(), (root / "a.bat").read_bytes()) == (b"hi", b"a\r\nb\r\n")


def test_attributes_by_which_tracked_files_are_read_are_taken_with_them(repo: Path) -> None:
    git(repo, "config", "filter.rot.clean", "tr a-z b-za")
    git(repo, "config", "filter.rot.smudge", "tr b-za a-z")
    commit(repo, {"x.enc": "hi", "pkg/y.enc": "hi"})
    write(repo, {".gitattributes": "/*.enc filter=rot\n", "pkg/.gitattributes": "*.enc filter=rot\n"})
    write(repo, {"x.enc": "edited", "pkg/y.enc": "edited", "new": ""})
    frozen = freeze(repo)
    assert contents(frozen.root) == on_disk(repo, "new")
    assert ": new. `git add`" in frozen.warnings[0]


def test_a_linked_worktree_and_a_split_index_are_taken(repo: Path, tmp_path: Path) -> None:
    tree = tmp_path / "wt"
    git(repo, "worktree", "add", "-q", "-b", "topic", str(tree))
    git(tree, "config", "core.splitIndex", "true")
    git(tree, "update-index", "--split-index")
    write(tree, {"main.py": "of the worktree", "new.py": "n"})
    before = contents(repo / ".git" / "worktrees")
    assert contents(freeze(tree, "all").root) == on_disk(tree)
    assert contents(repo / ".git" / "worktrees") == before


# ---- repositories inside ----


def test_submodules_are_taken_as_they_are_at_any_depth(repo: Path, tmp_path: Path) -> None:
    low = new_repo(tmp_path / "low", {"low.py": "1"})
    mid = new_repo(tmp_path / "mid", {"mid.py": "1"})
    add_submodule(mid, low, "low")
    for path in ("libs/mid", "moved", "clean"):
        add_submodule(repo, mid if path == "libs/mid" else low, path)
    git(repo, "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive")
    git(repo, "config", "diff.ignoreSubmodules", "all")
    ahead = commit(repo / "moved", {"low.py": "committed there only"})
    write(repo, {"libs/mid/low/low.py": "edited", "libs/mid/low/new.py": "untracked"})
    clean = git(repo / "clean", "rev-parse", "HEAD")

    tracked, whole = freeze(repo), freeze(repo, "all")

    assert held(tracked, repo)["moved"] == ahead
    assert held(tracked, repo)["clean"] == clean
    assert tracked.facts["dirty"] is True
    for frozen, new in (tracked, False), (whole, True):
        mid_hash = held(frozen, repo)["libs/mid"]
        low_hash = git(repo / "libs/mid", "rev-parse", f"{mid_hash}:low")
        assert git(repo / "libs/mid/low", "cat-file", "-p", f"{low_hash}:low.py") == "edited"
        assert ("new.py" in git(repo / "libs/mid/low", "ls-tree", "--name-only", low_hash)) == new
        assert (
            git(repo / "libs/mid/low", "rev-parse", f"refs/mlxjobs/{frozen.root.name}-{low_hash}") == low_hash
        )
    assert contents(whole.root) == on_disk(repo)
    assert contents(tracked.root) == on_disk(repo, "libs/mid/low/new.py")
    assert "libs/mid/low/new.py" in tracked.warnings[0]


def test_a_submodule_that_is_not_checked_out_stays_as_committed(repo: Path, tmp_path: Path) -> None:
    low = new_repo(tmp_path / "low")
    add_submodule(repo, low, "sub")
    git(repo, "submodule", "deinit", "-q", "-f", "sub")
    write(repo, {"main.py": "edited"})
    assert held(freeze(repo), repo)["sub"] == git(low, "rev-parse", "HEAD")
    write(repo, {"sub/main.py": "git does not see this one"})
    with pytest.raises(SnapshotError, match=r"(?s)sub is a submodule without its \.git.*update --init"):
        freeze(repo)


def test_a_repository_inside_is_taken_or_an_error_and_never_a_gap(repo: Path) -> None:
    inner = new_repo(repo / "inner", {"x": "1"})
    write(inner, {"x": "edited"})
    assert (freeze(repo, "all").root / "inner" / "x").read_text() == "edited"
    (repo / "pkg" / "part.py").unlink()
    write(new_repo(repo / "pkg" / "part.py", {"y": "1"}), {"y": "edited"})  # where a tracked file was
    assert (freeze(repo, "all").root / "pkg" / "part.py" / "y").read_text() == "edited"
    (repo / "empty").mkdir()
    git(repo / "empty", "init", "-q")
    write(repo, {"empty/file": "x"})
    with pytest.raises(SnapshotError, match=r"empty has no commit"):
        freeze(repo, "all")


def test_a_submodule_whose_git_file_leads_nowhere_is_told(repo: Path, tmp_path: Path) -> None:
    add_submodule(repo, new_repo(tmp_path / "low"), "sub")
    for content in ("gitdir: .git", "gitdir: /nowhere"):
        write(repo, {"sub/.git": content})
        with pytest.raises(SnapshotError, match="sub"):
            freeze(repo)
    write(repo, {"loop/.git": "gitdir: .git", "loop/x": "no submodule, so a plain folder"})
    shutil.rmtree(repo / "sub")
    assert "loop/x" in contents(freeze(repo, "all").root)


# ---- the user's repository is not touched ----


def test_nothing_of_the_users_changes_and_no_hook_runs(repo: Path, tmp_path: Path) -> None:
    write(repo, {"main.py": "stashed"})
    git(repo, "stash", "-q")
    write(repo, {"main.py": "staged", "new.py": "untracked"})
    git(repo, "add", "main.py")
    write(repo, {"main.py": "changed again"})
    git(repo, "tag", "v1")
    mark = f"#!/bin/sh\ntouch '{tmp_path}/ran'\nexit 1\n"
    for name in (
        "pre-commit",
        "post-index-change",
        "reference-transaction",
        "fsmonitor",
        "gpg",
        "post-commit",
    ):
        write(repo, {f".git/hooks/{name}": mark})
        (repo / ".git" / "hooks" / name).chmod(0o755)
    for key, value in {
        "core.hooksPath": ".git/hooks", "core.fsmonitor": str(repo / ".git/hooks/fsmonitor"),
        "commit.gpgSign": "true", "gpg.program": str(repo / ".git/hooks/gpg"), "log.showSignature": "true",
        "core.logAllRefUpdates": "always", "core.splitIndex": "true", "core.untrackedCache": "true",
    }.items():  # fmt: skip
        git(repo, "config", key, value)
    before = (contents(repo / ".git"), on_disk(repo))
    for include in ("tracked", "all"):
        made = freeze(repo, include).root.name
        after = contents(repo / ".git")
        new = {path for path in after if path not in before[0] and not path.startswith("objects/")}
        assert {path: before[0].get(path) for path in before[0]} == {
            path: after.get(path) for path in before[0]
        }
        assert f"refs/mlxjobs/{made}" in new
        assert not {path for path in new if not path.startswith("refs/mlxjobs")}
    assert on_disk(repo) == before[1]
    assert not (tmp_path / "ran").exists()
    assert "gpgsig" not in git(repo, "cat-file", "-p", made)


def test_what_is_done_later_does_not_lose_or_change_it(repo: Path) -> None:
    write(repo, {"main.py": "edited", "new.py": "untracked"})
    frozen = freeze(repo, "all")
    expected = on_disk(repo)
    git(repo, "stash", "-qu")
    git(repo, "stash", "drop", "-q")
    git(repo, "clean", "-fdq")
    git(repo, "checkout", "-qb", "other")
    git(repo, "reflog", "expire", "--expire=now", "--all")
    git(repo, "gc", "-q", "--prune=now")
    assert contents(frozen.root) == expected
    git(repo, "fsck", "--strict")
    assert git(repo, "cat-file", "-p", f"{frozen.root.name}:new.py") == "untracked"


def test_sixteen_processes_give_one_snapshot(repo: Path) -> None:
    write(repo, {"main.py": "edited", "new.py": "untracked"})
    argv = [sys.executable, "-c", AS_A_PROGRAM, str(repo)]
    processes = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(16)
    ]
    answers = {process.communicate("go\n")[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 16
    assert answers == {f"{freeze(repo, 'all').root}\n"}


# ---- what cannot be taken is told ----


def test_what_cannot_be_read_is_told(repo: Path) -> None:
    (repo / "main.py").unlink()
    os.mkfifo(repo / "main.py")
    with pytest.raises(SnapshotError, match=r"(?s)main\.py.*include=commit|include=commit.*main\.py"):
        freeze(repo)


@pytest.mark.parametrize(
    ("said", "refusing"),
    [
        ("pkg/part.py: Permission denied", ["tracked", "all"]),
        ("warning: could not open directory 'x/': Permission denied", ["all"]),  # nothing tracked is in there
        ("warning: unable to access 'x/.gitignore': Permission denied", []),
    ],
)
def test_what_git_only_mumbles_about_is_told(
    repo: Path, monkeypatch: pytest.MonkeyPatch, said: str, refusing: list[str]
) -> None:
    run = repository.run

    def mumble(*arguments: Any, **more: Any) -> Any:  # root can read all, so git's own words are put in
        result = run(*arguments, **more)
        if "status" in arguments:
            result.stderr += f"{said}\n".encode()
        return result

    monkeypatch.setattr(repository, "run", mumble)
    for include in ("tracked", "all"):
        if include in refusing:
            with pytest.raises(SnapshotError, match=re.escape(f"git: {said}")):
                freeze(repo, include)
        else:
            assert freeze(repo, include).root.is_dir()


@pytest.mark.parametrize("name", ["git~1", "pkg/.git /x"])  # what may be .git on another file system
def test_an_untracked_file_whose_name_git_refuses_is_told(repo: Path, name: str) -> None:
    write(repo, {name: "x"})
    with pytest.raises(SnapshotError, match=f"git: Ignoring path {name}"):
        freeze(repo, "all")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
def test_a_submodule_that_cannot_be_read_is_told(repo: Path, tmp_path: Path) -> None:
    add_submodule(repo, new_repo(tmp_path / "low"), "sub")
    write(repo, {"sub/main.py": "edited"})
    (repo / "sub").chmod(0)
    with pytest.raises(SnapshotError, match=r"Permission denied.*sub"):
        freeze(repo)
    (repo / "sub").chmod(0o755)


def test_a_repository_that_cannot_be_written_is_told(repo: Path) -> None:
    write(repo, {"main.py": "edited"})
    for number in range(256):  # root can write everywhere but below a file
        folder = repo / ".git" / "objects" / f"{number:02x}"
        if not folder.exists():
            folder.touch()
    with pytest.raises(SnapshotError, match=r"(?s)cannot be written.*clone of your own.*git: "):
        freeze(repo)
    assert not (repo / ".workdir").exists()


def test_what_is_kept_already_needs_no_right_to_write(repo: Path) -> None:
    write(repo, {"main.py": "edited"})
    root = freeze(repo).root
    write(repo, {f".git/refs/mlxjobs/{root.name}.lock": ""})  # as a git that was killed leaves it
    assert freeze(repo).root == root


def test_a_reference_that_cannot_be_written_is_told(repo: Path) -> None:
    write(repo, {"main.py": "edited", ".git/refs/mlxjobs": "in the way"})
    with pytest.raises(SnapshotError, match=r"(?s)cannot be written.*clone of your own.*git: .*lock ref"):
        freeze(repo)
    assert not (repo / ".workdir").exists()


def test_a_damaged_index_is_told(repo: Path) -> None:
    write(repo, {".git/index": "no index"})
    with pytest.raises(SnapshotError, match=r"(?s)index.*may be damaged: run `git status`"):
        freeze(repo)


def test_untracked_files_above_the_cap_are_named_by_size(repo: Path) -> None:
    inner = new_repo(repo / "inner", {"x": "1"})
    for path, size in {"data/big": 1_500_000, "small": 10, "data/mid": 400_000, "inner/in": 200_000}.items():
        write(repo, {path: ""})
        os.truncate(repo / path, size)
    with pytest.raises(
        SnapshotError, match=r"(?s)2\.1 MB.*=2\).*1\.5 MB  data/big.*0\.4 MB.*inner/in.*gitignore"
    ):
        freeze(repo, "all", max_untracked_mb=2)
    assert git(repo, "for-each-ref", "refs/mlxjobs") + git(inner, "for-each-ref", "refs/mlxjobs") == ""
    assert freeze(repo, "all", max_untracked_mb=3).root.is_dir()
    assert freeze(repo, "tracked", max_untracked_mb=0).root.is_dir()


SECRETS = {
    ".env": "A=1",
    "a/.env.local": "",
    "id_ed25519": "x",
    "keys/server.key": KEY,
    "a/credentials.json": "{}",
    "notes.txt": "see\nkey = " + "AKIA" + "IOSF7DNN7EXAMPQR\n",
    "x.py": "t = '" + "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2 + "'",
    "run.sh": "export OPENAI_API_KEY=" + "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8i9J0",
    "remotes": "url = https://" + "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2 + "@github.com/a/b",
    "aws.sh": "AWS_ACCESS_KEY_ID=" + "AKIA" + "IOSF7DNN7EXAMPQR",
    "hf.yaml": "token: " + "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345",
    "gcp.json": '{"private_key": "' + KEY.replace("\n", "\\n") + '"}',
}
HARMLESS = {
    ".env.example": "A=",
    ".envrc": "use flake",
    "plot.key": "x y z",
    "cert.pem": "-----BEGIN CERTIFICATE-----\nMIIB\n",
    "id_rsa.pub": "ssh-rsa AAAA",
    "scan.py": "K = '-----BEGIN PRIVATE KEY-----'",
    "credentials.py": "def read(): ...",
    "tokens.txt": "sk-learn-is-a-library-of-some-words-and-more",
    "doc.md": "export KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx AKIAIOSFODNN7EXAMPLE",
    "tokenizer.json": '{"sk": 1, "hf_": 2}',
    "image.ipynb": "iVBORw0KGgo/AKIAABCDEFGHIJKLMNOP/sk-AAAA",
    "b.bin": "\0" + KEY,
    "hash": "wandb: 0123456789abcdef0123456789abcdef01234567",
}


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_credential_is_named_and_never_shown(repo: Path, name: str) -> None:
    write(repo, {name: SECRETS[name]})
    with pytest.raises(SnapshotError, match=r"(?s)credentials.*\.gitignore.*git add") as caught:
        freeze(repo, "all")
    assert f"  {name}: " in str(caught.value)
    assert all(word not in str(caught.value) for word in SECRETS[name].split() if len(word) > 12)
    assert git(repo, "for-each-ref", "refs/mlxjobs") == ""
    assert freeze(repo, "tracked").root.is_dir()
    git(repo, "add", name)  # the user's own decision
    assert name in contents(freeze(repo, "all").root)


def test_what_is_no_credential_is_taken(repo: Path) -> None:
    write(repo, HARMLESS)
    assert HARMLESS.keys() <= contents(freeze(repo, "all").root).keys()


# ---- a run ----


def test_a_run_sees_the_edits_of_its_submission_and_no_later_ones(tmp_path: Path) -> None:
    project = Project(tmp_path / "proj")
    project.commit()
    main = project.folder / "main.py"

    def edit(word: str) -> None:
        main.write_text(MAIN.replace("Starting", word))

    edit("SUBMITTED")
    project.let_pass(0)
    options = ("+mlxpy.use_version_manager=true", "+mlxpy.version_manager.include=tracked")
    project.submit(*options)
    edit("LATER")
    project.await_epoch(0)
    project.mlxjobs("cancel", "1")
    project.await_status("CANCELLED")
    project.git("stash", "--quiet")
    project.let_pass(10**6)
    project.mlxjobs("requeue", "1")
    project.await_status("COMPLETE", attempts=2)
    assert project.stdout().count("SUBMITTED from epoch") == 2
    assert "LATER" not in project.stdout()
    facts = project.info()["version_manager"]
    assert facts["commit_hash"] == Path(facts["snapshot"]).name != facts["head"]
    done = project.run(*options, "+mlxpy.version_manager.include=al", code=2)
    assert "'version_manager.include' must be commit, tracked or all, not 'al'" in done.stderr
