"""What happened to a run, as an ordered list of events, and the state that follows from it. No I/O.

A run's state is never stored and changed: it is folded from its events, which are only ever added.
So two writers cannot overwrite each other's news, and a state is never written back in time: the
submitter's late "submitted" after the job's "running" changes the job id, not the status, and what
a left-over process of an older attempt adds after a newer one began is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from mlxjobs.errors import DamagedHistoryError

Event = Mapping[str, Any]


class RunStatus(str, Enum):
    """Where a run is in its life; the names that `info.yaml` shows."""

    WAITING = "WAITING"
    SUBMITTED = "SUBMITTED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PREEMPTED = "PREEMPTED"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    __str__ = str.__str__

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come, unless somebody starts the run again."""
        return self in (RunStatus.COMPLETE, RunStatus.FAILED, RunStatus.CANCELLED)


class Preempted(BaseException):
    """Unwinds a task that leaves at a safe point; no `except Exception` of the task stops it."""

    def __init__(self, status: RunStatus, reason: str, exit_code: int = 75) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.exit_code = exit_code


@dataclass
class Attempt:
    """One execution of a run.

    Attributes:
        number: 1, 2, 3 ...
        start: when it began, ISO 8601 with offset.
        host: the machine it ran on.
        pid: its process there.
        process_key: identifies that process, as its number is given again some day.
        pid_namespace: what numbers its own is one of: those of the machine, or of a container.
        job_id: the scheduler's job it ran in, if any.
        first_job_id: the id that job was submitted under, where a restart gives new ones; else "".
        end: when it ended; None while it runs, or if nobody saw it end.
        status: how it ended; None as `end`.
        reason: why it ended, in one line.
        resumed_from: the checkpoint it went on from, relative to the run directory.
        restarts: how often the scheduler had started that job before, as the job was told.
        presumed: whether how it ended is what others concluded; what it says itself counts for more.
    """

    number: int
    start: str
    host: str = ""
    pid: int | None = None
    process_key: str = ""
    job_id: str | None = None
    end: str | None = None
    status: RunStatus | None = None
    reason: str | None = None
    resumed_from: str | None = None
    first_job_id: str = ""
    restarts: int = 0
    pid_namespace: int | None = None
    presumed: bool = False


@dataclass
class RunState:
    """What is known of a run.

    Attributes:
        sequence: how many events it was folded from.
        status: where it is in its life.
        reason: why it is there, in one line, if there is something to say.
        facts: what was recorded when it was created: user, command, folders ...
        scheduler: `name`, `class`, `job_id` and `submitted` of its newest submission, or nothing.
        first_job_id: the id that its newest submission was given at first.
        before: the submission before the newest, as `scheduler`.
        known_jobs: the ids of all jobs that were made for it, as far as it was told of them.
        submissions: how often it was handed to a scheduler.
        unanswered: how many of these may have made a job that it was not told of.
        recalled: whether somebody cancelled it since the newest of them, so that no job is to start it.
        submitter: `host`, `pid` and `process_key` of the process that did so last.
        attempts: its executions, oldest first.
        before_again: how many of these there were when somebody handed it in again after it had ended.
        noted: what was noted of its configuration and environment when it was made or handed in.
        tainted: where it did not execute what was submitted; `provenance` finds it.
    """

    sequence: int = 0
    status: RunStatus = RunStatus.STARTING
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    first_job_id: str | None = None
    before: dict[str, Any] = field(default_factory=dict)
    known_jobs: set[str] = field(default_factory=set)
    submissions: int = 0
    unanswered: int = 0
    recalled: bool = False
    submitter: dict[str, Any] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    before_again: int = 0
    noted: dict[str, Any] = field(default_factory=dict)
    tainted: list[str] = field(default_factory=list)

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def job_id(self) -> str | None:
        """The scheduler's id of the newest job of this run."""
        job_id = self.scheduler.get("job_id")
        return None if job_id is None else str(job_id)

    @property
    def over(self) -> bool:
        """Whether it has ended by its own account, or by somebody's wish: not as others concluded."""
        last = self.attempt
        return self.status.ended and not (last is not None and last.presumed and last.status is self.status)

    @property
    def interruptions(self) -> int:
        """How many attempts were stopped and put back into the queue, since somebody last asked for more."""
        return sum(attempt.status is RunStatus.PREEMPTED for attempt in self.attempts[self.before_again :])

    @property
    def losses(self) -> int:
        """How many of these, the newest aside, vanished without a word: killed, or their node failed."""
        return sum(attempt.end is None for attempt in self.attempts[self.before_again : -1])


