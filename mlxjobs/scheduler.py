"""The contract between the engine and a cluster: all that either may know of the other.

A scheduler is a class that says what to run and what the answer means; the engine runs it. Its methods are
pure: they take and return strings, open no file, run no command and read no environment but what they are
given. So each can be tested on recorded output.

`Scheduler` comes first: to the line under its sixth method it is all that a first scheduler needs, and what
follows is optional, a part under each heading. The words in which it answers come after it: `JobState`,
`JobStatus`, `Here`; then `Job`, of which a script is made, and `Fate`.
"""

from __future__ import annotations

import re
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import ClassVar

from mlxjobs.errors import InvalidConfigFileError

TASK = "@TASK@"
"""Stands for the number of an array's task in the paths of its output files."""

EX_TEMPFAIL = 75
"""The exit code of an attempt that leaves to come back (sysexits.h: "the user is invited to retry later")."""


class Scheduler(ABC):
    """A cluster's batch system. Subclass it to add one; `docs/schedulers.md` shows a whole one.

    Attributes:
        commands: programs that must be on the PATH to submit.
        environment: names of variables it sets inside its jobs; one that ends with "*" stands for
            all that begin so. They are kept out of a job that is submitted from inside another.
    """

    commands: ClassVar[tuple[str, ...]]
    environment: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def submit_command(self, script: Path) -> list[str]:
        """Return the command that hands in a script."""

    @abstractmethod
    def parse_submission(self, output: str) -> str:
        """Return the job's id from the output of a submission that succeeded.

        Raises:
            ValueError: there is none in it.
        """

    @abstractmethod
    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """Return the command that asks for the state of these jobs, all in one call."""

    @abstractmethod
    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Return what it said; a job that the scheduler does not know (any more) is left out."""

    @abstractmethod
    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """Return the command that ends these jobs for good."""

    @abstractmethod
    def here(self, env: Mapping[str, str]) -> Here | None:
        """Return the job that a process with this environment runs in; None: in none."""

    # ==== That is all that a first scheduler needs. What follows has defaults: say what yours can do. ====

    # -- the script, and the scheduler's options in it ---------------------------------------------

    directive: ClassVar[str] = ""
    """What an option's line in the script begins with: "#SBATCH"; "": it reads no options there."""
    template: ClassVar[str] = "job.sh"
    """The file that makes the script: beside the module of the class that names it, or in `templates/`."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Its short options and their long forms: {"-J": "--job-name"}."""

    def options(self, job: Job) -> list[str]:
        """Return our own options for this job, one a line, without the directive."""
        return []

    def time_limit_option(self, seconds: int) -> str | None:
        """Return the option that ends a job after so many seconds, or a little later; None: there is none."""
        return None

    def can_name(self, path: Path) -> bool:
        """Whether an option can name this output file; if not, the script opens it itself."""
        return "\n" not in str(path)

    def names(self, path: Path) -> bool:
        """Whether our options name this output file, of a task of an array too."""
        return (
            bool(self.directive) and self.can_name(path) and (TASK not in str(path) or bool(self.array_index))
        )

    def option_name(self, line: str) -> str:
        """Return the long name of the option that a line sets: `-J x` -> `--job-name`."""
        name = re.split(r"[=\s]", line.strip(), maxsplit=1)[0]
        if not name.startswith("--") and len(name) > 2:
            name = name[:2]  # -n4
        return self.aliases.get(name, name)

    def directives(self, job: Job) -> list[str]:
        """Return the script's option lines, directive included; the user's win over ours.

        Raises:
            InvalidConfigFileError: an entry of `option_cmd` holds several options, or none.
        """
        if not self.directive:
            if job.option_lines:
                name = type(self).__name__
                raise InvalidConfigFileError(f"scheduler.option_cmd: {name} reads no options from a script")
            return []
        for line in job.option_lines:
            _check_option(line)
        theirs = {self.option_name(line) for line in job.option_lines}
        array = [self.array_option(job.tasks)] if job.tasks else []
        ours = [line for line in self.options(job) if self.option_name(line) not in theirs]
        ours = [line.replace(TASK, self.array_index) for line in ours]
        return [f"{self.directive} {line}" for line in (*ours, *job.option_lines, *array)]

    # -- being warned, and coming back -------------------------------------------------------------

    warning_signals: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    """What it may send to a job before it ends it."""
    reserved_exit_codes: ClassVar[tuple[int, ...]] = ()
    """Exit codes, beside `requeue_exit_code`, that tell it more than that a job failed."""

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """Return what will become of the job `here`, given its status after a signal came."""
        return Fate.UNKNOWN

    def requeues_exit_after_s(self, status: JobStatus | None) -> float | None:
        """Return how long a job must have run so that leaving with `requeue_exit_code` brings it back.

        Args:
            status: what the scheduler says of the job; None: it could not be asked.

        Returns:
            Seconds; None: an exit code brings nothing back.
        """
        return None

    def requeue_exit_code(self) -> int:
        """Return the exit code of an attempt that leaves to come back: never 0, which would be a success."""
        return EX_TEMPFAIL

    def requeue_command(self, job_id: str) -> list[str] | None:
        """Return the command that stops a job and starts it again later; None: there is none."""
        return None

    def resubmit_command(self, script: Path, after: str) -> list[str] | None:
        """Return the command that hands in a script, to start when the job `after` is over.

        It serves where `requeue_command` is None. None: jobs cannot wait for one another.
        """
        return None

    def preempt_command(self, job_id: str) -> list[str] | None:
        """Return a command that makes a running job checkpoint and come back; None: there is none."""
        return None

    # -- a submission that failed: did it go through, may it be tried again? -----------------------

    def is_full(self, words: str) -> bool:
        """Whether a submission failed with these words for lack of room: fewer jobs, or later, may do."""
        return False

    def may_have_submitted(self, words: str) -> bool:
        """Whether a submission that failed with these words may have gone through all the same."""
        return False

    def find_command(self) -> list[str] | None:
        """Return a command that lists this user's jobs with their scripts; None: there is none."""
        return None

    def parse_found(self, output: str, script: Path) -> list[str]:
        """Return the ids of the jobs that were made of this script, newest last; an array has one."""
        return []

    # -- jobs that are looked for, and jobs that have ended ----------------------------------------

    own_queues: ClassVar[bool] = False
    """Whether each user has a queue on each machine, as of task spooler: a job is known there alone."""

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """Return a command that asks for jobs which `status_command` has forgotten; None: there is none."""
        return None

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """Return what the history command said."""
        return self.parse_status(output)

    def earlier_command(self, job_id: str) -> list[str] | None:
        """Return a command that says how each run of a job ended, where one can; None: there is none."""
        return None

    def parse_earlier(self, output: str) -> list[JobStatus]:
        """Return how they ended, oldest first; the last may be the run of now."""
        return []

    # -- arrays: many runs in one submission -------------------------------------------------------

    array_variable: ClassVar[str] = ""
    """The variable that holds a task's number in an array's job; "": it has no arrays."""
    array_index: ClassVar[str] = ""
    """What stands for that number in an output file's path: "%a"; "": nothing does: the script opens it."""

    def array_option(self, tasks: int) -> str:
        """Return the option that makes a script an array of that many tasks, numbered from 1."""
        raise NotImplementedError

    def parse_array(self, output: str, tasks: int) -> list[str]:
        """Return the ids of an array's jobs, in the order of their numbers, from what its submission said.

        Raises:
            ValueError: they are not in it.
        """
        return self.task_ids(self.parse_submission(output), tasks)

    def task_ids(self, array_id: str, tasks: int) -> list[str]:
        """Return the ids of the jobs of an array, where they follow from the array's own."""
        return [f"{array_id}_{number}" for number in range(1, tasks + 1)]

    def parse_found_array(self, output: str, script: Path, tasks: int) -> list[str]:
        """Return the ids of the jobs of the array that was made of this script; [] if there is none."""
        arrays = self.parse_found(output, script)
        return self.task_ids(arrays[-1], tasks) if arrays else []

    def max_array_command(self) -> list[str] | None:
        """Return a command that tells how large an array may be; None: there is none."""
        return None

    def parse_max_array(self, output: str) -> int | None:
        """Return how many tasks an array may have, numbered from 1; None: it does not say."""
        return None

    # -- hosts, and several ranks in one job -------------------------------------------------------

    node_file: ClassVar[str] = ""
    """The variable that holds the path of a file of the job's hosts; "": there is none.

    It has a line for each host or slot, which begins with the host's name.
    """
    remote_shell: ClassVar[tuple[str, ...]] = ("ssh", "-o", "BatchMode=yes")
    """The command that executes another one on a host of the job, given the host and the command in one word.

    It hands on its input and the exit code.
    """
    launches_ranks: ClassVar[bool] = False
    """Whether the template starts several ranks by a launcher of the scheduler's own (srun).

    It is given what `options` makes of `ranks_per_node`. If not, we start them by `remote_shell`.
    """
    submitit: ClassVar[str] = "mlxjobs"
    """Which of submitit's job environments describes its jobs; "mlxjobs" is made of this class."""

    def hosts(self, env: Mapping[str, str], read: Callable[[str], str]) -> list[str]:
        """Return the names of the hosts of the job that a process with this environment runs in.

        Args:
            env: the environment.
            read: returns the text of the file at a path.

        Returns:
            The names, which may come more than once; [] if the scheduler does not say.
        """
        path = env.get(self.node_file) if self.node_file else None
        return [line.split()[0] for line in read(path).splitlines() if line.strip()] if path else []


