"""Which checkpoints are kept, which is the best, and what is written in the background."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlxpy
import numpy as np
import pytest

from mlxjobs.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArtifactError,
    InvalidKeyError,
    InvalidMetricError,
)
from mlxjobs.logger import checkpoint_file, checkpoints, saving
from mlxjobs.logger.artifacts import Checkpoint
from mlxjobs.logger.logger import DefaultLogger, SilentLogger
from tests.attempts import attempt
from tests.project import Project
from tests.run_trees import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "5"


def folder(run: Path) -> Path:
    return run / "artifacts" / "Checkpoint"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in folder(run).iterdir() if path.is_file())


def epochs(run: Path) -> list[int]:
    return [json.loads(row)["epoch"] for row in (run / "metrics" / "val.json").read_text().splitlines()]


# --- keeping the last k


def test_the_last_k_are_kept_by_their_numbers(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(6):
        logger.log_checkpoint(epoch, "last", keep=3)
    assert names(run) == ["last.pkl", "last.pkl.4", "last.pkl.5"]
    assert logger.load_checkpoint() == logger.load_checkpoint("last") == 5
    assert logger.load_checkpoint("last.pkl.4") == 3
    again = attempt(run, 2)
    again.log_checkpoint(6, "last", keep=2)
    assert names(run) == ["last.pkl", "last.pkl.6"]
    again.log_checkpoint(7, "last", keep=1)
    assert names(run) == ["last.pkl"]


def test_numbers_go_over_all_names_and_names_do_not_disturb_one_another(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(10):
        logger.log_checkpoint(epoch, "epoch", keep=2)
        logger.log_checkpoint(epoch, f"epoch.{epoch}")
    own = [f"epoch.{epoch}.pkl" for epoch in range(10)]
    assert names(run) == [*own, "epoch.pkl", "epoch.pkl.17"]


def test_the_kept_ones_are_tried_one_after_the_other(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(4):
        logger.log_checkpoint(epoch, "last", keep=4)
    for name, left in (("last.pkl", 2), ("last.pkl.3", 1), ("last.pkl.2", 0)):
        path = folder(run) / name
        path.write_bytes(path.read_bytes()[:-1])
        for log_name in (None, "last"):
            with pytest.warns(UserWarning, match=r"last\.pkl cannot be read.*going on from"):
                assert DefaultLogger(run).load_checkpoint(log_name) == left
    (folder(run) / "last.pkl.1").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"last\.pkl"):
        DefaultLogger(run).load_checkpoint()


def test_a_changed_keep_forgets_nothing_that_it_did_not_say(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(3):
        logger.log_checkpoint(epoch, "last")
    assert names(run) == [".last.pkl.previous", "last.pkl"]
    logger.log_checkpoint(3, "last", keep=3)
    assert names(run) == [".last.pkl.previous", "last.pkl", "last.pkl.3"]
    logger.log_checkpoint(4, "last", keep=3)
    assert names(run) == ["last.pkl", "last.pkl.3", "last.pkl.4"]
    logger.log_checkpoint(5, "last")
    assert names(run) == [".last.pkl.previous", "last.pkl", "last.pkl.3", "last.pkl.4"]
    kept = [checkpoints.load(candidate.path) for candidate in checkpoints.kept(folder(run) / "last.pkl")]
    assert kept == [5, 4, 3, 2]


def test_a_damaged_one_is_not_kept_in_the_place_of_a_good_one(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(3):
        logger.log_checkpoint(epoch, "last", keep=3)
    path = folder(run) / "last.pkl"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    again = DefaultLogger(run)
    with pytest.warns(UserWarning, match="going on"):
        assert again.load_checkpoint() == 1
    again.log_checkpoint(3, "last", keep=3)
    assert [checkpoints.load(c.path) for c in checkpoints.kept(path)] == [3, 1, 0]


def test_those_that_are_kept_do_not_make_the_name_ambiguous(run: Path) -> None:
    logger = DefaultLogger(run)
    for epoch in range(3):
        logger.log_checkpoint(epoch, "last", keep=3)
    assert logger.load_artifacts("last", "Checkpoint") == 2
    assert logger.load_artifacts("last.pkl.1", "Checkpoint") == 0


def test_the_reader_loads_the_newest_and_any_that_is_kept(run: Path) -> None:
    write_run(run.parent, 5, {"seed": 1})
    logger = DefaultLogger(run)
    for epoch in range(3):
        logger.log_checkpoint(epoch, "last", keep=3)
    row = mlxpy.Reader(run.parent).filter()[0]
    assert row.load_checkpoint() == row.load_checkpoint("last") == 2
    assert row["artifact.Checkpoint."]["last.pkl.2"].load() == 1


@pytest.mark.parametrize("keep", [0, -1, 1.5, "3", True])
def test_a_keep_that_is_no_number_is_refused(run: Path, keep: Any) -> None:
    with pytest.raises(InvalidArtifactError, match="keep"):
        DefaultLogger(run).log_checkpoint(1, keep=keep)
    assert not folder(run).exists()


# --- keeping the best


def validate(logger: DefaultLogger, epoch: int, loss: float, **options: Any) -> None:
    logger.log_metrics({"loss": loss, "epoch": epoch}, log_name="val")
    logger.log_checkpoint({"epoch": epoch}, monitor="val.loss", **options)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 1.0, 2.0], 1),
        ("max", [3.0, 1.0, 2.0], 0),
        ("min", [math.nan, 2.0, math.nan, 3.0], 1),
        ("max", [math.inf, math.nan, 1.0], 0),
        ("min", [math.inf, 5.0, 5.0], 1),
        ("max", [-math.inf, 5, 4], 1),
    ],
)
def test_the_best_is_kept(run: Path, mode: str, values: list[float], best: int) -> None:
    logger = DefaultLogger(run)
    for epoch, value in enumerate(values):
        validate(logger, epoch, value, mode=mode)
    assert logger.load_checkpoint("checkpoint_best") == {"epoch": best}
    assert logger.load_checkpoint() == {"epoch": len(values) - 1}


def test_nan_is_never_best(run: Path) -> None:
    logger = DefaultLogger(run)
    validate(logger, 0, math.nan)
    with pytest.raises(CheckpointNotFoundError, match="checkpoint_best"):
        logger.load_checkpoint("checkpoint_best")


def test_the_best_takes_no_room_of_its_own_while_it_is_the_last(run: Path) -> None:
    validate(DefaultLogger(run), 0, 1.0)
    assert names(run) == ["checkpoint.pkl", "checkpoint_best.pkl"]
    assert (folder(run) / "checkpoint.pkl").samefile(folder(run) / "checkpoint_best.pkl")


def test_the_best_is_a_copy_where_there_are_no_hard_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    logger = DefaultLogger(run)
    for epoch, loss in enumerate([2.0, 1.0, 3.0]):
        validate(logger, epoch, loss)
    assert names(run) == [".checkpoint.pkl.previous", "checkpoint.pkl", "checkpoint_best.pkl"]
    assert logger.load_checkpoint("checkpoint_best") == {"epoch": 1}


def test_the_value_is_the_last_one_logged_however_long_ago(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_metrics({"val.loss": 0.5, "epoch": 0}, log_name="a.b")
    for step in range(20_000):
        logger.log_metrics({"step": step, "text": "x" * 10}, log_name="a.b")
    logger.log_checkpoint(0, monitor="a.b.val.loss")
    record = checkpoint_file.read_record(folder(run) / "checkpoint_best.pkl")
    assert record is not None
    assert (record.monitor, record.value) == ("a.b.val.loss", 0.5)


@pytest.mark.parametrize("monitor", ["val.loss", "train.acc", "loss", "", ".", 3])
def test_a_metric_that_was_never_logged_is_an_error_that_says_so(run: Path, monitor: Any) -> None:
    logger = DefaultLogger(run)
    logger.log_metrics({"loss": 1}, log_name="train")
    with pytest.raises(InvalidKeyError, match="monitor"):
        logger.log_checkpoint(1, monitor=monitor)
    assert not folder(run).exists()


def test_a_metric_that_is_no_number_and_a_mode_that_is_none_are_refused(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_metrics({"loss": "low"}, log_name="val")
    with pytest.raises(InvalidMetricError, match="'low', which is not a number"):
        logger.log_checkpoint(1, monitor="val.loss")
    with pytest.raises(InvalidArtifactError, match="'min' or 'max'"):
        logger.log_checkpoint(1, monitor="val.loss", mode="least")


def test_a_checkpoint_of_ones_own_is_not_replaced_by_the_best(run: Path) -> None:
    logger = DefaultLogger(run)
    logger.log_checkpoint("mine", "checkpoint_best")
    with pytest.raises(InvalidKeyError, match="checkpoint_best"):
        validate(logger, 0, 1.0)
    assert logger.load_checkpoint("checkpoint_best") == "mine"


def test_the_best_is_still_the_best_after_a_resumption(run: Path) -> None:
    first = attempt(run, 1)
    for epoch, loss in enumerate([3.0, 1.0, 2.0]):
        validate(first, epoch, loss)
    second = attempt(run, 2)
    assert second.load_checkpoint() == {"epoch": 2}
    validate(second, 3, 1.5)
    assert second.load_checkpoint("checkpoint_best") == {"epoch": 1}
    validate(second, 4, 0.5)
    assert second.load_checkpoint("checkpoint_best") == {"epoch": 4}


def test_what_an_attempt_takes_back_was_not_the_best(run: Path) -> None:
    first = attempt(run, 1)
    for epoch, loss in enumerate([3.0, 1.0]):
        validate(first, epoch, loss)
    again = attempt(run, 2)  # begins from scratch
    validate(again, 0, 3.0)
    assert again.load_checkpoint("checkpoint_best") == {"epoch": 0}


def test_another_monitor_begins_anew(run: Path) -> None:
    logger = DefaultLogger(run)
    validate(logger, 0, 1.0)
    logger.log_metrics({"acc": 0.1}, log_name="val")
    logger.log_checkpoint({"epoch": 1}, monitor="val.acc", mode="max")
    assert logger.load_checkpoint("checkpoint_best") == {"epoch": 1}


def test_a_damaged_best_is_told_and_the_best_counts_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = DefaultLogger(run)
    for epoch, loss in enumerate([1.0, 3.0]):
        validate(logger, epoch, loss)
    best = folder(run) / "checkpoint_best.pkl"
    best.write_bytes(best.read_bytes()[:-1])
    capsys.readouterr()
    validate(logger, 2, 2.0)
    assert f"the best 'checkpoint', {best}, is damaged" in capsys.readouterr().err
    assert logger.load_checkpoint("checkpoint_best") == {"epoch": 2}


def test_looking_at_the_best_does_not_go_back_to_it(run: Path) -> None:
    first = attempt(run, 1)
    for epoch, loss in enumerate([3.0, 1.0, 2.0]):
        validate(first, epoch, loss)
    told: list[Path] = []
    for names in (["checkpoint_best", "checkpoint"], ["checkpoint", "checkpoint_best"], [None]):
        logger = attempt(run, 2, resumed=told.append)
        for name in names:
            logger.load_checkpoint(name)
        assert epochs(run) == [0, 1, 2]
        assert told[-1].name == "checkpoint.pkl"


def test_a_run_whose_last_was_the_best_goes_on_from_the_last(run: Path) -> None:
    validate(attempt(run, 1), 0, 1.0)
    told: list[Path] = []
    attempt(run, 2, resumed=told.append).load_checkpoint()
    assert [path.name for path in told] == ["checkpoint.pkl"]


def test_other_ranks_take_the_same_options(run: Path) -> None:
    SilentLogger(run).log_checkpoint(1, "last", keep=3, monitor="val.loss", mode="max", blocking=False)
    assert not run.exists()


# --- in the background


class Gate:
    """Lets the writing of checkpoints begin when the test says so, or when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.error: OSError | None = None
        self.written: list[int] = []
        write = checkpoint_file.write

        def gated(obj: Any, path: Path, record: checkpoint_file.Record) -> None:
            assert self.opened.wait(60)
            error, self.error = self.error, None
            if error is not None:
                raise error
            write(obj, path, record)
            self.written.append(record.sequence)

        monkeypatch.setattr(checkpoint_file, "write", gated)
        join = saving.Background.join

        def joining(background: saving.Background) -> None:
            if background._thread is not None:
                self.opened.set()
            join(background)

        monkeypatch.setattr(saving.Background, "join", joining)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def test_a_background_checkpoint_returns_before_it_is_written_and_is_that_of_the_call(
    run: Path, gate: Gate
) -> None:
    logger = DefaultLogger(run)
    weights = np.arange(100_000)
    obj = {"weights": weights, "rate": lambda step: step * 2, "list": [1]}
    logger.log_checkpoint(obj, "last", blocking=False)
    weights[:] = 0
    obj["list"] = [2]
    assert not (folder(run) / "last.pkl").exists()
    loaded = logger.load_checkpoint()
    assert loaded["weights"].tolist() == list(range(100_000))
    assert loaded["list"] == [1]
    assert loaded["rate"](4) == 8
    with open(folder(run) / "last.pkl", "rb") as file:
        assert pickle.load(file)["list"] == [1]


