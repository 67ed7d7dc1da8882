"""A checkpoint when the process is killed, the disk is full, or a byte changes: at every point."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxjobs.errors import DamagedCheckpointError
from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record
from mlxjobs.logger.checkpoints import previous
from mlxjobs.logger.logger import DefaultLogger
from tests.attempts import attempt

# the calls by which a checkpoint comes to the disk
CALLS = ("open", "write", "fsync", "close", "link", "replace", "rename", "unlink", "mkdir", "ftruncate")
OPTIONS: dict[str, dict[str, Any]] = {
    "the one before": {},
    "the last k and the best": {"keep": 2, "monitor": "val.loss"},
    "in the background": {"keep": 3, "monitor": "val.loss", "blocking": False},
}


def save(logger: DefaultLogger, epoch: int, **options: Any) -> None:
    """Log the next epoch, which is better than all before, and its checkpoint."""
    logger.log_metrics({"loss": 1 / (epoch + 1)}, "val")
    logger.log_checkpoint({"epoch": epoch, "data": np.full(100_000, epoch)}, "last", **options)
    logger.await_checkpoint()


def epoch_of(checkpoint: Any) -> int:
    """The epoch of a checkpoint that is whole."""
    assert (checkpoint["data"] == checkpoint["epoch"]).all()
    assert checkpoint["data"].size == 100_000
    return int(checkpoint["epoch"])


def assert_next_works(run: Path, options: dict[str, Any]) -> None:
    """The next attempt goes on, saves, and leaves only what it should."""
    logger = attempt(run, 2)
    epoch = epoch_of(logger.load_checkpoint())
    for later in (epoch + 1, epoch + 2):
        save(logger, later, **options)
    assert epoch_of(logger.load_checkpoint("last")) == epoch + 2
    files = [path for path in (run / "artifacts" / "Checkpoint").rglob("*") if path.is_file()]
    names = [path.name for path in files]
    assert not [name for name in names if "tmp" in name]
    if "monitor" in options:
        assert epoch_of(logger.load_checkpoint("last_best")) == epoch + 2
        assert len(names) == options["keep"] + 1, names
    else:
        assert sorted(names) == [".last.pkl.previous", "last.pkl"]
    logger.close()


def break_calls(point: int, breaks: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]) -> list[str]:
    """Let call number `point` of those that write do something else; returns the names of the calls."""
    done: list[str] = []

    def broken(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            done.append(name)
            return breaks(name, real, args) if len(done) == point else real(*args, **more)

        return call

    for name in CALLS:
        setattr(os, name, broken(name, getattr(os, name)))
    return done


# --- killed

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.logger.test_checkpoint_faults import OPTIONS, assert_next_works, break_calls, epoch_of, save
from mlxjobs.logger.logger import DefaultLogger
from tests.attempts import attempt

options = OPTIONS[sys.argv[2]]

def die(name, real, args):
    if name == "write":
        real(args[0], args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

point, seen = 0, []
while True:
    point += 1
    run = Path(sys.argv[1]) / str(point)
    child = os.fork()
    if child == 0:
        logger = DefaultLogger(run)
        for epoch in range(2):
            save(logger, epoch, **options)
        break_calls(point, die)
        save(logger, 2, **options)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    logger = attempt(run, 2)
    newest, last = epoch_of(logger.load_checkpoint()), epoch_of(logger.load_checkpoint("last"))
    assert newest in (1, 2) and last in (1, newest), (point, newest, last)
    if "monitor" in options:
        assert epoch_of(logger.load_checkpoint("last_best")) == newest, (point, newest)
    logger.close()
    assert_next_works(run, options)
    seen.append(newest)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
assert seen == sorted(seen) and set(seen) == {1, 2} and len(seen) > 10, seen
print(len(seen))
"""


@pytest.mark.parametrize("how", OPTIONS)
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the disk is full


