"""The main job on a real Slurm, as an ordinary user: whatever happens to a job, its run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.clusters.on_slurm import ClusterProject, assert_whole, let_it_leave, running_commands
from tests.clusters.slurm import SlurmCluster
from tests.project import MAIN, await_value

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


@pytest.fixture
def remote(slurm: SlurmCluster, cluster_python: Path, user_dir: Path) -> Iterator[ClusterProject]:
    project = ClusterProject(slurm, cluster_python, user_dir)
    yield project
    project.let_pass(10**6)


@pytest.mark.short
def test_a_sweep_is_submitted_frozen_and_runs_as_it_was_submitted(remote: ClusterProject) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "main.py", "configs/config.yaml"], ["commit", "-q", "-m", "x"]):
        remote.command(*git, *words)
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=down")
    done = remote.run("optimizer.lr=0.1,0.01", "+mlxpy.use_version_manager=true")
    assert "2 submitted to SLURMScheduler" in done.stdout
    assert [remote.state(log_id).status.value for log_id in (1, 2)] == ["SUBMITTED", "SUBMITTED"]
    # while they wait, everything that they were submitted with changes
    (remote.folder / "main.py").write_text("raise SystemExit('edited')\n")
    (remote.folder / "configs" / "config.yaml").write_text("num_epoch: 0\n")
    (remote.folder / "configs" / "mlxpy.yaml").write_text("nonsense: 1\n")
    remote.cluster.root("scontrol", "update", "partitionname=low", "state=up")
    assert_whole(remote)
    state = remote.await_status("COMPLETE", log_id=2)
    assert state.scheduler["name"] == "SLURMScheduler"
    assert remote.losses(2)[0] == pytest.approx(99)
    assert remote.stdout().splitlines()[0] == "environment 1 2 clean"
    assert ".workdir/project/" in remote.info()["work_dir"]


def test_the_working_tree_as_it_was_goes_on_after_a_requeue(remote: ClusterProject) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    lib, helper = remote.folder / "lib", remote.folder / "helper.py"
    for words in (["init", "-q"], ["add", "main.py", "configs/config.yaml"], ["commit", "-q", "-m", "x"]):
        remote.command(*git, *words)
    remote.command(*git, "clone", "-q", ".", "lib")
    remote.command(*git, "submodule", "--quiet", "add", "./lib", "lib")
    remote.command(*git, "commit", "-q", "-m", "a submodule")
    main = remote.folder / "main.py"
    main.write_text("import helper, lib.edited\nprint(helper.VALUE, lib.edited.VALUE)\n" + main.read_text())
    helper.write_text("VALUE = 'untracked'\n")
    (lib / "edited.py").write_text("VALUE = 'in a submodule'\n")
    remote.own()
    status = (*git, "status", "--porcelain", "--branch", "--untracked-files=no")
    before = remote.command(*status).stdout
    more = [f"+mlxpy.version_manager.{one}" for one in ("include=all", "strict=true")]
    job = remote.start("+mlxpy.use_version_manager=true", *more)
    assert remote.command(*status).stdout == before
    remote.command(*git, "checkout", "--quiet", "--force", "HEAD~1")
    remote.command(*git, "clean", "-ffdxq", "--exclude=logs", "--exclude=.workdir")
    assert not helper.exists()
    assert not lib.exists()
    remote.scontrol("requeue", job)
    let_it_leave(remote, job)
    assert_whole(remote)
    assert remote.stdout().count("untracked in a submodule\n") == 2


@pytest.mark.short
def test_a_job_of_a_higher_partition_preempts_it(remote: ClusterProject) -> None:
    job = remote.start("mlxpy.scheduler.option_cmd=['--partition=low','--exclusive']")
    node = remote.cluster.root("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    above = remote.command(
        "sbatch", "--parsable", "-p", "high", "--exclusive", f"--nodelist={node}", "--wrap=true"
    )
    remote.await_status("PREEMPTED")  # the signal came; no safe point was reached yet
    remote.let_pass(10)
    assert_whole(remote)
    assert remote.state().attempts[0].status is RunStatus.PREEMPTED
    assert remote.stdout().splitlines()[-2].strip() == "Starting from epoch: 3"
    assert above.stdout.strip().isdecimal()


def test_scontrol_requeue(remote: ClusterProject) -> None:
    job = remote.start()
    remote.scontrol("requeue", job)
    let_it_leave(remote, job)
    assert_whole(remote)
    assert remote.state().attempts[0].reason == "stopped and requeued by the scheduler at epoch 2"
    assert remote.state().attempts[1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"


@pytest.mark.parametrize("signal", ["USR2", "TERM"])
def test_a_warning_by_scancel_signal(remote: ClusterProject, signal: str) -> None:
    job = remote.start()
    remote.command("scancel", f"--signal={signal}", "--batch", job)
    let_it_leave(remote, job)
    assert_whole(remote)
    assert remote.state().attempts[0].reason == f"warned by SIG{signal} at epoch 2, requeued 1 of 100"


@pytest.mark.short
def test_the_time_limit(remote: ClusterProject) -> None:
    job = remote.start("mlxpy.scheduler.option_cmd=['--partition=low','--signal=B:USR1@1']")
    remote.cluster.root("scontrol", "update", f"jobid={job}", "EndTime=now+2")
    remote.await_status("PREEMPTED")  # no safe point is reached: it is requeued all the same
    remote.cluster.hurry(job)
    remote.let_pass(10)
    assert_whole(remote)
    assert remote.state().attempts[0].reason == "TIME_LIMIT at epoch 2, requeued 1 of 100"


# epoch 2 of the first attempt lasts until the warning comes
WAITS_FOR_WARNING = MAIN.replace(
    "wait_for_leave(epoch, logger)\n        logger",
    "while epoch == 2 and start_epoch == 0 and not logger.preempted:\n"
    "            time.sleep(0.01)\n"
    "        logger",
)


def test_the_warning_before_the_time_limit(remote: ClusterProject) -> None:
    (remote.folder / "main.py").write_text(WAITS_FOR_WARNING)
    # ours comes a minute before the limit, so at the next tick of Slurm's
    remote.run("mlxpy.scheduler.option_cmd=['--partition=low','--time=1']")
    remote.await_status("PREEMPTED")
    remote.cluster.hurry(remote.job())
    assert_whole(remote)
    assert remote.state().attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"
    assert "Starting from epoch: 3" in remote.stdout()


@pytest.mark.short
def test_kill_9_of_python_and_a_requeue(remote: ClusterProject) -> None:
    job = remote.start()
    # the process has another number on its node than here
    pids = subprocess.run(
        ["pgrep", "-f", str(remote.folder / "main.py")], capture_output=True, text=True, check=True
    )
    for pid in pids.stdout.split():
        os.kill(int(pid), 9)
    await_value(lambda: "FAILED" in remote.cluster.job_states([job]).get(job, ""), "the end of the job")
    assert "killed by SIGKILL at epoch 2" in remote.mlxjobs("ls").stdout
    assert remote.state().status is RunStatus.FAILED
    remote.let_pass(10)
    # Slurm forgets ended jobs after a while, so a run that has ended is always a new job
    assert "run 1 is submitted again (job " in remote.mlxjobs("requeue", "1").stdout
    remote.await_status("COMPLETE", attempts=2)
    assert remote.job() != job
    assert_whole(remote, jobs=[job, remote.job()])


def test_the_node_is_powered_off(remote: ClusterProject) -> None:
    job = remote.start()
    host = remote.state().attempts[0].host
    remote.cluster.crash(host)
    remote.let_pass(10)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert remote.state().attempts[0].reason == "vanished: killed, or its node failed"
    assert remote.state().attempts[1].job_id == job


def test_a_node_that_was_cut_off_from_the_network_comes_back(remote: ClusterProject) -> None:
    job = remote.start()
    first = remote.state().attempts[0]
    pids = subprocess.run(
        ["pgrep", "-f", str(remote.folder / "main.py")], capture_output=True, text=True, check=True
    )
    (old,) = map(int, pids.stdout.split())
    os.kill(old, signal.SIGSTOP)
    remote.cluster.stop_slurmd(first.host)  # its job goes on, Slurm gives it up and starts it elsewhere
    remote.let_pass(3)
    remote.await_status("RUNNING", attempts=2)
    remote.await_epoch(3)
    os.kill(old, signal.SIGCONT)
    given_up = "as attempt 2: this process, attempt 1, may not write to it any more, and ends"
    await_value(lambda: given_up in remote.stderr(), "the old process to give up")
    remote.let_pass(10)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert remote.state().attempts[1].job_id == job
    remote.cluster.start(first.host)


@pytest.mark.short
def test_scancel_by_the_user_stays_down(remote: ClusterProject) -> None:
    job = remote.start()
    remote.command("scancel", job)
    remote.await_status("CANCELLED")
    remote.let_pass(10)
    await_value(lambda: "CANCELLED" in remote.cluster.job_states([job]).get(job, ""), "the end of the job")
    assert len(remote.state().attempts) == 1
    assert remote.state().status is RunStatus.CANCELLED


def test_scancel_of_a_waiting_run_is_seen(remote: ClusterProject) -> None:
    remote.run("mlxpy.scheduler.option_cmd=['--partition=low','--begin=now+1hour']")
    remote.command("scancel", remote.job())
    assert "CANCELLED" in remote.mlxjobs("ls").stdout
    assert remote.state().status is RunStatus.CANCELLED


RANKS = MAIN.replace(
    "    for epoch in range(start_epoch",
    "    print(f'rank {ctx.info.rank} of {ctx.info.world_size}', flush=True)\n"
    "    for epoch in range(start_epoch",
)


def test_of_several_ranks_only_the_first_writes_and_requeues(remote: ClusterProject) -> None:
    (remote.folder / "main.py").write_text(RANKS)
    job = remote.start("mlxpy.scheduler.option_cmd=['--partition=low','--ntasks=2','--nodes=2','--mem=200']")
    other = remote.at().output_of(1, 1)
    await_value(lambda: other.exists() and "rank 1 of 2" in other.read_text(), "the second rank")
    assert "rank 1 of 2" not in remote.stdout()
    remote.command("scancel", "--signal=USR2", "--batch", job)  # the batch shell hands it to srun
    let_it_leave(remote, job)
    remote.await_status("COMPLETE", attempts=2)
    assert_whole(remote)
    assert len(remote.state().attempts) == 2
    assert remote.state().attempts[0].reason == "warned by SIGUSR2 at epoch 2, requeued 1 of 100"


def test_the_environment_of_a_submitting_job_does_not_leak(remote: ClusterProject) -> None:
    main = MAIN.replace(
        "    cfg = ctx.config\n",
        "    cfg = ctx.config\n    print('restarts', os.environ.get('SLURM_RESTART_COUNT'), flush=True)\n",
    )
    (remote.folder / "main.py").write_text(main)
    remote.run(env={"SLURM_RESTART_COUNT": "7", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"})
    assert_whole(remote)
    assert "restarts None" in remote.stdout()


def test_the_controller_is_down(remote: ClusterProject) -> None:
    remote.cluster.stop_controller()
    done = remote.run(code=3)
    assert "Unable to contact slurm controller" in done.stderr
    assert "Traceback" not in done.stderr
    assert remote.state().status is RunStatus.FAILED
    remote.cluster.start_controller()
    remote.run("+mlxpy.logger.forced_log_id=1")
    assert_whole(remote)


def test_a_controller_that_hangs_takes_the_job_once(remote: ClusterProject) -> None:
    remote.cluster.pause_controller()
    try:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(remote.run)
            await_value(lambda: (remote.at().script).exists(), "the script")
            # sbatch gives up after Slurm's MessageTimeout; then the controller goes on
            await_value(lambda: "squeue" in running_commands(), "the question whether the job was taken")
            remote.cluster.continue_controller()
            done = pending.result()
    finally:
        remote.cluster.continue_controller()
    assert "run 1: job" in done.stdout
    assert_whole(remote)
    jobs = remote.command("squeue", "--noheader", "--me", "--states=all", "--format=%o").stdout.splitlines()
    assert jobs.count(str(remote.at().script)) == 1


def test_slurms_own_words_are_shown_when_it_refuses(remote: ClusterProject) -> None:
    done = remote.run("mlxpy.scheduler.option_cmd=['--partition=nosuch']", code=3)
    assert "invalid partition specified: nosuch" in done.stderr
    assert remote.state().status is RunStatus.FAILED
    assert "invalid partition" in str(remote.state().reason)


@pytest.mark.parametrize("name", ["it's $HOME #1 100%j é", "a\nb\\c"])
def test_a_folder_of_any_name(slurm: SlurmCluster, cluster_python: Path, user_dir: Path, name: str) -> None:
    project = ClusterProject(slurm, cluster_python, user_dir, name)
    job = project.start()
    project.scontrol("requeue", job)
    let_it_leave(project, job)
    assert_whole(project)
    assert "Starting from epoch: 3" in project.stdout()  # appended to, after the requeue
    assert project.stdout().count("environment 1 2 clean") == 2
