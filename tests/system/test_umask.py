"""Files that are made for a run are as open as the user's umask says, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import mlxpy
import pytest

from tests.project import Project


def wider(top: Path, umask: int) -> list[str]:
    """The files and folders that have a right which the umask takes away."""
    paths = [path for path in (top, *top.rglob("*")) if not path.is_symlink() and not path.is_socket()]
    assert paths
    return [f"{oct(path.stat().st_mode)} {path}" for path in paths if path.stat().st_mode & umask]


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022])
def test_nothing_is_wider_than_the_umask_says(project: Project, umask: int) -> None:
    project.commit()
    project.folder.chmod(0o755)
    before = os.umask(umask)
    try:
        project.submit("+mlxpy.use_version_manager=true", "num_epoch=1", "optimizer.lr=0.1,0.2")
        project.await_status("COMPLETE")
        project.await_status("COMPLETE", log_id=2)
        project.run("+mlxpy.logger.forced_log_id=1", "num_epoch=2")
        project.run("+mlxpy.logger.log_streams_to_file=true", "num_epoch=1", "optimizer.lr=0.1,0.2")
        assert len(mlxpy.Reader(project.logs).filter("")) == 4
        project.mlxjobs("ls")
    finally:
        os.umask(before)
    made = {path.name for path in project.logs.rglob("*")}
    assert {
        ".mlxjobs-index.sqlite",
        "script.sh",
        "last_ckpt.pkl",
        ".frozen.yaml",
        "log.stdout",
        "0001.json",
    } <= made
    assert wider(project.logs, umask) == []
    assert wider(project.folder / ".workdir", umask) == []
    assert wider(project.folder.parent / "queue", umask | 0o077) == []  # holds environments: nobody else's
    script = (project.logs / "1/script.sh").stat().st_mode & 0o777
    assert script == 0o777 & ~umask
