"""The main job on PBS, Torque, LSF and Moab, of which stand-ins keep a queue and run the scripts for real."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.record.history import RunState, RunStatus
from tests.project import MAIN, Project, await_value
from tests.slurm_stub import IMPATIENT
from tests.standins import standin

NAMES = {"pbs": "PBSScheduler", "torque": "PBSScheduler", "lsf": "LSFScheduler", "mwm": "MWMScheduler"}
RESUBMITS = ("pbs", "torque", "mwm")  # there a run comes back under a new id


class StandinProject(Project):
    """A project that submits to the stand-ins of one system."""

    def __init__(self, folder: Path, system: str, **more: Any) -> None:
        super().__init__(folder, **more)
        self.system = system
        self.queue_dir = folder.parent / "standins"
        binaries = self.queue_dir / "bin"
        for part in ("bin", "jobs", "spool"):
            (self.queue_dir / part).mkdir(parents=True)
        for command in standin.COMMANDS:
            (binaries / command).symlink_to(Path(standin.__file__).resolve())
        self.env |= {
            "STANDIN_DIR": str(self.queue_dir),
            "STANDIN_TORQUE": "1" if system == "torque" else "0",
            "PATH": f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def submit(self, *arguments: str, code: int = 0, **more: Any) -> Any:
        scheduler = ("+mlxpy.use_scheduler=true", f"+mlxpy.scheduler.name={NAMES[self.system]}")
        return self.run(*scheduler, *arguments, code=code, **more)

    def jobs(self) -> list[standin.Job]:
        return standin.all_jobs()

    def change(self, number: int, **news: Any) -> None:
        standin.change(str(number), **news)

    def await_end(self, number: int) -> None:
        await_value(lambda: (standin.read(str(number)) or {}).get("state") == "F", f"the end of job {number}")

    def start(self, *arguments: str) -> None:
        """Submit a run and stop it in the middle of epoch 2."""
        self.let_pass(2)
        self.submit(*arguments)
        self.await_epoch(2)


@pytest.fixture(params=["pbs", "lsf", "mwm"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Iterator[StandinProject]:
    yield from _project(tmp_path / "project", request.param, monkeypatch)


def _project(folder: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinProject]:
    one = StandinProject(folder, system)
    monkeypatch.setattr(standin, "HOME", one.queue_dir)
    yield one
    one.let_pass(10**6)
    (one.queue_dir / "hold").unlink(missing_ok=True)
    for job in one.jobs():
        if job["state"] != "F":
            standin.change(job["id"], end="deleted")
    await_value(lambda: all(job["state"] == "F" for job in one.jobs()), "the end of all jobs")


def assert_whole(project: StandinProject, log_id: int = 1, attempts: int = 0) -> RunState:
    """The run is complete, each epoch is there once, and the curve is that of an undisturbed run."""
    state = project.await_status("COMPLETE", log_id=log_id, attempts=attempts)
    assert project.epochs(log_id) == [0, 1, 2, 3, 4]
    assert project.losses(log_id) == pytest.approx([100 * 0.9 ** (epoch + 1) for epoch in range(5)])
    return state


@pytest.mark.parametrize("project", NAMES, indirect=True)
def test_a_sweep_is_submitted_and_each_run_has_its_own_files(project: StandinProject) -> None:
    (project.queue_dir / "hold").touch()
    done = project.submit("optimizer.lr=0.1,0.2,0.3")
    assert f"3 submitted to {NAMES[project.system]}" in done.stdout
    assert project.mlxjobs("ls").stdout.count("SUBMITTED") == 3
    # an array, where there are any
    numbers = {job["number"] for job in project.jobs()}
    assert len(numbers) == (1 if project.system in ("pbs", "lsf") else 3)
    (project.queue_dir / "hold").unlink()
    for log_id, lr in ((1, 0.1), (2, 0.2), (3, 0.3)):
        project.await_status("COMPLETE", log_id=log_id)
        assert f"Completed training with learning rate: {lr}" in project.stdout(log_id)
        assert project.stderr(log_id) == ""


@pytest.mark.parametrize("project", NAMES, indirect=True)
def test_a_warned_run_leaves_at_its_next_checkpoint_and_comes_back(project: StandinProject) -> None:
    project.start()
    project.mlxjobs("preempt", "1")
    project.await_warning()
    project.let_pass(10)
    state = assert_whole(project, attempts=2)
    assert state.attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"
    assert project.stdout().splitlines()[1].strip() == "Starting from epoch: 3"
    ids = {attempt.job_id for attempt in state.attempts}
    assert len(ids) == (2 if project.system in RESUBMITS else 1)


def test_a_run_of_a_sweep_comes_back_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # of PBS it would wait for a minute, as a job may not wait for a task
    for project in _project(tmp_path / "project", "lsf", monkeypatch):
        project.start("seed=1,2")
        project.await_epoch(2, 2)
        project.mlxjobs("preempt", "2")
        project.await_warning()
        project.let_pass(10)
        assert len(assert_whole(project, 2, attempts=2).attempts) == 2
        assert len(assert_whole(project, 1).attempts) == 1


def test_the_scheduler_kills_a_job_and_starts_it_again(project: StandinProject) -> None:
    project.start()
    project.change(1, requeue=True)  # without a warning, as PBS and Torque do
    await_value(lambda: (standin.read("1") or {})["runs"] == 2, "the second start")
    project.let_pass(10)
    state = assert_whole(project, attempts=2)
    assert state.attempts[1].job_id == state.attempts[0].job_id
    assert "Starting from epoch: " in project.stdout().splitlines()[1]


# epoch 2 of the first attempt lasts until the warning comes
WAITS_FOR_WARNING = MAIN.replace(
    "wait_for_leave(epoch, logger)\n        logger",
    "while epoch == 2 and start_epoch == 0 and not logger.preempted:\n"
    "            time.sleep(0.01)\n"
    "        logger",
)


@pytest.mark.parametrize("system", RESUBMITS)
def test_the_script_warns_before_the_time_limit(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project in _project(tmp_path / "project", system, monkeypatch):
        (project.folder / "main.py").write_text(WAITS_FOR_WARNING)
        project.submit("mlxpy.scheduler.option_cmd=['-l walltime=0:00:12']")
        state = assert_whole(project, attempts=2)
        assert state.attempts[0].status is RunStatus.PREEMPTED
        assert state.attempts[1].job_id != state.attempts[0].job_id


@pytest.mark.parametrize("project", NAMES, indirect=True)
def test_the_time_limit_without_a_warning(project: StandinProject) -> None:
    project.start()
    project.change(1, end="limit", limit=1)
    project.await_end(1)
    shown = project.mlxjobs("ls").stdout
    assert "CANCELLED" in shown
    project.let_pass(10)
    project.mlxjobs("requeue", "1")
    assert_whole(project, attempts=2)


def test_kill_9_and_a_requeue(project: StandinProject) -> None:
    project.start()
    attempt = project.state().attempt
    assert attempt is not None
    assert attempt.pid is not None
    os.kill(attempt.pid, signal.SIGKILL)
    project.await_end(1)
    assert "FAILED" in project.mlxjobs("ls").stdout
    project.let_pass(10)
    project.mlxjobs("requeue", "1")
    assert_whole(project, attempts=2)


@pytest.mark.parametrize("by", ["mlxjobs", "the user"])
def test_a_cancelled_run_stays_down(project: StandinProject, by: str) -> None:
    project.start()
    if by == "mlxjobs":
        project.mlxjobs("cancel", "1")
    else:
        project.change(1, end="deleted")
    project.await_end(1)
    project.let_pass(10)
    assert "CANCELLED" in project.mlxjobs("ls").stdout
    assert project.state().status is RunStatus.CANCELLED
    assert len(project.state().attempts) == 1
    assert len(project.jobs()) == 1


def test_a_waiting_run_can_be_cancelled(project: StandinProject) -> None:
    (project.queue_dir / "hold").touch()
    project.submit()
    project.mlxjobs("cancel", "1")
    project.await_end(1)
    assert project.state().status is RunStatus.CANCELLED
    assert not project.state().attempts


def test_the_schedulers_own_words_are_shown_when_it_refuses(project: StandinProject) -> None:
    done = project.submit("mlxpy.scheduler.option_cmd=['-q nosuch']", code=3)
    words = {"lsf": "No such queue. Job not submitted.", "mwm": "class nosuch not available"}
    assert words.get(project.system, "qsub: Unknown queue") in done.stderr
    assert "Traceback" not in done.stderr
    assert project.state().status is RunStatus.FAILED


@pytest.mark.parametrize("mode", ["lost", "mute"])
def test_a_submission_whose_answer_is_lost_is_found(project: StandinProject, mode: str) -> None:
    if (project.system, mode) == ("lsf", "lost"):
        mode = "mute"  # no words are known by which bsub would say so
    (project.folder / "main.py").write_text(IMPATIENT + MAIN)
    (project.queue_dir / "mode").write_text(mode)
    done = project.submit()
    assert "run 1: job 1" in done.stdout
    assert_whole(project)
    assert len(project.jobs()) == 1


@pytest.mark.parametrize("project", NAMES, indirect=True)
def test_a_job_that_is_not_known_hides_no_other(project: StandinProject) -> None:
    project.start("seed=1,2")
    project.await_epoch(2, 2)
    job_id = project.state(1).job_id
    assert job_id is not None
    forgotten = project.queue_dir / "forgotten"
    forgotten.write_text(standin.plain(job_id))
    shown = project.mlxjobs("ls").stdout
    forgotten.unlink()
    assert shown.count("RUNNING?") == 1
    assert shown.count("RUNNING ") == 1


@pytest.mark.parametrize("system", ["pbs", "lsf", "mwm"])
def test_a_folder_of_any_name(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for project in _project(tmp_path / "it's $HOME #1 `id` 100%j é [1]", system, monkeypatch):
        project.start()
        project.mlxjobs("preempt", "1")
        project.await_warning()
        project.let_pass(10)
        assert_whole(project, attempts=2)
