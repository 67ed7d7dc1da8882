"""Submodules are in a snapshot, from their own repositories; one that is missing is an error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlxjobs.code import flushing
from mlxjobs.code.copying import find_missing, make_snapshot
from mlxjobs.code.git import Commit
from mlxjobs.errors import SnapshotError
from tests.code.repos import commit, contents, fake_git, freeze, git, leftovers, new_repo, shared, write

LOCAL = ("-c", "protocol.file.allow=always")


def add_submodule(top: Path, path: str, files: dict[str, str]) -> Path:
    """Add a repository with these files as a submodule, with a name that is not its path."""
    origin = new_repo(top.parent / f"origin of {path.replace('/', ' ')}", files)
    git(top, *LOCAL, "submodule", "add", "-q", "--name", f"the.{path}", str(origin), path)
    return origin


@pytest.fixture
def nested(repo: Path) -> Path:
    """A repository with a submodule `libs/sub ü` that has a submodule `in` itself."""
    origin = add_submodule(repo, "libs/sub ü", {"sub.py": "s = 1\n", "data/x": "x"})
    add_submodule(origin, "in", {"inner.py": "i = 1\n"})
    commit(origin, {})
    git(repo / "libs/sub ü", "pull", "-q")
    commit(repo, {})
    git(repo, *LOCAL, "submodule", "update", "-q", "--init", "--recursive")
    return repo


def checked_out(top: Path) -> dict[str, tuple[str, bytes]]:
    """What the user's tree holds, without the `.git` files of submodules."""
    return {path: what for path, what in contents(top).items() if Path(path).name != ".git"}


def test_submodules_are_in_the_snapshot_and_theirs_too(nested: Path) -> None:
    git(nested, "config", "submodule.recurse", "true")
    expected = checked_out(nested)
    before = contents(nested / ".git")
    frozen = freeze(nested)
    assert contents(frozen.root) == expected
    assert (frozen.root / "libs/sub ü/in/inner.py").read_text() == "i = 1\n"
    assert frozen.warnings == ()
    assert contents(nested / ".git") == before
    assert freeze(nested / "libs/sub ü/data", "../../../main.py", str(nested / ".workdir")).work_dir == (
        frozen.root / "libs/sub ü/data"
    )


def test_files_of_submodules_are_shared_and_missed_like_others(nested: Path) -> None:
    first = freeze(nested).root
    commit(nested / "libs/sub ü", {"data/x": "later"})
    commit(nested, {})
    second = freeze(nested).root
    assert contents(second) == checked_out(nested)
    assert {"main.py", "libs/sub ü/sub.py", "libs/sub ü/in/inner.py"} <= shared(first, second)
    assert "libs/sub ü/data/x" not in shared(first, second)
    (second / "libs/sub ü/in/inner.py").unlink()
    assert find_missing(second, nested) == ["libs/sub ü/in/inner.py"]


def test_a_submodule_is_taken_at_the_commit_that_is_asked_for(nested: Path) -> None:
    expected = checked_out(nested)
    commit(nested / "libs/sub ü", {"sub.py": "committed there only"})
    frozen = freeze(nested)
    assert contents(frozen.root) == expected
    assert "libs/sub ü" in frozen.warnings[0]
    assert frozen.facts["dirty"] is True


def test_changes_inside_a_submodule_are_told(nested: Path) -> None:
    write(nested, {"libs/sub ü/sub.py": "edited"})
    assert "Not committed" in freeze(nested).warnings[0]
    assert "libs/sub ü" in freeze(nested).warnings[0]


def test_a_submodule_that_is_not_checked_out_now_comes_from_where_git_keeps_it(
    nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checked_out(nested)
    write(tmp_path, {"cautious": "[safe]\n\tbareRepository = explicit\n"})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "cautious"))
    git(nested, "worktree", "add", "-q", str(tmp_path / "wt"))
    shutil.rmtree(nested / "libs")
    before_2_31 = 'case " $*" in *" --path-format"*) exit 129;; esac'
    fake_git(tmp_path / "x", monkeypatch, before_2_31)
    assert contents(freeze(nested).root) == expected
    assert contents(freeze(tmp_path / "wt").root).keys() >= {"libs/sub ü/in/inner.py"}


