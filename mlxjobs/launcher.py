"""The decorator: what one command line asks for, and who does it."""

from __future__ import annotations

import functools
import getpass
import inspect
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxjobs import adapters, command_line, compose, settings
from mlxjobs.console import note
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError, RunError
from mlxjobs.files import create_file
from mlxjobs.frozen import Composed, to_yaml
from mlxjobs.store import Run

# carries what is known of the snapshot into the program that is started from it
_SNAPSHOT = "MLXJOBS_SNAPSHOT"
_CONFIG = "# The options of this project: `python main.py seed=1` overrides them.\nseed: null\n"


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
            folder = (Path(inspect.getfile(task)).parent / config_path).absolute()
            _guard(lambda: _Launch(task, folder, config_name, seeding_function).run(sys.argv[1:]))

        return main

    return decorate


def _guard(call: Callable[[], None]) -> None:
    """The one place where errors become messages and exit codes."""
    try:
        call()
    except MLXJobsError as error:
        sys.stdout.flush()
        note(f"error: {error}")
        raise SystemExit(error.exit_code) from error


@dataclass(frozen=True)
class _Launch:
    """What one call of a decorated function knows."""

    task: Callable[..., Any]
    config_dir: Path
    config_name: str
    seeding: Callable[[Any], Any] | None

    def run(self, argv: Sequence[str]) -> None:
        """Do what the command line asks for."""
        given, arguments = command_line.split_arguments(argv)
        settings.merge(settings.defaults(), given, "the command line")  # before anything else is done
        existing = self._existing_run(given) if not command_line.is_question(arguments) else None
        if existing is not None:
            self._run_existing(existing, given, arguments)
            return
        options = self._settings(given)
        if options["use_scheduler"] and not command_line.is_question(arguments):
            self._submit_new(options, arguments)
        else:
            self._run_here(options, arguments)

    # -- settings ---------------------------------------------------------------------------

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the settings in force; make the project's folder and files if they are missing."""
        self._prepare()
        options = settings.defaults()
        path = self.config_dir / settings.FILE_NAME
        if path.exists():
            settings.merge(options, settings.read_file(path), str(path))
        settings.merge(options, given, "the command line")
        return options

    def _prepare(self) -> None:
        from mlxjobs.store import dump_yaml

        files = {settings.FILE_NAME: dump_yaml(settings.defaults())}
        if self.config_name == "config":
            files["config.yaml"] = _CONFIG
        try:
            self.config_dir.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                if not (self.config_dir / name).exists():
                    create_file(self.config_dir / name, text)
        except OSError as error:
            # a project that cannot be written works with the defaults, if it has a configuration
            if not (self.config_dir / f"{self.config_name}.yaml").exists():
                raise InvalidConfigFileError(f"{self.config_dir} cannot be created: {error}") from error

    def _existing_run(self, given: dict[str, Any]) -> Run | None:
        """Return the run that `forced_log_id` names, if it exists."""
        logger = given.get("logger", {})
        if not isinstance(logger, dict):
            return None
        log_id, parent = logger.get("forced_log_id"), logger.get("parent_log_dir")
        if log_id is None or parent is None:
            options = self._settings(given)
            log_id, parent = options["logger"]["forced_log_id"], options["logger"]["parent_log_dir"]
        run = Run(Path(parent).absolute() / str(log_id))
        return run if log_id >= 0 and run.metadata.is_dir() else None

    # -- a new run --------------------------------------------------------------------------

    def _compose(
        self, options: dict[str, Any], arguments: Sequence[str], *, quiet: bool, run: Callable[..., Any]
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="mlxjobs-") as scratch:
            # sweepers may leave results there; what Hydra alone writes is kept in the runs anyway
            keep = options["use_logger"] and not quiet
            stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            sweeps = Path(options["logger"]["parent_log_dir"]).absolute() / ".sweeps" / stamp
            compose.compose_runs(
                self.task,
                arguments,
                config_dir=self.config_dir,
                config_name=self.config_name,
                sweep_dir=sweeps if keep else Path(scratch),
                quiet=quiet,
                run=run,
            )

    def _run_here(self, options: dict[str, Any], arguments: Sequence[str]) -> None:
        from mlxjobs.attempt import TaskFailed, execute
        from mlxjobs.startable import Place

        facts = _facts(self.task, Path.cwd())
        if options["use_version_manager"] and not command_line.is_question(arguments):
            facts["version_manager"] = self._in_snapshot(options, arguments)

        def run_one(composed: Composed) -> Any:
            run, about = None, facts
            if options["use_logger"]:
                parent = Path(options["logger"]["parent_log_dir"]).absolute()
                run = Run.create(parent, options["logger"]["forced_log_id"])
                run.keep(to_yaml(composed), options)
                about = {**facts, "log_dir": str(run.path), "log_id": run.log_id}
            return execute(
                run, self.task, composed, options, seeding=self.seeding, facts=about, place=Place()
            )

        try:
            self._compose(options, arguments, quiet=False, run=run_one)
        except TaskFailed as error:
            raise SystemExit(1) from error

    def _in_snapshot(self, options: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
        """Start this program again from its snapshot; once there, return what is known of it."""
        from mlxjobs.submit import freeze_code, this_program

        inherited = os.environ.pop(_SNAPSHOT, None)
        if inherited is not None:
            facts: dict[str, Any] = json.loads(inherited)
            return facts
        program, facts = freeze_code(options, this_program())
        options["logger"]["parent_log_dir"] = str(Path(options["logger"]["parent_log_dir"]).absolute())
        # the settings file may be untracked, so the snapshot may lack it: all settings are handed on
        flat = [f"mlxpy={command_line.quote_dict(options)}"]
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(program.work_dir)
        command = [*program.interpreter, program.target, *flat, *arguments]
        os.execve(command[0], command, {**os.environ, _SNAPSHOT: json.dumps(facts)})  # noqa: S606

    def _submit_new(self, options: dict[str, Any], arguments: Sequence[str]) -> None:
        from mlxjobs.submit import Submission, freeze_code, this_program

        if not options["use_logger"]:
            raise InvalidConfigFileError(
                "use_scheduler=true needs use_logger=true: a job lives in its run directory"
            )
        scheduler = adapters.find(options["scheduler"]["name"])
        program = this_program()
        composed: list[Composed] = []
        Submission(options, program, {}, scheduler)
        self._compose(options, arguments, quiet=True, run=composed.append)
        if not composed:
            raise RunError("the command line makes no run: is the sweeper one that needs results?")
        facts = _facts(self.task, Path.cwd())
        if options["use_version_manager"]:
            program, facts["version_manager"] = freeze_code(options, program)
        facts["work_dir"] = str(program.work_dir)
        Submission(options, program, facts, scheduler).submit([(None, one) for one in composed])

    # -- an existing run --------------------------------------------------------------------

    def _run_existing(self, run: Run, given: dict[str, Any], arguments: Sequence[str]) -> None:
        from mlxjobs.attempt import TaskFailed, execute
        from mlxjobs.existing import place_of, stored
        from mlxjobs.history import Preempted
        from mlxjobs.startable import AlreadyComplete

        options, composed = stored(run, given)
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        if len(overrides) != len(arguments):
            raise InvalidConfigFileError(
                "an existing run keeps its composition: with forced_log_id give only KEY=VALUE overrides"
            )
        if overrides:
            composed, changes = compose.override(composed, overrides)
            for change in changes:
                note(f"run {run.log_id}: {change}")
        if options["use_scheduler"]:
            self._submit_existing(run, options, composed)
            return
        place, cluster = place_of(run)
        facts = _facts(self.task, Path.cwd())
        try:
            execute(
                run,
                self.task,
                composed,
                options,
                seeding=self.seeding,
                facts=facts,
                place=place,
                cluster=cluster,
            )
        except TaskFailed as error:
            raise SystemExit(1) from error
        except AlreadyComplete:
            note(f"run {run.log_id} is complete: nothing to do")
        except Preempted as left:
            note(f"run {run.log_id}: {left.status} ({left.reason})")
            code = place.cluster.scheduler.requeue_exit_code() if place.cluster else 1
            raise SystemExit(code) from left

    def _submit_existing(self, run: Run, options: dict[str, Any], composed: Composed) -> None:
        from mlxjobs.submit import Submission, freeze_code, this_program

        scheduler = adapters.find(options["scheduler"]["name"])
        program = this_program()
        facts = _facts(self.task, Path.cwd())
        submission = Submission(options, program, facts, scheduler)
        if options["use_version_manager"]:
            program, facts["version_manager"] = freeze_code(options, program)
            submission = Submission(options, program, facts, scheduler)
        submission.submit([(run, composed)])


def _facts(task: Callable[..., Any], work_dir: Path) -> dict[str, Any]:
    """What `info.yaml` says of this process and its command line; the seed's keys."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without that user
        user = str(os.getuid())
    return {
        "executable": sys.executable,
        "cmd": shlex.join(sys.argv),
        "current_file_path": str(Path(inspect.getfile(task)).absolute()),
        "process_id": os.getpid(),
        "hostname": os.uname().nodename,
        "user": user,
        "work_dir": str(work_dir),
        "created": datetime.now().astimezone().isoformat(timespec="milliseconds"),
    }
