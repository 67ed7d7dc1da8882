from __future__ import annotations

import errno
import importlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxjobs.errors import DamagedCheckpointError, InvalidArtifactError
from mlxjobs.logger import checkpoints, pickling
from mlxjobs.logger.checkpoint_file import Record, read_record
from mlxjobs.logger.checkpoints import previous

RECORD = Record(7, 2, "last", {"train": 120, "val": 8}, rewinds=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Checkpoint" / "last.pkl"


def save(path: Path, obj: Any, sequence: int = 1) -> None:
    checkpoints.save(obj, path, replace(RECORD, sequence=sequence))


def plain(path: Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def newest(path: Path) -> checkpoints.Loaded:
    return checkpoints.load_first(checkpoints.kept(path), stacklevel=2)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


class Explosive:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


# --- what is written


@pytest.mark.parametrize(
    "obj",
    [
        {"epoch": 3, "model": np.arange(100_000, dtype=np.float32).reshape(100, 1000)},
        {
            "fortran": np.asfortranarray(np.random.default_rng(0).random((300, 300))),
            "strided": np.arange(99)[::3],
        },
        {"empty": np.zeros((0, 3)), "scalar": np.float64(1), "zero_d": np.array(2.0)},
        [b"x" * 20_000_000, bytearray(b"y" * 70_000), "z" * 70_000],
        [(i, str(i)) for i in range(10_000)],
        None,
    ],
    ids=["array", "layouts", "small arrays", "buffers", "objects", "none"],
)
def test_a_checkpoint_is_an_ordinary_pickle(path: Path, obj: Any) -> None:
    save(path, obj)
    expected = pickle.dumps(obj, protocol=5)
    record = read_record(path)
    assert record is not None
    assert path.read_bytes()[: record.size] == expected
    again = pickle.dumps(pickle.loads(expected))
    assert pickle.dumps(plain(path)) == again
    assert pickle.dumps(checkpoints.load(path)) == again


def test_the_record_comes_back(path: Path) -> None:
    save(path, "object", 7)
    record = read_record(path)
    assert record is not None
    content = pickle.dumps("object", 5)
    checksum = zlib.crc32(zlib.crc32(content).to_bytes(4, "little"))
    assert record == replace(RECORD, size=len(content), checksum=checksum, time=record.time)
    assert record.time[-6] in "+-"  # with offset


def test_a_record_of_a_later_version_is_read(path: Path) -> None:
    checkpoints.save("object", path, replace(RECORD, more={"crc32": 123}))
    record = read_record(path)
    assert record is not None
    assert record.more == {"crc32": 123}
    assert checkpoints.load(path) == "object"


CONTENT = pickle.dumps("abcd", 5)
FIELDS = {"sequence": 1, "attempt": 1, "log_name": "last", "metrics": {"train": 3}, "rewinds": 0} | {
    "time": "2026-11-23T08:00:00+01:00", "size": len(CONTENT)
}  # fmt: skip


def test_the_file_of_today_is_read_tomorrow(path: Path) -> None:
    checksum = zlib.crc32(zlib.crc32(CONTENT).to_bytes(4, "little"))
    text = json.dumps(FIELDS | {"checksum": checksum, "monitor": "a.b", "value": 0.5, "schema": 2}).encode()
    line = b"\nmlxjobs checkpoint " + text
    footer = zlib.crc32(line).to_bytes(4, "little") + len(text).to_bytes(4, "little") + b"MLXJCK2\n"
    path.parent.mkdir()
    path.write_bytes(CONTENT + line + footer)
    record = read_record(path)
    assert record is not None
    assert (record.metrics, record.checksum, record.value) == ({"train": 3}, checksum, 0.5)
    assert checkpoints.load(path) == "abcd"


def test_the_file_of_yesterday_which_has_no_checksum_is_read(path: Path) -> None:
    text = json.dumps(FIELDS | {"schema": 1}).encode()
    content = CONTENT + b"\nmlxjobs checkpoint " + text
    path.parent.mkdir()
    path.write_bytes(content + len(text).to_bytes(4, "little") + b"MLXJCKP\n")
    record = read_record(path)
    assert record is not None
    assert (record.metrics, record.checksum) == ({"train": 3}, None)
    assert checkpoints.load(path) == "abcd"


@pytest.mark.parametrize("mib", [7, 8, 9, 24, 25])
def test_the_checksum_is_that_of_the_blocks(path: Path, mib: int) -> None:
    save(path, np.random.default_rng(0).bytes(mib << 20))
    record = read_record(path)
    assert record is not None
    content = path.read_bytes()[: record.size]
    blocks = [content[begin : begin + (8 << 20)] for begin in range(0, len(content), 8 << 20)]
    assert record.checksum == zlib.crc32(b"".join(zlib.crc32(one).to_bytes(4, "little") for one in blocks))
    assert len(checkpoints.load(path)) == mib << 20
    for position in range(0, record.size, 3 << 20):
        with open(path, "r+b", buffering=0) as file:
            file.seek(position)
            file.write(bytes([content[position] ^ 1]))
            with pytest.raises(DamagedCheckpointError, match="not those that were written"):
                checkpoints.load(path)
            file.seek(position)
            file.write(content[position : position + 1])


@pytest.mark.parametrize(
    "content", [pickle.dumps("foreign", 4), pickle.dumps("foreign") + pickle.dumps("second")]
)
def test_a_file_of_someone_else_has_no_record_and_is_loaded(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_record(path) is None
    assert checkpoints.load(path) == "foreign"


def test_the_one_before_is_kept_and_nothing_else(path: Path) -> None:
    for epoch in range(4):
        save(path, epoch, epoch + 1)
    assert checkpoints.load(path) == 3
    assert checkpoints.load(previous(path)) == 2
    assert names(path) == [".last.pkl.previous", "last.pkl"]


def test_the_one_before_is_kept_where_there_are_no_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    for epoch in range(3):
        save(path, epoch)
    assert (checkpoints.load(path), checkpoints.load(previous(path))) == (2, 1)
    assert names(path) == [".last.pkl.previous", "last.pkl"]


def test_a_damaged_file_does_not_take_the_place_of_a_good_one(path: Path) -> None:
    for epoch in range(2):
        save(path, epoch, epoch + 1)
    path.write_bytes(path.read_bytes()[:5])
    save(path, 2, 3)
    assert checkpoints.load(previous(path)) == 0
    checkpoints.save(3, path, RECORD, damaged=True)
    assert checkpoints.load(previous(path)) == 0


def test_a_file_of_someone_else_is_kept_as_the_one_before(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(pickle.dumps("foreign"))
    save(path, "ours")
    assert checkpoints.load(previous(path)) == "foreign"


def test_it_is_on_the_disk_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix}")
        fsync(descriptor)

    def move(source: Path, target: Any) -> Path:
        calls.append(f"replace {Path(target).name}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", move)
    save(path, 1)
    assert calls == ["fsync ", "fsync .tmp", "replace last.pkl", "fsync "]  # its folder is new
    save(path, 2)
    assert calls[4:] == ["fsync .tmp", "replace .last.pkl.previous", "replace last.pkl", "fsync "]


def test_writing_to_the_disk_begins_while_pickling(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(
        pickling, "_sync_file_range", lambda: lambda fd, begin, size: ranges.append((begin, size))
    )
    save(path, np.zeros(4 << 20))
    assert [begin for begin, _ in ranges] == [
        0,
        *(sum(size for _, size in ranges[: i + 1]) for i in range(3)),
    ]
    assert sum(size for _, size in ranges) >= 32 << 20


def test_an_array_that_changes_while_it_is_written_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.zeros(1 << 19)
    write = os.write

    def write_while_training(descriptor: int, data: Any) -> int:
        written = write(descriptor, data)
        weights[:] += 1  # as another thread does, or a process that shares the memory
        return written

    monkeypatch.setattr(os, "write", write_while_training)
    save(path, weights)
    assert checkpoints.load(path).size == weights.size


def test_it_works_where_the_system_cannot_begin_early(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    pickling._sync_file_range.cache_clear()
    try:
        save(path, np.zeros(4 << 20))
    finally:
        pickling._sync_file_range.cache_clear()
    assert checkpoints.load(path).size == 4 << 20


# --- objects that pickle does not take


def test_lambdas_and_local_classes_are_saved_and_read_by_plain_pickle(path: Path) -> None:
    class Local:
        factor = 3

    save(path, {"weights": np.arange(100_000), "schedule": lambda step: step * 2, "local": Local()})
    loaded = plain(path)
    assert loaded["schedule"](4) == 8
    assert loaded["local"].factor == 3
    assert loaded["weights"].sum() == 4999950000
    assert read_record(path) is not None
    assert checkpoints.load(path)["schedule"](1) == 2


def test_an_object_that_nothing_can_pickle_is_refused_with_the_path(path: Path) -> None:
    save(path, "good")
    with pytest.raises(InvalidArtifactError, match=r"last\.pkl was not written.*dict.*pickle"):
        save(path, {"generator": (i for i in range(3)), "data": np.zeros(1_000_000)})
    assert checkpoints.load(path) == "good"
    assert names(path) == ["last.pkl"]


# --- failures while writing


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError("no room")])
def test_an_interrupted_checkpoint_leaves_the_old_one(path: Path, error: BaseException) -> None:
    save(path, "good")
    with pytest.raises(type(error)):
        save(path, [np.zeros(1_000_000), Explosive(error)])
    assert checkpoints.load(path) == "good"
    assert names(path) == ["last.pkl"]


def test_a_full_disk_leaves_the_old_one_and_names_the_file(tmp_path: Path, path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record
path = Path({str(path)!r})
checkpoints.save(b"good", path, Record(1, 1, "last", {{}}))
for limit in (10, 70_000, 1_000_000, 3_000_100):  # the last one is in the trailer
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoints.save(b"x" * 3_000_000, path, Record(2, 1, "last", {{}}))
    except OSError as error:
        assert "last.pkl" in str(error), error
    else:
        raise SystemExit("it was written")
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pkl"]
    assert checkpoints.load(path) == b"good"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert checkpoints.load(path) == b"good"


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record

path, point = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def dying(real, half=False):
    def call(*args, **options):
        global calls
        calls += 1
        if calls == point:
            if half:
                real(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call

checkpoints.save({"epoch": 0, "data": np.zeros(300_000)}, path, Record(1, 1, "last", {}))
for name in ("fsync", "replace", "rename", "link", "open", "unlink", "close"):
    setattr(os, name, dying(getattr(os, name)))
os.write = dying(os.write, half=True)
for epoch in (1, 2):
    obj = {"epoch": epoch, "data": np.full(300_000, epoch)}
    checkpoints.save(obj, path, Record(epoch + 1, 1, "last", {}))
"""


def test_a_process_killed_at_any_point_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    epochs = []
    for point in range(1, 200):
        path = tmp_path / str(point) / "last.pkl"
        result = subprocess.run([sys.executable, "-c", KILLED, str(path), str(point)], check=False)
        obj = checkpoints.load(path)
        assert (obj["data"] == obj["epoch"]).all()
        assert read_record(path) is not None
        epochs.append(obj["epoch"])
        save(path, "the next attempt")
        assert names(path) == [".last.pkl.previous", "last.pkl"], point  # no leftovers
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL
    assert epochs == sorted(epochs)
    assert len(epochs) > 15
    assert set(epochs) == {0, 1, 2}


def test_a_process_killed_from_outside_leaves_a_good_checkpoint(path: Path) -> None:
    script = f"""
from pathlib import Path
import numpy as np
from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record
path = Path({str(path)!r})
for epoch in range(100_000):
    obj = {{"epoch": epoch, "data": np.full(100_000, epoch)}}
    checkpoints.save(obj, path, Record(epoch + 1, 1, "last", {{}}))
    print(epoch, flush=True)
"""
    chance = random.Random(0)
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = -1
            for _ in range(chance.randint(1, 20)):
                printed = int(process.stdout.readline())
            process.kill()
        obj = checkpoints.load(path)
        assert obj["epoch"] >= printed
        assert (obj["data"] == obj["epoch"]).all()


def test_what_a_process_on_another_machine_left_is_removed_when_it_is_old(path: Path) -> None:
    save(path, 0)
    old, fresh = (path.with_name(f".last.pkl.{host}.1.2.tmp") for host in ("elsewhere", "other"))
    other = path.with_name(".last.pkl.b.pkl.elsewhere.1.2.tmp.pkl")
    for leftover in (old, fresh, other):
        leftover.write_bytes(b"x")
    os.utime(old, (0, 0))
    save(path, 1)
    assert not old.exists()
    assert fresh.exists()
    assert other.exists()


# --- damaged files


@pytest.fixture
def pair(path: Path) -> Iterator[bytes]:
    """Two checkpoints, whose newer one is returned as bytes."""
    save(path, {"epoch": 1, "data": np.arange(2000)}, 1)
    save(path, {"epoch": 2, "data": np.arange(2000), "text": "x" * 100}, 2)
    return path.read_bytes()  # type: ignore[return-value]


def test_a_file_cut_anywhere_falls_back_to_the_one_before(
    path: Path, pair: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(path)
    assert record is not None
    chance = random.Random(1)
    cuts = {
        *range(30),
        *range(record.size - 5, len(pair)),
        *(chance.randrange(len(pair)) for _ in range(100)),
    }
    for cut in sorted(cuts):
        path.write_bytes(pair[:cut])
        with pytest.warns(UserWarning, match=r"last\.pkl .*\.last\.pkl\.previous") as caught:
            loaded = newest(path)
        assert caught[0].filename == __file__
        assert loaded.checkpoint["epoch"] == 1
        assert loaded.path == previous(path)
        assert "going on from the one before it" in capsys.readouterr().err


def test_a_file_that_only_lost_its_record_falls_back_to_one_that_has_it(path: Path, pair: bytes) -> None:
    record = read_record(path)
    assert record is not None
    path.write_bytes(pair[: record.size])
    with pytest.warns(UserWarning, match=r"last\.pkl .*no record.*\.previous"):
        assert newest(path).checkpoint["epoch"] == 1
    previous(path).unlink()  # now it is as good as a pickle that the user put there
    loaded = newest(path)
    assert loaded.checkpoint["epoch"] == 2
    assert loaded.record is None


def test_a_file_with_a_hole_or_more_bytes_is_damaged(path: Path, pair: bytes) -> None:
    record = read_record(path)
    assert record is not None
    contents = [pair[:at] + b"more" + pair[at:] for at in (1000, record.size)]
    for content in (*contents, pair[:1000] + pair[2000:], b"", b"\0" * len(pair)):
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=r"last\.pkl"):
            checkpoints.load(path)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"\x80\x05", b"\x80\x85"),
        (b"numpy._core", b"nympy._core"),
        (b"_frombuffer", b"_fromduffer"),
        (b"epoch", b"\xff\xff\xff\xff\xff"),
        (b'"sequence"', b'"sEquence"'),
        (b"MLXJCK2", b"MLXJ\0\0\0"),
        (b"\nmlxjobs", b"\nmlxjoBs"),
    ],
)
def test_bytes_that_make_no_sense_fall_back(path: Path, pair: bytes, good: bytes, bad: bytes) -> None:
    assert good in pair
    path.write_bytes(pair.replace(good, bad, 1))
    with pytest.warns(UserWarning, match="going on from the one before it"):
        assert newest(path).checkpoint["epoch"] == 1


def test_two_damaged_files_are_an_error_that_says_so(path: Path, pair: bytes) -> None:
    path.write_bytes(pair[:100])
    previous(path).write_bytes(pair[:100])
    with pytest.raises(DamagedCheckpointError, match=r"last\.pkl .*no earlier one") as caught:
        newest(path)
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_missing_file_falls_back_with_a_warning_and_both_missing_is_an_error(
    path: Path, pair: bytes
) -> None:
    path.unlink()
    with pytest.warns(UserWarning, match="is missing"):
        assert newest(path).checkpoint["epoch"] == 1
    previous(path).unlink()
    assert checkpoints.candidates(path.parent, "last") == []


def test_a_class_that_is_gone_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"cno_such_module\nThing\n.")
    with pytest.raises(
        DamagedCheckpointError, match=r"last\.pkl cannot be read: ModuleNotFoundError: .*no_such_module"
    ):
        newest(path)


def test_a_checkpoint_that_only_lacks_its_module_is_not_called_damaged(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text("class Model:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    save(path, importlib.import_module("my_model").Model())
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "my_model")
    with pytest.raises(DamagedCheckpointError, match="its bytes are right, but ModuleNotFoundError"):
        newest(path)


def test_a_file_that_may_not_be_read_is_an_error_of_its_own(path: Path, pair: bytes) -> None:
    for file in (path, previous(path)):
        file.unlink()
        file.mkdir()  # as unreadable to root as to anyone
    with pytest.raises(DamagedCheckpointError, match=r"cannot be read: .*Is a directory"):
        newest(path)


# --- which is the newest


def test_the_newest_has_the_highest_sequence(tmp_path: Path) -> None:
    for sequence, name in enumerate(["a", "best", "last"], 1):
        save_as(tmp_path, name, sequence)
    save_as(tmp_path, "best", 4)
    (tmp_path / "foreign.pkl").write_bytes(pickle.dumps(1))
    (tmp_path / "older.pkl").write_bytes(pickle.dumps(1))
    (tmp_path / "notes.txt").write_text("")
    os.utime(tmp_path / "older.pkl", (1000, 1000))
    found = [candidate.path.name for candidate in checkpoints.find(tmp_path)]
    assert found == ["best.pkl", "last.pkl", ".best.pkl.previous", "a.pkl", "foreign.pkl", "older.pkl"]
    assert max(checkpoints.sequences(tmp_path)) == 4
    assert checkpoints.find(tmp_path / "nowhere") == []


def save_as(folder: Path, name: str, sequence: int) -> None:
    checkpoints.save(name, folder / f"{name}.pkl", replace(RECORD, log_name=name, sequence=sequence))


def test_a_damaged_one_is_told_and_the_newest_of_the_others_is_used(tmp_path: Path) -> None:
    for sequence, name in enumerate(["best", "last", "best"], 1):
        save_as(tmp_path, name, sequence)
    path = tmp_path / "best.pkl"
    content = path.read_bytes()
    for damaged in (
        b"",
        content[:-1],
        content[:9],
        content[: content.index(b"\nmlxjobs")],
        b"?" + content[1:],
    ):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"best\.pkl cannot be read.*going on from .*last\.pkl"):
            assert checkpoints.load_first(checkpoints.find(tmp_path)).checkpoint == "last"
    assert max(checkpoints.sequences(tmp_path)) == 3
    path.unlink()
    with pytest.warns(UserWarning, match=r"best\.pkl is missing.*going on from .*last\.pkl"):
        assert checkpoints.load_first(checkpoints.find(tmp_path)).checkpoint == "last"
