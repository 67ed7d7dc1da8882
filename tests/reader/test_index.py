"""The index: always what the run directories say, whatever happened to them or to it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlxpy
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxjobs.reader import columns
from mlxjobs.reader.columns import ABSENT, ColumnFile, decode_column, encode_column
from mlxjobs.reader.index import INDEX_NAME, Index
from mlxjobs.reader.reader import UnreadableRunWarning
from mlxjobs.record import facts
from tests.run_trees import write_run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


def content(index: Index, *, anew: bool = False) -> list[Any]:
    snapshot = index.sync(anew=anew)
    keys = snapshot.keys()
    return [snapshot.log_ids, keys, [repr(snapshot.column(key)) for key in keys], snapshot.problems]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "add-mlxp", "remove", "config", "status", "break", "metric", "artifact", "read"]
        ),
        st.sampled_from([1, 2, 255, 256, 300]),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_after_any_changes_the_index_says_what_the_runs_say(actions: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for action, log_id, value in actions:
            _act(logs, action, log_id, value)
        with_index, anew = content(Index(logs)), content(Index(logs, logs / "other"), anew=True)
        assert with_index == anew


def _act(logs: Path, action: str, log_id: int, value: int) -> None:
    run = logs / str(log_id)
    if action == "read":
        Index(logs).sync()
    elif action.startswith("add"):
        if not run.exists():
            generation = "mlxp-1.0" if action == "add-mlxp" else "ours"
            status = {"status": "COMPLETE" if value else "RUNNING"}
            write_run(logs, log_id, {"seed": value, f"k{value}": None}, generation=generation, info=status)
    elif run.exists():
        _change(run, action, value)


def _change(run: Path, action: str, value: int) -> None:
    metadata = run / "metadata"
    if action == "remove":
        shutil.rmtree(run)
    elif action == "config":  # in place, and the copy becomes stale
        (metadata / "config.yaml").write_text(yaml.dump({"seed": [value], "new": float(value)}))
    elif action == "status":
        (metadata / "info.yaml").write_text(f"status: {'FAILED' if value else 'RUNNING'}\n")
    elif action == "break":
        (metadata / "config.yaml").write_text("[")
    elif "RUNNING" in (metadata / "info.yaml").read_text():
        if action == "metric":
            (run / "metrics" / ".keys" / f"m{value}.yaml").write_text("x: ''\n")
        else:
            (run / "artifacts" / "pickle").mkdir(exist_ok=True)
            (run / "artifacts" / "pickle" / f"a{value}").touch()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON | st.just(ABSENT), max_size=8))
def test_a_column_survives(values: list[Any]) -> None:
    assert repr(decode_column(encode_column(values))) == repr(values)


def test_names_that_are_no_text_do_not_stop_the_index(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {"seed": 1})
    folder = run / "artifacts" / os.fsdecode(b"bad\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"file\xff")).touch()
    (run / "metrics" / ".keys" / os.fsdecode(b"bad\xff.yaml")).write_text("x: ''\n")
    assert len(mlxpy.Reader(tmp_path, reload=True).filter("config.seed == 1")) == 1


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + b"x" * 4096, None])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    for log_id in (1, 2):
        write_run(tmp_path, log_id, {"seed": log_id})
    mlxpy.Reader(tmp_path)
    path = tmp_path / INDEX_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert mlxpy.Reader(tmp_path).filter()[:]["config.seed"] == [1, 2]


@pytest.mark.parametrize("damaged", [b"[7,", b"[", b"[2,2,"])
def test_what_changed_in_the_index_is_read_from_the_runs(tmp_path: Path, damaged: bytes) -> None:
    for log_id in (1, 2):
        write_run(tmp_path, log_id, {"seed": 3 - log_id})
    mlxpy.Reader(tmp_path)
    with closing(sqlite3.connect(tmp_path / INDEX_NAME)) as index, index:
        ((content,),) = index.execute("SELECT content FROM cells WHERE key = 'config.seed'")
        changed = content.replace(b"[2,", damaged)
        index.execute("UPDATE cells SET content = ? WHERE key = 'config.seed'", (changed,))
    assert mlxpy.Reader(tmp_path).filter("config.seed > 0")[:]["config.seed"] == [2, 1]


def test_a_run_that_cannot_be_opened_for_a_while_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, 1, {"seed": 1}, generation="mlxp-1.0")
    write_run(tmp_path, 2, {"seed": 2}, generation="mlxp-1.0")

    def refuse(path: str, mode: str, **options: Any) -> Any:
        if path.startswith((f"{tmp_path}/1/metadata", f"{tmp_path}/2/metrics")):
            raise OSError(errno.EMFILE, "Too many open files", path)
        return open(path, mode, **options)

    with monkeypatch.context() as full:
        full.setattr(facts, "open", refuse, raising=False)
        with pytest.warns(UnreadableRunWarning, match="Too many open"):
            mlxpy.Reader(tmp_path)
    assert mlxpy.Reader(tmp_path).filter()[:]["train.epoch"] == [[0, 1, 2]] * 2


def test_a_user_without_a_home_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    write_run(tmp_path, 1, {"seed": 1})
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    assert len(mlxpy.Reader(tmp_path)) == 1


def test_an_index_of_another_version_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, 1, {"seed": 1})
    with monkeypatch.context() as other:
        other.setattr(columns, "INDEX_SCHEMA", columns.INDEX_SCHEMA + 1)
        mlxpy.Reader(tmp_path)
    assert len(mlxpy.Reader(tmp_path).filter("config.seed == 1")) == 1


def test_where_logs_cannot_be_written_the_index_is_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, 1, {"seed": 1})
    real = columns.publish_index

    def read_only(target: Path, *arguments: Any) -> ColumnFile:
        if target.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(target))
        return real(target, *arguments)

    monkeypatch.setattr("mlxjobs.reader.index.publish_index", read_only)  # root may write everywhere
    assert len(mlxpy.Reader(tmp_path).filter("train.loss.last < 1")) == 1
    assert not (tmp_path / INDEX_NAME).exists()
    assert list(cache.rglob("*.sqlite"))
    monkeypatch.setattr("mlxjobs.reader.index.read_facts", None)
    assert len(mlxpy.Reader(tmp_path)) == 1


def test_where_nothing_can_be_written_the_index_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlxjobs.reader.index.publish_index", full)
    write_run(tmp_path, 1, {"seed": 1})
    reader = mlxpy.Reader(tmp_path)
    assert len(reader.filter("config.seed == 1 & train.loss.last < 1")) == 1
    write_run(tmp_path, 2, {"seed": 1})
    assert len(reader.refresh().filter("config.seed == 1")) == 2
    assert not (tmp_path / INDEX_NAME).exists()


def test_dst_dir_holds_the_index(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    write_run(logs, 1, {})
    mlxpy.Reader(logs, dst_dir=tmp_path / "there")
    assert not (logs / INDEX_NAME).exists()
    assert len(list((tmp_path / "there").iterdir())) == 1


def test_refresh_false_takes_the_index_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {})
    assert len(mlxpy.Reader(tmp_path, refresh=False)) == 1  # there was none
    write_run(tmp_path, 2, {})
    assert len(mlxpy.Reader(tmp_path, refresh=False)) == 1
    assert len(mlxpy.Reader(tmp_path)) == 2


def test_a_snapshot_goes_on_when_its_file_is_gone(tmp_path: Path) -> None:
    """On NFS the file that was replaced by another machine can no longer be read."""
    for log_id in (1, 2, 300):
        write_run(tmp_path, log_id, {"seed": log_id})
    snapshot = Index(tmp_path).sync()
    snapshot._file.close()
    assert snapshot.column("config.seed") == [1, 2, 300]
    keys = snapshot.keys()
    assert "train.loss" in keys


def _hammer(logs: Path, first: int, failures: Any) -> None:
    try:
        for log_id in range(first, first + 8):
            write_run(logs, log_id, {"seed": log_id})
            seeds = mlxpy.Reader(logs).filter("train.loss.last < 1")[:]["config.seed"]
            assert log_id in seeds
            assert seeds == sorted(seeds)
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_several_readers_and_writers_at_once_see_all_runs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    workers = [context.Process(target=_hammer, args=(tmp_path, 1 + 8 * i, failures)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0], failures.get()
    assert mlxpy.Reader(tmp_path).filter()[:]["config.seed"] == list(range(1, 25))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [INDEX_NAME]
