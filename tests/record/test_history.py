"""A run's state follows from its events, and is never written back in time."""

from typing import Any

import pytest

from mlxjobs.record.history import Event, RunStatus, fold, render_info

T = "2026-11-23T10:00:00.000+01:00"


def event(kind: str, **more: Any) -> Event:
    return {"event": kind, "time": T, **more}


CREATED = event("created", facts={"user": "ada", "log_id": 5})
SUBMITTING = event("submitting", scheduler="SLURMScheduler", **{"class": "m:C"})
ACCEPTED = event("submitted", submission=1, job_id="57")


def started(number: int, job_id: str | None = "57") -> Event:
    return event("started", attempt=number, host="n1", pid=7, job_id=job_id)


def ended(number: int, status: str, reason: str | None = None) -> Event:
    return event("ended", attempt=number, status=status, reason=reason)


def test_a_submitted_run_goes_through_its_states() -> None:
    events = [CREATED, SUBMITTING, ACCEPTED, started(1), event("running", attempt=1), ended(1, "COMPLETE")]
    statuses = [fold(events[:n]).status.value for n in range(2, 7)]
    assert statuses == ["SUBMITTED", "SUBMITTED", "STARTING", "RUNNING", "COMPLETE"]


def test_a_job_that_starts_before_the_submitter_speaks_is_not_reset() -> None:
    state = fold([CREATED, SUBMITTING, started(1), event("running", attempt=1), ACCEPTED])
    assert state.status is RunStatus.RUNNING
    assert state.job_id == "57"


def test_a_refusal_does_not_unmake_a_job_that_started() -> None:
    refused = event("refused", submission=1, reason="timed out")
    assert fold([CREATED, SUBMITTING, refused]).status is RunStatus.FAILED
    assert fold([CREATED, SUBMITTING, started(1), refused]).status is RunStatus.STARTING
    assert fold([CREATED, SUBMITTING, refused, started(1)]).status is RunStatus.STARTING


def test_who_looked_before_the_submitter_spoke_and_ended_does_not_unmake_its_job() -> None:
    gone = event("refused", submission=1, reason="the process is gone", unknown=True)
    for events in ([ACCEPTED, gone], [gone, ACCEPTED]):
        state = fold([CREATED, SUBMITTING, *events])
        assert (state.status, state.reason, state.job_id) == (RunStatus.SUBMITTED, None, "57")


def test_a_submission_that_is_cancelled_before_its_job_is_known_stays_cancelled() -> None:
    cancelled = event("withdrawn", attempts=1, status="CANCELLED", recalled=True)
    events = [CREATED, started(1), SUBMITTING, cancelled, ACCEPTED, ended(1, "PREEMPTED")]
    assert [fold(events[:n]).recalled for n in range(3, 7)] == [False, True, True, True]
    assert fold(events).status is RunStatus.CANCELLED
    assert fold([*events, ended(1, "COMPLETE")]).status is RunStatus.COMPLETE
    again = fold([*events, SUBMITTING])
    assert (again.status, again.recalled) == (RunStatus.SUBMITTED, False)


def test_a_submission_without_answer_stays_one_until_a_new_job_is_heard_of() -> None:
    unknown = event("refused", submission=1, reason="timed out", unknown=True)
    second = event("submitted", submission=2, job_id="58")
    for events, unanswered, known in [
        ([SUBMITTING, ACCEPTED, started(1), event("moved", job_id="60", **{"from": "57"})], 0, {"57", "60"}),
        ([SUBMITTING, started(1), ACCEPTED], 0, {"57"}),
        ([SUBMITTING, event("refused", submission=1, reason="no such queue")], 0, set()),
        ([SUBMITTING, event("waiting", submission=1, reason="full")], 0, set()),
        ([SUBMITTING, unknown, SUBMITTING, second], 1, {"58"}),
        ([SUBMITTING, unknown, SUBMITTING, second, started(1, "58"), started(2, "57")], 0, {"57", "58"}),
        ([SUBMITTING, SUBMITTING, second], 1, {"58"}),  # the first one was killed
        (  # the first one may still come, though the job of the second was started again under a new id
            [SUBMITTING, unknown, SUBMITTING, second, event("moved", job_id="60", **{"from": "58"})],
            1,
            {"58", "60"},
        ),
        ([SUBMITTING, ACCEPTED, started(1), started(2, "99")], 0, {"57", "99"}),  # by hand
    ]:
        state = fold([CREATED, *events])
        assert (state.unanswered, state.known_jobs) == (unanswered, known), events


