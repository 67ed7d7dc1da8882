"""Several ranks in one job, and what submitit says in it, without a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxjobs.cluster import launch_ranks, ranks, registry
from mlxjobs.scheduler import Here
from mlxjobs.schedulers.slurm import SLURMScheduler
from tests.project import Project, await_value

# a process that is in a job of each scheduler that there is
JOBS = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0",
    "OAR_JOB_ID": "7", "MLXJOBS_LOCAL_JOB_ID": "7",
    "JOB_ID": "7", "SGE_O_HOST": "login", "SGE_TASK_ID": "undefined",
    "PBS_JOBID": "7.server", "LSB_JOBID": "7", "MOAB_JOBID": "7",
}  # fmt: skip
ASK = """
import submitit
job, torch = submitit.JobEnvironment(), submitit.helpers.TorchDistributedEnvironment().export()
print(job.job_id, job.num_tasks, job.num_nodes, job.node, job.global_rank, job.local_rank, *job.hostnames)
print(torch.master_addr, torch.rank, torch.world_size, torch.local_rank, torch.local_world_size)
"""
RANKS = {ranks.RANK: "3", ranks.RANKS: "4", ranks.NODE: "1", ranks.NODES: "2", ranks.LOCAL_RANK: "1"}


def ask(name: str, env: dict[str, str]) -> list[list[str]]:
    """What submitit says in a job of this scheduler."""
    path = registry.known()[name]
    tell = f"ranks.tell_submitit(registry.load({path!r}), {path!r})"
    tell = f"from mlxjobs.cluster import ranks, registry; {tell}"
    command = [sys.executable, "-c", f"{tell}\n{ASK}"]
    told = {"PATH": os.environ["PATH"], **JOBS, **env}
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", registry.known())
def test_submitit_tells_a_job_of_any_scheduler_its_ranks(name: str) -> None:
    scheduler = registry.load(registry.known()[name])
    here = scheduler.here(JOBS)
    assert here is not None
    job, torch = ask(name, {**RANKS, ranks.HOSTS: "n1,n2"})
    assert job == [here.job_id, "4", "2", "1", "3", "1", "n1", "n2"]
    assert torch == ["n1", "3", "4", "1", "2"]


@pytest.mark.parametrize("name", registry.known())
def test_submitit_tells_the_hosts_of_a_job_of_one_rank(name: str, tmp_path: Path) -> None:
    scheduler = registry.load(registry.known()[name])
    own = os.uname().nodename
    if not scheduler.node_file:
        return  # one that names none is on one host, or has another way: above, and on the real one
    # as SGE writes it; of others only the first word is there
    (tmp_path / "nodes").write_text(f"a1.site 2 all.q@a1 UNDEFINED\na1.site 2\n{own}.site 2\n\n")
    job, torch = ask(name, {scheduler.node_file: str(tmp_path / "nodes")})
    assert job[1:] == ["1", "1", "0", "0", "0", f"{own}.site", "a1.site"]
    assert torch == [f"{own}.site", "0", "1", "0", "1"]


def test_ranks_that_we_start_on_slurm_are_on_all_of_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutSrun(SLURMScheduler):
        template = "job.sh"
        launches_ranks = False

    monkeypatch.setenv("SLURM_JOB_NODELIST", f"n[08-10],{os.uname().nodename},gpu-a[1-2]")
    assert ranks.hosts(WithoutSrun()) == [os.uname().nodename, "n08", "n09", "n10", "gpu-a1", "gpu-a2"]
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    assert ranks.hosts(WithoutSrun()) == [os.uname().nodename]


def test_without_a_job_submitit_answers_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import submitit; submitit.JobEnvironment()"],
        env={"PATH": os.environ["PATH"], "OAR_JOB_ID": "7"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Could not figure out which environment" in done.stderr


def test_the_ranks_of_a_job_are_no_ranks_of_one_that_it_submits() -> None:
    assert registry.clean_environment({**RANKS, ranks.HOSTS: "a", "KEPT": "1"}) == {"KEPT": "1"}
    assert ranks.placed(Here("7"), RANKS) == Here("7", rank=3, world_size=4)
    assert ranks.placed(Here("7"), {}) == Here("7")


MAIN = """
import logging, os, sys, time, mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    print("rank", ctx.info.rank, "of", ctx.info.world_size, os.environ.get("VALUE"), flush=True)
    logging.getLogger(__name__).info("logged by %d", ctx.info.rank)
    ctx.logger.log_metrics({"loss": ctx.info.rank}, log_name="train")
    ctx.logger.log_checkpoint({"rank": ctx.info.rank})
    os.system("sleep 1000 & echo $! >" + ctx.config.pids + "/" + str(ctx.info.rank))
    WORK

if __name__ == "__main__":
    train()
