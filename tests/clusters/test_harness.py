"""The harness itself: what the other tests on a real cluster rely on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.machine import USER, ClusterError
from tests.clusters.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]  # the first one may install Slurm

CHECKOUT = Path(__file__).resolve().parents[2]

# `exec`: only the batch step's own process gets Slurm's signals
LONG_JOB = """#!/bin/bash
#SBATCH --output=%j.out --open-mode=append --requeue
echo "run ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME"
[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || exec sleep 600
"""


def submit(slurm: SlurmCluster, folder: Path, *options: str, script: str = LONG_JOB) -> str:
    (folder / "job.sh").write_text(script)
    done = slurm.run(["sbatch", "--parsable", *options, "job.sh"], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_state(slurm: SlurmCluster, job: str, state: str) -> None:
    slurm.wait_for(lambda: slurm.job_states([job]), 40, until=lambda states: states.get(job) == state)


def first_run(slurm: SlurmCluster, output: Path) -> str:
    """Return the node of a job's first run, once it has begun."""
    text = slurm.wait_for(lambda: output.read_text() if output.exists() else "", 20)
    return text.split()[-1]


def test_a_job_of_an_ordinary_user_runs(slurm: SlurmCluster, user_dir: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --output=%j.out --gres=gpu:1\nid -un; hostname; srun hostname\n"
    job = submit(slurm, user_dir, "--wait", script=script)
    assert slurm.job_states([job, "999999"]) == {job: "COMPLETED"}
    assert (user_dir / f"{job}.out").read_text().split() == [USER, "m1", "m1"]
    assert (user_dir / f"{job}.out").owner() == USER


def test_a_job_keeps_the_cluster_without_the_users_environment(slurm: SlurmCluster, user_dir: Path) -> None:
    script = "#!/bin/bash\n#SBATCH --output=%j.out --export=NONE\nsqueue --noheader --format=%i\n"
    job = submit(slurm, user_dir, "--wait", script=script)
    assert (user_dir / f"{job}.out").read_text().split() == [job]


def test_a_preempted_job_comes_back(slurm: SlurmCluster, user_dir: Path) -> None:
    slurm.set_conf(low={"GraceTime": 0})
    low = submit(slurm, user_dir, "--partition=low", "--nodes=3", "--exclusive")
    first_run(slurm, user_dir / f"{low}.out")
    high = submit(slurm, user_dir, "--partition=high", script="#!/bin/bash\n")
    wait_for_state(slurm, high, "COMPLETED")
    slurm.hurry(low)
    wait_for_state(slurm, low, "COMPLETED")
    output = (user_dir / f"{low}.out").read_text()
    assert "DUE TO PREEMPTION" in output
    assert "run 1 on m1" in output


def test_a_crashed_node_loses_its_job_to_another(slurm: SlurmCluster, user_dir: Path) -> None:
    job = submit(slurm, user_dir)
    node = first_run(slurm, user_dir / f"{job}.out")
    slurm.crash(node)
    slurm.hurry(job)
    wait_for_state(slurm, job, "COMPLETED")
    runs = (user_dir / f"{job}.out").read_text().split("\n")
    assert runs[0] == f"run 0 on {node}"
    assert runs[1].startswith("run 1 on ")
    assert runs[1] != f"run 1 on {node}"


def test_a_job_outlives_its_controller(slurm: SlurmCluster, user_dir: Path) -> None:
    job = submit(slurm, user_dir)
    first_run(slurm, user_dir / f"{job}.out")
    slurm.stop_controller()
    assert slurm.run(["squeue"]).returncode == 1
    slurm.start_controller()
    assert slurm.job_states([job]) == {job: "RUNNING"}


def test_a_hung_controller_does_what_it_was_asked(slurm: SlurmCluster, user_dir: Path) -> None:
    slurm.pause_controller()
    done = slurm.run(["sbatch", "--job-name=late", "--wrap=true", "--output=late.out"], cwd=user_dir)
    slurm.continue_controller()
    assert done.returncode == 1
    assert "timed out" in done.stderr
    slurm.wait_for((user_dir / "late.out").exists, 20)


def test_a_job_outlives_its_slurmd(slurm: SlurmCluster, user_dir: Path) -> None:
    job = submit(slurm, user_dir, "--nodelist=m2")
    first_run(slurm, user_dir / f"{job}.out")
    slurm.stop_slurmd("m2")
    slurm.start("m2")
    assert slurm.job_states([job]) == {job: "RUNNING"}


def test_the_python_for_jobs_can_be_run_by_the_user(
    slurm: SlurmCluster, cluster_python: Path, user_dir: Path
) -> None:
    code = "import mlxjobs, numpy; print(mlxjobs.__file__)"
    done = slurm.run([cluster_python, "-c", code], cwd=user_dir)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(cluster_python.parents[1])


def test_restore_mends_what_a_test_broke(slurm: SlurmCluster, user_dir: Path) -> None:
    job = submit(slurm, user_dir)
    slurm.crash(first_run(slurm, user_dir / f"{job}.out"))
    slurm.root("scontrol", "update", "nodename=m2", "state=drain", "reason=test")
    slurm.set_conf(high={"State": "DOWN"}, MinJobAge=20)
    slurm.pause_controller()
    slurm.restore()
    assert set(slurm.status().values()) == {"up", "idle"}
    assert slurm.root("squeue", "--noheader") == ""
    assert slurm.root("sinfo", "--noheader", "--partition=high", "--format=%a").strip() == "up"


def test_another_process_cannot_take_the_cluster_over(slurm: SlurmCluster) -> None:
    with pytest.raises(ClusterError, match="in use by another process"):
        SlurmCluster().up()
    assert set(slurm.status().values()) == {"up", "idle"}


def test_what_a_killed_run_left_is_ended(slurm: SlurmCluster) -> None:
    base = slurm.base.with_name(f"{slurm.base.name}-second")
    start = "import os, sys, pathlib; from tests.clusters.slurm import SlurmCluster"
    code = f"{start}; SlurmCluster(pathlib.Path(sys.argv[1])).up(nodes=1); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(base)], cwd=CHECKOUT).returncode == 9
    second = SlurmCluster(base)
    left = {name: second.process(name) for name in ("munged", "slurmctld", "m1")}
    try:
        second.install(accounting=True)
        second.up(nodes=1, accounting=True)
        assert all(left.values())
        assert not {second.process(name) for name in left} & set(left.values())
        assert second.run(["sbatch", "--wait", "--output=/dev/null", "--wrap=exit 3"]).returncode == 3
        states = ["sacct", "--noheader", "--allocations", "--format=State"]
        slurm.wait_for(lambda: second.run(states).stdout.split(), 20, until=lambda out: out == ["FAILED"])
    finally:
        second.down()
        shutil.rmtree(base)
    assert set(slurm.status().values()) == {"up", "idle"}