def test_a_repository_inside_that_gitmodules_does_not_know_is_taken_too(repo: Path) -> None:
    new_repo(repo / "embedded", {"e.py": "e"})
    git(repo, "-c", "advice.addEmbeddedRepo=false", "add", "embedded")
    commit(repo, {})
    assert (freeze(repo).root / "embedded" / "e.py").read_text() == "e"


def test_a_commit_that_only_a_submodule_has_is_found_from_any_commit_object(nested: Path) -> None:
    sub = nested / "libs/sub ü"
    write(sub, {"sub.py": "not on a branch"})
    git(sub, "add", "sub.py")
    made = git(sub, "commit-tree", "-m", "x", git(sub, "write-tree"))
    git(sub, "update-ref", f"refs/mlxjobs/{made}", made)
    git(sub, "reset", "-q", "--hard")
    git(nested, "update-index", "--cacheinfo", f"160000,{made},libs/sub ü")
    outer = git(nested, "commit-tree", "-m", "x", git(nested, "write-tree"))
    root = nested / ".workdir" / "proj" / outer
    make_snapshot(Commit(nested, outer, None), root)
    assert (root / "libs/sub ü/sub.py").read_text() == "not on a branch"


def test_a_submodule_that_is_not_there_is_an_error_with_both_ways_out(
    nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "finish_later", lambda root: None)  # .workdir is removed below
    git(tmp_path, "clone", "-q", str(nested), "clone")
    clone = tmp_path / "clone"
    expected = (
        r"(?s)libs/sub ü.*not checked out.*submodule update --init --recursive.*the\.libs/sub ü\.active"
    )
    with pytest.raises(SnapshotError, match=expected):
        freeze(clone)
    assert not (clone / ".workdir").exists()
    git(clone, "config", "submodule.the.libs/sub ü.active", "False")
    for _ in range(2):
        frozen = freeze(clone)
        assert "libs/sub ü." in frozen.warnings[0]
        assert list((frozen.root / "libs/sub ü").iterdir()) == []
    git(clone, "config", "submodule.the.libs/sub ü.active", "true")
    shutil.rmtree(clone / ".workdir")
    git(clone, *LOCAL, "submodule", "update", "-q", "--init", "--recursive")
    assert contents(freeze(clone).root) == checked_out(nested)


def test_a_submodule_that_is_never_checked_out_is_left_empty(repo: Path, tmp_path: Path) -> None:
    add_submodule(repo, "docs", {"d": "d"})
    git(repo, "config", "-f", ".gitmodules", "submodule.the.docs.update", "none")
    commit(repo, {})
    git(tmp_path, "clone", "-q", str(repo), "clone")
    assert "docs" in freeze(tmp_path / "clone").warnings[0]
    assert (freeze(repo).root / "docs" / "d").exists()  # it is checked out here, after all


def test_a_commit_that_the_submodule_has_not_is_an_error(nested: Path) -> None:
    git(nested, "update-index", "--cacheinfo", f"160000,{'1' * 40},libs/sub ü")
    git(nested, "commit", "-qm", "of somebody else")
    with pytest.raises(
        SnapshotError, match=r"(?s)libs/sub ü does not have the commit 111111111111.*submodule upd"
    ):
        freeze(nested)
    assert leftovers(nested / ".workdir") == []


def test_an_existing_snapshot_needs_no_question_about_submodules(
    nested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(nested)
    fake_git(nested, monkeypatch, f'echo x >> "{nested}"/../calls')
    freeze(nested)
    assert (nested.parent / "calls").read_text() == "x\n" * 3  # rev-parse, status, ls-files
