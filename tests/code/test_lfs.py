"""Files of a real git-lfs: contents in every snapshot, or an error that names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlxjobs.errors import SnapshotError
from tests.clusters.fixtures import unavailable
from tests.clusters.machine import ClusterError, install_packages
from tests.code.repos import commit, contents, freeze, git, leftovers, shared


@pytest.fixture
def lfs(repo: Path) -> Path:
    """A repository in which git-lfs keeps `*.bin`; its remote cannot be reached."""
    if shutil.which("git-lfs") is None:
        try:
            install_packages(["git-lfs"])
        except ClusterError as error:
            unavailable(str(error))
    git(repo, "lfs", "install", "--local")
    git(repo, "lfs", "track", "*.bin")
    git(repo, "remote", "add", "origin", "https://192.0.2.1/nobody.git")  # RFC 5737: never answers
    commit(repo, {"a.bin": "a" * 3000, "deep/b.bin": "short", "notes.txt": "version https://git-lfs..."})
    assert git(repo, "cat-file", "-p", "HEAD:a.bin").startswith("version https://git-lfs")
    return repo


def lose_object(repo: Path, path: str) -> None:
    """Have nothing of a file but its pointer, as after a clone that skipped it."""
    (repo / path).write_text(
        git(repo, "cat-file", "-p", f"HEAD:{path}") + "\n"
    )  # else `git status` may store it
    oid = next(line.split()[0] for line in git(repo, "lfs", "ls-files", "-l").splitlines() if path in line)
    (repo / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid).unlink()


def test_a_snapshot_has_contents_whatever_the_user_told_git_lfs(
    lfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_LFS_SKIP_SMUDGE", "1")
    git(lfs, "lfs", "install", "--local", "--skip-smudge", "--force")
    git(lfs, "config", "lfs.fetchexclude", "*.bin")
    assert contents(freeze(lfs).root) == contents(lfs)
    git(lfs, "lfs", "uninstall", "--local")
    (lfs / "deep" / "b.bin").write_text("later")
    git(lfs, "-c", "filter.lfs.clean=git-lfs clean", "commit", "-qam", "later")
    second = freeze(lfs).root
    assert contents(second) == contents(lfs)
    assert git(lfs, "cat-file", "-p", "HEAD:deep/b.bin").startswith("version https://git-lfs")


def test_files_of_git_lfs_are_shared_too(lfs: Path) -> None:
    first = freeze(lfs).root
    commit(lfs, {"deep/b.bin": "later"})
    second = freeze(lfs).root
    assert contents(second) == contents(lfs)
    assert "a.bin" in shared(first, second)


def test_contents_that_are_not_here_are_an_error_that_waits_for_no_network(lfs: Path) -> None:
    lose_object(lfs, "deep/b.bin")
    with pytest.raises(SnapshotError, match=r"(?s)deep/b\.bin\.\n.*git lfs pull"):
        freeze(lfs)
    assert leftovers(lfs / ".workdir") == []


def test_without_git_lfs_pointers_are_an_error(
    lfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "sync", "sh"):
        where = shutil.which(name)
        assert where is not None
        (programs / name).symlink_to(where)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(SnapshotError, match=r"(?s)a\.bin, deep/b\.bin\..*git lfs install.*git lfs pull"):
        freeze(lfs)
    assert leftovers(lfs / ".workdir") == []


def test_a_worktree_has_contents_too(lfs: Path, tmp_path: Path) -> None:
    git(lfs, "worktree", "add", "-q", str(tmp_path / "wt"))
    assert contents(freeze(tmp_path / "wt").root) == contents(lfs)
