"""Write files of every format that outlives a process, with the version that is installed.

    python -m tests.stored.make FOLDER

    promises.json              names that outlive a process beside files: entry points, commands, imports
    pickles/, pickles.json     what a user can put into a pickle, and what it is
    project/                   a program (main.py.txt, so that no checker takes it for one of ours), and
    project/runs/1, 2          a run that is complete, and one that failed after its checkpoint
    project/jobs/1, 2          submitted to the local queue: a run, and one of two ranks
    project/arrays/1-3         submitted to Slurm: an array of two, and one that waits for room
    queue/                     the state directory of the local queue with the two jobs, both pending

All is made in HOME, by a host, a user and an interpreter there, so that no file tells of this machine: what
runs a stored script puts its own folder and interpreter in their place. No folder is called logs/, which git
would not take.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

import mlxpy

import mlxjobs
from tests.stored.objects import HOME, describe, modules, pickled

PYTHON = HOME / "venv" / "bin" / "python"
COUNT = """
import sys
before = set(sys.modules)
import mlxpy
mlxpy.launch
new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
ours = [name for name in sys.modules if name.partition(".")[0] in ("mlxjobs", "mlxpy")]
print(len(ours), *sorted(new - {"mlxjobs", "mlxpy"}))
"""
NEUTRAL = """
import os, site, socket
site.addsitedir({folder!r})
real = os.uname()
os.uname = lambda: os.uname_result((real.sysname, "node1", *real[2:]))
socket.gethostname = lambda: "node1"
"""
SBATCH = """#!/bin/sh
echo "sbatch: error: AssocMaxSubmitJobLimit (job submit limit)" >"$0.full"
[ -e "$0.taken" ] && { cat "$0.full" >&2; exit 1; }
touch "$0.taken"
echo 7
"""
COMMANDS = {"sbatch": SBATCH, "squeue": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}
COMMANDS["scontrol"] = "#!/bin/sh\necho 'MaxArraySize            = 3'\n"
CONFIG = "seed: 0\nnum_epoch: 4\nfail_at: null\noptimizer: {lr: 0.1}\nlayers: [{units: 3}, {units: 5}]\n"
TRAINER = '''
class Trainer:
    """Keeps what it needs, the logger too, and pickles itself with it."""

    def __init__(self, ctx):
        self.config, self.logger, self.epoch = ctx.config, ctx.logger, -1

    def save(self, **more):
        self.logger.log_checkpoint({"trainer": self, "logger": self.logger, **more}, log_name="last_ckpt")
'''
MAIN = """
import mlxpy
from mlxpy.data_structures.contrib.artifacts import NumpyArray
from trainer import Trainer

class Words(mlxpy.Artifact):
    def _save(self, fname):
        with open(fname + self.ext, "w") as file:
            file.write(self.obj)

@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    config, logger = ctx.config, ctx.logger
    print("rank", ctx.info.rank, "of", ctx.info.world_size)
    try:
        trainer = logger.load_checkpoint()["trainer"]
    except FileNotFoundError:
        trainer = Trainer(ctx)
    begin = trainer.epoch + 1
    for trainer.epoch in range(begin, config.num_epoch):
        logger.log_metrics({"loss": 1 / (trainer.epoch + 1), "epoch": trainer.epoch}, log_name="train")
        if begin == 0 and trainer.epoch == config.fail_at:
            raise RuntimeError("no space left")
        trainer.save(context=ctx, status=mlxpy.RunStatus.RUNNING, error=mlxpy.errors.InvalidKeyError("lr"))
        logger.log_artifacts({"epoch": trainer.epoch}, "state.json", "json")
    logger.log_artifacts([config, mlxpy.RunStatus.COMPLETE], "state.pkl", "pickle")
    logger.log_artifact(Words("a b", ".txt"), "words")
    logger.log_artifact(NumpyArray({"weights": [1.0, 2.0]}), "weights")

if __name__ == "__main__":
    train()
