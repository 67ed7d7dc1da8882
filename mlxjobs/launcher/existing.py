"""Starting a run that exists: from what it stored, not from what the project says today."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxjobs.cluster import ranks
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.config import compose
from mlxjobs.config.secrets import Mask, lost_secrets, without_secrets
from mlxjobs.config.settings import Settings
from mlxjobs.config.stored import Composed, from_yaml
from mlxjobs.config_dict import ConfigDict
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError, RunError
from mlxjobs.jobs.startable import Place
from mlxjobs.record.history import RunStatus
from mlxjobs.record.log_dir import waiting_in
from mlxjobs.record.run import Run
from mlxjobs.system.atomic import read_again
from mlxjobs.system.console import note
from mlxjobs.system.seals import is_sealed


def load_stored(run: Run, typed: Mapping[str, Any]) -> tuple[Settings, Composed]:
    """Return the settings and the configuration that a run was submitted with.

    Args:
        run: an existing run; one of MLXP's is taken over.
        typed: settings from the command line, which win.

    Raises:
        RunError: the run has no configuration, or is another user's.
        InvalidConfigFileError: its files, or the settings typed, are wrong.
    """
    run.check_owner()
    run.adopt()
    settings = Settings()
    path = run.metadata / "mlxpy.yaml"
    if path.exists():
        settings = settings.updated(run.read_yaml("mlxpy") or {}, str(path))
    # where it once ran is no reason to run there again: that is for the command line to say
    here = replace(settings.logger, forced_log_id=run.log_id, parent_log_dir=str(run.path.parent))
    settings = replace(settings, logger=here, use_scheduler=False, use_version_manager=False)
    settings = settings.updated(typed, "the command line")
    if run.stored.exists():
        text = read_again(run.stored.read_bytes)
        if is_sealed(text) is False:
            note(f"{run.stored} is not what was written for this run: it was edited, or is damaged")
        composed = from_yaml(text, run.stored)
        return settings, replace(composed, secrets={**composed.secrets, **run.read_secrets()})
    config = run.read_yaml("config")
    if not isinstance(config, dict):
        raise RunError(f"{run.metadata / 'config.yaml'} holds no configuration")
    return settings, Composed(config)


def override_stored(
    run: Run, composed: Composed, arguments: Sequence[str], mask: Mask
) -> tuple[Composed, list[str]]:
    """Return the configuration that a run is to go on with, its secrets apart, and a line for each change.

    Args:
        run: the run.
        composed: its configuration, as it is stored.
        arguments: overrides from the command line.
        mask: tells what is a secret.

    Raises:
        InvalidConfigFileError: an argument is not an override, or cannot be applied.
        RunError: a secret is lost, and not given again.
    """
    if any(argument.startswith("-") for argument in arguments):
        raise InvalidConfigFileError(
            "an existing run keeps its composition: with forced_log_id give only KEY=VALUE overrides"
        )
    changes: list[str] = []
    if arguments:
        composed, changes = compose.override(composed, arguments)
    composed = mask.hide(composed)
    gone = lost_secrets(composed)
    if gone:
        raise RunError(
            f"run {run.log_id}: {run.metadata / '.secrets.json'} lacks what was given for "
            f"{', '.join(gone)}: give it again, as in {gone[0]}=VALUE"
        )
    return composed, changes


def resolve_here(run: Run, composed: Composed, place: Place) -> ConfigDict:
    """Resolve a stored configuration, where the task runs.

    Raises:
        InvalidConfigFileError: it cannot be resolved here; a job's run is recorded as FAILED.
    """
    try:
        return compose.resolve_config(composed)
    except MLXJobsError as error:
        if place.here is not None and place.rank == 0:
            reason = without_secrets(str(error).splitlines()[0], composed)
            event = {"event": "withdrawn", "status": RunStatus.FAILED.value, "reason": reason}
            run.record(lambda state: {**event, "attempts": len(state.attempts)})
        raise


def place_of_attempt(run: Run) -> tuple[Place, Cluster | None]:
    """Return where this process runs, and the cluster that the run was submitted to.

    Only a run that was submitted can be in a job: a program that is started by hand inside some
    job of the user's is none of the scheduler's business.
    """
    path = run.state().scheduler.get("class")
    if path is None:
        return Place(), None
    cluster = Cluster(path)
    here = cluster.scheduler.here(os.environ)
    if here is None:
        return Place(), cluster
    ranks.tell_submitit(cluster.scheduler, path)
    return Place(cluster, ranks.placed(here, os.environ)), cluster


def hand_in_more(run: Run, place: Place) -> None:
    """Let a job that ends hand in runs for which the queue had no room when they were submitted."""
    parent = run.path.parent
    if place.here is None or place.rank > 0 or not waiting_in(parent):
        return
    from mlxjobs.jobs.arrays import feed_queue

    try:
        fed = feed_queue(parent)
    except (MLXJobsError, OSError) as error:  # it is for others: this run has ended well
        note(f"the runs that wait were not handed in: {error}")
        return
    for log_id, job_id in fed.jobs.items():
        note(f"run {log_id}, which waited, is job {job_id}")
    for log_id, why in fed.failed.items():
        note(f"run {log_id}, which waits, cannot be handed in: {why}")