def test_what_an_older_attempt_adds_is_ignored() -> None:
    state = fold([CREATED, started(1), started(2), event("running", attempt=2), ended(1, "FAILED", "zombie")])
    assert state.status is RunStatus.RUNNING
    assert state.attempts[0].reason == "vanished: killed, or its node failed"


def test_a_preempted_attempt_may_still_complete_but_a_complete_one_stays() -> None:
    state = fold(
        [CREATED, started(1), ended(1, "PREEMPTED", "x"), ended(1, "COMPLETE"), ended(1, "FAILED", "y")]
    )
    assert state.status is RunStatus.COMPLETE


def test_what_an_attempt_says_counts_for_more_than_what_others_concluded() -> None:
    gone = {**ended(1, "FAILED", "its process is gone"), "presumed": True}
    for own in (ended(1, "COMPLETE"), ended(1, "PREEMPTED", "warned")):
        events = [CREATED, started(1), gone, own]
        assert [fold(events[:n]).over for n in (3, 4)] == [False, own["status"] == "COMPLETE"]
        assert fold(events[:4]).status.value == own["status"]
    assert fold([CREATED, started(1), gone, started(2), ended(1, "COMPLETE")]).status is RunStatus.STARTING


def test_interruptions_and_losses_are_counted_apart() -> None:
    state = fold([CREATED, started(1), ended(1, "PREEMPTED", "x"), started(2), started(3)])
    assert (state.interruptions, state.losses) == (1, 1)


def test_who_hands_in_a_run_that_ended_lets_it_come_back_as_often_as_at_first() -> None:
    events = [
        CREATED,
        started(1),
        ended(1, "PREEMPTED"),
        started(2),
        started(3),
        ended(3, "FAILED", "too often"),
    ]
    assert (fold(events).interruptions, fold(events).losses) == (1, 1)
    again = [*events, SUBMITTING, ACCEPTED, started(4)]
    assert (fold(again).interruptions, fold(again).losses) == (0, 0)
    itself = [*again, SUBMITTING, ended(4, "PREEMPTED"), started(5), started(6)]
    assert (fold(itself).interruptions, fold(itself).losses) == (1, 1)


def test_a_withdrawal_counts_only_while_nothing_started() -> None:
    cancelled = event("withdrawn", attempts=0, status="CANCELLED", reason="by the user")
    assert fold([CREATED, SUBMITTING, cancelled]).status is RunStatus.CANCELLED
    assert fold([CREATED, SUBMITTING, started(1), cancelled]).status is RunStatus.STARTING


def test_kinds_of_events_from_a_newer_version_are_skipped() -> None:
    assert fold([CREATED, event("sang", song="la")]).sequence == 2


@pytest.mark.parametrize("status", ["COMPLETE", "FAILED", "RUNNING"])
def test_a_run_of_mlxp_is_unfinished_unless_it_said_complete(status: str) -> None:
    state = fold([event("created", facts={}, status=status)])
    assert (state.status is RunStatus.COMPLETE) == (status == "COMPLETE")


def test_the_picture_has_the_seeds_keys_in_the_seeds_formats() -> None:
    info = render_info(fold([CREATED, SUBMITTING, ACCEPTED, started(1), ended(1, "FAILED", "ValueError: x")]))
    assert info["start_date"] == "23/11/2026"
    assert info["start_time"] == "10:00:00"
    assert info["status"] == "FAILED"
    assert info["scheduler"]["job_id"] == "57"
    assert info["attempts"][0]["reason"] == "ValueError: x"
