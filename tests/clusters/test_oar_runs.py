"""Runs on a real OAR, as an ordinary user: whatever happens to a job, its run goes on, under new job ids."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.clusters.machine import USER
from tests.clusters.oar import OarCluster
from tests.clusters.on_oar import OarProject, assert_whole
from tests.project import MAIN, await_value

pytestmark = [pytest.mark.oar, pytest.mark.timeout(240)]

WHOLE = "mlxpy.scheduler.option_cmd=['-t besteffort','-l nodes=2,walltime=0:10:0'{more}]"


@pytest.fixture
def remote(oar: OarCluster, cluster_python: Path, oar_dir: Path) -> Iterator[OarProject]:
    project = OarProject(oar, cluster_python, oar_dir)
    yield project
    project.let_pass(10**6)


def test_a_sweep_runs_and_is_asked_about_in_one_call(remote: OarProject) -> None:
    done = remote.run("optimizer.lr=0.1,0.01", env={"OAR_JOB_ID": "9", "OAR_ARRAY_ID": "9"})
    assert "2 submitted to OARScheduler" in done.stdout
    assert_whole(remote)
    remote.await_status("COMPLETE", log_id=2)
    assert remote.losses(2)[0] == pytest.approx(99)
    assert remote.stdout().splitlines()[0] == f"as {USER} in job {remote.job()}"
    assert int(remote.job(2)) == int(remote.job(1)) + 1
    assert "COMPLETE" in remote.mlxjobs("ls").stdout


def test_a_normal_job_kills_an_idempotent_besteffort_one(remote: OarProject) -> None:
    old = remote.start(WHOLE.format(more=",'--checkpoint 0'"))
    remote.oarsub("true")
    remote.await_job(old, "Error")
    remote.let_pass(10)
    state = assert_whole(remote, old)
    assert state.attempts[0].reason == "BESTEFFORT_KILL at epoch 2, started again by the scheduler"
    assert state.attempts[0].status is RunStatus.PREEMPTED
    assert state.interruptions == 1
    assert remote.cluster.job(remote.job())["resubmit_job_id"] == int(old)


def test_each_job_of_an_array_is_followed_under_its_new_id(remote: OarProject) -> None:
    remote.let_pass(2)
    remote.run(
        "mlxpy.scheduler.option_cmd=['-t besteffort','-l nodes=1,walltime=0:10:0','--checkpoint 0']",
        "optimizer.lr=0.1,0.1",
    )
    old = [remote.job(log_id) for log_id in (1, 2)]
    assert [remote.cluster.job(job)["array_id"] for job in old] == [int(old[0])] * 2
    for log_id in (1, 2):
        remote.await_epoch(2, log_id)
    remote.oarsub("-l", "nodes=2", "true")
    for job in old:
        remote.await_job(job, "Error")
    remote.let_pass(10)
    for log_id, job in ((1, old[0]), (2, old[1])):
        state = assert_whole(remote, job, log_id=log_id)
        assert state.attempts[0].reason == "BESTEFFORT_KILL at epoch 2, started again by the scheduler"
        assert remote.cluster.job(remote.job(log_id))["resubmit_job_id"] == int(job)
        assert remote.stdout(log_id).count("Starting from epoch") == 2


def test_what_oar_makes_of_a_killed_job_is_followed_while_it_waits(remote: OarProject) -> None:
    old = remote.start(WHOLE.format(more=",'--checkpoint 0'"))
    above = remote.oarsub("-l", "nodes=2", "sleep 600")
    remote.await_job(above, "Running")
    shown = remote.mlxjobs("ls").stdout
    assert "PREEMPTED" in shown
    new = remote.job()
    assert new != old
    remote.mlxjobs("cancel", "1")
    remote.await_job(new, "Error")
    remote.command("oardel", above)
    assert remote.state().status is RunStatus.CANCELLED
    assert len(remote.state().attempts) == 1


def test_a_normal_job_kills_a_besteffort_one_that_is_not_idempotent(remote: OarProject) -> None:
    remote.run("mlxpy.scheduler.option_cmd=['--hold']")
    remote.mlxjobs("cancel", "1")
    remote.let_pass(2)
    # by hand, and without -S, so that no directive is read: OAR knows nothing of coming back
    old = remote.oarsub("-t", "besteffort", "-l", "nodes=2", str(remote.at().script))
    remote.await_epoch(2)
    remote.oarsub("true")
    remote.await_job(old, "Error")
    assert (
        "PREEMPTED at epoch 2 (Error: BESTEFFORT_KILL); to go on: mlxjobs requeue 1"
        in remote.mlxjobs("ls").stdout
    )
    assert remote.state().status is RunStatus.CANCELLED
    remote.let_pass(10)
    done = remote.mlxjobs("requeue", "1")
    assert "run 1 is submitted again (job " in done.stdout
    remote.command("oarresume", remote.job())  # its script says --hold
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote, old)


def test_a_besteffort_job_that_is_warned_leaves_at_its_safe_point(remote: OarProject) -> None:
    old = remote.start(WHOLE.format(more=""))
    above = remote.oarsub("true")
    await_value(lambda: "CHECKPOINTED" in remote.stderr(), "OAR's warning")
    remote.let_pass(10)
    remote.await_job(above, "Terminated")
    state = assert_whole(remote, old)
    assert state.attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"
    assert "Starting from epoch: 3" in remote.stdout()


# epoch 2 of the first attempt lasts until the warning comes
WAITS_FOR_WARNING = MAIN.replace(
    "wait_for_leave(epoch, logger)\n        logger",
    "while epoch == 2 and start_epoch == 0 and not logger.preempted:\n"
    "            time.sleep(0.01)\n"
    "        logger",
)
assert WAITS_FOR_WARNING != MAIN


def test_oardel_with_the_checkpoint_signal(remote: OarProject) -> None:
    (remote.folder / "main.py").write_text(WAITS_FOR_WARNING)
    old = remote.start()
    remote.mlxjobs("preempt", "1")
    state = assert_whole(remote, old)
    assert state.attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"
    assert remote.cluster.job(old)["exit_code"] == 75 << 8
    assert remote.cluster.job(remote.job())["resubmit_job_id"] == 0  # it submitted itself again


def test_exit_99_after_a_minute_at_the_time_limit_and_where_nothing_can_be_submitted(
    remote: OarProject,
) -> None:
    (remote.folder / "main.py").write_text(WAITS_FOR_WARNING)
    remote.run("mlxpy.scheduler.option_cmd=['-l nodes=1,walltime=0:1:45','--checkpoint 25']")
    # a compute node without OAR's commands: warned at once, it has to wait for OAR's minute
    remote.run(
        "mlxpy.scheduler.env_cmd=['export PATH=/bin:/nowhere; hash -d oarsub 2>/dev/null','PATH=/nowhere']"
    )
    remote.await_epoch(2, 2)
    first, second = remote.job(1), remote.job(2)
    remote.command("oardel", "-c", second)
    await_value(lambda: "waits for" in remote.stderr(2), "the wait for OAR's minute")
    assert "this compute node cannot submit, as it has no oarsub" in remote.stderr(2)
    assert remote.cluster.job_states([second]) == {second: "Running"}
    for log_id, old in ((2, second), (1, first)):
        remote.await_job(old, "Terminated")
        assert_whole(remote, old, log_id=log_id)
        assert remote.cluster.job(old)["exit_code"] == 99 << 8
        assert remote.cluster.job(remote.job(log_id))["resubmit_job_id"] == int(old)
        assert remote.state(log_id).attempts[0].status is RunStatus.PREEMPTED


def test_the_time_limit_without_a_safe_point(remote: OarProject) -> None:
    old = remote.start("mlxpy.scheduler.option_cmd=['-l nodes=1,walltime=0:0:25','--checkpoint 20']")
    remote.await_job(old, "Terminated")  # by itself, before OAR kills it
    remote.let_pass(10)
    state = assert_whole(remote, old)
    assert state.attempts[0].reason == "TIME_LIMIT at epoch 2, requeued 1 of 100"


def test_the_time_limit_without_a_warning(remote: OarProject) -> None:
    old = remote.start("mlxpy.scheduler.option_cmd=['-l nodes=1,walltime=0:0:8','--checkpoint 0']")
    remote.await_job(old, "Error")
    assert (
        "TIME_LIMIT at epoch 2 (Error: WALLTIME); to go on: mlxjobs requeue 1" in remote.mlxjobs("ls").stdout
    )
    remote.let_pass(10)
    remote.mlxjobs("requeue", "1")
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote, old)


def test_oardel_by_the_user_stays_down(remote: OarProject) -> None:
    old = remote.start()
    remote.command("oardel", old)
    remote.await_job(old, "Error")
    assert "oardel" in remote.mlxjobs("ls").stdout
    assert remote.state().status is RunStatus.CANCELLED
    assert len(remote.state().attempts) == 1
    remote.let_pass(10)
    remote.mlxjobs("requeue", "1")  # unless the user says so
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote, old)


def test_kill_9_of_python(remote: OarProject) -> None:
    old = remote.start()
    found = subprocess.run(
        ["pgrep", "-f", f"{remote.python} {remote.folder}"], capture_output=True, text=True, check=True
    )
    for pid in found.stdout.split():
        os.kill(int(pid), 9)
    remote.await_job(old, "Terminated", "Error")
    assert "FAILED" in remote.mlxjobs("ls").stdout
    remote.let_pass(10)
    remote.mlxjobs("requeue", "1")
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote, old)


def test_the_node_is_powered_off(remote: OarProject) -> None:
    old = remote.start(
        "mlxpy.scheduler.option_cmd=['-l nodes=1,walltime=0:10:0','-p host in (\\'node1\\',\\'node2\\')']"
    )
    remote.cluster.node_down(remote.state().attempts[0].host)
    remote.let_pass(10)
    # OAR does not notice: it takes the job for running until its time is over
    assert "RUNNING" in remote.mlxjobs("ls").stdout
    done = remote.mlxjobs("requeue", "1")
    assert f"job {old} is stopped" in done.stdout
    remote.await_status("COMPLETE", attempts=2)
    state = assert_whole(remote, old)
    assert state.attempts[0].host != state.attempts[1].host


def test_a_job_that_meets_a_dead_node_waits_for_it_under_a_new_id(remote: OarProject) -> None:
    cluster = remote.cluster

    def seen(job: str) -> tuple[str | None, str]:
        return cluster.job_states([job]).get(job), cluster.node_states()["node2"]

    ends = {"Error", ("Waiting", "Suspected")}
    for log_id in range(1, 6):
        remote.run("mlxpy.scheduler.option_cmd=['--hold','-p host=\\'node2\\'']")
        old = remote.job(log_id)
        # OAR looks at its nodes every few seconds, and where it has seen this one first it launches nothing:
        # so the node dies anew just after such a look
        cluster.node_down("node2")
        cluster.wait_for(cluster.node_states, 30, until=lambda now: now["node2"] == "Suspected")
        cluster.node_up("node2")
        cluster.node_down("node2")
        remote.command("oarresume", old)
        said = cluster.wait_for(partial(seen, old), 90, until=lambda now: now[0] in ends or now in ends)
        if said[0] == "Error":
            break
        cluster.node_up("node2")
    assert "SUBMITTED" in remote.mlxjobs("ls").stdout
    assert remote.job(log_id) != old
    cluster.node_up("node2")
    state = assert_whole(remote, log_id=log_id)
    assert state.attempts[0].host == "node2"


def test_oardel_of_a_waiting_run_is_seen(remote: OarProject) -> None:
    remote.run("mlxpy.scheduler.option_cmd=['--hold']")
    remote.command("oardel", remote.job())
    remote.await_job(remote.job(), "Error")
    assert "CANCELLED" in remote.mlxjobs("ls").stdout
    assert remote.state().status is RunStatus.CANCELLED


def test_a_submission_that_oar_calls_killed_is_found(remote: OarProject) -> None:
    remote.cluster.stop_server()
    done = remote.run()
    assert "run 1: job " in done.stdout
    remote.cluster.start_server()
    assert_whole(remote)


def test_oars_own_words_are_shown_when_it_refuses(remote: OarProject) -> None:
    done = remote.run("mlxpy.scheduler.option_cmd=['-l nodes=9']", code=3)
    assert "There are not enough resources for your request" in done.stderr
    assert remote.state().status is RunStatus.FAILED


def test_a_folder_of_any_name(oar: OarCluster, cluster_python: Path, oar_dir: Path) -> None:
    project = OarProject(oar, cluster_python, oar_dir, "it's $HOME #1 `id`%jobid% é\n")
    (project.folder / "main.py").write_text(WAITS_FOR_WARNING)
    old = project.start()
    project.mlxjobs("preempt", "1")
    assert_whole(project, old)


def test_a_command_that_hangs_and_cannot_be_killed_is_left_alone(
    remote: OarProject, cluster_python: Path
) -> None:
    code = (
        "from mlxjobs.system import shell\n"
        "try: shell.run(['oarsub', 'true'], timeout_s=1)\n"
        "except shell.CommandTimeout as error: print(error)\n"
    )
    remote.cluster.root("pkill", "-STOP", "-u", "postgres")
    try:
        done = remote.command(str(cluster_python), "-c", code)
    finally:
        remote.cluster.root("pkill", "-CONT", "-u", "postgres")
    assert "'oarsub' gave no answer in 1 s and cannot be stopped" in done.stdout
