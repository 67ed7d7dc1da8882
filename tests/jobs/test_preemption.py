"""What a warning does: asked at once, left at the safe point, put back afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxjobs.errors import RunError, SchedulerError
from mlxjobs.jobs.hand_in import end_attempt
from mlxjobs.jobs.preemption import Preemption
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record.history import Preempted, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.scheduler import EX_TEMPFAIL, Fate, Here, JobState, JobStatus
from mlxjobs.system import shell
from tests.faulty import full_at
from tests.project import await_value

WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class FakeCluster:
    """A scheduler that answers what the test wants."""

    fate: Fate = Fate.RUNS_ON
    refuses: bool = False
    silent: bool = False
    resubmits: bool = False
    ends: datetime | None = None
    name: str = "Fake"
    path: str = "fake:Fake"
    command: tuple[str, ...] = ()
    requeued: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    results: list[shell.Result] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    @property
    def scheduler(self) -> Any:
        return SimpleNamespace(
            warning_signals=WARNINGS,
            fate=lambda status, here: self.fate,
            requeue_command=lambda job_id: None if self.resubmits else ["requeue", job_id],
            commands=(),
            requeue_exit_code=lambda: EX_TEMPFAIL,
            requeues_exit_after_s=lambda status: None,
        )

    def status(self, job_ids: list[str]) -> dict[str, JobStatus]:
        if self.command:
            self.results.append(shell.run(self.command, timeout_s=30))
        self.asked.set()
        if self.silent:
            raise SchedulerError("nobody answers")
        return dict.fromkeys(job_ids, JobStatus(JobState.RUNNING, "RUNNING", ends=self.ends))

    def submit(self, script: Path, known: Collection[str], after: str) -> str:
        self.submitted.append(str(58 + len(self.submitted)))
        return self.submitted[-1]

    def requeue(self, job_id: str) -> None:
        if self.refuses:
            raise SchedulerError("requeue is disabled")
        self.requeued.append(job_id)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path)
    run.record(lambda state: {"event": "started", "attempt": 1, "job_id": "57"})
    return run


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in WARNINGS]
    fd = signal.set_wakeup_fd(-1)
    yield
    for number, handler in zip(WARNINGS, before, strict=True):
        signal.signal(number, handler)
    signal.set_wakeup_fd(fd)


def preemption(run: Run, cluster: FakeCluster, max_requeues: int = 100, rank: int = 0) -> Preemption:
    return Preemption(run, 1, cluster, Here("57", rank=rank), max_requeues)  # type: ignore[arg-type]


def nothing() -> None:
    """No callback."""


def warn(cluster: FakeCluster, number: signal.Signals = signal.SIGUSR2) -> None:
    os.kill(os.getpid(), number)
    assert cluster.asked.wait(30)


def test_without_a_warning_the_safe_point_is_passed(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)
    with one.listen():
        one.at_safe_point(nothing)
    assert not cluster.asked.is_set()
    assert [signal.getsignal(number) for number in WARNINGS] == [signal.SIG_DFL] * 3


def test_a_warned_run_requeues_itself_at_the_safe_point_not_before(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)
    called: list[int] = []
    with one.listen():
        warn(cluster)
        assert one.requested
        assert cluster.requeued == []
        with pytest.raises(Preempted) as caught:
            one.at_safe_point(lambda: called.append(1))
    assert cluster.requeued == ["57"]
    assert called == [1]
    assert caught.value.status is RunStatus.PREEMPTED
    assert run.state().reason == "warned by SIGUSR2, requeued 1 of 100"
    # Slurm will signal the job that has been requeued: that must not cut its exit short
    assert [signal.getsignal(number) for number in WARNINGS] == [signal.SIG_IGN] * 3


@pytest.mark.parametrize(
    ("fate", "status", "requeued"),
    [
        (Fate.CANCELLED, RunStatus.CANCELLED, []),
        (Fate.REQUEUED, RunStatus.PREEMPTED, []),
        (Fate.TIME_LIMIT, RunStatus.PREEMPTED, ["57"]),
    ],
)
def test_what_cannot_wait_for_a_safe_point_is_done_at_once(
    run: Run, fate: Fate, status: RunStatus, requeued: list[str]
) -> None:
    cluster = FakeCluster(fate)
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster, signal.SIGTERM)
        await_value(lambda: run.state().status is status, "the record")
        assert cluster.requeued == requeued
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
    assert cluster.requeued == requeued


@pytest.mark.parametrize("cluster", [FakeCluster(refuses=True), FakeCluster(silent=True, refuses=True)])
def test_a_run_that_cannot_come_back_goes_on(
    run: Run, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        one.at_safe_point(nothing)
        cluster.refuses = cluster.silent = False
        with pytest.raises(Preempted):  # the next safe point tries again
            one.at_safe_point(nothing)
    assert "requeue is disabled" in capsys.readouterr().err


@pytest.mark.parametrize("resubmits", [False, True])
def test_a_second_warning_makes_no_second_job(run: Run, resubmits: bool) -> None:
    """Grid Engine warns twice (measured), and a soft limit is followed by a hard one."""
    cluster = FakeCluster(Fate.TIME_LIMIT, resubmits=resubmits)
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        await_value(lambda: run.state().attempts[0].end, "the record")
        cluster.asked.clear()
        warn(cluster, signal.SIGTERM)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
    assert len(cluster.requeued + cluster.submitted) == 1
    assert run.state().status is RunStatus.PREEMPTED


@pytest.mark.parametrize("status", [RunStatus.COMPLETE, RunStatus.FAILED])
def test_a_task_that_ends_while_its_successor_is_being_handed_in_has_none(
    run: Run, status: RunStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster(Fate.TIME_LIMIT, resubmits=True)
    one = preemption(run, cluster)

    def end_now(lacking: object) -> list[str]:
        run.record(lambda state: {"event": "ended", "attempt": 1, "status": status.value})
        return []

    monkeypatch.setattr("mlxjobs.jobs.hand_in.shell.missing", end_now)
    with one.listen():
        warn(cluster)
    assert cluster.submitted == []
    assert run.state().status is status


def test_a_run_that_somebody_took_for_dead_comes_back_all_the_same(run: Run) -> None:
    end_attempt(run, 1, RunStatus.FAILED, "its process is gone", presumed=True)
    cluster = FakeCluster(Fate.TIME_LIMIT)
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
    assert cluster.requeued == ["57"]
    end_attempt(run, 1, RunStatus.FAILED, "its process is gone", presumed=True)
    assert run.state().status is RunStatus.PREEMPTED


def test_a_history_that_cannot_be_read_ends_neither_the_task_nor_its_listening(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = FakeCluster(Fate.TIME_LIMIT)
    one = preemption(run, cluster)
    path = run.history_dir / "0001.json"
    whole = path.read_bytes()
    path.write_bytes(b"")
    with one.listen():
        warn(cluster)
        one.at_safe_point(nothing)
        path.write_bytes(whole)
        with pytest.raises(Preempted):
            one.at_the_end(nothing, by_exit=True)
    assert "is damaged" in capsys.readouterr().err


def test_a_warning_does_not_end_the_commands_that_ask(run: Run) -> None:
    """The signal of a whole job, or of a process group, reaches them too."""
    cluster = FakeCluster(command=("sh", "-c", "kill -USR2 $$; kill -TERM $$; echo alive"))
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
        assert [result.out for result in cluster.results] == ["alive\n", "alive\n"]
        cluster.asked.clear()
        warn(cluster)  # this thread takes signals as before


def test_a_silent_scheduler_does_not_keep_a_run_from_coming_back(run: Run) -> None:
    cluster = FakeCluster(silent=True)
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
    assert cluster.requeued == ["57"]


def test_a_scheduler_that_falls_silent_does_not_let_the_end_of_the_job_be_missed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OAR warns again and again, and kills without a warning."""
    cluster = FakeCluster(ends=datetime.now(timezone.utc) + timedelta(hours=1))
    one = preemption(run, cluster)
    left: list[int] = []
    monkeypatch.setattr("mlxjobs.jobs.preemption.os._exit", left.append)
    with one.listen():
        warn(cluster)
        cluster.silent = True
        cluster.asked.clear()
        monkeypatch.setattr("mlxjobs.jobs.preemption._BEFORE_END_S", 3600.0)  # the end has come near
        warn(cluster)
        await_value(lambda: left, "the exit")
    assert cluster.requeued == ["57"]
    assert run.state().reason == "TIME_LIMIT, requeued 1 of 100"