"""


def submit(project: Project, work: str = "", count: int = 3) -> None:
    (project.folder / "main.py").write_text(MAIN.replace("WORK", work))
    pids = project.folder.parent / "pids"
    pids.mkdir(exist_ok=True)
    project.submit(
        f"+mlxpy.scheduler.ranks_per_node={count}", f"+pids={pids}", env={"VALUE": "it's \n$HOME `id`"}
    )


def await_children(project: Project, count: int) -> None:
    """Wait until so many ranks have begun their task."""
    pids = project.folder.parent / "pids"
    await_value(lambda: len([file for file in pids.iterdir() if file.read_text()]) == count, "the ranks")


def await_no_children(project: Project) -> None:
    """Wait until what the ranks started and left behind is gone."""
    for file in (project.folder.parent / "pids").iterdir():
        await_value(lambda file=file: not _lives(int(file.read_text())), "the end of a rank's child")  # type: ignore[misc]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_rank_0_alone_writes_and_each_rank_prints_to_files_of_its_own(project: Project) -> None:
    submit(project, "assert 'submitit' not in sys.modules")
    project.await_status("COMPLETE")
    await_no_children(project)
    run = project.at()
    value = "it's \n$HOME `id`"
    assert project.stdout().startswith(f"rank 0 of 3 {value}\n")
    for rank in (1, 2):  # the run is COMPLETE when rank 0 has returned: the others may be about to print
        said = run.output_of(rank, 1)
        await_value(lambda said=said: said.exists() and said.read_text().count("\n") >= 2, f"rank {rank}")  # type: ignore[misc]
        assert said.read_text().startswith(f"rank {rank} of 3 {value}\n")
    assert (run.path / "main.log").read_text().count("logged by") == 1
    assert len((run.metrics / "train.json").read_text().splitlines()) == 1
    assert project.state().attempts[-1].number == 1


def test_a_rank_that_fails_fails_the_run_and_ends_the_others(project: Project) -> None:
    # 99 brings some schedulers' jobs back, if it is the job's own
    submit(project, "sys.exit(99) if ctx.info.rank == 2 else time.sleep(1000)")
    state = project.await_status("FAILED")
    where = f"rank 2 on {os.uname().nodename}"
    assert state.reason == f"{where}: SystemExit: 99 (more in log.2.stderr)"
    project.queue("wait", "--timeout", "120")
    await_no_children(project)
    assert f"{where} ended with exit code 99: so does the job" in project.stderr()
    assert "1|FAILED" in project.queue("status")


def test_a_rank_that_fails_before_rank_0_has_begun_fails_the_run(project: Project) -> None:
    submit(project, "sys.exit(3) if ctx.info.rank == 2 else time.sleep(1000)")
    main = project.folder / "main.py"
    failing = project.folder.parent / "pids" / "2"
    late = (
        "import os, time\n"
        f"while os.environ.get('MLXJOBS_RANK') == '0' and not os.path.exists({str(failing)!r}):\n"
        "    time.sleep(0.01)\n"
    )
    project.await_status("FAILED")
    project.queue("wait", "--timeout", "120")
    failing.unlink()
    main.write_text(late + main.read_text())
    project.mlxjobs("requeue", "1")
    state = project.await_status("FAILED", attempts=2)
    assert "SystemExit: 3" in str(state.reason)


def test_rank_0_that_fails_ends_the_others(project: Project) -> None:
    submit(project, "if ctx.info.rank == 0: sys.exit(5)\n    time.sleep(1000)")
    assert project.await_status("FAILED").reason == "SystemExit: 5"
    project.queue("wait", "--timeout", "120")
    await_no_children(project)
    assert "1|FAILED" in project.queue("status")


WARNED = """warned = ctx.config.pids + "/../warned"
    if not os.path.exists(warned):
        while not (ctx.logger.preempted if ctx.info.rank else os.path.exists(warned)):
            time.sleep(0.01)
        if ctx.info.rank == 1:
            open(warned, "w").close()
        ctx.logger.log_checkpoint({})  # rank 0 leaves here
        time.sleep(1000)"""


def test_a_warning_reaches_all_ranks_and_they_come_back_together(project: Project) -> None:
    submit(project, WARNED, count=2)
    await_children(project, 2)
    project.mlxjobs("preempt", "1")
    state = project.await_status("COMPLETE", attempts=2)
    assert state.attempts[0].reason == "stopped and requeued by the scheduler"
    await_no_children(project)
    said = project.at().output_of(1, 1)  # rank 0 has returned: the other may be about to print
    await_value(lambda: said.read_text().count("rank 1 of 2") == 2, "rank 1 for the second time")


def test_what_is_cancelled_leaves_no_rank_behind(project: Project) -> None:
    submit(project, "time.sleep(1000)")
    await_children(project, 3)
    project.env["MLXJOBS_LOCAL_GRACE"] = "1"
    project.mlxjobs("cancel", "1")
    await_no_children(project)


def test_a_number_of_ranks_that_cannot_be(project: Project) -> None:
    done = project.submit("+mlxpy.scheduler.ranks_per_node=-1", code=2)
    assert "scheduler.ranks_per_node: -1 is negative" in done.stderr


def test_a_host_that_is_not_the_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("n1\nn2\n")
    monkeypatch.setenv("OAR_NODEFILE", str(tmp_path / "nodes"))
    oar = registry.known()["OARScheduler"]
    assert launch_ranks.main([oar, "1", sys.executable, "-c", "pass"]) == 3
