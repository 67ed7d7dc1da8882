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
from mlxjobs.jobs.hand_in import claim, hand_in
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
        path = registry.find(settings.scheduler.name)
        self._cluster = Cluster(registry.locate(path, this_program().folder, program.folder))
        self._parent = settings.log_dir
        self._cluster.check()
        shell_path = settings.scheduler.shell_path
        shell = shell_path.partition(" ")[0]  # "/bin/bash -l"
        if not os.access(shell, os.X_OK) or Path(shell).is_dir() or "\n" in shell_path:
            raise InvalidShellPathError(
                f"scheduler.shell_path: {shell_path!r} is no program; set it in configs/mlxpy.yaml "
                "to a shell that the compute nodes have too, such as /bin/bash"
            )
        # a wrong option is found before anything is created
        self._script(self._parent / "0")

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
                claimed[runs[-1]] = claim(runs[-1], self._cluster, None)
        self._flush_code()
        result = hand_in_all(runs, self._cluster, self._settings.scheduler, claimed=claimed)
        self._report(result, {run.log_id: one.overrides for run, one in zip(runs, sweep, strict=True)})

    def submit_existing(self, run: Run, composed: Composed) -> None:
        """Hand in a run that exists, to go on; print a line.

        Raises:
            JobSubmissionError: it was not taken.
            RunError: it is in a queue, or running.
        """

        def prepare() -> None:
            self._flush_code()
            run.store_configuration(stored.to_yaml(composed), self._settings.to_dict(), composed.secrets)
            replace_file(run.script, self._script(run.path), mode=0o777)
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
            replace_file(run.script, self._script(run.path), mode=0o777)
            noted = {**environment, **provenance.configuration(run)}
            run.record(lambda state: {"event": "created", "facts": about, "frozen": noted}, paint=False)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)  # nobody can know of it yet
            raise
        return run

    def _check(self, run: Run, state: RunState) -> None:
        """Raise if the run is in a queue, or running."""
        if state.status is RunStatus.SUBMITTED and state.job_id is None:
            raise RunError(
                f"run {run.log_id} is being submitted by somebody else at this moment; "
                f"if not: mlxjobs cancel {run.log_id} --logs {run.path.parent}"
            )
        if state.sequence > 1 and not state.status.ended:
            check_startable(run, state, Place(), self._cluster)

    def _script(self, log_dir: Path) -> str:
        run = Run(log_dir)
        settings = self._settings.scheduler
        script = self._program.script
        stem = self._program.target if script is None else script.stem
        job = Job(
            name=job_name(stem, log_dir.name),
            script=run.script,
            stdout=run.stdout,
            stderr=run.stderr,
            work_dir=self._program.work_dir,
            command=[
                *self._launcher(settings.ranks_per_node),
                *self._program.interpreter,
                self._program.target,
                f"+mlxpy.logger.forced_log_id={log_dir.name}",
                f"+mlxpy.logger.parent_log_dir={_setting(str(log_dir.parent))}",
                "+mlxpy.use_scheduler=false",
                "+mlxpy.use_version_manager=false",
                "+mlxpy.interactive_mode=false",
            ],
            option_lines=as_lines(settings.option_cmd),
            shell_path=settings.shell_path,
            shell_config_lines=as_lines(settings.shell_config_cmd),
            cleanup_lines=as_lines(settings.cleanup_cmd),
            env_lines=[*as_lines(settings.env_cmd), *self._python_path()],
            ranks_per_node=settings.ranks_per_node,
        )
        return render_script(job, self._cluster.scheduler)

    def _python_path(self) -> list[str]:
        """Return the line that has python look into the snapshot before it follows an editable install."""
        if not self._program.python_path:
            return []
        first = shlex.quote(os.pathsep.join(self._program.python_path))
        return [f'export PYTHONPATH={first}"${{PYTHONPATH:+:$PYTHONPATH}}"']

    def _launcher(self, ranks_per_node: int) -> list[str]:
        """Return what starts the command several times, where the scheduler does not."""
        if ranks_per_node < 0:
            raise InvalidConfigFileError(
                f"scheduler.ranks_per_node: {ranks_per_node} is negative; it is how many times python is "
                "started on each node of a job, or 0 for once in all"
            )
        if ranks_per_node == 0 or self._cluster.scheduler.launches_ranks:
            return []
        python = self._program.interpreter[0]
        return [python, "-m", "mlxjobs.launch_ranks", self._cluster.path, str(ranks_per_node)]


def _setting(text: str) -> str:
    """Write a value for the command line: as it is where Hydra's grammar needs no quotes."""
    return text if re.fullmatch(r"/[A-Za-z_][A-Za-z0-9_./-]*", text) else command_line.quote_value(text)
