"""The decorator: what one command line asks for, and who does it."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.config import command_line, compose
from mlxjobs.config.secrets import Mask
from mlxjobs.config.settings import NO_SCHEDULER, Project, Settings
from mlxjobs.config.stored import Composed
from mlxjobs.config_dict import missing_values
from mlxjobs.errors import InvalidConfigFileError, RunError
from mlxjobs.launcher.in_process import ONE_LOG_ID, Runner
from mlxjobs.launcher.lost_paths import LostPaths
from mlxjobs.launcher.restart import restart_in_snapshot, take_inherited
from mlxjobs.record.run import Run
from mlxjobs.system.console import errors_told, is_terminal, note

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake
    from mlxjobs.launcher.program import Program


def launch(
    config_path: str = "./configs",
    config_name: str = "config",
    seeding_function: Callable[[Any], Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[[], None]]:
    """Make a function the main program of a Hydra project whose runs are recorded and can be queued.

    Args:
        config_path: folder of the configuration files, relative to the file that defines the
            function. If it or its `config.yaml` is missing, it is created.
        config_name: the primary configuration file, without `.yaml`.
        seeding_function: called with `ctx.config.seed` before each run.

    Returns:
        A decorator. The decorated function takes no arguments; it reads the command line, and
        leaves the program with 1 if the task raised, 2 on wrong usage, 3 if a submission failed.

    Example:
        >>> @launch(config_path="./configs")
        ... def train(ctx: Context) -> None:
        ...     ctx.logger.log_metrics({"loss": 0.1, "epoch": 0}, log_name="train")
        >>> if __name__ == "__main__":
        ...     train()
    """

    def decorate(task: Callable[..., Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            folder = (_file_of(task).parent / config_path).absolute()
            runner = Runner(task, seeding_function)
            with errors_told():
                _Launch(Project(folder, config_name), runner).run(sys.argv[1:])

        return main

    return decorate


def _file_of(task: Callable[..., Any]) -> Path:
    """The file that defines a function; other decorators do not hide it."""
    return Path(inspect.getfile(inspect.unwrap(task))).absolute()


@dataclass(frozen=True)
class _Launch:
    """What one call of a decorated function knows."""

    project: Project
    runner: Runner

    def run(self, argv: Sequence[str]) -> None:
        """Do what the command line asks for."""
        command_line.check_utf8([*sys.argv[:1], *argv, _here()])
        typed, arguments = command_line.split_arguments(argv)
        settings = Settings().updated(typed, "the command line")  # before anything else is done
        if command_line.is_question(arguments):
            self.project.prepare()
            self._compose(settings, arguments, quiet=True, run=lambda composed: None)
            return
        inherited = take_inherited()
        # a job's command line says it all: what the project says today is none of its business
        project = None if command_line.names_run(typed) else self.project.settings(typed)
        settings = settings if project is None else project
        if settings.use_version_manager and inherited is None:
            from mlxjobs.code.own_manager import import_ahead

            import_ahead(settings.version_manager.name)
        run = _existing_run(settings)
        if run is not None:
            self._run_existing(run, typed, project, arguments, inherited)
        elif project is None and inherited is None:
            log_id = settings.logger.forced_log_id
            raise RunError(f"there is no run {log_id} in {settings.log_dir} any more")
        elif settings.use_scheduler:
            self._submit_new(settings, arguments)
        else:
            self._run_new(settings, arguments, inherited)

    # -- a new run --------------------------------------------------------------------------

    def _compose(
        self, settings: Settings, arguments: Sequence[str], *, quiet: bool, run: Callable[..., Any]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="mlxjobs-") as folder:
            scratch = Path(folder)
            # sweepers may leave results there; what Hydra alone writes is kept in the runs anyway
            keep = settings.use_logger and not quiet
            stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
            compose.compose_runs(
                self.runner.task,
                arguments,
                config_dir=self.project.config_dir,
                config_name=self.project.config_name,
                scratch=scratch,
                sweep_dir=settings.log_dir / ".sweeps" / stamp if keep else scratch,
                quiet=quiet,
                run=run,
            )

    def _run_new(
        self, settings: Settings, arguments: Sequence[str], inherited: dict[str, Any] | None
    ) -> None:
        """Run here what the command line composes."""
        # relative paths mean what they meant when the command was typed, wherever the task goes
        settings = settings.anchored()
        if settings.use_version_manager and inherited is None:
            inherited = restart_in_snapshot(
                settings, arguments, lambda: self._find_mistake(settings, arguments)
            )
        facts = {**self._facts(), **(_recorded(settings) if inherited is None else inherited)}
        self.runner.run_composed(
            lambda run: self._compose(settings, arguments, quiet=False, run=run), settings, facts
        )

    def _find_mistake(self, settings: Settings, arguments: Sequence[str]) -> Mistake | None:
        """Compose here, where the snapshot is to compose, as a question costs the user more than that."""
        from mlxjobs.config.rehearsal import find_mistake

        def check(composed: Composed, several: bool) -> None:
            self.runner.check_seed(composed)
            if several and settings.logger.forced_log_id >= 0:
                raise InvalidConfigFileError(ONE_LOG_ID)

        return find_mistake(
            lambda words, run: self._compose(settings, words, quiet=True, run=run), arguments, check
        )

    def _submit_new(self, settings: Settings, arguments: Sequence[str]) -> None:
        from mlxjobs.launcher.program import this_program
        from mlxjobs.launcher.submit import Submission, check_submission

        if not settings.use_logger:
            raise InvalidConfigFileError(
                "use_scheduler=true needs use_logger=true: a job lives in its run directory"
            )
        program = this_program()
        mask = Mask(settings.secrets)
        composed: list[Composed] = []
        # what is wrong is found before anything is asked or made
        self._compose(settings, arguments, quiet=True, run=lambda run: composed.append(mask.hide(run)))
        self._check_composed(settings, composed)
        settings = self._choose_scheduler(settings)
        check_submission(settings, program)
        facts = self._facts()
        for run in composed:
            if run.secrets:
                facts["cmd"] = mask.command(facts["cmd"], run.secrets)
        program = _freeze(settings, program, facts, composed)
        facts["work_dir"] = str(program.work_dir)
        Submission(settings, program, facts).submit_new(composed)

    def _choose_scheduler(self, settings: Settings) -> Settings:
        """Ask for a scheduler where none is set and somebody is there to answer."""
        is_set = settings.scheduler.name not in ("", NO_SCHEDULER)
        if is_set or not (settings.interactive_mode and is_terminal()):
            return settings
        from mlxjobs.cluster.choose import choose_scheduler

        try:
            name = choose_scheduler(self.project.settings_file)
        except EOFError:  # no answer: the error says how to set one
            return settings
        return replace(settings, scheduler=replace(settings.scheduler, name=name))

    def _check_composed(self, settings: Settings, composed: Sequence[Composed]) -> None:
        """Raise if these cannot be submitted; tell which values are missing."""
        if not composed:
            raise RunError("the command line makes no run: is the sweeper one that needs results?")
        if len(composed) > 1 and settings.logger.forced_log_id >= 0:
            raise InvalidConfigFileError(ONE_LOG_ID)
        for run in composed:
            self.runner.check_seed(run)
        missing = {key for run in composed for key in missing_values(run.config)}
        if missing:
            names = ", ".join(sorted(missing))
            note(f"mandatory values are not given, and reading them is an error: {names}")

    # -- an existing run --------------------------------------------------------------------

    def _run_existing(
        self,
        run: Run,
        typed: dict[str, Any],
        project: Settings | None,
        arguments: Sequence[str],
        inherited: dict[str, Any] | None,
    ) -> None:
        from mlxjobs.launcher.existing import load_stored, override_stored

        settings, composed = load_stored(run, typed)
        mask = Mask(settings.secrets)
        if project is not None:
            # where it ran before is no reason to run there again: that is for today's settings to say
            settings = replace(
                settings,
                use_scheduler=project.use_scheduler,
                use_version_manager=project.use_version_manager,
                scheduler=project.scheduler
                if settings.scheduler.name == NO_SCHEDULER
                else settings.scheduler,
            )
        composed, changes = override_stored(run, composed, arguments, mask)
        self.runner.check_seed(composed)
        if settings.use_version_manager and not settings.use_scheduler and inherited is None:
            settings = settings.anchored()
            inherited = restart_in_snapshot(settings, arguments)
        for change in changes:
            note(f"run {run.log_id}: {mask.change(change)}")
        facts = {**self._facts(), **(inherited or {})}
        facts["cmd"] = mask.command(facts["cmd"], composed.secrets)
        if inherited is not None:
            LostPaths(facts["launch_dir"], Path.cwd()).warn([composed.config])
        if settings.use_scheduler:
            self._submit_existing(run, settings, composed, facts)
        else:
            self.runner.attempt(run, composed, settings, facts, changed=bool(arguments))

    def _submit_existing(
        self, run: Run, settings: Settings, composed: Composed, facts: dict[str, Any]
    ) -> None:
        from mlxjobs.launcher.program import this_program
        from mlxjobs.launcher.submit import Submission, check_submission

        program = this_program()
        settings = self._choose_scheduler(settings)
        check_submission(settings, program)  # what is wrong is found before anything is asked or made
        program = _freeze(settings, program, facts, [composed])
        Submission(settings, program, facts).submit_existing(run, composed)

    def _facts(self) -> dict[str, Any]:
        """What `info.yaml` says of this process and its command line; the seed's keys."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container without that user
            user = str(os.getuid())
        return {
            "executable": sys.executable,
            "cmd": shlex.join(sys.argv),
            "current_file_path": str(_file_of(self.runner.task)),
            "process_id": os.getpid(),
            "hostname": os.uname().nodename,
            "user": user,
            "work_dir": str(Path.cwd()),
            "launch_dir": str(Path.cwd()),
            "created": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        }


