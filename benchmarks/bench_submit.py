"""A sweep from the command line to the prompt, against the tools that do the same.

With a do-nothing sbatch, and as root on a real Slurm too, which is started for it. MLXP and
hydra-submitit-launcher are installed into an environment of their own; the launcher waits for its
jobs, so it is timed up to its submission and then killed.

python benchmarks/bench_submit.py [--runs 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from interleaved import interleave

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.clusters.machine import ClusterError
from tests.clusters.slurm import SlurmCluster

PROGRAM = (
    "import {0}\n@{0}.launch(config_path='configs')\ndef main(ctx): pass\nif __name__ == '__main__': main()\n"
)
HYDRA = """
import hydra
@hydra.main(version_base=None, config_path="configs", config_name="config")
def main(cfg): pass
if __name__ == "__main__": main()
"""
STUB = "#!/bin/sh\ndate >> {0}/called\necho 'Submitted batch job 57'\n"
PEER_RUNS = 100  # they take their time; what they need for a run does not change with the number
SEEDS = ",".join(map(str, range(PEER_RUNS)))


def make_project(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "config.yaml").write_text("seed: 0\nmodel:\n  units: 100\noptimizer:\n  lr: 0.1\n")
    (folder / "ours.py").write_text(PROGRAM.format("mlxpy"))
    (folder / "theirs.py").write_text(PROGRAM.format("mlxp"))
    (folder / "plain.py").write_text(HYDRA)
    (folder / "job.sh").write_text(f"#!/bin/bash\n#SBATCH --hold\npython theirs.py seed={SEEDS}\n")
    (folder / "array.sh").write_text("#!/bin/bash\n#SBATCH --hold\ntrue\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(STUB.format(folder))
    for name in ("squeue", "scontrol", "scancel", "sacct", "srun"):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
    for path in (folder / "bin").iterdir():
        path.chmod(0o755)


def make_peers(folder: Path) -> Path:
    """Install the other tools; a released Hydra, as ours has."""
    venv.create(folder, with_pip=True)
    wanted = ["mlxp", "hydra-submitit-launcher", "hydra-core<1.4"]
    subprocess.run([folder / "bin/pip", "install", "--quiet", *wanted], check=True)
    return folder / "bin"


class Submissions:
    """The same sweep by each tool."""

    def __init__(self, folder: Path, peers: Path, env: Mapping[str, str], runs: int) -> None:
        self._folder, self._peers, self._runs = folder, peers, runs
        self._numbers = count(1)  # a new log directory each time: old ones are not the measure here
        self._env = {k: v for k, v in env.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def _run(self, *argv: str, peers: bool = False) -> None:
        env = {**self._env, "PATH": f"{self._peers}:{self._env['PATH']}"} if peers else self._env
        subprocess.run(argv, cwd=self._folder, env=env, check=True, stdout=subprocess.DEVNULL)

    def raw(self) -> None:
        self._run("sbatch", "--output=/dev/null", f"--array=1-{self._runs}", "array.sh")

    def ours(self) -> None:
        self._run(
            sys.executable, "ours.py", f"seed=range({self._runs})", "mlxpy.use_scheduler=true",
            "mlxpy.scheduler.name=SLURMScheduler", "mlxpy.scheduler.option_cmd=['--hold']",
            f"mlxpy.logger.parent_log_dir=ours-{next(self._numbers)}",
        )  # fmt: skip

    def mlxp(self) -> None:
        self._run("mlxpsub", "job.sh", peers=True)

    def launcher(self) -> None:
        """hydra-submitit-launcher, up to its call of sbatch."""
        called = self._folder / "called"
        called.unlink(missing_ok=True)
        # its own sbatch tells when it was called, on a real Slurm too
        env = {**self._env, "PATH": f"{self._folder}/bin:{self._peers}:{self._env['PATH']}"}
        child = subprocess.Popen(
            [self._peers / "python", "plain.py", "-m", "hydra/launcher=submitit_slurm", f"seed={SEEDS}"],
            cwd=self._folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not called.exists() and child.poll() is None:
                time.sleep(0.005)
        finally:
            child.kill()
            child.wait()
        if not called.exists():
            raise SystemExit("hydra-submitit-launcher ended without a submission")


def measure(title: str, calls: Mapping[str, tuple[Callable[[], None], int]], rounds: int) -> None:
    timing = interleave({name: call for name, (call, _) in calls.items()}, rounds)
    each = {name: timing.seconds[name] / runs * 1000 for name, (_, runs) in calls.items()}
    for name, (_, runs) in calls.items():
        seconds, times = timing.seconds[name], each[name] / each["ours"]
        print(f"| {title}: {name}, {runs} runs | {seconds:.3g} s | {each[name]:.3g} ms | {times:.3g} |")


@contextmanager
def real_slurm() -> Iterator[SlurmCluster]:
    base = Path(tempfile.mkdtemp(prefix="mlxjobs-bench-"))
    base.rmdir()
    cluster = SlurmCluster(base)
    cluster.install()
    cluster.up(nodes=1)
    try:
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "project")
        folder.mkdir()
        make_project(folder)
        peers = make_peers(Path(name, "peers"))
        print("| what | whole | a run | times ours |\n|---|---|---|---|")
        stub = Submissions(
            folder, peers, {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}, given.runs
        )
        calls = {
            "raw": (stub.raw, given.runs),
            "ours": (stub.ours, given.runs),
            "MLXP": (stub.mlxp, PEER_RUNS),
            "hydra-submitit-launcher": (stub.launcher, PEER_RUNS),
        }
        measure("sbatch that does nothing", calls, given.rounds)
        try:
            with real_slurm() as cluster:
                env = {**os.environ, **cluster.environment}
                env["PATH"] = f"{cluster.environment['PATH']}:{os.environ['PATH']}"
                real = Submissions(folder, peers, env, given.runs)
                calls = {
                    "raw": (real.raw, given.runs),
                    "ours": (real.ours, given.runs),
                    "MLXP": (real.mlxp, PEER_RUNS),
                }
                measure("a real Slurm", calls, given.rounds)
        except ClusterError as error:
            print(f"no real Slurm: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
