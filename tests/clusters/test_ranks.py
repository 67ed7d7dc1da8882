"""Jobs of two ranks on two nodes, of a real Slurm and a real OAR: they train, end and come back together."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxjobs.record.history import RunState, RunStatus
from tests.clusters.on_oar import OarProject
from tests.clusters.on_slurm import ClusterProject
from tests.project import await_value

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed" / "main.py"

# epochs end when the test says so, as in tests/project.py
PACE = """
import os, pathlib, time

def pace(epoch, logger):
    go = os.environ["GO"]
    while int(pathlib.Path(go).read_text() or 0) <= epoch:
        if logger.preempted:
            pathlib.Path(go + ".warned").touch()
        time.sleep(0.01)
"""

# What torch does, with plain sockets.
SOCKETS = '''
import socket
import mlxpy, submitit

def connect(env):
    """Return a connection to the other rank."""
    if env.rank == 0:
        with socket.create_server(("", env.master_port)) as server:
            return server.accept()[0]
    while True:
        try:
            return socket.create_connection((env.master_addr, env.master_port))
        except ConnectionRefusedError:
            time.sleep(0.05)

@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    env = submitit.helpers.TorchDistributedEnvironment().export()
    job = submitit.JobEnvironment()
    assert (ctx.info.rank, ctx.info.world_size) == (env.rank, env.world_size) == (job.node, job.num_nodes)
    model, start = 100.0 * (env.rank + 1), 0
    try:
        state = ctx.logger.load_checkpoint()
        model, start = state["model"], state["epoch"] + 1
    except FileNotFoundError:
        pass
    print(f"job {job.job_id} on {job.hostname} of {' '.join(job.hostnames)}", flush=True)
    print(f"rank {env.rank} of {env.world_size} starts from epoch {start}", flush=True)
    peer = connect(env)
    say, hear = peer.makefile("w"), peer.makefile("r")
    for epoch in range(start, ctx.config.num_epoch):
        print(epoch, model, file=say, flush=True)
        line = hear.readline()
        if not line:
            raise ConnectionError("the other rank is gone")
        theirs = line.split()
        assert int(theirs[0]) == epoch
        model = 0.9 * (model + float(theirs[1])) / 2
        ctx.logger.log_metrics({"epoch": epoch, "loss": model}, log_name="train")
        WORK
        ctx.logger.log_checkpoint({"epoch": epoch, "model": model})

if __name__ == "__main__":
    train()
'''
PACED = PACE + SOCKETS.replace("WORK", "env.rank == 0 and pace(epoch, ctx.logger)")
FAILS = PACE + SOCKETS.replace("WORK", "pace(epoch, ctx.logger)\n        if env.rank and epoch == 2: 1 / 0")


def torch_example() -> str:
    before = "        ctx.logger.log_checkpoint("
    paced = EXAMPLE.read_text().replace(
        before, f"        env.rank == 0 and pace(epoch, ctx.logger)\n{before}"
    )
    assert paced.count("pace(") == 1
    return PACE + paced


@dataclass
class Ranks:
    """A project whose jobs have two nodes and a rank on each."""

    project: ClusterProject | OarProject
    hosts: tuple[str, str]

    def start(self, main: str, *arguments: str, epoch: int = 2) -> str:
        """Submit a run, stop it in the middle of an epoch, and return its job."""
        (self.project.folder / "main.py").write_text(main)
        self.project.let_pass(epoch)
        self.project.run("+mlxpy.scheduler.ranks_per_node=1", *arguments)
        self.project.await_epoch(epoch)
        return self.project.job()

    def await_no_process(self) -> None:
        """Wait until no process of the project is left on any node; all are seen from here."""
        await_value(lambda: not self._processes("main.py"), "the end of all ranks")

    def _processes(self, program: str) -> list[int]:
        found = subprocess.run(
            ["pgrep", "-f", str(self.project.folder / program)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill_rank(self, rank: int) -> None:
        """As the kernel does when memory is short."""
        for pid in self._processes("main.py"):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            mine = {f"MLXJOBS_RANK={rank}".encode(), f"SLURM_PROCID={rank}".encode()} & set(env)
            if mine and words[1].endswith(b"main.py"):
                os.kill(pid, 9)

    def come_back(self, job: str) -> None:
        """Preempt the run at its safe point."""
        self.project.mlxjobs("preempt", "1")
        self.project.await_warning()
        self.project.let_pass(3)
        self.project.await_status("PREEMPTED", "STARTING", "RUNNING", attempts=1)
        if isinstance(self.project, ClusterProject):
            self.project.cluster.hurry(job)
        self.project.let_pass(10)

    def printed(self, rank: int) -> str:
        path = self.project.at().output_of(rank, 1) if rank else self.project.at().stdout
        return path.read_text() if path.exists() else ""


@pytest.fixture(
    params=[pytest.param("slurm", marks=pytest.mark.slurm), pytest.param("oar", marks=pytest.mark.oar)]
)
def two(request: pytest.FixtureRequest, cluster_python: Path) -> Iterator[Ranks]:
    cluster = request.getfixturevalue(request.param)
    project: ClusterProject | OarProject
    if request.param == "slurm":
        project = ClusterProject(cluster, cluster_python, request.getfixturevalue("user_dir"))
        hosts = ("m1", "m2")
    else:
        project = OarProject(cluster, cluster_python, request.getfixturevalue("oar_dir"))
        hosts = ("node1", "node2")
    options = {
        "slurm": "option_cmd: ['--partition=low', '--time=10', '--mem=200', '--nodes=2', '--nodelist=m1,m2']",
        "oar": "option_cmd: ['-l nodes=2,walltime=0:10:0']",
    }[request.param]
    settings = project.folder / "configs" / "mlxpy.yaml"
    lines = [options if "option_cmd" in line else line.strip() for line in settings.read_text().splitlines()]
    settings.write_text(
        "".join(f"{'  ' if not line.startswith(('use_', 'scheduler')) else ''}{line}\n" for line in lines)
    )
    yield Ranks(project, hosts)
    project.let_pass(10**6)


def assert_trained(two: Ranks, old: str) -> RunState:
    """The run has come back once, and its curve is that of a run which was never stopped."""
    state = two.project.await_status("COMPLETE", attempts=2)
    assert len(state.attempts) == 2
    assert state.attempts[0].job_id == old
    assert str(state.attempts[0].reason).startswith("warned by SIGUSR2 at epoch 2, requeued 1 of 100")
    assert two.project.epochs() == [0, 1, 2, 3, 4]
    for rank in (0, 1):
        expected = [f"rank {rank} of 2 starts from epoch {epoch}" for epoch in (0, 3)]
        await_value(lambda rank=rank, last=expected[-1]: last in two.printed(rank), "what srun hands on late")  # type: ignore[misc]
        assert [line for line in two.printed(rank).splitlines() if line.startswith("rank ")] == expected
    two.project.run("+mlxpy.scheduler.ranks_per_node=1")
    two.project.await_status("COMPLETE", log_id=2)
    assert two.project.losses() == pytest.approx(two.project.losses(2))
    two.await_no_process()
    return state


def test_two_ranks_train_and_come_back(two: Ranks) -> None:
    old = two.start(PACED)
    two.come_back(old)
    new = assert_trained(two, old).job_id
    for rank, host in enumerate(two.hosts):
        told = [line for line in two.printed(rank).splitlines() if line.startswith("job ")]
        assert told == [f"job {job} on {host} of {' '.join(two.hosts)}" for job in (old, new)]
    assert len(list(two.project.at().history_dir.glob("*"))) < 15  # rank 1 recorded nothing
    assert "log.0.stdout" not in os.listdir(two.project.at().path)


def test_torch_trains_on_two_ranks_and_comes_back(two: Ranks, torch_python: Path) -> None:
    two.project.python = str(torch_python)
    (two.project.folder / "configs" / "config.yaml").write_text("seed: 0\nnum_epoch: 5\nlr: 0.02\n")
    old = two.start(torch_example())
    two.come_back(old)
    assert_trained(two, old)


def test_a_rank_that_fails_ends_the_run(two: Ranks) -> None:
    job = two.start(FAILS)
    two.project.let_pass(3)  # rank 0 waits for the next epoch's end, for ever
    state = two.project.await_status("FAILED")
    assert (
        state.reason
        == f"rank 1 on {two.hosts[1]}: ZeroDivisionError: division by zero (more in log.1.stderr)"
    )
    assert "1 / 0" in two.project.at().output_of(1, 2).read_text()
    two.await_no_process()
    await_value(lambda: _is_over(two, job), "the end of the job")
    assert len(two.project.state().attempts) == 1


def _is_over(two: Ranks, job: str) -> bool:
    return two.project.cluster.job_states([job]).get(job, "") in ("Terminated", "Error", "FAILED")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(two: Ranks, rank: int) -> None:
    job = two.start(PACED)
    two.kill_rank(rank)
    two.await_no_process()
    await_value(lambda: _is_over(two, job), "the end of the job")
    two.project.mlxjobs("ls")
    assert two.project.state().status is RunStatus.FAILED
    two.project.let_pass(10)
    two.project.mlxjobs("requeue", "1")
    two.project.await_status("COMPLETE", attempts=2)
    assert two.project.epochs() == [0, 1, 2, 3, 4]


def test_a_cancelled_job_leaves_nothing_on_its_nodes(two: Ranks) -> None:
    two.start(PACED)
    two.project.mlxjobs("cancel", "1")
    two.await_no_process()
    assert two.project.state().status is RunStatus.CANCELLED


def test_one_rank_in_a_job_of_two_nodes(two: Ranks) -> None:
    main = SOCKETS.replace("peer = connect(env)", "return").replace(" == (job.node, job.num_nodes)", "")
    (two.project.folder / "main.py").write_text(main)
    two.project.run()
    state = two.project.await_status("COMPLETE")
    assert two.printed(0).splitlines()[-2:] == [
        f"job {state.job_id} on {two.hosts[0]} of {' '.join(two.hosts)}",
        "rank 0 of 1 starts from epoch 0",
    ]
