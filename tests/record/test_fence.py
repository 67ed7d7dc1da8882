"""A process that was given up, and comes back, writes nothing to a run that a newer attempt has."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.logger.artifacts import NumpyArray
from mlxjobs.logger.before import renew
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record.fence import Fence, Superseded, take_over
from tests.project import Project, await_value
from tests.slurm_stub import Slurm


class Attempts:
    """Attempts of one run in one process; the newest is the one that began last."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.newest = 0

    def begin(self, number: int) -> DefaultLogger:
        self.newest = number

        def check() -> None:
            if self.newest > number:
                raise Superseded

        fence = Fence(number, check)
        if number > 1:
            take_over(self.run, number, range(1, number))
            renew(self.run / "metrics", fence)
        return DefaultLogger(self.run, fence=fence, unfinished=number > 1)


def train(logger: DefaultLogger, first: int, last: int, mark: int) -> None:
    for epoch in range(first, last + 1):
        logger.log_metrics({"epoch": epoch, "by": mark}, log_name="train")
        logger.log_checkpoint({"epoch": epoch, "by": mark})
        logger.log_artifact(NumpyArray({"by": mark}), "weights")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def log_a_line(logger: DefaultLogger) -> None:
    logger.log_metrics({"epoch": 9, "by": 9}, log_name="train")


def log_to_a_new_file(logger: DefaultLogger) -> None:
    logger.log_metrics({"epoch": 9, "by": 9}, log_name="val")


def save(logger: DefaultLogger) -> None:
    logger.log_checkpoint({"epoch": 9, "by": 9})


def save_in_the_background(logger: DefaultLogger) -> None:
    logger.log_checkpoint({"epoch": 9, "by": 9}, blocking=False)
    logger.await_checkpoint()
    log_a_line(logger)  # raises what the thread met


def keep_an_artifact(logger: DefaultLogger) -> None:
    logger.log_artifact(NumpyArray({"by": 9}), "weights")


def keep_a_new_artifact(logger: DefaultLogger) -> None:
    logger.log_artifacts("9", "notes.txt", "text")


def begin_from_scratch(logger: DefaultLogger) -> None:
    logger.log_metrics({"epoch": 9, "by": 9}, log_name="train")
    logger.finish()


def go_on(logger: DefaultLogger) -> None:
    logger.load_checkpoint()


WRITES = [
    log_a_line, log_to_a_new_file, save, save_in_the_background, keep_an_artifact, keep_a_new_artifact,
    begin_from_scratch, go_on,
]  # fmt: skip
CALLS = ("open", "write", "fsync", "replace", "rename", "truncate", "ftruncate", "mkdir", "link", "unlink")


def interrupted(
    act: Callable[[], object], meanwhile: Callable[[], object], point: int, patch: pytest.MonkeyPatch
) -> bool:
    """Call `act`, and `meanwhile` just before the system call number `point`; False if there is none."""
    count = iter(range(10**6))
    done = False

    def stepping(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal done
            if not done and next(count) == point:
                done = True
                meanwhile()
            return real(*args, **options)

        return call

    with patch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, stepping(getattr(os, name)))
        try:
            act()
        except Superseded:
            assert done
    return done


