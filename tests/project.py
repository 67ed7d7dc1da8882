"""A user's project in a folder of its own, driven as a user drives it: by command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mlxjobs.record.history import RunState
from mlxjobs.record.run import Run

# The seed's program; each epoch ends when the test says so, if it says so.
MAIN = '''
import os, time, pathlib
import mlxpy

def wait_for_leave(epoch, logger):
    """Wait until the file `go` says that this epoch may end; tell when a warning of the scheduler came."""
    go = os.environ.get("GO")
    while go and int(pathlib.Path(go).read_text() or 0) <= epoch:
        if logger.preempted:
            pathlib.Path(go + ".warned").touch()
        time.sleep(0.01)

@mlxpy.launch(config_path='./configs')
def train(ctx: mlxpy.Context) -> None:
    cfg = ctx.config
    logger = ctx.logger
    try:
        checkpoint = logger.load_checkpoint()
        start_epoch = checkpoint['epoch'] + 1
        model = checkpoint['model']
    except:
        start_epoch = 0
        model = 100.0
    print(f"Starting from epoch: {start_epoch} ", flush=True)
    for epoch in range(start_epoch, cfg.num_epoch):
        model = model * (1 - cfg.optimizer.lr)
        logger.log_metrics({'loss': model, 'epoch': epoch}, log_name='train')
        wait_for_leave(epoch, logger)
        logger.log_checkpoint({'model': model, 'epoch': epoch}, log_name='last_ckpt')
    print(f"Completed training with learning rate: {cfg.optimizer.lr}")

if __name__ == "__main__":
    train()
'''
CONFIG = "seed: 0\nnum_epoch: 5\noptimizer:\n  lr: 0.1\n"

T = TypeVar("T")


def await_value(get: Callable[[], T], what: str, timeout_s: float = 120.0) -> T:
    """Return the first true value that `get` gives."""
    end = time.monotonic() + timeout_s
    while not (value := get()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}; last: {value!r}"
        time.sleep(0.02)
    return value


# `configs/mlxpy.yaml` of a new project
NEW_FILE = """\
logger:
  forced_log_id: -1
  log_streams_to_file: false
  name: DefaultLogger
  parent_log_dir: ./logs
scheduler:
  cleanup_cmd: ''
  env_cmd: ''
  max_requeues: 100
  name: NoScheduler
  option_cmd: []
  ranks_per_node: 0
  shell_config_cmd: ''
  shell_path: /bin/bash
version_manager:
  name: GitVM
  parent_work_dir: ./.workdir
  compute_requirements: false
  include: commit
  max_untracked_mb: 100
  strict: false
  link: []
