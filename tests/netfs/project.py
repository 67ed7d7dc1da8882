"""A project in a folder that two nodes share, driven on either of them."""

from __future__ import annotations

import copy
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.errors import DamagedCheckpointError
from mlxjobs.logger.checkpoint_file import peek
from mlxjobs.record.history import Event
from tests.netfs.nodes import Node, TwoNodes
from tests.project import CONFIG, MAIN, Project, await_value, undisturbed

PROGRAM = """
import os, pathlib, time
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    cfg, logger = ctx.config, ctx.logger
    try:
        state = logger.load_checkpoint()
    except FileNotFoundError:
        state = {"epoch": -1, "loss": 100.0}
    for epoch in range(state["epoch"] + 1, 10**6):
        if epoch > 0 and not int(pathlib.Path(os.environ["GO"]).read_text()):
            break
        state = {"epoch": epoch, "loss": state["loss"] * (1 - cfg.optimizer.lr)}
        if cfg.metrics:
            logger.log_metrics(state, log_name="train")
        time.sleep(cfg.pause)
        if cfg.artifacts:
            written = {"by": os.uname().nodename, "epoch": epoch}
            logger.log_artifacts(written, log_name="progress.json", artifact_type="json")
        if cfg.checkpoints:
            logger.log_checkpoint(state)

if __name__ == "__main__":
    train()
"""
"""A task that writes only what it is asked to write, until no epoch may pass any more."""

_LEFTOVERS = (".attempt-*", ".gone-*", "*.tmp", ".nfs*", "*.lock")

OPTIONS = CONFIG + "pause: 0.05\nmetrics: false\ncheckpoints: false\nartifacts: false\n"

_SAVES = "        logger.log_checkpoint("
_WRITES = "        logger.log_artifacts({'epoch': epoch}, log_name='progress.json', artifact_type='json')\n"
STEERED = MAIN.replace(_SAVES, _WRITES + _SAVES).replace("'last_ckpt')", "'last_ckpt', keep=2)")
"""The seed's program, with an artifact, and the last two checkpoints."""


NOAC = {"acregmin": 0, "acregmax": 0, "acdirmin": 0, "acdirmax": 0}
VIEWS: dict[str, dict[str, int]] = {
    "defaults": {},
    "slow": {"acregmin": 15},
    "noac": NOAC,
    "whole-seconds": {"gran": 1},
    "no-negative": {"noneg": 1},
    "write-behind": {"delay": 1},
    "ahead": {"skew": 300},
    "behind": {"skew": -300},
}


def views(*short: str) -> list[Any]:
    """How nodes see the shared folder; those that are named belong to `make test`."""
    return [
        pytest.param(knobs, id=name, marks=[pytest.mark.short] if name in short else [])
        for name, knobs in VIEWS.items()
    ]