def timestamp() -> str:
    """Return the time now as ISO 8601 with offset and milliseconds."""
    return iso(datetime.now())


def iso(moment: datetime) -> str:
    """Return a moment as ISO 8601 with offset and milliseconds, in this machine's time zone."""
    return moment.astimezone().isoformat(timespec="milliseconds")


def fold(events: Iterable[Event]) -> RunState:
    """Return the state that follows from these events, in their order.

    An event is a dictionary with `event` (its kind), `time`, and what belongs to the kind; kinds
    that this version does not know are skipped, so that an older program can read a newer run.

    Raises:
        DamagedHistoryError: an event lacks what belongs to its kind.
    """
    state = RunState()
    for event in events:
        state.sequence += 1
        handler = _HANDLERS.get(event["event"])
        if handler is not None:
            try:
                handler(state, event)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"event {state.sequence} of the history ({event['event']}) cannot be understood"
                raise DamagedHistoryError(f"{what}: {error!r}") from error
    return state


def _created(state: RunState, event: Event) -> None:
    state.facts.update(event["facts"])
    state.noted = event.get("frozen", {})
    # a run of MLXP's that was taken over; one that never said how it ended has not completed
    if event.get("status"):
        done = event["status"] == "COMPLETE"
        state.status = RunStatus.COMPLETE if done else RunStatus.FAILED


def _kept(state: RunState, event: Event) -> None:
    """Somebody changed on purpose what the next attempts start from."""
    state.noted = event["frozen"]
    state.facts = {**state.facts, **event.get("facts", {})}


def _answered(state: RunState) -> None:
    state.unanswered = max(0, state.unanswered - 1)  # a job that was submitted by hand answers nothing


def _know(state: RunState, *ids: str | None) -> None:
    """Take notice of a job under all its ids; one that is new is that of a submission."""
    told = {job_id for job_id in ids if job_id}
    if told and told.isdisjoint(state.known_jobs):
        _answered(state)
    state.known_jobs |= told


def _submitting(state: RunState, event: Event) -> None:
    state.submissions += 1
    state.unanswered += 1
    state.recalled = False
    if state.status.ended:
        state.before_again = len(state.attempts)
    state.before, state.first_job_id = state.scheduler, None
    state.scheduler = {
        "name": event["scheduler"],
        "class": event["class"],
        "job_id": None,
        "submitted": event["time"],
    }
    state.submitter = event.get("process", {})
    state.status, state.reason = RunStatus.SUBMITTED, None


def _submitted(state: RunState, event: Event) -> None:
    _know(state, event["job_id"])
    if event["submission"] == state.submissions:
        state.first_job_id = event["job_id"]
        if state.status is RunStatus.FAILED and state.job_id is None:  # somebody thought it was interrupted
            state.status, state.reason = RunStatus.SUBMITTED, None
        # unless it has already been started, and perhaps started again under another id
        if state.scheduler["job_id"] is None:
            state.scheduler["job_id"] = event["job_id"]


def _waiting(state: RunState, event: Event) -> None:
    """The queue had no room for it; it was not handed in."""
    _answered(state)
    if event["submission"] == state.submissions and state.status is RunStatus.SUBMITTED:
        state.status, state.reason = RunStatus.WAITING, event["reason"]


def _moved(state: RunState, event: Event) -> None:
    """The scheduler started the job again, under a new id."""
    _know(state, event["from"], event["job_id"])
    if state.job_id == event["from"]:
        state.scheduler["job_id"] = event["job_id"]


def _refused(state: RunState, event: Event) -> None:
    if not event.get("unknown"):
        _answered(state)
    # a job that is known has spoken louder than the scheduler's refusal, or than who looked too early
    if event["submission"] != state.submissions or state.status is not RunStatus.SUBMITTED or state.job_id:
        return
    state.status, state.reason = RunStatus.FAILED, event["reason"]
    if event.get("attempt") is not None:
        # an attempt wanted to be followed by another one, and goes on
        state.status, state.reason, state.scheduler = RunStatus.RUNNING, None, state.before


