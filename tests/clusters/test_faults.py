"""Schedulers' daemons stop, hang or die at the worst moments: runs end whole, or say what became of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.clusters.fixtures import small_slurm
from tests.clusters.machine import children
from tests.clusters.on_slurm import ClusterProject, assert_whole, running_commands
from tests.clusters.project import warn
from tests.clusters.slurm import SlurmCluster
from tests.project import await_value

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


@pytest.fixture
def remote(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> Iterator[ClusterProject]:
    project = ClusterProject(slurm, cluster_python, user_dir)
    yield project
    project.let_pass(10**6)


def kill_controller(cluster: SlurmCluster, job: str | None = None) -> None:
    """End slurmctld at once, when it has saved what it knows of a job: it does so some seconds later."""
    if job is not None:
        saved, now = cluster.base / "state" / "job_state", time.time()
        cluster.root("scontrol", "update", f"jobid={job}", "comment=saved")
        await_value(
            lambda: saved.exists() and saved.stat().st_mtime > now, "the controller to save its state"
        )
    pid = cluster.process("slurmctld")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await_value(lambda: cluster.process("slurmctld") is None, "the end of the controller")


def jobs_of(remote: ClusterProject) -> list[str]:
    """Ids of a project's jobs: a controller that was killed brings back ended jobs of others, too."""
    lines = remote.command("squeue", "--noheader", "--me", "--format=%i %o").stdout.splitlines()
    return [line.split()[0] for line in lines if str(remote.folder) in line]


# --- during submission


def test_the_controller_is_killed_during_a_submission(remote: ClusterProject) -> None:
    remote.cluster.pause_controller()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            remote.cluster.run, [remote.python, "main.py"], cwd=remote.folder, env=remote.env, timeout=200
        )
        await_value(lambda: "sbatch" in running_commands(), "the submission")
        kill_controller(remote.cluster)
        remote.cluster.start_controller()
        done = pending.result()
    assert "Traceback" not in done.stderr
    if done.returncode != 0:  # the controller had not taken it, or nobody knows
        assert done.returncode == 3
        assert "submit again: mlxjobs requeue 1" in done.stderr
        if "nobody knows whether the job was taken" not in done.stderr:
            assert remote.state().status is RunStatus.FAILED
            assert not jobs_of(remote), done.stderr
        if not jobs_of(remote):
            remote.mlxjobs("requeue", "1")
    assert_whole(remote)


# --- while the job runs, and wants to come back


def test_a_warned_job_goes_on_until_the_controller_is_back_to_requeue_it(remote: ClusterProject) -> None:
    job = remote.start()
    remote.cluster.stop_controller()
    warn(remote)
    remote.let_pass(3)
    remote.await_epoch(3)  # it has passed a safe point, where nobody could be asked
    assert "the job could not be requeued, so it goes on" in remote.stderr()
    assert remote.state().status is RunStatus.RUNNING
    assert "unknown since" in remote.mlxjobs("ls").stderr
    remote.cluster.start_controller()
    remote.let_pass(4)
    remote.await_status("PREEMPTED", "STARTING", "RUNNING", "COMPLETE")
    await_value(lambda: remote.state().attempts[0].status is not None, "the end of the first attempt")
    remote.cluster.hurry(job)
    remote.let_pass(10)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert remote.state().attempts[0].reason == "warned by SIGUSR2 at epoch 3, requeued 1 of 100"


def test_a_job_ends_while_the_controller_is_down(remote: ClusterProject) -> None:
    kill_controller(remote.cluster, remote.start())
    remote.let_pass(10)
    remote.await_status("COMPLETE")
    assert "COMPLETE" in remote.mlxjobs("ls").stdout
    remote.cluster.start_controller()
    assert_whole(remote)
    assert len(remote.state().attempts) == 1


def test_a_warned_task_that_ends_while_the_controller_is_down_waits_for_it(remote: ClusterProject) -> None:
    job = remote.start("num_epoch=3")
    remote.cluster.stop_controller()
    warn(remote)
    remote.let_pass(10)  # whether its work was done, or it ended because of the warning, nobody can tell
    await_value(lambda: remote.stderr().count("so it goes on") > 1, "the end of the task")
    assert remote.state().status is RunStatus.RUNNING
    remote.cluster.start_controller()
    await_value(lambda: remote.state().attempts[0].status is not None, "the end of the first attempt")
    remote.cluster.hurry(job)
    state = remote.await_status("COMPLETE", attempts=2)
    assert remote.epochs() == [0, 1, 2]
    assert state.attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"


def test_a_controller_that_hangs_when_a_job_wants_to_be_requeued_does_it_when_it_goes_on(
    remote: ClusterProject,
) -> None:
    job = remote.start()
    remote.cluster.pause_controller()
    warn(remote)
    remote.let_pass(3)
    await_value(lambda: "scontrol" in running_commands(), "the job to ask for its requeue", 90)
    remote.cluster.continue_controller()
    await_value(lambda: remote.state().attempts[0].status is not None, "the end of the first attempt")
    remote.let_pass(10)
    with suppress(TimeoutError):  # it may have started already
        remote.cluster.hurry(job)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert remote.state().attempts[0].status is RunStatus.PREEMPTED


def test_a_user_requeues_a_run_while_the_controller_is_down(remote: ClusterProject) -> None:
    job = remote.start()
    remote.cluster.stop_controller()
    refused = remote.mlxjobs("requeue", "1", code=3)
    assert "Traceback" not in refused.stderr
    assert "scontrol requeue" in refused.stderr
    assert remote.state().status is RunStatus.RUNNING  # it is, and nothing has happened to it
    remote.cluster.start_controller()
    remote.mlxjobs("requeue", "1")
    remote.await_warning()
    remote.let_pass(3)
    await_value(lambda: remote.state().attempts[0].status is not None, "the end of the first attempt")
    remote.cluster.hurry(job)
    remote.let_pass(10)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)


def test_a_node_is_lost_while_the_controller_is_down(remote: ClusterProject) -> None:
    job = remote.start()
    host = remote.state().attempts[0].host
    kill_controller(remote.cluster, job)
    remote.cluster.crash(host)
    assert "unknown since" in remote.mlxjobs("ls").stderr  # nobody can tell
    remote.cluster.start_controller()
    remote.let_pass(10)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert remote.state().attempts[1].job_id == job


# --- other daemons


def test_slurmd_is_killed_and_comes_back(remote: ClusterProject) -> None:
    job = remote.start()
    host = remote.state().attempts[0].host
    init = remote.cluster._init(host)
    assert init is not None
    for pid in children(init, "slurmd"):
        os.kill(pid, signal.SIGKILL)
    remote.let_pass(4)
    remote.await_epoch(4)
    remote.cluster.start(host)
    remote.let_pass(10)
    assert_whole(remote, jobs=[job])


def test_accounting_is_gone(cluster_python: Path, user_dir: Path) -> None:
    with small_slurm(nodes=2) as cluster:
        for name in ("slurmdbd", "mariadbd"):
            pid = cluster.process(name)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        project = ClusterProject(cluster, cluster_python, user_dir)
        job = project.start()
        host = project.state().attempts[0].host
        cluster.crash(host)
        project.let_pass(10)
        project.await_status("COMPLETE", attempts=2)
        assert_whole(project, jobs=[job, job])
        # what only accounting knows is not known, and nothing is invented
        assert project.state().attempts[0].reason == "vanished: killed, or its node failed"
        assert "COMPLETE" in project.mlxjobs("ls").stdout