def test_the_next_one_waits_for_the_one_before(run: Path, gate: Gate) -> None:
    logger = DefaultLogger(run)
    for epoch in range(4):
        if not epoch % 2:
            gate.opened.clear()
        logger.log_checkpoint(epoch, "last", keep=4, blocking=epoch % 2 == 1)
    logger.log_metrics({"a": 1})
    logger.log_checkpoint(4, "last", keep=4, blocking=False)
    logger.close()
    assert gate.written == [1, 2, 3, 4, 5]
    assert [checkpoints.load(c.path) for c in checkpoints.kept(folder(run) / "last.pkl")] == [4, 3, 2, 1]


def test_the_metrics_of_the_call_belong_to_it_and_its_best_too(run: Path, gate: Gate) -> None:
    logger = attempt(run, 1)
    logger.log_metrics({"loss": 1.0, "epoch": 0}, "val")
    logger.log_checkpoint(0, "last", monitor="val.loss", blocking=False)
    logger.log_metrics({"loss": 2.0, "epoch": 1}, "val")
    logger.close()
    record = checkpoint_file.read_record(folder(run) / "last_best.pkl")
    assert record is not None
    assert record.value == 1.0
    assert attempt(run, 2).load_checkpoint() == 0
    assert epochs(run) == [0]


