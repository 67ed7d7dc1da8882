from __future__ import annotations

import copy
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxjobs.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArtifactError,
    InvalidKeyError,
)
from mlxjobs.logger import artifacts, checkpoint_file, checkpoints
from mlxjobs.logger.artifacts import Artifact, Checkpoint
from mlxjobs.logger.logger import DefaultLogger, Logger, SilentLogger
from mlxjobs.record.fence import Fence
from tests.attempts import attempt
from tests.project import await_value


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "5"


def rows(run: Path, log_name: str = "train") -> list[Any]:
    path = run / "metrics" / f"{log_name}.json"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def epochs(run: Path, log_name: str = "train") -> list[int]:
    return [row["epoch"] for row in rows(run, log_name)]


def train(logger: DefaultLogger, first: int, last: int, save: int = -1) -> None:
    """Log the epochs from `first` to `last`, and a checkpoint after epoch `save`."""
    for epoch in range(first, last + 1):
        logger.log_metrics({"loss": 1 / (epoch + 1), "epoch": epoch}, log_name="train")
        if epoch == save:
            logger.log_checkpoint({"epoch": epoch}, log_name="last_ckpt")


# --- where things are


def test_a_logger_knows_its_run(run: Path) -> None:
    logger = DefaultLogger(run)
    assert logger.log_id == 5
    assert logger.log_dir == str(run)
    assert logger.parent_log_dir == str(run.parent)
    folders = (logger.metrics_dir, logger.artifacts_dir, logger.metadata_dir)
    assert folders == tuple(str(run / name) for name in ("metrics", "artifacts", "metadata"))
    assert all(Path(folder).is_dir() for folder in folders)
    assert logger.get_info()["log_id"] == 5
    assert DefaultLogger(run.parent / "name").log_id == "name"


def test_what_is_logged_is_where_the_document_says(run: Path) -> None:
    logger = DefaultLogger(run)
    train(logger, 0, 1, save=1)
    logger.log_metrics({"loss": math.nan})
    logger.log_checkpoint("default name")
    logger.finish()
    logger.close()
    assert rows(run) == [{"loss": 1.0, "epoch": 0}, {"loss": 0.5, "epoch": 1}]
    assert rows(run, "metrics") == [{"loss": "NaN"}]
    with open(run / "artifacts" / "Checkpoint" / "last_ckpt.pkl", "rb") as file:
        assert pickle.load(file) == {"epoch": 1}
    assert (run / "artifacts" / "Checkpoint" / "checkpoint.pkl").exists()


@pytest.mark.parametrize("name", ["info", "artifacts", "a/b", "", ".a"])
def test_bad_names_of_metrics_are_refused(run: Path, name: str) -> None:
    with pytest.raises(InvalidKeyError):
        DefaultLogger(run).log_metrics({"a": 1}, name)


@pytest.mark.parametrize("name", ["a/b", "", ".a", "../last"])
def test_bad_names_of_checkpoints_are_refused(run: Path, name: str) -> None:
    logger = DefaultLogger(run)
    with pytest.raises(InvalidKeyError):
        logger.log_checkpoint(1, name)
    with pytest.raises(InvalidKeyError):
        logger.load_checkpoint(name)


# --- loading