@pytest.mark.parametrize("write", WRITES)
def test_what_a_newer_attempt_wrote_stays_wherever_an_older_one_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[DefaultLogger], None]
) -> None:
    before = tmp_path / "before"
    logger = Attempts(before).begin(1)
    train(logger, 0, 2, mark=1)
    logger.log_metrics({"epoch": 3, "by": 1}, log_name="train")  # to be taken back
    run = tmp_path / "logs" / "1"
    for point in range(200):
        shutil.copytree(before, run)
        attempts = Attempts(run)
        old = attempts.begin(2)
        if write is not go_on:
            old.load_checkpoint()
        new: list[DefaultLogger] = []

        def begin(attempts: Attempts = attempts, new: list[DefaultLogger] = new) -> None:
            new.append(attempts.begin(3))
            first = new[0].load_checkpoint()["epoch"] + 1
            train(new[0], first, 4, mark=3)

        happened = interrupted(lambda old=old: write(old), begin, point, monkeypatch)  # type: ignore[misc]
        if not new:
            begin()
        for again in WRITES:
            # a line may still be written for a second, but to a file that nobody sees
            if again not in (log_a_line, log_to_a_new_file, go_on):
                with pytest.raises(Superseded):
                    again(old)
        train(new[0], 5, 5, mark=3)
        new[0].finish()
        rows = lines(run / "metrics" / "train.json")
        # a checkpoint that the old one saved before it was followed counts, and its line too
        saved = [row for row in rows if row["by"] == 9]
        saving = write in (save, save_in_the_background)
        assert saving or not saved
        epochs = [row["epoch"] for row in rows if row["by"] != 9]
        assert epochs == [0, 1, 2, 3, 4, 5] or (saving and epochs in ([0, 1, 2], [0, 1, 2, 5])), point
        assert lines(run / "metrics" / "val.json") == []
        assert new[0].load_checkpoint() == {"epoch": 5, "by": 3}
        assert NumpyArray.load(str(run / "artifacts" / "NumpyArray" / "weights.npz"))["by"] == 3
        left = [path for path in run.rglob("*") if ".attempt-2" in path.name or path.name.endswith(".tmp")]
        assert left == []
        shutil.rmtree(run)
        if not happened:
            assert point > 0
            return
    raise AssertionError("it never ended")


def test_two_newer_attempts_may_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tmp_path / "before"
    train(Attempts(before).begin(1), 0, 2, mark=1)
    run = tmp_path / "logs" / "1"
    for point in range(200):
        shutil.copytree(before, run)
        attempts = Attempts(run)
        new: list[DefaultLogger] = []

        def begin(attempts: Attempts = attempts, new: list[DefaultLogger] = new) -> None:
            new.append(attempts.begin(3))
            train(new[0], new[0].load_checkpoint()["epoch"] + 1, 4, mark=3)

        begins = [attempts.begin]
        happened = interrupted(lambda begins=begins: begins[0](2), begin, point, monkeypatch)  # type: ignore[misc]
        if not happened:
            assert point > 5
            return
        train(new[0], 5, 5, mark=3)
        assert [row["epoch"] for row in lines(run / "metrics" / "train.json")] == [0, 1, 2, 3, 4, 5]
        shutil.rmtree(run)
    raise AssertionError("it never ended")


def start(project: Project, **variables: str) -> subprocess.Popen[str]:
    """Run the script of run 1 as its job would."""
    return subprocess.Popen(
        [str(project.at().script)],
        cwd=project.folder, env={**project.env, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_process_that_was_stopped_and_given_up_says_so_and_ends(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.submit("")
    project.let_pass(2)
    with start(project, SLURM_JOB_ID="1") as old:
        project.await_epoch(2)
        os.kill(old.pid, signal.SIGSTOP)
        project.let_pass(3)
        with start(project, SLURM_JOB_ID="1", SLURM_RESTART_COUNT="1") as new:
            project.await_epoch(3)
            os.kill(old.pid, signal.SIGCONT)
            _, said = old.communicate(timeout=120)
            assert old.returncode == 76
            assert "run 1 was started again on" in said
            assert "as attempt 2: this process, attempt 1, may not write to it any more, and ends" in said
            assert "Traceback" not in said
            project.let_pass(10)
            assert new.wait(timeout=120) == 0
    assert project.epochs() == [0, 1, 2, 3, 4]
    state = project.state()
    assert state.status == "COMPLETE"
    assert [attempt.status for attempt in state.attempts] == [None, "COMPLETE"]
    hidden = [path.name for path in project.at().path.rglob(".attempt-*")]
    assert hidden == []


def test_of_two_starts_at_one_instant_one_wins(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.submit("")
    slurm_stub.end("1")
    project.let_pass(0)
    both = [start(project, SLURM_JOB_ID="1") for _ in range(2)]
    await_value(lambda: [one for one in both if one.poll() is not None], "one to be refused")
    project.let_pass(10)
    said = [one.communicate(timeout=120)[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 2]
    assert "two processes cannot share a run" in said[both.index(max(both, key=lambda one: one.returncode))]
    assert len(project.state().attempts) == 1
    assert project.epochs() == [0, 1, 2, 3, 4]