@pytest.mark.parametrize(
    "call",
    [
        lambda logger: logger.log_metrics({"a": 1}),
        lambda logger: logger.log_checkpoint(3, "last"),
        lambda logger: logger.log_checkpoint(3, "last", blocking=False),
        lambda logger: logger.load_checkpoint(),
        lambda logger: logger.log_artifacts({"a": 1}, "a", "json"),
        lambda logger: logger.log_artifact(Checkpoint(1), "last"),
        lambda logger: logger.finish(),
    ],
    ids=["metrics", "save", "save in the background", "load", "artifacts", "artifact", "end"],
)
def test_a_failure_in_the_background_is_raised_once_by_the_next_call(
    run: Path, gate: Gate, call: Callable[[DefaultLogger], object], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = DefaultLogger(run)
    gate.opened.set()
    logger.log_checkpoint(1, "last")
    logger.log_metrics({"a": 0})
    gate.error = OSError(errno.ENOSPC, "No space left on device")
    logger.log_checkpoint(2, "last", blocking=False)
    logger.await_checkpoint()
    assert "No space left" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"No space left on device: .*last\.pkl") as caught:
        call(logger)
    assert caught.value.errno == errno.ENOSPC
    assert names(run) == ["last.pkl"]
    assert logger.load_checkpoint() == 1
    call(logger)
    logger.close()