def test_without_a_name_the_latest_checkpoint_is_loaded(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_checkpoint("a", "a")
    logger.log_checkpoint("b", "b")
    assert logger.load_checkpoint() == "b"
    logger.log_checkpoint("a again", "a")
    again = DefaultLogger(run)
    assert again.load_checkpoint() == "a again"
    again.log_checkpoint("b again", "b")
    assert again.load_checkpoint() == "b again"
    for name in ("a", "a.pkl"):
        assert again.load_checkpoint(name) == "a again"
        assert again.load_checkpoint(log_name=name) == "a again"


def test_a_name_with_its_extension_is_the_same_name(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_checkpoint(1, "last.pkl")
    logger.log_checkpoint(2, "epoch.10")
    assert sorted(os.listdir(run / "artifacts" / "Checkpoint")) == ["epoch.10.pkl", "last.pkl"]
    assert logger.load_checkpoint("last") == 1
    assert logger.load_checkpoint("epoch.10") == 2


def test_no_checkpoint_is_an_error_that_says_where_it_looked(run: Path) -> None:
    logger = DefaultLogger(run)
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint in .*/5/artifacts/Checkpoint"):
        logger.load_checkpoint()
    logger.log_checkpoint(1, "last")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'best' in .*/5/artifacts/Checkpoint"):
        logger.load_checkpoint("best")
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        logger.load_checkpoint(root=run / "nowhere")


def test_checkpoints_of_other_programs_are_loaded_by_date(run: Path) -> None:
    folder = run / "artifacts" / "Checkpoint"
    logger = DefaultLogger(run)
    folder.mkdir()
    for date, name in enumerate(["old", "new"]):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(name))
        os.utime(folder / f"{name}.pkl", (date, date))
    assert logger.load_checkpoint() == "new"
    logger.log_checkpoint("ours", "ours")
    os.utime(folder / "ours.pkl", (0, 0))
    assert logger.load_checkpoint() == "ours"


def test_a_checkpoint_of_another_run_or_folder_rewinds_nothing(run: Path, tmp_path: Path) -> None:
    other = DefaultLogger(run.parent / "1")
    other.log_checkpoint("other", "last")
    train(DefaultLogger(run), 0, 3)
    logger = attempt(run, 2)
    checkpoint = run.parent / "1" / "artifacts" / "Checkpoint"
    shutil.copytree(checkpoint, tmp_path / "plain")
    for root in (run.parent / "1", str(checkpoint), tmp_path / "plain", run.parent / "1" / "artifacts"):
        assert logger.load_checkpoint(root=root) == "other"
        assert logger.load_checkpoint("last", root=root) == "other"
        assert logger.load_checkpoint("last.pkl", root=root) == "other"
    assert epochs(run) == [0, 1, 2, 3]


def test_a_checkpoint_of_mlxp_1_is_found(run: Path) -> None:
    folder = run.parent / "1" / "artifacts" / "pickle"
    folder.mkdir(parents=True)
    (folder / "last").write_bytes(pickle.dumps("mlxp"))
    logger = DefaultLogger(run)
    assert logger.load_checkpoint("last", root=run.parent / "1") == "mlxp"
    assert logger.load_checkpoint("last", root=folder) == "mlxp"


def test_a_damaged_checkpoint_falls_back_with_a_warning_on_the_users_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(DefaultLogger(run), 0, 1, save=0)
    logger = DefaultLogger(run)
    train(logger, 2, 3, save=3)
    path = run / "artifacts" / "Checkpoint" / "last_ckpt.pkl"
    path.write_bytes(path.read_bytes()[:10])
    with pytest.warns(UserWarning, match=r"last_ckpt\.pkl.*\.last_ckpt\.pkl\.previous") as caught:
        assert logger.load_checkpoint() == {"epoch": 0}
    assert caught[0].filename == __file__
    assert "going on from the one before it" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda content: content[:10], lambda content: b"??" + content[2:]])
def test_a_damaged_checkpoint_never_becomes_the_one_before(
    run: Path, damage: Callable[[bytes], bytes]
) -> None:
    logger = DefaultLogger(run)
    path = run / "artifacts" / "Checkpoint" / "last.pkl"
    logger.log_checkpoint("first", "last")
    for name in ("second", "third"):
        logger.log_checkpoint(name, "last")
        path.write_bytes(damage(path.read_bytes()))
        with pytest.warns(UserWarning, match="going on"):
            assert logger.load_checkpoint() == "first"


def test_metrics_follow_the_checkpoint_that_a_damaged_one_fell_back_to(run: Path) -> None:
    logger = attempt(run, 1)
    train(logger, 0, 1, save=1)
    train(logger, 2, 3, save=3)
    path = run / "artifacts" / "Checkpoint" / "last_ckpt.pkl"
    path.write_bytes(path.read_bytes()[:10])
    again = attempt(run, 2)
    with pytest.warns(UserWarning, match="going on"):
        assert again.load_checkpoint() == {"epoch": 1}
    assert epochs(run) == [0, 1]


