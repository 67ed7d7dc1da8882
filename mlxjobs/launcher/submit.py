"""The login node's part: a run directory, a script and a job for each run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlxjobs.cluster import registry
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.cluster.script import job_name, render_script
from mlxjobs.code import flushing, provenance
from mlxjobs.config import command_line, stored
from mlxjobs.config.settings import Settings, as_lines
from mlxjobs.config.stored import Composed
from mlxjobs.errors import InvalidConfigFileError, InvalidShellPathError, RunError
from mlxjobs.jobs.arrays import HandedIn, hand_in_all
from mlxjobs.jobs.hand_in import claim_submission, hand_in
from mlxjobs.jobs.startable import Place, check_startable
from mlxjobs.launcher.program import Program, this_program
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.log_dir import in_ranges
from mlxjobs.record.run import Run
from mlxjobs.scheduler import Job
from mlxjobs.system.console import note, say
from mlxjobs.system.files import flushed_together, replace_file


class Submission:
    """Submits the runs of one command line.

    Args:
        settings: those in force.
        program: what a job runs.
        facts: what `info.yaml` says of the command line.

    Raises:
        MLXJobsError: nothing could be submitted; nothing was created.
    """

    def __init__(self, settings: Settings, program: Program, facts: dict[str, Any]) -> None:
        self._settings = settings
        self._program = program
        self._facts = facts
        self._cluster = check_submission(settings, program)
        self._parent = settings.log_dir

    def submit_new(self, sweep: Sequence[Composed]) -> None:
        """Make a run of each configuration and hand all of them in; print a line for each.

        Raises:
            JobSubmissionError: not all were taken; what became of each is recorded and printed.
        """
        environment = provenance.environment(self._parent)
        with flushed_together(self._parent) if len(sweep) > 1 else nullcontext():
            runs: list[Run] = []
            claimed: dict[Run, int] = {}
            for composed in sweep:
                runs.append(self._create(composed, environment, runs[-1] if runs else None))
                # at once, so that a run says what becomes of it if the others cannot be made
                claimed[runs[-1]] = claim_submission(runs[-1], self._cluster, None)
        self._flush_code()
        result = hand_in_all(runs, self._cluster, self._settings.scheduler, claimed=claimed)
        self._report(
            result, {run.log_id: composed.overrides for run, composed in zip(runs, sweep, strict=True)}
        )

    def submit_existing(self, run: Run, composed: Composed) -> None:
        """Hand in a run that exists, to go on; print a line.

        Raises:
            JobSubmissionError: it was not taken.
            RunError: it is in a queue, or running.
        """

        def prepare() -> None:
            self._flush_code()
            run.store_configuration(stored.to_yaml(composed), self._settings.to_dict(), composed.secrets)
            self._write_script(run)
            code = {"version_manager": self._facts.get("version_manager")}
            facts = {**code, "work_dir": str(self._program.work_dir)}
            provenance.record_change(run, provenance.environment(self._parent), facts)

        job_id = hand_in(run, self._cluster, check=self._check, prepare=prepare)
        self._report(HandedIn({run.log_id: job_id}), {run.log_id: composed.overrides})

    def _flush_code(self) -> None:
        """Have the frozen code on the disk before a job that may outlive a power failure needs it."""
        snapshot = (self._facts.get("version_manager") or {}).get("snapshot")
        if snapshot:
            flushing.finish(Path(snapshot))

    def _report(self, result: HandedIn, overrides: Mapping[int, Sequence[str]]) -> None:
        lines = [
            f"run {log_id}: job {job_id}  {' '.join(overrides[log_id])}".rstrip()
            for log_id, job_id in result.jobs.items()
        ]
        look = f"look with: mlxjobs ls {self._parent}"
        say("\n".join([*lines, f"{len(lines)} submitted to {self._cluster.name}; {look}"]))
        if result.waiting:
            note(
                f"runs {in_ranges(result.waiting)} wait, as the queue has no room: each run that ends "
                f"hands in more, and so does: mlxjobs requeue RUN... --logs {self._parent}"
            )
        if result.failed:
            error = next(iter(result.failed.values()))
            again = f"submit again: mlxjobs requeue {in_ranges(result.failed)} --logs {self._parent}"
            raise type(error)(f"{error}\n{len(result.failed)} refused, {again}") from error

    def _create(self, composed: Composed, environment: dict[str, Any], after: Run | None) -> Run:
        """Make a new run's directory, whole or not at all."""
        run = Run.create(self._parent, self._settings.logger.forced_log_id, after=after)
        about = {**self._facts, "log_dir": str(run.path), "log_id": run.log_id}
        try:
            run.write_yaml("config", stored.plain_config(composed.config))
            run.store_configuration(stored.to_yaml(composed), self._settings.to_dict(), composed.secrets)
            self._write_script(run)
            noted = {**environment, **provenance.configuration(run)}
            run.record(lambda state: {"event": "created", "facts": about, "frozen": noted}, paint=False)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)  # nobody can know of it yet
            raise
        return run

    def _write_script(self, run: Run) -> None:
        text = job_script(run, self._settings, self._program, self._cluster)
        replace_file(run.script, text, mode=0o777)

    def _check(self, run: Run, state: RunState) -> None:
        """Raise if the run is in a queue, or running."""
        if state.status is RunStatus.SUBMITTED and state.job_id is None:
            raise RunError(
                f"run {run.log_id} is being submitted by somebody else at this moment; "
                f"if not: mlxjobs cancel {run.log_id} --logs {run.path.parent}"
            )
        if state.sequence > 1 and not state.status.ended:
            check_startable(run, state, Place(), self._cluster)