def test_where_no_thread_can_be_started_it_takes_its_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    logger = attempt(run, 1)
    for epoch in range(2):
        logger.log_checkpoint({"epoch": epoch, "weights": bytes(20 << 20)}, blocking=False)
    logger.finish(complete=False)
    assert attempt(run, 2).load_checkpoint()["epoch"] == 1


def test_what_cannot_be_pickled_is_told_at_once(run: Path) -> None:
    logger = DefaultLogger(run)
    with pytest.raises(InvalidArtifactError, match=r"last\.pkl was not written"):
        logger.log_checkpoint((i for i in range(3)), "last", blocking=False)
    logger.log_checkpoint(1, "last")
    assert logger.load_checkpoint() == 1


def test_a_preempted_attempt_leaves_when_the_checkpoint_is_on_the_disk(run: Path, gate: Gate) -> None:
    seen: list[Any] = []
    preempted = False
    logger = DefaultLogger(
        run,
        preempted=lambda: preempted,
        checkpointed=lambda: seen.append(checkpoints.load(folder(run) / "last.pkl")),
    )
    logger.log_checkpoint(1, "last", blocking=False)
    assert seen == []
    preempted = True
    gate.opened.clear()
    logger.log_checkpoint(2, "last", blocking=False)
    assert seen == [2]