def _started(state: RunState, event: Event) -> None:
    before = state.attempt
    if before is not None and before.end is None and before.reason is None:
        before.reason = "vanished: killed, or its node failed"
    state.attempts.append(
        Attempt(
            number=event["attempt"],
            start=event["time"],
            host=event.get("host", ""),
            pid=event.get("pid"),
            process_key=event.get("process_key", ""),
            job_id=event.get("job_id"),
            first_job_id=event.get("first_job_id", ""),
            restarts=event.get("restarts", 0),
            pid_namespace=event.get("pid_namespace"),
        )
    )
    _know(state, event.get("job_id"), event.get("first_job_id"))
    if event.get("job_id") is not None:
        state.scheduler["job_id"] = event["job_id"]
    typed = {key: fact for key, fact in state.facts.items() if key in ("cmd", "launch_dir")}
    # the command that was typed says more than that of a job's script
    state.facts = {**state.facts, **event.get("facts", {}), **typed}
    state.noted = event.get("frozen", state.noted)
    state.status, state.reason, state.recalled = RunStatus.STARTING, None, False


def _newest(state: RunState, event: Event) -> Attempt | None:
    """The attempt an event speaks of, if it is the newest: older ones have no say any more."""
    attempt = state.attempt
    return attempt if attempt is not None and attempt.number == event["attempt"] else None


def _running(state: RunState, event: Event) -> None:
    if _newest(state, event) is not None and state.status is RunStatus.STARTING:
        state.status = RunStatus.RUNNING


def _resumed(state: RunState, event: Event) -> None:
    attempt = _newest(state, event)
    if attempt is not None:
        attempt.resumed_from = event["checkpoint"]


def _ended(state: RunState, event: Event) -> None:
    attempt = _newest(state, event)
    # "preempted" may be followed by "complete": the task returned before it was killed
    if attempt is None or (attempt.status is not None and attempt.status.ended and not attempt.presumed):
        return
    attempt.presumed = bool(event.get("presumed"))
    attempt.end, attempt.reason = event["time"], event.get("reason")
    attempt.status = RunStatus(event["status"])
    if not (state.recalled and attempt.status is RunStatus.PREEMPTED):  # what should follow was cancelled
        state.status, state.reason = attempt.status, attempt.reason


def _tainted(state: RunState, event: Event) -> None:
    state.tainted += [difference for difference in event["found"] if difference not in state.tainted]


def _withdrawn(state: RunState, event: Event) -> None:
    """The run was cancelled, or its job vanished, while no attempt of it was running."""
    if not state.status.ended and event["attempts"] == len(state.attempts):
        state.recalled = bool(event.get("recalled"))
        state.status, state.reason = RunStatus(event["status"]), event.get("reason")


_HANDLERS = {
    "created": _created,
    "kept": _kept,
    "submitting": _submitting,
    "submitted": _submitted,
    "waiting": _waiting,
    "moved": _moved,
    "refused": _refused,
    "started": _started,
    "running": _running,
    "resumed": _resumed,
    "tainted": _tainted,
    "ended": _ended,
    "withdrawn": _withdrawn,
}


def _local(stamp: str | None, pattern: str) -> str | None:
    return None if stamp is None else datetime.fromisoformat(stamp).strftime(pattern)


def render_info(state: RunState) -> dict[str, Any]:
    """Return the content of `info.yaml` for this state: the seed's keys first, then ours."""
    last = state.attempt
    start = state.attempts[0].start if last else state.facts.get("created")
    end = last.end if last else None
    facts = {key: value for key, value in state.facts.items() if key != "created"}
    return {
        **facts,
        "process_id": last.pid if last else facts.get("process_id"),
        "hostname": last.host if last else facts.get("hostname"),
        "start_date": _local(start, "%d/%m/%Y"),
        "start_time": _local(start, "%H:%M:%S"),
        "end_date": _local(end, "%d/%m/%Y"),
        "end_time": _local(end, "%H:%M:%S"),
        "status": state.status.value,
        "reason": state.reason,
        "tainted": list(state.tainted),
        "scheduler": dict(state.scheduler),
        "attempts": [
            {
                "start": attempt.start,
                "end": attempt.end,
                "host": attempt.host,
                "job_id": attempt.job_id,
                "reason": attempt.reason,
                "resumed_from": attempt.resumed_from,
                "status": attempt.status.value if attempt.status else None,
            }
            for attempt in state.attempts
        ],
    }
