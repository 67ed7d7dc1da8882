"""What is seen of runs from outside, where the run itself cannot tell."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mlxjobs.jobs.act import cancel_runs
from mlxjobs.jobs.look import look_at_runs
from mlxjobs.record.history import RunStatus, iso
from mlxjobs.record.run import Run
from mlxjobs.system.processes import this_process
from tests.project import MAIN, Project, write
from tests.slurm_stub import IMPATIENT, Slurm, run_task


def preempted(slurm: Slurm, restarts: int = 0) -> Project:
    """A run that left to be started again; its job was told that it had been started again so often."""
    slurm.submit("")
    run = slurm.project.at()
    run.record(lambda state: {"event": "started", "attempt": 1, "job_id": "1", "restarts": restarts})
    run.record(lambda state: {"event": "ended", "attempt": 1, "status": "PREEMPTED", "reason": "warned"})
    return slurm.project


@pytest.mark.parametrize(
    ("restarts", "words"),
    [
        # a controller that was killed and started again does not know any more what it had promised
        (0, "the job was to be started again, and ended: exit code 75"),
        (1, "the job ended before the task began: exit code 75"),
    ],
)
def test_a_job_that_does_not_come_back(slurm_stub: Slurm, restarts: int, words: str) -> None:
    project = preempted(slurm_stub)
    slurm_stub.say(f"FAILED NonZeroExitCode {restarts} {75 << 8}")
    assert words in project.mlxjobs("ls").stdout
    assert project.state().status is RunStatus.FAILED


@pytest.mark.parametrize("ran", [False, True])
def test_a_job_that_the_scheduler_does_not_know_any_more_is_handed_in_anew(
    slurm_stub: Slurm, ran: bool
) -> None:
    project = slurm_stub.project
    if ran:
        preempted(slurm_stub)
    else:
        slurm_stub.submit("")
    slurm_stub.end("1")
    shown = project.mlxjobs("ls").stderr
    assert "does not know job 1 any more; to go on: mlxjobs requeue 1" in shown
    assert project.mlxjobs("requeue", "1").stdout == "run 1 is submitted again (job 2)\n"
    assert project.state().job_id == "2"
    assert "SUBMITTED " in project.mlxjobs("ls").stdout


@pytest.mark.parametrize(
    ("restarts", "age_s", "status"),
    [(0, 5, RunStatus.STARTING), (1, 5, RunStatus.PREEMPTED), (0, 600, RunStatus.PREEMPTED)],
)
def test_a_scheduler_that_learns_late_of_a_start_does_not_unmake_it(
    slurm_stub: Slurm, restarts: int, age_s: int, status: RunStatus
) -> None:
    slurm_stub.submit("")
    project = slurm_stub.project
    began = iso(datetime.now() - timedelta(seconds=age_s))
    project.at().record(lambda state: {"event": "started", "attempt": 1, "job_id": "1", "time": began})
    slurm_stub.say(f"PENDING None {restarts}")
    project.mlxjobs("ls")
    assert project.state().status is status


def test_a_run_whose_job_nobody_knows_any_more_can_be_cancelled(slurm_stub: Slurm) -> None:
    slurm_stub.submit("")
    slurm_stub.end("1")
    scancel = slurm_stub.folder / "scancel"
    scancel.write_text("#!/bin/sh\necho 'Unknown Job Id 1' >&2\nexit 1\n")  # as qdel and bkill say
    assert slurm_stub.project.mlxjobs("cancel", "1").stdout == "run 1 is cancelled\n"
    assert slurm_stub.project.state().status is RunStatus.CANCELLED


def test_nothing_is_handed_in_anew_while_nobody_can_be_asked(slurm_stub: Slurm) -> None:
    slurm_stub.submit("")
    slurm_stub.end("1")
    (slurm_stub.folder / "down").touch()
    slurm_stub.project.mlxjobs("requeue", "1")
    assert len(slurm_stub.queue) == 1


def test_a_job_that_is_being_stopped_is_not_warned_too(slurm_stub: Slurm) -> None:
    slurm_stub.submit("")
    project = slurm_stub.project
    project.at().record(lambda state: {"event": "started", "attempt": 1, "job_id": "1"})
    slurm_stub.say("COMPLETING None 1")
    refused = project.mlxjobs("preempt", "1", code=2)
    assert "run 1 is being stopped by its scheduler already" in refused.stderr
    slurm_stub.say("RUNNING None 0")
    project.mlxjobs("preempt", "1")
    assert (slurm_stub.folder / "cancelled").read_text() == "--signal=USR2 --full 1\n"


def test_a_job_that_comes_back_after_another_has_completed_the_run_does_nothing(slurm_stub: Slurm) -> None:
    slurm_stub.submit("")
    project = slurm_stub.project
    project.at().record(lambda state: {"event": "started", "attempt": 1, "job_id": "1"})
    project.at().record(lambda state: {"event": "ended", "attempt": 1, "status": "FAILED"})
    project.mlxjobs("requeue", "1")
    run_task(slurm_stub, "2")
    assert project.state().status is RunStatus.COMPLETE
    # a controller that was killed believes that the job of the first attempt still runs, and starts it again
    assert "run 1 is complete: nothing to do" in run_task(slurm_stub, "1").stderr
    assert len(project.state().attempts) == 2
    # by hand it is run once more
    (slurm_stub.folder / "queue" / "3").write_text((slurm_stub.folder / "queue" / "2").read_text())
    run_task(slurm_stub, "3")
    assert len(project.state().attempts) == 3


def test_a_command_that_repeats_its_signal_is_ended_before_it_does(slurm_stub: Slurm) -> None:
    slurm_stub.submit("")
    project = slurm_stub.project
    project.at().record(lambda state: {"event": "started", "attempt": 1, "job_id": "1"})
    slurm_stub.say("RUNNING None 0")
    scancel = slurm_stub.folder / "scancel"
    scancel.write_text(f"{scancel.read_text()}exec sleep 100\n")
    assert "is asked to checkpoint" in project.mlxjobs("preempt", "1").stdout
    assert len((slurm_stub.folder / "cancelled").read_text().splitlines()) == 1
    # where the controller hangs, nobody knows whether the signal was sent
    scancel.write_text(f"{scancel.read_text().replace('exec', 'touch down; exec')}")
    refused = project.mlxjobs("preempt", "1", code=3).stderr
    assert "error: slurm_load_jobs error: Unable to contact slurm controller" in refused


@pytest.mark.parametrize(("mode", "code"), [("timeout-taken", 3), ("kill-taken", -9)])
def test_a_job_that_nobody_knew_of_does_nothing_once_the_run_is_complete(
    slurm_stub: Slurm, mode: str, code: int
) -> None:
    project = slurm_stub.project
    write(project, {"main.py": IMPATIENT + MAIN})
    (slurm_stub.folder / "down").touch()
    slurm_stub.submit(mode, code=code)
    (slurm_stub.folder / "down").unlink()
    project.mlxjobs("ls")
    assert project.state().status is RunStatus.FAILED
    project.mlxjobs("requeue", "1")
    run_task(slurm_stub, "2")
    assert project.state().status is RunStatus.COMPLETE
    assert "run 1 is complete: nothing to do" in run_task(slurm_stub, "1").stderr
    assert len(project.state().attempts) == 1


def test_a_run_that_is_cancelled_while_it_is_submitted_does_not_run(slurm_stub: Slurm) -> None:
    project, sbatch = slurm_stub.project, slurm_stub.folder / "sbatch"
    cancel = f"(cd {project.folder} && {project.python} -m mlxjobs cancel 1) >&2\n"
    sbatch.write_text(sbatch.read_text().replace("case ${mode", f"{cancel}case ${{mode"))
    said = slurm_stub.submit("").stderr
    assert "run 1 was cancelled meanwhile, and so is its job 1" in said
    assert (slurm_stub.folder / "cancelled").read_text() == "1\n"
    assert project.state().status is RunStatus.CANCELLED
    # had it begun before it could be cancelled
    assert "run 1 was cancelled, so this job ends" in run_task(slurm_stub, "1", code=2).stderr
    assert (project.state().status, project.state().attempts) == (RunStatus.CANCELLED, [])


@pytest.mark.parametrize("answered", [False, True])
def test_what_a_job_hands_in_while_it_is_cancelled_is_cancelled_too(
    slurm_stub: Slurm, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    slurm_stub.submit("")
    run = slurm_stub.project.at()
    run.record(lambda state: {"event": "started", "attempt": 1, "job_id": "1"})
    monkeypatch.setenv("PATH", slurm_stub.project.env["PATH"])
    slurm_stub.say("RUNNING None 0")
    [seen] = look_at_runs(slurm_stub.project.logs)
    path = seen.state.scheduler["class"]
    run.record(lambda state: {"event": "submitting", "scheduler": "S", "class": path})
    if answered:
        run.record(lambda state: {"event": "submitted", "submission": 2, "job_id": "2"})
        run.record(lambda state: {"event": "ended", "attempt": 1, "status": "PREEMPTED", "reason": "warned"})
    else:
        [seen] = look_at_runs(slurm_stub.project.logs)
    jobs = "jobs 1 and 2" if answered else "job 1"
    assert list(cancel_runs([seen])) == [f"run 1 is cancelled ({jobs})"]
    assert (slurm_stub.folder / "cancelled").read_text() == ("1\n2\n" if answered else "1\n")
    assert run.state().status is RunStatus.CANCELLED


@pytest.mark.parametrize(
    ("boot", "status"), [("this one", RunStatus.STARTING), ("another", RunStatus.FAILED)]
)
def test_a_process_in_another_container_of_the_same_host_name_is_not_called_gone(
    tmp_path: Path, boot: str, status: RunStatus
) -> None:
    """As with `docker run --network host`; after a reboot it is gone."""
    run, me = Run.create(tmp_path), this_process()
    key = me["process_key"].partition("/")[0] if boot == "this one" else boot
    container = {**me, "pid": 1, "process_key": f"{key}/1", "pid_namespace": me["pid_namespace"] + 1}
    run.record(lambda state: {"event": "started", "attempt": 1, **container})
    [seen] = look_at_runs(tmp_path)
    assert seen.state.status is status
    assert (seen.doubt is None) == (status is RunStatus.FAILED)