MAIN = """
import os, sys, time
from pathlib import Path
import numpy as np
import mlxpy
from mlxjobs.logger import checkpoint_file

write = checkpoint_file.write
def slow(*args):
    time.sleep(0.2)  # as a large one is
    print("RUNNING" in Path(os.environ["INFO"]).read_text(), flush=True)
    write(*args)
checkpoint_file.write = slow

@mlxpy.launch(config_path="./configs")
def train(ctx):
    logger = ctx.logger
    os.environ["INFO"] = logger.metadata_dir + "/info.yaml"
    try:
        start = logger.load_checkpoint()["epoch"] + 1
    except FileNotFoundError:
        start = 0
    print("from", start, flush=True)
    for epoch in range(start, 3):
        logger.log_metrics({"epoch": epoch}, log_name="train")
        while (go := os.environ.get("GO")) and int(Path(go).read_text() or 0) <= epoch:
            if logger.preempted:
                Path(go + ".warned").touch()
            time.sleep(0.01)
        logger.log_checkpoint({"epoch": epoch, "data": np.zeros(200_000)}, blocking=False)
    if ctx.config.end == "full":
        import resource
        logger.await_checkpoint()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        logger.log_checkpoint({"epoch": 3, "data": np.zeros(200_000)}, blocking=False)
        if ctx.config.exits:
            sys.exit(0)
    if ctx.config.end == "raise":
        raise ValueError("of the task")
    if ctx.config.end == "exit":
        sys.exit(3)

train()
"""
CONFIG = "end: return\nexits: false\n"


@pytest.fixture
def background(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", MAIN, CONFIG)


@pytest.mark.parametrize(("end", "code"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_an_attempt_ends_when_its_last_checkpoint_is_on_the_disk(
    background: Project, end: str, code: int
) -> None:
    done = background.run(f"end={end}", code=code)
    assert done.stdout.splitlines() == ["from 0", "True", "True", "True"]  # it was RUNNING at each
    assert DefaultLogger(background.at().path).load_checkpoint()["epoch"] == 2
    assert ("of the task" in (background.state().reason or "")) == (end == "raise")


@pytest.mark.parametrize("exits", [False, True])
def test_a_run_whose_last_checkpoint_could_not_be_written_is_failed(background: Project, exits: bool) -> None:
    done = background.run("end=full", f"exits={exits}", code=1)
    assert "checkpoint.pkl" in done.stderr
    state = background.state()
    assert state.status.value == "FAILED"
    assert "File too large" in (state.reason or "")
    assert "artifacts/Checkpoint/checkpoint.pkl" in (state.reason or "")
    assert DefaultLogger(background.at().path).load_checkpoint()["epoch"] == 2


def test_a_preempted_run_goes_on_from_what_was_written_in_the_background(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", MAIN, CONFIG)
    project.let_pass(1)
    project.submit()
    project.await_epoch(1)
    project.mlxjobs("preempt", "1")
    project.await_warning()
    project.let_pass(10)
    state = project.await_status("COMPLETE", attempts=2)
    assert [one.status.value for one in state.attempts if one.status] == ["PREEMPTED", "COMPLETE"]
    assert [line for line in project.stdout().splitlines() if "from" in line] == ["from 0", "from 2"]
    assert project.epochs() == [0, 1, 2]


def test_a_process_killed_while_it_writes_in_the_background_leaves_the_old_one(tmp_path: Path) -> None:
    script = """
import os, sys, time
from mlxjobs.logger import pickling
from mlxjobs.logger.logger import DefaultLogger
logger = DefaultLogger(sys.argv[1])
logger.log_checkpoint({"epoch": 0}, "last")
write = os.write
def half(descriptor, data):
    if len(data) < 100_000:
        return write(descriptor, data)
    write(descriptor, data[: len(data) // 2])
    print("half", flush=True)
    time.sleep(600)
logger.log_metrics({"a": 1})
pickling.os = type("os", (), {**vars(os), "write": staticmethod(half)})
logger.log_checkpoint({"epoch": 1, "data": bytes(1_000_000)}, "last", blocking=False)
logger.log_metrics({"a": 2})
"""
    run = tmp_path / "1"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    logger = attempt(run, 2)
    assert logger.load_checkpoint() == {"epoch": 0}
    logger.log_checkpoint({"epoch": 2}, "last")
    assert names(run) == [".last.pkl.previous", "last.pkl"]
