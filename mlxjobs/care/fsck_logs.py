"""What is wrong with a log directory beside its runs: links, marks, jobs, frozen code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from mlxjobs.care.findings import Finding
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.code.copying import find_abandoned, find_missing, remove_abandoned
from mlxjobs.errors import MLXJobsError, SnapshotError
from mlxjobs.jobs.look import Seen
from mlxjobs.record.history import RunStatus
from mlxjobs.record.log_dir import arrays_folder, waiting_folder, waiting_in
from mlxjobs.record.run import Run
from mlxjobs.system import shell
from mlxjobs.system.console import name_some
from mlxjobs.system.files import numbers_in

_ANSWER_S = 60.0
_MOST = 10_000  # numbers without a run that are looked for among the jobs


def check_links(logs: Path) -> Iterator[Finding]:
    """Look for tasks of arrays whose run is gone."""
    for link in _broken(logs):
        yield Finding(link, "is the task of an array whose run is gone", "remove the link", link.unlink)


def _broken(logs: Path) -> list[Path]:
    links = sorted(arrays_folder(logs).glob("*/*"))
    return [link for link in links if link.is_symlink() and not link.exists()]


def check_marks(logs: Path, runs: Sequence[Seen]) -> Iterator[Finding]:
    """Compare the marks of runs that wait for room in the queue with the runs."""
    marked = set(waiting_in(logs))
    known = {seen.run.log_id: seen for seen in runs}
    for log_id in sorted(marked):
        seen = known.get(log_id)
        if seen is None and (logs / str(log_id)).exists():
            continue  # it was not looked at
        if seen is None or (seen.state.sequence and seen.state.status is not RunStatus.WAITING):
            mark = waiting_folder(logs) / str(log_id)
            yield Finding(mark, "marks a run that does not wait", "remove the mark", mark.unlink, log_id)
    for log_id, seen in known.items():
        if seen.state.status is RunStatus.WAITING and log_id not in marked:
            what = "waits for room in the queue, and is not marked so"
            yield Finding(seen.run.path, what, "mark it", partial(seen.run.mark_waiting, True), log_id)


def check_jobs(logs: Path, runs: Sequence[Seen], *, alone: bool) -> Iterator[Finding]:
    """Look for jobs that belong to no run, or that their run knows nothing of.

    Only where the scheduler lists jobs with their scripts.

    Args:
        logs: the log directory.
        runs: the runs.
        alone: these are not all runs, so missing ones are not looked for.
    """
    named = [seen for seen in runs if seen.state.scheduler.get("class") and seen.not_imported is None]
    for path in sorted({seen.state.scheduler["class"] for seen in named}):
        try:
            cluster = Cluster(path)
            command = cluster.scheduler.find_command()
            if command is None:
                continue
            result = shell.run(command, timeout_s=_ANSWER_S)
            if result.code == 0 and result.out.strip():
                yield from _jobs(logs, cluster, result.out, runs, alone=alone)
        except (MLXJobsError, ValueError) as error:
            yield Finding(logs, f"jobs without runs were not looked for: {error}")


def _jobs(logs: Path, cluster: Cluster, out: str, runs: Sequence[Seen], *, alone: bool) -> Iterator[Finding]:
    own = {seen.run.log_id: seen.state.known_jobs for seen in runs}
    there = set(numbers_in(logs))
    gone = set() if alone else set(range(1, min(max(there, default=0), _MOST) + 1)) - there
    strange: dict[str, tuple[Path, int | None]] = {}
    for log_id in sorted({*own, *gone}):
        script = Run(logs / str(log_id)).script
        for job_id in cluster.scheduler.parse_found(out, script.absolute()):
            if job_id not in own.get(log_id, ()):
                strange[job_id] = script, log_id
    for job_id, link in () if alone else _tasks(logs, cluster, out):
        strange[job_id] = link, None
    for job_id, status in cluster.status(list(strange)).items():
        if job_id in strange and not status.state.ended:
            path, run = strange[job_id]
            what = "knows nothing of it" if run in own else "is gone"
            yield Finding(path, f"is of job {job_id} of {cluster.name}, whose run {what}: cancel it", run=run)


def _tasks(logs: Path, cluster: Cluster, out: str) -> Iterator[tuple[str, Path]]:
    """Jobs of the tasks of arrays whose run is gone."""
    for link in _broken(logs):
        tasks = sum(path.is_symlink() for path in link.parent.iterdir())
        script = Run(link.parent).script.absolute()
        jobs = cluster.scheduler.parse_found_array(out, script, tasks)
        if link.name.isdecimal() and len(jobs) >= int(link.name):
            yield jobs[int(link.name) - 1], link


def check_snapshots(runs: Sequence[Seen]) -> Iterator[Finding]:
    """Look at the frozen code of runs, and for half-made snapshots that killed launches left."""
    used: dict[Path, list[Seen]] = {}
    repos: dict[Path, str] = {}
    for seen in runs:
        facts = seen.state.facts.get("version_manager")
        if isinstance(facts, dict) and facts.get("snapshot") and not seen.run.stranger:
            root = Path(str(facts["snapshot"]))
            used.setdefault(root, []).append(seen)
            repos[root] = str(facts.get("repo_path") or "")
    for root, users in used.items():
        waits = [seen.run.log_id for seen in users if not seen.state.status.ended]
        if not root.is_dir():
            if waits:
                yield Finding(root, f"is the code of run {waits[0]}, and is gone", run=waits[0])
            continue
        missing = _missing(root, Path(repos[root]))
        if missing:
            lost = name_some(missing, 1)
            yield Finding(root, f"lacks files of its commit: {lost}; move it away and launch again")
    for root in {root.parent: root for root in used if root.parent.is_dir()}.values():
        for path in find_abandoned(root.parent):
            what = "is half a snapshot, left by a launch that was killed"
            yield Finding(path, what, "remove it: the commit has it all", partial(remove_abandoned, root))


def _missing(root: Path, repo: Path) -> list[str]:
    try:
        return find_missing(root, repo) if repo.is_dir() else []
    except SnapshotError:  # the repository has gone on, or away
        return []
