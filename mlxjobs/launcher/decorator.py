"""The decorator: what one command line asks for, and who does it."""

from __future__ import annotations

import binascii
import functools
import getpass
import inspect
import json
import os
import shlex
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.config import command_line, compose, settings
from mlxjobs.config.project import Project
from mlxjobs.config.secrets import Mask, lacking
from mlxjobs.config.stored import Composed
from mlxjobs.config_dict import missing_values
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError, RunError
from mlxjobs.launcher.in_process import ONE_LOG_ID, Runner
from mlxjobs.launcher.lost_paths import LostPaths
from mlxjobs.record.run import Run
from mlxjobs.system.console import flush, is_terminal, note

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake

# carries what is known of a run into the program that is started for it from the snapshot
_SNAPSHOT = "MLXJOBS_SNAPSHOT"


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
            _guard(lambda: _Launch(Project(folder, config_name), runner).run(sys.argv[1:]))

        return main

    return decorate


def _guard(call: Callable[[], None]) -> None:
    """The one place where errors become messages and exit codes."""
    try:
        call()
    except MLXJobsError as error:
        flush()
        note(f"error: {error}")
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        if error.filename is None:
            raise
        # what is wrong with a disk is no fault of the program; a task's own errors never come here
        flush()
        note(f"error: {error.filename}: {error.strerror}")
        raise SystemExit(MLXJobsError.exit_code) from error
    except KeyboardInterrupt as error:
        note("interrupted")
        raise SystemExit(130) from error


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
        command_line.check_text([*sys.argv[:1], *argv, _here()])
        given, arguments = command_line.split_arguments(argv)
        typed = settings.defaults()
        settings.merge(typed, given, "the command line")  # before anything else is done
        if command_line.is_question(arguments):
            self.project.prepare()
            self._compose(typed, arguments, quiet=True, run=lambda composed: None)
            return
        packed = os.environ.pop(_SNAPSHOT, "")
        inherited = json.loads(zlib.decompress(binascii.a2b_base64(packed))) if packed else None
        # a job's command line says it all: what the project says today is none of its business
        project = None if command_line.names_run(given) else self.project.read_settings(given)
        options = typed if project is None else project
        run = _existing_run(options)
        if run is not None:
            self._run_existing(run, given, project, arguments, inherited)
        elif project is None and inherited is None:
            log_id = options["logger"]["forced_log_id"]
            raise RunError(f"there is no run {log_id} in {settings.log_dir(options)} any more")
        elif options["use_scheduler"]:
            self._submit_new(options, arguments)
        else:
            self._run_new(options, arguments, inherited)

    # -- a new run --------------------------------------------------------------------------

    def _compose(
        self, options: dict[str, Any], arguments: Sequence[str], *, quiet: bool, run: Callable[..., Any]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="mlxjobs-") as folder:
            scratch = Path(folder)
            # sweepers may leave results there; what Hydra alone writes is kept in the runs anyway
            keep = options["use_logger"] and not quiet
            stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
            compose.compose_runs(
                self.runner.task,
                arguments,
                config_dir=self.project.config_dir,
                config_name=self.project.config_name,
                scratch=scratch,
                sweep_dir=settings.log_dir(options) / ".sweeps" / stamp if keep else scratch,
                quiet=quiet,
                run=run,
            )

    def _run_new(
        self, options: dict[str, Any], arguments: Sequence[str], inherited: dict[str, Any] | None
    ) -> None:
        """Run here what the command line composes."""
        if options["use_version_manager"] and inherited is None:
            inherited = self._restart_in_snapshot(
                options, arguments, lambda: self._find_mistake(options, arguments)
            )
        # relative paths mean what they meant when the command was typed, wherever the task goes
        options["logger"]["parent_log_dir"] = str(settings.log_dir(options))
        facts = {**self._facts(), **(_recorded(options) if inherited is None else inherited)}
        self.runner.run_composed(
            lambda run: self._compose(options, arguments, quiet=False, run=run), options, facts
        )

    def _find_mistake(self, options: dict[str, Any], arguments: Sequence[str]) -> Mistake | None:
        """Compose here, where the snapshot is to compose, as a question costs the user more than that."""
        from mlxjobs.config.rehearsal import find_mistake

        def check(composed: Composed, several: bool) -> None:
            self.runner.check_seed(composed)
            if several and options["logger"]["forced_log_id"] >= 0:
                raise InvalidConfigFileError(ONE_LOG_ID)

        return find_mistake(
            lambda given, run: self._compose(options, given, quiet=True, run=run), arguments, check
        )

    def _restart_in_snapshot(
        self,
        options: dict[str, Any],
        arguments: Sequence[str],
        find_mistake: Callable[[], Mistake | None] = lambda: None,
    ) -> dict[str, Any]:
        """Become the same program, started from its snapshot; return only if there is none, and the facts."""
        from mlxjobs.code.live_tree import with_python_path
        from mlxjobs.launcher.program import freeze_code, this_program

        here = this_program()
        program, version = freeze_code(options, here, find_mistake)
        # the settings file may be untracked, so the snapshot may lack it: all settings are handed on
        options["logger"]["parent_log_dir"] = str(settings.log_dir(options))
        typed = {"cmd": shlex.join(sys.argv), "launch_dir": str(here.work_dir)}
        inherited = {**typed, "version_manager": version}
        if program == here:
            return inherited
        flush()
        sys.stderr.flush()
        os.chdir(program.work_dir)
        all_settings = f"mlxpy={command_line.quote_dict(options)}"
        command = [*program.interpreter, program.target, all_settings, *arguments]
        environment = with_python_path(program.python_path, os.environ)
        # a variable takes 128 KiB at most, and the requirements of a large environment are more
        packed = binascii.b2a_base64(zlib.compress(json.dumps(inherited).encode()), newline=False).decode()
        os.execve(command[0], command, {**environment, _SNAPSHOT: packed})  # noqa: S606

    def _submit_new(self, options: dict[str, Any], arguments: Sequence[str]) -> None:
        from mlxjobs.launcher.program import freeze_code, this_program
        from mlxjobs.launcher.submit import Submission

        if not options["use_logger"]:
            raise InvalidConfigFileError(
                "use_scheduler=true needs use_logger=true: a job lives in its run directory"
            )
        program = this_program()
        mask = Mask(options["secrets"])
        composed: list[Composed] = []
        # what is wrong is found before anything is asked or made
        self._compose(options, arguments, quiet=True, run=lambda one: composed.append(mask.hide(one)))
        self._check_submission(options, composed)
        self._settle_scheduler(options)
        Submission(options, program, {})
        facts = self._facts()
        for secrets in {id(one): one.secrets for one in composed if one.secrets}.values():
            facts["cmd"] = mask.command(facts["cmd"], secrets)
        if options["use_version_manager"]:
            program, facts["version_manager"] = freeze_code(options, program)
            LostPaths(facts["launch_dir"], program.work_dir).warn(one.config for one in composed)
        else:
            facts |= _recorded(options)
        facts["work_dir"] = str(program.work_dir)
        Submission(options, program, facts).submit_new(composed)

    def _settle_scheduler(self, options: dict[str, Any]) -> None:
        """Ask for a scheduler where none is set and somebody is there to answer."""
        given = options["scheduler"]
        if given["name"] not in ("", settings.NO_SCHEDULER) or not (
            options["interactive_mode"] and is_terminal()
        ):
            return
        from mlxjobs.cluster.choose import choose_scheduler

        with suppress(EOFError):  # no answer: the error says how to set one
            given["name"] = choose_scheduler(self.project.settings_file)

    def _check_submission(self, options: dict[str, Any], composed: Sequence[Composed]) -> None:
        if not composed:
            raise RunError("the command line makes no run: is the sweeper one that needs results?")
        if len(composed) > 1 and options["logger"]["forced_log_id"] >= 0:
            raise InvalidConfigFileError(ONE_LOG_ID)
        for one in composed:
            self.runner.check_seed(one)
        missing = {key for one in composed for key in missing_values(one.config)}
        if missing:
            names = ", ".join(sorted(missing))
            note(f"mandatory values are not given, and reading them is an error: {names}")

    # -- an existing run --------------------------------------------------------------------

    def _run_existing(
        self,
        run: Run,
        given: dict[str, Any],
        project: dict[str, Any] | None,
        arguments: Sequence[str],
        inherited: dict[str, Any] | None,
    ) -> None:
        from mlxjobs.launcher.existing import stored

        options, composed = stored(run, given)
        mask = Mask(options["secrets"])
        if project is not None:
            # where it ran before is no reason to run there again: that is for today's settings to say
            options.update({key: project[key] for key in ("use_scheduler", "use_version_manager")})
            if options["scheduler"]["name"] == settings.NO_SCHEDULER:
                options["scheduler"] = project["scheduler"]
        if any(argument.startswith("-") for argument in arguments):
            raise InvalidConfigFileError(
                "an existing run keeps its composition: with forced_log_id give only KEY=VALUE overrides"
            )
        changes: list[str] = []
        if arguments:
            composed, changes = compose.override(composed, arguments)
        composed = mask.hide(composed)
        gone = lacking(composed)
        if gone:
            raise RunError(
                f"run {run.log_id}: {run.metadata / '.secrets.json'} lacks what was given for "
                f"{', '.join(gone)}: give it again, as in {gone[0]}=VALUE"
            )
        self.runner.check_seed(composed)
        if options["use_version_manager"] and not options["use_scheduler"] and inherited is None:
            inherited = self._restart_in_snapshot(options, arguments)
        for change in changes:
            note(f"run {run.log_id}: {mask.change(change)}")
        facts = {**self._facts(), **(inherited or {})}
        facts["cmd"] = mask.command(facts["cmd"], composed.secrets)
        if inherited is not None:
            LostPaths(facts["launch_dir"], Path.cwd()).warn([composed.config])
        if options["use_scheduler"]:
            self._submit_existing(run, options, composed, facts)
        else:
            self.runner.attempt(run, composed, options, facts, changed=bool(arguments))

    def _submit_existing(
        self, run: Run, options: dict[str, Any], composed: Composed, facts: dict[str, Any]
    ) -> None:
        from mlxjobs.launcher.program import freeze_code, this_program
        from mlxjobs.launcher.submit import Submission

        program = this_program()
        self._settle_scheduler(options)
        Submission(options, program, {})  # what is wrong is found before anything is asked or made
        if options["use_version_manager"]:
            program, facts["version_manager"] = freeze_code(options, program)
            LostPaths(facts["launch_dir"], program.work_dir).warn([composed.config])
        else:
            facts |= _recorded(options)
        Submission(options, program, facts).submit_existing(run, composed)

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


def _existing_run(options: dict[str, Any]) -> Run | None:
    """Return the run that `forced_log_id` names, if it exists."""
    log_id = options["logger"]["forced_log_id"]
    run = Run(settings.log_dir(options) / str(log_id))
    return run if log_id >= 0 and run.metadata.is_dir() else None


def _recorded(options: dict[str, Any]) -> dict[str, Any]:
    """What is installed here, for a run without a version manager; nothing unless it was asked for."""
    if not options["version_manager"]["compute_requirements"]:
        return {}
    from mlxjobs.code.environment import record

    return {"version_manager": record()}