def _here() -> str:
    """Return the current folder."""
    try:
        return os.getcwd()  # noqa: PTH109 - a str
    except FileNotFoundError as error:
        raise RunError("the current folder was removed, or made anew: go into it again (cd)") from error


def _existing_run(settings: Settings) -> Run | None:
    """Return the run that `forced_log_id` names, if it exists."""
    log_id = settings.logger.forced_log_id
    run = Run(settings.log_dir / str(log_id))
    return run if log_id >= 0 and run.metadata.is_dir() else None


def _recorded(settings: Settings) -> dict[str, Any]:
    """What is installed here, for a run without a version manager; nothing unless it was asked for."""
    if not settings.version_manager.compute_requirements:
        return {}
    from mlxjobs.code.environment import record_environment

    return {"version_manager": record_environment()}


def _freeze(
    settings: Settings, program: Program, facts: dict[str, Any], composed: Sequence[Composed]
) -> Program:
    """Return what jobs are to run: the program, in its snapshot if it is to have one; add to the facts."""
    if not settings.use_version_manager:
        facts |= _recorded(settings)
        return program
    from mlxjobs.launcher.program import freeze_code

    program, facts["version_manager"] = freeze_code(settings, program)
    LostPaths(facts["launch_dir"], program.work_dir).warn(run.config for run in composed)
    return program