# -- the words in which a scheduler answers, and a job is described ------------------------------


_CLOCKS_DIFFER = timedelta(minutes=5)


class JobState(Enum):
    """What a scheduler says of a job, in common words."""

    PENDING = "pending"
    RUNNING = "running"
    ENDING = "ending"  # being stopped, or cleaned up after
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time limit"
    NODE_FAIL = "node failure"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTED = "preempted"  # and not back in the queue
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether the job is over and will not run again by itself."""
        return self not in (JobState.PENDING, JobState.RUNNING, JobState.ENDING, JobState.UNKNOWN)


class Fate(Enum):
    """What will become of a job that has just received a signal."""

    RUNS_ON = "it was a warning: nothing ends the job yet"
    REQUEUED = "the scheduler stops it and starts it again"
    TIME_LIMIT = "its time is over: it is stopped, and lost unless it is requeued"
    CANCELLED = "it is stopped for good"
    UNKNOWN = "the scheduler did not say"


@dataclass(frozen=True)
class JobStatus:
    """A scheduler's answer about one job.

    Attributes:
        state: in common words.
        word: in the scheduler's own.
        reason: its own words for why, or "".
        restarts: how often it was started again; None if the scheduler does not say.
        submitted: when it was handed in, to tell it from an older job of the same id.
        job_id: its id now, where the scheduler started it again under a new one; else its own, or "".
        cause: why the scheduler did so, in its own words.
        ends: when its time is over, if it runs and the scheduler says so.
        requeues_exit: whether it would be started again if it left with `requeue_exit_code`.
        ended: when it ended.
        memory: bytes that it used and bytes that it might use, if the scheduler says both.
    """

    state: JobState
    word: str
    reason: str = ""
    restarts: int | None = None
    submitted: datetime | None = None
    job_id: str = ""
    cause: str = ""
    ends: datetime | None = None
    requeues_exit: bool = False
    ended: datetime | None = None
    memory: tuple[int, int] | None = None

    def is_of(self, submitted: str | None) -> bool:
        """Whether this can be the job that was handed in at that time (ISO 8601 with offset).

        A scheduler that was set up anew counts from 1 again, and its accounting may still know an
        older job of the same id. Clocks of two machines may differ by minutes.
        """
        if self.submitted is None or submitted is None:
            return True
        return self.submitted > datetime.fromisoformat(submitted) - _CLOCKS_DIFFER


def in_zone(moment: datetime) -> datetime:
    """Give a scheduler's local time its zone: where an hour comes twice, as summer ends, the later one.

    An earlier one would make a job one that was handed in before its run was (`JobStatus.is_of`).
    """
    return moment.replace(fold=1).astimezone()


def exit_words(code: int) -> str:
    """Say what an exit code means, as a shell gives it: `exit code 3`; for 137, `killed by SIGKILL`."""
    try:
        return f"killed by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"exit code {code}"


@dataclass(frozen=True)
class Here:
    """The job that this process runs in.

    Attributes:
        job_id: as the scheduler's commands take it.
        restarts: how often the job was started again before.
        rank: this task's number among the job's tasks.
        world_size: how many tasks the job has.
        first_job_id: the id under which it was submitted, where a restart gives new ones; else "".
    """

    job_id: str
    restarts: int = 0
    rank: int = 0
    world_size: int = 1
    first_job_id: str = ""


@dataclass(frozen=True)
class Job:
    """What a script is made of.

    Attributes:
        name: the job's name in the queue.
        script: where the script will be.
        stdout: where the job's output goes.
        stderr: where its errors go.
        work_dir: where the command runs.
        command: the program and its arguments.
        option_lines: the user's options for the scheduler.
        shell_path: the script's interpreter.
        shell_config_lines: the user's lines that prepare the shell.
        cleanup_lines: the user's lines that clean the environment.
        env_lines: the user's lines that make the program's environment.
        tasks: for an array, how many jobs it makes, numbered from 1; `stdout` and `stderr` then hold
            `TASK` where the number belongs. 0: it is not an array.
        ranks_per_node: how many times to start the command on each of its nodes. 0: as the scheduler does.
    """

    name: str
    script: Path
    stdout: Path
    stderr: Path
    work_dir: Path
    command: Sequence[str]
    option_lines: Sequence[str] = ()
    shell_path: str = "/bin/bash"
    shell_config_lines: Sequence[str] = ()
    cleanup_lines: Sequence[str] = ()
    env_lines: Sequence[str] = ()
    tasks: int = 0
    ranks_per_node: int = 0


def _check_option(line: str) -> None:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidConfigFileError(f"scheduler.option_cmd: {line!r}: {error}") from error
    if not words or not words[0].startswith("-"):
        raise InvalidConfigFileError(
            f"scheduler.option_cmd: {line!r} is not an option: it does not begin with '-'"
        )
    more = [word for word in words[1:] if re.match(r"--?[A-Za-z]", word)]
    if more:
        raise InvalidConfigFileError(
            f"scheduler.option_cmd: {line!r} holds several options; write them as a list: "
            f"option_cmd: {_as_list(words)}"
        )


def _as_list(words: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word) or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines
