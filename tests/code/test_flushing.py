"""A snapshot that a power failure may have damaged is whole again before anything runs from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxjobs.code import flushing
from tests.code.repos import commit, contents, freeze, new_repo, write
from tests.crashes import crash_points
from tests.project import Project, await_value
from tests.slurm_stub import Slurm


@pytest.fixture(autouse=True)
def _flushed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine goes down before the flush in the background is done."""
    monkeypatch.setattr(flushing, "finish_later", lambda root: None)


def note(root: Path) -> Path:
    return root.with_name(f".{root.name}.unflushed")


def reboot(root: Path) -> None:
    """Make it a snapshot that was not yet on the disk when the machine last went down."""
    flushing.finish(root)
    note(root).write_text(f"{os.uname().nodename} an-earlier-boot")


def empty(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    times = path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("damage", [empty, fill_with_zeros, Path.unlink])
@pytest.mark.parametrize("lost", [None, "0.index", "made", "unflushed"])
def test_what_a_power_failure_took_is_there_again(
    repo: Path, damage: Callable[[Path], None], lost: str | None
) -> None:
    root = freeze(repo).root
    whole = (root / "main.py").stat().st_ino
    reboot(root)
    damage(root / "pkg" / "part.py")
    if lost:
        empty(root.with_name(f".{root.name}.{lost}"))
    frozen = freeze(repo)
    assert contents(frozen.root) == contents(repo)
    assert not note(root).exists()
    assert (root / "pkg" / "part.py").stat().st_mode & 0o222 == 0
    if lost != "0.index":
        assert (root / "main.py").stat().st_ino == whole  # others may be running it
    assert freeze(repo).warnings == ()


def test_a_snapshot_whose_program_was_tidied_away_is_mended_where_it_is(repo: Path) -> None:
    root = freeze(repo).root
    other = (root / "main.py").stat().st_ino
    shutil.rmtree(root / "pkg")
    assert contents(freeze(repo, "pkg/part.py").root) == contents(repo)
    assert (root / "pkg" / "part.py").stat().st_mode & 0o222 == 0
    assert (root / "main.py").stat().st_ino == other  # others may be running it
    assert not note(root).exists()


def test_nothing_is_shared_with_a_snapshot_that_may_be_damaged(repo: Path) -> None:
    first = freeze(repo).root
    reboot(first)
    fill_with_zeros(first / "pkg" / "part.py")
    commit(repo, {"main.py": "later"})
    assert contents(freeze(repo).root) == contents(repo)


def test_a_launch_in_the_same_life_of_the_machine_looks_at_nothing(repo: Path) -> None:
    root = freeze(repo).root
    assert note(root).exists()
    write(root, {"pkg/part.pyc": "of a run"})
    before = root.with_name(f".{root.name}.0.index").stat()
    freeze(repo)
    assert root.with_name(f".{root.name}.0.index").stat() == before


def test_the_flush_in_the_background_takes_the_doubt_away(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    root = freeze(repo).root
    await_value(lambda: not note(root).exists(), "the flush")


def test_a_job_is_handed_in_when_its_code_is_on_the_disk(project: Project, slurm_stub: Slurm) -> None:
    # the flush in the background never ends well
    write(slurm_stub.folder, {"sync": "#!/bin/sh\nexit 1\n"})
    (slurm_stub.folder / "sync").chmod(0o755)
    project.commit()
    project.run("+mlxpy.use_version_manager=true")
    marks = project.folder / ".workdir"
    assert len(list(marks.rglob(".*.unflushed"))) == 1
    project.run("+mlxpy.use_version_manager=true", "+mlxpy.use_scheduler=true",
                "+mlxpy.scheduler.name=SLURMScheduler")  # fmt: skip
    assert list(marks.rglob(".*.unflushed")) == []


def test_a_launch_that_dies_at_any_point_leaves_nothing_that_spoils_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = new_repo(tmp_path / "run" / "repo", {"main.py": "print(1)\n", "pkg/part.py": "x = 1\n"})
    flushing.finish(freeze(top, parent="../work").root)
    commit(top, {"main.py": "later"})
    expected = contents(top)
    for place in crash_points(tmp_path, monkeypatch, lambda place: freeze(place / "repo", parent="../work")):
        root = freeze(place / "repo", parent="../work").root
        assert contents(root) == expected
        assert [path for path in root.rglob("*.py") if path.stat().st_mode & 0o222] == []
