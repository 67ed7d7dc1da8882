"""The Reader tells what became of runs that could not record it themselves, and what nobody can know."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import mlxpy
import pytest

from mlxjobs.jobs.look import Seen, look_at_runs
from mlxjobs.reader.reader import UncertainRunWarning
from mlxjobs.record.history import RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.processes import this_process
from tests.project import Project
from tests.run_trees import age
from tests.schedulers.example import WHOLE
from tests.slurm_stub import Slurm


def begun(logs: Path, log_id: int = 1, **process: object) -> Run:
    """A run that began in a process of this machine, or of another."""
    run = Run.create(logs, log_id)
    run.write_yaml("config", {"seed": 1})
    run.record(lambda state: {"event": "created", "facts": {}})
    run.record(
        lambda state: {
            "event": "started", "attempt": 1, **this_process(), "job_id": None, "facts": {}, **process,
        }
    )  # fmt: skip
    run.record(lambda state: {"event": "running", "attempt": 1})
    return run


def ended_process() -> int:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return pid


def test_a_run_whose_process_was_killed_is_failed(tmp_path: Path) -> None:
    run = begun(tmp_path, pid=ended_process())
    reader = mlxpy.Reader(tmp_path)
    row = reader.filter("info.status == 'FAILED'")[0]
    assert row["info.status"] == "FAILED"
    assert reader.doubts == {}
    assert run.state().reason == "killed: its process is gone"


def test_a_run_that_nobody_can_ask_for_says_since_when(tmp_path: Path) -> None:
    begun(tmp_path, host="another-machine")
    with pytest.warns(UncertainRunWarning, match="1 run may not be as recorded: run 1: unknown since"):
        reader = mlxpy.Reader(tmp_path)
    assert "another-machine cannot be asked from here" in reader.doubts[1]
    assert reader.filter()[0]["info.status"] == "RUNNING"
    assert reader.live == [1]


def test_an_event_that_nobody_could_paint_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run) -> None:  # as it does for somebody else's run
        raise PermissionError(errno.EACCES, "Permission denied", str(run.path))

    run = begun(tmp_path)
    os.utime(run.history_dir, (1.7e9, 1.7e9))
    age(run.path)
    assert mlxpy.Reader(tmp_path).filter()[:]["info.status"] == ["RUNNING"]
    run.record(lambda state: {"event": "ended", "attempt": 1, "status": "COMPLETE"}, paint=False)
    monkeypatch.setattr(Run, "repaint", refuse)
    assert mlxpy.Reader(tmp_path).filter()[:]["info.status"] == ["COMPLETE"]


def test_a_run_that_is_removed_while_the_others_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for log_id in (1, 2):
        begun(tmp_path, log_id, pid=ended_process())

    def look(parent: Path, *arguments: Any, **options: Any) -> list[Seen]:
        shutil.rmtree(parent / "1", ignore_errors=True)
        return look_at_runs(parent, *arguments, **options)

    monkeypatch.setattr("mlxjobs.jobs.look.look_at_runs", look)
    assert mlxpy.Reader(tmp_path).filter("info.status == 'FAILED'")[:]["info.log_id"] == [2]


def test_it_asks_nobody_where_it_takes_the_index_as_it_is(tmp_path: Path) -> None:
    run = begun(tmp_path, pid=ended_process())
    with pytest.warns(UncertainRunWarning):
        mlxpy.Reader(begun(tmp_path / "more", host="another-machine").path.parent)
    mlxpy.Reader(tmp_path / "more", refresh=False)
    assert run.state().status is RunStatus.RUNNING


def test_a_job_that_was_cancelled_behind_our_back_is_cancelled(
    slurm_stub: Slurm, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", project.env["PATH"])
    slurm_stub.submit("ok", "optimizer.lr=0.1,0.01")
    reader = mlxpy.Reader(project.logs)
    assert reader.filter()[:]["info.status"] == ["SUBMITTED", "SUBMITTED"]
    slurm_stub.say("CANCELLED None 0")
    assert reader.refresh().filter()[:]["info.status"] == ["CANCELLED", "CANCELLED"]
    assert reader.live == []


def test_it_runs_no_scheduler_of_a_project_which_mlxjobs_ls_does(project: Project) -> None:
    imported = "open(__file__ + '.imported', 'w').close()\n"
    (project.folder / "mine.py").write_text(WHOLE + imported)
    project.submit("mlxpy.scheduler.name=mine.Mine")
    mark = project.folder / "mine.py.imported"
    mark.unlink()
    with pytest.warns(UncertainRunWarning, match="`mlxjobs ls` asks it"):
        mlxpy.Reader(project.logs)
    assert not mark.exists()
    project.mlxjobs("ls", "info.status == 'SUBMITTED'")
    assert mark.exists()
