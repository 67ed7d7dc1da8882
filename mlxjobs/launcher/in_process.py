"""Runs that are executed by this process: those that a command line composes, or one that exists."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.config import compose
from mlxjobs.config.secrets import Mask, with_secrets
from mlxjobs.config.settings import Settings
from mlxjobs.config.stored import Composed, to_yaml
from mlxjobs.config_dict import seed_of
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError
from mlxjobs.launcher.lost_paths import LostPaths
from mlxjobs.record.run import Run
from mlxjobs.system.console import note

ONE_LOG_ID = "the runs of a sweep cannot share one forced_log_id: leave it out"


class _Failed(Exception):
    """Carries the exit code of a task that failed through Hydra, which goes on with the other runs."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the task failed with exit code {code}")
        self.code = code


@dataclass(frozen=True)
class Runner:
    """Executes runs of a task.

    Attributes:
        task: the user's function.
        seeding: called with the seed before each run; None: nothing is.
    """

    task: Callable[..., Any]
    seeding: Callable[[Any], Any] | None

    def check_seed(self, composed: Composed) -> None:
        """Raise InvalidConfigFileError if a seed is needed, and is none."""
        if self.seeding is not None:
            seed_of(composed.config)

    def run_composed(
        self,
        each: Callable[[Callable[[Composed], Any]], None],
        settings: Settings,
        facts: dict[str, Any],
    ) -> None:
        """Run what a command line composes.

        Args:
            each: composes, and calls its argument with every configuration.
            settings: those in force.
            facts: what `info.yaml` says of this process and its command line.

        Raises:
            SystemExit: a task failed; with its exit code.
        """
        from mlxjobs.jobs.failure import TaskFailed
        from mlxjobs.record.fence import Superseded

        cwd = Path.cwd()
        mask, lost = Mask(settings.secrets), LostPaths(facts["launch_dir"], cwd)
        failed: list[tuple[BaseException, int]] = []

        def run_one(composed: Composed) -> Any:
            try:
                return self._run_one(composed, mask, lost, settings, facts, cwd)
            except TaskFailed as error:
                # callbacks and sweepers are to see the task's own exception
                cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
                failed.append((cause, 1))
                raise cause from None
            except SystemExit as error:
                code = _exit_code(error)
                if code == 0:
                    return None
                failed.append((_Failed(code), code))
                raise failed[-1][0] from error
            except Superseded as given_up:
                note(str(given_up))
                failed.append((_Failed(given_up.exit_code), given_up.exit_code))
                raise failed[-1][0] from given_up

        try:
            each(run_one)
        except Exception as error:
            codes = [code for cause, code in failed if cause is error]
            if not codes:
                raise
            raise SystemExit(codes[0]) from error

    def _run_one(
        self,
        composed: Composed,
        mask: Mask,
        lost: LostPaths,
        settings: Settings,
        facts: dict[str, Any],
        cwd: Path,
    ) -> Any:
        from mlxjobs.config import around_task
        from mlxjobs.jobs.attempt import Execution

        hidden = mask.hide(composed)
        if hidden.secrets:
            compose.forget_sweep()
        self.check_seed(composed)
        run = None
        if settings.logger.forced_log_id >= 0 and composed.hydra.get("mode") == "MULTIRUN":
            raise InvalidConfigFileError(ONE_LOG_ID)
        if settings.use_logger:
            run = Run.create(settings.log_dir, settings.logger.forced_log_id)
        try:
            placed = around_task.tell_hydra(
                composed,
                run.path if run else cwd,
                keep_log=run is not None,
                follow_streams=settings.logger.log_streams_to_file,
            )
            config = compose.resolve_config(placed)
        except MLXJobsError:
            if run is not None:
                shutil.rmtree(run.path)  # nobody can know of it yet
            raise
        shown = mask.shown(hidden, config.to_dict())
        lost.warn([shown.config])
        if run is not None:
            run.store_configuration(to_yaml(hidden), settings.to_dict(), hidden.secrets)
            cmd = mask.command(facts["cmd"], hidden.secrets)
            facts = {**facts, "cmd": cmd, "log_dir": str(run.path), "log_id": run.log_id}
        return Execution(self.task, config, settings, shown, facts, self.seeding).execute(run)

    def attempt(
        self, run: Run, composed: Composed, settings: Settings, facts: dict[str, Any], *, changed: bool
    ) -> None:
        """Make the next attempt of an existing run, in a job or not.

        Args:
            run: the run.
            composed: its configuration; secrets are kept apart.
            settings: its settings.
            facts: what `info.yaml` says of this process and its command line.
            changed: whether the configuration is not the one that is stored.

        Raises:
            SystemExit: the attempt did not complete the run; with the exit code that says how.
        """
        from mlxjobs.code import provenance
        from mlxjobs.config import around_task
        from mlxjobs.jobs.attempt import Execution
        from mlxjobs.jobs.failure import TaskFailed
        from mlxjobs.jobs.startable import AlreadyComplete, check_startable
        from mlxjobs.launcher import existing
        from mlxjobs.logger.held import make_logger
        from mlxjobs.record.fence import Superseded
        from mlxjobs.record.history import Preempted

        place, cluster = existing.place_of_attempt(run)
        follow = settings.logger.log_streams_to_file and place.here is None
        try:
            if changed and place.rank == 0:
                check_startable(run, run.state(), place, cluster)
                run.store_configuration(to_yaml(composed), secrets=composed.secrets)
                provenance.record_change(run)
            with around_task.surroundings(
                with_secrets(composed), run.path, keep_log=place.rank == 0, follow_streams=follow
            ) as placed:
                config = existing.resolve_here(run, placed, place)
                shown = Mask(settings.secrets).shown(composed, config.to_dict())
                execution = Execution(
                    self.task, config, settings, shown, facts, self.seeding, place, cluster, make_logger
                )
                around_task.call_with_callbacks(placed, self.task, lambda: execution.execute(run))
            existing.hand_in_more(run, place)
        except (TaskFailed, provenance.Refused) as error:
            existing.hand_in_more(run, place)
            if isinstance(error, provenance.Refused):
                raise
            raise SystemExit(1) from error
        except AlreadyComplete:
            note(f"run {run.log_id} is complete: nothing to do")
        except Preempted as left:
            note(f"run {run.log_id}: {left.status} ({left.reason})")
            raise SystemExit(left.exit_code) from left
        except Superseded as given_up:
            note(str(given_up))
            raise SystemExit(given_up.exit_code) from given_up


def _exit_code(error: SystemExit) -> int:
    """The exit code that Python gives a program that ends so; what it would print is printed."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)  # noqa: T201 - the task's own words
    return 1