secrets: []
use_logger: true
use_scheduler: false
use_version_manager: false
interactive_mode: true
"""


class Project:
    """A folder with a program, its configuration, its logs and a queue of its own."""

    def __init__(self, folder: Path, main: str = MAIN, config: str = CONFIG) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.go = folder.parent / "go"
        self.python = sys.executable
        self.env = {
            **os.environ,
            "MLXJOBS_LOCAL_DIR": str(folder.parent / "queue"),
            "MLXJOBS_LOCAL_GRACE": "20",
            "GO": str(self.go),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip
        (folder / "configs").mkdir(parents=True)
        (folder / "main.py").write_text(main)
        (folder / "configs" / "config.yaml").write_text(config)
        self.let_pass(10**6)

    def await_warning(self) -> None:
        """Wait until the task has seen a new warning of its scheduler."""
        seen = self.go.with_name("go.warned")
        await_value(seen.exists, "the warning")
        seen.unlink()

    def let_pass(self, epochs: int) -> None:
        """Let epochs end up to this number, and no further."""
        aside = self.go.with_suffix(".new")
        aside.write_text(str(epochs))
        aside.replace(self.go)

    def run(self, *arguments: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run `python main.py ...` and check its exit code."""
        return self.command(self.python, "main.py", *arguments, code=code, **more)

    def command(
        self, *command: str, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project and check its exit code."""
        done = subprocess.run(
            command, cwd=cwd or self.folder, env={**self.env, **(env or {})}, capture_output=True, text=True,
            timeout=240, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *arguments: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        """Submit to the local queue."""
        scheduler = ("+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=LocalScheduler")
        return self.run(*scheduler, *arguments, code=code, **more)

    def mlxjobs(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command `mlxjobs`."""
        return self.command(self.python, "-m", "mlxjobs", *arguments, code=code)

    def queue(self, *arguments: str, code: int = 0) -> str:
        """Run a command of the local queue."""
        return self.command(self.python, "-m", "mlxjobs.localqueue", *arguments, code=code).stdout

    def git(self, *arguments: str) -> str:
        return self.command("git", *arguments).stdout

    def commit(self) -> str:
        """Make the folder a repository with everything committed; return the hash."""
        if not (self.folder / ".git").exists():
            self.git("init", "--quiet", "--initial-branch=main")
            (self.folder / ".gitignore").write_text("logs/\n.workdir/\n__pycache__/\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self.git("rev-parse", "HEAD").strip()

    # -- what a run says of itself ----------------------------------------------------------

    def at(self, log_id: int = 1) -> Run:
        return Run(self.logs / str(log_id))

    def state(self, log_id: int = 1) -> RunState:
        return self.at(log_id).state()

    def info(self, log_id: int = 1) -> Any:
        return self.at(log_id).read_yaml("info")

    def await_status(self, *statuses: str, log_id: int = 1, attempts: int = 0) -> RunState:
        """Wait until a run has one of these statuses, in this attempt or a later one."""

        def arrived() -> RunState | None:
            state = self.state(log_id)
            return state if state.status.value in statuses and len(state.attempts) >= attempts else None

        state = await_value(arrived, f"run {log_id} to be {statuses}, attempt {attempts}")
        assert state is not None
        return state

    def epochs(self, log_id: int = 1) -> list[int]:
        """The epochs in train.json, in their order."""
        path = self.logs / str(log_id) / "metrics" / "train.json"
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []

    def await_epoch(self, epoch: int, log_id: int = 1) -> None:
        """Wait until the metrics of an epoch are written."""
        await_value(lambda: epoch in self.epochs(log_id), f"epoch {epoch} of run {log_id}")

    def losses(self, log_id: int = 1) -> list[float]:
        path = self.logs / str(log_id) / "metrics" / "train.json"
        return [json.loads(line)["loss"] for line in path.read_text().splitlines()]

    def stdout(self, log_id: int = 1) -> str:
        return (self.logs / str(log_id) / "log.stdout").read_text()

    def stderr(self, log_id: int = 1) -> str:
        return (self.logs / str(log_id) / "log.stderr").read_text()


def write(project: Project, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = project.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def runs(project: Project) -> list[int]:
    """The numbers of the runs in the log directory."""
    return sorted(int(path.name) for path in project.logs.glob("[0-9]*")) if project.logs.exists() else []


def finish(project: Project, log_id: int = 1, status: str = "COMPLETE") -> None:
    """Wait until a submitted run has ended, as it should."""
    state = project.await_status("COMPLETE", "FAILED", "CANCELLED", log_id=log_id)
    assert state.status == status, project.stderr(log_id)


def assert_one_message(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One error of ours, which says these words, and no traceback."""
    for word in words:
        assert word in done.stderr
    assert done.stderr.count("mlxjobs: error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr


def undisturbed(project: Project, epochs: int = 5) -> list[float]:
    """The losses that the deterministic task has if nobody disturbs it."""
    loss, losses = 100.0, []
    for _ in range(epochs):
        loss *= 1 - 0.1
        losses.append(loss)
    return losses


def assert_whole(project: Project, log_id: int = 1) -> None:
    """The run is complete, each epoch is there once, and the curve is that of an undisturbed run."""
    assert project.epochs(log_id) == [0, 1, 2, 3, 4]
    assert project.losses(log_id) == undisturbed(project)