def test_a_full_disk_does_not_end_a_run_that_wants_to_hand_itself_in_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = FakeCluster(resubmits=True)
    one = preemption(run, cluster)
    with one.listen(), monkeypatch.context() as patch:
        warn(cluster)
        full_at(1, until=10**9).install(patch)
        one.at_safe_point(nothing)
    assert "so it goes on" in capsys.readouterr().err
    assert run.state().status is RunStatus.STARTING


def test_a_task_that_ended_waits_for_a_scheduler_that_does_not_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster(silent=True, refuses=True)
    one = preemption(run, cluster)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        cluster.refuses = len(pauses) < 5

    with one.listen():
        warn(cluster)
        assert one.tell_task()
        monkeypatch.setattr("mlxjobs.jobs.preemption.time.sleep", pause)
        with pytest.raises(Preempted):
            one.at_the_end(nothing, by_exit=False)
    assert cluster.requeued == ["57"]
    assert pauses == [1, 2, 4, 5, 5]


def test_a_task_that_ended_does_not_wait_for_a_scheduler_that_refuses(run: Run) -> None:
    cluster = FakeCluster(refuses=True)
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        assert one.tell_task()
        with pytest.raises(RunError, match="to go on: mlxjobs requeue 1 --logs"):
            one.at_the_end(nothing, by_exit=False)