@pytest.mark.parametrize("how", [*OPTIONS, "where there are no hard links"])
def test_a_disk_that_is_full_at_any_call_leaves_the_old_checkpoint(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.get(how, OPTIONS["the last k and the best"])
    if how not in OPTIONS:
        monkeypatch.setattr(os, "link", no_link)
    undisturbed, error = fill_disk(tmp_path / "0", 0, options, monkeypatch)
    assert error is None
    assert len(undisturbed) > 12
    renamed = len(undisturbed) - undisturbed[::-1].index("replace")
    for point, call in enumerate(undisturbed, 1):
        run = tmp_path / str(point)
        path = run / "artifacts" / "Checkpoint" / "last.pkl"
        _, error = fill_disk(run, point, options, monkeypatch)
        if error is None:
            assert call == "unlink"  # what could not be removed is removed next time
        else:
            assert error.errno == errno.ENOSPC
            assert str(run) in str(error)
            is_old = epoch_of(checkpoints.load(path)) == 1
            assert is_old == (point <= renamed), (point, call)  # only the folder's fsync comes later
            if "replace" not in undisturbed[:point] and call != "unlink":
                assert sorted(os.listdir(path.parent)) == (run / "before").read_text().split()
        assert_next_works(run, options)


def no_link(*args: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def fill_disk(
    run: Path, point: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], OSError | None]:
    """Save two checkpoints, and a third with a full disk at one call; returns the calls and the error."""

    def full(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if name == "close":  # NFS says it there
            real(*args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = DefaultLogger(run)
    for epoch in range(2):
        save(logger, epoch, **options)
    logger.log_metrics({"loss": 1 / 3}, "val")
    (run / "before").write_text("\n".join(sorted(os.listdir(run / "artifacts" / "Checkpoint"))))
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, getattr(os, name))
        calls = break_calls(point, full)
        error = failure(logger, options)
    logger.close()
    return calls, error


def failure(logger: DefaultLogger, options: dict[str, Any]) -> OSError | None:
    try:
        logger.log_checkpoint({"epoch": 2, "data": np.full(100_000, 2)}, "last", **options)
        logger.finish()
    except OSError as error:
        return error
    return None


# --- damaged


def pair(folder: Path) -> tuple[Path, bytes]:
    """Two checkpoints of one name, and an older one of another; returns the newest and its bytes."""
    for sequence, name in enumerate(("best", "last", "last"), 1):
        obj = {"epoch": sequence, "data": np.arange(5)}
        path = folder / f"{name}.pkl"
        checkpoints.save(obj, path, Record(sequence, 1, name, {"train": 120}, monitor="a.b", value=0.5))
    return path, path.read_bytes()


def assert_falls_back(path: Path, what: object) -> None:
    for candidates in (checkpoints.find(path.parent), checkpoints.candidates(path.parent, "last")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = checkpoints.load_first(candidates)
        assert loaded.path == previous(path), what
        assert loaded.checkpoint["epoch"] == 2, what
        assert [str(path) in str(one.message) for one in caught] == [True], what


def test_a_checkpoint_with_another_byte_anywhere_falls_back_to_the_one_before(tmp_path: Path) -> None:
    path, content = pair(tmp_path)
    for position in range(len(content)):
        for change in (1 << position % 8, 255):
            damaged = bytearray(content)
            damaged[position] ^= change
            path.write_bytes(damaged)
            assert_falls_back(path, (position, change))


def test_a_checkpoint_cut_anywhere_falls_back_to_the_one_before(tmp_path: Path) -> None:
    path, content = pair(tmp_path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert_falls_back(path, length)
        path.write_bytes(content[:length] + bytes(len(content) - length))  # as file systems do
        if content[length:].strip(b"\0"):
            assert_falls_back(path, length)


@settings(max_examples=200)
@given(st.data())
def test_any_damage_falls_back_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, content = pair(tmp_path_factory.mktemp("pair"))
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, len(content)))
    damaged = content[:begin] + data.draw(st.binary(max_size=40)) + content[end:]
    path.write_bytes(damaged)
    if damaged != content:
        assert_falls_back(path, damaged)


def test_damaged_bytes_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "last.pkl"
    mark = tmp_path / "ran"
    for sequence in (1, 2):
        checkpoints.save([Runs(str(mark)), "x" * 1000], path, Record(sequence, 1, "last", {}))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"xxx", b"xyx", 1))
    previous(path).unlink()
    with pytest.raises(DamagedCheckpointError, match="not those that were written"):
        checkpoints.load(path)
    assert not mark.exists()
    path.write_bytes(content)
    checkpoints.load(path)
    assert mark.exists()


class Runs:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["mark"]).touch()