class SharedProject(Project):
    """A project whose commands run on one node; what a test reads of it is what the server has.

    Args:
        nodes: the nodes; commands run on `a`.
        main: its program.
    """

    def __init__(self, nodes: TwoNodes, main: str = MAIN, config: str = CONFIG) -> None:
        super().__init__(nodes.server / "project", main, config)
        self.nodes = nodes
        self.env["MLXJOBS_LOCAL_GRACE"] = "1"
        for name in ("MLXJOBS_LOCAL_DIR", "GO"):  # each node has its own
            del self.env[name]
        self._move(nodes.a)

    def _move(self, node: Node) -> None:
        self.node = node
        self.go = node.folder / "go"
        self.let_pass(10**6)

    def on(self, node: Node) -> SharedProject:
        """Return the same project, driven on another node."""
        other = copy.copy(self)
        other._move(node)
        return other

    @property
    def seen(self) -> Path:
        """The project's folder as a node has it."""
        return self.nodes.mount / self.folder.name

    def command(
        self, *command: str, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = {**self.env, "GO": str(self.go), **(env or {})}
        done = self.node.run(*command, cwd=cwd or self.seen, env=given)
        assert done.returncode == code, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `python main.py ...`."""
        env = {**self.env, "GO": str(self.go)}
        return self.node.start(self.python, "main.py", *arguments, cwd=self.seen, env=env)

    def again(self, log_id: int = 1) -> tuple[str, ...]:
        """What starts a run again."""
        return (f"+mlxpy.logger.forced_log_id={log_id}",)

    # -- what a run says of itself ----------------------------------------------------------

    def events(self, log_id: int = 1) -> list[Event]:
        return self.at(log_id).events()

    def await_event(self, kind: str, attempt: int, log_id: int = 1) -> Any:
        """Wait until an attempt has said this of itself."""

        def said() -> list[Event]:
            return [e for e in self.events(log_id) if e["event"] == kind and e.get("attempt") == attempt]

        return await_value(said, f"{kind} of attempt {attempt}")[0]

    def pid(self, attempt: int, log_id: int = 1) -> int:
        """The process of an attempt, as its node numbers it."""
        return int(self.await_event("started", attempt, log_id)["pid"])


class LogsApart(SharedProject):
    """A project of which only the log directory is on the network; its program is on disks of the nodes."""

    def __init__(self, nodes: TwoNodes, main: str = MAIN) -> None:
        super().__init__(nodes, main)
        self.folder = self.folder.rename(nodes.server.parent / "project")
        self.logs = nodes.server / "logs"
        settings = f"logger:\n  parent_log_dir: {nodes.mount / 'logs'}\n"
        (self.folder / "configs" / "mlxpy.yaml").write_text(settings)

    @property
    def seen(self) -> Path:
        return self.folder

    def mlxjobs(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return super().mlxjobs(*arguments, "--logs", str(self.nodes.mount / "logs"), code=code)


def reach(program: subprocess.Popen[str], project: Project, epoch: int, log_id: int = 1) -> None:
    """Wait until the metrics of an epoch are written, unless the program ends before."""

    def reached() -> bool:
        return epoch in project.epochs(log_id) or program.poll() is not None

    await_value(reached, f"epoch {epoch} of run {log_id}")
    assert program.poll() is None, f"ended with {program.returncode} before epoch {epoch}:\n{end_of(program)}"


def start_and_kill(project: SharedProject, epoch: int, *arguments: str) -> None:
    """Start a run, and kill its first attempt in an epoch."""
    project.let_pass(epoch)
    program = project.start(*arguments)
    reach(program, project, epoch)
    project.node.kill(project.pid(attempt=1))
    end_of(program)


def end_of(program: subprocess.Popen[str], timeout_s: float = 60.0) -> str:
    """Wait until a program has ended, and return what it printed."""
    out, _ = program.communicate(timeout=timeout_s)
    return out


def assert_exact(project: Project, epochs: int, log_id: int = 1) -> None:
    """Each epoch is there once, in its order, with the loss of a run that nobody disturbed."""
    have = project.epochs(log_id)
    assert have == list(range(epochs)), f"epochs {have}"
    assert project.losses(log_id) == undisturbed(project, epochs)


def assert_nothing_found(project: Project) -> None:
    """`mlxjobs fsck` ends with 0 and has nothing to say."""
    done = project.mlxjobs("fsck")
    assert done.stdout + done.stderr == "nothing found\n", done.stdout + done.stderr


def assert_no_leftovers(project: Project, folder: Path | None = None) -> None:
    """Nothing is left that was written aside, or for one attempt, in the logs or another folder."""
    top = folder or project.logs
    found = [path for pattern in _LEFTOVERS for path in top.rglob(pattern)]
    left = sorted(str(path.relative_to(top)) for path in found)
    assert left == [], f"left behind: {left}"


def has_ended(program: subprocess.Popen[str], timeout_s: float) -> bool:
    """Wait for a program's end, and tell whether it came."""
    end = time.monotonic() + timeout_s
    while program.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return program.poll() is not None


Value = tuple[int, int]  # which attempt wrote it; which of its own, or of the run's, it is


def checkpoint_writer(path: Path) -> Value | None:
    """Which attempt wrote a checkpoint, and its number."""
    try:
        record = peek(path)
    except (OSError, DamagedCheckpointError):
        return None
    return None if record is None else (record.attempt, record.sequence)


def artifact_writer(path: Path) -> Value | None:
    """Which attempt wrote an artifact of `PROGRAM`, by its node, and in which epoch."""
    try:
        written = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return {"nodea": 1, "nodeb": 2}[written["by"]], written["epoch"]


class Sampler:
    """Looks at a file on the server all the time, and remembers what it held.

    Args:
        path: the file.
        writer: who wrote it.
    """

    def __init__(self, path: Path, writer: Callable[[Path], Value | None]) -> None:
        self.values: list[Value] = []
        self._path = path
        self._writer = writer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            value = self._writer(self._path)
            if value is not None and self.values[-1:] != [value]:
                self.values.append(value)

    def await_values(self, count: int, attempt: int, program: subprocess.Popen[str]) -> None:
        """Wait until it has held this many of an attempt, unless the attempt's program ends before."""

        def written() -> bool:
            return sum(value[0] == attempt for value in self.values) >= count or program.poll() is not None

        await_value(written, f"{self._path} to be written {count} times by attempt {attempt}")
        assert program.poll() is None, (
            f"attempt {attempt} ended with {program.returncode}:\n{end_of(program)}"
        )

    def times_an_older_came_back(self) -> int:
        """How often what an attempt had written was replaced by what an older one wrote."""
        return sum(
            later[0] < earlier[0] for earlier, later in zip(self.values, self.values[1:], strict=False)
        )


def assert_complete(project: SharedProject, epochs: int, log_id: int = 1) -> None:
    """The run is complete and exact, its artifact is the last one, and nothing is left over or wrong."""
    assert_exact(project, epochs, log_id)
    assert project.state(log_id).status == "COMPLETE"
    artifact = project.at(log_id).artifacts / "json" / "progress.json"
    assert json.loads(artifact.read_text()) == {"epoch": epochs - 1}
    assert_no_leftovers(project)
    assert_nothing_found(project)
