from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlxjobs.errors import InvalidKeyError, InvalidMetricError, MLXJobsError, ShortMetricsError
from mlxjobs.logger import metrics as metrics_module
from mlxjobs.logger.metrics import MetricsWriter
from mlxjobs.record.fence import Fence
from tests.crashes import crash_points


@pytest.fixture
def writer(tmp_path: Path) -> MetricsWriter:
    return MetricsWriter(tmp_path / "metrics", Fence(2))


def lines(tmp_path: Path, log_name: str = "train") -> list[Any]:
    content = (tmp_path / "metrics" / f"{log_name}.json").read_bytes()
    assert content == b"" or content.endswith(b"\n")
    # bytes, for a text is split at U+0085 and U+2028 too, which JSON allows inside a line
    return [json.loads(line, parse_constant=pytest.fail) for line in content.splitlines()]


def superseded(tmp_path: Path, attempt: str, log_name: str = "train") -> str:
    return (tmp_path / "metrics" / ".superseded" / attempt / f"{log_name}.json").read_text()


# --- lines


def test_each_call_is_one_line_in_the_order_of_the_calls(writer: MetricsWriter, tmp_path: Path) -> None:
    for epoch in range(3):
        writer.append({"loss": 1 / (epoch + 1), "epoch": epoch}, "train")
    assert [line["epoch"] for line in lines(tmp_path)] == [0, 1, 2]


def test_a_line_is_there_when_the_call_returns(writer: MetricsWriter, tmp_path: Path) -> None:
    writer.append({"loss": 0.5}, "train")
    assert lines(tmp_path) == [{"loss": 0.5}]


