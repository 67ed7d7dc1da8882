"""Many runs are handed in with as few submissions as the site allows: as arrays where there are any."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.cluster.script import job_name, place_in, render_script
from mlxjobs.config.settings import SchedulerSettings, Settings, as_lines
from mlxjobs.errors import (
    JobSubmissionError,
    MLXJobsError,
    QueueFullError,
    RunError,
    SchedulerError,
    UnknownSubmissionError,
)
from mlxjobs.jobs.hand_in import claim_submission, record_refused, record_submitted, record_waiting
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.log_dir import take_array, waiting_folder, waiting_in
from mlxjobs.record.run import Run
from mlxjobs.scheduler import TASK, Job
from mlxjobs.system.files import flushed_together, replace_file

# how long a run that ends keeps its job to hand in another one
_PATIENCE_S = 20.0


@dataclass
class HandedIn:
    """What became of runs that were to be handed in together.

    Attributes:
        jobs: the ids of their jobs, by the numbers of the runs.
        failed: why a run was not handed in.
        waiting: runs for which the queue had no room; they wait, and `feed_queue` hands them in.
    """

    jobs: dict[int, str] = field(default_factory=dict)
    failed: dict[int, MLXJobsError] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)


def hand_in_all(
    runs: Sequence[Run],
    cluster: Cluster,
    settings: SchedulerSettings,
    *,
    claimed: Mapping[Run, int] | None = None,
    check: Callable[[Run, RunState], None] | None = None,
    patient: bool = False,
    patience_s: float = 0.0,
) -> HandedIn:
    """Submit the scripts of runs, and record it.

    Args:
        runs: the runs, all of one log directory; their scripts are written.
        cluster: where to.
        settings: those of the scheduler, the same for all of them.
        claimed: the numbers of their submissions, if they have been claimed for them.
        check: raises if a run's state allows no submission; the others are handed in all the same.
        patient: they have waited: let them wait on, whatever the scheduler says against them now.
        patience_s: how long to try for the first one.

    Returns:
        What became of each. Where one was refused, so are those after it: a scheduler that says no is
        not asked a thousand times.
    """
    result = HandedIn()
    if not runs:
        return result
    numbers: dict[Run, int] = {}
    with flushed_together(runs[0].path.parent):
        for run in runs:
            try:
                run.check_owner()
                if claimed is None:  # else they were made just now, and here
                    _check_place(run)
                numbers[run] = claim_submission(run, cluster, check) if claimed is None else claimed[run]
            except MLXJobsError as error:
                result.failed[run.log_id] = error
    todo = list(numbers)
    try:
        for run, job_id in _submit_in_turn(todo, cluster, settings, patience_s):
            record_submitted(run, cluster, numbers[run], job_id)
            result.jobs[run.log_id] = job_id
    except (SchedulerError, OSError, KeyboardInterrupt) as error:
        left = todo[len(result.jobs) :]
        with flushed_together(runs[0].path.parent):
            if _may_wait(error, patient=patient, some_go_on=bool(result.jobs)):
                result.waiting = [run.log_id for run in left]
                for run in left:
                    record_waiting(run, numbers[run], str(error))
            else:
                result.failed.update({run.log_id: record_refused(run, numbers[run], error) for run in left})
        if isinstance(error, KeyboardInterrupt):
            raise
    return result


def _check_place(run: Run) -> None:
    """Raise if the run was moved: its script would start what has its old place now."""
    with suppress(OSError):  # the scheduler says what is wrong with a script that cannot be read
        place, here = place_in(run.script.read_text("utf-8", "replace")), run.path.absolute()
        if place not in (None, here) and not (place.exists() and place.samefile(here)):
            raise RunError(
                f"run {run.log_id} was moved: its script starts {place}, not {here}. Its program writes it "
                f"anew: python main.py +mlxpy.use_scheduler=true +mlxpy.logger.forced_log_id={run.log_id} "
                f"+mlxpy.logger.parent_log_dir={here.parent}"
            )


def _may_wait(error: BaseException, *, patient: bool, some_go_on: bool) -> bool:
    """Whether runs are to be handed in later: by those that have been taken, or as before."""
    if isinstance(error, QueueFullError):
        return patient or some_go_on
    return patient and isinstance(error, JobSubmissionError) and not isinstance(error, UnknownSubmissionError)


def _submit_in_turn(
    runs: Sequence[Run], cluster: Cluster, settings: SchedulerSettings, patience_s: float
) -> Iterator[tuple[Run, str]]:
    """Hand in runs in as large arrays as may be; yield each with the id of its job."""
    end = time.monotonic() + patience_s
    size = min(cluster.max_array(), len(runs)) if len(runs) > 1 else 1
    while runs:
        try:
            jobs = _submit(runs[:size], cluster, settings)
        except QueueFullError:
            if size > 1:
                size //= 2  # how much of the user's share is left nobody tells: it is found by trying
                continue
            if time.monotonic() >= end:
                raise
            time.sleep(1)
            continue
        end = 0.0
        with (
            flushed_together(runs[0].path.parent) if len(jobs) > 1 else nullcontext(),
            _interrupt_later(),
        ):
            yield from zip(runs, jobs, strict=False)
        runs = runs[len(jobs) :]


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Let Ctrl-C wait until what the scheduler has taken is on record."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def feed_queue(parent: Path, most: int = 16) -> HandedIn:
    """Hand in runs for which the queue had no room, as many as it takes now.

    Each run does so when it ends in a job, so that a sweep larger than the user's share of the queue
    needs no process that outlives the command line. Its own job is still in the queue then, and so
    may be others that end at this moment: one of them tries for a while, the others leave and make room.

    Args:
        parent: the log directory.
        most: how many to try.

    Returns:
        What became of those that were tried; `failed` are those of which nobody knows how to hand them in.
    """
    result, tried = HandedIn(), False
    with _alone(parent) as alone:
        marked = iter([Run(parent / str(log_id)) for log_id in waiting_in(parent)] if alone else [])
        # those that cannot be handed in must not keep the others
        while not tried and (runs := list(islice(marked, most))):
            runs = [run for run in runs if run.stranger is None and _waits(run, result.failed)]
            for cluster, settings, group in group_alike(runs, result.failed):
                tried = True
                handed_in = hand_in_all(
                    group, cluster, settings, check=_check_waiting, patient=True, patience_s=_PATIENCE_S
                )
                result.jobs.update(handed_in.jobs)
                result.waiting += handed_in.waiting
                for log_id in [*handed_in.jobs, *handed_in.failed]:
                    Run(parent / str(log_id)).mark_waiting(False)
    return result


def _waits(run: Run, failed: dict[int, MLXJobsError]) -> bool:
    """Whether a run that is marked as waiting does: a mark outlives a run that somebody removes."""
    try:
        if run.state().status is RunStatus.WAITING:
            return True
    except MLXJobsError as error:
        failed[run.log_id] = error
        return False
    run.mark_waiting(False)
    return False


@contextmanager
def _alone(parent: Path) -> Iterator[bool]:
    """Tell whether no other process feeds this log directory: a courtesy, nothing goes wrong without."""
    import fcntl

    with (waiting_folder(parent) / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system that has no locks
            pass
        yield True


def _check_waiting(run: Run, state: RunState) -> None:
    if state.status is not RunStatus.WAITING:
        raise RunError(f"run {run.log_id} does not wait any more")


def group_alike(
    runs: Iterable[Run], failed: dict[int, MLXJobsError]
) -> Iterator[tuple[Cluster, SchedulerSettings, list[Run]]]:
    """Group runs by their scheduler and its settings, as they were when each was submitted.

    Args:
        runs: runs that were submitted.
        failed: those of which that cannot be known are added to it, and why.
    """
    groups: dict[tuple[str, SchedulerSettings], tuple[Cluster, SchedulerSettings, list[Run]]] = {}
    for run in runs:
        try:
            path = run.state().scheduler["class"]
            stored = Settings().updated(run.read_yaml("mlxpy"), str(run.metadata / "mlxpy.yaml"))
            key = (path, stored.scheduler)
            if key not in groups:  # to make a cluster may mean to import a class
                groups[key] = (Cluster(path), stored.scheduler, [])
        except MLXJobsError as error:
            failed[run.log_id] = error
        else:
            groups[key][2].append(run)
    yield from groups.values()


def _submit(runs: Sequence[Run], cluster: Cluster, settings: SchedulerSettings) -> list[str]:
    """Hand in runs as one job, or as one array; return the ids of their jobs."""
    if len(runs) == 1:
        return [cluster.submit(runs[0].script.absolute(), runs[0].state().known_jobs)]
    script = _write_array(runs, cluster, settings)
    try:
        return cluster.submit_array(script, len(runs))
    except UnknownSubmissionError:
        raise
    except JobSubmissionError:
        shutil.rmtree(script.parent, ignore_errors=True)
        raise


def _write_array(runs: Sequence[Run], cluster: Cluster, settings: SchedulerSettings) -> Path:
    """Make an array's folder: its script, and a link to the directory of each of its runs."""
    folder = take_array(runs[0].path.parent)
    for number, run in enumerate(runs, 1):
        folder.joinpath(str(number)).symlink_to(Path("..", "..", run.path.name))
    array, task = Run(folder), Run(folder / TASK)
    stem = Path(runs[0].state().facts.get("current_file_path") or "run").stem
    job = Job(
        name=job_name(stem, f"{runs[0].log_id}-{runs[-1].log_id}"),
        script=array.script,
        stdout=task.stdout,
        stderr=task.stderr,
        work_dir=folder,
        command=(),
        option_lines=as_lines(settings.option_cmd),
        shell_path=settings.shell_path,
        tasks=len(runs),
    )
    replace_file(array.script, render_script(job, cluster.scheduler), mode=0o777)
    return array.script.absolute()
