"""Sweeps on a real Slurm, as arrays: each run keeps its own directory, output, state and way back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.clusters.fixtures import small_slurm
from tests.clusters.machine import USER
from tests.clusters.on_slurm import ClusterProject, assert_whole, running_commands
from tests.clusters.slurm import SlurmCluster
from tests.project import await_value

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


@pytest.fixture
def remote(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> Iterator[ClusterProject]:
    project = ClusterProject(slurm, cluster_python, user_dir)
    yield project
    project.let_pass(10**6)


@pytest.mark.short
def test_each_task_of_an_array_is_a_run_of_its_own(remote: ClusterProject) -> None:
    remote.let_pass(2)
    done = remote.run("optimizer.lr=0.1,0.1,0.1,0.1")
    array = remote.job(1).partition("_")[0]
    assert [remote.job(log_id) for log_id in (1, 2, 3, 4)] == [f"{array}_{n}" for n in (1, 2, 3, 4)]
    assert f"run 4: job {array}_4  optimizer.lr=0.1" in done.stdout
    for log_id in (1, 2, 3, 4):
        remote.await_epoch(2, log_id)
    assert [row.split()[1] for row in remote.mlxjobs("ls").stdout.splitlines()[1:]] == ["RUNNING"] * 4
    # one is requeued by Slurm, one is cancelled; the last has the id of the whole array, and warns itself
    remote.scontrol("requeue", f"{array}_2")
    remote.mlxjobs("cancel", "3")
    remote.mlxjobs("preempt", "4")
    remote.await_warning()
    remote.let_pass(10)
    for log_id, attempts in ((1, 1), (2, 2), (4, 2)):
        remote.await_status("COMPLETE", log_id=log_id, attempts=attempts)
        assert_whole(remote, log_id)
        assert len(remote.state(log_id).attempts) == attempts
    assert remote.state(3).status is RunStatus.CANCELLED
    for log_id in (1, 2, 3, 4):
        assert remote.stdout(log_id).startswith("environment 1 2 clean\n")
        assert remote.job(log_id) == f"{array}_{log_id}"
    # what Slurm itself says of a run's end is in the run's own file, behind what was there before
    assert "DUE TO JOB REQUEUE" in remote.stderr(2)
    assert remote.stdout(2).count("Starting from epoch") == 2


def test_a_task_is_preempted_once_while_others_wait(remote: ClusterProject) -> None:
    remote.let_pass(2)
    remote.run("seed=range(14)")  # two more than there are places
    remote.await_epoch(2)
    assert "run 1 is asked to checkpoint" in remote.mlxjobs("preempt", "1").stdout
    remote.await_warning()
    remote.let_pass(10)
    for log_id in range(1, 15):
        remote.await_status("COMPLETE", log_id=log_id)
    assert len(remote.state(1).attempts) == 2


def test_an_array_waits_with_its_configuration_and_code(remote: ClusterProject) -> None:
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=down")
    remote.run("optimizer.lr=0.1,0.01")
    (remote.folder / "configs" / "config.yaml").write_text("num_epoch: 0\n")
    assert [row.split()[1] for row in remote.mlxjobs("ls").stdout.splitlines()[1:]] == ["SUBMITTED"] * 2
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=up")
    assert_whole(remote)
    remote.await_status("COMPLETE", log_id=2)
    assert remote.losses(2)[0] == pytest.approx(99)


def test_a_controller_that_hangs_takes_an_array_once(remote: ClusterProject) -> None:
    remote.cluster.pause_controller()
    try:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(remote.run, "optimizer.lr=0.1,0.1")
            await_value((remote.logs / ".arrays/1/script.sh").exists, "the script")
            await_value(lambda: "squeue" in running_commands(), "the question whether the jobs were taken")
            remote.cluster.continue_controller()
            done = pending.result()
    finally:
        remote.cluster.continue_controller()
    array = remote.job(1).partition("_")[0]
    assert f"run 2: job {array}_2" in done.stdout
    for log_id in (1, 2):
        assert_whole(remote, log_id)
    arrays = remote.command("squeue", "--noheader", "--me", "--states=all", "--format=%F %o").stdout
    script = str(remote.logs / ".arrays/1/script.sh")
    assert {line.split()[0] for line in arrays.splitlines() if line.endswith(script)} == {array}


def test_an_array_in_a_folder_of_any_name(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> None:
    remote = ClusterProject(slurm, cluster_python, user_dir, "it's $HOME #1 `id` %a %j é")
    remote.run("optimizer.lr=0.1,0.1")
    for log_id in (1, 2):
        assert_whole(remote, log_id)
        assert "Completed training" in remote.stdout(log_id)


@pytest.fixture
def limited() -> Iterator[SlurmCluster]:
    """A small Slurm whose user may have three jobs in the queue."""
    with small_slurm(nodes=1) as cluster:
        cluster.root("sacctmgr", "--immediate", "add", "account", "lab")
        cluster.root("sacctmgr", "--immediate", "add", "user", USER, "account=lab", "MaxSubmitJobs=3")
        cluster.set_conf(AccountingStorageEnforce="limits")
        cluster.stop_controller()
        cluster.start_controller()
        cluster.start(*cluster.nodes)
        yield cluster


def test_a_sweep_larger_than_the_users_share_runs_to_its_end(
    limited: SlurmCluster, cluster_python: Path, user_dir: Path
) -> None:
    remote = ClusterProject(limited, cluster_python, user_dir)
    remote.let_pass(0)
    done = remote.run("seed=range(9)", "num_epoch=1")
    assert "3 submitted to SLURMScheduler" in done.stdout
    assert "runs 4-9 wait, as the queue has no room" in done.stderr
    assert "WAITING" in remote.mlxjobs("ls").stdout
    # nobody submits any more but the runs themselves
    for log_id in range(1, 10):
        remote.let_pass(10)
        remote.await_status("COMPLETE", log_id=log_id)
        assert len(remote.state(log_id).attempts) == 1


EMPTY = "import mlxpy\n@mlxpy.launch(config_path='./configs')\ndef train(ctx): pass\ntrain()\n"


@pytest.mark.timeout(900)
def test_a_thousand_runs_are_one_submission_and_all_complete(remote: ClusterProject) -> None:
    (remote.folder / "main.py").write_text(EMPTY)
    done = remote.run("seed=range(1000)")
    assert "1000 submitted to SLURMScheduler" in done.stdout
    assert os.listdir(remote.logs / ".arrays") == ["1"]
    await_value(
        lambda: all((remote.logs / str(n) / "metadata/.history/0006.json").exists() for n in range(1, 1001)),
        "the ends of a thousand runs",
        800,
    )
    states = [remote.state(log_id) for log_id in range(1, 1001)]
    assert {state.status for state in states} == {RunStatus.COMPLETE}
    assert {len(state.attempts) for state in states} == {1}
    assert len({state.job_id for state in states}) == 1000


def test_jobs_whose_runs_are_gone_are_found(remote: ClusterProject) -> None:
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=down")
    remote.run("optimizer.lr=0.1,0.01")
    remote.run("optimizer.lr=0.5")
    remote.run("optimizer.lr=0.5")
    assert remote.mlxjobs("fsck").stdout == "nothing found\n"
    array, single = remote.job(2), remote.job(3)
    for log_id in (2, 3):
        shutil.rmtree(remote.logs / str(log_id))
    said = remote.mlxjobs("fsck", code=1).stdout
    assert f".arrays/1/2 is of job {array} of SLURMScheduler, whose run is gone: cancel it\n" in said
    assert f"run 3: 3/script.sh is of job {single} of SLURMScheduler, whose run is gone: cancel it\n" in said
    assert ".arrays/1/2 is the task of an array whose run is gone (--fix: remove the link)\n" in said
    assert said.endswith("3 found, 0 mended, 3 left\n")
    remote.command("scancel", array, single)
    assert remote.mlxjobs("fsck", "--fix").stdout.endswith("1 found, 1 mended, 0 left\n")
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=up")
    remote.await_status("COMPLETE", log_id=4)