def test_a_line_is_one_write(writer: MetricsWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.append({"a": 1}, "train")
    writes: list[bytes] = []
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        writes.append(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    writer.append({"a": 2}, "train")
    assert writes == [b'{"a":2}\n']


def test_lines_of_an_earlier_process_stay(tmp_path: Path) -> None:
    for epoch in range(2):
        writer = MetricsWriter(tmp_path / "metrics")
        writer.append({"epoch": epoch}, "train")
        writer.close()
    assert lines(tmp_path) == [{"epoch": 0}, {"epoch": 1}]


def test_numpy_scalars_and_arrays_are_numbers(writer: MetricsWriter, tmp_path: Path) -> None:
    writer.append(
        {
            "f64": np.float64(0.5),
            "f32": np.float32(0.25),
            "f16": np.float16(0.5),
            "i8": np.int8(-3),
            "u64": np.uint64(2**64 - 1),
            "bool": np.bool_(True),
            "text": np.str_("a"),
            "zero_d": np.array(1.5),
            "masked": np.ma.array([2.0], mask=True).mean(),
            "array": np.arange(3),
        },
        "train",
    )
    assert lines(tmp_path) == [
        {
            "f64": 0.5,
            "f32": 0.25,
            "f16": 0.5,
            "i8": -3,
            "u64": 2**64 - 1,
            "bool": True,
            "text": "a",
            "zero_d": 1.5,
            "masked": None,
            "array": [0, 1, 2],
        }
    ]


def test_torch_scalars_are_numbers(writer: MetricsWriter, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(0.5, requires_grad=True)
    writer.append({"loss": tensor, "three": torch.arange(3), "half": torch.tensor(2.0).bfloat16()}, "train")
    assert lines(tmp_path) == [{"loss": 0.5, "three": [0, 1, 2], "half": 2.0}]


class FakeTensor:
    """As torch: item() of several elements is a RuntimeError."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with several elements cannot be converted to Scalar")
        return self.values[0]

    def tolist(self) -> list[float]:
        return list(self.values)


def test_whatever_has_item_and_tolist_is_numbers(writer: MetricsWriter, tmp_path: Path) -> None:
    for _ in range(2):  # with keys that are new, then known
        writer.append({"a": FakeTensor(0.5), "b": FakeTensor(1, 2), "c": FakeTensor(math.nan)}, "train")
    assert lines(tmp_path) == [{"a": 0.5, "b": [1, 2], "c": "NaN"}] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (np.float32("nan"), "NaN"),
        (np.float64("-inf"), "-Infinity"),
        (np.array([1.0, math.nan]), [1.0, "NaN"]),
        ([1.0, {"x": math.inf}], [1.0, {"x": "Infinity"}]),
    ],
)
def test_not_a_number_and_infinities_are_texts(
    writer: MetricsWriter, tmp_path: Path, value: Any, text: Any
) -> None:
    for _ in range(2):
        writer.append({"loss": value, "none": None, "null": "null", "date": date(2023, 4, 20)}, "train")
    expected = {"loss": text, "none": None, "null": "null", "date": "2023-04-20"}
    assert lines(tmp_path) == [expected] * 2


def test_large_integers_and_other_keys_than_texts_are_written(writer: MetricsWriter, tmp_path: Path) -> None:
    writer.append({"big": 2**80, True: 1, None: 0, 1.5: 2, np.int64(7): 3, 8: 4}, "train")  # type: ignore[dict-item]
    (line,) = lines(tmp_path)
    assert line == {"big": 2**80, "true": 1, "null": 0, "1.5": 2, "7": 3, "8": 4}


def test_keys_that_json_cannot_tell_apart_are_refused(writer: MetricsWriter, tmp_path: Path) -> None:
    with pytest.raises(InvalidMetricError, match="the same"):
        writer.append({"1": 0, 1: 0}, "train")  # type: ignore[dict-item]
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, np.complex128(1j), b"bytes", [object()]])
def test_a_value_that_cannot_be_written_is_named_and_nothing_is_written(
    writer: MetricsWriter, tmp_path: Path, value: Any
) -> None:
    writer.append({"model": 1}, "train")
    with pytest.raises(InvalidMetricError, match=r"'model' is of type \w+") as caught:
        writer.append({"model": value}, "train")
    assert isinstance(caught.value, MLXJobsError)
    assert lines(tmp_path) == [{"model": 1}]


@pytest.mark.parametrize("metrics", [None, [0.5], [], "text", "", 3, np.arange(3), np.array([]), np.array(1)])
def test_what_is_no_dictionary_is_refused(writer: MetricsWriter, tmp_path: Path, metrics: Any) -> None:
    writer.append({"a": 1}, "train")
    with pytest.raises(InvalidMetricError, match="dictionary"):
        writer.append(metrics, "train")
    assert lines(tmp_path) == [{"a": 1}]


def test_a_dictionary_inside_itself_is_refused(writer: MetricsWriter) -> None:
    metrics: dict[str, Any] = {}
    metrics["self"] = metrics
    with pytest.raises(InvalidMetricError, match="deep"):
        writer.append(metrics, "train")


@pytest.mark.parametrize(
    "log_name",
    [
        *metrics_module.RESERVED_NAMES,
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a\0b",
        "\ud800",
        None,
        3,
        ["a"],
    ],
)
def test_names_that_no_metrics_file_can_have_are_refused(
    writer: MetricsWriter, tmp_path: Path, log_name: Any
) -> None:
    with pytest.raises(InvalidKeyError, match="none of info, config, mlxpy, artifacts"):
        writer.append({"a": 1}, log_name)
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("log_name", ["train", "val 1", "тест", "a.b", "x'; rm -rf *", "a\nb"])
def test_other_names_are_taken_as_they_are(writer: MetricsWriter, tmp_path: Path, log_name: str) -> None:
    writer.append({"a": 1}, log_name)
    assert lines(tmp_path, log_name) == [{"a": 1}]
    assert list(writer.offsets()) == [log_name]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.floats(width=32).map(np.float32)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def expected(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: expected(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expected(item) for item in value]
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        return number if math.isfinite(number) else ("Infinity" if number > 0 else "-Infinity")
    return value


def same(a: Any, b: Any) -> bool:
    """As ==, but float32 may be written with its own shortest digits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and a != b:
        return bool(np.float32(a) == np.float32(b))
    return type(a) is type(b) and bool(a == b)


@given(rows=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("run")
    writer = MetricsWriter(folder / "metrics")
    for row in rows:
        writer.append(row, "train")
    writer.close()
    if rows:
        assert same([expected(row) for row in rows], lines(folder))


# --- keys


def test_the_registry_holds_the_type_of_every_key(writer: MetricsWriter, tmp_path: Path) -> None:
    writer.append({"loss": math.nan, "epoch": 0, "ok": True}, "train")
    writer.append({"loss": 1, "name": "a", "l": (1, 2), "d": {}, "n": np.float32(1), "z": None}, "train")
    writer.append({"loss": np.int64(3), "yes": 1}, "val")
    registry = yaml.safe_load((tmp_path / "metrics" / ".keys" / "metrics.yaml").read_text())
    assert registry == {
        "train": {
            "loss": "float",
            "epoch": "int",
            "ok": "bool",
            "name": "str",
            "l": "list",
            "d": "dict",
            "n": "float",
            "z": "NoneType",
        },
        "val": {"loss": "int", "yes": "int"},
    }


def test_the_registry_is_written_only_for_new_keys(
    writer: MetricsWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.append({"a": 1, "b": 2}, "train")
    monkeypatch.setattr(metrics_module, "replace_file", pytest.fail)
    writer.append({"b": 1}, "train")
    writer.append({"a": math.nan}, "train")
    again = MetricsWriter(tmp_path / "metrics")
    again.append({"a": 1}, "train")
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"train: 3"])
def test_a_broken_registry_is_made_anew(writer: MetricsWriter, tmp_path: Path, content: bytes) -> None:
    registry = tmp_path / "metrics" / ".keys" / "metrics.yaml"
    registry.parent.mkdir(parents=True)
    registry.write_bytes(content)
    writer.append({"a": 1}, "train")
    assert yaml.safe_load(registry.read_text()) == {"train": {"a": "int"}}


# --- failures


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_trace(tmp_path: Path) -> None:
    script = f"""
import resource, signal
from pathlib import Path
from mlxjobs.logger.metrics import MetricsWriter
writer = MetricsWriter(Path({str(tmp_path)!r}) / "metrics")
row = {{"text": "x" * 100}}
for _ in range(5):
    writer.append(row, "train")
size = writer.offsets()["train"]
for room in (0, 1, 50):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        writer.append(row, "train")
    except OSError as error:
        assert "train.json" in str(error), error
    else:
        raise SystemExit("it was written")
    assert writer.offsets()["train"] == size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append(row, "train")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert lines(tmp_path) == [{"text": "x" * 100}] * 6


def test_a_full_disk_while_a_key_is_registered_writes_no_line(
    writer: MetricsWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str, aside: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer.append({"a": 1}, "train")
    monkeypatch.setattr(metrics_module, "replace_file", full)
    with pytest.raises(OSError, match=r"No space left.*metrics\.yaml"):
        writer.append({"b": 1}, "train")
    monkeypatch.undo()
    writer.append({"b": 2}, "train")
    assert lines(tmp_path) == [{"a": 1}, {"b": 2}]


def test_a_line_that_was_torn_is_moved_away_when_the_file_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "train.json").write_text('{"epoch":0}\n{"epoch":1}\n{"epo')
    MetricsWriter(folder).append({"epoch": 1}, "train")
    assert lines(tmp_path) == [{"epoch": 0}, {"epoch": 1}, {"epoch": 1}]
    assert superseded(tmp_path, "torn") == '{"epo\n'


def test_a_line_that_another_process_is_writing_is_not_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "train.json"
    path.parent.mkdir()
    path.write_bytes(b'{"step":0}\n{"st')
    missing = [b'ep":1}\n']

    def write_the_rest() -> None:
        with path.open("ab") as file:
            file.write(missing.pop() if missing else b"")

    MetricsWriter(path.parent, Fence(2, write_the_rest)).repair()
    assert lines(tmp_path) == [{"step": 0}, {"step": 1}]


def test_what_another_process_writes_during_a_rewind_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "train.json"
    path.parent.mkdir()
    path.write_bytes(b'{"step":0}\n')

    def write() -> None:
        if (path.parent / ".superseded" / "1").exists():  # all that is left is to shorten the file
            path.write_bytes(b'{"step":0}\n{"step":1}\n')

    assert MetricsWriter(path.parent, Fence(2, write)).rewind({}, {"train": 11}) == 1
    assert lines(tmp_path) == [{"step": 1}]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "train.json").write_bytes(b"\0" * 3_000_000)
    writer = MetricsWriter(folder)
    writer.repair()
    assert writer.offsets() == {"train": 0}
    assert len(superseded(tmp_path, "torn")) == 3_000_001


def test_threads_never_tear_lines(writer: MetricsWriter, tmp_path: Path) -> None:
    def log(worker: int) -> None:
        for step in range(300):
            writer.append({"worker": worker, "step": step, f"new{step % 7}": "x" * 500}, "train")

    threads = [threading.Thread(target=log, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = lines(tmp_path)
    for worker in range(4):
        assert [line["step"] for line in written if line["worker"] == worker] == list(range(300))


def test_a_forked_child_adds_to_the_same_file(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from mlxjobs.logger.metrics import MetricsWriter
writer = MetricsWriter(Path({str(tmp_path)!r}) / "metrics")
writer.append({{"who": "parent"}}, "train")
child = os.fork()
if child == 0:
    writer.append({{"who": "child"}}, "train")
    os._exit(0)
os.waitpid(child, 0)
writer.append({{"who": "parent"}}, "train")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert [line["who"] for line in lines(tmp_path)] == ["parent", "child", "parent"]


def test_forked_workers_that_begin_to_log_at_once_wait_for_nobody_and_lose_no_keys(tmp_path: Path) -> None:
    script = f"""
import os, signal, threading
from pathlib import Path
from mlxjobs.logger.metrics import MetricsWriter
writer = MetricsWriter(Path({str(tmp_path)!r}) / "metrics")
writer.append({{"loss": 1.0}}, "train")
busy, done = threading.Event(), threading.Event()
def work():
    with writer.paused():
        busy.set()
        done.wait()
threading.Thread(target=work).start()
busy.wait()
for worker in range(4):
    if os.fork() == 0:
        signal.alarm(20)
        writer.append({{"loss": 2.0}}, "train")
        for key in ("x", "y"):
            writer.append({{key: 1.0}}, f"worker{{worker}}")
        os._exit(0)
print([os.wait()[1] for worker in range(4)])
done.set()
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)
    assert done.stdout == b"[0, 0, 0, 0]\n"
    keys = yaml.safe_load((tmp_path / "metrics" / ".keys" / "metrics.yaml").read_text())
    assert keys.pop("train") == {"loss": "float"}
    assert keys == {f"worker{worker}": {"x": "float", "y": "float"} for worker in range(4)}
    assert os.listdir(tmp_path / "metrics" / ".keys") == ["metrics.yaml"]


def test_importing_it_brings_nothing_heavy() -> None:
    script = """
import sys
import mlxjobs.logger.logger
heavy = {"numpy", "torch", "cloudpickle", "yaml", "matplotlib", "orjson", "pickle", "json"}
print(*sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


# --- sizes, sync, close


def test_offsets_are_the_sizes_of_all_files(writer: MetricsWriter, tmp_path: Path) -> None:
    assert writer.offsets() == {}
    writer.append({"a": 1}, "train")
    writer.append({"a": 1}, "val")
    (tmp_path / "metrics" / "old.json").write_text("{}\n")
    assert writer.offsets() == {"train": 8, "val": 8, "old": 3}


def test_sync_flushes_files_and_folder(writer: MetricsWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.append({"a": 1}, "train")
    writer.append({"a": 1}, "val")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    writer.sync()
    assert [Path(path).name for path in synced] == ["train.json", "val.json", "metrics"]


def test_it_can_be_used_after_close(writer: MetricsWriter, tmp_path: Path) -> None:
    writer.append({"a": 1}, "train")
    writer.close()
    writer.close()
    writer.append({"a": 2}, "train")
    assert lines(tmp_path) == [{"a": 1}, {"a": 2}]


# --- rewinding


def log(writer: MetricsWriter, *epochs: int, log_name: str = "train") -> None:
    for epoch in epochs:
        writer.append({"epoch": epoch}, log_name)


def epochs(tmp_path: Path, log_name: str = "train") -> list[int]:
    return [line["epoch"] for line in lines(tmp_path, log_name)]


def test_a_rewind_moves_what_was_written_after_the_offsets(writer: MetricsWriter, tmp_path: Path) -> None:
    log(writer, 0, 1)
    offsets = writer.offsets()
    log(writer, 2, 3)
    log(writer, 0, log_name="val")
    assert writer.rewind(offsets, writer.offsets()) == 3
    assert epochs(tmp_path) == [0, 1]
    assert epochs(tmp_path, "val") == []
    assert superseded(tmp_path, "1") == '{"epoch":2}\n{"epoch":3}\n'
    log(writer, 2)
    assert epochs(tmp_path) == [0, 1, 2]


def test_lines_of_this_attempt_stay_and_the_open_file_is_followed(
    writer: MetricsWriter, tmp_path: Path
) -> None:
    log(writer, 0, 1)
    offsets = writer.offsets()
    log(writer, 2)
    start = writer.offsets()
    log(writer, 10, 11)
    log(writer, 12, log_name="new")
    assert writer.rewind(offsets, start) == 1
    log(writer, 13)
    assert epochs(tmp_path) == [0, 1, 10, 11, 13]
    assert epochs(tmp_path, "new") == [12]


def test_a_rewind_takes_the_longest_name_that_a_file_can_have(writer: MetricsWriter, tmp_path: Path) -> None:
    name = "x" * 250
    for step in range(3):
        writer.append({"step": step}, name)
    assert writer.rewind({}, {name: 2 * len('{"step":0}\n')}) == 2
    assert lines(tmp_path, name) == [{"step": 2}]


def test_nothing_to_rewind_leaves_no_folder(writer: MetricsWriter, tmp_path: Path) -> None:
    log(writer, 0)
    assert writer.rewind(writer.offsets(), writer.offsets()) == 0
    assert writer.rewind({}, {}) == 0
    assert not (tmp_path / "metrics" / ".superseded").exists()
    assert epochs(tmp_path) == [0]


def test_a_file_that_is_shorter_than_was_remembered_is_an_error(
    writer: MetricsWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_OLD_S", 0.0)
    log(writer, 0, 1)
    log(writer, 0, log_name="val")
    with pytest.raises(ShortMetricsError, match=r"train\.json has 24 bytes of the 36 .* mlxjobs fsck --fix"):
        writer.rewind({"train": 36, "val": 0}, writer.offsets())
    assert epochs(tmp_path) == [0, 1]
    assert writer.offsets()["val"] > 0


@pytest.mark.parametrize("offset", [12, 13, 18, 23])
def test_an_offset_inside_a_line_goes_back_to_the_line_before(
    writer: MetricsWriter, tmp_path: Path, offset: int
) -> None:
    log(writer, 0, 1, 2)
    assert writer.rewind({"train": offset}, writer.offsets()) == 2
    assert epochs(tmp_path) == [0]


def test_a_start_inside_a_line_counts_the_line_as_its_own(writer: MetricsWriter, tmp_path: Path) -> None:
    log(writer, 0, 1, 2)
    assert writer.rewind({}, {"train": 30}) == 2
    assert epochs(tmp_path) == [2]


def test_a_second_rewind_of_an_attempt_has_a_folder_of_its_own(writer: MetricsWriter, tmp_path: Path) -> None:
    log(writer, 0, 1, 2)
    writer.rewind({"train": 24}, writer.offsets())
    writer.rewind({"train": 12}, writer.offsets())
    assert superseded(tmp_path, "1") == '{"epoch":2}\n'
    assert superseded(tmp_path, "1.2") == '{"epoch":1}\n'
    assert writer.rewinds() == 2


def test_rewinds_since_the_sizes_were_taken_are_undone(writer: MetricsWriter, tmp_path: Path) -> None:
    log(writer, 0, 1)
    offsets, rewinds = writer.offsets(), writer.rewinds()
    log(writer, 2)
    writer.note_start(writer.offsets())
    writer.rewind({}, writer.offsets())  # attempt 2 begins from scratch
    log(writer, 100)
    start = writer.offsets()
    third = MetricsWriter(tmp_path / "metrics", Fence(3))
    log(third, 2)  # before it loads
    assert third.rewind(offsets, start, rewinds=rewinds) == 1
    assert epochs(tmp_path) == [0, 1, 2]
    assert superseded(tmp_path, "2") == '{"epoch":100}\n'


@pytest.mark.parametrize("scratch", [False, True])
def test_a_rewind_that_died_anywhere_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: bool
) -> None:
    writer = MetricsWriter(tmp_path / "run" / "metrics")
    log(writer, 0, 1)
    log(writer, 0, log_name="val")
    offsets = writer.offsets()
    log(writer, 2, 3)
    log(writer, 1, log_name="val")
    start = writer.offsets()
    log(writer, 10)
    writer.close()

    def die(run: Path) -> None:
        MetricsWriter(run / "metrics").rewind({} if scratch else offsets, start, rewinds=0)

    copies = crash_points(tmp_path, monkeypatch, die)
    assert len(copies) > 5
    for run in copies:
        again = MetricsWriter(run / "metrics")
        again.rewind(offsets, again.offsets(), rewinds=0)
        assert epochs(run) == [0, 1], run
        assert epochs(run, "val") == [0], run


def test_a_full_disk_during_a_rewind_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from mlxjobs.logger.metrics import MetricsWriter
writer = MetricsWriter(Path({str(tmp_path)!r}) / "metrics")
for epoch in range(100):
    writer.append({{"epoch": epoch}}, "train")
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
try:
    writer.rewind({{"train": 12}}, writer.offsets())
except OSError as error:
    assert ".json" in str(error), error
else:
    raise SystemExit("it was written")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert epochs(tmp_path) == list(range(100))
    writer = MetricsWriter(tmp_path / "metrics")
    assert writer.rewind({"train": 12}, writer.offsets()) == 99
    assert epochs(tmp_path) == [0]


def test_python_survives_the_signal_of_a_file_size_limit() -> None:
    # what the tests with RLIMIT_FSIZE rely on
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)
