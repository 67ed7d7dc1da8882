"""A scheduler put to work: the engine's five verbs, run by the commands that the scheduler names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlxjobs.cluster import registry
from mlxjobs.errors import (
    InvalidSchedulerError,
    JobSubmissionError,
    QueueFullError,
    SchedulerError,
    UnknownSubmissionError,
)
from mlxjobs.scheduler import JobState, JobStatus
from mlxjobs.system import shell

# sbatch alone sleeps for two minutes when the queue is full
_SUBMIT_S = 180.0
_ANSWER_S = 60.0
# how long the start of a run may wait for what is good to know, and no more
_BONUS_S = 10.0
# how long we look for a job of which nobody knows whether it was taken
_SEARCH_S = 60.0
# the largest array where the site does not say: Slurm's default
_MAX_ARRAY = 1000
# how many ids one command is given: the kernel takes 128 KiB for an argument (execve(2))
_PORTION = 1000

_Ids = TypeVar("_Ids", str, list[str])  # of a job, or of the jobs of an array


class Cluster:
    """The cluster behind one scheduler.

    Args:
        path: where the scheduler is imported from, as `registry.find` or `registry.locate` returns it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.scheduler = registry.load(path)

    @property
    def name(self) -> str:
        """The scheduler's class, for people."""
        return type(self.scheduler).__name__

    def check(self) -> None:
        """Raise unless the scheduler can be used here, before anything is made.

        Raises:
            JobSubmissionError: this machine lacks its commands.
            InvalidSchedulerError: it is somebody's own, and its commands cannot be run.
        """
        script, ids = Path("/logs/1/script.sh"), ("1", "2")
        try:  # it promises that these do nothing
            self.scheduler.submit_command(script)
            self.scheduler.status_command(ids)
            self.scheduler.cancel_command(ids)
            self.scheduler.here({})
        except SchedulerError as error:
            raise InvalidSchedulerError(str(error)) from error
        lacking = shell.missing(self.scheduler.commands)
        if lacking:
            raise JobSubmissionError(
                f"{self.name} needs {', '.join(lacking)}, not found on the PATH: "
                "is this a login node of the cluster, and is its module loaded?"
            )

    def submit(self, script: Path, known: Collection[str] = (), after: str | None = None) -> str:
        """Hand a script to the scheduler, once.

        Args:
            script: the job's script.
            known: ids of jobs that were made of this script before.
            after: a job whose end the new one is to wait for, however it ends.

        Returns:
            The id of the job.

        Raises:
            JobSubmissionError: the scheduler did not take it; its own words are in the message.
        """
        command = self.scheduler.submit_command(script)
        if after is not None:
            command = self.scheduler.resubmit_command(script, after) or []
        if not command:
            raise JobSubmissionError(f"{self.name} cannot submit a job that waits for another one")

        def found(output: str) -> str | None:
            new = [job_id for job_id in self.scheduler.parse_found(output, script) if job_id not in known]
            return new[-1] if new else None

        return self._submit(command, self.scheduler.parse_submission, found)

    def submit_array(self, script: Path, tasks: int) -> list[str]:
        """Hand the script of an array to the scheduler, once.

        Args:
            script: the array's script, of which no job was made before.
            tasks: how many tasks it has.

        Returns:
            The ids of its jobs, in the order of their numbers.

        Raises:
            JobSubmissionError: as `submit`.
        """
        return self._submit(
            self.scheduler.submit_command(script),
            lambda output: self.scheduler.parse_array(output, tasks),
            lambda output: self.scheduler.parse_found_array(output, script, tasks) or None,
        )

    def max_array(self) -> int:
        """Return how many runs may be handed in together; 1 where there are no arrays."""
        if not self.scheduler.array_variable:
            return 1
        limit, command = None, self.scheduler.max_array_command()
        if command is not None:
            with suppress(SchedulerError):
                limit = self.scheduler.parse_max_array(self._run(command).out)
        return max(1, _MAX_ARRAY if limit is None else limit)

    def _submit(
        self, command: Sequence[str], parse: Callable[[str], _Ids], found: Callable[[str], _Ids | None]
    ) -> _Ids:
        try:
            result = shell.run(
                command,
                timeout_s=_SUBMIT_S,
                env=registry.clean_environment(os.environ, self.scheduler.environment),
            )
        except shell.CommandTimeout as error:
            return self._look_for(found, str(error))
        except shell.CommandMissing as error:
            raise JobSubmissionError(str(error)) from error
        if result.code != 0:
            words = f"{command[0]}: {result.words()}"
            if result.code < 0 or self.scheduler.may_have_submitted(result.words()):  # < 0: it was killed
                return self._look_for(found, words)
            full = self.scheduler.is_full(result.words())
            raise (QueueFullError if full else JobSubmissionError)(f"the scheduler refused the job: {words}")
        said = f"{command[0]} said {result.out.strip()!r}"
        try:
            return parse(result.out)
        except ValueError:
            return self._look_for(found, f"{said}, no job id")
        except SchedulerError as error:
            return self._look_for(found, f"{said}; {error}")

    def _look_for(self, found: Callable[[str], _Ids | None], words: str) -> _Ids:
        """Find the job of a submission that failed and yet may have gone through."""
        command = self.scheduler.find_command()
        end, answered = time.monotonic() + _SEARCH_S, False
        while command is not None:  # to the end: a controller that is busy takes a job late
            with suppress(SchedulerError):
                result = shell.run(command, timeout_s=_ANSWER_S)
                answered = result.code == 0
                job = found(result.out) if answered else None
                if job is not None:
                    return job
            if time.monotonic() >= end:
                break
            time.sleep(1)
        if answered:
            raise JobSubmissionError(f"the scheduler did not take the job: {words}")
        raise UnknownSubmissionError(
            f"nobody knows whether the job was taken: {words}. If it was, the run starts all the same; "
            "look with `mlxjobs ls` once the scheduler answers, before you submit it again"
        )

    def status(self, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Ask for the state of a thousand jobs in one call, or in two if some are long gone.

        Returns:
            What is known; jobs that nobody remembers are left out.

        Raises:
            SchedulerError: the scheduler did not answer.
        """
        if not job_ids:
            return {}
        found: dict[str, JobStatus] = {}
        for ids in _portions(job_ids):
            found.update(self._ask(self.scheduler.status_command(ids), self.scheduler.parse_status))
        # accounting is a bonus: it may be switched off, slow or down; it alone knows how much memory was used
        for ids in _portions([job_id for job_id in job_ids if _lacks(found.get(job_id))]):
            command = self.scheduler.history_command(ids)
            with suppress(SchedulerError):
                if command is not None:
                    for job_id, status in self._ask(command, self.scheduler.parse_history).items():
                        known = found.get(job_id)
                        found[job_id] = status if known is None else replace(known, memory=status.memory)
        return found

    def earlier(self, job_id: str) -> list[JobStatus]:
        """Say how each run of a job ended that was started again, oldest first; nothing if nobody knows."""
        command = self.scheduler.earlier_command(job_id)
        if command is None:
            return []
        try:
            result = shell.run(command, timeout_s=_BONUS_S)
            return self.scheduler.parse_earlier(result.out) if result.code == 0 else []
        except (SchedulerError, ValueError):
            return []

    def _ask(
        self, command: Sequence[str], parse: Callable[[str], dict[str, JobStatus]]
    ) -> dict[str, JobStatus]:
        out = self._run(command).out
        try:
            return parse(out)
        except ValueError as error:
            raise SchedulerError(
                f"{self.name} does not understand the answer of {command[0]}: {error}"
            ) from error

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End these jobs for good. Raises `SchedulerError` if the scheduler refuses."""
        for ids in _portions(job_ids):
            self._run(self.scheduler.cancel_command(ids))

    def requeue(self, job_id: str) -> None:
        """Stop a job and let it start again. Raises `SchedulerError` if that cannot be."""
        command = self.scheduler.requeue_command(job_id)
        if command is None:
            raise SchedulerError(f"{self.name} cannot requeue a job: submit the run again")
        self._run(command)

    def preempt(self, job_id: str) -> None:
        """Make a job checkpoint and come back. Raises `SchedulerError` if that cannot be."""
        command = self.scheduler.preempt_command(job_id)
        if command is None:
            raise SchedulerError(f"{self.name} has no command that preempts a job")
        self._run(command)

    def _run(self, command: Sequence[str]) -> shell.Result:
        result = shell.run(command, timeout_s=_ANSWER_S)
        if result.code != 0:
            in_shell = "-c" in command[1:2]  # what a shell calls says its own name
            raise SchedulerError(result.words() if in_shell else f"{' '.join(command[:2])}: {result.words()}")
        return result


def _lacks(status: JobStatus | None) -> bool:
    return status is None or (status.state is JobState.OUT_OF_MEMORY and status.memory is None)


def _portions(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(job_ids), _PORTION):
        yield job_ids[first : first + _PORTION]