def test_a_task_that_catches_everything_and_returns_has_left_all_the_same(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
        with pytest.raises(Preempted):
            one.at_the_end(nothing, by_exit=False)
    assert cluster.requeued == ["57"]


def test_max_requeues_ends_a_run_whose_time_is_over(run: Run) -> None:
    cluster = FakeCluster(Fate.TIME_LIMIT)
    one = preemption(run, cluster, max_requeues=0)
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(nothing)
    assert cluster.requeued == []
    assert run.state().status is RunStatus.CANCELLED
    assert "max_requeues" in str(run.state().reason)


def test_a_callback_that_fails_does_not_keep_the_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)

    def fail() -> None:
        raise RuntimeError("no space for my own files")

    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            one.at_safe_point(fail)
    assert "no space for my own files" in capsys.readouterr().err


def test_a_callback_may_save_or_exit_and_the_next_one_is_called_all_the_same(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)
    called: list[str] = []
    logger = DefaultLogger(
        run.path,
        preempted=one.tell_task,
        checkpointed=lambda: one.at_safe_point(logger.run_preemption_callbacks),
    )

    @logger.on_preemption
    def save() -> None:
        called.append("save")
        logger.log_checkpoint("last")

    @logger.on_preemption
    def leave() -> None:
        called.append("leave")
        sys.exit()  # by which a task says that it is done

    logger.on_preemption(lambda: called.append("print"))
    with one.listen():
        warn(cluster)
        with pytest.raises(Preempted):
            logger.log_checkpoint("safe")
    assert called == ["save", "leave", "print"]
    assert logger.load_checkpoint() == "last"


def test_other_ranks_see_the_warning_and_leave_the_rest_to_the_first(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster, rank=1)
    with one.listen():
        os.kill(os.getpid(), signal.SIGUSR2)
        await_value(lambda: one.requested, "the warning")
        one.at_safe_point(nothing)
    assert not cluster.asked.is_set()
    assert cluster.requeued == []


def _worker(ready: Any) -> None:
    ready.set()
    threading.Event().wait(60)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_can_be_terminated_and_its_signals_are_its_own(run: Run) -> None:
    cluster = FakeCluster()
    one = preemption(run, cluster)
    context = multiprocessing.get_context("fork")
    with one.listen():
        ready = context.Event()
        worker = context.Process(target=_worker, args=(ready,))
        worker.start()
        assert ready.wait(30)
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == -signal.SIGTERM
        assert not one.requested
    assert not cluster.asked.is_set()


def test_a_task_in_a_thread_is_not_listened_for(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    one = preemption(run, FakeCluster())

    def task() -> None:
        with one.listen():
            pass

    thread = threading.Thread(target=task)
    thread.start()
    thread.join()
    assert "runs in a thread" in capsys.readouterr().err