def test_another_name_is_tried_when_both_files_of_the_latest_are_damaged(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_checkpoint("best", "best")
    logger.log_checkpoint("last", "last")
    (run / "artifacts" / "Checkpoint" / "last.pkl").write_bytes(b"\x80\x05damaged")
    with pytest.warns(UserWarning, match=r"last\.pkl cannot be read.*going on from .*best\.pkl"):
        assert logger.load_checkpoint() == "best"


def test_no_good_checkpoint_is_loud_and_not_a_missing_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = attempt(run, 1)
    train(logger, 0, 2, save=1)
    path = run / "artifacts" / "Checkpoint" / "last_ckpt.pkl"
    path.write_bytes(b"\x80\x05damaged")
    again = attempt(run, 2)
    for name in (None, "last_ckpt"):
        with pytest.raises(DamagedCheckpointError, match=r"last_ckpt\.pkl .*remove") as caught:
            again.load_checkpoint(name)
        assert not isinstance(caught.value, FileNotFoundError)
        assert "last_ckpt.pkl" in capsys.readouterr().err
    assert epochs(run) == [0, 1, 2]


# --- each step once


def test_a_resumed_run_has_each_step_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    assert logger.load_checkpoint() == {"epoch": 3}
    train(logger, 4, 7)
    logger.finish()
    assert epochs(run) == list(range(8))
    assert [r["epoch"] for r in rows(run, ".superseded/1/train")] == [4, 5]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "run 5 goes on from last_ckpt: what was written after it is moved to .superseded, 2 lines" in err


def test_an_attempt_before_the_first_checkpoint_is_superseded(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(attempt(run, 1), 0, 2)
    logger = attempt(run, 2)
    with pytest.raises(CheckpointNotFoundError):
        logger.load_checkpoint()
    assert "begins from scratch" in capsys.readouterr().err
    train(logger, 0, 1)
    assert epochs(run) == [0, 1]
    logger.finish()
    assert epochs(run) == [0, 1]
    assert capsys.readouterr().err == ""


def test_a_task_that_never_loads_begins_from_scratch_at_its_first_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    train(logger, 0, 2)
    assert epochs(run) == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    train(logger, 3, 3, save=3)
    train(logger, 4, 4, save=4)
    logger.finish()
    assert epochs(run) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.count("begins from scratch") == 1


def test_a_task_that_never_loads_nor_saves_begins_from_scratch_at_its_end(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    train(logger, 0, 2)
    logger.finish()
    assert epochs(run) == [0, 1, 2]


def test_an_attempt_that_logged_nothing_takes_nothing_away(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    attempt(run, 2).finish()
    assert epochs(run) == [0, 1, 2, 3, 4, 5]


def test_a_complete_run_is_never_rewound(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = DefaultLogger(run, fence=Fence(2))
    assert logger.load_checkpoint() == {"epoch": 3}
    train(logger, 4, 4, save=4)
    logger.finish()
    assert epochs(run) == [0, 1, 2, 3, 4, 5, 4]


def test_lines_before_loading_and_a_second_load_keep_what_this_attempt_wrote(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    logger.log_metrics({"gpus": 2}, "system")
    train(logger, 100, 100)
    logger.load_checkpoint()
    train(logger, 4, 4)
    logger.load_checkpoint()
    train(logger, 5, 5, save=5)
    logger.load_checkpoint()
    assert epochs(run) == [0, 1, 2, 3, 100, 4, 5]
    assert rows(run, "system") == [{"gpus": 2}]


def test_the_newest_of_several_checkpoints_that_are_loaded_counts(run: Path) -> None:
    logger = attempt(run, 1)
    train(logger, 0, 1)
    logger.log_checkpoint("best", "best")
    train(logger, 2, 4, save=3)
    logger = attempt(run, 2)
    logger.load_checkpoint("best")
    assert epochs(run) == [0, 1]
    train(logger, 100, 100)
    logger.load_checkpoint("last_ckpt")
    assert epochs(run) == [0, 1, 2, 3, 100]
    logger.load_checkpoint("best")
    train(logger, 4, 4)
    assert epochs(run) == [0, 1, 2, 3, 100, 4]


def test_an_attempt_from_scratch_that_never_saved_does_not_spoil_the_checkpoint(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    train(logger, 0, 1)
    logger.finish()
    assert epochs(run) == [0, 1]
    logger = attempt(run, 3)
    assert logger.load_checkpoint() == {"epoch": 3}
    train(logger, 4, 5)
    assert epochs(run) == [0, 1, 2, 3, 4, 5]


def test_a_missing_name_does_not_supersede_what_another_checkpoint_needs(run: Path) -> None:
    train(attempt(run, 1), 0, 5, save=3)
    logger = attempt(run, 2)
    with pytest.raises(CheckpointNotFoundError):
        logger.load_checkpoint("best")
    assert len(epochs(run)) == 6
    logger.load_checkpoint("last_ckpt")
    assert epochs(run) == [0, 1, 2, 3]


def test_a_checkpoint_without_a_record_keeps_all_lines_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(attempt(run, 1), 0, 2)
    folder = run / "artifacts" / "Checkpoint"
    folder.mkdir()
    (folder / "last.pkl").write_bytes(pickle.dumps("foreign"))
    logger = attempt(run, 2)
    assert logger.load_checkpoint() == "foreign"
    assert "all are kept" in capsys.readouterr().err
    train(logger, 3, 3, save=3)
    assert epochs(run) == [0, 1, 2, 3]


def test_resuming_is_told_once_for_each_checkpoint_of_this_run(run: Path) -> None:
    told: list[Path] = []
    logger = attempt(run, 1, resumed=told.append)
    train(logger, 0, 1, save=1)
    logger.load_checkpoint()
    assert told == []
    again = attempt(run, 2, resumed=told.append)
    again.load_checkpoint()
    again.load_checkpoint()
    assert told == [run / "artifacts" / "Checkpoint" / "last_ckpt.pkl"]


def test_a_full_disk_while_metrics_are_moved_does_not_lose_the_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlxjobs.logger import rewind

    train(attempt(run, 1), 0, 3, save=1)
    logger = attempt(run, 2)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rewind, "_set_aside", full)
        assert logger.load_checkpoint() == {"epoch": 1}
        assert "not moved away yet: [Errno 28]" in capsys.readouterr().err
    train(logger, 2, 2, save=2)
    assert epochs(run) == [0, 1, 2]


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Epoch:
    """What a task does in an epoch beside its metrics.

    Attributes:
        val: logs to a second file.
        save: the name of a checkpoint, if it saves one.
        first: it does so before its metrics and artifacts.
        artifact: one that it replaces.
    """

    val: bool
    save: str | None
    first: bool
    artifact: str | None


PLANS = st.lists(
    st.builds(
        Epoch,
        st.booleans(),
        st.sampled_from([None, None, "last_ckpt", "other"]),
        st.booleans(),
        st.sampled_from([None, "image", "best/image"]),
    ),
    min_size=1,
    max_size=8,
)


def task(logger: DefaultLogger, plan: list[Epoch], kill: int) -> None:
    """A deterministic task as the document has it; it dies after `kill` things it did."""
    done = 0

    def live() -> None:
        nonlocal done
        if done == kill:
            raise Killed
        done += 1

    def save(epoch: int, state: float, name: str) -> None:
        live()
        logger.log_checkpoint({"epoch": epoch, "state": state}, log_name=name)

    logger.log_artifacts("of every start", "start", "text")
    try:
        checkpoint = logger.load_checkpoint()
        first, state = checkpoint["epoch"] + 1, checkpoint["state"]
    except Exception:  # as users write it
        first, state = 0, 1.0
    for epoch in range(first, len(plan)):
        doing, after = plan[epoch], state * 0.9 + epoch
        if doing.save and doing.first:
            save(epoch - 1, state, doing.save)
        state = after
        live()
        logger.log_metrics({"loss": state, "epoch": epoch}, log_name="train")
        if doing.val:
            live()
            logger.log_metrics({"val": state, "epoch": epoch}, log_name="val")
        if doing.artifact:
            live()
            logger.log_artifacts(str(state), f"{doing.artifact}{epoch}", "text")
            live()
            logger.log_artifacts(str(state), doing.artifact, "text")
        if doing.save and not doing.first:
            save(epoch, state, doing.save)
    live()
    logger.finish()
    logger.forget()


def kept_artifacts(run: Path) -> dict[str, str]:
    folder = run / "artifacts" / "text"
    files = (path for path in folder.rglob("*") if path.is_file())
    inside = {str(path.relative_to(folder)): path.read_text() for path in files}
    return {name: text for name, text in inside.items() if not name.startswith(".superseded/")}


@settings(max_examples=60)
@given(
    plan=PLANS,
    kills=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["kill", "torn", "no load", "torn checkpoint"])),
        max_size=5,
    ),
)
def test_any_sequence_of_kills_gives_the_undisturbed_run(
    tmp_path_factory: pytest.TempPathFactory,
    plan: list[Epoch],
    kills: list[tuple[int, str]],
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    undisturbed, disturbed = folder / "1", folder / "2"
    task(attempt(undisturbed, 1), plan, -1)
    finished = False
    for number, (kill, how) in enumerate(kills, 1):
        logger = attempt(disturbed, number)
        if how == "no load":  # an attempt of another mind, which ends before it saved
            logger.log_metrics({"loss": -1.0, "epoch": -1}, "train")
            logger.log_artifacts("stray", "image", "text")
            logger.log_artifacts("stray", "stray", "text")
            logger.finish(complete=False)
            logger.close()
            continue
        try:
            task(logger, plan, kill)
            finished = True
        except Killed:
            logger.close()
        if how == "torn" and not finished:
            with open(disturbed / "metrics" / "train.json", "ab") as file:
                file.write(b'{"loss":0.')
        path = disturbed / "artifacts" / "Checkpoint" / "last_ckpt.pkl"
        if how == "torn checkpoint" and not finished and checkpoints.previous(path).exists():
            path.write_bytes(path.read_bytes()[:-1])
        if finished:
            break
    if not finished:
        last = attempt(disturbed, len(kills) + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task(last, plan, -1)
    for log_name in ("train", "val"):
        assert rows(disturbed, log_name) == rows(undisturbed, log_name)
    assert kept_artifacts(disturbed) == kept_artifacts(undisturbed)


def test_twenty_preemptions_leave_no_trace_in_the_files(run: Path) -> None:
    """What is left equals an undisturbed run byte by byte; what was taken back says who wrote it."""
    plan = [
        Epoch(epoch % 3 == 0, "last_ckpt" if epoch % 4 == 3 else None, epoch % 8 == 7, "image")
        for epoch in range(60)
    ]
    undisturbed = run.parent / "1"
    task(attempt(undisturbed, 1), plan, -1)
    random = Random(20)
    for number in range(1, 21):
        logger = attempt(run, number)
        with pytest.raises(Killed):
            task(logger, plan, random.randrange(6, 18))
        logger.close()
    task(attempt(run, 21), plan, -1)
    for log_name in ("train", "val"):
        mine, other = (folder / "metrics" / f"{log_name}.json" for folder in (run, undisturbed))
        assert mine.read_bytes() == other.read_bytes()
    assert kept_artifacts(run) == kept_artifacts(undisturbed)


# --- what was superseded


def test_what_another_thread_logs_during_a_resumption_is_kept(run: Path) -> None:
    first = attempt(run, 1)
    first.log_metrics({"n": -1}, "system")
    first.log_checkpoint(1)
    for _ in range(1000):
        first.log_metrics({"n": -2}, "system")
    second = attempt(run, 2)
    logged = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            second.log_metrics({"n": logged[0]}, "system")
            logged[0] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    await_value(lambda: logged[0] > 5, "the thread")
    second.load_checkpoint()
    second.log_checkpoint(2)
    done.set()
    thread.join()
    lines = (run / "metrics" / "system.json").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [-1, *range(logged[0])]


def test_superseded_lines_are_marked_with_the_attempt_that_wrote_them(run: Path) -> None:
    first = attempt(run, 1)
    train(first, 0, 3, save=1)
    second = attempt(run, 2)
    second.log_metrics({"epoch": 2, "loss": 0.0}, "train")  # never loads, and is killed
    third = attempt(run, 3)
    third.load_checkpoint()
    train(third, 2, 2)
    fourth = attempt(run, 4)
    fourth.load_checkpoint()
    train(fourth, 2, 3)
    assert epochs(run) == [0, 1, 2, 3]
    marked = {number: epochs(run, f".superseded/{number}/train") for number in (1, 2, 3)}
    assert marked == {1: [2, 3], 2: [2], 3: [2]}


# --- preemption


def test_the_launcher_is_called_when_the_checkpoint_is_on_the_disk(run: Path) -> None:
    seen: list[Any] = []

    def checkpointed() -> None:
        with open(run / "artifacts" / "Checkpoint" / "last.pkl", "rb") as file:
            seen.append(pickle.load(file))
        raise Killed

    logger = DefaultLogger(run, checkpointed=checkpointed)
    with pytest.raises(Killed):
        logger.log_checkpoint(3, "last")
    assert seen == [3]


def test_a_loop_can_ask_and_have_functions_called(run: Path) -> None:
    answer = False
    logger = DefaultLogger(run, preempted=lambda: answer)
    calls: list[str] = []
    logger.on_preemption(lambda: calls.append("first"))

    @logger.on_preemption
    def second() -> None:
        calls.append("second")

    assert not logger.preempted
    answer = True
    assert logger.preempted
    assert calls == []
    logger.run_preemption_callbacks()
    assert calls == ["first", "second"]
    assert not DefaultLogger(run).preempted


def test_a_failed_checkpoint_leaves_the_old_one_and_does_not_count(run: Path) -> None:
    calls: list[int] = []
    logger = DefaultLogger(run, checkpointed=lambda: calls.append(1))
    logger.log_checkpoint("good", "last")
    with pytest.raises(InvalidArtifactError, match=r"last\.pkl"):
        logger.log_checkpoint((i for i in range(3)), "last")
    assert calls == [1]
    assert logger.load_checkpoint() == "good"


def test_metrics_are_on_the_disk_before_the_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = DefaultLogger(run)
    train(logger, 0, 0)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    logger.log_checkpoint(1, "last")
    assert synced[:3] == ["train.json", "metrics", "artifacts"]
    assert synced[3].startswith(".last.pkl")


# --- a logger inside a checkpoint


class Trainer:
    """As users write it: it checkpoints itself, logger and all."""

    def __init__(self, logger: DefaultLogger) -> None:
        self.logger = logger
        self.epoch = 0
        self.schedule: Callable[[int], float] | None = None

    def step(self) -> None:
        self.logger.log_metrics({"epoch": self.epoch}, "train")
        self.epoch += 1
        self.logger.log_checkpoint(self, "trainer")


@pytest.mark.parametrize("with_lambda", [False, True])
def test_a_trainer_that_holds_its_logger_goes_on_logging_to_its_run(run: Path, with_lambda: bool) -> None:
    trainer = Trainer(attempt(run, 1))
    if with_lambda:
        trainer.schedule = lambda step: 0.1
    trainer.step()
    trainer.step()
    trainer.logger.log_metrics({"epoch": 2}, "train")
    logger = attempt(run, 2)
    loaded = logger.load_checkpoint()
    assert loaded.logger is logger
    assert loaded.epoch == 2
    loaded.step()
    assert epochs(run) == [0, 1, 2]


def test_a_copied_logger_is_the_same_logger(run: Path) -> None:
    logger = DefaultLogger(run)
    assert copy.deepcopy(Trainer(logger)).logger is logger
    assert pickle.loads(pickle.dumps(logger)) is logger


def test_a_logger_loaded_elsewhere_is_attached_and_rewinds_nothing(run: Path) -> None:
    logger = attempt(run, 1)
    Trainer(logger).step()
    train(logger, 5, 5)
    script = f"""
import pickle
from pathlib import Path
with open({str(run)!r} + "/artifacts/Checkpoint/trainer.pkl", "rb") as file:
    trainer = pickle.load(file)
assert trainer.logger.log_id == 5
assert trainer.logger.load_checkpoint().epoch == 1
assert trainer.logger.load_checkpoint().logger is trainer.logger
assert not trainer.logger.preempted
trainer.step()
trainer.logger.finish()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = f"import tests.logger.test_logger\n{script}"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert epochs(run) == [0, 5, 1]


def test_the_logger_in_a_checkpoint_follows_a_run_that_was_moved(run: Path, tmp_path: Path) -> None:
    first = attempt(run, 1)
    Trainer(first).step()
    first.close()
    moved = tmp_path / "archive" / "5"
    shutil.copytree(run, moved)
    shutil.rmtree(run)
    logger = attempt(moved, 2)
    loaded = logger.load_checkpoint()
    assert loaded.logger is logger
    loaded.step()
    assert epochs(moved) == [0, 1]
    assert not run.exists()


def test_unpickling_a_logger_of_a_run_that_is_gone_makes_no_folder(run: Path) -> None:
    logger = DefaultLogger(run)
    content = pickle.dumps(logger)
    logger.close()
    shutil.rmtree(run)
    assert pickle.loads(content).log_dir == str(run)
    assert not run.exists()


# --- artifacts


@pytest.fixture(autouse=True)
def _own_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_TYPES", dict(artifacts._TYPES))


class Note(Artifact):
    def __init__(self, obj: str) -> None:
        self.obj, self.ext = obj, ".txt"

    def _save(self, fname: str) -> None:
        Path(f"{fname}{self.ext}").write_text(self.obj)


def test_artifacts_of_both_generations_are_taken(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_artifact(Note("0.1"), "a")
    logger.log_artifact(Note("0.1"), log_name="b")
    logger.log_artifacts(Note("0.1"), "c")
    logger.log_artifacts(Note("0.1"), log_name="d")
    logger.log_artifacts({"a": 1}, "e", "pickle")
    logger.log_artifacts({"a": 1}, artifact_name="f.json", artifact_type="json")
    logger.log_artifacts(artifact={"a": np.arange(2)}, artifact_name="g", artifact_type="numpy")
    logger.register_artifact_type(
        "up", lambda o, p: Path(p).write_text(o.upper()), lambda p: Path(p).read_text()
    )
    logger.log_artifacts("text", "h", "up")
    found = sorted(str(p.relative_to(run / "artifacts")) for p in (run / "artifacts").rglob("*.*"))
    assert found == ["Note/a.txt", "Note/b.txt", "Note/c.txt", "Note/d.txt", "json/f.json"]
    assert logger.load_artifacts("e") == {"a": 1}
    assert logger.load_artifacts("f.json", "json") == {"a": 1}
    assert logger.load_artifacts("h") == "TEXT"
    logger.log_artifacts([1], "best/model", "json")
    assert logger.load_artifacts("best/model") == [1]
    other = DefaultLogger(run.parent / "6")
    for root in (run, str(run / "artifacts")):
        assert other.load_artifacts("g", "numpy", root)["a"].tolist() == [0, 1]


def test_an_object_without_a_type_is_refused(run: Path) -> None:
    with pytest.raises(InvalidArtifactError, match="artifact_type"):
        DefaultLogger(run).log_artifacts({"a": 1}, "a")
    with pytest.raises(InvalidKeyError):
        DefaultLogger(run).log_artifacts({"a": 1}, artifact_type="pickle")


def test_a_checkpoint_artifact_is_a_checkpoint(run: Path) -> None:
    calls: list[int] = []
    logger = DefaultLogger(run, checkpointed=lambda: calls.append(1))
    logger.log_artifact(Checkpoint({"epoch": 1}, ".pkl"), "last")
    assert logger.load_checkpoint() == {"epoch": 1}
    assert logger.load_artifacts("last", "Checkpoint") == {"epoch": 1}
    assert checkpoint_file.read_record(run / "artifacts" / "Checkpoint" / "last.pkl") is not None
    assert calls == [1]


# --- other loggers


def test_a_silent_logger_writes_nothing_and_reads(run: Path) -> None:
    train(DefaultLogger(run), 0, 3, save=1)
    before = sorted((p, p.stat().st_mtime_ns) for p in run.parent.rglob("*"))
    calls: list[int] = []
    logger = SilentLogger(run, preempted=lambda: True, checkpointed=lambda: calls.append(1))
    train(logger, 0, 3)
    logger.log_checkpoint(1)
    logger.log_artifact(Note("a"), "a")
    logger.log_artifacts(1, "a", "pickle")
    assert logger.load_checkpoint() == {"epoch": 1}
    assert logger.preempted
    assert calls == [1]
    logger.finish()
    logger.close()
    assert sorted((p, p.stat().st_mtime_ns) for p in run.parent.rglob("*")) == before
    assert SilentLogger(run.parent / "nowhere").log_id == "nowhere"
    assert not (run.parent / "nowhere").exists()


def test_a_trainer_on_another_rank_gets_the_silent_logger(run: Path) -> None:
    first = DefaultLogger(run)
    Trainer(first).step()
    first.close()
    silent = SilentLogger(run)
    trainer = silent.load_checkpoint()
    assert trainer.logger is silent
    trainer.step()
    assert epochs(run) == [0]


def test_a_user_may_remove_artifacts_of_a_run_that_goes_on(run: Path) -> None:
    logger = attempt(run, 1)
    for epoch in range(2):
        logger.log_artifacts(str(epoch), "note", "text")
        logger.log_checkpoint(epoch)
        assert logger.load_artifacts("note", "text") == str(epoch)
        assert logger.load_checkpoint() == epoch
        for folder in ("text", "Checkpoint"):  # as when the disk is full
            shutil.rmtree(run / "artifacts" / folder)


def test_users_can_derive_their_own_logger(run: Path) -> None:
    class Loud(DefaultLogger):
        def log_metrics(self, metrics_dict: Any, log_name: str = "metrics") -> None:
            super().log_metrics({**metrics_dict, "loud": True}, log_name)

    Loud(run).log_metrics({"a": 1}, "train")
    assert rows(run) == [{"a": 1, "loud": True}]
    with pytest.raises(TypeError, match="abstract"):
        Logger(run)  # type: ignore[abstract]


def test_logging_goes_on_after_close(run: Path) -> None:
    logger = DefaultLogger(run)
    train(logger, 0, 0)
    logger.close()
    train(logger, 1, 1, save=1)
    assert epochs(run) == [0, 1]
    assert logger.load_checkpoint() == {"epoch": 1}


def test_what_was_kept_for_an_attempt_is_gone_when_it_has_ended(run: Path) -> None:
    train(attempt(run, 1), 0, 1, save=1)
    killed = attempt(run, 2)
    killed.load_checkpoint()
    failed = attempt(run, 3)
    failed.load_checkpoint()
    train(failed, 2, 2)
    failed.close()  # as when the task raised
    last = attempt(run, 4)
    last.load_checkpoint()
    train(last, 2, 3)
    last.finish()
    again = attempt(run, 5, unfinished=False)  # of a run that is complete
    again.finish()
    assert epochs(run) == [0, 1, 2, 3]
    assert not (run / "metrics" / ".before").exists()
    assert not list((run / "metrics" / ".superseded").glob("before*"))