def check_submission(settings: Settings, program: Program) -> Cluster:
    """Return the cluster that a program is to be submitted to.

    Raises:
        MLXJobsError: nothing could be submitted: no such scheduler, or a setting of its is wrong.
    """
    path = registry.find(settings.scheduler.name)
    cluster = Cluster(registry.locate(path, this_program().folder, program.folder))
    cluster.check()
    shell_path = settings.scheduler.shell_path
    shell = shell_path.partition(" ")[0]  # "/bin/bash -l"
    if not os.access(shell, os.X_OK) or Path(shell).is_dir() or "\n" in shell_path:
        raise InvalidShellPathError(
            f"scheduler.shell_path: {shell_path!r} is not a program; set it in configs/mlxpy.yaml "
            "to a shell that the compute nodes have too, such as /bin/bash"
        )
    ranks = settings.scheduler.ranks_per_node
    if ranks < 0:
        raise InvalidConfigFileError(
            f"scheduler.ranks_per_node: {ranks} is negative; it is how many times python is "
            "started on each node of a job, or 0 for once in all"
        )
    # a wrong option is found before anything is created
    job_script(Run(settings.log_dir / "0"), settings, program, cluster)
    return cluster


def job_script(run: Run, settings: Settings, program: Program, cluster: Cluster) -> str:
    """Return the script that starts a run as a job."""
    given = settings.scheduler
    stem = program.target if program.script is None else program.script.stem
    job = Job(
        name=job_name(stem, run.path.name),
        script=run.script,
        stdout=run.stdout,
        stderr=run.stderr,
        work_dir=program.work_dir,
        command=_command(run, given.ranks_per_node, program, cluster),
        option_lines=as_lines(given.option_cmd),
        shell_path=given.shell_path,
        shell_config_lines=as_lines(given.shell_config_cmd),
        cleanup_lines=as_lines(given.cleanup_cmd),
        env_lines=[*as_lines(given.env_cmd), *_python_path(program)],
        ranks_per_node=given.ranks_per_node,
    )
    return render_script(job, cluster.scheduler)


def _command(run: Run, ranks_per_node: int, program: Program, cluster: Cluster) -> list[str]:
    """Return the command line of a job, with what starts it several times where the scheduler does not."""
    start = [*program.interpreter, program.target]
    if ranks_per_node > 0 and not cluster.scheduler.launches_ranks:
        python = program.interpreter[0]
        start = [python, "-m", "mlxjobs.launch_ranks", cluster.path, str(ranks_per_node), *start]
    return [
        *start,
        f"+mlxpy.logger.forced_log_id={run.path.name}",
        f"+mlxpy.logger.parent_log_dir={_setting(str(run.path.parent))}",
        "+mlxpy.use_scheduler=false",
        "+mlxpy.use_version_manager=false",
        "+mlxpy.interactive_mode=false",
    ]


def _python_path(program: Program) -> list[str]:
    """Return the line that has python look into the snapshot before it follows an editable install."""
    if not program.python_path:
        return []
    first = shlex.quote(os.pathsep.join(program.python_path))
    return [f'export PYTHONPATH={first}"${{PYTHONPATH:+:$PYTHONPATH}}"']


def _setting(text: str) -> str:
    """Write a value for the command line: as it is where Hydra's grammar needs no quotes."""
    return text if re.fullmatch(r"/[A-Za-z_][A-Za-z0-9_./-]*", text) else command_line.quote_value(text)
