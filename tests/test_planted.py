"""What another user has put where we look is read, and never run."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
from pathlib import Path

import mlxpy
import pytest

from mlxjobs.code.gitvm import GitVM
from mlxjobs.errors import RunError, SnapshotError
from mlxjobs.jobs.arrays import feed_queue
from mlxjobs.reader.columns import INDEX_SCHEMA
from mlxjobs.record.log_dir import take_array, waiting_in
from mlxjobs.record.run import Run
from mlxjobs.system.files import replace_file
from mlxjobs.version_manager import Launch
from tests.project import Project
from tests.run_trees import write_run
from tests.slurm_stub import Slurm

STRANGER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: only root can give a file away")


def give_away(*paths: Path) -> None:
    for path in paths:
        for one in (path, *path.rglob("*")):
            os.chown(one, STRANGER, STRANGER, follow_symlinks=False)


class Touch:
    """Pickled, it runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore::mlxjobs.reader.reader.UnreadableRunWarning")
def test_reading_results_runs_nothing_of_them(project: Project, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Touch(marker))
    (project.folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for number in range(1, 6):
        write_run(project.logs, number, {"lr": number})
    (project.logs / "1/metadata/info.yaml").write_text(
        f"!!python/object/apply:os.system ['touch {marker}']\n"
    )
    (project.logs / "2/metadata/config.yaml").write_text(
        f"lr: !!python/object/apply:os.system ['touch {marker}']\n"
    )
    for name in (".info.json", ".config.json", ".frozen.yaml", ".history/0001.json"):
        (project.logs / "3/metadata" / name).write_bytes(bomb)
    (project.logs / "3/artifacts/Checkpoint").mkdir(parents=True)
    (project.logs / "3/artifacts/Checkpoint/last_ckpt.pkl").write_bytes(bomb)
    (project.logs / "3/artifacts/pickle").mkdir()
    (project.logs / "3/artifacts/pickle/model.pkl").write_bytes(bomb)
    (project.logs / "4/metrics/.keys/train.yaml").write_text("!!python/object/apply:os.abort []\n")
    with sqlite3.connect(project.logs / ".mlxjobs-index.sqlite") as index:
        index.execute("CREATE TABLE blocks (block, content)")
        index.execute("INSERT INTO blocks VALUES (0, ?)", (bomb,))
        index.execute(f"PRAGMA user_version={INDEX_SCHEMA}")
    project.mlxjobs("ls")
    for row in mlxpy.Reader(project.logs).filter(""):
        dict(row)
    assert project.mlxjobs("ls", "config.lr > 0").stdout
    assert not marker.exists()


@needs_root
def test_the_scheduler_that_another_users_run_names_is_not_imported(project: Project, tmp_path: Path) -> None:
    """Neither theirs, nor a module of ours of their choice."""
    marker = tmp_path / "marker"
    (project.folder / "innocent.py").write_text(f"open({str(marker)!r}, 'w')\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "evil.py").symlink_to(project.folder / "innocent.py")
    give_away(elsewhere)
    for number, path in enumerate(("innocent:X", f"innocent:X@{project.folder}", f"evil:X@{elsewhere}"), 1):
        run = Run.create(project.logs)
        for event in (
            {"event": "created", "facts": {}},
            {"event": "submitting", "scheduler": "X", "class": path, "process": {}},
            {"event": "submitted", "submission": 1, "job_id": "7"},
        ):
            run.record(lambda state, event=event: event)  # type: ignore[misc]
        give_away(run.path)
        for command in ("ls", "cancel", "requeue"):
            which = [] if command == "ls" else [str(number)]
            words = project.mlxjobs(command, *which, code=2 if which else 0)
            assert f"logs/{number} belongs to {STRANGER}" in words.stderr, command
    assert not marker.exists()


@needs_root
@pytest.mark.parametrize(
    "what",
    [".", "script.sh", "metadata", "metadata/.frozen.yaml", "metadata/mlxpy.yaml", "artifacts/Checkpoint"],
)
def test_a_run_with_something_of_another_users_is_not_started(slurm_stub: Slurm, what: str) -> None:
    project = slurm_stub.project
    slurm_stub.submit("")
    slurm_stub.end("1")
    (project.logs / "1/artifacts/Checkpoint").mkdir()
    path = project.logs / "1" / what
    os.chown(path, STRANGER, STRANGER)
    words = f"{Path('logs/1', what)} belongs to {STRANGER}; if you trust {STRANGER}, copy it (cp -r)"
    project.mlxjobs("ls")
    for refused in (
        project.mlxjobs("requeue", "1", code=2),
        project.run("+mlxpy.logger.forced_log_id=1", code=2),
    ):
        assert "run 1 is not started as you" in refused.stderr
        assert words in refused.stderr
    assert slurm_stub.tasks() == {}
    project.env["MLXJOBS_TRUST"] = f"nobody,{STRANGER}"
    project.run("+mlxpy.logger.forced_log_id=1")
    assert project.state().status == "COMPLETE"


@needs_root
def test_runs_of_others_that_wait_are_not_handed_in(
    slurm_stub: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = slurm_stub.project
    slurm_stub.limit(max_array=3, room=2)
    slurm_stub.submit("", "seed=1,2,3,4,5,6")
    assert waiting_in(project.logs) == [3, 4, 5, 6]
    give_away(project.logs / "3", project.logs / "5/script.sh")
    slurm_stub.limit(room=100)
    monkeypatch.setenv("PATH", project.env["PATH"])
    assert sorted(feed_queue(project.logs).jobs) == [4, 6]
    assert waiting_in(project.logs) == [3, 5]


@needs_root
def test_in_a_log_directory_of_several_users_each_has_arrays_and_marks_of_their_own(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all my work")
    for name in (".waiting", ".arrays"):
        (tmp_path / name).mkdir()
    (tmp_path / ".waiting/.lock").symlink_to(precious)
    (tmp_path / ".waiting/1").touch()
    give_away(tmp_path / ".waiting", tmp_path / ".arrays")
    assert take_array(tmp_path) == tmp_path / ".arrays-0/1"
    assert waiting_in(tmp_path) == []
    Run.create(tmp_path).mark_waiting(True)
    assert waiting_in(tmp_path) == [1]
    assert feed_queue(tmp_path, most=0).jobs == {}
    assert precious.read_text() == "all my work"
    give_away(tmp_path / ".arrays-0")
    with pytest.raises(RunError, match=rf"\.arrays-0 belongs to {STRANGER}"):
        take_array(tmp_path)


def test_a_link_where_we_write_aside_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("all my work")
    with monkeypatch.context() as patch:  # learn the name
        names: list[Path] = []
        patch.setattr(Path, "replace", lambda self, target: names.append(self))
        replace_file(tmp_path / "x", "new")
    names[0].unlink()
    names[0].symlink_to(precious)
    replace_file(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert not (tmp_path / "x").is_symlink()
    assert precious.read_text() == "all my work"


@needs_root
def test_a_snapshot_of_another_users_is_not_run(project: Project) -> None:
    commit = project.commit()
    launch = Launch(project.folder, Path("main.py"), Path(".workdir"))
    root = project.folder / ".workdir" / project.folder.name / commit
    root.mkdir(parents=True)
    (root / "main.py").write_text("evil")
    for planted in (root, root.parent):
        os.chown(planted, STRANGER, STRANGER)
        with pytest.raises(SnapshotError, match=f"{planted} belongs to {STRANGER}"):
            GitVM().freeze(launch)
        os.chown(planted, 0, 0)


@needs_root
def test_the_current_folder_of_another_user_is_no_place_for_modules(project: Project, tmp_path: Path) -> None:
    """`cd /home/bob && mlxjobs ls` runs nothing of bob's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    marker = tmp_path / "marker"
    (theirs / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    give_away(theirs)
    load = "from mlxjobs.cluster.registry import load; load('evil:X@/nowhere')"
    code = f"import sys; sys.path.remove(''); {load}"
    done = subprocess.run([project.python, "-c", code], cwd=theirs, capture_output=True, text=True)
    assert "evil:X cannot be imported: No module named 'evil'" in done.stderr
    assert not marker.exists()
