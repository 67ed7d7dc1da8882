"""One run of a drill: the user's own command, handed to a scheduler with a log directory of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxjobs.care import curves
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.config import command_line
from mlxjobs.config.settings import as_lines, read_settings
from mlxjobs.errors import MLXJobsError, RunError, SchedulerError
from mlxjobs.jobs.act import DoneOrError, cancel_runs
from mlxjobs.jobs.cause import progress
from mlxjobs.jobs.look import Seen, look_at_runs
from mlxjobs.logger import checkpoints
from mlxjobs.logger.held import HELD, HOLD
from mlxjobs.logger.metrics import last_lines
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run, runs_in
from mlxjobs.system import shell
from mlxjobs.system.console import counted, note

_SUBMIT_S = 300.0
_POLL_S, _LOOK_S, _NEWS_S = 0.1, 2.0, 15.0
_RUNNING = (RunStatus.STARTING, RunStatus.RUNNING)
# what a project says of its cluster, and what it is without one
_OF_A_CLUSTER = {
    "cleanup_cmd": "''", "env_cmd": "''", "option_cmd": "[]", "ranks_per_node": "0", "shell_config_cmd": "''",
}  # fmt: skip


class Stuck(Exception):
    """A run went on for too long without a checkpoint."""


def settings_for(command: Sequence[str], scheduler: str | None) -> list[str]:
    """Return the settings to add to a command, so that it submits one run.

    Args:
        command: the program and its arguments; what they set of their scheduler stays.
        scheduler: its name; None: that of the command, or the local queue.

    Raises:
        InvalidConfigFileError: a setting of the command cannot be read.
        RunError: it names a run.
    """
    typed, _ = command_line.split_arguments(command)
    theirs = typed.get("scheduler")
    theirs = theirs if isinstance(theirs, Mapping) else {}
    if "forced_log_id" in str(typed.get("logger")):
        raise RunError("a drill makes runs of its own: leave mlxpy.logger.forced_log_id out")
    ours = {
        "use_logger": "true",
        "use_scheduler": "true",
        "interactive_mode": "false",
        "scheduler.max_requeues": "10",
    }
    if "use_version_manager" not in typed:
        ours["use_version_manager"] = "false"  # what is being mended has not been committed
    if scheduler is not None:
        ours["scheduler.name"] = command_line.quote_value(scheduler)
    elif "name" not in theirs:
        ours["scheduler.name"] = "LocalScheduler"
        ours |= {f"scheduler.{key}": value for key, value in _OF_A_CLUSTER.items() if key not in theirs}
    return [f"+mlxpy.{key}={value}" for key, value in ours.items()]


class Trial:
    """A run, from its submission to its end.

    Args:
        folder: its log directory, which is made.
        command: the program, its arguments, and the settings that submit it.
        patience_s: how long it may run without a new checkpoint.
    """

    def __init__(self, folder: Path, command: Sequence[str], patience_s: float) -> None:
        self.folder = folder
        self._command = [*command, f"+mlxpy.logger.parent_log_dir={command_line.quote_value(str(folder))}"]
        self._patience_s = patience_s
        self.run = Run(folder / "1")

    def start(self, hold: str | None = None, option_lines: Sequence[str] | None = None) -> None:
        """Submit the run.

        Args:
            hold: what the first attempt does in the step after a checkpoint (see `hold`).
            option_lines: options of the job, instead of the project's own.

        Raises:
            RunError: the command did not submit one run; what it did submit is cancelled.
        """
        try:
            self.folder.mkdir(parents=True)
            if hold is not None:
                (self.folder / HOLD).write_text(hold)
        except OSError as error:
            raise RunError(f"{self.folder}: {error.strerror}; --logs names another log directory") from error
        options = [] if option_lines is None else [_option_cmd(option_lines)]
        try:
            result = shell.run([*self._command, *options], timeout_s=_SUBMIT_S)
        except shell.CommandMissing as error:
            raise RunError(
                f"cannot start {self._command[0]!r}: no such program; type python main.py"
            ) from error
        except shell.CommandTimeout as error:
            raise RunError(f"{error}, and submitted nothing; {_NEEDS_LAUNCH}") from error
        if result.code != 0:
            last = "\n".join(result.words().splitlines()[-20:])
            raise RunError(f"the command submitted nothing; {_NEEDS_LAUNCH}. What it said:\n{last}")
        runs = runs_in(self.folder)
        if not runs:
            raise RunError(f"the command ended and submitted nothing; {_NEEDS_LAUNCH}")
        if len(runs) > 1:
            raise RunError(f"the command makes {len(runs)} runs; a drill follows one: give it no sweep")
        self.run = runs[0]

    @property
    def cluster(self) -> Cluster:
        """Where it was submitted to."""
        return Cluster(self.run.state().scheduler["class"])

    @property
    def held(self) -> bool:
        """Whether the first attempt has come to the step in which it is disturbed."""
        return (self.folder / HELD).exists()

    def release(self) -> None:
        """Let a held attempt go on."""
        (self.folder / HOLD).unlink(missing_ok=True)

    def saved(self) -> int:
        """How many checkpoints were written."""
        with suppress(OSError):  # one that is looked at is being replaced
            return max(checkpoints.sequences(self.run.artifacts / "Checkpoint"), default=0)
        return 0

    def lines(self) -> curves.Curves:
        """The metrics it has logged."""
        return curves.read(self.run.metrics)

    def reaches(self, expected: curves.Curves) -> bool:
        """Whether it has logged as much as another run."""
        return curves.reach(self.run.metrics, expected)

    def options(self) -> list[str]:
        """The options of its job."""
        return as_lines(read_settings(self.run.metadata / "mlxpy.yaml").scheduler.option_cmd)

    def look(self) -> list[Seen]:
        """Ask the scheduler what became of it."""
        return look_at_runs(self.folder, [self.run.log_id])

    def do(self, act: Callable[[Sequence[Seen]], Iterator[DoneOrError]]) -> None:
        """Do what `mlxjobs preempt`, say, does to a run. Raises what it yields as an error."""
        for outcome in act(self.look()):
            if isinstance(outcome, MLXJobsError):
                raise outcome

    def follow(self, until: Callable[[RunState], bool]) -> RunState:
        """Wait until a condition holds; return the state at that time.

        Raises:
            Stuck: it runs, but writes no checkpoint.
        """
        signs = news = (-1, -1)
        since = next_look = time.monotonic()
        next_news = since + _NEWS_S
        while True:
            state = self.run.state()
            if until(state):
                return state
            now = time.monotonic()
            seen = (state.sequence, self.saved())
            if now > next_news and seen != news:
                self._tell(state, seen[1])
                news, next_news = seen, now + _NEWS_S
            if seen != signs or state.status not in _RUNNING:
                signs, since = seen, now
            elif now - since > self._patience_s:
                raise Stuck(f"no new checkpoint for {self._patience_s / 60:g} minutes (--timeout)")
            if now >= next_look:
                self.look()
                next_look = time.monotonic() + _LOOK_S
            time.sleep(_POLL_S)

    def _tell(self, state: RunState, saved: int) -> None:
        at = progress(last_lines(self.run.metrics).values())
        words = [str(state.status), counted(saved, "checkpoint"), *([at] if at else [])]
        note(f"{self.folder.name}: {', '.join(words)}")

    def end(self, *, wait: bool = True) -> None:
        """End its jobs, if there are any; wait until they are gone."""
        with suppress(RunError):  # it was not submitted
            runs = look_at_runs(self.folder)
            for outcome in cancel_runs(runs):
                if isinstance(outcome, MLXJobsError):
                    note(str(outcome))
            jobs = [seen.state.job_id for seen in runs if seen.state.job_id is not None]
            with suppress(SchedulerError):
                while wait and jobs and _are_left(self.cluster, jobs):
                    time.sleep(_POLL_S)


_NEEDS_LAUNCH = "a drill needs a program whose main function is decorated with mlxpy.launch"


def _are_left(cluster: Cluster, jobs: Sequence[str]) -> bool:
    return any(not status.state.ended for status in cluster.status(jobs).values())


def _option_cmd(lines: Sequence[str]) -> str:
    value: Any = list(lines)
    return f"+mlxpy.scheduler.option_cmd={command_line.quote_dict(value)}"