"""


def write_pickles(folder: Path) -> None:
    """Write a file for each object that pickles; tell of those that do not, or do not come back."""
    folder.mkdir()
    said = {}
    for name, one in pickled().items():
        try:
            content = pickle.dumps(one)
            said[name] = describe(pickle.loads(content))
        except Exception as error:
            print(f"{name} does not pickle: {type(error).__name__}: {error}")
        else:
            (folder / f"{name}.pkl").write_bytes(content)
    folder.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n")


def write_promises(path: Path) -> None:
    """Write the names of modules that other programs, or processes that run already, know by heart."""
    counted = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    ours, *others = counted.stdout.split()
    points = distribution("mlxjobs").entry_points
    promises = {
        "entry_points": sorted([one.group, one.name, one.value] for one in points),
        "worker": next(vars(one)["WORKER"] for one in modules() if "WORKER" in vars(one)),
        "queue": mlxpy.LocalScheduler().status_command(["1"])[2],
        "imports": {"ours": int(ours), "packages": len(packages()), "others": others},
    }
    path.write_text(json.dumps(promises, indent=1) + "\n")


def packages() -> list[Path]:
    """The packages below ours: each costs an import, of a module that need not hold anything."""
    return sorted(Path(str(mlxjobs.__file__)).parent.glob("*/**/__init__.py"))


def run_program() -> None:
    """Make the project and its runs, in HOME."""
    venv.create(HOME / "venv", symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(HOME / "venv")}))
    (site / "sitecustomize.py").write_text(NEUTRAL.format(folder=sysconfig.get_path("purelib")))
    (HOME / "bin").mkdir()
    for name, text in COMMANDS.items():
        (HOME / "bin" / name).write_text(text)
        (HOME / "bin" / name).chmod(0o755)
    project = HOME / "project"
    (project / "configs").mkdir(parents=True)
    files = {"main.py": MAIN, "trainer.py": TRAINER, "configs/config.yaml": CONFIG}
    for name, text in files.items():
        (project / name).write_text(text)
    env = {
        "PATH": f"{HOME}/bin:/usr/bin:/bin", "HOME": str(HOME), "TMPDIR": str(HOME), "TZ": "UTC",
        "LOGNAME": "ada", "PYTHONDONTWRITEBYTECODE": "1",
        "MLXJOBS_LOCAL_DIR": f"{HOME}/queue", "MLXJOBS_LOCAL_JOBS": "0",
    }  # fmt: skip

    def run(logs: str, *arguments: str, code: int = 0, scheduler: str = "") -> None:
        more = ("+mlxpy.use_scheduler=true", f"+mlxpy.scheduler.name={scheduler}") if scheduler else ()
        command = [PYTHON, "main.py", f"+mlxpy.logger.parent_log_dir={project / logs}", *more, *arguments]
        done = subprocess.run(command, cwd=project, env=env, check=False)
        assert done.returncode == code, command

    run("runs")
    run("runs", "fail_at=2", code=1)
    run("jobs", scheduler="LocalScheduler")
    run("jobs", "+mlxpy.scheduler.ranks_per_node=2", scheduler="LocalScheduler")
    run("arrays", "optimizer.lr=0.1,0.2,0.3", scheduler="SLURMScheduler")
    subprocess.run([PYTHON, "-c", "import mlxpy; mlxpy.Reader('runs')"], cwd=project, env=env, check=True)


def main(folder: Path) -> None:
    """Write all of it into a new folder."""
    HOME.mkdir()  # else somebody is at it, or it was left behind
    try:
        folder.mkdir(parents=True)
        run_program()
        for name in ("project", "queue"):
            shutil.copytree(HOME / name, folder / name, symlinks=True)
        for path in (folder / "project").glob("*.py"):
            path.rename(path.with_name(f"{path.name}.txt"))
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()  # as git does
        write_pickles(folder / "pickles")
        write_promises(folder / "promises.json")
    finally:
        shutil.rmtree(HOME)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
