"""Runs on a real Grid Engine, as an ordinary user: whatever happens to a job, its run goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxjobs.cluster.script import render_script
from mlxjobs.record.history import RunStatus
from mlxjobs.scheduler import TASK, Job, JobState
from mlxjobs.schedulers.sge import SGEScheduler
from tests.clusters.machine import USER
from tests.clusters.on_sge import SgeProject, assert_whole
from tests.clusters.sge import SgeCluster
from tests.project import MAIN, await_value

pytestmark = [pytest.mark.sge, pytest.mark.timeout(240)]

OPTIONS = "mlxpy.scheduler.option_cmd=[{}]"
scheduler = SGEScheduler()


@pytest.fixture
def remote(sge: SgeCluster, cluster_python: Path, sge_dir: Path) -> Iterator[SgeProject]:
    project = SgeProject(sge, cluster_python, sge_dir)
    yield project
    project.let_pass(10**6)


# epoch 2 of the first attempt lasts until the warning comes
WAITS_FOR_WARNING = MAIN.replace(
    "wait_for_leave(epoch, logger)\n        logger",
    "while epoch == 2 and start_epoch == 0 and not logger.preempted:\n"
    "            time.sleep(0.01)\n"
    "        logger",
)
assert WAITS_FOR_WARNING != MAIN


def test_a_sweep_runs_and_is_asked_about_in_one_call(remote: SgeProject) -> None:
    done = remote.run("optimizer.lr=0.1,0.01", env={"JOB_ID": "9", "SGE_O_HOST": "x", "RESTARTED": "1"})
    assert "2 submitted to SGEScheduler" in done.stdout
    assert_whole(remote)
    remote.await_status("COMPLETE", log_id=2)
    assert remote.losses(2)[0] == pytest.approx(99)
    assert remote.stdout().splitlines()[0].startswith(f"as {USER} in job ")
    assert "COMPLETE" in remote.mlxjobs("ls").stdout


def test_mlxjobs_preempt_checkpoints_and_comes_back_in_the_same_job(remote: SgeProject) -> None:
    job = remote.start()
    remote.mlxjobs("preempt", "1")
    remote.await_warning()
    remote.let_pass(4)
    remote.await_epoch(4)  # in the second attempt, which is warned too
    assert "SIGUSR1 at epoch 2, requeued 1 of 100" in str(remote.state().attempts[0].reason)
    remote.mlxjobs("preempt", "1")
    remote.await_warning()
    remote.let_pass(10)
    state = assert_whole(remote, job, job)
    assert state.job_id == job
    remote.await_job(job, "ended")
    remote.cluster.wait_for(
        lambda: [record["failed"].split()[0] for record in remote.cluster.records(job)],
        until=lambda failed: failed == ["25", "25", "0"],
    )


def test_a_job_of_a_queue_above_suspends_it(remote: SgeProject) -> None:
    (remote.folder / "main.py").write_text(WAITS_FOR_WARNING)
    job = remote.start()
    node = remote.state().attempts[0].host
    above = ["-b", "y", "-o", "/dev/null", "-j", "y", "-pe", "high", "1"]
    remote.command("qsub", *above, "-q", f"high.q@{node}", "sleep", "20")
    state = assert_whole(remote, job)
    assert state.job_id == job
    assert state.attempts[0].reason == "warned by SIGUSR1 at epoch 2, requeued 1 of 100"
    assert state.attempts[1].host != node


@pytest.mark.parametrize("limit", ["'-l h_rt=0:0:8'", "'-l s_rt=0:0:8'"])
def test_the_time_limit(remote: SgeProject, limit: str) -> None:
    (remote.folder / "main.py").write_text(WAITS_FOR_WARNING)
    old = remote.start(OPTIONS.format(limit))
    state = assert_whole(remote, old)
    assert state.submissions == 2  # one job follows, although Grid Engine signals twice (measured)
    assert state.job_id != old  # a job that exits with 99 after its h_rt is not started again
    assert state.attempts[0].reason == "TIME_LIMIT at epoch 2, requeued 1 of 100"
    assert "Starting from epoch: 3" in remote.stdout()


def test_the_time_limit_without_a_safe_point(remote: SgeProject) -> None:
    old = remote.start(OPTIONS.format("'-l h_rt=0:0:8'"))
    remote.await_job(old, "ended")  # killed once its notice is over
    assert remote.cluster.records(old)[-1]["failed"].startswith("37")
    remote.let_pass(10)
    state = assert_whole(remote, old)
    assert state.submissions == 2
    assert state.attempts[0].reason == "TIME_LIMIT at epoch 2, requeued 1 of 100"


def test_qmod_rj(remote: SgeProject) -> None:
    job = remote.start()
    remote.command("qmod", "-rj", job)
    remote.await_status("RUNNING", attempts=2)  # while the first one still has its notice
    remote.cluster.wait_for(lambda: _pythons(remote), 60, until=lambda pids: len(pids) == 1)
    remote.let_pass(10)
    assert assert_whole(remote, job).job_id == job


def test_mlxjobs_requeue_of_a_running_run(remote: SgeProject) -> None:
    old = remote.start()
    assert f"job {old} is stopped" in remote.mlxjobs("requeue", "1").stdout
    remote.await_job(old, "ended")
    remote.let_pass(10)
    assert assert_whole(remote, old).job_id != old


def test_qdel_by_the_user_stays_down(remote: SgeProject) -> None:
    old = remote.start()
    remote.command("qdel", old)
    remote.await_status("CANCELLED")
    remote.await_job(old, "ended")
    assert len(remote.state().attempts) == 1
    remote.let_pass(10)
    remote.mlxjobs("requeue", "1")  # unless the user says so
    assert_whole(remote, old)


def test_mlxjobs_cancel_of_a_waiting_run(remote: SgeProject) -> None:
    remote.run(OPTIONS.format("'-h'"))
    remote.mlxjobs("cancel", "1")
    assert remote.cluster.job_states([remote.job()]) == {}
    assert remote.state().status is RunStatus.CANCELLED


def test_a_waiting_job_that_was_deleted_can_be_cancelled(remote: SgeProject) -> None:
    remote.run(OPTIONS.format("'-h'"))
    remote.command("qdel", remote.job())
    # Grid Engine keeps no account of a job that never ran
    assert "does not know job" in remote.mlxjobs("ls").stderr
    remote.mlxjobs("cancel", "1")
    assert remote.state().status is RunStatus.CANCELLED


def _pythons(project: SgeProject) -> list[int]:
    command = ["pgrep", "-f", f"^{project.python} .*{project.folder}"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, check=False).stdout.split()]


def test_kill_9_of_python(remote: SgeProject) -> None:
    old = remote.start()
    for pid in _pythons(remote):
        os.kill(pid, 9)
    remote.await_job(old, "ended")
    shown = remote.mlxjobs("ls").stdout
    assert "FAILED" in shown
    assert "killed by SIGKILL at epoch 2" in shown
    remote.let_pass(10)
    remote.mlxjobs("requeue", "1")
    assert_whole(remote, old)


def test_the_node_is_powered_off(remote: SgeProject) -> None:
    job = remote.start()
    host = remote.state().attempts[0].host
    remote.await_job(job, "r")  # not `t`: the node has told so
    remote.cluster.node_down(host)
    remote.let_pass(10)
    state = assert_whole(remote, job)
    assert state.job_id == job
    assert state.attempts[1].host != host
    assert state.attempts[0].reason == "vanished: killed, or its node failed"


def test_the_qmaster_is_down(remote: SgeProject) -> None:
    remote.cluster.stop_server()
    done = remote.run(code=3)
    assert "unable to send message to qmaster" in done.stderr
    assert "Traceback" not in done.stderr
    assert remote.state().status is RunStatus.FAILED
    remote.cluster.start_server()
    remote.run("+mlxpy.logger.forced_log_id=1")
    assert_whole(remote)


def test_grid_engines_own_words_are_shown_when_it_refuses(remote: SgeProject) -> None:
    done = remote.run(OPTIONS.format("'-q nosuch.q'"), code=3)
    assert 'job requests unknown queue "nosuch.q"' in done.stderr
    assert remote.state().status is RunStatus.FAILED


@pytest.mark.parametrize("name", ["it's $HOME #1 `id` $TASK_ID %j:é,", "a\nb\\c"])
def test_a_folder_of_any_name(sge: SgeCluster, cluster_python: Path, sge_dir: Path, name: str) -> None:
    project = SgeProject(sge, cluster_python, sge_dir, name)
    (project.folder / "main.py").write_text(WAITS_FOR_WARNING)
    job = project.start()
    project.mlxjobs("preempt", "1")
    assert assert_whole(project, job).job_id == job


# -- arrays -----------------------------------------------------------------------------------


def array_of(project: SgeProject, tasks: int) -> Path:
    """Make the script of an array, each task of which writes its number, then exits with 99 once or waits."""
    folder = project.folder / "array"
    lines = [
        "#!/bin/bash", 'echo "task $SGE_TASK_ID of $JOB_ID, start $RESTARTED"',
        "[ $SGE_TASK_ID != 1 ] || [ $RESTARTED = 1 ] || exit 99", "[ $SGE_TASK_ID != 2 ] || exec sleep 600",
    ]  # fmt: skip
    for number in range(1, tasks + 1):
        run = project.logs / str(number + 10)
        run.mkdir(parents=True)
        (run / "script.sh").write_text("\n".join([*lines, ""]))
        folder.mkdir(exist_ok=True)
        (folder / str(number)).symlink_to(run)
    out = folder / TASK
    job = Job("sweep", folder / "script.sh", out / "log.stdout", out / "log.stderr", folder, [], tasks=tasks)
    job.script.write_text(render_script(job, scheduler))
    subprocess.run(["chown", "-hR", USER, str(project.folder)], check=True)
    return job.script


def test_an_array_is_submitted_at_once_and_each_task_is_a_job(remote: SgeProject) -> None:
    script = array_of(remote, 3)
    ids = scheduler.parse_array(remote.command(*scheduler.submit_command(script)).stdout, 3)
    out = [remote.logs / str(number) / "log.stdout" for number in (11, 12, 13)]
    array, one, two, three = ids[0].partition(".")[0], *ids
    remote.await_job(three, "ended")
    await_value(lambda: out[1].exists() and out[1].read_text(), "the second task")
    remote.await_job(one, "ended")  # after 99 it was started again, alone and as the same task
    assert out[0].read_text().splitlines() == [f"task 1 of {array}, start {number}" for number in (0, 1)]
    assert out[2].read_text() == f"task 3 of {array}, start 0\n"

    found = remote.command(*scheduler.find_command()).stdout
    assert scheduler.parse_found_array(found, script, 3) == ids
    asked = remote.command(*scheduler.status_command(ids)).stdout
    assert {job: status.state for job, status in scheduler.parse_status(asked).items()} == {
        two: JobState.RUNNING
    }
    command = scheduler.history_command([one, three])
    assert command is not None
    past = scheduler.parse_history(remote.command(*command).stdout)
    assert {job: past[job].state for job in (one, three)} == dict.fromkeys((one, three), JobState.COMPLETED)
    remote.command(*scheduler.cancel_command([two, three]))  # though the third has ended
    remote.await_job(two, "ended")


def test_the_largest_array_is_read(remote: SgeProject) -> None:
    assert scheduler.parse_max_array(remote.command(*scheduler.max_array_command()).stdout) == 75000


def test_a_task_of_an_array_preempts_alone(remote: SgeProject) -> None:
    remote.let_pass(2)
    remote.run(OPTIONS.format("'-h'"))
    remote.run(OPTIONS.format("'-h'"))
    remote.mlxjobs("cancel", "1", "2")
    folder = remote.folder / "array"
    folder.mkdir()
    for number in (1, 2):
        (folder / str(number)).symlink_to(remote.at(number).path)
    out = folder / TASK
    job = Job("sweep", folder / "script.sh", out / "log.stdout", out / "log.stderr", folder, [], tasks=2)
    job.script.write_text(render_script(job, scheduler))
    ids = scheduler.parse_array(remote.command(*scheduler.submit_command(job.script)).stdout, 2)
    for number in (1, 2):
        remote.await_epoch(2, number)
    command = scheduler.preempt_command(ids[1])
    remote.command(*command)
    remote.await_warning()
    remote.let_pass(10)
    for number, attempts in ((1, 1), (2, 2)):
        state = remote.await_status("COMPLETE", log_id=number, attempts=attempts)
        assert [attempt.job_id for attempt in state.attempts] == [ids[number - 1]] * attempts
        assert remote.epochs(number) == [0, 1, 2, 3, 4]
